//! The keys that hang on a lease, and what is left of one that was revoked.
//!
//! Part of the lessor.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::Key;

/// The keys of a lease, in order. Most leases have one or none.
#[derive(Debug, Default)]
pub(super) enum Keys {
    #[default]
    None,
    One(Key),
    #[expect(clippy::box_collection, reason = "a lease with one key or none should be small")]
    Many(Box<BTreeSet<Key>>),
}

impl Keys {
    pub(super) fn insert(&mut self, key: Key) {
        *self = match std::mem::take(self) {
            Keys::None => Keys::One(key),
            Keys::One(other) => Keys::Many(Box::new([other, key].into())),
            Keys::Many(mut keys) => {
                keys.insert(key);
                Keys::Many(keys)
            }
        };
    }

    pub(super) fn remove(&mut self, key: &Key) {
        match self {
            Keys::None => {}
            Keys::One(other) if other != key => {}
            Keys::One(_) => *self = Keys::None,
            Keys::Many(keys) => {
                keys.remove(key);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Keys::None => 0,
            Keys::One(_) => 1,
            Keys::Many(keys) => keys.len(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        let (one, many) = match self {
            Keys::None => (None, None),
            Keys::One(key) => (Some(key), None),
            Keys::Many(keys) => (None, Some(keys.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// Returns the keys behind `last`, in order.
    pub(super) fn after<'a>(
        &'a self,
        last: Option<&Key>,
    ) -> impl Iterator<Item = &'a Key> + use<'a> {
        let (one, many) = match self {
            Keys::None => (None, None),
            Keys::One(key) => (Some(key).filter(|key| last.is_none_or(|last| *key > last)), None),
            Keys::Many(keys) => {
                let from = last.map_or(Bound::Unbounded, Bound::Excluded);
                (None, Some(keys.range::<Key, _>((from, Bound::Unbounded))))
            }
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// A lease that is gone.
#[derive(Debug)]
pub struct Revoked {
    /// Its time was up.
    pub had_expired: bool,
    pub(super) keys: Keys,
}

impl Revoked {
    /// The keys that hung on it, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// Gives the keys away one by one.
    pub fn into_keys(self) -> Box<dyn Iterator<Item = Key> + Send> {
        match self.keys {
            Keys::None => Box::new(std::iter::empty()),
            Keys::One(key) => Box::new(std::iter::once(key)),
            Keys::Many(keys) => Box::new(keys.into_iter()),
        }
    }
}
