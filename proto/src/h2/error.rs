//! Error codes of HTTP/2 and the reasons for which a connection ends.
//!
//! Made by every part of `h2`; read by the owner of a connection for its log and metrics.

use crate::hpack::HpackError;

/// An HTTP/2 error code as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Graceful end.
    pub const NO_ERROR: Self = ErrorCode(0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = ErrorCode(1);
    /// We failed.
    pub const INTERNAL_ERROR: Self = ErrorCode(2);
    /// The peer sent more than its window.
    pub const FLOW_CONTROL_ERROR: Self = ErrorCode(3);
    /// SETTINGS were not acknowledged.
    pub const SETTINGS_TIMEOUT: Self = ErrorCode(4);
    /// A frame came for a closed stream.
    pub const STREAM_CLOSED: Self = ErrorCode(5);
    /// A frame's length is wrong.
    pub const FRAME_SIZE_ERROR: Self = ErrorCode(6);
    /// The stream was not processed; it may be tried again.
    pub const REFUSED_STREAM: Self = ErrorCode(7);
    /// The stream is no longer wanted.
    pub const CANCEL: Self = ErrorCode(8);
    /// Header compression lost its state.
    pub const COMPRESSION_ERROR: Self = ErrorCode(9);
    /// A CONNECT tunnel broke.
    pub const CONNECT_ERROR: Self = ErrorCode(10);
    /// The peer makes excessive load.
    pub const ENHANCE_YOUR_CALM: Self = ErrorCode(11);
    /// The transport is not secure enough.
    pub const INADEQUATE_SECURITY: Self = ErrorCode(12);
    /// HTTP/1.1 is wanted.
    pub const HTTP_1_1_REQUIRED: Self = ErrorCode(13);

    /// The standard's name, as grpc-go prints it; `None` for a code it does not define.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        NAMES.get(self.0 as usize).copied()
    }
}

/// The defence that a peer ran into; the bounds are in [`crate::limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Streams opened and reset.
    Resets,
    /// Header block fragments.
    Continuations,
    /// SETTINGS frames.
    Settings,
    /// PING frames.
    Pings,
    /// Frames without use.
    IdleFrames,
    /// Messages in tiny pieces.
    Fragments,
    /// Replies the peer does not read.
    UnreadReplies,
}

/// Why a connection ended. GOAWAY is queued already when one of these is returned, except for the
/// time-outs; the owner transmits what is left and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnError {
    /// The first bytes are not those of an HTTP/2 client.
    #[error("connection does not start with the HTTP/2 preface")]
    BadPreface,
    /// A rule of RFC 9113 was broken.
    #[error("{reason}")]
    Protocol {
        /// What the peer is told.
        code: ErrorCode,
        /// What the log is told.
        reason: &'static str,
    },
    /// A header block could not be decoded.
    #[error("header compression: {0}")]
    Compression(#[from] HpackError),
    /// The peer makes load without use.
    #[error("peer floods the connection: {0:?}")]
    Flood(Flood),
    /// The peer's keepalive pings come too fast.
    #[error("too many pings")]
    TooManyPings,
    /// Our keepalive ping was not answered in time.
    #[error("keepalive ping not acked within timeout")]
    KeepaliveTimeout,
    /// The handshake did not complete in time.
    #[error("handshake not completed in time")]
    HandshakeTimeout,
}

impl ConnError {
    pub(super) const fn protocol(reason: &'static str) -> Self {
        ConnError::Protocol { code: ErrorCode::PROTOCOL_ERROR, reason }
    }

    pub(super) const fn frame_size(reason: &'static str) -> Self {
        ConnError::Protocol { code: ErrorCode::FRAME_SIZE_ERROR, reason }
    }

    /// The code for GOAWAY.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            ConnError::BadPreface => ErrorCode::PROTOCOL_ERROR,
            ConnError::Protocol { code, .. } => *code,
            ConnError::Compression(_) => ErrorCode::COMPRESSION_ERROR,
            ConnError::Flood(_) | ConnError::TooManyPings => ErrorCode::ENHANCE_YOUR_CALM,
            ConnError::KeepaliveTimeout | ConnError::HandshakeTimeout => ErrorCode::NO_ERROR,
        }
    }
}
