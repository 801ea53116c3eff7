//! One connection: which protocol it turned out to speak, and what is on its way.
//!
//! Owned by the wire. HTTP/2 is told from HTTP/1.1 by its preface, below TLS or without it.

use std::sync::Arc;

use etcore_proto::grpc::{Routes, Server, ServerConfig};
use etcore_proto::h2::{Budget, BudgetLease};
use etcore_proto::http1;

use super::http::Origins;
use super::secure::{Room, Secure};
use super::transport::Transport;
use super::websocket::WebSocket;
use crate::limits;
use crate::replies::{Caller, ConnId};

/// The HTTP/2 client preface.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a TLS client's first byte is: it has come to the wrong port.
const TLS_HANDSHAKE: u8 = 22;

/// How long a connection that ended by an error waits for its peer to take the reason. A peer that
/// does not read would hold it for ever.
const LINGER_MS: u64 = 1000;

/// What a connection speaks.
pub(super) enum Protocol {
    /// Not enough bytes yet.
    Unknown(Vec<u8>),
    /// gRPC over HTTP/2.
    Grpc(Box<Server>),
    /// HTTP/1.1.
    Http1(Box<http1::Server>),
}

/// How new connections are set up.
pub(super) struct Settings {
    pub(super) grpc: ServerConfig,
    pub(super) routes: Arc<Routes>,
    pub(super) budget: Budget,
    /// Largest body of a request over HTTP/1.1.
    pub(super) http1_body_bytes: u64,
    /// The common names in clients' certificates are users.
    pub(super) names_users: bool,
}

/// What is served at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// gRPC, and HTTP beside it.
    Everything,
    /// gRPC alone: HTTP has URLs of its own.
    Grpc,
    /// HTTP alone.
    Http,
    /// `/metrics` and the health checks.
    Metrics,
}

/// A listener for clients: it travels with its sockets.
#[derive(Debug)]
pub struct Door {
    /// Its URL.
    pub url: String,
    /// What is served there.
    pub serves: Serves,
}

/// Where a connection came from.
pub(super) struct Origin {
    /// The listener.
    pub(super) door: Arc<Door>,
    /// Who is at the other end, as far as the connection tells.
    pub(super) caller: Arc<Caller>,
}

pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) transport: Transport,
    pub(super) origin: Origin,
    /// TLS below the protocol, if the listener's URL asks for it.
    pub(super) secure: Option<Box<Secure>>,
    pub(super) protocol: Protocol,
    pub(super) is_secure: bool,
    settings: Arc<Settings>,
    /// A send is with the driver.
    pub(super) sending: bool,
    /// Since when, and how many bytes.
    sending_since_ms: u64,
    sending_bytes: usize,
    /// What the next send may be at most.
    send_bytes_max: usize,
    /// What TLS and HTTP/1.1 hold, and what is kept of bodies.
    lease: BudgetLease,
    body_bytes: usize,
    /// In the front's list for this turn.
    pub(super) dirty: bool,
    /// Nothing more is received; what is queued still goes out, if the peer takes it in time.
    pub(super) failed: bool,
    failed_ms: Option<u64>,
    /// The peer is gone.
    pub(super) gone: bool,
    /// The driver is receiving for it.
    pub(super) reading: bool,
    /// Bytes of its proposals that were not answered yet.
    pub(super) proposal_bytes: usize,
    draining: bool,
    /// The request that is incomplete, and since when.
    incomplete: Option<(u64, u64)>,
    /// When the peer ended its side.
    ended_ms: Option<u64>,
    /// Whose pages may read the responses to come; `None` if anybody's.
    pub(super) origins: Option<Origins>,
    /// It has left HTTP.
    pub(super) websocket: Option<Box<WebSocket>>,
}

impl Conn {
    pub(super) fn new(
        id: ConnId,
        transport: Transport,
        origin: Origin,
        secure: Option<Secure>,
        settings: Arc<Settings>,
    ) -> Self {
        let lease = settings.budget.lease();
        Self {
            id,
            transport,
            origin,
            is_secure: secure.is_some(),
            secure: secure.map(Box::new),
            protocol: Protocol::Unknown(Vec::new()),
            settings,
            sending: false,
            sending_since_ms: 0,
            sending_bytes: 0,
            send_bytes_max: limits::SEND_BYTES,
            lease,
            body_bytes: 0,
            dirty: false,
            failed: false,
            failed_ms: None,
            gone: false,
            reading: true,
            proposal_bytes: 0,
            draining: false,
            incomplete: None,
            ended_ms: None,
            origins: None,
            websocket: None,
        }
    }

    /// Takes received bytes through TLS to the protocol.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        room: &mut Room,
        now_ms: u64,
    ) -> Result<(), String> {
        let Some(mut secure) = self.secure.take() else { return Ok(()) };
        let mut outcome = Ok(());
        let opened = secure.open(bytes, room, &mut |plaintext| {
            if outcome.is_ok() {
                outcome = self.understand(plaintext, now_ms);
            }
        });
        let has_ended = secure.peer_has_ended();
        self.secure = Some(secure);
        self.charge();
        if has_ended && outcome.is_ok() {
            self.peer_ended(now_ms);
        }
        opened.map_err(|error| error.to_string()).and(outcome)
    }

    /// Takes a step of the handshake. What the client has sent behind it goes to the protocol,
    /// unless the client is one that must not come in.
    pub(super) fn shake_hands(
        &mut self,
        bytes: &[u8],
        room: &mut Room,
        now_ms: u64,
        now_s: i64,
    ) -> Result<(), String> {
        let Some(secure) = &mut self.secure else { return Ok(()) };
        let mut behind = Vec::new();
        let opened = secure.open(bytes, room, &mut |plaintext| behind.extend_from_slice(plaintext));
        opened.map_err(|error| error.to_string())?;
        if !secure.is_handshaking() {
            secure.check_resumed(now_s)?;
            let has_ended = secure.peer_has_ended();
            if !behind.is_empty() {
                self.understand(&behind, now_ms)?;
            }
            if has_ended {
                self.peer_ended(now_ms);
            }
        }
        self.charge();
        Ok(())
    }

    /// Feeds bytes to the protocol, or finds out which one it is.
    pub(super) fn understand(&mut self, bytes: &[u8], now_ms: u64) -> Result<(), String> {
        match &mut self.protocol {
            Protocol::Grpc(server) => {
                server.receive(bytes, now_ms).map_err(|error| error.to_string())
            }
            Protocol::Http1(server) => {
                server.receive(bytes);
                Ok(())
            }
            Protocol::Unknown(seen) => {
                seen.extend_from_slice(bytes);
                let compared = seen.len().min(PREFACE.len());
                if !self.is_secure && seen.first() == Some(&TLS_HANDSHAKE) {
                    // As etcd does, which finds no protocol that it could answer in.
                    self.gone = true;
                    return Ok(());
                }
                let is_http1 = seen[..compared] != PREFACE[..compared];
                let serves_http = match self.origin.door.serves {
                    Serves::Grpc if is_http1 => {
                        return Err("only gRPC is served at this URL".to_owned());
                    }
                    Serves::Http | Serves::Metrics
                        if !self.is_secure && !is_http1 && compared == PREFACE.len() =>
                    {
                        return Err("only HTTP/1.1 is served at this URL".to_owned());
                    }
                    serves => serves != Serves::Grpc,
                };
                if is_http1 {
                    let server = http1::Server::new(self.settings.http1_body_bytes);
                    self.become_protocol(Protocol::Http1(Box::new(server)), now_ms)
                } else if compared == PREFACE.len() {
                    let settings = &self.settings;
                    let mut grpc = settings.grpc.clone();
                    // etcd serves HTTP/2 without TLS to gRPC alone.
                    grpc.plain_http |= self.is_secure && serves_http;
                    let serves_grpc =
                        matches!(self.origin.door.serves, Serves::Everything | Serves::Grpc);
                    let routes = if serves_grpc { settings.routes.clone() } else { Arc::default() };
                    let server = Server::new(grpc, routes, &settings.budget);
                    self.become_protocol(Protocol::Grpc(Box::new(server)), now_ms)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn become_protocol(&mut self, protocol: Protocol, now_ms: u64) -> Result<(), String> {
        let Protocol::Unknown(seen) = std::mem::replace(&mut self.protocol, protocol) else {
            return Err("the protocol was known already".to_owned());
        };
        if self.draining {
            self.drain();
        }
        self.understand(&seen, now_ms)
    }

    /// Appends what is to be sent; true if there is more.
    pub(super) fn transmit(&mut self, out: &mut Vec<u8>, room: &mut Room) -> bool {
        let Some(mut secure) = self.secure.take() else { return self.speak(out) };
        let more = if secure.transmit(out) {
            room.plaintext.clear();
            let more = self.speak(&mut room.plaintext);
            self.gone |= secure.seal(&room.plaintext, out).is_err();
            if !more && (self.is_over() || self.failed) {
                secure.announce_end(out);
            }
            more
        } else {
            false
        };
        self.secure = Some(secure);
        more
    }

    /// Appends what the protocol wants sent; true if there is more.
    fn speak(&mut self, out: &mut Vec<u8>) -> bool {
        match &mut self.protocol {
            Protocol::Unknown(_) => false,
            Protocol::Grpc(server) => server.poll_transmit(out, self.send_bytes_max),
            Protocol::Http1(server) => server.poll_transmit(out, self.send_bytes_max),
        }
    }

    /// A send of so many bytes is with the driver.
    pub(super) fn begin_send(&mut self, bytes: usize, now_ms: u64) {
        self.sending = true;
        (self.sending_since_ms, self.sending_bytes) = (now_ms, bytes);
        match &mut self.protocol {
            Protocol::Grpc(server) => server.set_in_flight(bytes),
            _ => self.charge(),
        }
    }

    /// The driver's send has ended.
    pub(super) fn end_send(&mut self, now_ms: u64) {
        self.sending = false;
        self.sending_bytes = 0;
        let slow = now_ms.saturating_sub(self.sending_since_ms) >= limits::SLOW_SEND_MS;
        self.send_bytes_max = if slow { limits::SLOW_SEND_BYTES } else { limits::SEND_BYTES };
        match &mut self.protocol {
            Protocol::Grpc(server) => server.set_in_flight(0),
            _ => self.charge(),
        }
    }

    /// Charges what TLS and HTTP/1.1 hold: input, answers, and what is with the driver.
    pub(super) fn charge(&mut self) {
        let by_protocol = match &self.protocol {
            Protocol::Http1(server) => server.held_bytes() + self.sending_bytes,
            _ => 0,
        };
        let held = by_protocol
            + self.body_bytes
            + self.secure.as_ref().map_or(0, |secure| secure.held_bytes());
        let before = self.lease.used();
        if held > before {
            self.lease.hold(held - before);
        } else {
            self.lease.release(before - held);
        }
    }

    /// Keeps so many bytes of a request's body; false if there is no room for them.
    pub(super) fn keep_body(&mut self, bytes: usize) -> bool {
        let fits = self.lease.charge(bytes);
        if fits {
            self.body_bytes += bytes;
        }
        fits
    }

    /// Keeps them no longer.
    pub(super) fn release_body(&mut self, bytes: usize) {
        assert!(bytes <= self.body_bytes, "what is kept is let go once");
        self.body_bytes -= bytes;
        self.lease.release(bytes);
    }

    /// Whether there is room for the answer to a further request of HTTP/1.1.
    pub(super) fn may_answer(&mut self) -> bool {
        let fits = self.lease.charge(limits::HTTP1_ANSWER_BYTES);
        if fits {
            self.lease.release(limits::HTTP1_ANSWER_BYTES);
        }
        fits
    }

    pub(super) fn tick(&mut self, now_ms: u64) -> Result<(), String> {
        self.gone |= self.sending && now_ms >= self.sending_since_ms + limits::WRITE_MS;
        if self.failed {
            let since_ms = *self.failed_ms.get_or_insert(now_ms);
            self.gone |= now_ms >= since_ms + LINGER_MS;
            return Ok(());
        }
        if let Some(ended_ms) = self.ended_ms {
            self.gone |= now_ms >= ended_ms + limits::HALF_CLOSED_MS;
        }
        let incomplete = match &mut self.protocol {
            Protocol::Grpc(server) => {
                return server.tick(now_ms).map_err(|error| error.to_string());
            }
            Protocol::Unknown(_) => Some(0),
            Protocol::Http1(server) => server.incomplete_request(),
        };
        match (incomplete, self.incomplete) {
            (Some(request), Some((same, since_ms))) if request == same => {
                self.gone |= now_ms >= since_ms + limits::REQUEST_MS;
            }
            (request, _) => self.incomplete = request.map(|request| (request, now_ms)),
        }
        Ok(())
    }

    /// The peer has ended its side. A client of HTTP/1.1 may do so and still read its answers; any
    /// other is gone.
    pub(super) fn peer_ended(&mut self, now_ms: u64) {
        match &mut self.protocol {
            Protocol::Http1(server) if !self.failed => {
                server.receive_end();
                self.ended_ms = Some(now_ms);
            }
            _ => self.gone = true,
        }
    }

    pub(super) fn wants_read(&self) -> bool {
        if self.secure.as_ref().is_some_and(|secure| !secure.wants_read()) {
            return false;
        }
        match &self.protocol {
            Protocol::Unknown(_) => true,
            Protocol::Grpc(server) => server.wants_read(),
            Protocol::Http1(server) => server.wants_read(),
        }
    }

    /// Nothing is left to do on it.
    pub(super) fn is_over(&self) -> bool {
        if self.failed {
            return true;
        }
        match &self.protocol {
            Protocol::Unknown(_) => self.draining,
            Protocol::Grpc(server) => self.draining && server.is_drained(),
            Protocol::Http1(server) => server.is_done(),
        }
    }

    /// Nothing is on its way, and nothing waits to be sent.
    pub(super) fn is_idle(&self) -> bool {
        match &self.protocol {
            Protocol::Unknown(_) => true,
            _ if self.dirty || self.sending => false,
            Protocol::Grpc(server) => server.open_streams() == 0 && server.unsent_bytes() == 0,
            Protocol::Http1(_) => true,
        }
    }

    /// Begins a graceful end.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        match &mut self.protocol {
            Protocol::Unknown(_) => {}
            Protocol::Grpc(server) => server.graceful_goaway(),
            Protocol::Http1(server) => server.graceful_close(),
        }
    }

    pub(super) fn grpc(&mut self) -> Option<&mut Server> {
        match &mut self.protocol {
            Protocol::Grpc(server) => Some(server),
            _ => None,
        }
    }

    pub(super) fn http1(&mut self) -> Option<&mut http1::Server> {
        match &mut self.protocol {
            Protocol::Http1(server) => Some(server),
            _ => None,
        }
    }
}
