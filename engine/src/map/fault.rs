//! Pages that cannot be read although they could be before: the kernel let go of them, and the
//! device fails when it reads them again, or somebody has shortened the file. Touching such a page
//! is a bus error, which would end the process without a word.
//!
//! Used by the map, which says where its windows are, and by a program that serves, which says what
//! is done about it. Nothing can be given to whoever reads, so the process must end. This file
//! holds unsafe code; its contract:
//!
//! * The handler reads atomics and calls the function it was given, which must not return. The
//!   signal is raised by the instruction that touches the page, which is this crate's own and holds
//!   no lock; so that function may do what any other may.
//! * A bus error of any other kind goes on as if there were no handler.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Windows whose places are known; a fault in one beyond ends the process without its offset.
const PLACES: usize = 8192;

struct Slot {
    /// 0 if it is free.
    start: AtomicUsize,
    len: AtomicUsize,
    offset: AtomicU64,
}

static SLOTS: [Slot; PLACES] = [const {
    Slot { start: AtomicUsize::new(0), len: AtomicUsize::new(0), offset: AtomicU64::new(0) }
}; PLACES];
/// Where a free slot may be.
static NEXT: AtomicUsize = AtomicUsize::new(0);
static TELL: OnceLock<fn(u64) -> !> = OnceLock::new();

/// A window that is known until this is dropped.
#[derive(Debug)]
pub(super) struct Place(Option<usize>);

impl Place {
    /// A window of `len` bytes at `start` that begins at `offset` in the file.
    pub(super) fn new(start: usize, len: usize, offset: u64) -> Self {
        for _ in 0..PLACES {
            let at = NEXT.fetch_add(1, Ordering::Relaxed) % PLACES;
            let slot = &SLOTS[at];
            if slot.start.load(Ordering::Relaxed) != 0 {
                continue;
            }
            if slot.start.compare_exchange(0, start, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                slot.offset.store(offset, Ordering::Relaxed);
                slot.len.store(len, Ordering::Release);
                return Self(Some(at));
            }
        }
        Self(None)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(at) = self.0 {
            SLOTS[at].len.store(0, Ordering::Relaxed);
            SLOTS[at].start.store(0, Ordering::Release);
        }
    }
}

/// The place in the file that is seen at an address.
fn offset_of(address: usize) -> Option<u64> {
    SLOTS.iter().find_map(|slot| {
        let len = slot.len.load(Ordering::Acquire);
        let within = address.checked_sub(slot.start.load(Ordering::Relaxed))?;
        (within < len).then(|| slot.offset.load(Ordering::Relaxed) + within as u64)
    })
}

/// From now on `tell` is called with the place in the page file, once a page that is mapped cannot
/// be read. Only the first call counts.
pub fn on_fault(tell: fn(u64) -> !) {
    if TELL.set(tell).is_err() {
        return;
    }
    // SAFETY: the structure is initialised, all zeros being a valid one, and the handler has the
    // signature that SA_SIGINFO asks for; what it does is said in this file's contract.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid structure to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    if let Some(offset) = offset_of(address)
        && let Some(tell) = TELL.get()
    {
        tell(offset);
    }
    // SAFETY: the usual end is restored; the instruction faults again, and finds it.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_while_they_are_known() {
        let far = usize::MAX / 2;
        let first = Place::new(far, 4096, 1 << 20);
        let second = Place::new(far + 4096, 8192, 5 << 20);
        assert_eq!(offset_of(far), Some(1 << 20));
        assert_eq!(offset_of(far + 4095), Some((1 << 20) + 4095));
        assert_eq!(offset_of(far + 4096 + 10), Some((5 << 20) + 10));
        assert_eq!(offset_of(far + 4096 + 8192), None);
        drop(first);
        assert_eq!((offset_of(far), offset_of(far + 4096)), (None, Some(5 << 20)));
        drop(second);
        assert_eq!(offset_of(far + 4096), None);
    }
}
