//! Lists of leases, and of the keys of a lease that has many: answers that take many turns.
//!
//! One walk is under way at a time; whoever asks for the same before it begins gets what it found,
//! and shares the memory. Only a leader knows the times of a lease: a follower asks for these, and
//! lists the keys itself once it has applied what the leader had.

use std::collections::VecDeque;

use etcore_engine::types::LogIndex;

use super::{LeaseService, Waiting};
use crate::channel::{LeaseAnswer, LeaseQuery};
use crate::kv::pieces::Pieces;
use crate::lease::{KeysStep, Lessor, TimeToLive};
use crate::limits;
use crate::replica::Replica;
use crate::work::Job;

/// A query that waits for a walk.
pub(super) struct Wanted {
    waiting: Waiting,
    /// What the leader said, if it was asked.
    times: Option<TimeToLive>,
}

/// See the module text. Invariant: `current` is empty if there is no walk.
#[derive(Default)]
pub(super) struct Walks {
    /// They wait until this member has applied so much.
    behind: VecDeque<(LogIndex, Wanted)>,
    next: VecDeque<Wanted>,
    query: Option<LeaseQuery>,
    current: Vec<Wanted>,
}

impl Walks {
    pub(super) fn len(&self) -> usize {
        self.behind.len() + self.next.len() + self.current.len()
    }

    /// True if a turn would go on with a walk.
    pub(super) fn has_work(&self) -> bool {
        self.query.is_some() || !self.next.is_empty()
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.next.push_back(Wanted { waiting, times: None });
    }

    /// The leader has told the times, and had applied this.
    pub(super) fn push_behind(&mut self, waiting: Waiting, times: TimeToLive, applied: LogIndex) {
        self.behind.push_back((applied, Wanted { waiting, times: Some(times) }));
    }

    /// Keeps what `keeps` says.
    pub(super) fn retain(&mut self, mut keeps: impl FnMut(&Waiting) -> bool) {
        self.behind.retain(|(_, wanted)| keeps(&wanted.waiting));
        self.next.retain(|wanted| keeps(&wanted.waiting));
        self.current.retain(|wanted| keeps(&wanted.waiting));
    }

    /// Checks the invariant.
    pub(super) fn check(&self) {
        assert!(self.query.is_some() || self.current.is_empty(), "nobody waits for no walk");
    }

    /// Takes out what only a leader can answer.
    fn take_times(&mut self) -> impl Iterator<Item = Waiting> {
        let wants_times = |wanted: &mut Wanted| {
            wanted.times.is_none() && wanted.waiting.request.query != LeaseQuery::List
        };
        let mut taken: Vec<Wanted> = self.current.extract_if(.., wants_times).collect();
        for wanted in std::mem::take(&mut self.next) {
            let mut wanted = wanted;
            match wants_times(&mut wanted) {
                true => taken.push(wanted),
                false => self.next.push_back(wanted),
            }
        }
        taken.into_iter().map(|wanted| wanted.waiting)
    }
}

impl LeaseService {
    /// True for a query that takes a walk.
    pub(super) fn walks_for(&self, query: LeaseQuery) -> bool {
        match query {
            LeaseQuery::List => true,
            LeaseQuery::TimeToLive { id, keys } => {
                keys && self.lessor.key_count(id) > limits::APPLY_ANSWER_KEYS
            }
            LeaseQuery::Renew { .. } => false,
        }
    }

    /// This member leads no longer: it does not know the times of leases any more.
    pub(super) fn take_back_walks(&mut self) {
        let taken = self.walks.take_times();
        self.queued.extend(taken);
        self.end_unwanted_walk();
    }

    /// Gives up a walk that nobody waits for any more.
    pub(super) fn end_unwanted_walk(&mut self) {
        if self.walks.current.is_empty() && self.walks.query.take().is_some() {
            self.lessor.end_walks();
        }
    }

    /// The leases are those of a snapshot from now on; returns those of before. A walk among them
    /// begins again.
    pub(in crate::replica) fn go_over_to(&mut self, lessor: Lessor) -> Lessor {
        let walks = &mut self.walks;
        walks.query = None;
        for wanted in std::mem::take(&mut walks.current).into_iter().rev() {
            walks.next.push_front(wanted);
        }
        std::mem::replace(&mut self.lessor, lessor)
    }

    /// True if a walk is under way, one that was begun included.
    fn begin_walk(&mut self) -> bool {
        if self.walks.query.is_some() {
            return true;
        }
        let Some(first) = self.walks.next.front() else { return false };
        let query = first.waiting.request.query;
        match query {
            LeaseQuery::TimeToLive { id, .. } => self.lessor.begin_keys(id),
            LeaseQuery::List | LeaseQuery::Renew { .. } => self.lessor.begin_listing(),
        }
        self.walks.query = Some(query);
        for wanted in std::mem::take(&mut self.walks.next) {
            match wanted.waiting.request.query == query {
                true => self.walks.current.push(wanted),
                false => self.walks.next.push_back(wanted),
            }
        }
        true
    }
}

impl Replica {
    /// Goes on with the walks, for as long as one turn may.
    pub(super) fn walk_on(&mut self) {
        self.turn.note(Job::LeaseList);
        let applied = self.store.applied().0;
        let walks = &mut self.leases.walks;
        while let Some((_, wanted)) = walks.behind.pop_front_if(|(after, _)| *after <= applied) {
            walks.next.push_back(wanted);
        }
        let mut rows = limits::LEASE_WALK_STEP;
        while rows > 0 && self.leases.begin_walk() {
            let list = self.leases.walks.query == Some(LeaseQuery::List);
            let found = if list {
                match self.leases.lessor.list_on(&mut rows) {
                    None => return,
                    Some(leases) => Found::Leases(LeaseAnswer::Leases(leases)),
                }
            } else {
                match self.leases.lessor.keys_on(&mut rows) {
                    KeysStep::Again => return,
                    KeysStep::Gone => Found::Keys(None),
                    KeysStep::Keys(keys) => Found::Keys(Some(keys)),
                }
            };
            self.walked(&found);
            rows = rows.saturating_sub(1);
        }
    }

    /// A walk is at its end.
    fn walked(&mut self, found: &Found) {
        self.leases.walks.query = None;
        for Wanted { waiting, times } in std::mem::take(&mut self.leases.walks.current) {
            let LeaseQuery::TimeToLive { id, .. } = waiting.request.query else {
                if let Found::Leases(leases) = found {
                    self.answer_lease(&waiting, leases.clone());
                }
                continue;
            };
            if times.is_none() && !self.leases.lessor.is_primary() {
                self.leases.queued.push_back(waiting);
                continue;
            }
            let answer = match found {
                Found::Keys(Some(keys)) => LeaseAnswer::TimeToLive {
                    times: times
                        .or_else(|| self.leases.lessor.time_to_live(id, self.turn.now_ms())),
                    keys: keys.clone(),
                },
                _ => LeaseAnswer::TimeToLive { times: None, keys: Pieces::default() },
            };
            self.answer_lease(&waiting, answer);
        }
    }
}

/// What a walk has found.
enum Found {
    Leases(LeaseAnswer),
    /// `None` if the lease is gone.
    Keys(Option<Pieces>),
}
