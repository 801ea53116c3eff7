//! Linearizability, by the revisions that etcd puts into every answer.
//!
//! Used by [`super::judge`]; its result, the [`Witness`], is what other judges build on. A write
//! that was answered names the revision that it made, so the order of those is given; every other
//! answer names the revision at which it was true. So there is no search but for revisions that no
//! answered write claims: those are given to operations whose outcome is unknown, to revocations,
//! and to leases that may have ended, newest call first, as evidence and [`super::demands`] allow;
//! a wrong choice is taken back when an answer disagrees, the nearest one first that has to do with
//! the key in which it does. Everything else is one replay against [`super::model`].
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
use super::data::Data;
use super::demands::Demands;
use super::differ::{Reason, difference};
use super::evidence::{Evidence, Seen};
use super::keys::{KeySet, Keys};
use super::lease;
use super::model::Model;
use super::open::{self, Open};
use super::origin;
use super::realtime::{self, Floors, Place, tell};
use super::types::{Answer, History, Kv, Operation, Request};

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

/// Requests replayed before a search is given up, besides one for each of the history: some ten
/// seconds. Searches that are not over by then rarely end in minutes.
const STEPS_MAX: u64 = 5_000_000;

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
    keys: KeySet,
}

/// A revision that may have been made by several.
struct Choice {
    revision: i64,
    /// The open writes that are possible by time and by what was shown.
    candidates: Vec<usize>,
    next: usize,
    chosen: usize,
    /// Only those help that have to do with these keys.
    wanted: Option<KeySet>,
    /// Keys of the conflicts that ended earlier tries.
    keys: KeySet,
}

struct Search<'a> {
    history: &'a History,
    evidence: Evidence,
    floors: Floors,
    /// Revision to the write that claims it.
    claimed: BTreeMap<i64, usize>,
    /// Revision to operations that were answered there without saying that they wrote.
    answered: BTreeMap<i64, Vec<usize>>,
    keys: Keys,
    /// All that may have written without saying where.
    open: Vec<Open>,
    demands: Demands,
    model: Model,
    /// Which of the open writes have been placed.
    taken: Vec<bool>,
    used: BTreeMap<usize, i64>,
    choices: Vec<Choice>,
    steps: u64,
    steps_max: u64,
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
    let keys = Keys::of(history);
    let open = open::all(history, &keys);
    let search = Search {
        demands: Demands::new(history, &keys, &evidence, &claimed, &open),
        evidence,
        floors,
        claimed,
        answered,
        taken: vec![false; open.len()],
        keys,
        open,
        model: Model::new(&history.start),
        used: BTreeMap::new(),
        choices: Vec::new(),
        steps: 0,
        steps_max: STEPS_MAX.saturating_add(history.operations.len() as u64),
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
        let checked = self
            .compare(index, before + 1)
            .and_then(|()| self.check_shown())
            .and_then(|()| self.check_answers(before + 1));
        if checked.is_err() {
            self.model.undo_to(before);
        }
        checked
    }

    /// Does the operation in the model and compares answers; a conflict is told at a revision.
    fn compare(&mut self, index: usize, revision: i64) -> Result<(), Conflict> {
        self.steps += 1;
        let history = self.history;
        let operation = &history.operations[index];
        let Some(answer) = operation.answer() else { return Ok(()) };
        let expected = match self.model.apply(&operation.request) {
            Ok(expected) => expected,
            Err(refusal) => {
                let keys = self.footprint(&operation.request);
                let wrong = || format!("the store would refuse it: {refusal}");
                return Err(self.conflict(index, revision, keys, wrong));
            }
        };
        let Some(wrong) = difference(&operation.request, &expected, answer) else { return Ok(()) };
        let keys = match (&wrong.reason, wrong.request) {
            (Reason::Key(key), _) => self.one(key),
            (Reason::Conditions, Request::Txn(txn)) => {
                let mut keys = self.keys.none();
                for compare in &txn.compares {
                    keys.insert_all(self.keys.span(&compare.range));
                }
                keys
            }
            (_, request) => self.footprint(request),
        };
        Err(self.conflict(index, revision, keys, || wrong.tell()))
    }

    /// What the last write left is what was shown of it elsewhere. That is found again when the
    /// answer that shows it is judged; here it only saves a search the way there.
    fn check_shown(&self) -> Result<(), Conflict> {
        if self.choices.is_empty() {
            return Ok(());
        }
        let Some(key) = self.evidence.shown_otherwise(&self.model) else { return Ok(()) };
        let mut detail = String::new();
        if self.is_deepest(self.model.revision()) {
            let revision = self.model.revision();
            let kv = self.model.kv(key, revision);
            let shown: Vec<&Kv> = self.evidence.written(revision).map(|seen| &seen.kv).collect();
            detail = format!("revision {revision} made {kv:?}, and was shown as {shown:?}");
        }
        Err(Conflict { violation: Violation::new(TRUE, detail), keys: self.one(key) })
    }

    /// Judges all that was answered at a revision, the model being there.
    fn check_answers(&mut self, revision: i64) -> Result<(), Conflict> {
        let Some(indices) = self.answered.remove(&revision) else { return Ok(()) };
        let judged = indices.iter().try_for_each(|index| self.check_answer(*index, revision));
        self.answered.insert(revision, indices);
        judged
    }

    fn check_answer(&mut self, index: usize, revision: i64) -> Result<(), Conflict> {
        let request = &self.history.operations[index].request;
        if self.used.contains_key(&index) || matches!(request, Request::Grant { .. }) {
            return Ok(());
        }
        let compared = self.compare(index, revision);
        let touched = self.model.touched(revision + 1).first().cloned();
        self.model.undo_to(revision);
        compared?;
        match touched {
            None => Ok(()),
            Some(key) => {
                let keys = self.one(&key);
                let wrong = || "it would have made a revision".to_owned();
                Err(self.conflict(index, revision, keys, wrong))
            }
        }
    }

    fn conflict(
        &self,
        index: usize,
        revision: i64,
        keys: KeySet,
        wrong: impl FnOnce() -> String,
    ) -> Conflict {
        let operation = &self.history.operations[index];
        let (mut property, mut detail) = (TRUE, String::new());
        // Costly, and of use only if this is what will be told in the end.
        if self.is_deepest(revision) {
            if let Some(answer) = operation.answer() {
                answer.kvs(&operation.request, &mut |kv, _| {
                    if self.is_refused_only(kv) {
                        property = REFUSED;
                    }
                });
            }
            detail = format!("{}: {}", wrong(), tell(operation));
        }
        Conflict { violation: Violation::new(property, detail), keys }
    }

    fn is_deepest(&self, revision: i64) -> bool {
        self.deepest.as_ref().is_none_or(|(at, _)| *at < revision)
    }

    /// The pair could only come from something that was refused.
    fn is_refused_only(&self, kv: &Kv) -> bool {
        if kv.modified <= self.history.start.revision {
            return false;
        }
        let may_put = |operation: &&Operation| operation.request.may_put(&kv.key, &kv.value);
        let mut writers = self.history.operations.iter().filter(may_put).peekable();
        writers.peek().is_some() && writers.all(|operation| operation.is_refused())
    }

    fn one(&self, key: &Data) -> KeySet {
        let mut keys = self.keys.none();
        if let Some(key) = self.keys.index(key) {
            keys.insert(key);
        }
        keys
    }

    fn footprint(&self, request: &Request) -> KeySet {
        let mut keys = self.keys.none();
        if let Request::Revoke { id } = request {
            let revokes = self.open.iter().filter(|open| open.ends == Some(*id));
            revokes.for_each(|open| keys.add(&open.footprint));
        }
        for range in request.footprint() {
            keys.insert_all(self.keys.span(&range));
        }
        keys
    }

    /// Opens a choice and takes the first possibility.
    fn open_choice(&mut self, revision: i64) -> Result<Writer, Conflict> {
        let place = realtime::of_write(revision);
        let is_shown = self.evidence.written(revision).next().is_some();
        let is_possible = |open: &Open| {
            let in_time = self.floors.before(open.invoke).is_none_or(|(floor, _)| floor < place);
            // Where the pair was shown, answers tell better what is wrong.
            let put = open.puts.first().filter(|_| !open.is_txn && !is_shown);
            in_time
                && open.may_make(revision, &self.evidence, &self.keys)
                && put.is_none_or(|(key, ..)| self.demands.may_put(*key, revision))
        };
        let candidates = (0..self.open.len()).filter(|at| is_possible(&self.open[*at])).collect();
        let keys = self.keys.none();
        self.choices.push(Choice { revision, candidates, next: 0, chosen: 0, wanted: None, keys });
        match self.take_next() {
            Some(writer) => Ok(writer),
            None => Err(self.give_up_choice()),
        }
    }

    /// Takes the next possibility of the last choice; the model is at the revision before.
    fn take_next(&mut self) -> Option<Writer> {
        loop {
            let choice = self.choices.last_mut()?;
            let at = *choice.candidates.get(choice.next)?;
            choice.next += 1;
            let revision = choice.revision;
            let open = &self.open[at];
            let helps = |wanted: &KeySet| wanted.meets(&open.footprint);
            if !choice.wanted.as_ref().is_none_or(helps) {
                continue;
            }
            if self.taken[at] {
                choice.keys.add(&open.footprint);
                continue;
            }
            self.steps += 1;
            if self.steps > self.steps_max {
                return None;
            }
            match open.writer {
                Writer::Operation(index) => {
                    // A refusal changes nothing, which is found next.
                    let _ = self.model.apply(&self.history.operations[index].request);
                }
                Writer::Expiry(id) => self.model.end_lease(id),
            }
            if self.model.revision() != revision || !self.evidence.agrees(&self.model) {
                choice.keys.add(&open.footprint);
                self.model.undo_to(revision - 1);
                continue;
            }
            let writer = open.writer;
            self.mark(at, revision);
            let checked = match self.check_answers(revision) {
                Ok(()) => self.check_demands(revision),
                Err(conflict) => Err(conflict),
            };
            let Err(conflict) = checked else {
                if let Some(choice) = self.choices.last_mut() {
                    choice.chosen = at;
                }
                return Some(writer);
            };
            self.unmark(at);
            self.model.undo_to(revision - 1);
            self.note(revision, &conflict.violation);
            if let Some(choice) = self.choices.last_mut() {
                choice.keys.add(&conflict.keys);
            }
        }
    }

    /// What must be gone by some time can be.
    fn check_demands(&self, revision: i64) -> Result<(), Conflict> {
        let unmet = self.demands.unmet(&self.model, &self.keys, &self.open, &self.taken);
        let Some(keys) = unmet else { return Ok(()) };
        let mut detail = String::new();
        if self.is_deepest(revision) {
            let keys: Vec<&Data> = keys.iter().map(|key| self.keys.key(key)).collect();
            detail = format!("after revision {revision} nothing can have removed {keys:?} in time");
        }
        Err(Conflict { violation: Violation::new(EXPLAINED, detail), keys })
    }

    fn mark(&mut self, at: usize, revision: i64) {
        self.taken[at] = true;
        if let Writer::Operation(index) = self.open[at].writer {
            self.used.insert(index, revision);
        }
    }

    fn unmark(&mut self, at: usize) {
        self.taken[at] = false;
        if let Writer::Operation(index) = self.open[at].writer {
            self.used.remove(&index);
        }
    }

    /// Ends the last choice, for which nothing is left; why.
    fn give_up_choice(&mut self) -> Conflict {
        let Some(choice) = self.choices.pop() else {
            let violation = Violation::new(UNDECIDED, String::new());
            return Conflict { violation, keys: self.keys.none() };
        };
        let violation = match self.is_deepest(choice.revision) {
            true => self.explain(choice.revision),
            false => Violation::new(EXPLAINED, String::new()),
        };
        Conflict { violation, keys: choice.keys }
    }

    fn note(&mut self, revision: i64, violation: &Violation) {
        if self.is_deepest(revision) {
            self.deepest = Some((revision, violation.clone()));
        }
    }

    /// Takes back choices until another possibility is found for one; its revision.
    fn back(&mut self, revision: i64, conflict: Conflict) -> Result<(i64, Writer), Violation> {
        let mut conflict = conflict;
        self.note(revision, &conflict.violation);
        loop {
            if self.steps > self.steps_max {
                let reached = self.deepest.take().map_or(String::new(), |(at, violation)| {
                    format!("; the furthest try ended at revision {at}: {violation}")
                });
                let detail = format!("gave up after {} steps{reached}", self.steps);
                return Err(Violation::new(UNDECIDED, detail));
            }
            let Some(choice) = self.choices.last_mut() else {
                let deepest = self.deepest.take().map(|(_, violation)| violation);
                return Err(deepest.unwrap_or(conflict.violation));
            };
            let (chosen, at) = (choice.chosen, choice.revision);
            let helps = |at: &usize| self.open[*at].footprint.meets(&conflict.keys);
            // Writes tried before count too: they failed for other reasons.
            let is_concerned = choice.candidates.iter().any(helps);
            if is_concerned {
                choice.keys.add(&conflict.keys);
                // If what was chosen has nothing to do with it, only what has can be the remedy.
                choice.wanted = (!helps(&chosen)).then(|| conflict.keys.clone());
            }
            self.unmark(chosen);
            self.model.undo_to(at - 1);
            if !is_concerned {
                self.choices.pop();
                continue;
            }
            if let Some(writer) = self.take_next() {
                return Ok((at, writer));
            }
            conflict = self.give_up_choice();
        }
    }

    /// Why nothing explains a revision, as well as it can be told; the model is just before it.
    fn explain(&self, revision: i64) -> Violation {
        let written: Vec<Seen> = self.evidence.written(revision).cloned().collect();
        let removed: Vec<Data> = self.evidence.removed(revision).cloned().collect();
        let shown = format!("revision {revision} wrote {written:?} and removed {removed:?}");
        for operation in &self.history.operations {
            let of_it = |seen: &Seen| operation.request.may_put(&seen.kv.key, &seen.kv.value);
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
