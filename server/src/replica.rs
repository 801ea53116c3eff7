//! The replica: the single owner of raft, the log, the write side of the store and the membership.
//!
//! Driven by its shard's loop, which runs the stages of a turn ([`Stage`]): what the fronts sent is
//! proposed as one batch and logged; what is committed is applied, up to a bound that lets the
//! fronts answer in between, published, and answered. Nothing is answered before its log write was
//! synced and its entry applied, and nothing is visible before it is committed. No locks, no
//! blocking calls, no clock of its own.
//!
//! Its state is in parts, each in a file of its own, whose fields nothing else can reach. A turn
//! calls their methods and lends them what they need; what takes several parts is an `impl
//! Replica` beside the part that it is most about.
//!
//! | part | what it holds |
//! |---|---|
//! | `turn`, `ending` | the stages of a turn, its time; how a replica ends |
//! | `standing` | what raft has last said of this member and its leader |
//! | `link`, `intake`, `proposals`, `read_rounds` | fronts' requests, who waits for what |
//! | `log_lanes` | the log's operations |
//! | `applier`, `state` | entries to be applied; the small buckets they change |
//! | `lease_service` | leases, and questions about them |
//! | `publish`, `introduction` | what becomes visible; how a member gets known |
//! | `checkpoints`, `compaction`, `space`, `alarms`, `hashes` | the page file's upkeep |
//! | `auto_compactor` | compactions that nobody asks for |
//! | `peer_queue`, `peer_requests`, `versions` | messages and questions of peers |
//! | `changes`, `membership` | changes of the members, on their way and applied |
//! | `transfer`, `failover`, `watchdog` | who leads |
//! | `snapshots` | states of the store for members that lag behind |

use std::sync::Arc;
use std::sync::atomic::Ordering;

use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_engine::store::Store;
use etcore_raftlog::log::Log;
use etcore_raftlog::node::{Effects, Role, SoftState};

use crate::background::hasher::Hasher;
use crate::background::{Answer, Background};
use crate::channel::Shared;
use crate::clock::millis;
use crate::disk::pages::Pages;
use crate::ids::IdBlock;
use crate::limits;
use crate::quota::Quota;

mod alarms;
mod applier;
mod apply;
mod authing;
mod auto_compactor;
mod backlog;
mod changes;
mod checkpoints;
mod compaction;
mod corruption;
mod due;
mod ending;
mod executing;
mod failover;
mod hashes;
mod intake;
mod introduction;
mod lease_service;
mod link;
mod log_files;
mod log_lanes;
mod membership;
mod peer_queue;
mod peer_requests;
mod proposals;
mod publish;
mod read_rounds;
mod skip;
mod snapshots;
mod space;
mod standing;
mod state;
mod transfer;
mod turn;
mod versions;
mod watchdog;

use crate::auth::tokens::TokenKeeper;
use crate::lease::Lessor;
use alarms::QuotaWatch;
use applier::Applier;
use auto_compactor::AutoCompactor;
use changes::Changes;
pub use changes::PROMOTE_PREFIX;
use checkpoints::Checkpoints;
use compaction::Compactions;
use corruption::Corruption;
use ending::Ending;
pub use ending::REMOVED;
use failover::Failover;
use hashes::Hashes;
use intake::Intake;
use introduction::Introduction;
pub use lease_service::BATCH_PATH as LEASE_BATCH_PATH;
use lease_service::LeaseService;
pub use link::FrontLink;
use link::Fronts;
pub use log_files::{DurableWrite, Finished, Lane, LogFiles, LogPools, ReadOp, StartOp, Started};
use log_lanes::LogLanes;
use peer_queue::PeerQueue;
pub use peer_requests::PeerReply;
use peer_requests::PeerRequests;
use proposals::Proposals;
use publish::Publisher;
use read_rounds::ReadRounds;
pub use skip::SkipEntry;
pub use snapshots::PART_PATH;
use snapshots::Snapshots;
use space::Space;
use standing::Standing;
use state::State;
use transfer::Transfer;
pub use turn::Stage;
use turn::Turn;
use versions::Versions;
use watchdog::Watchdog;

/// What a replica is made of.
pub struct Parts {
    /// What all shards see.
    pub shared: Arc<Shared>,
    /// Raft and the log.
    pub log: Log,
    /// The log's files.
    pub files: LogFiles,
    /// The store.
    pub store: Store,
    /// The leases in it.
    pub lessor: Lessor,
    /// Pages for reads inside apply.
    pub pages: Pages,
    /// The checkpoints' thread.
    pub background: Background,
    /// What the page file's writer has to spare ([`Checkpointer::spare_bytes`]).
    ///
    /// [`Checkpointer::spare_bytes`]: etcore_engine::checkpoint::Checkpointer::spare_bytes
    pub spare_bytes: u64,
    /// Hashes compactions.
    pub hasher: Hasher,
    /// The fronts' rings.
    pub fronts: Vec<FrontLink>,
}

/// See the module text. Every part states its own invariants.
pub struct Replica {
    shared: Arc<Shared>,
    log: Log,
    store: Store,
    pages: Pages,
    background: Background,
    request_timeout_ms: u64,
    ids: IdBlock,
    /// raft's effects, whose memory is used again.
    effects: Effects,
    turn: Turn,
    ending: Ending,
    standing: Standing,
    fronts: Fronts,
    intake: Intake,
    proposals: Proposals,
    reads: ReadRounds,
    lanes: LogLanes,
    applier: Applier,
    state: State,
    tokens: TokenKeeper,
    leases: LeaseService,
    publisher: Publisher,
    introduction: Introduction,
    checkpoints: Checkpoints,
    compactions: Compactions,
    auto_compactor: AutoCompactor,
    space: Space,
    quota: QuotaWatch,
    hashes: Hashes,
    corruption: Corruption,
    peer_queue: PeerQueue,
    peer_requests: PeerRequests,
    versions: Versions,
    changes: Changes,
    transfer: Transfer,
    failover: Failover,
    watchdog: Watchdog,
    snapshots: Snapshots,
}

impl Replica {
    /// A replica over recovered parts.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            shared,
            log,
            files,
            store,
            lessor,
            pages,
            background,
            spare_bytes,
            hasher,
            fronts,
        } = parts;
        let quota = Quota::new(shared.config.quota_backend_bytes);
        shared.metrics.quota_bytes.set(quota.limit_bytes().unwrap_or(0));
        let (state, auth) = State::load(&store);
        if let Err(error) = auth {
            shared.fail(format!("page file: {error}"));
        }
        let mut tokens = TokenKeeper::default();
        if let Some(simple) = shared.tokens.simple() {
            tokens.enable(simple, state.auth().is_enabled());
        }
        let fast_renewals = shared.config.feature_gates.fast_lease_keep_alive;
        Self {
            request_timeout_ms: shared.config.request_timeout_ms(),
            ids: IdBlock::default(),
            effects: Effects::default(),
            turn: Turn::default(),
            ending: Ending::default(),
            standing: Standing::new(log.node.status().soft_state),
            fronts: Fronts::new(fronts),
            intake: Intake::default(),
            proposals: Proposals::default(),
            reads: ReadRounds::default(),
            lanes: LogLanes::new(files),
            applier: Applier::default(),
            state,
            tokens,
            leases: LeaseService::new(lessor, fast_renewals),
            publisher: Publisher::new(),
            introduction: Introduction::default(),
            checkpoints: Checkpoints::new(shared.view.load().page_file.clone()),
            compactions: Compactions::default(),
            auto_compactor: AutoCompactor::new(shared.config.auto_compaction),
            space: Space::new(spare_bytes),
            quota: QuotaWatch::new(quota),
            hashes: Hashes::new(hasher),
            corruption: Corruption::new(
                millis(shared.config.corrupt_check_time),
                millis(shared.config.compact_hash_check_interval()),
            ),
            peer_queue: PeerQueue::default(),
            peer_requests: PeerRequests::default(),
            versions: Versions::default(),
            changes: Changes::default(),
            transfer: Transfer::default(),
            failover: Failover::default(),
            watchdog: Watchdog::default(),
            snapshots: Snapshots::default(),
            shared,
            log,
            store,
            pages,
            background,
        }
    }

    fn is_leader(&self) -> bool {
        self.standing.is_leader()
    }

    /// [`Stage::Receive`].
    fn receive(&mut self) {
        self.tick();
        self.follow_up_refusal();
        self.take_lease_requests();
        self.take_log_files();
        self.take_background();
        self.take_hashes();
        self.pages.take_finished();
        self.step_messages();
        self.confirm_lease_requests();
        self.propose_member();
        self.propose_changes();
        self.take_requests();
    }

    /// [`Stage::Log`].
    fn log_stage(&mut self) -> Option<DurableWrite> {
        let write = self.advance_log();
        self.collect_effects();
        write.or_else(|| self.advance_log())
    }

    /// [`Stage::Apply`]. It may want something written too, which is kept for the end of the turn.
    fn apply_stage(&mut self) {
        let put_off_large = self.turn.puts_off_large(self.is_large_next());
        self.applier.begin_turn(put_off_large, || self.shared.clock.elapsed());
        loop {
            let applied = self.apply_committed();
            self.publish();
            if !applied && !self.collect_effects() {
                break;
            }
            if !self.turn.has_write() {
                let write = self.advance_log();
                self.turn.keep_write(write);
            }
        }
    }

    /// [`Stage::Answer`].
    fn answer_stage(&mut self) {
        self.answer_lease_requests();
        self.watch_transfers();
    }

    /// [`Stage::Save`].
    fn save_stage(&mut self) {
        self.move_snapshots();
        self.maybe_checkpoint();
    }

    /// [`Stage::Finish`].
    fn finish_stage(&mut self) -> Option<DurableWrite> {
        if self.turn.take_ticked() {
            self.refresh_gauges();
        }
        self.fronts.flush();
        self.maybe_stop();
        self.turn.take_write().or_else(|| self.advance_log())
    }

    fn tick(&mut self) {
        let tick_ms = u64::try_from(self.shared.config.heartbeat.as_millis()).unwrap_or(100);
        let Some(slept_ms) = self.turn.tick(tick_ms) else { return };
        self.log.node.tick();
        self.tick_leases(slept_ms, tick_ms);
        self.tick_tokens();
        if self.space.retries(self.turn.now_ms()) {
            self.log.writer.retry_spare();
            self.look_for_space();
        }
        self.clear_alarm();
        self.compact_by_itself();
        self.end_long_pins();
        self.watch_work();
        self.tick_snapshots();
        self.expire_proposals();
        self.expire_changes();
        self.monitor_version();
        self.compare_data();
        if cfg!(debug_assertions) {
            self.check();
        }
    }

    /// Asserts the invariants of the parts that take a look at everything.
    fn check(&self) {
        self.proposals.check();
        self.leases.check();
        self.peer_queue.check();
        self.check_members();
    }

    fn take_background(&mut self) {
        while let Some(answer) = self.background.poll() {
            match answer {
                Answer::Checkpoint(output) => self.checkpoint_written(*output),
                Answer::Stalled => self.space.note_stalled(),
                Answer::SnapshotHeld(mark) => self.snapshot_held(mark),
                Answer::SnapshotRead { ticket, part } => self.part_read(ticket, part),
                Answer::SnapshotReceived { transfer, received } => {
                    self.snapshot_received(transfer, received);
                }
                Answer::SnapshotAdopted { file } => self.snapshot_adopted(file),
                Answer::Failed(reason) => self.fail(format!("page file: {reason}")),
            }
        }
    }

    /// Takes what raft wants done: log writes, committed entries, reads, a new leader. True if
    /// there was anything.
    fn collect_effects(&mut self) -> bool {
        let mut effects = std::mem::take(&mut self.effects);
        let mut any = false;
        loop {
            match self.log.turn(&mut effects) {
                Ok(true) => any = true,
                Ok(false) => break,
                Err(error) => {
                    self.fail(format!("write-ahead log: {error}"));
                    break;
                }
            }
            self.carry_out(&mut effects);
        }
        self.effects = effects;
        any
    }

    fn carry_out(&mut self, effects: &mut Effects) {
        if effects.snapshot.is_some() {
            self.space.forget_proposed();
        }
        if let Some(write) = effects.log.as_ref().filter(|write| write.count > 0) {
            let bytes = self.log.node.entries_of(write).map(|entry| entry.data.len() as u64);
            self.space.note_logged(bytes.sum::<u64>());
            if self.log.node.status().soft_state.role != Role::Leader {
                self.proposals.outlive_overwritten(write.first);
            }
        }
        self.post(&mut effects.messages);
        for fetch in effects.fetches.drain(..) {
            match self.log.writer.plan(&fetch) {
                Some(plan) => self.lanes.fetch(fetch.id, plan),
                None => self.log.node.on_fetched(fetch.id, Vec::new()),
            }
        }
        if let Some(mark) = effects.snapshot.take() {
            self.begin_install(mark);
        }
        if let Some(to) = effects.snapshot_wanted.take() {
            self.snapshot_wanted(to);
        }
        self.applier.extend(effects.committed.drain(..));
        for read in effects.reads.drain(..) {
            self.finish_reads(read.ticket, read.index);
        }
        if let Some(soft_state) = effects.soft_state.take() {
            self.change_soft_state(soft_state);
        }
    }

    /// In the words of etcd's raft.
    fn tell_of_leader(&self, soft_state: &SoftState) {
        let (own, term) = (self.shared.member_id, soft_state.term.0);
        let text = match (self.standing.leader(), soft_state.leader) {
            (0, leader) => format!("elected leader {leader:x}"),
            (before, 0) => format!("lost leader {before:x}"),
            (before, leader) => format!("changed leader from {before:x} to {leader:x}"),
        };
        tracing::info!("raft.node: {own:x} {text} at term {term}");
    }

    fn change_soft_state(&mut self, soft_state: SoftState) {
        let status = &self.shared.status;
        let leader_changed = soft_state.leader != self.standing.leader();
        if leader_changed {
            self.tell_of_leader(&soft_state);
            if soft_state.leader != 0 {
                self.shared.metrics.leader_changes.inc();
            }
        }
        let known = self.standing.change(soft_state);
        if soft_state.role != Role::Leader && !is_on(SeededBug::LeaseRevokedByFollower) {
            self.leases.demote();
        } else if known.role != Role::Leader {
            status.elected_ms.store(self.turn.now_ms().max(1), Ordering::Relaxed);
        }
        if soft_state.leader == 0 && known.leader != 0 {
            status.leaderless_since_ms.store(self.turn.now_ms(), Ordering::Relaxed);
        }
        status.leader.store(soft_state.leader, Ordering::Relaxed);
        status.term.store(soft_state.term.0, Ordering::Relaxed);
        self.shared.metrics.has_leader.set(u64::from(soft_state.leader != 0));
        self.shared.metrics.is_leader.set(u64::from(self.is_leader()));
        self.leader_changed();
        if leader_changed {
            self.take_back_lease_requests();
        }
    }
}

const _: () = assert!(limits::BACKGROUND_TASKS >= 2);

#[cfg(test)]
mod tests;
