//! Connections of the simulated world: ordered bytes each way, late, in pieces, until they break.
//!
//! Called by the world and the clients. A connection loses nothing while it lasts, as TCP; what is
//! on its way when it breaks is lost. An end may learn of the break late, or never if the other
//! machine lost power.

use std::collections::VecDeque;
use std::io;

use super::driver::{Input, emptied};
use super::member::peer_address;
use super::plan::Span;
use super::world::{Event, World};
use crate::driver::{PeerAddress, SocketId};
use crate::limits;

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A client.
    Client(usize),
    /// A member that has accepted it and does not read it yet.
    Accepted { member: usize, life: u64 },
    /// A socket of a member.
    Socket { member: usize, life: u64, thread: usize, socket: SocketId },
    /// Nobody any more, or nobody yet.
    Nobody,
}

impl End {
    fn is_of(&self, member: usize) -> bool {
        match self {
            End::Accepted { member: own, .. } | End::Socket { member: own, .. } => *own == member,
            _ => false,
        }
    }
}

/// A connection. End 0 is who called, end 1 who was called.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ends: [End; 2],
    address: u64,
    /// The members that the ends are on; `None` for a client.
    hosts: [Option<usize>; 2],
    /// When the last bytes towards each end arrive.
    arrives: [u64; 2],
    /// Towards each end.
    on_the_way_bytes: [u64; 2],
    stalled_until: u64,
    /// Towards each end, in order.
    held: [VecDeque<Held>; 2],
    latency: Span,
    broken: bool,
    /// One end's machine has lost power, and the other end does not know.
    silent: bool,
    /// What reached end 1 before it was read.
    early: Vec<Vec<u8>>,
    early_end: Option<Option<io::ErrorKind>>,
}

impl Connection {
    /// It is one between two members, and one of them is that one.
    pub(super) fn is_between_members_and(&self, of: impl Fn(Option<usize>) -> bool) -> bool {
        self.hosts.iter().all(Option::is_some) && self.hosts.iter().any(|host| of(*host))
    }
}

/// What waits until a partition is over.
#[derive(Debug)]
pub(super) enum Held {
    Bytes(Vec<u8>),
    End(Option<io::ErrorKind>),
}

/// Bytes that a sender's kernel takes before it waits for the receiver.
const SEND_BUFFER_BYTES: u64 = 256 << 10;

impl World {
    /// Calls an address; whether somebody listens is found out there.
    pub(super) fn connect(&mut self, caller: End, address: u64, latency: Span) -> u64 {
        let id = self.next_connection;
        self.next_connection += 1;
        let at = self.now + latency.draw(&mut self.prng);
        let callee = usize::try_from(address / 2).ok().filter(|at| *at < self.members.len());
        let hosts = match caller {
            End::Socket { member, .. } => [Some(member), callee],
            _ => [None, callee],
        };
        let connection = Connection {
            hosts,
            ends: [caller, End::Nobody],
            address,
            // Nothing overtakes the call itself.
            arrives: [at, at],
            on_the_way_bytes: [0, 0],
            stalled_until: 0,
            held: [VecDeque::new(), VecDeque::new()],
            latency,
            broken: false,
            silent: false,
            early: Vec::new(),
            early_end: None,
        };
        self.connections.insert(id, connection);
        self.schedule(at, Event::Connect { connection: id });
        id
    }

    /// Returns until when nothing gets to that end.
    pub(super) fn is_blocked_to(&self, id: u64, to: usize) -> Option<u64> {
        let [caller, callee] = self.connections.get(&id)?.hosts;
        let (from, to) = if to == 1 { (caller?, callee?) } else { (callee?, caller?) };
        self.blocked.get(&(from, to)).copied().filter(|until| *until > self.now)
    }

    /// Returns until when the ends cannot agree on a connection.
    pub(super) fn is_blocked(&self, id: u64) -> Option<u64> {
        self.is_blocked_to(id, 0).max(self.is_blocked_to(id, 1))
    }

    /// A call has reached its address.
    pub(super) fn arrive(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let number = usize::try_from(connection.address / 2).unwrap_or(usize::MAX);
        let member = self.members.get(number).filter(|member| !member.is_unreachable());
        let refuses = self.hard.refuses(connection.hosts[0], number, self.now);
        let accepts = member.filter(|_| !refuses).and_then(|m| m.accepts(connection.address));
        let Some((listener, thread)) = accepts else {
            connection.broken = true;
            let error = io::ErrorKind::ConnectionRefused;
            return match connection.ends[0] {
                End::Client(_) => self.schedule_end(id, 0, Some(error)),
                _ => self.tell_caller(id, Err(error)),
            };
        };
        let life = self.members[number].life_number;
        connection.ends[1] = End::Accepted { member: number, life };
        self.put(number, thread, Input::Accepted { listener, connection: id });
        match self.connections.get(&id).map(|connection| connection.ends[0]) {
            Some(End::Client(_)) => self.client_connected(id),
            _ => self.tell_caller(id, Ok(())),
        }
    }

    /// A member calls another one.
    pub(super) fn dial(
        &mut self,
        member: usize,
        thread: usize,
        socket: SocketId,
        to: &PeerAddress,
    ) {
        let life = self.members[member].life_number;
        let caller = End::Socket { member, life, thread, socket };
        let address = match to {
            PeerAddress::Tcp(std::net::SocketAddr::V4(address)) => {
                usize::from(address.ip().octets()[3]).checked_sub(1).map(peer_address)
            }
            _ => None,
        };
        let latency = self.plan.peer_latency;
        self.connect(caller, address.unwrap_or(u64::MAX), latency);
    }

    /// The caller, a member, will hear how its call went.
    fn tell_caller(&mut self, id: u64, result: Result<(), io::ErrorKind>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let at = self.now + connection.latency.draw(&mut self.prng);
        connection.arrives[0] = connection.arrives[0].max(at);
        let at = connection.arrives[0];
        self.schedule(at, Event::Dialed { connection: id, result });
    }

    /// It hears.
    pub(super) fn dialed(&mut self, id: u64, result: Result<(), io::ErrorKind>) {
        self.trace.event(self.now, "dialed", &[id, u64::from(result.is_ok())]);
        let Some(connection) = self.connections.get(&id) else { return };
        let End::Socket { member, life, thread, socket } = connection.ends[0] else { return };
        let broken = connection.broken;
        let result = if broken { result.and(Err(io::ErrorKind::ConnectionReset)) } else { result };
        if self.members[member].life_number == life {
            self.put(member, thread, Input::Connected { socket, result });
        }
    }

    /// A thread of a member serves the connection from now on.
    pub(super) fn attach(&mut self, id: u64, member: usize, thread: usize, socket: SocketId) {
        let life = self.members[member].life_number;
        let Some(connection) = self.connections.get_mut(&id) else {
            let error = Some(io::ErrorKind::ConnectionReset);
            self.put(member, thread, Input::Disconnected { socket, error });
            return;
        };
        connection.ends[1] = End::Socket { member, life, thread, socket };
        let early = std::mem::take(&mut connection.early);
        let end = connection.early_end.take();
        for bytes in early {
            self.put(member, thread, Input::Received { socket, bytes });
        }
        if let Some(error) = end {
            self.put(member, thread, Input::Disconnected { socket, error });
        }
    }

    /// Sends to the end `to`. Returns when the last byte arrives; `None` if it never does.
    pub(super) fn send(&mut self, id: u64, to: usize, bytes: &[u8]) -> Option<u64> {
        let connection = self.connections.get_mut(&id).filter(|connection| !connection.broken)?;
        let mut at = (self.now + connection.latency.draw(&mut self.prng))
            .max(connection.stalled_until)
            .max(connection.arrives[to]);
        let mut left = bytes;
        let mut pieces = Vec::new();
        while !left.is_empty() {
            let most = left.len().min(limits::RECEIVE_BUFFER_BYTES);
            // Mostly whole, sometimes in small pieces.
            let cut = match self.prng.below(8) {
                0 => 1 + self.prng.index(most),
                1 => 1 + self.prng.index(most.min(20)),
                _ => most,
            };
            let (piece, rest) = left.split_at(cut);
            pieces.push((at, piece.to_vec()));
            at += self.prng.below(2000);
            if connection.hosts[0].is_some() && self.plan.peer_bytes_per_s > 0 {
                at += cut as u64 * 1_000_000_000 / self.plan.peer_bytes_per_s;
            }
            left = rest;
        }
        connection.on_the_way_bytes[to] += bytes.len() as u64;
        connection.arrives[to] = at;
        for (at, bytes) in pieces {
            self.schedule(at, Event::Deliver { connection: id, to, bytes });
        }
        Some(at)
    }

    /// A member sends; if it is to be told, then once the kernel has taken it all.
    pub(super) fn send_from_member(
        &mut self,
        member: usize,
        thread: usize,
        socket: SocketId,
        buf: Vec<u8>,
        is_told: bool,
    ) {
        let life = self.members[member].life_number;
        let own = self.end_of(member, thread, socket);
        let arrives = own.and_then(|(id, from)| self.send(id, 1 - from, &buf));
        if !is_told {
            return;
        }
        let waiting =
            own.and_then(|(id, from)| Some(self.connections.get(&id)?.on_the_way_bytes[1 - from]));
        let soon = self.now + self.prng.below(20_000);
        let (at, result) = match arrives {
            Some(at) if waiting.unwrap_or(0) > SEND_BUFFER_BYTES => (at, Ok(())),
            Some(_) => (soon, Ok(())),
            None => (soon, Err(io::ErrorKind::BrokenPipe)),
        };
        let buf = emptied(buf);
        self.schedule(at, Event::Sent { member, life, thread, socket, buf, result });
    }

    /// The connection behind a member's socket, and which end of it that is.
    fn end_of(&self, member: usize, thread: usize, own: SocketId) -> Option<(u64, usize)> {
        let life = self.members[member].life_number;
        let wanted = End::Socket { member, life, thread, socket: own };
        self.connections.iter().find_map(|(id, connection)| {
            Some((*id, connection.ends.iter().position(|end| *end == wanted)?))
        })
    }

    /// Something has come as far as the network lets it. Nothing overtakes what is held.
    pub(super) fn come(&mut self, id: u64, to: usize, what: Held) {
        let blocked = self.is_blocked_to(id, to);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let held = &mut connection.held[to];
        if held.is_empty() && blocked.is_none() {
            return self.hand_over(id, to, what);
        }
        held.push_back(what);
        if let Some(until) = blocked {
            self.schedule(until, Event::Release { connection: id, to });
        }
    }

    /// A partition may be over.
    pub(super) fn release(&mut self, id: u64, to: usize) {
        while self.is_blocked_to(id, to).is_none() {
            let held = self.connections.get_mut(&id).and_then(|known| known.held[to].pop_front());
            let Some(what) = held else { return };
            self.hand_over(id, to, what);
        }
        if let Some(until) = self.is_blocked_to(id, to) {
            self.schedule(until, Event::Release { connection: id, to });
        }
    }

    /// All partitions are over.
    pub(super) fn release_all(&mut self) {
        self.blocked.clear();
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            self.schedule(self.now, Event::Release { connection: id, to: 0 });
            self.schedule(self.now, Event::Release { connection: id, to: 1 });
        }
    }

    fn hand_over(&mut self, id: u64, to: usize, what: Held) {
        match what {
            Held::Bytes(bytes) => self.deliver(id, to, bytes),
            Held::End(error) => self.end_arrives(id, to, error),
        }
    }

    /// Bytes have arrived.
    fn deliver(&mut self, id: u64, to: usize, bytes: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.on_the_way_bytes[to] -= bytes.len() as u64;
        if connection.broken {
            return;
        }
        match connection.ends[to] {
            End::Client(client) => self.client_receives(client, id, &bytes),
            End::Socket { member, life, thread, socket } => {
                if self.members[member].life_number == life {
                    self.put(member, thread, Input::Received { socket, bytes });
                }
            }
            End::Accepted { .. } => connection.early.push(bytes),
            End::Nobody => {}
        }
    }

    /// The end `from` is closed: what it has sent still arrives.
    pub(super) fn close(&mut self, id: u64, from: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.ends[from] = End::Nobody;
        let to = 1 - from;
        let at = connection.arrives[to].max(self.now + connection.latency.draw(&mut self.prng));
        self.schedule(at, Event::Ended { connection: id, to, error: None });
    }

    /// The caller sends nothing more, and still reads.
    pub(super) fn end_side(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let at = self.now + connection.latency.draw(&mut self.prng);
        let at = at.max(connection.arrives[1]);
        connection.arrives[1] = at;
        self.schedule(at, Event::Ended { connection: id, to: 1, error: None });
    }

    /// The caller is gone, and the other end is told nothing.
    pub(super) fn vanish(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.ends[0] = End::Nobody;
        }
    }

    /// A member closes its end.
    pub(super) fn close_from_member(&mut self, member: usize, thread: usize, socket: SocketId) {
        if let Some((id, from)) = self.end_of(member, thread, socket) {
            self.close(id, from);
        }
    }

    /// The connection breaks; both ends learn of it, each in its time.
    pub(super) fn break_connection(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if std::mem::replace(&mut connection.broken, true) {
            return;
        }
        for to in 0..2 {
            self.schedule_end(id, to, Some(io::ErrorKind::ConnectionReset));
        }
    }

    fn schedule_end(&mut self, id: u64, to: usize, error: Option<io::ErrorKind>) {
        let Some(connection) = self.connections.get(&id) else { return };
        let at = self.now + connection.latency.draw(&mut self.prng);
        self.schedule(at, Event::Ended { connection: id, to, error });
    }

    /// An end learns that the connection is over.
    fn end_arrives(&mut self, id: u64, to: usize, error: Option<io::ErrorKind>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.ends[to] {
            End::Client(client) => {
                connection.ends[to] = End::Nobody;
                self.client_disconnected(client, id);
            }
            End::Socket { member, life, thread, socket } => {
                if self.members[member].life_number == life {
                    self.put(member, thread, Input::Disconnected { socket, error });
                }
            }
            End::Accepted { .. } => connection.early_end = Some(error),
            End::Nobody => {}
        }
        if let Some(connection) = self.connections.get(&id)
            && connection.ends == [End::Nobody, End::Nobody]
        {
            self.connections.remove(&id);
        }
    }

    /// A member's process is gone; with its machine's power, nobody is told.
    pub(super) fn disconnect_member(&mut self, member: usize, silently: bool) {
        let own: Vec<(u64, usize)> = self
            .connections
            .iter()
            .filter_map(|(id, connection)| {
                Some((*id, connection.ends.iter().position(|end| end.is_of(member))?))
            })
            .collect();
        for (id, from) in own {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.ends[from] = End::Nobody;
            connection.broken = true;
            connection.silent = silently;
            if !silently {
                self.schedule_end(id, 1 - from, Some(io::ErrorKind::ConnectionReset));
            }
        }
    }

    /// A machine has started: its kernel knows nothing of connections from before, and says so when
    /// their other ends send again.
    pub(super) fn reset_silent(&mut self, member: usize) {
        let mut told = Vec::new();
        for (id, connection) in &mut self.connections {
            if connection.silent && connection.hosts.contains(&Some(member)) {
                connection.silent = false;
                let to = usize::from(connection.ends[0] == End::Nobody);
                told.push((*id, to));
            }
        }
        for (id, to) in told {
            let at = self.now + self.prng.below(400_000_000);
            let error = Some(io::ErrorKind::ConnectionReset);
            self.schedule(at, Event::Ended { connection: id, to, error });
        }
    }

    /// Some connection carries nothing until then.
    pub(super) fn stall_connection(&mut self, id: u64, until: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.stalled_until = until;
        }
    }
}
