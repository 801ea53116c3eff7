//! The one clock of the member: milliseconds since it was made. Read once per turn by the shard's
//! loop and handed down; nothing below reads time by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
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
    /// Nanoseconds that the simulator sets, and seconds from them to the time of day.
    Simulated { nanos: Arc<AtomicU64>, wall_s: Arc<AtomicI64> },
}

impl Clock {
    /// Starts at zero.
    pub fn start() -> Self {
        Self { source: Source::Machine(Instant::now()) }
    }

    /// Shows what the simulator writes into `nanos`, which must never go back. The time of day is
    /// `wall_s` seconds more, which may be anything at any time.
    pub fn simulated(nanos: Arc<AtomicU64>, wall_s: Arc<AtomicI64>) -> Self {
        Self { source: Source::Simulated { nanos, wall_s } }
    }

    /// Milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Time since the start, for measuring one operation.
    pub fn elapsed(&self) -> Duration {
        match &self.source {
            Source::Machine(origin) => origin.elapsed(),
            Source::Simulated { nanos, .. } => Duration::from_nanos(nanos.load(Ordering::Relaxed)),
        }
    }

    /// The time of day, to be shown or compared with another member's: nothing may depend on it.
    pub fn unix(&self) -> SystemTime {
        match &self.source {
            Source::Machine(_) => SystemTime::now(),
            Source::Simulated { wall_s, .. } => {
                let wall_s = u64::try_from(wall_s.load(Ordering::Relaxed)).unwrap_or(0);
                UNIX_EPOCH + Duration::from_secs(wall_s) + self.elapsed()
            }
        }
    }
}

/// The processor time of the calling thread so far.
pub fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
