//! Compaction: what was forgotten stays forgotten, and nothing else is called so.
//!
//! Used by [`super::judge`]. Judges reads that name a revision, alone or inside of transactions
//! that were answered. A serializable read is judged against compactions that its own member run
//! has answered; any other against all that were answered before it began. Must never require that
//! a compaction without an answer took place.

use std::collections::BTreeMap;

use super::Violation;
use super::realtime::{Floors, tell};
use super::types::{Answer, History, Operation, Outcome, Request};

/// Acknowledged compactions hold.
pub const KEPT: &str = "a compaction that was acknowledged is not undone";
/// Refusals as compacted have a cause.
pub const CAUSE: &str = "only what somebody asked to compact is refused as compacted";
/// Refusals as future have a cause.
pub const FUTURE: &str = "a revision that was told is not refused as one to come";

/// Asks it.
///
/// # Errors
///
/// A read that was answered or refused against it.
pub fn judge(history: &History) -> Result<(), Violation> {
    let mut all = Vec::new();
    let mut told = Vec::new();
    let mut members: BTreeMap<u64, Vec<(u64, i64, usize)>> = BTreeMap::new();
    // Called at, and the revision: the lowest call first.
    let mut asked = Vec::new();
    for (index, operation) in history.operations.iter().enumerate() {
        if let Some(answer) = operation.answer()
            && !matches!(answer, Answer::KeepAlive { .. })
        {
            told.push((operation.ret, answer.revision(), index));
        }
        let Request::Compact { revision } = operation.request else { continue };
        if !operation.is_refused() {
            asked.push((operation.invoke, revision));
        }
        if operation.answer().is_some() {
            all.push((operation.ret, revision, index));
            members.entry(operation.member).or_default().push((operation.ret, revision, index));
        }
    }
    asked.sort_unstable();
    for at in 1..asked.len() {
        asked[at].1 = asked[at].1.max(asked[at - 1].1);
    }
    let all = Floors::new(all);
    let told = Floors::new(told);
    let members: BTreeMap<u64, Floors> = members
        .into_iter()
        .map(|(member, compactions)| (member, Floors::new(compactions)))
        .collect();
    for operation in &history.operations {
        let serializable = operation.request.is_serializable();
        match &operation.outcome {
            Outcome::Known(answer) => {
                let floors = if serializable { members.get(&operation.member) } else { Some(&all) };
                let floor = floors.and_then(|floors| floors.before(operation.invoke));
                if let (Some((compacted, by)), Some(oldest)) =
                    (floor, oldest_read(&operation.request, answer))
                    && oldest < compacted
                {
                    let by = tell(&history.operations[by]);
                    let detail = format!("{by}, but then {}", tell(operation));
                    return Err(Violation::new(KEPT, detail));
                }
            }
            Outcome::Refused(text) => refused(operation, text, &asked, &told)?,
            Outcome::Unknown => {}
        }
    }
    Ok(())
}

fn refused(
    operation: &Operation,
    text: &str,
    asked: &[(u64, i64)],
    told: &Floors,
) -> Result<(), Violation> {
    let Request::Get(get) = &operation.request else { return Ok(()) };
    if text.contains("has been compacted") {
        let count = asked.partition_point(|(invoke, _)| *invoke < operation.ret);
        let compacted = count.checked_sub(1).map_or(0, |last| asked[last].1);
        if get.revision >= compacted {
            return Err(Violation::new(CAUSE, tell(operation)));
        }
    }
    if text.contains("future revision") && !get.serializable {
        let current = told.before(operation.invoke).map_or(0, |(revision, _)| revision);
        if get.revision <= current {
            return Err(Violation::new(FUTURE, tell(operation)));
        }
    }
    Ok(())
}

/// The oldest revision that was named and answered.
fn oldest_read(request: &Request, answer: &Answer) -> Option<i64> {
    match (request, answer) {
        (Request::Get(get), _) => (get.revision > 0).then_some(get.revision),
        (Request::Txn(txn), Answer::Txn { succeeded, answers, .. }) => {
            let branch = if *succeeded { &txn.success } else { &txn.failure };
            let pairs = branch.iter().zip(answers);
            pairs.filter_map(|(request, answer)| oldest_read(request, answer)).min()
        }
        _ => None,
    }
}
