//! Long answers: ranges whose response is too large to be encoded at once.
//!
//! The revision is pinned, the length is summed up first (a gRPC message needs its length before
//! its first byte), then keys and values are written in pieces as the peer's window opens. Between
//! pieces nothing is held but the pin and a key, so an answer of any size costs a piece of memory,
//! however slow its reader. RangeStream goes the same way, one message a piece.

use std::sync::Arc;

use etcore_engine::pins::RevisionPin;
use etcore_engine::types::Revision;
use etcore_engine::view::{Hit, RangeHits, View};
use etcore_proto::error::{Code, EtcdError, Status};
use etcore_proto::grpc::Server;
use etcore_proto::pb::etcdserverpb as pb;

use super::Front;
use super::calls::{Call, Refusal};
use super::conn::Conn;
use super::tasks::{Kind, Task, To};
use crate::api::reader::Stop;
use crate::api::{check, range};
use crate::limits;
use crate::wire::{Header, field_len, write_len};

/// etcd's first chunk of a RangeStream.
const FIRST_CHUNK_KEYS: usize = 10;
/// What a gRPC message may be at most (etcd: math.MaxInt32).
const MESSAGE_BYTES_MAX: u64 = i32::MAX as u64;

/// A long answer under way.
pub(super) struct Listing {
    pin: RevisionPin,
    header: Header,
    start: Vec<u8>,
    end: Vec<u8>,
    /// The first key not written yet, or not whole.
    next: Vec<u8>,
    /// What was written of its element; behind the last key, of the tail.
    part_bytes: usize,
    /// Keys still to be written.
    left: usize,
    /// Keys in all.
    keys: usize,
    keys_only: bool,
    more: bool,
    count: u64,
    phase: Phase,
}

enum Phase {
    /// Summing up the length.
    Measure { bytes: u64 },
    /// Writing the one message.
    Write,
    /// Sending messages of about so many keys.
    Stream { chunk_keys: usize },
}

/// Why a step ended.
enum Next {
    /// Everything is written.
    Finished,
    /// There is more to do, and room for it.
    Again,
    /// The peer's window is full.
    Window,
    /// A page is on its way.
    Page(Stop),
    /// The call is gone.
    Gone,
}

impl Listing {
    /// True if the answer exceeds one chunk.
    pub(super) fn is_long(view: &View, request: &pb::RangeRequest, hits: &mut RangeHits) -> bool {
        let limit = match range::limit_of(request) {
            0 => limits::RANGE_CHUNK_KEYS,
            limit => limit.min(limits::RANGE_CHUNK_KEYS),
        };
        let at = Revision(request.revision.max(0));
        match view.range_into(&request.key, &request.range_end, at, limit, hits) {
            // The whole answer is among the hits unless the chunk, not the request, cut them.
            Ok(()) => {
                let cut = hits.more()
                    && limit == limits::RANGE_CHUNK_KEYS
                    && range::limit_of(request) != limit;
                let bytes = if request.keys_only { 0 } else { hits.len_bytes() };
                cut || bytes > limits::RANGE_CHUNK_BYTES as u64
            }
            // The error comes from the evaluation.
            Err(_) => false,
        }
    }

    fn keys_wanted(&self, most: usize) -> usize {
        self.left.min(most)
    }

    fn advance_past(&mut self, key: &[u8]) {
        self.next.clear();
        self.next.extend_from_slice(key);
        self.next.push(0);
        self.part_bytes = 0;
        self.left -= 1;
    }

    fn element_bytes(&self, hits: &RangeHits, hit: &Hit) -> usize {
        let len_bytes =
            if self.keys_only { range::key_only_len(hits, hit) } else { hit.len_bytes as usize };
        range::element_len(len_bytes)
    }

    /// Adds up one slice of keys; the total once all are in.
    fn measure(&mut self, view: &View) -> Result<Option<u64>, Stop> {
        let limit = self.keys_wanted(limits::RANGE_CHUNK_KEYS);
        let hits = view.range_pinned(&self.next, &self.end, &self.pin, limit)?;
        let sum: usize = hits.hits().iter().map(|hit| self.element_bytes(&hits, hit)).sum();
        let Phase::Measure { bytes } = &mut self.phase else { return Ok(None) };
        *bytes += sum as u64;
        let total = *bytes;
        self.left -= hits.hits().len();
        if let Some(last) = hits.hits().last() {
            self.next.clear();
            self.next.extend_from_slice(hits.key(last));
            self.next.push(0);
        }
        if self.left > 0 && !hits.hits().is_empty() {
            return Ok(None);
        }
        self.left = self.keys;
        self.next = self.start.clone();
        let tail = range::tail_len(self.more, self.count);
        Ok(Some(self.header.encoded_len() as u64 + total + tail as u64))
    }
}

impl Front {
    /// Pins the revision that an answer is made of. The pin came in time if a view loaded
    /// afterwards has not been compacted past it.
    fn pin(&mut self, request: &pb::RangeRequest) -> Result<(RevisionPin, Arc<View>), Refusal> {
        let view = self.view.store.clone();
        let revision =
            if request.revision > 0 { Revision(request.revision) } else { view.revision };
        let pin = self.pins.pin(revision).map_err(|_| EtcdError::TooManyRequests)?;
        let newest = self.shared.view.load_full();
        if revision < newest.store.compact_revision {
            return Err(EtcdError::Compacted.into());
        }
        Ok((pin, view))
    }

    fn listing(&mut self, request: &pb::RangeRequest, phase: Phase) -> Result<Listing, Refusal> {
        let at = Revision(request.revision.max(0));
        let current = self.view.store.revision;
        let (pin, view) = self.pin(request)?;
        let count = view.count(&request.key, &request.range_end, at).map_err(|error| {
            match Stop::from(error) {
                Stop::Refused(status) => Refusal::Status(status),
                Stop::NeedsPage(_) | Stop::Broken(_) => EtcdError::Corrupt.into(),
            }
        })?;
        let all = usize::try_from(count).unwrap_or(usize::MAX);
        let limit = range::limit_of(request);
        let keys = if limit == 0 { all } else { all.min(limit) };
        Ok(Listing {
            pin,
            header: self.shared.header(current.0),
            start: request.key.to_vec(),
            end: request.range_end.to_vec(),
            next: request.key.to_vec(),
            part_bytes: 0,
            left: keys,
            keys,
            keys_only: request.keys_only,
            more: keys < all,
            count,
            phase,
        })
    }

    /// Begins a long unary answer.
    pub(super) fn start_listing(
        &mut self,
        call: Call,
        request: &pb::RangeRequest,
    ) -> Result<(), Refusal> {
        let listing = self.listing(request, Phase::Measure { bytes: 0 })?;
        self.continue_listing(call, Box::new(listing));
        Ok(())
    }

    /// Begins a RangeStream.
    pub(super) fn start_stream(
        &mut self,
        call: Call,
        request: Box<pb::RangeRequest>,
        resume: Option<(u64, bool)>,
    ) -> Result<(), Refusal> {
        if self.sorts_chunk(&request) {
            return self.answer_sorted_chunk(call, request, resume);
        }
        let request = &*request;
        // A negative limit is none, and then etcd does not cut either.
        let chunk_keys = if request.limit < 0 { usize::MAX } else { FIRST_CHUNK_KEYS };
        let listing = self.listing(request, Phase::Stream { chunk_keys })?;
        if request.count_only {
            let mut response = Vec::new();
            listing.header.write(&mut response);
            range::write_tail(false, listing.count, &mut response);
            let message = in_stream_response(&response);
            self.reply_message(call.socket, To::Call(call.stream), &message);
            return Ok(());
        }
        self.continue_listing(call, Box::new(listing));
        Ok(())
    }

    /// True for a RangeStream that names something else than the key to sort by, but no order, and
    /// fits into one chunk: etcd sorts chunks, as it does Range answers. It loses its way when
    /// there are more (the next chunk starts behind the last key sent); those go in key order here.
    fn sorts_chunk(&mut self, request: &pb::RangeRequest) -> bool {
        if request.count_only || !check::sorts_after_limit(request) {
            return false;
        }
        if request.limit < 0 {
            // No limit and one chunk, for etcd.
            return true;
        }
        let at = Revision(request.revision.max(0));
        match self.view.store.count(&request.key, &request.range_end, at) {
            Ok(count) => {
                let wanted = match range::limit_of(request) {
                    0 => u64::MAX,
                    limit => limit as u64,
                };
                count.min(wanted) <= FIRST_CHUNK_KEYS as u64
            }
            Err(_) => false,
        }
    }

    /// One step; what is left waits for the next turn, a page, or the window.
    pub(super) fn continue_listing(&mut self, call: Call, mut listing: Box<Listing>) {
        let view = self.view.store.clone();
        self.listed_bytes += limits::LIST_STEP_COST;
        let next = match self.listing_step(call, &mut listing, &view) {
            Ok(next) => next,
            Err(stop) => Next::Page(stop),
        };
        self.mark_dirty(call.socket);
        let (run, page) = match next {
            Next::Finished | Next::Gone => return,
            Next::Again => (true, None),
            Next::Window => (false, None),
            Next::Page(Stop::NeedsPage(ticket)) => (false, Some(ticket)),
            Next::Page(Stop::Refused(status)) => {
                return self.break_off(call, &status);
            }
            Next::Page(Stop::Broken(error)) => {
                tracing::error!(error = %error, "a long read met damaged data");
                return self.break_off(call, &EtcdError::Corrupt.into());
            }
        };
        let task = Task {
            socket: call.socket,
            to: To::Call(call.stream),
            kind: Kind::Listing(listing),
            // A slow reader may take its time; the connection's keepalive finds a dead one.
            deadline_ms: u64::MAX,
            client_deadline: false,
            bytes: 0,
        };
        match self.tasks.insert(task) {
            Ok(slot) if run => self.tasks.run_soon(slot),
            Ok(slot) => {
                if page.is_some() {
                    self.tasks.wait_for_page(slot);
                    self.pages.fetch_wanted();
                }
            }
            Err(_) => self.break_off(call, &EtcdError::TooManyRequests.into()),
        }
    }

    /// An error midway: a status if nothing of the message was sent, else the stream is reset.
    fn break_off(&mut self, call: Call, status: &Status) {
        let Some(server) = self.conn(call.socket).and_then(Conn::grpc) else { return };
        if server.message_is_open(call.stream) {
            server.abort(call.stream);
        } else {
            let _ = server.reply_error(call.stream, status.code, &status.message);
        }
        self.mark_dirty(call.socket);
    }

    fn listing_step(
        &mut self,
        call: Call,
        listing: &mut Listing,
        view: &View,
    ) -> Result<Next, Stop> {
        match listing.phase {
            Phase::Measure { .. } => {
                let keys = listing.keys_wanted(limits::RANGE_CHUNK_KEYS);
                self.listed_bytes += keys * limits::LIST_KEY_COST;
                let Some(total) = listing.measure(view)? else { return Ok(Next::Again) };
                if total > MESSAGE_BYTES_MAX {
                    let text = format!(
                        "grpc: trying to send message larger than max ({total} vs. \
                         {MESSAGE_BYTES_MAX})"
                    );
                    return Err(Stop::Refused(Status::new(Code::ResourceExhausted, text)));
                }
                let Some(server) = self.conn(call.socket).and_then(Conn::grpc) else {
                    return Ok(Next::Gone);
                };
                let mut head = Vec::new();
                listing.header.write(&mut head);
                let length = usize::try_from(total).unwrap_or(usize::MAX);
                if server.start_message(call.stream, length).is_err()
                    || server.write(call.stream, &head).is_err()
                {
                    return Ok(Next::Gone);
                }
                listing.phase = Phase::Write;
                Ok(Next::Again)
            }
            Phase::Write => self.write_piece(call, listing, view),
            Phase::Stream { chunk_keys } => self.send_chunk(call, listing, view, chunk_keys),
        }
    }

    /// Appends up to `keys_max` keys, about `bytes_max` bytes of them; stops early at a page that
    /// is not here. Returns why, if nothing at all could be written.
    fn encode_piece(
        &mut self,
        listing: &mut Listing,
        view: &View,
        keys_max: usize,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        let limit = listing.keys_wanted(keys_max);
        let hits = view.range_pinned(&listing.next, &listing.end, &listing.pin, limit)?;
        for hit in hits.hits() {
            if out.len() >= bytes_max {
                break;
            }
            match self.write_element((view, &hits, hit), listing.keys_only, None, out) {
                Ok(()) => {}
                Err(_) if !out.is_empty() => break,
                Err(stop) => return Err(stop),
            }
            listing.advance_past(hits.key(hit));
        }
        Ok(())
    }

    /// Sends what may be sent at once, and no more: what waits for the peer would be charged to the
    /// connection's budget, and a value of megabytes would keep all others waiting.
    fn write_piece(
        &mut self,
        call: Call,
        listing: &mut Listing,
        view: &View,
    ) -> Result<Next, Stop> {
        let Some(server) = self.conn(call.socket).and_then(Conn::grpc) else {
            return Ok(Next::Gone);
        };
        let room = server.capacity(call.stream).min(limits::RANGE_CHUNK_BYTES);
        if room == 0 {
            return Ok(Next::Window);
        }
        let mut piece = std::mem::take(&mut self.answer);
        piece.clear();
        let next = self.fill_piece(listing, view, room, &mut piece).map(|finished| {
            self.listed_bytes += piece.len();
            self.send_piece(call, &piece, finished)
        });
        self.answer = piece;
        next
    }

    fn send_piece(&mut self, call: Call, piece: &[u8], finished: bool) -> Next {
        let Some(server) = self.conn(call.socket).and_then(Conn::grpc) else {
            return Next::Gone;
        };
        if server.write(call.stream, piece).is_err() {
            return Next::Gone;
        }
        if finished {
            let _ = server.finish(call.stream, Code::Ok, "");
            return Next::Finished;
        }
        Next::Again
    }

    /// Fills `out` up to `room` bytes; stops early at a page that is not here. True if the end is
    /// among them.
    fn fill_piece(
        &mut self,
        listing: &mut Listing,
        view: &View,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, Stop> {
        let limit = listing.keys_wanted(limits::RANGE_PIECE_KEYS);
        if limit > 0 {
            let hits = view.range_pinned(&listing.next, &listing.end, &listing.pin, limit)?;
            for hit in hits.hits() {
                let whole = listing.element_bytes(&hits, hit);
                let from = listing.part_bytes;
                let to = whole.min(from + room - out.len());
                let part = (from > 0 || to < whole).then_some((from, to));
                match self.write_element((view, &hits, hit), listing.keys_only, part, out) {
                    Ok(()) => {}
                    Err(_) if !out.is_empty() => return Ok(false),
                    Err(stop) => return Err(stop),
                }
                if to < whole {
                    listing.part_bytes = to;
                    return Ok(false);
                }
                listing.advance_past(hits.key(hit));
                if out.len() == room {
                    break;
                }
            }
        }
        if listing.left > 0 {
            return Ok(false);
        }
        let mut tail = Vec::new();
        range::write_tail(listing.more, listing.count, &mut tail);
        let from = listing.part_bytes;
        let to = tail.len().min(from + room - out.len());
        out.extend_from_slice(&tail[from..to]);
        listing.part_bytes = to;
        Ok(to == tail.len())
    }

    /// Appends an element, or the bytes of it from one place to another.
    fn write_element(
        &mut self,
        (view, hits, hit): (&View, &RangeHits, &Hit),
        keys_only: bool,
        part: Option<(usize, usize)>,
        out: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        match (keys_only, part) {
            (true, None) => range::write_key_only(hits, hit, out),
            (true, Some((from, to))) => {
                let mut whole = Vec::new();
                range::write_key_only(hits, hit, &mut whole);
                out.extend_from_slice(&whole[from..to]);
            }
            (false, None) => range::write_value(view, hit, self.pages.source(), out)?,
            (false, Some(part)) => {
                range::write_value_part(view, hit, self.pages.source(), part, out)?;
            }
        }
        Ok(())
    }

    fn send_chunk(
        &mut self,
        call: Call,
        listing: &mut Listing,
        view: &View,
        chunk_keys: usize,
    ) -> Result<Next, Stop> {
        let Some(server) = self.conn(call.socket).and_then(Conn::grpc) else {
            return Ok(Next::Gone);
        };
        if server.capacity(call.stream) == 0 {
            return Ok(Next::Window);
        }
        let target = self.shared.config.max_request_bytes;
        let mut kvs = Vec::new();
        self.encode_piece(listing, view, chunk_keys, target * 2, &mut kvs)?;
        self.listed_bytes += kvs.len();
        let finished = listing.left == 0;
        let mut response = Vec::with_capacity(kvs.len() + 64);
        if finished {
            listing.header.write(&mut response);
        }
        response.extend_from_slice(&kvs);
        if finished {
            range::write_tail(listing.more, listing.count, &mut response);
        }
        // Too small wastes round trips, too large wastes memory (etcd `adjustChunkLimit`).
        let chunk_keys = match response.len() {
            size if size < target / 2 => chunk_keys.saturating_mul(2),
            size if size > target * 2 => (chunk_keys / 2).max(1),
            _ => chunk_keys,
        };
        listing.phase = Phase::Stream { chunk_keys };
        let message = in_stream_response(&response);
        let Some(server) = self.conn(call.socket).and_then(Conn::grpc) else {
            return Ok(Next::Gone);
        };
        if !send(server, call, &message, finished) {
            return Ok(Next::Gone);
        }
        Ok(if finished { Next::Finished } else { Next::Again })
    }
}

fn send(server: &mut Server, call: Call, message: &[u8], last: bool) -> bool {
    if server.send_message(call.stream, message).is_err() {
        return false;
    }
    if last {
        let _ = server.finish(call.stream, Code::Ok, "");
    }
    true
}

/// `RangeStreamResponse {range_response: response}`.
pub(super) fn in_stream_response(response: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(field_len(1, response.len()));
    write_len(&mut message, 1, response.len());
    message.extend_from_slice(response);
    message
}
