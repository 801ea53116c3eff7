//! Clients of a store that is right: many at once, some never told what became of their calls.
//!
//! Used by tests and benchmarks of the judges. Everything follows from the seed. Calls take effect
//! at one moment between call and return, or, if the client gave up, at any later one or never;
//! serializable reads come from members that lag; leases end some time after they may. Must never
//! be made wrong: histories that are wrong are made from its own by changing them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use etcore_proto::splitmix::SplitMix64;

use crate::data::{Data, KeyRange};
use crate::model::Model;
use crate::types::{
    Answer, Batch, Compare, Delete, Get, Hash, History, Operation, Outcome, Put, Relation, Request,
    Target, Txn, Watch,
};

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// Calls of all clients.
    pub operations: usize,
    /// Calls at once.
    pub clients: u64,
    /// Keys in use.
    pub keys: u64,
    /// Calls per thousand whose outcome stays unknown.
    pub lost: u64,
    /// Watches, of random ranges.
    pub watches: usize,
    /// Reads, writes and removals of one key, nothing else.
    pub registers: bool,
}

/// Random numbers from a seed.
#[derive(Debug, Clone)]
pub struct Random(SplitMix64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Random(SplitMix64::new(seed))
    }

    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0.draw()
    }

    /// Below the bound, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    /// True so many times in a thousand.
    pub fn happens(&mut self, per_thousand: u64) -> bool {
        self.below(1_000) < per_thousand
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// A client calls.
    Call(u64),
    /// An operation takes effect.
    Take(usize),
    /// A lease may end.
    End(i64),
}

const MEMBERS: u64 = 3;
const MICROS: u64 = 1_000;
const SECOND: u64 = 1_000_000_000;

struct World {
    plan: Plan,
    random: Random,
    model: Model,
    history: History,
    steps: BinaryHeap<Reverse<(u64, u64, Step)>>,
    sequence: u64,
    compacted: i64,
    applied: [i64; MEMBERS as usize],
    /// Live leases: seconds, and when they may end.
    leases: BTreeMap<i64, (i64, u64)>,
    granted: i64,
    values: u64,
    /// When each revision after the first was made.
    times: Vec<u64>,
}

/// A history of a store that is right.
pub fn simulate(plan: &Plan) -> History {
    let history = History::default();
    let mut world = World {
        plan: plan.clone(),
        random: Random::new(plan.seed),
        model: Model::new(&history.start),
        history,
        steps: BinaryHeap::new(),
        sequence: 0,
        compacted: 0,
        applied: [1; MEMBERS as usize],
        leases: BTreeMap::new(),
        granted: 0,
        values: 0,
        times: Vec::new(),
    };
    for client in 0..plan.clients {
        world.schedule(client + 1, Step::Call(client));
    }
    let mut now = 0;
    while let Some(Reverse((time, _, step))) = world.steps.pop() {
        now = time;
        match step {
            Step::Call(client) => world.call(client, time),
            Step::Take(index) => world.take(index, time),
            Step::End(id) => world.end(id, time),
        }
        let made = usize::try_from(world.model.revision() - 1).unwrap_or(0);
        world.times.resize(made, time);
    }
    world.finish(now + SECOND)
}

impl World {
    fn schedule(&mut self, time: u64, step: Step) {
        self.sequence += 1;
        self.steps.push(Reverse((time, self.sequence, step)));
    }

    fn micros(&mut self, most: u64) -> u64 {
        1 + self.random.below(most * MICROS)
    }

    fn call(&mut self, client: u64, now: u64) {
        if self.history.operations.len() >= self.plan.operations {
            return;
        }
        let request = self.request();
        let index = self.history.operations.len();
        let mut operation = Operation {
            client,
            member: self.random.below(MEMBERS),
            invoke: now,
            ret: now + 500 * MICROS,
            request,
            outcome: Outcome::Unknown,
        };
        if self.random.happens(10) {
            operation.outcome = Outcome::Refused("etcdserver: too many requests".to_owned());
        } else if self.random.happens(self.plan.lost) {
            if self.random.happens(500) {
                let late = if self.random.happens(100) { 100_000 } else { 500 };
                let time = now + self.micros(late);
                self.schedule(time, Step::Take(index));
            }
        } else {
            let takes = now + self.micros(300);
            operation.ret = takes + self.micros(200);
            self.schedule(takes, Step::Take(index));
        }
        let next = operation.ret + self.micros(50);
        self.history.operations.push(operation);
        self.schedule(next, Step::Call(client));
    }

    fn key(&mut self) -> Data {
        format!("k{:03}", self.random.below(self.plan.keys)).into()
    }

    fn range(&mut self) -> KeyRange {
        let start = self.random.below(self.plan.keys);
        let end = start + 1 + self.random.below(8);
        KeyRange::new(format!("k{start:03}"), format!("k{end:03}"))
    }

    fn put(&mut self) -> Put {
        self.values += 1;
        let unique = !self.random.happens(50);
        let value = if unique { format!("v{}", self.values) } else { "same".to_owned() };
        let prev_kv = self.random.happens(200);
        Put { key: self.key(), value: value.into(), prev_kv, lease: 0 }
    }

    fn lease(&mut self) -> i64 {
        let back = i64::try_from(self.random.below(8)).unwrap_or(0);
        (self.granted - back).max(1)
    }

    fn request(&mut self) -> Request {
        let revision = self.model.revision();
        let draw = match (self.random.below(1_000), self.plan.registers) {
            (draw, false) => draw,
            (draw, true) if draw < 450 => 0,
            (draw, true) if draw < 850 => 480,
            (_, true) => 780,
        };
        match draw {
            0..250 => Request::Get(Get { range: KeyRange::one(self.key()), ..Get::default() }),
            250..330 => {
                let limit = i64::try_from(self.random.below(4)).unwrap_or(0);
                let (keys_only, count_only) = (self.random.happens(100), self.random.happens(100));
                let range = self.range();
                Request::Get(Get { range, limit, keys_only, count_only, ..Get::default() })
            }
            330..430 => {
                let range = KeyRange::one(self.key());
                Request::Get(Get { range, serializable: true, ..Get::default() })
            }
            430..480 => {
                let back = i64::try_from(self.random.below(40)).unwrap_or(0);
                let serializable = self.random.happens(300);
                let range = self.range();
                let revision = (revision - back).max(1);
                Request::Get(Get { range, revision, serializable, ..Get::default() })
            }
            480..780 => Request::Put(self.put()),
            780..840 => {
                let prev_kv = self.random.happens(300);
                Request::Delete(Delete { range: KeyRange::one(self.key()), prev_kv })
            }
            840..850 => Request::Delete(Delete { range: self.range(), prev_kv: true }),
            850..950 => Request::Txn(self.txn()),
            950..960 => {
                self.granted += 1;
                Request::Grant { id: self.granted, ttl: 1 }
            }
            960..985 => {
                let lease = self.lease();
                Request::Put(Put { lease, ..self.put() })
            }
            985..990 => Request::KeepAlive { id: self.lease() },
            990..995 => Request::Revoke { id: self.lease() },
            _ => Request::Compact { revision: (revision - 20).max(1) },
        }
    }

    fn txn(&mut self) -> Txn {
        let key = self.key();
        let range = KeyRange::one(key.clone());
        let before = self.model.kv(&key, self.model.revision());
        let target = match self.random.below(4) {
            0 => Target::Create(0),
            1 => Target::Modified(before.map_or(0, |kv| kv.modified)),
            2 => Target::Version(1),
            _ => Target::Value(before.map_or("same".into(), |kv| kv.value)),
        };
        let relation = match self.random.below(4) {
            0 => Relation::NotEqual,
            1 => Relation::Greater,
            _ => Relation::Equal,
        };
        let mut success = vec![
            Request::Get(Get { range: range.clone(), ..Get::default() }),
            Request::Put(Put { key, ..self.put() }),
            Request::Get(Get { range: range.clone(), ..Get::default() }),
        ];
        let other = Request::Put(self.put());
        if other.footprint() != [range.clone()] {
            success.push(other);
        }
        let failure = match self.random.below(3) {
            0 => vec![Request::Delete(Delete { range: range.clone(), prev_kv: true })],
            1 => vec![Request::Get(Get { range: self.range(), ..Get::default() })],
            _ => Vec::new(),
        };
        Txn { compares: vec![Compare { range, relation, target }], success, failure }
    }

    fn take(&mut self, index: usize, now: u64) {
        let operation = self.history.operations[index].clone();
        let result = self.perform(&operation, now);
        let answered = operation.ret > now && operation.outcome == Outcome::Unknown;
        // A client that gave up is not told, even if the effect came before that.
        let lost = operation.ret == operation.invoke + 500 * MICROS;
        if answered && !lost {
            self.history.operations[index].outcome = match result {
                Ok(answer) => Outcome::Known(answer),
                Err(text) => Outcome::Refused(format!("etcdserver: {text}")),
            };
        }
    }

    fn perform(&mut self, operation: &Operation, now: u64) -> Result<Answer, &'static str> {
        let member = usize::try_from(operation.member).unwrap_or(0);
        let current = self.model.revision();
        match &operation.request {
            Request::Get(get) if get.serializable => {
                let lag = i64::try_from(self.random.below(5)).unwrap_or(0);
                let applied = self.applied[member].max(current - lag);
                self.applied[member] = applied;
                let at = if get.revision > 0 { get.revision } else { applied };
                if at > applied {
                    return Err("mvcc: required revision is a future revision");
                }
                if at < self.compacted && get.revision > 0 {
                    return Err("mvcc: required revision has been compacted");
                }
                let get = Get { revision: at, ..get.clone() };
                let mut answer = self.model.apply(&Request::Get(get)).map_err(|_| "refused")?;
                if let Answer::Get { revision, .. } = &mut answer {
                    *revision = applied;
                }
                return Ok(answer);
            }
            Request::Get(get) if get.revision > 0 && get.revision < self.compacted => {
                return Err("mvcc: required revision has been compacted");
            }
            Request::Put(put) if put.lease != 0 && !self.leases.contains_key(&put.lease) => {
                return Err("requested lease not found");
            }
            Request::Grant { id, ttl } => {
                let ends = now + u64::try_from(*ttl).unwrap_or(0) * SECOND;
                self.leases.insert(*id, (*ttl, ends));
                self.schedule(ends, Step::End(*id));
            }
            Request::Revoke { id } if self.leases.remove(id).is_none() => {
                return Err("requested lease not found");
            }
            Request::KeepAlive { id } => {
                let ttl = match self.leases.get_mut(id) {
                    Some((ttl, ends)) => {
                        *ends = now + u64::try_from(*ttl).unwrap_or(0) * SECOND;
                        *ttl
                    }
                    None => 0,
                };
                return Ok(Answer::KeepAlive { revision: current, ttl });
            }
            Request::Compact { revision } if *revision <= self.compacted => {
                return Err("mvcc: required revision has been compacted");
            }
            Request::Compact { revision } => self.compacted = *revision,
            _ => {}
        }
        let answer = self.model.apply(&operation.request).map_err(|_| "refused")?;
        self.applied[member] = self.model.revision();
        Ok(answer)
    }

    fn end(&mut self, id: i64, now: u64) {
        let Some((_, ends)) = self.leases.get(&id) else { return };
        let ends = *ends;
        if ends > now {
            self.schedule(ends, Step::End(id));
            return;
        }
        self.leases.remove(&id);
        self.model.end_lease(id);
    }

    /// One look at everything, the watches and the sums.
    fn finish(mut self, now: u64) -> History {
        let get = Request::Get(Get { range: KeyRange::all(), ..Get::default() });
        if let Ok(answer) = self.model.apply(&get) {
            self.history.operations.push(Operation {
                client: 0,
                member: 0,
                invoke: now,
                ret: now + 1,
                request: get,
                outcome: Outcome::Known(answer),
            });
        }
        let revision = self.model.revision();
        for member in 0..MEMBERS {
            let (compacted, hash) = (self.compacted, u32::try_from(revision).unwrap_or(0) ^ 7);
            self.history.hashes.push(Hash { member, revision, compacted, hash });
        }
        for number in 0..self.plan.watches {
            let watch = self.watch(u64::try_from(number).unwrap_or(0));
            self.history.watches.push(watch);
        }
        self.history
    }

    fn watch(&mut self, client: u64) -> Watch {
        let last = self.model.revision();
        let range = if client == 0 { KeyRange::all() } else { self.range() };
        let from = 1 + i64::try_from(self.random.below(last.unsigned_abs())).unwrap_or(0);
        let first = if client == 0 { 2 } else { from + 1 };
        let start = if self.random.happens(500) { 0 } else { first };
        let prev_kv = self.random.happens(500);
        let mut watch = Watch {
            client,
            member: client % MEMBERS,
            range,
            start,
            created: first - 1,
            prev_kv,
            fragment: false,
            batches: Vec::new(),
        };
        let mut events = Vec::new();
        for revision in first..=last {
            let made = usize::try_from(revision - 2).ok().and_then(|index| self.times.get(index));
            let at = made.map_or(0, |time| time + 1);
            if self.random.happens(20) && events.is_empty() && revision > first {
                let progress =
                    Batch { at, revision: revision - 1, fragment: false, events: Vec::new() };
                watch.batches.push(progress);
            }
            events.extend(self.model.events(revision, &watch.range));
            if !prev_kv {
                events.iter_mut().for_each(|event| event.prev = None);
            }
            if !events.is_empty() && (self.random.happens(600) || revision == last) {
                let events = std::mem::take(&mut events);
                watch.batches.push(Batch { at, revision, fragment: false, events });
            }
        }
        watch
    }
}
