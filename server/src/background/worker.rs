//! What the background does, as a state machine over [`Disk`]: one checkpoint at a time, and beside
//! it copies of the page file, to and from other members. A copy that is put into use brings its
//! own checkpointer, which takes the place of the one before.
//!
//! Driven by the executors of this folder and by the simulator. It never blocks and never decides
//! when a checkpoint is due.

use std::collections::VecDeque;

use bytes::Bytes;
use etcore_engine::checkpoint::{CheckpointInput, CheckpointOutput, CheckpointTurn, Checkpointer};
use etcore_engine::file::{Completion, Disk, SharedFile};
use etcore_engine::snapshot::UnitRange;
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::types::{Identity, LogIndex, Term};
use etcore_raftlog::types::SnapshotMark;

use super::snapshots::Snapshots;
use crate::lease::{self, Lessor};

/// Something to do.
pub enum Task {
    /// Write a checkpoint.
    Checkpoint(Box<CheckpointInput>),
    /// Go on with a stalled checkpoint if there is room by now.
    Retry,
    /// Hold the newest durable state of the page file for copies, instead of what is held so far.
    HoldSnapshot,
    /// Read a part of the held state.
    ReadSnapshot {
        /// Returned with the answer.
        ticket: u64,
        /// The index at which the held state must still end.
        index: LogIndex,
        /// What the part is to answer.
        range: UnitRange,
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
        /// Configures the store that is made of it.
        engine: EngineConfig,
        /// Configures the leases in it.
        leases: lease::Settings,
    },
    /// A part of the copy being received; the first one comes before the others.
    SnapshotPart {
        /// The transfer that it belongs to.
        transfer: u64,
        /// The part.
        part: Bytes,
    },
    /// All parts of the copy being received were handed over.
    SnapshotEnd {
        /// The transfer that it belongs to.
        transfer: u64,
    },
    /// The log goes on from the copy that is complete: put it in the page file's place. No
    /// checkpoint is handed over until that is answered.
    AdoptSnapshot,
    /// Receive nothing any more, and remove what was received: raft has no use for it.
    DiscardSnapshot,
    /// Free what is used no more, which may take long.
    Forget(Box<Leftovers>),
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
        /// The transfer that it belongs to.
        transfer: u64,
        /// How it stands.
        received: Received,
    },
    /// The copy is the page file, also after a power cut.
    SnapshotAdopted {
        /// For those who read it.
        file: SharedFile,
    },
    /// The disk failed; the member must stop.
    Failed(String),
}

/// How a copy stands after a task about it.
pub enum Received {
    /// A part was written.
    Part,
    /// It is durable under its own name, and this is what it holds.
    Complete(Box<Loaded>),
    /// It was given up; the page file is as before.
    GivenUp(String),
}

/// What a member needs in memory to go on from a copy.
pub struct Loaded {
    /// The store.
    pub store: Store,
    /// The leases in it.
    pub lessor: Lessor,
    /// What its writer has to spare.
    pub spare_bytes: u64,
    /// Bytes of the file, and how many of them are free.
    pub size_bytes: (u64, u64),
}

/// What a member that has gone over to a copy leaves behind.
pub struct Leftovers {
    /// The store of before.
    pub store: Store,
    /// The leases of before.
    pub lessor: Lessor,
}

/// See the module text.
pub struct Worker {
    checkpointer: Checkpointer,
    inputs: VecDeque<Box<CheckpointInput>>,
    busy: bool,
    /// The replica was told that the checkpoint waits for room.
    stalled: bool,
    stopping: bool,
    snapshots: Snapshots,
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
            snapshots: Snapshots::default(),
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
            Task::Forget(leftovers) => drop(leftovers),
            other => self.snapshots.add(other),
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
        self.snapshots.turn(disk, completions, answer);
        self.turn_checkpoint(disk, completions, answer);
        if !self.busy && self.snapshots.wants_state {
            self.snapshots.hold(self.checkpointer.snapshot(), answer);
            // What waited for it goes on.
            self.turn_checkpoint(disk, completions, answer);
        }
        self.adopt(disk, answer);
    }

    /// Puts a copy into use once no checkpoint is under way. One that waits for room on the disk
    /// would save what counts no more.
    fn adopt(&mut self, disk: &mut dyn Disk, answer: &mut dyn FnMut(Answer)) {
        if self.snapshots.wants_adoption() && (!self.busy || self.stalled) {
            self.snapshots.begin_adoption(disk, answer);
        }
        let Some(checkpointer) = self.snapshots.take_adopted() else { return };
        let file = checkpointer.file();
        let before = std::mem::replace(&mut self.checkpointer, checkpointer);
        (self.busy, self.stalled) = (false, false);
        self.inputs.clear();
        self.snapshots.close(before.file(), disk);
        match disk.share(file) {
            Some(file) => answer(Answer::SnapshotAdopted { file }),
            None => answer(Answer::Failed("a snapshot in place is not open".to_owned())),
        }
    }

    fn turn_checkpoint(
        &mut self,
        disk: &mut dyn Disk,
        completions: &mut Vec<Completion>,
        answer: &mut dyn FnMut(Answer),
    ) {
        loop {
            if !self.busy && self.snapshots.wants_state {
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
