//! Leases, end to end: real processes, real clients, real time.
//!
//! The same script runs against a member and, where its binary is at hand, against etcd itself, and
//! must be answered alike, field by field. `ETCORE_LONG=1` lets a hundred thousand leases end
//! together instead of a few thousand, and measures etcd beside etcore.

use std::ops::Range;
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;
use tokio::sync::mpsc;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use crate::harness::{Client, DRIVERS, Etcd, Setup, block_on, http_get, is_available, oracle};

/// A client of the Lease service.
#[derive(Clone)]
struct Leases {
    kv: Client,
    channel: Channel,
}

/// A KeepAlive stream.
struct KeepAlive {
    requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    answers: Streaming<pb::LeaseKeepAliveResponse>,
}

impl KeepAlive {
    async fn renew(&mut self, id: i64) -> i64 {
        self.requests.send(pb::LeaseKeepAliveRequest { id }).await.expect("the stream is open");
        let answer = self.answers.message().await.expect("no error").expect("an answer");
        assert_eq!(answer.id, id);
        answer.ttl
    }
}

impl Leases {
    async fn connect(setup: &Setup) -> Self {
        let endpoint = Endpoint::from_shared(setup.endpoint()).expect("a URL");
        let channel = endpoint.connect().await.expect("the member listens");
        Self { kv: Client::connect(setup).await, channel }
    }

    async fn grant(&self, id: i64, ttl: i64) -> Result<pb::LeaseGrantResponse, Status> {
        self.kv.lease_grant(pb::LeaseGrantRequest { id, ttl }).await
    }

    async fn revoke(&self, id: i64) -> Result<pb::LeaseRevokeResponse, Status> {
        self.kv.unary("/etcdserverpb.Lease/LeaseRevoke", pb::LeaseRevokeRequest { id }).await
    }

    async fn time_to_live(&self, id: i64, keys: bool) -> pb::LeaseTimeToLiveResponse {
        let request = pb::LeaseTimeToLiveRequest { id, keys };
        self.kv.unary("/etcdserverpb.Lease/LeaseTimeToLive", request).await.expect("an answer")
    }

    async fn list(&self) -> Vec<i64> {
        let request = pb::LeaseLeasesRequest {};
        let answer: pb::LeaseLeasesResponse =
            self.kv.unary("/etcdserverpb.Lease/LeaseLeases", request).await.expect("an answer");
        answer.leases.iter().map(|lease| lease.id).collect()
    }

    async fn keep_alive(&self) -> KeepAlive {
        let (requests, stream) = mpsc::channel(1 << 10);
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.expect("connected");
        let codec = ProstCodec::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
        let request = tonic::Request::new(ReceiverStream::new(stream));
        // The head comes with the first answer.
        let first = pb::LeaseKeepAliveRequest { id: i64::MAX };
        requests.send(first).await.expect("room");
        let response = grpc.streaming(request, path, codec).await.expect("a stream");
        let mut answers: Streaming<pb::LeaseKeepAliveResponse> = response.into_inner();
        let answer = answers.message().await.expect("no error").expect("an answer");
        assert_eq!((answer.id, answer.ttl), (i64::MAX, 0), "no such lease");
        KeepAlive { requests, answers }
    }

    async fn put(&self, key: &str, lease: i64) -> Result<pb::PutResponse, Status> {
        self.kv.put(put(key, lease)).await
    }

    async fn count(&self, prefix: &str, revision: i64) -> i64 {
        let request = pb::RangeRequest {
            key: prefix.to_owned().into(),
            range_end: format!("{prefix}~").into(),
            count_only: true,
            serializable: true,
            revision,
            ..Default::default()
        };
        self.kv.range(request).await.expect("range").count
    }

    async fn revision(&self) -> i64 {
        let request = pb::RangeRequest { key: "x".into(), ..Default::default() };
        self.kv.range(request).await.expect("range").header.expect("header").revision
    }
}

fn put(key: &str, lease: i64) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: "v".into(), lease, ..Default::default() }
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn delete(key: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() }
}

/// Runs a test against a fresh member on each driver.
fn on_each_driver(extra: &[&str], test: impl AsyncFn(&Leases, &Setup)) {
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup =
            extra.iter().fold(Setup::new(dir.path(), driver), |setup, flag| setup.with(flag));
        let _member = setup.start();
        block_on(async { test(&Leases::connect(&setup).await, &setup).await });
    }
}

/// What is said, without the ids of the cluster.
fn told<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>) -> String {
    match answer {
        Ok(answer) => {
            let text = format!("{answer:?}");
            // A header begins with the ids, which differ from run to run.
            let text = match text.split_once("ResponseHeader { cluster_id: ") {
                Some((before, after)) => {
                    let after = after.split_once("revision").map_or("", |(_, after)| after);
                    format!("{before}revision{after}")
                }
                None => text,
            };
            format!("{what}: {text}")
        }
        Err(status) => format!("{what}: {:?} {}", status.code(), status.message()),
    }
}

/// Everything about leases whose answer is not a matter of time, told line by line.
async fn script(leases: &Leases) -> Vec<String> {
    let kv = &leases.kv;
    let mut lines = Vec::new();
    let mut tell = |line: String| lines.push(line);
    // Grants.
    for (id, ttl) in [(1, 1000), (1, 1000), (-5, 2000), (2, 0), (3, -7), (4, 9_000_000_000)] {
        tell(told(&format!("grant {id} {ttl}"), leases.grant(id, ttl).await));
    }
    tell(told("grant too long", leases.grant(9, 9_000_000_001).await));
    let any = leases.grant(0, 3000).await.expect("an id is chosen");
    assert!(any.id > 0);
    tell(format!("grant 0: ttl {} error {:?}", any.ttl, any.error));
    tell(told("revoke the chosen one", leases.revoke(any.id).await));
    // Puts.
    for (key, lease) in [("c", 1), ("a", 1), ("b", 1), ("other", -5), ("x", 77)] {
        tell(told(&format!("put {key} {lease}"), leases.put(key, lease).await));
    }
    tell(told("keys", Ok(sorted(leases.time_to_live(1, true).await))));
    tell(told("no keys", Ok(sorted(leases.time_to_live(1, false).await))));
    tell(told("unknown", Ok(leases.time_to_live(99, true).await)));
    tell(told("move", leases.put("b", -5).await));
    tell(told(
        "move with the old value",
        kv.put(pb::PutRequest { prev_kv: true, ..put("b", 1) }).await,
    ));
    tell(told("detach", leases.put("c", 0).await));
    tell(told("keys", Ok(sorted(leases.time_to_live(1, true).await))));
    let ignore_lease = pb::PutRequest { ignore_lease: true, ..put("a", 0) };
    tell(told("ignore lease", kv.put(ignore_lease.clone()).await));
    let both = pb::PutRequest { ignore_lease: true, ..put("a", 1) };
    tell(told("ignore a lease and give one", kv.put(both).await));
    let missing = pb::PutRequest { ignore_lease: true, ..put("missing", 0) };
    tell(told("ignore the lease of nothing", kv.put(missing).await));
    let value = pb::PutRequest { ignore_value: true, value: "".into(), ..put("a", -5) };
    tell(told("ignore value", kv.put(value).await));
    tell(told("keys", Ok(sorted(leases.time_to_live(-5, true).await))));
    tell(told("back", leases.put("a", 1).await));
    tell(told("delete", kv.delete_range(delete("a")).await));
    tell(told("again without", leases.put("a", 0).await));
    tell(told("keys", Ok(sorted(leases.time_to_live(1, true).await))));
    // Transactions: what is chosen is attached, what is refused is not.
    let compare = |lease: i64| pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Lease as i32,
        key: "b".into(),
        range_end: "".into(),
        target_union: Some(TargetUnion::Lease(lease)),
    };
    for lease in [1, -5] {
        let txn = pb::TxnRequest {
            compare: vec![compare(lease)],
            success: vec![
                op(Request::RequestPut(put("t1", 1))),
                op(Request::RequestDeleteRange(delete("b"))),
                op(Request::RequestTxn(Box::new(pb::TxnRequest {
                    success: vec![op(Request::RequestPut(put("t2", 1)))],
                    ..Default::default()
                }))),
            ],
            failure: vec![op(Request::RequestPut(put("t3", -5)))],
        };
        tell(told(&format!("txn if {lease}"), kv.txn(txn).await));
        tell(told("keys of 1", Ok(sorted(leases.time_to_live(1, true).await))));
        tell(told("keys of -5", Ok(sorted(leases.time_to_live(-5, true).await))));
    }
    let refused = pb::TxnRequest {
        success: vec![
            op(Request::RequestPut(put("r1", 1))),
            op(Request::RequestPut(put("r2", 88))),
        ],
        ..Default::default()
    };
    tell(told("txn with an unknown lease", kv.txn(refused).await));
    let late = pb::TxnRequest {
        success: vec![
            op(Request::RequestPut(put("r3", 1))),
            op(Request::RequestRange(pb::RangeRequest {
                key: "r3".into(),
                revision: 1 << 40,
                ..Default::default()
            })),
        ],
        ..Default::default()
    };
    tell(told("txn with a revision to come", kv.txn(late).await));
    tell(told("keys of 1", Ok(sorted(leases.time_to_live(1, true).await))));
    // Renewals.
    let mut stream = leases.keep_alive().await;
    for id in [1, -5, 99, 2, 4] {
        tell(format!("renew {id}: {}", stream.renew(id).await));
    }
    // Lists: those that end first in front.
    tell(format!("list {:?}", leases.list().await));
    // Revocations.
    let before = leases.revision().await;
    for id in [1, 1, 99, 2, 3, 4, -5] {
        tell(told(&format!("revoke {id}"), leases.revoke(id).await));
        tell(format!("revision {}", leases.revision().await - before));
    }
    tell(format!("list {:?}", leases.list().await));
    tell(told("gone", Ok(leases.time_to_live(1, true).await)));
    let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    tell(told("what is left", kv.range(all).await));
    tell(format!("renew a revoked one: {}", stream.renew(1).await));
    tell(told("put with a revoked one", leases.put("x", 1).await));
    tell(told("grant again", leases.grant(1, 50).await));
    tell(told("keys of the new one", Ok(leases.time_to_live(1, true).await)));
    drop(stream.requests);
    tell(told("the stream ends with its client", stream.answers.message().await));
    lines
}

/// Keys come in no order from etcd.
fn sorted(mut answer: pb::LeaseTimeToLiveResponse) -> pb::LeaseTimeToLiveResponse {
    answer.keys.sort();
    answer
}

#[test]
fn leases_are_told_of_as_etcd_tells_of_them() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let theirs = oracle("etcd").map(|binary| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), "portable");
        let _etcd = Etcd::start(&binary, &setup);
        block_on(async { script(&Leases::connect(&setup).await).await })
    });
    on_each_driver(&[], async |leases, setup| {
        let ours = script(leases).await;
        for (number, line) in ours.iter().enumerate() {
            let theirs = theirs.as_ref().map(|theirs| &theirs[number]);
            assert_eq!(Some(line), theirs.or(Some(line)), "{}", setup.driver);
        }
        assert!(ours.len() > 60, "{} lines", ours.len());
    });
}

#[test]
fn a_lease_ends_in_time_with_all_its_keys_in_one_revision() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(&[], async |leases, setup| {
        let granted = Instant::now();
        leases.grant(7, 2).await.expect("granted");
        leases.grant(8, 1000).await.expect("granted");
        for key in ["k/c", "k/a", "k/b"] {
            leases.put(key, 7).await.expect("put");
        }
        leases.put("k/stays", 8).await.expect("put");
        let before = leases.revision().await;
        let gone = loop {
            let count = leases.count("k/", 0).await;
            if count < 4 {
                assert_eq!(count, 1, "all at once");
                break granted.elapsed();
            }
            assert!(granted.elapsed() < Duration::from_secs(6), "it does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert!(gone >= Duration::from_secs(2), "early: {gone:?}");
        assert_eq!(leases.revision().await, before + 1);
        assert_eq!(
            (leases.count("k/", before).await, leases.count("k/", before + 1).await),
            (4, 1)
        );
        assert_eq!(leases.time_to_live(7, false).await.ttl, -1);
        assert_eq!(leases.list().await, [8]);
        let (_, metrics) = http_get(setup.client_port, "/metrics");
        for line in [
            "etcd_debugging_lease_granted_total 2",
            "etcd_debugging_lease_revoked_total 1",
            "etcd_debugging_server_lease_expired_total 1",
            "etcd_debugging_lease_ttl_total_sum 1002",
        ] {
            assert!(metrics.lines().any(|other| other == line), "{line} is not in\n{metrics}");
        }
    });
}

#[test]
fn a_lease_that_is_kept_alive_lives_and_ends_when_nobody_does() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(&[], async |leases, _| {
        leases.grant(7, 2).await.expect("granted");
        leases.put("k", 7).await.expect("put");
        let mut stream = leases.keep_alive().await;
        let mut last = Instant::now();
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            last = Instant::now();
            assert_eq!(stream.renew(7).await, 2);
        }
        while leases.kv.get("k").await.is_some() {
            assert!(last.elapsed() < Duration::from_secs(6), "it does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(last.elapsed() >= Duration::from_secs(2));
        assert_eq!(stream.renew(7).await, 0, "the stream is open, the lease is gone");
    });
}

#[test]
fn one_stream_keeps_thousands_of_leases_alive() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(&[], async |leases, _| {
        let count = 5000;
        for id in 1..=count {
            leases.grant(id, 1000).await.expect("granted");
        }
        let KeepAlive { requests, mut answers } = leases.keep_alive().await;
        let sender = tokio::spawn(async move {
            for id in 1..=count + 10 {
                requests.send(pb::LeaseKeepAliveRequest { id }).await.expect("open");
            }
        });
        for id in 1..=count + 10 {
            let answer = answers.message().await.expect("no error").expect("an answer");
            let ttl = if id <= count { 1000 } else { 0 };
            assert_eq!((answer.id, answer.ttl), (id, ttl));
        }
        sender.await.expect("sent");
        assert!(answers.message().await.expect("no error").is_none());
    });
}

#[test]
fn a_killed_member_comes_back_with_its_leases_their_keys_and_their_whole_time() {
    let _turn = crate::harness::turn::of_file(module_path!());
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let member = setup.start();
        block_on(async {
            let leases = Leases::connect(&setup).await;
            for id in 1..=3 {
                leases.grant(id, 100).await.expect("granted");
                for key in ["a", "b", "c"] {
                    leases.put(&format!("{key}{id}"), id).await.expect("put");
                }
            }
            leases.put("b1", 2).await.expect("moved");
            leases.put("c1", 0).await.expect("detached");
            leases.revoke(3).await.expect("revoked");
            // All this reaches the page file; what follows stays in the log alone.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert!(leases.time_to_live(1, false).await.ttl <= 97);
            leases.grant(4, 100).await.expect("granted");
            leases.put("a4", 4).await.expect("put");
            leases.put("a2", 4).await.expect("moved");
        });
        member.kill();
        let _member = setup.start();
        block_on(async {
            let leases = Leases::connect(&setup).await;
            let mut ids = leases.list().await;
            ids.sort_unstable();
            assert_eq!(ids, [1, 2, 4]);
            for (id, keys) in [(1, vec!["a1"]), (2, vec!["b1", "b2", "c2"]), (4, vec!["a2", "a4"])]
            {
                let found = leases.time_to_live(id, true).await;
                assert_eq!(found.keys, keys, "{driver}: lease {id}");
                assert!(found.ttl >= 99 && found.granted_ttl == 100, "{found:?}");
            }
            assert_eq!(leases.time_to_live(3, true).await.ttl, -1);
            let before = leases.revision().await;
            leases.revoke(2).await.expect("revoked");
            assert_eq!(leases.revision().await, before + 1);
            for (key, is_there) in [("a1", true), ("b1", false), ("b2", false), ("c1", true)] {
                assert_eq!(leases.kv.get(key).await.is_some(), is_there, "{key}");
            }
        });
    }
}

#[test]
fn what_a_checkpoint_left_of_a_lease_is_left_after_a_restart() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let gates = "--feature-gates=LeaseCheckpoint=true,LeaseCheckpointPersist=true";
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup =
            Setup::new(dir.path(), driver).with(gates).with("--lease-checkpoint-interval=1s");
        let member = setup.start();
        block_on(async {
            let leases = Leases::connect(&setup).await;
            leases.grant(1, 1000).await.expect("granted");
            leases.grant(2, 1000).await.expect("granted");
            tokio::time::sleep(Duration::from_millis(4000)).await;
            // The renewal clears the checkpoint, through the log.
            let mut stream = leases.keep_alive().await;
            assert_eq!(stream.renew(2).await, 1000);
            assert!(leases.time_to_live(2, false).await.ttl >= 990);
        });
        member.kill();
        let member = setup.start();
        block_on(async {
            let leases = Leases::connect(&setup).await;
            let one = leases.time_to_live(1, false).await;
            assert!(one.ttl <= 999 && one.ttl >= 990 && one.granted_ttl == 1000, "{one:?}");
            let two = leases.time_to_live(2, false).await;
            assert!(two.ttl > one.ttl, "{two:?} was renewed later than {one:?}");
        });
        member.terminate();
    }
}

#[test]
fn a_stop_ends_keep_alive_streams_at_once() {
    let _turn = crate::harness::turn::of_file(module_path!());
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let mut member = setup.start();
        block_on(async {
            let leases = Leases::connect(&setup).await;
            leases.grant(1, 1000).await.expect("granted");
            let mut stream = leases.keep_alive().await;
            assert_eq!(stream.renew(1).await, 1000);
            let asked = Instant::now();
            member.terminate();
            let error = stream.answers.message().await.expect_err("the member stops");
            assert_eq!(error.message(), "etcdserver: server stopped");
            assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        });
        assert!(member.wait().success());
    }
}

/// What the end of many leases at once looked like; printed as a whole.
#[derive(Debug)]
#[allow(dead_code)]
struct Ended {
    /// Milliseconds from a lease's earliest end to when its key was seen to be gone.
    late_p50: f64,
    late_p99: f64,
    late_max: f64,
    /// Milliseconds of another client's puts, before and meanwhile.
    idle_p50: f64,
    idle_p99: f64,
    meanwhile_p50: f64,
    meanwhile_p99: f64,
    puts_meanwhile: usize,
    /// CPU time of the server for one lease that ends, the other client's puts included, in
    /// microseconds.
    cpu_us_per_end: f64,
    /// Anonymous memory of the server for one lease without a key.
    bytes_per_lease: f64,
}

fn percentile(sorted: &[Duration], hundredths: usize) -> f64 {
    let at = (sorted.len() * hundredths / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |value| value.as_secs_f64() * 1000.0)
}

/// CPU time of a process so far, in microseconds.
fn cpu_us(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields = stat.rsplit_once(')').expect("a name").1;
    let ticks = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>());
    ticks.map(|ticks| ticks.expect("a number") * 10_000.0).sum()
}

fn anonymous_bytes(pid: u32) -> f64 {
    crate::harness::rss_anon_kib(pid) as f64 * 1024.0
}

/// As scattered as those that a server chooses.
fn id_of(number: usize) -> i64 {
    ((number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1) as i64
}

/// Has `count` leases of `ttl_s`, each with a key, renewed in one go, so that they end in one go.
async fn end_together(setup: &Setup, pid: u32, count: usize, ttl_s: u64) -> Ended {
    let leases = Leases::connect(setup).await;
    // What the first half needs besides is not counted for the second.
    grant_many(&leases, 0..count / 2, ttl_s).await;
    let half_bytes = anonymous_bytes(pid);
    grant_many(&leases, count / 2..count, ttl_s).await;
    let bytes_per_lease = (anonymous_bytes(pid) - half_bytes) / (count - count / 2) as f64;
    for first in (0..count).step_by(100) {
        let put =
            |number| op(Request::RequestPut(put(&format!("leased/{number:06}"), id_of(number))));
        let numbers = first..count.min(first + 100);
        let success = numbers.map(put).collect();
        leases.kv.txn(pb::TxnRequest { success, ..Default::default() }).await.expect("puts");
    }
    // All deadlines within the time that this takes.
    let KeepAlive { requests, mut answers } = leases.keep_alive().await;
    let sender = tokio::spawn(async move {
        let mut sent = Vec::new();
        for id in (0..count).map(id_of) {
            sent.push(Instant::now());
            requests.send(pb::LeaseKeepAliveRequest { id }).await.expect("open");
        }
        sent
    });
    for _ in 0..count {
        let answer = answers.message().await.expect("no error").expect("an answer");
        assert!(answer.ttl as u64 == ttl_s, "{answer:?}");
    }
    let sent = sender.await.expect("sent");
    let ttl = Duration::from_secs(ttl_s);
    let (first_end, last_end) = (sent[0] + ttl, sent[count - 1] + ttl);
    let puts = tokio::spawn(put_until(Leases::connect(setup).await, last_end, count));
    let watcher = Leases::connect(setup).await;
    tokio::time::sleep_until((first_end - Duration::from_millis(300)).into()).await;
    assert_eq!(watcher.count("leased/", 0).await as usize, count);
    let mut polls: Vec<(Instant, usize)> = Vec::new();
    let cpu_before_us = cpu_us(pid);
    let mut gone = 0;
    loop {
        gone = gone_of(&watcher, gone, count).await;
        polls.push((Instant::now(), gone));
        if gone == count {
            break;
        }
        assert!(last_end.elapsed() < Duration::from_secs(400), "{gone} leases are gone");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let last_gone = polls.last().expect("one at least").0;
    let cpu_us_per_end = (cpu_us(pid) - cpu_before_us) / count as f64;
    let puts = puts.await.expect("no panic");
    assert_eq!(watcher.count("leased/", 0).await, 0);
    // The n-th to be renewed is the n-th to go.
    let mut late = Vec::new();
    for (at, gone) in &polls {
        let may_be_gone = sent.partition_point(|sent| *sent + ttl <= *at);
        assert!(*gone <= may_be_gone, "{gone} are gone when {may_be_gone} may be");
        late.extend(sent[late.len()..*gone].iter().map(|sent| *at - (*sent + ttl)));
    }
    late.sort_unstable();
    let took = |from: Instant, to: Instant| {
        let within = puts.iter().filter(|(start, _)| (from..to).contains(start));
        let mut took: Vec<Duration> = within.map(|(_, took)| *took).collect();
        took.sort_unstable();
        took
    };
    let idle = took(last_end - ttl, first_end);
    let meanwhile = took(first_end, last_gone);
    assert!(leases.list().await.is_empty());
    Ended {
        late_p50: percentile(&late, 50),
        late_p99: percentile(&late, 99),
        late_max: percentile(&late, 100),
        idle_p50: percentile(&idle, 50),
        idle_p99: percentile(&idle, 99),
        meanwhile_p50: percentile(&meanwhile, 50),
        meanwhile_p99: percentile(&meanwhile, 99),
        puts_meanwhile: meanwhile.len(),
        cpu_us_per_end,
        bytes_per_lease,
    }
}

/// How many are gone from the first one on, when `gone` were at least. It looks at a thousand at a
/// time: counting all of them again and again would be the heaviest load of all.
async fn gone_of(leases: &Leases, mut gone: usize, count: usize) -> usize {
    while gone < count {
        let block = gone / 1000;
        let size = count.min((block + 1) * 1000) - block * 1000;
        let left = leases.count(&format!("leased/{block:03}"), 0).await as usize;
        gone = block * 1000 + (size - left);
        if left > 0 {
            break;
        }
    }
    gone
}

async fn grant_many(leases: &Leases, numbers: Range<usize>, ttl_s: u64) {
    let mut grants = tokio::task::JoinSet::new();
    for worker in 0..64 {
        let (leases, numbers) = (leases.clone(), numbers.clone());
        grants.spawn(async move {
            for number in numbers.skip(worker).step_by(64) {
                leases.grant(id_of(number), ttl_s as i64).await.expect("granted");
            }
        });
    }
    grants.join_all().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// Puts one after the other until the leases are gone: when each began and how long it took.
async fn put_until(leases: Leases, last_end: Instant, count: usize) -> Vec<(Instant, Duration)> {
    let mut puts = Vec::new();
    loop {
        let start = Instant::now();
        // One that fails has taken as long as it took; only etcd's fail, by their time-out.
        let _ = leases.put("busy", 0).await;
        puts.push((start, start.elapsed()));
        if puts.len().is_multiple_of(64)
            && start > last_end + Duration::from_millis(500)
            && leases.count("leased/", 0).await == 0
        {
            return puts;
        }
        // Light enough to leave the figures to the server.
        tokio::time::sleep(Duration::from_millis(if count > 10_000 { 1 } else { 2 })).await;
    }
}

#[test]
fn leases_that_end_together_are_gone_soon_and_hold_up_nobody() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let long = std::env::var_os("ETCORE_LONG").is_some();
    let (count, ttl_s) = if long { (100_000, 40) } else { (5000, 8) };
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    };
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with_long_segments();
        let member = setup.start();
        let ended = runtime().block_on(end_together(&setup, member.pid(), count, ttl_s));
        eprintln!("{driver}: {count} leases: {ended:.2?}");
        assert!(ended.late_max <= 2000.0, "{ended:?}");
        // A machine that does other things besides may hold up a put by itself.
        assert!(ended.meanwhile_p99 <= 2.0 * ended.idle_p99 + 30.0, "{ended:?}");
        let (_, metrics) = http_get(setup.client_port, "/metrics");
        let expired = format!("etcd_debugging_server_lease_expired_total {count}");
        assert!(metrics.contains(&expired), "{metrics}");
        if long {
            break;
        }
    }
    if long && let Some(binary) = oracle("etcd") {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), "portable");
        let etcd = Etcd::start(&binary, &setup);
        // It revokes a thousand a second at most, so it gets fewer.
        let count = count / 5;
        let ended = runtime().block_on(end_together(&setup, etcd.pid(), count, ttl_s));
        eprintln!("etcd: {count} leases: {ended:.2?}");
    }
}
