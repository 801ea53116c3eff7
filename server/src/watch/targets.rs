//! What watchers look at: keys and ranges, each once, with the watchers of each cursor.
//!
//! The hub asks it for the targets of an event's key and walks their lists. The lists run through
//! the watchers themselves, so that moving one from a cursor to another allocates nothing and
//! costs the same however many there are. It must never be iterated in the order of its hash map.

use std::collections::HashMap;
use std::sync::Arc;

use super::intervals::{End, Intervals};
use super::watchers::{NONE, Watchers};
use crate::limits::WATCH_CURSORS;

/// One key or range.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) key: Arc<[u8]>,
    pub(super) bound: Bound,
    /// The first watcher of each cursor.
    heads: [u32; WATCH_CURSORS],
    watchers: u32,
}

/// How far a target reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bound {
    /// Its key alone.
    Key,
    /// Up to an end, exclusive; `None` for everything from its key on.
    Range(End),
}

/// All of them.
#[derive(Debug)]
pub(super) struct Targets {
    slots: Vec<Target>,
    free: Vec<u32>,
    keys: HashMap<Arc<[u8]>, u32>,
    ranges: Intervals,
    bytes: usize,
}

/// True if `key` lies in what starts at `start`.
pub(super) fn holds(start: &[u8], bound: &Bound, key: &[u8]) -> bool {
    match bound {
        Bound::Key => start == key,
        Bound::Range(end) => start <= key && end.as_ref().is_none_or(|end| key < &**end),
    }
}

impl Targets {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            ranges: Intervals::new(seed),
            bytes: 0,
        }
    }

    /// Bytes of keys and ends held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The target for a key and a bound, which one more watcher has now.
    pub(super) fn acquire(&mut self, key: &[u8], bound: Bound) -> u32 {
        let known = match &bound {
            Bound::Key => self.keys.get(key).copied(),
            Bound::Range(end) => self.ranges.find(key, end),
        };
        if let Some(slot) = known {
            self.slots[slot as usize].watchers += 1;
            return slot;
        }
        let key: Arc<[u8]> = key.into();
        self.bytes += bytes_of(&key, &bound);
        let (heads, watchers) = ([NONE; WATCH_CURSORS], 1);
        let target = Target { key: key.clone(), bound: bound.clone(), heads, watchers };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = target;
                slot
            }
            None => {
                self.slots.push(target);
                self.slots.len() as u32 - 1
            }
        };
        match bound {
            Bound::Key => {
                self.keys.insert(key, slot);
            }
            Bound::Range(end) => self.ranges.insert(key, end, slot),
        }
        slot
    }

    /// A watcher has left; the last one takes the target with it.
    pub(super) fn release(&mut self, slot: u32) {
        let target = &mut self.slots[slot as usize];
        target.watchers -= 1;
        if target.watchers > 0 {
            return;
        }
        assert!(target.heads.iter().all(|head| *head == NONE), "a list outlives its watchers");
        self.bytes -= bytes_of(&target.key, &target.bound);
        let key = std::mem::replace(&mut target.key, Arc::from([]));
        match std::mem::replace(&mut target.bound, Bound::Key) {
            Bound::Key => {
                self.keys.remove(&key);
            }
            Bound::Range(end) => self.ranges.remove(&key, &end),
        }
        self.free.push(slot);
    }

    pub(super) fn get(&self, slot: u32) -> &Target {
        &self.slots[slot as usize]
    }

    /// Appends the targets that `key` lies in.
    pub(super) fn of_key(&self, key: &[u8], targets: &mut Vec<u32>) {
        targets.extend(self.keys.get(key));
        self.ranges.holding(key, targets);
    }

    /// The first watcher of a target that a cursor serves.
    pub(super) fn head(&self, target: u32, cursor: usize) -> u32 {
        self.slots[target as usize].heads[cursor]
    }

    /// Puts a watcher into the list of its target that `cursor` serves.
    pub(super) fn enlist(&mut self, watchers: &mut Watchers, slot: u32, cursor: usize) {
        let target = watchers.get(slot).target;
        let head = &mut self.slots[target as usize].heads[cursor];
        let after = std::mem::replace(head, slot);
        if after != NONE {
            watchers.get_mut(after).before = slot;
        }
        let watcher = watchers.get_mut(slot);
        (watcher.before, watcher.after) = (NONE, after);
    }

    /// Takes it out again.
    pub(super) fn delist(&mut self, watchers: &mut Watchers, slot: u32, cursor: usize) {
        let watcher = watchers.get(slot);
        let (target, before, after) = (watcher.target, watcher.before, watcher.after);
        if after != NONE {
            watchers.get_mut(after).before = before;
        }
        if before == NONE {
            let head = &mut self.slots[target as usize].heads[cursor];
            assert_eq!(*head, slot, "the first of its list");
            *head = after;
        } else {
            watchers.get_mut(before).after = after;
        }
    }
}

fn bytes_of(key: &[u8], bound: &Bound) -> usize {
    let end = match bound {
        Bound::Range(Some(end)) => end.len(),
        Bound::Key | Bound::Range(None) => 0,
    };
    key.len() + end
}
