//! What the node refuses from peers and clients, and the log from a full disk.

use crate::common::{ID, SMALL_SEGMENT_BYTES, create, open, settle};
use bytes::Bytes;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::prng::Prng;
use etcore_proto::raftpb::{ConfState, Entry, Message, MessageType, Snapshot, SnapshotMetadata};
use etcore_raftlog::log::{Applied, Log, OpenError};
use etcore_raftlog::node::{NodeConfig, NodeError, ProposeError, StepError};
use etcore_raftlog::types::{LogIndex, Term};
use etcore_raftlog::wal::{Admission, WalError, WriterConfig};

fn started() -> (MemDisk, Log) {
    let mut disk = MemDisk::new();
    create(&mut disk, SMALL_SEGMENT_BYTES).expect("created");
    let mut log = open(&mut disk, SMALL_SEGMENT_BYTES).expect("opened");
    settle(&mut log, &mut disk, &mut Vec::new()).expect("settled");
    (disk, log)
}

fn message(kind: MessageType) -> Message {
    Message {
        r#type: Some(kind as i32),
        to: Some(ID),
        from: Some(77),
        term: Some(9),
        ..Default::default()
    }
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { r#type: Some(0), term: Some(term), index: Some(index), data: None }
}

#[test]
fn messages_that_would_stop_raft_are_refused_with_a_reason() {
    let (_, mut log) = started();
    let node = &mut log.node;
    let cases = [
        (Message { r#type: Some(99), ..message(MessageType::MsgApp) }, StepError::Type(99)),
        (message(MessageType::MsgHup), StepError::Type(0)),
        (Message { to: Some(5), ..message(MessageType::MsgApp) }, StepError::Receiver(5)),
        (Message { from: None, ..message(MessageType::MsgApp) }, StepError::Sender),
        (Message { from: Some(ID), ..message(MessageType::MsgApp) }, StepError::Sender),
        (message(MessageType::MsgAppResp), StepError::NotAMember(77)),
        (Message { term: None, ..message(MessageType::MsgApp) }, StepError::Term(0)),
        (message(MessageType::MsgReadIndex), StepError::Term(9)),
        (
            Message { commit: Some(50), ..message(MessageType::MsgHeartbeat) },
            StepError::Index { index: 50, last: 2 },
        ),
        (
            Message {
                entries: vec![entry(3, 9), entry(5, 9)],
                index: Some(2),
                ..message(MessageType::MsgApp)
            },
            StepError::Entry(1),
        ),
        (
            Message { entries: vec![entry(3, 10)], index: Some(2), ..message(MessageType::MsgApp) },
            StepError::Entry(0),
        ),
        (Message { term: None, ..message(MessageType::MsgProp) }, StepError::Entry(0)),
        (Message { term: None, ..message(MessageType::MsgReadIndex) }, StepError::Entry(0)),
        (message(MessageType::MsgSnap), StepError::Snapshot),
    ];
    for (message, expected) in cases {
        assert_eq!(node.step(message.clone()), Err(expected), "{message:?}");
    }
    let conf_state = ConfState { voters: vec![1, 1], ..Default::default() };
    let metadata = SnapshotMetadata { conf_state: Some(conf_state), index: Some(9), term: Some(9) };
    let snapshot = Some(Snapshot { data: None, metadata: Some(metadata) });
    let twice = Message { snapshot, ..message(MessageType::MsgSnap) };
    assert_eq!(node.step(twice), Err(StepError::Snapshot));
}

#[test]
fn random_messages_never_stop_the_node() {
    let (mut disk, mut log) = started();
    let mut prng = Prng::new(11);
    let mut applied = Vec::new();
    let mut accepted = 0;
    for _ in 0..if crate::common::long() { 50_000 } else { 2_000 } {
        let small = |prng: &mut Prng| Some(prng.below(6));
        let entries = (0..prng.below(3))
            .map(|_| Entry {
                r#type: Some(prng.below(4) as i32),
                term: small(&mut prng),
                index: small(&mut prng),
                data: prng.chance(1, 2).then(|| Bytes::from_static(b"\x08\x01\xff")),
            })
            .collect();
        let message = Message {
            r#type: Some(prng.below(20) as i32),
            to: Some(ID),
            from: Some(prng.below(3)),
            term: Some((log.node.status().soft_state.term.0 + prng.below(3)).saturating_sub(1)),
            log_term: small(&mut prng),
            index: small(&mut prng),
            entries,
            commit: small(&mut prng),
            snapshot: None,
            reject: Some(prng.chance(1, 2)),
            reject_hint: small(&mut prng),
            context: None,
        };
        accepted += u64::from(log.node.step(message).is_ok());
        log.node.tick();
        settle(&mut log, &mut disk, &mut applied).expect("settled");
    }
    assert!(accepted > 200, "{accepted} messages were accepted");
    assert!(applied.len() > 20, "{} entries", applied.len());
}

#[test]
fn proposals_are_refused_before_they_reach_the_log() {
    let (_, mut log) = started();
    let last = log.node.status().last_index;
    assert_eq!(log.node.propose(std::iter::empty()), Err(ProposeError::Empty));
    let bytes_max = log.writer.entry_data_bytes_max();
    let large = Bytes::from(vec![1; bytes_max as usize + 1]);
    let data_bytes = bytes_max + 1;
    let error = ProposeError::TooLarge { data_bytes, bytes_max };
    assert_eq!(log.node.propose([Bytes::new(), large].into_iter()), Err(error));
    assert_eq!(log.node.status().last_index, last);
}

#[test]
fn without_a_spare_segment_proposals_are_not_admitted_and_then_are_again() {
    let mut disk = MemDisk::new();
    create(&mut disk, SMALL_SEGMENT_BYTES).expect("created");
    let mut log = open(&mut disk, SMALL_SEGMENT_BYTES).expect("opened");
    // The second change of the spare's preparation is its zero fill: the device is full.
    disk.fail_at(disk.change_count() + 1, std::io::ErrorKind::StorageFull);
    settle(&mut log, &mut disk, &mut Vec::new()).expect("settled");
    assert_eq!(log.writer.admit(1, 100), Ok(()));
    let refused = log.writer.admit(1, log.writer.entry_data_bytes_max());
    assert!(matches!(refused, Err(Admission::NoSpace { reason: Some(_) })), "{refused:?}");
    assert!(disk.names().iter().all(|name| !name.ends_with(".tmp")), "{:?}", disk.names());
    log.writer.retry_spare();
    settle(&mut log, &mut disk, &mut Vec::new()).expect("settled");
    assert_eq!(log.writer.admit(1, log.writer.entry_data_bytes_max()), Ok(()));
}

#[test]
fn a_failed_write_is_final() {
    let (mut disk, mut log) = started();
    disk.fail_at(disk.change_count(), std::io::ErrorKind::Other);
    log.node.propose([Bytes::from_static(b"x")].into_iter()).expect("proposed");
    let mut applied = Vec::new();
    let error = settle(&mut log, &mut disk, &mut applied).expect_err("the write failed");
    assert!(matches!(error, WalError::Io { what: "write", .. }), "{error}");
    assert!(applied.is_empty());
    assert_eq!(log.writer.failure(), Some(&error));
    assert_eq!(log.writer.admit(1, 1), Err(Admission::Failed(error)));
    assert!(log.next_op().is_none());
}

#[test]
fn a_page_file_that_does_not_fit_the_log_is_refused() {
    let (mut disk, log) = started();
    drop(log);
    let mut start = |index, term, voters: Vec<u64>| {
        let conf_state = ConfState { voters, ..Default::default() };
        let applied = Applied { index: LogIndex(index), term: Term(term), conf_state };
        let config = WriterConfig { segment_bytes: SMALL_SEGMENT_BYTES, catchup_entries: 0 };
        Log::open(&mut disk, "member/wal", NodeConfig::new(ID, 1, 1), config, applied)
            .map(|_| ())
            .expect_err("refused")
    };
    let ahead = start(9, 2, vec![ID]);
    assert!(matches!(&ahead, OpenError::Wal(WalError::Refused { .. })), "{ahead}");
    let term = start(2, 7, vec![ID]);
    assert!(matches!(term, OpenError::Node(NodeError::AppliedTerm { .. })), "{term}");
    let twice = start(2, 2, vec![ID, ID]);
    assert!(matches!(twice, OpenError::Node(NodeError::ConfState(_))), "{twice}");
}
