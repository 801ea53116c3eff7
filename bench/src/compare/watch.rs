//! Watches: latency of events, memory, CPU.
//!
//! Each load meets a fresh server on core 0, with the load on core 1.

use super::load::number;
use super::servers::{Servers, mib};
use super::{CompareError, Comparison, LOAD_CORE, SERVER_CORE, member};

/// Measures one server.
pub(super) fn measure(comparison: &mut Comparison<'_>) -> Result<(), CompareError> {
    let seconds = comparison.args.seconds();
    // 10,000 streams on 100 connections; 1,000 small events a second, each for 10 of them.
    let streams = comparison.count(10_000);
    let keys = format!("--key-space-size={}", streams / 10);
    let (streams, puts) =
        (format!("--streams={streams}"), format!("--put-total={}", 1_000 * seconds));
    load(comparison, "streams", &[&streams, &keys, "--put-rate=1000", &puts])?;
    // 1,000 watchers of one prefix and events of 3 KB.
    let streams = format!("--streams={}", comparison.count(1_000));
    let puts = format!("--put-total={}", 10 * seconds);
    load(comparison, "prefix", &[&streams, "--prefix", "--val-size=3072", "--put-rate=10", &puts])
}

fn load(
    comparison: &mut Comparison<'_>,
    name: &str,
    arguments: &[&str],
) -> Result<(), CompareError> {
    let servers = Servers::start(comparison, &member::ports(comparison), Some(SERVER_CORE))?;
    let pid = format!("--server-pid={}", servers.first_pid());
    let common = ["--conns=100", &pid, "watch-latency", "--watchers-per-stream=1"];
    let arguments = [&common[..], arguments].concat();
    let report = comparison.benchmark(&servers.endpoints(), Some(LOAD_CORE), &arguments)?;
    for percentile in ["p50", "p99"] {
        let from_put = number(&report, &format!("/event_from_put_us/{percentile}"))?;
        comparison.record(&format!("{name}_put_to_event_{percentile}"), "us", from_put)?;
        let from_commit = number(&report, &format!("/event_from_commit_us/{percentile}"))?;
        comparison.record(&format!("{name}_commit_to_event_{percentile}"), "us", from_commit)?;
    }
    for bytes in ["rss_bytes", "rss_anon_bytes"] {
        let value = mib(number(&report, &format!("/servers/0/{bytes}"))?);
        comparison.record(&format!("{name}_{bytes}"), "MiB", value)?;
    }
    let cpu_us = number(&report, "/servers/0/cpu_us")?;
    comparison.record(&format!("{name}_cpu"), "s", cpu_us / 1e6)
}
