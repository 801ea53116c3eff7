//! The connection half of a front: sockets attached, bytes in and out, and the way out for whoever
//! answers.
//!
//! Knows nothing of the replica or of services; a front uses it, and anything else that serves
//! connections can. Each connection sends once a turn; budgets and buffers are shared by all.

use std::sync::Arc;
use std::time::Duration;

use etcore_proto::error::{Code, Status};
use etcore_proto::grpc::{OpenCall, Server};

use super::conn::{Conn, Door, Origin, Protocol, Settings};
use super::handshakes::Handshakes;
use super::inner::Inner;
use super::json::JsonCalls;
use super::note::Note;
use super::secure::{Room, Secure};
use super::transport::{Transport, loopback_conn, loopback_slot, socket_conn};
use crate::clock::Clock;
use crate::config::url::asks_for_tls;
use crate::driver::{AnySocket, Driver};
use crate::limits;
use crate::metrics::{FrontCalls, Metrics};
use crate::replies::{CallId, Caller, ConnId, Gone, Replies, Streams};
use crate::tls::Tls;

/// A socket on its way in.
pub struct Accepted {
    /// The socket.
    pub socket: AnySocket,
    /// The listener that it came to.
    pub door: Arc<Door>,
}

/// The connections that are not read because too much waits for the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paused {
    None,
    /// Connections with large proposals outstanding.
    Large,
    All,
}

impl Paused {
    fn lets_read(self, conn: &Conn) -> bool {
        let paused = match self {
            Self::None => false,
            Self::Large => conn.proposal_bytes > limits::CONNECTION_PROPOSAL_BYTES,
            Self::All => true,
        };
        conn.wants_read() && !paused && !conn.failed
    }
}

/// What became of a connection that was flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    /// There is none.
    Unknown,
    /// It goes on; room may have come for what waits to be sent.
    Open,
    /// It was closed.
    Closed,
}

/// See the module text.
///
/// Invariants: `conns[slot]` belongs to the driver's socket slot of the same number; a connection
/// is in `dirty` if it may have bytes to send or is to be looked at.
pub(super) struct Wire {
    pub(super) settings: Arc<Settings>,
    pub(super) clock: Clock,
    tls: Arc<Tls>,
    pub(super) handshakes: Handshakes,
    pub(super) room: Room,
    pub(super) conns: Vec<Option<Conn>>,
    /// Connections without a socket.
    loopbacks: Vec<Option<Conn>>,
    loopback_generation: u32,
    open: usize,
    dirty: Vec<ConnId>,
    spare_bufs: Vec<Vec<u8>>,
    spare_bytes: usize,
    paused: Paused,
    /// The first place whose connection is still to get time after the last tick.
    untimed: usize,
    pub(super) now_ms: u64,
    /// The time of this turn to the microsecond: what calls are timed by.
    now: Duration,
    pub(super) calls: Arc<FrontCalls>,
    /// Calls that came as JSON.
    pub(super) json: JsonCalls,
    /// Calls that services make of each other.
    pub(super) inner: Inner,
}

impl Wire {
    pub(super) fn new(
        settings: Settings,
        clock: Clock,
        calls: Arc<FrontCalls>,
        tls: Arc<Tls>,
    ) -> Self {
        Self {
            settings: Arc::new(settings),
            clock,
            now: Duration::ZERO,
            calls,
            json: JsonCalls::default(),
            inner: Inner::default(),
            tls,
            handshakes: Handshakes::new(),
            room: Room::default(),
            conns: Vec::new(),
            loopbacks: Vec::new(),
            loopback_generation: 0,
            open: 0,
            dirty: Vec::new(),
            spare_bufs: Vec::new(),
            spare_bytes: 0,
            paused: Paused::None,
            untimed: 0,
            now_ms: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn set_open(&mut self, open: usize) {
        self.open = open;
    }

    /// Connections from now on take requests over HTTP/2 that are not gRPC.
    #[cfg(test)]
    pub(super) fn allow_plain_http(&mut self) {
        let settings = &self.settings;
        let mut grpc = settings.grpc.clone();
        grpc.plain_http = true;
        let (routes, budget) = (settings.routes.clone(), settings.budget.clone());
        let http1_body_bytes = settings.http1_body_bytes;
        self.settings =
            Arc::new(Settings { grpc, routes, budget, http1_body_bytes, names_users: false });
    }

    #[cfg(test)]
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn begin_turn(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// Looks at the clock; calls that come and go until it is looked at again do so now.
    pub(super) fn look_at_clock(&mut self) -> Duration {
        let before = std::mem::replace(&mut self.now, self.clock.elapsed());
        self.now.saturating_sub(before)
    }

    /// When the clock was looked at.
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    /// A call came, from this caller.
    pub(super) fn began(&mut self, call: CallId) -> Arc<Caller> {
        let note = Note { began: self.now, reads_only: false };
        let Some(conn) = self.conn(call.conn) else { return Arc::default() };
        let caller = conn.origin.caller.clone();
        if let Some(server) = conn.grpc() {
            server.note(call.stream, note.number());
        }
        caller
    }

    /// A call has ended, unless it had before.
    pub(super) fn ended(&self, call: Option<OpenCall>, code: Code) {
        let Some(OpenCall { method, note }) = call else { return };
        if let Some(note) = Note::of(note) {
            let took = self.now.saturating_sub(note.began);
            self.calls.handled(method, code, took, note.reads_only);
        }
    }

    /// The transport has ended a call.
    pub(super) fn cancelled(&self, call: Option<OpenCall>, code: Code) {
        self.ended(call, code);
    }

    /// Open connections.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// True if some connection is to be looked at, or to be given time.
    pub(super) fn has_work(&self) -> bool {
        !self.dirty.is_empty() || self.untimed < self.conns.len() || self.handshakes.has_work()
    }

    /// Nothing is on its way on any connection.
    pub(super) fn is_idle(&self) -> bool {
        self.all().all(Conn::is_idle)
    }

    /// Serves an accepted socket from now on.
    ///
    /// # Errors
    /// What the driver says of it.
    pub(super) fn attach(
        &mut self,
        driver: &mut dyn Driver,
        Accepted { socket, door }: Accepted,
    ) -> std::io::Result<()> {
        let mut remote = None;
        if let AnySocket::Kernel(fd) = &socket {
            crate::net::set_nodelay(fd);
            crate::net::end_promptly(fd);
            remote = crate::net::peer_address(fd);
        }
        let secure = if asks_for_tls(&door.url) {
            let secure = Secure::accept(&self.tls.client(), self.now_ms);
            Some(secure.map_err(std::io::Error::other)?)
        } else {
            None
        };
        let is_secure = secure.is_some();
        let caller = Arc::new(Caller { remote, ..Caller::default() });
        let origin = Origin { door, caller };
        let socket = driver.attach(socket)?;
        let slot = socket.slot as usize;
        if self.conns.len() <= slot {
            self.conns.resize_with(slot + 1, || None);
        }
        let id = socket_conn(socket);
        let transport = Transport::Socket(socket);
        let mut conn = Conn::new(id, transport, origin, secure, self.settings.clone());
        if self.paused == Paused::All {
            conn.reading = false;
            conn.transport.set_reading(driver, false);
        }
        self.conns[slot] = Some(conn);
        self.open += 1;
        if is_secure {
            self.handshake_began(id);
        }
        Ok(())
    }

    /// A connection whose client is in this process: it gives its bytes to [`Wire::received`] and
    /// takes what is for it by [`Wire::take_unread`]. Served like any other.
    #[cfg_attr(not(test), expect(dead_code, reason = "Lock and Election are to come"))]
    pub(super) fn connect(&mut self, door: &Arc<Door>) -> ConnId {
        let slot = self.loopbacks.iter().position(Option::is_none).unwrap_or_else(|| {
            self.loopbacks.push(None);
            self.loopbacks.len() - 1
        });
        self.loopback_generation += 1;
        let id = loopback_conn(slot, self.loopback_generation);
        let origin = Origin { door: door.clone(), caller: Arc::default() };
        let transport = Transport::Loopback(Vec::new());
        let conn = Conn::new(id, transport, origin, None, self.settings.clone());
        self.loopbacks[slot] = Some(conn);
        id
    }

    /// Takes what a client in this process has not read yet.
    #[cfg_attr(not(test), expect(dead_code, reason = "Lock and Election are to come"))]
    pub(super) fn take_unread(&mut self, id: ConnId) -> Vec<u8> {
        let Some(conn) = self.conn(id) else { return Vec::new() };
        let unread = conn.transport.take_unread();
        self.mark_dirty(id);
        unread
    }

    pub(super) fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        let place = match loopback_slot(id) {
            None => self.conns.get_mut(id.slot as usize)?,
            Some(slot) => self.loopbacks.get_mut(slot)?,
        };
        place.as_mut().filter(|conn| conn.id == id)
    }

    /// True if the connection has not been closed.
    pub(super) fn is_open(&mut self, id: ConnId) -> bool {
        self.conn(id).is_some()
    }

    fn all(&self) -> impl Iterator<Item = &Conn> {
        self.conns.iter().chain(&self.loopbacks).flatten()
    }

    pub(super) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id)
            && !conn.dirty
        {
            conn.dirty = true;
            self.dirty.push(id);
        }
    }

    /// The connections to be looked at; what is marked from now on is in the next list.
    pub(super) fn take_dirty(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.dirty)
    }

    /// Gives the list back, empty, so that its memory is used again.
    pub(super) fn keep_dirty(&mut self, mut list: Vec<ConnId>) {
        std::mem::swap(&mut list, &mut self.dirty);
        self.dirty.append(&mut list);
    }

    /// Bytes arrived. What the peer must be told of an error, such as GOAWAY, still goes out.
    pub(super) fn received(&mut self, id: ConnId, bytes: &[u8]) {
        let now_ms = self.now_ms;
        let Some(conn) = self.conn(id) else { return };
        if conn.failed {
            return;
        }
        let outcome = if conn.secure.is_none() {
            conn.understand(bytes, now_ms)
        } else {
            self.received_secure(id, bytes)
        };
        let Some(conn) = self.conn(id) else { return };
        if let Err(reason) = outcome {
            let (url, remote) = (&conn.origin.door.url, conn.origin.caller.remote);
            tracing::debug!(reason = %reason, ?remote, %url, "connection ended by an error");
            conn.failed = true;
        }
        self.mark_dirty(id);
    }

    fn received_secure(&mut self, id: ConnId, bytes: &[u8]) -> Result<(), String> {
        if self.keep_for_handshake(id, bytes) {
            return Ok(());
        }
        let now_ms = self.now_ms;
        let mut room = std::mem::take(&mut self.room);
        let outcome = self.conn(id).map_or(Ok(()), |conn| conn.receive(bytes, &mut room, now_ms));
        self.room = room;
        outcome
    }

    /// The peer has ended its side, or is gone.
    pub(super) fn disconnected(&mut self, id: ConnId, is_lost: bool) {
        let now_ms = self.now_ms;
        if self.conn(id).is_some_and(|conn| conn.secure.is_some()) {
            let error = if is_lost { "connection reset by peer" } else { "EOF" };
            self.handshake_ended(id, Some(error), now_ms);
        }
        let Some(conn) = self.conn(id) else { return };
        if is_lost {
            conn.gone = true;
        } else {
            conn.peer_ended(now_ms);
        }
        let may_last = self.json.may_last(id);
        if let Some(conn) = self.conn(id) {
            // Nobody else ends them: as Go does, its client is taken to be gone.
            conn.gone |= may_last || conn.websocket.is_some();
        }
        self.mark_dirty(id);
    }

    /// A send ended.
    pub(super) fn sent(&mut self, id: ConnId, buf: Vec<u8>, is_lost: bool) {
        self.keep_buf(buf);
        let now_ms = self.now_ms;
        let Some(conn) = self.conn(id) else { return };
        conn.end_send(now_ms);
        conn.gone |= is_lost;
        self.mark_dirty(id);
    }

    /// Keeps an emptied buffer for the next send.
    fn keep_buf(&mut self, buf: Vec<u8>) {
        let bytes = buf.capacity();
        if bytes > 0 && self.spare_bytes + bytes <= limits::SPARE_SEND_BYTES {
            self.spare_bytes += bytes;
            self.spare_bufs.push(buf);
        }
    }

    /// Sends what is ready on a connection, within the turn's bounds, and closes it if it is over.
    pub(super) fn flush(
        &mut self,
        driver: &mut dyn Driver,
        metrics: &Metrics,
        id: ConnId,
    ) -> Flushed {
        let mut buf = self.spare_bufs.pop().unwrap_or_default();
        self.spare_bytes -= buf.capacity();
        let (paused, now_ms) = (self.paused, self.now_ms);
        let holds = self.json.holds(id);
        let mut room = std::mem::take(&mut self.room);
        let Some(conn) = self.conn(id) else {
            self.keep_buf(buf);
            self.room = room;
            return Flushed::Unknown;
        };
        conn.dirty = false;
        let mut more = false;
        let mut sent_bytes = 0;
        if !conn.sending && !conn.gone && conn.transport.is_ready() {
            more = conn.transmit(&mut buf, &mut room);
            sent_bytes = buf.len() as u64;
            if !buf.is_empty() {
                match conn.transport.send(driver, std::mem::take(&mut buf)) {
                    Some((emptied, result)) => {
                        buf = emptied;
                        conn.gone = result.is_err();
                    }
                    None => conn.begin_send(sent_bytes as usize, now_ms),
                }
            }
        }
        let goes_on = more && sent_bytes > 0 && !conn.sending;
        let over = conn.gone || (!conn.sending && !more && conn.is_over());
        let wants_read = paused.lets_read(conn) && !holds;
        if wants_read != conn.reading && !over {
            conn.transport.set_reading(driver, wants_read);
        }
        conn.reading = wants_read;
        metrics.client_sent_bytes.inc_by(sent_bytes);
        self.room = room;
        if over {
            if let Some(conn) = self.conn(id) {
                conn.transport.close(driver);
            }
            self.handshake_ended(id, None, now_ms);
            self.forget(id);
        }
        self.keep_buf(buf);
        if over {
            return Flushed::Closed;
        }
        if goes_on {
            self.mark_dirty(id);
        }
        Flushed::Open
    }

    fn forget(&mut self, id: ConnId) {
        if let Some(Protocol::Grpc(server)) = self.conn(id).map(|conn| &conn.protocol) {
            let calls: Vec<OpenCall> = server.open_calls().collect();
            calls.into_iter().for_each(|call| self.ended(Some(call), Code::Canceled));
        }
        self.json.of(id).into_iter().for_each(|call| self.json_cancelled(call));
        match loopback_slot(id) {
            None => {
                self.conns[id.slot as usize] = None;
                self.open -= 1;
            }
            Some(slot) => self.loopbacks[slot] = None,
        }
    }

    /// It is time for all connections again; those that still wait for the last time get this one.
    pub(super) fn begin_tick(&mut self) {
        if self.untimed >= self.conns.len() {
            self.untimed = 0;
        }
    }

    /// Gives time to some connections, and says which: to all of thousands at once would keep
    /// their calls waiting.
    pub(super) fn tick_some(&mut self, ticked: &mut Vec<ConnId>) {
        let now_ms = self.now_ms;
        let begin = self.untimed;
        let end = self.conns.len().min(begin + limits::TICKS_PER_ROUND);
        self.untimed = end;
        let loopbacks = if begin == 0 { self.loopbacks.len() } else { 0 };
        let some = self.conns[begin.min(end)..end].iter_mut();
        for conn in some.chain(&mut self.loopbacks[..loopbacks]).flatten() {
            if conn.tick(now_ms).is_err() {
                conn.failed = true;
            }
            ticked.push(conn.id);
        }
        for id in ticked.iter().copied() {
            self.end_late_handshake(id);
            self.mark_dirty(id);
        }
    }

    /// Reads from connections as `paused` lets it, from their next flush on.
    pub(super) fn pause(&mut self, paused: Paused) {
        if paused == self.paused {
            return;
        }
        self.paused = paused;
        let changed = self.all().filter(|conn| paused.lets_read(conn) != conn.reading);
        let changed: Vec<ConnId> = changed.map(|conn| conn.id).collect();
        changed.into_iter().for_each(|id| self.mark_dirty(id));
    }

    /// Begins a graceful end of every connection.
    pub(super) fn drain(&mut self) {
        self.conns.iter_mut().chain(&mut self.loopbacks).flatten().for_each(Conn::drain);
        let all: Vec<ConnId> = self.all().map(|conn| conn.id).collect();
        all.into_iter().for_each(|id| self.mark_dirty(id));
    }

    /// The transport of a call's connection, which will have something to send.
    pub(super) fn server(&mut self, call: CallId) -> Option<&mut Server> {
        self.mark_dirty(call.conn);
        self.conn(call.conn).filter(|conn| !conn.gone).and_then(Conn::grpc)
    }
}

impl Streams for Wire {
    fn capacity(&mut self, call: CallId) -> Result<usize, Gone> {
        if call.is_inner() {
            return Ok(self.inner.capacity());
        }
        if call.is_json() {
            return self.json_capacity(call);
        }
        let conn = self.conn(call.conn).filter(|conn| !conn.gone).ok_or(Gone)?;
        Ok(conn.grpc().ok_or(Gone)?.capacity(call.stream))
    }

    fn send(
        &mut self,
        call: CallId,
        length_bytes: usize,
        write: &mut dyn FnMut(&mut Vec<u8>),
    ) -> Result<(), Gone> {
        if call.is_json() {
            let mut message = Vec::with_capacity(length_bytes);
            write(&mut message);
            if call.is_inner() {
                self.inner.message(call, message);
                return Ok(());
            }
            return self.json_message(call, &message);
        }
        let server = self.server(call).ok_or(Gone)?;
        let open = server.open_call(call.stream);
        let sent = server.send_message_with(call.stream, length_bytes, |out| write(out));
        self.calls.sent(open, 1);
        sent.map(drop).map_err(|_| Gone)
    }

    fn start(&mut self, call: CallId, length_bytes: usize) -> Result<(), Gone> {
        if call.is_inner() {
            self.inner.start(call, length_bytes);
            return Ok(());
        }
        if call.is_json() {
            return self.json_start(call, length_bytes);
        }
        let server = self.server(call).ok_or(Gone)?;
        let open = server.open_call(call.stream);
        let started = server.start_message(call.stream, length_bytes);
        self.calls.sent(open, 1);
        started.map_err(|_| Gone)
    }

    fn write(&mut self, call: CallId, piece: &[u8]) -> Result<(), Gone> {
        if call.is_inner() {
            return self.inner.write(call, piece);
        }
        if call.is_json() {
            return self.json_write(call, piece);
        }
        self.server(call).ok_or(Gone)?.write(call.stream, piece).map_err(|_| Gone)
    }

    fn hold(&mut self, call: CallId, held: bool) {
        if call.is_json() {
            return self.json_hold(call, held);
        }
        if let Some(server) = self.server(call) {
            server.hold(call.stream, held);
        }
    }

    fn fail(&mut self, call: CallId, status: &Status) {
        if call.is_inner() {
            return self.inner.fail(call, status);
        }
        if call.is_json() {
            return self.json_fail(call, status);
        }
        let Some(server) = self.server(call) else { return };
        let open = server.open_call(call.stream);
        if server.message_is_open(call.stream) {
            server.abort(call.stream);
        } else {
            // An error means that the client is gone, which the transport has noticed.
            let _ = server.reply_error(call.stream, status.code, &status.message);
        }
        self.ended(open, status.code);
    }
}

/// Errors of sending mean that the client is gone, which the transport has noticed.
impl Replies for Wire {
    fn reply(&mut self, call: CallId, message: &[u8]) {
        if call.is_inner() {
            return self.inner.message(call, message.to_vec());
        }
        if call.is_json() {
            return self.json_reply(call, message);
        }
        let Some(server) = self.server(call) else { return };
        let open = server.open_call(call.stream);
        let _ = server.reply_unary(call.stream, message);
        self.ended(open, Code::Ok);
    }

    fn send_framed(&mut self, call: CallId, framed: &[u8], messages: u64) -> Result<(), Gone> {
        if call.is_inner() {
            self.inner.framed(call, framed);
            return Ok(());
        }
        if call.is_json() {
            return self.json_framed(call, framed);
        }
        let server = self.server(call).ok_or(Gone)?;
        let open = server.open_call(call.stream);
        let sent = server.send_framed(call.stream, framed);
        self.calls.sent(open, messages);
        sent.map(drop).map_err(|_| Gone)
    }

    fn reads_only(&mut self, call: CallId) {
        if call.is_json() {
            return self.json_reads_only(call);
        }
        let Some(server) = self.server(call) else { return };
        if let Some(note) = server.open_call(call.stream).and_then(|open| Note::of(open.note)) {
            server.note(call.stream, Note { reads_only: true, ..note }.number());
        }
    }

    fn refuse(&mut self, call: CallId, status: &Status) {
        if call.is_json() {
            self.json_uncount(call);
        } else if let Some(server) = self.server(call) {
            server.note(call.stream, 0);
        }
        self.fail(call, status);
    }

    fn finish(&mut self, call: CallId) {
        if call.is_json() {
            return self.json_finish(call);
        }
        let Some(server) = self.server(call) else { return };
        let open = server.open_call(call.stream);
        let _ = server.finish(call.stream, Code::Ok, "");
        self.ended(open, Code::Ok);
    }

    fn abort(&mut self, call: CallId) {
        if call.is_inner() {
            return self.inner.abort(call);
        }
        if call.is_json() {
            return self.json_abort(call);
        }
        let Some(server) = self.server(call) else { return };
        let open = server.open_call(call.stream);
        server.abort(call.stream);
        self.ended(open, Code::Canceled);
    }

    fn proposal_begun(&mut self, conn: ConnId, bytes: usize) {
        if let Some(conn) = self.conn(conn) {
            conn.proposal_bytes += bytes;
        }
    }

    fn proposal_ended(&mut self, conn: ConnId, bytes: usize) {
        if let Some(conn) = self.conn(conn) {
            conn.proposal_bytes = conn.proposal_bytes.saturating_sub(bytes);
        }
    }
}
