//! The first entries of a new cluster.
//!
//! Called by boot before `wal::create`. Every founding member writes the same entries, in the order
//! in which it is given the members: callers sort them by id, as etcd does.

use bytes::Bytes;
use etcore_proto::raftpb;
use prost::Message as _;

use crate::types::{EntryKind, HardState, LogEntry, LogIndex, Term};

/// A founding member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: u64,
    /// Its description, as etcd's JSON.
    pub context: Bytes,
}

/// Entries 1 … n that add the peers, in term 1, and the hard state that has committed them.
pub fn bootstrap(peers: &[Peer]) -> (Vec<LogEntry>, HardState) {
    let entries: Vec<LogEntry> = peers
        .iter()
        .zip(1..)
        .map(|(peer, index)| {
            let change = raftpb::ConfChange {
                id: None,
                r#type: Some(raftpb::ConfChangeType::ConfChangeAddNode as i32),
                node_id: Some(peer.id),
                context: Some(peer.context.clone()),
            };
            LogEntry {
                index: LogIndex(index),
                term: Term(1),
                kind: EntryKind::ConfChange,
                data: change.encode_to_vec().into(),
            }
        })
        .collect();
    let state = HardState { term: Term(1), vote: 0, commit: LogIndex(entries.len() as u64) };
    (entries, if peers.is_empty() { HardState::default() } else { state })
}

/// The voters that the entries of [`bootstrap`] add, for a member that has applied nothing yet.
pub(crate) fn founding_voters<'a>(
    entries: impl Iterator<Item = &'a raft::eraftpb::Entry>,
    commit: u64,
) -> Vec<u64> {
    let mut voters = Vec::new();
    for entry in entries.take_while(|entry| entry.term == 1 && entry.index <= commit) {
        if crate::convert::kind(entry) != EntryKind::ConfChange {
            break;
        }
        let Ok(change) = raftpb::ConfChange::decode(entry.data.clone()) else { break };
        let id = change.node_id.unwrap_or(0);
        if change.r#type.unwrap_or(0) != 0 || id == 0 || voters.contains(&id) {
            break;
        }
        voters.push(id);
    }
    voters
}
