//! Makes programs from a seed: small alphabets, so that operations collide; every option; sizes
//! sometimes large; some requests wrong.
//!
//! What it must never make: a put that keeps its key's value or lease in a transaction that also
//! deletes (etcd dies of it), watches from the past and from the future on one stream (the past
//! ones could not be waited for), leases whose time runs out during the program.

use bytes::Bytes;
use etcore_engine::testing::prng::Prng;
use etcore_proto::pb::etcdserverpb as pb;
use pb::compare::TargetUnion;
use pb::request_op::Request;

use super::answer::{COMPACT, DELETE, PUT, RANGE, TXN};
use super::program::{Op, compacted, current, lease};

/// Both servers are started with these.
pub(crate) const REQUEST_BYTES_MAX: usize = 64 << 10;
pub(crate) const TXN_OPS_MAX: usize = 12;
/// Streams whose watches start now or in the past; the last one's start now or in the future.
pub(crate) const STREAMS: usize = 3;
const FUTURE_STREAM: usize = 2;

const KEYS: [&[u8]; 22] = [
    b"a",
    b"a\0",
    b"aa",
    b"ab",
    b"abc",
    b"ac",
    b"b",
    b"b/",
    b"b/1",
    b"b/10",
    b"b/2",
    b"b/3",
    b"c",
    b"d",
    b"dd",
    b"e",
    b"\0",
    b"z",
    b"\xff",
    b"\xff\xff",
    b"key with spaces",
    b"\xc3\xa9",
];
const VALUES: [&[u8]; 8] = [b"", b"0", b"1", b"2", b"10", b"value", b"\0", b"\xff\xfe"];

/// Which seeds do what differently.
#[derive(Debug, Clone, Copy)]
struct Mood {
    /// Leases get ids chosen by the servers. Their ids differ, so hashes cannot be compared.
    chosen_ids: bool,
    /// History grows past the thousand revisions that a catching-up watch gets at once.
    long_history: bool,
}

/// True if the program's stored bytes are the same on both servers.
pub(crate) fn hashes_are_comparable(seed: u64) -> bool {
    seed.is_multiple_of(2)
}

/// The program of a seed.
pub(crate) fn program(seed: u64, length: usize) -> Vec<Op> {
    let mood =
        Mood { chosen_ids: !hashes_are_comparable(seed), long_history: seed.is_multiple_of(4) };
    let mut generator = Generator { prng: Prng::new(seed), mood, granted: 0 };
    let mut ops: Vec<Op> = (0..length).map(|_| generator.op()).collect();
    // The only operation that takes seconds.
    let at = generator.prng.index(length + 1);
    let mut put = generator.put();
    put.ignore_value = false;
    put.ignore_lease = false;
    if put.key.is_empty() {
        put.key = Bytes::from_static(b"a");
    }
    ops.insert(at, Op::Expire(put));
    ops
}

struct Generator {
    prng: Prng,
    mood: Mood,
    granted: u32,
}

impl Generator {
    fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.prng.chance(numerator, denominator)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.prng.index(from.len())]
    }

    fn between(&mut self, low: i64, high: i64) -> i64 {
        low + i64::try_from(self.prng.below(u64::try_from(high - low + 1).expect("ordered")))
            .expect("a small number")
    }

    fn op(&mut self) -> Op {
        match self.prng.below(1000) {
            0..220 => Op::Range(self.range()),
            220..270 => Op::RangeStream(self.range()),
            270..500 => Op::Put(self.put()),
            500..590 => Op::Delete(self.delete()),
            590..790 => Op::Txn(self.txn(3, true)),
            790..800 => self.compact(),
            800..820 => self.grant(),
            820..824 => {
                let ttl = self.pick(&[-1, 0, 1, 2, 3, i64::MIN]);
                let id = if self.chance(1, 2) { 0 } else { self.between(5_000_000, 6_000_000) };
                Op::GrantShort(pb::LeaseGrantRequest { ttl, id })
            }
            824..834 => Op::Revoke(pb::LeaseRevokeRequest { id: self.lease_id() }),
            834..850 => {
                let keys = self.chance(2, 3);
                Op::TimeToLive(pb::LeaseTimeToLiveRequest { id: self.lease_id(), keys })
            }
            850..858 => Op::Leases,
            858..870 => Op::KeepAlive(pb::LeaseKeepAliveRequest { id: self.lease_id() }),
            870..900 => self.watch(),
            900..915 => Op::CancelWatch(self.prng.index(STREAMS), self.watch_id()),
            915..923 => Op::Progress(self.prng.index(STREAMS)),
            923..926 => Op::EndStream(self.prng.index(STREAMS)),
            926..936 => Op::Status,
            936..950 => {
                let revision = self.revision();
                Op::HashKv(revision)
            }
            950..955 => Op::Alarms,
            955..960 => Op::Members(self.chance(1, 2)),
            960..963 => {
                let count = 1 + self.prng.index(5);
                Op::NoSpace((0..count).map(|_| self.simple()).collect())
            }
            963..970 => self.raw(),
            _ => self.simple(),
        }
    }

    /// What may stand inside another operation.
    fn simple(&mut self) -> Op {
        match self.prng.below(10) {
            0..2 => Op::Range(self.range()),
            2..5 => Op::Put(self.put()),
            5..6 => Op::Delete(self.delete()),
            6..9 => Op::Txn(self.txn(2, true)),
            _ => self.grant(),
        }
    }

    fn key(&mut self) -> Bytes {
        match self.prng.below(200) {
            0 => Bytes::new(),
            1 => Bytes::from(vec![b'k'; 300]),
            _ => Bytes::from_static(self.pick(&KEYS)),
        }
    }

    fn range_end(&mut self, key: &Bytes) -> Bytes {
        match self.prng.below(10) {
            0..3 => Bytes::new(),
            3..5 => Bytes::from_static(b"\0"),
            5..7 => {
                // What a prefix ends with.
                let mut end = key.to_vec();
                while end.last() == Some(&0xff) {
                    end.pop();
                }
                match end.last_mut() {
                    Some(last) => *last += 1,
                    None => end.push(0),
                }
                end.into()
            }
            _ => Bytes::from_static(self.pick(&KEYS)),
        }
    }

    fn value(&mut self) -> Bytes {
        match self.prng.below(1000) {
            0..850 => Bytes::from_static(self.pick(&VALUES)),
            850..970 => {
                let size = 1 + self.prng.index(3000);
                self.filled(size)
            }
            970..992 => {
                let size = 10_000 + self.prng.index(50_000);
                self.filled(size)
            }
            992..996 => {
                // Around the limit, with and without what the log entry adds.
                let size = REQUEST_BYTES_MAX - 120 + self.prng.index(160);
                self.filled(size)
            }
            996..998 => self.filled(REQUEST_BYTES_MAX + 1),
            998..999 => self.filled(REQUEST_BYTES_MAX + (512 << 10) + 100),
            _ => self.filled(200_000),
        }
    }

    fn filled(&mut self, size: usize) -> Bytes {
        let letter = b'a' + u8::try_from(self.prng.below(26)).expect("a letter");
        Bytes::from(vec![letter; size])
    }

    fn revision(&mut self) -> i64 {
        match self.prng.below(20) {
            0..8 => 0,
            8..14 => current(-self.between(0, 30)),
            14..16 => compacted(self.between(-2, 2)),
            16 => current(1),
            17 => current(self.between(-300, 2)),
            18 => self.between(-2, 4),
            _ => self.pick(&[i64::MAX, i64::MIN, -1, 1]),
        }
    }

    /// For the four bounds of a range.
    fn bound(&mut self) -> i64 {
        if self.chance(9, 10) {
            return 0;
        }
        if self.chance(1, 10) {
            return self.pick(&[-1, i64::MAX, i64::MIN]);
        }
        current(-self.between(0, 60))
    }

    fn range(&mut self) -> pb::RangeRequest {
        let key = self.key();
        let range_end = self.range_end(&key);
        let sorted = self.chance(3, 10);
        pb::RangeRequest {
            range_end,
            key,
            limit: if self.chance(1, 3) { self.between(-1, 6) } else { 0 },
            revision: if self.chance(1, 2) { 0 } else { self.revision() },
            sort_order: if sorted { self.odd_enum(3) } else { 0 },
            sort_target: if sorted { self.odd_enum(5) } else { 0 },
            serializable: self.chance(1, 2),
            keys_only: self.chance(1, 6),
            count_only: self.chance(1, 8),
            min_mod_revision: self.bound(),
            max_mod_revision: self.bound(),
            min_create_revision: self.bound(),
            max_create_revision: self.bound(),
        }
    }

    /// One of an enum's numbers, sometimes one it does not have.
    fn odd_enum(&mut self, count: i64) -> i32 {
        let number = if self.chance(1, 50) {
            self.pick(&[count, -1, 99])
        } else {
            self.between(0, count - 1)
        };
        i32::try_from(number).expect("a small number")
    }

    fn put(&mut self) -> pb::PutRequest {
        let wrong = self.chance(1, 40);
        let ignore_value = self.chance(1, 12);
        let ignore_lease = self.chance(1, 12);
        pb::PutRequest {
            key: self.key(),
            value: if ignore_value && !wrong { Bytes::new() } else { self.value() },
            lease: if (ignore_lease && !wrong) || self.chance(3, 4) { 0 } else { self.lease_id() },
            prev_kv: self.chance(1, 3),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let key = self.key();
        let range_end = if self.chance(1, 2) { Bytes::new() } else { self.range_end(&key) };
        pb::DeleteRangeRequest { key, range_end, prev_kv: self.chance(1, 2) }
    }

    fn compare(&mut self) -> pb::Compare {
        let key = self.key();
        let range_end = if self.chance(3, 4) { Bytes::new() } else { self.range_end(&key) };
        let target = self.odd_enum(5);
        // Sometimes the union is of another target, or missing.
        let union = if self.chance(1, 20) { self.odd_enum(6) } else { target };
        let mut result = self.odd_enum(4);
        let target_union = match union {
            0 => Some(TargetUnion::Version(self.between(0, 3))),
            1 => Some(TargetUnion::CreateRevision(self.compared_revision())),
            2 => Some(TargetUnion::ModRevision(self.compared_revision())),
            3 => Some(TargetUnion::Value(Bytes::from_static(self.pick(&VALUES)))),
            4 => {
                let id = if self.chance(1, 2) { 0 } else { self.lease_id() };
                if id != 0 && self.mood.chosen_ids {
                    // The order of ids that the servers chose is not the same.
                    result = self.pick(&[0, 3]);
                }
                Some(TargetUnion::Lease(id))
            }
            _ => None,
        };
        pb::Compare { result, target, key, range_end, target_union }
    }

    fn compared_revision(&mut self) -> i64 {
        if self.chance(1, 3) { 0 } else { current(-self.between(0, 40)) }
    }

    fn txn(&mut self, depth: u32, outermost: bool) -> pb::TxnRequest {
        // Keeping and deleting a key in one transaction kills etcd; each has its transactions.
        let keeps = self.chance(1, 4);
        let mut txn = self.txn_of(depth, keeps);
        if outermost && self.chance(1, 60) {
            let count = TXN_OPS_MAX + self.prng.index(2);
            txn.success = (0..count).map(|_| self.txn_op(0, keeps)).collect();
        }
        txn
    }

    fn txn_of(&mut self, depth: u32, keeps: bool) -> pb::TxnRequest {
        let ranges_only = self.chance(1, 5);
        let ops = |generator: &mut Self, most: usize| -> Vec<pb::RequestOp> {
            let count = generator.prng.index(most);
            (0..count)
                .map(|_| {
                    if ranges_only {
                        let range = generator.range();
                        pb::RequestOp { request: Some(Request::RequestRange(range)) }
                    } else {
                        generator.txn_op(depth, keeps)
                    }
                })
                .collect()
        };
        let success = ops(self, 5);
        let failure = ops(self, 4);
        let compares = self.prng.index(4);
        pb::TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success,
            failure,
        }
    }

    fn txn_op(&mut self, depth: u32, keeps: bool) -> pb::RequestOp {
        let request = match self.prng.below(20) {
            0..7 => Request::RequestPut(self.txn_put(keeps)),
            7..11 if !keeps => Request::RequestDeleteRange(self.delete()),
            11..14 if depth > 0 => Request::RequestTxn(Box::new(self.txn_of(depth - 1, keeps))),
            14 if self.chance(1, 15) => return pb::RequestOp { request: None },
            _ => Request::RequestRange(self.range()),
        };
        pb::RequestOp { request: Some(request) }
    }

    fn txn_put(&mut self, keeps: bool) -> pb::PutRequest {
        let mut put = self.put();
        if !keeps {
            put.ignore_value = false;
            put.ignore_lease = false;
        }
        put
    }

    fn compact(&mut self) -> Op {
        if self.mood.long_history && self.chance(5, 6) {
            return Op::Status;
        }
        let revision = match self.prng.below(10) {
            0..6 => current(-self.between(0, 100)),
            6 => current(0),
            7 => compacted(self.between(-1, 3)),
            8 => current(1),
            _ => self.pick(&[0, -1, i64::MAX, i64::MIN]),
        };
        Op::Compact(pb::CompactionRequest { revision, physical: self.chance(1, 2) })
    }

    fn grant(&mut self) -> Op {
        self.granted += 1;
        let slot = self.granted;
        let id = if self.chance(1, 12) {
            // Taken already, or odd.
            if self.chance(1, 2) { self.lease_id() } else { self.pick(&[-5, i64::MIN, i64::MAX]) }
        } else if self.mood.chosen_ids {
            0
        } else {
            1_000_000 + i64::from(slot)
        };
        // Far apart, so that the order by remaining time is the order by time granted.
        let ttl = if self.chance(1, 25) {
            self.pick(&[9_000_000_001, i64::MAX])
        } else {
            100_000 + i64::from(slot) * 1000
        };
        Op::Grant(slot, pb::LeaseGrantRequest { ttl, id })
    }

    /// A lease, mostly a recent one; sometimes none.
    fn lease_id(&mut self) -> i64 {
        if self.granted == 0 || self.chance(1, 15) {
            return self.pick(&[1, 77, -3, i64::MAX]);
        }
        let back = u32::try_from(self.between(0, 12)).expect("small");
        lease(self.granted.saturating_sub(back).max(1))
    }

    fn watch(&mut self) -> Op {
        let stream = self.prng.index(STREAMS);
        let key = if self.chance(1, 30) { Bytes::new() } else { self.key() };
        let range_end = self.range_end(&key);
        let start_revision = if self.chance(1, 2) {
            0
        } else if stream == FUTURE_STREAM {
            current(self.between(1, 12))
        } else {
            match self.prng.below(8) {
                0..5 => current(-self.between(0, 60)),
                5 => compacted(self.between(-1, 1)),
                6 => current(-self.between(0, 3000)),
                _ => self.pick(&[-1, i64::MIN, 1]),
            }
        };
        let filters = match self.prng.below(12) {
            0 => vec![0],
            1 => vec![1],
            2 => vec![0, 1],
            3 => vec![7],
            4 => vec![1, 1],
            _ => vec![],
        };
        let watch_id = if self.chance(2, 3) { 0 } else { self.watch_id() };
        Op::Watch(
            stream,
            pb::WatchCreateRequest {
                key,
                range_end,
                start_revision,
                progress_notify: self.chance(1, 4),
                filters,
                prev_kv: self.chance(1, 2),
                watch_id,
                fragment: self.chance(1, 4),
            },
        )
    }

    fn watch_id(&mut self) -> i64 {
        match self.prng.below(10) {
            0 => self.pick(&[-7, 1 << 40, i64::MAX]),
            _ => self.between(0, 12),
        }
    }

    /// The key twice: the last one counts. Around it fields that nobody knows, known ones of other
    /// wire types, and groups deeper than most decoders go.
    fn odd(&mut self) -> Vec<u8> {
        let mut message = b"\x0a\x01a".to_vec();
        match self.prng.below(6) {
            0 => message.extend(b"\xf8\x7f\x01"),
            1 => message.extend(b"\x08\x07"),
            2 => message.extend(b"\x0d\x01\x02\x03\x04"),
            3 => message.extend(b"\x12\x01\x62\x15\x01\x02\x03\x04"),
            _ => {
                let depth = self.pick(&[1, 49, 50, 98, 99, 100, 101, 3_000]);
                message.extend(vec![0x7b; depth]);
                message.extend(vec![0x7c; depth]);
            }
        }
        message.extend(b"\x0a\x01b");
        message
    }

    fn raw(&mut self) -> Op {
        let path = self.pick(&[
            RANGE,
            PUT,
            DELETE,
            TXN,
            COMPACT,
            "/etcdserverpb.KV/Nothing",
            "/etcdserverpb.Nothing/Range",
            "/nothing",
        ]);
        let takes_key = matches!(path, RANGE | PUT | DELETE);
        let message = match self.prng.below(4) {
            0 => vec![0xff; 3],
            1 => b"\x0a\x05ab".to_vec(),
            2 if takes_key => self.odd(),
            // Only the unknown field.
            _ => b"\xf8\x7f\x01".to_vec(),
        };
        Op::Raw(path, message)
    }
}
