//! Node and writer tied together, so that the replica's loop cannot forget a step.
//!
//! Called by the replica: `turn` collects effects and stages their log write, `next_op`/`op_done`
//! carry the write out, and the node hears of it. Nothing here waits; `drive` does, for boot, tests
//! and offline tools.

use std::collections::VecDeque;

use etcore_engine::file::{Disk, FileOp, FileOutput, run};
use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_proto::raftpb;

use crate::limits;
use crate::node::{Effects, Node, NodeConfig, NodeError};
use crate::types::{BatchNumber, LogIndex, SnapshotMark, Term};
use crate::wal::{self, RecoverOptions, Recovered, WalError, Writer, WriterConfig};

/// What the page file knows when a member starts; all empty without one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Last entry in it.
    pub index: LogIndex,
    /// Term of that entry.
    pub term: Term,
    /// Configuration at that entry.
    pub conf_state: raftpb::ConfState,
}

/// Why a log cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The files refuse.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// Raft refuses.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// What recovery found, for the boot log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The member and the cluster that wrote the log.
    pub metadata: raftpb::Metadata,
    /// The position before the first entry.
    pub base: (LogIndex, Term),
    /// The last entry.
    pub last_index: LogIndex,
    /// All snapshot marks, oldest first.
    pub marks: Vec<SnapshotMark>,
    /// A torn tail that was cut off.
    pub cut: Option<wal::Cut>,
}

/// A member's log.
#[derive(Debug)]
pub struct Log {
    /// Raft. Its `ready` is called by [`Log::turn`] only.
    pub node: Node,
    /// The files. Its `append` is called by [`Log::turn`] only.
    pub writer: Writer,
    /// Number of the newest write that was staged.
    staged: BatchNumber,
    /// What the checkpoints contain that are not yet covered by the older meta of the page file:
    /// the one under way and the one before it.
    checkpoints: VecDeque<SnapshotMark>,
    /// The write with the mark of a snapshot that raft has taken.
    installing: Option<BatchNumber>,
}

impl Log {
    /// Opens the log in `dir` and starts a node on it.
    pub fn open(
        disk: &mut dyn Disk,
        dir: &str,
        node: NodeConfig,
        writer: WriterConfig,
        applied: Applied,
    ) -> Result<(Self, Found), OpenError> {
        let options = RecoverOptions {
            applied: applied.index,
            window_bytes: node.window_bytes,
            repair: true,
        };
        let mut recovered = wal::recover(disk, dir, options)?;
        let found = Found {
            metadata: recovered.metadata,
            base: recovered.base,
            last_index: recovered.last_index,
            marks: recovered.marks.clone(),
            cut: recovered.cut.clone(),
        };
        Ok((Self::new(&mut recovered, node, writer, applied)?, found))
    }

    fn new(
        recovered: &mut Recovered,
        mut config: NodeConfig,
        writer: WriterConfig,
        applied: Applied,
    ) -> Result<Self, NodeError> {
        let writer = Writer::new(recovered, writer);
        config.entry_data_bytes_max =
            config.entry_data_bytes_max.min(writer.entry_data_bytes_max());
        let Applied { index, term, conf_state } = applied;
        let node = Node::new(config, recovered.take(), index, term, conf_state)?;
        let (staged, checkpoints) = (BatchNumber::default(), VecDeque::new());
        Ok(Self { node, writer, staged, checkpoints, installing: None })
    }

    /// Collects what is to be done into `out` and stages its log write; false if there is nothing.
    /// Call it until it returns false. An error means that the log is broken: hand over leadership
    /// and exit.
    pub fn turn(&mut self, out: &mut Effects) -> Result<bool, WalError> {
        let any = self.node.ready(out);
        if let Some(write) = &out.log {
            if let Some(mark) = &write.mark {
                let state = write.hard_state.unwrap_or_else(|| self.writer.hard_state());
                // With entries behind it, all of the write is on disk only once these are.
                let number = if write.count > 0 { self.staged } else { write.number };
                self.writer.append_snapshot(mark, state, number)?;
                self.installing = Some(write.number);
            }
            let entries = self.node.entries_of(write);
            let mut hard_state = write.hard_state;
            if is_on(SeededBug::VoteForgotten)
                && let Some(state) = &mut hard_state
            {
                state.vote = 0;
            }
            self.writer.append(entries, hard_state, write.number)?;
            if write.must_sync {
                self.staged = write.number;
            }
            if is_on(SeededBug::AnswerBeforeSync) {
                self.node.on_persisted(write.number);
            }
        }
        Ok(any)
    }

    /// The next file operation of the main lane; at most one is outstanding.
    pub fn next_op(&mut self) -> Option<FileOp> {
        self.writer.next_op()
    }

    /// Takes the result of the main lane's operation. True if something became durable: call
    /// [`Log::turn`]. An error is final.
    pub fn op_done(&mut self, result: std::io::Result<FileOutput>) -> Result<bool, WalError> {
        let Some(number) = self.writer.op_done(result)? else { return Ok(false) };
        self.node.on_persisted(number);
        Ok(true)
    }

    /// Marks a checkpoint of the page file, so that etcd's tools can open the log from there and
    /// older segments may go.
    pub fn mark(&mut self, mark: &SnapshotMark) -> Result<(), WalError> {
        self.writer.append_mark(mark, self.staged)
    }

    /// A checkpoint of the page file begins; `mark` is the last entry in it.
    pub fn checkpoint_begins(&mut self, mark: SnapshotMark) {
        self.checkpoints.push_back(mark);
        // One is under way at a time, and `durable` follows one checkpoint behind.
        if self.checkpoints.len() > CHECKPOINTS_KNOWN {
            self.checkpoints.pop_front();
        }
    }

    /// A checkpoint ended, and the page file holds `durable` whatever happens. Marks that in the
    /// log if segments can go on its behalf, and lets those go whose mark is on disk.
    pub fn checkpoint_ended(&mut self, durable: LogIndex) -> Result<(), WalError> {
        let mut newest = None;
        while self.checkpoints.front().is_some_and(|mark| mark.index <= durable) {
            newest = self.checkpoints.pop_front();
        }
        if let Some(mark) = newest
            && self.writer.wants_mark(mark.index)
        {
            self.mark(&mark)?;
        }
        self.release(durable);
        Ok(())
    }

    /// True once the log goes on from the newest snapshot that raft has taken: the mark is on disk,
    /// and the page file of before is not this member's state any more.
    pub fn is_installed(&self) -> bool {
        self.installing.is_some_and(|number| self.node.is_persisted(number))
    }

    /// The member has gone over to the snapshot: checkpoints of before are none of it.
    pub fn went_over(&mut self) {
        self.checkpoints.clear();
    }

    /// Lets the segments go that hold nothing above `to`; see [`Writer::release`].
    pub fn release(&mut self, to: LogIndex) {
        let base = self.writer.release(to);
        self.node.on_released(base);
    }

    /// Carries out everything that both lanes have to do, waiting for the disk. For boot, tests and
    /// tools: nothing else may be outstanding on `disk`.
    pub fn drive(&mut self, disk: &mut dyn Disk) -> Result<(), WalError> {
        loop {
            if let Some(op) = self.writer.next_background_op() {
                let result = run(disk, op);
                self.writer.background_done(result);
            } else if let Some(op) = self.writer.next_op() {
                let result = run(disk, op);
                self.op_done(result)?;
            } else {
                return self.writer.failure().cloned().map_or(Ok(()), Err);
            }
        }
    }

    /// True if the log cannot take more messages from peers now: stop reading them until a sync
    /// ends.
    pub fn is_congested(&self) -> bool {
        self.writer.staged_bytes() > limits::STAGED_BYTES_MAX
    }
}

/// Checkpoints whose last entry is remembered: the page file's two metas and the one under way.
const CHECKPOINTS_KNOWN: usize = 3;
