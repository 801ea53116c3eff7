//! A file system that fills up: what may still be written, and the way back.
//!
//! Space is taken ahead: a spare log segment, and a reserve behind the page file. When one of them
//! cannot be had, requests that take space are refused with etcd's error while deletions and
//! compactions go on within what is left; raft cannot take an entry back, so the refusal comes
//! before the proposal. Nothing here may be asked while applying.

use super::Replica;
use crate::background::Task;
use crate::limits;

/// What the page file's writer has said, and what goes towards its room.
#[derive(Debug)]
pub(super) struct Space {
    /// The reserve is not full.
    tight: bool,
    /// A checkpoint waits for room.
    stalled: bool,
    /// Bytes that checkpoints may write within what the page file has already.
    spare_bytes: u64,
    /// Bytes of proposals that were not applied yet.
    proposed_bytes: u64,
    /// The operator was told that the disk is full.
    reported: bool,
    /// What found no room is tried again then.
    retry_ms: u64,
}

impl Space {
    pub(super) fn new(spare_bytes: u64) -> Self {
        let (tight, stalled, reported) = (false, false, false);
        Self { tight, stalled, spare_bytes, proposed_bytes: 0, reported, retry_ms: 0 }
    }

    /// True while a checkpoint waits for room.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// A checkpoint waits for room.
    pub(super) fn note_stalled(&mut self) {
        self.stalled = true;
    }

    /// A checkpoint has ended, and said how much room there is.
    pub(super) fn checkpoint_ended(&mut self, tight: bool, spare_bytes: u64) {
        self.stalled = false;
        self.tight = tight;
        self.spare_bytes = spare_bytes;
    }

    /// A snapshot's file has taken the place of the page file.
    pub(super) fn file_replaced(&mut self, spare_bytes: u64) {
        self.spare_bytes = spare_bytes;
        self.stalled = false;
    }

    /// Entries of so many bytes went to the log.
    pub(super) fn note_logged(&mut self, bytes: u64) {
        self.proposed_bytes += bytes;
    }

    /// An entry of so many bytes was applied. It may have been logged before a restart.
    pub(super) fn note_applied(&mut self, bytes: u64) {
        self.proposed_bytes = self.proposed_bytes.saturating_sub(bytes);
    }

    /// raft has taken a snapshot: what was proposed before counts no more.
    pub(super) fn forget_proposed(&mut self) {
        self.proposed_bytes = 0;
    }

    /// True once a second, when what found no room is to be tried again.
    pub(super) fn retries(&mut self, now_ms: u64) -> bool {
        let due = now_ms >= self.retry_ms;
        if due {
            self.retry_ms = now_ms + RETRY_MS;
        }
        due
    }
}

/// How often what found no room is tried again.
const RETRY_MS: u64 = 1000;

impl Replica {
    /// True if requests that take space are refused.
    pub(super) fn is_short_of_space(&self) -> bool {
        self.space.tight || self.space.stalled || self.log.writer.spare_failure().is_some()
    }

    /// True if a checkpoint could need more than the page file has: the next one must end first,
    /// and find out whether the disk gives more. What is in the log can always be saved then.
    /// `spared_bytes` are left to others.
    pub(super) fn must_wait_for_space(&mut self, spared_bytes: u64) -> bool {
        let unsaved_bytes = self.store.row_bytes() as u64 + self.space.proposed_bytes;
        let kept_bytes = limits::CHECKPOINT_SLACK_BYTES + spared_bytes;
        let wait = unsaved_bytes / 4 * 5 + kept_bytes > self.space.spare_bytes;
        if wait {
            self.store.checkpoint_now();
        }
        wait
    }

    /// Tries again what found no room, and tells when that changes. For a timer.
    pub(super) fn look_for_space(&mut self) {
        let short = self.is_short_of_space();
        self.log.writer.set_scarce(short);
        if self.space.stalled {
            // Full only if the background is busy, and then it will be asked again.
            let _ = self.background.submit(Task::Retry);
        } else if short {
            // The next checkpoint finds out, and lets go of log segments.
            self.store.checkpoint_soon();
        }
        if short && !self.space.reported {
            tracing::error!(
                data_dir = %self.shared.config.data_dir,
                log = self.log.writer.spare_failure().unwrap_or("has a spare segment"),
                page_file = if self.space.stalled {
                    "cannot be extended"
                } else if self.space.tight {
                    "has no full reserve"
                } else {
                    "has its reserve"
                },
                "the disk is full: writes that take space are refused until there is room; \
                 reads, deletions and compactions go on"
            );
        }
        if !short && self.space.reported {
            tracing::info!("there is room on the disk again: writes are accepted");
        }
        self.space.reported = short;
    }
}
