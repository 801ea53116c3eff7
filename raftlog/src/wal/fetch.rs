//! Reads older entries back from a segment, for peers that are far behind.
//!
//! Called by the replica with a `Fetch` of the node: the plan is one read, which any driver or the
//! background shard may carry out, and `decode` turns its bytes into entries. It must only ever be
//! asked for entries that are on disk; what it returns is checked against checksums and terms.

use etcore_proto::raftpb;
use prost::Message as _;

use super::scan::{Scan, Step};
use super::writer::Writer;
use crate::convert;
use crate::limits;
use crate::node::Fetch;
use crate::types::{EntryKind, LogEntry, LogIndex, Term};

/// One read of one segment that brings entries back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPlan {
    /// The segment, relative to the disk's root.
    pub name: String,
    /// First byte; a multiple of eight.
    pub offset_bytes: u64,
    /// How many bytes to read. The file may be shorter.
    pub len_bytes: usize,
    low: LogIndex,
    high: LogIndex,
}

impl Writer {
    /// How to read the entries that `fetch` asks for, or the first of them. `None` if they are not
    /// in the files any more: answer with no entries.
    pub fn plan(&self, fetch: &Fetch) -> Option<ReadPlan> {
        let (low, high) = (fetch.low.0, fetch.high.0);
        let (segment, low_bytes) = self.place(low)?;
        let here = |index: u64| {
            self.place(index).filter(|(other, _)| *other == segment).map(|(_, offset)| offset)
        };
        // One record earlier, whose stored checksum vouches for the rest. In front of the first
        // entry of a segment stands its head.
        let offset_bytes = low.checked_sub(1).and_then(here).unwrap_or(0).min(low_bytes);
        let (mut end_index, mut end_bytes) = (low + 1, here(low + 1));
        while end_index < high
            && let Some(next) = here(end_index + 1)
            && next.saturating_sub(low_bytes) <= fetch.bytes_max.min(limits::BATCH_BYTES_MAX)
        {
            (end_index, end_bytes) = (end_index + 1, Some(next));
        }
        let end_bytes = end_bytes.filter(|end| *end > low_bytes);
        // The last entry of a segment ends where nobody wrote down, but within a batch.
        let end_bytes = end_bytes.unwrap_or(low_bytes + limits::BATCH_BYTES_MAX);
        Some(ReadPlan {
            name: format!("{}/{segment}", self.dir()),
            offset_bytes,
            len_bytes: usize::try_from(end_bytes - offset_bytes).ok()?,
            low: fetch.low,
            high: LogIndex(end_index),
        })
    }
}

impl ReadPlan {
    /// The entries in `bytes`, from the first one asked for and without a gap. Empty if the bytes
    /// are damaged: the caller reports that and gives the node no entries.
    pub fn decode(&self, bytes: &[u8]) -> Vec<LogEntry> {
        let mut scan = Scan::resume(bytes, self.offset_bytes == 0);
        let mut entries: Vec<LogEntry> = Vec::new();
        while let Step::Record(_, record) = scan.step() {
            if record.kind != super::RecordKind::Entry {
                continue;
            }
            let Some(entry) = raftpb::Entry::decode(record.data).ok().and_then(placed) else {
                return Vec::new();
            };
            if entry.index < self.low || entry.index >= self.high {
                continue;
            }
            // Overwritten entries stand before those that replaced them.
            let at = usize::try_from(entry.index.0 - self.low.0).unwrap_or(usize::MAX);
            if at <= entries.len() {
                entries.truncate(at);
                entries.push(entry);
            }
        }
        entries
    }
}

fn placed(entry: raftpb::Entry) -> Option<LogEntry> {
    let entry = convert::entry_from_wire(entry)?;
    let kind: EntryKind = convert::kind(&entry);
    Some(LogEntry { index: LogIndex(entry.index), term: Term(entry.term), kind, data: entry.data })
}
