//! A connection to one server, written frame by frame, and everything that comes back of each call:
//! heads, messages, trailers, resets, and the end of the connection.
//!
//! It keeps to the windows of both sides; what it sends within them is the caller's affair.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcore_proto::hpack::{Decoder, Field, FieldSink};

use super::alter::varint;
use super::wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, RST_STREAM,
    SETTINGS, Wire, frame,
};

const WINDOW_UPDATE: u8 = 8;
const PADDED: u8 = 8;
const PRIORITY_FLAG: u8 = 0x20;
const FRAME_BYTES: usize = 16_384;
const FIRST_WINDOW: i64 = 65_535;
const PIECES_MAX: usize = 400;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// Fields of a head.
pub(crate) type Head = Vec<(String, Vec<u8>)>;

/// How a call is cut into frames.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Bytes of a DATA frame; 0 for as many as fit.
    pub(crate) data: usize,
    /// Where the block is continued in another frame; 0 for nowhere.
    pub(crate) head: usize,
    pub(crate) is_padded: bool,
    pub(crate) has_priority: bool,
    /// The end is a frame of its own.
    pub(crate) ends_apart: bool,
    /// The end does not come at all.
    pub(crate) never_ends: bool,
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// With fields, the only ones or trailers.
    Trailers,
    /// With its last data.
    Data,
    Reset(u32),
    /// GOAWAY took the connection, or it was closed without a word.
    GoAway(u32),
    Closed,
    /// It has not ended.
    Open,
}

/// What came on a stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    pub(crate) heads: Vec<Head>,
    body: Vec<u8>,
    taken: usize,
    end: Option<End>,
    window: i64,
}

impl Log {
    pub(crate) fn end(&self) -> End {
        self.end.clone().unwrap_or(End::Open)
    }

    /// True for an answer in gzip.
    fn is_packed(&self) -> bool {
        let field = self.heads.first().and_then(|head| value(head, "grpc-encoding"));
        field.is_some_and(|encoding| encoding == b"gzip")
    }

    /// Messages that are complete and were not taken.
    pub(crate) fn take_messages(&mut self) -> Vec<Bytes> {
        let mut messages = Vec::new();
        loop {
            let rest = &self.body[self.taken..];
            let Some((prefix, rest)) = rest.split_first_chunk::<5>() else { return messages };
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            let Some(message) = rest.get(..length) else { return messages };
            let message = if prefix[0] == 1 && self.is_packed() {
                let mut out = Vec::new();
                let read = flate2::read::GzDecoder::new(message).read_to_end(&mut out);
                if read.is_ok() { out } else { b"no gzip".to_vec() }
            } else if prefix[0] == 0 {
                message.to_vec()
            } else {
                b"a message with a wrong flag".to_vec()
            };
            self.taken += 5 + length;
            messages.push(message.into());
        }
    }

    /// Bytes after the last whole message.
    pub(crate) fn left(&self) -> usize {
        self.body.len() - self.taken
    }
}

/// The value of a field.
pub(crate) fn value<'a>(head: &'a Head, name: &str) -> Option<&'a [u8]> {
    head.iter().find(|(other, _)| other == name).map(|(_, value)| &value[..])
}

#[derive(Default)]
struct Fields(Head);

impl FieldSink for Fields {
    fn classify(&mut self, _: &[u8], _: &[u8]) -> u32 {
        0
    }

    fn field(&mut self, field: Field<'_>) {
        let name = String::from_utf8_lossy(field.name).into_owned();
        self.0.push((name, field.value.to_vec()));
    }
}

/// All that is known of the connection, apart from the socket.
struct Heard {
    decoder: Decoder,
    streams: BTreeMap<u32, Log>,
    /// A block that is continued: its stream, flags and bytes.
    block: Option<(u32, u8, Vec<u8>)>,
    window: i64,
    first_window: i64,
    has_settings: bool,
    is_over: Option<End>,
    /// What is to be sent for what came.
    reply: Vec<u8>,
}

/// See the module text.
pub(crate) struct Peer {
    wire: Wire,
    heard: Heard,
    next_stream: u32,
}

impl Peer {
    pub(crate) fn connect(port: u16, limit: Duration) -> Self {
        let settings = [[0, 4, 0x7f, 0xff, 0xff, 0xff]].concat();
        let mut wire = Wire::connect(port, &settings);
        assert!(wire.write(&frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes())));
        let heard = Heard {
            decoder: Decoder::new(4096, &mut Fields::default()),
            streams: BTreeMap::new(),
            block: None,
            window: FIRST_WINDOW,
            first_window: FIRST_WINDOW,
            has_settings: false,
            is_over: None,
            reply: Vec::new(),
        };
        let mut peer = Self { wire, heard, next_stream: 1 };
        peer.pump(limit, |heard| heard.has_settings);
        peer
    }

    /// No call can be made any more.
    pub(crate) fn is_over(&self) -> bool {
        self.heard.is_over.is_some() || self.wire.closed
    }

    /// Sends a head and opens its stream.
    pub(crate) fn open(&mut self, head: &Head, cut: &Cut, ends: bool) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        let window = self.heard.first_window;
        self.heard.streams.insert(stream, Log { window, ..Log::default() });
        let ends = ends && !cut.never_ends && !cut.ends_apart;
        self.head(stream, head, cut, ends);
        stream
    }

    fn head(&mut self, stream: u32, head: &Head, cut: &Cut, ends: bool) {
        let mut block = Vec::new();
        for (name, value) in head {
            block.push(0);
            for text in [name.as_bytes(), value] {
                string(&mut block, text);
            }
        }
        let mut flags = if ends { END_STREAM } else { 0 };
        let mut payload = Vec::new();
        if cut.is_padded {
            flags |= PADDED;
            payload.push(3);
        }
        if cut.has_priority {
            flags |= PRIORITY_FLAG;
            payload.extend([0, 0, 0, 0, 9]);
        }
        let room = FRAME_BYTES - payload.len() - 3;
        let at = if cut.head > 0 { cut.head } else { room }.min(block.len()).min(room);
        payload.extend(&block[..at]);
        if cut.is_padded {
            payload.extend([0; 3]);
        }
        let rest: Vec<&[u8]> = block[at..].chunks(FRAME_BYTES).collect();
        if rest.is_empty() {
            flags |= END_HEADERS;
        }
        let mut out = frame(HEADERS, flags, stream, &payload);
        for (number, piece) in rest.iter().enumerate() {
            let flags = if number + 1 == rest.len() { END_HEADERS } else { 0 };
            out.extend(frame(CONTINUATION, flags, stream, piece));
        }
        self.write(&out);
    }

    fn write(&mut self, bytes: &[u8]) {
        if !self.wire.write(bytes) {
            self.wire.closed = true;
        }
    }

    /// Sends a body, as the windows allow, unless the stream ends meanwhile; then its end.
    pub(crate) fn send(&mut self, stream: u32, body: &[u8], cut: &Cut, ends: bool) {
        let ends = ends && !cut.never_ends;
        // Thousands of small frames are a flood.
        let is_small = cut.data > 0 && body.len() / cut.data < PIECES_MAX;
        let most = if is_small { cut.data } else { FRAME_BYTES - 4 };
        let padding = if cut.is_padded { 4 } else { 0 };
        let ends_apart = cut.ends_apart || body.is_empty();
        let mut left = body;
        while !left.is_empty() {
            let mut room = self.room(stream);
            if room <= padding {
                let least = i64::try_from(padding).expect("small");
                self.pump(Duration::from_secs(20), |heard| {
                    heard.window > least && heard.streams[&stream].window > least
                        || heard.streams[&stream].end.is_some()
                });
                room = self.room(stream);
            }
            if room <= padding || self.heard.streams[&stream].end.is_some() {
                return;
            }
            let (piece, rest) = left.split_at(left.len().min(most).min(room - padding));
            let is_last = rest.is_empty() && ends && !ends_apart;
            let flags = if is_last { END_STREAM } else { 0 };
            let payload =
                if cut.is_padded { [&[3], piece, &[0; 3]].concat() } else { piece.into() };
            let flags = if cut.is_padded { flags | PADDED } else { flags };
            let charged = i64::try_from(payload.len()).expect("a frame");
            self.heard.window -= charged;
            self.heard.streams.get_mut(&stream).expect("open").window -= charged;
            self.write(&frame(DATA, flags, stream, &payload));
            left = rest;
        }
        if ends && ends_apart {
            self.write(&frame(DATA, END_STREAM, stream, &[]));
        }
    }

    fn room(&self, stream: u32) -> usize {
        let own = self.heard.streams[&stream].window.min(self.heard.window);
        usize::try_from(own).unwrap_or(0)
    }

    /// The client wants no more of it.
    pub(crate) fn cancel(&mut self, stream: u32) {
        self.write(&frame(RST_STREAM, 0, stream, &CANCEL));
        self.heard.streams.remove(&stream);
    }

    /// What has come on a stream so far.
    pub(crate) fn log(&mut self, stream: u32) -> &mut Log {
        self.heard.streams.entry(stream).or_default()
    }

    /// Waits until `done` likes what came on a stream, or it has ended; false if neither was in
    /// time.
    pub(crate) fn wait(
        &mut self,
        stream: u32,
        limit: Duration,
        done: impl Fn(&Log) -> bool,
    ) -> bool {
        self.pump(limit, |heard| {
            heard.streams.get(&stream).is_none_or(|log| log.end.is_some() || done(log))
        })
    }

    /// Everything of a call, which must end within a time, and is cancelled if it does not.
    pub(crate) fn finish(&mut self, stream: u32, limit: Duration) -> Log {
        self.wait(stream, limit, |_| false);
        let log = self.heard.streams.remove(&stream).unwrap_or_default();
        if log.end.is_none() && !self.is_over() {
            self.write(&frame(RST_STREAM, 0, stream, &CANCEL));
        }
        log
    }

    fn pump(&mut self, limit: Duration, done: impl Fn(&Heard) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        while !done(&self.heard) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            if self.wire.closed {
                self.heard.over(&End::Closed);
                return done(&self.heard);
            }
            let heard = &mut self.heard;
            self.wire.read_until(left, |one| {
                heard.take(one);
                !heard.reply.is_empty() || done(heard)
            });
            let reply = std::mem::take(&mut self.heard.reply);
            if !reply.is_empty() {
                self.write(&reply);
            }
        }
        true
    }
}

impl Heard {
    /// Nothing more will come.
    fn over(&mut self, how: &End) {
        self.is_over.get_or_insert_with(|| how.clone());
        for log in self.streams.values_mut() {
            log.end.get_or_insert_with(|| how.clone());
        }
    }

    fn take(&mut self, one: &Frame) {
        let word = |at: usize| {
            let word = one.payload.get(at..at + 4).unwrap_or(&[0; 4]);
            u32::from_be_bytes(word.try_into().expect("four bytes"))
        };
        match one.kind {
            DATA => {
                let count = u32::try_from(one.payload.len()).expect("a frame");
                if count > 0 {
                    self.reply.extend(frame(WINDOW_UPDATE, 0, 0, &count.to_be_bytes()));
                }
                if let Some(log) = self.streams.get_mut(&one.stream) {
                    log.body.extend_from_slice(&one.payload);
                    if one.flags & END_STREAM != 0 {
                        log.end.get_or_insert(End::Data);
                    }
                }
            }
            HEADERS => self.block(one.stream, one.flags, one.payload.clone()),
            CONTINUATION => {
                if let Some((stream, flags, mut block)) = self.block.take() {
                    block.extend_from_slice(&one.payload);
                    self.block(stream, flags | one.flags & END_HEADERS, block);
                }
            }
            RST_STREAM => {
                if let Some(log) = self.streams.get_mut(&one.stream) {
                    log.end.get_or_insert(End::Reset(word(0)));
                }
            }
            SETTINGS if one.flags & ACK == 0 => {
                self.has_settings = true;
                for setting in one.payload.chunks_exact(6).filter(|one| one[..2] == [0, 4]) {
                    let value = [setting[2], setting[3], setting[4], setting[5]];
                    let first = i64::from(u32::from_be_bytes(value));
                    let more = first - self.first_window;
                    self.streams.values_mut().for_each(|log| log.window += more);
                    self.first_window = first;
                }
                self.reply.extend(frame(SETTINGS, ACK, 0, &[]));
            }
            PING if one.flags & ACK == 0 => self.reply.extend(frame(PING, ACK, 0, &one.payload)),
            WINDOW_UPDATE if one.stream == 0 => self.window += i64::from(word(0)),
            WINDOW_UPDATE => {
                if let Some(log) = self.streams.get_mut(&one.stream) {
                    log.window += i64::from(word(0));
                }
            }
            GOAWAY => self.over(&End::GoAway(word(4))),
            _ => {}
        }
    }

    /// A block that may be continued.
    fn block(&mut self, stream: u32, flags: u8, block: Vec<u8>) {
        if flags & END_HEADERS == 0 {
            self.block = Some((stream, flags, block));
            return;
        }
        let mut fields = Fields::default();
        if self.decoder.decode(&block, &mut fields).is_err() {
            fields.0.push(("a block that cannot be decoded".to_owned(), block));
        }
        if let Some(log) = self.streams.get_mut(&stream) {
            log.heads.push(fields.0);
            if flags & END_STREAM != 0 {
                log.end.get_or_insert(End::Trailers);
            }
        }
    }
}

/// A string of HPACK without compression.
fn string(out: &mut Vec<u8>, text: &[u8]) {
    if text.len() < 127 {
        out.push(u8::try_from(text.len()).expect("short"));
    } else {
        out.push(127);
        varint(out, text.len() as u64 - 127);
    }
    out.extend_from_slice(text);
}
