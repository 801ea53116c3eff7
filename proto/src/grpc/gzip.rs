//! gzip of single messages. Used by both sides for streams whose `grpc-encoding` is gzip.

use std::io::Read as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::{GzEncoder, MultiGzDecoder};

/// Why a message cannot be inflated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum InflateError {
    TooLarge,
    Malformed(String),
}

/// Inflates `compressed` to at most `bytes_max` bytes.
pub(super) fn inflate(compressed: &[u8], bytes_max: usize) -> Result<Bytes, InflateError> {
    let mut out = Vec::new();
    let limit = (bytes_max as u64).saturating_add(1);
    let result = MultiGzDecoder::new(compressed).take(limit).read_to_end(&mut out);
    if out.len() > bytes_max {
        return Err(InflateError::TooLarge);
    }
    match result {
        Ok(_) => Ok(out.into()),
        Err(error) => Err(InflateError::Malformed(error.to_string())),
    }
}

/// Deflates a message.
pub(super) fn deflate(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() / 2 + 32);
    let mut encoder = GzEncoder::new(message, Compression::default());
    // Reading from memory has no error to report; a short result would fail the peer's checksum.
    let _ = encoder.read_to_end(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_and_a_bomb_does_not() {
        let message = vec![7u8; 100_000];
        let small = deflate(&message);
        assert!(small.len() < 1_000);
        assert_eq!(inflate(&small, 100_000).unwrap(), message);
        assert_eq!(inflate(&small, 99_999), Err(InflateError::TooLarge));
        assert!(matches!(inflate(&small[..50], 100_000), Err(InflateError::Malformed(_))));
        assert!(matches!(inflate(b"nonsense", 100), Err(InflateError::Malformed(_))));
    }
}
