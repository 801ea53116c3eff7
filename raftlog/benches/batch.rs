//! What a batch of entries costs from proposal to commit, without a disk.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etcore_engine::file::{FileOp, FileOutput, run};
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_proto::raftpb;
use etcore_raftlog::bootstrap::{Peer, bootstrap};
use etcore_raftlog::log::{Applied, Log};
use etcore_raftlog::node::{Effects, NodeConfig};
use etcore_raftlog::types::EntryKind;
use etcore_raftlog::types::{BatchNumber, LogIndex, Term};
use etcore_raftlog::wal::{self, EntryRef, NewLog, RecoverOptions, Writer, WriterConfig};

const DIR: &str = "wal";
const BATCH: u64 = 64;
const DATA_BYTES: usize = 300;

fn created() -> MemDisk {
    let mut disk = MemDisk::new();
    let (entries, hard_state) = bootstrap(&[Peer { id: 1, context: Bytes::new() }]);
    let metadata = raftpb::Metadata { node_id: Some(1), cluster_id: Some(2) };
    let log = NewLog { metadata, entries: &entries, hard_state, segment_bytes: 64 << 20 };
    wal::create(&mut disk, DIR, log).expect("created");
    disk
}

/// Answers an operation without doing it, except for files that must exist.
fn pretend(op: FileOp, disk: &mut MemDisk) -> std::io::Result<FileOutput> {
    match op {
        FileOp::Write { data, .. } => Ok(FileOutput::Written(data)),
        FileOp::ZeroFill { .. } | FileOp::Rename { .. } | FileOp::SyncDir { .. } => {
            Ok(FileOutput::Done)
        }
        other => run(disk, other),
    }
}

fn settle(log: &mut Log, disk: &mut MemDisk, effects: &mut Effects) -> u64 {
    let mut applied = 0;
    loop {
        while log.turn(effects).expect("staged") {
            for entry in &effects.committed {
                if entry.kind != EntryKind::Normal {
                    log.node.apply_conf_change(entry.kind, &entry.data).expect("applied");
                }
                applied = entry.index.0;
            }
            if let Some(last) = effects.committed.last() {
                log.node.on_applied(last.index);
            }
        }
        if let Some(op) = log.writer.next_background_op() {
            let result = pretend(op, disk);
            log.writer.background_done(result);
        } else if let Some(op) = log.next_op() {
            let result = pretend(op, disk);
            log.op_done(result).expect("written");
        } else {
            return applied;
        }
    }
}

fn propose_to_commit(c: &mut Criterion) {
    let mut disk = created();
    let config = NodeConfig::new(1, 1, 1);
    let (mut log, _) =
        Log::open(&mut disk, DIR, config, WriterConfig::default(), Applied::default())
            .expect("opened");
    let mut effects = Effects::default();
    settle(&mut log, &mut disk, &mut effects);
    let data = Bytes::from(vec![7; DATA_BYTES]);
    let mut group = c.benchmark_group("log");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("propose, encode, persist and commit 64 x 300 B", |b| {
        b.iter(|| {
            log.node.propose((0..BATCH).map(|_| data.clone())).expect("proposed");
            settle(&mut log, &mut disk, &mut effects)
        });
    });
    group.finish();
}

fn encode(c: &mut Criterion) {
    let mut disk = created();
    let options = RecoverOptions { applied: LogIndex(0), window_bytes: 0, repair: true };
    let mut recovered = wal::recover(&mut disk, DIR, options).expect("recovered");
    let mut index = recovered.last_index.0;
    let mut writer = Writer::new(&mut recovered, WriterConfig::default());
    let data = Bytes::from(vec![7; DATA_BYTES]);
    let mut number = 0;
    let mut group = c.benchmark_group("writer");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("append and take 64 x 300 B", |b| {
        b.iter(|| {
            number += 1;
            let first = index + 1;
            index += BATCH;
            let entries = (first..=index).map(|index| EntryRef {
                index: LogIndex(index),
                term: Term(1),
                kind: EntryKind::Normal,
                data: &data,
            });
            writer.append(entries, None, BatchNumber(number)).expect("staged");
            loop {
                if let Some(op) = writer.next_background_op() {
                    let result = pretend(op, &mut disk);
                    writer.background_done(result);
                } else if let Some(op) = writer.next_op() {
                    let result = pretend(op, &mut disk);
                    writer.op_done(result).expect("written");
                } else {
                    break;
                }
            }
        });
    });
    group.finish();
}

criterion_group!(benches, propose_to_commit, encode);
criterion_main!(benches);
