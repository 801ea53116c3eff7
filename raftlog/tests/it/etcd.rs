//! A log goes back and forth between this crate and a real etcd.
//!
//! Needs an `etcd` binary in `$ETCD_BIN` or `$PATH`, and for one test `etcd-dump-logs` in
//! `$ETCD_DUMP_LOGS`. Without them the tests say so and pass.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{DIR, SMALL_SEGMENT_BYTES, create, settle};
use bytes::Bytes;
use etcore_engine::file::StdDisk;
use etcore_raftlog::log::{Applied, Log};
use etcore_raftlog::node::{NodeConfig, Role};
use etcore_raftlog::types::{EntryKind, LogIndex};
use etcore_raftlog::wal::{RecoverOptions, WriterConfig, recover};

fn find(variable: &str, name: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.exists())
    });
    if found.is_none() {
        eprintln!("SKIPPED: no {name} in ${variable} or $PATH");
    }
    found
}

struct Etcd {
    process: Child,
    client: String,
}

impl Etcd {
    fn start(binary: &Path, data_dir: &Path) -> Self {
        let ports: Vec<u16> = (0..2)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"))
            .map(|listener| listener.local_addr().expect("bound").port())
            .collect();
        let client = format!("127.0.0.1:{}", ports[0]);
        let (client_url, peer_url) =
            (format!("http://{client}"), format!("http://127.0.0.1:{}", ports[1]));
        let process = Command::new(binary)
            .args(["--name", "m", "--snapshot-count", "100000", "--log-level", "error"])
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("m={peer_url}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        let etcd = Self { process, client };
        let start = Instant::now();
        while !etcd.post("/v3/kv/range", r#"{"key":"eA=="}"#).contains("200 OK") {
            assert!(start.elapsed() < Duration::from_secs(20), "etcd serves");
            std::thread::sleep(Duration::from_millis(50));
        }
        etcd
    }

    fn post(&self, path: &str, body: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(&self.client) else { return String::new() };
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut answer = String::new();
        let sent = stream.write_all(request.as_bytes());
        let _ = sent.and_then(|()| stream.read_to_string(&mut answer).map(|_| ()));
        answer
    }

    fn put(&self, count: usize) {
        for _ in 0..count {
            let answer = self.post("/v3/kv/put", r#"{"key":"eA==","value":"eWVz"}"#);
            assert!(answer.contains("200 OK"), "{answer}");
        }
    }

    fn stop(mut self, signal: &str) {
        let id = self.process.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().expect("kill runs");
        assert!(sent.success());
        self.process.wait().expect("ended");
    }
}

#[test]
fn a_log_goes_from_etcd_to_us_and_back() {
    let Some(binary) = find("ETCD_BIN", "etcd") else { return };
    for signal in ["-TERM", "-KILL"] {
        let root = tempfile::tempdir().expect("a directory");
        let etcd = Etcd::start(&binary, root.path());
        etcd.put(20);
        etcd.stop(signal);

        let mut disk = StdDisk::new(root.path());
        let options = RecoverOptions { applied: LogIndex(0), window_bytes: 1 << 20, repair: false };
        let found = recover(&mut disk, DIR, options).expect("etcd's log is read");
        let id = found.metadata.node_id.expect("a member");
        assert!(found.last_index.0 > 20, "{}", found.last_index);
        drop(found);

        let config = WriterConfig::default();
        let node = NodeConfig::new(id, 1, 2);
        let (mut log, _) =
            Log::open(&mut disk, DIR, node, config, Applied::default()).expect("opened");
        let mut applied = Vec::new();
        settle(&mut log, &mut disk, &mut applied).expect("settled");
        assert_eq!(log.node.status().soft_state.role, Role::Leader);
        assert_eq!(applied[0].kind, EntryKind::ConfChange);
        let puts = applied.iter().filter(|entry| !entry.data.is_empty()).count();
        assert!(puts >= 20, "{puts}");
        // etcd skips entries without data.
        log.node.propose((0..5).map(|_| Bytes::new())).expect("proposed");
        settle(&mut log, &mut disk, &mut applied).expect("settled");
        log.writer.flush();
        log.drive(&mut disk).expect("flushed");
        drop((log, disk));

        let etcd = Etcd::start(&binary, root.path());
        let answer = etcd.post("/v3/kv/range", r#"{"key":"eA=="}"#);
        assert!(answer.contains("eWVz"), "{answer}");
        etcd.put(1);
        etcd.stop("-TERM");
    }
}

#[test]
fn etcd_dump_logs_reads_what_we_write() {
    let Some(binary) = find("ETCD_DUMP_LOGS", "etcd-dump-logs") else { return };
    let root = tempfile::tempdir().expect("a directory");
    let mut disk = StdDisk::new(root.path());
    create(&mut disk, SMALL_SEGMENT_BYTES).expect("created");
    let mut log = crate::common::open(&mut disk, SMALL_SEGMENT_BYTES).expect("opened");
    let mut applied = Vec::new();
    settle(&mut log, &mut disk, &mut applied).expect("settled");
    for _ in 0..40 {
        // Without data, since the tool parses it; the space is used up by their number.
        log.node.propose((0..100).map(|_| Bytes::new())).expect("proposed");
        settle(&mut log, &mut disk, &mut applied).expect("settled");
    }
    log.writer.flush();
    log.drive(&mut disk).expect("flushed");
    drop(log);
    std::fs::create_dir_all(root.path().join("member/snap")).expect("made");
    assert!(std::fs::read_dir(root.path().join(DIR)).expect("listed").count() > 2);
    let output = Command::new(binary).arg(root.path()).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let last = format!("lastIndex={}", applied.len());
    assert!(text.contains(&last) || text.contains(&applied.len().to_string()), "{text}");
}
