//! The log's files: which thread carries out which operation.
//!
//! Durable writes go to the shard's driver; operations that may wait for the device otherwise go to
//! the blocking pool; opening and closing is done in place. Used by the replica only.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use etcore_raftlog::types::LogEntry;
use etcore_raftlog::wal::ReadPlan;
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
    fetched: Arc<ArrayQueue<(u64, Vec<LogEntry>)>>,
    waker: Waker,
}

impl LogFiles {
    /// Goes on with the disk that recovery opened the files in.
    pub fn new(disk: StdDisk, pool: Pool, waker: Waker) -> Self {
        // One operation per lane is outstanding at most.
        let finished = Arc::new(ArrayQueue::new(4));
        // raft asks for what it misses again, should this be full.
        let fetched = Arc::new(ArrayQueue::new(etcore_raftlog::limits::FETCHES_MAX));
        Self { disk, pool, finished, fetched, waker }
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

    /// Reads older entries back for a peer; [`LogFiles::poll_fetched`] returns them.
    pub fn fetch(&mut self, id: u64, plan: ReadPlan) {
        let (fetched, waker) = (self.fetched.clone(), self.waker.clone());
        let path = self.disk.root().join(&plan.name);
        let job = Box::new(move || {
            let entries = match read_at(&path, plan.offset_bytes, plan.len_bytes) {
                Ok(bytes) => plan.decode(&bytes),
                Err(error) => {
                    tracing::warn!(file = %path.display(), error = %error, "cannot read the log");
                    Vec::new()
                }
            };
            let _ = fetched.push((id, entries));
            waker.wake();
        });
        if let Err(job) = self.pool.run(job) {
            job();
        }
    }

    /// The next entries that were read back, with the ID they were asked for by; none if reading
    /// failed.
    pub fn poll_fetched(&self) -> Option<(u64, Vec<LogEntry>)> {
        self.fetched.pop()
    }

    /// The next operation that ended on the pool.
    pub fn poll(&self) -> Option<Finished> {
        self.finished.pop()
    }

    /// True if one waits.
    pub fn has_finished(&self) -> bool {
        !self.finished.is_empty() || !self.fetched.is_empty()
    }
}

/// Up to so many bytes of a file.
fn read_at(path: &std::path::Path, offset_bytes: u64, len_bytes: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = vec![0; len_bytes];
    let mut read_bytes = 0;
    while read_bytes < len_bytes {
        let at = offset_bytes + read_bytes as u64;
        match file.read_at(&mut bytes[read_bytes..], at) {
            Ok(0) => break,
            Ok(count) => read_bytes += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(read_bytes);
    Ok(bytes)
}
