//! What goes to the replica: proposals, requests for linearizable points, and questions about
//! leases.
//!
//! Owned by [`Services`](super::Services). The rings are bounded: what finds one full waits here,
//! in order, and the front reads no sockets meanwhile.

use super::pending::Pending;
use crate::channel::{LeaseRequest, Outgoing, Producer, ToReplica};
use crate::ids::{IdBlock, RequestIds};

/// See the module text. Invariant: tickets are handed out and asked for in ascending order.
pub(super) struct Outbox {
    to_replica: Outgoing<ToReplica>,
    /// At most one question a pending call, passed on once a turn.
    to_lessor: Outgoing<LeaseRequest>,
    next_ticket: u64,
    asked_ticket: u64,
    ids: IdBlock,
}

impl Outbox {
    pub(super) fn new(to_replica: Producer<ToReplica>, to_lessor: Producer<LeaseRequest>) -> Self {
        Self {
            to_replica: Outgoing::new(to_replica),
            to_lessor: Outgoing::new(to_lessor),
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

    pub(super) fn push(&mut self, message: ToReplica) {
        self.to_replica.push(message);
    }

    pub(super) fn push_lease_request(&mut self, request: LeaseRequest) {
        self.to_lessor.push_later(request);
    }

    /// True if the replica does not keep up.
    pub(super) fn is_full(&self) -> bool {
        self.to_replica.is_waiting()
    }

    /// Passes everything on, as far as the rings have room, and wakes the replica. Once a turn.
    pub(super) fn flush(&mut self, pending: &mut Pending) {
        if self.next_ticket > self.asked_ticket {
            self.asked_ticket = self.next_ticket;
            self.to_replica.push(ToReplica::Read { up_to: self.next_ticket });
        }
        self.to_lessor.flush(|request| pending.is_waiting(request.slot));
        self.to_replica.flush(|message| match message {
            // Its client has its time-out, and the replica has not seen it.
            ToReplica::Propose { slot, .. } if pending.is_abandoned(*slot) => {
                pending.remove(*slot);
                false
            }
            _ => true,
        });
    }
}
