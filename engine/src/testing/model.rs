//! What the store must be equivalent to: a plain map from keys to their whole histories.
//!
//! The fuzz and crash tests apply every entry to both and compare everything that can be read. It
//! must stay too simple to be wrong.

use std::collections::BTreeMap;

use super::prng::Prng;
use crate::error::EngineError;
use crate::page::{Fetch, PageSource};
use crate::store::Store;
use crate::types::{LeaseId, LogIndex, RevKey, Revision, Term};
use crate::view::View;
use crate::wire::KvRef;
use crate::{bucket::Bucket, store::Txn};

/// A change of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its revision.
    pub at: RevKey,
    /// `None` for a deletion.
    pub value: Option<Value>,
}

/// What a put left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The value.
    pub value: Vec<u8>,
    /// The revision that created the key.
    pub create: Revision,
    /// Changes since.
    pub version: i64,
    /// The lease.
    pub lease: LeaseId,
}

/// One operation of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
        /// The lease.
        lease: LeaseId,
    },
    /// Deletes a range of keys, ends as in etcd.
    DeleteRange {
        /// First key.
        key: Vec<u8>,
        /// End.
        end: Vec<u8>,
    },
    /// Writes or removes a row of the lease bucket.
    Bucket {
        /// Row key.
        key: Vec<u8>,
        /// New value.
        value: Option<Vec<u8>>,
    },
}

/// One raft entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A transaction.
    Txn(Vec<Op>),
    /// A compaction.
    Compact(Revision),
}

/// The state after some entries. Never forgets, so it answers for compacted revisions too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    keys: BTreeMap<Vec<u8>, Vec<Change>>,
    buckets: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Entries applied.
    pub applied: u64,
    /// Revisions made.
    pub revisions: i64,
    /// The compact revision; 0 for none.
    pub compacted: i64,
}

impl Model {
    /// The newest revision.
    pub fn revision(&self) -> Revision {
        Revision(1 + self.revisions)
    }

    /// Applies the next entry.
    pub fn apply(&mut self, entry: &Entry) {
        self.applied += 1;
        let ops = match entry {
            Entry::Compact(revision) => {
                if revision.0 > self.compacted && *revision <= self.revision() {
                    self.compacted = revision.0;
                }
                return;
            }
            Entry::Txn(ops) => ops,
        };
        let main = Revision(self.revision().0 + 1);
        let mut sub = 0;
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    let at = RevKey { main, sub };
                    sub += 1;
                    let before = self.get(key, main).map(|(_, value)| value.clone());
                    let create = before.as_ref().map_or(main, |before| before.create);
                    let version = before.map_or(1, |before| before.version + 1);
                    let value = Value { value: value.clone(), create, version, lease: *lease };
                    self.push(key, Change { at, value: Some(value) });
                }
                Op::DeleteRange { key, end } => {
                    let found: Vec<_> =
                        self.range(key, end, main).map(|(key, ..)| key.clone()).collect();
                    for key in found {
                        self.push(&key, Change { at: RevKey { main, sub }, value: None });
                        sub += 1;
                    }
                }
                Op::Bucket { key, value: Some(value) } => {
                    self.buckets.insert(key.clone(), value.clone());
                }
                Op::Bucket { key, value: None } => {
                    self.buckets.remove(key);
                }
            }
        }
        self.revisions += i64::from(sub > 0);
    }

    /// Compares all that can be read from the store, its small buckets included.
    ///
    /// # Panics
    /// On any difference.
    pub fn assert_store(&self, store: &mut Store, pages: &mut dyn PageSource, prng: &mut Prng) {
        let rows: Vec<_> = store.bucket_iter(Bucket::Lease, b"").collect();
        let expected: Vec<_> = self.buckets.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        assert_eq!(rows, expected, "lease bucket");
        self.assert_view(&store.publish(), pages, prng);
    }

    /// Compares all that can be read from `view` at its compact revision, its newest one, and one
    /// in between, as well as the events.
    ///
    /// # Panics
    /// On any difference.
    pub fn assert_view(&self, view: &View, pages: &mut dyn PageSource, prng: &mut Prng) {
        assert_eq!(view.revision, self.revision(), "revision");
        assert_eq!(view.applied, LogIndex(self.applied), "applied");
        assert_eq!(view.compact_revision.0.max(0), self.compacted, "compact revision");
        let oldest = self.compacted.max(1);
        let span = (self.revision().0 - oldest + 1).cast_unsigned();
        let middle = Revision(oldest + prng.below(span).cast_signed());
        for at in [Revision(oldest), middle, self.revision()] {
            let (key, end) = random_range(prng);
            let limit = prng.index(20);
            self.assert_range(view, pages, (&key, &end), at, limit);
        }
        self.assert_events(view, pages, middle);
    }

    fn assert_range(
        &self,
        view: &View,
        pages: &mut dyn PageSource,
        (key, end): (&[u8], &[u8]),
        at: Revision,
        limit: usize,
    ) {
        let hits = view.range(key, end, at, limit).unwrap();
        let expected: Vec<_> = self.range(key, end, at).collect();
        assert_eq!(hits.count(), expected.len() as u64, "count at {at}");
        assert_eq!(view.count(key, end, at), Ok(hits.count()));
        let shown = if limit == 0 { expected.len() } else { limit.min(expected.len()) };
        assert_eq!(hits.hits().len(), shown, "limit {limit}");
        for (hit, (key, change_at, value)) in hits.hits().iter().zip(&expected) {
            assert_eq!((hits.key(hit), hit.modified), (&key[..], *change_at));
            assert_eq!((hit.create, hit.version), (value.create, value.version.cast_unsigned()));
            let bytes = ready(|| match view.value(hit.modified, pages)? {
                Fetch::Ready(bytes) => Ok(Some(bytes.to_vec())),
                Fetch::Pending(_) => Ok(None),
            });
            assert_eq!(bytes.len(), hit.len_bytes as usize);
            let expected = KvRef {
                key,
                create_revision: value.create,
                mod_revision: change_at.main,
                version: value.version,
                value: &value.value,
                lease: value.lease,
            };
            assert_eq!(KvRef::parse(&bytes), Ok(expected));
        }
    }

    fn assert_events(&self, view: &View, pages: &mut dyn PageSource, from: Revision) {
        let mut expected: Vec<_> = self
            .keys
            .iter()
            .flat_map(|(key, changes)| changes.iter().map(move |change| (change.at, key, change)))
            .filter(|(at, ..)| at.main > from)
            .collect();
        expected.sort_by_key(|(at, ..)| *at);
        let mut expected = expected.into_iter();
        let mut events = view.events(from, view.revision, None).unwrap();
        loop {
            let event = ready(|| match events.next(pages)? {
                Fetch::Ready(event) => Ok(Some(event.map(|event| {
                    let kv = KvRef::parse(event.kv).unwrap();
                    (event.at, kv.key.to_vec(), event.tombstone, event.previous)
                }))),
                Fetch::Pending(_) => Ok(None),
            });
            let Some((at, key, tombstone, previous)) = event else { break };
            let (expected_at, expected_key, change) = expected.next().unwrap();
            assert_eq!((at, &key), (expected_at, expected_key));
            assert_eq!(tombstone, change.value.is_none());
            let before = self.keys[&key].iter().rev().find(|change| change.at.main < at.main);
            // As in etcd: what the key had before the transaction, and nothing for a new key.
            let creates = change.value.as_ref().is_some_and(|value| value.create == at.main);
            let before =
                before.filter(|change| change.value.is_some() && !creates).map(|change| change.at);
            // Compaction may have taken the previous value, but only below its revision, and
            // what is named must be there.
            if previous.is_some() || before.is_some_and(|at| at.main.0 >= self.compacted) {
                assert_eq!(previous, before, "previous of {at}");
            }
            if let Some(previous) = previous {
                let value = ready(|| match view.value(previous, pages)? {
                    Fetch::Ready(bytes) => Ok(Some(bytes.to_vec())),
                    Fetch::Pending(_) => Ok(None),
                });
                assert_eq!(KvRef::parse(&value).unwrap().key, key);
            }
        }
        assert_eq!(expected.next(), None, "events are missing");
    }

    fn push(&mut self, key: &[u8], change: Change) {
        self.keys.entry(key.to_vec()).or_default().push(change);
    }

    fn get(&self, key: &[u8], at: Revision) -> Option<(RevKey, &Value)> {
        let change = self.keys.get(key)?.iter().rev().find(|change| change.at.main <= at)?;
        Some((change.at, change.value.as_ref()?))
    }

    fn range<'a>(
        &'a self,
        key: &'a [u8],
        end: &'a [u8],
        at: Revision,
    ) -> impl Iterator<Item = (&'a Vec<u8>, RevKey, &'a Value)> {
        let inside = move |other: &[u8]| match end {
            [] => other == key,
            [0] => other >= key,
            _ => other >= key && other < end,
        };
        let keys = self.keys.keys().filter(move |key| inside(key));
        keys.filter_map(move |key| self.get(key, at).map(|(at, value)| (key, at, value)))
    }
}

/// Calls until the page is there; a test's source never stays pending.
fn ready<T>(mut call: impl FnMut() -> Result<Option<T>, EngineError>) -> T {
    for _ in 0..1_000 {
        if let Some(value) = call().unwrap() {
            return value;
        }
    }
    panic!("pages stay pending");
}

/// Applies `entry` as the next one.
pub fn apply(store: &mut Store, entry: &Entry) {
    let (index, term) = (LogIndex(store.applied().0.0 + 1), Term(3));
    match entry {
        Entry::Txn(ops) => {
            let mut txn = store.begin(index, term);
            apply_ops(&mut txn, ops);
            txn.commit();
        }
        Entry::Compact(revision) => {
            // A refused compaction is an entry without effect.
            let _ = store.compact(*revision);
            store.skip(index, term);
        }
    }
}

/// Makes the changes of a transaction without committing it.
pub fn apply_ops(txn: &mut Txn<'_>, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Put { key, value, lease } => drop(txn.put(key, value, *lease)),
            Op::DeleteRange { key, end } => drop(txn.delete_range(key, end)),
            Op::Bucket { key, value: Some(value) } => txn.bucket_put(Bucket::Lease, key, value),
            Op::Bucket { key, value: None } => drop(txn.bucket_delete(Bucket::Lease, key)),
        }
    }
}

/// An entry that touches keys that others touch too.
pub fn random_entry(prng: &mut Prng, model: &Model) -> Entry {
    if prng.chance(1, 40) {
        let span = (model.revision().0 - model.compacted + 2).cast_unsigned();
        return Entry::Compact(Revision(model.compacted + prng.below(span).cast_signed()));
    }
    let count = if prng.chance(1, 10) { prng.below(8) } else { 1 };
    Entry::Txn((0..count).map(|_| random_op(prng)).collect())
}

fn random_op(prng: &mut Prng) -> Op {
    match prng.below(10) {
        0 => {
            let (key, end) = random_range(prng);
            // Large deletions are rare, or nothing would ever grow.
            let end = if prng.chance(9, 10) { Vec::new() } else { end };
            Op::DeleteRange { key, end }
        }
        1 => {
            let value = prng.chance(2, 3).then(|| random_bytes(prng, 60));
            Op::Bucket { key: prng.below(50).to_be_bytes().to_vec(), value }
        }
        _ => {
            let len = if prng.chance(1, 60) { 9_000 } else { 200 };
            let value = random_bytes(prng, len);
            Op::Put { key: random_key(prng), value, lease: LeaseId(prng.below(3).cast_signed()) }
        }
    }
}

/// A range that is often empty, often one key, and sometimes everything.
pub fn random_range(prng: &mut Prng) -> (Vec<u8>, Vec<u8>) {
    match prng.below(5) {
        0 => (vec![0], vec![0]),
        1 => (random_key(prng), vec![0]),
        2 => (random_key(prng), Vec::new()),
        _ => (random_key(prng), random_key(prng)),
    }
}

fn random_key(prng: &mut Prng) -> Vec<u8> {
    match prng.below(4) {
        0 => b"hot".to_vec(),
        1 => format!("/registry/pods/{}", prng.below(200)).into_bytes(),
        2 => format!("/registry/leases/{}", prng.below(20)).into_bytes(),
        _ => prng.below(300).to_be_bytes()[6..].to_vec(),
    }
}

fn random_bytes(prng: &mut Prng, below: usize) -> Vec<u8> {
    let mut bytes = vec![0; prng.index(below)];
    prng.fill(&mut bytes);
    bytes
}
