//! Deadlines of many things, most of which are over long before theirs.
//!
//! Used by `h2` for streams and by the server for its tasks. Most deadlines come in ascending
//! order and stand in a queue; the others are in a heap. What is over leaves the queue at its
//! front, or once it is the majority. So adding one costs amortised O(1), or O(log n) out of order.
//! Must never be walked on a tick.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// What may be over and is not worth a walk.
const SPARE: usize = 64;

/// See the module text. Invariants: `live` of the things held are not over; `queue` is ascending.
#[derive(Debug)]
pub struct Deadlines<T> {
    queue: VecDeque<(u64, T)>,
    heap: BinaryHeap<Reverse<(u64, T)>>,
    live: usize,
}

impl<T: Ord + Copy> Default for Deadlines<T> {
    fn default() -> Self {
        Deadlines { queue: VecDeque::new(), heap: BinaryHeap::new(), live: 0 }
    }
}

impl<T: Ord + Copy> Deadlines<T> {
    /// Adds a thing that is due at `at_ms`. `is_live` tells of those added before, and of this one,
    /// whether they are not over.
    #[inline]
    pub fn insert(&mut self, at_ms: u64, thing: T, is_live: impl Fn(T) -> bool) {
        self.live += 1;
        // Two for each that is added, so that the queue gets shorter while others end.
        for _ in 0..2 {
            match self.queue.front() {
                Some((_, first)) if !is_live(*first) => self.queue.pop_front(),
                _ => break,
            };
        }
        if self.queue.back().is_none_or(|(last_ms, _)| *last_ms <= at_ms) {
            self.queue.push_back((at_ms, thing));
        } else {
            self.heap.push(Reverse((at_ms, thing)));
        }
        if self.held() > 2 * self.live + SPARE {
            self.queue.retain(|(_, thing)| is_live(*thing));
            self.heap.retain(|Reverse((_, thing))| is_live(*thing));
        }
    }

    /// A thing that was added is over, before it was due or because it is.
    ///
    /// # Panics
    /// If more are over than were added.
    #[inline]
    pub fn ended(&mut self) {
        assert!(self.live > 0, "more deadlines ended than began");
        self.live -= 1;
    }

    /// Takes the next thing that is due; it may be over.
    pub fn pop_due(&mut self, now_ms: u64) -> Option<T> {
        let next_ms = self.next_ms().filter(|at_ms| *at_ms <= now_ms)?;
        if self.queue.front().is_some_and(|(at_ms, _)| *at_ms == next_ms) {
            return self.queue.pop_front().map(|(_, thing)| thing);
        }
        self.heap.pop().map(|Reverse((_, thing))| thing)
    }

    /// When the first is due.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        let queued = self.queue.front().map(|(at_ms, _)| *at_ms);
        let heaped = self.heap.peek().map(|Reverse((at_ms, _))| *at_ms);
        match (queued, heaped) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Things held, over or not.
    #[must_use]
    pub fn held(&self) -> usize {
        self.queue.len() + self.heap.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_due_comes_in_order_and_nothing_else_does() {
        let mut deadlines = Deadlines::default();
        for at_ms in [30, 10, 20, 40] {
            deadlines.insert(at_ms, at_ms * 2, |_| true);
        }
        assert_eq!(deadlines.pop_due(9), None);
        let due: Vec<u64> = std::iter::from_fn(|| deadlines.pop_due(30)).collect();
        assert_eq!(due, [20, 40, 60]);
        assert_eq!(deadlines.next_ms(), Some(40));
    }

    #[test]
    fn any_order_comes_out_ascending() {
        let mut deadlines = Deadlines::default();
        let mut state = 1u64;
        for number in 0..10_000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at_ms = number + (state >> 40) % 50;
            deadlines.insert(at_ms, at_ms, |_| true);
        }
        let due: Vec<u64> = std::iter::from_fn(|| deadlines.pop_due(u64::MAX)).collect();
        assert!(due.len() == 10_000 && due.is_sorted());
    }

    #[test]
    fn what_ends_early_is_not_held_until_it_is_due() {
        let mut deadlines = Deadlines::default();
        let mut live = BTreeSet::new();
        for number in 0..100_000u64 {
            live.insert(number);
            deadlines.insert(1_000_000 + number, number, |other| live.contains(&other));
            if number >= 100 {
                live.remove(&(number - 100));
                deadlines.ended();
            }
            assert!(deadlines.held() <= 2 * 101 + SPARE + 1);
        }
    }
}
