//! What a member tells its operator, beside what etcd tells after the same traffic: metrics by
//! name, type, label and number, and the answers of its health endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;

use crate::harness::{Etcd, Setup, http_get, is_available, oracle};

/// Metrics of etcd that etcore has not, by what they begin with; docs/METRICS.md says why.
const LEFT_OUT: [&str; 10] = [
    "go_",
    "etcd_server_go_version",
    "etcd_grpc_proxy_",
    "etcd_debugging_store_",
    "etcd_debugging_disk_backend_commit_",
    "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
    "etcd_debugging_snap_save_",
    "etcd_snap_fsync_duration_seconds",
    "etcd_snap_db_fsync_duration_seconds",
    "etcd_disk_backend_snapshot_duration_seconds",
];

/// Series of metrics that both have which only etcd has: it proposes them, or serves their method.
const LEFT_OUT_SERIES: [&str; 6] = [
    "op=\"Alarm\"",
    "type=\"ClusterMemberAttrSet\"",
    "type=\"ClusterVersionSet\"",
    "grpc_service=\"etcdserverpb.Auth\"",
    "grpc_service=\"etcdserverpb.Cluster\"",
    "grpc_service=\"etcdserverpb.Maintenance\"",
];

/// What the traffic below counts alike, by what the series begin with.
const EQUAL: [&str; 25] = [
    "grpc_server_started_total",
    "grpc_server_handled_total",
    "grpc_server_msg_received_total",
    "grpc_server_msg_sent_total",
    "grpc_server_handling_seconds_count",
    "etcd_server_client_requests_total",
    "etcd_server_request_duration_seconds_count",
    "etcd_server_range_duration_seconds_count",
    "etcd_server_apply_duration_seconds_count",
    "etcd_server_health",
    "etcd_server_feature_enabled",
    "etcd_server_version",
    "etcd_server_has_leader",
    "etcd_server_quota_backend_bytes",
    "etcd_server_slow_read_indexes_total",
    "etcd_cluster_version",
    "etcd_mvcc_put_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_range_total",
    "etcd_mvcc_txn_total",
    "etcd_mvcc_hash_rev_duration_seconds_count",
    "etcd_debugging_lease_",
    "etcd_debugging_auth_revision",
    "etcd_disk_backend_defrag_duration_seconds_count",
    "etcd_debugging_mvcc_",
];

/// Names among those that no traffic makes equal.
const UNEQUAL: [&str; 5] = [
    "db_compaction_last",
    "_duration_milliseconds_",
    "_ttl_total_sum",
    // etcdctl ends its stream and its connection at once: either may be seen first.
    "grpc_code=\"OK\",grpc_method=\"LeaseKeepAlive\"",
    "grpc_code=\"Canceled\",grpc_method=\"LeaseKeepAlive\"",
];

struct Page {
    types: BTreeMap<String, String>,
    helps: BTreeMap<String, String>,
    series: BTreeMap<String, f64>,
    text: String,
}

fn page(port: u16) -> Page {
    use std::io::Read;
    // An answer to HTTP/1.0 comes in one piece.
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).expect("listens");
    write!(socket, "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n").expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains(" 200 "), "{head}");
    let comments = |kind: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(kind)?.split_once(' '));
        lines.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
    };
    let series = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("a value");
        (name.to_owned(), value.parse().expect("a number"))
    });
    Page {
        types: comments("# TYPE "),
        helps: comments("# HELP "),
        series: series.collect(),
        text: text.to_owned(),
    }
}

/// Sends the calls and requests that are counted, by etcdctl and over HTTP.
fn traffic(etcdctl: &Path, setup: &Setup) {
    let run = |line: &str, input: &str| -> String {
        let mut child = Command::new(etcdctl)
            .args(line.split(' '))
            .env("ETCDCTL_ENDPOINTS", setup.endpoint())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcdctl starts");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("read");
        let output = child.wait_with_output().expect("etcdctl ends");
        String::from_utf8(output.stdout).expect("text")
    };
    for line in [
        "put foo bar",
        "put foo baz --prev-kv",
        "get foo",
        "get foo --consistency=s",
        "get nothing --prefix",
        "del foo --prev-kv",
        "put y 1 --lease=123",
        "get --rev=99 foo",
        "endpoint status",
        "endpoint hashkv",
        "lease list",
    ] {
        run(line, "");
    }
    run("txn", "value(\"a\") = \"1\"\n\nput a 1\nget b\n\nput a 2\n\n\n");
    run("txn", "\n\nget a\n\n\n");
    let granted = run("lease grant 100", "");
    let lease = granted.split(' ').nth(1).expect("an ID");
    for line in [
        format!("put l 1 --lease={lease}"),
        format!("lease keep-alive --once {lease}"),
        format!("lease timetolive {lease} --keys"),
        format!("lease revoke {lease}"),
        "compact 5 --physical".to_owned(),
        "compact 5".to_owned(),
        "get a --rev=2".to_owned(),
        "defrag".to_owned(),
    ] {
        run(&line, "");
    }
    let mut watch = Command::new(etcdctl)
        .args(["watch", "a", "--rev=6"])
        .env("ETCDCTL_ENDPOINTS", setup.endpoint())
        .stdout(Stdio::piped())
        .spawn()
        .expect("etcdctl starts");
    let mut seen = [0; 4];
    run("put a 3", "");
    std::io::Read::read_exact(&mut watch.stdout.take().expect("piped"), &mut seen).expect("PUT");
    watch.kill().and_then(|()| watch.wait()).expect("killed");
    for target in ["/health", "/readyz", "/livez/serializable_read", "/readyz/nothing"] {
        http_get(setup.client_port, target);
    }
}

/// The page once what ended last is counted too.
fn settled(port: u16) -> Page {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let page = page(port);
        let watches = page.series.get("etcd_debugging_mvcc_watch_stream_total");
        if watches == Some(&0.0) || Instant::now() > end {
            return page;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn begins_with(name: &str, beginnings: &[&str]) -> bool {
    beginnings.iter().any(|beginning| name.starts_with(beginning))
}

fn contains(name: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| name.contains(part))
}

#[test]
fn both_pages_of_metrics_have_the_same_names_labels_and_numbers() {
    let _turn = crate::harness::turn::light();
    let (Some(etcd), Some(etcdctl)) = (oracle("etcd"), oracle("etcdctl")) else { return };
    let driver = if is_available("uring") { "uring" } else { "portable" };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [ours, theirs] =
        [0, 1].map(|at| Setup::new(dirs[at].path(), driver).with("--metrics=extensive"));
    let _member = ours.start();
    let _etcd = Etcd::start(&etcd, &theirs);
    traffic(&etcdctl, &ours);
    traffic(&etcdctl, &theirs);
    let (mine, other) = (settled(ours.client_port), settled(theirs.client_port));
    let mut wrong = Vec::new();
    for (name, kind) in other.types.iter().filter(|(name, _)| !begins_with(name, &LEFT_OUT)) {
        if mine.types.get(name) != Some(kind) || mine.helps.get(name) != other.helps.get(name) {
            let (kind_of_mine, help) = (mine.types.get(name), mine.helps.get(name));
            wrong.push(format!("{name}: {kind} in etcd, here {kind_of_mine:?}, {help:?}"));
        }
    }
    for name in mine.types.keys().filter(|name| !name.starts_with("etcore_")) {
        if begins_with(name, &LEFT_OUT) || !other.types.contains_key(name) {
            wrong.push(format!("{name} is here and not in etcd"));
        }
    }
    for (series, number) in &other.series {
        let found = mine.series.get(series);
        let must_be_equal = begins_with(series, &EQUAL) && !contains(series, &UNEQUAL);
        let is_there = found.is_some()
            || begins_with(series, &LEFT_OUT)
            || contains(series, &LEFT_OUT_SERIES)
            // Both name themselves there.
            || contains(series, &["server_id=", "Local="]);
        if !is_there || must_be_equal && found.is_some_and(|found| found != number) {
            wrong.push(format!("{series}: {number} in etcd, here {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    lint(&mine.text);
}

/// Prometheus' own judgement, where it is installed: of etcd's names it knows better ones, and has
/// nothing to say of anything else.
fn lint(text: &str) {
    let Some(promtool) = oracle("promtool") else { return };
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("read");
    let output = child.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("text"));
    for line in said.iter().flat_map(|text| text.lines()).filter(|line| !line.is_empty()) {
        let of_etcd = line.starts_with("etcd_");
        let of_a_name = contains(line, &["\"_total\" suffix", "use base unit"]);
        assert!(of_etcd && of_a_name, "{line}");
    }
}

/// What etcd's alerts and dashboard name (`contrib/mixin`), but for failures to send to a peer,
/// which are counted from the first on.
const MIXIN: [&str; 20] = [
    "etcd_disk_backend_commit_duration_seconds_bucket",
    "etcd_disk_wal_fsync_duration_seconds_bucket",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_network_peer_received_bytes_total",
    "etcd_network_peer_round_trip_time_seconds_bucket",
    "etcd_network_peer_sent_bytes_total",
    "etcd_server_has_leader",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_proposals_pending",
    "etcd_server_quota_backend_bytes",
    "grpc_server_handled_total",
    "grpc_server_handling_seconds_bucket",
    "grpc_server_started_total",
    "process_resident_memory_bytes",
];

#[test]
fn etcds_alerts_and_dashboard_find_every_metric_that_they_name() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let cluster = crate::harness::cluster::Cluster::start(
        dir.path(),
        "portable",
        2,
        &["--metrics=extensive"],
    );
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let page = page(cluster.setups[0].client_port);
        let series = page.series.keys();
        let names: BTreeSet<&str> =
            series.map(|series| series.split('{').next().unwrap_or(series)).collect();
        let missing: Vec<_> = MIXIN.iter().filter(|name| !names.contains(*name)).collect();
        // A round trip is made every few seconds.
        if missing.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "{missing:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    // The dashboard asks for these labels.
    let text = page(cluster.setups[0].client_port).text;
    for labels in [
        "{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"}",
        "{grpc_code=\"Unavailable\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",\
         grpc_type=\"unary\"}",
    ] {
        assert!(text.contains(labels), "{labels}");
    }
}

#[test]
fn failing_health_is_told_as_etcd_tells_it() {
    let _turn = crate::harness::turn::light();
    let Some(etcd) = oracle("etcd") else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [ours, theirs] = [0, 1].map(|at| Setup::new(dirs[at].path(), "portable"));
    let mut member = ours.start();
    let _etcd = Etcd::start(&etcd, &theirs);
    let raise = |alarm: pb::AlarmType| {
        for setup in [&ours, &theirs] {
            crate::harness::block_on(async {
                let client = crate::harness::Client::connect(setup).await;
                let status = client.status(pb::StatusRequest {}).await.unwrap();
                let request = pb::AlarmRequest {
                    action: pb::alarm_request::AlarmAction::Activate as i32,
                    member_id: status.header.unwrap().member_id,
                    alarm: alarm as i32,
                };
                client.alarm(request).await.unwrap();
            });
        }
    };
    let compare = |targets: &[&str]| {
        for target in targets {
            let (mine, other) =
                (http_get(ours.client_port, target), http_get(theirs.client_port, target));
            assert_eq!(mine, other, "{target}");
        }
    };
    raise(pb::AlarmType::Nospace);
    compare(&[
        "/health",
        "/health?serializable=true",
        "/health?exclude=NOSPACE",
        "/health?exclude=&exclude=CORRUPT",
        "/livez?verbose",
        "/readyz/data_corruption?verbose",
        "/readyz",
    ]);
    member.wait_for_line("serving /health false due to an alarm");
    let line = member.wait_for_line("\"/health error\"");
    assert!(line.contains("\"status-code\":503") && line.contains("ALARM NOSPACE"), "{line}");
    raise(pb::AlarmType::Corrupt);
    compare(&[
        "/health?exclude=NOSPACE",
        "/health?exclude=NOSPACE&exclude=CORRUPT",
        "/readyz/data_corruption",
        "/readyz?exclude=data_corruption",
        "/readyz?exclude=data_corruption&exclude=nothing",
    ]);
    let line = member.wait_for_line("\"Health check error\"");
    assert!(line.contains("\"path\":\"/readyz/data_corruption\""), "{line}");
    let line = member.wait_for_line("some health checks cannot be excluded");
    assert!(line.contains("\\\"nothing\\\""), "{line}");
    let page = page(ours.client_port);
    for (series, number) in [
        ("etcd_server_healthcheck{name=\"data_corruption\",type=\"readyz\"}", 0.0),
        ("etcd_server_healthcheck{name=\"serializable_read\",type=\"livez\"}", 1.0),
    ] {
        assert_eq!(page.series.get(series), Some(&number), "{series}");
    }
}

/// What a listener sends to a request over HTTP/1.1 before it closes the connection.
fn raw(port: u16, target: &str) -> String {
    use std::io::Read;
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    // It may be closed before it has taken everything.
    let _ = socket.write_all(request.as_bytes());
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.lines().next().unwrap_or("").to_owned()
}

#[test]
fn metrics_and_http_have_urls_of_their_own_if_asked_for() {
    let _turn = crate::harness::turn::light();
    let Some(etcd) = oracle("etcd") else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let ports: [[u16; 2]; 2] =
        [0, 1].map(|_| [crate::harness::free_port(), crate::harness::free_port()]);
    let [ours, theirs] = [0, 1].map(|at| {
        let [metrics, http] = ports[at];
        Setup::new(dirs[at].path(), "portable")
            .with(&format!("--listen-metrics-urls=http://127.0.0.1:{metrics}"))
            .with(&format!("--listen-client-http-urls=http://127.0.0.1:{http}"))
    });
    let mut member = ours.spawn();
    let line = member.wait_for_line("serving client traffic insecurely");
    assert!(line.contains("\"traffic\":\"grpc\""), "{line}");
    let line = member.wait_for_line("serving client traffic insecurely");
    assert!(line.contains("\"traffic\":\"http\""), "{line}");
    member.wait_for_line("serving metrics");
    let _etcd = Etcd::start(&etcd, &theirs);
    crate::harness::block_on(async {
        let client = crate::harness::Client::connect(&ours).await;
        assert!(client.put_kv("a", "b").await > 0, "gRPC is where it was");
    });
    for target in ["/metrics", "/health", "/readyz", "/livez", "/version", "/nothing"] {
        for at in 0..2 {
            let answers = ports.map(|ports| raw(ports[at], target));
            assert_eq!(answers[0], answers[1], "{target}");
        }
    }
    for (port, status) in [(ports[0][0], "404"), (ports[0][1], "200")] {
        let line = raw(port, "/version");
        assert!(line.contains(status), "{line}");
    }
    let line = raw(ours.client_port, "/version");
    assert!(!line.contains("HTTP/1.1"), "{line}");
    let mut elsewhere = ours.clone();
    elsewhere.client_port = ports[0][1];
    crate::harness::block_on(async {
        let client = crate::harness::Client::connect(&elsewhere).await;
        assert!(client.status(pb::StatusRequest {}).await.is_err(), "gRPC on a URL for HTTP");
    });
}

#[test]
fn what_takes_long_is_told_without_values() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable")
        .with("--warning-unary-request-duration=1ns")
        .with("--warning-apply-duration=1ns");
    let mut member = setup.spawn();
    member.wait_for_line(" elected leader ");
    member.wait_for_line("ready to serve client requests");
    crate::harness::block_on(async {
        let client = crate::harness::Client::connect(&setup).await;
        client.put_kv("foo", "secret-value").await;
        client.get("foo").await;
        let put = pb::PutRequest { key: "t".into(), value: "secret".into(), ..Default::default() };
        let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) };
        client.txn(pb::TxnRequest { success: vec![op], ..Default::default() }).await.unwrap();
        client.compact(pb::CompactionRequest { revision: 2, physical: true }).await.unwrap();
        client.defragment(pb::DefragmentRequest {}).await.unwrap();
    });
    let mut lines = Vec::new();
    for text in [
        "put:<key:\\\"foo\\\" value_size:12 >",
        "\"response type\":\"/etcdserverpb.KV/Put\"",
        "\"prefix\":\"read-only range \"",
        "\"response type\":\"/etcdserverpb.KV/Range\"",
        "\"response type\":\"/etcdserverpb.KV/Txn\"",
        "finished scheduled compaction",
        "finished defragment",
    ] {
        lines.push(member.wait_for_line(text));
    }
    let [apply, put, read, range, txn, compaction, _] = &lines[..] else { panic!("seven lines") };
    for part in ["\"apply request took too long\"", "\"expected-duration\":\"1ns\"", "\"took\":\""]
    {
        assert!(apply.contains(part) && read.contains(part), "{apply}\n{read}");
    }
    for part in [
        "\"level\":\"warn\"",
        "\"msg\":\"request stats\"",
        "\"start time\":\"20",
        "\"time spent\":\"",
        "\"remote\":\"127.0.0.1:",
        "\"request count\":1,",
        "\"response count\":0,",
        "\"request content\":\"key:\\\"foo\\\" value_size:12 \"",
    ] {
        assert!(put.contains(part), "{part} is not in {put}");
    }
    for part in ["\"response count\":1,", "\"request content\":\"key:\\\"foo\\\"\""] {
        assert!(range.contains(part), "{part} is not in {range}");
    }
    for part in [
        "\"request count\":1,",
        "\"request size\":13,",
        "compare:<> success:<request_put:<key:\\\"t\\\" value_size:6 >> failure:<>",
    ] {
        assert!(txn.contains(part), "{part} is not in {txn}");
    }
    for part in ["\"compact-revision\":2", "\"number-of-keys-compacted\":0", "kB\""] {
        assert!(compaction.contains(part), "{part} is not in {compaction}");
    }
    let told = member.lines_so_far();
    assert!(told.iter().all(|line| !line.contains("secret")), "{told:?}");
}

#[test]
fn a_profile_opens_in_gos_tool_and_is_taken_one_at_a_time() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable").with("--enable-pprof");
    let _member = setup.start();
    let port = setup.client_port;
    let (status, vars) = http_get(port, "/debug/vars");
    let vars: serde_json::Value = serde_json::from_str(&vars).expect("JSON");
    assert_eq!((status, &vars["raft.status"]["raftState"]), (200, &"StateLeader".into()));
    let ask = |target: &str| {
        use std::io::Read;
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(socket, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
        (head, bytes[end + 4..].to_vec())
    };
    let profile = std::thread::scope(|scope| {
        let first = scope.spawn(|| ask("/debug/pprof/profile?seconds=2"));
        crate::harness::block_on(async {
            let client = crate::harness::Client::connect(&setup).await;
            let end = Instant::now() + Duration::from_millis(1500);
            let mut number = 0;
            while Instant::now() < end {
                client.put_kv("busy", &number.to_string()).await;
                number += 1;
            }
        });
        let (head, body) = ask("/debug/pprof/profile?seconds=1");
        let body = String::from_utf8_lossy(&body);
        assert!(head.starts_with("HTTP/1.1 500 ") && body.contains("already in use"), "{body}");
        let (head, profile) = first.join().unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        profile
    });
    for (target, status) in [
        ("/debug/pprof/", "200"),
        ("/debug/pprof/cmdline", "200"),
        ("/debug/pprof/heap", "404"),
        ("/debug/pprof/profile?seconds=301", "400"),
    ] {
        let (head, _) = ask(target);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {head}");
    }
    let file = dir.path().join("profile");
    std::fs::write(&file, &profile).unwrap();
    let Some(go) = oracle("go") else { return };
    let output = Command::new(go).args(["tool", "pprof", "-raw"]).arg(&file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("cpu/nanoseconds"), "{text}");
    assert!(text.contains("etcore_server"), "{text}");
}

#[test]
fn profiles_are_not_there_unless_asked_for() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let _member = setup.start();
    assert_eq!(http_get(setup.client_port, "/debug/pprof/profile?seconds=1").0, 404);
}
