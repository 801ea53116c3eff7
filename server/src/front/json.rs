//! Calls that came as JSON over HTTP, and their answers as JSON, as grpc-gateway v2 maps them.
//!
//! Such a call is one of its request's connection, and services answer it like any other; the wire
//! leads what they say of it here. Messages are turned into JSON as their bytes come, so that an
//! answer of any size costs a piece of memory. Nothing here knows what a message means.

use std::collections::BTreeMap;

use etcore_proto::error::{Code, Status};
use etcore_proto::grpc::{MESSAGE_PREFIX_BYTES, MethodId, OpenCall};
use etcore_proto::json::{self, Method, Writer};

use super::conn::Conn;
use super::note::Note;
use super::wire::Wire;
use crate::http::Page;
use crate::limits;
use crate::replies::{CallId, ConnId, Gone, HttpId, HttpReplies};

/// A call that is not over.
struct JsonCall {
    request: HttpId,
    method: &'static Method,
    open: OpenCall,
    /// The head of its response was sent.
    is_begun: bool,
    /// The message that is under way, and how much of it is to come.
    message: Option<(Writer, usize)>,
    /// What is written of it and waits for the next piece; the one answer, if it came in one piece.
    whole: Vec<u8>,
    /// There was no room for its answer: it is to be told when there is.
    waits: bool,
    /// Its client is not to send more for now, and so many bytes it has sent.
    held: bool,
    unconsumed: usize,
}

/// The calls of one front's connections.
#[derive(Default)]
pub(super) struct JsonCalls {
    calls: BTreeMap<CallId, JsonCall>,
    /// Room for a piece of JSON, used again.
    text: Vec<u8>,
    /// Streams that have ended while their clients may still send.
    ended: Vec<HttpId>,
}

impl JsonCalls {
    /// The calls of a connection.
    pub(super) fn of(&self, conn: ConnId) -> Vec<CallId> {
        if self.calls.is_empty() {
            return Vec::new();
        }
        self.calls.range(CallId::all_of(conn)).map(|(id, _)| *id).collect()
    }

    /// Forgets a call; what it was.
    pub(super) fn remove(&mut self, call: CallId) -> Option<OpenCall> {
        self.take(call).map(|call| call.open)
    }

    fn take(&mut self, call: CallId) -> Option<JsonCall> {
        let call = self.calls.remove(&call)?;
        if call.method.client_streams {
            self.ended.push(call.request);
        }
        Some(call)
    }

    /// A stream that has ended since this was asked last.
    pub(super) fn next_ended(&mut self) -> Option<HttpId> {
        self.ended.pop()
    }

    /// The call of this request, if it waits for room.
    pub(super) fn take_waiting(&mut self, call: CallId) -> bool {
        self.calls.get_mut(&call).is_some_and(|call| std::mem::take(&mut call.waits))
    }

    /// A client of HTTP/1.1 is not to send more.
    pub(super) fn holds(&self, conn: ConnId) -> bool {
        !self.calls.is_empty() && self.calls.range(CallId::all_of(conn)).any(|(_, call)| call.held)
    }

    /// Whether a connection has calls that go on until their client ends them.
    pub(super) fn may_last(&self, conn: ConnId) -> bool {
        let lasts = |method: &Method| {
            method.server_streams
                || ["/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign"].contains(&method.path)
        };
        !self.calls.is_empty()
            && self.calls.range(CallId::all_of(conn)).any(|(_, call)| lasts(call.method))
    }
}

/// What an answer's head says.
fn page(status: u16, body: Vec<u8>) -> Page {
    // As the gateway passes on what its own call was answered with.
    let headers = match status {
        200 => vec![("Grpc-Metadata-Content-Type", "application/grpc".to_owned())],
        _ => Vec::new(),
    };
    Page { status, content_type: "application/json", headers, body }
}

/// The page of a call that is refused.
fn refusal(status: &Status) -> Page {
    let mut page = page(http_status(status.code), status_json(status, false));
    if status.code == Code::Unauthenticated {
        page.headers.push(("WWW-Authenticate", status.message.to_string()));
    }
    page
}

/// The HTTP status of a code (grpc-gateway: `HTTPStatusFromCode`).
fn http_status(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::Canceled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::DeadlineExceeded => 504,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::PermissionDenied => 403,
        Code::Unauthenticated => 401,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    }
}

/// A status as JSON.
fn status_json(status: &Status, for_html: bool) -> Vec<u8> {
    let mut body = format!("{{\"code\":{}", status.code as i32).into_bytes();
    if !status.message.is_empty() {
        body.extend_from_slice(b",\"message\":");
        json::write_text(&status.message, for_html, &mut body);
    }
    body.push(b'}');
    body
}

impl Wire {
    /// See [`HttpReplies::answer_as_json`].
    pub(super) fn begin_json(
        &mut self,
        request: HttpId,
        (id, method): (MethodId, &'static Method),
    ) {
        let note = Note { began: self.now(), reads_only: false };
        let call = JsonCall {
            request,
            method,
            open: OpenCall { method: id, note: note.number() },
            is_begun: false,
            message: None,
            whole: Vec::new(),
            waits: false,
            held: false,
            unconsumed: 0,
        };
        self.json.calls.insert(CallId::of_json(request), call);
    }

    /// Bytes of messages for which there is room.
    pub(super) fn json_capacity(&mut self, id: CallId) -> Result<usize, Gone> {
        let request = self.json.calls.get(&id).ok_or(Gone)?.request;
        // Three bytes are four letters, and numbers and names are longer still.
        let room = self.body_capacity(request)? / 2;
        if let Some(call) = self.json.calls.get_mut(&id) {
            call.waits = room == 0;
        }
        Ok(room)
    }

    /// The one answer of a call.
    pub(super) fn json_reply(&mut self, id: CallId, message: &[u8]) {
        let Some(call) = self.json.take(id) else { return };
        let mut body = Vec::with_capacity(message.len() * 2 + 64);
        json::write(call.method.response, message, false, &mut body);
        self.respond(call.request, &page(200, body));
        self.ended(Some(call.open), Code::Ok);
    }

    /// A message of a stream.
    pub(super) fn json_message(&mut self, id: CallId, message: &[u8]) -> Result<(), Gone> {
        self.json_start(id, message.len())?;
        self.json_write(id, message)
    }

    /// Messages of a stream, each behind its prefix.
    pub(super) fn json_framed(&mut self, id: CallId, mut framed: &[u8]) -> Result<(), Gone> {
        while let Some((prefix, rest)) = framed.split_at_checked(MESSAGE_PREFIX_BYTES) {
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            let (message, behind) = rest.split_at(length.min(rest.len()));
            self.json_message(id, message)?;
            framed = behind;
        }
        Ok(())
    }

    /// Begins a message that comes in pieces.
    pub(super) fn json_start(&mut self, id: CallId, length_bytes: usize) -> Result<(), Gone> {
        let call = self.json.calls.get_mut(&id).ok_or(Gone)?;
        let (method, open) = (call.method, call.open);
        self.calls.sent(Some(open), 1);
        let writer = Writer::new(method.response, method.server_streams);
        let mut text = std::mem::take(&mut self.json.text);
        text.clear();
        if method.server_streams {
            text.extend_from_slice(b"{\"result\":");
        }
        writer.begin(&mut text);
        call.message = Some((writer, length_bytes));
        // It is sent with what follows, so that a short message comes in one piece.
        call.whole.append(&mut text);
        self.json.text = text;
        // An empty message is complete.
        self.json_write(id, b"")
    }

    /// A piece of the message that is under way.
    pub(super) fn json_write(&mut self, id: CallId, piece: &[u8]) -> Result<(), Gone> {
        let call = self.json.calls.get_mut(&id).ok_or(Gone)?;
        let Some((mut writer, left)) = call.message.take() else { return Ok(()) };
        let request = call.request;
        if piece.is_empty() && left > 0 {
            call.message = Some((writer, left));
            return Ok(());
        }
        let mut text = std::mem::take(&mut self.json.text);
        text.clear();
        text.append(&mut call.whole);
        writer.push(piece, &mut text);
        let left = left.saturating_sub(piece.len());
        if left == 0 {
            writer.finish(&mut text);
            if call.method.server_streams {
                text.extend_from_slice(b"}\n");
            }
        } else {
            call.message = Some((writer, left));
        }
        if left == 0 && !call.is_begun && !call.method.server_streams {
            call.whole = text;
            return Ok(());
        }
        let begins = !std::mem::replace(&mut call.is_begun, true);
        if begins {
            self.begin_body(request, &page(200, Vec::new()), None)?;
        }
        let written = self.write_body(request, &text);
        if text.capacity() <= limits::ANSWER_BUFFER_BYTES {
            self.json.text = text;
        }
        written
    }

    /// Ends a call with an error.
    pub(super) fn json_fail(&mut self, id: CallId, status: &Status) {
        let Some(call) = self.json.calls.get(&id) else { return };
        let request = call.request;
        if call.message.is_some() || (call.is_begun && !call.method.server_streams) {
            return self.json_abort(id);
        }
        if call.is_begun {
            let mut line = b"{\"error\":".to_vec();
            line.extend(status_json(status, true));
            line.extend_from_slice(b"}\n");
            let _ = self.write_body(request, &line);
            self.end_body(request);
        } else {
            self.respond(request, &refusal(status));
        }
        let open = self.json.remove(id);
        self.ended(open, status.code);
    }

    /// Ends a call with OK.
    pub(super) fn json_finish(&mut self, id: CallId) {
        let Some(call) = self.json.take(id) else { return };
        if call.is_begun {
            self.end_body(call.request);
        } else if call.method.server_streams {
            // A stream without answers.
            let _ = self.begin_body(call.request, &Page::empty(200), None);
            self.end_body(call.request);
        } else {
            self.respond(call.request, &page(200, call.whole));
        }
        self.ended(Some(call.open), Code::Ok);
    }

    /// Breaks a call off: its client sees a response that ends too early.
    pub(super) fn json_abort(&mut self, id: CallId) {
        let Some(call) = self.json.take(id) else { return };
        if let Some(conn) = self.conn(id.conn) {
            conn.break_off(call.request.exchange);
        }
        self.mark_dirty(id.conn);
        self.ended(Some(call.open), Code::Canceled);
    }

    /// Keeps a client from sending more, or lets it.
    pub(super) fn json_hold(&mut self, id: CallId, held: bool) {
        let Some(call) = self.json.calls.get_mut(&id) else { return };
        call.held = held;
        let (request, bytes) = (call.request, std::mem::take(&mut call.unconsumed));
        if held {
            call.unconsumed = bytes;
        } else {
            self.consumed(request, bytes);
        }
        self.mark_dirty(id.conn);
    }

    /// Bytes of a request's body were taken: true if its client may send more.
    pub(super) fn json_lets_send(&mut self, request: HttpId, bytes: usize) -> bool {
        match self.json.calls.get_mut(&CallId::of_json(request)) {
            Some(call) if call.held => {
                call.unconsumed += bytes;
                false
            }
            _ => true,
        }
    }

    /// The call is a transaction that only reads.
    pub(super) fn json_reads_only(&mut self, id: CallId) {
        if let Some(call) = self.json.calls.get_mut(&id)
            && let Some(note) = Note::of(call.open.note)
        {
            call.open.note = Note { reads_only: true, ..note }.number();
        }
    }

    /// Nothing is counted of a call that is none.
    pub(super) fn json_uncount(&mut self, id: CallId) {
        if let Some(call) = self.json.calls.get_mut(&id) {
            call.open.note = 0;
        }
    }

    /// Forgets the call of a request whose client is gone.
    pub(super) fn json_cancelled(&mut self, id: CallId) {
        let open = self.json.remove(id);
        self.ended(open, Code::Canceled);
    }
}

impl Conn {
    /// Ends a response that is not complete.
    fn break_off(&mut self, exchange: crate::replies::Exchange) {
        use super::conn::Protocol;
        use crate::replies::Exchange;
        match (&mut self.protocol, exchange) {
            (Protocol::Http1(server), Exchange::Http1(number))
                if server.request_number() == number =>
            {
                server.abort();
            }
            (Protocol::Grpc(server), Exchange::H2(stream)) => server.abort(stream),
            _ => {}
        }
    }
}
