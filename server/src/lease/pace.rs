//! How fast expired leases are revoked: fast enough that a hundred thousand that end together are
//! gone within two seconds, and evenly, so that the requests of clients in between hardly wait.
//!
//! Owned by the replica's lease desk. Driven by `now`, in microseconds, since a turn may take far
//! less than a millisecond; it must never let a burst through that would keep one turn busy for
//! long.

use crate::limits;

/// A backlog is to be gone after this long, in milliseconds.
const CLEAR_MS: u64 = 1700;
/// A small backlog is worked off at this rate.
const RATE_MIN: u64 = 8192;
/// What a new backlog may start with at once.
const FIRST: u64 = 16;
/// Revocations come in batches so far apart, in microseconds: between two of them the log is free,
/// and a batch costs little more than one alone.
const APART_US: u64 = 600;
/// One batch holds what this time brings, in microseconds: after a stall of the disk the rest is
/// made up for batch by batch. Where all batches are later than that, it is what comes between two.
const AT_ONCE_US: u64 = 800;
/// Two batches in a row that are so far apart, in microseconds, show that the disk needs that long.
const SLOW_US: u64 = 1500;
/// Nobody is told to wait for less, in microseconds.
const WAIT_US_MIN: u64 = 20;
/// A turn that was late makes up for no more than this, in microseconds.
const CATCH_UP_US: u64 = 20_000;
/// The allowance counts in millionths of revocations, so that no turn is too short to add to it.
const UNIT: u64 = 1_000_000;

/// See the module text.
#[derive(Debug, Default)]
pub struct Pace {
    /// Revocations a second while there is a backlog; 0 without one.
    rate: u64,
    /// What may be proposed now, in [`UNIT`]s.
    allowance: u64,
    last_us: u64,
    /// Before this nothing is allowed.
    next_us: u64,
    /// When the last batch was allowed, and how long after the one before.
    batch_us: u64,
    interval_us: u64,
}

impl Pace {
    /// How many of `backlog` revocations may be proposed now.
    pub fn allow(&mut self, backlog: usize, now_us: u64) -> usize {
        if backlog == 0 {
            *self = Self::default();
            return 0;
        }
        if self.rate == 0 {
            self.allowance = FIRST * UNIT;
            (self.last_us, self.batch_us) = (now_us, now_us);
        }
        let wanted = (backlog as u64 * 1000 / CLEAR_MS).max(RATE_MIN);
        self.rate = self.rate.max(wanted).min(limits::LEASE_REVOKES_PER_SECOND_MAX);
        let passed_us = now_us.saturating_sub(self.last_us).min(CATCH_UP_US);
        self.last_us = now_us;
        let most = (self.rate * CATCH_UP_US).max(FIRST * UNIT);
        self.allowance = (self.allowance + self.rate * passed_us).min(most);
        if now_us < self.next_us {
            return 0;
        }
        let interval_us = now_us.saturating_sub(self.batch_us).min(CATCH_UP_US);
        let usual_us = interval_us.min(self.interval_us);
        let at_once_us = if usual_us < SLOW_US { AT_ONCE_US } else { usual_us * 4 / 3 };
        let at_once = (self.rate * at_once_us / UNIT).max(FIRST);
        let allowed =
            backlog.min(usize::try_from((self.allowance / UNIT).min(at_once)).unwrap_or(0));
        if allowed > 0 {
            self.next_us = now_us + APART_US;
            (self.batch_us, self.interval_us) = (now_us, interval_us);
        }
        allowed
    }

    /// So many were proposed.
    pub fn took(&mut self, count: usize) {
        self.allowance = self.allowance.saturating_sub(count as u64 * UNIT);
    }

    /// Microseconds until more may be proposed. Whoever slept longer would propose them together
    /// with whatever woke it, which then waits for them.
    pub fn wait_us(&self, now_us: u64) -> u64 {
        let missing = UNIT.saturating_sub(self.allowance).div_ceil(self.rate.max(1));
        self.next_us.max(self.last_us + missing).saturating_sub(now_us).max(WAIT_US_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Microseconds until a backlog is proposed, and the most in one turn.
    fn clear(mut backlog: usize, turn_us: u64) -> (u64, usize) {
        let (mut pace, mut now_us, mut most) = (Pace::default(), 1000, 0);
        while backlog > 0 {
            let count = pace.allow(backlog, now_us);
            pace.took(count);
            backlog -= count;
            most = most.max(count);
            now_us += turn_us;
        }
        (now_us - 1000, most)
    }

    /// What a batch of a hundred thousand holds at most.
    const EVEN: u64 = 100_000 * AT_ONCE_US / (CLEAR_MS * 1000);

    #[test]
    fn a_hundred_thousand_are_proposed_within_two_seconds_and_evenly() {
        for turn_us in [7, 130, 300] {
            let (took_us, most) = clear(100_000, turn_us);
            assert!(took_us <= 1_850_000, "{took_us} us in turns of {turn_us}");
            assert!(most as u64 <= EVEN, "{most} in a turn of {turn_us}");
        }
    }

    #[test]
    fn a_disk_that_is_always_slow_gets_larger_batches() {
        for turn_us in [1500, 3000, 10_000] {
            let (took_us, most) = clear(100_000, turn_us);
            assert!(took_us <= 2_000_000, "{took_us} us in turns of {turn_us}");
            assert!(most as u64 <= 100 * turn_us, "{most} in a turn of {turn_us}");
        }
    }

    #[test]
    fn no_turn_gets_more_because_one_was_late() {
        let (mut pace, mut now_us, mut backlog) = (Pace::default(), 1000, 100_000);
        for turn in 0..500 {
            now_us += if turn % 5 == 4 { 30_000 } else { 600 };
            let count = pace.allow(backlog, now_us);
            assert!(count as u64 <= EVEN, "{count} in turn {turn}");
            pace.took(count);
            backlog -= count;
        }
    }

    #[test]
    fn a_few_are_proposed_at_once() {
        assert_eq!(clear(10, 1000), (1000, 10));
        assert!(clear(1000, 1000).0 <= 130_000);
    }

    #[test]
    fn an_idle_time_leaves_no_burst_behind() {
        let mut pace = Pace::default();
        assert_eq!(pace.allow(1, 10), 1);
        pace.took(1);
        assert_eq!(pace.allow(0, 20), 0);
        assert!(pace.allow(100_000, 60_000_000) <= 16);
    }
}
