//! A leaf of the index: up to 64 keys with their newest revision, and older ones aside.
//!
//! Only the tree in `node` calls it. Copying a leaf copies a few flat vectors; it must never hold
//! one reference count per key (runs are the exception that keys with a long history pay for).

use std::sync::Arc;

use super::State;
use crate::limits::{INDEX_LEAF_ENTRIES_MAX, INDEX_LEAF_KEY_BYTES_MAX, INDEX_RECENT_MAX};
use crate::types::{RevKey, Revision};

/// Invariants: `keys` is the prefix all keys share (maybe shorter than it could be), then each
/// key's rest, ending at its head's `key_end`; keys ascend; the older revisions of a key, in
/// ascending order, are its runs, its `recent` ones, its head.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leaf {
    heads: Vec<Head>,
    keys: Vec<u8>,
    prefix_len: u32,
    past: Option<Arc<Past>>,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    newest: State,
    key_end: u32,
    recent: u32,
}

/// Older revisions of a leaf's keys: `recent` in the order of the keys, the oldest of each first.
#[derive(Debug, Clone, Default)]
struct Past {
    recent: Vec<State>,
    runs: Vec<Run>,
}

/// Sorted by slot, then age: the oldest first.
#[derive(Debug, Clone)]
struct Run {
    slot: usize,
    states: Arc<[State]>,
}

impl Leaf {
    /// The slot of `key`, or the one where it belongs.
    pub(crate) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let prefix = self.prefix();
        let Some(rest) = key.strip_prefix(prefix) else {
            return Err(if key < prefix { 0 } else { self.heads.len() });
        };
        let (mut low, mut high) = (0, self.heads.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.rest(middle).cmp(rest) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    pub(crate) fn update(&mut self, slot: usize, state: State) {
        let start = self.recent_start(slot);
        let head = &mut self.heads[slot];
        let older = std::mem::replace(&mut head.newest, state);
        let past = Arc::make_mut(self.past.get_or_insert_default());
        let count = head.recent as usize;
        if count == INDEX_RECENT_MAX {
            let states: Vec<State> = past.recent.drain(start..start + count).collect();
            past.add_run(slot, states);
            head.recent = 0;
        }
        past.recent.insert(start + head.recent as usize, older);
        head.recent += 1;
    }

    /// Takes the newest revision away again; `previous` was the newest before.
    pub(crate) fn revert(&mut self, slot: usize, previous: State) {
        let start = self.recent_start(slot);
        let head = &mut self.heads[slot];
        head.newest = previous;
        let past = Arc::make_mut(self.past.get_or_insert_default());
        let taken = if head.recent > 0 {
            head.recent -= 1;
            Some(past.recent.remove(start + head.recent as usize))
        } else {
            past.pop_run(slot)
        };
        assert_eq!(taken, Some(previous), "updates are reverted in reverse order");
    }

    pub(crate) fn insert(&mut self, slot: usize, key: &[u8], state: State) {
        if self.heads.is_empty() && self.prefix_len == 0 {
            self.keys = key.to_vec();
            self.prefix_len = u32_len(key);
        } else {
            let shared = common_len(self.prefix(), key);
            if shared < self.prefix().len() {
                self.shorten_prefix(shared);
            }
        }
        let rest = &key[self.prefix_len as usize..];
        let at = self.rest_start(slot);
        if self.keys.capacity() - self.keys.len() < rest.len() {
            // Doubling would waste a third of the memory of a large index.
            self.keys.reserve_exact(rest.len() * 8);
        }
        let old_len = self.keys.len();
        self.keys.resize(old_len + rest.len(), 0);
        self.keys.copy_within(at..old_len, at + rest.len());
        self.keys[at..at + rest.len()].copy_from_slice(rest);
        if self.heads.capacity() == self.heads.len() {
            self.heads.reserve_exact(8);
        }
        let grown = u32_len(rest);
        for head in &mut self.heads[slot..] {
            head.key_end += grown;
        }
        let key_end = u32::try_from(at).expect("leaf keys are bounded") + grown;
        self.heads.insert(slot, Head { newest: state, key_end, recent: 0 });
        debug_assert_eq!(
            self.heads.last().map(|head| head.key_end as usize),
            Some(self.keys.len())
        );
        debug_assert!(slot == 0 || self.rest(slot - 1) < self.rest(slot), "keys ascend");
        debug_assert!(
            slot + 1 == self.heads.len() || self.rest(slot) < self.rest(slot + 1),
            "keys ascend"
        );
        if self.past.as_ref().is_some_and(|past| !past.runs.is_empty()) {
            self.shift_runs(slot, |at| at + 1);
        }
    }

    pub(crate) fn remove(&mut self, slot: usize) {
        let recent = self.recent_start(slot);
        let (start, end) = (self.rest_start(slot), self.heads[slot].key_end as usize);
        self.keys.drain(start..end);
        let head = self.heads.remove(slot);
        let shrunk = u32::try_from(end - start).expect("leaf keys are bounded");
        for later in &mut self.heads[slot..] {
            later.key_end -= shrunk;
        }
        if let Some(past) = &mut self.past {
            let past = Arc::make_mut(past);
            past.recent.drain(recent..recent + head.recent as usize);
            past.runs.retain(|run| run.slot != slot);
        }
        self.shift_runs(slot, |at| at - 1);
    }

    pub(crate) fn newest(&self, slot: usize) -> State {
        self.heads[slot].newest
    }

    /// The newest revision of the key that is not above `at`.
    pub(crate) fn state_at(&self, slot: usize, at: Revision) -> Option<State> {
        self.state_before(slot, RevKey::last(at))
    }

    /// The newest revision of the key below `before`; the last possible change of a revision
    /// counts as below itself.
    pub(crate) fn state_before(&self, slot: usize, before: RevKey) -> Option<State> {
        let head = self.heads[slot];
        if head.newest.at() < before {
            return Some(head.newest);
        }
        let past = self.past.as_ref()?;
        let start = self.recent_start(slot);
        let recent = &past.recent[start..start + head.recent as usize];
        let below = recent.partition_point(|state| state.at() < before);
        if below > 0 {
            return Some(recent[below - 1]);
        }
        let runs = past.runs.iter().rev().filter(|run| run.slot == slot);
        for run in runs {
            let below = run.states.partition_point(|state| state.at() < before);
            if below > 0 {
                return Some(run.states[below - 1]);
            }
        }
        None
    }

    /// Appends the whole key to `out`.
    pub(crate) fn key_into(&self, slot: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix());
        out.extend_from_slice(self.rest(slot));
    }

    pub(crate) fn key(&self, slot: usize) -> Vec<u8> {
        let mut key = Vec::new();
        self.key_into(slot, &mut key);
        key
    }

    pub(crate) fn len(&self) -> usize {
        self.heads.len()
    }

    pub(super) fn live(&self) -> u64 {
        self.heads.iter().filter(|head| !head.newest.is_tombstone()).count() as u64
    }

    pub(super) fn newest_main(&self) -> i64 {
        self.heads.iter().map(|head| head.newest.main).max().unwrap_or(0)
    }

    pub(super) fn is_full(&self) -> bool {
        self.heads.len() > INDEX_LEAF_ENTRIES_MAX
            || (self.heads.len() > 1 && self.keys.len() > INDEX_LEAF_KEY_BYTES_MAX)
    }

    /// True if `self` and `right` together make a leaf that is not about to be split again.
    pub(super) fn fits_with(&self, right: &Leaf) -> bool {
        let bytes = self.keys.len()
            + right.keys.len()
            + self.heads.len() * self.prefix_len as usize
            + right.heads.len() * right.prefix_len as usize;
        self.heads.len() + right.heads.len() <= INDEX_LEAF_ENTRIES_MAX * 3 / 4
            && bytes <= INDEX_LEAF_KEY_BYTES_MAX / 2
    }

    /// Cuts off the slots from `at` on as a new leaf.
    pub(super) fn split_off(&mut self, at: usize) -> Leaf {
        let (left, right) = (self.copy_of(0..at), self.copy_of(at..self.heads.len()));
        *self = left;
        right
    }

    /// Appends all of `right`, whose keys are above.
    pub(super) fn append(&mut self, right: &Leaf) {
        let mut key = Vec::new();
        for slot in 0..right.len() {
            key.clear();
            right.key_into(slot, &mut key);
            self.push_with_past(&key, right, slot);
        }
        self.tighten();
    }

    pub(super) fn has_compactable(&self, compact: Revision) -> bool {
        (0..self.heads.len()).any(|slot| self.compactable(slot, compact))
    }

    /// Drops what a compaction at `compact` removes: of each key every revision but the newest one
    /// not above it, and that one too if it is a deletion below it.
    pub(super) fn compact(&mut self, compact: Revision) {
        let mut compacted = Leaf::default();
        let mut key = Vec::new();
        for slot in 0..self.heads.len() {
            key.clear();
            self.key_into(slot, &mut key);
            if !self.compactable(slot, compact) {
                compacted.push_with_past(&key, self, slot);
                continue;
            }
            let states = self.states(slot);
            let below = states.partition_point(|state| state.main <= compact.0);
            let last = states[below - 1];
            let gone = last.is_tombstone() && last.main < compact.0;
            let kept = &states[if gone { below } else { below - 1 }..];
            compacted.push_states(&key, kept);
        }
        *self = compacted;
        self.tighten();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let past = self.past.as_ref().map_or(0, |past| {
            let runs: usize = past.runs.iter().map(|run| size_of_val(&*run.states)).sum();
            runs + past.recent.capacity() * size_of::<State>()
        });
        self.heads.capacity() * size_of::<Head>() + self.keys.capacity() + past
    }

    fn compactable(&self, slot: usize, compact: Revision) -> bool {
        let head = self.heads[slot];
        if head.newest.main <= compact.0 {
            let gone = head.newest.is_tombstone() && head.newest.main < compact.0;
            return gone || self.has_past(slot);
        }
        if !self.has_past(slot) {
            return false;
        }
        let states = self.states(slot);
        match states.partition_point(|state| state.main <= compact.0) {
            0 => false,
            1 => states[0].is_tombstone() && states[0].main < compact.0,
            _ => true,
        }
    }

    fn has_past(&self, slot: usize) -> bool {
        self.heads[slot].recent > 0
            || self.past.as_ref().is_some_and(|past| past.runs.iter().any(|run| run.slot == slot))
    }

    /// All revisions of the key in `slot`, ascending.
    fn states(&self, slot: usize) -> Vec<State> {
        let mut states = Vec::new();
        if let Some(past) = &self.past {
            for run in past.runs.iter().filter(|run| run.slot == slot) {
                states.extend_from_slice(&run.states);
            }
            let start = self.recent_start(slot);
            states.extend_from_slice(&past.recent[start..start + self.heads[slot].recent as usize]);
        }
        states.push(self.heads[slot].newest);
        states
    }

    /// Appends `key`, which is above all others, with these revisions, if there are any.
    fn push_states(&mut self, key: &[u8], states: &[State]) {
        let Some((newest, older)) = states.split_last() else { return };
        let slot = self.heads.len();
        self.insert(slot, key, *newest);
        if older.is_empty() {
            return;
        }
        let past = Arc::make_mut(self.past.get_or_insert_default());
        let recent = if older.len() > INDEX_RECENT_MAX {
            let (runs, recent) = older.split_at(older.len() - INDEX_RECENT_MAX);
            past.add_run(slot, runs.to_vec());
            recent
        } else {
            older
        };
        past.recent.extend_from_slice(recent);
        self.heads[slot].recent = u32::try_from(recent.len()).expect("bounded by a constant");
    }

    /// Appends the key of `source`'s `slot`, sharing its runs.
    fn push_with_past(&mut self, key: &[u8], source: &Leaf, slot: usize) {
        let head = source.heads[slot];
        let target = self.heads.len();
        self.insert(target, key, head.newest);
        let Some(past) = &source.past else { return };
        let start = source.recent_start(slot);
        let recent = &past.recent[start..start + head.recent as usize];
        if recent.is_empty() && !past.runs.iter().any(|run| run.slot == slot) {
            return;
        }
        let own = Arc::make_mut(self.past.get_or_insert_default());
        own.recent.extend_from_slice(recent);
        let runs = past.runs.iter().filter(|run| run.slot == slot);
        own.runs.extend(runs.map(|run| Run { slot: target, states: run.states.clone() }));
        self.heads[target].recent = head.recent;
    }

    fn copy_of(&self, slots: std::ops::Range<usize>) -> Leaf {
        let Some(last) = slots.clone().last() else { return Leaf::default() };
        let first = self.key(slots.start);
        let prefix = &first[..common_len(&first, &self.key(last))];
        let prefix_len = u32_len(prefix);
        let mut copy = Leaf { keys: prefix.to_vec(), prefix_len, ..Leaf::default() };
        copy.heads.reserve_exact(slots.len() + 1);
        let mut key = Vec::new();
        for slot in slots {
            key.clear();
            self.key_into(slot, &mut key);
            copy.push_with_past(&key, self, slot);
        }
        copy
    }

    fn shift_runs(&mut self, from: usize, shift: impl Fn(usize) -> usize) {
        let Some(past) = &mut self.past else { return };
        if past.runs.iter().any(|run| run.slot >= from) {
            for run in &mut Arc::make_mut(past).runs {
                if run.slot >= from {
                    run.slot = shift(run.slot);
                }
            }
        }
    }

    /// Gives back memory and an empty `past`, after a bulk change.
    fn tighten(&mut self) {
        self.heads.shrink_to_fit();
        self.keys.shrink_to_fit();
        if self.past.as_ref().is_some_and(|past| past.recent.is_empty() && past.runs.is_empty()) {
            self.past = None;
        }
    }

    fn shorten_prefix(&mut self, prefix_len: usize) {
        let moved = self.prefix()[prefix_len..].to_vec();
        let mut keys = Vec::with_capacity(self.keys.len() + moved.len() * self.heads.len());
        keys.extend_from_slice(&self.keys[..prefix_len]);
        let mut ends = Vec::with_capacity(self.heads.len());
        for slot in 0..self.heads.len() {
            keys.extend_from_slice(&moved);
            keys.extend_from_slice(self.rest(slot));
            ends.push(u32_len(&keys));
        }
        for (head, end) in self.heads.iter_mut().zip(ends) {
            head.key_end = end;
        }
        self.keys = keys;
        self.prefix_len = u32::try_from(prefix_len).expect("shorter than before");
    }

    fn prefix(&self) -> &[u8] {
        &self.keys[..self.prefix_len as usize]
    }

    fn rest(&self, slot: usize) -> &[u8] {
        &self.keys[self.rest_start(slot)..self.heads[slot].key_end as usize]
    }

    fn rest_start(&self, slot: usize) -> usize {
        let before = slot.checked_sub(1).map(|slot| self.heads[slot].key_end);
        before.unwrap_or(self.prefix_len) as usize
    }

    fn recent_start(&self, slot: usize) -> usize {
        if self.past.is_none() {
            return 0;
        }
        self.heads[..slot].iter().map(|head| head.recent as usize).sum()
    }
}

impl Past {
    /// Adds a run newer than the others of `slot`; runs of like size are merged, so that a history
    /// of n revisions has O(log n) runs and each revision is copied O(log n) times.
    fn add_run(&mut self, slot: usize, mut states: Vec<State>) {
        let end = self.runs.partition_point(|run| run.slot <= slot);
        let mut at = end;
        while at > 0
            && self.runs[at - 1].slot == slot
            && self.runs[at - 1].states.len() <= states.len()
        {
            at -= 1;
            let mut merged = self.runs[at].states.to_vec();
            merged.append(&mut states);
            states = merged;
        }
        self.runs.splice(at..end, [Run { slot, states: states.into() }]);
    }

    /// Takes the newest revision out of the runs of `slot`.
    fn pop_run(&mut self, slot: usize) -> Option<State> {
        let at = self.runs.partition_point(|run| run.slot <= slot).checked_sub(1)?;
        if self.runs[at].slot != slot {
            return None;
        }
        let (newest, rest) = self.runs[at].states.split_last().map(|(n, r)| (*n, r.to_vec()))?;
        if rest.is_empty() {
            self.runs.remove(at);
        } else {
            self.runs[at].states = rest.into();
        }
        Some(newest)
    }
}

pub(super) fn common_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn u32_len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("keys are shorter than 2^31 bytes")
}
