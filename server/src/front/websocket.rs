//! WebSockets on connections of HTTP/1.1: each message of a client is a value of its request's
//! body, each line of the response a message (etcd wraps its gateway in `wsproxy`, which does the
//! same).
//!
//! The services see a request and its body, and write a response; nothing of frames.

use bytes::Bytes;
use etcore_proto::websocket::{Item, Reader, Writer, put_close, put_pong};

use super::Front;
use super::conn::{Conn, Protocol};
use crate::http::Page;
use crate::replies::{ConnId, Gone, HttpId};

/// The frames of a connection.
#[derive(Default)]
pub(super) struct WebSocket {
    reader: Reader,
    writer: Writer,
}

/// A protocol error (RFC 6455 §7.4.1).
const PROTOCOL_ERROR: u16 = 1002;

impl Conn {
    /// Leaves HTTP for frames.
    pub(super) fn upgrade(&mut self, accept: &str, is_bearer: bool) -> Result<(), Gone> {
        let Protocol::Http1(server) = &mut self.protocol else { return Err(Gone) };
        if !server.is_answer_due() {
            return Err(Gone);
        }
        let mut fields = vec![
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept),
        ];
        if is_bearer {
            fields.push(("Sec-WebSocket-Protocol", "Bearer"));
        }
        server.upgrade(&fields);
        self.websocket = Some(Box::default());
        Ok(())
    }

    /// Sends a piece of a response as a message, or a part of one: a line end completes it.
    pub(super) fn write_message(&mut self, piece: &[u8], ends: bool) -> Result<(), Gone> {
        let (Some(websocket), Protocol::Http1(server)) = (&mut self.websocket, &mut self.protocol)
        else {
            return Err(Gone);
        };
        if !server.is_answering() {
            return Err(Gone);
        }
        let mut frame = Vec::with_capacity(piece.len() + 10);
        match piece.strip_suffix(b"\n") {
            Some(line) => websocket.writer.text(line, true, &mut frame),
            None if piece.is_empty() => {}
            None => websocket.writer.text(piece, false, &mut frame),
        }
        server.write(&frame);
        if ends {
            // As etcd's proxy, without a farewell.
            server.finish();
        }
        self.charge();
        Ok(())
    }

    /// Sends a whole response as a message, and ends the connection.
    pub(super) fn respond_message(&mut self, page: &Page) -> Result<(), Gone> {
        let line = [&page.body[..], b"\n"].concat();
        self.write_message(if page.body.is_empty() { b"" } else { &line }, true)
    }
}

impl Front {
    /// A client has sent bytes: gives them to the request as its body.
    pub(super) fn websocket_received(&mut self, id: HttpId, bytes: &[u8]) {
        // What is answered meanwhile is written to the connection.
        let Some(websocket) = self.wire.conn(id.conn).and_then(|conn| conn.websocket.as_mut())
        else {
            return;
        };
        let mut reader = std::mem::take(&mut websocket.reader);
        let mut control = Vec::new();
        let mut ends = false;
        let (services, wire) = (&mut self.services, &mut self.wire);
        let read = reader.push(bytes, &mut |item| match item {
            _ if ends => {}
            Item::Data(piece) => {
                services.http_body(wire, id, &Bytes::copy_from_slice(piece), false);
            }
            Item::End => services.http_body(wire, id, &Bytes::from_static(b"\n"), false),
            Item::Ping(payload) => put_pong(payload, &mut control),
            Item::Close(code) => {
                put_close(code, &mut control);
                ends = true;
            }
        });
        if read.is_err() && !ends {
            put_close(Some(PROTOCOL_ERROR), &mut control);
            ends = true;
        }
        self.put_back(id.conn, reader, &control, ends);
        if ends {
            self.http_cancelled(id);
        }
    }

    fn put_back(&mut self, conn: ConnId, reader: Reader, control: &[u8], ends: bool) {
        let Some(conn) = self.wire.conn(conn) else { return };
        if let Some(websocket) = &mut conn.websocket {
            websocket.reader = reader;
        }
        let Protocol::Http1(server) = &mut conn.protocol else { return };
        if server.is_answering() {
            server.write(control);
            if ends {
                server.finish();
            }
        }
        conn.charge();
    }
}
