//! A simulated store that is right, for histories of which the judges must approve.
//!
//! Used by tests of the judges and by benchmarks. Must never be used to judge.

pub mod simulate;
