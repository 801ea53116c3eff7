//! A leader whose process has died is replaced at once.
//!
//! Part of the replica. When a process dies its kernel closes its connections, and refuses new
//! ones: a follower that finds its leader's peer port closed need not wait for an election
//! timeout. It asks for an election (raft's pre-vote, which changes nothing unless a majority
//! agrees) when it is its turn among the others, and answers those of others from then on although
//! it heard of the leader lately. A leader that lives, and whose port is closed to some only, is
//! heard of by the others, which do not answer: so nothing here can depose it, and what is tried
//! is bounded: a member asks for no election in place of a leader that it has doubted and heard of
//! again for a while, and only answers those of others. Off by `--fast-failover=false`.

use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_raftlog::node::Role;

use super::Replica;
use crate::clock::millis;
use crate::limits;

/// See the module text.
#[derive(Debug, Default)]
pub(super) struct Failover {
    doubt: Option<Doubt>,
    /// When the leader was heard of last.
    heard_ms: u64,
    /// This leader, of this term, was doubted and lives: it is not doubted again before then.
    lives: Option<(u64, u64, u64)>,
}

/// A leader that seems to be dead.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    leader: u64,
    term: u64,
    refused_ms: u64,
    campaign_at_ms: u64,
    /// Elections asked for.
    tries: u64,
}

impl Failover {
    /// A message of the leader has come.
    pub(super) fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
    }

    pub(super) fn deadline_ms(&self) -> u64 {
        self.doubt.map_or(u64::MAX, |doubt| doubt.campaign_at_ms)
    }
}

impl Replica {
    /// A member's peer port refuses connections.
    pub(super) fn leader_refused(&mut self, id: u64) {
        let (leader, term) = (self.standing.leader(), self.standing.term().0);
        let is_follower = self.standing.role() == Role::Follower;
        let is_off = !self.shared.config.fast_failover || is_on(SeededBug::DeadLeaderUnnoticed);
        if is_off || id != leader || !is_follower {
            return;
        }
        let is_known = |doubt: Doubt| (doubt.leader, doubt.term) == (leader, term);
        let lives = |(known, in_term, until_ms): (u64, u64, u64)| {
            (known, in_term) == (leader, term) && self.turn.now_ms() < until_ms
        };
        if self.failover.doubt.is_some_and(is_known) {
            return;
        }
        if self.failover.lives.is_some_and(lives) {
            // It may have died meanwhile. Who has not doubted it asks, and is answered here once
            // two heartbeats are missing: one that lives is heard of before.
            let silent_ms = 2 * millis(self.shared.config.heartbeat);
            if self.turn.now_ms() >= self.failover.heard_ms + silent_ms {
                self.log.node.doubt_leader();
            }
            return;
        }
        tracing::warn!(
            leader = %format_args!("{leader:x}"),
            term,
            "the leader's peer port refuses connections: its process is dead, asking for an \
             election"
        );
        self.log.node.doubt_leader();
        let (refused_ms, campaign_at_ms) =
            (self.turn.now_ms(), self.turn.now_ms() + self.turn_ms(leader, term));
        self.failover.doubt = Some(Doubt { leader, term, refused_ms, campaign_at_ms, tries: 0 });
    }

    /// Asks for an election when its time has come, some times, until there is a leader again.
    pub(super) fn follow_up_refusal(&mut self) {
        let Some(mut doubt) = self.failover.doubt else { return };
        if self.turn.now_ms() < doubt.campaign_at_ms {
            return;
        }
        let (leader, term) = (self.standing.leader(), self.standing.term().0);
        let replaced = leader != 0 && (leader, term) != (doubt.leader, doubt.term);
        let lives = self.failover.heard_ms > doubt.refused_ms;
        if replaced || lives || doubt.tries == limits::FAILOVER_TRIES || self.is_leader() {
            self.failover.doubt = None;
            if lives {
                let until_ms = self.turn.now_ms() + limits::FAILOVER_QUIET_MS;
                self.failover.lives = Some((doubt.leader, doubt.term, until_ms));
            }
            return;
        }
        if leader == 0 && term != doubt.term {
            // Another is being elected: to ask now would depose it in its first moment.
            doubt.term = term;
            let rest_ms = limits::FAILOVER_REST_MS;
            doubt.campaign_at_ms = self.turn.now_ms() + rest_ms + self.turn_ms(doubt.leader, term);
            self.failover.doubt = Some(doubt);
            return;
        }
        self.log.node.campaign();
        doubt.tries += 1;
        let rest_ms = limits::FAILOVER_REST_MS * doubt.tries;
        doubt.campaign_at_ms =
            self.turn.now_ms() + rest_ms + self.turn_ms(doubt.leader, doubt.term);
        self.failover.doubt = Some(doubt);
    }

    /// When it is this member's turn: all that follow the leader are put in an order drawn by the
    /// term, so that the first has been elected before the next would ask.
    fn turn_ms(&self, leader: u64, term: u64) -> u64 {
        let order = |id: u64| (id ^ term.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let own = order(self.shared.member_id);
        let voters = self.log.node.conf_state().voters;
        let before = voters.iter().filter(|id| **id != leader && order(**id) < own).count();
        1 + before as u64 * limits::FAILOVER_STEP_MS
    }
}
