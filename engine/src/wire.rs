//! `mvccpb.KeyValue` by hand: the wire form in which rows are stored, read and sent.
//!
//! Used by the store for every put and by whoever needs a field of a stored row. It must never
//! produce bytes that differ from what a protobuf library makes of the same values.

use crate::types::{LeaseId, Revision};

const TAG_KEY: u8 = 0x0a;
const TAG_CREATE: u8 = 0x10;
const TAG_MOD: u8 = 0x18;
const TAG_VERSION: u8 = 0x20;
const TAG_VALUE: u8 = 0x2a;
const TAG_LEASE: u8 = 0x30;

/// The fields of a KeyValue, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvRef<'a> {
    /// Field 1.
    pub key: &'a [u8],
    /// Field 2.
    pub create_revision: Revision,
    /// Field 3.
    pub mod_revision: Revision,
    /// Field 4.
    pub version: i64,
    /// Field 5.
    pub value: &'a [u8],
    /// Field 6.
    pub lease: LeaseId,
}

/// The bytes are not a KeyValue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a KeyValue: {0}")]
pub struct WireError(&'static str);

impl<'a> KvRef<'a> {
    /// Length of the wire form.
    pub fn encoded_len(&self) -> usize {
        bytes_field_len(self.key)
            + int_field_len(self.create_revision.0)
            + int_field_len(self.mod_revision.0)
            + int_field_len(self.version)
            + bytes_field_len(self.value)
            + int_field_len(self.lease.0)
    }

    /// Writes the wire form into `out`, which is exactly [`KvRef::encoded_len`] long.
    ///
    /// # Panics
    /// If it is not.
    pub fn encode_into(&self, out: &mut [u8]) {
        let mut writer = Writer { out, at: 0 };
        writer.bytes_field(TAG_KEY, self.key);
        writer.int_field(TAG_CREATE, self.create_revision.0);
        writer.int_field(TAG_MOD, self.mod_revision.0);
        writer.int_field(TAG_VERSION, self.version);
        writer.bytes_field(TAG_VALUE, self.value);
        writer.int_field(TAG_LEASE, self.lease.0);
        assert_eq!(writer.at, writer.out.len(), "the length was computed for these fields");
    }

    /// The wire form as a new vector.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; self.encoded_len()];
        self.encode_into(&mut out);
        out
    }

    /// Reads a wire form: fields in any order, the last of equal ones counts, unknown ones are
    /// skipped, as protobuf demands.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut kv = Self::default();
        let mut reader = Reader { rest: bytes };
        while !reader.rest.is_empty() {
            let tag = reader.varint()?;
            match u8::try_from(tag).unwrap_or(0) {
                TAG_KEY => kv.key = reader.bytes()?,
                TAG_CREATE => kv.create_revision = Revision(reader.int()?),
                TAG_MOD => kv.mod_revision = Revision(reader.int()?),
                TAG_VERSION => kv.version = reader.int()?,
                TAG_VALUE => kv.value = reader.bytes()?,
                TAG_LEASE => kv.lease = LeaseId(reader.int()?),
                _ => reader.skip(tag)?,
            }
        }
        Ok(kv)
    }
}

/// Bytes of `value` as a varint: bits / 7 rounded up, without a division.
#[inline]
pub fn varint_len(value: u64) -> usize {
    ((64 - (value | 1).leading_zeros()) as usize * 9 + 64) / 64
}

fn int_field_len(value: i64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value.cast_unsigned()) }
}

fn bytes_field_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { 1 + varint_len(bytes.len() as u64) + bytes.len() }
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn byte(&mut self, byte: u8) {
        self.out[self.at] = byte;
        self.at += 1;
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.byte((value & 0x7f) as u8);
    }

    fn int_field(&mut self, tag: u8, value: i64) {
        if value != 0 {
            self.byte(tag);
            self.varint(value.cast_unsigned());
        }
    }

    fn bytes_field(&mut self, tag: u8, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.byte(tag);
            self.varint(bytes.len() as u64);
            self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
            self.at += bytes.len();
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for (index, byte) in self.rest.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(WireError("a number does not end"))
    }

    fn int(&mut self) -> Result<i64, WireError> {
        self.varint().map(u64::cast_signed)
    }

    fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let len = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        let (bytes, rest) =
            self.rest.split_at_checked(len).ok_or(WireError("a length exceeds the message"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn skip(&mut self, tag: u64) -> Result<(), WireError> {
        let fixed = match tag & 7 {
            0 => return self.varint().map(drop),
            1 => 8,
            2 => return self.bytes().map(drop),
            5 => 4,
            _ => return Err(WireError("an unknown wire type")),
        };
        self.rest = self.rest.get(fixed..).ok_or(WireError("a field exceeds the message"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::prng::Prng;

    #[test]
    fn the_wire_form_is_protobufs() {
        let kv = KvRef {
            key: b"foo",
            create_revision: Revision(2),
            mod_revision: Revision(300),
            version: 4,
            value: b"bar",
            lease: LeaseId(-1),
        };
        let mut expected = b"\x0a\x03foo\x10\x02\x18\xac\x02\x20\x04\x2a\x03bar\x30".to_vec();
        expected.extend_from_slice(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        assert_eq!(kv.encode(), expected);
        assert_eq!(KvRef::parse(&expected), Ok(kv));
        let tombstone = KvRef { key: b"k", ..KvRef::default() };
        assert_eq!(tombstone.encode(), b"\x0a\x01k");
    }

    #[test]
    fn unknown_fields_are_skipped_and_truncated_ones_refused() {
        assert_eq!(KvRef::parse(b"\x78\x05\x0a\x01k\x7d1234").unwrap().key, b"k");
        for bad in [&b"\x0a"[..], b"\x0a\x05abc", b"\x10", b"\x10\xff\xff", b"\x0b", b"\x7d123"] {
            KvRef::parse(bad).unwrap_err();
        }
    }

    #[test]
    fn random_bytes_never_panic_and_lengths_agree() {
        let mut prng = Prng::new(1);
        for _ in 0..20_000 {
            let mut bytes = vec![0; prng.index(40)];
            prng.fill(&mut bytes);
            if let Ok(kv) = KvRef::parse(&bytes) {
                assert_eq!(KvRef::parse(&kv.encode()), Ok(kv));
            }
        }
    }
}
