//! A member as its operator sees it: starting, refusing to start, plain endpoints, stopping.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use etcore_proto::pb::etcdserverpb as pb;
use tonic::Code;

use crate::harness::{Client, DRIVERS, Setup, block_on, free_port, http_get, is_available, oracle};

fn each_driver(test: impl Fn(Setup)) {
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        test(Setup::new(dir.path(), driver));
    }
}

#[test]
fn the_version_is_etcds_first_and_then_etcores() {
    let _turn = crate::harness::turn::light();
    let output = Command::new(env!("CARGO_BIN_EXE_etcore")).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert_eq!(text.lines().next(), Some("etcd Version: 3.7.1"));
    assert!(text.contains("etcore Version: "));
}

#[test]
fn a_bad_flag_ends_with_status_two_and_a_bad_value_with_one() {
    let _turn = crate::harness::turn::light();
    let run = |flag: &str| Command::new(env!("CARGO_BIN_EXE_etcore")).arg(flag).output().unwrap();
    assert_eq!(run("--no-such-flag").status.code(), Some(2));
    let bad_value = run("--election-timeout=10");
    assert_eq!(bad_value.status.code(), Some(1));
    assert_eq!(String::from_utf8(bad_value.stderr).unwrap().lines().count(), 1);
}

#[test]
fn every_setting_of_etcd_is_known_with_its_default() {
    let _turn = crate::harness::turn::light();
    let Some(etcd) = oracle("etcd") else { return };
    let settings = |binary: &Path| -> BTreeMap<String, String> {
        let output = Command::new(binary).arg("--help").output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("  --"));
        lines
            .map(|line| line.split_once(' ').unwrap_or((line, "")))
            .map(|(name, default)| (name.to_owned(), default.trim_matches('\'').to_owned()))
            .collect()
    };
    let (theirs, ours) = (settings(&etcd), settings(Path::new(env!("CARGO_BIN_EXE_etcore"))));
    assert!(theirs.len() > 100, "{theirs:?}");
    for (name, default) in theirs {
        // The first are in the text only; the others' defaults are said in other words.
        match name.as_str() {
            "discovery" | "discovery-proxy" => assert!(!ours.contains_key(&name)),
            "data-dir"
            | "max-concurrent-streams"
            | "initial-cluster"
            | "v2-deprecation"
            | "backend-batch-interval" => assert!(ours.contains_key(&name), "{name}"),
            _ if default.is_empty() => assert!(ours.contains_key(&name), "{name}"),
            _ => assert_eq!(ours.get(&name), Some(&default), "{name}"),
        }
    }
}

#[test]
fn command_lines_end_as_they_do_with_etcd() {
    let _turn = crate::harness::turn::light();
    let Some(etcd) = oracle("etcd") else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = |binary: &Path, args: &str, variable: Option<(&str, &str)>| {
        let output = Command::new(binary)
            .current_dir(dir.path())
            .args(args.split_whitespace())
            .envs(variable)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text.lines().next().unwrap_or("").to_owned())
    };
    let ours = Path::new(env!("CARGO_BIN_EXE_etcore"));
    // What all but one of these would need to start is missing: a client URL that is told.
    let all = "--listen-client-urls=http://127.0.0.1:1";
    for args in [
        "--no-such",
        "---x",
        "--=x",
        "--name",
        "--pre-vote=maybe",
        "--pre-vote=",
        "--pre-vote false",
        "--max-txn-ops=x",
        "--max-txn-ops=-1",
        "--grpc-keepalive-timeout=5",
        "--grpc-keepalive-timeout=1.5.s",
        "--initial-cluster-state=old",
        "--v2-deprecation=x",
        "--feature-gates=A=true",
        "--feature-gates=LeaseCheckpointPersist=true",
        "--listen-client-urls=x",
        "--logger=klog",
        "--log-format=xml",
        "--log-outputs=default,stderr",
        "--election-timeout=10",
        "--heartbeat-interval=0",
        "start",
        "--pre-vote=T --max-txn-ops=0x10 --quota-backend-bytes=-1 --grpc-keepalive-timeout=+1.5ms",
        "--name a -name=b --client-cert-auth --client-cert-auth=0",
    ] {
        let args = format!("{args} {all}");
        let (theirs, theirs_text) = run(&etcd, &args, None);
        let (status, text) = run(ours, &args, None);
        assert_eq!(status, theirs, "{args}: {text} and {theirs_text}");
        if status == 2 && !args.contains("urls=x") {
            assert!(text.starts_with(&theirs_text), "{text} and {theirs_text}");
        }
    }
    for variable in [("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:2"), ("ETCD_PRE_VOTE", "x")] {
        let (theirs, ours) = (run(&etcd, all, Some(variable)), run(ours, all, Some(variable)));
        assert_eq!((ours.0, theirs.0), (1, 1), "{variable:?}: {} and {}", ours.1, theirs.1);
    }
}

#[test]
fn a_variable_that_is_not_served_stops_the_start() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_etcore"))
        .current_dir(dir.path())
        .env("ETCD_DISCOVERY_TOKEN", "secret")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    let why = "etcore does not have discovery yet; list the members in --initial-cluster";
    assert_eq!(text, format!("ETCD_DISCOVERY_TOKEN: {why}; leave it out\n"));
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing was touched");
}

#[test]
fn a_unit_file_of_etcd_starts_a_member_and_hears_that_it_is_ready() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("notify");
    let listener = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let (client, peer) = (url(free_port()), url(free_port()));
    let child = Command::new(env!("CARGO_BIN_EXE_etcore"))
        .env("NOTIFY_SOCKET", &socket)
        .env("ETCD_DATA_DIR", dir.path().join("data"))
        .env("ETCD_NAME", "machine")
        .env("ETCD_LISTEN_CLIENT_URLS", &client)
        .env("ETCD_ADVERTISE_CLIENT_URLS", &client)
        .env("ETCD_LISTEN_PEER_URLS", &peer)
        .env("ETCD_INITIAL_ADVERTISE_PEER_URLS", &peer)
        .env("ETCD_INITIAL_CLUSTER", format!("machine={peer}"))
        .env("ETCD_WAL_SEGMENT_BYTES", crate::harness::SEGMENT_BYTES)
        .env("ETCD_CLIENT_CERT_AUTH", "false")
        .env("ETCD_SNAPSHOT_COUNT", "10000")
        .env("ETCD_ENABLE_PPROF", "")
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.unwrap();
    let mut heard = [0; 64];
    let len = listener.recv(&mut heard);
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(&heard[..len.unwrap()], b"READY=1");
}

#[test]
fn plain_endpoints_answer_as_etcds() {
    let _turn = crate::harness::turn::light();
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
    let _turn = crate::harness::turn::light();
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
    let _turn = crate::harness::turn::light();
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
    let _turn = crate::harness::turn::light();
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
    let _turn = crate::harness::turn::light();
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
    let _turn = crate::harness::turn::light();
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
    let _turn = crate::harness::turn::light();
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

/// Answers of a server to calls with an API version that is no text, and of the health service.
async fn answers_to_odd_heads(setup: &Setup) -> Vec<(Code, String)> {
    use prost::bytes::Bytes;
    use tonic::metadata::MetadataValue;
    let mut answers = Vec::new();
    for version in [&b"3.7"[..], b"\xff", b"caf\xe9", "caf\u{e9}".as_bytes()] {
        for path in
            ["/etcdserverpb.KV/Range", "/grpc.health.v1.Health/Check", "/etcdserverpb.Watch/Watch"]
        {
            let channel = tonic::transport::Endpoint::from_shared(setup.endpoint()).unwrap();
            let mut grpc = tonic::client::Grpc::new(channel.connect().await.unwrap());
            grpc.ready().await.unwrap();
            let codec = tonic_prost::ProstCodec::<pb::RangeRequest, ()>::default();
            let mut request = tonic::Request::new(pb::RangeRequest::default());
            let value = MetadataValue::try_from(version).unwrap();
            request.metadata_mut().insert("client-api-version", value);
            let answer = match path {
                "/etcdserverpb.Watch/Watch" if std::str::from_utf8(version).is_ok() => continue,
                _ => grpc.unary(request, path.parse().unwrap(), codec).await,
            };
            let status = answer.err().unwrap_or_else(|| tonic::Status::ok(""));
            answers.push((status.code(), status.message().to_owned()));
        }
    }
    let client = Client::connect(setup).await;
    let listed: HealthList = client.unary("/grpc.health.v1.Health/List", ()).await.unwrap();
    answers.push((Code::Ok, format!("{:?}", listed.entries as Vec<Bytes>)));
    answers
}

/// A HealthListResponse, its entries as they stand on the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthList {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    entries: Vec<prost::bytes::Bytes>,
}

#[test]
fn odd_heads_and_the_health_service_are_answered_as_by_etcd() {
    let _turn = crate::harness::turn::light();
    let Some(etcd) = oracle("etcd") else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let setups = dirs.each_ref().map(|dir| Setup::new(dir.path(), "portable"));
    let (_member, _etcd) = (setups[0].start(), crate::harness::Etcd::start(&etcd, &setups[1]));
    let [ours, theirs] = setups.each_ref().map(|setup| block_on(answers_to_odd_heads(setup)));
    assert_eq!(ours, theirs);
    let refusal = (Code::InvalidArgument, "etcdserver: invalid client api version".to_owned());
    assert_eq!(ours.iter().filter(|answer| **answer == refusal).count(), 6, "{ours:?}");
}

#[test]
fn several_fronts_share_the_connections() {
    let _turn = crate::harness::turn::light();
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
    let _turn = crate::harness::turn::light();
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
