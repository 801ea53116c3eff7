//! The one clock of the member: milliseconds since it was made. Read once per turn by the shard's
//! loop and handed down; nothing below reads time by itself.

use std::time::{Duration, Instant};

/// A monotonic clock; copies agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// Starts at zero.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Time since the start, for measuring one operation.
    pub fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }
}
