//! Several members in memory, over a network that loses, delays and reorders, with crashes: what
//! one member applied every member applies, and nothing acknowledged is forgotten.

use std::collections::VecDeque;

use bytes::Bytes;
use etcore_engine::file::{FileOp, run};
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::prng::Prng;
use etcore_proto::raftpb;
use etcore_raftlog::bootstrap::{Peer, bootstrap};
use etcore_raftlog::log::{Applied, Log};
use etcore_raftlog::node::{Effects, NodeConfig, Proposed, Role};
use etcore_raftlog::types::{EntryKind, LogEntry, LogIndex, SnapshotMark};
use etcore_raftlog::wal::{self, NewLog, WriterConfig};

const DIR: &str = "member/wal";
const SEGMENT_BYTES: u64 = 64 << 10;

struct Member {
    id: u64,
    boots: u64,
    disk: MemDisk,
    log: Log,
    applied: Vec<LogEntry>,
    reads: Vec<(u64, u64)>,
    fetched: u64,
    /// A snapshot that was received; its content is copied from the model.
    installed: Option<SnapshotMark>,
}

impl Member {
    fn open(id: u64, boots: u64, disk: MemDisk) -> Self {
        Self::open_with(id, boots, disk, Applied::default())
    }

    fn open_with(id: u64, boots: u64, mut disk: MemDisk, applied: Applied) -> Self {
        let mut config = NodeConfig::new(id, 7, boots);
        config.window_bytes = 2000;
        let writer = WriterConfig { segment_bytes: SEGMENT_BYTES, catchup_entries: 10 };
        let (log, _) = Log::open(&mut disk, DIR, config, writer, applied).expect("opened");
        let (applied, reads) = (Vec::new(), Vec::new());
        Self { id, boots, disk, log, applied, reads, fetched: 0, installed: None }
    }

    fn mark(&self) -> SnapshotMark {
        let last = self.applied.last().expect("something is applied");
        let conf_state = Some(self.log.node.conf_state());
        SnapshotMark { index: last.index, term: last.term, conf_state }
    }

    /// One turn; `sync` also carries out the file operations.
    fn turn(&mut self, out: &mut VecDeque<raftpb::Message>, model: &[LogEntry], sync: bool) {
        let mut effects = Effects::default();
        while self.log.turn(&mut effects).expect("staged") {
            if effects.snapshot_wanted.is_some() {
                let mark = self.mark();
                self.log.node.provide_snapshot(Some(&mark));
            }
            if let Some(mark) = effects.snapshot.take() {
                self.log.drive(&mut self.disk).expect("driven");
                self.applied = model[..mark.index.0 as usize].to_vec();
                self.installed = Some(mark);
            }
            for entry in effects.committed.drain(..) {
                if entry.kind != EntryKind::Normal {
                    self.log.node.apply_conf_change(entry.kind, &entry.data).expect("applied");
                }
                self.applied.push(entry);
            }
            if let Some(last) = self.applied.last() {
                self.log.node.on_applied(last.index);
            }
            out.extend(effects.messages.drain(..));
            for read in effects.reads.drain(..) {
                self.reads.push((read.ticket, read.index.0));
            }
            for fetch in effects.fetches.drain(..) {
                let entries = self.log.writer.plan(&fetch).map_or(Vec::new(), |plan| {
                    let len = plan.len_bytes;
                    let bytes = self.disk.read_at(&plan.name, plan.offset_bytes, len);
                    plan.decode(&bytes.unwrap_or_default())
                });
                assert!(!entries.is_empty(), "{fetch:?}");
                self.fetched += entries.len() as u64;
                self.log.node.on_fetched(fetch.id, entries);
            }
        }
        if sync {
            self.log.drive(&mut self.disk).expect("driven");
        } else if let Some(op) = self.log.writer.next_background_op() {
            let result = run(&mut self.disk, op);
            self.log.writer.background_done(result);
        }
    }

    fn leads(&self) -> bool {
        self.log.node.status().soft_state.role == Role::Leader
    }
}

struct Cluster {
    members: Vec<Member>,
    network: VecDeque<raftpb::Message>,
    prng: Prng,
    /// The longest applied sequence seen anywhere.
    model: Vec<LogEntry>,
    /// Nothing reaches this member.
    isolated: Option<u64>,
}

impl Cluster {
    fn new(count: u64, seed: u64) -> Self {
        let peers: Vec<Peer> =
            (1..=count).map(|id| Peer { id, context: Bytes::from_static(b"{}") }).collect();
        let (entries, hard_state) = bootstrap(&peers);
        let members = (1..=count)
            .map(|id| {
                let mut disk = MemDisk::new();
                let metadata = raftpb::Metadata { node_id: Some(id), cluster_id: Some(1) };
                let segment_bytes = SEGMENT_BYTES;
                let log = NewLog { metadata, entries: &entries, hard_state, segment_bytes };
                wal::create(&mut disk, DIR, log).expect("created");
                Member::open(id, 0, disk)
            })
            .collect();
        let prng = Prng::new(seed);
        Self { members, network: VecDeque::new(), prng, model: Vec::new(), isolated: None }
    }

    /// Everybody takes a turn; messages travel with the given chance of loss in a thousand.
    fn step(&mut self, loss: u64) {
        for member in &mut self.members {
            if self.prng.chance(1, 4) {
                member.log.node.tick();
            }
            let sync = self.prng.chance(1, 2);
            member.turn(&mut self.network, &self.model, sync);
        }
        for _ in 0..self.network.len() {
            let Some(message) = self.network.pop_front() else { break };
            if self.prng.chance(loss, 1000) || self.isolated == message.to {
                continue;
            }
            if self.prng.chance(1, 5) {
                self.network.push_back(message);
                continue;
            }
            let to = message.to.expect("a receiver");
            // Dropped proposals and answers to an earlier life are part of the game.
            let _ = self.members[to as usize - 1].log.node.step(message);
        }
        self.check();
    }

    fn crash(&mut self, at: usize) {
        let seed = self.prng.next_u64();
        let old = &mut self.members[at];
        // The power goes while a write is under way.
        if let Some(FileOp::Write { file, offset_bytes, data, .. }) = old.log.next_op() {
            let op = FileOp::Write { file, offset_bytes, data, durable: false };
            run(&mut old.disk, op).expect("written");
        }
        let disk = old.disk.crash(seed);
        self.members[at] = Member::open(old.id, old.boots + 1, disk);
    }

    fn leader(&self) -> Option<usize> {
        let newest = |at: &usize| self.members[*at].log.node.status().soft_state.term;
        (0..self.members.len()).filter(|at| self.members[*at].leads()).max_by_key(newest)
    }

    fn propose(&mut self, data: Bytes) {
        if let Some(at) = self.leader() {
            let node = &mut self.members[at].log.node;
            if let Ok(proposed) = node.propose([data].into_iter()) {
                assert!(matches!(proposed, Proposed::Appended { count: 1, .. }));
            }
        }
    }

    fn check(&mut self) {
        for member in &self.members {
            for (found, expected) in member.applied.iter().zip(&self.model) {
                assert_eq!(found, expected, "member {}", member.id);
            }
            if member.applied.len() > self.model.len() {
                self.model.extend_from_slice(&member.applied[self.model.len()..]);
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..400 {
            self.step(0);
        }
        for member in &self.members {
            assert_eq!(member.applied.len(), self.model.len(), "member {}", member.id);
        }
    }
}

#[test]
fn three_members_elect_a_leader_and_apply_the_same() {
    let mut cluster = Cluster::new(3, 1);
    cluster.settle();
    assert!(cluster.leader().is_some());
    for n in 0..50u8 {
        cluster.propose(Bytes::from(vec![n + 1; 100]));
        cluster.step(0);
    }
    cluster.settle();
    let normal = cluster.model.iter().filter(|entry| entry.data.len() == 100).count();
    assert_eq!(normal, 50);
}

#[test]
fn reads_on_every_member_see_what_was_applied_before_them() {
    let mut cluster = Cluster::new(3, 2);
    cluster.settle();
    for ticket in 0..60 {
        cluster.propose(Bytes::from(vec![1; 10]));
        cluster.step(20);
        let floor = cluster.model.len() as u64;
        let at = ticket as usize % 3;
        assert!(cluster.members[at].log.node.read_index(ticket << 32 | floor));
        cluster.step(20);
    }
    cluster.settle();
    let mut answered = 0;
    for member in &cluster.members {
        for (ticket, index) in &member.reads {
            assert!(*index >= ticket & 0xffff_ffff, "{ticket:x} {index}");
            answered += 1;
        }
    }
    assert_eq!(answered, 60);
}

#[test]
fn losses_crashes_and_torn_writes_lose_and_reorder_nothing() {
    let seeds = if crate::common::long() { 400 } else { 16 };
    let mut fetched = 0;
    for seed in 0..seeds {
        let mut cluster = Cluster::new([3, 3, 1, 5][seed as usize % 4], seed);
        for round in 0..600u64 {
            if round % 3 == 0 {
                cluster.propose(Bytes::from(vec![round as u8; 1 + (round % 700) as usize]));
            }
            cluster.step(100);
            if cluster.prng.chance(1, 60) {
                let at = cluster.prng.index(cluster.members.len());
                cluster.crash(at);
            }
            if cluster.prng.chance(1, 100)
                && let Some(at) = cluster.leader()
            {
                let to = cluster.prng.index(cluster.members.len()) as u64 + 1;
                cluster.members[at].log.node.transfer_leader(to);
            }
        }
        cluster.settle();
        assert!(cluster.model.len() > 20, "seed {seed}: {} entries", cluster.model.len());
        fetched += cluster.members.iter().map(|member| member.fetched).sum::<u64>();
    }
    assert!(fetched > 0, "nobody was far behind");
}

#[test]
fn a_run_is_the_same_for_the_same_seed() {
    let run = |seed| {
        let mut cluster = Cluster::new(3, seed);
        for round in 0..300u64 {
            cluster.propose(Bytes::from(vec![round as u8; 20]));
            cluster.step(100);
        }
        cluster.model
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5).len(), 0);
}

#[test]
fn a_removed_leader_steps_down_and_the_rest_go_on() {
    let mut cluster = Cluster::new(3, 3);
    cluster.settle();
    let at = cluster.leader().expect("a leader");
    let change = raftpb::ConfChange {
        r#type: Some(raftpb::ConfChangeType::ConfChangeRemoveNode as i32),
        node_id: Some(at as u64 + 1),
        ..Default::default()
    };
    cluster.members[at].log.node.propose_conf_change(&change).expect("proposed");
    for _ in 0..400 {
        cluster.step(0);
    }
    assert!(!cluster.members[at].leads());
    let leader = cluster.leader().expect("another leader");
    assert_ne!(leader, at);
    assert_eq!(cluster.members[leader].log.node.conf_state().voters.len(), 2);
    let before = cluster.model.len();
    cluster.propose(Bytes::from_static(b"on"));
    for _ in 0..100 {
        cluster.step(0);
    }
    assert!(cluster.model.len() > before);
    assert_eq!(
        LogIndex(cluster.model.len() as u64),
        cluster.members[leader].log.node.status().commit
    );
}

#[test]
fn a_member_too_far_behind_gets_a_snapshot_and_opens_behind_it() {
    let mut cluster = Cluster::new(3, 4);
    cluster.settle();
    let slow = (cluster.leader().expect("a leader") + 1) % 3;
    cluster.isolated = Some(slow as u64 + 1);
    for n in 0..300u64 {
        cluster.propose(Bytes::from(vec![n as u8; 1000]));
        cluster.step(0);
    }
    cluster.isolated = None;
    for at in (0..3).filter(|at| *at != slow) {
        let member = &mut cluster.members[at];
        let mark = member.mark();
        member.log.mark(&mark).expect("marked");
        member.log.drive(&mut member.disk).expect("driven");
        member.log.release(mark.index);
        assert!(member.log.node.status().base.0 > 100, "{:?}", member.log.node.status());
    }
    cluster.settle();
    let member = &cluster.members[slow];
    let mark = member.installed.clone().expect("a snapshot");
    assert!(mark.index.0 > 100);
    let (id, disk) = (member.id, member.disk.crash(0));
    let conf_state = mark.conf_state.clone().expect("a configuration");
    let applied = Applied { index: mark.index, term: mark.term, conf_state };
    let mut again = Member::open_with(id, 9, disk, applied);
    again.applied = cluster.model[..mark.index.0 as usize].to_vec();
    cluster.members[slow] = again;
    cluster.propose(Bytes::from_static(b"on"));
    cluster.settle();
    assert!(cluster.model.len() > 300);
}

#[test]
fn a_member_that_installs_a_snapshot_is_not_made_the_leader() {
    let mut cluster = Cluster::new(3, 5);
    cluster.settle();
    let leader = cluster.leader().expect("a leader");
    let slow = (leader + 1) % 3;
    cluster.isolated = Some(slow as u64 + 1);
    for n in 0..300u64 {
        cluster.propose(Bytes::from(vec![n as u8; 1000]));
        cluster.step(0);
    }
    cluster.isolated = None;
    let member = &mut cluster.members[leader];
    let mark = member.mark();
    let term = member.log.node.status().soft_state.term.0;
    let snapshot = raftpb::Snapshot {
        data: None,
        metadata: Some(raftpb::SnapshotMetadata {
            conf_state: mark.conf_state.clone(),
            index: Some(mark.index.0),
            term: Some(mark.term.0),
        }),
    };
    let message = |kind: raftpb::MessageType| raftpb::Message {
        r#type: Some(kind as i32),
        from: Some(leader as u64 + 1),
        to: Some(slow as u64 + 1),
        term: Some(term),
        ..raftpb::Message::default()
    };
    let Member { log, disk, .. } = &mut cluster.members[slow];
    let snap = message(raftpb::MessageType::MsgSnap);
    log.node.step(raftpb::Message { snapshot: Some(snapshot), ..snap }).expect("taken");
    let mut effects = Effects::default();
    while log.turn(&mut effects).expect("staged") {}
    log.drive(disk).expect("written");
    // It is on its disk, and not applied yet.
    log.node.step(message(raftpb::MessageType::MsgTimeoutNow)).expect("ignored");
    for _ in 0..100 {
        log.node.tick();
        while log.turn(&mut effects).expect("staged") {}
    }
    assert!(!cluster.members[slow].leads());
}
