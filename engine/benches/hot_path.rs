//! The two hottest paths, a put within a batch and a get at the current revision; and the end of a
//! lease with one key, of which a hundred thousand may come in two seconds.
//!
//! Run with `cargo bench -p etcore-engine`. Goals: a put of 8 + 256 bytes at 100,000 keys, its
//! share of the path copy in batches of 64 included, within 1 µs; a get within 0.4 µs.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Bencher, Criterion, Throughput, criterion_group, criterion_main};
use etcore_engine::bucket::Bucket;
use etcore_engine::checkpoint::Checkpointer;
use etcore_engine::file::StdDisk;
use etcore_engine::map::PageMap;
use etcore_engine::page::{Fetch, NoPages, PageSource};
use etcore_engine::store::{EngineConfig, Store, Txn};
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::{LeaseId, LogIndex, Revision, Term};
use etcore_engine::view::{RangeHits, View};

const KEYS: u64 = 100_000;
const BATCH: u64 = 64;
/// Makes keys that are spread over the whole range out of small numbers.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

struct Fixture {
    store: Store,
    checkpointer: Checkpointer,
    disk: StdDisk,
    view: Arc<View>,
    prng: Prng,
    rows: u64,
}

impl Fixture {
    fn new(dir: &std::path::Path) -> Self {
        let mut disk = StdDisk::new(dir);
        let (mut store, checkpointer) = Store::open(&mut disk, EngineConfig::default()).unwrap();
        let view = store.publish();
        let mut fixture = Self { store, checkpointer, disk, view, prng: Prng::new(1), rows: 0 };
        for number in 0..KEYS / BATCH {
            fixture.put_batch(|index, _| {
                let key = number * BATCH + index;
                key.wrapping_mul(SPREAD)
            });
            fixture.checkpoint_if_due();
        }
        fixture.checkpoint();
        fixture
    }

    /// An entry for each number, and a publication.
    fn batch(&mut self, numbers: Range<u64>, mut change: impl FnMut(&mut Txn<'_>, &mut Prng, u64)) {
        for number in numbers {
            let applied = self.store.applied().0.0;
            let mut txn = self.store.begin(LogIndex(applied + 1), Term(1));
            change(&mut txn, &mut self.prng, number);
            txn.commit();
            self.rows += 1;
        }
        self.view = self.store.publish();
    }

    /// 64 entries of one put each.
    fn put_batch(&mut self, mut key: impl FnMut(u64, &mut Prng) -> u64) {
        self.batch(0..BATCH, |txn, prng, index| {
            txn.put(&key(index, prng).to_be_bytes(), &[7; 256], LeaseId(0));
        });
    }

    /// The leases of these numbers, each with a key.
    fn grant(&mut self, numbers: Range<u64>) {
        self.batch(numbers, |txn, _, number| {
            let id = number.wrapping_mul(SPREAD).to_be_bytes();
            txn.bucket_put(Bucket::Lease, &id, &[7; 20]);
            txn.put(&id, &[7; 256], LeaseId(number.cast_signed() + 1));
        });
    }

    /// Their ends.
    fn end(&mut self, numbers: Range<u64>) {
        self.batch(numbers, |txn, _, number| {
            let id = number.wrapping_mul(SPREAD).to_be_bytes();
            txn.delete(&id);
            txn.bucket_delete(Bucket::Lease, &id);
        });
    }

    fn checkpoint_if_due(&mut self) {
        if self.rows >= 10_000 {
            self.checkpoint();
        }
    }

    fn checkpoint(&mut self) {
        self.rows = 0;
        self.store.publish();
        let input = self.store.freeze(0).unwrap();
        self.checkpointer.start(input);
        let output = self.checkpointer.run(&mut self.disk).unwrap().unwrap();
        self.store.on_checkpoint(&output);
        self.view = self.store.publish();
    }
}

fn puts(c: &mut Criterion) {
    let mut group = c.benchmark_group("put");
    group.throughput(Throughput::Elements(BATCH)).sample_size(20);
    for (name, fresh) in [("existing key", false), ("new random key", true)] {
        let dir = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::new(dir.path());
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|batches| {
                let mut spent = Duration::ZERO;
                for _ in 0..batches {
                    let start = cpu_time();
                    fixture.put_batch(|_, prng| {
                        let number = if fresh { prng.next_u64() } else { prng.below(KEYS) };
                        number.wrapping_mul(SPREAD)
                    });
                    spent += cpu_time() - start;
                    // The checkpoint is the background's work.
                    fixture.checkpoint_if_due();
                }
                spent
            });
        });
    }
    group.finish();
}

/// Revocations that the replica applies before it publishes.
const ENDS: u64 = 32;

fn lease_ends(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::new(dir.path());
    let leases = KEYS / BATCH * BATCH;
    for first in (0..leases).step_by(ENDS as usize) {
        fixture.grant(first..first + ENDS);
    }
    fixture.checkpoint();
    let mut next = 0;
    let mut group = c.benchmark_group("lease");
    group.throughput(Throughput::Elements(ENDS)).sample_size(20);
    group.bench_function("end", |bencher| {
        bencher.iter_custom(|batches| {
            let mut spent = Duration::ZERO;
            for _ in 0..batches {
                let numbers = next..next + ENDS;
                next = numbers.end % leases;
                let start = cpu_time();
                fixture.end(numbers.clone());
                spent += cpu_time() - start;
                fixture.grant(numbers);
                fixture.checkpoint_if_due();
            }
            spent
        });
    });
    group.finish();
}

fn gets(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::new(dir.path());
    let file = fixture.disk.handle(fixture.checkpointer.file()).unwrap();
    let mut pages = PageMap::new(file, 1 << 30);
    let mut prng = Prng::new(3);
    let view = fixture.view.clone();
    let mut hits = RangeHits::default();
    let keys = KEYS / BATCH * BATCH;
    // Populate every window.
    for number in 0..keys {
        let key = number.wrapping_mul(SPREAD).to_be_bytes();
        while get(&view, &key, &mut hits, &mut pages).is_none() {
            let mut requests = Vec::new();
            pages.take_requests(&mut requests);
            for request in requests {
                pages.on_populated(request.run());
            }
        }
    }
    c.bench_function("get from a verified page", |bencher| {
        timed(bencher, || {
            let key = prng.below(keys).wrapping_mul(SPREAD).to_be_bytes();
            get(&view, &key, &mut hits, &mut pages).unwrap()
        });
    });
    for _ in 0..100 {
        fixture.put_batch(|_, prng| prng.below(KEYS).wrapping_mul(SPREAD));
    }
    let view = fixture.view.clone();
    c.bench_function("get from a memory table", |bencher| {
        let hot: Vec<[u8; 8]> = hot_keys(&view);
        timed(bencher, || {
            let key = hot[prng.index(hot.len())];
            get(&view, &key, &mut hits, &mut NoPages).unwrap()
        });
    });
}

/// Processor time of this thread: what others do on the machine disturbs it least.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the given structure and nothing else.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap())
}

/// Runs `call` as often as the bencher wants and reports processor time.
fn timed<T>(bencher: &mut Bencher<'_>, mut call: impl FnMut() -> T) {
    bencher.iter_custom(|count| {
        let start = cpu_time();
        for _ in 0..count {
            black_box(call());
        }
        cpu_time() - start
    });
}

/// Keys whose value is in memory.
fn hot_keys(view: &View) -> Vec<[u8; 8]> {
    let hits = view.range(b"\0", b"\0", Revision(0), 0).unwrap();
    let in_memory = hits.hits().iter().filter(|hit| view.value(hit.modified, &mut NoPages).is_ok());
    in_memory.map(|hit| hits.key(hit).try_into().unwrap()).collect()
}

fn get(view: &View, key: &[u8], hits: &mut RangeHits, pages: &mut dyn PageSource) -> Option<u8> {
    view.range_into(key, b"", Revision(0), 0, hits).unwrap();
    let hit = hits.hits()[0];
    match view.value(hit.modified, pages).unwrap() {
        Fetch::Ready(bytes) => Some(bytes[bytes.len() - 1]),
        Fetch::Pending(_) => None,
    }
}

criterion_group!(benches, puts, lease_ends, gets);
criterion_main!(benches);
