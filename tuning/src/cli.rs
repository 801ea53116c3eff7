//! Flags.
//!
//! Called by `main`. Ranges are checked here, so that the measurements can rely on them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::limits;

/// Looks at a host, measures what a member would get from it, and says what to change.
#[derive(Debug, Clone, Parser)]
#[command(name = "etcore-tune", version, propagate_version = true)]
#[command(
    after_help = "Exit status: 0 nothing needs to be changed, 1 something should be changed \
                        before a member runs here, 2 the probe could not be carried out."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Measure and report; changes nothing.
    ///
    /// Writes a file of --file-mib below the data directory, measures durable writes to it the way
    /// the log writes, removes it, and looks up what else matters: cores and quotas, clock, kernel,
    /// io_uring, locked memory, file system, disk scheduler, and the round trips to --peers. Run it
    /// as the user, in the container and with the limits that the member will have, while nothing
    /// else uses the disk.
    Probe(ProbeArgs),
}

/// Flags of `probe`.
#[derive(Debug, Clone, Args)]
pub struct ProbeArgs {
    /// The member's data directory. If it does not exist yet, its nearest parent is measured.
    #[arg(long, value_name = "DIR", default_value = ".", env = "ETCD_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Other members, to measure the round trip to each.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub peers: Vec<String>,
    /// Durable writes per method: so many one after the other, and so many after a pause each.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::WRITES_MAX)))]
    pub writes: u32,
    /// Bytes per write, rounded up to a multiple of 4096.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::WRITE_BYTES_MAX)))]
    pub write_bytes: u32,
    /// Length of the file written to: a log segment's by default.
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::FILE_MIB_MAX)))]
    pub file_mib: u32,
    /// Longest time for one method, without a pause and again with one.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    /// No progress line, also on a terminal.
    #[arg(long)]
    pub quiet: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for flags in [["--writes", "0"], ["--file-mib", "5000"], ["--write-bytes", "99999999"]] {
            let line = ["etcore-tune", "probe"].into_iter().chain(flags);
            assert!(Cli::try_parse_from(line).is_err(), "{flags:?}");
        }
        let line = ["etcore-tune", "probe", "--peers", "a:1,b:2", "--peers", "c:3"];
        let Command::Probe(args) = Cli::try_parse_from(line).expect("parsed").command;
        assert_eq!(args.peers, ["a:1", "b:2", "c:3"]);
    }
}
