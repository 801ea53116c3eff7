//! TLS between members: handshakes both ways, and whether whoever has connected comes from where
//! its certificate says.
//!
//! Part of the links' shell, between sockets and the transport, which sees plaintext alone and is
//! told of a connection that was dialled only once the other side is known. Names are looked up by
//! the pool. Handshakes take few steps in a round: raft lives on this thread.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crossbeam_queue::ArrayQueue;
use etcore_proto::tls::{Session, TlsError};
use etcore_raftlog::peer::ConnId;

use super::Peers;
use crate::config::ListenUrl;
use crate::disk::pool::Pool;
use crate::driver::{Driver, Waker};
use crate::tls::{self, Endpoint, Origin, Policy, Rejected, RejectedLog, Side};
use crate::{limits, sys};

/// TLS of one connection.
pub(super) struct Secure {
    session: Session,
    policy: Arc<Policy>,
    state: State,
    /// Where it came from; `None` if it was dialled or came through a unix socket.
    remote: Option<SocketAddr>,
    is_dialled: bool,
    began_ms: u64,
    /// What came in and waits for its turn.
    waiting: Vec<u8>,
    /// What the other side has sent with the end of its handshake.
    behind: Vec<u8>,
    is_listed: bool,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Handshake,
    /// The names of its certificate are being looked up.
    Lookup,
    Open,
}

/// What all connections share.
pub(super) struct Handshakes {
    ready: VecDeque<ConnId>,
    pool: Option<Pool>,
    waker: Waker,
    /// Whether connections come from where they should.
    origins: Arc<ArrayQueue<(ConnId, Result<(), String>)>>,
    log: RejectedLog,
    scratch: Vec<u8>,
    plaintext: Vec<u8>,
}

impl Handshakes {
    pub(super) fn new(pool: Option<Pool>, waker: Waker) -> Self {
        Self {
            ready: VecDeque::new(),
            pool,
            waker,
            origins: Arc::new(ArrayQueue::new(limits::PEER_NAMES)),
            log: RejectedLog::new(Side::Peer),
            scratch: Vec::new(),
            plaintext: Vec::new(),
        }
    }

    /// Some step waits for its turn.
    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.origins.is_empty()
    }

    /// Has the names looked up.
    fn look_up(&self, id: ConnId, names: Vec<String>, from: IpAddr) -> Result<(), String> {
        let full = || "too many names wait to be looked up".to_owned();
        let pool = self.pool.as_ref().ok_or_else(full)?;
        let (origins, waker) = (self.origins.clone(), self.waker.clone());
        let job = Box::new(move || {
            // One that finds no room is given up when its time is over.
            let _ = origins.push((id, comes_from(&names, from)));
            waker.wake();
        });
        pool.run(job).map_err(|_| full())
    }
}

impl Secure {
    /// The server's side of a connection that was accepted.
    pub(super) fn accept(
        endpoint: &Endpoint,
        remote: Option<SocketAddr>,
        now_ms: u64,
    ) -> Result<Self, String> {
        let config = endpoint.server.clone().ok_or("there is no certificate for TLS")?;
        let session = Session::server(config).map_err(|error| error.to_string())?;
        Ok(Self::new(session, endpoint, remote, false, now_ms))
    }

    /// The client's side of a connection to a member's URL.
    pub(super) fn dial(endpoint: &Endpoint, url: &str, now_ms: u64) -> Result<Self, String> {
        let session = tls::dial(endpoint, &ListenUrl::parse(url)?.host())?;
        Ok(Self::new(session, endpoint, None, true, now_ms))
    }

    fn new(
        session: Session,
        endpoint: &Endpoint,
        remote: Option<SocketAddr>,
        is_dialled: bool,
        began_ms: u64,
    ) -> Self {
        Self {
            session,
            policy: endpoint.policy.clone(),
            state: State::Handshake,
            remote,
            is_dialled,
            began_ms,
            waiting: Vec::new(),
            behind: Vec::new(),
            is_listed: false,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// One that was accepted, and has had its time.
    fn is_late(&self, now_ms: u64) -> bool {
        !self.is_dialled && !self.is_open() && now_ms >= self.began_ms + limits::TLS_HANDSHAKE_MS
    }

    /// Whether whoever is on the other side may be there, as far as that is known at once.
    fn origin(&self, now_s: i64) -> Result<Origin, String> {
        if self.session.is_resumed() && !self.is_dialled {
            self.policy.check_resumed(self.session.peer_certificates(), now_s)?;
        }
        if self.is_dialled {
            return Ok(Origin::Allowed);
        }
        let from = self.remote.map(|remote| remote.ip());
        match self.policy.origin(self.session.peer_certificates().first(), from) {
            Origin::Refused(error) => Err(error),
            origin => Ok(origin),
        }
    }
}

impl Peers {
    fn secure(&mut self, id: ConnId) -> Option<&mut Secure> {
        self.conn(id)?.secure.as_deref_mut()
    }

    /// Keeps bytes until the handshake may take a step, or opens them.
    pub(super) fn secure_received(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(secure) = self.secure(id) else { return };
        if secure.is_open() {
            return self.open(id, bytes);
        }
        secure.waiting.extend_from_slice(bytes);
        let is_too_long = secure.waiting.len() > limits::TLS_WAITING_BYTES;
        if is_too_long {
            return self.reject(id, "tls: handshake message exceeds its limit");
        }
        self.list(id);
    }

    /// Puts a connection among those that wait for a step.
    pub(super) fn list(&mut self, id: ConnId) {
        let Some(secure) = self.secure(id) else { return };
        if !std::mem::replace(&mut secure.is_listed, true) {
            self.handshakes.ready.push_back(id);
        }
    }

    /// Opens bytes, and gives the transport what they say.
    fn open(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(mut secure) = self.conn(id).and_then(|conn| conn.secure.take()) else { return };
        let mut scratch = std::mem::take(&mut self.handshakes.scratch);
        let transport = &mut self.transport;
        let outcome = secure.session.receive(bytes, &mut scratch, &mut |plaintext| {
            transport.received(id, plaintext);
        });
        self.handshakes.scratch = scratch;
        let has_ended = secure.session.peer_has_closed();
        if let Some(conn) = self.conn(id) {
            conn.secure = Some(secure);
        }
        match outcome {
            Err(error) => self.transport.closed(id, Some(error.to_string())),
            Ok(()) if has_ended => self.transport.closed(id, None),
            Ok(()) => {}
        }
    }

    /// Appends what is to be sent: of the handshake, and of the transport once that is over.
    pub(super) fn secure_transmit(&mut self, id: ConnId, out: &mut Vec<u8>) {
        let Some(mut secure) = self.conn(id).and_then(|conn| conn.secure.take()) else { return };
        secure.session.transmit(out);
        let mut outcome = Ok(());
        if secure.is_open() {
            let mut plaintext = std::mem::take(&mut self.handshakes.plaintext);
            plaintext.clear();
            self.transport.transmit(id, &mut plaintext);
            outcome = secure.session.seal(&plaintext, out);
            self.handshakes.plaintext = plaintext;
        }
        if let Some(conn) = self.conn(id) {
            conn.secure = Some(secure);
        }
        if let Err(error) = outcome {
            self.transport.closed(id, Some(error.to_string()));
        }
    }

    /// Lets some handshakes go on, and those whose names were looked up.
    pub(super) fn take_handshake_steps(&mut self, driver: &mut dyn Driver) {
        while let Some((id, outcome)) = self.handshakes.origins.pop() {
            if self.secure(id).is_some_and(|secure| secure.state == State::Lookup) {
                match outcome {
                    Ok(()) => self.let_in(driver, id),
                    Err(error) => self.reject(id, &error),
                }
            }
        }
        if self.handshakes.ready.is_empty() {
            return;
        }
        let began = self.shared.clock.elapsed();
        for _ in 0..limits::TLS_STEPS_PER_ROUND {
            let Some(id) = self.handshakes.ready.pop_front() else { return };
            self.take_handshake_step(driver, id);
            let took = self.shared.clock.elapsed().saturating_sub(began);
            if took >= limits::TLS_ROUND_TIME {
                return;
            }
        }
    }

    fn take_handshake_step(&mut self, driver: &mut dyn Driver, id: ConnId) {
        let Some(mut secure) = self.conn(id).and_then(|conn| conn.secure.take()) else { return };
        secure.is_listed = false;
        if secure.state != State::Handshake {
            if let Some(conn) = self.conn(id) {
                conn.secure = Some(secure);
            }
            return self.flush_conn(driver, id);
        }
        let waiting = std::mem::take(&mut secure.waiting);
        let (session, behind) = (&mut secure.session, &mut secure.behind);
        let scratch = &mut self.handshakes.scratch;
        let outcome: Result<(), TlsError> =
            session.receive(&waiting, scratch, &mut |text| behind.extend_from_slice(text));
        let is_over = !secure.session.is_handshaking();
        let now_s = self.shared.clock.unix().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_s = i64::try_from(now_s.as_secs()).unwrap_or(i64::MAX);
        let origin = match outcome {
            Err(error) => Err(error.to_string()),
            Ok(()) if is_over => secure.origin(now_s).map(Some),
            Ok(()) => Ok(None),
        };
        let from = secure.remote.map(|remote| remote.ip());
        if let Some(conn) = self.conn(id) {
            conn.secure = Some(secure);
        }
        // What the handshake, or its alert, still has to say.
        self.flush_conn(driver, id);
        match (origin, from) {
            (Ok(None), _) => {}
            (Ok(Some(Origin::Named(names))), Some(from)) => {
                if let Some(secure) = self.secure(id) {
                    secure.state = State::Lookup;
                }
                if let Err(error) = self.handshakes.look_up(id, names, from) {
                    self.reject(id, &error);
                }
            }
            (Ok(Some(_)), _) => self.let_in(driver, id),
            (Err(error), _) => self.reject(id, &error),
        }
    }

    /// The other side is known: its bytes go to the transport from now on.
    fn let_in(&mut self, driver: &mut dyn Driver, id: ConnId) {
        let Some(secure) = self.secure(id) else { return };
        secure.state = State::Open;
        let behind = std::mem::take(&mut secure.behind);
        // It came while names were looked up.
        let waiting = std::mem::take(&mut secure.waiting);
        if secure.is_dialled {
            self.transport.connected(id, Ok(()));
        }
        if !behind.is_empty() {
            self.transport.received(id, &behind);
        }
        self.open(id, &waiting);
        self.flush_conn(driver, id);
    }

    /// Ends a connection whose other side is not one that may be there.
    fn reject(&mut self, id: ConnId, error: &str) {
        let now_ms = self.now_ms;
        let Some(secure) = self.conn(id).and_then(|conn| conn.secure.take()) else { return };
        if secure.is_dialled {
            self.note_failure(id);
            return self.transport.connected(id, Err(error.to_owned()));
        }
        self.handshakes.log.note(
            now_ms,
            &Rejected {
                remote: secure.remote,
                server_name: secure.session.server_name(),
                certificate: secure.session.peer_certificates().first(),
                error,
            },
        );
        self.transport.closed(id, Some(error.to_owned()));
    }

    /// The socket of a connection has ended before the other side was known. False if it was.
    pub(super) fn handshake_cut(&mut self, id: ConnId, error: Option<&str>) -> bool {
        let is_shaking = self.secure(id).is_some_and(|secure| !secure.is_open());
        if is_shaking {
            self.reject(id, error.unwrap_or("EOF"));
        }
        is_shaking
    }

    /// Gives up handshakes that take too long.
    pub(super) fn end_late_handshakes(&mut self) {
        let now_ms = self.now_ms;
        for place in 0..self.conns.len() {
            let Some(conn) = &self.conns[place] else { continue };
            let id = conn.id;
            if conn.secure.as_ref().is_some_and(|secure| secure.is_late(now_ms)) {
                self.reject(id, "i/o timeout");
            }
        }
    }
}

/// Whether one of these names leads to the address, or the address to one of them (etcd:
/// isHostInDNS). May wait for the resolver.
fn comes_from(names: &[String], from: IpAddr) -> Result<(), String> {
    let (patterns, names): (Vec<&String>, Vec<&String>) =
        names.iter().partition(|name| name.starts_with("*."));
    if let Some(found) = sys::name_of(from) {
        let found = found.strip_suffix('.').unwrap_or(&found);
        let fits = names.iter().any(|name| *name == found)
            || patterns.iter().any(|pattern| found.ends_with(&pattern[1..]));
        if fits {
            return Ok(());
        }
    }
    let leads_there = |name: &&String| {
        let found = std::net::ToSocketAddrs::to_socket_addrs(&(name.as_str(), 0));
        found.is_ok_and(|mut found| found.any(|address| address.ip().to_canonical() == from))
    };
    if names.iter().any(leads_there) {
        return Ok(());
    }
    let all: Vec<&String> = names.into_iter().chain(patterns).collect();
    Err(format!("tls: {:?} does not match any of DNSNames {all:?}", from.to_string()))
}
