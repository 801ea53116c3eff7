//! The io_uring driver: multishot accept and receive into provided buffers, sends and durable
//! writes batched into one system call per turn.
//!
//! Created and used on one thread. It must never look into the bytes it moves, and never reports a
//! log write as done unless the kernel called it durable.
//!
//! A socket on which buffers arrive full is *bulky*: a multishot receive would take dozens of them
//! at once, and all others would wait. It gets a receive for one buffer, renewed in each wait for
//! at most [`limits::BULK_RECEIVES`] such sockets in turn.
//!
//! Contract of its unsafe lines: memory named by a submitted operation (send buffers, write
//! buffers, the eventfd counter) is owned by a table entry of this driver and neither moved nor
//! freed until the completion has arrived; the ring itself is dropped before those tables.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use etcore_engine::file::AlignedBuf;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::net::{Shutdown, shutdown};
use socket2::SockAddr;

use super::reserve::Reserve;
use super::{
    AnyListener, AnySocket, Completions, Driver, LogFile, PeerAddress, Sent, SocketId, Waker,
    WriteToken, connect,
};
use crate::clock::Clock;
use crate::limits;

mod buffers;
mod method;
mod writes;

use method::Methods;
use writes::LogWrite;

/// See the module text.
pub struct Uring {
    // Dropped first: the kernel lets go of all memory below before that is freed.
    ring: IoUring,
    buffers: buffers::BufferRing,
    sockets: Vec<Slot>,
    free_sockets: Vec<u32>,
    listeners: HashMap<u32, Listener>,
    reserve: Reserve,
    writes: [Option<LogWrite>; limits::LOG_WRITES],
    last_write: u64,
    methods: Methods,
    /// For how long writes take.
    clock: Clock,
    wake_counter: Box<u64>,
    wake_armed: bool,
    waker: Waker,
    rearm: Vec<SocketId>,
    /// Sockets that found no buffer: first in the next wait.
    starved: Vec<SocketId>,
    /// Bulky sockets, each once, that wait for their turn.
    bulky: VecDeque<SocketId>,
}

struct Listener {
    socket: Arc<OwnedFd>,
    open: bool,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    state: Option<Socket>,
}

struct Socket {
    fd: OwnedFd,
    sending: Option<Vec<u8>>,
    sent: usize,
    /// The address it is being connected to.
    connecting: Option<Box<SockAddr>>,
    receiving: bool,
    /// What receives goes on after its first buffer.
    multishot: bool,
    /// Above 0 it is bulky: receives left until it gets a multishot one again.
    bulky: u16,
    /// It is in the queue of those.
    in_turn: bool,
    paused: bool,
    disconnected: bool,
    closing: bool,
}

/// Buffers in a row that were not full make a bulky socket an ordinary one.
const BULKY: u16 = 256;

// The top byte of `user_data` says what completed, the low 56 bits which one.
const ACCEPT: u64 = 1 << 56;
const RECEIVE: u64 = 2 << 56;
const SEND: u64 = 3 << 56;
const WRITE: u64 = 4 << 56;
const WAKE: u64 = 5 << 56;
const CANCEL: u64 = 6 << 56;
const SYNC: u64 = 7 << 56;
const CONNECT: u64 = 8 << 56;
const DURABLE: u64 = 9 << 56;
const KIND: u64 = 0xff << 56;

fn socket_data(kind: u64, socket: SocketId) -> u64 {
    kind | u64::from(socket.generation & 0xff_ffff) << 32 | u64::from(socket.slot)
}

impl Socket {
    fn may_receive(&self) -> bool {
        let over = self.disconnected || self.closing;
        !self.receiving && !self.paused && !over && self.connecting.is_none()
    }

    /// Bytes arrived; true if its multishot receive must end.
    fn note_received(&mut self, bytes: usize) -> bool {
        if bytes < limits::RECEIVE_BUFFER_BYTES {
            self.bulky = self.bulky.saturating_sub(1);
            return false;
        }
        self.bulky = BULKY;
        self.receiving && self.multishot
    }
}

impl Uring {
    /// Sets up the ring on the calling thread, which must be the one that uses it.
    ///
    /// # Errors
    /// When the kernel lacks a feature or forbids io_uring; the caller falls back to `portable`.
    pub fn new(waker: Waker) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(limits::URING_ENTRIES * 8)
            .build(limits::URING_ENTRIES)
            .or_else(|_| {
                // Before Linux 6.1: without deferred task work.
                IoUring::builder()
                    .setup_coop_taskrun()
                    .setup_cqsize(limits::URING_ENTRIES * 8)
                    .build(limits::URING_ENTRIES)
            })?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "no IORING_FEAT_EXT_ARG"));
        }
        let buffers = buffers::BufferRing::register(&ring)?;
        Ok(Self {
            ring,
            buffers,
            sockets: Vec::new(),
            free_sockets: Vec::new(),
            listeners: HashMap::new(),
            reserve: Reserve::new()?,
            writes: Default::default(),
            last_write: 0,
            methods: Methods::default(),
            clock: Clock::start(),
            wake_counter: Box::new(0),
            wake_armed: false,
            waker,
            rearm: Vec::new(),
            starved: Vec::new(),
            bulky: VecDeque::new(),
        })
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: every entry built in this file names memory and descriptors that the tables
            // of this driver keep until its completion (module contract).
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it over and go on. EBUSY/EINTR clear by themselves.
            let _ = self.ring.submit();
        }
    }

    fn socket(&mut self, id: SocketId) -> Option<&mut Socket> {
        let slot = self.sockets.get_mut(id.slot as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.state.as_mut()
    }

    fn arm_receive(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        if !socket.may_receive() {
            return;
        }
        if socket.bulky > 0 {
            if !socket.in_turn {
                socket.in_turn = true;
                self.bulky.push_back(id);
            }
            return;
        }
        socket.receiving = true;
        socket.multishot = true;
        let fd = Fd(socket.fd.as_raw_fd());
        let entry = opcode::RecvMulti::new(fd, buffers::GROUP).build();
        self.push(&entry.user_data(socket_data(RECEIVE, id)));
    }

    /// Lets the next bulky sockets receive one buffer each.
    fn arm_bulky(&mut self) {
        for _ in 0..limits::BULK_RECEIVES {
            let Some(id) = self.bulky.pop_front() else { return };
            let Some(socket) = self.socket(id) else { continue };
            socket.in_turn = false;
            if !socket.may_receive() {
                continue;
            }
            socket.receiving = true;
            socket.multishot = false;
            let fd = Fd(socket.fd.as_raw_fd());
            let length = limits::RECEIVE_BUFFER_BYTES as u32;
            let entry = opcode::Recv::new(fd, std::ptr::null_mut(), length)
                .buf_group(buffers::GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT);
            self.push(&entry.user_data(socket_data(RECEIVE, id)));
        }
    }

    fn cancel_receive(&mut self, id: SocketId) {
        let entry = opcode::AsyncCancel::new(socket_data(RECEIVE, id)).build();
        self.push(&entry.user_data(CANCEL));
    }

    fn push_send(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        let Some(buf) = &socket.sending else { return };
        let rest = &buf[socket.sent..];
        let entry = opcode::Send::new(
            Fd(socket.fd.as_raw_fd()),
            rest.as_ptr(),
            u32::try_from(rest.len()).unwrap_or(u32::MAX),
        )
        .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
        .build();
        self.push(&entry.user_data(socket_data(SEND, id)));
    }

    fn push_accept(&mut self, listener: u32) {
        let Some(entry) = self.listeners.get(&listener) else { return };
        if !entry.open {
            return;
        }
        let fd = Fd(entry.socket.as_raw_fd());
        let accept = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build();
        self.push(&accept.user_data(ACCEPT | u64::from(listener)));
    }

    fn shut_down(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        let _ = shutdown(&socket.fd, Shutdown::Both);
    }

    /// Frees the slot once nothing of the socket is in the kernel's hands.
    fn reap(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        let in_flight = socket.receiving || socket.sending.is_some() || socket.connecting.is_some();
        if !socket.closing || in_flight {
            return;
        }
        let slot = &mut self.sockets[id.slot as usize];
        slot.state = None;
        slot.generation = (slot.generation + 1) & 0xff_ffff;
        self.free_sockets.push(id.slot);
    }

    fn complete(&mut self, cqe: &cqueue::Entry, completions: &mut dyn Completions) {
        let data = cqe.user_data();
        let socket = SocketId {
            slot: data as u32,
            generation: u32::try_from((data & !KIND) >> 32).unwrap_or(u32::MAX),
        };
        match data & KIND {
            ACCEPT => self.complete_accept(data as u32, cqe, completions),
            RECEIVE => self.complete_receive(socket, cqe, completions),
            SEND => self.complete_send(socket, cqe, completions),
            CONNECT => self.complete_connect(socket, cqe, completions),
            WRITE => self.complete_short(data & !KIND, cqe.result(), completions),
            SYNC => self.complete_sync(data & !KIND, cqe.result(), completions),
            DURABLE => self.complete_one_write(data & !KIND, cqe.result(), completions),
            WAKE => self.wake_armed = false,
            _ => {}
        }
    }

    fn complete_accept(
        &mut self,
        listener: u32,
        cqe: &cqueue::Entry,
        completions: &mut dyn Completions,
    ) {
        if cqe.result() >= 0 {
            // SAFETY: a successful accept returns a fresh descriptor that belongs to us alone.
            let socket = unsafe { OwnedFd::from_raw_fd(cqe.result()) };
            completions.accepted(listener, socket.into());
        }
        if cqueue::more(cqe.flags()) {
            return;
        }
        let Some(entry) = self.listeners.get(&listener) else { return };
        if !entry.open {
            self.listeners.remove(&listener);
            return;
        }
        if cqe.result() < 0 {
            let error = io::Error::from_raw_os_error(-cqe.result());
            self.reserve.on_accept_error(entry.socket.as_fd(), &error);
        }
        self.push_accept(listener);
    }

    fn complete_receive(
        &mut self,
        id: SocketId,
        cqe: &cqueue::Entry,
        completions: &mut dyn Completions,
    ) {
        let result = cqe.result();
        let ended = !cqueue::more(cqe.flags());
        let Some(socket) = self.socket(id) else { return };
        if ended {
            socket.receiving = false;
        }
        let silent = socket.closing || socket.disconnected;
        let too_much = result > 0 && socket.note_received(result as usize) && !silent;
        let buffer = cqueue::buffer_select(cqe.flags());
        if let Some(buffer) = buffer {
            if result > 0 && !silent {
                completions.received(id, self.buffers.bytes(buffer, result as usize));
            }
            self.buffers.give_back(buffer);
        }
        let hung_up = match result {
            0 => Some(None),
            // Out of buffers or cancelled by `pause`: not the peer's doing.
            _ if result == -libc::ENOBUFS || result == -libc::ECANCELED => None,
            _ if result < 0 => Some(Some(io::Error::from_raw_os_error(-result))),
            _ => None,
        };
        if let Some(error) = hung_up
            && !silent
        {
            if let Some(socket) = self.socket(id) {
                socket.disconnected = true;
            }
            completions.disconnected(id, error);
        } else if ended && result == -libc::ENOBUFS {
            self.starved.push(id);
        } else if ended {
            self.rearm.push(id);
        } else if too_much || self.socket(id).is_some_and(|socket| socket.paused) {
            // The cancellation has missed it.
            self.cancel_receive(id);
        }
        self.reap(id);
    }

    fn complete_send(
        &mut self,
        id: SocketId,
        cqe: &cqueue::Entry,
        completions: &mut dyn Completions,
    ) {
        let Some(socket) = self.socket(id) else { return };
        let Some(mut buf) = socket.sending.take() else { return };
        let result = cqe.result();
        if result > 0 {
            socket.sent += result as usize;
        }
        let complete = socket.sent >= buf.len();
        if result > 0 && !complete && !socket.closing {
            socket.sending = Some(buf);
            self.push_send(id);
            return;
        }
        buf.clear();
        let outcome = match result {
            _ if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            _ if complete => Ok(()),
            _ => Err(io::ErrorKind::ConnectionAborted.into()),
        };
        completions.sent(id, buf, outcome);
        self.reap(id);
    }

    fn complete_connect(
        &mut self,
        id: SocketId,
        cqe: &cqueue::Entry,
        completions: &mut dyn Completions,
    ) {
        let Some(socket) = self.socket(id) else { return };
        socket.connecting = None;
        if socket.closing {
            return self.reap(id);
        }
        if cqe.result() < 0 {
            socket.disconnected = true;
            let error = io::Error::from_raw_os_error(-cqe.result());
            return completions.connected(id, Err(error));
        }
        completions.connected(id, Ok(()));
        self.arm_receive(id);
    }

    /// Puts a socket into the table.
    fn insert(&mut self, socket: OwnedFd, connecting: Option<Box<SockAddr>>) -> SocketId {
        let slot = self.free_sockets.pop().unwrap_or_else(|| {
            self.sockets.push(Slot::default());
            self.sockets.len() as u32 - 1
        });
        let entry = &mut self.sockets[slot as usize];
        entry.state = Some(Socket {
            fd: socket,
            sending: None,
            sent: 0,
            connecting,
            receiving: false,
            multishot: false,
            // Assumed until it has shown that it is not.
            bulky: 1,
            in_turn: false,
            paused: false,
            disconnected: false,
            closing: false,
        });
        SocketId { slot, generation: entry.generation }
    }

    fn arm(&mut self) {
        for id in std::mem::take(&mut self.starved) {
            self.arm_receive(id);
        }
        for id in std::mem::take(&mut self.rearm) {
            self.arm_receive(id);
        }
        self.arm_bulky();
        if !self.wake_armed {
            self.wake_armed = true;
            let counter: *mut u64 = &raw mut *self.wake_counter;
            let entry = opcode::Read::new(Fd(self.waker.fd()), counter.cast(), 8).build();
            self.push(&entry.user_data(WAKE));
        }
    }
}

impl Driver for Uring {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn listen(&mut self, listener: u32, socket: AnyListener) -> io::Result<()> {
        let socket = socket.into_kernel();
        self.listeners.insert(listener, Listener { socket, open: true });
        self.push_accept(listener);
        Ok(())
    }

    fn unlisten(&mut self, listener: u32) {
        if let Some(entry) = self.listeners.get_mut(&listener) {
            entry.open = false;
            let cancel = opcode::AsyncCancel::new(ACCEPT | u64::from(listener)).build();
            self.push(&cancel.user_data(CANCEL));
        }
    }

    fn attach(&mut self, socket: AnySocket) -> io::Result<SocketId> {
        let id = self.insert(socket.into_kernel(), None);
        self.arm_receive(id);
        Ok(id)
    }

    fn connect(&mut self, address: &PeerAddress) -> io::Result<SocketId> {
        // It stays blocking: of others the ring reports that they would block.
        let (socket, name) = connect::open(address)?;
        let name = Box::new(name);
        let (fd, length) = (Fd(socket.as_raw_fd()), name.len());
        let entry = opcode::Connect::new(fd, name.as_ptr().cast(), length).build();
        let id = self.insert(socket.into(), Some(name));
        self.push(&entry.user_data(socket_data(CONNECT, id)));
        Ok(id)
    }

    fn pause(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        if !socket.paused {
            socket.paused = true;
            if socket.receiving {
                self.cancel_receive(id);
            }
        }
    }

    fn resume(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        if socket.paused {
            socket.paused = false;
            self.arm_receive(id);
        }
    }

    /// Leaves with everything else that the turn wants, just before the thread sleeps. A plain send
    /// now would save the completion, but on few cores the woken peer competes with the rest of
    /// the turn: linearizable reads of three members on two cores were a tenth slower.
    fn send(&mut self, id: SocketId, buf: Vec<u8>) -> Option<Sent> {
        let socket = self.socket(id)?;
        assert!(socket.sending.is_none(), "one send at a time per socket");
        socket.sending = Some(buf);
        socket.sent = 0;
        self.push_send(id);
        None
    }

    fn close(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        if socket.closing {
            return;
        }
        socket.closing = true;
        if socket.connecting.is_some() {
            let entry = opcode::AsyncCancel::new(socket_data(CONNECT, id)).build();
            self.push(&entry.user_data(CANCEL));
        }
        let Some(socket) = self.socket(id) else { return };
        if socket.receiving || socket.sending.is_some() || socket.connecting.is_some() {
            // A cancellation can miss an operation that is just being tried again, and nobody would
            // ask twice. A socket that is shut down ends both, whenever they are tried.
            self.shut_down(id);
        }
        self.reap(id);
    }

    fn write_durable(
        &mut self,
        token: WriteToken,
        file: LogFile,
        offset_bytes: u64,
        buf: AlignedBuf,
    ) {
        let file = file.into_kernel();
        self.begin_write(LogWrite::new(token, file, offset_bytes, buf));
    }

    fn submit(&mut self) -> io::Result<()> {
        match self.ring.submit() {
            Ok(_) => Ok(()),
            // The next wait hands it over.
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn wait(
        &mut self,
        timeout: Option<Duration>,
        completions: &mut dyn Completions,
    ) -> io::Result<()> {
        self.arm();
        // Bulky sockets that were not in turn may have bytes already.
        let timeout = if self.bulky.is_empty() { timeout } else { Some(Duration::ZERO) };
        let timespec = timeout.map(Timespec::from);
        let args = match &timespec {
            Some(timespec) => SubmitArgs::new().timespec(timespec),
            None => SubmitArgs::new(),
        };
        // Always asks for one completion, also with a zero timeout: only then is deferred task work
        // run.
        match self.ring.submitter().submit_with_args(1, &args) {
            Ok(_) => {}
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        // Completions that arrive while these are handled wait for the next turn, so that one busy
        // socket cannot keep the shard here.
        let ready = self.ring.completion().len();
        for _ in 0..ready {
            let Some(cqe) = self.ring.completion().next() else { break };
            self.complete(&cqe, completions);
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

/// Time is up, a signal came, or completions must be taken first.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Sockets with operations in flight are shut down so that the ring's teardown finds nothing
        // that still reads or writes; the ring is then dropped before the buffers.
        for slot in &self.sockets {
            if let Some(socket) = &slot.state {
                let _ = shutdown(&socket.fd, Shutdown::Both);
            }
        }
        let _ = self.buffers.unregister(&self.ring.submitter());
        // The kernel ends what is still in flight some time after the ring is closed. Memory that
        // it may read or write until then is not given back: a late log write must not find other
        // bytes in it.
        for slot in &mut self.sockets {
            std::mem::forget(slot.state.as_mut().and_then(|socket| socket.sending.take()));
            std::mem::forget(slot.state.as_mut().and_then(|socket| socket.connecting.take()));
        }
        std::mem::forget(std::mem::take(&mut self.writes));
        if self.wake_armed {
            std::mem::forget(std::mem::take(&mut self.wake_counter));
        }
    }
}
