//! The numbers raft counts in.
//!
//! Called by everything in this crate and by the server. They never do arithmetic beyond what the
//! log needs: the next and the previous position.

/// A position in the raft log; the first entry is at 1, 0 means "before the log".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogIndex(pub u64);

/// A raft term; 0 means "no term yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u64);

impl std::fmt::Display for LogIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

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

/// Where a snapshot stands: the log's mark, and the point a log without earlier entries starts from.
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
