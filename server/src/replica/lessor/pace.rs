//! How fast expired leases are revoked: fast enough that a hundred thousand that end together are
//! gone within two seconds, and evenly, so that the requests of clients in between hardly wait.
//!
//! Owned by the replica's lease desk. Driven by `now`; it must never let a burst through that would
//! keep one turn busy for long.

use crate::limits;

/// A backlog is to be gone after this long, in milliseconds.
const CLEAR_MS: u64 = 1300;
/// A small backlog is worked off at this rate.
const RATE_MIN: u64 = 8192;
/// What a new backlog may start with at once.
const FIRST: u64 = 16;
/// A turn that was late makes up for no more than this, in milliseconds.
const CATCH_UP_MS: u64 = 20;

/// See the module text.
#[derive(Debug, Default)]
pub struct Pace {
    /// Revocations a second while there is a backlog; 0 without one.
    rate: u64,
    /// Thousandths of revocations that may be proposed now.
    allowance: u64,
    last_ms: u64,
}

impl Pace {
    /// How many of `backlog` revocations may be proposed now.
    pub fn allow(&mut self, backlog: usize, now_ms: u64) -> usize {
        if backlog == 0 {
            *self = Self::default();
            return 0;
        }
        if self.rate == 0 {
            self.allowance = FIRST * 1000;
            self.last_ms = now_ms;
        }
        let wanted = (backlog as u64 * 1000 / CLEAR_MS).max(RATE_MIN);
        self.rate = self.rate.max(wanted).min(limits::LEASE_REVOKES_PER_SECOND_MAX);
        let passed_ms = (now_ms - self.last_ms).min(CATCH_UP_MS);
        self.last_ms = now_ms;
        let most = (self.rate * CATCH_UP_MS).max(FIRST * 1000);
        self.allowance = (self.allowance + self.rate * passed_ms).min(most);
        backlog.min(usize::try_from(self.allowance / 1000).unwrap_or(0))
    }

    /// So many were proposed.
    pub fn took(&mut self, count: usize) {
        self.allowance = self.allowance.saturating_sub(count as u64 * 1000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds until a backlog is proposed, and the most in one turn.
    fn clear(mut backlog: usize, turn_ms: u64) -> (u64, usize) {
        let (mut pace, mut now_ms, mut most) = (Pace::default(), 1000, 0);
        while backlog > 0 {
            let count = pace.allow(backlog, now_ms);
            pace.took(count);
            backlog -= count;
            most = most.max(count);
            now_ms += turn_ms;
        }
        (now_ms - 1000, most)
    }

    #[test]
    fn a_hundred_thousand_are_proposed_within_two_seconds_and_evenly() {
        let (took_ms, most) = clear(100_000, 1);
        assert!(took_ms <= 1400, "{took_ms} ms");
        assert!(most <= 100, "{most} in one turn");
        let (took_ms, most) = clear(100_000, 10);
        assert!(took_ms <= 1400, "{took_ms} ms");
        assert!(most <= 1000, "{most} in one turn");
    }

    #[test]
    fn a_few_are_proposed_at_once() {
        assert_eq!(clear(10, 1), (1, 10));
        assert!(clear(1000, 1).0 <= 130);
    }

    #[test]
    fn an_idle_time_leaves_no_burst_behind() {
        let mut pace = Pace::default();
        assert_eq!(pace.allow(1, 10), 1);
        pace.took(1);
        assert_eq!(pace.allow(0, 20), 0);
        assert!(pace.allow(100_000, 60_000) <= 16);
    }
}
