//! Where an older etcd answers differently from 3.7.1 and is not to be followed, and what even two
//! members of one release do not agree on.
//!
//! Each difference was seen; what is not listed here is a disagreement.

use std::collections::BTreeMap;

use etcore_proto::pb::etcdserverpb as pb;

use super::answer::{Answer, Message};
use super::program::Op;

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

    /// True for what the oracle cannot do at all.
    pub(crate) fn skips(&self, op: &Op) -> bool {
        self.is_old && matches!(op, Op::RangeStream(_))
    }

    /// Changes both answers where they may differ.
    pub(crate) fn forgive(&self, op: &Op, first: &mut Answer, second: &mut Answer) {
        if let Op::Raw(..) = op
            && first.code == 13
            && second.code == 13
        {
            // How a protobuf library describes a malformed message is its own affair.
            second.text.clone_from(&first.text);
        }
        if let Op::RangeStream(request) = op {
            let is_lost = is_lost(request, first);
            merge_chunks(first, is_lost);
            merge_chunks(second, is_lost);
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
    pub(crate) fn forgive_watches(
        &self,
        _first: &mut BTreeMap<i64, Vec<Message>>,
        _second: &mut BTreeMap<i64, Vec<Message>>,
    ) {
    }
}

/// True if the oracle lost its way: it is to sort by something else than the key, without an order,
/// sorts each chunk by itself, and goes on behind the last key sent instead of the largest one.
fn is_lost(request: &pb::RangeRequest, oracle: &Answer) -> bool {
    request.sort_target != 0 && oracle.messages.len() > 1
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
        whole = pb::RangeResponse { header: whole.header, ..Default::default() };
    }
    answer.messages = vec![Message::Range(whole)];
}
