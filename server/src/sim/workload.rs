//! What clients ask, drawn from the seed.
//!
//! Called by the clients for each request. Values are unique, so that a history tells who wrote
//! what; keys are few, so that clients meet.

use etcore_bench::history::types::{Compare, Delete, Get, Put, Relation, Request, Target, Txn};
use etcore_bench::history::{Data, KeyRange};
use etcore_engine::testing::prng::Prng;

use super::plan::Plan;

/// What a request may refer to.
pub(super) struct Source<'a> {
    pub(super) plan: &'a Plan,
    pub(super) prng: &'a mut Prng,
    /// The highest revision told.
    pub(super) told: i64,
    /// Counts values.
    pub(super) values: &'a mut u64,
    /// Counts leases.
    pub(super) leases: &'a mut i64,
}

impl Source<'_> {
    /// The next request.
    pub(super) fn request(&mut self) -> Request {
        let kinds = if self.plan.leases { 1000 } else { 905 };
        let kind = match self.plan.leases && self.prng.below(1000) < self.plan.more_leases {
            // Mostly renewals.
            true => [905, 930, 970, 970, 970, 970][self.prng.index(6)],
            false => self.prng.below(kinds),
        };
        match kind {
            0..170 => Request::Get(Get { range: KeyRange::one(self.key()), ..Get::default() }),
            170..270 => {
                let limit = self.number(4);
                let keys_only = self.prng.chance(1, 10);
                let count_only = self.prng.chance(1, 10);
                let range = self.range();
                Request::Get(Get { range, limit, keys_only, count_only, ..Get::default() })
            }
            270..370 => {
                Request::Get(Get { range: self.range(), serializable: true, ..Get::default() })
            }
            370..430 => {
                let (range, revision) = (self.range(), (self.told - self.number(300)).max(1));
                let serializable = self.prng.chance(3, 10);
                Request::Get(Get { range, revision, serializable, ..Get::default() })
            }
            430..700 => Request::Put(self.put()),
            700..750 => {
                let prev_kv = self.prng.chance(1, 2);
                Request::Delete(Delete { range: KeyRange::one(self.key()), prev_kv })
            }
            750..760 => Request::Delete(Delete { range: self.range(), prev_kv: true }),
            760..890 => Request::Txn(self.txn()),
            // At odd revisions only: etcd remembers the hash of a compaction as that of its
            // revision, and if it leaves no key that is not the hash of what was there.
            890..905 => Request::Compact { revision: (self.told - 1 - self.number(200)) | 1 },
            905..925 => {
                *self.leases += 1;
                Request::Grant { id: *self.leases, ttl: 1 + self.number(4) }
            }
            925..965 => {
                let lease = self.lease();
                Request::Put(Put { lease, ..self.put() })
            }
            965..985 => Request::KeepAlive { id: self.lease() },
            _ => Request::Revoke { id: self.lease() },
        }
    }

    fn number(&mut self, below: u64) -> i64 {
        i64::try_from(self.prng.below(below)).unwrap_or(0)
    }

    fn key(&mut self) -> Data {
        format!("key{:02}", self.prng.below(self.plan.keys)).into()
    }

    /// Some neighbours, or all keys.
    pub(super) fn range(&mut self) -> KeyRange {
        if self.prng.chance(1, 4) {
            return KeyRange::all();
        }
        let first = self.prng.below(self.plan.keys);
        KeyRange::new(format!("key{first:02}"), format!("key{:02}", first + 6))
    }

    fn value(&mut self) -> Data {
        *self.values += 1;
        let mut value = format!("value{}", self.values);
        let bytes = usize::try_from(self.plan.value_bytes.draw(self.prng)).unwrap_or(0);
        while value.len() < bytes {
            value.push('.');
        }
        value.into()
    }

    fn lease(&mut self) -> i64 {
        (*self.leases - self.number(6)).max(1)
    }

    fn put(&mut self) -> Put {
        let prev_kv = self.prng.chance(3, 10);
        Put { key: self.key(), value: self.value(), lease: 0, prev_kv }
    }

    fn txn(&mut self) -> Txn {
        let key = self.key();
        let range = KeyRange::one(key.clone());
        let (relation, target) = match self.prng.below(4) {
            0 => (Relation::Equal, Target::Create(0)),
            1 => (Relation::Less, Target::Modified(self.told - 20)),
            2 => (Relation::Greater, Target::Version(2)),
            _ => (Relation::NotEqual, Target::Value(self.value())),
        };
        let get = |range: &KeyRange| Request::Get(Get { range: range.clone(), ..Get::default() });
        let mut success = vec![get(&range), Request::Put(Put { key, ..self.put() }), get(&range)];
        let other = self.put();
        if !range.contains(&other.key) {
            success.push(Request::Put(other));
            success.push(get(&KeyRange::all()));
        }
        let inner = Txn {
            compares: vec![Compare {
                range: self.range(),
                relation: Relation::Less,
                target: Target::Version(5),
            }],
            success: vec![get(&range)],
            failure: vec![Request::Delete(Delete { range: range.clone(), prev_kv: true })],
        };
        let failure = match self.prng.below(3) {
            0 => vec![Request::Delete(Delete { range: range.clone(), prev_kv: true })],
            1 => vec![get(&self.range()), Request::Txn(inner)],
            _ => Vec::new(),
        };
        Txn { compares: vec![Compare { range, relation, target }], success, failure }
    }
}
