//! HTTP/1.1 requests on a front.
//!
//! A connection is answered one request a round, and only while the budgets have room for the
//! answer.

use std::time::SystemTime;

use etcore_proto::http1::ServerEvent;

use super::Front;
use super::conn::Conn;
use super::wire::conn_id;
use crate::driver::SocketId;
use crate::http::{self, Page};

/// What etcd's handlers say to browsers of any origin.
const CORS: [(&str, &str); 3] = [
    ("Access-Control-Allow-Headers", "accept, content-type, authorization"),
    ("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE"),
    ("Access-Control-Allow-Origin", "*"),
];

impl Front {
    /// Handles what an HTTP/1.1 connection has to say: one request, since the next comes after its
    /// answer has left.
    pub(super) fn handle_plain(&mut self, socket: SocketId) {
        loop {
            let Some(conn) = self.wire.conn(socket) else { return };
            conn.charge_plain();
            if conn.http1().is_none() || !conn.may_answer() {
                // Looked at again when something was sent, and at each tick.
                return;
            }
            let Some(event) = conn.http1().and_then(etcore_proto::http1::Server::next_event) else {
                return;
            };
            if let ServerEvent::Request { head, .. } = event {
                let accept = head.fields.get(b"accept").unwrap_or_default();
                let accept = String::from_utf8_lossy(accept);
                let (method, target) = (&head.method, &head.target);
                let conn = conn_id(socket);
                self.services.http_request(&mut self.wire, conn, method, target, &accept);
            }
            self.wire.mark_dirty(socket);
        }
    }
}

/// Sends a page, if the connection waits for one.
pub(super) fn respond(conn: &mut Conn, page: &Page, now: SystemTime) -> bool {
    let Some(server) = conn.http1().filter(|server| server.is_answer_due()) else { return false };
    let date = http::http_date(now);
    let mut fields: Vec<(&str, &str)> = CORS.to_vec();
    fields.push(("Date", &date));
    if !page.content_type.is_empty() {
        fields.push(("Content-Type", page.content_type));
    }
    fields.extend(page.headers.iter().map(|(name, value)| (*name, value.as_str())));
    server.respond_with(page.status, &fields, &page.body);
    conn.charge_plain();
    true
}
