//! Numbers that one thread counts and any thread reads.
//!
//! Used where a lock, or a counter that several cores write, would be felt: by fronts for their
//! calls and by the replica for what it applies. Whoever renders a page adds up what each of them
//! has counted. Only the owner of a cell may write to it: two would lose each other's counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A counter with one writer.
#[derive(Debug, Default)]
pub(super) struct Tally(AtomicU64);

impl Tally {
    /// So many more.
    #[inline]
    pub(super) fn add(&self, more: u64) {
        self.0.store(self.get() + more, Ordering::Relaxed);
    }

    /// How many so far.
    #[inline]
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// `N` bounds from `start` on, each `factor` times the one before.
pub(super) const fn exponential<const N: usize>(start: f64, factor: f64) -> [f64; N] {
    let mut bounds = [0.0; N];
    let (mut at, mut bound) = (0, start);
    while at < N {
        bounds[at] = bound;
        bound *= factor;
        at += 1;
    }
    bounds
}

/// A histogram of durations with one writer.
#[derive(Debug)]
pub(super) struct Buckets {
    bounds: &'static [f64],
    /// One for each bound, and one for what is longer.
    counts: Box<[Tally]>,
    sum_ns: Tally,
}

impl Buckets {
    /// An empty one with these upper bounds in seconds, ascending.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| Tally::default()).collect();
        Self { bounds, counts, sum_ns: Tally::default() }
    }

    /// So many things took so long each.
    #[inline]
    pub(super) fn observe(&self, count: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = self.bounds.iter().position(|bound| seconds <= *bound);
        self.counts[at.unwrap_or(self.bounds.len())].add(count);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.add(ns.saturating_mul(count));
    }
}

/// What several histograms of the same bounds have counted together.
#[derive(Debug, Default)]
pub(super) struct Sum {
    /// Upper bounds, the last one infinite, with what each bucket alone holds.
    pub(super) buckets: Vec<(f64, u64)>,
    pub(super) count: u64,
    pub(super) seconds: f64,
}

impl Sum {
    pub(super) fn of<'a>(parts: impl IntoIterator<Item = &'a Buckets>) -> Self {
        let mut sum = Self::default();
        let mut total_ns = 0u64;
        for part in parts {
            if sum.buckets.is_empty() {
                let bounds = part.bounds.iter().copied().chain([f64::INFINITY]);
                sum.buckets = bounds.map(|bound| (bound, 0)).collect();
            }
            for ((_, all), own) in sum.buckets.iter_mut().zip(&part.counts) {
                *all += own.get();
                sum.count += own.get();
            }
            total_ns += part.sum_ns.get();
        }
        sum.seconds = Duration::from_nanos(total_ns).as_secs_f64();
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_threads_have_seen_is_added_up() {
        static BOUNDS: [f64; 3] = exponential(0.001, 2.0);
        let (one, other) = (Buckets::new(&BOUNDS), Buckets::new(&BOUNDS));
        one.observe(2, Duration::from_micros(1000));
        one.observe(1, Duration::from_micros(1001));
        other.observe(1, Duration::from_secs(1));
        let sum = Sum::of([&one, &other]);
        assert_eq!(sum.buckets, [(0.001, 2), (0.002, 1), (0.004, 0), (f64::INFINITY, 1)]);
        assert_eq!((sum.count, sum.seconds), (4, 1.003_001));
    }
}
