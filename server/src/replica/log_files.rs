//! The log's files: which thread carries out which operation.
//!
//! Durable writes go to the shard's driver; operations that may wait for the device otherwise go to
//! blocking pools, those that a batch waits for to one that nothing else enters; opening and
//! closing is done in place. In a simulated member the simulator decides. Used by the replica only.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use etcore_engine::file::{
    AlignedBuf, FileOp, FileOutput, StdDisk, extend_with_zeros, run, zero_fill,
};
use etcore_raftlog::types::LogEntry;
use etcore_raftlog::wal::ReadPlan;

use crate::disk::pool::Pool;
use crate::driver::{LogFile, Waker};
use crate::limits;

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
    pub file: LogFile,
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

/// An operation that ended later than it was started.
pub type Finished = (Lane, io::Result<FileOutput>);

/// How a simulated disk starts an operation.
pub type StartOp = Box<dyn FnMut(Lane, FileOp) -> Started + Send>;

/// How a simulated disk reads bytes of a file of the log: fewer at its end, none if that fails.
pub type ReadOp = Box<dyn FnMut(&str, u64, usize) -> Vec<u8> + Send>;

/// Entries that were read back, with the ID they were asked for by.
type Fetched = (u64, Vec<LogEntry>);

/// See the module text.
pub struct LogFiles {
    hands: Hands,
    finished: Arc<ArrayQueue<Finished>>,
    fetched: Arc<ArrayQueue<Fetched>>,
}

/// The log's own threads. Both have room for all that may be under way at a time.
pub struct LogPools {
    /// Operations of [`Lane::Main`].
    pub commit: Pool,
    /// All others, which take long.
    pub side: Pool,
}

/// Who carries out operations.
enum Hands {
    Threads { disk: StdDisk, pools: LogPools, waker: Waker },
    Simulated(StartOp, ReadOp),
}

/// One operation per lane is outstanding at most.
const FINISHED: usize = 4;

impl LogFiles {
    /// Goes on with the disk that recovery opened the files in.
    pub fn new(disk: StdDisk, pools: LogPools, waker: Waker) -> Self {
        Self::with(Hands::Threads { disk, pools, waker })
    }

    fn with(hands: Hands) -> Self {
        let finished = Arc::new(ArrayQueue::new(FINISHED));
        // raft asks for what it misses again, should this be full.
        let fetched = Arc::new(ArrayQueue::new(etcore_raftlog::limits::FETCHES_MAX));
        Self { hands, finished, fetched }
    }

    /// Files of a simulated disk; what ends later is put into the queue that is returned.
    pub fn simulated(start: StartOp, read: ReadOp) -> (Self, Arc<ArrayQueue<Finished>>) {
        let files = Self::with(Hands::Simulated(start, read));
        let finished = files.finished.clone();
        (files, finished)
    }

    /// Starts an operation.
    pub fn start(&mut self, lane: Lane, op: FileOp) -> Started {
        let (disk, pools, waker) = match &mut self.hands {
            Hands::Threads { disk, pools, waker } => (disk, pools, waker),
            Hands::Simulated(start, _) => return start(lane, op),
        };
        let handle = |disk: &StdDisk, file| {
            disk.handle(file).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        let (root, syncs) = (disk.root().to_owned(), disk.syncs());
        let done = |()| FileOutput::Done;
        let work: Box<dyn FnOnce() -> io::Result<FileOutput> + Send> = match op {
            FileOp::Sync { .. } | FileOp::SyncDir { .. } if !syncs => {
                return Started::Done(Ok(FileOutput::Done));
            }
            FileOp::Write { file, offset_bytes, data, durable: true } => match handle(disk, file) {
                Ok(file) if syncs => {
                    let file = file.into();
                    return Started::Write(DurableWrite { file, offset_bytes, buf: data });
                }
                // The driver's writes are durable; this one need not be.
                Ok(file) => Box::new(move || {
                    file.write_all_at(&data, offset_bytes).map(|()| FileOutput::Written(data))
                }),
                Err(error) => return Started::Done(Err(error)),
            },
            FileOp::ZeroFill { file, len_bytes } => {
                let fill = if syncs { zero_fill } else { extend_with_zeros };
                match handle(disk, file) {
                    Ok(file) => {
                        Box::new(move || fill(&file, len_bytes, limits::SPARE_PAUSE).map(done))
                    }
                    Err(error) => return Started::Done(Err(error)),
                }
            }
            FileOp::Sync { file } => match handle(disk, file) {
                Ok(file) => Box::new(move || file.sync_data().map(done)),
                Err(error) => return Started::Done(Err(error)),
            },
            FileOp::Rename { from, to } => {
                Box::new(move || std::fs::rename(root.join(from), root.join(to)).map(done))
            }
            FileOp::Remove { name } => {
                Box::new(move || std::fs::remove_file(root.join(name)).map(done))
            }
            FileOp::SyncDir { name } => {
                Box::new(move || File::open(root.join(name))?.sync_all().map(done))
            }
            other => return Started::Done(run(disk, other)),
        };
        let (finished, waker) = (self.finished.clone(), waker.clone());
        let job = Box::new(move || {
            let result = work();
            // Never full: see `new`.
            let _ = finished.push((lane, result));
            waker.wake();
        });
        let pool = match lane {
            Lane::Main => &pools.commit,
            Lane::Background => &pools.side,
        };
        if let Err(job) = pool.run(job) {
            // Never: one operation of a lane is under way at a time. It must be done all the same.
            job();
        }
        Started::Later
    }

    /// Reads older entries back for a peer; [`LogFiles::poll_fetched`] returns them.
    pub fn fetch(&mut self, id: u64, plan: ReadPlan) {
        let (disk, pools, waker) = match &mut self.hands {
            Hands::Threads { disk, pools, waker } => (disk, pools, waker),
            Hands::Simulated(_, read) => {
                let bytes = read(&plan.name, plan.offset_bytes, plan.len_bytes);
                let _ = self.fetched.push((id, plan.decode(&bytes)));
                return;
            }
        };
        let (fetched, waker) = (self.fetched.clone(), waker.clone());
        let path = disk.root().join(&plan.name);
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
        if let Err(job) = pools.side.run(job) {
            // Never: raft asks for no more than there is room for.
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::disk::pool::{PoolThreads, Size};

    #[test]
    fn what_a_batch_waits_for_waits_for_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("spare"), b"x").unwrap();
        let mut threads = PoolThreads::default();
        let mut pool = |threads_count, jobs| {
            Pool::start("test", Size { threads: threads_count, jobs }, &mut threads).unwrap()
        };
        let commit = pool(1, limits::LOG_COMMIT_JOBS);
        let side = pool(limits::LOG_SIDE_THREADS, limits::LOG_SIDE_JOBS);
        // All threads of the side hang, as in a read of a device that does not answer.
        let (release, gate) = crossbeam_channel::bounded::<()>(0);
        let (begun, hanging) = crossbeam_channel::bounded(limits::LOG_SIDE_THREADS);
        for _ in 0..limits::LOG_SIDE_THREADS {
            let (begun, gate) = (begun.clone(), gate.clone());
            let hang = move || {
                let _ = begun.send(());
                gate.recv().unwrap_or(());
            };
            assert!(side.run(Box::new(hang)).is_ok());
        }
        for _ in 0..limits::LOG_SIDE_THREADS {
            hanging.recv().unwrap();
        }
        // There is room for all reads that may be asked for, and for one thing more.
        for _ in 0..etcore_raftlog::limits::FETCHES_MAX {
            assert!(side.run(Box::new(|| {})).is_ok());
        }
        let pools = LogPools { commit, side };
        let disk = StdDisk::new(dir.path());
        let mut files = LogFiles::new(disk, pools, Waker::new().unwrap());
        let remove = FileOp::Remove { name: "none".to_owned() };
        assert!(matches!(files.start(Lane::Background, remove), Started::Later));
        let rename = FileOp::Rename { from: "spare".to_owned(), to: "segment".to_owned() };
        for op in [rename, FileOp::SyncDir { name: String::new() }] {
            assert!(matches!(files.start(Lane::Main, op), Started::Later));
            let deadline = Instant::now() + Duration::from_secs(10);
            let (lane, result) = loop {
                if let Some(finished) = files.poll() {
                    break finished;
                }
                assert!(Instant::now() < deadline, "it waits for what hangs");
                std::thread::yield_now();
            };
            assert_eq!(lane, Lane::Main);
            assert!(result.is_ok());
        }
        assert!(dir.path().join("segment").exists());
        assert!(files.poll().is_none(), "the removal waits, and its caller did not do it");
        drop((release, gate, files));
        threads.join();
    }
}
