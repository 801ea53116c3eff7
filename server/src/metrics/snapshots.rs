//! The metrics of snapshots between members, under etcd's names and labels.
//!
//! Touched by the replica.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Labels, Level};

/// A number for each label. The names do not end as a counter's would in the text.
type Levels = Family<Labels, Level>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// One direction. `peer` names the other member in hexadecimal.
pub struct Direction {
    label: &'static str,
    inflights: Levels,
    success: Levels,
    failures: Levels,
    seconds: Histograms,
}

impl Direction {
    /// `verb` is in the names and in the texts that explain them.
    fn register(r: &mut Registry, verb: &str, label: &'static str) -> Self {
        let name = |what: &str| format!("etcd_network_snapshot_{verb}_{what}");
        let seconds = Histograms::new_with_constructor(durations);
        let help = format!("Total latency distributions of v3 snapshot {verb}s");
        r.register(name("total_duration_seconds"), help, seconds.clone());
        let mut levels = |what, help: String| {
            let levels = Levels::default();
            r.register(name(what), help, levels.clone());
            levels
        };
        Self {
            label,
            inflights: levels(
                "inflights_total",
                format!("Total number of inflight snapshot {verb}s"),
            ),
            success: levels("success", format!("Total number of successful snapshot {verb}s")),
            failures: levels("failures", format!("Total number of snapshot {verb} failures")),
            seconds,
        }
    }

    fn labels(&self, peer: u64) -> Labels {
        vec![(self.label, format!("{peer:x}"))]
    }

    /// One has begun.
    pub fn began(&self, peer: u64) {
        self.inflights.get_or_create(&self.labels(peer)).inc();
    }

    /// One that had begun has ended, after `took_ms`.
    pub fn ended(&self, peer: u64, ok: bool, took_ms: u64) {
        let labels = self.labels(peer);
        self.inflights.get_or_create(&labels).dec();
        if ok {
            self.success.get_or_create(&labels).inc();
            let took_ms = u32::try_from(took_ms).unwrap_or(u32::MAX);
            self.seconds.get_or_create(&labels).observe(f64::from(took_ms) / 1000.0);
        } else {
            self.failures.get_or_create(&labels).inc();
        }
    }
}

/// See the module text.
pub struct Snapshots {
    /// `etcd_network_snapshot_send_*{To}`.
    pub sent: Direction,
    /// `etcd_network_snapshot_receive_*{From}`.
    pub received: Direction,
    /// `etcd_server_snapshot_apply_in_progress_total`: 1 from when raft has taken the snapshot
    /// until the member has gone over to it.
    pub applying: Level,
}

impl Snapshots {
    pub(super) fn register(r: &mut Registry) -> Self {
        let sent = Direction::register(r, "send", "To");
        let received = Direction::register(r, "receive", "From");
        let applying = Level::default();
        let name = "etcd_server_snapshot_apply_in_progress_total";
        r.register(
            name,
            "1 if the server is applying the incoming snapshot. 0 if none.",
            applying.clone(),
        );
        Self { sent, received, applying }
    }
}

/// etcd's buckets: 0.1 s to 51.2 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.1, 2.0, 10))
}
