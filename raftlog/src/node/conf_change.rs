//! Configuration changes between etcd's numbering and raft-rs'.
//!
//! Called by the node. etcd has an "update" kind that raft ignores and numbers the learner kind 3,
//! where raft-rs has 2; handing etcd's numbers to raft-rs unchanged would turn a learner into a
//! voter.

use etcore_proto::raftpb::{self, ConfChangeType as Wire};
use raft::eraftpb::{self, ConfChangeSingle, ConfChangeTransition, ConfChangeType};

/// A change as raft-rs takes it. `None` if there is nothing for raft to do; an error text if the
/// change cannot be understood.
pub(super) fn v1(
    change: &raftpb::ConfChange,
) -> Result<Option<eraftpb::ConfChangeV2>, &'static str> {
    let mut out = eraftpb::ConfChangeV2::default();
    let Some(single) = single(change.r#type.unwrap_or(0), change.node_id.unwrap_or(0))? else {
        return Ok(None);
    };
    out.set_changes(vec![single].into());
    Ok(Some(out))
}

/// Decodes a change of several members at once. A change without steps ends a joint configuration.
pub(super) fn v2(
    change: &raftpb::ConfChangeV2,
) -> Result<Option<eraftpb::ConfChangeV2>, &'static str> {
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
