//! etcd's buckets, and the small ones' rows in memory.
//!
//! The store changes `Buckets`, views hold a snapshot of it. The key bucket is not in here: its
//! rows are in the memory tables and the page file. Iteration is always in key order.

use std::sync::Arc;

use crate::limits::BUCKET_CHUNK_ROWS_MAX;

/// A named set of rows; the numbers are part of the file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Bucket {
    /// Revision to KeyValue.
    Key = 0,
    /// Consistent index and the like.
    Meta = 1,
    /// Leases.
    Lease = 2,
    /// Alarms.
    Alarm = 3,
    /// Cluster version and downgrade state.
    Cluster = 4,
    /// Members.
    Members = 5,
    /// Members that were removed.
    MembersRemoved = 6,
    /// Whether authentication is on, and its revision.
    Auth = 7,
    /// Users.
    AuthUsers = 8,
    /// Roles.
    AuthRoles = 9,
}

/// How many buckets there are.
pub const BUCKET_COUNT: usize = 10;

impl Bucket {
    /// All of them, in the order of their numbers.
    pub const ALL: [Bucket; BUCKET_COUNT] = [
        Bucket::Key,
        Bucket::Meta,
        Bucket::Lease,
        Bucket::Alarm,
        Bucket::Cluster,
        Bucket::Members,
        Bucket::MembersRemoved,
        Bucket::Auth,
        Bucket::AuthUsers,
        Bucket::AuthRoles,
    ];

    /// The name that etcd gives it.
    pub fn name(self) -> &'static str {
        match self {
            Bucket::Key => "key",
            Bucket::Meta => "meta",
            Bucket::Lease => "lease",
            Bucket::Alarm => "alarm",
            Bucket::Cluster => "cluster",
            Bucket::Members => "members",
            Bucket::MembersRemoved => "members_removed",
            Bucket::Auth => "auth",
            Bucket::AuthUsers => "authUsers",
            Bucket::AuthRoles => "authRoles",
        }
    }
}

/// A row of a small bucket.
#[derive(Debug, Clone)]
struct BucketRow {
    key: Arc<[u8]>,
    value: Arc<[u8]>,
}

/// The rows of all buckets but the key bucket; a clone is a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buckets {
    maps: [BucketMap; BUCKET_COUNT],
}

/// Sorted rows in chunks, so that a change copies one chunk and the list of chunks. No chunk is
/// empty.
#[derive(Debug, Clone, Default)]
struct BucketMap {
    chunks: Arc<Vec<Arc<Vec<BucketRow>>>>,
}

impl Buckets {
    pub(crate) fn get(&self, bucket: Bucket, key: &[u8]) -> Option<&[u8]> {
        let map = &self.maps[bucket as usize];
        let (chunk, row) = map.find(key).ok()?;
        Some(&map.chunks[chunk][row].value)
    }

    /// Returns the replaced value.
    pub(crate) fn put(&mut self, bucket: Bucket, key: &[u8], value: &[u8]) -> Option<Arc<[u8]>> {
        let map = &mut self.maps[bucket as usize];
        let position = map.find(key);
        let chunks = Arc::make_mut(&mut map.chunks);
        let row = BucketRow { key: key.into(), value: value.into() };
        match position {
            Ok((chunk, at)) => {
                let old = std::mem::replace(&mut Arc::make_mut(&mut chunks[chunk])[at], row);
                Some(old.value)
            }
            Err((chunk, at)) => {
                if chunks.is_empty() {
                    chunks.push(Arc::new(Vec::new()));
                }
                let rows = Arc::make_mut(&mut chunks[chunk]);
                rows.insert(at, row);
                if rows.len() > BUCKET_CHUNK_ROWS_MAX {
                    let right = rows.split_off(BUCKET_CHUNK_ROWS_MAX / 2);
                    chunks.insert(chunk + 1, Arc::new(right));
                }
                None
            }
        }
    }

    /// Returns the removed value.
    pub(crate) fn delete(&mut self, bucket: Bucket, key: &[u8]) -> Option<Arc<[u8]>> {
        let map = &mut self.maps[bucket as usize];
        let (chunk, at) = map.find(key).ok()?;
        let chunks = Arc::make_mut(&mut map.chunks);
        let rows = Arc::make_mut(&mut chunks[chunk]);
        let row = rows.remove(at);
        if rows.is_empty() {
            chunks.remove(chunk);
        }
        Some(row.value)
    }

    /// Rows from `start` on, in key order.
    pub(crate) fn iter_from<'a>(
        &'a self,
        bucket: Bucket,
        start: &[u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let map = &self.maps[bucket as usize];
        let (chunk, at) = map.find(start).unwrap_or_else(|position| position);
        let rows = map.chunks.iter().skip(chunk).flat_map(|rows| rows.iter());
        rows.skip(at).map(|row| (&*row.key, &*row.value))
    }

    /// A rough figure of the bytes on the heap.
    pub(crate) fn memory_bytes(&self) -> usize {
        let rows = self.maps.iter().flat_map(|map| map.chunks.iter()).flat_map(|rows| rows.iter());
        rows.map(|row| size_of::<BucketRow>() + 32 + row.key.len() + row.value.len()).sum()
    }
}

impl BucketMap {
    /// Chunk and row of `key`, or where it belongs.
    fn find(&self, key: &[u8]) -> Result<(usize, usize), (usize, usize)> {
        let above = self.chunks.partition_point(|rows| &*rows[0].key <= key);
        let chunk = above.saturating_sub(1);
        let Some(rows) = self.chunks.get(chunk) else { return Err((0, 0)) };
        match rows.binary_search_by(|row| (*row.key).cmp(key)) {
            Ok(at) => Ok((chunk, at)),
            Err(at) => Err((chunk, at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing::prng::Prng;

    #[test]
    fn buckets_behave_like_sorted_maps_and_clones_are_snapshots() {
        let mut prng = Prng::new(5);
        let (mut buckets, mut model) = (Buckets::default(), BTreeMap::new());
        let mut snapshot = (buckets.clone(), model.clone());
        for step in 0..5_000u64 {
            let key = prng.below(600).to_be_bytes();
            let value = step.to_le_bytes();
            if prng.chance(2, 3) {
                let old = buckets.put(Bucket::Lease, &key, &value);
                assert_eq!(old.as_deref(), model.insert(key, value).as_ref().map(|v| &v[..]));
            } else {
                let old = buckets.delete(Bucket::Lease, &key);
                assert_eq!(old.as_deref(), model.remove(&key).as_ref().map(|v| &v[..]));
            }
            assert_eq!(buckets.get(Bucket::Lease, &key), model.get(&key).map(|v| &v[..]));
            if step % 500 == 0 {
                snapshot = (buckets.clone(), model.clone());
            }
        }
        for (buckets, model) in [(&buckets, &model), (&snapshot.0, &snapshot.1)] {
            let start = 100u64.to_be_bytes();
            let rows: Vec<_> = buckets.iter_from(Bucket::Lease, &start).collect();
            let expected: Vec<_> = model.range(start..).map(|(k, v)| (&k[..], &v[..])).collect();
            assert_eq!(rows, expected);
        }
        assert_eq!(buckets.iter_from(Bucket::Alarm, b"").count(), 0);
    }
}
