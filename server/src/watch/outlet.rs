//! What the hub needs of the transport.
//!
//! The front implements it over its connections, tests over plain memory. It must never call back
//! into the hub.

use etcore_proto::error::Status;
use etcore_proto::grpc::StreamId;

use crate::driver::SocketId;

/// A stream of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The connection.
    pub socket: SocketId,
    /// Its stream.
    pub stream: StreamId,
}

/// The stream is over; whatever was to be sent is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// The way out.
pub trait Outlet {
    /// Bytes that can be sent at once. After 0 the hub is told by [`super::Hub::writable`] when
    /// there is room.
    fn capacity(&mut self, place: Place) -> usize;

    /// Sends a message that `write` appends; what exceeds the capacity is buffered.
    ///
    /// # Errors
    /// [`Gone`].
    fn send(
        &mut self,
        place: Place,
        length_bytes: usize,
        write: &mut dyn FnMut(&mut Vec<u8>),
    ) -> Result<(), Gone>;

    /// Begins a message that comes in pieces.
    ///
    /// # Errors
    /// [`Gone`].
    fn start(&mut self, place: Place, length_bytes: usize) -> Result<(), Gone>;

    /// The next piece of it, not longer than the capacity.
    ///
    /// # Errors
    /// [`Gone`].
    fn write(&mut self, place: Place, piece: &[u8]) -> Result<(), Gone>;

    /// Keeps the client from sending more than its window still allows, or lets it send again.
    fn hold(&mut self, place: Place, held: bool);

    /// Ends the stream: with a status, or by a reset if a message is not complete.
    fn end(&mut self, place: Place, status: &Status);
}
