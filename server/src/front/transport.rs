//! What carries a connection's bytes: a socket of the driver, or the other end in this process.
//!
//! Owned by a connection. Protocols see bytes in and out, and nothing of what is below.

use std::io;

use crate::driver::{Driver, Sent, SocketId};
use crate::limits;
use crate::replies::ConnId;

/// Set in the slot of connections that have no socket.
const LOOPBACK: u32 = 1 << 31;

/// See the module text.
pub(super) enum Transport {
    /// The driver's.
    Socket(SocketId),
    /// The client is in this process: what is sent waits here until it takes it.
    Loopback(Vec<u8>),
}

impl Transport {
    /// True if something may be sent: a client in this process that does not read is not filled.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Loopback(unread) => unread.len() < limits::LOOPBACK_BYTES,
        }
    }

    /// Sends `buf`. `None` while the driver has it; else the buffer again, and what came of it.
    pub(super) fn send(&mut self, driver: &mut dyn Driver, mut buf: Vec<u8>) -> Option<Sent> {
        match self {
            Self::Socket(socket) => driver.send(*socket, buf),
            Self::Loopback(unread) => {
                unread.append(&mut buf);
                Some((buf, io::Result::Ok(())))
            }
        }
    }

    pub(super) fn close(&self, driver: &mut dyn Driver) {
        if let Self::Socket(socket) = self {
            driver.close(*socket);
        }
    }

    /// Receives from the peer, or no more for now. A client in this process asks before it sends.
    pub(super) fn set_reading(&self, driver: &mut dyn Driver, reads: bool) {
        if let Self::Socket(socket) = self {
            if reads { driver.resume(*socket) } else { driver.pause(*socket) }
        }
    }

    /// Takes what a client in this process has not read.
    pub(super) fn take_unread(&mut self) -> Vec<u8> {
        match self {
            Self::Socket(_) => Vec::new(),
            Self::Loopback(unread) => std::mem::take(unread),
        }
    }
}

/// The name of a connection over a socket. Drivers count their sockets from 0.
pub(super) fn socket_conn(socket: SocketId) -> ConnId {
    assert!(socket.slot < LOOPBACK, "a driver has fewer sockets");
    ConnId { slot: socket.slot, generation: socket.generation }
}

/// The name of the connection in a slot of those without a socket.
pub(super) fn loopback_conn(slot: usize, generation: u32) -> ConnId {
    let slot = u32::try_from(slot).expect("few connections within the process");
    ConnId { slot: slot | LOOPBACK, generation }
}

/// The slot of a connection without a socket.
pub(super) fn loopback_slot(conn: ConnId) -> Option<usize> {
    (conn.slot & LOOPBACK != 0).then_some((conn.slot & !LOOPBACK) as usize)
}
