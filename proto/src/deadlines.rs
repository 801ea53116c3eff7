//! Deadlines of many things, most of which are over long before theirs.
//!
//! Used by `h2` for streams and by the server for its tasks. A heap, since what is due is all that
//! is asked for; whatever is over stays in it until it is due or until the living are the minority.
//! So adding one costs amortised O(log n), and O(1) where deadlines come in ascending order, as
//! they mostly do. Must never be walked on a tick.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What may be over and is not worth a walk through the heap.
const SPARE: usize = 64;

/// See the module text. Invariant: `live` of the things in the heap are not over.
#[derive(Debug)]
pub struct Deadlines<T> {
    heap: BinaryHeap<Reverse<(u64, T)>>,
    live: usize,
}

impl<T: Ord + Copy> Default for Deadlines<T> {
    fn default() -> Self {
        Deadlines { heap: BinaryHeap::new(), live: 0 }
    }
}

impl<T: Ord + Copy> Deadlines<T> {
    /// Adds a thing that is due at `at_ms`. `is_live` tells of those added before, and of this one,
    /// whether they are not over.
    #[inline]
    pub fn insert(&mut self, at_ms: u64, thing: T, is_live: impl Fn(T) -> bool) {
        self.heap.push(Reverse((at_ms, thing)));
        self.live += 1;
        if self.heap.len() > 2 * self.live + SPARE {
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
        self.next_ms().filter(|at_ms| *at_ms <= now_ms)?;
        self.heap.pop().map(|Reverse((_, thing))| thing)
    }

    /// When the first is due.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at_ms, _))| *at_ms)
    }

    /// Things held, over or not.
    #[must_use]
    pub fn held(&self) -> usize {
        self.heap.len()
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
