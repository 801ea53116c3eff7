//! What tests, the crash harness and the simulator share: a seeded generator of randomness and a
//! disk in memory that can crash.
//!
//! Used by the tests of `engine` and `raftlog` and by the simulator; it must never be reached from
//! a running member.

pub mod disk_pages;
pub mod mem_disk;
pub mod meta_pages;
pub mod model;
pub mod prng;
mod sparse_file;
