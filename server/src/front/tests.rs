//! A front on a driver that only remembers: its bounds, and when it reads and when it does not.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use arc_swap::ArcSwap;
use etcore_engine::file::AlignedBuf;
use etcore_engine::map::PageMap;
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_proto::grpc::{CallOptions, Client, ClientConfig, ClientEvent, MethodHandle};
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message;

use super::*;
use crate::auth::tokens::Tokens;
use crate::background::hasher::Hasher;
use crate::background::passwords::Passwords;
use crate::channel::{
    Consumer, LeaseRequest, Lifecycle, MemberView, Producer, Reply, StatusCell, ToFront, ToReplica,
    ring,
};
use crate::clock::Clock;
use crate::config::flags::{self, Asked};
use crate::disk::pages::{PageFile, Pages};
use crate::disk::pool::{Pool, PoolThreads, Size};
use crate::driver::{Completions, LogFile, PeerAddress, Sent, WriteToken};
use crate::metrics::{Calls, Metrics};
use crate::tls::Tls;

mod crowding;
mod http;
mod leases;
mod loopback;
mod silence;
mod snapshots;
mod watching;

/// A listener for what is named.
fn door(serves: Serves) -> Arc<Door> {
    Arc::new(Door { url: "http://client".to_owned(), serves })
}

/// What a front told its driver.
#[derive(Default)]
struct Remembering {
    sockets: Vec<AnySocket>,
    paused: Vec<bool>,
    closed: Vec<SocketId>,
    sends: Vec<(SocketId, Vec<u8>)>,
}

impl Driver for Remembering {
    fn name(&self) -> &'static str {
        "remembering"
    }
    fn listen(&mut self, _: u32, _: AnyListener) -> io::Result<()> {
        Ok(())
    }
    fn unlisten(&mut self, _: u32) {}
    fn attach(&mut self, socket: AnySocket) -> io::Result<SocketId> {
        self.sockets.push(socket);
        self.paused.push(false);
        Ok(SocketId { slot: self.sockets.len() as u32 - 1, generation: 0 })
    }
    fn connect(&mut self, _: &PeerAddress) -> io::Result<SocketId> {
        panic!("a front dials nobody");
    }
    fn pause(&mut self, socket: SocketId) {
        self.paused[socket.slot as usize] = true;
    }
    fn resume(&mut self, socket: SocketId) {
        self.paused[socket.slot as usize] = false;
    }
    fn send(&mut self, socket: SocketId, buf: Vec<u8>) -> Option<Sent> {
        assert!(buf.len() <= limits::SEND_BYTES + 64, "a send of {} bytes", buf.len());
        self.sends.push((socket, buf));
        None
    }
    fn close(&mut self, socket: SocketId) {
        self.closed.push(socket);
    }
    fn write_durable(&mut self, _: WriteToken, _: LogFile, _: u64, _: AlignedBuf) {
        panic!("a front writes no log");
    }
    fn wait(&mut self, _: Option<Duration>, _: &mut dyn Completions) -> io::Result<()> {
        Ok(())
    }
    fn waker(&self) -> Waker {
        Waker::new().unwrap()
    }
}

struct Rig {
    front: Front,
    driver: Remembering,
    replica: Consumer<ToReplica>,
    lessor: Consumer<LeaseRequest>,
    to_front: Producer<ToFront>,
    now_ms: u64,
}

impl Rig {
    fn new() -> Self {
        let Ok(Asked::Run(config, _)) = flags::parse(std::iter::empty(), std::iter::empty()) else {
            panic!("the defaults are a configuration");
        };
        let (mut store, _) = Store::open(&mut MemDisk::new(), EngineConfig::default()).unwrap();
        let waker = Waker::new().unwrap();
        let tls = Tls::load(&config.tls, std::path::Path::new(""), &[], &[]).unwrap();
        let shared = Arc::new(Shared {
            tls: Arc::new(tls),
            tokens: Tokens::new("simple", 300).unwrap(),
            config: *config,
            member_id: 1,
            cluster_id: 2,
            clock: Clock::start(),
            ids: crate::ids::RequestIds::new(1, 0),
            view: ArcSwap::from_pointee(MemberView::of_keys(store.publish(), PageFile::default())),
            status: StatusCell::default(),
            metrics: Metrics::new(1, Calls::new(api::method_labels(), 1, false)),
            connections: vec![AtomicUsize::new(0)],
            watching: vec![AtomicBool::new(false)],
            lifecycle: Lifecycle::new(1),
            profiling: AtomicBool::new(false),
            wakers: std::sync::OnceLock::new(),
            waiter: std::sync::OnceLock::new(),
            freer: std::sync::OnceLock::new(),
        });
        let size = Size { threads: 1, jobs: limits::PAGE_FETCHES };
        let pool = Pool::start("test", size, &mut PoolThreads::default()).unwrap();
        let page_file = Arc::new(tempfile::tempfile().unwrap());
        let pins = store.revision_pins().clone();
        let (hasher, _) = Hasher::start(shared.clone(), page_file.clone(), pins).unwrap();
        let map = || PageMap::new(page_file.clone(), limits::PAGE_WINDOW_BYTES);
        let (to_replica, replica) = ring(limits::RING_TO_REPLICA, None);
        let (to_lessor, lessor) = ring(limits::RING_LEASES, None);
        let (to_front, from_replica) = ring(limits::RING_TO_FRONT, None);
        let (listener, _) = UnixStream::pair().unwrap();
        let services = api::Setup {
            index: 0,
            shared,
            to_replica,
            to_lessor,
            from_replica,
            pages: Pages::new(map(), pool.clone(), waker.clone()),
            former_pages: Pages::new(map(), pool, waker.clone()),
            pins: store.revision_pins().clone(),
            hasher,
            passwords: Passwords::at_once(),
            waker: waker.clone(),
        };
        let parts = Parts {
            services,
            budget: Budget::new(limits::PROCESS_RECEIVE_BYTES, limits::CONNECTION_RECEIVE_BYTES),
            routes: Arc::new(api::routes()),
            socket_queues: vec![SocketQueue {
                queue: Arc::new(ArrayQueue::new(limits::HANDOFFS)),
                waker: Some(waker),
            }],
            listeners: vec![(Arc::new(OwnedFd::from(listener)).into(), door(Serves::Everything))],
        };
        let front = Front::new(parts, 1);
        let driver = Remembering::default();
        Self { front, driver, replica, lessor, to_front, now_ms: 1000 }
    }

    /// All see this store from now on.
    fn publish(&self, store: &mut Store) {
        self.publish_from(store, PageFile::default());
    }

    /// All see this store from now on, whose pages are there.
    fn publish_from(&self, store: &mut Store, page_file: PageFile) {
        let view = MemberView::of_keys(store.publish(), page_file);
        self.front.shared.view.store(Arc::new(view));
    }

    fn turn(&mut self) {
        self.front.turn(self.now_ms);
        self.front.flush(&mut self.driver).unwrap();
    }

    fn accept(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.front.accepted(0, OwnedFd::from(ours).into());
        theirs
    }

    fn connections(&self) -> usize {
        self.front.shared.connections[0].load(Ordering::Relaxed)
    }

    /// Attaches a connection with a gRPC client at its other end.
    fn client(&mut self) -> Caller {
        self.client_with(ClientConfig::default())
    }

    fn client_with(&mut self, config: ClientConfig) -> Caller {
        let theirs = self.accept();
        self.turn();
        let socket = SocketId { slot: self.driver.sockets.len() as u32 - 1, generation: 0 };
        let mut client = Client::new(config, &Budget::new(8 << 30, 8 << 30));
        let put = client.method("/etcdserverpb.KV/Put");
        let mut caller = Caller {
            socket,
            client,
            put,
            answers: Vec::new(),
            responses: Vec::new(),
            messages: Vec::new(),
            unread: Vec::new(),
            _theirs: theirs,
        };
        caller.exchange(self);
        caller
    }
}

struct Caller {
    socket: SocketId,
    client: Client,
    put: MethodHandle,
    answers: Vec<(u64, String)>,
    /// Answers of unary calls.
    responses: Vec<Vec<u8>>,
    /// Messages of streaming calls.
    messages: Vec<Vec<u8>>,
    /// Sent, and not read by the front yet.
    unread: Vec<u8>,
    _theirs: UnixStream,
}

impl Caller {
    fn start_put(&mut self, user: u64, value: &[u8]) {
        let request = pb::PutRequest {
            key: b"k".as_slice().into(),
            value: value.to_vec().into(),
            ..Default::default()
        };
        let options = CallOptions { user, ..Default::default() };
        self.client.start_unary(self.put, &options, &request.encode_to_vec()).unwrap();
    }

    /// Moves bytes both ways until nothing moves any more.
    fn exchange(&mut self, rig: &mut Rig) {
        loop {
            let more = self.client.poll_transmit(&mut self.unread, 32 << 10);
            let reads = !rig.driver.paused[self.socket.slot as usize];
            let mut moved = more || (reads && !self.unread.is_empty());
            if reads {
                rig.front.begin_turn(rig.now_ms);
                let bytes = std::mem::take(&mut self.unread);
                bytes
                    .chunks(limits::RECEIVE_BUFFER_BYTES)
                    .for_each(|bytes| rig.front.received(self.socket, bytes));
            }
            rig.turn();
            let sends = std::mem::take(&mut rig.driver.sends);
            let own = |(socket, _): &(SocketId, Vec<u8>)| *socket == self.socket;
            let (sends, others): (Vec<_>, Vec<_>) = sends.into_iter().partition(own);
            rig.driver.sends = others;
            for (socket, bytes) in sends {
                self.client.receive(&bytes, rig.now_ms).unwrap();
                rig.front.sent(socket, Vec::new(), Ok(()));
                moved = true;
            }
            while let Some(event) = self.client.next_event() {
                match event {
                    ClientEvent::Message { message, .. } => self.messages.push(message.to_vec()),
                    ClientEvent::Response { user, message, .. } => {
                        self.answers.push((user, String::new()));
                        self.responses.push(message.to_vec());
                    }
                    ClientEvent::Status { user, message, .. } => self.answers.push((user, message)),
                    _ => {}
                }
            }
            if !moved {
                return;
            }
        }
    }
}

fn is_closed(peer: &UnixStream) -> bool {
    use std::io::Read;
    peer.set_nonblocking(true).unwrap();
    let mut peer = peer;
    matches!(peer.read(&mut [0; 1]), Ok(0))
}

#[test]
fn a_connection_beyond_the_bound_is_closed_at_once() {
    let mut rig = Rig::new();
    let first = rig.accept();
    rig.turn();
    assert_eq!((rig.front.wire.open(), rig.connections()), (1, 1));
    // As if all others had come as well.
    rig.front.wire.set_open(limits::CONNECTIONS);
    let refused = rig.accept();
    rig.turn();
    assert!(is_closed(&refused) && !is_closed(&first));
    assert_eq!((rig.driver.sockets.len(), rig.connections()), (1, 1));
    rig.front.wire.set_open(limits::CONNECTIONS - 1);
    let last = rig.accept();
    rig.turn();
    assert!(!is_closed(&last));
}

#[test]
fn sockets_beyond_those_waiting_for_their_front_are_closed() {
    let mut rig = Rig::new();
    let (shared_end, _peer) = UnixStream::pair().unwrap();
    for _ in 0..limits::HANDOFFS {
        rig.front.accepted(0, OwnedFd::from(shared_end.try_clone().unwrap()).into());
    }
    assert_eq!(rig.connections(), limits::HANDOFFS);
    let refused = rig.accept();
    assert!(is_closed(&refused));
    assert_eq!(rig.connections(), limits::HANDOFFS);
    // A burst of connections takes turns with the requests of those that are there.
    let mut turns = 0;
    while rig.front.has_input() && rig.driver.sockets.len() < limits::HANDOFFS {
        rig.turn();
        turns += 1;
    }
    assert_eq!(rig.driver.sockets.len(), limits::HANDOFFS);
    assert!((2..=limits::HANDOFFS).contains(&turns), "{turns} turns");
}

#[test]
fn a_full_ring_stops_reading_and_keeps_the_order_and_every_message() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let total = limits::RING_TO_REPLICA + 3000;
    for user in 0..total as u64 {
        caller.start_put(user, b"v");
    }
    caller.exchange(&mut rig);
    assert!(rig.driver.paused[0], "the ring is full");
    assert!(rig.front.services.is_backlogged());
    // A connection that comes meanwhile is not read either, but is once there is room.
    let _late = rig.accept();
    rig.turn();
    assert!(rig.driver.paused[1]);
    let mut slots = Vec::new();
    while slots.len() < total {
        let mut took = false;
        while let Some(message) = rig.replica.pop() {
            took = true;
            if let ToReplica::Propose { slot, .. } = message {
                slots.push(slot);
            }
        }
        assert!(took, "stuck after {} messages", slots.len());
        caller.exchange(&mut rig);
    }
    assert_eq!(rig.driver.paused, [false, false]);
    let ascending: Vec<u64> = (0..total as u64).collect();
    assert_eq!(slots, ascending, "fresh slots count up");
    for slot in slots {
        let reply = || Reply::Header { revision: 7 };
        while rig.to_front.push(ToFront::Reply { slot, reply: reply() }).is_err() {
            caller.exchange(&mut rig);
        }
    }
    caller.exchange(&mut rig);
    assert_eq!(caller.answers.len(), total);
    assert!(rig.front.services.is_idle());
}

#[test]
fn proposals_without_a_leader_time_out_and_neither_pile_up_nor_stop_other_requests() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let value = vec![0; 1 << 20];
    for user in 0..100 {
        caller.start_put(user, &value);
    }
    caller.exchange(&mut rig);
    assert!(rig.driver.paused[0], "so many bytes are outstanding");
    let held = rig.front.services.proposal_bytes().1;
    assert!(held > limits::PENDING_PROPOSAL_BYTES && held < limits::PENDING_PROPOSAL_BYTES * 2);
    rig.now_ms += 60_000;
    caller.exchange(&mut rig);
    assert!(!rig.driver.paused[0], "their clients were answered");
    let before = caller.answers.len();
    assert!(before > 15);
    assert!(caller.answers.iter().any(|(_, text)| text == "context deadline exceeded"));
    // What the ring holds is still there: no more is taken in.
    caller.start_put(1000, &value);
    caller.exchange(&mut rig);
    let (_, text) = caller.answers.iter().find(|(user, _)| *user == 1000).unwrap();
    assert_eq!(text, "etcdserver: too many requests");
    assert!(rig.front.services.is_clogged() && rig.front.services.is_idle());
    // A leader comes and refuses or serves them: late replies find nobody, and all is well again.
    while let Some(message) = rig.replica.pop() {
        if let ToReplica::Propose { slot, .. } = message {
            let reply = Reply::Header { revision: 9 };
            assert!(rig.to_front.push(ToFront::Reply { slot, reply }).is_ok());
        }
    }
    let answered = caller.answers.len();
    caller.exchange(&mut rig);
    assert_eq!(caller.answers.len(), answered);
    assert!(!rig.front.services.is_clogged());
}

#[test]
fn a_front_that_is_told_to_stop_has_something_to_do() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    assert!(!rig.front.has_input());
    rig.front.shared.stop();
    assert!(rig.front.has_input(), "or it would sleep over the stop");
    rig.turn();
    assert!(!rig.front.is_stopped(), "GOAWAY is on its way");
    assert!(!rig.front.has_input());
    caller.exchange(&mut rig);
    assert!(rig.front.is_stopped());
}

#[test]
fn a_connection_that_failed_waits_for_a_stalled_peer_only_briefly() {
    let mut rig = Rig::new();
    let caller = rig.client();
    // A frame longer than any may be.
    rig.front.received(caller.socket, &[0xff; 64]);
    rig.turn();
    assert_eq!(rig.driver.sends.len(), 1, "GOAWAY");
    for _ in 0..5 {
        rig.now_ms += 150;
        rig.turn();
    }
    assert!(rig.driver.closed.is_empty());
    for _ in 0..5 {
        rig.now_ms += 150;
        rig.turn();
    }
    assert_eq!(rig.driver.closed, [caller.socket]);
    assert_eq!((rig.front.wire.open(), rig.connections()), (0, 0));
}

#[test]
fn the_process_holds_no_more_received_bytes_than_its_budget() {
    let budget = Budget::new(limits::PROCESS_RECEIVE_BYTES, limits::CONNECTION_RECEIVE_BYTES);
    let mut leases = Vec::new();
    // A quarter is kept for those that hold little.
    for _ in 0..limits::PROCESS_RECEIVE_BYTES / limits::CONNECTION_RECEIVE_BYTES * 3 / 4 {
        let mut lease = budget.lease();
        assert!(lease.charge(limits::CONNECTION_RECEIVE_BYTES));
        assert!(!lease.charge(1), "one connection has its own bound");
        leases.push(lease);
    }
    let mut late = budget.lease();
    assert!(!late.charge(limits::CONNECTION_RECEIVE_BYTES), "the process has its bound");
    assert!(late.charge(1));
    leases[0].release(limits::CONNECTION_RECEIVE_BYTES);
    assert!(late.charge(limits::CONNECTION_RECEIVE_BYTES / 2));
}

#[test]
fn a_client_with_small_requests_is_read_while_one_with_large_requests_must_wait() {
    let mut rig = Rig::new();
    let (mut large, mut small) = (rig.client(), rig.client());
    let value = vec![0; 1 << 20];
    for user in 0..100 {
        large.start_put(user, &value);
    }
    large.exchange(&mut rig);
    small.start_put(1000, b"small");
    small.exchange(&mut rig);
    assert_eq!(rig.driver.paused, [true, false]);
    let mut sizes = Vec::new();
    while let Some(message) = rig.replica.pop() {
        if let ToReplica::Propose { slot, data, .. } = message {
            sizes.push(data.len());
            let reply = Reply::Header { revision: 9 };
            assert!(rig.to_front.push(ToFront::Reply { slot, reply }).is_ok());
        }
    }
    assert!(sizes.iter().any(|size| *size < 1000), "the small put is among {}", sizes.len());
    assert!(sizes.len() < 30, "{} large puts are waiting", sizes.len());
    small.exchange(&mut rig);
    assert_eq!(small.answers.len(), 1);
    assert_eq!(rig.driver.paused, [false, false], "the large ones are answered too");
}

#[test]
fn what_comes_while_the_shard_sleeps_is_answered_from_the_newest_view() {
    use etcore_engine::types::{LeaseId, LogIndex, Term};
    let mut rig = Rig::new();
    let mut caller = rig.client();
    // The front has begun its turn and sleeps; meanwhile another one answers from a newer view.
    rig.front.begin_turn(rig.now_ms);
    let (mut store, _) = Store::open(&mut MemDisk::new(), EngineConfig::default()).unwrap();
    let mut txn = store.begin(LogIndex(5), Term(1));
    txn.put(b"k", b"new", LeaseId(0));
    txn.commit();
    rig.publish(&mut store);
    rig.front.shared.status.applied.store(5, Ordering::Release);
    let range = caller.client.method("/etcdserverpb.KV/Range");
    let key = b"k".as_slice().into();
    let request = pb::RangeRequest { key, serializable: true, ..Default::default() };
    caller.client.start_unary(range, &CallOptions::default(), &request.encode_to_vec()).unwrap();
    let mut bytes = Vec::new();
    while caller.client.poll_transmit(&mut bytes, 32 << 10) {}
    rig.front.received(caller.socket, &bytes);
    rig.turn();
    for (_, bytes) in std::mem::take(&mut rig.driver.sends) {
        caller.client.receive(&bytes, rig.now_ms).unwrap();
    }
    let mut answers = Vec::new();
    while let Some(event) = caller.client.next_event() {
        if let ClientEvent::Response { message, .. } = event {
            answers.push(pb::RangeResponse::decode(&message[..]).unwrap().count);
        }
    }
    assert_eq!(answers, [1]);
}

#[test]
fn who_is_told_that_there_is_no_space_finds_the_alarm_on() {
    use etcore_proto::error::EtcdError;
    use pb::alarm_request::AlarmAction;
    let mut rig = Rig::new();
    let mut caller = rig.client();
    rig.front.shared.status.live_bytes.store(u64::MAX, Ordering::Relaxed);
    let alarms = |rig: &mut Rig, caller: &mut Caller, users: std::ops::Range<u64>| {
        users.for_each(|user| caller.start_put(user, b"v"));
        caller.exchange(rig);
        let mut slots = Vec::new();
        while let Some(message) = rig.replica.pop() {
            let ToReplica::Propose { slot, data, .. } = message else { continue };
            let request = pb::InternalRaftRequest::decode(data).unwrap();
            let alarm = request.alarm.expect("nothing else is proposed");
            assert_eq!((alarm.action, alarm.alarm), (AlarmAction::Activate as i32, 1));
            slots.push(slot);
        }
        slots
    };
    let slots = alarms(&mut rig, &mut caller, 0..3);
    assert_eq!((slots.len(), caller.answers.len()), (3, 0), "all wait for the alarm");
    let no_space = EtcdError::NoSpace.text();
    for (answered, slot) in (1..).zip(slots) {
        let reply = Reply::Message(Vec::new());
        assert!(rig.to_front.push(ToFront::Reply { slot, reply }).is_ok());
        caller.exchange(&mut rig);
        assert_eq!(caller.answers.len(), answered);
    }
    // Nobody can raise it: what the client is told is the same, when the time is up.
    assert_eq!(alarms(&mut rig, &mut caller, 3..4).len(), 1);
    rig.now_ms += 60_000;
    caller.exchange(&mut rig);
    assert_eq!(caller.answers.len(), 4);
    assert!(caller.answers.iter().all(|(_, text)| text == no_space), "{:?}", caller.answers);
}

#[test]
fn a_front_without_connections_keeps_no_view_while_it_sleeps() {
    let mut rig = Rig::new();
    let (mut store, _) = Store::open(&mut MemDisk::new(), EngineConfig::default()).unwrap();
    rig.publish(&mut store);
    let seen = Arc::downgrade(&rig.front.shared.view.load_full());
    rig.turn();
    assert!(Arc::ptr_eq(rig.front.services.view(), &seen.upgrade().unwrap()));
    rig.front.rest();
    rig.publish(&mut store);
    assert!(seen.upgrade().is_none(), "nobody holds it");
    let _client = rig.accept();
    rig.turn();
    rig.turn();
    rig.front.rest();
    assert!(
        Arc::ptr_eq(rig.front.services.view(), &rig.front.shared.view.load_full()),
        "it serves"
    );
}
