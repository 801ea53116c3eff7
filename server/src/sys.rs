//! The few system calls that neither the standard library nor a driver covers: signals, affinity
//! and priority, names of addresses. Each unsafe block states why it is sound; nothing here keeps
//! state.

use std::ffi::CStr;
use std::net::{IpAddr, SocketAddr};

/// Ends [`wait_for_stop`] from within: a signal that means nothing to a process that does not wait
/// for it.
const WAKE: libc::c_int = libc::SIGURG;

/// Blocks SIGTERM, SIGINT and the signal of [`wake_waiter`] in this thread and all it starts, so
/// that [`wait_for_stop`] gets them, and ignores SIGPIPE.
pub fn block_stop_signals() {
    // SAFETY: the set is initialised by sigemptyset before use and outlives the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigaddset(&raw mut set, WAKE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Ends the process with this status, and does nothing else.
pub fn end_at_once(status: i32) -> ! {
    // SAFETY: it touches nothing of ours.
    unsafe { libc::_exit(status) }
}

/// Ends a [`wait_for_stop`] of this process at once, or the next one.
pub fn wake_waiter() {
    // SAFETY: a signal that is ignored by default, to the process itself.
    unsafe { libc::kill(libc::getpid(), WAKE) };
}

/// Waits up to a second for SIGTERM or SIGINT, or for [`wake_waiter`]; the name of the signal, if
/// one of the first two came.
pub fn wait_for_stop() -> Option<&'static str> {
    // SAFETY: the set and the timeout are initialised and outlive the call; no siginfo is asked
    // for.
    let signal = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigaddset(&raw mut set, WAKE);
        let timeout = libc::timespec { tv_sec: 1, tv_nsec: 0 };
        libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const timeout)
    };
    match signal {
        libc::SIGTERM => Some("terminated"),
        libc::SIGINT => Some("interrupt"),
        _ => None,
    }
}

/// Hands memory that was freed back to the system. Takes the allocator's locks for milliseconds:
/// only for moments without load.
pub fn trim_memory() {
    // SAFETY: malloc_trim may be called at any time from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// How many descriptors this process may have open at most.
pub fn descriptors_max() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit fills the struct it is given, which outlives the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { 1024 }
}

/// The name that belongs to an address, by the system's resolver, which may take seconds; `None` if
/// it has none.
pub fn name_of(address: IpAddr) -> Option<String> {
    let address = socket2::SockAddr::from(SocketAddr::new(address, 0));
    // As long as names may be, with room to spare (NI_MAXHOST).
    let mut name = [0u8; 1025];
    // SAFETY: the address outlives the call and its length is its own; the name's room is as long
    // as said, and nothing is written for the service, which has none.
    let result = unsafe {
        libc::getnameinfo(
            address.as_ptr().cast(),
            address.len(),
            name.as_mut_ptr().cast(),
            name.len() as libc::socklen_t,
            std::ptr::null_mut(),
            0,
            libc::NI_NAMEREQD,
        )
    };
    let text = CStr::from_bytes_until_nul(&name).ok().filter(|_| result == 0)?;
    text.to_str().ok().map(str::to_owned)
}

/// Ties the calling thread to the `index`-th core (modulo) of its affinity mask.
pub fn pin_to(index: usize) {
    // SAFETY: both sets are plain bit arrays of the size given to the calls and outlive them.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed) != 0 {
            return;
        }
        let cores: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
            .filter(|core| libc::CPU_ISSET(*core, &allowed))
            .collect();
        let Some(core) = cores.get(index % cores.len().max(1)) else { return };
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(*core, &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one);
    }
}

/// The calling thread, all that it starts, and the kernel's workers for them ask for a core often
/// and briefly: one that wakes up then does not wait for the end of another's turn of milliseconds,
/// nor does whoever else wakes up, such as the kernel's worker that ends a write (Linux 6.12:
/// custom slices, sched(7)). The share of the core stays the same. Best effort.
pub fn take_short_turns() {
    /// The shortest that the kernel takes.
    const SLICE_NS: u64 = 100_000;
    // SAFETY: plain numbers; on Linux 0 names the calling thread.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    set_schedule(nice, SLICE_NS);
}

/// The calling thread gives way to the shards, and to whoever else wakes up, where both want the
/// same core. Best effort.
pub fn yield_to_shards() {
    /// A tenth of a shard's weight: enough to finish a checkpoint on a busy machine.
    const NICE: libc::c_int = 10;
    /// The longest that the kernel takes: what asks for less interrupts it at once.
    const SLICE_NS: u64 = 100_000_000;
    set_schedule(NICE, SLICE_NS);
}

fn set_schedule(nice: libc::c_int, slice_ns: u64) {
    // SAFETY: plain numbers; the struct is initialised and outlives the call, which on Linux takes
    // 0 as the calling thread.
    unsafe {
        let mut attr: libc::sched_attr = std::mem::zeroed();
        attr.size = size_of::<libc::sched_attr>() as u32;
        attr.sched_policy = libc::SCHED_OTHER as u32;
        attr.sched_nice = nice;
        attr.sched_runtime = slice_ns;
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0);
    }
}
