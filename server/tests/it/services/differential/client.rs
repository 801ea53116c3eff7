//! A blocking gRPC client for one server: calls are started, then waited for, so that both servers
//! work at the same time. Streams keep what arrived until somebody asks for it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcore_proto::grpc::{
    CallOptions, Client as Grpc, ClientConfig, ClientEvent, MethodHandle, StreamId,
};
use etcore_proto::h2::Budget;

/// What a call has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Message(Bytes),
    /// The status: code and text.
    End(i32, String),
}

/// A call on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CallId(u64);

pub(crate) struct Client {
    socket: TcpStream,
    grpc: Grpc,
    methods: BTreeMap<&'static str, MethodHandle>,
    streams: BTreeMap<CallId, StreamId>,
    inbox: BTreeMap<CallId, VecDeque<Item>>,
    next: u64,
    start: Instant,
    out: Vec<u8>,
    buf: Vec<u8>,
    dead: bool,
}

impl Client {
    pub(crate) fn connect(port: u16) -> std::io::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_nodelay(true)?;
        let mut config = ClientConfig::default();
        config.h2.stream_window_bytes = 1 << 28;
        config.h2.connection_window_bytes = 1 << 30;
        Ok(Self {
            socket,
            grpc: Grpc::new(config, &Budget::new(4 << 30, 4 << 30)),
            methods: BTreeMap::new(),
            streams: BTreeMap::new(),
            inbox: BTreeMap::new(),
            next: 0,
            start: Instant::now(),
            out: Vec::new(),
            buf: vec![0; 256 << 10],
            dead: false,
        })
    }

    /// A call with one request.
    pub(crate) fn start(&mut self, path: &'static str, message: &[u8]) -> CallId {
        self.start_within(path, message, None)
    }

    /// The same with a deadline, which the server keeps.
    pub(crate) fn start_within(
        &mut self,
        path: &'static str,
        message: &[u8],
        timeout_ms: Option<u64>,
    ) -> CallId {
        let call = self.open_within(path, timeout_ms);
        self.send(call, message);
        self.half_close(call);
        call
    }

    /// A call with as many requests as one likes.
    pub(crate) fn open(&mut self, path: &'static str) -> CallId {
        self.open_within(path, None)
    }

    fn open_within(&mut self, path: &'static str, timeout_ms: Option<u64>) -> CallId {
        let method = match self.methods.get(path) {
            Some(method) => *method,
            None => {
                let method = self.grpc.method(path);
                self.methods.insert(path, method);
                method
            }
        };
        let call = CallId(self.next);
        self.next += 1;
        self.inbox.insert(call, VecDeque::new());
        let options = CallOptions { user: call.0, timeout_ms, ..CallOptions::default() };
        match self.grpc.start_stream(method, &options) {
            Ok(stream) => drop(self.streams.insert(call, stream)),
            Err(error) => self.end(call, &format!("not started: {error:?}")),
        }
        call
    }

    /// A failure is not told here: the call has ended, and says so.
    pub(crate) fn send(&mut self, call: CallId, message: &[u8]) {
        if let Some(stream) = self.streams.get(&call) {
            let _ = self.grpc.send_message(*stream, message);
        }
        self.flush();
    }

    pub(crate) fn half_close(&mut self, call: CallId) {
        if let Some(stream) = self.streams.get(&call) {
            let _ = self.grpc.half_close(*stream);
        }
        self.flush();
    }

    /// Forgets a call and what it brought.
    pub(crate) fn forget(&mut self, call: CallId) {
        if let Some(stream) = self.streams.remove(&call) {
            self.grpc.cancel(stream);
        }
        self.inbox.remove(&call);
        self.flush();
    }

    /// What has arrived for a call and was not taken.
    pub(crate) fn items(&mut self, call: CallId) -> &mut VecDeque<Item> {
        self.inbox.entry(call).or_default()
    }

    /// Waits until `done` likes what has arrived; false if the time was up before.
    pub(crate) fn wait(
        &mut self,
        call: CallId,
        limit: Duration,
        done: impl Fn(&VecDeque<Item>) -> bool,
    ) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if done(self.items(call)) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.dead {
                return false;
            }
            self.read(left);
        }
    }

    /// Everything a call brings until its status.
    pub(crate) fn finish(&mut self, call: CallId, limit: Duration) -> Vec<Item> {
        let ended = |items: &VecDeque<Item>| matches!(items.back(), Some(Item::End(..)));
        if !self.wait(call, limit, ended) {
            let text = if self.dead { "the server is gone" } else { "no answer in time" };
            self.end(call, text);
        }
        let items = self.inbox.remove(&call).unwrap_or_default();
        if let Some(stream) = self.streams.remove(&call)
            && !matches!(items.back(), Some(Item::End(code, _)) if *code >= 0)
        {
            self.grpc.cancel(stream);
        }
        items.into()
    }

    /// A status that no server sends.
    fn end(&mut self, call: CallId, text: &str) {
        self.items(call).push_back(Item::End(-1, text.to_owned()));
    }

    fn flush(&mut self) {
        loop {
            self.out.clear();
            let more = self.grpc.poll_transmit(&mut self.out, 1 << 20);
            if !self.out.is_empty() && self.socket.write_all(&self.out).is_err() {
                self.dead = true;
                return;
            }
            if !more {
                return;
            }
        }
    }

    fn read(&mut self, limit: Duration) {
        self.flush();
        let _ = self.socket.set_read_timeout(Some(limit.max(Duration::from_millis(1))));
        match self.socket.read(&mut self.buf) {
            Ok(0) => self.dead = true,
            Ok(count) => {
                let now_ms = u64::try_from(self.start.elapsed().as_millis()).expect("short");
                let received = self.grpc.receive(&self.buf[..count], now_ms);
                self.dead |= received.is_err();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => self.dead = true,
        }
        while let Some(event) = self.grpc.next_event() {
            let (user, items) = match event {
                ClientEvent::Response { user, message, .. } => {
                    (user, vec![Item::Message(message), Item::End(0, String::new())])
                }
                ClientEvent::Message { user, message, .. } => (user, vec![Item::Message(message)]),
                ClientEvent::Status { user, code, message, .. } => {
                    (user, vec![Item::End(code as i32, message)])
                }
                _ => continue,
            };
            if let Some(inbox) = self.inbox.get_mut(&CallId(user)) {
                inbox.extend(items);
            }
        }
        self.flush();
    }
}
