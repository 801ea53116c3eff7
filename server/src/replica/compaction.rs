//! What compaction waits for, and who waits for compaction.
//!
//! Part of the replica. Long answers and watchers that are behind pin the revision they read. Once
//! a compaction has passed it, space grows with every write for as long as they go on. The replica
//! looks at this with every tick and, past the bounds, ends their pins: they are told that their
//! revision is compacted, as they would be if they came now.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use etcore_engine::types::Revision;
use etcore_proto::gotext::{format_duration, human_bytes};

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
    /// Compactions that have not removed everything, with when they began. Only the newest are
    /// kept: what is lost is a line of the log.
    under_way: VecDeque<(i64, u64)>,
    /// Rows removed since one ended.
    removed_rows: u64,
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

    /// A compaction up to `revision` has begun.
    pub(super) fn begin(&mut self, revision: i64, now_ms: u64) {
        if self.under_way.len() == limits::COMPACTIONS_TOLD {
            self.under_way.pop_front();
        }
        self.under_way.push_back((revision, now_ms));
    }

    /// True if the index may have something to remove.
    pub(super) fn are_under_way(&self) -> bool {
        !self.under_way.is_empty()
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
    /// A checkpoint has removed so many rows; compactions up to `finished` have removed everything.
    pub(super) fn compactions_ended(&mut self, rows: u64, finished: Revision) {
        let now_ms = self.turn.now_ms();
        let compactions = &mut self.compactions;
        compactions.removed_rows += rows;
        let metrics = &self.shared.metrics.storage.compaction;
        metrics.keys.inc_by(rows);
        while let Some((revision, began_ms)) = compactions.under_way.front().copied()
            && revision <= finished.0
        {
            compactions.under_way.pop_front();
            let took_ms = now_ms - began_ms;
            metrics.took_ms.observe(took_ms as f64);
            let since_epoch = self.shared.clock.unix().duration_since(UNIX_EPOCH);
            metrics.last.set(since_epoch.unwrap_or_default().as_secs());
            let size = self.shared.status.db_size_bytes.load(Ordering::Relaxed);
            let in_use = self.shared.status.db_in_use_bytes.load(Ordering::Relaxed);
            // The hash has a line of its own, once it is known.
            tracing::info!(
                compact_revision = revision,
                took = %format_duration(Duration::from_millis(took_ms)),
                number_of_keys_compacted = std::mem::take(&mut compactions.removed_rows),
                current_db_size_bytes = size,
                current_db_size = %human_bytes(size),
                current_db_size_in_use_bytes = in_use,
                current_db_size_in_use = %human_bytes(in_use),
                "finished scheduled compaction"
            );
        }
    }

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
