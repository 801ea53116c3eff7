//! Three real members, one of which was away for longer than the logs of the others reach back.
//!
//! `ETCORE_LONG=1` makes the state it has missed a hundred times as large.

use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;

use crate::harness::cluster::Cluster;
use crate::harness::watch::Watch;
use crate::harness::{Client, DRIVERS, block_on, http_get, is_available};

const FLAGS: [&str; 2] = ["--snapshot-catchup-entries=10", "--wal-segment-bytes=65536"];

fn each_driver(test: impl Fn(Cluster)) {
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        test(Cluster::start(dir.path(), driver, 3, &FLAGS));
    }
}

/// The same, and members can be cut off while their clients stay.
fn each_driver_with_links(test: impl Fn(Cluster)) {
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        test(Cluster::far_apart(dir.path(), driver, 3, &FLAGS, Duration::ZERO));
    }
}

/// Bytes that a member misses.
fn missed_bytes() -> usize {
    if std::env::var_os("ETCORE_LONG").is_some() { 800 << 20 } else { 8 << 20 }
}

/// Writes so many bytes, in rows of 20 kB, many at a time.
async fn fill(client: &Client, name: &str, bytes: usize) {
    let value = "x".repeat(20_000);
    let rows: Vec<usize> = (0..bytes / value.len()).collect();
    for rows in rows.chunks(16) {
        let puts = rows.iter().map(|row| {
            let (client, value) = (client.clone(), value.clone());
            let key = format!("{name}{row}");
            tokio::spawn(async move { client.put_kv(&key, &value).await })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await.unwrap();
        }
    }
}

/// Writes what a member is to miss, and waits until the leader's log no longer has it: checkpoints
/// must have passed, each with something to save.
async fn leave_behind(cluster: &Cluster, leader: usize) {
    let client = cluster.client(leader).await;
    fill(&client, "a", missed_bytes()).await;
    let log = cluster.setups[leader].data_dir.join("member/wal");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let files = std::fs::read_dir(&log).unwrap();
        // A segment may be deleted meanwhile.
        let bytes: u64 = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum();
        if bytes < 2 << 20 {
            return;
        }
        assert!(Instant::now() < deadline, "the log still has {bytes} bytes");
        client.put_kv("meanwhile", "v").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn a_member_that_was_away_too_long_gets_a_snapshot_and_goes_over_to_it_at_once() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver(|mut cluster| {
        let leader = block_on(cluster.leader());
        let away = cluster.others(leader)[0];
        block_on(async { cluster.client(away).await.put_kv("before", "v").await });
        cluster.kill(away);
        block_on(leave_behind(&cluster, leader));
        let mut member = cluster.setups[away].spawn();
        member.wait_for_line("received and saved database snapshot");
        let begun = Instant::now();
        member.wait_for_line("applied snapshot");
        member.wait_for_line("ready to serve client requests");
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(900) || missed_bytes() > 8 << 20, "{took:?}");
        cluster.members[away] = Some(member);
        block_on(async {
            let client = cluster.client(away).await;
            assert_eq!(client.get("before").await.as_deref(), Some("v"));
            client.put_kv("back", "again").await;
            cluster.assert_equal(leader).await;
        });
        let (status, health) = http_get(cluster.setups[away].client_port, "/health");
        assert!(status == 200 && health.contains("\"health\":\"true\""), "{health}");
        let leader = block_on(cluster.leader());
        let deadline = Instant::now() + Duration::from_secs(10);
        while cluster.metric(leader, "etcd_network_snapshot_send_success{") < 1.0 {
            assert!(Instant::now() < deadline, "the leader does not count it");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(cluster.metric(leader, "etcd_network_snapshot_send_inflights_total{"), 0.0);
        assert_eq!(cluster.metric(away, "etcd_server_has_leader"), 1.0);
    });
}

#[test]
fn a_member_that_is_killed_while_it_gets_a_snapshot_gets_there_in_the_end() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver(|mut cluster| {
        let leader = block_on(cluster.leader());
        let away = cluster.others(leader)[0];
        cluster.kill(away);
        block_on(leave_behind(&cluster, leader));
        for pause_ms in [0, 3, 10, 30, 100] {
            let mut member = cluster.setups[away].spawn();
            member.wait_for_line("receiving database snapshot");
            std::thread::sleep(Duration::from_millis(pause_ms));
            member.kill();
            block_on(async {
                let client = cluster.client(leader).await;
                fill(&client, &format!("b{pause_ms}-"), 200_000).await;
            });
        }
        cluster.restart(away);
        block_on(async {
            cluster.client(away).await.put_kv("back", "again").await;
            cluster.assert_equal(leader).await;
        });
        let names: Vec<String> = std::fs::read_dir(cluster.setups[away].data_dir.join("member"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(!names.iter().any(|name| name.starts_with("etcore.snap")), "{names:?}");
    });
}

#[test]
fn clients_of_a_member_that_gets_a_snapshot_keep_their_connections_and_watches() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver_with_links(|mut cluster| {
        let leader = block_on(cluster.leader());
        let away = cluster.others(leader)[0];
        block_on(async {
            let client = cluster.client(away).await;
            client.put_kv("before", "v").await;
            let create = |key: &str| pb::WatchCreateRequest {
                key: key.to_owned().into(),
                ..pb::WatchCreateRequest::default()
            };
            let mut watch = Watch::open(&client).await;
            watch.create(create("missed")).await;
            assert!(watch.next().await.unwrap().created);
            let mut other = Watch::open(&client).await;
            other.create(create("twice")).await;
            assert!(other.next().await.unwrap().created);
            cluster.cut_off(away).await;
            let at_leader = cluster.client(leader).await;
            let missed = at_leader.put_kv("missed", "w").await;
            at_leader.put_kv("twice", "w").await;
            let last = at_leader.put_kv("twice", "x").await;
            leave_behind(&cluster, leader).await;
            cluster.heal();
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                assert!(Instant::now() < deadline, "it does not come back");
                let request = pb::RangeRequest {
                    key: "before".into(),
                    serializable: true,
                    ..pb::RangeRequest::default()
                };
                // No call ever fails.
                let found = client.range(request).await.unwrap();
                assert_eq!(found.kvs[0].value.as_ref(), b"v");
                if found.header.unwrap().revision > last {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let events = watch.next().await.unwrap().events;
            assert_eq!(events[0].kv.as_ref().unwrap().mod_revision, missed);
            let mut events = 0;
            while events < 2 {
                events += other.next().await.unwrap().events.len();
            }
            client.put_kv("missed", "again").await;
            assert_eq!(watch.next().await.unwrap().events.len(), 1);
            cluster.assert_equal(leader).await;
        });
        let member = cluster.members[away].as_mut().unwrap();
        assert!(member.has_ended(Duration::ZERO).is_none());
        let lines = member.lines_so_far();
        assert!(lines.iter().any(|line| line.contains("applied snapshot")), "{lines:?}");
    });
}

#[test]
fn a_watch_whose_revisions_are_compacted_in_the_snapshot_is_cancelled_and_its_stream_stays() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver_with_links(|cluster| {
        let leader = block_on(cluster.leader());
        let away = cluster.others(leader)[0];
        block_on(async {
            let client = cluster.client(away).await;
            client.put_kv("key", "0").await;
            let mut watch = Watch::open(&client).await;
            let create =
                pb::WatchCreateRequest { key: "key".into(), ..pb::WatchCreateRequest::default() };
            watch.create(create.clone()).await;
            assert!(watch.next().await.unwrap().created);
            cluster.cut_off(away).await;
            leave_behind(&cluster, leader).await;
            let at_leader = cluster.client(leader).await;
            at_leader.put_kv("key", "1").await;
            let last = at_leader.put_kv("key", "2").await;
            let revision = at_leader.put_kv("other", "2").await;
            let request = pb::CompactionRequest { revision, physical: true };
            at_leader.compact(request).await.unwrap();
            // The snapshot is of a checkpoint after that.
            fill(&at_leader, "c", 1 << 20).await;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            cluster.heal();
            let response = watch.next().await.unwrap();
            assert!(response.canceled, "{response:?}");
            assert_eq!(response.compact_revision, revision);
            assert!(last < revision);
            watch.create(create).await;
            assert!(watch.next().await.unwrap().created, "the same stream");
            client.put_kv("key", "3").await;
            assert_eq!(watch.next().await.unwrap().events.len(), 1);
            cluster.assert_equal(leader).await;
        });
    });
}
