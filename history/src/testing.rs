//! What histories are made with: a simulated store that is right, for histories of which the judges
//! must approve, and the requests of clients that load a real one.
//!
//! Used by tests of the judges, by benchmarks, and by tests that record histories. Must never be
//! used to judge.

pub mod requests;
pub mod simulate;
