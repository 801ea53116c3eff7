//! Random histories against the model: transactions, rollbacks, compactions, checkpoints in every
//! state of progress, reopening. `ETCORE_LONG=1` runs many more seeds.

use std::collections::VecDeque;
use std::sync::Arc;

use etcore_engine::checkpoint::{CheckpointTurn, Checkpointer};
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::model::{Entry, Model, apply, apply_ops, random_entry};
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::{LeaseId, LogIndex, Revision, Term};
use etcore_engine::view::View;

fn seeds(short: u64, long: u64) -> u64 {
    if std::env::var_os("ETCORE_LONG").is_some() { long } else { short }
}

struct Run {
    disk: MemDisk,
    store: Store,
    checkpointer: Checkpointer,
    model: Model,
    /// Entries since the durable one, as a log would keep them.
    log: VecDeque<Entry>,
    /// A view that a slow reader still holds, and what it must show.
    held: Option<(Arc<View>, Model)>,
    prng: Prng,
    now_ms: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let disk = MemDisk::new();
        let mut prng = Prng::new(seed);
        let mut own = disk.clone();
        own.complete_in_seeded_order(prng.next_u64());
        let (store, checkpointer) = Store::open(&mut own, EngineConfig::default()).unwrap();
        let (model, log) = (Model::default(), VecDeque::new());
        Self { disk, store, checkpointer, model, log, held: None, prng, now_ms: 0 }
    }

    fn step(&mut self) {
        let entry = random_entry(&mut self.prng, &self.model);
        if let Entry::Txn(ops) = &entry
            && self.prng.chance(1, 8)
        {
            let index = LogIndex(self.store.applied().0.0 + 1);
            apply_ops(&mut self.store.begin(index, Term(3)), ops);
        }
        apply(&mut self.store, &entry);
        self.model.apply(&entry);
        self.log.push_back(entry);
        if self.prng.chance(1, 5) {
            self.store.maintain();
        }
    }

    fn check(&mut self) {
        let seed = self.prng.next_u64();
        let mut pages = DiskPages::slow(&self.disk, seed);
        self.model.assert_store(&mut self.store, &mut pages, &mut self.prng);
    }

    /// Runs a checkpoint while entries go on; an old view must stay readable throughout.
    fn checkpoint(&mut self) {
        self.now_ms += 1_000;
        let before = self.store.publish();
        let old_model = self.model.clone();
        let Some(input) = self.store.freeze(self.now_ms) else { return };
        self.checkpointer.start(input);
        let mut disk = self.disk.clone();
        disk.complete_in_seeded_order(self.prng.next_u64());
        let mut completions = Vec::new();
        let output = loop {
            match self.checkpointer.turn(&mut disk, &mut completions).unwrap() {
                CheckpointTurn::Done(output) => break output,
                CheckpointTurn::Waiting => {
                    use etcore_engine::file::Disk;
                    disk.wait(&mut completions);
                }
                CheckpointTurn::Idle => unreachable!("it was started"),
                CheckpointTurn::Stalled => unreachable!("the disk has room"),
            }
            if self.prng.chance(1, 3) {
                self.step();
            }
        };
        self.check();
        self.store.on_checkpoint(&output);
        let mut pages = DiskPages::new(&self.disk);
        old_model.assert_view(&before, &mut pages, &mut self.prng);
        self.check();
        match &self.held {
            Some((view, model)) => model.assert_view(view, &mut pages, &mut self.prng),
            None => self.held = Some((before, old_model)),
        }
        if self.prng.chance(1, 6) {
            self.held = None;
        }
    }

    /// Opens the file again and applies what the log has kept.
    fn reopen(&mut self) {
        // No reader outlives the process.
        self.held = None;
        let mut disk = self.disk.clone();
        (self.store, self.checkpointer) = Store::open(&mut disk, EngineConfig::default()).unwrap();
        let applied = self.store.applied().0.0;
        let first = self.model.applied - self.log.len() as u64;
        assert!(self.store.durable_applied().0 <= applied && first <= applied);
        let replay = usize::try_from(applied - first).unwrap();
        for entry in self.log.iter().skip(replay) {
            apply(&mut self.store, entry);
        }
        let kept = self.store.durable_applied().0 - first;
        self.log.drain(..usize::try_from(kept).unwrap());
        self.check();
    }
}

#[test]
fn a_random_history_reads_like_the_model_across_checkpoints_and_reopening() {
    for seed in 0..seeds(6, 500) {
        let mut run = Run::new(seed);
        for _ in 0..700 {
            run.step();
            match run.prng.below(100) {
                0..15 => run.check(),
                15..22 => run.checkpoint(),
                22..24 => run.reopen(),
                _ => {}
            }
        }
        run.checkpoint();
        run.reopen();
    }
}

#[test]
fn overwriting_and_compacting_for_ever_does_not_grow_the_file() {
    let disk = MemDisk::new();
    let mut own = disk.clone();
    let (mut store, mut checkpointer) = Store::open(&mut own, EngineConfig::default()).unwrap();
    let mut prng = Prng::new(4);
    let mut sizes = Vec::new();
    for round in 0..150 {
        for _ in 0..200 {
            let mut txn = store.begin(LogIndex(store.applied().0.0 + 1), Term(1));
            let key = prng.below(500).to_be_bytes();
            let value = vec![1; prng.index(600)];
            txn.put(&key, &value, LeaseId(0));
            txn.commit();
        }
        store.compact(Revision(store.revision().0 - 50)).unwrap();
        while store.maintain() {}
        store.publish();
        checkpointer.start(store.freeze(round).unwrap());
        let output = checkpointer.run(&mut own).unwrap().unwrap();
        store.on_checkpoint(&output);
        assert_eq!(output.compact_finished, store.compact_revision());
        sizes.push(output.file_bytes);
    }
    let (early, late) = (sizes[30], sizes[149]);
    assert!(late <= early + early / 4, "{early} bytes grew to {late}");
    assert!(late < 4 << 20, "{late} bytes for 150 kB of live values");
}
