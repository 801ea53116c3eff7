//! The member's threads: started last, joined first.
//!
//! Called by boot. A shard's driver is made on the shard's own thread, as io_uring wants. A thread
//! that fails stops the member; nothing is restarted.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::background::hasher::HasherThread;
use crate::channel::Shared;
use crate::disk::pool::PoolThreads;
use crate::driver::Waker;
use crate::driver::probe::DriverKind;
use crate::front::Front;
use crate::peers::Peers;
use crate::replica::Replica;

/// What runs where.
pub(super) struct Plan {
    pub(super) driver: DriverKind,
    pub(super) fronts: Vec<(Front, Waker)>,
    pub(super) replica: (Replica, Peers, Waker),
    pub(super) shares_thread: bool,
    /// One core a shard.
    pub(super) pin: bool,
}

/// Threads beside the shards.
pub(super) struct Helpers {
    pub(super) pool: PoolThreads,
    pub(super) hasher: HasherThread,
}

/// A running member.
pub struct Running {
    shared: Arc<Shared>,
    shards: Vec<JoinHandle<()>>,
    helpers: Helpers,
    lock: File,
}

impl Running {
    /// What all shards see.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// True while every shard runs.
    pub fn is_running(&self) -> bool {
        !self.shards.iter().any(JoinHandle::is_finished)
    }

    /// Asks the member to stop and waits until it has; the error is why it could not go on.
    ///
    /// # Errors
    /// The reason of the first failure, if there was one.
    pub fn stop(self) -> Result<(), String> {
        self.hand_over();
        self.shared.stop();
        for shard in self.shards {
            // A shard that panicked has aborted the process already.
            let _ = shard.join();
        }
        self.helpers.pool.join();
        self.helpers.hasher.join();
        drop(self.lock);
        self.shared.lifecycle.failure().map_or(Ok(()), |reason| Err(reason.to_owned()))
    }
}

impl Running {
    /// Certificates and keys whose files have changed are used from now on.
    pub fn follow_files(&self) {
        self.shared.tls.follow_files();
    }

    /// Lets the replica give its leadership away, so that clients find a leader when this member
    /// no longer serves them. Not for longer than two elections take.
    fn hand_over(&self) {
        const STEP: Duration = Duration::from_millis(1);
        if self.shared.lifecycle.is_stopping() {
            return;
        }
        self.shared.hand_over();
        let steps = 2 * self.shared.config.election.as_millis();
        for _ in 0..steps {
            if self.shared.lifecycle.has_handed_over() || !self.is_running() {
                return;
            }
            std::thread::sleep(STEP);
        }
    }
}

pub(super) fn start(
    shared: Arc<Shared>,
    plan: Plan,
    helpers: Helpers,
    lock: File,
) -> io::Result<Running> {
    let Plan { driver, fronts, replica, shares_thread, pin } = plan;
    let (replica, peers, replica_waker) = replica;
    let mut replica = Some((replica, peers));
    let mut shards = Vec::new();
    let mut core = 0;
    let mut spawn = |name: String, front, replica, waker: Waker| -> io::Result<()> {
        let (shared, own_core) = (shared.clone(), core);
        core += 1;
        shards.push(std::thread::Builder::new().name(name).spawn(move || {
            if pin {
                pin_to(own_core);
            }
            let outcome = super::assemble::shard(&shared, driver, &waker, front, replica)
                .and_then(|mut shard| shard.run());
            if let Err(error) = outcome {
                shared.fail(format!("driver: {error}"));
            }
        })?);
        Ok(())
    };
    if !shares_thread {
        spawn("etcore-replica".into(), None, replica.take(), replica_waker)?;
    }
    for (index, (front, waker)) in fronts.into_iter().enumerate() {
        let with_replica = if index == 0 { replica.take() } else { None };
        spawn(format!("etcore-front-{index}"), Some(front), with_replica, waker)?;
    }
    Ok(Running { shared, shards, helpers, lock })
}

/// Cores this process may use: its affinity, and no more than the control group's quota.
pub(super) fn cores() -> usize {
    // The standard library looks at both.
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// Ties the calling thread to the `index`-th core of its affinity mask. Best effort: a container
/// may forbid it.
fn pin_to(index: usize) {
    crate::sys::pin_to(index);
}
