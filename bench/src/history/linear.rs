//! Linearizability, by the revisions that etcd puts into every answer.
//!
//! Used by [`super::judge`]; its result, the [`Witness`], is what other judges build on. A write
//! that was answered names the revision that it made, so the order of those is given; every other
//! answer names the revision at which it was true. So there is no search but for revisions that no
//! answered write claims: those are given to operations whose outcome is unknown, to revocations,
//! and to leases that may have ended, newest call first, as evidence allows; a wrong choice is
//! taken back when an answer disagrees, the nearest one first that has to do with the keys of that
//! answer. Everything else is one replay against [`super::model`].
//!
//! Judged: every field of every answer at its revision, inner answers of transactions included;
//! each revision has one writer, each operation one effect at most, within its time, a refused one
//! none; real time ([`super::realtime`]); a serializable read shows a state that was there, whole.
//! What a member may refuse is judged by `compaction` and `lease`. Revisions of KeepAlive headers
//! are not judged (the member that answers may be behind), nor is it whether a lease existed.
//!
//! Must never call a history wrong because the search was given up: that is [`UNDECIDED`].

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::data::{Data, KeyRange};
use super::evidence::{Evidence, Seen};
use super::lease;
use super::model::Model;
use super::origin;
use super::realtime::{self, Floors, Place, tell};
use super::types::{Answer, History, Kv, Outcome, Request};

/// Answers are true.
pub const TRUE: &str = "an answer says, in every field, what the store held at its revision";
/// Revisions are unique.
pub const ONE_WRITE: &str = "a revision is made by one write";
/// No revision comes from nowhere.
pub const EXPLAINED: &str = "every revision was made by something that was asked for";
/// At most once.
pub const ONCE: &str = "an operation takes effect once at most";
/// Refused means refused.
pub const REFUSED: &str = "what was refused has no effect";
/// Not a violation of the store's: too many choices were open.
pub const UNDECIDED: &str = "the history leaves few enough choices to be judged";

/// Choices tried before a search is given up.
const TRIES_MAX: u64 = 2_000_000;

/// Who made a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// The operation with this index.
    Operation(usize),
    /// The lease with this id ended by itself.
    Expiry(i64),
}

/// An order of writes that explains a history.
#[derive(Debug)]
pub struct Witness {
    /// Who made each revision, from the first one after the start.
    pub writers: Vec<Writer>,
    /// The store after all of them.
    pub model: Model,
}

impl Witness {
    /// Who made this revision, if the history reaches it.
    pub fn writer(&self, revision: i64) -> Option<Writer> {
        let index = usize::try_from(revision - self.model.base() - 1).ok()?;
        self.writers.get(index).copied()
    }
}

/// Why a choice cannot be right.
struct Conflict {
    violation: Violation,
    /// Keys that it depends on.
    keys: Vec<KeyRange>,
}

/// A revision that may have been made by several.
struct Choice {
    revision: i64,
    /// Possible by time alone.
    candidates: Vec<Writer>,
    next: usize,
    chosen: Writer,
    /// Keys of the conflicts that ended earlier tries.
    keys: Vec<KeyRange>,
}

struct Search<'a> {
    history: &'a History,
    evidence: Evidence,
    floors: Floors,
    /// Revision to the write that claims it.
    claimed: BTreeMap<i64, usize>,
    /// Revision to operations that were answered there without saying that they wrote.
    answered: BTreeMap<i64, Vec<usize>>,
    /// All that may have written without saying where.
    open: Vec<(u64, Writer)>,
    /// Keys that were ever attached to each lease.
    lease_keys: BTreeMap<i64, BTreeSet<Data>>,
    model: Model,
    used: BTreeMap<usize, i64>,
    ended: BTreeSet<i64>,
    choices: Vec<Choice>,
    tries: u64,
    /// The conflict at the highest revision so far.
    deepest: Option<(i64, Violation)>,
}

/// Finds an order that explains the history.
///
/// # Errors
///
/// A property that does not hold, whatever the order; or [`UNDECIDED`].
pub fn judge(history: &History) -> Result<Witness, Violation> {
    let mut claimed: BTreeMap<i64, usize> = BTreeMap::new();
    let mut answered: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (index, operation) in history.operations.iter().enumerate() {
        let Some(answer) = operation.answer() else { continue };
        if !answer.says_written() {
            if !matches!(answer, Answer::KeepAlive { .. }) {
                answered.entry(answer.revision()).or_default().push(index);
            }
        } else if answer.revision() <= history.start.revision {
            let detail = format!("{} was there before", tell(operation));
            return Err(Violation::new(ONE_WRITE, detail));
        } else if let Some(other) = claimed.insert(answer.revision(), index) {
            let other = tell(&history.operations[other]);
            return Err(Violation::new(ONE_WRITE, format!("{other}; {}", tell(operation))));
        }
    }
    realtime::judge_members(history)?;
    let places = |index: usize| known_place(history, index);
    let floors = realtime::judge(history, places)?;
    let evidence = Evidence::of(history);
    origin::judge(history, &evidence, |revision| claimed.contains_key(&revision))?;
    let search = Search {
        evidence,
        floors,
        claimed,
        answered,
        open: open_writes(history),
        lease_keys: lease_keys(history),
        model: Model::new(&history.start),
        used: BTreeMap::new(),
        ended: BTreeSet::new(),
        choices: Vec::new(),
        tries: 0,
        deepest: None,
        history,
    };
    let (witness, used) = search.run()?;
    // Now it is known what revocations did.
    realtime::judge(history, |index| match used.get(&index) {
        Some(revision) => {
            let place = realtime::of_write(*revision);
            Some((place, place))
        }
        None => match (&history.operations[index].request, known_place(history, index)) {
            (Request::Revoke { .. }, Some((_, high))) => Some((high, high)),
            (_, place) => place,
        },
    })?;
    Ok(witness)
}

/// What an answer alone says about the place of its operation, from and to.
fn known_place(history: &History, index: usize) -> Option<(Place, Place)> {
    let answer = history.operations[index].answer()?;
    let revision = answer.revision();
    let (write, read) = (realtime::of_write(revision), realtime::of_read(revision));
    match answer {
        Answer::KeepAlive { .. } => None,
        Answer::Revoke { .. } => Some((write, read)),
        answer if answer.says_written() => Some((write, write)),
        _ => Some((read, read)),
    }
}

/// Unknown outcomes, revocations and ends of leases, the newest call first, ends last.
fn open_writes(history: &History) -> Vec<(u64, Writer)> {
    let mut open = Vec::new();
    let mut ends = Vec::new();
    for (index, operation) in history.operations.iter().enumerate() {
        let revoked = matches!(operation.answer(), Some(Answer::Revoke { .. }));
        let unknown = operation.outcome == Outcome::Unknown && operation.request.may_write();
        if revoked || unknown {
            open.push((operation.invoke, Writer::Operation(index)));
        }
        if let (Request::Grant { id, .. }, false) = (&operation.request, operation.is_refused()) {
            ends.push((operation.invoke, Writer::Expiry(*id)));
        }
    }
    let newest_first = |writes: &mut Vec<(u64, Writer)>| {
        writes.sort_by_key(|(invoke, _)| std::cmp::Reverse(*invoke));
    };
    newest_first(&mut open);
    newest_first(&mut ends);
    // A lease of the start has no grant in the history.
    let leased = history.start.kvs.iter().map(|kv| kv.lease).filter(|id| *id != 0);
    ends.extend(leased.collect::<BTreeSet<_>>().into_iter().map(|id| (0, Writer::Expiry(id))));
    open.append(&mut ends);
    open
}

fn lease_keys(history: &History) -> BTreeMap<i64, BTreeSet<Data>> {
    let mut leases: BTreeMap<i64, BTreeSet<Data>> = BTreeMap::new();
    let puts = history.operations.iter().flat_map(|operation| operation.request.puts());
    let attached = puts.map(|put| (put.lease, &put.key));
    let before = history.start.kvs.iter().map(|kv| (kv.lease, &kv.key));
    for (lease, key) in attached.chain(before).filter(|(lease, _)| *lease != 0) {
        leases.entry(lease).or_default().insert(key.clone());
    }
    leases
}

impl Search<'_> {
    fn run(mut self) -> Result<(Witness, BTreeMap<usize, i64>), Violation> {
        let base = self.model.revision();
        if let Err(conflict) = self.check_answers(base) {
            return Err(conflict.violation);
        }
        let mut writers = Vec::new();
        while self.model.revision() < self.evidence.last {
            let revision = self.model.revision() + 1;
            let step = match self.claimed.get(&revision).copied() {
                Some(index) => self.replay(index).map(|()| Writer::Operation(index)),
                None => self.open_choice(revision),
            };
            match step {
                Ok(writer) => writers.push(writer),
                Err(conflict) => {
                    let (revision, writer) = self.back(revision, conflict)?;
                    writers.truncate(usize::try_from(revision - base - 1).unwrap_or(0));
                    writers.push(writer);
                }
            }
        }
        if let Some((revision, indices)) = self.answered.range(..base).next()
            && let Some(index) =
                indices.iter().find(|i| !self.history.operations[**i].request.is_serializable())
        {
            let detail = format!("{revision}: {}", tell(&self.history.operations[*index]));
            return Err(Violation::new(realtime::CURRENT, detail));
        }
        Ok((Witness { writers, model: self.model }, self.used))
    }

    /// Replays an answered write, and judges it and all that was answered at its revision. On a
    /// conflict nothing has changed.
    fn replay(&mut self, index: usize) -> Result<(), Conflict> {
        let before = self.model.revision();
        let checked = self.compare(index).and_then(|()| self.check_answers(before + 1));
        if checked.is_err() {
            self.model.undo_to(before);
        }
        checked
    }

    /// Does the operation in the model and compares answers.
    fn compare(&mut self, index: usize) -> Result<(), Conflict> {
        let operation = &self.history.operations[index];
        let Some(answer) = operation.answer() else { return Ok(()) };
        let wrong = match self.model.apply(&operation.request) {
            Ok(expected) => difference(&expected, answer),
            Err(refusal) => Some(format!("the store would refuse it: {refusal}")),
        };
        match wrong {
            Some(wrong) => Err(self.conflict(index, &wrong)),
            None => Ok(()),
        }
    }

    /// Judges all that was answered at a revision, the model being there.
    fn check_answers(&mut self, revision: i64) -> Result<(), Conflict> {
        let Some(indices) = self.answered.get(&revision).cloned() else { return Ok(()) };
        for index in indices {
            if self.used.contains_key(&index) {
                continue;
            }
            if let Request::Grant { .. } = self.history.operations[index].request {
                continue;
            }
            let compared = self.compare(index);
            let wrote = self.model.revision() != revision;
            self.model.undo_to(revision);
            compared?;
            if wrote {
                return Err(self.conflict(index, "it would have made a revision"));
            }
        }
        Ok(())
    }

    fn conflict(&self, index: usize, wrong: &str) -> Conflict {
        let operation = &self.history.operations[index];
        let mut property = TRUE;
        let mut keys = self.footprint(Writer::Operation(index));
        let reached = self.model.revision();
        let deeper = self.deepest.as_ref().is_none_or(|(at, _)| *at <= reached);
        if let Some(answer) = operation.answer() {
            answer.kvs(&operation.request, &mut |kv, _| {
                // Costly, and of use only if this is what will be told in the end.
                if deeper && self.is_refused_only(kv) {
                    property = REFUSED;
                }
                keys.push(KeyRange::one(kv.key.clone()));
            });
        }
        let detail = if deeper { format!("{wrong}: {}", tell(operation)) } else { String::new() };
        Conflict { violation: Violation::new(property, detail), keys }
    }

    /// The pair could only come from something that was refused.
    fn is_refused_only(&self, kv: &Kv) -> bool {
        if kv.modified <= self.history.start.revision {
            return false;
        }
        let mut refused = false;
        for operation in &self.history.operations {
            let writes = operation.request.puts();
            if writes.iter().any(|put| put.key == kv.key && put.value == kv.value) {
                if !operation.is_refused() {
                    return false;
                }
                refused = true;
            }
        }
        refused
    }

    fn footprint(&self, writer: Writer) -> Vec<KeyRange> {
        let leased = |id: &i64| {
            let keys = self.lease_keys.get(id).into_iter().flatten();
            keys.map(|key| KeyRange::one(key.clone())).collect()
        };
        match writer {
            Writer::Expiry(id) => leased(&id),
            Writer::Operation(index) => match &self.history.operations[index].request {
                Request::Revoke { id } => leased(id),
                request => request.footprint(),
            },
        }
    }

    /// Opens a choice and takes the first possibility.
    fn open_choice(&mut self, revision: i64) -> Result<Writer, Conflict> {
        let place = realtime::of_write(revision);
        let in_time = |(invoke, writer): &&(u64, Writer)| {
            let answered = match writer {
                Writer::Operation(index) => self.history.operations[*index].answer(),
                Writer::Expiry(_) => None,
            };
            answered.is_none_or(|answer| answer.revision() == revision)
                && self.floors.before(*invoke).is_none_or(|(floor, _)| floor < place)
        };
        let candidates = self.open.iter().filter(in_time).map(|(_, writer)| *writer).collect();
        let choice =
            Choice { revision, candidates, next: 0, chosen: Writer::Expiry(0), keys: Vec::new() };
        self.choices.push(choice);
        match self.take_next() {
            Some(writer) => Ok(writer),
            None => Err(self.give_up_choice()),
        }
    }

    /// Takes the next possibility of the last choice; the model is at the revision before.
    fn take_next(&mut self) -> Option<Writer> {
        loop {
            let choice = self.choices.last_mut()?;
            let writer = *choice.candidates.get(choice.next)?;
            choice.next += 1;
            let revision = choice.revision;
            self.tries += 1;
            if self.tries > TRIES_MAX {
                return None;
            }
            match writer {
                Writer::Operation(index) if self.used.contains_key(&index) => continue,
                Writer::Operation(index) => {
                    let request = &self.history.operations[index].request;
                    // A refusal changes nothing, which is found next.
                    let _ = self.model.apply(request);
                }
                Writer::Expiry(id) if self.ended.contains(&id) => continue,
                Writer::Expiry(id) => self.model.end_lease(id),
            }
            if self.model.revision() != revision {
                continue;
            }
            if !self.evidence.agrees(&self.model) {
                self.model.undo_to(revision - 1);
                continue;
            }
            self.mark(writer, revision);
            match self.check_answers(revision) {
                Ok(()) => {
                    if let Some(choice) = self.choices.last_mut() {
                        choice.chosen = writer;
                    }
                    return Some(writer);
                }
                Err(conflict) => {
                    self.unmark(writer);
                    self.model.undo_to(revision - 1);
                    self.note(revision, &conflict.violation);
                    if let Some(choice) = self.choices.last_mut() {
                        choice.keys.extend(conflict.keys);
                    }
                }
            }
        }
    }

    fn mark(&mut self, writer: Writer, revision: i64) {
        match writer {
            Writer::Operation(index) => {
                self.used.insert(index, revision);
            }
            Writer::Expiry(id) => {
                self.ended.insert(id);
            }
        }
    }

    fn unmark(&mut self, writer: Writer) {
        match writer {
            Writer::Operation(index) => {
                self.used.remove(&index);
            }
            Writer::Expiry(id) => {
                self.ended.remove(&id);
            }
        }
    }

    /// Ends the last choice, for which nothing is left; why.
    fn give_up_choice(&mut self) -> Conflict {
        let Some(choice) = self.choices.pop() else {
            let violation = Violation::new(UNDECIDED, String::new());
            return Conflict { violation, keys: vec![KeyRange::all()] };
        };
        let mut keys = choice.keys;
        for writer in &choice.candidates {
            keys.extend(self.footprint(*writer));
        }
        keys.extend(
            self.evidence.written(choice.revision).map(|s| KeyRange::one(s.kv.key.clone())),
        );
        keys.extend(self.evidence.removed(choice.revision).map(|k| KeyRange::one(k.clone())));
        let new = self.deepest.as_ref().is_none_or(|(at, _)| *at < choice.revision);
        let violation = match new {
            true => self.explain(choice.revision),
            false => Violation::new(EXPLAINED, String::new()),
        };
        Conflict { violation, keys }
    }

    fn note(&mut self, revision: i64, violation: &Violation) {
        if self.deepest.as_ref().is_none_or(|(at, _)| *at < revision) {
            self.deepest = Some((revision, violation.clone()));
        }
    }

    /// Takes back choices until another possibility is found for one; its revision.
    fn back(&mut self, revision: i64, conflict: Conflict) -> Result<(i64, Writer), Violation> {
        let mut conflict = conflict;
        self.note(revision, &conflict.violation);
        loop {
            if self.tries > TRIES_MAX {
                let reached = self.deepest.take().map_or(String::new(), |(at, violation)| {
                    format!("; the furthest try ended at revision {at}: {violation}")
                });
                let detail = format!("gave up after {TRIES_MAX} tries{reached}");
                return Err(Violation::new(UNDECIDED, detail));
            }
            let Some(choice) = self.choices.last_mut() else {
                let deepest = self.deepest.take().map(|(_, violation)| violation);
                return Err(deepest.unwrap_or(conflict.violation));
            };
            let (chosen, at) = (choice.chosen, choice.revision);
            let concerned = choice.candidates[choice.next - 1..].to_vec();
            self.unmark(chosen);
            self.model.undo_to(at - 1);
            let meets = |writer: &Writer| {
                let keys = self.footprint(*writer);
                keys.iter().any(|key| conflict.keys.iter().any(|other| key.meets(other)))
            };
            if !concerned.iter().any(meets) {
                self.choices.pop();
                continue;
            }
            if let Some(choice) = self.choices.last_mut() {
                choice.keys.append(&mut conflict.keys);
            }
            if let Some(writer) = self.take_next() {
                return Ok((at, writer));
            }
            conflict = self.give_up_choice();
        }
    }

    /// Why nothing explains a revision, as well as it can be told; the model is just before it.
    fn explain(&mut self, revision: i64) -> Violation {
        let written: Vec<Seen> = self.evidence.written(revision).cloned().collect();
        let removed: Vec<Data> = self.evidence.removed(revision).cloned().collect();
        let shown = format!("revision {revision} wrote {written:?} and removed {removed:?}");
        for operation in &self.history.operations {
            let puts = operation.request.puts();
            let of_it = |seen: &Seen| {
                puts.iter().any(|put| put.key == seen.kv.key && put.value == seen.kv.value)
            };
            if !written.is_empty() && written.iter().all(of_it) {
                let property = if operation.is_refused() { REFUSED } else { ONCE };
                return Violation::new(property, format!("{shown}; {}", tell(operation)));
            }
        }
        let leases: BTreeSet<i64> =
            removed.iter().filter_map(|key| Some(self.model.kv(key, revision)?.lease)).collect();
        let leases: Vec<i64> = leases.into_iter().filter(|lease| *lease != 0).collect();
        if let ([lease], true) = (&leases[..], written.is_empty()) {
            let left = self.model.lease_keys(*lease).find(|key| !removed.contains(key));
            if let Some(left) = left {
                let detail = format!("{shown}; {left} of lease {lease} is left");
                return Violation::new(lease::TOGETHER, detail);
            }
        }
        Violation::new(EXPLAINED, shown)
    }
}

/// The first field in which an answer is not what it should be.
fn difference(expected: &Answer, actual: &Answer) -> Option<String> {
    let (expected_kvs, actual_kvs) = match (expected, actual) {
        (Answer::Revoke { .. } | Answer::Compact { .. }, _) | (_, Answer::KeepAlive { .. }) => {
            return field("revision", &expected.revision(), &actual.revision());
        }
        (
            Answer::Get { revision, kvs, more, count },
            Answer::Get { revision: revision2, kvs: kvs2, more: more2, count: count2 },
        ) => {
            let other = field("revision", revision, revision2)
                .or_else(|| field("count", count, count2))
                .or_else(|| field("more", more, more2));
            if other.is_some() {
                return other;
            }
            (&kvs[..], &kvs2[..])
        }
        (Answer::Put { revision, prev }, Answer::Put { revision: revision2, prev: prev2 }) => {
            return field("revision", revision, revision2)
                .or_else(|| field("prev_kv", prev, prev2));
        }
        (
            Answer::Delete { revision, deleted, prev },
            Answer::Delete { revision: revision2, deleted: deleted2, prev: prev2 },
        ) => {
            let other = field("revision", revision, revision2)
                .or_else(|| field("deleted", deleted, deleted2));
            if other.is_some() {
                return other;
            }
            (&prev[..], &prev2[..])
        }
        (
            Answer::Txn { revision, succeeded, answers },
            Answer::Txn { revision: revision2, succeeded: succeeded2, answers: answers2 },
        ) => {
            return field("succeeded", succeeded, succeeded2)
                .or_else(|| field("revision", revision, revision2))
                .or_else(|| field("number of answers", &answers.len(), &answers2.len()))
                .or_else(|| answers.iter().zip(answers2).find_map(|(a, b)| difference(a, b)));
        }
        _ => return field("kind of answer", expected, actual),
    };
    let pairs = expected_kvs.iter().zip(actual_kvs);
    pairs
        .into_iter()
        .find_map(|(expected, actual)| field("pair", expected, actual))
        .or_else(|| field("number of pairs", &expected_kvs.len(), &actual_kvs.len()))
}

fn field<T: PartialEq + std::fmt::Debug>(name: &str, expected: &T, actual: &T) -> Option<String> {
    (expected != actual).then(|| format!("{name} should be {expected:?} and is {actual:?}"))
}
