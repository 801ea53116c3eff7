//! A page source over a disk in memory.
//!
//! Tests and the simulator read views through it. On request it answers `Pending` before a page
//! comes, as the map does for pages that are not populated. It must never skip a checksum.

use std::collections::BTreeSet;

use super::mem_disk::MemDisk;
use super::prng::Prng;
use crate::error::EngineError;
use crate::file::SharedFile;
use crate::page::node::DB_FILE;
use crate::page::{Fetch, PagePtr, PageSource, Ticket};

/// A device's faults, on every eighth page: the number draws which pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rot {
    /// A bit comes up changed.
    Flipped(u64),
    /// They cannot be read.
    Unreadable(u64),
}

/// Reads pages from the current content of a [`MemDisk`].
pub struct DiskPages {
    disk: MemDisk,
    /// The page file that is read; without one, the file of its name.
    file: Option<SharedFile>,
    current: Vec<u8>,
    slow: Option<Prng>,
    /// First unit and checksum of pages that were asked for before.
    asked: BTreeSet<(u64, u32)>,
    next_ticket: u64,
    rot: Option<Rot>,
}

impl DiskPages {
    /// Every page is ready at once.
    pub fn new(disk: &MemDisk) -> Self {
        Self {
            disk: disk.clone(),
            file: None,
            current: Vec::new(),
            slow: None,
            asked: BTreeSet::new(),
            next_ticket: 0,
            rot: None,
        }
    }

    /// About half of the pages are pending when they are first asked for, and ready after.
    pub fn slow(disk: &MemDisk, seed: u64) -> Self {
        Self { slow: Some(Prng::new(seed)), ..Self::new(disk) }
    }

    /// From now on the pages are those of `file`, whatever its name is; without one, of the file of
    /// the usual name.
    pub fn follow(&mut self, file: Option<&SharedFile>) {
        self.file = file.cloned();
    }

    /// From now on reads meet this, or nothing.
    pub fn set_rot(&mut self, rot: Option<Rot>) {
        self.rot = rot;
    }

    fn suffer(&mut self, ptr: PagePtr) -> Result<(), EngineError> {
        let meets = |which: u64| (ptr.first_unit ^ which).is_multiple_of(8);
        match self.rot {
            Some(Rot::Flipped(which)) if meets(which) => {
                let at = usize::try_from(which).unwrap_or(0) % self.current.len().max(1);
                if let Some(byte) = self.current.get_mut(at) {
                    *byte ^= 1 << (which % 7);
                }
                Ok(())
            }
            Some(Rot::Unreadable(which)) if meets(which) => {
                Err(EngineError::io(DB_FILE, "read", &std::io::Error::other("a bad sector")))
            }
            _ => Ok(()),
        }
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
        let (offset_bytes, len_bytes) = (ptr.offset_bytes(), ptr.len_bytes as usize);
        self.current = match &self.file {
            Some(SharedFile::Simulated(file)) => file.read_at(offset_bytes, len_bytes),
            _ => self.disk.read_at(DB_FILE, offset_bytes, len_bytes).unwrap_or_default(),
        };
        self.suffer(ptr)?;
        ptr.verify(&self.current)?;
        Ok(Fetch::Ready(&self.current))
    }
}
