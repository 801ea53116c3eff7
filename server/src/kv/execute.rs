//! Put, DeleteRange and Txn as state transitions (etcd `server/etcdserver/txn`), in slices.
//!
//! Called by apply with a write transaction, and for transactions that only read by the fronts
//! ([`draft_reads`]). An [`Execution`] goes on where its last slice ended: the compares choose a
//! path, the chosen steps are checked as a whole, then done. Values that a client is to be told are
//! not read here unless they are few and in memory: the answer refers to them by their revision.

use std::sync::Arc;

use etcore_engine::page::PageSource;
use etcore_engine::store::Txn;
use etcore_engine::types::{LeaseId, RevKey, Revision};
use etcore_engine::view::{KeyRange, RangeHits, ReadPoint, SliceBounds};
use etcore_engine::wire::KvRef;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;

use super::answer::Draft;
use super::check::put_ref;
use super::counts::Counts;
use super::keys::Keys;
use super::plan::{Leases, Op, Plan, RemovedKeys};
use super::range::{self, Scratch, ShortBounds};
use super::reader::{MemoryOnly, Reader, Stop};
use crate::limits;
use crate::wire::{Header, write_int64, write_len, write_uint64};

/// Fields of a ResponseOp, and of TxnResponse around them.
const RESPONSES: u32 = 3;
const RESPONSE_RANGE: u32 = 1;
const RESPONSE_PUT: u32 = 2;
const RESPONSE_DELETE: u32 = 3;
const RESPONSE_TXN: u32 = 4;
/// Fields of a PutResponse and a DeleteRangeResponse.
const PUT_PREVIOUS: u32 = 2;
const DELETE_PREVIOUS: u32 = 3;

/// What apply puts into an answer itself: so much is told at once, and from memory.
const IN_APPLY: ShortBounds = ShortBounds {
    slice: SliceBounds { keys: limits::APPLY_ANSWER_KEYS, leaves: limits::APPLY_ANSWER_LEAVES },
    bytes: limits::APPLY_ANSWER_BYTES,
    one_of_any_size: false,
};

/// What an execution needs besides the transaction itself.
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

/// A request that is being applied.
///
/// Invariant: steps before `at` are done; a removal is done before `delete.next`.
pub struct Execution {
    plan: Plan,
    stage: Stage,
    /// The step being done.
    at: usize,
    /// Transactions around it.
    depth: usize,
    delete: Option<Delete>,
    /// Changes whose keys' leases are known to be right.
    attached: usize,
    draft: Draft,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Plan,
    Run,
    Done,
}

/// A removal under way.
struct Delete {
    /// The state before it.
    point: ReadPoint,
    next: Option<Vec<u8>>,
    count: u64,
}

impl Execution {
    /// Executes a whole transaction.
    pub fn txn(request: pb::TxnRequest) -> Self {
        Self::new(Plan::new(request))
    }

    /// Executes a Put or a DeleteRange.
    pub fn of(op: Op) -> Self {
        Self::new(Plan::of(op))
    }

    /// Removes keys that are given one by one, without an answer.
    pub fn remove(keys: Box<dyn Iterator<Item = Arc<[u8]>> + Send>) -> Self {
        Self::of(Op::Remove(RemovedKeys(keys)))
    }

    fn new(plan: Plan) -> Self {
        Self {
            plan,
            stage: Stage::Plan,
            at: 0,
            depth: 0,
            delete: None,
            attached: 0,
            draft: Draft::default(),
        }
    }

    /// Goes on for about `rows` keys; true once everything is done. After [`Stop::Refused`] the
    /// caller must drop `txn`.
    ///
    /// # Errors
    /// See [`Stop`]; after a page has come, the same call goes on.
    pub fn step(
        &mut self,
        txn: &mut Txn<'_>,
        context: &mut Context<'_>,
        rows: &mut usize,
    ) -> Result<bool, Stop> {
        if self.stage == Stage::Plan {
            let hits = context.scratch.hits_mut();
            if !self.plan.step(&*txn, context.pages, hits, rows)? {
                return Ok(false);
            }
            self.plan.check(&*txn, context.leases)?;
            self.stage = Stage::Run;
        }
        while self.at < self.plan.ops().len() {
            if *rows == 0 {
                return Ok(false);
            }
            *rows -= 1;
            if !self.run(txn, context, rows)? {
                return Ok(false);
            }
            self.at += 1;
        }
        self.stage = Stage::Done;
        Ok(true)
    }

    /// Tells `attach` the keys that were written and their leases, about `rows` of them; true once
    /// it knows all. Called when everything is done, before the transaction is committed.
    pub fn attach(
        &mut self,
        txn: &Txn<'_>,
        rows: &mut usize,
        mut attach: impl FnMut(&[u8], i64),
    ) -> bool {
        assert_eq!(self.stage, Stage::Done, "leases are attached to what was written");
        let to = txn.changes().min(self.attached + *rows);
        *rows -= to - self.attached;
        for change in self.attached..to {
            let row = txn.row(change);
            attach(row.key, row.lease.0);
        }
        self.attached = to;
        to == txn.changes()
    }

    /// What of it is counted, once everything is done.
    pub fn counts(&self) -> Counts {
        Counts::of(&self.plan)
    }

    /// The response, but for its header.
    pub fn into_draft(self) -> Draft {
        assert_eq!(self.stage, Stage::Done, "an answer speaks of what was done");
        self.draft
    }

    /// Does a step, or a slice of it; true once it is done.
    fn run(
        &mut self,
        txn: &mut Txn<'_>,
        context: &mut Context<'_>,
        rows: &mut usize,
    ) -> Result<bool, Stop> {
        let (draft, nested) = (&mut self.draft, self.depth > 0);
        match &mut self.plan.ops_mut()[self.at] {
            Op::Begin { succeeded } => {
                begin_txn(draft, nested, *succeeded);
                self.depth += 1;
            }
            Op::End => {
                self.depth -= 1;
                end(draft, self.depth > 0);
            }
            Op::Range(request) => {
                begin(draft, nested, RESPONSE_RANGE);
                let point = match request.revision {
                    ..=0 => txn.read_point(),
                    revision => ReadPoint::at(Revision(revision)),
                };
                let pages = (&mut MemoryOnly as &mut dyn PageSource, &mut *context.scratch);
                draft_range(draft, &*txn, request, (IN_APPLY, point), pages)?;
                end(draft, nested);
            }
            Op::Put(request) => put(txn, context, request, draft, nested)?,
            Op::Delete(request) => {
                let here = self.delete.is_none() && request.prev_kv;
                let delete = self.delete.get_or_insert_with(|| Delete {
                    point: txn.read_point(),
                    next: None,
                    count: 0,
                });
                let Some(previous) = delete_slice(txn, request, delete, context, rows, here) else {
                    return Ok(false);
                };
                begin(draft, nested, RESPONSE_DELETE);
                if nested {
                    inner_header(Txn::revision(txn)).write(draft.bytes());
                }
                let count = i64::try_from(delete.count).unwrap_or(i64::MAX);
                write_int64(draft.bytes(), 2, count);
                match previous {
                    Some(rows) => draft.bytes().extend_from_slice(&rows),
                    None if request.prev_kv && count > 0 => draft.keys(Keys::previous_values(
                        request.key.clone(),
                        request.range_end.clone(),
                        delete.point,
                        DELETE_PREVIOUS,
                    )),
                    None => {}
                }
                end(draft, nested);
                self.delete = None;
            }
            Op::Remove(RemovedKeys(keys)) => {
                for key in keys.by_ref().take(*rows) {
                    txn.delete(&key);
                    *rows -= 1;
                }
                return Ok(*rows > 0);
            }
        }
        Ok(true)
    }
}

/// A value that was replaced.
enum Previous {
    None,
    Here(Vec<u8>),
    /// To be read when the answer is sent.
    Later,
}

impl Previous {
    fn of(txn: &Txn<'_>, at: RevKey, len_bytes: u32) -> Self {
        if u64::from(len_bytes) > limits::APPLY_ANSWER_BYTES {
            return Self::Later;
        }
        match Reader::ready_value(txn, at, &mut MemoryOnly) {
            Ok(row) => Self::Here(row.to_vec()),
            Err(_) => Self::Later,
        }
    }
}

/// Carries out a put, and writes its answer.
fn put(
    txn: &mut Txn<'_>,
    context: &mut Context<'_>,
    request: &pb::PutRequest,
    draft: &mut Draft,
    nested: bool,
) -> Result<(), Stop> {
    let put = put_ref(request);
    let before = txn.read_point();
    let mut previous = Previous::None;
    let (mut value, mut lease) = (put.value, put.lease);
    let row;
    if put.prev_kv || put.ignore_value || put.ignore_lease {
        let hit = Reader::find(&*txn, put.key)?;
        if put.ignore_value || put.ignore_lease {
            // Checked before the transaction ran; a removal inside it may have taken
            // the key since, which etcd answers with a crash. Refusing is what a
            // client can live with.
            let hit = hit.ok_or(EtcdError::KeyNotFound)?;
            row = Reader::ready_value(&*txn, hit.modified, context.pages)?.to_vec();
            let kept = KvRef::parse(&row).map_err(|_| EtcdError::Corrupt)?;
            if put.ignore_value {
                value = kept.value;
            }
            if put.ignore_lease {
                lease = kept.lease.0;
            }
        }
        if let Some(hit) = hit.filter(|_| put.prev_kv) {
            previous = Previous::of(&*txn, hit.modified, hit.len_bytes);
        }
    }
    txn.put(put.key, value, LeaseId(lease));
    begin(draft, nested, RESPONSE_PUT);
    if nested {
        inner_header(Txn::revision(txn)).write(draft.bytes());
    }
    match previous {
        Previous::None => {}
        Previous::Here(row) => write_field(draft, PUT_PREVIOUS, &row),
        Previous::Later => draft.keys(Keys::previous_values(
            request.key.clone(),
            bytes::Bytes::new(),
            before,
            PUT_PREVIOUS,
        )),
    }
    end(draft, nested);
    Ok(())
}

/// Removes about `rows` keys of a range. `None` if there are more; else the previous values as
/// elements, if they are few and in memory and `here` asks for them.
fn delete_slice(
    txn: &mut Txn<'_>,
    request: &pb::DeleteRangeRequest,
    delete: &mut Delete,
    context: &mut Context<'_>,
    rows: &mut usize,
    here: bool,
) -> Option<Option<Vec<u8>>> {
    let hits = context.scratch.hits_mut();
    let mut previous = None;
    loop {
        let key = delete.next.as_deref().unwrap_or(&request.key);
        let range = KeyRange { key, end: &request.range_end };
        let keys = (*rows).clamp(1, limits::APPLY_SLICE_ROWS);
        txn.slice(range, SliceBounds { keys, leaves: limits::RANGE_CHUNK_LEAVES }, hits);
        let whole = delete.next.is_none() && hits.next().is_none();
        if here && whole && hits.len_bytes() <= limits::APPLY_ANSWER_BYTES {
            previous = rows_in_memory(txn, hits);
        }
        for hit in hits.hits() {
            txn.delete(hits.key(hit));
        }
        delete.count += hits.hits().len() as u64;
        *rows = rows.saturating_sub(hits.hits().len().max(1));
        let Some(next) = hits.next() else { return Some(previous) };
        delete.next = Some(next.to_vec());
        if *rows == 0 {
            return None;
        }
    }
}

/// The values of all hits, as elements of a DeleteRangeResponse, if all are in memory.
fn rows_in_memory(txn: &Txn<'_>, hits: &RangeHits) -> Option<Vec<u8>> {
    let (mut out, mut nothing) = (Vec::new(), MemoryOnly);
    for hit in hits.hits() {
        let row = Reader::ready_value(txn, hit.modified, &mut nothing).ok()?;
        write_len(&mut out, DELETE_PREVIOUS, row.len());
        out.extend_from_slice(row);
    }
    Some(out)
}

/// Puts together what a transaction that only reads answers, but for its header. Ranges that are
/// not short, or not in memory, are read when they are sent.
///
/// # Errors
/// See [`Stop`]; never for a page.
pub fn draft_reads(
    plan: &Plan,
    reader: &dyn Reader,
    point: ReadPoint,
    scratch: &mut Scratch,
) -> Result<Draft, Stop> {
    let mut draft = Draft::default();
    let mut depth = 0;
    for op in plan.ops() {
        match op {
            Op::Begin { succeeded } => {
                begin_txn(&mut draft, depth > 0, *succeeded);
                depth += 1;
            }
            Op::End => {
                depth -= 1;
                end(&mut draft, depth > 0);
            }
            Op::Range(request) => {
                begin(&mut draft, true, RESPONSE_RANGE);
                let point = match request.revision {
                    ..=0 => point,
                    revision => ReadPoint::at(Revision(revision)),
                };
                let left = range::SHORT.bytes.saturating_sub(draft.bytes().len() as u64);
                let short = ShortBounds { bytes: left, ..IN_APPLY };
                let context = (&mut MemoryOnly as &mut dyn PageSource, &mut *scratch);
                draft_range(&mut draft, reader, request, (short, point), context)?;
                end(&mut draft, true);
            }
            Op::Put(_) | Op::Delete(_) | Op::Remove(_) => {
                debug_assert!(false, "it only reads");
            }
        }
    }
    Ok(draft)
}

/// Adds a RangeResponse: at once if it is short, else to be read later.
fn draft_range(
    draft: &mut Draft,
    reader: &dyn Reader,
    request: &pb::RangeRequest,
    (short, point): (ShortBounds, ReadPoint),
    context: (&mut dyn PageSource, &mut Scratch),
) -> Result<(), Stop> {
    let out = draft.bytes();
    match range::respond_short(reader, request, short, context, inner_header, out) {
        Ok(true) => return Ok(()),
        Ok(false) | Err(Stop::NeedsPage(_)) => {}
        Err(stop) => return Err(stop),
    }
    inner_header(reader.revision()).write(draft.bytes());
    draft.keys(Keys::of_range(request, point));
    Ok(())
}

fn begin_txn(draft: &mut Draft, nested: bool, succeeded: bool) {
    begin(draft, nested, RESPONSE_TXN);
    if nested {
        // etcd leaves the header of a nested response empty, but present.
        write_len(draft.bytes(), 1, 0);
    }
    write_uint64(draft.bytes(), 2, u64::from(succeeded));
}

/// `responses: {field: ...`, inside a transaction.
fn begin(draft: &mut Draft, nested: bool, field: u32) {
    if nested {
        draft.open(RESPONSES);
        draft.open(field);
    }
}

fn end(draft: &mut Draft, nested: bool) {
    if nested {
        draft.close();
        draft.close();
    }
}

fn write_field(draft: &mut Draft, field: u32, bytes: &[u8]) {
    write_len(draft.bytes(), field, bytes.len());
    draft.bytes().extend_from_slice(bytes);
}
