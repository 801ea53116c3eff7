//! Nothing acknowledged is lost: the plainest question, asked of the answers alone.
//!
//! Used by [`super::judge`] first, since its sentence says most. For each key, an answered write at
//! R and a later look at the store at S ≥ R: the key is there with R or something newer, or is gone
//! and something that may remove it was asked for; and the store's revision is R at least. Values
//! are not looked at, the replay of [`super::linear`] does that. Must never blame a removal whose
//! outcome is unknown.

use std::collections::BTreeMap;

use super::Violation;
use super::data::{Data, KeyRange};
use super::realtime::tell;
use super::types::{Answer, History, Operation, Request};

/// The property.
pub const KEPT: &str = "nothing acknowledged is lost";

/// A look at part of the store: which keys, at which revision, and what was there.
struct Look<'a> {
    operation: &'a Operation,
    range: &'a KeyRange,
    at: i64,
    found: BTreeMap<&'a Data, i64>,
}

/// Asks it.
///
/// # Errors
///
/// An acknowledged write that a later answer does not know.
pub fn judge(history: &History) -> Result<(), Violation> {
    // Key to revisions of acknowledged writes.
    let mut written: BTreeMap<&Data, BTreeMap<i64, &Operation>> = BTreeMap::new();
    for operation in &history.operations {
        let Some(answer) = operation.answer() else { continue };
        let revision = answer.revision();
        each_put(&operation.request, answer, &mut |key| {
            written.entry(key).or_default().insert(revision, operation);
        });
    }
    let removals = Removals::of(history);
    for operation in &history.operations {
        let (Some(answer), Request::Get(get)) = (operation.answer(), &operation.request) else {
            continue;
        };
        let Answer::Get { revision, kvs, more, .. } = answer else { continue };
        if get.count_only || *more {
            continue;
        }
        let at = if get.revision > 0 { get.revision } else { *revision };
        let found = kvs.iter().map(|kv| (&kv.key, kv.modified)).collect();
        let look = Look { operation, range: &get.range, at, found };
        let one = look.range.is_one().then(|| written.get_key_value(&look.range.key)).flatten();
        if let Some((key, revisions)) = one {
            look_for(&look, key, revisions, &removals)?;
        } else if !look.range.is_one() {
            for (key, revisions) in written.range::<Data, _>(&look.range.key..) {
                if !look.range.contains(key) {
                    break;
                }
                look_for(&look, key, revisions, &removals)?;
            }
        }
    }
    Ok(())
}

fn look_for(
    look: &Look<'_>,
    key: &Data,
    revisions: &BTreeMap<i64, &Operation>,
    removals: &Removals<'_>,
) -> Result<(), Violation> {
    let Some((revision, write)) = revisions.range(..=look.at).next_back() else { return Ok(()) };
    let kept = match look.found.get(key) {
        Some(modified) => modified >= revision,
        None => removals.may_remove(key, *revision, look.at),
    };
    if kept {
        return Ok(());
    }
    let detail = format!("{} is not in {}", tell(write), tell(look.operation));
    Err(Violation::new(KEPT, detail))
}

/// Calls back for each key that an answered request has written.
fn each_put<'a>(request: &'a Request, answer: &Answer, each: &mut impl FnMut(&'a Data)) {
    match (request, answer) {
        (Request::Put(put), _) => each(&put.key),
        (Request::Txn(txn), Answer::Txn { succeeded, answers, .. }) => {
            let branch = if *succeeded { &txn.success } else { &txn.failure };
            for (request, answer) in branch.iter().zip(answers) {
                each_put(request, answer, each);
            }
        }
        _ => {}
    }
}

/// All that may have removed keys.
struct Removals<'a> {
    /// Single keys, by revision if known, and whatever has no known revision.
    known: BTreeMap<&'a Data, Vec<i64>>,
    ranges: Vec<(i64, &'a KeyRange)>,
    unknown: Vec<&'a KeyRange>,
    /// Keys that were ever attached to a lease: that may have ended.
    leased: BTreeMap<&'a Data, ()>,
}

impl<'a> Removals<'a> {
    fn of(history: &'a History) -> Self {
        let mut removals = Removals {
            known: BTreeMap::new(),
            ranges: Vec::new(),
            unknown: Vec::new(),
            leased: BTreeMap::new(),
        };
        for operation in &history.operations {
            if operation.is_refused() {
                continue;
            }
            operation.request.each_put(&mut |put| {
                if put.lease != 0 {
                    removals.leased.insert(&put.key, ());
                }
            });
            let revision = operation.answer().map(Answer::revision);
            removals.add(&operation.request, revision);
        }
        for revisions in removals.known.values_mut() {
            revisions.sort_unstable();
        }
        removals
    }

    fn add(&mut self, request: &'a Request, revision: Option<i64>) {
        match (request, revision) {
            (Request::Delete(delete), None) => self.unknown.push(&delete.range),
            (Request::Delete(delete), Some(at)) if delete.range.is_one() => {
                self.known.entry(&delete.range.key).or_default().push(at);
            }
            (Request::Delete(delete), Some(at)) => self.ranges.push((at, &delete.range)),
            (Request::Txn(txn), _) => {
                for request in txn.success.iter().chain(&txn.failure) {
                    self.add(request, revision);
                }
            }
            _ => {}
        }
    }

    /// Something may have removed the key after one revision, up to another.
    fn may_remove(&self, key: &Data, after: i64, until: i64) -> bool {
        let within = |at: i64| after < at && at <= until;
        let known = self.known.get(key).is_some_and(|revisions| {
            let index = revisions.partition_point(|at| *at <= after);
            revisions.get(index).is_some_and(|at| within(*at))
        });
        known
            || self.leased.contains_key(key)
            || self.unknown.iter().any(|range| range.contains(key))
            || self.ranges.iter().any(|(at, range)| within(*at) && range.contains(key))
    }
}
