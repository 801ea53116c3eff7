//! The metrics of the links to peers, under etcd's names and labels.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Labels, Level, family};

/// A counter for each label.
pub type Counters = Family<Labels, Counter>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// See the module text.
pub struct Network {
    /// `etcd_network_peer_sent_bytes_total{To}`.
    pub sent_bytes: Counters,
    /// `etcd_network_peer_received_bytes_total{From}`.
    pub received_bytes: Counters,
    /// `etcd_network_peer_sent_failures_total{To}`.
    pub sent_failures: Counters,
    /// `etcd_network_peer_received_failures_total{From}`.
    pub received_failures: Counters,
    /// `etcd_network_active_peers{Local,Remote}`.
    pub active: Family<Labels, Level>,
    /// `etcd_network_known_peers{Local,Remote}`.
    pub known: Family<Labels, Level>,
    /// `etcd_network_disconnected_peers_total{Local,Remote}`.
    pub disconnected: Counters,
    /// `etcd_network_peer_round_trip_time_seconds{To}`.
    pub round_trip: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Network {
    pub(super) fn register(r: &mut Registry) -> Self {
        let mut counters = |name: &'static str, help: &'static str| {
            let counters = Counters::default();
            r.register(name, help, counters.clone());
            counters
        };
        let sent_bytes =
            counters("etcd_network_peer_sent_bytes", "The total number of bytes sent to peers.");
        let received_bytes = counters(
            "etcd_network_peer_received_bytes",
            "The total number of bytes received from peers.",
        );
        let sent_failures = counters(
            "etcd_network_peer_sent_failures",
            "The total number of send failures from peers.",
        );
        let received_failures = counters(
            "etcd_network_peer_received_failures",
            "The total number of receive failures from peers.",
        );
        let disconnected =
            counters("etcd_network_disconnected_peers", "The total number of disconnected peers.");
        let active = family(
            r,
            "etcd_network_active_peers",
            "The current number of active peer connections.",
        );
        let known = family(r, "etcd_network_known_peers", "The current number of known peers.");
        let round_trip = Histograms::new_with_constructor(round_trips);
        let help = "Round-Trip-Time histogram between peers";
        r.register("etcd_network_peer_round_trip_time_seconds", help, round_trip.clone());
        Self {
            sent_bytes,
            received_bytes,
            sent_failures,
            received_failures,
            active,
            known,
            disconnected,
            round_trip,
        }
    }
}

impl Network {
    /// These are the members that `own` knows now.
    pub fn know(&self, own: u64, members: impl Iterator<Item = u64>) {
        self.known.clear();
        for member in members {
            let labels = vec![("Local", format!("{own:x}")), ("Remote", format!("{member:x}"))];
            self.known.get_or_create(&labels).set(1);
        }
    }
}

/// etcd's buckets: 0.1 ms to 3.3 s.
fn round_trips() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 16))
}
