//! What the background does, as a state machine over [`Disk`]: one checkpoint at a time, and beside
//! it copies of the page file, to and from other members.
//!
//! Driven by the executors of this folder and by the simulator. It never blocks and never decides
//! when a checkpoint is due.

use std::collections::VecDeque;

use bytes::Bytes;
use etcore_engine::checkpoint::{CheckpointInput, CheckpointOutput, CheckpointTurn, Checkpointer};
use etcore_engine::file::{Completion, Disk};
use etcore_engine::types::{Identity, LogIndex, Term};
use etcore_raftlog::types::SnapshotMark;

use super::copies::Copies;

/// Something to do.
pub enum Task {
    /// Write a checkpoint.
    Checkpoint(Box<CheckpointInput>),
    /// Go on with a stalled checkpoint if there is room by now.
    Retry,
    /// Hold the newest durable state of the page file for copies, instead of what is held so far.
    HoldSnapshot,
    /// Read the part of the held state that follows `from_unit`.
    ReadSnapshot {
        /// Returned with the answer.
        ticket: u64,
        /// What is held must still end there.
        index: LogIndex,
        /// 0 for the first part.
        from_unit: u64,
    },
    /// Hold nothing any more.
    DropSnapshot,
    /// Begin to receive a copy, instead of what is being received. What was received so far, and is
    /// not in use, is removed.
    ReceiveSnapshot {
        /// Names it in the answers.
        transfer: u64,
        /// Its last entry.
        index: LogIndex,
        /// That entry's term.
        term: Term,
        /// Whose page file it is to become.
        identity: Identity,
    },
    /// The next part of a copy being received, to be handed over when it was answered where that
    /// begins.
    SnapshotPart {
        /// Of which copy.
        transfer: u64,
        /// The part.
        part: Bytes,
    },
    /// Receive nothing any more, and remove what was received: raft has no use for it.
    DiscardSnapshot,
    /// End the thread.
    Stop,
}

/// What came of a task.
pub enum Answer {
    /// The checkpoint is durable.
    Checkpoint(Box<CheckpointOutput>),
    /// The file system is full; the checkpoint waits for [`Task::Retry`].
    Stalled,
    /// The state that is held from now on; `None` if there is nothing in the page file.
    SnapshotHeld(Option<SnapshotMark>),
    /// A part of it; `None` if it is not held any more.
    SnapshotRead {
        /// As in the task.
        ticket: u64,
        /// The part.
        part: Option<Vec<u8>>,
    },
    /// How the copy that is being received stands.
    SnapshotReceived {
        /// Which one.
        transfer: u64,
        /// How it stands.
        received: Received,
    },
    /// The disk failed; the member must stop.
    Failed(String),
}

/// How a copy stands after a task about it.
#[derive(Debug)]
pub enum Received {
    /// Where its next part begins.
    Next(u64),
    /// It is durable under its own name.
    Complete,
    /// It was given up; the page file is as before.
    GivenUp(String),
}

/// See the module text.
pub struct Worker {
    checkpointer: Checkpointer,
    inputs: VecDeque<Box<CheckpointInput>>,
    busy: bool,
    /// The replica was told that the checkpoint waits for room.
    stalled: bool,
    stopping: bool,
    copies: Copies,
}

impl Worker {
    /// A worker with nothing to do.
    pub fn new(checkpointer: Checkpointer) -> Self {
        Self {
            checkpointer,
            inputs: VecDeque::new(),
            busy: false,
            stalled: false,
            stopping: false,
            copies: Copies::default(),
        }
    }

    /// Queues a task.
    pub fn add(&mut self, task: Task) {
        match task {
            Task::Stop => self.stopping = true,
            Task::Retry => {
                self.stalled = false;
                self.checkpointer.retry();
            }
            Task::Checkpoint(input) => self.inputs.push_back(input),
            other => self.copies.add(other),
        }
    }

    /// True once it was told to stop and has finished what it had begun.
    pub fn is_stopped(&self) -> bool {
        // What cannot be saved now is in the log.
        self.stopping && (self.stalled || !self.busy && self.inputs.is_empty())
    }

    /// Takes completions, goes on, submits operations. Returns when all that is left waits for
    /// completions or tasks.
    pub fn turn(
        &mut self,
        disk: &mut dyn Disk,
        completions: &mut Vec<Completion>,
        answer: &mut dyn FnMut(Answer),
    ) {
        self.copies.turn(disk, completions, answer);
        self.turn_checkpoint(disk, completions, answer);
        if !self.busy && self.copies.wants_state {
            self.copies.hold(self.checkpointer.snapshot(), answer);
            // What waited for it goes on.
            self.turn_checkpoint(disk, completions, answer);
        }
    }

    fn turn_checkpoint(
        &mut self,
        disk: &mut dyn Disk,
        completions: &mut Vec<Completion>,
        answer: &mut dyn FnMut(Answer),
    ) {
        loop {
            if !self.busy && self.copies.wants_state {
                return;
            }
            if !self.busy {
                let Some(input) = self.inputs.pop_front() else { return };
                self.checkpointer.start(*input);
                self.busy = true;
            }
            match self.checkpointer.turn(disk, completions) {
                Ok(CheckpointTurn::Done(output)) => {
                    self.busy = false;
                    answer(Answer::Checkpoint(Box::new(output)));
                }
                Ok(CheckpointTurn::Stalled) => {
                    if !std::mem::replace(&mut self.stalled, true) {
                        answer(Answer::Stalled);
                    }
                    return;
                }
                Ok(CheckpointTurn::Waiting | CheckpointTurn::Idle) => return,
                Err(error) => {
                    self.busy = false;
                    self.inputs.clear();
                    answer(Answer::Failed(error.to_string()));
                    return;
                }
            }
        }
    }
}
