//! The cursors: who is served by which, and how those that are behind come back to the live one.
//!
//! Part of the hub. A cursor only goes forward. A watcher may join it if the cursor has not passed
//! the watcher's own position; then the hub looks at each row once for all of its members.

use etcore_engine::types::{RevKey, Revision};

use super::batch::{Scan, Trouble, Why};
use super::deliver::Pending;
use super::watchers::{List, State};
use super::{Hub, Turn};
use crate::limits;

/// A position in the event log.
#[derive(Debug)]
pub(super) struct Cursor {
    /// The first row not looked at.
    pub(super) next: RevKey,
    /// Its watchers, if it is a catch-up cursor; the live one needs no list of them.
    members: List,
    pub(super) count: usize,
    /// A page must come first.
    pub(super) at_page: bool,
    /// The revision at `next` is too large for a batch: its watchers are sent away to read it for
    /// themselves.
    pub(super) large: bool,
}

impl Default for Cursor {
    fn default() -> Self {
        let next = RevKey::first(Revision(0));
        Self { next, members: List::default(), count: 0, at_page: false, large: false }
    }
}

impl Cursor {
    /// The first revision of which it has passed nothing.
    fn joinable_from(&self) -> i64 {
        self.next.main.0 + i64::from(self.next.sub > 0)
    }
}

const LIVE: usize = 0;

impl Hub {
    /// Everything up to this revision was sent to the watchers that are up to date.
    pub(super) fn live_revision(&self) -> i64 {
        self.cursors[LIVE].next.main.0 - 1
    }

    pub(super) fn run_live(&mut self, turn: &mut Turn<'_>) {
        for _ in 0..limits::WATCH_LIVE_SLICES {
            let live = &self.cursors[LIVE];
            if live.count == 0 || live.at_page || live.next.main > turn.view.revision {
                break;
            }
            self.step(turn, LIVE, turn.view.revision);
            if self.pending.is_some() {
                return;
            }
        }
        self.observe(turn.view);
    }

    /// Gives each catch-up cursor in turn a slice, until the turn's are used up.
    pub(super) fn run_catch_up(&mut self, turn: &mut Turn<'_>) {
        let mut slices = limits::WATCH_CATCH_UP_SLICES;
        for _ in 1..limits::WATCH_CURSORS {
            if slices == 0 {
                return;
            }
            self.next_cursor = self.next_cursor % (limits::WATCH_CURSORS - 1) + 1;
            let number = self.next_cursor;
            self.collect(number);
            let cursor = &self.cursors[number];
            if cursor.count == 0 || cursor.at_page {
                continue;
            }
            let to = self.live_revision();
            if cursor.next.main.0 <= to {
                slices -= 1;
                self.step(turn, number, Revision(to));
                if self.pending.is_some() {
                    return;
                }
            }
            self.arrive(number);
        }
    }

    /// True if [`Hub::run_catch_up`] would do something.
    pub(super) fn can_catch_up(&self) -> bool {
        let live = &self.cursors[LIVE];
        let catching_up = &self.cursors[LIVE + 1..];
        catching_up.iter().any(|cursor| {
            let arrives = live.next == cursor.next && live.next.sub == 0;
            cursor.count > 0 && !cursor.at_page && (arrives || cursor.next.main < live.next.main)
        }) || (!self.waiting.is_empty() && catching_up.iter().any(|cursor| cursor.count == 0))
    }

    /// A watcher that is in no list goes where its position says.
    pub(super) fn settle(&mut self, slot: u32) {
        let next = self.watchers.get(slot).next;
        if self.cursors[LIVE].joinable_from() <= next {
            self.serve(slot, LIVE);
        } else {
            self.set_state(slot, State::Waiting);
            self.waiting.insert((next, slot));
        }
    }

    /// A served watcher gets nothing from `next` on until its stream has room.
    pub(super) fn park(&mut self, slot: u32, next: i64) {
        self.detach(slot);
        let watcher = self.watchers.get_mut(slot);
        watcher.next = next;
        let stream = watcher.stream;
        self.set_state(slot, State::Parked);
        if let Some(stream) = self.streams[stream as usize].as_mut() {
            stream.parked.push(&mut self.watchers, slot);
        }
        self.parked.insert((next, slot));
    }

    /// Takes a watcher out of every list; the caller puts it into others or forgets it.
    pub(super) fn detach(&mut self, slot: u32) {
        let watcher = self.watchers.get(slot);
        let (state, next, stream) = (watcher.state, watcher.next, watcher.stream);
        match state {
            State::Served(cursor) => {
                let cursor = usize::from(cursor);
                self.targets.delist(&mut self.watchers, slot, cursor);
                if cursor != LIVE {
                    self.cursors[cursor].members.remove(&mut self.watchers, slot);
                }
                self.cursors[cursor].count -= 1;
            }
            State::Waiting => {
                self.waiting.remove(&(next, slot));
            }
            State::Parked => {
                self.parked.remove(&(next, slot));
                if let Some(stream) = self.streams[stream as usize].as_mut() {
                    stream.parked.remove(&mut self.watchers, slot);
                }
            }
            State::Large => self.cancel_large(stream),
            State::Dead => {}
        }
    }

    /// Moves a watcher from one state to another, and counts those of its stream that are behind.
    pub(super) fn set_state(&mut self, slot: u32, state: State) {
        let live = State::Served(LIVE as u8);
        let watcher = self.watchers.get_mut(slot);
        let before = std::mem::replace(&mut watcher.state, state);
        let stream = watcher.stream;
        if let Some(stream) = self.stream(stream) {
            match (before == live, state == live) {
                (false, true) => stream.behind -= 1,
                (true, false) => stream.behind += 1,
                _ => {}
            }
        }
    }

    /// Its stream has room, or is done with a large revision.
    pub(super) fn wake(&mut self, stream_slot: u32) {
        let Some(stream) = self.stream(stream_slot) else { return };
        if let Some(large) = &stream.large {
            if !large.at_page {
                self.sending_large.push_back(stream_slot);
            }
        } else if (stream.is_shut || !stream.parked.is_empty()) && !stream.unparking {
            stream.unparking = true;
            self.unparking.push_back(stream_slot);
        }
    }

    /// Lets some of the parked watchers go on where their streams have room.
    pub(super) fn unpark(&mut self, turn: &mut Turn<'_>) {
        for _ in 0..self.unparking.len() {
            let Some(slot) = self.unparking.pop_front() else { return };
            let Some(stream) = self.stream(slot) else { continue };
            if !std::mem::take(&mut stream.unparking) || stream.large.is_some() {
                continue;
            }
            let call = stream.call;
            if turn.out.capacity(call).unwrap_or(0) == 0 {
                continue;
            }
            if std::mem::take(&mut stream.is_shut) {
                turn.out.hold(call, false);
            }
            for _ in 0..limits::WATCH_UNPARK {
                let Some(stream) = self.stream(slot) else { break };
                let first = stream.parked.first;
                if stream.parked.is_empty() {
                    break;
                }
                self.detach(first);
                self.settle(first);
            }
            self.wake(slot);
        }
    }

    /// The lowest revision whose state or successors somebody may still ask for.
    pub(super) fn floor(&self) -> Revision {
        let catching_up = self.cursors[LIVE + 1..].iter().filter(|cursor| cursor.count > 0);
        let positions = catching_up
            .map(|cursor| cursor.next.main.0)
            .chain([self.cursors[LIVE].next.main.0])
            .chain(self.waiting.first().map(|(next, _)| *next))
            .chain(self.parked.first().map(|(next, _)| *next))
            .chain(self.large.first().map(|(revision, _)| *revision))
            .chain(self.pending.map(|pending| pending.from.0));
        Revision(positions.min().unwrap_or(self.newest + 1) - 1)
    }

    fn serve(&mut self, slot: u32, cursor: usize) {
        self.set_state(slot, State::Served(cursor as u8));
        let watcher = self.watchers.get_mut(slot);
        watcher.has_kept_up |= cursor == LIVE;
        self.targets.enlist(&mut self.watchers, slot, cursor);
        if cursor != LIVE {
            self.cursors[cursor].members.push(&mut self.watchers, slot);
        }
        self.cursors[cursor].count += 1;
    }

    /// Takes up the waiting watchers that a catch-up cursor comes by soon. One without members
    /// starts at the first of them.
    fn collect(&mut self, number: usize) {
        let Some((first, _)) = self.waiting.first().copied() else { return };
        let cursor = &mut self.cursors[number];
        if cursor.count == 0 {
            cursor.next = RevKey::first(Revision(first));
            (cursor.at_page, cursor.large) = (false, false);
        }
        let from = cursor.joinable_from();
        let range = (from, 0)..(from.saturating_add(limits::WATCH_JOIN_REVISIONS), 0);
        while let Some((next, slot)) = self.waiting.range(range.clone()).next().copied() {
            self.waiting.remove(&(next, slot));
            self.serve(slot, number);
        }
    }

    /// A catch-up cursor that has reached the live one hands its members over.
    fn arrive(&mut self, number: usize) {
        let (live, cursor) = (&self.cursors[LIVE], &self.cursors[number]);
        if live.next != cursor.next || live.next.sub > 0 {
            return;
        }
        while !self.cursors[number].members.is_empty() {
            let slot = self.cursors[number].members.first;
            self.detach(slot);
            self.serve(slot, LIVE);
        }
    }

    /// One slice of one cursor.
    fn step(&mut self, turn: &mut Turn<'_>, number: usize, to: Revision) {
        let mut batch = std::mem::take(&mut self.batch);
        let cursor = &self.cursors[number];
        let scan = Scan { cursor: number, from: cursor.next, to };
        let (large, tables) = (cursor.large, (&self.targets, &self.watchers));
        let result = if large {
            batch.find_watchers(scan, turn.view, turn.pages, tables)
        } else {
            batch.read(scan, turn.view, turn.pages, tables)
        };
        match result {
            Ok(outcome) => {
                let cursor = &mut self.cursors[number];
                cursor.next = outcome.next;
                cursor.at_page = outcome.why == Why::Page;
                cursor.large = match outcome.why {
                    Why::Large => true,
                    Why::Done => false,
                    Why::Full | Why::Page => large,
                };
                if large {
                    self.send_away(turn, &batch.touched, number, scan.from.main.0);
                } else {
                    batch.group(&mut self.watchers);
                    self.pending = Some(Pending::new(scan.from.main));
                }
            }
            Err(Trouble::Compacted(compacted)) => self.lose_compacted(turn, number, compacted),
            Err(Trouble::Broken(error)) => {
                tracing::error!(error = %error, "a watch met damaged data");
                self.lose_members(turn, number);
            }
        }
        self.batch = batch;
        self.deliver_on(turn);
    }

    /// The watchers of a large revision read it for themselves.
    fn send_away(&mut self, turn: &Turn<'_>, touched: &[u32], number: usize, revision: i64) {
        for slot in touched {
            if self.watchers.get(*slot).state == State::Served(number as u8) {
                self.send_large(turn, *slot, revision);
            }
        }
    }

    /// What a cursor comes to next was compacted: its watchers that want it are cancelled.
    fn lose_compacted(&mut self, turn: &mut Turn<'_>, number: usize, compacted: Revision) {
        for slot in self.members(number) {
            let next = self.watchers.get(slot).next.max(self.cursors[number].next.main.0);
            if next < compacted.0 {
                self.cancel_compacted(turn, slot, compacted.0);
            }
        }
        let cursor = &mut self.cursors[number];
        cursor.next = cursor.next.max(RevKey::first(compacted));
        cursor.large = false;
    }

    /// Its data cannot be read: the streams of its watchers end.
    fn lose_members(&mut self, turn: &mut Turn<'_>, number: usize) {
        for slot in self.members(number) {
            let stream = self.watchers.get(slot).stream;
            if !self.failed.contains(&stream) {
                self.lose_stream(turn, stream);
            }
        }
        self.drop_failed();
    }

    fn members(&self, number: usize) -> Vec<u32> {
        if number == LIVE {
            return self.watchers.served_by(LIVE as u8);
        }
        let mut members = Vec::new();
        let mut slot = self.cursors[number].members.first;
        while slot != super::watchers::NONE {
            members.push(slot);
            slot = self.watchers.get(slot).right;
        }
        members
    }
}
