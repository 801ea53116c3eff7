//! The whole tool against a server on real sockets: command lines, figures, errors, pace.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Behaviour, FAILURE, Fake, benchmark, figure};

/// Requests of the tests that the guide makes with 100,000.
fn many() -> usize {
    if std::env::var_os("ETCORE_LONG").is_some() { 100_000 } else { 20_000 }
}

/// The counts in the histogram of a text report.
fn histogram(report: &str) -> Vec<u64> {
    let section = report.split("Response time histogram:\n").nth(1).expect("a histogram");
    let rows = section.lines().take_while(|line| !line.is_empty());
    let counts = rows.map(|row| {
        let (_, after) = row.split_once('[').expect("a count");
        after.split_once(']').expect("its end").0.parse().unwrap()
    });
    counts.collect()
}

#[test]
fn the_guide_s_put_for_one_client_runs_as_written() {
    let fake = Fake::start(Behaviour::default());
    let (status, report, complaints) = benchmark(&format!(
        "--endpoints={} --conns=1 --clients=1 put --key-size=8 --sequential-keys --total=10000 \
         --val-size=256",
        fake.address
    ));
    assert_eq!((status, complaints.as_str()), (0, ""));
    let puts = fake.seen.puts.lock().unwrap();
    assert_eq!(puts.len(), 10_000);
    assert!(puts.iter().all(|put| put.key.len() == 8 && put.value.len() == 256));
    assert_eq!(fake.seen.conns.load(Ordering::Relaxed), 1);
    for part in ["\nSummary:\n  Total:\t", " secs.\n  Slowest:\t", "  Requests/sec:\t"] {
        assert!(report.contains(part), "{part:?} is missing: {report}");
    }
    assert!(report.contains("\nLatency distribution:\n  10% in "), "{report}");
    assert!(report.contains("10000 succeeded, 0 failed"), "{report}");
    let counts = histogram(&report);
    assert_eq!(counts.len(), 11);
    assert_eq!(counts.iter().sum::<u64>(), 10_000, "each request is in one bar");
}

#[test]
fn the_guide_s_put_for_a_thousand_clients_runs_on_any_number_of_threads() {
    for threads in [1, 3] {
        let fake = Fake::start(Behaviour::default());
        let total = many();
        let (status, report, _) = benchmark(&format!(
            "--endpoints=http://{} --conns=100 --clients=1000 --threads={threads} put \
             --key-size=8 --sequential-keys --total={total} --key-space-size={total} \
             --val-size=256",
            fake.address
        ));
        assert_eq!(status, 0, "{report}");
        let puts = fake.seen.puts.lock().unwrap();
        let keys: BTreeSet<_> = puts.iter().map(|put| put.key.clone()).collect();
        assert_eq!((puts.len(), keys.len()), (total, total), "each request is made once");
        assert_eq!(fake.seen.conns.load(Ordering::Relaxed), 100);
        assert_eq!(histogram(&report).iter().sum::<u64>(), total as u64);
    }
}

#[test]
fn the_guide_s_ranges_run_as_written() {
    for (consistency, serializable) in [("1", false), ("l", false), ("s", true)] {
        let fake = Fake::start(Behaviour::default());
        let (status, report, _) = benchmark(&format!(
            "--endpoints={0},{0},{0} --conns=1 --clients=1 range YOUR_KEY \
             --consistency={consistency} --total=10000",
            fake.address
        ));
        assert_eq!(status, 0);
        let ranges = fake.seen.ranges.lock().unwrap();
        assert_eq!(ranges.len(), 10_000);
        assert!(ranges.iter().all(|range| {
            range.key == "YOUR_KEY".as_bytes() && range.serializable == serializable
        }));
        let word = if serializable { "serializable" } else { "linearizable" };
        assert!(report.starts_with(&format!("bench with {word} range\n")), "{report}");
    }
}

#[test]
fn figures_agree_with_each_other() {
    let fake = Fake::start(Behaviour { think: Duration::from_millis(2), ..Behaviour::default() });
    let line = format!("--endpoints={} --json --sample put --total=200", fake.address);
    let (status, json, _) = benchmark(&line);
    assert_eq!(status, 0);
    let get = |name| figure(&json, name);
    assert_eq!((get("succeeded"), get("failed")), (200.0, 0.0));
    assert!(get("min") >= 2_000.0, "no answer comes before the server thought: {json}");
    let ascending = ["min", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99_9", "max"];
    assert!(ascending.map(get).is_sorted(), "{json}");
    // One client: the latencies are the run, but for what the tool does in between.
    let sum_seconds = get("mean") * 200.0 / 1e6;
    assert!(sum_seconds <= get("seconds") * 1.001, "{json}");
    assert!(sum_seconds >= get("seconds") * 0.5, "{json}");
    assert!((get("requests_per_second") * get("seconds") - 200.0).abs() < 0.1);
    let samples = json.split("\"samples\":").nth(1).expect("samples");
    let counts = samples.match_indices("\"count\":").map(|(at, _)| figure(&samples[at..], "count"));
    assert_eq!(counts.sum::<f64>(), 200.0);
}

#[test]
fn failed_requests_are_counted_and_listed_and_are_no_latencies() {
    let fake = Fake::start(Behaviour { fail_every: 10, ..Behaviour::default() });
    let line = format!("--endpoints={} --conns=2 --clients=8 put --total=1000", fake.address);
    let (status, report, _) = benchmark(&line);
    assert_eq!(status, 0);
    let expected = format!("\nError distribution:\n  [100]\t{FAILURE}\n");
    assert!(report.contains(&expected), "{report}");
    assert_eq!(histogram(&report).iter().sum::<u64>(), 900);
}

#[test]
fn a_run_without_any_success_fails() {
    let fake = Fake::start(Behaviour { fail_every: 1, ..Behaviour::default() });
    let (status, report, _) =
        benchmark(&format!("--endpoints={} range key --total=50", fake.address));
    assert_eq!(status, 1);
    assert!(report.contains(&format!("[50]\t{FAILURE}")), "{report}");
    assert!(!report.contains("Summary"), "{report}");
}

#[test]
fn a_lost_server_ends_the_run_and_is_named_as_the_reason() {
    let fake = Fake::start(Behaviour { close_at: Some(100), ..Behaviour::default() });
    let line = format!("--endpoints={} --conns=2 --clients=10 put --total=100000", fake.address);
    for line in [line.clone(), format!("{line} --rate=10000")] {
        let (status, report, complaints) = benchmark(&line);
        assert_eq!(status, 1);
        assert!(report.contains("rpc error: code = Unavailable desc = "), "{report}");
        assert!(complaints.starts_with("Error: the run ended after "), "{complaints}");
        assert_eq!(complaints.lines().count(), 1);
    }
}

#[test]
fn a_rate_is_kept_neither_slower_nor_faster() {
    let fake = Fake::start(Behaviour::default());
    for threads in [1, 2] {
        let (status, json, _) = benchmark(&format!(
            "--endpoints={} --conns=4 --clients=8 --threads={threads} --json put --rate=1000 \
             --total=500",
            fake.address
        ));
        assert_eq!(status, 0);
        let seconds = figure(&json, "seconds");
        // The last of 500 is due at 499 ms.
        assert!((0.499..1.5).contains(&seconds), "{json}");
    }
}

#[test]
fn with_a_rate_the_wait_for_a_free_client_counts() {
    let fake = Fake::start(Behaviour { think: Duration::from_millis(20), ..Behaviour::default() });
    let (_, json, _) =
        benchmark(&format!("--endpoints={} --json put --rate=200 --total=20", fake.address));
    // The last request is due at 95 ms and cannot be made before 380 ms.
    assert!(figure(&json, "max") >= 300_000.0, "{json}");
    let (_, json, _) = benchmark(&format!("--endpoints={} --json put --total=20", fake.address));
    assert!(figure(&json, "p50") < 300_000.0, "{json}");
}

#[test]
fn a_server_s_limit_of_streams_delays_clients_but_loses_none() {
    let fake = Fake::start(Behaviour { streams_max: 3, ..Behaviour::default() });
    let line = format!("--endpoints={} --conns=2 --clients=64 put --total=2000", fake.address);
    let (status, report, _) = benchmark(&line);
    assert_eq!(status, 0, "{report}");
    assert!(report.contains("2000 succeeded, 0 failed"), "{report}");
}

#[test]
fn pages_of_a_range_are_one_request() {
    let fake = Fake::start(Behaviour { pages: 4, ..Behaviour::default() });
    let line = format!("--endpoints={} --clients=3 range k --prefix --paginate", fake.address);
    let (status, report, _) = benchmark(&format!("{line} --total=30"));
    assert_eq!(status, 0);
    assert!(report.contains("30 succeeded"), "{report}");
    let ranges = fake.seen.ranges.lock().unwrap();
    assert_eq!(ranges.len(), 120);
    assert!(ranges.iter().all(|range| range.limit == 10_000 && range.range_end == "l"));
    let later = ranges.iter().filter(|range| range.revision == 5_000).count();
    assert_eq!(later, 90, "all but the first pages name the revision");
}

#[test]
fn range_streams_end_with_their_status() {
    let fake = Fake::start(Behaviour { pages: 3, fail_every: 5, ..Behaviour::default() });
    let line = format!("--endpoints={} range k --stream --total=50", fake.address);
    let (status, report, _) = benchmark(&line);
    assert_eq!(status, 0);
    assert!(report.contains("40 succeeded, 10 failed"), "{report}");
    assert_eq!(fake.seen.streams.load(Ordering::Relaxed), 40);
}

#[test]
fn the_leader_alone_is_loaded_if_asked_for() {
    let follower = Fake::start(Behaviour { leader: false, ..Behaviour::default() });
    let leader = Fake::start(Behaviour::default());
    let line = |endpoints: &str| {
        format!("--endpoints={endpoints} --target-leader --conns=4 --clients=4 put --total=40")
    };
    let both = format!("{},127.0.0.1:1,{}", follower.address, leader.address);
    assert_eq!(benchmark(&line(&both)).0, 0);
    assert_eq!(leader.seen.puts.lock().unwrap().len(), 40);
    assert_eq!(follower.seen.puts.lock().unwrap().len(), 0);
    let (status, _, complaints) = benchmark(&line(&follower.address));
    assert_eq!((status, complaints.as_str()), (1, "Error: no endpoint is the leader\n"));
}

#[test]
fn compactions_run_beside_the_load() {
    let fake = Fake::start(Behaviour::default());
    let (status, report, _) = benchmark(&format!(
        "--endpoints={} put --rate=200 --total=60 --compact-interval=50ms \
         --compact-index-delta=1500",
        fake.address
    ));
    assert_eq!(status, 0);
    assert!(report.contains("60 succeeded, 0 failed"), "{report}");
    let compactions = fake.seen.compactions.lock().unwrap();
    assert!((2..=6).contains(&compactions.len()), "{compactions:?}");
    assert!(compactions.iter().all(|revision| *revision == 3_500));
}

#[test]
fn a_watched_process_is_reported() {
    let fake = Fake::start(Behaviour::default());
    let line = format!("--endpoints={} --server-pid={}", fake.address, std::process::id());
    let (status, json, _) = benchmark(&format!("{line} --json put --total=2000"));
    assert_eq!(status, 0);
    assert!(figure(&json, "rss_bytes") >= figure(&json, "rss_anon_bytes"), "{json}");
    assert!(figure(&json, "rss_anon_bytes") > 0.0);
    let (_, report, _) = benchmark(&format!("{line} put --total=10"));
    assert!(report.contains("us CPU per request ("), "{report}");
    assert!(report.contains("MiB (anonymous "), "{report}");
}
