//! The few protobuf lines of the hot path, written by hand: wrapping a PutRequest into a raft entry
//! without re-encoding it, reading it back, and writing response messages straight into the
//! transmit buffer.
//!
//! Used by the api and by apply. Everything else goes through prost. Bytes come from clients: a
//! malformed message is an error, never a panic.

use std::ops::Range;

use bytes::Bytes;
use etcore_engine::wire::varint_len;
use etcore_proto::grpc::Message;
use etcore_proto::pb::etcdserverpb as pb;

/// A message that is not valid protobuf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed protobuf message")]
pub struct Malformed;

/// Field number of `put` in InternalRaftRequest.
const RAFT_PUT: u32 = 4;
/// Field number of `lease_revoke` in InternalRaftRequest.
pub const RAFT_LEASE_REVOKE: u32 = 9;
/// Field number of `header` in InternalRaftRequest.
const RAFT_HEADER: u32 = 100;

/// Appends a base-128 varint.
#[inline]
pub fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

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

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 2: where the bytes stand in the message.
    Len(Range<usize>),
    /// Wire types 1 and 5.
    Fixed,
}

/// Walks the fields of a message.
pub struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Starts at the first field.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(Malformed)?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                return Err(Malformed);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// The next field's number and value; `None` at the end.
    ///
    /// # Errors
    /// [`Malformed`] on anything prost would refuse as well.
    pub fn next_field(&mut self) -> Result<Option<(u32, Value)>, Malformed> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = u32::try_from(key >> 3).map_err(|_| Malformed)?;
        if field == 0 {
            return Err(Malformed);
        }
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                let end = self.at.checked_add(len).ok_or(Malformed)?;
                if end > self.bytes.len() {
                    return Err(Malformed);
                }
                let start = std::mem::replace(&mut self.at, end);
                Value::Len(start..end)
            }
            wire @ (1 | 5) => {
                self.at += if wire == 1 { 8 } else { 4 };
                if self.at > self.bytes.len() {
                    return Err(Malformed);
                }
                Value::Fixed
            }
            _ => return Err(Malformed),
        };
        Ok(Some((field, value)))
    }
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
    /// Parses a PutRequest; unknown fields are skipped.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
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
                (1..=6, _) => return Err(Malformed),
                _ => {}
            }
        }
        Ok(put)
    }
}

/// An InternalRaftRequest `{header: {ID: id}, field: request}` around an already encoded request.
pub fn wrap_request(field: u32, request: &[u8], id: u64) -> Vec<u8> {
    let header_len = int_len(1, id);
    let mut out =
        Vec::with_capacity(field_len(field, request.len()) + field_len(RAFT_HEADER, header_len));
    write_len(&mut out, field, request.len());
    out.extend_from_slice(request);
    write_len(&mut out, RAFT_HEADER, header_len);
    write_uint64(&mut out, 1, id);
    out
}

/// The same for a message that came from a client: a large one stays where it is.
pub fn wrap_message(field: u32, message: Message, id: u64) -> Bytes {
    if !message.has_room() {
        return wrap_request(field, &message, id).into();
    }
    let (mut before, mut behind) = (Vec::new(), Vec::new());
    write_len(&mut before, field, message.len());
    write_len(&mut behind, RAFT_HEADER, int_len(1, id));
    write_uint64(&mut behind, 1, id);
    message.wrap(&before, &behind)
}

/// Bytes that [`write_revoke`] appends at most.
pub const REVOKE_BYTES_MAX: usize = 27;

/// Appends the entry that ends a lease, as [`wrap_request`] makes it.
pub fn write_revoke(out: &mut Vec<u8>, lease: i64, id: u64) {
    write_len(out, RAFT_LEASE_REVOKE, int_len(1, lease as u64));
    write_int64(out, 1, lease);
    write_len(out, RAFT_HEADER, int_len(1, id));
    write_uint64(out, 1, id);
}

/// Bytes of [`wrap_request`]'s result for a request of `request_bytes`.
pub fn wrapped_len(field: u32, request_bytes: usize, id: u64) -> usize {
    field_len(field, request_bytes) + field_len(RAFT_HEADER, int_len(1, id))
}

/// The put inside an InternalRaftRequest made by [`wrap_request`]; `None` if it is anything else,
/// which prost then decodes.
pub fn wrapped_put(entry: &[u8]) -> Option<&[u8]> {
    wrapped(RAFT_PUT, entry)
}

/// The same of the end of a lease: its ID.
pub fn wrapped_revoke(entry: &[u8]) -> Option<i64> {
    let revoke = wrapped(RAFT_LEASE_REVOKE, entry)?;
    let mut fields = Fields::new(revoke);
    match fields.next_field() {
        Ok(Some((1, Value::Varint(id)))) if fields.at == revoke.len() => Some(id.cast_signed()),
        _ => None,
    }
}

fn wrapped(request: u32, entry: &[u8]) -> Option<&[u8]> {
    let mut fields = Fields::new(entry);
    let found = match fields.next_field() {
        Ok(Some((field, Value::Len(found)))) if field == request => found,
        _ => return None,
    };
    match fields.next_field() {
        Ok(Some((RAFT_HEADER, Value::Len(_)))) if fields.at == entry.len() => Some(&entry[found]),
        _ => None,
    }
}

/// The ID in an InternalRaftRequest's header; `None` if it has none.
pub fn request_id(entry: &[u8]) -> Option<u64> {
    let mut fields = Fields::new(entry);
    let mut found = None;
    while let Some((field, value)) = fields.next_field().ok()? {
        if let (RAFT_HEADER, Value::Len(header)) = (field, value) {
            found = Some(header);
        }
    }
    let mut fields = Fields::new(&entry[found?]);
    while let Some((field, value)) = fields.next_field().ok()? {
        if let (1, Value::Varint(id)) = (field, value) {
            return Some(id);
        }
    }
    None
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
    fn a_wrapped_put_is_the_raft_request_prost_would_decode() {
        let put = pb::PutRequest {
            key: "k".into(),
            value: "v".into(),
            lease: -5,
            prev_kv: true,
            ignore_value: false,
            ignore_lease: true,
        };
        let message = put.encode_to_vec();
        let entry = wrap_request(4, &message, 7);
        let decoded = pb::InternalRaftRequest::decode(entry.as_slice()).unwrap();
        assert_eq!(decoded.header.unwrap().id, 7);
        assert_eq!(decoded.put.as_ref(), Some(&put));
        assert_eq!(wrapped_put(&entry), Some(message.as_slice()));
        let came = etcore_proto::grpc::Message::from(Bytes::from(message.clone()));
        assert_eq!(wrap_message(4, came, 7), entry);
        assert_eq!((request_id(&entry), request_id(&message)), (Some(7), None));
        let parsed = PutRef::parse(&message).unwrap();
        assert_eq!((parsed.key, parsed.value, parsed.lease), (&b"k"[..], &b"v"[..], -5));
        assert!(parsed.prev_kv && parsed.ignore_lease && !parsed.ignore_value);
        let other = wrap_request(5, &message, 7);
        assert_eq!(wrapped_put(&other), None);
    }

    #[test]
    fn a_written_revoke_is_the_raft_request_prost_would_decode() {
        for id in [1, -1, i64::MAX, i64::MIN] {
            let mut entry = Vec::new();
            write_revoke(&mut entry, id, 7);
            let revoke = pb::LeaseRevokeRequest { id };
            assert_eq!(entry, wrap_request(RAFT_LEASE_REVOKE, &revoke.encode_to_vec(), 7));
            let decoded = pb::InternalRaftRequest::decode(entry.as_slice()).unwrap();
            assert_eq!(decoded.lease_revoke, Some(revoke));
            let mut longest = Vec::new();
            write_revoke(&mut longest, id, u64::MAX);
            assert!(longest.len() <= REVOKE_BYTES_MAX, "{}", longest.len());
            assert_eq!((wrapped_revoke(&entry), wrapped_put(&entry)), (Some(id), None));
            entry.extend_from_slice(&wrap_request(RAFT_PUT, b"", 7));
            assert_eq!(wrapped_revoke(&entry), None);
        }
        let unknown = [8, 1, 16, 1];
        assert_eq!(wrapped_revoke(&wrap_request(RAFT_LEASE_REVOKE, &unknown, 7)), None);
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
    fn malformed_messages_are_errors() {
        for bytes in [&[0x0a, 5, 1][..], &[0x80], &[0x00], &[0x0b], &[0x08; 1], &[0x09, 1]] {
            assert_eq!(PutRef::parse(bytes), Err(Malformed), "{bytes:?}");
        }
    }
}
