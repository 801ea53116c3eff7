//! A front: the connections of one shard, from bytes to answers.
//!
//! Driven by its shard's loop: the driver's completions come in through [`Front::received`] and its
//! siblings, [`Front::turn`] takes what the replica sent and what time brings, [`Front::flush`]
//! hands the turn's bytes to the driver, one send per connection. Reads are answered here from the
//! view of the turn; writes wait for the replica. It never blocks and never touches the replica's
//! data.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_queue::ArrayQueue;
use etcore_engine::mutation::{Mutation, is_on};
use etcore_engine::pins::RevisionPins;
use etcore_proto::grpc::{Routes, ServerConfig};
use etcore_proto::h2::{Budget, BudgetAccount, Keepalive, PingPolicy};

use crate::api::range::Scratch;
use crate::clock::millis;
use crate::driver::{AnyListener, AnySocket, Driver, SocketId, Waker};
use crate::hasher::{self, Hasher};
use crate::ids::IdBlock;
use crate::limits;
use crate::pages::Pages;
use crate::quota::Quota;
use crate::replica::{LeaseAsk, ToFront, ToReplica};
use crate::ring::{Consumer, Producer};
use crate::shared::{MemberView, Shared};
use crate::work::{Job, Work};

mod answers;
mod calls;
mod conn;
mod large;
mod leases;
mod long;
mod maintenance;
mod plain;
mod tasks;
#[cfg(test)]
mod tests;
mod watching;

pub use calls::routes;
use conn::{Conn, Settings};
use large::LargeRequests;
use leases::KeepAlives;
use tasks::Tasks;
use watching::Watching;

/// The way to hand sockets to a front.
#[derive(Clone)]
pub struct Door {
    /// Sockets not taken yet.
    pub queue: Arc<ArrayQueue<AnySocket>>,
    /// `None` for the accepting front itself.
    pub waker: Option<Waker>,
}

/// What a front is made of.
pub struct Parts {
    /// Which front.
    pub index: usize,
    /// What all shards see.
    pub shared: Arc<Shared>,
    /// To the replica.
    pub to_replica: Producer<ToReplica>,
    /// Questions about leases to the replica.
    pub to_lessor: Producer<LeaseAsk>,
    /// From the replica.
    pub from_replica: Consumer<ToFront>,
    /// Pages for reads.
    pub pages: Pages,
    /// Where long reads pin their revision.
    pub pins: RevisionPins,
    /// The process's budget for received bytes.
    pub budget: Budget,
    /// The methods served.
    pub routes: Arc<Routes>,
    /// Every front's door; one's own among them.
    pub doors: Vec<Door>,
    /// Sockets to accept from; only front 0 has any.
    pub listeners: Vec<AnyListener>,
    /// Computes hashes.
    pub hasher: Hasher,
    /// Wakes this front.
    pub waker: Waker,
}

/// See the module text.
///
/// Invariants: `conns[slot]` belongs to the driver's socket slot of the same number; a connection
/// is in `dirty` if it may have bytes to send or is to be looked at.
pub struct Front {
    index: usize,
    shared: Arc<Shared>,
    view: Arc<MemberView>,
    /// In its place while nobody is served: a view keeps pages, rows and index nodes alive.
    nothing: Arc<MemberView>,
    to_replica: Producer<ToReplica>,
    to_lessor: Producer<LeaseAsk>,
    from_replica: Consumer<ToFront>,
    pages: Pages,
    pins: RevisionPins,
    settings: Arc<Settings>,
    doors: Vec<Door>,
    listeners: Vec<AnyListener>,
    listening: bool,
    serve: bool,
    /// Of all fronts together.
    connections_max: usize,
    conns: Vec<Option<Conn>>,
    open: usize,
    dirty: Vec<SocketId>,
    spare_bufs: Vec<Vec<u8>>,
    spare_bytes: usize,
    /// Pages for everybody.
    rendered: plain::Rendered,
    tasks: Tasks,
    keep_alives: KeepAlives,
    /// Questions about leases that are not passed on yet; at most one a task.
    asks: VecDeque<LeaseAsk>,
    next_lease_seed: u64,
    /// When a leader was known last.
    leader_seen_ms: u64,
    watching: Watching,
    /// Proposals that found the ring full; while any wait, sockets are not read.
    overflow: VecDeque<ToReplica>,
    /// Bytes of all proposals that the replica has not replied to.
    held: BudgetAccount,
    paused: Paused,
    next_ticket: u64,
    asked_ticket: u64,
    ids: IdBlock,
    quota: Quota,
    hasher: Hasher,
    hash_answers: hasher::Answers,
    waker: Waker,
    scratch: Scratch,
    /// Of [`limits::LIST_ROUND_BYTES`], what this round has written.
    listed_bytes: usize,
    /// What was done since the last wait.
    work: Work,
    large: LargeRequests,
    /// What sorting long answers may hold.
    sorting: Budget,
    answer: Vec<u8>,
    now_ms: u64,
    next_tick_ms: u64,
    /// The first place whose connection is still to get time after the last tick.
    untimed: usize,
    draining: bool,
    drain_until_ms: u64,
    stopped: bool,
}

/// Which sockets are not read because too much waits for the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paused {
    None,
    /// Those with large proposals outstanding.
    Large,
    All,
}

impl Paused {
    fn lets_read(self, conn: &Conn) -> bool {
        let paused = match self {
            Self::None => false,
            Self::Large => conn.proposal_bytes > limits::CONNECTION_PROPOSAL_BYTES,
            Self::All => true,
        };
        conn.wants_read() && !paused && !conn.failed
    }
}

/// Connections are given time at least this often.
const TICK_MS: u64 = 100;
impl Front {
    /// A front without connections. `boot_id` must differ between starts and fronts.
    pub fn new(parts: Parts, boot_id: u64) -> Self {
        let Parts {
            index,
            shared,
            to_replica,
            to_lessor,
            from_replica,
            pages,
            pins,
            budget,
            routes,
            doors,
            listeners,
            hasher,
            waker,
        } = parts;
        let view = shared.view.load_full();
        let grpc = grpc_config(&shared.config);
        let held = budget.account();
        let quota = Quota::new(shared.config.quota_backend_bytes);
        let watching = Watching::new(&shared.config, boot_id);
        Self {
            index,
            shared,
            view,
            nothing: Arc::new(MemberView::nothing()),
            to_replica,
            to_lessor,
            from_replica,
            pages,
            pins,
            settings: Arc::new(Settings { grpc, routes, budget }),
            doors,
            listeners,
            listening: false,
            serve: false,
            connections_max: crate::sys::descriptors_max()
                .saturating_sub(limits::RESERVED_DESCRIPTORS)
                .max(1),
            conns: Vec::new(),
            open: 0,
            dirty: Vec::new(),
            spare_bufs: Vec::new(),
            spare_bytes: 0,
            rendered: plain::Rendered::default(),
            tasks: Tasks::default(),
            keep_alives: KeepAlives::default(),
            asks: VecDeque::new(),
            next_lease_seed: boot_id,
            leader_seen_ms: 0,
            watching,
            overflow: VecDeque::new(),
            held,
            paused: Paused::None,
            next_ticket: 0,
            asked_ticket: 0,
            ids: IdBlock::default(),
            quota,
            hasher,
            hash_answers: Arc::new(ArrayQueue::new(limits::HASH_ANSWERS)),
            waker,
            scratch: Scratch::default(),
            listed_bytes: 0,
            work: Work::default(),
            large: LargeRequests::default(),
            sorting: Budget::new(limits::SORT_BYTES, limits::SORT_BYTES),
            answer: Vec::new(),
            now_ms: 0,
            next_tick_ms: 0,
            untimed: 0,
            draining: false,
            drain_until_ms: 0,
            stopped: false,
        }
    }

    /// When the next turn is due at the latest.
    pub fn deadline_ms(&self) -> u64 {
        if self.open == 0 && self.tasks.is_empty() && !self.draining {
            return u64::MAX;
        }
        self.next_tick_ms
    }

    /// True if something waits that a turn would take.
    pub fn has_input(&self) -> bool {
        !self.from_replica.is_empty()
            || !self.doors[self.index].queue.is_empty()
            || self.pages.has_finished()
            || !self.hash_answers.is_empty()
            || self.tasks.has_runnable()
            || !self.large.is_empty()
            || self.has_watch_input()
            || !self.dirty.is_empty()
            || self.untimed < self.conns.len()
            // A stop that came between the turn and the sleep wakes nobody.
            || (self.shared.is_stopping() && !self.draining)
    }

    /// True once it serves nobody any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// A connection was accepted: the front with the fewest gets it.
    pub fn accepted(&mut self, listener: u32, socket: AnySocket) {
        if listener as usize >= self.listeners.len() {
            return;
        }
        let open: usize =
            self.shared.connections.iter().map(|front| front.load(Ordering::Relaxed)).sum();
        if open >= self.connections_max {
            // Dropping the socket closes it; the log must still be able to open its files.
            tracing::debug!(open, "a connection was refused: descriptors run short");
            return;
        }
        let least = (0..self.doors.len())
            .min_by_key(|front| self.shared.connections[*front].load(Ordering::Relaxed))
            .unwrap_or(self.index);
        // Counted here already, so that a burst spreads evenly.
        self.shared.connections[least].fetch_add(1, Ordering::Relaxed);
        let door = &self.doors[least];
        if door.queue.push(socket).is_err() {
            // Dropping the socket closes it: that front has thousands waiting already.
            self.shared.connections[least].fetch_sub(1, Ordering::Relaxed);
            return;
        }
        if let Some(waker) = &door.waker {
            waker.wake();
        }
    }

    /// Bytes arrived.
    pub fn received(&mut self, socket: SocketId, bytes: &[u8]) {
        self.shared.metrics.client_received_bytes.inc_by(bytes.len() as u64);
        // The shard may have slept since the turn began: another front may have answered from a
        // newer view meanwhile, and what one member answers never goes back.
        let newest = self.shared.status.applied.load(Ordering::Acquire);
        if newest > self.view.store.applied.0 && !is_on(Mutation::OldViewServed) {
            self.begin_turn(self.now_ms);
        }
        let now_ms = self.now_ms;
        self.work.note(Job::Requests);
        let Some(conn) = self.conn(socket) else { return };
        if conn.failed {
            return;
        }
        match conn.receive(bytes, now_ms) {
            Ok(()) => {}
            Err(reason) => {
                // What the peer must be told, such as GOAWAY, still goes out.
                tracing::debug!(reason = %reason, "connection ended by an error");
                conn.failed = true;
            }
        }
        self.mark_dirty(socket);
        self.handle_events(socket);
    }

    /// The peer is gone: its calls end, their late replies find nobody. One that has only ended
    /// its side may still wait for an answer.
    pub fn disconnected(&mut self, socket: SocketId, error: Option<io::Error>) {
        let now_ms = self.now_ms;
        if let Some(conn) = self.conn(socket) {
            match error {
                None => conn.peer_ended(now_ms),
                Some(_) => conn.gone = true,
            }
            self.mark_dirty(socket);
        }
    }

    /// A send ended.
    pub fn sent(&mut self, socket: SocketId, buf: Vec<u8>, result: io::Result<()>) {
        self.keep_buf(buf);
        let now_ms = self.now_ms;
        let Some(conn) = self.conn(socket) else { return };
        conn.end_send(now_ms);
        conn.gone |= result.is_err();
        self.mark_dirty(socket);
    }

    /// Keeps an emptied buffer for the next send.
    fn keep_buf(&mut self, buf: Vec<u8>) {
        let bytes = buf.capacity();
        if bytes > 0 && self.spare_bytes + bytes <= limits::SPARE_SEND_BYTES {
            self.spare_bytes += bytes;
            self.spare_bufs.push(buf);
        }
    }

    /// Sets the time and takes the newest view for this turn. Called before completions are
    /// handled.
    pub fn begin_turn(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        let newest = self.shared.view.load();
        if !Arc::ptr_eq(&newest, &self.view) {
            self.view = arc_swap::Guard::into_inner(newest);
            self.pages.follow(&self.view.page_file);
        }
    }

    /// Lets go of the view before a sleep that may be long: there is no connection, so nothing
    /// reads it before the next turn.
    pub fn rest(&mut self) {
        self.work = Work::default();
        if self.deadline_ms() == u64::MAX {
            self.view = self.nothing.clone();
        }
    }

    /// What was done since the last wait.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Takes replies, goes on with what waited, lets time pass, and passes on what is new.
    pub fn turn(&mut self, now_ms: u64) {
        self.begin_turn(now_ms);
        self.pages.take_finished();
        self.take_replies();
        self.take_hashes();
        self.take_large();
        self.run_tasks();
        self.run_watches();
        if now_ms >= self.next_tick_ms {
            self.next_tick_ms = now_ms + TICK_MS;
            self.tick();
        }
        self.ask_for_reads();
        self.push_overflow();
        self.push_asks();
        self.to_replica.flush();
        self.begin_drain();
    }

    /// Attaches new sockets, sends what is ready, closes what is over.
    ///
    /// # Errors
    /// When a listener cannot be watched: the member cannot serve.
    pub fn flush(&mut self, driver: &mut dyn Driver) -> io::Result<()> {
        self.listed_bytes = 0;
        self.large.begin_round();
        self.listen(driver)?;
        for _ in 0..limits::ATTACHES_PER_TURN {
            let Some(socket) = self.doors[self.index].queue.pop() else { break };
            self.attach(driver, socket);
        }
        self.tick_conns();
        self.send_ready(driver);
        self.end_drain();
        Ok(())
    }

    /// Sends what is ready, within the round's bounds.
    pub fn send_ready(&mut self, driver: &mut dyn Driver) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for socket in dirty.drain(..) {
            self.flush_conn(driver, socket);
        }
        // Connections with more to send than one turn takes were marked again meanwhile.
        std::mem::swap(&mut dirty, &mut self.dirty);
        self.dirty.append(&mut dirty);
    }

    fn listen(&mut self, driver: &mut dyn Driver) -> io::Result<()> {
        if self.serve && !self.listening && !self.draining {
            self.listening = true;
            for (number, listener) in (0..).zip(&self.listeners) {
                driver.listen(number, listener.clone())?;
            }
        }
        if self.draining && self.listening {
            self.listening = false;
            for (number, _) in (0..).zip(&self.listeners) {
                driver.unlisten(number);
            }
            // Closed, so that clients are refused and go elsewhere at once.
            self.listeners.clear();
        }
        Ok(())
    }

    fn attach(&mut self, driver: &mut dyn Driver, socket: AnySocket) {
        if self.draining || self.open >= limits::CONNECTIONS {
            self.shared.connections[self.index].fetch_sub(1, Ordering::Relaxed);
            return;
        }
        if let AnySocket::Kernel(fd) = &socket {
            crate::net::set_nodelay(fd);
            crate::net::end_promptly(fd);
        }
        let socket = match driver.attach(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(error = %error, "an accepted connection could not be served");
                self.shared.connections[self.index].fetch_sub(1, Ordering::Relaxed);
                return;
            }
        };
        let slot = socket.slot as usize;
        if self.conns.len() <= slot {
            self.conns.resize_with(slot + 1, || None);
        }
        let settings = self.settings.clone();
        self.conns[slot] = Some(Conn::new(socket, settings));
        self.open += 1;
        if self.paused == Paused::All
            && let Some(conn) = self.conn(socket)
        {
            conn.reading = false;
            driver.pause(socket);
        }
    }

    fn conn(&mut self, socket: SocketId) -> Option<&mut Conn> {
        self.conns.get_mut(socket.slot as usize)?.as_mut().filter(|conn| conn.socket == socket)
    }

    fn mark_dirty(&mut self, socket: SocketId) {
        if let Some(conn) = self.conn(socket)
            && !conn.dirty
        {
            conn.dirty = true;
            self.dirty.push(socket);
        }
    }

    fn flush_conn(&mut self, driver: &mut dyn Driver, socket: SocketId) {
        let mut buf = self.spare_bufs.pop().unwrap_or_default();
        self.spare_bytes -= buf.capacity();
        let (paused, now_ms) = (self.paused, self.now_ms);
        let Some(conn) = self.conn(socket) else { return self.keep_buf(buf) };
        conn.dirty = false;
        let mut more = false;
        let mut sent_bytes = 0;
        if !conn.sending && !conn.gone {
            more = conn.transmit(&mut buf);
            sent_bytes = buf.len() as u64;
            if !buf.is_empty() {
                match driver.send(socket, std::mem::take(&mut buf)) {
                    Some((emptied, result)) => {
                        buf = emptied;
                        conn.gone = result.is_err();
                    }
                    None => conn.begin_send(sent_bytes as usize, now_ms),
                }
            }
        }
        let goes_on = more && sent_bytes > 0 && !conn.sending;
        let over = conn.gone || (!conn.sending && !more && conn.is_over());
        let wants_read = paused.lets_read(conn);
        let toggle = wants_read != conn.reading;
        conn.reading = wants_read;
        self.shared.metrics.client_sent_bytes.inc_by(sent_bytes);
        self.keep_buf(buf);
        if over {
            self.close(driver, socket);
            return;
        }
        if toggle {
            if wants_read { driver.resume(socket) } else { driver.pause(socket) }
        }
        if goes_on {
            self.mark_dirty(socket);
        }
        // Sending freed room: streams that waited for it may go on.
        self.handle_events(socket);
    }

    fn close(&mut self, driver: &mut dyn Driver, socket: SocketId) {
        driver.close(socket);
        if let Some(place) = self.conns.get_mut(socket.slot as usize) {
            *place = None;
            self.open -= 1;
            self.shared.connections[self.index].fetch_sub(1, Ordering::Relaxed);
            self.tasks.connection_closed(socket);
            self.keep_alives_closed(socket);
            self.watching.hub.connection_closed(socket);
        }
    }

    fn tick(&mut self) {
        self.work.note(Job::Tick);
        // If some still wait for the last one, then this one is for them.
        if self.untimed >= self.conns.len() {
            self.untimed = 0;
        }
        self.rendered.tick();
        self.tick_keep_alives();
        self.time_out_tasks();
        self.tick_watches();
    }

    /// Gives time to some connections: to all of thousands at once would keep their calls waiting.
    fn tick_conns(&mut self) {
        let now_ms = self.now_ms;
        let end = self.conns.len().min(self.untimed + limits::TICKS_PER_ROUND);
        for slot in std::mem::replace(&mut self.untimed, end)..end {
            let Some(conn) = &mut self.conns[slot] else { continue };
            let socket = conn.socket;
            if conn.tick(now_ms).is_err() {
                conn.failed = true;
            }
            self.mark_dirty(socket);
            self.handle_events(socket);
        }
    }

    /// Keeps the order of a front's messages: what found the ring full goes before what is new.
    fn push_replica(&mut self, message: ToReplica) {
        if self.overflow.is_empty() {
            if let Err(message) = self.to_replica.push(message) {
                self.overflow.push_back(message);
            }
        } else {
            self.overflow.push_back(message);
        }
    }

    fn push_overflow(&mut self) {
        while let Some(message) = self.overflow.pop_front() {
            if let ToReplica::Propose { slot, .. } = &message
                && self.tasks.is_abandoned(*slot)
            {
                // Its client has its time-out, and the replica has not seen it.
                self.tasks.remove(*slot);
                continue;
            }
            if let Err(message) = self.to_replica.push(message) {
                self.overflow.push_front(message);
                break;
            }
        }
        // Large requests of others are no reason not to read: as long as these are held, none is
        // let in beyond the budget.
        let large_bytes = self.large.bytes();
        self.held.set(self.tasks.held_bytes() + large_bytes);
        let most = limits::PENDING_PROPOSAL_BYTES;
        let pause = if !self.overflow.is_empty() || self.tasks.small_bytes() > 2 * most {
            Paused::All
        } else if self.tasks.proposal_bytes() + large_bytes > most {
            Paused::Large
        } else {
            Paused::None
        };
        if pause != self.paused {
            self.paused = pause;
            let conns = self.conns.iter().flatten();
            let sockets: Vec<SocketId> = conns
                .filter(|conn| pause.lets_read(conn) != conn.reading)
                .map(|conn| conn.socket)
                .collect();
            sockets.into_iter().for_each(|socket| self.mark_dirty(socket));
        }
    }

    /// Stops in good order: no new connections or calls, what is on its way is answered, for at
    /// most the request timeout.
    fn begin_drain(&mut self) {
        if self.draining || !self.shared.is_stopping() {
            return;
        }
        self.draining = true;
        self.stop_watches();
        let timeout_ms = self.shared.config.request_timeout_ms();
        self.drain_until_ms = self.now_ms + timeout_ms;
        for slot in 0..self.conns.len() {
            let Some(conn) = &mut self.conns[slot] else { continue };
            conn.drain();
            let socket = conn.socket;
            self.mark_dirty(socket);
        }
        self.drain_keep_alives();
    }

    /// Looked at after the flush: what the last turn answered must have left.
    fn end_drain(&mut self) {
        if self.stopped || !self.draining {
            return;
        }
        let failed = self.shared.failure.get().is_some();
        let waits = !self.tasks.is_empty() || !self.large.is_empty();
        let idle = !waits && self.conns.iter().flatten().all(|conn| conn.is_idle());
        if failed || idle || self.now_ms >= self.drain_until_ms {
            self.stopped = true;
            self.shared.fronts_running.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The transport's settings by the operator's flags.
fn grpc_config(config: &crate::config::Config) -> ServerConfig {
    let mut grpc = ServerConfig::default();
    grpc.h2.concurrent_streams_max = config.max_concurrent_streams;
    grpc.h2.keepalive = (!config.keepalive_interval.is_zero()).then(|| Keepalive {
        interval_ms: millis(config.keepalive_interval),
        timeout_ms: millis(config.keepalive_timeout),
    });
    grpc.h2.ping_policy = (!config.keepalive_min_time.is_zero()).then(|| PingPolicy {
        interval_ms_min: millis(config.keepalive_min_time),
        without_streams: false,
    });
    grpc.message_bytes_max = config.max_request_bytes + limits::GRPC_OVERHEAD_BYTES;
    grpc
}
