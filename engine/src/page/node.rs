//! The layout of a tree node: header, cell offsets, cells.
//!
//! Written by the checkpointer, read by every descent. All numbers are little-endian; FORMAT.md
//! has the diagram. A node that contradicts itself is an error value naming its place in the file.

use super::{PAGE_PTR_BYTES, PagePtr};
use crate::error::{Corruption, EngineError};

/// The page file, relative to the data directory.
pub(crate) const DB_FILE: &str = "etcore.db";

const LEVEL: usize = 0;
const BUCKET: usize = LEVEL + 1;
const COUNT: usize = BUCKET + 1;
const LEN: usize = COUNT + 2;
const VERSION: usize = LEN + 4;
pub(crate) const HEADER_BYTES: usize = VERSION + 8;
/// Bytes of an entry of the offset table.
pub(crate) const OFFSET_BYTES: usize = 4;
/// Length of the key and of the value, before both.
pub(crate) const LEAF_CELL_BYTES: usize = 8;
/// Length of the key and the pointer, before the key.
pub(crate) const INNER_CELL_BYTES: usize = 4 + PAGE_PTR_BYTES;

/// Key and value.
pub(crate) type RowRef<'a> = (&'a [u8], &'a [u8]);

/// A checked view of a node's bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeRef<'a> {
    ptr: PagePtr,
    bytes: &'a [u8],
    count: usize,
}

impl PagePtr {
    pub(crate) fn corrupt(&self, what: &'static str) -> EngineError {
        EngineError::corrupt(DB_FILE, self.offset_bytes(), Corruption::Structure(what))
    }

    /// Compares `bytes`, the page's whole content, with the checksum.
    pub(crate) fn verify(&self, bytes: &[u8]) -> Result<(), EngineError> {
        if bytes.len() != self.len_bytes as usize {
            let what = Corruption::Truncated;
            return Err(EngineError::corrupt(DB_FILE, self.offset_bytes(), what));
        }
        let found = crc32c::crc32c(bytes);
        if found == self.crc {
            return Ok(());
        }
        let what = Corruption::Checksum { expected: self.crc, found };
        Err(EngineError::corrupt(DB_FILE, self.offset_bytes(), what))
    }
}

impl<'a> NodeRef<'a> {
    /// `bytes` were verified against `ptr`.
    pub(crate) fn new(ptr: PagePtr, bytes: &'a [u8]) -> Result<Self, EngineError> {
        let header = bytes.get(..HEADER_BYTES).ok_or_else(|| ptr.corrupt("a node is too short"))?;
        let count = usize::from(u16::from_le_bytes([header[COUNT], header[COUNT + 1]]));
        let node = Self { ptr, bytes, count };
        if header[LEVEL] != ptr.level {
            return Err(ptr.corrupt("a node's level is not the one its parent names"));
        }
        if node.word(LEN) != Some(ptr.len_bytes) || count == 0 {
            return Err(ptr.corrupt("a node's header contradicts its pointer"));
        }
        Ok(node)
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Number of the checkpoint that wrote it.
    pub(crate) fn version(&self) -> u64 {
        let low = self.word(VERSION).unwrap_or(0);
        let high = self.word(VERSION + 4).unwrap_or(0);
        u64::from(low) | u64::from(high) << 32
    }

    pub(crate) fn bucket(&self) -> u8 {
        self.bytes[BUCKET]
    }

    pub(crate) fn key(&self, index: usize) -> Result<&'a [u8], EngineError> {
        let cell = self.cell(index)?;
        let head = if self.ptr.level == 0 { LEAF_CELL_BYTES } else { INNER_CELL_BYTES };
        let len = self.word(cell).ok_or_else(|| self.outside())? as usize;
        self.slice(cell + head, len)
    }

    /// Key and value of a leaf's cell.
    pub(crate) fn row(&self, index: usize) -> Result<RowRef<'a>, EngineError> {
        if self.ptr.level != 0 {
            return Err(self.ptr.corrupt("an inner node where a leaf belongs"));
        }
        let cell = self.cell(index)?;
        let key_len = self.word(cell).ok_or_else(|| self.outside())? as usize;
        let value_len = self.word(cell + 4).ok_or_else(|| self.outside())? as usize;
        let key = self.slice(cell + LEAF_CELL_BYTES, key_len)?;
        Ok((key, self.slice(cell + LEAF_CELL_BYTES + key_len, value_len)?))
    }

    /// The pointer of an inner node's cell.
    pub(crate) fn child(&self, index: usize) -> Result<PagePtr, EngineError> {
        if self.ptr.level == 0 {
            return Err(self.ptr.corrupt("a leaf where an inner node belongs"));
        }
        let bytes = self.slice(self.cell(index)? + 4, PAGE_PTR_BYTES)?;
        let child = PagePtr::read_from(bytes)
            .ok_or_else(|| self.ptr.corrupt("a child pointer cannot be true"))?;
        if child.level + 1 != self.ptr.level {
            return Err(self.ptr.corrupt("a child pointer skips a level"));
        }
        Ok(child)
    }

    /// The first cell whose key is not below `key`.
    pub(crate) fn lower_bound(&self, key: &[u8]) -> Result<usize, EngineError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle)? < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// The child under which `key` belongs.
    pub(crate) fn child_index(&self, key: &[u8]) -> Result<usize, EngineError> {
        let at = self.lower_bound(key)?;
        let exact = at < self.count && self.key(at)? == key;
        Ok(if exact { at } else { at.saturating_sub(1) })
    }

    fn cell(&self, index: usize) -> Result<usize, EngineError> {
        assert!(index < self.count, "cell {index} of {}", self.count);
        let at = self.word(HEADER_BYTES + index * OFFSET_BYTES);
        at.map(|at| at as usize).ok_or_else(|| self.outside())
    }

    fn slice(&self, start: usize, len: usize) -> Result<&'a [u8], EngineError> {
        let end = start.checked_add(len).ok_or_else(|| self.outside())?;
        self.bytes.get(start..end).ok_or_else(|| self.outside())
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn outside(&self) -> EngineError {
        self.ptr.corrupt("a cell lies outside of its node")
    }
}

/// Builds the bytes of a node cell by cell; keys ascend.
#[derive(Debug, Default)]
pub(crate) struct NodeBuilder {
    offsets: Vec<u32>,
    cells: Vec<u8>,
}

impl NodeBuilder {
    pub(crate) fn push_row(&mut self, key: &[u8], value: &[u8]) {
        self.begin(key);
        self.cells.extend_from_slice(&u32_len(value).to_le_bytes());
        self.cells.extend_from_slice(key);
        self.cells.extend_from_slice(value);
    }

    pub(crate) fn push_child(&mut self, key: &[u8], child: PagePtr) {
        self.begin(key);
        child.write_to(&mut self.cells);
        self.cells.extend_from_slice(key);
    }

    /// Length of the node with the cells so far.
    pub(crate) fn len_bytes(&self) -> usize {
        HEADER_BYTES + self.offsets.len() * OFFSET_BYTES + self.cells.len()
    }

    /// The node's bytes; the builder is empty afterwards.
    pub(crate) fn finish(&mut self, level: u8, bucket: u8, version: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len_bytes());
        let count = u16::try_from(self.offsets.len()).expect("nodes are split long before");
        bytes.extend_from_slice(&[level, bucket]);
        bytes.extend_from_slice(&count.to_le_bytes());
        let len = u32::try_from(self.len_bytes()).expect("rows are bounded by ROW_BYTES_MAX");
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&version.to_le_bytes());
        let base = HEADER_BYTES + self.offsets.len() * OFFSET_BYTES;
        let base = u32::try_from(base).expect("at most 65,535 offsets");
        for offset in &self.offsets {
            bytes.extend_from_slice(&(base + offset).to_le_bytes());
        }
        bytes.extend_from_slice(&self.cells);
        self.offsets.clear();
        self.cells.clear();
        bytes
    }

    fn begin(&mut self, key: &[u8]) {
        let offset = u32::try_from(self.cells.len()).expect("rows are bounded by ROW_BYTES_MAX");
        self.offsets.push(offset);
        self.cells.extend_from_slice(&u32_len(key).to_le_bytes());
    }
}

fn u32_len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("rows are bounded by ROW_BYTES_MAX")
}
