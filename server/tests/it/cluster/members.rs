//! Three real members: what one is told all know, and any one of them may be killed.

use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use tonic::Code;

use crate::harness::cluster::Cluster;
use crate::harness::{Client, DRIVERS, block_on, is_available, oracle};

fn each_driver(test: impl Fn(Cluster)) {
    each_driver_with(&[], test);
}

fn each_driver_with(extra: &[&str], test: impl Fn(Cluster)) {
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        test(Cluster::start(dir.path(), driver, 3, extra));
    }
}

async fn try_put(client: &Client, key: &str, value: &str) -> Result<i64, tonic::Status> {
    let request = pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..pb::PutRequest::default()
    };
    Ok(client.put(request).await?.header.unwrap().revision)
}

#[test]
fn what_is_put_on_one_is_got_on_all_and_a_killed_leader_comes_back() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver(|mut cluster| {
        let leader = block_on(async {
            for at in 0..3 {
                cluster.client(at).await.put_kv(&format!("from{at}"), "v").await;
                for other in 0..3 {
                    let found = cluster.client(other).await.get(&format!("from{at}")).await;
                    assert_eq!(found.as_deref(), Some("v"), "put on {at}, got on {other}");
                }
            }
            let list = cluster.client(0).await.member_list(pb::MemberListRequest::default()).await;
            let members = list.unwrap().members;
            let mut names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, ["m1", "m2", "m3"]);
            assert!(members.iter().all(|member| member.client_ur_ls.len() == 1));
            cluster.leader().await
        });
        cluster.kill(leader);
        let others = cluster.others(leader);
        // What is given to a leader that has just died is lost; soon all notice that it is gone,
        // long before they elect another.
        std::thread::sleep(Duration::from_millis(200));
        block_on(async {
            for at in &others {
                // Waits for the election.
                cluster.client(*at).await.put_kv(&format!("later{at}"), "v").await;
            }
            assert_ne!(cluster.leader().await, leader);
        });
        cluster.restart(leader);
        block_on(async {
            for at in &others {
                let found = cluster.client(leader).await.get(&format!("later{at}")).await;
                assert_eq!(found.as_deref(), Some("v"));
            }
            cluster.client(leader).await.put_kv("back", "again").await;
            cluster.assert_equal(others[0]).await;
        });
    });
}

#[test]
fn leadership_moves_at_an_operators_wish() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver(|cluster| {
        block_on(async {
            let leader = cluster.leader().await;
            let heir = cluster.others(leader)[0];
            let target_id = cluster.id(heir).await;
            let asked = |at: usize, target_id: u64| {
                let cluster = &cluster;
                async move {
                    let request = pb::MoveLeaderRequest { target_id };
                    let moved = cluster.client(at).await.move_leader(request).await;
                    moved.map(drop).map_err(|error| (error.code(), error.message().to_owned()))
                }
            };
            let refused = |text: &str| Err((Code::FailedPrecondition, text.to_owned()));
            assert_eq!(asked(heir, target_id).await, refused("etcdserver: not leader"));
            assert_eq!(asked(leader, 5).await, refused("etcdserver: bad leader transferee"));
            assert_eq!(asked(leader, target_id).await, Ok(()));
            assert_eq!(cluster.leader().await, heir);
            cluster.client(leader).await.put_kv("k", "v").await;
        });
        let Some(etcdctl) = oracle("etcdctl") else { return };
        let (heir, target) = block_on(async {
            let leader = cluster.leader().await;
            let heir = cluster.others(leader)[0];
            (heir, format!("{:x}", cluster.id(heir).await))
        });
        let endpoints: Vec<String> =
            cluster.setups.iter().map(crate::harness::Setup::endpoint).collect();
        let output = std::process::Command::new(etcdctl)
            .args(["move-leader", &target, "--endpoints", &endpoints.join(",")])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("Leadership transferred"), "{output:?}");
        assert_eq!(block_on(cluster.leader()), heir);
    });
}

#[test]
fn a_leader_that_is_told_to_stop_hands_over_so_that_writes_hardly_wait() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver(|mut cluster| {
        let leader = block_on(cluster.leader());
        let other = cluster.others(leader)[0];
        block_on(async {
            let client = cluster.client(other).await;
            client.put_kv("before", "v").await;
            cluster.members[leader].as_ref().unwrap().terminate();
            let begun = Instant::now();
            let mut slowest = Duration::ZERO;
            while begun.elapsed() < Duration::from_millis(700) {
                let asked = Instant::now();
                client.put_kv("k", "v").await;
                slowest = slowest.max(asked.elapsed());
            }
            // Without the hand-over it would take an election timeout of one to two seconds.
            assert!(slowest < Duration::from_millis(600), "{slowest:?}");
        });
        let mut stopped = cluster.members[leader].take().unwrap();
        assert!(stopped.wait().success(), "{}", stopped.seen.join("\n"));
        assert!(stopped.seen.iter().any(|line| line.contains("leadership transfer starting")));
        cluster.restart(leader);
        block_on(cluster.assert_equal(other));
    });
}

#[test]
fn leases_are_kept_alive_and_looked_at_through_any_member() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver(|cluster| {
        block_on(async {
            let leader = cluster.leader().await;
            for at in 0..3 {
                let client = cluster.client(at).await;
                let id = 100 + i64::try_from(at).unwrap();
                let granted = client.lease_grant(pb::LeaseGrantRequest { id, ttl: 20 }).await;
                assert_eq!(granted.unwrap().ttl, 20);
                let request = pb::LeaseTimeToLiveRequest { id, keys: true };
                let path = "/etcdserverpb.Lease/LeaseTimeToLive";
                let times: pb::LeaseTimeToLiveResponse = client.unary(path, request).await.unwrap();
                assert!(times.granted_ttl == 20 && times.ttl >= 18, "{times:?}");
                let request = pb::LeaseTimeToLiveRequest { id: 7, keys: true };
                let none: pb::LeaseTimeToLiveResponse = client.unary(path, request).await.unwrap();
                assert_eq!((none.id, none.ttl), (7, -1));
                let path = "/etcdserverpb.Lease/LeaseLeases";
                let list: pb::LeaseLeasesResponse =
                    client.unary(path, pb::LeaseLeasesRequest {}).await.unwrap();
                assert_eq!(list.leases.len(), at + 1, "on {at}, the leader is {leader}");
            }
        });
    });
}

#[test]
fn without_a_quorum_writes_fail_as_in_etcd_and_serializable_reads_go_on() {
    let _turn = crate::harness::turn::of_file(module_path!());
    // Short elections keep the wait short: 5 s + 2 × 0.5 s.
    each_driver_with(&["--heartbeat-interval=50", "--election-timeout=500"], |mut cluster| {
        let alone = block_on(async {
            cluster.client(0).await.put_kv("k", "v").await;
            cluster.leader().await
        });
        for other in cluster.others(alone) {
            cluster.kill(other);
        }
        block_on(async {
            let client = cluster.client(alone).await;
            let begun = Instant::now();
            let lost = try_put(&client, "k", "first").await.unwrap_err();
            let took = begun.elapsed();
            assert_eq!(lost.code(), Code::Unavailable, "{lost:?}");
            assert!(lost.message().starts_with("etcdserver: request timed out"), "{lost:?}");
            assert!(took >= Duration::from_millis(5_900) && took < Duration::from_secs(8));
            // By now nobody leads, and nothing is proposed at all.
            let (never, alarms) = tokio::join!(
                try_put(&client, "k", "second"),
                client.alarm(pb::AlarmRequest::default())
            );
            // A list of alarms goes the way of a proposal.
            for never in [never.unwrap_err(), alarms.unwrap_err()] {
                assert_eq!(
                    (never.code(), never.message()),
                    (Code::DeadlineExceeded, "context deadline exceeded")
                );
            }
            let status = cluster.status(alone).await;
            assert_eq!(
                (status.leader, status.errors.as_slice()),
                (0, &["etcdserver: no leader".to_owned()][..])
            );
            let request = pb::RangeRequest {
                key: "k".into(),
                serializable: true,
                ..pb::RangeRequest::default()
            };
            let read = client.range(request.clone()).await.unwrap();
            assert_eq!(read.kvs[0].value.as_ref(), b"v");
            let linearizable = pb::RangeRequest { serializable: false, ..request };
            let refused = client.range(linearizable).await.unwrap_err();
            assert_eq!(refused.message(), "etcdserver: request timed out");
        });
        let back = (alone + 1) % 3;
        cluster.restart(back);
        block_on(async {
            cluster.client(alone).await.put_kv("k", "third").await;
            cluster.assert_equal(alone).await;
        });
    });
}

#[test]
fn space_that_runs_out_on_one_is_an_alarm_for_all() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver_with(&["--quota-backend-bytes=2097152"], |cluster| {
        block_on(async {
            let leader = cluster.leader().await;
            let at = cluster.others(leader)[0];
            let (client, own_id) = (cluster.client(at).await, cluster.id(at).await);
            let value = "x".repeat(200_000);
            let mut refused = None;
            for number in 0..40 {
                if let Err(error) = try_put(&client, &format!("k{number}"), &value).await {
                    refused = Some(error);
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let refused = refused.expect("the quota ends it");
            let no_space = "etcdserver: mvcc: database space exceeded";
            assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, no_space));
            for other in 0..3 {
                let client = cluster.client(other).await;
                // The first refusal does not wait for the alarm that it raises.
                let began = Instant::now();
                loop {
                    let get = pb::AlarmRequest::default();
                    let alarms = client.alarm(get).await.unwrap().alarms;
                    if alarms.iter().any(|alarm| alarm.member_id == own_id) {
                        break;
                    }
                    assert!(began.elapsed() < Duration::from_secs(10), "{alarms:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let refused = try_put(&client, "k", "v").await.unwrap_err();
                assert_eq!(refused.message(), no_space);
            }
        });
    });
}

#[test]
fn a_member_that_lost_its_directory_does_not_found_the_cluster_again() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver(|mut cluster| {
        cluster.kill(1);
        std::fs::remove_dir_all(&cluster.setups[1].data_dir).unwrap();
        let mut refused = cluster.setups[1].spawn();
        assert_eq!(refused.wait().code(), Some(1));
        let told = refused.seen.iter().any(|line| line.contains("has already been bootstrapped"));
        assert!(told, "{}", refused.seen.join("\n"));
        // Not the second time either: the refusal has left nothing behind.
        assert_eq!(cluster.setups[1].spawn().wait().code(), Some(1));
        block_on(async {
            cluster.client(0).await.put_kv("k", "v").await;
        });
    });
}

#[test]
fn flags_that_found_a_cluster_mean_nothing_to_a_member_that_has_one() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver(|mut cluster| {
        let ids = block_on(async { [cluster.id(0).await, cluster.id(2).await] });
        cluster.kill(2);
        let known = cluster.setups[2].clone();
        cluster.setups[2].initial_cluster = format!("m3=http://127.0.0.1:{}", known.peer_port);
        cluster.setups[2] = cluster.setups[2].clone().with("--initial-cluster-token=other");
        cluster.setups[2] = cluster.setups[2].clone().with("--initial-cluster-state=existing");
        cluster.restart(2);
        block_on(async {
            assert_eq!([cluster.id(0).await, cluster.id(2).await], ids);
            cluster.client(2).await.put_kv("k", "v").await;
            assert_eq!(cluster.client(0).await.get("k").await.as_deref(), Some("v"));
        });
    });
}

#[test]
fn a_cluster_that_does_not_name_its_member_is_refused() {
    let _turn = crate::harness::turn::of_file(module_path!());
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)).take(1) {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::new(dir.path(), driver, 2, &[]);
        cluster.setups[0].name = "stranger".to_owned();
        let mut refused = cluster.setups[0].spawn();
        assert_eq!(refused.wait().code(), Some(1));
        let told = "couldn't find local name \\\"stranger\\\" in the initial cluster configuration";
        assert!(refused.seen.iter().any(|line| line.contains(told)), "{:?}", refused.seen);
    }
}
