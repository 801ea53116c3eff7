//! The log's two lanes of operations: starting them, and taking what became of them.
//!
//! Part of the replica. Which thread carries out what is decided by [`LogFiles`]; here each lane is
//! given its next operation as soon as the last one has ended. At most one durable write is
//! outstanding.

use std::time::Duration;

use etcore_engine::file::{AlignedBuf, FileOutput};
use etcore_raftlog::wal::ReadPlan;

use super::Replica;
use super::log_files::{DurableWrite, Lane, LogFiles, Started};

/// See the module text.
pub(super) struct LogLanes {
    files: LogFiles,
    /// When the durable write that is outstanding was started.
    write_started: Option<Duration>,
}

impl LogLanes {
    pub(super) fn new(files: LogFiles) -> Self {
        Self { files, write_started: None }
    }

    /// Reads older entries back for a peer.
    pub(super) fn fetch(&mut self, id: u64, plan: ReadPlan) {
        self.files.fetch(id, plan);
    }

    /// True if an operation has ended that a turn would take.
    pub(super) fn has_finished(&self) -> bool {
        self.files.has_finished()
    }
}

impl Replica {
    /// The outcome of a write that [`Replica::run`] returned; the next turn goes on.
    pub fn written(&mut self, buf: AlignedBuf, result: std::io::Result<()>) {
        self.watchdog.write_ended();
        let now = self.shared.clock.elapsed();
        let started = self.lanes.write_started.take();
        let took = now.saturating_sub(started.expect("a write was outstanding"));
        let metrics = &self.shared.metrics.storage;
        metrics.wal_fsync.observe(took.as_secs_f64());
        metrics.wal_write_bytes.inc_by(buf.len() as u64);
        self.log_op_done(result.map(|()| FileOutput::Written(buf)));
    }

    fn log_op_done(&mut self, result: std::io::Result<FileOutput>) {
        if let Err(error) = self.log.op_done(result) {
            self.fail(format!("write-ahead log: {error}"));
        }
    }

    /// Starts whatever the log's two lanes have to do.
    pub(super) fn advance_log(&mut self) -> Option<DurableWrite> {
        let mut write = None;
        while let Some(op) = self.log.next_op() {
            match self.lanes.files.start(Lane::Main, op) {
                Started::Done(result) => self.log_op_done(result),
                Started::Write(durable) => {
                    let now = self.shared.clock.elapsed();
                    let outstanding = self.lanes.write_started.replace(now);
                    assert!(outstanding.is_none(), "two durable writes at once");
                    self.watchdog.write_started();
                    write = Some(durable);
                    break;
                }
                Started::Later => {
                    self.watchdog.file_op_started();
                    break;
                }
            }
        }
        while let Some(op) = self.log.writer.next_background_op() {
            match self.lanes.files.start(Lane::Background, op) {
                Started::Done(result) => self.log.writer.background_done(result),
                Started::Write(_) => {
                    self.fail("the log asked for a durable write in its background lane".into());
                }
                Started::Later => break,
            }
        }
        write
    }

    /// Takes the operations that have ended, and entries that were read back for peers.
    pub(super) fn take_log_files(&mut self) {
        while let Some((lane, result)) = self.lanes.files.poll() {
            match lane {
                Lane::Main => {
                    self.watchdog.file_op_ended();
                    self.log_op_done(result);
                }
                Lane::Background => {
                    if let Err(error) = &result {
                        tracing::warn!(error = %error, "a spare log segment could not be prepared");
                    }
                    self.log.writer.background_done(result);
                }
            }
        }
        while let Some((id, entries)) = self.lanes.files.poll_fetched() {
            self.log.node.on_fetched(id, entries);
        }
    }
}
