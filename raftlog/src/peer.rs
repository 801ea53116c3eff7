//! Links to the other members, as etcd's rafthttp has them: without sockets, threads or clocks.
//!
//! Between two members there are four long-lived streams, two each way: `message` for everything,
//! `msgapp` for appends. The *receiver* of a stream asks for it: it dials, sends a GET, and reads
//! messages out of a response that never ends. Where no stream leads yet, single messages are
//! posted to `/raft`. The server's shell owns the sockets: it carries bytes, and does what
//! [`Transport`] asks for.
//!
//! - [`codec`]: both framings.
//! - [`handshake`]: paths, fields, versions, refusals.
//! - [`transport`]: the state machine of all peers and connections.
//!
//! Nothing here loses more than a bad network would, and nothing grows beyond `limits`: what finds
//! its queue full is dropped and the peer reported unreachable. TLS, when it comes, sits between
//! the sockets and this.

pub mod codec;
mod conn;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod handshake;
mod link;
mod queue;
pub mod transport;

use bytes::Bytes;

pub use handshake::{Local, Refusal};
pub use transport::{Settings, Transport};

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StreamKind {
    /// Any message.
    Message,
    /// Appends (msgappv2).
    Append,
}

impl StreamKind {
    /// As etcd's log names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Message => "stream Message",
            Self::Append => "stream MsgApp v2",
        }
    }

    const ALL: [Self; 2] = [Self::Message, Self::Append];

    fn slot(self) -> usize {
        match self {
            Self::Message => 0,
            Self::Append => 1,
        }
    }
}

/// What requests of this member to a peer are about. Each kind has connections of its own: what
/// waits in one lane holds up no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Messages that no stream takes.
    Messages,
    /// Whether the peer is there.
    Probes,
    /// Questions about leases. Asked one by one, each holds a connection for a round trip.
    Leases,
    /// Parts of snapshots.
    Snapshots,
    /// Other questions.
    Questions,
}

impl Lane {
    const ALL: [Self; 5] =
        [Self::Messages, Self::Probes, Self::Leases, Self::Snapshots, Self::Questions];

    fn slot(self) -> usize {
        self as usize
    }

    /// Connections it may have to one peer.
    fn connections_max(self) -> usize {
        match self {
            Self::Probes => 1,
            Self::Leases => crate::limits::PEER_LEASE_CONNECTIONS,
            Self::Snapshots => crate::limits::PEER_SNAPSHOT_CONNECTIONS,
            Self::Messages | Self::Questions => crate::limits::PEER_PIPELINE_CONNECTIONS,
        }
    }
}

/// A connection of the [`Transport`]. The generation tells a reused slot from its predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// Place in the table.
    pub slot: u32,
    /// Counts the uses of the slot.
    pub generation: u32,
}

/// What the replica must know of the links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerReport {
    /// A message to this member was lost: raft shall stop streaming to it.
    Unreachable(u64),
    /// How a snapshot's transfer ended.
    SnapshotSent {
        /// To whom.
        to: u64,
        /// It arrived whole.
        ok: bool,
    },
    /// A link to this member works again.
    Active(u64),
    /// No link to this member works.
    Inactive(u64),
    /// This member's peer port refuses connections: no process listens there.
    Refused(u64),
    /// A peer says that this member was removed from the cluster.
    Removed,
    /// A question was answered, or will not be.
    Answered {
        /// As in [`PeerRequest::token`].
        token: u64,
        /// The answer.
        answer: Result<PeerResponse, RequestError>,
    },
}

/// The reason to give for a connection that the peer's kernel refused: etcd's words for it.
pub const DIAL_REFUSED: &str = "connect: connection refused";

/// A peer's answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerResponse {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// Why a question has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No such peer, or no connection to it.
    #[error("peer is unreachable")]
    Unreachable,
    /// Nothing came in time.
    #[error("peer does not answer in time")]
    TimedOut,
    /// Too many questions wait for it.
    #[error("too many questions to this peer")]
    Overloaded,
}

/// A question to a peer's HTTP handlers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRequest {
    /// The peer.
    pub to: u64,
    /// On whose connections it travels.
    pub lane: Lane,
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Path and query.
    pub target: String,
    /// The content type of the body.
    pub content_type: &'static str,
    /// The body; etcd has one for `GET /members/hashkv`, too.
    pub body: Bytes,
    /// How long the answer may take, in milliseconds.
    pub timeout_ms: u64,
    /// Returned with the answer.
    pub token: u64,
}

/// A peer's question that is not about raft's messages; answer it by [`Transport::answer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingRequest {
    /// Where it came in.
    pub conn: ConnId,
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The cluster that the asker says it is of, `X-Etcd-Cluster-ID`; empty if it does not.
    pub cluster: String,
    /// The body.
    pub body: Bytes,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Connect to this URL, then say how it went.
    Connect {
        /// The connection to be.
        conn: ConnId,
        /// As in the member's peer URLs.
        url: String,
    },
    /// Close it; nothing more is said about it.
    Close(ConnId),
}

/// An end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// This member receives on it.
    Reader,
    /// This member sends on it.
    Writer,
}

/// How a message was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// On a stream.
    Stream(StreamKind),
    /// By a request of its own.
    Pipeline,
}

impl Channel {
    /// As etcd's log names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream(StreamKind::Append) => "streamMsgAppV2",
            Self::Stream(StreamKind::Message) => "streamMsg",
            Self::Pipeline => "pipeline",
        }
    }
}

/// What an operator may want to read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "peer, kind and end are what they say")]
pub enum Event {
    /// A member was added to the links.
    Added { peer: u64 },
    /// A member's URLs changed.
    Updated { peer: u64 },
    /// A member was taken from the links.
    Removed { peer: u64 },
    /// A sender that is no member yet is answered.
    AddedRemote { peer: u64 },
    /// A stream is up.
    Established { peer: u64, kind: StreamKind, end: End },
    /// A stream is down.
    Lost { peer: u64, kind: StreamKind, end: End, error: String },
    /// A stream was replaced by a newer one.
    Replaced { peer: u64, kind: StreamKind },
    /// The first link to a peer works.
    Active { peer: u64 },
    /// A link to a peer failed that had worked.
    Inactive { peer: u64, error: String },
    /// A message found its queue full; `count` since this was said last, a second ago at least.
    Dropped { peer: u64, message: i32, channel: Channel, active: bool, count: u64 },
    /// A peer refused this member's stream.
    RefusedByPeer { peer: u64, refusal: Refusal },
    /// A peer's request was refused.
    Refused { from: String, refusal: Refusal },
    /// A message that was posted makes no sense.
    Unreadable { error: String },
    /// A probe leaves now.
    ProbeSent { peer: u64 },
    /// A probe's answer came, or will not.
    ProbeEnded { peer: u64, answer: Result<Bytes, String> },
}

/// What went over a peer's links since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes of messages sent.
    pub sent_bytes: u64,
    /// Bytes of messages received.
    pub received_bytes: u64,
    /// Messages or links that failed while sending.
    pub sent_failures: u64,
    /// Messages that could not be read.
    pub received_failures: u64,
    /// How often the peer became inactive.
    pub disconnects: u64,
}
