//! What the background does, as a state machine over [`Disk`]: one checkpoint at a time.
//!
//! Driven by the executors of this folder and by the simulator. It never blocks and never decides
//! when a checkpoint is due.

use std::collections::VecDeque;

use etcore_engine::checkpoint::{CheckpointInput, CheckpointOutput, CheckpointTurn, Checkpointer};
use etcore_engine::file::{Completion, Disk};

/// Something to do.
pub enum Task {
    /// Write a checkpoint.
    Checkpoint(Box<CheckpointInput>),
    /// Go on with a stalled checkpoint if there is room by now.
    Retry,
    /// End the thread.
    Stop,
}

/// What came of a task.
pub enum Answer {
    /// The checkpoint is durable.
    Checkpoint(Box<CheckpointOutput>),
    /// The file system is full; the checkpoint waits for [`Task::Retry`].
    Stalled,
    /// The disk failed; the member must stop.
    Failed(String),
}

/// See the module text.
pub struct Worker {
    checkpointer: Checkpointer,
    inputs: VecDeque<Box<CheckpointInput>>,
    busy: bool,
    /// The replica was told that the checkpoint waits for room.
    stalled: bool,
    stopping: bool,
}

impl Worker {
    /// A worker with nothing to do.
    pub fn new(checkpointer: Checkpointer) -> Self {
        Self { checkpointer, inputs: VecDeque::new(), busy: false, stalled: false, stopping: false }
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
        loop {
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
