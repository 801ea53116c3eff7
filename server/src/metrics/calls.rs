//! What is counted of clients' calls: go-grpc-prometheus' metrics by method, and etcd's by kind of
//! request.
//!
//! Each front counts its own calls in cells that nobody else writes to ([`FrontCalls`]), so that a
//! call takes no lock, no shared cache line and no allocation. A page adds them up.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use etcore_proto::grpc::{Code, MethodId, OpenCall};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::cells::{Buckets, Sum, Tally, exponential};

/// `grpc_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallType {
    /// One request, one answer.
    Unary,
    /// One request, many answers.
    ServerStream,
    /// Both sides stream.
    BidiStream,
}

impl CallType {
    fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// What a method is called in metrics.
#[derive(Debug, Clone, Copy)]
pub struct MethodLabels {
    /// `/service/method`.
    pub path: &'static str,
    /// `grpc_type`.
    pub kind: CallType,
    /// `type` of `etcd_server_request_duration_seconds`; empty for methods that etcd leaves out.
    pub request: &'static str,
}

impl MethodLabels {
    fn of(&self) -> [(&'static str, &'static str); 3] {
        let (service, method) = self.path[1..].split_once('/').unwrap_or((self.path, ""));
        [("grpc_method", method), ("grpc_service", service), ("grpc_type", self.kind.name())]
    }
}

/// `type` of a transaction that only reads.
const READ_ONLY_TXN: &str = "ReadonlyTxn";

/// go-grpc-prometheus' default buckets.
static HANDLING: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// etcd's: 1 ms to 8 s.
static REQUESTS: [f64; 14] = exponential(0.001, 2.0);
/// etcd's: 0.1 ms to 52 s.
static RANGES: [f64; 20] = exponential(0.0001, 2.0);

/// Versions of the API that are told from each other. A client may say anything; what comes later
/// is counted together.
const VERSIONS: usize = 30;
const OTHER_VERSIONS: &str = "other";

#[derive(Debug)]
struct MethodCalls {
    kind: CallType,
    reads: bool,
    started: Tally,
    received: Tally,
    sent: Tally,
    handled: [Tally; Code::ALL.len()],
    seconds: Option<Buckets>,
    /// Calls that succeeded, and calls that did not.
    requests: [Buckets; 2],
}

/// One front's counts.
#[derive(Debug)]
pub struct FrontCalls {
    methods: Box<[MethodCalls]>,
    read_only_txns: [Buckets; 2],
    ranges: [Buckets; 2],
    versions: Box<[VersionCalls]>,
}

/// Calls of clients that say the same version: unary ones and streams.
#[derive(Debug, Default)]
struct VersionCalls {
    version: OnceLock<Box<str>>,
    unary: Tally,
    streams: Tally,
}

fn both(bounds: &'static [f64]) -> [Buckets; 2] {
    [Buckets::new(bounds), Buckets::new(bounds)]
}

impl FrontCalls {
    fn new(methods: &[MethodLabels], extensive: bool) -> Self {
        let method = |labels: &MethodLabels| MethodCalls {
            kind: labels.kind,
            reads: labels.request == "Range",
            started: Tally::default(),
            received: Tally::default(),
            sent: Tally::default(),
            handled: Default::default(),
            seconds: extensive.then(|| Buckets::new(&HANDLING)),
            requests: both(&REQUESTS),
        };
        Self {
            methods: methods.iter().map(method).collect(),
            read_only_txns: both(&REQUESTS),
            ranges: both(&RANGES),
            versions: (0..=VERSIONS).map(|_| VersionCalls::default()).collect(),
        }
    }

    #[inline]
    fn of(&self, method: MethodId) -> &MethodCalls {
        &self.methods[usize::from(method.0)]
    }

    /// A call has begun.
    #[inline]
    pub fn started(&self, method: MethodId) {
        self.of(method).started.add(1);
    }

    /// Its service has taken a message.
    #[inline]
    pub fn received(&self, method: MethodId) {
        self.of(method).received.add(1);
    }

    /// Messages of a stream are sent. What a unary call is answered with is counted as it ends.
    #[inline]
    pub fn sent(&self, call: Option<OpenCall>, messages: u64) {
        let method = call.map(|call| self.of(call.method));
        if let Some(method) = method.filter(|method| method.kind != CallType::Unary) {
            method.sent.add(messages);
        }
    }

    /// A call has ended after so long. `read_only` is a transaction that only reads.
    #[inline]
    pub fn handled(&self, method: MethodId, code: Code, took: Duration, read_only: bool) {
        let method = self.of(method);
        method.handled[code as usize].add(1);
        match method.kind {
            // As the interceptor counts: an error is a message too.
            CallType::Unary => method.sent.add(1),
            // Its service has asked for one more, and was told of the end.
            CallType::BidiStream => method.received.add(1),
            CallType::ServerStream => {}
        }
        if let Some(seconds) = &method.seconds {
            seconds.observe(1, took);
        }
        let success = match code {
            // Refused before etcd's clock starts.
            Code::InvalidArgument => return,
            Code::Ok => true,
            Code::Canceled | Code::DeadlineExceeded | Code::Unavailable => false,
            // What a proposal was refused for as it was applied is an answer like any other.
            _ => !method.reads && !read_only,
        };
        let requests = if read_only { &self.read_only_txns } else { &method.requests };
        requests[usize::from(!success)].observe(1, took);
    }

    /// A call counts by what its client says of its version.
    #[inline]
    pub fn client(&self, version: Option<&str>, is_stream: bool) {
        let version = version.unwrap_or("unknown");
        let calls = self.versions[..VERSIONS].iter().find(|calls| match calls.version.get() {
            Some(known) => **known == *version,
            // This front is the only one that sets it.
            None => calls.version.set(version.into()).is_ok(),
        });
        let calls = calls.unwrap_or(&self.versions[VERSIONS]);
        if is_stream { &calls.streams } else { &calls.unary }.add(1);
    }

    /// The member has read for itself, as etcd's health checks do by its Range.
    pub fn own_read(&self, success: bool, took: Duration) {
        if let Some(range) = self.methods.iter().find(|method| method.reads) {
            range.requests[usize::from(!success)].observe(1, took);
        }
        self.ranges(success, 1, Duration::ZERO);
    }

    /// So many ranges were evaluated, each in so long.
    pub fn ranges(&self, success: bool, count: u64, took: Duration) {
        self.ranges[usize::from(!success)].observe(count, took);
    }
}

/// All fronts' counts.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    methods: &'static [MethodLabels],
    fronts: Arc<[Arc<FrontCalls>]>,
    extensive: bool,
}

impl Calls {
    /// No calls yet. `extensive` has every method's durations counted too (`--metrics`).
    pub fn new(methods: &'static [MethodLabels], fronts: usize, extensive: bool) -> Self {
        let front = |_| Arc::new(FrontCalls::new(methods, extensive));
        Self { methods, fronts: (0..fronts).map(front).collect(), extensive }
    }

    /// The cells of one front.
    ///
    /// # Panics
    /// If there is no such front.
    pub fn front(&self, index: usize) -> Arc<FrontCalls> {
        self.fronts[index].clone()
    }

    fn sum(&self, of: impl Fn(&FrontCalls) -> &Tally) -> u64 {
        self.fronts.iter().map(|front| of(front).get()).sum()
    }

    /// A counter for each method.
    fn by_method(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        of: fn(&MethodCalls) -> &Tally,
    ) -> fmt::Result {
        let mut family = describe(encoder, name, help, MetricType::Counter)?;
        for (at, method) in self.methods.iter().enumerate() {
            let count = self.sum(|front| of(&front.methods[at]));
            counter(&mut family, &method.of(), count)?;
        }
        Ok(())
    }

    fn handled(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help =
            "Total number of RPCs completed on the server, regardless of success or failure.";
        let mut family = describe(encoder, "grpc_server_handled", help, MetricType::Counter)?;
        for (at, method) in self.methods.iter().enumerate() {
            let [name, service, kind] = method.of();
            for code in Code::ALL {
                let count = self.sum(|front| &front.methods[at].handled[code as usize]);
                let labels = [("grpc_code", code_name(code)), name, service, kind];
                counter(&mut family, &labels, count)?;
            }
        }
        Ok(())
    }

    fn handling(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Histogram of response latency (seconds) of gRPC that had been \
                    application-level handled by the server.";
        let name = "grpc_server_handling_seconds";
        let mut family = describe(encoder, name, help, MetricType::Histogram)?;
        for (at, method) in self.methods.iter().enumerate() {
            let parts = self.fronts.iter().filter_map(|front| front.methods[at].seconds.as_ref());
            histogram(&mut family, &method.of(), &Sum::of(parts))?;
        }
        Ok(())
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut rows: Vec<([(&str, &str); 2], Sum)> = Vec::new();
        for (success, at) in [("true", 0), ("false", 1)] {
            let methods = self.methods.iter().enumerate();
            for (method, labels) in methods.filter(|(_, labels)| !labels.request.is_empty()) {
                let parts = self.fronts.iter().map(|front| &front.methods[method].requests[at]);
                rows.push(([("success", success), ("type", labels.request)], Sum::of(parts)));
            }
            let parts = self.fronts.iter().map(|front| &front.read_only_txns[at]);
            rows.push(([("success", success), ("type", READ_ONLY_TXN)], Sum::of(parts)));
        }
        let help = "Response latency distribution in seconds for each type.";
        seen_histograms(encoder, "etcd_server_request_duration_seconds", help, &rows)
    }

    fn ranges(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rows = [("true", 0), ("false", 1)].map(|(success, at)| {
            let parts = self.fronts.iter().map(|front| &front.ranges[at]);
            ([("success", success)], Sum::of(parts))
        });
        let help = "The latency distributions of txn.Range";
        seen_histograms(encoder, "etcd_server_range_duration_seconds", help, &rows)
    }

    fn versions(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut rows = std::collections::BTreeMap::new();
        for version in self.fronts.iter().flat_map(|front| &front.versions) {
            let name = version.version.get().map_or(OTHER_VERSIONS, |name| &**name);
            for (kind, count) in [("unary", &version.unary), ("stream", &version.streams)] {
                *rows.entry((name, kind)).or_insert(0) += count.get();
            }
        }
        rows.retain(|_, count| *count > 0);
        if rows.is_empty() {
            return Ok(());
        }
        let help = "The total number of client requests per client version.";
        let name = "etcd_server_client_requests";
        let mut family = describe(encoder, name, help, MetricType::Counter)?;
        for ((version, kind), count) in rows {
            counter(&mut family, &[("client_api_version", version), ("type", kind)], count)?;
        }
        Ok(())
    }
}

impl Collector for Calls {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        if !self.methods.is_empty() {
            let started = ("grpc_server_started", "Total number of RPCs started on the server.");
            self.by_method(encoder, started, |method| &method.started)?;
            let help = "Total number of RPC stream messages received on the server.";
            self.by_method(encoder, ("grpc_server_msg_received", help), |method| &method.received)?;
            let help = "Total number of gRPC stream messages sent by the server.";
            self.by_method(encoder, ("grpc_server_msg_sent", help), |method| &method.sent)?;
            self.handled(encoder)?;
        }
        if self.extensive {
            self.handling(encoder)?;
        }
        self.requests(encoder)?;
        self.ranges(encoder)?;
        self.versions(encoder)
    }
}

/// Begins a family. The registry ends its explanations with a full stop, which is taken off again
/// when the page is made; so these have one too.
pub(super) fn describe<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
    kind: MetricType,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, &format!("{help}."), None, kind)
}

fn counter(family: &mut MetricEncoder<'_>, labels: &[(&str, &str)], count: u64) -> fmt::Result {
    let mut one = family.encode_family(&labels)?;
    one.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

fn histogram(family: &mut MetricEncoder<'_>, labels: &[(&str, &str)], sum: &Sum) -> fmt::Result {
    let mut one = family.encode_family(&labels)?;
    one.encode_histogram::<NoLabelSet>(sum.seconds, sum.count, &sum.buckets, None)
}

/// Histograms that have seen something; none of them, and the family is not there either.
pub(super) fn seen_histograms<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: &[([(&str, &str); N], Sum)],
) -> fmt::Result {
    let mut seen = rows.iter().filter(|(_, sum)| sum.count > 0).peekable();
    if seen.peek().is_none() {
        return Ok(());
    }
    let mut family = describe(encoder, name, help, MetricType::Histogram)?;
    seen.try_for_each(|(labels, sum)| histogram(&mut family, labels, sum))
}

/// grpc-go's name of a code.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Canceled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
