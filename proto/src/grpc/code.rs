//! gRPC status codes. Used by both sides and by every service; holds no text.

use crate::h2::ErrorCode;

/// A status code with its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Code {
    /// Success.
    Ok = 0,
    /// The caller gave up.
    Canceled = 1,
    /// No better code is known.
    Unknown = 2,
    /// The arguments are wrong whatever the state.
    InvalidArgument = 3,
    /// The deadline passed.
    DeadlineExceeded = 4,
    /// Something is missing.
    NotFound = 5,
    /// Something exists already.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A limit was reached.
    ResourceExhausted = 8,
    /// The state does not allow this.
    FailedPrecondition = 9,
    /// A conflict; try again higher up.
    Aborted = 10,
    /// Past the valid range.
    OutOfRange = 11,
    /// No such method.
    Unimplemented = 12,
    /// An invariant is broken.
    Internal = 13,
    /// Try again later.
    Unavailable = 14,
    /// Data is lost or corrupt.
    DataLoss = 15,
    /// The caller is not known.
    Unauthenticated = 16,
}

impl Code {
    /// All codes in order of their numbers.
    pub const ALL: [Code; 17] = [
        Code::Ok,
        Code::Canceled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];

    /// The code with this number; numbers nobody defined are [`Code::Unknown`].
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        Code::ALL.get(number as usize).copied().unwrap_or(Code::Unknown)
    }

    /// The number in decimal, as `grpc-status` carries it.
    #[must_use]
    pub fn as_text(self) -> &'static str {
        const TEXTS: [&str; 17] = [
            "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15",
            "16",
        ];
        TEXTS[self as usize]
    }

    /// What a client makes of a stream that was reset (grpc-go's table).
    pub(super) fn from_reset(code: ErrorCode) -> Self {
        match code {
            ErrorCode::FLOW_CONTROL_ERROR | ErrorCode::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
            ErrorCode::REFUSED_STREAM => Code::Unavailable,
            ErrorCode::CANCEL => Code::Canceled,
            ErrorCode::INADEQUATE_SECURITY => Code::PermissionDenied,
            code if code.name().is_some() => Code::Internal,
            _ => Code::Unknown,
        }
    }

    /// What a client makes of a response that is no gRPC (grpc-go's table).
    pub(super) fn from_http(status: u16) -> Self {
        match status {
            400 => Code::Internal,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::Unimplemented,
            429 | 502..=504 => Code::Unavailable,
            _ => Code::Unknown,
        }
    }
}
