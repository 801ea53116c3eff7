//! `benchmark`: load for etcd's API and the figures that tell how the server bore it.
//!
//! The command line and the report are those of etcd's own tool, so that published commands run as
//! written and outputs can be laid side by side; what a server's process paid per request is added.
//! It speaks to etcore and to etcd alike. The load comes from one thread (more on request) with one
//! epoll loop over all connections, since a generator that costs as much as the server measures
//! itself.
//!
//! Reading order: [`limits`], `options` (the command line, read by `cli`), `workload` (what is
//! asked), `engine` (who asks, when), `tally` (what came back), `report` (how it is told);
//! and `compare`, which holds two servers against each other. They use
//! `unary`, `leader`, `process`, `progress`, `dial` and `gotext`.

mod cli;
mod compare;
mod dial;
mod engine;
mod gotext;
mod leader;
pub mod limits;
mod options;
mod process;
mod progress;
mod report;
mod security;
mod tally;
mod unary;
mod workload;

use std::io::Write;

use crate::compare::CompareError;
use crate::dial::Stream;
use crate::engine::{Crew, EngineError};
use crate::leader::LeaderError;
use crate::options::{Choice, Endpoint, Options, WatchOptions};
use crate::process::{ProcessError, Usage};
use crate::report::Report;

/// Exit status: all requests were made, and at least one succeeded.
pub const EXIT_OK: u8 = 0;
/// Exit status: no server, no success, or a run cut short.
pub const EXIT_FAILED: u8 = 1;
/// Exit status: a command line that makes no sense.
pub const EXIT_USAGE: u8 = 2;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("{0}")]
    Usage(#[from] options::UsageError),
    #[error("--server-pid: {0}")]
    Process(#[from] ProcessError),
    #[error("{0}")]
    Dial(#[from] dial::DialError),
    #[error("{0}")]
    Leader(#[from] LeaderError),
    #[error("{0}")]
    Engine(#[from] EngineError),
    #[error("{0}")]
    Compare(#[from] CompareError),
    #[error("cannot write the report: {0}")]
    Write(#[from] std::io::Error),
}

impl RunError {
    fn status(&self) -> u8 {
        match self {
            RunError::Usage(_) | RunError::Process(_) => EXIT_USAGE,
            RunError::Compare(error) if error.is_usage() => EXIT_USAGE,
            _ => EXIT_FAILED,
        }
    }
}

/// Runs the command that `arguments` (without the program's name) describe; the report goes to
/// `out`, complaints and, if `progress`, a progress bar to `err`. Returns the exit status.
pub fn run(arguments: &[String], out: &mut dyn Write, err: &mut dyn Write, progress: bool) -> u8 {
    match run_command(arguments, out, err, progress) {
        Ok(status) => status,
        Err(error) => {
            // Nobody is left to tell if even this fails; the status still says it.
            let _ = writeln!(err, "Error: {error}");
            error.status()
        }
    }
}

fn run_command(
    arguments: &[String],
    out: &mut dyn Write,
    err: &mut dyn Write,
    progress: bool,
) -> Result<u8, RunError> {
    let options = match options::parse(arguments)? {
        Choice::Help(text) => {
            out.write_all(text.as_bytes())?;
            return Ok(EXIT_OK);
        }
        Choice::Watch(options) => return run_watch(&options, out, err),
        Choice::Compare(args) => {
            compare::run(&args, out, err)?;
            return Ok(EXIT_OK);
        }
        Choice::Run(options) => *options,
    };
    let before = usages(&options.server_pids)?;
    let sockets = dial_all(&options)?;
    if let Some(line) = options.opening_line()
        && !options.json
    {
        writeln!(out, "{line}")?;
    }
    let crew = Crew::new(&options, sockets)?;
    let own_before = process::own_usage()?;
    let outcome = match progress {
        true => crew.run(|done, total| progress::draw(err, done, total))?,
        false => crew.run(|_, _| ())?,
    };
    if progress {
        progress::finish(err);
    }
    let own_after = process::own_usage()?;
    let after = usages(&options.server_pids)?;
    let report = Report {
        options: &options,
        outcome: &outcome,
        servers: process::differences(&options.server_pids, &before, &after),
        own_cpu_us: own_after.cpu_us().saturating_sub(own_before.cpu_us()),
    };
    report.write(out)?;
    if let Some(reason) = &outcome.cut_short {
        writeln!(err, "Error: {reason}")?;
    }
    let fine = outcome.cut_short.is_none() && outcome.tally.count() > 0;
    Ok(if fine { EXIT_OK } else { EXIT_FAILED })
}

/// `watch-latency`: the connections that watch, and one that puts.
fn run_watch(
    options: &WatchOptions,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<u8, RunError> {
    let endpoints = options.endpoints.iter().cycle().take(options.conns + 1);
    let sockets = endpoints
        .map(|endpoint| Ok((endpoint.clone(), dial::connect(endpoint, options.dial_timeout)?)))
        .collect::<Result<Vec<_>, dial::DialError>>()?;
    let before = usages(&options.server_pids)?;
    let outcome = engine::watching::run(options, sockets)?;
    let after = usages(&options.server_pids)?;
    let servers = process::differences(&options.server_pids, &before, &after);
    report::write_watch(options, &outcome, &servers, out)?;
    if let Some(failure) = &outcome.failure {
        writeln!(err, "Error: {failure}")?;
        return Ok(EXIT_FAILED);
    }
    Ok(EXIT_OK)
}

fn usages(pids: &[u32]) -> Result<Vec<Usage>, ProcessError> {
    pids.iter().map(|pid| process::usage(*pid)).collect()
}

/// Connects all connections, spread over the endpoints in turn.
fn dial_all(options: &Options) -> Result<Vec<(Endpoint, Stream)>, RunError> {
    let endpoints = match options.target_leader {
        true => vec![leader::find(&options.endpoints, options.dial_timeout)?],
        false => options.endpoints.clone(),
    };
    let turns = endpoints.iter().cycle().take(options.conns);
    turns
        .map(|endpoint| Ok((endpoint.clone(), dial::connect(endpoint, options.dial_timeout)?)))
        .collect()
}
