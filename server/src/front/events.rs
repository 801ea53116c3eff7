//! From a connection's events to the services.

use etcore_proto::grpc::ServerEvent;

use super::{Front, http};
use crate::api::{Call, Unary};
use crate::replies::{CallId, ConnId, Replies};

impl Front {
    /// Handles everything a connection has to say.
    pub(super) fn handle_events(&mut self, conn_id: ConnId) {
        let id = |stream| CallId { conn: conn_id, stream };
        loop {
            let Some(conn) = self.wire.conn(conn_id) else { return };
            if conn.gone {
                return;
            }
            let via = conn.via();
            let Some(server) = conn.grpc() else { break };
            let Some(event) = server.next_event() else { return };
            let (services, wire) = (&mut self.services, &mut self.wire);
            match event {
                ServerEvent::Unary { stream, method, meta, message } => {
                    let caller = wire.began(id(stream)).with_token(meta.token.as_ref());
                    let call = Call::new(id(stream), method, &meta, caller, wire.now());
                    self.take_unary(Unary { call, method, meta, message });
                }
                ServerEvent::StreamOpened { stream, method, meta } => {
                    let caller = wire.began(id(stream)).with_token(meta.token.as_ref());
                    services.stream_opened(wire, id(stream), method, &meta, &caller);
                }
                ServerEvent::StreamMessage { stream, method, message } => {
                    services.stream_message(wire, id(stream), method, message);
                }
                ServerEvent::Writable { stream } => {
                    services.writable(wire, id(stream));
                    self.json_writable(http::h2_id(conn_id, stream));
                }
                ServerEvent::Cancelled { stream, call, code } => {
                    wire.cancelled(call, code);
                    services.cancelled(wire, id(stream));
                    self.http_cancelled(http::h2_id(conn_id, stream));
                }
                ServerEvent::StreamHalfClosed { stream } => services.half_closed(wire, id(stream)),
                ServerEvent::HttpOpened { stream, head, end_stream } => {
                    let request = http::request_of_h2(conn_id, via, stream, *head);
                    services.http_opened(wire, request, end_stream);
                    self.take_json_calls();
                }
                ServerEvent::HttpData { stream, data, end_stream } => {
                    let id = http::h2_id(conn_id, stream);
                    services.http_body(wire, id, &data, end_stream);
                    self.take_json_calls();
                }
            }
            self.wire.mark_dirty(conn_id);
        }
        self.handle_http1(conn_id);
    }

    /// A large request that may not be handled now waits.
    pub(super) fn take_unary(&mut self, request: Unary) {
        if self.large.admits(&request) {
            return self.services.unary(&mut self.wire, request);
        }
        self.wire.proposal_begun(request.call.id.conn, request.message.len());
        self.large.push(request);
    }

    /// Handles the first large request that waits, if none was handled in this round.
    pub(super) fn take_large(&mut self) {
        while let Some(request) = self.large.pop() {
            let (conn, bytes) = (request.call.id.conn, request.message.len());
            if !self.wire.is_open(conn) {
                continue;
            }
            self.wire.proposal_ended(conn, bytes);
            self.large.took();
            self.services.unary(&mut self.wire, request);
        }
    }
}
