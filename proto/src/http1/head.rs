//! Request and response heads. Parsed by httparse, then judged here; used by both sides.

use super::body::{Body, Chunk};
use crate::grpc::Metadata;
use crate::limits;

/// A request's head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// The method, as sent.
    pub method: String,
    /// The target, as sent: a path and query as a rule.
    pub target: String,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub minor_version: u8,
    /// The fields; names in lower case.
    pub fields: Metadata,
}

/// A response's head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub minor_version: u8,
    /// The fields; names in lower case.
    pub fields: Metadata,
}

/// What a head says about its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Framing {
    /// `None` if the head names no body.
    pub(super) body: Option<Body>,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
}

/// Why a head is refused, as the status a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadError {
    Malformed,
    TooLarge,
    Version,
    TransferEncoding,
}

impl HeadError {
    pub(super) fn status(self) -> u16 {
        match self {
            HeadError::Malformed => 400,
            HeadError::TooLarge => 431,
            HeadError::Version => 505,
            HeadError::TransferEncoding => 501,
        }
    }
}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::TooManyHeaders => HeadError::TooLarge,
            httparse::Error::Version => HeadError::Version,
            _ => HeadError::Malformed,
        }
    }
}

/// Looks for the end of a head in `input`, of which `scanned` bytes were looked at before.
pub(super) fn head_length(input: &[u8], scanned: &mut usize) -> Result<Option<usize>, HeadError> {
    // An end may straddle the part that was scanned.
    let start = scanned.saturating_sub(3);
    let tail = &input[start..];
    let end = tail.iter().enumerate().find_map(|(index, byte)| match (byte, &tail[index..]) {
        (b'\n', [_, b'\n', ..]) => Some(index + 2),
        (b'\n', [_, b'\r', b'\n', ..]) => Some(index + 3),
        _ => None,
    });
    *scanned = input.len();
    let length = end.map(|end| start + end);
    if length.unwrap_or(input.len()) > limits::HTTP1_HEAD_BYTES_MAX {
        return Err(HeadError::TooLarge);
    }
    Ok(length)
}

/// Parses a whole request head.
pub(super) fn parse_request(bytes: &[u8]) -> Result<(RequestHead, Framing), HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; limits::HTTP1_FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    if request.parse(bytes)?.is_partial() {
        return Err(HeadError::Malformed);
    }
    let minor_version = request.version.unwrap_or(1);
    let (fields, framing) = judge(request.headers, minor_version)?;
    let has_host = fields.iter().filter(|(name, _)| *name == b"host").count();
    if has_host > 1 || (has_host == 0 && minor_version == 1) {
        return Err(HeadError::Malformed);
    }
    let head = RequestHead {
        method: request.method.unwrap_or_default().to_owned(),
        target: request.path.unwrap_or_default().to_owned(),
        minor_version,
        fields,
    };
    Ok((head, framing))
}

/// Parses a whole response head.
pub(super) fn parse_response(bytes: &[u8]) -> Result<(ResponseHead, Framing), HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; limits::HTTP1_FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    if response.parse(bytes)?.is_partial() {
        return Err(HeadError::Malformed);
    }
    let minor_version = response.version.unwrap_or(1);
    let (fields, framing) = judge(response.headers, minor_version)?;
    let status = response.code.unwrap_or(0);
    Ok((ResponseHead { status, minor_version, fields }, framing))
}

/// Reads the fields that say where the message ends.
fn judge(
    headers: &[httparse::Header<'_>],
    minor_version: u8,
) -> Result<(Metadata, Framing), HeadError> {
    let mut fields = Metadata::new();
    let mut length: Option<u64> = None;
    let mut chunked = false;
    let mut keep_alive = minor_version == 1;
    let mut expects_continue = false;
    for header in headers {
        let name = header.name.to_ascii_lowercase();
        match name.as_str() {
            "content-length" => {
                let value = parse_length(header.value).ok_or(HeadError::Malformed)?;
                if length.replace(value).is_some_and(|earlier| earlier != value) {
                    return Err(HeadError::Malformed);
                }
            }
            "transfer-encoding" => {
                if chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadError::TransferEncoding);
                }
                chunked = true;
            }
            "connection" => {
                for option in header.value.split(|byte| *byte == b',') {
                    let option = option.trim_ascii();
                    if option.eq_ignore_ascii_case(b"close") {
                        keep_alive = false;
                    } else if minor_version == 0 && option.eq_ignore_ascii_case(b"keep-alive") {
                        keep_alive = true;
                    }
                }
            }
            "expect" => {
                expects_continue =
                    minor_version == 1 && header.value.eq_ignore_ascii_case(b"100-continue");
            }
            _ => {}
        }
        fields.push(name.as_bytes(), header.value);
    }
    if chunked && (length.is_some() || minor_version == 0) {
        return Err(HeadError::Malformed);
    }
    let body = match (chunked, length) {
        (true, _) => Some(Body::Chunked(Chunk::START)),
        (false, Some(0)) => Some(Body::Done),
        (false, Some(length)) => Some(Body::Length(length)),
        (false, None) => None,
    };
    Ok((fields, Framing { body, keep_alive, expects_continue }))
}

fn parse_length(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}
