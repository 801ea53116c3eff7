//! A revision that is too large to be held, sent to one watcher: measured first, then read again
//! piece by piece as the window opens.
//!
//! Part of the hub. A gRPC message needs its length before its first byte, hence the two passes;
//! with fragments each message is measured for itself. Nothing is held between pieces but a
//! position, so a slow reader holds no memory. If the rows go meanwhile (compaction, after the time
//! that they are kept), a message that was begun cannot be completed and the stream is reset.

use std::sync::Arc;

use etcore_engine::page::Fetch;
use etcore_engine::types::{RevKey, Revision};
use etcore_engine::wire::KvRef;
use etcore_proto::error::{Code, Status};

use super::batch::Trouble;
use super::reply::{Head, Shape};
use super::targets::{Bound, holds};
use super::watchers::{NONE, State, Wants};
use super::{Hub, Turn};
use crate::limits;
use crate::replies::CallId;

/// What a gRPC message may be at most (etcd: math.MaxInt32).
const MESSAGE_BYTES_MAX: u64 = i32::MAX as u64;

/// The state of one such delivery.
#[derive(Debug)]
pub(super) struct LargeRevision {
    /// [`NONE`] once it was cancelled; a message that was begun is still completed.
    watcher: u32,
    id: i64,
    key: Arc<[u8]>,
    bound: Bound,
    wants: Wants,
    pub(super) revision: i64,
    /// The revision that the headers tell.
    told: i64,
    phase: Phase,
    pub(super) at_page: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Adding up the next message, which starts at `from`.
    Measure { from: RevKey, at: RevKey, events: u64, bytes: u64 },
    /// Writing it, up to the row `until`, which the next message starts with. It lacks `left`
    /// bytes.
    Write { at: RevKey, skip: usize, until: Option<RevKey>, left: u64 },
}

/// Why a step ended.
enum Step {
    /// There is more to do, and room for it.
    Again,
    /// The window is full.
    Window,
    /// A page must come first.
    Page,
    /// Everything was sent.
    Finished,
    /// The stream is over.
    Gone,
}

/// One event as it will be sent.
#[derive(Debug, Clone, Copy)]
struct Row {
    at: RevKey,
    shape: Shape,
    previous: Option<RevKey>,
}

/// A row, or what there is instead.
enum Found {
    Row(Row),
    /// The rows that may be looked at in one step have no more; go on here.
    Until(RevKey),
    End,
    Page,
}

impl LargeRevision {
    /// True if the client has been sent a part of a message.
    fn has_begun(&self) -> bool {
        matches!(self.phase, Phase::Write { .. })
    }
}

impl Hub {
    /// A watcher begins to read `revision` for itself; if its stream is occupied, later.
    pub(super) fn send_large(&mut self, turn: &Turn<'_>, slot: u32, revision: i64) {
        let told = self.watchers.told_revision(slot, revision, turn.view.revision);
        let watcher = self.watchers.get(slot);
        let stream_slot = watcher.stream;
        let target = self.targets.get(watcher.target);
        let from = RevKey::first(Revision(revision));
        let large = LargeRevision {
            watcher: slot,
            id: watcher.id,
            key: target.key.clone(),
            bound: target.bound.clone(),
            wants: watcher.wants,
            revision,
            told,
            phase: Phase::Measure { from, at: from, events: 0, bytes: 0 },
            at_page: false,
        };
        let free = self.stream(stream_slot).is_some_and(|stream| stream.large.is_none());
        if !free {
            return self.park(slot, revision);
        }
        self.detach(slot);
        let watcher = self.watchers.get_mut(slot);
        (watcher.next, watcher.is_quiet) = (revision, false);
        self.set_state(slot, State::Large);
        self.large.insert((revision, stream_slot));
        if let Some(stream) = self.stream(stream_slot) {
            stream.large = Some(Box::new(large));
            self.sending_large.push_back(stream_slot);
        }
    }

    /// The watcher that a stream's large revision is for has been cancelled.
    pub(super) fn cancel_large(&mut self, stream_slot: u32) {
        let Some(stream) = self.stream(stream_slot) else { return };
        if let Some(large) = &mut stream.large {
            large.watcher = NONE;
        }
    }

    pub(super) fn run_alone(&mut self, turn: &mut Turn<'_>) {
        for _ in 0..self.sending_large.len().min(limits::WATCH_PIECES) {
            let Some(slot) = self.sending_large.pop_front() else { return };
            let Some(stream) = self.stream(slot) else { continue };
            let call = stream.call;
            let Some(mut large) = stream.large.take() else { continue };
            let is_over = large.watcher == NONE && !large.has_begun();
            let step =
                if is_over { Ok(Step::Finished) } else { self.piece(turn, call, &mut large) };
            match step {
                Ok(Step::Again) => self.sending_large.push_back(slot),
                Ok(Step::Window) => {}
                Ok(Step::Page) => {
                    large.at_page = true;
                    self.at_page.push(slot);
                }
                Ok(Step::Finished) => {
                    self.end_large(turn, slot, large.watcher, large.revision);
                    continue;
                }
                Ok(Step::Gone) => self.failed.push(slot),
                Err(Trouble::Compacted(compacted)) if !large.has_begun() => {
                    let watcher = large.watcher;
                    self.end_large(turn, slot, NONE, large.revision);
                    self.cancel_compacted(turn, watcher, compacted.0);
                    continue;
                }
                Err(Trouble::Compacted(_)) => self.lose_stream(turn, slot),
                Err(Trouble::Broken(error)) => {
                    tracing::error!(error = %error, "a watch met damaged data");
                    self.lose_stream(turn, slot);
                }
            }
            if let Some(stream) = self.stream(slot) {
                stream.large = Some(large);
            }
        }
    }

    /// The stream is free again: answers that waited go out, its watchers go on.
    fn end_large(&mut self, turn: &mut Turn<'_>, slot: u32, watcher: u32, revision: i64) {
        self.large.remove(&(revision, slot));
        let held = self.stream(slot).map(|stream| std::mem::take(&mut stream.held));
        for message in held.into_iter().flatten() {
            self.send_answer(turn, slot, &message);
        }
        if watcher != NONE {
            self.detach(watcher);
            self.watchers.get_mut(watcher).next = revision + 1;
            self.settle(watcher);
        }
        self.wake(slot);
    }

    fn piece(
        &mut self,
        turn: &mut Turn<'_>,
        call: CallId,
        large: &mut LargeRevision,
    ) -> Result<Step, Trouble> {
        match large.phase {
            Phase::Measure { .. } => self.measure(turn, call, large),
            Phase::Write { .. } => self.write(turn, call, large),
        }
    }

    /// Adds up one slice of rows; at the end of a message, begins it.
    fn measure(
        &mut self,
        turn: &mut Turn<'_>,
        call: CallId,
        large: &mut LargeRevision,
    ) -> Result<Step, Trouble> {
        let Phase::Measure { from, mut at, mut events, mut bytes } = large.phase else {
            return Ok(Step::Again);
        };
        let head_bytes = self.write_head(turn, large, true) as u64;
        let until = loop {
            match find_row(turn, large, at)? {
                Found::Row(row) => {
                    let added = row.shape.encoded_len() as u64;
                    let limit = self.config.fragment_bytes as u64;
                    if large.wants.fragment && events > 0 && head_bytes + bytes + added >= limit {
                        break Some(row.at);
                    }
                    (events, bytes) = (events + 1, bytes + added);
                    at = after(row.at);
                }
                Found::Until(row) => {
                    large.phase = Phase::Measure { from, at: row, events, bytes };
                    return Ok(Step::Again);
                }
                Found::Page => {
                    large.phase = Phase::Measure { from, at, events, bytes };
                    return Ok(Step::Page);
                }
                Found::End => break None,
            }
        };
        if events == 0 {
            // Compaction has left none of them.
            return Ok(Step::Finished);
        }
        let total = self.write_head(turn, large, until.is_some()) as u64 + bytes;
        if total > MESSAGE_BYTES_MAX {
            let text =
                format!("trying to send message larger than max ({total} vs. {MESSAGE_BYTES_MAX})");
            turn.out.fail(call, &Status::new(Code::ResourceExhausted, text));
            return Ok(Step::Gone);
        }
        let length = usize::try_from(total).unwrap_or(usize::MAX);
        if turn.out.start(call, length).is_err() || turn.out.write(call, &self.head).is_err() {
            return Ok(Step::Gone);
        }
        self.events += events;
        large.phase = Phase::Write { at: from, skip: 0, until, left: bytes };
        Ok(Step::Again)
    }

    /// Writes as much as the window takes.
    fn write(
        &mut self,
        turn: &mut Turn<'_>,
        call: CallId,
        large: &mut LargeRevision,
    ) -> Result<Step, Trouble> {
        let Phase::Write { mut at, mut skip, until, mut left } = large.phase else {
            return Ok(Step::Again);
        };
        let capacity = turn.out.capacity(call).unwrap_or(0);
        if capacity == 0 {
            return Ok(Step::Window);
        }
        let mut piece = std::mem::take(&mut self.piece);
        piece.clear();
        let step = loop {
            if piece.len() >= capacity {
                break Step::Again;
            }
            if until.is_some_and(|until| at >= until) {
                break Step::Finished;
            }
            match find_row(turn, large, at)? {
                Found::Row(row) if until.is_some_and(|until| row.at >= until) => {
                    break Step::Finished;
                }
                Found::Row(row) => {
                    let room = capacity - piece.len();
                    let Some(copied) = copy_part(turn, &row, skip, room, &mut piece)? else {
                        at = row.at;
                        break Step::Page;
                    };
                    if copied == 0 {
                        // Its previous value, of which a part was sent, has been compacted since.
                        return Err(Trouble::Compacted(turn.view.compact_revision));
                    }
                    skip += copied;
                    at = row.at;
                    if skip == row.shape.encoded_len() {
                        (at, skip) = (after(row.at), 0);
                    }
                }
                Found::Until(row) => {
                    at = row;
                    break Step::Again;
                }
                Found::Page => break Step::Page,
                Found::End => break Step::Finished,
            }
        };
        let fits = piece.len() as u64 <= left;
        left = left.saturating_sub(piece.len() as u64);
        if !fits || (left > 0 && matches!(step, Step::Finished)) {
            // A previous value that was measured has been compacted since.
            return Err(Trouble::Compacted(turn.view.compact_revision));
        }
        let sent = if piece.is_empty() { Ok(()) } else { turn.out.write(call, &piece) };
        self.piece = piece;
        if sent.is_err() {
            return Ok(Step::Gone);
        }
        let step = if left == 0 { Step::Finished } else { step };
        match (step, until) {
            (Step::Finished, Some(from)) => {
                // After a cancellation the other fragments are not sent.
                large.phase = Phase::Measure { from, at: from, events: 0, bytes: 0 };
                Ok(Step::Again)
            }
            (step, _) => {
                large.phase = Phase::Write { at, skip, until, left };
                Ok(step)
            }
        }
    }

    /// Puts the head of a message into `self.head`; returns its length.
    fn write_head(&mut self, turn: &Turn<'_>, large: &LargeRevision, fragment: bool) -> usize {
        let mut header = turn.header;
        header.revision = large.told;
        self.head.clear();
        Head { fragment, ..Head::new(header, large.id) }.write(&mut self.head);
        self.head.len()
    }
}

/// The first event from `at` on that the watcher is told of, with the lengths of its parts.
fn find_row(turn: &mut Turn<'_>, large: &LargeRevision, at: RevKey) -> Result<Found, Trouble> {
    let view = turn.view;
    let mut events = view.events_since(at, Revision(large.revision))?;
    let mut next = at;
    for _ in 0..limits::WATCH_SLICE_ROWS {
        let event = match events.next(turn.pages)? {
            Fetch::Ready(Some(event)) => event,
            Fetch::Ready(None) => return Ok(Found::End),
            Fetch::Pending(_) => return Ok(Found::Page),
        };
        next = after(event.at);
        let key = KvRef::parse(event.kv).map_or(&[][..], |kv| kv.key);
        if !holds(&large.key, &large.bound, key) || large.wants.leaves_out(event.tombstone) {
            continue;
        }
        let previous = event.previous.filter(|_| large.wants.prev_kv);
        let mut shape = Shape {
            kv_bytes: event.kv.len(),
            prev_bytes: None,
            revision: event.at.main.0,
            tombstone: event.tombstone,
        };
        let at = event.at;
        if let Some(previous) = previous {
            match view.value(previous, turn.pages)? {
                Fetch::Ready(value) => shape.prev_bytes = Some(value.len()),
                Fetch::Pending(_) => return Ok(Found::Page),
            }
        }
        return Ok(Found::Row(Row { at, shape, previous }));
    }
    Ok(Found::Until(next))
}

/// Appends at most `room` bytes of an event, those behind the first `skip`; how many, or `None` if
/// a page must come first.
fn copy_part(
    turn: &mut Turn<'_>,
    row: &Row,
    skip: usize,
    room: usize,
    out: &mut Vec<u8>,
) -> Result<Option<usize>, Trouble> {
    let start = out.len();
    let mut window = Window { skip, room };
    let mut small = Vec::with_capacity(48);
    row.shape.write_head(&mut small);
    window.copy(&small, out);
    match turn.view.value(row.at, turn.pages)? {
        Fetch::Ready(kv) => window.copy(kv, out),
        Fetch::Pending(_) => {
            out.truncate(start);
            return Ok(None);
        }
    }
    small.clear();
    row.shape.write_middle(&mut small);
    window.copy(&small, out);
    if let Some(previous) = row.previous {
        match turn.view.value(previous, turn.pages)? {
            Fetch::Ready(value) => window.copy(value, out),
            Fetch::Pending(_) => {
                out.truncate(start);
                return Ok(None);
            }
        }
    }
    Ok(Some(out.len() - start))
}

/// What of a sequence of parts is wanted.
struct Window {
    skip: usize,
    room: usize,
}

impl Window {
    fn copy(&mut self, part: &[u8], out: &mut Vec<u8>) {
        let from = self.skip.min(part.len());
        let to = part.len().min(from.saturating_add(self.room));
        out.extend_from_slice(&part[from..to]);
        self.skip -= from;
        self.room -= to - from;
    }
}

fn after(at: RevKey) -> RevKey {
    RevKey { main: at.main, sub: at.sub + 1 }
}
