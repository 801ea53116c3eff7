//! Checks messages from peers and turns them into raft-rs' type.
//!
//! Called by `Node::step`. raft-rs panics on messages that no correct peer sends; each such case is
//! refused here with a reason, so that a peer of another make, or a broken one, cannot stop this
//! member. It must not change any state.

use etcore_proto::raftpb::{self, MessageType as Wire};
use prost::Message as _;
use raft::eraftpb::{self, MessageType};
use raft::{RawNode, StateRole};

use super::storage::LogStorage;
use crate::convert;

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The type is unknown, or only for use inside a process.
    #[error("type {0} does not come from peers")]
    Type(i32),
    /// It is for somebody else.
    #[error("a message for member {0:x}")]
    Receiver(u64),
    /// It has no sender, or this member.
    #[error("a message without a sender")]
    Sender,
    /// An answer from somebody who is no member (any more).
    #[error("an answer from {0:x}, which is no member")]
    NotAMember(u64),
    /// A term where there must be none, or none where there must be one.
    #[error("an impossible term {0}")]
    Term(u64),
    /// Entries that do not follow each other, or one that is too large or cannot be parsed.
    #[error("an impossible entry, number {0}")]
    Entry(usize),
    /// An index past the end of this member's log.
    #[error("index {index} is behind the last entry {last}")]
    Index {
        /// What the message says.
        index: u64,
        /// The end of the log.
        last: u64,
    },
    /// A snapshot without index, term or a usable configuration.
    #[error("an impossible snapshot")]
    Snapshot,
    /// The proposals of another member were dropped: no leader, or a hand-over.
    #[error("forwarded proposals were dropped")]
    ProposalDropped,
}

type RaftNode = RawNode<LogStorage>;

/// The message for raft-rs, or why not.
pub(super) fn check(
    node: &RaftNode,
    message: raftpb::Message,
    entry_data_bytes_max: u64,
) -> Result<eraftpb::Message, StepError> {
    let number = message.r#type.unwrap_or(0);
    let kind = Wire::try_from(number).map_err(|_| StepError::Type(number))?;
    let raft = &node.raft;
    let from = message.from.unwrap_or(0);
    if message.to.is_some_and(|to| to != raft.id) {
        return Err(StepError::Receiver(message.to.unwrap_or(0)));
    }
    if from == 0 || from == raft.id {
        return Err(StepError::Sender);
    }
    check_term(kind, message.term.unwrap_or(0))?;
    let index = message.index.unwrap_or(0);
    let last = raft.raft_log.last_index();
    match kind {
        Wire::MsgHup
        | Wire::MsgBeat
        | Wire::MsgUnreachable
        | Wire::MsgSnapStatus
        | Wire::MsgCheckQuorum => return Err(StepError::Type(number)),
        Wire::MsgAppResp | Wire::MsgHeartbeatResp | Wire::MsgVoteResp | Wire::MsgPreVoteResp => {
            check_answer(node, kind, &message, last)?;
        }
        Wire::MsgHeartbeat => {
            let index = message.commit.unwrap_or(0);
            // Only a message of this or a later term is acted upon.
            if message.term.unwrap_or(0) >= raft.term && index > last {
                return Err(StepError::Index { index, last });
            }
        }
        Wire::MsgApp => check_append(&message, index)?,
        Wire::MsgProp if message.entries.is_empty() => return Err(StepError::Entry(0)),
        Wire::MsgReadIndex | Wire::MsgReadIndexResp if message.entries.len() != 1 => {
            return Err(StepError::Entry(message.entries.len()));
        }
        Wire::MsgSnap => check_snapshot(message.snapshot.as_ref())?,
        Wire::MsgProp
        | Wire::MsgReadIndex
        | Wire::MsgReadIndexResp
        | Wire::MsgVote
        | Wire::MsgPreVote
        | Wire::MsgTransferLeader
        | Wire::MsgTimeoutNow => {}
    }
    convert(kind, message, entry_data_bytes_max)
}

/// Proposals and read requests carry no term, all others must.
fn check_term(kind: Wire, term: u64) -> Result<(), StepError> {
    let without = matches!(kind, Wire::MsgProp | Wire::MsgReadIndex);
    if without != (term == 0) || term == u64::MAX {
        return Err(StepError::Term(term));
    }
    Ok(())
}

fn check_answer(
    node: &RaftNode,
    kind: Wire,
    message: &raftpb::Message,
    last: u64,
) -> Result<(), StepError> {
    let from = message.from.unwrap_or(0);
    if node.raft.prs().get(from).is_none() {
        return Err(StepError::NotAMember(from));
    }
    // An answer names an index of the request, and a refusal also one at or below it.
    let index = message.index.unwrap_or(0).max(message.reject_hint.unwrap_or(0));
    let matters = kind == Wire::MsgAppResp
        && node.raft.state == StateRole::Leader
        && message.term == Some(node.raft.term);
    if matters && index > last {
        return Err(StepError::Index { index, last });
    }
    Ok(())
}

fn check_append(message: &raftpb::Message, index: u64) -> Result<(), StepError> {
    let mut before = (index, message.log_term.unwrap_or(0));
    for (at, entry) in message.entries.iter().enumerate() {
        let here = (entry.index.unwrap_or(0), entry.term.unwrap_or(0));
        let follows = Some(here.0) == before.0.checked_add(1) && here.1 >= before.1;
        if !follows || here.1 > message.term.unwrap_or(0) {
            return Err(StepError::Entry(at));
        }
        before = here;
    }
    Ok(())
}

fn check_snapshot(snapshot: Option<&raftpb::Snapshot>) -> Result<(), StepError> {
    let metadata = snapshot.and_then(|s| s.metadata.as_ref()).ok_or(StepError::Snapshot)?;
    let placed = metadata.index.is_some_and(|i| i != 0) && metadata.term.is_some_and(|t| t != 0);
    let conf_state = metadata.conf_state.as_ref().ok_or(StepError::Snapshot)?;
    if !placed || !is_usable(conf_state) || conf_state.voters.is_empty() {
        return Err(StepError::Snapshot);
    }
    Ok(())
}

/// True if raft-rs can take the configuration: nobody twice, nobody without a number, and learners
/// to be only from among the outgoing voters.
pub(super) fn is_usable(state: &raftpb::ConfState) -> bool {
    let mut incoming: Vec<u64> = state.voters.iter().chain(&state.learners).copied().collect();
    let mut outgoing: Vec<u64> =
        state.voters_outgoing.iter().chain(&state.learners).copied().collect();
    for ids in [&mut incoming, &mut outgoing] {
        ids.sort_unstable();
        if ids.first() == Some(&0) || ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return false;
        }
    }
    let mut next = state.learners_next.clone();
    next.sort_unstable();
    next.dedup();
    next.len() == state.learners_next.len()
        && next.iter().all(|id| state.voters_outgoing.contains(id) && !state.voters.contains(id))
}

fn convert(
    kind: Wire,
    message: raftpb::Message,
    entry_data_bytes_max: u64,
) -> Result<eraftpb::Message, StepError> {
    let mut out = eraftpb::Message::default();
    out.set_msg_type(message_type(kind));
    out.to = message.to.unwrap_or(0);
    out.from = message.from.unwrap_or(0);
    out.term = message.term.unwrap_or(0);
    out.log_term = message.log_term.unwrap_or(0);
    out.index = message.index.unwrap_or(0);
    out.commit = message.commit.unwrap_or(0);
    out.reject = message.reject.unwrap_or(false);
    out.reject_hint = message.reject_hint.unwrap_or(0);
    out.context = message.context.unwrap_or_default();
    let mut entries = Vec::with_capacity(message.entries.len());
    for (at, entry) in message.entries.into_iter().enumerate() {
        let refused = StepError::Entry(at);
        if entry.data.as_ref().map_or(0, |data| data.len() as u64) > entry_data_bytes_max {
            return Err(refused);
        }
        entries.push(match kind {
            Wire::MsgApp => convert::entry_from_wire(entry).ok_or(refused)?,
            Wire::MsgProp => proposal(entry).ok_or(refused)?,
            _ => convert::unplaced_from_wire(entry).ok_or(refused)?,
        });
    }
    out.set_entries(entries.into());
    if kind == Wire::MsgSnap
        && let Some(metadata) = message.snapshot.and_then(|snapshot| snapshot.metadata)
    {
        out.set_snapshot(snapshot(&metadata));
    }
    Ok(out)
}

/// A forwarded proposal. raft-rs parses configuration changes with rust-protobuf when they are
/// proposed, so they are parsed and encoded anew first.
fn proposal(entry: raftpb::Entry) -> Option<eraftpb::Entry> {
    let mut entry = convert::unplaced_from_wire(entry)?;
    let canonical = match entry.get_entry_type() {
        eraftpb::EntryType::EntryNormal => return Some(entry),
        eraftpb::EntryType::EntryConfChange => {
            raftpb::ConfChange::decode(entry.data.clone()).ok()?.encode_to_vec()
        }
        eraftpb::EntryType::EntryConfChangeV2 => {
            raftpb::ConfChangeV2::decode(entry.data.clone()).ok()?.encode_to_vec()
        }
    };
    entry.data = canonical.into();
    Some(entry)
}

/// A snapshot for raft-rs: where it stands; its data travels elsewhere.
pub(super) fn snapshot(metadata: &raftpb::SnapshotMetadata) -> eraftpb::Snapshot {
    let mut out = eraftpb::Snapshot::default();
    let meta = out.mut_metadata();
    meta.index = metadata.index.unwrap_or(0);
    meta.term = metadata.term.unwrap_or(0);
    let conf_state = metadata.conf_state.clone().unwrap_or_default();
    meta.set_conf_state(convert::conf_state_from_wire(&conf_state));
    out
}

fn message_type(kind: Wire) -> MessageType {
    match kind {
        Wire::MsgHup => MessageType::MsgHup,
        Wire::MsgBeat => MessageType::MsgBeat,
        Wire::MsgProp => MessageType::MsgPropose,
        Wire::MsgApp => MessageType::MsgAppend,
        Wire::MsgAppResp => MessageType::MsgAppendResponse,
        Wire::MsgVote => MessageType::MsgRequestVote,
        Wire::MsgVoteResp => MessageType::MsgRequestVoteResponse,
        Wire::MsgSnap => MessageType::MsgSnapshot,
        Wire::MsgHeartbeat => MessageType::MsgHeartbeat,
        Wire::MsgHeartbeatResp => MessageType::MsgHeartbeatResponse,
        Wire::MsgUnreachable => MessageType::MsgUnreachable,
        Wire::MsgSnapStatus => MessageType::MsgSnapStatus,
        Wire::MsgCheckQuorum => MessageType::MsgCheckQuorum,
        Wire::MsgTransferLeader => MessageType::MsgTransferLeader,
        Wire::MsgTimeoutNow => MessageType::MsgTimeoutNow,
        Wire::MsgReadIndex => MessageType::MsgReadIndex,
        Wire::MsgReadIndexResp => MessageType::MsgReadIndexResp,
        Wire::MsgPreVote => MessageType::MsgRequestPreVote,
        Wire::MsgPreVoteResp => MessageType::MsgRequestPreVoteResponse,
    }
}

/// A message of raft-rs as etcd expects it. Fields 13 and up, which only raft-rs has, stay here.
pub(super) fn to_wire(mut message: eraftpb::Message) -> raftpb::Message {
    let entries = message.take_entries().into_iter().map(convert::entry_to_wire).collect();
    let snapshot = message.snapshot.take().map(|snapshot| {
        let metadata = snapshot.get_metadata();
        raftpb::Snapshot {
            data: None,
            metadata: Some(raftpb::SnapshotMetadata {
                conf_state: Some(convert::conf_state_to_wire(metadata.get_conf_state())),
                index: Some(metadata.index),
                term: Some(metadata.term),
            }),
        }
    });
    raftpb::Message {
        r#type: Some(message.get_msg_type() as i32),
        to: Some(message.to),
        from: Some(message.from),
        term: Some(message.term),
        log_term: Some(message.log_term),
        index: Some(message.index),
        entries,
        commit: Some(message.commit),
        snapshot,
        reject: Some(message.reject),
        reject_hint: Some(message.reject_hint),
        context: (!message.context.is_empty()).then_some(message.context),
    }
}
