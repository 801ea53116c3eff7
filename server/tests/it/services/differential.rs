//! The same answers as etcd: a real etcd and etcore get the same random program, and every field of
//! every answer, error and event must be the same.
//!
//! Programs come from seeds ([`generate`]) and use the KV, Watch and Lease services and what of
//! Maintenance and Cluster one member has, rightly and wrongly. A disagreement is cut down to the
//! shortest program that still shows it ([`shrink`]), on fresh servers each time, and printed as a
//! script. `ETCORE_SEED` runs one seed, `ETCORE_LONG` all twenty with ten thousand operations each,
//! `ETCORE_SHRINK_SECONDS` bounds the shortening, `ETCORE_BIN` puts another etcore to the test.
//!
//! The same programs run against two etcds, which shows what a comparison cannot see. What is
//! replaced or left out, and why ([`answer`], [`versions`]):
//!
//! * cluster and member ids, terms, URLs; ids of leases that the server chose: each server's own:
//!   replaced by what they stand for, wrong ones stay
//! * hashes in programs with such leases: the ids are in the hashed bytes; programs of even seeds
//!   have none, and their hashes are compared
//! * log indexes, file sizes: each server's own; must be positive and in order
//! * remaining time of a lease: must be within five minutes of what was granted
//! * order of a lease's keys: etcd takes them from a map
//! * order of what different watches of one stream bring: etcd notifies from a map; each watch's
//!   own order counts
//! * where the answers to a watch that catches up are cut: etcd counts revisions, etcore bytes; no
//!   revision may be cut
//! * how often progress is told: depends on how often it was asked while catching up; the last
//!   revision counts
//! * order of ties when a Range sorts more than 12 keys by something else than the key: Go's sort
//!   does not keep it, etcore does
//! * where the chunks of a RangeStream end: etcd counts keys, etcore bytes as well, and does not
//!   wait for pages
//! * a RangeStream of several chunks that names something to sort by but no order: etcd goes on
//!   behind the last key *sent*, so it repeats and leaves out; etcore sends all in key order
//! * requests within some bytes of the size limit: the id in the log entry is a byte longer on some
//!   members
//! * which kind of space is in the texts of protobuf errors: Go chooses when it is built
//! * storage version in the first seconds: etcd's monitor decides it later
//! * a put that keeps the value or lease of a key deleted by its own transaction: never made: etcd
//!   dies of it
//! * a compaction at, and a hash of, just the revision of a transaction that deletes and puts one
//!   key, which etcd lets through if the delete has no end: they are made one revision earlier,
//!   since etcd removes the row of the put there, and dies when the key is read
//!
//! With an etcd before 3.7 as the oracle, also: no RangeStream; sort options that do not exist,
//! progress, watches from negative revisions, compactions at no revision and hashes of the past are
//! left out; leases in keys-only ranges, the fields that are new in Status and HashKV, and which
//! fault of a transaction is told, are not compared; ties of a sort may come in any order.

pub(crate) mod answer;
pub(crate) mod client;
pub(crate) mod generate;
pub(crate) mod program;
mod run;
pub(crate) mod server;
mod shrink;
pub(crate) mod versions;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::harness::{DRIVERS, is_available, oracle};
use program::Op;
use run::{Failure, Pair};
use server::Kind;

/// Seeds and operations of each.
fn size() -> (u64, usize) {
    if std::env::var_os("ETCORE_LONG").is_some() { (20, 10_000) } else { (4, 2_500) }
}

/// The seeds to run: all, or the one that `ETCORE_SEED` names.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("ETCORE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=count).collect(),
    }
}

/// Runs the program of a seed on fresh servers; a failure is shortened and told.
fn run_seed(seed: u64, length: usize, kinds: &[Kind; 2]) {
    let hashes = generate::hashes_are_comparable(seed);
    let attempt = |ops: &[Op]| Pair::start(kinds, hashes).run(ops).err();
    let ops = generate::program(seed, length);
    let start = Instant::now();
    let mut pair = Pair::start(kinds, hashes);
    let result = pair.run(&ops);
    eprintln!(
        "seed {seed}: {} operations on {:?} in {:?}",
        ops.len(),
        pair.versions(),
        start.elapsed()
    );
    drop(pair);
    if let Err(failure) = result {
        eprintln!("seed {seed} disagrees: {}\nshortening", told(&failure, 3));
        let limit = std::env::var("ETCORE_SHRINK_SECONDS").ok().and_then(|text| text.parse().ok());
        let limit = Duration::from_secs(limit.unwrap_or(120));
        let (_, failure) = shrink::shrink(ops, failure, limit, attempt);
        panic!("seed {seed}:\n{}", told(&failure, usize::MAX));
    }
}

/// The last `lines` of the script, and what each server said.
fn told(failure: &Failure, lines: usize) -> String {
    let mut text = String::new();
    let skipped = failure.script.len().saturating_sub(lines);
    for (number, line) in failure.script.iter().enumerate().skip(skipped) {
        let _ = writeln!(text, "{:4}. {line}", number + 1);
    }
    let mismatch = &failure.mismatch;
    let _ = writeln!(text, "{}:", mismatch.what);
    for (name, answer) in mismatch.names.iter().zip(&mismatch.answers) {
        let _ = writeln!(text, "--- {name}\n{answer}");
    }
    text
}

#[test]
fn etcore_answers_random_programs_as_etcd_does() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let Some(etcd) = oracle("etcd") else { return };
    let (count, length) = size();
    for (number, seed) in seeds(count).into_iter().enumerate() {
        let drivers: Vec<_> = DRIVERS.into_iter().filter(|driver| is_available(driver)).collect();
        let driver = drivers[number % drivers.len()];
        run_seed(seed, length, &[Kind::Etcd(etcd.clone()), Kind::Etcore(driver)]);
    }
}

#[test]
fn etcd_answers_random_programs_as_another_etcd_does() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let Some(etcd) = oracle("etcd") else { return };
    let (count, length) = size();
    // One seed shows that the comparison calls no correct server wrong.
    for seed in seeds(count).into_iter().take(if count > 4 { 20 } else { 1 }) {
        run_seed(seed, length, &[Kind::Etcd(etcd.clone()), Kind::Etcd(etcd.clone())]);
    }
}
