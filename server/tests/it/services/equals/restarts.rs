//! After each class of odd requests the member is killed and started again: it serves, and stores
//! what it stored.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::Duration;

use etcore_proto::pb::etcdserverpb as pb;
use etcore_server::sim::hostile::{Hostile, Manner};
use prost::Message as _;

use super::answer::{HASH_KV, PUT, RANGE, STATUS, WATCH};
use super::attacker::carry_out;
use super::draw::{Dress, Step, WatchAct, class, head, is_malformed, program};
use super::generate::{REQUEST_BYTES_MAX, TXN_OPS_MAX};
use super::peer::{Log, Peer};
use super::program::{Known, Op};
use super::run::{envelope, keep_alive_body, message_of};
use crate::harness::{Setup, on_each_driver};

const WAIT: Duration = Duration::from_secs(20);
/// An odd request may wait for more, and is not waited for.
const ODD_WAIT: Duration = Duration::from_millis(300);
/// Requests of a class.
const COUNT: usize = 40;
/// Connections of a life of the hostile client.
const CONNECTIONS: usize = 4;

fn call(peer: &mut Peer, path: &str, message: &[u8], dress: &Dress, wait: Duration) -> Log {
    let head = head(path, &dress.edits);
    let body = envelope(dress.envelope, message);
    let stream = peer.open(&head, &dress.cut, body.is_empty());
    if !is_malformed(&head) {
        peer.send(stream, &body, &dress.cut, true);
    }
    peer.finish(stream, wait)
}

/// What a member of this port answers to a call that is right.
fn answer<M: prost::Message + Default>(port: u16, path: &str, message: &[u8]) -> M {
    let mut peer = Peer::connect(port, WAIT);
    let mut log = call(&mut peer, path, message, &Dress::plain(), WAIT);
    let messages = log.take_messages();
    assert_eq!(messages.len(), 1, "{path}: {:?}", log.heads);
    M::decode(messages[0].clone()).expect("an answer")
}

fn hash(port: u16, revision: i64) -> pb::HashKvResponse {
    answer(port, HASH_KV, &pb::HashKvRequest { revision }.encode_to_vec())
}

/// What the member has once nothing that was asked is under way any more: at a revision behind
/// those that were compacted, whose hashes it remembers.
fn settled(port: u16) -> pb::HashKvResponse {
    let mut last: Option<pb::HashKvResponse> = None;
    loop {
        let put = pb::PutRequest { key: b"settled"[..].into(), ..Default::default() };
        let put: pb::PutResponse = answer(port, PUT, &put.encode_to_vec());
        let revision = put.header.expect("a header").revision;
        std::thread::sleep(Duration::from_millis(100));
        // Linearizable: what was committed before is applied.
        let request = pb::RangeRequest { key: b"none"[..].into(), ..Default::default() };
        let _: pb::RangeResponse = answer(port, RANGE, &request.encode_to_vec());
        let now = hash(port, revision);
        let newest = hash(port, 0).header.expect("a header").revision;
        if newest == revision
            && last.as_ref().is_some_and(|last| last.compact_revision == now.compact_revision)
        {
            return now;
        }
        last = Some(now);
    }
}

/// Sends a step; whatever comes of it.
fn send(port: u16, peer: &mut Peer, step: &Step, known: &Known, own_id: u64) {
    if peer.is_over() {
        *peer = Peer::connect(port, WAIT);
    }
    match step {
        Step::Call(asked) => {
            if let Some((path, message)) = message_of(asked, known, own_id) {
                call(peer, path, &message, &asked.dress, ODD_WAIT);
            }
        }
        Step::KeepAlive(dress, renewals) => {
            let head = head(super::answer::KEEP_ALIVE, &dress.edits);
            let stream = peer.open(&head, &dress.cut, false);
            if !is_malformed(&head) {
                let body = keep_alive_body(dress, renewals, known);
                peer.send(stream, &body, &dress.cut, true);
            }
            peer.finish(stream, ODD_WAIT);
        }
        Step::Watch(dress, acts) => {
            let head = head(WATCH, &dress.edits);
            let stream = peer.open(&head, &dress.cut, false);
            for act in acts {
                if let WatchAct::Ask(request_union, alters) = act
                    && !is_malformed(&head)
                {
                    let request = pb::WatchRequest { request_union: request_union.clone() };
                    let mut bytes = request.encode_to_vec();
                    alters.iter().for_each(|alter| alter.carry_out(&mut bytes));
                    peer.send(stream, &envelope(dress.envelope, &bytes), &dress.cut, false);
                }
            }
            peer.finish(stream, Duration::from_millis(20));
        }
    }
}

#[test]
fn after_each_class_of_odd_requests_a_killed_member_has_what_it_had() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let seed = super::first_seed(1_796_096_684);
    let mut classes: BTreeMap<String, Vec<Step>> = BTreeMap::new();
    for step in program(seed, 4_000) {
        let steps = classes.entry(class(&step)).or_default();
        if steps.len() < COUNT {
            steps.push(step);
        }
    }
    let mut lives: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for seed in seed..seed + 400 {
        let seeds = lives.entry(Hostile::new(seed, Manner::REAL).kind()).or_default();
        if seeds.len() < CONNECTIONS {
            seeds.push(seed);
        }
    }
    assert!(classes.len() > 14 && lives.len() > 8, "{:?} {lives:?}", classes.keys());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().expect("a directory");
        let setup = Setup::new(dir.path(), driver)
            .with(&format!("--max-request-bytes={REQUEST_BYTES_MAX}"))
            .with(&format!("--max-txn-ops={TXN_OPS_MAX}"));
        let port = setup.client_port;
        let mut member = setup.start();
        let first = pb::PutRequest { key: b"first"[..].into(), ..Default::default() };
        let _: pb::PutResponse = answer(port, PUT, &first.encode_to_vec());
        let (mut known, mut own_id) = (Known::default(), 0);
        let attacks = classes.keys().chain(lives.keys());
        for name in attacks {
            if let Some(steps) = classes.get(name) {
                let mut peer = Peer::connect(port, WAIT);
                for step in steps {
                    send(port, &mut peer, step, &known, own_id);
                }
            }
            for seed in lives.get(name).into_iter().flatten() {
                let socket = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
                carry_out(socket, Hostile::new(*seed, Manner::REAL));
            }
            let what = format!("seed {seed}: {driver}: {name}");
            let before = settled(port);
            let revision = before.hash_revision;
            member.kill();
            member = setup.start();
            let after = hash(port, revision);
            let stored = |one: &pb::HashKvResponse| (one.hash, one.compact_revision);
            assert_eq!(stored(&after), stored(&before), "{what}");
            // An alarm that was raised lives on, and is ended here.
            let status: pb::StatusResponse = answer(port, STATUS, b"");
            own_id = status.header.expect("a header").member_id;
            for (alarm, member_id) in [(1, own_id), (2, own_id), (1, 0), (2, 0), (1, 77), (2, 77)] {
                let action = pb::alarm_request::AlarmAction::Deactivate as i32;
                let request = pb::AlarmRequest { action, member_id, alarm };
                let message = request.encode_to_vec();
                let _: pb::AlarmResponse = answer(port, super::answer::ALARM, &message);
            }
            let status: pb::StatusResponse = answer(port, STATUS, b"");
            assert!(status.leader == own_id, "{what}: {status:?}");
            if status.errors.is_empty() {
                let put = pb::PutRequest { key: "after".into(), ..Default::default() };
                let put: pb::PutResponse = answer(port, PUT, &put.encode_to_vec());
                known.current = put.header.expect("a header").revision;
                assert!(known.current > revision, "{what}");
            }
        }
    });
}

/// The steps of a class are of one kind.
#[test]
fn classes_are_named_after_their_methods() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let put = Step::Call(super::draw::Call {
        asked: super::draw::Asked::Op(Op::Put(pb::PutRequest::default())),
        alters: Vec::new(),
        dress: Dress::plain(),
    });
    assert_eq!(class(&put), "Put");
}
