//! The links to peers judged by etcd itself: a stock etcd 3.7.1 whose only other member is this
//! test.
//!
//! `ETCORE_LONG=1` carries a thousand times as much.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use crate::harness::cluster::Cluster;
use crate::harness::{Client, Setup, block_on, free_port, oracle};
use bytes::Bytes;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::raftpb::{Entry, Message, MessageType};
use etcore_raftlog::peer::{
    ConnId, Effect, End, Event, Lane, Local, PeerReport, PeerRequest, Settings, StreamKind,
    Transport,
};
use etcore_server::cluster::identity;
use prost::Message as _;

/// A stock etcd; killed when dropped.
struct Etcd {
    child: Child,
    lines: Receiver<String>,
    log: Vec<String>,
}

impl Etcd {
    fn log(&mut self) -> &[String] {
        self.log.extend(self.lines.try_iter());
        &self.log
    }

    fn count(&mut self, text: &str) -> usize {
        self.log().iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other member: a transport over plain sockets, and the least a follower must answer.
struct Follower {
    transport: Transport,
    listener: TcpListener,
    sockets: BTreeMap<ConnId, Socket>,
    start: Instant,
    id: u64,
    peer: u64,
    term: u64,
    entries: BTreeMap<u64, Entry>,
    kinds: BTreeMap<i32, usize>,
    events: Vec<Event>,
    reports: Vec<PeerReport>,
}

struct Socket {
    stream: TcpStream,
    unsent: Vec<u8>,
    has_ended: bool,
}

impl Follower {
    fn new(listener: TcpListener, local: Local, peer: u64, peer_url: String) -> Self {
        listener.set_nonblocking(true).unwrap();
        let id = local.member_id;
        let mut transport = Transport::new(Settings::new(local, 2000));
        let urls = [peer_url];
        transport.set_members([(peer, urls.as_slice())].into_iter());
        Self {
            transport,
            listener,
            sockets: BTreeMap::new(),
            start: Instant::now(),
            id,
            peer,
            term: 1,
            entries: BTreeMap::new(),
            kinds: BTreeMap::new(),
            events: Vec::new(),
            reports: Vec::new(),
        }
    }

    /// Carries bytes and answers messages until `done`, for at most so long.
    #[track_caller]
    fn until(&mut self, limit: Duration, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + limit;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: not within {limit:?}; {:?}", self.events);
            self.turn();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn turn(&mut self) {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap();
        self.transport.begin(now_ms);
        self.transport.tick();
        while let Ok((stream, _)) = self.listener.accept() {
            let id = self.transport.accepted().expect("room for a connection");
            self.own(id, stream);
        }
        self.receive();
        while let Some(message) = self.transport.next_received() {
            self.step(message);
        }
        while let Some(asked) = self.transport.next_request() {
            let (status, body): (u16, &[u8]) = match asked.target.as_str() {
                "/raft/probing" => (200, br#"{"OK":true,"Now":"2026-11-21T12:00:00.5Z"}"#),
                "/version" => (200, br#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0"}"#),
                // Asked at its start: whether the cluster is there already.
                "/members" => (404, b"not yet"),
                "/downgrade/enabled" => (200, b"false"),
                other => panic!("etcd asks for {other}"),
            };
            self.transport.answer(asked.conn, status, &[], body);
        }
        self.flush();
        while let Some(event) = self.transport.next_event() {
            self.events.push(event);
        }
        self.transport.take_reports(&mut self.reports);
    }

    fn own(&mut self, id: ConnId, stream: TcpStream) {
        stream.set_nonblocking(true).unwrap();
        self.sockets.insert(id, Socket { stream, unsent: Vec::new(), has_ended: false });
    }

    fn receive(&mut self) {
        let mut buf = vec![0; 16 << 10];
        for (id, socket) in &mut self.sockets {
            while !socket.has_ended {
                match socket.stream.read(&mut buf) {
                    Ok(0) => {
                        socket.has_ended = true;
                        self.transport.closed(*id, None);
                    }
                    Ok(count) => self.transport.received(*id, &buf[..count]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => {
                        socket.has_ended = true;
                        self.transport.closed(*id, Some(error.to_string()));
                    }
                }
            }
        }
    }

    fn flush(&mut self) {
        loop {
            while let Some(effect) = self.transport.next_effect() {
                match effect {
                    Effect::Connect { conn, url } => {
                        let address = url.strip_prefix("http://").expect("an http URL");
                        match TcpStream::connect(address) {
                            Ok(stream) => {
                                self.own(conn, stream);
                                self.transport.connected(conn, Ok(()));
                            }
                            Err(error) => self.transport.connected(conn, Err(error.to_string())),
                        }
                    }
                    Effect::Close(conn) => drop(self.sockets.remove(&conn)),
                }
            }
            let Some(id) = self.transport.next_dirty() else { break };
            let Some(socket) = self.sockets.get_mut(&id) else { continue };
            if socket.unsent.is_empty() {
                self.transport.transmit(id, &mut socket.unsent);
            }
        }
        for (id, socket) in &mut self.sockets {
            let before = socket.unsent.len();
            while let Ok(count @ 1..) = socket.stream.write(&socket.unsent) {
                socket.unsent.drain(..count);
            }
            if before > 0 && socket.unsent.is_empty() {
                self.transport.sent(*id);
            }
        }
    }

    /// Grants every vote and takes every entry.
    fn step(&mut self, message: Message) {
        let kind = MessageType::try_from(message.r#type.unwrap()).unwrap();
        *self.kinds.entry(kind as i32).or_default() += 1;
        assert_eq!((message.from, message.to), (Some(self.peer), Some(self.id)));
        self.term = self.term.max(message.term.unwrap_or(0));
        let answer = Message {
            from: Some(self.id),
            to: message.from,
            term: message.term,
            reject: Some(false),
            ..Message::default()
        };
        let answer = match kind {
            MessageType::MsgPreVote => {
                Message { r#type: Some(MessageType::MsgPreVoteResp as i32), ..answer }
            }
            MessageType::MsgVote => {
                Message { r#type: Some(MessageType::MsgVoteResp as i32), ..answer }
            }
            MessageType::MsgHeartbeat => Message {
                r#type: Some(MessageType::MsgHeartbeatResp as i32),
                context: message.context,
                ..answer
            },
            MessageType::MsgApp => {
                // The entries that founded the cluster are there from the start.
                let last = self.entries.keys().next_back().copied().unwrap_or(2);
                let answer = Message { r#type: Some(MessageType::MsgAppResp as i32), ..answer };
                let before = message.index.unwrap();
                if before > last {
                    // Something was lost on the way.
                    let log_term = self.entries.get(&last).map_or(Some(1), |entry| entry.term);
                    let reject_hint = Some(last);
                    Message {
                        index: message.index,
                        reject: Some(true),
                        reject_hint,
                        log_term,
                        ..answer
                    }
                } else {
                    let index = Some(before + message.entries.len() as u64);
                    for entry in message.entries {
                        self.entries.insert(entry.index.unwrap(), entry);
                    }
                    Message { index, ..answer }
                }
            }
            _ => return,
        };
        self.transport.send(&mut vec![answer]);
    }

    fn has_seen(&self, kind: MessageType) -> bool {
        self.kinds.contains_key(&(kind as i32))
    }

    fn has_stream(&self, kind: StreamKind, end: End) -> bool {
        self.events.contains(&Event::Established { peer: self.peer, kind, end })
    }

    fn has_entry_with(&self, text: &[u8]) -> bool {
        let data = self.entries.values().filter_map(|entry| entry.data.as_ref());
        data.into_iter().any(|data| data.windows(text.len()).any(|window| window == text))
    }
}

const TOKEN: &str = "judge";

/// An etcd with a cluster of two, and the other member.
fn pair(dir: &std::path::Path) -> Option<(Etcd, Setup, Follower)> {
    let binary = oracle("etcd")?;
    let mut setup = Setup::new(dir, "portable");
    setup.data_dir = dir.join("etcd");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let etcd_url = format!("http://127.0.0.1:{}", free_port());
    let mut child = Command::new(binary)
        .args(["--name=etcd", "--initial-cluster-token=judge", "--pre-vote=true"])
        .arg(format!("--data-dir={}", setup.data_dir.display()))
        .arg(format!("--listen-client-urls={}", setup.endpoint()))
        .arg(format!("--advertise-client-urls={}", setup.endpoint()))
        .arg(format!("--listen-peer-urls={etcd_url}"))
        .arg(format!("--initial-advertise-peer-urls={etcd_url}"))
        .arg(format!("--initial-cluster=etcd={etcd_url},test={url}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("etcd starts");
    let stderr = child.stderr.take().expect("piped");
    let (sender, lines) = sync_channel(100_000);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let _ = sender.try_send(line);
        }
    });
    let etcd = Etcd { child, lines, log: Vec::new() };
    let id = identity::member_id(std::slice::from_ref(&url), TOKEN);
    let peer = identity::member_id(std::slice::from_ref(&etcd_url), TOKEN);
    let local = Local {
        member_id: id,
        cluster_id: identity::cluster_id(&[id, peer]),
        peer_urls: vec![url],
        version: "3.7.1",
        min_cluster_version: "3.0.0",
    };
    let follower = Follower::new(listener, local, peer, etcd_url);
    Some((etcd, setup, follower))
}

/// Lines of etcd's that say something is wrong with the way this side speaks.
fn complaints(etcd: &mut Etcd) -> Vec<String> {
    let wrong = |line: &&String| {
        let is_bad = line.contains(r#""level":"warn""#)
            || line.contains(r#""level":"error""#)
            || line.contains("panic");
        // The clock in the answers to its probes stands still.
        is_bad && line.contains("rafthttp") && !line.contains("clock drift")
    };
    etcd.log().iter().filter(wrong).cloned().collect()
}

#[test]
fn etcd_leads_with_our_votes_and_replicates_to_us_without_a_complaint() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let Some((mut etcd, setup, mut follower)) = pair(dir.path()) else { return };
    let limit = Duration::from_secs(20);
    follower.until(limit, "elected", |f| f.has_seen(MessageType::MsgApp));
    assert!(follower.has_seen(MessageType::MsgPreVote) && follower.has_seen(MessageType::MsgVote));
    follower.until(limit, "all streams", |f| {
        [StreamKind::Message, StreamKind::Append]
            .into_iter()
            .all(|kind| f.has_stream(kind, End::Reader) && f.has_stream(kind, End::Writer))
    });
    follower.until(limit, "ready", |_| etcd.count("ready to serve client requests") > 0);
    // A client's puts arrive here as entries: small ones, and one beyond any buffer.
    let puts = if std::env::var_os("ETCORE_LONG").is_some() { 20_000 } else { 200 };
    let writing = std::thread::spawn({
        let setup = setup.clone();
        move || {
            block_on(async {
                let client = Client::connect(&setup).await;
                for number in 0..puts {
                    client.put_kv(&format!("key-{number}"), "value").await;
                }
                client.put_kv("large", &"x".repeat(1_400_000)).await;
                client.put_kv("last", "one").await;
            });
        }
    });
    follower.until(Duration::from_secs(60), "replicated", |f| f.has_entry_with(b"last"));
    follower.until(limit, "answered", |_| writing.is_finished());
    writing.join().unwrap();
    for number in 0..puts {
        assert!(follower.has_entry_with(format!("key-{number}").as_bytes()), "key-{number}");
    }
    let largest = follower.entries.values().filter_map(|e| e.data.as_ref()).map(Bytes::len).max();
    assert!(largest > Some(1_400_000), "{largest:?}");
    let indexes: Vec<u64> = follower.entries.keys().copied().collect();
    assert!(indexes.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap in the entries");

    // What is proposed here reaches its leader, and its leader's store.
    let put = pb::PutRequest {
        key: Bytes::from_static(b"ours"),
        value: Bytes::from_static(b"forwarded"),
        ..Default::default()
    };
    let request = pb::InternalRaftRequest {
        header: Some(pb::RequestHeader { id: 77, ..Default::default() }),
        put: Some(put),
        ..Default::default()
    };
    let data = Some(Bytes::from(request.encode_to_vec()));
    let proposal = Message {
        r#type: Some(MessageType::MsgProp as i32),
        from: Some(follower.id),
        to: Some(follower.peer),
        entries: vec![Entry { data, ..Entry::default() }],
        ..Message::default()
    };
    follower.transport.send(&mut vec![proposal]);
    follower.until(limit, "proposed", |f| f.has_entry_with(b"forwarded"));
    let reading = std::thread::spawn({
        let setup = setup.clone();
        move || block_on(async { Client::connect(&setup).await.get("ours").await })
    });
    follower.until(limit, "read", |_| reading.is_finished());
    assert_eq!(reading.join().unwrap().as_deref(), Some("forwarded"));

    // A question to its HTTP handlers.
    let ask = PeerRequest {
        to: follower.peer,
        lane: Lane::Questions,
        method: "GET",
        target: "/version".to_owned(),
        content_type: "",
        body: Bytes::new(),
        timeout_ms: 3000,
        token: 5,
    };
    follower.transport.request(ask);
    let mut version = None;
    follower.until(limit, "answered", |f| {
        version = f.reports.drain(..).find_map(|report| match report {
            PeerReport::Answered { token: 5, answer } => Some(answer),
            _ => version.take(),
        });
        version.is_some()
    });
    let body = version.unwrap().unwrap().body;
    assert!(body.windows(5).any(|window| window == b"3.7.1"), "{body:?}");

    // Long enough for link heartbeats and probes both ways: everything holds.
    let until = Instant::now() + Duration::from_secs(9);
    follower.until(Duration::from_secs(20), "waited", |_| Instant::now() > until);
    let probed = |event: &Event| matches!(event, Event::ProbeEnded { answer: Ok(_), .. });
    assert!(follower.events.iter().any(probed), "{:?}", follower.events);
    let lost = |event: &Event| matches!(event, Event::Lost { .. } | Event::Inactive { .. });
    assert!(!follower.events.iter().any(lost), "{:?}", follower.events);
    assert_eq!(complaints(&mut etcd), Vec::<String>::new());
    assert_eq!(etcd.count("established TCP streaming connection with remote peer"), 4);
    assert_eq!(etcd.count("peer became inactive"), 0);
}

#[test]
fn etcd_takes_us_back_after_every_loss_of_our_connections() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let Some((mut etcd, setup, mut follower)) = pair(dir.path()) else { return };
    let limit = Duration::from_secs(20);
    follower.until(limit, "ready", |_| etcd.count("ready to serve client requests") > 0);
    for round in 0..5 {
        for (id, _) in std::mem::take(&mut follower.sockets) {
            follower.transport.closed(id, Some("connection reset by peer".to_owned()));
        }
        let key = format!("round-{round}");
        let writing = std::thread::spawn({
            let (setup, key) = (setup.clone(), key.clone());
            move || block_on(async { Client::connect(&setup).await.put_kv(&key, "v").await })
        });
        follower.until(limit, "replicated", |f| f.has_entry_with(key.as_bytes()));
        follower.until(limit, "answered", |_| writing.is_finished());
        writing.join().unwrap();
    }
    let protocol = ["unmarshal", "failed to parse type", "mismatch", "incompatible", "panic"];
    for word in protocol {
        assert_eq!(etcd.count(word), 0, "{word} in {:#?}", etcd.log());
    }
}

#[test]
fn an_etcd_and_two_of_ours_are_one_cluster_whoever_leads() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let Some(binary) = oracle("etcd") else { return };
    for driver in crate::harness::DRIVERS {
        if !crate::harness::is_available(driver) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let setups = Cluster::new(dir.path(), driver, 3, &[]).setups;
        let mut ours: Vec<crate::harness::Member> = setups[1..].iter().map(Setup::spawn).collect();
        let etcd = crate::harness::Etcd::start(&binary, &setups[0]);
        ours.iter_mut().for_each(|member| drop(member.wait_for_line("ready to serve client")));
        let puts = if std::env::var_os("ETCORE_LONG").is_some() { 5000 } else { 100 };
        block_on(async {
            let mut clients = Vec::new();
            for setup in &setups {
                clients.push(Client::connect(setup).await);
            }
            for leader in [0, 1, 2, 0, 2] {
                let id = member_id(&clients[leader]).await;
                lead(&clients, id).await;
                for number in 0..puts {
                    clients[number % 3].put_kv(&format!("k{}", number % 40), "v").await;
                }
                for (at, client) in clients.iter().enumerate() {
                    let value = format!("by {at} under {leader}");
                    client.put_kv("seen", &value).await;
                    for other in &clients {
                        assert_eq!(other.get("seen").await.as_ref(), Some(&value), "{driver}");
                    }
                    // Its time is known to whoever leads.
                    let grant = pb::LeaseGrantRequest { id: 0, ttl: 60 };
                    let id = client.lease_grant(grant).await.unwrap().id;
                    let request = pb::LeaseTimeToLiveRequest { id, keys: false };
                    let path = "/etcdserverpb.Lease/LeaseTimeToLive";
                    let times: pb::LeaseTimeToLiveResponse =
                        client.unary(path, request).await.unwrap();
                    let fresh = times.granted_ttl == 60 && times.ttl > 50;
                    assert!(fresh, "{driver}: {value}: {times:?}");
                }
                let mut hashes = Vec::new();
                for client in &clients {
                    // A linearizable read waits until this member has applied everything.
                    assert_eq!(client.get("k0").await.as_deref(), Some("v"));
                    let hash = client.hash_kv(pb::HashKvRequest::default()).await.unwrap();
                    hashes.push((hash.hash, hash.header.unwrap().revision));
                }
                assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{driver}: {hashes:?}");
            }
        });
        let told = |member: &mut crate::harness::Member| {
            let lost = |line: &&String| line.contains("lost TCP") || line.contains("inactive");
            member.lines_so_far().iter().filter(lost).cloned().collect::<Vec<_>>()
        };
        for member in &mut ours {
            assert_eq!(told(member), Vec::<String>::new(), "{driver}");
        }
        let etcd_id = block_on(async { member_id(&Client::connect(&setups[0]).await).await });
        let (_, metrics) = crate::harness::http_get(setups[1].client_port, "/metrics");
        for name in [
            format!("etcd_network_peer_sent_bytes_total{{To=\"{etcd_id:x}\"}} "),
            format!("etcd_network_peer_received_bytes_total{{From=\"{etcd_id:x}\"}} "),
            "etcd_network_active_peers{".to_owned(),
        ] {
            let line = metrics.lines().find(|line| line.starts_with(&name));
            let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            assert!(value > Some(0.0), "{name} in {metrics}");
        }
        drop(etcd);
        for member in &mut ours {
            member.wait_for_line("lost TCP streaming connection with remote peer");
        }
    }
}

async fn member_id(client: &Client) -> u64 {
    let status = client.status(pb::StatusRequest::default()).await.expect("status");
    status.header.expect("header").member_id
}

/// Makes a member the leader, if it is not.
async fn lead(clients: &[Client], id: u64) {
    for _ in 0..50 {
        for client in clients {
            let status = client.status(pb::StatusRequest::default()).await.unwrap();
            let own = status.header.unwrap().member_id;
            if status.leader == id && own == id {
                return;
            }
            if status.leader == own {
                let request = pb::MoveLeaderRequest { target_id: id };
                let path = "/etcdserverpb.Maintenance/MoveLeader";
                let _: Result<pb::MoveLeaderResponse, _> = client.unary(path, request).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{id:x} does not become leader");
}
