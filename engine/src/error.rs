//! What can go wrong in the engine.
//!
//! Returned by every fallible function of the crate. A value here must never be answered by trying
//! the same operation again: after one I/O error nothing of that file is believed.

use std::io;

use crate::types::Revision;

/// A failure of the storage below the data model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The operating system refused an operation.
    #[error("{file}: {operation}: {message}")]
    Io {
        /// The file or directory, relative to the data directory.
        file: String,
        /// What was attempted.
        operation: &'static str,
        /// Its kind.
        kind: io::ErrorKind,
        /// The system's own words.
        message: String,
    },
    /// Stored bytes are not what was written.
    #[error(
        "{file}: corrupt at byte {offset_bytes}: {what}; restore this member from a snapshot or \
         remove its data directory and let it join again"
    )]
    Corrupt {
        /// The file, relative to the data directory.
        file: String,
        /// Where the damaged structure starts.
        offset_bytes: u64,
        /// What is wrong with it.
        what: Corruption,
    },
    /// The file was written by a later version.
    #[error("{file}: format version {version} is newer than this program understands ({newest})")]
    UnknownFormat {
        /// The file.
        file: String,
        /// Its version.
        version: u32,
        /// The newest version known here.
        newest: u32,
    },
    /// An earlier failure made the file unusable until the process is started again.
    #[error("{file}: unusable after an earlier failure: {cause}")]
    Latched {
        /// The file.
        file: String,
        /// The first failure.
        cause: String,
    },
    /// Something does not fit the limits of the file format.
    #[error("{what} of {size_bytes} bytes exceeds the limit of {limit_bytes}")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its size.
        size_bytes: u64,
        /// What fits.
        limit_bytes: u64,
    },
}

/// What is wrong with stored bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// Neither meta page can be used.
    #[error("both meta pages are damaged")]
    BothMetas,
    /// The checksum in the pointer is not that of the bytes.
    #[error("page checksum is {found:#010x}, its pointer says {expected:#010x}")]
    Checksum {
        /// From the pointer.
        expected: u32,
        /// The checksum that the bytes have.
        found: u32,
    },
    /// The file ends inside of the structure.
    #[error("the file ends within it")]
    Truncated,
    /// A field contradicts another one.
    #[error("{0}")]
    Structure(&'static str),
}

/// Why a revision cannot be read or compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// It is below the compaction.
    #[error("revision {requested} has been compacted, the oldest readable one is {compacted}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The store's compact revision.
        compacted: Revision,
    },
    /// It is not written yet.
    #[error("revision {requested} is in the future, the store is at {current}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// The store's revision.
        current: Revision,
    },
}

impl EngineError {
    /// Wraps what the operating system said.
    pub fn io(file: &str, operation: &'static str, error: &io::Error) -> Self {
        let (kind, message) = (error.kind(), error.to_string());
        Self::Io { file: file.to_owned(), operation, kind, message }
    }

    pub(crate) fn corrupt(file: &str, offset_bytes: u64, what: Corruption) -> Self {
        Self::Corrupt { file: file.to_owned(), offset_bytes, what }
    }
}
