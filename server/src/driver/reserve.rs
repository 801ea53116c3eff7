//! A descriptor kept in reserve: with none left, a connection could be neither accepted nor
//! refused, and its listener would stay ready for ever.
//!
//! Used by the drivers when an accept failed. Must never keep a connection.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SocketFlags, accept_with};

/// See the module text.
pub(super) struct Reserve {
    /// `None` while another thread took the descriptor that was given up.
    spare: Option<OwnedFd>,
}

impl Reserve {
    /// Takes a descriptor.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { spare: Some(open()?) })
    }

    /// After a failed accept: if descriptors have run out, takes the waiting connection and closes
    /// it, so that its client is told and the loop does not spin.
    pub(super) fn on_accept_error(&mut self, listener: BorrowedFd<'_>, error: &io::Error) {
        if !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
            return;
        }
        self.spare = None;
        if accept(listener).is_ok() {
            tracing::warn!("a connection was refused: no file descriptors are left");
        }
        self.spare = open().ok();
    }
}

fn open() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC)?)
}

/// Takes a waiting connection; the listener does not block, nor will the connection.
pub(super) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}
