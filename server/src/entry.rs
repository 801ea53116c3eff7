//! What a raft entry carries: the one place that wraps a request into one, unwraps it, reads its
//! header and says which request it is.
//!
//! Used by the fronts, by the replica before it proposes and by apply. The fronts decode what they
//! let in with the code and within the depth that apply has: what cannot be applied cannot be
//! proposed. Decoding is Go's (`etcore_proto::decode`), since etcd's members read the same log.
//! Bytes come from clients and peers: a malformed message is an error, never a panic.

use bytes::Bytes;
use etcore_proto::decode::{DecodeError, Fields, Flat, Value, decode, with_decoded};
use etcore_proto::grpc::Message;
use etcore_proto::limits::DECODE_DEPTH;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message as _;

use crate::quota;
use crate::wire::{PutRef, field_len, int_len, write_int64, write_len, write_uint64};

pub mod describe;
pub mod old;
pub mod request;

pub use request::Request;

/// Field numbers of InternalRaftRequest.
pub mod field {
    /// `put`.
    pub const PUT: u32 = 4;
    /// `delete_range`.
    pub const DELETE_RANGE: u32 = 5;
    /// `txn`.
    pub const TXN: u32 = 6;
    /// `compaction`.
    pub const COMPACTION: u32 = 7;
    /// `lease_grant`.
    pub const LEASE_GRANT: u32 = 8;
    /// `lease_revoke`.
    pub const LEASE_REVOKE: u32 = 9;
    /// `alarm`.
    pub const ALARM: u32 = 10;
    /// `header`.
    pub const HEADER: u32 = 100;
    /// `ID`, of members before 3.0.
    pub const ID: u32 = 1;
}

/// What a request in an entry may nest: the entry is a message around it.
const REQUEST_DEPTH: u32 = DECODE_DEPTH - 1;

/// An InternalRaftRequest `{header: {ID: id}, field: request}` around an already encoded request.
pub fn wrap_request(field: u32, request: &[u8], id: u64) -> Vec<u8> {
    let header_len = int_len(1, id);
    let mut out =
        Vec::with_capacity(field_len(field, request.len()) + field_len(field::HEADER, header_len));
    write_len(&mut out, field, request.len());
    out.extend_from_slice(request);
    write_len(&mut out, field::HEADER, header_len);
    write_uint64(&mut out, 1, id);
    out
}

/// Wraps a message that came from a client; a large one stays where it is.
pub fn wrap_message(field: u32, message: Message, id: u64) -> Bytes {
    if !message.has_room() {
        return wrap_request(field, &message, id).into();
    }
    let (mut before, mut behind) = (Vec::new(), Vec::new());
    write_len(&mut before, field, message.len());
    write_len(&mut behind, field::HEADER, int_len(1, id));
    write_uint64(&mut behind, 1, id);
    message.wrap(&before, &behind)
}

/// Bytes of [`wrap_request`]'s result for a request of `request_bytes`.
pub fn wrapped_len(field: u32, request_bytes: usize, id: u64) -> usize {
    field_len(field, request_bytes) + field_len(field::HEADER, int_len(1, id))
}

/// Bytes that [`write_revoke`] appends at most.
pub const REVOKE_BYTES_MAX: usize = 27;

/// Appends the entry that ends a lease, as [`wrap_request`] makes it.
pub fn write_revoke(out: &mut Vec<u8>, lease: i64, id: u64) {
    write_len(out, field::LEASE_REVOKE, int_len(1, lease as u64));
    write_int64(out, 1, lease);
    write_len(out, field::HEADER, int_len(1, id));
    write_uint64(out, 1, id);
}

/// The put inside an InternalRaftRequest made by [`wrap_request`]; `None` if it is anything else,
/// which is then decoded as a whole.
pub fn wrapped_put(entry: &[u8]) -> Option<&[u8]> {
    wrapped(field::PUT, entry)
}

/// Returns the lease that an entry ends, if it is a wrapped LeaseRevoke.
pub fn wrapped_revoke(entry: &[u8]) -> Option<i64> {
    let revoke = wrapped(field::LEASE_REVOKE, entry)?;
    let mut fields = Fields::new(revoke);
    match fields.next_field() {
        Ok(Some((1, Value::Varint(id)))) if fields.position() == revoke.len() => {
            Some(id.cast_signed())
        }
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
        Ok(Some((field::HEADER, Value::Len(_)))) if fields.position() == entry.len() => {
            Some(&entry[found])
        }
        _ => None,
    }
}

/// The field of an entry's request, which says what it does; `None` if it has none.
pub fn request_field(entry: &[u8]) -> Option<u32> {
    let mut fields = Fields::new(entry);
    while let Some((field, _)) = fields.next_field().ok()? {
        if field != field::HEADER && field != field::ID {
            return Some(field);
        }
    }
    None
}

/// The ID of an entry's request, as etcd reads it; `None` if it has none.
pub fn request_id(entry: &[u8]) -> Option<u64> {
    let (mut old, mut id) = (0, 0);
    let mut fields = Fields::new(entry);
    while let Some((field, value)) = fields.next_field().ok()? {
        match (field, value) {
            (field::ID, Value::Varint(value)) => old = value,
            (field::HEADER, Value::Len(header)) => {
                let mut fields = Fields::new(&entry[header]);
                while let Some((field, value)) = fields.next_field().ok()? {
                    if let (1, Value::Varint(value)) = (field, value) {
                        id = value;
                    }
                }
            }
            _ => {}
        }
    }
    Some(if old == 0 { id } else { old }).filter(|id| *id != 0)
}

/// Decodes a request that will be proposed as it came.
///
/// # Errors
/// [`DecodeError`]: apply could not read it either.
pub fn request<M: Flat>(message: Bytes) -> Result<M, DecodeError> {
    // What does not nest takes as much depth anywhere.
    decode(message)
}

/// Decodes a transaction that will be proposed as it came; see [`with_decoded`] for why it is
/// handed to `then`.
pub fn with_txn<T>(
    message: Bytes,
    then: impl FnOnce(Result<pb::TxnRequest, DecodeError>) -> T,
) -> T {
    with_decoded(message, REQUEST_DEPTH, then)
}

/// Why an entry cannot be applied by this version, on any member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unapplicable {
    /// It is no request.
    #[error("no request: {0}")]
    Malformed(#[from] DecodeError),
    /// It holds none of the requests of etcd 3.5 to 3.7.
    #[error("a request that this version does not know; start the version that wrote it")]
    Unknown,
}

/// Decodes an entry's data, whoever proposed it, and calls `then` with the request. Entries of
/// etcd's version 2 store are among them ([`old`]).
pub fn with_entry<T>(
    data: &Bytes,
    then: impl FnOnce(Result<pb::InternalRaftRequest, Unapplicable>) -> T,
) -> T {
    with_decoded::<pb::InternalRaftRequest, T>(data.clone(), DECODE_DEPTH, |decoded| {
        then(match decoded {
            Ok(request) if Request::of(&request).is_some() => Ok(request),
            Ok(_) => old::wrapped(data).ok_or(Unapplicable::Unknown),
            Err(error) => old::bare(data).ok_or(Unapplicable::Malformed(error)),
        })
    })
}

/// Whether apply can read what a peer wants to have proposed. A put and the end of a lease, which
/// most are, are looked at where they are.
///
/// # Errors
/// [`Unapplicable`].
pub fn check(data: &Bytes) -> Result<(), Unapplicable> {
    if let Some(put) = wrapped_put(data) {
        PutRef::parse(put)?;
        return Ok(());
    }
    if data.is_empty() || wrapped_revoke(data).is_some() {
        return Ok(());
    }
    with_entry(data, |request| request.map(drop))
}

/// True if the entry may make the store larger.
pub fn grows(data: &Bytes) -> bool {
    if wrapped_put(data).is_some() {
        return true;
    }
    with_entry(data, |request| request.is_ok_and(|request| request_grows(&request)))
}

/// True if the request may make the store larger.
pub fn request_grows(request: &pb::InternalRaftRequest) -> bool {
    match Request::of(request) {
        Some(Request::Put(_) | Request::LeaseGrant(_)) => true,
        Some(Request::Txn(txn)) => quota::txn_cost_bytes(txn) > 0,
        _ => false,
    }
}

/// What names an entry beyond its index and term: the checksum of its data.
pub fn checksum(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}

/// An entry of this member's own, with its header.
pub fn encode(mut request: pb::InternalRaftRequest, header: pb::RequestHeader) -> Bytes {
    request.header = Some(header);
    request.encode_to_vec().into()
}

#[cfg(test)]
mod tests;
