//! A program of the differential test: operations whose revisions and lease ids may be relative to
//! what the servers have answered so far, so that a shortened program still means something.
//!
//! Made by the generator, run by the runner, cut by the shrinker. It never looks at answers.

use std::fmt;

use etcore_proto::pb::etcdserverpb as pb;
use pb::compare::TargetUnion;
use pb::request_op::Request;
use prost::Message as _;

use super::answer::{
    ALARM, COMPACT, DELETE, GRANT, HASH_KV, LEASES, MEMBERS, PUT, RANGE, RANGE_STREAM, REVOKE,
    STATUS, TIME_TO_LIVE, TXN,
};

/// One step, the same for both servers.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Range(pb::RangeRequest),
    RangeStream(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    /// The lease is known by the slot afterwards.
    Grant(u32, pb::LeaseGrantRequest),
    /// Granted and revoked at once, so that its short life ends by order and not by time.
    GrantShort(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases,
    KeepAlive(pb::LeaseKeepAliveRequest),
    /// A key with the shortest lease, watched until it is gone.
    Expire(pb::PutRequest),
    Watch(usize, pb::WatchCreateRequest),
    CancelWatch(usize, i64),
    Progress(usize),
    EndStream(usize),
    Status,
    HashKv(i64),
    Alarms,
    Members(bool),
    /// Runs the operations while the member says it has no space.
    NoSpace(Vec<Op>),
    /// Bytes that are no request, or a method that is none.
    Raw(&'static str, Vec<u8>),
}

/// Numbers around these are relative; no program uses them otherwise.
const CURRENT: i64 = 1 << 40;
const COMPACTED: i64 = 1 << 41;
const LEASE: i64 = 1 << 42;
const REACH: u64 = 1 << 30;

/// The newest revision and so many more.
pub(crate) fn current(delta: i64) -> i64 {
    CURRENT + delta
}

/// The last compaction's revision and so many more.
pub(crate) fn compacted(delta: i64) -> i64 {
    COMPACTED + delta
}

/// The lease of a slot; also what both servers' ids for it are replaced by.
pub(crate) fn lease(slot: u32) -> i64 {
    LEASE + i64::from(slot)
}

/// What relative numbers are relative to, on one server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) current: i64,
    pub(crate) compacted: i64,
    /// Server's id of each slot's lease.
    pub(crate) leases: Vec<(u32, i64)>,
}

impl Known {
    /// A lease that was never granted has an id that nobody has.
    fn number(&self, number: &mut i64) {
        let near = |base: i64| number.abs_diff(base) < REACH;
        if near(CURRENT) {
            *number = (self.current + *number - CURRENT).max(1);
        } else if near(COMPACTED) {
            *number = (self.compacted + *number - COMPACTED).max(1);
        } else if near(LEASE) {
            let slot = u32::try_from(*number - LEASE).expect("made by lease()");
            *number = self.lease_id(slot).unwrap_or(0x7ead_0000_0000 + i64::from(slot));
        }
    }

    pub(crate) fn lease_id(&self, slot: u32) -> Option<i64> {
        self.leases.iter().rev().find(|(other, _)| *other == slot).map(|(_, id)| *id)
    }

    /// The operation with every relative number made absolute.
    pub(crate) fn resolve(&self, op: &Op) -> Op {
        let mut op = op.clone();
        match &mut op {
            Op::Range(request) | Op::RangeStream(request) => self.range(request),
            Op::Put(request) | Op::Expire(request) => self.number(&mut request.lease),
            Op::Txn(request) => self.txn(request),
            Op::Compact(request) => self.number(&mut request.revision),
            Op::Grant(_, request) | Op::GrantShort(request) => self.number(&mut request.id),
            Op::Revoke(request) => self.number(&mut request.id),
            Op::TimeToLive(request) => self.number(&mut request.id),
            Op::KeepAlive(request) => self.number(&mut request.id),
            Op::Watch(_, request) => self.number(&mut request.start_revision),
            Op::HashKv(revision) => self.number(revision),
            Op::Delete(_)
            | Op::Leases
            | Op::CancelWatch(..)
            | Op::Progress(_)
            | Op::EndStream(_)
            | Op::Status
            | Op::Alarms
            | Op::Members(_)
            | Op::NoSpace(_)
            | Op::Raw(..) => {}
        }
        op
    }

    fn range(&self, request: &mut pb::RangeRequest) {
        self.number(&mut request.revision);
        self.number(&mut request.min_mod_revision);
        self.number(&mut request.max_mod_revision);
        self.number(&mut request.min_create_revision);
        self.number(&mut request.max_create_revision);
    }

    fn txn(&self, request: &mut pb::TxnRequest) {
        for compare in &mut request.compare {
            if let Some(
                TargetUnion::CreateRevision(number)
                | TargetUnion::ModRevision(number)
                | TargetUnion::Lease(number),
            ) = &mut compare.target_union
            {
                self.number(number);
            }
        }
        for op in request.success.iter_mut().chain(&mut request.failure) {
            match &mut op.request {
                Some(Request::RequestRange(request)) => self.range(request),
                Some(Request::RequestPut(request)) => self.number(&mut request.lease),
                Some(Request::RequestTxn(request)) => self.txn(request),
                Some(Request::RequestDeleteRange(_)) | None => {}
            }
        }
    }
}

impl Op {
    /// The method, of an operation of one request.
    pub(crate) fn path(&self) -> Option<&'static str> {
        Some(match self {
            Op::Range(_) => RANGE,
            Op::RangeStream(_) => RANGE_STREAM,
            Op::Put(_) => PUT,
            Op::Delete(_) => DELETE,
            Op::Txn(_) => TXN,
            Op::Compact(_) => COMPACT,
            Op::Grant(..) => GRANT,
            Op::Revoke(_) => REVOKE,
            Op::TimeToLive(_) => TIME_TO_LIVE,
            Op::Leases => LEASES,
            Op::Status => STATUS,
            Op::HashKv(_) => HASH_KV,
            Op::Alarms => ALARM,
            Op::Members(_) => MEMBERS,
            Op::Raw(path, _) => path,
            _ => return None,
        })
    }

    /// Its message; what names no method has none.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Op::Range(request) | Op::RangeStream(request) => request.encode_to_vec(),
            Op::Put(request) | Op::Expire(request) => request.encode_to_vec(),
            Op::Delete(request) => request.encode_to_vec(),
            Op::Txn(request) => request.encode_to_vec(),
            Op::Compact(request) => request.encode_to_vec(),
            Op::Grant(_, request) | Op::GrantShort(request) => request.encode_to_vec(),
            Op::Revoke(request) => request.encode_to_vec(),
            Op::TimeToLive(request) => request.encode_to_vec(),
            Op::KeepAlive(request) => request.encode_to_vec(),
            Op::HashKv(revision) => pb::HashKvRequest { revision: *revision }.encode_to_vec(),
            Op::Members(linearizable) => {
                pb::MemberListRequest { linearizable: *linearizable }.encode_to_vec()
            }
            Op::Raw(_, message) => message.clone(),
            _ => Vec::new(),
        }
    }
}

/// True for a transaction with a put and a delete without an end: etcd overlooks that they overlap
/// (an end of `\0` is taken literally by its check). A compaction at just that revision keeps only
/// the key's first tombstone, so etcd forgets an event, or the value itself; a hash of the revision
/// forgets the same.
pub(crate) fn may_write_twice(request: &pb::TxnRequest) -> bool {
    let (mut puts, mut open_deletes) = (false, false);
    let mut look = vec![request];
    while let Some(txn) = look.pop() {
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(Request::RequestPut(_)) => puts = true,
                Some(Request::RequestDeleteRange(delete)) => {
                    open_deletes |= delete.range_end == b"\0"[..];
                }
                Some(Request::RequestTxn(nested)) => look.push(nested),
                Some(Request::RequestRange(_)) | None => {}
            }
        }
    }
    puts && open_deletes
}

/// One line of a script: fields that have their default are left out, long values are cut.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Op::NoSpace(ops) = self {
            write!(f, "while the alarm NOSPACE is on:")?;
            return ops.iter().try_for_each(|op| write!(f, "\n        {op}"));
        }
        f.write_str(&readable(&format!("{self:?}")))
    }
}

/// Shortens what `{:?}` gives.
pub(crate) fn readable(debug: &str) -> String {
    let mut out = String::new();
    for (number, token) in debug.split(", ").enumerate() {
        let (open, rest) = match token.rfind("{ ") {
            Some(at) => token.split_at(at + 2),
            None => ("", token),
        };
        let (field, close) = match rest.find(" }") {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let is_default = [": 0", ": false", ": b\"\"", ": []", ": None", ": \"\""]
            .iter()
            .any(|default| field.ends_with(default));
        let after_open = out.is_empty() || out.ends_with("{ ");
        if !open.is_empty() {
            if number > 0 && !after_open {
                out.push_str(", ");
            }
            out.push_str(open);
        }
        if !is_default {
            if number > 0 && open.is_empty() && !after_open {
                out.push_str(", ");
            }
            out.push_str(&cut(field));
        }
        out.push_str(close);
    }
    out
}

/// A long value by its beginning and its length.
fn cut(field: &str) -> String {
    const SHOWN: usize = 60;
    let letters = field.chars().count();
    if letters <= 2 * SHOWN {
        return field.to_owned();
    }
    let head: String = field.chars().take(SHOWN).collect();
    format!("{head}…({letters} letters)")
}
