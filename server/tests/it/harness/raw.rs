//! A client driven by hand over a plain socket: it reads only when told to, and may be slow.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcore_proto::grpc::{CallOptions, Client, ClientConfig, ClientEvent, Code, MethodHandle};
use etcore_proto::h2::Budget;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message;

const WAIT: Duration = Duration::from_secs(120);

/// The message, or the status in the server's words.
pub type Answer = Result<Bytes, (Code, String)>;

pub struct Raw {
    pub socket: TcpStream,
    pub client: Client,
    put: MethodHandle,
    range: MethodHandle,
    out: Vec<u8>,
    start: Instant,
    established: bool,
    /// By the call's number.
    pub answers: Vec<(u64, Answer)>,
}

impl Raw {
    /// Waits until the member listens and has said its settings. `window_bytes` is what it may send
    /// ahead on one stream and on the connection.
    pub fn connect(port: u16, window_bytes: u32) -> Self {
        let deadline = Instant::now() + WAIT;
        let socket = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        socket.set_nonblocking(true).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
        socket.set_nodelay(true).expect("a socket");
        let mut config = ClientConfig::default();
        config.h2.stream_window_bytes = window_bytes;
        config.h2.connection_window_bytes = window_bytes.max(65_535);
        let mut client = Client::new(config, &Budget::new(8 << 30, 8 << 30));
        let put = client.method("/etcdserverpb.KV/Put");
        let range = client.method("/etcdserverpb.KV/Range");
        let (out, answers, start) = (Vec::new(), Vec::new(), Instant::now());
        let established = false;
        let mut raw = Self { socket, client, put, range, out, start, established, answers };
        raw.until("established", |raw| raw.established);
        raw
    }

    pub fn start_put(&mut self, user: u64, key: &str, value: &[u8]) {
        let request = pb::PutRequest {
            key: key.to_owned().into(),
            value: value.to_vec().into(),
            ..Default::default()
        };
        let options = CallOptions { user, ..Default::default() };
        self.client.start_unary(self.put, &options, &request.encode_to_vec()).expect("started");
    }

    /// Starts a [`list`].
    pub fn start_list(&mut self, user: u64, key: &str, end: &str) {
        let options = CallOptions { user, ..Default::default() };
        self.client.start_unary(self.range, &options, &list(key, end)).expect("started");
    }

    /// Writes what the socket takes; true if anything moved.
    pub fn write(&mut self) -> bool {
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
    pub fn read(&mut self, bytes_max: usize) -> usize {
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
                ClientEvent::Established => self.established = true,
                ClientEvent::Response { user, message, .. } => {
                    self.answers.push((user, Ok(message)));
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
    pub fn until_answers(&mut self, count: usize) {
        self.until("answered", |raw| raw.answers.len() >= count);
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + WAIT;
        while !done(self) {
            let moved = self.write() | (self.read(64 << 10) > 0);
            if !moved {
                self.sleep_until_readable();
                assert!(Instant::now() < deadline, "not {what}; {} answers", self.answers.len());
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

    /// One small put, answered well.
    pub fn put_once(&mut self, key: &str) -> Duration {
        self.once(|raw| raw.start_put(1, key, b"x"))
    }

    /// The same for a read of one key, of which no disk knows.
    pub fn get_once(&mut self, key: &str) -> Duration {
        self.once(|raw| raw.start_list(1, key, ""))
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

/// A serializable Range of everything from `key` to `end`.
pub fn list(key: &str, end: &str) -> Vec<u8> {
    let request = pb::RangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        serializable: true,
        ..Default::default()
    };
    request.encode_to_vec()
}
