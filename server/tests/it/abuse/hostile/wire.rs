//! HTTP/2 frames written by hand, rightly and wrongly, over a socket that is read only when asked.
//!
//! What a hostile client is made of; it keeps none of the protocol's rules by itself.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// GOAWAY's code for clients that make load without use.
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// The head of a gRPC call.
pub(crate) fn grpc_fields(path: &str) -> [(&'static str, &str); 6] {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "hostile"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

/// The same as a block without compression.
pub(crate) fn grpc_head(path: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in grpc_fields(path) {
        out.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "a length of one byte");
            out.push(u8::try_from(text.len()).expect("short"));
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

/// A gRPC message with its prefix.
pub(crate) fn grpc_message(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend(u32::try_from(message.len()).expect("a message").to_be_bytes());
    out.extend_from_slice(message);
    out
}

/// A frame that came.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The code of a GOAWAY.
    pub(crate) fn goaway_code(&self) -> Option<u32> {
        if self.kind != GOAWAY {
            return None;
        }
        let code = self.payload.get(4..8)?;
        Some(u32::from_be_bytes(code.try_into().expect("four bytes")))
    }
}

/// A connection that has said the preface and its settings.
pub(crate) struct Wire {
    pub(crate) socket: TcpStream,
    input: Vec<u8>,
    /// Bytes of `input` that were taken as frames.
    taken: usize,
    /// The server has closed.
    pub(crate) closed: bool,
}

impl Wire {
    /// `settings` is the payload of the first SETTINGS.
    pub(crate) fn connect(port: u16, settings: &[u8]) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("the member listens");
        socket.set_nodelay(true).expect("a socket");
        let mut wire = Self { socket, input: Vec::new(), taken: 0, closed: false };
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        hello.extend(frame(SETTINGS, 0, 0, settings));
        assert!(wire.write(&hello), "the member takes a preface");
        wire
    }

    /// The same socket once more, to read from another thread.
    pub(crate) fn reader(&self) -> Self {
        let socket = self.socket.try_clone().expect("a socket");
        Self { socket, input: Vec::new(), taken: 0, closed: false }
    }

    /// False once the server takes no more. A server that does not read for long is waited for.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    /// All frames that come until `done` or the end of the connection or of the time.
    pub(crate) fn read_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&Frame) -> bool,
    ) -> Vec<Frame> {
        let deadline = Instant::now() + limit;
        let mut frames = Vec::new();
        loop {
            while let Some(frame) = self.take_frame() {
                let is_last = done(&frame);
                frames.push(frame);
                if is_last {
                    return frames;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.closed {
                return frames;
            }
            self.input.drain(..std::mem::take(&mut self.taken));
            self.socket.set_read_timeout(Some(left)).expect("a socket");
            let mut buf = [0; 64 << 10];
            match self.socket.read(&mut buf) {
                Ok(0) => self.closed = true,
                Ok(count) => self.input.extend_from_slice(&buf[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => self.closed = true,
            }
        }
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let input = &self.input[self.taken..];
        let head = input.get(..9)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes(head[5..9].try_into().expect("four bytes"));
        let payload = input.get(9..9 + length)?.to_vec();
        self.taken += 9 + length;
        Some(Frame { kind, flags, stream, payload })
    }
}
