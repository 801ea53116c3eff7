//! Committed entries that were not applied, and how much they keep in memory.
//!
//! Owned by the replica: raft's effects fill it, apply empties it, and appends from a leader wait
//! while it is full. It must never lose or reorder an entry.

use std::collections::VecDeque;

use etcore_raftlog::types::LogEntry;

use crate::limits;

/// See the module text. Invariant: `bytes` is the sum of the entries' data.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    entries: VecDeque<LogEntry>,
    bytes: usize,
}

impl Backlog {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True if a follower takes no more before some of it is applied.
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() > limits::APPLY_BACKLOG || self.bytes > limits::APPLY_BACKLOG_BYTES
    }

    /// True if a leader proposes no more before some of it is applied: far less than a follower
    /// may have, since what a leader proposes soon comes back to be applied.
    pub(super) fn is_long(&self) -> bool {
        self.entries.len() > limits::APPLY_TURN_ENTRIES || self.bytes > limits::APPLY_TURN_BYTES
    }

    /// The next to be applied.
    pub(super) fn front(&self) -> Option<&LogEntry> {
        self.entries.front()
    }

    pub(super) fn pop_front(&mut self) -> Option<LogEntry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.data.len();
        Some(entry)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Extend<LogEntry> for Backlog {
    fn extend<I: IntoIterator<Item = LogEntry>>(&mut self, entries: I) {
        let bytes = &mut self.bytes;
        self.entries.extend(entries.into_iter().inspect(|entry| *bytes += entry.data.len()));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use etcore_engine::types::{LogIndex, Term};
    use etcore_raftlog::types::EntryKind;

    use super::*;

    #[test]
    fn a_few_large_entries_fill_it_as_many_small_ones_do() {
        let entry = |index, bytes| LogEntry {
            index: LogIndex(index),
            term: Term(1),
            kind: EntryKind::Normal,
            data: Bytes::from(vec![0; bytes]),
        };
        let mut backlog = Backlog::default();
        let last = limits::APPLY_TURN_ENTRIES as u64;
        backlog.extend((1..=last).map(|index| entry(index, 1)));
        assert!(!backlog.is_long());
        backlog.extend((0..=limits::APPLY_BACKLOG as u64 - last).map(|index| entry(index, 1)));
        assert!(backlog.is_full() && backlog.is_long());
        backlog.pop_front().unwrap();
        assert!(!backlog.is_full());
        backlog.clear();
        let large = limits::APPLY_BACKLOG_BYTES / 4;
        backlog.extend((1..=4).map(|index| entry(index, large)));
        assert!(!backlog.is_full() && backlog.is_long());
        backlog.extend([entry(5, large)]);
        assert!(backlog.is_full());
        assert_eq!(backlog.pop_front().unwrap().index, LogIndex(1));
        assert!(!backlog.is_full());
        while backlog.pop_front().is_some() {}
        assert_eq!((backlog.len(), backlog.bytes), (0, 0));
    }
}
