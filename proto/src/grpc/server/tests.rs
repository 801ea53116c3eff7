//! Tests of the server against hand-made frames: bodies in odd pieces, budgets, plain HTTP.

use super::*;
use crate::grpc::Code;
use crate::h2::{ErrorCode, Flood};
use crate::hpack::{Decoder, Field, FieldSink};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let mut out = vec![a, b, c, kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// `POST /t.S/Unary` over http with gRPC's content type.
fn head(stream: u32) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, 10];
    block.extend_from_slice(b"/t.S/Unary\x0f\x10\x10application/grpc");
    frame(HEADERS, END_HEADERS, stream, &block)
}

fn message(length: usize) -> Vec<u8> {
    let mut out = vec![0];
    out.extend((length as u32).to_be_bytes());
    out.resize(5 + length, b'm');
    out
}

fn server(budget: &Budget, plain_http: bool) -> Server {
    let routes = Routes::new([("/t.S/Unary", MethodId(3), false)]).unwrap();
    let config = ServerConfig { plain_http, ..ServerConfig::default() };
    let mut server = Server::new(config, Arc::new(routes), budget);
    server.receive(PREFACE, 0).unwrap();
    server.poll_transmit(&mut Vec::new(), usize::MAX);
    server
}

fn transmitted(server: &mut Server) -> Vec<u8> {
    let mut out = Vec::new();
    server.poll_transmit(&mut out, usize::MAX);
    out
}

fn contains(wire: &[u8], part: &[u8]) -> bool {
    wire.windows(part.len()).any(|window| window == part)
}

/// The header fields of everything transmitted, from the connection's beginning.
#[derive(Default)]
struct Fields(Vec<(String, String)>);

impl FieldSink for Fields {
    fn classify(&mut self, _name: &[u8], _value: &[u8]) -> u32 {
        0
    }

    fn field(&mut self, field: Field<'_>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.0.push((text(field.name), text(field.value)));
    }
}

fn fields(mut wire: &[u8]) -> Vec<(String, String)> {
    let mut fields = Fields::default();
    let mut decoder = Decoder::new(4096, &mut fields);
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = wire {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (payload, rest) = rest.split_at(length);
        if *kind == HEADERS {
            decoder.decode(payload, &mut fields).unwrap();
        }
        wire = rest;
    }
    fields.0
}

fn has(fields: &[(String, String)], name: &str, value: &str) -> bool {
    fields.iter().any(|field| (field.0.as_str(), field.1.as_str()) == (name, value))
}

#[test]
fn binary_metadata_that_is_no_base64_is_refused_in_gos_words() {
    let mut server = server(&Budget::default(), false);
    let mut block = vec![0x83, 0x86, 0x04, 10];
    block.extend_from_slice(b"/t.S/Unary\x0f\x10\x10application/grpc\x10\x05a-bin\x04ab!c");
    server.receive(&frame(HEADERS, END_HEADERS, 1, &block), 0).unwrap();
    let text = "malformed binary metadata \"ab!c\" in header \"a-bin\": illegal base64 data at \
                input byte 2";
    let fields = fields(&transmitted(&mut server));
    assert!(has(&fields, "grpc-status", "13") && has(&fields, "grpc-message", text), "{fields:?}");
}

#[test]
fn a_body_in_one_byte_frames_is_assembled() {
    let mut server = server(&Budget::default(), false);
    server.receive(&head(1), 0).unwrap();
    let body = message(20_000);
    for (index, byte) in body.iter().enumerate() {
        let flags = if index + 1 == body.len() { END_STREAM } else { 0 };
        // Slowly, as somebody who types.
        server.receive(&frame(DATA, flags, 1, &[*byte]), index as u64).unwrap();
    }
    match server.next_event() {
        Some(ServerEvent::Unary { method: MethodId(3), message, .. }) => {
            assert_eq!(message[..], body[5..]);
        }
        event => panic!("{event:?}"),
    }
}

#[test]
fn messages_in_tiny_pieces_are_a_flood_beyond_what_whole_ones_pay_for() {
    let mut server = server(&Budget::default(), false);
    let body = message(20_000);
    let mut pieces = 0;
    let error = (0..).find_map(|call: u32| {
        let stream = call * 2 + 1;
        server.receive(&head(stream), 0).unwrap();
        body.iter().take(1_000).find_map(|byte| {
            pieces += 1;
            server.receive(&frame(DATA, 0, stream, &[*byte]), 0).err()
        })
    });
    assert_eq!(error, Some(ConnError::Flood(Flood::Fragments)));
    assert_eq!(pieces, limits::FRAGMENTS.0 + 1);
    assert!(contains(&transmitted(&mut server), &ErrorCode::ENHANCE_YOUR_CALM.0.to_be_bytes()));
}

/// Each shape is repeated far more often than the burst allows, at one moment.
#[test]
fn no_shape_of_an_honest_request_is_a_flood() {
    let whole = |length: usize| vec![message(length)];
    let prefix_first = |length: usize| vec![message(length)[..5].to_vec(), vec![b'm'; length]];
    // What fits a window, a remnant, and the next window.
    let at_a_border = |length: usize| {
        let (first, rest) = (length * 3 / 4, length - length * 3 / 4 - 3);
        vec![message(length)[..5 + first].to_vec(), vec![b'm'; 3], vec![b'm'; rest]]
    };
    let by_twelve = |length: usize| {
        message(length).chunks(length.div_ceil(12) + 1).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let shapes: [(&str, Vec<Vec<u8>>); 7] = [
        ("a small message", whole(10)),
        ("an empty message", whole(0)),
        ("a message behind its prefix", prefix_first(10)),
        ("a message with a remnant", at_a_border(1_000)),
        ("a large message with a remnant", at_a_border(12_000)),
        ("a small message in a dozen pieces", by_twelve(100)),
        ("a large message in a dozen pieces", by_twelve(12_000)),
    ];
    for (what, pieces) in shapes {
        for ends_apart in [false, true] {
            let mut server = server(&Budget::default(), false);
            for call in 0..3 * limits::FRAGMENTS.0 {
                let stream = call * 2 + 1;
                let mut wire = head(stream);
                for (number, piece) in pieces.iter().enumerate() {
                    let is_last = number + 1 == pieces.len() && !ends_apart;
                    wire.extend(frame(DATA, u8::from(is_last) * END_STREAM, stream, piece));
                }
                if ends_apart {
                    wire.extend(frame(DATA, END_STREAM, stream, b""));
                }
                let outcome = server.receive(&wire, 0);
                assert_eq!(outcome, Ok(()), "{what}, call {call}");
                let Some(ServerEvent::Unary { stream, .. }) = server.next_event() else {
                    panic!("{what}, call {call}");
                };
                server.reply_error(stream, Code::Unknown, "done").unwrap();
                transmitted(&mut server);
            }
        }
    }
}

#[test]
fn partial_messages_are_bounded_by_the_budget_and_refused_beyond() {
    let budget = Budget::new(1 << 20, 1 << 20);
    let mut server = server(&budget, false);
    let started = message(16_000);
    for number in 0..1_000u32 {
        let stream = number * 2 + 1;
        server.receive(&head(stream), 0).unwrap();
        server.receive(&frame(DATA, 0, stream, &started[..6]), 0).unwrap();
        assert!(budget.used() <= 1 << 20);
    }
    assert!(server.open_streams() < 100, "{} streams", server.open_streams());
    let refused = frame(3, 0, 1_999, &7u32.to_be_bytes());
    assert!(contains(&transmitted(&mut server), &refused), "REFUSED_STREAM");
    assert_eq!(server.next_event(), None);
    drop(server);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_large_message_waits_its_turn_and_is_refused_when_it_waits_too_long() {
    let budget = Budget::new(512 << 10, 512 << 10);
    let mut server = server(&budget, false);
    let body = message(200_000);
    for stream in [1, 3] {
        server.receive(&head(stream), 0).unwrap();
        server.receive(&frame(DATA, 0, stream, &body[..10_000]), 0).unwrap();
    }
    let wire = transmitted(&mut server);
    assert!(contains(&wire, &[8, 0, 0, 0, 0, 1]), "the first stream's window opens");
    assert!(!contains(&wire, &[8, 0, 0, 0, 0, 3]), "the second one's does not");
    assert_eq!(server.next_deadline_ms(), Some(limits::ADMISSION_RETRY_MS));
    server.tick(limits::ADMISSION_WAIT_MS_MAX - 1).unwrap();
    assert_eq!(server.open_streams(), 2);
    server.tick(limits::ADMISSION_WAIT_MS_MAX).unwrap();
    assert_eq!(server.open_streams(), 1);
    assert!(contains(&transmitted(&mut server), &frame(3, 0, 3, &7u32.to_be_bytes())));
    // The first one completes, and its bytes are free again.
    for piece in body[10_000..].chunks(16_000) {
        server.receive(&frame(DATA, 0, 1, piece), 20_000).unwrap();
    }
    server.receive(&frame(DATA, END_STREAM, 1, &[]), 20_000).unwrap();
    assert!(matches!(server.next_event(), Some(ServerEvent::Unary { .. })));
    assert!(budget.used() < 200_000);
}

#[test]
fn a_waiting_message_is_admitted_when_another_ends() {
    let budget = Budget::new(512 << 10, 512 << 10);
    let mut server = server(&budget, false);
    let body = message(200_000);
    for stream in [1, 3] {
        server.receive(&head(stream), 0).unwrap();
        server.receive(&frame(DATA, 0, stream, &body[..10_000]), 0).unwrap();
    }
    transmitted(&mut server);
    server.receive(&frame(3, 0, 1, &8u32.to_be_bytes()), 5).unwrap();
    assert!(contains(&transmitted(&mut server), &[8, 0, 0, 0, 0, 3]), "its window opens");
}

/// Takes what the server sends, acknowledges its SETTINGS, and adds up the windows that it opens.
fn answered(server: &mut Server, windows: &mut std::collections::BTreeMap<u32, i64>, now_ms: u64) {
    let wire = transmitted(server);
    let mut rest = &wire[..];
    while let Some((head, tail)) = rest.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (payload, tail) = tail.split_at(length);
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        match (head[3], head[4]) {
            (SETTINGS, 0) => {
                let value = i64::from(u32::from_be_bytes(payload[2..6].try_into().unwrap()));
                if payload[..2] == [0, 4] {
                    let before = windows.insert(u32::MAX, value).unwrap();
                    let streams = windows.range_mut(1..u32::MAX);
                    streams.for_each(|(_, window)| *window += value - before);
                }
                server.receive(&frame(SETTINGS, 1, 0, &[]), now_ms).unwrap();
            }
            (WINDOW_UPDATE, _) => {
                let more = u32::from_be_bytes(payload.try_into().unwrap());
                *windows.entry(stream).or_default() += i64::from(more);
            }
            (RST_STREAM, _) => assert_eq!(payload, [0; 4], "stream {stream} was reset"),
            _ => {}
        }
        rest = tail;
    }
}

#[test]
fn more_large_messages_at_once_than_there_is_room_for_wait_with_their_client() {
    const CALLS: usize = 1_000;
    const BYTES: usize = 60_000;
    let budget = Budget::new(16 << 20, 16 << 20);
    let mut server = server(&budget, false);
    // 0 is the connection, MAX the initial window of streams.
    let mut windows = [(0, 65_535), (u32::MAX, 65_535)].into();
    answered(&mut server, &mut windows, 0);
    windows.insert(0, i64::from(limits::CONNECTION_WINDOW_BYTES));
    server.receive(&frame(SETTINGS, 1, 0, &[]), 0).unwrap();
    let body = message(BYTES);
    let mut left = [(); CALLS].map(|()| body.len());
    for call in 0..CALLS {
        let stream = call as u32 * 2 + 1;
        server.receive(&head(stream), 0).unwrap();
        windows.insert(stream, windows[&u32::MAX]);
    }
    let (mut served, mut peak, mut now_ms) = (0, 0, 0);
    while served < CALLS {
        let before = left;
        // A frame of each stream in turn, as far as the windows go.
        for (stream, left) in (1..).step_by(2).zip(&mut left) {
            let window = windows[&stream].min(windows[&0]).max(0) as usize;
            let count = (*left).min(16_384).min(window);
            if count == 0 {
                continue;
            }
            let start = body.len() - *left;
            *left -= count;
            for of in [0, stream] {
                *windows.get_mut(&of).unwrap() -= count as i64;
            }
            let end = if *left == 0 { END_STREAM } else { 0 };
            let piece = &body[start..start + count];
            server.receive(&frame(DATA, end, stream, piece), now_ms).unwrap();
            peak = peak.max(budget.used());
            answered(&mut server, &mut windows, now_ms);
            while let Some(event) = server.next_event() {
                let ServerEvent::Unary { stream, message, .. } = event else { panic!("{event:?}") };
                assert_eq!(message.len(), BYTES);
                server.reply_unary(stream, b"").unwrap();
                served += 1;
            }
        }
        now_ms += limits::ADMISSION_WAIT_MS_MAX / 2;
        server.tick(now_ms).unwrap();
        answered(&mut server, &mut windows, now_ms);
        assert!(served == CALLS || left != before, "{served} served, and nothing moves");
    }
    assert!(peak < 14 << 20, "{peak} bytes");
    assert_eq!(windows[&u32::MAX], 65_535, "the windows are open again");
    drop(server);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_unary_call_is_answered_at_its_first_message_and_a_second_is_ignored() {
    let mut server = server(&Budget::default(), false);
    server.receive(&head(1), 0).unwrap();
    let mut body = message(10);
    body.extend(message(20));
    server.receive(&frame(DATA, 0, 1, &body), 0).unwrap();
    let Some(ServerEvent::Unary { stream, message: first, .. }) = server.next_event() else {
        panic!("it has come");
    };
    assert_eq!(first.len(), 10);
    for _ in 0..100 {
        // Windows open, whatever else comes.
        server.receive(&frame(DATA, 0, 1, &message(16_000)), 0).unwrap();
        assert_eq!(server.next_event(), None);
    }
    server.reply_unary(stream, b"done").unwrap();
    let wire = transmitted(&mut server);
    assert!(contains(&wire, b"done"));
    assert!(wire.ends_with(&frame(RST_STREAM, 0, 1, &[0; 4])), "NO_ERROR: the rest is not wanted");
}

#[test]
fn of_metadata_only_what_is_asked_for_is_kept_and_that_is_charged() {
    let budget = Budget::new(64 << 20, 16 << 20);
    let mut server = server(&budget, false);
    let field = |name: &[u8], value: u8| {
        let mut block = vec![0x40, name.len() as u8];
        block.extend_from_slice(name);
        // A value of 4,000 bytes less the name's, which fills the table.
        block.extend([0x7f, 0xa1, 0x1e]);
        block.extend(vec![value; 4_000]);
        block
    };
    let unary = head(1);
    let block = |more: &[u8]| [&unary[9..], more].concat();
    // Names of a table's entry, a byte each.
    let mut heads = Vec::new();
    heads.push(block(&field(b"extra", b'x')));
    for _ in 0..10_000 {
        heads.push(block(&[0xbe; 60]));
    }
    let mut stream = 1;
    for block in &heads {
        server.receive(&frame(HEADERS, END_HEADERS, stream, block), 0).unwrap();
        stream += 2;
    }
    assert_eq!(server.open_streams(), heads.len());
    assert!(budget.used() < 6 << 20, "what nobody asks for: {}", budget.used());
    // A token each.
    let token = block(&field(b"token", b't'));
    server.receive(&frame(HEADERS, END_HEADERS, stream, &token), 0).unwrap();
    for _ in 0..10_000 {
        stream += 2;
        server.receive(&frame(HEADERS, END_HEADERS, stream, &block(&[0xbe])), 0).unwrap();
    }
    let opened = server.open_streams() - heads.len();
    assert!((2_000..4_000).contains(&opened), "{opened} tokens of 4 KB in 12 MB");
    drop(server);
    assert_eq!(budget.used(), 0);
}

#[test]
fn inflated_messages_are_charged_and_wait_for_room() {
    let budget = Budget::new(64 << 20, 8 << 20);
    let mut server = server(&budget, false);
    let deflated = super::super::gzip::deflate(&vec![7; 1_000_000]);
    let mut body = vec![1];
    body.extend((deflated.len() as u32).to_be_bytes());
    body.extend(&deflated);
    let mut block = head(1)[9..].to_vec();
    block.extend(b"\0\x0dgrpc-encoding\x04gzip");
    for call in 0..100 {
        let stream = call * 2 + 1;
        server.receive(&frame(HEADERS, END_HEADERS, stream, &block), 0).unwrap();
        server.receive(&frame(DATA, 0, stream, &body), 0).unwrap();
    }
    let mut served = 0;
    let mut held = Vec::new();
    loop {
        while let Some(event) = server.next_event() {
            let ServerEvent::Unary { stream, message, .. } = event else { panic!("{event:?}") };
            assert_eq!(message.len(), 1_000_000);
            held.push((stream, message));
        }
        assert!(held.len() <= 8, "{} at once", held.len());
        assert!(budget.used() <= 8 << 20);
        let Some((stream, _)) = held.pop() else { break };
        server.reply_unary(stream, b"").unwrap();
        served += 1;
    }
    assert_eq!(served, 100);
}

#[test]
fn every_call_ends_at_its_deadline() {
    let routes =
        Routes::new([("/t.S/Unary", MethodId(3), false), ("/t.S/Watch", MethodId(4), true)]);
    let config = ServerConfig::default();
    let mut server = Server::new(config, Arc::new(routes.unwrap()), &Budget::default());
    server.receive(PREFACE, 0).unwrap();
    let timed = |path: &[u8], stream| {
        let mut block = vec![0x83, 0x86, 0x04, 10];
        block.extend_from_slice(path);
        block.extend(b"\x0f\x10\x10application/grpc\0\x0cgrpc-timeout\x021S");
        frame(HEADERS, END_HEADERS, stream, &block)
    };
    // A message that never comes, a watch, and a call that nobody answers.
    server.receive(&timed(b"/t.S/Unary", 1), 100).unwrap();
    server.receive(&timed(b"/t.S/Watch", 3), 100).unwrap();
    server.receive(&timed(b"/t.S/Unary", 5), 100).unwrap();
    server.receive(&frame(DATA, END_STREAM, 5, &message(3)), 100).unwrap();
    assert!(matches!(server.next_event(), Some(ServerEvent::StreamOpened { .. })));
    assert!(matches!(server.next_event(), Some(ServerEvent::Unary { .. })));
    assert_eq!(server.next_deadline_ms(), Some(1_100));
    server.tick(1_099).unwrap();
    assert_eq!(server.open_streams(), 3);
    transmitted(&mut server);
    server.tick(1_100).unwrap();
    let cancel = |stream| frame(RST_STREAM, 0, stream, &8u32.to_be_bytes());
    assert_eq!(transmitted(&mut server), [cancel(1), cancel(3), cancel(5)].concat());
    assert!(matches!(server.next_event(), Some(ServerEvent::Cancelled { .. })));
    assert!(matches!(server.next_event(), Some(ServerEvent::Cancelled { .. })));
    assert_eq!(server.next_event(), None, "the first was not announced");
}

#[test]
fn a_request_cut_off_or_empty_is_answered_by_trailers_alone() {
    let mut server = server(&Budget::default(), false);
    for (stream, body) in [(1, vec![]), (3, vec![0, 0, 0])] {
        server.receive(&head(stream), 0).unwrap();
        server.receive(&frame(DATA, END_STREAM, stream, &body), 0).unwrap();
        assert_eq!(server.next_event(), None);
        assert_eq!(server.open_streams(), 0);
        let wire = transmitted(&mut server);
        assert_eq!(wire[3..5], [HEADERS, END_STREAM | END_HEADERS]);
    }
}

#[test]
fn plain_http_is_handed_out_beside_grpc_when_allowed() {
    let mut server = server(&Budget::default(), true);
    // GET / over http, with an authority.
    let block = [0x82, 0x86, 0x84, 0x01, 1, b'h'];
    server.receive(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block), 0).unwrap();
    let Some(ServerEvent::HttpOpened { stream, head: fields, end_stream: true }) =
        server.next_event()
    else {
        panic!("no request");
    };
    assert_eq!(fields.get(b":path"), Some(b"/".as_slice()));
    assert_eq!(fields.get(b":authority"), Some(b"h".as_slice()));
    let fields: [(&[u8], &[u8]); 1] = [(b"content-type", b"text/plain")];
    server.http_response(stream, 200, &fields, false).unwrap();
    server.http_body(stream, b"body", true).unwrap();
    assert!(contains(&transmitted(&mut server), b"body"));
    server.receive(&head(3), 0).unwrap();
    server.receive(&frame(DATA, END_STREAM, 3, &message(3)), 0).unwrap();
    assert!(matches!(server.next_event(), Some(ServerEvent::Unary { .. })));
    assert_eq!(server.authority(), b"h");
}

#[test]
fn a_large_message_arrives_whatever_padding_its_frames_carry() {
    for (data_bytes, padding) in [(100, 255), (16_000, 3), (1_000, 0)] {
        let budget = Budget::new(16 << 20, 16 << 20);
        let mut server = server(&budget, false);
        // 0 is the connection, MAX the initial window of streams.
        let mut windows = [(0, 65_535), (u32::MAX, 65_535)].into();
        answered(&mut server, &mut windows, 0);
        windows.insert(0, i64::from(limits::CONNECTION_WINDOW_BYTES));
        server.receive(&head(1), 0).unwrap();
        windows.insert(1, windows[&u32::MAX]);
        let body = message(150_000);
        let mut left = &body[..];
        while !left.is_empty() {
            let window = windows[&1].min(windows[&0]);
            let room = usize::try_from(window).unwrap().saturating_sub(1 + padding);
            assert!(room > 0, "{padding} bytes: {} of the message are missing", left.len());
            let (some, rest) = left.split_at(left.len().min(data_bytes).min(room));
            let payload = [&[padding as u8], some, &vec![0; padding]].concat();
            server.receive(&frame(DATA, 8, 1, &payload), 0).unwrap();
            for stream in [0, 1] {
                *windows.get_mut(&stream).unwrap() -= payload.len() as i64;
            }
            answered(&mut server, &mut windows, 0);
            left = rest;
        }
        server.receive(&frame(DATA, END_STREAM, 1, &[]), 0).unwrap();
        let event = server.next_event();
        assert!(matches!(event, Some(ServerEvent::Unary { .. })), "{padding}: {event:?}");
    }
}
