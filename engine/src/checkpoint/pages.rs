//! The pages a checkpoint works with: loaded ones, new ones, and those still missing.
//!
//! Owned by the checkpointer. It must never write a page, only collect what is to be written.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::EngineError;
use crate::file::AlignedBuf;
use crate::page::node::NodeRef;
use crate::page::space::{Extent, Space};
use crate::page::{PagePtr, UNIT_BYTES};

/// Invariant: a cached page's bytes were verified against, or made for, exactly its pointer.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) space: Space,
    cache: BTreeMap<u64, (PagePtr, Arc<[u8]>)>,
    /// First units of pages made by this checkpoint; they are in the cache until written.
    fresh: BTreeMap<u64, bool>,
    /// Number of the checkpoint under way.
    version: u64,
}

impl Pages {
    pub(super) fn new(space: Space) -> Self {
        Self { space, cache: BTreeMap::new(), fresh: BTreeMap::new(), version: 0 }
    }

    /// Starts checkpoint `version`; pages that none of `held` reaches can be overwritten.
    pub(super) fn begin(&mut self, version: u64, held: &[u64]) {
        self.version = version;
        self.space.release(held);
        self.space.trim();
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The page's bytes, if they are here.
    pub(super) fn get(&self, ptr: PagePtr) -> Option<Arc<[u8]>> {
        let (cached, bytes) = self.cache.get(&ptr.first_unit)?;
        debug_assert!(cached.verify(bytes).is_ok(), "a cached page is what its pointer says");
        (*cached == ptr).then(|| bytes.clone())
    }

    /// Adds a page that was read.
    pub(super) fn loaded(&mut self, ptr: PagePtr, bytes: Vec<u8>) -> Result<(), EngineError> {
        ptr.verify(&bytes)?;
        NodeRef::new(ptr, &bytes)?;
        self.cache.insert(ptr.first_unit, (ptr, bytes.into()));
        Ok(())
    }

    /// Makes a page. `keep`: it will be needed by the next checkpoint.
    pub(super) fn add(&mut self, bytes: Vec<u8>, level: u8, keep: bool) -> PagePtr {
        let units = bytes.len().div_ceil(UNIT_BYTES);
        let units = u32::try_from(units).expect("rows are bounded by ROW_BYTES_MAX");
        let ptr = PagePtr {
            first_unit: self.space.allocate(u64::from(units)),
            units,
            len_bytes: u32::try_from(bytes.len()).expect("rows are bounded by ROW_BYTES_MAX"),
            crc: crc32c::crc32c(&bytes),
            codec: 0,
            level,
        };
        self.cache.insert(ptr.first_unit, (ptr, bytes.into()));
        self.fresh.insert(ptr.first_unit, keep);
        ptr
    }

    /// Makes the page with the list of free extents, `len_bytes` long, its own place taken out.
    pub(super) fn add_space(&mut self, len_bytes: usize) -> PagePtr {
        let units = len_bytes.div_ceil(UNIT_BYTES);
        let first_unit = self.space.allocate(units as u64);
        let bytes = self.space.encode(len_bytes);
        let ptr = PagePtr {
            first_unit,
            units: u32::try_from(units).expect("2^32 extents do not fit in memory"),
            len_bytes: u32::try_from(len_bytes).expect("2^27 extents are a sign of a leak"),
            crc: crc32c::crc32c(&bytes),
            codec: 0,
            level: 0,
        };
        self.cache.insert(first_unit, (ptr, bytes.into()));
        self.fresh.insert(first_unit, false);
        ptr
    }

    /// Drops a page from the tree of this checkpoint.
    pub(super) fn free(&mut self, ptr: PagePtr, written_by: u64) {
        self.space.free(Extent {
            first_unit: ptr.first_unit,
            units: u64::from(ptr.units),
            allocated: written_by,
            freed: self.version,
        });
        self.cache.remove(&ptr.first_unit);
    }

    /// From unit `after` on, the next new pages that lie side by side, about `len_bytes` of them
    /// and padded to units: where they go, their bytes, and the unit behind them. `None` at the
    /// end.
    pub(super) fn run_from(&self, after: u64, len_bytes: usize) -> Option<(u64, AlignedBuf, u64)> {
        let first = *self.fresh.range(after..).next()?.0;
        let (mut next, mut bytes) = (first, AlignedBuf::default());
        while self.fresh.contains_key(&next) {
            let Some((ptr, page)) = self.cache.get(&next) else { break };
            if !bytes.is_empty() && bytes.len() + page.len() > len_bytes {
                break;
            }
            bytes.extend_from_slice(page);
            bytes.resize(bytes.len().next_multiple_of(UNIT_BYTES));
            next += u64::from(ptr.units);
        }
        Some((first, bytes, next))
    }

    /// Keeps what the next checkpoint needs first: the inner nodes and last leaves just written.
    pub(super) fn end(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        self.cache.retain(|unit, _| fresh.get(unit).copied().unwrap_or(false));
    }
}
