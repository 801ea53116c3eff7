//! Where the time of one client's put goes: the log's write, what any answer takes, and what the
//! server adds.
//!
//! Reads what a server itself saw of its log from its metrics, and has `etcore-tune` measure the
//! disk by itself.

use std::process::Command;

use super::args::CompareArgs;
use super::load::number;
use super::servers::Servers;
use super::{CompareError, Comparison, http, io_error, member};
use crate::options::Endpoint;

/// How often a server made its log durable, and the seconds that took in all.
#[derive(Debug, Clone, Copy, PartialEq)]
struct LogWrites {
    count: f64,
    seconds: f64,
}

/// The latency of one client's load, in microseconds.
struct Latency {
    median: f64,
    mean: f64,
}

/// What the summary says of the disk.
pub(super) fn note(args: &CompareArgs) -> String {
    match args.tune.is_file() {
        true => "the disk by itself: disk-*.txt".to_owned(),
        false => format!("the disk by itself is not measured: no {}", args.tune.display()),
    }
}

/// Measures one server.
pub(super) fn measure(comparison: &mut Comparison<'_>) -> Result<(), CompareError> {
    let puts =
        ["put", "--key-size=8", "--val-size=256", "--sequential-keys", "--key-space-size=10000"];
    let servers = Servers::start(comparison, &member::ports(comparison), None)?;
    one_client(comparison, &servers, &puts, 1_000)?;
    let before = log_writes(servers.first())?;
    let put = one_client(comparison, &servers, &puts, 5_000)?;
    let after = log_writes(servers.first())?;
    let range = ["range", "00000001", "--consistency=s"];
    let range = one_client(comparison, &servers, &range, 5_000)?;
    drop(servers);
    let count = after.count - before.count;
    let write = if count > 0.0 { (after.seconds - before.seconds) * 1e6 / count } else { 0.0 };
    let rows = [
        ("put_p50", put.median),
        ("put_mean", put.mean),
        ("range_s_p50", range.median),
        ("range_s_mean", range.mean),
        ("log_write_mean", write),
        ("put_above_both_mean", put.mean - range.mean - write),
    ];
    rows.iter().try_for_each(|(metric, value)| comparison.record(metric, "us", *value))
}

/// Measures the disk by itself, into a file of this round.
pub(super) fn probe(comparison: &mut Comparison<'_>) -> Result<(), CompareError> {
    if !comparison.args.tune.is_file() {
        comparison.say(&note(comparison.args));
        return Ok(());
    }
    comparison.say("the disk by itself");
    let folder = comparison.args.scratch.join("probe");
    std::fs::create_dir_all(&folder).map_err(io_error(folder.display()))?;
    let mut command = Command::new(&comparison.args.tune);
    command.arg("probe").arg("--data-dir").arg(&folder);
    if comparison.args.quick {
        command.arg("--writes=100");
    }
    let output = comparison.output(&mut command, None)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let Some(part) = durable_writes(&said) else {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(CompareError::Failed(format!("{}: {said}", comparison.args.tune.display())));
    };
    let here = std::env::current_dir().map_err(io_error("the current folder"))?;
    let part = part.replace(&format!("{}/", here.display()), "");
    let path = comparison.args.results().join(format!("disk-{}.txt", comparison.round));
    std::fs::write(&path, part).map_err(io_error(path.display()))
}

fn one_client(
    comparison: &Comparison<'_>,
    servers: &Servers,
    arguments: &[&str],
    total: u64,
) -> Result<Latency, CompareError> {
    let total = format!("--total={}", comparison.count(total));
    let arguments = [&["--conns=1", "--clients=1"][..], arguments, &[&total]].concat();
    let report = comparison.benchmark(&servers.endpoints(), None, &arguments)?;
    Ok(Latency {
        median: number(&report, "/latency_us/p50")?,
        mean: 1e6 / number(&report, "/requests_per_second")?,
    })
}

fn log_writes(endpoint: &Endpoint) -> Result<LogWrites, CompareError> {
    let metrics = http::get(endpoint, "/metrics")?;
    parse_log_writes(&metrics)
        .ok_or_else(|| CompareError::Failed(format!("{endpoint} has no metrics of its log")))
}

fn parse_log_writes(metrics: &str) -> Option<LogWrites> {
    let value = |name: &str| -> Option<f64> {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line?.trim().parse().ok()
    };
    Some(LogWrites {
        count: value("etcd_disk_wal_fsync_duration_seconds_count")?,
        seconds: value("etcd_disk_wal_fsync_duration_seconds_sum")?,
    })
}

/// The part of a probe's report on durable writes.
fn durable_writes(said: &str) -> Option<&str> {
    let part = &said[said.find("Durable writes")?..];
    Some(part.find("Findings").map_or(part, |end| &part[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_s_writes_are_found_among_the_metrics() {
        let metrics = "# TYPE etcd_disk_wal_fsync_duration_seconds histogram\n\
                       etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"} 3\n\
                       etcd_disk_wal_fsync_duration_seconds_sum 0.25\n\
                       etcd_disk_wal_fsync_duration_seconds_count 12\n";
        assert_eq!(parse_log_writes(metrics), Some(LogWrites { count: 12.0, seconds: 0.25 }));
        assert_eq!(parse_log_writes("other 1\n"), None);
    }

    #[test]
    fn only_what_a_probe_says_of_writes_is_kept() {
        let said = "Host\n\nDurable writes of 4096 bytes\n  a 1 us\n\nFindings\n  none\n";
        assert_eq!(durable_writes(said), Some("Durable writes of 4096 bytes\n  a 1 us\n\n"));
        assert_eq!(durable_writes("Host\n"), None);
    }
}
