//! TLS of one connection: between the bytes of its socket and its protocol.
//!
//! Owned by the connection; the wire lets handshakes take their steps, few in a round, because each
//! may cost a signature. It must never give the protocol a byte before the client is known.

use std::sync::Arc;

use etcore_proto::tls::{Session, TlsError};
use rustls::pki_types::CertificateDer;

use crate::limits;
use crate::tls::{Endpoint, Policy};

/// Room to work in, the same for all connections of a front.
#[derive(Default)]
pub(super) struct Room {
    /// Bytes as they are opened.
    scratch: Vec<u8>,
    /// Bytes to be sealed.
    pub(super) plaintext: Vec<u8>,
}

/// See the module text.
pub(super) struct Secure {
    session: Session,
    policy: Arc<Policy>,
    /// What came in while the handshake waits for its next step.
    waiting: Vec<u8>,
    /// It is in the list of those that wait for a step.
    pub(super) is_listed: bool,
    /// It counts as a handshake under way.
    pub(super) is_counted: bool,
    began_ms: u64,
    told_end: bool,
}

impl Secure {
    /// The server's side of a new connection.
    ///
    /// # Errors
    /// When there is no certificate, or rustls refuses the configuration.
    pub(super) fn accept(endpoint: &Endpoint, now_ms: u64) -> Result<Self, String> {
        let config = endpoint.server.clone().ok_or("there is no certificate for TLS")?;
        Ok(Self {
            session: Session::server(config).map_err(|error| error.to_string())?,
            policy: endpoint.policy.clone(),
            waiting: Vec::new(),
            is_listed: false,
            is_counted: true,
            began_ms: now_ms,
            told_end: false,
        })
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// The client has had its time.
    pub(super) fn is_late(&self, now_ms: u64) -> bool {
        self.is_counted && now_ms >= self.began_ms + limits::TLS_HANDSHAKE_MS
    }

    /// Keeps what came in for the next step.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// Takes what was kept.
    pub(super) fn take_kept(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.waiting)
    }

    /// Opens what the client has sealed.
    pub(super) fn open(
        &mut self,
        bytes: &[u8],
        room: &mut Room,
        plaintext: &mut dyn FnMut(&[u8]),
    ) -> Result<(), TlsError> {
        self.session.receive(bytes, &mut room.scratch, plaintext)
    }

    /// Whether who came back with an earlier session may still come in.
    pub(super) fn check_resumed(&self, now_s: i64) -> Result<(), String> {
        if !self.session.is_resumed() {
            return Ok(());
        }
        self.policy.check_resumed(self.session.peer_certificates(), now_s)
    }

    /// Appends what the handshake wants sent; true if the protocol's bytes may follow.
    pub(super) fn transmit(&mut self, out: &mut Vec<u8>) -> bool {
        self.session.transmit(out);
        !self.session.is_handshaking()
    }

    pub(super) fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        self.session.seal(plaintext, out)
    }

    pub(super) fn announce_end(&mut self, out: &mut Vec<u8>) {
        self.session.announce_end(out);
    }

    /// True once, when the client has said that nothing follows.
    pub(super) fn peer_has_ended(&mut self) -> bool {
        self.session.peer_has_closed() && !std::mem::replace(&mut self.told_end, true)
    }

    pub(super) fn wants_read(&self) -> bool {
        self.waiting.len() < limits::TLS_WAITING_BYTES
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.session.held_bytes() + self.waiting.len()
    }

    /// The name that the client asked for.
    pub(super) fn server_name(&self) -> &str {
        self.session.server_name()
    }

    /// The client's own certificate, if it has shown one.
    pub(super) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.session.peer_certificates().first()
    }
}
