//! The metrics of the store: log, checkpoints, compaction, hashes, under etcd's names.
//!
//! Observed by the replica and by helper threads, once for each piece of work: the library's
//! histograms, which take a lock, are good enough.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Level, counter, histogram, level};

/// See the module text.
pub struct Storage {
    /// `etcd_disk_wal_fsync_duration_seconds`: one durable write of the log.
    pub wal_fsync: Histogram,
    /// `etcd_disk_wal_write_duration_seconds`: the same, since a write is durable when it ends.
    pub wal_write: Histogram,
    /// `etcd_disk_wal_write_bytes_total`; a gauge in etcd too.
    pub wal_write_bytes: Level,
    /// `etcd_disk_backend_commit_duration_seconds`: one checkpoint.
    pub backend_commit: Histogram,
    /// `etcd_disk_backend_defrag_duration_seconds`.
    pub defragment: Histogram,
    /// `etcd_disk_defrag_inflight`: 1 while one is under way.
    pub defragmenting: Level,
    /// `etcd_snap_db_save_total_duration_seconds`: from a snapshot's first part until all is saved.
    pub snapshot_save: Histogram,
    /// `etcd_mvcc_hash_duration_seconds`.
    pub hash: Histogram,
    /// `etcd_mvcc_hash_rev_duration_seconds`.
    pub hash_by_revision: Histogram,
    /// `etcd_mvcc_db_open_read_transactions`: revisions that long reads and watchers pin.
    pub open_reads: Level,
    /// Compactions.
    pub compaction: Compaction,
    /// `etcd_debugging_mvcc_total_put_size_in_bytes`: keys and values put. A gauge in etcd too.
    pub put_bytes: Level,
    /// `etcd_debugging_mvcc_compact_revision`: -1 before the first.
    pub compact_revision: Gauge<f64, AtomicU64>,
}

/// Compactions of the store and of the index.
pub struct Compaction {
    /// `etcd_debugging_mvcc_db_compaction_keys_total`: rows that compactions have removed.
    pub keys: Counter,
    /// `etcd_debugging_mvcc_db_compaction_last`: when the last one ended, in seconds since 1970.
    pub last: Level,
    /// `etcd_debugging_mvcc_db_compaction_total_duration_milliseconds`.
    pub took_ms: Histogram,
    /// `etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds`: how long a slice of the
    /// index's compaction keeps everybody waiting.
    pub index_pause_ms: Histogram,
}

/// A histogram with `length` bounds from `start` on, each twice the one before.
fn of(
    r: &mut Registry,
    name: &'static str,
    help: &'static str,
    start: f64,
    length: u16,
) -> Histogram {
    let metric = Histogram::new(exponential_buckets(start, 2.0, length));
    r.register(name, help, metric.clone());
    metric
}

impl Compaction {
    fn register(r: &mut Registry) -> Self {
        let name = "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds";
        let help = "Bucketed histogram of db compaction total duration.";
        let compaction_ms = of(r, name, help, 100.0, 14);
        let name = "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds";
        let help = "Bucketed histogram of index compaction pause duration.";
        let index_pause_ms = of(r, name, help, 0.5, 14);
        let name = "etcd_debugging_mvcc_db_compaction_keys";
        let keys = counter(r, name, "Total number of db keys compacted.");
        let name = "etcd_debugging_mvcc_db_compaction_last";
        let help = "The unix time of the last db compaction. Resets to 0 on start.";
        let last = level(r, name, help);
        Self { keys, last, took_ms: compaction_ms, index_pause_ms }
    }
}

impl Storage {
    pub(super) fn register(r: &mut Registry) -> Self {
        let wal_fsync = histogram(
            r,
            "etcd_disk_wal_fsync_duration_seconds",
            "The latency distributions of fsync called by WAL.",
        );
        // A durable write has no second half that could be timed apart.
        let name = "etcd_disk_wal_write_duration_seconds";
        r.register(name, "The latency distributions of write called by WAL.", wal_fsync.clone());
        let backend_commit = histogram(
            r,
            "etcd_disk_backend_commit_duration_seconds",
            "The latency distributions of commit called by backend.",
        );
        let name = "etcd_disk_backend_defrag_duration_seconds";
        let help = "The latency distribution of backend defragmentation.";
        let defragment = of(r, name, help, 0.1, 13);
        let name = "etcd_snap_db_save_total_duration_seconds";
        let help = "The total latency distributions of v3 snapshot save";
        let snapshot_save = of(r, name, help, 0.1, 10);
        let name = "etcd_mvcc_hash_duration_seconds";
        let hash = of(r, name, "The latency distribution of storage hash operation.", 0.01, 15);
        let name = "etcd_mvcc_hash_rev_duration_seconds";
        let help = "The latency distribution of storage hash by revision operation.";
        let hash_by_revision = of(r, name, help, 0.01, 15);
        let compact_revision = Gauge::default();
        let help = "The revision of the last compaction in store.";
        r.register("etcd_debugging_mvcc_compact_revision", help, compact_revision.clone());
        Self {
            wal_write: wal_fsync.clone(),
            wal_fsync,
            wal_write_bytes: level(
                r,
                "etcd_disk_wal_write_bytes_total",
                "Total number of bytes written in WAL.",
            ),
            backend_commit,
            defragment,
            defragmenting: level(
                r,
                "etcd_disk_defrag_inflight",
                "Whether or not defrag is active on the member. 1 means active, 0 means not.",
            ),
            snapshot_save,
            hash,
            hash_by_revision,
            open_reads: level(
                r,
                "etcd_mvcc_db_open_read_transactions",
                "The number of currently open read transactions",
            ),
            compaction: Compaction::register(r),
            put_bytes: level(
                r,
                "etcd_debugging_mvcc_total_put_size_in_bytes",
                "The total size of put kv pairs seen by this member.",
            ),
            compact_revision,
        }
    }
}
