//! A crowd of clients with large requests on many streams each, all at once.
//!
//! One thread moves many of them, in small pieces, and all their puts send the same bytes: what a
//! crowd costs by itself must not keep the machine busy whose member is judged.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use etcore_proto::h2::{
    BlockKind, Budget, Config, Conn, ErrorCode, Handler, Headers, SendError, StreamId,
};
use etcore_proto::hpack::{Field, FieldSink, HeaderItem};

use super::wire::{grpc_fields, grpc_message};
use super::{PUT, RANGE};
use crate::harness::raw::list;

/// What one member of the crowd wants.
pub(crate) struct Wish {
    pub(crate) key: String,
    pub(crate) value_bytes: usize,
    /// Every second stream puts, the others list.
    pub(crate) streams: usize,
    /// Each of them.
    pub(crate) list: (&'static str, &'static str),
    pub(crate) list_bytes_min: usize,
}

/// A request must be answered within this.
const WAIT: Duration = Duration::from_secs(120);
/// What one system call moves.
const PIECE_BYTES: usize = 16 << 10;
const WINDOW_BYTES: u32 = 1 << 20;

/// Sends all that is wished, and returns when all is answered, or refused in words that clients
/// know.
///
/// How many were served.
pub(crate) fn serve_all(port: u16, wishes: &[Wish]) -> usize {
    let mut crowd: Vec<One> = wishes.iter().map(|wish| One::connect(port, wish)).collect();
    let deadline = Instant::now() + WAIT;
    let mut buf = vec![0; PIECE_BYTES];
    while crowd.iter().any(|one| !one.is_done()) {
        let mut moved = false;
        for one in &mut crowd {
            moved |= one.go_on(&mut buf);
        }
        if !moved {
            assert!(Instant::now() < deadline, "requests without an answer");
            wait_for(&crowd);
        }
    }
    crowd.iter().zip(wishes).map(|(one, wish)| one.judge(wish)).sum()
}

/// Until something can be moved.
fn wait_for(crowd: &[One]) {
    let mut polled: Vec<libc::pollfd> = crowd
        .iter()
        .map(|one| libc::pollfd {
            fd: one.socket.as_raw_fd(),
            events: libc::POLLIN | if one.out.is_empty() { 0 } else { libc::POLLOUT },
            revents: 0,
        })
        .collect();
    // SAFETY: the array outlives the call, and its length is told.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 100) };
}

/// One of them.
struct One {
    socket: TcpStream,
    conn: Conn,
    calls: Calls,
    /// The message of every put, in wire form, and how much of it each stream has sent.
    put: Vec<u8>,
    sent: HashMap<StreamId, usize>,
    out: Vec<u8>,
    out_start: usize,
    start: Instant,
    lists: Vec<StreamId>,
}

impl One {
    fn connect(port: u16, wish: &Wish) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("the member listens");
        socket.set_nodelay(true).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        let config = Config {
            stream_window_bytes: WINDOW_BYTES,
            connection_window_bytes: WINDOW_BYTES,
            ..Config::default()
        };
        let mut calls = Calls::default();
        let conn = Conn::client(config, &Budget::new(1 << 30, 1 << 30), &mut calls);
        let put = grpc_message(&put_request(&wish.key, wish.value_bytes));
        let (sent, lists, out) = (HashMap::new(), Vec::new(), Vec::new());
        let start = Instant::now();
        let mut one = Self { socket, conn, calls, put, sent, out, out_start: 0, start, lists };
        for number in 0..wish.streams {
            if number % 2 == 0 {
                let stream = one.open(PUT);
                one.sent.insert(stream, 0);
                one.send_put(stream);
            } else {
                let stream = one.open(RANGE);
                let request = grpc_message(&list(wish.list.0, wish.list.1));
                one.conn.send_data(stream, &request, true).expect("a request");
                one.lists.push(stream);
            }
        }
        one
    }

    fn open(&mut self, path: &str) -> StreamId {
        let fields = grpc_fields(path);
        let items: Vec<HeaderItem<'_>> = fields
            .iter()
            .map(|(name, value)| HeaderItem::Literal(name.as_bytes(), value.as_bytes()))
            .collect();
        let stream = self.conn.open(&items, false).expect("a stream");
        self.calls.open.insert(stream, Call::default());
        stream
    }

    /// As much of a put as may go now.
    fn send_put(&mut self, stream: StreamId) {
        let Some(sent) = self.sent.get_mut(&stream) else { return };
        while *sent < self.put.len() {
            let room = self.conn.capacity(stream).min(self.put.len() - *sent);
            if room == 0 {
                return;
            }
            let is_last = *sent + room == self.put.len();
            let piece = &self.put[*sent..*sent + room];
            match self.conn.send_data(stream, piece, is_last) {
                Ok(()) => *sent += room,
                // Answered before it was complete.
                Err(SendError::Closed | SendError::BufferFull) => *sent = self.put.len(),
            }
        }
    }

    /// Writes a piece and reads one; true if anything moved.
    fn go_on(&mut self, buf: &mut [u8]) -> bool {
        if self.out_start == self.out.len() {
            self.out.clear();
            self.out_start = 0;
            self.conn.poll_transmit(&mut self.out, PIECE_BYTES);
        }
        let mut moved = false;
        if !self.out.is_empty() {
            let rest = &self.out[self.out_start..];
            match self.socket.write(&rest[..rest.len().min(PIECE_BYTES)]) {
                Ok(count) => {
                    self.out_start += count;
                    moved = true;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        match self.socket.read(buf) {
            Ok(count) => {
                assert!(count > 0 || self.is_done(), "the member closed the connection");
                let now_ms = u64::try_from(self.start.elapsed().as_millis()).expect("short");
                self.conn
                    .receive(&buf[..count], now_ms, &mut self.calls)
                    .expect("a correct server");
                moved |= count > 0;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        while let Some(stream) = self.conn.next_writable() {
            self.send_put(stream);
        }
        moved
    }

    fn is_done(&self) -> bool {
        self.calls.open.is_empty()
    }

    /// Lists are whole; too much at once may be refused.
    fn judge(&self, wish: &Wish) -> usize {
        /// Unknown, ResourceExhausted, Unavailable.
        const REFUSALS: [u32; 3] = [2, 8, 14];
        let mut served = 0;
        for (stream, call) in &self.calls.ended {
            let is_refused = call.reset == Some(ErrorCode::REFUSED_STREAM)
                || call.reset == Some(ErrorCode::ENHANCE_YOUR_CALM)
                || call.status.is_some_and(|status| REFUSALS.contains(&status));
            let is_served = call.status == Some(0)
                && (!self.lists.contains(stream) || call.bytes > wish.list_bytes_min);
            assert!(is_refused || is_served, "{call:?}");
            served += usize::from(is_served);
        }
        served
    }
}

/// A PutRequest.
fn put_request(key: &str, value_bytes: usize) -> Vec<u8> {
    use prost::Message as _;
    let request = etcore_proto::pb::etcdserverpb::PutRequest {
        key: key.to_owned().into(),
        value: vec![b'v'; value_bytes].into(),
        ..Default::default()
    };
    request.encode_to_vec()
}

#[derive(Debug, Default)]
struct Call {
    bytes: usize,
    status: Option<u32>,
    reset: Option<ErrorCode>,
}

/// The calls of one connection, as its answers come in.
#[derive(Default)]
struct Calls {
    open: HashMap<StreamId, Call>,
    ended: Vec<(StreamId, Call)>,
    /// Of the block being read.
    status: Option<u32>,
}

impl Calls {
    fn end(&mut self, stream: StreamId, reset: Option<ErrorCode>) {
        if let Some(call) = self.open.remove(&stream) {
            self.ended.push((stream, Call { reset, ..call }));
        }
    }
}

impl FieldSink for Calls {
    fn classify(&mut self, _: &[u8], _: &[u8]) -> u32 {
        0
    }

    fn field(&mut self, field: Field<'_>) {
        if field.name == b"grpc-status" {
            let status = std::str::from_utf8(field.value).expect("a number");
            self.status = Some(status.parse().expect("a number"));
        }
    }
}

impl Handler for Calls {
    fn block_start(&mut self, _: BlockKind) {
        self.status = None;
    }

    fn headers(&mut self, conn: &mut Conn, stream: StreamId, headers: Headers) {
        if headers.end_stream {
            if let Some(call) = self.open.get_mut(&stream) {
                call.status = self.status;
            }
            self.end(stream, None);
            conn.reset_unfinished(stream);
        }
    }

    fn data(&mut self, conn: &mut Conn, stream: StreamId, data: &[u8], _: bool) {
        let count = u32::try_from(data.len()).expect("a frame");
        if let Some(call) = self.open.get_mut(&stream) {
            call.bytes += data.len();
        }
        conn.release_connection(count);
        conn.release_stream(stream, count);
    }

    fn reset(&mut self, _: &mut Conn, stream: StreamId, code: ErrorCode, _: bool) {
        self.end(stream, Some(code));
    }

    fn go_away(&mut self, _: u32, code: ErrorCode, _: &[u8]) {
        panic!("GOAWAY {code:?}");
    }
}
