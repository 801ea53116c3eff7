//! The log's files: which thread carries out which operation.
//!
//! Durable writes go to the shard's driver; operations that may wait for the device otherwise go to
//! the blocking pool; opening and closing is done in place. Used by the replica only.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use etcore_engine::file::{AlignedBuf, FileOp, FileOutput, StdDisk, run, zero_fill};

use crate::driver::Waker;
use crate::pool::Pool;

/// Which of the writer's two lanes an operation belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Batches: the next waits for this one.
    Main,
    /// Spare segments and removals.
    Background,
}

/// A write for the driver.
pub struct DurableWrite {
    /// The segment.
    pub file: Arc<File>,
    /// Where.
    pub offset_bytes: u64,
    /// What.
    pub buf: AlignedBuf,
}

/// What became of an operation that was handed in.
pub enum Started {
    /// It is done.
    Done(io::Result<FileOutput>),
    /// The driver must do it.
    Write(DurableWrite),
    /// [`LogFiles::poll`] will return it.
    Later,
}

type Finished = (Lane, io::Result<FileOutput>);

/// See the module text.
pub struct LogFiles {
    disk: StdDisk,
    pool: Pool,
    finished: Arc<ArrayQueue<Finished>>,
    waker: Waker,
}

impl LogFiles {
    /// Goes on with the disk that recovery opened the files in.
    pub fn new(disk: StdDisk, pool: Pool, waker: Waker) -> Self {
        // One operation per lane is outstanding at most.
        Self { disk, pool, finished: Arc::new(ArrayQueue::new(4)), waker }
    }

    /// Starts an operation.
    pub fn start(&mut self, lane: Lane, op: FileOp) -> Started {
        let handle = |disk: &StdDisk, file| {
            disk.handle(file).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        let root = self.disk.root().to_owned();
        let work: Box<dyn FnOnce() -> io::Result<()> + Send> = match op {
            FileOp::Write { file, offset_bytes, data, durable: true } => {
                return match handle(&self.disk, file) {
                    Ok(file) => Started::Write(DurableWrite { file, offset_bytes, buf: data }),
                    Err(error) => Started::Done(Err(error)),
                };
            }
            FileOp::ZeroFill { file, len_bytes } => match handle(&self.disk, file) {
                Ok(file) => Box::new(move || zero_fill(&file, len_bytes)),
                Err(error) => return Started::Done(Err(error)),
            },
            FileOp::Sync { file } => match handle(&self.disk, file) {
                Ok(file) => Box::new(move || file.sync_data()),
                Err(error) => return Started::Done(Err(error)),
            },
            FileOp::Rename { from, to } => {
                Box::new(move || std::fs::rename(root.join(from), root.join(to)))
            }
            FileOp::Remove { name } => Box::new(move || std::fs::remove_file(root.join(name))),
            FileOp::SyncDir { name } => Box::new(move || File::open(root.join(name))?.sync_all()),
            other => return Started::Done(run(&mut self.disk, other)),
        };
        let (finished, waker) = (self.finished.clone(), self.waker.clone());
        let job = Box::new(move || {
            let result = work().map(|()| FileOutput::Done);
            // Never full: see `new`.
            let _ = finished.push((lane, result));
            waker.wake();
        });
        match self.pool.run(job) {
            Ok(()) => Started::Later,
            Err(job) => {
                // The pool is busy with page reads; the log must not wait for them.
                job();
                Started::Later
            }
        }
    }

    /// The next operation that ended on the pool.
    pub fn poll(&self) -> Option<Finished> {
        self.finished.pop()
    }

    /// True if one waits.
    pub fn has_finished(&self) -> bool {
        !self.finished.is_empty()
    }
}
