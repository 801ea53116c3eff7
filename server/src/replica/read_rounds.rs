//! Read rounds: what raft is asked before a linearizable read, and which front waits for which.
//!
//! Part of the replica. Rounds end in the order of their tickets. A front whose round raft does not
//! take asks again with its next ticket, or lets its reads time out.

use std::collections::VecDeque;

use etcore_raftlog::node::Node;

/// A read round of a front that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Round {
    /// The ticket raft knows.
    ticket: u64,
    pub(super) front: usize,
    /// The front's own ticket.
    pub(super) up_to: u64,
}

/// See the module text. Invariant: `rounds` ascend by ticket, and none is above `last_ticket`.
#[derive(Debug, Default)]
pub(super) struct ReadRounds {
    rounds: VecDeque<Round>,
    last_ticket: u64,
}

impl ReadRounds {
    /// Begins a round that no front waits for; returns its ticket, or `None` if raft takes no more
    /// rounds now.
    pub(super) fn begin_round(&mut self, node: &mut Node) -> Option<u64> {
        let ticket = self.last_ticket + 1;
        node.read_index(ticket).then(|| {
            self.last_ticket = ticket;
            ticket
        })
    }

    /// Begins a round for all reads of a front up to its ticket. False if raft takes no more now.
    pub(super) fn begin_front_round(&mut self, node: &mut Node, front: usize, up_to: u64) -> bool {
        let Some(ticket) = self.begin_round(node) else { return false };
        debug_assert!(self.rounds.back().is_none_or(|last| last.ticket < ticket));
        self.rounds.push_back(Round { ticket, front, up_to });
        true
    }

    /// The next front's round that ends with the one of this ticket.
    pub(super) fn next_ended(&mut self, ticket: u64) -> Option<Round> {
        self.rounds.pop_front_if(|round| round.ticket <= ticket)
    }
}
