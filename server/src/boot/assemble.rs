//! Putting the recovered parts together: what all shards see, the rings between them, and who gets
//! which thread.
//!
//! Called by boot, and by the simulator, once everything was recovered. Nothing here can be wrong
//! with the operator's data any more; only the machine can refuse.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use arc_swap::ArcSwap;
use crossbeam_queue::ArrayQueue;
use etcore_engine::checkpoint::Checkpointer;
use etcore_engine::file::Disk;
use etcore_engine::map::PageMap;
use etcore_engine::pins::RevisionPins;
use etcore_proto::h2::Budget;

use super::corruption;
use super::threads::{self, Helpers, Plan, Running};
use super::{DataDir, Listeners, Recovered, Stored};
use crate::api;
use crate::background::hasher::Hasher;
use crate::background::passwords::Passwords;
use crate::background::{Background, Setup};
use crate::channel::ring;
use crate::channel::{Lifecycle, MemberView, Shared, StatusCell};
use crate::clock::Clock;
use crate::config::Config;
use crate::disk::pages::{PageFile, PageReader, Pages};
use crate::disk::pool::{Pool, PoolThreads, Size};
use crate::driver::probe::{self, Choice};
use crate::driver::{AnyListener, Waker};
use crate::freer::Freer;
use crate::front::{self, Door, Front, SocketQueue};
use crate::ids::RequestIds;
use crate::limits;
use crate::metrics::{Calls, Metrics};
use crate::peers::{self, Peers};
use crate::replica::{self, FrontLink, LogFiles, LogPools, Replica};
use crate::shard::Shard;
use crate::tls::Tls;

/// Makes a reader's way to the page file, which wakes its thread.
pub(crate) type PagesMaker = Box<dyn Fn(PageReader, &Waker) -> Pages>;

/// What every shard is wired with.
pub(crate) struct Wiring {
    /// What all shards see.
    pub(crate) shared: Arc<Shared>,
    pub(crate) pages: PagesMaker,
    pub(crate) hasher: Hasher,
    pub(crate) passwords: Passwords,
    pub(crate) front_wakers: Vec<Waker>,
    pub(crate) replica_waker: Waker,
    /// The replica lives on front 0's thread: its crossing is a call and needs no wake-up.
    pub(crate) shares_thread: bool,
    /// Differs between starts.
    pub(crate) nonce: u64,
}

/// Fronts, and whether the replica shares front 0's thread. On one or two cores a thread of its own
/// would only add wake-ups.
fn layout(config: &Config, cores: usize) -> (usize, bool) {
    let fronts = config.fronts.unwrap_or(cores.saturating_sub(1).max(1));
    (fronts, cores <= 2 && fronts == 1)
}

/// Starts the threads of a recovered member.
pub(super) fn run(
    config: Config,
    clock: Clock,
    dir: DataDir,
    choice: &Choice,
    mut recovered: Recovered,
    tls: Arc<Tls>,
    listeners: Listeners,
) -> io::Result<Running> {
    let cores = threads::cores();
    let (fronts, shares_thread) = layout(&config, cores);
    tracing::info!(cores, fronts, replica_shares_front = shares_thread, "threads");
    let mut pool_threads = PoolThreads::default();
    let passwords = Passwords::start(cores, fronts, &mut pool_threads)?;
    let mut pool =
        |name, threads, jobs| Pool::start(name, Size { threads, jobs }, &mut pool_threads);
    // A front may read the state of before a snapshot as well.
    let page_jobs = (2 * fronts + 1) * limits::PAGE_FETCHES;
    let page_pool = pool("etcore-pages", limits::PAGE_THREADS, page_jobs)?;
    let name_pool = pool("etcore-names", limits::NAME_THREADS, limits::PEER_NAMES)?;
    let commit = pool("etcore-commit", 1, limits::LOG_COMMIT_JOBS)?;
    let side = pool("etcore-log-side", limits::LOG_SIDE_THREADS, limits::LOG_SIDE_JOBS)?;
    let page_file = recovered
        .page_disk
        .handle(recovered.stored.checkpointer.file())
        .ok_or_else(|| io::Error::other("the page file is not open"))?;
    let front_wakers = (0..fronts).map(|_| Waker::new()).collect::<io::Result<Vec<_>>>()?;
    let replica_waker = if shares_thread { front_wakers[0].clone() } else { Waker::new()? };
    let Recovered { stored, page_disk, .. } = &mut recovered;
    let shared = shared(config, clock, tls, stored, page_disk, fronts);
    let _ = shared.freer.set(Freer::start()?);
    let pins = recovered.stored.store.revision_pins().clone();
    let (hasher, hasher_thread) = Hasher::start(shared.clone(), page_file.clone(), pins)?;
    corruption::check(&shared, &recovered, &hasher, &replica_waker).map_err(io::Error::other)?;
    let Recovered { stored, nonce, page_disk, log_disk, .. } = recovered;
    let pages: PagesMaker = Box::new(move |_, waker| {
        let map = PageMap::new(page_file.clone(), limits::PAGE_WINDOW_BYTES);
        Pages::new(map, page_pool.clone(), waker.clone())
    });
    let wiring = Wiring {
        shared,
        pages,
        hasher,
        passwords,
        front_wakers,
        replica_waker,
        shares_thread,
        nonce,
    };
    wiring.share_wakers();
    let (fronts, links) = wiring.fronts(stored.store.revision_pins(), listeners.client);
    let pools = LogPools { commit, side };
    let files = LogFiles::new(log_disk, pools, wiring.replica_waker.clone());
    let replica = wiring.replica(stored, files, links, |checkpointer| {
        Background::start(Setup {
            checkpointer,
            disk: page_disk,
            driver: choice.kind,
            replica: wiring.replica_waker.clone(),
        })
    })?;
    let peers = Peers::new(peers::Parts {
        shared: wiring.shared.clone(),
        listeners: listeners.peer,
        pool: Some(name_pool),
        waker: wiring.replica_waker.clone(),
    });
    // The threads' own handles are all that is left of the others.
    let Wiring { shared, front_wakers, replica_waker, .. } = wiring;
    let plan = Plan {
        driver: choice.kind,
        fronts: fronts.into_iter().zip(front_wakers).collect(),
        replica: (replica, peers, replica_waker),
        shares_thread,
        pin: cores > 2,
    };
    let helpers = Helpers { pool: pool_threads, hasher: hasher_thread };
    threads::start(shared, plan, helpers, dir.lock)
}

/// What all shards of a recovered member see.
pub(crate) fn shared(
    config: Config,
    clock: Clock,
    tls: Arc<Tls>,
    stored: &mut Stored,
    page_disk: &dyn Disk,
    fronts: usize,
) -> Arc<Shared> {
    let file = page_disk.share(stored.checkpointer.file());
    let page_file = PageFile { number: 0, cuts: 0, file };
    let calls = Calls::new(api::method_labels(), fronts, config.observe.extensive_metrics);
    let metrics = Metrics::new(stored.member_id, calls);
    for (name, stage, enabled) in config.feature_gates.listed() {
        metrics.set_feature(name, stage, enabled);
    }
    let shared = Arc::new(Shared {
        member_id: stored.member_id,
        cluster_id: stored.cluster_id,
        tls,
        tokens: config.auth.tokens(),
        clock,
        ids: RequestIds::new(stored.member_id, stored.nonce),
        view: ArcSwap::from_pointee(MemberView::of_keys(stored.store.publish(), page_file)),
        status: StatusCell::default(),
        metrics,
        connections: (0..fronts).map(|_| AtomicUsize::new(0)).collect(),
        watching: (0..fronts).map(|_| AtomicBool::new(false)).collect(),
        lifecycle: Lifecycle::new(fronts),
        profiling: AtomicBool::new(false),
        wakers: std::sync::OnceLock::new(),
        waiter: std::sync::OnceLock::new(),
        freer: std::sync::OnceLock::new(),
        config,
    });
    let (file_bytes, free_bytes) = stored.checkpointer.size_bytes();
    shared.note_size(file_bytes, free_bytes);
    shared
}

impl Wiring {
    /// Lets everybody wake everybody; the replica's comes last.
    fn share_wakers(&self) {
        let mut wakers = self.front_wakers.clone();
        wakers.push(self.replica_waker.clone());
        let _ = self.shared.wakers.set(wakers);
    }

    /// The fronts, and the replica's ends of their rings.
    pub(crate) fn fronts(
        &self,
        pins: &RevisionPins,
        listeners: Vec<(AnyListener, Arc<Door>)>,
    ) -> (Vec<Front>, Vec<FrontLink>) {
        let socket_queues: Vec<SocketQueue> = self
            .front_wakers
            .iter()
            .map(|waker| SocketQueue {
                queue: Arc::new(ArrayQueue::new(limits::HANDOFFS)),
                waker: Some(waker.clone()),
            })
            .collect();
        let routes = Arc::new(api::routes());
        let budget = Budget::new(limits::PROCESS_RECEIVE_BYTES, limits::CONNECTION_RECEIVE_BYTES);
        let mut listeners = Some(listeners);
        let mut fronts = Vec::new();
        let mut links = Vec::new();
        for (index, waker) in self.front_wakers.iter().enumerate() {
            let same_thread = self.shares_thread && index == 0;
            let wake = |waker: &Waker| (!same_thread).then(|| waker.clone());
            let (to_replica, inbox) = ring(limits::RING_TO_REPLICA, wake(&self.replica_waker));
            let (to_lessor, asks) = ring(limits::RING_LEASES, wake(&self.replica_waker));
            let (outbox, from_replica) = ring(limits::RING_TO_FRONT, wake(waker));
            links.push(FrontLink::new(inbox, asks, outbox));
            let services = api::Setup {
                index,
                shared: self.shared.clone(),
                to_replica,
                to_lessor,
                from_replica,
                pages: (self.pages)(PageReader::Front, waker),
                former_pages: (self.pages)(PageReader::Former, waker),
                pins: pins.clone(),
                hasher: self.hasher.clone(),
                passwords: self.passwords.clone(),
                waker: waker.clone(),
            };
            let parts = front::Parts {
                services,
                budget: budget.clone(),
                routes: routes.clone(),
                socket_queues: socket_queues.clone(),
                listeners: listeners.take().unwrap_or_default(),
            };
            // Leases and watches number what they make from here.
            fronts.push(Front::new(parts, self.nonce.wrapping_add((index as u64) << 48)));
        }
        (fronts, links)
    }

    /// The replica; `background` is what makes its checkpoints.
    pub(crate) fn replica(
        &self,
        stored: Stored,
        files: LogFiles,
        fronts: Vec<FrontLink>,
        background: impl FnOnce(Checkpointer) -> io::Result<Background>,
    ) -> io::Result<Replica> {
        let Stored { store, lessor, checkpointer, log, .. } = stored;
        let spare_bytes = checkpointer.spare_bytes();
        let background = background(checkpointer)?;
        let parts = replica::Parts {
            shared: self.shared.clone(),
            log,
            files,
            store,
            lessor,
            pages: (self.pages)(PageReader::Replica, &self.replica_waker),
            background,
            spare_bytes,
            hasher: self.hasher.clone(),
            fronts,
        };
        Ok(Replica::new(parts))
    }
}

/// A shard on the calling thread, with a driver of its own.
pub(super) fn shard(
    shared: &Arc<Shared>,
    kind: probe::DriverKind,
    waker: &Waker,
    front: Option<Front>,
    replica: Option<(Replica, Peers)>,
) -> io::Result<Shard> {
    let driver = probe::create(kind, waker.clone())?;
    let (replica, peers) = replica.unzip();
    Ok(Shard::new(shared.clone(), driver, waker.clone(), front, replica, peers))
}
