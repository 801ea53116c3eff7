//! Configuration changes: proposing and applying them, between etcd's numbering and raft-rs'.
//!
//! Called by the node. etcd has an "update" kind that raft ignores and numbers the learner kind 3,
//! where raft-rs has 2; handing etcd's numbers to raft-rs unchanged would turn a learner into a
//! voter.

use bytes::Bytes;
use etcore_proto::raftpb::{self, ConfChangeType as Wire};
use prost::Message as _;
use raft::StateRole;
use raft::eraftpb::{self, ConfChangeSingle, ConfChangeTransition, ConfChangeType};

use super::error::{NodeError, ProposeError};
use super::{Node, Proposed};
use crate::types::EntryKind;

impl Node {
    /// Proposes a change of one member. The leader takes one change at a time: while another is
    /// not applied, it appends an empty entry instead.
    pub fn propose_conf_change(
        &mut self,
        change: &raftpb::ConfChange,
    ) -> Result<Proposed, ProposeError> {
        let mut entry =
            eraftpb::Entry { data: change.encode_to_vec().into(), ..Default::default() };
        entry.set_entry_type(eraftpb::EntryType::EntryConfChange);
        self.propose_entries(vec![entry])
    }

    /// True if this leader would append a change of the members that is proposed now; false while
    /// an earlier one may not be applied yet.
    pub fn takes_conf_change(&self) -> bool {
        !self.raw.raft.has_pending_conf()
    }

    /// Applies a committed configuration change. Must be called for each, in order, before
    /// [`Node::on_applied`] reports it; a change that the application refuses is left out.
    pub fn apply_conf_change(
        &mut self,
        kind: EntryKind,
        data: &Bytes,
    ) -> Result<raftpb::ConfState, NodeError> {
        const UNREADABLE: NodeError = NodeError::ConfChange("a change that cannot be parsed");
        let change = match kind {
            EntryKind::Normal => return Err(NodeError::ConfChange("no configuration change")),
            EntryKind::ConfChange => {
                let change = raftpb::ConfChange::decode(data.clone()).map_err(|_| UNREADABLE)?;
                v1(&change)
            }
            EntryKind::ConfChangeV2 => {
                let change = raftpb::ConfChangeV2::decode(data.clone()).map_err(|_| UNREADABLE)?;
                v2(&change)
            }
        };
        if let Some(change) = change.map_err(NodeError::ConfChange)? {
            let removes =
                |step: &ConfChangeSingle| step.get_change_type() == ConfChangeType::RemoveNode;
            self.has_removed |= change.get_changes().iter().any(removes);
            self.raw
                .apply_conf_change(&change)
                .map_err(|error| NodeError::Raft(error.to_string()))?;
            let raft = &mut self.raw.raft;
            if raft.state == StateRole::Leader && !raft.promotable() {
                // raft-rs lets a removed leader go on leading.
                let term = raft.term;
                raft.become_follower(term, raft::INVALID_ID);
            }
            self.set_election_timeout();
        }
        Ok(self.conf_state())
    }

    /// Steps raft. A leader's raft-rs reads the changes of members that it is to append, and drops
    /// those of a kind that it does not know by etcd's number: it is shown another kind, which to
    /// it makes no difference then.
    pub(super) fn step_raw(&mut self, mut message: eraftpb::Message) -> raft::Result<()> {
        let leads = self.raw.raft.state == StateRole::Leader;
        if !leads || message.get_msg_type() != eraftpb::MessageType::MsgPropose {
            return self.raw.step(message);
        }
        let first = self.raw.raft.raft_log.last_index() + 1;
        let shown = show_known(first, &mut message);
        let result = self.raw.step(message);
        for (index, data) in shown {
            self.set_data(index, &data);
        }
        result
    }

    /// A fault, never made in a member that serves: a candidate takes itself for elected with a
    /// vote less than it needs.
    pub(super) fn count_removed_vote(&mut self) {
        let raft = &self.raw.raft;
        let (kind, term) = match raft.state {
            StateRole::Candidate => (eraftpb::MessageType::MsgRequestVoteResponse, raft.term),
            StateRole::PreCandidate => {
                (eraftpb::MessageType::MsgRequestPreVoteResponse, raft.term + 1)
            }
            StateRole::Follower | StateRole::Leader => return,
        };
        let other = raft.prs().conf().voters().ids().iter().find(|id| *id != raft.id);
        let Some(from) = other.filter(|_| self.has_removed) else { return };
        let mut vote = eraftpb::Message { from, to: raft.id, term, ..Default::default() };
        vote.set_msg_type(kind);
        let _ = self.raw.step(vote);
    }

    /// Gives a change of members that was just appended the data that it was proposed with, in the
    /// log and in the messages that carry it. What raft has dropped is no change any more.
    fn set_data(&mut self, index: u64, data: &Bytes) {
        let raft = &mut self.raw.raft;
        let sent = raft.msgs.iter_mut().flat_map(|message| message.mut_entries().iter_mut());
        let held = raft.r.raft_log.unstable.entries.iter_mut();
        for entry in sent.chain(held) {
            let is_change = entry.get_entry_type() == eraftpb::EntryType::EntryConfChange;
            if entry.index == index && is_change {
                entry.data = data.clone();
            }
        }
    }
}

/// A change as raft-rs takes it. `None` if there is nothing for raft to do; an error text if the
/// change cannot be understood.
fn v1(change: &raftpb::ConfChange) -> Result<Option<eraftpb::ConfChangeV2>, &'static str> {
    let mut out = eraftpb::ConfChangeV2::default();
    let Some(single) = single(change.r#type.unwrap_or(0), change.node_id.unwrap_or(0))? else {
        return Ok(None);
    };
    out.set_changes(vec![single].into());
    Ok(Some(out))
}

/// Decodes a change of several members at once. A change without steps ends a joint configuration.
fn v2(change: &raftpb::ConfChangeV2) -> Result<Option<eraftpb::ConfChangeV2>, &'static str> {
    let mut out = eraftpb::ConfChangeV2::default();
    out.set_transition(match change.transition.unwrap_or(0) {
        0 => ConfChangeTransition::Auto,
        1 => ConfChangeTransition::Implicit,
        2 => ConfChangeTransition::Explicit,
        _ => return Err("a configuration change of an unknown transition"),
    });
    let mut steps = Vec::new();
    for step in &change.changes {
        steps.extend(single(step.r#type.unwrap_or(0), step.node_id.unwrap_or(0))?);
    }
    if steps.is_empty() && !change.changes.is_empty() {
        return Ok(None);
    }
    out.set_changes(steps.into());
    Ok(Some(out))
}

/// Replaces the kinds that raft-rs cannot read in a proposal whose first entry gets the index
/// `first`, by one of the same length that it can; returns the indices and data of those entries.
fn show_known(first: u64, message: &mut eraftpb::Message) -> Vec<(u64, Bytes)> {
    let mut shown = Vec::new();
    for (index, entry) in (first..).zip(message.mut_entries().iter_mut()) {
        if entry.get_entry_type() != eraftpb::EntryType::EntryConfChange {
            continue;
        }
        let Ok(mut change) = raftpb::ConfChange::decode(entry.data.clone()) else { continue };
        if change.r#type == Some(Wire::ConfChangeAddLearnerNode as i32) {
            change.r#type = Some(Wire::ConfChangeAddNode as i32);
            let data = std::mem::replace(&mut entry.data, change.encode_to_vec().into());
            shown.push((index, data));
        }
    }
    shown
}

fn single(kind: i32, node_id: u64) -> Result<Option<ConfChangeSingle>, &'static str> {
    let kind = Wire::try_from(kind).map_err(|_| "a configuration change of an unknown type")?;
    if node_id == 0 {
        return Err("a configuration change of no member");
    }
    let mut out = ConfChangeSingle { node_id, ..ConfChangeSingle::default() };
    out.set_change_type(match kind {
        Wire::ConfChangeAddNode => ConfChangeType::AddNode,
        Wire::ConfChangeRemoveNode => ConfChangeType::RemoveNode,
        Wire::ConfChangeUpdateNode => return Ok(None),
        Wire::ConfChangeAddLearnerNode => ConfChangeType::AddLearnerNode,
    });
    Ok(Some(out))
}
