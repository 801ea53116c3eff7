//! Which parts of a copy are still to be asked for.
//!
//! Used by the receiving replica. The file is asked for in ranges of a part's length, in order, any
//! number of them at once; what an answer left of its range, or a lost connection of it, comes
//! first. It must never count units as received that no answer was about.

use std::collections::VecDeque;

use super::META_UNITS;
use crate::limits::SNAPSHOT_PART_UNITS;

/// Units from `from` on and before `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitRange {
    /// The first.
    pub from: u64,
    /// The one behind the last.
    pub until: u64,
}

/// See the module text.
///
/// Invariant: a unit below the copy's end is in `again`, at or above `next`, in a range that was
/// taken and not given back, or received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedParts {
    /// To be asked for, before what comes at `next`.
    again: VecDeque<UnitRange>,
    next: u64,
    /// Known once the first part is there.
    end: Option<u64>,
    /// Ranges that were taken and neither answered nor given back.
    under_way: usize,
}

impl WantedParts {
    /// Everything of a copy is wanted, and its meta page first.
    pub fn all() -> Self {
        let first = UnitRange { from: 0, until: 1 };
        Self { again: VecDeque::from([first]), next: META_UNITS, end: None, under_way: 0 }
    }

    /// The next range to ask for, if anything is left that can be asked for now.
    pub fn take(&mut self) -> Option<UnitRange> {
        let range = match self.again.pop_front() {
            Some(range) => range,
            None => {
                let end = self.end.filter(|end| self.next < *end)?;
                let until = end.min(self.next.saturating_add(SNAPSHOT_PART_UNITS));
                let from = std::mem::replace(&mut self.next, until);
                UnitRange { from, until }
            }
        };
        self.under_way += 1;
        Some(range)
    }

    /// A range that was taken has no answer: it is asked for again.
    pub fn give_back(&mut self, range: UnitRange) {
        self.end_one(range);
        self.again.push_front(range);
    }

    /// A range that was taken has been answered up to `next_unit`, in a copy that ends at
    /// `end_unit`. An answer that says nothing about the range asks for it again.
    pub fn answered(&mut self, range: UnitRange, next_unit: u64, end_unit: u64) {
        self.end_one(range);
        if range.from == 0 {
            self.end = Some(end_unit);
            return;
        }
        if next_unit < range.until {
            let from = next_unit.max(range.from);
            self.again.push_front(UnitRange { from, until: range.until });
        } else if range.until == self.next {
            // Nothing behind it is in use either, as far as that.
            self.next = next_unit.min(self.end.unwrap_or(0)).max(self.next);
        }
    }

    fn end_one(&mut self, range: UnitRange) {
        assert!(self.under_way > 0, "{range:?} was taken");
        let is_begun = range.from == 0 || range.until <= self.next;
        assert!(is_begun, "{range:?} was taken, of the units before {}", self.next);
        self.under_way -= 1;
    }

    /// True if [`WantedParts::take`] would give something.
    pub fn has_more(&self) -> bool {
        !self.again.is_empty() || self.end.is_some_and(|end| self.next < end)
    }

    /// True once everything has been answered.
    pub fn is_done(&self) -> bool {
        self.under_way == 0 && self.again.is_empty() && self.end.is_some_and(|end| self.next >= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::prng::Prng;

    #[test]
    fn every_unit_is_answered_for_whatever_is_lost_clipped_or_skipped() {
        for seed in 0..200 {
            let mut prng = Prng::new(seed);
            let end = 2 + prng.below(3000);
            let mut wanted = WantedParts::all();
            let mut got = vec![false; usize::try_from(end).unwrap()];
            let mut out = Vec::new();
            let mut rounds = 0;
            while !wanted.is_done() {
                rounds += 1;
                assert!(rounds < 100_000, "it never ends");
                while out.len() < 8
                    && let Some(range) = wanted.take()
                {
                    assert!(range.from < range.until, "{range:?}");
                    out.push(range);
                }
                let range = out.swap_remove(prng.index(out.len()));
                if prng.chance(1, 4) {
                    wanted.give_back(range);
                    continue;
                }
                if range.from == 0 {
                    assert_eq!(range, UnitRange { from: 0, until: 1 });
                    wanted.answered(range, 1, end);
                    continue;
                }
                // A part of it, or all of it, or with nothing in use for a while behind it.
                let next = match prng.below(3) {
                    0 => range.from + prng.below(range.until - range.from + 1),
                    1 => range.until,
                    _ => end.min(range.until + prng.below(500)),
                };
                for unit in range.from..next {
                    got[usize::try_from(unit).unwrap()] = true;
                }
                wanted.answered(range, next, end);
            }
            assert!(out.is_empty() && wanted.take().is_none());
            assert!(got[2..].iter().all(|got| *got), "seed {seed}");
        }
    }

    #[test]
    fn nothing_but_the_meta_page_is_asked_for_before_it_is_there() {
        let mut wanted = WantedParts::all();
        let first = wanted.take().unwrap();
        assert_eq!(wanted.take(), None);
        assert!(!wanted.is_done());
        wanted.give_back(first);
        assert_eq!(wanted.take(), Some(first));
        wanted.answered(first, 1, 2);
        assert!(wanted.is_done(), "a file without pages");
    }
}
