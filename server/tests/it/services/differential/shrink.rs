//! Finds a short program that fails like a long one: delta debugging over operations, then inside
//! those that are left.
//!
//! Every attempt runs on fresh servers. It ends when nothing more can be left out or time is up.

use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use pb::request_op::Request;

use super::program::Op;
use super::run::Failure;

/// The shortest failing program found, with its failure.
pub(crate) fn shrink(
    ops: Vec<Op>,
    failure: Box<Failure>,
    limit: Duration,
    attempt: impl Fn(&[Op]) -> Option<Box<Failure>>,
) -> (Vec<Op>, Box<Failure>) {
    let mut search = Search { ops, failure, deadline: Instant::now() + limit, attempt: &attempt };
    let begun = search.failure.begun;
    search.ops.truncate(begun);
    search.drop_chunks();
    loop {
        let before = search.ops.len();
        search.simplify();
        search.drop_chunks();
        if search.ops.len() == before || search.is_over() {
            return (search.ops, search.failure);
        }
    }
}

struct Search<'a> {
    ops: Vec<Op>,
    failure: Box<Failure>,
    deadline: Instant,
    attempt: &'a dyn Fn(&[Op]) -> Option<Box<Failure>>,
}

impl Search<'_> {
    fn is_over(&self) -> bool {
        Instant::now() > self.deadline
    }

    /// Keeps a candidate that fails too.
    fn keep(&mut self, candidate: Vec<Op>) -> bool {
        if self.is_over() {
            return false;
        }
        let Some(failure) = (self.attempt)(&candidate) else { return false };
        self.ops = candidate;
        self.ops.truncate(failure.begun);
        self.failure = failure;
        true
    }

    fn drop_chunks(&mut self) {
        let mut chunk = self.ops.len().div_ceil(2);
        while chunk > 0 && !self.is_over() {
            let mut at = 0;
            while at < self.ops.len() {
                let mut candidate = self.ops.clone();
                candidate.drain(at..(at + chunk).min(candidate.len()));
                if !self.keep(candidate) {
                    at += chunk;
                }
                if self.is_over() {
                    return;
                }
            }
            chunk /= 2;
        }
    }

    fn simplify(&mut self) {
        let mut at = 0;
        while at < self.ops.len() && !self.is_over() {
            let kept = simpler(&self.ops[at]).into_iter().any(|op| {
                let mut candidate = self.ops.clone();
                candidate[at] = op;
                self.keep(candidate)
            });
            // What got simpler may get simpler still.
            if !kept {
                at += 1;
            }
        }
    }
}

/// Variants of an operation with one thing less.
fn simpler(op: &Op) -> Vec<Op> {
    match op {
        Op::Range(range) => simpler_ranges(range).into_iter().map(Op::Range).collect(),
        Op::RangeStream(range) => simpler_ranges(range).into_iter().map(Op::RangeStream).collect(),
        Op::Put(put) => simpler_puts(put).into_iter().map(Op::Put).collect(),
        Op::Delete(delete) if delete.prev_kv => {
            vec![Op::Delete(pb::DeleteRangeRequest { prev_kv: false, ..delete.clone() })]
        }
        Op::Txn(txn) => simpler_txns(txn).into_iter().map(Op::Txn).collect(),
        Op::NoSpace(ops) => without_each(ops).into_iter().map(Op::NoSpace).collect(),
        _ => Vec::new(),
    }
}

fn without_each<T: Clone>(list: &[T]) -> Vec<Vec<T>> {
    (0..list.len())
        .map(|left_out| {
            let mut shorter = list.to_vec();
            shorter.remove(left_out);
            shorter
        })
        .collect()
}

fn simpler_ranges(range: &pb::RangeRequest) -> Vec<pb::RangeRequest> {
    let clear: [fn(&mut pb::RangeRequest); 9] = [
        |range| range.limit = 0,
        |range| range.revision = 0,
        |range| (range.sort_order, range.sort_target) = (0, 0),
        |range| range.serializable = false,
        |range| range.keys_only = false,
        |range| range.count_only = false,
        |range| (range.min_mod_revision, range.max_mod_revision) = (0, 0),
        |range| (range.min_create_revision, range.max_create_revision) = (0, 0),
        |range| range.range_end = Default::default(),
    ];
    cleared(range, &clear)
}

fn simpler_puts(put: &pb::PutRequest) -> Vec<pb::PutRequest> {
    let clear: [fn(&mut pb::PutRequest); 5] = [
        |put| put.value = Default::default(),
        |put| put.lease = 0,
        |put| put.prev_kv = false,
        |put| put.ignore_value = false,
        |put| put.ignore_lease = false,
    ];
    cleared(put, &clear)
}

fn cleared<T: Clone + PartialEq>(request: &T, clear: &[fn(&mut T)]) -> Vec<T> {
    let each = clear.iter().map(|clear| {
        let mut changed = request.clone();
        clear(&mut changed);
        changed
    });
    each.filter(|changed| changed != request).collect()
}

fn simpler_txns(txn: &pb::TxnRequest) -> Vec<pb::TxnRequest> {
    let mut simpler = Vec::new();
    let lists = without_each(&txn.compare);
    simpler.extend(lists.into_iter().map(|compare| pb::TxnRequest { compare, ..txn.clone() }));
    for ops in simpler_ops(&txn.success) {
        simpler.push(pb::TxnRequest { success: ops, ..txn.clone() });
    }
    for ops in simpler_ops(&txn.failure) {
        simpler.push(pb::TxnRequest { failure: ops, ..txn.clone() });
    }
    simpler
}

fn simpler_ops(ops: &[pb::RequestOp]) -> Vec<Vec<pb::RequestOp>> {
    let mut simpler = without_each(ops);
    for (at, op) in ops.iter().enumerate() {
        let inner: Vec<Request> = match &op.request {
            Some(Request::RequestRange(range)) => {
                simpler_ranges(range).into_iter().map(Request::RequestRange).collect()
            }
            Some(Request::RequestPut(put)) => {
                simpler_puts(put).into_iter().map(Request::RequestPut).collect()
            }
            Some(Request::RequestTxn(txn)) => simpler_txns(txn)
                .into_iter()
                .map(|txn| Request::RequestTxn(Box::new(txn)))
                .collect(),
            Some(Request::RequestDeleteRange(_)) | None => Vec::new(),
        };
        for request in inner {
            let mut changed = ops.to_vec();
            changed[at] = pb::RequestOp { request: Some(request) };
            simpler.push(changed);
        }
    }
    simpler
}
