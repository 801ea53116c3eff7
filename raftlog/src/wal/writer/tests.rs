//! The writer by itself: what it asks for, and when it reports.

use etcore_engine::file::run;
use etcore_engine::testing::mem_disk::MemDisk;

use super::*;
use crate::types::EntryKind;
use crate::wal::{NewLog, RecoverOptions, create, recover};

const DIR: &str = "wal";

fn writer() -> (MemDisk, Writer) {
    let mut disk = MemDisk::new();
    let metadata = raftpb::Metadata { node_id: Some(1), cluster_id: Some(2) };
    let hard_state = HardState { term: Term(1), vote: 0, commit: LogIndex(0) };
    let log = NewLog { metadata, entries: &[], hard_state, segment_bytes: 1 << 20 };
    create(&mut disk, DIR, log).expect("created");
    let options = RecoverOptions { applied: LogIndex(0), window_bytes: 0, repair: true };
    let mut recovered = recover(&mut disk, DIR, options).expect("recovered");
    let config = WriterConfig { segment_bytes: 1 << 20, catchup_entries: 0 };
    (disk, Writer::new(&mut recovered, config))
}

fn append(writer: &mut Writer, index: u64, data: &Bytes, number: u64) {
    let kind = EntryKind::Normal;
    let entry = EntryRef { index: LogIndex(index), term: Term(1), kind, data };
    writer.append([entry].into_iter(), None, BatchNumber(number)).expect("staged");
}

#[test]
fn entries_staged_during_a_sync_form_one_next_batch() {
    let (mut disk, mut writer) = writer();
    let data = Bytes::from_static(b"data");
    append(&mut writer, 1, &data, 1);
    let first = writer.next_op().expect("a write");
    for index in 2..=5 {
        append(&mut writer, index, &data, index);
        assert!(writer.next_op().is_none(), "one operation at a time");
    }
    let result = run(&mut disk, first);
    assert_eq!(writer.op_done(result), Ok(Some(BatchNumber(1))));
    let second = writer.next_op().expect("a write");
    let result = run(&mut disk, second);
    assert_eq!(writer.op_done(result), Ok(Some(BatchNumber(5))));
    assert!(writer.is_idle() && writer.next_op().is_none());
    assert_eq!(writer.staged_bytes(), 0);
}

#[test]
fn a_new_commit_index_alone_is_written_with_the_next_batch() {
    let (mut disk, mut writer) = writer();
    append(&mut writer, 1, &Bytes::new(), 1);
    let op = writer.next_op().expect("a write");
    let result = run(&mut disk, op);
    writer.op_done(result).expect("written");
    let committed = HardState { term: Term(1), vote: 0, commit: LogIndex(1) };
    writer.append(std::iter::empty(), Some(committed), BatchNumber(2)).expect("staged");
    assert!(writer.next_op().is_none());
    writer.flush();
    let op = writer.next_op().expect("a write");
    let result = run(&mut disk, op);
    writer.op_done(result).expect("written");
    let options = RecoverOptions { applied: LogIndex(0), window_bytes: 0, repair: false };
    let found = recover(&mut disk, DIR, options).expect("recovered");
    assert_eq!(found.hard_state, committed);
}

#[test]
fn write_buffers_are_used_again() {
    let (_, mut writer) = writer();
    let data = Bytes::from(vec![1; 300]);
    let mut buffers = std::collections::BTreeSet::new();
    for index in 1..=500 {
        append(&mut writer, index, &data, index);
        let Some(FileOp::Write { data, offset_bytes, .. }) = writer.next_op() else {
            panic!("a write");
        };
        assert!(offset_bytes.is_multiple_of(4096) && data.len().is_multiple_of(4096));
        buffers.insert(data.as_ptr() as usize);
        writer.op_done(Ok(FileOutput::Written(data))).expect("written");
    }
    // One for batches of one block, one more for those that reach into a second block.
    assert!(buffers.len() <= 2, "{} buffers", buffers.len());
}

#[test]
fn an_operation_that_nobody_asked_for_is_final() {
    let (_, mut writer) = writer();
    let error = writer.op_done(Ok(FileOutput::Done)).expect_err("refused");
    assert_eq!(writer.admit(1, 1), Err(Admission::Failed(error)));
}
