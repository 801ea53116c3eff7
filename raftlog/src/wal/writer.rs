//! The log's writer: a state machine that turns entries into one synced write per turn.
//!
//! Called by the replica's loop. Nothing is written here: `next_op` hands out one file operation at
//! a time, `op_done` takes its result, and entries appended in between form the next batch. A
//! second lane of operations (`next_background_op`) prepares the spare segment and removes old
//! ones. It must never report a batch as persisted before its sync, and after a failed write never
//! anything.

use std::collections::VecDeque;

use bytes::Bytes;
use etcore_engine::file::{AlignedBuf, FileId, FileOp, FileOutput};
use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_proto::raftpb;
use prost::Message as _;

use super::batch::Batch;
use super::error::WalError;
use super::name::SegmentName;
use super::record::{self, RecordKind};
use super::recovery::Recovered;
use super::spare::Spare;
use crate::index::{Place, Places};
use crate::limits;
use crate::types::{BatchNumber, HardState, LogIndex, SnapshotMark, Term};

/// How the log is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterConfig {
    /// Length of a segment file, a multiple of the block size.
    pub segment_bytes: u64,
    /// Entries below the released index that stay for slow peers (etcd's
    /// `snapshot-catchup-entries`).
    pub catchup_entries: u64,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self { segment_bytes: limits::SEGMENT_BYTES, catchup_entries: 5000 }
    }
}

/// An entry to be written.
#[derive(Debug, Clone, Copy)]
pub struct EntryRef<'a> {
    /// Position.
    pub index: LogIndex,
    /// Term.
    pub term: Term,
    /// What `data` is.
    pub kind: crate::types::EntryKind,
    /// What was proposed.
    pub data: &'a Bytes,
}

const PREPARING: &str = "it is being prepared";

/// Why the log takes no proposals now. Asked before `propose`, since raft cannot un-append.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Admission {
    /// More is staged than the disk takes: wait for a sync.
    #[error("the log has {staged_bytes} bytes waiting for the disk")]
    Busy {
        /// Bytes staged and not yet on disk.
        staged_bytes: u64,
    },
    /// No spare segment: the disk is full, or slower than the writes.
    #[error("the log has no spare segment: {}", reason.as_deref().unwrap_or(PREPARING))]
    NoSpace {
        /// Why preparing it failed, if it did.
        reason: Option<String>,
    },
    /// A write failed earlier.
    #[error(transparent)]
    Failed(WalError),
}

/// The writer.
///
/// Invariants: at most one operation per lane is outstanding; `offset_bytes`, `block` and `crc`
/// describe the end of the last closed batch; a batch that begins a segment waits for the spare.
#[derive(Debug)]
pub struct Writer {
    dir: String,
    config: WriterConfig,
    metadata: Bytes,
    /// Oldest first; the last one is where batches are being staged.
    segments: VecDeque<SegmentName>,
    /// Capacity of the last segment.
    capacity_bytes: u64,
    /// The file batches go to; changes when a batch that begins a segment is written.
    file: FileId,
    offset_bytes: u64,
    block: Vec<u8>,
    crc: u32,
    last_index: u64,
    hard_state: HardState,
    must_sync: bool,
    open: Option<Batch>,
    closed: VecDeque<Batch>,
    in_flight: Option<InFlight>,
    staged_bytes: u64,
    pool: Vec<AlignedBuf>,
    places: Places,
    /// Snapshot marks on disk, oldest first: their index and the segment that holds them.
    marks: VecDeque<(LogIndex, u64)>,
    /// Snapshot marks staged and not written yet. Nothing is released on their behalf.
    staged_marks: VecDeque<(LogIndex, u64)>,
    spare: Spare,
    /// The file system is full.
    scarce: bool,
    held: Option<LogIndex>,
    failed: Option<WalError>,
}

#[derive(Debug)]
struct InFlight {
    stage: Stage,
    number: BatchNumber,
    bytes: u64,
    marks: usize,
    /// Old name and file of the segment this batch begins.
    begins: Option<(String, FileId, SegmentName)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Write,
    /// Written; the rename is to be submitted.
    Rename,
    Renaming,
    SyncDir,
    Syncing,
}

impl Writer {
    /// Goes on where `recovered` ends. Takes the writer's part out of it: call it once, before the
    /// rest goes to the node.
    pub fn new(recovered: &mut Recovered, config: WriterConfig) -> Self {
        assert!(config.segment_bytes.is_multiple_of(4096), "{config:?}");
        assert!(config.segment_bytes >= limits::SEGMENT_BYTES_MIN, "{config:?}");
        let parts = &mut recovered.parts;
        let segments: VecDeque<SegmentName> = std::mem::take(&mut parts.segments).into();
        let spare_sequence = segments.back().map_or(0, |last| last.sequence + 1);
        Self {
            dir: parts.dir.clone(),
            config,
            metadata: parts.metadata.clone(),
            segments,
            capacity_bytes: parts.tail.capacity_bytes,
            file: parts.tail.file.take().expect("a recovered log becomes a writer once"),
            offset_bytes: parts.tail.offset_bytes,
            block: std::mem::take(&mut parts.tail.block),
            crc: parts.tail.crc,
            last_index: recovered.last_index.0,
            hard_state: recovered.hard_state,
            must_sync: false,
            open: None,
            closed: VecDeque::new(),
            in_flight: None,
            staged_bytes: 0,
            pool: Vec::new(),
            places: std::mem::take(&mut parts.places),
            marks: std::mem::take(&mut parts.mark_segments).into(),
            staged_marks: VecDeque::new(),
            spare: Spare::new(parts.dir.clone(), config.segment_bytes, spare_sequence),
            scarce: false,
            held: None,
            failed: None,
        }
    }

    /// Largest entry data this log takes.
    pub fn entry_data_bytes_max(&self) -> u64 {
        let segment = self.config.segment_bytes - limits::BATCH_OVERHEAD_BYTES;
        segment.min(limits::ENTRY_DATA_BYTES_MAX)
    }

    /// Whether `entries` more with `data_bytes` of data together may be proposed now.
    pub fn admit(&self, entries: u64, data_bytes: u64) -> Result<(), Admission> {
        if let Some(error) = &self.failed {
            return Err(Admission::Failed(error.clone()));
        }
        if self.staged_bytes + data_bytes > limits::STAGED_BYTES_MAX {
            return Err(Admission::Busy { staged_bytes: self.staged_bytes });
        }
        let needed =
            data_bytes + entries * record::framed_entry_bytes_max(0) + limits::BATCH_OVERHEAD_BYTES;
        let used = self.open.as_ref().map_or(self.offset_bytes, Batch::offset_bytes);
        let waiting = self.closed.iter().chain(&self.open).any(|batch| batch.begins_segment);
        if used + needed > self.capacity_bytes && (waiting || !self.spare.is_ready()) {
            return Err(Admission::NoSpace { reason: self.spare.failure().map(str::to_owned) });
        }
        Ok(())
    }

    /// Bytes of entries that still fit into the segment being written: what is left when there is
    /// no spare. An entry takes [`limits::ENTRY_OVERHEAD_BYTES`] besides its data.
    pub fn room_bytes(&self) -> u64 {
        let used = self.open.as_ref().map_or(self.offset_bytes, Batch::offset_bytes);
        if self.closed.iter().chain(&self.open).any(|batch| batch.begins_segment) {
            return 0;
        }
        self.capacity_bytes.saturating_sub(used + limits::BATCH_OVERHEAD_BYTES)
    }

    /// Stages entries and a hard state. Once `number` comes out of [`Writer::op_done`] all of it is
    /// on disk. A hard state whose commit alone changed is written with the next batch.
    pub fn append<'a>(
        &mut self,
        entries: impl Iterator<Item = EntryRef<'a>>,
        hard_state: Option<HardState>,
        number: BatchNumber,
    ) -> Result<(), WalError> {
        self.check()?;
        if let Some(state) = hard_state {
            let last = self.hard_state;
            assert!(state.term >= last.term, "{state:?} after {last:?}");
            if state.term != last.term || state.vote != last.vote {
                self.must_sync = true;
            }
            // A batch may end between these entries. Its state record must have their term, but not
            // yet a commit index that lies behind it.
            self.hard_state = HardState { commit: last.commit, ..state };
        }
        for entry in entries {
            self.append_entry(entry);
        }
        if let Some(state) = hard_state {
            self.hard_state.commit = state.commit;
        }
        if self.must_sync {
            self.open_batch().number = number;
        }
        Ok(())
    }

    /// Stages a snapshot mark. Its batch ends with the newest hard state, whose commit must reach
    /// the mark.
    pub fn append_mark(
        &mut self,
        mark: &SnapshotMark,
        number: BatchNumber,
    ) -> Result<(), WalError> {
        self.check()?;
        let data = raftpb::WalSnapshot {
            index: Some(mark.index.0),
            term: Some(mark.term.0),
            conf_state: mark.conf_state.clone(),
        }
        .encode_to_vec();
        assert!(data.len() <= limits::MARK_BYTES_MAX, "a mark of {} bytes", data.len());
        let mut batch = self.batch_with_room(record::framed_bytes_max(data.len() as u64));
        record::encode(&mut batch.buf, RecordKind::Snapshot, &mut self.crc, &data, &[]);
        batch.has_records = true;
        batch.number = batch.number.max(number);
        batch.marks += 1;
        self.staged_marks.push_back((mark.index, batch.segment.sequence));
        self.open = Some(batch);
        self.last_index = self.last_index.max(mark.index.0);
        self.must_sync = true;
        Ok(())
    }

    /// Stages what a snapshot from the leader means, as a batch of its own: its mark, and a hard
    /// state whose commit index reaches it. Nothing that follows it may come in the same write: a
    /// part of that could be found after a power cut, with entries behind the mark, and still the
    /// snapshot would not count.
    pub fn append_snapshot(
        &mut self,
        mark: &SnapshotMark,
        hard_state: HardState,
        number: BatchNumber,
    ) -> Result<(), WalError> {
        self.append_mark(mark, number)?;
        let commit = self.hard_state.commit.max(mark.index);
        self.append(std::iter::empty(), Some(HardState { commit, ..hard_state }), number)?;
        self.close_open();
        Ok(())
    }

    /// Has the newest hard state written even if only its commit changed: before a clean stop.
    pub fn flush(&mut self) {
        if self.hard_state != HardState::default() {
            self.must_sync = true;
            self.open_batch();
        }
    }

    /// The next operation of the main lane, if none is outstanding and there is something to do.
    pub fn next_op(&mut self) -> Option<FileOp> {
        if self.failed.is_some() {
            return None;
        }
        if let Some(flight) = &mut self.in_flight {
            let (from, _, name) = flight.begins.as_ref()?;
            return match flight.stage {
                Stage::Rename => {
                    flight.stage = Stage::Renaming;
                    let to = format!("{}/{name}", self.dir);
                    Some(FileOp::Rename { from: from.clone(), to })
                }
                Stage::SyncDir => {
                    flight.stage = Stage::Syncing;
                    Some(FileOp::SyncDir { name: self.dir.clone() })
                }
                Stage::Write | Stage::Renaming | Stage::Syncing => None,
            };
        }
        if self.closed.is_empty() {
            self.close_open();
        }
        let waits = self.closed.front()?.begins_segment && !self.spare.is_ready();
        let batch = if waits { None } else { self.closed.pop_front() }?;
        let begins = match batch.begins_segment {
            true => self.spare.take().map(|(name, file)| (name, file, batch.segment)),
            false => None,
        };
        let file = begins.as_ref().map_or(self.file, |(_, file, _)| *file);
        assert_eq!(batch.begins_segment, begins.is_some(), "a new segment takes the spare");
        let (stage, number, marks) = (Stage::Write, batch.number, batch.marks);
        let bytes = batch.buf.len() as u64;
        self.in_flight = Some(InFlight { stage, number, bytes, marks, begins });
        Some(FileOp::Write {
            file,
            offset_bytes: batch.start_bytes,
            data: batch.buf,
            durable: true,
        })
    }

    /// Takes the result of the main lane's operation. Returns the number up to which everything is
    /// on disk, if that moved. An error is final.
    pub fn op_done(
        &mut self,
        result: std::io::Result<FileOutput>,
    ) -> Result<Option<BatchNumber>, WalError> {
        self.check()?;
        let Some(mut flight) = self.in_flight.take() else {
            return Err(self.latch(WalError::Driver { what: "an operation nobody asked for" }));
        };
        let output = match result {
            Ok(output) => output,
            Err(error) => {
                let what = match flight.stage {
                    Stage::Write => "write",
                    Stage::Rename | Stage::Renaming => "rename a segment in",
                    Stage::SyncDir | Stage::Syncing => "sync",
                };
                return Err(self.latch(WalError::io(what, &self.dir, &error)));
            }
        };
        if let FileOutput::Written(buf) = output {
            self.recycle(buf);
        }
        flight.stage = match (flight.stage, &flight.begins) {
            (Stage::Write, Some(_)) => Stage::Rename,
            (Stage::Renaming, Some(_)) => Stage::SyncDir,
            _ => {
                self.staged_bytes -= flight.bytes;
                self.marks.extend(self.staged_marks.drain(..flight.marks));
                if let Some((_, file, _)) = flight.begins {
                    let old = std::mem::replace(&mut self.file, file);
                    self.spare.close_later(old);
                }
                return Ok(Some(flight.number));
            }
        };
        self.in_flight = Some(flight);
        Ok(None)
    }

    /// The next operation of the background lane: prepare a spare segment, close and remove old
    /// files. May be delayed at will; proposals stop when the spare is missing.
    pub fn next_background_op(&mut self) -> Option<FileOp> {
        if self.failed.is_some() { None } else { self.spare.next_op() }
    }

    /// Takes the result of the background lane's operation. A spare that cannot be prepared is no
    /// error: [`Writer::admit`] tells, and [`Writer::retry_spare`] tries again.
    pub fn background_done(&mut self, result: std::io::Result<FileOutput>) {
        self.spare.op_done(result);
    }

    /// Why the last try to prepare a spare has failed, until one succeeds or is under way again.
    pub fn spare_failure(&self) -> Option<&str> {
        self.spare.failure()
    }

    /// Tries to prepare a spare again after a failure. Call it from a timer.
    pub fn retry_spare(&mut self) {
        self.spare.retry();
    }

    /// Lets whole segments go whose entries are all at or below `to` (the page file's durable
    /// applied index), minus the catch-up window, and never past the newest snapshot mark on disk
    /// at or below `to`: etcd's tools need one to open the log. Returns the new base: entries above
    /// it can still be read.
    pub fn release(&mut self, to: LogIndex) -> LogIndex {
        let mark = self.marks.iter().rev().find(|(index, _)| *index <= to);
        let mark = match is_on(SeededBug::LogReleasedEarly) {
            true => to.0,
            false => mark.map_or(0, |(index, _)| index.0),
        };
        let limit = to.0.saturating_sub(self.catchup_entries()).min(mark);
        let limit = self.held.map_or(limit, |held| held.0.min(limit));
        while self.segments.get(1).is_some_and(|next| next.first_index <= limit) {
            if let Some(name) = self.segments.pop_front() {
                self.spare.remove_later(format!("{}/{name}", self.dir));
            }
        }
        let first = self.segments.front().map_or(0, |name| name.sequence);
        self.places.release_before(first);
        while self.marks.len() > 1 && self.marks.front().is_some_and(|(_, at)| *at < first) {
            self.marks.pop_front();
        }
        self.base()
    }

    /// Entries after this one are kept whatever else is released: a member gets a snapshot that
    /// ends there.
    pub fn hold(&mut self, index: Option<LogIndex>) {
        self.held = index;
    }

    /// Bytes of segments that hold entries after `index`.
    pub fn bytes_after(&self, index: LogIndex) -> u64 {
        let later = self.segments.iter().rev().take_while(|name| name.first_index > index.0 + 1);
        (later.count() as u64 + 1) * self.config.segment_bytes
    }

    /// The file system is full, or has room again: while it is, nothing is kept for peers that lag,
    /// who then need a snapshot. A log kept for them must not be what keeps the disk full.
    pub fn set_scarce(&mut self, scarce: bool) {
        self.scarce = scarce;
    }

    fn catchup_entries(&self) -> u64 {
        if self.scarce { 0 } else { self.config.catchup_entries }
    }

    /// True if [`Writer::release`] could let more segments go after a mark at `index`.
    pub fn wants_mark(&self, index: LogIndex) -> bool {
        let newest = self.staged_marks.back().or(self.marks.back());
        let newest = newest.map_or(0, |(index, _)| index.0);
        let limit = index.0.saturating_sub(self.catchup_entries());
        let mut later = self.segments.iter().skip(1);
        later.any(|name| (newest + 1..=limit).contains(&name.first_index))
    }

    /// The index before the first entry that can be read back from the files.
    pub fn base(&self) -> LogIndex {
        LogIndex(self.places.first().map_or(self.last_index, |first| first - 1))
    }

    /// Bytes appended and not yet on disk.
    pub fn staged_bytes(&self) -> u64 {
        self.staged_bytes + self.open.as_ref().map_or(0, |batch| batch.buf.len() as u64)
    }

    /// True if nothing is staged and no operation of the main lane is outstanding.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.closed.is_empty() && !self.has_open_records()
    }

    /// The newest hard state that was staged.
    pub(crate) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The error after which nothing works any more.
    pub fn failure(&self) -> Option<&WalError> {
        self.failed.as_ref()
    }

    /// Where the entries from `low` on can be read: segment, and offset of the first frame. The
    /// entries of one segment follow each other there, unless some were overwritten.
    pub(crate) fn place(&self, index: u64) -> Option<(SegmentName, u64)> {
        let place = self.places.get(index)?;
        let first = self.segments.front()?.sequence;
        let at = usize::try_from(u64::from(place.segment).checked_sub(first)?).ok()?;
        Some((*self.segments.get(at)?, u64::from(place.offset_bytes)))
    }

    pub(crate) fn dir(&self) -> &str {
        &self.dir
    }

    fn append_entry(&mut self, entry: EntryRef<'_>) {
        let data_bytes = entry.data.len() as u64;
        assert!(data_bytes <= self.entry_data_bytes_max(), "an entry of {data_bytes} bytes");
        let (index, term) = (entry.index.0, entry.term.0);
        let mut batch = self.batch_with_room(record::framed_entry_bytes_max(data_bytes));
        // Segments are far shorter and fewer than four billion.
        let place = Place {
            segment: batch.segment.sequence as u32,
            offset_bytes: batch.offset_bytes() as u32,
        };
        let kind = entry.kind as u8;
        record::encode_entry(&mut batch.buf, &mut self.crc, kind, term, index, entry.data);
        batch.has_records = true;
        self.open = Some(batch);
        self.places.set(index, place);
        self.last_index = index;
        self.must_sync = true;
    }

    /// Takes out the batch that the next record of `bytes` goes to.
    fn batch_with_room(&mut self, bytes: u64) -> Batch {
        self.open_batch();
        if self.open.as_ref().is_some_and(|batch| batch.room_bytes() < bytes) {
            // An empty batch is given up rather than written.
            let empty = |batch: &mut Batch| !batch.has_records && !batch.begins_segment;
            if let Some(batch) = self.open.take_if(empty) {
                self.pool.push(batch.buf);
            } else {
                self.must_sync = true;
                self.close_open();
            }
            let end = self.offset_bytes + bytes + limits::BATCH_OVERHEAD_BYTES;
            if end > self.capacity_bytes {
                self.begin_segment();
            } else {
                self.open_batch();
            }
        }
        let batch = self.open.take().expect("opened above");
        assert!(batch.room_bytes() >= bytes, "no room for {bytes} bytes");
        batch
    }

    fn open_batch(&mut self) -> &mut Batch {
        if self.open.is_none() {
            let segment = *self.segments.back().expect("a log has a segment");
            let buf = self.pool.pop().unwrap_or_default();
            let room = self.capacity_bytes.saturating_sub(self.offset_bytes);
            if room < limits::BATCH_OVERHEAD_BYTES {
                self.pool.push(buf);
                self.begin_segment();
            } else {
                self.open = Some(Batch::continuing(
                    segment,
                    self.offset_bytes,
                    self.capacity_bytes,
                    &self.block,
                    buf,
                ));
            }
        }
        self.open.as_mut().expect("opened above")
    }

    fn begin_segment(&mut self) {
        let last = *self.segments.back().expect("a log has a segment");
        let name = SegmentName { sequence: last.sequence + 1, first_index: self.last_index + 1 };
        self.segments.push_back(name);
        self.capacity_bytes = self.config.segment_bytes;
        let buf = self.pool.pop().unwrap_or_default();
        let (metadata, state) = (&self.metadata, self.hard_state);
        let capacity = self.capacity_bytes;
        self.open = Some(Batch::beginning(name, capacity, metadata, state, &mut self.crc, buf));
    }

    /// Ends the batch being filled, if it must be written.
    fn close_open(&mut self) {
        if !self.must_sync {
            return;
        }
        let Some(mut batch) = self.open.take() else { return };
        if !batch.has_records && !batch.begins_segment && self.hard_state == HardState::default() {
            self.pool.push(batch.buf);
            return;
        }
        self.offset_bytes = batch.close(self.hard_state, &mut self.crc, &mut self.block);
        self.must_sync = false;
        self.staged_bytes += batch.buf.len() as u64;
        self.closed.push_back(batch);
    }

    fn has_open_records(&self) -> bool {
        self.must_sync && self.open.is_some()
    }

    fn recycle(&mut self, mut buf: AlignedBuf) {
        if self.pool.len() < limits::POOLED_BUFFERS_MAX
            && buf.len() <= limits::POOLED_BUFFER_BYTES_MAX
        {
            buf.clear();
            self.pool.push(buf);
        }
    }

    fn check(&self) -> Result<(), WalError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn latch(&mut self, error: WalError) -> WalError {
        self.failed.get_or_insert(error).clone()
    }
}

#[cfg(test)]
mod tests;
