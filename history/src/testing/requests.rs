//! What clients ask who do everything at once, drawn from a source of chance.
//!
//! Used by tests that load real members and by the simulator of the server. Values are unique, so
//! that a history tells who wrote what; keys are few, so that clients meet. Equal draws give equal
//! requests: nothing else may decide.

use crate::data::{Data, KeyRange};
use crate::types::{Compare, Delete, Get, Put, Relation, Request, Target, Txn};

/// What requests are drawn from: chance, and what has happened so far.
pub trait Source {
    /// A number in `0..bound`; the bound is not 0.
    fn below(&mut self, bound: u64) -> u64;

    /// The highest revision told.
    fn told(&self) -> i64;

    /// A number that no value bears yet.
    fn next_value(&mut self) -> u64;

    /// Bytes that the value is filled up to.
    fn value_bytes(&mut self) -> usize {
        0
    }

    /// The id for a new lease: 1 more than the last one's.
    fn next_lease(&mut self) -> i64;

    /// The id given last, or 0.
    fn last_lease(&self) -> i64;
}

/// What is asked how often.
#[derive(Debug, Clone)]
pub struct Mix {
    /// Keys in use; not 0.
    pub keys: u64,
    /// Whether leases are asked for.
    pub leases: bool,
    /// So many requests in a thousand are about leases before the others are drawn.
    pub more_leases: u64,
    /// A compaction is at least so many revisions back,
    pub compact_back: i64,
    /// and less than so many more; not 0.
    pub compact_spread: u64,
}

/// A request.
pub fn draw(mix: &Mix, source: &mut impl Source) -> Request {
    Drawing { mix, source }.request()
}

struct Drawing<'a, S> {
    mix: &'a Mix,
    source: &'a mut S,
}

impl<S: Source> Drawing<'_, S> {
    fn request(&mut self) -> Request {
        let kinds = if self.mix.leases { 1000 } else { 905 };
        let kind = match self.mix.leases && self.source.below(1000) < self.mix.more_leases {
            // Mostly renewals.
            true => match self.source.below(6) {
                0 => 905,
                1 => 930,
                _ => 970,
            },
            false => self.source.below(kinds),
        };
        match kind {
            0..170 => Request::Get(Get { range: KeyRange::one(self.key()), ..Get::default() }),
            170..270 => {
                let limit = self.number(4);
                let keys_only = self.happens(1, 10);
                let count_only = self.happens(1, 10);
                let range = self.range();
                Request::Get(Get { range, limit, keys_only, count_only, ..Get::default() })
            }
            270..370 => {
                Request::Get(Get { range: self.range(), serializable: true, ..Get::default() })
            }
            370..430 => {
                let range = self.range();
                let revision = (self.source.told() - self.number(300)).max(1);
                let serializable = self.happens(3, 10);
                Request::Get(Get { range, revision, serializable, ..Get::default() })
            }
            430..700 => Request::Put(self.put()),
            700..750 => {
                let prev_kv = self.happens(1, 2);
                Request::Delete(Delete { range: KeyRange::one(self.key()), prev_kv })
            }
            750..760 => Request::Delete(Delete { range: self.range(), prev_kv: true }),
            760..890 => Request::Txn(self.txn()),
            890..905 => Request::Compact { revision: self.compaction() },
            905..925 => {
                let id = self.source.next_lease();
                Request::Grant { id, ttl: 1 + self.number(4) }
            }
            925..965 => {
                let lease = self.lease();
                Request::Put(Put { lease, ..self.put() })
            }
            965..985 => Request::KeepAlive { id: self.lease() },
            _ => Request::Revoke { id: self.lease() },
        }
    }

    fn happens(&mut self, times: u64, of: u64) -> bool {
        self.source.below(of) < times
    }

    fn number(&mut self, below: u64) -> i64 {
        i64::try_from(self.source.below(below)).unwrap_or(0)
    }

    /// At odd revisions only: etcd remembers the hash of a compaction as that of its revision, and
    /// if it leaves no key that is not the hash of what was there. Who asks for hashes asks for
    /// those of even ones.
    fn compaction(&mut self) -> i64 {
        let back = self.mix.compact_back + self.number(self.mix.compact_spread);
        (self.source.told() - back) | 1
    }

    fn key(&mut self) -> Data {
        format!("key{:02}", self.source.below(self.mix.keys)).into()
    }

    /// Some neighbours, or all keys.
    fn range(&mut self) -> KeyRange {
        if self.happens(1, 4) {
            return KeyRange::all();
        }
        let first = self.source.below(self.mix.keys);
        KeyRange::new(format!("key{first:02}"), format!("key{:02}", first + 6))
    }

    fn value(&mut self) -> Data {
        let mut value = format!("value{}", self.source.next_value());
        let bytes = self.source.value_bytes();
        while value.len() < bytes {
            value.push('.');
        }
        value.into()
    }

    fn lease(&mut self) -> i64 {
        (self.source.last_lease() - self.number(6)).max(1)
    }

    fn put(&mut self) -> Put {
        let prev_kv = self.happens(3, 10);
        Put { key: self.key(), value: self.value(), lease: 0, prev_kv }
    }

    fn txn(&mut self) -> Txn {
        let key = self.key();
        let range = KeyRange::one(key.clone());
        let (relation, target) = match self.source.below(4) {
            0 => (Relation::Equal, Target::Create(0)),
            1 => (Relation::Less, Target::Modified(self.source.told() - 20)),
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
        let failure = match self.source.below(3) {
            0 => vec![Request::Delete(Delete { range: range.clone(), prev_kv: true })],
            1 => vec![get(&self.range()), Request::Txn(inner)],
            _ => Vec::new(),
        };
        Txn { compares: vec![Compare { range, relation, target }], success, failure }
    }
}
