//! Power cuts at every single change of the disk: what is found afterwards is the state of a
//! checkpoint, not older than the last one that was acknowledged, and never an error.

use etcore_engine::checkpoint::{CheckpointOutput, Checkpointer};
use etcore_engine::error::EngineError;
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::model::{Model, apply, random_entry};
use etcore_engine::testing::prng::Prng;

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
        let view = store.publish();
        model.assert_view(&view, &mut DiskPages::new(image), &mut prng);
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
    model.assert_view(&store.publish(), &mut DiskPages::new(image), &mut prng);
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
