//! The few system calls that neither the standard library nor a driver covers: signals, affinity
//! and priority, names of addresses. Each unsafe block states why it is sound; nothing here keeps
//! state.

use std::ffi::CStr;
use std::net::{IpAddr, SocketAddr};

use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, Rlimit, Signal, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

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

/// Seconds by which the local time is ahead of UTC at a moment, in seconds since 1970.
pub fn utc_offset_s(utc_s: i64) -> i64 {
    // SAFETY: both structs outlive the call, which fills the second; localtime_r reads the
    // environment, which nothing here changes.
    unsafe {
        let mut local: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&raw const utc_s, &raw mut local).is_null() {
            return 0;
        }
        local.tm_gmtoff
    }
}

/// Ends the process with this status, and does nothing else.
pub fn end_at_once(status: i32) -> ! {
    // SAFETY: it touches nothing of ours.
    unsafe { libc::_exit(status) }
}

/// Ends a [`wait_for_stop`] of this process at once, or the next one.
pub fn wake_waiter() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::URG);
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

/// Keeps every page of this process in memory, those of the future from their first use on.
///
/// # Errors
/// The process may not lock as much as it may come to use: a mapping would fail later, when nobody
/// can do anything about it.
pub fn lock_memory() -> Result<(), String> {
    let limit = getrlimit(Resource::Memlock);
    // Raising the soft limit to the hard one is always allowed.
    let raised = Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(Resource::Memlock, raised).map_err(|error| error.to_string())?;
    if let Some(bytes) = limit.maximum
        && !rustix::process::geteuid().is_root()
    {
        return Err(format!("RLIMIT_MEMLOCK is {bytes} bytes and must be unlimited"));
    }
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    rustix::mm::mlockall(all).map_err(|error| error.to_string())
}

/// How many descriptors this process may have open at most.
pub fn descriptors_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX))
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

/// Ties the calling thread to the `index`-th core (modulo) of its affinity mask. Best effort.
pub fn pin_to(index: usize) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let Some(core) = cores.get(index % cores.len().max(1)) else { return };
    let mut one = CpuSet::new();
    one.set(*core);
    let _ = sched_setaffinity(None, &one);
}

/// The calling thread, all that it starts, and the kernel's workers for them ask for a core often
/// and briefly: one that wakes up then does not wait for the end of another's turn of milliseconds,
/// nor does whoever else wakes up, such as the kernel's worker that ends a write (Linux 6.12:
/// custom slices, sched(7)). The share of the core stays the same. Best effort.
pub fn take_short_turns() {
    /// The shortest that the kernel takes.
    const SLICE_NS: u64 = 100_000;
    // On Linux it is the calling thread's.
    let nice = rustix::process::getpriority_process(None).unwrap_or(0);
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
