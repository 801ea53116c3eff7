//! The hub over a real store and scripted windows: against a simple reference, whatever the
//! interleaving of writes, publishing, stalls, compactions, page reads and time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use etcore_engine::checkpoint::Checkpointer;
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::{LeaseId, LogIndex, Revision, Term};
use etcore_engine::view::View;
use etcore_proto::error::Status;
use etcore_proto::grpc::{CallOptions, Client, ClientConfig, StreamId};
use etcore_proto::h2::Budget;
use etcore_proto::pb::{etcdserverpb as pb, mvccpb};
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;
use prost::Message;

use super::*;
use crate::replies::Gone;

/// Streams that take as much as the test lets them.
#[derive(Default)]
struct Peers {
    peers: BTreeMap<u32, Peer>,
    writable: Vec<CallId>,
}

#[derive(Default)]
struct Peer {
    window: usize,
    blocked: bool,
    /// Bytes sent beyond the window.
    buffered: usize,
    open_message: Option<(usize, Vec<u8>)>,
    messages: VecDeque<pb::WatchResponse>,
    ended: Option<Status>,
    held: bool,
}

impl Peers {
    fn peer(&mut self, call: CallId) -> &mut Peer {
        self.peers.entry(call.stream.id()).or_default()
    }

    fn open_window(&mut self, call: CallId, bytes: usize) {
        let peer = self.peer(call);
        let flushed = peer.buffered.min(bytes);
        peer.buffered -= flushed;
        peer.window += bytes - flushed;
        if peer.window > 0 && std::mem::take(&mut peer.blocked) {
            self.writable.push(call);
        }
    }
}

impl Peer {
    fn spend(&mut self, bytes: usize) {
        let now = self.window.min(bytes);
        self.window -= now;
        self.buffered += bytes - now;
    }
}

impl Streams for Peers {
    fn capacity(&mut self, call: CallId) -> Result<usize, Gone> {
        let peer = self.peer(call);
        let capacity = if peer.ended.is_some() { 0 } else { peer.window.min(64 << 10) };
        peer.blocked |= capacity == 0;
        Ok(capacity)
    }

    fn send(
        &mut self,
        call: CallId,
        length_bytes: usize,
        write: &mut dyn FnMut(&mut Vec<u8>),
    ) -> Result<(), Gone> {
        let peer = self.peer(call);
        if peer.ended.is_some() {
            return Err(Gone);
        }
        assert!(peer.open_message.is_none(), "into the middle of a message");
        let mut message = Vec::new();
        write(&mut message);
        assert_eq!(message.len(), length_bytes);
        peer.spend(message.len());
        assert!(peer.buffered <= 3 * limits::WATCH_BUFFERED_BYTES, "{} buffered", peer.buffered);
        peer.messages.push_back(pb::WatchResponse::decode(&message[..]).unwrap());
        Ok(())
    }

    fn start(&mut self, call: CallId, length_bytes: usize) -> Result<(), Gone> {
        let peer = self.peer(call);
        assert!(peer.open_message.is_none(), "into the middle of a message");
        peer.open_message = Some((length_bytes, Vec::new()));
        Ok(())
    }

    fn write(&mut self, call: CallId, piece: &[u8]) -> Result<(), Gone> {
        let peer = self.peer(call);
        peer.spend(piece.len());
        let (length, mut message) = peer.open_message.take().expect("a message was begun");
        message.extend_from_slice(piece);
        assert!(message.len() <= length, "{} of {length}", message.len());
        if message.len() == length {
            peer.messages.push_back(pb::WatchResponse::decode(&message[..]).unwrap());
        } else {
            peer.open_message = Some((length, message));
        }
        Ok(())
    }

    fn hold(&mut self, call: CallId, held: bool) {
        self.peer(call).held = held;
    }

    fn fail(&mut self, call: CallId, status: &Status) {
        self.peer(call).ended = Some(status.clone());
    }
}

/// What a watcher must be told, by the test's own reckoning.
struct Expected {
    key: Vec<u8>,
    end: Vec<u8>,
    filters: Vec<i32>,
    start: i64,
    prev_kv: bool,
    fragment: bool,
    /// The position in the log of events.
    at: usize,
    /// Its stream never stood still.
    keeps_up: bool,
    /// In the middle of a fragmented response.
    in_fragments: bool,
    cancelled: bool,
}

impl Expected {
    fn wants(&self, event: &mvccpb::Event) -> bool {
        let key = &event.kv.as_ref().unwrap().key[..];
        let inside = match &self.end[..] {
            b"" => key == &self.key[..],
            b"\0" => key >= &self.key[..],
            end => key >= &self.key[..] && key < end,
        };
        // NOPUT is 0 and PUT is 0, NODELETE is 1 and DELETE is 1.
        let begun = event.kv.as_ref().unwrap().mod_revision >= self.start;
        begun && inside && !self.filters.contains(&event.r#type)
    }
}

struct Rig {
    store: Store,
    checkpointer: Checkpointer,
    disk: MemDisk,
    pages: DiskPages,
    hub: Hub,
    peers: Peers,
    view: Arc<View>,
    now_ms: u64,
    calls: Vec<CallId>,
    /// Everything that ever happened, with previous values.
    log: Vec<mvccpb::Event>,
    /// What each watcher is to be told, by stream and watch ID.
    expected: BTreeMap<(u32, i64), Expected>,
    told_revision: BTreeMap<u32, i64>,
    /// Revisions in headers of responses with events.
    headers: Vec<i64>,
    events_checked: u64,
    resets: u64,
}

fn place_ids(count: usize) -> Vec<StreamId> {
    let budget = Budget::new(8 << 30, 8 << 30);
    let mut client = Client::new(ClientConfig::default(), &budget);
    let method = client.method("/x/y");
    let options = CallOptions::default();
    (0..count).map(|_| client.start_stream(method, &options).unwrap()).collect()
}

fn value_of(view: &View, pages: &mut DiskPages, key: &[u8]) -> Option<mvccpb::KeyValue> {
    let hits = view.range(key, b"", Revision(0), 0).unwrap();
    let hit = hits.hits().first()?;
    loop {
        if let etcore_engine::page::Fetch::Ready(bytes) = view.value(hit.modified, pages).unwrap() {
            return Some(mvccpb::KeyValue::decode(bytes).unwrap());
        }
    }
}

impl Rig {
    fn new(streams: usize, seed: u64) -> Self {
        let disk = MemDisk::new();
        let (mut store, checkpointer) =
            Store::open(&mut disk.clone(), EngineConfig::default()).unwrap();
        let view = store.publish();
        let turn_deliveries = if seed % 2 == 1 { 3 } else { limits::WATCH_TURN_DELIVERIES };
        let config = HubConfig {
            progress_interval_ms: 10_000,
            fragment_bytes: 2 << 20,
            turn_deliveries,
            seed,
        };
        let mut rig = Self {
            checkpointer,
            pages: DiskPages::slow(&disk, seed),
            disk,
            hub: Hub::new(config),
            peers: Peers::default(),
            view,
            store,
            now_ms: 1_000,
            calls: Vec::new(),
            log: Vec::new(),
            expected: BTreeMap::new(),
            told_revision: BTreeMap::new(),
            headers: Vec::new(),
            events_checked: 0,
            resets: 0,
        };
        for stream in place_ids(streams) {
            let call = CallId { conn: ConnId { slot: 3, generation: 1 }, stream };
            rig.calls.push(call);
            rig.hub.open(call, false, rig.now_ms);
            rig.peers.peer(call);
        }
        rig
    }

    fn with_hub(&mut self, call: impl FnOnce(&mut Hub, &mut Turn<'_>)) {
        let header = Header { cluster_id: 1, member_id: 2, revision: 0, raft_term: 3 };
        let view = self.view.clone();
        let mut turn = Turn {
            view: &view,
            pages: &mut self.pages,
            out: &mut self.peers,
            header,
            now_ms: self.now_ms,
        };
        call(&mut self.hub, &mut turn);
    }

    /// A transaction: `None` deletes.
    fn write(&mut self, changes: &[(Vec<u8>, Option<Vec<u8>>)]) {
        let before = self.store.publish();
        let mut txn = self.store.begin(LogIndex(self.store.applied().0.0 + 1), Term(1));
        let mut touched = Vec::new();
        for (key, value) in changes {
            let prev_kv = value_of(&before, &mut self.pages, key);
            match value {
                Some(value) => {
                    txn.put(key, value, LeaseId(0));
                    touched.push((key.clone(), false, prev_kv));
                }
                None if txn.delete(key).is_some() => touched.push((key.clone(), true, prev_kv)),
                None => {}
            }
        }
        let revision = txn.commit();
        // Only to look at; the hub sees its own view.
        let after = self.store.publish();
        for (key, tombstone, prev_kv) in touched {
            let kv = match tombstone {
                true => mvccpb::KeyValue {
                    key: key.into(),
                    mod_revision: revision.0,
                    ..Default::default()
                },
                false => value_of(&after, &mut self.pages, &key).unwrap(),
            };
            self.log.push(mvccpb::Event { r#type: i32::from(tombstone), kv: Some(kv), prev_kv });
        }
    }

    fn put(&mut self, key: &str, value: &str) {
        self.write(&[(key.into(), Some(value.into()))]);
    }

    fn checkpoint(&mut self) {
        self.store.maintain();
        self.checkpointer.start(self.store.freeze(self.now_ms).unwrap());
        let output = self.checkpointer.run(&mut self.disk).unwrap().unwrap();
        self.store.on_checkpoint(&output);
    }

    /// One turn of the front.
    fn turn(&mut self) {
        self.view = self.store.publish();
        for call in std::mem::take(&mut self.peers.writable) {
            self.hub.writable(call);
        }
        self.hub.pages_arrived();
        self.with_hub(Hub::run);
        self.with_hub(|hub, turn| {
            hub.tick(turn);
        });
        let (pins, view) = (self.store.revision_pins().clone(), self.view.clone());
        self.hub.hold(&pins, &view, self.now_ms);
        self.check();
    }

    /// Turns until nothing moves any more.
    fn settle(&mut self) {
        self.turn();
        for round in 0..100_000 {
            assert!(round < 99_999, "the hub never comes to rest");
            if !self.hub.has_work(self.view.revision) && self.peers.writable.is_empty() {
                let waits = self.hub.cursors.iter().any(|cursor| cursor.at_page)
                    || self
                        .hub
                        .streams
                        .iter()
                        .flatten()
                        .any(|stream| stream.large.as_ref().is_some_and(|large| large.at_page));
                if !waits {
                    return;
                }
            }
            self.turn();
        }
    }

    fn ask(&mut self, stream: usize, union: RequestUnion) {
        let call = self.calls[stream];
        let request = pb::WatchRequest { request_union: Some(union) };
        self.view = self.store.publish();
        self.with_hub(|hub, turn| hub.message(turn, call, request));
    }

    fn create(&mut self, stream: usize, request: pb::WatchCreateRequest) -> pb::WatchResponse {
        let call = self.calls[stream];
        self.check();
        let start = match request.start_revision {
            0 => self.store.revision().0 + 1,
            start => start,
        };
        let compacted = request.start_revision > 0 && start < self.store.compact_revision().0;
        let mut expected = Expected {
            key: if request.key.is_empty() { vec![0] } else { request.key.to_vec() },
            end: request.range_end.to_vec(),
            filters: request.filters.clone(),
            start,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            at: self.log.partition_point(|e| e.kv.as_ref().unwrap().mod_revision < start),
            keeps_up: request.start_revision == 0,
            in_fragments: false,
            cancelled: false,
        };
        self.ask(stream, RequestUnion::CreateRequest(request));
        let peer = self.peers.peer(call);
        if peer.messages.is_empty() {
            // It waits for the end of a large message.
            let held = &self.hub.streams[self.hub.by_place[&key_of(call)] as usize];
            let held = &held.as_ref().unwrap().held;
            let mut answers = held.iter().map(|held| pb::WatchResponse::decode(&held[..]).unwrap());
            let created = answers.rfind(|answer| answer.created).unwrap();
            expected.cancelled |= compacted;
            self.expected.insert((call.stream.id(), created.watch_id), expected);
            return created;
        }
        let created = peer.messages.pop_front().expect("an answer");
        assert!(created.created);
        if created.canceled {
            return created;
        }
        if compacted {
            let cancelled = peer.messages.pop_front().expect("compacted");
            assert!(cancelled.canceled && cancelled.compact_revision > start);
            assert_eq!(cancelled.watch_id, created.watch_id);
            expected.cancelled = true;
        }
        self.expected.insert((call.stream.id(), created.watch_id), expected);
        created
    }

    /// Holds what has arrived against the reckoning.
    fn check(&mut self) {
        let streams: Vec<u32> = self.peers.peers.keys().copied().collect();
        for stream in streams {
            while let Some(response) =
                self.peers.peers.get_mut(&stream).unwrap().messages.pop_front()
            {
                self.check_response(stream, &response);
            }
            if self.peers.peers[&stream].ended.is_some() {
                self.reopen(stream);
            }
        }
    }

    /// A stream was reset: only for a message whose rest was compacted, after the time they are
    /// kept.
    fn reopen(&mut self, stream: u32) {
        let peer = self.peers.peers.remove(&stream).unwrap();
        let (open, ended) = (peer.open_message.is_some(), peer.ended);
        assert!(open && self.now_ms > limits::WATCH_PIN_MS, "{ended:?} {open} {}", self.now_ms);
        self.resets += 1;
        self.expected.retain(|(owner, _), _| *owner != stream);
        let call = self.calls.iter().copied().find(|call| call.stream.id() == stream).unwrap();
        assert!(!self.hub.by_place.contains_key(&key_of(call)));
        self.hub.open(call, false, self.now_ms);
        self.peers.peer(call);
    }

    fn check_response(&mut self, stream: u32, response: &pb::WatchResponse) {
        let header = response.header.as_ref().unwrap();
        if response.created {
            return;
        }
        let empty = response.events.is_empty() && !response.canceled;
        if empty && response.watch_id == -1 {
            let all = self.expected.range((stream, i64::MIN)..=(stream, i64::MAX));
            for (name, watcher) in all.map(|(name, w)| (*name, w)) {
                self.assert_told(name, watcher, header.revision);
            }
            self.told_revision.insert(stream, header.revision);
            return;
        }
        let name = (stream, response.watch_id);
        if response.canceled {
            let watcher = self.expected.get_mut(&name).expect("a watcher");
            if response.compact_revision == 0 {
                self.expected.remove(&name);
                return;
            }
            if !watcher.cancelled {
                assert_eq!(header.revision, 0);
                let next = self.log[watcher.at..].iter().find(|event| watcher.wants(event));
                let next = next.map_or(i64::MAX, |e| e.kv.as_ref().unwrap().mod_revision);
                assert!(!watcher.keeps_up, "{name:?} kept up and lost events");
                let begins = self.log.get(watcher.at).map(|e| e.kv.as_ref().unwrap().mod_revision);
                assert!(
                    next < response.compact_revision || begins < Some(response.compact_revision),
                    "{name:?} lost nothing"
                );
                watcher.cancelled = true;
            }
            return;
        }
        let Some(watcher) = self.expected.get(&name) else { panic!("{name:?} was cancelled") };
        assert!(!watcher.cancelled, "{name:?} is told something after its end");
        if empty {
            self.assert_told(name, watcher, header.revision);
            return;
        }
        let watcher = self.expected.get_mut(&name).unwrap();
        assert!(watcher.fragment || !response.fragment);
        for event in &response.events {
            let at = loop {
                let at = watcher.at;
                assert!(at < self.log.len(), "{name:?} is told what never happened: {event:?}");
                watcher.at += 1;
                if watcher.wants(&self.log[at]) {
                    break at;
                }
            };
            let truth = &self.log[at];
            assert_eq!((event.r#type, &event.kv), (truth.r#type, &truth.kv), "{name:?}");
            match (&event.prev_kv, watcher.prev_kv) {
                (Some(_), true) => assert_eq!(event.prev_kv, truth.prev_kv, "{name:?}"),
                (Some(_), false) => panic!("{name:?} did not ask for previous values"),
                (None, true) if watcher.keeps_up => assert_eq!(truth.prev_kv, None, "{name:?}"),
                (None, _) => {}
            }
            self.events_checked += 1;
        }
        let last = response.events.last().unwrap().kv.as_ref().unwrap().mod_revision;
        assert!(header.revision >= last);
        self.headers.push(header.revision);
        watcher.in_fragments = response.fragment;
        if !response.fragment {
            let rest = self.log[watcher.at..]
                .iter()
                .take_while(|event| event.kv.as_ref().unwrap().mod_revision == last);
            assert_eq!(rest.filter(|e| watcher.wants(e)).count(), 0, "{name:?}: {last} was split");
        }
    }

    fn assert_told(&self, name: (u32, i64), watcher: &Expected, revision: i64) {
        let missing = self.log[watcher.at..].iter().find(|event| {
            event.kv.as_ref().unwrap().mod_revision <= revision && watcher.wants(event)
        });
        assert!(missing.is_none(), "{name:?} was told of {revision} and lacks {missing:?}");
    }

    /// Everything that was to be sent was.
    fn assert_complete(&self) {
        for (name, watcher) in self.expected.iter().filter(|(_, watcher)| !watcher.cancelled) {
            self.assert_told(*name, watcher, i64::MAX);
            assert!(!watcher.in_fragments, "{name:?}");
        }
    }
}

fn create(key: &str, end: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        ..Default::default()
    }
}

fn random_key(prng: &mut Prng) -> Vec<u8> {
    vec![b'a' + prng.below(6) as u8; 1 + prng.index(3)]
}

impl Rig {
    fn random_step(&mut self, prng: &mut Prng) {
        let stream = prng.index(self.calls.len());
        let call = self.calls[stream];
        match prng.below(100) {
            0..40 => {
                let count = if prng.chance(1, 4) { 1 + prng.index(6) } else { 1 };
                let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
                for _ in 0..count {
                    let size = match prng.below(60) {
                        0 => 70 << 10,
                        1 => 400 << 10,
                        2 => 1_200 << 10,
                        _ => prng.index(300),
                    };
                    let value = (!prng.chance(1, 4)).then(|| vec![prng.below(256) as u8; size]);
                    changes.insert(random_key(prng), value);
                }
                let changes: Vec<_> = changes.into_iter().collect();
                self.write(&changes);
            }
            40..60 => self.turn(),
            60..68 => self.random_create(prng, stream),
            68..72 => {
                let names: Vec<(u32, i64)> = self.expected.keys().copied().collect();
                if !names.is_empty() {
                    let (owner, watch_id) = names[prng.index(names.len())];
                    self.check();
                    let stream =
                        self.calls.iter().position(|call| call.stream.id() == owner).unwrap();
                    let request = pb::WatchCancelRequest { watch_id };
                    self.ask(stream, RequestUnion::CancelRequest(request));
                }
            }
            72..76 => self.ask(stream, RequestUnion::ProgressRequest(Default::default())),
            76..90 => {
                let size = if prng.chance(1, 3) { 2 << 20 } else { prng.index(3_000) };
                self.peers.open_window(call, size);
            }
            90..93 => {
                let newest = self.store.revision().0;
                let _ = self.store.compact(Revision(newest - prng.below(20) as i64));
            }
            93..96 => self.checkpoint(),
            _ => self.now_ms += if prng.chance(1, 10) { 61_000 } else { 300 },
        }
    }

    fn random_create(&mut self, prng: &mut Prng, stream: usize) {
        let key = random_key(prng);
        let end = match prng.below(4) {
            0 => vec![0],
            1 => random_key(prng),
            _ => Vec::new(),
        };
        let newest = self.store.revision().0;
        let start = match prng.below(4) {
            0 => 1 + prng.below(newest as u64) as i64,
            1 => newest + prng.below(10) as i64,
            _ => 0,
        };
        let filters = match prng.below(6) {
            0 => vec![FilterType::Noput as i32],
            1 => vec![FilterType::Nodelete as i32],
            _ => vec![],
        };
        let empty = !end.is_empty() && end != [0] && key >= end;
        let response = self.create(
            stream,
            pb::WatchCreateRequest {
                key: key.into(),
                range_end: end.into(),
                start_revision: start,
                prev_kv: prng.chance(1, 2),
                fragment: prng.chance(1, 2),
                progress_notify: prng.chance(1, 3),
                filters,
                ..Default::default()
            },
        );
        assert_eq!(response.canceled, empty, "{response:?}");
        // Whether it keeps up depends on a window that is opened at random.
        let name = (self.calls[stream].stream.id(), response.watch_id);
        if let Some(watcher) = self.expected.get_mut(&name) {
            watcher.keeps_up = false;
        }
    }
}

#[test]
fn every_watcher_gets_exactly_its_events_in_order_whatever_happens() {
    let seeds = if std::env::var_os("ETCORE_LONG").is_some() { 400 } else { 12 };
    let (mut checked, mut resets) = (0, 0);
    for seed in 0..seeds {
        let mut prng = Prng::new(seed);
        let mut rig = Rig::new(5, seed);
        for _ in 0..900 {
            rig.random_step(&mut prng);
        }
        for call in rig.calls.clone() {
            rig.peers.open_window(call, 1 << 40);
        }
        rig.settle();
        rig.assert_complete();
        checked += rig.events_checked;
        resets += rig.resets;
        let live = rig.hub.cursors[0].count as u64;
        assert_eq!(rig.hub.counts().slow, 0);
        assert_eq!(rig.hub.counts().watchers, live + rig.hub.dead);
        // All slots and targets come back.
        for call in rig.calls.clone() {
            rig.hub.closed(call);
        }
        assert_eq!(rig.hub.counts().watchers, 0);
        assert_eq!(rig.hub.targets.bytes(), 0);
        let (pins, view) = (rig.store.revision_pins().clone(), rig.view.clone());
        rig.hub.hold(&pins, &view, rig.now_ms);
        assert_eq!(pins.oldest(), None, "no stream, no pin");
    }
    assert!(checked > 1_000, "only {checked} events");
    assert!(resets < checked / 100, "{resets} streams were reset");
}

#[test]
fn watchers_that_keep_up_lose_neither_events_nor_previous_values_to_compaction() {
    let mut prng = Prng::new(3);
    let mut rig = Rig::new(3, 3);
    for call in rig.calls.clone() {
        rig.peers.open_window(call, 1 << 40);
    }
    rig.turn();
    for stream in 0..3 {
        let request = pb::WatchCreateRequest { prev_kv: true, ..create("a", "\0") };
        rig.create(stream, request);
    }
    for _ in 0..300 {
        for _ in 0..1 + prng.index(4) {
            let key = random_key(&mut prng);
            let value = (!prng.chance(1, 4)).then(|| vec![1; prng.index(200)]);
            rig.write(&[(key, value)]);
        }
        // All of it is compacted before the hub has looked.
        let newest = rig.store.revision();
        let _ = rig.store.compact(newest);
        if prng.chance(1, 3) {
            rig.checkpoint();
        }
        rig.turn();
    }
    rig.settle();
    rig.assert_complete();
    assert!(rig.events_checked > 300);
}

#[test]
fn a_stream_that_takes_nothing_holds_nothing_and_goes_on_where_it_stopped() {
    let mut rig = Rig::new(2, 1);
    rig.peers.open_window(rig.calls[1], 1 << 40);
    rig.turn();
    rig.create(0, create("k", "l"));
    rig.create(1, create("k", "l"));
    for number in 0..20_000 {
        rig.put(&format!("k{}", number % 100), "value");
        if number % 100 == 0 {
            rig.turn();
        }
    }
    rig.settle();
    assert!(rig.peers.peer(rig.calls[0]).buffered < 1000, "the answer to its request at most");
    assert_eq!((rig.events_checked, rig.hub.counts().slow), (20_000, 1));
    for _ in 0..2_000 {
        rig.peers.open_window(rig.calls[0], 1_000);
        rig.settle();
    }
    rig.assert_complete();
    assert_eq!((rig.events_checked, rig.hub.counts().slow), (40_000, 0));
}

#[test]
fn headers_tell_the_newest_revision_with_the_past_and_then_that_of_the_events() {
    let mut rig = Rig::new(1, 1);
    let call = rig.calls[0];
    // The peer takes something now and nothing afterwards.
    let told = |rig: &mut Rig| {
        rig.peers.open_window(call, 1 << 20);
        rig.settle();
        rig.peers.peer(call).window = 0;
        std::mem::take(&mut rig.headers)
    };
    rig.put("k", "2");
    rig.put("other", "3");
    rig.turn();
    rig.create(0, pb::WatchCreateRequest { start_revision: 2, ..create("k", "") });
    rig.turn();
    rig.put("other", "4");
    assert_eq!(told(&mut rig), [4]);
    // It is up to date: each revision has a response, however many came in one turn.
    rig.peers.open_window(call, 1 << 20);
    rig.put("k", "5");
    rig.put("k", "6");
    rig.put("other", "7");
    assert_eq!(told(&mut rig), [5, 6]);
    // It falls behind.
    rig.put("k", "8");
    rig.turn();
    rig.put("k", "9");
    rig.put("other", "10");
    rig.turn();
    assert_eq!(rig.hub.counts().slow, 1);
    assert_eq!(told(&mut rig), [9]);
}

#[test]
fn a_thousand_watchers_that_are_behind_read_the_log_together() {
    let mut rig = Rig::new(1, 1);
    rig.peers.open_window(rig.calls[0], 1 << 40);
    for number in 0..10_000 {
        rig.put(&format!("k{number}"), "value");
    }
    rig.turn();
    for number in 0..1_000 {
        let request =
            pb::WatchCreateRequest { start_revision: 2 + number % 50, ..create("none", "nonf") };
        rig.create(0, request);
    }
    let mut turns = 0;
    while rig.hub.counts().slow > 0 {
        rig.turn();
        turns += 1;
    }
    // A slice holds 4096 rows; each turn has several.
    assert!(turns <= 3, "{turns} turns for 10,000 rows");
    rig.settle();
    rig.assert_complete();
}

#[test]
fn what_was_compacted_is_kept_for_those_behind_for_a_while_only() {
    let mut rig = Rig::new(1, 1);
    rig.turn();
    rig.create(0, create("k", ""));
    for number in 0..10 {
        rig.put("k", &format!("{number}"));
    }
    rig.turn();
    rig.store.compact(Revision(9)).unwrap();
    while rig.store.maintain() {}
    rig.checkpoint();
    rig.turn();
    assert_eq!(rig.store.revision_pins().oldest(), Some(Revision(1)));
    rig.now_ms += limits::WATCH_PIN_MS + 1;
    rig.turn();
    assert_eq!(rig.store.revision_pins().oldest(), Some(Revision(9)));
    while rig.store.maintain() {}
    rig.checkpoint();
    rig.turn();
    assert!(!rig.expected[&(rig.calls[0].stream.id(), 0)].cancelled);
    rig.peers.open_window(rig.calls[0], 1 << 20);
    rig.expected.get_mut(&(rig.calls[0].stream.id(), 0)).unwrap().keeps_up = false;
    rig.settle();
    assert!(rig.expected[&(rig.calls[0].stream.id(), 0)].cancelled);
    // Its id stays taken until it is let go.
    let again = pb::WatchCreateRequest { watch_id: 1, ..create("k", "") };
    assert!(!rig.create(0, again.clone()).canceled);
    assert_eq!(
        rig.create(0, again).cancel_reason,
        "mvcc: duplicate watch ID provided on the WatchStream"
    );
    rig.ask(0, RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 }));
    let answer = rig.peers.peer(rig.calls[0]).messages.pop_back().unwrap();
    assert!(answer.canceled && answer.watch_id == 0 && answer.compact_revision == 0);
}

#[test]
fn a_revision_larger_than_a_window_reaches_a_slow_reader_piece_by_piece() {
    for fragment in [false, true] {
        let mut rig = Rig::new(1, 1);
        rig.turn();
        let request = pb::WatchCreateRequest { prev_kv: true, fragment, ..create("k", "l") };
        rig.create(0, request);
        let changes: Vec<_> = (0..9_000u32)
            .map(|number| (format!("k{number}").into_bytes(), Some(vec![7; 600])))
            .collect();
        rig.write(&changes);
        let deletions: Vec<_> = changes.iter().map(|(key, _)| (key.clone(), None)).collect();
        rig.write(&deletions);
        rig.put("k", "small");
        let mut responses = 0;
        for _ in 0..2_000 {
            rig.peers.open_window(rig.calls[0], 10_000);
            for _ in 0..6 {
                rig.turn();
            }
            assert!(rig.peers.peer(rig.calls[0]).buffered <= limits::WATCH_BUFFERED_BYTES);
            responses += 1;
        }
        rig.settle();
        rig.assert_complete();
        assert_eq!((rig.events_checked, responses), (18_001, 2_000));
    }
}

#[test]
fn watchers_beyond_the_bound_of_a_stream_are_refused() {
    let mut rig = Rig::new(1, 1);
    rig.peers.open_window(rig.calls[0], 1 << 20);
    // As if the client had created them all.
    let taken = 1..limits::STREAM_WATCHERS as i64;
    let ids = |rig: &mut Rig| std::mem::take(&mut rig.hub.stream(0).unwrap().watchers);
    rig.hub.stream(0).unwrap().watchers = taken.map(|id| (id, watchers::NONE)).collect();
    assert!(!rig.create(0, create("k", "")).canceled);
    let refused = rig.create(0, create("k", ""));
    assert!(refused.canceled && refused.watch_id == -1);
    assert_eq!(refused.cancel_reason, "etcdserver: too many requests");
    let own: BTreeMap<_, _> = ids(&mut rig).into_iter().filter(|w| w.1 != watchers::NONE).collect();
    assert_eq!(own.len(), 1);
    rig.hub.stream(0).unwrap().watchers = own;
    rig.put("k", "v");
    rig.settle();
    rig.assert_complete();
}

#[test]
fn requests_during_a_large_message_are_all_answered_and_more_wait_with_their_client() {
    let mut rig = Rig::new(1, 1);
    rig.turn();
    let call = rig.calls[0];
    rig.peers.open_window(call, 1_000);
    rig.create(0, create("k", ""));
    rig.write(&[(b"k".to_vec(), Some(vec![7; 300_000]))]);
    rig.turn();
    rig.turn();
    assert!(rig.hub.streams[0].as_ref().unwrap().large.is_some());
    for number in 0..5_000 {
        rig.ask(0, RequestUnion::CreateRequest(create("x", "")));
        let is_held = number + 1 >= limits::WATCH_HELD_ANSWERS;
        assert_eq!(rig.peers.peer(call).held, is_held, "after {number}");
    }
    assert!(rig.peers.peer(call).ended.is_none());
    while rig.peers.peer(call).held {
        rig.peers.open_window(call, 64 << 10);
        rig.turn();
    }
    let stream = rig.hub.streams[0].as_ref().unwrap();
    assert_eq!((stream.watchers.len(), stream.held.len()), (5_001, 0));
    assert!(rig.peers.peer(call).ended.is_none());
}

#[test]
fn who_does_not_read_the_answers_to_its_requests_is_not_read_either() {
    let mut rig = Rig::new(1, 1);
    rig.turn();
    let call = rig.calls[0];
    rig.peers.open_window(call, 100);
    let mut asked = 0;
    while !rig.peers.peer(call).held {
        rig.ask(0, RequestUnion::CreateRequest(create("x", "")));
        asked += 1;
    }
    assert!(asked < 10, "{asked}");
    rig.peers.open_window(call, 1 << 20);
    rig.turn();
    assert!(!rig.peers.peer(call).held);
}

#[test]
fn notifications_of_progress_come_when_nothing_else_did() {
    let mut rig = Rig::new(1, 1);
    rig.peers.open_window(rig.calls[0], 1 << 20);
    rig.turn();
    let request = pb::WatchCreateRequest { progress_notify: true, ..create("k", "") };
    rig.create(0, request.clone());
    rig.create(0, pb::WatchCreateRequest { start_revision: 100, ..request });
    rig.create(0, create("k", ""));
    rig.put("other", "x");
    let mut told = Vec::new();
    for second in 0..35 {
        rig.now_ms += 1_000;
        if second == 15 {
            rig.put("k", "x");
        }
        rig.view = rig.store.publish();
        rig.with_hub(Hub::run);
        rig.with_hub(|hub, turn| {
            hub.tick(turn);
        });
        for response in rig.peers.peer(rig.calls[0]).messages.drain(..) {
            told.push((second, response.watch_id, response.events.len()));
        }
    }
    // Every 10 s and up to a tenth more; the second is left out, since an event came before it.
    assert_eq!(told, [(10, 0, 0), (15, 2, 1), (15, 0, 1), (32, 0, 0)]);
}

#[test]
fn progress_is_told_only_when_every_watcher_of_the_stream_has_everything() {
    let mut rig = Rig::new(2, 1);
    rig.peers.open_window(rig.calls[0], 1 << 20);
    rig.peers.open_window(rig.calls[1], 1 << 20);
    rig.put("k", "1");
    rig.turn();
    let progress = RequestUnion::ProgressRequest(Default::default());
    let answers = |rig: &mut Rig, stream: usize| {
        rig.ask(stream, progress.clone());
        let messages: Vec<_> = rig.peers.peer(rig.calls[stream]).messages.drain(..).collect();
        messages.iter().map(|m| (m.watch_id, m.header.unwrap().revision)).collect::<Vec<_>>()
    };
    assert_eq!(answers(&mut rig, 0), [], "no watcher");
    rig.create(0, create("k", ""));
    assert_eq!(answers(&mut rig, 0), [(-1, 2)]);
    rig.put("k", "2");
    assert_eq!(answers(&mut rig, 0), [(-1, 2)], "the new revision was not sent yet");
    rig.settle();
    assert_eq!(answers(&mut rig, 0), [(-1, 3)]);
    rig.create(0, pb::WatchCreateRequest { start_revision: 9, ..create("k", "") });
    assert_eq!(answers(&mut rig, 0), [], "one begins in the future");
    let future = RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 1 });
    rig.ask(0, future);
    rig.peers.peer(rig.calls[0]).messages.clear();
    assert_eq!(answers(&mut rig, 0), [(-1, 3)], "it does not any more");
    rig.create(1, pb::WatchCreateRequest { start_revision: 1, ..create("k", "") });
    assert_eq!(answers(&mut rig, 1), [], "it is behind");
    rig.settle();
    assert_eq!(answers(&mut rig, 1), [(-1, 3)]);
}

#[test]
fn an_event_for_many_watchers_reaches_them_over_several_turns_and_progress_waits_for_all() {
    let mut rig = Rig::new(2, 40);
    let watchers = 2 * limits::WATCH_TURN_DELIVERIES + 5;
    for at in 0..2 {
        rig.peers.open_window(rig.calls[at], 16 << 20);
    }
    rig.create(1, create("k", ""));
    for _ in 1..watchers {
        rig.create(0, create("k", ""));
    }
    rig.create(1, create("k", ""));
    rig.settle();
    rig.put("k", "v");
    let told = |rig: &Rig| rig.events_checked;
    let before = told(&rig);
    let mut turns = 0;
    while told(&rig) < before + watchers as u64 + 1 {
        let had = told(&rig);
        rig.turn();
        assert!(told(&rig) - had <= limits::WATCH_TURN_DELIVERIES as u64, "in one turn");
        turns += 1;
        if turns == 1 {
            // Its first watcher has the event, its second has not.
            rig.ask(1, RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
            rig.check();
            let stream = rig.calls[1].stream.id();
            assert!(!rig.told_revision.contains_key(&stream), "not everybody has everything");
            // Watchers that come or go in between change nothing for the others.
            let created = rig.create(1, create("k", ""));
            let cancel = pb::WatchCancelRequest { watch_id: created.watch_id };
            rig.ask(1, RequestUnion::CancelRequest(cancel));
        }
    }
    assert_eq!(turns, 3);
    rig.settle();
    let stream = rig.calls[1].stream.id();
    assert_eq!(rig.told_revision[&stream], rig.store.revision().0);
}
