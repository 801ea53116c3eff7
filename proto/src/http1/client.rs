//! The client's side of an HTTP/1.1 connection: one request at a time.
//!
//! Used by tests and by links to peers. Must never read past the response it waits for.

use std::collections::VecDeque;

use bytes::Bytes;

use super::body::Body;
use super::head::{self, ResponseHead};
use super::{BodyError, put_fields};

/// What happened on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// The response begins.
    Response(ResponseHead),
    /// A piece of its body.
    Body(Bytes),
    /// The response is complete; the next request may be sent if [`Client::is_reusable`].
    End,
}

/// Why a connection is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Http1Error {
    /// The response's head cannot be read.
    #[error("malformed response head")]
    Head,
    /// The response's body cannot be read.
    #[error("malformed response body: {0}")]
    Body(#[from] BodyError),
    /// Bytes came that nobody asked for.
    #[error("bytes without a request")]
    Unasked,
    /// The connection ended within a response.
    #[error("connection ended within a response")]
    Cut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Head,
    Body,
    Broken,
}

/// The client's side of a connection.
#[derive(Debug)]
pub struct Client {
    input: Vec<u8>,
    scanned: usize,
    out: Vec<u8>,
    events: VecDeque<ClientEvent>,
    phase: Phase,
    body: Body,
    is_head: bool,
    keep_alive: bool,
}

impl Default for Client {
    fn default() -> Self {
        Client::new()
    }
}

impl Client {
    /// A fresh connection.
    #[must_use]
    pub fn new() -> Self {
        Client {
            input: Vec::new(),
            scanned: 0,
            out: Vec::new(),
            events: VecDeque::new(),
            phase: Phase::Idle,
            body: Body::Done,
            is_head: false,
            keep_alive: true,
        }
    }

    /// Sends a request with a body of `body_length` bytes that follows by [`Client::write`].
    /// `content-length` is added; `host` is the caller's.
    ///
    /// # Panics
    /// If the response to an earlier request is not complete.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body_length: Option<u64>,
    ) {
        assert_eq!(self.phase, Phase::Idle, "one request at a time");
        self.out.extend_from_slice(format!("{method} {target} HTTP/1.1\r\n").as_bytes());
        if let Some(length) = body_length {
            self.out.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
        }
        put_fields(fields, &mut self.out);
        self.is_head = method == "HEAD";
        self.phase = Phase::Head;
    }

    /// Sends a piece of the body: as many bytes altogether as were announced.
    pub fn write(&mut self, piece: &[u8]) {
        self.out.extend_from_slice(piece);
    }

    /// Takes what a socket read gave.
    ///
    /// # Errors
    /// An [`Http1Error`]; the connection must be closed.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Http1Error> {
        self.input.extend_from_slice(bytes);
        let result = self.advance();
        if result.is_err() {
            self.phase = Phase::Broken;
        }
        result
    }

    /// Takes what a socket read gave while a response's body comes in, and hands the body's bytes
    /// over as they lie there: for long streams. Events that were due before must have been taken;
    /// only [`ClientEvent::End`] may follow.
    ///
    /// # Errors
    /// An [`Http1Error`]; the connection must be closed.
    pub fn receive_body(
        &mut self,
        mut bytes: &[u8],
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Http1Error> {
        // While a body comes in, nothing of it is left in `input`.
        while self.phase == Phase::Body && !bytes.is_empty() {
            match self.body.read(&mut bytes) {
                Ok(piece) => piece.into_iter().for_each(&mut *sink),
                Err(error) => {
                    self.phase = Phase::Broken;
                    return Err(error.into());
                }
            }
            self.end_if_done();
        }
        if bytes.is_empty() { Ok(()) } else { self.receive(bytes) }
    }

    /// The connection ended.
    ///
    /// # Errors
    /// [`Http1Error::Cut`] if a response was not complete.
    pub fn closed(&mut self) -> Result<(), Http1Error> {
        let phase = std::mem::replace(&mut self.phase, Phase::Broken);
        match phase {
            Phase::Idle => Ok(()),
            Phase::Body if self.body == Body::UntilClose => {
                self.events.push_back(ClientEvent::End);
                Ok(())
            }
            _ => Err(Http1Error::Cut),
        }
    }

    /// The next event.
    pub fn next_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Appends at most `budget_bytes` wire bytes to `out`; true if more is ready.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>, budget_bytes: usize) -> bool {
        let count = budget_bytes.min(self.out.len());
        out.extend_from_slice(&self.out[..count]);
        self.out.drain(..count);
        !self.out.is_empty()
    }

    /// Whether another request can be sent.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        self.phase == Phase::Idle && self.keep_alive
    }

    fn advance(&mut self) -> Result<(), Http1Error> {
        loop {
            let moved = match self.phase {
                Phase::Broken => return Err(Http1Error::Cut),
                Phase::Idle if self.input.is_empty() => return Ok(()),
                Phase::Idle => return Err(Http1Error::Unasked),
                Phase::Head => self.take_head()?,
                Phase::Body => self.take_body()?,
            };
            if !moved {
                return Ok(());
            }
        }
    }

    fn take_head(&mut self) -> Result<bool, Http1Error> {
        let length = head::head_length(&self.input, &mut self.scanned);
        let Some(length) = length.map_err(|_| Http1Error::Head)? else { return Ok(false) };
        let parsed = head::parse_response(&self.input[..length]);
        let (head, framing) = parsed.map_err(|_| Http1Error::Head)?;
        self.input.drain(..length);
        self.scanned = 0;
        if head.status == 101 || head.status < 100 {
            return Err(Http1Error::Head);
        }
        if head.status < 200 {
            return Ok(true);
        }
        let bodiless = self.is_head || head.status == 204 || head.status == 304;
        self.body = if bodiless { Body::Done } else { framing.body.unwrap_or(Body::UntilClose) };
        self.keep_alive = framing.keep_alive && self.body != Body::UntilClose;
        self.events.push_back(ClientEvent::Response(head));
        self.phase = Phase::Body;
        self.end_if_done();
        Ok(true)
    }

    fn take_body(&mut self) -> Result<bool, Http1Error> {
        let mut rest = self.input.as_slice();
        let piece = self.body.read(&mut rest)?.map(Bytes::copy_from_slice);
        let used = self.input.len() - rest.len();
        self.input.drain(..used);
        if let Some(piece) = piece {
            self.events.push_back(ClientEvent::Body(piece));
        }
        self.end_if_done();
        Ok(used > 0)
    }

    fn end_if_done(&mut self) {
        if self.body == Body::Done {
            self.phase = Phase::Idle;
            self.events.push_back(ClientEvent::End);
        }
    }
}
