//! A member's disk as its parts see it: operations are handed to the world, which carries them out
//! later, in an order of its own, or never.
//!
//! Opening and closing a file, and asking for its length, happen at once, as on a running member.

use etcore_engine::file::{Completion, Disk, FileId, FileOp, SharedFile, Token, run};
use etcore_engine::testing::mem_disk::MemDisk;

use super::effects::{Effect, Effects, Owner};
use crate::driver::LogFile;
use crate::replica::{DurableWrite, Lane, ReadOp, StartOp, Started};

/// The background's disk. Completions reach the checkpoint by the world's hand, not by `poll`.
pub(super) struct QueuedDisk {
    disk: MemDisk,
    effects: Effects,
}

impl QueuedDisk {
    pub(super) fn new(disk: &MemDisk, effects: Effects) -> Self {
        Self { disk: disk.clone(), effects }
    }
}

impl Disk for QueuedDisk {
    fn submit(&mut self, token: Token, op: FileOp) {
        let owner = Owner::Background(token);
        self.effects.push(Effect::Disk { owner, op: Some(op) });
    }

    fn poll(&mut self, _: &mut Vec<Completion>) {}

    fn wait(&mut self, _: &mut Vec<Completion>) {}

    fn share(&self, file: FileId) -> Option<SharedFile> {
        self.disk.share(file)
    }
}

/// How the replica's log files are worked on.
pub(super) fn log_files(mut disk: MemDisk, effects: Effects) -> StartOp {
    Box::new(move |lane: Lane, op: FileOp| match op {
        FileOp::Write { file, offset_bytes, data, durable: true } => {
            let file = LogFile::Simulated(file);
            Started::Write(DurableWrite { file, offset_bytes, buf: data })
        }
        op @ (FileOp::ZeroFill { .. }
        | FileOp::Sync { .. }
        | FileOp::Rename { .. }
        | FileOp::Remove { .. }
        | FileOp::SyncDir { .. }) => {
            effects.push(Effect::Disk { owner: Owner::Log(lane.into()), op: Some(op) });
            Started::Later
        }
        other => Started::Done(run(&mut disk, other)),
    })
}

/// How entries that have left the log's memory are read back.
pub(super) fn log_reader(disk: MemDisk) -> ReadOp {
    Box::new(move |name, offset_bytes, len_bytes| {
        disk.read_at(name, offset_bytes, len_bytes).unwrap_or_default()
    })
}
