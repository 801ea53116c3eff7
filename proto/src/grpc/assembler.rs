//! Cutting a stream's body into messages.
//!
//! Used by both sides, one per stream. A message that arrives whole is copied once, into a chunk
//! shared by many; one that arrives in pieces gets a buffer of its own, which the owner charges to
//! the budgets. Must never believe an announced length before the owner allowed it.

use bytes::{Bytes, BytesMut};

use super::MESSAGE_PREFIX_BYTES;
use super::message::{Message, ROOM_BEFORE_BYTES, ROOM_BEHIND_BYTES};
use crate::limits;

/// A whole message as it came, perhaps compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Framed {
    pub(super) compressed: bool,
    pub(super) message: Message,
}

impl Framed {
    fn small(compressed: bool, message: Bytes) -> Self {
        Self { compressed, message: message.into() }
    }
}

/// Why the body is no sequence of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AssembleError {
    /// The first byte of a message is neither 0 nor 1.
    PayloadFormat(u8),
    /// A message is announced larger than allowed.
    TooLarge { length: u32 },
}

/// Allocates for small messages.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    buffer: BytesMut,
}

impl Chunk {
    #[inline]
    pub(super) fn copy(&mut self, message: &[u8]) -> Bytes {
        if message.len() > limits::MESSAGE_CHUNK_BYTES / 4 {
            return Bytes::copy_from_slice(message);
        }
        if self.buffer.capacity() < message.len() {
            // Takes the old chunk again if all its messages are gone.
            self.buffer.reserve(limits::MESSAGE_CHUNK_BYTES);
        }
        self.buffer.extend_from_slice(message);
        self.buffer.split().freeze()
    }
}

/// The state between two DATA frames.
///
/// Invariant: `in_body` exactly when the prefix is complete and the message is not.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    prefix: [u8; MESSAGE_PREFIX_BYTES],
    prefix_len: u8,
    in_body: bool,
    length: u32,
    /// Begins with `room_before` bytes that are none of the message.
    body: Vec<u8>,
    room_before: usize,
    /// Bytes charged to the budgets for `body`.
    pub(super) charged: usize,
    /// `charged` covers the whole message.
    pub(super) admitted: bool,
}

impl Assembler {
    /// Takes data up to the end of one message, which it returns; `None` once `data` is used up.
    #[inline]
    pub(super) fn push(
        &mut self,
        data: &mut &[u8],
        bytes_max: usize,
        chunk: &mut Chunk,
    ) -> Result<Option<Framed>, AssembleError> {
        if self.prefix_len == 0
            && !self.in_body
            && let Some((prefix, rest)) = data.split_first_chunk::<MESSAGE_PREFIX_BYTES>()
        {
            let (compressed, length) = parse_prefix(*prefix, bytes_max)?;
            if let Some((message, rest)) = rest.split_at_checked(length as usize) {
                *data = rest;
                return Ok(Some(Framed::small(compressed, chunk.copy(message))));
            }
        }
        self.push_pieces(data, bytes_max, chunk)
    }

    fn push_pieces(
        &mut self,
        data: &mut &[u8],
        bytes_max: usize,
        chunk: &mut Chunk,
    ) -> Result<Option<Framed>, AssembleError> {
        if !self.in_body {
            let have = usize::from(self.prefix_len);
            let count = (MESSAGE_PREFIX_BYTES - have).min(data.len());
            let (front, rest) = data.split_at(count);
            self.prefix[have..have + count].copy_from_slice(front);
            self.prefix_len += count as u8;
            *data = rest;
            if usize::from(self.prefix_len) < MESSAGE_PREFIX_BYTES {
                return Ok(None);
            }
            (_, self.length) = parse_prefix(self.prefix, bytes_max)?;
            self.in_body = true;
        }
        let missing = self.missing();
        let count = missing.min(data.len());
        let (front, rest) = data.split_at(count);
        *data = rest;
        let compressed = self.prefix[0] == 1;
        if self.body.is_empty() && count == missing {
            self.start_over();
            return Ok(Some(Framed::small(compressed, chunk.copy(front))));
        }
        self.body.extend_from_slice(front);
        if count < missing {
            return Ok(None);
        }
        let message = Message::with_room(std::mem::take(&mut self.body), self.room_before);
        self.start_over();
        Ok(Some(Framed { compressed, message }))
    }

    fn start_over(&mut self) {
        self.prefix_len = 0;
        self.in_body = false;
        self.room_before = 0;
    }

    /// Makes room for the whole message, and for an envelope around a large one; the owner charged
    /// it.
    pub(super) fn reserve(&mut self) {
        if self.length() <= limits::MESSAGE_SMALL_BYTES_MAX {
            return self.body.reserve_exact(self.missing());
        }
        let arrived = std::mem::take(&mut self.body);
        self.body.reserve_exact(ROOM_BEFORE_BYTES + self.length() + ROOM_BEHIND_BYTES);
        self.body.extend([0; ROOM_BEFORE_BYTES]);
        self.body.extend_from_slice(&arrived);
        self.room_before = ROOM_BEFORE_BYTES;
    }

    /// Gives up what was gathered; returns the bytes charged for it.
    pub(super) fn abandon(&mut self) -> usize {
        self.body = Vec::new();
        self.start_over();
        self.admitted = false;
        std::mem::take(&mut self.charged)
    }

    /// Whether a message was begun, be it by a part of its prefix.
    pub(super) fn is_partial(&self) -> bool {
        self.prefix_len > 0
    }

    /// Whether the announced length is known and body bytes are missing.
    pub(super) fn is_in_body(&self) -> bool {
        self.in_body
    }

    /// Length of the message being gathered, in bytes.
    pub(super) fn length(&self) -> usize {
        self.length as usize
    }

    /// Bytes gathered.
    pub(super) fn held(&self) -> usize {
        self.body.len() - self.room_before
    }

    /// Bytes the message still lacks.
    pub(super) fn missing(&self) -> usize {
        self.length as usize - self.held()
    }
}

#[inline]
fn parse_prefix(
    prefix: [u8; MESSAGE_PREFIX_BYTES],
    bytes_max: usize,
) -> Result<(bool, u32), AssembleError> {
    let [format, length @ ..] = prefix;
    let length = u32::from_be_bytes(length);
    if length as usize > bytes_max {
        return Err(AssembleError::TooLarge { length });
    }
    if format > 1 {
        return Err(AssembleError::PayloadFormat(format));
    }
    Ok((format == 1, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(messages: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            out.push(0);
            out.extend((message.len() as u32).to_be_bytes());
            out.extend_from_slice(message);
        }
        out
    }

    #[test]
    fn messages_come_out_whole_however_the_body_is_cut() {
        let messages: [&[u8]; 5] = [b"", b"a", &[7; 300], b"", &[9; 20_000]];
        let wire = frame(&messages);
        for step in [1, 2, 3, 5, 7, 299, 4_096, wire.len()] {
            let mut assembler = Assembler::default();
            let mut chunk = Chunk::default();
            let mut got = Vec::new();
            for mut piece in wire.chunks(step) {
                while let Some(framed) = assembler.push(&mut piece, 20_000, &mut chunk).unwrap() {
                    got.push(framed.message.into_bytes());
                }
                assert!(piece.is_empty());
            }
            assert!(!assembler.is_partial());
            assert_eq!(got, messages, "in steps of {step}");
        }
    }

    #[test]
    fn too_long_and_misformed_messages_are_refused_at_their_prefix() {
        let mut chunk = Chunk::default();
        let mut wire: &[u8] = &[0, 0, 0, 1, 1];
        let refused = Assembler::default().push(&mut wire, 256, &mut chunk);
        assert_eq!(refused, Err(AssembleError::TooLarge { length: 257 }));
        let mut wire: &[u8] = &[2, 0, 0, 0, 1];
        let refused = Assembler::default().push(&mut wire, 256, &mut chunk);
        assert_eq!(refused, Err(AssembleError::PayloadFormat(2)));
    }
}
