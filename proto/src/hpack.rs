//! HPACK (RFC 7541): header compression for HTTP/2, both directions.
//!
//! Called by `h2` only. The decoder hands every field to a [`FieldSink`] in place, so a block of
//! indexed fields costs no copy and no allocation; the encoder keeps constant fields in slots that
//! become one byte each after their first use. Nothing here may panic on bytes from the network,
//! and nothing here may keep more than the table size it announced.

mod decoder;
mod encoder;
mod huffman;
mod integer;
mod name;
mod pieces;
mod static_table;

pub use decoder::{Decoder, Field, FieldSink};
pub use encoder::{Encoder, HeaderItem, SlotId};
pub use name::NameClass;
pub use pieces::Pieces;

/// Why a header block could not be decoded. Every one of these desynchronises the table, so the
/// connection must end with COMPRESSION_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HpackError {
    /// The block ended inside a field.
    #[error("header block ends inside a field")]
    Truncated,
    /// An integer needs more than 28 bits.
    #[error("header block holds an oversized integer")]
    IntegerTooLarge,
    /// An index points at no table entry.
    #[error("header index {0} names no entry")]
    BadIndex(usize),
    /// A Huffman string holds the end mark or wrong padding.
    #[error("malformed huffman string")]
    BadHuffman,
    /// A size update asks for more than we announced.
    #[error("table size update to {asked} exceeds the limit {limit}")]
    TableSizeTooLarge {
        /// Bytes the peer asked for.
        asked: usize,
        /// Bytes we allow.
        limit: usize,
    },
    /// A size update follows a field, or more than two updates open a block.
    #[error("misplaced table size update")]
    MisplacedSizeUpdate,
    /// The peer had to shrink its table after our acknowledged setting and did not.
    #[error("missing table size update")]
    MissingSizeUpdate,
}
