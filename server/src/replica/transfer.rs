//! Handing leadership over: when an operator asks for it, and before this member stops.
//!
//! Part of the replica. Proposals wait meanwhile and then go to the new leader. raft gives a
//! transfer up after an election timeout; whoever asked for it is told when its time is up.

use etcore_proto::error::EtcdError;

use super::Replica;
use crate::channel::{Reply, Slot, ToFront};

/// A MoveLeader that waits for the new leader.
struct TransferRequest {
    front: usize,
    slot: Slot,
    target: u64,
    deadline_ms: u64,
    since_ms: u64,
}

/// See the module text.
#[derive(Default)]
pub(super) struct Transfer {
    requests: Vec<TransferRequest>,
    /// The member to which this one, which stops, hands over.
    transferee: Option<u64>,
    /// It goes on until then, for proposals that others have sent to it as their leader.
    drains_until_ms: u64,
}

/// How far the hand-over of a member that stops is.
enum HandOver {
    /// raft works on it.
    UnderWay,
    /// It is over; raft has given it up if this member still leads.
    Over {
        transferee: u64,
    },
    NotBegun,
}

impl Transfer {
    /// True while other members may still take this one for their leader.
    pub(super) fn drains(&self, now_ms: u64) -> bool {
        now_ms < self.drains_until_ms
    }

    /// Takes the requests that `leader` fulfils, and those whose time is up.
    fn take_ended(&mut self, leader: u64, now_ms: u64) -> Vec<TransferRequest> {
        let is_over = |request: &mut TransferRequest| {
            request.target == leader || request.deadline_ms <= now_ms
        };
        self.requests.extract_if(.., is_over).collect()
    }

    /// How far the hand-over is if raft works on a transfer to `under_way` (0 for none).
    fn hand_over(&self, leads: bool, leader: u64, under_way: u64) -> HandOver {
        match self.transferee {
            None => HandOver::NotBegun,
            Some(to) if leads && under_way == to => HandOver::UnderWay,
            Some(_) if !leads && leader == 0 => HandOver::UnderWay,
            Some(transferee) => HandOver::Over { transferee },
        }
    }
}

impl Replica {
    /// A client's MoveLeader.
    pub(super) fn move_leader(&mut self, front: usize, slot: Slot, target: u64) {
        if !self.is_leader() {
            return self.answer_transfer(front, slot, Err(EtcdError::NotLeader));
        }
        let mut members = self.state.members().iter();
        if !members.any(|member| member.id == target && !member.is_learner) {
            return self.answer_transfer(front, slot, Err(EtcdError::BadLeaderTransferee));
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
        let since_ms = self.turn.now_ms();
        let deadline_ms = since_ms + self.request_timeout_ms;
        let request = TransferRequest { front, slot, target, deadline_ms, since_ms };
        self.transfer.requests.push(request);
    }

    /// Answers the requests that are fulfilled, or will not be; and goes on with the hand-over of
    /// a member that stops.
    pub(super) fn watch_transfers(&mut self) {
        let (leader, now_ms) = (self.standing.leader(), self.turn.now_ms());
        for ended in self.transfer.take_ended(leader, now_ms) {
            let TransferRequest { front, slot, target, since_ms, .. } = ended;
            if target != leader {
                self.answer_transfer(front, slot, Err(EtcdError::TimeoutLeaderTransfer));
                continue;
            }
            tracing::info!(
                local_member_id = %format_args!("{:x}", self.shared.member_id),
                new_leader_member_id = %format_args!("{target:x}"),
                took = %format_args!("{}ms", now_ms - since_ms),
                "leadership transfer finished"
            );
            self.answer_transfer(front, slot, Ok(()));
        }
        let life = &self.shared.lifecycle;
        if life.is_handing_over() && !life.has_handed_over() {
            self.hand_over();
        }
    }

    /// A member that is to stop gives its leadership to the peer that has most of the log.
    fn hand_over(&mut self) {
        let (leads, leader) = (self.is_leader(), self.standing.leader());
        let own_id = self.shared.member_id;
        let under_way = self.log.node.status().transferee;
        match self.transfer.hand_over(leads, leader, under_way) {
            HandOver::UnderWay => return,
            HandOver::Over { transferee } => {
                let heartbeat_ms = self.shared.config.heartbeat.as_millis();
                let heartbeat_ms = u64::try_from(heartbeat_ms).unwrap_or(0);
                self.transfer.drains_until_ms = self.turn.now_ms() + heartbeat_ms;
                if leads {
                    let transferee = format!("{transferee:x}");
                    tracing::warn!(transferee_member_id = transferee, "leadership transfer failed");
                }
            }
            HandOver::NotBegun => {
                if leads && let Some(transferee) = self.best_transferee() {
                    tracing::info!(
                        local_member_id = %format_args!("{own_id:x}"),
                        transferee_member_id = %format_args!("{transferee:x}"),
                        "leadership transfer starting"
                    );
                    self.transfer.transferee = Some(transferee);
                    self.log.node.transfer_leader(transferee);
                    return;
                }
                tracing::info!(
                    local_member_id = %format_args!("{own_id:x}"),
                    current_leader_member_id = %format_args!("{leader:x}"),
                    leads,
                    "skipped leadership transfer"
                );
            }
        }
        self.shared.lifecycle.note_handed_over();
    }

    /// The voter with most of the log, of those that answer.
    pub(super) fn best_transferee(&self) -> Option<u64> {
        let own_id = self.shared.member_id;
        let voters = self.log.node.conf_state().voters;
        let known = voters.into_iter().filter(|id| *id != own_id).filter_map(|id| {
            let (matched, active) = self.log.node.progress(id)?;
            active.then_some((matched, std::cmp::Reverse(id)))
        });
        known.max().map(|(_, std::cmp::Reverse(id))| id)
    }

    fn answer_transfer(&mut self, front: usize, slot: Slot, outcome: Result<(), EtcdError>) {
        let reply = match outcome {
            Ok(()) => Reply::Message(Vec::new()),
            Err(error) => Reply::Refused(error.into()),
        };
        self.fronts.send(front, ToFront::Reply { slot, reply });
    }
}
