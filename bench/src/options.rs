//! What the command line means.
//!
//! `run` parses it once, with `cli`; everything else reads [`Options`]. The flags are those of
//! etcd's own `benchmark` 3.7, minus what this tool cannot do (users), plus what it adds. Must
//! refuse what makes no sense before anything is sent.

use std::fmt;
use std::time::Duration;

use etcore_proto::tls::Session;

use crate::cli::{self, Cli, Command, Common, Pace, RangeArgs, WatchArgs};
use crate::compare::args::CompareArgs;
use crate::limits;
use crate::security::{Files, Security};

/// Why a command line makes no sense, on one line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(String);

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Choice {
    Help(String),
    Run(Box<Options>),
    Watch(Box<WatchOptions>),
    Compare(Box<CompareArgs>),
}

/// A server's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port, also the `:authority` of calls.
    pub(crate) authority: String,
    /// What it was written with.
    pub(crate) scheme: Scheme,
    /// With TLS.
    pub(crate) security: Option<Security>,
}

/// What stood before `://`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Nothing: TLS if there are flags for it.
    Either,
    /// `http`.
    Plain,
    /// `https`.
    Tls,
}

impl Endpoint {
    /// A server that is spoken to without TLS.
    pub(crate) fn plain(authority: &str) -> Self {
        Self { authority: authority.to_owned(), scheme: Scheme::Plain, security: None }
    }

    /// TLS for a new connection, if it is spoken.
    pub(crate) fn session(&self) -> Result<Option<Session>, String> {
        self.security.as_ref().map(|security| security.session(&self.authority)).transpose()
    }
}

/// Everything a run needs to know.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) target_leader: bool,
    pub(crate) conns: usize,
    pub(crate) clients: usize,
    pub(crate) threads: usize,
    pub(crate) precise: bool,
    pub(crate) sample: bool,
    pub(crate) json: bool,
    pub(crate) dial_timeout: Duration,
    pub(crate) server_pids: Vec<u32>,
    pub(crate) total: u64,
    /// Requests a second, 0 for as many as the clients make.
    pub(crate) rate: u64,
    pub(crate) load: Load,
}

/// The command.
#[derive(Debug, Clone)]
pub(crate) enum Load {
    Put(PutOptions),
    Range(RangeOptions),
}

/// What `put` puts.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PutOptions {
    /// Size of keys.
    #[arg(long = "key-size", value_name = "BYTES", default_value = "8")]
    #[arg(value_parser = cli::number::<usize>(1, limits::KEY_BYTES_MAX))]
    pub(crate) key_bytes: usize,
    /// Size of values.
    #[arg(long = "val-size", value_name = "BYTES", default_value = "8")]
    #[arg(value_parser = cli::number::<usize>(0, limits::VALUE_BYTES_MAX))]
    pub(crate) value_bytes: usize,
    /// Different keys.
    #[arg(long = "key-space-size", value_name = "COUNT", default_value = "1")]
    #[arg(value_parser = cli::number::<u64>(1, i64::MAX as u64))]
    pub(crate) key_space: u64,
    /// Take keys in their order instead of at random.
    #[arg(long = "sequential-keys")]
    pub(crate) sequential: bool,
    /// Time between two compactions; 0 is never.
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = cli::duration)]
    pub(crate) compact_interval: Duration,
    /// Revisions that a compaction keeps.
    #[arg(long = "compact-index-delta", value_name = "COUNT", default_value = "1000")]
    #[arg(value_parser = cli::number::<i64>(0, i64::MAX as u64))]
    pub(crate) compact_delta: i64,
}

#[derive(Debug, Clone)]
pub(crate) struct RangeOptions {
    pub(crate) key: Vec<u8>,
    pub(crate) end: Vec<u8>,
    pub(crate) limit: i64,
    pub(crate) serializable: bool,
    pub(crate) count_only: bool,
    pub(crate) keys_only: bool,
    pub(crate) stream: bool,
    pub(crate) paginate: bool,
}

/// Everything that `watch-latency` needs to know.
#[derive(Debug, Clone)]
pub(crate) struct WatchOptions {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) conns: usize,
    pub(crate) json: bool,
    pub(crate) dial_timeout: Duration,
    pub(crate) server_pids: Vec<u32>,
    pub(crate) streams: u64,
    pub(crate) watchers_per_stream: u64,
    pub(crate) prev_kv: bool,
    pub(crate) put_total: u64,
    /// A second.
    pub(crate) put_rate: u64,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
    /// Different keys; stream n watches key n modulo so many.
    pub(crate) keys: u64,
    /// Every watcher watches all keys.
    pub(crate) prefix: bool,
}

impl Load {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Load::Put(_) => "put",
            Load::Range(_) => "range",
        }
    }
}

impl Options {
    /// What etcd's tool says before it starts.
    pub(crate) fn opening_line(&self) -> Option<&'static str> {
        match &self.load {
            Load::Range(range) if range.serializable => Some("bench with serializable range"),
            Load::Range(_) => Some("bench with linearizable range"),
            Load::Put(_) => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.authority)
    }
}

/// Reads a command line without the program's name.
pub(crate) fn parse(arguments: &[String]) -> Result<Choice, UsageError> {
    let cli = match cli::parse(arguments) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => return Ok(Choice::Help(error.to_string())),
        Err(error) => return Err(UsageError(one_line(&error.to_string()))),
    };
    choose(cli)
}

fn choose(cli: Cli) -> Result<Choice, UsageError> {
    match cli.command {
        Command::Put { pace, put, common } => {
            check(&put)?;
            run(common, pace, Load::Put(put))
        }
        Command::Range { pace, range: arguments, common } => {
            run(common, pace, Load::Range(range(arguments)?))
        }
        Command::WatchLatency { watch: arguments, common } => {
            Ok(Choice::Watch(Box::new(watch(common, arguments)?)))
        }
        Command::Compare(arguments) => Ok(Choice::Compare(Box::new(arguments))),
    }
}

fn run(common: Common, pace: Pace, load: Load) -> Result<Choice, UsageError> {
    let common = check_common(common)?;
    Ok(Choice::Run(Box::new(Options {
        endpoints: common.endpoints,
        target_leader: common.target_leader,
        conns: common.conns,
        clients: common.clients,
        threads: common.threads.min(common.conns),
        precise: common.precise,
        sample: common.sample,
        json: common.json,
        dial_timeout: dial_timeout(common.dial_timeout),
        server_pids: common.server_pid,
        total: pace.total,
        rate: pace.rate,
        load,
    })))
}

fn watch(common: Common, watch: WatchArgs) -> Result<WatchOptions, UsageError> {
    let common = check_common(common)?;
    Ok(WatchOptions {
        endpoints: common.endpoints,
        conns: common.conns,
        json: common.json,
        dial_timeout: dial_timeout(common.dial_timeout),
        server_pids: common.server_pid,
        streams: watch.streams,
        watchers_per_stream: watch.watchers_per_stream,
        prev_kv: watch.prev_kv,
        put_total: watch.put_total,
        put_rate: watch.put_rate,
        key_bytes: watch.key_size,
        value_bytes: watch.val_size,
        keys: watch.key_space_size,
        prefix: watch.prefix,
    })
}

fn check(put: &PutOptions) -> Result<(), UsageError> {
    let needed = crate::workload::varint_bytes(put.key_space - 1);
    if put.key_bytes < needed {
        return Err(UsageError(format!(
            "--key-size={} is too small for --key-space-size={}: keys are varints of up to \
             {needed} bytes",
            put.key_bytes, put.key_space
        )));
    }
    Ok(())
}

fn range(range: RangeArgs) -> Result<RangeOptions, UsageError> {
    let contradiction = |text: &str| Err(UsageError(text.to_owned()));
    if range.paginate && range.limit > 0 {
        return contradiction("--paginate and --limit are mutually exclusive");
    }
    if range.paginate && range.stream {
        return contradiction("--paginate and --stream are mutually exclusive");
    }
    if range.count_only && range.keys_only {
        return contradiction("--keys-only and --count-only are mutually exclusive");
    }
    let end = range.end.map(String::into_bytes);
    let (key, end) = match range.key.map(String::into_bytes) {
        // A prefix of nothing is everything, which begins at the least key.
        None if range.prefix => (vec![0], prefix_end(&[])),
        Some(key) if key.is_empty() && range.prefix => (vec![0], prefix_end(&[])),
        Some(key) if range.prefix => (key.clone(), prefix_end(&key)),
        Some(key) => (key, end.unwrap_or_default()),
        None => return contradiction("range needs a key"),
    };
    Ok(RangeOptions {
        key,
        end,
        serializable: range.consistency == "s",
        limit: range.limit,
        count_only: range.count_only,
        keys_only: range.keys_only,
        stream: range.stream,
        paginate: range.paginate,
    })
}

/// The first key after all keys with this prefix; etcd writes "no end" as a zero byte.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

fn dial_timeout(asked: Duration) -> Duration {
    if asked.is_zero() { limits::DIAL_TIMEOUT } else { asked }
}

/// Checks the flags of every load, and gives the endpoints their TLS.
fn check_common(mut common: Common) -> Result<Common, UsageError> {
    check_lists(&common)?;
    let files =
        Files { ca: common.cacert.take(), cert: common.cert.take(), key: common.key_file.take() };
    let security = Security::load(&files).map_err(UsageError)?;
    for endpoint in &mut common.endpoints {
        if endpoint.scheme != Scheme::Plain {
            endpoint.security.clone_from(&security);
        }
        if endpoint.scheme == Scheme::Tls && security.is_none() {
            let text = format!("https://{endpoint} needs --cacert: whom to believe must be said");
            return Err(UsageError(text));
        }
    }
    Ok(common)
}

fn check_lists(common: &Common) -> Result<(), UsageError> {
    let lists = [("endpoints", common.endpoints.len()), ("server-pid", common.server_pid.len())];
    match lists.iter().find(|(_, count)| *count > limits::LIST_ITEMS_MAX) {
        Some((name, count)) => Err(UsageError(format!("--{name}: too many values ({count})"))),
        None => Ok(()),
    }
}

/// What clap says is wrong, without its advice on usage, on one line: scripts log it.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let said: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let said = said.join(" ").replace(" For more information, try '--help'.", "");
    said.strip_prefix("error: ").unwrap_or(&said).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match parse(&words) {
            Ok(Choice::Run(options)) => Ok(*options),
            Ok(Choice::Watch(_) | Choice::Compare(_)) => Err("no load".to_owned()),
            Ok(Choice::Help(text)) => Err(text),
            Err(error) => Err(error.to_string()),
        }
    }

    fn range(line: &str) -> RangeOptions {
        match options(line).unwrap().load {
            Load::Range(range) => range,
            Load::Put(_) => panic!("a put"),
        }
    }

    #[test]
    fn defaults_are_those_of_etcd_s_tool() {
        let options = options("put").unwrap();
        assert_eq!((options.conns, options.clients, options.total), (1, 1, 10_000));
        assert_eq!(options.endpoints[0].authority, "127.0.0.1:2379");
        let Load::Put(put) = options.load else { panic!("a range") };
        assert_eq!((put.key_bytes, put.value_bytes, put.key_space), (8, 8, 1));
        assert_eq!(put.compact_delta, 1_000);
    }

    #[test]
    fn endpoints_come_with_and_without_scheme_repeated_and_in_lists() {
        let options = options("--endpoints=a:1,http://b:2/ put --endpoints [::1]:3").unwrap();
        let found: Vec<&str> =
            options.endpoints.iter().map(|endpoint| endpoint.authority.as_str()).collect();
        assert_eq!(found, ["a:1", "b:2", "[::1]:3"]);
    }

    #[test]
    fn the_guide_s_misprinted_consistency_means_linearizable() {
        assert!(!range("range k --consistency=1").serializable);
        assert!(!range("range k --consistency=l").serializable);
        assert!(range("range k --consistency=s").serializable);
    }

    #[test]
    fn prefixes_become_ends() {
        assert_eq!(range("range ab --prefix").end, b"ac");
        assert_eq!(range("range a b").end, b"b");
        let all = range("range --prefix");
        assert_eq!((all.key, all.end), (vec![0], vec![0]));
        assert_eq!(prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), b"\0");
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let lines = [
            ("", "requires a subcommand"),
            ("put x", "unexpected argument 'x'"),
            ("put --total=0", "expected a number from 1"),
            ("put --key-size=1 --key-space-size=1000", "too small"),
            ("put --compact-interval=5", "expected a duration"),
            ("--endpoints=https://a:1 put", "needs --cacert"),
            ("--cert=c --key=k put", "need --cacert"),
            ("--cacert=/no/such put", "/no/such"),
            ("--endpoints=a put", "expected host:port"),
            ("--conns=0 put", "expected a number from 1"),
            ("--server-pid=x put", "expected a process id"),
            ("range", "needs a key"),
            ("range a b c", "'c'"),
            ("range a --consistency=x", "invalid value 'x'"),
            ("range a --paginate --limit=3", "mutually exclusive"),
            ("range a --keys-only --count-only", "mutually exclusive"),
        ];
        for (line, expected) in lines {
            let complaint = options(line).unwrap_err();
            assert!(complaint.contains(expected), "{line:?}: {complaint}");
            assert_eq!(complaint.lines().count(), 1, "{line:?}: {complaint}");
        }
    }
}
