//! When a checkpoint begins, and what its end means for the store, the log and whoever waits for
//! it.
//!
//! Part of the replica. The background writes it; nothing here waits for that.

use std::sync::atomic::Ordering;
use std::time::Duration;

use etcore_engine::checkpoint::CheckpointOutput;
use etcore_engine::file::SharedFile;
use etcore_engine::types::LogIndex;
use etcore_raftlog::types::SnapshotMark;

use super::Replica;
use crate::background::Task;
use crate::channel::{Slot, ToFront};
use crate::disk::pages::PageFile;
use crate::limits;
use crate::work::Job;

/// The checkpoint under way, and the page file that checkpoints write.
///
/// Invariant: at most one checkpoint is under way.
pub(super) struct Checkpoints {
    started_ms: Option<u64>,
    rest_until_ms: u64,
    page_file: PageFile,
    /// Who waits for the end of a defragmentation.
    defragmenters: Vec<(usize, Slot)>,
    defragment_began_ms: u64,
    /// The index that the log was told of last.
    told_index: u64,
    /// An entry that was skipped, and that the page file is not beyond for good yet.
    skipped: Option<LogIndex>,
}

impl Checkpoints {
    pub(super) fn new(page_file: PageFile) -> Self {
        Self {
            started_ms: None,
            rest_until_ms: 0,
            page_file,
            defragmenters: Vec::new(),
            defragment_began_ms: 0,
            told_index: 0,
            skipped: None,
        }
    }

    pub(super) fn page_file(&self) -> &PageFile {
        &self.page_file
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.started_ms.is_some()
    }

    fn begin(&mut self, now_ms: u64) {
        assert!(self.started_ms.is_none(), "a checkpoint is under way already");
        self.started_ms = Some(now_ms);
    }

    /// A checkpoint has ended; returns how long it took.
    fn end(&mut self, now_ms: u64) -> u64 {
        // None was under way if a snapshot's store has taken the place of what it saved.
        let took_ms = now_ms - self.started_ms.take().unwrap_or(now_ms);
        self.rest_until_ms = now_ms + rest_ms(took_ms);
        took_ms
    }

    /// What it saves is replaced by a snapshot. True if one was under way.
    pub(super) fn forget(&mut self) -> bool {
        self.started_ms.take().is_some()
    }

    /// A snapshot's file takes the place of this one.
    pub(super) fn replace_file(&mut self, file: SharedFile) {
        let number = self.page_file.number + 1;
        self.page_file = PageFile { number, cuts: 0, file: Some(file) };
    }

    /// True if somebody waits for the end of a defragmentation.
    pub(super) fn is_defragmenting(&self) -> bool {
        !self.defragmenters.is_empty()
    }

    /// An entry was skipped: a start without the operator's flag would find it in the log again,
    /// until the page file is beyond it.
    pub(super) fn note_skipped(&mut self, index: LogIndex) {
        self.skipped = Some(index);
    }

    /// The entry that was skipped, until the page file is known to be beyond it.
    pub(super) fn skipped(&self) -> Option<LogIndex> {
        self.skipped
    }

    /// The page file is beyond the skipped entry.
    pub(super) fn forget_skipped(&mut self) {
        self.skipped = None;
    }
}

impl Replica {
    /// The background has finished a checkpoint.
    pub(super) fn checkpoint_written(&mut self, output: CheckpointOutput) {
        let took_ms = self.checkpoints.end(self.turn.now_ms());
        let took = Duration::from_millis(took_ms);
        self.shared.metrics.storage.backend_commit.observe(took.as_secs_f64());
        self.watchdog.checkpoint_ended();
        self.turn.note(Job::CheckpointEnds);
        self.shared.note_size(output.file_bytes, output.free_bytes);
        self.store.on_checkpoint(&output);
        self.checkpoints.page_file.cuts = output.cuts;
        self.space.checkpoint_ended(output.tight, output.spare_bytes);
        self.pages.follow(&self.checkpoints.page_file);
        if output.defragmented {
            self.end_defragment();
        }
        self.publisher.note_change();
        self.tell_of_snapshot(output.durable_applied);
        self.follow_up_skipped();
        if !self.snapshots.is_installing()
            && let Err(error) = self.log.checkpoint_ended(self.store.durable_applied())
        {
            self.fail(format!("write-ahead log: {error}"));
        }
        self.compactions_ended(output.compacted_rows, output.compact_finished);
        self.answer_compactions(output.compact_finished);
    }

    /// A checkpoint is to the log what a snapshot is to etcd's. There are many more: one line
    /// stands for as many entries as etcd's does.
    fn tell_of_snapshot(&mut self, index: LogIndex) {
        if index.0 >= self.checkpoints.told_index + limits::SNAPSHOT_TOLD_ENTRIES {
            self.checkpoints.told_index = index.0;
            tracing::info!(snapshot_index = index.0, "saved snapshot");
        }
    }

    pub(super) fn begin_defragment(&mut self, front: usize, slot: Slot) {
        if !self.checkpoints.is_defragmenting() {
            tracing::info!("starting defragment");
            self.checkpoints.defragment_began_ms = self.turn.now_ms();
            self.shared.metrics.storage.defragmenting.set(1);
            self.store.defragment();
        }
        self.checkpoints.defragmenters.push((front, slot));
    }

    fn end_defragment(&mut self) {
        let storage = &self.shared.metrics.storage;
        if self.checkpoints.is_defragmenting() {
            let took_ms = self.turn.now_ms() - self.checkpoints.defragment_began_ms;
            storage.defragment.observe(Duration::from_millis(took_ms).as_secs_f64());
        }
        storage.defragmenting.set(0);
        tracing::info!(
            db_size_bytes = self.shared.status.db_size_bytes.load(Ordering::Relaxed),
            db_in_use_bytes = self.shared.status.db_in_use_bytes.load(Ordering::Relaxed),
            "finished defragment"
        );
        for (front, slot) in self.checkpoints.defragmenters.drain(..) {
            self.publisher.reply(front, ToFront::Defragmented { slot });
        }
    }

    /// Begins a checkpoint if one is due.
    pub(super) fn maybe_checkpoint(&mut self) {
        let now_ms = self.turn.now_ms();
        // Compaction of the index: a slice a turn.
        let began = self.compactions.are_under_way().then(|| self.shared.clock.elapsed());
        if self.store.maintain() {
            if let Some(began) = began {
                let took = self.shared.clock.elapsed().saturating_sub(began);
                let metrics = &self.shared.metrics.storage.compaction;
                metrics.index_pause_ms.observe(took.as_secs_f64() * 1000.0);
            }
            self.turn.note(Job::IndexCompaction);
            self.publisher.note_change();
        }
        let resting = now_ms < self.checkpoints.rest_until_ms;
        // What would be saved is about to be replaced.
        if self.snapshots.is_installing()
            || self.checkpoints.is_under_way()
            || !self.store.checkpoint_due(now_ms, resting, limits::CHECKPOINT_REST_BYTES)
        {
            return;
        }
        let Some(input) = self.store.freeze(now_ms) else { return };
        self.turn.note(Job::CheckpointBegins);
        self.checkpoints.begin(now_ms);
        let (index, term) = self.store.applied();
        let conf_state = Some(self.log.node.conf_state());
        self.log.checkpoint_begins(SnapshotMark { index, term, conf_state });
        if self.background.submit(Task::Checkpoint(Box::new(input))).is_err() {
            self.fail("the background takes no checkpoint although none is under way".to_owned());
        }
    }
}

/// How long the next checkpoint may wait after one that took so long.
fn rest_ms(took_ms: u64) -> u64 {
    (took_ms * limits::CHECKPOINT_REST_TIMES).min(limits::CHECKPOINT_REST_MS_MAX)
}
