//! A well-behaved client driven by hand: it reads as much as it is told to, and may be slow.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcore_proto::grpc::{CallOptions, Client, ClientConfig, ClientEvent, Code, MethodHandle};
use etcore_proto::h2::Budget;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message;

const WAIT: Duration = Duration::from_secs(120);

/// Number of bytes of the answer, or the status.
pub(crate) type Answer = Result<usize, (Code, String)>;

pub(crate) struct Caller {
    pub(crate) socket: TcpStream,
    pub(crate) client: Client,
    put: MethodHandle,
    range: MethodHandle,
    out: Vec<u8>,
    start: Instant,
    /// By the call's number.
    pub(crate) answers: Vec<(u64, Answer)>,
}

impl Caller {
    /// `window_bytes` is what the server may send ahead on one stream and on the connection.
    pub(crate) fn connect(port: u16, window_bytes: u32) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("the member listens");
        socket.set_nonblocking(true).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
        socket.set_nodelay(true).expect("a socket");
        let mut config = ClientConfig::default();
        config.h2.stream_window_bytes = window_bytes;
        config.h2.connection_window_bytes = window_bytes.max(65_535);
        let mut client = Client::new(config, &Budget::new(8 << 30, 8 << 30));
        let put = client.method("/etcdserverpb.KV/Put");
        let range = client.method("/etcdserverpb.KV/Range");
        let (out, answers) = (Vec::new(), Vec::new());
        Self { socket, client, put, range, out, start: Instant::now(), answers }
    }

    pub(crate) fn start_put(&mut self, user: u64, key: &str, value: &[u8]) {
        let request = pb::PutRequest {
            key: key.to_owned().into(),
            value: value.to_vec().into(),
            ..Default::default()
        };
        let options = CallOptions { user, ..Default::default() };
        self.client.start_unary(self.put, &options, &request.encode_to_vec()).expect("started");
    }

    pub(crate) fn start_list(&mut self, user: u64, key: &str, end: &str) {
        let request = list(key, end);
        let options = CallOptions { user, ..Default::default() };
        self.client.start_unary(self.range, &options, &request).expect("started");
    }

    /// Writes what the socket takes; true if anything moved.
    pub(crate) fn write(&mut self) -> bool {
        let mut moved = false;
        loop {
            if self.out.is_empty() {
                self.client.poll_transmit(&mut self.out, 256 << 10);
            }
            if self.out.is_empty() {
                return moved;
            }
            match self.socket.write(&self.out) {
                Ok(count) => {
                    self.out.drain(..count);
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return moved,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Reads at most `bytes_max`; how much came.
    pub(crate) fn read(&mut self, bytes_max: usize) -> usize {
        let mut buf = vec![0; bytes_max];
        let count = match self.socket.read(&mut buf) {
            Ok(0) => panic!("the member closed the connection"),
            Ok(count) => {
                let now_ms = u64::try_from(self.start.elapsed().as_millis()).expect("short");
                self.client.receive(&buf[..count], now_ms).expect("a correct server");
                count
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        };
        while let Some(event) = self.client.next_event() {
            match event {
                ClientEvent::Response { user, message, .. } => {
                    self.answers.push((user, Ok(message.len())));
                }
                ClientEvent::Status { user, code, message, .. } => {
                    self.answers.push((user, Err((code, message))));
                }
                _ => {}
            }
        }
        count
    }

    /// Goes on until so many answers are here.
    pub(crate) fn until_answers(&mut self, count: usize) {
        let deadline = Instant::now() + WAIT;
        while self.answers.len() < count {
            let moved = self.write() | (self.read(64 << 10) > 0);
            if !moved {
                self.sleep_until_readable();
                assert!(Instant::now() < deadline, "{} answers of {count}", self.answers.len());
            }
        }
    }

    /// While there is more to write it looks at both sides in turns.
    fn sleep_until_readable(&self) {
        if !self.out.is_empty() {
            return std::thread::sleep(Duration::from_micros(100));
        }
        self.socket.set_nonblocking(false).expect("a socket");
        // Its outcome shows at the next read.
        let _ = self.socket.peek(&mut [0]);
        self.socket.set_nonblocking(true).expect("a socket");
    }

    /// Starts a put and waits for its answer, which must be a good one.
    pub(crate) fn put_once(&mut self, key: &str) -> Duration {
        self.once(|caller| caller.start_put(1, key, b"x"))
    }

    /// The same for a read of one key, of which no disk knows.
    fn get_once(&mut self, key: &str) -> Duration {
        self.once(|caller| caller.start_list(1, key, ""))
    }

    fn once(&mut self, start_call: impl FnOnce(&mut Self)) -> Duration {
        let start = Instant::now();
        self.answers.clear();
        start_call(self);
        self.until_answers(1);
        assert!(self.answers[0].1.is_ok(), "{:?}", self.answers[0].1);
        start.elapsed()
    }
}

/// A Range of everything from `key` to `end`.
pub(crate) fn list(key: &str, end: &str) -> Vec<u8> {
    let request = pb::RangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        serializable: true,
        ..Default::default()
    };
    request.encode_to_vec()
}

/// How long each call of a well-behaved client took.
#[derive(Default)]
pub(crate) struct Took {
    pub(crate) puts: Vec<Duration>,
    pub(crate) gets: Vec<Duration>,
}

/// Puts and reads a small value, one call after the other, until told to stop.
pub(crate) fn calls_until(port: u16, stop: &AtomicBool) -> Took {
    let mut caller = Caller::connect(port, 1 << 20);
    let mut took = Took::default();
    while !stop.load(Ordering::Relaxed) {
        took.puts.push(caller.put_once("bystander"));
        for _ in 0..4 {
            took.gets.push(caller.get_once("bystander"));
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    took
}

/// The time that 99 of a hundred kept.
pub(crate) fn p99(took: &[Duration]) -> Duration {
    quantile(took, 99)
}

/// The time that so many of a hundred kept.
pub(crate) fn quantile(took: &[Duration], percent: usize) -> Duration {
    let mut took = took.to_vec();
    took.sort_unstable();
    took.get(took.len() * percent / 100).copied().unwrap_or_default()
}
