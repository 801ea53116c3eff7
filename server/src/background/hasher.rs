//! The thread that hashes: HashKV and Hash requests, and the hash of every compaction.
//!
//! Fronts and the replica hand it jobs, the replica only once what they read is published; it reads
//! the newest view in short steps, with a revision pinned, so that neither requests nor compaction
//! wait for it, and leaves the outcome in the asking front's queue. The simulator takes the same
//! steps without a thread. It must never keep a view between two steps.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use etcore_engine::file::SharedFile;
use etcore_engine::hash::{HashKind, KvHash, KvHasher};
use etcore_engine::page::{Fetch, PageSource};
use etcore_engine::pins::{RevisionPin, RevisionPins};
use etcore_engine::read::BlockingPages;
#[cfg(feature = "sim")]
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::types::Revision;
use etcore_proto::error::{EtcdError, Status};

use crate::channel::{HashOutcome, HashRequester, Shared};
use crate::disk::pages::PageFile;
use crate::limits;

/// Something to hash.
pub enum Job {
    /// HashKV.
    ByRevision {
        /// As asked: 0 is the newest.
        revision: i64,
        /// Who waits.
        reply: HashRequester,
    },
    /// Hash. Begun by the replica, which alone has the small buckets.
    Everything {
        /// All of it.
        hasher: Box<KvHasher>,
        /// Who waits.
        reply: HashRequester,
    },
    /// The hash that HashKV answers for a compaction's revision from now on.
    Compaction(Box<KvHasher>),
}

/// A handle to the thread.
#[derive(Clone)]
pub struct Hasher {
    jobs: Sender<Queued>,
    compaction: NewestCompaction,
    compactions: Compactions,
}

/// Hashes of the last compactions, ascending by revision (etcd: hashStorage). The lock is held for
/// moments, by this thread and by whoever compares hashes once a minute.
type Compactions = Arc<Mutex<Vec<KvHash>>>;

/// The newest compaction whose hash is still to be begun. A hash takes as long as the store is
/// large, and its pin holds back what compactions remove: compactions that come faster than they
/// can be hashed would leave nothing removed, so only the newest waits. One that it replaces is not
/// hashed, as one is not in etcd when a member restarts in the middle.
type NewestCompaction = Arc<Mutex<Option<Box<KvHasher>>>>;

/// A job on its way to the thread.
enum Queued {
    Job(Job),
    /// There is a [`NewestCompaction`], unless it was taken already.
    Compaction,
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
        let (hasher, worker) = Self::with(shared, BlockingPages::new(page_file), pins);
        let thread =
            std::thread::Builder::new().name("etcore-hasher".into()).spawn(move || worker.run())?;
        Ok((hasher, HasherThread { thread }))
    }

    /// A handle whose jobs are done by calls of [`Worker::step`]. Reads from `pages` must never be
    /// pending.
    pub fn with<P: FollowingPages>(
        shared: Arc<Shared>,
        pages: P,
        pins: RevisionPins,
    ) -> (Self, Worker<P>) {
        let (jobs, inbox) = bounded(limits::HASH_JOBS);
        let compaction = NewestCompaction::default();
        let compactions = Compactions::default();
        let hasher =
            Self { jobs, compaction: compaction.clone(), compactions: compactions.clone() };
        (hasher, Worker { shared, pins, pages, compactions, inbox, compaction, job: None })
    }

    /// Hashes of the last compactions, ascending by revision.
    pub fn compactions(&self) -> Vec<KvHash> {
        lock(&self.compactions).clone()
    }

    /// Queues a job. The hash of a compaction takes the place of an earlier one's that still waits.
    ///
    /// # Errors
    /// The job, if too many wait.
    pub fn submit(&self, job: Job) -> Result<(), Job> {
        let queued = match job {
            Job::Compaction(hasher) => {
                let earlier = lock(&self.compaction).replace(hasher);
                // Its pin goes here, and not under the lock.
                drop(earlier);
                Queued::Compaction
            }
            job => Queued::Job(job),
        };
        match self.jobs.try_send(queued) {
            Err(
                TrySendError::Full(Queued::Job(job)) | TrySendError::Disconnected(Queued::Job(job)),
            ) => Err(job),
            Err(TrySendError::Disconnected(Queued::Compaction)) => {
                // Nobody will hash it: it must not hold its pin.
                lock(&self.compaction).take();
                Ok(())
            }
            // The thread looks for it after each job, so the jobs of a full queue do as well.
            Ok(()) | Err(TrySendError::Full(Queued::Compaction)) => Ok(()),
        }
    }
}

impl HasherThread {
    /// Waits until the last handle is dropped; what is under way ends early.
    pub fn join(self) {
        // A panic has aborted the process already.
        let _ = self.thread.join();
    }
}

/// What the thread does, one step at a time.
pub struct Worker<P> {
    shared: Arc<Shared>,
    pins: RevisionPins,
    pages: P,
    compactions: Compactions,
    inbox: Receiver<Queued>,
    compaction: NewestCompaction,
    job: Option<Started>,
}

/// A job under way.
struct Started {
    hasher: KvHasher,
    requester: Requester,
    began: Duration,
}

/// Who wants a hash.
enum Requester {
    Compaction,
    ByRevision { asked: i64, newest: i64, reply: HashRequester },
    Everything { newest: i64, reply: HashRequester },
}

/// Pages that are read with blocking calls, of whichever file a view has them in.
pub trait FollowingPages: PageSource {
    /// The view that is read next has its pages there.
    fn follow(&mut self, page_file: &PageFile);
    /// Nothing is read before the next [`FollowingPages::follow`]: no file need be kept open.
    fn let_go(&mut self) {}
}

impl FollowingPages for BlockingPages {
    fn follow(&mut self, page_file: &PageFile) {
        if let Some(SharedFile::Std(file)) = &page_file.file {
            BlockingPages::follow(self, file);
        }
    }

    fn let_go(&mut self) {
        BlockingPages::let_go(self);
    }
}

#[cfg(feature = "sim")]
impl FollowingPages for DiskPages {
    fn follow(&mut self, page_file: &PageFile) {
        DiskPages::follow(self, page_file.file.as_ref());
    }
}

impl<P: FollowingPages> Worker<P> {
    fn run(mut self) {
        while let Ok(queued) = self.inbox.recv() {
            self.begin(queued);
            self.go_on();
            while self.job.is_some() {
                // Requests go first where cores are few.
                std::thread::yield_now();
                self.go_on();
            }
            self.pages.let_go();
        }
    }

    /// True if [`Worker::step`] would do something.
    pub fn has_work(&self) -> bool {
        self.job.is_some() || !self.inbox.is_empty()
    }

    /// Takes a job if none is under way, and does a part of it; false if there is nothing to do.
    pub fn step(&mut self) -> bool {
        if self.job.is_none() {
            let Ok(queued) = self.inbox.try_recv() else { return false };
            self.begin(queued);
        }
        self.go_on();
        true
    }

    /// Does a part of the job under way; after its last one, a compaction that waits is begun.
    fn go_on(&mut self) {
        self.advance();
        if self.job.is_none() {
            self.begin(Queued::Compaction);
        }
    }

    fn begin(&mut self, queued: Queued) {
        let job = match queued {
            Queued::Job(job) => job,
            Queued::Compaction => match lock(&self.compaction).take() {
                Some(hasher) => Job::Compaction(hasher),
                None => return,
            },
        };
        match job {
            Job::Compaction(hasher) => {
                self.start(*hasher, Requester::Compaction);
            }
            Job::ByRevision { revision, reply } => self.begin_by_revision(revision, reply),
            Job::Everything { hasher, reply } => {
                let requester = Requester::Everything { newest: hasher.revision().0, reply };
                self.start(*hasher, requester);
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
        let mut compactions = lock(&self.compactions);
        let at = compactions.partition_point(|known| known.revision <= hash.revision);
        compactions.insert(at, hash);
        if compactions.len() > limits::COMPACTION_HASHES {
            compactions.remove(0);
        }
    }

    fn begin_by_revision(&mut self, asked: i64, reply: HashRequester) {
        let known = lock(&self.compactions).iter().find(|hash| hash.revision.0 == asked).copied();
        if let Some(hash) = known {
            let outcome = Ok((hash, self.shared.view.load().store.revision.0));
            self.shared.metrics.storage.hash_by_revision.observe(0.0);
            return answer(reply, outcome);
        }
        let (newest, compacted, pin) = match self.pin() {
            Ok(pinned) => pinned,
            Err(refused) => return answer(reply, Err(refused)),
        };
        if asked > 0 && asked < compacted.0 {
            return answer(reply, Err(EtcdError::Compacted.into()));
        }
        if asked > newest.0 {
            return answer(reply, Err(EtcdError::FutureRev.into()));
        }
        let revision = if asked == 0 { newest } else { Revision(asked) };
        let hasher = KvHasher::new(HashKind::ByRevision, revision, compacted, pin);
        let requester = Requester::ByRevision { asked, newest: newest.0, reply };
        self.start(hasher, requester);
    }

    fn start(&mut self, hasher: KvHasher, requester: Requester) {
        self.job = Some(Started { hasher, requester, began: self.shared.clock.elapsed() });
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

    /// Does a part of the job under way.
    fn advance(&mut self) {
        let Some(mut job) = self.job.take() else { return };
        if self.shared.lifecycle.is_stopping() {
            return self.end(job.requester, Err(EtcdError::Stopped.into()));
        }
        let view = self.shared.view.load_full();
        self.pages.follow(&view.page_file);
        if !job.hasher.is_sound(&view.store) {
            // A compaction came between the pin and the first look, or the member has gone over to
            // a snapshot that is compacted further.
            return match job.requester {
                Requester::Compaction => {}
                Requester::ByRevision { asked, reply, .. } => self.begin_by_revision(asked, reply),
                Requester::Everything { reply, .. } => {
                    answer(reply, Err(EtcdError::Compacted.into()));
                }
            };
        }
        match job.hasher.step(&view.store, &mut self.pages, limits::HASH_STEP_ROWS) {
            Ok(Fetch::Ready(Some(hash))) => {
                let took = self.shared.clock.elapsed().saturating_sub(job.began).as_secs_f64();
                match &job.requester {
                    Requester::Compaction => {}
                    Requester::ByRevision { .. } => {
                        self.shared.metrics.storage.hash_by_revision.observe(took);
                    }
                    Requester::Everything { .. } => self.shared.metrics.storage.hash.observe(took),
                }
                self.end(job.requester, Ok(hash));
            }
            // These pages are read with blocking calls: there is nothing to wait for.
            Ok(Fetch::Ready(None) | Fetch::Pending(_)) => self.job = Some(job),
            Err(error) => {
                tracing::error!(error = %error, "hashing met damaged data");
                self.end(job.requester, Err(EtcdError::Corrupt.into()));
            }
        }
    }

    fn end(&mut self, requester: Requester, result: Result<KvHash, Status>) {
        match requester {
            Requester::Compaction => {
                if let Ok(hash) = result {
                    self.remember(hash);
                }
            }
            Requester::ByRevision { newest, reply, .. }
            | Requester::Everything { newest, reply } => {
                answer(reply, result.map(|hash| (hash, newest)));
            }
        }
    }
}

/// Nobody panics under this lock.
fn lock<T>(guarded: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn answer(reply: HashRequester, outcome: HashOutcome) {
    // Full only if a front asks for more than may be queued, which it cannot.
    let _ = reply.answers.push((reply.slot, outcome));
    reply.waker.wake();
}
