//! One member: CPU per request, latency, throughput, memory.
//!
//! Measures each server twice a round: on core 0 with the load on core 1, then on all cores.

use etcore_proto::pb::etcdserverpb::{PutRequest, PutResponse, RangeRequest};
use prost::Message as _;

use super::figures::RATE;
use super::load::number;
use super::servers::{Ports, Servers};
use super::{CompareError, Comparison, LOAD_CORE, SERVER_CORE, h2load};
use crate::{limits, unary};

/// One load by `h2load`.
struct Case {
    metric: &'static str,
    count: u64,
    /// Concurrent ones on each of 16 connections.
    streams: u32,
    method: &'static str,
    body: &'static str,
}

/// Says what cannot be measured here; `None` if everything can.
pub(super) fn note() -> Option<String> {
    (!h2load::is_there()).then(|| "h2load is missing: cpu_* is not measured".to_owned())
}

/// Measures one server.
pub(super) fn measure(comparison: &mut Comparison<'_>) -> Result<(), CompareError> {
    pinned(comparison)?;
    unpinned(comparison)
}

/// The ports of a single member.
pub(super) fn ports(comparison: &Comparison<'_>) -> [Ports; 1] {
    let client = comparison.args.port;
    [Ports { client, peer: client + 10 }]
}

fn pinned(comparison: &mut Comparison<'_>) -> Result<(), CompareError> {
    let servers = Servers::start(comparison, &ports(comparison), Some(SERVER_CORE))?;
    // The key that is ranged over.
    let _: PutResponse =
        unary::call(servers.first(), "/etcdserverpb.KV/Put", &put("foo"), limits::DIAL_TIMEOUT)
            .map_err(CompareError::Failed)?;
    match note() {
        Some(note) => comparison.say(&note),
        None => cpu(comparison, &servers)?,
    }
    let total = format!("--total={}", comparison.count(10_000));
    let put = ["put", "--val-size=256", "--sequential-keys", "--key-space-size=10000", &total];
    p50(comparison, &servers, "p50_put_1", &put)?;
    let total = format!("--total={}", comparison.count(20_000));
    let range = ["range", "foo", "--consistency=s", &total];
    p50(comparison, &servers, "p50_range_s_1", &range)
}

fn put(key: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: vec![b'x'; 256].into(), ..PutRequest::default() }
}

/// CPU of the server per request, of each case after a warm-up of a tenth of its requests.
fn cpu(comparison: &mut Comparison<'_>, servers: &Servers) -> Result<(), CompareError> {
    let range = RangeRequest { key: "foo".into(), ..RangeRequest::default() };
    comparison.body("range_l", &range.encode_to_vec())?;
    let range = RangeRequest { serializable: true, ..range };
    comparison.body("range_s", &range.encode_to_vec())?;
    comparison.body("put", &put("abcdefgh").encode_to_vec())?;
    for case in &CASES {
        let body = comparison.args.scratch.join("bodies").join(case.body);
        let count = comparison.count(case.count);
        let load = |comparison: &Comparison<'_>, count: u64| {
            comparison.h2load(servers.first(), (count, case.streams), case.method, &body)
        };
        load(comparison, (count / 10).max(16))?;
        let before = servers.cpu_us()?;
        load(comparison, count)?;
        let used = servers.cpu_us()?.saturating_sub(before);
        comparison.record(case.metric, "us", used as f64 / count as f64)?;
    }
    Ok(())
}

/// Median latency of one client.
fn p50(
    comparison: &mut Comparison<'_>,
    servers: &Servers,
    metric: &str,
    arguments: &[&str],
) -> Result<(), CompareError> {
    let report = comparison.benchmark(&servers.endpoints(), Some(LOAD_CORE), arguments)?;
    comparison.record(metric, "us", number(&report, "/latency_us/p50")?)
}

fn unpinned(comparison: &mut Comparison<'_>) -> Result<(), CompareError> {
    let servers = Servers::start(comparison, &ports(comparison), None)?;
    let total = comparison.count(100_000);
    let (total, keys) = (format!("--total={total}"), format!("--key-space-size={total}"));
    let put = ["put", "--val-size=256", "--sequential-keys", &keys, &total];
    let arguments = [&["--conns=100", "--clients=1000"][..], &put].concat();
    let report = comparison.benchmark(&servers.endpoints(), None, &arguments)?;
    comparison.record("rate_put_1000", RATE, number(&report, "/requests_per_second")?)?;
    comparison.record("rss_anon", "MiB", servers.rss_anon_mib()?)
}

const CASES: [Case; 6] = [
    case("cpu_range_s_16x64", 200_000, 64, "Range", "range_s"),
    case("cpu_range_s_16x1", 100_000, 1, "Range", "range_s"),
    case("cpu_range_l_16x64", 200_000, 64, "Range", "range_l"),
    case("cpu_range_l_16x1", 50_000, 1, "Range", "range_l"),
    case("cpu_put_16x64", 100_000, 64, "Put", "put"),
    case("cpu_put_16x1", 20_000, 1, "Put", "put"),
];

const fn case(
    metric: &'static str,
    count: u64,
    streams: u32,
    method: &'static str,
    body: &'static str,
) -> Case {
    Case { metric, count, streams, method, body }
}
