//! When a checkpoint begins, and what its end means for the store, the log and whoever waits for
//! it.
//!
//! Part of the replica. The background writes it; nothing here waits for that.

use std::sync::atomic::Ordering;

use etcore_engine::checkpoint::CheckpointOutput;
use etcore_raftlog::types::SnapshotMark;

use super::Replica;
use crate::background::Task;
use crate::channel::{Slot, ToFront};
use crate::limits;
use crate::work::Job;

impl Replica {
    pub(super) fn finish_checkpoint(&mut self, output: CheckpointOutput) {
        self.watchdog.checkpoint_ended();
        self.work.note(Job::CheckpointEnds);
        self.shared.note_size(output.file_bytes, output.free_bytes);
        self.store.on_checkpoint(&output);
        self.page_file.cuts = output.cuts;
        self.space.stalled = false;
        self.space.tight = output.tight;
        self.space.spare_bytes = output.spare_bytes;
        self.pages.follow(&self.page_file);
        if output.defragmented {
            self.end_defragment();
        }
        self.unpublished = true;
        self.note_skipped();
        if !self.snapshots.is_installing()
            && let Err(error) = self.log.checkpoint_ended(self.store.durable_applied())
        {
            self.fail(format!("write-ahead log: {error}"));
        }
        self.answer_compactions(output.compact_finished);
    }

    pub(super) fn begin_defragment(&mut self, front: usize, slot: Slot) {
        if self.defragmenters.is_empty() {
            tracing::info!("starting defragment");
            self.store.defragment();
        }
        self.defragmenters.push((front, slot));
    }

    pub(super) fn end_defragment(&mut self) {
        tracing::info!(
            db_size_bytes = self.shared.status.db_size_bytes.load(Ordering::Relaxed),
            db_in_use_bytes = self.shared.status.db_in_use_bytes.load(Ordering::Relaxed),
            "finished defragment"
        );
        for (front, slot) in std::mem::take(&mut self.defragmenters) {
            self.replies.push((front, ToFront::Defragmented { slot }));
        }
    }

    pub(super) fn maybe_checkpoint(&mut self, now_ms: u64) {
        // Compaction of the index: a slice a turn.
        if self.store.maintain() {
            self.work.note(Job::IndexCompaction);
            self.unpublished = true;
        }
        let resting = now_ms < self.checkpoint_rest_until_ms;
        // What would be saved is about to be replaced.
        if self.snapshots.is_installing()
            || self.checkpoint_started_ms.is_some()
            || !self.store.checkpoint_due(now_ms, resting, limits::CHECKPOINT_REST_BYTES)
        {
            return;
        }
        let Some(input) = self.store.freeze(now_ms) else { return };
        self.work.note(Job::CheckpointBegins);
        self.checkpoint_started_ms = Some(now_ms);
        let (index, term) = self.store.applied();
        let conf_state = Some(self.log.node.conf_state());
        self.log.checkpoint_begins(SnapshotMark { index, term, conf_state });
        if self.background.submit(Task::Checkpoint(Box::new(input))).is_err() {
            self.fail("the background takes no checkpoint although none is under way".to_owned());
        }
    }
}

/// How long the next checkpoint may wait after one that took so long.
pub(super) fn rest_ms(took_ms: u64) -> u64 {
    (took_ms * limits::CHECKPOINT_REST_TIMES).min(limits::CHECKPOINT_REST_MS_MAX)
}
