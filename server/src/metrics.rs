//! The numbers an operator watches, under the names etcd's dashboards and alerts already use.
//!
//! Counters are touched by fronts and the replica as they work; the text is rendered when somebody
//! asks. Nothing here may take a lock on a request's path: only histograms do, and those are
//! observed once per batch.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::cluster::version;

mod network;
mod snapshots;
mod text;

pub use network::{Counters, Network};
pub use snapshots::Snapshots;
pub use text::Exposition;

/// A gauge of unsigned integers.
pub type Level = Gauge<u64, AtomicU64>;

/// Labels of `grpc_server_handled_total`.
pub type MethodLabels = Vec<(&'static str, String)>;

/// Every metric of the process.
pub struct Metrics {
    registry: Registry,
    /// `etcd_server_has_leader`.
    pub has_leader: Level,
    /// `etcd_server_is_leader`.
    pub is_leader: Level,
    /// `etcd_server_leader_changes_seen_total`.
    pub leader_changes: Counter,
    /// `etcd_server_heartbeat_send_failures_total`: heartbeats that left late.
    pub heartbeat_failures: Counter,
    /// `etcd_server_slow_apply_total`.
    pub slow_applies: Counter,
    stalls: Family<MethodLabels, Counter>,
    /// `etcore_shard_step_duration_seconds`: the long steps of shards.
    pub shard_steps: Histogram,
    /// `etcore_shard_step_cpu_seconds`: the same in processor time.
    pub shard_cpu: Histogram,
    /// `etcd_server_proposals_committed_total`; a gauge in etcd too.
    pub proposals_committed: Level,
    /// `etcd_server_proposals_applied_total`; a gauge in etcd too.
    pub proposals_applied: Level,
    /// `etcd_server_proposals_pending`.
    pub proposals_pending: Level,
    /// `etcd_server_proposals_failed_total`.
    pub proposals_failed: Counter,
    /// `etcd_server_read_indexes_failed_total`.
    pub read_indexes_failed: Counter,
    /// `etcd_disk_wal_fsync_duration_seconds`: one durable write of the log.
    pub wal_fsync: Histogram,
    /// `etcd_disk_wal_write_bytes_total`; a gauge in etcd too.
    pub wal_write_bytes: Level,
    /// `etcd_disk_backend_commit_duration_seconds`: one checkpoint.
    pub backend_commit: Histogram,
    /// `etcd_mvcc_put_total`.
    pub puts: Counter,
    /// `etcd_mvcc_delete_total`.
    pub deletes: Counter,
    /// `etcd_mvcc_range_total`.
    pub ranges: Counter,
    /// `etcd_mvcc_txn_total`.
    pub txns: Counter,
    /// `etcd_mvcc_db_total_size_in_bytes`.
    pub db_size_bytes: Level,
    /// `etcd_mvcc_db_total_size_in_use_in_bytes`.
    pub db_in_use_bytes: Level,
    /// `etcd_debugging_mvcc_keys_total`.
    pub keys: Level,
    /// `etcd_debugging_mvcc_current_revision`.
    pub current_revision: Level,
    /// `etcd_debugging_mvcc_compact_revision`.
    pub compact_revision: Level,
    /// `etcd_server_quota_backend_bytes`; 0 without a quota.
    pub quota_bytes: Level,
    /// `etcd_debugging_server_alarms`, by member and kind.
    pub alarms: Family<MethodLabels, Level>,
    /// `etcd_debugging_mvcc_watch_stream_total`.
    pub watch_streams: Level,
    /// `etcd_debugging_mvcc_watcher_total`.
    pub watchers: Level,
    /// `etcd_debugging_mvcc_slow_watcher_total`.
    pub slow_watchers: Level,
    /// `etcd_debugging_mvcc_events_total`.
    pub watch_events: Counter,
    /// `etcd_network_client_grpc_received_bytes_total`.
    pub client_received_bytes: Counter,
    /// `etcd_network_client_grpc_sent_bytes_total`.
    pub client_sent_bytes: Counter,
    /// `etcd_server_health_success`: a counter in the text.
    pub health_success: Level,
    /// `etcd_server_health_failures`: a counter in the text.
    pub health_failures: Level,
    /// `etcd_debugging_lease_granted_total`.
    pub lease_granted: Counter,
    /// `etcd_debugging_lease_revoked_total`.
    pub lease_revoked: Counter,
    /// `etcd_debugging_lease_renewed_total`.
    pub lease_renewed: Counter,
    /// `etcd_debugging_lease_ttl_total`: TTLs granted, in seconds.
    pub lease_ttl: Histogram,
    /// `etcd_debugging_server_lease_expired_total`.
    pub lease_expired: Counter,
    /// The links to peers.
    pub network: Network,
    /// Metrics of snapshots between members.
    pub snapshots: Snapshots,
    process: Process,
}

/// `process_*`, read from /proc when asked for.
struct Process {
    resident_bytes: Level,
    virtual_bytes: Level,
    open_fds: Level,
    max_fds: Level,
    cpu_seconds: CpuSeconds,
}

type CpuSeconds = prometheus_client::metrics::counter::Counter<f64, AtomicU64>;

impl Metrics {
    /// `etcore_stalls_total`: work of this kind that stood still for seconds.
    pub fn stalls(&self, work: &str) -> Counter {
        self.stalls.get_or_create(&vec![("work", work.to_owned())]).clone()
    }

    /// Registers everything for the member with this ID.
    pub fn new(member_id: u64) -> Self {
        let mut r = Registry::default();
        let metrics = Self {
            has_leader: level(&mut r, "etcd_server_has_leader", "1 if a leader exists"),
            is_leader: level(&mut r, "etcd_server_is_leader", "1 if this member leads"),
            leader_changes: counter(&mut r, "etcd_server_leader_changes_seen", "Leader changes"),
            heartbeat_failures: counter(
                &mut r,
                "etcd_server_heartbeat_send_failures",
                "Leader heartbeats that were sent late",
            ),
            slow_applies: counter(&mut r, "etcd_server_slow_apply", "Entries applied slowly"),
            stalls: stalls(&mut r),
            shard_steps: histogram(
                &mut r,
                "etcore_shard_step_duration_seconds",
                "Steps of a shard's thread that took a millisecond or more",
            ),
            shard_cpu: histogram(
                &mut r,
                "etcore_shard_step_cpu_seconds",
                "Processor time of the steps of a shard's thread that took a millisecond or more",
            ),
            proposals_committed: level(
                &mut r,
                "etcd_server_proposals_committed_total",
                "Committed log index",
            ),
            proposals_applied: level(
                &mut r,
                "etcd_server_proposals_applied_total",
                "Applied log index",
            ),
            proposals_pending: level(
                &mut r,
                "etcd_server_proposals_pending",
                "Proposals waiting to commit",
            ),
            proposals_failed: counter(&mut r, "etcd_server_proposals_failed", "Failed proposals"),
            read_indexes_failed: counter(
                &mut r,
                "etcd_server_read_indexes_failed",
                "Linearizable reads that failed",
            ),
            wal_fsync: histogram(
                &mut r,
                "etcd_disk_wal_fsync_duration_seconds",
                "Latency of a durable write of the log",
            ),
            wal_write_bytes: level(
                &mut r,
                "etcd_disk_wal_write_bytes_total",
                "Bytes written to the log",
            ),
            backend_commit: histogram(
                &mut r,
                "etcd_disk_backend_commit_duration_seconds",
                "Latency of a checkpoint",
            ),
            puts: counter(&mut r, "etcd_mvcc_put", "Keys put"),
            deletes: counter(&mut r, "etcd_mvcc_delete", "Delete requests"),
            ranges: counter(&mut r, "etcd_mvcc_range", "Range requests"),
            txns: counter(&mut r, "etcd_mvcc_txn", "Transactions"),
            db_size_bytes: level(
                &mut r,
                "etcd_mvcc_db_total_size_in_bytes",
                "Bytes allocated by the page file",
            ),
            db_in_use_bytes: level(
                &mut r,
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                "Bytes in use in the page file",
            ),
            keys: level(&mut r, "etcd_debugging_mvcc_keys_total", "Live keys"),
            current_revision: level(
                &mut r,
                "etcd_debugging_mvcc_current_revision",
                "Current revision",
            ),
            compact_revision: level(
                &mut r,
                "etcd_debugging_mvcc_compact_revision",
                "Last compacted revision",
            ),
            quota_bytes: level(&mut r, "etcd_server_quota_backend_bytes", "Backend quota"),
            alarms: family(&mut r, "etcd_debugging_server_alarms", "Alarms that are on"),
            watch_streams: level(&mut r, "etcd_debugging_mvcc_watch_stream_total", "Watch streams"),
            watchers: level(&mut r, "etcd_debugging_mvcc_watcher_total", "Watchers"),
            slow_watchers: level(
                &mut r,
                "etcd_debugging_mvcc_slow_watcher_total",
                "Watchers that are behind",
            ),
            watch_events: counter(&mut r, "etcd_debugging_mvcc_events", "Events sent"),
            client_received_bytes: counter(
                &mut r,
                "etcd_network_client_grpc_received_bytes",
                "Bytes received from clients",
            ),
            client_sent_bytes: counter(
                &mut r,
                "etcd_network_client_grpc_sent_bytes",
                "Bytes sent to clients",
            ),
            health_success: level(&mut r, "etcd_server_health_success", "Good health checks"),
            health_failures: level(&mut r, "etcd_server_health_failures", "Bad health checks"),
            lease_granted: counter(&mut r, "etcd_debugging_lease_granted", "Leases granted"),
            lease_revoked: counter(&mut r, "etcd_debugging_lease_revoked", "Leases revoked"),
            lease_renewed: counter(&mut r, "etcd_debugging_lease_renewed", "Lease renewals"),
            lease_ttl: lease_ttl(&mut r),
            lease_expired: counter(
                &mut r,
                "etcd_debugging_server_lease_expired",
                "Leases revoked because they had expired",
            ),
            network: Network::register(&mut r),
            snapshots: Snapshots::register(&mut r),
            process: Process::register(&mut r),
            registry: r,
        };
        metrics.with_constants(member_id)
    }

    fn with_constants(mut self, member_id: u64) -> Self {
        let r = &mut self.registry;
        info(r, "etcd_server_version", "server_version", version::ETCD);
        info(r, "etcd_cluster_version", "cluster_version", "3.7");
        info(r, "etcd_server_id", "server_id", &format!("{member_id:x}"));
        level(r, "etcd_server_is_learner", "1 if this member is a learner").set(0);
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Events are read when they can be sent; none ever waits.
        level(r, "etcd_debugging_mvcc_pending_events_total", "Events waiting to be sent").set(0);
        level(r, "process_start_time_seconds", "Start of the process since 1970")
            .set(start.as_secs());
        self
    }

    /// All metrics, written in the form asked for.
    pub fn render(&self, form: Exposition) -> String {
        self.process.read();
        let mut open = String::with_capacity(32 << 10);
        // Writing to a String cannot fail.
        let _ = encode(&mut open, &self.registry);
        match form {
            Exposition::OpenMetrics => open,
            Exposition::Text => text::of_open_metrics(&open),
        }
    }
}

impl Process {
    fn register(r: &mut Registry) -> Self {
        let cpu_seconds = CpuSeconds::default();
        r.register("process_cpu_seconds", "CPU time used", cpu_seconds.clone());
        Self {
            resident_bytes: level(r, "process_resident_memory_bytes", "Resident memory"),
            virtual_bytes: level(r, "process_virtual_memory_bytes", "Virtual memory"),
            open_fds: level(r, "process_open_fds", "Open descriptors"),
            max_fds: level(r, "process_max_fds", "Most open descriptors allowed"),
            cpu_seconds,
        }
    }

    /// Values that cannot be read keep what they were.
    fn read(&self) {
        if let Ok(statm) = std::fs::read_to_string("/proc/self/statm") {
            let mut pages = statm.split(' ').filter_map(|word| word.parse::<u64>().ok());
            self.virtual_bytes.set(pages.next().unwrap_or(0) * 4096);
            self.resident_bytes.set(pages.next().unwrap_or(0) * 4096);
        }
        if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
            self.open_fds.set(fds.count() as u64);
        }
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit fills the struct it is given, which outlives the call.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
            self.max_fds.set(limit.rlim_cur);
        }
        // SAFETY: an all-zero rusage is valid, and getrusage fills the struct it is given.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
            usage
        };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        let used = seconds(usage.ru_utime) + seconds(usage.ru_stime);
        // Two that read at once must not add the same twice, nor take anything back.
        self.cpu_seconds.inner().fetch_max(used.to_bits(), Ordering::Relaxed);
    }
}

fn level(r: &mut Registry, name: &'static str, help: &'static str) -> Level {
    let metric = Level::default();
    r.register(name, help, metric.clone());
    metric
}

/// The encoder appends `_total` to the name.
fn counter(r: &mut Registry, name: &'static str, help: &'static str) -> Counter {
    let metric = Counter::default();
    r.register(name, help, metric.clone());
    metric
}

fn histogram(r: &mut Registry, name: &'static str, help: &'static str) -> Histogram {
    // etcd's buckets start at 1 ms; ours start lower, where an SSD is.
    let metric = Histogram::new(exponential_buckets(0.000_062_5, 2.0, 18));
    r.register(name, help, metric.clone());
    metric
}

fn family(r: &mut Registry, name: &'static str, help: &'static str) -> Family<MethodLabels, Level> {
    let family = Family::default();
    r.register(name, help, family.clone());
    family
}

fn stalls(r: &mut Registry) -> Family<MethodLabels, Counter> {
    let family = Family::default();
    r.register("etcore_stalls", "Work that stood still for seconds", family.clone());
    family
}

/// One second to three months, as in etcd.
fn lease_ttl(r: &mut Registry) -> Histogram {
    let metric = Histogram::new(exponential_buckets(1.0, 2.0, 24));
    r.register("etcd_debugging_lease_ttl_total", "TTLs of granted leases", metric.clone());
    metric
}

/// A gauge that is always 1 and says something in its label.
fn info(r: &mut Registry, name: &'static str, label: &'static str, value: &str) {
    let family = Family::<MethodLabels, Level>::default();
    family.get_or_create(&vec![(label, value.to_owned())]).set(1);
    r.register(name, "Says something in its label", family);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_etcds_dashboards_query_are_there() {
        let metrics = Metrics::new(0x8e9e);
        metrics.puts.inc();
        metrics.wal_fsync.observe(0.0002);
        metrics.health_failures.inc();
        let open = metrics.render(Exposition::OpenMetrics);
        assert!(open.contains("\netcd_server_health_failures 1\n") && open.ends_with("# EOF\n"));
        let text = metrics.render(Exposition::Text);
        for line in [
            "etcd_server_has_leader 0",
            "etcd_mvcc_put_total 1",
            "etcd_server_version{server_version=\"3.7.1\"} 1",
            "etcd_cluster_version{cluster_version=\"3.7\"} 1",
            "etcd_server_id{server_id=\"8e9e\"} 1",
            "etcd_disk_wal_fsync_duration_seconds_count 1",
            "etcd_server_proposals_committed_total 0",
            "etcd_debugging_lease_granted_total 0",
            "etcd_debugging_lease_ttl_total_count 0",
            "etcd_debugging_server_lease_expired_total 0",
            "etcd_server_health_failures 1",
            "# TYPE etcd_server_health_success counter",
            "# TYPE process_cpu_seconds_total counter",
            "# TYPE etcd_mvcc_put_total counter",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes "));
    }
}
