//! The portable driver: epoll for sockets, `pwritev2` with RWF_DSYNC on a thread of its own for the
//! log. Chosen where io_uring is missing or forbidden, as in most containers.
//!
//! Created and used on one thread. It must never block on a socket or on the disk, and never
//! reports a log write as done unless the kernel returned from the durable write.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use etcore_engine::file::AlignedBuf;
use rustix::event::epoll::CreateFlags;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use super::reserve::{self, Reserve};
use super::{
    AnyListener, AnySocket, Completions, Driver, LogFile, PeerAddress, Sent, SocketId, Waker,
    WriteToken, connect,
};
use crate::limits;

/// See the module text.
pub struct Portable {
    epoll: OwnedFd,
    sockets: Vec<Slot>,
    free_sockets: Vec<u32>,
    listeners: HashMap<u32, Arc<OwnedFd>>,
    reserve: Reserve,
    waker: Waker,
    log: LogThread,
    events: Vec<libc::epoll_event>,
    read_buf: Vec<u8>,
    /// Sends that `close` gave up; reported by the next `wait`.
    ended: Vec<(SocketId, Vec<u8>, io::Result<()>)>,
    /// Sockets that epoll refused to watch again; reported by the next `wait`.
    lost: Vec<(SocketId, io::Error)>,
    /// Sockets that were connected at once; reported by the next `wait`.
    connected: Vec<SocketId>,
    /// Full reads that this wait may still make.
    bulk_left: usize,
    /// Sockets, each once, that this is too late for; first in the next wait.
    late: Vec<SocketId>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    state: Option<Socket>,
}

struct Socket {
    stream: File,
    sending: Option<Vec<u8>>,
    sent: usize,
    /// It is being connected.
    connecting: bool,
    /// Its last read filled the buffer.
    bulky: bool,
    /// It is among those that are late.
    late: bool,
    paused: bool,
    disconnected: bool,
    closing: bool,
    /// What epoll watches; 0: not registered there, since epoll reports a hang-up to whoever is.
    interest: u32,
}

struct LogJob {
    token: WriteToken,
    file: Arc<File>,
    offset_bytes: u64,
    buf: AlignedBuf,
}

struct LogThread {
    jobs: Option<Sender<LogJob>>,
    done: Receiver<(WriteToken, AlignedBuf, io::Result<()>)>,
    thread: Option<std::thread::JoinHandle<()>>,
}

const WAKE: u64 = 1 << 56;
const LISTENER: u64 = 2 << 56;
const SOCKET: u64 = 3 << 56;
const KIND: u64 = 0xff << 56;

impl Portable {
    /// Sets up epoll and the log thread.
    ///
    /// # Errors
    /// When descriptors or threads cannot be had.
    pub fn new(waker: Waker) -> io::Result<Self> {
        let epoll = rustix::event::epoll::create(CreateFlags::CLOEXEC)?;
        let driver = Self {
            epoll,
            sockets: Vec::new(),
            free_sockets: Vec::new(),
            listeners: HashMap::new(),
            reserve: Reserve::new()?,
            log: LogThread::spawn(waker.clone())?,
            waker,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; limits::EPOLL_EVENTS],
            read_buf: vec![0; limits::RECEIVE_BUFFER_BYTES],
            ended: Vec::new(),
            lost: Vec::new(),
            connected: Vec::new(),
            bulk_left: 0,
            late: Vec::new(),
        };
        driver.control(libc::EPOLL_CTL_ADD, driver.waker.fd(), libc::EPOLLIN as u32, WAKE)?;
        Ok(driver)
    }

    fn control(&self, op: i32, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: `event` outlives the call and both descriptors are open.
        let result = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), op, fd, &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn socket(&mut self, id: SocketId) -> Option<&mut Socket> {
        let slot = self.sockets.get_mut(id.slot as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.state.as_mut()
    }

    /// Tells epoll what this socket waits for, if that has changed.
    fn update_interest(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        let mut wanted = 0;
        if !socket.paused && !socket.disconnected && !socket.closing {
            wanted |= libc::EPOLLIN as u32;
        }
        if socket.sending.is_some() {
            wanted |= libc::EPOLLOUT as u32;
        }
        if socket.connecting && !socket.closing {
            wanted = libc::EPOLLOUT as u32;
        }
        let op = match (socket.interest, wanted) {
            (before, now) if before == now => return,
            // Out of the set, or a peer that hung up would end every wait at once.
            (_, 0) => libc::EPOLL_CTL_DEL,
            (0, _) => libc::EPOLL_CTL_ADD,
            _ => libc::EPOLL_CTL_MOD,
        };
        socket.interest = wanted;
        let fd = socket.stream.as_raw_fd();
        if let Err(error) = self.control(op, fd, wanted, socket_data(id)) {
            // Only an exhausted limit of watches: nothing would ever be heard of this socket again.
            self.lost.push((id, error));
        }
    }

    /// Writes what the kernel takes; says how the send ended once it has.
    fn advance_send(&mut self, id: SocketId) -> Option<Sent> {
        let socket = self.socket(id)?;
        let mut buf = socket.sending.take()?;
        while socket.sent < buf.len() {
            match socket.stream.write(&buf[socket.sent..]) {
                Ok(count) => socket.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket.sending = Some(buf);
                    return None;
                }
                Err(error) => {
                    buf.clear();
                    return Some((buf, Err(error)));
                }
            }
        }
        buf.clear();
        Some((buf, Ok(())))
    }

    fn reap(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        if !socket.closing || socket.sending.is_some() {
            return;
        }
        let slot = &mut self.sockets[id.slot as usize];
        slot.state = None;
        slot.generation = (slot.generation + 1) & 0xff_ffff;
        self.free_sockets.push(id.slot);
    }

    fn accept(&mut self, listener: u32, completions: &mut dyn Completions) {
        let Some(socket) = self.listeners.get(&listener) else { return };
        match reserve::accept(socket.as_fd()) {
            Ok(accepted) => completions.accepted(listener, accepted.into()),
            Err(error) => self.reserve.on_accept_error(socket.as_fd(), &error),
        }
    }

    fn readable(&mut self, id: SocketId, completions: &mut dyn Completions) {
        if self.is_late(id) {
            return;
        }
        let mut buf = std::mem::take(&mut self.read_buf);
        if let Some(socket) = self.socket(id)
            && !socket.closing
            && !socket.disconnected
            && !socket.paused
        {
            match socket.stream.read(&mut buf) {
                Ok(0) => {
                    socket.disconnected = true;
                    completions.disconnected(id, None);
                }
                Ok(count) => {
                    let is_bulky = count == buf.len();
                    socket.bulky = is_bulky;
                    self.bulk_left = self.bulk_left.saturating_sub(usize::from(is_bulky));
                    completions.received(id, &buf[..count]);
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    socket.disconnected = true;
                    completions.disconnected(id, Some(error));
                }
            }
        }
        self.read_buf = buf;
        self.update_interest(id);
    }

    /// True, and remembered, if it will fill the buffer and this wait has handed over enough.
    fn is_late(&mut self, id: SocketId) -> bool {
        if self.bulk_left > 0 {
            return false;
        }
        let Some(socket) = self.socket(id).filter(|socket| socket.bulky) else { return false };
        if !std::mem::replace(&mut socket.late, true) {
            self.late.push(id);
        }
        true
    }

    fn ready(&mut self, event: libc::epoll_event, completions: &mut dyn Completions) {
        let data = event.u64;
        let flags = event.events;
        match data & KIND {
            WAKE => self.waker.drain(),
            LISTENER => self.accept(data as u32, completions),
            _ => {
                let id = SocketId {
                    slot: data as u32,
                    generation: u32::try_from((data & !KIND) >> 32).unwrap_or(u32::MAX),
                };
                let failed = flags & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0;
                if self.socket(id).is_some_and(|socket| socket.connecting) {
                    return self.end_connect(id, completions);
                }
                if (flags & libc::EPOLLOUT as u32 != 0 || failed)
                    && let Some((buf, result)) = self.advance_send(id)
                {
                    completions.sent(id, buf, result);
                    self.reap(id);
                }
                if flags & libc::EPOLLIN as u32 != 0 || failed {
                    self.readable(id, completions);
                }
                self.update_interest(id);
            }
        }
    }

    /// A socket that was being connected is ready: it is connected, or it has failed.
    fn end_connect(&mut self, id: SocketId, completions: &mut dyn Completions) {
        let Some(socket) = self.socket(id) else { return };
        let result = match socket2::SockRef::from(&socket.stream).take_error() {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        socket.connecting = false;
        socket.disconnected = result.is_err();
        if !socket.closing {
            completions.connected(id, result);
        }
        self.update_interest(id);
    }

    /// Puts a socket into the table and has epoll watch it.
    fn insert(&mut self, socket: OwnedFd, connecting: bool) -> io::Result<SocketId> {
        let slot = self.free_sockets.pop().unwrap_or_else(|| {
            self.sockets.push(Slot::default());
            self.sockets.len() as u32 - 1
        });
        let id = SocketId { slot, generation: self.sockets[slot as usize].generation };
        let interest = if connecting { libc::EPOLLOUT } else { libc::EPOLLIN } as u32;
        let fd = socket.as_raw_fd();
        if let Err(error) = self.control(libc::EPOLL_CTL_ADD, fd, interest, socket_data(id)) {
            self.free_sockets.push(slot);
            return Err(error);
        }
        self.sockets[slot as usize].state = Some(Socket {
            stream: File::from(socket),
            sending: None,
            sent: 0,
            connecting,
            bulky: false,
            late: false,
            paused: false,
            disconnected: false,
            closing: false,
            interest,
        });
        Ok(id)
    }

    fn epoll_wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let timespec = timeout.map(|timeout| libc::timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let timeout_ptr = timespec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the event buffer and the timespec outlive the call; the count is its length.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                limits::EPOLL_EVENTS as i32,
                timeout_ptr,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        if count >= 0 {
            return Ok(usize::try_from(count).unwrap_or(0));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => Ok(0),
            // Before Linux 5.11, or a seccomp profile that does not know it: milliseconds, rounded
            // up.
            Some(libc::ENOSYS | libc::EPERM) => self.epoll_wait_ms(timeout),
            _ => Err(error),
        }
    }

    fn epoll_wait_ms(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout_ms = timeout.map_or(-1, |timeout| {
            i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        // SAFETY: as above.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                limits::EPOLL_EVENTS as i32,
                timeout_ms,
            )
        };
        if count >= 0 {
            return Ok(usize::try_from(count).unwrap_or(0));
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(error) }
    }

    fn report_ended(&mut self, completions: &mut dyn Completions) {
        for id in std::mem::take(&mut self.connected) {
            if self.socket(id).is_some_and(|socket| !socket.closing) {
                completions.connected(id, Ok(()));
            }
        }
        for (id, error) in std::mem::take(&mut self.lost) {
            if let Some(socket) = self.socket(id)
                && !socket.disconnected
                && !socket.closing
            {
                socket.disconnected = true;
                completions.disconnected(id, Some(error));
            }
        }
        for (id, buf, result) in std::mem::take(&mut self.ended) {
            completions.sent(id, buf, result);
            self.reap(id);
        }
    }
}

fn socket_data(id: SocketId) -> u64 {
    SOCKET | u64::from(id.generation & 0xff_ffff) << 32 | u64::from(id.slot)
}

impl Driver for Portable {
    fn name(&self) -> &'static str {
        "portable"
    }

    fn listen(&mut self, listener: u32, socket: AnyListener) -> io::Result<()> {
        let socket = socket.into_kernel();
        self.control(
            libc::EPOLL_CTL_ADD,
            socket.as_raw_fd(),
            libc::EPOLLIN as u32,
            LISTENER | u64::from(listener),
        )?;
        self.listeners.insert(listener, socket);
        Ok(())
    }

    fn unlisten(&mut self, listener: u32) {
        if let Some(socket) = self.listeners.remove(&listener) {
            let _ = self.control(libc::EPOLL_CTL_DEL, socket.as_raw_fd(), 0, 0);
        }
    }

    fn attach(&mut self, socket: AnySocket) -> io::Result<SocketId> {
        let socket = socket.into_kernel();
        let flags = fcntl_getfl(&socket)?;
        fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
        self.insert(socket, false)
    }

    fn connect(&mut self, address: &PeerAddress) -> io::Result<SocketId> {
        let (socket, name) = connect::open(address)?;
        socket.set_nonblocking(true)?;
        let connecting = match socket.connect(&name) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => true,
            Err(error) => return Err(error),
        };
        let id = self.insert(socket.into(), connecting)?;
        if !connecting {
            self.connected.push(id);
        }
        Ok(id)
    }

    fn pause(&mut self, id: SocketId) {
        if let Some(socket) = self.socket(id) {
            socket.paused = true;
            self.update_interest(id);
        }
    }

    fn resume(&mut self, id: SocketId) {
        if let Some(socket) = self.socket(id) {
            socket.paused = false;
            self.update_interest(id);
        }
    }

    fn send(&mut self, id: SocketId, buf: Vec<u8>) -> Option<Sent> {
        let socket = self.socket(id)?;
        assert!(socket.sending.is_none(), "one send at a time per socket");
        socket.sending = Some(buf);
        socket.sent = 0;
        let ended = self.advance_send(id);
        if ended.is_none() {
            self.update_interest(id);
        }
        ended
    }

    fn close(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id) else { return };
        if std::mem::replace(&mut socket.closing, true) {
            return;
        }
        let given_up = socket.sending.take();
        let has_ended = given_up.is_none();
        if let Some(mut buf) = given_up {
            buf.clear();
            self.ended.push((id, buf, Err(io::ErrorKind::ConnectionAborted.into())));
        }
        self.update_interest(id);
        // A send that was given up is still to be reported; `report_ended` reaps then.
        if has_ended {
            self.reap(id);
        }
    }

    fn write_durable(
        &mut self,
        token: WriteToken,
        file: LogFile,
        offset_bytes: u64,
        buf: AlignedBuf,
    ) {
        let file = file.into_kernel();
        let jobs = self.log.jobs.as_ref().expect("taken only by drop");
        let job = LogJob { token, file, offset_bytes, buf };
        assert!(jobs.try_send(job).is_ok(), "more than {} log writes", limits::LOG_WRITES);
    }

    fn wait(
        &mut self,
        timeout: Option<Duration>,
        completions: &mut dyn Completions,
    ) -> io::Result<()> {
        // The log thread wakes only a sleeper, so what it finished before that is looked for here.
        let idle = self.ended.is_empty()
            && self.lost.is_empty()
            && self.connected.is_empty()
            && self.late.is_empty()
            && self.log.done.is_empty();
        let timeout = if idle { timeout } else { Some(Duration::ZERO) };
        self.report_ended(completions);
        self.bulk_left = limits::BULK_RECEIVES;
        for id in std::mem::take(&mut self.late) {
            if let Some(socket) = self.socket(id) {
                socket.late = false;
                self.readable(id, completions);
            }
        }
        let count = self.epoll_wait(timeout)?;
        for index in 0..count {
            let event = self.events[index];
            self.ready(event, completions);
        }
        while let Ok((token, buf, result)) = self.log.done.try_recv() {
            completions.written(token, buf, result);
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl LogThread {
    fn spawn(waker: Waker) -> io::Result<Self> {
        let (jobs, inbox) = bounded::<LogJob>(limits::LOG_WRITES);
        let (outbox, done) = bounded(limits::LOG_WRITES);
        let thread = std::thread::Builder::new().name("etcore-log".into()).spawn(move || {
            for job in inbox {
                let result = write_durable(&job.file, job.offset_bytes, &job.buf);
                if outbox.send((job.token, job.buf, result)).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Self { jobs: Some(jobs), done, thread: Some(thread) })
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One `pwritev2(RWF_DSYNC)`; falls back to write + fdatasync where the kernel lacks the flag.
fn write_durable(file: &File, offset_bytes: u64, buf: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < buf.len() {
        let rest = &buf[written..];
        let offset = offset_bytes + written as u64;
        match pwritev2(file, &[IoSlice::new(rest)], offset, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                file.write_all_at(rest, offset)?;
                return file.sync_data();
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
