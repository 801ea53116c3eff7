//! A distribution of durations, boiled down to what a person reads.
//!
//! Called by the measurements. The percentiles are exact: all samples are kept while measuring, a
//! million at most.

use std::time::Duration;

use serde::Serialize;

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distribution {
    /// How many samples.
    pub count: u64,
    /// Smallest.
    pub min_us: f64,
    /// Half of the samples are at or below it.
    pub p50_us: f64,
    /// 90 of 100 are at or below it.
    pub p90_us: f64,
    /// 99 of 100 are at or below it.
    pub p99_us: f64,
    /// 999 of 1000 are at or below it.
    pub p999_us: f64,
    /// Largest.
    pub max_us: f64,
}

impl Distribution {
    /// The distribution of `samples`, in any order; `None` if there are none.
    pub fn of(mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        let last = samples.len().checked_sub(1)?;
        let at = |part: f64| {
            let rank = (part * samples.len() as f64).ceil() as usize;
            micros(samples[rank.saturating_sub(1).min(last)])
        };
        Some(Self {
            count: samples.len() as u64,
            min_us: micros(samples[0]),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: micros(samples[last]),
        })
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1000.0
}

/// Microseconds as a person writes them: `84 us`, `1.2 ms`, `3.0 s`.
pub fn human(us: f64) -> String {
    match us {
        us if us < 10.0 => format!("{us:.1} us"),
        us if us < 1000.0 => format!("{us:.0} us"),
        us if us < 1_000_000.0 => format!("{:.1} ms", us / 1000.0),
        us => format!("{:.1} s", us / 1_000_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact() {
        let samples = (1..=1000).rev().map(Duration::from_micros).collect();
        let found = Distribution::of(samples).expect("samples");
        assert_eq!(
            (found.min_us, found.p50_us, found.p90_us, found.p99_us, found.p999_us, found.max_us),
            (1.0, 500.0, 900.0, 990.0, 999.0, 1000.0)
        );
        assert_eq!(Distribution::of(Vec::new()), None);
        let one = Distribution::of(vec![Duration::from_micros(7)]).expect("one sample");
        assert_eq!((one.p50_us, one.p999_us), (7.0, 7.0));
    }

    #[test]
    fn durations_are_readable() {
        assert_eq!(human(9.14), "9.1 us");
        assert_eq!(human(84.2), "84 us");
        assert_eq!(human(1234.0), "1.2 ms");
        assert_eq!(human(2_500_000.0), "2.5 s");
    }
}
