//! The rings between the replica and one front.
//!
//! Owned by the replica. A reply is never lost: what finds the ring full waits here, and there is
//! never more of it than the front has asked for. Proposals that cannot be taken are put aside, so
//! that reads behind them in the ring do not wait with them.

use std::collections::VecDeque;

use bytes::Bytes;

use super::propose::Origin;
use crate::channel::{Consumer, Producer};
use crate::channel::{LeaseAsk, ToFront, ToReplica};
use crate::limits;

/// The rings to one front.
pub struct FrontLink {
    /// From the front.
    inbox: Consumer<ToReplica>,
    /// Proposals out of the ring that could not be taken, before all that is in it.
    aside: VecDeque<ToReplica>,
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
        Self {
            inbox,
            aside: VecDeque::new(),
            asks,
            outbox,
            backlog: VecDeque::new(),
            large: VecDeque::new(),
        }
    }

    /// The next message.
    pub(super) fn next(&mut self) -> Option<ToReplica> {
        self.aside.pop_front().or_else(|| self.inbox.pop())
    }

    /// What [`FrontLink::next`] gave is the next again.
    pub(super) fn put_back(&mut self, message: ToReplica) {
        self.aside.push_front(message);
    }

    /// The next message that is no proposal; proposals in front of it keep their order.
    pub(super) fn next_but_proposals(&mut self) -> Option<ToReplica> {
        while self.has_news() {
            match self.inbox.pop()? {
                proposal @ ToReplica::Propose { .. } => self.aside.push_back(proposal),
                other => return Some(other),
            }
        }
        None
    }

    /// True if there is something that [`FrontLink::next_but_proposals`] has not looked at and
    /// would.
    pub(super) fn has_news(&self) -> bool {
        !self.inbox.is_empty() && self.aside.len() < limits::PROPOSALS_ASIDE
    }

    /// True if [`FrontLink::next`] has something.
    pub(super) fn has_messages(&self) -> bool {
        !self.aside.is_empty() || !self.inbox.is_empty()
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
