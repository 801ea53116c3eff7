//! Linearizable reads: tickets grouped into rounds of ReadIndex.
//!
//! Called by the node. raft-rs drops a read request silently before the first commit of a term and
//! whenever a message is lost, so rounds are repeated; contexts are unique, so a late answer can
//! only ever meet the round that asked. It must never answer a ticket with an index that was
//! committed before the ticket was taken but not current then.

use std::collections::VecDeque;

use super::effects::ReadReady;
use crate::limits;
use crate::types::LogIndex;

/// Member ‖ boot nonce ‖ counter.
pub(super) const CONTEXT_BYTES: usize = 24;

#[derive(Debug)]
struct Round {
    counter: u64,
    tickets: Vec<u64>,
    ticks_left: usize,
}

/// All tickets that were not answered yet.
///
/// Invariant: a ticket is in `waiting` or in exactly one round; counters of rounds increase.
#[derive(Debug)]
pub(super) struct Reads {
    id: u64,
    nonce: u64,
    counter: u64,
    retry_ticks: usize,
    waiting: Vec<u64>,
    rounds: VecDeque<Round>,
    len: usize,
}

impl Reads {
    pub(super) fn new(id: u64, nonce: u64, retry_ticks: usize) -> Self {
        Self {
            id,
            nonce,
            counter: 0,
            retry_ticks,
            waiting: Vec::new(),
            rounds: VecDeque::new(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() && self.rounds.len() < limits::READ_ROUNDS_MAX
    }

    /// False if there are too many.
    pub(super) fn add(&mut self, ticket: u64) -> bool {
        if self.len >= limits::READ_TICKETS_MAX {
            return false;
        }
        self.waiting.push(ticket);
        self.len += 1;
        self.check();
        true
    }

    /// Puts everything that waits into a new round and returns its context.
    pub(super) fn start_round(&mut self) -> Vec<u8> {
        self.counter += 1;
        let tickets = std::mem::take(&mut self.waiting);
        self.rounds.push_back(Round {
            counter: self.counter,
            tickets,
            ticks_left: self.retry_ticks,
        });
        let mut context = Vec::with_capacity(CONTEXT_BYTES);
        for part in [self.id, self.nonce, self.counter] {
            context.extend_from_slice(&part.to_be_bytes());
        }
        context
    }

    /// The round of `context` is confirmed at `index`. Earlier rounds asked earlier, so the index
    /// is good for them too.
    pub(super) fn confirm(&mut self, context: &[u8], index: u64, out: &mut Vec<ReadReady>) {
        let Some(counter) = self.own_counter(context) else { return };
        if !self.rounds.iter().any(|round| round.counter == counter) {
            return;
        }
        while self.rounds.front().is_some_and(|round| round.counter <= counter) {
            let tickets = self.rounds.pop_front().map(|round| round.tickets).unwrap_or_default();
            self.len -= tickets.len();
            let index = LogIndex(index);
            out.extend(tickets.into_iter().map(|ticket| ReadReady { ticket, index }));
        }
        self.check();
    }

    /// A tick passed: rounds that took too long are asked again.
    pub(super) fn tick(&mut self) {
        for round in &mut self.rounds {
            round.ticks_left = round.ticks_left.saturating_sub(1);
        }
        while self.rounds.front().is_some_and(|round| round.ticks_left == 0) {
            let tickets = self.rounds.pop_front().map(|round| round.tickets).unwrap_or_default();
            self.waiting.extend(tickets);
        }
    }

    /// The leader or the term changed: nobody will answer the rounds in flight.
    pub(super) fn restart(&mut self) {
        for round in self.rounds.drain(..) {
            self.waiting.extend(round.tickets);
        }
        self.check();
    }

    /// Asserts the invariants, where debug assertions are on.
    fn check(&self) {
        let asked: usize = self.rounds.iter().map(|round| round.tickets.len()).sum();
        debug_assert_eq!(self.len, self.waiting.len() + asked, "each ticket is in one place");
        let counters = || self.rounds.iter().map(|round| round.counter);
        debug_assert!(counters().is_sorted_by(|a, b| a < b), "counters of rounds increase");
    }

    fn own_counter(&self, context: &[u8]) -> Option<u64> {
        let (words, rest) = context.as_chunks::<8>();
        match words {
            [id, nonce, counter] if rest.is_empty() => {
                let own =
                    u64::from_be_bytes(*id) == self.id && u64::from_be_bytes(*nonce) == self.nonce;
                own.then_some(u64::from_be_bytes(*counter))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(out: &[ReadReady]) -> Vec<u64> {
        out.iter().map(|ready| ready.ticket).collect()
    }

    #[test]
    fn a_confirmed_round_answers_the_earlier_ones_too() {
        let mut reads = Reads::new(1, 2, 3);
        let mut out = Vec::new();
        reads.add(10);
        let first = reads.start_round();
        reads.add(11);
        reads.add(12);
        let second = reads.start_round();
        reads.confirm(&second, 7, &mut out);
        assert_eq!(tickets(&out), [10, 11, 12]);
        reads.confirm(&first, 7, &mut out);
        assert_eq!(out.len(), 3);
        assert_eq!(reads.len(), 0);
    }

    #[test]
    fn an_unanswered_round_is_asked_again_and_its_late_answer_ignored() {
        let mut reads = Reads::new(1, 2, 2);
        let mut out = Vec::new();
        reads.add(10);
        let lost = reads.start_round();
        reads.tick();
        assert!(!reads.is_waiting());
        reads.tick();
        assert!(reads.is_waiting());
        reads.confirm(&lost, 7, &mut out);
        assert!(out.is_empty());
        let again = reads.start_round();
        assert_ne!(lost, again);
        reads.confirm(&again, 9, &mut out);
        assert_eq!(out, [ReadReady { ticket: 10, index: LogIndex(9) }]);
    }

    #[test]
    fn contexts_of_other_members_and_boots_are_not_ours() {
        let mut reads = Reads::new(1, 2, 2);
        reads.add(10);
        reads.start_round();
        let mut out = Vec::new();
        for (id, nonce) in [(1, 3), (2, 2)] {
            let mut other = Reads::new(id, nonce, 2);
            let context = other.start_round();
            reads.confirm(&context, 7, &mut out);
        }
        reads.confirm(b"short", 7, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn tickets_are_bounded() {
        let mut reads = Reads::new(1, 2, 2);
        for ticket in 0..limits::READ_TICKETS_MAX {
            assert!(reads.add(ticket as u64));
        }
        assert!(!reads.add(0));
    }
}
