//! One TLS connection, either side of it, without I/O: ciphertext and plaintext go in, plaintext
//! and ciphertext come out.
//!
//! Used by the server for clients and peers, and by whoever is a client. rustls does the protocol;
//! this layer feeds it and keeps what it leaves over. Certificates, their checks and the time come
//! with the configuration. It must never hold more than one incomplete record or handshake message
//! of the peer ([`limits::TLS_INCOMPLETE_BYTES_MAX`]), nor a byte of plaintext.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, ServerConfig};

use crate::limits;

mod der;
mod hello;
mod text;
pub mod x509;

pub use text::go_text;

/// Why a connection cannot go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The first bytes are no record: the peer speaks another protocol.
    #[error("tls: first record does not look like a TLS handshake")]
    NotTls,
    /// The client knows none of the versions that are spoken.
    #[error("tls: client offered only unsupported versions: [{0}]")]
    OldVersions(String),
    /// What the peer sent, or what it did not accept.
    #[error("{}", go_text(.0))]
    Protocol(#[from] rustls::Error),
    /// An incomplete message is longer than any may be.
    #[error("tls: handshake message exceeds its limit")]
    TooLong,
    /// Too much was sent with one key.
    #[error("tls: keys are used up")]
    KeysUsedUp,
}

/// Either side.
enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// A connection.
///
/// Invariants: after an error nothing is received any more, and what is left to send ends with an
/// alert; nothing is sealed before the handshake is over, nor after the end was announced.
pub struct Session {
    side: Side,
    /// The peer's bytes from the first incomplete record on, partly decrypted in place.
    input: Vec<u8>,
    /// Records of the handshake and alerts that were not taken yet.
    out: Vec<u8>,
    has_received: bool,
    peer_closed: bool,
    end_announced: bool,
    failed: bool,
    server_name: Option<Box<str>>,
}

/// What a record needs besides its plaintext, at most, and how much of that it carries.
const RECORD_OVERHEAD_BYTES: usize = 64;
const RECORD_BYTES: usize = 16 << 10;
/// The content types of what may come first: an alert, or a handshake message.
const FIRST_TYPES: [u8; 2] = [21, 22];
/// A record with the fatal alert `protocol_version`.
const PROTOCOL_VERSION_ALERT: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];

/// What became of one look at the input.
enum Step {
    /// There may be more in it.
    Again,
    /// It has nothing complete any more.
    Done,
    Failed(rustls::Error),
}

impl Session {
    /// The side that was connected to.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        Ok(Self::new(Side::Server(UnbufferedServerConnection::new(config)?)))
    }

    /// The side that connects to a peer of this name. Its first bytes wait to be sent.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, TlsError> {
        let side = Side::Client(UnbufferedClientConnection::new(config, name)?);
        let mut session = Self::new(side);
        session.process(&mut [], &mut |_| {}).1?;
        Ok(session)
    }

    fn new(side: Side) -> Self {
        Self {
            side,
            input: Vec::new(),
            out: Vec::new(),
            has_received: false,
            peer_closed: false,
            end_announced: false,
            failed: false,
            server_name: None,
        }
    }

    /// Takes bytes of the peer and passes on what they say, in order. `scratch` is room to work
    /// in, the same for all connections of a thread.
    ///
    /// # Errors
    /// [`TlsError`]; what [`Session::transmit`] gives then ends with an alert for the peer.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        scratch: &mut Vec<u8>,
        plaintext: &mut dyn FnMut(&[u8]),
    ) -> Result<(), TlsError> {
        if self.failed || self.peer_closed || bytes.is_empty() {
            return Ok(());
        }
        if !self.has_received {
            self.has_received = true;
            // Whoever speaks another protocol would not understand an alert.
            if !FIRST_TYPES.contains(&bytes[0]) {
                self.failed = true;
                return Err(TlsError::NotTls);
            }
        }
        scratch.clear();
        scratch.extend_from_slice(&self.input);
        scratch.extend_from_slice(bytes);
        if self.server_name.is_none() && matches!(self.side, Side::Server(_)) {
            self.look_at_hello(scratch)?;
        }
        let (used, outcome) = self.process(scratch, plaintext);
        let rest = &scratch[used..];
        let is_too_long = rest.len() > limits::TLS_INCOMPLETE_BYTES_MAX;
        if outcome.is_err() || is_too_long {
            self.failed = true;
            self.input = Vec::new();
            self.take_alert();
            return Err(outcome.err().map_or(TlsError::TooLong, TlsError::from));
        }
        if rest.is_empty() {
            // Thousands of connections wait for their next record: none keeps room for it.
            self.input = Vec::new();
        } else {
            self.input.clear();
            self.input.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Looks into the client's first message, once it is there.
    fn look_at_hello(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        let Some(hello) = hello::parse(bytes) else { return Ok(()) };
        self.server_name = Some(hello.server_name);
        let Some(versions) = hello.only_old_versions else { return Ok(()) };
        self.failed = true;
        self.out.extend_from_slice(&PROTOCOL_VERSION_ALERT);
        let versions: Vec<String> = versions.iter().map(|number| format!("{number:x}")).collect();
        Err(TlsError::OldVersions(versions.join(" ")))
    }

    /// Gives rustls what is there until it wants more; says how much of it is done with. What was
    /// not must come again, in front of what follows: rustls knows places in it.
    fn process(
        &mut self,
        input: &mut [u8],
        plaintext: &mut dyn FnMut(&[u8]),
    ) -> (usize, Result<(), rustls::Error>) {
        let mut used = 0;
        loop {
            let rest = &mut input[used..];
            let (out, closed) = (&mut self.out, &mut self.peer_closed);
            let (discard, step) = match &mut self.side {
                Side::Server(side) => take(side.process_tls_records(rest), out, closed, plaintext),
                Side::Client(side) => take(side.process_tls_records(rest), out, closed, plaintext),
            };
            used += discard;
            match step {
                Step::Again => {}
                Step::Done => return (used, Ok(())),
                Step::Failed(error) => return (used, Err(error)),
            }
        }
    }

    /// Takes the alert that rustls has for the peer after an error. It must not look at input any
    /// more: a second error would end the process.
    fn take_alert(&mut self) {
        let (out, closed) = (&mut self.out, &mut self.peer_closed);
        loop {
            let (_, step) = match &mut self.side {
                Side::Server(side) if side.wants_write() => {
                    take(side.process_tls_records(&mut []), out, closed, &mut |_| {})
                }
                Side::Client(side) if side.wants_write() => {
                    take(side.process_tls_records(&mut []), out, closed, &mut |_| {})
                }
                _ => return,
            };
            if !matches!(step, Step::Again) {
                return;
            }
        }
    }

    /// Appends `plaintext` as records.
    ///
    /// # Errors
    /// [`TlsError::KeysUsedUp`]: the connection must be closed.
    ///
    /// # Panics
    /// If the handshake is not over.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        assert!(!self.is_handshaking(), "nothing is sent before the peer is known");
        if plaintext.is_empty() || self.end_announced || self.failed {
            return Ok(());
        }
        let records = plaintext.len().div_ceil(RECORD_BYTES);
        let room = plaintext.len() + records * RECORD_OVERHEAD_BYTES;
        self.write(out, room, Content::Plaintext(plaintext))
    }

    /// Tells the peer that nothing follows.
    pub fn announce_end(&mut self, out: &mut Vec<u8>) {
        if self.end_announced || self.failed || self.is_handshaking() {
            return;
        }
        // An error means that the keys are used up: the peer sees the connection end.
        let _ = self.write(out, RECORD_OVERHEAD_BYTES, Content::End);
        self.end_announced = true;
    }

    fn write(
        &mut self,
        out: &mut Vec<u8>,
        mut room: usize,
        content: Content<'_>,
    ) -> Result<(), TlsError> {
        // What rustls wants sent first, such as tickets and new keys.
        let mut input = std::mem::take(&mut self.input);
        loop {
            let outcome = match &mut self.side {
                Side::Server(side) => {
                    seal(side.process_tls_records(&mut input), out, &mut self.out, room, content)
                }
                Side::Client(side) => {
                    seal(side.process_tls_records(&mut input), out, &mut self.out, room, content)
                }
            };
            match outcome {
                Sealed::Again => {}
                Sealed::NeedsRoom(bytes) => room = bytes,
                Sealed::Wrote | Sealed::Refused => {
                    self.input = input;
                    let refused = matches!(outcome, Sealed::Refused);
                    return if refused { Err(TlsError::KeysUsedUp) } else { Ok(()) };
                }
            }
        }
    }

    /// Appends what waits to be sent before anything else: records of the handshake, alerts.
    pub fn transmit(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.out);
        self.out = Vec::new();
    }

    /// True if [`Session::transmit`] has something.
    pub fn wants_transmit(&self) -> bool {
        !self.out.is_empty()
    }

    /// True until both sides know each other.
    pub fn is_handshaking(&self) -> bool {
        match &self.side {
            Side::Server(side) => side.is_handshaking(),
            Side::Client(side) => side.is_handshaking(),
        }
    }

    /// True once the peer has said that nothing follows. What the connection brings without that
    /// may have been cut off.
    pub fn peer_has_closed(&self) -> bool {
        self.peer_closed
    }

    /// Bytes that are held.
    pub fn held_bytes(&self) -> usize {
        self.input.len() + self.out.len()
    }

    /// The application's protocol that both sides agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.side {
            Side::Server(side) => side.alpn_protocol(),
            Side::Client(side) => side.alpn_protocol(),
        }
    }

    /// The peer's certificates, its own first; verified as the configuration says once the
    /// handshake is over.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        let certificates = match &self.side {
            Side::Server(side) => side.peer_certificates(),
            Side::Client(side) => side.peer_certificates(),
        };
        certificates.unwrap_or_default()
    }

    /// True if the session goes on from an earlier one: nothing was verified this time.
    pub fn is_resumed(&self) -> bool {
        let kind = match &self.side {
            Side::Server(side) => side.handshake_kind(),
            Side::Client(side) => side.handshake_kind(),
        };
        kind == Some(HandshakeKind::Resumed)
    }

    /// The protocol's version, once it is known.
    pub fn version(&self) -> Option<ProtocolVersion> {
        match &self.side {
            Side::Server(side) => side.protocol_version(),
            Side::Client(side) => side.protocol_version(),
        }
    }

    /// The name that the client has asked for; empty if it asked for none.
    pub fn server_name(&self) -> &str {
        self.server_name.as_deref().unwrap_or_default()
    }
}

/// Takes what rustls has found, and how many bytes of the input it is done with.
fn take<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut Vec<u8>,
    peer_closed: &mut bool,
    plaintext: &mut dyn FnMut(&[u8]),
) -> (usize, Step) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    plaintext(record.payload);
                }
                Some(Err(error)) => break Step::Failed(error),
                None => break Step::Again,
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            encode(|room| data.encode(room), out);
            Step::Again
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Step::Again
        }
        Ok(ConnectionState::PeerClosed) => {
            *peer_closed = true;
            Step::Again
        }
        // Early data are never asked for.
        Ok(_) => Step::Done,
        Err(error) => Step::Failed(error),
    };
    (discard, step)
}

/// Appends a record of the handshake.
fn encode(mut write: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>, out: &mut Vec<u8>) {
    let start = out.len();
    let mut room = RECORD_BYTES.min(2 << 10);
    loop {
        out.resize(start + room, 0);
        match write(&mut out[start..]) {
            Ok(bytes) => return out.truncate(start + bytes),
            Err(EncodeError::InsufficientSize(needed)) => room = needed.required_size,
            Err(EncodeError::AlreadyEncoded) => return out.truncate(start),
        }
    }
}

/// What can be written once the handshake is over.
#[derive(Clone, Copy)]
enum Content<'a> {
    Plaintext(&'a [u8]),
    /// Nothing follows.
    End,
}

/// What became of an attempt to write.
enum Sealed {
    Wrote,
    Again,
    NeedsRoom(usize),
    Refused,
}

fn seal<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut Vec<u8>,
    pending: &mut Vec<u8>,
    room: usize,
    content: Content<'_>,
) -> Sealed {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => {
            // What was encrypted earlier has the earlier number: it must leave first.
            out.append(pending);
            let start = out.len();
            out.resize(start + room, 0);
            let written = match content {
                Content::Plaintext(plaintext) => traffic.encrypt(plaintext, &mut out[start..]),
                Content::End => traffic.queue_close_notify(&mut out[start..]),
            };
            match written {
                Ok(bytes) => {
                    out.truncate(start + bytes);
                    Sealed::Wrote
                }
                Err(EncryptError::InsufficientSize(needed)) => {
                    out.truncate(start);
                    Sealed::NeedsRoom(needed.required_size)
                }
                Err(EncryptError::EncryptExhausted) => {
                    out.truncate(start);
                    Sealed::Refused
                }
            }
        }
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            encode(|room| data.encode(room), pending);
            Sealed::Again
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Sealed::Again
        }
        _ => Sealed::Refused,
    }
}

/// Looks for a name in any bytes.
#[cfg(any(test, feature = "fuzz"))]
pub fn fuzz_hello(input: &[u8]) {
    if let Some(hello) = hello::parse(input) {
        assert!(hello.server_name.len() <= input.len(), "{hello:?}");
    }
}

#[cfg(test)]
mod tests;
