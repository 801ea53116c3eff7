//! Makes a new log.
//!
//! Called by boot, once in a member's life, with plain blocking file operations. The first segment
//! is complete and synced before it gets its name: a crash before that leaves no log.

use etcore_engine::file::{AlignedBuf, BLOCK_BYTES, Disk, FileOp, FileOutput, OpenMode, run};
use etcore_proto::raftpb;
use prost::Message as _;

use super::error::WalError;
use super::name::{SPARE_SUFFIX, SegmentName};
use super::record::{self, RecordKind};
use super::recovery::{exists, list};
use crate::limits;
use crate::types::{HardState, LogEntry};

/// What a new log begins with.
#[derive(Debug, Clone, Copy)]
pub struct NewLog<'a> {
    /// The member and the cluster that the log belongs to.
    pub metadata: raftpb::Metadata,
    /// The first entries; see [`crate::bootstrap`].
    pub entries: &'a [LogEntry],
    /// The first hard state; empty for a member that joins.
    pub hard_state: HardState,
    /// Length of the segment.
    pub segment_bytes: u64,
}

/// Creates `dir` and the first segment in it.
///
/// Errors: a log is there already, or files fail.
pub fn create(disk: &mut dyn Disk, dir: &str, log: NewLog<'_>) -> Result<(), WalError> {
    let io = |what, error: &std::io::Error| WalError::io(what, dir, error);
    run(disk, FileOp::CreateDir { name: dir.to_owned() }).map_err(|e| io("create", &e))?;
    if exists(disk, dir)? {
        return Err(WalError::Exists { dir: dir.to_owned() });
    }
    // Left over from a creation that did not end.
    for name in list(disk, dir)?.iter().filter(|name| name.ends_with(SPARE_SUFFIX)) {
        run(disk, FileOp::Remove { name: format!("{dir}/{name}") })
            .map_err(|e| io("remove a left-over in", &e))?;
    }
    let name = SegmentName { sequence: 0, first_index: 0 };
    let (from, to) = (format!("{dir}/{:016x}{SPARE_SUFFIX}", 0), format!("{dir}/{name}"));
    let open = FileOp::Open { name: from.clone(), mode: OpenMode::CreateNew, direct: true };
    let FileOutput::Opened(file) = run(disk, open).map_err(|e| io("create a segment in", &e))?
    else {
        return Err(WalError::Driver { what: "Open" });
    };
    let data = first_batch(&log);
    for (what, op) in [
        ("fill a segment in", FileOp::ZeroFill { file, len_bytes: log.segment_bytes }),
        ("write", FileOp::Write { file, offset_bytes: 0, data, durable: true }),
        ("close a segment in", FileOp::Close { file }),
        ("rename a segment in", FileOp::Rename { from, to }),
        ("sync", FileOp::SyncDir { name: dir.to_owned() }),
    ] {
        run(disk, op).map_err(|error| io(what, &error))?;
    }
    // The directory's own name, and those above it, may be new as well.
    let mut below = dir;
    while !below.is_empty() {
        let parent = below.rsplit_once('/').map_or("", |(parent, _)| parent);
        run(disk, FileOp::SyncDir { name: parent.to_owned() })
            .map_err(|error| WalError::io("sync", parent, &error))?;
        below = parent;
    }
    Ok(())
}

/// Head, mark of the empty log, entries and hard state, in whole blocks.
fn first_batch(log: &NewLog<'_>) -> AlignedBuf {
    let mut buf = AlignedBuf::default();
    let mut crc = 0;
    record::encode_crc(&mut buf, &mut crc);
    let metadata = log.metadata.encode_to_vec();
    record::encode(&mut buf, RecordKind::Metadata, &mut crc, &metadata, &[]);
    let mark = raftpb::WalSnapshot { index: Some(0), term: Some(0), conf_state: None };
    record::encode(&mut buf, RecordKind::Snapshot, &mut crc, &mark.encode_to_vec(), &[]);
    for entry in log.entries {
        let (kind, term, index) = (entry.kind as u8, entry.term.0, entry.index.0);
        record::encode_entry(&mut buf, &mut crc, kind, term, index, &entry.data);
    }
    let state = log.hard_state;
    if state != HardState::default() {
        record::encode_state(&mut buf, &mut crc, state.term.0, state.vote, state.commit.0);
    }
    buf.resize(buf.len().next_multiple_of(BLOCK_BYTES));
    assert!(buf.len() as u64 <= log.segment_bytes.min(limits::BATCH_BYTES_MAX));
    buf
}
