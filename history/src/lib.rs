//! Histories: what clients asked a store, when, and what they were told; and the judges that say
//! whether a correct etcd could have answered so.
//!
//! No judge does I/O or reads a clock; times are nanoseconds of any one clock that all clients of
//! the history share. A judge must never accuse a store that may be right: where a history leaves a
//! choice open, the choice is made in the store's favour, and a search that is given up says so.
//!
//! Three parties use it: the simulator of the server, which judges every seed; the server's tests,
//! which record what real members and real etcds answer; and the tests here, with histories written
//! by hand and others from a simulated store.
//!
//! Reading order: [`data`] and [`types`] (what a history is), [`lines`] (as a file), [`wire`] (from
//! and to messages of the API), [`model`] (the reference: a multi-version store in a hundred
//! lines), then the judges, one property each:
//!
//! | judge | property |
//! |---|---|
//! | [`linear`] | in one order of writes all answers are true, as is real time ([`realtime`]) |
//! | [`durable`] | nothing acknowledged is lost |
//! | [`compaction`] | an acknowledged compaction holds, and no read is refused without cause |
//! | [`lease`] | a lease never ends early, and never comes back |
//! | [`watch`] | events are complete, ordered, unique and whole, and none is too old |
//! | [`hash`] | members hold the same at the same revision |
//!
//! [`registers`] is a second, independent judge of linearizability, which knows nothing about
//! revisions; tests hold the first one against it.
//!
//! Not judged: sort orders and filters of ranges, `ignore_value` and `ignore_lease`, filters of
//! watches, alarms, authentication, terms and member ids of headers. They are not in a history.

pub mod compaction;
pub mod data;
mod demands;
mod differ;
pub mod durable;
mod evidence;
pub mod hash;
mod keys;
pub mod lease;
pub mod linear;
pub mod lines;
pub mod model;
mod open;
mod origin;
pub mod realtime;
pub mod registers;
pub mod testing;
pub mod types;
pub mod watch;
pub mod wire;

pub use data::{Data, KeyRange};
pub use types::{History, Operation, Outcome, Request};

use linear::Witness;

/// What is wrong with a history: the property that does not hold, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not so: {property}. {detail}")]
pub struct Violation {
    /// The property that does not hold, a sentence; one of the constants of the judges.
    pub property: &'static str,
    /// Which operations show it.
    pub detail: String,
}

impl Violation {
    pub(crate) fn new(property: &'static str, detail: String) -> Self {
        Violation { property, detail }
    }
}

/// Asks all judges, those with the plainest properties first; the first violation is the answer,
/// otherwise the order of writes that explains the history.
///
/// # Errors
///
/// The first violation found.
pub fn judge(history: &History) -> Result<Witness, Violation> {
    durable::judge(history)?;
    compaction::judge(history)?;
    hash::judge(history)?;
    lease::judge(history)?;
    watch::judge_order(history)?;
    let witness = linear::judge(history)?;
    lease::judge_ends(history, &witness)?;
    watch::judge(history, &witness)?;
    Ok(witness)
}
