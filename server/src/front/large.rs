//! Large requests take turns: a front handles one a round.
//!
//! Each is looked through as a whole, and copied if there is no room around it, which takes as long
//! as many small requests; many that are complete at the same time would keep all others waiting.
//! Called by the front's calls and turns; must never let them wait for anything but the front's
//! next rounds.

use std::collections::VecDeque;

use super::Front;
use super::calls::Request;
use crate::limits;

/// Those of one front that came whole, in their order. Their bytes count as proposals: connections
/// with too many are not read.
#[derive(Default)]
pub(super) struct LargeRequests {
    waiting: VecDeque<Request>,
    bytes: usize,
    /// One was handled in this round.
    taken: bool,
}

impl LargeRequests {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Of those that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn begin_round(&mut self) {
        self.taken = false;
    }
}

impl Front {
    /// Gives back what may be handled now; a large request that may not waits.
    pub(super) fn admit_large(&mut self, request: Request) -> Option<Request> {
        let bytes = request.message.len();
        if bytes <= limits::LARGE_PROPOSAL_BYTES {
            return Some(request);
        }
        if !std::mem::replace(&mut self.large.taken, true) {
            return Some(request);
        }
        if let Some(conn) = self.conn(request.socket) {
            conn.proposal_bytes += bytes;
        }
        self.large.bytes += bytes;
        self.large.waiting.push_back(request);
        None
    }

    /// Handles the first that waits, if none was handled in this round.
    pub(super) fn take_large(&mut self) {
        while !self.large.taken
            && let Some(request) = self.large.waiting.pop_front()
        {
            let bytes = request.message.len();
            self.large.bytes -= bytes;
            // Those of connections that are gone take no time.
            let Some(conn) = self.conn(request.socket) else { continue };
            conn.proposal_bytes -= bytes;
            self.large.taken = true;
            let socket = request.socket;
            self.handle_unary(request);
            self.mark_dirty(socket);
        }
    }
}
