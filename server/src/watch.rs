//! The watch hub: a front's watchers, and what each of them has been told.
//!
//! A front owns one and gives it the view of its turn; it reads the event log from there and sends
//! through [`Streams`]. No queue of events exists anywhere: a watcher is a position in the log.
//! Watchers that are up to date share one *live* cursor, which reads what a newly published view
//! adds once for all of them. One that starts in the past, or whose peer takes nothing for a while,
//! has a position of its own; catch-up cursors, of which there are a few, collect such watchers and
//! bring them to the live one. Both kinds of cursor run the same code (`batch`, `deliver`).
//!
//! A slow reader therefore costs a few bytes here and a window in the transport, and nobody waits
//! for it. The events of a revision stay together in one response, unless the client asked for
//! fragments; one too large to hold is read again for each watcher, piece by piece (`large`).
//!
//! No I/O, no clock, no randomness but a seed: the same calls give the same bytes. Reading order:
//! `watchers`, `targets`, `batch`, `cursors`, `deliver`, `large`, `requests`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use etcore_engine::page::PageSource;
use etcore_engine::pins::{RevisionPin, RevisionPins};
use etcore_engine::types::{RevKey, Revision};
use etcore_engine::view::View;
use etcore_proto::error::{EtcdError, Status};

use crate::limits;
use crate::replies::{CallId, ConnId, Streams};
use crate::wire::Header;

mod batch;
mod cursors;
mod deliver;
mod intervals;
mod large;
mod reply;
mod requests;
mod targets;
#[cfg(test)]
mod tests;
mod watchers;

use batch::Batch;
use cursors::Cursor;
use deliver::Pending;
use large::LargeRevision;
use targets::Targets;
use watchers::{List, State, Watchers};

/// What the operator may set.
#[derive(Debug, Clone, Copy)]
pub struct HubConfig {
    /// `--watch-progress-notify-interval`; each stream adds up to a tenth.
    pub progress_interval_ms: u64,
    /// A response with fragments is split before it reaches this.
    pub fragment_bytes: usize,
    /// Watchers that are told of events in one turn ([`limits::WATCH_TURN_DELIVERIES`]).
    pub turn_deliveries: usize,
    /// Seeds the jitter and the search tree's shape.
    pub seed: u64,
}

/// What one call works with.
pub struct Turn<'a> {
    /// The newest view of this turn.
    pub view: &'a View,
    /// Its pages.
    pub pages: &'a mut dyn PageSource,
    /// The way out.
    pub out: &'a mut dyn Streams,
    /// The header of responses; the hub sets the revision.
    pub header: Header,
    /// The shard's time.
    pub now_ms: u64,
}

/// Numbers for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Open streams.
    pub streams: u64,
    /// Watchers, those cancelled by compaction included until their client lets go of them.
    pub watchers: u64,
    /// Watchers that are behind.
    pub slow: u64,
    /// Events sent so far.
    pub events: u64,
}

/// A stream: its watchers by id, and what keeps it from being served.
struct Stream {
    call: CallId,
    watchers: BTreeMap<i64, u32>,
    next_id: i64,
    /// Watchers that wait for room.
    parked: List,
    /// Room came; in the hub's queue.
    unparking: bool,
    /// A large revision on its way.
    large: Option<Box<LargeRevision>>,
    /// Answers to requests that wait for its end.
    held: VecDeque<Vec<u8>>,
    /// Its client may send no more requests until answers have left.
    is_shut: bool,
    /// Watchers that were not sent everything, those cancelled by compaction included.
    behind: usize,
    /// Watchers that begin later than the revision they were made at.
    future: BTreeSet<(i64, i64)>,
    needs_leader: bool,
    opened_ms: u64,
    progress_interval_ms: u64,
    /// Set once a watcher wants notifications.
    progress_due_ms: Option<u64>,
}

/// See the module text.
///
/// Invariants: a watcher is in exactly the lists that its state names; `waiting` and `parked` hold
/// watchers without a cursor by position; the live cursor's position is above everything
/// its watchers were sent, and no catch-up cursor is beyond it.
pub struct Hub {
    config: HubConfig,
    watchers: Watchers,
    targets: Targets,
    streams: Vec<Option<Stream>>,
    free_streams: Vec<u32>,
    /// By socket slot, generation and stream number.
    by_place: BTreeMap<(u32, u32, u32), u32>,
    /// 0 is the live one.
    cursors: [Cursor; limits::WATCH_CURSORS],
    /// Whose turn it is among the catch-up cursors.
    next_cursor: usize,
    /// Behind, to be taken by a catch-up cursor.
    waiting: BTreeSet<(i64, u32)>,
    /// Behind, and their streams take nothing.
    parked: BTreeSet<(i64, u32)>,
    /// Large revisions on their way, by stream.
    large: BTreeSet<(i64, u32)>,
    unparking: VecDeque<u32>,
    /// Streams in the middle of a large revision that can go on, and those that wait for a page.
    sending_large: VecDeque<u32>,
    at_page: Vec<u32>,
    /// Streams that were opened with `hasleader`.
    needing_leader: usize,
    /// Streams that turned out to be over.
    failed: Vec<u32>,
    progress: BTreeSet<(u64, u32)>,
    batch: Batch,
    /// The part of the batch that is still to be delivered.
    pending: Option<Pending>,
    /// Watchers that may still be delivered to in this turn.
    deliveries: usize,
    /// Streams that asked for progress meanwhile.
    asked_progress: Vec<u32>,
    head: Vec<u8>,
    piece: Vec<u8>,
    /// Revision of the newest view seen.
    newest: i64,
    jitter: u64,
    pin: Option<RevisionPin>,
    /// A compaction that has passed the oldest position, and since when.
    overdue: Option<(Revision, u64)>,
    dead: u64,
    events: u64,
}

impl Hub {
    /// A hub without streams.
    pub fn new(config: HubConfig) -> Self {
        Self {
            watchers: Watchers::default(),
            targets: Targets::new(config.seed),
            streams: Vec::new(),
            free_streams: Vec::new(),
            by_place: BTreeMap::new(),
            cursors: Default::default(),
            next_cursor: 0,
            waiting: BTreeSet::new(),
            parked: BTreeSet::new(),
            large: BTreeSet::new(),
            unparking: VecDeque::new(),
            sending_large: VecDeque::new(),
            at_page: Vec::new(),
            needing_leader: 0,
            failed: Vec::new(),
            progress: BTreeSet::new(),
            batch: Batch::default(),
            pending: None,
            deliveries: 0,
            asked_progress: Vec::new(),
            head: Vec::new(),
            piece: Vec::new(),
            newest: 0,
            jitter: config.seed,
            pin: None,
            overdue: None,
            dead: 0,
            events: 0,
            config,
        }
    }

    /// A stream was opened. With `needs_leader` it ends when there has been no leader for long.
    pub fn open(&mut self, call: CallId, needs_leader: bool, now_ms: u64) {
        let stream = Stream {
            call,
            watchers: BTreeMap::new(),
            next_id: 0,
            parked: List::default(),
            unparking: false,
            large: None,
            held: VecDeque::new(),
            is_shut: false,
            behind: 0,
            future: BTreeSet::new(),
            needs_leader,
            opened_ms: now_ms,
            progress_interval_ms: self.draw_interval(),
            progress_due_ms: None,
        };
        let slot = match self.free_streams.pop() {
            Some(slot) => {
                self.streams[slot as usize] = Some(stream);
                slot
            }
            None => {
                self.streams.push(Some(stream));
                self.streams.len() as u32 - 1
            }
        };
        self.by_place.insert(key_of(call), slot);
        self.needing_leader += usize::from(needs_leader);
    }

    /// True if there is no stream.
    pub fn is_empty(&self) -> bool {
        self.by_place.is_empty()
    }

    /// A stream that had no capacity has some.
    pub fn writable(&mut self, call: CallId) {
        if let Some(slot) = self.by_place.get(&key_of(call)).copied() {
            self.wake(slot);
        }
    }

    /// A stream is over.
    pub fn closed(&mut self, call: CallId) {
        if let Some(slot) = self.by_place.get(&key_of(call)).copied() {
            self.remove_stream(slot);
        }
    }

    /// A connection is gone with its streams.
    pub fn connection_closed(&mut self, conn: ConnId) {
        let (slot, generation) = (conn.slot, conn.generation);
        let range = (slot, generation, 0)..=(slot, generation, u32::MAX);
        let streams: Vec<u32> = self.by_place.range(range).map(|(_, slot)| *slot).collect();
        streams.into_iter().for_each(|slot| self.remove_stream(slot));
    }

    /// Pages have come: whoever waits for one tries again.
    pub fn pages_arrived(&mut self) {
        for cursor in &mut self.cursors {
            cursor.at_page = false;
        }
        for slot in std::mem::take(&mut self.at_page) {
            if let Some(large) = self.stream(slot).and_then(|stream| stream.large.as_mut())
                && std::mem::take(&mut large.at_page)
            {
                self.sending_large.push_back(slot);
            }
        }
    }

    /// Brings every cursor on, as far as one turn's bounds allow.
    pub fn run(&mut self, turn: &mut Turn<'_>) {
        if self.by_place.is_empty() {
            self.pending = None;
            return;
        }
        self.deliveries = self.config.turn_deliveries;
        self.observe(turn.view);
        self.deliver_on(turn);
        // One batch at a time: the rest waits until everybody has what is in it.
        if self.pending.is_none() {
            self.run_live(turn);
        }
        if self.pending.is_none() {
            self.unpark(turn);
            self.run_catch_up(turn);
        }
        if self.pending.is_none() {
            self.run_alone(turn);
        }
        self.drop_failed();
    }

    /// True if [`Hub::run`] with a view of this revision would do something.
    pub fn has_work(&self, revision: Revision) -> bool {
        if self.by_place.is_empty() {
            return false;
        }
        let live = &self.cursors[0];
        self.pending.is_some()
            || (live.count > 0 && !live.at_page && live.next.main <= revision)
            || !self.unparking.is_empty()
            || !self.sending_large.is_empty()
            || self.can_catch_up()
    }

    /// Ends all streams, as when the member stops or its data is damaged.
    pub fn end_all(&mut self, out: &mut dyn Streams, error: EtcdError) {
        self.end_where(out, &error.into(), |_| true);
    }

    /// Ends the streams that were opened with `hasleader`.
    pub fn end_leaderless(&mut self, out: &mut dyn Streams) {
        if self.needing_leader == 0 {
            return;
        }
        self.end_where(out, &EtcdError::NoLeader.into(), |stream| stream.needs_leader);
    }

    /// Holds the oldest revision that cursors need against compaction, for a limited time. Called
    /// once per turn after [`Hub::run`].
    pub fn hold(&mut self, pins: &RevisionPins, view: &View, now_ms: u64) {
        if self.by_place.is_empty() {
            (self.pin, self.overdue) = (None, None);
            return;
        }
        self.observe(view);
        let mut floor = self.floor();
        match self.overdue {
            Some((compacted, since_ms)) if now_ms >= since_ms + limits::WATCH_PIN_MS => {
                if floor < compacted {
                    floor = compacted;
                } else {
                    self.overdue = None;
                }
            }
            Some((compacted, _)) if floor >= compacted => self.overdue = None,
            Some(_) => {}
            None if floor < view.compact_revision => {
                self.overdue = Some((view.compact_revision, now_ms));
            }
            None => {}
        }
        let keep = self.pin.as_ref().is_some_and(|pin| {
            let held = pin.revision();
            let lag = floor.0 - held.0;
            (0..limits::WATCH_PIN_LAG).contains(&lag) && (lag == 0 || held >= view.compact_revision)
        });
        if !keep {
            // Without one, etcd's behaviour remains: what is compacted cannot be watched. The new
            // pin comes before the old one goes.
            self.pin = pins.pin(floor).ok();
        }
    }

    /// See [`Counts`].
    pub fn counts(&self) -> Counts {
        let watchers = self.watchers.len() as u64;
        Counts {
            streams: self.by_place.len() as u64,
            watchers,
            slow: watchers - self.cursors[0].count as u64 - self.dead,
            events: self.events,
        }
    }

    /// The live cursor has nobody to serve: it starts from the newest view again.
    fn observe(&mut self, view: &View) {
        self.newest = self.newest.max(view.revision.0);
        let live = &mut self.cursors[0];
        if live.count == 0 {
            live.next = RevKey::first(Revision(self.newest + 1)).max(live.next);
            (live.large, live.at_page) = (false, false);
        }
    }

    fn end_where(
        &mut self,
        out: &mut dyn Streams,
        status: &Status,
        ends: impl Fn(&Stream) -> bool,
    ) {
        for slot in 0..self.streams.len() {
            if let Some(stream) = &self.streams[slot]
                && ends(stream)
            {
                out.fail(stream.call, status);
                self.remove_stream(slot as u32);
            }
        }
    }

    fn stream(&mut self, slot: u32) -> Option<&mut Stream> {
        self.streams.get_mut(slot as usize)?.as_mut()
    }

    fn remove_stream(&mut self, slot: u32) {
        let Some(stream) = self.stream(slot) else { return };
        let watchers: Vec<u32> = stream.watchers.values().copied().collect();
        for watcher in watchers {
            self.remove_watcher(watcher);
        }
        let Some(stream) = self.streams[slot as usize].take() else { return };
        self.needing_leader -= usize::from(stream.needs_leader);
        self.asked_progress.retain(|asked| *asked != slot);
        if let Some(large) = &stream.large {
            self.large.remove(&(large.revision, slot));
        }
        if let Some(due_ms) = stream.progress_due_ms {
            self.progress.remove(&(due_ms, slot));
        }
        self.by_place.remove(&key_of(stream.call));
        self.free_streams.push(slot);
    }

    /// Forgets a watcher; its stream's table is the caller's business.
    fn remove_watcher(&mut self, slot: u32) {
        self.detach(slot);
        let Some(watcher) = self.watchers.remove(slot) else { return };
        if watcher.state == State::Dead {
            self.dead -= 1;
        } else {
            self.targets.release(watcher.target);
        }
    }

    fn drop_failed(&mut self) {
        while let Some(slot) = self.failed.pop() {
            self.remove_stream(slot);
        }
    }

    /// The interval of one stream's notifications: what is set and up to a tenth.
    fn draw_interval(&mut self) -> u64 {
        self.jitter =
            self.jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        let interval_ms = self.config.progress_interval_ms;
        let tenth_ms = (interval_ms / 10).max(1);
        interval_ms + (self.jitter >> 33) % tenth_ms
    }
}

fn key_of(call: CallId) -> (u32, u32, u32) {
    (call.conn.slot, call.conn.generation, call.stream.id())
}
