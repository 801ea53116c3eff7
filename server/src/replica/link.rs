//! The rings between the replica and its fronts.
//!
//! Part of the replica. A reply is never lost: what finds the ring full waits, and there is never
//! more of it than the front has asked for. Proposals that cannot be taken are put aside, so
//! that reads behind them in the ring do not wait with them.

use std::collections::VecDeque;

use bytes::Bytes;

use etcore_proto::error::EtcdError;

use super::intake::Origin;
use crate::channel::{Consumer, LeaseRequest, Outgoing, Producer, Reply, Slot, ToFront, ToReplica};
use crate::limits;

/// The rings to one front.
pub struct FrontLink {
    /// From the front.
    inbox: Consumer<ToReplica>,
    /// Proposals out of the ring that could not be taken, before all that is in it.
    deferred: VecDeque<ToReplica>,
    /// Requests about leases from the front.
    lease_requests: Consumer<LeaseRequest>,
    /// To the front. What waits for room is bounded by what the front may have outstanding.
    outbox: Outgoing<ToFront>,
    /// Large proposals out of the ring, bounded likewise: small ones overtake them.
    large: VecDeque<(Origin, Bytes)>,
}

impl FrontLink {
    /// Ties the rings together.
    pub fn new(
        inbox: Consumer<ToReplica>,
        lease_requests: Consumer<LeaseRequest>,
        outbox: Producer<ToFront>,
    ) -> Self {
        Self {
            inbox,
            deferred: VecDeque::new(),
            lease_requests,
            outbox: Outgoing::new(outbox),
            large: VecDeque::new(),
        }
    }

    /// The next message.
    pub(super) fn next(&mut self) -> Option<ToReplica> {
        self.deferred.pop_front().or_else(|| self.inbox.pop())
    }

    /// What [`FrontLink::next`] gave is the next again.
    pub(super) fn put_back(&mut self, message: ToReplica) {
        self.deferred.push_front(message);
    }

    /// The next message that is no proposal; proposals in front of it keep their order.
    pub(super) fn next_but_proposals(&mut self) -> Option<ToReplica> {
        while self.has_news() {
            match self.inbox.pop()? {
                proposal @ ToReplica::Propose { .. } => self.deferred.push_back(proposal),
                other => return Some(other),
            }
        }
        None
    }

    /// True if there is something that [`FrontLink::next_but_proposals`] has not looked at and
    /// would.
    pub(super) fn has_news(&self) -> bool {
        !self.inbox.is_empty() && self.deferred.len() < limits::PROPOSALS_ASIDE
    }

    /// True if [`FrontLink::next`] has something.
    pub(super) fn has_messages(&self) -> bool {
        !self.deferred.is_empty() || !self.inbox.is_empty()
    }

    /// The next request about leases.
    pub(super) fn next_lease_request(&mut self) -> Option<LeaseRequest> {
        self.lease_requests.pop()
    }

    /// Keeps a large proposal for the time when the log has room for it.
    pub(super) fn keep_large(&mut self, origin: Origin, data: Bytes) {
        self.large.push_back((origin, data));
    }

    /// The next large proposal.
    pub(super) fn next_large(&mut self) -> Option<(Origin, Bytes)> {
        self.large.pop_front()
    }

    pub(super) fn has_large(&self) -> bool {
        !self.large.is_empty()
    }

    /// True if there is something else than proposals that a turn would take, or room for what
    /// found the ring full.
    pub(super) fn has_input(&self) -> bool {
        self.outbox.can_flush() || self.has_news() || !self.lease_requests.is_empty()
    }
}

/// The links to all fronts, by their number.
pub(super) struct Fronts(Vec<FrontLink>);

impl Fronts {
    pub(super) fn new(links: Vec<FrontLink>) -> Self {
        Self(links)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &FrontLink> {
        self.0.iter()
    }

    /// The link to a front.
    pub(super) fn link(&mut self, front: usize) -> &mut FrontLink {
        &mut self.0[front]
    }

    /// Sends a message now, whatever is published.
    pub(super) fn send(&mut self, front: usize, message: ToFront) {
        self.0[front].outbox.push(message);
    }

    /// Refuses what waits in this place of a front.
    pub(super) fn refuse(&mut self, front: usize, slot: Slot, error: EtcdError) {
        self.send(front, ToFront::Reply { slot, reply: Reply::Refused(error.into()) });
    }

    /// Hands over what the turn has sent.
    pub(super) fn flush(&mut self) {
        self.0.iter_mut().for_each(|link| link.outbox.flush(|_| true));
    }
}
