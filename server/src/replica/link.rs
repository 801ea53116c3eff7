//! The rings between the replica and one front.
//!
//! Owned by the replica. A reply is never lost: what finds the ring full waits here, and there is
//! never more of it than the front has asked for.

use std::collections::VecDeque;

use bytes::Bytes;

use super::messages::{LeaseAsk, ToFront, ToReplica};
use super::propose::Origin;
use crate::ring::{Consumer, Producer};

/// The rings to one front.
pub struct FrontLink {
    /// From the front.
    pub inbox: Consumer<ToReplica>,
    /// Questions about leases from the front.
    pub asks: Consumer<LeaseAsk>,
    /// To the front.
    pub outbox: Producer<ToFront>,
    /// What did not fit into the ring; bounded by what the front may have outstanding.
    backlog: VecDeque<ToFront>,
    /// Large proposals out of the ring, bounded likewise: small ones overtake them.
    pub(super) large: VecDeque<(Origin, Bytes)>,
}

impl FrontLink {
    /// Ties the rings together.
    pub fn new(
        inbox: Consumer<ToReplica>,
        asks: Consumer<LeaseAsk>,
        outbox: Producer<ToFront>,
    ) -> Self {
        Self { inbox, asks, outbox, backlog: VecDeque::new(), large: VecDeque::new() }
    }

    pub(super) fn send(&mut self, message: ToFront) {
        if self.backlog.is_empty() {
            if let Err(message) = self.outbox.push(message) {
                self.backlog.push_back(message);
            }
        } else {
            self.backlog.push_back(message);
        }
    }

    /// True if something that found the ring full has room now.
    pub(super) fn can_flush(&self) -> bool {
        !self.backlog.is_empty() && self.outbox.room() > 0
    }

    pub(super) fn flush(&mut self) {
        while let Some(message) = self.backlog.pop_front() {
            if let Err(message) = self.outbox.push(message) {
                self.backlog.push_front(message);
                break;
            }
        }
        self.outbox.flush();
    }
}
