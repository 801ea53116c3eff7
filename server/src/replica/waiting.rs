//! Proposals that this member gave to another leader: who waits for which.
//!
//! Owned by the replica. An entry that is applied is matched by the ID of its request; a proposal
//! that got lost on its way is answered when its time is up, since nobody can say what became of
//! it. Every one has its place in a front that waits, which is its bound.

use std::collections::{HashMap, VecDeque};

use etcore_proto::error::EtcdError;

use super::propose::Origin;
use super::{Replica, Reply, Slot, ToFront};
use crate::entry;

/// See the module text.
///
/// Invariant: every ID in `by_id` is in `deadlines`. Nothing depends on the map's order.
#[derive(Default)]
pub(super) struct Waiting {
    by_id: HashMap<u64, (usize, Slot)>,
    deadlines: VecDeque<(u64, u64)>,
}

impl Waiting {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Waits for the entry with the origin's ID to be applied, until `deadline_ms`.
    pub(super) fn insert(&mut self, origin: Origin, deadline_ms: u64) {
        self.by_id.insert(origin.id, (origin.front, origin.slot));
        self.deadlines.push_back((deadline_ms, origin.id));
    }

    /// Who waits for the entry with these data.
    pub(super) fn take(&mut self, entry: &[u8]) -> Option<(usize, Slot)> {
        if self.by_id.is_empty() {
            return None;
        }
        let found = self.by_id.remove(&entry::request_id(entry)?);
        // Most are answered in the order they were made.
        while self.deadlines.front().is_some_and(|(_, id)| !self.by_id.contains_key(id)) {
            self.deadlines.pop_front();
        }
        found
    }

    /// The next one whose time is up.
    fn expired(&mut self, now_ms: u64) -> Option<(usize, Slot)> {
        while let Some((_, id)) = self.deadlines.pop_front_if(|(at_ms, _)| *at_ms <= now_ms) {
            if let Some(found) = self.by_id.remove(&id) {
                return Some(found);
            }
        }
        None
    }
}

impl Replica {
    /// Answers what nobody will hear of any more: forwarded proposals, and those of a leadership
    /// that is over. The fronts have told their clients; this ends the wait for the reply.
    pub(super) fn expire_proposals(&mut self) {
        let now_ms = self.now_ms;
        while let Some((front, slot)) = self.waiting.expired(now_ms) {
            self.give_up((front, slot));
        }
        self.peering.expire_forwarded(now_ms.saturating_sub(self.request_timeout_ms));
        if self.is_leader() {
            return;
        }
        while let Some(proposal) = self.proposals.pop_front_if(|p| p.deadline_ms <= now_ms) {
            if let Some(origin) = proposal.from {
                self.give_up((origin.front, origin.slot));
            }
        }
    }

    /// Ends the wait for a proposal whose outcome will not be known here.
    pub(super) fn give_up(&mut self, (front, slot): (usize, Slot)) {
        let reply = Reply::Refused(EtcdError::Timeout.into());
        self.fronts[front].send(ToFront::Reply { slot, reply });
    }

    /// Proposals that this member appended at and behind `first` in an earlier term are no longer
    /// in its log. Another member may still hold them and get them committed, somewhere else in
    /// the order: they wait by their IDs from now on.
    pub(super) fn outlive_overwritten(&mut self, first: u64) {
        while let Some(proposal) = self.proposals.pop_back_if(|p| p.index.0 >= first) {
            if let Some(origin) = proposal.from {
                self.waiting.insert(origin, proposal.deadline_ms);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(id: u64) -> Origin {
        Origin { front: 0, slot: 100 + id, id }
    }

    #[test]
    fn an_entry_finds_who_waits_for_its_id_once() {
        let mut waiting = Waiting::default();
        waiting.insert(origin(7), 50);
        waiting.insert(origin(8), 60);
        assert_eq!(waiting.take(&entry::wrap_request(4, b"", 9)), None);
        assert_eq!(waiting.take(b"\xff"), None);
        let entry = entry::wrap_request(4, b"", 8);
        assert_eq!((waiting.take(&entry), waiting.take(&entry)), (Some((0, 108)), None));
        assert_eq!(waiting.take(&entry::wrap_request(5, b"", 7)), Some((0, 107)));
        assert_eq!((waiting.len(), waiting.deadlines.len()), (0, 0));
    }

    #[test]
    fn what_is_lost_is_given_up_at_its_deadline() {
        let mut waiting = Waiting::default();
        (1..=3).for_each(|id| waiting.insert(origin(id), 10 * id));
        assert_eq!(waiting.take(&entry::wrap_request(4, b"", 2)), Some((0, 102)));
        assert_eq!(waiting.expired(9), None);
        assert_eq!((waiting.expired(30), waiting.expired(30)), (Some((0, 101)), Some((0, 103))));
        assert_eq!(waiting.expired(30), None);
    }
}
