//! What an honest client is told equals what etcd tells it, whatever it asks and however it puts
//! it: calls drawn from a seed, as bytes over HTTP/2, right, odd and wrong, go to a fresh etcd and
//! a fresh etcore, and heads, codes, texts, messages, events and ends must be the same. They must
//! be also while hostile clients are busy on the same member.
//!
//! A few seeds by default; `ETCORE_EQUALS_S` says for how many seconds it goes on with fresh ones,
//! `ETCORE_EQUALS_SEED` where to begin; a difference prints its seed and the shortest program that
//! shows it, or with `ETCORE_EQUALS_ALL` as it was found, and the rest of the program follows. What
//! two right servers may say differently is in the head of `differential.rs`. In addition, this is
//! not compared here:
//!
//! * heads that RFC 9113 calls malformed: etcd takes some of them, etcore resets their streams,
//!   which is checked
//! * trailers of requests, for which etcd ends the connection, calls that end with their head,
//!   which it never answers, and alarm actions that do not exist, of which it dies
//! * hashes of the whole store, and the order of leases
//! * how a read ends whose deadline has passed before it began
//! * whether a stream that ends with an error has told all that happened before
//! * what is wrong with gzip behind its head: inflaters notice different things first
//! * requests that are too large only because they give a field twice
//! * an alarm NOSPACE that lasts for ten seconds, which etcore ends by itself

mod alter;
mod draw;
mod peer;
mod restarts;
mod run;

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use etcore_server::sim::hostile::{Hostile, Manner, leases};

use super::differential::{answer, generate, program, server, versions};
use crate::abuse::hostile::{attacker, wire};
use crate::harness::{DRIVERS, is_available, oracle};
use draw::{Dress, Step, program};
use run::{Difference, Outcome, Pair};
use server::Kind;

/// Steps of one program.
const STEPS: usize = 1_200;
/// How long a failing program is shortened.
const SHRINK: Duration = Duration::from_secs(90);

/// Leases of attackers: those they name, and those that a server has named for them, at random in
/// 63 bits. Programs name theirs by small numbers.
fn hidden_leases() -> std::ops::Range<i64> {
    leases().start..i64::MAX
}

/// So many programs by default.
const SEEDS: u64 = 2;

fn seconds(default: u64) -> Duration {
    let asked = std::env::var("ETCORE_EQUALS_S").ok().map(|text| text.parse().expect("seconds"));
    Duration::from_secs(asked.unwrap_or(default))
}

/// Asked for a time, it goes on with seeds that nobody has seen; otherwise with the same few.
fn is_asked() -> bool {
    std::env::var_os("ETCORE_EQUALS_S").is_some()
}

fn first_seed(default: u64) -> u64 {
    let asked = std::env::var("ETCORE_EQUALS_SEED").ok().map(|text| text.parse().expect("a seed"));
    let fresh = || SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    asked.unwrap_or_else(|| if is_asked() { fresh() } else { default })
}

fn told(difference: &Difference) -> String {
    let [etcd, etcore] = &difference.said;
    format!("step {}\n{}\n--- etcd\n{etcd}\n--- etcore\n{etcore}", difference.at, difference.asked)
}

/// Leaves out what is not needed for a difference, and undoes changes one by one.
fn shrink(
    steps: Vec<Step>,
    difference: Box<Difference>,
    attempt: impl Fn(&[Step]) -> Option<Box<Difference>>,
) -> (Vec<Step>, Box<Difference>) {
    let deadline = Instant::now() + SHRINK;
    let (mut steps, mut difference) = (steps, difference);
    steps.truncate(difference.at + 1);
    let keep = |steps: &mut Vec<Step>, found: &mut Box<Difference>, candidate: Vec<Step>| {
        if Instant::now() > deadline {
            return false;
        }
        let Some(difference) = attempt(&candidate) else { return false };
        *steps = candidate;
        steps.truncate(difference.at + 1);
        *found = difference;
        true
    };
    let last = steps.last().cloned().into_iter().collect();
    keep(&mut steps, &mut difference, last);
    let mut chunk = steps.len() / 2;
    while chunk > 0 {
        let mut at = 0;
        while at + 1 < steps.len() {
            let mut candidate = steps.clone();
            candidate.drain(at..(at + chunk).min(candidate.len() - 1));
            if !keep(&mut steps, &mut difference, candidate) {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    let mut at = 0;
    while let Some(simpler) = simpler(&steps, at) {
        if !keep(&mut steps, &mut difference, simpler) {
            at += 1;
        }
    }
    (steps, difference)
}

/// The last step with one thing less about it.
fn simpler(steps: &[Step], number: usize) -> Option<Vec<Step>> {
    let mut steps = steps.to_vec();
    let mut left = number;
    let mut drop_at = |length: usize| {
        let at = left;
        left = left.saturating_sub(length);
        (at < length).then_some(at)
    };
    let dress = |dress: &mut Dress, drop_at: &mut dyn FnMut(usize) -> Option<usize>| {
        if let Some(at) = drop_at(dress.edits.len()) {
            dress.edits.remove(at);
            return true;
        }
        if drop_at(usize::from(dress.cut != peer::Cut::default())).is_some() {
            dress.cut = peer::Cut::default();
            return true;
        }
        if drop_at(usize::from(dress.envelope != draw::Envelope::Plain)).is_some() {
            dress.envelope = draw::Envelope::Plain;
            return true;
        }
        false
    };
    let changed = match steps.last_mut()? {
        Step::Call(call) => {
            dress(&mut call.dress, &mut drop_at)
                || drop_at(call.alters.len()).is_some_and(|at| {
                    call.alters.remove(at);
                    true
                })
        }
        Step::KeepAlive(around, renewals) => {
            dress(around, &mut drop_at)
                || drop_at(renewals.len()).is_some_and(|at| {
                    renewals.remove(at);
                    true
                })
        }
        Step::Watch(around, acts) => {
            dress(around, &mut drop_at)
                || drop_at(acts.len()).is_some_and(|at| {
                    acts.remove(at);
                    true
                })
        }
    };
    changed.then_some(steps)
}

/// Programs one after the other until the time is over.
fn compare(time: Duration, kind: impl Fn(u64) -> Kind, hostile: bool) {
    let Some(etcd) = oracle("etcd") else { return };
    let (start, mut calls, mut died) = (Instant::now(), 0, 0);
    let first = first_seed(1);
    let mut seed = first;
    let goes_on = std::env::var_os("ETCORE_EQUALS_ALL").is_some();
    let mut differences = 0;
    let most = if is_asked() { u64::MAX } else { SEEDS };
    while start.elapsed() < time && seed - first < most {
        let kinds = [Kind::Etcd(etcd.clone()), kind(seed)];
        let mut steps = program(seed, STEPS);
        let mut pair = Pair::start(&kinds, hidden_leases());
        loop {
            let outcome = if hostile {
                under_attack(pair.port(), seed, || pair.run(&steps))
            } else {
                pair.run(&steps)
            };
            match outcome {
                Outcome::Equal => break,
                Outcome::EtcdDied(at) => {
                    died += 1;
                    eprintln!("seed {seed}: etcd died at step {at}: {:?}", steps[at]);
                    // What follows is asked of fresh ones.
                    steps.drain(..=at);
                    calls += pair.calls;
                    pair = Pair::start(&kinds, hidden_leases());
                }
                Outcome::Different(difference) if goes_on => {
                    differences += 1;
                    eprintln!("seed {seed}: {}\n", told(&difference));
                    steps.drain(..=difference.at);
                    calls += pair.calls;
                    pair = Pair::start(&kinds, hidden_leases());
                }
                Outcome::Different(difference) => {
                    drop(pair);
                    eprintln!("seed {seed}: shortening {}", told(&difference));
                    let (steps, difference) = shrink(steps, difference, |steps| {
                        // Nobody attacks here: what is wrong all the same is easier to find.
                        match Pair::start(&kinds, hidden_leases()).run(steps) {
                            Outcome::Different(difference) => Some(difference),
                            Outcome::Equal | Outcome::EtcdDied(_) => None,
                        }
                    });
                    for step in &steps {
                        eprintln!("{step:?}");
                    }
                    panic!("seed {seed}, shortened as above:\n{}", told(&difference));
                }
            }
        }
        calls += pair.calls;
        seed += 1;
    }
    assert_eq!(differences, 0, "differences of seeds from {first}, told above");
    let seeds = seed - first;
    eprintln!("{calls} calls of {seeds} seeds from {first} are equal; etcd died {died} times");
}

/// Hostile clients that write nothing attack a member meanwhile.
fn under_attack<T>(port: u16, seed: u64, work: impl FnOnce() -> T) -> T {
    const ATTACKERS: u64 = 4;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..ATTACKERS {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut next = (seed << 20) + number;
                while !is_over.load(Ordering::Relaxed) {
                    let manner = Manner { writes: false, ..Manner::REAL };
                    if let Ok(socket) = TcpStream::connect(("127.0.0.1", port)) {
                        attacker::carry_out(socket, Hostile::new(next, manner));
                    }
                    next += ATTACKERS;
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        is_over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn driver_of(seed: u64) -> &'static str {
    let drivers: Vec<_> = DRIVERS.into_iter().filter(|driver| is_available(driver)).collect();
    drivers[usize::try_from(seed % 2).expect("small") % drivers.len()]
}

#[test]
fn whatever_is_asked_the_answer_is_etcds() {
    let _turn = crate::harness::turn::of_file(module_path!());
    compare(seconds(20), |seed| Kind::Etcore(driver_of(seed)), false);
}

#[test]
fn whoever_attacks_meanwhile_the_answer_is_etcds() {
    let _turn = crate::harness::turn::of_file(module_path!());
    compare(seconds(20), |seed| Kind::Etcore(driver_of(seed)), true);
}
