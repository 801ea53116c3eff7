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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_job_beyond_the_bound_is_handed_back_and_the_others_all_run() {
        let (pool, threads) = Pool::start().unwrap();
        let (release, gate) = bounded::<()>(0);
        let ran = Arc::new(AtomicUsize::new(0));
        for _ in 0..limits::POOL_THREADS {
            let (gate, ran) = (gate.clone(), ran.clone());
            let job: Job = Box::new(move || {
                let _ = gate.recv();
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert!(pool.run(job).is_ok());
        }
        while !pool.jobs.is_empty() {
            std::thread::yield_now();
        }
        let job = || -> Job {
            let ran = ran.clone();
            Box::new(move || {
                ran.fetch_add(1, Ordering::Relaxed);
            })
        };
        for _ in 0..limits::POOL_JOBS {
            assert!(pool.run(job()).is_ok());
        }
        let Err(back) = pool.run(job()) else { panic!("the pool is full") };
        assert_eq!(ran.load(Ordering::Relaxed), 0);
        back();
        drop((release, gate, pool));
        threads.join();
        assert_eq!(ran.load(Ordering::Relaxed), limits::POOL_THREADS + limits::POOL_JOBS + 1);
    }
}
