//! Blocking pools, one for each kind of slow work: page reads that must come from the device, the
//! log's file operations, names of peers.
//!
//! Used by fronts and the replica. A job runs on a plain thread and leaves its result where the job
//! itself says; the pool only runs it. When the queue is full the caller keeps the job. What one
//! kind of work must not wait for is a pool of its own: nothing but the commit path's operations
//! ever enters the commit path's.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

/// Something that may block.
pub type Job = Box<dyn FnOnce() + Send>;

/// How many threads a pool has, and how many jobs may wait for them.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Threads.
    pub threads: usize,
    /// Jobs that wait.
    pub jobs: usize,
}

/// A handle to the threads.
#[derive(Clone)]
pub struct Pool {
    jobs: Sender<Job>,
}

/// The threads of all pools, to be joined when all handles are gone.
#[derive(Default)]
pub struct PoolThreads {
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts threads of this name, and adds them to `all`.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(name: &str, size: Size, all: &mut PoolThreads) -> io::Result<Self> {
        let (jobs, inbox) = bounded::<Job>(size.jobs);
        let inbox = Arc::new(inbox);
        for _ in 0..size.threads {
            let inbox = inbox.clone();
            let work = move || {
                for job in inbox.iter() {
                    job();
                }
            };
            all.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(work)?);
        }
        Ok(Self { jobs })
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
        const SIZE: Size = Size { threads: 2, jobs: 100 };
        let mut threads = PoolThreads::default();
        let pool = Pool::start("test", SIZE, &mut threads).unwrap();
        let (release, gate) = bounded::<()>(0);
        let ran = Arc::new(AtomicUsize::new(0));
        for _ in 0..SIZE.threads {
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
        for _ in 0..SIZE.jobs {
            assert!(pool.run(job()).is_ok());
        }
        let Err(back) = pool.run(job()) else { panic!("the pool is full") };
        assert_eq!(ran.load(Ordering::Relaxed), 0);
        back();
        drop((release, gate, pool));
        threads.join();
        assert_eq!(ran.load(Ordering::Relaxed), SIZE.threads + SIZE.jobs + 1);
    }
}
