//! Time: keepalive pings, the enforcement against a client's, the handshake and graceful ends.
//!
//! Part of [`Conn`]. Time comes in through [`Conn::tick`] and [`Conn::receive`] only.

use super::frames::DRAIN_PING;
use super::{Conn, Drain};
use crate::h2::settings::WINDOW_BYTES_MAX;
use crate::h2::{ConnError, ErrorCode, Keepalive, frame};
use crate::limits;

/// The payload of our keepalive pings.
const KEEPALIVE_PING: [u8; 8] = [0; 8];
/// How often a client without streams may ping, whatever the policy: grpc-go's two hours.
const PING_WITHOUT_STREAMS_MS_MIN: u64 = 7_200_000;

impl Conn {
    /// Lets time pass.
    ///
    /// # Errors
    /// [`ConnError::KeepaliveTimeout`] or [`ConnError::HandshakeTimeout`]: close without further
    /// ado.
    pub fn tick(&mut self, now_ms: u64) -> Result<(), ConnError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.now_ms = now_ms;
        self.give_back_buffers();
        let started_ms = *self.started_ms.get_or_insert(now_ms);
        if !self.settings_received {
            if now_ms >= started_ms.saturating_add(self.config.handshake_ms_max) {
                self.failed = Some(ConnError::HandshakeTimeout);
                return Err(ConnError::HandshakeTimeout);
            }
            return Ok(());
        }
        if let Drain::Announced { since_ms } = self.drain
            && now_ms >= since_ms.saturating_add(limits::DRAIN_PING_MS_MAX)
        {
            self.finish_drain();
        }
        self.tick_keepalive(now_ms)
    }

    fn tick_keepalive(&mut self, now_ms: u64) -> Result<(), ConnError> {
        let Some(keepalive) = self.keepalive() else {
            self.ping_sent_ms = None;
            return Ok(());
        };
        match self.ping_sent_ms {
            // Anything read after the ping proves that the peer lives.
            Some(sent_ms) if self.last_read_ms > sent_ms => self.ping_sent_ms = None,
            Some(sent_ms) if now_ms >= sent_ms.saturating_add(keepalive.timeout_ms) => {
                self.failed = Some(ConnError::KeepaliveTimeout);
                return Err(ConnError::KeepaliveTimeout);
            }
            _ => {}
        }
        if self.ping_sent_ms.is_none()
            && now_ms >= self.last_read_ms.saturating_add(keepalive.interval_ms)
        {
            self.ping_sent_ms = Some(now_ms);
            frame::put_ping(false, KEEPALIVE_PING, &mut self.out);
        }
        Ok(())
    }

    /// Our keepalive, as long as it applies: servers punish clients that ping without streams.
    fn keepalive(&self) -> Option<Keepalive> {
        self.config.keepalive.filter(|_| !self.is_client || self.streams.open_count() > 0)
    }

    /// When [`Conn::tick`] has something to do, in milliseconds; `None` if never.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        if self.failed.is_some() {
            return None;
        }
        if !self.settings_received {
            return Some(self.started_ms.unwrap_or(0).saturating_add(self.config.handshake_ms_max));
        }
        let drain = match self.drain {
            Drain::Announced { since_ms } => {
                Some(since_ms.saturating_add(limits::DRAIN_PING_MS_MAX))
            }
            Drain::No | Drain::Final => None,
        };
        let keepalive = self.keepalive().map(|keepalive| match self.ping_sent_ms {
            Some(sent_ms) if self.last_read_ms <= sent_ms => {
                sent_ms.saturating_add(keepalive.timeout_ms)
            }
            _ => self.last_read_ms.saturating_add(keepalive.interval_ms),
        });
        match (drain, keepalive) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Sends a PING; its answer comes to `Handler::pong`.
    pub fn ping(&mut self, payload: [u8; 8]) {
        frame::put_ping(false, payload, &mut self.out);
    }

    /// Begins a graceful end: streams already on their way are still served. As a client: opens no
    /// further stream.
    pub fn graceful_goaway(&mut self) {
        if self.drain != Drain::No || self.failed.is_some() {
            return;
        }
        if self.is_client || !self.settings_received {
            self.finish_drain();
            return;
        }
        frame::put_goaway(WINDOW_BYTES_MAX, ErrorCode::NO_ERROR, b"", &mut self.out);
        frame::put_ping(false, DRAIN_PING, &mut self.out);
        self.drain = Drain::Announced { since_ms: self.now_ms };
    }

    pub(super) fn finish_drain(&mut self) {
        self.drain = Drain::Final;
        let last = self.last_peer_stream;
        frame::put_goaway(last, ErrorCode::NO_ERROR, b"", &mut self.out);
    }

    /// Whether a graceful end is complete: nothing is open, nothing is left to send.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        let ending = self.drain == Drain::Final || self.peer_goaway.is_some();
        ending && self.streams.open_count() == 0 && self.unsent_bytes() == 0
    }

    /// Holds a client's ping against the policy, as grpc-go does: sending data or headers forgives,
    /// three pings in haste end the connection.
    pub(super) fn judge_ping(&mut self) -> Result<(), ConnError> {
        let Some(policy) = self.config.ping_policy else { return Ok(()) };
        let previous_ms = self.last_peer_ping_ms.replace(self.now_ms);
        if std::mem::take(&mut self.sent_since_ping) {
            self.ping_strikes = 0;
            return Ok(());
        }
        let interval_ms = if self.streams.open_count() == 0 && !policy.without_streams {
            PING_WITHOUT_STREAMS_MS_MIN
        } else {
            policy.interval_ms_min
        };
        if previous_ms.is_some_and(|previous| previous.saturating_add(interval_ms) > self.now_ms) {
            self.ping_strikes += 1;
        }
        if self.ping_strikes > limits::PING_STRIKES_MAX {
            return Err(ConnError::TooManyPings);
        }
        Ok(())
    }
}
