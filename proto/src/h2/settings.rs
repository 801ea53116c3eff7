//! What we announce, what the peer announced, and how a connection is configured.
//!
//! Used by `h2::conn`; [`Config`] is filled by the owners of connections.

use super::{ConnError, ErrorCode, frame};
use crate::limits;

/// Our keepalive pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence after which we ping, in milliseconds.
    pub interval_ms: u64,
    /// Time for the answer, in milliseconds.
    pub timeout_ms: u64,
}

/// What pings we suffer from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingPolicy {
    /// Shortest time between two pings, in milliseconds.
    pub interval_ms_min: u64,
    /// Whether a connection without streams may ping that often; otherwise once in two hours.
    pub without_streams: bool,
}

/// How a connection behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Streams the peer may have open at once.
    pub concurrent_streams_max: u32,
    /// Receive window of a new stream, in bytes, at most 2^31 − 1.
    pub stream_window_bytes: u32,
    /// Receive window of the connection, in bytes, 65,535 at least and at most 2^31 − 1.
    pub connection_window_bytes: u32,
    /// Largest header list, in bytes.
    pub header_list_bytes_max: usize,
    /// Our keepalive, or none.
    pub keepalive: Option<Keepalive>,
    /// As a server: enforcement against clients, or none.
    pub ping_policy: Option<PingPolicy>,
    /// Time for the handshake, in milliseconds.
    pub handshake_ms_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            concurrent_streams_max: u32::MAX,
            stream_window_bytes: limits::STREAM_WINDOW_BYTES,
            connection_window_bytes: limits::CONNECTION_WINDOW_BYTES,
            header_list_bytes_max: limits::HEADER_LIST_BYTES_MAX,
            keepalive: None,
            ping_policy: None,
            handshake_ms_max: limits::HANDSHAKE_MS_MAX,
        }
    }
}

impl Config {
    /// etcd's defaults for its gRPC server: ping every two hours, 20 s for the answer, and no
    /// client ping more often than every five seconds.
    #[must_use]
    pub fn etcd_server() -> Self {
        Config {
            keepalive: Some(Keepalive { interval_ms: 7_200_000, timeout_ms: 20_000 }),
            ping_policy: Some(PingPolicy { interval_ms_min: 5_000, without_streams: false }),
            ..Config::default()
        }
    }

    /// For our own clients: windows wide enough for a fast link.
    #[must_use]
    pub fn client() -> Self {
        Config {
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 8 << 20,
            concurrent_streams_max: 0,
            ..Config::default()
        }
    }

    /// Appends our SETTINGS frame.
    pub(super) fn put(&self, is_client: bool, out: &mut Vec<u8>) {
        let mut settings = [(0u16, 0u32); 4];
        let mut count = 0;
        let mut add = |id, value| {
            settings[count] = (id, value);
            count += 1;
        };
        if is_client {
            add(ENABLE_PUSH, 0);
        } else if self.concurrent_streams_max != u32::MAX {
            add(MAX_CONCURRENT_STREAMS, self.concurrent_streams_max);
        }
        if self.stream_window_bytes != PROTOCOL_WINDOW_BYTES {
            add(INITIAL_WINDOW_SIZE, self.stream_window_bytes);
        }
        add(MAX_HEADER_LIST_SIZE, self.header_list_bytes_max as u32);
        frame::put_head(count * SETTING_BYTES, frame::SETTINGS, 0, 0, out);
        for (id, value) in &settings[..count] {
            out.extend_from_slice(&id.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

/// What the peer announced, with the standard's defaults before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerSettings {
    pub(super) header_table_bytes: u32,
    pub(super) concurrent_streams_max: u32,
    pub(super) stream_window_bytes: u32,
    pub(super) frame_bytes_max: u32,
}

impl Default for PeerSettings {
    fn default() -> Self {
        PeerSettings {
            header_table_bytes: 4_096,
            concurrent_streams_max: u32::MAX,
            stream_window_bytes: PROTOCOL_WINDOW_BYTES,
            frame_bytes_max: 16_384,
        }
    }
}

impl PeerSettings {
    /// Applies the payload of a SETTINGS frame.
    pub(super) fn apply(&mut self, payload: &[u8], from_server: bool) -> Result<(), ConnError> {
        let (settings, rest) = payload.as_chunks::<SETTING_BYTES>();
        if !rest.is_empty() {
            return Err(ConnError::frame_size("SETTINGS length is no multiple of six"));
        }
        for &[a, b, value @ ..] in settings {
            let value = u32::from_be_bytes(value);
            match u16::from_be_bytes([a, b]) {
                HEADER_TABLE_SIZE => self.header_table_bytes = value,
                ENABLE_PUSH if value > 1 || (from_server && value == 1) => {
                    return Err(ConnError::protocol("illegal ENABLE_PUSH"));
                }
                MAX_CONCURRENT_STREAMS => self.concurrent_streams_max = value,
                INITIAL_WINDOW_SIZE if value > WINDOW_BYTES_MAX => {
                    return Err(ConnError::Protocol {
                        code: ErrorCode::FLOW_CONTROL_ERROR,
                        reason: "INITIAL_WINDOW_SIZE above 2^31-1",
                    });
                }
                INITIAL_WINDOW_SIZE => self.stream_window_bytes = value,
                MAX_FRAME_SIZE if !(16_384..=0x00ff_ffff).contains(&value) => {
                    return Err(ConnError::protocol("illegal MAX_FRAME_SIZE"));
                }
                MAX_FRAME_SIZE => self.frame_bytes_max = value,
                _ => {}
            }
        }
        Ok(())
    }
}

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;
const SETTING_BYTES: usize = 6;

/// Every window before SETTINGS and WINDOW_UPDATE, in bytes.
pub(super) const PROTOCOL_WINDOW_BYTES: u32 = 65_535;
/// The largest legal window.
pub(super) const WINDOW_BYTES_MAX: u32 = 0x7fff_ffff;
