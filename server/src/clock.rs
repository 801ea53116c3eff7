//! The one clock of the member: milliseconds since it was made. Read once per turn by the shard's
//! loop and handed down; nothing below reads time by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A monotonic clock; clones agree.
#[derive(Debug, Clone)]
pub struct Clock {
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    /// The machine's.
    Machine(Instant),
    /// Nanoseconds that the simulator sets.
    Simulated(Arc<AtomicU64>),
}

impl Clock {
    /// Starts at zero.
    pub fn start() -> Self {
        Self { source: Source::Machine(Instant::now()) }
    }

    /// Shows what the simulator writes into `nanos`, which must never go back.
    pub fn simulated(nanos: Arc<AtomicU64>) -> Self {
        Self { source: Source::Simulated(nanos) }
    }

    /// Milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Time since the start, for measuring one operation.
    pub fn elapsed(&self) -> Duration {
        match &self.source {
            Source::Machine(origin) => origin.elapsed(),
            Source::Simulated(nanos) => Duration::from_nanos(nanos.load(Ordering::Relaxed)),
        }
    }

    /// The time of day, to be shown or compared with another member's: nothing may depend on it.
    pub fn unix(&self) -> SystemTime {
        match &self.source {
            Source::Machine(_) => SystemTime::now(),
            Source::Simulated(_) => UNIX_EPOCH + self.elapsed(),
        }
    }
}
