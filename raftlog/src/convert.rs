//! Between wire messages (prost) and raft-rs' types, which stay in memory.
//!
//! Called by recovery, the node and the peer codecs. rust-protobuf's parser must never see bytes
//! from disk or from peers; data moves as shared `Bytes`, never copied.

use etcore_proto::raftpb;
use raft::eraftpb;

use crate::limits;
use crate::types::EntryKind;

/// A wire entry as raft-rs has it; `None` if its type is unknown or it has no place in a log.
pub(crate) fn entry_from_wire(entry: raftpb::Entry) -> Option<eraftpb::Entry> {
    let index = entry.index.filter(|index| *index != 0 && *index != u64::MAX)?;
    let term = entry.term.filter(|term| *term != 0)?;
    let mut out = unplaced_from_wire(entry)?;
    out.index = index;
    out.term = term;
    Some(out)
}

/// A proposal or a read context: type and data only.
pub(crate) fn unplaced_from_wire(entry: raftpb::Entry) -> Option<eraftpb::Entry> {
    let mut out = eraftpb::Entry::default();
    out.set_entry_type(match entry.r#type.unwrap_or(0) {
        0 => eraftpb::EntryType::EntryNormal,
        1 => eraftpb::EntryType::EntryConfChange,
        2 => eraftpb::EntryType::EntryConfChangeV2,
        _ => return None,
    });
    out.data = entry.data.unwrap_or_default();
    Some(out)
}

/// An entry as etcd expects it.
pub(crate) fn entry_to_wire(entry: eraftpb::Entry) -> raftpb::Entry {
    raftpb::Entry {
        r#type: Some(entry.get_entry_type() as i32),
        term: Some(entry.term),
        index: Some(entry.index),
        data: (!entry.data.is_empty()).then_some(entry.data),
    }
}

/// What the entry's data is.
pub(crate) fn kind(entry: &eraftpb::Entry) -> EntryKind {
    match entry.get_entry_type() {
        eraftpb::EntryType::EntryNormal => EntryKind::Normal,
        eraftpb::EntryType::EntryConfChange => EntryKind::ConfChange,
        eraftpb::EntryType::EntryConfChangeV2 => EntryKind::ConfChangeV2,
    }
}

/// A configuration for raft-rs.
pub(crate) fn conf_state_from_wire(state: &raftpb::ConfState) -> eraftpb::ConfState {
    eraftpb::ConfState {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners_next: state.learners_next.clone(),
        auto_leave: state.auto_leave.unwrap_or(false),
        ..Default::default()
    }
}

/// A configuration from raft-rs.
pub(crate) fn conf_state_to_wire(state: &eraftpb::ConfState) -> raftpb::ConfState {
    raftpb::ConfState {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners_next: state.learners_next.clone(),
        auto_leave: Some(state.auto_leave),
    }
}

/// What an entry in memory costs, about.
pub(crate) fn memory_bytes(entry: &eraftpb::Entry) -> u64 {
    entry.data.len() as u64 + limits::ENTRY_MEMORY_BYTES
}
