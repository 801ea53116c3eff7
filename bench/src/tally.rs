//! What came back: latencies, errors, and both by second.
//!
//! Each thread of the engine fills one; they are merged at the end and told by `report`. Must never
//! grow with the number of requests.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::limits;

/// The results of requests.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    latencies: Histogram<u64>,
    sum_ns: u128,
    sum_squares: u128,
    fastest_ns: u64,
    slowest_ns: u64,
    errors: BTreeMap<String, u64>,
    seconds: Option<BTreeMap<u64, Second>>,
}

/// The requests that began in one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Second {
    pub(crate) fastest_ns: u64,
    pub(crate) slowest_ns: u64,
    pub(crate) sum_ns: u64,
    pub(crate) count: u64,
}

impl Tally {
    /// Nothing yet; `sample` keeps seconds apart.
    pub(crate) fn new(sample: bool) -> Self {
        let latencies =
            Histogram::new_with_bounds(1, limits::LATENCY_NS_MAX, limits::LATENCY_DIGITS)
                .expect("the bounds are constants that the histogram accepts");
        Tally {
            latencies,
            sum_ns: 0,
            sum_squares: 0,
            fastest_ns: u64::MAX,
            slowest_ns: 0,
            errors: BTreeMap::new(),
            seconds: sample.then(BTreeMap::new),
        }
    }

    /// A request that succeeded. Times are nanoseconds since the start of the run.
    #[inline]
    pub(crate) fn success(&mut self, start_ns: u64, end_ns: u64) {
        let latency_ns = end_ns.saturating_sub(start_ns);
        self.latencies.saturating_record(latency_ns);
        self.sum_ns += u128::from(latency_ns);
        self.sum_squares += u128::from(latency_ns) * u128::from(latency_ns);
        self.fastest_ns = self.fastest_ns.min(latency_ns);
        self.slowest_ns = self.slowest_ns.max(latency_ns);
        if self.seconds.is_some() {
            self.second(start_ns / 1_000_000_000, latency_ns);
        }
    }

    fn second(&mut self, second: u64, latency_ns: u64) {
        let Some(seconds) = &mut self.seconds else { return };
        if seconds.len() >= limits::SAMPLE_SECONDS_MAX && !seconds.contains_key(&second) {
            return;
        }
        let one =
            Second { fastest_ns: latency_ns, slowest_ns: latency_ns, sum_ns: latency_ns, count: 1 };
        seconds.entry(second).and_modify(|all| all.add(one)).or_insert(one);
    }

    /// A request that failed.
    pub(crate) fn failure(&mut self, text: &str) {
        self.failures(text, 1);
    }

    fn failures(&mut self, text: &str, count: u64) {
        let mut end = text.len().min(limits::ERROR_TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let known = self.errors.len() < limits::ERROR_TEXTS_MAX;
        let text = match known || self.errors.contains_key(&text[..end]) {
            true => &text[..end],
            false => limits::OTHER_ERRORS,
        };
        *self.errors.entry(text.to_owned()).or_default() += count;
    }

    /// Adds another thread's results.
    pub(crate) fn merge(&mut self, other: &Tally) {
        self.latencies.add(&other.latencies).expect("both have the same constant bounds");
        self.sum_ns += other.sum_ns;
        self.sum_squares += other.sum_squares;
        self.fastest_ns = self.fastest_ns.min(other.fastest_ns);
        self.slowest_ns = self.slowest_ns.max(other.slowest_ns);
        for (text, count) in &other.errors {
            self.failures(text, *count);
        }
        if let (Some(seconds), Some(others)) = (&mut self.seconds, &other.seconds) {
            for (second, other) in others {
                seconds.entry(*second).and_modify(|all| all.add(*other)).or_insert(*other);
            }
        }
    }

    /// Requests that succeeded.
    pub(crate) fn count(&self) -> u64 {
        self.latencies.len()
    }

    /// Failures by their text.
    pub(crate) fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }

    /// Requests that failed.
    pub(crate) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Seconds since the start of the run, if they were to be kept apart.
    pub(crate) fn seconds(&self) -> Option<&BTreeMap<u64, Second>> {
        self.seconds.as_ref()
    }

    pub(crate) fn fastest_ns(&self) -> u64 {
        if self.count() == 0 { 0 } else { self.fastest_ns }
    }

    pub(crate) fn slowest_ns(&self) -> u64 {
        self.slowest_ns
    }

    pub(crate) fn mean_ns(&self) -> f64 {
        self.sum_ns as f64 / self.count().max(1) as f64
    }

    /// The deviation of the whole population, as etcd's tool computes it.
    pub(crate) fn deviation_ns(&self) -> f64 {
        let mean = self.mean_ns();
        let mean_square = self.sum_squares as f64 / self.count().max(1) as f64;
        (mean_square - mean * mean).max(0.0).sqrt()
    }

    /// The latency that this share of requests did not exceed, `percent` between 0 and 100.
    pub(crate) fn percentile_ns(&self, percent: f64) -> u64 {
        let value = self.latencies.value_at_quantile(percent / 100.0);
        value.clamp(self.fastest_ns(), self.slowest_ns)
    }

    /// Counts of latencies up to each of the ascending `bounds_ns`, the last of which is at least
    /// the slowest. The counts sum to [`Tally::count`].
    pub(crate) fn buckets(&self, bounds_ns: &[f64]) -> Vec<u64> {
        let mut counts = vec![0; bounds_ns.len()];
        let mut bucket = 0;
        for step in self.latencies.iter_recorded() {
            let lowest = self.latencies.lowest_equivalent(step.value_iterated_to());
            let latency = lowest.clamp(self.fastest_ns(), self.slowest_ns) as f64;
            while bucket + 1 < bounds_ns.len() && latency > bounds_ns[bucket] {
                bucket += 1;
            }
            counts[bucket] += step.count_at_value();
        }
        counts
    }
}

impl Second {
    fn add(&mut self, other: Second) {
        self.fastest_ns = self.fastest_ns.min(other.fastest_ns);
        self.slowest_ns = self.slowest_ns.max(other.slowest_ns);
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.count += other.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_known_latencies_are_right() {
        let mut tally = Tally::new(true);
        for latency_us in 1..=1_000 {
            tally.success(500, 500 + latency_us * 1_000);
        }
        assert_eq!(tally.count(), 1_000);
        assert_eq!((tally.fastest_ns(), tally.slowest_ns()), (1_000, 1_000_000));
        assert!((tally.mean_ns() - 500_500.0).abs() < 1.0);
        assert!((tally.deviation_ns() - 288_674.99).abs() < 1.0, "{}", tally.deviation_ns());
        for (percent, expected_ns) in [(50.0, 500_000.0), (99.0, 990_000.0), (100.0, 1e6)] {
            let found = tally.percentile_ns(percent) as f64;
            assert!((found / expected_ns - 1.0).abs() < 0.002, "{percent}: {found}");
        }
        let counts = tally.buckets(&[1_000.0, 500_000.0, 1e6]);
        assert_eq!(counts.iter().sum::<u64>(), 1_000);
        assert_eq!(counts[0], 1);
        let second = tally.seconds().unwrap()[&0];
        assert_eq!((second.count, second.slowest_ns), (1_000, 1_000_000));
    }

    #[test]
    fn merging_is_the_same_as_counting_together() {
        let (mut first, mut second, mut both) =
            (Tally::new(true), Tally::new(true), Tally::new(true));
        for step in 0..1_000u64 {
            let (start, end) = (step * 3_000_000, step * 3_000_000 + step * step);
            let half = if step % 2 == 0 { &mut first } else { &mut second };
            half.success(start, end);
            both.success(start, end);
        }
        second.failure("late");
        both.failure("late");
        first.merge(&second);
        assert_eq!(first.percentile_ns(99.0), both.percentile_ns(99.0));
        assert_eq!(first.seconds(), both.seconds());
        assert_eq!(first.errors(), both.errors());
        assert!((first.deviation_ns() - both.deviation_ns()).abs() < 1e-6);
    }

    #[test]
    fn error_texts_are_bounded_and_none_is_lost() {
        let mut tally = Tally::new(false);
        for number in 0..1_000 {
            tally.failure(&format!("{number} {}", "é".repeat(1_000)));
        }
        assert_eq!(tally.errors().len(), limits::ERROR_TEXTS_MAX + 1);
        assert_eq!(tally.error_count(), 1_000);
        assert!(tally.errors().keys().all(|text| text.len() <= limits::ERROR_TEXT_BYTES_MAX));
    }

    #[test]
    fn an_empty_tally_has_no_latencies() {
        let tally = Tally::new(false);
        assert_eq!((tally.count(), tally.fastest_ns(), tally.slowest_ns()), (0, 0, 0));
        assert_eq!(tally.percentile_ns(50.0), 0);
    }
}
