//! A shard: one thread, one driver, one loop, serving a front, the replica with its links to peers,
//! or all of them.
//!
//! Started by boot. Each round waits for the driver, hands completions to their owners, gives all
//! a turn and passes on what they want done. It must never block anywhere but in the driver's wait.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use etcore_engine::file::AlignedBuf;
use etcore_proto::raftpb;

use crate::channel::Shared;
use crate::driver::{AnySocket, Completions, Driver, SocketId, Waker, WriteToken};
use crate::front::Front;
use crate::peers::{PeerReport, PeerRequest, Peers};
use crate::replica::{DurableWrite, PeerReply, Replica, Stage};
use crate::work::Work;

mod step;

use step::{Part, StepTimer};

/// See the module text.
pub struct Shard {
    shared: Arc<Shared>,
    driver: Box<dyn Driver>,
    waker: Waker,
    roles: Roles,
}

/// What lives on this thread.
struct Roles {
    front: Option<Front>,
    replica: Option<Replica>,
    /// Beside the replica.
    peers: Option<Peers>,
    traffic: PeerTraffic,
    step: StepTimer,
}

/// What goes between the replica and its links; empty outside a turn.
#[derive(Default)]
struct PeerTraffic {
    messages: Vec<raftpb::Message>,
    reports: Vec<PeerReport>,
    requests: Vec<PeerRequest>,
    replies: Vec<PeerReply>,
}

/// The longest sleep: something unforeseen is noticed at least this often.
const SLEEP_MS_MAX: u64 = 60_000;
/// Only one durable write is outstanding at a time.
const LOG_WRITE: WriteToken = WriteToken(0);

impl Shard {
    /// A shard on the calling thread.
    pub fn new(
        shared: Arc<Shared>,
        driver: Box<dyn Driver>,
        waker: Waker,
        front: Option<Front>,
        replica: Option<Replica>,
        peers: Option<Peers>,
    ) -> Self {
        let step = StepTimer::new(shared.clock.clone());
        let roles = Roles { front, replica, peers, traffic: PeerTraffic::default(), step };
        Self { shared, driver, waker, roles }
    }

    /// Runs until both roles have stopped.
    ///
    /// # Errors
    /// When the driver itself breaks.
    pub fn run(&mut self) -> io::Result<()> {
        while let Some(timeout) = self.work()? {
            self.wait(timeout)?;
        }
        Ok(())
    }

    /// The first half of a round: a turn for both roles. Says how long to wait for completions at
    /// most, or `None` once both have stopped. [`Shard::run`] and the simulator alternate it with
    /// [`Shard::wait`].
    ///
    /// # Errors
    /// When the driver itself breaks.
    pub fn work(&mut self) -> io::Result<Option<Duration>> {
        let now_ms = self.shared.clock.now_ms();
        self.roles.step.begin();
        let stopped = self.turn(now_ms)?;
        let Roles { front, replica, step, .. } = &mut self.roles;
        step.end(&self.shared.metrics, || {
            let mut work = front.as_ref().map_or_else(Work::default, Front::work);
            work.add(replica.as_ref().map_or_else(Work::default, Replica::work));
            work
        });
        if stopped {
            return Ok(None);
        }
        self.waker.announce_sleep();
        let timeout = if self.roles.has_input() {
            Duration::ZERO
        } else {
            let deadline_ms = self.roles.deadline_ms().min(now_ms + SLEEP_MS_MAX);
            let timeout = Duration::from_millis(deadline_ms.saturating_sub(now_ms));
            self.roles.pause().map_or(timeout, |pause| timeout.min(pause))
        };
        self.roles.begin(now_ms);
        Ok(Some(timeout))
    }

    /// The second half: waits, and hands what happened to its owners.
    ///
    /// # Errors
    /// When the driver itself breaks.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.driver.wait(Some(timeout), &mut self.roles)?;
        self.waker.announce_awake();
        Ok(())
    }

    /// One round; true when nothing is left to do. The front goes first, so that what it proposes
    /// is logged in the same round, and again last, so that what the replica answers leaves in it.
    fn turn(&mut self, now_ms: u64) -> io::Result<bool> {
        let roles = &mut self.roles;
        if let Some(front) = &mut roles.front {
            front.turn(now_ms);
        }
        roles.take_from_peers(now_ms);
        if let Some(replica) = &mut roles.replica {
            replica.begin_turn(now_ms);
            while let Some(stage) = roles.replica.as_ref().and_then(Replica::next_stage) {
                roles.run(stage, &mut *self.driver)?;
            }
            if let Some(front) = &mut roles.front {
                front.turn(now_ms);
            }
        }
        if let Some(front) = &mut roles.front {
            front.flush(&mut *self.driver)?;
        }
        roles.step.ended(Part::Answers);
        Ok(roles.front.as_ref().is_none_or(Front::is_stopped)
            && roles.replica.as_ref().is_none_or(Replica::is_stopped))
    }
}

impl Roles {
    /// Runs a stage of the replica's turn, and what it leaves to this shard.
    fn run(&mut self, stage: Stage, driver: &mut dyn Driver) -> io::Result<()> {
        // A mark costs some 20 ns: only what may be long has one.
        if stage == Stage::Apply {
            self.step.ended(Part::Requests);
        }
        let write = self.replica.as_mut().and_then(|replica| replica.run(stage));
        if stage == Stage::Finish {
            self.step.ended(Part::Apply);
        }
        if stage.passes_on() {
            self.pass_on(write, driver)?;
        }
        match stage {
            Stage::SendBeforeLog => {
                if let Some(front) = &mut self.front {
                    front.send_ready(driver);
                    driver.submit()?;
                }
            }
            Stage::SendBeforeApply => {
                if let Some(front) = &mut self.front {
                    front.send_ready(driver);
                }
            }
            Stage::Submit => driver.submit()?,
            _ => {}
        }
        Ok(())
    }
}

impl Roles {
    /// What peers sent goes to the replica before its turn. Messages that it has no room for stay
    /// with the links, which then read no more.
    fn take_from_peers(&mut self, now_ms: u64) {
        let (Some(replica), Some(peers)) = (&mut self.replica, &mut self.peers) else { return };
        peers.turn(now_ms);
        peers.take_reports(&mut self.traffic.reports);
        self.traffic.reports.drain(..).for_each(|report| replica.peer_report(report));
        while let Some(asked) = peers.next_request() {
            replica.asked(asked);
        }
        while replica.wants_messages()
            && let Some(message) = peers.next_received()
        {
            replica.step(message);
        }
    }

    /// What the replica's turn left for peers.
    fn give_to_peers(&mut self) {
        let (Some(replica), Some(peers)) = (&mut self.replica, &mut self.peers) else { return };
        let traffic = &mut self.traffic;
        replica.take_messages(&mut traffic.messages);
        peers.send(&mut traffic.messages);
        replica.take_peer_requests(&mut traffic.requests);
        traffic.requests.drain(..).for_each(|request| peers.request(request));
        replica.take_peer_replies(&mut traffic.replies);
        for reply in traffic.replies.drain(..) {
            peers.answer(reply.conn, reply.status, reply.content_type, &reply.body);
        }
    }

    /// What half a turn of the replica wants done. Peers first: what a leader appends needs their
    /// disks as well as its own.
    fn pass_on(&mut self, write: Option<DurableWrite>, driver: &mut dyn Driver) -> io::Result<()> {
        self.give_to_peers();
        if let Some(peers) = &mut self.peers {
            peers.flush(driver)?;
        }
        if let Some(DurableWrite { file, offset_bytes, buf }) = write {
            driver.write_durable(LOG_WRITE, file, offset_bytes, buf);
        }
        Ok(())
    }

    fn begin(&mut self, now_ms: u64) {
        if let Some(peers) = &mut self.peers {
            peers.begin_turn(now_ms);
        }
        if let Some(front) = &mut self.front {
            front.begin_turn(now_ms);
            front.rest();
        }
    }

    fn has_input(&self) -> bool {
        self.front.as_ref().is_some_and(Front::has_input)
            || self.replica.as_ref().is_some_and(Replica::has_input)
            || self.peers.as_ref().is_some_and(|peers| {
                peers.has_input(self.replica.as_ref().is_some_and(Replica::wants_messages))
            })
    }

    fn pause(&self) -> Option<Duration> {
        self.replica.as_ref().and_then(Replica::pause)
    }

    fn deadline_ms(&self) -> u64 {
        let front = self.front.as_ref().map_or(u64::MAX, Front::deadline_ms);
        let replica = self.replica.as_ref().map_or(u64::MAX, Replica::deadline_ms);
        let peers = self.peers.as_ref().map_or(u64::MAX, Peers::deadline_ms);
        front.min(replica).min(peers)
    }
}

impl Roles {
    /// The links, if the socket is one of theirs.
    fn peers_of(&mut self, socket: SocketId) -> Option<&mut Peers> {
        self.peers.as_mut().filter(|peers| peers.owns(socket))
    }
}

impl Completions for Roles {
    fn accepted(&mut self, listener: u32, socket: AnySocket) {
        self.step.begin();
        if let Some(peers) = self.peers.as_mut().filter(|peers| peers.owns_listener(listener)) {
            peers.accepted(listener, socket);
        } else if let Some(front) = &mut self.front {
            front.accepted(listener, socket);
        }
    }

    fn connected(&mut self, socket: SocketId, result: io::Result<()>) {
        self.step.begin();
        if let Some(peers) = self.peers_of(socket) {
            peers.connected(socket, result);
        }
    }

    fn received(&mut self, socket: SocketId, bytes: &[u8]) {
        self.step.begin();
        if let Some(peers) = self.peers_of(socket) {
            peers.received(socket, bytes);
        } else if let Some(front) = &mut self.front {
            front.received(socket, bytes);
        }
    }

    fn disconnected(&mut self, socket: SocketId, error: Option<io::Error>) {
        self.step.begin();
        if let Some(peers) = self.peers_of(socket) {
            peers.disconnected(socket, error);
        } else if let Some(front) = &mut self.front {
            front.disconnected(socket, error);
        }
    }

    fn sent(&mut self, socket: SocketId, buf: Vec<u8>, result: io::Result<()>) {
        self.step.begin();
        if let Some(peers) = self.peers_of(socket) {
            peers.sent(socket, buf, result);
        } else if let Some(front) = &mut self.front {
            front.sent(socket, buf, result);
        }
    }

    fn written(&mut self, _: WriteToken, buf: AlignedBuf, result: io::Result<()>) {
        self.step.begin();
        if let Some(replica) = &mut self.replica {
            replica.written(buf, result);
        }
    }
}
