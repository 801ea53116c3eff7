//! All leases, and all keys of a lease, gathered over many turns.
//!
//! Part of the lessor. What comes out is what there was when the walk began, whatever changes
//! before it ends: the lessor tells a walk what goes away before the walk was there, and what has
//! come since is left out. A step looks at a bounded number of leases or keys.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::sharded::{SHARDS, Shard};
use super::{Key, Keys, Lease, Lessor, Reign};
use crate::kv::pieces::Pieces;
use crate::limits;
use crate::wire::{int_len, write_int64, write_len};

/// A lease with what it is ordered by.
type Place = (u64, i64);

/// A walk over all leases. They are gathered in sorted runs, and these are merged.
#[derive(Debug)]
pub(super) struct Listing {
    /// The next part of the map to be looked at.
    shard: usize,
    /// Leases born later are left out.
    births: u64,
    /// Revoked before the walk was at their part.
    gone: Vec<Place>,
    runs: Vec<std::vec::IntoIter<Place>>,
    /// The first of each run that is not merged.
    first: BinaryHeap<Reverse<(Place, usize)>>,
    pieces: Pieces,
}

impl Listing {
    fn new(births: u64) -> Self {
        Self {
            shard: 0,
            births,
            gone: Vec::new(),
            runs: Vec::new(),
            first: BinaryHeap::new(),
            pieces: Pieces::default(),
        }
    }

    /// A lease is revoked.
    pub(super) fn revoked(&mut self, id: i64, lease: &Lease, reign: &Reign) {
        if id.shard() >= self.shard && lease.born < self.births {
            self.gone.push((lease.deadline_ms(reign), id));
            if self.gone.len() >= limits::LEASE_WALK_STEP {
                self.add_gone();
            }
        }
    }

    fn add_gone(&mut self) {
        let gone = std::mem::take(&mut self.gone);
        self.add_run(gone);
    }

    fn add_run(&mut self, mut run: Vec<Place>) {
        run.sort_unstable();
        let mut run = run.into_iter();
        if let Some(first) = run.next() {
            self.first.push(Reverse((first, self.runs.len())));
            self.runs.push(run);
        }
    }

    /// Writes the next of the merged ones; true if it was the last.
    fn merge(&mut self, rows: &mut usize) -> bool {
        while *rows > 0 {
            let Some(mut first) = self.first.peek_mut() else { return true };
            *rows -= 1;
            let Reverse(((_, id), run)) = *first;
            match self.runs[run].next() {
                Some(next) => *first = Reverse((next, run)),
                None => drop(std::collections::binary_heap::PeekMut::pop(first)),
            }
            let out = self.pieces.bytes();
            write_len(out, 2, int_len(1, id.cast_unsigned()));
            write_int64(out, 1, id);
            self.pieces.end_record();
        }
        self.first.is_empty()
    }
}

/// A walk over the keys of a lease, in order.
#[derive(Debug)]
pub(super) struct KeyWalk {
    pub(super) lease: i64,
    /// The walk is behind this one.
    last: Option<Key>,
    /// Attached since it began, before it: left out.
    added: BTreeSet<Key>,
    /// Detached since it began, before it: not left out.
    gone: BTreeSet<Key>,
    pieces: Pieces,
}

impl KeyWalk {
    fn has_passed(&self, key: &Key) -> bool {
        self.last.as_ref().is_some_and(|last| key <= last)
    }

    pub(super) fn attached(&mut self, key: &Key) {
        if !self.has_passed(key) && !self.gone.remove(key) {
            self.added.insert(key.clone());
        }
    }

    pub(super) fn detached(&mut self, key: &Key) {
        if !self.has_passed(key) && !self.added.remove(key) {
            self.gone.insert(key.clone());
        }
    }

    /// True if that was all.
    fn step(&mut self, keys: &Keys, rows: &mut usize) -> bool {
        let (mut found, mut bytes, mut over) = (Vec::new(), 0, true);
        for key in keys.after(self.last.as_ref()) {
            if *rows == 0 || bytes >= limits::LEASE_WALK_BYTES {
                over = false;
                break;
            }
            *rows -= 1;
            bytes += key.len();
            self.last = Some(key.clone());
            if !self.added.remove(key) {
                found.push(key.clone());
            }
        }
        let sorted = found.len();
        while let Some(key) = self.gone.first()
            && (over || self.last.as_ref().is_some_and(|last| key <= last))
        {
            found.extend(self.gone.pop_first());
        }
        if found.len() > sorted {
            found.sort_unstable();
        }
        for key in found {
            let out = self.pieces.bytes();
            write_len(out, 5, key.len());
            out.extend_from_slice(&key);
            self.pieces.end_record();
        }
        over
    }
}

/// What a step over the keys of a lease came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeysStep {
    /// There are more.
    Again,
    /// The lease is gone.
    Gone,
    /// These are all: fields of a LeaseTimeToLiveResponse.
    Keys(Pieces),
}

impl Lessor {
    /// Begins to gather all leases as they are now; a walk that was not at its end is given up.
    pub fn begin_listing(&mut self) {
        self.listing = Some(Listing::new(self.births));
    }

    /// Looks at up to `rows` leases, about, and takes that off. At the end: all leases, those that
    /// expire first in front, by ID where this member knows no deadlines, as fields of a
    /// LeaseLeasesResponse.
    pub fn list_on(&mut self, rows: &mut usize) -> Option<Pieces> {
        let listing = self.listing.as_mut()?;
        let mut run = Vec::new();
        while listing.shard < SHARDS && *rows > 0 {
            for (id, lease) in self.leases.iter_shard(listing.shard) {
                *rows = rows.saturating_sub(1);
                if lease.born < listing.births {
                    run.push((lease.deadline_ms(&self.reign), *id));
                }
            }
            listing.shard += 1;
        }
        listing.add_run(run);
        if listing.shard < SHARDS {
            return None;
        }
        listing.add_gone();
        if !listing.merge(rows) {
            return None;
        }
        self.listing.take().map(|listing| listing.pieces.sealed())
    }

    /// Begins to gather the keys of a lease as they are now; a walk that was not at its end is
    /// given up.
    pub fn begin_keys(&mut self, lease: i64) {
        self.key_walk = Some(KeyWalk {
            lease,
            last: None,
            added: BTreeSet::new(),
            gone: BTreeSet::new(),
            pieces: Pieces::default(),
        });
    }

    /// Looks at up to `rows` keys, and takes that off.
    pub fn keys_on(&mut self, rows: &mut usize) -> KeysStep {
        let Some(walk) = self.key_walk.as_mut() else { return KeysStep::Gone };
        let Some(lease) = self.leases.get(&walk.lease) else {
            self.key_walk = None;
            return KeysStep::Gone;
        };
        if !walk.step(&lease.keys, rows) {
            return KeysStep::Again;
        }
        let walk = self.key_walk.take();
        KeysStep::Keys(walk.map(|walk| walk.pieces.sealed()).unwrap_or_default())
    }

    /// Gives up whatever walk is under way.
    pub fn end_walks(&mut self) {
        (self.listing, self.key_walk) = (None, None);
    }

    /// All leases, in no order.
    pub fn ids(&self) -> impl Iterator<Item = i64> {
        (0..SHARDS).flat_map(|shard| self.leases.iter_shard(shard)).map(|(id, _)| *id)
    }

    /// All leases at once, in the order of [`Lessor::list_on`].
    pub fn list(&self) -> Vec<i64> {
        let leases = (0..SHARDS).flat_map(|shard| self.leases.iter_shard(shard));
        let mut all: Vec<Place> =
            leases.map(|(id, lease)| (lease.deadline_ms(&self.reign), *id)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, id)| id).collect()
    }
}
