//! etcd's services: what happens when a call arrives, and how it is answered. One file a service.
//!
//! Used by a front, which brings calls and time and carries answers away ([`Replies`]). Reads are
//! answered here from the view of the turn; writes are checked, proposed to the replica and
//! answered when its reply comes. Nothing here knows a socket, HTTP's framing, or raft, and nothing
//! blocks.
//!
//! [`Services`] is made of parts with state of their own: what calls wait for ([`pending`]), what
//! goes to the replica ([`outbox`]), what reads need ([`reads`]), and what a service with streams
//! keeps of them. A [`Cx`] is these parts and the way out, for as long as something is handled.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcore_engine::pins::RevisionPins;
use etcore_engine::seeded_bug::{SeededBug, is_on};

use crate::background::hasher::Hasher;
use crate::background::passwords::{FrontPasswords, Passwords};
use crate::channel::{Consumer, LeaseRequest, Producer, Shared, ToFront, ToReplica};
use crate::disk::pages::Pages;
use crate::driver::Waker;
use crate::limits;
use crate::metrics::FrontCalls;
use crate::quota::Quota;
use crate::replies::{CallId, ConnId, Replies};
use crate::work::{Job, Work};

mod auth;
mod call;
mod cluster;
mod concurrency;
mod debug;
mod early;
mod election;
mod endpoints;
mod health;
mod identity;
mod json;
mod kv;
mod lease;
mod lock;
mod long;
mod maintenance;
mod outbox;
mod pending;
mod reads;
mod replying;
mod routes;
mod stats;
mod watch;

pub use call::Call;
use concurrency::Concurrency;
use debug::Debugging;
use early::Early;
pub use endpoints::{HttpRequest, Via};
use endpoints::{RenderedPages, Uploads};
use json::Gateway;
use lease::LeaseStreams;
use maintenance::Hashes;
use outbox::Outbox;
use pending::Pending;
use reads::Reads;
pub use routes::{Unary, method_labels, routes};
use stats::Telling;
use watch::WatchStreams;

/// Election timeouts without a leader after which streams that asked for one are ended (etcd:
/// maxNoLeaderCnt).
const LEADERLESS_ELECTIONS: u64 = 3;

/// What services are made of.
pub struct Setup {
    /// The number of their front.
    pub index: usize,
    /// What all shards see.
    pub shared: Arc<Shared>,
    /// To the replica.
    pub to_replica: Producer<ToReplica>,
    /// Questions about leases to the replica.
    pub to_lessor: Producer<LeaseRequest>,
    /// From the replica.
    pub from_replica: Consumer<ToFront>,
    /// Pages for reads.
    pub pages: Pages,
    /// Pages for reads of the state of before a snapshot.
    pub former_pages: Pages,
    /// Where long reads pin their revision.
    pub pins: RevisionPins,
    /// Computes hashes.
    pub hasher: Hasher,
    /// Hashes and compares passwords.
    pub passwords: Passwords,
    /// Wakes this front.
    pub waker: Waker,
}

/// See the module text.
pub struct Services {
    index: usize,
    shared: Arc<Shared>,
    from_replica: Consumer<ToFront>,
    calls: Arc<FrontCalls>,
    telling: Telling,
    reads: Reads,
    pending: Pending,
    outbox: Outbox,
    lease: LeaseStreams,
    watch: WatchStreams,
    hashes: Hashes,
    passwords: FrontPasswords,
    early: Early,
    debugging: Debugging,
    rendered: RenderedPages,
    uploads: Uploads,
    gateway: Gateway,
    concurrency: Concurrency,
    quota: Quota,
    /// The part of [`limits::LIST_ROUND_BYTES`] that this round has written.
    listed_bytes: usize,
    /// What was done since the last wait.
    work: Work,
    /// Ranges evaluated since they were last timed.
    ranges: u64,
    now_ms: u64,
    /// The replica lets clients in.
    serving: bool,
    draining: bool,
}

/// The services and the way out, while something is handled.
struct Cx<'a> {
    api: &'a mut Services,
    out: &'a mut dyn Replies,
}

impl Services {
    /// Services without calls. `seed` must differ between starts and fronts.
    pub fn new(setup: Setup, seed: u64) -> Self {
        let Setup {
            index,
            shared,
            to_replica,
            to_lessor,
            from_replica,
            pages,
            former_pages,
            pins,
            hasher,
            passwords,
            waker,
        } = setup;
        Self {
            index,
            from_replica,
            calls: shared.metrics.calls.front(index),
            telling: Telling::new(&shared.config),
            reads: Reads::new(&shared, pages, former_pages, pins),
            pending: Pending::default(),
            outbox: Outbox::new(to_replica, to_lessor),
            lease: LeaseStreams::new(seed),
            watch: WatchStreams::new(&shared.config, seed),
            hashes: Hashes::new(hasher, waker.clone()),
            passwords: passwords.of_front(shared.clock.clone(), waker.clone(), seed),
            early: Early::default(),
            debugging: Debugging::new(waker),
            rendered: RenderedPages::default(),
            uploads: Uploads::default(),
            gateway: Gateway::new(shared.config.max_request_bytes),
            concurrency: Concurrency::default(),
            quota: Quota::new(shared.config.quota_backend_bytes),
            listed_bytes: 0,
            work: Work::default(),
            ranges: 0,
            now_ms: 0,
            serving: false,
            draining: false,
            shared,
        }
    }

    /// True if nobody waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// True once clients may be let in.
    pub fn may_serve(&self) -> bool {
        self.serving
    }

    /// True if something waits that a turn would take.
    pub fn has_input(&self) -> bool {
        !self.from_replica.is_empty()
            || self.reads.has_finished()
            || self.hashes.has_answers()
            || self.passwords.has_outcomes()
            || self.debugging.has_answers()
            || self.pending.has_runnable()
            || self.has_watch_input()
    }

    /// What was done since the last wait.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Something that may take long was done.
    pub fn note(&mut self, job: Job) {
        self.work.note(job);
    }

    /// Bytes of all proposals that the replica has not replied to.
    pub fn held_bytes(&self) -> usize {
        self.pending.held_bytes()
    }

    /// Bytes of proposals whose clients still wait: of the small ones, and of all.
    pub fn proposal_bytes(&self) -> (usize, usize) {
        (self.pending.small_bytes(), self.pending.proposal_bytes())
    }

    /// True if the replica does not keep up: nothing more should be read from clients.
    pub fn is_backlogged(&self) -> bool {
        self.outbox.is_full()
    }

    /// Sets the time and takes the newest view for this turn. Called before calls are handled.
    pub fn begin_turn(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        let former_until_ms = now_ms + limits::FORMER_STATE_MS;
        self.reads.refresh(&self.shared, self.pending.has_listings().then_some(former_until_ms));
    }

    /// Takes the newest view if it has moved on since the turn began: another front may have
    /// answered from it meanwhile, and what one member answers never goes back.
    pub fn catch_up(&mut self) {
        let newest = self.shared.status.applied.load(Ordering::Acquire);
        if newest > self.reads.store().applied.0 && !is_on(SeededBug::OldViewServed) {
            self.begin_turn(self.now_ms);
        }
    }

    /// True if ranges were evaluated that nobody has timed.
    pub fn has_ranges(&self) -> bool {
        self.ranges > 0
    }

    /// They took so long together.
    pub fn ranges_took(&mut self, took: Duration) {
        let count = std::mem::take(&mut self.ranges);
        if count > 0 {
            let each = took.as_nanos() / u128::from(count);
            let each = Duration::from_nanos(u64::try_from(each).unwrap_or(u64::MAX));
            self.calls.ranges(true, count, each);
        }
    }

    /// Forgets what was done, before a wait.
    pub fn end_turn(&mut self) {
        self.work = Work::default();
    }

    /// Lets go of the view before a sleep that may be long: there is no connection, so nothing
    /// reads it before the next turn.
    pub fn rest(&mut self) {
        self.reads.rest();
    }

    /// A new round of answers begins, with new bounds.
    pub fn begin_round(&mut self) {
        self.listed_bytes = 0;
    }

    /// Takes what came from the replica and from helpers.
    pub fn receive(&mut self, out: &mut dyn Replies) {
        self.reads.take_finished();
        let mut cx = self.with(out);
        cx.take_replies();
        cx.take_hashes();
        cx.take_passwords();
        cx.take_profiles();
    }

    /// Goes on with what waited.
    pub fn go_on(&mut self, out: &mut dyn Replies) {
        let mut cx = self.with(out);
        cx.run_pending();
        cx.run_watches();
    }

    /// Ends what has waited too long. Ten times a second.
    pub fn tick(&mut self, out: &mut dyn Replies) {
        self.work.note(Job::Tick);
        self.rendered.tick();
        self.reads.tick(self.now_ms, |file| self.pending.lists_from(file));
        let mut cx = self.with(out);
        cx.tick_lease_streams();
        cx.time_out_pending();
        cx.tick_watches();
        self.tick_steps(out);
    }

    /// Passes on to the replica what is new.
    pub fn flush(&mut self) {
        self.outbox.flush(&mut self.pending);
    }

    /// The client's window has room for this call again.
    pub fn writable(&mut self, out: &mut dyn Replies, call: CallId) {
        let mut cx = self.with(out);
        cx.send_renewals(call);
        cx.observer_reads(call);
        self.watch.writable(call);
        if let Some(slot) = self.pending.listing_of(call) {
            self.pending.run_soon(slot);
        }
    }

    /// The client has gone away from a call.
    pub fn cancelled(&mut self, out: &mut dyn Replies, call: CallId) {
        self.steps_cancelled(out, call);
        self.lease_stream_cancelled(call);
        self.watch.closed(call);
        if let Some(slot) = self.pending.listing_of(call) {
            self.pending.remove(slot);
        }
    }

    /// The client of a streaming call sends no more.
    pub fn half_closed(&mut self, out: &mut dyn Replies, call: CallId) {
        self.with(out).lease_stream_half_closed(call);
    }

    /// A connection is closed: its calls end, their late replies find nobody.
    pub fn connection_closed(&mut self, out: &mut dyn Replies, conn: ConnId) {
        self.steps_of_closed(out, conn);
        self.pending.connection_closed(conn);
        self.lease_streams_closed(conn);
        self.uploads.connection_closed(conn);
        self.gateway.connection_closed(conn);
        self.watch.connection_closed(conn);
    }

    /// The member stops: no new writes, streams end, and what is on its way is answered. In two
    /// halves, since connections are told in between.
    pub fn begin_drain(&mut self, out: &mut dyn Replies) {
        self.draining = true;
        self.with(out).stop_watches();
    }

    /// The second half of [`Services::begin_drain`].
    pub fn drain_streams(&mut self, out: &mut dyn Replies) {
        self.with(out).drain_lease_streams();
    }

    fn with<'a>(&'a mut self, out: &'a mut dyn Replies) -> Cx<'a> {
        Cx { api: self, out }
    }

    /// Whether lists may go on in this round.
    fn may_list(&self) -> bool {
        self.listed_bytes < limits::LIST_ROUND_BYTES
    }
}

/// What a front's tests look at.
#[cfg(test)]
impl Services {
    pub(crate) fn is_clogged(&self) -> bool {
        self.pending.is_clogged()
    }

    pub(crate) fn view(&self) -> &Arc<crate::channel::MemberView> {
        self.reads.view()
    }

    /// Requests whose bodies are still to come.
    pub(crate) fn uploads(&self) -> usize {
        self.uploads.len() + self.gateway.len()
    }

    pub(crate) fn renders(&self) -> u64 {
        self.rendered.renders()
    }

    pub(crate) fn watches_nothing(&self) -> bool {
        self.watch.is_empty()
    }
}
