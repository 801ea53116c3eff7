//! Which ranges hold a key: a balanced tree of intervals, each node knowing the furthest end below
//! it.
//!
//! Only `targets` uses it. Equal intervals are one entry. A question costs the logarithm of the
//! number of intervals plus the answers, however they nest; it must never allocate.

use std::cmp::Ordering;
use std::sync::Arc;

use etcore_proto::splitmix::SplitMix64;

/// No node.
const NONE: u32 = u32::MAX;

/// Where a range ends (exclusive); `None` is beyond every key.
pub(super) type End = Option<Arc<[u8]>>;

#[derive(Debug)]
struct Node {
    start: Arc<[u8]>,
    end: End,
    value: u32,
    /// Heap order: a parent's is above its children's.
    priority: u64,
    left: u32,
    right: u32,
    /// The node with the furthest end in this subtree.
    furthest: u32,
}

/// A treap: ordered by start and end, heap-ordered by drawn priorities.
#[derive(Debug)]
pub(super) struct Intervals {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    priorities: SplitMix64,
}

impl Intervals {
    /// The seed shapes the tree, not its answers.
    pub(super) fn new(seed: u64) -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NONE, priorities: SplitMix64::new(seed) }
    }

    /// The value of exactly this interval.
    pub(super) fn find(&self, start: &[u8], end: &End) -> Option<u32> {
        let mut at = self.root;
        while at != NONE {
            let node = &self.nodes[at as usize];
            at = match order(start, end, node) {
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
                Ordering::Equal => return Some(node.value),
            };
        }
        None
    }

    /// Adds an interval that is not there yet.
    pub(super) fn insert(&mut self, start: Arc<[u8]>, end: End, value: u32) {
        let priority = self.priorities.draw();
        let node = Node { start, end, value, priority, left: NONE, right: NONE, furthest: NONE };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        self.nodes[at as usize].furthest = at;
        self.root = self.insert_below(self.root, at);
    }

    /// Removes an interval, if it is there.
    pub(super) fn remove(&mut self, start: &[u8], end: &End) {
        self.root = self.remove_below(self.root, start, end);
    }

    /// Appends the values of all intervals that hold `key`, in their order.
    pub(super) fn holding(&self, key: &[u8], values: &mut Vec<u32>) {
        self.visit(self.root, key, values);
    }

    fn visit(&self, at: u32, key: &[u8], values: &mut Vec<u32>) {
        if at == NONE {
            return;
        }
        let node = &self.nodes[at as usize];
        if !ends_after(&self.nodes[node.furthest as usize].end, key) {
            return;
        }
        self.visit(node.left, key, values);
        if &*node.start <= key {
            if ends_after(&node.end, key) {
                values.push(node.value);
            }
            self.visit(node.right, key, values);
        }
    }

    fn insert_below(&mut self, root: u32, at: u32) -> u32 {
        if root == NONE {
            return at;
        }
        if self.nodes[at as usize].priority > self.nodes[root as usize].priority {
            let (left, right) = self.split(root, at);
            self.link(at, left, right);
            return at;
        }
        let (left, right) = self.children(root);
        if self.is_before(at, root) {
            let left = self.insert_below(left, at);
            self.link(root, left, right);
        } else {
            let right = self.insert_below(right, at);
            self.link(root, left, right);
        }
        root
    }

    /// The nodes of a subtree before and after the node `by`, which is not in it.
    fn split(&mut self, root: u32, by: u32) -> (u32, u32) {
        if root == NONE {
            return (NONE, NONE);
        }
        let (left, right) = self.children(root);
        if self.is_before(by, root) {
            let (before, after) = self.split(left, by);
            self.link(root, after, right);
            (before, root)
        } else {
            let (before, after) = self.split(right, by);
            self.link(root, left, before);
            (root, after)
        }
    }

    fn remove_below(&mut self, root: u32, start: &[u8], end: &End) -> u32 {
        if root == NONE {
            return NONE;
        }
        let (left, right) = self.children(root);
        match order(start, end, &self.nodes[root as usize]) {
            Ordering::Less => {
                let left = self.remove_below(left, start, end);
                self.link(root, left, right);
                root
            }
            Ordering::Greater => {
                let right = self.remove_below(right, start, end);
                self.link(root, left, right);
                root
            }
            Ordering::Equal => {
                // The keys are given back at once; the place is used again.
                self.nodes[root as usize].start = Arc::from([]);
                self.nodes[root as usize].end = None;
                self.free.push(root);
                self.join(left, right)
            }
        }
    }

    /// One subtree of two; all of `left` comes before all of `right`.
    fn join(&mut self, left: u32, right: u32) -> u32 {
        if left == NONE || right == NONE {
            return if left == NONE { right } else { left };
        }
        if self.nodes[left as usize].priority > self.nodes[right as usize].priority {
            let (below, inner) = self.children(left);
            let inner = self.join(inner, right);
            self.link(left, below, inner);
            left
        } else {
            let (inner, above) = self.children(right);
            let inner = self.join(left, inner);
            self.link(right, inner, above);
            right
        }
    }

    fn children(&self, at: u32) -> (u32, u32) {
        let node = &self.nodes[at as usize];
        (node.left, node.right)
    }

    fn link(&mut self, at: u32, left: u32, right: u32) {
        let mut furthest = at;
        for child in [left, right] {
            if child == NONE {
                continue;
            }
            let candidate = self.nodes[child as usize].furthest;
            let (end, best) =
                (&self.nodes[candidate as usize].end, &self.nodes[furthest as usize].end);
            if compare_ends(end, best) == Ordering::Greater {
                furthest = candidate;
            }
        }
        let node = &mut self.nodes[at as usize];
        (node.left, node.right, node.furthest) = (left, right, furthest);
    }

    fn is_before(&self, one: u32, other: u32) -> bool {
        let one = &self.nodes[one as usize];
        order(&one.start, &one.end, &self.nodes[other as usize]) == Ordering::Less
    }
}

fn order(start: &[u8], end: &End, node: &Node) -> Ordering {
    start.cmp(&node.start).then_with(|| compare_ends(end, &node.end))
}

fn compare_ends(one: &End, other: &End) -> Ordering {
    match (one, other) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(one), Some(other)) => one.cmp(other),
    }
}

fn ends_after(end: &End, key: &[u8]) -> bool {
    end.as_ref().is_none_or(|end| &**end > key)
}

#[cfg(test)]
mod tests {
    use etcore_engine::testing::prng::Prng;

    use super::*;

    fn depth(tree: &Intervals, at: u32) -> usize {
        if at == NONE {
            return 0;
        }
        let (left, right) = tree.children(at);
        1 + depth(tree, left).max(depth(tree, right))
    }

    #[test]
    fn the_answers_are_those_of_a_plain_list() {
        let mut prng = Prng::new(7);
        let mut tree = Intervals::new(1);
        let mut list: Vec<(Vec<u8>, End, u32)> = Vec::new();
        for step in 0..4_000u32 {
            let start = vec![prng.below(12) as u8; 1 + prng.index(2)];
            let end: End = (!prng.chance(1, 10)).then(|| {
                let mut end = start.clone();
                end[0] += prng.below(5) as u8;
                end.push(prng.below(3) as u8);
                end.into()
            });
            let at = list.iter().position(|(s, e, _)| (s, e) == (&start, &end));
            assert_eq!(tree.find(&start, &end), at.map(|at| list[at].2));
            match at {
                Some(at) if prng.chance(1, 2) => {
                    tree.remove(&start, &end);
                    list.swap_remove(at);
                }
                Some(_) => {}
                None => {
                    tree.insert(start.clone().into(), end.clone(), step);
                    list.push((start, end, step));
                }
            }
            let key = vec![prng.below(14) as u8; prng.index(3)];
            let mut found = Vec::new();
            tree.holding(&key, &mut found);
            found.sort_unstable();
            let mut expected: Vec<u32> = list
                .iter()
                .filter(|(start, end, _)| *start <= key && ends_after(end, &key))
                .map(|(.., value)| *value)
                .collect();
            expected.sort_unstable();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn intervals_that_come_in_order_or_nest_leave_the_tree_shallow() {
        let mut tree = Intervals::new(1);
        for number in 0..20_000u32 {
            let start = number.to_be_bytes();
            let end = (u32::MAX - number).to_be_bytes();
            tree.insert(start[..].into(), Some(end[..].into()), number);
        }
        assert!(depth(&tree, tree.root) < 60, "{}", depth(&tree, tree.root));
    }
}
