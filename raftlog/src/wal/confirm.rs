//! Whether a log goes on from a snapshot that lies beside the page file.
//!
//! Called by boot before anything is recovered. It must never repair anything: which page file the
//! log belongs to is what is being found out.

use etcore_engine::file::{Disk, FileOp, run};

use super::recovery::{RecoverOptions, recover};
use super::{Recovered, WalError};
use crate::types::LogIndex;

/// True if the mark of the snapshot at `index` and a commit index that reaches it are on disk: both
/// come in one synced batch, so there is nothing in between.
///
/// # Errors
/// What recovery says of a damaged log.
pub fn confirms_snapshot(
    disk: &mut dyn Disk,
    dir: &str,
    index: LogIndex,
) -> Result<bool, WalError> {
    match look(disk, dir, index) {
        Ok(recovered) => {
            let marked = recovered.marks.iter().any(|mark| mark.index == index);
            return Ok(marked && recovered.hard_state.commit >= index);
        }
        Err(WalError::AppliedOutsideLog { .. }) => return Ok(false),
        // A torn tail may not be cut below what was applied: without the snapshot, it may.
        Err(WalError::Refused { .. }) => {}
        Err(other) => return Err(other),
    }
    match look(disk, dir, LogIndex(0)) {
        Ok(_) | Err(WalError::AppliedOutsideLog { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

fn look(disk: &mut dyn Disk, dir: &str, applied: LogIndex) -> Result<Recovered, WalError> {
    let options = RecoverOptions { applied, window_bytes: 0, repair: false };
    let mut recovered = recover(disk, dir, options)?;
    if let Some(file) = recovered.parts.tail.file.take() {
        run(disk, FileOp::Close { file }).map_err(|error| WalError::io("close", dir, &error))?;
    }
    Ok(recovered)
}
