//! Where an older etcd answers differently from 3.7.1 and is not to be followed, and what even two
//! members of one release do not agree on.
//!
//! Each difference was seen; what is not listed here is a disagreement.

use std::collections::BTreeMap;

use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::pb::mvccpb::{Event, KeyValue};
use pb::request_op::Request;
use pb::response_op::Response;
use prost::Message as _;

use super::answer::{Answer, COMPACT, Message};
use super::generate::REQUEST_BYTES_MAX;
use super::program::Op;

/// What a young etcd says until its monitor has looked, some seconds after the start.
const UNDECIDED_STORAGE_VERSION: &str = "3.5.0";

/// The differences that apply to the oracle at hand.
pub(crate) struct Differences {
    /// The oracle is older than 3.7.
    is_old: bool,
}

impl Differences {
    pub(crate) fn between(oracle_version: &str) -> Self {
        let is_old = ["3.4.", "3.5.", "3.6."].iter().any(|old| oracle_version.starts_with(old));
        Self { is_old }
    }

    /// True for what the oracle cannot do at all, and for requests at the very limit of size: the
    /// log entry's id is a byte or two longer on some members than on others, and so are the ids of
    /// leases that the server chose.
    pub(crate) fn skips(&self, op: &Op) -> bool {
        let request_bytes = match op {
            Op::Put(request) => request.encoded_len(),
            Op::Txn(request) => request.encoded_len(),
            _ => 0,
        };
        // A field's tag and length around the request, and a header with an id.
        let entry_bytes = request_bytes + 4 + 13;
        (REQUEST_BYTES_MAX - 32..REQUEST_BYTES_MAX + 8).contains(&entry_bytes)
            || (self.is_old && is_new(op))
    }

    /// Progress is told only when all watches of the stream have caught up (3.5.8 and later).
    pub(crate) fn progress_means_synced(&self) -> bool {
        !self.is_old
    }

    /// Changes both answers where they may differ.
    pub(crate) fn forgive(&self, op: &Op, first: &mut Answer, second: &mut Answer) {
        if self.is_old {
            if matches!(op, Op::Txn(_)) && first.code > 0 && second.code > 0 {
                // Of several faults another one is told: all puts were checked before all ranges.
                second.clone_from(first);
            }
            forget_what_is_new(op, first);
            forget_what_is_new(op, second);
        }
        if let Op::Raw(..) = op {
            // Go chooses between two kinds of spaces when it is built.
            first.text = first.text.replace('\u{a0}', " ");
            second.text = second.text.replace('\u{a0}', " ");
        }
        if let Op::RangeStream(request) = op {
            let is_lost = is_lost(request, first);
            merge_chunks(first, is_lost);
            merge_chunks(second, is_lost);
        }
        // The request named leases whose ids are as long as each server chose.
        let too_large = "grpc: received message larger than max (";
        if matches!(op, Op::Txn(_))
            && first.code == second.code
            && first.text.starts_with(too_large)
            && second.text.starts_with(too_large)
        {
            second.text.clone_from(&first.text);
        }
        // Go 1.18 and older keep the order of equal elements of no list at all.
        let stable_max = if self.is_old { 1 } else { STABLE_MAX };
        for answer in [&mut *first, &mut *second] {
            match (op, answer.messages.first_mut()) {
                (Op::Range(request), Some(Message::Range(response))) => {
                    settle_ties(request, response, stable_max);
                }
                (Op::Txn(request), Some(Message::Txn(response))) => {
                    settle_ties_in(request, response, stable_max);
                }
                _ => {}
            }
        }
        if let (Some(Message::Status(oracle)), Some(Message::Status(status))) =
            (first.messages.first_mut(), second.messages.first_mut())
            && oracle.storage_version == UNDECIDED_STORAGE_VERSION
        {
            oracle.storage_version.clone_from(&status.storage_version);
        }
        if let Op::TimeToLive(_) = op {
            for answer in [first, second] {
                if let Some(Message::TimeToLive(response)) = answer.messages.first_mut() {
                    response.keys.sort();
                }
            }
        }
    }

    /// The same for what watches brought, by watch id.
    pub(crate) fn forgive_watches(&self, log: &mut BTreeMap<i64, Vec<Message>>) {
        for messages in log.values_mut() {
            join_batches(messages);
        }
    }
}

/// Joins answers to a watch that catches up: how many events go into one is the server's affair
/// (etcd counts a thousand revisions, etcore bytes), as long as no revision is cut.
fn join_batches(messages: &mut Vec<Message>) {
    let mut joined: Vec<Message> = Vec::new();
    for message in messages.drain(..) {
        if let (Some(Message::Watch(last)), Message::Watch(next)) = (joined.last_mut(), &message)
            && last.header == next.header
            && !last.fragment
            && !(next.created || next.canceled)
            && let (Some(before), Some(after)) = (last.events.last(), next.events.first())
            && modified(before) < modified(after)
        {
            last.events.extend(next.events.iter().cloned());
            last.fragment = next.fragment;
            continue;
        }
        joined.push(message);
    }
    *messages = joined;
}

fn modified(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// True if the oracle lost its way: it is to sort by something else than the key, without an order,
/// sorts each chunk by itself, and goes on behind the last key sent instead of the largest one, or
/// counts on from there.
fn is_lost(request: &pb::RangeRequest, oracle: &Answer) -> bool {
    let is_cut = |message: &Message| match message {
        Message::Chunk(chunk) => chunk.range_response.as_ref().is_some_and(|chunk| chunk.more),
        _ => false,
    };
    request.sort_target != 0 && (oracle.messages.len() > 1 || oracle.messages.iter().any(is_cut))
}

/// All chunks as one. Where one ends is the server's affair: etcd counts keys, and corrects the
/// number when the chunk was too large or small; etcore ends a chunk that gets too large, and
/// before a page that it has to wait for.
fn merge_chunks(answer: &mut Answer, is_lost: bool) {
    let mut whole = pb::RangeResponse::default();
    for message in answer.messages.drain(..) {
        let Message::Chunk(pb::RangeStreamResponse { range_response: Some(chunk) }) = message
        else {
            continue;
        };
        whole.header = chunk.header.or(whole.header);
        whole.more |= chunk.more;
        whole.kvs.extend(chunk.kvs);
        whole.count = chunk.count;
    }
    if is_lost {
        whole = pb::RangeResponse { header: whole.header, more: whole.more, ..Default::default() };
    }
    answer.messages = vec![Message::Range(whole)];
}

/// Up to so many elements Go's sort keeps the order of equal ones; above, the order is nobody's
/// intention. etcore always keeps it.
const STABLE_MAX: i64 = 12;

/// Puts keys that are equal by what they are sorted by into key order. Those of a last such run
/// that the limit has cut may be different ones, so they lose all but what they are sorted by.
fn settle_ties(request: &pb::RangeRequest, response: &mut pb::RangeResponse, stable_max: i64) {
    // Without an order and filters the limit comes first, and only what is left is sorted.
    let is_filtered = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ] != [0; 4];
    let is_cut_first = request.sort_order == 0 && !is_filtered;
    let few = is_cut_first && (1..stable_max).contains(&request.limit);
    if response.count <= stable_max || request.sort_target == 0 || few {
        return;
    }
    let target = request.sort_target;
    let sorted_by = |kv: &KeyValue| match target {
        1 => (kv.version, Vec::new()),
        2 => (kv.create_revision, Vec::new()),
        3 => (kv.mod_revision, Vec::new()),
        _ => (0, kv.value.to_vec()),
    };
    if target == 4 && request.keys_only {
        // Sorted by what is not shown: only which keys they are can be compared, if all are there.
        if response.more {
            response.kvs.iter_mut().for_each(|kv| *kv = KeyValue::default());
        }
        return response.kvs.sort_by(|a, b| a.key.cmp(&b.key));
    }
    let last = response.kvs.last().map(sorted_by);
    let mut runs: Vec<&mut [KeyValue]> =
        response.kvs.chunk_by_mut(|a, b| sorted_by(a) == sorted_by(b)).collect();
    for run in &mut runs {
        run.sort_by(|a, b| a.key.cmp(&b.key));
    }
    if response.more {
        let cut = response.kvs.iter_mut().filter(|kv| Some(sorted_by(kv)) == last);
        for kv in cut {
            let (number, value) = sorted_by(kv);
            *kv = KeyValue { version: number, value: value.into(), ..KeyValue::default() };
        }
    }
}

fn settle_ties_in(request: &pb::TxnRequest, response: &mut pb::TxnResponse, stable_max: i64) {
    let ops = if response.succeeded { &request.success } else { &request.failure };
    for (op, answer) in ops.iter().zip(&mut response.responses) {
        match (&op.request, &mut answer.response) {
            (Some(Request::RequestRange(request)), Some(Response::ResponseRange(response))) => {
                settle_ties(request, response, stable_max);
            }
            (Some(Request::RequestTxn(request)), Some(Response::ResponseTxn(response))) => {
                settle_ties_in(request, response, stable_max);
            }
            _ => {}
        }
    }
}

/// What etcd before 3.7 cannot do, or does otherwise with lasting effect.
fn is_new(op: &Op) -> bool {
    match op {
        Op::RangeStream(_) => true,
        // A sort option that does not exist panics or means another.
        Op::Range(request) => is_odd(request),
        Op::Txn(request) => has_odd_range(request),
        Op::NoSpace(ops) => ops.iter().any(is_new),
        // Progress did not mean that every watch had caught up.
        Op::Progress(_) => true,
        // A compaction at no revision was one, and changed hashes.
        Op::Compact(request) => request.revision <= 0,
        // Another code for a path that is none; a known field of another wire type was an error.
        Op::Raw(path, message) => {
            let is_odd = message.starts_with(b"\x0a\x01a") && message.get(3) != Some(&0xf8);
            *path == COMPACT || *path == "/nothing" || is_odd
        }
        // The compacted revision itself could not be hashed.
        Op::HashKv(revision) => *revision != 0,
        // Watches from a negative revision were not refused.
        Op::Watch(_, request) => request.start_revision < 0,
        _ => false,
    }
}

fn is_odd(request: &pb::RangeRequest) -> bool {
    !(0..3).contains(&request.sort_order) || !(0..5).contains(&request.sort_target)
}

fn has_odd_range(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match &op.request {
        Some(Request::RequestRange(request)) => is_odd(request),
        Some(Request::RequestTxn(request)) => has_odd_range(request),
        _ => false,
    })
}

/// Fields that etcd before 3.7 does not fill, or fills where 3.7 does not.
fn forget_what_is_new(op: &Op, answer: &mut Answer) {
    for message in &mut answer.messages {
        match (op, message) {
            (_, Message::HashKv(response)) => {
                response.hash_revision = 0;
            }
            (_, Message::Status(response)) => {
                response.version.clear();
                response.storage_version.clear();
                response.db_size_quota = 0;
                response.downgrade_info = None;
            }
            (Op::Range(request), Message::Range(response)) => {
                forget_leases_of_keys(request, response);
            }
            (Op::Txn(request), Message::Txn(response)) => {
                forget_leases_of_keys_in(request, response);
            }
            _ => {}
        }
    }
}

/// A range of keys without values tells their leases up to 3.6.
fn forget_leases_of_keys(request: &pb::RangeRequest, response: &mut pb::RangeResponse) {
    if request.keys_only {
        response.kvs.iter_mut().for_each(|kv| kv.lease = 0);
    }
}

fn forget_leases_of_keys_in(request: &pb::TxnRequest, response: &mut pb::TxnResponse) {
    let ops = if response.succeeded { &request.success } else { &request.failure };
    for (op, answer) in ops.iter().zip(&mut response.responses) {
        match (&op.request, &mut answer.response) {
            (Some(Request::RequestRange(request)), Some(Response::ResponseRange(response))) => {
                forget_leases_of_keys(request, response);
            }
            (Some(Request::RequestTxn(request)), Some(Response::ResponseTxn(response))) => {
                forget_leases_of_keys_in(request, response);
            }
            _ => {}
        }
    }
}
