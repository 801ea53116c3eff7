//! What can go wrong with the log.
//!
//! Returned by the writer, recovery and the inspector. An error names the file and the offset, and
//! where a person must act, says how. None of these is deterministic: no two members fail alike.

use super::tail::Row;

/// A failure of the write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// An operation on a file failed. After a failed write the writer believes nothing any more.
    #[error("{what} {file}: {message}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file or directory.
        file: String,
        /// The system's answer.
        message: String,
    },
    /// The tail rule refuses the log.
    #[error("{file} at byte {offset_bytes}: {what} (case {row:?}): {}", row.advice())]
    Refused {
        /// The segment.
        file: String,
        /// Where its intact part ends.
        offset_bytes: u64,
        /// What was found there.
        what: String,
        /// The row of FORMAT.md's table.
        row: Row,
    },
    /// The directory holds no segment.
    #[error("{dir} holds no log")]
    NoLog {
        /// The directory.
        dir: String,
    },
    /// The directory holds a log already.
    #[error("{dir} holds a log already")]
    Exists {
        /// The directory.
        dir: String,
    },
    /// Sequence numbers are not consecutive: a segment is missing.
    #[error("{dir} has no segment {missing:016x}, but later ones; restore it from a copy")]
    MissingSegment {
        /// The directory.
        dir: String,
        /// Its sequence number.
        missing: u64,
    },
    /// A segment is larger than anything this program or etcd writes.
    #[error("{file} has {len_bytes} bytes, more than any segment")]
    SegmentTooLong {
        /// The segment.
        file: String,
        /// Its length.
        len_bytes: u64,
    },
    /// The page file is ahead of the log: they do not belong together.
    #[error(
        "the page file has applied entry {applied}, but the log in {dir} holds {first}..={last}; \
         they do not belong together: restore both from the same copy"
    )]
    AppliedOutsideLog {
        /// The directory.
        dir: String,
        /// The page file's applied index.
        applied: u64,
        /// First index that can be continued from.
        first: u64,
        /// Last intact entry.
        last: u64,
    },
    /// An operation completed with something other than what it returns.
    #[error("the driver completed {what} with the wrong kind of result")]
    Driver {
        /// The operation that failed.
        what: &'static str,
    },
}

impl WalError {
    pub(crate) fn io(what: &'static str, file: &str, error: &std::io::Error) -> Self {
        Self::Io { what, file: file.to_owned(), message: error.to_string() }
    }
}
