//! What raft-rs reads of the log: a window of entries in memory, the terms of all of them.
//!
//! Called by raft-rs through its `Storage` trait and by the node. Entries above the applied index
//! are always in memory, since raft reads those without waiting; older ones are dropped by size and
//! come back through a fetch. It must never answer for an entry that it does not have.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use crate::convert::memory_bytes;
use crate::index::TermRuns;
use crate::limits;

/// Entries that raft wants and the window no longer has.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) low: u64,
    pub(crate) high: u64,
    pub(crate) bytes_max: u64,
    pub(crate) context: GetEntriesContext,
}

/// The storage.
///
/// Invariants: `entries` is gapless and ends at `terms.last_index()`; every entry above the applied
/// index is in it.
pub(crate) struct LogStorage {
    terms: TermRuns,
    entries: VecDeque<Entry>,
    used_bytes: u64,
    window_bytes: u64,
    initial: RaftState,
    /// Entries just fetched, for the one call that asks for them again.
    fetched: Vec<Entry>,
    wanted: RefCell<Vec<Wanted>>,
    snapshot: Option<Snapshot>,
    snapshot_wanted: Cell<Option<u64>>,
}

impl LogStorage {
    pub(crate) fn new(
        terms: TermRuns,
        entries: VecDeque<Entry>,
        window_bytes: u64,
        hard_state: HardState,
        conf_state: ConfState,
    ) -> Self {
        let used_bytes = entries.iter().map(memory_bytes).sum();
        let initial = RaftState { hard_state, conf_state };
        Self {
            terms,
            entries,
            used_bytes,
            window_bytes,
            initial,
            fetched: Vec::new(),
            wanted: RefCell::new(Vec::new()),
            snapshot: None,
            snapshot_wanted: Cell::new(None),
        }
    }

    pub(crate) fn terms(&self) -> &TermRuns {
        &self.terms
    }

    /// Takes over the entries of a ready, which may overwrite others.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first().map(|entry| entry.index) else { return };
        if first <= self.terms.last_index() {
            self.terms.truncate_from(first);
            while self.entries.back().is_some_and(|entry| entry.index >= first) {
                self.used_bytes -= self.entries.pop_back().as_ref().map_or(0, memory_bytes);
            }
        }
        for entry in entries {
            self.terms.push(entry.index, entry.term);
            self.used_bytes += memory_bytes(&entry);
            let before = self.entries.back().map(|last| last.index);
            assert!(before.is_none_or(|last| last + 1 == entry.index), "the window is gapless");
            self.entries.push_back(entry);
        }
    }

    /// Continues after a snapshot; nothing before it is kept.
    pub(crate) fn restart_at(&mut self, index: u64, term: u64) {
        self.terms = TermRuns::new(index, term);
        self.entries.clear();
        self.used_bytes = 0;
    }

    /// Drops applied entries that no longer fit the window, and some of those that were released.
    pub(crate) fn evict(&mut self, applied: u64) {
        let mut released = limits::RELEASED_PER_EVICTION;
        while let Some(front) = self.entries.front()
            && front.index <= applied
        {
            if self.used_bytes <= self.window_bytes {
                if released == 0 || front.index > self.terms.base_index() {
                    break;
                }
                released -= 1;
            }
            self.used_bytes -= self.entries.pop_front().as_ref().map_or(0, memory_bytes);
        }
        let first = self.entries.front().map_or(self.terms.last_index() + 1, |front| front.index);
        debug_assert!(first <= applied + 1, "entries above the applied index are in memory");
    }

    /// Entries at and below `base` are gone from the files: nobody is given them any more.
    pub(crate) fn release_to(&mut self, base: u64) {
        self.terms.release_to(base.min(self.terms.last_index()));
    }

    /// The entries `first..first + count`, which were just appended.
    pub(crate) fn range(&self, first: u64, count: u64) -> impl Iterator<Item = &Entry> {
        let start = self.position(first).unwrap_or(self.entries.len());
        self.entries.range(start..).take(count as usize)
    }

    pub(crate) fn take_wanted(&mut self) -> Vec<Wanted> {
        std::mem::take(self.wanted.get_mut())
    }

    pub(crate) fn has_wanted(&self) -> bool {
        !self.wanted.borrow().is_empty() || self.snapshot_wanted.get().is_some()
    }

    pub(crate) fn set_fetched(&mut self, entries: Vec<Entry>) {
        self.fetched = entries;
    }

    pub(crate) fn take_snapshot_wanted(&mut self) -> Option<u64> {
        self.snapshot_wanted.take()
    }

    pub(crate) fn set_snapshot(&mut self, snapshot: Option<Snapshot>) {
        self.snapshot = snapshot;
    }

    pub(crate) fn window_used_bytes(&self) -> u64 {
        self.used_bytes
    }

    fn position(&self, index: u64) -> Option<usize> {
        let first = self.entries.front()?.index;
        usize::try_from(index.checked_sub(first)?).ok().filter(|at| *at < self.entries.len())
    }
}

impl Storage for LogStorage {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.terms.base_index() {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.terms.last_index() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let count = (high - low) as usize;
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        if let Some(start) = self.position(low) {
            return Ok(limited(self.entries.range(start..).take(count), bytes_max));
        }
        if self.fetched.first().is_some_and(|entry| entry.index == low) {
            return Ok(limited(self.fetched.iter().take(count), bytes_max));
        }
        let mut wanted = self.wanted.borrow_mut();
        if context.can_async() && wanted.len() < limits::FETCHES_MAX {
            wanted.push(Wanted { low, high, bytes_max, context });
        }
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> Result<u64> {
        self.terms.term(index).ok_or(Error::Store(if index < self.terms.base_index() {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        }))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.terms.base_index() + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.terms.last_index())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        match &self.snapshot {
            // Older ones would leave the receiver before the first entry that can be sent, and raft
            // takes none of before its own member came.
            Some(snapshot)
                if snapshot.get_metadata().index >= request_index.max(self.terms.base_index())
                    && knows(snapshot, to) =>
            {
                Ok(snapshot.clone())
            }
            _ => {
                self.snapshot_wanted.set(Some(to));
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

/// True if a snapshot's configuration has this member.
fn knows(snapshot: &Snapshot, member: u64) -> bool {
    let conf_state = snapshot.get_metadata().get_conf_state();
    let lists = [
        &conf_state.voters,
        &conf_state.learners,
        &conf_state.voters_outgoing,
        &conf_state.learners_next,
    ];
    lists.into_iter().any(|list| list.contains(&member))
}

/// As many entries as `bytes_max` allows, but at least one.
fn limited<'a>(entries: impl Iterator<Item = &'a Entry>, bytes_max: u64) -> Vec<Entry> {
    /// Type, term, index and lengths on the wire.
    const OVERHEAD_BYTES: u64 = 24;
    let mut used_bytes = 0;
    let mut out = Vec::with_capacity(entries.size_hint().1.unwrap_or(0).min(1024));
    for entry in entries {
        used_bytes += entry.data.len() as u64 + OVERHEAD_BYTES;
        if !out.is_empty() && used_bytes > bytes_max {
            break;
        }
        out.push(entry.clone());
    }
    out
}
