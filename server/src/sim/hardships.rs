//! One member's trouble at a time, while all others are well: what the others' clients may wait.
//!
//! Some seeds are of this kind, see [`Plan::from_seed`]: no fault is drawn at a rate, but one
//! member (mostly the leader) stops, hangs, dies or is cut off for a while, and must be well again
//! before the next. A quorum of members and disks is healthy all the time, so that clients of
//! healthy members must be served within two election timeouts whatever the trouble. Called by the
//! world; it must never judge a client of a member that has the trouble.
//!
//! [`Plan::from_seed`]: super::Plan::from_seed

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use etcore_engine::testing::prng::Prng;
use etcore_history::types::{Operation, Outcome, Request};

use super::finish::Stage;
use super::net::End;
use super::plan::{Plan, Rates, Span};
use super::world::{Death, Event, World};
use crate::limits;

/// The others go on.
pub const SERVED: &str =
    "with a quorum of healthy members nobody else waits longer than two election timeouts";
/// A process that is dead is replaced without waiting for a timeout.
pub const REPLACED: &str = "a leader whose process dies is replaced at once";

const US: u64 = 1000;
const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
/// A member whose trouble is over may take so long to be as good as the others.
const RECOVERY: u64 = 6 * S;
/// The election timeout of the simulated members, which keep the default.
const ELECTION: u64 = S;
/// How often it is looked whether the next trouble may begin.
const LOOK: u64 = 500 * MS;

/// What can happen to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hardship {
    /// Its disk carries nothing out.
    DiskHangs,
    /// Its process stands still.
    Stops,
    /// One of its threads stands still.
    ThreadStops,
    /// Its machine loses power. Nobody is told.
    LosesPower,
    /// Its process dies, and its kernel says so.
    Dies,
    /// It lives, but its peers' port refuses one other member, or all.
    PortCloses {
        /// All of them.
        all: bool,
    },
    /// Nothing gets from it to the others, and back unless it is one way.
    CutOff {
        /// It hears the others, or they hear it.
        one_way: bool,
    },
    /// Every round of its threads takes long.
    Starves,
}

/// A trouble to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub what: Hardship,
    /// For how long, in nanoseconds.
    pub lasts: u64,
    /// The leader's.
    pub of_leader: bool,
}

/// Makes a plan one of this kind.
pub(super) fn harden(plan: &mut Plan) {
    let mut prng = Prng::new(plan.seed ^ 0x6861_7264);
    plan.members = [3, 3, 3, 5][prng.index(4)];
    plan.rates = Rates::default();
    plan.clients = 2 * plan.members;
    plan.watchers = plan.watchers.min(1);
    plan.keepers = [0, 6, 40, 300][prng.index(4)];
    plan.intruders = 0;
    plan.keys = 100;
    plan.value_bytes = Span::new(8, 400);
    plan.think = Span::new(0, 300 * MS);
    plan.drift = 0;
    plan.leases = true;
    plan.more_leases = [0, 300][prng.index(2)];
    plan.client_latency = Span::new(20 * US, 200 * US);
    plan.peer_latency = [
        Span::new(20 * US, 200 * US),
        Span::new(100 * US, 5 * MS),
        Span::new(20 * MS, 20 * MS),
        Span::new(10 * MS, 30 * MS),
    ][prng.index(4)];
    plan.peer_bytes_per_s = [0, 0, 4 << 20][prng.index(3)];
    plan.disk_latency = Span::new(50 * US, 5 * MS);
    plan.wake_latency = Span::new(US, 50 * US);
    plan.round = Span::new(5 * US, 100 * US);
    plan.catchup_entries = plan.catchup_entries.max(50);
    plan.down = Span::new(0, 0);
    (plan.torn_percent, plan.copy_cuts) = (0, 0);
    (plan.meta_rot_percent, plan.start_crashes) = (0, 0);
    let kinds = [
        Hardship::DiskHangs,
        Hardship::Stops,
        Hardship::ThreadStops,
        Hardship::LosesPower,
        Hardship::Dies,
        Hardship::Dies,
        Hardship::PortCloses { all: true },
        Hardship::PortCloses { all: false },
        Hardship::CutOff { one_way: false },
        Hardship::CutOff { one_way: true },
        Hardship::Starves,
    ];
    plan.trouble = 2 * S;
    for _ in 0..1 + prng.index(3) {
        let what = kinds[prng.index(kinds.len())];
        let most = [500 * MS, 6 * S][prng.index(2)];
        let lasts = match what {
            Hardship::DiskHangs if prng.chance(1, 8) => {
                plan.think = Span::new(0, S);
                plan.keepers = plan.keepers.min(40);
                60 * S + prng.below(120 * S)
            }
            // More than a leader keeps in memory for its own disk.
            Hardship::DiskHangs if prng.chance(1, 2) => {
                plan.value_bytes = Span::new(8, 60_000);
                plan.think = Span::new(0, 100 * MS);
                10 * S + prng.below(8 * S)
            }
            Hardship::DiskHangs => 3 * S + prng.below(12 * S),
            _ => 50 * MS + prng.below(most),
        };
        plan.hardships.push(Planned { what, lasts, of_leader: prng.chance(3, 4) });
        plan.trouble += lasts + RECOVERY + 3 * S;
    }
    if plan.value_bytes.to > 1000 {
        // What clients write must fit through it.
        plan.peer_bytes_per_s *= 16;
    }
}

/// The troubles of the moment, and those that have been.
#[derive(Debug, Default)]
pub(super) struct Hardships {
    next: usize,
    /// Who has it, and until when.
    current: Option<(Planned, usize, u64)>,
    /// Members that had one, and when.
    unwell: Vec<(usize, u64, u64)>,
    /// Whose calls whose peers' port refuses.
    refuses: BTreeMap<(usize, usize), u64>,
    /// A healthy member's client asked for a write then that came to nothing, and no other has
    /// come to anything since; 0 if there is none.
    in_vain: u64,
    /// The process of a leader has died then, and nothing was written since.
    died: Option<u64>,
}

impl Hardships {
    fn is_well(&self, member: usize, from: u64, to: u64) -> bool {
        let overlaps = |(who, since, until): &(usize, u64, u64)| {
            *who == member && *since <= to && from <= *until
        };
        !self.unwell.iter().any(overlaps)
    }

    /// Returns until when a member is not started again.
    pub(super) fn down_until(&self, member: usize, now: u64) -> Option<u64> {
        let (planned, who, until) = self.current?;
        let down = matches!(planned.what, Hardship::LosesPower | Hardship::Dies);
        (down && who == member && until > now).then_some(until)
    }

    /// True if the member's port refuses a call of `from`.
    pub(super) fn refuses(&self, from: Option<usize>, to: usize, now: u64) -> bool {
        from.and_then(|from| self.refuses.get(&(from, to))).is_some_and(|until| *until > now)
    }
}

impl World {
    /// The member that all follow, if they are all up and have applied the same but for little.
    fn agreed_leader(&self) -> Option<usize> {
        let mut applied = Vec::new();
        let mut leaders = Vec::new();
        for member in &self.members {
            let status = &member.life.as_ref()?.shared.status;
            applied.push(status.applied.load(Ordering::Relaxed));
            leaders.push(status.leader.load(Ordering::Relaxed));
        }
        let behind = applied.iter().max()? - applied.iter().min()?;
        let agree = leaders.iter().all(|leader| *leader == leaders[0]);
        let own = |at: &usize| {
            let life = self.members[*at].life.as_ref();
            life.is_some_and(|life| life.shared.member_id == leaders[0])
        };
        if agree && behind < 50 { (0..self.members.len()).find(own) } else { None }
    }

    /// The next trouble may begin, or is over.
    pub(super) fn next_hardship(&mut self) {
        if self.stage != Stage::Trouble {
            return;
        }
        if let Some((planned, member, until)) = self.hard.current {
            if until > self.now {
                return self.schedule(until, Event::Hardship);
            }
            self.hard.current = None;
            self.trace.event(self.now, "relief", &[member as u64]);
            self.relieve(planned.what, member);
            return self.schedule(self.now + RECOVERY, Event::Hardship);
        }
        let Some(planned) = self.plan.hardships.get(self.hard.next).copied() else { return };
        let Some(leader) = self.agreed_leader() else {
            return self.schedule(self.now + LOOK, Event::Hardship);
        };
        self.hard.next += 1;
        let count = self.members.len();
        let other = (leader + 1 + self.prng.index(count - 1)) % count;
        let member = if planned.of_leader { leader } else { other };
        let until = self.now + planned.lasts;
        self.hard.current = Some((planned, member, until));
        self.hard.unwell.push((member, self.now, until + RECOVERY));
        self.trace.event(self.now, "hardship", &[member as u64, leader as u64]);
        self.trace.say(self.now, || format!("member {member}: {planned:?}"));
        self.begin_hardship(planned.what, member, leader, until);
        self.schedule(until, Event::Hardship);
    }

    fn begin_hardship(&mut self, what: Hardship, member: usize, leader: usize, until: u64) {
        let count = self.members.len();
        let others = (0..count).filter(|other| *other != member);
        match what {
            Hardship::DiskHangs => self.troubles[member].disk_stalled_until = until,
            Hardship::Stops => self.troubles[member].paused_until = until,
            Hardship::ThreadStops => {
                // One more than there are: the background.
                let threads = self.members[member].life.as_ref().map_or(0, |l| l.threads.len());
                let thread = self.prng.index(threads + 1);
                self.troubles[member].stopped_thread = (thread, until);
            }
            Hardship::LosesPower => self.die(member, Death::PowerCut),
            Hardship::Dies => {
                self.hard.died = (member == leader).then_some(self.now);
                self.die(member, Death::Kill);
            }
            Hardship::PortCloses { all } => {
                let others: Vec<usize> = others.collect();
                let chosen = others[self.prng.index(others.len())];
                for from in others.into_iter().filter(|other| all || *other == chosen) {
                    self.hard.refuses.insert((from, member), until);
                    // Whoever cannot call is served no better than whoever does not answer.
                    if !all {
                        self.hard.unwell.push((from, self.now, until + RECOVERY));
                    }
                    self.break_calls(from, member);
                }
            }
            Hardship::CutOff { one_way } => {
                let hears = self.prng.chance(1, 2);
                for other in others {
                    if !one_way || !hears {
                        self.blocked.insert((other, member), until);
                    }
                    if !one_way || hears {
                        self.blocked.insert((member, other), until);
                    }
                }
            }
            Hardship::Starves => {
                let most = 1 + self.prng.below(50 * MS);
                self.troubles[member].slow_rounds = (most, until);
            }
        }
    }

    fn relieve(&mut self, what: Hardship, member: usize) {
        match what {
            Hardship::LosesPower | Hardship::Dies => {
                self.schedule(self.now, Event::Start { member });
            }
            _ => self.wake_all(member),
        }
    }

    /// Connections that `from` has to `to` break.
    fn break_calls(&mut self, from: usize, to: usize) {
        let of =
            |end: &End, who: usize| matches!(end, End::Socket { member, .. } if *member == who);
        let both = |ends: &[End; 2]| of(&ends[0], from) && of(&ends[1], to);
        let own = self.connections.iter().filter(|(_, connection)| both(&connection.ends));
        let own: Vec<u64> = own.map(|(id, _)| *id).collect();
        own.into_iter().for_each(|id| self.break_connection(id));
    }

    /// What a client may wait for while somebody else has a trouble.
    fn patience(&self) -> u64 {
        let one_way = |planned: &Planned| planned.what == Hardship::CutOff { one_way: true };
        // The leader finds out when it looks at who answers, which it does once an election
        // timeout; only then do the others miss it.
        let timeouts = if self.plan.hardships.iter().any(one_way) { 4 } else { 2 };
        let travel = 12 * self.plan.peer_latency.to + 10 * self.plan.disk_latency.to;
        timeouts * ELECTION + limits::PASSED_ON_MS * MS + 300 * MS + travel
    }

    /// Judges how long a client has waited for this.
    pub(super) fn judge_wait(&mut self, member: usize, operation: &Operation) {
        if self.plan.hardships.is_empty() || self.stage != Stage::Trouble {
            return;
        }
        // Followers renew by calling the leader: nobody can, and it leads on.
        let port_closes = Hardship::PortCloses { all: true };
        let uncalled = self.plan.hardships.iter().any(|planned| planned.what == port_closes);
        if uncalled && matches!(operation.request, Request::KeepAlive { .. }) {
            return;
        }
        let (invoke, now) = (operation.invoke, self.now);
        if !self.hard.is_well(member, invoke, now) {
            return;
        }
        let patience = self.patience();
        if now - invoke > patience {
            let detail = format!("{} ms, at member {member}: {operation:?}", (now - invoke) / MS);
            return self.violate(SERVED, detail);
        }
        if !matches!(operation.request, Request::Put(_) | Request::Delete(_)) {
            return;
        }
        match operation.outcome {
            Outcome::Known(_) => self.hard.in_vain = 0,
            Outcome::Unknown if self.hard.in_vain == 0 => self.hard.in_vain = invoke,
            _ => {}
        }
        let in_vain = self.hard.in_vain;
        if in_vain > 0 && now - in_vain > patience {
            let detail = format!("nothing was written for {} ms", (now - in_vain) / MS);
            return self.violate(SERVED, detail);
        }
        if !matches!(operation.outcome, Outcome::Known(_)) {
            return;
        }
        if let Some(died) = self.hard.died.take_if(|died| *died < invoke) {
            // Also if it has started again before anybody could find its port closed.
            let most = 900 * MS + 20 * self.plan.peer_latency.to;
            if now - died > most {
                let detail = format!("nothing was written for {} ms", (now - died) / MS);
                self.violate(REPLACED, detail);
            }
        }
    }
}
