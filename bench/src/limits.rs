//! Every bound of the tool, with what happens at it.
//!
//! Read by all other modules. Nothing here may be exceeded by what a server answers.

use std::time::Duration;

/// Connections, at most; more are refused as bad usage.
pub const CONNS_MAX: u64 = 50_000;
/// Clients, at most; more are refused as bad usage.
pub const CLIENTS_MAX: u64 = 1 << 20;
/// Threads, at most; more are refused as bad usage.
pub const THREADS_MAX: u64 = 64;
/// Requests, at most; more are refused as bad usage. Stream ids end at 2^30 calls a connection.
pub const TOTAL_MAX: u64 = 1 << 40;
/// Requests a second, at most; more are refused as bad usage.
pub const RATE_MAX: u64 = 1_000_000_000;
/// Key size, at most, in bytes; larger is refused as bad usage.
pub const KEY_BYTES_MAX: u64 = 1 << 20;
/// Value size, at most, in bytes; larger is refused as bad usage.
pub const VALUE_BYTES_MAX: u64 = 1 << 30;
/// Endpoints and watched processes, at most; more are refused as bad usage.
pub const LIST_ITEMS_MAX: usize = 1_024;
/// Time for a TCP connection unless configured.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the whole answer to the question who leads.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one socket read; what is left stays in the socket for the next turn.
pub const READ_BYTES: usize = 128 << 10;
/// Socket reads of one connection in a turn, so that a busy one does not delay the others.
pub const READS_PER_TURN_MAX: usize = 8;
/// Bytes taken from a connection's protocol for one socket write.
pub const WRITE_BYTES: usize = 1 << 20;
/// Ready connections taken from epoll at once.
pub const EVENTS_PER_TURN: usize = 64;
/// Bytes of answers and requests held for all connections, and for one: twice the largest gRPC
/// message. A call past it fails with `ResourceExhausted`.
pub const HELD_BYTES_MAX: usize = 4 << 30;
/// Different error texts that are kept; further ones are counted as [`OTHER_ERRORS`].
pub const ERROR_TEXTS_MAX: usize = 64;
/// Bytes of an error text that are kept.
pub const ERROR_TEXT_BYTES_MAX: usize = 512;
/// The name of errors beyond [`ERROR_TEXTS_MAX`].
pub const OTHER_ERRORS: &str = "other errors";
/// Longest latency told apart, in nanoseconds (an hour); longer ones count as this in percentiles.
pub const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Significant decimal digits of percentiles.
pub const LATENCY_DIGITS: u8 = 3;
/// Seconds of `--sample` that are kept, a week; later requests are missing in the series.
pub const SAMPLE_SECONDS_MAX: usize = 604_800;
/// Keys of a page of `range --paginate`, as kube-apiserver's watch cache asks for.
pub const PAGE_KEYS: i64 = 10_000;
/// Time to wait for the events of the last put; then the run fails.
pub const EVENT_PATIENCE: Duration = Duration::from_secs(60);
/// Watch streams, and watchers of one stream, at most; more are refused as bad usage.
pub const WATCHERS_MAX: u64 = 1 << 20;
/// Time between two looks at the connections' deadlines, in nanoseconds.
pub const TICK_NS: u64 = 1_000_000_000;
/// Time between two drawings of the progress bar.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
