//! Linearizability of registers without revisions: the search of Wing and Gong, with Lowe's memory
//! of what was tried, key by key.
//!
//! Used to hold [`super::linear`] against something that works in another way, and for histories of
//! stores that have no revisions. Judges values of single keys: reads that are not serializable,
//! writes and removals of one key. [`registers`] leaves out what else is in a history, and keys
//! that anything else may write. Must never be used on long histories with many calls at once: the
//! search is exponential in those, and given up ([`Verdict::Undecided`]).

use std::collections::{BTreeMap, BTreeSet};

use super::data::{Data, KeyRange};
use super::types::{Answer, History, Outcome, Request};

/// States visited before a search is given up.
const STATES_MAX: usize = 1_000_000;

/// What was done to a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It held this, or nothing.
    Read(Option<Data>),
    /// It holds this now, or nothing.
    Write(Option<Data>),
}

/// An operation on a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterOperation {
    /// When it was called.
    pub invoke: u64,
    /// When it returned; `None` if it may take effect at any time from then on, or never.
    pub ret: Option<u64>,
    /// What it did.
    pub action: Action,
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none.
    NotLinearizable,
    /// Too many orders to try.
    Undecided,
}

/// The registers in a history that can be judged alone, each with its value at the start.
pub fn registers(history: &History) -> BTreeMap<Data, (Option<Data>, Vec<RegisterOperation>)> {
    let mut registers: BTreeMap<Data, (Option<Data>, Vec<RegisterOperation>)> = BTreeMap::new();
    let mut entangled: Vec<KeyRange> = Vec::new();
    for operation in history.operations.iter().filter(|operation| !operation.is_refused()) {
        let unknown = operation.outcome == Outcome::Unknown;
        let (key, action) = match (&operation.request, operation.answer()) {
            (Request::Get(get), Some(Answer::Get { kvs, .. })) => {
                let plain = get.revision == 0 && !get.keys_only && !get.count_only;
                if get.serializable || !get.range.is_one() || !plain {
                    continue;
                }
                let value = kvs.first().map(|kv| kv.value.clone());
                (&get.range.key, Action::Read(value))
            }
            (Request::Put(put), _) if put.lease == 0 => {
                (&put.key, Action::Write(Some(put.value.clone())))
            }
            (Request::Delete(delete), _) if delete.range.is_one() => {
                (&delete.range.key, Action::Write(None))
            }
            (request, _) => {
                if request.may_write() || matches!(request, Request::Put(_)) {
                    entangled.extend(request.footprint());
                }
                continue;
            }
        };
        let ret = (!unknown).then_some(operation.ret);
        let found = RegisterOperation { invoke: operation.invoke, ret, action };
        registers.entry(key.clone()).or_default().1.push(found);
    }
    for kv in &history.start.kvs {
        if let Some((start, _)) = registers.get_mut(&kv.key) {
            *start = Some(kv.value.clone());
        }
    }
    registers.retain(|key, _| !entangled.iter().any(|range| range.contains(key)));
    registers
}

/// Judges one register.
pub fn judge(start: Option<Data>, operations: &[RegisterOperation]) -> Verdict {
    // Calls by time; done ones are marked in a set of bits, which with the value is a state.
    let mut calls: Vec<&RegisterOperation> = operations.iter().collect();
    calls.sort_by_key(|operation| operation.invoke);
    let total = calls.iter().filter(|operation| operation.ret.is_some()).count();
    let mut tried: BTreeSet<(Vec<u64>, Option<Data>)> = BTreeSet::new();
    let mut stack = vec![(vec![0u64; calls.len().div_ceil(64)], start, 0usize, 0usize)];
    while let Some((done, value, count, first)) = stack.pop() {
        if count == total {
            return Verdict::Linearizable;
        }
        if tried.len() >= STATES_MAX {
            return Verdict::Undecided;
        }
        let is_done = |index: usize| done[index / 64] >> (index % 64) & 1 == 1;
        // Whatever is called after the first return among the rest cannot come before it.
        let mut horizon = u64::MAX;
        let mut first = first;
        while first < calls.len() && is_done(first) {
            first += 1;
        }
        for (index, call) in calls.iter().enumerate().skip(first) {
            if call.invoke > horizon {
                break;
            }
            if is_done(index) {
                continue;
            }
            horizon = horizon.min(call.ret.unwrap_or(u64::MAX));
            let after = match &call.action {
                Action::Read(found) if *found != value => continue,
                Action::Read(_) => value.clone(),
                Action::Write(written) => written.clone(),
            };
            let mut done = done.clone();
            done[index / 64] |= 1 << (index % 64);
            if tried.insert((done.clone(), after.clone())) {
                let count = count + usize::from(call.ret.is_some());
                stack.push((done, after, count, first));
            }
        }
    }
    Verdict::NotLinearizable
}
