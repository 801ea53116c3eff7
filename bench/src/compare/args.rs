//! What may be compared, and the flags of it.
//!
//! Read by `cli`, used by all of `compare`. The environment variables are older than the flags, and
//! give way to them.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::{CompareError, host};
use crate::cli::number;

/// A comparison: the servers it starts and the loads they meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// One member: CPU per request, latency, throughput, memory; about ten minutes.
    Member,
    /// Three members: rates, latency, CPU of all three, memory.
    Cluster,
    /// Watches: latency of events, memory, CPU.
    Watch,
    /// Where the time of one client's put goes.
    PutLatency,
}

/// A server and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Side {
    /// Names its folders, its lines and its column.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Flags of `compare`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Run it from the project's root, on a machine with nothing else to do. \
                        What is measured, and how to read it: bench/runs/README.md.")]
pub(crate) struct CompareArgs {
    /// What to measure.
    #[arg(value_name = "WHAT")]
    pub(crate) kind: Kind,
    /// One server, name=path: takes etcd's flags. [default: etcd=$ETCD_BIN, or
    /// etcd=target/oracle/etcd]
    #[arg(long, value_name = "NAME=PATH")]
    left: Option<Side>,
    /// The other server. [default: etcore=$ETCORE_BIN, or etcore=target/release/etcore]
    #[arg(long, value_name = "NAME=PATH")]
    right: Option<Side>,
    /// How often each server is measured; every second round in the other order.
    #[arg(long, value_name = "COUNT", default_value = "3", env = "GATES_ROUNDS")]
    #[arg(value_parser = number::<u32>(1, 1_000))]
    rounds: u32,
    /// One round with a twentieth of the requests, to see that everything works: its figures mean
    /// nothing.
    #[arg(long, env = "GATES_QUICK")]
    pub(crate) quick: bool,
    /// The folder for results. [default: bench/runs/DATE-HOST-WHAT]
    #[arg(long, value_name = "DIR", env = "GATES_OUT")]
    out: Option<PathBuf>,
    /// The folder for data: on a real disk, since syncs are free in memory.
    #[arg(long, value_name = "DIR", default_value = "target/gates", env = "GATES_DIR")]
    pub(crate) scratch: PathBuf,
    /// The servers' first port on 127.0.0.1; up to 110 more are used.
    #[arg(long, value_name = "PORT", default_value = "23790", env = "GATES_PORT")]
    #[arg(value_parser = number::<u16>(1, 65_400))]
    pub(crate) port: u16,
    /// watch: seconds of puts in each load.
    #[arg(long, value_name = "COUNT", default_value = "20", env = "GATES_SECONDS")]
    #[arg(value_parser = number::<u64>(1, 86_400))]
    seconds: u64,
    /// The `benchmark` that makes the load. [default: this program]
    #[arg(long, value_name = "PATH", env = "BENCHMARK_BIN")]
    pub(crate) benchmark: Option<PathBuf>,
    /// put-latency: the program that measures the disk by itself.
    #[arg(long, value_name = "PATH", default_value = "target/release/etcore-tune")]
    #[arg(env = "TUNE_BIN")]
    pub(crate) tune: PathBuf,
}

impl CompareArgs {
    /// The two servers, whose names differ.
    pub(crate) fn sides(&self) -> Result<[Side; 2], CompareError> {
        let left = self.left.clone();
        let left = left.unwrap_or_else(|| default_side("etcd", "ETCD_BIN", "target/oracle/etcd"));
        let right = self.right.clone();
        let right =
            right.unwrap_or_else(|| default_side("etcore", "ETCORE_BIN", "target/release/etcore"));
        if left.name == right.name {
            return Err(CompareError::Unready(format!("both servers are called {}", left.name)));
        }
        Ok([left, right])
    }

    pub(crate) fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }

    pub(crate) fn seconds(&self) -> u64 {
        if self.quick { 1 } else { self.seconds }
    }

    /// The folder for results.
    pub(crate) fn results(&self) -> PathBuf {
        let what = match self.kind {
            Kind::Member => "",
            Kind::Cluster => "-cluster",
            Kind::Watch => "-watch",
            Kind::PutLatency => "-put-latency",
        };
        let name = || format!("bench/runs/{}-{}{what}", host::date(), host::name());
        self.out.clone().unwrap_or_else(|| name().into())
    }
}

fn default_side(name: &str, variable: &str, path: &str) -> Side {
    let path = std::env::var_os(variable).map_or_else(|| path.into(), PathBuf::from);
    Side { name: name.to_owned(), path }
}

impl FromStr for Side {
    type Err = String;

    /// The name becomes a folder that is emptied, so it may not lead anywhere else.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("expected name=path")?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || !name.chars().all(is_plain) || RESERVED.contains(&name) {
            return Err(format!(
                "{name:?} is no name: letters, digits, - and _, and not a folder's"
            ));
        }
        if path.is_empty() {
            return Err("expected name=path".to_owned());
        }
        Ok(Side { name: name.to_owned(), path: path.into() })
    }
}

/// Folders below the scratch folder that are no server's.
const RESERVED: [&str; 2] = ["bodies", "probe"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_a_plain_name_and_a_path() {
        let side: Side = "old=/tmp/a=b".parse().unwrap();
        assert_eq!((side.name.as_str(), side.path), ("old", PathBuf::from("/tmp/a=b")));
        for text in ["old", "=x", "old=", "../x=y", "a.b=c", "probe=x"] {
            assert!(text.parse::<Side>().is_err(), "{text}");
        }
    }
}
