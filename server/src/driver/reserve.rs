//! A descriptor kept in reserve: with none left, a connection could be neither accepted nor
//! refused, and its listener would stay ready for ever.
//!
//! Used by the drivers when an accept failed. Must never keep a connection.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

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
    pub(super) fn on_accept_error(&mut self, listener: RawFd, error: &io::Error) {
        if !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
            return;
        }
        self.spare = None;
        // SAFETY: null address arguments are allowed; the listener does not block; the result is
        // checked before it is used.
        let fd = unsafe {
            libc::accept4(
                listener,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            )
        };
        if fd >= 0 {
            // SAFETY: a successful accept returns a fresh descriptor that belongs to us alone.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            tracing::warn!("a connection was refused: no file descriptors are left");
        }
        self.spare = open().ok();
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes no pointers; the result is checked before it is used.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
