//! Watches: every event once, in order, whole, as written.
//!
//! Used by [`super::judge`]. [`judge_order`] needs nothing but the watch; [`judge`] holds it
//! against the order of writes that [`super::linear`] found: between its first revision and the
//! last one it told, or called done by a response without events, nothing is missing and nothing is
//! added. Events after the last response are not asked for. A pair before may be missing if its
//! revision may have been compacted. Must never expect more from a watch than it has had time for.

use super::Violation;
use super::linear::Witness;
use super::types::{Event, History, Request, Watch};

/// Revisions ascend.
pub const ORDERED: &str = "a watch tells revisions in their order";
/// Each event comes once.
pub const UNIQUE: &str = "a watch tells an event once";
/// A revision is not split.
pub const WHOLE: &str = "a watch tells all events of a revision together";
/// Nothing from before.
pub const START: &str = "a watch tells nothing from before its start";
/// Nothing is left out.
pub const COMPLETE: &str = "a watch leaves no event out";
/// Events are as written.
pub const AS_WRITTEN: &str = "a watch tells what was written";
/// A header is not behind its events.
pub const HEADER: &str = "the header of a watch response is not behind its events";

/// Judges the order of events of each watch.
///
/// # Errors
///
/// An event out of place.
pub fn judge_order(history: &History) -> Result<(), Violation> {
    history.watches.iter().try_for_each(order)
}

fn first_revision(watch: &Watch) -> i64 {
    if watch.start > 0 { watch.start } else { watch.created.saturating_add(1) }
}

fn complain(property: &'static str, watch: &Watch, event: &Event) -> Violation {
    let Watch { client, member, range, start, .. } = watch;
    let detail = format!("client {client} at member {member}, {range} from {start} on: {event:?}");
    Violation::new(property, detail)
}

fn order(watch: &Watch) -> Result<(), Violation> {
    // The last revision of earlier responses, and whether more of it may follow.
    let (mut done, mut goes_on) = (0, false);
    // Keys told of that revision.
    let mut keys = Vec::new();
    for batch in &watch.batches {
        let mut last = done;
        for event in &batch.events {
            let revision = event.kv.modified;
            if revision < first_revision(watch) {
                return Err(complain(START, watch, event));
            }
            if revision > last {
                keys.clear();
            }
            let again = revision == last && keys.contains(&&event.kv.key);
            if again {
                return Err(complain(UNIQUE, watch, event));
            }
            if revision < last {
                return Err(complain(ORDERED, watch, event));
            }
            if revision == done && !goes_on {
                return Err(complain(WHOLE, watch, event));
            }
            if batch.revision < revision {
                return Err(complain(HEADER, watch, event));
            }
            last = revision;
            keys.push(&event.kv.key);
        }
        goes_on = batch.fragment && watch.fragment;
        if batch.events.is_empty() && batch.revision > last {
            last = batch.revision;
            keys.clear();
        }
        done = last;
    }
    Ok(())
}

/// Judges what was told against what was written.
///
/// # Errors
///
/// An event that is missing, or that is not what was written.
pub fn judge(history: &History, witness: &Witness) -> Result<(), Violation> {
    let compacted = history.operations.iter().filter(|operation| !operation.is_refused());
    let compacted = compacted.filter_map(|operation| match operation.request {
        Request::Compact { revision } => Some(revision),
        _ => None,
    });
    let compacted = compacted.max().unwrap_or(0);
    history.watches.iter().try_for_each(|watch| against(watch, witness, compacted))
}

fn against(watch: &Watch, witness: &Witness, compacted: i64) -> Result<(), Violation> {
    let mut next = first_revision(watch).max(witness.model.base() + 1);
    let mut told = watch.batches.iter().flat_map(|batch| {
        let done = batch.events.is_empty().then_some(batch.revision);
        let of_events = batch.events.iter().map(Some);
        of_events.chain(done.is_some().then_some(None)).map(move |event| (event, batch.revision))
    });
    let mut expected = Vec::new().into_iter();
    let (mut seen, mut ended) = (told.next(), false);
    while let Some((event, header)) = seen {
        // Revisions up to this one are to be told by now.
        let until = event.map_or(header, |event| event.kv.modified);
        let wanted: Option<Event> = loop {
            match expected.next() {
                Some(event) => break Some(event),
                None if next > until.min(witness.model.revision()) => break None,
                None => {
                    expected = witness.model.events(next, &watch.range).into_iter();
                    next += 1;
                }
            }
        };
        match (event, wanted) {
            (Some(event), Some(wanted)) => {
                if wanted.kv.modified < event.kv.modified {
                    return Err(complain(COMPLETE, watch, &wanted));
                }
                if !is_alike(&wanted, event, watch.prev_kv, compacted) {
                    // It has the same revision: is it another event of it?
                    let later =
                        expected.any(|other| is_alike(&other, event, watch.prev_kv, compacted));
                    let property = if later { COMPLETE } else { AS_WRITTEN };
                    return Err(complain(property, watch, if later { &wanted } else { event }));
                }
                ended = true;
                seen = told.next();
            }
            (None, Some(wanted)) => return Err(complain(COMPLETE, watch, &wanted)),
            (Some(event), None) => return Err(complain(AS_WRITTEN, watch, event)),
            (None, None) => seen = told.next(),
        }
    }
    // The last revision told is told whole, unless more pieces of it are to come.
    let torn = watch.batches.last().is_some_and(|batch| batch.fragment && watch.fragment);
    match expected.next() {
        Some(wanted) if ended && !torn => Err(complain(WHOLE, watch, &wanted)),
        _ => Ok(()),
    }
}

fn is_alike(wanted: &Event, event: &Event, prev_kv: bool, compacted: i64) -> bool {
    let prev = match (prev_kv, &event.prev) {
        (false, prev) => prev.is_none(),
        (true, None) => wanted.prev.is_none() || compacted >= wanted.kv.modified,
        (true, prev) => *prev == wanted.prev,
    };
    prev && wanted.delete == event.delete && wanted.kv == event.kv
}
