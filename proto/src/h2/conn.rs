//! One HTTP/2 connection, either side.
//!
//! Owned by `grpc::Server`, `grpc::Client` and HTTP front ends. Bytes enter by [`Conn::receive`]
//! and are handed to a [`Handler`] in place; what is to be sent gathers in one buffer that
//! [`Conn::poll_transmit`] gives away, so that a turn's answers leave in one write. Must never
//! block, look at a clock, or hold more than `limits` and the budgets allow.

mod frames;
mod keepalive;
mod receive;
mod send;
mod windows;

use std::collections::VecDeque;

use super::block::BlockCheck;
use super::bucket::{Bucket, Pace};
use super::settings::{PROTOCOL_WINDOW_BYTES, PeerSettings, WINDOW_BYTES_MAX};
use super::streams::Streams;
use super::{BlockKind, Budget, BudgetLease, Config, ConnError, ErrorCode, Flood, StreamId, frame};
use crate::deadlines::Deadlines;
use crate::hpack::{Decoder, Encoder, FieldSink, Pieces, SlotId};
use crate::limits;

/// What a connection tells its owner while it receives. Each call may use the connection, to answer
/// at once.
pub trait Handler: FieldSink {
    /// The fields of a block follow. If the block turns out malformed, [`Handler::headers`] is not
    /// called for it.
    fn block_start(&mut self, kind: BlockKind);

    /// A header block is complete.
    fn headers(&mut self, conn: &mut Conn, stream: StreamId, headers: Headers);

    /// Body bytes. The owner gives their windows back by [`Conn::release_connection`] and
    /// [`Conn::release_stream`] once it no longer holds them.
    fn data(&mut self, conn: &mut Conn, stream: StreamId, data: &[u8], end_stream: bool);

    /// The stream is gone: by the peer's RST_STREAM or GOAWAY, or by an error of the peer that
    /// concerns this stream alone.
    fn reset(&mut self, conn: &mut Conn, stream: StreamId, code: ErrorCode, by_peer: bool);

    /// The peer accepts no stream above `last_stream`; younger ones were reset before this call.
    fn go_away(&mut self, last_stream: u32, code: ErrorCode, debug: &[u8]);

    /// The peer's SETTINGS are in force: the first call ends the handshake.
    fn settings(&mut self) {}

    /// The peer has acknowledged all SETTINGS of ours.
    fn settings_acknowledged(&mut self, conn: &mut Conn) {
        let _ = conn;
    }

    /// The peer answered a PING of [`Conn::ping`].
    fn pong(&mut self, payload: [u8; 8]) {
        let _ = payload;
    }
}

/// What [`Handler::headers`] is told besides the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// The kind of the block.
    pub kind: BlockKind,
    /// No body or trailers follow.
    pub end_stream: bool,
    /// `:status` of a response, else 0.
    pub status: u16,
    /// `content-length`, if the block has it.
    pub content_length: Option<u64>,
}

/// Why nothing could be sent on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The stream is over: finished, reset, or never was.
    #[error("stream is closed")]
    Closed,
    /// What the peer has not read yet fills the budget; the stream was reset.
    #[error("unsent data exceeds the budget")]
    BufferFull,
}

/// Why no stream could be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The connection ended or is ending.
    #[error("connection is going away")]
    GoingAway,
    /// The peer allows no more streams at once; try after one ended.
    #[error("too many concurrent streams")]
    TooManyStreams,
    /// All stream ids were used; a new connection is needed.
    #[error("stream ids are exhausted")]
    IdsExhausted,
    /// The budget is used up.
    #[error("byte budget is used up")]
    Budget,
}

/// A header block.
#[derive(Debug)]
struct Block {
    id: u32,
    end_stream: bool,
    depends_on_itself: bool,
    kind: BlockKind,
    /// The stream, if it is open already.
    found: Option<StreamId>,
    check: BlockCheck,
}

/// A header block that waits for its CONTINUATION frames.
#[derive(Debug)]
struct OpenBlock {
    block: Block,
    fragments: u32,
    /// Bytes that came.
    bytes: usize,
    pieces: Pieces,
    /// Bytes charged for what is held of them.
    charged: usize,
}

/// The phases of a graceful end on our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    No,
    /// GOAWAY with the highest id and a PING were sent; streams still come.
    Announced {
        since_ms: u64,
    },
    /// GOAWAY with the true last id was sent.
    Final,
}

/// The state of one connection.
///
/// Invariants: `transmitted <= out.len()`; a stream with unsent data and open window is in `ready`,
/// one that waits for capacity with an open window and nothing unsent in `blocked`; after `failed`
/// nothing is received any more.
#[derive(Debug)]
pub struct Conn {
    is_client: bool,
    config: Config,
    peer: PeerSettings,
    decoder: Decoder,
    encoder: Encoder,
    streams: Streams,
    budget: BudgetLease,
    now_ms: u64,

    /// Bytes of the client preface still to come (server only).
    preface_left: usize,
    settings_received: bool,
    partial: Vec<u8>,
    partial_charged: usize,
    open_block: Option<Box<OpenBlock>>,
    /// Highest stream id the peer opened.
    last_peer_stream: u32,
    next_own_stream: u32,
    recv_window: i64,
    recv_consumed: u32,
    /// The initial window of streams as we last announced it, and the larger one that the peer may
    /// still go by, in bytes.
    own_stream_window: u32,
    own_stream_window_before: u32,
    /// SETTINGS of ours that the peer has not acknowledged.
    settings_unacknowledged: u32,

    out: Vec<u8>,
    transmitted: usize,
    /// Bytes that the owner took and that its socket has not.
    in_flight: usize,
    /// What both are charged beyond what is free.
    out_charged: usize,
    send_window: i64,
    pending_bytes: usize,
    ready: VecDeque<StreamId>,
    /// Streams that wait for capacity, with an open window and nothing unsent.
    blocked: VecDeque<StreamId>,
    /// How many of them may be told in this round that they have it.
    wakes_left: usize,
    /// The peer's initial window grew: streams that it opened were not looked for yet.
    windows_grew: bool,
    deadlines: Deadlines<StreamId>,

    started_ms: Option<u64>,
    last_read_ms: u64,
    ping_sent_ms: Option<u64>,
    last_peer_ping_ms: Option<u64>,
    ping_strikes: u32,
    sent_since_ping: bool,
    control_replies: u32,
    /// Rapid resets and refusals, and how many came since the last answer.
    rapid_resets: Pace,
    rapid_unanswered: u32,
    /// Open streams that were answered.
    answered: usize,
    stream_errors: Bucket,
    settings_frames: Bucket,
    pings: Bucket,
    idle_frames: Bucket,
    fragments: Bucket,
    /// A bound was passed within the current frame.
    flood: Option<Flood>,

    drain: Drain,
    peer_goaway: Option<u32>,
    failed: Option<ConnError>,
}

impl Conn {
    /// The server's side of a connection that starts with the HTTP/2 preface.
    pub fn server(config: Config, budget: &Budget, sink: &mut impl FieldSink) -> Self {
        Conn::new(config, budget, sink, false)
    }

    /// The client's side; the preface is ready to be transmitted.
    pub fn client(config: Config, budget: &Budget, sink: &mut impl FieldSink) -> Self {
        Conn::new(config, budget, sink, true)
    }

    fn new(config: Config, budget: &Budget, sink: &mut impl FieldSink, is_client: bool) -> Self {
        assert!(config.stream_window_bytes <= WINDOW_BYTES_MAX, "stream window above 2^31-1");
        let window = config.connection_window_bytes;
        assert!((PROTOCOL_WINDOW_BYTES..=WINDOW_BYTES_MAX).contains(&window), "window {window}");
        let mut out = Vec::new();
        if is_client {
            out.extend_from_slice(frame::PREFACE);
        }
        config.put(is_client, &mut out);
        if window > PROTOCOL_WINDOW_BYTES {
            frame::put_window_update(0, window - PROTOCOL_WINDOW_BYTES, &mut out);
        }
        Conn {
            is_client,
            peer: PeerSettings::default(),
            decoder: Decoder::new(limits::HEADER_TABLE_BYTES as usize, sink),
            encoder: Encoder::new(limits::HEADER_TABLE_BYTES as usize),
            streams: Streams::new(),
            budget: budget.lease(),
            now_ms: 0,
            preface_left: if is_client { 0 } else { frame::PREFACE.len() },
            settings_received: false,
            partial: Vec::new(),
            partial_charged: 0,
            open_block: None,
            last_peer_stream: 0,
            next_own_stream: 1,
            recv_window: i64::from(window),
            recv_consumed: 0,
            own_stream_window: config.stream_window_bytes,
            own_stream_window_before: config.stream_window_bytes.max(PROTOCOL_WINDOW_BYTES),
            settings_unacknowledged: 1,
            out,
            transmitted: 0,
            in_flight: 0,
            out_charged: 0,
            send_window: i64::from(PROTOCOL_WINDOW_BYTES),
            pending_bytes: 0,
            ready: VecDeque::new(),
            blocked: VecDeque::new(),
            wakes_left: 0,
            windows_grew: false,
            deadlines: Deadlines::default(),
            started_ms: None,
            last_read_ms: 0,
            ping_sent_ms: None,
            last_peer_ping_ms: None,
            ping_strikes: 0,
            sent_since_ping: false,
            control_replies: 0,
            rapid_resets: Pace::new(limits::RAPID_RESETS),
            rapid_unanswered: 0,
            answered: 0,
            stream_errors: Bucket::new(limits::STREAM_ERRORS),
            settings_frames: Bucket::new(limits::SETTINGS),
            pings: Bucket::new(limits::PINGS),
            idle_frames: Bucket::new(limits::IDLE_FRAMES),
            fragments: Bucket::new(limits::FRAGMENTS),
            flood: None,
            drain: Drain::No,
            peer_goaway: None,
            failed: None,
            config,
        }
    }

    /// Registers a constant header field for the blocks we send.
    pub fn register(&mut self, name: &[u8], value: &[u8]) -> SlotId {
        self.encoder.register(name, value)
    }

    /// Streams that are not over on both sides.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.open_count()
    }

    /// Whether the stream is still open in any direction.
    #[must_use]
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.streams.get(stream).is_some()
    }

    /// Whether the peer may still send on the stream.
    #[must_use]
    pub fn is_receiving(&self, stream: StreamId) -> bool {
        self.streams.get(stream).is_some_and(|state| !state.has(super::streams::RECV_ENDED))
    }

    /// Whether the peer's SETTINGS arrived.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.settings_received
    }

    /// Streams the peer lets us have open at once.
    #[must_use]
    pub fn peer_concurrent_streams_max(&self) -> u32 {
        self.peer.concurrent_streams_max
    }

    /// Why the connection ended, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<ConnError> {
        self.failed
    }

    /// The last stream the peer processes, once it said goodbye.
    #[must_use]
    pub fn peer_goaway(&self) -> Option<u32> {
        self.peer_goaway
    }

    /// The account of what the peer makes us hold; the owner charges its own buffers here too.
    pub fn budget(&mut self) -> &mut BudgetLease {
        &mut self.budget
    }

    /// Counts a piece of `bytes` of a message that goes on behind it. The connection ends after the
    /// current frame if there are too many tiny ones.
    pub fn count_piece(&mut self, bytes: u32) {
        if bytes >= limits::FRAGMENT_BYTES {
            self.fragments.give(bytes / limits::FRAGMENT_BYTES);
        } else if !self.fragments.take(self.now_ms) {
            self.flood = Some(Flood::Fragments);
        }
    }

    /// A message that came in pieces is complete, and pays for some.
    pub fn count_whole(&mut self) {
        self.fragments.give(limits::FRAGMENTS_PER_MESSAGE);
    }

    /// The time of the last call that carried one, in milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    fn fail(&mut self, error: ConnError) {
        if self.failed.is_some() {
            return;
        }
        self.failed = Some(error);
        let debug: &[u8] = if error == ConnError::TooManyPings { b"too_many_pings" } else { b"" };
        frame::put_goaway(self.last_peer_stream, error.code(), debug, &mut self.out);
    }
}

#[cfg(test)]
mod tests;
