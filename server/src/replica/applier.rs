//! What is to be applied, and how far a turn goes with it.
//!
//! Part of the replica: it holds the committed entries in order, the one that is between two
//! slices, and what is left of the turn's room. What entries do is in [`apply`](super::apply) and
//! its neighbours. No entry may be passed over.

use std::time::Duration;

use etcore_raftlog::types::LogEntry;

use super::backlog::Backlog;
use super::executing::Running;
use crate::entry;
use crate::kv::range::Scratch;
use crate::limits;
use crate::metrics::{Applied, Applies};

/// See the module text.
///
/// Invariants: the entry that is between two slices is the one before all that wait; only while
/// there is something to apply, and in the turn that ends it, has the first of it a beginning.
#[derive(Default)]
pub(super) struct Applier {
    backlog: Backlog,
    /// The entry before these, if it is between two slices.
    running: Option<Box<Running>>,
    /// The part of [`limits::APPLY_TURN_COST`] that is left in this turn.
    room: usize,
    /// When this turn applies no more.
    until: Duration,
    /// When the entry that is first in line was first tried.
    since: Option<Duration>,
    /// The room when the clock was last looked at.
    looked: usize,
    scratch: Scratch,
    /// What was applied since it was last timed.
    applied: Applied,
    /// The entry among these that does most, about, and how much that is.
    heaviest: Option<(usize, LogEntry)>,
}

/// The next thing to apply.
pub(super) enum Next {
    /// A slice of the entry that was begun.
    Slice(Box<Running>),
    Entry(LogEntry),
}

impl Applier {
    /// The entries that wait.
    pub(super) fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// True if there is something to apply.
    pub(super) fn has_backlog(&self) -> bool {
        self.running.is_some() || !self.backlog.is_empty()
    }

    /// True while an entry is between two slices.
    #[cfg(test)]
    pub(super) fn is_between_slices(&self) -> bool {
        self.running.is_some()
    }

    /// True if the turn ended before everything was applied that could be.
    pub(super) fn may_go_on(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.waits_for_page())
            || self.room == 0 && !self.backlog.is_empty()
    }

    /// Entries are committed.
    pub(super) fn extend(&mut self, entries: impl Iterator<Item = LogEntry>) {
        self.backlog.extend(entries);
    }

    /// raft has restored a snapshot: what was committed before counts no more.
    pub(super) fn clear(&mut self) {
        self.backlog.clear();
        self.running = None;
    }

    /// The store is another one: nothing was tried on it.
    pub(super) fn forget_since(&mut self) {
        self.since = None;
    }

    /// A turn begins to apply, but for a large entry if that is put off.
    pub(super) fn begin_turn(&mut self, put_off_large: bool, now: impl Fn() -> Duration) {
        self.room = match self.backlog.len() {
            _ if put_off_large => 0,
            0..=limits::APPLY_TURN_ENTRIES => limits::APPLY_TURN_COST,
            _ => limits::APPLY_LONG_TURN_COST,
        };
        if self.has_backlog() {
            self.until = now() + limits::APPLY_TURN_TIME;
        }
    }

    /// Entries are about to be applied in one go.
    pub(super) fn begin(&mut self, now: impl Fn() -> Duration) {
        if self.has_backlog() && self.since.is_none() {
            self.since = Some(now());
        }
        self.looked = self.room;
    }

    /// The next entry or slice, if the turn has room for one.
    pub(super) fn next(&mut self) -> Option<Next> {
        if self.room == 0 {
            return None;
        }
        if let Some(running) = self.running.take() {
            return Some(Next::Slice(running));
        }
        self.backlog.pop_front().map(Next::Entry)
    }

    /// The entry goes on in a later slice.
    pub(super) fn suspend(&mut self, running: Running) {
        assert!(self.running.is_none(), "one entry is applied at a time");
        self.running = Some(Box::new(running));
    }

    /// Takes so much of the turn's room.
    pub(super) fn take_room(&mut self, cost: usize) {
        self.room = self.room.saturating_sub(cost);
    }

    /// Looks at the clock now and then; when the turn's time is over, nothing more is begun.
    pub(super) fn look_at_clock(&mut self, now: impl Fn() -> Duration) {
        if self.looked - self.room.min(self.looked) < limits::APPLY_LOOK_COST {
            return;
        }
        self.looked = self.room;
        if now() >= self.until {
            self.room = 0;
        }
    }

    /// An entry was applied that does so much, about; `success` unless it was refused.
    pub(super) fn note(&mut self, entry: &LogEntry, cost: usize, success: bool) {
        if let Some(field) = entry::request_field(&entry.data) {
            self.applied.note(field, success);
        }
        if self.heaviest.as_ref().is_none_or(|(most, _)| *most < cost) {
            self.heaviest = Some((cost, entry.clone()));
        }
    }

    /// What was applied in one go took so long. Returns the entry of it that does most.
    pub(super) fn took(&mut self, applies: &Applies, took: Duration) -> Option<LogEntry> {
        applies.observe(&mut self.applied, took);
        Some(self.heaviest.take()?.1)
    }

    /// Entries were applied in one go; returns how long the first of them took.
    pub(super) fn end(&mut self, now: Duration) -> Option<Duration> {
        let again = self.has_backlog().then_some(now);
        let since = std::mem::replace(&mut self.since, again)?;
        Some(now.saturating_sub(since))
    }

    /// Memory that evaluations use again.
    pub(super) fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }
}
