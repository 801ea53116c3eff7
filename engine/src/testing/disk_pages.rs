//! A page source over a disk in memory.
//!
//! Tests and the simulator read views through it. On request it answers `Pending` before a page
//! comes, as the map does for pages that are not populated. It must never skip a checksum.

use std::collections::BTreeSet;

use super::mem_disk::MemDisk;
use super::prng::Prng;
use crate::error::EngineError;
use crate::page::node::DB_FILE;
use crate::page::{Fetch, PagePtr, PageSource, Ticket};

/// Reads pages from the current content of a [`MemDisk`].
pub struct DiskPages {
    disk: MemDisk,
    current: Vec<u8>,
    slow: Option<Prng>,
    /// First unit and checksum of pages that were asked for before.
    asked: BTreeSet<(u64, u32)>,
    next_ticket: u64,
}

impl DiskPages {
    /// Every page is ready at once.
    pub fn new(disk: &MemDisk) -> Self {
        Self {
            disk: disk.clone(),
            current: Vec::new(),
            slow: None,
            asked: BTreeSet::new(),
            next_ticket: 0,
        }
    }

    /// About half of the pages are pending when they are first asked for, and ready after.
    pub fn slow(disk: &MemDisk, seed: u64) -> Self {
        Self { slow: Some(Prng::new(seed)), ..Self::new(disk) }
    }
}

impl PageSource for DiskPages {
    fn get(&mut self, ptr: PagePtr) -> Result<Fetch<&[u8]>, EngineError> {
        if let Some(prng) = &mut self.slow
            && self.asked.insert((ptr.first_unit, ptr.crc))
            && prng.chance(1, 2)
        {
            self.next_ticket += 1;
            return Ok(Fetch::Pending(Ticket(self.next_ticket)));
        }
        let bytes = self.disk.read_at(DB_FILE, ptr.offset_bytes(), ptr.len_bytes as usize);
        self.current = bytes.unwrap_or_default();
        ptr.verify(&self.current)?;
        Ok(Fetch::Ready(&self.current))
    }
}
