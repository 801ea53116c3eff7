//! Pages of the page file: how they are pointed to, how they are fetched, and the node layout.
//!
//! Readers go through a [`PageSource`]; the tree, the checkpointer and recovery use
//! `node::NodeRef`. Nothing here may trust a byte that its checksum has not covered, or
//! an offset it has not compared with the page's length.

pub(crate) mod meta;
pub(crate) mod node;
pub(crate) mod space;

use crate::error::EngineError;

/// Allocation unit of the page file, in bytes.
pub const UNIT_BYTES: usize = 4096;

/// Bytes of a stored [`PagePtr`].
pub(crate) const PAGE_PTR_BYTES: usize = 24;

/// Where a page is and what it must contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PagePtr {
    /// Position in the file, in units; 0 and 1 are the meta pages.
    pub first_unit: u64,
    /// Units it occupies.
    pub units: u32,
    /// Bytes that count, from its start; the rest is padding.
    pub len_bytes: u32,
    /// CRC32C of those bytes.
    pub crc: u32,
    /// 0: stored as it is. Others are reserved.
    pub codec: u8,
    /// 0 for a leaf, one more than its children for an inner node.
    pub level: u8,
}

/// Names something being fetched; asking again before it is there gives an equal ticket or a later
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A value, or what to wait for before asking again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch<T> {
    /// It is here.
    Ready(T),
    /// It is being fetched; every caller can park.
    Pending(Ticket),
}

/// Access to verified pages, one value per reading thread.
pub trait PageSource {
    /// The page's bytes, `ptr.len_bytes` many, checked against `ptr.crc`. Never blocks.
    fn get(&mut self, ptr: PagePtr) -> Result<Fetch<&[u8]>, EngineError>;
}

/// A source for stores that have no page file: any page asked for is an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPages;

impl PageSource for NoPages {
    fn get(&mut self, ptr: PagePtr) -> Result<Fetch<&[u8]>, EngineError> {
        Err(ptr.corrupt("there is no page file"))
    }
}

impl PagePtr {
    /// First byte in the file.
    pub fn offset_bytes(&self) -> u64 {
        self.first_unit * UNIT_BYTES as u64
    }

    pub(crate) fn write_to(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first_unit.to_le_bytes());
        out.extend_from_slice(&self.units.to_le_bytes());
        out.extend_from_slice(&self.len_bytes.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
        out.extend_from_slice(&[self.codec, self.level, 0, 0]);
    }

    /// Reads a pointer and checks that its fields can be true.
    pub(crate) fn read_from(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; PAGE_PTR_BYTES] = bytes.get(..PAGE_PTR_BYTES)?.try_into().ok()?;
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let ptr = Self {
            first_unit: u64::from(word(0)) | u64::from(word(4)) << 32,
            units: word(8),
            len_bytes: word(12),
            crc: word(16),
            codec: bytes[20],
            level: bytes[21],
        };
        let fits = u64::from(ptr.len_bytes).div_ceil(UNIT_BYTES as u64) == u64::from(ptr.units);
        let placed = ptr.first_unit >= 2 && ptr.first_unit < 1 << 48 && ptr.units > 0;
        (fits && placed && ptr.codec == 0).then_some(ptr)
    }
}
