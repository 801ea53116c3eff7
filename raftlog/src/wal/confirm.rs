//! Whether a log goes on from a snapshot that lies beside the page file.
//!
//! Called by boot before anything else is recovered. It must never change a byte before it is sure
//! that the log does: which page file the log belongs to is what is being found out.

use etcore_engine::file::{Disk, FileOp, run};

use super::recovery::{RecoverOptions, recover};
use super::{Recovered, WalError};
use crate::types::LogIndex;

/// True if the log goes on from the snapshot at `index`: its mark, and a commit index that reaches
/// it, are there, and nothing from before counts any more. Both come in one synced batch, so there
/// is nothing in between. If so, that batch is on the device when this returns, and not only where
/// it can be read: what is done on its account must not outlive it.
///
/// # Errors
/// What recovery says of a damaged log.
pub fn confirms_snapshot(
    disk: &mut dyn Disk,
    dir: &str,
    index: LogIndex,
) -> Result<bool, WalError> {
    match look(disk, dir, index, false) {
        Ok(recovered) => {
            let marked = recovered.marks.iter().any(|mark| mark.index == index);
            let begins_there = recovered.base.0 == index;
            if !(marked && begins_there && recovered.hard_state.commit >= index) {
                return Ok(false);
            }
            look(disk, dir, index, true)?;
            return Ok(true);
        }
        Err(WalError::AppliedOutsideLog { .. }) => return Ok(false),
        // A torn tail may not be cut below what was applied: without the snapshot, it may.
        Err(WalError::Refused { .. }) => {}
        Err(other) => return Err(other),
    }
    match look(disk, dir, LogIndex(0), false) {
        Ok(_) | Err(WalError::AppliedOutsideLog { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

fn look(
    disk: &mut dyn Disk,
    dir: &str,
    applied: LogIndex,
    repair: bool,
) -> Result<Recovered, WalError> {
    let options = RecoverOptions { applied, window_bytes: 0, repair };
    let mut recovered = recover(disk, dir, options)?;
    if let Some(file) = recovered.parts.tail.file.take() {
        run(disk, FileOp::Close { file }).map_err(|error| WalError::io("close", dir, &error))?;
    }
    Ok(recovered)
}
