//! What an operator sets, on real processes: beside etcd's refusals, from a file, and what the
//! settings do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use etcore_proto::pb::etcdserverpb as pb;

use crate::harness::{Client, Setup, block_on, free_port, oracle};

fn etcore() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_etcore"))
}

/// The exit status, and all of standard error.
fn run(binary: &Path, dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary).current_dir(dir).args(args).output().expect("it runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

/// What etcd says is wrong with its settings, in the last of its log's lines that says so.
fn verdict(log: &str) -> String {
    let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
    let errors =
        lines.filter_map(|line: serde_json::Value| Some(line["error"].as_str()?.to_owned()));
    let last = errors.fold(None, |_, error| Some(error));
    last.unwrap_or_else(|| panic!("no error in {log}"))
}

#[test]
fn settings_that_do_not_fit_together_are_refused_in_etcds_words() {
    let _turn = crate::harness::turn::light();
    let Some(etcd) = oracle("etcd") else { return };
    let dir = tempfile::tempdir().unwrap();
    let cases: &[&[&str]] = &[
        &["start"],
        &["--heartbeat-interval=0"],
        &["--election-timeout=0"],
        &["--election-timeout=100"],
        &["--election-timeout=50001"],
        &["--logger=klog"],
        &["--logger=capnslog"],
        &["--log-format=xml"],
        &["--log-outputs=stderr,default"],
        &["--log-outputs=/no/such/dir/m.log"],
        &["--enable-log-rotation"],
        &["--enable-log-rotation", "--log-outputs=a.log,b.log"],
        &["--auto-compaction-mode=hourly"],
        &["--auto-compaction-mode="],
        &["--feature-gates=LeaseCheckpointPersist=true"],
        &["--compact-hash-check-time=0s"],
        &["--discovery-fallback=proxy"],
        &["--config-file=/no/such/file"],
        &["--listen-client-urls=http://127.0.0.1:1"],
        &["--listen-client-urls=http://example.com:1", "--advertise-client-urls=http://a:1"],
        &["--listen-peer-urls=http://example.com:1"],
        &["--initial-advertise-peer-urls=http://:1"],
        &["--advertise-client-urls=http://:1"],
    ];
    for args in cases {
        let (theirs, log) = run(&etcd, dir.path(), args);
        let (status, text) = run(etcore(), dir.path(), args);
        assert_eq!(status, theirs, "{args:?}: {text} and {log}");
        assert_eq!(text.trim_end(), verdict(&log), "{args:?}");
    }
    let (client, peer) = (free_port(), free_port());
    // Only the beginning of these is compared: Go's packages have further words.
    for (args, begins) in [
        (
            ["--auto-compaction-retention=5d"],
            "error parsing CompactionRetention: time: unknown unit \"d\" in duration \"5d\"",
        ),
        (["--log-rotation-config-json={"], "improperly formatted log rotation config: "),
        (["--log-rotation-config-json={\"maxsize\":\"a\"}"], "invalid log rotation config: "),
    ] {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let urls = [
            format!("--listen-client-urls={}", url(client)),
            format!("--advertise-client-urls={}", url(client)),
            format!("--listen-peer-urls={}", url(peer)),
        ];
        let rest = ["--enable-log-rotation", "--log-outputs=a.log"];
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let args = [&args[..], &rest[..], &urls[..]].concat();
        let (theirs, log) = run(&etcd, dir.path(), &args);
        let (status, text) = run(etcore(), dir.path(), &args);
        assert_eq!((status, theirs), (Some(1), Some(1)), "{args:?}: {text} and {log}");
        let log = std::fs::read_to_string(dir.path().join("a.log")).unwrap_or_default() + &log;
        assert!(verdict(&log).starts_with(begins), "{args:?}: {log}");
        assert!(text.starts_with(begins), "{args:?}: {text}");
    }
    assert!(!dir.path().join("default.etcd/member/etcore.db").exists(), "nothing was begun");
}

#[test]
fn the_help_is_grouped_and_ordered_as_etcds() {
    let _turn = crate::harness::turn::light();
    let Some(etcd) = oracle("etcd") else { return };
    let listed = |binary: &Path| -> Vec<String> {
        let output = Command::new(binary).arg("--help").output().expect("it runs");
        let text = String::from_utf8(output.stdout).expect("text");
        let lines = text.lines().filter_map(|line| match line.strip_prefix("  --") {
            Some(flag) => flag.split(' ').next().map(str::to_owned),
            None => (line.ends_with(':') && !line.starts_with(' ')).then(|| line.to_owned()),
        });
        lines.collect()
    };
    let (theirs, ours) = (listed(&etcd), listed(etcore()));
    // Two stand in etcd's text only, and are no flags of it.
    let theirs: Vec<_> = theirs
        .iter()
        .filter(|name| !["discovery", "discovery-proxy"].contains(&&***name))
        .collect();
    let ours: Vec<_> = ours.iter().filter(|name| theirs.contains(name)).collect();
    assert_eq!(ours, theirs);
    assert!(ours.len() > 110, "{ours:?}");
}

/// The settings of etcd's own sample file, at other places.
fn sample(dir: &Path, client: &str, peer: &str) -> String {
    format!(
        "name: 'default'\ndata-dir: {}\nwal-dir:\nsnapshot-count: 10000\nheartbeat-interval: 100\n\
         election-timeout: 1000\nquota-backend-bytes: 0\nlisten-peer-urls: {peer}\n\
         listen-client-urls: {client}\nmax-snapshots: 5\nmax-wals: 5\ncors:\n\
         initial-advertise-peer-urls: {peer}\nadvertise-client-urls: {client}\ndiscovery:\n\
         discovery-fallback: 'proxy'\ndiscovery-proxy:\ndiscovery-srv:\n\
         initial-cluster: 'default={peer}'\ninitial-cluster-token: 'etcd-cluster'\n\
         initial-cluster-state: 'new'\nstrict-reconfig-check: false\nproxy: 'off'\n\
         proxy-failure-wait: 5000\nproxy-refresh-interval: 30000\nproxy-dial-timeout: 1000\n\
         proxy-write-timeout: 5000\nproxy-read-timeout: 0\n\
         client-transport-security:\n  cert-file:\n  key-file:\n  client-cert-auth: false\n  \
         trusted-ca-file:\n  auto-tls: false\n\
         peer-transport-security:\n  cert-file:\n  key-file:\n  client-cert-auth: false\n  \
         trusted-ca-file:\n  auto-tls: false\n  allowed-cn:\n  allowed-hostname:\n\
         self-signed-cert-validity: 1\nlog-level: debug\nlogger: zap\nlog-outputs: [stderr]\n\
         force-new-cluster: false\nauto-compaction-mode: periodic\n\
         auto-compaction-retention: \"1\"\nenable-pprof: true\n\
         cipher-suites: [\n  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,\n  \
         TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384\n]\n\
         tls-min-version: 'TLS1.2'\ntls-max-version: 'TLS1.3'\n\
         wal-segment-bytes: {}\n",
        dir.join("of-file.etcd").display(),
        crate::harness::SEGMENT_BYTES
    )
}

#[test]
fn etcds_sample_file_starts_a_member() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let (client, peer) = (free_port(), free_port());
    let path = dir.path().join("etcd.conf.yml");
    std::fs::write(&path, sample(dir.path(), &url(client), &url(peer))).unwrap();
    // What the harness says by flags is ignored beside the file.
    let mut setup = Setup::new(dir.path(), "portable");
    setup = setup.with(&format!("--config-file={}", path.display()));
    (setup.client_port, setup.peer_port) = (client, peer);
    let mut member = setup.start();
    block_on(async { Client::connect(&setup).await.put_kv("a", "1").await });
    assert!(dir.path().join("of-file.etcd/member/wal").is_dir());
    assert!(!setup.data_dir.exists(), "the flag did not count");
    let log = member.lines_so_far().join("\n");
    assert!(log.contains("loaded server configuration"), "{log}");
    assert!(log.contains("unrecognized key of the configuration file"), "{log}");
}

fn log_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|ext| ext == "wal")).collect()
}

#[test]
fn a_member_compacts_by_itself_and_has_its_log_where_it_was_told() {
    let _turn = crate::harness::turn::light();
    crate::harness::on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let (wal_dir, log) = (dir.path().join("log/of/member"), dir.path().join("m.log"));
        let plain = Setup::new(dir.path(), driver);
        let setup = plain
            .clone()
            .with(&format!("--wal-dir={}/", wal_dir.display()))
            .with("--auto-compaction-retention=1s")
            .with("--max-wals=7")
            .with(&format!("--log-outputs=stderr,{}", log.display()))
            .with("--enable-log-rotation");
        let mut member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            for number in 0..5 {
                client.put_kv("a", &number.to_string()).await;
            }
            // The first compaction is of what there was a second before.
            member.wait_for_line("completed auto periodic compaction");
            member.wait_for_line("completed auto periodic compaction");
            let old = pb::RangeRequest { key: "a".into(), revision: 2, ..Default::default() };
            let refused = client.range(old).await.expect_err("it is compacted");
            assert_eq!(refused.message(), "etcdserver: mvcc: required revision has been compacted");
            assert_eq!(client.get("a").await.as_deref(), Some("4"));
        });
        assert!(!log_files(&wal_dir).is_empty());
        assert!(!setup.data_dir.join("member/wal").exists());
        let begun =
            member.seen.iter().find(|line| line.contains("starting auto periodic")).unwrap();
        let begun: serde_json::Value = serde_json::from_str(begun).unwrap();
        assert_eq!(begun["compact-period"], "1s");
        let warned = "--max-wals: log files are kept";
        assert!(member.seen.iter().any(|line| line.contains(warned)), "{:?}", member.seen);
        member.terminate();
        assert!(member.wait().success());
        let written = std::fs::read_to_string(&log).unwrap();
        assert!(written.contains("ready to serve client requests"), "{written}");
        assert!(written.contains("closed etcd server"), "{written}");

        // Without its log the member must not start; with it, everything is there.
        let mut lost = plain.spawn();
        assert_eq!(lost.wait().code(), Some(1), "{:?}", lost.seen);
        let setup = setup.with("--bootstrap-defrag-threshold-megabytes=100");
        let mut member = setup.spawn();
        let defragment = member.wait_for_line("efragment");
        assert!(defragment.contains("Skipping defragmentation"), "{defragment}");
        member.wait_for_line("ready to serve client requests");
        block_on(async {
            assert_eq!(Client::connect(&setup).await.get("a").await.as_deref(), Some("4"));
        });
    });
}

#[test]
fn a_log_that_was_left_in_the_data_directory_is_told() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    setup.start().kill();
    let elsewhere = setup.with(&format!("--wal-dir={}", dir.path().join("wal").display()));
    let mut refused = elsewhere.spawn();
    assert_eq!(refused.wait().code(), Some(1));
    assert!(refused.seen.iter().any(|line| line.contains("move its files there")));
}

/// Status and headers, in small letters, of a request with these headers.
fn ask(port: u16, method: &str, headers: &str) -> (String, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(socket, "{method} /version HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let head = text.split("\r\n\r\n").next().unwrap_or_default().to_lowercase();
    let (status, headers) = head.split_once("\r\n").unwrap();
    (status.split(' ').nth(1).unwrap().to_owned(), headers.to_owned())
}

#[test]
fn browsers_are_told_who_may_read_and_hosts_that_are_not_listed_are_refused() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable")
        .with("--cors=https://a.example:443,http://b:1")
        .with("--host-whitelist=a.example,127.0.0.1");
    let _member = setup.start();
    let port = setup.client_port;
    let allowed = "access-control-allow-origin: ";
    let (status, headers) = ask(port, "GET", "Host: a.example:1\r\nOrigin: http://b:1\r\n");
    assert_eq!(status, "200");
    assert!(headers.contains(&format!("{allowed}http://b:1")), "{headers}");
    let (status, headers) = ask(port, "OPTIONS", "Host: 127.0.0.1\r\nOrigin: http://c:1\r\n");
    assert_eq!(status, "200");
    assert!(!headers.contains("access-control-"), "{headers}");
    for host in ["Host: c.example\r\n", "Host: localhost:2379\r\n"] {
        assert_eq!(ask(port, "GET", host).0, "421", "{host}");
    }
    // gRPC is for no browser.
    block_on(async { Client::connect(&setup).await.put_kv("a", "1").await });
}

#[test]
fn without_fsync_a_member_serves_and_loses_nothing_when_it_is_killed() {
    let _turn = crate::harness::turn::light();
    crate::harness::on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with("--unsafe-no-fsync");
        let mut member = setup.start();
        let warned = "--unsafe-no-fsync: ";
        assert!(member.lines_so_far().iter().any(|line| line.contains(warned)));
        let put = |count: u32| {
            block_on(async {
                let client = Client::connect(&setup).await;
                for number in 0..count {
                    client.put_kv(&format!("k{number}"), &"v".repeat(10_000)).await;
                }
                assert!(client.get(&format!("k{}", count - 1)).await.is_some());
            });
        };
        // More than a segment, so that files are made and renamed.
        put(600);
        member.kill();
        let _member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            assert!(client.get("k0").await.is_some() && client.get("k599").await.is_some());
        });
    });
}

#[test]
fn locked_memory_is_locked_or_the_member_does_not_start() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable").with("--memory-mlock");
    let mut member = setup.spawn();
    match member.wait_for_ready(Duration::from_secs(30)).expect("ready, or ended") {
        Some(status) => {
            assert_eq!(status.code(), Some(1));
            assert!(member.seen.iter().any(|line| line.contains("--memory-mlock: ")));
        }
        None => {
            let path = format!("/proc/{}/status", member.pid());
            let status = std::fs::read_to_string(path).unwrap();
            let locked = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
            let kib: u64 = locked.split_whitespace().nth(1).unwrap().parse().unwrap();
            assert!(kib > 1000, "{locked}");
        }
    }
}
