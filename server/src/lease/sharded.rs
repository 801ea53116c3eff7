//! A hash map that never moves all of its entries at once, and that can be walked piece by piece.
//!
//! The lessor keeps its leases and attachments in such maps. A plain map of a million entries is
//! copied as a whole when it grows, which takes tens of milliseconds; here only one of a thousand
//! parts is. Which part an entry is in depends on its key alone. The order within a part means
//! nothing, and nothing may depend on it.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

use super::Key;

/// Parts of a map. A power of two.
pub(super) const SHARDS: usize = 1024;
const _: () = assert!(SHARDS.is_power_of_two());

/// What says into which part a key belongs.
pub(super) trait Shard {
    /// A number whose upper bits differ between keys.
    fn mixed(&self) -> u64;

    fn shard(&self) -> usize {
        usize::try_from(self.mixed() >> (u64::BITS - SHARDS.trailing_zeros())).unwrap_or(0)
    }
}

/// The odd number that is nearest to 2^64 divided by the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Shard for i64 {
    fn mixed(&self) -> u64 {
        let id = self.cast_unsigned();
        (id ^ id >> 32).wrapping_mul(FACTOR)
    }
}

impl Shard for [u8] {
    fn mixed(&self) -> u64 {
        let (words, rest) = self.as_chunks::<8>();
        let add = |sum: u64, word: u64| (sum.rotate_left(23) ^ word).wrapping_mul(FACTOR);
        let sum = words.iter().fold(0, |sum, word| add(sum, u64::from_le_bytes(*word)));
        rest.iter().fold(sum, |sum, byte| add(sum, u64::from(*byte) + 1))
    }
}

impl Shard for Key {
    fn mixed(&self) -> u64 {
        self[..].mixed()
    }
}

/// See the module text. Invariant: `len` is the sum of the parts' lengths.
#[derive(Debug, Clone)]
pub(super) struct Sharded<K, V> {
    shards: Vec<HashMap<K, V>>,
    len: usize,
}

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| HashMap::new()).collect(), len: 0 }
    }
}

impl<K: Hash + Eq + Shard, V> Sharded<K, V> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get<Q: Hash + Eq + Shard + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards[key.shard()].get(key)
    }

    pub(super) fn get_key_value<Q: Hash + Eq + Shard + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.shards[key.shard()].get_key_value(key)
    }

    pub(super) fn get_mut<Q: Hash + Eq + Shard + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.shards[key.shard()].get_mut(key)
    }

    pub(super) fn contains_key<Q: Hash + Eq + Shard + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let before = self.shards[key.shard()].insert(key, value);
        self.len += usize::from(before.is_none());
        before
    }

    pub(super) fn remove<Q: Hash + Eq + Shard + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let removed = self.shards[key.shard()].remove(key);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Keeps what `keeps` says. Looks at everything: only for the start.
    pub(super) fn retain(&mut self, mut keeps: impl FnMut(&K, &mut V) -> bool) {
        self.shards.iter_mut().for_each(|shard| shard.retain(&mut keeps));
        self.len = self.shards.iter().map(HashMap::len).sum();
    }

    /// Iterates over the pairs of one of the [`SHARDS`].
    pub(super) fn iter_shard(&self, shard: usize) -> impl Iterator<Item = (&K, &V)> {
        self.shards[shard].iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many are in the fullest part, of 100,000 entries.
    fn fullest<K: Hash + Eq + Shard>(keys: impl Iterator<Item = K>) -> usize {
        let mut map = Sharded::default();
        keys.take(100_000).for_each(|key| {
            map.insert(key, ());
        });
        assert_eq!(map.len(), 100_000);
        (0..SHARDS).map(|shard| map.iter_shard(shard).count()).max().unwrap_or(0)
    }

    #[test]
    fn keys_of_the_usual_kinds_are_spread_over_all_parts() {
        let average = 100_000 / SHARDS;
        let named =
            |number: i64| -> Key { format!("/registry/leases/node-{number}").as_bytes().into() };
        let padded = |number: i64| -> Key { format!("key-{number:016}").as_bytes().into() };
        for fullest in [
            fullest(1..),
            fullest((1..).map(|number: i64| number << 20)),
            fullest((1..).map(|number: i64| number << 40)),
            fullest((1..).map(named)),
            fullest((1..).map(padded)),
        ] {
            assert!(fullest < 3 * average, "{fullest} of {average}");
        }
    }

    #[test]
    fn it_does_what_a_plain_map_does() {
        let mut map = Sharded::default();
        assert!(map.is_empty() && map.insert(5, 'a').is_none() && map.insert(-5, 'b').is_none());
        assert_eq!(map.insert(5, 'c'), Some('a'));
        assert_eq!((map.len(), map.get(&5), map.get(&6)), (2, Some(&'c'), None));
        map.retain(|key, _| *key < 0);
        assert_eq!((map.len(), map.contains_key(&5)), (1, false));
        assert_eq!((map.remove(&-5), map.remove(&-5), map.is_empty()), (Some('b'), None, true));
    }
}
