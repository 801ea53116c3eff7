//! Who waits for which proposal: of those in this member's log, and of those given to a leader.
//!
//! Part of the replica. A proposal that this member appended as leader is matched by its place in
//! the log, one that it forwarded by the ID of its request. A forwarded proposal that got lost on
//! its way is answered when its time is up, since nobody can say what became of it, or sooner: once
//! the first entry of a later leader is applied, what an earlier one was given and has not got into
//! the log is most likely lost with it. etcd lets its clients wait for their whole seven seconds
//! then. Every one has its place in a front that waits, which is its bound.

use std::collections::{BTreeSet, HashMap, VecDeque};

use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_engine::types::{LogIndex, Term};
use etcore_proto::error::EtcdError;
use etcore_raftlog::types::LogEntry;

use super::Replica;
use super::intake::Origin;
use crate::channel::Slot;
use crate::{entry, limits};

/// See the module text.
///
/// Invariant: every ID in `by_id` is in `deadlines`. Nothing depends on the map's order.
#[derive(Default)]
struct Forwarded {
    by_id: HashMap<u64, Requester>,
    deadlines: VecDeque<(u64, u64)>,
    /// What was given to leaders of earlier terms than this is given up then, in milliseconds.
    lost: Option<(Term, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Requester {
    front: usize,
    slot: Slot,
    /// The leader's that it was given to.
    term: Term,
}

impl Forwarded {
    /// How many wait.
    fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Waits for the entry with the origin's ID to be applied, until `deadline_ms`; the leader of
    /// `term` was given it.
    fn insert(&mut self, origin: Origin, deadline_ms: u64, term: Term) {
        let requester = Requester { front: origin.front, slot: origin.slot, term };
        self.by_id.insert(origin.id, requester);
        self.deadlines.push_back((deadline_ms, origin.id));
    }

    /// The first entry of this term was applied. What an earlier leader passes on to this one is
    /// still on its way for a moment.
    fn begin_term(&mut self, term: Term, now_ms: u64) {
        if !self.by_id.is_empty() && !is_on(SeededBug::LostProposalsWaitOn) {
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
            let Some(requester) = self.by_id.get(id) else { return false };
            if requester.term < term {
                lost.push((requester.front, requester.slot));
                self.by_id.remove(id);
                return false;
            }
            true
        });
        lost
    }

    /// Who waits for the entry with these data.
    fn take(&mut self, entry: &[u8]) -> Option<(usize, Slot)> {
        if self.by_id.is_empty() {
            return None;
        }
        let found = self.by_id.remove(&entry::request_id(entry)?);
        let found = found.map(|requester| (requester.front, requester.slot));
        // Most are answered in the order they were made.
        while self.deadlines.front().is_some_and(|(_, id)| !self.by_id.contains_key(id)) {
            self.deadlines.pop_front();
        }
        found
    }

    /// The next one whose time is up.
    fn expired(&mut self, now_ms: u64) -> Option<(usize, Slot)> {
        while let Some((_, id)) = self.deadlines.pop_front_if(|(at_ms, _)| *at_ms <= now_ms) {
            if let Some(requester) = self.by_id.remove(&id) {
                return Some((requester.front, requester.slot));
            }
        }
        None
    }

    fn check(&self) {
        let timed: BTreeSet<u64> = self.deadlines.iter().map(|(_, id)| *id).collect();
        let all = self.by_id.keys().all(|id| timed.contains(id));
        assert!(all, "every forwarded proposal has a deadline");
    }
}

/// A proposal of this member that waits to be applied.
#[derive(Debug)]
struct Proposal {
    index: LogIndex,
    term: Term,
    /// `None` for the member's own.
    from: Option<Origin>,
    /// When nobody waits for it any more, should this member no longer lead.
    deadline_ms: u64,
}

/// What became of the proposals before an applied entry, and who waits for the entry itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Another leader's entries took their places, for good.
    pub(super) replaced: Vec<(usize, Slot)>,
    pub(super) waits: Option<(usize, Slot)>,
}

/// See the module text. Invariant: `appended` ascend by index.
#[derive(Default)]
pub(super) struct Proposals {
    appended: VecDeque<Proposal>,
    forwarded: Forwarded,
}

impl Proposals {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.appended.len() + self.forwarded.len()
    }

    /// This member has appended entries from `first` on. What an earlier leadership of it has left
    /// there is gone.
    pub(super) fn appended(
        &mut self,
        first: LogIndex,
        term: Term,
        origins: Vec<Option<Origin>>,
        deadline_ms: u64,
    ) {
        self.outlive_overwritten(first);
        for (index, from) in (first.0..).zip(origins) {
            self.appended.push_back(Proposal { index: LogIndex(index), term, from, deadline_ms });
        }
    }

    /// Entries were given to the leader of `term`.
    pub(super) fn forwarded(
        &mut self,
        origins: impl Iterator<Item = Origin>,
        deadline_ms: u64,
        term: Term,
    ) {
        origins.for_each(|origin| self.forwarded.insert(origin, deadline_ms, term));
    }

    /// Proposals that this member appended at and behind `first` in an earlier term are no longer
    /// in its log. Another member may still hold them and get them committed, somewhere else in
    /// the order: they wait by their IDs from now on.
    pub(super) fn outlive_overwritten(&mut self, first: LogIndex) {
        while let Some(proposal) = self.appended.pop_back_if(|known| known.index >= first) {
            if let Some(origin) = proposal.from {
                self.forwarded.insert(origin, proposal.deadline_ms, proposal.term);
            }
        }
    }

    /// The first entry of this term was applied.
    pub(super) fn begin_term(&mut self, term: Term, now_ms: u64) {
        self.forwarded.begin_term(term, now_ms);
    }

    /// An entry was applied.
    pub(super) fn settle(&mut self, entry: &LogEntry) -> Settled {
        let mut settled = Settled::default();
        while let Some(Proposal { index, term, from, .. }) =
            self.appended.pop_front_if(|proposal| proposal.index <= entry.index)
        {
            let from = from.map(|origin| (origin.front, origin.slot));
            if index == entry.index && term == entry.term {
                settled.waits = from;
                return settled;
            }
            settled.replaced.extend(from);
        }
        settled.waits = self.forwarded.take(&entry.data);
        settled
    }

    /// The next forwarded proposal whose time is up.
    fn next_expired(&mut self, now_ms: u64) -> Option<(usize, Slot)> {
        self.forwarded.expired(now_ms)
    }

    /// The next appended proposal for which `is_over` holds; `None` once the first goes on.
    fn next_over(&mut self, is_over: impl Fn(&Proposal) -> bool) -> Option<Option<Origin>> {
        self.appended.pop_front_if(|proposal| is_over(proposal)).map(|proposal| proposal.from)
    }

    /// Checks the invariants, which takes a look at everything.
    pub(super) fn check(&self) {
        let ascends = self.appended.iter().zip(self.appended.iter().skip(1));
        assert!(ascends.into_iter().all(|(a, b)| a.index < b.index), "proposals have an order");
        self.forwarded.check();
    }

    #[cfg(test)]
    pub(super) fn forwarded_len(&self) -> usize {
        self.forwarded.len()
    }
}

impl Replica {
    /// Answers what nobody will hear of any more: forwarded proposals, and those of a leadership
    /// that is over. The fronts have told their clients; this ends the wait for the reply.
    pub(super) fn expire_proposals(&mut self) {
        let now_ms = self.turn.now_ms();
        while let Some((front, slot)) = self.proposals.next_expired(now_ms) {
            self.fronts.refuse(front, slot, EtcdError::Timeout);
        }
        for (front, slot) in self.proposals.forwarded.take_lost(now_ms) {
            self.fronts.refuse(front, slot, EtcdError::TimeoutDueToLeaderFail);
        }
        self.peer_queue.expire_forwarded(now_ms.saturating_sub(self.request_timeout_ms));
        if self.is_leader() {
            return;
        }
        while let Some(from) = self.proposals.next_over(|known| known.deadline_ms <= now_ms) {
            self.give_up(from);
        }
    }

    /// Proposals of an earlier leadership whose place a snapshot covers: nobody can say any more
    /// what became of them.
    pub(super) fn give_up_covered(&mut self, index: LogIndex) {
        while let Some(from) = self.proposals.next_over(|known| known.index <= index) {
            self.give_up(from);
        }
    }

    /// Ends the wait for a proposal whose outcome will not be known here.
    fn give_up(&mut self, from: Option<Origin>) {
        if let Some(Origin { front, slot, .. }) = from {
            self.fronts.refuse(front, slot, EtcdError::Timeout);
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
        let mut waiting = Forwarded::default();
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
        let mut waiting = Forwarded::default();
        (1..=3).for_each(|id| waiting.insert(origin(id), 10 * id, Term(1)));
        assert_eq!(waiting.take(&entry::wrap_request(4, b"", 2)), Some((0, 102)));
        assert_eq!(waiting.expired(9), None);
        assert_eq!((waiting.expired(30), waiting.expired(30)), (Some((0, 101)), Some((0, 103))));
        assert_eq!(waiting.expired(30), None);
    }

    #[test]
    fn what_an_earlier_leader_was_given_is_lost_soon_after_a_later_one_has_begun() {
        let mut waiting = Forwarded::default();
        (1..=4).for_each(|id| waiting.insert(origin(id), 7000, Term(1 + id / 3)));
        waiting.begin_term(Term(2), 1000);
        assert_eq!(waiting.take_lost(1000), []);
        assert_eq!(waiting.take(&entry::wrap_request(4, b"", 1)), Some((0, 101)), "passed on");
        assert_eq!(waiting.take_lost(1000 + limits::PASSED_ON_MS), [(0, 102)]);
        assert_eq!((waiting.len(), waiting.deadlines.len()), (2, 2), "the later leader's");
        assert_eq!(waiting.take_lost(9000), []);
    }
}
