//! Members compare their data: nobody is blamed who is sound, and whoever differs is found, by the
//! leader while it runs and by a member that starts.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;

use crate::harness::cluster::Cluster;
use crate::harness::{DRIVERS, block_on, is_available};

/// What a port answers to a GET with this body.
fn ask(port: u16, fields: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = body.len();
    write!(
        socket,
        "GET /members/hashkv HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Answers at a dead member's peer port as if its data were others.
struct Liar {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    fn start(port: u16, answer: String) -> Self {
        // A killed member's port is busy for moments.
        let deadline = Instant::now() + Duration::from_secs(20);
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", port)) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        listener.set_nonblocking(true).unwrap();
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((mut socket, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                socket.set_nonblocking(false).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                let mut request = [0; 4096];
                let Ok(bytes) = socket.read(&mut request) else { continue };
                let is_question = request[..bytes].starts_with(b"GET /members/hashkv");
                let (status, body) =
                    if is_question { ("200 OK", &*answer) } else { ("404 Not Found", "") };
                let length = body.len();
                let _ = write!(
                    socket,
                    "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n\
                     {body}"
                );
            }
        });
        Self { stopping, thread: Some(thread) }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn corrupt_alarms(cluster: &Cluster, at: usize) -> Vec<u64> {
    block_on(async {
        let list = pb::AlarmRequest::default();
        let alarms = cluster.client(at).await.alarm(list).await.unwrap().alarms;
        assert!(alarms.iter().all(|alarm| alarm.alarm == pb::AlarmType::Corrupt as i32));
        alarms.iter().map(|alarm| alarm.member_id).collect()
    })
}

#[test]
fn sound_members_are_not_blamed_and_one_with_other_data_is_found_and_does_not_start() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        "--corrupt-check-time=1s",
        "--feature-gates=CompactHashCheck=true,InitialCorruptCheck=true",
        "--compact-hash-check-time=1s",
    ];
    let driver = DRIVERS.into_iter().find(|driver| is_available(driver)).unwrap();
    let mut cluster = Cluster::start(dir.path(), driver, 3, &flags);
    let leader = block_on(async {
        for number in 0..20 {
            cluster.client(0).await.put_kv(&format!("k{}", number % 5), "v").await;
        }
        let compaction = pb::CompactionRequest { revision: 15, physical: true };
        cluster.client(0).await.compact(compaction).await.unwrap();
        cluster.leader().await
    });
    let member = cluster.members[leader].as_mut().unwrap();
    let line = member.wait_for_line("successfully checked hash on whole cluster");
    assert!(line.contains(r#""number-of-peers-checked":2,"revision":15"#), "{line}");
    let line = member.wait_for_line("finished peer corruption check");
    assert!(line.contains(r#""number-of-peers-checked":2"#), "{line}");
    assert!(corrupt_alarms(&cluster, leader).is_empty());

    // What they ask each other is what HashKV says.
    let port = |cluster: &Cluster, at: usize| cluster.setups[at].advertised_peer_port();
    let told = block_on(async {
        let request = pb::HashKvRequest { revision: 18 };
        cluster.client(leader).await.hash_kv(request).await.unwrap()
    });
    let json = format!(
        r#"{{"header":{{"revision":21}},"hash":{},"compact_revision":15,"hash_revision":18}}"#,
        told.hash
    );
    for at in 0..3 {
        assert_eq!(ask(port(&cluster, at), "", r#"{"revision":18}"#), (200, json.clone()));
    }
    let compacted = "mvcc: required revision has been compacted\n".to_owned();
    let future = "mvcc: required revision is a future revision\n".to_owned();
    assert_eq!(ask(port(&cluster, 0), "", r#"{"revision":3}"#), (400, compacted));
    assert_eq!(ask(port(&cluster, 0), "", r#"{"revision":99}"#), (400, future));
    let other = ask(port(&cluster, 0), "X-Etcd-Cluster-ID: 77\r\n", "{}");
    assert_eq!(other, (412, "cluster ID mismatch\n".to_owned()));
    assert_eq!(ask(port(&cluster, 0), "", "7").0, 400);

    // A member that says something else.
    let [liar, other] = cluster.others(leader)[..] else { panic!("three members") };
    let blamed = block_on(cluster.id(liar));
    cluster.kill(liar);
    let newest = r#""header":{"revision":21},"compact_revision":15"#;
    let answers = Liar::start(port(&cluster, liar), format!(r#"{{{newest},"hash":7}}"#));
    let member = cluster.members[leader].as_mut().unwrap();
    member.wait_for_line("same compact revision then hashes must match");
    let line = member.wait_for_line("a member's data differ from the others'");
    assert!(line.contains(&format!("{blamed:x}")), "{line}");
    member.wait_for_line("an alarm has changed");
    assert_eq!(corrupt_alarms(&cluster, leader), [blamed]);
    block_on(async {
        let refused = cluster.client(leader).await.put(pb::PutRequest::default()).await;
        assert!(refused.is_err());
        let put = pb::PutRequest { key: "k".into(), ..Default::default() };
        let refused = cluster.client(leader).await.put(put).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: corrupt cluster");
    });

    // And a member that starts beside it.
    let mut member = cluster.members[other].take().unwrap();
    member.terminate();
    assert!(member.wait().success());
    let mut member = cluster.setups[other].spawn();
    let ended = member.has_ended(Duration::from_secs(30)).expect("it ends by itself");
    assert!(!ended.success());
    let lines = member.lines_so_far().join("\n");
    assert!(lines.contains("found different hash values from remote peer"), "{lines}");
    assert!(lines.contains("found data inconsistency with peers"), "{lines}");
    drop(answers);
    let mut member = cluster.setups[other].spawn();
    member.wait_for_line("initial corruption checking passed; no corruption");
}
