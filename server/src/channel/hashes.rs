//! How a hash that was asked for comes back: the thread that computes it answers the front itself.
//!
//! Used by the Maintenance service, the replica and the hasher.

use std::fmt;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use etcore_engine::hash::KvHash;
use etcore_proto::error::Status;

use super::Slot;
use crate::driver::Waker;

/// A hash and the revision that was current when it was asked for.
pub type HashOutcome = Result<(KvHash, i64), Status>;

/// Where a front finds the hashes it asked for; bounded by `limits::HASH_ANSWERS`.
pub type HashAnswers = Arc<ArrayQueue<(Slot, HashOutcome)>>;

/// The front that waits for a hash.
pub struct HashRequester {
    /// The waiting request.
    pub slot: Slot,
    /// The front's queue.
    pub answers: HashAnswers,
    /// Wakes the front.
    pub waker: Waker,
}

impl fmt::Debug for HashRequester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashRequester").field("slot", &self.slot).finish_non_exhaustive()
    }
}
