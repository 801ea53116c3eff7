//! What may be in the log, and what becomes of it: odd requests of clients beside etcd, requests of
//! etcd's members in a mixed cluster, and the operator's way past an entry that nothing can apply.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcore_engine::file::StdDisk;
use etcore_engine::types::{LogIndex, Term};
use etcore_proto::decode::{Fields, Value};
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::raftpb;
use etcore_raftlog::bootstrap::{Peer, bootstrap};
use etcore_raftlog::types::{EntryKind, HardState, LogEntry};
use etcore_raftlog::wal::{self, NewLog};
use etcore_server::cluster::identity;
use etcore_server::entry;
use prost::Message;

use crate::harness::cluster::Cluster;
use crate::harness::{Client, DRIVERS, Etcd, Setup, block_on, is_available, oracle};
use crate::services::differential::client::{self, Item};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const DELETE: &str = "/etcdserverpb.KV/DeleteRange";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
const HASH_KV: &str = "/etcdserverpb.Maintenance/HashKV";
const MEMBERS: &str = "/etcdserverpb.Cluster/MemberList";

/// The first driver that there is.
fn driver() -> &'static str {
    DRIVERS.into_iter().find(|driver| is_available(driver)).expect("portable always is")
}

fn key(out: &mut Vec<u8>, number: u32, wire: u32) {
    prost::encoding::encode_varint(u64::from(number << 3 | wire), out);
}

fn groups(number: u32, depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    (0..depth).for_each(|_| key(&mut out, number, 3));
    (0..depth).for_each(|_| key(&mut out, number, 4));
    out
}

/// A field in every wire type, right and wrong, and groups around every limit.
fn odd_fields(number: u32) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut add = |wire: u32, value: &[u8]| {
        let mut out = Vec::new();
        key(&mut out, number, wire);
        out.extend_from_slice(value);
        all.push(out);
    };
    add(0, &[7]);
    add(1, &[1; 8]);
    add(2, &[0]);
    add(2, &[2, 0xff, 0xff]);
    add(2, &[9, 1]);
    add(4, &[]);
    add(5, &[1; 4]);
    add(6, &[]);
    all.extend([50, 98, 100, 10_001, 10_002].map(|depth| groups(number, depth)));
    all
}

/// So many transactions in one another around a put.
fn nested(levels: usize) -> Vec<u8> {
    let put = pb::PutRequest { key: "nested".into(), value: "v".into(), ..Default::default() };
    let mut reversed: Vec<u8> = put.encode_to_vec().into_iter().rev().collect();
    let numbers = [2, 2].into_iter().chain([4, 2].into_iter().cycle().take(2 * (levels - 1)));
    for number in numbers {
        let mut head = Vec::new();
        key(&mut head, number, 2);
        prost::encoding::encode_varint(reversed.len() as u64, &mut head);
        reversed.extend(head.iter().rev());
    }
    reversed.reverse();
    reversed
}

/// An answer without what differs between members.
fn settled(item: Item) -> (i32, String, Vec<u8>) {
    match item {
        Item::Message(message) => {
            let mut fields = Fields::new(&message);
            let Ok(Some((1, Value::Len(header)))) = fields.next_field() else {
                return (0, String::new(), message.to_vec());
            };
            let revision = pb::ResponseHeader::decode(&message[header]).unwrap().revision;
            (0, revision.to_string(), message[fields.position()..].to_vec())
        }
        // Go chooses between two kinds of spaces when it is built.
        Item::End(code, text) => (code, text.replace('\u{a0}', " "), Vec::new()),
    }
}

/// The answer to a unary call.
fn answer(client: &mut client::Client, call: client::CallId) -> (i32, String, Vec<u8>) {
    let items = client.finish(call, Duration::from_secs(20));
    settled(items.into_iter().next().expect("an answer"))
}

/// The same call on each server, the same answers.
struct Pair([client::Client; 2]);

impl Pair {
    fn connect(setups: [&Setup; 2]) -> Self {
        Self(setups.map(|setup| client::Client::connect(setup.client_port).expect("it listens")))
    }

    #[track_caller]
    fn same(&mut self, path: &'static str, message: &[u8], what: &str) -> (i32, String, Vec<u8>) {
        let mut pair = || {
            let calls = self.0.each_mut().map(|client| client.start(path, message));
            let [etcd, own] = &mut self.0;
            (answer(etcd, calls[0]), answer(own, calls[1]))
        };
        let (mut etcd, mut own) = pair();
        if path == TIME_TO_LIVE && own != etcd {
            // A second may have ended between the two.
            (etcd, own) = pair();
        }
        assert_eq!(own, etcd, "{path}: {what}");
        own
    }
}

#[test]
fn odd_requests_get_etcds_answers_and_nothing_of_them_stops_a_member() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let Some(binary) = oracle("etcd") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (own, theirs) = (Setup::new(&dir.path().join("own"), driver()), dir.path().join("etcd"));
    let theirs = Setup::new(&theirs, "portable");
    let mut member = own.start();
    let _etcd = Etcd::start(&binary, &theirs);
    let mut pair = Pair::connect([&theirs, &own]);
    let grant = |id: u8| vec![0x08, 60, 0x10, id];
    for id in 1..=100 {
        pair.same(GRANT, &grant(id), "lease");
    }
    let requests: [(&str, Vec<u8>); 10] = [
        (PUT, b"\x0a\x01k\x12\x01v".to_vec()),
        (DELETE, b"\x0a\x01k".to_vec()),
        (TXN, b"\x12\x07\x12\x05\x0a\x01k\x12\x00".to_vec()),
        (COMPACT, vec![0x08, 2]),
        (GRANT, vec![0x08, 60, 0x10, 101]),
        (REVOKE, vec![0x08, 5]),
        (ALARM, vec![0x08, 1, 0x10, 9, 0x18, 2]),
        // What only reads is decoded by the same rules.
        (RANGE, b"\x0a\x01k".to_vec()),
        (TIME_TO_LIVE, vec![0x08, 99]),
        (MEMBERS, vec![]),
    ];
    for (path, request) in &requests {
        // What an alarm is about would end everything else; a member's list names ports.
        let numbers: &[u32] = match *path {
            ALARM | MEMBERS => &[7, 99],
            _ => &[1, 2, 99],
        };
        for number in numbers {
            for odd in odd_fields(*number) {
                let told = format!("field {number}: {:?}", &odd[..odd.len().min(12)]);
                if *path == MEMBERS {
                    let codes = pair.0.each_mut().map(|client| {
                        let call = client.start(path, &odd);
                        answer(client, call).0
                    });
                    assert_eq!(codes[0], codes[1], "{path}: {told}");
                    continue;
                }
                pair.same(path, &[request, &odd[..]].concat(), &told);
                pair.same(path, &[&odd[..], request].concat(), &told);
                if *path == ALARM {
                    // Off again.
                    pair.same(ALARM, &[0x08, 2, 0x10, 9, 0x18, 2], "off");
                }
            }
        }
    }
    for levels in [1, 2, 48, 49, 50, 51, 98, 99, 100, 126, 127, 128, 129, 130, 1_000, 4_000] {
        let (code, text, _) = pair.same(TXN, &nested(levels), &format!("{levels} levels"));
        let wanted = if levels <= 128 { 0 } else { 3 };
        assert_eq!(code, wanted, "{levels}: {text}");
        let odd = [nested(levels), groups(9, 200)].concat();
        pair.same(TXN, &odd, &format!("{levels} levels and groups"));
    }
    pair.same(HASH_KV, &[], "all of it");
    // All of it is applied once more from the log.
    drop(pair);
    member.kill();
    member = own.start();
    let mut pair = Pair::connect([&theirs, &own]);
    pair.same(RANGE, b"\x0a\x01\x00\x12\x01\x00", "everything");
    pair.same(HASH_KV, &[], "all of it, again");
    pair.same(PUT, b"\x0a\x01k\x12\x01w", "it goes on");
    assert!(member.has_ended(Duration::ZERO).is_none());
}

#[test]
fn nested_transactions_beyond_etcds_default_are_served_where_the_flag_allows_them() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), driver()).with("--max-txn-ops=6000");
    let member = setup.start();
    let call = |levels: usize| {
        let mut client = client::Client::connect(setup.client_port).unwrap();
        let call = client.start(TXN, &nested(levels));
        answer(&mut client, call)
    };
    // 4,999 levels with what is in them are as many messages as Go decodes in an entry.
    for levels in [129, 1_000, 4_998] {
        let (code, text, _) = call(levels);
        assert_eq!(code, 0, "{levels}: {text}");
    }
    // A branch that is not taken is as deep.
    let other = [nested(1), groups(9, 1), {
        let deep = nested(4_990);
        // Its only field is one of what is done if the compares hold.
        assert_eq!(deep[0], 2 << 3 | 2);
        [&[3 << 3 | 2], &deep[1..]].concat()
    }]
    .concat();
    let mut client = client::Client::connect(setup.client_port).unwrap();
    let sent = client.start(TXN, &other);
    assert_eq!(answer(&mut client, sent).0, 0);
    let (code, text, _) = call(5_000);
    assert_eq!(code, 13, "{text}");
    assert!(text.contains("exceeded maximum recursion depth"), "{text}");
    member.kill();
    let _member = setup.start();
    block_on(async {
        let client = Client::connect(&setup).await;
        assert_eq!(client.get("nested").await.as_deref(), Some("v"));
    });
}

/// The logs of a new cluster with an entry that is no request behind its first ones, committed.
fn poison(cluster: &Cluster, data: &'static [u8]) -> String {
    const TOKEN: &str = "etcd-cluster";
    let mut peers: Vec<Peer> = Vec::new();
    for setup in &cluster.setups {
        let url = format!("http://127.0.0.1:{}", setup.peer_port);
        let id = identity::member_id(std::slice::from_ref(&url), TOKEN);
        let context = format!(r#"{{"id":{id},"peerURLs":["{url}"],"name":"{}"}}"#, setup.name);
        peers.push(Peer { id, context: context.into() });
    }
    let of_setups: Vec<u64> = peers.iter().map(|peer| peer.id).collect();
    peers.sort_by_key(|peer| peer.id);
    let ids: Vec<u64> = peers.iter().map(|peer| peer.id).collect();
    let (mut entries, _) = bootstrap(&peers);
    let (index, data) = (LogIndex(entries.len() as u64 + 1), Bytes::from_static(data));
    let kind = EntryKind::Normal;
    entries.push(LogEntry { index, term: Term(1), kind, data: data.clone() });
    for (setup, id) in cluster.setups.iter().zip(of_setups) {
        let member_dir = setup.data_dir.join("member");
        std::fs::create_dir_all(&member_dir).unwrap();
        let metadata =
            raftpb::Metadata { node_id: Some(id), cluster_id: Some(identity::cluster_id(&ids)) };
        let log = NewLog {
            metadata,
            entries: &entries,
            hard_state: HardState { term: Term(1), vote: 0, commit: index },
            segment_bytes: crate::harness::SEGMENT_BYTES.parse().unwrap(),
        };
        wal::create(&mut StdDisk::new(&member_dir), "wal", log).unwrap();
    }
    format!("{}:1:{:08x}", index.0, entry::checksum(&data))
}

#[test]
fn an_entry_that_stops_all_members_is_skipped_where_the_operator_names_it() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(dir.path(), driver(), 3, &[]);
    let name = poison(&cluster, b"\x32\x01\xff");
    let flag = format!("--unsafe-skip-entry={name}");
    let refused = |setup: &Setup, told: &str| {
        let mut member = setup.spawn();
        let ended = member.has_ended(Duration::from_secs(20));
        let log = member.lines_so_far().join("\n");
        assert!(ended.is_some_and(|status| status.code() == Some(1)), "{told}: {ended:?}: {log}");
        assert!(log.contains(told), "{told}: {log}");
    };
    for setup in &cluster.setups {
        // It says how to go on, at each start.
        refused(setup, &flag);
        refused(setup, "cannot be applied: no request");
        let wrong = format!("--unsafe-skip-entry={}0", &name[..name.len() - 1]);
        if wrong != flag {
            refused(&setup.clone().with(&wrong), "names another entry");
        }
        let index = name.split(':').next().unwrap();
        let other_term = format!("--unsafe-skip-entry={index}:2:00000000");
        refused(&setup.clone().with(&other_term), "is of term 1; nothing was changed");
    }
    let mut members: Vec<_> =
        cluster.setups.iter().map(|setup| setup.clone().with(&flag).spawn()).collect();
    for member in &mut members {
        member.wait_for_line("an entry is skipped, as --unsafe-skip-entry says");
        for line in ["is behind this member for good", "ready to serve client requests"] {
            if !member.lines_so_far().iter().any(|seen| seen.contains(line)) {
                member.wait_for_line(line);
            }
        }
    }
    block_on(async {
        cluster.client(0).await.put_kv("k", "v").await;
        assert_eq!(cluster.client(2).await.get("k").await.as_deref(), Some("v"));
    });
    members.into_iter().for_each(crate::harness::Member::kill);
    refused(&cluster.setups[0].clone().with(&flag), "start it without the flag");
    for at in 0..3 {
        cluster.members[at] = Some(cluster.setups[at].spawn());
    }
    for member in cluster.members.iter_mut().flatten() {
        member.wait_for_line("ready to serve client requests");
    }
    block_on(async {
        assert_eq!(cluster.client(1).await.get("k").await.as_deref(), Some("v"));
        cluster.assert_equal(1).await;
    });
}

/// Runs etcdctl against one member; its output if it succeeds, else what it complains about.
fn etcdctl(binary: &Path, setup: &Setup, args: &[&str]) -> Result<String, String> {
    let output = Command::new(binary)
        .arg(format!("--endpoints={}", setup.endpoint()))
        .args(args)
        .output()
        .expect("etcdctl runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

async fn lead(cluster: &Cluster, at: usize) {
    let target_id = cluster.id(at).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let leader = cluster.status(at).await.leader;
        if leader == target_id {
            return;
        }
        for other in 0..cluster.setups.len() {
            if cluster.id(other).await == leader {
                let request = pb::MoveLeaderRequest { target_id };
                // Another try follows.
                let _ = cluster.client(other).await.move_leader(request).await;
            }
        }
        assert!(Instant::now() < deadline, "no leadership for {at}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until all have applied as much, then compares the keys of all of them, and everything that
/// ours store. (The hash of etcd's whole store includes what only etcd writes there.)
async fn assert_same_store(cluster: &Cluster, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (mut keys, mut stores) = (Vec::new(), Vec::new());
        for at in 0..cluster.setups.len() {
            let applied = cluster.status(at).await.raft_applied_index;
            let client = cluster.client(at).await;
            let hash = client.hash_kv(pb::HashKvRequest::default()).await;
            keys.push((applied, hash.map(|hash| hash.hash).map_err(|error| error.to_string())));
            if at > 0 {
                stores.push(client.hash(pb::HashRequest {}).await.map(|hash| hash.hash).ok());
            }
        }
        let same = keys.iter().all(|found| *found == keys[0]) && stores[0] == stores[1];
        if same && keys[0].1.is_ok() && stores[0].is_some() {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {keys:?} {stores:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn what_members_of_etcd_propose_about_auth_and_versions_is_applied_as_they_apply_it() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let (Some(binary), Some(ctl)) = (oracle("etcd"), oracle("etcdctl")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(dir.path(), driver(), 3, &[]);
    for at in [1, 2] {
        cluster.members[at] = Some(cluster.setups[at].spawn());
    }
    let _etcd = Etcd::start(&binary, &cluster.setups[0]);
    for member in cluster.members.iter_mut().flatten() {
        member.wait_for_line("ready to serve client requests");
    }
    let setup = cluster.setups[0].clone();
    let ctl_on = |at: usize, args: &[&str]| etcdctl(&ctl, &cluster.setups[at], args);
    let ok = |args: &[&str]| {
        let answer = etcdctl(&ctl, &setup, args);
        assert!(answer.is_ok(), "{args:?}: {answer:?}");
    };
    for leader in [0, 1] {
        block_on(lead(&cluster, leader));
        ok(&["role", "add", "r"]);
        assert!(etcdctl(&ctl, &setup, &["role", "add", "r"]).is_err());
        ok(&["role", "grant-permission", "r", "readwrite", "a", "c"]);
        ok(&["role", "grant-permission", "r", "read", "x"]);
        ok(&["role", "revoke-permission", "r", "x"]);
        ok(&["role", "add", "s"]);
        for user in ["root:pw", "u:pw", "v:pw"] {
            ok(&["user", "add", user]);
        }
        ok(&["user", "grant-role", "root", "root"]);
        ok(&["user", "grant-role", "u", "r"]);
        ok(&["user", "grant-role", "u", "s"]);
        ok(&["user", "revoke-role", "u", "s"]);
        ok(&["role", "delete", "s"]);
        ok(&["user", "delete", "v"]);
        block_on(async {
            cluster.client(1).await.put_kv("z", "open").await;
            assert_same_store(&cluster, "roles and users").await;
        });
        ok(&["auth", "enable"]);
        ok(&["--user=u:pw", "put", "a", "1"]);
        let denied = etcdctl(&ctl, &setup, &["--user=u:pw", "put", "z", "1"]);
        assert!(denied.clone().is_err_and(|text| text.contains("permission denied")), "{denied:?}");
        // The leader, of whatever make, ends a lease whose key its members may not write.
        let granted = etcdctl(&ctl, &setup, &["--user=root:pw", "lease", "grant", "2"]).unwrap();
        let lease = format!("--lease={}", granted.split(' ').nth(1).unwrap());
        ok(&["--user=root:pw", "put", &lease, "leased", "1"]);
        let gone = Instant::now() + Duration::from_secs(20);
        while etcdctl(&ctl, &setup, &["--user=root:pw", "get", "leased"]) != Ok(String::new()) {
            assert!(Instant::now() < gone, "the lease does not end under {leader}");
            std::thread::sleep(Duration::from_millis(200));
        }
        // Whoever of the members is asked, of either make, says the same.
        for at in [0, 1, 2] {
            for args in [&["get", "z"][..], &["put", "z", "2"], &["lease", "list"]] {
                let refused = ctl_on(at, args).unwrap_err();
                assert!(refused.contains("user name is empty"), "{at} {args:?}: {refused}");
                let args = [&["--user=u:pw"], args].concat();
                let denied = ctl_on(at, &args).map(|text| text.len());
                assert_eq!(denied.is_ok(), args[1] == "lease", "{at} {args:?}: {denied:?}");
            }
            ctl_on(at, &["--user=u:pw", "get", "a"]).unwrap();
        }
        // A token is good at every member as soon as it is out.
        block_on(async {
            for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1)] {
                let token = cluster.client(from).await.token_of("u", "pw").await.unwrap();
                let client = cluster.client(to).await.with_token(Some(&token));
                let value = client.get("a").await;
                assert_eq!(value.as_deref(), Some("1"), "from {from} to {to}");
            }
        });
        let told = |member: &mut crate::harness::Member| {
            member.wait_for_line("enabled authentication");
        };
        cluster.members.iter_mut().flatten().for_each(told);
        // A member that starts meanwhile applies the same.
        if leader == 1 {
            let member = cluster.members[2].take().unwrap();
            member.kill();
            cluster.members[2] = Some(cluster.setups[2].start());
        }
        for args in [
            &["--user=root:pw", "auth", "disable"][..],
            &["user", "delete", "u"],
            &["user", "delete", "root"],
            &["role", "delete", "r"],
        ] {
            ok(args);
        }
        block_on(async {
            let client = cluster.client(2).await;
            client.put_kv("after", "v").await;
            assert_eq!(cluster.client(1).await.get("z").await.as_deref(), Some("open"));
            assert_same_store(&cluster, "all of it is gone").await;
        });
        ok(&["downgrade", "enable", "3.6"]);
        block_on(async {
            assert_same_store(&cluster, "a downgrade").await;
            let info = cluster.status(1).await.downgrade_info.unwrap();
            assert_eq!((info.enabled, info.target_version.as_str()), (true, "3.6.0"));
        });
        ok(&["downgrade", "cancel"]);
        block_on(assert_same_store(&cluster, "no downgrade"));
    }
}
