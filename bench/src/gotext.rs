//! Numbers as Go prints them, which etcd's users read.
//!
//! Used by `report`. Must never lose precision that Go would print.

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
