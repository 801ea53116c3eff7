//! Byte budgets: what a peer makes us hold is charged here before it is held.
//!
//! One [`Budget`] a process, cloned into every connection; a connection draws from it in steps so
//! that the shared counter is touched seldom. Used by `h2::conn` and `grpc`.

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

    fn draw(&self, bytes: usize) -> bool {
        let before = self.shared.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.shared.limit {
            self.shared.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
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

    /// Returns `bytes` charged before.
    #[inline]
    pub fn release(&mut self, bytes: usize) {
        assert!(bytes <= self.used, "released {bytes} of {} charged bytes", self.used);
        self.used -= bytes;
        if self.drawn - self.used > 2 * limits::BUDGET_STEP_BYTES {
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
        let wanted = used.next_multiple_of(limits::BUDGET_STEP_BYTES) - self.drawn;
        if !self.budget.draw(wanted) {
            return false;
        }
        self.drawn += wanted;
        true
    }

    fn give_back(&mut self) {
        let keep = (self.used + 1).next_multiple_of(limits::BUDGET_STEP_BYTES);
        self.budget.shared.used.fetch_sub(self.drawn - keep, Ordering::Relaxed);
        self.drawn = keep;
    }
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
        let budget = Budget::new(1 << 20, 512 << 10);
        let mut first = budget.lease();
        let mut second = budget.lease();
        let mut third = budget.lease();
        assert!(first.charge(512 << 10));
        assert!(!first.charge(1), "the connection's own limit");
        assert!(second.charge(512 << 10));
        assert!(!third.charge(1), "the limit of all");
        first.release(512 << 10);
        assert!(third.charge(1));
        drop((first, second, third));
        assert_eq!(budget.used(), 0);
    }
}
