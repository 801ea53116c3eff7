//! Why a node does not start, or does not take a proposal.
//!
//! Returned by the node. None of these is about a peer's message; see `inbound` for those.

use etcore_proto::raftpb;

use crate::types::{LogIndex, Term};

/// Why a node cannot start, or cannot change its configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The page file has applied something that the log does not hold.
    #[error("entry {applied} is applied, but the log continues {base} and ends at {last}")]
    AppliedOutsideLog {
        /// The page file's applied index.
        applied: LogIndex,
        /// The position the log continues from.
        base: LogIndex,
        /// Its last entry.
        last: LogIndex,
    },
    /// The page file and the log disagree about an entry.
    #[error(
        "the page file has applied entry {applied} with term {applied_term}, but the log has it \
         with term {log_term}; they do not belong together: restore both from the same copy"
    )]
    AppliedTerm {
        /// The page file's applied index.
        applied: LogIndex,
        /// Its term there.
        applied_term: Term,
        /// Its term in the log.
        log_term: Term,
    },
    /// A configuration that names a member twice, or 0.
    #[error("an impossible configuration: {0:?}")]
    ConfState(raftpb::ConfState),
    /// raft-rs refuses the settings or the change.
    #[error("raft refuses: {0}")]
    Raft(String),
    /// A configuration change that cannot be understood.
    #[error("{0}")]
    ConfChange(&'static str),
}

/// Why nothing was proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nobody leads, as far as this member knows.
    #[error("no leader")]
    NoLeader,
    /// Leadership is being handed over.
    #[error("leadership is being transferred")]
    Transferring,
    /// Too much is proposed and not yet committed.
    #[error("too many uncommitted proposals")]
    TooManyUncommitted,
    /// The proposal is larger than the log takes.
    #[error("a proposal of {data_bytes} bytes, at most {bytes_max} are possible")]
    TooLarge {
        /// Its length.
        data_bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// The batch is empty.
    #[error("nothing to propose")]
    Empty,
    /// raft dropped it for another reason, such as this member having been removed.
    #[error("the proposal was dropped")]
    Dropped,
}
