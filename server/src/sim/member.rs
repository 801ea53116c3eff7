//! One member: what survives its process (disk, clock), and what does not (shards, helpers, views).
//!
//! Made by the world; started as boot starts a member, but over a simulated machine. It never looks
//! at other members.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use etcore_engine::file::{Completion, Disk};
use etcore_engine::store::EngineConfig;
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::Identity;

use super::disk::{QueuedDisk, log_files, log_reader};
use super::driver::{SharedPort, SimDriver};
use super::effects::Effects;
use super::pages::{Arrivals, SimPages};
use super::plan::Plan;
use crate::background::hasher::{self, Hasher};
use crate::background::passwords::Passwords;
use crate::background::worker::Worker as BackgroundWorker;
use crate::background::{Background, SimulatedBackground};
use crate::boot::{self, BootError, Stored, assemble};
use crate::channel::Shared;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::flags::{self, Asked};
use crate::disk::pages::{PageReader, Pages};
use crate::driver::{AnyListener, Waker};
use crate::front::{Door, Front, Serves};
use crate::peers::{self, Peers};
use crate::replica::{Finished, LogFiles, Replica};
use crate::shard::Shard;
use crate::tls::Tls;

/// Time that never comes.
pub(super) const NEVER: u64 = u64::MAX;

/// A member's clock against the world's: it starts at zero with each life, runs at its own rate,
/// and stands still at times.
#[derive(Debug, Clone)]
pub(super) struct OwnClock {
    /// What the member reads.
    nanos: Arc<AtomicU64>,
    started: u64,
    /// Own nanoseconds in a million of the world's.
    rate: u64,
    /// The world's nanoseconds for which it stood still before `still`.
    stood: u64,
    /// It stands still from the one moment to the other.
    still: (u64, u64),
}

impl OwnClock {
    fn start(now: u64, rate: u64) -> Self {
        Self { nanos: Arc::default(), started: now, rate, stood: 0, still: (now, now) }
    }

    /// From `now` on it stands still, until the world's `until`.
    pub(super) fn stand_still(&mut self, now: u64, until: u64) {
        self.set(now);
        self.stood = self.stood_by(now);
        self.still = (now, until.max(now));
    }

    fn stood_by(&self, now: u64) -> u64 {
        let (from, until) = self.still;
        self.stood + now.min(until).saturating_sub(from)
    }

    /// Lets the member see the world's `now`.
    pub(super) fn set(&self, now: u64) {
        let world = u128::from(now - self.started - self.stood_by(now));
        let own = world * u128::from(self.rate) / 1_000_000;
        self.nanos.fetch_max(u64::try_from(own).unwrap_or(NEVER), Ordering::Relaxed);
    }

    /// The world's moment at which the member's clock has gone this far from `now` on.
    pub(super) fn after(&self, now: u64, own: u64) -> u64 {
        let world = (u128::from(own) * 1_000_000).div_ceil(u128::from(self.rate));
        let goes_on = now.max(self.still.1);
        goes_on.saturating_add(u64::try_from(world).unwrap_or(NEVER))
    }
}

/// A thread of a member.
pub(super) struct Thread {
    pub(super) shard: Shard,
    pub(super) port: SharedPort,
    pub(super) waker: Waker,
    /// It has worked and waits.
    pub(super) waits: bool,
    /// When its next step is due; [`NEVER`] if none is scheduled.
    pub(super) due: u64,
    /// Its current step takes until then.
    pub(super) busy_until: u64,
    pub(super) stopped: bool,
}

/// What ends with the process.
pub(super) struct Life {
    pub(super) shared: Arc<Shared>,
    pub(super) clock: OwnClock,
    pub(super) threads: Vec<Thread>,
    pub(super) effects: Effects,
    pub(super) background: BackgroundWorker,
    pub(super) background_disk: QueuedDisk,
    pub(super) background_done: Vec<Completion>,
    pub(super) background_due: u64,
    pub(super) desk: SimulatedBackground,
    pub(super) replica_waker: Waker,
    pub(super) hasher: hasher::Worker<DiskPages>,
    pub(super) hasher_due: u64,
    pub(super) log_finished: Arc<ArrayQueue<Finished>>,
    pub(super) arrivals: Vec<Arrivals>,
    /// Accepting: listener, shard and address.
    pub(super) listening: Vec<(u32, usize, u64)>,
}

/// A member of the simulated cluster.
pub struct Member {
    pub(super) number: usize,
    pub(super) config: Config,
    pub(super) disk: MemDisk,
    /// Counts starts.
    pub(super) life_number: u64,
    pub(super) life: Option<Box<Life>>,
    /// Who it is, once it has started.
    pub(super) id: u64,
    /// Who it is to become if it starts on an empty disk.
    pub(super) joins: Option<Identity>,
    /// It was removed from the cluster, and has stopped.
    pub(super) is_gone: bool,
    rate: u64,
    /// From a life's own clock to the time of day; nothing may come of it.
    pub(super) wall_s: Arc<AtomicI64>,
}

/// The address of a member's clients' port.
pub(super) fn client_address(member: usize) -> u64 {
    member as u64 * 2
}

/// The address of a member's peers' port.
pub(super) fn peer_address(member: usize) -> u64 {
    member as u64 * 2 + 1
}

impl Member {
    /// Member `number` of a new cluster, with an empty disk.
    pub(super) fn new(number: usize, plan: &Plan, prng: &mut Prng) -> Self {
        let rate = 1_000_000 - plan.drift + prng.below(2 * plan.drift + 1);
        let config = config(number, plan);
        let wall_s = Arc::new(AtomicI64::new(1_700_000_000));
        Self {
            number,
            config,
            disk: MemDisk::new(),
            life_number: 0,
            life: None,
            id: 0,
            joins: None,
            is_gone: number >= plan.members,
            rate,
            wall_s,
        }
    }

    /// Where the others reach it.
    pub(super) fn peer_url(&self) -> String {
        peer_url(self.number)
    }

    /// One run of this member, as histories number them.
    pub(super) fn run_number(&self) -> u64 {
        self.number as u64 * 1_000_000 + self.life_number
    }

    /// Starts it at the world's `now`, as boot does. All its shards want to run then.
    ///
    /// # Errors
    /// What boot says of its files.
    pub(super) fn start(
        &mut self,
        now: u64,
        plan: &Plan,
        prng: &mut Prng,
    ) -> Result<(), BootError> {
        self.life_number += 1;
        let nonce = prng.next_u64();
        let (mut stored, page_disk) = self.open(nonce)?;
        let own_clock = OwnClock::start(now, self.rate);
        let clock = Clock::simulated(own_clock.nanos.clone(), self.wall_s.clone());
        let config = self.config.clone();
        let tls = Arc::new(Tls::load(&config.tls, Path::new(""), &[], &[]).expect("no files"));
        let shared = assemble::shared(config, clock, tls, &mut stored, &page_disk, plan.fronts);
        let front_wakers: Vec<Waker> = (0..plan.fronts).map(|_| Waker::simulated()).collect();
        let replica_waker =
            if plan.shares_thread { front_wakers[0].clone() } else { Waker::simulated() };
        let mut wakers = front_wakers.clone();
        wakers.push(replica_waker.clone());
        let _ = shared.wakers.set(wakers);
        let effects = Effects::default();
        let pins = stored.store.revision_pins().clone();
        let (hasher, hasher_worker) =
            Hasher::with(shared.clone(), DiskPages::new(&self.disk), pins.clone());
        let made = Rc::new(RefCell::new(Vec::new()));
        let wiring = assemble::Wiring {
            shared: shared.clone(),
            pages: pages_maker(&self.disk, &effects, plan, prng.fork(), made.clone()),
            hasher,
            passwords: Passwords::at_once(),
            front_wakers: front_wakers.clone(),
            replica_waker: replica_waker.clone(),
            shares_thread: plan.shares_thread,
            nonce,
        };
        let client_port = AnyListener::Simulated(client_address(self.number));
        let url = "http://client".to_owned();
        let door = Arc::new(Door { url, serves: Serves::Everything });
        let (fronts, links) = wiring.fronts(&pins, vec![(client_port, door)]);
        let start_op = log_files(self.disk.clone(), effects.clone());
        let (files, log_finished) = LogFiles::simulated(start_op, log_reader(self.disk.clone()));
        let (background, desk) = Background::simulated();
        let mut checkpointer = None;
        let replica = wiring.replica(stored, files, links, |parts| {
            checkpointer = Some(parts);
            Ok(background)
        });
        let (Ok(replica), Some(checkpointer)) = (replica, checkpointer) else {
            return Err(BootError::Machine("the simulated machine refuses nothing".to_owned()));
        };
        drop(wiring);
        let peers = self.peers(&shared, &replica_waker);
        let fronts = front_wakers.into_iter().zip(fronts).collect();
        let replica = (replica_waker.clone(), (replica, peers));
        let shards = who_shares(fronts, replica, plan.shares_thread);
        self.life = Some(Box::new(Life {
            threads: threads(shards, &shared, &effects, now),
            shared: shared.clone(),
            clock: own_clock,
            background: BackgroundWorker::new(checkpointer),
            background_disk: QueuedDisk::new(&self.disk, effects.clone()),
            background_done: Vec::new(),
            background_due: NEVER,
            effects,
            desk,
            replica_waker,
            hasher: hasher_worker,
            hasher_due: NEVER,
            log_finished,
            arrivals: made.take(),
            listening: Vec::new(),
        }));
        Ok(())
    }

    /// Reads its files, or makes them; the page file's disk comes with what is in it.
    fn open(&mut self, nonce: u64) -> Result<(Stored, MemDisk), BootError> {
        let (mut page_disk, mut log_disk) = (self.disk.clone(), self.disk.clone());
        let disks: (&mut dyn Disk, &mut dyn Disk) = (&mut page_disk, &mut log_disk);
        let path = Path::new("");
        let stored = boot::open_stored_as(&self.config, nonce, path, disks, self.joins)?;
        self.id = stored.member_id;
        boot::refuse_removed(&stored)?;
        Ok((stored, page_disk))
    }

    /// The links to the other members, before any is there.
    fn peers(&self, shared: &Arc<Shared>, waker: &Waker) -> Peers {
        Peers::new(peers::Parts {
            shared: shared.clone(),
            listeners: vec![AnyListener::Simulated(peer_address(self.number))],
            pool: None,
            waker: waker.clone(),
        })
    }

    /// True if clients may come.
    pub(super) fn accepts(&self, address: u64) -> Option<(u32, usize)> {
        let life = self.life.as_ref()?;
        let found = life.listening.iter().find(|(_, _, known)| *known == address)?;
        Some((found.0, found.1))
    }
}

/// Pages that a front keeps in memory.
const FRONT_PAGES: usize = 4096;

/// Makes each thread's way to the page file, and remembers where its pages arrive.
fn pages_maker(
    disk: &MemDisk,
    effects: &Effects,
    plan: &Plan,
    prng: Prng,
    made: Rc<RefCell<Vec<Arrivals>>>,
) -> assemble::PagesMaker {
    let (disk, effects, prng) = (disk.clone(), effects.clone(), RefCell::new(prng));
    let (warm_percent, memory) = (plan.warm_percent, plan.replica_pages);
    Box::new(move |reader, waker| {
        let is_warm = || prng.borrow_mut().below(100) < warm_percent;
        let (warm, room) = match reader {
            PageReader::Front => (is_warm(), FRONT_PAGES),
            PageReader::Former => (false, FRONT_PAGES),
            PageReader::Replica => (is_warm(), memory),
        };
        let number = made.borrow().len();
        let (pages, arrivals) =
            SimPages::new(number, &disk, effects.clone(), waker.clone(), warm, room);
        made.borrow_mut().push(arrivals);
        Pages::simulated(Box::new(pages))
    })
}

fn peer_url(number: usize) -> String {
    format!("http://10.0.0.{}:2380", number + 1)
}

/// What the operator of member `number` typed.
fn config(number: usize, plan: &Plan) -> Config {
    let peer = peer_url;
    let client = format!("http://10.0.0.{}:2379", number + 1);
    let cluster: Vec<String> = (0..plan.members)
        .chain((number >= plan.members).then_some(number))
        .map(|other| format!("m{other}={}", peer(other)))
        .collect();
    let arguments = [
        format!("--name=m{number}"),
        format!("--listen-peer-urls={}", peer(number)),
        format!("--listen-client-urls={client}"),
        format!("--initial-advertise-peer-urls={}", peer(number)),
        format!("--advertise-client-urls={client}"),
        format!("--initial-cluster={}", cluster.join(",")),
        format!("--wal-segment-bytes={}", plan.segment_bytes),
        format!("--snapshot-catchup-entries={}", plan.catchup_entries),
        format!("--fronts={}", plan.fronts),
        format!("--strict-reconfig-check={}", plan.strict),
        "--max-learners=2".to_owned(),
        // Both ways; the default more often.
        format!("--feature-gates=FastLeaseKeepAlive={}", !plan.seed.is_multiple_of(4)),
    ];
    let engine = EngineConfig { checkpoint_ms: plan.checkpoint_ms, ..EngineConfig::default() };
    match flags::parse(arguments, std::iter::empty()) {
        Ok(Asked::Run(config, _)) => Config { engine, ..*config },
        Ok(Asked::Print(text)) => panic!("the simulator's flags ask for text: {text}"),
        Err(refused) => panic!("the simulator's flags are wrong: {}", refused.message),
    }
}

/// What runs on one thread, and the thread's waker.
type OnOneThread = (Waker, Option<Front>, Option<(Replica, Peers)>);

/// Which parts share a thread: each front has its own, the replica too unless it shares the first.
fn who_shares(
    fronts: Vec<(Waker, Front)>,
    (replica_waker, replica): (Waker, (Replica, Peers)),
    shares_thread: bool,
) -> Vec<OnOneThread> {
    let mut replica = Some(replica);
    let mut shards = Vec::new();
    for (index, (waker, front)) in fronts.into_iter().enumerate() {
        let with_replica = shares_thread && index == 0;
        let replica = if with_replica { replica.take() } else { None };
        shards.push((waker, Some(front), replica));
    }
    if replica.is_some() {
        shards.push((replica_waker, None, replica));
    }
    shards
}

/// The threads of a life, all of which want to run at `now`.
fn threads(
    shards: Vec<OnOneThread>,
    shared: &Arc<Shared>,
    effects: &Effects,
    now: u64,
) -> Vec<Thread> {
    let threads = shards.into_iter().enumerate().map(|(index, (waker, front, replica))| {
        let port = SharedPort::default();
        let driver = SimDriver::new(index, port.clone(), effects.clone(), waker.clone());
        let driver = Box::new(driver);
        let (replica, peers) = replica.unzip();
        let shard = Shard::new(shared.clone(), driver, waker.clone(), front, replica, peers);
        Thread { shard, port, waker, waits: false, due: NEVER, busy_until: now, stopped: false }
    });
    threads.collect()
}
