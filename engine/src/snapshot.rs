//! Copies of a durable state of the page file, for members that lag too far behind.
//!
//! Used by the background thread on both sides. A [`SnapshotSource`] holds the newest durable meta
//! page and pins its version, so that none of its pages is overwritten; it hands the pages out in
//! [`Part`]s, in the order of the file, each from any point, so that a transfer can go on where it
//! broke off. A [`SnapshotSink`] writes parts to a file beside the page file, under another name
//! until it is complete. Nothing here puts the copy into use: the next start does, if the log has
//! the snapshot's mark. It must never write to the page file itself.
//!
//! A part: first unit (8 bytes), unit behind the last one of the whole copy (8), CRC32C of the data
//! (4), then whole units; numbers are little endian. No data: the copy is complete. The first part
//! is the meta page.

use std::collections::VecDeque;
use std::io;

use crate::file::{AlignedBuf, FileId, FileOp, FileOutput, OpenMode};
use crate::page::UNIT_BYTES;
use crate::page::meta::Meta;
use crate::page::node::DB_FILE;
use crate::pins::VersionPin;
use crate::types::{Identity, LogIndex, Term};

/// Bytes of a part before its data.
const PART_HEAD_BYTES: usize = 20;

/// Units in a part: half a megabyte.
pub const PART_UNITS: u64 = 128;

/// A copy that is not complete.
const PART_FILE: &str = "etcore.snap.part";

/// Begins the name of a complete copy; sixteen hexadecimal digits of its last entry's index follow.
const COMPLETE_PREFIX: &str = "etcore.snap-";

/// Units of the meta pages at the start of a file.
const META_UNITS: u64 = 2;

/// A durable state, held until this is dropped.
#[derive(Debug)]
pub struct SnapshotSource {
    file: FileId,
    meta: Meta,
    /// Ascending: first unit and number of units that the state does not use.
    free: Vec<(u64, u64)>,
    _pin: VersionPin,
}

/// What of a copy comes next.
#[derive(Debug)]
pub enum NextPart {
    /// It is at hand.
    Ready(Vec<u8>),
    /// Read this, and make a part of it with [`SnapshotSource::part`].
    Read {
        /// Where it lies.
        first_unit: u64,
        /// How to get it.
        op: FileOp,
    },
}

impl SnapshotSource {
    pub(crate) fn new(file: FileId, meta: Meta, free: Vec<(u64, u64)>, pin: VersionPin) -> Self {
        Self { file, meta, free, _pin: pin }
    }

    /// The last entry it contains, and that entry's term.
    pub fn applied(&self) -> (LogIndex, Term) {
        (self.meta.applied, self.meta.term)
    }

    /// The configuration as of that entry, encoded.
    pub fn conf_state(&self) -> &[u8] {
        &self.meta.conf_state
    }

    /// Its size in bytes, free extents included.
    pub fn size_bytes(&self) -> u64 {
        self.meta.end_unit * UNIT_BYTES as u64
    }

    /// The part that follows `from_unit`; 0 for the first.
    pub fn next_part(&self, from_unit: u64) -> NextPart {
        if from_unit == 0 {
            // Its own place is the file's business; a copy is told apart by being the first.
            return NextPart::Ready(self.part(0, &self.meta.encode()));
        }
        let mut first_unit = from_unit.max(META_UNITS);
        let mut until = self.meta.end_unit;
        for (free, units) in &self.free {
            if *free > first_unit {
                until = until.min(*free);
                break;
            }
            first_unit = first_unit.max(free + units);
        }
        let units = until.saturating_sub(first_unit).min(PART_UNITS);
        if units == 0 {
            return NextPart::Ready(self.part(self.meta.end_unit, &[]));
        }
        let len_bytes = usize::try_from(units).expect("at most PART_UNITS") * UNIT_BYTES;
        let offset_bytes = first_unit * UNIT_BYTES as u64;
        let op = FileOp::Read { file: self.file, offset_bytes, len_bytes };
        NextPart::Read { first_unit, op }
    }

    /// A part of these units.
    pub fn part(&self, first_unit: u64, data: &[u8]) -> Vec<u8> {
        let mut part = Vec::with_capacity(PART_HEAD_BYTES + data.len());
        part.extend_from_slice(&first_unit.to_le_bytes());
        part.extend_from_slice(&self.meta.end_unit.to_le_bytes());
        part.extend_from_slice(&crc32c::crc32c(data).to_le_bytes());
        part.extend_from_slice(data);
        part
    }
}

/// One piece of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    first_unit: u64,
    end_unit: u64,
    data: &'a [u8],
}

impl<'a> Part<'a> {
    /// Reads what [`SnapshotSource::part`] made; `None` if it is damaged.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, data) = bytes.split_at_checked(PART_HEAD_BYTES)?;
        let long = |at: usize| head[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        let crc = u32::from_le_bytes(head[16..].try_into().ok()?);
        let (first_unit, end_unit) = (long(0)?, long(8)?);
        let units = (data.len() / UNIT_BYTES) as u64;
        let fits = first_unit.checked_add(units).is_some_and(|end| end <= end_unit);
        let sound = data.len().is_multiple_of(UNIT_BYTES) && crc32c::crc32c(data) == crc;
        (sound && fits).then_some(Self { first_unit, end_unit, data })
    }

    /// Where the part after it begins; `None` if it is the end of the copy.
    pub fn next_unit(&self) -> Option<u64> {
        let next = self.first_unit + (self.data.len() / UNIT_BYTES) as u64;
        (!self.data.is_empty()).then_some(next)
    }
}

/// Why a copy cannot be taken on.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The disk refused.
    #[error("{DB_FILE}: {what}: {error}")]
    Io {
        /// Which operation.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The parts make no copy of the state that was announced.
    #[error("the parts received are no snapshot at entry {0}")]
    Foreign(LogIndex),
}

/// Writes a copy, one operation at a time.
///
/// Invariant: `file` is open while parts are taken; the meta page is written after everything else
/// was synced.
#[derive(Debug)]
pub struct SnapshotSink {
    index: LogIndex,
    term: Term,
    identity: Identity,
    file: Option<FileId>,
    meta: Option<Meta>,
    ops: VecDeque<(&'static str, FileOp)>,
    /// What the operation that is out was for.
    busy: Option<&'static str>,
    /// The last part has come.
    ending: bool,
    complete: bool,
}

impl SnapshotSink {
    /// A sink for a copy that ends with entry `index` of `term`, to become the page file of the
    /// member `identity`. An unfinished copy that lies there is removed.
    pub fn new(index: LogIndex, term: Term, identity: Identity) -> Self {
        let list = ("list", FileOp::List { name: String::new() });
        let (name, mode) = (PART_FILE.to_owned(), OpenMode::CreateNew);
        let open = ("create", FileOp::Open { name, mode, direct: false });
        let ops = VecDeque::from([list, open]);
        Self {
            index,
            term,
            identity,
            file: None,
            meta: None,
            ops,
            busy: None,
            ending: false,
            complete: false,
        }
    }

    /// Takes the next part. Call it when [`SnapshotSink::is_idle`].
    ///
    /// # Errors
    /// [`SinkError::Foreign`].
    pub fn add(&mut self, part: Part<'_>) -> Result<(), SinkError> {
        let foreign = SinkError::Foreign(self.index);
        let (Some(file), false) = (self.file, self.ending) else { return Err(foreign) };
        let Some(meta) = &self.meta else {
            let slot = |slot| Meta::decode(part.data, slot).ok();
            let Some(mut meta) = slot(0).or_else(|| slot(1)) else { return Err(foreign) };
            let of_cluster = meta.identity.cluster_id == self.identity.cluster_id;
            if part.first_unit != 0
                || !of_cluster
                || (meta.applied, meta.term) != (self.index, self.term)
            {
                return Err(foreign);
            }
            meta.identity = self.identity;
            let len_bytes = meta.end_unit * UNIT_BYTES as u64;
            self.ops.push_back(("extend", FileOp::SetLen { file, len_bytes }));
            self.meta = Some(meta);
            return Ok(());
        };
        if part.end_unit != meta.end_unit || part.first_unit < META_UNITS {
            return Err(foreign);
        }
        if part.data.is_empty() {
            self.ending = true;
            let (offset_bytes, data) = (meta.offset_bytes(), AlignedBuf::from(&meta.encode()[..]));
            let write = FileOp::Write { file, offset_bytes, data, durable: false };
            let (from, to) = (PART_FILE.to_owned(), complete_name(self.index));
            self.ops.extend([
                ("sync", FileOp::Sync { file }),
                ("write the meta page", write),
                ("sync the meta page", FileOp::Sync { file }),
                ("close", FileOp::Close { file }),
                ("rename", FileOp::Rename { from, to }),
                ("sync the directory", FileOp::SyncDir { name: String::new() }),
            ]);
        } else {
            let offset_bytes = part.first_unit * UNIT_BYTES as u64;
            let data = AlignedBuf::from(part.data);
            let write = FileOp::Write { file, offset_bytes, data, durable: false };
            self.ops.push_back(("write", write));
        }
        Ok(())
    }

    /// The next operation; one is out at a time.
    pub fn next_op(&mut self) -> Option<FileOp> {
        if self.busy.is_some() {
            return None;
        }
        let (what, op) = self.ops.pop_front()?;
        self.busy = Some(what);
        Some(op)
    }

    /// How the operation went.
    ///
    /// # Errors
    /// [`SinkError::Io`]; the copy is to be given up.
    pub fn done(&mut self, result: io::Result<FileOutput>) -> Result<(), SinkError> {
        let what = self.busy.take().unwrap_or("an operation nobody asked for");
        match result.map_err(|error| SinkError::Io { what, error })? {
            FileOutput::Opened(file) => self.file = Some(file),
            FileOutput::Names(names) => {
                for name in names.into_iter().filter(|name| is_copy(name)) {
                    self.ops.push_front(("remove", FileOp::Remove { name }));
                }
            }
            _ => {}
        }
        self.complete = self.ending && self.ops.is_empty();
        Ok(())
    }

    /// Nothing is left to do but to take the next part.
    pub fn is_idle(&self) -> bool {
        self.busy.is_none() && self.ops.is_empty()
    }

    /// The copy is durable under its own name.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Gives the copy up: the file to close, if it is open.
    pub fn into_file(self) -> Option<FileId> {
        if self.ending { None } else { self.file }
    }
}

/// The name of a complete copy.
pub fn complete_name(index: LogIndex) -> String {
    format!("{COMPLETE_PREFIX}{:016x}", index.0)
}

/// The entry at the end of the complete copy of this name.
pub fn complete_index(name: &str) -> Option<LogIndex> {
    let digits = name.strip_prefix(COMPLETE_PREFIX).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok().map(LogIndex)
}

/// Whether a file is a copy, complete or not.
pub fn is_copy(name: &str) -> bool {
    name == PART_FILE || complete_index(name).is_some()
}
