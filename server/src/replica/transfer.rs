//! Handing leadership over: at an operator's wish, and before this member stops.
//!
//! Proposals wait meanwhile and then go to the new leader. raft gives a transfer up after an
//! election timeout; whoever asked for it is told when its time is up.

use etcore_proto::error::EtcdError;

use super::Replica;
use crate::channel::{Reply, Slot, ToFront};

/// A MoveLeader that waits for the new leader.
struct Wish {
    front: usize,
    slot: Slot,
    target: u64,
    deadline_ms: u64,
    since_ms: u64,
}

/// See the module text.
#[derive(Default)]
pub(super) struct Transfer {
    wishes: Vec<Wish>,
    /// To whom this member, which stops, hands over.
    heir: Option<u64>,
    /// It goes on until then, for proposals that others have sent to it as their leader.
    linger_until_ms: u64,
}

impl Replica {
    /// A MoveLeader of a client.
    pub(super) fn move_leader(&mut self, front: usize, slot: Slot, target: u64) {
        if !self.is_leader() {
            return self.answer_wish(front, slot, Err(EtcdError::NotLeader));
        }
        if !self.members.iter().any(|member| member.id == target && !member.is_learner) {
            return self.answer_wish(front, slot, Err(EtcdError::BadLeaderTransferee));
        }
        let own_id = self.shared.member_id;
        tracing::info!(
            local_member_id = %format_args!("{own_id:x}"),
            current_leader_member_id = %format_args!("{own_id:x}"),
            transferee_member_id = %format_args!("{target:x}"),
            "leadership transfer starting"
        );
        if target != own_id {
            self.log.node.transfer_leader(target);
        }
        let deadline_ms = self.now_ms + self.request_timeout_ms;
        let since_ms = self.now_ms;
        self.transfer.wishes.push(Wish { front, slot, target, deadline_ms, since_ms });
    }

    /// Answers the wishes that have come true, or will not; and goes on with the hand-over of a
    /// member that stops.
    pub(super) fn watch_transfers(&mut self) {
        let (leader, now_ms) = (self.soft_state.leader, self.now_ms);
        let over = |wish: &mut Wish| wish.target == leader || wish.deadline_ms <= now_ms;
        let ended: Vec<Wish> = self.transfer.wishes.extract_if(.., over).collect();
        for Wish { front, slot, target, since_ms, .. } in ended {
            if target != leader {
                self.answer_wish(front, slot, Err(EtcdError::TimeoutLeaderTransfer));
                continue;
            }
            tracing::info!(
                local_member_id = %format_args!("{:x}", self.shared.member_id),
                new_leader_member_id = %format_args!("{target:x}"),
                took = %format_args!("{}ms", now_ms - since_ms),
                "leadership transfer finished"
            );
            self.answer_wish(front, slot, Ok(()));
        }
        if self.shared.lifecycle.is_handing_over() && !self.shared.lifecycle.has_handed_over() {
            self.hand_over();
        }
    }

    /// True while other members may still take this one for their leader.
    pub(super) fn lingers(&self) -> bool {
        self.now_ms < self.transfer.linger_until_ms
    }

    /// A member that is to stop gives its leadership to the peer that has most of the log.
    fn hand_over(&mut self) {
        let leads = self.is_leader();
        if let Some(heir) = self.transfer.heir {
            let under_way = leads && self.log.node.status().transferee == heir;
            if under_way || (!leads && self.soft_state.leader == 0) {
                return;
            }
            let heartbeat_ms = self.shared.config.heartbeat.as_millis();
            self.transfer.linger_until_ms = self.now_ms + u64::try_from(heartbeat_ms).unwrap_or(0);
            if leads {
                tracing::warn!(heir = %format_args!("{heir:x}"), "leadership transfer failed");
            }
        } else if leads && let Some(heir) = self.best_heir() {
            tracing::info!(
                local_member_id = %format_args!("{:x}", self.shared.member_id),
                transferee_member_id = %format_args!("{heir:x}"),
                "leadership transfer starting"
            );
            self.transfer.heir = Some(heir);
            self.log.node.transfer_leader(heir);
            return;
        } else {
            tracing::info!(
                local_member_id = %format_args!("{:x}", self.shared.member_id),
                current_leader_member_id = %format_args!("{:x}", self.soft_state.leader),
                leads,
                "skipped leadership transfer"
            );
        }
        self.shared.lifecycle.note_handed_over();
    }

    /// The voter with most of the log, of those that answer.
    pub(super) fn best_heir(&self) -> Option<u64> {
        let own_id = self.shared.member_id;
        let voters = self.log.node.conf_state().voters;
        let known = voters.into_iter().filter(|id| *id != own_id).filter_map(|id| {
            let (matched, active) = self.log.node.progress(id)?;
            active.then_some((matched, std::cmp::Reverse(id)))
        });
        known.max().map(|(_, std::cmp::Reverse(id))| id)
    }

    fn answer_wish(&mut self, front: usize, slot: Slot, outcome: Result<(), EtcdError>) {
        let reply = match outcome {
            Ok(()) => Reply::Message(Vec::new()),
            Err(error) => Reply::Refused(error.into()),
        };
        self.fronts[front].send(ToFront::Reply { slot, reply });
    }
}
