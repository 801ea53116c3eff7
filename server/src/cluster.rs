//! What a cluster is, as data and rules: members and their IDs, versions, alarms, downgrades.
//!
//! Used by every room above; knows the store's buckets and nothing of raft, sockets or threads.

pub mod alarm;
pub mod change;
pub mod downgrade;
pub mod hashkv;
pub mod identity;
pub mod member;
pub mod strict;
pub mod version;
