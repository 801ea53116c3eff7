//! What compaction waits for, and who waits for compaction.
//!
//! Long answers and watchers that are behind pin the revision they read. Once a compaction has
//! passed it, space grows with every write for as long as they go on. The replica looks at this
//! with every tick and, past the bounds, ends their pins: they are told that their revision is
//! compacted, as they would be if they came now.

use std::sync::atomic::Ordering;

use etcore_engine::types::Revision;

use super::Replica;
use crate::limits;

/// A compaction that cannot remove everything yet; `None` if all can.
#[derive(Debug, Default)]
pub(super) struct HeldBack(Option<Held>);

#[derive(Debug, Clone, Copy)]
struct Held {
    /// What may not be removed yet is below it.
    revision: Revision,
    since_ms: u64,
    /// Bytes in use in the page file then.
    in_use_bytes: u64,
}

impl Replica {
    /// Answers clients that wait until a compaction has removed what it can, when a checkpoint has
    /// finished one up to `finished`.
    pub(super) fn answer_compactions(&mut self, finished: Revision) {
        self.answer_compactions_if(|_, revision| revision <= finished);
    }

    fn answer_compactions_if(&mut self, over: impl Fn(&Self, Revision) -> bool) {
        let waiting = std::mem::take(&mut self.physical_compactions);
        for (revision, front, reply) in waiting {
            if over(self, Revision(revision)) {
                self.replies.push((front, reply));
            } else {
                self.physical_compactions.push((revision, front, reply));
            }
        }
    }

    /// Ends pins that have held up compaction for too long, or kept too much.
    pub(super) fn end_long_pins(&mut self) {
        let (revision, removable) = (self.store.compact_revision(), self.store.removable());
        let in_use_bytes = self.shared.status.db_in_use_bytes.load(Ordering::Relaxed);
        if removable >= revision {
            self.held_back = HeldBack::default();
            return;
        }
        let now = Held { revision, since_ms: self.now_ms, in_use_bytes };
        let held = match self.held_back.0 {
            Some(held) if removable < held.revision => held,
            _ => *self.held_back.0.insert(now),
        };
        let kept_bytes = in_use_bytes.saturating_sub(held.in_use_bytes);
        let kept_ms = self.now_ms - held.since_ms;
        if kept_ms >= limits::PIN_WAITED_FOR_MS {
            // What a slow reader keeps is no reason to have another client wait.
            self.answer_compactions_if(|replica, revision| replica.store.has_compacted(revision));
        }
        let most = self.quota.limit_bytes().map_or(u64::MAX, |quota| quota / limits::PIN_QUOTA);
        if kept_ms < limits::PIN_HELD_MS && kept_bytes < limits::PIN_HELD_BYTES.min(most) {
            return;
        }
        tracing::warn!(
            compact_revision = held.revision.0,
            pinned_revision = removable.0,
            kept_ms,
            kept_bytes,
            "slow readers held up compaction for too long; their revisions are compacted now"
        );
        self.store.revision_pins().expire_below(held.revision);
        self.held_back = HeldBack::default();
    }
}
