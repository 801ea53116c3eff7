//! Making the page file smaller: pages near its end are written again nearer to its start, a few
//! with each checkpoint, until what is left at the end can be cut off.
//!
//! The checkpointer runs a slice per checkpoint. A page is moved by writing one of its rows again
//! as it is, so the tree's own rules apply and a crash can find nothing new. It must never make a
//! checkpoint long: a slice is bounded, and without room below the cut nothing is moved.

use std::sync::Arc;

use crate::bucket::BUCKET_COUNT;
use crate::error::EngineError;
use crate::limits::{
    DEFRAGMENT_PASSES_MAX, FILE_GROWTH_BYTES, FILE_RESERVE_BYTES, RELOCATE_NODES_PER_CHECKPOINT,
    RELOCATE_PAGES_PER_CHECKPOINT, RELOCATE_WASTE_UNITS_MIN,
};
use crate::page::node::NodeRef;
use crate::page::space::Space;
use crate::page::{PagePtr, UNIT_BYTES};

/// A row written again so that its page moves.
#[derive(Debug)]
pub(super) struct Touched {
    pub(super) bucket: usize,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// Where the next slice goes on: a bucket and a row key in it.
type Cursor = (usize, Vec<u8>);

/// A relocation under way, from checkpoint to checkpoint.
#[derive(Debug)]
pub(super) struct Relocation {
    phase: Phase,
    /// Walks left of a defragmentation that somebody waits for.
    passes_left: u32,
    /// A walk that freed nothing is not tried again before so many units are free.
    rest_until_free: u64,
}

#[derive(Debug)]
enum Phase {
    Rest,
    /// Pages at or above the cut are being moved; the file ended at `end` when this began.
    Walk {
        cut: u64,
        end: u64,
        cursor: Cursor,
    },
    /// What was moved becomes free when both meta pages have forgotten it: so many checkpoints.
    Settle {
        checkpoints: u32,
        end: u64,
    },
}

/// Checkpoints after which both meta pages, and the views of readers that look once a turn, are
/// newer than the last move, and one to cut.
const SETTLE_CHECKPOINTS: u32 = 6;

/// One slice of a walk.
pub(super) struct Slice {
    cut: u64,
    from: Cursor,
    leaves: Vec<(usize, PagePtr)>,
    nodes: usize,
    last_leaf: Option<PagePtr>,
    next: Option<Cursor>,
    /// Units below the cut that may still be used.
    room: u64,
}

pub(super) type Lookup<'a> = dyn Fn(PagePtr) -> Option<Arc<[u8]>> + 'a;

impl Relocation {
    pub(super) fn new() -> Self {
        Self { phase: Phase::Rest, passes_left: 0, rest_until_free: 0 }
    }

    /// Decides what this checkpoint does. `defragment`: somebody waits for the file to be as small
    /// as it gets.
    pub(super) fn begin(&mut self, space: &Space, defragment: bool) -> Option<Slice> {
        let (free, end) = (space.free_units(), space.end_unit());
        if matches!(self.phase, Phase::Rest) {
            let used = end - free;
            let asked = defragment && self.passes_left > 0;
            let wasted =
                free > RELOCATE_WASTE_UNITS_MIN && free > used / 2 && free >= self.rest_until_free;
            // Room for the list of free extents, the nodes above what moves, and some writes.
            let cut = used + (used / 16).max(64);
            if !(asked || wasted) || cut >= end {
                return None;
            }
            self.passes_left = self.passes_left.saturating_sub(1);
            self.phase = Phase::Walk { cut, end, cursor: (0, Vec::new()) };
        }
        let Phase::Walk { cut, cursor, .. } = &self.phase else { return None };
        let room = space.ready_units_below(*cut) / 4 * 3;
        Some(Slice {
            cut: *cut,
            from: cursor.clone(),
            leaves: Vec::new(),
            nodes: 0,
            last_leaf: None,
            next: None,
            room,
        })
    }

    /// Takes the request for a defragmentation over.
    pub(super) fn ask(&mut self) {
        if self.passes_left == 0 {
            self.passes_left = DEFRAGMENT_PASSES_MAX;
        }
    }

    /// Notes where the slice has ended.
    pub(super) fn walked(&mut self, next: Option<Cursor>) {
        if let Phase::Walk { cursor, end, .. } = &mut self.phase {
            match next {
                Some(next) => *cursor = next,
                None => {
                    let (checkpoints, end) = (SETTLE_CHECKPOINTS, *end);
                    self.phase = Phase::Settle { checkpoints, end };
                }
            }
        }
    }

    /// A checkpoint has ended; true if a defragmentation that was asked for is over with it.
    pub(super) fn end(&mut self, space: &Space, defragment: bool) -> bool {
        if let Phase::Settle { checkpoints, end } = &mut self.phase {
            *checkpoints -= 1;
            if *checkpoints == 0 {
                if space.end_unit() >= *end {
                    // Nothing was won; only more free space promises more.
                    let free = space.free_units();
                    self.rest_until_free = free + (free / 4).max(RELOCATE_WASTE_UNITS_MIN);
                    self.passes_left = 0;
                } else {
                    self.rest_until_free = 0;
                }
                self.phase = Phase::Rest;
            }
        }
        let used = space.end_unit() - space.free_units();
        let dense = used + (used / 16).max(64) >= space.end_unit();
        let over = matches!(self.phase, Phase::Rest) && (self.passes_left == 0 || dense);
        if over {
            self.passes_left = 0;
        }
        defragment && over
    }

    /// True if a further checkpoint is wanted although nothing may have changed.
    pub(super) fn is_busy(&self) -> bool {
        !matches!(self.phase, Phase::Rest)
    }
}

impl Slice {
    /// Walks on; false if pages are `wanted` first, and nothing has happened then.
    pub(super) fn run(
        &mut self,
        roots: &[Option<PagePtr>; BUCKET_COUNT],
        lookup: &Lookup<'_>,
        wanted: &mut Vec<PagePtr>,
    ) -> Result<bool, EngineError> {
        for (bucket, root) in roots.iter().enumerate().skip(self.from.0) {
            let Some(root) = root else { continue };
            let from = if bucket == self.from.0 { self.from.1.clone() } else { Vec::new() };
            if !self.collect(bucket, *root, &from, lookup, wanted)? {
                break;
            }
        }
        wanted.extend(self.leaves.iter().map(|(_, ptr)| *ptr).filter(|ptr| lookup(*ptr).is_none()));
        Ok(wanted.is_empty())
    }

    /// The first row of each leaf found, and where to go on; `None` at the end of the walk.
    pub(super) fn finish(
        self,
        lookup: &Lookup<'_>,
    ) -> Result<(Vec<Touched>, Option<Cursor>), EngineError> {
        let mut touched = Vec::new();
        for (bucket, ptr) in self.leaves {
            let Some(bytes) = lookup(ptr) else { continue };
            let node = NodeRef::new(ptr, &bytes)?;
            if node.count() > 0 {
                let (key, value) = node.row(0)?;
                touched.push(Touched { bucket, key: key.to_vec(), value: value.to_vec() });
            }
        }
        Ok((touched, self.next))
    }

    /// True if all of the subtree was walked, false if the slice is full.
    fn collect(
        &mut self,
        bucket: usize,
        ptr: PagePtr,
        from: &[u8],
        lookup: &Lookup<'_>,
        wanted: &mut Vec<PagePtr>,
    ) -> Result<bool, EngineError> {
        if ptr.level == 0 {
            self.last_leaf = Some(ptr);
            if ptr.first_unit >= self.cut {
                self.push(bucket, ptr);
            }
            return Ok(true);
        }
        let Some(bytes) = lookup(ptr) else {
            wanted.push(ptr);
            return Ok(true);
        };
        self.nodes += 1;
        let found = self.leaves.len();
        let node = NodeRef::new(ptr, &bytes)?;
        let first = node.child_index(from)?;
        for at in first..node.count() {
            let full = self.leaves.len() >= RELOCATE_PAGES_PER_CHECKPOINT
                || self.nodes >= RELOCATE_NODES_PER_CHECKPOINT
                || self.room == 0;
            if at > first && full {
                self.next.get_or_insert((bucket, node.key(at)?.to_vec()));
                return Ok(false);
            }
            if !self.collect(bucket, node.child(at)?, from, lookup, wanted)? {
                return Ok(false);
            }
        }
        // A node moves when something below it does.
        if ptr.first_unit >= self.cut
            && self.leaves.len() == found
            && let Some(leaf) = self.last_leaf
        {
            self.push(bucket, leaf);
        }
        Ok(true)
    }

    fn push(&mut self, bucket: usize, leaf: PagePtr) {
        // The leaf and, about, its share of the nodes above it.
        self.room = self.room.saturating_sub(u64::from(leaf.units) + 1);
        self.leaves.push((bucket, leaf));
    }
}

/// How long the file may become when both meta pages end at these units; `None` if cutting it is
/// not worth it.
pub(super) fn shorter_len(file_len_bytes: u64, older_end: u64, newer_end: u64) -> Option<u64> {
    let needed = older_end.max(newer_end) * UNIT_BYTES as u64;
    let len_bytes = needed.next_multiple_of(FILE_GROWTH_BYTES) + FILE_RESERVE_BYTES;
    // Not for what the next writes would take again.
    let worth =
        file_len_bytes.saturating_sub(len_bytes) > (len_bytes / 8).max(4 * FILE_GROWTH_BYTES);
    worth.then_some(len_bytes)
}
