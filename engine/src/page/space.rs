//! Free space of the page file: extents that may be written, and extents that someone may still
//! read.
//!
//! Owned by the checkpointer. It must never hand out a unit that a durable meta page or a pinned
//! version can reach: an extent allocated by checkpoint `a` and freed by checkpoint `f` is part of
//! the versions `a <= v < f`.

use std::collections::BTreeMap;

use crate::limits::SPACE_SEARCH_MAX;

/// Bytes of a stored extent: first unit, units, allocated, freed.
const EXTENT_BYTES: usize = 32;

/// Units that some versions use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) first_unit: u64,
    pub(crate) units: u64,
    pub(crate) allocated: u64,
    pub(crate) freed: u64,
}

/// Invariant: no unit is in two extents; `ready` extents do not touch each other.
#[derive(Debug, Default)]
pub(crate) struct Space {
    /// Extents to write: first unit to number of units.
    ready: BTreeMap<u64, u64>,
    /// Extents to keep for now.
    kept: Vec<Extent>,
    /// All units from here on are free.
    end_unit: u64,
    ready_units: u64,
}

impl Space {
    pub(crate) fn new(end_unit: u64) -> Self {
        Self { end_unit, ..Self::default() }
    }

    /// Takes `units` adjacent units: low ones first, beyond the end if there are none.
    pub(crate) fn allocate(&mut self, units: u64) -> u64 {
        let found = self.ready.iter().take(SPACE_SEARCH_MAX).find(|(_, have)| **have >= units);
        if let Some((first, have)) = found.map(|(first, have)| (*first, *have)) {
            self.ready.remove(&first);
            if have > units {
                self.ready.insert(first + units, have - units);
            }
            self.ready_units -= units;
            return first;
        }
        let first = self.end_unit;
        self.end_unit += units;
        first
    }

    /// Notes that checkpoint `freed` no longer uses units that checkpoint `allocated` wrote.
    pub(crate) fn free(&mut self, extent: Extent) {
        self.kept.push(extent);
    }

    /// Makes everything writable that none of `versions` (ascending) can reach.
    pub(crate) fn release(&mut self, versions: &[u64]) {
        let mut kept = std::mem::take(&mut self.kept);
        kept.retain(|extent| {
            let next = versions.partition_point(|version| *version < extent.allocated);
            let reachable = versions.get(next).is_some_and(|version| *version < extent.freed);
            if !reachable {
                self.add_ready(extent.first_unit, extent.units);
            }
            reachable
        });
        self.kept = kept;
    }

    /// Moves the end down to the last unit that is not ready to be written.
    pub(crate) fn trim(&mut self) {
        while let Some((first, units)) = self.ready.last_key_value()
            && first + units == self.end_unit
        {
            self.end_unit = *first;
            self.ready_units -= units;
            self.ready.pop_last();
        }
    }

    /// Units below `cut` that may be written.
    pub(crate) fn ready_units_below(&self, cut: u64) -> u64 {
        if cut >= self.end_unit {
            return self.ready_units;
        }
        let below = self.ready.range(..cut);
        below.map(|(first, units)| (*units).min(cut - first)).sum()
    }

    pub(crate) fn end_unit(&self) -> u64 {
        self.end_unit
    }

    /// Units below the end that no tree uses now.
    pub(crate) fn free_units(&self) -> u64 {
        self.ready_units + self.kept.iter().map(|extent| extent.units).sum::<u64>()
    }

    /// Extents that no tree uses now, ascending: first unit and number of units.
    pub(crate) fn unused(&self) -> Vec<(u64, u64)> {
        let ready = self.ready.iter().map(|(first, units)| (*first, *units));
        let kept = self.kept.iter().map(|extent| (extent.first_unit, extent.units));
        let mut unused: Vec<(u64, u64)> = ready.chain(kept).collect();
        unused.sort_unstable();
        unused
    }

    /// Upper bound of [`Space::encode`]'s length after one more allocation.
    pub(crate) fn encoded_len(&self) -> usize {
        (self.ready.len() + self.kept.len()) * EXTENT_BYTES
    }

    /// The extents, padded with empty ones to `len_bytes`.
    pub(crate) fn encode(&self, len_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len_bytes);
        let ready = self.ready.iter().map(|(first_unit, units)| Extent {
            first_unit: *first_unit,
            units: *units,
            allocated: 0,
            freed: 0,
        });
        for extent in ready.chain(self.kept.iter().copied()) {
            for number in [extent.first_unit, extent.units, extent.allocated, extent.freed] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        assert!(bytes.len() <= len_bytes, "an allocation adds no extent");
        bytes.resize(len_bytes, 0);
        bytes
    }

    /// Reads what [`Space::encode`] wrote; `None` if extents overlap or lie outside.
    pub(crate) fn decode(bytes: &[u8], end_unit: u64) -> Option<Self> {
        let mut space = Self::new(end_unit);
        let mut seen = BTreeMap::new();
        let (extents, rest) = bytes.as_chunks::<EXTENT_BYTES>();
        if !rest.is_empty() {
            return None;
        }
        for extent in extents {
            let (numbers, _) = extent.as_chunks::<8>();
            let number = |at: usize| u64::from_le_bytes(numbers[at]);
            let (first_unit, units) = (number(0), number(1));
            if units == 0 {
                continue;
            }
            let end = first_unit.checked_add(units)?;
            if first_unit < 2 || end > end_unit || seen.insert(first_unit, end).is_some() {
                return None;
            }
            if number(3) == 0 {
                space.add_ready(first_unit, units);
            } else {
                let (allocated, freed) = (number(2), number(3));
                space.kept.push(Extent { first_unit, units, allocated, freed });
            }
        }
        let overlap = seen.values().zip(seen.keys().skip(1)).any(|(end, next)| end > next);
        (!overlap).then_some(space)
    }

    fn add_ready(&mut self, first: u64, units: u64) {
        self.ready_units += units;
        let (mut first, mut units) = (first, units);
        if let Some((before, have)) = self.ready.range(..first).next_back() {
            assert!(before + have <= first, "unit {first} is free already");
            if before + have == first {
                first = *before;
                units += have;
            }
        }
        if let Some(have) = self.ready.remove(&(first + units)) {
            units += have;
        }
        let next = self.ready.range(first + 1..).next();
        assert!(
            next.is_none_or(|(next, _)| first + units < *next),
            "units from {first} on are free already"
        );
        assert!(first + units <= self.end_unit, "units from {first} on lie behind the end");
        self.ready.insert(first, units);
    }

    /// Asserts that no unit is in two extents, kept ones included. Looks at all of them.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let unused = self.unused();
        for pair in unused.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?} overlap");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(first_unit: u64, units: u64, allocated: u64, freed: u64) -> Extent {
        Extent { first_unit, units, allocated, freed }
    }

    #[test]
    fn an_extent_is_reused_only_when_no_version_between_allocation_and_freeing_is_held() {
        let mut space = Space::new(10);
        space.free(extent(4, 2, 3, 6));
        for (versions, reusable) in [(&[2, 5][..], false), (&[3], false), (&[2, 6], true)] {
            space.release(versions);
            space.check();
            assert_eq!(space.ready.contains_key(&4), reusable, "{versions:?}");
        }
        assert_eq!((space.allocate(2), space.allocate(1)), (4, 10));
    }

    #[test]
    fn the_end_moves_down_only_over_units_that_nobody_reads() {
        let mut space = Space::new(20);
        space.free(extent(16, 4, 0, 3));
        space.free(extent(10, 2, 0, 3));
        space.free(extent(14, 2, 0, 9));
        space.release(&[5]);
        space.trim();
        assert_eq!((space.end_unit(), space.free_units()), (16, 4), "14 and 15 are held");
        space.release(&[9]);
        space.trim();
        assert_eq!((space.end_unit(), space.ready_units_below(11)), (14, 1));
    }

    #[test]
    fn neighbours_coalesce_and_the_list_comes_back() {
        let mut space = Space::new(50);
        for first in [10, 14, 12] {
            space.free(extent(first, 2, 0, 1));
        }
        space.release(&[5]);
        assert_eq!(space.ready, BTreeMap::from([(10, 6)]));
        space.free(extent(30, 1, 4, 6));
        let bytes = space.encode(space.encoded_len() + EXTENT_BYTES);
        let back = Space::decode(&bytes, 50).unwrap();
        assert_eq!((&back.ready, &back.kept), (&space.ready, &space.kept));
        assert!(Space::decode(&bytes, 30).is_none(), "outside of the file");
        assert!(Space::decode(&[&bytes[..], &bytes[..]].concat(), 50).is_none(), "overlap");
    }
}
