//! The watchers of a hub in one table, with the links of the lists they are in.
//!
//! A slot is used again after its watcher has gone; whoever keeps slots must forget them with the
//! watcher. Nothing here decides what a watcher gets.

use etcore_engine::types::Revision;

/// No watcher.
pub(super) const NONE: u32 = u32::MAX;

/// What one watcher is and where it stands.
#[derive(Debug)]
pub(super) struct Watcher {
    /// As the client knows it.
    pub(super) id: i64,
    /// As asked: 0 for "from now on".
    pub(super) start: i64,
    /// It gets no event of an earlier revision: it was not asked for, or was sent.
    pub(super) next: i64,
    pub(super) stream: u32,
    pub(super) target: u32,
    pub(super) state: State,
    pub(super) wants: Wants,
    /// It was up to date once. Headers of its events tell the events' revision from then on;
    /// before, while it is told of the past, they tell the newest.
    pub(super) has_kept_up: bool,
    /// No event came since the last notification of progress was due.
    pub(super) is_quiet: bool,
    /// Neighbours in the list of its target and cursor.
    pub(super) before: u32,
    pub(super) after: u32,
    /// Neighbours among the members of a catch-up cursor, or among the parked of its stream.
    pub(super) left: u32,
    pub(super) right: u32,
    /// Its first and last hit in the batch being delivered.
    pub(super) first_hit: u32,
    pub(super) last_hit: u32,
}

/// Who moves it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The cursor of this number; 0 is the live one.
    Served(u8),
    /// It is behind, and a catch-up cursor will take it.
    Waiting,
    /// Its stream takes nothing now.
    Parked,
    /// Its stream is sending it a revision that is too large for a batch.
    Large,
    /// It was cancelled by compaction; its id is taken until the client cancels it.
    Dead,
}

/// What it wants to be told, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) prev_kv: bool,
    pub(super) fragment: bool,
    pub(super) progress: bool,
    pub(super) no_put: bool,
    pub(super) no_delete: bool,
}

impl Wants {
    /// True if this kind of event is kept from it.
    pub(super) fn leaves_out(self, tombstone: bool) -> bool {
        if tombstone { self.no_delete } else { self.no_put }
    }
}

/// A list of watchers through their `left` and `right`.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    pub(super) first: u32,
    last: u32,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    slots: Vec<Option<Watcher>>,
    free: Vec<u32>,
}

impl Watchers {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, watcher: Watcher) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(watcher);
                slot
            }
            None => {
                self.slots.push(Some(watcher));
                self.slots.len() as u32 - 1
            }
        }
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Watcher> {
        let watcher = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        Some(watcher)
    }

    /// All watchers that a cursor serves; for what is rare.
    pub(super) fn served_by(&self, cursor: u8) -> Vec<u32> {
        let served = |watcher: &Watcher| watcher.state == State::Served(cursor);
        (0..)
            .zip(&self.slots)
            .filter(|(_, watcher)| watcher.as_ref().is_some_and(served))
            .map(|(slot, _)| slot)
            .collect()
    }

    pub(super) fn get(&self, slot: u32) -> &Watcher {
        self.slots[slot as usize].as_ref().expect("slots are forgotten with their watcher")
    }

    /// What the header of a response tells whose last event is of `revision`; etcd tells the same
    /// (`server/storage/mvcc/watchable_store.go`, `notify` and `syncWatchers`).
    pub(super) fn told_revision(&self, slot: u32, revision: i64, newest: Revision) -> i64 {
        if self.get(slot).has_kept_up { revision } else { newest.0 }
    }

    /// The watcher that is there now, if there is one.
    pub(super) fn find_mut(&mut self, slot: u32) -> Option<&mut Watcher> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Watcher {
        self.slots[slot as usize].as_mut().expect("slots are forgotten with their watcher")
    }
}

impl Default for List {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl List {
    pub(super) fn is_empty(self) -> bool {
        self.first == NONE
    }

    /// Appends a watcher that is in no such list.
    pub(super) fn push(&mut self, watchers: &mut Watchers, slot: u32) {
        let watcher = watchers.get_mut(slot);
        (watcher.left, watcher.right) = (self.last, NONE);
        if self.last == NONE {
            self.first = slot;
        } else {
            watchers.get_mut(self.last).right = slot;
        }
        self.last = slot;
    }

    /// Takes a watcher of this list out of it.
    pub(super) fn remove(&mut self, watchers: &mut Watchers, slot: u32) {
        let watcher = watchers.get(slot);
        let (left, right) = (watcher.left, watcher.right);
        if left == NONE {
            assert_eq!(self.first, slot, "the first of its list");
            self.first = right;
        } else {
            watchers.get_mut(left).right = right;
        }
        if right == NONE {
            self.last = left;
        } else {
            watchers.get_mut(right).left = left;
        }
    }
}
