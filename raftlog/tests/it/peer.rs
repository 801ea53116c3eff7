//! Transports connected by a network in memory: bytes that come late, in pieces, or not at all.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use etcore_engine::testing::prng::Prng;
use etcore_proto::raftpb::{Entry, Message, MessageType};
use etcore_raftlog::limits;
use etcore_raftlog::peer::{
    ConnId, Effect, End, Event, Lane, Local, PeerReport, PeerRequest, PeerResponse, Refusal,
    RequestError, Settings, StreamKind, Transport, fuzz,
};

const CLUSTER: u64 = 0xcdf8;

/// One end of a connection.
type Place = (usize, ConnId);

/// Members 1, 2, … and the connections between them.
struct Net {
    members: Vec<Member>,
    /// Bytes on their way, by receiving end. `None`: the other side has closed.
    wires: BTreeMap<Place, VecDeque<Option<Vec<u8>>>>,
    other_end: BTreeMap<Place, Place>,
    now_ms: u64,
    random: Prng,
    /// Bytes from the first to the second stay where they are.
    stalled: Vec<(usize, usize)>,
    /// Nobody answers here.
    down: Vec<usize>,
}

struct Member {
    transport: Transport,
    received: Vec<Message>,
    reports: Vec<PeerReport>,
    events: Vec<Event>,
    /// Questions for this path get no answer.
    silent_about: &'static str,
}

fn local(id: u64) -> Local {
    Local {
        member_id: id,
        cluster_id: CLUSTER,
        peer_urls: vec![url(id)],
        version: "3.7.1",
        min_cluster_version: "3.0.0",
    }
}

fn url(id: u64) -> String {
    format!("http://member:{id}")
}

impl Net {
    fn new(count: u64, seed: u64) -> Self {
        Self::with(count, seed, |local| Settings::new(local, 2000))
    }

    fn with(count: u64, seed: u64, settings: impl Fn(Local) -> Settings) -> Self {
        let members = (1..=count).map(|id| Member::with(settings(local(id)))).collect();
        let mut net = Self {
            members,
            wires: BTreeMap::new(),
            other_end: BTreeMap::new(),
            now_ms: 1000,
            random: Prng::new(seed),
            stalled: Vec::new(),
            down: Vec::new(),
        };
        net.introduce(count);
        net
    }

    fn introduce(&mut self, count: u64) {
        let urls: Vec<(u64, Vec<String>)> = (1..=count).map(|id| (id, vec![url(id)])).collect();
        for member in &mut self.members {
            member.transport.begin(self.now_ms);
            member.transport.set_members(urls.iter().map(|(id, urls)| (*id, urls.as_slice())));
        }
    }

    /// Lets `ms` milliseconds pass.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(10) {
            self.now_ms += 10;
            for at in 0..self.members.len() {
                self.members[at].transport.begin(self.now_ms);
                self.members[at].transport.tick();
            }
            for _ in 0..6 {
                self.effects();
                self.carry();
            }
            for member in &mut self.members {
                member.collect();
            }
        }
    }

    fn effects(&mut self) {
        for at in 0..self.members.len() {
            while let Some(effect) = self.members[at].transport.next_effect() {
                match effect {
                    Effect::Connect { conn, url } => self.connect(at, conn, &url),
                    Effect::Close(conn) => self.close((at, conn)),
                }
            }
        }
    }

    fn connect(&mut self, at: usize, conn: ConnId, url: &str) {
        let to: usize = url.rsplit(':').next().unwrap().parse().unwrap();
        let to = to - 1;
        let is_down = self.down.contains(&to) || self.down.contains(&at);
        let reached = !is_down && to < self.members.len();
        let accepted =
            reached.then(|| self.members[to].transport.accepted()).flatten().map(|id| (to, id));
        let Some(theirs) = accepted else {
            let refused = Err("connection refused".to_owned());
            return self.members[at].transport.connected(conn, refused);
        };
        self.other_end.insert((at, conn), theirs);
        self.other_end.insert(theirs, (at, conn));
        self.members[at].transport.connected(conn, Ok(()));
    }

    fn close(&mut self, place: Place) {
        self.wires.remove(&place);
        if let Some(theirs) = self.other_end.remove(&place) {
            self.wires.entry(theirs).or_default().push_back(None);
        }
    }

    /// Takes what members send, and delivers some of what is on its way.
    fn carry(&mut self) {
        for at in 0..self.members.len() {
            let mut ended = Vec::new();
            while let Some(conn) = self.members[at].transport.next_dirty() {
                let Some(&theirs) = self.other_end.get(&(at, conn)) else { continue };
                if self.stalled.contains(&(at, theirs.0)) && self.wires.contains_key(&theirs) {
                    // The kernel's buffer is full: the send does not end.
                    continue;
                }
                let mut out = Vec::new();
                self.members[at].transport.transmit(conn, &mut out);
                if out.is_empty() {
                    continue;
                }
                self.wires.entry(theirs).or_default().push_back(Some(out));
                if !self.stalled.contains(&(at, theirs.0)) {
                    ended.push(conn);
                }
            }
            ended.into_iter().for_each(|conn| self.members[at].transport.sent(conn));
        }
        let places: Vec<Place> = self.wires.keys().copied().collect();
        for place in places {
            let from = self.other_end.get(&place).map(|theirs| theirs.0);
            if from.is_some_and(|from| self.stalled.contains(&(from, place.0))) {
                continue;
            }
            self.deliver(place);
        }
    }

    fn deliver(&mut self, place: Place) {
        while let Some(piece) = self.wires.get_mut(&place).and_then(VecDeque::pop_front) {
            let transport = &mut self.members[place.0].transport;
            let Some(mut bytes) = piece else {
                self.other_end.remove(&place);
                transport.closed(place.1, None);
                continue;
            };
            if !transport.wants_read(place.1) {
                self.wires.get_mut(&place).unwrap().push_front(Some(bytes));
                return;
            }
            let cut = 1 + self.random.index(bytes.len());
            let rest = bytes.split_off(cut);
            transport.received(place.1, &bytes);
            if !rest.is_empty() {
                self.wires.entry(place).or_default().push_front(Some(rest));
            }
        }
        self.wires.remove(&place);
    }

    /// Breaks every connection, as a network that comes and goes does.
    fn break_all(&mut self) {
        for place in std::mem::take(&mut self.other_end).into_keys() {
            self.wires.remove(&place);
            let reset = Some("connection reset by peer".to_owned());
            self.members[place.0].transport.closed(place.1, reset);
        }
    }

    fn send(&mut self, from: u64, message: Message) {
        self.members[from as usize - 1].transport.send(&mut vec![message]);
    }

    fn member(&mut self, id: u64) -> &mut Member {
        &mut self.members[id as usize - 1]
    }
}

impl Member {
    fn new(local: Local) -> Self {
        Self::with(Settings::new(local, 2000))
    }

    fn with(settings: Settings) -> Self {
        Self {
            transport: Transport::new(settings),
            received: Vec::new(),
            reports: Vec::new(),
            events: Vec::new(),
            silent_about: "none",
        }
    }

    fn collect(&mut self) {
        while let Some(message) = self.transport.next_received() {
            self.received.push(message);
        }
        self.transport.take_reports(&mut self.reports);
        while let Some(event) = self.transport.next_event() {
            self.events.push(event);
        }
        while let Some(asked) = self.transport.next_request() {
            if asked.target == self.silent_about {
                continue;
            }
            if asked.target == "/large" {
                self.transport.answer(asked.conn, 200, &[], &vec![7; 5 << 20]);
                continue;
            }
            let body = [asked.target.as_bytes(), b" ", &asked.body].concat();
            self.transport.answer(asked.conn, 200, &[], &body);
        }
    }

    fn has_streams_with(&self, peer: u64) -> bool {
        [StreamKind::Message, StreamKind::Append].into_iter().all(|kind| {
            [End::Reader, End::Writer]
                .into_iter()
                .all(|end| self.events.contains(&Event::Established { peer, kind, end }))
        })
    }
}

fn message(kind: MessageType, from: u64, to: u64, index: u64) -> Message {
    Message {
        r#type: Some(kind as i32),
        from: Some(from),
        to: Some(to),
        term: Some(5),
        log_term: Some(5),
        index: Some(index),
        ..Message::default()
    }
}

fn append(from: u64, to: u64, index: u64, bytes: usize) -> Message {
    let data = Some(Bytes::from(vec![7; bytes]));
    let entry = Entry { r#type: Some(0), term: Some(5), index: Some(index + 1), data };
    Message {
        entries: vec![entry],
        commit: Some(0),
        ..message(MessageType::MsgApp, from, to, index)
    }
}

#[test]
fn streams_come_up_both_ways_and_carry_everything_in_order() {
    let mut net = Net::new(3, 1);
    net.run(300);
    for (id, peer) in [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)] {
        assert!(net.member(id).has_streams_with(peer), "{:?}", net.member(id).events);
        assert!(net.member(id).reports.contains(&PeerReport::Active(peer)));
    }
    for index in 0..500 {
        net.send(1, append(1, 2, index, 300));
        net.send(1, message(MessageType::MsgHeartbeat, 1, 3, index));
        net.send(2, message(MessageType::MsgAppResp, 2, 1, index));
    }
    net.run(500);
    let got: Vec<_> = net.member(2).received.iter().map(|m| m.index.unwrap()).collect();
    assert_eq!(got, (0..500).collect::<Vec<_>>());
    assert_eq!(net.member(2).received[499].entries[0].data.as_ref().unwrap().len(), 300);
    assert_eq!(net.member(3).received.len(), 500);
    assert_eq!(net.member(1).received.len(), 500);
    let (peer, counters) = net.member(1).transport.counters().next().unwrap();
    assert_eq!(peer, 2);
    assert!(counters.sent_bytes > 150_000 && counters.received_bytes > 500, "{counters:?}");
    // An idle hour: nothing breaks, and probes are answered.
    net.run(60_000);
    assert!(!net.member(1).events.iter().any(|event| matches!(event, Event::Lost { .. })));
    let probed = |event: &&Event| matches!(event, Event::ProbeEnded { answer: Ok(_), .. });
    assert!(net.member(1).events.iter().filter(probed).count() >= 20);
}

#[test]
fn before_a_stream_is_up_a_vote_is_posted() {
    let mut net = Net::new(2, 2);
    net.send(1, message(MessageType::MsgPreVote, 1, 2, 9));
    net.run(20);
    assert_eq!(net.member(2).received, [message(MessageType::MsgPreVote, 1, 2, 9)]);
}

#[test]
fn what_leadership_depends_on_is_posted_however_much_else_waits() {
    let mut net = Net::new(2, 2);
    let waiting = limits::PEER_PIPELINE_MESSAGES as u64;
    for index in 0..2 * waiting {
        net.send(1, append(1, 2, index, 100));
    }
    for index in 0..4 * waiting {
        net.send(1, Message { commit: Some(index), ..message(MessageType::MsgHeartbeat, 1, 2, 0) });
    }
    net.send(1, message(MessageType::MsgReadIndexResp, 1, 2, 9));
    net.run(500);
    let got: Vec<_> = std::mem::take(&mut net.member(2).received);
    let of = |kind: MessageType| got.iter().filter(move |m| m.r#type == Some(kind as i32));
    // The newest heartbeat says all that those before it did.
    let commits: Vec<_> = of(MessageType::MsgHeartbeat).filter_map(|m| m.commit).collect();
    assert_eq!(commits, [4 * waiting - 1]);
    assert_eq!(of(MessageType::MsgReadIndexResp).count(), 1);
    let appends: Vec<_> = of(MessageType::MsgApp).filter_map(|m| m.index).collect();
    assert_eq!(appends, (0..appends.len() as u64).collect::<Vec<_>>(), "the oldest, in order");
    assert_eq!(appends.len() as u64, waiting - 2, "two made room");
    let place = |kind: MessageType| got.iter().position(|m| m.r#type == Some(kind as i32));
    assert!(place(MessageType::MsgReadIndexResp) < place(MessageType::MsgApp));
    let (_, counters) = net.member(1).transport.counters().next().unwrap();
    assert_eq!(counters.sent_failures, waiting + 2, "dropped ones are counted");
}

#[test]
fn broken_links_come_back_by_themselves_and_the_loss_is_reported() {
    let mut net = Net::new(3, 3);
    net.run(300);
    for round in 0..20 {
        for index in 0..50 {
            net.send(1, append(1, 2, 1000 * round + index, 5000));
        }
        net.members[0].reports.clear();
        net.break_all();
        net.run(10);
        assert!(net.member(1).reports.contains(&PeerReport::Unreachable(2)));
        assert!(net.member(1).reports.contains(&PeerReport::Inactive(2)));
        net.run(400);
        net.member(2).received.clear();
        net.send(1, append(1, 2, 1000 * round + 999, 10));
        net.run(50);
        let got = &net.member(2).received;
        assert_eq!(got.last().and_then(|m| m.index), Some(1000 * round + 999), "round {round}");
    }
}

#[test]
fn a_snapshots_name_that_may_be_lost_is_reported_so_that_raft_does_not_wait_for_ever() {
    let mut net = Net::new(2, 14);
    let failed = PeerReport::SnapshotSent { to: 2, ok: false };
    net.run(300);
    net.send(1, message(MessageType::MsgSnap, 1, 2, 9));
    net.run(100);
    assert_eq!(net.member(2).received, [message(MessageType::MsgSnap, 1, 2, 9)]);
    assert!(!net.member(1).reports.contains(&failed));
    net.break_all();
    net.run(10);
    assert!(net.member(1).reports.contains(&failed));
    // No stream, and nobody there.
    net.run(500);
    net.down = vec![1];
    net.break_all();
    net.members[0].reports.clear();
    net.send(1, message(MessageType::MsgSnap, 1, 2, 9));
    net.run(500);
    assert!(net.member(1).reports.contains(&failed));
    // Nothing was named since.
    net.down.clear();
    net.run(1500);
    net.members[0].reports.clear();
    net.break_all();
    net.run(10);
    assert!(!net.member(1).reports.contains(&failed));
}

#[test]
fn a_dead_peer_costs_the_others_nothing_and_is_back_soon_after_its_return() {
    let mut net = Net::new(3, 4);
    net.down = vec![2];
    net.run(5000);
    assert!(net.member(1).has_streams_with(2));
    for index in 0..10_000 {
        net.send(1, append(1, 2, index, 100));
        net.send(1, append(1, 3, index, 100));
        if index % 100 == 0 {
            net.run(10);
        }
    }
    net.run(100);
    assert_eq!(net.member(2).received.len(), 10_000);
    assert!(net.member(1).reports.contains(&PeerReport::Unreachable(3)));
    net.down.clear();
    net.run(1200);
    assert!(net.member(1).has_streams_with(3));
    net.member(3).received.clear();
    net.send(1, append(1, 3, 1, 100));
    net.run(50);
    assert_eq!(net.member(3).received.len(), 1);
}

#[test]
fn a_slow_peer_fills_its_own_queue_only_and_heartbeats_pass_what_waits() {
    let mut net = Net::new(3, 5);
    net.run(300);
    net.stalled = vec![(0, 1)];
    let each = 1 << 20;
    let fit = limits::PEER_QUEUE_BYTES / each;
    for index in 0..2 * fit as u64 {
        net.send(1, append(1, 2, index, each));
        net.send(1, append(1, 3, index, each));
        net.run(10);
    }
    net.run(100);
    assert_eq!(net.member(3).received.len(), 2 * fit);
    let dropped = |event: &&Event| matches!(event, Event::Dropped { peer: 2, .. });
    assert!(net.member(1).events.iter().any(|event| dropped(&event)));
    let (_, counters) = net.member(1).transport.counters().next().unwrap();
    let drops = counters.sent_failures as usize;
    assert!((fit / 2..=fit + 2).contains(&drops), "{drops} dropped of {}", 2 * fit);
    assert!(net.member(1).reports.contains(&PeerReport::Unreachable(2)));
    // Forwarded proposals wait in the stream that heartbeats use.
    for _ in 0..100 {
        let mut bulk = append(1, 2, 0, 50_000);
        bulk.r#type = Some(MessageType::MsgProp as i32);
        net.send(1, bulk);
    }
    net.send(1, message(MessageType::MsgHeartbeat, 1, 2, 77));
    net.member(2).received.clear();
    net.stalled.clear();
    // The sends that hung have ended.
    let ends: Vec<Place> = net.other_end.keys().copied().filter(|end| end.0 == 0).collect();
    ends.into_iter().for_each(|(at, conn)| net.members[at].transport.sent(conn));
    net.run(500);
    let kinds: Vec<i32> = net.member(2).received.iter().filter_map(|m| m.r#type).collect();
    let first = |kind: MessageType| kinds.iter().position(|k| *k == kind as i32).unwrap();
    assert!(first(MessageType::MsgHeartbeat) < first(MessageType::MsgProp));
    assert_eq!(kinds.iter().filter(|k| **k == MessageType::MsgProp as i32).count(), 100);
}

#[test]
fn a_peer_that_takes_nothing_for_five_seconds_is_given_up() {
    let mut net = Net::new(2, 6);
    net.run(300);
    net.stalled = vec![(0, 1), (1, 0)];
    for index in 0..20 {
        net.send(1, append(1, 2, index, 1 << 20));
    }
    net.run(5500);
    let lost = |event: &Event| matches!(event, Event::Lost { peer: 2, error, .. } if error == "i/o timeout");
    assert!(net.member(1).events.iter().any(lost), "{:?}", net.member(1).events);
    assert!(net.member(1).reports.contains(&PeerReport::Inactive(2)));
    // The other side has heard nothing either.
    assert!(net.member(2).events.iter().any(|event| matches!(event, Event::Lost { .. })));
}

#[test]
fn a_link_may_be_silent_for_as_long_as_it_was_allowed() {
    let is_lost = |net: &Net, error: &str| {
        let events = net.members.iter().flat_map(|member| &member.events);
        let mut lost = events.filter_map(|event| match event {
            Event::Lost { error, .. } => Some(error),
            _ => None,
        });
        lost.any(|lost| lost == error)
    };
    let mut net = Net::with(2, 6, |local| Settings {
        read_timeout_ms: 9000,
        // Raised to five seconds.
        write_timeout_ms: 10,
        ..Settings::new(local, 2000)
    });
    net.run(300);
    // Nothing to say but beats, which do not get through.
    net.stalled = vec![(0, 1), (1, 0)];
    net.run(4500);
    assert!(!is_lost(&net, "i/o timeout"), "a beat that is stuck has five seconds");
    let mut net = Net::with(2, 6, |local| Settings {
        read_timeout_ms: 9000,
        write_timeout_ms: 20_000,
        ..Settings::new(local, 2000)
    });
    net.run(300);
    net.stalled = vec![(0, 1), (1, 0)];
    net.run(7500);
    assert!(!is_lost(&net, "i/o timeout"));
    net.run(2500);
    assert!(is_lost(&net, "i/o timeout"));
}

#[test]
fn nothing_is_read_while_the_replica_takes_nothing() {
    let mut net = Net::new(2, 7);
    net.run(300);
    for index in 0..3 * limits::PEER_RECEIVED_MESSAGES as u64 {
        net.send(1, append(1, 2, index, 10));
        if index % 1000 == 0 {
            net.members[0].transport.begin(net.now_ms);
            net.effects();
            net.carry();
        }
    }
    for _ in 0..100 {
        net.carry();
    }
    let is_congested = net.members[1].transport.is_congested();
    assert!(is_congested, "the bound is reached");
    let mut taken = 0;
    while net.members[1].transport.next_received().is_some() {
        taken += 1;
    }
    assert!(taken < 2 * limits::PEER_RECEIVED_MESSAGES, "{taken} were held");
    net.run(200);
    assert_eq!(taken + net.member(2).received.len(), 3 * limits::PEER_RECEIVED_MESSAGES);
}

#[test]
fn strangers_and_misfits_are_refused_as_etcd_refuses_them() {
    let check = |change: fn(&mut Local), refusal: Refusal| {
        let mut net = Net::new(2, 8);
        let mut other = local(2);
        change(&mut other);
        net.members[1] = Member::new(other);
        net.introduce(2);
        net.run(300);
        let refused = Event::RefusedByPeer { peer: 1, refusal };
        assert!(net.member(2).events.contains(&refused), "{:?}", net.member(2).events);
        let established =
            |event: &Event| matches!(event, Event::Established { end: End::Reader, .. });
        assert!(!net.member(2).events.iter().any(established));
    };
    check(|local| local.cluster_id = 1, Refusal::Cluster);
    check(|local| local.version = "2.3.8", Refusal::Version);
    check(|local| local.min_cluster_version = "3.8.0", Refusal::Version);
    check(|local| local.member_id = 77, Refusal::Unknown);
}

#[test]
fn a_removed_member_is_told_so() {
    let mut net = Net::new(3, 9);
    net.run(300);
    let urls: Vec<(u64, Vec<String>)> = (1..=2).map(|id| (id, vec![url(id)])).collect();
    for id in [1, 2] {
        let members = urls.iter().map(|(id, urls)| (*id, urls.as_slice()));
        net.member(id).transport.set_members(members);
    }
    // It has a moment to hear of it over the links that it has, and says nothing more on them.
    net.member(1).received.clear();
    net.send(3, message(MessageType::MsgVote, 3, 1, 9));
    net.run(300);
    assert_eq!(net.member(1).received, []);
    net.run(700);
    assert!(net.member(1).events.contains(&Event::Removed { peer: 3 }));
    assert!(net.member(3).reports.contains(&PeerReport::Removed));
    net.member(1).received.clear();
    net.send(3, message(MessageType::MsgVote, 3, 1, 9));
    net.run(300);
    assert_eq!(net.member(1).received, []);
}

#[test]
fn a_sender_that_is_not_known_yet_is_answered_at_the_address_it_gives() {
    let mut net = Net::new(2, 10);
    net.members.push(Member::new(local(3)));
    let urls = [(1, vec![url(1)])];
    let third = &mut net.members[2].transport;
    third.begin(1000);
    third.set_members(urls.iter().map(|(id, urls)| (*id, urls.as_slice())));
    net.run(300);
    assert!(net.member(1).events.contains(&Event::AddedRemote { peer: 3 }));
    net.send(1, message(MessageType::MsgAppResp, 1, 3, 4));
    net.run(100);
    assert_eq!(net.member(3).received, [message(MessageType::MsgAppResp, 1, 3, 4)]);
}

#[test]
fn questions_are_answered_or_fail_in_time() {
    let mut net = Net::new(2, 11);
    let ask = |to, token, timeout_ms| PeerRequest {
        to,
        lane: Lane::Questions,
        method: "POST",
        target: "/leases/internal".to_owned(),
        content_type: "application/protobuf",
        body: Bytes::from_static(b"what"),
        timeout_ms,
        token,
    };
    net.run(100);
    for token in 0..100 {
        net.members[0].transport.request(ask(2, token, 5000));
    }
    net.members[0].transport.request(ask(9, 100, 1000));
    net.run(2000);
    let body = Bytes::from_static(b"/leases/internal what");
    for token in 0..100 {
        let answer = Ok(PeerResponse { status: 200, body: body.clone() });
        assert!(net.member(1).reports.contains(&PeerReport::Answered { token, answer }), "{token}");
    }
    let unknown = PeerReport::Answered { token: 100, answer: Err(RequestError::Unreachable) };
    assert!(net.member(1).reports.contains(&unknown));
    // As large as the keys of a lease with many of them.
    net.members[0]
        .transport
        .request(PeerRequest { target: "/large".to_owned(), ..ask(2, 102, 5000) });
    net.run(3000);
    let large = net.member(1).reports.iter().find_map(|report| match report {
        PeerReport::Answered { token: 102, answer } => answer.as_ref().ok(),
        _ => None,
    });
    assert_eq!(large.map(|answer| answer.body.len()), Some(5 << 20));
    net.stalled = vec![(1, 0)];
    net.members[0].transport.request(ask(2, 101, 700));
    net.run(900);
    let late = PeerReport::Answered { token: 101, answer: Err(RequestError::TimedOut) };
    assert!(net.member(1).reports.contains(&late), "{:?}", net.member(1).reports.last());
}

#[test]
fn what_waits_for_answers_holds_up_nothing_of_another_kind() {
    let mut net = Net::new(2, 17);
    let ask = |lane, target: &str, token| PeerRequest {
        to: 2,
        lane,
        method: "GET",
        target: target.to_owned(),
        content_type: "",
        body: Bytes::new(),
        timeout_ms: 60_000,
        token,
    };
    net.run(300);
    net.member(2).silent_about = "/part";
    for token in 0..50 {
        net.members[0].transport.request(ask(Lane::Snapshots, "/part", token));
    }
    net.run(100);
    for token in 50..650 {
        net.members[0].transport.request(ask(Lane::Leases, "/leases", token));
    }
    net.members[0].transport.request(ask(Lane::Questions, "/version", 650));
    net.run(50);
    let answered = |report: &&PeerReport| matches!(report, PeerReport::Answered { .. });
    assert_eq!(net.member(1).reports.iter().filter(answered).count(), 601);
    net.run(9_000);
    let probed = |event: &&Event| matches!(event, Event::ProbeEnded { answer: Ok(_), .. });
    assert_eq!(net.member(1).events.iter().filter(probed).count(), 2);
    let lost = |event: &Event| matches!(event, Event::Lost { .. } | Event::Inactive { .. });
    assert!(!net.member(1).events.iter().any(lost));
}

#[test]
fn whatever_bytes_come_in_nothing_panics() {
    let mut random = Prng::new(12);
    let seeds: [&[u8]; 5] = [
        b"POST /raft HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nx-etcd-cluster-id: cdf8\r\n\
          x-server-version: 3.7.1\r\nx-min-cluster-version: 3.0.0\r\n\r\n\x08\x08\x10\x01",
        b"GET /raft/stream/msgapp/2 HTTP/1.1\r\nhost: a\r\nx-etcd-cluster-id: cdf8\r\n\
          x-server-version: 3.7.1\r\nx-min-cluster-version: 3.0.0\r\nx-raft-to: 1\r\n\r\n",
        b"GET /raft/probing HTTP/1.1\r\nhost: a\r\n\r\nGET /x HTTP/1.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-server-version: 3.7.1\r\n\r\n\
          0000000a\r\n\0\0\0\0\0\0\0\x02\x08\x08\r\n",
        b"HTTP/1.1 412 No\r\ncontent-length: 20\r\n\r\ncluster ID mismatch\n",
    ];
    let rounds = if std::env::var_os("ETCORE_LONG").is_some() { 300_000 } else { 3000 };
    for _ in 0..rounds {
        let mut input = vec![random.below(256) as u8];
        for _ in 0..=random.below(2) {
            input.extend_from_slice(seeds[random.index(seeds.len())]);
        }
        for _ in 0..random.below(4) {
            let at = random.index(input.len());
            input[at] ^= 1 << random.below(8);
        }
        for (_, entry) in fuzz::ENTRIES {
            entry(&input);
        }
    }
}

#[test]
fn strangers_that_open_connections_and_say_nothing_do_not_keep_members_out() {
    let mut net = Net::new(2, 13);
    net.down = vec![1];
    net.run(100);
    for _ in 0..3 * limits::PEER_CONNECTIONS {
        net.run(10);
        assert!(net.members[0].transport.accepted().is_some());
    }
    net.down.clear();
    net.run(1500);
    assert!(net.member(1).has_streams_with(2), "{:?}", net.member(1).events);
}

#[test]
fn a_proposal_that_was_posted_is_not_posted_again_when_its_connection_breaks() {
    let mut net = Net::new(2, 15);
    let mut came = 0;
    net.run(300);
    for round in 0..10 {
        // Without streams everything is posted, the second time on a connection that was idle.
        net.break_all();
        net.send(1, message(MessageType::MsgPreVote, 1, 2, round));
        for _ in 0..6 {
            net.effects();
            net.carry();
        }
        net.send(1, Message { entries: append(1, 2, round, 10).entries, ..proposal(round) });
        net.carry();
        // A send that has ended makes its connection look for more to send.
        while let Some(conn) = net.members[0].transport.next_dirty() {
            net.members[0].transport.transmit(conn, &mut Vec::new());
        }
        // It has arrived; the answer is lost.
        net.break_all();
        net.run(400);
        let got = std::mem::take(&mut net.member(2).received);
        let count = got.iter().filter(|m| m.r#type == Some(MessageType::MsgProp as i32)).count();
        assert!(count <= 1, "round {round}: it arrived {count} times");
        came += count;
    }
    assert!(came > 0, "some arrive");
}

fn proposal(index: u64) -> Message {
    message(MessageType::MsgProp, 1, 2, index)
}

#[test]
fn a_post_that_fails_after_its_peers_stream_came_up_does_not_call_the_peer_inactive() {
    let mut net = Net::new(2, 16);
    net.send(1, message(MessageType::MsgPreVote, 1, 2, 9));
    net.effects();
    // The first two that it dials are for its streams.
    let mut dialled = net.other_end.keys().filter(|(at, _)| *at == 0);
    let exchange = *dialled.nth(2).expect("a connection to post on");
    net.carry();
    // Its request, and whatever answers it, never arrive.
    let theirs = net.other_end.remove(&exchange).expect("an end");
    net.other_end.remove(&theirs);
    net.wires.retain(|place, _| *place != exchange && *place != theirs);
    net.run(300);
    assert!(net.member(1).has_streams_with(2), "{:?}", net.member(1).events);
    net.member(1).reports.clear();
    let reset = Some("connection reset by peer".to_owned());
    net.members[0].transport.closed(exchange.1, reset);
    net.run(300);
    assert!(!net.member(1).reports.contains(&PeerReport::Inactive(2)));
    assert!(net.member(1).transport.active().any(|peer| peer == 2));
}

#[test]
fn a_peer_that_ends_before_its_question_is_answered_is_not_kept_for_ever() {
    let mut member = Member::new(local(1));
    let transport = &mut member.transport;
    let closes = |transport: &mut Transport, id: ConnId| {
        let mut closed = false;
        while let Some(effect) = transport.next_effect() {
            closed |= matches!(effect, Effect::Close(other) if other == id);
        }
        closed
    };
    transport.begin(1_000);
    let id = transport.accepted().expect("there is room");
    transport.received(id, b"POST /leases HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
    assert!(transport.next_request().is_some());
    transport.closed(id, None);
    // It may still read the answer.
    transport.begin(5_900);
    transport.tick();
    assert!(!closes(transport, id));
    transport.begin(6_100);
    transport.tick();
    assert!(closes(transport, id), "nobody would tell that it is gone");
    transport.answer(id, 200, &[], b"too late");
}
