//! The alarms of the cluster: which members ran out of space or were found corrupt.
//!
//! Decoded from the alarm bucket by the replica after each entry that changed it, and read by the
//! fronts as a part of the view. Which requests an alarm refuses is decided here, once, for the
//! fronts' early answer and for apply, so that all members agree.

use std::fmt::Write;

use etcore_engine::bucket::Bucket;
use etcore_engine::store::Store;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use pb::AlarmType;
use prost::Message;

use crate::entry::{self, Request};

/// All alarms that are on, ascending by kind, then member.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Alarms {
    list: Vec<pb::AlarmMember>,
}

impl Alarms {
    /// The alarms that the store holds (etcd `schema/alarm.go`: the row's key is the message).
    pub fn load(store: &Store) -> Self {
        let mut list: Vec<_> = store
            .bucket_iter(Bucket::Alarm, b"")
            .filter_map(|(key, _)| pb::AlarmMember::decode(key).ok())
            .collect();
        list.sort_by_key(|alarm| (alarm.alarm, alarm.member_id));
        Self { list }
    }

    /// Returns the alarms of one kind; all for [`AlarmType::None`].
    pub fn of_kind(&self, kind: i32) -> Vec<pb::AlarmMember> {
        let all = kind == AlarmType::None as i32;
        self.list.iter().filter(|alarm| all || alarm.alarm == kind).copied().collect()
    }

    /// True if an alarm of this kind is on.
    pub fn is_on(&self, kind: AlarmType) -> bool {
        self.list.iter().any(|alarm| alarm.alarm == kind as i32)
    }

    /// True if this member has raised an alarm of this kind.
    pub fn raised_by(&self, member_id: u64, kind: AlarmType) -> bool {
        let wanted = pb::AlarmMember { member_id, alarm: kind as i32 };
        self.list.contains(&wanted)
    }

    /// How Status and the logs show them: protobuf's text form.
    pub fn texts(&self) -> Vec<String> {
        self.list.iter().map(text).collect()
    }

    /// All of them, with the first reason first, for `/health`.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.list.iter().map(|alarm| name(alarm.alarm))
    }

    /// What a write meets while alarms are on (etcd `apply/capped.go`, `apply/corrupt.go`): with
    /// CORRUPT nothing is changed; with NOSPACE nothing that may grow the store.
    ///
    /// # Errors
    /// The refusal.
    pub fn admit(&self, request: &pb::InternalRaftRequest) -> Result<(), EtcdError> {
        if self.list.is_empty() {
            return Ok(());
        }
        let changes = matches!(
            Request::of(request),
            Some(
                Request::Put(_)
                    | Request::DeleteRange(_)
                    | Request::Txn(_)
                    | Request::Compaction(_)
                    | Request::LeaseGrant(_)
                    | Request::LeaseRevoke(_)
            )
        );
        if changes {
            self.admit_change()?;
        }
        if entry::request_grows(request) { self.admit_growth() } else { Ok(()) }
    }

    /// What any request that changes keys or leases meets.
    ///
    /// # Errors
    /// The refusal.
    pub fn admit_change(&self) -> Result<(), EtcdError> {
        if self.is_on(AlarmType::Corrupt) { Err(EtcdError::Corrupt) } else { Ok(()) }
    }

    /// What a request that may grow the store meets.
    ///
    /// # Errors
    /// The refusal.
    pub fn admit_growth(&self) -> Result<(), EtcdError> {
        self.admit_change()?;
        if self.is_on(AlarmType::Nospace) { Err(EtcdError::NoSpace) } else { Ok(()) }
    }
}

/// etcd's name of a kind.
pub fn name(kind: i32) -> &'static str {
    AlarmType::try_from(kind).map_or("UNKNOWN", |kind| kind.as_str_name())
}

fn text(alarm: &pb::AlarmMember) -> String {
    let mut text = String::new();
    if alarm.member_id != 0 {
        // Writing to a String cannot fail.
        let _ = write!(text, "memberID:{}", alarm.member_id);
    }
    if alarm.alarm != 0 {
        let space = if text.is_empty() { "" } else { " " };
        match AlarmType::try_from(alarm.alarm) {
            Ok(kind) => {
                let _ = write!(text, "{space}alarm:{}", kind.as_str_name());
            }
            Err(_) => {
                let _ = write!(text, "{space}alarm:{}", alarm.alarm);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alarms(list: &[(u64, AlarmType)]) -> Alarms {
        let alarm = |(member_id, kind): &(u64, AlarmType)| pb::AlarmMember {
            member_id: *member_id,
            alarm: *kind as i32,
        };
        Alarms { list: list.iter().map(alarm).collect() }
    }

    #[test]
    fn nospace_lets_deletes_compactions_and_reading_transactions_through() {
        let on = alarms(&[(7, AlarmType::Nospace)]);
        let put = pb::PutRequest { key: "a".into(), ..Default::default() };
        let op = |request| pb::RequestOp { request: Some(request) };
        let with_put = pb::TxnRequest {
            failure: vec![op(pb::request_op::Request::RequestPut(put.clone()))],
            ..Default::default()
        };
        let without = pb::TxnRequest {
            success: vec![op(pb::request_op::Request::RequestDeleteRange(
                pb::DeleteRangeRequest::default(),
            ))],
            ..Default::default()
        };
        let request = pb::InternalRaftRequest::default;
        let cases = [
            (pb::InternalRaftRequest { put: Some(put), ..request() }, false),
            (pb::InternalRaftRequest { txn: Some(with_put), ..request() }, false),
            (pb::InternalRaftRequest { txn: Some(without), ..request() }, true),
            (pb::InternalRaftRequest { lease_grant: Some(Default::default()), ..request() }, false),
            (pb::InternalRaftRequest { lease_revoke: Some(Default::default()), ..request() }, true),
            (pb::InternalRaftRequest { delete_range: Some(Default::default()), ..request() }, true),
            (pb::InternalRaftRequest { compaction: Some(Default::default()), ..request() }, true),
        ];
        for (request, admitted) in &cases {
            assert_eq!(on.admit(request).is_ok(), *admitted, "{request:?}");
            assert!(Alarms::default().admit(request).is_ok());
        }
        let corrupt = alarms(&[(7, AlarmType::Nospace), (8, AlarmType::Corrupt)]);
        for (request, _) in &cases {
            assert_eq!(corrupt.admit(request), Err(EtcdError::Corrupt), "{request:?}");
        }
    }

    #[test]
    fn alarms_are_shown_as_etcd_shows_them() {
        let on = alarms(&[(10_501_334_649_042_878_790, AlarmType::Nospace)]);
        assert_eq!(on.texts(), ["memberID:10501334649042878790 alarm:NOSPACE"]);
        assert_eq!(on.names().collect::<Vec<_>>(), ["NOSPACE"]);
        assert!(on.raised_by(10_501_334_649_042_878_790, AlarmType::Nospace));
        assert!(!on.raised_by(1, AlarmType::Nospace) && !on.is_on(AlarmType::Corrupt));
        assert_eq!(on.of_kind(0).len() + on.of_kind(1).len() + on.of_kind(2).len(), 2);
    }
}
