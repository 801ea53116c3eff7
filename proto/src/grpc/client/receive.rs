//! What the client does with heads, messages, trailers and resets.
//!
//! Part of the client's core, called by the connection while it receives. Every call that was
//! started ends with exactly one `Response` or `Status`, unless the caller cancelled it.

use bytes::Bytes;

use super::super::Code;
use super::super::assembler::{AssembleError, Assembler, Framed};
use super::super::gzip;
use super::super::text::go_quote;
use super::{ClientEvent, Core};
use crate::h2::{BlockKind, Conn, ErrorCode, Handler, Headers, StreamId};
use crate::hpack::{Field, FieldSink};

/// The state of a call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) user: u64,
    streaming: bool,
    /// Messages we send are compressed.
    pub(super) gzip: bool,
    gzip_in: bool,
    encoding_other: Option<String>,
    assembler: Assembler,
    /// The response of a unary call, until its status is known.
    message: Option<Bytes>,
}

impl Call {
    pub(super) fn new(user: u64, streaming: bool, gzip: bool) -> Self {
        Call {
            user,
            streaming,
            gzip,
            gzip_in: false,
            encoding_other: None,
            assembler: Assembler::default(),
            message: None,
        }
    }
}

impl FieldSink for Core {
    #[inline]
    fn classify(&mut self, name: &[u8], value: &[u8]) -> u32 {
        self.head.classify(name, value)
    }

    #[inline]
    fn field(&mut self, field: Field<'_>) {
        self.head.field(field);
    }
}

impl Handler for Core {
    #[inline]
    fn block_start(&mut self, _kind: BlockKind) {
        self.head.start();
    }

    #[inline]
    fn headers(&mut self, conn: &mut Conn, stream: StreamId, headers: Headers) {
        match headers.kind {
            BlockKind::Trailers => self.trailers(conn, stream),
            BlockKind::Response => self.response(conn, stream, headers),
            BlockKind::Request | BlockKind::Interim => {}
        }
    }

    #[inline]
    fn data(&mut self, conn: &mut Conn, stream: StreamId, data: &[u8], end_stream: bool) {
        let length = data.len() as u32;
        conn.release_connection(length);
        conn.release_stream(stream, length);
        self.body(conn, stream, data);
        if end_stream {
            // grpc-go's words for a server that forgot its trailers.
            let text = "server closed the stream without sending trailers";
            self.end(conn, stream, Code::Internal, text);
        }
    }

    fn reset(&mut self, conn: &mut Conn, stream: StreamId, code: ErrorCode, by_peer: bool) {
        let unprocessed = by_peer && code == ErrorCode::REFUSED_STREAM;
        let name = code.name().map_or_else(|| code.0.to_string(), str::to_owned);
        let text = match by_peer {
            true => format!("stream terminated by RST_STREAM with error code: {name}"),
            false => format!("malformed response: stream reset with error code: {name}"),
        };
        let status = if by_peer { Code::from_reset(code) } else { Code::Internal };
        self.end_with(conn, stream, status, text, unprocessed, None);
    }

    fn go_away(&mut self, _last_stream: u32, code: ErrorCode, debug: &[u8]) {
        let debug = String::from_utf8_lossy(debug).into_owned();
        self.events.push_back(ClientEvent::GoAway { code, debug });
    }

    fn settings(&mut self) {
        if !std::mem::replace(&mut self.established, true) {
            self.events.push_back(ClientEvent::Established);
        }
    }

    fn pong(&mut self, payload: [u8; 8]) {
        self.events.push_back(ClientEvent::Pong { payload });
    }
}

impl Core {
    #[inline]
    fn response(&mut self, conn: &mut Conn, stream: StreamId, headers: Headers) {
        let Some(call) = self.calls.get_mut(stream) else { return };
        if !self.head.is_grpc {
            let text = foreign_text(headers.status, self.head.content_type.as_deref());
            return self.end(conn, stream, Code::from_http(headers.status), &text);
        }
        if headers.end_stream {
            return self.trailers(conn, stream);
        }
        call.gzip_in = self.head.gzip;
        call.encoding_other = self.head.encoding_other.take();
        if call.streaming {
            let user = call.user;
            let metadata = self.head.take_metadata();
            self.events.push_back(ClientEvent::Head { stream, user, metadata });
        }
    }

    #[inline]
    fn trailers(&mut self, conn: &mut Conn, stream: StreamId) {
        let head = &mut self.head;
        let code = head.status.map_or(Code::Unknown, Code::from_number);
        let Some(call) = self.calls.get_mut(stream) else { return };
        if code == Code::Ok && !call.streaming && !call.assembler.is_partial() {
            let user = call.user;
            return match call.message.take() {
                Some(message) => {
                    self.forget(conn, stream);
                    conn.reset_unfinished(stream);
                    self.events.push_back(ClientEvent::Response { stream, user, message });
                }
                None => {
                    let text = "cardinality violation: received no response message from \
                                non-server-streaming RPC";
                    self.end(conn, stream, Code::Internal, text);
                }
            };
        }
        if code == Code::Ok && call.assembler.is_partial() {
            return self.end(conn, stream, Code::Internal, "unexpected EOF");
        }
        let text = match head.status_is_malformed {
            true => "transport: malformed grpc-status".to_owned(),
            false => std::mem::take(&mut head.message),
        };
        let metadata = head.take_metadata();
        self.end_with(conn, stream, code, text, false, metadata);
    }

    #[inline]
    fn body(&mut self, conn: &mut Conn, stream: StreamId, mut data: &[u8]) {
        loop {
            let Some(call) = self.calls.get_mut(stream) else { return };
            match call.assembler.push(&mut data, self.message_bytes_max, &mut self.chunk) {
                Ok(Some(framed)) => {
                    let charged = std::mem::take(&mut call.assembler.charged);
                    if charged > 0 {
                        conn.budget().release(charged);
                    }
                    self.message(conn, stream, framed);
                }
                Ok(None) => break,
                Err(error) => {
                    let (code, text) = bad_body_text(error, self.message_bytes_max);
                    return self.end(conn, stream, code, &text);
                }
            }
        }
        let Some(call) = self.calls.get_mut(stream) else { return };
        let more = call.assembler.held() - call.assembler.charged;
        if more > 0 {
            if !conn.budget().charge(more) {
                let text = "grpc: received messages exceed the client's byte budget";
                return self.end(conn, stream, Code::ResourceExhausted, text);
            }
            call.assembler.charged += more;
        }
    }

    fn message(&mut self, conn: &mut Conn, stream: StreamId, framed: Framed) {
        let Some(call) = self.calls.get_mut(stream) else { return };
        let message = if framed.compressed {
            match inflate(call, &framed.message, self.message_bytes_max) {
                Ok(message) => message,
                Err((code, text)) => return self.end(conn, stream, code, &text),
            }
        } else {
            framed.message.into_bytes()
        };
        if call.streaming {
            let user = call.user;
            self.events.push_back(ClientEvent::Message { stream, user, message });
        } else if call.message.replace(message).is_some() {
            let text = "cardinality violation: expected <EOF> for non server-streaming RPCs, but \
                        received another message";
            self.end(conn, stream, Code::Internal, text);
        }
    }

    /// Ends a call for a reason of our own or the server's.
    fn end(&mut self, conn: &mut Conn, stream: StreamId, code: Code, text: &str) {
        self.end_with(conn, stream, code, text.to_owned(), false, None);
    }

    fn end_with(
        &mut self,
        conn: &mut Conn,
        stream: StreamId,
        code: Code,
        message: String,
        unprocessed: bool,
        metadata: Option<Box<super::Metadata>>,
    ) {
        let Some(user) = self.forget(conn, stream) else { return };
        conn.reset_unfinished(stream);
        self.events.push_back(ClientEvent::Status {
            stream,
            user,
            code,
            message,
            unprocessed,
            metadata,
        });
    }

    /// Drops a call's state; returns its number.
    #[inline]
    pub(super) fn forget(&mut self, conn: &mut Conn, stream: StreamId) -> Option<u64> {
        let mut call = self.calls.remove(stream)?;
        let charged = call.assembler.abandon();
        if charged > 0 {
            conn.budget().release(charged);
        }
        Some(call.user)
    }

    pub(super) fn fail_all(&mut self, conn: &mut Conn, text: &str) {
        for stream in self.calls.names() {
            self.end(conn, stream, Code::Unavailable, text);
        }
    }
}

fn inflate(call: &Call, compressed: &[u8], bytes_max: usize) -> Result<Bytes, (Code, String)> {
    if let Some(encoding) = &call.encoding_other {
        let quoted = go_quote(encoding.as_bytes());
        let text = format!("grpc: Decompressor is not installed for grpc-encoding {quoted}");
        return Err((Code::Internal, text));
    }
    if !call.gzip_in {
        let text = "grpc: compressed flag set with identity or empty encoding";
        return Err((Code::Internal, text.to_owned()));
    }
    gzip::inflate(compressed, bytes_max).map_err(|error| (error.code(), error.to_string()))
}

fn bad_body_text(error: AssembleError, bytes_max: usize) -> (Code, String) {
    match error {
        AssembleError::TooLarge { length } => (
            Code::ResourceExhausted,
            format!("grpc: received message larger than max ({length} vs. {bytes_max})"),
        ),
        AssembleError::PayloadFormat(format) => {
            (Code::Internal, format!("grpc: received unexpected payload format {format}"))
        }
    }
}

/// What grpc-go says of a response that is not gRPC.
#[cold]
fn foreign_text(status: u16, content_type: Option<&str>) -> String {
    let status_text = format!("unexpected HTTP status code received from server: {status}");
    match content_type {
        Some(found) => {
            let quoted = go_quote(found.as_bytes());
            format!("{status_text}; transport: received unexpected content-type {quoted}")
        }
        None => format!("{status_text}; malformed header: missing HTTP content-type"),
    }
}
