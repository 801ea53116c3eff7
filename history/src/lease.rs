//! Leases: none ends early, none comes back, and what is attached goes together.
//!
//! Used by [`super::judge`]. A grant or renewal that was answered was done after its call, so the
//! lease lives for its time after that call at least, unless somebody revokes it. That is judged
//! where a member says that there is no such lease, and where its keys went without a call
//! ([`judge_ends`], by the order that [`super::linear`] found; a revision that somebody's
//! revocation may have made is never held against the clock, nor one that another order could give
//! to somebody else). That all its keys go in one revision
//! is judged by the replay, and told with [`TOGETHER`]. The clock of the history and the members'
//! must run alike. Must never judge a lease that was granted twice, nor one whose grant is unknown.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::linear::{Witness, Writer};
use super::realtime::tell;
use super::types::{Answer, History, Operation, Outcome, Request};

/// Leases live as long as promised.
pub const EARLY: &str = "a lease does not end before its time";
/// Leases end once.
pub const GONE: &str = "a lease that is gone stays gone";
/// The keys of a lease go in one revision.
pub const TOGETHER: &str = "the keys of a lease go in one revision";

const NANOS: u64 = 1_000_000_000;

/// What is known about one lease.
#[derive(Default)]
struct Life {
    grants: usize,
    granted_ret: u64,
    /// Calls of answered grants and renewals, with the promised end.
    promises: Vec<(u64, u64)>,
    /// The first call to revoke it that was not refused.
    revoke_invoke: Option<u64>,
    /// The first answer that it is revoked.
    revoke_ret: Option<u64>,
}

impl Life {
    /// The latest promise made in calls before this moment.
    fn promised(&self, before: u64) -> u64 {
        let made = self.promises.iter().filter(|(invoke, _)| *invoke < before);
        made.map(|(_, end)| *end).max().unwrap_or(0)
    }
}

fn lives(history: &History) -> BTreeMap<i64, Life> {
    let mut lives: BTreeMap<i64, Life> = BTreeMap::new();
    for operation in &history.operations {
        let promise = |ttl: i64| {
            let ttl = u64::try_from(ttl).unwrap_or(0);
            (operation.invoke, operation.invoke.saturating_add(ttl.saturating_mul(NANOS)))
        };
        match (&operation.request, operation.answer()) {
            (Request::Grant { id, .. }, answer) if !operation.is_refused() => {
                let life = lives.entry(*id).or_default();
                life.grants += 1;
                if let Some(Answer::Grant { ttl, .. }) = answer {
                    life.granted_ret = operation.ret;
                    life.promises.push(promise(*ttl));
                }
            }
            (Request::KeepAlive { id }, Some(Answer::KeepAlive { ttl, .. })) if *ttl > 0 => {
                lives.entry(*id).or_default().promises.push(promise(*ttl));
            }
            (Request::Revoke { id }, answer) if !operation.is_refused() => {
                let life = lives.entry(*id).or_default();
                let first = life.revoke_invoke.unwrap_or(u64::MAX).min(operation.invoke);
                life.revoke_invoke = Some(first);
                if answer.is_some() {
                    let first = life.revoke_ret.unwrap_or(u64::MAX).min(operation.ret);
                    life.revoke_ret = Some(first);
                }
            }
            _ => {}
        }
    }
    lives.retain(|_, life| life.grants == 1 && life.granted_ret > 0);
    lives
}

/// Judges what members said about leases.
///
/// # Errors
///
/// A lease that was gone too early, or not at all.
pub fn judge(history: &History) -> Result<(), Violation> {
    let lives = lives(history);
    for operation in &history.operations {
        match (&operation.request, &operation.outcome) {
            (Request::KeepAlive { id }, Outcome::Known(Answer::KeepAlive { ttl, .. })) => {
                let Some(life) = lives.get(id) else { continue };
                if *ttl <= 0 {
                    missing(life, operation)?;
                } else if life.revoke_ret.is_some_and(|ret| ret < operation.invoke) {
                    return Err(Violation::new(GONE, tell(operation)));
                }
            }
            (request, Outcome::Refused(text)) if text.contains("lease not found") => {
                // A request that names several may miss any of them.
                let ids: Vec<i64> = match request {
                    Request::KeepAlive { id } | Request::Revoke { id } => vec![*id],
                    Request::Put(put) => vec![put.lease],
                    _ => continue,
                };
                for life in ids.iter().filter_map(|id| lives.get(id)) {
                    missing(life, operation)?;
                }
            }
            (Request::Put(put), Outcome::Known(_)) if put.lease != 0 => {
                let Some(life) = lives.get(&put.lease) else { continue };
                if life.revoke_ret.is_some_and(|ret| ret < operation.invoke) {
                    return Err(Violation::new(GONE, tell(operation)));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The operation says that the lease is not there.
fn missing(life: &Life, operation: &Operation) -> Result<(), Violation> {
    let granted = life.granted_ret < operation.invoke;
    let revoked = life.revoke_invoke.is_some_and(|invoke| invoke < operation.ret);
    if granted && !revoked && operation.ret < life.promised(operation.invoke) {
        return Err(Violation::new(EARLY, tell(operation)));
    }
    Ok(())
}

/// Judges when keys of leases went that nobody revoked.
///
/// # Errors
///
/// A lease whose keys were gone before its time.
pub fn judge_ends(history: &History, witness: &Witness) -> Result<(), Violation> {
    let lives = lives(history);
    let known_by = known_by(history);
    let watched = watched(history);
    for (index, writer) in witness.writers.iter().enumerate() {
        let Writer::Expiry(id) = writer else { continue };
        let Some(life) = lives.get(id) else { continue };
        let offset = i64::try_from(index).unwrap_or(i64::MAX);
        let revision = witness.model.base().saturating_add(1).saturating_add(offset);
        let Some((_, seen)) = known_by.range(revision..).next() else { continue };
        if !watched.contains(&revision) && could_be_another(history, witness, index, *seen) {
            continue;
        }
        if *seen < life.promised(*seen) {
            let detail =
                format!("lease {id} ended at revision {revision}, {seen} ns at the latest");
            return Err(Violation::new(EARLY, detail));
        }
    }
    Ok(())
}

/// Revisions that a watch has told: there the order has no choice.
fn watched(history: &History) -> BTreeSet<i64> {
    let batches = history.watches.iter().flat_map(|watch| &watch.batches);
    batches.flat_map(|batch| &batch.events).map(|event| event.kv.modified).collect()
}

/// True if the revision of the writer at `index`, known by `seen`, may as well be that of a write
/// that nobody knows the outcome of, or of a lease that the order has end later.
fn could_be_another(history: &History, witness: &Witness, index: usize, seen: u64) -> bool {
    let unknown = |operation: &Operation| {
        operation.outcome == Outcome::Unknown
            && operation.invoke < seen
            && !matches!(operation.request, Request::Get(_) | Request::KeepAlive { .. })
    };
    let mut later = witness.writers.iter().skip(index + 1);
    history.operations.iter().any(unknown)
        || later.any(|writer| matches!(writer, Writer::Expiry(_)))
}

/// Revision to the first moment by which it, or a later one, had been told.
fn known_by(history: &History) -> BTreeMap<i64, u64> {
    let mut first: BTreeMap<i64, u64> = BTreeMap::new();
    let mut tell = |revision: i64, at: u64| {
        let seen = first.entry(revision).or_insert(at);
        *seen = at.min(*seen);
    };
    for operation in &history.operations {
        if let Some(answer) = operation.answer() {
            tell(answer.revision(), operation.ret);
        }
    }
    for batch in history.watches.iter().flat_map(|watch| &watch.batches) {
        tell(batch.revision, batch.at);
    }
    let mut soonest = u64::MAX;
    for at in first.values_mut().rev() {
        soonest = soonest.min(*at);
        *at = soonest;
    }
    first
}
