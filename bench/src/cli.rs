//! The command line as it is typed: commands and flags with their help, read by clap.
//!
//! Called by `options`, which says what it means. The forms are those of Go's tools, since scripts
//! that call etcd's `benchmark` call this one: `-name value`, `-name=value`, `--name value`,
//! `--name=value`, switches with and without a value, flags before and after the command. Must
//! never guess: what it does not know is an error.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use etcore_proto::gotext as go;

use crate::compare::args::CompareArgs;
use crate::limits;
use crate::options::{Endpoint, PutOptions, Scheme};

/// Load for etcd's API, and what it cost the server.
#[derive(Debug, Parser)]
#[command(name = "benchmark", version, args_override_self = true, arg_required_else_help = false)]
#[command(after_help = "Flags may stand before or after the command; `benchmark COMMAND --help` \
                        lists them. Exit status: 0 all requests were made and at least one \
                        succeeded, 1 no server, no success or a run cut short, 2 a command line \
                        that makes no sense.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Puts keys.
    Put {
        #[command(flatten)]
        pace: Pace,
        #[command(flatten)]
        put: PutOptions,
        #[command(flatten)]
        common: Common,
    },
    /// Ranges over a key or an interval.
    Range {
        #[command(flatten)]
        pace: Pace,
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        common: Common,
    },
    /// Puts keys at a fixed rate and measures when watchers get the events.
    WatchLatency {
        #[command(flatten)]
        watch: WatchArgs,
        #[command(flatten)]
        common: Common,
    },
    /// Measures two servers under the same loads, in turn, and holds them against each other.
    Compare(CompareArgs),
}

/// Flags of every load.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connections and report")]
pub(crate) struct Common {
    /// Servers, host:port, http://host:port or https://host:port.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "127.0.0.1:2379")]
    pub(crate) endpoints: Vec<Endpoint>,
    /// Verify certificates of servers by this bundle; endpoints without a scheme are spoken to with
    /// TLS then.
    #[arg(long, value_name = "FILE")]
    pub(crate) cacert: Option<String>,
    /// Identify with this certificate.
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: Option<String>,
    /// The key of --cert.
    #[arg(long = "key", value_name = "FILE")]
    pub(crate) key_file: Option<String>,
    /// Connect only to the leader among the endpoints.
    #[arg(long)]
    pub(crate) target_leader: bool,
    /// Connections, spread over the endpoints in turn.
    #[arg(long, value_name = "COUNT", default_value = "1")]
    #[arg(value_parser = number::<usize>(1, limits::CONNS_MAX))]
    pub(crate) conns: usize,
    /// Clients with one request each at a time.
    #[arg(long, value_name = "COUNT", default_value = "1")]
    #[arg(value_parser = number::<usize>(1, limits::CLIENTS_MAX))]
    pub(crate) clients: usize,
    /// Threads that make the load.
    #[arg(long, value_name = "COUNT", default_value = "1")]
    #[arg(value_parser = number::<usize>(1, limits::THREADS_MAX))]
    pub(crate) threads: usize,
    /// Time for each connection; 0 is 5s.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(crate) dial_timeout: Duration,
    /// Processes whose CPU and memory are reported.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = process_id)]
    pub(crate) server_pid: Vec<u32>,
    /// Print all digits.
    #[arg(long)]
    pub(crate) precise: bool,
    /// Print latencies and throughput of each second.
    #[arg(long)]
    pub(crate) sample: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How many requests, and how fast.
#[derive(Debug, Args)]
pub(crate) struct Pace {
    /// Requests.
    #[arg(long, value_name = "COUNT", default_value = "10000")]
    #[arg(value_parser = number::<u64>(1, limits::TOTAL_MAX))]
    pub(crate) total: u64,
    /// Requests a second, on a fixed schedule; those that wait for a client count their wait. 0 is
    /// as many as the clients make.
    #[arg(long, value_name = "COUNT", default_value = "0")]
    #[arg(value_parser = number::<u64>(0, limits::RATE_MAX))]
    pub(crate) rate: u64,
}

/// Flags of `range`.
#[derive(Debug, Args)]
pub(crate) struct RangeArgs {
    /// The key, or the first one of an interval.
    pub(crate) key: Option<String>,
    /// The first key after the interval.
    pub(crate) end: Option<String>,
    /// l for linearizable, s for serializable.
    // The digit is a misprint of the letter in etcd's performance guide.
    #[arg(long, value_name = "L|S", default_value = "l", value_parser = ["l", "s", "1"])]
    #[arg(hide_possible_values = true)]
    pub(crate) consistency: String,
    /// Most keys in an answer; 0 is no limit.
    #[arg(long, value_name = "COUNT", default_value = "0")]
    #[arg(value_parser = number::<i64>(0, i64::MAX as u64))]
    pub(crate) limit: i64,
    /// Ask for the count only.
    #[arg(long)]
    pub(crate) count_only: bool,
    /// Ask for keys without values.
    #[arg(long)]
    pub(crate) keys_only: bool,
    /// Use RangeStream.
    #[arg(long)]
    pub(crate) stream: bool,
    /// Read pages of 10000 keys; all pages are one request.
    #[arg(long)]
    pub(crate) paginate: bool,
    /// Range over all keys with this prefix.
    #[arg(long)]
    pub(crate) prefix: bool,
}

/// Flags of `watch-latency`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Watch streams.
    #[arg(long, value_name = "COUNT", default_value = "10")]
    #[arg(value_parser = number::<u64>(1, limits::WATCHERS_MAX))]
    pub(crate) streams: u64,
    /// Watchers of each stream.
    #[arg(long, value_name = "COUNT", default_value = "10")]
    #[arg(value_parser = number::<u64>(1, limits::WATCHERS_MAX))]
    pub(crate) watchers_per_stream: u64,
    /// Ask for previous values.
    #[arg(long = "prevkv")]
    pub(crate) prev_kv: bool,
    /// Puts.
    #[arg(long, value_name = "COUNT", default_value = "1000")]
    #[arg(value_parser = number::<u64>(1, 1 << 32))]
    pub(crate) put_total: u64,
    /// Puts a second, on a fixed schedule.
    #[arg(long, value_name = "COUNT", default_value = "100")]
    #[arg(value_parser = number::<u64>(1, limits::RATE_MAX))]
    pub(crate) put_rate: u64,
    /// Size of keys.
    #[arg(long, value_name = "BYTES", default_value = "32")]
    #[arg(value_parser = number::<usize>(9, limits::KEY_BYTES_MAX))]
    pub(crate) key_size: usize,
    /// Size of values, the put's number included.
    #[arg(long, value_name = "BYTES", default_value = "32")]
    #[arg(value_parser = number::<usize>(8, limits::VALUE_BYTES_MAX))]
    pub(crate) val_size: usize,
    /// Different keys, shared out to streams.
    #[arg(long, value_name = "COUNT", default_value = "1")]
    #[arg(value_parser = number::<u64>(1, i64::MAX as u64))]
    pub(crate) key_space_size: u64,
    /// Every watcher watches all keys.
    #[arg(long)]
    pub(crate) prefix: bool,
}

/// Reads a command line without the program's name.
///
/// # Errors
/// What clap says of it: also the help and the version, if those are asked for.
pub(crate) fn parse(arguments: &[String]) -> Result<Cli, clap::Error> {
    let mut command = go_switches(Cli::command());
    let words = in_order(&command, arguments);
    let words = std::iter::once("benchmark".to_owned()).chain(words);
    let mut matches = command.try_get_matches_from_mut(words)?;
    Cli::from_arg_matches_mut(&mut matches)
}

/// Gives every switch the form that Go's have: `--name`, or `--name=false`.
fn go_switches(command: clap::Command) -> clap::Command {
    command.mut_subcommands(|command| {
        command.mut_args(|argument| match argument.get_action() {
            ArgAction::SetTrue => argument
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_value("false")
                .default_missing_value("true")
                .value_parser(|text: &str| {
                    go::parse_bool(text).ok_or("expected true or false".to_owned())
                })
                .hide_default_value(true)
                .hide_possible_values(true)
                .value_name("BOOL"),
            _ => argument,
        })
    })
}

/// Doubles the dash of long flags that have one, and moves the command before the flags that stand
/// before it, since clap looks for them behind it.
fn in_order(command: &clap::Command, arguments: &[String]) -> Vec<String> {
    let switches: BTreeSet<&str> = command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
        .filter(|argument| argument.is_require_equals_set())
        .filter_map(clap::Arg::get_long)
        .chain(["help", "version"])
        .collect();
    let end = arguments.iter().position(|word| word == "--").unwrap_or(arguments.len());
    let (flags, positional) = arguments.split_at(end);
    let mut words: Vec<String> = flags.iter().map(|word| two_dashes(word)).collect();
    match command_at(&words, &switches) {
        Some(at) => words[..=at].rotate_right(1),
        // That no command is named is to be said, not that some flag belongs to none.
        None => words.retain(|word| ["--help", "-h", "--version", "-V"].contains(&word.as_str())),
    }
    words.extend_from_slice(positional);
    words
}

/// Where the first word stands that is neither a flag nor a flag's value.
fn command_at(words: &[String], switches: &BTreeSet<&str>) -> Option<usize> {
    let mut at = 0;
    while let Some(flag) = words.get(at)?.strip_prefix('-') {
        let name = flag.strip_prefix('-').unwrap_or("");
        let takes_next = !name.is_empty() && !name.contains('=') && !switches.contains(name);
        at += if takes_next { 2 } else { 1 };
    }
    Some(at)
}

fn two_dashes(word: &str) -> String {
    let is_long_flag = word.len() > 2
        && word.strip_prefix('-').is_some_and(|name| name.starts_with(|c: char| c.is_alphabetic()));
    if is_long_flag { format!("-{word}") } else { word.to_owned() }
}

/// A whole number between `min` and `max`, in Go's notation.
pub(crate) fn number<T: TryFrom<u64>>(
    min: u64,
    max: u64,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = go::parse_uint(text, 64).ok().filter(|number| (min..=max).contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| format!("expected a number from {min} to {max}"))
    }
}

/// A duration that is not negative, in Go's notation.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let ns = go::parse_duration(text).and_then(|ns| u64::try_from(ns).ok());
    ns.map(Duration::from_nanos)
        .ok_or_else(|| "expected a duration such as 500ms or 1m30s".to_owned())
}

fn process_id(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| "expected a process id".to_owned())
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "expected host:port, http://host:port or https://host:port";
        let text = text.trim();
        let (scheme, authority) = match text.split_once("://") {
            None => (Scheme::Either, text),
            Some(("http", authority)) => (Scheme::Plain, authority),
            Some(("https", authority)) => (Scheme::Tls, authority),
            Some(_) => return Err(FORM.to_owned()),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let port = authority.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        match port.map(|(_, port)| port.parse::<u16>()) {
            Some(Ok(_)) => Ok(Endpoint { scheme, ..Endpoint::plain(authority) }),
            _ => Err(FORM.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(line: &str) -> Common {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match parse(&words).unwrap().command {
            Command::Put { common, .. } | Command::Range { common, .. } => common,
            Command::WatchLatency { common, .. } => common,
            Command::Compare(_) => panic!("{line} has no common flags"),
        }
    }

    #[test]
    fn the_flags_contradict_each_other_nowhere() {
        go_switches(Cli::command()).debug_assert();
    }

    #[test]
    fn every_form_of_go_is_taken_before_and_after_the_command() {
        for form in ["-conns 3", "-conns=3", "--conns 3", "--conns=3"] {
            for line in [format!("{form} put"), format!("put {form}")] {
                assert_eq!(common(&line).conns, 3, "{line}");
            }
        }
        assert_eq!(common("put --conns=0x10 --conns 1_0").conns, 10, "the last one counts");
        assert_eq!(common("--total 5 --conns 2 put").conns, 2);
    }

    #[test]
    fn a_switch_takes_a_value_only_after_an_equals_sign() {
        assert!(common("--json put").json);
        assert!(common("put -json=T").json);
        assert!(!common("put --json --json=false").json);
        let words = ["--precise", "range", "--json", "key"].map(str::to_owned);
        let Command::Range { common, range, .. } = parse(&words).unwrap().command else {
            panic!("no range")
        };
        assert!(common.json && common.precise);
        assert_eq!((range.key.as_deref(), range.end), (Some("key"), None));
        let refused = parse(&["put", "--json=maybe"].map(str::to_owned)).unwrap_err();
        assert!(refused.to_string().contains("expected true or false"), "{refused}");
    }

    #[test]
    fn what_comes_after_two_dashes_is_a_key() {
        let words = ["-conns", "2", "range", "--limit=1", "--", "-key", "--end"];
        let Command::Range { range, .. } = parse(&words.map(str::to_owned)).unwrap().command else {
            panic!("no range")
        };
        assert_eq!((range.key.as_deref(), range.end.as_deref()), (Some("-key"), Some("--end")));
    }
}
