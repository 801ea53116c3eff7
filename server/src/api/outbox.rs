//! What goes to the replica: proposals, requests for linearizable points, and questions about
//! leases.
//!
//! Owned by [`Services`](super::Services). The rings are bounded: what finds one full waits here,
//! in order, and the front reads no sockets meanwhile.

use std::collections::VecDeque;

use super::pending::Pending;
use crate::channel::{LeaseRequest, Producer, ToReplica};
use crate::ids::{IdBlock, RequestIds};

/// See the module text. Invariant: tickets are handed out and asked for in ascending order.
pub(super) struct Outbox {
    to_replica: Producer<ToReplica>,
    /// Messages that found the ring full.
    overflow: VecDeque<ToReplica>,
    to_lessor: Producer<LeaseRequest>,
    /// Questions that are not passed on yet; at most one a pending call.
    lease_requests: VecDeque<LeaseRequest>,
    next_ticket: u64,
    asked_ticket: u64,
    ids: IdBlock,
}

impl Outbox {
    pub(super) fn new(to_replica: Producer<ToReplica>, to_lessor: Producer<LeaseRequest>) -> Self {
        Self {
            to_replica,
            overflow: VecDeque::new(),
            to_lessor,
            lease_requests: VecDeque::new(),
            next_ticket: 0,
            asked_ticket: 0,
            ids: IdBlock::default(),
        }
    }

    /// An ID for a proposal.
    pub(super) fn new_id(&mut self, ids: &RequestIds) -> u64 {
        self.ids.next(ids)
    }

    /// A ticket for a linearizable point; all that were taken are asked for in one round.
    pub(super) fn take_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Keeps the order of the messages: what found the ring full goes before what is new.
    pub(super) fn push(&mut self, message: ToReplica) {
        if self.overflow.is_empty() {
            if let Err(message) = self.to_replica.push(message) {
                self.overflow.push_back(message);
            }
        } else {
            self.overflow.push_back(message);
        }
    }

    pub(super) fn push_lease_request(&mut self, request: LeaseRequest) {
        self.lease_requests.push_back(request);
    }

    /// True if the replica does not keep up.
    pub(super) fn is_full(&self) -> bool {
        !self.overflow.is_empty()
    }

    /// Passes everything on, as far as the rings have room, and wakes the replica. Once a turn.
    pub(super) fn flush(&mut self, pending: &mut Pending) {
        if self.next_ticket > self.asked_ticket {
            self.asked_ticket = self.next_ticket;
            self.push(ToReplica::Read { up_to: self.next_ticket });
        }
        self.push_overflow(pending);
        self.push_lease_requests(pending);
        self.to_replica.flush();
    }

    fn push_overflow(&mut self, pending: &mut Pending) {
        while let Some(message) = self.overflow.pop_front() {
            if let ToReplica::Propose { slot, .. } = &message
                && pending.is_abandoned(*slot)
            {
                // Its client has its time-out, and the replica has not seen it.
                pending.remove(*slot);
                continue;
            }
            if let Err(message) = self.to_replica.push(message) {
                self.overflow.push_front(message);
                break;
            }
        }
    }

    fn push_lease_requests(&mut self, pending: &Pending) {
        while let Some(request) = self.lease_requests.pop_front() {
            if !pending.is_waiting(request.slot) {
                continue;
            }
            if let Err(request) = self.to_lessor.push(request) {
                self.lease_requests.push_front(request);
                break;
            }
        }
        self.to_lessor.flush();
    }
}
