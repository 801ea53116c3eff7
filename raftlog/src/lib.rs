//! etcore raftlog.
