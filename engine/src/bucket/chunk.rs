//! A few rows of a bucket in one piece of memory: copying them costs one allocation or two, and no
//! reference count a row.
//!
//! Only the bucket's map uses it. Rows are in key order; it must never be asked for a row that is
//! not there.

use crate::limits::{BUCKET_CHUNK_BYTES_MAX, BUCKET_CHUNK_ROWS_MAX};

/// Keys and values one after the other, and where they end.
#[derive(Debug, Clone, Default)]
pub(super) struct Chunk {
    bytes: Vec<u8>,
    ends: Vec<Ends>,
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    key: u32,
    value: u32,
}

impl Chunk {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// True if it is to be split.
    pub(super) fn is_full(&self) -> bool {
        self.len() > BUCKET_CHUNK_ROWS_MAX
            || self.len() > 1 && self.bytes.len() > BUCKET_CHUNK_BYTES_MAX
    }

    pub(super) fn key(&self, row: usize) -> &[u8] {
        &self.bytes[self.start(row)..self.ends[row].key as usize]
    }

    pub(super) fn value(&self, row: usize) -> &[u8] {
        &self.bytes[self.ends[row].key as usize..self.ends[row].value as usize]
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        (0..self.len()).map(|row| (self.key(row), self.value(row)))
    }

    /// The row of `key`, or the one before which it belongs.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Makes a row before `row`.
    pub(super) fn insert(&mut self, row: usize, key: &[u8], value: &[u8]) {
        let start = self.start(row);
        let (old_len, more) = (self.bytes.len(), key.len() + value.len());
        self.bytes.resize(old_len + more, 0);
        self.bytes.copy_within(start..old_len, start + more);
        self.bytes[start..start + key.len()].copy_from_slice(key);
        self.bytes[start + key.len()..start + more].copy_from_slice(value);
        for ends in &mut self.ends[row..] {
            ends.key += length(more);
            ends.value += length(more);
        }
        let ends = Ends { key: length(start + key.len()), value: length(start + more) };
        self.ends.insert(row, ends);
    }

    /// Removes a row.
    pub(super) fn remove(&mut self, row: usize) {
        let (start, end) = (self.start(row), self.ends[row].value as usize);
        self.bytes.drain(start..end);
        self.ends.remove(row);
        for ends in &mut self.ends[row..] {
            ends.key -= length(end - start);
            ends.value -= length(end - start);
        }
    }

    /// Takes the rows from `row` on away.
    pub(super) fn split_off(&mut self, row: usize) -> Self {
        let start = self.start(row);
        let mut right = Self { bytes: self.bytes.split_off(start), ends: self.ends.split_off(row) };
        for ends in &mut right.ends {
            ends.key -= length(start);
            ends.value -= length(start);
        }
        right
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<Ends>()
    }

    fn start(&self, row: usize) -> usize {
        row.checked_sub(1).map_or(0, |before| self.ends[before].value as usize)
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("rows are limited to less than 2^30 bytes, and few are this long")
}
