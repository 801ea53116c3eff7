//! Log and page file on one disk that loses power: a member made of the production parts, driven
//! as the replica drives them, is cut off at every single change of the disk, or meets an I/O error
//! there, and is opened again. Everything acknowledged is there with its revision, nothing is given
//! a revision twice, no acknowledged compaction is undone.
//!
//! It must acknowledge exactly when the replica does: durable, applied and published.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use etcore_engine::checkpoint::{CheckpointTurn, Checkpointer};
use etcore_engine::file::{Completion, Disk};
use etcore_engine::page::Fetch;
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::model::{Entry, Model, Op, apply_ops};
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::{LeaseId, LogIndex, Revision};
use etcore_engine::wire::KvRef;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::raftpb;
use etcore_raftlog::bootstrap::{Peer, bootstrap};
use etcore_raftlog::log::{Applied, Log};
use etcore_raftlog::node::{Effects, NodeConfig, Proposed, Role};
use etcore_raftlog::types::{EntryKind, LogEntry, SnapshotMark};
use etcore_raftlog::wal::{self, Admission, NewLog, WriterConfig};
use prost::Message;

const WAL_DIR: &str = "wal";
const ID: u64 = 0x8e9e_05c5_2164_694d;
const SEGMENT_BYTES: u64 = 64 << 10;
const CATCHUP_ENTRIES: u64 = 2;
/// Proposals of one life.
const STEPS: u64 = 40;

/// An error ends the member, whatever it was.
type Fallible<T> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn long(short: u64, long: u64) -> u64 {
    if std::env::var_os("ETCORE_LONG").is_some() { long } else { short }
}

/// What clients asked for and were told, over all lives.
#[derive(Clone, Default)]
struct Told {
    /// All that was proposed and not lost in an earlier crash, by index.
    proposed: BTreeMap<u64, Entry>,
    /// The last index that was acknowledged.
    acknowledged: u64,
    /// Acknowledged changes: revision to key and value; `None` is a delete.
    revisions: BTreeMap<i64, (Vec<u8>, Option<Vec<u8>>)>,
    compacted: i64,
    /// How many values were made, so that all are different.
    values: u64,
}

/// What happened on the way, to show that the history is worth cutting.
#[derive(Default)]
struct Seen {
    checkpoints: u64,
    checkpoints_beside_proposals: u64,
}

/// A member without its sockets and threads.
struct Member {
    log: Log,
    store: Store,
    checkpointer: Checkpointer,
    log_disk: MemDisk,
    page_disk: MemDisk,
    completions: Vec<Completion>,
    effects: Effects,
    checkpoint_runs: bool,
    waiting: VecDeque<u64>,
    last_index: u64,
    now_ms: u64,
    seen: Seen,
}

impl Member {
    fn open(disk: &MemDisk, seed: u64) -> Fallible<Self> {
        let mut page_disk = disk.clone();
        let engine = EngineConfig { checkpoint_ms: 3, ..EngineConfig::default() };
        let (store, checkpointer) = Store::open(&mut page_disk, engine).map_err(text)?;
        page_disk.complete_in_seeded_order(seed);
        let mut log_disk = disk.clone();
        if !wal::exists(&mut log_disk, WAL_DIR).map_err(text)? {
            assert_eq!(store.applied().0, LogIndex(0), "the page file is ahead of a lost log");
            create(&mut log_disk)?;
        }
        let (index, term) = store.applied();
        let conf_state = raftpb::ConfState::decode(store.conf_state()).map_err(text)?;
        let applied = Applied { index, term, conf_state };
        let config =
            WriterConfig { segment_bytes: SEGMENT_BYTES, catchup_entries: CATCHUP_ENTRIES };
        let node = NodeConfig::new(ID, 1, seed);
        let (log, found) =
            Log::open(&mut log_disk, WAL_DIR, node, config, applied).map_err(text)?;
        Ok(Self {
            log,
            store,
            checkpointer,
            log_disk,
            page_disk,
            completions: Vec::new(),
            effects: Effects::default(),
            checkpoint_runs: false,
            waiting: VecDeque::new(),
            last_index: found.last_index.0,
            now_ms: 0,
            seen: Seen::default(),
        })
    }

    /// One turn of the replica.
    fn turn(&mut self, told: &mut Told) -> Fallible<()> {
        self.now_ms += 1;
        self.take_checkpoint()?;
        loop {
            self.log.drive(&mut self.log_disk).map_err(text)?;
            let mut committed = Vec::new();
            let mut any = false;
            while self.log.turn(&mut self.effects).map_err(text)? {
                any = true;
                committed.append(&mut self.effects.committed);
            }
            for entry in &committed {
                let outcome = self.apply(entry)?;
                if self.waiting.front() == Some(&entry.index.0) {
                    self.waiting.pop_front();
                    record(told, entry.index.0, outcome);
                }
            }
            if !any {
                break;
            }
            self.store.publish();
            self.log.node.on_applied(self.store.applied().0);
        }
        self.store.maintain();
        if !self.checkpoint_runs && self.store.checkpoint_due(self.now_ms, false, 0) {
            self.store.publish();
            let input = self.store.freeze(self.now_ms).expect("none is under way");
            self.log.checkpoint_begins(self.mark());
            self.checkpointer.start(input);
            self.checkpoint_runs = true;
            self.take_checkpoint()?;
        }
        Ok(())
    }

    fn mark(&self) -> SnapshotMark {
        let (index, term) = self.store.applied();
        SnapshotMark { index, term, conf_state: Some(self.log.node.conf_state()) }
    }

    /// Lets the checkpoint go on as far as the disk has come.
    fn take_checkpoint(&mut self) -> Fallible<()> {
        if !self.checkpoint_runs {
            return Ok(());
        }
        self.seen.checkpoints_beside_proposals += u64::from(!self.waiting.is_empty());
        self.page_disk.poll(&mut self.completions);
        let turn = self.checkpointer.turn(&mut self.page_disk, &mut self.completions);
        if let CheckpointTurn::Done(output) = turn.map_err(text)? {
            self.checkpoint_runs = false;
            self.seen.checkpoints += 1;
            self.store.on_checkpoint(&output);
            self.log.checkpoint_ended(self.store.durable_applied()).map_err(text)?;
        }
        Ok(())
    }

    /// As `replica::apply`; the revision that came of it, if one did.
    fn apply(&mut self, entry: &LogEntry) -> Fallible<Option<Revision>> {
        if entry.kind != EntryKind::Normal {
            let conf_state =
                self.log.node.apply_conf_change(entry.kind, &entry.data).map_err(text)?;
            let mut txn = self.store.begin(entry.index, entry.term);
            txn.set_conf_state(&conf_state.encode_to_vec());
            txn.commit();
            return Ok(None);
        }
        if entry.data.is_empty() {
            self.store.skip(entry.index, entry.term);
            return Ok(None);
        }
        match decode(&entry.data) {
            Entry::Txn(ops) => {
                let mut txn = self.store.begin(entry.index, entry.term);
                apply_ops(&mut txn, &ops);
                Ok(Some(txn.commit()))
            }
            Entry::Compact(revision) => {
                self.store.skip(entry.index, entry.term);
                Ok(self.store.compact(revision).is_ok().then_some(revision))
            }
        }
    }

    /// Proposes a batch, as soon as the log takes it, and turns.
    fn propose(&mut self, batch: Vec<Entry>, told: &mut Told) -> Fallible<()> {
        let data: Vec<Bytes> = batch.iter().map(encode).collect();
        let bytes: usize = data.iter().map(Bytes::len).sum();
        for _ in 0..20 {
            match self.log.writer.admit(data.len() as u64, bytes as u64) {
                Ok(()) => {
                    let proposed = self.log.node.propose(data.into_iter()).map_err(text)?;
                    let Proposed::Appended { first, .. } = proposed else {
                        return Err("the only member leads".to_owned());
                    };
                    for (index, entry) in (first.0..).zip(batch) {
                        told.proposed.insert(index, entry);
                        self.waiting.push_back(index);
                    }
                    return self.turn(told);
                }
                Err(Admission::Failed(error)) => return Err(text(error)),
                Err(_) => {
                    self.log.writer.retry_spare();
                    self.turn(told)?;
                }
            }
        }
        Err("the log takes no proposals".to_owned())
    }
}

/// An answer arrives at its client.
fn record(told: &mut Told, index: u64, outcome: Option<Revision>) {
    assert!(index > told.acknowledged);
    told.acknowledged = index;
    let Some(revision) = outcome else { return };
    match &told.proposed[&index] {
        Entry::Compact(_) => told.compacted = told.compacted.max(revision.0),
        Entry::Txn(ops) => {
            let newest = told.revisions.keys().next_back().copied().unwrap_or(1);
            let change = match &ops[0] {
                Op::Put { key, value, .. } => (key.clone(), Some(value.clone())),
                Op::DeleteRange { key, .. } => (key.clone(), None),
                Op::Bucket { .. } => unreachable!("the history has none"),
            };
            // A delete of nothing makes no revision.
            if revision.0 > newest {
                told.revisions.insert(revision.0, change);
            } else {
                assert_eq!((revision.0, &change.1), (newest, &None), "a revision given twice");
            }
        }
    }
}

fn create(disk: &mut dyn Disk) -> Fallible<()> {
    let metadata = raftpb::Metadata { node_id: Some(ID), cluster_id: Some(1) };
    let (entries, hard_state) = bootstrap(&[Peer { id: ID, context: Bytes::from_static(b"{}") }]);
    let log = NewLog { metadata, entries: &entries, hard_state, segment_bytes: SEGMENT_BYTES };
    wal::create(disk, WAL_DIR, log).map_err(text)
}

fn encode(entry: &Entry) -> Bytes {
    let mut request = pb::InternalRaftRequest::default();
    match entry {
        Entry::Compact(revision) => {
            request.compaction =
                Some(pb::CompactionRequest { revision: revision.0, physical: false });
        }
        Entry::Txn(ops) => match &ops[0] {
            Op::Put { key, value, .. } => {
                request.put = Some(pb::PutRequest {
                    key: key.clone().into(),
                    value: value.clone().into(),
                    ..Default::default()
                });
            }
            Op::DeleteRange { key, end } => {
                request.delete_range = Some(pb::DeleteRangeRequest {
                    key: key.clone().into(),
                    range_end: end.clone().into(),
                    prev_kv: false,
                });
            }
            Op::Bucket { .. } => unreachable!("the history has none"),
        },
    }
    request.encode_to_vec().into()
}

fn decode(data: &Bytes) -> Entry {
    let request = pb::InternalRaftRequest::decode(data.clone()).expect("it was encoded here");
    if let Some(compaction) = request.compaction {
        return Entry::Compact(Revision(compaction.revision));
    }
    Entry::Txn(vec![match (request.put, request.delete_range) {
        (Some(put), _) => {
            Op::Put { key: put.key.into(), value: put.value.into(), lease: LeaseId(0) }
        }
        (None, Some(delete)) => {
            Op::DeleteRange { key: delete.key.into(), end: delete.range_end.into() }
        }
        (None, None) => unreachable!("nothing else was encoded"),
    }])
}

/// Few keys, values of up to a segment's sixth, now and then a compaction.
fn next_entry(prng: &mut Prng, told: &mut Told) -> Entry {
    let key = match prng.below(4) {
        0 => b"hot".to_vec(),
        number => format!("/registry/leases/{number}").into_bytes(),
    };
    let newest = told.revisions.keys().next_back().copied().unwrap_or(1);
    match prng.below(10) {
        0 if newest > told.compacted + 2 => Entry::Compact(Revision(newest - 1)),
        0 | 1 => Entry::Txn(vec![Op::DeleteRange { key, end: Vec::new() }]),
        kind => {
            told.values += 1;
            let mut value = format!("value {} ", told.values).into_bytes();
            let len_bytes = if kind < 6 { 40 } else { prng.index(14_000) };
            value.extend((0..len_bytes).map(|at| (at % 251) as u8 + 1));
            Entry::Txn(vec![Op::Put { key, value, lease: LeaseId(0) }])
        }
    }
}

/// One life: opens the member and writes `steps` entries, until the disk fails.
fn live(disk: &MemDisk, told: &mut Told, seed: u64, steps: u64) -> Fallible<Seen> {
    let mut member = Member::open(disk, seed)?;
    go_on(&mut member, told, seed, steps)?;
    Ok(member.seen)
}

fn go_on(member: &mut Member, told: &mut Told, seed: u64, steps: u64) -> Fallible<()> {
    let result = write_on(member, told, seed, steps);
    if let Err(error) = &result {
        assert_latched(member, told, error);
    }
    result
}

fn write_on(member: &mut Member, told: &mut Told, seed: u64, steps: u64) -> Fallible<()> {
    let mut prng = Prng::new(seed);
    member.turn(told)?;
    assert_eq!(member.log.node.status().soft_state.role, Role::Leader);
    let mut left = steps;
    while left > 0 {
        let count = (1 + prng.below(3)).min(left);
        left -= count;
        let batch = (0..count).map(|_| next_entry(&mut prng, told)).collect();
        member.propose(batch, told)?;
        for _ in 0..2 + prng.below(5) {
            member.turn(told)?;
        }
    }
    Ok(())
}

/// After an error of the log nothing is acknowledged any more, however often it is asked; after one
/// of the page file it is not touched again, for a sync that failed must not be tried once more.
fn assert_latched(member: &mut Member, told: &Told, error: &str) {
    let mut later = told.clone();
    if member.log.writer.failure().is_some() {
        for _ in 0..3 {
            assert!(member.turn(&mut later).is_err(), "the log goes on after an error");
        }
        assert_eq!(later.acknowledged, told.acknowledged, "acknowledged after an error");
    } else if error.starts_with("etcore.db") && member.checkpoint_runs {
        // What was on its way beside it comes to its end.
        for _ in 0..50 {
            member.page_disk.poll(&mut member.completions);
        }
        let before = member.page_disk.change_count();
        for _ in 0..3 {
            let again = member.take_checkpoint().expect_err("the page file goes on after an error");
            assert!(again.contains("etcore.db"), "{again}");
        }
        assert_eq!(member.page_disk.change_count(), before, "tried again after {error}");
    }
}

/// Opens what the crash left, compares everything, writes on, opens and compares again.
fn check(disk: &MemDisk, told: &Told, seed: u64, label: &str) {
    let mut told = told.clone();
    let mut member = reopen(disk, &mut told, seed, label);
    go_on(&mut member, &mut told, seed + 1, 6).unwrap_or_else(|error| panic!("{label}: {error}"));
    drop(member);
    reopen(disk, &mut told, seed + 2, label);
}

/// A member that holds what `told` says; what was lost without having been acknowledged is
/// forgotten.
fn reopen(disk: &MemDisk, told: &mut Told, seed: u64, label: &str) -> Member {
    let mut member = Member::open(disk, seed).unwrap_or_else(|error| panic!("{label}: {error}"));
    let last = member.last_index;
    assert!(last >= told.acknowledged, "{label}: {} is gone, {last} is last", told.acknowledged);
    told.proposed.retain(|index, _| *index <= last);
    member.turn(told).unwrap_or_else(|error| panic!("{label}: {error}"));
    assert_holds(&mut member, told, disk, seed, label);
    member
}

fn assert_holds(member: &mut Member, told: &Told, disk: &MemDisk, seed: u64, label: &str) {
    let mut model = Model::default();
    told.proposed.values().for_each(|entry| model.apply(entry));
    model.applied = member.store.applied().0.0;
    let view = member.store.publish();
    let mut pages = DiskPages::new(disk);
    assert_eq!(view.revision, model.revision(), "{label}: revision");
    assert_eq!(view.compact_revision.0.max(0), model.compacted, "{label}: compaction");
    let mut prng = Prng::new(seed);
    for _ in 0..3 {
        model.assert_store(&mut member.store, &mut pages, &mut prng);
    }
    assert!(model.compacted >= told.compacted, "{label}: a compaction was undone");
    for (revision, (key, value)) in told.revisions.range(model.compacted.max(1)..) {
        let hits = view.range(key, b"", Revision(*revision), 0).expect("not compacted");
        let found = hits.hits().first().map(|hit| {
            assert_eq!(hit.modified.main.0, *revision, "{label}: revision of {key:?}");
            match view.value(hit.modified, &mut pages).expect("read") {
                Fetch::Ready(bytes) => KvRef::parse(bytes).expect("a KeyValue").value.to_vec(),
                Fetch::Pending(_) => unreachable!("every page is ready"),
            }
        });
        assert_eq!(found.as_ref(), value.as_ref(), "{label}: {key:?} at {revision}");
    }
}

#[test]
fn the_history_cuts_segments_checkpoints_and_releases_the_log() {
    let _turn = crate::harness::turn::of_file(module_path!());
    for seed in 0..2 {
        let disk = MemDisk::new();
        let mut told = Told::default();
        let seen = live(&disk, &mut told, seed, STEPS).unwrap();
        let segments: Vec<String> =
            disk.names().into_iter().filter(|name| name.ends_with(".wal")).collect();
        let newest = segments.last().unwrap();
        eprintln!(
            "{segments:?}, {} checkpoints, {} changes",
            seen.checkpoints,
            disk.change_count()
        );
        assert!(!newest.contains("/0000000000000000-"), "no segment was cut");
        assert!(!segments[0].contains("/0000000000000000-"), "nothing was released");
        assert!(seen.checkpoints >= 4, "{} checkpoints", seen.checkpoints);
        assert!(seen.checkpoints_beside_proposals > 0);
        assert!(told.compacted > 0 && told.revisions.len() > 15);
    }
}

#[test]
fn a_power_cut_at_any_change_loses_nothing_acknowledged() {
    let _turn = crate::harness::turn::of_file(module_path!());
    for seed in 0..long(2, 20) {
        let whole = MemDisk::new();
        live(&whole, &mut Told::default(), seed, STEPS).unwrap();
        for change in 0..whole.change_count() {
            let disk = MemDisk::new();
            disk.crash_at(change);
            let mut told = Told::default();
            // The error is the crash. The last change may be one that nobody waits for.
            let _ = live(&disk, &mut told, seed, STEPS);
            for cut in 0..long(5, 40) {
                let label = format!("seed {seed}, change {change}, cut {cut}");
                check(&disk.crash(cut), &told, change + cut, &label);
            }
        }
    }
}

#[test]
fn a_second_power_cut_after_the_first_loses_nothing_either() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let mut cuts = 0;
    let whole = MemDisk::new();
    live(&whole, &mut Told::default(), 3, STEPS).unwrap();
    for change in (0..whole.change_count()).step_by(usize::try_from(long(5, 1)).unwrap()) {
        let disk = MemDisk::new();
        disk.crash_at(change);
        let mut told = Told::default();
        let _ = live(&disk, &mut told, 3, STEPS);
        for cut in 2..2 + long(6, 30) {
            let image = disk.crash(cut);
            image.crash_at((change + cut * 7) % 24);
            let mut told = told.clone();
            if let Ok(mut member) = Member::open(&image, cut) {
                let last = member.last_index;
                told.proposed.retain(|index, _| *index <= last);
                let _ = go_on(&mut member, &mut told, cut, 14);
            }
            cuts += u64::from(image.has_crashed());
            for second in [0, cut, cut + 1000] {
                let label = format!("change {change}, cuts {cut} and {second}");
                check(&image.crash(second), &told, cut, &label);
            }
        }
    }
    assert!(cuts > 50, "{cuts} second lives were cut off");
}

#[test]
fn an_error_of_any_change_stops_the_member_and_loses_nothing_acknowledged() {
    let _turn = crate::harness::turn::of_file(module_path!());
    use std::io::ErrorKind;
    let whole = MemDisk::new();
    live(&whole, &mut Told::default(), 4, STEPS).unwrap();
    // A device that fails, a disk that is full, a write that ends early.
    for kind in [ErrorKind::Other, ErrorKind::StorageFull, ErrorKind::WriteZero] {
        let mut stopped = 0;
        for change in 0..whole.change_count() {
            let disk = MemDisk::new();
            disk.fail_at(change, kind);
            let mut told = Told::default();
            stopped += u64::from(live(&disk, &mut told, 4, STEPS).is_err());
            for cut in 0..long(if kind == ErrorKind::Other { 4 } else { 2 }, 30) {
                let label = format!("{kind:?} at {change}, cut {cut}");
                check(&disk.crash(cut), &told, change + cut, &label);
            }
        }
        assert!(stopped > whole.change_count() / 2, "{stopped} of {}", whole.change_count());
    }
}

#[test]
fn an_error_of_any_read_loses_nothing_acknowledged() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let whole = MemDisk::new();
    let mut told = Told::default();
    live(&whole, &mut told, 5, STEPS).unwrap();
    let before = whole.crash(1);
    let reads = {
        let image = before.crash(1);
        live(&image, &mut told.clone(), 6, 6).unwrap();
        image.read_count()
    };
    for read in 0..reads {
        let image = before.crash(1);
        image.fail_read_at(read, std::io::ErrorKind::Other);
        let mut told = told.clone();
        assert!(live(&image, &mut told, 6, 6).is_err(), "read {read} was not needed");
        check(&image.crash(0), &told, read, &format!("read {read}"));
    }
}
