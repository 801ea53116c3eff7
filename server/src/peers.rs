//! The links to the other members: sockets for `raftlog::peer`, which decides everything else.
//!
//! Lives on the replica's shard beside the replica. The driver's completions come in through
//! [`Peers::received`] and its siblings; [`Peers::turn`] lets time pass, [`Peers::flush`] hands the
//! turn's bytes to the driver, one send per connection. The peer URLs are listened on here, and
//! what is asked there that is not raft's is answered here or passed to the replica. It never
//! blocks: names are resolved by the pool.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use etcore_proto::raftpb::Message;
use etcore_raftlog::peer::{ConnId, Effect, Local, Settings, Transport};

pub use etcore_raftlog::peer::{
    IncomingRequest, Lane, PeerReport, PeerRequest, PeerResponse, RequestError,
};

use crate::channel::Shared;
use crate::cluster::member::Member;
use crate::cluster::version;
use crate::config::ListenUrl;
use crate::config::url::asks_for_tls;
use crate::disk::pool::Pool;
use crate::driver::{AnyListener, AnySocket, Driver, SocketId, Waker};
use crate::http;
use crate::limits;

mod prober;
mod report;
mod resolve;
mod secure;

use prober::Prober;
use report::Reporter;
use resolve::{Resolved, Resolver};
use secure::{Handshakes, Secure};

/// The numbers of the peer URLs' listeners start here; a front's start at 0.
const LISTENERS: u32 = 1 << 16;
/// Asked whether this member is there.
const PROBING_PATH: &str = "/raft/probing";
/// Questions that only the replica can answer.
const REPLICA_PATHS: [&str; 5] = [
    "/leases",
    "/leases/internal",
    crate::cluster::hashkv::PATH,
    crate::replica::LEASE_BATCH_PATH,
    crate::replica::PART_PATH,
];

/// What links are made of.
pub struct Parts {
    /// What all shards see.
    pub shared: Arc<Shared>,
    /// The peer URLs' sockets.
    pub listeners: Vec<AnyListener>,
    /// Resolves names; without it, only addresses are connected to.
    pub pool: Option<Pool>,
    /// Wakes this shard.
    pub waker: Waker,
}

/// See the module text.
///
/// Invariant: `owned[slot]` belongs to the driver's socket slot of the same number, `conns[slot]`
/// to the transport's connection slot of the same number, and they name each other.
pub struct Peers {
    shared: Arc<Shared>,
    transport: Transport,
    listeners: Vec<AnyListener>,
    is_listening: bool,
    /// Accepted and not served yet.
    accepted: VecDeque<(AnySocket, IsTls)>,
    owned: Vec<Option<(SocketId, ConnId)>>,
    conns: Vec<Option<Conn>>,
    members: Arc<Vec<Member>>,
    resolver: Resolver,
    handshakes: Handshakes,
    prober: Prober,
    reporter: Reporter,
    /// For the replica.
    incoming: VecDeque<IncomingRequest>,
    /// Nothing is read: too much waits for the replica.
    is_choked: bool,
    spare_bufs: Vec<Vec<u8>>,
    now_ms: u64,
}

/// Whether a listener's URL asks for TLS.
type IsTls = bool;

/// A connection as the shell sees it.
struct Conn {
    id: ConnId,
    /// `None` until its name is resolved.
    socket: Option<SocketId>,
    /// Where it was dialled.
    url: Option<String>,
    /// TLS between its socket and the transport.
    secure: Option<Box<Secure>>,
    is_reading: bool,
    is_sending: bool,
}

impl Conn {
    /// One that has no socket yet.
    fn new(id: ConnId, url: Option<String>) -> Self {
        Self { id, socket: None, url, secure: None, is_reading: true, is_sending: false }
    }
}

/// Send buffers kept for reuse.
const SPARE_BUFS: usize = 16;
/// A send buffer that grew larger than this is given back.
const SPARE_BUF_BYTES: usize = 1 << 20;

impl Peers {
    /// No connections yet; the peer URLs are listened on from the first flush on.
    pub fn new(parts: Parts) -> Self {
        let Parts { shared, listeners, pool, waker } = parts;
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let config = &shared.config;
        let local = Local {
            member_id: shared.member_id,
            cluster_id: shared.cluster_id,
            peer_urls: shared.config.advertise_peer_urls.clone(),
            version: version::ETCD,
            min_cluster_version: version::CLUSTER_MIN,
        };
        let mut settings = Settings::new(local, limits::PEER_DIAL_MS + ms(config.election));
        settings.read_timeout_ms = ms(config.raft_read_timeout);
        settings.write_timeout_ms = ms(config.raft_write_timeout);
        Self {
            transport: Transport::new(settings),
            listeners,
            is_listening: false,
            accepted: VecDeque::new(),
            owned: Vec::new(),
            conns: Vec::new(),
            members: Arc::default(),
            resolver: Resolver::new(pool.clone(), waker.clone()),
            handshakes: Handshakes::new(pool, waker),
            prober: Prober::default(),
            reporter: Reporter::default(),
            incoming: VecDeque::new(),
            is_choked: false,
            spare_bufs: Vec::new(),
            now_ms: 0,
            shared,
        }
    }

    /// Sends messages, each to the member it names.
    pub fn send(&mut self, messages: &mut Vec<Message>) {
        self.transport.send(messages);
    }

    /// Asks a peer something; the answer comes as a report.
    pub fn request(&mut self, request: PeerRequest) {
        self.transport.request(request);
    }

    /// The oldest message received and not taken. What is not taken is not read on for.
    pub fn next_received(&mut self) -> Option<Message> {
        self.transport.next_received()
    }

    /// The oldest question of a peer that only the replica can answer.
    pub fn next_request(&mut self) -> Option<IncomingRequest> {
        self.incoming.pop_front()
    }

    /// Answers a question of [`Peers::next_request`].
    pub fn answer(&mut self, conn: ConnId, status: u16, content_type: &str, body: &[u8]) {
        self.transport.answer(conn, status, &[("Content-Type", content_type)], body);
    }

    /// Moves what the replica must know to `out`.
    pub fn take_reports(&mut self, out: &mut Vec<PeerReport>) {
        self.transport.take_reports(out);
    }

    /// True if the socket belongs here.
    pub fn owns(&self, socket: SocketId) -> bool {
        let place = self.owned.get(socket.slot as usize);
        place.is_some_and(|place| place.is_some_and(|(owned, _)| owned == socket))
    }

    /// True if the listener belongs here.
    pub fn owns_listener(&self, listener: u32) -> bool {
        listener >= LISTENERS
    }

    /// True if something waits that a turn or a flush would take; received messages count only if
    /// the replica takes them.
    pub fn has_input(&self, wants_messages: bool) -> bool {
        (wants_messages && self.transport.has_received())
            || !self.accepted.is_empty()
            || !self.incoming.is_empty()
            || self.resolver.has_answers()
            || self.handshakes.has_work()
            || self.transport.has_input()
    }

    /// When the next turn is due at the latest.
    pub fn deadline_ms(&self) -> u64 {
        self.transport.deadline_ms()
    }

    /// A connection was accepted.
    pub fn accepted(&mut self, listener: u32, socket: AnySocket) {
        let urls = &self.shared.config.listen_peer_urls;
        let place = listener.checked_sub(LISTENERS).map(|place| place as usize);
        let is_tls = place.and_then(|place| urls.get(place)).is_some_and(ListenUrl::is_tls);
        if self.accepted.len() < limits::PEER_ACCEPTED {
            self.accepted.push_back((socket, is_tls));
        }
    }

    /// A connection that was dialled is there, or will not be.
    pub fn connected(&mut self, socket: SocketId, result: io::Result<()>) {
        let Some(id) = self.conn_of(socket) else { return };
        if result.is_err() {
            self.note_failure(id);
        } else if let Some(url) = self.conn(id).and_then(|conn| conn.url.clone())
            && asks_for_tls(&url)
        {
            // The transport is told once the other side is known.
            match Secure::dial(&self.shared.tls.peer(), &url, self.now_ms) {
                Ok(secure) => {
                    if let Some(conn) = self.conn(id) {
                        conn.secure = Some(Box::new(secure));
                    }
                    return self.list(id);
                }
                Err(error) => return self.transport.connected(id, Err(error)),
            }
        }
        self.transport.connected(id, result.map_err(|error| text(&error)));
    }

    /// Bytes arrived.
    pub fn received(&mut self, socket: SocketId, bytes: &[u8]) {
        let Some(id) = self.conn_of(socket) else { return };
        if self.conn(id).is_some_and(|conn| conn.secure.is_some()) {
            self.secure_received(id, bytes);
        } else {
            self.transport.received(id, bytes);
        }
    }

    /// The other side has ended, or the connection failed.
    pub fn disconnected(&mut self, socket: SocketId, error: Option<io::Error>) {
        let Some(id) = self.conn_of(socket) else { return };
        let error = error.as_ref().map(text);
        if !self.handshake_cut(id, error.as_deref()) {
            self.transport.closed(id, error);
        }
    }

    /// A send ended.
    pub fn sent(&mut self, socket: SocketId, buf: Vec<u8>, result: io::Result<()>) {
        if buf.capacity() <= SPARE_BUF_BYTES && self.spare_bufs.len() < SPARE_BUFS {
            self.spare_bufs.push(buf);
        }
        let Some(id) = self.conn_of(socket) else { return };
        if let Some(conn) = self.conn(id) {
            conn.is_sending = false;
            if conn.secure.as_ref().is_some_and(|secure| !secure.is_open()) {
                // A handshake may have more to say, of which the transport knows nothing.
                self.list(id);
            }
        }
        match result {
            Ok(()) => self.transport.sent(id),
            Err(error) => self.transport.closed(id, Some(text(&error))),
        }
    }

    /// Sets the time for the completions that follow.
    pub fn begin_turn(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.transport.begin(now_ms);
    }

    /// Follows the membership, lets time pass, answers what can be answered here.
    pub fn turn(&mut self, now_ms: u64) {
        self.begin_turn(now_ms);
        self.follow_members();
        if now_ms >= self.transport.deadline_ms() {
            self.transport.tick();
            self.end_late_handshakes();
            self.reporter.count(&self.shared, &self.transport);
            self.prober.look(&self.shared.metrics.network, now_ms);
        }
        while let Some(incoming) = self.transport.next_request() {
            self.take_request(incoming);
        }
    }

    /// Does what the links want done, and sends what is ready.
    ///
    /// # Errors
    /// When a listener cannot be watched: the member cannot serve.
    pub fn flush(&mut self, driver: &mut dyn Driver) -> io::Result<()> {
        self.listen(driver)?;
        while let Some((socket, is_tls)) = self.accepted.pop_front() {
            self.attach(driver, socket, is_tls);
        }
        while let Some((id, address)) = self.resolver.next_answer() {
            self.connect(driver, id, address);
        }
        self.take_handshake_steps(driver);
        loop {
            while let Some(effect) = self.transport.next_effect() {
                match effect {
                    Effect::Connect { conn, url } => self.dial(driver, conn, url),
                    Effect::Close(id) => self.close(driver, id),
                }
            }
            let Some(id) = self.transport.next_dirty() else { break };
            self.flush_conn(driver, id);
        }
        self.choke(driver);
        while let Some(event) = self.transport.next_event() {
            self.prober.note(&event, &self.shared.clock, self.now_ms);
            self.reporter.log(&self.shared, &event);
        }
        Ok(())
    }

    fn conn_of(&self, socket: SocketId) -> Option<ConnId> {
        let (owned, id) = (*self.owned.get(socket.slot as usize)?)?;
        (owned == socket).then_some(id)
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(id.slot as usize)?.as_mut().filter(|conn| conn.id == id)
    }

    fn follow_members(&mut self) {
        let view = self.shared.view.load();
        if Arc::ptr_eq(&view.members, &self.members) {
            return;
        }
        self.members = view.members.clone();
        self.transport.set_removed(view.removed.iter().copied());
        let members = self.members.iter().map(|member| (member.id, member.peer_urls.as_slice()));
        self.transport.set_members(members);
        self.prober.keep(self.members.iter().map(|member| member.id));
    }

    fn listen(&mut self, driver: &mut dyn Driver) -> io::Result<()> {
        if self.is_listening {
            return Ok(());
        }
        self.is_listening = true;
        for (number, listener) in (LISTENERS..).zip(&self.listeners) {
            driver.listen(number, listener.clone())?;
        }
        Ok(())
    }

    fn attach(&mut self, driver: &mut dyn Driver, socket: AnySocket, is_tls: IsTls) {
        let mut remote = None;
        if let AnySocket::Kernel(socket) = &socket {
            crate::net::set_nodelay(socket);
            remote = is_tls.then(|| crate::net::peer_address(socket)).flatten();
        }
        // Dropping the socket closes it.
        let Some(id) = self.transport.accepted() else { return };
        let secure = is_tls.then(|| Secure::accept(&self.shared.tls.peer(), remote, self.now_ms));
        let secure = match secure.transpose() {
            Ok(secure) => secure.map(Box::new),
            Err(error) => return self.transport.closed(id, Some(error)),
        };
        match driver.attach(socket) {
            Ok(socket) => self.own(id, socket, None, secure),
            Err(error) => self.transport.closed(id, Some(text(&error))),
        }
    }

    /// Notes that a connection has this socket.
    fn own(
        &mut self,
        id: ConnId,
        socket: SocketId,
        url: Option<String>,
        secure: Option<Box<Secure>>,
    ) {
        let place = socket.slot as usize;
        if self.owned.len() <= place {
            self.owned.resize(place + 1, None);
        }
        self.owned[place] = Some((socket, id));
        self.put(Conn { socket: Some(socket), secure, ..Conn::new(id, url) });
    }

    fn put(&mut self, conn: Conn) {
        let place = conn.id.slot as usize;
        if self.conns.len() <= place {
            self.conns.resize_with(place + 1, || None);
        }
        self.conns[place] = Some(conn);
    }

    fn dial(&mut self, driver: &mut dyn Driver, id: ConnId, url: String) {
        match self.resolver.resolve(id, &url) {
            Resolved::Now(address) => {
                self.put(Conn::new(id, Some(url)));
                self.connect(driver, id, Ok(address));
            }
            Resolved::Later => self.put(Conn::new(id, Some(url))),
            Resolved::Failed(error) => self.transport.connected(id, Err(error)),
        }
    }

    fn connect(
        &mut self,
        driver: &mut dyn Driver,
        id: ConnId,
        address: Result<crate::driver::PeerAddress, String>,
    ) {
        // It may have been given up while its name was looked up.
        let Some(conn) = self.conn(id) else { return };
        let url = conn.url.take();
        let socket =
            address.and_then(|address| driver.connect(&address).map_err(|error| text(&error)));
        match socket {
            Ok(socket) => self.own(id, socket, url, None),
            Err(error) => {
                if let Some(conn) = self.conn(id) {
                    conn.url = url;
                }
                self.note_failure(id);
                self.transport.connected(id, Err(error));
            }
        }
    }

    /// The next attempt takes another of the name's addresses.
    fn note_failure(&mut self, id: ConnId) {
        let url = self.conn(id).and_then(|conn| conn.url.clone());
        if let Some(url) = url {
            self.resolver.failed(&url);
        }
    }

    fn close(&mut self, driver: &mut dyn Driver, id: ConnId) {
        if self.conn(id).is_none() {
            return;
        }
        let Some(conn) = self.conns[id.slot as usize].take() else { return };
        if let Some(socket) = conn.socket {
            self.owned[socket.slot as usize] = None;
            driver.close(socket);
        }
    }

    fn flush_conn(&mut self, driver: &mut dyn Driver, id: ConnId) {
        let wants_read = self.transport.wants_read(id);
        let Some(conn) = self.conn(id) else { return };
        let Some(socket) = conn.socket else { return };
        if wants_read != conn.is_reading {
            conn.is_reading = wants_read;
            if wants_read { driver.resume(socket) } else { driver.pause(socket) }
        }
        if conn.is_sending {
            return;
        }
        let is_secure = conn.secure.is_some();
        let mut buf = self.spare_bufs.pop().unwrap_or_default();
        if is_secure {
            self.secure_transmit(id, &mut buf);
        } else {
            self.transport.transmit(id, &mut buf);
        }
        if buf.is_empty() {
            self.spare_bufs.push(buf);
        } else {
            if let Some(conn) = self.conn(id) {
                conn.is_sending = true;
            }
            if let Some((buf, result)) = driver.send(socket, buf) {
                self.sent(socket, buf, result);
            }
        }
    }

    /// Stops reading everywhere while too much waits for the replica, and starts again.
    fn choke(&mut self, driver: &mut dyn Driver) {
        let is_choked = self.transport.is_congested();
        if is_choked == self.is_choked {
            return;
        }
        self.is_choked = is_choked;
        for place in 0..self.conns.len() {
            let Some(conn) = &self.conns[place] else { continue };
            let (id, Some(socket)) = (conn.id, conn.socket) else { continue };
            let wants_read = self.transport.wants_read(id);
            let Some(conn) = self.conn(id) else { continue };
            if wants_read != conn.is_reading {
                conn.is_reading = wants_read;
                if wants_read { driver.resume(socket) } else { driver.pause(socket) }
            }
        }
    }

    fn take_request(&mut self, incoming: IncomingRequest) {
        let path = incoming.target.split('?').next().unwrap_or_default();
        if REPLICA_PATHS.contains(&path) || path.starts_with(crate::replica::PROMOTE_PREFIX) {
            return self.incoming.push_back(incoming);
        }
        let now = self.shared.clock.unix();
        let date = http::http_date(now);
        if path == PROBING_PATH {
            let body = prober::answer(now);
            let fields = [("Content-Type", http::TEXT), ("Date", &*date)];
            return self.transport.answer(incoming.conn, 200, &fields, body.as_bytes());
        }
        let view = self.shared.view.load();
        let page = http::peer(&self.shared, &view, &incoming.method, &incoming.target);
        let mut fields = vec![("Content-Type", page.content_type), ("Date", date.as_str())];
        fields.extend(page.headers.iter().map(|(name, value)| (*name, value.as_str())));
        self.transport.answer(incoming.conn, page.status, &fields, &page.body);
    }
}

/// An error as etcd's log has it: without Rust's number at its end.
fn text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => etcore_raftlog::peer::DIAL_REFUSED.to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        _ => error.to_string(),
    }
}
