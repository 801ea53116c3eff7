//! The effect of one raft entry, all or nothing.
//!
//! The replica's apply makes one per entry. Its reads see its own writes; dropping it without
//! [`Txn::commit`] undoes them, which is what apply does when a value it needs is still on its way
//! from a page. It must never be visible to readers before it is committed and published.

use std::sync::Arc;

use super::Store;
use crate::bucket::Bucket;
use crate::bucket::changes::{Change, Changes};
use crate::error::{EngineError, RangeError};
use crate::index::State;
use crate::limits::ROW_BYTES_MAX;
use crate::page::{Fetch, PageSource};
use crate::table::Mark;
use crate::types::{LeaseId, LogIndex, RevKey, Revision, Term};
use crate::view::{
    self, KeyRange, RangeHits, ReadPoint, SliceBounds, check_revision, value_in_pages,
};
use crate::wire::KvRef;

/// What a put did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutOutcome {
    /// The change it made.
    pub at: RevKey,
    /// The change that wrote the value before, if the key existed.
    pub prev: Option<RevKey>,
    /// The revision that created the key.
    pub create: Revision,
    /// Changes of the key since then, this one included.
    pub version: u64,
}

/// An open transaction. Invariant: `undo.previous` has one element per change, in order.
#[derive(Debug)]
pub struct Txn<'s> {
    store: &'s mut Store,
    index: LogIndex,
    term: Term,
    main: Revision,
    mark: Mark,
    /// How many changes of small buckets there were before.
    bucket_mark: usize,
    conf_state: Option<Arc<[u8]>>,
    committed: bool,
}

/// A transaction between two slices of its work: the store holds its changes, shows them to
/// nobody, and takes no other until it is resumed. Dropping it instead leaves the store unusable
/// for further entries, which suits a member that stops.
#[derive(Debug)]
#[must_use = "the store takes no other transaction before this one is resumed"]
pub struct SuspendedTxn {
    index: LogIndex,
    term: Term,
    main: Revision,
    mark: Mark,
    bucket_mark: usize,
    conf_state: Option<Arc<[u8]>>,
}

/// Memory that transactions use one after the other.
#[derive(Debug, Default)]
pub(super) struct Undo {
    previous: Vec<Option<State>>,
    /// What makes the rows of small buckets what they were.
    buckets: Changes,
}

impl<'s> Txn<'s> {
    pub(super) fn new(store: &'s mut Store, index: LogIndex, term: Term) -> Self {
        store.undo.previous.clear();
        store.undo.buckets.truncate(0);
        let (main, mark) = (Revision(store.revision.0 + 1), store.tables.mark());
        let bucket_mark = store.bucket_changes.len();
        Self { store, index, term, main, mark, bucket_mark, conf_state: None, committed: false }
    }

    pub(super) fn resumed(store: &'s mut Store, suspended: SuspendedTxn) -> Self {
        let SuspendedTxn { index, term, main, mark, bucket_mark, conf_state } = suspended;
        Self { store, index, term, main, mark, bucket_mark, conf_state, committed: false }
    }

    /// Sets it aside, its changes kept, so that other work may be done between two slices;
    /// [`Store::resume`] goes on.
    pub fn suspend(mut self) -> SuspendedTxn {
        self.store.suspended = Some(self.mark);
        // Its changes stay: see `drop`.
        self.committed = true;
        SuspendedTxn {
            index: self.index,
            term: self.term,
            main: self.main,
            mark: self.mark,
            bucket_mark: self.bucket_mark,
            conf_state: self.conf_state.take(),
        }
    }

    /// Writes `value` under `key`.
    ///
    /// # Panics
    /// If both together exceed [`ROW_BYTES_MAX`], far above any limit on requests.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: LeaseId) -> PutOutcome {
        assert!(key.len() + value.len() < ROW_BYTES_MAX - 128, "requests are limited before");
        let at = self.next_change();
        let mut kv = KvRef { key, value, lease, mod_revision: at.main, ..KvRef::default() };
        let (mut len_bytes, mut prev, mut version) = (0, None, 1);
        let previous = self.store.index.update(key, |current| {
            let current = current.filter(|state| !state.is_tombstone());
            prev = current.map(|state| state.at());
            kv.create_revision = current.map_or(at.main, |state| state.create());
            version = current.map_or(1, |state| state.version() + 1);
            kv.version = version.cast_signed();
            len_bytes = kv.encoded_len();
            let len = u32::try_from(len_bytes).expect("bounded by ROW_BYTES_MAX");
            State::put(at, kv.create_revision, version, len)
        });
        self.store.tables.push(at, prev, false, len_bytes, |bytes| kv.encode_into(bytes));
        self.store.undo.previous.push(previous);
        PutOutcome { at, prev, create: kv.create_revision, version }
    }

    /// Deletes `key`; returns the change that wrote its value, or `None` if it did not exist.
    pub fn delete(&mut self, key: &[u8]) -> Option<RevKey> {
        let prev = self.store.index.get(key, self.main)?.at();
        let at = self.next_change();
        let kv = KvRef { key, ..KvRef::default() };
        let len_bytes = kv.encoded_len();
        let len = u32::try_from(len_bytes).expect("the key was put before");
        let previous = self.store.index.update(key, |_| State::tombstone(at, len));
        self.store.tables.push(at, Some(prev), true, len_bytes, |bytes| kv.encode_into(bytes));
        self.store.undo.previous.push(previous);
        Some(prev)
    }

    /// Deletes the keys from `key` to `end` (as in [`Txn::range`]); returns what they were.
    pub fn delete_range(&mut self, key: &[u8], end: &[u8]) -> RangeHits {
        let mut hits = RangeHits::default();
        hits.fill(&self.store.index, view::bounds_of(key, end), key, self.main, 0);
        for hit in hits.hits() {
            self.delete(hits.key(hit));
        }
        hits
    }

    /// Like [`View::range`](crate::view::View::range), with this transaction's own changes; they
    /// are also what revision 0 shows.
    pub fn range(
        &self,
        key: &[u8],
        end: &[u8],
        at: Revision,
        limit: usize,
    ) -> Result<RangeHits, RangeError> {
        let at = check_revision(at, self.revision(), self.store.compact_revision)?;
        let mut hits = RangeHits::default();
        hits.fill(&self.store.index, view::bounds_of(key, end), key, at, limit);
        Ok(hits)
    }

    /// A slice of [`Txn::range`] at the present state; [`RangeHits::next`] says where to go on.
    pub fn slice(&self, range: KeyRange<'_>, bounds: SliceBounds, hits: &mut RangeHits) {
        hits.fill_slice(&self.store.index, range, ReadPoint::at(self.main), bounds);
    }

    /// As [`View::range_within`](crate::view::View::range_within), with this transaction's own
    /// changes.
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
        let at = check_revision(at, self.revision(), self.store.compact_revision)?;
        Ok(hits.fill_within(&self.store.index, range, at, limit, bounds))
    }

    /// As [`View::count_within`](crate::view::View::count_within), with this transaction's own
    /// changes.
    ///
    /// # Errors
    /// The revision is compacted or in the future.
    pub fn count_within(
        &self,
        range: KeyRange<'_>,
        at: Revision,
        leaves_max: usize,
    ) -> Result<Option<u64>, RangeError> {
        let at = check_revision(at, self.revision(), self.store.compact_revision)?;
        Ok(view::count_within(&self.store.index, range, at, leaves_max))
    }

    /// The state that a read sees now, as later views show it: with this transaction's changes so
    /// far and without those to come.
    pub fn read_point(&self) -> ReadPoint {
        match self.changes() {
            0 => ReadPoint::at(self.store.revision),
            _ => ReadPoint::before(self.next_change()),
        }
    }

    /// Where what long answers refer to is pinned.
    pub fn revision_pins(&self) -> &crate::pins::RevisionPins {
        &self.store.revision_pins
    }

    /// The row of a change of this transaction, by its number.
    ///
    /// # Panics
    /// If there is no such change.
    pub fn row(&self, change: usize) -> KvRef<'_> {
        let sub = u32::try_from(change).expect("memory ends before 2^32 changes");
        self.store.change(RevKey { main: self.main, sub })
    }

    /// How many keys [`Txn::range`] would find without a limit.
    pub fn count(&self, key: &[u8], end: &[u8], at: Revision) -> Result<u64, RangeError> {
        let at = check_revision(at, self.revision(), self.store.compact_revision)?;
        Ok(view::count(&self.store.index, view::bounds_of(key, end), key, at))
    }

    /// The KeyValue of a revision that a range or a change of this transaction returned.
    pub fn value<'a>(
        &'a self,
        at: RevKey,
        pages: &'a mut dyn PageSource,
    ) -> Result<Fetch<&'a [u8]>, EngineError> {
        if let Some((_, bytes)) = self.store.tables.find(at) {
            return Ok(Fetch::Ready(bytes));
        }
        value_in_pages(self.store.tree.root, at, pages)
    }

    /// The value of a row of a small bucket.
    pub fn bucket_get(&self, bucket: Bucket, key: &[u8]) -> Option<&[u8]> {
        self.store.buckets.get(bucket, key)
    }

    /// Writes a row of a small bucket. Does not count as a change of the key space.
    ///
    /// # Panics
    /// For [`Bucket::Key`], whose rows are written by [`Txn::put`] and [`Txn::delete`].
    pub fn bucket_put(&mut self, bucket: Bucket, key: &[u8], value: &[u8]) {
        assert!(bucket != Bucket::Key, "rows of the key bucket are written by put and delete");
        let Store { buckets, bucket_changes, undo, .. } = &mut *self.store;
        let known = undo.buckets.len();
        let replaced = |before: &[u8]| undo.buckets.push(bucket, key, Some(before));
        Arc::make_mut(buckets).put(bucket, key, value, replaced);
        if undo.buckets.len() == known {
            undo.buckets.push(bucket, key, None);
        }
        bucket_changes.push(bucket, key, Some(value));
    }

    /// Removes a row of a small bucket; false if there is none.
    ///
    /// # Panics
    /// For [`Bucket::Key`].
    pub fn bucket_delete(&mut self, bucket: Bucket, key: &[u8]) -> bool {
        assert!(bucket != Bucket::Key, "rows of the key bucket are written by put and delete");
        let Store { buckets, bucket_changes, undo, .. } = &mut *self.store;
        let removed = |before: &[u8]| undo.buckets.push(bucket, key, Some(before));
        let existed = Arc::make_mut(buckets).delete(bucket, key, removed);
        if existed {
            bucket_changes.push(bucket, key, None);
        }
        existed
    }

    /// The rows of the key space written so far, in order; of a deletion's only the key is set.
    pub fn rows(&self) -> impl Iterator<Item = KvRef<'_>> {
        let rows = self.store.tables.rows_since(self.mark);
        rows.map(|(_, bytes)| KvRef::parse(bytes).expect("it was encoded by this transaction"))
    }

    /// Sets what raft calls the configuration; see [`Store::set_conf_state`].
    pub fn set_conf_state(&mut self, conf_state: &[u8]) {
        self.conf_state = Some(conf_state.into());
    }

    /// Changes of the key space so far.
    pub fn changes(&self) -> usize {
        self.store.undo.previous.len()
    }

    /// What this transaction's reads see as current: its own revision once it changed something.
    pub fn revision(&self) -> Revision {
        if self.changes() > 0 { self.main } else { self.store.revision }
    }

    /// Revisions below cannot be read.
    pub fn compact_revision(&self) -> Revision {
        self.store.compact_revision
    }

    /// Keeps the effect; returns the store's revision with it.
    pub fn commit(mut self) -> Revision {
        self.committed = true;
        let store = &mut *self.store;
        assert!(self.main > store.revision, "a transaction makes the next revision");
        if !store.undo.previous.is_empty() {
            store.revision = self.main;
            store.checkpoint.rows += store.undo.previous.len() as u64;
        }
        store.checkpoint.other |= !store.undo.buckets.is_empty();
        if let Some(conf_state) = self.conf_state.take() {
            store.set_conf_state(&conf_state);
        }
        store.advance(self.index, self.term);
        store.revision
    }

    fn next_change(&self) -> RevKey {
        let sub = u32::try_from(self.changes()).expect("memory ends before 2^32 changes");
        RevKey { main: self.main, sub }
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let store = &mut *self.store;
        for at in (0..store.undo.buckets.len()).rev() {
            let Change { bucket, key, value } = store.undo.buckets.get(at);
            let buckets = Arc::make_mut(&mut store.buckets);
            match value {
                Some(value) => buckets.put(bucket, key, value, |_| {}),
                None => drop(buckets.delete(bucket, key, |_| {})),
            }
        }
        store.bucket_changes.truncate(self.bucket_mark);
        let mut rows = store.tables.rows_since(self.mark).rev();
        while let Some(previous) = store.undo.previous.pop() {
            let (_, bytes) = rows.next().expect("every change has a row");
            let kv = KvRef::parse(bytes).expect("it was encoded by this transaction");
            store.index.revert(kv.key, previous);
        }
        drop(rows);
        store.tables.roll_back(self.mark);
    }
}
