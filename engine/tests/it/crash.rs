//! Power cuts at every single change of the disk: what is found afterwards is the state of a
//! checkpoint, not older than the last one that was acknowledged, and never an error.

use etcore_engine::checkpoint::{CheckpointOutput, CheckpointTurn, Checkpointer};
use etcore_engine::error::EngineError;
use etcore_engine::file::Disk;
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::model::{Entry, Model, Op, apply, random_entry};
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::LeaseId;

const CHECKPOINTS: u64 = 8;

fn long(short: u64, long: u64) -> u64 {
    if std::env::var_os("ETCORE_LONG").is_some() { long } else { short }
}

/// The models at each checkpoint begun, by applied index, and how many were acknowledged.
struct History {
    states: Vec<Model>,
    acknowledged: usize,
}

/// Plays a fixed history until it ends or the disk crashes.
fn play(disk: &MemDisk, seed: u64) -> History {
    let mut history = History { states: vec![Model::default()], acknowledged: 0 };
    let mut own = disk.clone();
    own.complete_in_seeded_order(seed);
    let Ok((mut store, mut checkpointer)) = Store::open(&mut own, EngineConfig::default()) else {
        return history;
    };
    let mut prng = Prng::new(seed);
    let mut model = Model::default();
    for now in 1..=CHECKPOINTS {
        for _ in 0..25 {
            let entry = random_entry(&mut prng, &model);
            apply(&mut store, &entry);
            model.apply(&entry);
        }
        history.states.push(model.clone());
        match checkpoint(&mut store, &mut checkpointer, &mut own, now) {
            Ok(output) => store.on_checkpoint(&output),
            Err(_) => break,
        }
        history.acknowledged = history.states.len() - 1;
    }
    history
}

fn checkpoint(
    store: &mut Store,
    checkpointer: &mut Checkpointer,
    disk: &mut MemDisk,
    now: u64,
) -> Result<CheckpointOutput, EngineError> {
    store.publish();
    checkpointer.start(store.freeze(now * 1_000).unwrap());
    Ok(checkpointer.run(disk)?.unwrap())
}

fn assert_recovers(image: &MemDisk, history: &History, what: &str) {
    let mut own = image.clone();
    let (mut store, mut checkpointer) = Store::open(&mut own, EngineConfig::default())
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let applied = store.applied().0.0;
    let state = history.states.iter().position(|state| state.applied == applied);
    let state = state.unwrap_or_else(|| panic!("{what}: {applied} is no checkpoint"));
    assert!(state >= history.acknowledged, "{what}: an acknowledged checkpoint is gone");
    assert!(store.durable_applied().0 <= applied);
    let mut prng = Prng::new(applied);
    let mut model = history.states[state].clone();
    for round in 0..4 {
        model.assert_store(&mut store, &mut DiskPages::new(image), &mut prng);
        for _ in 0..10 {
            let entry = random_entry(&mut prng, &model);
            apply(&mut store, &entry);
            model.apply(&entry);
        }
        // What comes after a recovery must not overwrite what it recovered.
        let output = checkpoint(&mut store, &mut checkpointer, &mut own, 100 + round).unwrap();
        store.on_checkpoint(&output);
    }
    let (mut store, _) = Store::open(&mut own, EngineConfig::default()).unwrap();
    model.assert_store(&mut store, &mut DiskPages::new(image), &mut prng);
}

#[test]
fn after_a_crash_at_any_change_a_checkpointed_state_is_found() {
    for seed in 0..long(2, 40) {
        let whole = MemDisk::new();
        play(&whole, seed);
        let changes = whole.change_count();
        for change in 0..changes {
            let disk = MemDisk::new();
            disk.crash_at(change);
            let history = play(&disk, seed);
            assert!(disk.has_crashed());
            for cut in 0..long(4, 30) {
                let what = format!("seed {seed}, change {change} of {changes}, cut {cut}");
                assert_recovers(&disk.crash(cut), &history, &what);
            }
        }
    }
}

#[test]
fn after_any_failed_change_the_checkpointer_refuses_and_the_file_stays_sound() {
    let whole = MemDisk::new();
    play(&whole, 1);
    for change in 0..whole.change_count() {
        let disk = MemDisk::new();
        disk.fail_at(change, std::io::ErrorKind::StorageFull);
        let history = play(&disk, 1);
        let what = format!("change {change}");
        // The process goes on or is started again without a power cut ...
        if history.acknowledged > 0 || disk.names() == ["etcore.db"] {
            assert_recovers(&disk.crash(1), &history, &what);
        }
        // ... or with one.
        assert_recovers(&disk.crash(2), &history, &what);
    }
}

#[test]
fn a_failed_checkpointer_stays_failed() {
    let disk = MemDisk::new();
    let mut own = disk.clone();
    let (mut store, mut checkpointer) = Store::open(&mut own, EngineConfig::default()).unwrap();
    let entry = random_entry(&mut Prng::new(1), &Model::default());
    apply(&mut store, &entry);
    store.publish();
    checkpointer.start(store.freeze(0).unwrap());
    disk.fail_at(disk.change_count(), std::io::ErrorKind::Other);
    assert!(matches!(checkpointer.run(&mut own), Err(EngineError::Io { .. })));
    assert!(matches!(checkpointer.run(&mut own), Err(EngineError::Latched { .. })));
}

/// A file that is filled, emptied by a compaction, and defragmented; returns its length in bytes
/// when it was full and at the end.
fn play_shrinking(disk: &MemDisk, rows: u16) -> (History, u64, u64) {
    let mut history = History { states: vec![Model::default()], acknowledged: 0 };
    let mut own = disk.clone();
    let mut lengths = (0, 0);
    let Ok((mut store, mut checkpointer)) = Store::open(&mut own, EngineConfig::default()) else {
        return (history, 0, 0);
    };
    let put = |row: u16| Op::Put {
        key: row.to_be_bytes().to_vec(),
        value: vec![7; 3_000],
        lease: LeaseId(0),
    };
    let delete = |from: u16, to: u16| Op::DeleteRange {
        key: from.to_be_bytes().to_vec(),
        end: to.to_be_bytes().to_vec(),
    };
    let mut model = Model::default();
    let fill = (0..rows).map(|row| Entry::Txn(vec![put(row)])).collect();
    let kept = rows / 10 * 9;
    let empty = vec![Entry::Txn(vec![delete(0, kept)])];
    let mut steps: Vec<Vec<Entry>> = vec![fill, empty];
    steps.resize(16, Vec::new());
    for (now, entries) in (1..).zip(steps) {
        let mut entries = entries;
        match now {
            3 => entries.push(Entry::Compact(model.revision())),
            // A write among the moves.
            9 => entries.push(Entry::Txn(vec![put(rows / 2)])),
            _ => {}
        }
        for entry in &entries {
            apply(&mut store, entry);
            model.apply(entry);
        }
        if now == 5 {
            store.defragment();
        }
        history.states.push(model.clone());
        while store.maintain() {}
        match checkpoint(&mut store, &mut checkpointer, &mut own, now) {
            Ok(output) => store.on_checkpoint(&output),
            Err(_) => break,
        }
        history.acknowledged = history.states.len() - 1;
        lengths.1 = own.content("etcore.db").map_or(0, |content| content.len() as u64);
        lengths.0 = lengths.0.max(lengths.1);
    }
    (history, lengths.0, lengths.1)
}

#[test]
fn a_defragmented_file_is_short_and_a_power_cut_on_the_way_loses_nothing() {
    let whole = MemDisk::new();
    let (_, full, end) = play_shrinking(&whole, 4_000);
    let reserve = 32 << 20;
    assert!(
        full > 12_000_000 + reserve && end - reserve < (full - reserve) / 3,
        "{full} bytes, then {end}"
    );

    let rows = 2_500;
    let whole = MemDisk::new();
    let (_, full, end) = play_shrinking(&whole, rows);
    assert!(end < full, "{full} bytes, then {end}");
    let changes = whole.change_count();
    let stride = usize::try_from(long(9, 1)).unwrap();
    for change in (0..changes).step_by(stride) {
        let disk = MemDisk::new();
        disk.crash_at(change);
        let (history, ..) = play_shrinking(&disk, rows);
        for cut in 0..long(1, 10) {
            let what = format!("change {change} of {changes}, cut {cut}");
            assert_recovers_state(&disk.crash(cut), &history, &what);
        }
    }
}

/// Like [`assert_recovers`], but only looks.
fn assert_recovers_state(image: &MemDisk, history: &History, what: &str) {
    let mut own = image.clone();
    let (mut store, _) = Store::open(&mut own, EngineConfig::default())
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let applied = store.applied().0.0;
    // Several checkpoints may have the same state.
    let mut states = history.states.iter().enumerate();
    let found = states.rfind(|(_, state)| state.applied == applied);
    let (state, model) = found.unwrap_or_else(|| panic!("{what}: {applied} is no checkpoint"));
    assert!(state >= history.acknowledged, "{what}: an acknowledged checkpoint is gone");
    let view = store.publish();
    assert_eq!(view.revision, model.revision(), "{what}");
    let mut pages = DiskPages::new(image);
    let hits = view.range(b"\0", b"\0", view.revision, 0).unwrap();
    for hit in hits.hits() {
        view.value(hit.modified, &mut pages).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

#[test]
fn a_full_disk_stalls_a_checkpoint_until_there_is_room_and_loses_nothing() {
    let disk = MemDisk::new();
    let mut own = disk.clone();
    let (mut store, mut checkpointer) = Store::open(&mut own, EngineConfig::default()).unwrap();
    let mut model = Model::default();
    let mut put = |store: &mut Store, row: u16| {
        let value = vec![7; 400_000];
        let entry =
            Entry::Txn(vec![Op::Put { key: row.to_be_bytes().to_vec(), value, lease: LeaseId(0) }]);
        apply(store, &entry);
        model.apply(&entry);
    };
    put(&mut store, 0);
    let output = checkpoint(&mut store, &mut checkpointer, &mut own, 1).unwrap();
    assert!(!output.tight);
    store.on_checkpoint(&output);
    disk.set_full(true);
    // The reserve takes what was let in before anybody knew, and tells.
    for row in 1..50 {
        put(&mut store, row);
    }
    let output = checkpoint(&mut store, &mut checkpointer, &mut own, 2).unwrap();
    assert!(output.tight);
    store.on_checkpoint(&output);
    // More than that waits.
    for row in 50..100 {
        put(&mut store, row);
    }
    store.publish();
    checkpointer.start(store.freeze(3_000).unwrap());
    let mut completions = Vec::new();
    let mut stalled = 0;
    let output = loop {
        match checkpointer.turn(&mut own, &mut completions).unwrap() {
            CheckpointTurn::Waiting => own.wait(&mut completions),
            CheckpointTurn::Stalled => {
                stalled += 1;
                if stalled == 3 {
                    disk.set_full(false);
                }
                checkpointer.retry();
            }
            CheckpointTurn::Done(output) => break output,
            CheckpointTurn::Idle => unreachable!("it was started"),
        }
    };
    assert_eq!(stalled, 3);
    assert!(!output.tight);
    store.on_checkpoint(&output);
    model.assert_store(&mut store, &mut DiskPages::new(&disk), &mut Prng::new(1));
    let (mut store, _) = Store::open(&mut own, EngineConfig::default()).unwrap();
    model.assert_store(&mut store, &mut DiskPages::new(&disk), &mut Prng::new(2));
}
