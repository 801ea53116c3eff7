//! What the numbers mean and what a person can do about them.
//!
//! Called by the probe with the facts. Every judgement is in this file, each with its threshold and
//! the reason for it. It must not measure anything, so that every sentence can be tested.

use serde::Serialize;

use crate::disk::{Measured, Method};
use crate::report::Report;
use crate::sample::human;

mod machine;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Good,
    /// Works, and could be better.
    Improve,
    /// To be changed before a member runs here.
    Problem,
}

impl Level {
    /// For the text report.
    pub fn label(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Improve => "improve",
            Self::Problem => "PROBLEM",
        }
    }
}

/// One judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What it is about, for programs: `disk`, `cpu` …
    pub subject: &'static str,
    /// What was found.
    pub text: String,
    /// What to change and how.
    pub change: Option<String>,
}

impl Finding {
    fn good(subject: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Good, subject, text: text.into(), change: None }
    }

    fn improve(subject: &'static str, text: impl Into<String>, change: &str) -> Self {
        let change = Some(change.to_owned());
        Self { level: Level::Improve, subject, text: text.into(), change }
    }

    fn problem(subject: &'static str, text: impl Into<String>, change: &str) -> Self {
        Self { level: Level::Problem, ..Self::improve(subject, text, change) }
    }
}

/// p99 of a durable write above which elections become likely under load: etcd's own rule.
const SYNC_P99_BAD_US: f64 = 10_000.0;

/// p99 up to which the disk is not what anybody waits for.
const SYNC_P99_GOOD_US: f64 = 2_000.0;

/// Share of time in which something waited for a core that a member should not live with, and that
/// spoils a measurement.
const PRESSURE_PERCENT: f64 = 20.0;

/// p50 below which no device can have flushed its cache.
const SYNC_P50_TOO_GOOD_US: f64 = 8.0;

/// Round trip up to which the default heartbeat of 100 ms fits.
const ROUND_TRIP_GOOD_US: f64 = 50_000.0;

/// Judges everything. Problems come first.
pub fn findings(report: &Report) -> Vec<Finding> {
    let mut out = Vec::new();
    disk(report, &mut out);
    machine::mount(report, &mut out);
    machine::cpu(report, &mut out);
    machine::idle(report, &mut out);
    machine::io_uring(report, &mut out);
    machine::memory(report, &mut out);
    machine::kernel(report, &mut out);
    peers(report, &mut out);
    out.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    out
}

/// The best of the methods that the server can use, with its p50 and p99 in microseconds.
fn best(report: &Report) -> Option<(&Measured, f64, f64)> {
    let usable = report.disk.iter().filter(|one| one.method != Method::BufferedFdatasync);
    usable
        .filter_map(|one| one.latency.map(|latency| (one, latency.p50_us, latency.p99_us)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
}

fn disk(report: &Report, out: &mut Vec<Finding>) {
    const ANOTHER: &str = "use a local SSD or NVMe device for the data directory, shared with no \
                           other writer; in a cloud, a volume with provisioned IOPS";
    let Some((best, p50, p99)) = best(report) else {
        out.push(Finding::problem(
            "disk",
            "no durable write succeeded in the data directory",
            "see the errors in the table; the file system must support fdatasync",
        ));
        return;
    };
    let mut text = format!(
        "durable writes take {} (99 of 100 at most {}) with {}",
        human(p50),
        human(p99),
        best.method.label()
    );
    if report.cpu.pressure_percent.is_some_and(|percent| percent > PRESSURE_PERCENT) {
        text.push_str("; the cores were busy, so this includes waiting for one: repeat it idle");
    }
    out.push(match p99 {
        p99 if p99 > SYNC_P99_BAD_US => {
            let text = format!("{text}: above 10 ms a busy leader misses heartbeats");
            Finding::problem("disk", text, ANOTHER)
        }
        p99 if p99 > SYNC_P99_GOOD_US => Finding::improve("disk", text, ANOTHER),
        _ => Finding::good("disk", text),
    });
    if p50 < SYNC_P50_TOO_GOOD_US {
        out.push(Finding::problem(
            "disk",
            "that is faster than a device can make anything durable",
            "check that the volume is no RAM disk and that its cache is protected against power \
             loss; otherwise acknowledged writes can be lost",
        ));
    }
    out.push(Finding::good(
        "expectation",
        format!(
            "one client waits about {} for a put{}; the log can do about {:.0} batches a second, \
             each with as many puts as arrive meanwhile",
            human(p50 + SERVER_US + quorum_us(report)),
            if report.peers.is_empty() { "" } else { ", with the slower half of the peers" },
            1_000_000.0 / p50
        ),
    ));
    if !best.direct {
        out.push(Finding::improve(
            "disk",
            "the file system refused O_DIRECT: writes go through the page cache",
            "ext4 and xfs on a local device support it",
        ));
    }
}

/// What the server itself adds to a put.
const SERVER_US: f64 = 15.0;

/// The round trip to the slowest peer needed for a majority.
fn quorum_us(report: &Report) -> f64 {
    let trips = report.peers.iter().filter_map(|peer| peer.round_trip);
    let mut trips: Vec<f64> = trips.map(|trip| trip.p50_us).collect();
    trips.sort_by(f64::total_cmp);
    // This member and the nearest `needed` of the others are a majority of all.
    let needed = report.peers.len().div_ceil(2);
    needed.checked_sub(1).and_then(|at| trips.get(at)).copied().unwrap_or(0.0)
}

fn peers(report: &Report, out: &mut Vec<Finding>) {
    let mut slowest: f64 = 0.0;
    for peer in &report.peers {
        let Some(trip) = peer.round_trip else {
            let reason = peer.error.as_deref().unwrap_or("no answer");
            out.push(Finding::problem(
                "peers",
                format!("{} cannot be reached: {reason}", peer.name),
                "check the name, the route and the firewall rules for the peer port",
            ));
            continue;
        };
        slowest = slowest.max(trip.p99_us);
        if !peer.listening {
            out.push(Finding::good(
                "peers",
                format!("{} answers, but nothing listens on that port yet", peer.name),
            ));
        }
    }
    if slowest > ROUND_TRIP_GOOD_US {
        let heartbeat_ms = (slowest * 1.5 / 10_000.0).ceil() * 10.0;
        out.push(Finding::problem(
            "peers",
            format!("a round trip can take {}: too long for heartbeats of 100 ms", human(slowest)),
            &format!(
                "start every member with --heartbeat-interval={heartbeat_ms} \
                 --election-timeout={}",
                heartbeat_ms * 10.0
            ),
        ));
    } else if slowest > 0.0 {
        out.push(Finding::good(
            "peers",
            format!(
                "round trips take at most {}: the default heartbeat of 100 ms and election \
                 timeout of 1000 ms fit",
                human(slowest)
            ),
        ));
    }
}

#[cfg(test)]
pub(crate) mod tests;
