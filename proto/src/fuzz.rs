//! One entry for each parser that reads bytes from the network: any input, no panic, bounded
//! memory.
//!
//! Called by fuzz targets and by the corpus test with arbitrary bytes. Entries never look at
//! results except to check that bounds hold. The corpus lies in `corpus/<name>/`.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::decode::{decode, with_decoded};
use crate::grpc::{
    CallOptions, Client, ClientConfig, MethodId, Routes, Server, ServerConfig, ServerEvent,
    decode_base64, decode_message, encode_message, parse_timeout_ms,
};
use crate::h2::Budget;
use crate::hpack::{Decoder, Field, FieldSink};
use crate::pb::etcdserverpb as pb;
use crate::{http1, limits, tls};

/// A corpus' name and what it is fed to.
pub type Entry = (&'static str, fn(&[u8]));

/// Every entry by the name of its corpus.
pub const ENTRIES: [Entry; 9] = [
    ("hpack", fuzz_hpack),
    ("h2_server", fuzz_h2_server),
    ("h2_client", fuzz_h2_client),
    ("grpc_messages", fuzz_grpc_messages),
    ("http1_server", fuzz_http1_server),
    ("http1_client", fuzz_http1_client),
    ("text", fuzz_text),
    ("requests", fuzz_requests),
    ("certificates", fuzz_certificates),
];

/// Certificates and revocation lists, as they are and as somebody else's hello.
pub fn fuzz_certificates(input: &[u8]) {
    if let Some(facts) = tls::x509::Facts::parse(input) {
        let held = facts.serial.len() + facts.dns_names.iter().map(String::len).sum::<usize>();
        // A name's wrong bytes may become three each.
        assert!(held <= 3 * input.len(), "{held}");
    }
    if let Some(serials) = tls::x509::revoked(input) {
        assert!(serials.len() <= input.len());
    }
    tls::fuzz_hello(input);
}

/// A request, alone and in an entry: accepted by both or by neither.
pub fn fuzz_requests(input: &[u8]) {
    let (&kind, message) = input.split_first().unwrap_or((&0, &[]));
    let message = Bytes::copy_from_slice(message);
    let within = limits::DECODE_DEPTH - 1;
    let (field, alone) = match kind % 4 {
        0 => (4, decode::<pb::PutRequest>(message.clone()).map(|put| put.encode_to_vec())),
        1 => (10, decode::<pb::AlarmRequest>(message.clone()).map(|alarm| alarm.encode_to_vec())),
        2 => {
            let user = decode::<pb::AuthUserAddRequest>(message.clone());
            (1100, user.map(|user| user.encode_to_vec()))
        }
        _ => {
            let accept = |txn: Result<pb::TxnRequest, _>| txn.map(|txn| txn.encode_to_vec());
            (6, with_decoded(message.clone(), within, accept))
        }
    };
    let mut entry = Vec::new();
    prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, &mut entry);
    prost::encoding::encode_varint(message.len() as u64, &mut entry);
    entry.extend_from_slice(&message);
    let applied = with_decoded(
        entry.into(),
        limits::DECODE_DEPTH,
        |request: Result<pb::InternalRaftRequest, _>| {
            request.map(|request| match kind % 4 {
                0 => request.put.map(|put| put.encode_to_vec()),
                1 => request.alarm.map(|alarm| alarm.encode_to_vec()),
                2 => request.auth_user_add.map(|user| user.encode_to_vec()),
                _ => request.txn.map(|txn| txn.encode_to_vec()),
            })
        },
    );
    assert_eq!(applied, alone.map(Some));
}

struct Ignore;

impl FieldSink for Ignore {
    fn classify(&mut self, _name: &[u8], value: &[u8]) -> u32 {
        value.len() as u32
    }

    fn field(&mut self, mut field: Field<'_>) {
        assert_eq!(field.tag, field.value.len() as u32);
        assert_eq!(field.shared_value().len(), field.value.len());
    }
}

/// Header blocks, each behind a byte of length, through one decoder.
pub fn fuzz_hpack(input: &[u8]) {
    let mut decoder = Decoder::new(limits::HEADER_TABLE_BYTES as usize, &mut Ignore);
    let mut rest = input;
    while let Some((&length, tail)) = rest.split_first() {
        let (block, tail) = tail.split_at(tail.len().min(usize::from(length)));
        rest = tail;
        if decoder.decode(block, &mut Ignore).is_err() {
            return;
        }
        assert!(decoder.table_bytes() <= limits::HEADER_TABLE_BYTES as usize);
    }
}

/// The first byte chooses how reads are cut.
fn cuts(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (first, rest) = input.split_first().unwrap_or((&0, &[]));
    rest.chunks(usize::from(*first) * 8 + 1)
}

/// What a connection that nobody reads from may queue for small inputs, in bytes.
const UNSENT_BYTES_MAX: usize = 4 << 20;

fn server(plain_http: bool) -> (Server, Budget) {
    let methods = [("/a.B/Unary", MethodId(0), false), ("/a.B/Stream", MethodId(1), true)];
    // The two paths are well-formed and differ.
    let routes = Routes::new(methods).unwrap_or_default();
    let budget = Budget::new(8 << 20, 8 << 20);
    let config =
        ServerConfig { plain_http, message_bytes_max: 64 << 10, ..ServerConfig::default() };
    (Server::new(config, Arc::new(routes), &budget), budget)
}

fn serve(server: &mut Server, bytes: &[u8], now_ms: u64) -> bool {
    let alive = server.receive(bytes, now_ms).is_ok();
    while let Some(event) = server.next_event() {
        // A send error means that the input closed the stream.
        let _ = match event {
            ServerEvent::Unary { stream, message, .. } => server.reply_unary(stream, &message),
            ServerEvent::StreamMessage { stream, message, .. } => {
                server.send_message(stream, &message).map(|_| ())
            }
            ServerEvent::StreamHalfClosed { stream } => {
                server.finish(stream, crate::grpc::Code::Ok, "")
            }
            ServerEvent::HttpOpened { stream, .. } => server.http_response(stream, 200, &[], true),
            ServerEvent::HttpData { stream, data, .. } => {
                server.http_consumed(stream, data.len());
                Ok(())
            }
            _ => Ok(()),
        };
    }
    assert!(server.unsent_bytes() < UNSENT_BYTES_MAX, "{}", server.unsent_bytes());
    alive && server.tick(now_ms + 1).is_ok()
}

/// A client's side of a connection, without its preface.
pub fn fuzz_h2_server(input: &[u8]) {
    let plain_http = input.first().is_some_and(|byte| byte & 1 == 1);
    let (mut server, budget) = server(plain_http);
    let mut alive = serve(&mut server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0);
    let mut out = Vec::new();
    for (turn, piece) in (1u64..).zip(cuts(input)) {
        if !alive {
            break;
        }
        alive = serve(&mut server, piece, turn * 10);
        if turn.is_multiple_of(3) {
            out.clear();
            server.poll_transmit(&mut out, 16 << 10);
        }
    }
    assert!(budget.used() <= 8 << 20);
    drop(server);
    assert_eq!(budget.used(), 0);
}

/// A server's side of a connection, to a client with one call of each kind.
pub fn fuzz_h2_client(input: &[u8]) {
    let budget = Budget::new(8 << 20, 8 << 20);
    let mut client = Client::new(ClientConfig::default(), &budget);
    let [unary, stream] = ["/a.B/Unary", "/a.B/Stream"].map(|path| client.method(path));
    let options = CallOptions::default();
    // A fresh connection accepts two calls.
    let _ = client.start_unary(unary, &options, b"hello");
    if let Ok(call) = client.start_stream(stream, &options) {
        let _ = client.send_message(call, &[0; 100_000]);
    }
    let mut out = Vec::new();
    for (turn, piece) in (1u64..).zip(cuts(input)) {
        let alive = client.receive(piece, turn).is_ok();
        while client.next_event().is_some() {}
        assert!(client.unsent_bytes() < UNSENT_BYTES_MAX);
        if !alive {
            break;
        }
        out.clear();
        client.poll_transmit(&mut out, 16 << 10);
    }
    drop(client);
    assert_eq!(budget.used(), 0);
}

/// The body of one streaming call, and of one gzip call, of a well-behaved HTTP/2 client.
pub fn fuzz_grpc_messages(input: &[u8]) {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for gzip in [false, true] {
        let (mut server, _budget) = server(false);
        let mut wire = PREFACE.to_vec();
        let mut block = vec![0x83, 0x86, 0x04, 11];
        block.extend_from_slice(b"/a.B/Stream\x0f\x10\x10application/grpc");
        if gzip {
            block.extend_from_slice(b"\0\x0dgrpc-encoding\x04gzip");
        }
        wire.extend_from_slice(&[0, 0, block.len() as u8, 1, 4, 0, 0, 0, 1]);
        wire.extend_from_slice(&block);
        assert!(serve(&mut server, &wire, 0), "a fair request is accepted");
        for piece in cuts(input) {
            let [_, a, b, c] = (piece.len() as u32).to_be_bytes();
            let mut frame = vec![a, b, c, 0, 0, 0, 0, 0, 1];
            frame.extend_from_slice(piece);
            if !serve(&mut server, &frame, 0) {
                break;
            }
        }
    }
}

/// Requests to an HTTP/1.1 server.
pub fn fuzz_http1_server(input: &[u8]) {
    let mut server = http1::Server::new(10_000);
    for piece in cuts(input) {
        server.receive(piece);
        while let Some(event) = server.next_event() {
            if event == http1::ServerEvent::End {
                server.respond_with(200, &[("a", "b")], b"body");
            }
        }
        let mut out = Vec::new();
        server.poll_transmit(&mut out, usize::MAX);
        assert!(out.len() < 1 << 20);
        if server.is_done() {
            return;
        }
    }
}

/// Responses to an HTTP/1.1 client.
pub fn fuzz_http1_client(input: &[u8]) {
    let mut client = http1::Client::new();
    client.request("GET", "/", &[("host", "h")], None);
    for piece in cuts(input) {
        if client.receive(piece).is_err() {
            return;
        }
        while client.next_event().is_some() {}
        if client.is_reusable() {
            client.request("HEAD", "/", &[("host", "h")], None);
        }
    }
    // The end within a response is an error, which is what the caller wants to hear.
    let _ = client.closed();
}

/// Percent-encoding, time-outs and base64.
pub fn fuzz_text(input: &[u8]) {
    let decoded = decode_message(input);
    assert_eq!(decode_message(encode_message(&decoded).as_bytes()), decoded);
    if let Ok(timeout_ms) = parse_timeout_ms(input) {
        let mut out = [0; 9];
        let length = crate::grpc::encode_timeout_ms(timeout_ms, &mut out);
        assert!(
            parse_timeout_ms(&out[..length]).is_ok_and(|again| again >= timeout_ms.min(1 << 43))
        );
    }
    if let Some(bytes) = decode_base64(input) {
        let again = crate::grpc::encode_base64(&bytes);
        assert_eq!(decode_base64(again.as_bytes()), Some(bytes));
    }
}
