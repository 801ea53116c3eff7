//! Strings of JSON, and the base64 in them.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Go ignores what the last digit says beyond the last byte.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
const PADDED: GeneralPurposeConfig =
    LENIENT.with_decode_padding_mode(DecodePaddingMode::RequireCanonical);
const UNPADDED: GeneralPurposeConfig =
    LENIENT.with_decode_padding_mode(DecodePaddingMode::RequireNone);

/// By whether it is the alphabet of URLs, and whether there is padding.
const ENGINES: [[GeneralPurpose; 2]; 2] = [
    [
        GeneralPurpose::new(&alphabet::STANDARD, UNPADDED),
        GeneralPurpose::new(&alphabet::STANDARD, PADDED),
    ],
    [
        GeneralPurpose::new(&alphabet::URL_SAFE, UNPADDED),
        GeneralPurpose::new(&alphabet::URL_SAFE, PADDED),
    ],
];

/// Appends the bytes that a text stands for; false if it is no base64.
pub(super) fn decode_bytes(text: &[u8], out: &mut Vec<u8>) -> bool {
    let is_url = text.iter().any(|byte| matches!(byte, b'-' | b'_'));
    // Go passes over line ends.
    let text: Cow<'_, [u8]> = if text.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        text.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect()
    } else {
        Cow::Borrowed(text)
    };
    let engine = &ENGINES[usize::from(is_url)][usize::from(text.len().is_multiple_of(4))];
    engine.decode_vec(text, out).is_ok()
}

/// Why a string is none.
pub(super) enum StringError {
    /// Go looks for the second half of a letter until the text ends.
    End,
    /// The fault, with its place before it.
    Syntax(String),
}

/// A string's text between its quotes without escapes; `behind` follows it.
///
/// # Errors
/// The fault of a text that is no such JSON.
pub(super) fn unescape<'a>(raw: &'a [u8], behind: &[u8]) -> Result<Cow<'a, [u8]>, StringError> {
    if std::str::from_utf8(raw).is_err() {
        return Err(StringError::Syntax("invalid UTF-8 in string".to_owned()));
    }
    if !raw.contains(&b'\\') {
        return Ok(Cow::Borrowed(raw));
    }
    let behind_all = behind;
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, behind)) = rest.split_first() {
        if byte != b'\\' {
            out.push(byte);
            rest = behind;
            continue;
        }
        let (&escape, follows) = behind.split_first().ok_or(StringError::End)?;
        rest = follows;
        match escape {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let first = hex(rest).ok_or(StringError::End)?;
                rest = &rest[4..];
                let letter = if (0xd800..0xe000).contains(&first) {
                    let second = rest.strip_prefix(b"\\u").and_then(hex);
                    let pair = second.and_then(|second| pair(first, second));
                    let letter = pair.ok_or_else(|| bad_escape(rest, behind_all))?;
                    rest = &rest[6..];
                    letter
                } else {
                    char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER)
                };
                let mut utf8 = [0; 4];
                out.extend_from_slice(letter.encode_utf8(&mut utf8).as_bytes());
            }
            other => out.push(other),
        }
    }
    Ok(Cow::Owned(out))
}

/// What follows the first half of a letter is not its second.
fn bad_escape(rest: &[u8], behind: &[u8]) -> StringError {
    let shown: Vec<u8> = rest.iter().chain(behind).copied().take(6).collect();
    if shown.len() < 6 {
        return StringError::End;
    }
    let shown = String::from_utf8_lossy(&shown);
    StringError::Syntax(format!("invalid escape code {shown:?} in string"))
}

fn hex(text: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(text.get(..4)?).ok()?;
    u32::from_str_radix(digits, 16).ok()
}

fn pair(first: u32, second: u32) -> Option<char> {
    if !(0xd800..0xdc00).contains(&first) || !(0xdc00..0xe000).contains(&second) {
        return None;
    }
    char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00))
}
