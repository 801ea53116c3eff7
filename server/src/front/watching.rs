//! The front's side of the Watch service: streams in, the hub's responses out.
//!
//! The hub decides; this file connects it with the connections, the published view, the pins and
//! the metrics. It must never hold events.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use etcore_proto::decode::decode;
use etcore_proto::error::{EtcdError, Status};
use etcore_proto::grpc::{RequestMeta, StreamId};
use etcore_proto::pb::etcdserverpb as pb;

use super::Front;
use super::calls::malformed_message;
use super::conn::Conn;
use super::tasks::To;
use crate::auth;
use crate::config::Config;
use crate::driver::SocketId;
use crate::limits;
use crate::metrics::Metrics;
use crate::watch::{Counts, Gone, Hub, HubConfig, Outlet, Place, Turn};
use crate::work::Job;

/// Election timeouts without a leader after which streams that asked for one are ended (etcd:
/// maxNoLeaderCnt).
const LEADERLESS_ELECTIONS: u64 = 3;
/// etcd's floor for the interval of notifications.
const PROGRESS_MS_MIN: u64 = 100;
/// etcd's default for it.
const PROGRESS_MS_DEFAULT: u64 = 600_000;

/// The hub and what the front remembers of it.
pub(super) struct Watching {
    pub(super) hub: Hub,
    /// As last added to the metrics.
    counts: Counts,
    /// Since when there has been no leader.
    leaderless_ms: Option<u64>,
}

impl Watching {
    pub(super) fn new(config: &Config, seed: u64) -> Self {
        let asked_ms = super::millis(config.watch_progress_interval);
        let progress_interval_ms =
            if asked_ms == 0 { PROGRESS_MS_DEFAULT } else { asked_ms.max(PROGRESS_MS_MIN) };
        let fragment_bytes = config.max_request_bytes + limits::GRPC_OVERHEAD_BYTES;
        let turn_deliveries = limits::WATCH_TURN_DELIVERIES;
        let config = HubConfig { progress_interval_ms, fragment_bytes, turn_deliveries, seed };
        let hub = Hub::new(config);
        Self { hub, counts: Counts::default(), leaderless_ms: None }
    }

    /// Adds what has changed to the metrics, which all fronts share.
    fn report(&mut self, metrics: &Metrics) {
        let (old, new) = (self.counts, self.hub.counts());
        if old == new {
            return;
        }
        self.counts = new;
        for (gauge, old, new) in [
            (&metrics.watch_streams, old.streams, new.streams),
            (&metrics.watchers, old.watchers, new.watchers),
            (&metrics.slow_watchers, old.slow, new.slow),
        ] {
            if new > old {
                gauge.inc_by(new - old);
            } else {
                gauge.dec_by(old - new);
            }
        }
        metrics.watch_events.inc_by(new.events - old.events);
    }
}

/// The connections as the hub sees them.
struct Way<'a> {
    conns: &'a mut [Option<Conn>],
    dirty: &'a mut Vec<SocketId>,
}

impl Way<'_> {
    fn conn(&mut self, place: Place) -> Result<&mut Conn, Gone> {
        let conn = self.conns.get_mut(place.socket.slot as usize).and_then(Option::as_mut);
        conn.filter(|conn| conn.socket == place.socket && !conn.gone).ok_or(Gone)
    }

    fn mark(&mut self, place: Place) {
        let socket = place.socket;
        let Ok(conn) = self.conn(place) else { return };
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(socket);
        }
    }
}

impl Outlet for Way<'_> {
    fn capacity(&mut self, place: Place) -> usize {
        let server = self.conn(place).ok().and_then(Conn::grpc);
        server.map_or(0, |server| server.capacity(place.stream))
    }

    fn send(
        &mut self,
        place: Place,
        length_bytes: usize,
        write: &mut dyn FnMut(&mut Vec<u8>),
    ) -> Result<(), Gone> {
        self.mark(place);
        let server = self.conn(place)?.grpc().ok_or(Gone)?;
        let sent = server.send_message_with(place.stream, length_bytes, |out| write(out));
        sent.map(drop).map_err(|_| Gone)
    }

    fn start(&mut self, place: Place, length_bytes: usize) -> Result<(), Gone> {
        self.mark(place);
        let server = self.conn(place)?.grpc().ok_or(Gone)?;
        server.start_message(place.stream, length_bytes).map_err(|_| Gone)
    }

    fn write(&mut self, place: Place, piece: &[u8]) -> Result<(), Gone> {
        self.mark(place);
        let server = self.conn(place)?.grpc().ok_or(Gone)?;
        server.write(place.stream, piece).map_err(|_| Gone)
    }

    fn hold(&mut self, place: Place, held: bool) {
        self.mark(place);
        if let Some(server) = self.conn(place).ok().and_then(Conn::grpc) {
            server.hold(place.stream, held);
        }
    }

    fn end(&mut self, place: Place, status: &Status) {
        self.mark(place);
        let Some(server) = self.conn(place).ok().and_then(Conn::grpc) else { return };
        if server.message_is_open(place.stream) {
            server.abort(place.stream);
        } else {
            // An error means that the client is gone, which the transport has noticed.
            let _ = server.reply_error(place.stream, status.code, &status.message);
        }
    }
}

impl Front {
    /// A Watch stream was opened.
    pub(super) fn open_watch(&mut self, socket: SocketId, stream: StreamId, meta: &RequestMeta) {
        let stopped = self.draining.then_some(EtcdError::Stopped);
        let refusal = self.refused_by_head(meta).or(stopped).map(Status::from);
        let refusal = refusal.or_else(|| self.view.auth.is_enabled().then(auth::not_served));
        if let Some(status) = refusal {
            return self.reply_status(socket, To::Call(stream), &status);
        }
        let place = Place { socket, stream };
        let first = self.watching.hub.is_empty();
        self.watching.hub.open(place, meta.has_leader, self.now_ms);
        if first {
            // The view that its first watchers start from comes after the pin.
            self.hold_watched();
            self.shared.watching[self.index].store(true, Ordering::Relaxed);
        }
    }

    /// A message came on a stream that was opened as a watch; the hub may have ended it.
    pub(super) fn watch_message(&mut self, socket: SocketId, stream: StreamId, message: Bytes) {
        let place = Place { socket, stream };
        let request = match decode::<pb::WatchRequest>(message) {
            Ok(request) => request,
            Err(error) => {
                self.watching.hub.closed(place);
                let status = malformed_message(error);
                return self.reply_status(socket, To::Call(stream), &status);
            }
        };
        // What was acknowledged through another front is in the newest view.
        self.begin_turn(self.now_ms);
        if self.view.auth.is_enabled() {
            self.watching.hub.closed(place);
            return self.reply_status(socket, To::Call(stream), &auth::not_served());
        }
        self.with_hub(|hub, turn| hub.message(turn, place, request));
    }

    /// Sends what the view of this turn adds, and goes on with those who are behind.
    pub(super) fn run_watches(&mut self) {
        if self.watching.hub.is_empty() {
            if self.watching.counts.streams > 0 {
                self.hold_watched();
                self.shared.watching[self.index].store(false, Ordering::Relaxed);
                self.watching.report(&self.shared.metrics);
            }
            return;
        }
        self.work.note(Job::Watches);
        self.with_hub(Hub::run);
        self.pages.fetch_wanted();
        self.hold_watched();
        self.watching.report(&self.shared.metrics);
    }

    /// True if a turn would send something.
    pub(super) fn has_watch_input(&self) -> bool {
        !self.watching.hub.is_empty()
            && self.watching.hub.has_work(self.shared.view.load().store.revision)
    }

    /// Notifications that are due, and streams that wait for a leader in vain.
    pub(super) fn tick_watches(&mut self) {
        if !self.watching.hub.is_empty() {
            self.with_hub(Hub::tick);
        }
        if self.shared.has_leader() {
            self.watching.leaderless_ms = None;
            return;
        }
        let since_ms = *self.watching.leaderless_ms.get_or_insert(self.now_ms);
        let patience_ms = LEADERLESS_ELECTIONS * super::millis(self.shared.config.election);
        if self.now_ms >= since_ms + patience_ms {
            self.with_hub(|hub, turn| hub.end_leaderless(turn.outlet));
        }
    }

    /// The member stops: clients go to another one.
    pub(super) fn stop_watches(&mut self) {
        self.with_hub(|hub, turn| hub.end_all(turn.outlet, EtcdError::Stopped));
    }

    fn hold_watched(&mut self) {
        let view = self.view.clone();
        self.watching.hub.hold(&self.pins, &view.store, self.now_ms);
    }

    fn with_hub(&mut self, call: impl FnOnce(&mut Hub, &mut Turn<'_>)) {
        let view = self.view.clone();
        let mut way = Way { conns: &mut self.conns, dirty: &mut self.dirty };
        let mut turn = Turn {
            view: &view.store,
            pages: self.pages.source(),
            outlet: &mut way,
            header: self.shared.header(0),
            now_ms: self.now_ms,
        };
        call(&mut self.watching.hub, &mut turn);
    }
}
