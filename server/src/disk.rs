//! What may wait for the disk: pools of threads that block, and one thread's pages.
//!
//! Used by fronts, the replica and boot. Nothing here blocks its caller.

pub mod pages;
pub mod pool;
