//! Changing the tree: a sorted batch of rows goes in, new pages and a new root come out.
//!
//! The checkpointer calls it once all pages the batch touches are loaded ([`missing`] tells which
//! are not). Pages are never changed, only replaced; neighbours that are replaced together are
//! packed together, so a compaction that sweeps over leaves leaves full ones behind.

use std::ops::Range;
use std::sync::Arc;

use super::pages::Pages;
use crate::error::EngineError;
use crate::page::node::{
    HEADER_BYTES, INNER_CELL_BYTES, LEAF_CELL_BYTES, NodeBuilder, NodeRef, OFFSET_BYTES, RowRef,
};
use crate::page::{PagePtr, UNIT_BYTES};

/// A row to write, or to remove if there is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Op<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
}

/// A node and what is below its parent's cell for it.
struct Entry {
    key: Vec<u8>,
    ptr: PagePtr,
}

/// Adds to `out` the pages that must be loaded next to apply `ops`, which ascend.
pub(super) fn missing(
    pages: &Pages,
    ptr: PagePtr,
    ops: &[Op<'_>],
    out: &mut Vec<PagePtr>,
) -> Result<(), EngineError> {
    let Some(bytes) = pages.get(ptr) else {
        out.push(ptr);
        return Ok(());
    };
    if ptr.level > 0 {
        let node = NodeRef::new(ptr, &bytes)?;
        for_children(node, ops, |child, _, ops| {
            if ops.is_empty() { Ok(()) } else { missing(pages, child, ops, out) }
        })?;
    }
    Ok(())
}

/// Applies `ops`, which ascend, to the tree at `root`; everything they touch is loaded. Returns the
/// new root.
pub(super) fn apply(
    pages: &mut Pages,
    bucket: u8,
    root: Option<PagePtr>,
    ops: &[Op<'_>],
) -> Result<Option<PagePtr>, EngineError> {
    let mut merge = Merge { pages, bucket };
    let mut entries = match root {
        Some(root) if root.level > 0 => merge.rebuild_children(&[(root, ops)], true)?,
        Some(root) => merge.rebuild_leaves(&[(root, ops)], true)?,
        None => merge.write_leaves(&rows_of(&[], ops), true),
    };
    while entries.len() > 1 {
        entries = merge.write_parents(&entries, true);
    }
    Ok(entries.pop().map(|entry| entry.ptr))
}

struct Merge<'p> {
    pages: &'p mut Pages,
    bucket: u8,
}

impl Merge<'_> {
    /// Replaces adjacent inner nodes: returns their children after the change. `tail` tells that
    /// the last of them is the last of its level.
    fn rebuild_children(
        &mut self,
        nodes: &[(PagePtr, &[Op<'_>])],
        tail: bool,
    ) -> Result<Vec<Entry>, EngineError> {
        let mut entries = Vec::new();
        let mut touched: Vec<(PagePtr, &[Op<'_>])> = Vec::new();
        for (ptr, ops) in nodes {
            let bytes = self.take(*ptr)?;
            let node = NodeRef::new(*ptr, &bytes)?;
            for_children(node, ops, |child, key, ops| {
                if ops.is_empty() {
                    entries.append(&mut self.rebuild(&touched, false)?);
                    touched.clear();
                    entries.push(Entry { key: key.to_vec(), ptr: child });
                } else {
                    touched.push((child, ops));
                }
                Ok(())
            })?;
        }
        entries.append(&mut self.rebuild(&touched, tail)?);
        Ok(entries)
    }

    fn rebuild(
        &mut self,
        nodes: &[(PagePtr, &[Op<'_>])],
        tail: bool,
    ) -> Result<Vec<Entry>, EngineError> {
        match nodes.first() {
            None => Ok(Vec::new()),
            Some((ptr, _)) if ptr.level == 0 => self.rebuild_leaves(nodes, tail),
            Some(_) => {
                let children = self.rebuild_children(nodes, tail)?;
                Ok(self.write_parents(&children, tail))
            }
        }
    }

    fn rebuild_leaves(
        &mut self,
        nodes: &[(PagePtr, &[Op<'_>])],
        tail: bool,
    ) -> Result<Vec<Entry>, EngineError> {
        let mut leaves = Vec::with_capacity(nodes.len());
        for (ptr, _) in nodes {
            leaves.push((*ptr, self.take(*ptr)?));
        }
        let mut rows = Vec::new();
        for ((ptr, bytes), (_, ops)) in leaves.iter().zip(nodes) {
            let node = NodeRef::new(*ptr, bytes)?;
            let old = (0..node.count()).map(|at| node.row(at)).collect::<Result<Vec<_>, _>>()?;
            rows.append(&mut rows_of(&old, ops));
        }
        Ok(self.write_leaves(&rows, tail))
    }

    fn write_leaves(&mut self, rows: &[RowRef<'_>], tail: bool) -> Vec<Entry> {
        let size = |(key, value): &RowRef<'_>| LEAF_CELL_BYTES + key.len() + value.len();
        let sizes: Vec<usize> = rows.iter().map(size).collect();
        let mut entries = Vec::new();
        let mut builder = NodeBuilder::default();
        for range in pack(&sizes, tail) {
            for (key, value) in &rows[range.clone()] {
                builder.push_row(key, value);
            }
            let bytes = builder.finish(0, self.bucket, self.pages.version());
            // Rows are appended behind the last leaf: the next checkpoint starts with it.
            let keep = tail && range.end == rows.len();
            let ptr = self.pages.add(bytes, 0, keep);
            entries.push(Entry { key: rows[range.start].0.to_vec(), ptr });
        }
        entries
    }

    fn write_parents(&mut self, children: &[Entry], tail: bool) -> Vec<Entry> {
        let Some(first) = children.first() else { return Vec::new() };
        let level = first.ptr.level + 1;
        let sizes: Vec<usize> =
            children.iter().map(|entry| INNER_CELL_BYTES + entry.key.len()).collect();
        let mut entries = Vec::new();
        let mut builder = NodeBuilder::default();
        for range in pack(&sizes, tail) {
            for entry in &children[range.clone()] {
                builder.push_child(&entry.key, entry.ptr);
            }
            let bytes = builder.finish(level, self.bucket, self.pages.version());
            let ptr = self.pages.add(bytes, level, true);
            entries.push(Entry { key: children[range.start].key.clone(), ptr });
        }
        entries
    }

    fn take(&mut self, ptr: PagePtr) -> Result<Arc<[u8]>, EngineError> {
        let bytes = self.pages.get(ptr).ok_or_else(|| ptr.corrupt("two parents share a page"))?;
        let written_by = NodeRef::new(ptr, &bytes)?.version();
        self.pages.free(ptr, written_by);
        Ok(bytes)
    }
}

/// Calls `each` with every child, its key, and the part of `ops` that belongs under it.
fn for_children<'n, 'o, 'a>(
    node: NodeRef<'n>,
    ops: &'o [Op<'a>],
    mut each: impl FnMut(PagePtr, &'n [u8], &'o [Op<'a>]) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let mut rest = ops;
    for index in 0..node.count() {
        let count = if index + 1 < node.count() {
            let above = node.key(index + 1)?;
            rest.partition_point(|op| op.key < above)
        } else {
            rest.len()
        };
        let (own, others) = rest.split_at(count);
        rest = others;
        each(node.child(index)?, node.key(index)?, own)?;
    }
    Ok(())
}

/// The rows `old` after `ops`; both ascend.
fn rows_of<'a>(old: &[RowRef<'a>], ops: &[Op<'a>]) -> Vec<RowRef<'a>> {
    let mut rows = Vec::with_capacity(old.len() + ops.len());
    let mut ops = ops.iter().peekable();
    for (key, value) in old {
        while let Some(op) = ops.next_if(|op| op.key < *key) {
            rows.extend(op.value.map(|value| (op.key, value)));
        }
        match ops.next_if(|op| op.key == *key) {
            Some(op) => rows.extend(op.value.map(|value| (op.key, value))),
            None => rows.push((key, value)),
        }
    }
    rows.extend(ops.filter_map(|op| op.value.map(|value| (op.key, value))));
    rows
}

/// Cuts cells of these sizes into nodes: as full as possible at the tail of the tree, where rows
/// are appended; elsewhere the last two are evened out, so that the last is not a sliver.
fn pack(sizes: &[usize], tail: bool) -> Vec<Range<usize>> {
    let room = UNIT_BYTES - HEADER_BYTES;
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let (mut start, mut filled) = (0, 0);
    for (at, size) in sizes.iter().enumerate() {
        let size = size + OFFSET_BYTES;
        if at > start && filled + size > room {
            ranges.push(start..at);
            (start, filled) = (at, 0);
        }
        filled += size;
    }
    if start < sizes.len() {
        ranges.push(start..sizes.len());
    }
    if let [.., left, right] = &mut ranges[..]
        && !tail
    {
        let mut right_bytes = filled;
        let mut left_bytes: usize =
            sizes[left.clone()].iter().map(|size| size + OFFSET_BYTES).sum();
        while left.len() > 1 {
            let moved = sizes[left.end - 1] + OFFSET_BYTES;
            if right_bytes + moved > room || right_bytes + moved > left_bytes {
                break;
            }
            left.end -= 1;
            right.start -= 1;
            left_bytes -= moved;
            right_bytes += moved;
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::page::space::Space;
    use crate::testing::prng::Prng;

    fn collect(pages: &Pages, ptr: PagePtr, out: &mut Vec<(Vec<u8>, Vec<u8>)>) {
        let bytes = pages.get(ptr).unwrap();
        let node = NodeRef::new(ptr, &bytes).unwrap();
        for at in 0..node.count() {
            if ptr.level == 0 {
                let (key, value) = node.row(at).unwrap();
                out.push((key.to_vec(), value.to_vec()));
            } else {
                collect(pages, node.child(at).unwrap(), out);
            }
        }
    }

    #[test]
    fn random_batches_make_the_tree_equal_to_a_sorted_map_and_lose_no_unit() {
        for seed in 0..6 {
            let mut prng = Prng::new(seed);
            let mut pages = Pages::new(Space::new(2));
            let (mut root, mut model) = (None, BTreeMap::new());
            for version in 1..60 {
                pages.begin(version, &[]);
                let mut batch = BTreeMap::new();
                let shrink = version % 20 > 15;
                for _ in 0..prng.below(300) {
                    let key = prng.below(3_000).to_be_bytes().to_vec();
                    let big = prng.chance(1, 50);
                    let len = prng.index(if big { 20_000 } else { 300 });
                    let keep = prng.chance(if shrink { 1 } else { 3 }, 4);
                    batch.insert(key, keep.then(|| vec![7u8; len]));
                }
                if version == 59 {
                    batch = model.keys().map(|key: &Vec<u8>| (key.clone(), None)).collect();
                }
                let ops: Vec<_> =
                    batch.iter().map(|(key, value)| Op { key, value: value.as_deref() }).collect();
                root = apply(&mut pages, 3, root, &ops).unwrap();
                for (key, value) in batch {
                    match value {
                        Some(value) => model.insert(key, value),
                        None => model.remove(&key),
                    };
                }
                let mut rows = Vec::new();
                if let Some(root) = root {
                    collect(&pages, root, &mut rows);
                }
                assert_eq!(rows, model.clone().into_iter().collect::<Vec<_>>());
            }
            assert_eq!(root, None);
            pages.begin(60, &[]);
            assert_eq!(pages.space.free_units() + 2, pages.space.end_unit());
        }
    }

    #[test]
    fn appended_rows_fill_their_leaves() {
        let mut pages = Pages::new(Space::new(2));
        let mut root = None;
        for version in 0..50u64 {
            pages.begin(version + 1, &[]);
            let rows: Vec<_> = (0..100).map(|row| (version * 100 + row).to_be_bytes()).collect();
            let ops: Vec<_> = rows.iter().map(|key| Op { key, value: Some(&[1; 300]) }).collect();
            root = apply(&mut pages, 0, root, &ops).unwrap();
        }
        let used = pages.space.end_unit() - pages.space.free_units() - 2;
        assert!(used < 5_000 / 12 + 10, "{used} units for 5,000 rows of 320 bytes");
        assert_eq!(root.unwrap().level, 2);
    }
}
