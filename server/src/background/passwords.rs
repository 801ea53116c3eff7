//! Passwords on threads of their own, which give way to the shards: a login costs some hundredth of
//! a second by design, and a flood of them must cost nobody else much.
//!
//! Fronts hand over jobs and find the outcomes in a queue of theirs. A front may have so many on
//! their way ([`limits::PASSWORDS`]) that its queue always has room. The simulator has them done at
//! once. Neither passwords nor hashes may be logged.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use etcore_proto::error::Status;
use etcore_proto::splitmix::SplitMix64;

use crate::auth::passwords::{self, Salt};
use crate::channel::Slot;
use crate::clock::Clock;
use crate::disk::pool::{Pool, PoolThreads, Size};
use crate::driver::Waker;
use crate::limits;
use crate::sys;

/// What is to be done with a password.
pub enum Task {
    /// Hash it.
    Hash {
        /// The password.
        password: Bytes,
        /// bcrypt's cost.
        cost: u32,
        /// Random.
        salt: Salt,
    },
    /// Compare it.
    Compare {
        /// The password.
        password: Bytes,
        /// A user's hash.
        hash: Bytes,
    },
}

/// What came of it.
pub enum Outcome {
    /// The hash, as an entry carries it.
    Hashed(Result<String, Status>),
    /// Whether it is right.
    Compared(bool),
}

fn work(task: Task) -> Outcome {
    match task {
        Task::Hash { password, cost, salt } => {
            Outcome::Hashed(passwords::hash(&password, cost, salt))
        }
        Task::Compare { password, hash } => {
            Outcome::Compared(passwords::is_right(&password, &hash))
        }
    }
}

/// A handle to the threads.
#[derive(Clone)]
pub struct Passwords {
    /// `None` does everything at once.
    pool: Option<Pool>,
}

impl Passwords {
    /// On threads of their own, for a machine of so many cores and a member of so many fronts.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(cores: usize, fronts: usize, all: &mut PoolThreads) -> io::Result<Self> {
        let threads = cores.clamp(1, limits::PASSWORD_THREADS);
        let size = Size { threads, jobs: fronts * limits::PASSWORDS };
        Ok(Self { pool: Some(Pool::start("etcore-passwords", size, all)?) })
    }

    /// Without threads, and with random numbers that a seed repeats: for tests and the simulator.
    pub fn at_once() -> Self {
        Self { pool: None }
    }

    /// The use of one front. `seed` counts where there are no threads.
    pub fn of_front(self, clock: Clock, waker: Waker, seed: u64) -> FrontPasswords {
        FrontPasswords {
            pool: self.pool,
            outcomes: Arc::new(ArrayQueue::new(limits::PASSWORDS)),
            under_way: 0,
            clock,
            waker,
            repeatable: SplitMix64::new(seed),
        }
    }
}

/// A front's way to the threads and back. Invariant: `under_way` counts what is there or in
/// `outcomes`, which has room for all of it.
pub struct FrontPasswords {
    pool: Option<Pool>,
    outcomes: Arc<ArrayQueue<(Slot, Outcome)>>,
    under_way: usize,
    clock: Clock,
    waker: Waker,
    repeatable: SplitMix64,
}

/// Too many are on their way.
#[derive(Debug)]
pub struct Full;

impl FrontPasswords {
    /// Has a task done; the outcome comes under this slot. Once its caller waits no more, on the
    /// shards' clock, nothing is done: others wait behind it.
    ///
    /// # Errors
    /// [`Full`].
    pub fn start(&mut self, slot: Slot, task: Task, deadline_ms: u64) -> Result<(), Full> {
        if self.under_way >= limits::PASSWORDS {
            return Err(Full);
        }
        let (outcomes, waker) = (self.outcomes.clone(), self.waker.clone());
        let clock = self.clock.clone();
        let job = move || {
            let is_late = clock.elapsed() > Duration::from_millis(deadline_ms);
            let outcome = if is_late { Outcome::Compared(false) } else { work(task) };
            // There is room: see the invariant.
            let _ = outcomes.push((slot, outcome));
            waker.wake();
        };
        match &self.pool {
            None => job(),
            Some(pool) => {
                let yielding = move || {
                    sys::yield_to_shards();
                    job();
                };
                pool.run(Box::new(yielding)).map_err(|_| Full)?;
            }
        }
        self.under_way += 1;
        Ok(())
    }

    /// The next outcome.
    pub fn take(&mut self) -> Option<(Slot, Outcome)> {
        let outcome = self.outcomes.pop()?;
        self.under_way -= 1;
        Some(outcome)
    }

    /// True if there are outcomes.
    pub fn has_outcomes(&self) -> bool {
        !self.outcomes.is_empty()
    }

    /// Fills in bytes that nobody can guess.
    pub fn draw(&mut self, bytes: &mut [u8]) {
        if self.pool.is_none() {
            return bytes.fill_with(|| (self.repeatable.draw() >> 56) as u8);
        }
        // It fails on no system that the member starts on: its keys for TLS come from there too.
        let drawn = aws_lc_rs::rand::fill(bytes);
        assert!(drawn.is_ok(), "the system has random numbers");
    }
}
