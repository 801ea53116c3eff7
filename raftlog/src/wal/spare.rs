//! The spare segment, and the removal of old ones: everything the writer does aside.
//!
//! Called by the writer. The spare is created, filled with real zeros and synced before it counts,
//! so that later writes inside it change no allocation; a spare that could not be prepared is
//! removed to give its space back. It must never touch a file that is part of the log.

use std::collections::VecDeque;
use std::io::ErrorKind;

use etcore_engine::file::{FileId, FileOp, FileOutput, OpenMode};

use super::name::SPARE_SUFFIX;

/// One background lane of file operations.
///
/// Invariants: `busy` exactly while an operation is outstanding; `removes` holds only files that
/// are no longer part of the log, oldest first, and the removal of one is durable before the next
/// one begins: a directory may keep unsynced removals in any order, and a log with a hole in it
/// would be refused.
#[derive(Debug)]
pub(super) struct Spare {
    dir: String,
    segment_bytes: u64,
    sequence: u64,
    state: State,
    busy: Option<Busy>,
    closes: VecDeque<FileId>,
    removes: VecDeque<String>,
    /// A removal whose directory is not synced yet.
    unsynced: bool,
    removal: Removal,
    failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removal {
    Works,
    /// Waits for `retry`.
    Failed,
    /// A directory sync failed: nobody knows which removals last. The next start meets the files
    /// again.
    Over,
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
    Close,
    Remove,
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
            closes: VecDeque::new(),
            removes: VecDeque::new(),
            unsynced: false,
            removal: Removal::Works,
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
        if self.removal == Removal::Failed {
            self.removal = Removal::Works;
        }
    }

    pub(super) fn close_later(&mut self, file: FileId) {
        self.closes.push_back(file);
    }

    pub(super) fn remove_later(&mut self, name: String) {
        self.removes.push_back(name);
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
            State::Ready(_) | State::Failed => self.next_clean_up()?,
        };
        self.busy = Some(busy);
        Some(op)
    }

    fn next_clean_up(&mut self) -> Option<(Busy, FileOp)> {
        if let Some(file) = self.closes.pop_front() {
            return Some((Busy::Close, FileOp::Close { file }));
        }
        if self.removal != Removal::Works {
            return None;
        }
        if self.unsynced {
            return Some((Busy::SyncDir, FileOp::SyncDir { name: self.dir.clone() }));
        }
        let name = self.removes.front()?.clone();
        Some((Busy::Remove, FileOp::Remove { name }))
    }

    pub(super) fn op_done(&mut self, result: std::io::Result<FileOutput>) {
        debug_assert!(self.busy.is_some(), "an operation of this lane is outstanding");
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
            // A file that cannot be removed costs space; those behind it must wait for it.
            (Some(Busy::Remove), Err(error)) if error.kind() != ErrorKind::NotFound => {
                self.removal = Removal::Failed;
            }
            (Some(Busy::Remove), _) => {
                self.removes.pop_front();
                self.unsynced = true;
            }
            (Some(Busy::SyncDir), Ok(_)) => self.unsynced = false,
            (Some(Busy::SyncDir), Err(_)) => self.removal = Removal::Over,
            (Some(Busy::Close) | None, _) => {}
        }
    }

    fn name(&self) -> String {
        format!("{}/{:016x}{SPARE_SUFFIX}", self.dir, self.sequence)
    }
}
