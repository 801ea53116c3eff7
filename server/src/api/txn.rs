//! Txn, Put and DeleteRange as state transitions (etcd `server/etcdserver/txn`): compares choose a
//! path through the nested transaction, the chosen operations are checked as a whole, then run.
//!
//! Called by apply with a write transaction, and by the fronts for transactions that only read.
//! Checks come before the first write, so a refused transaction has changed nothing; a page that
//! must be waited for is reported the same way and the caller rolls back.

use etcore_engine::page::PageSource;
use etcore_engine::store::Txn;
use etcore_engine::types::{LeaseId, Revision};
use etcore_engine::view::RangeHits;
use etcore_engine::wire::KvRef;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;

use super::check::put_ref;
use super::range::{self, Scratch};
use super::reader::{Reader, Stop};
use crate::wire::{Header, PutRef, write_int64, write_len, write_uint64};

/// Which leases exist: a put may only name one of them.
pub trait Leases {
    /// True if the lease exists.
    fn exists(&self, lease: LeaseId) -> bool;
}

/// For transactions that only read: they name no lease.
pub struct NoLeases;

impl Leases for NoLeases {
    fn exists(&self, _: LeaseId) -> bool {
        false
    }
}

/// What is needed besides the transaction itself.
pub struct Context<'a> {
    /// Where values that are not in memory come from.
    pub pages: &'a mut dyn PageSource,
    /// Known leases.
    pub leases: &'a dyn Leases,
    /// Memory used again.
    pub scratch: &'a mut Scratch,
}

/// The header of a response inside a transaction: the revision alone.
fn inner_header(revision: Revision) -> Header {
    Header { cluster_id: 0, member_id: 0, revision: revision.0, raft_term: 0 }
}

/// The path that the compares choose: one decision per transaction, in order of appearance.
///
/// # Errors
/// See [`Stop`].
pub fn choose_path(
    reader: &dyn Reader,
    request: &pb::TxnRequest,
    pages: &mut dyn PageSource,
) -> Result<Vec<bool>, Stop> {
    let mut path = Vec::new();
    extend_path(reader, request, pages, &mut path)?;
    Ok(path)
}

fn extend_path(
    reader: &dyn Reader,
    request: &pb::TxnRequest,
    pages: &mut dyn PageSource,
    path: &mut Vec<bool>,
) -> Result<(), Stop> {
    let mut succeeded = true;
    for compare in &request.compare {
        if !holds(reader, compare, pages)? {
            succeeded = false;
            break;
        }
    }
    path.push(succeeded);
    for op in ops_of(request, succeeded) {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            extend_path(reader, nested, pages, path)?;
        }
    }
    Ok(())
}

fn ops_of(request: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// Whether a compare holds for every key in its range.
fn holds(
    reader: &dyn Reader,
    compare: &pb::Compare,
    pages: &mut dyn PageSource,
) -> Result<bool, Stop> {
    let mut hits = RangeHits::default();
    reader.range_into(&compare.key, &compare.range_end, Revision(0), 0, &mut hits)?;
    let by_value = compare.target == CompareTarget::Value as i32;
    if hits.hits().is_empty() {
        // A missing key has no value to compare, and zero for everything else.
        return Ok(!by_value && holds_for(compare, 0, 0, 0, 0, b""));
    }
    let needs_row = by_value || compare.target == CompareTarget::Lease as i32;
    for hit in hits.hits() {
        let (value, lease) = if needs_row {
            let row = KvRef::parse(reader.ready_value(hit.modified, pages)?)
                .map_err(|_| EtcdError::Corrupt)?;
            (row.value, row.lease.0)
        } else {
            (&b""[..], 0)
        };
        let version = i64::try_from(hit.version).unwrap_or(i64::MAX);
        if !holds_for(compare, hit.create.0, hit.modified.main.0, version, lease, value) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn holds_for(
    compare: &pb::Compare,
    create: i64,
    modified: i64,
    version: i64,
    lease: i64,
    value: &[u8],
) -> bool {
    // A target union that does not fit the target counts as unset, hence zero or empty.
    let wanted = compare.target_union.as_ref();
    let order = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => match wanted {
            Some(TargetUnion::Value(wanted)) => value.cmp(wanted.as_ref()),
            _ => value.cmp(b""),
        },
        Ok(CompareTarget::Create) => match wanted {
            Some(TargetUnion::CreateRevision(wanted)) => create.cmp(wanted),
            _ => create.cmp(&0),
        },
        Ok(CompareTarget::Mod) => match wanted {
            Some(TargetUnion::ModRevision(wanted)) => modified.cmp(wanted),
            _ => modified.cmp(&0),
        },
        Ok(CompareTarget::Version) => match wanted {
            Some(TargetUnion::Version(wanted)) => version.cmp(wanted),
            _ => version.cmp(&0),
        },
        Ok(CompareTarget::Lease) => match wanted {
            Some(TargetUnion::Lease(wanted)) => lease.cmp(wanted),
            _ => lease.cmp(&0),
        },
        Err(_) => std::cmp::Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}

/// Checks the chosen operations against the state before the transaction: all or nothing runs.
fn check_ops(
    reader: &dyn Reader,
    request: &pb::TxnRequest,
    path: &mut std::slice::Iter<'_, bool>,
    leases: &dyn Leases,
) -> Result<(), Stop> {
    let succeeded = path.next().copied().unwrap_or(false);
    for op in ops_of(request, succeeded) {
        match &op.request {
            Some(Request::RequestRange(range)) => check_revision(reader, range.revision)?,
            Some(Request::RequestPut(put)) => check_put(reader, &put_ref(put), leases)?,
            Some(Request::RequestTxn(nested)) => check_ops(reader, nested, path, leases)?,
            Some(Request::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

/// Unlike a plain Range, a negative revision below the compaction is refused here.
fn check_revision(reader: &dyn Reader, revision: i64) -> Result<(), Stop> {
    if revision == 0 {
        Ok(())
    } else if revision > reader.revision().0 {
        Err(EtcdError::FutureRev.into())
    } else if revision < reader.compact_revision().0 {
        Err(EtcdError::Compacted.into())
    } else {
        Ok(())
    }
}

fn check_put(reader: &dyn Reader, put: &PutRef<'_>, leases: &dyn Leases) -> Result<(), Stop> {
    if put.lease != 0 && !leases.exists(LeaseId(put.lease)) {
        return Err(EtcdError::LeaseNotFound.into());
    }
    if put.ignore_value || put.ignore_lease {
        let mut hits = RangeHits::default();
        reader.range_into(put.key, b"", Revision(0), 1, &mut hits)?;
        if hits.hits().is_empty() {
            return Err(EtcdError::KeyNotFound.into());
        }
    }
    Ok(())
}

/// Runs a transaction that only reads; appends the TxnResponse to `out`.
///
/// # Errors
/// See [`Stop`].
pub fn read_only(
    reader: &dyn Reader,
    request: &pb::TxnRequest,
    context: &mut Context<'_>,
    header: impl Fn(Revision) -> Header,
    out: &mut Vec<u8>,
) -> Result<(), Stop> {
    let path = choose_path(reader, request, context.pages)?;
    check_ops(reader, request, &mut path.iter(), context.leases)?;
    let succeeded = path.first().copied().unwrap_or(false);
    let start = out.len();
    header(reader.revision()).write(out);
    write_uint64(out, 2, u64::from(succeeded));
    for op in ops_of(request, succeeded) {
        let Some(Request::RequestRange(request)) = &op.request else { continue };
        let mut response = Vec::new();
        let result = range::respond(
            reader,
            request,
            context.pages,
            inner_header,
            context.scratch,
            &mut response,
        );
        if let Err(stop) = result {
            out.truncate(start);
            return Err(stop);
        }
        write_response_op(out, 1, &response);
    }
    Ok(())
}

/// Appends `responses: {field: response}`.
fn write_response_op(out: &mut Vec<u8>, field: u32, response: &[u8]) {
    write_len(out, 3, crate::wire::field_len(field, response.len()));
    write_len(out, field, response.len());
    out.extend_from_slice(response);
}

/// Runs a whole transaction inside `txn`; appends the TxnResponse with `header` to `out`. After an
/// error the caller must drop `txn`.
///
/// # Errors
/// See [`Stop`].
pub fn apply_txn(
    txn: &mut Txn<'_>,
    request: &pb::TxnRequest,
    context: &mut Context<'_>,
    header: impl Fn(Revision) -> Header,
    out: &mut Vec<u8>,
) -> Result<(), Stop> {
    let path = choose_path(&*txn, request, context.pages)?;
    check_ops(&*txn, request, &mut path.iter(), context.leases)?;
    let mut body = Vec::new();
    run_ops(txn, request, &mut path.iter(), context, &mut body)?;
    header(txn.revision()).write(out);
    out.extend_from_slice(&body);
    Ok(())
}

/// Appends everything of a TxnResponse but its header.
fn run_ops(
    txn: &mut Txn<'_>,
    request: &pb::TxnRequest,
    path: &mut std::slice::Iter<'_, bool>,
    context: &mut Context<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Stop> {
    let succeeded = path.next().copied().unwrap_or(false);
    write_uint64(out, 2, u64::from(succeeded));
    for op in ops_of(request, succeeded) {
        let mut response = Vec::new();
        let field = match &op.request {
            Some(Request::RequestRange(request)) => {
                range::respond(
                    &*txn,
                    request,
                    context.pages,
                    inner_header,
                    context.scratch,
                    &mut response,
                )?;
                1
            }
            Some(Request::RequestPut(request)) => {
                put_in(txn, &put_ref(request), context, inner_header, &mut response)?;
                2
            }
            Some(Request::RequestDeleteRange(request)) => {
                delete_range(txn, request, context, inner_header, &mut response)?;
                3
            }
            Some(Request::RequestTxn(request)) => {
                // etcd leaves the header of a nested response empty, but present.
                write_len(&mut response, 1, 0);
                run_ops(txn, request, path, context, &mut response)?;
                4
            }
            None => continue,
        };
        write_response_op(out, field, &response);
    }
    Ok(())
}

/// Applies a Put of its own; appends the PutResponse to `out`.
///
/// # Errors
/// See [`Stop`]; the caller drops `txn` then.
pub fn apply_put(
    txn: &mut Txn<'_>,
    put: &PutRef<'_>,
    context: &mut Context<'_>,
    header: impl Fn(Revision) -> Header,
    out: &mut Vec<u8>,
) -> Result<(), Stop> {
    check_put(&*txn, put, context.leases)?;
    put_in(txn, put, context, header, out)
}

fn put_in(
    txn: &mut Txn<'_>,
    put: &PutRef<'_>,
    context: &mut Context<'_>,
    header: impl Fn(Revision) -> Header,
    out: &mut Vec<u8>,
) -> Result<(), Stop> {
    let mut previous = None;
    if put.prev_kv || put.ignore_value || put.ignore_lease {
        let mut hits = RangeHits::default();
        txn.range_into(put.key, b"", Revision(0), 1, &mut hits)?;
        if let Some(hit) = hits.hits().first() {
            previous = Some(Reader::ready_value(&*txn, hit.modified, context.pages)?.to_vec());
        }
    }
    let (mut value, mut lease) = (put.value, put.lease);
    if put.ignore_value || put.ignore_lease {
        // Checked before the transaction ran; a delete inside it may have taken the key since,
        // which etcd answers with a crash. Refusing is what a client can live with.
        let row = previous.as_deref().ok_or(EtcdError::KeyNotFound)?;
        let row = KvRef::parse(row).map_err(|_| EtcdError::Corrupt)?;
        if put.ignore_value {
            value = row.value;
        }
        if put.ignore_lease {
            lease = row.lease.0;
        }
    }
    txn.put(put.key, value, LeaseId(lease));
    header(txn.revision()).write(out);
    if put.prev_kv
        && let Some(previous) = &previous
    {
        write_len(out, 2, previous.len());
        out.extend_from_slice(previous);
    }
    Ok(())
}

/// Deletes a range inside `txn`; appends the DeleteRangeResponse to `out`.
///
/// # Errors
/// See [`Stop`]; the caller drops `txn` then.
pub fn delete_range(
    txn: &mut Txn<'_>,
    request: &pb::DeleteRangeRequest,
    context: &mut Context<'_>,
    header: impl Fn(Revision) -> Header,
    out: &mut Vec<u8>,
) -> Result<(), Stop> {
    let mut hits = RangeHits::default();
    txn.range_into(&request.key, &request.range_end, Revision(0), 0, &mut hits)?;
    let mut previous = Vec::new();
    if request.prev_kv {
        for hit in hits.hits() {
            let row = Reader::ready_value(&*txn, hit.modified, context.pages)?;
            write_len(&mut previous, 3, row.len());
            previous.extend_from_slice(row);
        }
    }
    for hit in hits.hits() {
        txn.delete(hits.key(hit));
    }
    header(txn.revision()).write(out);
    write_int64(out, 2, i64::try_from(hits.hits().len()).unwrap_or(i64::MAX));
    out.extend_from_slice(&previous);
    Ok(())
}
