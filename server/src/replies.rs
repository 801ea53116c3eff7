//! What names a call, and how it is answered.
//!
//! The watch hub answers through [`Streams`], the services through [`Replies`]; whoever keeps the connections
//! implements it: a front over its sockets, tests over plain memory. It must never call back into
//! the one that answers.

use etcore_proto::error::Status;
use etcore_proto::grpc::StreamId;

use crate::http::Page;

/// A connection. Its keeper chooses the numbers; the generation tells a reused slot from its
/// predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// Slot in the keeper's table.
    pub slot: u32,
    /// Which use of the slot.
    pub generation: u32,
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
}

/// The call is over; whatever was to be sent is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// The way out of streaming calls. What returns [`Gone`] says that the call is over; whatever else is
/// sent to such a call goes nowhere.
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
pub trait Replies: Streams {
    /// Answers a unary call with this message. What exceeds the client's window is buffered.
    fn reply(&mut self, call: CallId, message: &[u8]);

    /// Sends messages that are framed already.
    ///
    /// # Errors
    /// [`Gone`].
    fn send_framed(&mut self, call: CallId, framed: &[u8]) -> Result<(), Gone>;

    /// Ends a call with OK.
    fn finish(&mut self, call: CallId);

    /// Breaks a call off: the client sees a reset stream.
    fn abort(&mut self, call: CallId);

    /// The connection has a proposal of so many bytes outstanding: with too many it is not read.
    fn proposal_begun(&mut self, conn: ConnId, bytes: usize);

    /// A proposal is answered.
    fn proposal_ended(&mut self, conn: ConnId, bytes: usize);

    /// Answers the HTTP/1.1 request that a connection is at.
    fn respond(&mut self, conn: ConnId, page: &Page);

    /// Refuses that request as malformed, and ends the connection.
    fn refuse_request(&mut self, conn: ConnId);
}
