//! The words and values that the fronts' side and the replica share: the messages of their rings,
//! and what every thread of the member may look at.
//!
//! Used by api and front on one side, by replica on the other, and by those who serve both
//! (background, http). Neither side imports anything of the other. What stands here holds no
//! behaviour of either: a rule about requests belongs to `kv` or `api`, one about the log to
//! `replica`.

mod hashes;
mod lifecycle;
mod messages;
mod ring;
mod shared;
mod stalled;

pub use hashes::{HashAnswers, HashOutcome, HashRequester};
pub use lifecycle::Lifecycle;
pub use messages::{Asker, LeaseAnswer, LeaseQuery, LeaseRequest, Reply, Slot, ToFront, ToReplica};
pub use ring::{Consumer, Outgoing, Producer, ring};
pub use shared::{MemberView, Shared, StatusCell};
pub use stalled::StalledWork;

pub use crate::config::AutoCompaction;
