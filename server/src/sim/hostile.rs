//! A hostile client out of a seed: what it sends, reads and leaves undone over one connection.
//!
//! Used by the simulator (`intruders`) and by the test that attacks real members. It does no I/O:
//! who owns the connection carries out one [`Act`] after the other and hands over what was read. It
//! must never do what would harm others by right: see [`messages`].

mod frames;
mod heads;
mod messages;
mod plain;

use std::collections::VecDeque;

use etcore_engine::testing::prng::Prng;

use frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Heard, PADDED, PING,
    PREFACE, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, setting,
};
use heads::{Heads, Said};
use messages::{CALLS, Call, Frame, Style, message, mutate, noise, prefixed};

pub use messages::{PREFIX, leases};

/// The next thing to do with the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Reads what comes within a time, but no more than so many bytes.
    Read {
        /// Most bytes.
        bytes: usize,
        /// The time in milliseconds.
        ms: u64,
    },
    /// Does nothing for so many milliseconds, and does not read.
    Wait(u64),
    /// Ends its own side.
    HalfClose,
    /// Closes the connection.
    Close,
    /// Is gone without a word, as a machine that lost power; where that cannot be, the connection
    /// is reset.
    Vanish,
}

impl Act {
    /// Nothing follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Act::Close | Act::Vanish)
    }
}

/// How far it goes.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// It may write, under [`PREFIX`] and with its own leases.
    pub writes: bool,
    /// Bytes of its largest values.
    pub value_bytes: usize,
    /// Bytes that a small compressed message may become.
    pub bomb_bytes: usize,
    /// Bytes of its largest header fields.
    pub field_bytes: usize,
    /// Streams, watchers or frames of one burst.
    pub crowd: usize,
    /// Bursts of one connection.
    pub bursts: usize,
    /// The longest of its pauses in milliseconds.
    pub pause_ms: u64,
}

impl Manner {
    /// Against a member of a process of its own.
    pub const REAL: Self = Self {
        writes: true,
        value_bytes: 3 << 20,
        bomb_bytes: 8 << 20,
        field_bytes: 300_000,
        crowd: 4_000,
        bursts: 40,
        pause_ms: 100,
    };
    /// In the simulator, whose histories know of no writes but those of honest clients.
    pub const SIMULATED: Self = Self {
        writes: false,
        value_bytes: 40_000,
        bomb_bytes: 100_000,
        field_bytes: 10_000,
        crowd: 60,
        bursts: 12,
        pause_ms: 300,
    };
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Bytes without meaning.
    Noise,
    /// Frames of all kinds, in any order.
    Frames,
    /// Calls, right and wrong.
    Calls,
    /// Calls in crowds: opened, reset, left alone.
    Crowds,
    /// Watchers in crowds.
    Watches,
    /// Renewals.
    Renewals,
    /// Large messages, sent as the windows allow, or not.
    Uploads,
    /// HTTP/1.1.
    Plain,
    /// Hardly anything.
    Silent,
}

const LIVES: [Life; 14] = [
    Life::Noise,
    Life::Frames,
    Life::Frames,
    Life::Calls,
    Life::Calls,
    Life::Calls,
    Life::Calls,
    Life::Crowds,
    Life::Watches,
    Life::Watches,
    Life::Renewals,
    Life::Uploads,
    Life::Plain,
    Life::Silent,
];

/// A message that is being sent.
struct Upload {
    stream: u32,
    bytes: Vec<u8>,
    sent: usize,
}

/// Messages that are being sent at once.
const UPLOADS_MAX: usize = 12;
const FRAME_BYTES: usize = 16_384;

/// See the module text.
pub struct Hostile {
    prng: Prng,
    manner: Manner,
    life: Life,
    todo: VecDeque<Act>,
    left: usize,
    heads: Heads,
    heard: Heard,
    /// How many settings of the peer were acknowledged.
    acknowledged: u32,
    next_stream: u32,
    /// Streams that are open for messages.
    open: VecDeque<(u32, Call)>,
    uploads: Vec<Upload>,
    /// Pings and settings are answered, and credit is given for what was read.
    answers: bool,
    /// What it sends goes out in small pieces.
    trickles: bool,
    /// It hardly reads.
    is_deaf: bool,
    is_over: bool,
}

impl Hostile {
    /// The client of a seed.
    pub fn new(seed: u64, manner: Manner) -> Self {
        let mut prng = Prng::new(seed ^ 0x6873_7469_6c65);
        let life = LIVES[prng.index(LIVES.len())];
        let heads = Heads::new(&mut prng);
        let mut hostile = Self {
            life,
            todo: VecDeque::new(),
            left: 1 + prng.index(manner.bursts),
            heads,
            heard: Heard::new(),
            acknowledged: 0,
            next_stream: 1,
            open: VecDeque::new(),
            uploads: Vec::new(),
            answers: prng.chance(3, 4),
            trickles: prng.chance(1, 12),
            is_deaf: prng.chance(1, 6),
            is_over: false,
            manner,
            prng,
        };
        hostile.begin();
        hostile
    }

    /// What it is up to, for people.
    pub fn kind(&self) -> String {
        format!("{:?}", self.life)
    }

    /// What to do next. The last act ends the connection.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> Act {
        loop {
            if let Some(act) = self.todo.pop_front() {
                return act;
            }
            if self.is_over {
                return Act::Close;
            }
            if self.left == 0 || (self.heard.is_over && self.prng.chance(1, 2)) {
                self.is_over = true;
                self.end();
            } else {
                self.left -= 1;
                self.burst();
            }
        }
    }

    /// Bytes have come.
    pub fn received(&mut self, bytes: &[u8]) {
        if self.life != Life::Plain {
            self.heard.take(bytes);
        }
    }

    fn send(&mut self, bytes: Vec<u8>) {
        if !self.trickles {
            return self.todo.push_back(Act::Send(bytes));
        }
        let mut left = &bytes[..];
        // The rest of a long text comes at once: it is the beginning that is of interest.
        for _ in 0..20 {
            let (some, rest) = left.split_at(left.len().min(1 + self.prng.index(30)));
            if some.is_empty() {
                return;
            }
            self.todo.push_back(Act::Send(some.to_vec()));
            left = rest;
            let ms = self.prng.below(4);
            self.todo.push_back(Act::Wait(ms));
        }
        if !left.is_empty() {
            self.todo.push_back(Act::Send(left.to_vec()));
        }
    }

    /// Sends what may be altered on its way.
    fn send_altered(&mut self, mut bytes: Vec<u8>) {
        if self.prng.chance(1, 60) {
            mutate(&mut bytes, &mut self.prng);
        }
        self.send(bytes);
    }

    fn begin(&mut self) {
        let prng = &mut self.prng;
        match self.life {
            Life::Noise => {
                let whole = prng.chance(1, 3);
                if whole {
                    self.send(PREFACE.to_vec());
                }
                return;
            }
            Life::Plain => return,
            Life::Silent => {
                let cut = prng.index(PREFACE.len() + 1);
                return self.send(PREFACE[..cut].to_vec());
            }
            _ => {}
        }
        let mut settings = Vec::new();
        for _ in 0..prng.index(4) {
            settings.extend(match prng.below(8) {
                _ if prng.chance(1, 40) => {
                    let wrong = [(2, 2), (4, 0x8000_0000), (5, 100), (5, u32::MAX)];
                    let (name, value) = wrong[prng.index(4)];
                    setting(name, value)
                }
                0 => setting(1, [0, 100, 4096, u32::MAX][prng.index(4)]),
                1 => setting(2, [0, 1][prng.index(2)]),
                2 => setting(3, [0, 1, u32::MAX][prng.index(3)]),
                3..6 => setting(4, [0, 1, 1_000, 0x7fff_ffff][prng.index(4)]),
                6 => setting(5, [16_384, 16_777_215][prng.index(2)]),
                _ => setting(6, [0, 100, u32::MAX][prng.index(3)]),
            });
        }
        if prng.chance(1, 30) {
            settings.extend(noise(prng, 20));
        }
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &settings));
        if prng.chance(1, 2) {
            bytes.extend(frame(WINDOW_UPDATE, 0, 0, &0x3fff_0000u32.to_be_bytes()));
        }
        self.send(bytes);
        self.listen();
    }

    /// Reads, mostly; answers what came.
    fn listen(&mut self) {
        let prng = &mut self.prng;
        let deaf = if self.is_deaf { 19 } else { 4 };
        let act = if prng.chance(deaf, 20) {
            Act::Wait(prng.below(self.manner.pause_ms))
        } else if prng.chance(1, 6) {
            Act::Read { bytes: 1 + prng.index(2_000), ms: prng.below(self.manner.pause_ms) }
        } else {
            Act::Read { bytes: 1 << 20, ms: prng.below(20) }
        };
        self.todo.push_back(act);
        if !self.answers {
            return;
        }
        let mut bytes = Vec::new();
        while self.acknowledged < self.heard.settings {
            self.acknowledged += 1;
            bytes.extend(frame(SETTINGS, ACK, 0, &[]));
        }
        for ping in self.heard.pings.drain(..) {
            bytes.extend(frame(PING, ACK, 0, &ping));
        }
        let mut sum = 0u32;
        for (stream, count) in std::mem::take(&mut self.heard.data) {
            if count > 0 {
                sum = sum.saturating_add(count);
                bytes.extend(frame(WINDOW_UPDATE, 0, stream, &count.to_be_bytes()));
            }
        }
        if sum > 0 {
            bytes.extend(frame(WINDOW_UPDATE, 0, 0, &sum.to_be_bytes()));
        }
        if !bytes.is_empty() {
            self.todo.push_back(Act::Send(bytes));
        }
    }

    fn burst(&mut self) {
        match self.life {
            Life::Noise => {
                let bytes = noise(&mut self.prng, 20_000);
                self.send(bytes);
            }
            Life::Frames => {
                let mut bytes = Vec::new();
                for _ in 0..=self.prng.index(20) {
                    bytes.extend(self.any_frame());
                }
                self.send(bytes);
            }
            Life::Calls => {
                for _ in 0..=self.prng.index(12) {
                    self.call();
                }
                if self.prng.chance(1, 4) {
                    self.nuisance();
                }
            }
            Life::Crowds => self.crowd(),
            Life::Watches => self.on_stream("/etcdserverpb.Watch/Watch", Call::Watch),
            Life::Renewals => self.on_stream("/etcdserverpb.Lease/LeaseKeepAlive", Call::KeepAlive),
            Life::Uploads => self.upload(),
            Life::Plain => {
                let text = plain::requests(&mut self.prng, self.manner);
                self.send_altered(text);
            }
            Life::Silent => {}
        }
        self.listen();
    }

    fn end(&mut self) {
        let prng = &mut self.prng;
        match prng.below(5) {
            0 => self.todo.push_back(Act::Close),
            1 => self.todo.push_back(Act::Vanish),
            2 => self.todo.extend([Act::HalfClose, Act::Vanish]),
            3 => {
                let ms = prng.below(self.manner.pause_ms);
                self.todo.extend([Act::HalfClose, Act::Wait(ms), Act::Close]);
            }
            _ => {
                let ms = prng.below(self.manner.pause_ms);
                self.todo.push_back(Act::HalfClose);
                self.todo.extend([Act::Read { bytes: 1 << 20, ms }, Act::Close]);
            }
        }
    }

    fn new_stream(&mut self) -> u32 {
        let stream = self.next_stream;
        // Some numbers are passed over.
        self.next_stream += if self.prng.chance(1, 50) { 20 } else { 2 };
        stream
    }

    fn some_stream(&mut self) -> u32 {
        match self.prng.below(10) {
            0 => 0,
            1 => self.prng.next_u64() as u32,
            2 => self.next_stream + 2 * self.prng.index(3) as u32,
            3 => 2 * self.prng.index(50) as u32,
            _ => 1 + 2 * self.prng.index(self.next_stream as usize / 2 + 1) as u32,
        }
    }

    /// A frame of any kind on any stream, seldom in order.
    fn any_frame(&mut self) -> Vec<u8> {
        let stream = self.some_stream();
        let prng = &mut self.prng;
        let word = (prng.next_u64() as u32).to_be_bytes();
        match prng.below(16) {
            0 => frame(DATA, [0, END_STREAM, PADDED][prng.index(3)], stream, &noise(prng, 500)),
            1 => frame(HEADERS, prng.next_u64() as u8, stream, &noise(prng, 200)),
            2 => frame(PRIORITY, 0, stream, &[&word[..], &[1]].concat()),
            3 => frame(RST_STREAM, 0, stream, &word),
            4 => frame(SETTINGS, [0, ACK][prng.index(2)], 0, &setting(4, prng.next_u64() as u32)),
            5 => frame(5, END_HEADERS, stream, &noise(prng, 100)),
            6 => frame(PING, [0, ACK][prng.index(2)], 0, b"12345678"),
            7 => frame(GOAWAY, 0, 0, &[0; 8]),
            8 => frame(WINDOW_UPDATE, 0, stream, &[0, 0, word[2], word[3]]),
            9 => frame(WINDOW_UPDATE, 0, stream, &word),
            10 => frame(CONTINUATION, END_HEADERS, stream, &noise(prng, 100)),
            11 => frame(prng.next_u64() as u8, prng.next_u64() as u8, stream, &noise(prng, 100)),
            12 => {
                // Its length is a lie.
                let mut bytes = frame(DATA, 0, stream, b"short");
                bytes[..3].copy_from_slice(&word[..3]);
                bytes
            }
            _ => {
                let ends = prng.chance(1, 2);
                let said = self.said(ends, false);
                let stream = self.new_stream();
                let (_, path) = CALLS[self.prng.index(CALLS.len())];
                self.heads.head(&mut self.prng, stream, path, Said { ends: true, ..said })
            }
        }
    }

    fn style(&self, value_bytes: usize, odd_one_in: u64) -> Style {
        Style { writes: self.manner.writes, value_bytes, odd_one_in }
    }

    fn said(&mut self, ends: bool, is_gzip: bool) -> Said {
        let is_odd = self.prng.chance(1, 4);
        let field_bytes = if self.prng.chance(1, 10) { self.manner.field_bytes } else { 200 };
        Said { ends, is_gzip, is_odd, field_bytes }
    }

    /// One call from its head to its end, or to where it stops.
    fn call(&mut self) {
        let (call, path) = CALLS[self.prng.index(CALLS.len())];
        // These take long by right.
        if path.ends_with("Defragment") && !self.prng.chance(1, 30) {
            return;
        }
        let is_delicate = call.is_delicate(self.manner.writes);
        let frame_kind = match self.prng.below(10) {
            0 => Frame::Compressed,
            1 => Frame::Wrong,
            _ => Frame::Plain,
        };
        let is_gzip = frame_kind == Frame::Compressed && self.prng.chance(7, 8);
        let stream = self.new_stream();
        let said = self.said(false, is_gzip);
        let mut bytes = self.heads.head(&mut self.prng, stream, path, said);
        let count = if self.prng.chance(1, 8) { self.prng.index(5) } else { 1 };
        let mut body = Vec::new();
        for _ in 0..count {
            let style = self.style(self.manner.value_bytes / 100, 10);
            let message = message(call, &mut self.prng, style);
            let how = (self.manner.bomb_bytes, is_delicate);
            body.extend(prefixed(frame_kind, &message, &mut self.prng, how));
        }
        let ends = is_delicate || self.prng.chance(7, 8);
        // What does not fit into the window is for uploads, or is not heeded.
        if body.len() > self.heard.room(stream) && !self.prng.chance(1, 20) {
            body.truncate(0);
        }
        self.heard.sent(stream, body.len());
        bytes.extend(self.data(stream, &body, ends));
        if self.prng.chance(1, 10) {
            bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        } else if !ends {
            self.open.push_back((stream, call));
            self.open.truncate(1_000);
        }
        if is_delicate { self.send(bytes) } else { self.send_altered(bytes) }
    }

    /// A body in frames.
    fn data(&mut self, stream: u32, body: &[u8], ends: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let most = if self.prng.chance(1, 10) { 40 } else { FRAME_BYTES };
        let ends_apart = ends && (body.is_empty() || self.prng.chance(1, 8));
        let mut chunks = body.chunks(most).peekable();
        while let Some(chunk) = chunks.next() {
            let is_last = chunks.peek().is_none() && ends && !ends_apart;
            let flags = if is_last { END_STREAM } else { 0 };
            if chunk.len() < 200 && self.prng.chance(1, 20) {
                let padded = [&[3], chunk, &[0; 3]].concat();
                out.extend(frame(DATA, flags | PADDED, stream, &padded));
            } else {
                out.extend(frame(DATA, flags, stream, chunk));
            }
        }
        if ends_apart {
            out.extend(frame(DATA, END_STREAM, stream, &[]));
        }
        out
    }

    /// Frames that want something of calls under way, or of nobody.
    fn nuisance(&mut self) {
        let prng = &mut self.prng;
        let count = 1 + prng.index(self.manner.crowd);
        let one = match prng.below(6) {
            0 => frame(PING, 0, 0, b"12345678"),
            1 => frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()),
            2 => frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9]),
            3 => frame(SETTINGS, 0, 0, &setting(4, prng.next_u64() as u32 >> 1)),
            4 => frame(0xbe, 0, 0, b"?"),
            _ => frame(WINDOW_UPDATE, 0, self.next_stream.max(3) - 2, &1u32.to_be_bytes()),
        };
        let some = count.min(200);
        let bytes = one.repeat(if prng.chance(1, 4) { count } else { some });
        self.send(bytes);
    }

    /// Many streams at once.
    fn crowd(&mut self) {
        let count = 1 + self.prng.index(self.manner.crowd);
        let (call, path) = CALLS[self.prng.index(CALLS.len() - 8)];
        let kind = self.prng.below(4);
        if path.ends_with("Defragment") || path.ends_with("Hash") {
            return;
        }
        let is_delicate = call.is_delicate(self.manner.writes);
        let style = self.style(200, 100);
        let message = message(call, &mut self.prng, style);
        let how = (0, is_delicate);
        let body = prefixed(Frame::Plain, &message, &mut self.prng, how);
        let mut bytes = Vec::new();
        for _ in 0..count {
            let stream = self.new_stream();
            let said = Said { ends: false, is_gzip: false, is_odd: false, field_bytes: 0 };
            bytes.extend(self.heads.head(&mut self.prng, stream, path, said));
            match kind {
                // Opened and reset.
                0 => bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])),
                // Opened and left alone.
                1 if !is_delicate => {}
                // Asked, and not waited for.
                2 if body.len() <= self.heard.room(stream) => {
                    self.heard.sent(stream, body.len());
                    bytes.extend(frame(DATA, END_STREAM, stream, &body[..body.len().min(16_000)]));
                    bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
                }
                _ if body.len() <= self.heard.room(stream).min(16_000) => {
                    self.heard.sent(stream, body.len());
                    bytes.extend(frame(DATA, END_STREAM, stream, &body));
                }
                _ => bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])),
            }
        }
        self.send(bytes);
    }

    /// Many messages on a stream or several.
    fn on_stream(&mut self, path: &str, call: Call) {
        let mut bytes = Vec::new();
        if self.open.is_empty() || self.prng.chance(1, 6) {
            let stream = self.new_stream();
            let said = Said { ends: false, is_gzip: false, is_odd: false, field_bytes: 0 };
            bytes.extend(self.heads.head(&mut self.prng, stream, path, said));
            self.open.push_back((stream, call));
        }
        let (stream, _) = self.open[self.prng.index(self.open.len())];
        let is_delicate = call.is_delicate(self.manner.writes);
        let count = 1 + self.prng.index(self.manner.crowd);
        let style = self.style(0, 2_000);
        for _ in 0..count {
            let message = message(call, &mut self.prng, style);
            let kind = if self.prng.chance(1, 2_000) { Frame::Wrong } else { Frame::Plain };
            let body = prefixed(kind, &message, &mut self.prng, (0, is_delicate));
            if body.len() > self.heard.room(stream).min(FRAME_BYTES) {
                break;
            }
            self.heard.sent(stream, body.len());
            bytes.extend(frame(DATA, 0, stream, &body));
        }
        match self.prng.below(30) {
            0 => {
                bytes.extend(frame(DATA, END_STREAM, stream, &[]));
                self.open.retain(|(open, _)| *open != stream);
            }
            1 => {
                bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
                self.open.retain(|(open, _)| *open != stream);
            }
            _ => {}
        }
        self.send(bytes);
    }

    /// Large messages, some at once, as far as the windows go.
    fn upload(&mut self) {
        if self.uploads.len() < UPLOADS_MAX && self.prng.chance(3, 4) {
            let stream = self.new_stream();
            let said = Said { ends: false, is_gzip: false, is_odd: false, field_bytes: 0 };
            let (call, path) = [CALLS[2], CALLS[2], CALLS[4], CALLS[0]][self.prng.index(4)];
            let head = self.heads.head(&mut self.prng, stream, path, said);
            let size = [200_000, self.manner.value_bytes / 2, self.manner.value_bytes];
            let size = size[self.prng.index(3)].min(self.manner.value_bytes);
            let style = self.style(size, 20);
            let mut message = message(call, &mut self.prng, style);
            if self.prng.chance(1, 2) {
                // An unknown field of bytes.
                message.extend([0xfa, 0x7f]);
                message.extend([0x80 | (size & 0x7f) as u8, 0x80 | (size >> 7 & 0x7f) as u8]);
                message.extend([0x80 | (size >> 14 & 0x7f) as u8, (size >> 21) as u8]);
                message.resize(message.len() + size, b'u');
            }
            let is_delicate = call.is_delicate(self.manner.writes);
            let kind = if self.prng.chance(1, 6) { Frame::Compressed } else { Frame::Plain };
            let how = (self.manner.bomb_bytes, is_delicate);
            let bytes = prefixed(kind, &message, &mut self.prng, how);
            self.send(head);
            self.uploads.push(Upload { stream, bytes, sent: 0 });
        }
        let mut out = Vec::new();
        for upload in &mut self.uploads {
            while upload.sent < upload.bytes.len() {
                let room = self.heard.room(upload.stream);
                let count = (upload.bytes.len() - upload.sent).min(room).min(FRAME_BYTES);
                if count == 0 {
                    break;
                }
                let piece = &upload.bytes[upload.sent..upload.sent + count];
                upload.sent += count;
                self.heard.sent(upload.stream, count);
                let flags = if upload.sent == upload.bytes.len() { END_STREAM } else { 0 };
                out.extend(frame(DATA, flags, upload.stream, piece));
            }
        }
        self.uploads.retain(|upload| upload.sent < upload.bytes.len());
        if self.prng.chance(1, 40) {
            // More than the windows allow.
            let stream = self.next_stream.max(3) - 2;
            out.extend(frame(DATA, 0, stream, &[0; FRAME_BYTES]).repeat(5));
        }
        self.send(out);
        self.todo.push_back(Act::Read { bytes: 1 << 20, ms: 10 });
    }
}

#[cfg(test)]
mod tests {
    use etcore_proto::grpc::Routes;

    use super::*;

    #[test]
    fn equal_seeds_give_equal_acts_and_every_life_ends() {
        let acts = |seed| {
            let mut hostile = Hostile::new(seed, Manner::SIMULATED);
            let mut acts = vec![hostile.next()];
            while !acts.last().is_some_and(Act::is_last) {
                assert!(acts.len() < 100_000, "seed {seed} does not end");
                hostile.received(&frame(WINDOW_UPDATE, 0, 0, &9u32.to_be_bytes()));
                acts.push(hostile.next());
            }
            acts
        };
        for seed in 0..300 {
            assert!(acts(seed) == acts(seed), "seed {seed}");
        }
        assert!(acts(1) != acts(2));
    }

    /// What the member serves and the generator does not know would never be attacked.
    #[test]
    fn every_call_of_a_member_is_made() {
        let routes: &Routes = &crate::api::routes();
        let text = format!("{routes:?}");
        let served = CALLS.iter().filter(|(_, path)| {
            !path.is_empty() && text.contains(&format!("{:?}", path.as_bytes()))
        });
        assert_eq!(served.count(), text.matches("Route {").count(), "{text}");
    }
}
