//! What answers and events give away about single revisions, whoever wrote them.
//!
//! Used by [`super::linear`] to place writes of unknown outcome: a pair names the revision that
//! wrote it, and tells that its key was left alone from then until it was read. Must never claim
//! more than an answer says.

use std::collections::{BTreeMap, BTreeSet};

use super::data::{Data, KeyRange};
use super::model::Model;
use super::types::{Answer, History, Kv, Request};

/// A pair that somebody was shown.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) kv: Kv,
    /// The value was not asked for.
    pub(crate) keys_only: bool,
}

struct Watched {
    range: KeyRange,
    first: i64,
    last: i64,
}

/// All of it.
#[derive(Default)]
pub(crate) struct Evidence {
    written: BTreeMap<i64, BTreeMap<Data, Seen>>,
    removed: BTreeMap<i64, BTreeSet<Data>>,
    /// Key to the revision of a write to the last revision at which that was still the last write.
    resting: BTreeMap<Data, BTreeMap<i64, i64>>,
    /// Key to the revision at which it came to be to the last one at which it was still there.
    alive: BTreeMap<Data, BTreeMap<i64, i64>>,
    watched: Vec<Watched>,
    /// The highest revision of which anything is told.
    pub(crate) last: i64,
}

impl Evidence {
    pub(crate) fn of(history: &History) -> Self {
        let mut evidence = Evidence { last: history.start.revision, ..Evidence::default() };
        for operation in &history.operations {
            let Some(answer) = operation.answer() else { continue };
            if !matches!(answer, Answer::KeepAlive { .. }) {
                evidence.last = evidence.last.max(answer.revision());
            }
            evidence.take(answer, &operation.request);
        }
        for watch in &history.watches {
            let first = if watch.start > 0 { watch.start } else { watch.created + 1 };
            let mut last = 0;
            for batch in &watch.batches {
                if batch.events.is_empty() {
                    last = last.max(batch.revision);
                }
                for event in &batch.events {
                    let revision = event.kv.modified;
                    last = last.max(revision);
                    evidence.last = evidence.last.max(revision);
                    if event.delete {
                        let keys = evidence.removed.entry(revision).or_default();
                        keys.insert(event.kv.key.clone());
                    } else {
                        evidence.see(&event.kv, false, revision);
                    }
                    if let Some(prev) = &event.prev {
                        evidence.see(prev, false, revision - 1);
                    }
                }
            }
            evidence.watched.push(Watched { range: watch.range.clone(), first, last });
        }
        evidence
    }

    fn take(&mut self, answer: &Answer, request: &Request) {
        match (answer, request) {
            (Answer::Get { revision, kvs, .. }, Request::Get(get)) => {
                let at = if get.revision > 0 { get.revision } else { *revision };
                kvs.iter().for_each(|kv| self.see(kv, get.keys_only, at));
            }
            (Answer::Put { revision, prev }, _) => {
                prev.iter().for_each(|kv| self.see(kv, false, revision - 1));
            }
            (Answer::Delete { revision, prev, .. }, _) => {
                prev.iter().for_each(|kv| self.see(kv, false, revision - 1));
            }
            (Answer::Txn { succeeded, answers, .. }, Request::Txn(txn)) => {
                let branch = if *succeeded { &txn.success } else { &txn.failure };
                for (answer, request) in answers.iter().zip(branch) {
                    self.take(answer, request);
                }
            }
            _ => {}
        }
    }

    fn see(&mut self, kv: &Kv, keys_only: bool, at: i64) {
        let keys = self.written.entry(kv.modified).or_default();
        let seen = keys.entry(kv.key.clone()).or_insert_with(|| Seen { kv: kv.clone(), keys_only });
        if seen.keys_only && !keys_only {
            *seen = Seen { kv: kv.clone(), keys_only };
        }
        let until = self.resting.entry(kv.key.clone()).or_default().entry(kv.modified).or_default();
        *until = at.max(*until);
        let until = self.alive.entry(kv.key.clone()).or_default().entry(kv.create).or_default();
        *until = at.max(*until);
    }

    /// Keys, and each revision at which they came to be, as far as it was shown.
    pub(crate) fn creations(&self) -> impl Iterator<Item = (&Data, i64)> {
        let keys = self.alive.iter();
        keys.flat_map(|(key, lives)| lives.keys().map(move |create| (key, *create)))
    }

    /// What the revision wrote, as far as it was shown.
    pub(crate) fn written(&self, revision: i64) -> impl Iterator<Item = &Seen> {
        self.written.get(&revision).into_iter().flat_map(BTreeMap::values)
    }

    /// All pairs that were shown, by the revision that wrote them.
    pub(crate) fn all_written(&self) -> impl Iterator<Item = (i64, &Seen)> {
        let revisions = self.written.iter();
        revisions.flat_map(|(revision, keys)| keys.values().map(|seen| (*revision, seen)))
    }

    /// What the revision removed, as far as it was shown.
    pub(crate) fn removed(&self, revision: i64) -> impl Iterator<Item = &Data> {
        self.removed.get(&revision).into_iter().flatten()
    }

    /// The last write of the model agrees with all that was shown of its revision.
    pub(crate) fn agrees(&self, model: &Model) -> bool {
        let revision = model.revision();
        self.shown_otherwise(model).is_none()
            && model.touched(revision).iter().all(|key| {
                self.may_touch(key, revision)
                    && (self.may_remove(key, revision) || model.is_living(key, revision))
            })
    }

    /// A key that the last write of the model did not leave as it was shown.
    pub(crate) fn shown_otherwise(&self, model: &Model) -> Option<&Data> {
        let revision = model.revision();
        let touched = model.touched(revision);
        let is_as_shown = |seen: &Seen| {
            touched.contains(&seen.kv.key)
                && model.kv(&seen.kv.key, revision).is_some_and(|kv| {
                    kv == seen.kv
                        || (seen.keys_only
                            && kv.version == seen.kv.version
                            && kv.create == seen.kv.create)
                })
        };
        let removed = |key: &Data| touched.contains(key) && !model.is_living(key, revision);
        let written = self.written(revision).find(|seen| !is_as_shown(seen));
        let written = written.map(|seen| &seen.kv.key);
        written.or_else(|| self.removed(revision).find(|key| !removed(key)))
    }

    /// Nobody saw the key survive this revision.
    pub(crate) fn may_remove(&self, key: &Data, revision: i64) -> bool {
        let alive = self.alive.get(key).and_then(|lives| lives.range(..revision).next_back());
        alive.is_none_or(|(_, until)| *until < revision)
    }

    /// Nobody saw an older pair of the key after this revision, and no watch of it says nothing.
    pub(crate) fn may_touch(&self, key: &Data, revision: i64) -> bool {
        let resting = self.resting.get(key).and_then(|rests| rests.range(..revision).next_back());
        if resting.is_some_and(|(_, until)| *until >= revision) {
            return false;
        }
        let watched = self.watched.iter().any(|watched| {
            (watched.first..=watched.last).contains(&revision) && watched.range.contains(key)
        });
        let told = || {
            let written = self.written.get(&revision).is_some_and(|keys| keys.contains_key(key));
            written || self.removed.get(&revision).is_some_and(|keys| keys.contains(key))
        };
        !watched || told()
    }
}
