//! The simulator as a test: a fixed set of seeds, then fresh ones for a bounded time; equal seeds
//! give equal traces; and deliberate faults are found.
//!
//! Some seconds by default; `ETCORE_LONG=1` runs the fixed set of a thousand and five minutes of
//! fresh seeds, or `ETCORE_SIM_FRESH_S` seconds of them. A violation names its seed:
//! `cargo run --release -p etcore-server --bin sim --features sim -- --seed N`.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use etcore_engine::seeded_bug::{SeededBug, switch};
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
    let _turn = crate::harness::turn::of_file(module_path!());
    let seeds = if is_long() { 1000 } else { 25 };
    let (mut operations, mut unknown, mut batches, mut restarts) = (0, 0, 0, 0);
    for seed in 1..=seeds {
        let report = run_seed(seed);
        operations += report.operations.0;
        unknown += report.operations.1;
        batches += report.watch_batches;
        restarts += report.starts;
    }
    eprintln!("{operations} operations, {unknown} unknown, {batches} watch responses");
    assert!(operations > 3_000 && unknown > 60 && batches > 600 && restarts > 2 * seeds);
}

#[test]
fn fresh_seeds_show_no_violation() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let asked = std::env::var("ETCORE_SIM_FRESH_S").ok().map(|s| s.parse().unwrap());
    let time = Duration::from_secs(asked.unwrap_or(if is_long() { 300 } else { 5 }));
    let start = Instant::now();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    // Seconds since 1970, with room for a thousand seeds a second.
    let first = now.as_secs() * 1000;
    let (next, virtual_ns) = (AtomicU64::new(first), AtomicU64::new(0));
    let undecided = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |cores| cores.get()) {
            scope.spawn(|| {
                while start.elapsed() < time {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let report = run_seed(seed);
                    virtual_ns.fetch_add(report.virtual_ns, Ordering::Relaxed);
                    if report.undecided {
                        undecided.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let (next, undecided) = (next.into_inner(), undecided.into_inner().unwrap());
    let speed = virtual_ns.into_inner() as f64 / 1e9 / start.elapsed().as_secs_f64();
    // Past the test's capture: so that a run can be repeated.
    let _ = writeln!(
        std::io::stderr(),
        "{} fresh seeds, --seeds {first}..{next}; {speed:.0} simulated hours an hour; not judged \
         for linearizability, too many choices: {undecided:?}",
        next - first,
    );
    // One in a thousand was seen; many would mean that little is judged.
    assert!(undecided.len() as u64 <= 3 + (next - first) / 200, "{undecided:?}");
}

#[test]
fn equal_seeds_give_equal_traces_and_others_do_not() {
    let _turn = crate::harness::turn::of_file(module_path!());
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

/// Every change of the server or the simulator lets a seed draw another run: a fault may need more
/// seeds then than it did, but hardly ever more than these.
const SEEDS_MOST: u64 = 300;

/// Faults, each with a seed that showed it.
const FAULTS: [(SeededBug, u64); 24] = [
    (SeededBug::AnswerBeforeSync, 1),
    (SeededBug::VoteForgotten, 2037),
    (SeededBug::ApplyAgainAfterRestart, 3),
    (SeededBug::StaleReadIndex, 8),
    (SeededBug::LeaseEndsEarly, 6),
    (SeededBug::PinnedPageReused, 3),
    (SeededBug::TornTailTaken, 23),
    (SeededBug::ConfStateForgotten, 1),
    (SeededBug::WatchBatchDropped, 1),
    (SeededBug::MetaBeforePages, 99),
    (SeededBug::LogReleasedEarly, 36),
    (SeededBug::UnsyncedTailTrusted, 17),
    (SeededBug::OldViewServed, 5),
    (SeededBug::LeaseRevokedByFollower, 77),
    (SeededBug::FollowerAnswersBeforeSync, 60),
    (SeededBug::CompactionForgotten, 2),
    (SeededBug::PublishBeforeCommit, 5),
    (SeededBug::SnapshotLogReleased, 36),
    (SeededBug::LostProposalsWaitOn, 6),
    (SeededBug::HungLeaderLeadsOn, 40),
    (SeededBug::RenewalsOneByOne, 9),
    (SeededBug::QuorumOfOldMembers, 16),
    (SeededBug::ConfStateOutdated, 16),
    (SeededBug::RemovedVoteCounted, 136),
];

#[test]
fn deliberate_faults_are_found_within_a_few_seeds() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |cores| cores.get()) {
            scope.spawn(|| {
                while let Some((fault, first)) = FAULTS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    // The switch is this thread's alone.
                    switch(Some(*fault));
                    let mut reports = (*first..first + SEEDS_MOST)
                        .map(|seed| (seed, run(Plan::from_seed(seed, None), 0).violation));
                    let found = reports.find_map(|(seed, found)| Some((seed, found?)));
                    switch(None);
                    let (seed, found) = found.unwrap_or_else(|| panic!("{fault:?} is not found"));
                    let took = start.elapsed();
                    let _ = writeln!(
                        std::io::stderr(),
                        "{fault:?}: seed {seed}, {took:?}: {found:.160}"
                    );
                }
            });
        }
    });
}
