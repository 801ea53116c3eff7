//! The `sim` program: runs seeds of the simulator, prints what they found.
//!
//! `--seed N` runs one and prints the hash of its trace; `--seeds A..B` runs many and goes on until
//! the first violation. It must never decide anything by the time it took.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcore_server::clock::Clock;
use etcore_server::sim::{Plan, Report, run};

/// Lines of the trace that a violation is told with.
const TAIL: usize = 120;

/// The seed that is being run, for the last words of a build whose panics abort.
static SEED: AtomicU64 = AtomicU64::new(0);

struct Options {
    seeds: std::ops::Range<u64>,
    members: Option<usize>,
    trace: bool,
    /// Go on after a violation.
    all: bool,
    history: Option<String>,
    /// Which deliberate fault is on; `all` tries each.
    mutation: Option<String>,
}

fn main() -> ExitCode {
    let mut out = std::io::stdout().lock();
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let seed = SEED.load(Ordering::Relaxed);
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
    const USAGE: &str = "sim [--seed N | --seeds A..B] [--members N] [--trace] [--all] \
                         [--history FILE] [--mutation NAME|all]";
    let mut options = Options {
        seeds: 0..1,
        members: None,
        trace: false,
        all: false,
        history: None,
        mutation: None,
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
            "--trace" => options.trace = true,
            "--all" => options.all = true,
            "--history" => options.history = Some(value()?),
            "--mutation" => options.mutation = Some(value()?),
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(options)
}

fn plan(seed: u64, options: &Options) -> Plan {
    SEED.store(seed, Ordering::Relaxed);
    Plan::from_seed(seed, options.members)
}

fn start(options: &Options, out: &mut impl Write) -> std::io::Result<bool> {
    match &options.mutation {
        None => simulate(options, out),
        Some(name) => mutate(name, options, out),
    }
}

/// Lets each fault be found: prints the first seed that does, and the property that it breaks.
#[cfg(feature = "mutations")]
fn mutate(name: &str, options: &Options, out: &mut impl Write) -> std::io::Result<bool> {
    use etcore_engine::mutation::{Mutation, switch};
    let mut all_found = true;
    for mutation in Mutation::ALL {
        if name != "all" && name != format!("{mutation:?}") {
            continue;
        }
        switch(Some(mutation));
        let clock = Clock::start();
        let mut found = None;
        let mut virtual_ns = 0;
        for seed in options.seeds.clone() {
            let lines = if options.trace { usize::MAX } else { 0 };
            let report = run(plan(seed, options), lines);
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
                "{mutation:?}: seed {seed}, {took:.1} s, {simulated} virtual s: {violation:.300}"
            )?,
            None => {
                all_found = false;
                writeln!(out, "{mutation:?}: not found, {took:.1} s, {simulated} virtual s")?;
            }
        }
    }
    Ok(all_found)
}

#[cfg(not(feature = "mutations"))]
fn mutate(_: &str, _: &Options, out: &mut impl Write) -> std::io::Result<bool> {
    writeln!(out, "built without the feature `mutations`")?;
    Ok(false)
}

fn simulate(options: &Options, out: &mut impl Write) -> std::io::Result<bool> {
    let clock = Clock::start();
    let (mut ran, mut failed, mut undecided) = (0u64, 0u64, 0u64);
    let (mut virtual_ns, mut said) = (0u64, Duration::ZERO);
    let single = options.seeds.end - options.seeds.start == 1;
    for seed in options.seeds.clone() {
        let lines = if options.trace { usize::MAX } else { 0 };
        let report = run(plan(seed, options), lines);
        ran += 1;
        virtual_ns += report.virtual_ns;
        undecided += u64::from(report.undecided);
        if single {
            tell(&report, out)?;
        }
        if options.trace {
            for line in &report.lines {
                writeln!(out, "{line}")?;
            }
        }
        if let Some(path) = &options.history {
            let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
            etcore_bench::history::lines::write(&report.history, &mut file)?;
        }
        if let Some(violation) = &report.violation {
            failed += 1;
            writeln!(out, "seed {seed}: {violation}")?;
            if !options.trace && !options.all {
                // The same run again, this time with its trace kept.
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
