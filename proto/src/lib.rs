//! Wire formats and protocols of etcore, without I/O.
//!
//! The transport is most of what a small request costs, so it is the project's own: bytes go in,
//! events come out; calls go in, bytes come out. Sockets, certificates, clocks and threads belong
//! to the caller. Every queue has a bound in [`limits`], and every error is a value.
//!
//! # What always holds
//!
//! * Any bytes may come in: they are answered or refused, never a panic, and never more memory than
//!   the connection's budget. Each parser has an entry in `fuzz` (behind the feature of that name)
//!   and a corpus.
//! * Bytes that go out were asked for by the peer's window; nothing is queued without a bound.
//! * Texts and codes that a client sees are etcd's, and stand in one table ([`error`]).
//!
//! # Who uses it
//!
//! All crates but `tuning`: the server both ways, the log for etcd's messages, the benchmark as a
//! client, the judges of histories for the API's messages.
//!
//! # Where to begin reading
//!
//! Reading order: [`limits`], [`hpack`] (header compression), [`h2`] (one HTTP/2 connection),
//! [`grpc`] (both sides of gRPC on top of it), [`http1`], [`tls`] (what may lie below them), then
//! etcd's messages ([`pb`]), how they are decoded ([`decode`]), its log and peer messages
//! ([`raftpb`]), its error table ([`error`]), its JSON ([`json`]), and Go's notation of flags
//! ([`gotext`]).

pub mod civil;
pub mod deadlines;
pub mod decode;
pub mod error;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod gotext;
pub mod grpc;
pub mod h2;
pub mod hpack;
pub mod http1;
pub mod json;
pub mod limits;
pub mod pb;
pub mod raftpb;
pub mod splitmix;
pub mod tls;
pub mod varint;
pub mod websocket;
