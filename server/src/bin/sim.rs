//! The `sim` program: runs seeds of the simulator, prints what they found.
//!
//! `--seed N` runs one and prints the hash of its trace; `--seeds A..B` runs many, on `--threads
//! N`, and goes on until the first violation; with `--hardships` only those with one member's
//! trouble at a time, with `--joiners` only those whose members come and go. It must never decide
//! anything by the time it took.

use std::cell::Cell;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use etcore_server::clock::Clock;
use etcore_server::sim::{Plan, Report, run};

/// Lines of the trace that a violation is told with.
const TAIL: usize = 120;

/// Reports of other threads that wait to be told.
const REPORTS_MAX: usize = 16;

thread_local! {
    /// The seed that is being run, for the last words of a build whose panics abort.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

struct Options {
    seeds: std::ops::Range<u64>,
    members: Option<usize>,
    threads: usize,
    trace: bool,
    /// Go on after a violation.
    all: bool,
    /// Leave out the seeds without them.
    hardships: bool,
    joiners: bool,
    history: Option<String>,
    /// The deliberate fault that is on; `all` tries each.
    bug: Option<String>,
}

fn main() -> ExitCode {
    let mut out = std::io::stdout().lock();
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let seed = SEED.get();
        let _ = writeln!(std::io::stderr(), "seed {seed}: an assertion inside a member fails");
        say(panic);
    }));
    match options(std::env::args().skip(1)) {
        Ok(options) => match start(&options, &mut out) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            // A closed pipe is the reader's business.
            Err(_) => ExitCode::FAILURE,
        },
        Err(usage) => {
            let _ = writeln!(std::io::stderr(), "{usage}");
            ExitCode::from(2)
        }
    }
}

fn options(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    const USAGE: &str = "sim [--seed N | --seeds A..B] [--members N] [--threads N] [--trace] \
                         [--all] [--hardships] [--joiners] [--history FILE] [--bug NAME|all]";
    let mut options = Options {
        seeds: 0..1,
        members: None,
        threads: 1,
        trace: false,
        all: false,
        hardships: false,
        joiners: false,
        history: None,
        bug: None,
    };
    let mut arguments = arguments.peekable();
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"));
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text}?\n{USAGE}"));
        match name.as_str() {
            "--seed" => {
                let seed = number(&value()?)?;
                options.seeds = seed..seed + 1;
            }
            "--seeds" => {
                let text = value()?;
                let (from, to) = text.split_once("..").ok_or_else(|| USAGE.to_owned())?;
                options.seeds = number(from)?..number(to)?;
            }
            "--members" => options.members = usize::try_from(number(&value()?)?).ok(),
            "--threads" => options.threads = usize::try_from(number(&value()?)?).unwrap_or(1),
            "--trace" => options.trace = true,
            "--all" => options.all = true,
            "--hardships" => options.hardships = true,
            "--joiners" => options.joiners = true,
            "--history" => options.history = Some(value()?),
            "--bug" => options.bug = Some(value()?),
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(options)
}

fn plan(seed: u64, options: &Options) -> Plan {
    SEED.set(seed);
    Plan::from_seed(seed, options.members)
}

/// True if a seed is among those that were asked for.
fn is_wanted(seed: u64, options: &Options) -> bool {
    let plan = || plan(seed, options);
    (!options.hardships || !plan().hardships.is_empty()) && (!options.joiners || plan().joiners > 0)
}

fn start(options: &Options, out: &mut impl Write) -> std::io::Result<bool> {
    match &options.bug {
        None => simulate(options, out),
        Some(name) => mutate(name, options, out),
    }
}

/// Lets each fault be found: prints the first seed that does, and the property that it breaks.
#[cfg(feature = "seeded-bugs")]
fn mutate(name: &str, options: &Options, out: &mut impl Write) -> std::io::Result<bool> {
    use etcore_engine::seeded_bug::{SeededBug, switch};
    let mut all_found = true;
    for bug in SeededBug::ALL {
        if name != "all" && name != format!("{bug:?}") {
            continue;
        }
        switch(Some(bug));
        let clock = Clock::start();
        let mut found = None;
        let mut virtual_ns = 0;
        for seed in options.seeds.clone().filter(|seed| is_wanted(*seed, options)) {
            let report = simulate_one(seed, options);
            for line in &report.lines {
                writeln!(out, "{line}")?;
            }
            virtual_ns += report.virtual_ns;
            if let Some(violation) = report.violation {
                found = Some((seed, violation));
                break;
            }
        }
        switch(None);
        let (took, simulated) = (clock.elapsed().as_secs_f64(), virtual_ns / 1_000_000_000);
        match found {
            Some((seed, violation)) => writeln!(
                out,
                "{bug:?}: seed {seed}, {took:.1} s, {simulated} virtual s: {violation:.300}"
            )?,
            None => {
                all_found = false;
                writeln!(out, "{bug:?}: not found, {took:.1} s, {simulated} virtual s")?;
            }
        }
    }
    Ok(all_found)
}

#[cfg(not(feature = "seeded-bugs"))]
fn mutate(_: &str, _: &Options, out: &mut impl Write) -> std::io::Result<bool> {
    writeln!(out, "built without the feature `seeded-bugs`")?;
    Ok(false)
}

fn simulate(options: &Options, out: &mut impl Write) -> std::io::Result<bool> {
    if options.threads <= 1 {
        let seeds = options.seeds.clone().filter(|seed| is_wanted(*seed, options));
        return judge(options, seeds.map(|seed| simulate_one(seed, options)), out);
    }
    let (next, stop) = (AtomicU64::new(options.seeds.start), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (reports, told) = sync_channel(REPORTS_MAX);
        for _ in 0..options.threads {
            let reports = reports.clone();
            scope.spawn(|| simulate_next(options, &next, &stop, reports));
        }
        drop(reports);
        let judged = judge(options, told.iter(), out);
        stop.store(true, Ordering::Relaxed);
        // Who is about to tell of one more must not wait.
        drop(told);
        judged
    })
}

/// Takes one seed after the other until there are none left, or nobody listens.
fn simulate_next(
    options: &Options,
    next: &AtomicU64,
    stop: &AtomicBool,
    reports: SyncSender<Report>,
) {
    while !stop.load(Ordering::Relaxed) {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed < options.seeds.end && !is_wanted(seed, options) {
            continue;
        }
        if seed >= options.seeds.end || reports.send(simulate_one(seed, options)).is_err() {
            return;
        }
    }
}

fn simulate_one(seed: u64, options: &Options) -> Report {
    run(plan(seed, options), if options.trace { usize::MAX } else { 0 })
}

fn judge(
    options: &Options,
    reports: impl Iterator<Item = Report>,
    out: &mut impl Write,
) -> std::io::Result<bool> {
    let clock = Clock::start();
    let (mut ran, mut failed, mut undecided) = (0u64, 0u64, 0u64);
    let (mut virtual_ns, mut said) = (0u64, Duration::ZERO);
    let single = options.seeds.end - options.seeds.start == 1;
    for report in reports {
        let seed = report.seed;
        ran += 1;
        virtual_ns += report.virtual_ns;
        undecided += u64::from(report.undecided);
        if single || report.undecided {
            tell(&report, out)?;
        }
        for line in &report.lines {
            writeln!(out, "{line}")?;
        }
        if let Some(path) = &options.history {
            let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
            etcore_history::lines::write(&report.history, &mut file)?;
        }
        if let Some(violation) = &report.violation {
            failed += 1;
            writeln!(out, "seed {seed}: {violation}")?;
            if !options.trace && !options.all {
                // Runs again, this time with its trace kept.
                for line in run(plan(seed, options), TAIL).lines {
                    writeln!(out, "{line}")?;
                }
                writeln!(out, "seed {seed}: {violation}")?;
            }
            if !options.all {
                return Ok(false);
            }
        }
        if !single && clock.elapsed() - said > Duration::from_secs(5) {
            said = clock.elapsed();
            progress(ran, failed, undecided, virtual_ns, clock.elapsed(), out)?;
        }
    }
    if !single {
        progress(ran, failed, undecided, virtual_ns, clock.elapsed(), out)?;
    }
    Ok(failed == 0)
}

fn tell(report: &Report, out: &mut impl Write) -> std::io::Result<()> {
    let (operations, unknown) = report.operations;
    writeln!(
        out,
        "seed {}: trace {:016x}, {} events, {:.1} s, {} starts, {operations} operations ({unknown} \
         unknown), {} watch responses, revision {}{}",
        report.seed,
        report.trace_hash,
        report.events,
        report.virtual_ns as f64 / 1e9,
        report.starts,
        report.watch_batches,
        report.revision,
        if report.undecided { ", not judged: too many choices" } else { "" },
    )
}

fn progress(
    ran: u64,
    failed: u64,
    undecided: u64,
    virtual_ns: u64,
    took: Duration,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let seconds = took.as_secs_f64().max(0.001);
    writeln!(
        out,
        "{ran} seeds, {failed} failed, {undecided} undecided, {:.1} seeds/s, {:.1} simulated hours \
         an hour",
        ran as f64 / seconds,
        virtual_ns as f64 / 1e9 / seconds,
    )
}
