//! Delivering a batch: each watcher's events in as few responses as its window takes, or a note of
//! where it goes on.
//!
//! Part of the hub, the same for live and catch-up cursors. It must never hold bytes back: what a
//! stream does not take now is read again later.

use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_engine::types::Revision;
use etcore_proto::error::EtcdError;

use super::batch::Batch;
use super::reply::Head;
use super::watchers::{NONE, State};
use super::{Hub, Turn};
use crate::limits;

/// The part of the hub's batch that is still to be delivered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    /// The first revision in it that was not looked at before.
    pub(super) from: Revision,
    /// The first of the touched watchers that has nothing of it.
    next: usize,
}

impl Pending {
    pub(super) fn new(from: Revision) -> Self {
        Self { from, next: 0 }
    }
}

/// Events of one watcher that go into one response.
struct Portion {
    /// The hit behind the last.
    end: u32,
    events: u64,
    len_bytes: usize,
    /// The last event's revision.
    revision: i64,
    /// The first revision is too much to be buffered: the watcher must read it for itself.
    too_much: bool,
}

impl Hub {
    /// Delivers what is left of the batch, as far as the turn's bound allows: an event may be
    /// wanted by any number of watchers.
    pub(super) fn deliver_on(&mut self, turn: &mut Turn<'_>) {
        let Some(mut pending) = self.pending else { return };
        let batch = std::mem::take(&mut self.batch);
        while let Some(slot) = batch.touched.get(pending.next).copied()
            && self.deliveries > 0
        {
            self.deliveries -= 1;
            pending.next += 1;
            // It may be gone, and another in its place, which then has no hits.
            let Some(watcher) = self.watchers.find_mut(slot) else { continue };
            let hit = std::mem::replace(&mut watcher.first_hit, NONE);
            self.deliver_to(turn, &batch, slot, hit);
        }
        self.pending = (pending.next < batch.touched.len()).then_some(pending);
        self.batch = batch;
        if self.pending.is_none() {
            for stream in std::mem::take(&mut self.asked_progress) {
                self.tell_progress(turn, stream);
            }
        }
    }

    fn deliver_to(&mut self, turn: &mut Turn<'_>, batch: &Batch, slot: u32, mut hit: u32) {
        let stream_slot = self.watchers.get(slot).stream;
        while hit != NONE {
            let Some(stream) = self.streams[stream_slot as usize].as_ref() else { return };
            let call = stream.call;
            let capacity =
                if stream.large.is_some() { 0 } else { turn.out.capacity(call).unwrap_or(0) };
            if capacity == 0 {
                return self.park(slot, batch.revision(hit));
            }
            // Like etcd's, a watcher that is up to date is told each revision by itself.
            let joined = self.watchers.get(slot).state != State::Served(0);
            let portion = portion(batch, hit, capacity, joined);
            if portion.too_much {
                return self.send_large(turn, slot, portion.revision);
            }
            if is_on(SeededBug::WatchBatchDropped) && portion.revision % 16 == 0 {
                hit = portion.end;
                continue;
            }
            let mut header = turn.header;
            let newest = turn.view.revision;
            header.revision = self.watchers.told_revision(slot, portion.revision, newest);
            let watcher = self.watchers.get_mut(slot);
            watcher.is_quiet = false;
            self.head.clear();
            Head::new(header, watcher.id).write(&mut self.head);
            let head = &self.head;
            let sent = turn.out.send(call, head.len() + portion.len_bytes, &mut |out| {
                out.extend_from_slice(head);
                let mut at = hit;
                while at != portion.end {
                    out.extend_from_slice(batch.element(at));
                    at = batch.after(at);
                }
            });
            if sent.is_err() {
                self.failed.push(stream_slot);
                return;
            }
            self.events += portion.events;
            hit = portion.end;
        }
    }

    /// Tells a watcher that what it wants was compacted; its id stays taken.
    pub(super) fn cancel_compacted(&mut self, turn: &mut Turn<'_>, slot: u32, compacted: i64) {
        self.detach(slot);
        self.set_state(slot, State::Dead);
        let watcher = self.watchers.get_mut(slot);
        let (id, stream, target) = (watcher.id, watcher.stream, watcher.target);
        watcher.target = NONE;
        self.targets.release(target);
        self.dead += 1;
        // As etcd does: the header of this response has no revision.
        let mut header = turn.header;
        header.revision = 0;
        let head = Head { canceled: true, compact_revision: compacted, ..Head::new(header, id) };
        self.answer(turn, stream, &head);
    }

    /// Ends a stream whose data cannot be read.
    pub(super) fn lose_stream(&mut self, turn: &mut Turn<'_>, slot: u32) {
        if let Some(stream) = self.streams[slot as usize].as_ref() {
            turn.out.fail(stream.call, &EtcdError::Corrupt.into());
            self.failed.push(slot);
        }
    }

    /// Sends a response without events, at once whatever the window, but not into the middle of a
    /// message.
    pub(super) fn answer(&mut self, turn: &mut Turn<'_>, slot: u32, head: &Head<'_>) {
        let mut message = Vec::new();
        head.write(&mut message);
        let Some(stream) = self.streams[slot as usize].as_mut() else { return };
        if stream.large.is_none() {
            self.send_answer(turn, slot, &message);
        } else if stream.held.len() < limits::WATCH_HELD_ANSWERS_MAX {
            stream.held.push_back(message);
            if stream.held.len() >= limits::WATCH_HELD_ANSWERS {
                self.shut(turn, slot);
            }
        } else {
            turn.out.fail(stream.call, &EtcdError::TooManyRequests.into());
            self.failed.push(slot);
        }
    }

    pub(super) fn send_answer(&mut self, turn: &mut Turn<'_>, slot: u32, message: &[u8]) {
        let Some(stream) = self.streams[slot as usize].as_ref() else { return };
        let call = stream.call;
        let sent = turn.out.send(call, message.len(), &mut |out| {
            out.extend_from_slice(message);
        });
        if sent.is_err() {
            self.failed.push(slot);
        } else if turn.out.capacity(call).unwrap_or(0) == 0 {
            self.shut(turn, slot);
        }
    }

    /// The client asks for more than it reads: it may go on once there is room for answers.
    fn shut(&mut self, turn: &mut Turn<'_>, slot: u32) {
        if let Some(stream) = self.stream(slot)
            && !stream.is_shut
        {
            stream.is_shut = true;
            turn.out.hold(stream.call, true);
        }
    }
}

/// Whole revisions from `hit` on, until the capacity is used up: the one that exceeds it is the
/// last, unless that is too much to be buffered. Only the first if they are not to be joined.
fn portion(batch: &Batch, hit: u32, capacity: usize, joined: bool) -> Portion {
    let mut taken = Portion { end: hit, events: 0, len_bytes: 0, revision: 0, too_much: false };
    while taken.end != NONE && taken.len_bytes < capacity {
        let revision = batch.revision(taken.end);
        let (mut at, mut events, mut len_bytes) = (taken.end, 0, 0);
        while at != NONE && batch.revision(at) == revision {
            len_bytes += batch.element(at).len();
            events += 1;
            at = batch.after(at);
        }
        let too_much =
            len_bytes > limits::WATCH_BUFFERED_BYTES && taken.len_bytes + len_bytes > capacity;
        if too_much {
            if taken.events == 0 {
                (taken.revision, taken.too_much) = (revision, true);
            }
            break;
        }
        taken = Portion {
            end: at,
            events: taken.events + events,
            len_bytes: taken.len_bytes + len_bytes,
            revision,
            too_much: false,
        };
        if !joined {
            break;
        }
    }
    taken
}
