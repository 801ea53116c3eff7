//! The replicated log: etcd's write-ahead log on disk and raft above it.

pub mod bootstrap;
mod convert;
mod index;
pub mod limits;
pub mod log;
pub mod node;
pub mod types;
pub mod wal;
