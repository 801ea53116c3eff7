//! The long-lived streams: asking for them, reading, writing, losing them.
//!
//! Part of the transport; called with the connection taken out of its table.

use etcore_proto::http1::{Client, ClientEvent};

use super::{Transport, host};
use crate::limits;
use crate::peer::codec::{DecodeError, Decoder};
use crate::peer::conn::{Purpose, Reader, ReaderState, Writer};
use crate::peer::queue::weight;
use crate::peer::{ConnId, DIAL_REFUSED, End, Event, PeerReport, Refusal, StreamKind};

/// Bytes read of a refusal's body.
const REFUSAL_BYTES: usize = 4 << 10;
/// A chunk's length, to be filled in: etcd's parser takes leading zeros.
const CHUNK_HEAD: &[u8] = b"00000000\r\n";

impl Transport {
    /// Dials every stream that is due.
    pub(super) fn dial_streams(&mut self) {
        let now_ms = self.now_ms;
        for at in 0..self.links.len() {
            for kind in StreamKind::ALL {
                let link = &mut self.links[at];
                if link.is_remote || link.leaves_ms.is_some() || !link.reader(kind).is_due(now_ms) {
                    continue;
                }
                let peer = link.id;
                if let Some(conn) = self.dial(peer, Purpose::Stream(kind)) {
                    self.links[at].reader(kind).dialled(conn);
                }
            }
        }
    }

    /// The request for a stream.
    pub(super) fn stream_request(&mut self, peer: u64, kind: StreamKind) -> Client {
        let path = kind.path(self.local.member_id);
        let host = self.link(peer).and_then(|link| Some(host(link.url()?).to_owned()));
        let mut fields = self.local.fields();
        fields.push(("X-Raft-To", format!("{peer:x}")));
        let host = host.unwrap_or_default();
        let mut borrowed = vec![("Host", host.as_str())];
        borrowed.extend(fields.iter().map(|(name, value)| (*name, value.as_str())));
        let mut client = Client::new();
        client.request("GET", &path, &borrowed, None);
        client
    }

    /// Reads from a stream, or what the peer says instead.
    pub(super) fn read_stream(&mut self, reader: &mut Reader, bytes: &[u8]) -> Result<(), String> {
        let Reader { peer, kind, client, state } = reader;
        let (peer, kind) = (*peer, *kind);
        if let ReaderState::Open(decoder) = state {
            let mut failure = None;
            let received = client.receive_body(bytes, &mut |piece| {
                if failure.is_none() {
                    failure = self.decode(peer, decoder, piece).err();
                }
            });
            received.map_err(|error| error.to_string())?;
            if let Some(error) = failure {
                return Err(error.to_string());
            }
            return if client.next_event().is_some() { Err("EOF".to_owned()) } else { Ok(()) };
        }
        client.receive(bytes).map_err(|error| error.to_string())?;
        while let Some(event) = client.next_event() {
            match (event, &mut *state) {
                (ClientEvent::Response(head), _) => {
                    if !self.local.reads_streams_of(&head.fields) {
                        return Err("unsupported stream type".to_owned());
                    }
                    if head.status == 200 {
                        let local = self.local.member_id;
                        *state = ReaderState::Open(Decoder::new(kind, local, peer));
                        self.established(peer, kind, End::Reader);
                    } else {
                        *state = ReaderState::Refused { status: head.status, body: Vec::new() };
                    }
                }
                (ClientEvent::Body(piece), ReaderState::Open(decoder)) => {
                    self.decode(peer, decoder, &piece).map_err(|error| error.to_string())?;
                }
                (ClientEvent::Body(piece), ReaderState::Refused { body, .. }) => {
                    let room = REFUSAL_BYTES - body.len();
                    body.extend_from_slice(&piece[..room.min(piece.len())]);
                }
                (ClientEvent::End, ReaderState::Open(_)) => return Err("EOF".to_owned()),
                (ClientEvent::End, ReaderState::Refused { status, body }) => {
                    return Err(self.refused(peer, *status, body));
                }
                (_, ReaderState::Asked) => {}
            }
        }
        Ok(())
    }

    fn decode(
        &mut self,
        peer: u64,
        decoder: &mut Decoder,
        piece: &[u8],
    ) -> Result<(), DecodeError> {
        if let Some(link) = self.link(peer) {
            link.counters.received_bytes += piece.len() as u64;
        }
        // Who was removed is still told things, and has nothing to say.
        let leaves = self.link(peer).is_some_and(|link| link.leaves_ms.is_some());
        let (received, received_bytes) = (&mut self.received, &mut self.received_bytes);
        let outcome = decoder.receive(piece, &mut |message| {
            if leaves {
                return;
            }
            *received_bytes += weight(&message);
            received.push_back(message);
        });
        if outcome.is_err()
            && let Some(link) = self.link(peer)
        {
            link.counters.received_failures += 1;
        }
        outcome
    }

    /// The peer closed a stream, or its answer ends there.
    pub(super) fn stream_ended(&mut self, reader: &mut Reader) -> String {
        match &reader.state {
            ReaderState::Refused { status, body } => self.refused(reader.peer, *status, body),
            ReaderState::Open(decoder) if decoder.held_bytes() == 0 => "EOF".to_owned(),
            _ => "unexpected EOF".to_owned(),
        }
    }

    /// What a refusal means, in words.
    fn refused(&mut self, peer: u64, status: u16, body: &[u8]) -> String {
        let Some(refusal) = Refusal::from_answer(status, body) else {
            return format!("unhandled http status {status}");
        };
        self.event(Event::RefusedByPeer { peer, refusal });
        match refusal {
            Refusal::Removed => {
                if !self.reports.contains(&PeerReport::Removed) {
                    self.reports.push(PeerReport::Removed);
                }
                "the member has been permanently removed from the cluster".to_owned()
            }
            Refusal::Unknown => {
                format!("peer {peer:x} failed to find local node {:x}", self.local.member_id)
            }
            other => other.to_string(),
        }
    }

    fn established(&mut self, peer: u64, kind: StreamKind, end: End) {
        let now_ms = self.now_ms;
        if end == End::Reader
            && let Some(link) = self.link(peer)
        {
            link.reader(kind).established(now_ms);
        }
        self.activate(peer);
        self.event(Event::Established { peer, kind, end });
    }

    /// A stream could not be had.
    pub(super) fn stream_failed(&mut self, peer: u64, kind: StreamKind, reason: &str) {
        let now_ms = self.now_ms;
        let Some(link) = self.link(peer) else { return };
        link.next_url();
        link.reader(kind).lost(now_ms);
        if reason == DIAL_REFUSED {
            self.reports.push(PeerReport::Refused(peer));
        }
        self.deactivate(peer, format!("failed to dial {peer:x} on {} ({reason})", kind.name()));
    }

    pub(super) fn reader_ended(&mut self, reader: &Reader, reason: &str) {
        let (peer, kind, now_ms) = (reader.peer, reader.kind, self.now_ms);
        if !matches!(reader.state, ReaderState::Open(_)) {
            return self.stream_failed(peer, kind, reason);
        }
        if let Some(link) = self.link(peer) {
            link.reader(kind).lost(now_ms);
        }
        self.event(Event::Lost { peer, kind, end: End::Reader, error: reason.to_owned() });
        // A peer that ended its side in good order is known to be gone when it cannot be dialled.
        if reason != "EOF" {
            self.deactivate(peer, format!("failed to read {peer:x} on {} ({reason})", kind.name()));
        }
    }

    /// Gives a stream that a peer asked for its work.
    pub(super) fn attach(&mut self, id: ConnId, peer: u64, kind: StreamKind) {
        let Some(link) = self.link(peer) else { return };
        let before = link.writer(kind).conn.replace(id);
        if let Some(before) = before {
            // Its peer has given it up. What waits goes over the new one; what was under way may
            // be lost.
            self.event(Event::Replaced { peer, kind });
            self.report_unreachable(peer);
            if kind == StreamKind::Message {
                self.report_lost_snapshot(peer);
            }
            self.end(before, "replaced");
        }
        self.established(peer, kind, End::Writer);
        self.mark_dirty(id);
    }

    /// Encodes what waits for a stream, as one chunk of its endless response.
    pub(super) fn write_stream(&mut self, writer: &mut Writer, out: &mut Vec<u8>) {
        let now_ms = self.now_ms;
        out.append(&mut writer.head);
        let head = out.len();
        out.extend_from_slice(CHUNK_HEAD);
        let start = out.len();
        let Some(link) = self.link(writer.peer) else { return out.truncate(head) };
        let queue = &mut link.writer(writer.kind).queue;
        while out.len() - start < limits::PEER_SEND_BYTES
            && let Some(message) = queue.pop()
        {
            writer.encoder.encode(&message, out);
        }
        if out.len() == start && writer.beat {
            writer.encoder.encode_heartbeat(out);
        }
        let length = out.len() - start;
        if length == 0 {
            return out.truncate(head);
        }
        out[head..head + 8].copy_from_slice(format!("{length:08x}").as_bytes());
        out.extend_from_slice(b"\r\n");
        link.counters.sent_bytes += length as u64;
        writer.beat = false;
        writer.sent_ms = now_ms;
    }

    pub(super) fn writer_ended(&mut self, id: ConnId, writer: &Writer, reason: &str) {
        let (peer, kind) = (writer.peer, writer.kind);
        let Some(link) = self.link(peer) else { return };
        let end = link.writer(kind);
        if end.conn != Some(id) {
            // A newer one has taken its place.
            return;
        }
        end.conn = None;
        end.queue.clear();
        link.counters.sent_failures += 1;
        self.report_unreachable(peer);
        if kind == StreamKind::Message {
            self.report_lost_snapshot(peer);
        }
        let error = reason.to_owned();
        self.event(Event::Lost { peer, kind, end: End::Writer, error });
        if reason != "EOF" {
            let error = format!("failed to write {peer:x} on {} ({reason})", kind.name());
            self.deactivate(peer, error);
        }
    }
}
