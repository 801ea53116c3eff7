//! The command line and the environment, by etcd's rules: `-flag` and `--flag` are the same,
//! booleans may stand alone, `ETCD_NAME` sets `--name`, and a setting given twice, by flag and by
//! environment, is an error.

use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};
use etcore_engine::store::EngineConfig;
use tracing::Level;

use super::{Config, cluster, gates, url};
use crate::driver::probe::DriverKind;
use crate::log::Format;
use crate::version;

const DEFAULT_PEER_URL: &str = "http://localhost:2380";
const DEFAULT_CLIENT_URL: &str = "http://localhost:2379";

/// What was typed. What it means is [`Config`].
#[derive(Debug, Parser)]
#[command(
    name = "etcore",
    about = "A member of an etcd-compatible store.",
    long_about = "A member of an etcd-compatible store. Flags are etcd's; each may also be set by \
                  an environment variable, --name by ETCD_NAME and so on.",
    disable_version_flag = true
)]
struct Flags {
    /// Human-readable name of this member.
    #[arg(long, default_value = "default", help_heading = "Member")]
    name: String,
    /// Directory of all data; ${name}.etcd if not given.
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Member")]
    data_dir: String,
    /// URLs to listen on for peers, separated by commas.
    #[arg(long, default_value = DEFAULT_PEER_URL, help_heading = "Member")]
    listen_peer_urls: String,
    /// URLs to listen on for clients, separated by commas.
    #[arg(long, default_value = DEFAULT_CLIENT_URL, help_heading = "Member")]
    listen_client_urls: String,
    /// Milliseconds between heartbeats.
    #[arg(long, default_value_t = 100, help_heading = "Member")]
    heartbeat_interval: u64,
    /// Milliseconds without a heartbeat before an election.
    #[arg(long, default_value_t = 1000, help_heading = "Member")]
    election_timeout: u64,
    /// Bytes that keys, values and their history may take before writes are refused; 0 is 2 GiB, a
    /// negative number switches the quota off.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, help_heading = "Member")]
    quota_backend_bytes: i64,
    /// Operations allowed in one transaction.
    #[arg(long, default_value_t = 128, help_heading = "Member")]
    max_txn_ops: usize,
    /// Bytes allowed in one request.
    #[arg(long, default_value_t = 1_572_864, help_heading = "Member")]
    max_request_bytes: usize,
    /// Streams allowed on one client connection.
    #[arg(long, default_value_t = u32::MAX, help_heading = "Member")]
    max_concurrent_streams: u32,
    /// Shortest time between a client's pings.
    #[arg(long, default_value = "5s", value_parser = go_duration, help_heading = "Member")]
    grpc_keepalive_min_time: Duration,
    /// Time without traffic before a client is pinged.
    #[arg(long, default_value = "2h", value_parser = go_duration, help_heading = "Member")]
    grpc_keepalive_interval: Duration,
    /// Time a client has to answer a ping.
    #[arg(long, default_value = "20s", value_parser = go_duration, help_heading = "Member")]
    grpc_keepalive_timeout: Duration,
    /// Time between notifications of progress to watchers that asked for them.
    #[arg(long, default_value = "10m", value_parser = go_duration, help_heading = "Features")]
    watch_progress_notify_interval: Duration,
    /// Set SO_REUSEPORT on listeners.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, help_heading = "Member")]
    socket_reuse_port: bool,
    /// Set SO_REUSEADDR on listeners.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool, help_heading = "Member")]
    socket_reuse_address: bool,
    /// Peer URLs that the rest of the cluster is told.
    #[arg(long, default_value = DEFAULT_PEER_URL, help_heading = "Clustering")]
    initial_advertise_peer_urls: String,
    /// The initial cluster: name=peer-url pairs, separated by commas.
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Clustering")]
    initial_cluster: String,
    /// `new` when this is a new cluster, `existing` to join one that runs.
    #[arg(long, default_value = "new", help_heading = "Clustering")]
    initial_cluster_state: String,
    /// Keeps clusters with the same addresses apart.
    #[arg(long, default_value = "etcd-cluster", help_heading = "Clustering")]
    initial_cluster_token: String,
    /// Client URLs that clients are told.
    #[arg(long, default_value = DEFAULT_CLIENT_URL, help_heading = "Clustering")]
    advertise_client_urls: String,
    /// Put the election clock forward once the peers are there, for a faster first election.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", value_parser = go_bool, help_heading = "Clustering")]
    initial_election_tick_advance: bool,
    /// Ask for votes before an election, so that a member with a bad link disturbs nobody.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", value_parser = go_bool, help_heading = "Clustering")]
    pre_vote: bool,
    /// Features to switch on or off: Name=true, separated by commas.
    #[arg(long, default_value = "", hide_default_value = true, value_parser = gates::parse,
          help_heading = "Member")]
    feature_gates: gates::Typed,
    /// Log entries kept behind the newest checkpoint.
    #[arg(long, default_value_t = 5000, help_heading = "Clustering")]
    snapshot_catchup_entries: u64,
    /// zap, the only one.
    #[arg(long, default_value = "zap", value_parser = ["zap"], help_heading = "Logging")]
    logger: String,
    /// debug, info, warn, error, panic or fatal.
    #[arg(long, default_value = "info", value_parser = log_level, help_heading = "Logging")]
    log_level: Level,
    /// json or console.
    #[arg(long, default_value = "json", value_parser = ["json", "console"],
          help_heading = "Logging")]
    log_format: String,
    /// auto, uring or portable: how files and sockets are driven.
    #[arg(long, default_value = "auto", value_parser = ["auto", "uring", "portable"],
          help_heading = "etcore")]
    io_driver: String,
    /// Threads that serve clients; 0 derives it from the cores.
    #[arg(long, default_value_t = 0, help_heading = "etcore")]
    fronts: usize,
    /// Time between checkpoints of a lease, with feature gate LeaseCheckpoint.
    #[arg(long, default_value = "5m", value_parser = go_duration, help_heading = "etcore")]
    lease_checkpoint_interval: Duration,
    /// Bytes of one log segment; a multiple of 4096.
    #[arg(long, default_value_t = etcore_raftlog::limits::SEGMENT_BYTES, help_heading = "etcore")]
    wal_segment_bytes: u64,
    /// Print the version and exit.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = go_bool)]
    version: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// Run a member; the second part lists environment variables nobody knows.
    Run(Box<Config>, Vec<String>),
    /// Print this and exit with status 0.
    Print(String),
}

/// Why the process cannot start.
#[derive(Debug)]
pub struct Refused {
    /// 2 for bad flags, 1 for bad values.
    pub status: u8,
    /// What to print on standard error.
    pub message: String,
}

/// Parses `args` (without the program name) and the environment.
///
/// # Errors
/// [`Refused`] with the exit status and one message.
pub fn parse(
    args: impl IntoIterator<Item = String>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Asked, Refused> {
    let mut args: Vec<String> = args.into_iter().map(double_dash).collect();
    let unknown = add_environment(&mut args, env)?;
    let command = Flags::command();
    let matches = match command
        .try_get_matches_from(std::iter::once("etcore".to_owned()).chain(args.iter().cloned()))
    {
        Ok(matches) => matches,
        Err(error) if !error.use_stderr() => return Ok(Asked::Print(error.to_string())),
        Err(error) => return Err(Refused { status: 2, message: error.to_string() }),
    };
    let flags = Flags::from_arg_matches(&matches)
        .map_err(|error| Refused { status: 2, message: error.to_string() })?;
    if flags.version {
        return Ok(Asked::Print(version::long()));
    }
    let given =
        |name: &str| matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
    let config = check(flags, given).map_err(|message| Refused { status: 1, message })?;
    Ok(Asked::Run(Box::new(config), unknown))
}

/// Go's flag package takes `-name` for `--name`.
fn double_dash(arg: String) -> String {
    let bytes = arg.as_bytes();
    if bytes.len() > 2 && bytes[0] == b'-' && bytes[1].is_ascii_alphabetic() {
        format!("-{arg}")
    } else {
        arg
    }
}

/// Turns `ETCD_X_Y=v` into `--x-y=v`; returns the variables that name no flag.
fn add_environment(
    args: &mut Vec<String>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<String>, Refused> {
    let command = Flags::command();
    let mut unknown = Vec::new();
    let typed = args.len();
    for (variable, value) in env {
        let Some(name) = variable.strip_prefix("ETCD_") else { continue };
        if value.is_empty() {
            continue;
        }
        let flag = name.to_ascii_lowercase().replace('_', "-");
        if !command.get_arguments().any(|arg| arg.get_long() == Some(&flag)) {
            unknown.push(variable);
            continue;
        }
        let long = format!("--{flag}");
        let shadowed = args[..typed]
            .iter()
            .any(|arg| arg.strip_prefix(&long).is_some_and(|r| r.is_empty() || r.starts_with('=')));
        if shadowed {
            return Err(Refused {
                status: 1,
                message: format!(
                    "conflicting environment variable {variable:?} is shadowed by corresponding \
                     command-line flag (either unset environment variable or disable flag)"
                ),
            });
        }
        args.push(format!("{long}={value}"));
    }
    Ok(unknown)
}

fn check(flags: Flags, given: impl Fn(&str) -> bool) -> Result<Config, String> {
    if flags.name.is_empty() || flags.name.contains(['/', '\0']) {
        return Err(format!("--name={:?} must be a plain file name", flags.name));
    }
    let state = flags.initial_cluster_state.as_str();
    if state != "new" && state != "existing" {
        return Err(format!("unexpected clusterState {state:?}"));
    }
    for (name, interval_ms) in [
        ("--heartbeat-interval", flags.heartbeat_interval),
        ("--election-timeout", flags.election_timeout),
    ] {
        if interval_ms == 0 {
            return Err(format!("{name} must be >0 (set to {interval_ms}ms)"));
        }
    }
    if flags.election_timeout < flags.heartbeat_interval.saturating_mul(5) {
        return Err(format!(
            "--election-timeout[{}ms] should be at least as 5 times as \
             --heartbeat-interval[{}ms]",
            flags.election_timeout, flags.heartbeat_interval
        ));
    }
    if flags.election_timeout > 50_000 {
        return Err(format!(
            "--election-timeout[{}ms] is too long, and should be set less than 50000ms",
            flags.election_timeout
        ));
    }
    if given("listen_client_urls") && !given("advertise_client_urls") {
        return Err("--advertise-client-urls is required when --listen-client-urls is set \
                    explicitly"
            .to_owned());
    }
    if flags.lease_checkpoint_interval < Duration::from_secs(1) {
        return Err("--lease-checkpoint-interval must be at least 1s".to_owned());
    }
    if !flags.wal_segment_bytes.is_multiple_of(4096) || flags.wal_segment_bytes < 1 << 16 {
        return Err("--wal-segment-bytes must be a multiple of 4096 and at least 65536".to_owned());
    }
    let advertise_peer_urls = split_urls(&flags.initial_advertise_peer_urls)?;
    let mut initial_cluster = cluster::parse(&flags.initial_cluster)?;
    if initial_cluster.is_empty() {
        let mut urls = advertise_peer_urls.clone();
        urls.sort();
        initial_cluster.insert(flags.name.clone(), urls);
    }
    Ok(Config {
        data_dir: if flags.data_dir.is_empty() {
            format!("{}.etcd", flags.name)
        } else {
            flags.data_dir
        },
        listen_peer_urls: url::parse_list(&flags.listen_peer_urls)?,
        listen_client_urls: url::parse_list(&flags.listen_client_urls)?,
        advertise_client_urls: split_urls(&flags.advertise_client_urls)?,
        advertise_peer_urls,
        initial_cluster,
        joins_existing: state == "existing",
        initial_election_tick_advance: flags.initial_election_tick_advance,
        initial_cluster_token: flags.initial_cluster_token,
        heartbeat: Duration::from_millis(flags.heartbeat_interval),
        election: Duration::from_millis(flags.election_timeout),
        quota_backend_bytes: flags.quota_backend_bytes,
        max_txn_ops: flags.max_txn_ops,
        max_request_bytes: flags.max_request_bytes,
        max_concurrent_streams: flags.max_concurrent_streams,
        keepalive_min_time: flags.grpc_keepalive_min_time,
        keepalive_interval: flags.grpc_keepalive_interval,
        keepalive_timeout: flags.grpc_keepalive_timeout,
        watch_progress_interval: flags.watch_progress_notify_interval,
        socket_reuse_port: flags.socket_reuse_port,
        socket_reuse_address: flags.socket_reuse_address,
        pre_vote: flags.pre_vote,
        snapshot_catchup_entries: flags.snapshot_catchup_entries,
        feature_gates: flags.feature_gates.check()?,
        log_level: flags.log_level,
        log_format: if flags.log_format == "json" { Format::Json } else { Format::Console },
        io_driver: match flags.io_driver.as_str() {
            "uring" => Some(DriverKind::Uring),
            "portable" => Some(DriverKind::Portable),
            _ => None,
        },
        engine: EngineConfig::default(),
        fronts: (flags.fronts > 0).then_some(flags.fronts),
        wal_segment_bytes: flags.wal_segment_bytes,
        lease_checkpoint_interval: flags.lease_checkpoint_interval,
        name: flags.name,
    })
}

fn split_urls(text: &str) -> Result<Vec<String>, String> {
    url::parse_list(text)?;
    Ok(text.split(',').map(|url| url.trim().to_owned()).collect())
}

fn log_level(text: &str) -> Result<Level, String> {
    match text {
        "debug" => Ok(Level::DEBUG),
        "info" => Ok(Level::INFO),
        "warn" => Ok(Level::WARN),
        "error" | "dpanic" | "panic" | "fatal" => Ok(Level::ERROR),
        _ => Err("use debug, info, warn, error, panic or fatal".to_owned()),
    }
}

pub(super) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("use true or false".to_owned()),
    }
}

/// Go's duration syntax: numbers with units, such as `1h30m` or `1.5s`.
fn go_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 300ms, 5s or 2h");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit_len] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        rest = &rest[unit_len..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Config, Refused> {
        let asked = parse(
            args.iter().map(|arg| (*arg).to_owned()),
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )?;
        match asked {
            Asked::Run(config, _) => Ok(*config),
            Asked::Print(text) => panic!("asked to print {text}"),
        }
    }

    #[test]
    fn without_flags_the_defaults_are_etcds() {
        let config = run(&[], &[]).unwrap();
        assert_eq!(config.name, "default");
        assert_eq!(config.data_dir, "default.etcd");
        assert_eq!(config.request_timeout(), Duration::from_secs(7));
        assert_eq!(config.lease_ttl_s_min(), 2);
        assert_eq!(config.initial_cluster["default"], ["http://localhost:2380"]);
    }

    #[test]
    fn one_dash_and_two_are_the_same() {
        let config = run(&["-name", "a", "-pre-vote=false", "--socket-reuse-port"], &[]).unwrap();
        assert_eq!(config.data_dir, "a.etcd");
        assert!(!config.pre_vote && config.socket_reuse_port);
    }

    #[test]
    fn the_environment_sets_flags_but_never_twice() {
        assert_eq!(run(&[], &[("ETCD_NAME", "b")]).unwrap().name, "b");
        let refused = run(&["--name=c"], &[("ETCD_NAME", "b")]).unwrap_err();
        assert_eq!(refused.status, 1);
        assert!(refused.message.contains("ETCD_NAME"));
    }

    #[test]
    fn an_unknown_variable_only_warns() {
        let asked = parse([], [("ETCD_NO_SUCH".to_owned(), "1".to_owned())]).unwrap();
        assert!(matches!(asked, Asked::Run(_, unknown) if unknown == ["ETCD_NO_SUCH"]));
    }

    #[test]
    fn a_bad_flag_is_status_two_and_a_bad_value_status_one() {
        assert_eq!(run(&["--no-such-flag"], &[]).unwrap_err().status, 2);
        let unknown = run(&["--feature-gates=Foo=true"], &[]).unwrap_err();
        assert_eq!(unknown.status, 2);
        assert!(unknown.message.contains("unrecognized feature gate: Foo"), "{unknown:?}");
        let lonely = run(&["--feature-gates=LeaseCheckpointPersist=true"], &[]).unwrap_err();
        assert_eq!(lonely.status, 1);
        let text = |flag: &str| {
            let refused = run(&[flag], &[]).unwrap_err();
            assert_eq!(refused.status, 1);
            refused.message
        };
        assert_eq!(
            text("--election-timeout=100"),
            "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]"
        );
        assert_eq!(
            text("--election-timeout=50001"),
            "--election-timeout[50001ms] is too long, and should be set less than 50000ms"
        );
        assert_eq!(text("--heartbeat-interval=0"), "--heartbeat-interval must be >0 (set to 0ms)");
        assert_eq!(text("--initial-cluster-state=old"), "unexpected clusterState \"old\"");
        assert_eq!(
            run(&["--listen-client-urls=http://127.0.0.1:1"], &[]).unwrap_err().status,
            1,
            "listening elsewhere without telling clients"
        );
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(go_duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(go_duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert!(go_duration("5").is_err() && go_duration("").is_err());
    }
}
