//! The revision index: user key to the revisions of its value, wholly in memory.
//!
//! The store owns one and changes it; every view holds a clone, which is one reference count. It is
//! a copy-on-write counted B+tree: nodes that only the writer holds are changed in place, shared
//! ones are copied first, so a batch of changes copies each path once however long it is. It must
//! never look at values, and a clone must never change.

mod inner;
mod leaf;
mod node;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

pub(crate) use leaf::Leaf;
use node::{Edge, Node};

use crate::types::{RevKey, Revision};

/// One revision of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    main: i64,
    create: i64,
    version: u64,
    sub: u32,
    /// Length of the KeyValue, and in the top bit whether it is a deletion.
    len_and_tombstone: u32,
}

const TOMBSTONE: u32 = 1 << 31;

impl State {
    pub(crate) fn put(at: RevKey, create: Revision, version: u64, len_bytes: u32) -> Self {
        assert!(len_bytes < TOMBSTONE, "rows are limited to less than 2^31 bytes");
        let (main, create) = (at.main.0, create.0);
        Self { main, create, version, sub: at.sub, len_and_tombstone: len_bytes }
    }

    pub(crate) fn tombstone(at: RevKey, len_bytes: u32) -> Self {
        let mut state = Self::put(at, Revision(0), 0, len_bytes);
        state.len_and_tombstone |= TOMBSTONE;
        state
    }

    pub(crate) fn at(&self) -> RevKey {
        RevKey { main: Revision(self.main), sub: self.sub }
    }

    pub(crate) fn create(&self) -> Revision {
        Revision(self.create)
    }

    /// 1 for the value that created the key.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn len_bytes(&self) -> u32 {
        self.len_and_tombstone & !TOMBSTONE
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.len_and_tombstone & TOMBSTONE != 0
    }
}

/// The keys from `start` (inclusive) to `end` (exclusive).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds<'a> {
    pub(crate) start: &'a [u8],
    pub(crate) end: Option<&'a [u8]>,
}

/// A clone is a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    root: Arc<Node>,
    keys: usize,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self { root: Arc::new(Node::Leaf(Leaf::default())), keys: 0 }
    }

    /// Makes `next(current)` the newest revision of `key` and returns what was the newest. Older
    /// ones stay readable.
    pub(crate) fn update(
        &mut self,
        key: &[u8],
        next: impl FnOnce(Option<State>) -> State,
    ) -> Option<State> {
        let effect = node::update(&mut self.root, key, next);
        if effect.previous.is_none() {
            self.keys += 1;
        }
        if let Some(right) = effect.split {
            let left = std::mem::replace(&mut self.root, Arc::new(Node::Leaf(Leaf::default())));
            self.root = Arc::new(Node::Inner(inner::Inner::over(Edge::new(left), right)));
        }
        effect.previous
    }

    /// Undoes the latest [`Index::update`] of `key`, which returned `previous`.
    pub(crate) fn revert(&mut self, key: &[u8], previous: Option<State>) {
        self.edit(key, |leaf| {
            let Ok(slot) = leaf.find(key) else { return };
            match previous {
                Some(state) => leaf.revert(slot, state),
                None => leaf.remove(slot),
            }
        });
    }

    /// The newest revision of `key`, a deletion included.
    #[cfg(test)]
    pub(crate) fn newest(&self, key: &[u8]) -> Option<State> {
        let leaf = node::leaf_of(&self.root, key).0;
        leaf.find(key).ok().map(|slot| leaf.newest(slot))
    }

    /// The value of `key` as of revision `at`: `None` if it did not exist then.
    pub(crate) fn get(&self, key: &[u8], at: Revision) -> Option<State> {
        let leaf = node::leaf_of(&self.root, key).0;
        let state = leaf.state_at(leaf.find(key).ok()?, at)?;
        (!state.is_tombstone()).then_some(state)
    }

    /// The revision of `key` just before the change `before`; `None` if there is none, or if it is
    /// a deletion.
    pub(crate) fn previous(&self, key: &[u8], before: RevKey) -> Option<State> {
        let leaf = node::leaf_of(&self.root, key).0;
        let state = leaf.state_before(leaf.find(key).ok()?, before)?;
        (!state.is_tombstone()).then_some(state)
    }

    /// True if a compaction at `compact` keeps the row `row` of `key`, which is at or below it.
    pub(crate) fn keeps(&self, key: &[u8], row: RevKey, compact: Revision) -> bool {
        let leaf = node::leaf_of(&self.root, key).0;
        let Ok(slot) = leaf.find(key) else { return false };
        match leaf.state_at(slot, compact) {
            Some(state) => {
                state.at() == row && (!state.is_tombstone() || state.at().main == compact)
            }
            None => false,
        }
    }

    /// How many keys in `bounds` existed at `at`.
    pub(crate) fn count(&self, bounds: Bounds<'_>, at: Revision) -> u64 {
        node::count(&self.root, Some(bounds.start), bounds.end, at)
    }

    /// Visits the keys in `bounds` that existed at `at`, in order.
    pub(crate) fn visit(
        &self,
        bounds: Bounds<'_>,
        at: Revision,
        visitor: &mut dyn FnMut(&Leaf, usize, State) -> ControlFlow<()>,
    ) {
        // A visit that was broken off is as complete as its visitor wanted it.
        let _ = node::visit(&self.root, Some(bounds.start), bounds.end, at, visitor);
    }

    /// Visits, in order, the keys of up to `leaves_max` leaves in `bounds` that existed just before
    /// the change `before`. Returns the key to go on at: that of a visit that was broken off, or
    /// the next one not looked at; `None` at the end.
    pub(crate) fn visit_leaves(
        &self,
        bounds: Bounds<'_>,
        before: RevKey,
        leaves_max: usize,
        visitor: &mut dyn FnMut(&Leaf, usize, State) -> ControlFlow<()>,
    ) -> Option<Vec<u8>> {
        node::visit_leaves(&self.root, bounds.start, bounds.end, before, leaves_max, visitor)
    }

    /// Counts the keys in `bounds` that existed just before the change `before`, looking into up to
    /// `leaves_max` leaves. Also returns the key to go on at, `None` at the end.
    pub(crate) fn count_leaves(
        &self,
        bounds: Bounds<'_>,
        before: RevKey,
        leaves_max: usize,
    ) -> (u64, Option<Vec<u8>>) {
        assert!(leaves_max > 0, "a count without leaves makes no progress");
        let mut count = node::BoundedCount { before, leaves_left: leaves_max, total: 0 };
        let next = count.add(&self.root, Some(bounds.start), bounds.end);
        (count.total, next)
    }

    /// Forgets in up to `leaves_max` leaves, from `cursor` on, what a compaction at `compact`
    /// removes. Returns where to go on, or `None` at the end.
    pub(crate) fn compact(
        &mut self,
        cursor: &[u8],
        compact: Revision,
        leaves_max: usize,
    ) -> Option<Vec<u8>> {
        let mut cursor = cursor.to_vec();
        for _ in 0..leaves_max {
            let (leaf, next) = node::leaf_of(&self.root, &cursor);
            let next = next.map(<[u8]>::to_vec);
            if leaf.has_compactable(compact) {
                self.edit(&cursor, |leaf| leaf.compact(compact));
            }
            cursor = next?;
        }
        Some(cursor)
    }

    /// Keys known, deleted ones that are not compacted yet included.
    #[cfg(test)]
    pub(crate) fn key_count(&self) -> usize {
        self.keys
    }

    /// Bytes on the heap.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.root.memory_bytes()
    }

    fn edit(&mut self, key: &[u8], change: impl FnOnce(&mut Leaf)) {
        let removed = node::edit(&mut self.root, key, change);
        self.keys -= removed;
        while let Some(child) = self.root.sole_child() {
            self.root = child;
        }
    }
}
