//! The gRPC client's side of one connection.
//!
//! Owned by the benchmark tool, tests, the simulator and `ctl`. Methods and repeating metadata are
//! registered once and cost a byte each afterwards; every call carries a number of the caller's
//! choice that its events repeat, so the caller needs no table of its own. Must never hold more
//! than the budgets allow.

mod head;
mod receive;

use std::collections::VecDeque;

use bytes::Bytes;

use self::head::HeadScratch;
use self::receive::Call;
use super::assembler::Chunk;
use super::calls::Calls;
use super::server::prefix;
use super::text::encode_timeout_ms;
use super::{Code, MESSAGE_PREFIX_BYTES, Metadata, SendError, StreamId, gzip};
use crate::h2::{Budget, Config, Conn, ConnError, ErrorCode, OpenError};
use crate::hpack::{HeaderItem, SlotId};

/// How a client's connection behaves.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The HTTP/2 part.
    pub h2: Config,
    /// `:authority` of every call.
    pub authority: String,
    /// `:scheme`: `http`, or `https` over TLS.
    pub scheme: &'static str,
    /// `user-agent` of every call.
    pub user_agent: String,
    /// Largest response message, in bytes, before and after inflation.
    pub message_bytes_max: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            h2: Config::client(),
            authority: "localhost".to_owned(),
            scheme: "http",
            user_agent: concat!("etcore/", env!("CARGO_PKG_VERSION")).to_owned(),
            message_bytes_max: i32::MAX as usize,
        }
    }
}

/// A method registered with [`Client::method`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodHandle(SlotId);

/// A metadata field registered with [`Client::register_metadata`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataHandle(SlotId);

/// What a call says besides its message.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallOptions<'a> {
    /// Comes back in every event of the call.
    pub user: u64,
    /// How long the server may take, in milliseconds. The client itself does not watch the time.
    pub timeout_ms: Option<u64>,
    /// Registered metadata.
    pub registered: &'a [MetadataHandle],
    /// Other metadata; values of `-bin` names must be base64 already, see
    /// [`super::encode_base64`].
    pub metadata: &'a [(&'a str, &'a [u8])],
    /// Compress the messages of this call.
    pub gzip: bool,
}

/// What happened on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// The server's settings are here: its limit of concurrent streams is known.
    Established,
    /// A unary call succeeded and is over.
    Response {
        /// The call.
        stream: StreamId,
        /// The call's number.
        user: u64,
        /// The response, inflated.
        message: Bytes,
    },
    /// The head of a streaming answer.
    Head {
        /// The call.
        stream: StreamId,
        /// The call's number.
        user: u64,
        /// The server's metadata, if any.
        metadata: Option<Box<Metadata>>,
    },
    /// A message of a streaming answer.
    Message {
        /// The call.
        stream: StreamId,
        /// The call's number.
        user: u64,
        /// The message, inflated.
        message: Bytes,
    },
    /// The call is over: a streaming call in any way, a unary call with an error.
    Status {
        /// The call.
        stream: StreamId,
        /// The call's number.
        user: u64,
        /// What became of it.
        code: Code,
        /// In the server's words.
        message: String,
        /// The server did not process the call; it may be tried elsewhere.
        unprocessed: bool,
        /// Metadata in the trailers, if any.
        metadata: Option<Box<Metadata>>,
    },
    /// A call that was refused capacity has some now.
    Writable {
        /// The call.
        stream: StreamId,
        /// The call's number.
        user: u64,
    },
    /// The server ends the connection gracefully or not; calls it does not process got their
    /// status.
    GoAway {
        /// Why.
        code: ErrorCode,
        /// In the server's words.
        debug: String,
    },
    /// The answer to [`Client::ping`].
    Pong {
        /// Its payload.
        payload: [u8; 8],
    },
}

/// Why no call could be started.
pub type StartError = OpenError;

/// The client's side of a connection.
#[derive(Debug)]
pub struct Client {
    conn: Conn,
    core: Core,
    slots: Slots,
    /// The constant part of a call's header list, kept to spare the allocation.
    items: Vec<HeaderItem<'static>>,
}

/// What answers the connection's callbacks.
#[derive(Debug)]
struct Core {
    message_bytes_max: usize,
    calls: Calls<Call>,
    events: VecDeque<ClientEvent>,
    chunk: Chunk,
    head: HeadScratch,
    established: bool,
}

/// The constant fields of every call.
#[derive(Debug)]
struct Slots {
    method: SlotId,
    scheme: SlotId,
    authority: SlotId,
    content_type: SlotId,
    te: SlotId,
    user_agent: SlotId,
    encoding_gzip: SlotId,
    accept_gzip: SlotId,
}

impl Client {
    /// A connection; its preface is ready to be transmitted, and calls may start at once.
    #[must_use]
    pub fn new(config: ClientConfig, budget: &Budget) -> Self {
        let mut head = HeadScratch::default();
        let mut conn = Conn::client(config.h2, budget, &mut head);
        let slots = Slots {
            method: conn.register(b":method", b"POST"),
            scheme: conn.register(b":scheme", config.scheme.as_bytes()),
            authority: conn.register(b":authority", config.authority.as_bytes()),
            content_type: conn.register(b"content-type", b"application/grpc"),
            te: conn.register(b"te", b"trailers"),
            user_agent: conn.register(b"user-agent", config.user_agent.as_bytes()),
            encoding_gzip: conn.register(b"grpc-encoding", b"gzip"),
            accept_gzip: conn.register(b"grpc-accept-encoding", b"gzip"),
        };
        let core = Core {
            message_bytes_max: config.message_bytes_max,
            calls: Calls::new(),
            events: VecDeque::new(),
            chunk: Chunk::default(),
            head,
            established: false,
        };
        Client { conn, core, slots, items: Vec::new() }
    }

    /// Registers a method by its path, such as `/etcdserverpb.KV/Put`. Methods live as long as the
    /// client: register each once.
    pub fn method(&mut self, path: &str) -> MethodHandle {
        MethodHandle(self.conn.register(b":path", path.as_bytes()))
    }

    /// Registers a metadata field that many calls repeat.
    pub fn register_metadata(&mut self, name: &str, value: &[u8]) -> MetadataHandle {
        MetadataHandle(self.conn.register(name.as_bytes(), value))
    }

    /// Starts a unary call; a [`ClientEvent::Response`] or [`ClientEvent::Status`] ends it.
    ///
    /// # Errors
    /// A [`StartError`]; nothing was sent then.
    pub fn start_unary(
        &mut self,
        method: MethodHandle,
        options: &CallOptions<'_>,
        message: &[u8],
    ) -> Result<StreamId, StartError> {
        self.start_unary_with(method, options, message.len(), |out| out.extend_from_slice(message))
    }

    /// Begins a unary call with a message of `length_bytes` that `write` appends straight to the
    /// transmit buffer.
    ///
    /// # Errors
    /// A [`StartError`].
    ///
    /// # Panics
    /// If `write` appends another number of bytes.
    pub fn start_unary_with(
        &mut self,
        method: MethodHandle,
        options: &CallOptions<'_>,
        length_bytes: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<StreamId, StartError> {
        let stream = self.open(method, options)?;
        self.core.calls.insert(stream, Call::new(options.user, false, options.gzip));
        match self.put_message(stream, length_bytes, true, write) {
            Ok(()) => Ok(stream),
            Err(_) => {
                self.core.calls.remove(stream);
                Err(OpenError::Budget)
            }
        }
    }

    /// Starts a call of any streaming kind.
    ///
    /// # Errors
    /// A [`StartError`]; nothing was sent then.
    pub fn start_stream(
        &mut self,
        method: MethodHandle,
        options: &CallOptions<'_>,
    ) -> Result<StreamId, StartError> {
        let stream = self.open(method, options)?;
        self.core.calls.insert(stream, Call::new(options.user, true, options.gzip));
        Ok(stream)
    }

    /// Sends one message of a streaming call. What exceeds the windows is buffered: ask
    /// [`Client::capacity`] first, and wait for `Writable` while it is 0.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the call is over or half closed; [`SendError::BufferFull`] if the
    /// server leaves too much unread, which ends the call.
    pub fn send_message(&mut self, stream: StreamId, message: &[u8]) -> Result<(), SendError> {
        self.core.calls.get(stream).ok_or(SendError::Closed)?;
        let sent =
            self.put_message(stream, message.len(), false, |out| out.extend_from_slice(message));
        if sent == Err(SendError::BufferFull) {
            self.core.forget(&mut self.conn, stream);
        }
        sent
    }

    /// Says that no more messages follow.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the call is over or half closed.
    pub fn half_close(&mut self, stream: StreamId) -> Result<(), SendError> {
        self.conn.send_data(stream, b"", true)
    }

    /// Gives a call up; no event of it follows, except those already queued.
    pub fn cancel(&mut self, stream: StreamId) {
        self.core.forget(&mut self.conn, stream);
        self.conn.reset(stream, ErrorCode::CANCEL);
    }

    /// Body bytes that can be sent at once; after 0 a `Writable` event follows when there is room.
    pub fn capacity(&mut self, stream: StreamId) -> usize {
        self.conn.capacity(stream)
    }

    /// Takes what a socket read gave; `now_ms` is on any clock that does not go back.
    ///
    /// # Errors
    /// A [`ConnError`] ends the connection: open calls got their status, transmit what is left and
    /// close.
    pub fn receive(&mut self, bytes: &[u8], now_ms: u64) -> Result<(), ConnError> {
        let result = self.conn.receive(bytes, now_ms, &mut self.core);
        if let Err(error) = result {
            self.fail_all(&error.to_string());
        }
        result
    }

    /// The socket is closed: every open call gets the status Unavailable with this text.
    pub fn fail_all(&mut self, text: &str) {
        self.core.fail_all(&mut self.conn, text);
    }

    /// The next event. Ask after [`Client::receive`] and [`Client::poll_transmit`] until there is
    /// none.
    #[inline]
    pub fn next_event(&mut self) -> Option<ClientEvent> {
        if let Some(event) = self.core.events.pop_front() {
            return Some(event);
        }
        while let Some(stream) = self.conn.next_writable() {
            if let Some(call) = self.core.calls.get(stream) {
                return Some(ClientEvent::Writable { stream, user: call.user });
            }
        }
        None
    }

    /// Appends at most `budget_bytes` wire bytes to `out`; true if more is ready.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>, budget_bytes: usize) -> bool {
        self.conn.poll_transmit(out, budget_bytes)
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// A [`ConnError`] ends the connection; open calls got their status.
    pub fn tick(&mut self, now_ms: u64) -> Result<(), ConnError> {
        let result = self.conn.tick(now_ms);
        if let Err(error) = result {
            self.fail_all(&error.to_string());
        }
        result
    }

    /// When [`Client::tick`] has something to do; `None` if never.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.conn.next_deadline_ms()
    }

    /// Pings the server; [`ClientEvent::Pong`] answers.
    pub fn ping(&mut self, payload: [u8; 8]) {
        self.conn.ping(payload);
    }

    /// Starts no more calls and tells the server so.
    pub fn graceful_goaway(&mut self) {
        self.conn.graceful_goaway();
    }

    /// Whether the connection is ending and nothing is open or unsent.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.core.events.is_empty() && self.conn.is_drained()
    }

    /// Calls that are not over.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.conn.open_streams()
    }

    /// Calls the server lets us have open at once.
    #[must_use]
    pub fn concurrent_streams_max(&self) -> u32 {
        self.conn.peer_concurrent_streams_max()
    }

    /// Whether the owner should read from the socket.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        self.conn.wants_read()
    }

    /// Bytes queued for the server.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.conn.unsent_bytes()
    }

    fn open(
        &mut self,
        method: MethodHandle,
        options: &CallOptions<'_>,
    ) -> Result<StreamId, StartError> {
        let slots = &self.slots;
        let usual = [
            slots.method,
            slots.scheme,
            method.0,
            slots.authority,
            slots.content_type,
            slots.te,
            slots.user_agent,
        ];
        self.items.clear();
        self.items.extend(usual.map(HeaderItem::Slot));
        self.items.extend(options.registered.iter().map(|handle| HeaderItem::Slot(handle.0)));
        if options.gzip {
            self.items.push(HeaderItem::Slot(slots.encoding_gzip));
            self.items.push(HeaderItem::Slot(slots.accept_gzip));
        }
        if options.metadata.is_empty() && options.timeout_ms.is_none() {
            return self.conn.open(&self.items, false);
        }
        let mut timeout = [0; 9];
        let mut items: Vec<HeaderItem<'_>> = self.items.clone();
        if let Some(timeout_ms) = options.timeout_ms {
            let length = encode_timeout_ms(timeout_ms, &mut timeout);
            items.push(HeaderItem::Literal(b"grpc-timeout", &timeout[..length]));
        }
        for (name, value) in options.metadata {
            items.push(HeaderItem::Literal(name.as_bytes(), value));
        }
        self.conn.open(&items, false)
    }

    fn put_message(
        &mut self,
        stream: StreamId,
        length: usize,
        end_stream: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), SendError> {
        let gzip_wanted = self.core.calls.get(stream).is_some_and(|call| call.gzip);
        let framed_length = MESSAGE_PREFIX_BYTES + length;
        let mut framed = Vec::new();
        if gzip_wanted {
            let mut message = Vec::with_capacity(length);
            write(&mut message);
            let compressed = gzip::deflate(&message);
            framed.extend_from_slice(&prefix(true, compressed.len()));
            framed.extend_from_slice(&compressed);
            return self.conn.send_data(stream, &framed, end_stream);
        }
        let mut write = Some(write);
        let sent = self.conn.send_data_with(stream, framed_length, end_stream, |out| {
            out.extend_from_slice(&prefix(false, length));
            if let Some(write) = write.take() {
                write(out);
            }
        })?;
        let Some(write) = write.filter(|_| !sent) else { return Ok(()) };
        framed.reserve_exact(framed_length);
        framed.extend_from_slice(&prefix(false, length));
        write(&mut framed);
        assert_eq!(framed.len(), framed_length, "the message is as long as announced");
        self.conn.send_data(stream, &framed, end_stream)
    }
}

#[cfg(test)]
mod tests;
