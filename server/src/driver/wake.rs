//! Waking a shard from another thread through an eventfd.
//!
//! A shard announces that it is about to sleep; a producer writes the eventfd only then, so a busy
//! shard costs its producers one atomic read. Neither side ever blocks here.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};

/// A cloneable handle that ends a shard's wait.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

struct Shared {
    event: Event,
    asleep: AtomicBool,
}

/// What a sleeping shard waits for.
enum Event {
    /// An eventfd.
    Kernel(File),
    /// A flag that the simulator looks at.
    Simulated(AtomicBool),
}

impl Waker {
    /// Makes an eventfd.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self::with(Event::Kernel(event.into())))
    }

    /// A waker whose shard is run by the simulator.
    pub fn simulated() -> Self {
        Self::with(Event::Simulated(AtomicBool::new(false)))
    }

    fn with(event: Event) -> Self {
        Self { shared: Arc::new(Shared { event, asleep: AtomicBool::new(false) }) }
    }

    /// True if the sleeping shard of the simulator was woken since the last call.
    pub fn take_woken(&self) -> bool {
        match &self.shared.event {
            Event::Kernel(_) => false,
            Event::Simulated(woken) => woken.swap(false, Ordering::Relaxed),
        }
    }

    /// The descriptor to watch for readability; -1 for a simulated one.
    pub fn fd(&self) -> RawFd {
        match &self.shared.event {
            Event::Kernel(event) => event.as_raw_fd(),
            Event::Simulated(_) => -1,
        }
    }

    /// Called by a producer after it has put something into a ring.
    pub fn wake(&self) {
        // Orders the producer's push before the look at `asleep`; pairs with `announce_sleep`.
        fence(Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::Relaxed)
            && self.shared.asleep.swap(false, Ordering::AcqRel)
        {
            match &self.shared.event {
                // A full counter means that a wake-up is pending anyway.
                Event::Kernel(event) => drop((&*event).write(&1u64.to_ne_bytes())),
                Event::Simulated(woken) => woken.store(true, Ordering::Relaxed),
            }
        }
    }

    /// Called by the shard before it looks at its rings a last time and sleeps.
    pub fn announce_sleep(&self) {
        self.shared.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Called by the shard when it is awake again.
    pub fn announce_awake(&self) {
        self.shared.asleep.store(false, Ordering::Relaxed);
    }

    /// Empties the eventfd.
    pub fn drain(&self) {
        let mut counter = [0u8; 8];
        // Nothing to read means that somebody drained it already.
        if let Event::Kernel(event) = &self.shared.event {
            drop((&*event).read(&mut counter));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sleeping_shard_costs_a_system_call() {
        let waker = Waker::new().unwrap();
        waker.wake();
        let Event::Kernel(event) = &waker.shared.event else { panic!("made by `new`") };
        let mut counter = [0u8; 8];
        assert!((&*event).read(&mut counter).is_err(), "nobody slept");
        waker.announce_sleep();
        waker.wake();
        waker.wake();
        assert_eq!((&*event).read(&mut counter).unwrap(), 8);
        assert_eq!(u64::from_ne_bytes(counter), 1, "one write for two wakes");
    }
}
