//! Numbers and durations as Go prints them, which etcd's users read.
//!
//! Used by `report`. Must never lose precision that Go would print.

use std::time::Duration;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// A duration as Go prints it: `1.5ms`, `2m0.25s`, `0s`.
pub(crate) fn duration(duration: Duration) -> String {
    let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let scaled = |unit: u64, name: &str| format!("{}{name}", decimal(ns, unit));
    match ns {
        0 => "0s".to_owned(),
        1..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => scaled(1_000, "µs"),
        1_000_000..NS_PER_SECOND => scaled(1_000_000, "ms"),
        _ => {
            let minutes = ns / (60 * NS_PER_SECOND);
            let seconds = decimal(ns % (60 * NS_PER_SECOND), NS_PER_SECOND);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// `value / unit` (a power of ten) with no trailing zeros.
fn decimal(value: u64, unit: u64) -> String {
    let digits = unit.ilog10() as usize;
    let text = format!("{}.{:0digits$}", value / unit, value % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A number as Go's `%g` prints it: the shortest digits that give the same number back.
pub(crate) fn shortest(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "NaN" } else { "+Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        let cases = [
            (0, "0s"),
            (15, "15ns"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (123_456_789, "123.456789ms"),
            (1_000_000_000, "1s"),
            (62_500_000_000, "1m2.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ];
        for (ns, expected) in cases {
            assert_eq!(duration(Duration::from_nanos(ns)), expected);
        }
    }

    #[test]
    fn numbers_are_printed_as_percent_g() {
        let cases = [
            (0.0, "0"),
            (0.5, "0.5"),
            (0.000_123, "0.000123"),
            (0.000_012_3, "1.23e-05"),
            (12_345.678, "12345.678"),
            (1_234_567.5, "1.2345675e+06"),
            (1e21, "1e+21"),
        ];
        for (value, expected) in cases {
            assert_eq!(shortest(value), expected);
        }
    }
}
