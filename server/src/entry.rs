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
    /// `auth_enable`.
    pub const AUTH_ENABLE: u32 = 1000;
    /// `auth_disable`.
    pub const AUTH_DISABLE: u32 = 1011;
    /// `authenticate`.
    pub const AUTHENTICATE: u32 = 1012;
    /// `auth_user_add`.
    pub const AUTH_USER_ADD: u32 = 1100;
    /// `auth_user_delete`.
    pub const AUTH_USER_DELETE: u32 = 1101;
    /// `auth_user_change_password`.
    pub const AUTH_USER_CHANGE_PASSWORD: u32 = 1103;
    /// `auth_user_grant_role`.
    pub const AUTH_USER_GRANT_ROLE: u32 = 1104;
    /// `auth_user_revoke_role`.
    pub const AUTH_USER_REVOKE_ROLE: u32 = 1105;
    /// `auth_role_add`.
    pub const AUTH_ROLE_ADD: u32 = 1200;
    /// `auth_role_delete`.
    pub const AUTH_ROLE_DELETE: u32 = 1201;
    /// `auth_role_grant_permission`.
    pub const AUTH_ROLE_GRANT_PERMISSION: u32 = 1203;
    /// `auth_role_revoke_permission`.
    pub const AUTH_ROLE_REVOKE_PERMISSION: u32 = 1204;
    /// `header`.
    pub const HEADER: u32 = 100;
    /// `ID`, of members before 3.0.
    pub const ID: u32 = 1;
}

/// What a request in an entry may nest: the entry is a message around it.
const REQUEST_DEPTH: u32 = DECODE_DEPTH - 1;

/// What an entry's header says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heading<'a> {
    /// Names the request; 0 is none.
    pub id: u64,
    /// Who asks; empty if nobody said so.
    pub username: &'a str,
    /// The revision of the auth store at which the name was checked; 0 with no name.
    pub auth_revision: u64,
}

impl From<u64> for Heading<'static> {
    /// Of a request whose author does not matter.
    fn from(id: u64) -> Self {
        Self { id, ..Self::default() }
    }
}

impl<'a> Heading<'a> {
    /// Reads a header; `None` if there is anything odd about it.
    pub fn parse(header: &'a [u8]) -> Option<Self> {
        let (mut heading, mut fields) = (Self::default(), Fields::new(header));
        while let Some((field, value)) = fields.next_field().ok()? {
            match (field, value) {
                (1, Value::Varint(id)) => heading.id = id,
                (2, Value::Len(name)) => {
                    heading.username = std::str::from_utf8(&header[name]).ok()?;
                }
                (3, Value::Varint(revision)) => heading.auth_revision = revision,
                _ => return None,
            }
        }
        Some(heading)
    }

    fn len(&self) -> usize {
        let name = match self.username {
            "" => 0,
            name => field_len(2, name.len()),
        };
        int_len(1, self.id) + name + int_len(3, self.auth_revision)
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_len(out, field::HEADER, self.len());
        write_uint64(out, 1, self.id);
        if !self.username.is_empty() {
            write_len(out, 2, self.username.len());
            out.extend_from_slice(self.username.as_bytes());
        }
        write_uint64(out, 3, self.auth_revision);
    }
}

/// An InternalRaftRequest `{header: heading, field: request}` around an already encoded request.
pub fn wrap_request<'a>(field: u32, request: &[u8], heading: impl Into<Heading<'a>>) -> Vec<u8> {
    let heading = heading.into();
    let mut out = Vec::with_capacity(wrapped_len(field, request.len(), heading));
    write_len(&mut out, field, request.len());
    out.extend_from_slice(request);
    heading.write(&mut out);
    out
}

/// Wraps a message that came from a client; a large one stays where it is.
pub fn wrap_message<'a>(field: u32, message: Message, heading: impl Into<Heading<'a>>) -> Bytes {
    let heading = heading.into();
    if !message.has_room() {
        return wrap_request(field, &message, heading).into();
    }
    let (mut before, mut behind) = (Vec::new(), Vec::new());
    write_len(&mut before, field, message.len());
    heading.write(&mut behind);
    message.wrap(&before, &behind)
}

/// Bytes of [`wrap_request`]'s result for a request of `request_bytes`.
pub fn wrapped_len<'a>(field: u32, request_bytes: usize, heading: impl Into<Heading<'a>>) -> usize {
    field_len(field, request_bytes) + field_len(field::HEADER, heading.into().len())
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
    wrapped(field::PUT, entry).map(|(put, _)| put)
}

/// As [`wrapped_put`], with the header, which [`Heading::parse`] reads.
pub fn wrapped_put_of(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    wrapped(field::PUT, entry)
}

/// Returns the lease that an entry ends, if it is a wrapped LeaseRevoke.
pub fn wrapped_revoke(entry: &[u8]) -> Option<i64> {
    let (revoke, _) = wrapped(field::LEASE_REVOKE, entry)?;
    let mut fields = Fields::new(revoke);
    match fields.next_field() {
        Ok(Some((1, Value::Varint(id)))) if fields.position() == revoke.len() => {
            Some(id.cast_signed())
        }
        _ => None,
    }
}

/// The request and the header of an entry that has nothing else.
fn wrapped(request: u32, entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut fields = Fields::new(entry);
    let found = match fields.next_field() {
        Ok(Some((field, Value::Len(found)))) if field == request => found,
        _ => return None,
    };
    match fields.next_field() {
        Ok(Some((field::HEADER, Value::Len(header)))) if fields.position() == entry.len() => {
            Some((&entry[found], &entry[header]))
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
