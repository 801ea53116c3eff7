//! The reports as JSON objects: the names and the order of their fields.
//!
//! Filled by `report` alone. A field, once there, must keep its name and its unit: scripts read it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::process::Usage;
use crate::tally::Tally;

/// What came of `put` or `range`.
#[derive(Debug, Serialize)]
pub(super) struct Run<'a> {
    pub(super) command: &'static str,
    pub(super) endpoints: Vec<&'a str>,
    pub(super) conns: usize,
    pub(super) clients: usize,
    pub(super) threads: usize,
    pub(super) rate: u64,
    pub(super) total: u64,
    pub(super) complete: bool,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) began_unix: u64,
    pub(super) seconds: f64,
    pub(super) requests_per_second: f64,
    pub(super) latency_us: Latency,
    pub(super) histogram: Vec<Bucket>,
    pub(super) errors: &'a BTreeMap<String, u64>,
    pub(super) servers: Vec<Server>,
    pub(super) own_cpu_us_per_request: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) samples: Option<Vec<Sample>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Latency {
    mean: f64,
    stddev: f64,
    min: f64,
    p10: f64,
    p25: f64,
    p50: f64,
    p75: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    p99_9: f64,
    p100: f64,
    max: f64,
}

/// Requests up to this latency and above that of the bucket before.
#[derive(Debug, Serialize)]
pub(super) struct Bucket {
    pub(super) up_to_us: f64,
    pub(super) count: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Server {
    pub(super) pid: u32,
    pub(super) cpu_us_per_request: f64,
    pub(super) user_us_per_request: f64,
    pub(super) system_us_per_request: f64,
    pub(super) rss_bytes: u64,
    pub(super) rss_anon_bytes: u64,
    pub(super) rss_file_bytes: u64,
}

/// One second of a run.
#[derive(Debug, Serialize)]
pub(super) struct Sample {
    pub(super) unix: u64,
    pub(super) min_us: f64,
    pub(super) mean_us: f64,
    pub(super) max_us: f64,
    pub(super) count: u64,
}

/// What came of `watch-latency`.
#[derive(Debug, Serialize)]
pub(super) struct Watch {
    pub(super) complete: bool,
    pub(super) seconds: f64,
    pub(super) put_us: Percentiles,
    pub(super) event_from_put_us: Percentiles,
    pub(super) event_from_commit_us: Percentiles,
    pub(super) servers: Vec<WatchServer>,
}

#[derive(Debug, Serialize)]
pub(super) struct Percentiles {
    count: u64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    p100: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct WatchServer {
    pid: u32,
    cpu_us: u64,
    rss_bytes: u64,
    rss_anon_bytes: u64,
}

impl From<&Tally> for Latency {
    fn from(tally: &Tally) -> Self {
        Latency {
            mean: us(tally.mean_ns()),
            stddev: us(tally.deviation_ns()),
            min: us(tally.fastest_ns() as f64),
            p10: percentile(tally, 10.0),
            p25: percentile(tally, 25.0),
            p50: percentile(tally, 50.0),
            p75: percentile(tally, 75.0),
            p90: percentile(tally, 90.0),
            p95: percentile(tally, 95.0),
            p99: percentile(tally, 99.0),
            p99_9: percentile(tally, 99.9),
            p100: percentile(tally, 100.0),
            max: us(tally.slowest_ns() as f64),
        }
    }
}

impl From<&Tally> for Percentiles {
    fn from(tally: &Tally) -> Self {
        Percentiles {
            count: tally.count(),
            p50: percentile(tally, 50.0),
            p90: percentile(tally, 90.0),
            p99: percentile(tally, 99.0),
            p99_9: percentile(tally, 99.9),
            p100: percentile(tally, 100.0),
        }
    }
}

impl From<&(u32, Usage)> for WatchServer {
    fn from((pid, usage): &(u32, Usage)) -> Self {
        WatchServer {
            pid: *pid,
            cpu_us: usage.cpu_us(),
            rss_bytes: usage.rss_bytes,
            rss_anon_bytes: usage.rss_anon_bytes,
        }
    }
}

fn percentile(tally: &Tally, percent: f64) -> f64 {
    us(tally.percentile_ns(percent) as f64)
}

/// Microseconds, the unit of all latencies in JSON.
pub(super) fn us(ns: f64) -> f64 {
    ns / 1e3
}
