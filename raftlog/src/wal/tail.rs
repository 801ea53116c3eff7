//! The tail rule: what recovery does where a segment stops making sense.
//!
//! Called by recovery with what it saw; answers with a row of the table below, which FORMAT.md
//! repeats with the argument for each row. It must never allow a cut that could forget an
//! acknowledged entry: in doubt it refuses, and a person decides.

use super::record::{FRAME_BYTES, Frame, RecordKind, decode, head_agrees};
use crate::limits::BATCH_BYTES_MAX;

/// The smallest unit a device writes whole: FORMAT.md's assumption about torn writes.
pub(crate) const SECTOR_BYTES: usize = 512;

/// What stopped the scan of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The file ends here, or holds nothing but zeros from here on.
    Clean,
    /// The length word and the rest of its sector are zero, but bytes follow in later sectors.
    ZeroLength,
    /// The length word is zero, but its sector goes on with other bytes, or holds the beginning of
    /// the same batch: no torn write does that.
    ZeroLengthInDirtySector,
    /// The length word is one no encoder writes, or reaches past the end of the file.
    BadLength,
    /// The record does not match its checksum and a whole sector of it is zero.
    LostSector,
    /// The record does not match its checksum.
    BadRecord,
    /// The record is intact and says something impossible.
    BadMeaning,
}

impl Stop {
    /// Every value, for the test that enumerates the table.
    pub const ALL: [Self; 7] = [
        Self::Clean,
        Self::ZeroLength,
        Self::ZeroLengthInDirtySector,
        Self::BadLength,
        Self::LostSector,
        Self::BadRecord,
        Self::BadMeaning,
    ];

    /// True if a write that was cut off by a power failure looks like this.
    fn looks_torn(self) -> bool {
        matches!(self, Self::ZeroLength | Self::LostSector)
    }
}

/// Everything the verdict depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Situation {
    /// What stopped the scan.
    pub stop: Stop,
    /// No later segment exists.
    pub in_last_segment: bool,
    /// Something other than zeros lies more than one maximum batch behind the stop.
    pub reaches_beyond_a_batch: bool,
    /// A whole batch ended behind the stop and another one began after it.
    pub later_batch: bool,
    /// The intact entries reach every commit index read and the page file's applied index.
    pub keeps_the_committed: bool,
}

/// A row of the table. The letter is its name in FORMAT.md and in error texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Row {
    /// End of a segment that has a successor: go on there.
    A,
    /// End of the log.
    B,
    /// End of the log, but entries known to be committed are missing: refuse.
    C,
    /// A torn last batch, never acknowledged: cut.
    D,
    /// Looks torn, but the cut would lose committed entries: refuse.
    E,
    /// Looks torn, but a later batch exists, so this one was synced: refuse.
    F,
    /// Looks torn, but reaches further than one write: refuse.
    G,
    /// Damage in a segment that has a successor: refuse.
    H,
    /// A length word damaged in a way no torn write causes: refuse.
    I,
    /// A record damaged in a way no torn write causes: refuse.
    J,
    /// An intact record that contradicts the ones before it: refuse.
    K,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read the next segment.
    Continue,
    /// The log ends here.
    End,
    /// The log ends here once the rest is zeroed.
    Cut,
    /// Start nothing; tell the operator.
    Refuse,
}

impl Situation {
    /// The one row that matches.
    pub fn row(self) -> Row {
        match self.stop {
            Stop::Clean if !self.in_last_segment => Row::A,
            Stop::Clean if self.keeps_the_committed => Row::B,
            Stop::Clean => Row::C,
            Stop::BadMeaning => Row::K,
            _ if !self.in_last_segment => Row::H,
            Stop::BadLength | Stop::ZeroLengthInDirtySector => Row::I,
            Stop::BadRecord => Row::J,
            Stop::ZeroLength | Stop::LostSector if self.reaches_beyond_a_batch => Row::G,
            Stop::ZeroLength | Stop::LostSector if self.later_batch => Row::F,
            Stop::ZeroLength | Stop::LostSector if !self.keeps_the_committed => Row::E,
            Stop::ZeroLength | Stop::LostSector => Row::D,
        }
    }
}

impl Row {
    /// What the row asks for.
    pub fn action(self) -> Action {
        match self {
            Self::A => Action::Continue,
            Self::B => Action::End,
            Self::D => Action::Cut,
            _ => Action::Refuse,
        }
    }

    /// What happened and what to do, for the operator. Empty for rows that refuse nothing.
    pub fn advice(self) -> &'static str {
        match self {
            Self::A | Self::B | Self::D => "",
            Self::C | Self::E => {
                "entries that were committed are missing; restore the file from its device or \
                 remove this member from the cluster and add it again empty"
            }
            Self::F | Self::G | Self::H | Self::I | Self::J => {
                "bytes that were acknowledged are damaged, and cutting them off would forget \
                 writes; check the device, then restore this data directory from a copy or remove \
                 the member from the cluster and add it again empty"
            }
            Self::K => {
                "the log contradicts itself; keep a copy of the data directory for a report, then \
                 remove the member from the cluster and add it again empty"
            }
        }
    }
}

/// Looks at the bytes from `offset` on, where the scan of `segment` stopped for a reason that may
/// be a torn write, and fills in the two flags that depend on them.
pub(crate) fn look_behind(segment: &[u8], offset: usize, stop: Stop) -> (bool, bool) {
    if !stop.looks_torn() {
        return (false, false);
    }
    let reach = offset.saturating_add(BATCH_BYTES_MAX as usize).min(segment.len());
    let beyond = !is_zero(&segment[reach..]);
    (beyond, has_later_batch(&segment[offset..reach]))
}

/// True if somewhere in `bytes` stands a state record, which ends a batch, with another record
/// behind it. Records start on multiples of eight bytes.
fn has_later_batch(bytes: &[u8]) -> bool {
    const STATE_BYTES_MAX: u64 = 64;
    let word_at = |at: usize| {
        let word = bytes.get(at..at + FRAME_BYTES)?;
        Some(u64::from_le_bytes(word.try_into().expect("eight bytes")))
    };
    (0..bytes.len()).step_by(FRAME_BYTES).any(|at| {
        let Some(word) = word_at(at).filter(|word| *word != 0) else { return false };
        let frame = Frame::from_word(word);
        if frame.record_bytes > STATE_BYTES_MAX || !frame.is_canonical(word) {
            return false;
        }
        let record_end = at + FRAME_BYTES + frame.record_bytes as usize;
        let next = at + frame.total_bytes() as usize;
        bytes.get(at + FRAME_BYTES..record_end).and_then(decode).is_some_and(|record| {
            record.kind == RecordKind::State && word_at(next).is_some_and(|word| word != 0)
        })
    })
}

/// True if the damaged record in `start..end` may be the work of a torn write: a whole sector of it
/// is zero, and what reached the device of its first bytes agrees with its length word. The sector
/// that holds `start` did reach it: had it been lost, the length word would be zero.
pub(crate) fn has_lost_sector(segment: &[u8], start: usize, end: usize) -> bool {
    /// Longest head of a record.
    const HEAD_BYTES: usize = 19;
    let first = (start + 1).next_multiple_of(SECTOR_BYTES);
    let is_lost =
        |sector: usize| is_zero(&segment[sector..(sector + SECTOR_BYTES).min(segment.len())]);
    if !(first..end).step_by(SECTOR_BYTES).any(is_lost) {
        return false;
    }
    let mut head_end = (start + FRAME_BYTES + HEAD_BYTES).min(end);
    if first < head_end && is_lost(first) {
        head_end = first;
    }
    let word = segment[start..start + FRAME_BYTES].try_into().expect("eight bytes");
    let frame = Frame::from_word(u64::from_le_bytes(word));
    head_agrees(&segment[start + FRAME_BYTES..head_end], frame.record_bytes)
}

/// What a zero length word at `offset` means.
pub(crate) fn zero_length(segment: &[u8], offset: usize) -> Stop {
    let sector_end = (offset + 1).next_multiple_of(SECTOR_BYTES).min(segment.len());
    if !is_zero(&segment[offset..sector_end]) {
        Stop::ZeroLengthInDirtySector
    } else if is_zero(&segment[sector_end..]) {
        Stop::Clean
    } else {
        Stop::ZeroLength
    }
}

/// True if all of `bytes` are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn situations() -> impl Iterator<Item = Situation> {
        Stop::ALL.into_iter().flat_map(|stop| {
            (0..16).map(move |bits| Situation {
                stop,
                in_last_segment: bits & 1 != 0,
                reaches_beyond_a_batch: bits & 2 != 0,
                later_batch: bits & 4 != 0,
                keeps_the_committed: bits & 8 != 0,
            })
        })
    }

    /// The table once more, each row as its own condition, independent of `row`'s order.
    fn matches(row: Row, s: Situation) -> bool {
        use Stop::*;
        let torn = matches!(s.stop, ZeroLength | LostSector) && s.in_last_segment;
        let short = torn && !s.reaches_beyond_a_batch;
        match row {
            Row::A => s.stop == Clean && !s.in_last_segment,
            Row::B => s.stop == Clean && s.in_last_segment && s.keeps_the_committed,
            Row::C => s.stop == Clean && s.in_last_segment && !s.keeps_the_committed,
            Row::D => short && !s.later_batch && s.keeps_the_committed,
            Row::E => short && !s.later_batch && !s.keeps_the_committed,
            Row::F => short && s.later_batch,
            Row::G => torn && s.reaches_beyond_a_batch,
            Row::H => !matches!(s.stop, Clean | BadMeaning) && !s.in_last_segment,
            Row::I => matches!(s.stop, BadLength | ZeroLengthInDirtySector) && s.in_last_segment,
            Row::J => s.stop == BadRecord && s.in_last_segment,
            Row::K => s.stop == BadMeaning,
        }
    }

    const ROWS: [Row; 11] =
        [Row::A, Row::B, Row::C, Row::D, Row::E, Row::F, Row::G, Row::H, Row::I, Row::J, Row::K];

    #[test]
    fn every_situation_matches_exactly_one_row_and_every_row_is_reached() {
        let mut reached = std::collections::BTreeSet::new();
        let mut count = 0;
        for situation in situations() {
            let rows: Vec<Row> = ROWS.into_iter().filter(|row| matches(*row, situation)).collect();
            assert_eq!(rows, [situation.row()], "{situation:?}");
            reached.insert(format!("{:?}", rows[0]));
            count += 1;
        }
        assert_eq!(count, 7 * 16);
        assert_eq!(reached.len(), ROWS.len());
    }

    #[test]
    fn a_cut_needs_every_condition_at_once() {
        for situation in situations().filter(|s| s.row().action() == Action::Cut) {
            assert!(situation.stop.looks_torn());
            assert!(situation.in_last_segment && situation.keeps_the_committed);
            assert!(!situation.reaches_beyond_a_batch && !situation.later_batch);
        }
        for row in ROWS {
            assert_eq!(row.advice().is_empty(), row.action() != Action::Refuse);
        }
    }

    #[test]
    fn format_md_names_every_row() {
        let document = include_str!("../../FORMAT.md");
        for row in ROWS {
            assert!(document.contains(&format!("\n| {row:?} | ")), "{row:?}");
        }
    }
}
