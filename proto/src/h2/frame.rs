//! Frame heads and the frames we write. Used by every part of `h2::conn`; holds no state.

use super::ErrorCode;
use super::settings::INITIAL_WINDOW_SIZE;

/// Bytes before every frame's payload.
pub(super) const HEAD_BYTES: usize = 9;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 0x1;
pub(super) const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITY_FLAG: u8 = 0x20;

/// The 24 bytes with which a client begins.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A parsed frame head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    #[inline]
    pub(super) fn parse(bytes: &[u8; HEAD_BYTES]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        Head {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        }
    }

    #[inline]
    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

#[inline]
pub(super) fn put_head(length: usize, kind: u8, flags: u8, stream: u32, out: &mut Vec<u8>) {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags, d, e, f, g]);
}

/// Writes the length of the frame whose head begins at `start`, now that its payload is in place.
#[inline]
pub(super) fn patch_length(start: usize, out: &mut [u8]) {
    let [_, a, b, c] = ((out.len() - start - HEAD_BYTES) as u32).to_be_bytes();
    out[start..start + 3].copy_from_slice(&[a, b, c]);
}

pub(super) fn put_reset(stream: u32, code: ErrorCode, out: &mut Vec<u8>) {
    put_head(4, RST_STREAM, 0, stream, out);
    out.extend_from_slice(&code.0.to_be_bytes());
}

pub(super) fn put_window_update(stream: u32, increment: u32, out: &mut Vec<u8>) {
    put_head(4, WINDOW_UPDATE, 0, stream, out);
    out.extend_from_slice(&increment.to_be_bytes());
}

/// SETTINGS that change the initial window of streams alone.
pub(super) fn put_initial_window(bytes: u32, out: &mut Vec<u8>) {
    put_head(6, SETTINGS, 0, 0, out);
    out.extend_from_slice(&INITIAL_WINDOW_SIZE.to_be_bytes());
    out.extend_from_slice(&bytes.to_be_bytes());
}

pub(super) fn put_ping(ack: bool, payload: [u8; 8], out: &mut Vec<u8>) {
    put_head(8, PING, if ack { ACK } else { 0 }, 0, out);
    out.extend_from_slice(&payload);
}

pub(super) fn put_goaway(last_stream: u32, code: ErrorCode, debug: &[u8], out: &mut Vec<u8>) {
    put_head(8 + debug.len(), GOAWAY, 0, 0, out);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(debug);
}
