//! Compaction that has more to look at than there is time between two compactions, and rows larger
//! than all that a checkpoint looks at: what is deleted or overwritten leaves the page file.

use etcore_engine::checkpoint::{CheckpointOutput, Checkpointer};
use etcore_engine::page::Fetch;
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::{LeaseId, LogIndex, Revision, Term};

struct Member {
    disk: MemDisk,
    store: Store,
    checkpointer: Checkpointer,
    now_ms: u64,
}

impl Member {
    fn new() -> Self {
        let disk = MemDisk::new();
        let mut own = disk.clone();
        let (store, checkpointer) = Store::open(&mut own, EngineConfig::default()).unwrap();
        Self { disk, store, checkpointer, now_ms: 0 }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        let mut txn = self.store.begin(LogIndex(self.store.applied().0.0 + 1), Term(1));
        txn.put(key, value, LeaseId(0));
        txn.commit();
    }

    fn compact(&mut self, back: i64) {
        let target = Revision(self.store.revision().0 - back);
        self.store.compact(target).unwrap();
        while self.store.maintain() {}
    }

    fn checkpoint(&mut self) -> CheckpointOutput {
        self.now_ms += 1_000;
        self.store.publish();
        self.checkpointer.start(self.store.freeze(self.now_ms).unwrap());
        let output = self.checkpointer.run(&mut self.disk.clone()).unwrap().unwrap();
        self.store.on_checkpoint(&output);
        output
    }

    /// Checkpoints as long as the store wants some for a compaction; how many there were.
    fn settle(&mut self) -> (CheckpointOutput, usize) {
        let mut output = self.checkpoint();
        for count in 1..200 {
            // Nothing else changes: all that is due is due for the compaction.
            if !self.store.checkpoint_due(self.now_ms + 1_000, false, 0) {
                return (output, count);
            }
            output = self.checkpoint();
        }
        panic!("a checkpoint is due for ever");
    }

    fn reopen(&mut self) {
        let mut own = self.disk.clone();
        (self.store, self.checkpointer) = Store::open(&mut own, EngineConfig::default()).unwrap();
    }

    fn value(&mut self, key: &[u8], at: Revision) -> Option<Vec<u8>> {
        let view = self.store.publish();
        let hits = view.range(key, b"", at, 0).unwrap();
        let hit = hits.hits().first()?;
        let mut pages = DiskPages::new(&self.disk);
        match view.value(hit.modified, &mut pages).unwrap() {
            Fetch::Ready(kv) => Some(kv.to_vec()),
            Fetch::Pending(_) => panic!("these pages are never late"),
        }
    }
}

fn in_use(output: &CheckpointOutput) -> u64 {
    output.file_bytes - output.free_bytes
}

#[test]
fn compactions_that_come_faster_than_one_can_be_carried_out_free_what_they_should() {
    const COLD_KEYS: u64 = 6_000;
    const HOT_KEYS: u64 = 50;
    const ROUNDS: usize = 240;
    let mut member = Member::new();
    let mut prng = Prng::new(9);
    let value = vec![7; 2 << 10];
    let cold = |key: u64| [b"cold", &key.to_be_bytes()[..]].concat();
    for key in 0..COLD_KEYS {
        member.put(&cold(key), &value);
        if key % 1_000 == 0 {
            member.checkpoint();
        }
    }
    let live_bytes = in_use(&member.settle().0);
    let mut worst_bytes = 0;
    let mut finished = Vec::new();
    for round in 0..ROUNDS {
        for _ in 0..40 {
            member.put(&prng.below(HOT_KEYS).to_be_bytes(), &value);
        }
        member.compact(20);
        let output = member.checkpoint();
        finished.push(output.compact_finished);
        worst_bytes = worst_bytes.max(in_use(&output));
        if round == ROUNDS / 2 {
            // A restart forgets how far it was, and begins with a new pass.
            member.reopen();
        }
    }
    // A pass takes some 13 checkpoints: without a restart no more than two passes' rows wait.
    let garbage_bytes = worst_bytes - live_bytes;
    let per_round_bytes = 40 * 4096;
    assert!(garbage_bytes < 45 * per_round_bytes, "{garbage_bytes} bytes of garbage");
    finished.dedup();
    assert!(finished.len() > ROUNDS / 30, "{} passes came to an end", finished.len());
    let (output, count) = member.settle();
    assert!(count < 45, "{count} checkpoints to finish what is left");
    assert_eq!(output.compact_finished, member.store.compact_revision());
    // What was freed last is counted as used until both meta pages have forgotten it.
    member.checkpoint();
    let left_bytes = in_use(&member.checkpoint()) - live_bytes;
    assert!(left_bytes < (HOT_KEYS + 20) * 4096 * 2, "{left_bytes} bytes are left of hot keys");
    let compacted = member.store.compact_revision();
    for key in (0..COLD_KEYS).step_by(500).map(cold) {
        assert!(member.value(&key, Revision(0)).is_some_and(|kv| kv.ends_with(&value)));
    }
    for key in 0..HOT_KEYS {
        for at in compacted.0..=member.store.revision().0 {
            assert!(member.value(&key.to_be_bytes(), Revision(at)).is_some());
        }
    }
}

#[test]
fn rows_larger_than_a_checkpoints_share_do_not_stop_compaction() {
    let mut member = Member::new();
    let large = vec![1; (4 << 20) + 100];
    for round in 0..3u8 {
        for key in 0..3u8 {
            member.put(&[b'a', key], &large);
            member.put(&[b'b', key], &[round; 3_000]);
            member.checkpoint();
        }
    }
    let before_bytes = in_use(&member.settle().0);
    member.compact(0);
    let (output, count) = member.settle();
    assert!(count <= 12, "{count} checkpoints for nine large rows");
    assert_eq!(output.compact_finished, member.store.compact_revision());
    member.checkpoint();
    let after_bytes = in_use(&member.checkpoint());
    assert!(after_bytes < before_bytes * 2 / 5, "of {before_bytes} bytes {after_bytes} are left");
    for key in 0..3u8 {
        assert!(member.value(&[b'a', key], Revision(0)).is_some_and(|kv| kv.ends_with(&large)));
        assert!(member.value(&[b'b', key], Revision(0)).is_some());
    }
}
