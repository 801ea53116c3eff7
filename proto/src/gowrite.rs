//! Values as etcd's log shows them: durations as Go's `time.Duration` and sizes as `humanize.Bytes`
//! write them.
//!
//! Used for lines that tools read beside etcd's. Never on the way of a request.

use std::time::Duration;

/// A duration as Go writes it: `1h2m3.5s`, `2.186421ms`, `0s`.
#[must_use]
pub fn go_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    let fraction = |value: u128, unit: u128| {
        let digits = format!("{:0width$}", value % unit, width = unit.ilog10() as usize);
        let digits = digits.trim_end_matches('0');
        let point = if digits.is_empty() || unit == 1 { "" } else { "." };
        let digits = if unit == 1 { "" } else { digits };
        format!("{}{point}{digits}", value / unit)
    };
    match ns {
        0 => "0s".to_owned(),
        1..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => fraction(ns, 1_000) + "µs",
        1_000_000..1_000_000_000 => fraction(ns, 1_000_000) + "ms",
        _ => {
            let minutes = ns / 60_000_000_000;
            let seconds = fraction(ns % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// A size for people, in powers of 1000: `25 kB`, `1.2 GB`.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let exponent = (bytes as f64).log(1000.0).floor().clamp(0.0, 6.0);
    let value = (bytes as f64 / 1000f64.powf(exponent) * 10.0 + 0.5).floor() / 10.0;
    let unit = UNITS[exponent as usize];
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (ns, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (2_186_421, "2.186421ms"),
            (300_000_000, "300ms"),
            (1_000_000_000, "1s"),
            (61_050_000_000, "1m1.05s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_nanos(ns)), text);
        }
    }

    #[test]
    fn sizes_are_written_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (82, "82 B"),
            (24_576, "25 kB"),
            (1_500, "1.5 kB"),
            (2_147_483_648, "2.1 GB"),
            (u64::MAX, "18 EB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
