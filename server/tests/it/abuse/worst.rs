//! The worst requests, sizes and histories: whatever a member is asked to do, no step of a thread
//! that serves clients or raft takes long. The members' own histograms say so, in processor time:
//! a machine that does other things besides may stop any thread for any time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcore_proto::grpc::CallOptions;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message;

use crate::harness::cluster::Cluster;
use crate::harness::raw::Raw;
use crate::harness::watch::Watch;
use crate::harness::{Client, DRIVERS, Member, Setup, block_on, http_get, is_available};
use pb::request_op::Request;

/// Calls of a flood that are under way.
const IN_FLIGHT: usize = 512;
/// What no step may take, in seconds, as the histogram has it. A build for tests takes some times
/// what a member that serves does, and so does a busy machine; what is not done in slices takes a
/// hundred times as long.
const STEP_S_MAX: f64 = 0.032;

/// How many keys and leases: a million by hand.
fn size() -> usize {
    match std::env::var_os("ETCORE_LONG") {
        Some(_) => std::env::var("ETCORE_SIZE").map_or(1_000_000, |size| size.parse().unwrap()),
        None => 60_000,
    }
}

/// Steps by the upper bound of their bucket, in microseconds.
#[derive(Debug, Clone, Default)]
struct Steps(BTreeMap<u64, u64>);

impl Steps {
    fn of(setup: &Setup, name: &str) -> Self {
        let (_, metrics) = http_get(setup.client_port, "/metrics");
        let prefix = format!("{name}_bucket{{le=\"");
        let mut steps = BTreeMap::new();
        let mut below = 0;
        for line in metrics.lines() {
            let Some((bound, count)) =
                line.strip_prefix(&prefix).and_then(|l| l.split_once("\"} "))
            else {
                continue;
            };
            let bound = bound.parse::<f64>().map_or(u64::MAX, |bound| (bound * 1e6) as u64);
            let count: u64 = count.parse().unwrap();
            steps.insert(bound, count - below);
            below = count;
        }
        assert!(!steps.is_empty(), "{name} is not in the metrics");
        Self(steps)
    }

    fn since(&self, before: &Self) -> Self {
        let earlier = |bound: &u64| before.0.get(bound).copied().unwrap_or(0);
        Self(self.0.iter().map(|(bound, count)| (*bound, count - earlier(bound))).collect())
    }

    /// Those of at least a millisecond, for people.
    fn told(&self) -> String {
        let long = self.0.iter().filter(|(_, count)| **count > 0);
        let told: Vec<String> = long
            .map(|(bound, count)| format!("{count} up to {} ms", *bound as f64 / 1e3))
            .collect();
        told.join(", ")
    }

    fn longest_s(&self) -> f64 {
        let longest = self.0.iter().rev().find(|(_, count)| **count > 0);
        longest.map_or(0.0, |(bound, _)| *bound as f64 / 1e6)
    }
}

const WALL: &str = "etcore_shard_step_duration_seconds";
const CPU: &str = "etcore_shard_step_cpu_seconds";

/// Tells what steps something took, and holds them against the bound.
struct Judge<'a> {
    setup: &'a Setup,
    wall: Steps,
    cpu: Steps,
    began: Instant,
    too_long: Vec<String>,
}

impl<'a> Judge<'a> {
    fn new(setup: &'a Setup) -> Self {
        let (wall, cpu) = (Steps::of(setup, WALL), Steps::of(setup, CPU));
        Self { setup, wall, cpu, began: Instant::now(), too_long: Vec::new() }
    }

    fn saw(&mut self, what: &str) {
        let took = self.began.elapsed();
        // What it leaves to be done in the background belongs to it.
        std::thread::sleep(Duration::from_millis(700));
        let (wall, cpu) = (Steps::of(self.setup, WALL), Steps::of(self.setup, CPU));
        let (new_wall, new_cpu) = (wall.since(&self.wall), cpu.since(&self.cpu));
        eprintln!("{what} ({took:.2?}): cpu {}; wall {}", new_cpu.told(), new_wall.told());
        if new_cpu.longest_s() > STEP_S_MAX {
            self.too_long.push(format!("{what}: {}", new_cpu.told()));
        }
        (self.wall, self.cpu, self.began) = (wall, cpu, Instant::now());
    }

    fn end(self) {
        assert!(self.too_long.is_empty(), "{:#?}", self.too_long);
    }
}

/// Makes calls, many at a time, all of which must succeed.
fn flood(setup: &Setup, path: &'static str, requests: impl Iterator<Item = Vec<u8>>) {
    let mut raw = Raw::connect(setup.client_port, 4 << 20);
    let method = raw.client.method(path);
    let mut started = 0;
    for request in requests {
        let options = CallOptions { user: started, ..Default::default() };
        raw.client.start_unary(method, &options, &request).expect("started");
        started += 1;
        if started.is_multiple_of(64) {
            raw.until_answers((started as usize).saturating_sub(IN_FLIGHT));
        }
    }
    raw.until_answers(started as usize);
    let failed = raw.answers.iter().find(|(_, answer)| answer.is_err());
    assert!(failed.is_none(), "{failed:?}");
}

fn key(number: usize) -> String {
    format!("worst/{number:08}")
}

fn put(key: String, lease: i64) -> pb::RequestOp {
    let put = pb::PutRequest {
        key: key.into(),
        value: "0123456789abcdef".into(),
        lease,
        ..Default::default()
    };
    pb::RequestOp { request: Some(Request::RequestPut(put)) }
}

/// Puts so many keys, a hundred in a transaction.
fn put_all(setup: &Setup, count: usize, lease: i64) {
    let txn = |first: usize| {
        let success = (first..count.min(first + 100)).map(|n| put(key(n), lease)).collect();
        pb::TxnRequest { success, ..Default::default() }.encode_to_vec()
    };
    flood(setup, "/etcdserverpb.KV/Txn", (0..count).step_by(100).map(txn));
}

fn grant_all(setup: &Setup, count: usize) {
    let grant = |n: usize| pb::LeaseGrantRequest { id: 1000 + n as i64, ttl: 7200 }.encode_to_vec();
    flood(setup, "/etcdserverpb.Lease/LeaseGrant", (0..count).map(grant));
}

async fn list(client: &Client) -> usize {
    let path = "/etcdserverpb.Lease/LeaseLeases";
    let leases: pb::LeaseLeasesResponse =
        client.unary(path, pb::LeaseLeasesRequest {}).await.expect("leases");
    leases.leases.len()
}

async fn keys_of(client: &Client, id: i64) -> usize {
    let path = "/etcdserverpb.Lease/LeaseTimeToLive";
    let request = pb::LeaseTimeToLiveRequest { id, keys: true };
    let times: pb::LeaseTimeToLiveResponse = client.unary(path, request).await.expect("times");
    times.keys.len()
}

fn all() -> (bytes::Bytes, bytes::Bytes) {
    ("worst/".into(), "worst0".into())
}

async fn delete_all(client: &Client) -> i64 {
    let (key, range_end) = all();
    let request = pb::DeleteRangeRequest { key, range_end, ..Default::default() };
    client.delete_range(request).await.expect("deleted").deleted
}

/// What was done in the long steps, by hand.
fn tell_long_steps(member: &mut Member) {
    if std::env::var_os("ETCORE_LONG").is_some() {
        let lines = member.lines_so_far().iter();
        lines.filter(|line| line.contains("step of a shard")).for_each(|line| eprintln!("{line}"));
    }
}

#[test]
fn no_request_of_any_size_keeps_a_thread_busy_for_long() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let count = size();
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with_long_segments().with("--log-level=debug");
        let mut member = setup.start();
        let mut judge = Judge::new(&setup);
        let leased = 77;
        block_on(async {
            let client = Client::connect(&setup).await;
            let lease = pb::LeaseGrantRequest { id: leased, ttl: 7200 };
            client.lease_grant(lease).await.expect("granted");
        });
        put_all(&setup, count, leased);
        judge.saw("puts of keys of a lease");
        block_on(async {
            let client = Client::connect(&setup).await;
            assert_eq!(keys_of(&client, leased).await, count);
            judge.saw("the keys of the lease");
            let path = "/etcdserverpb.Lease/LeaseRevoke";
            let revoke = pb::LeaseRevokeRequest { id: leased };
            let _: pb::LeaseRevokeResponse = client.unary(path, revoke).await.expect("revoked");
            judge.saw("the end of the lease");
        });
        grant_all(&setup, count);
        judge.saw("grants");
        block_on(async {
            let client = Client::connect(&setup).await;
            assert_eq!(list(&client).await, count);
            judge.saw("the list of leases");
        });
        put_all(&setup, count, 0);
        judge.saw("puts");
        block_on(async {
            let client = Client::connect(&setup).await;
            let (key, range_end) = all();
            let range = pb::RangeRequest { key, range_end, limit: 2000, ..Default::default() };
            let op = pb::RequestOp { request: Some(Request::RequestRange(range.clone())) };
            // With a put, so that it is applied.
            let success = vec![op; 127].into_iter().chain([put("txn".into(), 0)]).collect();
            let txn = pb::TxnRequest { success, ..Default::default() };
            let answer = client.txn(txn).await.expect("a transaction");
            assert_eq!(answer.responses.len(), 128);
            judge.saw("a transaction of 127 ranges");
            let compare = pb::Compare {
                key: range.key.clone(),
                range_end: range.range_end.clone(),
                target: pb::compare::CompareTarget::Create as i32,
                result: pb::compare::CompareResult::Greater as i32,
                target_union: Some(pb::compare::TargetUnion::CreateRevision(0)),
            };
            let success = vec![put("txn".into(), 0)];
            let txn = pb::TxnRequest { compare: vec![compare], success, ..Default::default() };
            assert!(client.txn(txn).await.expect("a transaction").succeeded);
            judge.saw("a compare of all keys");
            let whole = client.range(pb::RangeRequest { limit: 0, ..range }).await.expect("range");
            assert_eq!(whole.count as usize, count);
            judge.saw("a range over all keys");
            assert_eq!(delete_all(&client).await as usize, count);
            judge.saw("a deletion of all keys");
            let revision = client.put_kv("last", "v").await;
            let request = pb::CompactionRequest { revision, physical: true };
            client.compact(request).await.expect("compacted");
            judge.saw("a compaction of everything");
            let mut watch = Watch::connect(&setup).await;
            let watchers = count / 100;
            for watch_id in 1..=watchers as i64 {
                let key = "watched".into();
                watch.create(pb::WatchCreateRequest { key, watch_id, ..Default::default() }).await;
                assert!(watch.next().await.expect("a response").created);
            }
            client.put_kv("watched", "v").await;
            let mut told = 0;
            while told < watchers {
                told += watch.next().await.expect("a response").events.len();
            }
            judge.saw("an event for many watchers");
        });
        judge.end();
        tell_long_steps(&mut member);
        member.kill();
        let began = Instant::now();
        let mut member = setup.start();
        eprintln!("restart: {:.2?}", began.elapsed());
        if count > 100_000 {
            member.lines_so_far().iter().for_each(|line| eprintln!("{line}"));
        }
        let none = Steps::default();
        let mut judge = Judge { wall: none.clone(), cpu: none, ..Judge::new(&setup) };
        block_on(async {
            let client = Client::connect(&setup).await;
            assert_eq!(list(&client).await, count);
        });
        judge.saw("a restart and the list of leases");
        judge.end();
        drop(member);
        if count > 100_000 {
            break;
        }
    }
}

#[test]
fn a_leader_of_many_leases_hands_over_at_once_and_once() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let count = size();
    let dir = tempfile::tempdir().unwrap();
    let extra = ["--election-timeout=500", "--heartbeat-interval=50"];
    let cluster = Cluster::start(dir.path(), DRIVERS[1], 3, &extra);
    let leader = block_on(cluster.leader());
    grant_all(&cluster.setups[leader], count);
    block_on(async {
        let others = cluster.others(leader);
        let (next, third) = (others[0], others[1]);
        let client = cluster.client(third).await;
        // It has applied them all.
        cluster.assert_equal(leader).await;
        let term = cluster.status(leader).await.raft_term;
        let mut judge = Judge::new(&cluster.setups[next]);
        let mut old = Judge::new(&cluster.setups[leader]);
        let target_id = cluster.id(next).await;
        let setup = cluster.setups[leader].clone();
        let hand_over = tokio::spawn(async move {
            let client = Client::connect(&setup).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            client.move_leader(pb::MoveLeaderRequest { target_id }).await.expect("moved");
        });
        let (end, mut longest, mut last) =
            (Instant::now() + Duration::from_secs(6), Duration::ZERO, Instant::now());
        while last < end {
            let put = pb::PutRequest { key: "busy".into(), ..Default::default() };
            if client.put(put).await.is_ok() {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
        }
        hand_over.await.expect("no panic");
        assert_eq!(cluster.leader().await, next);
        let terms = cluster.status(next).await.raft_term - term;
        eprintln!("{count} leases: {longest:.2?} without writes, {terms} elections");
        judge.saw("the new leader");
        old.saw("the old leader");
        assert_eq!(list(&cluster.client(third).await).await, count);
        // A machine that stands still may cost a second one: only by hand is this exact.
        assert!(longest < Duration::from_secs(5), "{longest:?}");
        assert!(terms <= if count > 100_000 { 1 } else { 2 }, "{terms} elections");
        judge.end();
        old.end();
    });
    let mut cluster = cluster;
    let leader = block_on(cluster.leader());
    let follower = cluster.others(leader)[0];
    cluster.kill(follower);
    let began = Instant::now();
    cluster.restart(follower);
    eprintln!("a restart with {count} leases: {:.2?}", began.elapsed());
    block_on(async {
        assert_eq!(list(&cluster.client(follower).await).await, count);
    });
}
