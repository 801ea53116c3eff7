//! One slice of a compaction: which rows of the tree nobody can read any more.
//!
//! The checkpointer runs one per checkpoint, in revision order from a cursor that the meta page
//! keeps. A row goes if the index, which knows what every key looks like at the compact revision,
//! does not need it. It must never name a row above the revision it was given.

use std::sync::Arc;

use crate::error::EngineError;
use crate::index::Index;
use crate::limits::{COMPACTION_BYTES_PER_CHECKPOINT, COMPACTION_LEAVES_PER_CHECKPOINT};
use crate::page::PagePtr;
use crate::page::node::NodeRef;
use crate::types::{RevKey, Revision};
use crate::wire::KvRef;

#[derive(Debug)]
pub(super) struct Compaction<'i> {
    index: &'i Index,
    target: Revision,
    next: RevKey,
    removed: Vec<Vec<u8>>,
    complete: bool,
}

type Lookup<'a> = dyn Fn(PagePtr) -> Option<Arc<[u8]>> + 'a;

/// Leaves in key order, as many as a slice takes.
#[derive(Default)]
struct Leaves {
    ptrs: Vec<PagePtr>,
    bytes: usize,
}

impl<'i> Compaction<'i> {
    pub(super) fn new(index: &'i Index, target: Revision, from: RevKey) -> Self {
        Self { index, target, next: from, removed: Vec::new(), complete: true }
    }

    /// False if pages are `wanted` first; nothing has happened then.
    pub(super) fn run(
        &mut self,
        root: PagePtr,
        lookup: &Lookup<'_>,
        wanted: &mut Vec<PagePtr>,
    ) -> Result<bool, EngineError> {
        let mut leaves = Leaves::default();
        self.complete = self.collect(root, lookup, &mut leaves, wanted)?;
        wanted.extend(leaves.ptrs.iter().filter(|ptr| lookup(**ptr).is_none()));
        if !wanted.is_empty() {
            return Ok(false);
        }
        for ptr in leaves.ptrs {
            let Some(bytes) = lookup(ptr) else { return Ok(false) };
            self.scan(ptr, NodeRef::new(ptr, &bytes)?)?;
        }
        Ok(true)
    }

    /// Where the next slice starts.
    pub(super) fn next(&self) -> RevKey {
        self.next
    }

    /// True if no row up to the target is left to look at.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The keys of the rows to remove, ascending.
    pub(super) fn into_removed(self) -> Vec<Vec<u8>> {
        self.removed
    }

    /// True if all leaves up to the target were collected, false if the slice is full.
    fn collect(
        &self,
        ptr: PagePtr,
        lookup: &Lookup<'_>,
        leaves: &mut Leaves,
        wanted: &mut Vec<PagePtr>,
    ) -> Result<bool, EngineError> {
        if ptr.level == 0 {
            leaves.ptrs.push(ptr);
            leaves.bytes += ptr.len_bytes as usize;
            return Ok(true);
        }
        let Some(bytes) = lookup(ptr) else {
            wanted.push(ptr);
            return Ok(true);
        };
        let node = NodeRef::new(ptr, &bytes)?;
        let first = node.child_index(&self.next.to_row_key())?;
        for at in first..node.count() {
            if at > first && revision_of(ptr, node.key(at)?)?.main > self.target {
                break;
            }
            let full = leaves.ptrs.len() >= COMPACTION_LEAVES_PER_CHECKPOINT
                || leaves.bytes >= COMPACTION_BYTES_PER_CHECKPOINT;
            if full || !self.collect(node.child(at)?, lookup, leaves, wanted)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn scan(&mut self, ptr: PagePtr, node: NodeRef<'_>) -> Result<(), EngineError> {
        for at in 0..node.count() {
            let (key, value) = node.row(at)?;
            let row = revision_of(ptr, key)?;
            if row < self.next || row.main > self.target {
                continue;
            }
            let kv = KvRef::parse(value).map_err(|_| ptr.corrupt("a row is no KeyValue"))?;
            if !self.index.keeps(kv.key, row, self.target) {
                self.removed.push(key.to_vec());
            }
            self.next = RevKey { main: row.main, sub: row.sub + 1 };
        }
        Ok(())
    }
}

fn revision_of(ptr: PagePtr, key: &[u8]) -> Result<RevKey, EngineError> {
    let row = RevKey::from_row_key(key).ok_or_else(|| ptr.corrupt("a row key is no revision"))?;
    Ok(row.0)
}
