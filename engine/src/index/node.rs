//! The walk through the index tree: change on the way down, counts and splits on the way up.
//!
//! Only [`Index`](super::Index) calls it. It must never change a node that someone else holds.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::inner::Inner;
use super::leaf::{Leaf, common_len};
use super::{RevKey, Revision, State};

#[derive(Debug, Clone)]
pub(super) enum Node {
    Leaf(Leaf),
    Inner(Inner),
}

/// A child with what its parent must know without visiting it.
#[derive(Debug, Clone)]
pub(super) struct Edge {
    pub(super) node: Arc<Node>,
    /// Keys below that are not deleted.
    pub(super) live: u64,
    /// No revision below is newer; it may be too high after a rollback.
    pub(super) newest_main: i64,
}

/// A node that came into being right of the one that was split.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) separator: Vec<u8>,
    pub(super) right: Edge,
}

/// What an update did.
pub(super) struct Effect {
    pub(super) previous: Option<State>,
    pub(super) split: Option<Split>,
    main: i64,
    live_change: i64,
}

type Visitor<'a> = dyn FnMut(&Leaf, usize, State) -> ControlFlow<()> + 'a;

impl Edge {
    pub(super) fn new(node: Arc<Node>) -> Self {
        let mut edge = Self { node, live: 0, newest_main: 0 };
        edge.refresh();
        edge
    }

    pub(super) fn refresh(&mut self) {
        match &*self.node {
            Node::Leaf(leaf) => {
                self.live = leaf.live();
                self.newest_main = leaf.newest_main();
            }
            Node::Inner(inner) => {
                self.live = inner.edges().iter().map(|edge| edge.live).sum();
                let newest = inner.edges().iter().map(|edge| edge.newest_main).max();
                self.newest_main = newest.unwrap_or(0);
            }
        }
    }
}

impl Node {
    pub(super) fn sole_child(&self) -> Option<Arc<Node>> {
        match self {
            Node::Inner(inner) if inner.edges().len() == 1 => Some(inner.edges()[0].node.clone()),
            _ => None,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        // The two counters of the Arc and the allocator's own word come with every node.
        let below = match self {
            Node::Leaf(leaf) => leaf.memory_bytes(),
            Node::Inner(inner) => inner.memory_bytes(),
        };
        size_of::<Node>() + 3 * size_of::<usize>() + below
    }

    fn is_empty(&self) -> bool {
        match self {
            Node::Leaf(leaf) => leaf.len() == 0,
            Node::Inner(inner) => inner.edges().iter().all(|edge| edge.node.is_empty()),
        }
    }
}

pub(super) fn update(
    node: &mut Arc<Node>,
    key: &[u8],
    next: impl FnOnce(Option<State>) -> State,
) -> Effect {
    match Arc::make_mut(node) {
        Node::Leaf(leaf) => update_leaf(leaf, key, next),
        Node::Inner(inner) => {
            let at = inner.child_of(key);
            let edge = inner.edge_mut(at);
            let mut effect = update(&mut edge.node, key, next);
            if let Some(split) = effect.split.take() {
                edge.refresh();
                inner.insert(at + 1, split);
                if inner.is_full() {
                    // Ascending keys leave full nodes behind.
                    let count = inner.edges().len();
                    let cut = if at + 2 == count { count - 1 } else { count / 2 };
                    effect.split = Some(inner.split_off(cut));
                }
            } else {
                edge.live = edge.live.wrapping_add_signed(effect.live_change);
                edge.newest_main = edge.newest_main.max(effect.main);
            }
            effect
        }
    }
}

fn update_leaf(leaf: &mut Leaf, key: &[u8], next: impl FnOnce(Option<State>) -> State) -> Effect {
    match leaf.find(key) {
        Ok(slot) => {
            let previous = leaf.newest(slot);
            let state = next(Some(previous));
            leaf.update(slot, state);
            let live_change =
                i64::from(!state.is_tombstone()) - i64::from(!previous.is_tombstone());
            Effect { previous: Some(previous), split: None, main: state.main, live_change }
        }
        Err(slot) => {
            let state = next(None);
            leaf.insert(slot, key, state);
            let live_change = i64::from(!state.is_tombstone());
            let split = leaf.is_full().then(|| {
                let at = if slot + 1 == leaf.len() { slot } else { leaf.len() / 2 };
                let right = leaf.split_off(at);
                let (below, first) = (leaf.key(leaf.len() - 1), right.key(0));
                let separator = first[..=common_len(&below, &first)].to_vec();
                Split { separator, right: Edge::new(Arc::new(Node::Leaf(right))) }
            });
            Effect { previous: None, split, main: state.main, live_change }
        }
    }
}

/// Applies `change`, which does not add keys, to the leaf of `key`; returns how many it removed.
pub(super) fn edit(node: &mut Arc<Node>, key: &[u8], change: impl FnOnce(&mut Leaf)) -> usize {
    match Arc::make_mut(node) {
        Node::Leaf(leaf) => {
            let before = leaf.len();
            change(leaf);
            before - leaf.len()
        }
        Node::Inner(inner) => {
            let at = inner.child_of(key);
            let edge = inner.edge_mut(at);
            let removed = edit(&mut edge.node, key, change);
            edge.refresh();
            if removed > 0 {
                if inner.edges().len() > 1 && inner.edges()[at].node.is_empty() {
                    inner.remove(at);
                } else if !inner.merge_at(at) && at > 0 {
                    inner.merge_at(at - 1);
                }
            }
            removed
        }
    }
}

/// The leaf of `key`, and the smallest key above that leaf.
pub(super) fn leaf_of<'a>(node: &'a Node, key: &[u8]) -> (&'a Leaf, Option<&'a [u8]>) {
    let mut node = node;
    let mut above = None;
    loop {
        match node {
            Node::Leaf(leaf) => return (leaf, above),
            Node::Inner(inner) => {
                let at = inner.child_of(key);
                above = inner.separator_after(at).or(above);
                node = &inner.edges()[at].node;
            }
        }
    }
}

/// Keys from `start` to `end` that existed at `at`. A bound of `None` does not bound this subtree.
pub(super) fn count(node: &Node, start: Option<&[u8]>, end: Option<&[u8]>, at: Revision) -> u64 {
    match node {
        Node::Leaf(leaf) => count_leaf(leaf, start, end, RevKey::last(at)),
        Node::Inner(inner) => {
            let mut total = 0;
            for (index, start, end) in children(inner, start, end) {
                let edge = &inner.edges()[index];
                total += if start.is_none() && end.is_none() && edge.newest_main <= at.0 {
                    edge.live
                } else {
                    count(&edge.node, start, end, at)
                };
            }
            total
        }
    }
}

fn count_leaf(leaf: &Leaf, start: Option<&[u8]>, end: Option<&[u8]>, before: RevKey) -> u64 {
    let exists =
        |slot: &usize| leaf.state_before(*slot, before).is_some_and(|state| !state.is_tombstone());
    slots(leaf, start, end).filter(exists).count() as u64
}

/// A count of keys that ends when it has looked into so many leaves.
pub(super) struct BoundedCount {
    pub(super) before: RevKey,
    pub(super) leaves_left: usize,
    pub(super) total: u64,
}

impl BoundedCount {
    /// Adds the keys of `node` from `start` to `end`; the key to go on at if leaves ran out.
    pub(super) fn add(
        &mut self,
        node: &Node,
        start: Option<&[u8]>,
        end: Option<&[u8]>,
    ) -> Option<Vec<u8>> {
        match node {
            Node::Leaf(leaf) => {
                self.leaves_left -= 1;
                self.total += count_leaf(leaf, start, end, self.before);
            }
            Node::Inner(inner) => {
                let all_of = self.before == RevKey::last(self.before.main);
                let newest_max = self.before.main.0 - i64::from(!all_of);
                for (index, start, end) in children(inner, start, end) {
                    let edge = &inner.edges()[index];
                    if start.is_none() && end.is_none() && edge.newest_main <= newest_max {
                        self.total += edge.live;
                        continue;
                    }
                    if self.leaves_left == 0 {
                        // Whoever called has made sure that the first child has its turn.
                        return inner.separator_after(index.checked_sub(1)?).map(<[u8]>::to_vec);
                    }
                    if let Some(next) = self.add(&edge.node, start, end) {
                        return Some(next);
                    }
                }
            }
        }
        None
    }
}

/// Visits the keys of up to `leaves_max` leaves that existed just before the change `before`.
/// Returns the key to go on at: that of the visit that was broken off, or the first of the next
/// leaf; `None` at the end.
pub(super) fn visit_leaves(
    root: &Node,
    start: &[u8],
    end: Option<&[u8]>,
    before: RevKey,
    leaves_max: usize,
    visitor: &mut Visitor<'_>,
) -> Option<Vec<u8>> {
    let mut from = start;
    for _ in 0..leaves_max {
        let (leaf, next) = leaf_of(root, from);
        for slot in slots(leaf, Some(from), end) {
            match leaf.state_before(slot, before) {
                Some(state) if !state.is_tombstone() && visitor(leaf, slot, state).is_break() => {
                    return Some(leaf.key(slot));
                }
                _ => {}
            }
        }
        from = next.filter(|next| end.is_none_or(|end| *next < end))?;
    }
    Some(from.to_vec())
}

pub(super) fn visit(
    node: &Node,
    start: Option<&[u8]>,
    end: Option<&[u8]>,
    at: Revision,
    visitor: &mut Visitor<'_>,
) -> ControlFlow<()> {
    match node {
        Node::Leaf(leaf) => {
            for slot in slots(leaf, start, end) {
                match leaf.state_at(slot, at) {
                    Some(state) if !state.is_tombstone() => visitor(leaf, slot, state)?,
                    _ => {}
                }
            }
        }
        Node::Inner(inner) => {
            for (index, start, end) in children(inner, start, end) {
                visit(&inner.edges()[index].node, start, end, at, visitor)?;
            }
        }
    }
    ControlFlow::Continue(())
}

fn slots(leaf: &Leaf, start: Option<&[u8]>, end: Option<&[u8]>) -> std::ops::Range<usize> {
    let position = |key| leaf.find(key).unwrap_or_else(|slot| slot);
    let first = start.map_or(0, position);
    first..end.map_or(leaf.len(), position).max(first)
}

/// The children that overlap the bounds, each with the bounds that still apply to it.
fn children<'a, 'k>(
    inner: &'a Inner,
    start: Option<&'k [u8]>,
    end: Option<&'k [u8]>,
) -> impl Iterator<Item = (usize, Option<&'k [u8]>, Option<&'k [u8]>)> + use<'a, 'k> {
    let first = start.map_or(0, |key| inner.child_of(key));
    let last = end.map_or(inner.edges().len() - 1, |key| inner.child_of(key));
    (first..=last).map(move |index| {
        let start = if index == first { start } else { None };
        let end = if index == last { end } else { None };
        (index, start, end)
    })
}
