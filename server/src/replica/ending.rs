//! The end of a replica: at once after a failure, or in good order once every front has drained.
//!
//! Part of the replica, at the end of each turn. What was acknowledged is on disk already, so an
//! end waits for nothing but the log's last write, and for that only a while.

use super::Replica;
use crate::limits;

/// How long a clean end waits for the log's last write.
const STOP_MS: u64 = 2000;
/// etcd's words.
pub const REMOVED: &str = "the member has been permanently removed from the cluster";

/// See the module text.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// The commit index was handed to the log for a clean end.
    flushed: bool,
    /// A clean end waits for the log no longer than this.
    give_up_ms: Option<u64>,
    stopped: bool,
    /// This member was removed from the cluster, and stops then.
    removed_ms: Option<u64>,
}

impl Replica {
    /// True once it will do nothing any more.
    pub fn is_stopped(&self) -> bool {
        self.ending.stopped
    }

    /// Stops the member because it cannot go on safely.
    pub(super) fn fail(&mut self, reason: String) {
        self.shared.fail(reason);
        self.ending.stopped = true;
    }

    /// This member's own removal was applied: it goes on for a moment, for those that still need an
    /// answer, and ends in good order, as etcd's members do.
    pub(super) fn note_removed(&mut self) {
        let at_ms = self.turn.now_ms() + limits::REMOVED_MS;
        self.ending.removed_ms.get_or_insert(at_ms);
    }

    /// The others say that this member is none of them any more.
    pub(super) fn told_removed(&mut self) {
        self.ending.removed_ms = Some(0);
    }

    /// Stops a member that was removed.
    fn maybe_leave(&mut self) {
        if self.ending.removed_ms.is_none_or(|at_ms| self.turn.now_ms() < at_ms)
            || self.shared.lifecycle.is_stopping()
        {
            return;
        }
        tracing::warn!(error = REMOVED, "server error");
        tracing::warn!("data-dir used by this member must be removed");
        if self.shared.lifecycle.is_serving() {
            self.shared.stop();
        } else {
            // It has started on the directory of a member that is none.
            self.fail(REMOVED.to_owned());
        }
    }

    /// Ends once every front has drained, or at once after a failure.
    pub(super) fn maybe_stop(&mut self) {
        self.maybe_leave();
        let life = &self.shared.lifecycle;
        if life.failure().is_some() {
            self.ending.stopped = true;
            return;
        }
        let now_ms = self.turn.now_ms();
        let busy = !life.fronts_have_drained() || self.transfer.drains(now_ms);
        if !life.is_stopping() || busy {
            return;
        }
        let ending = &mut self.ending;
        let give_up_ms = *ending.give_up_ms.get_or_insert(now_ms + STOP_MS);
        if !std::mem::replace(&mut ending.flushed, true) {
            // So that etcd's tools see the last commit index in a stopped member's log.
            self.log.writer.flush();
        }
        ending.stopped = self.log.writer.is_idle() || now_ms >= give_up_ms;
    }
}
