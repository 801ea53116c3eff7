//! A single member on a real directory: proposals become committed entries and survive a restart.

use crate::common::{DIR, SMALL_SEGMENT_BYTES, create, open, settle};
use bytes::Bytes;
use etcore_engine::file::StdDisk;
use etcore_raftlog::node::{Fetch, Proposed, Role};
use etcore_raftlog::types::{LogIndex, SnapshotMark, Term};

#[test]
fn a_new_member_elects_itself_and_commits_what_is_proposed() {
    let root = tempfile::tempdir().expect("a directory");
    let mut disk = StdDisk::new(root.path());
    create(&mut disk, 1 << 20).expect("created");
    let mut log = open(&mut disk, 1 << 20).expect("opened");
    let mut applied = Vec::new();
    assert!(log.node.read_index(42));
    let reads = settle(&mut log, &mut disk, &mut applied).expect("settled");
    assert_eq!(log.node.status().soft_state.role, Role::Leader);
    assert_eq!(log.node.status().soft_state.term, Term(2));
    assert_eq!(reads, [(42, 2)]);
    let batch = (0..3).map(|n| Bytes::from(vec![n; 10]));
    let proposed = log.node.propose(batch).expect("proposed");
    assert_eq!(proposed, Proposed::Appended { first: LogIndex(3), term: Term(2), count: 3 });
    settle(&mut log, &mut disk, &mut applied).expect("settled");
    let indexes: Vec<u64> = applied.iter().map(|entry| entry.index.0).collect();
    assert_eq!(indexes, [1, 2, 3, 4, 5]);
    assert_eq!(applied[4].data, Bytes::from(vec![2; 10]));
}

#[test]
fn everything_committed_is_there_after_a_restart_over_many_segments() {
    let root = tempfile::tempdir().expect("a directory");
    let mut disk = StdDisk::new(root.path());
    create(&mut disk, SMALL_SEGMENT_BYTES).expect("created");
    let mut before = Vec::new();
    let mut log = open(&mut disk, SMALL_SEGMENT_BYTES).expect("opened");
    settle(&mut log, &mut disk, &mut before).expect("settled");
    for round in 0..60u8 {
        let batch = (0..20).map(|n| Bytes::from(vec![round ^ n; 300]));
        log.node.propose(batch).expect("proposed");
        settle(&mut log, &mut disk, &mut before).expect("settled");
    }
    drop(log);
    let segments = std::fs::read_dir(root.path().join(DIR)).expect("listed").count();
    assert!(segments > 5, "{segments} segments");
    let mut after = Vec::new();
    let mut log = open(&mut disk, SMALL_SEGMENT_BYTES).expect("opened");
    settle(&mut log, &mut disk, &mut after).expect("settled");
    // The new leader's first entry comes on top.
    assert_eq!(after[..before.len()], before[..]);
    assert_eq!(after.len(), before.len() + 1);
}

#[test]
fn a_batch_larger_than_a_segment_is_split_and_kept_whole() {
    let root = tempfile::tempdir().expect("a directory");
    let mut disk = StdDisk::new(root.path());
    create(&mut disk, SMALL_SEGMENT_BYTES).expect("created");
    let mut applied = Vec::new();
    let mut log = open(&mut disk, SMALL_SEGMENT_BYTES).expect("opened");
    settle(&mut log, &mut disk, &mut applied).expect("settled");
    for size in [40_000, 7, 20_000, 48_000] {
        let batch = (0..9).map(|n| Bytes::from(vec![n + 1; size]));
        log.node.propose(batch).expect("proposed");
    }
    settle(&mut log, &mut disk, &mut applied).expect("settled");
    let mut after = Vec::new();
    let mut log = open(&mut disk, SMALL_SEGMENT_BYTES).expect("opened");
    settle(&mut log, &mut disk, &mut after).expect("settled");
    assert_eq!(after[..applied.len()], applied[..]);
    assert_eq!(applied.len(), 2 + 36);
}

#[test]
fn released_segments_go_and_the_rest_opens_and_can_be_fetched() {
    let root = tempfile::tempdir().expect("a directory");
    let mut disk = StdDisk::new(root.path());
    create(&mut disk, SMALL_SEGMENT_BYTES).expect("created");
    let mut applied = Vec::new();
    let mut log = open(&mut disk, SMALL_SEGMENT_BYTES).expect("opened");
    settle(&mut log, &mut disk, &mut applied).expect("settled");
    for round in 0..60u8 {
        let batch = (0..20).map(|n| Bytes::from(vec![round ^ n; 300]));
        log.node.propose(batch).expect("proposed");
        settle(&mut log, &mut disk, &mut applied).expect("settled");
    }
    let names = |root: &std::path::Path| std::fs::read_dir(root.join(DIR)).expect("listed").count();
    let before = names(root.path());
    let entry = applied[899].clone();
    let mark = SnapshotMark {
        index: entry.index,
        term: entry.term,
        conf_state: Some(log.node.conf_state()),
    };
    log.release(entry.index);
    assert_eq!(names(root.path()), before, "nothing goes without a mark");
    log.mark(&mark).expect("marked");
    settle(&mut log, &mut disk, &mut applied).expect("settled");
    log.release(entry.index);
    settle(&mut log, &mut disk, &mut applied).expect("settled");
    assert!(names(root.path()) < before);
    let base = log.node.status().base;
    assert!(base.0 > 1 && base.0 < 900 - 10, "{base}");

    for (low, high, bytes_max) in
        [(base.0 + 1, 1100, 1 << 20), (base.0 + 1, base.0 + 2, 1), (1000, 1200, 5000)]
    {
        let (low, high) = (LogIndex(low), LogIndex(high));
        let plan = log.writer.plan(&Fetch { id: 1, low, high, bytes_max }).expect("a plan");
        let bytes = std::fs::read(root.path().join(&plan.name)).expect("read");
        let start = plan.offset_bytes as usize;
        let end = bytes.len().min(start + plan.len_bytes);
        let entries = plan.decode(&bytes[start..end]);
        assert!(!entries.is_empty(), "{plan:?}");
        for (index, entry) in (low.0..high.0).zip(&entries) {
            assert_eq!(*entry, applied[index as usize - 1]);
        }
        let mut damaged = bytes[start..end].to_vec();
        damaged[plan.len_bytes.min(end - start) / 2] ^= 1;
        assert!(plan.decode(&damaged).len() < entries.len());
    }
    drop(log);

    let error = open(&mut disk, SMALL_SEGMENT_BYTES).expect_err("nothing is applied");
    assert!(error.to_string().contains("do not belong together"), "{error}");
}
