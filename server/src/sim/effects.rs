//! What the parts of a member want done to the world, in the order in which they asked for it.
//!
//! Filled by the simulated driver, disk and pages during a step of a member, and carried out by the
//! world after it. A crash cuts the list anywhere: what is behind the cut has never happened.

use std::sync::{Arc, Mutex, MutexGuard};

use etcore_engine::file::{AlignedBuf, FileId, FileOp, Token};

use crate::driver::{PeerAddress, SocketId, WriteToken};
use crate::replica::Lane;

/// Who waits for an operation of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// A shard's driver: a durable write.
    Driver { shard: usize, token: WriteToken },
    /// The replica's log files.
    Log(LaneOf),
    /// The background's checkpoint.
    Background(Token),
    /// A page that is to be read: whose pages, and the page.
    Page { pages: usize, at: (u64, u32) },
}

/// [`Lane`] as plain data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LaneOf {
    Main,
    Background,
}

impl From<Lane> for LaneOf {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Main => Self::Main,
            Lane::Background => Self::Background,
        }
    }
}

impl From<LaneOf> for Lane {
    fn from(lane: LaneOf) -> Self {
        match lane {
            LaneOf::Main => Self::Main,
            LaneOf::Background => Self::Background,
        }
    }
}

/// One of them.
#[derive(Debug)]
pub(super) enum Effect {
    /// Accept connections to this address.
    Listen { shard: usize, listener: u32, address: u64 },
    /// No longer.
    Unlisten { shard: usize, listener: u32 },
    /// This shard serves the connection from now on.
    Attach { shard: usize, connection: u64, socket: SocketId },
    /// Call a member's port for peers, or nobody's.
    Dial { shard: usize, socket: SocketId, address: PeerAddress },
    /// Send, and tell its end if the driver has not.
    Send { shard: usize, socket: SocketId, buf: Vec<u8>, is_told: bool },
    /// Close.
    Close { shard: usize, socket: SocketId },
    /// An operation of the disk; `None` reads a page.
    Disk { owner: Owner, op: Option<FileOp> },
}

/// A durable write as an operation.
pub(super) fn durable(file: FileId, offset_bytes: u64, data: AlignedBuf) -> FileOp {
    FileOp::Write { file, offset_bytes, data, durable: true }
}

/// The list. Shared by all parts of one life of a member; they run on one thread, and the lock is
/// there because they must be able to move.
#[derive(Debug, Clone, Default)]
pub(super) struct Effects {
    list: Arc<Mutex<Vec<Effect>>>,
}

impl Effects {
    pub(super) fn push(&self, effect: Effect) {
        self.lock().push(effect);
    }

    pub(super) fn take(&self) -> Vec<Effect> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Effect>> {
        self.list.lock().expect("nothing panics while it holds the list")
    }
}
