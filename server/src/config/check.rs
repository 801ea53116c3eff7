//! From settings to a [`Config`]: what etcd checks after its flags are parsed, with its words.

use std::time::Duration;

use etcore_engine::store::EngineConfig;
use etcore_raftlog::limits::SEGMENT_BYTES_MIN;
use tracing::Level;

use super::flags::Values;
use super::{Config, ListenUrl, cluster, gates, tls};
use crate::driver::probe::DriverKind;
use crate::log::{Format, Output};

/// Checks what the settings say together.
///
/// # Errors
/// One sentence.
pub(super) fn check(values: &Values) -> Result<Config, String> {
    let name = values.text("name");
    if name.is_empty() || name.contains(['/', '\0']) {
        return Err(format!("--name={name:?} must be a plain file name"));
    }
    let log_output = log_output(&values.text("logger"), &values.text("log-outputs"))?;
    let log_format = log_format(&values.text("log-format"))?;
    let (heartbeat_ms, election_ms) = intervals(values)?;
    if values.is_given("listen-client-urls") && !values.is_given("advertise-client-urls") {
        return Err("--advertise-client-urls is required when --listen-client-urls is set \
                    explicitly"
            .to_owned());
    }
    let lease_checkpoint_interval = values.duration("lease-checkpoint-interval")?;
    if lease_checkpoint_interval < Duration::from_secs(1) {
        return Err("--lease-checkpoint-interval must be at least 1s".to_owned());
    }
    let unsafe_skip_entry = match &*values.text("unsafe-skip-entry") {
        "" => None,
        name => Some(name.parse().map_err(|error| format!("--unsafe-skip-entry: {error}"))?),
    };
    let advertise_peer_urls = values.urls("initial-advertise-peer-urls");
    let mut initial_cluster = cluster::parse(&values.text("initial-cluster"))?;
    if initial_cluster.is_empty() {
        initial_cluster.insert(name.clone(), advertise_peer_urls.clone());
    }
    let listen = |flag: &str| -> Result<Vec<ListenUrl>, String> {
        values.urls(flag).iter().map(|url| ListenUrl::parse(url)).collect()
    };
    let size = |flag: &str| usize::try_from(values.uint(flag)).unwrap_or(usize::MAX);
    Ok(Config {
        data_dir: data_dir(values, &name),
        listen_peer_urls: listen("listen-peer-urls")?,
        listen_client_urls: listen("listen-client-urls")?,
        advertise_client_urls: values.urls("advertise-client-urls"),
        advertise_peer_urls,
        initial_cluster,
        joins_existing: values.text("initial-cluster-state") == "existing",
        initial_election_tick_advance: values.bool("initial-election-tick-advance"),
        initial_cluster_token: values.text("initial-cluster-token"),
        heartbeat: Duration::from_millis(heartbeat_ms),
        election: Duration::from_millis(election_ms),
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
        feature_gates: gates::parse(&values.text("feature-gates"))?.check()?,
        log_level: log_level(&values.text("log-level")),
        log_format,
        log_output,
        tls: tls::check(values)?,
        fast_failover: values.bool("fast-failover"),
        io_driver: io_driver(&values.text("io-driver")),
        engine: EngineConfig::default(),
        fronts: Some(size("fronts")).filter(|fronts| *fronts > 0),
        wal_segment_bytes: wal_segment_bytes(values)?,
        unsafe_skip_entry,
        lease_checkpoint_interval,
        name,
    })
}

fn data_dir(values: &Values, name: &str) -> String {
    match values.text("data-dir") {
        dir if dir.is_empty() => format!("{name}.etcd"),
        dir => dir,
    }
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

fn log_output(logger: &str, outputs: &str) -> Result<Output, String> {
    match logger {
        "zap" => {}
        "capnslog" => return Err("--logger=capnslog is removed in v3.5".to_owned()),
        _ => return Err(format!("unknown logger option {logger:?}")),
    }
    let mut outputs: Vec<&str> = outputs.split(',').collect();
    outputs.sort_unstable();
    outputs.dedup();
    match outputs[..] {
        ["default" | "stderr"] => Ok(Output::Stderr),
        ["stdout"] => Ok(Output::Stdout),
        [_, _, ..] if outputs.contains(&"default") => {
            Err("multi logoutput for \"default\" is not supported yet".to_owned())
        }
        _ => Err(format!(
            "--log-outputs={}: etcore logs to one of default, stderr and stdout",
            outputs.join(",")
        )),
    }
}

fn log_level(text: &str) -> Level {
    match text {
        "debug" => Level::DEBUG,
        "info" => Level::INFO,
        "warn" => Level::WARN,
        _ => Level::ERROR,
    }
}
