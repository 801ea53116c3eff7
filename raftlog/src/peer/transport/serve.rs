//! Requests of others on the peer port: streams, posted messages, and questions that are passed on.
//!
//! Part of the transport. Answers are etcd's, to the letter.

use bytes::Bytes;
use etcore_proto::grpc::Metadata;
use etcore_proto::http1::{self, BodyLength, RequestHead, ServerEvent};

use super::Transport;
use crate::limits;
use crate::peer::codec::{self, Encoder};
use crate::peer::conn::{Conn, Incoming, Role, Server, Writer};
use crate::peer::handshake::{PIPELINE_PATH, STREAM_PREFIX, field, parse_id};
use crate::peer::queue::weight;
use crate::peer::{ConnId, Event, IncomingRequest, Refusal, StreamKind};

/// Why a stream is not granted.
enum Denied {
    Method,
    /// HTTP/1.0 has no chunks, and a stream has no other end than the connection's.
    Version,
    Refusal(Refusal),
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

impl Transport {
    /// Handles everything that a connection's requests have to say; nothing for other connections.
    pub(super) fn serve(&mut self, id: ConnId) {
        while let Some(mut conn) = self.take(id) {
            let Role::Server(server) = &mut conn.role else { return self.keep(conn) };
            let Some(event) = server.http.next_event() else {
                self.keep(conn);
                return self.mark_dirty(id);
            };
            let mut granted = None;
            match event {
                ServerEvent::Request { head, .. } => granted = self.begin_request(server, &head),
                ServerEvent::Body(piece) => add_body(server, &piece),
                ServerEvent::End => self.end_request(id, server),
                ServerEvent::Failed(_) => server.request = None,
            }
            if let Some((kind, peer)) = granted {
                let head = self.grant(&mut server.http);
                let (encoder, sent_ms) = (Encoder::new(kind), self.now_ms);
                conn.role =
                    Role::Writer(Writer { peer, kind, head, encoder, sent_ms, beat: false });
                self.keep(conn);
                return self.attach(id, peer, kind);
            }
            self.keep(conn);
        }
    }

    pub(super) fn keep(&mut self, conn: Box<Conn>) {
        let slot = conn.id.slot as usize;
        self.conns[slot].conn = Some(conn);
    }

    /// Answers a request that [`Transport::next_request`] gave; nothing happens if its connection
    /// is gone.
    pub fn answer(&mut self, id: ConnId, status: u16, fields: &[(&str, &str)], body: &[u8]) {
        let Some(mut conn) = self.take(id) else { return };
        if let Role::Server(server) = &mut conn.role
            && server.request.as_ref().is_some_and(|request| request.is_asked)
            && server.http.is_answer_due()
        {
            server.request = None;
            server.http.respond_with(status, fields, body);
        }
        self.keep(conn);
        self.serve(id);
    }

    /// A request's head has come; says which stream is granted to whom, if it asks for one.
    fn begin_request(
        &mut self,
        server: &mut Server,
        head: &RequestHead,
    ) -> Option<(StreamKind, u64)> {
        let path = head.target.split('?').next().unwrap_or_default();
        let (method, target) = (head.method.clone(), head.target.clone());
        let cluster = field(&head.fields, b"x-etcd-cluster-id").to_owned();
        let mut request = Incoming { method, target, cluster, ..Incoming::default() };
        if path.starts_with(STREAM_PREFIX) {
            match self.judge_stream(path, head) {
                Ok(granted) => return Some(granted),
                Err(denied) => self.deny(server, head, &denied),
            }
            request.is_answered = true;
        } else if path == PIPELINE_PATH {
            match self.judge_message(head) {
                Ok(()) => request.is_message = true,
                Err(denied) => {
                    self.deny(server, head, &denied);
                    request.is_answered = true;
                }
            }
        }
        server.request = Some(request);
        None
    }

    /// Whether a request for a stream is granted, in etcd's order.
    fn judge_stream(
        &mut self,
        path: &str,
        head: &RequestHead,
    ) -> Result<(StreamKind, u64), Denied> {
        if head.method != "GET" {
            return Err(Denied::Method);
        }
        let (kind, from) = self.local.check_stream(path, &head.fields)?;
        if self.removed.contains(&from) {
            return Err(Refusal::Removed.into());
        }
        if self.link(from).is_none_or(|link| link.is_remote) {
            self.add_remote(from, &head.fields);
            return Err(Refusal::Unknown.into());
        }
        self.local.check_receiver(&head.fields)?;
        if head.minor_version == 0 {
            return Err(Denied::Version);
        }
        Ok((kind, from))
    }

    fn judge_message(&mut self, head: &RequestHead) -> Result<(), Denied> {
        if head.method != "POST" {
            return Err(Denied::Method);
        }
        self.local.check(&head.fields)?;
        if let Some(from) = parse_id(field(&head.fields, b"x-server-from")) {
            self.add_remote(from, &head.fields);
        }
        Ok(())
    }

    fn deny(&mut self, server: &mut Server, head: &RequestHead, denied: &Denied) {
        let cluster = format!("{:x}", self.local.cluster_id);
        let is_stream = head.target.starts_with(STREAM_PREFIX);
        match denied {
            Denied::Method => {
                let allowed = if is_stream { "GET" } else { "POST" };
                reply(&mut server.http, 405, "Method Not Allowed", &[("Allow", allowed)]);
            }
            Denied::Version => reply(&mut server.http, 505, "HTTP Version Not Supported", &[]),
            Denied::Refusal(refusal) => {
                let mut fields = vec![("X-Etcd-Cluster-Id", cluster.as_str())];
                if is_stream {
                    fields.push(("X-Server-Version", self.local.version));
                }
                reply(&mut server.http, refusal.status(), &refusal.to_string(), &fields);
                let from = field(&head.fields, b"x-server-from").to_owned();
                self.event(Event::Refused { from, refusal: *refusal });
            }
        }
    }

    /// The head of a stream's response.
    fn grant(&self, http: &mut http1::Server) -> Vec<u8> {
        let cluster = format!("{:x}", self.local.cluster_id);
        let fields = [("X-Server-Version", self.local.version), ("X-Etcd-Cluster-Id", &cluster)];
        http.respond(200, &fields, BodyLength::Unknown);
        let mut head = Vec::new();
        http.poll_transmit(&mut head, usize::MAX);
        head
    }

    /// A sender that is no member here, perhaps because this member lags: it is answered at the
    /// addresses it gives, by single messages.
    fn add_remote(&mut self, peer: u64, fields: &Metadata) {
        let urls = field(fields, b"x-peerurls");
        let remotes = self.links.iter().filter(|link| link.is_remote).count();
        let is_known = peer == self.local.member_id || self.link(peer).is_some();
        if peer == 0 || urls.is_empty() || is_known || remotes >= limits::PEER_REMOTES {
            return;
        }
        self.insert(peer, urls.split(',').map(str::to_owned).collect(), true);
        self.event(Event::AddedRemote { peer });
    }

    /// A request is complete.
    fn end_request(&mut self, id: ConnId, server: &mut Server) {
        let Some(mut request) = server.request.take() else { return };
        if request.is_answered || !server.http.is_answer_due() {
            return;
        }
        let body = Bytes::from(std::mem::take(&mut request.body));
        if request.is_message {
            return self.take_message(server, body);
        }
        let [method, target, cluster] =
            [&request.method, &request.target, &request.cluster].map(String::clone);
        self.incoming.push_back(IncomingRequest { conn: id, method, target, cluster, body });
        request.is_asked = true;
        server.request = Some(request);
    }

    /// A message was posted.
    fn take_message(&mut self, server: &mut Server, body: Bytes) {
        let cluster = format!("{:x}", self.local.cluster_id);
        let fields = [("X-Etcd-Cluster-Id", cluster.as_str())];
        let length = body.len() as u64;
        let message = match codec::decode_message(body) {
            Ok(message) => message,
            Err(error) => {
                self.event(Event::Unreadable { error: error.to_string() });
                return reply(&mut server.http, 400, "error unmarshalling raft message", &fields);
            }
        };
        let from = message.from.unwrap_or(0);
        if self.removed.contains(&from) {
            let text = "cannot process message from removed member";
            return reply(&mut server.http, 403, text, &fields);
        }
        if message.to.unwrap_or(0) != self.local.member_id {
            let text = "cannot process message to mismatch member";
            return reply(&mut server.http, 403, text, &fields);
        }
        let now_ms = self.now_ms;
        if let Some(link) = self.link(from) {
            link.counters.received_bytes += length;
            link.seen_alive(now_ms);
        }
        self.received_bytes += weight(&message);
        self.received.push_back(message);
        server.http.respond_with(204, &fields, b"");
    }
}

/// A piece of a request's body.
fn add_body(server: &mut Server, piece: &[u8]) {
    let Some(request) = &mut server.request else { return };
    if request.is_answered {
        return;
    }
    // Messages are bounded by the connection.
    let fits = request.is_message || request.body.len() + piece.len() <= limits::PEER_BODY_BYTES;
    if fits {
        request.body.extend_from_slice(piece);
    } else {
        request.is_answered = true;
        reply(&mut server.http, 413, "request body too large", &[]);
    }
}

/// Answers with a line of text, as Go's `http.Error` does.
fn reply(http: &mut http1::Server, status: u16, text: &str, fields: &[(&str, &str)]) {
    let mut all =
        vec![("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")];
    all.extend_from_slice(fields);
    http.respond_with(status, &all, format!("{text}\n").as_bytes());
}
