//! Real time: what returned before something else began comes before it.
//!
//! Used by [`super::linear`]. Every answered operation stands at a place in the order of revisions:
//! the write that made revision R at R, and what was answered at R, without a write, after it and
//! before R + 1. The orders agree exactly if no operation stands before one that had returned when
//! it began: two operations at one place change nothing, so that their order is free. A
//! serializable read may be old, so nothing has to come before it but what its own member has told
//! already; but it must not be ahead of its time, nor may later linearizable reads be behind it.
//! Must never judge an operation whose outcome is unknown, but by where a search has put it.

use std::collections::BTreeMap;

use super::Violation;
use super::types::{Answer, History, Operation};

/// A read that is not serializable misses nothing that returned before it.
pub const CURRENT: &str = "a linearizable answer misses nothing that was answered before the call";
/// Writes in sequence have revisions in sequence.
pub const SEQUENCE: &str = "writes that follow each other have revisions that follow each other";
/// No answer is from the future.
pub const CAUSE: &str = "nothing is seen before somebody asked for it";
/// Serializable reads at one member do not go back.
pub const MEMBER: &str = "what one member answers never goes back while it runs";

/// Where an operation stands: revisions doubled, one more for what comes after the write.
pub(crate) type Place = i64;

/// The place of a write.
pub(crate) fn of_write(revision: i64) -> Place {
    revision.saturating_mul(2)
}

/// The place of anything else.
pub(crate) fn of_read(revision: i64) -> Place {
    revision.saturating_mul(2).saturating_add(1)
}

/// For any moment, the furthest place that had been answered by then.
pub(crate) struct Floors {
    /// Return time, furthest place up to it, and the operation there; by time.
    steps: Vec<(u64, Place, usize)>,
}

impl Floors {
    /// From return times and places of operations.
    pub(crate) fn new(mut returns: Vec<(u64, Place, usize)>) -> Self {
        returns.sort_unstable();
        let mut furthest: Option<(Place, usize)> = None;
        for (_, place, index) in &mut returns {
            match furthest {
                Some((far, at)) if far >= *place => (*place, *index) = (far, at),
                _ => furthest = Some((*place, *index)),
            }
        }
        Floors { steps: returns }
    }

    /// The highest place of all that returned before this moment.
    pub(crate) fn before(&self, time: u64) -> Option<(Place, usize)> {
        let count = self.steps.partition_point(|(ret, ..)| *ret < time);
        let (_, place, index) = self.steps.get(count.checked_sub(1)?)?;
        Some((*place, *index))
    }
}

/// What is known to stand where: `place` gives the lowest and the highest possible place.
pub(crate) fn judge(
    history: &History,
    place: impl Fn(usize) -> Option<(Place, Place)>,
) -> Result<Floors, Violation> {
    let operations = &history.operations;
    let mut returns = Vec::with_capacity(operations.len());
    for (index, operation) in operations.iter().enumerate() {
        if operation.answer().is_some()
            && let Some((low, _)) = place(index)
        {
            returns.push((operation.ret, low, index));
        }
    }
    let floors = Floors::new(returns);
    for (index, operation) in operations.iter().enumerate() {
        let Some((_, high)) = place(index) else { continue };
        if operation.request.is_serializable() {
            continue;
        }
        if let Some((floor, earlier)) = floors.before(operation.invoke)
            && floor > high
        {
            return Err(complain(&operations[earlier], operation, floor, high));
        }
    }
    Ok(floors)
}

fn complain(earlier: &Operation, later: &Operation, floor: Place, high: Place) -> Violation {
    let is_write = |place: Place| place % 2 == 0;
    let property = match (is_write(floor), is_write(high)) {
        (true, true) => SEQUENCE,
        (false, true) => CAUSE,
        (_, false) => CURRENT,
    };
    let detail = format!("{} had returned before {}", tell(earlier), tell(later));
    Violation::new(property, detail)
}

/// Serializable reads of each run of a member, against all that it had answered.
pub(crate) fn judge_members(history: &History) -> Result<(), Violation> {
    let mut members: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, operation) in history.operations.iter().enumerate() {
        if operation.answer().is_some_and(|answer| !matches!(answer, Answer::KeepAlive { .. })) {
            members.entry(operation.member).or_default().push(index);
        }
    }
    let revision = |index: usize| history.operations[index].answer().map_or(0, Answer::revision);
    for indices in members.into_values() {
        let returns = indices.iter().map(|i| (history.operations[*i].ret, revision(*i), *i));
        let floors = Floors::new(returns.collect());
        for index in indices {
            let later = &history.operations[index];
            if let Some((floor, earlier)) = floors.before(later.invoke)
                && later.request.is_serializable()
                && floor > revision(index)
            {
                let earlier = tell(&history.operations[earlier]);
                let detail = format!("{earlier} had returned before {}", tell(later));
                return Err(Violation::new(MEMBER, detail));
            }
        }
    }
    Ok(())
}

/// An operation in words.
pub(crate) fn tell(operation: &Operation) -> String {
    let Operation { client, member, invoke, ret, request, outcome } = operation;
    let text = format!(
        "client {client} at member {member}, {invoke} to {ret} ns: {request:?} was {outcome:?}"
    );
    match text.char_indices().nth(1_500) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
