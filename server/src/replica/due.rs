//! When the replica has something to do.
//!
//! Asked by its shard before it sleeps. What waits for something that will wake the shard must not
//! count, or the shard would spin; what nothing wakes it for must.

use super::{FrontLink, Replica};
use crate::limits;

impl Replica {
    /// When the next turn is due at the latest.
    pub fn deadline_ms(&self) -> u64 {
        // Nothing can be proposed while the log is busy; its end wakes the shard.
        let due_ms = self.next_tick_ms.min(self.snapshots.deadline_ms());
        let due_ms = due_ms.min(self.peering.deadline_ms()).min(self.failover.deadline_ms());
        let due_ms = due_ms.min(self.desk.next_look_ms());
        if !self.is_leader() || self.proposals_wait || self.spare_wait {
            return due_ms;
        }
        due_ms.min(self.desk.deadline_ms(self.now_ms))
    }

    /// True if this turn goes on to log a large entry, which takes as long as many small ones.
    pub fn logs_large(&self) -> bool {
        self.took_large
    }

    /// The same of applying one.
    pub fn applies_large(&self) -> bool {
        self.is_large_next() && (self.put_off_large || !self.took_large)
    }

    /// True if the next entry to apply is a large one.
    pub(super) fn is_large_next(&self) -> bool {
        self.to_apply.front().is_some_and(|entry| entry.data.len() > limits::LARGE_PROPOSAL_BYTES)
    }

    /// True if something waits that a turn would take.
    pub fn has_input(&self) -> bool {
        self.background.has_answers()
            || self.files.has_finished()
            || self.pages.has_finished()
            || self.may_apply_more()
            || self.desk.walks.has_work()
            || self
                .fronts
                .iter()
                .any(|front| front.can_flush() || front.has_news() || !front.asks.is_empty())
            || self.peering.has_input()
            || self.peering.waits_for_apply() && !self.to_apply.is_full()
            || (!self.proposals_wait && self.has_proposals())
    }

    /// True if a turn would propose something.
    fn has_proposals(&self) -> bool {
        if self.fronts.iter().any(FrontLink::has_messages) {
            return true;
        }
        !self.spare_wait
            && (self.is_leader() && self.desk.has_input()
                || !self.peering.forwarded.is_empty()
                || !self.large_wait && self.fronts.iter().any(|front| !front.large.is_empty()))
    }
}
