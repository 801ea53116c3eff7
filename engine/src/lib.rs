//! The storage engine: one page file, its copy-on-write B+tree, the memory tables, the revision
//! index and the MVCC store above them.
//!
//! Nothing here opens a socket, starts a thread or reads a clock. Files are reached through
//! [`file::Disk`], a submit/complete trait, so that the production drivers, the crash tests and the
//! simulator run the same code.
//!
//! Modules in reading order: [`types`] and [`error`]; [`wire`], the form of a stored row;
//! [`store`], the write side, and [`view`], the read side; below them the revision index (`index`),
//! the memory tables (`table`) and the small buckets ([`bucket`]); [`page`], the page file's format
//! (FORMAT.md describes it), and `tree`, reading it; [`checkpoint`], writing it; [`map`], reading
//! it through memory maps, or with plain calls ([`read`]); [`hash`], comparing members; [`pins`],
//! who still needs what; [`snapshot`], copies for members that lag; [`limits`], every bound;
//! [`testing`], the doubles; [`mutation`], the faults that the simulator must find.
//!
//! ```text
//! replica      begin -> Txn -> commit ... publish -> View -> any reader
//!              freeze -> CheckpointInput --> background: Checkpointer::turn over the Disk
//!              on_checkpoint <-- CheckpointOutput (new root, segments to drop)
//! ```

pub mod bucket;
pub mod checkpoint;
pub mod error;
pub mod file;
pub mod hash;
mod index;
pub mod limits;
pub mod map;
pub mod mutation;
pub mod page;
pub mod pins;
pub mod read;
pub mod snapshot;
pub mod store;
mod table;
pub mod testing;
mod tree;
pub mod types;
pub mod view;
pub mod wire;
