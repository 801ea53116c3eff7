//! Opens a log: reads every segment, applies the tail rule, zeroes a torn tail, and makes sure that
//! what it has read is on the device.
//!
//! Called by boot, offline tools and tests through plain blocking file operations. The decisions
//! are `scan`'s, `replay`'s and `tail`'s; here they are only put in order. It must not change a
//! byte before the verdict is out, and nothing at all when it refuses.

use bytes::Bytes;
use etcore_engine::file::{
    AlignedBuf, BLOCK_BYTES, Disk, FileId, FileOp, FileOutput, OpenMode, run,
};
use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_proto::raftpb;
use prost::Message as _;

use super::error::WalError;
use super::name::{SPARE_SUFFIX, SegmentName};
use super::replay::Replay;
use super::scan::{Scan, Step};
use super::tail::{Action, Row, Situation, Stop, look_behind};
use crate::index::{Place, Places, TermRuns};
use crate::limits;
use crate::types::{HardState, LogIndex, SnapshotMark, Term};

/// How to open a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoverOptions {
    /// What the page file has applied durably: the log must reach it. 0 without a page file.
    pub applied: LogIndex,
    /// Bytes of entries at or below `applied` to keep in memory.
    pub window_bytes: u64,
    /// False only looks: nothing is cut and no spare removed.
    pub repair: bool,
}

/// What was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub file: String,
    /// Where its intact part ends.
    pub offset_bytes: u64,
    /// Length of the torn part.
    pub torn_bytes: u64,
}

/// A log, read. Goes on as a writer and a node.
#[derive(Debug)]
pub struct Recovered {
    /// The member and the cluster that wrote the log.
    pub metadata: raftpb::Metadata,
    /// The newest hard state; its commit may lag behind `applied`.
    pub hard_state: HardState,
    /// The position before the first entry that can be read, and its term.
    pub base: (LogIndex, Term),
    /// The last entry; equal to the base's index if there is none.
    pub last_index: LogIndex,
    /// Every snapshot mark, oldest first, whether or not its snapshot still exists.
    pub marks: Vec<SnapshotMark>,
    /// A torn tail that was cut off (or, without `repair`, would be).
    pub cut: Option<Cut>,
    pub(crate) parts: Parts,
}

impl Recovered {
    /// Moves everything that is left out, for the node.
    pub(crate) fn take(&mut self) -> Self {
        let empty = Self {
            metadata: self.metadata,
            hard_state: self.hard_state,
            base: self.base,
            last_index: self.last_index,
            marks: Vec::new(),
            cut: None,
            parts: Parts::default(),
        };
        std::mem::replace(self, empty)
    }
}

/// What the writer and the node take over.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) dir: String,
    pub(crate) metadata: Bytes,
    pub(crate) terms: TermRuns,
    pub(crate) entries: std::collections::VecDeque<raft::eraftpb::Entry>,
    pub(crate) places: Places,
    pub(crate) mark_segments: Vec<(LogIndex, u64)>,
    pub(crate) segments: Vec<SegmentName>,
    pub(crate) tail: Tail,
}

/// Where the writer goes on.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    pub(crate) file: Option<FileId>,
    /// Whole blocks of the file.
    pub(crate) capacity_bytes: u64,
    pub(crate) offset_bytes: u64,
    pub(crate) crc: u32,
    /// The block that `offset_bytes` lies in, up to it.
    pub(crate) block: Vec<u8>,
}

/// Reads the log in `dir` and makes it ready for appending.
///
/// Errors: whatever the tail rule refuses, missing segments, and failing files.
pub fn recover(
    disk: &mut dyn Disk,
    dir: &str,
    options: RecoverOptions,
) -> Result<Recovered, WalError> {
    let names = list(disk, dir)?;
    let segments = segment_names(dir, &names)?;
    let mut replay = Replay::new(options.applied.0, options.window_bytes);
    let mut crc = None;
    for (position, name) in segments.iter().enumerate() {
        let last = position + 1 == segments.len();
        let path = format!("{dir}/{name}");
        let file = open(disk, &path)?;
        let bytes = read_segment(disk, &path, file)?;
        let (stop, what, scan) = replay_segment(&bytes, crc, *name, &mut replay);
        let offset = scan.offset();
        crc = scan.crc();
        let (reaches_beyond_a_batch, later_batch) = look_behind(&bytes, offset, stop);
        let situation = Situation {
            stop,
            in_last_segment: last,
            reaches_beyond_a_batch,
            later_batch,
            keeps_the_committed: replay.last_index()
                >= replay.hard_state.commit.0.max(options.applied.0),
        };
        let row = situation.row();
        let refused = |row, what: &str| WalError::Refused {
            file: path.clone(),
            offset_bytes: offset as u64,
            what: what.to_owned(),
            row,
        };
        let what = match position.checked_sub(1) {
            // Which of the two is to blame cannot be seen from here.
            Some(before) if offset == 0 && row.action() == Action::Refuse => {
                let before = segments[before];
                format!("{what}, or one that does not continue {dir}/{before} as it ends now")
            }
            _ => what.to_owned(),
        };
        match row.action() {
            Action::Refuse => return Err(refused(row, &what)),
            Action::Continue => {
                run(disk, FileOp::Close { file }).map_err(|e| WalError::io("close", &path, &e))?;
                continue;
            }
            Action::End | Action::Cut => {}
        }
        replay.finish(row.action() == Action::Cut).map_err(|what| refused(Row::K, what))?;
        let cut = match row.action() {
            Action::Cut => Some(cut(disk, &path, file, &bytes, offset, options.repair)?),
            _ => None,
        };
        if options.repair && !is_on(SeededBug::UnsyncedTailTrusted) {
            harden(disk, dir, &path, file, &bytes[..offset])?;
        }
        if options.repair {
            remove_spares(disk, dir, &names)?;
        }
        let block = bytes[offset - offset % BLOCK_BYTES..offset].to_vec();
        let tail = Tail {
            file: Some(file),
            capacity_bytes: (bytes.len() - bytes.len() % BLOCK_BYTES) as u64,
            offset_bytes: offset as u64,
            crc: crc.unwrap_or(0),
            block,
        };
        return finish(dir, segments, replay, cut, tail, options.applied);
    }
    Err(WalError::NoLog { dir: dir.to_owned() })
}

/// True if `dir` holds at least one segment.
pub fn exists(disk: &mut dyn Disk, dir: &str) -> Result<bool, WalError> {
    Ok(list(disk, dir)?.iter().any(|name| SegmentName::parse(name).is_some()))
}

pub(crate) fn replay_segment<'a>(
    bytes: &'a [u8],
    crc: Option<u32>,
    name: SegmentName,
    replay: &mut Replay,
) -> (Stop, &'static str, Scan<'a>) {
    let mut scan = Scan::new(bytes, crc);
    // A sequence number past four billion segments was refused when the names were read, and a
    // segment longer than four gigabytes when it was.
    let segment = name.sequence as u32;
    loop {
        let before = (scan.offset(), scan.crc());
        match scan.step() {
            Step::Stop(stop, what) => {
                if scan.offset() == 0 && stop != Stop::BadMeaning {
                    // A segment gets its name only after its head is synced.
                    return (Stop::BadRecord, "a segment without a head", scan);
                }
                return (stop, what, scan);
            }
            Step::Record(offset, record) => {
                let place = Place { segment, offset_bytes: offset as u32 };
                if let Err(what) = replay.record(&record, place) {
                    scan.rewind(before.0, before.1);
                    return (Stop::BadMeaning, what, scan);
                }
            }
        }
    }
}

fn finish(
    dir: &str,
    segments: Vec<SegmentName>,
    replay: Replay,
    cut: Option<Cut>,
    tail: Tail,
    applied: LogIndex,
) -> Result<Recovered, WalError> {
    let terms = replay.terms.unwrap_or_else(|| TermRuns::new(0, 0));
    let (base, last) = (terms.base_index(), terms.last_index());
    if applied.0 < base || applied.0 > last {
        return Err(WalError::AppliedOutsideLog {
            dir: dir.to_owned(),
            applied: applied.0,
            first: base,
            last,
        });
    }
    let metadata = replay.metadata.unwrap_or_default();
    Ok(Recovered {
        metadata: raftpb::Metadata::decode(metadata.clone()).unwrap_or_default(),
        hard_state: replay.hard_state,
        base: (LogIndex(base), Term(terms.term(base).unwrap_or(0))),
        last_index: LogIndex(last),
        marks: replay.marks.iter().map(|(mark, _)| mark.clone()).collect(),
        cut,
        parts: Parts {
            dir: dir.to_owned(),
            metadata,
            terms,
            entries: replay.entries,
            places: replay.places,
            mark_segments: replay.marks.iter().map(|(mark, at)| (mark.index, *at)).collect(),
            segments,
            tail,
        },
    })
}

/// Zeroes everything behind `offset` with one synced write: a torn tail is shorter than a batch.
fn cut(
    disk: &mut dyn Disk,
    path: &str,
    file: FileId,
    bytes: &[u8],
    offset: usize,
    repair: bool,
) -> Result<Cut, WalError> {
    let dirty_end = bytes.iter().rposition(|byte| *byte != 0).map_or(offset, |at| at + 1);
    let start = offset - offset % BLOCK_BYTES;
    if repair {
        let mut data = AlignedBuf::from(&bytes[start..offset]);
        data.resize(dirty_end.next_multiple_of(BLOCK_BYTES) - start);
        run(disk, FileOp::Write { file, offset_bytes: start as u64, data, durable: true })
            .map_err(|error| WalError::io("zero the torn tail of", path, &error))?;
    }
    Ok(Cut {
        file: path.to_owned(),
        offset_bytes: offset as u64,
        torn_bytes: (dirty_end - offset) as u64,
    })
}

/// Makes durable what was read. A process that was killed, or whose sync failed, leaves a batch
/// and names behind that can be seen and are still lost with the power. Nobody may build on such:
/// a later batch would be synced, the one before it gone. Only the last batch can be of that kind,
/// and a sync after a failed one hardens nothing, so its bytes are written once more.
fn harden(
    disk: &mut dyn Disk,
    dir: &str,
    path: &str,
    file: FileId,
    intact: &[u8],
) -> Result<(), WalError> {
    let failed = |error| WalError::io("sync what was read of", path, &error);
    let batch = usize::try_from(limits::BATCH_BYTES_MAX).unwrap_or(usize::MAX);
    let start = intact.len().saturating_sub(batch);
    let start = start - start % BLOCK_BYTES;
    let mut data = AlignedBuf::from(&intact[start..]);
    data.resize(data.len().next_multiple_of(BLOCK_BYTES));
    let offset_bytes = start as u64;
    run(disk, FileOp::Write { file, offset_bytes, data, durable: true }).map_err(failed)?;
    run(disk, FileOp::Sync { file }).map_err(failed)?;
    run(disk, FileOp::SyncDir { name: dir.to_owned() }).map_err(failed)?;
    Ok(())
}

/// A spare that was never renamed holds nothing that was acknowledged.
fn remove_spares(disk: &mut dyn Disk, dir: &str, names: &[String]) -> Result<(), WalError> {
    for name in names.iter().filter(|name| name.ends_with(SPARE_SUFFIX)) {
        let path = format!("{dir}/{name}");
        run(disk, FileOp::Remove { name: path.clone() })
            .map_err(|error| WalError::io("remove", &path, &error))?;
    }
    Ok(())
}

pub(crate) fn list(disk: &mut dyn Disk, dir: &str) -> Result<Vec<String>, WalError> {
    match run(disk, FileOp::List { name: dir.to_owned() }) {
        Ok(FileOutput::Names(names)) => Ok(names),
        Ok(_) => Err(WalError::Driver { what: "List" }),
        Err(error) => Err(WalError::io("list", dir, &error)),
    }
}

/// The segments among `names`, without a gap.
pub(crate) fn segment_names(dir: &str, names: &[String]) -> Result<Vec<SegmentName>, WalError> {
    let mut segments: Vec<SegmentName> =
        names.iter().filter_map(|name| SegmentName::parse(name)).collect();
    segments.sort();
    if segments.is_empty() {
        return Err(WalError::NoLog { dir: dir.to_owned() });
    }
    for pair in segments.windows(2) {
        let expected = pair[0].sequence.wrapping_add(1);
        if pair[1].sequence != expected || u32::try_from(expected).is_err() {
            return Err(WalError::MissingSegment { dir: dir.to_owned(), missing: expected });
        }
    }
    Ok(segments)
}

pub(crate) fn open(disk: &mut dyn Disk, path: &str) -> Result<FileId, WalError> {
    let op = FileOp::Open { name: path.to_owned(), mode: OpenMode::Existing, direct: true };
    match run(disk, op) {
        Ok(FileOutput::Opened(file)) => Ok(file),
        Ok(_) => Err(WalError::Driver { what: "Open" }),
        Err(error) => Err(WalError::io("open", path, &error)),
    }
}

pub(crate) fn read_segment(
    disk: &mut dyn Disk,
    path: &str,
    file: FileId,
) -> Result<Vec<u8>, WalError> {
    let len_bytes = match run(disk, FileOp::Len { file }) {
        Ok(FileOutput::Len(len_bytes)) => len_bytes,
        Ok(_) => return Err(WalError::Driver { what: "Len" }),
        Err(error) => return Err(WalError::io("measure", path, &error)),
    };
    if len_bytes > limits::SEGMENT_FILE_BYTES_MAX {
        return Err(WalError::SegmentTooLong { file: path.to_owned(), len_bytes });
    }
    let mut bytes = Vec::with_capacity(len_bytes as usize);
    while (bytes.len() as u64) < len_bytes {
        let left = len_bytes - bytes.len() as u64;
        let len_bytes = left.min(limits::READ_BYTES) as usize;
        let op = FileOp::Read { file, offset_bytes: bytes.len() as u64, len_bytes };
        match run(disk, op) {
            Ok(FileOutput::Data(piece)) if piece.is_empty() => break,
            Ok(FileOutput::Data(piece)) => bytes.extend_from_slice(&piece),
            Ok(_) => return Err(WalError::Driver { what: "Read" }),
            Err(error) => return Err(WalError::io("read", path, &error)),
        }
    }
    Ok(bytes)
}
