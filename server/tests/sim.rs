//! The simulator as a test: a fixed set of seeds, then fresh ones for a bounded time; equal seeds
//! give equal traces; and, built with the feature `mutations`, deliberate faults are found.
//!
//! Some seconds by default; `ETCORE_LONG=1` runs the fixed set of a thousand and five minutes of
//! fresh seeds. A violation names its seed: `cargo run -p etcore-server --bin sim -- --seed N`.

#![cfg(feature = "sim")]

use std::time::{Duration, Instant, SystemTime};

use etcore_server::sim::{Plan, Report, run};

fn is_long() -> bool {
    std::env::var_os("ETCORE_LONG").is_some()
}

fn run_seed(seed: u64) -> Report {
    let report = run(Plan::from_seed(seed, None), 0);
    if let Some(violation) = &report.violation {
        panic!("seed {seed}: {violation}");
    }
    report
}

#[test]
fn a_fixed_set_of_seeds_shows_no_violation_and_much_happens_in_them() {
    let seeds = if is_long() { 1000 } else { 40 };
    let (mut operations, mut unknown, mut batches, mut restarts) = (0, 0, 0, 0);
    for seed in 1..=seeds {
        let report = run_seed(seed);
        operations += report.operations.0;
        unknown += report.operations.1;
        batches += report.watch_batches;
        restarts += report.starts;
    }
    eprintln!("{operations} operations, {unknown} unknown, {batches} watch responses");
    assert!(operations > 5_000 && unknown > 100 && batches > 1_000 && restarts > 2 * seeds);
}

#[test]
fn fresh_seeds_show_no_violation() {
    let time = Duration::from_secs(if is_long() { 300 } else { 5 });
    let start = Instant::now();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let mut seed = u64::try_from(now.as_nanos()).unwrap();
    let mut count = 0;
    while start.elapsed() < time {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        run_seed(seed);
        count += 1;
    }
    eprintln!("{count} fresh seeds");
}

#[test]
fn equal_seeds_give_equal_traces_and_others_do_not() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in [7, 24, 36] {
        let (first, second) = (run_seed(seed), run_seed(seed));
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed}");
        assert_eq!(first.events, second.events, "seed {seed}");
        assert_eq!(first.history, second.history, "seed {seed}");
        // Keeping lines for people changes nothing.
        let told = run(Plan::from_seed(seed, None), 100);
        assert_eq!(first.trace_hash, told.trace_hash, "seed {seed}");
        assert!(!told.lines.is_empty());
        hashes.insert(first.trace_hash);
    }
    assert_eq!(hashes.len(), 3);
}

#[cfg(feature = "mutations")]
#[test]
fn deliberate_faults_are_found_within_a_few_seeds() {
    use etcore_engine::mutation::{Mutation, switch};
    for mutation in [
        Mutation::AnswerBeforeSync,
        Mutation::ApplyAgainAfterRestart,
        Mutation::StaleReadIndex,
        Mutation::LeaseEndsEarly,
        Mutation::ConfStateForgotten,
        Mutation::WatchBatchDropped,
        Mutation::UnsyncedTailTrusted,
        Mutation::OldViewServed,
        Mutation::CompactionForgotten,
    ] {
        switch(Some(mutation));
        let found = (1..60).find_map(|seed| run(Plan::from_seed(seed, None), 0).violation);
        switch(None);
        let found = found.unwrap_or_else(|| panic!("{mutation:?} is not found"));
        eprintln!("{mutation:?}: {found:.200}");
    }
}
