//! All links of a member, over connections that somebody else owns.
//!
//! Driven by the server's shell once per turn: time by [`Transport::begin`] and
//! [`Transport::tick`], bytes by [`Transport::received`] and [`Transport::transmit`], messages by
//! [`Transport::send`] and [`Transport::next_received`]; what must be done about connections comes
//! out of [`Transport::next_effect`]. It never waits, and one peer's trouble is no other's.

use std::collections::{BTreeSet, VecDeque};

use etcore_proto::http1;
use etcore_proto::raftpb::{Message, MessageType};

use super::conn::{Conn, Exchange, Job, Purpose, Reader, ReaderState, Role, Server};
use super::link::Link;
use super::queue::weight;
use super::{
    Channel, ConnId, Counters, Effect, Event, IncomingRequest, Local, PeerReport, PeerRequest,
    RequestError, StreamKind,
};
use crate::limits;

mod exchange;
mod serve;
mod streams;

/// The shortest time after which a link on which nothing moves may be taken for broken (etcd:
/// DefaultConnReadTimeout).
const SILENCE_MS: u64 = 5000;
/// A stream says at least this often that its sender is there, whatever its reader allows.
const BEAT_MS: u64 = SILENCE_MS / 3;
/// How often peers are probed (etcd: proberInterval).
const PROBE_MS: u64 = SILENCE_MS - 1000;
/// A connection without a request is closed after this: later than the next probe, earlier than
/// etcd closes it.
const IDLE_MS: u64 = 4500;
/// Idle time allowed to connections that peers opened; also the time a request may take to come in.
const SERVER_IDLE_MS: u64 = 60_000;
/// A peer that has ended its side is given so long for what it is still owed: who waits for an
/// answer does not end before it, as a rule, and nothing tells that it is gone.
const ENDED_MS: u64 = 5_000;
/// Dropped messages are spoken of this often.
const SAY_DROPPED_MS: u64 = 1000;
/// The links to a member that was removed are closed after this.
const LEAVE_MS: u64 = 500;
/// Timeouts are looked at this often.
const TICK_MS: u64 = 100;
/// A gap between two ticks that is the machine's doing and not the peers'.
const FROZEN_MS: u64 = 1000;

/// What a transport is told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who this member is.
    pub local: Local,
    /// How long a connection may take to come about, in milliseconds.
    pub dial_timeout_ms: u64,
    /// A link from a peer that brings nothing for so long is broken, in milliseconds; at least five
    /// seconds.
    pub read_timeout_ms: u64,
    /// A connection that takes no bytes for so long is broken, in milliseconds; at least five
    /// seconds.
    pub write_timeout_ms: u64,
}

impl Settings {
    /// With etcd's time limits for links.
    pub fn new(local: Local, dial_timeout_ms: u64) -> Self {
        let (read_timeout_ms, write_timeout_ms) = (SILENCE_MS, SILENCE_MS);
        Self { local, dial_timeout_ms, read_timeout_ms, write_timeout_ms }
    }
}

/// See the module text.
///
/// Invariants: `links` ascends by id and never holds this member; a link names a connection only
/// while it is in `conns` with that use.
#[derive(Debug)]
pub struct Transport {
    local: Local,
    dial_timeout_ms: u64,
    read_timeout_ms: u64,
    write_timeout_ms: u64,
    now_ms: u64,
    last_tick_ms: Option<u64>,
    links: Vec<Link>,
    /// Members that were taken away since the start.
    removed: BTreeSet<u64>,
    conns: Vec<Slot>,
    free: Vec<u32>,
    open: usize,
    servers: usize,
    dirty: Vec<ConnId>,
    effects: VecDeque<Effect>,
    events: VecDeque<Event>,
    received: VecDeque<Message>,
    received_bytes: usize,
    reports: Vec<PeerReport>,
    incoming: VecDeque<IncomingRequest>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    conn: Option<Box<Conn>>,
}

impl Transport {
    /// No members, no connections.
    pub fn new(settings: Settings) -> Self {
        Self {
            local: settings.local,
            dial_timeout_ms: settings.dial_timeout_ms,
            read_timeout_ms: settings.read_timeout_ms.max(SILENCE_MS),
            write_timeout_ms: settings.write_timeout_ms.max(SILENCE_MS),
            now_ms: 0,
            last_tick_ms: None,
            links: Vec::new(),
            removed: BTreeSet::new(),
            conns: Vec::new(),
            free: Vec::new(),
            open: 0,
            servers: 0,
            dirty: Vec::new(),
            effects: VecDeque::new(),
            events: VecDeque::new(),
            received: VecDeque::new(),
            received_bytes: 0,
            reports: Vec::new(),
            incoming: VecDeque::new(),
        }
    }

    /// Sets the time; before anything else of a turn.
    pub fn begin(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// Follows the cluster's membership: ids and peer URLs, this member's own among them or not.
    pub fn set_members<'a>(&mut self, members: impl Iterator<Item = (u64, &'a [String])>) {
        let mut wanted: Vec<(u64, &[String])> =
            members.filter(|(id, _)| *id != self.local.member_id).collect();
        wanted.sort_unstable_by_key(|(id, _)| *id);
        let gone: Vec<u64> = self
            .links
            .iter()
            .filter(|link| !link.is_remote && !wanted.iter().any(|(id, _)| *id == link.id))
            .map(|link| link.id)
            .collect();
        for peer in gone {
            // What it is owed is still sent: that it is a member no longer, among it.
            let leave_ms = self.now_ms + LEAVE_MS;
            if let Some(link) = self.link(peer) {
                link.leaves_ms.get_or_insert(leave_ms);
            }
            self.removed.insert(peer);
        }
        for (peer, urls) in wanted {
            self.removed.remove(&peer);
            match self.link(peer) {
                None => {
                    self.insert(peer, urls.to_vec(), false);
                    self.event(Event::Added { peer });
                }
                Some(link) => {
                    link.leaves_ms = None;
                    let was_remote = std::mem::replace(&mut link.is_remote, false);
                    if link.urls() != urls {
                        link.set_urls(urls.to_vec());
                        self.event(Event::Updated { peer });
                    } else if was_remote {
                        self.event(Event::Added { peer });
                    }
                }
            }
        }
        self.dial_streams();
    }

    /// Who was a member at some time, also before this start: such a one is told so.
    pub fn set_removed(&mut self, ids: impl Iterator<Item = u64>) {
        self.removed.extend(ids);
    }

    /// Sends messages, each to the member it names; those to nobody known are dropped, as etcd
    /// does. Of a snapshot only its name goes here: the receiver asks for the rest.
    pub fn send(&mut self, messages: &mut Vec<Message>) {
        for message in messages.drain(..) {
            let to = message.to.unwrap_or(0);
            if self.link(to).is_none() {
                continue;
            }
            self.send_to(to, message);
        }
    }

    fn send_to(&mut self, peer: u64, message: Message) {
        let Some(link) = self.link(peer) else { return };
        let kind = message.r#type.unwrap_or(0);
        let is_append = kind == MessageType::MsgApp as i32;
        let stream = [StreamKind::Append, StreamKind::Message]
            .into_iter()
            .filter(|stream| *stream == StreamKind::Message || is_append)
            .find_map(|stream| Some((stream, link.writer(stream).conn?)));
        let Some((stream, conn)) = stream else {
            return self.post(peer, message);
        };
        if link.writer(stream).queue.push(message) {
            link.has_named_snapshot |= kind == MessageType::MsgSnap as i32;
            self.mark_dirty(conn);
        } else {
            self.drop_message(peer, kind, Channel::Stream(stream));
        }
    }

    fn drop_message(&mut self, peer: u64, message: i32, channel: Channel) {
        self.report_unreachable(peer);
        if message == MessageType::MsgSnap as i32 {
            self.reports.push(PeerReport::SnapshotSent { to: peer, ok: false });
        }
        let now_ms = self.now_ms;
        let Some(link) = self.link(peer) else { return };
        link.counters.sent_failures += 1;
        link.dropped += 1;
        if now_ms >= link.say_dropped_ms {
            link.say_dropped_ms = now_ms + SAY_DROPPED_MS;
            let (active, count) = (link.is_active, std::mem::take(&mut link.dropped));
            self.event(Event::Dropped { peer, message, channel, active, count });
        }
    }

    /// Asks a peer something; the answer comes as a report.
    pub fn request(&mut self, request: PeerRequest) {
        let (peer, token) = (request.to, request.token);
        let deadline_ms = self.now_ms + request.timeout_ms;
        let waiting = self.link(peer).map(|link| link.lane(request.lane).jobs.len());
        let refused = match waiting {
            None => RequestError::Unreachable,
            Some(waiting) if waiting >= limits::PEER_REQUESTS => RequestError::Overloaded,
            Some(_) => return self.queue_job(peer, Job::Request(Box::new(request)), deadline_ms),
        };
        self.reports.push(PeerReport::Answered { token, answer: Err(refused) });
    }

    /// The oldest message received and not taken.
    pub fn next_received(&mut self) -> Option<Message> {
        let message = self.received.pop_front()?;
        self.received_bytes -= weight(&message);
        Some(message)
    }

    /// The oldest question received and not taken.
    pub fn next_request(&mut self) -> Option<IncomingRequest> {
        self.incoming.pop_front()
    }

    /// Moves what the replica must know to `out`.
    pub fn take_reports(&mut self, out: &mut Vec<PeerReport>) {
        out.append(&mut self.reports);
    }

    /// What the shell must do next.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The next thing to log.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A connection that may have something to send, or to be closed.
    pub fn next_dirty(&mut self) -> Option<ConnId> {
        loop {
            let id = self.dirty.pop()?;
            if let Some(conn) = self.conn(id) {
                conn.dirty = false;
                return Some(id);
            }
        }
    }

    /// True if messages were received and not taken.
    pub fn has_received(&self) -> bool {
        !self.received.is_empty()
    }

    /// True if a turn would find something else to do.
    pub fn has_input(&self) -> bool {
        !self.reports.is_empty()
            || !self.incoming.is_empty()
            || !self.effects.is_empty()
            || !self.dirty.is_empty()
            || !self.events.is_empty()
    }

    /// True while too much waits to be taken: no connection is read then.
    pub fn is_congested(&self) -> bool {
        self.received.len() >= limits::PEER_RECEIVED_MESSAGES
            || self.received_bytes >= limits::PEER_RECEIVED_BYTES
    }

    /// Whether the shell should read from a connection.
    pub fn wants_read(&mut self, id: ConnId) -> bool {
        let is_congested = self.is_congested();
        match self.conn(id).map(|conn| &conn.role) {
            Some(Role::Server(server)) => !is_congested && server.http.wants_read(),
            _ => !is_congested,
        }
    }

    /// What went over the links, by peer.
    pub fn counters(&self) -> impl Iterator<Item = (u64, Counters)> {
        self.links.iter().map(|link| (link.id, link.counters))
    }

    /// Peers to which a link works.
    pub fn active(&self) -> impl Iterator<Item = u64> {
        self.links.iter().filter(|link| link.is_active).map(|link| link.id)
    }

    /// When [`Transport::tick`] is due.
    pub fn deadline_ms(&self) -> u64 {
        if self.links.is_empty() && self.open == 0 {
            return u64::MAX;
        }
        self.last_tick_ms.map_or(0, |last_ms| last_ms + TICK_MS)
    }

    /// Lets time pass: dials, probes, timeouts.
    pub fn tick(&mut self) {
        let now_ms = self.now_ms;
        let gap_ms = now_ms.saturating_sub(self.last_tick_ms.unwrap_or(now_ms));
        if self.last_tick_ms.is_some() && gap_ms < TICK_MS {
            return;
        }
        self.last_tick_ms = Some(now_ms);
        // What came while this process did not run is still to be read.
        let frozen_ms = if gap_ms >= FROZEN_MS { gap_ms } else { 0 };
        for slot in 0..self.conns.len() {
            let Some(conn) = &mut self.conns[slot].conn else { continue };
            conn.heard_ms += frozen_ms;
            conn.sending_ms = conn.sending_ms.map(|since_ms| since_ms + frozen_ms);
            let id = conn.id;
            if let Some(reason) = self.overdue(id) {
                self.end(id, reason);
            }
        }
        let is_over = |link: &&Link| link.leaves_ms.is_some_and(|at_ms| at_ms <= now_ms);
        let gone: Vec<u64> = self.links.iter().filter(is_over).map(|link| link.id).collect();
        gone.into_iter().for_each(|peer| self.remove(peer));
        self.expire_jobs();
        self.probe();
        self.dial_streams();
    }

    /// Why a connection has waited too long, if it has.
    fn overdue(&mut self, id: ConnId) -> Option<&'static str> {
        let (now_ms, dial_ms) = (self.now_ms, self.dial_timeout_ms);
        let (read_ms, write_ms) = (self.read_timeout_ms, self.write_timeout_ms);
        let conn = self.conn(id)?;
        let is_past = |since_ms: u64, limit_ms: u64| now_ms >= since_ms + limit_ms;
        if conn.sending_ms.is_some_and(|since_ms| is_past(since_ms, write_ms)) {
            return Some("i/o timeout");
        }
        match &mut conn.role {
            Role::Dial { .. } => is_past(conn.since_ms, dial_ms).then_some("dial timeout"),
            Role::Reader(_) => is_past(conn.heard_ms, read_ms).then_some("i/o timeout"),
            Role::Writer(writer) => {
                if !writer.beat && is_past(writer.sent_ms, BEAT_MS) {
                    writer.beat = true;
                    self.mark_dirty(id);
                }
                None
            }
            Role::Exchange(exchange) if exchange.job.is_some() => {
                (now_ms >= exchange.deadline_ms).then_some("i/o timeout")
            }
            Role::Exchange(_) => is_past(conn.since_ms, IDLE_MS).then_some("idle"),
            Role::Server(server) => {
                // One that waits for this member's answer is not late.
                let is_asked = server.request.as_ref().is_some_and(|request| request.is_asked);
                if server.ended_ms.is_some_and(|ended_ms| is_past(ended_ms, ENDED_MS)) {
                    return Some("EOF");
                }
                (!is_asked && is_past(conn.heard_ms, SERVER_IDLE_MS)).then_some("idle")
            }
        }
    }

    /// A connection was accepted on the peer port; `None` if there are too many.
    pub fn accepted(&mut self) -> Option<ConnId> {
        if self.servers >= limits::PEER_CONNECTIONS {
            // Strangers must not keep members out.
            let silent = self
                .conns
                .iter()
                .filter_map(|slot| slot.conn.as_deref())
                .filter(|conn| matches!(conn.role, Role::Server(_)))
                .min_by_key(|conn| (conn.heard_ms, conn.id))?;
            self.end(silent.id, "too many connections");
        }
        self.servers += 1;
        let http = http1::Server::new(limits::PEER_MESSAGE_BYTES_MAX);
        Some(self.add(Role::Server(Server { http, request: None, ended_ms: None })))
    }

    /// How a [`Effect::Connect`] went.
    pub fn connected(&mut self, id: ConnId, outcome: Result<(), String>) {
        if let Err(error) = outcome {
            return self.end(id, &error);
        }
        let now_ms = self.now_ms;
        let Some(conn) = self.conn(id) else { return };
        let Role::Dial { peer, purpose } = conn.role else { return };
        conn.since_ms = now_ms;
        conn.heard_ms = now_ms;
        match purpose {
            Purpose::Stream(kind) => {
                let client = self.stream_request(peer, kind);
                let state = ReaderState::Asked;
                if let Some(conn) = self.conn(id) {
                    conn.role = Role::Reader(Reader { peer, kind, client, state });
                }
                self.mark_dirty(id);
            }
            Purpose::Exchange(lane) => {
                conn.role = Role::Exchange(Exchange {
                    peer,
                    lane,
                    is_listed: false,
                    client: http1::Client::new(),
                    job: None,
                    status: 0,
                    body: Vec::new(),
                    done: 0,
                    deadline_ms: 0,
                    is_sent: false,
                });
                self.dial_ended(peer, lane);
                self.list_idle(id);
                self.start_jobs(peer, lane);
            }
        }
    }

    /// Bytes arrived.
    pub fn received(&mut self, id: ConnId, bytes: &[u8]) {
        let now_ms = self.now_ms;
        let Some(mut conn) = self.take(id) else { return };
        conn.heard_ms = now_ms;
        let outcome = match &mut conn.role {
            Role::Dial { .. } => Ok(()),
            Role::Reader(reader) => self.read_stream(reader, bytes),
            Role::Writer(_) => Err("unexpected bytes from a stream's reader".to_owned()),
            Role::Exchange(exchange) => self.read_answer(exchange, bytes),
            Role::Server(server) => {
                server.http.receive(bytes);
                Ok(())
            }
        };
        self.put_back(conn, outcome);
        self.serve(id);
    }

    /// The other side has ended (`None`) or the connection failed.
    pub fn closed(&mut self, id: ConnId, error: Option<String>) {
        let Some(mut conn) = self.take(id) else { return };
        let outcome = match (&mut conn.role, error) {
            (_, Some(error)) => Err(error),
            (Role::Server(server), None) => {
                // It may still read what it is owed.
                server.http.receive_end();
                server.ended_ms.get_or_insert(self.now_ms);
                Ok(())
            }
            (Role::Reader(reader), None) => Err(self.stream_ended(reader)),
            (Role::Exchange(exchange), None) => Err(self.answer_ended(exchange)),
            (_, None) => Err("EOF".to_owned()),
        };
        self.put_back(conn, outcome);
        self.serve(id);
    }

    /// Appends what is to be sent now, if anything; the shell sends it and says so by
    /// [`Transport::sent`] before it asks again.
    pub fn transmit(&mut self, id: ConnId, out: &mut Vec<u8>) {
        let now_ms = self.now_ms;
        let Some(mut conn) = self.take(id) else { return };
        let before = out.len();
        let mut is_over = false;
        match &mut conn.role {
            Role::Dial { .. } => {}
            Role::Reader(reader) => {
                reader.client.poll_transmit(out, limits::PEER_SEND_BYTES);
            }
            Role::Writer(writer) => self.write_stream(writer, out),
            Role::Exchange(exchange) => self.write_request(exchange, out),
            Role::Server(server) => {
                server.http.poll_transmit(out, limits::PEER_SEND_BYTES);
                is_over = out.len() == before && server.http.is_done();
            }
        }
        if out.len() > before {
            conn.sending_ms = Some(now_ms);
        }
        self.put_back(conn, if is_over { Err("done".to_owned()) } else { Ok(()) });
    }

    /// What [`Transport::transmit`] gave has left.
    pub fn sent(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id) {
            conn.sending_ms = None;
            self.mark_dirty(id);
            // A request that came behind the one which was answered.
            self.serve(id);
        }
    }

    fn link(&mut self, peer: u64) -> Option<&mut Link> {
        let at = self.links.binary_search_by_key(&peer, |link| link.id).ok()?;
        self.links.get_mut(at)
    }

    fn insert(&mut self, peer: u64, urls: Vec<String>, is_remote: bool) {
        if let Err(at) = self.links.binary_search_by_key(&peer, |link| link.id) {
            let first_probe_ms = self.now_ms + PROBE_MS;
            assert_ne!(peer, self.local.member_id, "a member has no link to itself");
            self.links.insert(at, Link::new(peer, urls, is_remote, first_probe_ms));
            debug_assert!(self.links.is_sorted_by(|a, b| a.id < b.id), "links ascend by id");
        }
    }

    /// Ends everything that leads to a member.
    fn remove(&mut self, peer: u64) {
        let Ok(at) = self.links.binary_search_by_key(&peer, |link| link.id) else { return };
        let link = self.links.remove(at);
        let streams = StreamKind::ALL.into_iter().flat_map(|kind| {
            [link.readers[kind.slot()].conn, link.writers[kind.slot()].conn].into_iter().flatten()
        });
        let conns = link.lanes.iter().flat_map(|lane| lane.conns.iter().copied());
        for id in streams.chain(conns).collect::<Vec<_>>() {
            self.end(id, "the member was removed");
        }
        for queued in link.lanes.into_iter().flat_map(|lane| lane.jobs) {
            self.fail_job(peer, queued.job, RequestError::Unreachable, "the member was removed");
        }
        self.event(Event::Removed { peer });
    }

    fn report_unreachable(&mut self, peer: u64) {
        let report = PeerReport::Unreachable(peer);
        if !self.reports.contains(&report) {
            self.reports.push(report);
        }
    }

    /// A stream was lost, and with it perhaps the name of a snapshot: without it the receiver does
    /// nothing, and raft would wait for ever. Raft ignores this if the snapshot has arrived.
    fn report_lost_snapshot(&mut self, peer: u64) {
        if self.link(peer).is_some_and(|link| std::mem::take(&mut link.has_named_snapshot)) {
            self.reports.push(PeerReport::SnapshotSent { to: peer, ok: false });
        }
    }

    fn activate(&mut self, peer: u64) {
        let now_ms = self.now_ms;
        let Some(link) = self.link(peer) else { return };
        link.seen_alive(now_ms);
        if !link.is_active {
            link.is_active = true;
            self.event(Event::Active { peer });
            self.reports.push(PeerReport::Active(peer));
        }
    }

    fn deactivate(&mut self, peer: u64, error: String) {
        let Some(link) = self.link(peer) else { return };
        if link.is_active {
            link.is_active = false;
            link.counters.disconnects += 1;
            self.event(Event::Inactive { peer, error });
            self.reports.push(PeerReport::Inactive(peer));
        }
    }

    fn event(&mut self, event: Event) {
        if self.events.len() < limits::PEER_EVENTS {
            self.events.push_back(event);
        }
    }

    fn add(&mut self, role: Role) -> ConnId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.conns.push(Slot::default());
            u32::try_from(self.conns.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.conns[slot as usize];
        let id = ConnId { slot, generation: place.generation };
        place.conn = Some(Box::new(Conn::new(id, role, self.now_ms)));
        self.open += 1;
        id
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(id.slot as usize)?.conn.as_deref_mut()?;
        (conn.id == id).then_some(conn)
    }

    /// Takes a connection out of the table while it is worked on.
    fn take(&mut self, id: ConnId) -> Option<Box<Conn>> {
        self.conn(id)?;
        self.conns[id.slot as usize].conn.take()
    }

    /// Puts it back, or ends it for a reason. A connection that has become idle gets the next
    /// job.
    fn put_back(&mut self, conn: Box<Conn>, outcome: Result<(), String>) {
        let id = conn.id;
        let lane = match &conn.role {
            Role::Exchange(exchange) if exchange.job.is_none() => {
                Some((exchange.peer, exchange.lane))
            }
            _ => None,
        };
        self.keep(conn);
        if let Err(reason) = outcome {
            self.end(id, &reason);
        }
        if let Some((peer, lane)) = lane {
            self.list_idle(id);
            self.start_jobs(peer, lane);
        }
    }

    fn mark_dirty(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id)
            && !conn.dirty
        {
            conn.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Ends a connection and draws the consequences.
    fn end(&mut self, id: ConnId, reason: &str) {
        let Some(conn) = self.take(id) else { return };
        let place = &mut self.conns[id.slot as usize];
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.slot);
        self.open -= 1;
        self.effects.push_back(Effect::Close(id));
        match conn.role {
            Role::Dial { peer, purpose: Purpose::Stream(kind) } => {
                self.stream_failed(peer, kind, reason);
            }
            Role::Dial { peer, purpose: Purpose::Exchange(lane) } => {
                self.dial_ended(peer, lane);
                self.exchange_gone(peer, lane, id);
                self.fail_jobs(peer, lane, reason);
            }
            Role::Reader(reader) => {
                self.reader_ended(&reader, reason);
                // Not with the next tick: a dead process is to be found out at once.
                self.dial_streams();
            }
            Role::Writer(writer) => {
                self.servers -= 1;
                self.writer_ended(id, &writer, reason);
            }
            Role::Exchange(exchange) => {
                let (peer, lane) = (exchange.peer, exchange.lane);
                self.exchange_ended(id, exchange, reason);
                self.start_jobs(peer, lane);
            }
            Role::Server(_) => self.servers -= 1,
        }
    }

    /// Begins to connect to a peer.
    fn dial(&mut self, peer: u64, purpose: Purpose) -> Option<ConnId> {
        let url = self.link(peer)?.url()?.to_owned();
        let conn = self.add(Role::Dial { peer, purpose });
        self.effects.push_back(Effect::Connect { conn, url });
        Some(conn)
    }
}

/// The `host` field for a URL.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().filter(|host| !host.is_empty()).unwrap_or("localhost")
}
