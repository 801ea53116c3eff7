//! Values in the notation of Go's flags: booleans, numbers and durations, as `strconv` and
//! `time.ParseDuration` read them; and durations, sizes and errors as they are shown.
//!
//! Used by the flags of the member and of the benchmark, and for lines that tools read beside
//! etcd's. Must never take what Go refuses, nor refuse what Go takes: scripts that start etcd are
//! to start this.

use std::io;
use std::time::Duration;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Why a number is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotANumber {
    /// It is not written as one.
    Syntax,
    /// It is one that does not fit.
    Range,
}

impl std::fmt::Display for NotANumber {
    /// The words of Go's flag package.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Syntax => "parse error",
            Self::Range => "value out of range",
        })
    }
}

/// Reads a boolean: `1`, `t`, `T`, `true`, `TRUE`, `True` and their opposites.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Reads an unsigned number of at most `bits` bits: decimal, or with `0x`, `0o`, `0b` or a leading
/// zero in another base, with underscores between digits.
///
/// # Errors
/// [`NotANumber`].
pub fn parse_uint(text: &str, bits: u32) -> Result<u64, NotANumber> {
    let lower = text.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // An underscore stands between digits, or between a prefix and a digit.
    let prefixed = digits.len() < lower.len();
    let whole = if prefixed { digits.strip_prefix('_').unwrap_or(digits) } else { digits };
    if whole.is_empty() || whole.split('_').any(str::is_empty) {
        return Err(NotANumber::Syntax);
    }
    let mut value: u64 = 0;
    let mut fits = true;
    for c in whole.chars().filter(|c| *c != '_') {
        let digit = c.to_digit(base).ok_or(NotANumber::Syntax)?;
        let next =
            value.checked_mul(u64::from(base)).and_then(|value| value.checked_add(digit.into()));
        fits &= next.is_some();
        value = next.unwrap_or(0);
    }
    let max = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    if fits && value <= max { Ok(value) } else { Err(NotANumber::Range) }
}

/// Reads a signed number of 64 bits, as [`parse_uint`] with a sign.
///
/// # Errors
/// [`NotANumber`].
pub fn parse_int(text: &str) -> Result<i64, NotANumber> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let value = i128::from(parse_uint(digits, 64)?);
    i64::try_from(if negative { -value } else { value }).map_err(|_| NotANumber::Range)
}

/// Reads a duration: numbers with units, such as `1h30m`, `-1.5s`, `+5µs` or `0`. In nanoseconds,
/// which fit 63 bits and a sign; a part of a nanosecond is cut off.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let unit_ns: u64 = match &after[..unit_len] {
            "ns" => 1,
            // The micro sign, and the Greek letter.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let units: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let part_ns = units.checked_mul(unit_ns)?.checked_add(part_of(fraction, unit_ns))?;
        total = total.checked_add(part_ns).filter(|total| *total <= 1 << 63)?;
        rest = &after[unit_len..];
    }
    let total = i128::from(total);
    i64::try_from(if negative { -total } else { total }).ok()
}

/// What Go says of a text that [`parse_duration`] does not take.
pub fn duration_error(text: &str) -> String {
    let invalid = || format!("time: invalid duration {text:?}");
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && fraction.is_empty() {
            return invalid();
        }
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let unit = &after[..unit_len];
        if unit.is_empty() {
            return format!("time: missing unit in duration {text:?}");
        }
        if !["ns", "us", "\u{b5}s", "\u{3bc}s", "ms", "s", "m", "h"].contains(&unit) {
            return format!("time: unknown unit {unit:?} in duration {text:?}");
        }
        rest = &after[unit_len..];
    }
    invalid()
}

/// A duration as Go prints it: `1.5ms`, `2m0.25s`, `0s`.
pub fn format_duration(duration: Duration) -> String {
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

/// A size for people, in powers of 1000: `25 kB`, `1.2 GB`.
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

/// What the system said, as Go prints it: in small letters, without the number.
pub fn format_error(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error ").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// Splits off the digits at the beginning.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Returns `0.{fraction}` units in nanoseconds. Digits past the eighteenth are below one in any
/// unit, or nearly.
fn part_of(fraction: &str, unit_ns: u64) -> u64 {
    let fraction = &fraction[..fraction.len().min(18)];
    let Ok(digits) = fraction.parse::<u128>() else { return 0 };
    let scale = fraction.len().try_into().map_or(1, |len| 10u128.pow(len));
    u64::try_from(digits * u128::from(unit_ns) / scale).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_duration_is_told_in_gos_words() {
        let cases = [
            ("", "time: invalid duration \"\""),
            ("-", "time: invalid duration \"-\""),
            ("x", "time: invalid duration \"x\""),
            (".s", "time: invalid duration \".s\""),
            ("5", "time: missing unit in duration \"5\""),
            ("-1", "time: missing unit in duration \"-1\""),
            ("1h5", "time: missing unit in duration \"1h5\""),
            ("5d", "time: unknown unit \"d\" in duration \"5d\""),
            ("1.5 h", "time: unknown unit \" h\" in duration \"1.5 h\""),
            ("9999999999h", "time: invalid duration \"9999999999h\""),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_duration(text), None, "{text}");
            assert_eq!(duration_error(text), expected);
        }
    }

    #[test]
    fn errors_of_the_system_are_printed_as_go_prints_them() {
        let missing = io::Error::from_raw_os_error(2);
        assert_eq!(format_error(&missing), "no such file or directory");
        assert_eq!(format_error(&io::Error::other("Odd")), "odd");
    }

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (15, "15ns"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (2_186_421, "2.186421ms"),
            (123_456_789, "123.456789ms"),
            (300_000_000, "300ms"),
            (1_000_000_000, "1s"),
            (61_050_000_000, "1m1.05s"),
            (62_500_000_000, "1m2.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ];
        for (ns, expected) in cases {
            assert_eq!(format_duration(Duration::from_nanos(ns)), expected);
        }
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let cases = [
            ("0", Some(0)),
            ("+0", Some(0)),
            ("300ms", Some(300_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("+5s", Some(5_000_000_000)),
            ("-1s", Some(-1_000_000_000)),
            (".5s", Some(500_000_000)),
            ("1.s", Some(1_000_000_000)),
            ("1h2m3s", Some(3_723_000_000_000)),
            ("2us", Some(2_000)),
            ("2\u{b5}s", Some(2_000)),
            ("2\u{3bc}s", Some(2_000)),
            ("1.9ns", Some(1)),
            ("9223372036854775807ns", Some(i64::MAX)),
            ("-9223372036854775808ns", Some(i64::MIN)),
            ("9223372036854775808ns", None),
            ("9999999h", None),
            ("", None),
            ("+", None),
            ("5", None),
            ("s", None),
            (".s", None),
            ("1x", None),
            ("1..2s", None),
            ("+-1s", None),
            ("1s ", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_duration(text), expected, "{text:?}");
        }
    }

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        let (syntax, range) = (Err(NotANumber::Syntax), Err(NotANumber::Range));
        let cases = [
            ("0", Ok(0)),
            ("10000", Ok(10_000)),
            ("0x1F", Ok(31)),
            ("0b11", Ok(3)),
            ("0o17", Ok(15)),
            ("017", Ok(15)),
            ("1_000", Ok(1_000)),
            ("0x_1", Ok(1)),
            ("0_7", Ok(7)),
            ("4294967295", Ok(u64::from(u32::MAX))),
            ("4294967296", range),
            ("99999999999999999999", range),
            ("", syntax),
            ("1__0", syntax),
            ("_1", syntax),
            ("1_", syntax),
            ("0x", syntax),
            ("08", syntax),
            ("-1", syntax),
            ("+1", syntax),
            ("1k", syntax),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_uint(text, 32), expected, "{text:?}");
        }
        assert_eq!(parse_int("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(parse_int("9223372036854775808"), Err(NotANumber::Range));
        assert_eq!((parse_int("+0x10"), parse_int("--1")), (Ok(16), Err(NotANumber::Syntax)));
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
