//! Alarms on the replica's side: applying them, and switching this member's own NOSPACE off.
//!
//! The member that ran out of space proposes the end of its alarm through raft once its live bytes
//! have been well below the quota for a while; an operator may do so at any time. Nothing here may
//! depend on a clock while applying.

use std::sync::atomic::Ordering;

use etcore_engine::bucket::Bucket;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_raftlog::node::Destination;
use etcore_raftlog::types::LogEntry;
use pb::AlarmType;
use pb::alarm_request::AlarmAction;
use prost::Message;

use super::Replica;
use crate::channel::Reply;
use crate::cluster::alarm;
use crate::quota::{self, Quota};

/// The quota, and since when little enough is used for this member's NOSPACE alarm to go off.
pub(super) struct QuotaWatch {
    quota: Quota,
    relaxed_since_ms: Option<u64>,
}

impl QuotaWatch {
    pub(super) fn new(quota: Quota) -> Self {
        Self { quota, relaxed_since_ms: None }
    }

    /// Bytes that the member may use; `None` for no limit.
    pub(super) fn limit_bytes(&self) -> Option<u64> {
        self.quota.limit_bytes()
    }

    /// True once `live_bytes` have been well below the quota for long enough.
    fn is_over(&mut self, is_raised: bool, live_bytes: u64, now_ms: u64) -> bool {
        if !is_raised || !self.quota.is_relaxed(live_bytes) {
            self.relaxed_since_ms = None;
            return false;
        }
        now_ms >= *self.relaxed_since_ms.get_or_insert(now_ms) + quota::CLEAR_AFTER_MS
    }
}

impl Replica {
    /// etcd's AlarmStore: an alarm that is on stays as it is, and one that is off cannot go off;
    /// the answer names the alarm that the request was about, if there is one.
    pub(super) fn apply_alarm(&mut self, entry: &LogEntry, request: &pb::AlarmRequest) -> Reply {
        let subject = pb::AlarmMember { member_id: request.member_id, alarm: request.alarm };
        let is_on = self.state.alarms().of_kind(0).contains(&subject);
        let mut txn = self.store.begin(entry.index, entry.term);
        let mut alarms = Vec::new();
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => alarms = self.state.alarms().of_kind(request.alarm),
            Ok(AlarmAction::Activate) if request.alarm != AlarmType::None as i32 => {
                if !is_on {
                    txn.bucket_put(Bucket::Alarm, &subject.encode_to_vec(), b"");
                }
                alarms.push(subject);
            }
            Ok(AlarmAction::Deactivate) if is_on => {
                txn.bucket_delete(Bucket::Alarm, &subject.encode_to_vec());
                alarms.push(subject);
            }
            Ok(AlarmAction::Activate | AlarmAction::Deactivate) | Err(_) => {}
        }
        txn.commit();
        self.refresh_alarms();
        let header = self.shared.header(self.store.revision().0).to_pb();
        let response = pb::AlarmResponse { header: Some(header), alarms };
        Reply::Message(response.encode_to_vec())
    }

    /// Decodes the alarm bucket again, and says what has changed.
    fn refresh_alarms(&mut self) {
        let Some(before) = self.state.refresh_alarms(&self.store) else { return };
        let alarms = self.state.alarms();
        for (list, other, on) in [(alarms, &before, true), (&before, alarms, false)] {
            let known = other.of_kind(0);
            for changed in list.of_kind(0).iter().filter(|alarm| !known.contains(alarm)) {
                let (member_id, kind) =
                    (format!("{:x}", changed.member_id), alarm::name(changed.alarm));
                tracing::warn!(member_id = %member_id, alarm = kind, on, "an alarm has changed");
                let labels = vec![("server_id", member_id), ("alarm_type", kind.to_owned())];
                self.shared.metrics.alarms.get_or_create(&labels).set(u64::from(on));
            }
        }
    }

    /// What the fronts compare with the quota.
    pub(super) fn count_live_bytes(&self) {
        let status = &self.shared.status;
        let bytes = status.db_in_use_bytes.load(Ordering::Relaxed) + self.store.row_bytes() as u64;
        status.live_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Ends this member's own NOSPACE alarm when it has had room for long enough.
    pub(super) fn clear_alarm(&mut self) {
        let kind = AlarmType::Nospace;
        let live_bytes = self.shared.status.live_bytes.load(Ordering::Relaxed);
        let is_raised = self.state.alarms().raised_by(self.shared.member_id, kind);
        if !self.quota.is_over(is_raised, live_bytes, self.turn.now_ms())
            || self.log.node.destination() == Destination::Nowhere
        {
            return;
        }
        tracing::info!(live_bytes, "there is room again: the NOSPACE alarm is switched off");
        // Tried again after the same time, should this proposal be lost.
        self.quota.relaxed_since_ms = None;
        self.propose_own(pb::InternalRaftRequest {
            alarm: Some(pb::AlarmRequest {
                action: AlarmAction::Deactivate as i32,
                member_id: self.shared.member_id,
                alarm: kind as i32,
            }),
            ..Default::default()
        });
    }

    /// Proposes a request of this member's own, whose outcome nobody waits for.
    pub(super) fn propose_own(&mut self, mut request: pb::InternalRaftRequest) {
        let id = self.new_request_id();
        request.header = Some(pb::RequestHeader { id, ..Default::default() });
        self.propose(vec![request.encode_to_vec().into()], vec![None]);
    }
}
