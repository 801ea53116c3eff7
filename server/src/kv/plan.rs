//! What a transaction will do: its compares choose a path through it, which becomes a list of
//! steps.
//!
//! Used by apply and, for transactions that only read, by the fronts. All compares look at the
//! state before the transaction (etcd `server/etcdserver/txn`). They may range over millions of
//! keys, so they are decided in slices; nesting needs no stack of its own. Nothing is written
//! here.

use std::sync::Arc;
use std::vec;

use etcore_engine::page::PageSource;
use etcore_engine::types::LeaseId;
use etcore_engine::view::{Hit, KeyRange, RangeHits, SliceBounds};
use etcore_engine::wire::KvRef;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;

use super::check::put_ref;
use super::reader::{Reader, Stop};
use crate::limits;
use crate::wire::PutRef;

/// Tells which leases exist: a put may only name one of them.
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

/// A step of a transaction.
#[derive(Debug)]
pub enum Op {
    /// The response of a transaction begins; the first is that of the whole.
    Begin {
        /// Whether its compares hold.
        succeeded: bool,
    },
    /// It ends.
    End,
    /// A read.
    Range(pb::RangeRequest),
    /// A write of a key.
    Put(pb::PutRequest),
    /// A removal of keys.
    Delete(pb::DeleteRangeRequest),
    /// A removal of these keys, of which nothing is told.
    Remove(RemovedKeys),
}

/// Keys to remove, in order, which may be many: given one by one.
pub struct RemovedKeys(pub Box<dyn Iterator<Item = Arc<[u8]>> + Send>);

impl std::fmt::Debug for RemovedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RemovedKeys")
    }
}

/// A transaction whose path is being chosen.
///
/// Invariant: `ops` holds the steps before the frames on the stack, in order.
#[derive(Debug)]
pub struct Plan {
    stack: Vec<Frame>,
    ops: Vec<Op>,
    /// Compares that were decided.
    compared: u64,
}

#[derive(Debug)]
enum Frame {
    Deciding(Box<Deciding>),
    Ops(vec::IntoIter<pb::RequestOp>),
}

/// A transaction and how far its compares are.
#[derive(Debug)]
struct Deciding {
    request: pb::TxnRequest,
    compare: usize,
    /// Where the range of that one goes on; `None` before its first slice.
    next: Option<Vec<u8>>,
    /// It has met a key.
    found: bool,
}

impl Plan {
    /// A plan of a whole transaction.
    pub fn new(request: pb::TxnRequest) -> Self {
        Self { stack: vec![Frame::deciding(request)], ops: Vec::new(), compared: 0 }
    }

    /// A request that is one step and no transaction.
    pub fn of(op: Op) -> Self {
        Self { stack: Vec::new(), ops: vec![op], compared: 0 }
    }

    /// Decides compares for at most about `rows` keys; true once the path is chosen.
    ///
    /// # Errors
    /// See [`Stop`]; after a page has come, the same call goes on.
    pub fn step(
        &mut self,
        reader: &dyn Reader,
        pages: &mut dyn PageSource,
        hits: &mut RangeHits,
        rows: &mut usize,
    ) -> Result<bool, Stop> {
        while let Some(frame) = self.stack.last_mut() {
            if *rows == 0 {
                return Ok(false);
            }
            *rows -= 1;
            match frame {
                Frame::Deciding(deciding) => {
                    let Some(succeeded) = deciding.step(reader, pages, hits, rows)? else {
                        continue;
                    };
                    // The first that does not hold is the last.
                    self.compared += deciding.compare as u64 + u64::from(!succeeded);
                    let request = std::mem::take(&mut deciding.request);
                    let (chosen, other) = match succeeded {
                        true => (request.success, request.failure),
                        false => (request.failure, request.success),
                    };
                    discard(other);
                    *frame = Frame::Ops(chosen.into_iter());
                    self.ops.push(Op::Begin { succeeded });
                }
                Frame::Ops(ops) => match ops.next().map(|op| op.request) {
                    Some(Some(Request::RequestRange(range))) => self.ops.push(Op::Range(range)),
                    Some(Some(Request::RequestPut(put))) => self.ops.push(Op::Put(put)),
                    Some(Some(Request::RequestDeleteRange(delete))) => {
                        self.ops.push(Op::Delete(delete));
                    }
                    Some(Some(Request::RequestTxn(nested))) => {
                        self.stack.push(Frame::deciding(*nested));
                    }
                    Some(None) => {}
                    None => {
                        self.stack.pop();
                        self.ops.push(Op::End);
                    }
                },
            }
        }
        Ok(true)
    }

    /// Checks the steps against the state before the transaction: all or nothing is done.
    ///
    /// # Errors
    /// See [`Stop`].
    pub fn check(&self, reader: &dyn Reader, leases: &dyn Leases) -> Result<(), Stop> {
        for op in &self.ops {
            match op {
                Op::Range(range) => check_revision(reader, range.revision)?,
                Op::Put(put) => check_put(reader, &put_ref(put), leases)?,
                Op::Begin { .. } | Op::End | Op::Delete(_) | Op::Remove(_) => {}
            }
        }
        Ok(())
    }

    /// The steps, once the path is chosen.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Returns the operations, to be used up.
    pub fn ops_mut(&mut self) -> &mut [Op] {
        &mut self.ops
    }

    /// How many compares were decided for it.
    pub fn compared(&self) -> u64 {
        self.compared
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        for frame in self.stack.drain(..) {
            match frame {
                Frame::Deciding(deciding) => {
                    discard(deciding.request.success);
                    discard(deciding.request.failure);
                }
                Frame::Ops(ops) => discard(ops),
            }
        }
    }
}

/// Drops operations that may nest deeper than the stack is.
fn discard(ops: impl IntoIterator<Item = pb::RequestOp>) {
    let mut nested = Vec::new();
    let mut keep = |ops: &mut dyn Iterator<Item = pb::RequestOp>| {
        for op in ops {
            if let Some(Request::RequestTxn(txn)) = op.request {
                nested.push(txn);
            }
        }
        nested.pop()
    };
    let mut next = keep(&mut ops.into_iter());
    while let Some(txn) = next {
        next = keep(&mut txn.success.into_iter().chain(txn.failure));
    }
}

impl Frame {
    fn deciding(request: pb::TxnRequest) -> Self {
        Self::Deciding(Box::new(Deciding { request, compare: 0, next: None, found: false }))
    }
}

impl Deciding {
    /// Goes on with the compares; whether they hold, once that is known.
    fn step(
        &mut self,
        reader: &dyn Reader,
        pages: &mut dyn PageSource,
        hits: &mut RangeHits,
        rows: &mut usize,
    ) -> Result<Option<bool>, Stop> {
        let Some(compare) = self.request.compare.get(self.compare) else { return Ok(Some(true)) };
        let key = self.next.as_deref().unwrap_or(&compare.key);
        let bounds = SliceBounds {
            keys: (*rows).clamp(1, limits::COMPARE_SLICE_KEYS),
            leaves: limits::RANGE_CHUNK_LEAVES,
        };
        reader.slice(KeyRange { key, end: &compare.range_end }, bounds, hits)?;
        for hit in hits.hits() {
            if !holds_of(reader, compare, hit, pages)? {
                return Ok(Some(false));
            }
        }
        *rows = rows.saturating_sub(hits.hits().len());
        self.found |= !hits.hits().is_empty();
        if let Some(next) = hits.next() {
            self.next = Some(next.to_vec());
            return Ok(None);
        }
        // A missing key has no value to compare, and zero for everything else.
        let by_value = compare.target == CompareTarget::Value as i32;
        if !self.found && (by_value || !holds_for(compare, 0, 0, 0, 0, b"")) {
            return Ok(Some(false));
        }
        (self.compare, self.next, self.found) = (self.compare + 1, None, false);
        Ok(None)
    }
}

/// Whether a compare holds for one key of its range.
fn holds_of(
    reader: &dyn Reader,
    compare: &pb::Compare,
    hit: &Hit,
    pages: &mut dyn PageSource,
) -> Result<bool, Stop> {
    let needs_row = compare.target == CompareTarget::Value as i32
        || compare.target == CompareTarget::Lease as i32;
    let (value, lease) = if needs_row {
        let row = KvRef::parse(reader.ready_value(hit.modified, pages)?)
            .map_err(|_| EtcdError::Corrupt)?;
        (row.value, row.lease.0)
    } else {
        (&b""[..], 0)
    };
    let version = i64::try_from(hit.version).unwrap_or(i64::MAX);
    Ok(holds_for(compare, hit.create.0, hit.modified.main.0, version, lease, value))
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
    if (put.ignore_value || put.ignore_lease) && reader.find(put.key)?.is_none() {
        return Err(EtcdError::KeyNotFound.into());
    }
    Ok(())
}
