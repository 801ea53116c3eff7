//! A real member that is far behind, over links with a round trip, while the others are written to:
//! it follows after one snapshot, and its clients' streams stay.
//!
//! Short, it misses 200,000 rows. `ETCORE_LONG=1`: 3 million revisions, then 12 MB/s of puts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use pb::request_op::Request;

use crate::harness::cluster::Cluster;
use crate::harness::watch::Watch;
use crate::harness::{Client, Setup, block_on, is_available};

const ONE_WAY: Duration = Duration::from_millis(10);

fn is_long() -> bool {
    std::env::var_os("ETCORE_LONG").is_some()
}

/// Revisions, rows of each, bytes of a value.
fn missed() -> (usize, usize, usize) {
    if is_long() { (3_000_000, 1, 256) } else { (2_000, 100, 100) }
}

/// Bytes of puts in a second while it catches up.
fn load_bytes() -> usize {
    if is_long() { 12 << 20 } else { 2 << 20 }
}

fn put(key: String, bytes: usize) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: vec![b'v'; bytes].into(), ..Default::default() }
}

/// Writes what the member misses, many at a time, on several connections.
async fn fill(setup: &Setup) {
    const LANES_OF_ONE: usize = 64;
    let connections = if is_long() { 32 } else { 2 };
    let (revisions, rows, bytes) = missed();
    let next = Arc::new(AtomicU64::new(0));
    let mut lanes = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Client::connect(setup).await);
    }
    for lane in 0..connections * LANES_OF_ONE {
        let (client, next) = (clients[lane % connections].clone(), next.clone());
        lanes.push(tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                if number >= revisions {
                    return;
                }
                if rows == 1 {
                    client.put(put(format!("key{number:08}"), bytes)).await.expect("a put");
                    continue;
                }
                let puts = (0..rows).map(|row| {
                    let request = put(format!("key{number:06}-{row}"), bytes);
                    pb::RequestOp { request: Some(Request::RequestPut(request)) }
                });
                let txn = pb::TxnRequest { success: puts.collect(), ..Default::default() };
                client.txn(txn).await.expect("a transaction");
            }
        }));
    }
    for lane in lanes {
        lane.await.expect("no panic");
    }
}

/// The first entry that the log of a member still has.
fn log_begins(setup: &Setup) -> u64 {
    let files = std::fs::read_dir(setup.data_dir.join("member/wal")).expect("a log");
    files
        .filter_map(|file| {
            let name = file.ok()?.file_name().into_string().ok()?;
            let (_, first) = name.strip_suffix(".wal")?.split_once('-')?;
            u64::from_str_radix(first, 16).ok()
        })
        .min()
        .expect("a segment")
}

/// Puts of 4 kB at a steady rate, until told to stop; returns how many were written.
async fn load(setup: Setup, stop: Arc<AtomicBool>) -> u64 {
    const VALUE: usize = 4096;
    let puts_a_tick = (load_bytes() / VALUE).div_ceil(100);
    let done = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Client::connect(&setup).await);
    }
    let mut clock = tokio::time::interval(Duration::from_millis(10));
    let mut number = 0usize;
    while !stop.load(Ordering::Relaxed) {
        clock.tick().await;
        // No more than the members take.
        if number as u64 > done.load(Ordering::Relaxed) + 1000 {
            continue;
        }
        for _ in 0..puts_a_tick {
            let (client, done) = (clients[number % clients.len()].clone(), done.clone());
            let key = format!("load{}", number % 1000);
            number += 1;
            tokio::spawn(async move {
                client.put(put(key, VALUE)).await.expect("a put");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
    }
    while done.load(Ordering::Relaxed) < number as u64 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    number as u64
}

/// Waits until the member has applied, for two seconds on end, what the leader had half a second
/// before.
async fn follows(cluster: &Cluster, leader: usize, away: usize) {
    let deadline = Instant::now() + Duration::from_secs(if is_long() { 900 } else { 180 });
    let mut since: Option<Instant> = None;
    loop {
        let goal = cluster.status(leader).await.raft_applied_index;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let applied = cluster.status(away).await.raft_applied_index;
        match applied >= goal {
            true if since.get_or_insert(Instant::now()).elapsed() > Duration::from_secs(2) => {
                return;
            }
            true => {}
            false => since = None,
        }
        assert!(Instant::now() < deadline, "it does not follow: {applied} of {goal}");
    }
}

fn test(driver: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let segment = if is_long() { "67108864" } else { "1048576" };
    let segment = format!("--wal-segment-bytes={segment}");
    // Nothing is compacted: a slow machine writes more than the usual quota meanwhile.
    let quota = "--quota-backend-bytes=17179869184";
    let flags = ["--snapshot-catchup-entries=10", segment.as_str(), quota];
    let mut cluster = Cluster::far_apart(dir.path(), driver, 3, &flags, ONE_WAY);
    let leader = block_on(cluster.leader());
    let away = cluster.others(leader)[0];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let begun = runtime.block_on(async {
        let client = cluster.client(away).await;
        let mut watch = Watch::open(&client).await;
        let create = pb::WatchCreateRequest { key: "mark".into(), ..Default::default() };
        watch.create(create).await;
        assert!(watch.next().await.unwrap().created);
        let behind = cluster.status(away).await.raft_applied_index;
        cluster.cut_off(away).await;
        let filling = Instant::now();
        fill(&cluster.setups[leader]).await;
        eprintln!("filled in {:?}", filling.elapsed());
        let at_leader = cluster.client(leader).await;
        let deadline = Instant::now() + Duration::from_secs(60);
        while log_begins(&cluster.setups[leader]) <= behind + 1 {
            assert!(Instant::now() < deadline, "the log keeps everything");
            fill_a_little(&at_leader).await;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let load = tokio::spawn(load(cluster.setups[leader].clone(), stop.clone()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.heal();
        let begun = Instant::now();
        follows(&cluster, leader, away).await;
        eprintln!("follows after {:?}", begun.elapsed());
        stop.store(true, Ordering::Relaxed);
        let (puts, took) = (load.await.expect("no panic"), begun.elapsed());
        let mb = puts as f64 * 4096.0 / 1e6;
        eprintln!("{puts} puts, {:.1} MB/s meanwhile", mb / took.as_secs_f64());
        // The stream of before is there, on the connection of before.
        client.put_kv("mark", "v").await;
        assert_eq!(watch.next().await.unwrap().events.len(), 1);
        cluster.assert_equal(leader).await;
        begun
    });
    let received = cluster.metric(away, "etcd_network_snapshot_receive_success{");
    let failed = cluster.metric(away, "etcd_network_snapshot_receive_failures{");
    eprintln!("all in {:?}", begun.elapsed());
    for member in cluster.members.iter_mut().flatten() {
        let telling = ["snapshot", "follows the log", "\"level\":\"warn\""];
        let about = |line: &&String| telling.iter().any(|text| line.contains(text));
        let lines: Vec<&String> = member.lines_so_far().iter().filter(about).collect();
        lines.iter().for_each(|line| eprintln!("  {line}"));
    }
    assert_eq!((received, failed), (1.0, 0.0), "one snapshot was enough");
    assert!(cluster.members[away].as_mut().unwrap().has_ended(Duration::ZERO).is_none());
}

async fn fill_a_little(client: &Client) {
    for number in 0..20 {
        client.put(put(format!("more{number}"), 50_000)).await.expect("a put");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[test]
fn a_member_far_behind_follows_after_one_snapshot_under_load_over_a_long_link() {
    let _turn = crate::harness::turn::of_file(module_path!());
    // One is enough: the drivers differ in nothing that this is about, and it takes long.
    let driver = if is_available("uring") { "uring" } else { "portable" };
    test(driver);
}
