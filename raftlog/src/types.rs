//! What raft counts in and remembers, as plain values.
//!
//! Called by everything in this crate and by the server. Index and term are the engine's, whose
//! page file stores them too. No behaviour belongs here.

pub use etcore_engine::types::{LogIndex, Term};

/// What a member must not forget besides its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HardState {
    /// Newest term seen.
    pub term: Term,
    /// Who got this member's vote in that term; 0 for nobody.
    pub vote: u64,
    /// Highest index known to be committed. May lag behind on disk.
    pub commit: LogIndex,
}

/// Where a snapshot stands: the log's mark, and the point a log without earlier entries starts
/// from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotMark {
    /// Last index the snapshot contains.
    pub index: LogIndex,
    /// Term of that index.
    pub term: Term,
    /// Configuration at that index; `None` only in the mark of an empty log.
    pub conf_state: Option<etcore_proto::raftpb::ConfState>,
}

/// What an entry's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryKind {
    /// An `InternalRaftRequest`, or nothing (a new leader's first entry).
    Normal,
    /// A `raftpb.ConfChange`.
    ConfChange,
    /// A `raftpb.ConfChangeV2`.
    ConfChangeV2,
}

/// A log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Position.
    pub index: LogIndex,
    /// Term in which it was proposed.
    pub term: Term,
    /// What `data` is.
    pub kind: EntryKind,
    /// What was proposed.
    pub data: bytes::Bytes,
}

/// Numbers the turns whose log writes must be on disk before something else may happen. Counts up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BatchNumber(pub u64);
