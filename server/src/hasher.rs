//! The thread that hashes: HashKV and Hash requests, and the hash of every compaction.
//!
//! Fronts and the replica hand it jobs; it reads the newest view in short steps, with a revision
//! pinned, so that neither requests nor compaction wait for it, and leaves the outcome in the
//! asking front's queue. It must never keep a view between two steps.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use crossbeam_queue::ArrayQueue;
use etcore_engine::hash::{HashKind, KvHash, KvHasher};
use etcore_engine::page::Fetch;
use etcore_engine::pins::{RevisionPin, RevisionPins};
use etcore_engine::read::BlockingPages;
use etcore_engine::types::Revision;
use etcore_proto::error::{EtcdError, Status};

use crate::driver::Waker;
use crate::limits;
use crate::replica::Slot;
use crate::shared::Shared;

/// A hash and the revision that was current when it was asked for.
pub type Outcome = Result<(KvHash, i64), Status>;

/// Where a front finds what it asked for.
pub type Answers = Arc<ArrayQueue<(Slot, Outcome)>>;

/// Who waits for a hash.
pub struct ReplyTo {
    /// In the front.
    pub slot: Slot,
    /// The front's queue.
    pub answers: Answers,
    /// The front's.
    pub waker: Waker,
}

/// Something to hash.
pub enum Job {
    /// HashKV.
    ByRevision {
        /// As asked: 0 is the newest.
        revision: i64,
        /// Who waits.
        reply: ReplyTo,
    },
    /// Hash.
    Everything {
        /// Who waits.
        reply: ReplyTo,
    },
    /// The hash that HashKV answers for a compaction's revision from now on.
    Compaction(Box<KvHasher>),
}

/// A handle to the thread.
#[derive(Clone)]
pub struct Hasher {
    jobs: Sender<Job>,
}

/// Joins the thread when all handles are gone.
pub struct HasherThread {
    thread: JoinHandle<()>,
}

impl Hasher {
    /// Starts the thread.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        shared: Arc<Shared>,
        page_file: Arc<File>,
        pins: RevisionPins,
    ) -> io::Result<(Self, HasherThread)> {
        let (jobs, inbox) = bounded(limits::HASH_JOBS);
        let worker =
            Worker { shared, pins, pages: BlockingPages::new(page_file), compactions: Vec::new() };
        let thread = std::thread::Builder::new()
            .name("etcore-hasher".into())
            .spawn(move || worker.run(&inbox))?;
        Ok((Self { jobs }, HasherThread { thread }))
    }

    /// Queues a job.
    ///
    /// # Errors
    /// The job, if too many wait.
    pub fn submit(&self, job: Job) -> Result<(), Job> {
        self.jobs.try_send(job).map_err(crossbeam_channel::TrySendError::into_inner)
    }
}

impl HasherThread {
    /// Waits until the last handle is dropped; what is under way ends early.
    pub fn join(self) {
        // A panic has aborted the process already.
        let _ = self.thread.join();
    }
}

struct Worker {
    shared: Arc<Shared>,
    pins: RevisionPins,
    pages: BlockingPages,
    /// Of the last compactions, ascending by revision (etcd: hashStorage).
    compactions: Vec<KvHash>,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<Job>) {
        for job in inbox {
            match job {
                Job::Compaction(hasher) => {
                    if let Ok(Some(hash)) = self.compute(*hasher) {
                        self.remember(hash);
                    }
                }
                Job::ByRevision { revision, reply } => {
                    let outcome = self.by_revision(revision);
                    answer(reply, outcome);
                }
                Job::Everything { reply } => {
                    let outcome = self.everything();
                    answer(reply, outcome);
                }
            }
        }
    }

    fn remember(&mut self, hash: KvHash) {
        tracing::info!(
            hash = hash.hash,
            revision = hash.revision.0,
            compact_revision = hash.compact_revision.0,
            "storing new hash"
        );
        let at = self.compactions.partition_point(|known| known.revision <= hash.revision);
        self.compactions.insert(at, hash);
        if self.compactions.len() > limits::COMPACTION_HASHES {
            self.compactions.remove(0);
        }
    }

    fn by_revision(&mut self, revision: i64) -> Outcome {
        if let Some(hash) = self.compactions.iter().find(|hash| hash.revision.0 == revision) {
            return Ok((*hash, self.shared.view.load().store.revision.0));
        }
        let (newest, compacted, pin) = self.pin()?;
        if revision > 0 && revision < compacted.0 {
            return Err(EtcdError::Compacted.into());
        }
        if revision > newest.0 {
            return Err(EtcdError::FutureRev.into());
        }
        let asked = revision;
        let revision = if revision == 0 { newest } else { Revision(revision) };
        let hasher = KvHasher::new(HashKind::ByRevision, revision, compacted, pin);
        match self.compute(hasher)? {
            Some(hash) => Ok((hash, newest.0)),
            None => self.by_revision(asked),
        }
    }

    fn everything(&mut self) -> Outcome {
        let (newest, compacted, pin) = self.pin()?;
        let hasher = KvHasher::new(HashKind::Everything, newest, compacted, pin);
        match self.compute(hasher)? {
            Some(hash) => Ok((hash, newest.0)),
            None => self.everything(),
        }
    }

    /// The newest revision, the compact revision, and a pin that came in time for it.
    fn pin(&self) -> Result<(Revision, Revision, RevisionPin), Status> {
        loop {
            let compacted = self.shared.view.load().store.compact_revision;
            let pin = self
                .pins
                .pin(compacted.max(Revision(0)))
                .map_err(|_| Status::from(EtcdError::TooManyRequests))?;
            let view = self.shared.view.load();
            if view.store.compact_revision == compacted {
                return Ok((view.store.revision, compacted, pin));
            }
        }
    }

    /// `None` if a compaction came between the pin and the first look.
    fn compute(&mut self, mut hasher: KvHasher) -> Result<Option<KvHash>, Status> {
        loop {
            if self.shared.is_stopping() {
                return Err(EtcdError::Stopped.into());
            }
            let view = self.shared.view.load_full();
            if !hasher.is_sound(&view.store) {
                return Ok(None);
            }
            match hasher.step(&view.store, &mut self.pages, limits::HASH_STEP_ROWS) {
                Ok(Fetch::Ready(Some(hash))) => return Ok(Some(hash)),
                Ok(Fetch::Ready(None)) => {}
                // These pages are read with blocking calls: there is nothing to wait for.
                Ok(Fetch::Pending(_)) => {}
                Err(error) => {
                    tracing::error!(error = %error, "hashing met damaged data");
                    return Err(EtcdError::Corrupt.into());
                }
            }
            drop(view);
            // Requests go first where cores are few.
            std::thread::yield_now();
        }
    }
}

fn answer(reply: ReplyTo, outcome: Outcome) {
    // Full only if a front asks for more than may be queued, which it cannot.
    let _ = reply.answers.push((reply.slot, outcome));
    reply.waker.wake();
}
