//! TLS handshakes of a front: whose step is next, how long each has taken, and what is told of
//! those that fail.
//!
//! Part of the wire. A step may cost a signature and the check of a chain, so a round takes few of
//! them, and what raft and other clients wait for goes on in between.

use std::collections::VecDeque;
use std::sync::Arc;

use etcore_proto::tls::x509::Facts;

use super::conn::Conn;
use super::wire::Wire;
use crate::limits;
use crate::replies::{Caller, ConnId};
use crate::tls::{Rejected, RejectedLog, Side};

/// Why one is given up for another.
const TOO_MANY: &str = "too many handshakes are under way";
/// Handshakes that are looked at to find one that waits for its client.
const LOOKED_AT: usize = 64;

/// See the module text.
pub(super) struct Handshakes {
    /// Connections whose client has sent something, oldest first.
    ready: VecDeque<ConnId>,
    /// Connections in the order of their coming, some of which are over.
    begun: VecDeque<ConnId>,
    under_way: usize,
    log: RejectedLog,
}

impl Handshakes {
    pub(super) fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            begun: VecDeque::new(),
            under_way: 0,
            log: RejectedLog::new(Side::Client),
        }
    }

    /// Some step waits for its turn.
    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    fn reject(&mut self, conn: &Conn, error: &str, now_ms: u64) {
        let secure = conn.secure.as_ref();
        self.log.note(
            now_ms,
            &Rejected {
                remote: conn.origin.caller.remote,
                server_name: secure.map_or("", |secure| secure.server_name()),
                certificate: secure.and_then(|secure| secure.certificate()),
                error,
            },
        );
    }
}

impl Wire {
    /// A connection begins with a handshake. If there are too many, one of the oldest that wait for
    /// their clients is given up; if all wait for this member, the new one is.
    pub(super) fn handshake_began(&mut self, id: ConnId) {
        let handshakes = &mut self.handshakes;
        handshakes.under_way += 1;
        handshakes.begun.push_back(id);
        if handshakes.under_way <= limits::TLS_HANDSHAKES {
            // Handshakes that are over leave with the next one.
            while let Some(first) = self.handshakes.begun.front().copied()
                && self.handshake(first).is_none()
            {
                self.handshakes.begun.pop_front();
            }
            return;
        }
        for _ in 0..LOOKED_AT {
            let Some(oldest) = self.handshakes.begun.pop_front() else { break };
            match self.handshake(oldest).map(|secure| secure.is_listed) {
                None => {}
                // It is this member that is late.
                Some(true) => self.handshakes.begun.push_back(oldest),
                Some(false) => return self.give_up(oldest, TOO_MANY),
            }
        }
        self.give_up(id, TOO_MANY);
    }

    fn handshake(&mut self, id: ConnId) -> Option<&mut super::secure::Secure> {
        self.conn(id)?.secure.as_deref_mut().filter(|secure| secure.is_counted)
    }

    fn give_up(&mut self, id: ConnId, error: &str) {
        let now_ms = self.now_ms;
        self.handshake_ended(id, Some(error), now_ms);
        if let Some(conn) = self.conn(id) {
            conn.gone = true;
        }
        self.mark_dirty(id);
    }

    /// A handshake is over, well or not.
    pub(super) fn handshake_ended(&mut self, id: ConnId, error: Option<&str>, now_ms: u64) {
        let Some(secure) = self.handshake(id) else { return };
        secure.is_counted = false;
        self.handshakes.under_way -= 1;
        if let Some(error) = error
            && let Some(conn) = self.conns.get(id.slot as usize).and_then(Option::as_ref)
        {
            self.handshakes.reject(conn, error, now_ms);
        }
    }

    /// Gives up a handshake that takes too long.
    pub(super) fn end_late_handshake(&mut self, id: ConnId) {
        let now_ms = self.now_ms;
        if self.handshake(id).is_some_and(|secure| secure.is_late(now_ms)) {
            self.give_up(id, "i/o timeout");
        }
    }

    /// Keeps bytes of a handshake until it may take a step. False if there is none.
    pub(super) fn keep_for_handshake(&mut self, id: ConnId, bytes: &[u8]) -> bool {
        let Some(secure) = self.handshake(id) else { return false };
        secure.keep(bytes);
        if !std::mem::replace(&mut secure.is_listed, true) {
            self.handshakes.ready.push_back(id);
        }
        if let Some(conn) = self.conn(id) {
            conn.charge();
        }
        true
    }

    /// Lets some handshakes take a step, and says which connections did.
    pub(super) fn take_handshake_steps(&mut self, stepped: &mut Vec<ConnId>) {
        if self.handshakes.ready.is_empty() {
            return;
        }
        let began = self.clock.elapsed();
        for _ in 0..limits::TLS_STEPS_PER_ROUND {
            let Some(id) = self.handshakes.ready.pop_front() else { return };
            self.take_handshake_step(id);
            stepped.push(id);
            if self.clock.elapsed().saturating_sub(began) >= limits::TLS_ROUND_TIME {
                return;
            }
        }
    }

    /// Where clients must have certificates, those name users.
    fn note_common_name(&mut self, id: ConnId) {
        if !self.settings.names_users {
            return;
        }
        let Some(conn) = self.conn(id) else { return };
        let certificate = conn.secure.as_ref().and_then(|secure| secure.certificate());
        let facts = certificate.and_then(|certificate| Facts::parse(certificate));
        let common_name = facts.map(|facts| facts.common_name.into());
        let remote = conn.origin.caller.remote;
        conn.origin.caller = Arc::new(Caller { remote, token: None, common_name });
    }

    fn take_handshake_step(&mut self, id: ConnId) {
        let now_ms = self.now_ms;
        let Some(secure) = self.handshake(id) else { return };
        secure.is_listed = false;
        let bytes = secure.take_kept();
        let mut room = std::mem::take(&mut self.room);
        let now_s = self.clock.unix().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now_s = i64::try_from(now_s.as_secs()).unwrap_or(i64::MAX);
        let mut outcome = Ok(());
        if let Some(conn) = self.conn(id).filter(|conn| !conn.failed && !conn.gone) {
            outcome = conn.shake_hands(&bytes, &mut room, now_ms, now_s);
            conn.failed |= outcome.is_err();
        }
        self.room = room;
        let is_over = self.handshake(id).is_some_and(|secure| !secure.is_handshaking());
        match &outcome {
            Ok(()) if is_over => {
                self.handshake_ended(id, None, now_ms);
                self.note_common_name(id);
            }
            Ok(()) => {}
            Err(error) => self.handshake_ended(id, Some(error), now_ms),
        }
        self.mark_dirty(id);
    }
}
