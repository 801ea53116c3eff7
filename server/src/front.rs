//! A front: the connections of one shard, from bytes to calls and back.
//!
//! Driven by its shard's loop: the driver's completions come in through [`Front::received`] and its
//! siblings, [`Front::turn`] gives the services what the replica sent and what time brings,
//! [`Front::flush`] hands the turn's bytes to the driver, one send per connection. What calls mean
//! is the services' ([`crate::api`]); a front keeps connections ([`wire`]), decides which of them
//! are read, and ends them in good order. It never blocks and never touches the replica's data.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_queue::ArrayQueue;
use etcore_proto::grpc::{Routes, ServerConfig};
use etcore_proto::h2::{Budget, BudgetAccount, Keepalive, PingPolicy};

use crate::api::{self, Services};
use crate::channel::Shared;
use crate::clock::millis;
use crate::driver::{AnyListener, AnySocket, Driver, SocketId, Waker};
use crate::limits;
use crate::replies::ConnId;
use crate::work::Work;

mod conn;
mod events;
mod handshakes;
mod http;
mod inner;
mod json;
mod large;
mod note;
mod secure;
#[cfg(test)]
mod tests;
mod transport;
mod websocket;
mod wire;

use conn::Settings;
pub use conn::{Door, Serves};
use large::LargeRequests;
use transport::socket_conn;
pub use wire::Accepted;
use wire::{Flushed, Paused, Wire};

/// Sockets on their way to a front.
#[derive(Clone)]
pub struct SocketQueue {
    /// Sockets not taken yet.
    pub queue: Arc<ArrayQueue<Accepted>>,
    /// `None` for the accepting front itself.
    pub waker: Option<Waker>,
}

/// What a front is made of.
pub struct Parts {
    /// What answers its calls.
    pub services: api::Setup,
    /// The process's budget for received bytes.
    pub budget: Budget,
    /// The methods served.
    pub routes: Arc<Routes>,
    /// The socket queues of all fronts, its own among them.
    pub socket_queues: Vec<SocketQueue>,
    /// Sockets to accept from, with what is served there; only front 0 has any.
    pub listeners: Vec<(AnyListener, Arc<Door>)>,
}

/// Sockets on their way in.
struct Acceptor {
    index: usize,
    socket_queues: Vec<SocketQueue>,
    listeners: Vec<(AnyListener, Arc<Door>)>,
    listening: bool,
    /// Process-wide limit, shared by all fronts.
    connections_max: usize,
}

/// Where an ordered end of a front stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    /// It serves.
    No,
    /// No new connections or calls; what is on its way is answered until then.
    Until(u64),
    /// It serves nobody any more.
    Done,
}

/// See the module text.
pub struct Front {
    shared: Arc<Shared>,
    services: Services,
    wire: Wire,
    acceptor: Acceptor,
    large: LargeRequests,
    /// Bytes of all proposals that the replica has not replied to, and of large requests that wait.
    held: BudgetAccount,
    drain: Drain,
    now_ms: u64,
    next_tick_ms: u64,
    /// The clock was looked at since the last sleep.
    awake: bool,
    /// Room for a list of connections, used again.
    ticked: Vec<ConnId>,
}

/// Connections are given time at least this often.
const TICK_MS: u64 = 100;

impl Front {
    /// A front without connections. `boot_id` must differ between starts and fronts.
    pub fn new(parts: Parts, boot_id: u64) -> Self {
        let Parts { services, budget, routes, socket_queues, listeners } = parts;
        let (shared, index) = (services.shared.clone(), services.index);
        let held = budget.account();
        let http1_body_bytes = limits::json_body_bytes(shared.config.max_request_bytes) as u64;
        let grpc = grpc_config(&shared.config);
        let names_users = shared.config.tls.client.client_cert_auth;
        let settings = Settings { grpc, routes, budget, http1_body_bytes, names_users };
        let connections_max =
            crate::sys::descriptors_max().saturating_sub(limits::RESERVED_DESCRIPTORS).max(1);
        Self {
            services: Services::new(services, boot_id),
            wire: Wire::new(
                settings,
                shared.clock.clone(),
                shared.metrics.calls.front(index),
                shared.tls.clone(),
            ),
            awake: false,
            acceptor: Acceptor {
                index,
                socket_queues,
                listeners,
                listening: false,
                connections_max,
            },
            large: LargeRequests::default(),
            held,
            drain: Drain::No,
            now_ms: 0,
            next_tick_ms: 0,
            ticked: Vec::new(),
            shared,
        }
    }

    /// When the next turn is due at the latest.
    pub fn deadline_ms(&self) -> u64 {
        if self.wire.open() == 0 && self.services.is_idle() && self.drain == Drain::No {
            return u64::MAX;
        }
        self.next_tick_ms
    }

    /// True if something waits that a turn would take.
    pub fn has_input(&self) -> bool {
        self.services.has_input()
            || self.acceptor.has_sockets()
            || !self.large.is_empty()
            || self.wire.has_work()
            || !self.wire.inner.is_empty()
            // A stop that came between the turn and the sleep wakes nobody.
            || (self.shared.lifecycle.is_stopping() && self.drain == Drain::No)
    }

    /// True once it serves nobody any more.
    pub fn is_stopped(&self) -> bool {
        self.drain == Drain::Done
    }

    /// A connection was accepted: the front with the fewest gets it.
    pub fn accepted(&mut self, listener: u32, socket: AnySocket) {
        self.acceptor.accepted(&self.shared, listener, socket);
    }

    /// Bytes arrived.
    pub fn received(&mut self, socket: SocketId, bytes: &[u8]) {
        self.shared.metrics.client_received_bytes.inc_by(bytes.len() as u64);
        // The shard may have slept since the turn began.
        self.services.catch_up();
        if !std::mem::replace(&mut self.awake, true) {
            self.wire.look_at_clock();
        }
        self.services.note(crate::work::Job::Requests);
        let id = socket_conn(socket);
        self.wire.received(id, bytes);
        self.handle_events(id);
    }

    /// The peer is gone: its calls end, their late replies find nobody. One that has only ended
    /// its side may still wait for an answer.
    pub fn disconnected(&mut self, socket: SocketId, error: Option<io::Error>) {
        self.wire.disconnected(socket_conn(socket), error.is_some());
    }

    /// A send ended.
    pub fn sent(&mut self, socket: SocketId, buf: Vec<u8>, result: io::Result<()>) {
        self.wire.sent(socket_conn(socket), buf, result.is_err());
    }

    /// Sets the time and takes the newest view for this turn. Called before completions are
    /// handled.
    pub fn begin_turn(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.wire.begin_turn(now_ms);
        self.services.begin_turn(now_ms);
    }

    /// The ranges since the clock was looked at took the time that has passed.
    fn time_ranges(&mut self) {
        let took = self.wire.look_at_clock();
        self.services.ranges_took(took);
    }

    /// The shard is about to wait, for long if there is no connection.
    pub fn rest(&mut self) {
        if self.services.has_ranges() {
            self.time_ranges();
        }
        self.awake = false;
        self.services.end_turn();
        if self.deadline_ms() == u64::MAX {
            self.services.rest();
        }
    }

    /// What was done since the last wait.
    pub fn work(&self) -> Work {
        self.services.work()
    }

    /// Takes replies, goes on with what waited, lets time pass, and passes on what is new.
    pub fn turn(&mut self, now_ms: u64) {
        self.begin_turn(now_ms);
        self.time_ranges();
        self.services.receive(&mut self.wire);
        self.take_large();
        self.services.go_on(&mut self.wire);
        while let Some(request) = self.wire.json.next_ended() {
            self.services.json_ended(&mut self.wire, request);
        }
        while let Some((call, answer)) = self.wire.inner.take() {
            self.services.inner_answered(&mut self.wire, call, answer);
        }
        if now_ms >= self.next_tick_ms {
            self.next_tick_ms = now_ms + TICK_MS;
            self.wire.begin_tick();
            self.services.tick(&mut self.wire);
        }
        self.services.flush();
        self.pause_reading();
        self.begin_drain();
    }

    /// Attaches new sockets, sends what is ready, closes what is over.
    ///
    /// # Errors
    /// When a listener cannot be watched: the member cannot serve.
    pub fn flush(&mut self, driver: &mut dyn Driver) -> io::Result<()> {
        self.services.begin_round();
        self.large.begin_round();
        let serves = self.services.may_serve();
        self.acceptor.listen(driver, serves, self.drain != Drain::No)?;
        for _ in 0..limits::ATTACHES_PER_TURN {
            let Some(socket) = self.acceptor.next_socket() else { break };
            self.attach(driver, socket);
        }
        self.tick_conns();
        self.shake_hands();
        self.send_ready(driver);
        self.end_drain();
        Ok(())
    }

    /// Sends what is ready, within the round's bounds.
    pub fn send_ready(&mut self, driver: &mut dyn Driver) {
        let mut dirty = self.wire.take_dirty();
        for id in dirty.drain(..) {
            match self.wire.flush(driver, &self.shared.metrics, id) {
                Flushed::Unknown => {}
                // Sending freed room: streams that waited for it may go on.
                Flushed::Open => self.handle_events(id),
                Flushed::Closed => self.closed(id),
            }
        }
        // Connections with more to send than one turn takes were marked again meanwhile.
        self.wire.keep_dirty(dirty);
    }

    fn closed(&mut self, conn: ConnId) {
        if transport::loopback_slot(conn).is_none() {
            self.shared.connections[self.acceptor.index].fetch_sub(1, Ordering::Relaxed);
        }
        self.services.connection_closed(&mut self.wire, conn);
    }

    fn attach(&mut self, driver: &mut dyn Driver, socket: Accepted) {
        if self.drain == Drain::No && self.wire.open() < limits::CONNECTIONS {
            match self.wire.attach(driver, socket) {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(error = %error, "an accepted connection could not be served");
                }
            }
        }
        self.shared.connections[self.acceptor.index].fetch_sub(1, Ordering::Relaxed);
    }

    /// Lets some TLS handshakes go on.
    fn shake_hands(&mut self) {
        let mut stepped = std::mem::take(&mut self.ticked);
        self.wire.take_handshake_steps(&mut stepped);
        for id in stepped.drain(..) {
            self.handle_events(id);
        }
        self.ticked = stepped;
    }

    /// Gives time to some connections.
    fn tick_conns(&mut self) {
        let mut ticked = std::mem::take(&mut self.ticked);
        self.wire.tick_some(&mut ticked);
        for id in ticked.drain(..) {
            self.handle_events(id);
        }
        self.ticked = ticked;
    }

    /// Decides which connections are read. Large requests of others are no reason not to read: as
    /// long as these are held, none is let in beyond the budget.
    fn pause_reading(&mut self) {
        let large_bytes = self.large.bytes();
        self.held.set(self.services.held_bytes() + large_bytes);
        let most = limits::PENDING_PROPOSAL_BYTES;
        let (small_bytes, proposal_bytes) = self.services.proposal_bytes();
        self.wire.pause(if self.services.is_backlogged() || small_bytes > 2 * most {
            Paused::All
        } else if proposal_bytes + large_bytes > most {
            Paused::Large
        } else {
            Paused::None
        });
    }

    /// Stops in good order: no new connections or calls, what is on its way is answered, for at
    /// most the request timeout.
    fn begin_drain(&mut self) {
        if self.drain != Drain::No || !self.shared.lifecycle.is_stopping() {
            return;
        }
        self.drain = Drain::Until(self.now_ms + self.shared.config.request_timeout_ms());
        self.services.begin_drain(&mut self.wire);
        self.wire.drain();
        self.services.drain_streams(&mut self.wire);
    }

    /// Looked at after the flush: what the last turn answered must have left.
    fn end_drain(&mut self) {
        let Drain::Until(until_ms) = self.drain else { return };
        let failed = self.shared.lifecycle.failure().is_some();
        let waits = !self.services.is_idle() || !self.large.is_empty();
        let idle = !waits && self.wire.is_idle();
        if failed || idle || self.now_ms >= until_ms {
            self.drain = Drain::Done;
            self.shared.lifecycle.note_front_drained();
        }
    }
}

impl Acceptor {
    fn has_sockets(&self) -> bool {
        !self.socket_queues[self.index].queue.is_empty()
    }

    fn next_socket(&self) -> Option<Accepted> {
        self.socket_queues[self.index].queue.pop()
    }

    /// Dropping a socket closes it.
    fn accepted(&self, shared: &Shared, listener: u32, socket: AnySocket) {
        let Some((_, door)) = self.listeners.get(listener as usize) else { return };
        let load = |front: usize| shared.connections[front].load(Ordering::Relaxed);
        let open: usize = (0..shared.connections.len()).map(load).sum();
        if open >= self.connections_max {
            // The log must still be able to open its files.
            tracing::debug!(open, "a connection was refused: descriptors run short");
            return;
        }
        let least =
            (0..self.socket_queues.len()).min_by_key(|front| load(*front)).unwrap_or(self.index);
        // Counted here already, so that a burst spreads evenly.
        shared.connections[least].fetch_add(1, Ordering::Relaxed);
        let sockets = &self.socket_queues[least];
        if sockets.queue.push(Accepted { socket, door: door.clone() }).is_err() {
            // That front has thousands waiting already.
            shared.connections[least].fetch_sub(1, Ordering::Relaxed);
            return;
        }
        if let Some(waker) = &sockets.waker {
            waker.wake();
        }
    }

    fn listen(&mut self, driver: &mut dyn Driver, serves: bool, drains: bool) -> io::Result<()> {
        if serves && !self.listening && !drains {
            self.listening = true;
            for (number, (listener, _)) in (0..).zip(&self.listeners) {
                driver.listen(number, listener.clone())?;
            }
        }
        if drains && self.listening {
            self.listening = false;
            for (number, _) in (0..).zip(&self.listeners) {
                driver.unlisten(number);
            }
            // Closed, so that clients are refused and go elsewhere at once.
            self.listeners.clear();
        }
        Ok(())
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
