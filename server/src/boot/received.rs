//! What a start does with copies of other members' page files (`replica::snapshots`).
//!
//! Called before anything else is read. A complete copy takes the page file's place exactly if the
//! log goes on from it: then raft has given up what came before, and the copy is this member's
//! state. That the log does is made durable first, or a power cut could leave the copy with the log
//! of before. Any other copy is removed: the log goes on from the page file as it is, and the
//! leader sends another.

use std::path::Path;

use etcore_engine::file::{Disk, FileOp, run};
use etcore_engine::snapshot;
use etcore_raftlog::wal;

use super::{BootError, DB_FILE, list};

/// Finishes or removes copies beside the page file; `log_dir` is the log's.
///
/// # Errors
/// [`BootError::Stored`].
pub(super) fn settle(
    dir: &Path,
    log_dir: &str,
    page_disk: &mut dyn Disk,
    log_disk: &mut dyn Disk,
) -> Result<(), BootError> {
    let names = list(page_disk, "")?;
    let copies: Vec<&String> = names.iter().filter(|name| snapshot::is_copy(name)).collect();
    if copies.is_empty() {
        return Ok(());
    }
    let newest = copies.iter().filter_map(|name| snapshot::complete_index(name)).max();
    let confirmed = match newest {
        Some(index) => wal::confirms_snapshot(log_disk, log_dir, index)
            .map_err(|error| BootError::Stored(error.to_string()))?
            .then_some(index),
        None => None,
    };
    for name in copies {
        if snapshot::complete_index(name).is_some_and(|index| Some(index) == confirmed) {
            tracing::info!(
                path = %dir.join(name).display(),
                "the snapshot that was received takes the page file's place"
            );
            let (from, to) = (name.clone(), DB_FILE.to_owned());
            call(page_disk, FileOp::Rename { from, to }, name)?;
        } else {
            tracing::info!(path = %dir.join(name).display(), "removed an unfinished snapshot");
            call(page_disk, FileOp::Remove { name: name.clone() }, name)?;
        }
    }
    call(page_disk, FileOp::SyncDir { name: String::new() }, "")
}

fn call(disk: &mut dyn Disk, op: FileOp, name: &str) -> Result<(), BootError> {
    run(disk, op)
        .map(|_| ())
        .map_err(|error| BootError::Stored(format!("{name}: received snapshot: {error}")))
}

#[cfg(test)]
mod tests;
