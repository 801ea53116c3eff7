//! The server's bounds, reached on a real member: nothing is lost, nothing grows without limit, and
//! whoever stays within the bounds is served on.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcore_proto::grpc::Code;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message;

use crate::harness::raw::Raw;
use crate::harness::{Setup, cpu_time, on_each_driver, rss_anon_kib};

/// All of any answer may be on its way.
const WINDOW_BYTES: u32 = 1 << 30;

fn connect(setup: &Setup) -> Raw {
    Raw::connect(setup.client_port, WINDOW_BYTES)
}

fn revision(answer: &[u8]) -> i64 {
    pb::PutResponse::decode(answer).unwrap().header.unwrap().revision
}

#[test]
fn more_puts_than_the_rings_hold_are_all_answered_in_order() {
    let _turn = crate::harness::turn::of_file(module_path!());
    const CONNECTIONS: usize = 16;
    const OUTSTANDING: usize = 2000;
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let _member = setup.start();
        std::thread::scope(|scope| {
            for number in 0..CONNECTIONS {
                let setup = &setup;
                scope.spawn(move || {
                    let mut raw = connect(setup);
                    for put in 0..OUTSTANDING {
                        raw.start_put(put as u64, &format!("{number}/{put}"), b"value");
                    }
                    raw.until_answers(OUTSTANDING);
                    raw.answers.sort_by_key(|(user, _)| *user);
                    let mut last = 0;
                    for (user, answer) in &raw.answers {
                        let revision = revision(answer.as_ref().expect("a put within the bounds"));
                        assert!(revision > last, "put {user} overtook the one before it");
                        last = revision;
                    }
                });
            }
        });
        let mut raw = connect(&setup);
        raw.start_list(1, "\0", "\0");
        raw.until_answers(1);
        let listed = pb::RangeResponse::decode(raw.answers[0].1.as_ref().unwrap().as_ref());
        assert_eq!(listed.unwrap().kvs.len(), CONNECTIONS * OUTSTANDING);
    });
}

#[test]
fn large_puts_beyond_the_byte_bound_wait_outside_and_are_all_answered() {
    let _turn = crate::harness::turn::of_file(module_path!());
    const CONNECTIONS: usize = 4;
    const OUTSTANDING: usize = 50;
    const VALUE_BYTES: usize = 1_400_000;
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let member = setup.start();
        let finished = AtomicBool::new(false);
        let peak_kib = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CONNECTIONS)
                .map(|number| {
                    let setup = &setup;
                    scope.spawn(move || {
                        let value = vec![b'v'; VALUE_BYTES];
                        let mut raw = connect(setup);
                        for put in 0..OUTSTANDING {
                            raw.start_put(put as u64, &format!("{number}"), &value);
                        }
                        raw.until_answers(OUTSTANDING);
                        for (_, answer) in &raw.answers {
                            if let Err((code, text)) = answer {
                                assert_eq!(*code, Code::Unknown, "{text}");
                                assert_eq!(text, "etcdserver: too many requests");
                            }
                        }
                        raw.answers.iter().filter(|(_, answer)| answer.is_ok()).count()
                    })
                })
                .collect();
            let (pid, finished) = (member.pid(), &finished);
            let watch = scope.spawn(move || {
                let mut peak_kib = 0;
                while !finished.load(Ordering::Relaxed) {
                    peak_kib = peak_kib.max(rss_anon_kib(pid));
                    std::thread::sleep(Duration::from_millis(5));
                }
                peak_kib
            });
            let served: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
            finished.store(true, Ordering::Relaxed);
            assert!(served > 0);
            eprintln!("{driver}: {served} of {} large puts", CONNECTIONS * OUTSTANDING);
            watch.join().unwrap()
        });
        eprintln!("{driver}: RssAnon at most {peak_kib} KiB");
        // Proposals, log batches and memory tables, each bounded by tens of MiB.
        assert!(peak_kib < 420 << 10, "{driver}: {peak_kib} KiB");
        connect(&setup).put_once("small");
    });
}

#[test]
fn readers_that_stop_in_the_middle_of_a_long_list_cost_little_and_stop_nobody() {
    let _turn = crate::harness::turn::of_file(module_path!());
    const READERS: usize = 8;
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let mut member = setup.start();
        let mut writer = connect(&setup);
        let value = vec![b'v'; 20_000];
        for key in 0..1000 {
            writer.start_put(key, &format!("list/{key:04}"), &value);
        }
        writer.until_answers(1000);
        // Started anew, so that memory which the load has left behind hides nothing.
        drop(writer);
        member.terminate();
        assert!(member.wait().success());
        let member = setup.start();
        let mut writer = connect(&setup);
        // Nor does what the first checkpoints and reads take for good count.
        for round in 0..100 {
            writer.put_once(&format!("other/{}", round % 3));
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut readers: Vec<Raw> = (0..READERS).map(|_| connect(&setup)).collect();
        let before_kib = rss_anon_kib(member.pid());
        for reader in &mut readers {
            reader.start_list(7, "list/", "list0");
            while reader.write() {}
        }
        let mut peak_kib = 0;
        for round in 0..100 {
            let took = writer.put_once(&format!("other/{}", round % 3));
            assert!(took < Duration::from_secs(5), "{driver}: a put took {took:?}");
            peak_kib = peak_kib.max(rss_anon_kib(member.pid()));
            std::thread::sleep(Duration::from_millis(5));
        }
        let grown_kib = peak_kib.saturating_sub(before_kib);
        eprintln!("{driver}: {READERS} stalled readers: RssAnon grew by {grown_kib} KiB");
        assert!(grown_kib < 16 << 10, "{driver}: {grown_kib} KiB");
        // Nothing to do: a member whose readers stand still sleeps.
        let cpu = cpu_time(&member);
        std::thread::sleep(Duration::from_secs(1));
        let used = cpu_time(&member) - cpu;
        assert!(used < Duration::from_millis(300), "{driver}: {used:?} of CPU in an idle second");
        for reader in &mut readers {
            reader.until_answers(1);
            let answer = reader.answers[0].1.as_ref().expect("the list");
            let listed = pb::RangeResponse::decode(answer.as_ref()).unwrap();
            assert_eq!(listed.kvs.len(), 1000);
            assert!(listed.kvs.iter().all(|kv| kv.value == value));
        }
    });
}

#[test]
fn readers_that_go_away_without_reading_leave_no_socket_behind() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let member = setup.start();
        let mut writer = connect(&setup);
        for key in 0..300 {
            writer.start_put(key, &format!("list/{key:04}"), &[b'v'; 50_000]);
        }
        writer.until_answers(300);
        let before = member.sockets();
        let mut kept = Vec::new();
        for _ in 0..20 {
            let mut reader = connect(&setup);
            reader.start_list(7, "list/", "list0");
            while reader.write() {}
            kept.push(reader);
        }
        std::thread::sleep(Duration::from_millis(300));
        assert!(member.sockets() >= before + 20);
        // Says goodbye, stays, and reads nothing.
        for reader in &kept {
            reader.socket.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while member.sockets() > before {
            assert!(
                Instant::now() < deadline,
                "{driver}: {} sockets, {before} before",
                member.sockets()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        writer.put_once("after");
    });
}

#[test]
fn a_blocked_standard_error_stops_neither_requests_nor_the_end() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with("--log-level=debug");
        let mut child = setup.command().spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        // The smallest pipe: full before the member is ready.
        // SAFETY: the descriptor is open and the call takes no pointers.
        let size = unsafe {
            use std::os::fd::AsRawFd;
            libc::fcntl(stderr.as_raw_fd(), libc::F_SETPIPE_SZ, 4096)
        };
        assert_eq!(size, 4096);
        let mut raw = connect(&setup);
        for number in 0..50 {
            // Each of these connections is worth a line.
            let mut broken = TcpStream::connect(("127.0.0.1", setup.client_port)).unwrap();
            broken.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\xff").unwrap();
            broken.write_all(&[0xff; 100]).unwrap();
            raw.put_once(&format!("{number}"));
        }
        let pid = i32::try_from(child.id()).unwrap();
        // SAFETY: a signal to our own child, which has not been reaped.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        drop(raw);
        let deadline = Instant::now() + Duration::from_secs(15);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("{driver}: the member waits for standard error");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(stderr);
    });
}

#[test]
fn a_client_is_told_how_many_streams_it_may_open() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with("--max-concurrent-streams=7");
        let _member = setup.start();
        let mut raw = connect(&setup);
        assert_eq!(raw.client.concurrent_streams_max(), 7);
        raw.put_once("k");
    });
}

#[test]
fn requests_larger_than_the_flag_are_refused_and_the_connection_goes_on() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with("--max-request-bytes=100000");
        let _member = setup.start();
        let mut raw = connect(&setup);
        raw.start_put(1, "fits", &[0; 99_000]);
        raw.start_put(2, "large", &[0; 100_000]);
        raw.start_put(3, "too large for the transport", &[0; 100_000 + (512 << 10)]);
        raw.until_answers(3);
        raw.answers.sort_by_key(|(user, _)| *user);
        assert!(raw.answers[0].1.is_ok(), "{:?}", raw.answers[0]);
        let (code, text) = raw.answers[1].1.clone().unwrap_err();
        assert_eq!(
            (code, text.as_str()),
            (Code::InvalidArgument, "etcdserver: request is too large")
        );
        let (code, text) = raw.answers[2].1.clone().unwrap_err();
        assert_eq!(code, Code::ResourceExhausted, "{text}");
        raw.put_once("after");
    });
}

#[test]
fn an_http_body_beyond_the_bound_is_refused() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let _member = setup.start();
        let mut socket = TcpStream::connect(("127.0.0.1", setup.client_port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // Twice the largest message, as JSON may need; a byte more.
        let head = "POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 4194305\r\n\r\n";
        socket.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 413");
    });
}

#[test]
fn an_idle_member_is_told_to_stop_and_says_goodbye() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with("--fronts=2");
        let mut member = setup.start();
        let mut raw = connect(&setup);
        raw.put_once("k");
        let start = Instant::now();
        member.terminate();
        // GOAWAY is a frame of type 7 on stream 0; the client sends nothing any more.
        raw.socket.set_nonblocking(false).unwrap();
        raw.socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut bytes = Vec::new();
        let _ = raw.socket.read_to_end(&mut bytes);
        assert!(bytes.len() >= 9 && bytes[3] == 7, "{driver}: no GOAWAY in {bytes:?}");
        assert!(member.wait().success());
        assert!(start.elapsed() < Duration::from_secs(8), "{driver}: {:?}", start.elapsed());
    });
}

#[test]
fn a_member_without_connections_stops_at_once() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with("--fronts=3");
        let mut member = setup.start();
        let start = Instant::now();
        member.terminate();
        assert!(member.wait().success());
        assert!(start.elapsed() < Duration::from_secs(4), "{driver}: {:?}", start.elapsed());
    });
}

#[test]
fn connections_leave_the_member_the_descriptors_that_its_own_files_need() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let plain = setup.command();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -n 220; exec \"$0\" \"$@\""]);
        command.arg(plain.get_program()).args(plain.get_args());
        let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        let mut raw = connect(&setup);
        raw.put_once("before");
        let crowd: Vec<TcpStream> = (0..120)
            .map(|_| TcpStream::connect(("127.0.0.1", setup.client_port)).unwrap())
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        let refused = crowd.iter().filter(|socket| {
            socket.set_nonblocking(true).unwrap();
            let mut socket: &TcpStream = socket;
            !matches!(socket.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::WouldBlock)
        });
        let refused = refused.count();
        // Log segments come and go meanwhile.
        for number in 0..12 {
            raw.start_put(number, "large", &[1; 1_000_000]);
        }
        raw.answers.clear();
        raw.until_answers(12);
        let all = raw.answers.iter().all(|(_, answer)| answer.is_ok());
        drop(crowd);
        std::thread::sleep(Duration::from_millis(200));
        connect(&setup).put_once("after");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(all, "{driver}: {:?}", raw.answers);
        assert_eq!(120 - refused, 220 - 150 - 1, "{driver}: connections beside ours");
    });
}

#[test]
fn a_member_whose_descriptors_run_out_refuses_connections_without_spinning() {
    let _turn = crate::harness::turn::of_file(module_path!());
    // io_uring looks at the limit when it begins to accept; only epoll sees it change.
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let member = setup.start();
    let mut raw = connect(&setup);
    raw.put_once("before");
    // What the first checkpoint opens for good is open then.
    std::thread::sleep(Duration::from_millis(500));
    let open = std::fs::read_dir(format!("/proc/{}/fd", member.pid())).unwrap().count() as u64;
    let limit = |descriptors: u64| {
        let pid = i32::try_from(member.pid()).unwrap();
        let limit = libc::rlimit { rlim_cur: descriptors, rlim_max: descriptors.max(4096) };
        // SAFETY: the limit outlives the call and no old one is asked for.
        let set = unsafe {
            libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    };
    limit(open + 20);
    let crowd: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(("127.0.0.1", setup.client_port)).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    let refused = crowd.iter().filter(|socket| {
        socket.set_nonblocking(true).unwrap();
        let mut socket: &TcpStream = socket;
        !matches!(socket.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    });
    let refused = refused.count();
    assert!((50..=85).contains(&refused), "{refused} of 100 refused");
    let cpu = cpu_time(&member);
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu_time(&member) - cpu;
    assert!(used < Duration::from_millis(300), "{used:?} of CPU in an idle second");
    drop(crowd);
    std::thread::sleep(Duration::from_millis(200));
    connect(&setup).put_once("after");
    raw.put_once("still");
}
