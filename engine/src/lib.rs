//! The storage engine: one page file, its copy-on-write B+tree, the memory tables, the revision
//! index and the MVCC store above them.
//!
//! Nothing here opens a socket, starts a thread or reads a clock. Files are reached through
//! [`file::Disk`], a submit/complete trait, so that the production drivers, the crash tests and the
//! simulator run the same code.

pub mod bucket;
pub mod checkpoint;
pub mod error;
pub mod file;
mod index;
pub mod limits;
pub mod map;
pub mod page;
pub mod pins;
pub mod store;
mod table;
pub mod testing;
mod tree;
pub mod types;
pub mod view;
pub mod wire;
