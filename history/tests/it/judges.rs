//! The judges of histories: what is wrong is called wrong, by its sentence; what is right passes.
//!
//! Known-bad histories are written out by hand in `judges/known_bad.rs`; good ones come from a
//! simulated store, and are then spoilt in one place.

mod builder;
mod known_bad;

use std::time::{Duration, Instant};

use etcore_history::registers::{self, Verdict};
use etcore_history::testing::simulate::{Plan, Random, simulate};
use etcore_history::types::{Answer, Kv};
use etcore_history::{History, Outcome, judge, linear, lines};

fn plan(seed: u64) -> Plan {
    Plan { seed, operations: 600, clients: 12, keys: 12, lost: 60, watches: 3, registers: false }
}

#[test]
fn histories_of_a_store_that_is_right_pass() {
    for seed in 0..200 {
        let history = simulate(&plan(seed));
        if let Err(violation) = judge(&history) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn right_histories_without_watches_and_with_many_unknown_outcomes_pass() {
    let mut undecided = 0;
    // The last four need a search that does not jump back too far.
    for seed in (1_000..1_100).chain([2134, 2145, 2288, 2299]) {
        let history = simulate(&Plan { lost: 200, watches: 0, ..plan(seed) });
        match judge(&history) {
            Ok(_) => {}
            Err(violation) if violation.property == linear::UNDECIDED => undecided += 1,
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    assert_eq!(undecided, 0, "so many were given up");
}

#[test]
fn a_history_is_read_as_it_was_written() {
    let history = simulate(&plan(7));
    let mut file = Vec::new();
    lines::write(&history, &mut file).unwrap();
    assert_eq!(lines::read(&file[..]).unwrap(), history);
    let complaint = lines::read(&b"\n{\"Operation\":{}}\n"[..]).unwrap_err().to_string();
    assert!(complaint.starts_with("line 2 of the history: "), "{complaint}");
}

#[test]
fn a_hundred_thousand_operations_are_judged_in_seconds() {
    let history = simulate(&Plan {
        seed: 1,
        operations: 100_000,
        clients: 64,
        keys: 200,
        lost: 10,
        watches: 3,
        registers: false,
    });
    let start = Instant::now();
    let witness = judge(&history).unwrap();
    let took = start.elapsed();
    eprintln!("{} revisions judged in {took:?}", witness.writers.len());
    assert!(took < Duration::from_secs(20), "it took {took:?}");
}

/// The two checkers know nothing of each other: what the one accepts with all revisions, the other
/// must accept without.
#[test]
fn the_search_without_revisions_agrees() {
    let mut judged = 0;
    for seed in 0..60 {
        let plan = Plan { operations: 300, clients: 5, watches: 0, registers: true, ..plan(seed) };
        let mut history = simulate(&plan);
        assert_all(&history, Verdict::Linearizable, seed, &mut judged);
        // A value that nobody wrote.
        if spoil_read(&mut history) {
            let wrong = registers::registers(&history)
                .into_values()
                .any(|(start, calls)| registers::judge(start, &calls) == Verdict::NotLinearizable);
            assert!(wrong, "seed {seed}");
            assert!(linear::judge(&history).is_err(), "seed {seed}");
        }
    }
    assert!(judged > 100, "only {judged} registers were judged");
}

fn assert_all(history: &History, wanted: Verdict, seed: u64, judged: &mut usize) {
    for (key, (start, calls)) in registers::registers(history) {
        let verdict = registers::judge(start, &calls);
        if verdict != Verdict::Undecided {
            assert_eq!(verdict, wanted, "seed {seed}, {key}");
            *judged += 1;
        }
    }
}

fn spoil_read(history: &mut History) -> bool {
    let candidates = registers::registers(history);
    for operation in history.operations.iter_mut().rev() {
        let etcore_history::Request::Get(get) = &operation.request else { continue };
        let plain = !get.serializable && get.revision == 0 && get.range.is_one();
        if !plain || get.keys_only || get.count_only || !candidates.contains_key(&get.range.key) {
            continue;
        }
        if let Outcome::Known(Answer::Get { kvs, .. }) = &mut operation.outcome
            && let [kv] = &mut kvs[..]
        {
            kv.value = "from nowhere".into();
            return true;
        }
    }
    false
}

/// One thing changed in a right history.
fn spoil(history: &mut History, random: &mut Random) -> Option<&'static str> {
    if random.happens(150) && !history.watches.is_empty() {
        return spoil_watch(history, random);
    }
    let count = u64::try_from(history.operations.len()).unwrap();
    let index = usize::try_from(random.below(count)).unwrap();
    let operation = &mut history.operations[index];
    let Outcome::Known(answer) = &mut operation.outcome else {
        return None;
    };
    let by = if random.happens(500) { 1 } else { -1 };
    match (random.below(4), answer) {
        (_, Answer::KeepAlive { .. }) => None,
        (0, Answer::Get { kvs, .. }) if !kvs.is_empty() => {
            spoil_kv(&mut kvs[0], random);
            Some("a pair of a read")
        }
        (1, Answer::Get { kvs, .. }) if !kvs.is_empty() => {
            kvs.pop();
            Some("a pair less")
        }
        (2, Answer::Get { count, .. }) => {
            *count += by;
            Some("the count")
        }
        (0, Answer::Put { prev: Some(prev), .. }) => {
            spoil_kv(prev, random);
            Some("the pair before a write")
        }
        (1, Answer::Delete { deleted, .. }) => {
            *deleted += 1;
            Some("the number of removals")
        }
        (1, Answer::Txn { succeeded, .. }) => {
            *succeeded = !*succeeded;
            Some("the branch")
        }
        (
            _,
            Answer::Get { revision, .. }
            | Answer::Put { revision, .. }
            | Answer::Delete { revision, .. }
            | Answer::Txn { revision, .. }
            | Answer::Revoke { revision }
            | Answer::Compact { revision }
            | Answer::Grant { revision, .. },
        ) => {
            *revision += if random.happens(200) { by * 1_000_000_000 } else { by };
            Some("the revision of the header")
        }
    }
}

fn spoil_kv(kv: &mut Kv, random: &mut Random) {
    match random.below(4) {
        0 => kv.value = "spoilt".into(),
        1 => kv.modified -= 1,
        2 => kv.version += 1,
        _ => kv.create -= 1,
    }
}

fn spoil_watch(history: &mut History, random: &mut Random) -> Option<&'static str> {
    let batches = &mut history.watches.first_mut()?.batches;
    let count = u64::try_from(batches.len()).unwrap();
    if count < 3 {
        return None;
    }
    let index = usize::try_from(random.below(count - 2)).unwrap();
    if batches[index].events.is_empty() {
        return None;
    }
    match random.below(4) {
        0 => {
            batches.remove(index);
            Some("a response less")
        }
        1 => {
            let again = batches[index].clone();
            batches.insert(index, again);
            Some("a response twice")
        }
        2 if !batches[index + 1].events.is_empty() => {
            batches.swap(index, index + 1);
            Some("two responses swapped")
        }
        _ => {
            let event = &mut batches[index].events[0];
            if event.delete {
                event.kv.key = "elsewhere".into();
            } else {
                spoil_kv(&mut event.kv, random);
            }
            Some("an event")
        }
    }
}

#[test]
fn a_right_history_that_is_spoilt_in_one_place_is_mostly_caught() {
    let mut random = Random::new(42);
    let (mut spoilt, mut caught) = (0, 0);
    let mut missed = std::collections::BTreeMap::<&str, usize>::new();
    for seed in 0..400 {
        let mut history = simulate(&Plan { operations: 250, ..plan(seed) });
        let Some(what) = spoil(&mut history, &mut random) else { continue };
        spoilt += 1;
        match judge(&history) {
            Ok(_) => *missed.entry(what).or_default() += 1,
            Err(_) => caught += 1,
        }
    }
    eprintln!("{caught} of {spoilt} caught; missed: {missed:?}");
    assert!(spoilt > 200);
    assert!(caught * 100 >= spoilt * 85, "only {caught} of {spoilt}; missed: {missed:?}");
}

/// What a crash of a judge would look like: many changes at once.
#[test]
fn no_history_is_too_spoilt_to_be_judged() {
    let mut random = Random::new(7);
    for seed in 0..100 {
        let mut history = simulate(&Plan { operations: 120, ..plan(seed) });
        for _ in 0..20 {
            spoil(&mut history, &mut random);
        }
        let _ = judge(&history);
        if let Some(operation) = history.operations.first_mut() {
            operation.invoke = u64::MAX;
            operation.outcome = Outcome::Known(Answer::Put { revision: i64::MAX, prev: None });
        }
        let _ = judge(&history);
    }
}
