//! An inner node of the index: children, the keys between them, and per child how many keys live
//! below it and the newest revision there.
//!
//! Only the tree in `node` calls it.

use std::sync::Arc;

use super::node::{Edge, Node, Split};
use crate::limits::INDEX_FANOUT_MAX;

/// Invariants: one separator less than children; every key below child `i` is at or above
/// separator `i - 1` and below separator `i`.
#[derive(Debug, Clone)]
pub(super) struct Inner {
    separators: Vec<u8>,
    ends: Vec<u32>,
    edges: Vec<Edge>,
}

impl Inner {
    /// The parent of a node that was split.
    pub(super) fn over(left: Edge, right: Split) -> Self {
        let mut inner = Self { separators: Vec::new(), ends: Vec::new(), edges: vec![left] };
        inner.insert(1, right);
        inner
    }

    /// Adds a child at position `at`, which is not 0.
    pub(super) fn insert(&mut self, at: usize, split: Split) {
        let start = self.start(at - 1);
        let tail = self.separators.split_off(start);
        self.separators.extend_from_slice(&split.separator);
        self.separators.extend_from_slice(&tail);
        let grown = to_u32(split.separator.len());
        for end in &mut self.ends[at - 1..] {
            *end += grown;
        }
        self.ends.insert(at - 1, to_u32(start) + grown);
        self.edges.insert(at, split.right);
        self.check_around(at - 1);
    }

    /// Asserts the invariants as far as a separator's neighbours show them.
    fn check_around(&self, separator: usize) {
        assert_eq!(self.ends.len() + 1, self.edges.len(), "one separator less than children");
        let known = |at: usize| (at < self.ends.len()).then(|| self.separator(at));
        let around =
            [separator.checked_sub(1).and_then(known), known(separator), known(separator + 1)];
        debug_assert!(around.iter().flatten().is_sorted_by(|a, b| a < b), "separators ascend");
    }

    /// Removes child `at`, of several, and a separator next to it.
    pub(super) fn remove(&mut self, at: usize) {
        let separator = at.saturating_sub(1);
        let (start, end) = (self.start(separator), self.ends[separator] as usize);
        self.separators.drain(start..end);
        self.ends.remove(separator);
        for later in &mut self.ends[separator..] {
            *later -= to_u32(end - start);
        }
        self.edges.remove(at);
        self.check_around(separator);
    }

    /// The child under which `key` belongs.
    pub(super) fn child_of(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.separator(middle) <= key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    pub(super) fn separator(&self, index: usize) -> &[u8] {
        &self.separators[self.start(index)..self.ends[index] as usize]
    }

    /// The lower bound of child `at + 1`.
    pub(super) fn separator_after(&self, at: usize) -> Option<&[u8]> {
        (at < self.ends.len()).then(|| self.separator(at))
    }

    pub(super) fn edges(&self) -> &[Edge] {
        &self.edges
    }

    pub(super) fn edge_mut(&mut self, at: usize) -> &mut Edge {
        &mut self.edges[at]
    }

    pub(super) fn is_full(&self) -> bool {
        self.edges.len() > INDEX_FANOUT_MAX
    }

    /// Cuts off the children from `at` on.
    pub(super) fn split_off(&mut self, at: usize) -> Split {
        let separator = self.separator(at - 1).to_vec();
        let cut = self.ends[at - 1];
        let mut ends = self.ends.split_off(at);
        for end in &mut ends {
            *end -= cut;
        }
        let separators = self.separators.split_off(cut as usize);
        self.ends.truncate(at - 1);
        self.separators.truncate(self.ends.last().map_or(0, |end| *end as usize));
        let edges = self.edges.split_off(at);
        let right = Inner { separators, ends, edges };
        Split { separator, right: Edge::new(Arc::new(Node::Inner(right))) }
    }

    /// Merges child `at` with the one after it if both together are small.
    pub(super) fn merge_at(&mut self, at: usize) -> bool {
        if at + 1 >= self.edges.len() {
            return false;
        }
        let separator = self.separator(at).to_vec();
        let right = self.edges[at + 1].node.clone();
        let left = &mut self.edges[at];
        let merged = match (&*left.node, &*right) {
            (Node::Leaf(a), Node::Leaf(b)) => a.fits_with(b),
            (Node::Inner(a), Node::Inner(b)) => {
                a.edges.len() + b.edges.len() <= INDEX_FANOUT_MAX * 3 / 4
            }
            _ => false,
        };
        if !merged {
            return false;
        }
        match (Arc::make_mut(&mut left.node), &*right) {
            (Node::Leaf(a), Node::Leaf(b)) => a.append(b),
            (Node::Inner(a), Node::Inner(b)) => a.append(&separator, b),
            _ => return false,
        }
        left.refresh();
        self.remove(at + 1);
        true
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let own = self.separators.capacity()
            + self.ends.capacity() * size_of::<u32>()
            + self.edges.capacity() * size_of::<Edge>();
        own + self.edges.iter().map(|edge| edge.node.memory_bytes()).sum::<usize>()
    }

    fn append(&mut self, separator: &[u8], right: &Inner) {
        self.separators.extend_from_slice(separator);
        let base = to_u32(self.separators.len());
        self.ends.push(base);
        self.separators.extend_from_slice(&right.separators);
        self.ends.extend(right.ends.iter().map(|end| end + base));
        self.edges.extend_from_slice(&right.edges);
    }

    fn start(&self, separator: usize) -> usize {
        separator.checked_sub(1).map_or(0, |before| self.ends[before] as usize)
    }
}

fn to_u32(len: usize) -> u32 {
    u32::try_from(len).expect("64 separators of bounded keys are shorter than 2^32 bytes")
}
