//! The buffer of direct I/O: memory aligned to a disk block.
//!
//! Used by the log's writer, the checkpointer and every disk. It must never show bytes that were
//! not put into it since it was emptied.

use super::BLOCK_BYTES;

/// A growable byte buffer whose memory is aligned to [`BLOCK_BYTES`] and whose capacity is a
/// multiple of it, as direct I/O wants.
///
/// Invariant: `len_bytes` lie within `blocks`; what is behind them there is of no meaning, so that
/// a buffer used again is not zeroed first.
#[derive(Clone, Default)]
pub struct AlignedBuf {
    blocks: Vec<Block>,
    len_bytes: usize,
}

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

impl AlignedBuf {
    /// An empty buffer with room for `capacity_bytes`.
    pub fn with_capacity(capacity_bytes: usize) -> Self {
        Self { blocks: Vec::with_capacity(capacity_bytes.div_ceil(BLOCK_BYTES)), len_bytes: 0 }
    }

    /// A buffer of `len_bytes` zeros.
    pub fn zeroed(len_bytes: usize) -> Self {
        let mut buf = Self::default();
        buf.resize(len_bytes);
        buf
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len_bytes
    }

    /// True if nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Empties the buffer and keeps its memory.
    pub fn clear(&mut self) {
        self.len_bytes = 0;
    }

    /// Shrinks, or grows with zeros.
    pub fn resize(&mut self, len_bytes: usize) {
        let (old_len_bytes, used_bytes) = (self.len_bytes, self.blocks.len() * BLOCK_BYTES);
        self.grow(len_bytes);
        self.len_bytes = len_bytes;
        // Blocks that were added are zeros already.
        if let Some(again) = self.get_mut(old_len_bytes..len_bytes.min(used_bytes)) {
            again.fill(0);
        }
    }

    /// Appends bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.extend_from_parts(&[bytes]);
    }

    /// Appends the parts, one behind the other.
    pub fn extend_from_parts(&mut self, parts: &[&[u8]]) {
        let len_bytes = parts.iter().fold(0, |sum, part| sum + part.len());
        let mut rest = self.extend_unset(len_bytes);
        for part in parts {
            let (here, behind) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = behind;
        }
    }

    /// Appends `len_bytes` of no meaning, for the caller to overwrite all of them.
    pub fn extend_unset(&mut self, len_bytes: usize) -> &mut [u8] {
        let start = self.len_bytes;
        self.grow(start + len_bytes);
        self.len_bytes += len_bytes;
        &mut self[start..]
    }

    /// Makes room for `len_bytes` in all.
    fn grow(&mut self, len_bytes: usize) {
        let blocks = len_bytes.div_ceil(BLOCK_BYTES);
        if blocks > self.blocks.len() {
            self.blocks.resize(blocks, bytemuck::Zeroable::zeroed());
        }
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.blocks)[..self.len_bytes]
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.blocks)[..self.len_bytes]
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len_bytes)
    }
}

impl From<&[u8]> for AlignedBuf {
    fn from(bytes: &[u8]) -> Self {
        let mut buf = Self::with_capacity(bytes.len());
        buf.extend_from_slice(bytes);
        buf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_used_again_shows_nothing_of_its_past() {
        let mut buf = AlignedBuf::default();
        let mut model = Vec::new();
        let lengths = [1, 9_000, 4_096, 0, 5_000, 12_288, 3, 20_000, 8_191];
        for (round, len) in (1u8..).zip(lengths.into_iter().cycle().take(200)) {
            match round % 4 {
                0 => {
                    buf.clear();
                    model.clear();
                }
                1 => {
                    buf.resize(len);
                    model.resize(len, 0);
                }
                _ => {
                    let bytes = vec![round; len / 4];
                    buf.extend_from_parts(&[&[round], &bytes, &[], &[1, 2]]);
                    model.extend([&[round], &bytes[..], &[1, 2]].concat());
                }
            }
            assert!(buf[..] == model[..], "round {round}");
            assert!(buf.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
        }
    }
}
