//! `etcd_debugging_server_watch_send_loop_*`: how long it takes to make what watch streams send.
//!
//! etcd times a loop for each stream; here a front's hub serves all of its streams in one go, and
//! each observation is one such go.

use std::time::Duration;

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// See the module text.
pub struct WatchLoops {
    events: Histogram,
    event: Histogram,
    control: Histogram,
    progress: Histogram,
}

impl WatchLoops {
    pub(super) fn register(r: &mut Registry) -> Self {
        let mut of = |what: &str, help: &str| {
            let metric = Histogram::new(exponential_buckets(0.001, 2.0, 14));
            let name = format!("etcd_debugging_server_watch_send_loop_{what}_seconds");
            r.register(name, help, metric.clone());
            metric
        };
        Self {
            events: of(
                "watch_stream_duration",
                "The total duration in seconds of running through the send loop watch stream \
                 response all events.",
            ),
            event: of(
                "watch_stream_duration_per_event",
                "The average duration in seconds of running through the send loop watch stream \
                 response, per event.",
            ),
            control: of(
                "control_stream_duration",
                "The total duration in seconds of running through the send loop control stream \
                 response.",
            ),
            progress: of(
                "progress_duration",
                "The total duration in seconds of running through the progress loop control stream \
                 response.",
            ),
        }
    }

    /// So many events were sent in so long.
    pub fn sent(&self, events: u64, took: Duration) {
        if events > 0 {
            self.events.observe(took.as_secs_f64());
            self.event.observe(took.as_secs_f64() / events as f64);
        }
    }

    /// A request of a stream was answered in so long.
    pub fn answered(&self, took: Duration) {
        self.control.observe(took.as_secs_f64());
    }

    /// Notifications of progress were sent in so long.
    pub fn told_progress(&self, took: Duration) {
        self.progress.observe(took.as_secs_f64());
    }
}
