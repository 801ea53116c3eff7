//! The server's side of an HTTP/1.1 connection.
//!
//! Owned by fronts and by the peer port. Errors of the client are answered here and end the
//! connection; the owner sees whole heads and pieces of bodies. Requests that a client sends
//! without waiting are seen one by one, each once the answer before it was given away.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::body::Body;
use super::head::{self, RequestHead};
use super::{BodyError, put_fields};
use crate::limits;

/// What happened on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEvent {
    /// A request begins; answer with [`Server::respond`], at once or after its body.
    Request {
        /// Its head.
        head: RequestHead,
        /// A body follows.
        has_body: bool,
    },
    /// A piece of the body.
    Body(Bytes),
    /// The request is complete.
    End,
    /// The request broke off in its body: it was answered, or nobody is left to answer to. Only a
    /// request that was announced gets this.
    Failed(BodyError),
}

/// How long an answer's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// So many bytes.
    Known(u64),
    /// Unknown in advance: chunked, or until the connection ends for HTTP/1.0.
    Unknown,
}

/// The part of an answer that the owner must give next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// No request is open.
    Idle,
    /// A head.
    Head,
    /// Body bytes.
    Known(u64),
    Chunked,
    UntilClose,
    /// Nothing more, though the request is not complete.
    Complete,
}

/// The server's side of a connection.
///
/// Invariant: `input` holds nothing that could be handed on, except what follows the open request.
#[derive(Debug)]
pub struct Server {
    input: BytesMut,
    scanned: usize,
    out: Vec<u8>,
    events: VecDeque<ServerEvent>,
    /// Bytes of bodies in them.
    queued_bytes: usize,
    body: Body,
    body_left: u64,
    body_bytes_max: u64,
    answer: Answer,
    is_head: bool,
    minor_version: u8,
    keep_alive: bool,
    closing: bool,
    /// Requests whose head was taken.
    requests: u64,
    /// The client sends nothing more.
    input_ended: bool,
}

impl Server {
    /// A connection that accepts bodies of up to `body_bytes_max` bytes.
    #[must_use]
    pub fn new(body_bytes_max: u64) -> Self {
        Server {
            input: BytesMut::new(),
            scanned: 0,
            out: Vec::new(),
            events: VecDeque::new(),
            queued_bytes: 0,
            body: Body::Done,
            body_left: 0,
            body_bytes_max,
            answer: Answer::Idle,
            is_head: false,
            minor_version: 1,
            keep_alive: true,
            closing: false,
            requests: 0,
            input_ended: false,
        }
    }

    /// Takes what a socket read gave.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.closing {
            return;
        }
        self.input.extend_from_slice(bytes);
        self.advance();
    }

    /// The client sends nothing more, but may still read: what is complete is answered, then the
    /// connection is done.
    pub fn receive_end(&mut self) {
        self.input_ended = true;
        self.advance();
    }

    /// The number of the request that is under way to us and not complete, the very first one even
    /// if nothing of it has come: the owner may end what takes too long.
    #[must_use]
    pub fn incomplete_request(&self) -> Option<u64> {
        let is_incomplete = match self.answer {
            Answer::Idle => self.requests == 0 || !self.input.is_empty(),
            // A client that is being answered may take its time with the rest.
            Answer::Head => self.body != Body::Done,
            _ => false,
        };
        (is_incomplete && !self.closing).then_some(self.requests)
    }

    /// The next event. Ask after [`Server::receive`] and after [`Server::poll_transmit`].
    pub fn next_event(&mut self) -> Option<ServerEvent> {
        let event = self.events.pop_front()?;
        if let ServerEvent::Body(piece) = &event {
            self.queued_bytes -= piece.len();
        }
        Some(event)
    }

    /// Whether the owner should read from the socket: false while an answer is due and enough
    /// pipelined input waits, or while the client leaves too much unread.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        !self.closing
            // A head of just so many bytes is not too large yet: only the next byte tells.
            && self.input.len() <= limits::HTTP1_HEAD_BYTES_MAX
            && self.out.len() < limits::TRANSMIT_STOP_READING_BYTES
            && self.queued_bytes <= limits::HTTP1_HEAD_BYTES_MAX
    }

    /// Appends at most `budget_bytes` wire bytes to `out`; true if more is ready.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>, budget_bytes: usize) -> bool {
        if out.is_empty() && self.out.len() <= budget_bytes {
            out.append(&mut self.out);
        } else {
            let count = budget_bytes.min(self.out.len());
            out.extend_from_slice(&self.out[..count]);
            self.out.drain(..count);
        }
        if self.out.is_empty() {
            // What a large answer took is for others to use.
            self.out = Vec::new();
            self.advance();
        }
        !self.out.is_empty()
    }

    /// Bytes that came and were not looked at or asked for, and bytes of answers.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.input.len() + self.queued_bytes + self.out.len()
    }

    /// Whether the socket can be closed: the last answer is complete and transmitted.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.closing && self.out.is_empty()
    }

    /// Ends the connection after the answer that is due, or at once if none is.
    pub fn graceful_close(&mut self) {
        self.keep_alive = false;
        if self.answer == Answer::Idle {
            self.closing = true;
        }
    }

    /// Sends an answer's head. `content-length`, `transfer-encoding` and `connection` are added.
    ///
    /// # Panics
    /// If no answer's head is due: a mistake of the owner.
    pub fn respond(&mut self, status: u16, fields: &[(&str, &str)], length: BodyLength) {
        assert_eq!(self.answer, Answer::Head, "a request waits for its head");
        let line = format!("HTTP/1.{} {status} {}\r\n", self.minor_version, reason(status));
        self.out.extend_from_slice(line.as_bytes());
        let has_body = !self.is_head && status >= 200 && status != 204 && status != 304;
        self.answer = match length {
            _ if !has_body => Answer::Known(0),
            BodyLength::Known(length) => Answer::Known(length),
            BodyLength::Unknown if self.minor_version == 0 => {
                self.keep_alive = false;
                Answer::UntilClose
            }
            BodyLength::Unknown => Answer::Chunked,
        };
        match length {
            BodyLength::Known(length) if status != 204 => {
                self.out.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
            }
            BodyLength::Unknown if self.answer == Answer::Chunked => {
                self.out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            }
            _ => {}
        }
        if self.body != Body::Done {
            // The rest of the request is of no interest and of unknown size.
            self.keep_alive = false;
        }
        if !self.keep_alive {
            self.out.extend_from_slice(b"connection: close\r\n");
        } else if self.minor_version == 0 {
            self.out.extend_from_slice(b"connection: keep-alive\r\n");
        }
        put_fields(fields, &mut self.out);
    }

    /// The number of the request that was announced last, from 1.
    #[must_use]
    pub fn request_number(&self) -> u64 {
        self.requests
    }

    /// Whether an answer's head was sent, and its body is due.
    #[must_use]
    pub fn is_answering(&self) -> bool {
        matches!(self.answer, Answer::Known(_) | Answer::Chunked | Answer::UntilClose)
    }

    /// Whether a request waits for the head of its answer.
    #[must_use]
    pub fn is_answer_due(&self) -> bool {
        self.answer == Answer::Head
    }

    /// Body bytes that should be sent before the next [`Server::poll_transmit`].
    #[must_use]
    pub fn capacity(&self) -> usize {
        limits::TRANSMIT_HIGH_WATER_BYTES.saturating_sub(self.out.len())
    }

    /// Sends a piece of the answer's body. Pieces of an answer to HEAD are dropped.
    ///
    /// # Panics
    /// If no body is due, or more than announced is sent.
    pub fn write(&mut self, piece: &[u8]) {
        if self.is_head {
            return;
        }
        match &mut self.answer {
            Answer::Known(left) => {
                assert!(piece.len() as u64 <= *left, "{} bytes of {left}", piece.len());
                *left -= piece.len() as u64;
                self.out.extend_from_slice(piece);
            }
            Answer::Chunked if piece.is_empty() => {}
            Answer::Chunked => {
                self.out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                self.out.extend_from_slice(piece);
                self.out.extend_from_slice(b"\r\n");
            }
            Answer::UntilClose => self.out.extend_from_slice(piece),
            answer => panic!("no body is due in {answer:?}"),
        }
    }

    /// Completes the answer; the next pipelined request may appear.
    ///
    /// # Panics
    /// If the head was not sent, or less than announced was.
    pub fn finish(&mut self) {
        match self.answer {
            Answer::Known(0) | Answer::UntilClose => {}
            Answer::Chunked => self.out.extend_from_slice(b"0\r\n\r\n"),
            answer => panic!("the answer is not complete: {answer:?}"),
        }
        self.answer = Answer::Complete;
        self.advance();
    }

    /// Sends a whole answer.
    ///
    /// # Panics
    /// As [`Server::respond`].
    pub fn respond_with(&mut self, status: u16, fields: &[(&str, &str)], body: &[u8]) {
        self.respond(status, fields, BodyLength::Known(body.len() as u64));
        if status != 204 && status != 304 {
            self.write(body);
        }
        self.finish();
    }

    /// Leaves HTTP: what comes from here on are pieces of a body that does not end, and what is
    /// written goes out as it is, until [`Server::finish`] ends the connection.
    ///
    /// # Panics
    /// If no answer's head is due.
    pub fn upgrade(&mut self, fields: &[(&str, &str)]) {
        assert_eq!(self.answer, Answer::Head, "a request waits for its head");
        self.out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
        put_fields(fields, &mut self.out);
        // The end of its body, which is none.
        self.events.clear();
        self.queued_bytes = 0;
        (self.body, self.body_left) = (Body::UntilClose, u64::MAX);
        self.answer = Answer::UntilClose;
        self.keep_alive = false;
        self.advance();
    }

    /// Answers that the request is malformed, without a word more, and ends the connection.
    ///
    /// # Panics
    /// If no answer's head is due.
    pub fn refuse_request(&mut self) {
        assert_eq!(self.answer, Answer::Head, "a request waits for its head");
        self.refuse(400);
    }

    /// Breaks an answer off: the client sees the connection end too early.
    pub fn abort(&mut self) {
        self.close();
    }

    fn advance(&mut self) {
        while !self.closing {
            if self.answer == Answer::Complete {
                if !self.keep_alive {
                    return self.close();
                }
                if self.body == Body::Done {
                    self.answer = Answer::Idle;
                }
            }
            if self.answer == Answer::Idle && !self.out.is_empty() {
                // The next request is looked at when its turn has come.
                return;
            }
            let moved = match self.answer {
                Answer::Idle => self.take_head(),
                _ => self.take_body(),
            };
            if !moved {
                if self.input_ended && (self.answer == Answer::Idle || self.body != Body::Done) {
                    // The rest will never come.
                    self.close();
                }
                return;
            }
        }
    }

    /// Takes a head from the input; false if it is not complete.
    fn take_head(&mut self) -> bool {
        // Empty lines before a request are to be ignored (RFC 9112 §2.2).
        let blank = self.input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if blank > 0 {
            self.input.advance(blank);
            self.scanned = 0;
        }
        let length = match head::head_length(&self.input, &mut self.scanned) {
            Ok(Some(length)) => length,
            Ok(None) => return false,
            Err(error) => return self.refuse(error.status()),
        };
        let (head, framing) = match head::parse_request(&self.input[..length]) {
            Ok(parsed) => parsed,
            Err(error) => return self.refuse(error.status()),
        };
        self.input.advance(length);
        self.scanned = 0;
        self.minor_version = head.minor_version;
        self.is_head = head.method == "HEAD";
        self.keep_alive &= framing.keep_alive;
        self.body = framing.body.unwrap_or(Body::Done);
        self.body_left = self.body_bytes_max;
        if let Body::Length(length) = self.body
            && length > self.body_bytes_max
        {
            return self.refuse(413);
        }
        let has_body = self.body != Body::Done;
        if framing.expects_continue && has_body && self.input.is_empty() {
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.answer = Answer::Head;
        self.requests += 1;
        self.events.push_back(ServerEvent::Request { head, has_body });
        if !has_body {
            self.events.push_back(ServerEvent::End);
        }
        true
    }

    /// Takes body bytes from the input; false if nothing moved.
    fn take_body(&mut self) -> bool {
        if self.body == Body::Done {
            return false;
        }
        let mut rest = &self.input[..];
        let result = self.body.read(&mut rest);
        let used = self.input.len() - rest.len();
        let result = result.and_then(|piece| match piece {
            Some(piece) if piece.len() as u64 > self.body_left => {
                Err(BodyError::TooLarge(self.body_bytes_max))
            }
            piece => Ok(piece.map(Bytes::copy_from_slice)),
        });
        self.input.advance(used);
        match result {
            Ok(piece) => {
                if let Some(piece) = piece {
                    self.body_left -= piece.len() as u64;
                    if self.answer != Answer::Complete {
                        self.queued_bytes += piece.len();
                        self.events.push_back(ServerEvent::Body(piece));
                    }
                }
                if self.body == Body::Done && self.answer != Answer::Complete {
                    self.events.push_back(ServerEvent::End);
                }
                used > 0
            }
            Err(error) => {
                self.events.push_back(ServerEvent::Failed(error));
                let status = if matches!(error, BodyError::TooLarge(_)) { 413 } else { 400 };
                self.refuse(status)
            }
        }
    }

    /// Answers an error of the client and ends the connection.
    fn refuse(&mut self, status: u16) -> bool {
        if matches!(self.answer, Answer::Idle | Answer::Head) {
            let reason = reason(status);
            let text = format!(
                "HTTP/1.1 {status} {reason}\r\ncontent-type: text/plain; charset=utf-8\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{status} {reason}",
                reason.len() + 4
            );
            self.out.extend_from_slice(text.as_bytes());
        }
        self.close();
        false
    }

    fn close(&mut self) {
        self.closing = true;
        self.input = BytesMut::new();
        self.answer = Answer::Complete;
        self.body = Body::Done;
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        412 => "Precondition Failed",
        413 => "Request Entity Too Large",
        415 => "Unsupported Media Type",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        499 => "Client Closed Request",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}
