//! A quorum is lost for a while, and clients under stress run out of time by the thousand: what
//! they have on the same connection lives on, and is served once the quorum is back.

use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use prost::Message as _;

use crate::harness::cluster::Cluster;
use crate::harness::{block_on, on_each_driver};
use crate::services::differential::client::{CallId, Client, Item};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

const CALLS: usize = 3_000;
const CALL_MS: u64 = 600;
const WAIT: Duration = Duration::from_secs(30);
const LEASE: i64 = 77;
/// What no server says: the connection is over, or nothing came.
const NO_STATUS: i32 = -1;

fn put(key: &str) -> Vec<u8> {
    pb::PutRequest { key: key.to_owned().into(), ..Default::default() }.encode_to_vec()
}

/// One call that must succeed.
fn ok(client: &mut Client, path: &'static str, message: &[u8]) {
    let call = client.start(path, message);
    let items = client.finish(call, WAIT);
    assert!(matches!(items.last(), Some(Item::End(0, _))), "{path}: {items:?}");
}

/// The next message of a stream.
fn next<M: prost::Message + Default>(client: &mut Client, call: CallId) -> M {
    client.wait(call, WAIT, |items| !items.is_empty());
    match client.items(call).pop_front() {
        Some(Item::Message(bytes)) => M::decode(bytes).expect("an answer"),
        other => panic!("a stream brought {other:?}"),
    }
}

fn renew(client: &mut Client, stream: CallId) {
    client.send(stream, &pb::LeaseKeepAliveRequest { id: LEASE }.encode_to_vec());
    let renewed: pb::LeaseKeepAliveResponse = next(client, stream);
    assert!(renewed.id == LEASE && renewed.ttl > 0, "{renewed:?}");
}

#[test]
fn calls_that_run_out_of_time_while_a_quorum_is_lost_cost_no_connection() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::start(dir.path(), driver, 3, &[]);
        let leader = block_on(cluster.leader());
        // Of a leader and of a follower.
        for at in [leader, (leader + 1) % 3] {
            run(
                &cluster,
                at,
                &format!("{driver}: {}", if at == leader { "led" } else { "follows" }),
            );
        }
    });
}

fn run(cluster: &Cluster, at: usize, what: &str) {
    let mut client = Client::connect(cluster.setups[at].client_port).unwrap();
    let grant = pb::LeaseGrantRequest { id: LEASE, ttl: 600 };
    let call = client.start(GRANT, &grant.encode_to_vec());
    // The second time it is there.
    client.finish(call, WAIT);
    let renewals = client.open(KEEP_ALIVE);
    renew(&mut client, renewals);
    let watch = client.open(WATCH);
    let create = pb::WatchCreateRequest { key: "watched".into(), ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    client.send(watch, &create.encode_to_vec());
    let created: pb::WatchResponse = next(&mut client, watch);
    assert!(created.created, "{what}: {created:?}");
    ok(&mut client, PUT, &put("before"));

    let others = cluster.others(at);
    let signal = |signal: i32| {
        for other in &others {
            cluster.members[*other].as_ref().expect("it runs").signal(signal);
        }
    };
    signal(libc::SIGSTOP);
    // Every thread of them must have stopped.
    std::thread::sleep(Duration::from_millis(100));
    let range = pb::RangeRequest { key: "before".into(), ..Default::default() }.encode_to_vec();
    let start = Instant::now();
    let calls: Vec<CallId> = (0..CALLS)
        .map(|number| {
            let (path, message) = if number % 4 < 2 {
                (PUT, put(&format!("{number}")))
            } else {
                (RANGE, range.clone())
            };
            client.start_within(path, &message, Some(CALL_MS))
        })
        .collect();
    // Some clients end their calls themselves when the time is over, as clientv3 does.
    let left = Duration::from_millis(CALL_MS).saturating_sub(start.elapsed());
    std::thread::sleep(left);
    for call in calls.iter().skip(1).step_by(2) {
        client.forget(*call);
    }
    let mut codes = std::collections::BTreeMap::new();
    for call in calls.iter().step_by(2) {
        let items = client.finish(*call, WAIT);
        let Some(Item::End(code, text)) = items.last() else { panic!("{what}: {items:?}") };
        assert!(*code > 0, "{what}: {code} {text}");
        *codes.entry((*code, text.clone())).or_insert(0) += 1;
    }
    eprintln!("{what}: after {:?} {codes:?}", start.elapsed());
    signal(libc::SIGCONT);
    // The quorum is back when a put is answered, on this very connection.
    let back = Instant::now();
    loop {
        let call = client.start_within(PUT, &put("watched"), Some(2_000));
        match client.finish(call, WAIT).last() {
            Some(Item::End(0, _)) => break,
            Some(Item::End(NO_STATUS, text)) => panic!("{what}: {text}"),
            other => assert!(back.elapsed() < WAIT, "{what}: {other:?}"),
        }
    }
    let told: pb::WatchResponse = next(&mut client, watch);
    assert!(
        told.events
            .iter()
            .all(|event| event.kv.as_ref().is_some_and(|kv| { kv.key == b"watched"[..] }))
    );
    assert!(!told.events.is_empty() && !told.canceled, "{what}: {told:?}");
    renew(&mut client, renewals);
    ok(&mut client, RANGE, &range);
    eprintln!("{what}: served again after {:?}", back.elapsed());
}
