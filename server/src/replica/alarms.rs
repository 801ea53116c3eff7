//! Alarms on the replica's side: applying them, and switching this member's own NOSPACE off.
//!
//! The member that ran out of space proposes the end of its alarm through raft once its live bytes
//! have been well below the quota for a while; an operator may do so at any time. Nothing here may
//! depend on a clock while applying.

use std::sync::Arc;
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
use crate::cluster::alarm::{self, Alarms};
use crate::quota;

impl Replica {
    /// etcd's AlarmStore: an alarm that is on stays as it is, and one that is off cannot go off;
    /// the answer names the alarm that the request was about, if there is one.
    pub(super) fn apply_alarm(&mut self, entry: &LogEntry, request: &pb::AlarmRequest) -> Reply {
        let subject = pb::AlarmMember { member_id: request.member_id, alarm: request.alarm };
        let is_on = self.alarms.of_kind(0).contains(&subject);
        let mut txn = self.store.begin(entry.index, entry.term);
        let mut alarms = Vec::new();
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => alarms = self.alarms.of_kind(request.alarm),
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
        let alarms = Alarms::load(&self.store);
        if alarms == *self.alarms {
            return;
        }
        for (list, other, on) in [(&alarms, &*self.alarms, true), (&*self.alarms, &alarms, false)] {
            let known = other.of_kind(0);
            for changed in list.of_kind(0).iter().filter(|alarm| !known.contains(alarm)) {
                let (member_id, kind) =
                    (format!("{:x}", changed.member_id), alarm::name(changed.alarm));
                tracing::warn!(member_id = %member_id, alarm = kind, on, "an alarm has changed");
                let labels = vec![("server_id", member_id), ("alarm_type", kind.to_owned())];
                self.shared.metrics.alarms.get_or_create(&labels).set(u64::from(on));
            }
        }
        self.alarms = Arc::new(alarms);
    }

    /// What the fronts compare with the quota.
    pub(super) fn count_live_bytes(&self) {
        let status = &self.shared.status;
        let bytes = status.db_in_use_bytes.load(Ordering::Relaxed) + self.store.row_bytes() as u64;
        status.live_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Ends this member's own NOSPACE alarm when it has had room for long enough.
    pub(super) fn clear_alarm(&mut self, now_ms: u64) {
        let kind = AlarmType::Nospace;
        let live_bytes = self.shared.status.live_bytes.load(Ordering::Relaxed);
        if !self.alarms.raised_by(self.shared.member_id, kind) || !self.quota.is_relaxed(live_bytes)
        {
            self.relaxed_since_ms = None;
            return;
        }
        let since_ms = *self.relaxed_since_ms.get_or_insert(now_ms);
        if now_ms < since_ms + quota::CLEAR_AFTER_MS
            || self.log.node.destination() == Destination::Nowhere
        {
            return;
        }
        tracing::info!(live_bytes, "there is room again: the NOSPACE alarm is switched off");
        // Tried again after the same time, should this proposal be lost.
        self.relaxed_since_ms = None;
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
