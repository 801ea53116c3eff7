//! What every driver must do, run on each of them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::probe::{DriverKind, create};
use super::*;
use crate::limits;

/// Everything that was reported.
#[derive(Default)]
struct Seen {
    accepted: Vec<(u32, OwnedFd)>,
    connected: Vec<(SocketId, Result<(), io::ErrorKind>)>,
    received: HashMap<SocketId, Vec<u8>>,
    disconnected: Vec<(SocketId, Option<io::Error>)>,
    sent: Vec<(SocketId, io::Result<()>)>,
    written: Vec<(WriteToken, io::Result<()>)>,
}

impl Completions for Seen {
    fn accepted(&mut self, listener: u32, socket: AnySocket) {
        self.accepted.push((listener, socket.into_kernel()));
    }
    fn connected(&mut self, socket: SocketId, result: io::Result<()>) {
        self.connected.push((socket, result.map_err(|error| error.kind())));
    }
    fn received(&mut self, socket: SocketId, bytes: &[u8]) {
        assert!(!bytes.is_empty() && bytes.len() <= limits::RECEIVE_BUFFER_BYTES);
        self.received.entry(socket).or_default().extend_from_slice(bytes);
    }
    fn disconnected(&mut self, socket: SocketId, error: Option<io::Error>) {
        self.disconnected.push((socket, error));
    }
    fn sent(&mut self, socket: SocketId, buf: Vec<u8>, result: io::Result<()>) {
        assert!(buf.is_empty(), "a send gives its buffer back emptied");
        self.sent.push((socket, result));
    }
    fn written(&mut self, token: WriteToken, _: AlignedBuf, result: io::Result<()>) {
        self.written.push((token, result));
    }
}

impl Seen {
    fn bytes(&self, socket: SocketId) -> usize {
        self.received.get(&socket).map_or(0, Vec::len)
    }
}

/// A driver with what it reported, used as a shard uses it.
struct Rig {
    driver: Box<dyn Driver>,
    waker: Waker,
    seen: Seen,
}

impl Rig {
    fn wait(&mut self, timeout: Duration) {
        self.waker.announce_sleep();
        self.driver.wait(Some(timeout), &mut self.seen).unwrap();
        self.waker.announce_awake();
    }

    fn until(&mut self, what: &str, done: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(&self.seen) {
            assert!(Instant::now() < deadline, "{}: not {what}", self.driver.name());
            self.wait(Duration::from_millis(50));
        }
    }

    /// Sends; what ends at once is noted like what ends later.
    fn send(&mut self, id: SocketId, buf: Vec<u8>) {
        if let Some((buf, result)) = self.driver.send(id, buf) {
            self.seen.sent(id, buf, result);
        }
    }

    /// Gives things that must not happen the time to happen.
    fn settle(&mut self) {
        let end = Instant::now() + Duration::from_millis(60);
        while Instant::now() < end {
            self.wait(Duration::from_millis(10));
        }
    }

    fn attach(&mut self) -> (SocketId, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (self.driver.attach(OwnedFd::from(ours).into()).unwrap(), theirs)
    }
}

/// Runs the same test on every driver that this machine lets run.
fn on_each(test: impl Fn(&mut Rig)) {
    for kind in [DriverKind::Uring, DriverKind::Portable] {
        let waker = Waker::new().unwrap();
        match create(kind, waker.clone()) {
            Ok(driver) => test(&mut Rig { driver, waker, seen: Seen::default() }),
            Err(error) => eprintln!("SKIPPED: {kind:?} is not available here: {error}"),
        }
    }
}

fn pattern(len_bytes: usize) -> Vec<u8> {
    (0..len_bytes).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

#[test]
fn tcp_and_unix_connections_are_accepted_until_listening_ends() {
    on_each(|rig| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = UnixListener::bind(&path).unwrap();
        tcp.set_nonblocking(true).unwrap();
        unix.set_nonblocking(true).unwrap();
        let addr = tcp.local_addr().unwrap();
        rig.driver.listen(0, Arc::new(OwnedFd::from(tcp)).into()).unwrap();
        rig.driver.listen(1, Arc::new(OwnedFd::from(unix)).into()).unwrap();
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(TcpStream::connect(addr).unwrap());
        }
        let mut by_path = UnixStream::connect(&path).unwrap();
        rig.until("all accepted", |seen| seen.accepted.len() == 21);
        let of = |listener| rig.seen.accepted.iter().filter(|(l, _)| *l == listener).count();
        assert_eq!((of(0), of(1)), (20, 1));
        let at = rig.seen.accepted.iter().position(|(listener, _)| *listener == 1).unwrap();
        let (_, socket) = rig.seen.accepted.swap_remove(at);
        let id = rig.driver.attach(socket.into()).unwrap();
        by_path.write_all(b"hello").unwrap();
        rig.until("received", |seen| seen.bytes(id) == 5);
        rig.driver.unlisten(0);
        rig.settle();
        let before = rig.seen.accepted.len();
        let refused = TcpStream::connect(addr);
        rig.settle();
        assert_eq!(rig.seen.accepted.len(), before, "accepted after the end: {refused:?}");
    });
}

#[test]
fn buffers_of_any_size_reach_a_slow_reader_whole_and_come_back() {
    on_each(|rig| {
        for len_bytes in [1, 1000, 65_536, 10 << 20] {
            let (id, mut theirs) = rig.attach();
            let data = pattern(len_bytes);
            theirs.set_nonblocking(false).unwrap();
            let copy = data.clone();
            // Echoes at its own pace: everything is read before anything is sent back.
            let peer = std::thread::spawn(move || {
                let mut got = vec![0; copy.len()];
                for chunk in got.chunks_mut(100_000) {
                    theirs.read_exact(chunk).unwrap();
                    if copy.len() > 1 << 20 {
                        std::thread::sleep(Duration::from_micros(300));
                    }
                }
                assert!(got == copy, "the bytes changed on their way");
                theirs.write_all(&got).unwrap();
                theirs
            });
            rig.send(id, data.clone());
            rig.until("echoed", |seen| seen.bytes(id) == len_bytes);
            drop(peer.join().unwrap());
            assert!(rig.seen.received[&id] == data);
            rig.until("sent", |seen| seen.sent.len() == 1);
            let (socket, result) = rig.seen.sent.pop().unwrap();
            assert_eq!(socket, id);
            result.unwrap();
            rig.driver.close(id);
        }
    });
}

#[test]
fn a_paused_socket_receives_nothing_until_it_is_resumed() {
    on_each(|rig| {
        let (id, mut theirs) = rig.attach();
        theirs.write_all(b"a").unwrap();
        rig.until("received", |seen| seen.bytes(id) == 1);
        rig.driver.pause(id);
        rig.settle();
        theirs.write_all(b"bc").unwrap();
        rig.settle();
        assert_eq!(rig.seen.received[&id], b"a", "{}", rig.driver.name());
        rig.driver.resume(id);
        rig.until("received", |seen| seen.bytes(id) == 3);
        // Back and forth within one turn ends where it began.
        for _ in 0..3 {
            rig.driver.pause(id);
            rig.driver.resume(id);
        }
        theirs.write_all(b"d").unwrap();
        rig.until("received", |seen| seen.bytes(id) == 4);
        rig.driver.pause(id);
        rig.driver.resume(id);
        rig.driver.pause(id);
        rig.settle();
        theirs.write_all(b"e").unwrap();
        rig.settle();
        assert_eq!(rig.seen.received[&id], b"abcd", "{}", rig.driver.name());
    });
}

#[test]
fn a_paused_socket_whose_peer_hung_up_does_not_keep_the_thread_awake() {
    on_each(|rig| {
        let (id, mut theirs) = rig.attach();
        rig.driver.pause(id);
        rig.settle();
        theirs.write_all(b"last words").unwrap();
        drop(theirs);
        let start = Instant::now();
        let mut waits = 0;
        while start.elapsed() < Duration::from_millis(200) {
            rig.wait(Duration::from_millis(20));
            waits += 1;
        }
        assert!(waits <= 15, "{}: {waits} waits of 20 ms in 200 ms", rig.driver.name());
        assert!(rig.seen.disconnected.is_empty());
        rig.driver.resume(id);
        rig.until("disconnected", |seen| seen.disconnected.len() == 1);
        assert_eq!(rig.seen.received[&id], b"last words");
    });
}

#[test]
fn the_end_of_a_connection_is_reported_exactly_once() {
    on_each(|rig| {
        let (id, mut theirs) = rig.attach();
        theirs.write_all(b"bye").unwrap();
        drop(theirs);
        rig.until("disconnected", |seen| !seen.disconnected.is_empty());
        rig.driver.pause(id);
        rig.driver.resume(id);
        rig.settle();
        assert_eq!(rig.seen.disconnected.len(), 1);
        assert_eq!(rig.seen.received[&id], b"bye");
        rig.driver.close(id);
        rig.settle();
        assert_eq!(rig.seen.disconnected.len(), 1);
    });
}

#[test]
fn nothing_is_reported_of_a_closed_socket() {
    on_each(|rig| {
        let (id, mut theirs) = rig.attach();
        theirs.write_all(b"too late").unwrap();
        rig.driver.close(id);
        rig.driver.close(id);
        rig.settle();
        assert_eq!(rig.seen.bytes(id), 0);
        assert!(rig.seen.disconnected.is_empty() && rig.seen.sent.is_empty());
        theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut end = [0; 1];
        let closed = theirs.read(&mut end);
        assert!(!matches!(closed, Ok(1)), "the peer sees the end");
        assert!(theirs.write_all(b"x").is_err(), "{}: still open", rig.driver.name());
    });
}

#[test]
fn closing_gives_up_a_send_that_the_peer_does_not_take() {
    on_each(|rig| {
        let (id, theirs) = rig.attach();
        rig.send(id, pattern(4 << 20));
        rig.settle();
        assert!(rig.seen.sent.is_empty(), "nobody reads");
        rig.driver.close(id);
        rig.until("given up", |seen| seen.sent.len() == 1);
        let (socket, result) = &rig.seen.sent[0];
        assert_eq!(*socket, id);
        assert!(result.is_err());
        rig.settle();
        // The slot is free again although the peer still lives.
        let (next, other) = rig.attach();
        assert_eq!(next.slot, id.slot);
        assert_ne!(next.generation, id.generation);
        assert_eq!(rig.seen.sent.len(), 1);
        drop((theirs, other));
    });
}

#[test]
fn a_send_that_ended_before_the_close_is_reported() {
    on_each(|rig| {
        let (id, mut theirs) = rig.attach();
        rig.send(id, b"all of it".to_vec());
        rig.until("sent", |seen| seen.sent.len() == 1);
        rig.driver.close(id);
        let mut text = String::new();
        rig.settle();
        theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "all of it");
        assert!(rig.seen.sent[0].1.is_ok());
    });
}

#[test]
fn late_events_never_reach_the_next_socket_in_a_slot() {
    on_each(|rig| {
        let mut last = None;
        for round in 0..50 {
            let (id, mut theirs) = rig.attach();
            theirs.write_all(format!("round {round}").as_bytes()).unwrap();
            if round % 3 == 0 {
                rig.wait(Duration::ZERO);
            }
            if round % 2 == 0 {
                rig.send(id, b"x".to_vec());
            }
            rig.driver.close(id);
            if round % 5 == 0 {
                rig.wait(Duration::ZERO);
            }
            last = Some(id);
            rig.seen.received.retain(|socket, _| *socket == id);
        }
        rig.settle();
        rig.seen = Seen::default();
        let (id, mut theirs) = rig.attach();
        assert_ne!(Some(id), last);
        theirs.write_all(b"mine").unwrap();
        rig.until("received", |seen| seen.bytes(id) == 4);
        rig.settle();
        assert_eq!(rig.seen.received.len(), 1, "only the new socket hears anything");
        assert_eq!(rig.seen.received[&id], b"mine");
        assert!(rig.seen.disconnected.is_empty());
    });
}

#[test]
fn durable_writes_land_in_plain_and_in_direct_files() {
    on_each(|rig| {
        let dir = tempfile::tempdir().unwrap();
        for flags in [0, libc::O_DIRECT] {
            let path = dir.path().join(format!("file-{flags}"));
            let opened =
                File::options().create(true).write(true).read(true).custom_flags(flags).open(&path);
            let Ok(file) = opened else {
                eprintln!("SKIPPED: no O_DIRECT on {}", dir.path().display());
                continue;
            };
            file.set_len(1 << 20).unwrap();
            let file = Arc::new(file);
            for (token, blocks) in [(1u64, 1usize), (2, 3), (3, 64)] {
                let mut buf = AlignedBuf::zeroed(blocks * 4096);
                buf.copy_from_slice(&pattern(blocks * 4096));
                let offset_bytes = token * 4096 * 8;
                rig.driver.write_durable(WriteToken(token), file.clone().into(), offset_bytes, buf);
                rig.until("written", |seen| seen.written.len() == 1);
                let (done, result) = rig.seen.written.pop().unwrap();
                result.unwrap();
                assert_eq!(done, WriteToken(token));
                let stored = std::fs::read(&path).unwrap();
                let from = usize::try_from(offset_bytes).unwrap();
                assert!(stored[from..from + blocks * 4096] == pattern(blocks * 4096));
                assert!(stored[from + blocks * 4096..].iter().take(4096).all(|byte| *byte == 0));
            }
        }
    });
}

#[test]
fn as_many_log_writes_as_the_bound_allows_may_be_outstanding() {
    on_each(|rig| {
        let file = Arc::new(tempfile::tempfile().unwrap());
        for token in 0..limits::LOG_WRITES as u64 {
            let buf = AlignedBuf::zeroed(4096);
            rig.driver.write_durable(WriteToken(token), file.clone().into(), token * 4096, buf);
        }
        rig.until("written", |seen| seen.written.len() == limits::LOG_WRITES);
        assert!(rig.seen.written.iter().all(|(_, result)| result.is_ok()));
        assert_eq!(file.metadata().unwrap().len(), limits::LOG_WRITES as u64 * 4096);
    });
}

#[test]
fn a_failed_durable_write_is_reported_and_not_tried_again() {
    on_each(|rig| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"kept").unwrap();
        let read_only = Arc::new(File::open(&path).unwrap());
        rig.driver.write_durable(WriteToken(1), read_only.into(), 0, AlignedBuf::zeroed(4096));
        rig.until("reported", |seen| !seen.written.is_empty());
        // Writes to this device always find it full.
        let full = Arc::new(File::options().write(true).open("/dev/full").unwrap());
        rig.driver.write_durable(WriteToken(2), full.into(), 0, AlignedBuf::zeroed(4096));
        rig.until("reported", |seen| seen.written.len() == 2);
        rig.settle();
        // What is left of a failed one is not taken for a later one's.
        for token in 3..20 {
            let file = Arc::new(tempfile::tempfile_in(dir.path()).unwrap());
            rig.driver.write_durable(WriteToken(token), file.into(), 0, AlignedBuf::zeroed(4096));
            rig.until("written", |seen| seen.written.len() as u64 == token);
            assert!(rig.seen.written.pop_if(|(_, result)| result.is_ok()).is_some());
            rig.seen.written.push((WriteToken(token), Ok(())));
        }
        rig.seen.written.truncate(2);
        let codes: Vec<_> = rig
            .seen
            .written
            .iter()
            .map(|(token, result)| (token.0, result.as_ref().unwrap_err().raw_os_error()))
            .collect();
        assert_eq!(codes, [(1, Some(libc::EBADF)), (2, Some(libc::ENOSPC))]);
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
    });
}

#[test]
fn small_writes_land_or_fail_alike_whichever_way_they_take() {
    // Among so many each way of the io_uring driver is taken.
    const WRITES: u64 = 40;
    on_each(|rig| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = Arc::new(File::create_new(&path).unwrap());
        let full = Arc::new(File::options().write(true).open("/dev/full").unwrap());
        let read_only = Arc::new(File::open(&path).unwrap());
        for number in 0..WRITES {
            let mut buf = AlignedBuf::zeroed(512);
            buf.fill(number as u8);
            rig.driver.write_durable(WriteToken(number), file.clone().into(), number * 512, buf);
            rig.until("written", |seen| !seen.written.is_empty());
            assert!(matches!(rig.seen.written.pop(), Some((token, Ok(()))) if token.0 == number));
            let bad = if number % 2 == 0 { &full } else { &read_only };
            let buf = AlignedBuf::zeroed(512);
            rig.driver.write_durable(WriteToken(number), bad.clone().into(), 0, buf);
            rig.until("reported", |seen| !seen.written.is_empty());
            let (token, result) = rig.seen.written.pop().unwrap();
            let code = if number % 2 == 0 { libc::ENOSPC } else { libc::EBADF };
            assert_eq!((token.0, result.unwrap_err().raw_os_error()), (number, Some(code)));
        }
        let stored = std::fs::read(&path).unwrap();
        assert!(stored.chunks(512).zip(0..).all(|(block, number)| block == [number as u8; 512]));
        assert_eq!(stored.len() as u64, WRITES * 512);
    });
}

#[test]
fn a_write_that_cannot_be_synced_has_failed() {
    on_each(|rig| {
        // A pipe takes bytes, and has nothing to sync.
        let (_reader, writer) = std::io::pipe().unwrap();
        let file = Arc::new(File::from(OwnedFd::from(writer)));
        rig.driver.write_durable(WriteToken(1), file.into(), 0, AlignedBuf::zeroed(4096));
        rig.until("reported", |seen| !seen.written.is_empty());
        assert!(rig.seen.written[0].1.is_err(), "{}", rig.driver.name());
    });
}

#[test]
fn a_send_ends_once_and_one_to_a_gone_peer_fails() {
    on_each(|rig| {
        let (id, mut theirs) = rig.attach();
        rig.send(id, b"small".to_vec());
        let mut got = [0; 5];
        rig.until("sent", |seen| seen.sent.len() == 1);
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"small");
        rig.send(id, pattern(4 << 20));
        rig.settle();
        assert_eq!(rig.seen.sent.len(), 1, "nobody reads so much");
        drop(theirs);
        rig.until("failed", |seen| seen.sent.len() == 2);
        rig.send(id, b"more".to_vec());
        rig.until("failed", |seen| seen.sent.len() == 3);
        rig.settle();
        let results: Vec<bool> = rig.seen.sent.iter().map(|(_, result)| result.is_ok()).collect();
        assert_eq!(results, [true, false, false]);
    });
}

#[test]
fn another_thread_ends_a_wait() {
    on_each(|rig| {
        for _ in 0..20 {
            let waker = rig.driver.waker();
            let other = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                waker.wake();
            });
            let start = Instant::now();
            rig.wait(Duration::from_secs(20));
            assert!(start.elapsed() < Duration::from_secs(10), "{}", rig.driver.name());
            other.join().unwrap();
        }
    });
}

#[test]
fn a_log_write_that_ends_between_two_waits_is_not_slept_over() {
    on_each(|rig| {
        let file = Arc::new(tempfile::tempfile().unwrap());
        for token in 0..20 {
            let buf = AlignedBuf::zeroed(4096);
            rig.driver.write_durable(WriteToken(token), file.clone().into(), 0, buf);
            // A turn that takes longer than the write: nobody is asleep when it ends.
            rig.driver.wait(Some(Duration::ZERO), &mut rig.seen).unwrap();
            std::thread::sleep(Duration::from_millis(15));
            let start = Instant::now();
            if rig.seen.written.len() <= usize::try_from(token).unwrap() {
                rig.wait(Duration::from_secs(5));
            }
            assert!(start.elapsed() < Duration::from_secs(2), "{}", rig.driver.name());
            rig.until("written", |seen| seen.written.len() as u64 == token + 1);
        }
    });
}

#[test]
fn a_wait_without_events_lasts_as_long_as_asked() {
    on_each(|rig| {
        let (_idle, _peer) = rig.attach();
        rig.wait(Duration::ZERO);
        // The kernel may end a wait early, as after the teardown of this thread's last driver.
        let lengths = (0..4).map(|_| {
            let start = Instant::now();
            rig.wait(Duration::from_millis(80));
            start.elapsed()
        });
        let took = lengths.max().unwrap();
        assert!(took >= Duration::from_millis(75), "{}: only {took:?}", rig.driver.name());
        let start = Instant::now();
        rig.wait(Duration::ZERO);
        assert!(start.elapsed() < Duration::from_millis(60), "zero does not wait");
    });
}

#[test]
fn more_sockets_than_receive_buffers_are_served_at_once() {
    let sockets = 300;
    assert!(sockets > usize::from(limits::RECEIVE_BUFFERS) && sockets > limits::EPOLL_EVENTS);
    on_each(|rig| {
        let mut peers = Vec::new();
        for _ in 0..sockets {
            peers.push(rig.attach());
        }
        rig.wait(Duration::ZERO);
        let data = pattern(100_000);
        let rounds = data.chunks(40_000).collect::<Vec<_>>();
        let mut expected = 0;
        for round in rounds {
            for (_, theirs) in &mut peers {
                theirs.write_all(round).unwrap();
            }
            expected += round.len();
            let ids: Vec<SocketId> = peers.iter().map(|(id, _)| *id).collect();
            rig.until("received", |seen| ids.iter().all(|id| seen.bytes(*id) == expected));
        }
        assert!(peers.iter().all(|(id, _)| rig.seen.received[id] == data));
        for (id, _) in &peers {
            rig.send(*id, b"answer".to_vec());
        }
        rig.until("sent", |seen| seen.sent.len() == sockets);
        for (_, theirs) in &mut peers {
            let mut answer = [0; 6];
            theirs.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"answer");
        }
        drop(peers);
        rig.until("disconnected", |seen| seen.disconnected.len() == sockets);
    });
}

#[test]
fn who_has_much_to_say_gets_a_share_of_each_wait_and_others_are_heard_at_once() {
    const ROUNDS: usize = 60;
    let bulky = 40;
    assert!(bulky > 2 * limits::BULK_RECEIVES);
    on_each(|rig| {
        let name = rig.driver.name();
        let mut peers: Vec<_> = (0..bulky).map(|_| rig.attach()).collect();
        let (quiet, mut quiet_peer) = rig.attach();
        let piece = vec![7; 64 << 10];
        let ids: Vec<SocketId> = peers.iter().map(|(id, _)| *id).collect();
        let received = |seen: &Seen| ids.iter().map(|id| seen.bytes(*id)).collect::<Vec<_>>();
        let mut settled = Vec::new();
        for round in 0..ROUNDS {
            for (_, theirs) in &mut peers {
                theirs.set_nonblocking(true).unwrap();
                while theirs.write(&piece).is_ok() {}
            }
            // What comes before all are known to be bulky does not count.
            if round == ROUNDS / 4 {
                settled = received(&rig.seen);
            }
            quiet_peer.write_all(b"?").unwrap();
            let before: usize = received(&rig.seen).iter().sum();
            rig.wait(Duration::from_millis(50));
            let came = received(&rig.seen).iter().sum::<usize>() - before;
            let most = limits::BULK_RECEIVES * limits::RECEIVE_BUFFER_BYTES;
            if round >= ROUNDS / 4 {
                assert!(came <= most, "{name}: {came} bytes in one wait");
                assert!(rig.seen.bytes(quiet) + 1 >= round, "{name}: not heard in round {round}");
            }
        }
        let turns = (ROUNDS - ROUNDS / 4) * limits::BULK_RECEIVES / bulky;
        let least = turns / 2 * limits::RECEIVE_BUFFER_BYTES;
        for (before, after) in settled.into_iter().zip(received(&rig.seen)) {
            assert!(after - before >= least, "{name}: {} bytes of {least}", after - before);
        }
    });
}

#[test]
fn who_begins_with_much_gets_no_more_than_a_share_of_the_first_wait() {
    on_each(|rig| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let piece = pattern(limits::RECEIVE_BUFFER_BYTES);
        let mut sent = 0;
        while let Ok(count) = theirs.write(&piece) {
            sent += count;
        }
        assert!(sent > 2 * limits::RECEIVE_BUFFER_BYTES, "the socket takes {sent} bytes");
        let id = rig.driver.attach(OwnedFd::from(ours).into()).unwrap();
        rig.until("received", |seen| seen.bytes(id) > 0);
        let first = rig.seen.bytes(id);
        assert!(first <= limits::RECEIVE_BUFFER_BYTES, "{}: {first} bytes", rig.driver.name());
        rig.until("all", |seen| seen.bytes(id) == sent);
    });
}

#[test]
fn a_bulky_socket_is_paused_and_closed_like_any_other() {
    on_each(|rig| {
        let name = rig.driver.name();
        let (id, mut theirs) = rig.attach();
        let writer = std::thread::spawn(move || {
            let sent = theirs.write_all(&pattern(40_000_000)).is_ok();
            (theirs, sent)
        });
        rig.until("bulky", |seen| seen.bytes(id) > 1_000_000);
        rig.driver.pause(id);
        rig.settle();
        let before = rig.seen.bytes(id);
        rig.settle();
        assert_eq!(rig.seen.bytes(id), before, "{name}: paused");
        rig.driver.resume(id);
        rig.until("resumed", |seen| seen.bytes(id) > before + 1_000_000);
        rig.driver.close(id);
        let (mut theirs, sent) = {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !writer.is_finished() {
                assert!(Instant::now() < deadline, "{name}: still open");
                rig.wait(Duration::from_millis(10));
            }
            writer.join().unwrap()
        };
        assert!(!sent || theirs.read(&mut [0]).is_ok_and(|count| count == 0), "{name}: closed");
        // The slot serves its next socket from the start.
        let (next, mut theirs) = rig.attach();
        assert_eq!((next.slot, next == id), (id.slot, false));
        theirs.write_all(b"small").unwrap();
        rig.until("received", |seen| seen.bytes(next) == 5);
    });
}

#[test]
fn more_operations_than_the_queue_holds_are_all_submitted() {
    on_each(|rig| {
        let (id, mut theirs) = rig.attach();
        for _ in 0..limits::URING_ENTRIES {
            rig.driver.pause(id);
            rig.driver.resume(id);
        }
        theirs.write_all(b"still here").unwrap();
        rig.until("received", |seen| seen.bytes(id) == 10);
    });
}

#[test]
fn connections_are_made_and_carry_bytes_both_ways() {
    on_each(|rig| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = UnixListener::bind(&path).unwrap();
        let by_tcp = rig.driver.connect(&PeerAddress::Tcp(tcp.local_addr().unwrap())).unwrap();
        let by_path = rig.driver.connect(&PeerAddress::Unix(path)).unwrap();
        let both = |seen: &Seen| seen.connected.len() == 2;
        rig.until("both connected", both);
        assert!(rig.seen.connected.iter().all(|(_, result)| result.is_ok()));
        let (mut over_tcp, _) = tcp.accept().unwrap();
        let (mut over_path, _) = unix.accept().unwrap();
        for (id, theirs) in
            [(by_tcp, &mut over_tcp as &mut dyn ReadWrite), (by_path, &mut over_path)]
        {
            rig.send(id, b"to them".to_vec());
            rig.until("sent", |seen| seen.sent.iter().any(|(sent, _)| *sent == id));
            let mut got = [0; 7];
            theirs.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"to them");
            theirs.write_all(b"to us").unwrap();
            rig.until("received", |seen| seen.bytes(id) == 5);
        }
        drop(over_tcp);
        rig.until("ended", |seen| seen.disconnected.iter().any(|(id, _)| *id == by_tcp));
        rig.driver.close(by_tcp);
        rig.driver.close(by_path);
    });
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

#[test]
fn a_refused_connection_is_reported_once_and_its_place_is_used_again() {
    on_each(|rig| {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for round in 0..50 {
            let id = rig.driver.connect(&PeerAddress::Tcp(gone)).unwrap();
            assert!(id.slot < 4, "slot {} in round {round}", id.slot);
            rig.until("refused", |seen| seen.connected.len() == 1);
            let (refused, result) = rig.seen.connected.pop().unwrap();
            assert_eq!((refused, result), (id, Err(io::ErrorKind::ConnectionRefused)));
            rig.driver.close(id);
            rig.wait(Duration::ZERO);
        }
        rig.settle();
        assert!(rig.seen.connected.is_empty() && rig.seen.disconnected.is_empty());
    });
}

#[test]
fn a_connection_that_is_given_up_while_it_is_made_is_never_heard_of_again() {
    on_each(|rig| {
        // Nobody accepts, and the queue is full: the kernel goes on trying.
        let full =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
        full.bind(&any.into()).unwrap();
        full.listen(0).unwrap();
        let address = PeerAddress::Tcp(full.local_addr().unwrap().as_socket().unwrap());
        let ids: Vec<SocketId> = (0..8).map(|_| rig.driver.connect(&address).unwrap()).collect();
        rig.settle();
        assert!(rig.seen.connected.len() < 8, "all were connected");
        let before = rig.seen.connected.len();
        ids.into_iter().for_each(|id| rig.driver.close(id));
        rig.settle();
        assert_eq!(rig.seen.connected.len(), before);
        let again = rig.driver.connect(&address).unwrap();
        assert!(again.slot < 8, "slot {}", again.slot);
    });
}
