//! Answers of any size against a plain model of etcd's key space: whatever slices they are
//! evaluated in and pieces they are sent in, they say the same.

use std::collections::BTreeMap;

use etcore_engine::page::{Fetch, NoPages, PagePtr, PageSource, Ticket};
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::{LeaseId, LogIndex, Revision, Term};
use etcore_engine::view::{RangeHits, ReadPoint};
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::pb::mvccpb;
use pb::request_op::Request;
use prost::Message;

use super::answer::{Answer, Draft};
use super::execute::{Context, Execution, draft_reads};
use super::keys::Keys;
use super::plan::{Leases, Op, Plan};
use super::range::Scratch;
use super::reader::Stop;
use crate::wire::Header;

/// The key space at each revision.
struct Model {
    states: Vec<BTreeMap<Vec<u8>, mvccpb::KeyValue>>,
}

struct AnyLease;

impl Leases for AnyLease {
    fn exists(&self, _: LeaseId) -> bool {
        true
    }
}

fn header(revision: i64) -> pb::ResponseHeader {
    pb::ResponseHeader { revision, ..Default::default() }
}

fn in_range(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        _ => key >= start && key < end,
    }
}

impl Model {
    fn new() -> Self {
        Self { states: vec![BTreeMap::new(), BTreeMap::new()] }
    }

    fn revision(&self) -> i64 {
        self.states.len() as i64 - 1
    }

    /// etcd's Range on a state (`server/etcdserver/txn/range.go`).
    fn range(
        state: &BTreeMap<Vec<u8>, mvccpb::KeyValue>,
        request: &pb::RangeRequest,
    ) -> pb::RangeResponse {
        use pb::range_request::{SortOrder, SortTarget};
        let all: Vec<&mvccpb::KeyValue> = state
            .values()
            .filter(|kv| in_range(&kv.key, &request.key, &request.range_end))
            .collect();
        let mut response = pb::RangeResponse { count: all.len() as i64, ..Default::default() };
        if request.count_only {
            return response;
        }
        let limit = usize::try_from(request.limit.max(0)).unwrap();
        let mut kvs = all;
        let custom = request.sort_order != SortOrder::None as i32
            || super::check::has_revision_filters(request);
        if !custom && limit > 0 {
            kvs.truncate(limit + 1);
        }
        let within = |value: i64, min: i64, max: i64| {
            (min == 0 || value >= min) && (max == 0 || value <= max)
        };
        kvs.retain(|kv| {
            within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
                && within(
                    kv.create_revision,
                    request.min_create_revision,
                    request.max_create_revision,
                )
        });
        let descending = request.sort_order == SortOrder::Descend as i32;
        let order = |a: &&mvccpb::KeyValue, b: &&mvccpb::KeyValue| {
            let order = match SortTarget::try_from(request.sort_target).unwrap() {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
                SortTarget::Value => a.value.cmp(&b.value),
            };
            if descending { order.reverse() } else { order }
        };
        kvs.sort_by(order);
        if limit > 0 && kvs.len() > limit {
            kvs.truncate(limit);
            response.more = true;
        }
        response.kvs = kvs.into_iter().cloned().collect();
        if request.keys_only {
            let by_value = request.sort_target == SortTarget::Value as i32;
            for kv in &mut response.kvs {
                kv.value.clear();
                if !by_value {
                    kv.lease = 0;
                }
            }
        }
        response
    }

    fn holds(state: &BTreeMap<Vec<u8>, mvccpb::KeyValue>, compare: &pb::Compare) -> bool {
        use pb::compare::{CompareResult, CompareTarget, TargetUnion};
        let one = |kv: &mvccpb::KeyValue| {
            let order = match &compare.target_union {
                Some(TargetUnion::Version(wanted)) => kv.version.cmp(wanted),
                Some(TargetUnion::ModRevision(wanted)) => kv.mod_revision.cmp(wanted),
                Some(TargetUnion::Value(wanted)) => kv.value.cmp(wanted),
                other => panic!("the test makes none of {other:?}"),
            };
            match CompareResult::try_from(compare.result).unwrap() {
                CompareResult::Equal => order.is_eq(),
                CompareResult::Greater => order.is_gt(),
                CompareResult::Less => order.is_lt(),
                CompareResult::NotEqual => order.is_ne(),
            }
        };
        let mut kvs = state
            .values()
            .filter(|kv| in_range(&kv.key, &compare.key, &compare.range_end))
            .peekable();
        if kvs.peek().is_none() {
            let by_value = compare.target == CompareTarget::Value as i32;
            return !by_value && one(&mvccpb::KeyValue::default());
        }
        kvs.all(one)
    }

    fn txn(&mut self, request: &pb::TxnRequest) -> pb::TxnResponse {
        let before = self.states.last().unwrap().clone();
        let mut state = before.clone();
        let mut changed = false;
        let mut response = self.run(&before, &mut state, &mut changed, request, true);
        if changed {
            self.states.push(state);
        }
        response.header = Some(header(self.revision()));
        response
    }

    fn run(
        &self,
        before: &BTreeMap<Vec<u8>, mvccpb::KeyValue>,
        state: &mut BTreeMap<Vec<u8>, mvccpb::KeyValue>,
        changed: &mut bool,
        request: &pb::TxnRequest,
        outer: bool,
    ) -> pb::TxnResponse {
        use pb::response_op::Response;
        let succeeded = request.compare.iter().all(|compare| Self::holds(before, compare));
        let ops = if succeeded { &request.success } else { &request.failure };
        let main = self.revision() + 1;
        let mut responses = Vec::new();
        for op in ops {
            let now = |changed: bool| Some(header(main - i64::from(!changed)));
            let response = match op.request.as_ref().unwrap() {
                Request::RequestRange(request) => {
                    let at = match request.revision {
                        0 => &*state,
                        revision => &self.states[revision as usize],
                    };
                    let header = now(*changed);
                    Response::ResponseRange(pb::RangeResponse {
                        header,
                        ..Self::range(at, request)
                    })
                }
                Request::RequestPut(put) => {
                    let old = state.get(put.key.as_ref()).cloned();
                    let kv = mvccpb::KeyValue {
                        key: put.key.clone(),
                        value: put.value.clone(),
                        create_revision: old.as_ref().map_or(main, |old| old.create_revision),
                        mod_revision: main,
                        version: old.as_ref().map_or(1, |old| old.version + 1),
                        lease: put.lease,
                    };
                    state.insert(put.key.to_vec(), kv);
                    *changed = true;
                    let prev_kv = old.filter(|_| put.prev_kv);
                    Response::ResponsePut(pb::PutResponse { header: now(true), prev_kv })
                }
                Request::RequestDeleteRange(delete) => {
                    let gone: Vec<mvccpb::KeyValue> = state
                        .values()
                        .filter(|kv| in_range(&kv.key, &delete.key, &delete.range_end))
                        .cloned()
                        .collect();
                    for kv in &gone {
                        state.remove(kv.key.as_ref());
                    }
                    *changed |= !gone.is_empty();
                    Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                        header: now(*changed),
                        deleted: gone.len() as i64,
                        prev_kvs: if delete.prev_kv { gone } else { Vec::new() },
                    })
                }
                Request::RequestTxn(nested) => {
                    Response::ResponseTxn(self.run(before, state, changed, nested, false))
                }
            };
            responses.push(pb::ResponseOp { response: Some(response) });
        }
        let header = (!outer).then(pb::ResponseHeader::default);
        pb::TxnResponse { header, succeeded, responses }
    }
}

/// Pages that are never there at the first call, nor at the second.
struct Late {
    calls: u64,
}

impl PageSource for Late {
    fn get(&mut self, _: PagePtr) -> Result<Fetch<&[u8]>, etcore_engine::error::EngineError> {
        self.calls += 1;
        Ok(Fetch::Pending(Ticket(self.calls)))
    }
}

struct Rig {
    prng: Prng,
    store: Store,
    model: Model,
    index: u64,
    value_bytes: u64,
    keys: u64,
}

impl Rig {
    fn new(seed: u64, keys: u64, value_bytes: u64) -> Self {
        let mut rig = Self {
            prng: Prng::new(seed),
            store: Store::in_memory(EngineConfig::default()),
            model: Model::new(),
            index: 0,
            value_bytes,
            keys,
        };
        for _ in 0..4 {
            let ops = (0..keys).map(|_| rig.put()).collect();
            rig.apply(pb::TxnRequest { success: ops, ..Default::default() });
        }
        rig
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.prng.below(bound)
    }

    fn key(&mut self) -> Vec<u8> {
        let number = self.prng.below(self.keys);
        format!("k{number:05}").into_bytes()
    }

    fn ends(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (a, b) = (self.key(), self.key());
        match self.below(6) {
            0 => (a, Vec::new()),
            1 => (b"k".to_vec(), b"l".to_vec()),
            2 => (a, vec![0]),
            3 => (b, a),
            _ => (a.clone().min(b.clone()), a.max(b)),
        }
    }

    fn put(&mut self) -> pb::RequestOp {
        let length = self.below(self.value_bytes + 1) as usize;
        let first = self.below(4) as u8;
        let mut value = vec![7; length];
        if let Some(byte) = value.last_mut() {
            *byte = first;
        }
        let put = pb::PutRequest {
            key: self.key().into(),
            value: value.into(),
            lease: self.below(3) as i64,
            prev_kv: self.below(2) == 0,
            ..Default::default()
        };
        pb::RequestOp { request: Some(Request::RequestPut(put)) }
    }

    fn range(&mut self) -> pb::RangeRequest {
        let (key, range_end) = self.ends();
        let revision = self.model.revision();
        let mut request = pb::RangeRequest {
            key: key.into(),
            range_end: range_end.into(),
            keys_only: self.below(3) == 0,
            count_only: self.below(8) == 0,
            ..Default::default()
        };
        if self.below(2) == 0 {
            request.limit = self.below(self.keys * 2) as i64 - 2;
        }
        if self.below(3) == 0 {
            request.revision = 1 + self.below(revision as u64) as i64;
        }
        if self.below(2) == 0 {
            request.sort_order = self.below(3) as i32;
            request.sort_target = self.below(5) as i32;
        }
        if self.below(5) == 0 {
            request.min_mod_revision = self.below(revision as u64 + 2) as i64;
            request.max_create_revision = self.below(revision as u64 + 2) as i64;
        }
        request
    }

    fn op(&mut self, depth: u64) -> pb::RequestOp {
        let request = match self.below(5 + depth) {
            0 | 1 => Request::RequestRange(self.range()),
            2 | 3 => return self.put(),
            4 => {
                let (key, range_end) = self.ends();
                Request::RequestDeleteRange(pb::DeleteRangeRequest {
                    key: key.into(),
                    range_end: range_end.into(),
                    prev_kv: self.below(3) > 0,
                })
            }
            _ => Request::RequestTxn(Box::new(self.txn(depth - 1))),
        };
        pb::RequestOp { request: Some(request) }
    }

    fn txn(&mut self, depth: u64) -> pb::TxnRequest {
        use pb::compare::{CompareTarget, TargetUnion};
        let compares = self.below(3);
        let compare = (0..compares)
            .map(|_| {
                let (key, range_end) = self.ends();
                let (target, union) = match self.below(3) {
                    0 => (CompareTarget::Version, TargetUnion::Version(self.below(3) as i64)),
                    1 => (CompareTarget::Mod, TargetUnion::ModRevision(self.below(9) as i64)),
                    _ => (CompareTarget::Value, TargetUnion::Value(vec![7; 3].into())),
                };
                pb::Compare {
                    result: self.below(4) as i32,
                    target: target as i32,
                    key: key.into(),
                    range_end: range_end.into(),
                    target_union: Some(union),
                }
            })
            .collect();
        let mut ops = || {
            let count = self.below(4);
            (0..count).map(|_| self.op(depth)).collect::<Vec<_>>()
        };
        let (success, failure) = (ops(), ops());
        pb::TxnRequest { compare, success, failure }
    }

    /// Reads an answer to its end in pieces of any size.
    fn read(&mut self, mut answer: Answer) -> Vec<u8> {
        let view = self.store.publish();
        let mut hits = RangeHits::default();
        let total = loop {
            if let Some(total) = answer.measure(&view, &mut NoPages, &mut hits).unwrap() {
                break total;
            }
        };
        let mut out = Vec::new();
        let most = if self.below(2) == 0 { 50 } else { 50_000 };
        loop {
            let room = 1 + self.below(most) as usize;
            let before = out.len();
            let over = answer.write(&view, &mut NoPages, &mut hits, room, &mut out).unwrap();
            assert!(out.len() <= before + room, "no more than there is room for");
            if over {
                break;
            }
        }
        assert_eq!(out.len() as u64, total, "as long as it was measured");
        out
    }

    /// Applies a transaction in slices of any size, on the store and on the model.
    fn apply(&mut self, request: pb::TxnRequest) {
        let expected = self.model.txn(&request);
        let mut execution = Execution::txn(request);
        self.index += 1;
        let mut scratch = Scratch::default();
        let mut txn = self.store.begin(LogIndex(self.index), Term(1));
        let slices = [3, 100, 100_000][self.prng.below(3) as usize];
        loop {
            let mut rows = 1 + self.prng.below(slices) as usize;
            let mut context =
                Context { pages: &mut NoPages, leases: &AnyLease, scratch: &mut scratch };
            if execution.step(&mut txn, &mut context, &mut rows).unwrap() {
                break;
            }
            let suspended = txn.suspend();
            // What is published meanwhile shows nothing of it.
            let view = self.store.publish();
            assert_eq!(view.key_count(), self.model_before(&expected));
            txn = self.store.resume(suspended);
        }
        let mut attached = Vec::new();
        while !execution.attach(&txn, &mut 10, |key, lease| attached.push((key.to_vec(), lease))) {}
        assert_eq!(attached.len(), txn.changes());
        let pins = txn.revision_pins().clone();
        let revision = txn.commit();
        let mut head = Vec::new();
        let plain = Header { cluster_id: 0, member_id: 0, revision: revision.0, raft_term: 0 };
        plain.write(&mut head);
        let draft = execution.into_draft();
        let bytes = if draft.is_short() {
            let mut out = Vec::new();
            draft.write_short(&head, &mut out);
            out
        } else {
            let answer = draft.into_answer(&head, &pins).unwrap();
            // Others write and compact before it is read.
            self.disturb();
            self.read(answer)
        };
        let decoded = pb::TxnResponse::decode(bytes.as_slice()).unwrap();
        assert!(decoded == expected, "{decoded:?}\n{expected:?}");
    }

    /// Keys before the transaction whose response this is.
    fn model_before(&self, response: &pb::TxnResponse) -> u64 {
        let states = &self.model.states;
        let told = response.header.as_ref().unwrap().revision;
        let wrote = told > self.store.revision().0;
        states[states.len() - 1 - usize::from(wrote)].len() as u64
    }

    fn disturb(&mut self) {
        if self.below(2) == 0 {
            return;
        }
        let request = pb::TxnRequest { success: vec![self.put()], ..Default::default() };
        let (mut execution, mut scratch) = (Execution::txn(request.clone()), Scratch::default());
        self.model.txn(&request);
        self.index += 1;
        let mut txn = self.store.begin(LogIndex(self.index), Term(1));
        let mut context = Context { pages: &mut NoPages, leases: &AnyLease, scratch: &mut scratch };
        assert!(execution.step(&mut txn, &mut context, &mut 1000).unwrap());
        txn.commit();
    }
}

#[test]
fn long_ranges_say_what_etcd_says_whatever_pieces_they_are_read_in() {
    for (seed, keys, value_bytes) in [(1, 40, 10), (2, 3000, 40), (3, 700, 2000)] {
        let mut rig = Rig::new(seed, keys, value_bytes);
        for round in 0..120 {
            let request = rig.range();
            let state = match request.revision {
                0 => rig.model.states.last().unwrap(),
                revision => &rig.model.states[revision as usize],
            };
            let expected = Model::range(state, &request);
            let point = ReadPoint::at(match request.revision {
                0 => rig.store.revision(),
                revision => Revision(revision),
            });
            let mut draft = Draft::default();
            draft.keys(Keys::of_range(&request, point));
            let answer = draft.into_answer(&[], rig.store.revision_pins()).unwrap();
            let bytes = rig.read(answer);
            let decoded = pb::RangeResponse::decode(bytes.as_slice()).unwrap();
            assert!(decoded == expected, "seed {seed} round {round}: {request:?}");
        }
    }
}

#[test]
fn transactions_do_the_same_in_slices_as_at_once_and_their_answers_are_of_their_moment() {
    for (seed, keys, value_bytes) in [(11, 8, 30), (12, 300, 600), (13, 40, 20_000)] {
        let mut rig = Rig::new(seed, keys, value_bytes);
        for _ in 0..150 {
            let request = rig.txn(2);
            rig.apply(request);
        }
    }
}

#[test]
fn transactions_that_read_say_what_etcd_says() {
    let mut rig = Rig::new(21, 500, 300);
    for _ in 0..100 {
        let ranges: Vec<pb::RequestOp> = (0..3)
            .map(|_| pb::RequestOp { request: Some(Request::RequestRange(rig.range())) })
            .collect();
        let request = pb::TxnRequest { success: ranges, ..rig.txn(0) };
        let request = pb::TxnRequest { failure: Vec::new(), ..request };
        let mut plan = Plan::new(request.clone());
        let view = rig.store.publish();
        let mut scratch = Scratch::default();
        loop {
            let mut rows = 1 + rig.below(40) as usize;
            let hits = scratch.hits_mut();
            if plan.step(&*view, &mut NoPages, hits, &mut rows).unwrap() {
                break;
            }
        }
        plan.check(&*view, &AnyLease).unwrap();
        let point = ReadPoint::at(view.revision);
        let draft = draft_reads(&plan, &*view, point, &mut scratch).unwrap();
        let plain = Header { cluster_id: 0, member_id: 0, revision: view.revision.0, raft_term: 0 };
        let mut head = Vec::new();
        plain.write(&mut head);
        let bytes = if draft.is_short() {
            let mut out = Vec::new();
            draft.write_short(&head, &mut out);
            out
        } else {
            let pins = rig.store.revision_pins().clone();
            rig.read(draft.into_answer(&head, &pins).unwrap())
        };
        let decoded = pb::TxnResponse::decode(bytes.as_slice()).unwrap();
        assert!(decoded == rig.model.txn(&request), "{request:?}");
    }
}

#[test]
fn an_answer_whose_revision_was_kept_for_too_long_is_compacted() {
    let mut rig = Rig::new(31, 100, 10);
    let request = pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let mut draft = Draft::default();
    draft.keys(Keys::of_range(&request, ReadPoint::at(rig.store.revision())));
    let mut answer = draft.into_answer(&[], rig.store.revision_pins()).unwrap();
    rig.disturb();
    rig.disturb();
    rig.disturb();
    rig.store.revision_pins().expire_below(Revision(rig.store.revision().0 + 1));
    let (view, mut hits) = (rig.store.publish(), RangeHits::default());
    let stopped = answer.measure(&view, &mut NoPages, &mut hits);
    let compacted = Stop::from(etcore_proto::error::EtcdError::Compacted);
    assert_eq!(stopped, Err(compacted));
}

#[test]
fn a_compare_that_waits_for_a_page_goes_on_where_it_was() {
    let mut rig = Rig::new(41, 50, 10);
    let view = rig.store.publish();
    let compare = pb::Compare {
        target: pb::compare::CompareTarget::Version as i32,
        result: pb::compare::CompareResult::Greater as i32,
        key: "k".into(),
        range_end: "l".into(),
        target_union: Some(pb::compare::TargetUnion::Version(0)),
    };
    let request = pb::TxnRequest { compare: vec![compare], ..Default::default() };
    let mut plan = Plan::new(request);
    let (mut steps, mut hits) = (0, RangeHits::default());
    // It needs no value, so no page is asked for, however late they are.
    while !plan.step(&*view, &mut Late { calls: 0 }, &mut hits, &mut 7).unwrap() {
        steps += 1;
    }
    assert!(steps > 3, "{steps} slices of some 45 keys");
    assert!(matches!(plan.ops()[0], Op::Begin { succeeded: true }));
}
