//! The member: boot, drivers, shards, the api, and the replica that ties raft, log and engine
//! together.

pub mod api;
pub mod auth;
pub mod background;
pub mod boot;
pub mod channel;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod disk;
pub mod driver;
pub mod entry;
pub mod freer;
pub mod front;
pub mod http;
pub mod ids;
pub mod kv;
pub mod lease;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod net;
pub mod notify;
pub mod peers;
pub mod quota;
pub mod replica;
pub mod replies;
pub mod shard;
#[cfg(feature = "sim")]
pub mod sim;
pub mod sys;
pub mod watch;
pub mod wire;
pub mod work;
