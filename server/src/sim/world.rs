//! The world: all events in the order of virtual time, carried out one by one.
//!
//! Made from a [`Plan`] by [`run`]. A step of a member is one event: its completions are handed
//! over, its turn is taken, and what it wants done is scheduled. A crash is placed among the
//! effects of a step. It never carries out two events at once, and draws every choice from the
//! seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use etcore_engine::file::FileOp;
use etcore_engine::testing::prng::Prng;
use etcore_history::History;

use super::clients::Client;
use super::driver::Input;
use super::effects::Owner;
use super::finish::Stage;
use super::hardships::Hardships;
use super::judges::{Judges, held, log, state};
use super::logs;
use super::member::{Member, NEVER};
use super::net::{Connection, Held};
use super::operator::Operator;
use super::plan::Plan;
use super::trace::Trace;
use crate::background::snapshots::is_of_snapshots;
use crate::boot::DB_FILE;
use crate::channel::MemberView;
use crate::driver::SocketId;
use crate::replica::REMOVED;

/// A property that does not hold, and what shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not so: {property}. {detail}")]
pub struct Violation {
    /// A sentence.
    pub property: &'static str,
    /// Where it does not hold.
    pub detail: String,
}

/// A member stops only for a reason.
pub const SOUND: &str = "a member stops by itself only if its disk has failed";
/// A member's files can be opened again.
pub const STARTS: &str = "a member starts again, whatever moment it was cut off at";
/// An operator must know what to restore.
pub const NAMED: &str = "a member that meets damage says where";
/// An invariant that the code itself watches.
pub const NO_PANIC: &str = "no assertion inside a member fails";
/// The driver of a simulated member does not break.
const DRIVES: &str = "a shard's rounds go on";

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// A hash of all events.
    pub trace_hash: u64,
    /// How many.
    pub events: u64,
    /// Virtual nanoseconds.
    pub virtual_ns: u64,
    /// Operations of clients, and how many of them nobody knows the outcome of.
    pub operations: (usize, usize),
    /// Watch responses.
    pub watch_batches: usize,
    /// The last revision told.
    pub revision: i64,
    /// Starts of members.
    pub starts: u64,
    /// The history left too many choices to be judged for linearizability.
    pub undecided: bool,
    /// The first violation, if any.
    pub violation: Option<Violation>,
    /// What clients were told.
    pub history: History,
    /// The last lines of the trace, if they were asked for.
    pub lines: Vec<String>,
}

/// Something that happens.
#[derive(Debug)]
pub(super) enum Event {
    Step {
        member: usize,
        life: u64,
        thread: usize,
    },
    Background {
        member: usize,
        life: u64,
    },
    Hasher {
        member: usize,
        life: u64,
    },
    DiskOp {
        member: usize,
        id: u64,
    },
    Connect {
        connection: u64,
    },
    Release {
        connection: u64,
        to: usize,
    },
    Dialed {
        connection: u64,
        result: Result<(), io::ErrorKind>,
    },
    Deliver {
        connection: u64,
        to: usize,
        bytes: Vec<u8>,
    },
    Ended {
        connection: u64,
        to: usize,
        error: Option<io::ErrorKind>,
    },
    Sent {
        member: usize,
        life: u64,
        thread: usize,
        socket: SocketId,
        buf: Vec<u8>,
        result: Result<(), io::ErrorKind>,
    },
    Client {
        client: usize,
    },
    Fault,
    Hardship,
    DiskHasRoom {
        member: usize,
    },
    DiskIsSound {
        member: usize,
    },
    Start {
        member: usize,
    },
    /// Somebody looks after who the members are.
    Operate,
    Stage,
}

/// An operation that a member's disk has not carried out yet.
pub(super) struct Pending {
    pub(super) member: usize,
    pub(super) owner: Owner,
    pub(super) op: Option<FileOp>,
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// The machine goes on: the kernel keeps what it was given.
    Kill,
    /// The machine stops too.
    PowerCut,
}

/// Operations that a power cut may wait for, because what is lost there is of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    /// A durable write of the log.
    Log,
    /// A sync of the page file, with everything that it was to make durable.
    PageSync,
}

impl Writes {
    /// The one that this operation is.
    pub(super) fn of(pending: &Pending) -> Option<Self> {
        match (&pending.owner, &pending.op) {
            (Owner::Driver { .. }, _) => Some(Self::Log),
            (Owner::Background(token), Some(FileOp::Sync { .. })) if !is_of_snapshots(*token) => {
                Some(Self::PageSync)
            }
            _ => None,
        }
    }
}

/// What troubles a member at the moment.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// It dies within its next step.
    pub(super) doomed: Option<Death>,
    pub(super) paused_until: u64,
    pub(super) disk_stalled_until: u64,
    /// This thread stands still until then.
    pub(super) stopped_thread: (usize, u64),
    /// Its rounds take up to so long, until then.
    pub(super) slow_rounds: (u64, u64),
    /// Its disk fails the next change.
    pub(super) disk_fails: bool,
    /// Its disk has failed something in this life.
    pub(super) disk_failed: bool,
    /// What the kernel shows of its page file may not be on the disk: a sync of it has failed. Only
    /// a start of the machine shows what is.
    pub(super) cache_lies: bool,
    /// It loses power after so many more of these, and maybe again in its next life.
    pub(super) cut_in_write: Option<(Writes, u64)>,
    pub(super) cut_again: bool,
    /// Pages came up damaged in this life, or not at all.
    pub(super) has_rotten: bool,
    /// Its next start is cut off after so many changes.
    pub(super) start_crash: Option<u64>,
}

/// See the module text.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) prng: Prng,
    pub(super) now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    pub(super) trace: Trace,
    pub(super) members: Vec<Member>,
    pub(super) troubles: Vec<Trouble>,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) next_op: u64,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) next_connection: u64,
    /// When something gets through again, by sender and receiver.
    pub(super) blocked: BTreeMap<(usize, usize), u64>,
    pub(super) clients: Vec<Option<Box<Client>>>,
    pub(super) history: History,
    /// The highest revision told.
    pub(super) told: i64,
    pub(super) values: u64,
    pub(super) lease_ids: i64,
    pub(super) starts: u64,
    pub(super) stage: Stage,
    pub(super) operator: Operator,
    pub(super) judges: Judges,
    pub(super) hard: Hardships,
    /// Runs of members in which pages came up damaged, or not at all.
    pub(super) rotten_runs: BTreeSet<u64>,
    /// Views that somebody holds, by member, and until when.
    pub(super) held_views: BTreeMap<usize, (u64, held::HeldView)>,
    pub(super) violation: Option<Violation>,
}

/// Runs a plan to its end, or to the first violation. `lines` of the trace are kept.
pub fn run(plan: Plan, lines: usize) -> Report {
    let _logs = (lines > 0).then(logs::collect);
    let mut world = World::new(plan, lines);
    let ended = catch_unwind(AssertUnwindSafe(|| {
        world.begin();
        while world.violation.is_none() && world.stage != Stage::Over {
            let Some(((at, _), event)) = world.queue.pop_first() else { break };
            world.now = at;
            world.happen(event);
        }
    }));
    if let Err(panic) = ended {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        world.violate(NO_PANIC, text.unwrap_or("a panic without words").to_owned());
    }
    world.report()
}

impl World {
    fn new(plan: Plan, lines: usize) -> Self {
        let mut prng = Prng::new(plan.seed);
        let members: Vec<Member> =
            (0..plan.machines()).map(|number| Member::new(number, &plan, &mut prng)).collect();
        Self {
            troubles: members.iter().map(|_| Trouble::default()).collect(),
            judges: Judges::new(members.len()),
            clients: Client::all(&plan, &mut prng),
            members,
            prng,
            plan,
            now: 0,
            queue: BTreeMap::new(),
            next_event: 0,
            trace: Trace::new(lines),
            pending: BTreeMap::new(),
            next_op: 0,
            connections: BTreeMap::new(),
            next_connection: 1,
            blocked: BTreeMap::new(),
            history: History::default(),
            told: 1,
            values: 0,
            lease_ids: 0,
            starts: 0,
            stage: Stage::Trouble,
            operator: Operator::default(),
            hard: Hardships::default(),
            rotten_runs: BTreeSet::new(),
            held_views: BTreeMap::new(),
            violation: None,
        }
    }

    fn begin(&mut self) {
        for member in 0..self.plan.members {
            let at = self.prng.below(50_000_000);
            self.schedule(at, Event::Start { member });
        }
        if self.plan.joiners > 0 {
            self.schedule(700_000_000, Event::Operate);
        }
        let intruders = self.clients.len() - self.plan.intruders;
        for client in 0..self.clients.len() {
            let at = if client < intruders { self.prng.below(200_000_000) } else { 100_000_000 };
            self.client_at(client, at);
        }
        self.schedule(500_000_000, Event::Fault);
        if !self.plan.hardships.is_empty() {
            self.schedule(2_000_000_000, Event::Hardship);
        }
        self.schedule(self.plan.trouble, Event::Stage);
    }

    fn report(mut self) -> Report {
        let mut undecided = false;
        if self.violation.is_none() {
            match etcore_history::judge(&self.history) {
                Ok(_) => {}
                Err(found) if found.property == etcore_history::linear::UNDECIDED => {
                    undecided = true;
                }
                Err(found) => {
                    let (property, detail) = (found.property, found.detail);
                    self.violation = Some(Violation { property, detail });
                }
            }
        }
        let operations = &self.history.operations;
        let unknown =
            operations.iter().filter(|op| op.outcome == etcore_history::Outcome::Unknown).count();
        Report {
            seed: self.plan.seed,
            trace_hash: self.trace.hash(),
            events: self.trace.events(),
            virtual_ns: self.now,
            operations: (operations.len(), unknown),
            watch_batches: self.history.watches.iter().map(|watch| watch.batches.len()).sum(),
            revision: self.told,
            starts: self.starts,
            undecided,
            violation: self.violation,
            lines: self.trace.lines().map(str::to_owned).collect(),
            history: self.history,
        }
    }

    /// Something will happen. Of things at one moment, what was scheduled first comes first.
    pub(super) fn schedule(&mut self, at: u64, event: Event) {
        let order = self.next_event;
        self.next_event += 1;
        self.queue.insert((at.max(self.now), order), event);
    }

    /// The first violation counts.
    pub(super) fn violate(&mut self, property: &'static str, detail: String) {
        self.violation.get_or_insert(Violation { property, detail });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Step { member, life, thread } => self.step(member, life, thread),
            Event::Background { member, life } => self.background(member, life),
            Event::Hasher { member, life } => self.hash(member, life),
            Event::DiskOp { member, id } => self.carry_out(member, id),
            Event::Connect { connection } if self.is_blocked(connection).is_some() => {
                let until = self.is_blocked(connection).unwrap_or(self.now);
                self.schedule(until, Event::Connect { connection });
            }
            Event::Connect { connection } => {
                self.trace.event(self.now, "connect", &[connection]);
                self.arrive(connection);
            }
            Event::Release { connection, to } => self.release(connection, to),
            Event::Dialed { connection, result } => self.dialed(connection, result),
            Event::Deliver { connection, to, bytes } => {
                let length = bytes.len() as u64;
                self.trace.event(self.now, "deliver", &[connection, to as u64, length]);
                self.trace.bytes(&bytes);
                self.come(connection, to, Held::Bytes(bytes));
            }
            Event::Ended { connection, to, error } => {
                self.trace.event(self.now, "ended", &[connection, to as u64]);
                self.come(connection, to, Held::End(error));
            }
            Event::Sent { member, life, thread, socket, buf, result } => {
                if self.members[member].life_number == life {
                    self.put(member, thread, Input::Sent { socket, buf, result });
                }
            }
            Event::Client { client } => self.client_turn(client),
            Event::Fault => self.fault(),
            Event::Hardship => self.next_hardship(),
            Event::DiskHasRoom { member } => {
                self.trace.event(self.now, "disk has room", &[member as u64]);
                self.members[member].disk.set_full(false);
            }
            Event::DiskIsSound { member } => self.disk_is_sound(member),
            Event::Start { member } => self.start(member),
            Event::Operate => self.operate(),
            Event::Stage => self.next_stage(),
        }
    }

    /// Hands something to a thread of a running member, which looks at it soon.
    pub(super) fn put(&mut self, member: usize, thread: usize, input: Input) {
        let Some(life) = &self.members[member].life else { return };
        let Some(thread_state) = life.threads.get(thread) else { return };
        thread_state.port.put(input);
        self.wake(member, thread);
    }

    pub(super) fn wake(&mut self, member: usize, thread: usize) {
        let delay = self.plan.wake_latency.draw(&mut self.prng);
        self.step_at(member, thread, self.now + delay);
    }

    fn step_at(&mut self, member: usize, thread: usize, at: u64) {
        let number = self.members[member].life_number;
        let Some(life) = &mut self.members[member].life else { return };
        let state = &mut life.threads[thread];
        let at = at.max(state.busy_until);
        if state.stopped || at >= state.due {
            return;
        }
        state.due = at;
        self.schedule(at, Event::Step { member, life: number, thread });
    }

    fn start(&mut self, member: usize) {
        if self.members[member].life.is_some() || self.members[member].is_gone {
            return;
        }
        if let Some(until) = self.hard.down_until(member, self.now) {
            return self.schedule(until, Event::Start { member });
        }
        self.starts += 1;
        self.trace.event(self.now, "start", &[member as u64]);
        let cut = self.troubles[member].start_crash.take();
        if let Some(after) = cut {
            let disk = &self.members[member].disk;
            disk.crash_at(disk.change_count() + after);
        }
        let mut prng = self.prng.fork();
        logs::take();
        let started = self.members[member].start(self.now, &self.plan, &mut prng);
        let trouble = std::mem::take(&mut self.troubles[member]);
        self.troubles[member].disk_stalled_until = trouble.disk_stalled_until;
        self.troubles[member].cut_in_write = trouble.cut_in_write;
        self.take_logs(member);
        if self.members[member].disk.has_crashed() {
            self.members[member].life = None;
            self.lose_power(member);
            let at = self.now + 1 + self.prng.below(1_000_000_000);
            self.schedule(at, Event::Start { member });
            return;
        }
        if cut.is_some() {
            // It was over before its cut.
            self.members[member].disk.crash_at(NEVER);
        }
        if let Err(error) = started {
            if self.leaves(member, &error.to_string()) {
                return;
            }
            return self.violate(STARTS, format!("member {member}: {error}"));
        }
        if !self.plan.hardships.is_empty() {
            self.reset_silent(member);
        }
        self.judges.started(member);
        self.look_into_log(member);
        let threads = self.members[member].life.as_ref().map_or(0, |life| life.threads.len());
        for thread in 0..threads {
            self.wake(member, thread);
        }
    }

    fn step(&mut self, member: usize, number: u64, thread: usize) {
        let paused_until = self.troubles[member].paused_until;
        let now = self.now;
        if self.members[member].life_number != number {
            return;
        }
        let Some(life) = &mut self.members[member].life else { return };
        let state = &mut life.threads[thread];
        if state.due != now {
            // It was scheduled for an earlier moment since.
            return;
        }
        state.due = NEVER;
        let (stopped, stopped_until) = self.troubles[member].stopped_thread;
        let stopped_until = if stopped == thread { stopped_until } else { 0 };
        if paused_until.max(stopped_until) > now {
            return self.step_at(member, thread, paused_until.max(stopped_until));
        }
        self.trace.event(now, "step", &[member as u64, thread as u64]);
        life.clock.set(now);
        let waited = if state.waits { state.shard.wait(std::time::Duration::ZERO) } else { Ok(()) };
        state.waits = true;
        let worked = waited.and_then(|()| state.shard.work());
        let (most, slow_until) = self.troubles[member].slow_rounds;
        let busy = match slow_until > now {
            true => self.prng.below(most),
            false => self.plan.round.draw(&mut self.prng),
        };
        state.busy_until = now + busy;
        let timeout = match worked {
            Ok(timeout) => timeout,
            Err(error) => return self.violate(DRIVES, format!("member {member}: {error}")),
        };
        state.stopped = timeout.is_none();
        if let Some(timeout) = timeout {
            let own = u64::try_from(timeout.as_nanos()).unwrap_or(NEVER);
            let at = life.clock.after(now, own).saturating_add(1000);
            let again = !state.port.is_empty();
            self.step_at(member, thread, if again { now } else { at });
        }
        let mut effects =
            self.members[member].life.as_ref().map_or(Vec::new(), |life| life.effects.take());
        let doomed = self.troubles[member].doomed.take();
        if doomed.is_some() {
            let kept = self.prng.index(effects.len() + 1);
            effects.truncate(kept);
        }
        self.apply(member, effects);
        if let Some(death) = doomed {
            return self.die(member, death);
        }
        self.look_at(member);
        self.look_around(member);
    }

    /// What a member has logged, for people.
    fn take_logs(&mut self, member: usize) {
        for line in logs::take() {
            self.trace.say(self.now, || format!("member {member} logs {line}"));
        }
    }

    /// What a step may have woken.
    pub(super) fn look_around(&mut self, member: usize) {
        self.take_logs(member);
        let number = self.members[member].life_number;
        let Some(life) = &mut self.members[member].life else { return };
        let woken: Vec<usize> = (0..life.threads.len())
            .filter(|thread| life.threads[*thread].waker.take_woken())
            .collect();
        let mut helpers = Vec::new();
        let soon = self.now + 1000 + self.prng.below(50_000);
        if !life.desk.is_empty() && life.background_due == NEVER {
            life.background_due = soon;
            helpers.push(Event::Background { member, life: number });
        }
        if life.hasher.has_work() && life.hasher_due == NEVER {
            life.hasher_due = soon;
            helpers.push(Event::Hasher { member, life: number });
        }
        for event in helpers {
            self.schedule(soon, event);
        }
        for thread in woken {
            // Threads that share a waker are all looked at; they find out whether it was for them.
            self.wake(member, thread);
        }
        let Some(life) = &self.members[member].life else { return };
        if life.threads.iter().all(|thread| thread.stopped) {
            self.exited(member);
        }
    }

    /// A member that has stopped by itself.
    fn exited(&mut self, member: usize) {
        let Some(life) = &self.members[member].life else { return };
        let failure = life.shared.lifecycle.failure().map(str::to_owned);
        if self.leaves(member, failure.as_deref().unwrap_or(REMOVED)) {
            self.trace.event(self.now, "leave", &[member as u64]);
            return self.die(member, Death::Kill);
        }
        self.trace.event(self.now, "exit", &[member as u64]);
        self.trace.say(self.now, || format!("member {member} has stopped: {failure:?}"));
        let trouble = &self.troubles[member];
        if let Some(reason) = failure
            && !trouble.disk_failed
        {
            if !trouble.has_rotten {
                return self.violate(SOUND, format!("member {member}: {reason}"));
            }
            if !reason.contains(DB_FILE) {
                return self.violate(NAMED, format!("member {member}: {reason}"));
            }
        }
        self.die(member, Death::Kill);
    }

    /// Judges what the member's log says.
    pub(super) fn look_into_log(&mut self, member: usize) {
        if let Err(violation) = log::look(&mut self.judges, member, &self.members[member].disk) {
            self.violation.get_or_insert(violation);
        }
    }

    /// Judges what the member shows now.
    fn look_at(&mut self, member: usize) {
        let Some(life) = &self.members[member].life else { return };
        if life.shared.status.applied.load(Ordering::Relaxed) == 0 {
            // Its replica has not published anything yet.
            return;
        }
        let view = life.shared.view.load_full();
        let disk = &self.members[member].disk;
        if let Err(violation) = state::look(&mut self.judges, member, &view, disk) {
            self.violation.get_or_insert(violation);
        }
        self.hold_view(member, &view);
    }

    /// Now and then a view is held for a while, as by a slow reader, and read at both ends.
    fn hold_view(&mut self, member: usize, view: &Arc<MemberView>) {
        match self.held_views.get(&member) {
            Some((until, _)) if *until > self.now => return,
            Some(_) => {}
            None if self.prng.chance(1, 40) => {
                let until = self.now + self.prng.below(1_500_000_000);
                let held = held::HeldView::take(view, &self.members[member].disk);
                self.held_views.extend(held.map(|held| (member, (until, held))));
                return;
            }
            None => return,
        }
        let Some((_, view)) = self.held_views.remove(&member) else { return };
        if let Err(violation) = view.look(member, &self.members[member].disk) {
            self.violation.get_or_insert(violation);
        }
    }
}
