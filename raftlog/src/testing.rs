//! What tests of the log share, here and in the server: driving a log until it has nothing to do.
//!
//! It must never be reached from a running member.

use etcore_engine::file::Disk;

use crate::log::Log;
use crate::node::Effects;
use crate::types::{EntryKind, LogEntry};
use crate::wal::WalError;

/// Runs turns until nothing is left to do, and adds what is committed to `applied`. Returns the
/// reads that are answered: their tickets and indexes.
///
/// # Errors
///
/// What the log fails with, among others when the disk is dead.
pub fn settle(
    log: &mut Log,
    disk: &mut dyn Disk,
    applied: &mut Vec<LogEntry>,
) -> Result<Vec<(u64, u64)>, WalError> {
    let mut effects = Effects::default();
    let mut reads = Vec::new();
    loop {
        let mut any = false;
        while log.turn(&mut effects)? {
            any = true;
            for entry in effects.committed.drain(..) {
                if entry.kind != EntryKind::Normal {
                    // A change that cannot be applied is left out, as etcd does.
                    let _ = log.node.apply_conf_change(entry.kind, &entry.data);
                }
                log.node.on_applied(entry.index);
                applied.push(entry);
            }
            reads.extend(effects.reads.iter().map(|read| (read.ticket, read.index.0)));
        }
        log.drive(disk)?;
        if !any {
            return Ok(reads);
        }
    }
}
