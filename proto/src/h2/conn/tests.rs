//! Tests of the connection: the rules that h2spec does not reach, and every defence at its bound.

use super::*;
use crate::h2::{Keepalive, PingPolicy};
use crate::hpack::{Field, HeaderItem};

/// Notes what it is told; answers nothing.
#[derive(Default)]
struct Recorder {
    opened: Vec<StreamId>,
    data: usize,
    fields: usize,
    resets: Vec<(u32, ErrorCode)>,
    goaways: Vec<u32>,
    pongs: usize,
}

impl FieldSink for Recorder {
    fn classify(&mut self, _name: &[u8], _value: &[u8]) -> u32 {
        0
    }

    fn field(&mut self, _field: Field<'_>) {
        self.fields += 1;
    }
}

impl Handler for Recorder {
    fn block_start(&mut self, _kind: BlockKind) {}

    fn headers(&mut self, _conn: &mut Conn, stream: StreamId, _headers: Headers) {
        self.opened.push(stream);
    }

    fn data(&mut self, conn: &mut Conn, stream: StreamId, data: &[u8], _end_stream: bool) {
        self.data += data.len();
        conn.release_connection(data.len() as u32);
        conn.release_stream(stream, data.len() as u32);
    }

    fn reset(&mut self, _conn: &mut Conn, stream: StreamId, code: ErrorCode, _by_peer: bool) {
        self.resets.push((stream.id(), code));
    }

    fn go_away(&mut self, last_stream: u32, _code: ErrorCode, _debug: &[u8]) {
        self.goaways.push(last_stream);
    }

    fn pong(&mut self, _payload: [u8; 8]) {
        self.pongs += 1;
    }
}

fn frame_of(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put_head(payload.len(), kind, flags, stream, &mut out);
    out.extend_from_slice(payload);
    out
}

/// `:method POST`, `:scheme http`, `:path /`.
const REQUEST: [u8; 3] = [0x83, 0x86, 0x84];
const END_BOTH: u8 = frame::END_STREAM | frame::END_HEADERS;

fn request(stream: u32, flags: u8) -> Vec<u8> {
    frame_of(frame::HEADERS, flags, stream, &REQUEST)
}

/// A server that got the preface and empty SETTINGS.
fn server_with(config: Config, budget: &Budget) -> (Conn, Recorder) {
    let mut recorder = Recorder::default();
    let mut conn = Conn::server(config, budget, &mut recorder);
    let mut hello = frame::PREFACE.to_vec();
    hello.extend(frame_of(frame::SETTINGS, 0, 0, &[]));
    conn.receive(&hello, 0, &mut recorder).unwrap();
    conn.poll_transmit(&mut Vec::new(), usize::MAX);
    (conn, recorder)
}

fn server() -> (Conn, Recorder) {
    server_with(Config::default(), &Budget::default())
}

/// Feeds `wire` until the connection fails or `rounds` are over; nothing is transmitted meanwhile
/// if
/// `unread`.
fn flood(wire: &[u8], rounds: usize, unread: bool) -> (usize, Option<ConnError>) {
    let (mut conn, mut recorder) = server();
    conn.receive(&request(1, frame::END_HEADERS), 0, &mut recorder).unwrap();
    for round in 0..rounds {
        if let Err(error) = conn.receive(wire, 0, &mut recorder) {
            return (round, Some(error));
        }
        if !unread {
            conn.poll_transmit(&mut Vec::new(), usize::MAX);
        }
        assert!(conn.unsent_bytes() < 1 << 20);
    }
    (rounds, None)
}

#[test]
fn floods_end_the_connection_at_their_bounds() {
    let ping = frame_of(frame::PING, 0, 0, &[0; 8]);
    let settings = frame_of(frame::SETTINGS, 0, 0, &[]);
    let empty = frame_of(frame::DATA, 0, 1, &[]);
    let priority = frame_of(frame::PRIORITY, 0, 9, &[0; 5]);
    let unknown = frame_of(0x77, 0, 0, &[1, 2, 3]);
    let padded = frame_of(frame::DATA, frame::PADDED, 1, &[3, 0, 0, 0]);
    let cases = [
        (&ping, limits::PINGS.0, Flood::Pings),
        (&settings, limits::SETTINGS.0 - 1, Flood::Settings),
        (&empty, limits::IDLE_FRAMES.0, Flood::IdleFrames),
        (&priority, limits::IDLE_FRAMES.0, Flood::IdleFrames),
        (&unknown, limits::IDLE_FRAMES.0, Flood::IdleFrames),
        (&padded, limits::IDLE_FRAMES.0, Flood::IdleFrames),
    ];
    for (wire, bound, reason) in cases {
        let (rounds, error) = flood(wire, 2 * bound as usize, false);
        assert_eq!(error, Some(ConnError::Flood(reason)));
        assert_eq!(rounds, bound as usize, "{reason:?}");
    }
}

#[test]
fn replies_that_nobody_reads_end_the_connection() {
    // DATA on a closed stream solicits a reset each; the peer reads none.
    let mut wire = request(3, END_BOTH);
    wire.extend(frame_of(frame::RST_STREAM, 0, 3, &[0; 4]));
    let (mut conn, mut recorder) = server();
    conn.receive(&wire, 0, &mut recorder).unwrap();
    let late = frame_of(frame::DATA, 0, 3, b"x");
    let error = (0..).find_map(|_| conn.receive(&late, 0, &mut recorder).err());
    assert!(matches!(error, Some(ConnError::Flood(_))));
    assert!(conn.unsent_bytes() < 1 << 20);
}

/// HEADERS and RST_STREAM (CANCEL) at once.
fn opened_and_reset(stream: u32) -> Vec<u8> {
    let mut wire = request(stream, END_BOTH);
    wire.extend(frame_of(frame::RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    wire
}

const OK: [HeaderItem<'static>; 1] = [HeaderItem::Literal(b":status", b"200")];

#[test]
fn rapid_resets_slow_a_connection_down_and_end_one_that_is_never_answered() {
    let (mut conn, mut recorder) = server();
    let mut slow_from = None;
    let mut count = 0;
    let error = (0u32..100_000).find_map(|number| {
        count += 1;
        let outcome = conn.receive(&opened_and_reset(odd(number)), 0, &mut recorder).err();
        if slow_from.is_none() && !conn.wants_read() {
            slow_from = Some(count);
        }
        outcome
    });
    assert_eq!(error, Some(ConnError::Flood(Flood::Resets)));
    assert_eq!(slow_from, Some(limits::RAPID_RESETS.0 + 1), "first it is not read");
    assert_eq!(count, limits::RAPID_RESETS_UNANSWERED_MAX + 1);
    // One stream that was answered and is open: never ended, but read at the rate.
    let (mut conn, mut recorder) = server();
    conn.receive(&request(1, frame::END_HEADERS), 0, &mut recorder).unwrap();
    conn.send_headers(recorder.opened[0], &OK, false).unwrap();
    let mut number = 0;
    for now_ms in 0..10_000 {
        conn.tick(now_ms).unwrap();
        while conn.wants_read() {
            number += 1;
            conn.receive(&opened_and_reset(odd(number)), now_ms, &mut recorder).unwrap();
            conn.poll_transmit(&mut Vec::new(), usize::MAX);
        }
    }
    let (burst, rate) = limits::RAPID_RESETS;
    assert!(number.abs_diff(burst + 10 * rate) < 50, "{number} in ten seconds");
}

fn odd(number: u32) -> u32 {
    number * 2 + 1
}

#[test]
fn thousands_of_calls_that_run_out_of_time_together_are_no_flood() {
    let (mut conn, mut recorder) = server();
    for number in 0..30_000 {
        conn.receive(&request(odd(number), END_BOTH), 0, &mut recorder).unwrap();
    }
    for number in 0..30_000 {
        let cancel = frame_of(frame::RST_STREAM, 0, odd(number), &8u32.to_be_bytes());
        conn.receive(&cancel, 600, &mut recorder).unwrap();
        assert!(conn.wants_read());
    }
    assert_eq!(conn.open_streams(), 0);
}

#[test]
fn cancellations_that_meet_the_answer_on_its_way_are_no_flood() {
    // A KeepAliveOnce, or a hedge that lost: a call, its answer, and a cancellation each.
    let (mut conn, mut recorder) = server();
    for number in 0..50_000 {
        let stream = odd(number);
        conn.receive(&request(stream, frame::END_HEADERS), 0, &mut recorder).unwrap();
        let name = recorder.opened.pop().unwrap();
        conn.send_headers(name, &OK, number % 2 == 0).unwrap();
        conn.poll_transmit(&mut Vec::new(), usize::MAX);
        let mut wire = frame_of(frame::WINDOW_UPDATE, 0, stream, &[0, 0, 0, 9]);
        wire.extend(frame_of(frame::DATA, frame::END_STREAM, stream, &[]));
        wire.extend(frame_of(frame::RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        conn.receive(&wire, 0, &mut recorder).unwrap();
        assert!(conn.wants_read());
    }
}

#[test]
fn answered_calls_pay_for_as_many_cancelled_ones() {
    let (mut conn, mut recorder) = server();
    for number in 0..50_000 {
        if number % 2 == 0 {
            conn.receive(&opened_and_reset(odd(number)), 0, &mut recorder).unwrap();
        } else {
            conn.receive(&request(odd(number), END_BOTH), 0, &mut recorder).unwrap();
            let name = recorder.opened.pop().unwrap();
            conn.send_headers(name, &OK, true).unwrap();
        }
        conn.poll_transmit(&mut Vec::new(), usize::MAX);
        assert!(conn.wants_read(), "call {number}");
    }
}

#[test]
fn refused_streams_make_a_connection_slower_and_do_not_end_it_while_others_are_served() {
    let config = Config { concurrent_streams_max: 1, ..Config::default() };
    let (mut conn, mut recorder) = server_with(config, &Budget::default());
    conn.receive(&request(1, frame::END_HEADERS), 0, &mut recorder).unwrap();
    conn.send_headers(recorder.opened[0], &OK, false).unwrap();
    for number in 1..20_000 {
        conn.receive(&request(odd(number), END_BOTH), 0, &mut recorder).unwrap();
        conn.poll_transmit(&mut Vec::new(), usize::MAX);
    }
    assert!(!conn.wants_read());
}

#[test]
fn a_peer_that_does_not_take_its_replies_is_not_read_before_it_is_cut_off() {
    let (mut conn, mut recorder) = server();
    let ping = frame_of(frame::PING, 0, 0, &[0; 8]);
    for _ in 0..limits::CONTROL_REPLIES_QUEUED {
        assert!(conn.wants_read());
        conn.receive(&ping, 0, &mut recorder).unwrap();
    }
    assert!(!conn.wants_read());
    conn.poll_transmit(&mut Vec::new(), usize::MAX);
    assert!(conn.wants_read());
}

#[test]
fn a_stream_is_reset_when_its_time_is_up_and_not_before() {
    let (mut conn, mut recorder) = server();
    for number in 0..1_000 {
        conn.receive(&request(odd(number), frame::END_HEADERS), 0, &mut recorder).unwrap();
        conn.set_deadline(recorder.opened[number as usize], 100 + u64::from(number));
    }
    conn.poll_transmit(&mut Vec::new(), usize::MAX);
    // Every other one is answered in time.
    for name in recorder.opened.iter().skip(1).step_by(2) {
        conn.send_headers(*name, &OK, true).unwrap();
    }
    conn.poll_transmit(&mut Vec::new(), usize::MAX);
    conn.tick(99).unwrap();
    assert_eq!(conn.next_expired(), None);
    conn.tick(300).unwrap();
    let expired: Vec<u32> = std::iter::from_fn(|| conn.next_expired()).map(StreamId::id).collect();
    assert_eq!(expired, (0..=200).step_by(2).map(odd).collect::<Vec<_>>());
    let mut wire = Vec::new();
    conn.poll_transmit(&mut wire, usize::MAX);
    assert!(wire.starts_with(&frame_of(frame::RST_STREAM, 0, 1, &8u32.to_be_bytes())));
}

#[test]
fn a_stream_that_waits_for_its_windows_ends_at_its_deadline_with_what_it_held() {
    let budget = Budget::default();
    let (mut conn, mut recorder) = server_with(Config::default(), &budget);
    conn.receive(&request(1, END_BOTH), 0, &mut recorder).unwrap();
    let name = recorder.opened[0];
    conn.set_deadline(name, 1_000);
    conn.send_headers(name, &OK, false).unwrap();
    conn.send_data(name, &[0; 1 << 20], true).unwrap();
    conn.poll_transmit(&mut Vec::new(), usize::MAX);
    assert!(budget.used() > 900_000);
    conn.tick(1_000).unwrap();
    assert_eq!(conn.next_expired(), Some(name));
    assert!(budget.used() < 64 << 10);
}

/// Streams that wait for the connection's window, of which they have used all.
fn blocked_streams(count: u32) -> (Conn, Recorder) {
    let (mut conn, mut recorder) = server();
    for number in 0..=count {
        conn.receive(&request(odd(number), END_BOTH), 0, &mut recorder).unwrap();
        let name = recorder.opened[number as usize];
        conn.send_headers(name, &OK, false).unwrap();
        if number == 0 {
            conn.send_data(name, &[0; 65_535], true).unwrap();
        } else if number % 2 == 0 {
            conn.send_data(name, &[0; 10], true).unwrap();
        } else {
            assert_eq!(conn.capacity(name), 0);
        }
    }
    while conn.poll_transmit(&mut Vec::new(), usize::MAX) {}
    assert_eq!(conn.next_writable(), None);
    (conn, recorder)
}

#[test]
fn a_window_update_costs_no_look_at_every_stream_that_waits() {
    let (mut conn, mut recorder) = blocked_streams(30_000);
    let update = frame_of(frame::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    let mut told = Vec::new();
    for _ in 0..5_000 {
        conn.receive(&update, 0, &mut recorder).unwrap();
        while let Some(name) = conn.next_writable() {
            // It has other things to do first.
            told.push(name);
        }
        conn.poll_transmit(&mut Vec::new(), usize::MAX);
    }
    assert!(told.len() <= 5_000, "{} streams told of 5,000 bytes", told.len());
    // Once there is room for all, all get it, in turns.
    let update = frame_of(frame::WINDOW_UPDATE, 0, 0, &[0, 0x10, 0, 0]);
    conn.receive(&update, 0, &mut recorder).unwrap();
    told.iter().for_each(|name| conn.send_data(*name, b"x", true).unwrap());
    let mut served: std::collections::BTreeSet<StreamId> = told.into_iter().collect();
    for _ in 0..1_000 {
        while let Some(name) = conn.next_writable() {
            assert!(conn.capacity(name) > 0);
            conn.send_data(name, b"x", true).unwrap();
            served.insert(name);
        }
        conn.poll_transmit(&mut Vec::new(), usize::MAX);
    }
    assert_eq!(served.len(), 15_000);
    assert_eq!(conn.open_streams(), 0);
}

#[test]
fn an_initial_window_is_changed_for_all_streams_at_once() {
    let (mut conn, mut recorder) = server();
    let window = |bytes: u32| {
        let mut setting = vec![0, 4];
        setting.extend(bytes.to_be_bytes());
        frame_of(frame::SETTINGS, 0, 0, &setting)
    };
    conn.receive(&window(10), 0, &mut recorder).unwrap();
    conn.receive(&request(1, END_BOTH), 0, &mut recorder).unwrap();
    let name = recorder.opened[0];
    conn.send_headers(name, &OK, false).unwrap();
    conn.send_data(name, b"0123456789abcdef", true).unwrap();
    // Below zero, and up again by what the window grew.
    conn.receive(&window(2), 0, &mut recorder).unwrap();
    assert_eq!(conn.capacity(name), 0);
    let update = frame_of(frame::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 8]);
    conn.receive(&update, 0, &mut recorder).unwrap();
    let mut wire = Vec::new();
    conn.poll_transmit(&mut wire, usize::MAX);
    let contains = |wire: &[u8], text: &[u8]| wire.windows(text.len()).any(|part| part == text);
    assert!(contains(&wire, b"0123456789") && !contains(&wire, b"a"), "the window is at zero");
    conn.receive(&window(5), 0, &mut recorder).unwrap();
    wire.clear();
    conn.poll_transmit(&mut wire, usize::MAX);
    assert!(contains(&wire, b"abc") && !contains(&wire, b"d"), "{wire:?}");
    // A window that its peer has opened widely cannot grow by another two gigabytes.
    let update = frame_of(frame::WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xf0]);
    conn.receive(&update, 0, &mut recorder).unwrap();
    conn.receive(&request(3, frame::END_HEADERS), 0, &mut recorder).unwrap();
    conn.receive(
        &frame_of(frame::WINDOW_UPDATE, 0, 3, &[0x7f, 0xff, 0xff, 0xf0]),
        0,
        &mut recorder,
    )
    .unwrap();
    let error = conn.receive(&window(0x7fff_ffff), 0, &mut recorder).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FLOW_CONTROL_ERROR);
}

#[test]
fn a_receive_window_is_made_smaller_for_streams_that_are_open() {
    let (mut conn, mut recorder) = server();
    assert!(!conn.set_stream_window(1_024), "the first SETTINGS are not acknowledged");
    conn.receive(&frame_of(frame::SETTINGS, frame::ACK, 0, &[]), 0, &mut recorder).unwrap();
    let mut sink = NoRelease;
    let mut wire = request(1, frame::END_HEADERS);
    wire.extend(frame_of(frame::DATA, 0, 1, &[0; 16_000]));
    conn.receive(&wire, 0, &mut sink).unwrap();
    assert!(conn.set_stream_window(1_024));
    let mut out = Vec::new();
    conn.poll_transmit(&mut out, usize::MAX);
    assert_eq!(out, frame_of(frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 4, 0]));
    // What was on its way by the old window is taken; what comes after the acknowledgement is not.
    conn.receive(&frame_of(frame::DATA, 0, 1, &[0; 16_000]), 0, &mut sink).unwrap();
    conn.receive(&frame_of(frame::SETTINGS, frame::ACK, 0, &[]), 0, &mut sink).unwrap();
    let name = conn.streams.find(1).unwrap();
    conn.widen_stream(name, 5_000);
    out.clear();
    conn.poll_transmit(&mut out, usize::MAX);
    let increment = 32_000 - 1_024 + 5_000u32;
    assert_eq!(out, frame_of(frame::WINDOW_UPDATE, 0, 1, &increment.to_be_bytes()));
    conn.receive(&frame_of(frame::DATA, 0, 1, &[0; 5_000]), 0, &mut sink).unwrap();
    assert!(conn.is_open(name));
    conn.receive(&frame_of(frame::DATA, 0, 1, &[0; 1]), 0, &mut sink).unwrap();
    assert!(!conn.is_open(name));
}

#[test]
fn what_a_socket_does_not_take_is_charged_and_stops_its_writers() {
    let budget = Budget::default();
    let (mut conn, mut recorder) = server_with(Config::default(), &budget);
    let open = frame_of(frame::SETTINGS, 0, 0, &[0, 4, 0x7f, 0, 0, 0]);
    conn.receive(&open, 0, &mut recorder).unwrap();
    conn.receive(&frame_of(frame::WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]), 0, &mut recorder)
        .unwrap();
    conn.receive(&request(1, END_BOTH), 0, &mut recorder).unwrap();
    let name = recorder.opened[0];
    conn.send_headers(name, &OK, false).unwrap();
    let (mut queued, mut out) = (0, Vec::new());
    while let room @ 1.. = conn.capacity(name) {
        conn.send_data(name, &vec![0; room], false).unwrap();
        out.clear();
        conn.poll_transmit(&mut out, usize::MAX);
        queued += out.len();
        conn.set_in_flight(queued);
    }
    assert!(queued.abs_diff(limits::TRANSMIT_HIGH_WATER_BYTES) < 1_024, "{queued}");
    assert!(budget.used() + limits::TRANSMIT_FREE_BYTES >= queued);
    conn.set_in_flight(0);
    assert!(budget.used() <= limits::BUDGET_STEPS_BYTES[2]);
    conn.poll_transmit(&mut out, usize::MAX);
    assert_eq!(conn.next_writable(), Some(name));
    // Where all are poor, each still has a little.
    let budget = Budget::new(8 << 10, 8 << 10);
    let (mut conn, mut recorder) = server_with(Config::default(), &budget);
    conn.receive(&request(1, END_BOTH), 0, &mut recorder).unwrap();
    assert_eq!(conn.capacity(recorder.opened[0]), limits::TRANSMIT_FREE_BYTES);
}

#[test]
fn resets_that_the_peer_provokes_count_as_its_own() {
    let provocations: [fn(u32) -> Vec<u8>; 3] = [
        |stream| frame_of(frame::WINDOW_UPDATE, 0, stream, &[0; 4]),
        |stream| frame_of(frame::DATA, 0, stream, b"after the end"),
        |stream| frame_of(frame::PRIORITY, 0, stream, &[0; 4]),
    ];
    for provoke in provocations {
        let (mut conn, mut recorder) = server();
        let error = (0u32..100_000).find_map(|number| {
            let stream = number * 2 + 1;
            let mut wire = request(stream, END_BOTH);
            wire.extend(provoke(stream));
            conn.poll_transmit(&mut Vec::new(), usize::MAX);
            conn.receive(&wire, 0, &mut recorder).err()
        });
        assert!(matches!(error, Some(ConnError::Flood(_))), "{error:?}");
        assert!(recorder.opened.len() <= limits::STREAM_ERRORS.0 as usize + 1);
    }
    // Malformed requests are the same.
    let (mut conn, mut recorder) = server();
    let error = (0u32..100_000).find_map(|number| {
        let wire = frame_of(frame::HEADERS, END_BOTH, number * 2 + 1, &[0x83]);
        conn.poll_transmit(&mut Vec::new(), usize::MAX);
        conn.receive(&wire, 0, &mut recorder).err()
    });
    assert_eq!(error, Some(ConnError::Flood(Flood::Resets)));
}

#[test]
fn a_client_without_streams_does_not_ping() {
    let keepalive = Keepalive { interval_ms: 1_000, timeout_ms: 200 };
    let config = Config { keepalive: Some(keepalive), ..Config::client() };
    let mut recorder = Recorder::default();
    let mut client = Conn::client(config, &Budget::default(), &mut recorder);
    client.receive(&frame_of(frame::SETTINGS, 0, 0, &[]), 0, &mut recorder).unwrap();
    client.poll_transmit(&mut Vec::new(), usize::MAX);
    assert_eq!(client.next_deadline_ms(), None);
    client.tick(1_000_000).unwrap();
    assert_eq!(client.unsent_bytes(), 0);
    client.open(&[HeaderItem::Literal(b":method", b"GET")], true).unwrap();
    client.poll_transmit(&mut Vec::new(), usize::MAX);
    client.tick(1_000_001).unwrap();
    assert_eq!(client.unsent_bytes(), 17, "a ping");
    assert_eq!(client.next_deadline_ms(), Some(1_000_201));
}

#[test]
fn a_header_block_without_end_ends_the_connection() {
    for (fragment, bound) in [(1usize, 65), (100, 80), (16_000, 1_100)] {
        let (mut conn, mut recorder) = server();
        conn.receive(&request(1, 0), 0, &mut recorder).unwrap();
        let wire = frame_of(frame::CONTINUATION, 0, 1, &vec![0x82; fragment]);
        let count = (1..).find(|_| conn.receive(&wire, 0, &mut recorder).is_err());
        assert!(count.unwrap() <= bound, "{count:?} fragments of {fragment}");
        assert_eq!(conn.failure(), Some(ConnError::Flood(Flood::Continuations)));
    }
}

#[test]
fn a_head_of_megabytes_resets_its_stream_and_costs_no_memory() {
    let budget = Budget::default();
    let (mut conn, mut recorder) = server_with(Config::default(), &budget);
    // A field in the table, then one of 12 MB that would be indexed.
    let mut block = REQUEST.to_vec();
    block.extend([0x40, 1, b'a', 1, b'1']);
    block.extend([0x40, 1, b'b', 0x7f, 0x81, 0xb5, 0xdc, 0x05]);
    block.extend(vec![b'v'; 12_000_000]);
    block.extend([0x40, 1, b'c', 1, b'3']);
    let pieces: Vec<&[u8]> = block.chunks(16_384).collect();
    for (number, piece) in pieces.iter().enumerate() {
        let kind = if number == 0 { frame::HEADERS } else { frame::CONTINUATION };
        let last = number + 1 == pieces.len();
        let flags = if last { frame::END_HEADERS } else { 0 };
        conn.receive(&frame_of(kind, flags, 1, piece), 0, &mut recorder).unwrap();
        assert!(budget.used() < 512 << 10);
    }
    assert_eq!(recorder.resets, [(1, ErrorCode::FRAME_SIZE_ERROR)]);
    // The table is in step: its only entry is the last field.
    let fields = recorder.fields;
    let next = [&REQUEST[..], &[0xbe]].concat();
    conn.receive(&frame_of(frame::HEADERS, END_BOTH, 3, &next), 0, &mut recorder).unwrap();
    assert_eq!((recorder.opened.len(), recorder.fields), (1, fields + 4));
    let beyond = [&REQUEST[..], &[0xbf]].concat();
    let error = conn.receive(&frame_of(frame::HEADERS, END_BOTH, 5, &beyond), 0, &mut recorder);
    assert!(matches!(error, Err(ConnError::Compression(_))), "{error:?}");
}

#[test]
fn a_header_bomb_resets_its_stream_and_costs_no_memory() {
    let (mut conn, mut recorder) = server();
    // One entry of 4,000 bytes in the table, then 10,000 references to it.
    let mut block = REQUEST.to_vec();
    block.extend([0x40, 1, b'a', 0x7f, 0xa1, 0x1e]);
    block.extend(vec![b'v'; 4_000]);
    block.extend(vec![0xbe; 10_000]);
    let wire = frame_of(frame::HEADERS, END_BOTH, 1, &block);
    conn.receive(&wire, 0, &mut recorder).unwrap();
    assert_eq!(recorder.resets, [(1, ErrorCode::FRAME_SIZE_ERROR)]);
    assert!(recorder.fields < limits::HEADER_LIST_BYTES_MAX / 4_000 + 4);
    assert_eq!(recorder.opened, []);
    // The table stayed in step: the next request is fine.
    conn.receive(&request(3, END_BOTH), 0, &mut recorder).unwrap();
    assert_eq!(recorder.opened.len(), 1);
}

#[test]
fn streams_are_bounded_by_the_budget_and_refused_beyond() {
    let budget = Budget::new(64 << 10, 64 << 10);
    let (mut conn, mut recorder) = server_with(Config::default(), &budget);
    let bound = (64 << 10) / limits::STREAM_STATE_BYTES;
    for number in 0..200u32 {
        conn.receive(&request(number * 2 + 1, END_BOTH), 0, &mut recorder).unwrap();
    }
    assert_eq!(recorder.opened.len(), bound);
    let mut wire = Vec::new();
    conn.poll_transmit(&mut wire, usize::MAX);
    let refusals = frame_of(frame::RST_STREAM, 0, 257, &7u32.to_be_bytes());
    assert!(wire.starts_with(&refusals));
    drop(conn);
    assert_eq!(budget.used(), 0);
}

#[test]
fn what_a_slow_reader_does_not_take_is_bounded() {
    let budget = Budget::new(1 << 20, 1 << 20);
    let (mut conn, mut recorder) = server_with(Config::default(), &budget);
    conn.receive(&request(1, END_BOTH), 0, &mut recorder).unwrap();
    let stream = recorder.opened[0];
    conn.send_headers(stream, &[HeaderItem::Literal(b":status", b"200")], false).unwrap();
    let piece = vec![0; 100_000];
    let result = (0..).find_map(|_| conn.send_data(stream, &piece, false).err());
    assert_eq!(result, Some(SendError::BufferFull));
    assert!(!conn.is_open(stream));
    assert_eq!(conn.send_data(stream, b"x", false), Err(SendError::Closed));
    assert!(conn.unsent_bytes() <= 200_000, "the rest was dropped");
}

#[test]
fn zero_windows_hold_data_back_until_they_open() {
    let (mut conn, mut recorder) = server();
    conn.receive(&frame_of(frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]), 0, &mut recorder).unwrap();
    conn.receive(&request(1, END_BOTH), 0, &mut recorder).unwrap();
    let stream = recorder.opened[0];
    conn.send_headers(stream, &[HeaderItem::Literal(b":status", b"200")], false).unwrap();
    assert_eq!(conn.capacity(stream), 0);
    conn.send_data(stream, b"hello", false).unwrap();
    conn.send_trailers(stream, &[HeaderItem::Literal(b"t", b"v")]).unwrap();
    let mut wire = Vec::new();
    conn.poll_transmit(&mut wire, usize::MAX);
    assert!(!wire.windows(5).any(|window| window == b"hello"));
    for _ in 0..5 {
        assert_eq!(conn.next_writable(), None);
        let open = frame_of(frame::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]);
        conn.receive(&open, 0, &mut recorder).unwrap();
        wire.clear();
        conn.poll_transmit(&mut wire, usize::MAX);
        assert_eq!(wire[..5], [0, 0, 1, frame::DATA, 0], "one byte a frame");
    }
    assert!(!conn.is_open(stream), "the trailers followed the data");
}

#[test]
fn hasty_pings_end_the_connection_and_answers_forgive_them() {
    let policy = PingPolicy { interval_ms_min: 5_000, without_streams: false };
    let config = Config { ping_policy: Some(policy), ..Config::default() };
    let ping = frame_of(frame::PING, 0, 0, &[1; 8]);
    let open = |config: &Config| {
        let (mut conn, mut recorder) = server_with(config.clone(), &Budget::default());
        conn.receive(&request(1, END_BOTH), 0, &mut recorder).unwrap();
        (conn, recorder)
    };
    let (mut conn, mut recorder) = open(&config);
    for now_ms in [0, 5_000, 10_000, 15_000] {
        conn.receive(&ping, now_ms, &mut recorder).unwrap();
    }
    for now_ms in [15_001, 15_002] {
        conn.receive(&ping, now_ms, &mut recorder).unwrap();
    }
    let error = conn.receive(&ping, 15_003, &mut recorder);
    assert_eq!(error, Err(ConnError::TooManyPings));
    let mut wire = Vec::new();
    conn.poll_transmit(&mut wire, usize::MAX);
    assert!(wire.ends_with(b"\0\0\0\x0btoo_many_pings"));

    let (mut conn, mut recorder) = open(&config);
    let stream = recorder.opened[0];
    conn.send_headers(stream, &[HeaderItem::Literal(b":status", b"200")], false).unwrap();
    for now_ms in 0..100 {
        conn.receive(&ping, now_ms, &mut recorder).unwrap();
        conn.send_data(stream, b"x", false).unwrap();
    }
}

#[test]
fn our_keepalive_ends_a_silent_connection() {
    let keepalive = Keepalive { interval_ms: 1_000, timeout_ms: 200 };
    let config = Config { keepalive: Some(keepalive), ..Config::default() };
    let (mut conn, mut recorder) = server_with(config, &Budget::default());
    assert_eq!(conn.next_deadline_ms(), Some(1_000));
    conn.tick(999).unwrap();
    assert_eq!(conn.unsent_bytes(), 0);
    conn.tick(1_000).unwrap();
    assert_eq!(conn.unsent_bytes(), 17);
    conn.receive(&frame_of(frame::PING, frame::ACK, 0, &[0; 8]), 1_100, &mut recorder).unwrap();
    conn.tick(1_300).unwrap();
    conn.tick(2_100).unwrap();
    assert_eq!(conn.tick(2_300), Err(ConnError::KeepaliveTimeout));
}

#[test]
fn a_handshake_that_does_not_come_is_given_up() {
    let mut recorder = Recorder::default();
    let mut conn = Conn::server(Config::default(), &Budget::default(), &mut recorder);
    conn.tick(5).unwrap();
    conn.receive(&frame::PREFACE[..10], 6, &mut recorder).unwrap();
    assert_eq!(conn.next_deadline_ms(), Some(5 + limits::HANDSHAKE_MS_MAX));
    assert_eq!(conn.tick(5 + limits::HANDSHAKE_MS_MAX), Err(ConnError::HandshakeTimeout));
}

#[test]
fn other_protocols_are_recognised_at_their_first_byte() {
    let mut recorder = Recorder::default();
    let mut conn = Conn::server(Config::default(), &Budget::default(), &mut recorder);
    let error = conn.receive(b"GET / HTTP/1.1\r\n", 0, &mut recorder);
    assert_eq!(error, Err(ConnError::BadPreface));
    let again = conn.receive(b"x", 0, &mut recorder);
    assert_eq!(again, Err(ConnError::BadPreface), "a failed connection stays failed");
}

#[test]
fn data_beyond_a_window_is_the_peer_s_error() {
    let (mut conn, mut recorder) = server();
    conn.receive(&request(1, frame::END_HEADERS), 0, &mut recorder).unwrap();
    // The recorder gives windows back, so a stream nobody reads is needed: widen the connection's
    // share by closing the stream first.
    let piece = frame_of(frame::DATA, 0, 1, &[0; 16_384]);
    for _ in 0..100 {
        conn.receive(&piece, 0, &mut recorder).unwrap();
        conn.poll_transmit(&mut Vec::new(), usize::MAX);
    }
    assert_eq!(recorder.data, 100 * 16_384, "windows were given back all along");
    let mut sink = NoRelease;
    let mut wire = request(3, frame::END_HEADERS);
    for _ in 0..4 {
        wire.extend(frame_of(frame::DATA, 0, 3, &[0; 16_384]));
    }
    conn.receive(&wire, 0, &mut sink).unwrap();
    let mut out = Vec::new();
    conn.poll_transmit(&mut out, usize::MAX);
    let reset = frame_of(frame::RST_STREAM, 0, 3, &3u32.to_be_bytes());
    assert!(out.windows(reset.len()).any(|window| window == reset), "FLOW_CONTROL_ERROR");
}

/// Keeps every byte.
struct NoRelease;

impl FieldSink for NoRelease {
    fn classify(&mut self, _name: &[u8], _value: &[u8]) -> u32 {
        0
    }

    fn field(&mut self, _field: Field<'_>) {}
}

impl Handler for NoRelease {
    fn block_start(&mut self, _kind: BlockKind) {}
    fn headers(&mut self, _conn: &mut Conn, _stream: StreamId, _headers: Headers) {}
    fn data(&mut self, _conn: &mut Conn, _stream: StreamId, _data: &[u8], _end_stream: bool) {}
    fn reset(&mut self, _conn: &mut Conn, _stream: StreamId, _code: ErrorCode, _by_peer: bool) {}
    fn go_away(&mut self, _last_stream: u32, _code: ErrorCode, _debug: &[u8]) {}
}

#[test]
fn frames_that_come_late_are_judged_by_how_their_stream_closed() {
    let (mut conn, mut recorder) = server();
    conn.receive(&request(1, frame::END_HEADERS), 0, &mut recorder).unwrap();
    conn.reset(recorder.opened[0], ErrorCode::CANCEL);
    conn.poll_transmit(&mut Vec::new(), usize::MAX);
    // We reset it: what was on its way is ignored.
    conn.receive(&frame_of(frame::DATA, 0, 1, b"late"), 0, &mut recorder).unwrap();
    let trailers = frame_of(frame::HEADERS, END_BOTH, 1, &[0x40, 1, b'a', 1, b'b']);
    conn.receive(&trailers, 0, &mut recorder).unwrap();
    assert_eq!(conn.unsent_bytes(), 0);
    // The peer reset it: the peer should know better.
    conn.receive(&request(3, frame::END_HEADERS), 0, &mut recorder).unwrap();
    conn.receive(&frame_of(frame::RST_STREAM, 0, 3, &[0; 4]), 0, &mut recorder).unwrap();
    let error = conn.receive(&request(3, END_BOTH), 0, &mut recorder).unwrap_err();
    assert_eq!(error.code(), ErrorCode::STREAM_CLOSED);
}

#[test]
fn every_cut_of_the_byte_stream_means_the_same() {
    let mut wire = request(1, frame::END_HEADERS);
    wire.extend(frame_of(frame::DATA, frame::END_STREAM, 1, &[5; 300]));
    wire.extend(request(3, 0));
    wire.extend(frame_of(frame::CONTINUATION, frame::END_HEADERS, 3, &[0x0f, 0x2b, 1, b'x']));
    wire.extend(frame_of(frame::PING, 0, 0, &[7; 8]));
    let mut expected = None;
    for cut in 1..wire.len() {
        let (mut conn, mut recorder) = server();
        for piece in wire.chunks(cut) {
            conn.receive(piece, 0, &mut recorder).unwrap();
        }
        let mut out = Vec::new();
        conn.poll_transmit(&mut out, usize::MAX);
        let seen = (recorder.opened, recorder.data, recorder.fields, out);
        assert_eq!(*expected.get_or_insert_with(|| seen_clone(&seen)), seen, "in cuts of {cut}");
    }
}

type Seen = (Vec<StreamId>, usize, usize, Vec<u8>);

fn seen_clone(seen: &Seen) -> Seen {
    seen.clone()
}

#[test]
fn a_transmit_budget_is_kept_and_loses_nothing() {
    let build = || {
        let (mut conn, mut recorder) = server();
        conn.receive(&request(1, END_BOTH), 0, &mut recorder).unwrap();
        let stream = recorder.opened[0];
        conn.send_headers(stream, &[HeaderItem::Literal(b":status", b"200")], false).unwrap();
        conn.send_data(stream, &[9; 60_000], true).unwrap();
        conn
    };
    let mut whole = Vec::new();
    assert!(!build().poll_transmit(&mut whole, usize::MAX));
    for budget in [1, 7, 1_000, 59_999] {
        let mut conn = build();
        let mut pieces = Vec::new();
        loop {
            let before = pieces.len();
            let more = conn.poll_transmit(&mut pieces, budget);
            assert!(pieces.len() - before <= budget);
            if !more {
                break;
            }
        }
        assert_eq!(pieces, whole);
    }
}

#[test]
fn a_large_header_block_is_cut_into_continuations() {
    let mut recorder = Recorder::default();
    let mut client = Conn::client(Config::client(), &Budget::default(), &mut recorder);
    let large = vec![0xff; 100_000];
    let items = [
        HeaderItem::Literal(b":method", b"POST"),
        HeaderItem::Literal(b":scheme", b"http"),
        HeaderItem::Literal(b":path", b"/"),
        HeaderItem::Sensitive(b"large", &large),
    ];
    client.open(&items, true).unwrap();
    let mut wire = Vec::new();
    client.poll_transmit(&mut wire, usize::MAX);
    let mut seen = Recorder::default();
    let mut server = Conn::server(Config::default(), &Budget::default(), &mut seen);
    server.receive(&wire, 0, &mut seen).unwrap();
    assert_eq!((seen.opened.len(), seen.fields), (1, 4));
}
