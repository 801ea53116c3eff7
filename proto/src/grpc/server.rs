//! The gRPC server's side of one connection.
//!
//! Owned by a front, one per accepted connection. Bytes in through [`Server::receive`], events out
//! of [`Server::next_event`], answers in through `reply_*` and the streaming calls, bytes out of
//! [`Server::poll_transmit`]. What can be answered without a service (wrong content type, unknown
//! method, oversized message, …) is answered here with grpc-go's texts. Must never hold a message
//! that was not charged to the budgets.

mod head;
mod receive;
mod reply;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use self::head::HeadScratch;
use self::receive::Call;
use self::reply::Slots;
pub use self::reply::frame_message;
pub(super) use self::reply::prefix;
use super::assembler::Chunk;
use super::calls::Calls;
use super::{Code, Message, Metadata, MethodId, Routes, StreamId};
use crate::h2::{Budget, Config, Conn, ConnError, ErrorCode, Handler};
use crate::limits;

/// How a server's connections behave.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The HTTP/2 part.
    pub h2: Config,
    /// Largest request message, in bytes, before and after inflation.
    pub message_bytes_max: usize,
    /// Whether requests of other content types become [`ServerEvent::HttpOpened`] (over TLS)
    /// instead of being answered with 415 (cleartext).
    pub plain_http: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            h2: Config::etcd_server(),
            message_bytes_max: limits::GRPC_MESSAGE_BYTES_MAX,
            plain_http: false,
        }
    }
}

/// What a request says besides its message: what somebody asks for, and nothing else. Absent parts
/// cost nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestMeta {
    /// When the client stops waiting, on the clock of `now_ms`.
    pub deadline_ms: Option<u64>,
    /// The request stream is gzip; answers will be too.
    pub gzip: bool,
    /// `hasleader: true`: a member without leader must refuse.
    pub has_leader: bool,
    /// `token`, or else `authorization`.
    pub token: Option<Bytes>,
    /// `client-api-version`.
    pub client_api_version: Option<Bytes>,
}

impl RequestMeta {
    /// Bytes held for the call. Values that the header table shares among calls count for each.
    #[inline]
    fn kept_bytes(&self) -> usize {
        let len = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        len(&self.token) + len(&self.client_api_version)
    }
}

/// What happened on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEvent {
    /// A unary request, at its first message: the client may not have ended its side.
    Unary {
        /// Answer here.
        stream: StreamId,
        /// The method.
        method: MethodId,
        /// What came with it.
        meta: RequestMeta,
        /// The message, inflated.
        message: Message,
    },
    /// A call of a streaming method began.
    StreamOpened {
        /// Answer here.
        stream: StreamId,
        /// The method.
        method: MethodId,
        /// What came with it.
        meta: RequestMeta,
    },
    /// A message of a streaming call.
    StreamMessage {
        /// The call.
        stream: StreamId,
        /// Its method.
        method: MethodId,
        /// The message, inflated.
        message: Bytes,
    },
    /// The client of a streaming call sends no more.
    StreamHalfClosed {
        /// The call.
        stream: StreamId,
    },
    /// A call that was announced is over without our doing; answers to it go nowhere.
    Cancelled {
        /// The call.
        stream: StreamId,
        /// What it was; `None` for a request that is not gRPC.
        call: Option<OpenCall>,
        /// How grpc-go would have ended it.
        code: Code,
    },
    /// A call that was refused capacity has some now.
    Writable {
        /// The call.
        stream: StreamId,
    },
    /// A request that is not gRPC (only with [`ServerConfig::plain_http`]). Answer with
    /// [`Server::http_response`] and [`Server::http_body`].
    HttpOpened {
        /// Answer here.
        stream: StreamId,
        /// All fields, the pseudo fields included.
        head: Box<Metadata>,
        /// No body follows.
        end_stream: bool,
    },
    /// A piece of such a request's body. The windows open again by [`Server::http_consumed`], to be
    /// called for every piece, even after the request was cancelled.
    HttpData {
        /// The request.
        stream: StreamId,
        /// The piece.
        data: Bytes,
        /// The body is complete.
        end_stream: bool,
    },
}

/// A call that is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenCall {
    /// Its method.
    pub method: MethodId,
    /// What the owner noted of it by [`Server::note`]; 0 if nothing.
    pub note: u64,
}

/// The server's side of a connection.
#[derive(Debug)]
pub struct Server {
    conn: Conn,
    core: Core,
}

/// What answers the connection's callbacks: everything but the connection itself.
#[derive(Debug)]
struct Core {
    routes: Arc<Routes>,
    message_bytes_max: usize,
    plain_http: bool,
    calls: Calls<Call>,
    events: VecDeque<ServerEvent>,
    chunk: Chunk,
    head: HeadScratch,
    slots: Slots,
    /// Streams whose large message waits for the budgets, oldest first.
    waiting: VecDeque<StreamId>,
    /// Bytes they hold meanwhile.
    waiting_bytes: usize,
    /// When the last was admitted, or a part of one came.
    moved_ms: u64,
    /// The windows of all streams are shut, so that no more come to wait.
    is_shut: bool,
    /// Bytes of the connection's window to give back once the client goes by it.
    owed_bytes: u32,
}

impl Server {
    /// A connection whose first bytes will be the HTTP/2 preface.
    #[must_use]
    pub fn new(config: ServerConfig, routes: Arc<Routes>, budget: &Budget) -> Self {
        let mut head = HeadScratch::new(Arc::clone(&routes), config.plain_http);
        let mut conn = Conn::server(config.h2, budget, &mut head);
        let slots = Slots::register(&mut conn);
        let core = Core {
            routes,
            message_bytes_max: config.message_bytes_max,
            plain_http: config.plain_http,
            calls: Calls::new(),
            events: VecDeque::new(),
            chunk: Chunk::default(),
            head,
            slots,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            moved_ms: 0,
            is_shut: false,
            owed_bytes: 0,
        };
        Server { conn, core }
    }

    /// Takes what a socket read gave; `now_ms` is on any clock that does not go back.
    ///
    /// # Errors
    /// A [`ConnError`] ends the connection: events up to it are still there, transmit what is left
    /// and close.
    pub fn receive(&mut self, bytes: &[u8], now_ms: u64) -> Result<(), ConnError> {
        self.conn.receive(bytes, now_ms, &mut self.core)
    }

    /// The next event. Ask after [`Server::receive`], [`Server::tick`] and
    /// [`Server::poll_transmit`] until there is none.
    #[inline]
    pub fn next_event(&mut self) -> Option<ServerEvent> {
        if let Some(event) = self.core.events.pop_front() {
            return Some(event);
        }
        while let Some(stream) = self.conn.next_writable() {
            if self.core.calls.get(stream).is_some() {
                return Some(ServerEvent::Writable { stream });
            }
        }
        None
    }

    /// Appends at most `budget_bytes` wire bytes to `out`; true if more is ready.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>, budget_bytes: usize) -> bool {
        self.conn.poll_transmit(out, budget_bytes)
    }

    /// Says how many bytes of what [`Server::poll_transmit`] gave away the socket has not taken;
    /// see [`Conn::set_in_flight`].
    pub fn set_in_flight(&mut self, bytes: usize) {
        self.conn.set_in_flight(bytes);
    }

    /// Whether the owner should read from the socket: false while the client leaves too much
    /// unread.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        self.conn.wants_read()
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// A [`ConnError`] ends the connection.
    pub fn tick(&mut self, now_ms: u64) -> Result<(), ConnError> {
        self.conn.tick(now_ms)?;
        while let Some(stream) = self.conn.next_expired() {
            Handler::reset(&mut self.core, &mut self.conn, stream, ErrorCode::CANCEL, false);
        }
        self.core.admit_waiting(&mut self.conn);
        self.core.refuse_overdue(&mut self.conn);
        Ok(())
    }

    /// When [`Server::tick`] has something to do; `None` if never.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let conn = match (self.conn.next_deadline_ms(), self.conn.next_expiry_ms()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if self.core.waiting.is_empty() {
            return conn;
        }
        let retry = self.conn.now_ms() + limits::ADMISSION_RETRY_MS;
        Some(conn.map_or(retry, |deadline| deadline.min(retry)))
    }

    /// Begins a graceful end: calls on their way are still served, new ones go elsewhere.
    pub fn graceful_goaway(&mut self) {
        self.conn.graceful_goaway();
    }

    /// Whether a graceful end is complete and the socket can be closed.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.core.events.is_empty() && self.conn.is_drained()
    }

    /// Calls that are not over.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.conn.open_streams()
    }

    /// The call of a stream that was announced and is not over.
    #[inline]
    #[must_use]
    pub fn open_call(&self, stream: StreamId) -> Option<OpenCall> {
        self.core.calls.get(stream).and_then(Call::open)
    }

    /// All calls that were announced and are not over.
    pub fn open_calls(&self) -> impl Iterator<Item = OpenCall> {
        self.core.calls.iter().filter_map(|(_, call)| call.open())
    }

    /// Keeps a number with a call for as long as it is open.
    #[inline]
    pub fn note(&mut self, stream: StreamId, note: u64) {
        if let Some(call) = self.core.calls.get_mut(stream) {
            call.note = note;
        }
    }

    /// Bytes queued for the client.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.conn.unsent_bytes()
    }

    /// `:authority` (or `host`) of the latest request; empty before the first.
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        self.core.head.authority()
    }

    /// Why the connection ended, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<ConnError> {
        self.conn.failure()
    }
}

#[cfg(test)]
mod tests;
