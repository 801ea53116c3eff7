//! `etcore-tune`: flags in, report and exit status out. Everything else is in the library.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use etcore_tuning::cli::{Cli, Command, ProbeArgs};
use etcore_tuning::probe;

/// Something should be changed.
const EXIT_PROBLEMS: u8 = 1;

/// The probe could not be carried out. clap uses the same for wrong flags.
const EXIT_ERROR: u8 = 2;

fn main() -> ExitCode {
    let Command::Probe(args) = Cli::parse().command;
    match run(&args) {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::from(EXIT_PROBLEMS),
        Err(error) => {
            // Nobody is left to hear of a closed stderr.
            let _ = writeln!(std::io::stderr(), "etcore-tune: {error}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

/// True if the report names problems.
fn run(args: &ProbeArgs) -> std::io::Result<bool> {
    let mut stderr = std::io::stderr();
    let shows = !args.quiet && stderr.is_terminal();
    let report = probe::run(args, &mut |what, percent| {
        if shows {
            let _ = write!(stderr, "\r\x1b[K{what} {percent} %");
        }
    });
    if shows {
        let _ = write!(stderr, "\r\x1b[K");
    }
    let report = report?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut stdout, &report)?;
        writeln!(stdout)?;
    } else {
        write!(stdout, "{report}")?;
    }
    stdout.flush()?;
    Ok(report.has_problems())
}
