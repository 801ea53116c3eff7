//! Copies of a page file: what a source hands out while the file goes on changing, what a sink
//! makes of it, and what is left when either is cut short.

use etcore_engine::checkpoint::Checkpointer;
use etcore_engine::file::{FileOp, FileOutput, OpenMode, run};
use etcore_engine::snapshot::{
    NextPart, Part, SinkError, SnapshotSink, SnapshotSource, UnitRange, WantedParts,
    complete_index, is_copy,
};
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::model::{Entry, Model, Op, apply, random_entry};
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::{Identity, LeaseId};

const SENDER: Identity = Identity { cluster_id: 7, member_id: 1 };
const RECEIVER: Identity = Identity { cluster_id: 7, member_id: 2 };
const DB_FILE: &str = "etcore.db";

fn long(short: u64, long: u64) -> u64 {
    if std::env::var_os("ETCORE_LONG").is_some() { long } else { short }
}

/// A store over a disk in memory, and what it must hold.
struct Fixture {
    disk: MemDisk,
    own: MemDisk,
    store: Store,
    checkpointer: Checkpointer,
    model: Model,
    now: u64,
}

impl Fixture {
    fn open(disk: MemDisk, identity: Identity) -> Self {
        let mut own = disk.clone();
        let (mut store, checkpointer) = Store::open(&mut own, EngineConfig::default()).unwrap();
        store.set_identity(identity);
        Self { disk, own, store, checkpointer, model: Model::default(), now: 0 }
    }

    fn random(identity: Identity, seed: u64, checkpoints: u64) -> Self {
        let mut fixture = Self::open(MemDisk::new(), identity);
        let mut prng = Prng::new(seed);
        for _ in 0..checkpoints {
            fixture.write_random(&mut prng);
            fixture.checkpoint();
        }
        fixture
    }

    fn write_random(&mut self, prng: &mut Prng) {
        for _ in 0..25 {
            let entry = random_entry(prng, &self.model);
            self.apply(&entry);
        }
    }

    fn apply(&mut self, entry: &Entry) {
        apply(&mut self.store, entry);
        self.model.apply(entry);
    }

    fn put(&mut self, row: u16, bytes: usize) {
        let key = row.to_be_bytes().to_vec();
        self.apply(&Entry::Txn(vec![Op::Put { key, value: vec![7; bytes], lease: LeaseId(0) }]));
    }

    fn checkpoint(&mut self) {
        self.now += 1000;
        while self.store.maintain() {}
        self.store.publish();
        let Some(input) = self.store.freeze(self.now) else { return };
        self.checkpointer.start(input);
        let output = self.checkpointer.run(&mut self.own).unwrap().unwrap();
        self.store.on_checkpoint(&output);
    }

    fn hold(&self) -> SnapshotSource {
        self.checkpointer.snapshot().expect("something durable")
    }

    fn file_bytes(&self) -> usize {
        self.disk.content(DB_FILE).unwrap().len()
    }
}

fn part_for(source: &SnapshotSource, disk: &mut MemDisk, range: UnitRange) -> Vec<u8> {
    match source.next_part(range.from, range.until) {
        NextPart::Ready(part) => part,
        NextPart::Read { first_unit, op, len_bytes } => match run(disk, op).unwrap() {
            FileOutput::Data(data) => {
                assert_eq!(data.len(), len_bytes);
                source.part(range.from, first_unit, &data)
            }
            other => panic!("{other:?}"),
        },
    }
}

fn note(wanted: &mut WantedParts, range: UnitRange, part: &[u8]) {
    let part = Part::parse(part).expect("a sound part");
    wanted.answered(range, part.next_unit(), part.end_unit());
}

/// All parts, in order.
fn parts(source: &SnapshotSource, disk: &mut MemDisk) -> Vec<Vec<u8>> {
    let (mut all, mut wanted) = (Vec::new(), WantedParts::all());
    while let Some(range) = wanted.take() {
        let part = part_for(source, disk, range);
        note(&mut wanted, range, &part);
        all.push(part);
    }
    assert!(wanted.is_done());
    all
}

fn sink_for(source: &SnapshotSource) -> SnapshotSink {
    let (index, term) = source.applied();
    SnapshotSink::new(index, term, RECEIVER)
}

/// Everything that the sink has to do now.
fn drive(sink: &mut SnapshotSink, disk: &mut MemDisk) -> Result<(), SinkError> {
    while let Some(op) = sink.next_op()? {
        sink.done(run(disk, op))?;
    }
    Ok(())
}

fn receive(
    sink: &mut SnapshotSink,
    disk: &mut MemDisk,
    parts: &[Vec<u8>],
) -> Result<(), SinkError> {
    drive(sink, disk)?;
    for part in parts {
        assert!(sink.is_idle());
        sink.add(Part::parse(part).expect("a sound part"))?;
        drive(sink, disk)?;
    }
    sink.end_parts()?;
    drive(sink, disk)
}

fn give_up(sink: &mut SnapshotSink, disk: &mut MemDisk) {
    sink.give_up();
    drive(sink, disk).expect("leaving has no errors");
    assert!(sink.is_over());
}

fn copies(disk: &MemDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| is_copy(name)).collect()
}

/// Puts the one complete copy into use, and looks whether it is `model`; then goes on with it.
fn assert_is(disk: &MemDisk, model: &Model, what: &str) {
    let mut own = disk.clone();
    let names = copies(disk);
    let [from] = &names[..] else { panic!("{what}: {names:?}") };
    assert_eq!(complete_index(from).map(|index| index.0), Some(model.applied), "{what}");
    run(&mut own, FileOp::Rename { from: from.clone(), to: DB_FILE.to_owned() }).unwrap();
    let mut fixture = Fixture::open(disk.clone(), Identity::default());
    let (store, _) = Store::open(&mut own, EngineConfig::default()).unwrap();
    assert_eq!(store.identity(), RECEIVER, "{what}");
    fixture.store.set_identity(RECEIVER);
    fixture.model = model.clone();
    let mut prng = Prng::new(model.applied);
    for _ in 0..4 {
        fixture.model.assert_store(&mut fixture.store, &mut DiskPages::new(disk), &mut prng);
        fixture.write_random(&mut prng);
        fixture.checkpoint();
    }
    let (mut store, _) = Store::open(&mut own, EngineConfig::default()).unwrap();
    fixture.model.assert_store(&mut store, &mut DiskPages::new(disk), &mut prng);
}

#[test]
fn a_copy_is_the_senders_state_with_the_receivers_name_on_it() {
    for seed in 0..long(8, 200) {
        let mut sender = Fixture::random(SENDER, seed, 1 + seed % 7);
        let source = sender.hold();
        let parts = parts(&source, &mut sender.own);
        let receiver = Fixture::random(RECEIVER, seed + 1000, 2);
        let mut own = receiver.disk.clone();
        let before = receiver.disk.content(DB_FILE).unwrap();
        let mut sink = sink_for(&source);
        receive(&mut sink, &mut own, &parts).unwrap();
        assert!(sink.is_complete());
        assert_eq!(receiver.disk.content(DB_FILE).unwrap(), before, "the page file is as it was");
        assert_is(&receiver.disk.crash(0), &sender.model, &format!("seed {seed}"));
    }
}

/// Filled, then emptied for the most part: much of the file is free.
fn emptied(rows: u16) -> Fixture {
    let mut sender = Fixture::open(MemDisk::new(), SENDER);
    for row in 0..rows {
        sender.put(row, 3_000);
    }
    sender.checkpoint();
    let key = 0u16.to_be_bytes().to_vec();
    let end = (rows / 10 * 9).to_be_bytes().to_vec();
    sender.apply(&Entry::Txn(vec![Op::DeleteRange { key, end }]));
    sender.apply(&Entry::Compact(sender.model.revision()));
    for _ in 0..4 {
        sender.put(rows / 2, 10);
        sender.checkpoint();
    }
    sender
}

#[test]
fn what_is_held_stays_readable_while_the_file_is_written_compacted_moved_and_cut() {
    let mut sender = emptied(4_000);
    let (source, model) = (sender.hold(), sender.model.clone());
    let first = parts(&source, &mut sender.own);
    let sent: usize = first.iter().map(Vec::len).sum();
    let full = sender.file_bytes();
    assert!(sent < full / 3, "{sent} bytes of {full}: free extents are left out");
    let (mut wanted, mut again, mut row) = (WantedParts::all(), Vec::new(), 0);
    while let Some(range) = wanted.take() {
        let part = part_for(&source, &mut sender.own, range);
        note(&mut wanted, range, &part);
        again.push(part);
        if row == 0 {
            sender.store.defragment();
        }
        for _ in 0..200 {
            sender.put(row, 2_000);
            row += 1;
        }
        sender.apply(&Entry::Compact(sender.model.revision()));
        sender.checkpoint();
    }
    assert!(row > 600, "the file has changed meanwhile: {row}");
    for _ in 0..20 {
        sender.put(1, 10);
        sender.checkpoint();
    }
    // What of a part is not free is the same; so are the copies made of them.
    for parts in [first, again, parts(&source, &mut sender.own)] {
        let disk = MemDisk::new();
        let mut sink = sink_for(&source);
        receive(&mut sink, &mut disk.clone(), &parts).unwrap();
        assert_is(&disk, &model, "the state that was held");
    }
    let held_bytes = sender.file_bytes();
    drop(source);
    sender.store.defragment();
    for _ in 0..20 {
        sender.put(1, 10);
        sender.checkpoint();
    }
    assert!(sender.file_bytes() < held_bytes, "what nobody holds is given back");
    sender.model.assert_store(
        &mut sender.store,
        &mut DiskPages::new(&sender.disk),
        &mut Prng::new(1),
    );
}

#[test]
fn a_transfer_with_parts_lost_repeated_and_out_of_order_makes_the_same_copy() {
    let mut sender = emptied(2_000);
    let source = sender.hold();
    let all = parts(&source, &mut sender.own);
    assert!(all.len() > 4);
    for seed in 0..long(10, 200) {
        let mut prng = Prng::new(seed);
        let disk = MemDisk::new();
        let mut own = disk.clone();
        let mut sink = sink_for(&source);
        drive(&mut sink, &mut own).unwrap();
        let (mut wanted, mut out) = (WantedParts::all(), Vec::new());
        while !wanted.is_done() {
            while out.len() < 4
                && let Some(range) = wanted.take()
            {
                out.push(range);
            }
            let range = out.swap_remove(prng.index(out.len()));
            if prng.chance(1, 3) {
                // The answer is lost.
                wanted.give_back(range);
                continue;
            }
            let part = part_for(&source, &mut sender.own, range);
            for _ in 0..1 + u64::from(range.from > 0) * prng.below(2) {
                sink.add(Part::parse(&part).unwrap()).unwrap();
                drive(&mut sink, &mut own).unwrap();
            }
            note(&mut wanted, range, &part);
        }
        sink.end_parts().unwrap();
        drive(&mut sink, &mut own).unwrap();
        assert!(sink.is_complete());
        assert_is(&disk, &sender.model, "resumed");
    }
    let behind = UnitRange { from: u64::MAX, until: u64::MAX };
    let end = part_for(&source, &mut sender.own, behind);
    assert!(Part::parse(&end).is_none(), "behind the end there is nothing to answer");
}

#[test]
fn a_copy_that_is_put_in_place_goes_on_as_the_store_that_a_start_would_find() {
    for seed in 0..long(6, 100) {
        let mut sender = Fixture::random(SENDER, seed, 1 + seed % 7);
        let source = sender.hold();
        let parts = parts(&source, &mut sender.own);
        let mut receiver = Fixture::random(RECEIVER, seed + 1000, 2);
        let mut own = receiver.disk.clone();
        let mut sink = sink_for(&source);
        receive(&mut sink, &mut own, &parts).unwrap();
        let (store, checkpointer) = sink.take_store(EngineConfig::default()).unwrap();
        assert!(sink.take_store(EngineConfig::default()).is_none(), "once");
        assert!(!copies(&receiver.disk).is_empty());
        sink.adopt();
        drive(&mut sink, &mut own).unwrap();
        assert!(sink.is_adopted() && copies(&receiver.disk).is_empty());
        assert_eq!((store.identity(), store.applied()), (RECEIVER, source.applied()));
        (receiver.store, receiver.checkpointer) = (store, checkpointer);
        (receiver.own, receiver.model) = (own, sender.model.clone());
        let mut prng = Prng::new(seed);
        for _ in 0..4 {
            let mut pages = DiskPages::new(&receiver.disk);
            receiver.model.assert_store(&mut receiver.store, &mut pages, &mut prng);
            receiver.write_random(&mut prng);
            receiver.checkpoint();
        }
        let image = receiver.disk.crash(0);
        let (mut store, _) = Store::open(&mut image.clone(), EngineConfig::default()).unwrap();
        receiver.model.assert_store(&mut store, &mut DiskPages::new(&image), &mut prng);
    }
}

#[test]
fn a_power_cut_while_a_copy_is_put_in_place_finds_the_old_file_and_the_copy_or_the_new_file() {
    let mut sender = Fixture::random(SENDER, 21, 4);
    let source = sender.hold();
    let all = parts(&source, &mut sender.own);
    let receiver = Fixture::random(RECEIVER, 22, 2);
    let before = receiver.disk.content(DB_FILE).unwrap();
    let (mut old, mut new) = (0, 0);
    for change in 0..3 {
        let disk = receiver.disk.crash(0);
        let mut own = disk.clone();
        let mut sink = sink_for(&source);
        receive(&mut sink, &mut own, &all).unwrap();
        disk.crash_at(disk.change_count() + change);
        sink.adopt();
        assert_eq!(drive(&mut sink, &mut own).is_ok(), change == 2);
        for cut in 0..long(20, 200) {
            let image = disk.crash(cut);
            if copies(&image).is_empty() {
                new += 1;
                let (mut store, _) =
                    Store::open(&mut image.clone(), EngineConfig::default()).unwrap();
                let (mut pages, mut prng) = (DiskPages::new(&image), Prng::new(cut));
                sender.model.assert_store(&mut store, &mut pages, &mut prng);
            } else {
                old += 1;
                assert_eq!(image.content(DB_FILE).unwrap(), before);
                assert_is(&image, &sender.model, "the next start");
            }
            assert!(change < 2 || copies(&image).is_empty(), "it was said to be in place");
        }
    }
    assert!(old > 10 && new > 10, "{old} before, {new} after");
}

#[test]
fn a_damaged_part_is_noticed_whatever_bit_is_wrong() {
    let mut sender = Fixture::random(SENDER, 3, 3);
    let source = sender.hold();
    for part in parts(&source, &mut sender.own) {
        for bit in (0..part.len() * 8).step_by(37).chain(0..32 * 8) {
            let mut bad = part.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Part::parse(&bad), None, "bit {bit}");
        }
        assert_eq!(Part::parse(&part[..part.len() - 1]), None);
        assert_eq!(Part::parse(&part[..part.len().min(31)]), None);
    }
}

#[test]
fn parts_that_are_missing_or_of_another_state_are_refused_and_nothing_is_left() {
    let mut sender = emptied(1_000);
    let source = sender.hold();
    let good = parts(&source, &mut sender.own);
    let mut other = Fixture::random(SENDER, 9, 4);
    let foreign = parts(&other.hold(), &mut other.own);
    let mut stranger = Fixture::random(Identity { cluster_id: 8, member_id: 1 }, 9, 4);
    let mut later = emptied(1_000);
    later.put(1, 10);
    later.checkpoint();
    let later = parts(&later.hold(), &mut later.own);
    let n = good.len();
    assert!(n > 3);
    let sequences: Vec<(&str, Vec<&Vec<u8>>)> = vec![
        ("nothing", vec![]),
        ("no beginning", vec![&good[1]]),
        ("begun in the middle", vec![&good[n - 1]]),
        ("begun twice", vec![&good[0], &good[0]]),
        ("another state", vec![&foreign[0]]),
        ("another state in between", vec![&good[0], &foreign[1]]),
        ("a later state in between", vec![&good[0], &later[1]]),
    ];
    for (what, sequence) in sequences {
        let disk = MemDisk::new();
        let mut sink = sink_for(&source);
        let sequence: Vec<Vec<u8>> = sequence.into_iter().cloned().collect();
        let refused = receive(&mut sink, &mut disk.clone(), &sequence);
        assert!(matches!(refused, Err(SinkError::Foreign(_))), "{what}: {refused:?}");
        give_up(&mut sink, &mut disk.clone());
        assert!(disk.names().is_empty(), "{what}: {:?}", disk.names());
    }
    // The whole state is walked through: what never came is noticed there.
    for left_out in 1..n {
        let disk = MemDisk::new();
        let mut sink = sink_for(&source);
        let mut sequence = good.clone();
        let gone = sequence.remove(left_out);
        if gone.len() <= 4096 {
            continue;
        }
        let refused = receive(&mut sink, &mut disk.clone(), &sequence);
        assert!(matches!(refused, Err(SinkError::Damaged(_))), "{left_out}: {refused:?}");
        give_up(&mut sink, &mut disk.clone());
        assert!(disk.names().is_empty(), "{left_out}: {:?}", disk.names());
    }
    let source = stranger.hold();
    let cluster = parts(&source, &mut stranger.own);
    let refused = receive(&mut sink_for(&source), &mut MemDisk::new(), &cluster);
    assert!(matches!(refused, Err(SinkError::Foreign(_))), "another cluster: {refused:?}");
}

#[test]
fn a_page_that_has_rotted_at_the_sender_never_becomes_part_of_a_complete_copy() {
    let sender = Fixture::random(SENDER, 5, 6);
    let source = sender.hold();
    let units = u64::try_from(sender.file_bytes().min(200 * 4096) / 4096).unwrap();
    let mut refused = 0;
    for unit in 2..units {
        let rotten = sender.disk.crash(1);
        let offset = unit * 4096 + 9;
        let byte = rotten.read_at(DB_FILE, offset, 1).unwrap();
        rotten.patch(DB_FILE, offset, &[byte[0] ^ 4]);
        // The same parts as the file would give them now.
        let name = DB_FILE.to_owned();
        let mode = OpenMode::Existing;
        let mut own = rotten.clone();
        let opened = run(&mut own, FileOp::Open { name, mode, direct: false }).unwrap();
        let FileOutput::Opened(file) = opened else { panic!("{opened:?}") };
        let mut rebuilt = Vec::new();
        let mut wanted = WantedParts::all();
        while let Some(range) = wanted.take() {
            let part = match source.next_part(range.from, range.until) {
                NextPart::Ready(part) => part,
                NextPart::Read { first_unit, len_bytes, .. } => {
                    let offset_bytes = first_unit * 4096;
                    let read = FileOp::Read { file, offset_bytes, len_bytes };
                    let FileOutput::Data(data) = run(&mut own, read).unwrap() else { panic!() };
                    source.part(range.from, first_unit, &data)
                }
            };
            note(&mut wanted, range, &part);
            rebuilt.push(part);
        }
        let disk = MemDisk::new();
        let mut sink = sink_for(&source);
        match receive(&mut sink, &mut disk.clone(), &rebuilt) {
            Ok(()) => assert_is(&disk, &sender.model, "the rot is in a free unit or in padding"),
            Err(SinkError::Damaged(_)) => {
                refused += 1;
                give_up(&mut sink, &mut disk.clone());
                assert!(disk.names().is_empty());
            }
            Err(other) => panic!("unit {unit}: {other}"),
        }
    }
    assert!(refused > 3, "{refused} of {units} units are in use");
}

#[test]
fn a_power_cut_at_any_change_leaves_no_copy_or_a_sound_one_and_the_page_file_as_it_was() {
    let mut sender = Fixture::random(SENDER, 11, 5);
    let source = sender.hold();
    let all = parts(&source, &mut sender.own);
    let receiver = Fixture::random(RECEIVER, 12, 2);
    // An unfinished copy and a complete one that nobody needs lie there already.
    let begin = || {
        let disk = receiver.disk.crash(0);
        let mut own = disk.clone();
        let mut earlier = sink_for(&source);
        receive(&mut earlier, &mut own, &all).unwrap();
        run(
            &mut own,
            FileOp::Rename {
                from: copies(&disk)[0].clone(),
                to: format!("etcore.snap-{:016x}", 1),
            },
        )
        .unwrap();
        let (name, mode) = ("etcore.snap.part".to_owned(), OpenMode::CreateNew);
        run(&mut own, FileOp::Open { name, mode, direct: false }).unwrap();
        disk.crash(1)
    };
    let whole = begin();
    let before = whole.change_count();
    receive(&mut sink_for(&source), &mut whole.clone(), &all).unwrap();
    let changes = whole.change_count() - before;
    assert!(changes > 8);
    let (mut none, mut complete) = (0, 0);
    for change in 0..=changes {
        let disk = begin();
        disk.crash_at(disk.change_count() + change);
        let mut sink = sink_for(&source);
        let outcome = receive(&mut sink, &mut disk.clone(), &all);
        assert_eq!(outcome.is_ok(), change == changes, "change {change}");
        for cut in 0..long(6, 40) {
            let what = format!("change {change} of {changes}, cut {cut}");
            let image = disk.crash(cut);
            let found = receiver.disk.content(DB_FILE);
            assert_eq!(image.content(DB_FILE), found, "{what}");
            let index = source.applied().0;
            let named = copies(&image).into_iter().find(|name| complete_index(name) == Some(index));
            assert!(named.is_some() || outcome.is_err(), "{what}: it was said to be durable");
            match named {
                None => none += 1,
                Some(named) => {
                    complete += 1;
                    for other in copies(&image).into_iter().filter(|name| *name != named) {
                        run(&mut image.clone(), FileOp::Remove { name: other }).unwrap();
                    }
                    assert_is(&image, &sender.model, &what);
                }
            }
        }
    }
    assert!(none > 10 && complete > 5, "{none} without, {complete} with");
}

#[test]
fn after_any_error_of_the_disk_the_copy_is_given_up_and_gone() {
    let mut sender = Fixture::random(SENDER, 11, 5);
    let source = sender.hold();
    let all = parts(&source, &mut sender.own);
    let whole = MemDisk::new();
    receive(&mut sink_for(&source), &mut whole.clone(), &all).unwrap();
    let kinds = [std::io::ErrorKind::Other, std::io::ErrorKind::StorageFull];
    for change in 0..whole.change_count() {
        let disk = MemDisk::new();
        disk.fail_at(change, kinds[usize::from(change % 2 == 1)]);
        let mut sink = sink_for(&source);
        let failed = receive(&mut sink, &mut disk.clone(), &all);
        assert!(matches!(failed, Err(SinkError::Io { .. })), "change {change}: {failed:?}");
        give_up(&mut sink, &mut disk.clone());
        assert!(disk.names().is_empty(), "change {change}: {:?}", disk.names());
        // The next one finds nothing in its way.
        let mut sink = sink_for(&source);
        receive(&mut sink, &mut disk.clone(), &all).unwrap();
        assert_is(&disk, &sender.model, "the next try");
    }
    for read in 0..whole.read_count() {
        let disk = MemDisk::new();
        disk.fail_read_at(read, std::io::ErrorKind::Other);
        let mut sink = sink_for(&source);
        let failed = receive(&mut sink, &mut disk.clone(), &all);
        assert!(matches!(failed, Err(SinkError::Io { .. })), "read {read}: {failed:?}");
        give_up(&mut sink, &mut disk.clone());
        assert!(disk.names().is_empty(), "read {read}: {:?}", disk.names());
    }
    let disk = MemDisk::new();
    let mut sink = sink_for(&source);
    disk.set_full(true);
    receive(&mut sink, &mut disk.clone(), &all).unwrap_err();
    give_up(&mut sink, &mut disk.clone());
    assert!(disk.names().is_empty());
}

#[test]
fn giving_up_between_any_two_operations_leaves_nothing() {
    let mut sender = Fixture::random(SENDER, 13, 3);
    let source = sender.hold();
    let all = parts(&source, &mut sender.own);
    for steps in 0..200 {
        let disk = MemDisk::new();
        let mut own = disk.clone();
        let mut sink = sink_for(&source);
        let mut left = all.iter();
        for _ in 0..steps {
            match sink.next_op().unwrap() {
                Some(op) => sink.done(run(&mut own, op)).unwrap(),
                None if sink.is_complete() => break,
                None => match left.next() {
                    Some(part) => sink.add(Part::parse(part).unwrap()).unwrap(),
                    None => sink.end_parts().unwrap(),
                },
            }
        }
        if sink.is_complete() {
            assert!(steps > 10, "{steps}");
            return;
        }
        // One is out when it happens.
        let op = sink.next_op().unwrap();
        sink.give_up();
        if let Some(op) = op {
            assert!(!sink.is_over() && sink.next_op().unwrap().is_none());
            sink.done(run(&mut own, op)).unwrap();
        }
        drive(&mut sink, &mut own).unwrap();
        assert!(sink.is_over());
        assert!(disk.names().is_empty(), "after {steps}: {:?}", disk.names());
    }
    panic!("it never ended");
}

#[test]
fn a_file_without_anything_durable_has_nothing_to_hold() {
    let mut fixture = Fixture::open(MemDisk::new(), SENDER);
    assert!(fixture.checkpointer.snapshot().is_none());
    fixture.put(1, 10);
    fixture.store.publish();
    fixture.checkpointer.start(fixture.store.freeze(1000).unwrap());
    assert!(fixture.checkpointer.snapshot().is_none(), "a checkpoint is under way");
    let output = fixture.checkpointer.run(&mut fixture.own).unwrap().unwrap();
    fixture.store.on_checkpoint(&output);
    assert_eq!(fixture.hold().applied(), fixture.store.applied());
}
