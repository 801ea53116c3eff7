//! The Watch service: streams in, the hub's responses out.
//!
//! The hub decides; this file connects it with the published view, the pins, the way out and the
//! metrics. It must never hold events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use etcore_proto::decode::decode;
use etcore_proto::error::{EtcdError, Status};
use etcore_proto::grpc::RequestMeta;
use etcore_proto::pb::etcdserverpb as pb;
use pb::watch_request::RequestUnion;

use super::call::{Outcome, Refusal, malformed_message};
use super::{Cx, LEADERLESS_ELECTIONS, Services};
use crate::clock::millis;
use crate::config::Config;
use crate::limits;
use crate::metrics::Metrics;
use crate::replies::{CallId, Caller, ConnId};
use crate::watch::{Counts, Hub, HubConfig, Turn};
use crate::work::Job;

/// etcd's floor for the interval of notifications.
const PROGRESS_MS_MIN: u64 = 100;
/// etcd's default for it.
const PROGRESS_MS_DEFAULT: u64 = 600_000;

/// The hub and what is remembered of it.
pub(super) struct WatchStreams {
    hub: Hub,
    /// As last added to the metrics.
    counts: Counts,
    /// Since when there has been no leader.
    leaderless_ms: Option<u64>,
    /// Who has opened the streams whose clients say who they are.
    callers: BTreeMap<CallId, Arc<Caller>>,
}

impl WatchStreams {
    pub(super) fn new(config: &Config, seed: u64) -> Self {
        let asked_ms = millis(config.watch_progress_interval);
        let progress_interval_ms =
            if asked_ms == 0 { PROGRESS_MS_DEFAULT } else { asked_ms.max(PROGRESS_MS_MIN) };
        let fragment_bytes = config.max_request_bytes + limits::GRPC_OVERHEAD_BYTES;
        let turn_deliveries = limits::WATCH_TURN_DELIVERIES;
        let config = HubConfig { progress_interval_ms, fragment_bytes, turn_deliveries, seed };
        let hub = Hub::new(config);
        Self { hub, counts: Counts::default(), leaderless_ms: None, callers: BTreeMap::new() }
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

    pub(super) fn writable(&mut self, call: CallId) {
        self.hub.writable(call);
    }

    /// The client has gone away from a stream, or it was ended.
    pub(super) fn closed(&mut self, call: CallId) {
        self.hub.closed(call);
        self.callers.remove(&call);
    }

    pub(super) fn connection_closed(&mut self, conn: ConnId) {
        self.hub.connection_closed(conn);
        if !self.callers.is_empty() {
            self.callers.retain(|call, _| call.conn != conn);
        }
    }

    /// Some page has arrived.
    pub(super) fn pages_arrived(&mut self) {
        self.hub.pages_arrived();
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.hub.is_empty()
    }
}

impl Services {
    /// True if a turn would send something.
    pub(super) fn has_watch_input(&self) -> bool {
        !self.watch.hub.is_empty()
            && self.watch.hub.has_work(self.shared.view.load().store.revision)
    }

    /// The oldest revision that watchers still need is held against compaction.
    fn hold_watched(&mut self) {
        self.watch.hub.hold(self.reads.pins(), self.reads.store(), self.now_ms);
    }
}

impl Cx<'_> {
    /// A Watch stream was opened.
    pub(super) fn open_watch(&mut self, call: CallId, meta: &RequestMeta, caller: &Arc<Caller>) {
        let stopped = self.api.draining.then_some(EtcdError::Stopped);
        let refusal = self.api.stream_gate(meta).err().or(stopped).map(Status::from);
        if let Some(status) = refusal {
            return self.out.fail(call, &status);
        }
        if !caller.is_nobody() {
            self.api.watch.callers.insert(call, caller.clone());
        }
        let first = self.api.watch.hub.is_empty();
        self.api.watch.hub.open(call, meta.has_leader, self.api.now_ms);
        if first {
            // The view that its first watchers start from comes after the pin.
            self.api.hold_watched();
            self.api.shared.watching[self.api.index].store(true, Ordering::Relaxed);
        }
    }

    /// A message came on a stream that was opened as a watch; the hub may have ended it.
    pub(super) fn watch_message(&mut self, call: CallId, message: Bytes) {
        let request = match decode::<pb::WatchRequest>(message.clone()) {
            Ok(request) => request,
            Err(error) => {
                self.api.watch.closed(call);
                return self.out.fail(call, &malformed_message(error));
            }
        };
        // What was acknowledged through another front is in the newest view.
        self.api.begin_turn(self.api.now_ms);
        if self.api.auth().is_enabled()
            && let Some(RequestUnion::CreateRequest(create)) = &request.request_union
        {
            match self.admit_create(call, create, message) {
                Ok(()) => {}
                Err(Refusal::Status(status)) => {
                    let Status { code, message } = status;
                    let reason = format!("rpc error: code = {code:?} desc = {message}");
                    return self.with_hub(|hub, turn| hub.refuse(turn, call, &reason));
                }
                Err(_) => return,
            }
        }
        let began = self.api.shared.clock.elapsed();
        self.with_hub(|hub, turn| hub.message(turn, call, request));
        let took = self.api.shared.clock.elapsed().saturating_sub(began);
        self.api.shared.metrics.watch_loops.answered(took);
    }

    /// Whether a watcher may be made by the caller of its stream. What is revoked later does not
    /// end it, as in etcd.
    fn admit_create(
        &mut self,
        id: CallId,
        create: &pb::WatchCreateRequest,
        message: Bytes,
    ) -> Outcome {
        if create.start_revision < 0 {
            // It is refused for that.
            return Ok(());
        }
        let caller = self.api.watch.callers.get(&id).cloned().unwrap_or_default();
        self.api.put_off_message(id, &caller, message, |cx, call, message| {
            cx.watch_message(call, message);
        })?;
        let key: &[u8] = if create.key.is_empty() { b"\0" } else { &create.key };
        let admitted = self.api.admit_watch(&caller, key, &create.range_end);
        Ok(admitted.map_err(|error| match error {
            EtcdError::InvalidAuthToken | EtcdError::AuthOldRevision | EtcdError::UserEmpty => {
                error
            }
            _ => EtcdError::PermissionDenied,
        })?)
    }

    /// Sends what the view of this turn adds, and goes on with those who are behind.
    pub(super) fn run_watches(&mut self) {
        let api = &mut *self.api;
        if api.watch.hub.is_empty() {
            if api.watch.counts.streams > 0 {
                api.hold_watched();
                api.shared.watching[api.index].store(false, Ordering::Relaxed);
                api.watch.report(&api.shared.metrics);
            }
            return;
        }
        api.work.note(Job::Watches);
        let began = api.shared.clock.elapsed();
        self.with_hub(Hub::run);
        let api = &mut *self.api;
        let events = api.watch.hub.counts().events - api.watch.counts.events;
        if events > 0 {
            let took = api.shared.clock.elapsed().saturating_sub(began);
            api.shared.metrics.watch_loops.sent(events, took);
        }
        api.reads.fetch_wanted();
        api.hold_watched();
        api.watch.report(&api.shared.metrics);
    }

    /// Notifications that are due, and streams that wait for a leader in vain.
    pub(super) fn tick_watches(&mut self) {
        if !self.api.watch.hub.is_empty() {
            let began = self.api.shared.clock.elapsed();
            if self.with_hub(Hub::tick) {
                let took = self.api.shared.clock.elapsed().saturating_sub(began);
                self.api.shared.metrics.watch_loops.told_progress(took);
            }
        }
        if self.api.shared.has_leader() {
            self.api.watch.leaderless_ms = None;
            return;
        }
        let now_ms = self.api.now_ms;
        let since_ms = *self.api.watch.leaderless_ms.get_or_insert(now_ms);
        let patience_ms = LEADERLESS_ELECTIONS * millis(self.api.shared.config.election);
        if now_ms >= since_ms + patience_ms {
            self.with_hub(|hub, turn| hub.end_leaderless(turn.out));
        }
    }

    /// The member stops: clients go to another one.
    pub(super) fn stop_watches(&mut self) {
        self.with_hub(|hub, turn| hub.end_all(turn.out, EtcdError::Stopped));
    }

    fn with_hub<T>(&mut self, handle: impl FnOnce(&mut Hub, &mut Turn<'_>) -> T) -> T {
        let api = &mut *self.api;
        let (view, pages, _) = api.reads.evaluation();
        let mut turn = Turn {
            view: &view.store,
            pages,
            out: &mut *self.out,
            header: api.shared.header(0),
            now_ms: api.now_ms,
        };
        handle(&mut api.watch.hub, &mut turn)
    }
}
