//! When a member asks for an election: whose turn it is when a leader is missed, and what a
//! candidate does that wins nothing.
//!
//! Part of the node. raft draws the time without a leader at random from one to two election
//! timeouts, so that two members seldom ask at once; with a few members and ticks they often do,
//! and each time costs another timeout. Here the members that follow a leader have turns, in an
//! order that each term draws anew and all of them know: the first asks one tick after the election
//! timeout, when no other holds a vote back because it heard of the leader a moment later, and
//! the next one so much later that the first has been elected by then. A candidate that hears of no
//! leader asks again after a part of the timeout, not after a whole one: it disturbs nobody, since
//! raft's pre-vote comes first. Nothing here may depend on anything but seed, state and ticks.

use etcore_proto::splitmix::mix;
use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use super::Node;
use super::config::NodeConfig;

/// What the node remembers of elections.
#[derive(Debug, Default)]
pub(super) struct Elections {
    /// Term, leader and number of voters that `ticks` is for.
    drawn_for: (u64, u64, usize),
    ticks: usize,
    /// Since this member began to ask, and how often it has.
    candidate_ticks: usize,
    tries: u64,
}

impl Node {
    /// raft-rs draws election timeouts from the thread's random numbers; replaced by a function of
    /// what all members know, so that a run can be repeated.
    pub(super) fn set_election_timeout(&mut self) {
        let raft = &mut self.raw.raft;
        let voters = raft.prs().conf().voters().ids();
        let drawn_for = (raft.term, raft.leader_id, voters.len());
        if self.elections.ticks == 0 || self.elections.drawn_for != drawn_for {
            let others = voters.iter().filter(|id| *id != raft.leader_id);
            let ticks = election_timeout(&self.config, raft.term, others);
            (self.elections.drawn_for, self.elections.ticks) = (drawn_for, ticks);
        }
        raft.set_randomized_election_timeout(self.elections.ticks);
    }

    /// A candidate that has not become a leader, nor heard of one, asks again.
    pub(super) fn tick_candidate(&mut self) {
        let is_candidate =
            matches!(self.raw.raft.state, StateRole::PreCandidate | StateRole::Candidate);
        if !is_candidate {
            (self.elections.candidate_ticks, self.elections.tries) = (0, 0);
            return;
        }
        self.elections.candidate_ticks += 1;
        if self.elections.candidate_ticks >= retry_ticks(&self.config, self.elections.tries) {
            self.elections.candidate_ticks = 0;
            self.elections.tries += 1;
            self.campaign();
        }
    }

    /// The leader's process is known to be dead: another member's election is answered although
    /// this leader was heard of lately. Does nothing for a leader.
    pub fn doubt_leader(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Follower {
            raft.election_elapsed = raft.election_elapsed.max(raft.election_timeout());
        }
    }

    /// A leader that asks for a vote leads no longer: its process has started again, within the
    /// time for which votes are held back because it was heard of.
    pub(super) fn doubt_candidate(&mut self, message: &Message) {
        let asks = matches!(
            message.get_msg_type(),
            MessageType::MsgRequestPreVote | MessageType::MsgRequestVote
        );
        let raft = &self.raw.raft;
        if asks && message.from == raft.leader_id && message.term > raft.term {
            self.doubt_leader();
        }
    }

    /// Starts an election at once. Does nothing for a member that may not campaign now.
    pub fn campaign(&mut self) {
        if self.is_tail_synced() && self.raw.raft.promotable() {
            // The only error is about the message's type.
            let _ = self.raw.campaign();
            self.set_election_timeout();
        }
    }
}

/// Ticks without a leader before this member campaigns in `term`: more than `election_ticks`, less
/// than twice that. `others` are all voters but the leader.
fn election_timeout(config: &NodeConfig, term: u64, others: impl Iterator<Item = u64>) -> usize {
    // Not of the seed, which is each member's own.
    let order = |id: u64| (mix(id ^ mix(term)), id);
    let own = order(config.id);
    let (mut count, mut before) = (0, 0);
    for id in others {
        count += 1;
        before += usize::from(order(id) < own);
    }
    let room = config.election_ticks.saturating_sub(2);
    let step = (room / (count - 1_usize.min(count)).max(1)).clamp(1, 3);
    config.election_ticks + (1 + before * step).min(config.election_ticks - 1)
}

/// Ticks after which a candidate asks again: two to four fifths of the election timeout.
fn retry_ticks(config: &NodeConfig, tries: u64) -> usize {
    let part = (config.election_ticks * 2 / 5).max(1);
    let draw = mix(config.seed ^ mix(config.id ^ mix(tries)));
    part + (draw % part as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeouts(election_ticks: usize, voters: u64, term: u64) -> Vec<usize> {
        let leader = 1 + term % voters;
        let of = |id| {
            let config = NodeConfig { election_ticks, ..NodeConfig::new(id, 3, 0) };
            election_timeout(&config, term, (1..=voters).filter(|id| *id != leader))
        };
        (1..=voters).filter(|id| *id != leader).map(of).collect()
    }

    #[test]
    fn those_that_miss_a_leader_have_turns_and_every_term_another_first() {
        for voters in 2..=7 {
            let mut first = std::collections::BTreeSet::new();
            for term in 1..60 {
                let mut ticks = timeouts(10, voters, term);
                let soonest = *ticks.iter().min().unwrap();
                first.insert(ticks.iter().position(|own| *own == soonest).unwrap());
                assert_eq!(soonest, 11, "no vote is held back then");
                assert_eq!(ticks, timeouts(10, voters, term));
                ticks.sort_unstable();
                let gap = match voters {
                    0..=3 => 3,
                    4..=5 => 2,
                    _ => 1,
                };
                assert!(ticks.windows(2).all(|pair| pair[1] >= pair[0] + gap), "{ticks:?}");
                assert!(*ticks.last().unwrap() < 20, "raft-rs bounds it so");
            }
            assert!(first.len() as u64 >= voters - 1, "{first:?}");
        }
        for election_ticks in 2..10 {
            let within = election_ticks + 1..2 * election_ticks;
            for term in 1..20 {
                assert!(timeouts(election_ticks, 7, term).iter().all(|own| within.contains(own)));
            }
        }
    }

    #[test]
    fn a_candidate_asks_again_after_a_part_of_the_timeout_and_not_always_the_same_one() {
        let mut seen = std::collections::BTreeSet::new();
        for (id, tries) in (1..=3).flat_map(|id| (0..20).map(move |tries| (id, tries))) {
            seen.insert(retry_ticks(&NodeConfig::new(id, 3, 0), tries));
        }
        assert_eq!(seen, (4..8).collect());
        let shortest = NodeConfig { election_ticks: 2, ..NodeConfig::new(1, 3, 0) };
        assert_eq!(retry_ticks(&shortest, 0), 1);
    }
}
