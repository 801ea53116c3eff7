//! What names a call, and how it is answered.
//!
//! The watch hub answers through [`Streams`], the services through [`Replies`]; whoever keeps the
//! connections implements it: a front over its sockets, tests over plain memory. It must never call
//! back into the one that answers.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use etcore_proto::error::Status;
use etcore_proto::grpc::{MethodId, StreamId};
use etcore_proto::json;

use crate::http::Page;

/// A connection. Its keeper chooses the numbers; the generation tells a reused slot from its
/// predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// Slot in the keeper's table.
    pub slot: u32,
    /// Counts the uses of the slot.
    pub generation: u32,
}

impl ConnId {
    /// What services ask each other comes from no connection.
    pub const INNER: Self = Self { slot: u32::MAX, generation: u32::MAX };
}

/// A call: a stream of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId {
    /// The connection.
    pub conn: ConnId,
    /// Its stream.
    pub stream: StreamId,
}

impl CallId {
    /// All calls of a connection, for a range of an ordered map.
    #[must_use]
    pub fn all_of(conn: ConnId) -> std::ops::RangeInclusive<Self> {
        let (stream, last) = (StreamId::MIN, StreamId::MAX);
        Self { conn, stream }..=Self { conn, stream: last }
    }

    /// The call that a request makes which is JSON: it is one of the request's connection.
    #[must_use]
    pub fn of_json(request: HttpId) -> Self {
        let number = match request.exchange {
            Exchange::Http1(number) => number,
            Exchange::H2(stream) => u64::from(stream.id()),
        };
        Self { conn: request.conn, stream: StreamId::of_no_stream(number) }
    }

    /// Whether it is answered as JSON.
    #[must_use]
    pub fn is_json(self) -> bool {
        self.stream.is_no_stream()
    }

    /// A call that a service makes of another one, by a number of its own.
    #[must_use]
    pub fn inner(number: u64) -> Self {
        Self { conn: ConnId::INNER, stream: StreamId::of_no_stream(number) }
    }

    /// Whether a service has made it.
    #[must_use]
    pub fn is_inner(self) -> bool {
        self.conn == ConnId::INNER
    }
}

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The peer's address; `None` for a connection within the process.
    pub remote: Option<SocketAddr>,
    /// The token that came with the call.
    pub token: Option<Bytes>,
    /// The common name in the certificate that the client has shown, where that makes him a user.
    pub common_name: Option<Arc<str>>,
}

impl Caller {
    /// The same caller, with the token that came with a call.
    #[must_use]
    pub fn with_token(self: Arc<Self>, token: Option<&Bytes>) -> Arc<Self> {
        match token {
            None => self,
            Some(token) => Arc::new(Self { token: Some(token.clone()), ..(*self).clone() }),
        }
    }

    /// True if nothing says who it is.
    #[must_use]
    pub fn is_nobody(&self) -> bool {
        self.token.is_none() && self.common_name.is_none()
    }
}

/// A request that is not gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HttpId {
    /// The connection.
    pub conn: ConnId,
    /// The request among the connection's.
    pub exchange: Exchange,
}

/// One request and its response on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exchange {
    /// The request of this number, from 1, of an HTTP/1.1 connection.
    Http1(u64),
    /// A stream of an HTTP/2 connection.
    H2(StreamId),
}

/// The call is over; whatever was to be sent is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// What a service is told of a call that it made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InnerAnswer {
    /// A message: the one answer, or one of a stream.
    Message(Vec<u8>),
    /// The call is over.
    Failed(Status),
}

/// The way out of streaming calls. What returns [`Gone`] says that the call is over; whatever else
/// is sent to such a call goes nowhere.
pub trait Streams {
    /// Bytes that can be sent at once. After 0 a `Writable` event follows when there is room.
    ///
    /// # Errors
    /// [`Gone`] if the connection is.
    fn capacity(&mut self, call: CallId) -> Result<usize, Gone>;

    /// Sends a message that `write` appends; what exceeds the capacity is buffered.
    ///
    /// # Errors
    /// [`Gone`].
    fn send(
        &mut self,
        call: CallId,
        length_bytes: usize,
        write: &mut dyn FnMut(&mut Vec<u8>),
    ) -> Result<(), Gone>;

    /// Begins a message that comes in pieces.
    ///
    /// # Errors
    /// [`Gone`].
    fn start(&mut self, call: CallId, length_bytes: usize) -> Result<(), Gone>;

    /// The next piece of it, not longer than the capacity.
    ///
    /// # Errors
    /// [`Gone`].
    fn write(&mut self, call: CallId, piece: &[u8]) -> Result<(), Gone>;

    /// Keeps the client from sending more than its window still allows, or lets it send again.
    fn hold(&mut self, call: CallId, held: bool);

    /// Ends a call with an error status, or by a reset if a message is not complete.
    fn fail(&mut self, call: CallId, status: &Status);
}

/// The way out of everything that a service answers.
pub trait Replies: Streams + HttpReplies {
    /// Answers a unary call with this message. What exceeds the client's window is buffered.
    fn reply(&mut self, call: CallId, message: &[u8]);

    /// Sends so many messages, which are framed already.
    ///
    /// # Errors
    /// [`Gone`].
    fn send_framed(&mut self, call: CallId, framed: &[u8], messages: u64) -> Result<(), Gone>;

    /// The call is a transaction that only reads; such are counted apart.
    fn reads_only(&mut self, call: CallId);

    /// Ends a call that never began, since what came is no request of its method: as
    /// [`Streams::fail`], and it counts for nothing.
    fn refuse(&mut self, call: CallId, status: &Status);

    /// Ends a call with OK.
    fn finish(&mut self, call: CallId);

    /// Breaks a call off: the client sees a reset stream.
    fn abort(&mut self, call: CallId);

    /// The connection has a proposal of so many bytes outstanding: with too many it is not read.
    fn proposal_begun(&mut self, conn: ConnId, bytes: usize);

    /// A proposal is answered.
    fn proposal_ended(&mut self, conn: ConnId, bytes: usize);
}

/// The way out for requests that are not gRPC. A response is whole, or begun, written in pieces and
/// ended. Responses to requests that are over go nowhere; what returns [`Gone`] says so.
pub trait HttpReplies {
    /// Sends a whole response.
    fn respond(&mut self, request: HttpId, page: &Page);

    /// Begins a response whose body comes in pieces, of so many bytes in all if that is known. The
    /// page's own body is not sent.
    ///
    /// # Errors
    /// [`Gone`].
    fn begin_body(
        &mut self,
        request: HttpId,
        page: &Page,
        length_bytes: Option<u64>,
    ) -> Result<(), Gone>;

    /// Bytes of the body that can be sent at once; after 0 the request is told to be writable when
    /// there is room.
    ///
    /// # Errors
    /// [`Gone`].
    fn body_capacity(&mut self, request: HttpId) -> Result<usize, Gone>;

    /// The next piece of the body.
    ///
    /// # Errors
    /// [`Gone`].
    fn write_body(&mut self, request: HttpId, piece: &[u8]) -> Result<(), Gone>;

    /// The body is complete.
    fn end_body(&mut self, request: HttpId);

    /// So many bytes more of the request's body are kept. False, and nothing noted, if the budgets
    /// have no room for them. What is kept for a connection that ends is forgotten.
    fn keep_body(&mut self, request: HttpId, bytes: usize) -> bool;

    /// Some of that is kept no longer.
    fn release_body(&mut self, request: HttpId, bytes: usize);

    /// Leaves HTTP/1.1 for a WebSocket, with this proof that its handshake was read: messages are
    /// the request's body from here on, and the lines of the response are messages. `is_bearer` if
    /// the client has named that protocol.
    ///
    /// # Errors
    /// [`Gone`].
    fn upgrade(&mut self, request: HttpId, accept: &str, is_bearer: bool) -> Result<(), Gone>;

    /// The request makes a call of this method, and is answered by what the call is answered.
    fn answer_as_json(&mut self, request: HttpId, method: (MethodId, &'static json::Method));

    /// So many bytes of the request's body are no longer held: its client may send more.
    fn consumed(&mut self, request: HttpId, bytes: usize);

    /// Whose pages may read the response, as browsers are told: those of `origin`, or nobody's. All
    /// may on connections on which this was never said.
    fn allow_origin(&mut self, request: HttpId, origin: Option<String>);

    /// Refuses the request as malformed, and ends the connection or stream.
    fn refuse_request(&mut self, request: HttpId);
}
