//! The provided-buffer ring: receive buffers that the kernel picks when data has arrived, so idle
//! connections hold none.
//!
//! Used only by the `uring` driver, on its own thread. Every unsafe line that touches memory shared
//! with the kernel for receiving is in this file.
//!
//! Contract: the kernel writes into a buffer only between [`BufferRing::give_back`] of its id and
//! the completion that names it; [`BufferRing::bytes`] may be called only for an id taken from such
//! a completion and not given back since. The ring is unregistered before its memory goes.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{IoUring, Submitter};
use memmap2::MmapMut;

use crate::limits;

/// The one buffer group of a driver.
pub(super) const GROUP: u16 = 0;

pub(super) struct BufferRing {
    ring: MmapMut,
    memory: MmapMut,
    tail: u16,
}

impl BufferRing {
    /// Maps the memory and registers the ring with all buffers in it.
    pub(super) fn register(uring: &IoUring) -> io::Result<Self> {
        let entries = limits::RECEIVE_BUFFERS;
        let ring = MmapMut::map_anon(usize::from(entries) * size_of::<BufRingEntry>())?;
        let memory = MmapMut::map_anon(usize::from(entries) * limits::RECEIVE_BUFFER_BYTES)?;
        // SAFETY: the ring memory is page-aligned, of the announced size, and owned by the returned
        // value, whose owner unregisters it before dropping.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                ring.as_ptr() as u64,
                entries,
                GROUP,
                0,
            )?;
        }
        let mut buffers = Self { ring, memory, tail: 0 };
        for id in 0..entries {
            buffers.give_back(id);
        }
        Ok(buffers)
    }

    /// Ends the registration; the kernel uses no buffer afterwards.
    pub(super) fn unregister(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        submitter.unregister_buf_ring(GROUP)
    }

    /// The bytes that a completion placed in buffer `id`.
    pub(super) fn bytes(&self, id: u16, len_bytes: usize) -> &[u8] {
        let start = usize::from(id) * limits::RECEIVE_BUFFER_BYTES;
        &self.memory[start..start + len_bytes.min(limits::RECEIVE_BUFFER_BYTES)]
    }

    /// Makes buffer `id` available to the kernel again.
    pub(super) fn give_back(&mut self, id: u16) {
        let slot = usize::from(self.tail & (limits::RECEIVE_BUFFERS - 1));
        let start = usize::from(id) * limits::RECEIVE_BUFFER_BYTES;
        let addr = self.memory[start..].as_ptr() as u64;
        let base = self.ring.as_mut_ptr().cast::<BufRingEntry>();
        // SAFETY: `slot` is below the number of entries, so the entry lies inside the mapping,
        // which is page-aligned; the kernel reads it only after the tail below has passed it.
        unsafe {
            let entry = &mut *base.add(slot);
            entry.set_addr(addr);
            entry.set_len(limits::RECEIVE_BUFFER_BYTES as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `base` is the first entry of the registered ring, where the kernel keeps the
        // tail; it is 2-byte aligned and accessed atomically by both sides.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

const _: () = assert!(limits::RECEIVE_BUFFERS.is_power_of_two());
