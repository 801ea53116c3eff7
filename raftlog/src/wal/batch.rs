//! One write to the log while it is being put together.
//!
//! Called by the writer only. A batch starts with the bytes of the block it begins in, so that
//! whole blocks are written; it must never change those bytes, which may be acknowledged already.

use etcore_engine::file::{AlignedBuf, BLOCK_BYTES};

use super::name::SegmentName;
use super::record;
use crate::limits;
use crate::types::{BatchNumber, HardState};

/// Room kept for the state record that ends the batch.
const STATE_ROOM_BYTES: u64 = 96;

/// A batch.
///
/// Invariants: `start_bytes` and `limit_bytes` are multiples of a block; the buffer never outgrows
/// `limit_bytes`.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) segment: SegmentName,
    /// True if this is the first batch of its segment, which is still a spare without its name.
    pub(super) begins_segment: bool,
    /// Where in the segment the buffer goes.
    pub(super) start_bytes: u64,
    pub(super) buf: AlignedBuf,
    /// Everything up to this number is on disk once the batch is.
    pub(super) number: BatchNumber,
    pub(super) has_records: bool,
    /// Snapshot marks in it.
    pub(super) marks: usize,
    limit_bytes: u64,
}

impl Batch {
    /// Continues a segment of `capacity_bytes` behind `block`, the used part of its last block.
    pub(super) fn continuing(
        segment: SegmentName,
        offset_bytes: u64,
        capacity_bytes: u64,
        block: &[u8],
        mut buf: AlignedBuf,
    ) -> Self {
        assert_eq!(offset_bytes % BLOCK_BYTES as u64, block.len() as u64);
        buf.clear();
        buf.extend_from_slice(block);
        let start_bytes = offset_bytes - block.len() as u64;
        assert!(start_bytes.is_multiple_of(BLOCK_BYTES as u64), "a batch begins with a block");
        Self {
            segment,
            begins_segment: false,
            start_bytes,
            buf,
            number: BatchNumber::default(),
            has_records: false,
            marks: 0,
            limit_bytes: capacity_bytes.saturating_sub(start_bytes).min(limits::BATCH_BYTES_MAX),
        }
    }

    /// Begins a segment with its head: checksum, metadata and hard state.
    pub(super) fn beginning(
        segment: SegmentName,
        capacity_bytes: u64,
        metadata: &[u8],
        state: HardState,
        crc: &mut u32,
        buf: AlignedBuf,
    ) -> Self {
        let mut batch = Self::continuing(segment, 0, capacity_bytes, &[], buf);
        batch.begins_segment = true;
        record::encode_crc(&mut batch.buf, crc);
        record::encode(&mut batch.buf, record::RecordKind::Metadata, crc, metadata, &[]);
        batch.state(state, crc);
        batch
    }

    /// Where the next record goes in the segment.
    pub(super) fn offset_bytes(&self) -> u64 {
        self.start_bytes + self.buf.len() as u64
    }

    /// Bytes that records may still take.
    pub(super) fn room_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.buf.len() as u64 + STATE_ROOM_BYTES)
    }

    /// Ends the batch: a state record, and zeros up to the end of the block. Returns the offset
    /// behind the last record and copies the used part of the last block to `block`.
    pub(super) fn close(&mut self, state: HardState, crc: &mut u32, block: &mut Vec<u8>) -> u64 {
        self.state(state, crc);
        let end = self.offset_bytes();
        let used = self.buf.len();
        block.clear();
        block.extend_from_slice(&self.buf[used - used % BLOCK_BYTES..]);
        self.buf.resize(used.next_multiple_of(BLOCK_BYTES));
        assert!(self.buf.len() as u64 <= self.limit_bytes, "a batch outgrew its segment");
        end
    }

    /// An empty state, before the first term, is not written; etcd does the same.
    fn state(&mut self, state: HardState, crc: &mut u32) {
        if state != HardState::default() {
            let (term, vote, commit) = (state.term.0, state.vote, state.commit.0);
            record::encode_state(&mut self.buf, crc, term, vote, commit);
        }
    }
}
