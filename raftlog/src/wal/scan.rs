//! Reads the records of one segment, one after the other, and says what stopped it.
//!
//! Called by recovery and by the inspector. It knows frames, checksums and the order of a segment's
//! head; it must not know what the records mean to raft.

use etcore_engine::seeded_bug::{SeededBug, is_on};

use super::record::{FRAME_BYTES, Frame, Record, RecordKind, decode};
use super::tail::{SECTOR_BYTES, Stop, has_lost_sector, is_zero, zero_length};

/// A cursor over one segment.
///
/// Invariants: `offset` is a multiple of eight and at the start of a frame; `crc` is the rolling
/// checksum of every record before it.
pub(crate) struct Scan<'a> {
    bytes: &'a [u8],
    offset: usize,
    /// `None` before the first segment of the log: its head says where the checksum stands.
    crc: Option<u32>,
    records_seen: u64,
    /// The last record closed a batch.
    batch_closed: bool,
}

/// One step of a scan.
#[derive(Debug)]
pub(crate) enum Step {
    /// An intact record and the byte its frame starts at.
    Record(usize, Record),
    /// Nothing more can be read, and why.
    Stop(Stop, &'static str),
}

impl<'a> Scan<'a> {
    /// Starts at the head of a segment; `crc` is where the previous segment ended.
    pub(crate) fn new(bytes: &'a [u8], crc: Option<u32>) -> Self {
        Self { bytes, offset: 0, crc, records_seen: 0, batch_closed: false }
    }

    /// Starts in the middle of a segment, or `at_head` at its start. The first record's stored
    /// checksum is believed, and those behind it are checked against it.
    pub(crate) fn resume(bytes: &'a [u8], at_head: bool) -> Self {
        const PAST_THE_HEAD: u64 = 2;
        let records_seen = if at_head { 0 } else { PAST_THE_HEAD };
        Self { bytes, offset: 0, crc: None, records_seen, batch_closed: false }
    }

    /// The first byte not yet read.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// The rolling checksum of everything read.
    pub(crate) fn crc(&self) -> Option<u32> {
        self.crc
    }

    /// Takes back the last record, which turned out to be impossible.
    pub(crate) fn rewind(&mut self, offset: usize, crc: Option<u32>) {
        self.offset = offset;
        self.crc = crc;
    }

    /// The next record. After a stop every further call stops again.
    pub(crate) fn step(&mut self) -> Step {
        assert!(self.offset.is_multiple_of(FRAME_BYTES), "a frame begins at a multiple of eight");
        let rest = &self.bytes[self.offset..];
        let Some((word, rest)) = rest.split_first_chunk::<FRAME_BYTES>() else {
            return match is_zero(rest) {
                true => Step::Stop(Stop::Clean, "the end of the file"),
                false => Step::Stop(Stop::BadLength, "a piece of a length word"),
            };
        };
        let word = u64::from_le_bytes(*word);
        if word == 0 {
            return match zero_length(self.bytes, self.offset) {
                // The sector holds the batch's bytes up to here, so it did reach the device.
                Stop::ZeroLength
                    if !self.batch_closed && !self.offset.is_multiple_of(SECTOR_BYTES) =>
                {
                    let stop = Stop::ZeroLengthInDirtySector;
                    Step::Stop(stop, "a zero length in the middle of a batch")
                }
                stop => Step::Stop(stop, "a zero length"),
            };
        }
        let frame = Frame::from_word(word);
        if !frame.is_canonical(word) {
            return Step::Stop(Stop::BadLength, "a length word that no program writes");
        }
        if frame.record_bytes + frame.pad_bytes > rest.len() as u64 {
            return Step::Stop(Stop::BadLength, "a length that reaches past the end of the file");
        }
        // Both fit in the file, hence in usize.
        let (record_bytes, pad_bytes) = (frame.record_bytes as usize, frame.pad_bytes as usize);
        let end = self.offset + FRAME_BYTES + record_bytes + pad_bytes;
        let (record, padding) = rest[..record_bytes + pad_bytes].split_at(record_bytes);
        let (segment, start) = (self.bytes, self.offset);
        let is_torn = || has_lost_sector(segment, start, end);
        match self.check(record, padding, is_torn) {
            Ok(record) => {
                let offset = self.offset;
                self.offset = end;
                self.records_seen += 1;
                self.batch_closed = record.kind == RecordKind::State;
                Step::Record(offset, record)
            }
            Err((Stop::BadRecord, _)) if has_lost_sector(self.bytes, self.offset, end) => {
                Step::Stop(Stop::LostSector, "a record with a zero sector in it")
            }
            Err((stop, what)) => Step::Stop(stop, what),
        }
    }

    fn check(
        &mut self,
        bytes: &[u8],
        padding: &[u8],
        is_torn: impl Fn() -> bool,
    ) -> Result<Record, (Stop, &'static str)> {
        if !is_zero(padding) {
            return Err((Stop::BadRecord, "padding that is not zero"));
        }
        let record = decode(bytes).ok_or((Stop::BadRecord, "bytes that are no record"))?;
        let at_head = self.records_seen == 0;
        let next = match self.crc {
            None if at_head && record.kind == RecordKind::Crc => record.crc,
            None if !at_head => record.crc,
            Some(crc) => crc32c::crc32c_append(crc, &record.data),
            None => return Err((Stop::BadMeaning, "a segment without a checksum at its head")),
        };
        if record.crc != next && !(is_on(SeededBug::TornTailTaken) && is_torn()) {
            return Err((Stop::BadRecord, "a record that does not match its checksum"));
        }
        let expected = match self.records_seen {
            0 => record.kind == RecordKind::Crc,
            1 => record.kind == RecordKind::Metadata,
            _ => !matches!(record.kind, RecordKind::Crc | RecordKind::Metadata),
        };
        if !expected {
            return Err((Stop::BadMeaning, "a record of a kind that does not belong here"));
        }
        // What the record says, which is the same.
        self.crc = Some(record.crc);
        Ok(record)
    }
}
