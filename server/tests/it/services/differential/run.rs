//! Runs a program on two servers at once, one operation after the other, and compares what they
//! say.
//!
//! Watch events come when they come; before anything is done to a stream, and at the end, a put to
//! a key of our own is waited for on every watch that covers it, so that the events before it are
//! complete and can be compared watch by watch. The order between watches of one stream means
//! nothing, not even to etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use prost::Message as _;

use super::answer::{ALARM, Answer, GRANT, KEEP_ALIVE, Message, PUT, RANGE, REVOKE, WATCH};
use super::client::{CallId, Item};
use super::generate::STREAMS;
use super::program::{Known, Op, may_write_twice};
use super::server::{Kind, Server};
use super::versions::Differences;

/// The barrier's key, which every stream watches; ranges of the program may cover it.
const BARRIER_KEY: &[u8] = b"m~";
const BARRIER_ID: i64 = 1_000_000;
/// How long etcd may take to catch up when it cannot be asked.
const CATCH_UP: Duration = Duration::from_millis(300);
/// Longest wait for anything.
const WAIT: Duration = Duration::from_secs(20);

/// Where two servers disagree.
#[derive(Debug)]
pub(crate) struct Mismatch {
    pub(crate) what: String,
    pub(crate) names: [&'static str; 2],
    pub(crate) answers: [String; 2],
}

/// A failed run.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Operations with absolute numbers, the last one is where it showed.
    pub(crate) script: Vec<String>,
    /// Operations of the program that were begun.
    pub(crate) begun: usize,
    pub(crate) mismatch: Mismatch,
}

/// A watch that lives.
struct Watched {
    key: Vec<u8>,
    range_end: Vec<u8>,
    start_revision: i64,
    sees_puts: bool,
}

impl Watched {
    fn new(request: &pb::WatchCreateRequest) -> Self {
        let key = if request.key.is_empty() { vec![0] } else { request.key.to_vec() };
        Self {
            key,
            range_end: request.range_end.to_vec(),
            start_revision: request.start_revision,
            sees_puts: !request.filters.contains(&0),
        }
    }

    fn covers(&self, key: &[u8]) -> bool {
        match self.range_end.as_slice() {
            b"" => self.key == key,
            b"\0" => key >= self.key.as_slice(),
            end => (self.key.as_slice()..end).contains(&key),
        }
    }
}

/// A watch stream on one server.
struct Stream {
    call: CallId,
    log: Vec<pb::WatchResponse>,
}

struct Side {
    server: Server,
    known: Known,
    keep_alive: Option<CallId>,
    streams: [Option<Stream>; STREAMS],
}

/// Two servers that have seen the same.
pub(crate) struct Pair {
    sides: [Side; 2],
    watches: [BTreeMap<i64, Watched>; STREAMS],
    /// Streams whose progress was asked for by the program since the last comparison.
    progress_counts: [bool; STREAMS],
    hashes: bool,
    differences: Differences,
    /// Revisions that may have written a key twice.
    twice: BTreeSet<i64>,
}

type Step = Result<(), Mismatch>;

impl Pair {
    /// `hashes` says that stored bytes will be the same.
    pub(crate) fn start(kinds: &[Kind; 2], hashes: bool) -> Self {
        let start = |kind: &Kind| Side {
            server: Server::start(kind),
            known: Known { current: 1, ..Known::default() },
            keep_alive: None,
            streams: std::array::from_fn(|_| None),
        };
        let sides = std::thread::scope(|scope| {
            let first = scope.spawn(|| start(&kinds[0]));
            let second = start(&kinds[1]);
            [first.join().expect("the first server"), second]
        });
        let differences = Differences::between(&sides[0].server.version);
        Self {
            sides,
            watches: Default::default(),
            progress_counts: [false; STREAMS],
            hashes,
            differences,
            twice: BTreeSet::new(),
        }
    }

    pub(crate) fn versions(&self) -> [&str; 2] {
        [&self.sides[0].server.version, &self.sides[1].server.version]
    }

    /// Runs a whole program.
    ///
    /// # Errors
    /// The first disagreement.
    pub(crate) fn run(&mut self, ops: &[Op]) -> Result<(), Box<Failure>> {
        let mut script = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            if self.differences.skips(op) {
                continue;
            }
            script.push(self.sides[0].known.resolve(op).to_string());
            if let Err(mismatch) = self.step(op) {
                return Err(Box::new(Failure { script, begun: index + 1, mismatch }));
            }
        }
        script.push("the end: what is left of the watches, everything stored".to_owned());
        self.end().map_err(|mismatch| Box::new(Failure { script, begun: ops.len(), mismatch }))
    }

    fn end(&mut self) -> Step {
        self.barrier()?;
        let all = pb::RangeRequest {
            key: b"\0"[..].into(),
            range_end: b"\0"[..].into(),
            ..Default::default()
        };
        self.step(&Op::Range(all))?;
        for op in [Op::HashKv(0), Op::Leases, Op::Status] {
            self.step(&op)?;
        }
        for stream in 0..STREAMS {
            self.end_stream(stream)?;
        }
        Ok(())
    }

    fn step(&mut self, op: &Op) -> Step {
        match op {
            Op::Watch(stream, _) => self.watch(*stream, op),
            Op::CancelWatch(stream, id) => self.cancel_watch(*stream, *id),
            Op::Progress(stream) => self.progress(*stream),
            Op::EndStream(stream) => self.end_stream(*stream),
            Op::KeepAlive(_) => self.keep_alive(op),
            Op::GrantShort(_) => self.grant_short(op),
            Op::Expire(_) => self.expire(op),
            Op::NoSpace(ops) => self.no_space(ops),
            Op::Compact(_) => {
                // A watch that wants a previous value must have got it while it was there.
                self.barrier()?;
                self.call(op)
            }
            _ => self.call(op),
        }
    }

    /// An operation of one request.
    fn call(&mut self, op: &Op) -> Step {
        let mut resolved = self.resolve(op);
        for op in &mut resolved {
            let current = self.sides[0].known.current;
            if matches!(op, Op::HashKv(0)) && self.twice.contains(&current) {
                *op = Op::HashKv(current);
            }
            if let Op::Compact(pb::CompactionRequest { revision, .. }) | Op::HashKv(revision) = op {
                while self.twice.contains(revision) {
                    *revision -= 1;
                }
            }
        }
        let Some(path) = op.path() else { return Ok(()) };
        let raw = self.both(path, |side| resolved[side].encode());
        let is_ok = raw[0].is_ok() && raw[1].is_ok();
        if is_ok {
            self.learn(op, &resolved, &raw);
        }
        self.compare(op, raw)
    }

    fn resolve(&self, op: &Op) -> [Op; 2] {
        [self.sides[0].known.resolve(op), self.sides[1].known.resolve(op)]
    }

    /// What later relative numbers are relative to.
    fn learn(&mut self, op: &Op, resolved: &[Op; 2], answers: &[Answer; 2]) {
        for (side, answer) in self.sides.iter_mut().zip(answers) {
            match (op, answer.messages.first()) {
                (Op::Grant(slot, _), Some(Message::Grant(response))) => {
                    side.known.leases.push((*slot, response.id));
                }
                (Op::Txn(request), Some(Message::Txn(response))) if may_write_twice(request) => {
                    self.twice.extend(response.header.map(|header| header.revision));
                }
                (Op::Compact(_), Some(_)) => {
                    if let Op::Compact(request) = &resolved[0] {
                        side.known.compacted = request.revision;
                    }
                }
                _ => {}
            }
        }
    }

    /// One request to both; they work on it at the same time.
    fn both(&mut self, path: &'static str, message: impl Fn(usize) -> Vec<u8>) -> [Answer; 2] {
        let calls = [0, 1].map(|side| self.sides[side].server.client.start(path, &message(side)));
        [0, 1].map(|side| {
            let items = self.sides[side].server.client.finish(calls[side], WAIT);
            let mut answer = Answer::new(path, items);
            self.saw(side, answer.revision());
            answer
        })
    }

    fn saw(&mut self, side: usize, revision: Option<i64>) {
        let current = &mut self.sides[side].known.current;
        *current = (*current).max(revision.unwrap_or(0));
    }

    fn compare(&self, op: &Op, answers: [Answer; 2]) -> Step {
        let [mut first, mut second] = answers;
        for (side, answer) in [&mut first, &mut second].into_iter().enumerate() {
            let side = &self.sides[side];
            for message in &mut answer.messages {
                side.server.identity.normalise(message, &side.known, self.hashes);
            }
        }
        self.differences.forgive(op, &mut first, &mut second);
        if first == second {
            return Ok(());
        }
        Err(self.mismatch("the answers differ", [first.to_string(), second.to_string()]))
    }

    fn mismatch(&self, what: &str, answers: [String; 2]) -> Mismatch {
        let names = [0, 1].map(|side: usize| self.sides[side].server.name);
        Mismatch { what: what.to_owned(), names, answers }
    }

    /// A minimal lease, then its end by order.
    fn grant_short(&mut self, op: &Op) -> Step {
        let resolved = self.resolve(op);
        let answers = self.both(GRANT, |side| resolved[side].encode());
        let ids: Vec<Option<i64>> = answers
            .iter()
            .map(|answer| match answer.messages.first() {
                Some(Message::Grant(response)) => Some(response.id),
                _ => None,
            })
            .collect();
        let mut answers = answers;
        for answer in &mut answers {
            // Nobody may know the id before the comparison but its server.
            if let (Op::GrantShort(request), Some(Message::Grant(response))) =
                (op, answer.messages.first_mut())
                && request.id == 0
            {
                response.id = i64::from(response.id > 0);
            }
        }
        self.compare(op, answers)?;
        if ids.iter().any(Option::is_none) {
            return Ok(());
        }
        let revoke = |id: Option<i64>| pb::LeaseRevokeRequest { id: id.unwrap_or(0) };
        let answers = self.both(REVOKE, |side| revoke(ids[side]).encode_to_vec());
        self.compare(op, answers)
    }

    fn keep_alive(&mut self, op: &Op) -> Step {
        let resolved = self.resolve(op);
        for (side, op) in self.sides.iter_mut().zip(&resolved) {
            let client = &mut side.server.client;
            let call = *side.keep_alive.get_or_insert_with(|| client.open(KEEP_ALIVE));
            client.send(call, &op.encode());
        }
        let answers = [0, 1].map(|side| {
            let side = &mut self.sides[side];
            let call = side.keep_alive.expect("opened above");
            let client = &mut side.server.client;
            client.wait(call, WAIT, |items| !items.is_empty());
            let item = client.items(call).pop_front();
            let mut answer = Answer::new(KEEP_ALIVE, item.into_iter().collect());
            if matches!(answer.messages.first(), Some(Message::KeepAlive(_))) {
                (answer.code, answer.text) = (0, "one of a stream".to_owned());
            } else {
                side.keep_alive = None;
            }
            answer
        });
        self.compare(op, answers)
    }

    /// Time is up for a lease by itself, once in a program.
    fn expire(&mut self, op: &Op) -> Step {
        let Op::Expire(put) = op else { return Ok(()) };
        let request = pb::LeaseGrantRequest { ttl: 1, id: 4_000_000 };
        let answers = self.both(GRANT, |_| request.encode_to_vec());
        let granted = answers.iter().all(Answer::is_ok);
        self.compare(op, answers)?;
        let put = pb::PutRequest { lease: 4_000_000, ..put.clone() };
        let answers = self.both(PUT, |_| put.encode_to_vec());
        let stored = answers.iter().all(Answer::is_ok);
        self.compare(op, answers)?;
        if !granted || !stored {
            return Ok(());
        }
        let get = pb::RangeRequest { key: put.key, serializable: true, ..Default::default() };
        let deadline = Instant::now() + WAIT;
        loop {
            let answers = self.both(RANGE, |_| get.encode_to_vec());
            let gone = answers.iter().all(|answer| {
                matches!(answer.messages.first(), Some(Message::Range(range)) if range.count == 0)
            });
            if gone || Instant::now() > deadline {
                return self.compare(op, answers);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn no_space(&mut self, ops: &[Op]) -> Step {
        self.alarm(pb::alarm_request::AlarmAction::Activate)?;
        for op in ops {
            self.call(op)?;
        }
        self.alarm(pb::alarm_request::AlarmAction::Deactivate)
    }

    fn alarm(&mut self, action: pb::alarm_request::AlarmAction) -> Step {
        let members = [0, 1].map(|side: usize| self.sides[side].server.identity.member);
        let answers = self.both(ALARM, |side| {
            let alarm = pb::AlarmType::Nospace as i32;
            let member_id = members[side];
            pb::AlarmRequest { action: action as i32, member_id, alarm }.encode_to_vec()
        });
        self.compare(&Op::Alarms, answers)
    }

    // Watches.

    fn request(union: RequestUnion) -> Vec<u8> {
        pb::WatchRequest { request_union: Some(union) }.encode_to_vec()
    }

    fn send(&mut self, stream: usize, union: &RequestUnion) {
        for side in &mut self.sides {
            if let Some(stream) = &side.streams[stream] {
                side.server.client.send(stream.call, &Self::request(union.clone()));
            }
        }
    }

    fn is_open(&self, stream: usize) -> bool {
        self.sides[0].streams[stream].is_some()
    }

    /// Waits until a side's log of a stream satisfies; what is missing then shows when logs are
    /// compared.
    fn wait_for(
        &mut self,
        side: usize,
        stream: usize,
        limit: Duration,
        done: impl Fn(&[pb::WatchResponse]) -> bool,
    ) -> bool {
        let deadline = Instant::now() + limit;
        let side = &mut self.sides[side];
        let Some(stream) = &mut side.streams[stream] else { return false };
        loop {
            let items = side.server.client.items(stream.call);
            while let Some(Item::Message(bytes)) = items.front() {
                // What cannot be decoded is an empty response, which no server sends.
                stream.log.push(pb::WatchResponse::decode(&bytes[..]).unwrap_or_default());
                items.pop_front();
            }
            let ended = !items.is_empty();
            if done(&stream.log) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if ended || left.is_zero() {
                return false;
            }
            side.server.client.wait(stream.call, left, |items| !items.is_empty());
        }
    }

    fn wait_for_both(
        &mut self,
        stream: usize,
        limit: Duration,
        done: impl Fn(&[pb::WatchResponse]) -> bool,
    ) -> bool {
        let first = self.wait_for(0, stream, limit, &done);
        self.wait_for(1, stream, limit, &done) && first
    }

    /// Everything watched so far is complete on every stream, and equal.
    fn barrier(&mut self) -> Step {
        if (0..STREAMS).all(|stream| !self.is_open(stream)) {
            return Ok(());
        }
        let put = pb::PutRequest { key: BARRIER_KEY.into(), ..Default::default() };
        let answers = self.both(PUT, |_| put.encode_to_vec());
        let revision = self.sides[0].known.current;
        self.compare(&Op::Put(put), answers)?;
        for stream in 0..STREAMS {
            if !self.is_open(stream) {
                continue;
            }
            let expected: Vec<i64> = self.watches[stream]
                .iter()
                .filter(|(_, watch)| {
                    watch.sees_puts && watch.covers(BARRIER_KEY) && watch.start_revision <= revision
                })
                .map(|(id, _)| *id)
                .collect();
            let complete = self.wait_for_both(stream, WAIT, |log| {
                expected.iter().all(|id| log.iter().any(|response| brings(response, *id, revision)))
            });
            self.compare_logs(stream)?;
            if !complete {
                let both = "neither delivered the put of the barrier to every watch".to_owned();
                return Err(self.mismatch("watches are incomplete", [both.clone(), both]));
            }
        }
        Ok(())
    }

    fn compare_logs(&mut self, stream: usize) -> Step {
        let progress = std::mem::take(&mut self.progress_counts[stream]);
        let mut logs = [0, 1].map(|side: usize| {
            let side = &mut self.sides[side];
            let log = side.streams[stream].as_mut().map(|stream| std::mem::take(&mut stream.log));
            let mut by_watch: BTreeMap<i64, Vec<Message>> = BTreeMap::new();
            for response in log.unwrap_or_default() {
                let id = response.watch_id;
                let of_watch = by_watch.entry(id).or_default();
                if is_progress(&response) {
                    if !progress {
                        continue;
                    }
                    // How often it was said depends on how often it was asked.
                    of_watch.clear();
                }
                let mut message = Message::Watch(response);
                side.server.identity.normalise(&mut message, &side.known, false);
                of_watch.push(message);
            }
            by_watch.retain(|_, messages| !messages.is_empty());
            by_watch
        });
        let [first, second] = &mut logs;
        self.differences.forgive_watches(first);
        self.differences.forgive_watches(second);
        if first == second {
            return Ok(());
        }
        let ids: Vec<i64> = first.keys().chain(second.keys()).copied().collect();
        let id = ids.into_iter().find(|id| first.get(id) != second.get(id)).expect("they differ");
        let texts = logs.map(|mut log| {
            let messages = log.remove(&id).unwrap_or_default();
            Answer { messages, code: 0, text: "so far".to_owned() }.to_string()
        });
        Err(self
            .mismatch(&format!("watch {id} of stream {stream} brought different things"), texts))
    }

    fn open_stream(&mut self, stream: usize) -> Step {
        for side in &mut self.sides {
            let call = side.server.client.open(WATCH);
            side.streams[stream] = Some(Stream { call, log: Vec::new() });
        }
        let request = pb::WatchCreateRequest {
            key: BARRIER_KEY.into(),
            watch_id: BARRIER_ID,
            ..Default::default()
        };
        self.watches[stream].clear();
        self.create(stream, &request)
    }

    /// Creates a watch and waits for the answer; remembers it if it lives.
    fn create(&mut self, stream: usize, request: &pb::WatchCreateRequest) -> Step {
        self.send(stream, &RequestUnion::CreateRequest(request.clone()));
        let complete = self.wait_for_both(stream, WAIT, |log| log.iter().any(|one| one.created));
        // Only what the answer says is taken out: events may follow at once.
        let created = [0, 1].map(|side: usize| {
            let log = &mut self.sides[side].streams[stream].as_mut().expect("open").log;
            log.iter().position(|response| response.created).map(|at| log.remove(at))
        });
        let id = created[0].as_ref().filter(|one| !one.canceled).map(|one| one.watch_id);
        self.compare_responses(created)?;
        if !complete {
            let text = "no answer to a watch".to_owned();
            return Err(self.mismatch("neither created a watch", [text.clone(), text]));
        }
        if let Some(id) = id {
            self.watches[stream].insert(id, Watched::new(request));
        }
        Ok(())
    }

    fn compare_responses(&mut self, responses: [Option<pb::WatchResponse>; 2]) -> Step {
        let mut side = 0;
        let answers = responses.map(|response| {
            let revision = response.as_ref().and_then(|one| one.header).map(|one| one.revision);
            self.saw(side, revision);
            side += 1;
            let messages = response.into_iter().map(Message::Watch).collect();
            Answer { messages, code: 0, text: "one of a stream".to_owned() }
        });
        self.compare(&Op::Watch(0, pb::WatchCreateRequest::default()), answers)
    }

    fn watch(&mut self, stream: usize, op: &Op) -> Step {
        self.barrier()?;
        if !self.is_open(stream) {
            self.open_stream(stream)?;
        }
        let Op::Watch(_, mut request) = self.sides[0].known.resolve(op) else { return Ok(()) };
        let current = self.sides[0].known.current;
        if stream < STREAMS - 1 {
            // Else it could not be waited for.
            request.start_revision = request.start_revision.min(current);
        }
        let before: Vec<i64> = self.watches[stream].keys().copied().collect();
        self.create(stream, &request)?;
        let id = self.watches[stream].keys().find(|id| !before.contains(id)).copied();
        match id {
            Some(id) if (1..=current).contains(&request.start_revision) => {
                self.catch_up(stream, id)
            }
            _ => Ok(()),
        }
    }

    /// Waits until a watch that began in the past has got all of it. A watch of what is compacted
    /// is cancelled instead; as long as its client does not cancel it too, etcd keeps its id and
    /// never tells the stream's progress.
    fn catch_up(&mut self, stream: usize, id: i64) -> Step {
        let progress = Self::request(RequestUnion::ProgressRequest(Default::default()));
        let over = |log: &[pb::WatchResponse]| {
            log.iter().any(|one| is_progress(one) || (one.canceled && one.watch_id == id))
        };
        let deadline = Instant::now() + WAIT;
        if !self.differences.progress_means_synced() {
            std::thread::sleep(CATCH_UP);
        }
        for side in 0..2 {
            loop {
                let server = &mut self.sides[side];
                let call = server.streams[stream].as_ref().expect("open").call;
                server.server.client.send(call, &progress);
                if self.wait_for(side, stream, Duration::from_millis(30), over)
                    || Instant::now() > deadline
                {
                    break;
                }
            }
        }
        let compacted = [0, 1].map(|side: usize| {
            let log = &self.sides[side].streams[stream].as_ref().expect("open").log;
            log.iter().any(|one| one.canceled && one.watch_id == id)
        });
        if compacted != [true, true] {
            return Ok(());
        }
        self.watches[stream].remove(&id);
        self.send(stream, &RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: id }));
        self.wait_for_both(stream, WAIT, |log| {
            log.iter().filter(|one| one.canceled && one.watch_id == id).count() == 2
        });
        Ok(())
    }

    fn cancel_watch(&mut self, stream: usize, id: i64) -> Step {
        if !self.is_open(stream) {
            return Ok(());
        }
        self.barrier()?;
        self.send(stream, &RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: id }));
        if self.watches[stream].remove(&id).is_some() {
            self.wait_for_both(stream, WAIT, |log| {
                log.iter().any(|one| one.canceled && one.watch_id == id)
            });
        }
        Ok(())
    }

    /// Progress is told if no watch of the stream waits for a future revision.
    fn progress(&mut self, stream: usize) -> Step {
        if !self.is_open(stream) {
            return Ok(());
        }
        self.barrier()?;
        self.progress_counts[stream] = true;
        let current = self.sides[0].known.current;
        let told = self.watches[stream].values().all(|watch| watch.start_revision <= current);
        self.send(stream, &RequestUnion::ProgressRequest(Default::default()));
        let limit = if told { WAIT } else { Duration::from_millis(20) };
        self.wait_for_both(stream, limit, |log| {
            log.iter().any(|one| {
                is_progress(one) && one.header.is_some_and(|header| header.revision >= current)
            })
        });
        Ok(())
    }

    fn end_stream(&mut self, stream: usize) -> Step {
        if !self.is_open(stream) {
            return Ok(());
        }
        self.barrier()?;
        for side in &mut self.sides {
            if let Some(open) = &side.streams[stream] {
                side.server.client.half_close(open.call);
            }
        }
        // etcd goes on telling a client that has nothing more to ask.
        self.barrier()?;
        for side in &mut self.sides {
            if let Some(open) = side.streams[stream].take() {
                side.server.client.forget(open.call);
            }
        }
        self.watches[stream].clear();
        Ok(())
    }
}

fn is_progress(response: &pb::WatchResponse) -> bool {
    response.watch_id == -1 && !response.created && !response.canceled
}

fn brings(response: &pb::WatchResponse, id: i64, revision: i64) -> bool {
    response.watch_id == id
        && response.events.iter().any(|event| {
            event.kv.as_ref().is_some_and(|kv| kv.mod_revision == revision && kv.key == BARRIER_KEY)
        })
}
