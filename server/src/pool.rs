//! The blocking pool: page reads that must come from the device, and the log's slow file
//! operations.
//!
//! Used by fronts and the replica. A job runs on a plain thread and leaves its result where the job
//! itself says; the pool only runs it. When the queue is full the caller keeps the job and answers
//! `too many requests` or tries again.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

use crate::limits;

/// Something that may block.
pub type Job = Box<dyn FnOnce() + Send>;

/// A handle to the threads.
#[derive(Clone)]
pub struct Pool {
    jobs: Sender<Job>,
}

/// Joins the threads when all handles are gone.
pub struct PoolThreads {
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start() -> io::Result<(Self, PoolThreads)> {
        let (jobs, inbox) = bounded::<Job>(limits::POOL_JOBS);
        let inbox = Arc::new(inbox);
        let mut threads = Vec::new();
        for _ in 0..limits::POOL_THREADS {
            let inbox = inbox.clone();
            threads.push(std::thread::Builder::new().name("etcore-pool".into()).spawn(
                move || {
                    for job in inbox.iter() {
                        job();
                    }
                },
            )?);
        }
        Ok((Self { jobs }, PoolThreads { threads }))
    }

    /// Runs a job soon, or hands it back when too many wait.
    ///
    /// # Errors
    /// The job itself.
    pub fn run(&self, job: Job) -> Result<(), Job> {
        self.jobs.try_send(job).map_err(crossbeam_channel::TrySendError::into_inner)
    }
}

impl PoolThreads {
    /// Waits until the last handle is dropped and every job has run.
    pub fn join(self) {
        for thread in self.threads {
            // A job that panicked has aborted the process already.
            let _ = thread.join();
        }
    }
}
