//! Requests of HTTP/1.1, one behind the other, right and wrong.
//!
//! Used by the generator. They must ask for plain pages only.

use etcore_engine::testing::prng::Prng;

use super::Manner;

/// Requests of HTTP/1.1, one behind the other.
pub(super) fn requests(prng: &mut Prng, manner: Manner) -> Vec<u8> {
    const TARGETS: [&str; 9] = [
        "/health",
        "/version",
        "/metrics",
        "/readyz",
        "/livez?verbose",
        "/nothing",
        "/health?serializable=%74rue&exclude=%",
        "//",
        "*",
    ];
    let mut text = Vec::new();
    let count = if prng.chance(1, 3) { 1 + prng.index(manner.crowd / 10) } else { 1 };
    for _ in 0..count {
        let method = ["GET", "GET", "GET", "HEAD", "POST", "PUT", "get", ""][prng.index(8)];
        let target = TARGETS[prng.index(TARGETS.len())];
        let version = if prng.chance(1, 12) { "HTTP/1.0" } else { "HTTP/1.1" };
        text.extend(format!("{method} {target} {version}\r\nHost: x\r\n").into_bytes());
        match prng.below(12) {
            0 => text.extend(b"Content-Length: 5\r\n\r\nhello"),
            1 => text.extend(b"Content-Length: 99999999999\r\n\r\nhello"),
            2 => text.extend(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            3 => text.extend(b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"),
            4 => {
                text.extend(b"X-Long: ");
                text.extend(vec![b'x'; prng.index(manner.field_bytes)]);
                text.extend(b"\r\n\r\n");
            }
            5 => text.extend(b"Connection: close\r\n\r\n"),
            6 => text.extend(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"),
            7 => text.extend(b"broken\r\n\r\n"),
            8 => text.extend("A: b\r\n".repeat(200).into_bytes()),
            _ => text.extend(b"\r\n"),
        }
    }
    text
}
