//! What an operator may set: etcd's flags and environment variables, and etcore's few own.
//!
//! Parsed by `main` before anything else. [`table`] knows every setting, [`flags`] reads the
//! command line and the environment by it, [`mod@file`] the configuration file, and what they say
//! together is checked last. Bad flags end the process with status 2, bad values, variables and
//! keys with status 1, and one line; nothing here touches files or sockets.

use std::time::Duration;

use etcore_engine::store::EngineConfig;
use tracing::Level;

use crate::driver::probe::DriverKind;
use crate::log::{Format, Outputs};
use crate::replica::SkipEntry;

pub mod auth;
mod check;
pub mod cluster;
mod compaction;
#[cfg(test)]
mod doc;
pub mod file;
pub mod flags;
pub mod gates;
mod help;
pub mod keys;
mod nearest;
mod observe;
pub mod old;
pub mod table;
pub mod tls;
pub mod url;
pub mod value;

pub use auth::Auth;
pub use compaction::AutoCompaction;
pub use observe::Observe;
pub use url::ListenUrl;

/// The checked configuration of one member.
#[derive(Debug, Clone)]
pub struct Config {
    /// Not to be set from outside: tests and the simulator choose.
    pub engine: EngineConfig,
    /// `--name`.
    pub name: String,
    /// `--data-dir`.
    pub data_dir: String,
    /// `--wal-dir`; the log is below the data directory if empty.
    pub wal_dir: String,
    /// `--cors`, `--host-whitelist` and `--enable-grpc-gateway`.
    pub access: Access,
    /// `--listen-peer-urls`.
    pub listen_peer_urls: Vec<ListenUrl>,
    /// `--listen-client-urls`.
    pub listen_client_urls: Vec<ListenUrl>,
    /// `--initial-advertise-peer-urls`, as given.
    pub advertise_peer_urls: Vec<String>,
    /// `--advertise-client-urls`, as given.
    pub advertise_client_urls: Vec<String>,
    /// `--initial-cluster`: name to peer URLs.
    pub initial_cluster: cluster::InitialCluster,
    /// `--initial-cluster-state=existing`.
    pub joins_existing: bool,
    /// `--max-learners`.
    pub learners_max: usize,
    /// `--strict-reconfig-check`.
    pub strict_reconfig_check: bool,
    /// `--initial-cluster-token`.
    pub initial_cluster_token: String,
    /// `--initial-election-tick-advance`.
    pub initial_election_tick_advance: bool,
    /// `--heartbeat-interval`.
    pub heartbeat: Duration,
    /// `--election-timeout`.
    pub election: Duration,
    /// `--auto-compaction-mode` and `--auto-compaction-retention`.
    pub auto_compaction: AutoCompaction,
    /// `--bootstrap-defrag-threshold-megabytes`, in bytes; 0 never does.
    pub defrag_threshold_bytes: u64,
    /// `--quota-backend-bytes`: 0 is the default, a negative one switches the quota off.
    pub quota_backend_bytes: i64,
    /// `--unsafe-no-fsync`.
    pub no_fsync: bool,
    /// `--memory-mlock`.
    pub locks_memory: bool,
    /// `--raft-read-timeout`.
    pub raft_read_timeout: Duration,
    /// `--raft-write-timeout`.
    pub raft_write_timeout: Duration,
    /// `--max-txn-ops`.
    pub max_txn_ops: usize,
    /// `--max-request-bytes`.
    pub max_request_bytes: usize,
    /// `--max-concurrent-streams`.
    pub max_concurrent_streams: u32,
    /// `--grpc-keepalive-min-time`.
    pub keepalive_min_time: Duration,
    /// `--grpc-keepalive-interval`.
    pub keepalive_interval: Duration,
    /// `--grpc-keepalive-timeout`.
    pub keepalive_timeout: Duration,
    /// `--watch-progress-notify-interval`; zero for etcd's default.
    pub watch_progress_interval: Duration,
    /// `--socket-reuse-port`.
    pub socket_reuse_port: bool,
    /// `--socket-reuse-address`.
    pub socket_reuse_address: bool,
    /// `--pre-vote`.
    pub pre_vote: bool,
    /// `--snapshot-catchup-entries`.
    pub snapshot_catchup_entries: u64,
    /// `--feature-gates`.
    pub feature_gates: gates::FeatureGates,
    /// `--corrupt-check-time`; zero never compares.
    pub corrupt_check_time: Duration,
    /// `--compact-hash-check-time`.
    pub compact_hash_check_time: Duration,
    /// Passwords and tokens.
    pub auth: Auth,
    /// What operators are shown.
    pub observe: Observe,
    /// `--log-level`.
    pub log_level: Level,
    /// `--log-format`.
    pub log_format: Format,
    /// `--log-outputs`, and how files among them are rotated.
    pub log_output: Outputs,
    /// Transport security.
    pub tls: tls::Tls,
    /// `--lease-checkpoint-interval`.
    pub lease_checkpoint_interval: Duration,
    /// `--fast-failover`: a leader whose port refuses connections is replaced at once.
    pub fast_failover: bool,
    /// `--io-driver`; `None` probes.
    pub io_driver: Option<DriverKind>,
    /// `--fronts`; `None` derives it from the cores.
    pub fronts: Option<usize>,
    /// `--wal-segment-bytes`.
    pub wal_segment_bytes: u64,
    /// `--unsafe-skip-entry`.
    pub unsafe_skip_entry: Option<SkipEntry>,
}

/// Who may use HTTP that is not gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Origins whose pages may read the answers; `*` is any.
    pub origins: Vec<String>,
    /// Hosts that requests may be for; `*` is any.
    pub hosts: Vec<String>,
    /// `--enable-grpc-gateway`: methods are served as JSON.
    pub gateway: bool,
}

impl Config {
    /// How long a request may wait for raft: etcd's 5 s for disk and apply plus two elections.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election
    }

    /// [`Config::request_timeout`] on the shards' clock.
    pub fn request_timeout_ms(&self) -> u64 {
        u64::try_from(self.request_timeout().as_millis()).unwrap_or(u64::MAX)
    }

    /// Between comparisons of what compactions left; zero never compares.
    pub fn compact_hash_check_interval(&self) -> Duration {
        let is_on = self.feature_gates.compact_hash_check;
        if is_on { self.compact_hash_check_time } else { Duration::ZERO }
    }

    /// The shortest TTL of a lease in seconds: one and a half elections, rounded up.
    pub fn lease_ttl_s_min(&self) -> i64 {
        // etcd counts whole ticks.
        let ticks = self.election_ticks().saturating_mul(3) / 2;
        let tick_ms = usize::try_from(self.heartbeat.as_millis()).unwrap_or(usize::MAX);
        i64::try_from(ticks.saturating_mul(tick_ms).div_ceil(1000)).unwrap_or(i64::MAX)
    }

    /// Elections are timed in ticks of one heartbeat.
    pub fn election_ticks(&self) -> usize {
        usize::try_from(self.election.as_millis() / self.heartbeat.as_millis().max(1))
            .unwrap_or(usize::MAX)
    }
}
