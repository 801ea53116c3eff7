//! Clusters of replicas in memory: the production turn of each, over disks that lose what was not
//! synced and a network that delays, reorders, loses and cuts, all drawn from one seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use etcore_engine::file::{Disk, FileOp, FileOutput, run};
use etcore_engine::page::PageSource;
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::LogIndex;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::raftpb::{self, MessageType};
use etcore_raftlog::peer::{
    ConnId, IncomingRequest, Lane as AskLane, PeerReport, PeerRequest, PeerResponse, RequestError,
};
use prost::Message as _;

use super::*;
use crate::background::passwords::Passwords;
use crate::background::{SimulatedBackground, worker};
use crate::boot::{self, assemble};
use crate::channel::{
    Consumer, LeaseAnswer, LeaseQuery, LeaseRequest, Producer, Reply, Slot, ToFront, ToReplica,
    ring,
};
use crate::clock::Clock;
use crate::config::flags::{self, Asked};
use crate::disk::pages::{PageFile, SimulatedPages};
use crate::driver::{LogFile, Waker};
use crate::entry;
use crate::kv::range::Scratch;
use crate::tls::Tls;

mod compaction;
mod elections;
mod failover;
mod hung_disk;
mod leases;
mod requests;
mod snapshots;

/// Milliseconds between two turns of a member.
const STEP_MS: u64 = 10;
const RAFT_PUT: u32 = 4;

/// Pages that are always there.
struct Ready(DiskPages);

impl SimulatedPages for Ready {
    fn source(&mut self) -> &mut dyn PageSource {
        &mut self.0
    }
    fn follow(&mut self, file: &PageFile) {
        self.0.follow(file.file.as_ref());
    }
    fn fetch_wanted(&mut self) {}
    fn take_finished(&mut self) {}
    fn take_arrived(&mut self) -> bool {
        false
    }
    fn has_finished(&self) -> bool {
        false
    }
}

/// A member whose front is the test.
struct Member {
    name: String,
    disk: MemDisk,
    shared: Arc<Shared>,
    replica: Replica,
    to_replica: Producer<ToReplica>,
    to_lessor: Producer<LeaseRequest>,
    from_replica: Consumer<ToFront>,
    desk: SimulatedBackground,
    background: worker::Worker,
    write: Option<DurableWrite>,
    ids: IdBlock,
    serves: bool,
    replies: BTreeMap<Slot, Vec<Reply>>,
    reads: BTreeMap<u64, LogIndex>,
    leases: BTreeMap<Slot, LeaseAnswer>,
    /// Whether it is run.
    up: bool,
    /// Its disk stands still.
    holds_writes: bool,
    spare: Arc<Mutex<SpareGate>>,
    finished: Arc<ArrayQueue<Finished>>,
}

/// Lets no spare segment be made for a while.
#[derive(Default)]
struct SpareGate {
    shut: bool,
    waiting: Option<FileOp>,
}

impl Member {
    /// What waited at the gate is done, and so is what comes.
    fn open_gate(&mut self) {
        let waiting = {
            let mut gate = self.spare.lock().unwrap();
            gate.shut = false;
            gate.waiting.take()
        };
        if let Some(op) = waiting {
            let done = run(&mut self.disk, op);
            assert!(self.finished.push((Lane::Background, done)).is_ok());
        }
    }

    fn open(name: &str, args: &[String], disk: MemDisk, nonce: u64) -> Self {
        let Ok(Asked::Run(config, _)) = flags::parse(args.iter().cloned(), []) else {
            panic!("the flags are good");
        };
        let (mut page_disk, mut log_disk) = (disk.clone(), disk.clone());
        let path = Path::new("in memory");
        let mut stored = boot::open_stored(&config, nonce, path, &mut page_disk, &mut log_disk)
            .expect("the files are good");
        let clock = Clock::simulated(Arc::default(), Arc::default());
        let tls = Tls::load(&config.tls, Path::new(""), &[], &[]).expect("no files");
        let shared = assemble::shared(*config, clock, Arc::new(tls), &mut stored, &page_disk, 1);
        let pins = stored.store.revision_pins().clone();
        let (hasher, _) = Hasher::with(shared.clone(), DiskPages::new(&disk), pins);
        let of_pages = disk.clone();
        let wiring = assemble::Wiring {
            shared: shared.clone(),
            pages: Box::new(move |_, _| {
                Pages::simulated(Box::new(Ready(DiskPages::new(&of_pages))))
            }),
            hasher,
            passwords: Passwords::at_once(),
            front_wakers: vec![Waker::simulated()],
            replica_waker: Waker::simulated(),
            shares_thread: true,
            nonce,
        };
        let (to_replica, inbox) = ring(limits::RING_TO_REPLICA, None);
        let (to_lessor, asks) = ring(limits::RING_LEASES, None);
        let (outbox, from_replica) = ring(limits::RING_TO_FRONT, None);
        let of_log = disk.clone();
        let spare = Arc::new(Mutex::new(SpareGate::default()));
        let gate = spare.clone();
        let start = move |lane, op| match op {
            op if lane == Lane::Background && gate.lock().unwrap().shut => {
                gate.lock().unwrap().waiting = Some(op);
                Started::Later
            }
            FileOp::Write { file, offset_bytes, data, durable: true } => {
                let file = LogFile::Simulated(file);
                Started::Write(DurableWrite { file, offset_bytes, buf: data })
            }
            op => Started::Done(run(&mut log_disk, op)),
        };
        let read = move |name: &str, offset_bytes, len_bytes| {
            of_log.read_at(name, offset_bytes, len_bytes).unwrap_or_default()
        };
        let (files, finished) = LogFiles::simulated(Box::new(start), Box::new(read));
        let (background, desk) = Background::simulated();
        let mut made = None;
        let link = FrontLink::new(inbox, asks, outbox);
        let replica = wiring
            .replica(stored, files, vec![link], |checkpointer| {
                made = Some(worker::Worker::new(checkpointer));
                Ok(background)
            })
            .expect("nothing to fail");
        Self {
            name: name.to_owned(),
            disk,
            shared,
            replica,
            to_replica,
            to_lessor,
            from_replica,
            desk,
            background: made.expect("the replica has a background"),
            write: None,
            ids: IdBlock::default(),
            serves: false,
            replies: BTreeMap::new(),
            reads: BTreeMap::new(),
            leases: BTreeMap::new(),
            up: true,
            holds_writes: false,
            spare,
            finished,
        }
    }

    fn id(&self) -> u64 {
        self.shared.member_id
    }

    /// Runs a turn as a shard does; returns its stages.
    fn turn(&mut self, now_ms: u64) -> Vec<Stage> {
        self.replica.begin_turn(now_ms);
        let mut stages = Vec::new();
        while let Some(stage) = self.replica.next_stage() {
            stages.push(stage);
            if let Some(write) = self.replica.run(stage) {
                assert!(self.write.is_none(), "two durable writes at once");
                self.write = Some(write);
            }
        }
        stages
    }

    fn finish_write(&mut self) {
        let Some(DurableWrite { file, offset_bytes, buf }) = self.write.take() else { return };
        let LogFile::Simulated(file) = file else { panic!("a simulated file") };
        let op = FileOp::Write { file, offset_bytes, data: buf, durable: true };
        match run(&mut self.disk, op).expect("written") {
            FileOutput::Written(buf) => self.replica.written(buf, Ok(())),
            other => panic!("{other:?}"),
        }
    }

    fn run_background(&mut self) {
        while let Some(task) = self.desk.take() {
            self.background.add(task);
        }
        let mut completions = Vec::new();
        loop {
            self.background.turn(&mut self.disk, &mut completions, &mut |answer| {
                self.desk.answer(answer);
            });
            completions.clear();
            self.disk.poll(&mut completions);
            if completions.is_empty() {
                return;
            }
        }
    }

    fn take_answers(&mut self) {
        while let Some(message) = self.from_replica.pop() {
            match message {
                ToFront::Reply { slot, reply } => {
                    self.replies.entry(slot).or_default().push(reply);
                }
                ToFront::ReadReady { up_to, index } => {
                    self.reads.insert(up_to, index);
                }
                ToFront::Lease { slot, answer } => {
                    let twice = self.leases.insert(slot, answer);
                    assert!(twice.is_none(), "lease question {slot} was answered twice");
                }
                ToFront::Defragmented { .. } => {}
                ToFront::Serve => self.serves = true,
            }
        }
    }

    /// How many snapshots it has gone over to in this life.
    fn went_over(&self) -> u64 {
        self.shared.view.load().page_file.number
    }

    fn leads(&self) -> bool {
        self.up && self.replica.is_leader()
    }

    fn revision(&self) -> i64 {
        self.shared.view.load().store.revision.0
    }

    /// The value of a key, as a serializable read of this member finds it.
    fn get(&self, key: &str) -> Option<String> {
        let view = self.shared.view.load_full();
        let request =
            pb::RangeRequest { key: key.to_owned().into(), ..pb::RangeRequest::default() };
        let mut pages = DiskPages::new(&self.disk);
        pages.follow(view.page_file.file.as_ref());
        let mut out = Vec::new();
        crate::kv::range::respond_short(
            &*view.store,
            &request,
            crate::kv::range::SHORT,
            (&mut pages, &mut Scratch::default()),
            |revision| self.shared.header(revision.0),
            &mut out,
        )
        .ok()?;
        let response = pb::RangeResponse::decode(out.as_slice()).expect("a response");
        let kv = response.kvs.first()?;
        Some(String::from_utf8(kv.value.to_vec()).expect("text"))
    }
}

/// Something on its way.
#[expect(clippy::large_enum_variant, reason = "most are the large one")]
enum Parcel {
    Message(raftpb::Message),
    /// Who asked, with the question.
    Ask(u64, PeerRequest),
    /// Who answers, the question's token, status and body.
    Answer(u64, u64, PeerResponse),
    Report(PeerReport),
}

struct Cluster {
    members: Vec<Member>,
    args: Vec<Vec<String>>,
    prng: Prng,
    now_ms: u64,
    nonce: u64,
    /// What arrives when.
    network: BTreeMap<(u64, u64), (u64, Parcel)>,
    posted: u64,
    /// In a thousand messages.
    lost: u64,
    delay_ms: u64,
    /// Pairs, both ways, between which nothing goes.
    cut: BTreeSet<(u64, u64)>,
    /// Who asks whom in vain: nothing comes back.
    holds_asks: BTreeSet<(u64, u64)>,
    /// Pairs, both ways, between which questions find no connection, and messages do.
    lost_asks: BTreeSet<(u64, u64)>,
    /// Questions passed on to a member: by its number there, who asked and its token.
    asked: BTreeMap<ConnId, (u64, u64)>,
    /// Questions about leases that one member may have on their way to another, as many as it has
    /// connections; the others wait.
    ask_slots: usize,
    /// By who asks whom: the tokens of those on their way, and those that wait.
    lanes: BTreeMap<(u64, u64), (BTreeSet<u64>, VecDeque<PeerRequest>)>,
    /// No member knows batches, as if all were of another make.
    knows_no_batches: bool,
    next_slot: u64,
    next_ticket: u64,
}

impl Cluster {
    fn new(count: usize, seed: u64) -> Self {
        Self::with_flags(count, seed, &[])
    }

    fn with_flags(count: usize, seed: u64, extra: &[&str]) -> Self {
        let url = |at: usize| format!("http://10.0.0.{at}:2380");
        let pairs: Vec<String> = (1..=count).map(|at| format!("m{at}={}", url(at))).collect();
        let mut args = Vec::new();
        for at in 1..=count {
            let mut own = vec![
                format!("--name=m{at}"),
                format!("--initial-cluster={}", pairs.join(",")),
                format!("--initial-advertise-peer-urls={}", url(at)),
                format!("--advertise-client-urls=http://10.0.0.{at}:2379"),
            ];
            if !extra.iter().any(|flag| flag.starts_with("--wal-segment-bytes=")) {
                own.push("--wal-segment-bytes=1048576".to_owned());
            }
            own.extend(extra.iter().map(|flag| (*flag).to_owned()));
            args.push(own);
        }
        let members = (1..=count)
            .map(|at| Member::open(&format!("m{at}"), &args[at - 1], MemDisk::new(), 1 << 40))
            .collect();
        let mut cluster = Self {
            members,
            args,
            prng: Prng::new(seed),
            now_ms: 1000,
            nonce: 1 << 40,
            network: BTreeMap::new(),
            posted: 0,
            lost: 0,
            delay_ms: 20,
            cut: BTreeSet::new(),
            holds_asks: BTreeSet::new(),
            lost_asks: BTreeSet::new(),
            asked: BTreeMap::new(),
            ask_slots: usize::MAX,
            lanes: BTreeMap::new(),
            knows_no_batches: false,
            next_slot: 0,
            next_ticket: 0,
        };
        cluster.report_connections();
        cluster
    }

    fn at(&self, id: u64) -> usize {
        self.members.iter().position(|member| member.id() == id).expect("a member")
    }

    fn connected(&self, a: u64, b: u64) -> bool {
        let up = |id| self.members[self.at(id)].up;
        up(a) && up(b) && !self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// Tells every member whom it can reach, as its streams would.
    fn report_connections(&mut self) {
        let ids: Vec<u64> = self.members.iter().map(Member::id).collect();
        for at in 0..ids.len() {
            for other in ids.iter().copied().filter(|other| *other != ids[at]) {
                let report = if self.connected(ids[at], other) {
                    PeerReport::Active(other)
                } else {
                    PeerReport::Inactive(other)
                };
                self.members[at].replica.peer_report(report);
            }
        }
    }

    fn post(&mut self, to: u64, parcel: Parcel) {
        self.posted += 1;
        let at_ms = self.now_ms + self.prng.below(self.delay_ms + 1);
        self.network.insert((at_ms, self.posted), (to, parcel));
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.network.first_entry()
            && entry.key().0 <= self.now_ms
        {
            let (to, parcel) = entry.remove();
            let at = self.at(to);
            if !self.members[at].up && !matches!(parcel, Parcel::Ask(..)) {
                continue;
            }
            match parcel {
                Parcel::Message(message) => {
                    let from = message.from.unwrap_or(0);
                    let lost = self.prng.chance(self.lost, 1000);
                    if lost
                        || !self.connected(from, to)
                        || !self.members[at].replica.wants_messages()
                    {
                        // So the sender's transport says of a lost stream.
                        if message.r#type == Some(MessageType::MsgSnap as i32) {
                            let report = PeerReport::SnapshotSent { to, ok: false };
                            self.post(from, Parcel::Report(report));
                        }
                        continue;
                    }
                    // As a transport does: what one member sends another can read.
                    let bytes = message.encode_to_vec();
                    let message = raftpb::Message::decode(bytes.as_slice()).expect("a message");
                    self.members[at].replica.step(message);
                }
                Parcel::Ask(from, ask) => self.ask(from, ask),
                Parcel::Answer(from, token, answer) => {
                    self.ask_ended(to, token);
                    if self.connected(from, to) {
                        let report = PeerReport::Answered { token, answer: Ok(answer) };
                        self.members[at].replica.peer_report(report);
                    }
                }
                Parcel::Report(report) => {
                    if let PeerReport::Answered { token, .. } = report {
                        self.ask_ended(to, token);
                    }
                    self.members[at].replica.peer_report(report);
                }
            }
        }
    }

    /// A question leaves, or waits for a connection.
    fn ask_in_lane(&mut self, from: u64, ask: PeerRequest) {
        if ask.lane == AskLane::Leases {
            let (out, waiting) = self.lanes.entry((from, ask.to)).or_default();
            if out.len() >= self.ask_slots {
                return waiting.push_back(ask);
            }
            out.insert(ask.token);
        }
        self.post(ask.to, Parcel::Ask(from, ask));
    }

    /// Its connection is free for the next one.
    fn ask_ended(&mut self, from: u64, token: u64) {
        let ended = self.lanes.iter_mut().find_map(|((requester, _), (out, waiting))| {
            (*requester == from && out.remove(&token)).then(|| waiting.pop_front())
        });
        if let Some(next) = ended.flatten() {
            self.ask_in_lane(from, next);
        }
    }

    /// A question arrives at the member it is for.
    fn ask(&mut self, from: u64, ask: PeerRequest) {
        if self.holds_asks.contains(&(from, ask.to)) {
            return;
        }
        let pair = (from.min(ask.to), from.max(ask.to));
        if !self.connected(from, ask.to) || self.lost_asks.contains(&pair) {
            let answer = Err(RequestError::Unreachable);
            let report = PeerReport::Answered { token: ask.token, answer };
            return self.post(from, Parcel::Report(report));
        }
        if ask.target == "/version" {
            let body = Bytes::from_static(br#"{"etcdserver":"3.7.1","etcdcluster":"not_decided"}"#);
            let answer = PeerResponse { status: 200, body };
            return self.post(from, Parcel::Answer(ask.to, ask.token, answer));
        }
        if self.knows_no_batches && ask.target == crate::replica::LEASE_BATCH_PATH {
            let answer = PeerResponse { status: 404, body: Bytes::new() };
            return self.post(from, Parcel::Answer(ask.to, ask.token, answer));
        }
        self.posted += 1;
        let conn = ConnId { slot: self.posted as u32, generation: 0 };
        self.asked.insert(conn, (from, ask.token));
        let at = self.at(ask.to);
        let PeerRequest { method, target, body, .. } = ask;
        self.members[at].replica.asked(IncomingRequest {
            cluster: String::new(),
            conn,
            method: method.to_owned(),
            target,
            body,
        });
    }

    /// Time passes by one step and everybody takes a turn.
    fn step(&mut self) {
        self.now_ms += STEP_MS;
        self.deliver();
        for at in 0..self.members.len() {
            if !self.members[at].up {
                continue;
            }
            if self.prng.chance(3, 4) && !self.members[at].holds_writes {
                self.members[at].finish_write();
            }
            if self.prng.chance(1, 2) {
                self.members[at].run_background();
            }
            let member = &mut self.members[at];
            member.turn(self.now_ms);
            if let Some(reason) = member.shared.lifecycle.failure() {
                panic!("{} failed: {reason}", member.name);
            }
            member.take_answers();
            self.collect(at);
        }
    }

    /// What a member has to say to others.
    fn collect(&mut self, at: usize) {
        let member = &mut self.members[at];
        let (mut messages, mut asks, mut replies) = (Vec::new(), Vec::new(), Vec::new());
        member.replica.take_messages(&mut messages);
        member.replica.take_peer_requests(&mut asks);
        member.replica.take_peer_replies(&mut replies);
        let from = member.id();
        for message in messages {
            self.post(message.to.unwrap_or(0), Parcel::Message(message));
        }
        for ask in asks {
            // If nobody answers; an answer that comes first is the only one.
            self.posted += 1;
            let answer = Err(RequestError::TimedOut);
            let late = Parcel::Report(PeerReport::Answered { token: ask.token, answer });
            self.network.insert((self.now_ms + ask.timeout_ms, self.posted), (from, late));
            self.ask_in_lane(from, ask);
        }
        for reply in replies {
            let Some((requester, token)) = self.asked.remove(&reply.conn) else { continue };
            let answer = PeerResponse { status: reply.status, body: reply.body.into() };
            self.post(requester, Parcel::Answer(from, token, answer));
        }
    }

    /// Steps until `done`, for at most so many simulated milliseconds.
    #[track_caller]
    fn until(&mut self, limit_ms: u64, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end_ms = self.now_ms + limit_ms;
        while !done(self) {
            assert!(self.now_ms < end_ms, "not within {limit_ms} ms: {what}");
            self.step();
        }
    }

    fn run_ms(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while self.now_ms < end_ms {
            self.step();
        }
    }

    /// Waits for a leader that all members that are up agree on; returns its place.
    #[track_caller]
    fn leader(&mut self) -> usize {
        self.until(10_000, "a leader", |cluster| cluster.agreed_leader().is_some());
        self.agreed_leader().expect("a leader")
    }

    fn agreed_leader(&self) -> Option<usize> {
        let at = self.members.iter().position(Member::leads)?;
        let id = self.members[at].id();
        let reachable = self.members.iter().filter(|m| m.id() == id || self.connected(m.id(), id));
        let agreed = reachable
            .filter(|member| member.up)
            .all(|member| member.shared.status.leader.load(Ordering::Relaxed) == id);
        agreed.then_some(at)
    }

    /// Waits until every member that is up serves clients.
    #[track_caller]
    fn ready(&mut self) -> usize {
        let leader = self.leader();
        self.until(20_000, "everybody serves", |cluster| {
            cluster.members.iter().all(|member| member.serves || !member.up)
        });
        leader
    }

    fn propose(&mut self, at: usize, field: u32, request: &[u8]) -> Slot {
        self.next_slot += 1;
        let slot = self.next_slot;
        let member = &mut self.members[at];
        let id = member.ids.next(&member.shared.ids);
        let data = entry::wrap_request(field, request, id).into();
        assert!(member.to_replica.push(ToReplica::Propose { slot, id, data }).is_ok());
        slot
    }

    fn put(&mut self, at: usize, key: &str, value: &str) -> Slot {
        let put = pb::PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..pb::PutRequest::default()
        };
        self.propose(at, RAFT_PUT, &put.encode_to_vec())
    }

    /// Waits for the reply to a proposal made through this member.
    #[track_caller]
    fn reply(&mut self, at: usize, slot: Slot) -> Result<(), String> {
        self.until(20_000, "a reply", |cluster| cluster.members[at].replies.contains_key(&slot));
        let replies = &self.members[at].replies[&slot];
        assert_eq!(replies.len(), 1, "answered once: {replies:?}");
        match &replies[0] {
            Reply::Refused(status) => Err(status.message.to_string()),
            Reply::Header { .. } | Reply::Message(_) | Reply::Long(_) => Ok(()),
        }
    }

    /// A linearizable point of this member, once its view has reached it.
    #[track_caller]
    fn read(&mut self, at: usize) {
        self.next_ticket += 1;
        let up_to = self.next_ticket;
        assert!(self.members[at].to_replica.push(ToReplica::Read { up_to }).is_ok());
        self.until(20_000, "a read", |cluster| {
            let member = &cluster.members[at];
            let applied = member.shared.view.load().store.applied;
            member.reads.range(up_to..).next().is_some_and(|(_, index)| applied >= *index)
        });
    }

    fn crash(&mut self, at: usize) {
        self.members[at].up = false;
        self.report_connections();
    }

    /// Starts a member again on what a power cut would have left of its disk.
    fn restart(&mut self, at: usize) {
        let disk = self.members[at].disk.crash(self.prng.next_u64());
        self.open_again(at, disk);
    }

    fn open_again(&mut self, at: usize, disk: MemDisk) {
        self.nonce += 1 << 30;
        let (name, id) = (self.members[at].name.clone(), self.members[at].id());
        let args = self.args[at].clone();
        self.members[at] = Member::open(&name, &args, disk, self.nonce);
        assert_eq!(self.members[at].id(), id);
        // What was on its way to the old one is lost.
        self.network.retain(|_, (to, _)| *to != id);
        self.asked.retain(|_, (from, _)| *from != id);
        self.report_connections();
    }

    /// Waits for a leader among others than those that are cut off; `known` may be it still.
    #[track_caller]
    fn leader_among(&mut self, known: &[usize]) -> usize {
        self.until(20_000, "a leader of the majority", |cluster| cluster.strongest().is_some());
        self.strongest().unwrap_or(known[0])
    }

    /// The leader that reaches a majority.
    fn strongest(&self) -> Option<usize> {
        self.members.iter().position(|member| {
            let id = member.id();
            let reached =
                self.members.iter().filter(|m| m.id() == id || self.connected(m.id(), id));
            member.leads() && reached.count() > self.members.len() / 2
        })
    }

    fn isolate(&mut self, at: usize, cut: bool) {
        let id = self.members[at].id();
        let others: Vec<u64> =
            self.members.iter().map(Member::id).filter(|other| *other != id).collect();
        for other in others {
            let pair = (id.min(other), id.max(other));
            if cut {
                self.cut.insert(pair);
            } else {
                self.cut.remove(&pair);
            }
        }
        self.report_connections();
    }

    /// All members that are up have applied the same, and hold the same.
    #[track_caller]
    fn agree(&mut self, keys: &[String]) {
        self.until(20_000, "the same applied index", |cluster| {
            let mut up = cluster.members.iter().filter(|member| member.up);
            let first = up.next().expect("one is up").replica.store.applied();
            up.all(|member| member.replica.store.applied() == first)
        });
        let up: Vec<&Member> = self.members.iter().filter(|member| member.up).collect();
        for other in &up[1..] {
            assert_eq!(other.revision(), up[0].revision());
            for key in keys {
                assert_eq!(other.get(key), up[0].get(key), "{key} on {}", other.name);
            }
        }
    }

    fn others(&self, at: usize) -> Vec<usize> {
        (0..self.members.len()).filter(|other| *other != at).collect()
    }
}

/// So that a queue in these tests is not mistaken for one of the server's.
type Expected = VecDeque<(Slot, usize, String, String)>;
