//! Numbers of JSON as integers: `1.0e1` is 10 (protojson's `decode_number.go`).

/// Digits of the largest number, with its exponent.
const DIGITS_MAX: usize = 20;

/// The integer that a number is, if it is one that might fit into 64 bits.
pub(super) fn integer(text: &[u8]) -> Option<i128> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (whole, mut rest) = text.split_at(digits(text));
    let whole = whole.strip_prefix(b"0").unwrap_or(whole);
    let mut fraction: &[u8] = b"";
    if let Some(behind) = rest.strip_prefix(b".") {
        (fraction, rest) = behind.split_at(digits(behind));
    }
    while let Some(shorter) = fraction.strip_suffix(b"0") {
        fraction = shorter;
    }
    if whole.is_empty() && fraction.is_empty() {
        return Some(0);
    }
    let exponent = match rest {
        [b'e' | b'E', exponent @ ..] => std::str::from_utf8(exponent).ok()?.parse::<i32>().ok()?,
        _ => 0,
    };
    let shift = usize::try_from(exponent.unsigned_abs()).ok()?;
    let mut all = whole.to_vec();
    if exponent >= 0 {
        if fraction.len() > shift || whole.len() + shift > DIGITS_MAX {
            return None;
        }
        all.extend(fraction);
        all.resize(whole.len() + shift, b'0');
    } else {
        let left = whole.len().checked_sub(shift)?;
        if !fraction.is_empty() || all.drain(left..).any(|digit| digit != b'0') {
            return None;
        }
    }
    if all.len() > DIGITS_MAX {
        return None;
    }
    let value = all.iter().fold(0i128, |value, digit| value * 10 + i128::from(digit - b'0'));
    // An integer of no digits is none.
    (!all.is_empty()).then_some(if negative { -value } else { value })
}

/// The number that begins a text, up to what cannot belong to it (protojson reads one token).
pub(super) fn leading(text: &[u8]) -> Option<&[u8]> {
    let digits = |at: usize| text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut at = usize::from(text.first() == Some(&b'-'));
    at += match text.get(at)? {
        b'0' => 1,
        b'1'..=b'9' => digits(at),
        _ => return None,
    };
    if text.get(at) == Some(&b'.') && text.get(at + 1).is_some_and(u8::is_ascii_digit) {
        at += 1 + digits(at + 1);
    }
    if matches!(text.get(at), Some(b'e' | b'E')) && at + 1 < text.len() {
        at += 1 + usize::from(matches!(text[at + 1], b'+' | b'-'));
        at += digits(at);
    }
    let ends = text.get(at).is_none_or(|byte| {
        !matches!(byte, b'-' | b'+' | b'.' | b'_') && !byte.is_ascii_alphanumeric()
    });
    ends.then_some(&text[..at])
}
