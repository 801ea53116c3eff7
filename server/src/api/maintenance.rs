//! The Maintenance service: Status, Alarm, Hash, HashKV, Defragment and MoveLeader, and the quota
//! that writes are held against.
//!
//! Reads are answered from the view of the turn; hashes come from the hasher's thread, the end of a
//! defragmentation from the replica. Nothing here waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_queue::ArrayQueue;
use etcore_proto::error::EtcdError;
use etcore_proto::grpc::Message;
use etcore_proto::pb::etcdserverpb as pb;
use pb::AlarmType;
use pb::alarm_request::AlarmAction;
use prost::Message as _;

use super::call::{Call, Outcome, Refusal, decode};
use super::pending::{CallKind, PendingCall, To};
use super::{Cx, Services};
use crate::background::hasher::{Hasher, Job};
use crate::channel::{HashAnswers, HashOutcome, HashRequester, Slot, ToReplica};
use crate::cluster::version;
use crate::driver::Waker;
use crate::entry::{self, field};
use crate::limits;
use crate::quota;

/// The way to the hasher and back.
pub(super) struct Hashes {
    hasher: Hasher,
    answers: HashAnswers,
    waker: Waker,
}

impl Hashes {
    pub(super) fn new(hasher: Hasher, waker: Waker) -> Self {
        Self { hasher, answers: Arc::new(ArrayQueue::new(limits::HASH_ANSWERS)), waker }
    }

    pub(super) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    fn requester(&self, slot: Slot) -> HashRequester {
        HashRequester { slot, answers: self.answers.clone(), waker: self.waker.clone() }
    }
}

impl Cx<'_> {
    pub(super) fn status(&mut self, call: Call, message: Message) -> Outcome {
        decode::<pb::StatusRequest>(message.into_bytes())?;
        let shared = &self.api.shared;
        let view = self.api.reads.view();
        let status = &shared.status;
        let header = shared.header(view.store.revision.0);
        let leader = status.leader.load(Ordering::Relaxed);
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut errors = Vec::new();
        if leader == 0 {
            errors.push(EtcdError::NoLeader.text().to_owned());
        }
        errors.extend(view.alarms.texts());
        let quota = shared.config.quota_backend_bytes;
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
            is_learner: view.is_learner,
            storage_version: version::STORAGE.to_owned(),
            db_size_quota: if quota == 0 { quota::DEFAULT_BYTES } else { quota },
            downgrade_info: Some(pb::DowngradeInfo {
                enabled: view.downgrade.enabled,
                target_version: view.downgrade.target_version.clone(),
            }),
        };
        self.out.reply(call.id, &response.encode_to_vec());
        Ok(())
    }

    /// A GET reads at a linearizable point, without an entry in the log; what changes alarms is
    /// proposed.
    pub(super) fn alarm(&mut self, call: Call, message: Message) -> Outcome {
        let message = message.into_bytes();
        let request: pb::AlarmRequest = decode(message.clone())?;
        if request.action != AlarmAction::Get as i32 {
            self.api.admit_admin(&call.caller)?;
        } else {
            // etcd proposes it, and refuses what would be too large an entry.
            let id = self.new_proposal()?;
            self.admit_entry(entry::wrapped_len(field::ALARM, message.len(), id))?;
            return self.take_ticket(call, CallKind::AlarmList(request.alarm));
        }
        self.propose(call, field::ALARM, &message)
    }

    pub(super) fn answer_alarm_list(&mut self, call: &Call, kind: i32) -> Outcome {
        self.api.admit_somebody(&call.caller)?;
        let view = self.api.reads.view();
        let header = self.api.shared.header(view.store.revision.0);
        let alarms = view.alarms.of_kind(kind);
        let response = pb::AlarmResponse { header: Some(header.to_pb()), alarms };
        self.out.reply(call.id, &response.encode_to_vec());
        Ok(())
    }

    /// Refuses a request that the quota has no room for. Until the alarm is on, each of them raises
    /// it and is answered once it is, or cannot be, as in etcd: who is told that there is no space
    /// finds the alarm.
    pub(super) fn out_of_space(&mut self, call: Call) -> Outcome {
        let member_id = self.api.shared.member_id;
        if self.api.reads.view().alarms.raised_by(member_id, AlarmType::Nospace) {
            return Err(EtcdError::NoSpace.into());
        }
        let request = pb::AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id,
            alarm: AlarmType::Nospace as i32,
        };
        match self.propose_as(call, CallKind::QuotaAlarm, field::ALARM, &request.encode_to_vec()) {
            Err(Refusal::Status(_) | Refusal::Malformed(_)) => Err(EtcdError::NoSpace.into()),
            waiting => waiting,
        }
    }

    pub(super) fn hash(&mut self, call: Call, message: Message) -> Outcome {
        decode::<pb::HashRequest>(message.into_bytes())?;
        let slot = self.api.wait_without_limit(call, CallKind::Hash)?;
        let reply = self.api.hashes.requester(slot);
        self.api.outbox.push(ToReplica::Hash { reply });
        Err(Refusal::Waiting)
    }

    pub(super) fn hash_kv(&mut self, call: Call, message: Message) -> Outcome {
        let pb::HashKvRequest { revision } = decode(message.into_bytes())?;
        let slot = self.api.wait_without_limit(call, CallKind::HashKv)?;
        let reply = self.api.hashes.requester(slot);
        if self.api.hashes.hasher.submit(Job::ByRevision { revision, reply }).is_err() {
            self.api.pending.remove(slot);
            return Err(EtcdError::TooManyRequests.into());
        }
        Err(Refusal::Waiting)
    }

    /// Answers the hashes that are finished.
    pub(super) fn take_hashes(&mut self) {
        while let Some((slot, outcome)) = self.api.hashes.answers.pop() {
            self.finish_hash(slot, outcome);
        }
    }

    fn finish_hash(&mut self, slot: Slot, outcome: HashOutcome) {
        let Some(PendingCall { to: To::Call(call), kind, .. }) = self.api.pending.remove(slot)
        else {
            return;
        };
        let (hash, revision) = match outcome {
            Ok(found) => found,
            Err(status) => return self.out.fail(call.id, &status),
        };
        let header = Some(self.api.shared.header(revision).to_pb());
        let message = match kind {
            CallKind::HashKv => pb::HashKvResponse {
                header,
                hash: hash.hash,
                compact_revision: hash.compact_revision.0,
                hash_revision: hash.revision.0,
            }
            .encode_to_vec(),
            _ => pb::HashResponse { header, hash: hash.hash }.encode_to_vec(),
        };
        self.out.reply(call.id, &message);
        self.api.ended(&call, None);
    }

    /// Answered once the other member leads. etcd sets no limit of its own; the replica does.
    pub(super) fn move_leader(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::MoveLeaderRequest = decode(message.into_bytes())?;
        let shared = &self.api.shared;
        if shared.status.leader.load(Ordering::Relaxed) != shared.member_id {
            return Err(EtcdError::NotLeader.into());
        }
        let slot = self.api.wait_without_limit(call, CallKind::MoveLeader)?;
        self.api.outbox.push(ToReplica::MoveLeader { slot, target: request.target_id });
        Err(Refusal::Waiting)
    }

    /// Answered when the pass is over; other requests do not notice it.
    pub(super) fn defragment(&mut self, call: Call, message: Message) -> Outcome {
        decode::<pb::DefragmentRequest>(message.into_bytes())?;
        let slot = self.api.wait_without_limit(call, CallKind::Defragment)?;
        self.api.outbox.push(ToReplica::Defragment { slot });
        Err(Refusal::Waiting)
    }
}

impl Services {
    /// False if the quota has no room for a request of this cost.
    pub(super) fn has_space_for(&self, cost_bytes: u64) -> bool {
        let live_bytes = self.shared.status.live_bytes.load(Ordering::Relaxed);
        self.quota.admits(live_bytes, cost_bytes)
    }

    /// A call that waits as long as its client does: etcd sets no limit of its own.
    fn wait_without_limit(&mut self, call: Call, kind: CallKind) -> Result<Slot, Refusal> {
        let deadline_ms = call.deadline_ms.unwrap_or(u64::MAX);
        let to = To::Call(call);
        let pending = PendingCall { to, kind, deadline_ms, client_deadline: true, bytes: 0 };
        Ok(self.pending.insert(pending).map_err(|_| EtcdError::TooManyRequests)?)
    }
}
