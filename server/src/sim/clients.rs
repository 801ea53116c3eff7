//! The clients: each asks one thing at a time over a connection of its own, and what it is told is
//! written down.
//!
//! Called by the world when time has come or bytes have. A client that gets no answer in time gives
//! up, and the history says that nobody knows. It must never try a request twice: the history would
//! not know it.

use std::collections::VecDeque;

use etcore_engine::testing::prng::Prng;
use etcore_history::types::{Answer, Hash, Operation, Outcome, Request};
use etcore_proto::grpc::{ClientEvent, Code};
use etcore_proto::h2::StreamId;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message;

use super::finish::Stage;
use super::intruders::Intruding;
use super::keepers::Keeping;
use super::member::{NEVER, client_address};
use super::net::End;
use super::plan::Plan;
use super::watchers::Watching;
use super::wire::{self, Wire};
use super::workload::Source;
use super::world::{Event, World};
use crate::cluster::change::Change;

/// No answer hides a fault of the member.
pub const FINE: &str = "no request ends with an error inside the member";
/// Times of leases.
pub const NO_LONGER: &str = "a lease has no more time left than it was granted";
/// Answers can be read.
pub const READABLE: &str = "an answer is a message of etcd's API";

/// What a client is for.
pub(super) enum Role {
    /// Asks what it likes.
    Asks,
    /// Keeps a lease.
    Keeps(Keeping),
    /// Watches.
    Watches(Box<Watching>),
    /// Reads this member in the end.
    Audits(usize),
    /// Changes who the members are.
    Operates,
    /// Means no good.
    Intrudes(Intruding),
}

/// Something to ask.
#[derive(Debug, Clone)]
pub(super) enum Ask {
    /// This.
    Do(Request),
    /// Another member is to lead: this one.
    Lead(u64),
    /// The hash up to the newest revision told, or the one before it.
    Hash,
    /// How long a lease has left.
    TimeToLive(i64),
    /// Other members.
    Change(Change),
}

/// An operation under way.
pub(super) struct Op {
    ask: Ask,
    stream: StreamId,
    invoke: u64,
    deadline: u64,
    answer: Option<Answer>,
    /// What has come of a RangeStream.
    pieces: Option<pb::RangeResponse>,
}

/// See the module text.
pub(super) struct Client {
    pub(super) number: u64,
    pub(super) prng: Prng,
    pub(super) role: Role,
    /// Whom it asks.
    pub(super) member: usize,
    /// The number of the client's run.
    pub(super) run: u64,
    pub(super) wire: Option<Wire>,
    /// When the connection is given up if nobody has accepted it.
    pub(super) connect_deadline: u64,
    pub(super) connected: bool,
    pub(super) op: Option<Op>,
    /// The next request may be made then.
    pub(super) next_at: u64,
    /// When it is looked after next; [`NEVER`] if that is not scheduled.
    due: u64,
    /// It got an answer since this was cleared.
    pub(super) served: bool,
    /// Requests that an auditor has still to make.
    pub(super) script: VecDeque<Ask>,
}

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
/// How long a client waits for an answer, at most; some wait less.
const PATIENCE: u64 = 8 * S;

impl Client {
    fn new(number: u64, role: Role, prng: Prng) -> Self {
        Self {
            number,
            prng,
            role,
            member: 0,
            run: 0,
            wire: None,
            connect_deadline: NEVER,
            connected: false,
            op: None,
            next_at: 0,
            due: NEVER,
            served: false,
            script: VecDeque::new(),
        }
    }

    /// All clients of a plan: those that ask, keep leases, and watch, one auditor a member, and
    /// hostile ones, whose numbers come from elsewhere: the others' are the same without them.
    pub(super) fn all(plan: &Plan, prng: &mut Prng) -> Vec<Option<Box<Self>>> {
        let asks = (0..plan.clients).map(|_| Role::Asks);
        let watches = (0..plan.watchers).map(|_| Role::Watches(Box::default()));
        let keeps = (0..plan.keepers).map(|_| Role::Keeps(Keeping::default()));
        let audits = (0..plan.machines()).map(Role::Audits);
        let operates = (plan.joiners > 0).then_some(Role::Operates);
        let all = asks.chain(keeps).chain(watches).chain(audits).chain(operates).zip(0..);
        let mut clients: Vec<Self> =
            all.map(|(role, number)| Client::new(number, role, prng.fork())).collect();
        let mut own = Prng::new(plan.seed ^ 0x696e_7472_7564);
        for number in (clients.len() as u64..).take(plan.intruders) {
            let role = Role::Intrudes(Intruding::default());
            clients.push(Client::new(number, role, own.fork()));
        }
        clients.into_iter().map(|client| Some(Box::new(client))).collect()
    }

    /// It asks of itself.
    pub(super) fn asks(&self) -> bool {
        matches!(self.role, Role::Asks | Role::Keeps(_))
    }

    fn wants_connection(&self, stage: Stage) -> bool {
        match self.role {
            Role::Asks | Role::Keeps(_) => {
                !matches!(stage, Stage::Silence | Stage::Reading { .. } | Stage::Over)
            }
            Role::Watches(_) => stage != Stage::Over,
            Role::Audits(_) | Role::Operates => !self.script.is_empty(),
            Role::Intrudes(_) => false,
        }
    }
}

impl World {
    /// Time as histories have it: no member's clock runs faster.
    pub(super) fn history_time(&self) -> u64 {
        let slack = u128::from(self.now) * u128::from(2 * self.plan.drift) / 1_000_000;
        self.now + u64::try_from(slack).unwrap_or(0)
    }

    /// Has a client looked after at that time, or before.
    pub(super) fn client_at(&mut self, at: usize, time: u64) {
        let Some(client) = self.clients.get_mut(at).and_then(Option::as_mut) else { return };
        let time = time.max(self.now);
        if time < client.due {
            client.due = time;
            self.schedule(time, Event::Client { client: at });
        }
    }

    /// Looks after a client: connects, asks, gives up.
    pub(super) fn client_turn(&mut self, at: usize) {
        let is_due = |client: &mut Box<Client>| client.due == self.now;
        let Some(client) = self.clients.get_mut(at) else { return };
        let Some(mut client) = client.take_if(is_due) else { return };
        client.due = NEVER;
        self.trace.event(self.now, "client", &[at as u64]);
        let next = self.advance(at, &mut client);
        self.flush(&mut client);
        self.clients[at] = Some(client);
        if let Some(next) = next {
            self.client_at(at, next);
        }
    }

    /// When to look again, if time alone brings the client on.
    fn advance(&mut self, at: usize, client: &mut Client) -> Option<u64> {
        if matches!(client.role, Role::Intrudes(_)) {
            return self.intrude(at, client);
        }
        if let Some(op) = &client.op {
            if self.now < op.deadline {
                return Some(op.deadline);
            }
            self.trace.say(self.now, || format!("client {at} gives up"));
            self.conclude(client, Outcome::Unknown);
            self.hang_up(client);
        }
        if client.wire.is_some() && !client.connected {
            if self.now < client.connect_deadline {
                return Some(client.connect_deadline);
            }
            self.hang_up(client);
        }
        if !client.wants_connection(self.stage) {
            return None;
        }
        if self.now < client.next_at {
            return Some(client.next_at);
        }
        if client.wire.is_none() {
            if !matches!(client.role, Role::Audits(_)) {
                client.member = client.prng.index(self.members.len());
                if !self.plan.hardships.is_empty() {
                    // Every member has some, all the time.
                    client.member = at % self.members.len();
                }
            }
            let latency = self.plan.client_latency;
            let address = client_address(client.member);
            let connection = self.connect(End::Client(at), address, latency);
            client.wire = Some(Wire::new(connection));
            client.connected = false;
            client.connect_deadline = self.now + S;
            return Some(client.connect_deadline);
        }
        if matches!(client.role, Role::Watches(_)) {
            return self.advance_watch(client);
        }
        self.ask(at, client)
    }

    fn ask(&mut self, at: usize, client: &mut Client) -> Option<u64> {
        let ask = match &mut client.role {
            Role::Audits(_) | Role::Operates => client.script.front().cloned()?,
            Role::Keeps(keeping) => {
                Ask::Do(keeping.request(client.number, &mut client.prng, &mut self.values))
            }
            _ if client.prng.chance(1, 100) => Ask::Hash,
            _ if self.members.len() > 1
                && client.prng.chance(1, 150)
                && self.plan.hardships.is_empty()
                // A new leader may have released what the old one kept for a member that lags.
                && !matches!(self.stage, Stage::Behind(_)) =>
            {
                let heir = client.prng.index(self.members.len());
                let life = self.members[heir].life.as_ref();
                life.map_or(Ask::Hash, |life| Ask::Lead(life.shared.member_id))
            }
            _ => {
                let mut source = Source {
                    plan: &self.plan,
                    prng: &mut client.prng,
                    told: self.told,
                    values: &mut self.values,
                    leases: &mut self.lease_ids,
                };
                match source.request() {
                    Request::KeepAlive { id } if source.prng.chance(1, 4) => Ask::TimeToLive(id),
                    request => Ask::Do(request),
                }
            }
        };
        let in_pieces = matches!(&ask, Ask::Do(Request::Get(_))) && client.prng.chance(1, 6);
        let wire = client.wire.as_mut()?;
        let stream = match &ask {
            Ask::Do(Request::Get(get)) if in_pieces => wire.start_range_stream(get),
            Ask::Do(request) => wire.start(request),
            Ask::TimeToLive(id) => wire.start_time_to_live(*id),
            Ask::Lead(heir) => wire.start_transfer(*heir),
            Ask::Change(change) => wire.start_change(change),
            // Compactions are at odd ones.
            Ask::Hash => wire.start_hash(self.told & !1),
        };
        let Some(stream) = stream else {
            self.hang_up(client);
            return Some(client.next_at);
        };
        self.trace.say(self.now, || format!("client {at} asks {}", client.run) + &text(&ask));
        let is_short = client.prng.chance(1, 8) && self.plan.hardships.is_empty();
        let patience = if is_short { 50 * MS } else { PATIENCE };
        let deadline = self.now + patience;
        let invoke = self.history_time();
        let pieces = in_pieces.then(pb::RangeResponse::default);
        client.op = Some(Op { ask, stream, invoke, deadline, answer: None, pieces });
        Some(deadline)
    }

    /// The member's kernel has taken the connection.
    pub(super) fn client_connected(&mut self, connection: u64) {
        let Some(End::Client(at)) = self.connections.get(&connection).map(|known| known.ends[0])
        else {
            return;
        };
        let Some(client) = self.clients.get_mut(at).and_then(Option::as_mut) else { return };
        if client.wire.as_ref().is_some_and(|wire| wire.connection == connection) {
            client.connected = true;
            client.run = self.members[client.member].run_number();
            self.client_at(at, self.now);
        }
    }

    /// Bytes have come for a client.
    pub(super) fn client_receives(&mut self, at: usize, connection: u64, bytes: &[u8]) {
        let Some(mut client) = self.clients.get_mut(at).and_then(Option::take) else { return };
        if let Role::Intrudes(intruding) = &mut client.role {
            intruding.received(connection, bytes);
            self.clients[at] = Some(client);
            return;
        }
        let now_ms = self.now / MS;
        let mut broken = false;
        if let Some(wire) = client.wire.as_mut().filter(|wire| wire.connection == connection) {
            broken = wire.grpc.receive(bytes, now_ms).is_err();
        }
        self.take_events(at, &mut client);
        self.flush(&mut client);
        if broken {
            self.hang_up(&mut client);
        }
        self.clients[at] = Some(client);
        self.client_at(at, self.now);
    }

    /// The connection of a client is over.
    pub(super) fn client_disconnected(&mut self, at: usize, connection: u64) {
        let Some(mut client) = self.clients.get_mut(at).and_then(Option::take) else { return };
        if let Role::Intrudes(intruding) = &mut client.role {
            intruding.disconnected(connection);
        }
        if client.wire.as_ref().is_some_and(|wire| wire.connection == connection) {
            if let Some(wire) = &mut client.wire {
                wire.grpc.fail_all("the connection is gone");
            }
            self.take_events(at, &mut client);
            self.hang_up(&mut client);
        }
        self.clients[at] = Some(client);
        self.client_at(at, self.now);
    }

    fn take_events(&mut self, at: usize, client: &mut Client) {
        while let Some(event) = client.wire.as_mut().and_then(|wire| wire.grpc.next_event()) {
            match event {
                ClientEvent::Response { stream, message, .. }
                | ClientEvent::Message { stream, message, .. } => {
                    if matches!(client.role, Role::Watches(_)) {
                        self.watch_message(client, &message);
                    } else {
                        self.answered(at, client, stream, &message);
                    }
                }
                ClientEvent::Status { stream, code, message, .. } => {
                    if matches!(client.role, Role::Watches(_)) {
                        self.watch_over(client);
                    } else {
                        self.refused(at, client, stream, code, message);
                    }
                }
                ClientEvent::GoAway { .. } => client.next_at = client.next_at.max(self.now + MS),
                _ => {}
            }
        }
        let over = client.wire.as_ref().is_some_and(|wire| wire.grpc.is_drained());
        if over && client.op.is_none() {
            self.hang_up(client);
        }
    }

    fn answered(&mut self, at: usize, client: &mut Client, stream: StreamId, message: &[u8]) {
        let Some(op) = client.op.as_mut().filter(|op| op.stream == stream) else { return };
        match &op.ask {
            Ask::Lead(_) | Ask::Change(_) => self.over(client),
            Ask::Hash => {
                let Ok(answer) = pb::HashKvResponse::decode(message) else {
                    return self.violate(READABLE, "HashKV".to_owned());
                };
                self.history.hashes.push(Hash {
                    member: client.run,
                    revision: answer.hash_revision,
                    compacted: answer.compact_revision,
                    hash: answer.hash,
                });
                self.over(client);
            }
            Ask::TimeToLive(id) => {
                let id = *id;
                let Ok(answer) = pb::LeaseTimeToLiveResponse::decode(message) else {
                    return self.violate(READABLE, "LeaseTimeToLive".to_owned());
                };
                self.trace.say(self.now, || format!("client {at} is told {answer:?}"));
                if answer.id != id || answer.ttl > answer.granted_ttl {
                    return self.violate(NO_LONGER, format!("client {at}: {answer:?}"));
                }
                self.over(client);
            }
            Ask::Do(_) if op.pieces.is_some() => {
                let piece = pb::RangeStreamResponse::decode(message).unwrap_or_default();
                let piece = piece.range_response.unwrap_or_default().encode_to_vec();
                let merged = op.pieces.as_mut().map(|whole| whole.merge(&piece[..]));
                if merged.is_none_or(|merged| merged.is_err()) {
                    self.violate(READABLE, "RangeStream".to_owned());
                }
            }
            Ask::Do(request) => {
                let answer = match wire::decode(request, message) {
                    Ok(answer) => answer,
                    Err(error) => {
                        return self.violate(READABLE, format!("{request:?}: {error}"));
                    }
                };
                self.trace.say(self.now, || format!("client {at} is told {answer:?}"));
                if matches!(request, Request::KeepAlive { .. }) {
                    // Its status follows.
                    op.answer = Some(answer);
                    return;
                }
                self.conclude(client, Outcome::Known(answer));
            }
        }
    }

    fn refused(
        &mut self,
        at: usize,
        client: &mut Client,
        stream: StreamId,
        code: Code,
        message: String,
    ) {
        let Some(op) = client.op.as_mut().filter(|op| op.stream == stream) else { return };
        self.trace.say(self.now, || format!("client {at} is refused: {code:?} {message}"));
        let is_rotten = self.rotten_runs.contains(&client.run);
        // An answer of many pieces that meets damage midway can only be broken off.
        let breaks_off = code == Code::Internal && message.starts_with("stream terminated by RST");
        let is_bad = matches!(code, Code::Internal | Code::Unimplemented | Code::DataLoss);
        let is_excused = is_rotten && (code == Code::DataLoss || breaks_off);
        if is_bad && !is_excused {
            return self.violate(FINE, format!("client {at}: {code:?} {message}"));
        }
        if code == Code::Ok
            && let Some(whole) = op.pieces.take()
        {
            let answer = Answer::from(whole);
            self.trace.say(self.now, || format!("client {at} was told {answer:?}"));
            return self.conclude(client, Outcome::Known(answer));
        }
        if let Some(answer) = op.answer.take() {
            return self.conclude(client, Outcome::Known(answer));
        }
        let certain = matches!(
            code,
            Code::InvalidArgument | Code::OutOfRange | Code::NotFound | Code::FailedPrecondition
        );
        let outcome = if certain { Outcome::Refused(message) } else { Outcome::Unknown };
        self.conclude(client, outcome);
    }

    /// Writes down what came of the operation under way.
    fn conclude(&mut self, client: &mut Client, outcome: Outcome) {
        let known = outcome != Outcome::Unknown;
        if let Some(op) = &client.op
            && let Ask::Do(request) = &op.ask
        {
            let (number, member, invoke) = (client.number, client.run, op.invoke);
            let ret = self.history_time();
            let request = request.clone();
            match &outcome {
                Outcome::Known(answer) => {
                    self.told = self.told.max(answer.revision());
                    self.trace.event(self.now, "told", &[answer.revision().unsigned_abs()]);
                }
                Outcome::Refused(_) => self.trace.event(self.now, "refused", &[]),
                Outcome::Unknown => self.trace.event(self.now, "unknown", &[]),
            }
            if let Role::Keeps(keeping) = &mut client.role {
                keeping.told(&request, &outcome);
            }
            let operation = Operation { client: number, member, invoke, ret, request, outcome };
            self.judge_wait(client.member, &operation);
            self.history.operations.push(operation);
        }
        if known && client.op.is_some() {
            self.over(client);
        } else if client.op.take().is_some() {
            // What nobody knows the outcome of gives the judges choices: not too many of them.
            let most = if self.plan.hardships.is_empty() { 100 * MS } else { 600 * MS };
            client.next_at = self.now + client.prng.below(most);
        }
    }

    /// The operation under way was answered.
    fn over(&mut self, client: &mut Client) {
        client.op = None;
        client.served = true;
        client.script.pop_front();
        let think = match client.role {
            Role::Keeps(_) => Keeping::pause(&mut client.prng),
            _ => self.plan.think.draw(&mut client.prng),
        };
        client.next_at = self.now + think;
    }

    /// Leaves the connection; what is under way has no known outcome.
    pub(super) fn hang_up(&mut self, client: &mut Client) {
        if client.op.is_some() {
            self.conclude(client, Outcome::Unknown);
        }
        client.op = None;
        if let Role::Watches(watching) = &mut client.role {
            watching.stream = None;
        }
        if let Some(wire) = client.wire.take() {
            self.close(wire.connection, 0);
            client.next_at = client.next_at.max(self.now + client.prng.below(50 * MS));
        }
        client.connected = false;
    }

    fn flush(&mut self, client: &mut Client) {
        let Some(wire) = &mut client.wire else { return };
        let mut out = Vec::new();
        while wire.grpc.poll_transmit(&mut out, usize::MAX) {}
        let connection = wire.connection;
        if !out.is_empty() {
            self.send(connection, 1, &out);
        }
    }
}

fn text(ask: &Ask) -> String {
    match ask {
        Ask::Do(request) => format!(": {request:?}"),
        Ask::Change(change) => format!(": {change:?}"),
        Ask::Lead(heir) => format!(": {heir:x} shall lead"),
        Ask::Hash => ": hash".to_owned(),
        Ask::TimeToLive(id) => format!(": what is left of lease {id}"),
    }
}
