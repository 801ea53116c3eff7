//! Base-128 varints of protobuf, as they are written.
//!
//! Used by whoever encodes by hand: what the server answers, what a benchmark sends. Readers have
//! [`decode`](crate::decode). The engine, which depends on nothing, has its own.

/// Appends a varint.
#[inline]
pub fn write(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
