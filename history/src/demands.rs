//! What must have been removed by when.
//!
//! Used by [`super::linear`]: a key that somebody found missing at a revision, and that no answered
//! write touches until then, must be removed by a revision that nobody claims. If there are too few
//! of those left, or nothing that could do it, a choice is wrong, long before an answer says so.
//! Must never demand what a correct order need not do: all counts are lower bounds of revisions
//! needed, and upper bounds of revisions there.

use std::collections::{BTreeMap, BTreeSet};

use super::evidence::Evidence;
use super::keys::{KeySet, Keys};
use super::model::Model;
use super::open::Open;
use super::types::{Answer, History, Request};

/// See the module text.
pub(crate) struct Demands {
    /// Revisions that no answer claims, in order.
    gaps: Vec<i64>,
    /// How many of those before each may remove a key; one more than there are gaps.
    usable: Vec<usize>,
    /// Key and number of gaps up to then: the first revision at which it was found missing before
    /// the next gap.
    missing: BTreeMap<(usize, usize), i64>,
    /// For each key, the claimed revisions that may touch it, in order.
    touches: Vec<Vec<i64>>,
    /// For each key, which of the open writes may put or remove it.
    putters: Vec<Vec<usize>>,
    removers: Vec<Vec<usize>>,
}

impl Demands {
    pub(crate) fn new(
        history: &History,
        keys: &Keys,
        evidence: &Evidence,
        claimed: &BTreeMap<i64, usize>,
        open: &[Open],
    ) -> Self {
        let unclaimed = |revision: &i64| !claimed.contains_key(revision);
        let gaps: Vec<i64> =
            (history.start.revision + 1..=evidence.last).filter(unclaimed).collect();
        let mixed = open.iter().any(|open| open.is_mixed);
        let mut usable = vec![0];
        for gap in &gaps {
            let puts_only = !mixed && evidence.written(*gap).next().is_some();
            usable.push(usable.last().copied().unwrap_or(0) + usize::from(!puts_only));
        }
        let mut demands = Demands {
            gaps,
            usable,
            missing: BTreeMap::new(),
            touches: vec![Vec::new(); keys.len()],
            putters: vec![Vec::new(); keys.len()],
            removers: vec![Vec::new(); keys.len()],
        };
        if demands.gaps.is_empty() {
            return demands;
        }
        for (index, open) in open.iter().enumerate() {
            open.puts.iter().for_each(|(key, ..)| demands.putters[*key].push(index));
            open.removes.iter().for_each(|key| demands.removers[key].push(index));
        }
        for (revision, index) in claimed {
            let operation = &history.operations[*index];
            if let Some(answer) = operation.answer() {
                demands.touch(*revision, answer, &operation.request, keys);
            }
        }
        for operation in &history.operations {
            if let Some(answer) = operation.answer() {
                demands.find_missing(answer, &operation.request, keys);
            }
        }
        for (key, create) in evidence.creations() {
            if let Some(key) = keys.index(key) {
                demands.is_missing(key, create - 1);
            }
        }
        demands
    }

    fn touch(&mut self, revision: i64, answer: &Answer, request: &Request, keys: &Keys) {
        match (answer, request) {
            (_, Request::Put(put)) => {
                if let Some(key) = keys.index(&put.key) {
                    self.touches[key].push(revision);
                }
            }
            (_, Request::Delete(delete)) => {
                keys.span(&delete.range).for_each(|key| self.touches[key].push(revision));
            }
            (Answer::Txn { succeeded, answers, .. }, Request::Txn(txn)) => {
                let branch = if *succeeded { &txn.success } else { &txn.failure };
                for (answer, request) in answers.iter().zip(branch) {
                    self.touch(revision, answer, request, keys);
                }
            }
            _ => {}
        }
    }

    fn find_missing(&mut self, answer: &Answer, request: &Request, keys: &Keys) {
        match (answer, request) {
            (Answer::Get { revision, kvs, more: false, .. }, Request::Get(get)) => {
                if get.count_only {
                    return;
                }
                let at = if get.revision > 0 { get.revision } else { *revision };
                let mut shown = kvs.iter().map(|kv| &kv.key).peekable();
                for key in keys.span(&get.range) {
                    while shown.next_if(|shown| **shown < *keys.key(key)).is_some() {}
                    if shown.peek() != Some(&keys.key(key)) {
                        self.is_missing(key, at);
                    }
                }
            }
            (Answer::Delete { revision, deleted: 0, .. }, Request::Delete(delete)) => {
                keys.span(&delete.range).for_each(|key| self.is_missing(key, *revision));
            }
            (Answer::Put { revision, prev: None }, Request::Put(put)) if put.prev_kv => {
                if let Some(key) = keys.index(&put.key) {
                    self.is_missing(key, *revision - 1);
                }
            }
            (Answer::Txn { succeeded, answers, .. }, Request::Txn(txn)) => {
                let branch = if *succeeded { &txn.success } else { &txn.failure };
                for (answer, request) in answers.iter().zip(branch) {
                    self.find_missing(answer, request, keys);
                }
            }
            _ => {}
        }
    }

    fn is_missing(&mut self, key: usize, at: i64) {
        let gaps = self.gaps.partition_point(|gap| *gap <= at);
        if gaps > 0 {
            let first = self.missing.entry((key, gaps)).or_insert(at);
            *first = at.min(*first);
        }
    }

    /// If the key is there at this revision: by when it must be removed by a gap.
    fn deadline(&self, key: usize, revision: i64) -> Option<i64> {
        let gaps = self.gaps.partition_point(|gap| *gap <= revision);
        let (_, at) = self.missing.range((key, gaps)..(key + 1, 0)).next()?;
        let touches = &self.touches[key];
        let touched = touches.get(touches.partition_point(|touch| *touch <= revision));
        touched.is_none_or(|touched| touched > at).then_some(*at)
    }

    /// Gaps after one revision up to another in which something may be removed.
    fn usable(&self, after: i64, until: i64) -> usize {
        let count = |at: i64| self.usable[self.gaps.partition_point(|gap| *gap <= at)];
        count(until).saturating_sub(count(after))
    }

    /// A put of the key at this revision could be followed by its removal in time.
    pub(crate) fn may_put(&self, key: usize, revision: i64) -> bool {
        self.deadline(key, revision)
            .is_none_or(|at| self.usable(revision, at) > 0 && !self.removers[key].is_empty())
    }

    /// Keys that cannot all be removed in time, the model being at a revision; `None` if it looks
    /// as if they could. `taken` are the open writes that are used already.
    pub(crate) fn unmet(
        &self,
        model: &Model,
        keys: &Keys,
        open: &[Open],
        taken: &[bool],
    ) -> Option<KeySet> {
        let revision = model.revision();
        let mut due: Vec<(i64, usize, i64)> = Vec::new();
        for (key, lease) in model.living() {
            if let Some(key) = keys.index(key)
                && let Some(at) = self.deadline(key, revision)
            {
                due.push((at, key, lease));
            }
        }
        if due.is_empty() {
            return None;
        }
        due.sort_unstable();
        let free = || open.iter().zip(taken).filter(|(_, taken)| !**taken).map(|(open, _)| open);
        let mut wide = keys.none();
        for open in free().filter(|open| open.ends.is_none() && open.removes.count() > 1) {
            wide.add(&open.removes);
        }
        let mut demanded = keys.none();
        // Revisions needed: one for each lease, one for each key without, but one only for all that
        // something wide may remove, and for leases with such keys; none is counted for what may be
        // attached to another lease first.
        let (mut needed, mut wide_needed) = (0, 0);
        let (mut counted, mut widened) = (BTreeSet::new(), BTreeSet::new());
        for (at, key, lease) in due {
            demanded.insert(key);
            let usable = self.usable(revision, at);
            let attachable = self.is_attachable(key, open, taken);
            let removable =
                attachable || self.is_removable(key, lease, (revision, at), open, taken);
            if usable == 0 || !removable {
                let mut alone = keys.none();
                alone.insert(key);
                return Some(alone);
            }
            if attachable {
                continue;
            }
            if wide.contains(key) {
                wide_needed = 1;
                if lease != 0 && widened.insert(lease) && counted.contains(&lease) {
                    needed -= 1;
                }
            } else if lease == 0 || (!widened.contains(&lease) && counted.insert(lease)) {
                needed += 1;
            }
            if needed + wide_needed > usable {
                return Some(demanded);
            }
        }
        None
    }

    /// Something may remove the key as it is now.
    fn is_removable(
        &self,
        key: usize,
        lease: i64,
        (after, until): (i64, i64),
        open: &[Open],
        taken: &[bool],
    ) -> bool {
        let mut removers = self.removers[key].iter().filter(|index| !taken[**index]);
        removers.any(|index| {
            let open = &open[*index];
            open.answered.is_none_or(|answered| answered > after && answered <= until)
                && open.ends.is_none_or(|ended| ended == lease)
        })
    }

    /// Something may attach the key to a lease.
    fn is_attachable(&self, key: usize, open: &[Open], taken: &[bool]) -> bool {
        let mut putters = self.putters[key].iter().filter(|index| !taken[**index]);
        putters
            .any(|index| open[*index].puts.iter().any(|(put, _, lease)| *put == key && *lease != 0))
    }
}
