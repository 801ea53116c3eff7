//! Compactions that nobody asks for: `--auto-compaction-mode` and `--auto-compaction-retention`.
//!
//! A state machine without a clock and without the store, asked by the replica with every tick. It
//! is etcd's (`server/etcdserver/api/v3compactor`): in periodic mode revisions are sampled ten
//! times a window, windows above an hour count as an hour between compactions, and the oldest
//! sample is what is compacted; in revision mode the newest revision is looked at every five
//! minutes. Every member samples, so that a new leader knows the past; only the leader compacts.

use std::collections::VecDeque;
use std::time::Duration;

use etcore_proto::gotext::format_duration;
use etcore_proto::pb::etcdserverpb as pb;

use super::Replica;
use crate::channel::AutoCompaction;

/// Windows above this are compacted once in it (etcd: getCompactInterval).
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);
/// Samples in an interval (etcd: retryDivisor).
const SAMPLES: u32 = 10;
/// How often revision mode looks (etcd: revInterval).
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// See the module text.
///
/// Invariants: `samples` has one at least once the first look was taken in periodic mode, and no
/// more than a window takes; while a compaction is under way nothing is sampled.
#[derive(Debug)]
pub(super) struct AutoCompactor {
    policy: AutoCompaction,
    /// Revisions, oldest first.
    samples: VecDeque<i64>,
    /// When the next look is due; `None` before the first one.
    next: Option<Duration>,
    /// The last compaction of periodic mode, or the start.
    last_success: Duration,
    /// A first compaction was begun: windows above an hour count as an hour from then on.
    is_past_first: bool,
    /// What was compacted last.
    last_revision: i64,
    under_way: Option<UnderWay>,
}

/// A compaction that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct UnderWay {
    revision: i64,
    since: Duration,
}

impl AutoCompactor {
    pub(super) fn new(policy: AutoCompaction) -> Self {
        Self {
            policy,
            samples: VecDeque::new(),
            next: None,
            last_success: Duration::ZERO,
            is_past_first: false,
            last_revision: 0,
            under_way: None,
        }
    }

    /// Between compactions, as a rule.
    fn interval(window: Duration) -> Duration {
        window.min(LONGEST_INTERVAL)
    }

    fn sample_interval(window: Duration) -> Duration {
        (Self::interval(window) / SAMPLES).max(Duration::from_nanos(1))
    }

    /// What to compact up to now, if anything; the store is at `revision`. Its outcome must be told
    /// by [`AutoCompactor::end`].
    fn look(&mut self, now: Duration, revision: i64, is_leader: bool) -> Option<i64> {
        if self.under_way.is_some() || self.next.is_some_and(|next| now < next) {
            return None;
        }
        let is_first = self.next.is_none();
        let wanted = match self.policy {
            AutoCompaction::Off => return None,
            AutoCompaction::Periodic(_) if is_first => {
                self.last_success = now;
                None
            }
            AutoCompaction::Revision(_) if is_first => None,
            AutoCompaction::Periodic(window) => is_leader.then(|| self.due(now, window)).flatten(),
            AutoCompaction::Revision(kept) => {
                let wanted = revision - kept;
                (is_leader && wanted > 0 && wanted != self.last_revision).then_some(wanted)
            }
        };
        match wanted {
            Some(revision) => self.under_way = Some(UnderWay { revision, since: now }),
            None => self.wait(now, revision),
        }
        wanted
    }

    /// The oldest sample, if it is time to compact it.
    fn due(&mut self, now: Duration, window: Duration) -> Option<i64> {
        let oldest = *self.samples.front()?;
        let rest = if self.is_past_first { Self::interval(window) } else { window };
        if now - self.last_success < rest || oldest == self.last_revision {
            return None;
        }
        self.is_past_first = true;
        Some(oldest)
    }

    /// Waits until the next look; in periodic mode the revision of now is kept.
    fn wait(&mut self, now: Duration, revision: i64) {
        let interval = match self.policy {
            AutoCompaction::Off => return,
            AutoCompaction::Revision(_) => REVISION_INTERVAL,
            AutoCompaction::Periodic(window) => {
                let interval = Self::sample_interval(window);
                self.samples.push_back(revision);
                let most = window.as_nanos() / interval.as_nanos() + 1;
                if self.samples.len() as u128 > most {
                    self.samples.pop_front();
                }
                interval
            }
        };
        self.next = Some(now + interval);
    }

    /// The compaction under way has ended; one that failed is tried again with the next look.
    fn end(&mut self, now: Duration, revision: i64, succeeded: bool) {
        let Some(ended) = self.under_way.take() else { return };
        if succeeded {
            (self.last_revision, self.last_success) = (ended.revision, now);
        }
        self.wait(now, revision);
    }
}

impl Replica {
    /// Begins what is due, and looks at what is under way.
    pub(super) fn compact_by_itself(&mut self) {
        let now = Duration::from_millis(self.turn.now_ms());
        let (revision, is_leader) = (self.store.revision().0, self.is_leader());
        if let Some(UnderWay { revision: wanted, since }) = self.auto_compactor.under_way {
            let is_compacted = self.store.compact_revision().0 >= wanted;
            let is_late = now - since >= Duration::from_millis(self.request_timeout_ms);
            if is_compacted || is_late {
                self.tell_ended(wanted, now - since, is_compacted);
                self.auto_compactor.end(now, revision, is_compacted);
            }
            return;
        }
        let Some(wanted) = self.auto_compactor.look(now, revision, is_leader) else { return };
        self.tell_begun(wanted);
        // One that somebody else has done is done.
        if self.store.compact_revision().0 < wanted {
            let compaction = pb::CompactionRequest { revision: wanted, physical: false };
            self.propose_own(pb::InternalRaftRequest {
                compaction: Some(compaction),
                ..Default::default()
            });
        }
    }

    fn tell_begun(&self, revision: i64) {
        match self.auto_compactor.policy {
            AutoCompaction::Off => {}
            AutoCompaction::Periodic(window) => tracing::info!(
                revision,
                compact_period = %format_duration(window),
                "starting auto periodic compaction"
            ),
            AutoCompaction::Revision(kept) => tracing::info!(
                revision,
                revision_compaction_retention = kept,
                "starting auto revision compaction"
            ),
        }
    }

    fn tell_ended(&self, revision: i64, took: Duration, succeeded: bool) {
        let error = "etcdserver: request timed out";
        match (self.auto_compactor.policy, succeeded) {
            (AutoCompaction::Off, _) => {}
            (AutoCompaction::Periodic(window), true) => tracing::info!(
                revision,
                compact_period = %format_duration(window),
                took = %format_duration(took),
                "completed auto periodic compaction"
            ),
            (AutoCompaction::Periodic(window), false) => tracing::warn!(
                revision,
                compact_period = %format_duration(window),
                retry_interval = %format_duration(AutoCompactor::sample_interval(window)),
                error,
                "failed auto periodic compaction"
            ),
            (AutoCompaction::Revision(kept), true) => tracing::info!(
                revision,
                revision_compaction_retention = kept,
                took = %format_duration(took),
                "completed auto revision compaction"
            ),
            (AutoCompaction::Revision(kept), false) => tracing::warn!(
                revision,
                revision_compaction_retention = kept,
                retry_interval = %format_duration(REVISION_INTERVAL),
                error,
                "failed auto revision compaction"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Lets time pass in steps, with one revision more a step; what is compacted, and when.
    fn run(
        compactor: &mut AutoCompactor,
        steps: u32,
        step: Duration,
        leads: impl Fn(u32) -> bool,
    ) -> Vec<(u32, i64)> {
        let mut compacted = Vec::new();
        for number in 0..=steps {
            let (now, revision) = (step * number, i64::from(number) + 1);
            if let Some(wanted) = compactor.look(now, revision, leads(number)) {
                compacted.push((number, wanted));
                compactor.end(now, revision, true);
            }
        }
        compacted
    }

    #[test]
    fn a_short_window_is_compacted_once_in_itself_from_its_oldest_sample() {
        // A tenth of five minutes a step: eleven samples reach back for five minutes.
        let mut compactor = AutoCompactor::new(AutoCompaction::Periodic(5 * MINUTE));
        let compacted = run(&mut compactor, 30, MINUTE / 2, |_| true);
        assert_eq!(compacted, [(10, 1), (20, 10), (30, 20)]);
        assert_eq!(compactor.samples.len(), 11);
    }

    #[test]
    fn a_long_window_is_compacted_every_hour_once_it_is_full() {
        // Six minutes a step, two hours back.
        let mut compactor = AutoCompactor::new(AutoCompaction::Periodic(2 * HOUR));
        let compacted = run(&mut compactor, 50, 6 * MINUTE, |_| true);
        assert_eq!(compacted, [(20, 1), (30, 10), (40, 20), (50, 30)]);
        assert_eq!(compactor.samples.len(), 21);
    }

    #[test]
    fn a_follower_samples_and_a_new_leader_compacts_at_its_next_look() {
        let mut compactor = AutoCompactor::new(AutoCompaction::Periodic(HOUR));
        let compacted = run(&mut compactor, 30, 6 * MINUTE, |number| number >= 17);
        assert_eq!(compacted, [(17, 7), (27, 17)]);
    }

    #[test]
    fn what_fails_is_tried_again_a_sample_later_and_nothing_new_is_left_alone() {
        let mut compactor = AutoCompactor::new(AutoCompaction::Periodic(10 * MINUTE));
        let mut at = |minutes: u32, revision| {
            let now = minutes * MINUTE;
            compactor.look(now, revision, true).inspect(|_| {
                assert_eq!(compactor.look(now + HOUR, revision, true), None, "one is under way");
                compactor.end(now, revision, minutes > 10);
            })
        };
        let looks: Vec<_> = (0..=32).map(|minutes| at(minutes, 7)).collect();
        let compacted: Vec<_> =
            looks.iter().enumerate().filter(|(_, look)| look.is_some()).collect();
        assert_eq!(compacted, [(10, &Some(7)), (11, &Some(7))]);
    }

    #[test]
    fn revision_mode_keeps_so_many_and_looks_every_five_minutes() {
        let mut compactor = AutoCompactor::new(AutoCompaction::Revision(10));
        // A minute a step.
        let compacted = run(&mut compactor, 26, MINUTE, |number| number != 20);
        assert_eq!(compacted, [(10, 1), (15, 6), (25, 16)]);
        assert_eq!(compactor.look(30 * MINUTE, 26, true), None, "the same again");
        assert_eq!(compactor.look(35 * MINUTE, 27, true), Some(17));
        let mut off = AutoCompactor::new(AutoCompaction::Off);
        assert_eq!(run(&mut off, 100, HOUR, |_| true), []);
    }
}
