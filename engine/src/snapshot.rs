//! Copies of a durable state of the page file, for members that lag too far behind.
//!
//! Used by the background thread on both sides. A [`SnapshotSource`] holds the newest durable meta
//! page and pins its version, so that none of its pages is overwritten; it hands the pages out in
//! [`Part`]s, each for a range of the file, so that several can be on their way at once and a
//! transfer can go on where it broke off ([`WantedParts`]). A [`SnapshotSink`] writes parts to a
//! file beside the page file, under another name until it is complete, and makes a store of it. The
//! copy is put into use once the log has the snapshot's mark: by [`SnapshotSink::adopt`], or by the
//! next start. Until then nothing here touches the page file.
//!
//! FORMAT.md has the layout of a part and why a copy that has its name is sound.

mod sink;
mod wanted;

use crate::file::{FileId, FileOp};
use crate::limits::{SNAPSHOT_PART_UNITS, SNAPSHOT_SKIP_UNITS};
use crate::page::UNIT_BYTES;
use crate::page::meta::Meta;
use crate::pins::VersionPin;
use crate::types::{LogIndex, Term};

pub use sink::{SinkError, SnapshotSink};
pub use wanted::{UnitRange, WantedParts};

/// Bytes of a part before its data.
const PART_HEAD_BYTES: usize = 32;

/// A copy that is not complete.
const PART_FILE: &str = "etcore.snap.part";

/// Begins the name of a complete copy; sixteen hexadecimal digits of its last entry's index follow.
const COMPLETE_PREFIX: &str = "etcore.snap-";

/// Units of the meta pages at the start of a file.
pub(crate) const META_UNITS: u64 = 2;

/// A durable state, held until this is dropped.
#[derive(Debug)]
pub struct SnapshotSource {
    file: FileId,
    meta: Meta,
    /// Tells this state from every other: the checksum of its meta page.
    state: u32,
    /// Ascending, apart from each other: first unit and unit behind the last one of what need not
    /// be sent. The state does not use it.
    gaps: Vec<(u64, u64)>,
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
        /// How many bytes that is.
        len_bytes: usize,
        /// How to get it.
        op: FileOp,
    },
}

impl SnapshotSource {
    /// `free`, ascending: first unit and number of units that the state does not use.
    pub(crate) fn new(file: FileId, meta: Meta, free: Vec<(u64, u64)>, pin: VersionPin) -> Self {
        let mut gaps: Vec<(u64, u64)> = Vec::new();
        for (first, units) in free {
            match gaps.last_mut() {
                Some((_, end)) if *end == first => *end += units,
                _ => gaps.push((first, first + units)),
            }
        }
        // Short ones go along: a part for every page of a fragmented file would take for ever.
        gaps.retain(|(first, end)| end - first >= SNAPSHOT_SKIP_UNITS);
        let state = crc32c::crc32c(&meta.encode());
        Self { file, meta, state, gaps, _pin: pin }
    }

    /// The last entry it contains, and that entry's term.
    pub fn applied(&self) -> (LogIndex, Term) {
        (self.meta.applied, self.meta.term)
    }

    /// The configuration as of that entry, encoded.
    pub fn conf_state(&self) -> &[u8] {
        &self.meta.conf_state
    }

    /// The part for the units from `from_unit` on and before `until_unit`: those up to the first
    /// gap or the end of a part's length. From 0 on it is the first part, whatever is asked for.
    /// Without data, nothing before its first unit is in use.
    pub fn next_part(&self, from_unit: u64, until_unit: u64) -> NextPart {
        if from_unit == 0 {
            // Its own place is the file's business; a copy is told apart by being the first.
            return NextPart::Ready(self.part(0, 0, &self.meta.encode()));
        }
        let mut first_unit = from_unit.max(META_UNITS);
        let mut next = self.gaps.partition_point(|(_, end)| *end <= first_unit);
        if let Some((_, end)) = self.gaps.get(next).filter(|(first, _)| *first <= first_unit) {
            first_unit = *end;
            next += 1;
        }
        let end_unit = self.meta.end_unit;
        first_unit = first_unit.min(end_unit);
        let until = self.gaps.get(next).map_or(end_unit, |(first, _)| end_unit.min(*first));
        let until = until.min(until_unit);
        let units = until.saturating_sub(first_unit).min(SNAPSHOT_PART_UNITS);
        if units == 0 {
            return NextPart::Ready(self.part(from_unit, first_unit, &[]));
        }
        let len_bytes = usize::try_from(units).expect("at most a part's") * UNIT_BYTES;
        let offset_bytes = first_unit * UNIT_BYTES as u64;
        let op = FileOp::Read { file: self.file, offset_bytes, len_bytes };
        NextPart::Read { first_unit, len_bytes, op }
    }

    /// The part that answers `from_unit`: these units.
    pub fn part(&self, from_unit: u64, first_unit: u64, data: &[u8]) -> Vec<u8> {
        let mut part = Vec::with_capacity(PART_HEAD_BYTES + data.len());
        part.extend_from_slice(&from_unit.to_le_bytes());
        part.extend_from_slice(&first_unit.to_le_bytes());
        part.extend_from_slice(&self.meta.end_unit.to_le_bytes());
        part.extend_from_slice(&self.state.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&part), data);
        part.extend_from_slice(&crc.to_le_bytes());
        part.extend_from_slice(data);
        part
    }
}

/// One piece of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    from_unit: u64,
    first_unit: u64,
    end_unit: u64,
    state: u32,
    data: &'a [u8],
}

impl<'a> Part<'a> {
    /// Reads what [`SnapshotSource::part`] made; `None` if it is damaged.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, data) = bytes.split_at_checked(PART_HEAD_BYTES)?;
        let long = |at: usize| head[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        let word = |at: usize| head[at..at + 4].try_into().ok().map(u32::from_le_bytes);
        let (from_unit, first_unit, end_unit) = (long(0)?, long(8)?, long(16)?);
        let (state, crc) = (word(24)?, word(28)?);
        let found = crc32c::crc32c_append(crc32c::crc32c(&head[..28]), data);
        let units = (data.len() / UNIT_BYTES) as u64;
        let fits = first_unit.checked_add(units).is_some_and(|end| end <= end_unit);
        let sound = found == crc && data.len().is_multiple_of(UNIT_BYTES);
        let placed = fits && from_unit <= first_unit;
        (sound && placed).then_some(Self { from_unit, first_unit, end_unit, state, data })
    }

    /// Where the part of the range ends that this one has answered: its data, and what is not in
    /// use before that.
    pub fn next_unit(&self) -> u64 {
        self.first_unit + (self.data.len() / UNIT_BYTES) as u64
    }

    /// Where the copy ends.
    pub fn end_unit(&self) -> u64 {
        self.end_unit
    }

    /// It is the first of a copy: the meta page.
    pub fn is_first(&self) -> bool {
        self.from_unit == 0
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
