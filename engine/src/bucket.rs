//! etcd's buckets, and the small ones' rows in memory.
//!
//! The store changes `Buckets`; a hash of everything holds a snapshot of it while it lasts. The key
//! bucket is not in here: its rows are in the memory tables and the page file. Iteration is always
//! in key order.

use std::sync::Arc;

pub(crate) mod changes;
mod chunk;

use chunk::Chunk;

use crate::limits::BUCKET_GROUP_CHUNKS_MAX;

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

/// The rows of all buckets but the key bucket; a clone is a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buckets {
    maps: [BucketMap; BUCKET_COUNT],
}

/// Sorted rows in chunks, and these in groups, so that a change copies one chunk, its group's list
/// and the list of groups: a few KiB and some hundred reference counts, however many rows there
/// are. No chunk and no group is empty.
#[derive(Debug, Clone, Default)]
struct BucketMap {
    groups: Arc<Vec<Listed<Group>>>,
}

type Group = Vec<Listed<Chunk>>;

/// A part of a list, with the beginning of its first key beside it: a search looks into few parts.
#[derive(Debug)]
struct Listed<T> {
    prefix: u64,
    part: Arc<T>,
}

/// Where a row stands, or belongs.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    group: usize,
    chunk: usize,
    row: usize,
}

impl Buckets {
    pub(crate) fn get(&self, bucket: Bucket, key: &[u8]) -> Option<&[u8]> {
        let map = &self.maps[bucket as usize];
        let place = map.find(key).ok()?;
        Some(map.groups[place.group].part[place.chunk].part.value(place.row))
    }

    /// Shows the value that is replaced, if there is one.
    pub(crate) fn put(
        &mut self,
        bucket: Bucket,
        key: &[u8],
        value: &[u8],
        replaced_value: impl FnOnce(&[u8]),
    ) {
        let map = &mut self.maps[bucket as usize];
        let found = map.find(key);
        let groups = Arc::make_mut(&mut map.groups);
        let (place, replaced) = match found {
            Ok(place) => (place, true),
            Err(place) => (place, false),
        };
        if groups.is_empty() {
            groups.push(Listed::new(vec![Listed::new(Chunk::default(), key)], key));
        }
        let is_last = place.group + 1 == groups.len();
        let listed = &mut groups[place.group];
        let group = Arc::make_mut(&mut listed.part);
        let is_last = is_last && place.chunk + 1 == group.len();
        let chunk = Arc::make_mut(&mut group[place.chunk].part);
        if replaced {
            replaced_value(chunk.value(place.row));
            chunk.remove(place.row);
        }
        chunk.insert(place.row, key, value);
        if place.row == 0 {
            group[place.chunk].prefix = prefix_of(key);
            if place.chunk == 0 {
                listed.prefix = prefix_of(key);
            }
        }
        let chunk = Arc::make_mut(&mut group[place.chunk].part);
        if !chunk.is_full() {
            return;
        }
        // Rows that come in ascending order leave full chunks behind.
        let at_end = is_last && !replaced && place.row + 1 == chunk.len();
        let right = chunk.split_off(if at_end { chunk.len() - 1 } else { chunk.len() / 2 });
        let right = Listed::new_with(right, |chunk| chunk.key(0));
        group.insert(place.chunk + 1, right);
        if group.len() > BUCKET_GROUP_CHUNKS_MAX {
            let right = group.split_off(if at_end { group.len() - 1 } else { group.len() / 2 });
            let right = Listed::new_with(right, |group| group[0].part.key(0));
            groups.insert(place.group + 1, right);
        }
    }

    /// Shows the value that is removed; false if there is none.
    pub(crate) fn delete(
        &mut self,
        bucket: Bucket,
        key: &[u8],
        removed_value: impl FnOnce(&[u8]),
    ) -> bool {
        let map = &mut self.maps[bucket as usize];
        let Ok(place) = map.find(key) else { return false };
        let groups = Arc::make_mut(&mut map.groups);
        let group = Arc::make_mut(&mut groups[place.group].part);
        let chunk = Arc::make_mut(&mut group[place.chunk].part);
        removed_value(chunk.value(place.row));
        chunk.remove(place.row);
        if chunk.len() > 0 {
            group[place.chunk].prefix = prefix_of(chunk.key(0));
        } else {
            group.remove(place.chunk);
        }
        match group.first().map(|chunk| chunk.prefix) {
            Some(prefix) => groups[place.group].prefix = prefix,
            None => {
                groups.remove(place.group);
            }
        }
        true
    }

    /// Rows from `start` on, in key order.
    pub(crate) fn iter_from<'a>(
        &'a self,
        bucket: Bucket,
        start: &[u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let map = &self.maps[bucket as usize];
        let place = map.find(start).unwrap_or_else(|place| place);
        let groups = map.groups.iter().skip(place.group);
        let chunks = groups.flat_map(|group| group.part.iter()).skip(place.chunk);
        let rows = chunks.flat_map(|chunk| chunk.part.rows());
        rows.skip(place.row)
    }

    /// A rough figure of the bytes on the heap.
    pub(crate) fn memory_bytes(&self) -> usize {
        let groups = self.maps.iter().flat_map(|map| map.groups.iter());
        let chunks = groups.flat_map(|group| group.part.iter());
        chunks.map(|chunk| chunk.part.memory_bytes() + 64).sum()
    }
}

impl BucketMap {
    /// The place of `key`, or the one where it belongs.
    fn find(&self, key: &[u8]) -> Result<Place, Place> {
        let prefix = prefix_of(key);
        let above = self.groups.partition_point(|group| {
            group.prefix < prefix || group.prefix == prefix && group.part[0].part.key(0) <= key
        });
        let group = above.saturating_sub(1);
        let Some(chunks) = self.groups.get(group) else { return Err(Place::default()) };
        let above = chunks.part.partition_point(|chunk| {
            chunk.prefix < prefix || chunk.prefix == prefix && chunk.part.key(0) <= key
        });
        let chunk = above.saturating_sub(1);
        match chunks.part[chunk].part.find(key) {
            Ok(row) => Ok(Place { group, chunk, row }),
            Err(row) => Err(Place { group, chunk, row }),
        }
    }
}

impl<T> Listed<T> {
    fn new(part: T, first: &[u8]) -> Self {
        Self { prefix: prefix_of(first), part: Arc::new(part) }
    }

    fn new_with(part: T, first: impl FnOnce(&T) -> &[u8]) -> Self {
        Self { prefix: prefix_of(first(&part)), part: Arc::new(part) }
    }
}

impl<T> Clone for Listed<T> {
    fn clone(&self) -> Self {
        Self { prefix: self.prefix, part: self.part.clone() }
    }
}

/// The first eight bytes as a number; shorter keys end in zeros. Orders like the keys, as far as it
/// goes.
fn prefix_of(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = key.len().min(8);
    bytes[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::limits::BUCKET_CHUNK_ROWS_MAX;
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
                let mut old = None;
                buckets.put(Bucket::Lease, &key, &value, |value| old = Some(value.to_vec()));
                assert_eq!(old.as_deref(), model.insert(key, value).as_ref().map(|v| &v[..]));
            } else {
                let mut old = None;
                buckets.delete(Bucket::Lease, &key, |value| old = Some(value.to_vec()));
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

    #[test]
    fn keys_that_begin_alike_or_are_short_are_kept_apart() {
        let mut buckets = Buckets::default();
        let mut model = BTreeMap::new();
        let mut prng = Prng::new(7);
        for _ in 0..20_000 {
            let mut key = vec![0; prng.below(4) as usize];
            if prng.chance(2, 3) {
                key.extend_from_slice(b"the same beginning");
                key.extend_from_slice(&prng.below(700).to_be_bytes()[6..]);
            }
            let value = vec![1; prng.below(300) as usize];
            if prng.chance(3, 5) {
                buckets.put(Bucket::AuthUsers, &key, &value, |_| {});
                model.insert(key, value);
            } else {
                let existed = buckets.delete(Bucket::AuthUsers, &key, |_| {});
                assert_eq!(existed, model.remove(&key).is_some());
            }
        }
        let rows = buckets.iter_from(Bucket::AuthUsers, b"");
        let expected = model.iter().map(|(key, value)| (&key[..], &value[..]));
        assert!(rows.eq(expected));
        for (key, value) in &model {
            assert_eq!(buckets.get(Bucket::AuthUsers, key), Some(&value[..]));
        }
    }

    #[test]
    fn many_rows_are_kept_in_order_whether_they_come_ascending_or_mixed() {
        let rows = 3 * (BUCKET_CHUNK_ROWS_MAX * BUCKET_GROUP_CHUNKS_MAX) as u64;
        let mut buckets = Buckets::default();
        for number in 0..rows {
            buckets.put(Bucket::Lease, &number.to_be_bytes(), b"ascending", |_| {});
            // An odd multiplier visits every number below a power of two once.
            let mixed = number.wrapping_mul(0x9e37_79b1) & 0xffff_ffff;
            buckets.put(Bucket::Auth, &mixed.to_be_bytes(), b"mixed", |_| {});
        }
        let groups = &buckets.maps[Bucket::Lease as usize].groups;
        assert!(groups.len() >= 3 && groups.len() <= 4, "{} groups, not dense", groups.len());
        for bucket in [Bucket::Lease, Bucket::Auth] {
            let keys: Vec<&[u8]> = buckets.iter_from(bucket, b"").map(|(key, _)| key).collect();
            assert_eq!(keys.len() as u64, rows);
            assert!(keys.is_sorted());
        }
        for number in 0..rows {
            assert!(buckets.delete(Bucket::Lease, &number.to_be_bytes(), |_| {}));
        }
        assert!(buckets.maps[Bucket::Lease as usize].groups.is_empty());
    }
}
