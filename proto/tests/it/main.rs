//! All tests of the protocols from outside, one binary: it is linked once. The tests that count
//! allocations have allocators of their own, and so are binaries of their own.

/// A client and a server joined in memory.
mod common;

/// The conformance suite for HTTP/2.
mod h2spec;
/// Our client against our server.
mod loopback;
/// tonic against both.
mod tonic;
/// curl, nghttp and h2load against our server.
mod tools;
