//! Rebuilds the log from its records, in the order in which they were written.
//!
//! Called by recovery with one intact record at a time. It must accept every log that etcd or this
//! crate can write and refuse every record that contradicts the ones before it: a record's checksum
//! covers its data but not its kind, so the meaning is the second check.

use std::collections::VecDeque;

use bytes::Bytes;
use etcore_proto::raftpb;
use prost::Message as _;
use raft::eraftpb;

use super::record::{Record, RecordKind};
use crate::convert::memory_bytes;
use crate::index::{Place, Places, TermRuns};
use crate::types::{HardState, LogIndex, SnapshotMark, Term};

/// The log so far.
///
/// Invariants: `entries` holds the newest entries without a gap, up to `terms.last_index()`;
/// entries at or below `hard_state.commit` are never overwritten.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) metadata: Option<Bytes>,
    pub(crate) hard_state: HardState,
    /// `None` until something says where the log begins.
    pub(crate) terms: Option<TermRuns>,
    pub(crate) entries: VecDeque<eraftpb::Entry>,
    pub(crate) places: Places,
    /// Marks with the segment that holds each.
    pub(crate) marks: Vec<(SnapshotMark, u64)>,
    /// A mark that counts only once a state record with its commit index follows.
    pending: Option<SnapshotMark>,
    /// The base is the first entry found, for want of anything better.
    base_is_guess: bool,
    window_used_bytes: u64,
    window_bytes: u64,
    applied: u64,
}

/// Why a record is impossible.
type Impossible = &'static str;

impl Replay {
    /// An empty log. Entries above `applied` and `window_bytes` of those below stay in memory.
    pub(crate) fn new(applied: u64, window_bytes: u64) -> Self {
        Self {
            metadata: None,
            hard_state: HardState::default(),
            terms: None,
            entries: VecDeque::new(),
            places: Places::default(),
            marks: Vec::new(),
            pending: None,
            base_is_guess: false,
            window_used_bytes: 0,
            window_bytes,
            applied,
        }
    }

    /// Last index of the log; 0 if it is empty. With nothing but a mark that counts, the mark's.
    pub(crate) fn last_index(&self) -> u64 {
        match (&self.terms, &self.pending) {
            (Some(terms), _) => terms.last_index(),
            (None, Some(mark)) if mark.index <= self.hard_state.commit => mark.index.0,
            (None, _) => 0,
        }
    }

    /// Takes the next record, which starts at `place`.
    pub(crate) fn record(&mut self, record: &Record, place: Place) -> Result<(), Impossible> {
        match record.kind {
            RecordKind::Crc => Ok(()),
            RecordKind::Metadata => self.on_metadata(&record.data),
            RecordKind::Entry => self.on_entry(&record.data, place),
            RecordKind::State => self.on_state(&record.data),
            RecordKind::Snapshot => self.on_mark(&record.data, place),
        }
    }

    /// The end of the log. After a cut the term may lag behind the last entry's, whose state record
    /// was cut off; the member gave no vote in that term, or its state record would be there.
    pub(crate) fn finish(&mut self, cut: bool) -> Result<(), Impossible> {
        if self.terms.is_none() {
            match self.pending.take() {
                Some(mark) if mark.index <= self.hard_state.commit => self.start_from(&mark),
                _ => self.terms = Some(TermRuns::new(0, 0)),
            }
        }
        let last_term = self.terms.as_ref().and_then(|terms| terms.term(terms.last_index()));
        let last_term = Term(last_term.unwrap_or(0));
        if last_term > self.hard_state.term {
            if !cut {
                return Err("an entry of a term that the hard state has not reached");
            }
            self.hard_state.term = last_term;
            self.hard_state.vote = 0;
        }
        Ok(())
    }

    fn on_metadata(&mut self, data: &Bytes) -> Result<(), Impossible> {
        raftpb::Metadata::decode(data.clone()).map_err(|_| "metadata that cannot be parsed")?;
        match &self.metadata {
            Some(known) if known != data => Err("metadata of another member or cluster"),
            _ => {
                self.metadata = Some(data.clone());
                Ok(())
            }
        }
    }

    fn on_state(&mut self, data: &Bytes) -> Result<(), Impossible> {
        let state = raftpb::HardState::decode(data.clone())
            .ok()
            .filter(|state| state.encoded_len() == data.len())
            .ok_or("a hard state that cannot be parsed")?;
        let next = HardState {
            term: Term(state.term.unwrap_or(0)),
            vote: state.vote.unwrap_or(0),
            commit: LogIndex(state.commit.unwrap_or(0)),
        };
        let last = self.hard_state;
        if next.term < last.term || next.commit < last.commit {
            return Err("a hard state that goes backwards");
        }
        if next.term == last.term && last.vote != 0 && next.vote != last.vote {
            return Err("a second vote in one term");
        }
        let last_term = self.terms.as_ref().and_then(|terms| terms.term(terms.last_index()));
        if last_term.is_some_and(|term| term > next.term.0) {
            return Err("a hard state whose term is below an entry's");
        }
        self.hard_state = next;
        if self.terms.is_some()
            && let Some(mark) = self.pending.take_if(|mark| mark.index <= next.commit)
        {
            self.start_from(&mark);
        }
        Ok(())
    }

    fn on_mark(&mut self, data: &Bytes, place: Place) -> Result<(), Impossible> {
        let mark = raftpb::WalSnapshot::decode(data.clone())
            .map_err(|_| "a snapshot mark that cannot be parsed")?;
        let mark = SnapshotMark {
            index: LogIndex(mark.index.unwrap_or(0)),
            term: Term(mark.term.unwrap_or(0)),
            conf_state: mark.conf_state,
        };
        if mark.index.0 == 0 {
            if mark.term.0 != 0 || self.last_index() != 0 {
                return Err("the mark of an empty log in the middle of one");
            }
            self.terms.get_or_insert_with(|| TermRuns::new(0, 0));
        } else {
            self.pending = Some(mark.clone());
        }
        self.marks.push((mark, u64::from(place.segment)));
        Ok(())
    }

    /// Makes `mark` the point the log continues from, unless the log contains it anyway.
    fn start_from(&mut self, mark: &SnapshotMark) {
        let known = self.terms.as_ref().and_then(|terms| terms.term(mark.index.0));
        let behind = self.terms.as_ref().is_some_and(|terms| mark.index.0 < terms.base_index());
        if known == Some(mark.term.0) || behind {
            return;
        }
        self.entries.clear();
        self.window_used_bytes = 0;
        self.terms = Some(TermRuns::new(mark.index.0, mark.term.0));
        self.base_is_guess = false;
    }

    fn on_entry(&mut self, data: &Bytes, place: Place) -> Result<(), Impossible> {
        let wire = raftpb::Entry::decode(data.clone())
            .ok()
            .filter(|entry| entry.encoded_len() == data.len())
            .ok_or("an entry that cannot be parsed")?;
        let entry = crate::convert::entry_from_wire(wire).ok_or("an entry without a place")?;
        let (index, term) = (entry.index, entry.term);
        if let Some(mark) = self.pending.clone()
            && index == mark.index.0 + 1
            && self.terms.is_none_or_ends_before(mark.index.0)
        {
            self.pending = None;
            self.start_from(&mark);
        }
        if self.base_is_guess && index <= self.terms.as_ref().map_or(0, TermRuns::base_index) {
            // The segment starts with entries that were overwritten later, from further back.
            if index <= self.hard_state.commit.0 {
                return Err("an entry that overwrites a committed one");
            }
            self.terms = None;
            self.entries.clear();
            self.window_used_bytes = 0;
        }
        let Some(terms) = &mut self.terms else {
            return self.first_entry(entry, place);
        };
        if index > terms.last_index() + 1 {
            return Err("an entry behind a gap");
        }
        if index <= terms.last_index() {
            if index <= self.hard_state.commit.0 || index <= terms.base_index() {
                return Err("an entry that overwrites a committed one");
            }
            // With data it may be etcd's `--force-new-cluster`, which writes new entries in the old
            // term. Without, it is a hard state whose type was damaged.
            if terms.term(index) == Some(term) && entry.data.is_empty() {
                return Err("an entry that was there already");
            }
            terms.truncate_from(index);
            while self.entries.back().is_some_and(|entry| entry.index >= index) {
                let old = self.entries.pop_back().as_ref().map_or(0, memory_bytes);
                self.window_used_bytes -= old;
            }
        }
        if terms.term(index - 1).is_some_and(|before| before > term) {
            return Err("an entry whose term is below that of the one before it");
        }
        terms.push(index, term);
        self.places.set(index, place);
        self.keep(entry);
        Ok(())
    }

    /// The first entry of a log whose earlier segments were released.
    fn first_entry(&mut self, entry: eraftpb::Entry, place: Place) -> Result<(), Impossible> {
        if entry.index == 1 {
            let mut terms = TermRuns::new(0, 0);
            terms.push(1, entry.term);
            self.terms = Some(terms);
            self.places.set(1, place);
            self.keep(entry);
        } else {
            // Its own data is given up: raft needs the term before the first entry it can use.
            self.terms = Some(TermRuns::new(entry.index, entry.term));
            self.base_is_guess = true;
        }
        Ok(())
    }

    fn keep(&mut self, entry: eraftpb::Entry) {
        let before = self.entries.back().map(|last| last.index);
        assert!(before.is_none_or(|last| last + 1 == entry.index), "the window is gapless");
        self.window_used_bytes += memory_bytes(&entry);
        self.entries.push_back(entry);
        while self.window_used_bytes > self.window_bytes
            && self.entries.front().is_some_and(|entry| entry.index <= self.applied)
        {
            let old = self.entries.pop_front().as_ref().map_or(0, memory_bytes);
            self.window_used_bytes -= old;
        }
    }
}

trait EndsBefore {
    fn is_none_or_ends_before(&self, index: u64) -> bool;
}

impl EndsBefore for Option<TermRuns> {
    fn is_none_or_ends_before(&self, index: u64) -> bool {
        self.as_ref().is_none_or(|terms| terms.last_index() < index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: RecordKind, message: &impl prost::Message) -> Record {
        Record { kind, crc: 0, data: message.encode_to_vec().into() }
    }

    fn mark(index: u64) -> Record {
        let mark = raftpb::WalSnapshot { index: Some(index), term: Some(3), conf_state: None };
        record(RecordKind::Snapshot, &mark)
    }

    fn state(commit: u64) -> Record {
        let state = raftpb::HardState { term: Some(3), vote: Some(0), commit: Some(commit) };
        record(RecordKind::State, &state)
    }

    #[test]
    fn a_log_of_nothing_but_a_mark_reaches_to_the_mark_once_a_commit_index_does() {
        // As a member leaves it that got a snapshot, released what came before, and got nothing
        // since.
        let mut replay = Replay::new(640, 1 << 20);
        let place = Place { segment: 1, offset_bytes: 0 };
        for (record, last_index) in
            [(state(496), 0), (mark(521), 0), (state(521), 521), (mark(640), 0), (state(640), 640)]
        {
            replay.record(&record, place).expect("it fits");
            assert_eq!(replay.last_index(), last_index);
        }
        replay.finish(false).expect("it ends well");
        assert_eq!(replay.terms.map(|terms| terms.base_index()), Some(640));
    }
}
