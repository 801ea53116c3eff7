//! `etcore-tune`: tells an operator what a host will give a member, and what to change about it.
//!
//! `probe` measures the data directory the way the log writes it, looks at CPU, clock, kernel,
//! io_uring, memory limits and file system, and times connections to peers. It depends on no other
//! crate of the workspace: it must run on a host before anything else is installed there.
//!
//! It changes nothing on the host but files of its own in the directory it is given, which it
//! removes; and it says of each figure how it was measured, since advice follows from it.
//!
//! In reading order: [`cli`] (flags), [`probe`] (the sequence), [`disk`] and [`peers`] (what is
//! measured), [`host`] (what is looked up), [`advice`] (what it means), [`report`] (how it is
//! told), [`limits`] (bounds).

pub mod advice;
pub mod cli;
pub mod disk;
pub mod host;
pub mod limits;
pub mod peers;
pub mod probe;
pub mod report;
pub mod sample;
