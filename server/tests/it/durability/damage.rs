//! Damaged directories: bytes patched at and around every record, page and meta page of a real
//! member's files. The start refuses, naming file and offset, or everything that was acknowledged
//! is there, or a read answers an error; never a panic, a hang or a wrong answer. 2,000 patches, 40
//! of them under real processes; with `ETCORE_LONG=1` 100,000 and 1,000.
//!
//! `ETCORE_SEED` chooses other patches; `ETCORE_CASE` repeats a single one.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcore_engine::testing::prng::Prng;

mod check;
mod history;
mod image;
mod layout;
mod patches;
mod running;

use crate::harness::{Client, DRIVERS, block_on, is_available};
use check::{Truth, Verdict};
use history::{End, History};
use patches::{Patch, Sources};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn long(short: u64, long: u64) -> u64 {
    if std::env::var_os("ETCORE_LONG").is_some() { long } else { short }
}

/// Ends the process if a case takes too long, and says which.
struct Watchdog {
    case: Mutex<Option<(Instant, String)>>,
}

impl Watchdog {
    const LIMIT: Duration = Duration::from_secs(60);

    fn start() -> &'static Self {
        let dog: &Self = Box::leak(Box::new(Self { case: Mutex::default() }));
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                if let Some((since, case)) = &*dog.case.lock().unwrap()
                    && since.elapsed() > Self::LIMIT
                {
                    eprintln!("hangs: {case}");
                    std::process::abort();
                }
            }
        });
        dog
    }

    fn watch<T>(&self, case: &str, work: impl FnOnce() -> T) -> T {
        *self.case.lock().unwrap() = Some((Instant::now(), case.to_owned()));
        let result = work();
        *self.case.lock().unwrap() = None;
        result
    }
}

/// How often what came out.
#[derive(Default)]
struct Tally(Mutex<BTreeMap<(&'static str, &'static str), u64>>);

impl Tally {
    fn count(&self, kind: &'static str, verdict: &Verdict) {
        let outcome = match verdict {
            Verdict::Refused(_) => "refused",
            Verdict::Whole => "whole",
            Verdict::Cut(_) => "cut",
        };
        *self.0.lock().unwrap().entry((kind, outcome)).or_default() += 1;
    }

    fn total(&self, outcome: &str) -> u64 {
        self.0.lock().unwrap().iter().filter(|(key, _)| key.1 == outcome).map(|(_, n)| n).sum()
    }
}

/// A refusal or the state, from a real process.
fn check_process(
    history: &History,
    patched: &image::Image,
    verdict: &Verdict,
    driver: &'static str,
) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = history.setup.clone();
    setup.data_dir = dir.path().join("member.etcd");
    setup.driver = driver;
    patched.store(&history::member_dir(&setup));
    let mut member = setup.spawn();
    let ready = member.wait_for_ready(Duration::from_secs(30))?;
    let log = member.seen.join("\n");
    if log.contains("panicked") {
        return Err(format!("a panic:\n{log}"));
    }
    let Some(status) = ready else {
        if matches!(verdict, Verdict::Refused(_)) {
            return Err(format!("it starts, although it should refuse:\n{log}"));
        }
        let served = block_on(async { history::ask(&Client::connect(&setup).await).await });
        let wrong = served.differences(&history.served);
        return match verdict {
            Verdict::Cut(_) if served.revision <= history.served.revision => Ok(()),
            _ if wrong.is_empty() && served.errors() == 0 => Ok(()),
            _ => Err(format!("{} errors, it serves {wrong:#?}", served.errors())),
        };
    };
    let Verdict::Refused(reason) = verdict else {
        return Err(format!("it refuses, although it should start:\n{log}"));
    };
    // The path of the directory stands in some messages.
    let core = reason.rsplit("member/").next().unwrap_or(reason);
    if status.code() != Some(1) || !log.contains(&core.replace('"', "\\\"")) {
        return Err(format!("{status}, without {reason:?}:\n{log}"));
    }
    Ok(())
}

fn run(end: End, driver: &'static str, seed: u64, cases: u64, processes: u64) -> Tally {
    let dir = tempfile::tempdir().unwrap();
    let history = history::make(&dir.path().join("own"), driver, end, seed);
    let foreign = history::make(&dir.path().join("foreign"), driver, end, seed + 1).image;
    let truth = Truth::of(history::config(&history.setup), &history.image, &history.older);
    eprintln!(
        "{end:?}, {driver}: seed {seed}, {} segments with {} records, {} pages, {} entries, page \
         file at {:?}",
        truth.layout.segments.len(),
        truth.layout.segments.iter().map(|segment| segment.records.len()).sum::<usize>(),
        truth.layout.pages.len(),
        truth.layout.entries.len(),
        truth.states.keys()
    );
    let sources = Sources {
        image: &history.image,
        layout: &truth.layout,
        older: &history.older,
        foreign: &foreign,
    };
    let (dog, tally) = (Watchdog::start(), Tally::default());
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let only = from_environment("ETCORE_CASE");
    let work = || {
        loop {
            let case = next.fetch_add(1, Ordering::Relaxed);
            if case >= cases || failures.lock().unwrap().len() >= 10 {
                return;
            }
            if only.is_some_and(|only| only != case) {
                continue;
            }
            let patch: Patch = patches::draw(&sources, &mut Prng::new(seed ^ case << 20));
            let patched = patch.apply(&sources);
            let label = format!(
                "{end:?} {driver}, ETCORE_SEED={seed} ETCORE_CASE={case}: {}",
                patch.text()
            );
            let outcome = dog.watch(&label, || {
                let verdict = truth.judge(&patch, &sources, &patched)?;
                if case.is_multiple_of(cases / processes) || only.is_some() {
                    let all = DRIVERS.into_iter().filter(|driver| is_available(driver));
                    let all: Vec<_> = all.collect();
                    let driver = all[usize::try_from(case / 7).unwrap() % all.len()];
                    check_process(&history, &patched, &verdict, driver)?;
                }
                Ok(verdict)
            });
            match outcome {
                Ok(verdict) => tally.count(patch.kind, &verdict),
                Err(what) => {
                    let what: String = what;
                    // Timing is part of the history: the directory itself is what repeats the case.
                    let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
                    let kept = kept.join(format!("damage-{seed}-{case}"));
                    patched.store(&kept.join("member"));
                    let what = format!("{what}; kept in {}", kept.display());
                    failures.lock().unwrap().push(format!("{label}\n    {what}"));
                }
            }
        }
    };
    // Real processes of one history share its ports, so one thread.
    work();
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    for ((kind, outcome), count) in tally.0.lock().unwrap().iter() {
        eprintln!("  {kind}: {outcome} {count}");
    }
    tally
}

fn seed() -> u64 {
    from_environment("ETCORE_SEED").unwrap_or(20_260_101)
}

#[test]
fn no_patch_of_a_killed_members_files_is_ever_served_as_something_else() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let tally = run(End::Killed, "portable", seed(), long(1_000, 50_000), long(20, 500));
    if from_environment("ETCORE_CASE").is_none() {
        assert!(tally.total("refused") > 300 && tally.total("whole") > 100);
        assert!(tally.total("cut") > 5, "torn tails are among them");
    }
}

#[test]
fn no_patch_of_a_stopped_members_files_is_ever_served_as_something_else() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let driver = if is_available("uring") { "uring" } else { "portable" };
    let tally = run(End::Stopped, driver, seed() + 2, long(1_000, 50_000), long(20, 500));
    if from_environment("ETCORE_CASE").is_none() {
        assert!(tally.total("refused") > 300 && tally.total("whole") > 100);
    }
}
