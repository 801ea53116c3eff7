//! The member: boot, drivers, shards, the api, and the replica that ties raft, log and engine
//! together.

pub mod api;
pub mod config;
pub mod driver;
pub mod identity;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod net;
pub mod ring;
pub mod version;
pub mod wire;
