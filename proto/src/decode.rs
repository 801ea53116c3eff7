//! Decoding a message as Go's protobuf does, whoever sent it and whatever is in it.
//!
//! prost and Go disagree about odd messages: prost refuses a known field of another wire type,
//! where Go takes it for an unknown one, and whatever nests deeper than a hundred levels, unknown
//! groups included, where Go allows ten thousand. What one member takes all must take, clients'
//! requests and log entries alike, so everything that comes from outside a process goes through
//! here. What prost accepts Go accepts, with the same value: that is tried first and costs nothing
//! more. Only what it refuses is walked by the messages' shapes and put together again: never
//! recursively over what a peer has nested.
//!
//! Called by the server for requests and log entries. It never panics on any input, and its time
//! and memory are linear in the message.

use bytes::{Buf, Bytes};

use crate::limits;

mod fields;
mod plain;
mod txn;

pub use fields::{Fields, Value};

/// Why a message cannot be decoded; the texts are Go's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DecodeError {
    /// It is no protobuf.
    #[error("proto: cannot parse invalid wire-format data")]
    Wire,
    /// A text is not UTF-8.
    #[error("string field contains invalid UTF-8")]
    Utf8,
    /// Messages are nested too deeply.
    #[error("proto: exceeded maximum recursion depth")]
    Depth,
}

/// What a field may hold, repeated or not.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Varint,
    /// Repeated: each of its own, or many packed.
    Varints,
    Bytes,
    Text,
    Message(&'static Shape),
    /// A TxnRequest, the one message that nests.
    Txn,
}

/// The fields of a message, ascending by number.
#[derive(Debug)]
pub struct Shape(&'static [(u32, Kind)]);

impl Shape {
    fn kind(&self, number: u32) -> Option<Kind> {
        let at = self.0.binary_search_by_key(&number, |(known, _)| *known).ok()?;
        Some(self.0[at].1)
    }
}

/// A message whose fields are written down.
pub trait Described: prost::Message + Default {
    /// Its fields.
    fn shape() -> &'static Shape;
}

/// A message that cannot nest beyond what its type says.
pub trait Flat: Described {}

/// A message that may hold transactions in transactions.
pub trait Deep: Described {
    #[doc(hidden)]
    fn assemble(bytes: &Bytes, depth: u32) -> Result<Self, DecodeError>;
}

mod shapes {
    use super::{Described, Flat, Kind, Shape};

    include!(concat!(env!("OUT_DIR"), "/shapes.rs"));
}

/// Decodes a message.
///
/// # Errors
/// [`DecodeError`] where Go fails as well.
pub fn decode<M: Flat>(bytes: Bytes) -> Result<M, DecodeError> {
    match M::decode(Borrowed { whole: &bytes, at: 0 }) {
        Ok(message) => Ok(message),
        Err(_) => plain::decode(&bytes),
    }
}

/// A message that is read without being consumed: what it holds is shared, and the message itself
/// is not counted once more to be read again should this fail.
struct Borrowed<'a> {
    whole: &'a Bytes,
    at: usize,
}

impl Buf for Borrowed<'_> {
    fn remaining(&self) -> usize {
        self.whole.len() - self.at
    }

    fn chunk(&self) -> &[u8] {
        &self.whole[self.at..]
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining(), "no further than its end");
        self.at += count;
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        let begin = self.at;
        self.advance(len);
        self.whole.slice(begin..self.at)
    }
}

/// Decodes a message that may nest up to `depth` messages, itself included, and calls `then` with
/// it, on a stack on which it can be walked recursively, and dropped.
pub fn with_decoded<M: Deep, T>(
    bytes: Bytes,
    depth: u32,
    then: impl FnOnce(Result<M, DecodeError>) -> T,
) -> T {
    match M::decode(bytes.clone()) {
        Ok(message) => then(Ok(message)),
        Err(_) => {
            // A level of a transaction takes four bytes at least.
            let levels = (bytes.len() / 4).min(limits::DECODE_DEPTH as usize / 2);
            let stack = limits::STACK_BYTES + levels * limits::STACK_BYTES_PER_TXN;
            stacker::grow(stack, || then(M::assemble(&bytes, depth)))
        }
    }
}

/// One message in another: what is left of the depth.
fn enter(depth: u32) -> Result<u32, DecodeError> {
    depth.checked_sub(1).ok_or(DecodeError::Depth)
}

#[cfg(test)]
mod tests;
