//! Every case in which a start may find a copy: over disks that lose what was not synced, through
//! everything a start reads.

use bytes::Bytes;
use etcore_engine::file::{Completion, OpenMode, Token};
use etcore_engine::snapshot::{NextPart, Part, SnapshotSink, WantedParts, is_copy};
use etcore_engine::store::EngineConfig;
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::model::{Entry, Model, Op, apply};
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::{LeaseId, LogIndex};
use etcore_proto::raftpb::{self, MessageType};
use etcore_raftlog::types::SnapshotMark;
use etcore_raftlog::wal::WalError;

use super::super::*;
use crate::config::flags::{self, Asked};

/// The last entry that the receiver's page file has.
const APPLIED: u64 = 8;
const LAST: u64 = 10;
const TERM: u64 = 3;

fn long(short: u64, long: u64) -> u64 {
    if std::env::var_os("ETCORE_LONG").is_some() { long } else { short }
}

fn config(at: usize) -> Config {
    let url = |at: usize| format!("http://10.0.0.{at}:2380");
    let args = [
        format!("--name=m{at}"),
        format!("--initial-cluster=m1={},m2={},m3={}", url(1), url(2), url(3)),
        format!("--initial-advertise-peer-urls={}", url(at)),
        "--wal-segment-bytes=65536".to_owned(),
    ];
    match flags::parse(args, []) {
        Ok(Asked::Run(config, _)) => *config,
        _ => panic!("the flags are good"),
    }
}

fn open(at: usize, disk: &MemDisk) -> Result<Stored, BootError> {
    let path = Path::new("in memory");
    open_stored(&config(at), 1, path, &mut disk.clone(), &mut disk.clone())
}

fn run_checkpoint(stored: &mut Stored, disk: &MemDisk, now_ms: u64) {
    stored.store.publish();
    let input = stored.store.freeze(now_ms).expect("something to save");
    stored.checkpointer.start(input);
    let output = stored.checkpointer.run(&mut disk.clone()).unwrap().unwrap();
    stored.store.on_checkpoint(&output);
}

/// What the log wants done, until nothing is left.
fn settle(log: &mut Log, disk: &mut dyn Disk) -> Result<(), WalError> {
    etcore_raftlog::testing::settle(log, disk, &mut Vec::new()).map(drop)
}

fn append(to: u64, before: (u64, u64), count: u64, bytes: usize) -> raftpb::Message {
    let entry = |number| raftpb::Entry {
        r#type: Some(0),
        term: Some(TERM),
        index: Some(before.0 + number),
        data: (bytes > 0).then(|| Bytes::from(vec![5; bytes])),
    };
    raftpb::Message {
        r#type: Some(MessageType::MsgApp as i32),
        to: Some(to),
        from: Some(1),
        term: Some(TERM),
        log_term: Some(before.1),
        index: Some(before.0),
        entries: (1..=count).map(entry).collect(),
        commit: Some(before.0 + count),
        ..raftpb::Message::default()
    }
}

/// A leader's state and its parts; and a follower that is behind.
struct Fixture {
    model: Model,
    mark: SnapshotMark,
    parts: Vec<Vec<u8>>,
    leader: u64,
    /// The follower's disk.
    behind: MemDisk,
}

impl Fixture {
    fn new() -> Self {
        let behind = MemDisk::new();
        let mut stored = open(2, &behind).unwrap();
        let leader = open(1, &MemDisk::new()).unwrap().member_id;
        let mut message = append(stored.member_id, (3, 1), LAST - 3, 100);
        message.from = Some(leader);
        stored.log.node.step(message).unwrap();
        settle(&mut stored.log, &mut behind.clone()).unwrap();
        for index in 1..=APPLIED {
            let term = stored.log.node.term(LogIndex(index)).unwrap();
            stored.store.skip(LogIndex(index), term);
        }
        let conf_state = stored.log.node.conf_state();
        stored.store.set_conf_state(&conf_state.encode_to_vec());
        run_checkpoint(&mut stored, &behind, 1000);
        let (model, mark, parts) = sender(&stored, leader, &conf_state);
        // A copy of it, all durable.
        Self { model, mark, parts, leader, behind: behind.crash(1) }
    }

    fn begin(&self) -> MemDisk {
        self.behind.crash(1)
    }

    fn index(&self) -> u64 {
        self.mark.index.0
    }

    /// The copy arrives and raft is told, on a disk that may stop working. True if the log has it.
    fn install(&self, disk: &MemDisk, limit: u64, with_entries: bool) -> bool {
        self.install_and(disk, limit, with_entries, false)
    }

    /// The copy takes the page file's place at once, as in a member that runs.
    fn go_over(&self, disk: &MemDisk, limit: u64, with_entries: bool) -> bool {
        self.install_and(disk, limit, with_entries, true)
    }

    fn install_and(&self, disk: &MemDisk, limit: u64, with_entries: bool, adopts: bool) -> bool {
        let mut stored = open(2, disk).unwrap();
        let mut disk = Killed { disk: disk.clone(), left: limit };
        self.receive(&stored, &mut disk).is_some_and(|mut sink| {
            let mut message = append(stored.member_id, (0, 0), 0, 0);
            message.r#type = Some(MessageType::MsgSnap as i32);
            message.from = Some(self.leader);
            let metadata = raftpb::SnapshotMetadata {
                conf_state: self.mark.conf_state.clone(),
                index: Some(self.index()),
                term: Some(TERM),
            };
            message.snapshot = Some(raftpb::Snapshot { data: None, metadata: Some(metadata) });
            stored.log.node.step(message).unwrap();
            if with_entries {
                // In the same turn, and more than one segment holds.
                let mut more = append(stored.member_id, (self.index(), TERM), 5, 40_000);
                more.from = Some(self.leader);
                stored.log.node.step(more).unwrap();
            }
            let installed = settle(&mut stored.log, &mut disk).is_ok() && stored.log.is_installed();
            if installed && adopts {
                sink.adopt();
                while let Some(op) = sink.next_op().unwrap() {
                    if sink.done(run(&mut disk, op)).is_err() {
                        break;
                    }
                }
            }
            installed
        })
    }

    fn receive(&self, stored: &Stored, disk: &mut Killed) -> Option<SnapshotSink> {
        let identity = Identity { cluster_id: stored.cluster_id, member_id: stored.member_id };
        let mut sink = SnapshotSink::new(self.mark.index, self.mark.term, identity);
        let mut parts = self.parts.iter();
        loop {
            while let Some(op) = sink.next_op().unwrap() {
                sink.done(run(disk, op)).ok()?;
            }
            if sink.is_complete() {
                return Some(sink);
            }
            match parts.next() {
                Some(part) => sink.add(Part::parse(part).unwrap()).unwrap(),
                None => sink.end_parts().unwrap(),
            }
        }
    }

    /// Starts a member on this; it must be what it was, or, if `installed`, what was sent. Then
    /// more entries come, and another start finds them.
    fn assert_starts(&self, disk: &MemDisk, installed: bool, what: &str) -> bool {
        let mut stored = open(2, disk).unwrap_or_else(|error| panic!("{what}: {error}"));
        let left: Vec<String> = disk.names().into_iter().filter(|name| is_copy(name)).collect();
        assert!(left.is_empty(), "{what}: {left:?}");
        let applied = stored.store.applied().0.0;
        let is_new = applied == self.index();
        if is_new {
            self.model.assert_store(
                &mut stored.store,
                &mut DiskPages::new(disk),
                &mut Prng::new(1),
            );
        } else {
            assert_eq!(applied, APPLIED, "{what}");
            assert!(!installed, "{what}: the log had the snapshot");
        }
        let status = stored.log.node.status();
        let last = status.last_index;
        assert!(last.0 >= if is_new { self.index() } else { LAST }, "{what}: {status:?}");
        let term = stored.log.node.term(last).unwrap();
        let mut message = append(stored.member_id, (last.0, term.0), 3, 10);
        message.from = Some(self.leader);
        stored.log.node.step(message).unwrap();
        settle(&mut stored.log, &mut disk.clone()).unwrap();
        drop(stored);
        let image = disk.crash(0);
        let again = open(2, &image).unwrap_or_else(|error| panic!("{what}, again: {error}"));
        assert_eq!(again.log.node.status().last_index.0, last.0 + 3, "{what}, again");
        assert_eq!(again.store.applied().0.0, applied, "{what}, again");
        is_new
    }
}

/// A leader's page file, and the parts of it.
fn sender(
    follower: &Stored,
    member_id: u64,
    conf_state: &raftpb::ConfState,
) -> (Model, SnapshotMark, Vec<Vec<u8>>) {
    let disk = MemDisk::new();
    let mut own = disk.clone();
    let (mut store, mut checkpointer) = Store::open(&mut own, EngineConfig::default()).unwrap();
    store.set_identity(Identity { cluster_id: follower.cluster_id, member_id });
    let mut model = Model::default();
    for now in 1..4u64 {
        for number in 0..30 {
            let key = (now * 20 + number).to_be_bytes().to_vec();
            let value = vec![9; 700];
            let entry = Entry::Txn(vec![Op::Put { key, value, lease: LeaseId(0) }]);
            apply(&mut store, &entry);
            model.apply(&entry);
        }
        store.set_conf_state(&conf_state.encode_to_vec());
        store.publish();
        checkpointer.start(store.freeze(now * 1000).unwrap());
        store.on_checkpoint(&checkpointer.run(&mut own).unwrap().unwrap());
    }
    let source = checkpointer.snapshot().unwrap();
    let (index, term) = source.applied();
    let (mut parts, mut wanted) = (Vec::new(), WantedParts::all());
    while let Some(range) = wanted.take() {
        let bytes = match source.next_part(range.from, range.until) {
            NextPart::Ready(part) => part,
            NextPart::Read { first_unit, op, .. } => match run(&mut own, op).unwrap() {
                FileOutput::Data(data) => source.part(range.from, first_unit, &data),
                other => panic!("{other:?}"),
            },
        };
        let part = Part::parse(&bytes).unwrap();
        wanted.answered(range, part.next_unit(), part.end_unit());
        parts.push(bytes);
    }
    assert_eq!(term.0, TERM, "as in the log");
    (model, SnapshotMark { index, term, conf_state: Some(conf_state.clone()) }, parts)
}

/// A disk of a process that is killed in the middle of some operation: what was done stays as it
/// is, and what was to be written is, but it is not on the device.
struct Killed {
    disk: MemDisk,
    left: u64,
}

impl Disk for Killed {
    fn submit(&mut self, token: Token, op: FileOp) {
        if self.left > 1 {
            self.left -= 1;
            return self.disk.submit(token, op);
        }
        if let (1, FileOp::Write { file, offset_bytes, data, .. }) = (self.left, op) {
            run(&mut self.disk, FileOp::Write { file, offset_bytes, data, durable: false })
                .unwrap();
        }
        self.left = 0;
        // Nobody hears of it: an error that changes nothing, for a name that is not there.
        let (name, mode) = ("nowhere".to_owned(), OpenMode::Existing);
        self.disk.submit(token, FileOp::Open { name, mode, direct: false });
    }

    fn poll(&mut self, out: &mut Vec<Completion>) {
        self.disk.poll(out);
    }

    fn wait(&mut self, out: &mut Vec<Completion>) {
        self.disk.wait(out);
    }
}

#[test]
fn whenever_the_power_goes_while_a_snapshot_arrives_the_member_starts_with_it_or_without() {
    let fixture = Fixture::new();
    for with_entries in [false, true] {
        let whole = fixture.begin();
        let before = {
            let counted = fixture.begin();
            open(2, &counted).unwrap();
            counted.change_count()
        };
        assert!(fixture.go_over(&whole, u64::MAX, with_entries));
        let changes = whole.change_count();
        let (mut without, mut with) = (0, 0);
        for change in before..=changes {
            for cut in 0..long(5, 50) {
                let disk = fixture.begin();
                disk.crash_at(change);
                let installed = fixture.go_over(&disk, u64::MAX, with_entries);
                let what = format!("change {change} of {changes}, cut {cut}, {with_entries}");
                match fixture.assert_starts(&disk.crash(cut), installed, &what) {
                    true => with += 1,
                    false => without += 1,
                }
            }
        }
        assert!(with >= 4 && without >= 20, "{with} with it, {without} without");
    }
}

#[test]
fn a_member_that_is_killed_while_a_snapshot_arrives_survives_a_power_cut_in_the_next_start() {
    let fixture = Fixture::new();
    let mut ops = 0;
    while !fixture.go_over(&fixture.begin(), ops, false) {
        ops += 1;
    }
    // The rename and the sync of the directory are still to come.
    ops += 2;
    assert!(ops > 10, "{ops}");
    let (mut without, mut with) = (0, 0);
    for killed in 0..=ops {
        let begin = || {
            let disk = fixture.begin();
            let installed = fixture.go_over(&disk, killed, false);
            (disk, installed)
        };
        let (whole, installed) = begin();
        let before = whole.change_count();
        open(2, &whole).unwrap();
        let changes = whole.change_count() - before;
        // Without a power cut, and with one at any change of the start.
        for change in (0..=changes).step_by(usize::try_from(long(2, 1)).unwrap()) {
            for cut in 0..long(3, 12) {
                let (disk, _) = begin();
                disk.crash_at(disk.change_count() + change);
                let _ = open(2, &disk);
                let what = format!("killed after {killed} of {ops}, change {change}, cut {cut}");
                match fixture.assert_starts(&disk.crash(cut), installed, &what) {
                    true => with += 1,
                    false => without += 1,
                }
            }
        }
    }
    assert!(with >= 10 && without >= 50, "{with} with it, {without} without");
}

#[test]
fn each_case_of_the_table_is_settled_as_it_says() {
    let fixture = Fixture::new();
    let starts = |disk: &MemDisk, what| fixture.assert_starts(disk, false, what);
    let touch = |disk: &MemDisk, name: &str| {
        let (name, mode) = (name.to_owned(), OpenMode::CreateNew);
        run(&mut disk.clone(), FileOp::Open { name, mode, direct: false }).unwrap();
    };
    let complete = format!("etcore.snap-{:016x}", fixture.index());

    let disk = fixture.begin();
    touch(&disk, "etcore.snap.part");
    assert!(!starts(&disk, "an unfinished copy"));

    let disk = fixture.begin();
    let stored = open(2, &disk).unwrap();
    fixture.receive(&stored, &mut Killed { disk: disk.clone(), left: u64::MAX }).unwrap();
    drop(stored);
    assert!(disk.names().contains(&complete));
    assert!(!starts(&disk, "a complete copy, and no mark"));

    let disk = fixture.begin();
    assert!(fixture.install(&disk, u64::MAX, false));
    touch(&disk, "etcore.snap-0000000000000001");
    assert!(starts(&disk, "a complete copy that the log goes on from, and an older one"));
    assert!(starts(&disk, "after the rename"));

    // The entries came after all, were applied and marked as a checkpoint's end; and a copy that
    // ends just there was not removed.
    let disk = fixture.begin();
    let mut stored = open(2, &disk).unwrap();
    fixture.receive(&stored, &mut Killed { disk: disk.clone(), left: u64::MAX }).unwrap();
    let count = fixture.index() - LAST + 2;
    let mut message = append(stored.member_id, (LAST, TERM), count, 10);
    message.from = Some(fixture.leader);
    stored.log.node.step(message).unwrap();
    settle(&mut stored.log, &mut disk.clone()).unwrap();
    stored.log.mark(&fixture.mark).unwrap();
    settle(&mut stored.log, &mut disk.clone()).unwrap();
    drop(stored);
    assert!(!starts(&disk, "a mark of its own checkpoint"));
}

#[test]
fn a_log_that_is_damaged_is_not_given_another_page_file() {
    let fixture = Fixture::new();
    let disk = fixture.begin();
    assert!(fixture.install(&disk, u64::MAX, false));
    let disk = disk.crash(1);
    let segment = disk.names().into_iter().find(|name| name.ends_with(".wal")).unwrap();
    let before = disk.content(DB_FILE);
    let byte = disk.read_at(&segment, 100, 1).unwrap();
    disk.patch(&segment, 100, &[byte[0] ^ 1]);
    let refused = open(2, &disk).map(drop).unwrap_err();
    assert!(refused.to_string().contains(&segment), "{refused}");
    assert_eq!(disk.content(DB_FILE), before);
    assert!(disk.names().iter().any(|name| is_copy(name)), "nothing was touched");
}
