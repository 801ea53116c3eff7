//! From settings to a [`Config`]: what etcd checks after its flags are parsed, with its words.

use std::net::IpAddr;
use std::time::Duration;

use etcore_engine::store::EngineConfig;
use etcore_raftlog::limits::SEGMENT_BYTES_MIN;
use tracing::Level;

use super::cluster::InitialCluster;
use super::flags::Values;
use super::{Access, Auth, AutoCompaction, Config, ListenUrl, Observe, cluster, gates, tls};
use crate::driver::probe::DriverKind;
use crate::log::{Format, Outputs};

/// The shortest time limit of a link (etcd: DefaultConnReadTimeout).
const RAFT_TIMEOUT_MIN: Duration = Duration::from_secs(5);

/// Checks what the settings say together.
///
/// # Errors
/// One sentence.
pub(super) fn check(values: &Values) -> Result<Config, String> {
    verify(values)?;
    let name = values.text("name");
    let feature_gates = gates::parse(&values.text("feature-gates"))?.check()?;
    let unsafe_skip_entry = match &*values.text("unsafe-skip-entry") {
        "" => None,
        name => Some(name.parse().map_err(|error| format!("--unsafe-skip-entry: {error}"))?),
    };
    let log_output = log_outputs(values)?;
    let log_format = log_format(&values.text("log-format"))?;
    let (heartbeat_ms, election_ms) = intervals(values)?;
    let size = |flag: &str| usize::try_from(values.uint(flag)).unwrap_or(usize::MAX);
    Ok(Config {
        data_dir: data_dir(values, &name),
        access: access(values),
        listen_peer_urls: listen_urls(values, "listen-peer-urls")?,
        listen_client_urls: listen_urls(values, "listen-client-urls")?,
        advertise_client_urls: values.urls("advertise-client-urls"),
        advertise_peer_urls: values.urls("initial-advertise-peer-urls"),
        initial_cluster: initial_cluster(values, &name)?,
        joins_existing: values.text("initial-cluster-state") == "existing",
        initial_election_tick_advance: values.bool("initial-election-tick-advance"),
        // Less than none is as many as none.
        learners_max: usize::try_from(values.int("max-learners")).unwrap_or(0),
        strict_reconfig_check: values.bool("strict-reconfig-check"),
        initial_cluster_token: values.text("initial-cluster-token"),
        heartbeat: Duration::from_millis(heartbeat_ms),
        election: Duration::from_millis(election_ms),
        auto_compaction: auto_compaction(values)?,
        defrag_threshold_bytes: values
            .uint("bootstrap-defrag-threshold-megabytes")
            .saturating_mul(1 << 20),
        no_fsync: values.bool("unsafe-no-fsync"),
        locks_memory: values.bool("memory-mlock"),
        raft_read_timeout: raft_timeout(values, "raft-read-timeout"),
        raft_write_timeout: raft_timeout(values, "raft-write-timeout"),
        wal_dir: values.text("wal-dir"),
        quota_backend_bytes: values.int("quota-backend-bytes"),
        max_txn_ops: size("max-txn-ops"),
        max_request_bytes: size("max-request-bytes"),
        max_concurrent_streams: u32::try_from(values.uint("max-concurrent-streams"))
            .unwrap_or(u32::MAX),
        keepalive_min_time: values.duration("grpc-keepalive-min-time")?,
        keepalive_interval: values.duration("grpc-keepalive-interval")?,
        keepalive_timeout: values.duration("grpc-keepalive-timeout")?,
        watch_progress_interval: values.duration("watch-progress-notify-interval")?,
        socket_reuse_port: values.bool("socket-reuse-port"),
        socket_reuse_address: values.bool("socket-reuse-address"),
        pre_vote: values.bool("pre-vote"),
        snapshot_catchup_entries: values.uint("snapshot-catchup-entries"),
        feature_gates,
        corrupt_check_time: values.duration("corrupt-check-time")?,
        compact_hash_check_time: values.duration("compact-hash-check-time")?,
        auth: Auth::of(values)?,
        observe: Observe::of(values)?,
        log_level: log_level(&values.text("log-level")),
        log_format,
        log_output,
        tls: tls::check(values)?,
        fast_failover: values.bool("fast-failover"),
        io_driver: io_driver(&values.text("io-driver")),
        engine: engine(values),
        fronts: Some(size("fronts")).filter(|fronts| *fronts > 0),
        wal_segment_bytes: wal_segment_bytes(values)?,
        unsafe_skip_entry,
        lease_checkpoint_interval: values.duration("lease-checkpoint-interval")?,
        name,
    })
}

/// What needs no further reading.
fn verify(values: &Values) -> Result<(), String> {
    let name = values.text("name");
    if name.is_empty() || name.contains(['/', '\0']) {
        return Err(format!("--name={name:?} must be a plain file name"));
    }
    if values.text("discovery-fallback") == "proxy" {
        let why = "v2 proxy is deprecated, and --discovery-fallback can't be configured as";
        return Err(format!("{why} \"proxy\""));
    }
    check_urls(values)?;
    // The file's defaults stand by themselves, as in etcd.
    let is_told = values.is_given("advertise-client-urls") || values.are_of_file();
    if values.is_given("listen-client-urls") && !is_told {
        return Err("--advertise-client-urls is required when --listen-client-urls is set \
                    explicitly"
            .to_owned());
    }
    if values.nanoseconds("compact-hash-check-time") <= 0 {
        return Err("--compact-hash-check-time must be >0 (set to 0s)".to_owned());
    }
    if values.duration("lease-checkpoint-interval")? < Duration::from_secs(1) {
        return Err("--lease-checkpoint-interval must be at least 1s".to_owned());
    }
    Ok(())
}

fn data_dir(values: &Values, name: &str) -> String {
    match values.text("data-dir") {
        dir if dir.is_empty() => format!("{name}.etcd"),
        dir => dir,
    }
}

/// The members of a new cluster; this one alone if nobody is named.
fn initial_cluster(values: &Values, name: &str) -> Result<InitialCluster, String> {
    let mut cluster = cluster::parse(&values.text("initial-cluster"))?;
    if cluster.is_empty() {
        cluster.insert(name.to_owned(), values.urls("initial-advertise-peer-urls"));
    }
    Ok(cluster)
}

fn access(values: &Values) -> Access {
    let list = |text: String| text.split(',').map(|item| item.trim().to_owned()).collect();
    Access {
        origins: match values.text("cors") {
            nothing if nothing.is_empty() => vec!["*".to_owned()],
            origins => list(origins),
        },
        hosts: list(values.text("host-whitelist")),
        gateway: values.bool("enable-grpc-gateway"),
    }
}

/// Names are not bound to, and somebody must be told a host.
fn check_urls(values: &Values) -> Result<(), String> {
    for flag in ["listen-peer-urls", "listen-client-urls", "listen-client-http-urls"] {
        for url in values.urls(flag) {
            let Some(host) = host_of(&url) else { continue };
            if host != "localhost" && host.parse::<IpAddr>().is_err() {
                return Err(format!("expected IP in URL for binding ({url})"));
            }
        }
    }
    for (flag, form) in [
        ("initial-advertise-peer-urls", "must be \"host:port\""),
        (
            "advertise-client-urls",
            "must be in the format \"host:port\", \"unix:/path/to/socket\" or \
             \"unixs:/path/to/socket\"",
        ),
    ] {
        let urls = values.urls(flag);
        if let Some(url) = urls.iter().find(|url| host_of(url) == Some("")) {
            let all = urls.join(",");
            return Err(format!("--{flag} {all:?} {form} (unexpected empty host ({url}))"));
        }
    }
    Ok(())
}

/// The host of a URL that was parsed before; `None` of a socket's path.
fn host_of(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    if scheme.starts_with("unix") {
        return None;
    }
    let (host, _) = rest.trim_end_matches('/').rsplit_once(':')?;
    Some(host.trim_start_matches('[').trim_end_matches(']'))
}

fn auto_compaction(values: &Values) -> Result<AutoCompaction, String> {
    let mode = values.text("auto-compaction-mode");
    AutoCompaction::parse(&mode, &values.text("auto-compaction-retention"))
}

/// The checkpoints' measures; nothing is the default.
fn engine(values: &Values) -> EngineConfig {
    let mut engine = EngineConfig::default();
    if let entries @ 1.. = values.uint("snapshot-count") {
        engine.checkpoint_entries = entries;
    }
    engine
}

/// A time limit that is too short is raised, as in etcd.
fn raft_timeout(values: &Values, name: &str) -> Duration {
    values.duration(name).unwrap_or_default().max(RAFT_TIMEOUT_MIN)
}

/// The URLs to listen on that a flag names.
///
/// # Errors
/// One sentence.
pub(super) fn listen_urls(values: &Values, flag: &str) -> Result<Vec<ListenUrl>, String> {
    values.urls(flag).iter().map(|url| ListenUrl::parse(url)).collect()
}

/// The driver that was named; the probe chooses otherwise.
fn io_driver(name: &str) -> Option<DriverKind> {
    match name {
        "uring" => Some(DriverKind::Uring),
        "portable" => Some(DriverKind::Portable),
        _ => None,
    }
}

fn log_format(name: &str) -> Result<Format, String> {
    match name {
        "json" => Ok(Format::Json),
        "console" => Ok(Format::Console),
        other => Err(format!("unknown log format: {other}, supported values json, console")),
    }
}

/// The length of the log's files: whole blocks, and room for a batch.
fn wal_segment_bytes(values: &Values) -> Result<u64, String> {
    let bytes = values.uint("wal-segment-bytes");
    if !bytes.is_multiple_of(4096) || bytes < SEGMENT_BYTES_MIN {
        return Err(format!(
            "--wal-segment-bytes must be a multiple of 4096 and at least {SEGMENT_BYTES_MIN}"
        ));
    }
    Ok(bytes)
}

/// The heartbeat's and the election's milliseconds.
fn intervals(values: &Values) -> Result<(u64, u64), String> {
    let all = ["heartbeat-interval", "election-timeout"].map(|name| (name, values.uint(name)));
    for (name, interval_ms) in all {
        if interval_ms == 0 {
            return Err(format!("--{name} must be >0 (set to {interval_ms}ms)"));
        }
    }
    let [(_, heartbeat_ms), (_, election_ms)] = all;
    if election_ms < heartbeat_ms.saturating_mul(5) {
        return Err(format!(
            "--election-timeout[{election_ms}ms] should be at least as 5 times as \
             --heartbeat-interval[{heartbeat_ms}ms]"
        ));
    }
    if election_ms > 50_000 {
        return Err(format!(
            "--election-timeout[{election_ms}ms] is too long, and should be set less than 50000ms"
        ));
    }
    Ok((heartbeat_ms, election_ms))
}

fn log_outputs(values: &Values) -> Result<Outputs, String> {
    match &*values.text("logger") {
        "zap" => {}
        "capnslog" => return Err("--logger=capnslog is removed in v3.5".to_owned()),
        other => return Err(format!("unknown logger option {other:?}")),
    }
    let rotation = values.text("log-rotation-config-json");
    let rotation = values.bool("enable-log-rotation").then_some(&*rotation);
    Outputs::parse(&values.text("log-outputs"), rotation)
}

fn log_level(text: &str) -> Level {
    match text {
        "debug" => Level::DEBUG,
        "info" => Level::INFO,
        "warn" => Level::WARN,
        _ => Level::ERROR,
    }
}
