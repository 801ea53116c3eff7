//! File contents in memory, in shared blocks: copying a file image copies pointers only and zeros
//! cost nothing.
//!
//! Used by the in-memory disk alone. It must never know what is durable.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::file::BLOCK_BYTES;

/// A length and the blocks that were ever written; everything else reads as zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct SparseFile {
    len_bytes: u64,
    blocks: BTreeMap<u64, Arc<[u8; BLOCK_BYTES]>>,
}

impl SparseFile {
    pub(super) fn write(&mut self, offset_bytes: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (block, start, count) = span(offset_bytes + done as u64, bytes.len() - done);
            let target = self.blocks.entry(block).or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
            Arc::make_mut(target)[start..start + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
        self.len_bytes = self.len_bytes.max(offset_bytes + bytes.len() as u64);
    }

    pub(super) fn set_len(&mut self, len_bytes: u64) {
        if len_bytes < self.len_bytes {
            let (block, start, _) = span(len_bytes, 1);
            self.blocks.split_off(&(block + 1));
            if let Some(last) = self.blocks.get_mut(&block) {
                Arc::make_mut(last)[start..].fill(0);
            }
        }
        self.len_bytes = len_bytes;
    }

    pub(super) fn len(&self) -> u64 {
        self.len_bytes
    }

    /// Shorter than asked only at the end of the file.
    pub(super) fn read(&self, offset_bytes: u64, len_bytes: usize) -> Vec<u8> {
        let rest = self.len_bytes.saturating_sub(offset_bytes);
        let len_bytes = usize::try_from(rest).unwrap_or(usize::MAX).min(len_bytes);
        let mut bytes = vec![0; len_bytes];
        let mut done = 0;
        while done < len_bytes {
            let (block, start, count) = span(offset_bytes + done as u64, len_bytes - done);
            if let Some(source) = self.blocks.get(&block) {
                bytes[done..done + count].copy_from_slice(&source[start..start + count]);
            }
            done += count;
        }
        bytes
    }
}

/// The block of `offset_bytes`, the position in it, and how many of `len_bytes` lie in it.
fn span(offset_bytes: u64, len_bytes: usize) -> (u64, usize, usize) {
    let block = offset_bytes / BLOCK_BYTES as u64;
    let start = usize::try_from(offset_bytes % BLOCK_BYTES as u64).expect("below one block");
    (block, start, len_bytes.min(BLOCK_BYTES - start))
}
