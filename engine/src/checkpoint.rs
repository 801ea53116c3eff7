//! Checkpoints: frozen rows and changed buckets become pages, then a new meta page.
//!
//! A [`Checkpointer`] lives on the background thread. The store hands it a [`CheckpointInput`] and
//! gets a [`CheckpointOutput`] back; in between it is a state machine over the disk that never
//! waits. The order is fixed: pages, sync, meta, sync. After the first error it refuses everything:
//! a failed sync tells nothing about what is on the device.

mod compaction;
mod merge;
mod pages;
mod relocation;

use std::collections::BTreeMap;

use compaction::Progress;
use merge::Op;
use pages::Pages;
use relocation::{Relocation, Touched};

use crate::bucket::changes::{Change, Changes};
use crate::bucket::{BUCKET_COUNT, Bucket};
use crate::error::{Corruption, EngineError};
use crate::file::{AlignedBuf, Completion, Disk, FileId, FileOp, FileOutput, Token};
use crate::index::Index;
use crate::limits::{
    CHECKPOINT_DEPTH, CHECKPOINT_WRITE_BYTES, FILE_GROWTH_BYTES, FILE_RESERVE_BYTES,
};
use crate::page::meta::Meta;
use crate::page::node::DB_FILE;
use crate::page::space::{Extent, Space};
use crate::page::{PagePtr, UNIT_BYTES};
use crate::pins::VersionPins;
use crate::seeded_bug::{SeededBug, is_on};
use crate::snapshot::SnapshotSource;
use crate::table::{Row, TablesView};
use crate::types::{Identity, LogIndex, REV_KEY_BYTES, Revision, TOMBSTONE_MARK, Term};
use crate::wire::KvRef;

/// What the store froze: everything the next meta page is to contain.
#[derive(Debug)]
pub struct CheckpointInput {
    pub(crate) tables: TablesView,
    pub(crate) segments: usize,
    pub(crate) bucket_changes: Changes,
    pub(crate) applied: LogIndex,
    pub(crate) term: Term,
    pub(crate) revision: Revision,
    pub(crate) conf_state: Vec<u8>,
    pub(crate) identity: Identity,
    pub(crate) compact_scheduled: Revision,
    /// What may be removed now.
    pub(crate) removable: Revision,
    pub(crate) index: Index,
    /// Somebody waits for the file to be as small as it gets.
    pub(crate) defragment: bool,
}

/// What a checkpoint made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointOutput {
    pub(crate) key_root: Option<PagePtr>,
    pub(crate) segments: usize,
    /// Its number.
    pub checkpoint: u64,
    /// The log must be kept from the entry after this one: the older meta page has it.
    pub durable_applied: LogIndex,
    /// The last compaction whose rows are all gone from the file.
    pub compact_finished: Revision,
    /// What pins allowed to remove is gone up to here.
    pub(crate) compact_reached: Revision,
    /// Rows that it has removed, or not written, because a compaction made them useless.
    pub compacted_rows: u64,
    /// Bytes of the file below its end.
    pub file_bytes: u64,
    /// Bytes of them that hold nothing.
    pub free_bytes: u64,
    /// Bytes of pages that it wrote.
    pub written_bytes: u64,
    /// The defragmentation that was asked for is over.
    pub defragmented: bool,
    /// How often the file was cut since it was opened: readers then forget what they have mapped.
    pub cuts: u64,
    /// The file system has no room for the file's usual reserve: nothing that makes it grow should
    /// be let in.
    pub tight: bool,
    /// Bytes that the next checkpoints may write without asking the file system for more.
    pub spare_bytes: u64,
    /// Another checkpoint shall follow although nothing may have changed.
    pub(crate) unsettled: bool,
}

/// What to do after a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointTurn {
    /// There is nothing to do.
    Idle,
    /// Disk operations are outstanding: call again with their completions.
    Waiting,
    /// The file system is full: the checkpoint waits for [`Checkpointer::retry`]. Nothing is lost,
    /// and the log keeps what it would have saved.
    Stalled,
    /// The checkpoint is durable; hand this to the store.
    Done(CheckpointOutput),
}

/// Writes the page file; the only one who does.
#[derive(Debug)]
pub struct Checkpointer {
    file: FileId,
    file_len_bytes: u64,
    meta: Meta,
    pages: Pages,
    pins: VersionPins,
    compaction: Progress,
    relocation: Relocation,
    cuts: u64,
    growth: Growth,
    job: Option<Job>,
    outstanding: BTreeMap<Token, Outstanding>,
    next_token: u64,
    failed: Option<String>,
}

/// How the last try to extend the file went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// There was room, or it was not tried since.
    Fine,
    /// There is none for the reserve.
    Tight,
    /// There is none for what must be written.
    Stalled,
}

#[derive(Debug)]
enum Outstanding {
    Read(PagePtr),
    /// Extending the file to this many bytes.
    Grow(u64),
    Other(&'static str),
}

#[derive(Debug)]
struct Job {
    input: CheckpointInput,
    stage: Stage,
    /// Pages to read before the stage can go on.
    wanted: Vec<PagePtr>,
    /// Row keys that the compaction removes, ascending.
    removed: Vec<Vec<u8>>,
    /// Frozen rows that a compaction has made useless before they were written.
    unwritten: u64,
    /// Rows written again to move their pages, ascending.
    touched: Vec<Touched>,
    meta: Meta,
    written_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Finding what compaction removes.
    Compact,
    /// Finding pages to move.
    Relocate,
    /// Loading what the changes touch, then changing it.
    Merge,
    /// Extending the file.
    Grow,
    /// Writing new pages, from this unit on.
    Write(u64),
    SyncPages,
    WriteMeta,
    SyncMeta,
    /// Cutting off what neither meta page reaches.
    Cut,
    Finish,
}

impl Checkpointer {
    pub(crate) fn new(
        file: FileId,
        file_len_bytes: u64,
        meta: Meta,
        space: Space,
        pins: VersionPins,
    ) -> Self {
        Self {
            file,
            file_len_bytes,
            compaction: Progress::new(meta.compact_finished),
            relocation: Relocation::new(),
            cuts: 0,
            growth: Growth::Fine,
            meta,
            pages: Pages::new(space),
            pins,
            job: None,
            outstanding: BTreeMap::new(),
            next_token: 0,
            failed: None,
        }
    }

    /// The page file, for readers that map it.
    pub fn file(&self) -> FileId {
        self.file
    }

    /// Bytes of the page file up to its last page, and how many of them are free: what
    /// [`CheckpointOutput`] says after each checkpoint, for the time before the first one.
    pub fn size_bytes(&self) -> (u64, u64) {
        let unit = UNIT_BYTES as u64;
        (self.pages.space.end_unit() * unit, self.pages.space.free_units() * unit)
    }

    /// What [`CheckpointOutput::spare_bytes`] says, for the time before the first checkpoint.
    pub fn spare_bytes(&self) -> u64 {
        let unit = UNIT_BYTES as u64;
        let space = &self.pages.space;
        let behind = self.file_len_bytes.saturating_sub(space.end_unit() * unit);
        behind + space.ready_units_below(u64::MAX) * unit
    }

    /// Holds the newest durable state for copies; `None` while a checkpoint is under way, or if
    /// there is nothing in the file.
    pub fn snapshot(&self) -> Option<SnapshotSource> {
        if self.job.is_some() || self.failed.is_some() || self.meta.applied.0 == 0 {
            return None;
        }
        let pin = self.pins.pin(self.meta.checkpoint);
        Some(SnapshotSource::new(self.file, self.meta.clone(), self.pages.space.unused(), pin))
    }

    /// Begins to write `input`; [`Checkpointer::turn`] does the work.
    ///
    /// # Panics
    /// If a checkpoint is under way: the store freezes one at a time.
    pub fn start(&mut self, mut input: CheckpointInput) {
        assert!(self.job.is_none(), "one checkpoint at a time");
        input.removable = self.compaction.target(input.removable);
        let checkpoint = self.meta.checkpoint + 1;
        // Both durable metas, and what views still read.
        let mut held = match is_on(SeededBug::PinnedPageReused) {
            true => Vec::new(),
            false => self.pins.versions(),
        };
        held.extend([self.meta.checkpoint.saturating_sub(1), self.meta.checkpoint]);
        held.sort_unstable();
        self.pages.begin(checkpoint, &held);
        let mut meta = self.meta.clone();
        meta.checkpoint = checkpoint;
        meta.applied = input.applied;
        meta.term = input.term;
        meta.revision = input.revision;
        meta.conf_state.clone_from(&input.conf_state);
        meta.identity = input.identity;
        meta.compact_scheduled = input.compact_scheduled;
        if input.defragment {
            self.relocation.ask();
        }
        self.job = Some(Job {
            input,
            stage: Stage::Compact,
            wanted: Vec::new(),
            removed: Vec::new(),
            unwritten: 0,
            touched: Vec::new(),
            meta,
            written_bytes: 0,
        });
    }

    /// Goes on as far as it can without waiting. `completions` are those of this checkpointer's
    /// operations; they are taken out.
    pub fn turn(
        &mut self,
        disk: &mut dyn Disk,
        completions: &mut Vec<Completion>,
    ) -> Result<CheckpointTurn, EngineError> {
        if let Some(cause) = &self.failed {
            let file = DB_FILE.to_owned();
            return Err(EngineError::Latched { file, cause: cause.clone() });
        }
        let result = self.try_turn(disk, completions);
        if let Err(error) = &result {
            self.failed = Some(error.to_string());
        }
        result
    }

    /// Runs the checkpoint under way to its end; for tools and tests, where nothing else is
    /// outstanding on `disk`.
    pub fn run(&mut self, disk: &mut dyn Disk) -> Result<Option<CheckpointOutput>, EngineError> {
        let mut completions = Vec::new();
        loop {
            match self.turn(disk, &mut completions)? {
                CheckpointTurn::Idle => return Ok(None),
                CheckpointTurn::Stalled => {
                    let error = std::io::ErrorKind::StorageFull.into();
                    return Err(EngineError::io(DB_FILE, "extend", &error));
                }
                CheckpointTurn::Done(output) => return Ok(Some(output)),
                CheckpointTurn::Waiting => disk.wait(&mut completions),
            }
        }
    }

    fn try_turn(
        &mut self,
        disk: &mut dyn Disk,
        completions: &mut Vec<Completion>,
    ) -> Result<CheckpointTurn, EngineError> {
        for completion in completions.drain(..) {
            self.complete(completion)?;
        }
        let Some(mut job) = self.job.take() else { return Ok(CheckpointTurn::Idle) };
        while self.advance(&mut job, disk)? {}
        if job.stage == Stage::Finish {
            return Ok(CheckpointTurn::Done(self.finish(job)));
        }
        let stalled = self.growth == Growth::Stalled && self.outstanding.is_empty();
        self.job = Some(job);
        Ok(if stalled { CheckpointTurn::Stalled } else { CheckpointTurn::Waiting })
    }

    /// One step; false if it has to wait or is at the end.
    fn advance(&mut self, job: &mut Job, disk: &mut dyn Disk) -> Result<bool, EngineError> {
        while self.outstanding.len() < CHECKPOINT_DEPTH {
            let Some(ptr) = job.wanted.pop() else { break };
            let (file, offset_bytes) = (self.file, ptr.offset_bytes());
            let read = FileOp::Read { file, offset_bytes, len_bytes: ptr.len_bytes as usize };
            self.submit(disk, Outstanding::Read(ptr), read);
        }
        if let Stage::Write(from) = job.stage
            && self.outstanding.len() < CHECKPOINT_DEPTH
            && let Some((unit, data, next)) = self.pages.run_from(from, CHECKPOINT_WRITE_BYTES)
        {
            job.written_bytes += data.len() as u64;
            self.write(disk, unit * UNIT_BYTES as u64, data, "write pages");
            job.stage = Stage::Write(next);
            return Ok(true);
        }
        if !self.outstanding.is_empty() {
            return Ok(false);
        }
        let file = self.file;
        match job.stage {
            Stage::Compact => {
                if self.compact(job)? {
                    job.stage = Stage::Relocate;
                }
            }
            Stage::Relocate => {
                if self.relocate(job)? {
                    job.stage = Stage::Merge;
                }
            }
            Stage::Merge => {
                if self.merge(job)? {
                    job.stage = Stage::Grow;
                }
            }
            Stage::Grow => return Ok(self.grow(job, disk)),
            Stage::Write(_) if is_on(SeededBug::MetaBeforePages) => job.stage = Stage::SyncPages,
            Stage::Write(_) => {
                self.submit(disk, Outstanding::Other("sync pages"), FileOp::Sync { file });
                job.stage = Stage::SyncPages;
            }
            Stage::SyncPages => {
                let data = AlignedBuf::from(&job.meta.encode()[..]);
                self.write(disk, job.meta.offset_bytes(), data, "write the meta page");
                job.stage = Stage::WriteMeta;
            }
            Stage::WriteMeta => {
                self.submit(disk, Outstanding::Other("sync the meta page"), FileOp::Sync { file });
                job.stage = Stage::SyncMeta;
            }
            Stage::SyncMeta => job.stage = Stage::Cut,
            Stage::Cut => {
                self.cut(job, disk);
                job.stage = Stage::Finish;
            }
            Stage::Finish => return Ok(false),
        }
        Ok(true)
    }

    /// Makes the file as long as the job's pages need, or goes on to write them; false if it has to
    /// wait for room.
    fn grow(&mut self, job: &mut Job, disk: &mut dyn Disk) -> bool {
        let needed_bytes = job.meta.end_unit * UNIT_BYTES as u64;
        let exact_bytes = needed_bytes.next_multiple_of(FILE_GROWTH_BYTES);
        let reserve_bytes = self.file_len_bytes.saturating_sub(needed_bytes);
        let len_bytes = match self.growth {
            // Tight, but for now there is enough.
            Growth::Stalled if needed_bytes > self.file_len_bytes => return false,
            Growth::Tight if needed_bytes > self.file_len_bytes => exact_bytes,
            Growth::Fine if reserve_bytes < FILE_RESERVE_BYTES / 4 * 3 => {
                exact_bytes + FILE_RESERVE_BYTES
            }
            _ => {
                job.stage = Stage::Write(0);
                return true;
            }
        };
        let op = FileOp::Allocate { file: self.file, len_bytes };
        self.submit(disk, Outstanding::Grow(len_bytes), op);
        true
    }

    /// Shortens the file if it has become much longer than its pages. From now on the job's meta
    /// page and the one before are the durable ones.
    fn cut(&mut self, job: &Job, disk: &mut dyn Disk) {
        let ends = (self.meta.end_unit, job.meta.end_unit);
        let shorter = relocation::shorter_len(self.file_len_bytes, ends.0, ends.1);
        if let Some(len_bytes) = shorter {
            self.file_len_bytes = len_bytes;
            self.cuts += 1;
            let op = FileOp::SetLen { file: self.file, len_bytes };
            self.submit(disk, Outstanding::Other("cut"), op);
        }
    }

    /// Looks for rows to remove; false if pages are wanted first.
    fn compact(&mut self, job: &mut Job) -> Result<bool, EngineError> {
        let (target, scheduled) = (job.input.removable, job.meta.compact_scheduled);
        let Some(mut slice) = self.compaction.slice(&job.input.index, target, scheduled) else {
            return Ok(true);
        };
        let pages = |ptr| self.pages.get(ptr);
        if let Some(root) = job.meta.roots[Bucket::Key as usize]
            && !slice.run(root, &pages, &mut job.wanted)?
        {
            return Ok(false);
        }
        job.removed = self.compaction.end_slice(slice);
        job.meta.compact_finished = self.compaction.finished();
        Ok(true)
    }

    /// The file could not be extended: first without its reserve, then not at all.
    fn grown(
        &mut self,
        len_bytes: u64,
        result: std::io::Result<FileOutput>,
    ) -> Result<(), EngineError> {
        match result {
            Ok(_) => {
                self.file_len_bytes = self.file_len_bytes.max(len_bytes);
                Ok(())
            }
            Err(error) if is_full(&error) => {
                self.growth = match self.growth {
                    Growth::Fine => Growth::Tight,
                    Growth::Tight | Growth::Stalled => Growth::Stalled,
                };
                Ok(())
            }
            Err(error) => Err(EngineError::io(DB_FILE, "extend", &error)),
        }
    }

    /// Tries again to extend the file; for a timer while it is stalled.
    pub fn retry(&mut self) {
        self.growth = Growth::Fine;
    }

    /// Looks for pages to move; false if pages are wanted first.
    fn relocate(&mut self, job: &mut Job) -> Result<bool, EngineError> {
        let Some(mut slice) = self.relocation.begin(&self.pages.space, job.input.defragment) else {
            return Ok(true);
        };
        let pages = |ptr| self.pages.get(ptr);
        if !slice.run(&job.meta.roots, &pages, &mut job.wanted)? {
            return Ok(false);
        }
        let (touched, next) = slice.finish(&pages)?;
        job.touched = touched;
        self.relocation.walked(next);
        Ok(true)
    }

    /// Makes the new pages; false if old ones are wanted first.
    fn merge(&mut self, job: &mut Job) -> Result<bool, EngineError> {
        let keys = row_keys(job);
        let mut unwritten = 0;
        let ops = bucket_ops(job, &keys, &mut unwritten);
        let roots = job.meta.roots;
        let mut wanted = Vec::new();
        for (root, ops) in roots.iter().zip(&ops) {
            if let Some(root) = root
                && !ops.is_empty()
            {
                merge::missing(&self.pages, *root, ops, &mut wanted)?;
            }
        }
        if !wanted.is_empty() {
            drop(ops);
            job.wanted = wanted;
            return Ok(false);
        }
        let mut new_roots = roots;
        for bucket in 0..BUCKET_COUNT {
            if !ops[bucket].is_empty() {
                let number = Bucket::ALL[bucket] as u8;
                new_roots[bucket] =
                    merge::apply(&mut self.pages, number, roots[bucket], &ops[bucket])?;
            }
        }
        job.meta.roots = new_roots;
        job.unwritten = unwritten;
        self.save_space(&mut job.meta);
        Ok(true)
    }

    /// Puts the list of free extents, as it is after this checkpoint, into a page of its own.
    fn save_space(&mut self, meta: &mut Meta) {
        if let Some(old) = meta.space.take() {
            // It was written by the previous checkpoint that wrote pages; being kept since the
            // first one is safe and no different while both metas are held.
            let (first_unit, units) = (old.first_unit, u64::from(old.units));
            let freed = meta.checkpoint;
            self.pages.space.free(Extent { first_unit, units, allocated: 0, freed });
        }
        let len_bytes = self.pages.space.encoded_len();
        if len_bytes > 0 {
            meta.space = Some(self.pages.add_space(len_bytes));
        }
        meta.end_unit = self.pages.space.end_unit();
    }

    fn finish(&mut self, job: Job) -> CheckpointOutput {
        self.pages.end();
        let before = match is_on(SeededBug::LogReleasedEarly) {
            true => &job.meta,
            false => &self.meta,
        };
        let durable_applied = before.applied;
        self.meta = job.meta;
        let tight = self.growth != Growth::Fine;
        // Every checkpoint finds out anew.
        self.growth = Growth::Fine;
        let defragmented = self.relocation.end(&self.pages.space, job.input.defragment);
        let unit = UNIT_BYTES as u64;
        CheckpointOutput {
            key_root: self.meta.roots[Bucket::Key as usize],
            segments: job.input.segments,
            checkpoint: self.meta.checkpoint,
            durable_applied,
            compact_finished: self.meta.compact_finished,
            compact_reached: self.compaction.reached(),
            compacted_rows: job.removed.len() as u64 + job.unwritten,
            file_bytes: self.pages.space.end_unit() * unit,
            free_bytes: self.pages.space.free_units() * unit,
            written_bytes: job.written_bytes,
            defragmented,
            cuts: self.cuts,
            tight,
            spare_bytes: self.spare_bytes(),
            unsettled: self.relocation.is_busy(),
        }
    }

    fn complete(&mut self, completion: Completion) -> Result<(), EngineError> {
        let Some(kind) = self.outstanding.remove(&completion.token) else { return Ok(()) };
        match (kind, completion.result) {
            (Outstanding::Read(ptr), Ok(FileOutput::Data(bytes))) => self.pages.loaded(ptr, bytes),
            (Outstanding::Read(ptr), Ok(_)) => {
                let offset = ptr.offset_bytes();
                Err(EngineError::corrupt(DB_FILE, offset, Corruption::Truncated))
            }
            (Outstanding::Grow(len_bytes), result) => self.grown(len_bytes, result),
            (Outstanding::Read(_), Err(error)) => Err(EngineError::io(DB_FILE, "read", &error)),
            (Outstanding::Other(_), Ok(_)) => Ok(()),
            (Outstanding::Other(what), Err(error)) => Err(EngineError::io(DB_FILE, what, &error)),
        }
    }

    fn write(
        &mut self,
        disk: &mut dyn Disk,
        offset_bytes: u64,
        data: AlignedBuf,
        what: &'static str,
    ) {
        let op = FileOp::Write { file: self.file, offset_bytes, data, durable: false };
        self.submit(disk, Outstanding::Other(what), op);
    }

    fn submit(&mut self, disk: &mut dyn Disk, kind: Outstanding, op: FileOp) {
        let token = Token(self.next_token);
        self.next_token += 1;
        self.outstanding.insert(token, kind);
        disk.submit(token, op);
    }
}

/// The key of a row, in place.
struct RowKey {
    bytes: [u8; REV_KEY_BYTES + 1],
    len: usize,
}

/// The row keys of all frozen rows.
fn row_keys(job: &Job) -> Vec<RowKey> {
    let rows = job.input.tables.rows(job.input.segments);
    let key = |(row, _): (Row, _)| {
        let mut bytes = [TOMBSTONE_MARK; REV_KEY_BYTES + 1];
        bytes[..REV_KEY_BYTES].copy_from_slice(&row.at().to_row_key());
        RowKey { bytes, len: REV_KEY_BYTES + usize::from(row.is_tombstone()) }
    };
    rows.map(key).collect()
}

/// What changes in each bucket, ascending.
fn bucket_ops<'a>(job: &'a Job, keys: &'a [RowKey], unwritten: &mut u64) -> Vec<Vec<Op<'a>>> {
    let mut ops: Vec<Vec<Op<'a>>> = Vec::new();
    ops.resize_with(BUCKET_COUNT, Vec::new);
    for Change { bucket, key, value } in job.input.bucket_changes.last_of_each() {
        ops[bucket as usize].push(Op { key, value });
    }
    // Rows of the tree are older than frozen ones, so the removed ones come first.
    let rows = &mut ops[Bucket::Key as usize];
    rows.extend(job.removed.iter().map(|key| Op { key, value: None }));
    let frozen = job.input.tables.rows(job.input.segments);
    for (key, (row, bytes)) in keys.iter().zip(frozen) {
        if row.at().main <= job.input.removable {
            let user_key = KvRef::parse(bytes).map_or(&[][..], |kv| kv.key);
            if !job.input.index.keeps(user_key, row.at(), job.input.removable) {
                *unwritten += 1;
                continue;
            }
        }
        rows.push(Op { key: &key.bytes[..key.len], value: Some(bytes) });
    }
    assert!(rows.is_sorted_by_key(|op| op.key), "revisions grow");
    for (bucket, ops) in ops.iter_mut().enumerate() {
        add_touched(ops, job.touched.iter().filter(|touched| touched.bucket == bucket));
    }
    ops
}

/// The errors by which file systems say that they are full.
fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Adds rows that are written again as they are, unless they change anyway.
fn add_touched<'a>(ops: &mut Vec<Op<'a>>, touched: impl Iterator<Item = &'a Touched>) {
    for Touched { key, value, .. } in touched {
        if let Err(at) = ops.binary_search_by(|op| op.key.cmp(key)) {
            ops.insert(at, Op { key, value: Some(value) });
        }
    }
}
