//! `benchmark compare`: two servers under the same loads, in turn, on one machine.
//!
//! Called by `run`. Each round starts each server on an empty folder, every second round in the
//! other order, and ends it; the medians over the rounds and their ratio are what counts. What is
//! measured, and how to read it, is in `bench/runs/README.md`. Must never touch anything but its
//! scratch and result folders, nor end a process that it did not start.
//!
//! Reading order: `args` (what may be compared), `member`, `cluster`, `watch` and `put_latency`
//! (what is measured), which use `servers` (how servers live), `load` and `h2load` (who asks) and
//! `http`; then `figures` and `host` (how it is told).

pub(crate) mod args;
mod cluster;
mod figures;
mod h2load;
mod host;
mod http;
mod load;
mod member;
mod put_latency;
mod servers;
mod watch;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use args::{CompareArgs, Kind, Side};
use figures::{Figure, Figures};

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompareError {
    /// Something that is needed is not there; nothing was started.
    #[error("{0}")]
    Unready(String),
    /// A server or a load did not do what it should.
    #[error("{0}")]
    Failed(String),
    #[error("{what}: {cause}")]
    Io { what: String, cause: std::io::Error },
    #[error("ended by a signal; the servers are ended too")]
    Interrupted,
}

impl CompareError {
    /// Whether the command line, or what it names, is to blame.
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, CompareError::Unready(_))
    }
}

/// What a comparison needs to go on: the flags, the figures so far, and where it stands.
struct Comparison<'a> {
    args: &'a CompareArgs,
    sides: [Side; 2],
    figures: Figures,
    /// Counted from 1.
    round: u32,
    /// Which of the sides is measured.
    at: usize,
    stopped: Arc<AtomicBool>,
    began: Instant,
    progress: &'a mut dyn Write,
}

/// Measures what `args` ask for; the summary goes to `out`, progress to `progress`.
pub(crate) fn run(
    args: &CompareArgs,
    out: &mut dyn Write,
    progress: &mut dyn Write,
) -> Result<(), CompareError> {
    let sides = args.sides()?;
    prepare(args, &sides)?;
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stopped)).map_err(io_error("signals"))?;
    }
    let results = args.results();
    let mut comparison = Comparison {
        args,
        sides,
        figures: Figures::create(&results)?,
        round: 0,
        at: 0,
        stopped,
        began: Instant::now(),
        progress,
    };
    let notes = comparison.rounds()?;
    let summary = comparison.summary(&notes);
    let path = results.join("summary.md");
    std::fs::write(&path, &summary).map_err(io_error(path.display()))?;
    comparison.say(&format!("the results are in {}", results.display()));
    out.write_all(summary.as_bytes()).map_err(io_error("cannot write the summary"))
}

impl Comparison<'_> {
    /// Makes all rounds; what the summary is to say of them.
    fn rounds(&mut self) -> Result<String, CompareError> {
        let rounds = self.args.rounds();
        let mut notes = vec![format!("rounds: {rounds}")];
        if self.args.quick {
            notes.push("quick: these figures mean nothing".to_owned());
        }
        notes.extend(match self.args.kind {
            Kind::Member => member::note(),
            Kind::Watch => Some(format!("{} s a load", self.args.seconds())),
            Kind::PutLatency => Some(put_latency::note(self.args)),
            Kind::Cluster => None,
        });
        for round in 1..=rounds {
            self.round = round;
            let order = if round % 2 == 1 { [0, 1] } else { [1, 0] };
            for at in order {
                self.at = at;
                match self.args.kind {
                    Kind::Member => member::measure(self)?,
                    Kind::Cluster => cluster::measure(self)?,
                    Kind::Watch => watch::measure(self)?,
                    Kind::PutLatency => put_latency::measure(self)?,
                }
            }
            if self.args.kind == Kind::PutLatency {
                put_latency::probe(self)?;
            }
        }
        Ok(notes.join(", "))
    }

    fn side(&self) -> &Side {
        &self.sides[self.at]
    }

    fn record(&mut self, metric: &str, unit: &'static str, value: f64) -> Result<(), CompareError> {
        let figure = Figure {
            round: self.round,
            side: self.side().name.clone(),
            metric: metric.to_owned(),
            unit,
            value,
        };
        self.say(&format!("{}: {metric} {value:.3} {unit}", figure.side));
        self.figures.add(figure)
    }

    /// Tells where it stands. That nobody reads it is no reason to stop.
    fn say(&mut self, text: &str) {
        let seconds = self.began.elapsed().as_secs();
        let (round, rounds) = (self.round, self.args.rounds());
        let _ = writeln!(self.progress, "[{seconds:4} s] round {round}/{rounds}, {text}")
            .and_then(|()| self.progress.flush());
    }

    fn check_stopped(&self) -> Result<(), CompareError> {
        match self.stopped.load(Ordering::Relaxed) {
            true => Err(CompareError::Interrupted),
            false => Ok(()),
        }
    }

    /// A number of requests, a twentieth of it in a quick comparison.
    fn count(&self, whole: u64) -> u64 {
        if self.args.quick { (whole / QUICK_DIVISOR).max(1) } else { whole }
    }

    fn summary(&self, notes: &str) -> String {
        let [left, right] = &self.sides;
        let title = match self.args.kind {
            Kind::Member => "",
            Kind::Cluster => "Three members: ",
            Kind::Watch => "Watches: ",
            Kind::PutLatency => "One client's put: ",
        };
        format!(
            "# {title}{} against {}, {}\n\n- host: {}\n- {}\n- {}\n- checkout: {}\n- {notes}\n\n\
             Medians. The ratio is {} / {}, for rates {} / {}: above 1 {} is better.\n\n{}",
            right.name,
            left.name,
            host::date(),
            host::line(&self.args.scratch),
            host::version(left),
            host::version(right),
            host::checkout(),
            left.name,
            right.name,
            right.name,
            left.name,
            right.name,
            self.figures.table([&left.name, &right.name]),
        )
    }
}

/// Refuses what would end in the middle, or measure nothing.
fn prepare(args: &CompareArgs, sides: &[Side; 2]) -> Result<(), CompareError> {
    let unready = |text: String| Err(CompareError::Unready(text));
    for side in sides {
        if !side.path.is_file() {
            return unready(format!(
                "{}: there is no {}: see bench/runs/README.md",
                side.name,
                side.path.display()
            ));
        }
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return unready("two cores are needed".to_owned());
    }
    std::fs::create_dir_all(&args.scratch).map_err(io_error(args.scratch.display()))?;
    let filesystem = host::filesystem(&args.scratch);
    if ["tmpfs", "ramfs"].contains(&filesystem.as_str()) {
        return unready(format!(
            "{} is in memory, where syncs are free: set --scratch to a folder on a disk",
            args.scratch.display()
        ));
    }
    Ok(())
}

/// Says what an error of the system was about.
fn io_error(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> CompareError {
    move |cause| CompareError::Io { what: what.to_string(), cause }
}

/// The folder of one side below the scratch folder.
fn side_folder(scratch: &Path, side: &Side) -> std::path::PathBuf {
    scratch.join(&side.name)
}

/// By how much fewer requests a quick comparison makes.
const QUICK_DIVISOR: u64 = 20;
/// Where the server runs and where the load runs, if they are kept apart: positions among the cores
/// that this process may use.
const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;
