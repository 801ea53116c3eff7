//! How a WebSocket is opened (RFC 6455 §4, as gorilla's `Upgrader` checks it), and what its
//! handshake says of the caller (tmc's `wsproxy`).

use etcore_proto::grpc::{Metadata, decode_base64, encode_base64};
use sha1::{Digest, Sha1};

use crate::api::endpoints::HttpRequest;
use crate::http::{self, Page};
use crate::replies::{Exchange, HttpId, Replies};

/// What a server mixes into a client's key.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a client's key.
const KEY_BYTES: usize = 16;

/// Whether a request asks for one.
pub(super) fn is_asked_for(request: &HttpRequest) -> bool {
    matches!(request.id.exchange, Exchange::Http1(_))
        && has_token(&request.fields, b"connection", "upgrade")
        && has_token(&request.fields, b"upgrade", "websocket")
}

fn has_token(fields: &Metadata, name: &[u8], token: &str) -> bool {
    let values = fields.iter().filter(|(found, _)| *found == name);
    values
        .flat_map(|(_, value)| value.split(|byte| *byte == b','))
        .any(|found| found.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn text<'a>(fields: &'a Metadata, name: &[u8]) -> std::borrow::Cow<'a, str> {
    String::from_utf8_lossy(fields.get(name).unwrap_or_default())
}

/// Opens it; the fields of the request that is made of it.
///
/// # Errors
/// The page that refuses it.
pub(super) fn open(
    out: &mut dyn Replies,
    id: HttpId,
    method: &str,
    fields: &Metadata,
) -> Result<Metadata, Page> {
    if method != "GET" {
        return Err(refusal(405, "Method Not Allowed\n"));
    }
    let key = fields.get(b"sec-websocket-key").unwrap_or_default();
    let is_key = decode_base64(key).is_some_and(|key| key.len() == KEY_BYTES);
    if !has_token(fields, b"sec-websocket-version", "13") || !is_key {
        return Err(refusal(400, "Bad Request\n"));
    }
    let accept = encode_base64(&Sha1::new().chain_update(key).chain_update(GUID).finalize());
    let protocol = text(fields, b"sec-websocket-protocol");
    // A digest of 20 bytes is padded by one letter.
    out.upgrade(id, &format!("{accept}="), protocol.starts_with("Bearer"))
        .map_err(|_| refusal(400, "Bad Request\n"))?;
    let mut passed = Metadata::new();
    if let Some(token) = authorization(fields, &protocol) {
        passed.push(b"authorization", token.as_bytes());
    }
    Ok(passed)
}

/// Finds who the caller says to be: browsers can set no other fields.
fn authorization(fields: &Metadata, protocol: &str) -> Option<String> {
    let cookies = text(fields, b"cookie");
    let cookie = cookies.split(';').find_map(|cookie| cookie.trim().strip_prefix("token="));
    if let Some(token) = cookie {
        return Some(format!("Bearer {}", token.trim_matches('"')));
    }
    if protocol.is_empty() {
        return None;
    }
    let token = protocol.split_once("Bearer,").map(|(_, token)| token.trim_matches(' '));
    Some(token.map_or_else(String::new, |token| format!("Bearer {token}")))
}

fn refusal(status: u16, text: &str) -> Page {
    let headers = vec![
        ("Sec-Websocket-Version", "13".to_owned()),
        ("X-Content-Type-Options", "nosniff".to_owned()),
    ];
    Page { status, content_type: http::TEXT, headers, body: text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_name_themselves_by_protocol_or_cookie() {
        let mut fields = Metadata::new();
        assert_eq!(authorization(&fields, ""), None);
        assert_eq!(authorization(&fields, "Bearer, abc ").as_deref(), Some("Bearer abc"));
        assert_eq!(authorization(&fields, "Bearer,abc").as_deref(), Some("Bearer abc"));
        assert_eq!(authorization(&fields, "chat").as_deref(), Some(""));
        fields.push(b"cookie", b"a=b; token=xyz");
        assert_eq!(authorization(&fields, "Bearer, abc").as_deref(), Some("Bearer xyz"));
    }
}
