//! The metrics of the links to peers, under etcd's names and labels.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Level, MethodLabels, family};

/// A counter for each label.
pub type Counters = Family<MethodLabels, Counter>;
type Histograms = Family<MethodLabels, Histogram, fn() -> Histogram>;

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
    pub active: Family<MethodLabels, Level>,
    /// `etcd_network_disconnected_peers_total{Local,Remote}`.
    pub disconnected: Counters,
    /// `etcd_network_peer_round_trip_time_seconds{To}`.
    pub round_trip: Family<MethodLabels, Histogram, fn() -> Histogram>,
}

impl Network {
    pub(super) fn register(r: &mut Registry) -> Self {
        let mut counters = |name: &'static str, help: &'static str| {
            let counters = Counters::default();
            r.register(name, help, counters.clone());
            counters
        };
        let sent_bytes = counters("etcd_network_peer_sent_bytes", "Bytes sent to peers");
        let received_bytes =
            counters("etcd_network_peer_received_bytes", "Bytes received from peers");
        let sent_failures = counters("etcd_network_peer_sent_failures", "Sends that failed");
        let received_failures =
            counters("etcd_network_peer_received_failures", "Receives that failed");
        let disconnected =
            counters("etcd_network_disconnected_peers", "How often links to peers were lost");
        let active = family(r, "etcd_network_active_peers", "Peers to which a link works");
        let round_trip = Histograms::new_with_constructor(round_trips);
        let help = "Round trips to peers";
        r.register("etcd_network_peer_round_trip_time_seconds", help, round_trip.clone());
        Self {
            sent_bytes,
            received_bytes,
            sent_failures,
            received_failures,
            active,
            disconnected,
            round_trip,
        }
    }
}

/// etcd's buckets: 0.1 ms to 3.3 s.
fn round_trips() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 16))
}
