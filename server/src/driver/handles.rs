//! What a driver hands out and takes back: sockets, listeners and the log's files, each either the
//! kernel's or the simulator's.
//!
//! Passed from driver to front and back, and from the replica to the driver. A kernel driver never
//! meets a simulated one nor the other way round; mixing them up is a programmer's error.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use etcore_engine::file::FileId;

/// A connected socket that no driver serves at the moment.
#[derive(Debug)]
pub enum AnySocket {
    /// A descriptor.
    Kernel(OwnedFd),
    /// A connection's number in its simulated world.
    Simulated(u64),
}

/// A listening socket.
#[derive(Debug, Clone)]
pub enum AnyListener {
    /// Bound, listening and non-blocking.
    Kernel(Arc<OwnedFd>),
    /// An address's number in its simulated world.
    Simulated(u64),
}

/// An open segment of the log.
#[derive(Debug, Clone)]
pub enum LogFile {
    /// A descriptor.
    Kernel(Arc<File>),
    /// A file of a simulated disk.
    Simulated(FileId),
}

/// Why these never meet.
const MIXED: &str = "a member is made for the kernel or for the simulator, whole";

impl AnySocket {
    /// The descriptor.
    ///
    /// # Panics
    /// If it is simulated.
    pub fn into_kernel(self) -> OwnedFd {
        match self {
            Self::Kernel(fd) => fd,
            Self::Simulated(_) => panic!("{MIXED}"),
        }
    }
}

impl AnyListener {
    /// The descriptor.
    ///
    /// # Panics
    /// If it is simulated.
    pub fn into_kernel(self) -> Arc<OwnedFd> {
        match self {
            Self::Kernel(fd) => fd,
            Self::Simulated(_) => panic!("{MIXED}"),
        }
    }
}

impl LogFile {
    /// The descriptor.
    ///
    /// # Panics
    /// If it is simulated.
    pub fn into_kernel(self) -> Arc<File> {
        match self {
            Self::Kernel(file) => file,
            Self::Simulated(_) => panic!("{MIXED}"),
        }
    }
}

impl From<OwnedFd> for AnySocket {
    fn from(fd: OwnedFd) -> Self {
        Self::Kernel(fd)
    }
}

impl From<Arc<OwnedFd>> for AnyListener {
    fn from(fd: Arc<OwnedFd>) -> Self {
        Self::Kernel(fd)
    }
}

impl From<Arc<File>> for LogFile {
    fn from(file: Arc<File>) -> Self {
        Self::Kernel(file)
    }
}
