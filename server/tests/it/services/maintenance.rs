//! Maintenance against a real member: alarms and the quota's whole way, hashes while writes go on,
//! and a defragmentation that nobody notices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use pb::AlarmType;
use pb::alarm_request::AlarmAction;
use tonic::Code;

use crate::harness::{Client, DRIVERS, Etcd, Setup, block_on, http_get, is_available, oracle};

fn long() -> bool {
    std::env::var_os("ETCORE_LONG").is_some()
}

fn put(key: &str, len: usize) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: vec![b'x'; len].into(),
        ..Default::default()
    }
}

fn delete_all() -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: false }
}

fn alarm(action: AlarmAction, member_id: u64, kind: AlarmType) -> pb::AlarmRequest {
    pb::AlarmRequest { action: action as i32, member_id, alarm: kind as i32 }
}

async fn compact_to_now(client: &Client) {
    let revision = client.delete_range(delete_all()).await.unwrap().header.unwrap().revision;
    let request = pb::CompactionRequest { revision, physical: true };
    client.compact(request).await.unwrap();
}

async fn put_until_full(client: &Client) -> u32 {
    for count in 0.. {
        match client.put(put(&format!("k{count}"), 100_000)).await {
            Ok(_) => assert!(count < 1000, "the quota never ends it"),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                assert_eq!(status.message(), "etcdserver: mvcc: database space exceeded");
                return count;
            }
        }
    }
    unreachable!("the loop ends by a return")
}

#[test]
fn a_full_quota_raises_the_alarm_deletes_go_on_and_it_clears_by_itself() {
    let _turn = crate::harness::turn::light();
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with("--quota-backend-bytes=8000000");
        let member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            let taken = put_until_full(&client).await;
            assert!((60..90).contains(&taken), "{taken} values of 100 kB in 8 MB");
            let status = client.status(pb::StatusRequest::default()).await.unwrap();
            let member_id = status.header.unwrap().member_id;
            assert_eq!(status.errors, [format!("memberID:{member_id} alarm:NOSPACE")]);
            assert_eq!(status.db_size_quota, 8_000_000);
            let get = alarm(AlarmAction::Get, 0, AlarmType::None);
            let raised = pb::AlarmMember { member_id, alarm: AlarmType::Nospace as i32 };
            assert_eq!(client.alarm(get).await.unwrap().alarms, [raised]);
            let (status, body) = http_get(setup.client_port, "/health");
            assert_eq!(
                (status, body.trim_end()),
                (503, r#"{"health":"false","reason":"ALARM NOSPACE"}"#)
            );
            assert_eq!(http_get(setup.client_port, "/health?exclude=NOSPACE").0, 200);
            assert_eq!(http_get(setup.client_port, "/readyz").0, 200);

            // What cannot grow the store is let through, a transaction with a put is not.
            let op = |request| pb::RequestOp { request: Some(request) };
            let with_put = pb::TxnRequest {
                failure: vec![op(pb::request_op::Request::RequestPut(put("t", 1)))],
                ..Default::default()
            };
            let refused = client.txn(with_put).await.unwrap_err();
            assert_eq!(refused.message(), "etcdserver: mvcc: database space exceeded");
            let deletes = pb::TxnRequest {
                success: vec![op(pb::request_op::Request::RequestDeleteRange(
                    pb::DeleteRangeRequest { key: "k0".into(), ..Default::default() },
                ))],
                ..Default::default()
            };
            assert!(client.txn(deletes).await.unwrap().succeeded);
            assert!(client.get("k1").await.is_some(), "reads go on");
            compact_to_now(&client).await;

            // There is room now, but the alarm is on until it is switched off.
            assert!(client.put(put("small", 1)).await.is_err());
            let began = Instant::now();
            loop {
                match client.put(put("small", 1)).await {
                    Ok(_) => break,
                    Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
                }
                assert!(began.elapsed() < Duration::from_secs(25), "the alarm does not go off");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            assert!(began.elapsed() > Duration::from_secs(8), "it waits for ten seconds of room");
            assert_eq!(client.alarm(get).await.unwrap().alarms, []);

            // An operator may do it at once.
            put_until_full(&client).await;
            compact_to_now(&client).await;
            let disarm = alarm(AlarmAction::Deactivate, member_id, AlarmType::Nospace);
            assert_eq!(client.alarm(disarm).await.unwrap().alarms, [raised]);
            assert_eq!(client.alarm(disarm).await.unwrap().alarms, [], "it is off already");
            client.put(put("small", 1)).await.unwrap();
            put_until_full(&client).await;
        });
        // An alarm outlives the process.
        member.kill();
        let _member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            assert!(client.put(put("small", 1)).await.is_err());
            let get = alarm(AlarmAction::Get, 0, AlarmType::Nospace);
            assert_eq!(client.alarm(get).await.unwrap().alarms.len(), 1);
        });
    }
}

#[test]
fn a_corrupt_alarm_refuses_every_change_and_readyz_says_so() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let mut member = setup.start();
    block_on(async {
        let client = Client::connect(&setup).await;
        client.put_kv("a", "1").await;
        let raise = alarm(AlarmAction::Activate, 77, AlarmType::Corrupt);
        assert_eq!(client.alarm(raise).await.unwrap().alarms.len(), 1);
        assert_eq!(client.alarm(raise).await.unwrap().alarms.len(), 1, "raised once, named again");
        let refused = |status: tonic::Status| (status.code(), status.message().to_owned());
        let corrupt = (Code::DataLoss, "etcdserver: corrupt cluster".to_owned());
        assert_eq!(refused(client.put(put("a", 1)).await.unwrap_err()), corrupt);
        assert_eq!(refused(client.delete_range(delete_all()).await.unwrap_err()), corrupt);
        let compaction = pb::CompactionRequest { revision: 2, physical: false };
        assert_eq!(refused(client.compact(compaction).await.unwrap_err()), corrupt);
        assert_eq!(client.get("a").await.as_deref(), Some("1"));
        let (status, body) = http_get(setup.client_port, "/readyz");
        assert_eq!(status, 503);
        assert!(
            body.starts_with("[-]data_corruption failed: alarm activated: CORRUPT\n"),
            "{body}"
        );
        let line = member.wait_for_line("Health check error");
        assert!(line.contains(r#""path":"/readyz","reason":"[-]data_corruption"#), "{line}");
        assert_eq!(http_get(setup.client_port, "/health").0, 503);
        let line = member.wait_for_line("\"/health error\"");
        let output = r#""output":"{\"health\":\"false\",\"reason\":\"ALARM CORRUPT\"}""#;
        assert!(line.contains(output) && line.contains(r#""status-code":503"#), "{line}");
        let disarm = alarm(AlarmAction::Deactivate, 77, AlarmType::Corrupt);
        client.alarm(disarm).await.unwrap();
        client.put_kv("a", "2").await;
    });
}

#[test]
fn hashes_under_writes_agree_with_those_of_a_member_at_rest() {
    let _turn = crate::harness::turn::light();
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let member = setup.start();
        let rounds = if long() { 300 } else { 30 };
        let hashes = block_on(async {
            let client = Client::connect(&setup).await;
            let mut hashes = Vec::new();
            for round in 0..rounds {
                let mut revision = 0;
                for key in 0..20 {
                    revision = client.put_kv(&format!("k{key}"), &format!("{round}")).await;
                }
                let request = pb::HashKvRequest { revision };
                let (hash, writes) = tokio::join!(client.hash_kv(request), async {
                    for _ in 0..20 {
                        client.put_kv("other", "x").await;
                    }
                });
                let () = writes;
                hashes.push((revision, hash.unwrap()));
                if round % 10 == 9 {
                    // A compaction among the writes; hashes from before it count no more.
                    let request = pb::CompactionRequest { revision, physical: false };
                    client.compact(request).await.unwrap();
                    hashes.clear();
                }
            }
            for (revision, early) in &hashes {
                let late = client.hash_kv(pb::HashKvRequest { revision: *revision }).await.unwrap();
                assert_eq!(
                    (late.hash, late.compact_revision, late.hash_revision),
                    (early.hash, early.compact_revision, early.hash_revision)
                );
            }
            let everything = client.hash(pb::HashRequest {}).await.unwrap();
            let again = client.hash(pb::HashRequest {}).await.unwrap();
            assert_eq!(everything.hash, again.hash);
            assert_ne!(everything.hash, 0);
            client.hash_kv(pb::HashKvRequest::default()).await.unwrap()
        });
        // Rows in pages hash like rows in memory.
        member.kill();
        let _member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            let after = client.hash_kv(pb::HashKvRequest::default()).await.unwrap();
            assert_eq!(
                (after.hash, after.compact_revision, after.hash_revision),
                (hashes.hash, hashes.compact_revision, hashes.hash_revision)
            );
        });
    }
}

#[test]
fn defragment_shortens_the_file_while_others_are_served() {
    let _turn = crate::harness::turn::light();
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let member = setup.start();
        let file = setup.data_dir.join("member/etcore.db");
        // Beside a reserve of 32 MiB.
        let len = || std::fs::metadata(&file).unwrap().len() - (32 << 20);
        let megabytes: u32 = if long() { 400 } else { 40 };
        block_on(async {
            let client = Client::connect(&setup).await;
            for number in 0..megabytes * 10 {
                client.put(put(&format!("k{number:05}"), 100_000)).await.unwrap();
            }
            let full = len();
            let request = pb::DeleteRangeRequest {
                key: "k".into(),
                range_end: format!("k{:05}", megabytes * 9).into(),
                prev_kv: false,
            };
            let deleted = client.delete_range(request).await.unwrap();
            let revision = deleted.header.unwrap().revision;
            let request = pb::CompactionRequest { revision, physical: true };
            client.compact(request).await.unwrap();
            let busy = async {
                let mut slowest = Duration::ZERO;
                for number in 0..200 {
                    let began = Instant::now();
                    client.put_kv("busy", &number.to_string()).await;
                    slowest = slowest.max(began.elapsed());
                }
                slowest
            };
            let (done, slowest) = tokio::join!(client.defragment(pb::DefragmentRequest {}), busy);
            assert_eq!(done.unwrap(), pb::DefragmentResponse::default());
            assert!(slowest < Duration::from_secs(2), "a put took {slowest:?} meanwhile");
            let short = len();
            assert!(short <= full / 4, "{full} bytes before, {short} after");
            let status = client.status(pb::StatusRequest::default()).await.unwrap();
            assert!(status.db_size < i64::try_from(full / 4).unwrap(), "{}", status.db_size);
            let last = format!("k{:05}", megabytes * 10 - 1);
            assert_eq!(client.get(&last).await.unwrap().len(), 100_000);
            assert_eq!(client.get("busy").await.as_deref(), Some("199"));
        });
        member.kill();
        let _member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            let last = format!("k{:05}", megabytes * 10 - 1);
            assert_eq!(client.get(&last).await.unwrap().len(), 100_000);
        });
    }
}

/// A raw HTTP/1.1 request: the status line, the fields with names in lower case, and the body.
fn ask_http(port: u16, head: &str) -> (String, BTreeMap<String, String>, String) {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(socket, "{head}\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let (status, fields) = head.split_once("\r\n").unwrap();
    let fields = fields.lines().map(|line| line.split_once(": ").unwrap());
    let fields = fields.map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    (status.to_owned(), fields.collect(), body.to_owned())
}

#[test]
fn http_answers_have_etcds_heads_and_bodies() {
    let _turn = crate::harness::turn::light();
    let Some(etcd) = oracle("etcd") else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let ours = Setup::new(dirs[0].path(), "portable");
    let theirs = Setup::new(dirs[1].path(), "portable");
    let (_member, _etcd) = (ours.start(), Etcd::start(&etcd, &theirs));
    let metrics = "/metrics HTTP/1.1\r\nAccept: ";
    let client = [
        "GET /health HTTP/1.1",
        "GET /health?serializable=%74rue HTTP/1.1",
        "GET /%68ealth HTTP/1.1",
        "GET /health%zz HTTP/1.1",
        "POST /health HTTP/1.1",
        "HEAD /health HTTP/1.1",
        "GET /livez HTTP/1.1",
        "GET /livez?verbose HTTP/1.1",
        "GET /livez?exclude=serializable%5fread&verbose= HTTP/1.1",
        "GET /livez?exclude=serializable_read;a=b&verbose HTTP/1.1",
        "GET /livez/serializable_read?verbose HTTP/1.1",
        "GET /livez/serializable_read?verbose&exclude=serializable_read HTTP/1.1",
        "GET /livez/other HTTP/1.1",
        "POST /livez/serializable_read HTTP/1.1",
        "POST /readyz HTTP/1.1",
        "GET /readyz HTTP/1.1",
        "GET /readyz/linearizable_read HTTP/1.1",
        "GET /version HTTP/1.1",
        "POST /version HTTP/1.1",
        "GET /nothing HTTP/1.1",
        "OPTIONS /health HTTP/1.1",
        "GET /metrics HTTP/1.1",
        &format!("GET {metrics}text/plain"),
        &format!("GET {metrics}*/*"),
        &format!("GET {metrics}application/json"),
    ];
    let peer = ["GET /version HTTP/1.1", "POST /members HTTP/1.1", "GET /nothing HTTP/1.1"];
    let client = client.iter().map(|head| (*head, ours.client_port, theirs.client_port));
    let peer = peer.iter().map(|head| (*head, ours.peer_port, theirs.peer_port));
    for (head, our_port, their_port) in client.chain(peer) {
        let ask = |port| {
            let (status, mut fields, mut body) = ask_http(port, head);
            let date = fields.remove("date");
            let is_date = date.is_some_and(|date| date.len() == 29 && date.ends_with(" GMT"));
            if head.contains("metrics") || status.contains("400") {
                // etcd sends the first in chunks, the other as long as the connection lasts.
                fields.remove("content-length");
                fields.remove("transfer-encoding");
            }
            if head.contains("metrics") {
                body.clear();
            }
            (status, fields, body, is_date)
        };
        assert_eq!(ask(our_port), ask(their_port), "{head}");
    }
    let (_, fields, body) =
        ask_http(ours.client_port, &format!("GET {metrics}application/openmetrics-text"));
    assert!(fields["content-type"].starts_with("application/openmetrics-text"));
    assert!(body.contains("\netcd_server_health_success ") && body.ends_with("# EOF\n"));
}

/// Values without labels, and the types of all, by name.
fn read_metrics(port: u16) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
    let (_, text) = http_get(port, "/metrics");
    let text = text.replace("\r\n", "\n");
    let values = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let types = types.map(|(name, kind)| (name.to_owned(), kind.to_owned()));
    (values.collect(), types.collect())
}

#[test]
fn metrics_count_what_etcds_count_under_its_names() {
    let _turn = crate::harness::turn::light();
    let Some(etcd) = oracle("etcd") else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let ours = Setup::new(dirs[0].path(), "portable");
    let theirs = Setup::new(dirs[1].path(), "portable");
    let (_member, _etcd) = (ours.start(), Etcd::start(&etcd, &theirs));
    let op = |request| pb::RequestOp { request: Some(request) };
    let put = |key: &str, prev_kv| pb::PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        prev_kv,
        ..Default::default()
    };
    let range = |key: &str| pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
    let delete =
        |prev_kv| pb::DeleteRangeRequest { key: "c".into(), range_end: "e".into(), prev_kv };
    use pb::request_op::Request::{RequestDeleteRange, RequestPut, RequestRange, RequestTxn};
    let compare = pb::Compare {
        key: "a".into(),
        target: pb::compare::CompareTarget::Version as i32,
        target_union: Some(pb::compare::TargetUnion::Version(0)),
        ..Default::default()
    };
    let writes = || pb::TxnRequest {
        compare: vec![compare.clone()],
        success: vec![op(RequestPut(put("x", false)))],
        failure: vec![
            op(RequestPut(put("b", true))),
            op(RequestRange(range("a"))),
            op(RequestTxn(Box::new(pb::TxnRequest {
                success: vec![op(RequestPut(put("c", false))), op(RequestRange(range("b")))],
                ..Default::default()
            }))),
        ],
    };
    let reads = pb::TxnRequest {
        compare: vec![compare.clone()],
        failure: vec![op(RequestRange(range("a"))), op(RequestRange(range("b")))],
        ..Default::default()
    };
    let lonely = pb::TxnRequest {
        success: vec![op(RequestDeleteRange(delete(true)))],
        ..Default::default()
    };
    let ask = |setup: &Setup| {
        let before = read_metrics(setup.client_port).0;
        block_on(async {
            let client = Client::connect(setup).await;
            client.put(put("a", false)).await.unwrap();
            client.put(put("a", true)).await.unwrap();
            client.range(range("a")).await.unwrap();
            client.range(pb::RangeRequest { serializable: true, ..range("a") }).await.unwrap();
            client.txn(writes()).await.unwrap();
            client.txn(reads.clone()).await.unwrap();
            client.delete_range(delete(false)).await.unwrap();
            client.txn(lonely.clone()).await.unwrap();
            client.put(put("d", false)).await.unwrap();
            let lease = pb::LeaseGrantRequest { ttl: 100, id: 7 };
            client.lease_grant(lease).await.unwrap();
            for key in ["l", "m", "n"] {
                client.put(pb::PutRequest { lease: 7, ..put(key, false) }).await.unwrap();
            }
            let revoke = pb::LeaseRevokeRequest { id: 7 };
            let revoked: Result<pb::LeaseRevokeResponse, _> =
                client.unary("/etcdserverpb.Lease/LeaseRevoke", revoke).await;
            revoked.unwrap();
            let compaction = pb::CompactionRequest { revision: 5, physical: false };
            client.compact(compaction).await.unwrap();
        });
        let (after, types) = read_metrics(setup.client_port);
        for _ in 0..2 {
            http_get(setup.client_port, "/health");
        }
        let health = read_metrics(setup.client_port).0["etcd_server_health_success"];
        let names = ["put", "range", "delete", "txn"].map(|what| format!("etcd_mvcc_{what}_total"));
        let counted = names.map(|name| after[&name] - before[&name]);
        let levels = ["keys_total", "current_revision", "compact_revision"]
            .map(|name| after[&format!("etcd_debugging_mvcc_{name}")]);
        ((counted, levels, health), types)
    };
    let ((ours, our_types), (theirs, their_types)) = (ask(&ours), ask(&theirs));
    assert_eq!(ours, theirs);
    for (name, kind) in &our_types {
        // etcd has those of its own in other words.
        if let Some(expected) = their_types.get(name) {
            assert_eq!(kind, expected, "{name}");
        }
    }
    assert_eq!(our_types["process_cpu_seconds_total"], "counter");
}
