//! Every bound of this crate, with what happens at it.
//!
//! Called by the flags (ranges) and the measurements. Numbers that judge a host are in `advice`.

/// Most writes of one measurement; more are refused by the flag.
pub const WRITES_MAX: u32 = 1_000_000;

/// Longest file a measurement makes, in MiB; more is refused by the flag.
pub const FILE_MIB_MAX: u32 = 4096;

/// Longest single write, in bytes: the log's largest batch.
pub const WRITE_BYTES_MAX: u32 = 16 << 20;

/// Peers that are timed; more are refused by the flag.
pub const PEERS_MAX: usize = 64;

/// Connections made to one peer.
pub const CONNECTS: u32 = 20;

/// Longest wait for one connection, in milliseconds.
pub const CONNECT_TIMEOUT_MS: u64 = 2000;

/// Most bytes read of a file in /proc or /sys; the rest is ignored.
pub const SYSTEM_FILE_BYTES_MAX: u64 = 1 << 20;
