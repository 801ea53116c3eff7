//! What the server does with heads, bodies and resets.
//!
//! Part of the server's core, called by the connection while it receives. A unary call is answered
//! at its first message, as grpc-go does. Large messages are admitted by the budgets before their
//! windows open; those that must wait do so in order. While many wait, the windows of all streams
//! are shut but for a little, so that what waits is bounded though the streams are not.

use bytes::Bytes;

use super::super::assembler::{AssembleError, Assembler, Framed};
use super::super::gzip;
use super::super::{Code, Message, MethodId};
use super::head::{ContentType, Encoding};
use super::{Core, OpenCall, RequestMeta, ServerEvent};
use crate::h2::{BlockKind, Conn, ErrorCode, Handler, Headers, StreamId};
use crate::hpack::{Field, FieldSink};
use crate::limits;

/// What a call is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The message of a unary call.
    Unary,
    /// Messages of a streaming call.
    Streaming,
    /// Only our answer.
    Answering,
    /// A request that is not gRPC.
    Http,
}

/// The state of a call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) phase: Phase,
    pub(super) method: MethodId,
    pub(super) content_type: ContentType,
    /// The one that is unusual.
    pub(super) subtype: Option<Box<[u8]>>,
    pub(super) gzip: bool,
    pub(super) head_sent: bool,
    /// The owner's, for as long as the call is open.
    pub(super) note: u64,
    /// The owner was told of the call.
    pub(super) announced: bool,
    /// Body bytes still to come of the message begun by `start_message`.
    pub(super) message_left: usize,
    pub(super) assembler: Assembler,
    meta: RequestMeta,
    /// Bytes charged to the budgets until the call is over: its metadata, and a message that was
    /// inflated.
    charged: usize,
    /// A message that waits for room to be inflated.
    deflated: Option<Box<Deflated>>,
    /// The owner takes no more messages for now: the stream's window stays shut.
    held: bool,
    /// What the window lacks meanwhile.
    owed_bytes: u32,
    /// When the call's message began to wait for the budgets.
    waiting_since_ms: Option<u64>,
}

/// A whole message, and how long it is in truth.
#[derive(Debug)]
struct Deflated {
    framed: Framed,
    inflated_bytes: usize,
}

impl Call {
    fn new(phase: Phase, method: MethodId, content_type: ContentType) -> Self {
        Call {
            phase,
            method,
            content_type,
            subtype: None,
            gzip: false,
            head_sent: false,
            note: 0,
            announced: false,
            message_left: 0,
            assembler: Assembler::default(),
            meta: RequestMeta::default(),
            charged: 0,
            deflated: None,
            held: false,
            owed_bytes: 0,
            waiting_since_ms: None,
        }
    }

    /// The call as its owner knows it.
    pub(super) fn open(&self) -> Option<OpenCall> {
        let is_call = self.announced && self.phase != Phase::Http;
        is_call.then_some(OpenCall { method: self.method, note: self.note })
    }

    /// What it holds while it waits for the budgets, and is charged.
    fn waiting_bytes(&self) -> usize {
        match &self.deflated {
            Some(deflated) => deflated.framed.message.len(),
            None => self.assembler.charged,
        }
    }

    /// What it needs besides.
    fn lacks_bytes(&self) -> usize {
        match &self.deflated {
            Some(deflated) => deflated.inflated_bytes,
            None => self.assembler.length() - self.assembler.charged,
        }
    }

    /// Gives `bytes` of the stream's window back, or keeps them while the call is held.
    #[inline]
    fn release(&mut self, conn: &mut Conn, stream: StreamId, bytes: u32) {
        if self.held {
            self.owed_bytes += bytes;
        } else {
            conn.release_stream(stream, bytes);
        }
    }

    /// Holds the call, or lets it go on.
    pub(super) fn hold(&mut self, conn: &mut Conn, stream: StreamId, held: bool) {
        self.held = held;
        if !held {
            let owed_bytes = std::mem::take(&mut self.owed_bytes);
            conn.release_stream(stream, owed_bytes);
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

    fn headers(&mut self, conn: &mut Conn, stream: StreamId, headers: Headers) {
        match headers.kind {
            BlockKind::Request => self.request(conn, stream, headers.end_stream),
            // A client's trailers carry nothing that gRPC knows.
            _ => self.end_of_request(conn, stream),
        }
    }

    #[inline]
    fn data(&mut self, conn: &mut Conn, stream: StreamId, data: &[u8], end_stream: bool) {
        let length = data.len() as u32;
        let phase = match self.calls.get(stream) {
            Some(call) => call.phase,
            None => Phase::Answering,
        };
        match phase {
            Phase::Http => {
                let data = Bytes::copy_from_slice(data);
                self.events.push_back(ServerEvent::HttpData { stream, data, end_stream });
                if !end_stream {
                    conn.count_piece(length);
                }
                return;
            }
            Phase::Answering => {
                if !end_stream {
                    conn.count_piece(length);
                }
                conn.release_connection(length);
                conn.release_stream(stream, length);
                return;
            }
            Phase::Unary | Phase::Streaming => {}
        }
        if self.is_shut && !conn.is_settled() {
            self.owed_bytes += length;
        } else {
            conn.release_connection(length);
        }
        self.body(conn, stream, data);
        if end_stream {
            self.end_of_request(conn, stream);
        }
    }

    fn reset(&mut self, conn: &mut Conn, stream: StreamId, code: ErrorCode, by_peer: bool) {
        if let Some(mut call) = self.calls.remove(stream) {
            self.forget_body(conn, &mut call);
            if call.announced {
                // Nothing but a deadline has this side cancel a stream.
                let expired = !by_peer && code == ErrorCode::CANCEL;
                let code = if expired { Code::DeadlineExceeded } else { Code::Canceled };
                self.events.push_back(ServerEvent::Cancelled { stream, call: call.open(), code });
            }
        }
    }

    fn go_away(&mut self, _last_stream: u32, _code: ErrorCode, _debug: &[u8]) {}

    fn settings_acknowledged(&mut self, conn: &mut Conn) {
        conn.release_connection(std::mem::take(&mut self.owed_bytes));
        self.open_windows(conn);
    }
}

impl Core {
    /// A request's head, judged in grpc-go's order.
    #[inline]
    fn request(&mut self, conn: &mut Conn, stream: StreamId, end_stream: bool) {
        let head = &mut self.head;
        let is_grpc = !matches!(head.content_type, ContentType::Missing | ContentType::Other);
        if !is_grpc
            || head.malformed.is_some()
            || !head.is_post
            || head.authorities > 1
            || head.hosts > 1
            || head.timeout_ms == Some(0)
            || head.encoding == Encoding::Other
        {
            return self.unusual_request(conn, stream, end_stream, is_grpc);
        }
        let Some(route) = head.route.and_then(|index| self.routes.get(index)) else {
            let text = self.routes.unknown_text(&self.head.path);
            return self.abort(conn, stream, "200", Code::Unimplemented, &text);
        };
        let meta = RequestMeta {
            deadline_ms: head.timeout_ms.map(|timeout| conn.now_ms().saturating_add(timeout)),
            gzip: head.encoding == Encoding::Gzip,
            has_leader: head.has_leader,
            token: head.token.take().or_else(|| head.authorization.take()),
            client_api_version: head.client_api_version.take(),
        };
        let mut call = Call::new(Phase::Unary, route.method, head.content_type);
        call.gzip = meta.gzip;
        call.charged = meta.kept_bytes();
        if head.content_type == ContentType::GrpcSub {
            call.charged += head.subtype.len();
            call.subtype = Some(head.subtype.as_slice().into());
        }
        if call.charged > 0 && !conn.budget().charge(call.charged) {
            return conn.reset(stream, ErrorCode::REFUSED_STREAM);
        }
        if let Some(deadline_ms) = meta.deadline_ms {
            conn.set_deadline(stream, deadline_ms);
        }
        call.meta = meta;
        if route.streaming {
            call.phase = Phase::Streaming;
            call.announced = true;
            let meta = std::mem::take(&mut call.meta);
            let method = route.method;
            self.events.push_back(ServerEvent::StreamOpened { stream, method, meta });
        }
        self.calls.insert(stream, call);
        if end_stream {
            self.end_of_request(conn, stream);
        }
    }

    #[cold]
    fn unusual_request(
        &mut self,
        conn: &mut Conn,
        stream: StreamId,
        end_stream: bool,
        is_grpc: bool,
    ) {
        let head = &mut self.head;
        if head.authorities > 1 || head.hosts > 1 {
            let text = format!(
                "num values of :authority: {}, num values of host: {}, both must only have 1 value \
                 as per HTTP/2 spec",
                head.authorities, head.hosts
            );
            return self.abort(conn, stream, "400", Code::Internal, &text);
        }
        if !is_grpc && self.plain_http {
            let all = Box::new(std::mem::take(&mut head.all));
            let mut call = Call::new(Phase::Http, MethodId(0), ContentType::Other);
            call.announced = true;
            call.charged = all.held_bytes();
            if !conn.budget().charge(call.charged) {
                return conn.reset(stream, ErrorCode::REFUSED_STREAM);
            }
            self.calls.insert(stream, call);
            self.events.push_back(ServerEvent::HttpOpened { stream, head: all, end_stream });
            return;
        }
        let (http_status, code, text) = if !is_grpc {
            let quoted = super::super::text::go_quote(&head.content_type_text);
            let text = format!("invalid gRPC request content-type {quoted}");
            ("415", Code::InvalidArgument, text)
        } else if let Some(text) = head.malformed.take() {
            ("400", Code::Internal, text)
        } else if !head.is_post {
            let method = super::super::text::go_quote(&head.method);
            let text =
                format!("Received a HEADERS frame with :method {method} which should be POST");
            ("405", Code::Internal, text)
        } else if head.timeout_ms == Some(0) {
            ("200", Code::DeadlineExceeded, "context deadline exceeded".to_owned())
        } else if head.route.is_none() {
            ("200", Code::Unimplemented, self.routes.unknown_text(&head.path))
        } else {
            let encoding = super::super::text::go_quote(&head.encoding_text);
            let text = format!("grpc: Decompressor is not installed for grpc-encoding {encoding}");
            ("200", Code::Unimplemented, text)
        };
        self.abort(conn, stream, http_status, code, &text);
    }

    fn body(&mut self, conn: &mut Conn, stream: StreamId, mut data: &[u8]) {
        let length = data.len() as u32;
        let mut completes = false;
        loop {
            let Some(call) = self.calls.get_mut(stream) else { return };
            if call.phase == Phase::Answering || call.deflated.is_some() {
                // Whatever follows the message of a unary call is ignored.
                return conn.release_stream(stream, length);
            }
            let in_pieces = call.assembler.is_partial();
            let pushed = call.assembler.push(&mut data, self.message_bytes_max, &mut self.chunk);
            match pushed {
                Ok(Some(framed)) => {
                    completes = true;
                    if in_pieces {
                        conn.count_whole();
                    }
                    if call.assembler.charged > 0 {
                        self.settle(conn, stream);
                    }
                    self.message(conn, stream, framed);
                }
                Ok(None) => break,
                Err(error) => return self.bad_body(conn, stream, error),
            }
        }
        let Some(call) = self.calls.get_mut(stream) else { return };
        if !completes && call.assembler.is_partial() {
            conn.count_piece(length);
        }
        if call.assembler.is_in_body() {
            self.account(conn, stream, length);
        } else {
            call.release(conn, stream, length);
        }
    }

    /// A large message is complete: what was charged for it is free, and the next one starts with
    /// an ordinary window.
    #[cold]
    fn settle(&mut self, conn: &mut Conn, stream: StreamId) {
        let Some(call) = self.calls.get_mut(stream) else { return };
        let charged = std::mem::take(&mut call.assembler.charged);
        call.assembler.admitted = false;
        if call.waiting_since_ms.take().is_some() {
            self.waiting_bytes -= charged;
        }
        conn.budget().release(charged);
        // A unary call needs no more.
        if call.phase == Phase::Streaming {
            conn.restore_stream(stream);
        }
        self.admit_waiting(conn);
    }

    /// Charges a message that is being gathered: whole if the budgets allow, else what it holds.
    #[cold]
    fn account(&mut self, conn: &mut Conn, stream: StreamId, arrived: u32) {
        let Some(call) = self.calls.get_mut(stream) else { return };
        let assembler = &mut call.assembler;
        let is_small = assembler.length() <= limits::MESSAGE_SMALL_BYTES_MAX;
        if assembler.admitted {
            self.moved_ms = conn.now_ms();
            if is_small {
                call.release(conn, stream, arrived);
            }
            return;
        }
        let must_queue = !self.waiting.is_empty();
        if call.waiting_since_ms.is_none()
            && (is_small
                || (!must_queue && leaves_room(conn, self.waiting_bytes, assembler.length())))
            && conn.budget().charge(assembler.length())
        {
            assembler.charged = assembler.length();
            assembler.admitted = true;
            assembler.reserve();
            if is_small {
                call.release(conn, stream, arrived);
            }
            if !is_small || self.is_shut {
                let missing = call.assembler.missing();
                conn.widen_stream(stream, window_for(missing));
            }
            return;
        }
        let more = assembler.held() - assembler.charged;
        if !self.wait(conn, stream, more) {
            return self.refuse(conn, stream);
        }
        if let Some(call) = self.calls.get_mut(stream) {
            call.assembler.charged += more;
        }
    }

    /// A call waits for the budgets, or goes on waiting, with `more` bytes that it holds. False if
    /// not even these may be held.
    fn wait(&mut self, conn: &mut Conn, stream: StreamId, more: usize) -> bool {
        let fits = self.waiting_bytes + more <= conn.budget().limit() / limits::WAITING_SHARE;
        if !fits || !conn.budget().charge(more) {
            return false;
        }
        self.waiting_bytes += more;
        if let Some(call) = self.calls.get_mut(stream)
            && call.waiting_since_ms.is_none()
        {
            call.waiting_since_ms = Some(conn.now_ms());
            self.waiting.push_back(stream);
        }
        self.shut_windows(conn);
        true
    }

    /// So much waits that the rest is to wait with the client: its streams get windows one by one.
    fn shut_windows(&mut self, conn: &mut Conn) {
        let most = conn.budget().limit() / limits::WAITING_SHARE / 2;
        if self.is_shut
            || self.waiting_bytes < limits::SHUT_WAITING_BYTES.min(most)
            || !conn.set_stream_window(limits::SHUT_WINDOW_BYTES)
        {
            return;
        }
        self.is_shut = true;
        // What was admitted has its window still.
        for (stream, call) in self.calls.iter_mut() {
            if call.assembler.admitted {
                conn.widen_stream(stream, call.assembler.missing() as u32);
            }
        }
    }

    /// Nothing waits any more: all streams have their windows again.
    pub(super) fn open_windows(&mut self, conn: &mut Conn) {
        if self.is_shut && self.waiting.is_empty() && conn.restore_stream_windows() {
            self.is_shut = false;
        }
    }

    /// Admits waiting messages in order while the budgets allow.
    pub(super) fn admit_waiting(&mut self, conn: &mut Conn) {
        while let Some(stream) = self.waiting.front().copied() {
            if let Some(call) = self.calls.get_mut(stream)
                && call.waiting_since_ms.is_some()
            {
                let (held, more) = (call.waiting_bytes(), call.lacks_bytes());
                let waiting = self.waiting_bytes - held;
                if !leaves_room(conn, waiting, more) || !conn.budget().charge(more) {
                    return;
                }
                self.waiting_bytes = waiting;
                self.moved_ms = conn.now_ms();
                call.waiting_since_ms = None;
                self.waiting.pop_front();
                self.admit(conn, stream);
                continue;
            }
            self.waiting.pop_front();
        }
        self.open_windows(conn);
    }

    /// What a message lacked is charged: the rest may come, or it is inflated.
    fn admit(&mut self, conn: &mut Conn, stream: StreamId) {
        let Some(call) = self.calls.get_mut(stream) else { return };
        if let Some(deflated) = call.deflated.take() {
            call.charged += deflated.inflated_bytes;
            conn.budget().release(deflated.framed.message.len());
            let inflated = inflate(&deflated.framed.message, call.gzip, self.message_bytes_max);
            return match inflated {
                Ok(message) => self.deliver(stream, message.into()),
                Err((code, text)) => self.fail_call(conn, stream, code, &text),
            };
        }
        let assembler = &mut call.assembler;
        assembler.charged = assembler.length();
        assembler.admitted = true;
        assembler.reserve();
        let missing = assembler.missing();
        conn.widen_stream(stream, window_for(missing));
    }

    /// Refuses messages that waited too long. A queue that moves is no reason.
    pub(super) fn refuse_overdue(&mut self, conn: &mut Conn) {
        while let Some(stream) = self.waiting.front().copied() {
            let since = self.calls.get(stream).and_then(|call| call.waiting_since_ms);
            if since.is_some_and(|since| {
                let since = since.max(self.moved_ms);
                conn.now_ms() < since + limits::ADMISSION_WAIT_MS_MAX
            }) {
                return;
            }
            self.waiting.pop_front();
            if since.is_some() {
                self.refuse(conn, stream);
            }
        }
        self.open_windows(conn);
    }

    /// Refuses a stream whose message finds no room; a client may try it again unless a message of
    /// it was delivered.
    fn refuse(&mut self, conn: &mut Conn, stream: StreamId) {
        let announced = self.calls.get(stream).is_some_and(|call| call.announced);
        let code = match announced {
            true => ErrorCode::ENHANCE_YOUR_CALM,
            false => ErrorCode::REFUSED_STREAM,
        };
        conn.reset(stream, code);
        Handler::reset(self, conn, stream, code, false);
    }

    pub(super) fn forget_body(&mut self, conn: &mut Conn, call: &mut Call) {
        let waited = call.waiting_bytes();
        if call.waiting_since_ms.take().is_some() {
            self.waiting_bytes -= waited;
        }
        let mut charged = call.assembler.abandon() + std::mem::take(&mut call.charged);
        if let Some(deflated) = call.deflated.take() {
            charged += deflated.framed.message.len();
        }
        if charged > 0 {
            conn.budget().release(charged);
            self.admit_waiting(conn);
        }
    }

    fn message(&mut self, conn: &mut Conn, stream: StreamId, framed: Framed) {
        if !framed.compressed {
            return self.deliver(stream, framed.message);
        }
        let Some(call) = self.calls.get_mut(stream) else { return };
        let message = match inflate(&framed.message, call.gzip, self.message_bytes_max) {
            Ok(message) => message,
            Err((code, text)) => return self.fail_call(conn, stream, code, &text),
        };
        // A message of a streaming call is not kept for longer than it takes to look at it.
        if call.phase == Phase::Unary && message.len() > limits::MESSAGE_SMALL_BYTES_MAX {
            let must_queue = !self.waiting.is_empty();
            if must_queue
                || !leaves_room(conn, self.waiting_bytes, message.len())
                || !conn.budget().charge(message.len())
            {
                return self.wait_deflated(conn, stream, framed, message.len());
            }
            call.charged += message.len();
        }
        self.deliver(stream, message.into());
    }

    fn wait_deflated(
        &mut self,
        conn: &mut Conn,
        stream: StreamId,
        framed: Framed,
        inflated_bytes: usize,
    ) {
        if !self.wait(conn, stream, framed.message.len()) {
            return self.refuse(conn, stream);
        }
        if let Some(call) = self.calls.get_mut(stream) {
            call.deflated = Some(Box::new(Deflated { framed, inflated_bytes }));
        }
    }

    fn deliver(&mut self, stream: StreamId, message: Message) {
        let Some(call) = self.calls.get_mut(stream) else { return };
        match call.phase {
            Phase::Unary => {
                call.phase = Phase::Answering;
                call.announced = true;
                let (method, meta) = (call.method, std::mem::take(&mut call.meta));
                self.events.push_back(ServerEvent::Unary { stream, method, meta, message });
            }
            Phase::Streaming => {
                let (method, message) = (call.method, message.into_bytes());
                self.events.push_back(ServerEvent::StreamMessage { stream, method, message });
            }
            Phase::Answering | Phase::Http => {}
        }
    }

    fn end_of_request(&mut self, conn: &mut Conn, stream: StreamId) {
        let Some(call) = self.calls.get_mut(stream) else { return };
        // A part of a prefix is nothing, to grpc-go.
        if call.assembler.is_in_body() {
            let is_streaming = call.phase == Phase::Streaming;
            let code = if is_streaming { Code::Internal } else { Code::Unknown };
            return self.fail_call(conn, stream, code, "unexpected EOF");
        }
        match call.phase {
            Phase::Unary if call.deflated.is_some() => {}
            Phase::Unary => self.fail_call(conn, stream, Code::Unknown, "EOF"),
            Phase::Streaming => {
                call.phase = Phase::Answering;
                self.events.push_back(ServerEvent::StreamHalfClosed { stream });
            }
            Phase::Http => {
                let data = Bytes::new();
                self.events.push_back(ServerEvent::HttpData { stream, data, end_stream: true });
            }
            Phase::Answering => {}
        }
    }

    #[cold]
    fn bad_body(&mut self, conn: &mut Conn, stream: StreamId, error: AssembleError) {
        let (code, text) = match error {
            AssembleError::TooLarge { length } => (
                Code::ResourceExhausted,
                format!(
                    "grpc: received message larger than max ({length} vs. {})",
                    self.message_bytes_max
                ),
            ),
            AssembleError::PayloadFormat(format) => {
                (Code::Internal, format!("grpc: received unexpected payload format {format}"))
            }
        };
        self.fail_call(conn, stream, code, &text);
    }

    /// Ends a call with a status of the transport's own.
    fn fail_call(&mut self, conn: &mut Conn, stream: StreamId, code: Code, text: &str) {
        let announced = self.calls.get(stream).filter(|call| call.announced);
        let announced = announced.map(Call::open);
        // The stream may be gone already; then there is nobody to tell.
        let _ = self.finish(conn, stream, code, text);
        if let Some(call) = announced {
            self.events.push_back(ServerEvent::Cancelled { stream, call, code });
        }
    }
}

/// The window for the rest of a message: its last byte fits in with the longest padding.
fn window_for(missing_bytes: usize) -> u32 {
    missing_bytes as u32 + limits::FRAME_PADDING_BYTES_MAX
}

/// Whether `more` bytes can be charged so that the share of waiting messages, of which `waiting` is
/// in use, stays available to them. A message larger than the rest of the budget gets it all.
fn leaves_room(conn: &mut Conn, waiting: usize, more: usize) -> bool {
    let budget = conn.budget();
    let share = budget.limit() / limits::WAITING_SHARE;
    let kept_free = share.saturating_sub(waiting);
    more > budget.limit() - share || budget.used() + more + kept_free <= budget.limit()
}

fn inflate(compressed: &[u8], is_gzip: bool, bytes_max: usize) -> Result<Bytes, (Code, String)> {
    if !is_gzip {
        let text = "grpc: compressed flag set with identity or empty encoding";
        return Err((Code::Internal, text.to_owned()));
    }
    gzip::inflate(compressed, bytes_max).map_err(|error| (error.code(), error.to_string()))
}
