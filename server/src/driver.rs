//! What touches the world: sockets, the log's durable writes, and waiting.
//!
//! A shard's loop owns one [`Driver`] and calls [`Driver::wait`] once per turn; everything that
//! happened arrives through [`Completions`]. `uring` and `portable` implement it for a running
//! member, `sim` for a simulated one. A driver never interprets bytes, never retries a failed
//! write, and reports a durable write only after the device has acknowledged it.

use std::io;
use std::time::Duration;

use etcore_engine::file::AlignedBuf;

mod connect;
mod handles;
pub mod portable;
pub mod probe;
mod reserve;
#[cfg(test)]
mod tests;
pub mod uring;
pub mod wake;

pub use connect::PeerAddress;
pub use handles::{AnyListener, AnySocket, LogFile};
pub use wake::Waker;

/// A connected socket of one driver. The generation tells a reused slot from its predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId {
    /// Slot in the driver's table.
    pub slot: u32,
    /// Counts the uses of the slot.
    pub generation: u32,
}

/// Chosen by the submitter of a durable write, returned when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteToken(pub u64);

/// How a send ended, with its buffer, emptied.
pub type Sent = (Vec<u8>, io::Result<()>);

/// Receives what happened during [`Driver::wait`].
pub trait Completions {
    /// A listener accepted a connection.
    fn accepted(&mut self, listener: u32, socket: AnySocket);
    /// How a [`Driver::connect`] went. After an error the socket is to be closed like any other.
    fn connected(&mut self, socket: SocketId, result: io::Result<()>);
    /// Bytes arrived; they are valid only during the call.
    fn received(&mut self, socket: SocketId, bytes: &[u8]);
    /// The peer closed its side (`None`) or the connection failed. Sent at most once.
    fn disconnected(&mut self, socket: SocketId, error: Option<io::Error>);
    /// The whole buffer given to a [`Driver::send`] that did not end at once has been taken by the
    /// kernel, or the connection failed. The buffer comes back, emptied, for reuse.
    fn sent(&mut self, socket: SocketId, buf: Vec<u8>, result: io::Result<()>);
    /// A durable write ended.
    fn written(&mut self, token: WriteToken, buf: AlignedBuf, result: io::Result<()>);
}

/// Submit/complete access to sockets and to the log's segments, for one thread.
pub trait Driver {
    /// `uring`, `portable` or `sim`.
    fn name(&self) -> &'static str;
    /// Starts accepting on a bound, listening, non-blocking socket.
    ///
    /// # Errors
    /// When the kernel refuses to watch the socket.
    fn listen(&mut self, listener: u32, socket: AnyListener) -> io::Result<()>;
    /// Stops accepting. Connections already accepted may still be reported once.
    fn unlisten(&mut self, listener: u32);
    /// Takes over a connected socket and starts receiving.
    ///
    /// # Errors
    /// When the kernel refuses to watch the socket.
    fn attach(&mut self, socket: AnySocket) -> io::Result<SocketId>;
    /// Begins to connect; [`Completions::connected`] says how it went, and receiving starts with
    /// it. Nothing may be sent before.
    ///
    /// # Errors
    /// When it is known at once that there will be no connection.
    fn connect(&mut self, address: &PeerAddress) -> io::Result<SocketId>;
    /// Stops receiving; what is already on its way may still be reported.
    fn pause(&mut self, socket: SocketId);
    /// Receives again.
    fn resume(&mut self, socket: SocketId);
    /// Sends the whole buffer. One send at a time per socket. One that has ended with the call is
    /// returned; [`Completions::sent`] is told of the others.
    fn send(&mut self, socket: SocketId, buf: Vec<u8>) -> Option<Sent>;
    /// Closes the socket. What the kernel has not taken of an outstanding send is given up: a peer
    /// that does not read would hold the socket for good. Nothing is reported for it any more
    /// except the end of that send.
    fn close(&mut self, socket: SocketId);
    /// Writes the whole buffer at `offset_bytes` (block-aligned) and makes it durable, as one
    /// operation.
    fn write_durable(
        &mut self,
        token: WriteToken,
        file: LogFile,
        offset_bytes: u64,
        buf: AlignedBuf,
    );
    /// Hands over what was submitted, and does not wait: for a caller that has more to do first.
    ///
    /// # Errors
    /// Only when the driver itself is broken; the shard must stop.
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Hands over what was submitted, then waits for at least one completion, a wake-up or the
    /// timeout (`None`: without limit; zero: does not wait).
    ///
    /// # Errors
    /// Only when the driver itself is broken; the shard must stop.
    fn wait(
        &mut self,
        timeout: Option<Duration>,
        completions: &mut dyn Completions,
    ) -> io::Result<()>;
    /// Wakes this thread from another one.
    fn waker(&self) -> Waker;
}
