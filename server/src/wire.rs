//! The few protobuf lines of the hot path, written by hand: reading a PutRequest where it stands,
//! and writing response messages straight into the transmit buffer.
//!
//! Used by the api, by `entry` and by apply. Everything else is decoded by `etcore_proto::decode`,
//! which means the same. Bytes come from clients: a malformed message is an error, never a panic.

use etcore_engine::wire::varint_len;
use etcore_proto::decode::{DecodeError, Fields, Value};
use etcore_proto::pb::etcdserverpb as pb;
pub use etcore_proto::varint::write as write_varint;

/// Appends a varint field unless it has proto3's default.
#[inline]
pub fn write_int64(out: &mut Vec<u8>, field: u32, value: i64) {
    write_uint64(out, field, value as u64);
}

/// Appends a varint field unless it has proto3's default.
#[inline]
pub fn write_uint64(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        write_varint(out, u64::from(field) << 3);
        write_varint(out, value);
    }
}

/// Appends the tag and length of a length-delimited field.
#[inline]
pub fn write_len(out: &mut Vec<u8>, field: u32, len_bytes: usize) {
    write_varint(out, u64::from(field) << 3 | 2);
    write_varint(out, len_bytes as u64);
}

/// Bytes of a length-delimited field, tag and length included.
pub fn field_len(field: u32, len_bytes: usize) -> usize {
    varint_len(u64::from(field) << 3) + varint_len(len_bytes as u64) + len_bytes
}

/// Bytes of a varint field; 0 for proto3's default.
pub fn int_len(field: u32, value: u64) -> usize {
    if value == 0 { 0 } else { varint_len(u64::from(field) << 3) + varint_len(value) }
}

/// A PutRequest, borrowed from its message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutRef<'a> {
    /// Field 1.
    pub key: &'a [u8],
    /// Field 2.
    pub value: &'a [u8],
    /// Field 3.
    pub lease: i64,
    /// Field 4.
    pub prev_kv: bool,
    /// Field 5.
    pub ignore_value: bool,
    /// Field 6.
    pub ignore_lease: bool,
}

impl<'a> PutRef<'a> {
    /// Parses a PutRequest; unknown fields are skipped, and known ones of another wire type.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn parse(message: &'a [u8]) -> Result<Self, DecodeError> {
        let mut put = Self::default();
        let mut fields = Fields::new(message);
        while let Some((field, value)) = fields.next_field()? {
            match (field, value) {
                (1, Value::Len(range)) => put.key = &message[range],
                (2, Value::Len(range)) => put.value = &message[range],
                (3, Value::Varint(lease)) => put.lease = lease as i64,
                (4, Value::Varint(flag)) => put.prev_kv = flag != 0,
                (5, Value::Varint(flag)) => put.ignore_value = flag != 0,
                (6, Value::Varint(flag)) => put.ignore_lease = flag != 0,
                _ => {}
            }
        }
        Ok(put)
    }
}

/// A ResponseHeader to be written as field 1 of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Field 1.
    pub cluster_id: u64,
    /// Field 2.
    pub member_id: u64,
    /// Field 3.
    pub revision: i64,
    /// Field 4.
    pub raft_term: u64,
}

impl Header {
    /// As a message.
    pub fn to_pb(self) -> pb::ResponseHeader {
        let Self { cluster_id, member_id, revision, raft_term } = self;
        pb::ResponseHeader { cluster_id, member_id, revision, raft_term }
    }

    /// Bytes of the header's fields.
    pub fn body_len(&self) -> usize {
        int_len(1, self.cluster_id)
            + int_len(2, self.member_id)
            + int_len(3, self.revision as u64)
            + int_len(4, self.raft_term)
    }

    /// Bytes of the header as field 1 of a response.
    pub fn encoded_len(&self) -> usize {
        field_len(1, self.body_len())
    }

    /// Appends the header as field 1.
    pub fn write(&self, out: &mut Vec<u8>) {
        write_len(out, 1, self.body_len());
        write_uint64(out, 1, self.cluster_id);
        write_uint64(out, 2, self.member_id);
        write_int64(out, 3, self.revision);
        write_uint64(out, 4, self.raft_term);
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn varint_lengths_are_those_written() {
        let mut values = vec![0, u64::MAX];
        for shift in 0..64 {
            values.extend([1u64 << shift, (1u64 << shift) - 1]);
        }
        for value in values {
            let mut out = Vec::new();
            write_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
        }
    }

    #[test]
    fn a_header_is_what_prost_encodes() {
        let header = Header { cluster_id: 300, member_id: u64::MAX, revision: 5, raft_term: 2 };
        let response = pb::PutResponse {
            header: Some(pb::ResponseHeader {
                cluster_id: 300,
                member_id: u64::MAX,
                revision: 5,
                raft_term: 2,
            }),
            prev_kv: None,
        };
        let mut out = Vec::new();
        header.write(&mut out);
        assert_eq!(out, response.encode_to_vec());
        assert_eq!(out.len(), header.encoded_len());
    }

    #[test]
    fn a_put_is_parsed_as_it_is_decoded() {
        let put = pb::PutRequest {
            key: "k".into(),
            value: "v".into(),
            lease: -5,
            prev_kv: true,
            ignore_value: false,
            ignore_lease: true,
        };
        let message = put.encode_to_vec();
        let parsed = PutRef::parse(&message).unwrap();
        assert_eq!(parsed, crate::kv::check::put_ref(&put));
        // Fields 1 to 6 of every wire type, and an unknown one, behind what counts.
        for field in (1..=6).chain([99]) {
            for value in [&[0, 1][..], &[1, 0, 0, 0, 0, 0, 0, 0, 0], &[5, 0, 0, 0, 0], &[3, 4]] {
                let wire = u64::from(value[0]);
                let mut odd = Vec::new();
                write_varint(&mut odd, field << 3 | wire);
                odd.extend_from_slice(&value[1..]);
                if wire == 3 {
                    odd.pop();
                    (0..500).for_each(|_| write_varint(&mut odd, 50 << 3 | 3));
                    (0..500).for_each(|_| write_varint(&mut odd, 50 << 3 | 4));
                    write_varint(&mut odd, field << 3 | 4);
                }
                odd.extend_from_slice(&message);
                let decoded: pb::PutRequest =
                    etcore_proto::decode::decode(odd.clone().into()).unwrap();
                let parsed = PutRef::parse(&odd).unwrap();
                assert_eq!(parsed, crate::kv::check::put_ref(&decoded), "{field} {wire}");
            }
        }
    }

    #[test]
    fn malformed_messages_are_errors() {
        for bytes in [&[0x0a, 5, 1][..], &[0x80], &[0x00], &[0x0b], &[0x08; 1], &[0x09, 1]] {
            assert_eq!(PutRef::parse(bytes), Err(DecodeError::Wire), "{bytes:?}");
        }
    }
}
