//! All tests of the engine from outside, one binary: it is linked once.

/// Compactions, and what is left of the page file after them.
mod compaction;
/// Files with patched bytes.
mod corrupt;
/// Power cuts at every change of the disk.
mod crash;
/// Random histories beside the model.
mod fuzz;
/// Golden scripts of MVCC behaviour.
mod mvcc_scripts;
/// Copies for members that lag.
mod snapshot;
