//! Clients that misbehave, by error or on purpose, against a real member on both drivers: its
//! memory stays within its bounds, floods get GOAWAY with the right code, and who behaves is served
//! on.
//!
//! The bounds of rings, descriptors and logs are in `bounds.rs`; h2spec is in `h2spec.rs`.
//! `ETCORE_LONG` selects the large sizes.

pub(crate) mod attacker;
mod bystander;
mod crowd;
mod generator;
mod pressure;
mod table;
pub(crate) mod wire;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::raw::{Raw, list};
use crate::harness::{Member, Setup, on_each_driver, rss_anon_kib};
use bystander::{Took, calls_until, p99, quantile};
use wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PING,
    PRIORITY, RST_STREAM, SETTINGS, Wire, frame, grpc_head, grpc_message,
};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const SETTINGS_INITIAL_WINDOW: u8 = 4;
/// What the process may hold for connections that move: buffers of the drivers and of sockets,
/// memory tables, what the allocator keeps.
const MOVING_KIB: u64 = 160 << 10;

/// What may be added to twice the idle wait of a read. The member lets nobody wait for longer than
/// a few receive buffers of others take; but attackers, member and bystander share two cores with
/// each other and with whatever else runs there, and a scheduler that owes them nothing lets each
/// wait for several slices: 0.1 to 8 ms were seen at p99, of some hundred reads each.
const READ_SLACK: Duration = Duration::from_millis(60);
/// The same for a put, which also waits for the device, and for the kernel's threads behind it to
/// get a core.
const PUT_SLACK: Duration = Duration::from_millis(200);

fn is_long() -> bool {
    std::env::var_os("ETCORE_LONG").is_some()
}

fn sized<T>(small: T, long: T) -> T {
    if is_long() { long } else { small }
}

fn until_sockets(member: &Member, most: usize, why: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while member.sockets() > most {
        assert!(Instant::now() < deadline, "{why}: {} sockets, {most} before", member.sockets());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Fills `list/` with `count` values.
fn fill(port: u16, count: usize, value_bytes: usize) {
    let mut writer = Raw::connect(port, 1 << 20);
    let value = vec![b'v'; value_bytes];
    for batch in (0..count).collect::<Vec<_>>().chunks(32) {
        writer.answers.clear();
        for key in batch {
            writer.start_put(1, &format!("list/{key:06}"), &value);
        }
        writer.until_answers(batch.len());
        assert!(writer.answers.iter().all(|(_, answer)| answer.is_ok()), "{:?}", writer.answers);
    }
}

/// A member to be attacked, and what it needs to live.
struct Scene {
    _dir: tempfile::TempDir,
    setup: Setup,
    member: Member,
}

impl Scene {
    fn new(driver: &'static str) -> Self {
        Self::with(driver, |setup| setup, |_| {})
    }

    /// With settings of its own, and with what is stored before it is started for good.
    fn with(driver: &'static str, settings: impl Fn(Setup) -> Setup, store: impl Fn(u16)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let setup = settings(Setup::new(dir.path(), driver).with_long_segments());
        let mut member = setup.start();
        store(setup.client_port);
        // Started anew, so that memory which the load has left behind hides nothing.
        member.terminate();
        assert!(member.wait().success());
        let member = setup.start();
        Raw::connect(setup.client_port, 1 << 20).put_once("first");
        Self { _dir: dir, setup, member }
    }
}

/// What an attack did to others.
struct Harm {
    /// Nobody attacks anybody.
    idle: Took,
    /// The attackers attack another member of this machine.
    beside: Took,
    attacked: Took,
    peak_kib: u64,
    before_kib: u64,
}

impl Harm {
    /// Memory grew by less, and others waited at most twice as long as without the attack, and the
    /// slack.
    fn assert_within(&self, what: &str, grown_kib_max: u64) {
        let grown_kib = self.peak_kib.saturating_sub(self.before_kib);
        eprintln!("{what}: RssAnon {} KiB, grown by {grown_kib} KiB", self.peak_kib);
        self.print_waits(what);
        assert!(grown_kib <= grown_kib_max, "{what}: {grown_kib} KiB more");
        for (name, took, slack) in [
            ("puts", (|took| &took.puts) as fn(&Took) -> &Vec<Duration>, PUT_SLACK),
            ("reads", |took| &took.gets, READ_SLACK),
        ] {
            let (idle, beside) = (p99(took(&self.idle)), p99(took(&self.beside)));
            let attacked = p99(took(&self.attacked));
            assert!(
                attacked <= 2 * idle.max(beside) + slack,
                "{what}: {name} {attacked:?}, {idle:?} idle, {beside:?} beside the same attack"
            );
        }
    }

    fn print_waits(&self, what: &str) {
        let shown = |took: &Took| {
            let shown = |took: &[Duration]| {
                let (p50, p99) = (quantile(took, 50), p99(took));
                format!("p50 {p50:.1?} p99 {p99:.1?} of {}", took.len())
            };
            format!("puts {}, reads {}", shown(&took.puts), shown(&took.gets))
        };
        let [attacked, beside, idle] = [&self.attacked, &self.beside, &self.idle].map(shown);
        eprintln!("{what}:\n  attacked: {attacked}\n  beside: {beside}\n  idle: {idle}");
    }
}

/// The thread, or this one with 0, runs only when nobody else wants to: attackers have a machine of
/// their own, and must not take the member's.
fn as_if_elsewhere(thread: i32) {
    let normal = libc::sched_param { sched_priority: 0 };
    // SAFETY: a system call on a thread; the parameter outlives it.
    let outcome = unsafe { libc::sched_setscheduler(thread, libc::SCHED_IDLE, &raw const normal) };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
}

/// Runs an attack while somebody else works and memory is watched. Before that the same attack is
/// made on another member, which has a machine of its own like the attackers: what a busy machine
/// costs by itself shows there.
fn under_attack(
    driver: &'static str,
    scene: &Scene,
    decoy: impl FnOnce(&'static str) -> Scene,
    attack: impl Fn(&Setup) + Sync,
) -> Harm {
    let (setup, pid) = (&scene.setup, scene.member.pid());
    let port = setup.client_port;
    let mut idle = Took::default();
    calls_while_idle(port, &mut idle);
    let beside = {
        let decoy = decoy(driver);
        let tasks = std::fs::read_dir(format!("/proc/{}/task", decoy.member.pid())).unwrap();
        for task in tasks {
            let thread = task.unwrap().file_name();
            as_if_elsewhere(thread.to_str().and_then(|thread| thread.parse().ok()).unwrap());
        }
        let setup = &decoy.setup;
        calls_during(port, || attack(setup))
    };
    let before_kib = rss_anon_kib(pid);
    let over = AtomicBool::new(false);
    let (attacked, peak_kib) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak_kib = 0;
            while !over.load(Ordering::Relaxed) {
                peak_kib = peak_kib.max(rss_anon_kib(pid));
                std::thread::sleep(Duration::from_millis(20));
            }
            peak_kib
        });
        let attacked = calls_during(port, || attack(setup));
        over.store(true, Ordering::Relaxed);
        (attacked, watcher.join().unwrap())
    });
    // Before and after, since the machine may have been busy with something else meanwhile.
    calls_while_idle(port, &mut idle);
    Harm { idle, beside, attacked, peak_kib, before_kib }
}

/// The calls of a bystander while `attack` lasts.
fn calls_during(port: u16, attack: impl FnOnce() + Send) -> Took {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let bystander = scope.spawn(|| calls_until(port, &over));
        let attacker = scope.spawn(|| {
            as_if_elsewhere(0);
            attack();
        });
        let outcome = attacker.join();
        over.store(true, Ordering::Relaxed);
        let took = bystander.join().unwrap();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        took
    })
}

fn calls_while_idle(port: u16, idle: &mut Took) {
    let pause = sized(Duration::from_millis(300), Duration::from_secs(2));
    let Took { puts, gets } = calls_during(port, || std::thread::sleep(pause));
    idle.puts.extend(puts);
    idle.gets.extend(gets);
}

/// Endless bytes of a flood, in pieces; the number counts the pieces.
type Flood = fn(u32) -> Vec<u8>;

fn odd(number: u32) -> u32 {
    number * 2 + 1
}

const FLOODS: [(&str, Flood); 9] = [
    ("streams opened and reset", |number| {
        let mut bytes = frame(HEADERS, END_HEADERS, odd(number), &grpc_head(PUT));
        bytes.extend(frame(RST_STREAM, 0, odd(number), &8u32.to_be_bytes()));
        bytes
    }),
    ("streams that end before they say anything", |number| {
        frame(HEADERS, END_HEADERS | END_STREAM, odd(number), b"\x00\x01a\x01b")
    }),
    ("CONTINUATION without end", |number| match number {
        0 => frame(HEADERS, 0, 1, &grpc_head(PUT)),
        _ => frame(CONTINUATION, 0, 1, b"\x00\x01x\x01y"),
    }),
    ("SETTINGS", |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])),
    ("PING", |number| frame(PING, 0, 0, &u64::from(number).to_be_bytes())),
    ("empty DATA", |number| match number {
        0 => frame(HEADERS, END_HEADERS, 1, &grpc_head(PUT)),
        _ => frame(DATA, 0, 1, b""),
    }),
    ("a message in frames of one byte", |number| match number {
        0 => {
            let mut bytes = frame(HEADERS, END_HEADERS, 1, &grpc_head(PUT));
            bytes.extend(frame(DATA, 0, 1, &[0, 0, 0, 255, 255]));
            bytes
        }
        _ => frame(DATA, 0, 1, b"x"),
    }),
    ("PRIORITY", |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9])),
    ("frames of unknown kinds", |_| frame(0xbe, 0, 0, b"?")),
];

#[test]
fn floods_end_in_goaway_and_cost_the_others_little() {
    let _turn = crate::harness::turn::of_file(module_path!());
    const CONNECTIONS: usize = 3;
    on_each_driver(|driver| {
        for (name, flood) in FLOODS {
            let until = sized(Duration::from_millis(600), Duration::from_secs(10));
            let start: Vec<u8> = (0..PREPARED_PIECES).flat_map(flood).collect();
            let harm = under_attack(driver, &Scene::new(driver), Scene::new, |setup| {
                let ended = AtomicU64::new(0);
                std::thread::scope(|scope| {
                    for _ in 0..CONNECTIONS {
                        scope.spawn(|| flood_for(setup, name, (&start, flood), until, &ended));
                    }
                });
                eprintln!("{driver}: {name}: {} connections", ended.into_inner());
            });
            harm.assert_within(&format!("{driver}: {name}"), 64 << 10);
        }
    });
}

/// An attacker begins no more than a hundred connections a second. The decoy, which gets what is
/// left of the machine, could not end as many as the member does, and would not show what so many
/// cost by themselves.
const BETWEEN_FLOODS: Duration = Duration::from_millis(10);

/// So many pieces of a flood are made beforehand: attackers have a machine of their own, and what
/// they do there must not keep this one busy.
const PREPARED_PIECES: u32 = 1 << 17;

/// Floods one connection after the other, and counts them; each must end with the right code.
fn flood_for(
    setup: &Setup,
    name: &str,
    (start, flood): (&[u8], Flood),
    until: Duration,
    ended: &AtomicU64,
) {
    let deadline = Instant::now() + until;
    while Instant::now() < deadline {
        let next = Instant::now() + BETWEEN_FLOODS;
        let mut wire = Wire::connect(setup.client_port, &[]);
        let mut reader = wire.reader();
        let code = std::thread::scope(|scope| {
            // Reads meanwhile, so that nothing is lost in the reset of a socket with unread bytes.
            let reading = scope.spawn(move || {
                let frames = reader.read_until(Duration::from_secs(30), |one| one.kind == GOAWAY);
                frames.last().and_then(wire::Frame::goaway_code)
            });
            let mut number = PREPARED_PIECES;
            let mut takes_more = start.chunks(32 << 10).all(|some| wire.write(some));
            while takes_more && number < 4_000_000 {
                let pieces: Vec<u8> = (number..number + 64).flat_map(flood).collect();
                number += 64;
                takes_more = wire.write(&pieces);
            }
            let _ = wire.socket.shutdown(Shutdown::Write);
            reading.join().unwrap()
        });
        assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{name}");
        ended.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

#[test]
fn header_bombs_are_refused_and_cost_no_memory() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let bombs = sized(50, 2000);
        let harm = under_attack(driver, &Scene::new(driver), Scene::new, |setup| {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| throw_bombs(setup, bombs));
                }
            });
        });
        harm.assert_within(&format!("{driver}: header bombs"), 32 << 10);
    });
}

/// A field of nearly 4 KB enters the table, then each byte of a head names it again.
fn throw_bombs(setup: &Setup, count: u32) {
    let mut wire = Wire::connect(setup.client_port, &[]);
    let mut entry = grpc_head(PUT);
    // Literal with indexing, a name of one byte, a value of 4000 bytes.
    entry.extend(b"\x40\x01x\x7f\xa1\x1e");
    entry.extend([b'v'; 4000]);
    assert!(wire.write(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &entry)));
    let mut bomb = grpc_head(PUT);
    bomb.extend([0x80 | 62; 15_000]);
    let mut refused = 0;
    for number in 1..=count {
        assert!(wire.write(&frame(HEADERS, END_HEADERS | END_STREAM, odd(number), &bomb)));
        let frames = wire.read_until(Duration::from_secs(10), |one| one.stream == odd(number));
        let last = frames.last().expect("an answer");
        assert_eq!((last.kind, last.stream), (RST_STREAM, odd(number)), "{last:?}");
        refused += 1;
    }
    assert_eq!(refused, count);
    // The connection itself is in order, and so is its table.
    assert!(wire.write(&frame(PING, 0, 0, b"in order")));
    let frames = wire.read_until(Duration::from_secs(10), |one| one.kind == PING);
    assert!(frames.last().is_some_and(|one| one.flags & ACK != 0), "{frames:?}");
}

#[test]
fn frames_of_one_byte_are_put_together_and_cost_no_more_than_their_bytes() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let clients = sized(50, 1000);
        let harm = under_attack(driver, &Scene::new(driver), Scene::new, |setup| {
            // A put of key "k" and a value of 2000 bytes.
            let mut put = b"\x0a\x01k\x12\xd0\x0f".to_vec();
            put.extend([b'v'; 2000]);
            let message = grpc_message(&put);
            let mut bytes = frame(HEADERS, END_HEADERS, 1, &grpc_head(PUT));
            for byte in &message {
                bytes.extend(frame(DATA, 0, 1, &[*byte]));
            }
            bytes.extend(frame(DATA, END_STREAM, 1, b""));
            for _ in 0..clients {
                let mut wire = Wire::connect(setup.client_port, &[]);
                assert!(wire.write(&bytes), "one such message is no flood");
                let is_end = |one: &wire::Frame| one.kind == HEADERS && one.flags & END_STREAM != 0;
                let frames = wire.read_until(Duration::from_secs(60), is_end);
                assert!(frames.last().is_some_and(is_end), "{frames:?}");
            }
        });
        harm.assert_within(&format!("{driver}: frames of one byte"), 48 << 10);
    });
}

#[test]
fn answers_that_nobody_opens_a_window_for_are_not_made() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let filled = |driver| {
            Scene::with(driver, |setup| setup, |port| fill(port, sized(200, 2000), 20_000))
        };
        let scene = filled(driver);
        let before = scene.member.sockets();
        let (connections, lists) = sized((4, 50), (20, 500));
        let shut = Mutex::new(Vec::new());
        let harm = under_attack(driver, &scene, filled, |setup| {
            let no_window = [0, SETTINGS_INITIAL_WINDOW, 0, 0, 0, 0];
            for _ in 0..connections {
                let mut wire = Wire::connect(setup.client_port, &no_window);
                let message = grpc_message(&list("list/", "list0"));
                for number in 0..lists {
                    let mut bytes = frame(HEADERS, END_HEADERS, odd(number), &grpc_head(RANGE));
                    bytes.extend(frame(DATA, END_STREAM, odd(number), &message));
                    assert!(wire.write(&bytes));
                }
                shut.lock().unwrap().push(wire);
            }
            std::thread::sleep(sized(Duration::from_millis(700), Duration::from_secs(5)));
        });
        // A task, a pin, a head and a prefix each.
        let each_kib = 16;
        let lists = u64::from(lists) * connections;
        let most = MOVING_KIB / 4 + lists * each_kib;
        harm.assert_within(&format!("{driver}: {lists} lists without a window"), most);
        drop(shut);
        until_sockets(&scene.member, before, "windows that never opened");
    });
}

#[test]
fn clients_that_vanish_in_the_middle_leave_nothing_behind() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let filled = |driver| Scene::with(driver, |setup| setup, |port| fill(port, 200, 20_000));
        let scene = filled(driver);
        let before = scene.member.sockets();
        let rounds = sized(20, 500);
        let harm = under_attack(driver, &scene, filled, |setup| {
            for round in 0..rounds {
                vanish(setup, round);
            }
        });
        harm.assert_within(&format!("{driver}: {rounds} clients that vanish"), 96 << 10);
        until_sockets(&scene.member, before, "clients that vanished");
        Raw::connect(scene.setup.client_port, 1 << 20).put_once("after");
    });
}

/// A list being read, half a put, a watch, and then no client.
fn vanish(setup: &Setup, round: usize) {
    let mut wire = Wire::connect(setup.client_port, &[]);
    let range = grpc_message(&list("list/", "list0"));
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &grpc_head(RANGE));
    bytes.extend(frame(DATA, END_STREAM, 1, &range));
    bytes.extend(frame(HEADERS, END_HEADERS, 3, &grpc_head(PUT)));
    // The prefix promises a megabyte.
    bytes.extend(frame(DATA, 0, 3, &[0, 0, 16, 0, 0, b'x', b'x', b'x']));
    bytes.extend(frame(HEADERS, END_HEADERS, 5, &grpc_head(WATCH)));
    // A create request for everything.
    let watch = grpc_message(b"\x0a\x06\x0a\x01\x00\x12\x01\x00");
    bytes.extend(frame(DATA, 0, 5, &watch));
    assert!(wire.write(&bytes));
    wire.read_until(Duration::from_secs(10), |one| one.kind == DATA);
    match round % 3 {
        // Unread bytes make the kernel reset the connection.
        0 => drop(wire),
        1 => {
            let _ = wire.write(&frame(DATA, 0, 3, b"more")[..7]);
        }
        _ => {
            let _ = wire.socket.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_peer_that_is_only_there_by_half_is_found_out_and_closed() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver)
            .with_long_segments()
            .with("--grpc-keepalive-interval=1s")
            .with("--grpc-keepalive-timeout=1s");
        let member = setup.start();
        let before = member.sockets();
        // Its machine is gone: nothing answers, nothing closes.
        let gone: Vec<Wire> = (0..20).map(|_| Wire::connect(setup.client_port, &[])).collect();
        // Answers pings and does nothing else for longer than the others are given.
        let mut alive = Wire::connect(setup.client_port, &[]);
        let mut pings = 0;
        let until = Instant::now() + Duration::from_secs(6);
        while Instant::now() < until {
            let frames = alive.read_until(Duration::from_millis(200), |one| one.kind == PING);
            assert!(!alive.closed, "{driver}: a client that answers pings");
            for ping in frames.iter().filter(|one| one.kind == PING && one.flags & ACK == 0) {
                pings += 1;
                assert!(alive.write(&frame(PING, ACK, 0, &ping.payload)));
            }
        }
        assert!(pings >= 3, "{driver}: {pings} pings");
        assert_eq!(member.sockets(), before + 1, "{driver}: only who answers is left");
        drop(gone);
    });
}

#[test]
fn large_puts_and_ranges_on_many_streams_stay_within_the_bounds() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        // Seven gigabytes of history in the large size.
        let unbounded = |setup: Setup| setup.with("--quota-backend-bytes=-1");
        let filled = |driver| Scene::with(driver, unbounded, |port| fill(port, 4, 1_400_000));
        let scene = filled(driver);
        let (connections, streams) = sized((6, 12), (100, 100));
        let harm = under_attack(driver, &scene, filled, |setup| {
            let wishes: Vec<crowd::Wish> = (0..connections)
                .map(|number| crowd::Wish {
                    key: format!("large/{number}"),
                    value_bytes: 1_400_000,
                    streams,
                    list: ("list/000000", "list/000001"),
                    list_bytes_min: 1_400_000,
                })
                .collect();
            let (left, right) = wishes.split_at(connections / 2);
            let until = Instant::now() + sized(Duration::from_secs(1), Duration::from_secs(10));
            let (served, asked) = (AtomicU64::new(0), AtomicU64::new(0));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // Who comes meanwhile is let in and served.
                    while Instant::now() < until {
                        Raw::connect(setup.client_port, 1 << 20).put_once("newcomer");
                        std::thread::sleep(Duration::from_millis(20));
                    }
                });
                for wishes in [left, right] {
                    let (served, asked) = (&served, &asked);
                    scope.spawn(move || {
                        while Instant::now() < until {
                            let count = crowd::serve_all(setup.client_port, wishes);
                            served.fetch_add(count as u64, Ordering::Relaxed);
                            asked.fetch_add((wishes.len() * streams) as u64, Ordering::Relaxed);
                        }
                    });
                }
            });
            let (served, asked) = (served.into_inner(), asked.into_inner());
            eprintln!("{driver}: {served} of {asked} large requests were served");
        });
        // Requests coming in and not answered: so much a connection, and so much for all of them;
        // then what is on its way to the log and to the page file. The budget counts payload.
        let incoming_kib = (connections as u64 * (32 << 10)).min(256 << 10);
        let most = incoming_kib + (64 << 10) + MOVING_KIB + (96 << 10);
        let what = format!("{driver}: {connections} x {streams} streams of 1.4 MB");
        harm.assert_within(&what, most);
        Raw::connect(scene.setup.client_port, 1 << 20).put_once("after");
    });
}

#[test]
fn lists_that_are_read_slowly_cost_little_each() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let (readers, list_bytes) = sized((8, 20_000_000), (64, 100_000_000));
        let roomy = |setup: Setup| setup.with("--quota-backend-bytes=8589934592");
        let filled =
            |driver| Scene::with(driver, roomy, |port| fill(port, list_bytes / 100_000, 100_000));
        let harm = under_attack(driver, &filled(driver), filled, |setup| {
            let mut slow: Vec<Raw> =
                (0..readers).map(|_| Raw::connect(setup.client_port, 1 << 20)).collect();
            for reader in &mut slow {
                reader.start_list(7, "list/", "list0");
                reader.write();
            }
            // The last tenth is read at full speed.
            let slowly = Instant::now() + sized(Duration::from_secs(2), Duration::from_secs(60));
            while !slow.is_empty() {
                let is_slow = Instant::now() < slowly;
                for reader in &mut slow {
                    reader.read(if is_slow { 4096 } else { 256 << 10 });
                    reader.write();
                }
                // A list that is complete is not kept.
                slow.retain(|reader| {
                    let Some((_, answer)) = reader.answers.first() else { return true };
                    let list = answer.as_ref().expect("the list");
                    assert!(list.len() > list_bytes, "{}", list.len());
                    false
                });
                if is_slow {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        });
        let most = readers as u64 * (2 << 10);
        harm.assert_within(&format!("{driver}: {readers} slow lists of {list_bytes} bytes"), most);
    });
}

#[test]
fn plain_clients_that_end_their_side_early_get_their_answers() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with_long_segments();
        let _member = setup.start();
        for round in 0..sized(20, 500) {
            for target in ["/health", "/version", "/metrics", "/readyz", "/nothing"] {
                let mut socket = TcpStream::connect(("127.0.0.1", setup.client_port)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                write!(socket, "GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                if round % 2 == 0 {
                    std::thread::sleep(Duration::from_micros(200));
                }
                socket.shutdown(Shutdown::Write).unwrap();
                let mut answer = String::new();
                socket.read_to_string(&mut answer).unwrap();
                let status = answer.split(' ').nth(1).unwrap_or_default();
                let expected = if target == "/nothing" { "404" } else { "200" };
                assert_eq!(status, expected, "{driver}: {target}: {answer:?}");
            }
        }
    });
}

#[test]
fn connections_that_never_say_anything_are_closed_and_idle_clients_are_not() {
    let _turn = crate::harness::turn::of_file(module_path!());
    if !is_long() {
        eprintln!("only with ETCORE_LONG: takes two minutes; front::tests::silence has it short");
        return;
    }
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with_long_segments();
        let member = setup.start();
        let mut idle = Raw::connect(setup.client_port, 1 << 20);
        idle.put_once("before");
        let before = member.sockets();
        let silent: Vec<TcpStream> = (0..200)
            .map(|_| TcpStream::connect(("127.0.0.1", setup.client_port)).unwrap())
            .collect();
        std::thread::sleep(Duration::from_secs(60));
        assert_eq!(member.sockets(), before + silent.len(), "{driver}: too early");
        std::thread::sleep(Duration::from_secs(65));
        until_sockets(&member, before, "silent connections");
        idle.put_once("after");
    });
}
