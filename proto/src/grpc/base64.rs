//! Base64 for `-bin` metadata. Used by both sides' metadata accessors.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode::Indifferent;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD_NO_PAD};

/// Go ignores bits behind the last byte.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Encodes without padding, as gRPC peers do.
#[must_use]
pub fn encode_base64(bytes: &[u8]) -> String {
    STANDARD_NO_PAD.encode(bytes)
}

/// Decodes what is padded to a length that four divides, or not at all; `None` for anything else.
#[must_use]
pub fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    if text.ends_with(b"=") && !text.len().is_multiple_of(4) {
        return None;
    }
    LENIENT.decode(text).ok()
}

/// The offset of the byte that Go's decoder would stop at, if it would: what is of a length that
/// four divides may be padded, nothing else may.
pub(super) fn first_bad_byte(text: &[u8]) -> Option<usize> {
    let may_pad = text.len().is_multiple_of(4);
    for (group, chunk) in text.chunks(4).enumerate() {
        let start = group * 4;
        let Some(place) = chunk.iter().position(|byte| !is_sextet(*byte)) else {
            // Six bits are no byte.
            if chunk.len() == 1 {
                return Some(start);
            }
            continue;
        };
        let at = start + place;
        if chunk[place] != b'=' || !may_pad || place < 2 {
            return Some(at);
        }
        // The padding is whole, and the last of all.
        if place == 2 && chunk[3] != b'=' {
            return Some(at);
        }
        return (start + 4 < text.len()).then_some(start + 4);
    }
    None
}

fn is_sextet(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_a_round_trip_at_every_length() {
        for length in 0..70u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            let text = encode_base64(&bytes);
            assert_eq!(decode_base64(text.as_bytes()), Some(bytes.clone()));
            let padded = format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4));
            assert_eq!(decode_base64(padded.as_bytes()), Some(bytes));
        }
    }

    #[test]
    fn go_stops_at_the_same_byte() {
        // From Go 1.26's encoding/base64, as grpc-go calls it.
        let cases: [(&[u8], Option<usize>); 26] = [
            (b"", None),
            (b"ab!c", Some(2)),
            (b"a", Some(0)),
            (b"ab", None),
            (b"abc", None),
            (b"abcd", None),
            (b"abcde", Some(4)),
            (b"ab=", Some(2)),
            (b"ab==", None),
            (b"abc=", None),
            (b"a===", Some(1)),
            (b"====", Some(0)),
            (b"=abc", Some(0)),
            (b"ab=c", Some(2)),
            (b"abcd=", Some(4)),
            (b"abcd====", Some(4)),
            (b"ab==cd==", Some(4)),
            (b"abc=d", Some(3)),
            (b"!", Some(0)),
            (b"abcd!", Some(4)),
            (b"ab c", Some(2)),
            (b"ab=!", Some(2)),
            (b"abcdefgh!", Some(8)),
            (b"abcdefg!", Some(7)),
            (b"abcdefgh==", Some(8)),
            (b"a\xffcd", Some(1)),
        ];
        for (text, expected) in cases {
            assert_eq!(first_bad_byte(text), expected, "{:?}", text.escape_ascii().to_string());
            assert_eq!(decode_base64(text).is_some(), expected.is_none());
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for text in ["a", "ab=", "a===", "a b=", "====", "\u{e9}"] {
            assert_eq!(decode_base64(text.as_bytes()), None, "{text:?}");
        }
    }
}
