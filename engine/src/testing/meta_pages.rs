//! Which meta page of a page file counts.
//!
//! For the simulator, which damages it: a member gets on with the other one. Reads only.

use super::mem_disk::MemDisk;
use crate::page::UNIT_BYTES;
use crate::page::meta::Meta;
use crate::page::node::DB_FILE;

/// Where the newest meta page lies in the file, in bytes, if both pages are sound and follow one
/// another.
pub fn newest_of_two(disk: &MemDisk) -> Option<u64> {
    let page = |slot: u64| {
        let bytes = disk.read_at(DB_FILE, slot * UNIT_BYTES as u64, UNIT_BYTES)?;
        Meta::decode(&bytes, slot).ok()
    };
    let (even, odd) = (page(0)?, page(1)?);
    let (newest, older) = if even.checkpoint > odd.checkpoint { (even, odd) } else { (odd, even) };
    (older.checkpoint + 1 == newest.checkpoint).then(|| newest.offset_bytes())
}
