//! A member under mixed load for long: memory, descriptors, file size and latency must not creep.
//!
//! Puts, conditional puts, deletes, short and long lists, watches that come and go, leases that are
//! kept alive and leases that end, on connections that are made anew now and then, with a
//! compaction every minute. In CI half a minute with a compaction every two seconds;
//! `ETCORE_LONG=1` takes an hour (`ETCORE_SOAK_S` another time) and prints the curve. It must never
//! be judged by single values: machines have moments.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;

use crate::harness::watch::Watch;
use crate::harness::{Client, Setup, block_on, is_available};

/// Keys that are written in an hour, and in CI; each has about so many bytes of value.
const KEYS: (u64, u64) = (20_000, 500);
const VALUE_BYTES: u64 = 400;

#[derive(Default)]
struct Load {
    stop: AtomicBool,
    operations: AtomicU64,
    events: AtomicU64,
    put_us: Mutex<Vec<u32>>,
    range_us: Mutex<Vec<u32>>,
}

/// What one sample saw.
struct Sample {
    at_s: u64,
    anonymous_kib: u64,
    descriptors: usize,
    file_kib: u64,
    in_use_kib: u64,
    wal_files: usize,
    put_us: (u32, u32),
    range_us: (u32, u32),
}

/// A sequence of numbers from a seed (xorshift64*), and how many keys there are.
struct Dice(u64, u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn key(&mut self) -> String {
        format!("key/{:06}", self.below(self.1))
    }

    fn value(&mut self) -> Vec<u8> {
        let len = VALUE_BYTES / 2 + self.below(VALUE_BYTES);
        vec![b'a' + u8::try_from(self.below(26)).unwrap(); usize::try_from(len).unwrap()]
    }
}

fn put(dice: &mut Dice, lease: i64) -> pb::PutRequest {
    pb::PutRequest {
        key: dice.key().into(),
        value: dice.value().into(),
        lease,
        ..Default::default()
    }
}

fn list(key: String, limit: i64) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        range_end: "key0".into(),
        limit,
        serializable: limit % 2 == 0,
        ..Default::default()
    }
}

fn note(times: &Mutex<Vec<u32>>, began: Instant) {
    let took = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
    times.lock().unwrap().push(took);
}

/// One client: some 100 operations a second until told to stop.
async fn operate(setup: Setup, load: Arc<Load>, seed: u64, keys: u64) {
    let mut dice = Dice(seed * 0x9e37_79b9 + 1, keys);
    let mut client = Client::connect(&setup).await;
    let mut clock = tokio::time::interval(Duration::from_millis(10));
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut lease = 0;
    while !load.stop.load(Ordering::Relaxed) {
        clock.tick().await;
        load.operations.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        match dice.below(100) {
            0..45 => {
                client.put(put(&mut dice, 0)).await.expect("put");
                note(&load.put_us, began);
            }
            45..60 => {
                let request = list(dice.key(), i64::try_from(1 + dice.below(10)).unwrap());
                client.range(request).await.expect("range");
                note(&load.range_us, began);
            }
            60..63 => {
                client.range(list("key/".into(), 5_000)).await.expect("a long list");
            }
            63..75 => {
                let key = dice.key();
                let op = |request| pb::RequestOp { request: Some(request) };
                let request = pb::TxnRequest {
                    compare: vec![pb::Compare {
                        key: key.clone().into(),
                        target: pb::compare::CompareTarget::Version as i32,
                        result: pb::compare::CompareResult::Greater as i32,
                        ..Default::default()
                    }],
                    success: vec![op(pb::request_op::Request::RequestDeleteRange(
                        pb::DeleteRangeRequest { key: key.into(), ..Default::default() },
                    ))],
                    failure: vec![op(pb::request_op::Request::RequestPut(put(&mut dice, 0)))],
                };
                client.txn(request).await.expect("txn");
            }
            75..85 => {
                // A lease of two seconds that nobody renews: its keys go with it.
                let grant = pb::LeaseGrantRequest { ttl: 2, id: 0 };
                if lease == 0 || dice.below(10) == 0 {
                    lease = client.lease_grant(grant).await.expect("grant").id;
                }
                if client.put(put(&mut dice, lease)).await.is_err() {
                    lease = 0;
                }
            }
            85..95 => {
                client.get(&dice.key()).await;
                note(&load.range_us, began);
            }
            95..99 => {
                let mut watch = Watch::open(&client).await;
                let request = pb::WatchCreateRequest {
                    key: "key/".into(),
                    range_end: "key0".into(),
                    prev_kv: true,
                    ..Default::default()
                };
                watch.create(request).await;
                for _ in 0..3 {
                    let wait = tokio::time::timeout(Duration::from_millis(200), watch.next());
                    if let Ok(Ok(response)) = wait.await {
                        load.events.fetch_add(response.events.len() as u64, Ordering::Relaxed);
                    }
                }
            }
            _ => client = Client::connect(&setup).await,
        }
    }
}

/// A watcher of everything that stays, and checks that revisions ascend without a gap larger than
/// what leases and other keys explain: at least that they ascend.
async fn watch_all(setup: Setup, load: Arc<Load>) {
    let mut watch = Watch::connect(&setup).await;
    let request =
        pb::WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    watch.create(request).await;
    let mut last = 0;
    while !load.stop.load(Ordering::Relaxed) {
        let Ok(response) = tokio::time::timeout(Duration::from_millis(500), watch.next()).await
        else {
            continue;
        };
        let response = response.expect("the stream stays open");
        for event in &response.events {
            let revision = event.kv.as_ref().expect("a key").mod_revision;
            assert!(revision >= last, "revision {revision} after {last}");
            last = revision;
        }
        load.events.fetch_add(response.events.len() as u64, Ordering::Relaxed);
    }
}

fn percentiles(times: &Mutex<Vec<u32>>) -> (u32, u32) {
    let mut times = std::mem::take(&mut *times.lock().unwrap());
    times.sort_unstable();
    let at = |hundredths: usize| times.get(times.len() * hundredths / 100).copied().unwrap_or(0);
    (at(50), at(99))
}

fn sample(load: &Load, pid: u32, data_dir: &Path, in_use: i64, at_s: u64) -> Sample {
    let count = |path: &Path| std::fs::read_dir(path).map_or(0, Iterator::count);
    Sample {
        at_s,
        anonymous_kib: crate::harness::rss_anon_kib(pid),
        descriptors: count(Path::new(&format!("/proc/{pid}/fd"))),
        file_kib: std::fs::metadata(data_dir.join("member/etcore.db")).unwrap().len() >> 10,
        in_use_kib: u64::try_from(in_use).unwrap() >> 10,
        wal_files: count(&data_dir.join("member/wal")),
        put_us: percentiles(&load.put_us),
        range_us: percentiles(&load.range_us),
    }
}

fn curve(samples: &[Sample]) -> String {
    let mut text =
        "    s  anon MiB  fds  file MiB  in use  wal  put p50/p99 µs  range p50/p99 µs\n"
            .to_owned();
    let step = (samples.len() / 40).max(1);
    for sample in samples.iter().step_by(step) {
        let _ = writeln!(
            text,
            "{:5} {:9.1} {:4} {:9.1} {:7.1} {:4} {:7} {:7} {:8} {:8}",
            sample.at_s,
            sample.anonymous_kib as f64 / 1024.0,
            sample.descriptors,
            sample.file_kib as f64 / 1024.0,
            sample.in_use_kib as f64 / 1024.0,
            sample.wal_files,
            sample.put_us.0,
            sample.put_us.1,
            sample.range_us.0,
            sample.range_us.1,
        );
    }
    text
}

/// The value below which lies this share of the samples, in hundredths.
fn quantile(samples: &[Sample], hundredths: usize, measure: impl Fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(measure).collect();
    values.sort_unstable();
    values.get(values.len() * hundredths / 100).copied().unwrap_or(0)
}

#[test]
fn an_hour_of_mixed_load_leaves_everything_flat() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let long = std::env::var_os("ETCORE_LONG").is_some();
    let seconds = std::env::var("ETCORE_SOAK_S").ok().and_then(|text| text.parse().ok());
    let (total_s, compact_s, sample_s, clients, keys) = match (seconds, long) {
        (Some(seconds), _) => (seconds, 60, 10, 10, KEYS.0),
        (None, true) => (3600, 60, 10, 10, KEYS.0),
        (None, false) => (30, 2, 1, 4, KEYS.1),
    };
    let driver = if is_available("uring") { "uring" } else { "portable" };
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), driver).with_long_segments();
    let member = setup.start();
    let load = Arc::new(Load::default());
    let mut samples = Vec::new();
    block_on(async {
        let mut tasks = Vec::new();
        for seed in 0..clients {
            tasks.push(tokio::spawn(operate(setup.clone(), load.clone(), seed + 1, keys)));
        }
        tasks.push(tokio::spawn(watch_all(setup.clone(), load.clone())));
        let client = Client::connect(&setup).await;
        let began = Instant::now();
        let mut next_compaction_s = compact_s;
        let mut compact_to = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(sample_s)).await;
            let at_s = began.elapsed().as_secs();
            let status = client.status(pb::StatusRequest::default()).await.expect("status");
            samples.push(sample(&load, member.pid(), &setup.data_dir, status.db_size_in_use, at_s));
            if at_s >= next_compaction_s {
                next_compaction_s += compact_s;
                if compact_to > 0 {
                    let request = pb::CompactionRequest { revision: compact_to, physical: false };
                    client.compact(request).await.expect("compact");
                }
                compact_to = status.header.expect("a header").revision;
            }
            if at_s >= total_s {
                break;
            }
        }
        load.stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.expect("no client has failed");
        }
    });
    let curve = curve(&samples);
    eprintln!(
        "{} operations, {} events in {total_s} s\n{curve}",
        load.operations.load(Ordering::Relaxed),
        load.events.load(Ordering::Relaxed),
    );
    // The first third warms up; the last third is held against the second.
    let third = samples.len() / 3;
    let (second, last) = (&samples[third..2 * third], &samples[2 * third..]);
    let flat = |what: &str, slack: u64, measure: &dyn Fn(&Sample) -> u64| {
        let (before, after) = (quantile(second, 50, measure), quantile(last, 50, measure));
        assert!(
            after <= before + before / 10 + slack,
            "{what} grew from {before} to {after}\n{curve}"
        );
    };
    flat("anonymous memory (KiB)", 4 << 10, &|sample| sample.anonymous_kib);
    flat("descriptors", 8, &|sample| sample.descriptors as u64);
    flat("the page file (KiB)", 8 << 10, &|sample| sample.file_kib);
    flat("what is in use of it (KiB)", 8 << 10, &|sample| sample.in_use_kib);
    flat("log segments", 2, &|sample| sample.wal_files as u64);
    // What else runs on the machine only adds to latencies: their good moments are compared.
    let quick = |what: &str, measure: &dyn Fn(&Sample) -> u64| {
        let (before, after) = (quantile(second, 10, measure), quantile(last, 10, measure));
        assert!(after <= 2 * before + 1_000, "{what} grew from {before} to {after} µs\n{curve}");
    };
    quick("put p50", &|sample| u64::from(sample.put_us.0));
    quick("put p99", &|sample| u64::from(sample.put_us.1));
    quick("range p50", &|sample| u64::from(sample.range_us.0));
    drop(member);
}
