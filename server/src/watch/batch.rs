//! A slice of the event log, matched and encoded: the step that live and catch-up watching share.
//!
//! Each event that somebody wants is encoded once, and once more with its previous value if
//! somebody wants that; watchers refer to it by hits. A batch holds whole revisions only. It is
//! bounded in bytes, rows and hits; a revision that exceeds the bounds alone is not held but
//! reported.

use std::ops::Range;

use etcore_engine::error::{EngineError, RangeError};
use etcore_engine::page::{Fetch, PageSource};
use etcore_engine::types::{RevKey, Revision};
use etcore_engine::view::{Event, View};
use etcore_engine::wire::KvRef;

use super::reply::Shape;
use super::targets::Targets;
use super::watchers::{NONE, Watchers};
use crate::limits;

/// The revisions that a batch reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scan {
    pub(super) cursor: usize,
    pub(super) from: RevKey,
    /// The last revision.
    pub(super) to: Revision,
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Where to go on.
    pub(super) next: RevKey,
    pub(super) why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Everything was read.
    Done,
    /// The batch is full.
    Full,
    /// A page must come first.
    Page,
    /// The revision at `next` is too large for a batch; nothing was read.
    Large,
}

/// Why nothing could be read.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Compaction may have removed some of it.
    Compacted(Revision),
    /// Stored data is damaged.
    Broken(EngineError),
}

/// An encoded event; the ranges lie in the batch's bytes and are empty if nobody wants that form.
#[derive(Debug, Clone)]
pub(super) struct Encoded {
    pub(super) revision: i64,
    plain: Range<usize>,
    full: Range<usize>,
}

/// An event for a watcher.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hit {
    watcher: u32,
    event: u32,
    with_prev: bool,
    /// The watcher's next hit.
    pub(super) next: u32,
}

/// See the module text; the memory is used again for the next slice.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    events: Vec<Encoded>,
    pub(super) hits: Vec<Hit>,
    /// Watchers with hits, in the order of their first.
    pub(super) touched: Vec<u32>,
    targets: Vec<u32>,
    kv: Vec<u8>,
}

/// A state to go back to.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    bytes: usize,
    events: usize,
    hits: usize,
}

impl From<RangeError> for Trouble {
    fn from(error: RangeError) -> Self {
        match error {
            RangeError::Compacted { compacted, .. } => Self::Compacted(compacted),
            RangeError::Future { current, .. } => Self::Compacted(current),
        }
    }
}

impl From<EngineError> for Trouble {
    fn from(error: EngineError) -> Self {
        Self::Broken(error)
    }
}

impl Batch {
    /// Reads as much as the bounds allow.
    pub(super) fn read(
        &mut self,
        scan: Scan,
        view: &View,
        pages: &mut dyn PageSource,
        (targets, watchers): (&Targets, &Watchers),
    ) -> Result<Outcome, Trouble> {
        self.clear();
        let mut events = view.events_since(scan.from, scan.to)?;
        let (mut mark, mut rows, mut rows_of_revision) = (Mark::default(), 0, 0);
        let mut next = scan.from;
        loop {
            let event = match events.next(pages)? {
                Fetch::Ready(Some(event)) => event,
                Fetch::Ready(None) => {
                    let end = RevKey::first(Revision(scan.to.0.min(view.revision.0) + 1));
                    return Ok(Outcome { next: end.max(scan.from), why: Why::Done });
                }
                Fetch::Pending(_) => {
                    self.roll_back(mark);
                    return Ok(Outcome { next, why: Why::Page });
                }
            };
            if event.at.main != next.main || rows == 0 {
                next = RevKey::first(event.at.main);
                if self.is_full(rows) {
                    return Ok(Outcome { next, why: Why::Full });
                }
                (mark, rows_of_revision) = (self.mark(), 0);
            }
            rows += 1;
            rows_of_revision += 1;
            let (at, previous, tombstone) = (event.at, event.previous, event.tombstone);
            let fits = self.add(&event, scan.cursor, (targets, watchers), mark);
            let fits = match fits {
                Added::Fits => true,
                Added::TooLarge => false,
                Added::NeedsPrevious => {
                    let previous = previous.unwrap_or(at);
                    match view.value(previous, pages)? {
                        Fetch::Ready(value) => self.add_previous(at, tombstone, value, mark),
                        Fetch::Pending(_) => {
                            self.roll_back(mark);
                            ask_ahead(events, view, pages)?;
                            return Ok(Outcome { next, why: Why::Page });
                        }
                    }
                }
            };
            if !fits || rows_of_revision > limits::WATCH_SLICE_ROWS {
                self.roll_back(mark);
                let why = if rows == rows_of_revision { Why::Large } else { Why::Full };
                return Ok(Outcome { next, why });
            }
        }
    }

    /// Goes through rows of a large revision and touches the watchers that have hits in it, some
    /// more than once. Returns where to go on, in the revision or behind it.
    pub(super) fn find_watchers(
        &mut self,
        scan: Scan,
        view: &View,
        pages: &mut dyn PageSource,
        (targets, watchers): (&Targets, &Watchers),
    ) -> Result<Outcome, Trouble> {
        self.clear();
        let mut events = view.events_since(scan.from, scan.from.main)?;
        let mut next = scan.from;
        for _ in 0..limits::WATCH_SLICE_ROWS {
            let event = match events.next(pages)? {
                Fetch::Ready(Some(event)) => event,
                Fetch::Ready(None) => {
                    let next = RevKey::first(Revision(scan.from.main.0 + 1));
                    self.touched.extend(self.hits.iter().map(|hit| hit.watcher));
                    return Ok(Outcome { next, why: Why::Done });
                }
                Fetch::Pending(_) => {
                    self.touched.extend(self.hits.iter().map(|hit| hit.watcher));
                    return Ok(Outcome { next, why: Why::Page });
                }
            };
            next = RevKey { main: event.at.main, sub: event.at.sub + 1 };
            self.match_event(&event, scan.cursor, (targets, watchers));
            if self.hits.len() >= limits::WATCH_SLICE_HITS {
                break;
            }
        }
        self.touched.extend(self.hits.iter().map(|hit| hit.watcher));
        Ok(Outcome { next, why: Why::Full })
    }

    /// Strings the hits together by watcher.
    pub(super) fn group(&mut self, watchers: &mut Watchers) {
        for index in 0..self.hits.len() {
            let slot = self.hits[index].watcher;
            let number = index as u32;
            let watcher = watchers.get_mut(slot);
            if watcher.first_hit == NONE {
                watcher.first_hit = number;
                self.touched.push(slot);
            } else {
                self.hits[watcher.last_hit as usize].next = number;
            }
            watcher.last_hit = number;
        }
    }

    /// The revision of a hit's event.
    pub(super) fn revision(&self, hit: u32) -> i64 {
        self.events[self.hits[hit as usize].event as usize].revision
    }

    /// The event of a hit as an element of `events`.
    pub(super) fn element(&self, hit: u32) -> &[u8] {
        let hit = self.hits[hit as usize];
        let event = &self.events[hit.event as usize];
        &self.bytes[if hit.with_prev { event.full.clone() } else { event.plain.clone() }]
    }

    /// The watcher's hit after this one, or [`NONE`].
    pub(super) fn after(&self, hit: u32) -> u32 {
        self.hits[hit as usize].next
    }

    fn clear(&mut self) {
        self.roll_back(Mark::default());
        self.touched.clear();
        if self.bytes.capacity() > 2 * limits::WATCH_REVISION_BYTES {
            self.bytes = Vec::new();
        }
        if self.hits.capacity() > 2 * limits::WATCH_SLICE_HITS {
            (self.hits, self.touched) = (Vec::new(), Vec::new());
        }
        if self.kv.capacity() > 2 * limits::WATCH_REVISION_BYTES {
            self.kv = Vec::new();
        }
    }

    fn is_full(&self, rows: usize) -> bool {
        rows >= limits::WATCH_SLICE_ROWS
            || self.bytes.len() >= limits::WATCH_SLICE_BYTES
            || self.hits.len() >= limits::WATCH_SLICE_HITS
    }

    fn mark(&self) -> Mark {
        Mark { bytes: self.bytes.len(), events: self.events.len(), hits: self.hits.len() }
    }

    fn roll_back(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        self.events.truncate(mark.events);
        self.hits.truncate(mark.hits);
    }

    /// Adds a hit for each watcher of the cursor that wants the event.
    fn match_event(
        &mut self,
        event: &Event<'_>,
        cursor: usize,
        (targets, watchers): (&Targets, &Watchers),
    ) -> Wanted {
        let mut wanted = Wanted { plain: false, full: false };
        self.targets.clear();
        let key = KvRef::parse(event.kv).map_or(&[][..], |kv| kv.key);
        targets.of_key(key, &mut self.targets);
        for target in &self.targets {
            let mut slot = targets.head(*target, cursor);
            while slot != NONE {
                let watcher = watchers.get(slot);
                if event.at.main.0 >= watcher.next && !watcher.wants.leaves_out(event.tombstone) {
                    let with_prev = watcher.wants.prev_kv && event.previous.is_some();
                    wanted.full |= with_prev;
                    wanted.plain |= !with_prev;
                    let number = self.events.len() as u32;
                    self.hits.push(Hit { watcher: slot, event: number, with_prev, next: NONE });
                }
                slot = watcher.after;
            }
        }
        wanted
    }

    fn add(
        &mut self,
        event: &Event<'_>,
        cursor: usize,
        tables: (&Targets, &Watchers),
        mark: Mark,
    ) -> Added {
        let wanted = self.match_event(event, cursor, tables);
        if !wanted.plain && !wanted.full {
            return Added::Fits;
        }
        if self.hits.len() - mark.hits > limits::WATCH_REVISION_HITS
            || self.bytes.len() - mark.bytes + event.kv.len() > limits::WATCH_REVISION_BYTES
        {
            return Added::TooLarge;
        }
        let shape = Shape {
            kv_bytes: event.kv.len(),
            prev_bytes: None,
            revision: event.at.main.0,
            tombstone: event.tombstone,
        };
        let start = self.bytes.len();
        if wanted.plain {
            shape.write_head(&mut self.bytes);
            self.bytes.extend_from_slice(event.kv);
            shape.write_middle(&mut self.bytes);
        }
        let end = self.bytes.len();
        self.events.push(Encoded { revision: event.at.main.0, plain: start..end, full: 0..0 });
        if !wanted.full {
            return Added::Fits;
        }
        // Kept aside until the previous value is at hand.
        self.kv.clear();
        self.kv.extend_from_slice(event.kv);
        Added::NeedsPrevious
    }

    /// Encodes the event added last once more, with its previous value.
    fn add_previous(&mut self, at: RevKey, tombstone: bool, previous: &[u8], mark: Mark) -> bool {
        let kv = &self.kv;
        if self.bytes.len() - mark.bytes + kv.len() + previous.len() > limits::WATCH_REVISION_BYTES
        {
            return false;
        }
        let shape = Shape {
            kv_bytes: kv.len(),
            prev_bytes: Some(previous.len()),
            revision: at.main.0,
            tombstone,
        };
        let start = self.bytes.len();
        shape.write_head(&mut self.bytes);
        self.bytes.extend_from_slice(kv);
        shape.write_middle(&mut self.bytes);
        self.bytes.extend_from_slice(previous);
        if let Some(event) = self.events.last_mut() {
            event.full = start..self.bytes.len();
        }
        true
    }
}

/// The forms of an event that somebody wants.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    plain: bool,
    full: bool,
}

enum Added {
    Fits,
    TooLarge,
    /// It is there without its previous value, which somebody wants.
    NeedsPrevious,
}

/// A previous value must come from a page: those of the next events are asked for as well, so that
/// they come together.
fn ask_ahead(
    mut events: etcore_engine::view::Events<'_>,
    view: &View,
    pages: &mut dyn PageSource,
) -> Result<(), Trouble> {
    for _ in 0..limits::WATCH_ROWS_AHEAD {
        let Fetch::Ready(Some(event)) = events.next(pages)? else { return Ok(()) };
        if let Some(previous) = event.previous {
            view.value(previous, pages)?;
        }
    }
    Ok(())
}
