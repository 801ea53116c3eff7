//! A message without what prost stumbles over: the fields that its shape knows, in their order.
//!
//! Called for messages that prost has refused. Recursion follows the types of messages, which do
//! not nest, never the bytes; transactions, which do, are left to `txn`.

use std::ops::Range;

use bytes::Bytes;

use super::{DecodeError, Described, Fields, Kind, Shape, Value, enter};
use crate::{limits, varint};

/// Decodes a message that holds no transaction.
pub(super) fn decode<M: Described>(bytes: &[u8]) -> Result<M, DecodeError> {
    let mut out = Vec::with_capacity(bytes.len());
    write(M::shape(), bytes, limits::DECODE_DEPTH, &mut out, &mut Vec::new())?;
    M::decode(Bytes::from(out)).map_err(|_| DecodeError::Wire)
}

/// Appends the known fields of a message to `out`, and notes where its transactions stand.
pub(super) fn write(
    shape: &'static Shape,
    bytes: &[u8],
    depth: u32,
    out: &mut Vec<u8>,
    txns: &mut Vec<Range<usize>>,
) -> Result<(), DecodeError> {
    let depth = enter(depth)?;
    let mut fields = Fields::new(bytes);
    while let Some((number, value)) = fields.next_field()? {
        match (shape.kind(number), value) {
            (Some(Kind::Varint), Value::Varint(value)) => {
                varint::write(out, u64::from(number) << 3);
                varint::write(out, value);
            }
            // Packed, which nothing but repeated numbers may be.
            (Some(Kind::Varints), Value::Len(range)) => {
                let mut packed = Fields::new(&bytes[range.clone()]);
                while packed.position() < range.len() {
                    packed.varint()?;
                }
                write_len(out, number, &bytes[range]);
            }
            (Some(Kind::Varints), Value::Varint(value)) => {
                varint::write(out, u64::from(number) << 3);
                varint::write(out, value);
            }
            (Some(Kind::Bytes), Value::Len(range)) => write_len(out, number, &bytes[range]),
            (Some(Kind::Text), Value::Len(range)) => {
                std::str::from_utf8(&bytes[range.clone()]).map_err(|_| DecodeError::Utf8)?;
                write_len(out, number, &bytes[range]);
            }
            (Some(Kind::Message(shape)), Value::Len(range)) => {
                let mut inner = Vec::new();
                write(shape, &bytes[range], depth, &mut inner, txns)?;
                write_len(out, number, &inner);
            }
            (Some(Kind::Txn), Value::Len(range)) => txns.push(range),
            _ => {}
        }
    }
    Ok(())
}

fn write_len(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    varint::write(out, u64::from(number) << 3 | 2);
    varint::write(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
