//! What compaction waits for, and who waits for compaction.
//!
//! Part of the replica. Long answers and watchers that are behind pin the revision they read. Once
//! a compaction has passed it, space grows with every write for as long as they go on. The replica
//! looks at this with every tick and, past the bounds, ends their pins: they are told that their
//! revision is compacted, as they would be if they came now.

use std::sync::atomic::Ordering;

use etcore_engine::types::Revision;

use super::Replica;
use crate::channel::ToFront;
use crate::limits;

/// See the module text.
#[derive(Debug, Default)]
pub(super) struct Compactions {
    /// A compaction that cannot remove everything yet; `None` if all can.
    held: Option<Held>,
    /// Who waits until a compaction up to this revision has removed what it can.
    waiting: Vec<(i64, usize, ToFront)>,
    /// Set by the entry being applied if its answer waits for its compaction.
    asked: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    /// What may not be removed yet is below it.
    revision: Revision,
    since_ms: u64,
    /// Bytes in use in the page file then.
    in_use_bytes: u64,
}

impl Compactions {
    /// The entry being applied is answered only once its compaction has removed what it can.
    pub(super) fn delay_answer(&mut self, revision: i64) {
        assert!(self.asked.is_none(), "the answer of the entry before is not out");
        self.asked = Some(revision);
    }

    /// The compaction that the answer of the entry just applied waits for.
    pub(super) fn take_delay(&mut self) -> Option<i64> {
        self.asked.take()
    }

    /// Keeps an answer until the compaction up to `revision` has removed what it can.
    pub(super) fn wait(&mut self, revision: i64, front: usize, answer: ToFront) {
        self.waiting.push((revision, front, answer));
    }

    /// A snapshot's store has taken the place of the one whose compaction was held up.
    pub(super) fn forget_held(&mut self) {
        self.held = None;
    }

    /// The compaction that is held up, the first one that still is.
    fn hold(&mut self, removable: Revision, now: Held) -> Held {
        match self.held {
            Some(held) if removable < held.revision => held,
            _ => *self.held.insert(now),
        }
    }

    /// Takes the answers whose compaction is over.
    fn take_over(&mut self, over: impl Fn(Revision) -> bool) -> Vec<(i64, usize, ToFront)> {
        self.waiting.extract_if(.., |(revision, _, _)| over(Revision(*revision))).collect()
    }
}

impl Replica {
    /// Answers clients that wait until a compaction has removed what it can, when a checkpoint has
    /// finished one up to `finished`.
    pub(super) fn answer_compactions(&mut self, finished: Revision) {
        for (_, front, reply) in self.compactions.take_over(|revision| revision <= finished) {
            self.publisher.reply(front, reply);
        }
    }

    /// Ends pins that have held up compaction for too long, or kept too much.
    pub(super) fn end_long_pins(&mut self) {
        let (revision, removable) = (self.store.compact_revision(), self.store.removable());
        let in_use_bytes = self.shared.status.db_in_use_bytes.load(Ordering::Relaxed);
        if removable >= revision {
            return self.compactions.forget_held();
        }
        let now_ms = self.turn.now_ms();
        let now = Held { revision, since_ms: now_ms, in_use_bytes };
        let held = self.compactions.hold(removable, now);
        let kept_bytes = in_use_bytes.saturating_sub(held.in_use_bytes);
        let kept_ms = now_ms - held.since_ms;
        if kept_ms >= limits::PIN_WAITED_FOR_MS {
            // What a slow reader keeps is no reason to have another client wait.
            let store = &self.store;
            for (_, front, reply) in self.compactions.take_over(|at| store.has_compacted(at)) {
                self.publisher.reply(front, reply);
            }
        }
        let quota = self.quota.limit_bytes();
        let most = quota.map_or(u64::MAX, |quota| quota / limits::PIN_QUOTA);
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
        self.compactions.forget_held();
    }
}
