//! gzip of single messages. Used by both sides for streams whose `grpc-encoding` is gzip.

use std::io::Read as _;

use bytes::Bytes;
use flate2::bufread::GzEncoder;
use flate2::{Compression, Crc, Decompress, FlushDecompress, Status};

use super::Code;

/// Why a message cannot be inflated; the texts are grpc-go's and those of Go's gzip.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InflateError {
    /// It becomes longer than it may.
    #[error("grpc: received message after decompression larger than max {0}")]
    TooLarge(usize),
    /// It does not begin as gzip does.
    #[error("grpc: failed to decompress the message: {0}")]
    Head(HeadError),
    /// What follows is broken.
    #[error("grpc: failed to read decompressed data: {0}")]
    Data(DataError),
}

impl InflateError {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::TooLarge(_) => Code::ResourceExhausted,
            Self::Head(_) | Self::Data(_) => Code::Internal,
        }
    }
}

/// Why the head of a member cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadError {
    #[error("EOF")]
    Missing,
    #[error("unexpected EOF")]
    Cut,
    #[error("gzip: invalid header")]
    Invalid,
}

/// Why what follows the first head cannot be inflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum DataError {
    #[error("unexpected EOF")]
    Cut,
    #[error("gzip: invalid header")]
    Head,
    #[error("gzip: invalid checksum")]
    Checksum,
    #[error("flate: corrupt input before offset {0}")]
    Corrupt(u64),
}

/// Inflates `compressed`, one member or several, to at most `bytes_max` bytes.
pub(super) fn inflate(compressed: &[u8], bytes_max: usize) -> Result<Bytes, InflateError> {
    let mut out = Vec::new();
    let mut rest = member_body(compressed).map_err(InflateError::Head)?;
    loop {
        rest = inflate_member(rest, &mut out, bytes_max)?;
        rest = match member_body(rest) {
            Ok(body) => body,
            Err(HeadError::Missing) => return Ok(out.into()),
            Err(HeadError::Cut) => return Err(InflateError::Data(DataError::Cut)),
            Err(HeadError::Invalid) => return Err(InflateError::Data(DataError::Head)),
        };
    }
}

/// Appends what a member holds, whose head was taken off; what follows it.
fn inflate_member<'a>(
    body: &'a [u8],
    out: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<&'a [u8], InflateError> {
    let mut inflater = Decompress::new(false);
    let start = out.len();
    let mut left = body;
    loop {
        // One byte more than allowed shows that it is too much.
        let room = bytes_max.saturating_add(1) - out.len();
        out.reserve(out.len().max(BYTES_FIRST).min(room));
        let (taken, made) = (inflater.total_in(), out.len());
        let status = inflater.decompress_vec(left, out, FlushDecompress::None);
        let taken = usize::try_from(inflater.total_in() - taken).unwrap_or(left.len());
        left = &left[taken..];
        if out.len() > bytes_max {
            return Err(InflateError::TooLarge(bytes_max));
        }
        match status {
            Ok(Status::StreamEnd) => break,
            Ok(_) if taken > 0 || out.len() > made => {}
            Ok(_) => return Err(InflateError::Data(DataError::Cut)),
            Err(_) => return Err(InflateError::Data(DataError::Corrupt(inflater.total_in()))),
        }
    }
    let Some((trailer, rest)) = left.split_first_chunk::<TRAILER_BYTES>() else {
        return Err(InflateError::Data(DataError::Cut));
    };
    let mut crc = Crc::new();
    crc.update(&out[start..]);
    let [a, b, c, d, length @ ..] = *trailer;
    let is_right =
        u32::from_le_bytes([a, b, c, d]) == crc.sum() && u32::from_le_bytes(length) == crc.amount();
    if is_right { Ok(rest) } else { Err(InflateError::Data(DataError::Checksum)) }
}

/// The bytes behind the head of a member (RFC 1952, section 2.3).
fn member_body(member: &[u8]) -> Result<&[u8], HeadError> {
    const HAS_CHECKSUM: u8 = 2;
    const HAS_EXTRA: u8 = 4;
    const HAS_NAME: u8 = 8;
    const HAS_COMMENT: u8 = 16;
    if member.is_empty() {
        return Err(HeadError::Missing);
    }
    let (head, mut rest) = member.split_first_chunk::<HEAD_BYTES>().ok_or(HeadError::Cut)?;
    if head[..3] != [0x1f, 0x8b, 8] {
        return Err(HeadError::Invalid);
    }
    let flags = head[3];
    if flags & HAS_EXTRA != 0 {
        let (length, after) = rest.split_first_chunk::<2>().ok_or(HeadError::Cut)?;
        rest = after.get(usize::from(u16::from_le_bytes(*length))..).ok_or(HeadError::Cut)?;
    }
    for text in [HAS_NAME, HAS_COMMENT] {
        if flags & text != 0 {
            let searched = &rest[..rest.len().min(TEXT_BYTES_MAX)];
            match searched.iter().position(|byte| *byte == 0) {
                Some(end) => rest = &rest[end + 1..],
                None if rest.len() >= TEXT_BYTES_MAX => return Err(HeadError::Invalid),
                None => return Err(HeadError::Cut),
            }
        }
    }
    if flags & HAS_CHECKSUM != 0 {
        let (sum, after) = rest.split_first_chunk::<2>().ok_or(HeadError::Cut)?;
        let mut crc = Crc::new();
        crc.update(&member[..member.len() - rest.len()]);
        if u32::from(u16::from_le_bytes(*sum)) != crc.sum() & 0xffff {
            return Err(HeadError::Invalid);
        }
        rest = after;
    }
    Ok(rest)
}

const HEAD_BYTES: usize = 10;
const TRAILER_BYTES: usize = 8;
/// A file's name or comment in a head is shorter, its end included, as in Go.
const TEXT_BYTES_MAX: usize = 512;
/// Room for what a small message becomes.
const BYTES_FIRST: usize = 4 << 10;

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
        assert_eq!(inflate(&small, 99_999), Err(InflateError::TooLarge(99_999)));
        let two = [small.clone(), deflate(b"and more")].concat();
        assert_eq!(inflate(&two, 200_000).unwrap(), [&message[..], b"and more"].concat());
        assert_eq!(inflate(&deflate(b""), 0).unwrap(), b""[..]);
    }

    /// The texts were told by etcd 3.7.1.
    #[test]
    fn what_is_broken_is_told_in_gos_words() {
        let good = deflate(b"a message that is told");
        let told = |bytes: &[u8]| inflate(bytes, 1_000).unwrap_err().to_string();
        let head = |text: &str| format!("grpc: failed to decompress the message: {text}");
        let data = |text: &str| format!("grpc: failed to read decompressed data: {text}");
        assert_eq!(told(b""), head("EOF"));
        assert_eq!(told(&good[..9]), head("unexpected EOF"));
        assert_eq!(told(b"no gzip at all"), head("gzip: invalid header"));
        for end in 10..good.len() {
            assert_eq!(told(&good[..end]), data("unexpected EOF"), "{end}");
        }
        let last = good.len() - 1;
        for at in [last, last - 4] {
            let mut wrong = good.clone();
            wrong[at] ^= 1;
            assert_eq!(told(&wrong), data("gzip: invalid checksum"), "{at}");
        }
        assert_eq!(told(&[&good[..], b"x"].concat()), data("unexpected EOF"));
        assert_eq!(told(&[&good[..], &[b'x'; 10]].concat()), data("gzip: invalid header"));
        let mut corrupt = good.clone();
        corrupt[10] = 0xff;
        assert!(told(&corrupt).starts_with(&data("flate: corrupt input before offset ")));
    }

    #[test]
    fn heads_may_hold_more_than_they_must() {
        let body = &deflate(b"x")[10..];
        let head = |flags: u8, more: &[u8]| {
            let mut bytes = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255];
            bytes.extend_from_slice(more);
            bytes
        };
        for (flags, more) in
            [(4, &b"\x02\0ab"[..]), (8, b"name\0"), (16, b"comment\0"), (28, b"\x01\0anam\0com\0")]
        {
            let whole = [&head(flags, more), body].concat();
            assert_eq!(inflate(&whole, 10).unwrap(), b"x"[..], "{flags}");
            for end in 10..10 + more.len() {
                let cut = inflate(&whole[..end], 10);
                assert_eq!(cut, Err(InflateError::Head(HeadError::Cut)), "{flags} {end}");
            }
        }
        let mut summed = head(2, &[]);
        let mut crc = Crc::new();
        crc.update(&summed);
        summed.extend(&crc.sum().to_le_bytes()[..2]);
        assert_eq!(inflate(&[&summed[..], body].concat(), 10).unwrap(), b"x"[..]);
        summed[10] ^= 1;
        let wrong = inflate(&[&summed[..], body].concat(), 10);
        assert_eq!(wrong, Err(InflateError::Head(HeadError::Invalid)));
    }
}
