//! Histories from messages of the API, and requests as messages.
//!
//! Used by recorders. Must never make sense of what a history cannot hold: that is `None`.

use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::pb::mvccpb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request as OpRequest;
use pb::response_op::Response as OpResponse;

use super::data::KeyRange;
use super::types::{
    Answer, Batch, Compare, Delete, Event, Get, Kv, Put, Relation, Request, Target, Txn,
};

impl From<&Get> for pb::RangeRequest {
    fn from(get: &Get) -> Self {
        pb::RangeRequest {
            key: get.range.key.0.clone(),
            range_end: get.range.end.0.clone(),
            limit: get.limit,
            revision: get.revision,
            serializable: get.serializable,
            keys_only: get.keys_only,
            count_only: get.count_only,
            ..Default::default()
        }
    }
}

impl From<&Put> for pb::PutRequest {
    fn from(put: &Put) -> Self {
        pb::PutRequest {
            key: put.key.0.clone(),
            value: put.value.0.clone(),
            lease: put.lease,
            prev_kv: put.prev_kv,
            ..Default::default()
        }
    }
}

impl From<&Delete> for pb::DeleteRangeRequest {
    fn from(delete: &Delete) -> Self {
        pb::DeleteRangeRequest {
            key: delete.range.key.0.clone(),
            range_end: delete.range.end.0.clone(),
            prev_kv: delete.prev_kv,
        }
    }
}

impl From<&Compare> for pb::Compare {
    fn from(compare: &Compare) -> Self {
        let result = match compare.relation {
            Relation::Equal => CompareResult::Equal,
            Relation::Greater => CompareResult::Greater,
            Relation::Less => CompareResult::Less,
            Relation::NotEqual => CompareResult::NotEqual,
        };
        let (target, union) = match &compare.target {
            Target::Value(value) => (CompareTarget::Value, TargetUnion::Value(value.0.clone())),
            Target::Create(at) => (CompareTarget::Create, TargetUnion::CreateRevision(*at)),
            Target::Modified(at) => (CompareTarget::Mod, TargetUnion::ModRevision(*at)),
            Target::Version(number) => (CompareTarget::Version, TargetUnion::Version(*number)),
            Target::Lease(id) => (CompareTarget::Lease, TargetUnion::Lease(*id)),
        };
        pb::Compare {
            result: result.into(),
            target: target.into(),
            key: compare.range.key.0.clone(),
            range_end: compare.range.end.0.clone(),
            target_union: Some(union),
        }
    }
}

impl From<&Txn> for pb::TxnRequest {
    fn from(txn: &Txn) -> Self {
        let operations = |requests: &[Request]| requests.iter().filter_map(operation).collect();
        pb::TxnRequest {
            compare: txn.compares.iter().map(pb::Compare::from).collect(),
            success: operations(&txn.success),
            failure: operations(&txn.failure),
        }
    }
}

/// The request inside of a transaction; `None` for what cannot be there.
fn operation(request: &Request) -> Option<pb::RequestOp> {
    let request = match request {
        Request::Get(get) => OpRequest::RequestRange(get.into()),
        Request::Put(put) => OpRequest::RequestPut(put.into()),
        Request::Delete(delete) => OpRequest::RequestDeleteRange(delete.into()),
        Request::Txn(txn) => OpRequest::RequestTxn(Box::new(txn.into())),
        _ => return None,
    };
    Some(pb::RequestOp { request: Some(request) })
}

fn revision(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

fn kvs(kvs: Vec<mvccpb::KeyValue>) -> Vec<Kv> {
    kvs.into_iter().map(Kv::from).collect()
}

impl From<mvccpb::KeyValue> for Kv {
    fn from(kv: mvccpb::KeyValue) -> Self {
        Kv {
            key: kv.key.into(),
            value: kv.value.into(),
            create: kv.create_revision,
            modified: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        }
    }
}

impl From<pb::RangeResponse> for Answer {
    fn from(response: pb::RangeResponse) -> Self {
        Answer::Get {
            revision: revision(response.header.as_ref()),
            kvs: kvs(response.kvs),
            more: response.more,
            count: response.count,
        }
    }
}

impl From<pb::PutResponse> for Answer {
    fn from(response: pb::PutResponse) -> Self {
        let prev = response.prev_kv.map(Kv::from);
        Answer::Put { revision: revision(response.header.as_ref()), prev }
    }
}

impl From<pb::DeleteRangeResponse> for Answer {
    fn from(response: pb::DeleteRangeResponse) -> Self {
        Answer::Delete {
            revision: revision(response.header.as_ref()),
            deleted: response.deleted,
            prev: kvs(response.prev_kvs),
        }
    }
}

impl From<pb::TxnResponse> for Answer {
    fn from(response: pb::TxnResponse) -> Self {
        let answers = response.responses.into_iter().filter_map(|op| {
            Some(match op.response? {
                OpResponse::ResponseRange(range) => range.into(),
                OpResponse::ResponsePut(put) => put.into(),
                OpResponse::ResponseDeleteRange(delete) => delete.into(),
                OpResponse::ResponseTxn(txn) => txn.into(),
            })
        });
        Answer::Txn {
            revision: revision(response.header.as_ref()),
            succeeded: response.succeeded,
            answers: answers.collect(),
        }
    }
}

impl From<pb::LeaseGrantResponse> for Answer {
    fn from(response: pb::LeaseGrantResponse) -> Self {
        Answer::Grant { revision: revision(response.header.as_ref()), ttl: response.ttl }
    }
}

impl From<pb::LeaseRevokeResponse> for Answer {
    fn from(response: pb::LeaseRevokeResponse) -> Self {
        Answer::Revoke { revision: revision(response.header.as_ref()) }
    }
}

impl From<pb::LeaseKeepAliveResponse> for Answer {
    fn from(response: pb::LeaseKeepAliveResponse) -> Self {
        Answer::KeepAlive { revision: revision(response.header.as_ref()), ttl: response.ttl }
    }
}

impl From<pb::CompactionResponse> for Answer {
    fn from(response: pb::CompactionResponse) -> Self {
        Answer::Compact { revision: revision(response.header.as_ref()) }
    }
}

/// A response of a watch that arrived at this time (ns); `None` for one that creates or cancels.
pub fn batch(response: pb::WatchResponse, at: u64) -> Option<Batch> {
    if response.created || response.canceled {
        return None;
    }
    let delete = i32::from(mvccpb::event::EventType::Delete);
    let events = response.events.into_iter().map(|event| Event {
        delete: event.r#type == delete,
        kv: event.kv.map(Kv::from).unwrap_or_default(),
        prev: event.prev_kv.map(Kv::from),
    });
    Some(Batch {
        at,
        revision: revision(response.header.as_ref()),
        fragment: response.fragment,
        events: events.collect(),
    })
}

/// The request that opens a watch of these keys.
pub fn watch(range: &KeyRange, start: i64, prev_kv: bool) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: range.key.0.clone(),
        range_end: range.end.0.clone(),
        start_revision: start,
        prev_kv,
        ..Default::default()
    }
}
