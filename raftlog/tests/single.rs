//! A single member on a real directory: proposals become committed entries and survive a restart.

use bytes::Bytes;
use etcore_engine::file::StdDisk;
use etcore_proto::raftpb;
use etcore_raftlog::bootstrap::{Peer, bootstrap};
use etcore_raftlog::log::{Applied, Log};
use etcore_raftlog::node::{Effects, NodeConfig, Proposed, Role};
use etcore_raftlog::types::{EntryKind, LogEntry, LogIndex, Term};
use etcore_raftlog::wal::{self, NewLog, WriterConfig};

const DIR: &str = "member/wal";
const ID: u64 = 0x8e9e_05c5_2164_694d;

fn create(disk: &mut StdDisk, segment_bytes: u64) {
    let metadata = raftpb::Metadata { node_id: Some(ID), cluster_id: Some(7) };
    let (entries, hard_state) = bootstrap(&[Peer { id: ID, context: Bytes::from_static(b"{}") }]);
    let log = NewLog { metadata, entries: &entries, hard_state, segment_bytes };
    wal::create(disk, DIR, log).expect("created");
}

fn open(disk: &mut StdDisk, segment_bytes: u64) -> Log {
    let config = WriterConfig { segment_bytes, catchup_entries: 10 };
    let node = NodeConfig::new(ID, 1, 2);
    let (log, _) = Log::open(disk, DIR, node, config, Applied::default()).expect("opened");
    log
}

/// Runs turns until nothing is left and applies what is committed.
fn settle(log: &mut Log, disk: &mut StdDisk, applied: &mut Vec<LogEntry>) -> Vec<(u64, u64)> {
    let mut effects = Effects::default();
    let mut reads = Vec::new();
    loop {
        let mut any = false;
        while log.turn(&mut effects).expect("staged") {
            any = true;
            for entry in effects.committed.drain(..) {
                if entry.kind != EntryKind::Normal {
                    log.node.apply_conf_change(entry.kind, &entry.data).expect("applied");
                }
                applied.push(entry);
            }
            if let Some(last) = applied.last() {
                log.node.on_applied(last.index);
            }
            reads.extend(effects.reads.iter().map(|read| (read.ticket, read.index.0)));
        }
        log.drive(disk).expect("driven");
        if !any {
            return reads;
        }
    }
}

#[test]
fn a_new_member_elects_itself_and_commits_what_is_proposed() {
    let root = tempfile::tempdir().expect("a directory");
    let mut disk = StdDisk::new(root.path());
    create(&mut disk, 1 << 20);
    let mut log = open(&mut disk, 1 << 20);
    let mut applied = Vec::new();
    assert!(log.node.read_index(42));
    let reads = settle(&mut log, &mut disk, &mut applied);
    assert_eq!(log.node.status().soft_state.role, Role::Leader);
    assert_eq!(log.node.status().soft_state.term, Term(2));
    assert_eq!(reads, [(42, 2)]);
    let batch = (0..3).map(|n| Bytes::from(vec![n; 10]));
    let proposed = log.node.propose(batch).expect("proposed");
    assert_eq!(proposed, Proposed::Appended { first: LogIndex(3), term: Term(2), count: 3 });
    settle(&mut log, &mut disk, &mut applied);
    let indexes: Vec<u64> = applied.iter().map(|entry| entry.index.0).collect();
    assert_eq!(indexes, [1, 2, 3, 4, 5]);
    assert_eq!(applied[4].data, Bytes::from(vec![2; 10]));
}

#[test]
fn everything_committed_is_there_after_a_restart_over_many_segments() {
    const SEGMENT_BYTES: u64 = 64 << 10;
    let root = tempfile::tempdir().expect("a directory");
    let mut disk = StdDisk::new(root.path());
    create(&mut disk, SEGMENT_BYTES);
    let mut before = Vec::new();
    let mut log = open(&mut disk, SEGMENT_BYTES);
    settle(&mut log, &mut disk, &mut before);
    for round in 0..60u8 {
        let batch = (0..20).map(|n| Bytes::from(vec![round ^ n; 300]));
        log.node.propose(batch).expect("proposed");
        settle(&mut log, &mut disk, &mut before);
    }
    drop(log);
    let segments = std::fs::read_dir(root.path().join(DIR)).expect("listed").count();
    assert!(segments > 5, "{segments} segments");
    let mut after = Vec::new();
    let mut log = open(&mut disk, SEGMENT_BYTES);
    settle(&mut log, &mut disk, &mut after);
    // The new leader's first entry comes on top.
    assert_eq!(after[..before.len()], before[..]);
    assert_eq!(after.len(), before.len() + 1);
}
