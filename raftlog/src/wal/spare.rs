//! The spare segment, and the removal of old ones: everything the writer does aside.
//!
//! Called by the writer. The spare is created, filled with real zeros and synced before it counts,
//! so that later writes inside it change no allocation; a spare that could not be prepared is
//! removed to give its space back. It must never touch a file that is part of the log.

use std::collections::VecDeque;

use etcore_engine::file::{FileId, FileOp, FileOutput, OpenMode};

use super::name::SPARE_SUFFIX;

/// One background lane of file operations.
///
/// Invariant: `busy` exactly while an operation is outstanding; `queue` holds only files that are
/// no longer part of the log.
#[derive(Debug)]
pub(super) struct Spare {
    dir: String,
    segment_bytes: u64,
    sequence: u64,
    state: State,
    busy: Option<Busy>,
    queue: VecDeque<FileOp>,
    removed: bool,
    failure: Option<String>,
}

#[derive(Debug)]
enum State {
    Missing,
    Opened(FileId),
    Ready(FileId),
    /// Waits for `retry`.
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Busy {
    Open,
    Fill,
    Queued,
    SyncDir,
}

impl Spare {
    pub(super) fn new(dir: String, segment_bytes: u64, sequence: u64) -> Self {
        Self {
            dir,
            segment_bytes,
            sequence,
            state: State::Missing,
            busy: None,
            queue: VecDeque::new(),
            removed: false,
            failure: None,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Gives the spare away; the next one is prepared from now on.
    pub(super) fn take(&mut self) -> Option<(String, FileId)> {
        let State::Ready(file) = self.state else { return None };
        let name = self.name();
        self.sequence += 1;
        self.state = State::Missing;
        Some((name, file))
    }

    pub(super) fn retry(&mut self) {
        if matches!(self.state, State::Failed) {
            self.state = State::Missing;
        }
    }

    pub(super) fn close_later(&mut self, file: FileId) {
        self.queue.push_back(FileOp::Close { file });
    }

    pub(super) fn remove_later(&mut self, name: String) {
        self.queue.push_back(FileOp::Remove { name });
    }

    pub(super) fn next_op(&mut self) -> Option<FileOp> {
        if self.busy.is_some() {
            return None;
        }
        let (busy, op) = match self.state {
            State::Missing => {
                let (name, mode) = (self.name(), OpenMode::CreateNew);
                (Busy::Open, FileOp::Open { name, mode, direct: true })
            }
            State::Opened(file) => {
                (Busy::Fill, FileOp::ZeroFill { file, len_bytes: self.segment_bytes })
            }
            State::Ready(_) | State::Failed => match self.queue.pop_front() {
                Some(op) => {
                    self.removed |= matches!(op, FileOp::Remove { .. });
                    (Busy::Queued, op)
                }
                None if self.removed => {
                    self.removed = false;
                    (Busy::SyncDir, FileOp::SyncDir { name: self.dir.clone() })
                }
                None => return None,
            },
        };
        self.busy = Some(busy);
        Some(op)
    }

    pub(super) fn op_done(&mut self, result: std::io::Result<FileOutput>) {
        match (self.busy.take(), result) {
            (Some(Busy::Open), Ok(FileOutput::Opened(file))) => self.state = State::Opened(file),
            (Some(Busy::Fill), Ok(_)) => {
                if let State::Opened(file) = self.state {
                    self.state = State::Ready(file);
                    self.failure = None;
                }
            }
            (Some(Busy::Open | Busy::Fill), result) => {
                let reason = result.err().map_or("unexpected".to_owned(), |e| e.to_string());
                self.failure = Some(reason);
                if let State::Opened(file) = self.state {
                    let name = self.name();
                    self.close_later(file);
                    self.remove_later(name);
                    // Another name, in case the removal fails as well.
                    self.sequence += 1;
                }
                self.state = State::Failed;
            }
            // A file that cannot be removed or closed costs space and nothing else: the next start
            // meets it again, and says so.
            (Some(Busy::Queued | Busy::SyncDir) | None, _) => {}
        }
    }

    fn name(&self) -> String {
        format!("{}/{:016x}{SPARE_SUFFIX}", self.dir, self.sequence)
    }
}
