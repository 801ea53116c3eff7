//! The MVCC store: the write side, owned by the replica alone.
//!
//! Entries are applied through [`Txn`]s, become visible with [`Store::publish`], and reach the page
//! file through checkpoints that another thread writes. Nothing is visible before it is published,
//! and nothing waits for a disk here. Revisions count as etcd's do.

pub(crate) mod open;
mod txn;

use std::sync::Arc;

pub use txn::{PutOutcome, SuspendedTxn, Txn};

use crate::bucket::changes::Changes;
use crate::bucket::{Bucket, Buckets};
use crate::checkpoint::{CheckpointInput, CheckpointOutput};
use crate::error::RangeError;
use crate::hash::KvHasher;
use crate::index::Index;
use crate::limits::{
    COMPACTION_CHECKPOINT_MS, CONF_STATE_BYTES_MAX, INDEX_COMPACT_LEAVES_PER_PUBLISH,
    INDEX_COMPACT_LEAVES_PER_TURN,
};
use crate::pins::{PinsExhausted, RevisionPins, VersionPins};
use crate::seeded_bug::{SeededBug, is_on};
use crate::table::{Mark, Tables};
use crate::types::{Identity, LogIndex, RevKey, Revision, Term};
use crate::view::{TreeVersion, View};
use crate::wire::KvRef;

/// What can be chosen when a store is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// A checkpoint is due this long after the previous one, if something changed. Milliseconds.
    pub checkpoint_ms: u64,
    /// ... or when this many changes are not in the page file.
    pub checkpoint_rows: u64,
    /// ... or this many bytes.
    pub checkpoint_bytes: usize,
    /// With no change of data, the applied index alone is saved after this many entries.
    pub checkpoint_entries: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            checkpoint_ms: 500,
            checkpoint_rows: 10_000,
            checkpoint_bytes: 32 << 20,
            checkpoint_entries: 10_000,
        }
    }
}

/// Invariants: the index, the tables and the buckets hold exactly the entries up to `applied`; a
/// row is in the tables, in the tree, or both.
#[derive(Debug)]
pub struct Store {
    config: EngineConfig,
    index: Index,
    tables: Tables,
    buckets: Arc<Buckets>,
    bucket_changes: Changes,
    revision: Revision,
    compact_revision: Revision,
    applied: LogIndex,
    term: Term,
    durable_applied: LogIndex,
    conf_state: Arc<[u8]>,
    identity: Identity,
    tree: Arc<TreeVersion>,
    version_pins: VersionPins,
    revision_pins: RevisionPins,
    index_compaction: IndexCompaction,
    /// No row or index entry above it was removed, or is being removed.
    removed: Revision,
    checkpoint: CheckpointState,
    /// Somebody waits for the page file to be as small as it gets.
    defragment: bool,
    undo: txn::Undo,
    /// A transaction is between two slices of its work: nothing else is applied or saved, and
    /// nothing behind the mark is published.
    suspended: Option<Mark>,
}

/// Progress of dropping compacted revisions from the index.
#[derive(Debug, Default)]
struct IndexCompaction {
    /// Everything that a compaction here removes is gone.
    done: Revision,
    /// The pass under way: its revision and where it goes on.
    pass: Option<(Revision, Vec<u8>)>,
}

/// What has changed since the last checkpoint began, and whether one is under way.
#[derive(Debug, Default)]
struct CheckpointState {
    in_flight: bool,
    rows: u64,
    entries: u64,
    /// Somebody waits for it.
    urgent: bool,
    /// Something besides rows and the applied index changed.
    other: bool,
    started_ms: u64,
    /// What compaction may remove is gone from the page file up to here.
    compact_reached: Revision,
}

impl Store {
    /// An empty store without a page file: for tests, tools and the simulator's pure runs.
    pub fn in_memory(config: EngineConfig) -> Self {
        let version_pins = VersionPins::default();
        let tree = TreeVersion { root: None, _pin: version_pins.pin(0) };
        Self {
            config,
            index: Index::new(),
            tables: Tables::default(),
            buckets: Arc::default(),
            bucket_changes: Changes::default(),
            revision: Revision(1),
            compact_revision: Revision(-1),
            applied: LogIndex(0),
            term: Term(0),
            durable_applied: LogIndex(0),
            conf_state: Arc::from([]),
            identity: Identity::default(),
            tree: Arc::new(tree),
            version_pins,
            revision_pins: RevisionPins::default(),
            index_compaction: IndexCompaction::default(),
            removed: Revision(-1),
            checkpoint: CheckpointState::default(),
            defragment: false,
            undo: txn::Undo::default(),
            suspended: None,
        }
    }

    /// Starts to apply the raft entry `index`. Its changes are dropped with the transaction unless
    /// it is committed.
    ///
    /// # Panics
    /// If `index` is not above what is applied.
    pub fn begin(&mut self, index: LogIndex, term: Term) -> Txn<'_> {
        self.assert_next(index);
        Txn::new(self, index, term)
    }

    /// Goes on with a transaction.
    ///
    /// # Panics
    /// If none is suspended.
    pub fn resume(&mut self, suspended: SuspendedTxn) -> Txn<'_> {
        assert!(self.suspended.take().is_some(), "no transaction is suspended");
        Txn::resumed(self, suspended)
    }

    /// The row that the change `at` wrote, which no checkpoint has taken out of memory yet.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn change(&self, at: RevKey) -> KvRef<'_> {
        let (_, bytes) = self.tables.find(at).expect("the change is in memory");
        KvRef::parse(bytes).expect("it was encoded by this store")
    }

    /// Applies an entry that has no effect on the data.
    ///
    /// # Panics
    /// If `index` is not above what is applied.
    pub fn skip(&mut self, index: LogIndex, term: Term) {
        self.assert_next(index);
        self.advance(index, term);
    }

    /// Makes revisions below `revision` unreadable, except for those that are its keys' values, at
    /// once; memory and pages follow in slices.
    pub fn compact(&mut self, revision: Revision) -> Result<(), RangeError> {
        if revision <= self.compact_revision {
            let compacted = self.compact_revision;
            return Err(RangeError::Compacted { requested: revision, compacted });
        }
        if revision > self.revision {
            return Err(RangeError::Future { requested: revision, current: self.revision });
        }
        self.compact_revision = revision;
        self.checkpoint.other = true;
        Ok(())
    }

    /// Makes everything applied so far visible. Called once per batch of entries.
    pub fn publish(&mut self) -> Arc<View> {
        match self.suspended {
            // What it has changed in the index is above the view's revision.
            Some(mark) => self.tables.publish_up_to(mark),
            None => {
                self.compact_index(INDEX_COMPACT_LEAVES_PER_PUBLISH);
                self.tables.publish();
            }
        }
        Arc::new(View {
            revision: self.revision,
            compact_revision: self.compact_revision,
            applied: self.applied,
            term: self.term,
            removed: self.removed,
            index: self.index.clone(),
            tables: self.tables.view().clone(),
            tree: self.tree.clone(),
        })
    }

    /// Does a slice of the background work that needs the write side: at most a fraction of a
    /// millisecond. True if there is more; call it once per turn while the replica has time.
    pub fn maintain(&mut self) -> bool {
        // A transaction that is not over may still have to be undone.
        self.suspended.is_none() && self.compact_index(INDEX_COMPACT_LEAVES_PER_TURN)
    }

    /// Sets what raft calls the configuration: opaque bytes, saved with the applied index.
    ///
    /// # Panics
    /// If they are longer than [`CONF_STATE_BYTES_MAX`].
    pub fn set_conf_state(&mut self, conf_state: &[u8]) {
        assert!(conf_state.len() <= CONF_STATE_BYTES_MAX, "{} bytes", conf_state.len());
        if *self.conf_state != *conf_state {
            self.conf_state = conf_state.into();
            self.checkpoint.other = true;
        }
    }

    /// What [`Store::set_conf_state`] set.
    pub fn conf_state(&self) -> &[u8] {
        &self.conf_state
    }

    /// Whose page file this is; all zero in one that no checkpoint has named yet.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Names the member whose page file this is, from the next checkpoint on.
    pub fn set_identity(&mut self, identity: Identity) {
        if self.identity != identity {
            self.identity = identity;
            self.checkpoint.other = true;
        }
    }

    /// The last entry applied.
    pub fn applied(&self) -> (LogIndex, Term) {
        (self.applied, self.term)
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Revisions below cannot be read; -1 before the first compaction.
    pub fn compact_revision(&self) -> Revision {
        self.compact_revision
    }

    /// Begins a hash of all that is applied, the small buckets included, as etcd's Hash takes it.
    /// What it reads of the rows must have been published before its first step.
    ///
    /// # Errors
    /// When too many revisions are pinned.
    pub fn hasher_of_everything(&self) -> Result<KvHasher, PinsExhausted> {
        let compacted = self.compact_revision;
        let pin = self.revision_pins.pin(compacted.max(Revision(0)))?;
        Ok(KvHasher::of_everything(self.revision, compacted, pin, self.buckets.clone()))
    }

    /// Long reads and watch cursors go on with this store after `before`: it is the same state,
    /// later. What they had pinned and this store does not have is compacted for them.
    pub fn share_pins(&mut self, before: &Self) {
        self.revision_pins = before.revision_pins.clone();
    }

    /// Where long reads and watch cursors pin revisions.
    pub fn revision_pins(&self) -> &RevisionPins {
        &self.revision_pins
    }

    /// The value of a row of a small bucket (not of [`Bucket::Key`]).
    pub fn bucket_get(&self, bucket: Bucket, key: &[u8]) -> Option<&[u8]> {
        self.buckets.get(bucket, key)
    }

    /// Rows of a small bucket from `start` on, in key order.
    pub fn bucket_iter<'a>(
        &'a self,
        bucket: Bucket,
        start: &[u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.buckets.iter_from(bucket, start)
    }

    /// Heap bytes: memory tables, buckets, index. Walks the index's nodes; for metrics, not for
    /// every turn.
    pub fn memory_bytes(&self) -> usize {
        let buckets = self.buckets.memory_bytes() + self.bucket_changes.memory_bytes();
        self.tables.memory_bytes() + buckets + self.index.memory_bytes()
    }

    /// Heap bytes of the memory tables: what the limit on unsaved data is compared with.
    pub fn table_bytes(&self) -> usize {
        self.tables.memory_bytes()
    }

    /// Bytes of the rows in the memory tables: what checkpoints will add to the page file.
    pub fn row_bytes(&self) -> usize {
        self.tables.row_bytes()
    }

    /// True if a checkpoint should begin: something is to be saved, none is under way, and time,
    /// rows or bytes since the last one say so. `resting`: the last one was so long that, with less
    /// than `rest_bytes` of rows waiting and nobody pressing, the next may wait.
    pub fn checkpoint_due(&self, now_ms: u64, resting: bool, rest_bytes: usize) -> bool {
        let state = &self.checkpoint;
        let compacting = self.compaction_unfinished();
        let dirty = state.rows > 0 || state.other || compacting;
        let interval_ms = match compacting {
            true => self.config.checkpoint_ms.min(COMPACTION_CHECKPOINT_MS),
            false => self.config.checkpoint_ms,
        };
        let aged = now_ms.saturating_sub(state.started_ms) >= interval_ms;
        let open_bytes = self.tables.open_bytes() + self.bucket_changes.memory_bytes();
        let may_wait = resting && !compacting && open_bytes < rest_bytes;
        !state.in_flight
            && self.suspended.is_none()
            && (!may_wait
                && (dirty && aged
                    || state.rows >= self.config.checkpoint_rows
                    || state.entries >= self.config.checkpoint_entries)
                || open_bytes >= self.config.checkpoint_bytes
                || self.checkpoint.urgent
                || self.defragment)
    }

    /// Freezes everything applied so far for a checkpoint; `None` if one is under way.
    pub fn freeze(&mut self, now_ms: u64) -> Option<CheckpointInput> {
        if self.checkpoint.in_flight || self.suspended.is_some() {
            return None;
        }
        // The checkpointer reads published rows only. No view shows them before its own time: views
        // find rows through their index and end at their revision.
        self.tables.publish();
        let segments = self.tables.freeze();
        let (in_flight, started_ms) = (true, now_ms);
        let compact_reached = self.checkpoint.compact_reached;
        self.checkpoint =
            CheckpointState { in_flight, started_ms, compact_reached, ..Default::default() };
        self.removed = self.removed.max(self.removable());
        Some(CheckpointInput {
            tables: self.tables.view().clone(),
            segments,
            bucket_changes: std::mem::take(&mut self.bucket_changes),
            applied: match is_on(SeededBug::ApplyAgainAfterRestart) {
                true => LogIndex(self.applied.0.saturating_sub(1)),
                false => self.applied,
            },
            term: self.term,
            revision: self.revision,
            conf_state: match is_on(SeededBug::ConfStateForgotten) {
                true => Vec::new(),
                false => self.conf_state.to_vec(),
            },
            identity: self.identity,
            compact_scheduled: match is_on(SeededBug::CompactionForgotten) {
                true => Revision(-1),
                false => self.compact_revision,
            },
            removable: self.removable(),
            index: self.index.clone(),
            defragment: self.defragment,
        })
    }

    /// From now on checkpoints follow each other, each moving pages towards the start of the file,
    /// until one says [`CheckpointOutput::defragmented`].
    pub fn defragment(&mut self) {
        self.defragment = true;
    }

    /// A checkpoint is due soon although nothing may have changed: it finds out whether the disk
    /// has room.
    pub fn checkpoint_soon(&mut self) {
        self.checkpoint.other = true;
    }

    /// A checkpoint is due at once: writes wait for the room that it makes.
    pub fn checkpoint_now(&mut self) {
        self.checkpoint.urgent = true;
    }

    /// Takes over what a checkpoint made durable; the next [`Store::publish`] shows it.
    pub fn on_checkpoint(&mut self, output: &CheckpointOutput) {
        assert!(self.checkpoint.in_flight, "an output belongs to the input frozen last");
        self.checkpoint.in_flight = false;
        self.checkpoint.compact_reached = output.compact_reached;
        self.durable_applied = output.durable_applied;
        self.checkpoint.other |= output.unsettled;
        self.defragment &= !output.defragmented;
        let pin = self.version_pins.pin(output.checkpoint);
        self.tree = Arc::new(TreeVersion { root: output.key_root, _pin: pin });
        self.tables.drop_oldest(output.segments);
    }

    /// The log must be kept from the entry after this one.
    pub fn durable_applied(&self) -> LogIndex {
        self.durable_applied
    }

    fn compaction_unfinished(&self) -> bool {
        self.checkpoint.compact_reached < self.removable()
    }

    /// True if a compaction at `revision` has removed from the page file what pins allow it to;
    /// what is left waits for their holders.
    pub fn has_compacted(&self, revision: Revision) -> bool {
        self.checkpoint.compact_reached >= revision.min(self.removable())
    }

    /// What may be removed physically: the compact revision, or the oldest pin below it.
    pub fn removable(&self) -> Revision {
        let oldest = self.revision_pins.oldest().unwrap_or(self.compact_revision);
        self.compact_revision.min(oldest)
    }

    fn compact_index(&mut self, leaves: usize) -> bool {
        let target = self.removable();
        let work = &mut self.index_compaction;
        if work.pass.is_none() {
            if target <= work.done {
                return false;
            }
            work.pass = Some((target, Vec::new()));
            self.removed = self.removed.max(target);
        }
        let Some((target, cursor)) = work.pass.take() else { return false };
        // A revision that was pinned after the pass began is at or above the compact revision of
        // then, so the pass does not touch what it needs.
        match self.index.compact(&cursor, target, leaves) {
            Some(cursor) => work.pass = Some((target, cursor)),
            None => work.done = target,
        }
        true
    }

    fn advance(&mut self, index: LogIndex, term: Term) {
        self.applied = index;
        self.term = term;
        self.checkpoint.entries += 1;
    }

    fn assert_next(&self, index: LogIndex) {
        assert!(self.suspended.is_none(), "one entry after the other");
        assert!(index > self.applied, "entry {index} comes after {}", self.applied);
    }
}

#[cfg(test)]
mod tests;
