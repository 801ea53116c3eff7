//! A member as its operator sees it: starting, refusing to start, plain endpoints, stopping.

use std::process::Command;

use etcore_proto::pb::etcdserverpb as pb;
use tonic::Code;

mod harness;

use harness::{Client, DRIVERS, Setup, block_on, free_port, http_get, is_available};

fn each_driver(test: impl Fn(Setup)) {
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        test(Setup::new(dir.path(), driver));
    }
}

#[test]
fn the_version_is_etcds_first_and_then_etcores() {
    let output = Command::new(env!("CARGO_BIN_EXE_etcore")).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert_eq!(text.lines().next(), Some("etcd Version: 3.7.1"));
    assert!(text.contains("etcore Version: "));
}

#[test]
fn a_bad_flag_ends_with_status_two_and_a_bad_value_with_one() {
    let run = |flag: &str| Command::new(env!("CARGO_BIN_EXE_etcore")).arg(flag).output().unwrap();
    assert_eq!(run("--no-such-flag").status.code(), Some(2));
    let bad_value = run("--election-timeout=10");
    assert_eq!(bad_value.status.code(), Some(1));
    assert_eq!(String::from_utf8(bad_value.stderr).unwrap().lines().count(), 1);
}

#[test]
fn plain_endpoints_answer_as_etcds() {
    each_driver(|setup| {
        let _member = setup.start();
        let port = setup.client_port;
        assert_eq!(
            http_get(port, "/version"),
            (200, r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#.to_owned())
        );
        assert_eq!(http_get(port, "/health"), (200, r#"{"health":"true","reason":""}"#.to_owned()));
        assert_eq!(http_get(port, "/health?serializable=true").0, 200);
        assert_eq!(http_get(port, "/livez"), (200, "ok\n".to_owned()));
        assert!(http_get(port, "/readyz?verbose").1.contains("[+]linearizable_read ok"));
        assert_eq!(http_get(port, "/nothing"), (404, "404 page not found\n".to_owned()));
        let (status, metrics) = http_get(port, "/metrics");
        assert_eq!(status, 200);
        assert!(metrics.contains("etcd_server_has_leader 1"));
        assert!(metrics.contains("etcd_server_version{server_version=\"3.7.1\"} 1"));
        let (status, members) = http_get(setup.peer_port, "/members");
        assert_eq!(status, 200);
        assert!(members.contains(r#""name":"default""#), "{members}");
    });
}

#[test]
fn a_data_directory_that_is_in_use_is_refused() {
    each_driver(|setup| {
        let _member = setup.start();
        let mut second = setup.clone();
        (second.client_port, second.peer_port) = (free_port(), free_port());
        let mut refused = second.spawn();
        assert_eq!(refused.wait().code(), Some(1));
        assert!(refused.seen.iter().any(|line| line.contains("is used by another process")));
    });
}

#[test]
fn a_taken_port_stops_the_start() {
    each_driver(|setup| {
        let _member = setup.start();
        let other = tempfile::tempdir().unwrap();
        let mut second = Setup::new(other.path(), setup.driver);
        second.client_port = setup.client_port;
        let mut refused = second.spawn();
        assert_eq!(refused.wait().code(), Some(1));
        assert!(refused.seen.iter().any(|line| line.contains("cannot listen on")));
    });
}

#[test]
fn the_log_says_which_driver_was_chosen_and_why() {
    each_driver(|setup| {
        let mut member = setup.spawn();
        let line = member.wait_for_line("io driver chosen");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["io-driver"], setup.driver);
        assert!(!line["reason"].as_str().unwrap().is_empty());
    });
}

#[test]
fn sigterm_ends_cleanly_and_what_was_written_is_there_afterwards() {
    each_driver(|setup| {
        let mut member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            client.put_kv("a", "1").await;
        });
        member.terminate();
        assert!(member.wait().success(), "{}", member.seen.join("\n"));
        assert!(member.seen.iter().any(|line| line.contains("received signal; shutting down")));
        assert!(member.seen.iter().any(|line| line.contains("closed etcd server")));
        let _member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            assert_eq!(client.get("a").await.as_deref(), Some("1"));
        });
    });
}

#[test]
fn the_member_speaks_of_itself_as_etcd_does() {
    each_driver(|setup| {
        let _member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            let status = client.status(pb::StatusRequest {}).await.unwrap();
            let header = status.header.unwrap();
            assert_eq!(status.version, "3.7.1");
            assert_eq!(status.storage_version, "3.7.0");
            assert_eq!((status.leader, status.raft_term), (header.member_id, 2));
            assert_eq!(status.raft_index, status.raft_applied_index);
            assert!(status.db_size >= status.db_size_in_use);
            let list =
                client.member_list(pb::MemberListRequest { linearizable: true }).await.unwrap();
            assert_eq!(list.header.unwrap().revision, 0);
            assert_eq!(list.members.len(), 1);
            let member = &list.members[0];
            assert_eq!((member.id, member.name.as_str()), (header.member_id, "default"));
            assert_eq!(member.client_ur_ls, [setup.endpoint()]);
        });
    });
}

#[test]
fn methods_that_are_not_there_yet_are_unimplemented() {
    each_driver(|setup| {
        let _member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            let lowered: Result<pb::DowngradeResponse, _> = client
                .unary("/etcdserverpb.Maintenance/Downgrade", pb::DowngradeRequest::default())
                .await;
            assert_eq!(lowered.unwrap_err().code(), Code::Unimplemented);
            let health: Result<(), _> = client.unary("/grpc.health.v1.Health/Check", ()).await;
            assert!(health.is_ok());
        });
    });
}

#[test]
fn several_fronts_share_the_connections() {
    each_driver(|setup| {
        let setup = setup.with("--fronts=3");
        let _member = setup.start();
        block_on(async {
            let mut clients = Vec::new();
            for _ in 0..9 {
                clients.push(Client::connect(&setup).await);
            }
            for (number, client) in clients.iter().enumerate() {
                client.put_kv(&format!("k{number}"), "v").await;
            }
            // Every front sees what any front wrote.
            for client in &clients {
                for number in 0..9 {
                    assert_eq!(client.get(&format!("k{number}")).await.as_deref(), Some("v"));
                }
            }
        });
    });
}

#[test]
fn an_idle_member_uses_next_to_no_cpu() {
    each_driver(|setup| {
        let member = setup.start();
        let ticks = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", member.pid())).unwrap();
            let fields: Vec<u64> = stat
                .rsplit_once(')')
                .unwrap()
                .1
                .split_whitespace()
                .filter_map(|field| field.parse().ok())
                .collect();
            // utime and stime are the 14th and 15th of all fields, so the 11th and 12th numbers
            // after the name and the state.
            fields[10] + fields[11]
        };
        std::thread::sleep(std::time::Duration::from_millis(500));
        let before = ticks();
        std::thread::sleep(std::time::Duration::from_secs(3));
        // One tick is 10 ms, and rounding may add one: 1 % of three seconds is three.
        assert!(ticks() - before <= 4, "{} ticks in 3 s", ticks() - before);
    });
}
