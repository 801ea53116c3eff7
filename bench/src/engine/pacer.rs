//! The fixed schedule of `--rate`.
//!
//! Owned by a worker. Request n is due n/rate after the start, however slow the server is; a
//! request that finds no idle client waits, and its wait is part of its latency. A wait that is the
//! tool's own (a late timer) is not. Must never skip a request.

use std::collections::VecDeque;

/// When requests are due, and who can make them.
#[derive(Debug)]
pub(super) struct Pacer {
    rate: u64,
    /// Clients without a request, longest idle first.
    idle: VecDeque<u32>,
    /// A request that was taken and is not due yet.
    taken: Option<u64>,
}

impl Pacer {
    /// `rate` requests a second, all threads together.
    pub(super) fn new(rate: u64, clients: u32) -> Self {
        Pacer { rate, idle: (0..clients).collect(), taken: None }
    }

    /// When this request is due, in nanoseconds since the start.
    pub(super) fn due_ns(&self, number: u64) -> u64 {
        let due = u128::from(number) * 1_000_000_000 / u128::from(self.rate);
        u64::try_from(due).unwrap_or(u64::MAX)
    }

    /// From when a request's latency counts, if it is made now by a client that was free since
    /// `free_ns`.
    pub(super) fn started_ns(&self, number: u64, free_ns: u64, now_ns: u64) -> u64 {
        let due_ns = self.due_ns(number);
        if free_ns > due_ns { due_ns } else { now_ns }
    }

    /// The request whose turn it is: the one put back, or a new one.
    pub(super) fn take(&mut self, new: impl FnOnce() -> Option<u64>) -> Option<u64> {
        self.taken.take().or_else(new)
    }

    /// Keeps a request until it is due.
    pub(super) fn put_back(&mut self, number: u64) {
        self.taken = Some(number);
    }

    pub(super) fn push_idle(&mut self, user: u32) {
        self.idle.push_back(user);
    }

    pub(super) fn longest_idle(&self) -> Option<u32> {
        self.idle.front().copied()
    }

    pub(super) fn pop_idle(&mut self) {
        self.idle.pop_front();
    }

    /// Nothing is left to be made.
    pub(super) fn dismiss(&mut self) {
        self.idle.clear();
    }

    pub(super) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_on_a_fixed_schedule() {
        let pacer = Pacer::new(1_000, 1);
        assert_eq!(pacer.due_ns(0), 0);
        assert_eq!(pacer.due_ns(1), 1_000_000);
        assert_eq!(pacer.due_ns(1 << 40), (1 << 40) * 1_000_000);
        assert_eq!(Pacer::new(1, 1).due_ns(u64::MAX), u64::MAX);
    }

    #[test]
    fn only_waits_for_a_client_count_as_latency() {
        let pacer = Pacer::new(1_000, 1);
        assert_eq!(pacer.started_ns(5, 4_000_000, 5_060_000), 5_060_000, "a late timer");
        assert_eq!(pacer.started_ns(5, 9_000_000, 9_000_100), 5_000_000, "a slow server");
    }

    #[test]
    fn a_request_put_back_comes_before_new_ones() {
        let mut pacer = Pacer::new(1, 2);
        assert_eq!(pacer.take(|| Some(3)), Some(3));
        pacer.put_back(3);
        assert_eq!(pacer.take(|| Some(4)), Some(3));
        assert_eq!(pacer.take(|| None), None);
        assert_eq!(pacer.longest_idle(), Some(0));
        pacer.pop_idle();
        pacer.push_idle(0);
        assert_eq!(pacer.longest_idle(), Some(1));
    }
}
