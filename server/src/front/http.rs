//! Requests that are not gRPC on a front's connections, over HTTP/1.1 and HTTP/2: from the
//! protocols' events to one form of request, and from one form of response to the protocols.
//!
//! An HTTP/1.1 connection is answered one request a round, and only while the budgets have room for
//! the answer.

use std::collections::VecDeque;
use std::time::SystemTime;

use etcore_proto::grpc::{Metadata, MethodId, StreamId};
use etcore_proto::http1::{BodyLength, ServerEvent};
use etcore_proto::json::Method;

use super::Front;
use super::conn::{Conn, Protocol, Serves};
use super::wire::Wire;
use crate::api::{HttpRequest, Via};
use crate::http::{self, Page};
use crate::limits;
use crate::replies::{CallId, ConnId, Exchange, Gone, HttpId, HttpReplies};

/// What etcd's handlers say to browsers of an origin that may read the response.
const CORS: [(&str, &str); 2] = [
    ("Access-Control-Allow-Headers", "accept, content-type, authorization"),
    ("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE"),
];

/// Whose pages may read responses that are not sent yet, on a connection where not all may.
#[derive(Default)]
pub(super) struct Origins {
    /// One of a request that its client broke off stays until others push it out.
    waiting: VecDeque<(Exchange, Option<String>)>,
}

impl Origins {
    fn add(&mut self, exchange: Exchange, origin: Option<String>) {
        if self.waiting.len() >= limits::CONNECTION_ORIGINS {
            self.waiting.pop_front();
        }
        self.waiting.push_back((exchange, origin));
    }

    fn take(&mut self, exchange: Exchange) -> Option<String> {
        let at = self.waiting.iter().position(|(of, _)| *of == exchange)?;
        self.waiting.remove(at)?.1
    }
}

impl Front {
    /// Handles what an HTTP/1.1 connection has to say: one request, since the next comes after its
    /// answer has left.
    pub(super) fn handle_http1(&mut self, conn: ConnId) {
        self.go_on_with_json(conn);
        loop {
            let Some(open) = self.wire.conn(conn) else { return };
            open.charge();
            if !open.may_answer() {
                // Looked at again when something was sent, and at each tick.
                return;
            }
            let Some(server) = open.http1() else { return };
            let Some(event) = server.next_event() else { return };
            let id = HttpId { conn, exchange: Exchange::Http1(server.request_number()) };
            let (via, is_websocket) = (open.via(), open.websocket.is_some());
            let (services, wire) = (&mut self.services, &mut self.wire);
            match event {
                ServerEvent::Request { head, has_body } => {
                    let request = HttpRequest {
                        via,
                        id,
                        method: head.method,
                        target: head.target,
                        fields: head.fields,
                    };
                    services.http_opened(wire, request, !has_body);
                }
                ServerEvent::Body(piece) if is_websocket => self.websocket_received(id, &piece),
                ServerEvent::Body(piece) => services.http_body(wire, id, &piece, false),
                ServerEvent::End => services.http_body(wire, id, &bytes::Bytes::new(), true),
                ServerEvent::Failed(_) => self.http_cancelled(id),
            }
            self.take_json_calls();
            self.wire.mark_dirty(conn);
        }
    }

    /// The client has gone away from a request.
    pub(super) fn http_cancelled(&mut self, id: HttpId) {
        self.services.json_ended(&mut self.wire, id);
        self.services.http_cancelled(id);
        let call = CallId::of_json(id);
        self.services.cancelled(&mut self.wire, call);
        self.wire.json_cancelled(call);
    }

    /// Calls that have come whole as JSON go where all others go.
    pub(super) fn take_json_calls(&mut self) {
        while let Some(unary) = self.services.next_json_call() {
            self.take_unary(unary);
        }
    }

    /// A response of HTTP/1.1 that waited for room may have some now.
    fn go_on_with_json(&mut self, conn: ConnId) {
        let Some(server) = self.wire.conn(conn).and_then(Conn::http1) else { return };
        if server.capacity() == 0 {
            return;
        }
        let exchange = Exchange::Http1(server.request_number());
        self.json_writable(HttpId { conn, exchange });
    }

    /// There may be room for the response to a request.
    pub(super) fn json_writable(&mut self, request: HttpId) {
        let call = CallId::of_json(request);
        if self.wire.json.take_waiting(call) {
            self.services.writable(&mut self.wire, call);
        }
    }
}

/// The name of a request on an HTTP/2 stream.
pub(super) fn h2_id(conn: ConnId, stream: StreamId) -> HttpId {
    HttpId { conn, exchange: Exchange::H2(stream) }
}

/// The request that an HTTP/2 head asks for.
pub(super) fn request_of_h2(
    conn: ConnId,
    via: Via,
    stream: StreamId,
    head: Metadata,
) -> HttpRequest {
    let text = |name: &[u8]| {
        let value = head.get(name).unwrap_or_default();
        String::from_utf8_lossy(value).into_owned()
    };
    let (method, target) = (text(b":method"), text(b":path"));
    HttpRequest { id: h2_id(conn, stream), method, target, fields: head, via }
}

impl Conn {
    /// What endpoints want to know of it.
    pub(super) fn via(&self) -> Via {
        let observes = self.origin.door.serves == Serves::Metrics;
        let name = self.origin.caller.common_name.as_ref();
        let names_user = name.is_some_and(|name| !name.is_empty());
        Via { observes, is_secure: self.is_secure, names_user }
    }

    /// Sends the head of a response, and its body if that is not to come in pieces.
    pub(super) fn respond(
        &mut self,
        exchange: Exchange,
        page: &Page,
        length: Option<BodyLength>,
        now: SystemTime,
    ) -> Result<(), Gone> {
        if self.websocket.is_some() {
            // The head was sent long ago.
            return if length.is_some() { Ok(()) } else { self.respond_message(page) };
        }
        let date = http::http_date(now);
        let origin = match (&mut self.origins, self.origin.door.serves) {
            (_, Serves::Metrics) => None,
            (None, _) => Some("*".to_owned()),
            (Some(origins), _) => origins.take(exchange),
        };
        let mut fields: Vec<(&str, &str)> = Vec::with_capacity(8);
        if let Some(origin) = &origin {
            fields.extend(CORS);
            fields.push(("Access-Control-Allow-Origin", origin));
        }
        fields.push(("Date", &date));
        if !page.content_type.is_empty() {
            fields.push(("Content-Type", page.content_type));
        }
        fields.extend(page.headers.iter().map(|(name, value)| (*name, value.as_str())));
        match (&mut self.protocol, exchange) {
            (Protocol::Http1(server), Exchange::Http1(number)) => {
                if server.request_number() != number || !server.is_answer_due() {
                    return Err(Gone);
                }
                match length {
                    Some(length) => server.respond(page.status, &fields, length),
                    None => server.respond_with(page.status, &fields, &page.body),
                }
            }
            (Protocol::Grpc(server), Exchange::H2(stream)) => {
                let length_bytes = match length {
                    None => Some(page.body.len() as u64),
                    Some(BodyLength::Known(length_bytes)) => Some(length_bytes),
                    Some(BodyLength::Unknown) => None,
                };
                let length_text = length_bytes.map(|length| length.to_string());
                let names: Vec<String> =
                    fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
                let values = fields.iter().map(|(_, value)| value.as_bytes());
                let mut items: Vec<(&[u8], &[u8])> =
                    names.iter().map(String::as_bytes).zip(values).collect();
                if let Some(text) = &length_text {
                    items.push((b"content-length", text.as_bytes()));
                }
                let ends = length.is_none() && page.body.is_empty();
                server.http_response(stream, page.status, &items, ends).map_err(|_| Gone)?;
                if length.is_none() && !ends {
                    server.http_body(stream, &page.body, true).map_err(|_| Gone)?;
                }
            }
            _ => return Err(Gone),
        }
        self.charge();
        Ok(())
    }

    /// See [`HttpReplies::allow_origin`](crate::replies::HttpReplies::allow_origin).
    pub(super) fn allow_origin(&mut self, exchange: Exchange, origin: Option<String>) {
        self.origins.get_or_insert_default().add(exchange, origin);
    }

    /// Bytes of a response's body that can be sent at once.
    pub(super) fn body_capacity(&mut self, exchange: Exchange) -> Result<usize, Gone> {
        match (&mut self.protocol, exchange) {
            (Protocol::Http1(server), Exchange::Http1(number))
                if server.request_number() == number =>
            {
                Ok(server.capacity())
            }
            (Protocol::Grpc(server), Exchange::H2(stream)) => Ok(server.capacity(stream)),
            _ => Err(Gone),
        }
    }

    /// The next piece of a response's body; the last one may be empty.
    pub(super) fn write_body(
        &mut self,
        exchange: Exchange,
        piece: &[u8],
        ends: bool,
    ) -> Result<(), Gone> {
        if self.websocket.is_some() {
            return self.write_message(piece, ends);
        }
        match (&mut self.protocol, exchange) {
            (Protocol::Http1(server), Exchange::Http1(number))
                if server.request_number() == number && server.is_answering() =>
            {
                server.write(piece);
                if ends {
                    server.finish();
                }
            }
            (Protocol::Grpc(server), Exchange::H2(stream)) => {
                server.http_body(stream, piece, ends).map_err(|_| Gone)?;
            }
            _ => return Err(Gone),
        }
        self.charge();
        Ok(())
    }

    /// Refuses a request as malformed.
    pub(super) fn refuse_request(&mut self, exchange: Exchange) {
        match (&mut self.protocol, exchange) {
            (Protocol::Http1(server), Exchange::Http1(number))
                if server.request_number() == number && server.is_answer_due() =>
            {
                server.refuse_request();
            }
            (Protocol::Grpc(server), Exchange::H2(stream)) => {
                // An error means that the client is gone; the transport has noticed.
                let _ = server.http_response(stream, 400, &[], true);
            }
            _ => {}
        }
    }
}

impl HttpReplies for Wire {
    fn respond(&mut self, request: HttpId, page: &Page) {
        // An error means that the request is over.
        let _ = self.answer(request, |conn, now| conn.respond(request.exchange, page, None, now));
    }

    fn allow_origin(&mut self, request: HttpId, origin: Option<String>) {
        if let Some(conn) = self.conn(request.conn) {
            conn.allow_origin(request.exchange, origin);
        }
    }

    fn begin_body(
        &mut self,
        request: HttpId,
        page: &Page,
        length_bytes: Option<u64>,
    ) -> Result<(), Gone> {
        let length = length_bytes.map_or(BodyLength::Unknown, BodyLength::Known);
        self.answer(request, |conn, now| conn.respond(request.exchange, page, Some(length), now))
    }

    fn body_capacity(&mut self, request: HttpId) -> Result<usize, Gone> {
        self.conn(request.conn).ok_or(Gone)?.body_capacity(request.exchange)
    }

    fn write_body(&mut self, request: HttpId, piece: &[u8]) -> Result<(), Gone> {
        self.answer(request, |conn, _| conn.write_body(request.exchange, piece, false))
    }

    fn end_body(&mut self, request: HttpId) {
        let _ = self.answer(request, |conn, _| conn.write_body(request.exchange, b"", true));
    }

    fn keep_body(&mut self, request: HttpId, bytes: usize) -> bool {
        self.conn(request.conn).is_some_and(|conn| conn.keep_body(bytes))
    }

    fn release_body(&mut self, request: HttpId, bytes: usize) {
        if let Some(conn) = self.conn(request.conn) {
            conn.release_body(bytes);
        }
    }

    fn upgrade(&mut self, request: HttpId, accept: &str, is_bearer: bool) -> Result<(), Gone> {
        self.answer(request, |conn, _| conn.upgrade(accept, is_bearer))
    }

    fn answer_as_json(&mut self, request: HttpId, method: (MethodId, &'static Method)) {
        self.begin_json(request, method);
    }

    fn consumed(&mut self, request: HttpId, bytes: usize) {
        if !self.json_lets_send(request, bytes) {
            return;
        }
        if let Exchange::H2(stream) = request.exchange
            && let Some(server) = self.server(CallId { conn: request.conn, stream })
        {
            server.http_consumed(stream, bytes);
        }
    }

    fn refuse_request(&mut self, request: HttpId) {
        let _ = self.answer(request, |conn, _| {
            conn.refuse_request(request.exchange);
            Ok(())
        });
    }
}

impl Wire {
    /// Does something with the connection of a request, which will have something to send then.
    fn answer(
        &mut self,
        request: HttpId,
        act: impl FnOnce(&mut Conn, SystemTime) -> Result<(), Gone>,
    ) -> Result<(), Gone> {
        let now = self.clock.unix();
        let conn = self.conn(request.conn).filter(|conn| !conn.gone).ok_or(Gone)?;
        act(conn, now)?;
        self.mark_dirty(request.conn);
        Ok(())
    }
}
