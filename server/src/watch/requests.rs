//! What clients ask for on a stream: watchers, their end, a notification of progress.
//!
//! Part of the hub; etcd's behaviour throughout (`server/etcdserver/api/v3rpc/watch.go`,
//! `server/storage/mvcc/watcher.go`).

use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;

use super::reply::Head;
use super::targets::Bound;
use super::watchers::{NONE, State, Wants, Watcher};
use super::{Hub, Turn, key_of};
use crate::limits;
use crate::replies::CallId;

/// The id of responses that concern no watcher, or all.
const NO_ID: i64 = -1;
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

impl Hub {
    /// A request came on a stream.
    pub fn message(&mut self, turn: &mut Turn<'_>, call: CallId, request: pb::WatchRequest) {
        let Some(slot) = self.by_place.get(&key_of(call)).copied() else { return };
        self.observe(turn.view);
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(turn, slot, &request),
            Some(RequestUnion::CancelRequest(request)) => {
                self.cancel(turn, slot, request.watch_id);
            }
            Some(RequestUnion::ProgressRequest(_)) => self.tell_progress(turn, slot),
            None => {}
        }
        self.drop_failed();
    }

    /// Answers a request for a watcher that may not be made, for this reason.
    pub fn refuse(&mut self, turn: &mut Turn<'_>, call: CallId, reason: &str) {
        let Some(slot) = self.by_place.get(&key_of(call)).copied() else { return };
        self.observe(turn.view);
        let mut header = turn.header;
        header.revision = turn.view.revision.0;
        let head = Head {
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..Head::new(header, NO_ID)
        };
        self.answer(turn, slot, &head);
        self.drop_failed();
    }

    /// Lets time pass: sends the notifications that are due. True if there were any.
    pub fn tick(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.pending.is_some() {
            // Some watchers have what others lack: the next tick tells of both.
            return false;
        }
        let mut any = false;
        while let Some((due_ms, slot)) = self.progress.first().copied() {
            if due_ms > turn.now_ms {
                break;
            }
            self.progress.remove(&(due_ms, slot));
            let Some(stream) = self.stream(slot) else { continue };
            let next_ms = next_due(due_ms, stream.progress_interval_ms, turn.now_ms);
            stream.progress_due_ms = Some(next_ms);
            self.progress.insert((next_ms, slot));
            self.notify(turn, slot);
            any = true;
        }
        self.drop_failed();
        any
    }

    fn create(&mut self, turn: &mut Turn<'_>, slot: u32, request: &pb::WatchCreateRequest) {
        let mut header = turn.header;
        header.revision = turn.view.revision.0;
        let refusal = |reason| Head {
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..Head::new(header, NO_ID)
        };
        if request.start_revision < 0 {
            return self.answer(turn, slot, &refusal(EtcdError::Compacted.text()));
        }
        let key: &[u8] = if request.key.is_empty() { b"\0" } else { &request.key };
        let bound = match &request.range_end[..] {
            b"" => Bound::Key,
            b"\0" => Bound::Range(None),
            end if key >= end => return self.answer(turn, slot, &refusal(EMPTY_RANGE)),
            end => Bound::Range(Some(end.into())),
        };
        let Some(stream) = self.stream(slot) else { return };
        if request.watch_id != 0 && stream.watchers.contains_key(&request.watch_id) {
            return self.answer(turn, slot, &refusal(DUPLICATE_ID));
        }
        if stream.watchers.len() >= limits::STREAM_WATCHERS
            || self.watchers.len() >= limits::WATCHERS
            || self.targets.bytes() + request.key.len() + request.range_end.len()
                > limits::WATCH_KEY_BYTES
        {
            return self.answer(turn, slot, &refusal(EtcdError::TooManyRequests.text()));
        }
        let Some(id) = self.enroll(turn, slot, request, key, bound) else { return };
        let created = Head { created: true, ..Head::new(header, id) };
        self.answer(turn, slot, &created);
        let Some(watcher) = self.stream(slot).and_then(|stream| stream.watchers.get(&id).copied())
        else {
            return;
        };
        let compacted = turn.view.compact_revision.0;
        if request.start_revision > 0 && request.start_revision < compacted {
            self.cancel_compacted(turn, watcher, compacted);
        }
    }

    /// Makes the watcher; returns its id.
    fn enroll(
        &mut self,
        turn: &Turn<'_>,
        slot: u32,
        request: &pb::WatchCreateRequest,
        key: &[u8],
        bound: Bound,
    ) -> Option<i64> {
        let filters = |kind: FilterType| request.filters.contains(&(kind as i32));
        let wants = Wants {
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress: request.progress_notify,
            no_put: filters(FilterType::Noput),
            no_delete: filters(FilterType::Nodelete),
        };
        let stream = self.stream(slot)?;
        let id = if request.watch_id == 0 {
            while stream.watchers.contains_key(&stream.next_id) {
                stream.next_id += 1;
            }
            stream.next_id += 1;
            stream.next_id - 1
        } else {
            request.watch_id
        };
        let mut due = None;
        if wants.progress && stream.progress_due_ms.is_none() {
            let (opened_ms, interval_ms) = (stream.opened_ms, stream.progress_interval_ms);
            due = Some(next_due(opened_ms + interval_ms, interval_ms, turn.now_ms));
            stream.progress_due_ms = due;
        }
        self.progress.extend(due.map(|due_ms| (due_ms, slot)));
        let start = request.start_revision;
        let next = if start == 0 { turn.view.revision.0 + 1 } else { start };
        let watcher = self.watchers.insert(Watcher {
            id,
            start,
            next,
            stream: slot,
            target: self.targets.acquire(key, bound),
            state: State::Waiting,
            wants,
            has_kept_up: false,
            is_quiet: true,
            before: NONE,
            after: NONE,
            left: NONE,
            right: NONE,
            first_hit: NONE,
            last_hit: NONE,
        });
        let stream = self.stream(slot)?;
        stream.behind += 1;
        if start > turn.view.revision.0 {
            stream.future.insert((start, id));
        }
        stream.watchers.insert(id, watcher);
        self.settle(watcher);
        Some(id)
    }

    fn cancel(&mut self, turn: &mut Turn<'_>, slot: u32, id: i64) {
        let Some(watcher) = self.stream(slot).and_then(|stream| stream.watchers.remove(&id)) else {
            return;
        };
        let start = self.watchers.get(watcher).start;
        let is_live = self.watchers.get(watcher).state == State::Served(0);
        if let Some(stream) = self.stream(slot) {
            stream.future.remove(&(start, id));
            stream.behind -= usize::from(!is_live);
        }
        self.remove_watcher(watcher);
        let mut header = turn.header;
        header.revision = turn.view.revision.0;
        self.answer(turn, slot, &Head { canceled: true, ..Head::new(header, id) });
    }

    /// Answers a request for progress: once for all watchers of the stream if they have everything,
    /// else not at all.
    pub(super) fn tell_progress(&mut self, turn: &mut Turn<'_>, slot: u32) {
        if self.pending.is_some() {
            if !self.asked_progress.contains(&slot) {
                self.asked_progress.push(slot);
            }
            return;
        }
        let revision = self.live_revision();
        let Some(stream) = self.stream(slot) else { return };
        while stream.future.first().is_some_and(|(start, _)| *start <= revision) {
            stream.future.pop_first();
        }
        if stream.watchers.is_empty() || stream.behind > 0 || !stream.future.is_empty() {
            return;
        }
        self.send_progress(turn, slot, NO_ID, revision);
    }

    /// Notifies the watchers of a stream that want it and had no event since the last time.
    fn notify(&mut self, turn: &mut Turn<'_>, slot: u32) {
        let revision = self.live_revision();
        let Some(stream) = self.streams[slot as usize].as_ref() else { return };
        let wanting: Vec<u32> = stream
            .watchers
            .values()
            .copied()
            .filter(|slot| self.watchers.get(*slot).wants.progress)
            .collect();
        for watcher_slot in wanting {
            let told = self.is_told(watcher_slot, revision);
            let watcher = self.watchers.get_mut(watcher_slot);
            let (quiet, id) = (std::mem::replace(&mut watcher.is_quiet, true), watcher.id);
            if quiet && told {
                self.send_progress(turn, slot, id, revision);
            }
        }
    }

    /// True if the watcher was sent everything up to `revision` and has begun by then.
    fn is_told(&self, slot: u32, revision: i64) -> bool {
        let watcher = self.watchers.get(slot);
        watcher.state == State::Served(0) && watcher.start <= revision
    }

    /// What tells nothing new is not worth a buffer: it is left out if the stream has no room.
    fn send_progress(&mut self, turn: &mut Turn<'_>, slot: u32, id: i64, revision: i64) {
        let Some(stream) = self.streams[slot as usize].as_ref() else { return };
        if stream.large.is_some() || turn.out.capacity(stream.call).unwrap_or(0) == 0 {
            return;
        }
        let mut header = turn.header;
        header.revision = revision;
        self.answer(turn, slot, &Head::new(header, id));
    }
}

/// The first time after `now_ms` on the beat of a stream's notifications.
fn next_due(due_ms: u64, interval_ms: u64, now_ms: u64) -> u64 {
    let missed = now_ms.saturating_sub(due_ms) / interval_ms.max(1);
    let due_ms = due_ms + missed * interval_ms;
    if due_ms > now_ms { due_ms } else { due_ms + interval_ms }
}
