//! The lines about calls that took long, and about all when everything is logged: etcd's `request
//! stats` and its `apply request took too long` of ranges.
//!
//! Asked at the end of every unary call, which costs a comparison; the rest is for slow ones. What
//! was asked is shown without values.

use std::time::Duration;

use bytes::Bytes;
use etcore_proto::decode::{Flat, decode};
use etcore_proto::gotext::format_duration;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message as _;

use super::Services;
use super::call::Call;
use super::routes::method_labels;
use crate::config::Config;
use crate::entry::{self, describe};
use crate::log::rfc3339_micros;
use crate::metrics::CallType;

/// What a call has asked, kept for its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// The client's request.
    Message(Bytes),
    /// The entry that was made of it.
    Entry(Bytes),
}

/// When calls are told of.
pub(super) struct Telling {
    all: bool,
    slow_request: Duration,
    slow_read: Duration,
}

impl Telling {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            all: config.log_level == tracing::Level::DEBUG,
            slow_request: config.observe.slow_request,
            slow_read: config.observe.slow_apply,
        }
    }

    pub(super) fn of_all(&self) -> bool {
        self.all
    }
}

/// The numbers of one line; -1 where etcd counts nothing.
struct Stats {
    request_count: i64,
    request_size: i64,
    response_count: i64,
    response_size: i64,
    content: String,
}

impl Services {
    /// True if the end of the call may be told of.
    #[inline]
    pub(super) fn tells_of(&self, call: &Call) -> bool {
        let telling = &self.telling;
        let patience = telling.slow_request.min(telling.slow_read);
        telling.all || Duration::from_millis(self.now_ms + 1) > call.began + patience
    }

    /// A unary call has ended, answered with this if that is at hand.
    #[inline]
    pub(super) fn ended(&self, call: &Call, answer: Option<&[u8]>) {
        if self.tells_of(call) {
            self.tell_of(call, answer);
        }
    }

    #[cold]
    fn tell_of(&self, call: &Call, answer: Option<&[u8]>) {
        let labels = &method_labels()[usize::from(call.method.0)];
        if labels.kind != CallType::Unary {
            return;
        }
        let took = self.shared.clock.elapsed().saturating_sub(call.began);
        let telling = &self.telling;
        let is_slow = took > telling.slow_request;
        let is_slow_read = labels.request == "Range" && took > telling.slow_read;
        if !telling.all && !is_slow && !is_slow_read {
            return;
        }
        let stats = stats(labels.request, call.asked.as_deref(), answer);
        if is_slow_read {
            self.shared.metrics.slow_applies.inc();
            let response = format!(
                "range_response_count:{} size:{}",
                stats.response_count, stats.response_size
            );
            tracing::warn!(
                took = %format_duration(took),
                expected_duration = %format_duration(telling.slow_read),
                prefix = "read-only range ",
                request = %stats.content,
                response = %response,
                "apply request took too long"
            );
        }
        let start = rfc3339_micros(self.shared.clock.unix() - took);
        let remote = call
            .caller
            .remote
            .map_or_else(|| "No remote client info.".to_owned(), |remote| remote.to_string());
        // The two lines differ in nothing but their level.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    "start time" = %start,
                    "time spent" = %format_duration(took),
                    remote = %remote,
                    "response type" = labels.path,
                    "request count" = stats.request_count,
                    "request size" = stats.request_size,
                    "response count" = stats.response_count,
                    "response size" = stats.response_size,
                    "request content" = %stats.content,
                    "request stats"
                )
            };
        }
        if telling.all {
            line!(debug);
        } else if is_slow {
            line!(warn);
        }
    }
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn stats(request: &str, asked: Option<&Asked>, answer: Option<&[u8]>) -> Stats {
    let mut stats = Stats {
        request_count: -1,
        request_size: -1,
        response_count: -1,
        response_size: -1,
        content: String::new(),
    };
    let is_shown = matches!(request, "Range" | "Put" | "DeleteRange" | "Txn");
    if !is_shown {
        return stats;
    }
    stats.response_size = answer.map_or(-1, |answer| signed(answer.len()));
    let answered = answer.map(Bytes::copy_from_slice);
    stats.response_count = match (request, answered) {
        (_, None) => -1,
        ("Range", Some(answer)) => {
            pb::RangeResponse::decode(answer).map_or(-1, |response| response.count)
        }
        ("DeleteRange", Some(answer)) => {
            pb::DeleteRangeResponse::decode(answer).map_or(-1, |response| response.deleted)
        }
        _ => 0,
    };
    let succeeded = match (request, answer) {
        ("Txn", Some(answer)) => {
            pb::TxnResponse::decode(answer).is_ok_and(|response| response.succeeded)
        }
        _ => false,
    };
    match asked {
        None => {}
        Some(Asked::Message(message)) => {
            stats.request_size = signed(message.len());
            stats.show(request, message, succeeded);
        }
        Some(Asked::Entry(data)) => entry::with_entry(data, |whole| {
            let Ok(whole) = whole else { return };
            let message = match request {
                "Put" => whole.put.map(|put| put.encode_to_vec()),
                "DeleteRange" => whole.delete_range.map(|delete| delete.encode_to_vec()),
                _ => whole.txn.map(|txn| txn.encode_to_vec()),
            };
            let message = Bytes::from(message.unwrap_or_default());
            stats.request_size = signed(message.len());
            stats.show(request, &message, succeeded);
        }),
    }
    stats
}

impl Stats {
    /// `succeeded` says which branch of a transaction was taken: that is what etcd counts.
    fn show(&mut self, request: &str, message: &Bytes, succeeded: bool) {
        (self.request_count, self.content) = match request {
            "Range" => (0, shown(message, describe::range)),
            "Put" => (1, shown(message, describe::put)),
            "DeleteRange" => (0, shown(message, describe::delete_range)),
            _ => {
                let request = entry::with_txn(message.clone(), Result::unwrap_or_default);
                let ops = if succeeded { &request.success } else { &request.failure };
                self.request_size = ops.iter().map(|op| signed(op.encoded_len())).sum();
                (signed(ops.len()), describe::txn(&request))
            }
        };
    }
}

fn shown<M: Flat + Default>(message: &Bytes, show: fn(&M) -> String) -> String {
    decode(message.clone()).map_or_else(|_| String::new(), |request| show(&request))
}
