//! The replica: the single owner of raft, the log, the write side of the store and the membership.
//!
//! Driven by its shard's loop: [`Replica::turn`] takes what the fronts sent, proposes it as one
//! batch and has it logged; [`Replica::finish_turn`] applies what is committed, up to a bound that
//! lets the fronts answer in between, publishes, and answers. Nothing is answered
//! before its log write was synced and its entry applied, and nothing is visible before it is
//! committed. No locks, no blocking calls, no clock of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcore_engine::file::{AlignedBuf, FileOutput};
use etcore_engine::mutation::{Mutation, is_on};
use etcore_engine::store::Store;
use etcore_engine::types::{LogIndex, Term};
use etcore_raftlog::log::Log;
use etcore_raftlog::node::{Effects, Role, SoftState};

use crate::auth::Auth;
use crate::background::hasher::Hasher;
use crate::background::{Answer, Background};
use crate::channel::{Shared, Slot, ToFront};
use crate::cluster::alarm::Alarms;
use crate::cluster::downgrade::Downgrade;
use crate::cluster::member::Member;
use crate::disk::pages::{PageFile, Pages};
use crate::ids::IdBlock;
use crate::kv::range::Scratch;
use crate::limits;
use crate::quota::Quota;
use crate::work::{Job, Work};

mod alarms;
mod apply;
pub mod asks;
mod authing;
mod backlog;
mod batches;
mod checkpoints;
mod compaction;
mod due;
mod executing;
mod failover;
mod hashes;
mod leasing;
mod link;
mod log_files;
mod membership;
pub mod peering;
mod propose;
mod publish;
mod skip;
mod snapshots;
mod space;
mod transfer;
mod versions;
mod waiting;
mod walks;
pub mod watchdog;

use crate::lease::Lessor;
use backlog::Backlog;
pub use batches::BATCH_PATH as LEASE_BATCH_PATH;
use compaction::HeldBack;
use executing::Running;
use failover::Failover;
use hashes::Hashes;
use leasing::LeaseDesk;
pub use link::FrontLink;
pub use log_files::{DurableWrite, Finished, Lane, LogFiles, LogPools, ReadOp, StartOp, Started};
use peering::Peering;
use propose::Origin;
pub use skip::SkipEntry;
pub use snapshots::PART_PATH;
use snapshots::Snapshots;
use space::Space;
use transfer::Transfer;
use versions::Versions;
use waiting::Waiting;
use watchdog::Watchdog;

/// A proposal of this member that waits to be applied.
struct Proposal {
    index: LogIndex,
    term: Term,
    /// `None` for the member's own.
    from: Option<Origin>,
    /// When nobody waits for it any more, should this member no longer lead.
    deadline_ms: u64,
}

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

/// See the module text.
///
/// Invariants: `proposals` ascend by index; an entry is applied only when all before it are; at
/// most one checkpoint and one durable write are outstanding.
pub struct Replica {
    shared: Arc<Shared>,
    log: Log,
    files: LogFiles,
    store: Store,
    desk: LeaseDesk,
    pages: Pages,
    background: Background,
    hashes: Hashes,
    fronts: Vec<FrontLink>,
    effects: Effects,
    to_apply: Backlog,
    /// The entry before these, if it is between two slices.
    running: Option<Box<Running>>,
    proposals: VecDeque<Proposal>,
    /// Those that went to another leader.
    waiting: Waiting,
    peering: Peering,
    peers_first: bool,
    asks: asks::Asks,
    versions: Versions,
    transfer: Transfer,
    /// Replies of entries that are applied and not yet published.
    replies: Vec<(usize, ToFront)>,
    /// Read rounds under way: the ticket raft knows, and the front's own.
    reads: VecDeque<(u64, usize, u64)>,
    next_read: u64,
    soft_state: SoftState,
    snapshots: Snapshots,
    /// No proposal was taken in the last turn: the log is busy, or there is no leader. What ends
    /// that wakes the shard, so what waits in the rings is no reason to stay awake.
    proposals_wait: bool,
    /// Large proposals wait for the end of a log write or of a checkpoint, which wakes the shard.
    large_wait: bool,
    /// Everything but small proposals of this member's clients waits for the log's spare segment,
    /// which wakes the shard.
    spare_wait: bool,
    members: Arc<Vec<Member>>,
    cluster_version: Option<Arc<str>>,
    alarms: Arc<Alarms>,
    auth: Arc<Auth>,
    /// An entry that was skipped, and that the page file is not beyond for good yet.
    skipped: Option<LogIndex>,
    downgrade: Arc<Downgrade>,
    quota: Quota,
    /// Since when little enough is used for this member's NOSPACE alarm to go off.
    relaxed_since_ms: Option<u64>,
    /// Compactions that long reads hold up.
    held_back: HeldBack,
    unpublished: bool,
    page_file: PageFile,
    space: Space,
    /// Who waits for the end of a defragmentation.
    defragmenters: Vec<(usize, Slot)>,
    scratch: Scratch,
    /// What was done in this turn.
    work: Work,
    /// When this turn began.
    now_ms: u64,
    /// When the first one did.
    started_ms: u64,
    request_timeout_ms: u64,
    /// Of [`limits::APPLY_TURN_COST`], what is left in this turn.
    apply_room: usize,
    /// When this turn applies no more.
    apply_until: Duration,
    /// Rows that large entries have changed since the last view was published.
    unpublished_rows: usize,
    /// Large proposals went to the log in this turn.
    took_large: bool,
    /// Large entries were not applied in the last turn, because of that.
    put_off_large: bool,
    /// A tick was due in this turn.
    ticked: bool,
    /// When the entry that is first in line was first tried.
    applying_since: Option<Duration>,
    last_tick_ms: u64,
    next_tick_ms: u64,
    checkpoint_started_ms: Option<u64>,
    checkpoint_rest_until_ms: u64,
    write_started: Duration,
    watchdog: Watchdog,
    failover: Failover,
    /// It leads and sends nothing, so that others elect another: see [`watchdog`].
    silent: bool,
    physical_compactions: Vec<(i64, usize, ToFront)>,
    /// Set by the entry being applied if its answer waits for the pages to be rid of old revisions.
    waits_for_compaction: Option<i64>,
    ids: IdBlock,
    /// IDs of the entries by which this member publishes itself, in this life.
    publishing: Vec<u64>,
    publish_again_ms: u64,
    published_self: bool,
    serving: bool,
    retry_spare_ms: u64,
    /// The commit index was handed to the log for a clean end.
    flushed: bool,
    /// A clean end waits for the log no longer than this.
    give_up_ms: Option<u64>,
    stopped: bool,
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
        let soft_state = log.node.status().soft_state;
        let page_file = shared.view.load().page_file.clone();
        let quota = Quota::new(shared.config.quota_backend_bytes);
        shared.metrics.quota_bytes.set(quota.limit_bytes().unwrap_or(0));
        let fast_renewals = shared.config.feature_gates.fast_lease_keep_alive;
        let request_timeout_ms = shared.config.request_timeout_ms();
        let auth = Auth::load(&store).unwrap_or_else(|error| {
            shared.fail(format!("page file: {error}"));
            Auth::default()
        });
        authing::warn_of_auth(&auth, false);
        Self {
            shared,
            log,
            files,
            pages,
            background,
            hashes: Hashes::new(hasher),
            fronts,
            effects: Effects::default(),
            to_apply: Backlog::default(),
            running: None,
            proposals: VecDeque::new(),
            waiting: Waiting::default(),
            peering: Peering::default(),
            peers_first: false,
            asks: asks::Asks::default(),
            versions: Versions::default(),
            transfer: Transfer::default(),
            replies: Vec::new(),
            reads: VecDeque::new(),
            next_read: 0,
            soft_state,
            snapshots: Snapshots::default(),
            proposals_wait: false,
            large_wait: false,
            spare_wait: false,
            members: publish::members(&store),
            cluster_version: publish::cluster_version(&store),
            alarms: Arc::new(Alarms::load(&store)),
            auth: Arc::new(auth),
            skipped: None,
            downgrade: Arc::new(Downgrade::load(&store)),
            quota,
            relaxed_since_ms: None,
            held_back: HeldBack::default(),
            unpublished: true,
            page_file,
            space: Space { spare_bytes, ..Space::default() },
            defragmenters: Vec::new(),
            store,
            desk: LeaseDesk::new(lessor, fast_renewals),
            scratch: Scratch::default(),
            work: Work::default(),
            now_ms: 0,
            started_ms: 0,
            request_timeout_ms,
            apply_room: 0,
            apply_until: Duration::ZERO,
            unpublished_rows: 0,
            took_large: false,
            put_off_large: false,
            ticked: false,
            applying_since: None,
            last_tick_ms: 0,
            next_tick_ms: 0,
            checkpoint_started_ms: None,
            checkpoint_rest_until_ms: 0,
            write_started: Duration::ZERO,
            watchdog: Watchdog::default(),
            failover: Failover::default(),
            silent: false,
            physical_compactions: Vec::new(),
            waits_for_compaction: None,
            ids: IdBlock::default(),
            publishing: Vec::new(),
            publish_again_ms: 0,
            published_self: false,
            serving: false,
            retry_spare_ms: 0,
            flushed: false,
            give_up_ms: None,
            stopped: false,
        }
    }

    /// True once it will do nothing any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// What was done in the last turn.
    pub fn work(&self) -> Work {
        self.work
    }

    fn is_leader(&self) -> bool {
        self.soft_state.role == Role::Leader
    }

    /// The first third of a turn: takes what has come.
    pub fn turn(&mut self, now_ms: u64) {
        if self.stopped {
            return;
        }
        self.now_ms = now_ms;
        self.work = Work::default();
        self.ticked = self.tick(now_ms);
        self.follow_up_refusal();
        self.take_lease_asks();
        self.take_background(now_ms);
        self.pages.take_finished();
        self.step_messages();
        self.confirm_lease_asks();
        self.propose_member();
        self.take_requests();
    }

    /// The second: says what the log writes next, so that the disk works on that while the third
    /// applies. A returned write must be carried out and reported to [`Replica::written`].
    pub fn log_turn(&mut self) -> Option<DurableWrite> {
        if self.stopped {
            return None;
        }
        let write = self.advance_log();
        self.collect_effects();
        write.or_else(|| self.advance_log())
    }

    /// True if the last third has committed entries to apply.
    pub fn has_backlog(&self) -> bool {
        self.running.is_some() || !self.to_apply.is_empty()
    }

    /// True if a large entry is first in line, and large ones were copied in this turn already: the
    /// fronts have their turn in between. Not twice in a row.
    fn puts_off_large(&mut self) -> bool {
        let took_large = std::mem::take(&mut self.took_large);
        took_large && !self.put_off_large && self.is_large_next()
    }

    /// The last third: applies, publishes and answers. It may want something written too.
    pub fn finish_turn(&mut self) -> Option<DurableWrite> {
        if self.stopped {
            return None;
        }
        let mut write = None;
        self.put_off_large = self.puts_off_large();
        self.apply_room = match self.to_apply.len() {
            _ if self.put_off_large => 0,
            0..=limits::APPLY_TURN_ENTRIES => limits::APPLY_TURN_COST,
            _ => limits::APPLY_LONG_TURN_COST,
        };
        if self.has_backlog() {
            self.apply_until = self.shared.clock.elapsed() + limits::APPLY_TURN_TIME;
        }
        loop {
            let applied = self.apply_committed();
            self.publish();
            if !applied && !self.collect_effects() {
                break;
            }
            write = write.or_else(|| self.advance_log());
        }
        self.answer_lease_asks();
        self.watch_transfers();
        self.move_snapshots();
        self.maybe_checkpoint(self.now_ms);
        if std::mem::take(&mut self.ticked) {
            self.refresh_gauges();
        }
        for front in &mut self.fronts {
            front.flush();
        }
        self.maybe_stop(self.now_ms);
        write.or_else(|| self.advance_log())
    }

    /// The outcome of the write that [`Replica::turn`] returned; the next turn goes on.
    pub fn written(&mut self, buf: AlignedBuf, result: std::io::Result<()>) {
        self.watchdog.write_ended();
        let took = self.shared.clock.elapsed().saturating_sub(self.write_started);
        self.shared.metrics.wal_fsync.observe(took.as_secs_f64());
        let bytes = self.shared.metrics.wal_write_bytes.get() + buf.len() as u64;
        self.shared.metrics.wal_write_bytes.set(bytes);
        self.log_op_done(result.map(|()| FileOutput::Written(buf)));
    }

    fn tick(&mut self, now_ms: u64) -> bool {
        let tick_ms = u64::try_from(self.shared.config.heartbeat.as_millis()).unwrap_or(100);
        if self.next_tick_ms == 0 {
            (self.next_tick_ms, self.started_ms) = (now_ms, now_ms);
        }
        if self.next_tick_ms > now_ms {
            return false;
        }
        // A member that was paused does not make up for lost ticks: that would start elections.
        self.next_tick_ms = (self.next_tick_ms + tick_ms).max(now_ms.saturating_sub(tick_ms) + 1);
        self.work.note(Job::Tick);
        self.log.node.tick();
        let slept_ms = now_ms - std::mem::replace(&mut self.last_tick_ms, now_ms);
        self.tick_leases(slept_ms, tick_ms);
        if now_ms >= self.retry_spare_ms {
            self.retry_spare_ms = now_ms + 1000;
            self.log.writer.retry_spare();
            self.look_for_space();
        }
        self.clear_alarm(now_ms);
        self.end_long_pins();
        self.watch_work();
        self.tick_snapshots();
        self.expire_proposals();
        self.monitor_version();
        true
    }

    fn fail(&mut self, reason: String) {
        self.shared.fail(reason);
        self.stopped = true;
    }

    fn log_op_done(&mut self, result: std::io::Result<FileOutput>) {
        if let Err(error) = self.log.op_done(result) {
            self.fail(format!("write-ahead log: {error}"));
        }
    }

    /// Starts whatever the log's two lanes have to do.
    fn advance_log(&mut self) -> Option<DurableWrite> {
        let mut write = None;
        while let Some(op) = self.log.next_op() {
            match self.files.start(Lane::Main, op) {
                Started::Done(result) => self.log_op_done(result),
                Started::Write(durable) => {
                    self.write_started = self.shared.clock.elapsed();
                    self.watchdog.write_started();
                    write = Some(durable);
                    break;
                }
                Started::Later => {
                    self.watchdog.file_op_started();
                    break;
                }
            }
        }
        while let Some(op) = self.log.writer.next_background_op() {
            match self.files.start(Lane::Background, op) {
                Started::Done(result) => self.log.writer.background_done(result),
                Started::Write(_) => {
                    self.fail("the log asked for a durable write in its background lane".into());
                }
                Started::Later => break,
            }
        }
        write
    }

    fn take_background(&mut self, now_ms: u64) {
        while let Some((lane, result)) = self.files.poll() {
            match lane {
                Lane::Main => {
                    self.watchdog.file_op_ended();
                    self.log_op_done(result);
                }
                Lane::Background => {
                    if let Err(error) = &result {
                        tracing::warn!(error = %error, "a spare log segment could not be prepared");
                    }
                    self.log.writer.background_done(result);
                }
            }
        }
        while let Some((id, entries)) = self.files.poll_fetched() {
            self.log.node.on_fetched(id, entries);
        }
        while let Some(answer) = self.background.poll() {
            match answer {
                Answer::Checkpoint(output) => {
                    let started = self.checkpoint_started_ms.take().unwrap_or(now_ms);
                    let took = Duration::from_millis(now_ms - started);
                    self.shared.metrics.backend_commit.observe(took.as_secs_f64());
                    self.checkpoint_rest_until_ms = now_ms + checkpoints::rest_ms(now_ms - started);
                    self.finish_checkpoint(*output);
                }
                Answer::Stalled => self.space.stalled = true,
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
            if effects.snapshot.is_some() {
                self.space.proposed_bytes = 0;
            }
            if let Some(write) = effects.log.as_ref().filter(|write| write.count > 0) {
                let bytes = self.log.node.entries_of(write).map(|entry| entry.data.len() as u64);
                self.space.proposed_bytes += bytes.sum::<u64>();
                if self.log.node.status().soft_state.role != Role::Leader {
                    self.outlive_overwritten(write.first.0);
                }
            }
            self.post(&mut effects.messages);
            for fetch in effects.fetches.drain(..) {
                match self.log.writer.plan(&fetch) {
                    Some(plan) => self.files.fetch(fetch.id, plan),
                    None => self.log.node.on_fetched(fetch.id, Vec::new()),
                }
            }
            if let Some(mark) = effects.snapshot.take() {
                self.begin_install(mark);
            }
            if let Some(to) = effects.snapshot_wanted.take() {
                self.snapshot_wanted(to);
            }
            self.to_apply.extend(effects.committed.drain(..));
            for read in effects.reads.drain(..) {
                self.finish_reads(read.ticket, read.index);
            }
            if let Some(soft_state) = effects.soft_state.take() {
                self.change_soft_state(soft_state);
            }
        }
        self.effects = effects;
        any
    }

    fn change_soft_state(&mut self, soft_state: SoftState) {
        let status = &self.shared.status;
        let leader_changed = soft_state.leader != self.soft_state.leader;
        if leader_changed {
            tracing::info!(
                local_member_id = %format_args!("{:x}", self.shared.member_id),
                leader = %format_args!("{:x}", soft_state.leader),
                term = soft_state.term.0,
                "raft leader changed"
            );
            if soft_state.leader != 0 {
                self.shared.metrics.leader_changes.inc();
            }
        }
        let known = std::mem::replace(&mut self.soft_state, soft_state);
        if soft_state.role != Role::Leader && !is_on(Mutation::LeaseRevokedByFollower) {
            self.desk.demote();
        } else if known.role != Role::Leader {
            status.elected_ms.store(self.now_ms.max(1), Ordering::Relaxed);
        }
        if soft_state.leader == 0 && known.leader != 0 {
            status.leaderless_since_ms.store(self.now_ms, Ordering::Relaxed);
        }
        status.leader.store(soft_state.leader, Ordering::Relaxed);
        status.term.store(soft_state.term.0, Ordering::Relaxed);
        self.shared.metrics.has_leader.set(u64::from(soft_state.leader != 0));
        self.shared.metrics.is_leader.set(u64::from(self.is_leader()));
        self.leader_changed();
        if leader_changed {
            self.take_back_lease_asks();
        }
    }

    /// Ends once every front has drained, or at once after a failure. What was acknowledged is on
    /// disk already.
    fn maybe_stop(&mut self, now_ms: u64) {
        let shared = &self.shared;
        if shared.lifecycle.failure().is_some() {
            self.stopped = true;
            return;
        }
        let busy = !shared.lifecycle.fronts_have_drained() || self.lingers();
        if !shared.lifecycle.is_stopping() || busy {
            return;
        }
        let give_up_ms = *self.give_up_ms.get_or_insert(now_ms + STOP_MS);
        if !self.flushed {
            // So that etcd's tools see the last commit index in a stopped member's log.
            self.flushed = true;
            self.log.writer.flush();
        }
        self.stopped = self.log.writer.is_idle() || now_ms >= give_up_ms;
    }
}

/// How long a clean end waits for the log's last write.
const STOP_MS: u64 = 2000;

const _: () = assert!(limits::BACKGROUND_TASKS >= 2);

#[cfg(test)]
mod tests;
