//! The small texts of gRPC: `grpc-message`, `grpc-timeout`, and Go's quoting in error texts.
//!
//! Used by both sides; pure functions.

/// Percent-encodes a status message as grpc-go does.
#[must_use]
pub fn encode_message(message: &str) -> std::borrow::Cow<'_, str> {
    let is_plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'%';
    if message.bytes().all(is_plain) {
        return message.into();
    }
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(message.len() * 2);
    for byte in message.bytes() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    out.into()
}

/// Decodes a status message; malformed escapes stand for themselves, bytes that are no UTF-8 become
/// replacement characters.
#[must_use]
pub fn decode_message(encoded: &[u8]) -> String {
    let hex = |byte: u8| char::from(byte).to_digit(16);
    let mut out = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%'
            && let [a, b, after @ ..] = tail
            && let (Some(a), Some(b)) = (hex(*a), hex(*b))
        {
            out.push((a << 4 | b) as u8);
            rest = after;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    match String::from_utf8(out) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

/// Why a `grpc-timeout` cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeoutError {
    /// Shorter than a digit and a unit.
    TooShort,
    /// More than eight digits.
    TooLong,
    /// No such unit.
    Unit,
    /// The digits are none.
    Digits,
}

/// Reads a `grpc-timeout` as milliseconds, rounded up.
///
/// # Errors
/// A [`TimeoutError`].
pub fn parse_timeout_ms(text: &[u8]) -> Result<u64, TimeoutError> {
    let Some((&unit, digits)) = text.split_last() else { return Err(TimeoutError::TooShort) };
    if digits.is_empty() {
        return Err(TimeoutError::TooShort);
    }
    if digits.len() > 8 {
        return Err(TimeoutError::TooLong);
    }
    let nanos_each: u64 = match unit {
        b'H' => 3_600_000_000_000,
        b'M' => 60_000_000_000,
        b'S' => 1_000_000_000,
        b'm' => 1_000_000,
        b'u' => 1_000,
        b'n' => 1,
        _ => return Err(TimeoutError::Unit),
    };
    let mut count = 0u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(TimeoutError::Digits);
        }
        count = count * 10 + u64::from(digit - b'0');
    }
    Ok(count.saturating_mul(nanos_each).div_ceil(1_000_000))
}

/// The text grpc-go sends for a timeout it cannot read.
pub(super) fn timeout_error_text(error: TimeoutError, text: &[u8]) -> String {
    let quoted = go_quote(text);
    match error {
        TimeoutError::TooShort => {
            format!("malformed grpc-timeout: transport: timeout string is too short: {quoted}")
        }
        TimeoutError::TooLong => {
            format!("malformed grpc-timeout: transport: timeout string is too long: {quoted}")
        }
        TimeoutError::Unit => {
            format!("malformed grpc-timeout: transport: timeout unit is not recognized: {quoted}")
        }
        TimeoutError::Digits => {
            let digits = go_quote(&text[..text.len().saturating_sub(1)]);
            format!("malformed grpc-timeout: strconv.ParseUint: parsing {digits}: invalid syntax")
        }
    }
}

/// Writes a timeout of `timeout_ms` with at most eight digits; returns how many bytes of `out` it
/// is.
pub fn encode_timeout_ms(timeout_ms: u64, out: &mut [u8; 9]) -> usize {
    let (mut count, unit) = if timeout_ms < 100_000_000 {
        (timeout_ms, b'm')
    } else if timeout_ms.div_ceil(1_000) < 100_000_000 {
        (timeout_ms.div_ceil(1_000), b'S')
    } else {
        (timeout_ms.div_ceil(3_600_000).min(99_999_999), b'H')
    };
    let mut digits = [0u8; 8];
    let mut used = 0;
    loop {
        digits[used] = b'0' + (count % 10) as u8;
        used += 1;
        count /= 10;
        if count == 0 {
            break;
        }
    }
    for (place, digit) in out.iter_mut().zip(digits[..used].iter().rev()) {
        *place = *digit;
    }
    out[used] = unit;
    used + 1
}

/// Quotes as Go's `%q` does.
pub(super) fn go_quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                letter if letter.is_ascii_control() => {
                    out.push_str(&format!("\\x{:02x}", letter as u32));
                }
                letter => out.push(letter),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_a_round_trip() {
        for message in ["", "plain", "50% caf\u{e9}\n", "\u{1F980} crab", "a%20b"] {
            assert_eq!(decode_message(encode_message(message).as_bytes()), message);
        }
        assert_eq!(encode_message("a%\u{e9}"), "a%25%C3%A9");
        assert_eq!(decode_message(b"100%, %zz %4"), "100%, %zz %4");
    }

    #[test]
    fn timeouts_are_read_and_written() {
        for (text, expected) in [
            ("1S", Ok(1_000)),
            ("99999999H", Ok(99_999_999 * 3_600_000u64)),
            ("1n", Ok(1)),
            ("0m", Ok(0)),
            ("1500u", Ok(2)),
            ("S", Err(TimeoutError::TooShort)),
            ("", Err(TimeoutError::TooShort)),
            ("123456789S", Err(TimeoutError::TooLong)),
            ("5x", Err(TimeoutError::Unit)),
            ("-5S", Err(TimeoutError::Digits)),
        ] {
            let parsed = parse_timeout_ms(text.as_bytes());
            // Saturation keeps hours that overflow nanoseconds far in the future.
            let expected = expected.map(|ms: u64| ms.min(u64::MAX.div_ceil(1_000_000)));
            assert_eq!(parsed, expected, "{text}");
        }
        for timeout_ms in [0, 1, 99_999_999, 100_000_000, 1 << 40, u64::MAX] {
            let mut out = [0; 9];
            let used = encode_timeout_ms(timeout_ms, &mut out);
            let back = parse_timeout_ms(&out[..used]).unwrap();
            assert!(back >= timeout_ms.min(1 << 43), "{timeout_ms} became {back}");
        }
    }

    #[test]
    fn quotes_are_go_s() {
        assert_eq!(go_quote(b"a\"\\\n\x01\xff"), "\"a\\\"\\\\\\n\\x01\\xff\"");
    }
}
