//! The simulator's driver: sockets, durable writes and waiting as messages to and from the world.
//!
//! One per shard. The world puts what happened into its [`Port`]; [`Driver::wait`] hands that over
//! and returns at once, whatever the time-out: time passes outside. It reports what a kernel driver
//! would, in no stricter order.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use etcore_engine::file::AlignedBuf;

use super::effects::{Effect, Effects, Owner, durable};
use crate::driver::{
    AnyListener, AnySocket, Completions, Driver, LogFile, PeerAddress, Sent, SocketId, Waker,
    WriteToken,
};

/// Something for [`Completions`].
#[derive(Debug)]
pub(super) enum Input {
    Accepted { listener: u32, connection: u64 },
    Connected { socket: SocketId, result: Result<(), io::ErrorKind> },
    Received { socket: SocketId, bytes: Vec<u8> },
    Disconnected { socket: SocketId, error: Option<io::ErrorKind> },
    Sent { socket: SocketId, buf: Vec<u8>, result: Result<(), io::ErrorKind> },
    Written { token: WriteToken, buf: AlignedBuf, result: io::Result<()> },
}

/// What driver and world share.
#[derive(Debug, Default)]
pub(super) struct Port {
    inbox: VecDeque<Input>,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    socket: Option<Socket>,
}

#[derive(Debug)]
struct Socket {
    paused: bool,
    /// What came while it was paused.
    held: VecDeque<Input>,
    /// What was taken at once since a send was told of.
    taken_bytes: usize,
}

/// A simulated kernel takes as much at once; then a send is told of when the network says so.
const TAKEN_BYTES: usize = 16 << 10;

/// The world's handle.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedPort {
    port: Arc<Mutex<Port>>,
}

impl SharedPort {
    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().expect("nothing panics while it holds the port")
    }

    /// Something happened.
    pub(super) fn put(&self, input: Input) {
        self.lock().inbox.push_back(input);
    }

    /// True if nothing waits to be handed over.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().inbox.is_empty()
    }
}

impl Port {
    fn open(&mut self) -> io::Result<SocketId> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(Slot::default());
                u32::try_from(self.slots.len() - 1).map_err(io::Error::other)?
            }
        };
        let place = &mut self.slots[slot as usize];
        place.socket = Some(Socket { paused: false, held: VecDeque::new(), taken_bytes: 0 });
        Ok(SocketId { slot, generation: place.generation })
    }

    fn socket(&mut self, id: SocketId) -> Option<&mut Socket> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        slot.socket.as_mut().filter(|_| slot.generation == id.generation)
    }

    /// The next thing to report. What belongs to a paused socket waits with it, and what belongs to
    /// a closed one is forgotten, but for the end of a send.
    fn next(&mut self) -> Option<Input> {
        loop {
            let input = self.inbox.pop_front()?;
            let id = match &input {
                Input::Connected { socket, .. }
                | Input::Received { socket, .. }
                | Input::Disconnected { socket, .. } => *socket,
                _ => return Some(input),
            };
            match self.socket(id) {
                None => {}
                Some(socket) if socket.paused => socket.held.push_back(input),
                Some(_) => return Some(input),
            }
        }
    }
}

/// See the module text.
pub(super) struct SimDriver {
    shard: usize,
    port: SharedPort,
    effects: Effects,
    waker: Waker,
}

impl SimDriver {
    pub(super) fn new(shard: usize, port: SharedPort, effects: Effects, waker: Waker) -> Self {
        Self { shard, port, effects, waker }
    }
}

impl Driver for SimDriver {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn listen(&mut self, listener: u32, socket: AnyListener) -> io::Result<()> {
        let AnyListener::Simulated(address) = socket else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        self.effects.push(Effect::Listen { shard: self.shard, listener, address });
        Ok(())
    }

    fn unlisten(&mut self, listener: u32) {
        self.effects.push(Effect::Unlisten { shard: self.shard, listener });
    }

    fn attach(&mut self, socket: AnySocket) -> io::Result<SocketId> {
        let AnySocket::Simulated(connection) = socket else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let socket = self.port.lock().open()?;
        self.effects.push(Effect::Attach { shard: self.shard, connection, socket });
        Ok(socket)
    }

    fn connect(&mut self, address: &PeerAddress) -> io::Result<SocketId> {
        let socket = self.port.lock().open()?;
        let address = address.clone();
        self.effects.push(Effect::Dial { shard: self.shard, socket, address });
        Ok(socket)
    }

    fn pause(&mut self, socket: SocketId) {
        if let Some(socket) = self.port.lock().socket(socket) {
            socket.paused = true;
        }
    }

    fn resume(&mut self, socket: SocketId) {
        let mut port = self.port.lock();
        let Some(socket) = port.socket(socket) else { return };
        socket.paused = false;
        let held = std::mem::take(&mut socket.held);
        // What came first is reported first.
        for input in held.into_iter().rev() {
            port.inbox.push_front(input);
        }
    }

    fn send(&mut self, id: SocketId, buf: Vec<u8>) -> Option<Sent> {
        let mut port = self.port.lock();
        let Some(socket) = port.socket(id) else {
            return Some((emptied(buf), Err(io::ErrorKind::NotConnected.into())));
        };
        let at_once = socket.taken_bytes + buf.len() <= TAKEN_BYTES;
        socket.taken_bytes = if at_once { socket.taken_bytes + buf.len() } else { 0 };
        self.effects.push(Effect::Send { shard: self.shard, socket: id, buf, is_told: !at_once });
        at_once.then(|| (Vec::new(), Ok(())))
    }

    fn close(&mut self, socket: SocketId) {
        let mut port = self.port.lock();
        if port.socket(socket).is_none() {
            return;
        }
        let slot = &mut port.slots[socket.slot as usize];
        slot.socket = None;
        slot.generation = slot.generation.wrapping_add(1);
        port.free.push(socket.slot);
        self.effects.push(Effect::Close { shard: self.shard, socket });
    }

    fn write_durable(
        &mut self,
        token: WriteToken,
        file: LogFile,
        offset_bytes: u64,
        buf: AlignedBuf,
    ) {
        let LogFile::Simulated(file) = file else {
            let result = Err(io::ErrorKind::Unsupported.into());
            self.port.put(Input::Written { token, buf, result });
            return;
        };
        let owner = Owner::Driver { shard: self.shard, token };
        self.effects.push(Effect::Disk { owner, op: Some(durable(file, offset_bytes, buf)) });
    }

    fn wait(
        &mut self,
        _timeout: Option<Duration>,
        completions: &mut dyn Completions,
    ) -> io::Result<()> {
        // What these calls cause comes later: as much as was there is handed over.
        let count = self.port.lock().inbox.len();
        for _ in 0..count {
            let Some(input) = self.port.lock().next() else { break };
            match input {
                Input::Accepted { listener, connection } => {
                    completions.accepted(listener, AnySocket::Simulated(connection));
                }
                Input::Connected { socket, result } => {
                    completions.connected(socket, result.map_err(io::Error::from));
                }
                Input::Received { socket, bytes } => completions.received(socket, &bytes),
                Input::Disconnected { socket, error } => {
                    completions.disconnected(socket, error.map(io::Error::from));
                }
                Input::Sent { socket, buf, result } => {
                    completions.sent(socket, buf, result.map_err(io::Error::from));
                }
                Input::Written { token, buf, result } => completions.written(token, buf, result),
            }
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

/// Returns the buffer without its bytes.
pub(super) fn emptied(mut buf: Vec<u8>) -> Vec<u8> {
    buf.clear();
    buf
}
