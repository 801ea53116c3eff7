//! Large requests take turns: a front handles one a round.
//!
//! Each is looked through as a whole, and copied if there is no room around it, which takes as long
//! as many small requests; many that are complete at the same time would keep all others waiting.
//! Called by the front's events and turns; must never let them wait for anything but the front's
//! next rounds.

use std::collections::VecDeque;

use crate::api::Unary;
use crate::limits;

/// The large requests of one front that came whole, in their order. Their bytes count as
/// proposals: connections with too many are not read.
#[derive(Default)]
pub(super) struct LargeRequests {
    waiting: VecDeque<Unary>,
    bytes: usize,
    /// One was handled in this round.
    taken: bool,
}

impl LargeRequests {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes of the requests that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn begin_round(&mut self) {
        self.taken = false;
    }

    /// True if a request may be handled now; if not, it is to be put in by
    /// [`LargeRequests::push`].
    pub(super) fn admits(&mut self, request: &Unary) -> bool {
        request.message.len() <= limits::LARGE_PROPOSAL_BYTES
            || !std::mem::replace(&mut self.taken, true)
    }

    pub(super) fn push(&mut self, request: Unary) {
        self.bytes += request.message.len();
        self.waiting.push_back(request);
    }

    /// The first that waits, if none was handled in this round; to be told by
    /// [`LargeRequests::took`] if it was, since those of connections that are gone take no time.
    pub(super) fn pop(&mut self) -> Option<Unary> {
        if self.taken {
            return None;
        }
        let request = self.waiting.pop_front()?;
        self.bytes -= request.message.len();
        Some(request)
    }

    pub(super) fn took(&mut self) {
        self.taken = true;
    }
}
