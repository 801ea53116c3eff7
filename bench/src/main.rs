//! The `benchmark` program: hands the command line and the standard streams to the library.
//!
//! Must never hold logic of its own, so that tests reach everything in process.

use std::io::{IsTerminal as _, stderr, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let progress = stderr().is_terminal();
    let status = etcore_bench::run(&arguments, &mut stdout(), &mut stderr(), progress);
    ExitCode::from(status)
}
