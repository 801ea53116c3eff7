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
        let due_ms = self.turn.next_tick_ms().min(self.snapshots.deadline_ms());
        let due_ms = due_ms.min(self.peer_queue.deadline_ms()).min(self.failover.deadline_ms());
        let due_ms = due_ms.min(self.leases.next_look_ms());
        if !self.is_leader() || self.intake.waits() || self.intake.waits_for_spare() {
            return due_ms;
        }
        due_ms.min(self.leases.deadline_ms(self.turn.now_ms()))
    }

    /// True if the next entry to apply is a large one.
    pub(super) fn is_large_next(&self) -> bool {
        self.applier
            .backlog()
            .front()
            .is_some_and(|entry| entry.data.len() > limits::LARGE_PROPOSAL_BYTES)
    }

    /// True if something waits that a turn would take.
    pub fn has_input(&self) -> bool {
        self.background.has_answers()
            || self.lanes.has_finished()
            || self.pages.has_finished()
            || self.may_apply_more()
            || self.leases.has_walks()
            || self.corruption.has_input()
            || self.fronts.iter().any(FrontLink::has_input)
            || self.peer_queue.has_input()
            || self.peer_queue.waits_for_apply() && !self.applier.backlog().is_full()
            || (!self.intake.waits() && self.has_proposals())
    }

    /// True if a turn would propose something.
    fn has_proposals(&self) -> bool {
        if self.fronts.iter().any(FrontLink::has_messages) {
            return true;
        }
        !self.intake.waits_for_spare()
            && (self.is_leader() && self.leases.has_input()
                || self.peer_queue.has_forwarded()
                || !self.intake.large_waits() && self.fronts.iter().any(FrontLink::has_large))
    }
}
