//! Two compact maps over the positions of the log: index → term and index → place in the files.
//!
//! Called by recovery (fills them), by the raft storage (terms) and by the writer (places). Both
//! cover a gapless range and panic on a gap: their callers have checked what they append.

use std::collections::VecDeque;

/// Index → term as runs of equal terms. Covers `base_index..=last_index`; the base itself is the
/// position before the first entry.
///
/// Invariants: run starts and terms increase; the first run starts at or before the base.
#[derive(Debug, Clone)]
pub(crate) struct TermRuns {
    base_index: u64,
    last_index: u64,
    runs: VecDeque<(u64, u64)>,
}

impl Default for TermRuns {
    fn default() -> Self {
        Self::new(0, 0)
    }
}

impl TermRuns {
    pub(crate) fn new(base_index: u64, base_term: u64) -> Self {
        Self { base_index, last_index: base_index, runs: VecDeque::from([(base_index, base_term)]) }
    }

    pub(crate) fn base_index(&self) -> u64 {
        self.base_index
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.last_index
    }

    /// The term at `index`, or `None` outside of base ..= last.
    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        if index < self.base_index || index > self.last_index {
            return None;
        }
        let (_, newest) = *self.runs.back()?;
        let after = match self.runs.back() {
            Some((start, _)) if *start <= index => return Some(newest),
            _ => self.runs.partition_point(|(start, _)| *start <= index),
        };
        self.runs.get(after.checked_sub(1)?).map(|(_, term)| *term)
    }

    /// Appends the entry after the last one.
    pub(crate) fn push(&mut self, index: u64, term: u64) {
        assert_eq!(index, self.last_index + 1, "a gap in the log");
        match self.runs.back() {
            Some((_, last)) if *last == term => {}
            last => {
                assert!(last.is_none_or(|(_, last)| *last < term), "term {term} after {last:?}");
                self.runs.push_back((index, term));
            }
        }
        self.last_index = index;
        self.check();
    }

    /// Forgets the entries from `index` on; the base stays.
    pub(crate) fn truncate_from(&mut self, index: u64) {
        assert!(index > self.base_index, "cannot cut {index}, the base is {}", self.base_index);
        while self.runs.back().is_some_and(|(start, _)| *start >= index) {
            self.runs.pop_back();
        }
        self.last_index = self.last_index.min(index - 1);
        self.check();
    }

    /// Moves the base up to `index`, if it is below.
    pub(crate) fn release_to(&mut self, index: u64) {
        assert!(index <= self.last_index, "cannot release {index} of {}", self.last_index);
        self.base_index = self.base_index.max(index);
        while self.runs.get(1).is_some_and(|(start, _)| *start <= self.base_index) {
            self.runs.pop_front();
        }
        self.check();
    }

    /// Asserts the invariant that is cheap to see: the first run covers the base.
    fn check(&self) {
        let first = self.runs.front().map(|(start, _)| *start);
        assert!(first.is_some_and(|start| start <= self.base_index), "the base has a term");
    }
}

/// Where the frame of an entry's record starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The segment's sequence number.
    pub(crate) segment: u32,
    /// Byte in that segment.
    pub(crate) offset_bytes: u32,
}

/// Index → place. Covers `first..first + len`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    first: u64,
    places: VecDeque<Place>,
}

impl Places {
    /// Records where `index` stands, and forgets what stood at and behind it.
    pub(crate) fn set(&mut self, index: u64, place: Place) {
        let next = self.first + self.places.len() as u64;
        if self.places.is_empty() || index > next || index < self.first {
            // A snapshot moved the log on, or everything known is overwritten.
            self.places.clear();
            self.first = index;
        } else {
            self.places.truncate((index - self.first) as usize);
        }
        self.places.push_back(place);
    }

    /// The first index known, if any.
    pub(crate) fn first(&self) -> Option<u64> {
        (!self.places.is_empty()).then_some(self.first)
    }

    pub(crate) fn get(&self, index: u64) -> Option<Place> {
        self.places.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    /// Forgets everything in segments before `segment`.
    pub(crate) fn release_before(&mut self, segment: u64) {
        while self.places.front().is_some_and(|place| u64::from(place.segment) < segment) {
            self.places.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_found_after_appends_cuts_and_releases() {
        let mut runs = TermRuns::new(4, 2);
        for (index, term) in [(5, 2), (6, 3), (7, 3), (8, 5)] {
            runs.push(index, term);
        }
        let terms = |runs: &TermRuns| (3..=9).map(|at| runs.term(at)).collect::<Vec<_>>();
        assert_eq!(terms(&runs), [None, Some(2), Some(2), Some(3), Some(3), Some(5), None]);
        runs.truncate_from(7);
        runs.push(7, 6);
        assert_eq!(terms(&runs), [None, Some(2), Some(2), Some(3), Some(6), None, None]);
        runs.release_to(6);
        assert_eq!(terms(&runs), [None, None, None, Some(3), Some(6), None, None]);
        runs.truncate_from(7);
        assert_eq!(runs.last_index(), 6);
        assert_eq!(runs.term(6), Some(3));
    }

    #[test]
    fn places_follow_overwrites_jumps_and_releases() {
        let place = |segment, offset_bytes| Place { segment, offset_bytes };
        let mut places = Places::default();
        for index in 1..=5 {
            places.set(index, place(0, index as u32 * 8));
        }
        places.set(3, place(1, 0));
        assert_eq!(places.get(2), Some(place(0, 16)));
        assert_eq!(places.get(3), Some(place(1, 0)));
        assert_eq!(places.get(4), None);
        places.release_before(1);
        assert_eq!(places.get(2), None);
        assert_eq!(places.get(3), Some(place(1, 0)));
        places.set(100, place(2, 0));
        assert_eq!(places.get(3), None);
        assert_eq!(places.get(100), Some(place(2, 0)));
    }
}
