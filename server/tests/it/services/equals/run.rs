//! Carries out a program on two servers, step by step, and compares all that each says.
//!
//! Called by the test and by its shrinking. A server that dies of a request shows as a difference,
//! unless it is etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcore_proto::decode::{Deep, decode, with_decoded};
use etcore_proto::pb::etcdserverpb as pb;
use flate2::Compression;
use flate2::read::GzEncoder;
use pb::watch_request::RequestUnion;
use prost::Message as _;

use super::alter::{Alter, Kind as AlterKind};
use super::answer::{
    ALARM, Answer, COMPACT, DELETE, GRANT, HASH_KV, KEEP_ALIVE, MOVE_LEADER, Message, PUT, RANGE,
    RANGE_STREAM, REVOKE, TIME_TO_LIVE, TXN, WATCH,
};
use super::draw::{Asked, Call, Dress, Envelope, Step, WatchAct, Who, head, is_malformed};
use super::generate::REQUEST_BYTES_MAX;
use super::peer::{Cut, End, Head, Log, Peer};
use super::program::{Known, Op, may_write_twice};
use super::server::{Kind, Server};
use super::versions::Differences;

/// Longest wait for an answer.
const WAIT: Duration = Duration::from_secs(20);
/// etcd looks every tenth of a second for watches that have to catch up.
const CATCH_UP: Duration = Duration::from_millis(100);
/// What takes longer is told.
const SLOW: Duration = Duration::from_secs(3);
/// Longest wait for what watches bring.
const SETTLE: Duration = Duration::from_secs(8);
/// Leases that end sooner are ended at once, by order.
const TTL_MIN: i64 = 50_000;
/// The key that every watch stream watches, and ids of watches that wait for something.
const BARRIER_KEY: &[u8] = b"m~";
const BARRIER_ID: i64 = 2_000_000;
const MARK_ID: i64 = 1_000_000;
/// The code of a reset.
const PROTOCOL_ERROR: u32 = 1;

/// What a server said to one step, in a form that can be compared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Said {
    heads: Vec<Vec<String>>,
    answer: Answer,
    end: End,
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for head in &self.heads {
            writeln!(f, "{head:?}")?;
        }
        write!(f, "{}\nended with {:?}", self.answer, self.end)
    }
}

/// Where two servers disagree.
#[derive(Debug)]
pub(crate) struct Difference {
    /// The step's number.
    pub(crate) at: usize,
    /// The request as it was sent.
    pub(crate) asked: String,
    pub(crate) said: [String; 2],
}

/// What became of a program.
pub(crate) enum Outcome {
    Equal,
    /// etcd died of a step.
    EtcdDied(usize),
    Different(Box<Difference>),
}

struct Side {
    server: Server,
    peer: Peer,
}

impl Side {
    /// A process that closes its sockets may be about to end.
    fn has_ended(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_millis(500);
        while self.peer.is_over() && !self.server.has_ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.server.has_ended()
    }
}

/// Two servers that have been asked the same.
pub(crate) struct Pair {
    sides: [Side; 2],
    known: Known,
    differences: Differences,
    twice: BTreeSet<i64>,
    /// Leases of others are left out of answers.
    hides_leases: std::ops::Range<i64>,
    /// Calls that were made.
    pub(crate) calls: u64,
}

type Outcomes = Result<(), (String, [String; 2])>;

impl Pair {
    /// The first one is etcd.
    pub(crate) fn start(kinds: &[Kind; 2], hides_leases: std::ops::Range<i64>) -> Self {
        let start = |kind: &Kind| {
            let server = Server::start(kind);
            let peer = Peer::connect(server.port, WAIT);
            Side { server, peer }
        };
        let sides = std::thread::scope(|scope| {
            let first = scope.spawn(|| start(&kinds[0]));
            let second = start(&kinds[1]);
            [first.join().expect("the first server"), second]
        });
        let differences = Differences::between(&sides[0].server.version);
        Self {
            sides,
            known: Known { current: 1, ..Known::default() },
            differences,
            twice: BTreeSet::new(),
            hides_leases,
            calls: 0,
        }
    }

    /// The port of the second one.
    pub(crate) fn port(&self) -> u16 {
        self.sides[1].server.port
    }

    pub(crate) fn run(&mut self, steps: &[Step]) -> Outcome {
        for (at, step) in steps.iter().enumerate() {
            let begun = Instant::now();
            let outcome = self.step(step);
            if begun.elapsed() > SLOW {
                eprintln!("step {at} took {:?}: {step:?}", begun.elapsed());
            }
            let outcome = outcome.and_then(|()| {
                for side in &mut self.sides {
                    if side.peer.is_over() {
                        if side.has_ended() {
                            let text = format!("{} has ended", side.server.name);
                            return Err((format!("{step:?}"), [text.clone(), text]));
                        }
                        side.peer = Peer::connect(side.server.port, WAIT);
                    }
                }
                Ok(())
            });
            if let Err((asked, said)) = outcome {
                if self.sides[0].has_ended() {
                    return Outcome::EtcdDied(at);
                }
                return Outcome::Different(Box::new(Difference { at, asked, said }));
            }
        }
        Outcome::Equal
    }

    fn step(&mut self, step: &Step) -> Outcomes {
        match step {
            Step::Call(call) => self.call(call),
            Step::KeepAlive(dress, renewals) => self.keep_alive(dress, renewals),
            Step::Watch(dress, acts) => self.watch(dress, acts),
        }
    }

    fn call(&mut self, call: &Call) -> Outcomes {
        if matches!(&call.asked, Asked::Op(op) if self.differences.skips(op)) {
            return Ok(());
        }
        let own = [0, 1].map(|side: usize| self.sides[side].server.identity.member);
        let [Some((path, first)), Some((_, second))] =
            own.map(|own| message_of(call, &self.known, own))
        else {
            return Ok(());
        };
        let messages = [first, second];
        // Members have ids of their own; altered, they would be asked different things.
        if messages[0] != messages[1] && !call.alters.is_empty() {
            return Ok(());
        }
        let seen = match call.dress.envelope {
            Envelope::Shorter(less) => messages[0].len().saturating_sub(less as usize),
            _ => messages[0].len(),
        };
        let effective = effective(path, &messages[0][..seen]);
        if self.is_left_out(&effective, !call.alters.is_empty()) || is_at_limit(&effective, seen) {
            return Ok(());
        }
        let mut call = call.clone();
        if path == RANGE_STREAM {
            // etcd waits for the end of such a request, and has other words for one that is cut.
            call.dress.cut.never_ends = false;
            if !matches!(call.dress.envelope, Envelope::Gzip | Envelope::BrokenGzip(_)) {
                call.dress.envelope = Envelope::Plain;
            }
        }
        let head = head(path, &call.dress.edits);
        // The path may be another one, and what is asked too.
        let path = head
            .iter()
            .find(|(name, _)| name == ":path")
            .map_or("", |(_, value)| if value == path.as_bytes() { path } else { "" });
        let bodies = messages.each_ref().map(|message| envelope(call.dress.envelope, message));
        if is_malformed(&head) {
            return self.malformed(&head, &bodies[1], &call.dress.cut);
        }
        let [first, second] = [0, 1].map(|side| {
            let peer = &mut self.sides[side].peer;
            let ends = bodies[side].is_empty();
            let stream = peer.open(&head, &call.dress.cut, ends);
            if !ends || call.dress.cut.ends_apart {
                peer.send(stream, &bodies[side], &call.dress.cut, true);
            }
            stream
        });
        self.calls += 1;
        let logs =
            [self.sides[0].peer.finish(first, WAIT), self.sides[1].peer.finish(second, WAIT)];
        let mut said = self.said(path, logs);
        self.learn(&effective, &mut said)?;
        let [first, second] = &mut said;
        self.differences.forgive(&effective, &mut first.answer, &mut second.answer);
        sort_leases(first);
        sort_leases(second);
        if call.dress.is_late && [&*first, &*second].iter().any(|said| was_late(said)) {
            return Ok(());
        }
        if first == second {
            return Ok(());
        }
        let asked = format!(
            "{:?}\n{:?}\n{:?}\nbody: {}",
            effective_text(&effective),
            call.alters,
            call.dress,
            hex(&bodies[0])
        );
        let head: Vec<_> =
            head.iter().map(|(name, value)| format!("{name}: {}", value.escape_ascii())).collect();
        Err((format!("{head:?}\n{asked}"), said.map(|said| said.to_string())))
    }

    /// Only etcore is asked: the stream is reset, and the connection lives on.
    fn malformed(&mut self, head: &Head, body: &[u8], cut: &Cut) -> Outcomes {
        let peer = &mut self.sides[1].peer;
        let stream = peer.open(head, cut, body.is_empty());
        peer.send(stream, body, cut, true);
        let log = peer.finish(stream, WAIT);
        if log.end() == End::Reset(PROTOCOL_ERROR) && log.heads.is_empty() && !peer.is_over() {
            return Ok(());
        }
        let expected = format!("not asked: a malformed head, {:?}", End::Reset(PROTOCOL_ERROR));
        Err((told(head).join("\n"), [expected, self.said_by(1, "", log).to_string()]))
    }

    /// True for what etcd is known to answer wrongly, or would die of; see the differential test.
    fn is_left_out(&self, op: &Op, is_altered: bool) -> bool {
        match op {
            Op::Compact(pb::CompactionRequest { revision, .. }) | Op::HashKv(revision) => {
                let revision = if *revision == 0 { self.known.current } else { *revision };
                self.twice.contains(&revision)
            }
            // Nobody would end an alarm of a member that was made up.
            Op::Raw(ALARM, message) if is_altered => {
                let request = decode::<pb::AlarmRequest>(Bytes::copy_from_slice(message));
                request.is_ok_and(|request| !matches!(request.action, 0 | 2))
            }
            op => self.differences.skips(op),
        }
    }

    /// What later steps are relative to; leases that would end by themselves end now.
    fn learn(&mut self, op: &Op, said: &mut [Said; 2]) -> Outcomes {
        if let Some(revision) = said[0].answer.revision() {
            self.known.current = self.known.current.max(revision);
        }
        if said.iter().any(|said| !said.answer.is_ok()) {
            return Ok(());
        }
        match op {
            Op::Txn(request) if may_write_twice(request) => {
                self.twice.insert(self.known.current);
            }
            Op::Compact(request) => self.known.compacted = request.revision,
            Op::Grant(_, request) => {
                let ids: Vec<i64> = said.iter_mut().filter_map(granted).map(|id| *id).collect();
                if ids.len() != 2 {
                    return Ok(());
                }
                if request.id == 0 {
                    said.iter_mut().filter_map(granted).for_each(|id| *id = i64::from(*id > 0));
                } else if let Ok(slot) = u32::try_from(request.id.wrapping_sub(1_000_000)) {
                    self.known.leases.push((slot, request.id));
                }
                if request.id == 0 || request.ttl < TTL_MIN {
                    for (side, id) in ids.into_iter().enumerate() {
                        let message = pb::LeaseRevokeRequest { id }.encode_to_vec();
                        self.plain(side, REVOKE, &message);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A call without anything odd.
    fn plain(&mut self, side: usize, path: &str, message: &[u8]) -> Log {
        let side = &mut self.sides[side];
        if side.peer.is_over() && !side.has_ended() {
            side.peer = Peer::connect(side.server.port, WAIT);
        }
        let dress = Dress::plain();
        let stream = side.peer.open(&head(path, &[]), &dress.cut, false);
        side.peer.send(stream, &envelope(Envelope::Plain, message), &dress.cut, true);
        side.peer.finish(stream, WAIT)
    }

    fn said(&self, path: &str, logs: [Log; 2]) -> [Said; 2] {
        let mut side = 0;
        logs.map(|log| {
            let said = self.said_by(side, path, log);
            side += 1;
            said
        })
    }

    fn said_by(&self, side: usize, path: &str, mut log: Log) -> Said {
        let identity = &self.sides[side].server.identity;
        let mut messages: Vec<Message> = log
            .take_messages()
            .iter()
            .map(|bytes| {
                let mut message = Message::decode(path, bytes);
                identity.normalise(&mut message, &self.known, true);
                if let Message::Status(response) = &mut message {
                    // Go chooses how many spaces stand there when it is built.
                    let own = format!("memberID:{}", identity.member);
                    for text in &mut response.errors {
                        *text = text.replace("  ", " ").replace(&own, "memberID:own");
                    }
                    response.errors.sort();
                }
                if let Message::Alarm(response) = &mut message {
                    // They come from a map.
                    response.alarms.sort_by_key(|alarm| (alarm.alarm, alarm.member_id));
                }
                if let Message::Leases(response) = &mut message {
                    response.leases.retain(|lease| !self.hides_leases.contains(&lease.id));
                }
                message
            })
            .collect();
        if log.left() > 0 {
            messages.push(Message::Malformed(format!("{} bytes left", log.left()).into_bytes()));
        }
        let field = |name: &str| {
            let found = log.heads.iter().rev().find_map(|head| super::peer::value(head, name));
            found.map(|value| String::from_utf8_lossy(value).into_owned())
        };
        let code = field("grpc-status").and_then(|code| code.parse().ok()).unwrap_or(-1);
        // Go chooses between two kinds of spaces when it is built.
        let mut text = field("grpc-message").unwrap_or_default().replace("%C2%A0", " ");
        // A request that names the member which is asked is as long as its ID.
        const TOO_LARGE: &str = "grpc: received message larger than max (";
        if let Some((length, rest)) =
            text.strip_prefix(TOO_LARGE).and_then(|told| told.split_once(" vs. "))
            && let Ok(length) = length.parse::<u64>()
        {
            text = format!("{TOO_LARGE}about {} vs. {rest}", length / 16);
        }
        // What it notices first, and where.
        if let Some(at) = text.find(": failed to read decompressed data: ") {
            text.truncate(at);
        }
        let answer = Answer { messages, code, text };
        Said { heads: log.heads.iter().map(told).collect(), answer, end: log.end() }
    }

    fn keep_alive(&mut self, dress: &Dress, renewals: &[(i64, Vec<Alter>)]) -> Outcomes {
        let body = keep_alive_body(dress, renewals, &self.known);
        let head = head(KEEP_ALIVE, &dress.edits);
        if is_malformed(&head) {
            return self.malformed(&head, &body, &dress.cut);
        }
        let streams = [0, 1].map(|side| {
            let peer = &mut self.sides[side].peer;
            let stream = peer.open(&head, &dress.cut, false);
            peer.send(stream, &body, &dress.cut, true);
            stream
        });
        self.calls += 1;
        let logs = [
            self.sides[0].peer.finish(streams[0], WAIT),
            self.sides[1].peer.finish(streams[1], WAIT),
        ];
        let said = self.said(KEEP_ALIVE, logs);
        if said[0] == said[1] {
            return Ok(());
        }
        let asked = format!("{head:?}\n{renewals:?}\n{dress:?}\nbody: {}", hex(&body));
        Err((asked, said.map(|said| said.to_string())))
    }

    fn watch(&mut self, dress: &Dress, acts: &[WatchAct]) -> Outcomes {
        // Puts are needed.
        for alarm in [pb::AlarmType::Nospace, pb::AlarmType::Corrupt] {
            for side in [0, 1] {
                for member_id in [0, 77, self.sides[side].server.identity.member] {
                    let action = pb::alarm_request::AlarmAction::Deactivate as i32;
                    let request = pb::AlarmRequest { action, member_id, alarm: alarm as i32 };
                    self.plain(side, ALARM, &request.encode_to_vec());
                }
            }
        }
        let head = head(WATCH, &dress.edits);
        if is_malformed(&head) {
            return self.malformed(&head, &[], &dress.cut);
        }
        let streams = [0, 1].map(|side| self.sides[side].peer.open(&head, &dress.cut, false));
        self.calls += 1;
        let mut script = vec![format!("{head:?} {dress:?}")];
        let mut marks = 0;
        let (mut is_past, mut is_future) = (false, false);
        let barrier = |id: i64, filters: Vec<i32>| pb::WatchCreateRequest {
            key: BARRIER_KEY.into(),
            watch_id: id,
            filters,
            ..Default::default()
        };
        let mut send = |pair: &mut Self, bytes: &[u8], script: &mut Vec<String>| {
            marks += 1;
            script.push(format!("asked {}", hex(bytes)));
            let mut body = envelope(dress.envelope, bytes);
            let mark = RequestUnion::CreateRequest(barrier(MARK_ID + marks, vec![0]));
            let mark = pb::WatchRequest { request_union: Some(mark) }.encode_to_vec();
            body.extend(envelope(dress.envelope, &mark));
            for (side, stream) in pair.sides.iter_mut().zip(streams) {
                side.peer.send(stream, &body, &dress.cut, false);
            }
            pair.until_watched(streams, |response| {
                response.created && response.watch_id == MARK_ID + marks
            })
        };
        let first = RequestUnion::CreateRequest(barrier(BARRIER_ID, Vec::new()));
        let first = pb::WatchRequest { request_union: Some(first) }.encode_to_vec();
        let mut logs: [Vec<pb::WatchResponse>; 2] = Default::default();
        let mut goes_on = send(self, &first, &mut script);
        for act in acts {
            if !goes_on.iter().all(|log| log.1) {
                break;
            }
            for (log, (new, _)) in logs.iter_mut().zip(std::mem::take(&mut goes_on)) {
                log.extend(new);
            }
            match act {
                // Whether it has caught up before is the server's affair.
                WatchAct::Ask(Some(RequestUnion::CancelRequest(_)), _) if is_past => {
                    goes_on = [(Vec::new(), true), (Vec::new(), true)];
                }
                WatchAct::Ask(union, alters) => {
                    let request = self.resolve_watch(union);
                    let mut bytes = request.encode_to_vec();
                    alters.iter().for_each(|alter| alter.carry_out(&mut bytes));
                    if let Ok(pb::WatchRequest {
                        request_union: Some(RequestUnion::CreateRequest(request)),
                    }) = decode::<pb::WatchRequest>(Bytes::from(bytes.clone()))
                    {
                        let start = request.start_revision;
                        is_past |= start > 0 && start <= self.known.current;
                        is_future |= start > self.known.current;
                    }
                    goes_on = send(self, &bytes, &mut script);
                }
                WatchAct::Do(op) => {
                    script.push(format!("{:?}", effective_text(op)));
                    let asked = Asked::Op(op.clone());
                    let dress = Dress::plain();
                    self.call(&Call { asked, alters: Vec::new(), dress })?;
                    goes_on = [(Vec::new(), true), (Vec::new(), true)];
                }
            }
        }
        let ended = goes_on.each_ref().map(|(_, goes_on)| !goes_on);
        for (log, (new, _)) in logs.iter_mut().zip(goes_on) {
            log.extend(new);
        }
        if ended == [false, false] {
            // All that happened before the second put is told when the second one is.
            for _ in 0..2 {
                let put = pb::PutRequest { key: BARRIER_KEY.into(), ..Default::default() };
                let (asked, dress) = (Asked::Op(Op::Put(put)), Dress::plain());
                self.call(&Call { asked, alters: Vec::new(), dress })?;
            }
            let revision = self.known.current;
            let last = self.until_watched(streams, |response| {
                response.watch_id == BARRIER_ID
                    && response.events.iter().any(|event| {
                        event.kv.as_ref().is_some_and(|kv| kv.mod_revision == revision)
                    })
            });
            for (log, (new, _)) in logs.iter_mut().zip(last) {
                log.extend(new);
            }
        }
        let has_ended = ended != [false; 2];
        let deadline = Instant::now() + SETTLE;
        let said = loop {
            let said = [0, 1].map(|side: usize| {
                let events = self.watched(side, &logs[side], has_ended, (is_past, is_future));
                let rest = self.sides[side].peer.log(streams[side]).clone();
                format!("{events}\n{}", self.said_by(side, WATCH, rest))
            });
            if said[0] == said[1] || Instant::now() > deadline {
                break said;
            }
            // Some of it may be on its way.
            for (side, log) in logs.iter_mut().enumerate() {
                let peer = &mut self.sides[side].peer;
                let before = peer.log(streams[side]).left();
                peer.wait(streams[side], CATCH_UP, |log| log.left() > before);
                let more = peer.log(streams[side]).take_messages();
                log.extend(
                    more.into_iter().map(|one| pb::WatchResponse::decode(one).unwrap_or_default()),
                );
            }
        };
        for (side, stream) in self.sides.iter_mut().zip(streams) {
            side.peer.cancel(stream);
        }
        if said[0] == said[1] {
            return Ok(());
        }
        Err((script.join("\n"), said))
    }

    fn resolve_watch(&self, union: &Option<RequestUnion>) -> pb::WatchRequest {
        let request_union = match union {
            Some(RequestUnion::CreateRequest(request)) => {
                let op = self.known.resolve(&Op::Watch(0, request.clone()));
                let Op::Watch(_, request) = op else { unreachable!("it stays what it is") };
                Some(RequestUnion::CreateRequest(request))
            }
            other => other.clone(),
        };
        pb::WatchRequest { request_union }
    }

    /// What comes on both streams until each has brought something; false where it has not.
    fn until_watched(
        &mut self,
        streams: [u32; 2],
        done: impl Fn(&pb::WatchResponse) -> bool,
    ) -> [(Vec<pb::WatchResponse>, bool); 2] {
        let mut side = 0;
        streams.map(|stream| {
            let peer = &mut self.sides[side].peer;
            side += 1;
            let mut seen = Vec::new();
            loop {
                for bytes in peer.log(stream).take_messages() {
                    seen.push(pb::WatchResponse::decode(bytes).unwrap_or_default());
                }
                if seen.iter().any(&done) {
                    return (seen, true);
                }
                let is_over = peer.log(stream).end() != End::Open;
                let before = peer.log(stream).left();
                if is_over || !peer.wait(stream, WAIT, |log| log.left() > before) {
                    return (seen, false);
                }
            }
        })
    }

    /// What was told, watch by watch. After an error only what was said about watches themselves
    /// counts: what happened may have been told or not.
    fn watched(
        &self,
        side: usize,
        log: &[pb::WatchResponse],
        has_ended: bool,
        (is_past, is_future): (bool, bool),
    ) -> String {
        let identity = &self.sides[side].server.identity;
        let mut by_watch: BTreeMap<i64, Vec<Message>> = BTreeMap::new();
        for response in log {
            let is_progress = response.watch_id == -1 && !response.created && !response.canceled;
            let is_control =
                response.created || response.canceled && response.compact_revision == 0;
            if (has_ended && !is_control) || (is_progress && (is_past || is_future)) {
                continue;
            }
            let mut response = response.clone();
            if is_past && !is_control {
                // What a watch that catches up gets at once, and how much later, is the server's
                // affair.
                response.header = None;
            }
            let mut message = Message::Watch(response.clone());
            identity.normalise(&mut message, &self.known, true);
            by_watch.entry(response.watch_id).or_default().push(message);
        }
        self.differences.forgive_watches(&mut by_watch);
        let mut text = String::new();
        for (id, messages) in by_watch {
            let answer = Answer { messages, code: 0, text: String::new() };
            text.push_str(&format!("watch {id}:\n{answer}\n"));
        }
        text
    }
}

/// The method of a call, and its message to a member with an id of its own.
pub(crate) fn message_of(
    call: &Call,
    known: &Known,
    own_id: u64,
) -> Option<(&'static str, Vec<u8>)> {
    let id = |who: Who| match who {
        Who::Nobody => 0,
        Who::Asked => own_id,
        Who::Another => 77,
    };
    let (path, mut bytes) = match &call.asked {
        Asked::Op(op) => (op.path()?, known.resolve(op).encode()),
        Asked::Alarm { action, alarm, who } => {
            let request = pb::AlarmRequest { action: *action, member_id: id(*who), alarm: *alarm };
            (ALARM, request.encode_to_vec())
        }
        Asked::MoveLeader(who) => {
            (MOVE_LEADER, pb::MoveLeaderRequest { target_id: id(*who) }.encode_to_vec())
        }
        Asked::Path(path, message) => (*path, message.to_vec()),
    };
    call.alters.iter().for_each(|alter| alter.carry_out(&mut bytes));
    Some((path, bytes))
}

/// Fields of a head for comparison. The text is told apart, and no two servers need send fields in
/// one order.
fn told(head: &Head) -> Vec<String> {
    let mut lines: Vec<String> = head
        .iter()
        .filter(|(name, _)| name != "grpc-message")
        .map(|(name, value)| format!("{name}: {}", value.escape_ascii()))
        .collect();
    lines.sort();
    lines
}

fn was_late(said: &Said) -> bool {
    said.answer.code == 4 || said.end == End::Reset(8)
}

fn granted(said: &mut Said) -> Option<&mut i64> {
    match said.answer.messages.first_mut() {
        Some(Message::Grant(response)) => Some(&mut response.id),
        _ => None,
    }
}

/// What is left of each lease decides the order, to the millisecond.
fn sort_leases(said: &mut Said) {
    if let Some(Message::Leases(response)) = said.answer.messages.first_mut() {
        response.leases.sort_by_key(|lease| lease.id);
    }
}

/// All messages of a renewal stream.
pub(crate) fn keep_alive_body(
    dress: &Dress,
    renewals: &[(i64, Vec<Alter>)],
    known: &Known,
) -> Vec<u8> {
    let mut body = Vec::new();
    for (id, alters) in renewals {
        let op = known.resolve(&Op::KeepAlive(pb::LeaseKeepAliveRequest { id: *id }));
        let mut bytes = op.encode();
        alters.iter().for_each(|alter| alter.carry_out(&mut bytes));
        body.extend(envelope(dress.envelope, &bytes));
    }
    body
}

/// The message in a stream.
pub(crate) fn envelope(envelope: Envelope, message: &[u8]) -> Vec<u8> {
    let prefix = |flag: u8, length: u32, message: &[u8]| {
        [&[flag][..], &length.to_be_bytes(), message].concat()
    };
    let length = u32::try_from(message.len()).expect("a message");
    match envelope {
        Envelope::Plain => prefix(0, length, message),
        Envelope::Gzip => {
            let packed = gzip(message);
            prefix(1, u32::try_from(packed.len()).expect("a message"), &packed)
        }
        Envelope::BrokenGzip(seed) => {
            let mut packed = gzip(message);
            if seed % 4 == 0 {
                packed.extend(gzip(b"\x0a\x01z"));
            } else {
                Alter { kind: AlterKind::Flip, seed }.carry_out(&mut packed);
            }
            prefix(1, u32::try_from(packed.len()).expect("a message"), &packed)
        }
        Envelope::FalseFlag(flag) => prefix(flag, length, message),
        Envelope::Longer(more) => prefix(0, length.saturating_add(more), message),
        Envelope::Shorter(less) => prefix(0, length.saturating_sub(less), message),
        Envelope::Nothing => Vec::new(),
        Envelope::Prefix(bytes) => prefix(0, length, message)[..bytes].to_vec(),
        Envelope::Twice => prefix(0, length, message).repeat(2),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let read = GzEncoder::new(bytes, Compression::fast()).read_to_end(&mut packed);
    assert!(read.is_ok(), "reading from memory has no error to report");
    packed
}

fn hex(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(400)];
    let mut text: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    if shown.len() < bytes.len() {
        text.push_str(&format!("… of {} bytes", bytes.len()));
    }
    text
}

/// True for a request that is too large only as it was sent: etcd measures what it makes of it, and
/// of a field that comes twice that is half.
fn is_at_limit(op: &Op, bytes: usize) -> bool {
    // What a log entry has besides.
    const ENTRY: usize = 4 + 13;
    let made_bytes = op.encode().len();
    bytes + ENTRY + 32 > REQUEST_BYTES_MAX && made_bytes + ENTRY < REQUEST_BYTES_MAX + 8
}

fn effective_text(op: &Op) -> String {
    op.to_string()
}

/// What a server makes of the bytes.
fn effective(path: &'static str, bytes: &[u8]) -> Op {
    let raw = || Op::Raw(path, bytes.to_vec());
    let bytes = Bytes::copy_from_slice(bytes);
    let op = match path {
        RANGE => decode(bytes).map(Op::Range),
        RANGE_STREAM => decode(bytes).map(Op::RangeStream),
        PUT => decode(bytes).map(Op::Put),
        DELETE => decode(bytes).map(Op::Delete),
        TXN => deep(bytes).map(Op::Txn),
        COMPACT => decode(bytes).map(Op::Compact),
        GRANT => decode(bytes).map(|request| Op::Grant(0, request)),
        REVOKE => decode(bytes).map(Op::Revoke),
        TIME_TO_LIVE => decode(bytes).map(Op::TimeToLive),
        HASH_KV => decode(bytes).map(|request: pb::HashKvRequest| Op::HashKv(request.revision)),
        _ => return raw(),
    };
    op.unwrap_or_else(|_| raw())
}

fn deep<M: Deep>(bytes: Bytes) -> Result<M, etcore_proto::decode::DecodeError> {
    with_decoded(bytes, 10_000, |result| result)
}
