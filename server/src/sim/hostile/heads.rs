//! Heads of calls as a hostile client says them: right, odd and wrong fields, in blocks that use
//! all of HPACK, cut into frames anywhere.
//!
//! Used by the generator, which keeps one of these a connection, since a table is part of it.

use etcore_engine::testing::prng::Prng;
use etcore_proto::hpack::{Encoder, HeaderItem};

use super::frames::{CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PADDED, PRIORITY_FLAG, frame};

/// See the module text.
pub(super) struct Heads {
    encoder: Encoder,
    /// Blocks are written by the rules. A client that does not may lose track of its table.
    is_right: bool,
    /// Fields that it has entered into the table by itself.
    entered: u64,
}

/// What a head says besides the path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    pub(super) ends: bool,
    /// Its messages are compressed.
    pub(super) is_gzip: bool,
    /// Odd and wrong fields may be among them.
    pub(super) is_odd: bool,
    /// Bytes of the longest field.
    pub(super) field_bytes: usize,
}

const TIMEOUTS: [&str; 14] = [
    "1S",
    "100m",
    "50000u",
    "0n",
    "1n",
    "99999999H",
    "20M",
    "999999999S",
    "1X",
    "-1S",
    "",
    "S",
    "1 S",
    "250m",
];
const CONTENT_TYPES: [&str; 6] = [
    "application/grpc",
    "application/grpc+proto",
    "application/grpc+json",
    "application/grpc;x",
    "text/plain",
    "",
];
const NAMES: [&str; 9] =
    ["hasleader", "token", "authorization", "x-bin", "X-Upper", "connection", "te", "", ":late"];
const VALUES: [&[u8]; 7] = [b"true", b"aGVsbG8", b"!!!", b"\xff\xfe", b"a b\tc", b"", b"a\0b"];

impl Heads {
    pub(super) fn new(prng: &mut Prng) -> Self {
        let is_right = prng.chance(3, 4);
        Self { encoder: Encoder::new(4096), is_right, entered: 0 }
    }

    /// The frames of a head.
    pub(super) fn head(&mut self, prng: &mut Prng, stream: u32, path: &str, said: Said) -> Vec<u8> {
        let fields = fields(prng, path, said);
        let mut block = Vec::new();
        if self.is_right {
            let items: Vec<HeaderItem<'_>> = fields
                .iter()
                .map(|(name, value)| HeaderItem::Literal(name.as_bytes(), value))
                .collect();
            self.encoder.encode(&items, &mut block);
        } else {
            self.write_by_hand(prng, &fields, &mut block);
        }
        framed(prng, stream, &block, said.ends)
    }

    /// Literals of all forms, entries of the table and of none, sizes of the table.
    fn write_by_hand(&mut self, prng: &mut Prng, fields: &[(&str, Vec<u8>)], out: &mut Vec<u8>) {
        if prng.chance(1, 20) {
            let too_large = prng.chance(1, 50);
            let size = if too_large { 5_000 } else { [0, 100, 4_096][prng.index(3)] };
            integer(out, 0x20, 5, size);
        }
        for (name, value) in fields {
            let enters = prng.chance(1, 6);
            out.push(if enters { 0x40 } else { [0, 0x10][prng.index(2)] });
            self.entered += u64::from(enters);
            text(out, name.as_bytes());
            text(out, value);
            if prng.chance(1, 40) && self.entered > 0 {
                // The newest entry again, which may not come late in a block.
                integer(out, 0x80, 7, 62);
            }
            if prng.chance(1, 3_000) {
                integer(out, 0x80, 7, prng.below(400));
            }
        }
    }
}

fn fields<'a>(prng: &mut Prng, path: &'a str, said: Said) -> Vec<(&'a str, Vec<u8>)> {
    let mut fields: Vec<(&str, Vec<u8>)> = vec![
        (":method", b"POST".into()),
        (":scheme", b"http".into()),
        (":path", path.into()),
        (":authority", b"hostile".into()),
        ("content-type", b"application/grpc".into()),
        ("te", b"trailers".into()),
    ];
    if said.is_gzip {
        fields.push(("grpc-encoding", b"gzip".into()));
    }
    if prng.chance(1, 4) {
        fields.push(("grpc-timeout", TIMEOUTS[prng.index(TIMEOUTS.len())].into()));
    }
    if !said.is_odd {
        return fields;
    }
    match prng.below(12) {
        0 => drop(fields.remove(prng.index(fields.len()))),
        1 => fields.push(fields[prng.index(fields.len())].clone()),
        2 => fields[0].1 = [&b"GET"[..], b"PUT", b"", b"CONNECT"][prng.index(4)].to_vec(),
        3 => fields[4].1 = CONTENT_TYPES[prng.index(CONTENT_TYPES.len())].into(),
        4 => fields.push(("grpc-encoding", b"zstd".into())),
        5 => fields.push(("client-api-version", [&b"3.7"[..], b"\xff"][prng.index(2)].into())),
        6 => fields.push(("long", vec![b'l'; prng.index(said.field_bytes)])),
        7 => fields.extend((0..prng.index(200)).map(|at| ("many", vec![b'm'; at]))),
        _ => {}
    }
    for _ in 0..prng.index(3) {
        let name = NAMES[prng.index(NAMES.len())];
        fields.push((name, VALUES[prng.index(VALUES.len())].into()));
    }
    fields
}

/// A block in frames.
fn framed(prng: &mut Prng, stream: u32, block: &[u8], ends: bool) -> Vec<u8> {
    let mut flags = if ends { END_STREAM } else { 0 };
    let mut payload = Vec::new();
    let pad = if prng.chance(1, 10) { prng.index(200) } else { 0 };
    if pad > 0 {
        flags |= PADDED;
        payload.push(u8::try_from(pad).expect("a byte"));
    }
    if prng.chance(1, 10) {
        flags |= PRIORITY_FLAG;
        let on = if prng.chance(1, 10) { stream } else { 0 };
        payload.extend(on.to_be_bytes());
        payload.push(7);
    }
    let mut pieces = block.chunks(8_000);
    let cut = if prng.chance(1, 8) { prng.index(block.len()) } else { 0 };
    let mut rest = &block[..0];
    if cut > 0 {
        payload.extend(&block[..cut]);
        rest = &block[cut..];
    } else {
        payload.extend(pieces.next().unwrap_or_default());
    }
    let rest: Vec<&[u8]> = if cut > 0 { rest.chunks(8_000).collect() } else { pieces.collect() };
    payload.extend(std::iter::repeat_n(0, pad));
    if rest.is_empty() {
        flags |= END_HEADERS;
    }
    let mut out = frame(HEADERS, flags, stream, &payload);
    for (at, piece) in rest.iter().enumerate() {
        let flags = if at + 1 == rest.len() { END_HEADERS } else { 0 };
        out.extend(frame(CONTINUATION, flags, stream, piece));
    }
    out
}

/// A string without compression.
fn text(out: &mut Vec<u8>, text: &[u8]) {
    integer(out, 0, 7, text.len() as u64);
    out.extend_from_slice(text);
}

fn integer(out: &mut Vec<u8>, pattern: u8, bits: u32, value: u64) {
    let most = (1 << bits) - 1;
    if value < most {
        out.push(pattern | u8::try_from(value).expect("fits in the first byte"));
        return;
    }
    out.push(pattern | u8::try_from(most).expect("at most seven bits"));
    let mut left = value - most;
    while left >= 0x80 {
        out.push(u8::try_from(left & 0x7f).expect("seven bits") | 0x80);
        left >>= 7;
    }
    out.push(u8::try_from(left).expect("seven bits"));
}
