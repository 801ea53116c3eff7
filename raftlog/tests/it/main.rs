//! All tests of the log and its links from outside, one binary: it is linked once.

/// A single member's log, made and opened.
mod common;

/// Several members in memory, with crashes.
mod cluster;
/// Power cuts.
mod crash;
/// Files with patched bytes.
mod damage;
/// Logs that a real etcd reads and writes.
mod etcd;
/// Links to peers over a network in memory.
mod peer;
/// The framings of the peer streams.
mod peer_codec;
/// Logs and requests that are refused.
mod refusals;
/// A single member on a real directory.
mod single;
