//! Sets of keys as bits.
//!
//! Used by [`super::linear`] to say which keys a write or a contradiction has to do with. Must
//! never hold a key that no request and no start of the history could have made: such a key has no
//! bit.

use std::collections::BTreeSet;
use std::ops::Range;

use super::data::{Data, KeyRange};
use super::types::History;

/// All keys that may ever exist in a history, in order.
pub(crate) struct Keys {
    sorted: Vec<Data>,
}

impl Keys {
    pub(crate) fn of(history: &History) -> Self {
        let mut all: BTreeSet<&Data> = history.start.kvs.iter().map(|kv| &kv.key).collect();
        for operation in &history.operations {
            operation.request.each_put(&mut |put| {
                all.insert(&put.key);
            });
        }
        Keys { sorted: all.into_iter().cloned().collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.sorted.len()
    }

    pub(crate) fn key(&self, index: usize) -> &Data {
        &self.sorted[index]
    }

    pub(crate) fn index(&self, key: &Data) -> Option<usize> {
        self.sorted.binary_search(key).ok()
    }

    /// The keys in a range.
    pub(crate) fn span(&self, range: &KeyRange) -> Range<usize> {
        let first = self.sorted.partition_point(|key| *key < range.key);
        let end = match (range.is_one(), range.is_open()) {
            (true, _) => self.sorted.partition_point(|key| *key <= range.key),
            (_, true) => self.sorted.len(),
            _ => self.sorted.partition_point(|key| *key < range.end),
        };
        first..end.max(first)
    }

    pub(crate) fn none(&self) -> KeySet {
        KeySet { words: vec![0; self.sorted.len().div_ceil(64)] }
    }
}

/// Some of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeySet {
    words: Vec<u64>,
}

impl KeySet {
    pub(crate) fn insert(&mut self, index: usize) {
        if let Some(word) = self.words.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }

    pub(crate) fn insert_all(&mut self, span: Range<usize>) {
        span.for_each(|index| self.insert(index));
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    pub(crate) fn add(&mut self, other: &KeySet) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    pub(crate) fn meets(&self, other: &KeySet) -> bool {
        self.words.iter().zip(&other.words).any(|(word, other)| word & other != 0)
    }

    pub(crate) fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 64 + bit)
        })
    }
}
