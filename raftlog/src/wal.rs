//! The write-ahead log in etcd's format.
//!
//! Called by the replica (writer), boot (create, recover) and tools (inspect). FORMAT.md is its
//! specification. It must never acknowledge what is not on disk, nor forget what was acknowledged.

mod batch;
mod confirm;
mod create;
mod error;
mod fetch;
mod inspect;
mod name;
mod owner;
pub(crate) mod record;
mod recovery;
mod replay;
mod scan;
mod spare;
mod tail;
mod writer;

pub use confirm::confirms_snapshot;
pub use create::{NewLog, create};
pub use error::WalError;
pub use fetch::ReadPlan;
pub use inspect::{Finding, inspect};
pub use name::{SPARE_SUFFIX, SegmentName};
pub use owner::owner;
pub use record::{Record, RecordKind};
pub use recovery::{Cut, RecoverOptions, Recovered, exists, recover};
pub use tail::{Action, Row, Situation, Stop};
pub use writer::{Admission, EntryRef, Writer, WriterConfig};
