//! The same answers as etcd: a real etcd and etcore get the same random program, and every field of
//! every answer, error and event must be the same.
//!
//! Programs come from seeds ([`generate`]) and use the KV, Watch and Lease services and what of
//! Maintenance and Cluster one member has. A disagreement is cut down to the shortest program that
//! still shows it ([`shrink`]) and printed as a script.

mod harness;

#[path = "differential/answer.rs"]
mod answer;
#[path = "differential/client.rs"]
mod client;
#[path = "differential/generate.rs"]
mod generate;
#[path = "differential/program.rs"]
mod program;
#[path = "differential/run.rs"]
mod run;
#[path = "differential/server.rs"]
mod server;
#[path = "differential/shrink.rs"]
mod shrink;
#[path = "differential/versions.rs"]
mod versions;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use harness::{DRIVERS, is_available, oracle};
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
        "seed {seed}: {} operations on {:?} in {:?}; left out: {:?}",
        ops.len(),
        pair.versions(),
        start.elapsed(),
        pair.lacking()
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
    let Some(etcd) = oracle("etcd") else { return };
    let (count, length) = size();
    // One seed shows that the comparison calls no correct server wrong.
    for seed in seeds(count).into_iter().take(if count > 4 { 20 } else { 1 }) {
        run_seed(seed, length, &[Kind::Etcd(etcd.clone()), Kind::Etcd(etcd.clone())]);
    }
}
