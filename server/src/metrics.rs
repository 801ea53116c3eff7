//! The numbers an operator watches, under the names etcd's dashboards and alerts already use.
//!
//! Counters are touched by fronts and the replica as they work; the text is rendered when somebody
//! asks. Nothing here may take a lock on a request's path: only the library's histograms do, and
//! those are observed once per batch. What is observed for each request is in cells of its own
//! thread ([`calls`], [`applies`]). docs/METRICS.md says what of etcd's is left out, and why.

use std::sync::atomic::AtomicU64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::cluster::version;

mod applies;
mod calls;
mod cells;
mod network;
mod process;
mod snapshots;
mod storage;
mod text;
mod watch_loops;

pub use applies::{Applied, Applies};
pub use calls::{CallType, Calls, FrontCalls, MethodLabels};
pub use network::{Counters, Network};
use process::Process;
pub use snapshots::Snapshots;
pub use storage::{Compaction, Storage};
pub use text::Exposition;
pub use watch_loops::WatchLoops;

/// A gauge of unsigned integers.
pub type Level = Gauge<u64, AtomicU64>;

/// Labels of one series: names and values.
pub type Labels = Vec<(&'static str, String)>;

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
    stalls: Family<Labels, Counter>,
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
    /// `etcd_server_quota_backend_bytes`; 0 without a quota.
    pub quota_bytes: Level,
    /// `etcd_debugging_server_alarms`, by member and kind.
    pub alarms: Family<Labels, Level>,
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
    /// `etcd_server_healthcheck`, by type and name: 1 if it went well last time.
    pub health_results: Family<Labels, Level>,
    /// `etcd_server_healthchecks_total`, by type, name and status.
    pub health_checks: Family<Labels, Counter>,
    /// `etcd_server_slow_read_indexes_total`: linearizable reads that ran out of time.
    pub slow_read_indexes: Counter,
    /// `etcd_debugging_auth_revision`.
    pub auth_revision: Level,
    /// `etcd_server_is_learner`.
    pub is_learner: Level,
    /// `etcd_server_learner_promote_successes`: a counter in the text.
    pub promotions: Level,
    /// `etcd_server_learner_promote_failures`, by reason: counters in the text.
    promotion_failures: Family<Labels, Level>,
    /// `etcd_cluster_version`; none until it is known.
    cluster_version: Family<Labels, Level>,
    /// `etcd_server_feature_enabled`, by name and stage.
    features: Family<Labels, Level>,
    /// `etcd_debugging_server_watch_send_loop_*`.
    pub watch_loops: WatchLoops,
    /// `promhttp_metric_handler_requests_total{code="200"}`.
    scrapes: Counter,
    /// What clients call.
    pub calls: Calls,
    /// `etcd_server_apply_duration_seconds`.
    pub applies: Applies,
    /// The store.
    pub storage: Storage,
    /// The links to peers.
    pub network: Network,
    /// Metrics of snapshots between members.
    pub snapshots: Snapshots,
    process: Process,
}

impl Metrics {
    /// `etcore_stalls_total`: work of this kind that stood still for seconds.
    pub fn stalls(&self, work: &str) -> Counter {
        self.stalls.get_or_create(&vec![("work", work.to_owned())]).clone()
    }

    /// Registers everything for the member with this ID.
    pub fn new(member_id: u64, calls: Calls) -> Self {
        let mut r = Registry::default();
        let metrics = Self {
            has_leader: level(
                &mut r,
                "etcd_server_has_leader",
                "Whether or not a leader exists. 1 is existence, 0 is not.",
            ),
            is_leader: level(
                &mut r,
                "etcd_server_is_leader",
                "Whether or not this member is a leader. 1 if is, 0 otherwise.",
            ),
            leader_changes: counter(
                &mut r,
                "etcd_server_leader_changes_seen",
                "The number of leader changes seen.",
            ),
            heartbeat_failures: counter(
                &mut r,
                "etcd_server_heartbeat_send_failures",
                "The total number of leader heartbeat send failures (likely overloaded from slow disk).",
            ),
            slow_applies: counter(
                &mut r,
                "etcd_server_slow_apply",
                "The total number of slow apply requests (likely overloaded from slow disk).",
            ),
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
                "The total number of consensus proposals committed.",
            ),
            proposals_applied: level(
                &mut r,
                "etcd_server_proposals_applied_total",
                "The total number of consensus proposals applied.",
            ),
            proposals_pending: level(
                &mut r,
                "etcd_server_proposals_pending",
                "The current number of pending proposals to commit.",
            ),
            proposals_failed: counter(
                &mut r,
                "etcd_server_proposals_failed",
                "The total number of failed proposals seen.",
            ),
            read_indexes_failed: counter(
                &mut r,
                "etcd_server_read_indexes_failed",
                "The total number of failed read indexes seen.",
            ),
            puts: counter(&mut r, "etcd_mvcc_put", "Total number of puts seen by this member."),
            deletes: counter(
                &mut r,
                "etcd_mvcc_delete",
                "Total number of deletes seen by this member.",
            ),
            ranges: counter(
                &mut r,
                "etcd_mvcc_range",
                "Total number of ranges seen by this member.",
            ),
            txns: counter(&mut r, "etcd_mvcc_txn", "Total number of txns seen by this member."),
            db_size_bytes: level(
                &mut r,
                "etcd_mvcc_db_total_size_in_bytes",
                "Total size of the underlying database physically allocated in bytes.",
            ),
            db_in_use_bytes: level(
                &mut r,
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                "Total size of the underlying database logically in use in bytes.",
            ),
            keys: level(&mut r, "etcd_debugging_mvcc_keys_total", "Total number of keys."),
            current_revision: level(
                &mut r,
                "etcd_debugging_mvcc_current_revision",
                "The current revision of store.",
            ),
            quota_bytes: level(
                &mut r,
                "etcd_server_quota_backend_bytes",
                "Current backend storage quota size in bytes.",
            ),
            alarms: family(
                &mut r,
                "etcd_debugging_server_alarms",
                "Alarms for every member in cluster. 1 for 'server_id' label with current ID. 2 for 'alarm_type' label with type of this alarm",
            ),
            watch_streams: level(
                &mut r,
                "etcd_debugging_mvcc_watch_stream_total",
                "Total number of watch streams.",
            ),
            watchers: level(
                &mut r,
                "etcd_debugging_mvcc_watcher_total",
                "Total number of watchers.",
            ),
            slow_watchers: level(
                &mut r,
                "etcd_debugging_mvcc_slow_watcher_total",
                "Total number of unsynced slow watchers.",
            ),
            watch_events: counter(
                &mut r,
                "etcd_debugging_mvcc_events",
                "Total number of events sent by this member.",
            ),
            client_received_bytes: counter(
                &mut r,
                "etcd_network_client_grpc_received_bytes",
                "The total number of bytes received from grpc clients.",
            ),
            client_sent_bytes: counter(
                &mut r,
                "etcd_network_client_grpc_sent_bytes",
                "The total number of bytes sent to grpc clients.",
            ),
            health_success: level(
                &mut r,
                "etcd_server_health_success",
                "The total number of successful health checks",
            ),
            health_failures: level(
                &mut r,
                "etcd_server_health_failures",
                "The total number of failed health checks",
            ),
            lease_granted: counter(
                &mut r,
                "etcd_debugging_lease_granted",
                "The total number of granted leases.",
            ),
            lease_revoked: counter(
                &mut r,
                "etcd_debugging_lease_revoked",
                "The total number of revoked leases.",
            ),
            lease_renewed: counter(
                &mut r,
                "etcd_debugging_lease_renewed",
                "The number of renewed leases seen by the leader.",
            ),
            lease_ttl: lease_ttl(&mut r),
            lease_expired: counter(
                &mut r,
                "etcd_debugging_server_lease_expired",
                "The total number of expired leases.",
            ),
            health_results: family(
                &mut r,
                "etcd_server_healthcheck",
                "The result of each kind of healthcheck.",
            ),
            health_checks: counters(
                &mut r,
                "etcd_server_healthchecks",
                "The total number of each kind of healthcheck.",
            ),
            slow_read_indexes: counter(
                &mut r,
                "etcd_server_slow_read_indexes",
                "The total number of pending read indexes not in sync with leader's or timed out read index requests.",
            ),
            auth_revision: level(
                &mut r,
                "etcd_debugging_auth_revision",
                "The current revision of auth store.",
            ),
            promotions: level(
                &mut r,
                "etcd_server_learner_promote_successes",
                "The total number of successful learner promotions while this member is leader.",
            ),
            promotion_failures: family(
                &mut r,
                "etcd_server_learner_promote_failures",
                "The total number of failed learner promotions (likely learner not ready) while this member is leader.",
            ),
            is_learner: level(
                &mut r,
                "etcd_server_is_learner",
                "Whether or not this member is a learner. 1 if is, 0 otherwise.",
            ),
            cluster_version: family(
                &mut r,
                "etcd_cluster_version",
                "Which version is running. 1 for 'cluster_version' label with current cluster version",
            ),
            features: family(
                &mut r,
                "etcd_server_feature_enabled",
                "Whether or not a feature is enabled. 1 is enabled, 0 is not.",
            ),
            watch_loops: WatchLoops::register(&mut r),
            scrapes: scrapes(&mut r),
            applies: collected(&mut r, Applies::default()),
            calls: collected(&mut r, calls),
            storage: Storage::register(&mut r),
            network: Network::register(&mut r),
            snapshots: Snapshots::register(&mut r),
            process: Process::register(&mut r),
            registry: r,
        };
        metrics.with_constants(member_id)
    }

    fn with_constants(mut self, member_id: u64) -> Self {
        let r = &mut self.registry;
        let help = "Which version is running. 1 for 'server_version' label with current version.";
        info(r, "etcd_server_version", help, ("server_version", version::ETCD));
        let help = "Server or member ID in hexadecimal format. 1 for 'server_id' label with \
                    current ID.";
        info(r, "etcd_server_id", help, ("server_id", &format!("{member_id:x}")));
        // Events are read when they can be sent; none ever waits.
        let help = "Total number of pending events to be sent.";
        level(r, "etcd_debugging_mvcc_pending_events_total", help).set(0);
        // A page is rendered in one go.
        let help = "Current number of scrapes being served.";
        level(r, "promhttp_metric_handler_requests_in_flight", help).set(1);
        self
    }

    /// A learner was not promoted.
    pub fn promotion_failed(&self, reason: &str) {
        self.promotion_failures.get_or_create(&vec![("Reason", reason.to_owned())]).inc();
    }

    /// The version of the cluster is this one from now on.
    pub fn set_cluster_version(&self, version: &str) {
        self.cluster_version.clear();
        self.cluster_version.get_or_create(&vec![("cluster_version", version.to_owned())]).set(1);
    }

    /// Whether a feature is there.
    pub fn set_feature(&self, name: &str, stage: &str, enabled: bool) {
        let labels = vec![("name", name.to_owned()), ("stage", stage.to_owned())];
        self.features.get_or_create(&labels).set(u64::from(enabled));
    }

    /// A health check of this type and name has ended.
    pub fn health_checked(&self, kind: &str, name: &str, ok: bool) {
        let mut labels = vec![("name", name.to_owned()), ("type", kind.to_owned())];
        self.health_results.get_or_create(&labels).set(u64::from(ok));
        let status = if ok { "success" } else { "error" };
        labels.insert(1, ("status", status.to_owned()));
        self.health_checks.get_or_create(&labels).inc();
    }

    /// All metrics, written in the form asked for.
    pub fn render(&self, form: Exposition) -> String {
        self.process.read();
        let mut open = String::with_capacity(64 << 10);
        // Writing to a String cannot fail.
        let _ = encode(&mut open, &self.registry);
        self.scrapes.inc();
        text::page(&open, form)
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

fn counters(r: &mut Registry, name: &'static str, help: &'static str) -> Family<Labels, Counter> {
    let family = Family::default();
    r.register(name, help, family.clone());
    family
}

/// A page cannot fail, so that only one of the counters grows.
fn scrapes(r: &mut Registry) -> Counter {
    let help = "Total number of scrapes by HTTP status code.";
    let family = counters(r, "promhttp_metric_handler_requests", help);
    let of = |code: &str| family.get_or_create(&vec![("code", code.to_owned())]).clone();
    let [ok, ..] = ["200", "500", "503"].map(of);
    ok
}

/// Metrics that are added up from cells when a page is made.
fn collected<C: Collector + Clone>(r: &mut Registry, metrics: C) -> C {
    r.register_collector(Box::new(metrics.clone()));
    metrics
}

fn family(r: &mut Registry, name: &'static str, help: &'static str) -> Family<Labels, Level> {
    let family = Family::default();
    r.register(name, help, family.clone());
    family
}

fn stalls(r: &mut Registry) -> Family<Labels, Counter> {
    let family = Family::default();
    r.register("etcore_stalls", "Work that stood still for seconds", family.clone());
    family
}

/// One second to three months, as in etcd.
fn lease_ttl(r: &mut Registry) -> Histogram {
    let metric = Histogram::new(exponential_buckets(1.0, 2.0, 24));
    r.register(
        "etcd_debugging_lease_ttl_total",
        "Bucketed histogram of lease TTLs.",
        metric.clone(),
    );
    metric
}

/// A gauge that is always 1 and says something in its label.
fn info(
    r: &mut Registry,
    name: &'static str,
    help: &'static str,
    (label, value): (&'static str, &str),
) {
    let family = Family::<Labels, Level>::default();
    family.get_or_create(&vec![(label, value.to_owned())]).set(1);
    r.register(name, help, family);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_etcds_dashboards_query_are_there() {
        let metrics = Metrics::new(0x8e9e, Calls::default());
        metrics.puts.inc();
        metrics.storage.wal_fsync.observe(0.0002);
        metrics.health_failures.inc();
        let open = metrics.render(Exposition::OpenMetrics);
        assert!(open.contains("\netcd_server_health_failures 1\n") && open.ends_with("# EOF\n"));
        let text = metrics.render(Exposition::Text);
        for line in [
            "etcd_server_has_leader 0",
            "etcd_mvcc_put_total 1",
            "etcd_server_version{server_version=\"3.7.1\"} 1",
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
