//! Changes of rows of the small buckets, one after the other in one piece of memory: what the next
//! checkpoint writes, and what an open transaction takes back.
//!
//! The store and its transactions append; the checkpointer reads. Nothing is looked up in here, so
//! adding a change costs a copy and no allocation of its own.

use super::Bucket;

/// See the module text. Of one row there may be many changes; the last one counts.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    bytes: Vec<u8>,
    rows: Vec<Row>,
}

/// Key and value follow each other in `bytes`, up to the next row's.
#[derive(Debug, Clone, Copy)]
struct Row {
    start: usize,
    key_bytes: u32,
    bucket: Bucket,
    is_removed: bool,
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change<'a> {
    pub(crate) bucket: Bucket,
    pub(crate) key: &'a [u8],
    /// `None`: the row is removed.
    pub(crate) value: Option<&'a [u8]>,
}

impl Changes {
    pub(crate) fn push(&mut self, bucket: Bucket, key: &[u8], value: Option<&[u8]>) {
        let key_bytes = u32::try_from(key.len()).expect("keys are limited to far less");
        let start = self.bytes.len();
        self.rows.push(Row { start, key_bytes, bucket, is_removed: value.is_none() });
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or_default());
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Leaves the first `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        if let Some(first) = self.rows.get(len) {
            self.bytes.truncate(first.start);
            self.rows.truncate(len);
        }
    }

    pub(crate) fn get(&self, at: usize) -> Change<'_> {
        let row = self.rows[at];
        let end = self.rows.get(at + 1).map_or(self.bytes.len(), |next| next.start);
        let (key, value) = self.bytes[row.start..end].split_at(row.key_bytes as usize);
        Change { bucket: row.bucket, key, value: (!row.is_removed).then_some(value) }
    }

    /// The last change of each row, by bucket and key.
    pub(crate) fn last_of_each(&self) -> Vec<Change<'_>> {
        let mut changes: Vec<Change<'_>> = (0..self.len()).rev().map(|at| self.get(at)).collect();
        // Stable: of a row's changes the last comes first, and stays.
        changes.sort_by_key(|change| (change.bucket, change.key));
        changes.dedup_by_key(|change| (change.bucket, change.key));
        changes
    }

    /// Bytes on the heap.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.rows.capacity() * size_of::<Row>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_change_of_a_row_counts_and_later_ones_can_be_taken_back() {
        let mut changes = Changes::default();
        changes.push(Bucket::Lease, b"b", Some(b"1"));
        changes.push(Bucket::Auth, b"b", Some(b""));
        changes.push(Bucket::Lease, b"a", None);
        changes.push(Bucket::Lease, b"b", Some(b"22"));
        let change = |bucket, key, value| Change { bucket, key, value };
        let kept = [
            change(Bucket::Lease, &b"a"[..], None),
            change(Bucket::Lease, b"b", Some(&b"22"[..])),
            change(Bucket::Auth, b"b", Some(b"")),
        ];
        assert_eq!(changes.last_of_each(), kept);
        let len = changes.len();
        changes.push(Bucket::Auth, b"b", None);
        changes.push(Bucket::Lease, b"", Some(b"x"));
        assert_eq!(changes.get(len), change(Bucket::Auth, b"b", None));
        changes.truncate(len);
        changes.truncate(len + 1);
        assert_eq!(changes.last_of_each(), kept);
        changes.truncate(0);
        assert!(changes.is_empty() && changes.last_of_each().is_empty());
    }
}
