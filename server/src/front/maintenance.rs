//! The Maintenance service on a front: Status, Alarm, Hash, HashKV and Defragment, and the quota
//! that writes are held against.
//!
//! Reads are answered from the view of the turn; hashes come from the hasher's thread, the end of a
//! defragmentation from the replica. Nothing here waits.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use pb::AlarmType;
use pb::alarm_request::AlarmAction;
use prost::Message;

use super::Front;
use super::calls::{Call, Outcome, Refusal, decode};
use super::tasks::{Kind, To};
use crate::driver::SocketId;
use crate::entry::{self, field};
use crate::hasher::{self, Job, ReplyTo};
use crate::quota;
use crate::replica::ToReplica;
use crate::version;

impl Front {
    pub(super) fn status(&mut self, call: Call) -> Outcome {
        let status = &self.shared.status;
        let header = self.shared.header(self.view.store.revision.0);
        let leader = status.leader.load(Ordering::Relaxed);
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut errors = Vec::new();
        if leader == 0 {
            errors.push(EtcdError::NoLeader.text().to_owned());
        }
        errors.extend(self.view.alarms.texts());
        let quota = self.shared.config.quota_backend_bytes;
        let response = pb::StatusResponse {
            header: Some(header.to_pb()),
            version: version::ETCD.to_owned(),
            db_size: signed(status.db_size_bytes.load(Ordering::Relaxed)),
            leader,
            raft_index: status.committed.load(Ordering::Relaxed),
            raft_term: header.raft_term,
            raft_applied_index: status.applied.load(Ordering::Relaxed),
            errors,
            db_size_in_use: signed(status.db_in_use_bytes.load(Ordering::Relaxed)),
            is_learner: self.view.members.iter().any(|m| m.id == header.member_id && m.is_learner),
            storage_version: version::STORAGE.to_owned(),
            db_size_quota: if quota == 0 { quota::DEFAULT_BYTES } else { quota },
            downgrade_info: Some(pb::DowngradeInfo {
                enabled: self.view.downgrade.enabled,
                target_version: self.view.downgrade.target_version.clone(),
            }),
        };
        self.reply_message(call.socket, To::Call(call.stream), &response.encode_to_vec());
        Ok(())
    }

    /// A GET reads at a linearizable point, without an entry in the log; what changes alarms is
    /// proposed.
    pub(super) fn alarm(&mut self, call: Call, message: Bytes) -> Outcome {
        let request: pb::AlarmRequest = decode(message.clone())?;
        if request.action == AlarmAction::Get as i32 {
            // etcd proposes it, and refuses what would be too large an entry.
            let id = self.new_proposal()?;
            self.admit_entry(entry::wrapped_len(field::ALARM, message.len(), id))?;
            return self.take_ticket(call, Kind::AlarmList(request.alarm));
        }
        self.propose_as(call, Kind::Proposal, field::ALARM, &message)
    }

    pub(super) fn answer_alarm_list(&mut self, socket: SocketId, to: To, kind: i32) {
        let header = self.shared.header(self.view.store.revision.0);
        let alarms = self.view.alarms.of_kind(kind);
        let response = pb::AlarmResponse { header: Some(header.to_pb()), alarms };
        self.reply_message(socket, to, &response.encode_to_vec());
    }

    /// False if the quota has no room for a request of this cost.
    pub(super) fn has_space_for(&self, cost_bytes: u64) -> bool {
        let live_bytes = self.shared.status.live_bytes.load(Ordering::Relaxed);
        self.quota.admits(live_bytes, cost_bytes)
    }

    /// Refuses a request that the quota has no room for. Until the alarm is on, each of them raises
    /// it and is answered once it is, or cannot be, as in etcd: who is told that there is no space
    /// finds the alarm.
    pub(super) fn out_of_space(&mut self, call: Call) -> Outcome {
        let member_id = self.shared.member_id;
        if self.view.alarms.raised_by(member_id, AlarmType::Nospace) {
            return Err(EtcdError::NoSpace.into());
        }
        let request = pb::AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id,
            alarm: AlarmType::Nospace as i32,
        };
        match self.propose_as(call, Kind::QuotaAlarm, field::ALARM, &request.encode_to_vec()) {
            Err(Refusal::Status(_)) => Err(EtcdError::NoSpace.into()),
            waiting => waiting,
        }
    }

    pub(super) fn hash(&mut self, call: Call) -> Outcome {
        let reply = self.reply_to(call, Kind::Hash)?;
        self.push_replica(ToReplica::Hash { reply });
        Err(Refusal::Waiting)
    }

    pub(super) fn hash_kv(&mut self, call: Call, request: &pb::HashKvRequest) -> Outcome {
        let revision = request.revision;
        let reply = self.reply_to(call, Kind::HashKv)?;
        let slot = reply.slot;
        if self.hasher.submit(Job::ByRevision { revision, reply }).is_err() {
            self.tasks.remove(slot);
            return Err(EtcdError::TooManyRequests.into());
        }
        Err(Refusal::Waiting)
    }

    fn reply_to(&mut self, call: Call, kind: Kind) -> Result<ReplyTo, Refusal> {
        let mut task = self.task(call, kind);
        // As long as it takes: etcd sets no limit of its own.
        task.deadline_ms = call.deadline_ms.unwrap_or(u64::MAX);
        task.client_deadline = true;
        let slot = self.tasks.insert(task).map_err(|_| EtcdError::TooManyRequests)?;
        let (answers, waker) = (self.hash_answers.clone(), self.waker.clone());
        Ok(ReplyTo { slot, answers, waker })
    }

    /// Answers the hashes that are finished.
    pub(super) fn take_hashes(&mut self) {
        while let Some((slot, outcome)) = self.hash_answers.pop() {
            self.finish_hash(slot, outcome);
        }
    }

    fn finish_hash(&mut self, slot: crate::replica::Slot, outcome: hasher::Outcome) {
        let Some(task) = self.tasks.remove(slot) else { return };
        let (hash, revision) = match outcome {
            Ok(found) => found,
            Err(status) => return self.reply_status(task.socket, task.to, &status),
        };
        let header = Some(self.shared.header(revision).to_pb());
        let message = match task.kind {
            Kind::HashKv => pb::HashKvResponse {
                header,
                hash: hash.hash,
                compact_revision: hash.compact_revision.0,
                hash_revision: hash.revision.0,
            }
            .encode_to_vec(),
            _ => pb::HashResponse { header, hash: hash.hash }.encode_to_vec(),
        };
        self.reply_message(task.socket, task.to, &message);
    }

    /// Answered once the other member leads. etcd sets no limit of its own; the replica does.
    pub(super) fn move_leader(&mut self, call: Call, request: &pb::MoveLeaderRequest) -> Outcome {
        if self.shared.status.leader.load(Ordering::Relaxed) != self.shared.member_id {
            return Err(EtcdError::NotLeader.into());
        }
        let mut task = self.task(call, Kind::MoveLeader);
        task.deadline_ms = call.deadline_ms.unwrap_or(u64::MAX);
        task.client_deadline = true;
        let slot = self.tasks.insert(task).map_err(|_| EtcdError::TooManyRequests)?;
        self.push_replica(ToReplica::MoveLeader { slot, target: request.target_id });
        Err(Refusal::Waiting)
    }

    /// Answered when the pass is over; other requests do not notice it.
    pub(super) fn defragment(&mut self, call: Call) -> Outcome {
        let mut task = self.task(call, Kind::Defragment);
        task.deadline_ms = call.deadline_ms.unwrap_or(u64::MAX);
        task.client_deadline = true;
        let slot = self.tasks.insert(task).map_err(|_| EtcdError::TooManyRequests)?;
        self.push_replica(ToReplica::Defragment { slot });
        Err(Refusal::Waiting)
    }
}
