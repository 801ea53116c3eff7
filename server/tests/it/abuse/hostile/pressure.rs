//! What little on the wire could make much of in memory or in work, and what honest clients in a
//! crowd are told: all of it against a real member.

use std::io::Read;
use std::time::{Duration, Instant};

use etcore_proto::grpc::Code;

use super::wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, Wire, frame,
    grpc_head, grpc_message,
};
use super::{PUT, RANGE, fill, odd};
use crate::harness::raw::{Raw, list};
use crate::harness::{Member, Setup, cpu_time, on_each_driver, rss_anon_kib};

const WINDOW_UPDATE: u8 = 8;
/// SETTINGS_INITIAL_WINDOW_SIZE of 64 MB.
const WIDE: [u8; 6] = [0, 4, 4, 0, 0, 0];

struct Watched {
    _dir: tempfile::TempDir,
    setup: Setup,
    member: Member,
    before_kib: u64,
}

impl Watched {
    fn new(driver: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with_long_segments();
        let member = setup.start();
        Raw::connect(setup.client_port, 1 << 20).put_once("first");
        let before_kib = rss_anon_kib(member.pid());
        Self { _dir: dir, setup, member, before_kib }
    }

    fn wire(&self, settings: &[u8]) -> Wire {
        Wire::connect(self.setup.client_port, settings)
    }

    /// The most that memory grew by meanwhile; somebody else is served.
    fn grown_kib(&self, during: Duration) -> u64 {
        let mut bystander = Raw::connect(self.setup.client_port, 1 << 20);
        let until = Instant::now() + during;
        let mut peak_kib = 0;
        while Instant::now() < until {
            peak_kib = peak_kib.max(rss_anon_kib(self.member.pid()));
            let took = bystander.get_once("first");
            assert!(took < Duration::from_secs(1), "{took:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        peak_kib.saturating_sub(self.before_kib)
    }
}

/// A literal field that enters the table, not Huffman-coded.
fn indexed(name: &str, value: &[u8]) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() == 4000, "lengths of one byte and of three");
    [&[0x40, name.len() as u8], name.as_bytes(), &[0x7f, 0xa1, 0x1e], value].concat()
}

#[test]
fn calls_that_wait_hold_no_metadata() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let scene = Watched::new(driver);
        let mut wire = scene.wire(&[]);
        let mut head = grpc_head(PUT);
        head.extend(indexed("extra", &[b'x'; 4000]));
        assert!(wire.write(&frame(HEADERS, END_HEADERS, 1, &head)));
        // All that a head names but for one field is in the table.
        let mut bytes = Vec::new();
        for number in 1..4_000 {
            let mut head = grpc_head(PUT);
            head.extend([0xbe; 60]);
            bytes.extend(frame(HEADERS, END_HEADERS, odd(number), &head));
        }
        assert!(wire.write(&bytes));
        let grown_kib = scene.grown_kib(Duration::from_millis(300));
        eprintln!("{driver}: {} bytes of heads hold {grown_kib} KiB", bytes.len());
        assert!(grown_kib < 32 << 10, "{driver}: {grown_kib} KiB");
    });
}

#[test]
fn small_messages_that_inflate_to_large_ones_hold_little() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let scene = Watched::new(driver);
        // A serializable Range of a key of 1.9 MB.
        let key = "k".repeat(1_900_000);
        let message = list(&key, "");
        let mut deflated = Vec::new();
        flate2::read::GzEncoder::new(&message[..], flate2::Compression::best())
            .read_to_end(&mut deflated)
            .unwrap();
        let mut body = vec![1];
        body.extend((deflated.len() as u32).to_be_bytes());
        body.extend(&deflated);
        let mut head = grpc_head(RANGE);
        head.extend(b"\0\x0dgrpc-encoding\x04gzip");
        let mut wires: Vec<Wire> = (0..4).map(|_| scene.wire(&[])).collect();
        let mut sent = 0;
        for number in 0..60 {
            for wire in &mut wires {
                let mut bytes = frame(HEADERS, END_HEADERS, odd(number), &head);
                bytes.extend(frame(DATA, 0, odd(number), &body));
                sent += bytes.len();
                assert!(wire.write(&bytes));
            }
        }
        let grown_kib = scene.grown_kib(Duration::from_millis(500));
        eprintln!("{driver}: {sent} bytes of gzip hold {grown_kib} KiB");
        assert!(grown_kib < 128 << 10, "{driver}: {grown_kib} KiB");
        // Each was answered at its message, though none was ended.
        for wire in &mut wires {
            let mut answered = 0;
            wire.read_until(Duration::from_secs(20), |one| {
                let is_end = one.kind == HEADERS && one.flags & END_STREAM != 0;
                answered += usize::from(is_end);
                answered == 60
            });
            assert_eq!(answered, 60, "{driver}");
        }
    });
}

#[test]
fn pages_asked_for_by_the_thousand_cost_little_and_keep_nobody_waiting() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let scene = Watched::new(driver);
        let requests = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2_600);
        let sockets: Vec<std::net::TcpStream> = (0..100)
            .map(|_| {
                use std::io::Write;
                let address = ("127.0.0.1", scene.setup.client_port);
                let mut socket = std::net::TcpStream::connect(address).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.write(&requests).unwrap();
                socket
            })
            .collect();
        let grown_kib = scene.grown_kib(Duration::from_secs(1));
        eprintln!(
            "{driver}: 100 x {} bytes of pipelined requests: {grown_kib} KiB",
            requests.len()
        );
        assert!(grown_kib < 64 << 10, "{driver}: {grown_kib} KiB");
        drop(sockets);
    });
}

#[test]
fn connections_that_do_not_read_hold_their_share_of_the_budget() {
    let _turn = crate::harness::turn::of_file(module_path!());
    const CONNECTIONS: u64 = 200;
    on_each_driver(|driver| {
        let mut scene = Watched::new(driver);
        fill(scene.setup.client_port, 100, 100_000);
        scene.before_kib = rss_anon_kib(scene.member.pid());
        let message = grpc_message(&list("list/", "list0"));
        let wires: Vec<Wire> = (0..CONNECTIONS)
            .map(|_| {
                let mut wire = scene.wire(&WIDE);
                let mut bytes = frame(WINDOW_UPDATE, 0, 0, &[4, 0, 0, 0]);
                for number in 0..8 {
                    bytes.extend(frame(HEADERS, END_HEADERS, odd(number), &grpc_head(RANGE)));
                    bytes.extend(frame(DATA, END_STREAM, odd(number), &message));
                }
                assert!(wire.write(&bytes));
                wire
            })
            .collect();
        let grown_kib = scene.grown_kib(Duration::from_secs(3));
        eprintln!("{driver}: {CONNECTIONS} connections that do not read: {grown_kib} KiB");
        let most = CONNECTIONS * 288 + (24 << 10);
        assert!(grown_kib < most, "{driver}: {grown_kib} KiB of {most}");
        drop(wires);
    });
}

#[test]
fn a_thousand_large_puts_at_once_on_one_connection_are_all_served() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let scene = Watched::new(driver);
        let mut raw = Raw::connect(scene.setup.client_port, 1 << 20);
        let value = vec![b'v'; 60_000];
        for user in 0..1_000 {
            raw.start_put(user, &format!("key/{user}"), &value);
        }
        raw.until_answers(1_000);
        let refused: Vec<&(Code, String)> =
            raw.answers.iter().filter_map(|(_, answer)| answer.as_ref().err()).collect();
        assert_eq!(refused, Vec::<&(Code, String)>::new(), "{driver}");
    });
}

#[test]
fn a_head_of_300_kilobytes_costs_its_stream_and_not_the_connection() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let scene = Watched::new(driver);
        let mut wire = scene.wire(&[]);
        // A literal that is not indexed: 300,000 bytes of value.
        let mut head = grpc_head(RANGE);
        head.extend(b"\0\x05large\x7f\xe1\xa6\x12");
        head.extend(vec![b'v'; 300_000]);
        let pieces: Vec<&[u8]> = head.chunks(16_384).collect();
        let mut bytes = Vec::new();
        for (number, piece) in pieces.iter().enumerate() {
            let kind = if number == 0 { HEADERS } else { CONTINUATION };
            let is_last = number + 1 == pieces.len();
            bytes.extend(frame(kind, if is_last { END_HEADERS } else { 0 }, 1, piece));
        }
        assert!(wire.write(&bytes));
        let frames = wire.read_until(Duration::from_secs(10), |one| one.stream == 1);
        assert!(frames.last().is_some_and(|one| one.kind == RST_STREAM), "{frames:?}");
        assert!(wire.write(&frame(PING, 0, 0, b"in order")));
        let frames = wire.read_until(Duration::from_secs(10), |one| one.kind == PING);
        assert!(frames.last().is_some_and(|one| one.flags & ACK != 0), "{frames:?}");
    });
}

#[test]
fn small_window_updates_do_not_make_thousands_of_streams_work() {
    let _turn = crate::harness::turn::of_file(module_path!());
    const STREAMS: u32 = 20_000;
    on_each_driver(|driver| {
        let scene = Watched::new(driver);
        fill(scene.setup.client_port, 2, 100_000);
        let mut wire = scene.wire(&[]);
        let message = grpc_message(&list("list/", "list0"));
        // The first uses up the connection's window; all others wait for it.
        let mut bytes = Vec::new();
        for number in 0..STREAMS {
            bytes.extend(frame(HEADERS, END_HEADERS, odd(number), &grpc_head(RANGE)));
            bytes.extend(frame(DATA, END_STREAM, odd(number), &message));
        }
        let mut reader = wire.reader();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                reader.read_until(Duration::from_secs(3), |_| false);
            });
            assert!(wire.write(&bytes));
        });
        let before = cpu_time(&scene.member);
        let updates = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
        // As many small reads, so that nothing is done for many at once.
        for _ in 0..500 {
            assert!(wire.write(&updates));
            std::thread::sleep(Duration::from_micros(200));
        }
        assert!(wire.write(&updates.repeat(4_346)));
        assert!(wire.write(&frame(PING, 0, 0, b"the last")));
        wire.read_until(Duration::from_secs(20), |one| one.kind == PING && one.flags & ACK != 0);
        let took = cpu_time(&scene.member) - before;
        eprintln!("{driver}: 63 KB of WINDOW_UPDATE cost {took:?}");
        assert!(took < Duration::from_millis(250), "{driver}: {took:?}");
    });
}
