//! Where a body ends: by length, by chunks, or by the end of the connection.
//!
//! Used by both sides. Must never accept a chunk size, trailer or length that another parser could
//! read otherwise.

use crate::limits;

/// Why a chunked body cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A chunk size that is none, or too large a number.
    #[error("malformed chunk size")]
    ChunkSize,
    /// A chunk is not followed by its line end.
    #[error("chunk is not followed by a line end")]
    ChunkEnd,
    /// A chunk's size line is longer than allowed.
    #[error("chunk size line too long")]
    ChunkLine,
    /// The trailers are larger than allowed.
    #[error("trailers too large")]
    Trailers,
    /// The body is larger than allowed.
    #[error("body larger than {0} bytes")]
    TooLarge(u64),
}

/// What remains of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// Nothing.
    Done,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunk),
    /// A body that lasts until the connection ends.
    UntilClose,
}

/// Where in a chunked body we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// In the size line: digits so far, and the value.
    Size { digits: u32, size: u64, line: usize },
    /// Behind the digits of the size line.
    Extension { size: u64, line: usize, cr: bool },
    /// In the data.
    Data { left: u64 },
    /// Behind the data: how many bytes of the line end were seen.
    DataEnd { seen: u32 },
    /// In the trailers: bytes so far, and the length of the current line without its end.
    Trailers { bytes: usize, line: usize },
}

impl Chunk {
    pub(super) const START: Chunk = Chunk::Size { digits: 0, size: 0, line: 0 };
}

impl Body {
    /// Takes input up to the next piece of the body; `None` when the input is used up or the body
    /// is [`Body::Done`].
    pub(super) fn read<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, BodyError> {
        match self {
            Body::Done => Ok(None),
            Body::Length(left) => {
                let piece = take(input, *left);
                *left -= piece.len() as u64;
                if *left == 0 {
                    *self = Body::Done;
                }
                Ok(Some(piece).filter(|piece| !piece.is_empty()))
            }
            Body::UntilClose => {
                let piece = std::mem::take(input);
                Ok(Some(piece).filter(|piece| !piece.is_empty()))
            }
            Body::Chunked(_) => self.read_chunked(input),
        }
    }

    fn read_chunked<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, BodyError> {
        while let Body::Chunked(chunk) = self {
            if let Chunk::Data { left } = chunk {
                let piece = take(input, *left);
                *left -= piece.len() as u64;
                if *left == 0 {
                    *chunk = Chunk::DataEnd { seen: 0 };
                }
                return Ok(Some(piece).filter(|piece| !piece.is_empty()));
            }
            let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            match step(*chunk, byte)? {
                Some(next) => *chunk = next,
                None => *self = Body::Done,
            }
        }
        Ok(None)
    }
}

/// One byte of a chunked body outside the data; `None` at its end.
fn step(chunk: Chunk, byte: u8) -> Result<Option<Chunk>, BodyError> {
    let next = match (chunk, byte) {
        (Chunk::Size { digits, size, line }, _) if byte.is_ascii_hexdigit() => {
            let digit = char::from(byte).to_digit(16).unwrap_or(0);
            if digits >= CHUNK_SIZE_DIGITS_MAX {
                return Err(BodyError::ChunkSize);
            }
            Chunk::Size { digits: digits + 1, size: size << 4 | u64::from(digit), line: line + 1 }
        }
        (Chunk::Size { digits: 0, .. }, _) => return Err(BodyError::ChunkSize),
        (Chunk::Size { size, line, .. }, b'\r') => Chunk::Extension { size, line, cr: true },
        (Chunk::Size { size, line, .. }, b';' | b' ' | b'\t') => {
            Chunk::Extension { size, line, cr: false }
        }
        (Chunk::Size { .. }, _) => return Err(BodyError::ChunkSize),
        (Chunk::Extension { size, cr: true, .. }, b'\n') => match size {
            0 => Chunk::Trailers { bytes: 0, line: 0 },
            left => Chunk::Data { left },
        },
        (Chunk::Extension { cr: true, .. }, _) | (Chunk::Extension { .. }, b'\n') => {
            return Err(BodyError::ChunkSize);
        }
        (Chunk::Extension { size, line, .. }, _) => {
            if line >= limits::HTTP1_CHUNK_LINE_BYTES_MAX {
                return Err(BodyError::ChunkLine);
            }
            Chunk::Extension { size, line: line + 1, cr: byte == b'\r' }
        }
        (Chunk::DataEnd { seen: 0 }, b'\r') => Chunk::DataEnd { seen: 1 },
        (Chunk::DataEnd { seen: 1 }, b'\n') => Chunk::START,
        (Chunk::DataEnd { .. }, _) => return Err(BodyError::ChunkEnd),
        (Chunk::Trailers { line: 0, .. }, b'\n') => return Ok(None),
        (Chunk::Trailers { bytes, line }, _) => {
            if bytes >= limits::HTTP1_TRAILER_BYTES_MAX {
                return Err(BodyError::Trailers);
            }
            let line = match byte {
                b'\n' => 0,
                b'\r' => line,
                _ => line + 1,
            };
            Chunk::Trailers { bytes: bytes + 1, line }
        }
        (Chunk::Data { left }, _) => Chunk::Data { left },
    };
    Ok(Some(next))
}

fn take<'a>(input: &mut &'a [u8], most: u64) -> &'a [u8] {
    let count = usize::try_from(most).unwrap_or(usize::MAX).min(input.len());
    let (front, rest) = input.split_at(count);
    *input = rest;
    front
}

/// Hex digits of a chunk size: 60 bits, so that no arithmetic overflows.
const CHUNK_SIZE_DIGITS_MAX: u32 = 15;
