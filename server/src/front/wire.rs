//! The connection half of a front: sockets attached, bytes in and out, and the way out for whoever
//! answers.
//!
//! Knows nothing of the replica or of services; a front uses it, and anything else that serves
//! connections can. Each connection sends once a turn; budgets and buffers are shared by all.

use std::sync::Arc;
use std::time::SystemTime;

use etcore_proto::error::{Code, Status};
use etcore_proto::grpc::Server;
use etcore_proto::http1::BodyLength;

use super::conn::{Conn, Settings};
use crate::clock::Clock;
use crate::driver::{AnySocket, Driver, SocketId};
use crate::http::Page;
use crate::limits;
use crate::metrics::Metrics;
use crate::replies::{CallId, ConnId, Exchange, Gone, HttpId, HttpReplies, Replies, Streams};

/// What is not read because too much waits for the replica.
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
    settings: Arc<Settings>,
    clock: Clock,
    conns: Vec<Option<Conn>>,
    open: usize,
    dirty: Vec<SocketId>,
    spare_bufs: Vec<Vec<u8>>,
    spare_bytes: usize,
    paused: Paused,
    /// The first place whose connection is still to get time after the last tick.
    untimed: usize,
    now_ms: u64,
}

impl Wire {
    pub(super) fn new(settings: Settings, clock: Clock) -> Self {
        Self {
            settings: Arc::new(settings),
            clock,
            conns: Vec::new(),
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
        self.settings = Arc::new(Settings { grpc, routes, budget });
    }

    #[cfg(test)]
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn begin_turn(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// Open connections.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// True if some connection is to be looked at, or to be given time.
    pub(super) fn has_work(&self) -> bool {
        !self.dirty.is_empty() || self.untimed < self.conns.len()
    }

    /// Nothing is on its way on any connection.
    pub(super) fn is_idle(&self) -> bool {
        self.conns.iter().flatten().all(Conn::is_idle)
    }

    /// Serves an accepted socket from now on.
    ///
    /// # Errors
    /// What the driver says of it.
    pub(super) fn attach(
        &mut self,
        driver: &mut dyn Driver,
        socket: AnySocket,
    ) -> std::io::Result<()> {
        let mut remote = None;
        if let AnySocket::Kernel(fd) = &socket {
            crate::net::set_nodelay(fd);
            crate::net::end_promptly(fd);
            remote = crate::net::peer_address(fd);
        }
        let socket = driver.attach(socket)?;
        let slot = socket.slot as usize;
        if self.conns.len() <= slot {
            self.conns.resize_with(slot + 1, || None);
        }
        self.conns[slot] = Some(Conn::new(socket, remote, self.settings.clone()));
        self.open += 1;
        if self.paused == Paused::All
            && let Some(conn) = self.conn(socket)
        {
            conn.reading = false;
            driver.pause(socket);
        }
        Ok(())
    }

    pub(super) fn conn(&mut self, socket: SocketId) -> Option<&mut Conn> {
        self.conns.get_mut(socket.slot as usize)?.as_mut().filter(|conn| conn.socket == socket)
    }

    /// True if the connection has not been closed.
    pub(super) fn is_open(&mut self, conn: ConnId) -> bool {
        self.conn_of(conn).is_some()
    }

    fn conn_of(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conn(socket_of(conn))
    }

    pub(super) fn mark_dirty(&mut self, socket: SocketId) {
        if let Some(conn) = self.conn(socket)
            && !conn.dirty
        {
            conn.dirty = true;
            self.dirty.push(socket);
        }
    }

    /// The connections to be looked at; what is marked from now on is in the next list.
    pub(super) fn take_dirty(&mut self) -> Vec<SocketId> {
        std::mem::take(&mut self.dirty)
    }

    /// Gives the list back, empty, so that its memory is used again.
    pub(super) fn keep_dirty(&mut self, mut list: Vec<SocketId>) {
        std::mem::swap(&mut list, &mut self.dirty);
        self.dirty.append(&mut list);
    }

    /// Bytes arrived. What the peer must be told of an error, such as GOAWAY, still goes out.
    pub(super) fn received(&mut self, socket: SocketId, bytes: &[u8]) {
        let now_ms = self.now_ms;
        let Some(conn) = self.conn(socket) else { return };
        if conn.failed {
            return;
        }
        if let Err(reason) = conn.receive(bytes, now_ms) {
            tracing::debug!(reason = %reason, "connection ended by an error");
            conn.failed = true;
        }
        self.mark_dirty(socket);
    }

    /// The peer has ended its side, or is gone.
    pub(super) fn disconnected(&mut self, socket: SocketId, is_lost: bool) {
        let now_ms = self.now_ms;
        let Some(conn) = self.conn(socket) else { return };
        if is_lost {
            conn.gone = true;
        } else {
            conn.peer_ended(now_ms);
        }
        self.mark_dirty(socket);
    }

    /// A send ended.
    pub(super) fn sent(&mut self, socket: SocketId, buf: Vec<u8>, is_lost: bool) {
        self.keep_buf(buf);
        let now_ms = self.now_ms;
        let Some(conn) = self.conn(socket) else { return };
        conn.end_send(now_ms);
        conn.gone |= is_lost;
        self.mark_dirty(socket);
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
        socket: SocketId,
    ) -> Flushed {
        let mut buf = self.spare_bufs.pop().unwrap_or_default();
        self.spare_bytes -= buf.capacity();
        let (paused, now_ms) = (self.paused, self.now_ms);
        let Some(conn) = self.conn(socket) else {
            self.keep_buf(buf);
            return Flushed::Unknown;
        };
        conn.dirty = false;
        let mut more = false;
        let mut sent_bytes = 0;
        if !conn.sending && !conn.gone {
            more = conn.transmit(&mut buf);
            sent_bytes = buf.len() as u64;
            if !buf.is_empty() {
                match driver.send(socket, std::mem::take(&mut buf)) {
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
        let wants_read = paused.lets_read(conn);
        let toggle = wants_read != conn.reading;
        conn.reading = wants_read;
        metrics.client_sent_bytes.inc_by(sent_bytes);
        self.keep_buf(buf);
        if over {
            driver.close(socket);
            self.conns[socket.slot as usize] = None;
            self.open -= 1;
            return Flushed::Closed;
        }
        if toggle {
            if wants_read { driver.resume(socket) } else { driver.pause(socket) }
        }
        if goes_on {
            self.mark_dirty(socket);
        }
        Flushed::Open
    }

    /// It is time for all connections again; those that still wait for the last time get this one.
    pub(super) fn begin_tick(&mut self) {
        if self.untimed >= self.conns.len() {
            self.untimed = 0;
        }
    }

    /// Gives time to some connections, and says which: to all of thousands at once would keep
    /// their calls waiting.
    pub(super) fn tick_some(&mut self, ticked: &mut Vec<SocketId>) {
        let now_ms = self.now_ms;
        let end = self.conns.len().min(self.untimed + limits::TICKS_PER_ROUND);
        for slot in std::mem::replace(&mut self.untimed, end)..end {
            let Some(conn) = &mut self.conns[slot] else { continue };
            let socket = conn.socket;
            if conn.tick(now_ms).is_err() {
                conn.failed = true;
            }
            self.mark_dirty(socket);
            ticked.push(socket);
        }
    }

    /// Reads from connections as `paused` lets it, from their next flush on.
    pub(super) fn pause(&mut self, paused: Paused) {
        if paused == self.paused {
            return;
        }
        self.paused = paused;
        let conns = self.conns.iter().flatten();
        let sockets: Vec<SocketId> = conns
            .filter(|conn| paused.lets_read(conn) != conn.reading)
            .map(|conn| conn.socket)
            .collect();
        sockets.into_iter().for_each(|socket| self.mark_dirty(socket));
    }

    /// Begins a graceful end of every connection.
    pub(super) fn drain(&mut self) {
        for slot in 0..self.conns.len() {
            let Some(conn) = &mut self.conns[slot] else { continue };
            conn.drain();
            let socket = conn.socket;
            self.mark_dirty(socket);
        }
    }

    /// The transport of a call's connection, which will have something to send.
    fn server(&mut self, call: CallId) -> Option<&mut Server> {
        let socket = socket_of(call.conn);
        self.mark_dirty(socket);
        self.conn(socket).filter(|conn| !conn.gone).and_then(Conn::grpc)
    }
}

/// A connection's name outside of the front.
pub(super) fn conn_id(socket: SocketId) -> ConnId {
    ConnId { slot: socket.slot, generation: socket.generation }
}

fn socket_of(conn: ConnId) -> SocketId {
    SocketId { slot: conn.slot, generation: conn.generation }
}

impl Streams for Wire {
    fn capacity(&mut self, call: CallId) -> Result<usize, Gone> {
        let conn = self.conn_of(call.conn).filter(|conn| !conn.gone).ok_or(Gone)?;
        Ok(conn.grpc().ok_or(Gone)?.capacity(call.stream))
    }

    fn send(
        &mut self,
        call: CallId,
        length_bytes: usize,
        write: &mut dyn FnMut(&mut Vec<u8>),
    ) -> Result<(), Gone> {
        let server = self.server(call).ok_or(Gone)?;
        let sent = server.send_message_with(call.stream, length_bytes, |out| write(out));
        sent.map(drop).map_err(|_| Gone)
    }

    fn start(&mut self, call: CallId, length_bytes: usize) -> Result<(), Gone> {
        let server = self.server(call).ok_or(Gone)?;
        server.start_message(call.stream, length_bytes).map_err(|_| Gone)
    }

    fn write(&mut self, call: CallId, piece: &[u8]) -> Result<(), Gone> {
        self.server(call).ok_or(Gone)?.write(call.stream, piece).map_err(|_| Gone)
    }

    fn hold(&mut self, call: CallId, held: bool) {
        if let Some(server) = self.server(call) {
            server.hold(call.stream, held);
        }
    }

    fn fail(&mut self, call: CallId, status: &Status) {
        let Some(server) = self.server(call) else { return };
        if server.message_is_open(call.stream) {
            server.abort(call.stream);
        } else {
            // An error means that the client is gone, which the transport has noticed.
            let _ = server.reply_error(call.stream, status.code, &status.message);
        }
    }
}

/// Errors of sending mean that the client is gone, which the transport has noticed.
impl Replies for Wire {
    fn reply(&mut self, call: CallId, message: &[u8]) {
        if let Some(server) = self.server(call) {
            let _ = server.reply_unary(call.stream, message);
        }
    }

    fn send_framed(&mut self, call: CallId, framed: &[u8]) -> Result<(), Gone> {
        let server = self.server(call).ok_or(Gone)?;
        server.send_framed(call.stream, framed).map(drop).map_err(|_| Gone)
    }

    fn finish(&mut self, call: CallId) {
        if let Some(server) = self.server(call) {
            let _ = server.finish(call.stream, Code::Ok, "");
        }
    }

    fn abort(&mut self, call: CallId) {
        if let Some(server) = self.server(call) {
            server.abort(call.stream);
        }
    }

    fn proposal_begun(&mut self, conn: ConnId, bytes: usize) {
        if let Some(conn) = self.conn_of(conn) {
            conn.proposal_bytes += bytes;
        }
    }

    fn proposal_ended(&mut self, conn: ConnId, bytes: usize) {
        if let Some(conn) = self.conn_of(conn) {
            conn.proposal_bytes = conn.proposal_bytes.saturating_sub(bytes);
        }
    }
}

impl HttpReplies for Wire {
    fn respond(&mut self, request: HttpId, page: &Page) {
        // An error means that the request is over.
        let _ = self.answer(request, |conn, now| conn.respond(request.exchange, page, None, now));
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
        self.conn_of(request.conn).ok_or(Gone)?.body_capacity(request.exchange)
    }

    fn write_body(&mut self, request: HttpId, piece: &[u8]) -> Result<(), Gone> {
        self.answer(request, |conn, _| conn.write_body(request.exchange, piece, false))
    }

    fn end_body(&mut self, request: HttpId) {
        let _ = self.answer(request, |conn, _| conn.write_body(request.exchange, b"", true));
    }

    fn consumed(&mut self, request: HttpId, bytes: usize) {
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
        let conn = self.conn_of(request.conn).filter(|conn| !conn.gone).ok_or(Gone)?;
        let socket = conn.socket;
        act(conn, now)?;
        self.mark_dirty(socket);
        Ok(())
    }
}
