//! The storage engine: one page file, its copy-on-write B+tree, the memory tables, the revision
//! index and the MVCC store above them.
//!
//! Nothing here opens a socket, starts a thread or reads a clock. Files are reached through
//! [`file::Disk`], a submit/complete trait, so that the production drivers, the crash tests and the
//! simulator run the same code.
//!
//! # What always holds
//!
//! * What is published never changes: a view shows the same for as long as somebody holds it, and
//!   a page that a view may read is not written.
//! * The page file is a whole checkpoint at every moment, whatever sectors a power cut loses: pages
//!   are synced before the meta page that names them, and the meta page before is kept.
//! * A store is a function of the entries applied to it: equal entries give equal rows, revisions
//!   and hashes on every member.
//! * Damage is an error that names file and offset, never a panic, a hang or a wrong row.
//! * After a failed write or sync a checkpointer is dead.
//!
//! # Who uses it
//!
//! The server: its replica owns the [`store`], its background thread the checkpointer, its fronts
//! read views. The log (`etcore-raftlog`) uses [`file`] and [`types`] alone.
//!
//! # Where to begin reading
//!
//! Modules in reading order: [`types`] and [`error`]; [`wire`], the form of a stored row;
//! [`store`], the write side, and [`view`], the read side; below them the revision index (`index`),
//! the memory tables (`table`) and the small buckets ([`bucket`]); [`page`], the page file's format
//! (FORMAT.md describes it), and `tree`, reading it; [`checkpoint`], writing it; [`map`], reading
//! it through memory maps, or with plain calls ([`read`]); [`hash`], comparing members; [`pins`],
//! who still needs what; [`snapshot`], copies for members that lag; [`limits`], every bound;
//! `testing`, the doubles (behind the feature of that name); [`seeded_bug`], the faults that the
//! simulator must find.
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
pub mod page;
pub mod pins;
pub mod read;
pub mod seeded_bug;
pub mod snapshot;
pub mod store;
mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tree;
pub mod types;
pub mod view;
pub mod wire;
