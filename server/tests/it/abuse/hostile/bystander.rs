//! A bystander that behaves, and how long its calls take while others do not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::raw::Raw;

/// How long each call of a well-behaved client took.
#[derive(Default)]
pub(crate) struct Took {
    pub(crate) puts: Vec<Duration>,
    pub(crate) gets: Vec<Duration>,
}

/// Puts and reads a small value, one call after the other, until told to stop.
pub(crate) fn calls_until(port: u16, stop: &AtomicBool) -> Took {
    let mut raw = Raw::connect(port, 1 << 20);
    let mut took = Took::default();
    while !stop.load(Ordering::Relaxed) {
        took.puts.push(raw.put_once("bystander"));
        for _ in 0..4 {
            took.gets.push(raw.get_once("bystander"));
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    took
}

/// The time that 99 of a hundred kept.
pub(crate) fn p99(took: &[Duration]) -> Duration {
    quantile(took, 99)
}

/// The time that so many of a hundred kept.
pub(crate) fn quantile(took: &[Duration], percent: usize) -> Duration {
    let mut took = took.to_vec();
    took.sort_unstable();
    took.get(took.len() * percent / 100).copied().unwrap_or_default()
}
