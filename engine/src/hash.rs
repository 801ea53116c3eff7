//! The hashes by which members of a cluster compare their data, equal to etcd's bit for bit.
//!
//! A thread that may take its time steps a hasher over newer and newer views; a revision pin keeps
//! what it has to read. The hash is a CRC32C over the rows of the key bucket in revision order, key
//! and value as stored (etcd `storage/mvcc/hash.go`). What a compaction has not yet removed
//! physically must never count: members remove at different times.

use std::sync::Arc;

use crate::bucket::{Bucket, Buckets};
use crate::error::EngineError;
use crate::page::{Fetch, PageSource};
use crate::pins::RevisionPin;
use crate::types::{REV_KEY_BYTES, RevKey, Revision, TOMBSTONE_MARK};
use crate::view::{Events, View};
use crate::wire::KvRef;

/// A finished hash over the revisions up to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvHash {
    /// CRC32C.
    pub hash: u32,
    /// The compaction it takes into account; -1 for none.
    pub compact_revision: Revision,
    /// The last revision in it.
    pub revision: Revision,
}

/// The part of the key bucket that is hashed. The small buckets are hashed, too, with
/// [`Store::hasher_of_everything`](crate::store::Store::hasher_of_everything).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashKind {
    /// As HashKV does.
    ByRevision,
    /// As a compaction at the revision does: etcd remembers it as the hash of that revision.
    ByCompaction,
}

/// What counts of the rows at or below the compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Not found out yet.
    Unknown,
    /// What a key's value was at this revision, unless it was deleted.
    ValuesAt(Revision),
    /// What a compaction at its revision leaves.
    LeftByCompaction,
}

/// A hash being computed. Invariant: all rows before `next` are in `crc`.
#[derive(Debug)]
pub struct KvHasher {
    kind: HashKind,
    revision: Revision,
    compact_revision: Revision,
    crc: u32,
    next: RevKey,
    started: bool,
    keep: Keep,
    pin: RevisionPin,
    /// For a hash of everything (the Hash call): the small buckets as they were.
    buckets: Option<Arc<Buckets>>,
}

/// etcd's buckets in the order of their names.
const BUCKETS_BY_NAME: [Bucket; 10] = [
    Bucket::Alarm,
    Bucket::Auth,
    Bucket::AuthRoles,
    Bucket::AuthUsers,
    Bucket::Cluster,
    Bucket::Key,
    Bucket::Lease,
    Bucket::Members,
    Bucket::MembersRemoved,
    Bucket::Meta,
];

/// Where the key bucket is among them.
const KEY_BUCKET_AT: usize = 5;

impl KvHasher {
    /// A hash of the revisions up to `revision`, with the compaction at `compact_revision` done and
    /// none after it. `pin` is on that revision, or on 0 without a compaction, and came before any
    /// later compaction.
    pub fn new(
        kind: HashKind,
        revision: Revision,
        compact_revision: Revision,
        pin: RevisionPin,
    ) -> Self {
        let crc = crc32c::crc32c(Bucket::Key.name().as_bytes());
        let (next, keep) = (RevKey::default(), Keep::Unknown);
        let buckets = None;
        Self { kind, revision, compact_revision, crc, next, started: false, keep, pin, buckets }
    }

    /// A hash of the revisions up to `revision` and of these small buckets.
    pub(crate) fn of_everything(
        revision: Revision,
        compact_revision: Revision,
        pin: RevisionPin,
        buckets: Arc<Buckets>,
    ) -> Self {
        let hasher = Self::new(HashKind::ByRevision, revision, compact_revision, pin);
        Self { crc: 0, keep: Keep::LeftByCompaction, buckets: Some(buckets), ..hasher }
    }

    /// The last revision that is hashed. A view that is stepped over must have it.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// False if a compaction has removed some of what is to be hashed because the pin came too
    /// late: then the hash must be begun anew.
    pub fn is_sound(&self, view: &View) -> bool {
        view.has_all_of(&self.pin)
    }

    /// Looks at up to `rows` further rows; the hash once there are none. After `Pending` the same
    /// call is made again. `view` has the revision that is hashed, and is not older than the pin.
    ///
    /// # Errors
    /// When a page is damaged or cannot be read.
    pub fn step(
        &mut self,
        view: &View,
        pages: &mut dyn PageSource,
        rows: usize,
    ) -> Result<Fetch<Option<KvHash>>, EngineError> {
        debug_assert!(view.revision >= self.revision, "rows would be missing");
        if !self.started && self.buckets.is_some() {
            self.add_buckets(0, KEY_BUCKET_AT);
            self.add(Bucket::Key.name().as_bytes());
        }
        self.started = true;
        if self.keep == Keep::Unknown {
            match self.find_keep(view, pages)? {
                Fetch::Ready(keep) => self.keep = keep,
                Fetch::Pending(ticket) => return Ok(Fetch::Pending(ticket)),
            }
        }
        let mut events = Events::raw(view, self.next, self.revision);
        for _ in 0..rows {
            let (at, tombstone, kv) = match events.next(pages)? {
                Fetch::Ready(Some(event)) => (event.at, event.tombstone, event.kv),
                Fetch::Ready(None) => {
                    self.add_buckets(KEY_BUCKET_AT + 1, BUCKETS_BY_NAME.len());
                    let (hash, compact_revision) = (self.crc, self.compact_revision);
                    let revision = self.revision;
                    return Ok(Fetch::Ready(Some(KvHash { hash, compact_revision, revision })));
                }
                Fetch::Pending(ticket) => return Ok(Fetch::Pending(ticket)),
            };
            if self.counts(view, at, tombstone, kv) {
                let mut key = [TOMBSTONE_MARK; REV_KEY_BYTES + 1];
                key[..REV_KEY_BYTES].copy_from_slice(&at.to_row_key());
                self.crc =
                    crc32c::crc32c_append(self.crc, &key[..REV_KEY_BYTES + usize::from(tombstone)]);
                self.crc = crc32c::crc32c_append(self.crc, kv);
            }
            self.next = RevKey { main: at.main, sub: at.sub + 1 };
        }
        Ok(Fetch::Ready(None))
    }

    fn counts(&self, view: &View, at: RevKey, tombstone: bool, kv: &[u8]) -> bool {
        if at.main == self.compact_revision && tombstone && self.buckets.is_none() {
            return false;
        }
        if at.main > self.compact_revision {
            return true;
        }
        let key = KvRef::parse(kv).map_or(&[][..], |kv| kv.key);
        match self.keep {
            Keep::ValuesAt(revision) => !tombstone && view.index.keeps(key, at, revision),
            Keep::LeftByCompaction | Keep::Unknown => {
                view.index.keeps(key, at, self.compact_revision)
            }
        }
    }

    /// If nothing at all would be kept at the revision, etcd takes that for "no compaction" and
    /// hashes whatever rows there are: those that the compaction has left.
    fn find_keep(
        &self,
        view: &View,
        pages: &mut dyn PageSource,
    ) -> Result<Fetch<Keep>, EngineError> {
        let (all, revision) = (crate::view::bounds_of(b"\0", b"\0"), self.revision);
        let mut hits = crate::view::RangeHits::default();
        hits.fill(&view.index, all, b"\0", revision, 1);
        if !hits.hits().is_empty() {
            return Ok(Fetch::Ready(Keep::ValuesAt(revision)));
        }
        if self.kind == HashKind::ByCompaction {
            // A compaction keeps a deletion of its very revision.
            let mut events = Events::raw(view, RevKey::first(revision), revision);
            loop {
                match events.next(pages)? {
                    Fetch::Ready(Some(event)) if event.tombstone => {
                        return Ok(Fetch::Ready(Keep::ValuesAt(revision)));
                    }
                    Fetch::Ready(Some(_)) => {}
                    Fetch::Ready(None) => break,
                    Fetch::Pending(ticket) => return Ok(Fetch::Pending(ticket)),
                }
            }
        }
        Ok(Fetch::Ready(Keep::LeftByCompaction))
    }

    fn add_buckets(&mut self, from: usize, to: usize) {
        let Some(buckets) = &self.buckets else { return };
        for bucket in &BUCKETS_BY_NAME[from..to] {
            self.crc = crc32c::crc32c_append(self.crc, bucket.name().as_bytes());
            for (key, value) in buckets.iter_from(*bucket, b"") {
                self.crc = crc32c::crc32c_append(self.crc, key);
                self.crc = crc32c::crc32c_append(self.crc, value);
            }
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::page::NoPages;
    use crate::store::{EngineConfig, Store};
    use crate::testing::prng::Prng;
    use crate::types::{LeaseId, LogIndex, Term};

    /// etcd's algorithm over all rows ever written, one by one.
    struct Reference {
        rows: BTreeMap<RevKey, (Vec<u8>, bool, Vec<u8>)>,
    }

    impl Reference {
        /// What etcd's keyIndex.keep (or compact, `with_deletions`) leaves at a revision.
        fn kept(&self, at: Revision, with_deletions: bool) -> Vec<RevKey> {
            let mut latest: BTreeMap<&[u8], (RevKey, bool)> = BTreeMap::new();
            for (row, (key, tombstone, _)) in self.rows.range(..=RevKey::last(at)) {
                latest.insert(key, (*row, *tombstone));
            }
            let kept = latest
                .values()
                .filter(|(row, tombstone)| !tombstone || with_deletions && row.main == at);
            kept.map(|(row, _)| *row).collect()
        }

        fn hash(&self, kind: HashKind, compact: Revision, revision: Revision) -> u32 {
            let keep = self.kept(revision, kind == HashKind::ByCompaction);
            let left = self.kept(compact, true);
            let mut crc = crc32c::crc32c(b"key");
            for (row, (_, tombstone, kv)) in self.rows.range(..=RevKey::last(revision)) {
                let exists = row.main > compact || left.contains(row);
                let below = row.main <= compact && !keep.is_empty();
                if !exists || below && !keep.contains(row) || row.main == compact && *tombstone {
                    continue;
                }
                let mut key = row.to_row_key().to_vec();
                key.extend(tombstone.then_some(b't'));
                crc = crc32c::crc32c_append(crc, &key);
                crc = crc32c::crc32c_append(crc, kv);
            }
            crc
        }
    }

    fn finish(store: &mut Store, mut hasher: KvHasher) -> u32 {
        let view = store.publish();
        loop {
            match hasher.step(&view, &mut NoPages, 3).unwrap() {
                Fetch::Ready(Some(hash)) => return hash.hash,
                Fetch::Ready(None) => {}
                Fetch::Pending(_) => panic!("everything is in memory"),
            }
        }
    }

    #[test]
    fn hashes_are_those_of_etcds_algorithm_over_random_histories() {
        for seed in 0..60 {
            let mut prng = Prng::new(seed);
            let mut store = Store::in_memory(EngineConfig::default());
            let mut reference = Reference { rows: BTreeMap::new() };
            let (mut index, mut compacted) = (0, Revision(-1));
            for _ in 0..120 {
                index += 1;
                let mut txn = store.begin(LogIndex(index), Term(1));
                let delete_all = prng.chance(1, 25);
                let key = vec![b'a' + u8::try_from(prng.below(4)).unwrap()];
                if delete_all {
                    txn.delete_range(b"\0", b"\0");
                } else if prng.chance(1, 3) {
                    txn.delete(&key);
                } else {
                    txn.put(&key, b"value", LeaseId(0));
                }
                txn.commit();
                let view = store.publish();
                let newest = view.revision;
                let mut events = Events::raw(&view, RevKey::first(newest), newest);
                while let Ok(Fetch::Ready(Some(event))) = events.next(&mut NoPages) {
                    let key = KvRef::parse(event.kv).unwrap().key.to_vec();
                    reference.rows.insert(event.at, (key, event.tombstone, event.kv.to_vec()));
                }
                if prng.chance(1, 10) && newest > compacted {
                    let span = u64::try_from(newest.0 - compacted.0.max(0)).unwrap();
                    let to = Revision(compacted.0.max(0) + 1 + prng.below(span).cast_signed());
                    let pin = store.revision_pins().pin(Revision(compacted.0.max(0))).unwrap();
                    let kind = HashKind::ByCompaction;
                    let hasher = KvHasher::new(kind, to, compacted, pin);
                    store.compact(to).unwrap();
                    let expected = reference.hash(kind, compacted, to);
                    assert_eq!(finish(&mut store, hasher), expected, "seed {seed}, {to}");
                    compacted = to;
                }
                let revision = Revision(
                    compacted.0.max(1)
                        + prng
                            .below(u64::try_from(newest.0 - compacted.0.max(1)).unwrap() + 1)
                            .cast_signed(),
                );
                let pin = store.revision_pins().pin(Revision(compacted.0.max(0))).unwrap();
                let hasher = KvHasher::new(HashKind::ByRevision, revision, compacted, pin);
                let expected = reference.hash(HashKind::ByRevision, compacted, revision);
                assert_eq!(finish(&mut store, hasher), expected, "seed {seed}, {revision}");
            }
        }
    }

    #[test]
    fn the_hash_of_an_empty_store_is_that_of_the_buckets_name() {
        let mut store = Store::in_memory(EngineConfig::default());
        let pin = store.revision_pins().pin(Revision(0)).unwrap();
        let hasher = KvHasher::new(HashKind::ByRevision, Revision(1), Revision(-1), pin);
        assert_eq!(finish(&mut store, hasher), crc32c::crc32c(b"key"));
    }
}
