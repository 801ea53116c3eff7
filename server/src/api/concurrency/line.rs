//! Who waits for what stands before him: the keys below one lock's name by their age, and the
//! calls that wait for older ones to go.
//!
//! Read once when the first call has to wait, and kept by a watch from then on, so that each key
//! that comes or goes costs a logarithm, however many wait. etcd's clients ask again for the keys
//! before their own each time one goes.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use crate::replies::CallId;

/// See the module text.
#[derive(Default)]
pub(super) struct Line {
    /// Keys by the revision that created them.
    ages: BTreeSet<(i64, Bytes)>,
    by_key: HashMap<Bytes, i64>,
    /// Everything up to this revision has been seen; 0 as long as the keys are not read.
    seen: i64,
    waiting: BTreeSet<(i64, CallId)>,
    /// What keeps it up to date, or reads it.
    pub(super) source: Option<CallId>,
    /// Who was the first to wait: the keys are read and watched in his name.
    pub(super) token: Option<Bytes>,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// True once its keys were read.
    pub(super) fn is_read(&self) -> bool {
        self.seen > 0
    }

    /// A call waits for all keys that are older than this revision to go.
    pub(super) fn wait(&mut self, revision: i64, call: CallId) {
        self.waiting.insert((revision, call));
    }

    /// It waits no longer.
    pub(super) fn leave(&mut self, revision: i64, call: CallId) {
        self.waiting.remove(&(revision, call));
    }

    /// A key was there, or was put.
    pub(super) fn put(&mut self, key: Bytes, created: i64) {
        // It may have gone and come again between two views of it.
        if let Some(before) = self.by_key.insert(key.clone(), created) {
            self.ages.remove(&(before, key.clone()));
        }
        self.ages.insert((created, key));
    }

    /// A key has gone.
    pub(super) fn delete(&mut self, key: &Bytes) {
        if let Some(created) = self.by_key.remove(key) {
            self.ages.remove(&(created, key.clone()));
        }
    }

    /// Everything up to this revision has been told.
    pub(super) fn saw(&mut self, revision: i64) {
        self.seen = self.seen.max(revision);
    }

    /// The next call before which nothing stands any more.
    pub(super) fn next_ready(&mut self) -> Option<CallId> {
        let (revision, call) = *self.waiting.first()?;
        let oldest = self.ages.first().map_or(i64::MAX, |(created, _)| *created);
        if revision > self.seen || revision > oldest {
            return None;
        }
        self.waiting.pop_first();
        Some(call)
    }

    /// All that wait.
    pub(super) fn into_waiting(self) -> impl Iterator<Item = CallId> {
        self.waiting.into_iter().map(|(_, call)| call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_ready_in_the_order_of_their_keys_once_older_ones_are_gone() {
        let mut line = Line::default();
        let key = |number: i64| Bytes::from(format!("l/{number}"));
        let call = |number: i64| CallId::inner(number as u64);
        line.wait(3, call(3));
        line.wait(5, call(5));
        assert_eq!(line.next_ready(), None, "nothing has been read");
        line.put(key(2), 2);
        line.put(key(3), 3);
        line.saw(4);
        assert_eq!(line.next_ready(), None);
        line.delete(&key(2));
        line.saw(6);
        assert_eq!(line.next_ready(), Some(call(3)));
        line.put(key(5), 5);
        assert_eq!(line.next_ready(), None);
        line.delete(&key(3));
        line.saw(7);
        assert_eq!(line.next_ready(), Some(call(5)));
        assert!(line.is_empty());
    }

    #[test]
    fn nobody_is_ready_before_his_own_key_could_be_seen() {
        let mut line = Line::default();
        line.saw(4);
        line.wait(6, CallId::inner(1));
        assert_eq!(line.next_ready(), None, "older keys may still come to be known");
        line.put(Bytes::from_static(b"l/5"), 5);
        line.put(Bytes::from_static(b"l/6"), 6);
        line.saw(6);
        assert_eq!(line.next_ready(), None);
        line.delete(&Bytes::from_static(b"l/5"));
        line.saw(7);
        assert!(line.next_ready().is_some());
    }

    #[test]
    fn a_key_that_comes_again_is_young() {
        let mut line = Line::default();
        line.put(Bytes::from_static(b"l/1"), 2);
        line.put(Bytes::from_static(b"l/1"), 9);
        line.saw(9);
        line.wait(5, CallId::inner(1));
        assert!(line.next_ready().is_some());
        line.wait(5, CallId::inner(2));
        line.leave(5, CallId::inner(2));
        assert_eq!(line.next_ready(), None);
    }
}
