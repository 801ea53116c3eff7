//! One connection: what it is used for, and how far its protocol has come.
//!
//! Owned by the transport, which moves it out of its table while it works on it. Plain state; the
//! decisions are the transport's.

use bytes::Bytes;
use etcore_proto::http1;
use etcore_proto::raftpb::{Message, MessageType};
use prost::Message as _;

use super::codec::{Decoder, Encoder};
use super::queue::is_bulk;
use super::{ConnId, Lane, PeerRequest, StreamKind};

/// See the module text.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) role: Role,
    /// When it began to be what it is: dialled, asked, idle.
    pub(super) since_ms: u64,
    /// When bytes came last.
    pub(super) heard_ms: u64,
    /// A send is with the shell since then.
    pub(super) sending_ms: Option<u64>,
    /// In the transport's list of connections to look at.
    pub(super) dirty: bool,
}

/// What a connection is used for.
#[derive(Debug)]
pub(super) enum Role {
    /// It is being established.
    Dial { peer: u64, purpose: Purpose },
    /// A stream that a peer sends on.
    Reader(Reader),
    /// A stream that a peer reads from.
    Writer(Writer),
    /// Requests of this member, one at a time.
    Exchange(Exchange),
    /// Requests of others.
    Server(Server),
}

/// Why a connection is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Stream(StreamKind),
    Exchange(Lane),
}

#[derive(Debug)]
pub(super) struct Reader {
    pub(super) peer: u64,
    pub(super) kind: StreamKind,
    pub(super) client: http1::Client,
    pub(super) state: ReaderState,
}

#[derive(Debug)]
pub(super) enum ReaderState {
    /// The request is sent.
    Asked,
    /// The peer says why not.
    Refused { status: u16, body: Vec<u8> },
    /// Messages come.
    Open(Decoder),
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) peer: u64,
    pub(super) kind: StreamKind,
    /// The rest of the response's head.
    pub(super) head: Vec<u8>,
    pub(super) encoder: Encoder,
    /// When something was sent last.
    pub(super) sent_ms: u64,
    /// Say that this member is there, if there is nothing else to say.
    pub(super) beat: bool,
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) peer: u64,
    pub(super) lane: Lane,
    /// Among the idle ones of its lane.
    pub(super) is_listed: bool,
    pub(super) client: http1::Client,
    pub(super) job: Option<Job>,
    /// The answer so far.
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Exchanges that ended well on this connection.
    pub(super) done: u32,
    /// When the job must be answered.
    pub(super) deadline_ms: u64,
    /// The job's bytes have left.
    pub(super) is_sent: bool,
}

/// A request of this member.
#[derive(Debug, Clone)]
pub(super) enum Job {
    /// One message.
    Post(Box<Message>),
    /// A question of the replica's.
    Request(Box<PeerRequest>),
    /// Whether the peer is there.
    Probe,
}

impl Job {
    /// On whose connections it travels.
    pub(super) fn lane(&self) -> Lane {
        match self {
            Self::Post(_) => Lane::Messages,
            Self::Request(request) => request.lane,
            Self::Probe => Lane::Probes,
        }
    }

    /// Entries or proposals.
    pub(super) fn is_bulk(&self) -> bool {
        matches!(self, Self::Post(message) if is_bulk(message))
    }

    /// Method, path, content type and body.
    pub(super) fn request(&self) -> (&'static str, &str, &'static str, Bytes) {
        match self {
            Self::Post(message) => {
                let body = message.encode_to_vec().into();
                ("POST", super::handshake::PIPELINE_PATH, "application/protobuf", body)
            }
            Self::Request(request) => {
                (request.method, &request.target, request.content_type, request.body.clone())
            }
            Self::Probe => ("GET", super::handshake::PROBING_PATH, "", Bytes::new()),
        }
    }

    /// True for a message that takes effect each time it arrives.
    pub(super) fn is_proposal(&self) -> bool {
        let propose = Some(MessageType::MsgProp as i32);
        matches!(self, Self::Post(message) if message.r#type == propose)
    }
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) http: http1::Server,
    pub(super) request: Option<Incoming>,
    /// The peer says no more, and when it ended.
    pub(super) ended_ms: Option<u64>,
}

/// A request that is coming in.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) cluster: String,
    pub(super) body: Vec<u8>,
    /// It is a message of raft's.
    pub(super) is_message: bool,
    /// It was answered already; the rest is of no interest.
    pub(super) is_answered: bool,
    /// Its answer is due from outside.
    pub(super) is_asked: bool,
}

impl Conn {
    pub(super) fn new(id: ConnId, role: Role, now_ms: u64) -> Self {
        Self { id, role, since_ms: now_ms, heard_ms: now_ms, sending_ms: None, dirty: false }
    }
}
