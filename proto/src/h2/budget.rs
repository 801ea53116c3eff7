//! Byte budgets: what a peer makes us hold is charged here before it is held.
//!
//! One [`Budget`] a process, cloned into every connection; a connection draws from it in steps so
//! that the shared counter is touched seldom. A part of it is kept for connections that hold
//! little, so that a few greedy ones cannot shut out the others. Used by `h2::conn` and `grpc`; the
//! owner of the process counts by [`Budget::account`] what it holds of their requests itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::limits;

/// A shared limit on bytes held.
#[derive(Debug, Clone)]
pub struct Budget {
    shared: Arc<Shared>,
    connection_bytes_max: usize,
}

#[derive(Debug)]
struct Shared {
    used: AtomicUsize,
    limit: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget::new(limits::PROCESS_HELD_BYTES_MAX, limits::CONNECTION_HELD_BYTES_MAX)
    }
}

impl Budget {
    /// A budget of `process_bytes` together and `connection_bytes` for each connection.
    #[must_use]
    pub fn new(process_bytes: usize, connection_bytes: usize) -> Self {
        let shared = Shared { used: AtomicUsize::new(0), limit: process_bytes };
        Budget { shared: Arc::new(shared), connection_bytes_max: connection_bytes }
    }

    /// Bytes drawn by all connections.
    #[must_use]
    pub fn used(&self) -> usize {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// A connection's account.
    #[must_use]
    pub fn lease(&self) -> BudgetLease {
        BudgetLease { budget: self.clone(), drawn: 0, used: 0 }
    }

    /// An account of bytes that are held in any case.
    #[must_use]
    pub fn account(&self) -> BudgetAccount {
        BudgetAccount { budget: self.clone(), bytes: 0 }
    }

    /// Draws `bytes` for a connection that then has drawn `all` of them. A modest one may use the
    /// whole budget, and so may any where one is given all of it. Others get, of their part, no
    /// more than was still free, so that the first to come do not take everything: of many that
    /// want all they can get, each has about the same (Choudhury and Hahne, "Dynamic queue length
    /// thresholds for shared-memory packet switches", 1998, with a factor of 1).
    fn draw(&self, bytes: usize, all: usize) -> bool {
        let used = &self.shared.used;
        let before = used.fetch_add(bytes, Ordering::Relaxed);
        let limit = self.shared.limit;
        let fits = if all <= limits::MODEST_BYTES || self.connection_bytes_max >= limit {
            before.saturating_add(bytes) <= limit
        } else {
            all <= (limit - limit / limits::MODEST_SHARE).saturating_sub(before)
        };
        if !fits {
            used.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }
}

/// Bytes that are held whatever the limit: they leave less to the connections.
#[derive(Debug)]
pub struct BudgetAccount {
    budget: Budget,
    bytes: usize,
}

impl BudgetAccount {
    /// So many are held now.
    pub fn set(&mut self, bytes: usize) {
        let used = &self.budget.shared.used;
        if bytes > self.bytes {
            used.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else if bytes < self.bytes {
            used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for BudgetAccount {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// One connection's account. Invariant: `used <= drawn`, and `drawn` is counted in the budget.
#[derive(Debug)]
pub struct BudgetLease {
    budget: Budget,
    drawn: usize,
    used: usize,
}

impl BudgetLease {
    /// Charges `bytes`; false, and nothing charged, if a limit forbids it.
    #[inline]
    pub fn charge(&mut self, bytes: usize) -> bool {
        let used = self.used.saturating_add(bytes);
        if used > self.drawn && !self.draw(used) {
            return false;
        }
        self.used = used;
        true
    }

    /// Charges `bytes` that are held whether a limit forbids it or not: they leave less to others.
    pub fn hold(&mut self, bytes: usize) {
        self.used += bytes;
        if self.used > self.drawn {
            let drawn = self.used.next_multiple_of(step(self.used));
            self.budget.shared.used.fetch_add(drawn - self.drawn, Ordering::Relaxed);
            self.drawn = drawn;
        }
    }

    /// Returns `bytes` charged before.
    #[inline]
    pub fn release(&mut self, bytes: usize) {
        assert!(bytes <= self.used, "released {bytes} of {} charged bytes", self.used);
        self.used -= bytes;
        if self.drawn - self.used > slack(self.drawn) {
            self.give_back();
        }
    }

    /// Bytes charged.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// What this connection may charge at most, in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.budget.connection_bytes_max
    }

    fn draw(&mut self, used: usize) -> bool {
        if used > self.budget.connection_bytes_max {
            return false;
        }
        let drawn = used.next_multiple_of(step(used));
        if !self.budget.draw(drawn - self.drawn, drawn) {
            return false;
        }
        self.drawn = drawn;
        true
    }

    fn give_back(&mut self) {
        let keep = (self.used + 1).next_multiple_of(step(self.used));
        self.budget.shared.used.fetch_sub(self.drawn - keep, Ordering::Relaxed);
        self.drawn = keep;
    }
}

/// In what steps a connection draws that holds `used` bytes: tens of thousands may hold a few
/// streams each, and one with many must not touch the shared counter with each.
fn step(used: usize) -> usize {
    let [first, second, third] = limits::BUDGET_STEPS_BYTES;
    if used <= 4 * first {
        first
    } else if used <= third {
        second
    } else {
        third
    }
}

/// What a connection that has drawn `drawn` bytes keeps beyond those it holds.
fn slack(drawn: usize) -> usize {
    if drawn <= 4 * limits::BUDGET_STEPS_BYTES[0] { drawn } else { 2 * step(drawn) }
}

impl Drop for BudgetLease {
    fn drop(&mut self) {
        self.budget.shared.used.fetch_sub(self.drawn, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_everything_comes_back() {
        let budget = Budget::new(4 << 20, 2 << 20);
        let mut first = budget.lease();
        let mut second = budget.lease();
        let mut third = budget.lease();
        assert!(first.charge(2 << 20));
        assert!(!first.charge(1), "the connection's own limit");
        assert!(second.charge(1 << 20));
        assert!(!second.charge(1), "what greedy ones may have");
        let mut modest: Vec<BudgetLease> = (0..4).map(|_| budget.lease()).collect();
        assert!(modest.iter_mut().all(|lease| lease.charge(limits::MODEST_BYTES)));
        assert!(!third.charge(1), "the limit of all");
        first.release(2 << 20);
        assert!(third.charge(1));
        drop((first, second, third, modest));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_few_greedy_connections_leave_room_for_thousands_with_a_stream_each() {
        let budget = Budget::new(256 << 20, 32 << 20);
        let mut greedy: Vec<BudgetLease> = (0..100).map(|_| budget.lease()).collect();
        while greedy.iter_mut().filter_map(|lease| lease.charge(64 << 10).then_some(())).count() > 0
        {
        }
        assert!(greedy.iter().all(|lease| lease.used() > 1 << 20), "each has its share");
        let mut others: Vec<BudgetLease> = (0..10_000).map(|_| budget.lease()).collect();
        for lease in &mut others {
            assert!(lease.charge(limits::STREAM_STATE_BYTES));
        }
        drop(greedy);
        let mut more: Vec<BudgetLease> = (0..64 << 10).map(|_| budget.lease()).collect();
        for lease in &mut more {
            assert!(lease.charge(limits::STREAM_STATE_BYTES));
        }
    }

    #[test]
    fn what_the_owner_holds_leaves_less_to_connections() {
        let budget = Budget::new(8 << 20, 2 << 20);
        let mut account = budget.account();
        let mut lease = budget.lease();
        account.set(5 << 20);
        assert!(!lease.charge(2 << 20));
        account.set(3 << 20);
        assert!(lease.charge(2 << 20));
        account.set(20 << 20);
        assert_eq!(budget.used(), 22 << 20, "nobody asks whether it may");
        lease.hold(3 << 20);
        assert_eq!((budget.used(), lease.used()), (25 << 20, 5 << 20));
        drop((account, lease));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn calls_one_after_the_other_do_not_touch_the_shared_counter() {
        let budget = Budget::new(8 << 20, 8 << 20);
        let mut lease = budget.lease();
        for streams in [1, 10, 64] {
            assert!(lease.charge(streams * limits::STREAM_STATE_BYTES));
            let drawn = budget.used();
            for _ in 0..10 {
                lease.release(streams * limits::STREAM_STATE_BYTES);
                assert_eq!(budget.used(), drawn, "{streams} at once");
                assert!(lease.charge(streams * limits::STREAM_STATE_BYTES));
                assert_eq!(budget.used(), drawn, "{streams} at once");
            }
            lease.release(streams * limits::STREAM_STATE_BYTES);
        }
        assert!(lease.charge(4 << 20));
        lease.release(4 << 20);
        assert!(budget.used() <= 2 << 10, "much is given back");
    }
}
