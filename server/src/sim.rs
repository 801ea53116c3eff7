//! The simulator: whole members in one process, on one thread, in virtual time, out of one seed.
//!
//! Run by the `sim` program and by tests. What it runs is what production runs: the shards' rounds
//! ([`Shard::work`], [`Shard::wait`]) with fronts, replica and everything below them, the
//! background's checkpoints, the hasher. What it replaces is what touches the world: sockets, the
//! disk, waiting, the clock. Clients speak the bytes of HTTP/2 and gRPC. The seed chooses the
//! order of all events, latencies, sizes and faults, so that a seed that has found something finds
//! it again; [`trace`] proves that by a hash of all events. What clients were told is judged by
//! `etcore_history`, what members hold by [`judges`].
//!
//! | part | what it is |
//! |---|---|
//! | [`world`] | the events of all parts in order of virtual time, and who makes them |
//! | [`plan`] | what a seed decides once: sizes, latencies, rates of faults |
//! | [`member`] | one member: its disk and clock, and while it runs its shards and helpers |
//! | `devices`, `driver`, `disk`, `pages` | the third driver: what members do becomes effects |
//! | `net` | connections that delay, split, break |
//! | `clients`, `watchers`, `wire`, `workload` | who asks what, and what is written down of it |
//! | `operator` | adds, promotes and removes members |
//! | [`hardships`] | seeds with one member's trouble at a time, and what others may wait |
//! | [`hostile`], `intruders` | clients that mean no good |
//! | [`behind`] | a member that was away for too long |
//! | [`judges`] | properties of members that clients cannot see, one a file |
//!
//! No wall clock, no thread, no randomness but the seed's, no order of a hash map.
//!
//! [`Shard::work`]: crate::shard::Shard::work
//! [`Shard::wait`]: crate::shard::Shard::wait

pub mod behind;
pub mod clients;
mod devices;
mod disk;
mod driver;
mod effects;
mod faults;
pub mod finish;
pub mod hardships;
pub mod hostile;
mod intruders;
pub mod judges;
mod keepers;
mod logs;
pub mod member;
mod net;
mod operator;
mod pages;
pub mod plan;
pub mod trace;
mod watchers;
mod wire;
mod workload;
pub mod world;

pub use plan::Plan;
pub use world::{Report, Violation, run};
