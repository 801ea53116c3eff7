//! HTTP/2 (RFC 9113) without I/O: bytes in, callbacks out; calls in, bytes out.
//!
//! Used by `grpc` and by the HTTP handlers of TLS connections. Reading order: [`Conn`], then its
//! parts `receive`, `frames`, `send`, `keepalive`; `streams` is the table they share; `block`
//! checks header lists; `budget` counts what a peer makes us hold. Nothing here knows a socket or a
//! clock: time is a parameter, in milliseconds from an origin the caller keeps.

mod block;
mod bucket;
mod budget;
mod conn;
mod error;
mod frame;
mod settings;
mod streams;

pub use block::BlockKind;
pub use budget::{Budget, BudgetAccount, BudgetLease};
pub use conn::{Conn, Handler, Headers, OpenError, SendError};
pub use error::{ConnError, ErrorCode, Flood};
pub use settings::{Config, Keepalive, PingPolicy};
pub use streams::StreamId;
