//! The member: boot, drivers, shards, the api, and the replica that ties raft, log and engine
//! together.

pub mod alarm;
pub mod api;
pub mod auth;
pub mod background;
pub mod boot;
pub mod clock;
pub mod config;
pub mod driver;
pub mod entry;
pub mod front;
pub mod hasher;
pub mod http;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod log;
pub mod member;
pub mod metrics;
pub mod net;
pub mod notify;
pub mod pages;
pub mod peers;
pub mod pool;
pub mod quota;
pub mod replica;
pub mod ring;
pub mod shard;
pub mod shared;
#[cfg(feature = "sim")]
pub mod sim;
pub mod sys;
pub mod version;
pub mod watch;
pub mod wire;
pub mod work;
