//! Compaction: which rows of the tree nobody can read any more.
//!
//! The checkpointer runs a [`Slice`] per checkpoint, in revision order, as part of a pass over the
//! tree that [`Progress`] keeps. A row goes if the index, which knows what every key looks like at
//! the newest compact revision, does not need it. What it must never do: name a row above the
//! revision it was given, or end a slice where it began, whatever the rows.

use std::sync::Arc;

use crate::error::EngineError;
use crate::index::Index;
use crate::limits::{COMPACTION_BYTES_PER_CHECKPOINT, COMPACTION_LEAVES_PER_CHECKPOINT};
use crate::page::PagePtr;
use crate::page::node::NodeRef;
use crate::types::{RevKey, Revision};
use crate::wire::KvRef;

/// How far the rows that nobody can read are gone.
///
/// A pass that has begun is finished, however often there is a newer target meanwhile: one that
/// started over with each would never get past what it can look at between two of them. Newer
/// targets join it: from then on rows are judged by the newest.
#[derive(Debug)]
pub(super) struct Progress {
    /// What a compaction at this revision removes is gone.
    reached: Revision,
    /// The last compaction of which that is true; what pins hold back is none.
    finished: Revision,
    /// The newest target there was. Some rows may be gone already that only lower ones need.
    target: Revision,
    pass: Option<Pass>,
}

#[derive(Debug, Clone, Copy)]
struct Pass {
    /// The target when it began.
    begun: Revision,
    /// No pin held that back.
    is_whole: bool,
    /// Rows above it are left to the next pass. First this is `begun`; when all rows up to there
    /// were looked at it is, once, what is the newest target then: that the rows of those who write
    /// faster than it looks do not keep it busy for good.
    end: Revision,
    cursor: RevKey,
}

impl Progress {
    /// The progress in a file in which compactions up to `finished` are complete.
    pub(super) fn new(finished: Revision) -> Self {
        Self { reached: finished, finished, target: finished, pass: None }
    }

    /// What a compaction at this revision removes is gone.
    pub(super) fn reached(&self) -> Revision {
        self.reached
    }

    /// The compaction that has ended last.
    pub(super) fn finished(&self) -> Revision {
        self.finished
    }

    /// The revision by which rows are to be judged when `removable` may be removed. A pin that came
    /// too late may have lowered that; what it would have kept is partly gone.
    pub(super) fn target(&self, removable: Revision) -> Revision {
        removable.max(self.target)
    }

    /// The next slice, for a target of [`Progress::target`] while a compaction at `scheduled` is
    /// the newest; `None` if nothing is to be removed.
    pub(super) fn slice<'i>(
        &mut self,
        index: &'i Index,
        target: Revision,
        scheduled: Revision,
    ) -> Option<Slice<'i>> {
        if target <= self.reached {
            return None;
        }
        self.target = target;
        let (is_whole, cursor) = (target == scheduled, RevKey::default());
        let fresh = Pass { begun: target, is_whole, end: target, cursor };
        let Pass { end, cursor, .. } = *self.pass.get_or_insert(fresh);
        Some(Slice { index, target, end, next: cursor, stop: None, removed: Vec::new() })
    }

    /// Notes where a slice has ended, and returns the keys of the rows to remove, ascending.
    pub(super) fn end_slice(&mut self, slice: Slice<'_>) -> Vec<Vec<u8>> {
        if let Some(pass) = &mut self.pass {
            match slice.stop {
                Some(stop) => pass.cursor = stop,
                None => {
                    self.reached = self.reached.max(pass.begun);
                    if pass.is_whole {
                        self.finished = pass.begun;
                    }
                    let may_go_on = pass.end == pass.begun && self.target > pass.end;
                    pass.cursor = RevKey { main: Revision(pass.end.0 + 1), sub: 0 };
                    pass.end = self.target;
                    if !may_go_on {
                        self.pass = None;
                    }
                }
            }
        }
        slice.removed
    }
}

/// What one checkpoint does for a compaction.
#[derive(Debug)]
pub(super) struct Slice<'i> {
    index: &'i Index,
    target: Revision,
    end: Revision,
    next: RevKey,
    /// Where the next slice starts; `None` if no row up to the end is left to look at.
    stop: Option<RevKey>,
    removed: Vec<Vec<u8>>,
}

type Lookup<'a> = dyn Fn(PagePtr) -> Option<Arc<[u8]>> + 'a;

/// Leaves in key order, as many as a slice takes.
#[derive(Default)]
struct Leaves {
    ptrs: Vec<PagePtr>,
    bytes: usize,
}

impl Slice<'_> {
    /// False if pages are `wanted` first; nothing has happened then.
    pub(super) fn run(
        &mut self,
        root: PagePtr,
        lookup: &Lookup<'_>,
        wanted: &mut Vec<PagePtr>,
    ) -> Result<bool, EngineError> {
        let mut leaves = Leaves::default();
        self.stop = None;
        self.collect(root, lookup, &mut leaves, wanted)?;
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

    /// True if all leaves up to the end were collected, false if the slice is full. It has at
    /// least one leaf then, and the next slice starts behind its last.
    fn collect(
        &mut self,
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
            if at > first {
                let key = revision_of(ptr, node.key(at)?)?;
                if key.main > self.end {
                    break;
                }
                let full = leaves.ptrs.len() >= COMPACTION_LEAVES_PER_CHECKPOINT
                    || leaves.bytes >= COMPACTION_BYTES_PER_CHECKPOINT;
                if full {
                    self.stop = Some(key);
                    return Ok(false);
                }
            }
            if !self.collect(node.child(at)?, lookup, leaves, wanted)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn scan(&mut self, ptr: PagePtr, node: NodeRef<'_>) -> Result<(), EngineError> {
        for at in 0..node.count() {
            let (key, value) = node.row(at)?;
            let row = revision_of(ptr, key)?;
            if row < self.next || row.main > self.end {
                continue;
            }
            let kv = KvRef::parse(value).map_err(|_| ptr.corrupt("a row is no KeyValue"))?;
            if !self.index.keeps(kv.key, row, self.target) {
                self.removed.push(key.to_vec());
            }
        }
        Ok(())
    }
}

fn revision_of(ptr: PagePtr, key: &[u8]) -> Result<RevKey, EngineError> {
    let row = RevKey::from_row_key(key).ok_or_else(|| ptr.corrupt("a row key is no revision"))?;
    Ok(row.0)
}
