//! Writes that may have happened without anybody saying where.
//!
//! Used by [`super::linear`]: these are what a revision may be given to that no answer claims. Must
//! never leave out a writer that is possible.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::data::Data;
use super::evidence::Evidence;
use super::keys::{KeySet, Keys};
use super::linear::Writer;
use super::types::{Answer, History, Outcome, Put, Request, Txn};

/// One of them, with all that follows from its request alone.
pub(crate) struct Open {
    pub(crate) invoke: u64,
    pub(crate) writer: Writer,
    /// The only revision that it can have made.
    pub(crate) answered: Option<i64>,
    /// Keys that decide what it does, and those it may change.
    pub(crate) footprint: KeySet,
    /// What it may put: key, value, lease.
    pub(crate) puts: Vec<(usize, Data, i64)>,
    /// Keys that it may remove.
    pub(crate) removes: KeySet,
    /// The lease that it ends.
    pub(crate) ends: Option<i64>,
    /// It changes one key, always the same.
    pub(crate) single: Option<usize>,
    /// It may put and remove in one revision.
    pub(crate) is_mixed: bool,
    pub(crate) is_txn: bool,
}

impl Open {
    /// What was shown of the revision does not exclude it, whatever the store holds.
    pub(crate) fn may_make(&self, revision: i64, evidence: &Evidence, keys: &Keys) -> bool {
        if self.answered.is_some_and(|answered| answered != revision) {
            return false;
        }
        let puts = evidence.written(revision).all(|seen| {
            self.puts.iter().any(|(key, value, lease)| {
                *keys.key(*key) == seen.kv.key
                    && (seen.keys_only || (*value == seen.kv.value && *lease == seen.kv.lease))
            })
        });
        let removes = evidence
            .removed(revision)
            .all(|key| keys.index(key).is_some_and(|key| self.removes.contains(key)));
        let touches = || {
            self.single.is_none_or(|key| {
                let key = keys.key(key);
                evidence.may_touch(key, revision)
                    && (!self.puts.is_empty() || evidence.may_remove(key, revision))
            })
        };
        puts && removes && touches()
    }
}

/// Unknown outcomes, revocations and ends of leases, the newest call first, ends last.
pub(crate) fn all(history: &History, keys: &Keys) -> Vec<Open> {
    let leases = lease_keys(history, keys);
    let (mut open, mut ends) = (Vec::new(), Vec::new());
    for (index, operation) in history.operations.iter().enumerate() {
        let revoked = matches!(operation.answer(), Some(Answer::Revoke { .. }));
        let unknown = operation.outcome == Outcome::Unknown && operation.request.may_write();
        if revoked || unknown {
            let answered = operation.answer().map(Answer::revision);
            let writer = Writer::Operation(index);
            let request = Some(&operation.request);
            open.push(make(operation.invoke, writer, answered, request, keys, &leases));
        }
        if let (Request::Grant { id, .. }, false) = (&operation.request, operation.is_refused()) {
            let writer = Writer::Expiry(*id);
            ends.push(make(operation.invoke, writer, None, None, keys, &leases));
        }
    }
    open.sort_by_key(|open| Reverse(open.invoke));
    ends.sort_by_key(|open| Reverse(open.invoke));
    // A lease of the start has no grant in the history.
    let leased = history.start.kvs.iter().map(|kv| kv.lease).filter(|id| *id != 0);
    for id in leased.collect::<BTreeSet<_>>() {
        ends.push(make(0, Writer::Expiry(id), None, None, keys, &leases));
    }
    open.append(&mut ends);
    open
}

/// Keys that were ever attached to each lease.
fn lease_keys(history: &History, keys: &Keys) -> BTreeMap<i64, KeySet> {
    let mut leases: BTreeMap<i64, KeySet> = BTreeMap::new();
    let mut attach = |lease: i64, key: &Data| {
        if lease != 0
            && let Some(key) = keys.index(key)
        {
            leases.entry(lease).or_insert_with(|| keys.none()).insert(key);
        }
    };
    for operation in &history.operations {
        operation.request.each_put(&mut |put| attach(put.lease, &put.key));
    }
    history.start.kvs.iter().for_each(|kv| attach(kv.lease, &kv.key));
    leases
}

fn make(
    invoke: u64,
    writer: Writer,
    answered: Option<i64>,
    request: Option<&Request>,
    keys: &Keys,
    leases: &BTreeMap<i64, KeySet>,
) -> Open {
    let mut open = Open {
        invoke,
        writer,
        answered,
        footprint: keys.none(),
        puts: Vec::new(),
        removes: keys.none(),
        ends: None,
        single: None,
        is_mixed: false,
        is_txn: false,
    };
    match (writer, request) {
        (Writer::Expiry(id), _) | (_, Some(&Request::Revoke { id })) => {
            open.ends = Some(id);
            if let Some(attached) = leases.get(&id) {
                open.removes.add(attached);
            }
        }
        (_, Some(request)) => {
            open.add(request, keys);
            if let Request::Txn(txn) = request {
                open.is_txn = true;
                open.is_mixed = is_mixed(txn);
            }
        }
        (_, None) => {}
    }
    for (key, ..) in &open.puts {
        open.footprint.insert(*key);
    }
    open.footprint.add(&open.removes);
    if !open.is_txn && open.ends.is_none() && open.footprint.count() == 1 {
        open.single = open.footprint.iter().next();
    }
    open
}

impl Open {
    fn add(&mut self, request: &Request, keys: &Keys) {
        match request {
            Request::Put(Put { key, value, lease, .. }) => {
                if let Some(key) = keys.index(key) {
                    self.puts.push((key, value.clone(), *lease));
                }
            }
            Request::Delete(delete) => self.removes.insert_all(keys.span(&delete.range)),
            Request::Txn(txn) => {
                for compare in &txn.compares {
                    self.footprint.insert_all(keys.span(&compare.range));
                }
                for request in txn.success.iter().chain(&txn.failure) {
                    self.add(request, keys);
                }
            }
            _ => {}
        }
    }
}

/// One branch may both put and remove.
fn is_mixed(txn: &Txn) -> bool {
    [&txn.success, &txn.failure].into_iter().any(|branch| {
        let puts = branch.iter().any(Request::has_put);
        puts && branch.iter().any(removes)
    })
}

fn removes(request: &Request) -> bool {
    match request {
        Request::Delete(_) => true,
        Request::Txn(txn) => txn.success.iter().chain(&txn.failure).any(removes),
        _ => false,
    }
}
