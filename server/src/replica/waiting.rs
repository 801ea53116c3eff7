//! Proposals that this member gave to another leader: who waits for which.
//!
//! Owned by the replica. An entry that is applied is matched by the ID of its request. A proposal
//! that got lost on its way is answered when its time is up, since nobody can say what became of
//! it, or sooner: once the first entry of a later leader is applied, what an earlier one was given
//! and has not got into the log is most likely lost with it. etcd lets its clients wait for their
//! whole seven seconds then. Every one has its place in a front that waits, which is its bound.

use std::collections::{HashMap, VecDeque};

use etcore_engine::mutation::{Mutation, is_on};
use etcore_engine::types::Term;
use etcore_proto::error::EtcdError;

use super::Replica;
use super::propose::Origin;
use crate::channel::{Reply, Slot, ToFront};
use crate::{entry, limits};

/// See the module text.
///
/// Invariant: every ID in `by_id` is in `deadlines`. Nothing depends on the map's order.
#[derive(Default)]
pub(super) struct Waiting {
    by_id: HashMap<u64, Asker>,
    deadlines: VecDeque<(u64, u64)>,
    /// What was given to leaders of earlier terms than this is given up then, in milliseconds.
    lost: Option<(Term, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asker {
    front: usize,
    slot: Slot,
    /// The leader's that it was given to.
    term: Term,
}

impl Waiting {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Waits for the entry with the origin's ID to be applied, until `deadline_ms`; the leader of
    /// `term` was given it.
    pub(super) fn insert(&mut self, origin: Origin, deadline_ms: u64, term: Term) {
        let asker = Asker { front: origin.front, slot: origin.slot, term };
        self.by_id.insert(origin.id, asker);
        self.deadlines.push_back((deadline_ms, origin.id));
    }

    /// The first entry of this term was applied. What an earlier leader passes on to this one is
    /// still on its way for a moment.
    pub(super) fn begin_term(&mut self, term: Term, now_ms: u64) {
        if !self.by_id.is_empty() && !is_on(Mutation::LostProposalsWaitOn) {
            self.lost = Some((term, now_ms + limits::PASSED_ON_MS));
        }
    }

    /// Takes who waits for what is lost, in the order they came.
    fn take_lost(&mut self, now_ms: u64) -> Vec<(usize, Slot)> {
        let Some((term, _)) = self.lost.take_if(|(_, at_ms)| *at_ms <= now_ms) else {
            return Vec::new();
        };
        let mut lost = Vec::new();
        self.deadlines.retain(|(_, id)| {
            let Some(asker) = self.by_id.get(id) else { return false };
            if asker.term < term {
                lost.push((asker.front, asker.slot));
                self.by_id.remove(id);
                return false;
            }
            true
        });
        lost
    }

    /// Who waits for the entry with these data.
    pub(super) fn take(&mut self, entry: &[u8]) -> Option<(usize, Slot)> {
        if self.by_id.is_empty() {
            return None;
        }
        let found = self.by_id.remove(&entry::request_id(entry)?);
        let found = found.map(|asker| (asker.front, asker.slot));
        // Most are answered in the order they were made.
        while self.deadlines.front().is_some_and(|(_, id)| !self.by_id.contains_key(id)) {
            self.deadlines.pop_front();
        }
        found
    }

    /// The next one whose time is up.
    fn expired(&mut self, now_ms: u64) -> Option<(usize, Slot)> {
        while let Some((_, id)) = self.deadlines.pop_front_if(|(at_ms, _)| *at_ms <= now_ms) {
            if let Some(asker) = self.by_id.remove(&id) {
                return Some((asker.front, asker.slot));
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
            self.give_up((front, slot), EtcdError::Timeout);
        }
        for asker in self.waiting.take_lost(now_ms) {
            self.give_up(asker, EtcdError::TimeoutDueToLeaderFail);
        }
        self.peering.expire_forwarded(now_ms.saturating_sub(self.request_timeout_ms));
        if self.is_leader() {
            return;
        }
        while let Some(proposal) = self.proposals.pop_front_if(|p| p.deadline_ms <= now_ms) {
            if let Some(origin) = proposal.from {
                self.give_up((origin.front, origin.slot), EtcdError::Timeout);
            }
        }
    }

    /// Ends the wait for a proposal whose outcome will not be known here.
    pub(super) fn give_up(&mut self, (front, slot): (usize, Slot), error: EtcdError) {
        let reply = Reply::Refused(error.into());
        self.fronts[front].send(ToFront::Reply { slot, reply });
    }

    /// Proposals that this member appended at and behind `first` in an earlier term are no longer
    /// in its log. Another member may still hold them and get them committed, somewhere else in
    /// the order: they wait by their IDs from now on.
    pub(super) fn outlive_overwritten(&mut self, first: u64) {
        while let Some(proposal) = self.proposals.pop_back_if(|p| p.index.0 >= first) {
            if let Some(origin) = proposal.from {
                self.waiting.insert(origin, proposal.deadline_ms, proposal.term);
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
        waiting.insert(origin(7), 50, Term(1));
        waiting.insert(origin(8), 60, Term(1));
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
        (1..=3).for_each(|id| waiting.insert(origin(id), 10 * id, Term(1)));
        assert_eq!(waiting.take(&entry::wrap_request(4, b"", 2)), Some((0, 102)));
        assert_eq!(waiting.expired(9), None);
        assert_eq!((waiting.expired(30), waiting.expired(30)), (Some((0, 101)), Some((0, 103))));
        assert_eq!(waiting.expired(30), None);
    }

    #[test]
    fn what_an_earlier_leader_was_given_is_lost_soon_after_a_later_one_has_begun() {
        let mut waiting = Waiting::default();
        (1..=4).for_each(|id| waiting.insert(origin(id), 7000, Term(1 + id / 3)));
        waiting.begin_term(Term(2), 1000);
        assert_eq!(waiting.take_lost(1000), []);
        assert_eq!(waiting.take(&entry::wrap_request(4, b"", 1)), Some((0, 101)), "passed on");
        assert_eq!(waiting.take_lost(1000 + limits::PASSED_ON_MS), [(0, 102)]);
        assert_eq!((waiting.len(), waiting.deadlines.len()), (2, 2), "the later leader's");
        assert_eq!(waiting.take_lost(9000), []);
    }
}
