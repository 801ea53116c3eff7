//! Ranges over the revision index.
//!
//! Views and transactions fill [`RangeHits`] through it. It must never read a value.

use std::ops::ControlFlow;

use super::View;
use crate::error::RangeError;
use crate::index::{Bounds, Index, Leaf, State};
use crate::pins::RevisionPin;
use crate::types::{RevKey, Revision};

/// A key that exists at the revision asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The change that wrote its value: what to ask `value` for.
    pub modified: RevKey,
    /// The revision that created it.
    pub create: Revision,
    /// Changes since then, this one included.
    pub version: u64,
    /// Length of its KeyValue in wire form.
    pub len_bytes: u32,
    key_start: usize,
    key_end: usize,
}

/// The result of a range; can be filled again and keeps its memory.
#[derive(Debug, Clone, Default)]
pub struct RangeHits {
    hits: Vec<Hit>,
    keys: Vec<u8>,
    count: u64,
    /// Where a slice goes on; `None` at the end.
    next: Option<Vec<u8>>,
}

/// A range of keys as etcd names it: without an end the one key, to an end of `\0` everything from
/// the key on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange<'a> {
    /// The first key.
    pub key: &'a [u8],
    /// The key behind the last one.
    pub end: &'a [u8],
}

/// The state that a read looks at: the one just before a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadPoint(RevKey);

/// How far a slice of a read goes: the call ends when either is used up, and tells where to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceBounds {
    /// Keys found.
    pub keys: usize,
    /// Leaves of the index looked into, whose keys may all have been deleted.
    pub leaves: usize,
}

impl ReadPoint {
    /// The state with everything up to `revision`.
    pub const fn at(revision: Revision) -> Self {
        Self(RevKey::last(revision))
    }

    /// The state inside a transaction, before its change `change`.
    pub const fn before(change: RevKey) -> Self {
        Self(change)
    }

    /// The newest revision that is wholly in the state: the one to pin for it.
    pub fn revision(self) -> Revision {
        let whole = self == Self::at(self.0.main);
        Revision(self.0.main.0 - i64::from(!whole))
    }

    pub(crate) fn bound(self) -> RevKey {
        self.0
    }
}

impl View {
    /// Puts a slice of a range at `point` into `hits`; [`RangeHits::next`] says where to go on.
    /// The pin must be of [`ReadPoint::revision`] or older.
    ///
    /// # Errors
    /// Compacted, if the pin came too late or has been held for too long.
    pub fn slice(
        &self,
        range: KeyRange<'_>,
        (point, pin): (ReadPoint, &RevisionPin),
        bounds: SliceBounds,
        hits: &mut RangeHits,
    ) -> Result<(), RangeError> {
        self.check_pin(point, pin)?;
        hits.fill_slice(&self.index, range, point, bounds);
        Ok(())
    }

    /// Puts a range at revision `at` (0: the newest) into `hits`, with the count of all its keys,
    /// if that takes no more than `bounds`; false, and `hits` of no use, if it would.
    ///
    /// # Errors
    /// The revision is compacted or in the future.
    pub fn range_within(
        &self,
        range: KeyRange<'_>,
        at: Revision,
        limit: usize,
        bounds: SliceBounds,
        hits: &mut RangeHits,
    ) -> Result<bool, RangeError> {
        let at = check_revision(at, self.revision, self.compact_revision)?;
        Ok(hits.fill_within(&self.index, range, at, limit, bounds))
    }

    /// How many keys a range at revision `at` (0: the newest) has, if finding out takes no more
    /// than
    /// `leaves_max` leaves of the index.
    ///
    /// # Errors
    /// The revision is compacted or in the future.
    pub fn count_within(
        &self,
        range: KeyRange<'_>,
        at: Revision,
        leaves_max: usize,
    ) -> Result<Option<u64>, RangeError> {
        let at = check_revision(at, self.revision, self.compact_revision)?;
        Ok(count_within(&self.index, range, at, leaves_max))
    }

    /// Puts a slice of a range of the newest state into `hits`, for a reader that does so on one
    /// view only.
    pub fn slice_newest(&self, range: KeyRange<'_>, bounds: SliceBounds, hits: &mut RangeHits) {
        hits.fill_slice(&self.index, range, ReadPoint::at(self.revision), bounds);
    }

    /// Counts a slice of a range at `point`, looking into up to `leaves_max` leaves of the index;
    /// also returns the key to go on at, `None` at the end.
    ///
    /// # Errors
    /// As [`View::slice`].
    pub fn count_slice(
        &self,
        range: KeyRange<'_>,
        (point, pin): (ReadPoint, &RevisionPin),
        leaves_max: usize,
    ) -> Result<(u64, Option<Vec<u8>>), RangeError> {
        self.check_pin(point, pin)?;
        Ok(match bounds_of(range.key, range.end) {
            Some(bounds) => self.index.count_leaves(bounds, point.bound(), leaves_max),
            None => {
                let found = self.index.previous(range.key, point.bound());
                (u64::from(found.is_some()), None)
            }
        })
    }

    fn check_pin(&self, point: ReadPoint, pin: &RevisionPin) -> Result<(), RangeError> {
        debug_assert!(pin.revision() <= point.revision(), "the pin keeps what is read");
        let (requested, current) = (point.revision(), self.revision);
        if requested > current {
            return Err(RangeError::Future { requested, current });
        }
        if pin.is_expired() || !self.has_all_of(pin) {
            return Err(RangeError::Compacted { requested, compacted: self.compact_revision });
        }
        Ok(())
    }
}

impl RangeHits {
    /// The keys found, in order, up to the limit.
    pub fn hits(&self) -> &[Hit] {
        &self.hits
    }

    /// The key of one of [`RangeHits::hits`].
    pub fn key(&self, hit: &Hit) -> &[u8] {
        &self.keys[hit.key_start..hit.key_end]
    }

    /// How many keys there are without the limit.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// True if the limit left keys out.
    pub fn more(&self) -> bool {
        self.count > self.hits.len() as u64
    }

    /// Sum of the lengths of the hits' KeyValues.
    pub fn len_bytes(&self) -> u64 {
        self.hits.iter().map(|hit| u64::from(hit.len_bytes)).sum()
    }

    /// Where a slice ended: the next key to look at, or `None` if it has reached the end.
    pub fn next(&self) -> Option<&[u8]> {
        self.next.as_deref()
    }

    pub(crate) fn fill_slice(
        &mut self,
        index: &Index,
        range: KeyRange<'_>,
        point: ReadPoint,
        bounds: SliceBounds,
    ) {
        self.hits.clear();
        self.keys.clear();
        self.next = None;
        match bounds_of(range.key, range.end) {
            None => {
                if let Some(state) = index.previous(range.key, point.bound()) {
                    self.keys.extend_from_slice(range.key);
                    self.push(0, state);
                }
            }
            Some(keys) => {
                let visitor = &mut |leaf: &Leaf, slot: usize, state: State| {
                    if self.hits.len() == bounds.keys {
                        return ControlFlow::Break(());
                    }
                    let start = self.keys.len();
                    leaf.key_into(slot, &mut self.keys);
                    self.push(start, state);
                    ControlFlow::Continue(())
                };
                let next = index.visit_leaves(keys, point.bound(), bounds.leaves, visitor);
                self.next = next;
            }
        }
        self.count = self.hits.len() as u64;
    }

    /// See [`View::range_within`].
    pub(crate) fn fill_within(
        &mut self,
        index: &Index,
        range: KeyRange<'_>,
        at: Revision,
        limit: usize,
        bounds: SliceBounds,
    ) -> bool {
        let point = ReadPoint::at(at);
        let keys = if limit == 0 { bounds.keys } else { bounds.keys.min(limit) };
        self.fill_slice(index, range, point, SliceBounds { keys, ..bounds });
        let Some(next) = &self.next else { return true };
        // Nothing found and no limit: all that was looked at has been deleted, and keys may follow.
        if limit == 0 || self.hits.len() != limit {
            return false;
        }
        let Some(rest) = bounds_of(next, range.end) else { return true };
        let (others, next) = index.count_leaves(rest, point.bound(), bounds.leaves);
        self.count += others;
        next.is_none()
    }

    pub(crate) fn fill(
        &mut self,
        index: &Index,
        bounds: Option<Bounds<'_>>,
        key: &[u8],
        at: Revision,
        limit: usize,
    ) {
        self.hits.clear();
        self.keys.clear();
        let Some(bounds) = bounds else {
            if let Some(state) = index.get(key, at) {
                self.keys.extend_from_slice(key);
                self.push(0, state);
            }
            self.count = self.hits.len() as u64;
            return;
        };
        let mut more = false;
        index.visit(bounds, at, &mut |leaf, slot, state| {
            if limit != 0 && self.hits.len() == limit {
                more = true;
                return ControlFlow::Break(());
            }
            let start = self.keys.len();
            leaf.key_into(slot, &mut self.keys);
            self.push(start, state);
            ControlFlow::Continue(())
        });
        self.count = if more { index.count(bounds, at) } else { self.hits.len() as u64 };
    }

    fn push(&mut self, key_start: usize, state: State) {
        self.hits.push(Hit {
            modified: state.at(),
            create: state.create(),
            version: state.version(),
            len_bytes: state.len_bytes(),
            key_start,
            key_end: self.keys.len(),
        });
    }
}

pub(crate) fn count_within(
    index: &Index,
    range: KeyRange<'_>,
    at: Revision,
    leaves_max: usize,
) -> Option<u64> {
    let Some(bounds) = bounds_of(range.key, range.end) else {
        return Some(u64::from(index.get(range.key, at).is_some()));
    };
    let (count, next) = index.count_leaves(bounds, ReadPoint::at(at).bound(), leaves_max);
    next.is_none().then_some(count)
}

pub(crate) fn count(index: &Index, bounds: Option<Bounds<'_>>, key: &[u8], at: Revision) -> u64 {
    match bounds {
        Some(bounds) => index.count(bounds, at),
        None => u64::from(index.get(key, at).is_some()),
    }
}

/// etcd's range ends; `None` for the single key.
pub(crate) fn bounds_of<'a>(key: &'a [u8], end: &'a [u8]) -> Option<Bounds<'a>> {
    match end {
        [] => None,
        [0] => Some(Bounds { start: key, end: None }),
        // A range that ends before it starts is empty.
        _ => Some(Bounds { start: key, end: Some(end.max(key)) }),
    }
}

/// The revision to read for the one asked for, if it can be read.
pub(crate) fn check_revision(
    requested: Revision,
    current: Revision,
    compacted: Revision,
) -> Result<Revision, RangeError> {
    let at = if requested.0 <= 0 { current } else { requested };
    if at > current {
        return Err(RangeError::Future { requested, current });
    }
    if at < compacted {
        return Err(RangeError::Compacted { requested, compacted });
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{EngineConfig, Store};
    use crate::testing::prng::Prng;
    use crate::types::{LeaseId, LogIndex, Term};

    fn key(number: u64) -> Vec<u8> {
        format!("key{number:04}").into_bytes()
    }

    /// A store with a history of puts and deletions, and the revisions of its transactions' ends.
    fn store(prng: &mut Prng) -> Store {
        let mut store = Store::in_memory(EngineConfig::default());
        for index in 1..60 {
            let mut txn = store.begin(LogIndex(index), Term(1));
            for _ in 0..prng.below(80) {
                let key = key(prng.below(700));
                if prng.chance(1, 3) {
                    txn.delete(&key);
                } else {
                    txn.put(&key, b"v", LeaseId(0));
                }
            }
            txn.commit();
        }
        store
    }

    fn whole(view: &View, range: KeyRange<'_>, at: Revision) -> (Vec<Vec<u8>>, u64) {
        let hits = view.range(range.key, range.end, at, 0).unwrap();
        let keys = hits.hits().iter().map(|hit| hits.key(hit).to_vec()).collect();
        (keys, view.count(range.key, range.end, at).unwrap())
    }

    #[test]
    fn slices_of_a_range_and_of_a_count_add_up_to_the_whole() {
        let mut prng = Prng::new(5);
        let mut store = store(&mut prng);
        let view = store.publish();
        for _ in 0..400 {
            let (a, b) = (key(prng.below(700)), key(prng.below(700)));
            let end = if prng.chance(1, 4) { vec![0] } else { b };
            let range = KeyRange { key: &a, end: &end };
            let at = Revision(1 + prng.below(view.revision.0.cast_unsigned()).cast_signed());
            let pin = store.revision_pins().pin(at).unwrap();
            let (keys, count) = whole(&view, range, at);
            let point = ReadPoint::at(at);
            let (mut found, mut hits) = (Vec::new(), RangeHits::default());
            let mut from = a.clone();
            loop {
                let bounds = SliceBounds { keys: 1 + prng.index(50), leaves: 1 + prng.index(3) };
                let part = KeyRange { key: &from, end: &end };
                view.slice(part, (point, &pin), bounds, &mut hits).unwrap();
                assert!(hits.hits().len() <= bounds.keys);
                found.extend(hits.hits().iter().map(|hit| hits.key(hit).to_vec()));
                let Some(next) = hits.next() else { break };
                assert!(next > from.as_slice() || hits.hits().is_empty());
                from = next.to_vec();
            }
            assert!(found == keys, "{range:?} at {at}");
            let (mut counted, mut from) = (0, a.clone());
            loop {
                let part = KeyRange { key: &from, end: &end };
                let leaves = 1 + prng.index(3);
                let (some, next) = view.count_slice(part, (point, &pin), leaves).unwrap();
                counted += some;
                let Some(next) = next else { break };
                from = next;
            }
            assert_eq!(counted, count, "{range:?} at {at}");
            let limit = 1 + prng.index(40);
            let bounds = SliceBounds { keys: 100, leaves: 100 };
            assert!(view.range_within(range, at, limit, bounds, &mut hits).unwrap());
            assert_eq!(hits.hits().len(), keys.len().min(limit));
            assert_eq!(hits.count(), count);
            let limit = prng.index(3);
            let bounds = SliceBounds { keys: 1 + prng.index(50), leaves: 1 + prng.index(3) };
            if view.range_within(range, at, limit, bounds, &mut hits).unwrap() {
                let most = if limit == 0 { keys.len() } else { keys.len().min(limit) };
                assert_eq!((hits.hits().len(), hits.count()), (most, count), "limit {limit}");
            }
        }
    }

    #[test]
    fn a_range_whose_first_leaves_hold_only_deleted_keys_is_not_taken_for_empty() {
        let mut store = Store::in_memory(EngineConfig::default());
        let mut txn = store.begin(LogIndex(1), Term(1));
        for number in 0..700 {
            txn.put(&key(number), b"v", LeaseId(0));
        }
        txn.commit();
        let mut txn = store.begin(LogIndex(2), Term(1));
        for number in 0..700 {
            txn.delete(&key(number));
        }
        for number in 690..693 {
            txn.put(&key(number), b"w", LeaseId(0));
        }
        txn.commit();
        let view = store.publish();
        let range = KeyRange { key: b"key", end: b"l" };
        let mut hits = RangeHits::default();
        for leaves in 1..60 {
            let bounds = SliceBounds { keys: 100, leaves };
            if view.range_within(range, Revision(0), 0, bounds, &mut hits).unwrap() {
                assert_eq!((hits.hits().len(), hits.count()), (3, 3), "{leaves} leaves");
            }
        }
        let bounds = SliceBounds { keys: 100, leaves: 1000 };
        assert!(view.range_within(range, Revision(0), 0, bounds, &mut hits).unwrap());
    }

    #[test]
    fn a_moment_inside_a_transaction_stays_readable_in_later_views() {
        let mut prng = Prng::new(6);
        let mut store = store(&mut prng);
        let mut txn = store.begin(LogIndex(1000), Term(1));
        let mut moments = Vec::new();
        for number in 0..300 {
            let key = key(prng.below(700));
            if prng.chance(1, 3) {
                txn.delete(&key);
            } else {
                txn.put(&key, b"w", LeaseId(0));
            }
            if number % 10 == 0 {
                let hits = txn.range(b"key", b"l", Revision(0), 0).unwrap();
                let keys: Vec<Vec<u8>> =
                    hits.hits().iter().map(|hit| hits.key(hit).to_vec()).collect();
                moments.push((txn.read_point(), keys));
            }
        }
        let revision = txn.commit();
        store.compact(revision).unwrap();
        let pins = store.revision_pins().clone();
        let pin = pins.pin(moments[0].0.revision()).unwrap();
        for _ in 0..50 {
            store.maintain();
        }
        let view = store.publish();
        let mut hits = RangeHits::default();
        let range = KeyRange { key: b"key", end: b"l" };
        for (point, keys) in &moments {
            let bounds = SliceBounds { keys: 10_000, leaves: 10_000 };
            view.slice(range, (*point, &pin), bounds, &mut hits).unwrap();
            let found: Vec<Vec<u8>> =
                hits.hits().iter().map(|hit| hits.key(hit).to_vec()).collect();
            assert!(found == *keys, "{point:?}");
            let (count, next) = view.count_slice(range, (*point, &pin), 10_000).unwrap();
            assert_eq!((count, next), (keys.len() as u64, None));
        }
        pins.expire_below(revision);
        let bounds = SliceBounds { keys: 1, leaves: 1 };
        assert!(view.slice(range, (moments[0].0, &pin), bounds, &mut hits).is_err());
    }

    #[test]
    fn a_suspended_transaction_shows_nothing_and_can_be_undone() {
        let mut store = Store::in_memory(EngineConfig::default());
        let mut txn = store.begin(LogIndex(1), Term(1));
        txn.put(b"a", b"1", LeaseId(0));
        txn.commit();
        let mut txn = store.begin(LogIndex(2), Term(1));
        txn.put(b"b", b"2", LeaseId(0));
        txn.delete(b"a");
        let suspended = txn.suspend();
        let view = store.publish();
        assert_eq!(whole(&view, KeyRange { key: b"a", end: b"z" }, Revision(0)).0, [b"a"]);
        assert_eq!((view.revision, view.key_count()), (Revision(2), 1));
        assert!(store.freeze(1_000_000).is_none(), "no checkpoint takes half an entry");
        let mut txn = store.resume(suspended);
        txn.put(b"c", b"3", LeaseId(0));
        drop(txn);
        let view = store.publish();
        assert_eq!(whole(&view, KeyRange { key: b"a", end: b"z" }, Revision(0)).0, [b"a"]);
        assert!(store.freeze(1_000_000).is_some());
    }
}
