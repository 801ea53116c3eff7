//! Snapshots of the page file: reading parts of a held state for other members, and writing the one
//! that this member receives, up to where it takes the page file's place.
//!
//! Part of the worker; a state machine over [`Disk`] beside the checkpointer, whose operations it
//! tells from its own by their tokens. One state is held, and one copy received, at a time. It must
//! never touch the page file but for reading, until the replica says that the log goes on from the
//! copy.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use etcore_engine::bucket::Bucket;
use etcore_engine::checkpoint::Checkpointer;
use etcore_engine::file::{Completion, Disk, FileId, FileOp, FileOutput, Token};
use etcore_engine::snapshot::{NextPart, Part, SnapshotSink, SnapshotSource, UnitRange};
use etcore_engine::store::EngineConfig;
use etcore_proto::raftpb;
use etcore_raftlog::types::SnapshotMark;
use prost::Message;

use super::worker::{Answer, Loaded, Received, Task};
use crate::lease::{self, Attachments, Lessor};

/// Tokens from here on are not the checkpointer's, which counts from 0.
const TOKENS: u64 = 1 << 62;

/// True for an operation on a copy, or on what one is made from.
#[cfg(feature = "sim")]
pub(crate) fn is_of_snapshots(token: Token) -> bool {
    token.0 >= TOKENS
}

/// See the module text.
#[derive(Default)]
pub(super) struct Snapshots {
    /// A new state is to be held, as soon as no checkpoint is under way.
    pub(super) wants_state: bool,
    source: Option<SnapshotSource>,
    /// Parts to be read.
    asked: VecDeque<Asked>,
    /// Parts being read.
    reading: BTreeMap<Token, Reading>,
    receiving: Option<Receiving>,
    /// Takes its place once that is over.
    next: Option<Receiving>,
    /// What writes the page file from now on.
    adopted: Option<Checkpointer>,
    next_token: u64,
}

/// A part asked for.
struct Asked {
    ticket: u64,
    index: u64,
    range: UnitRange,
}

/// A part being read.
struct Reading {
    asked: Asked,
    first_unit: u64,
    len_bytes: usize,
}

/// A copy being received. An operation that is out ends before anything else is done with it: what
/// two copies do to the same name must not overtake each other.
struct Receiving {
    transfer: u64,
    sink: SnapshotSink,
    /// The operation that is out.
    busy: Option<Token>,
    /// Parts that were handed over; the replica has a window of them.
    parts: VecDeque<Bytes>,
    /// A part is being written: to be answered once the sink is idle.
    owes: bool,
    /// There are no further parts.
    ended: bool,
    /// The files that were made of it; `None` for a transfer that only removes.
    made: Option<Made>,
    /// It is complete, and this is to write it.
    checkpointer: Option<Checkpointer>,
    /// It is to be put into use.
    is_wanted: bool,
}

/// What of a store is not the engine's, and what it is made with.
struct Made {
    engine: EngineConfig,
    leases: lease::Settings,
    attachments: Attachments,
}

impl Receiving {
    fn new(transfer: u64, sink: SnapshotSink, made: Option<Made>) -> Self {
        Self {
            transfer,
            sink,
            busy: None,
            parts: VecDeque::new(),
            owes: false,
            ended: false,
            made,
            checkpointer: None,
            is_wanted: false,
        }
    }

    /// Gives it up; nobody is told anything any more.
    fn give_up(&mut self) {
        self.parts.clear();
        (self.owes, self.ended) = (false, false);
        (self.made, self.checkpointer) = (None, None);
        self.sink.give_up();
    }

    fn answer(&self, received: Received, answer: &mut dyn FnMut(Answer)) {
        answer(Answer::SnapshotReceived { transfer: self.transfer, received });
    }

    /// Something went wrong. What was received is given up, but for a copy that the log goes on
    /// from: without it there is no state to go on with.
    fn fail(&mut self, error: String, answer: &mut dyn FnMut(Answer)) {
        if self.is_wanted {
            return answer(Answer::Failed(format!("putting a snapshot in place: {error}")));
        }
        self.give_up();
        self.answer(Received::GivenUp(error), answer);
    }

    fn next_op(&mut self) -> Result<Option<FileOp>, String> {
        let op = match &mut self.made {
            Some(made) => self.sink.next_op_visiting(&mut |row| made.attachments.visit(row)),
            None => self.sink.next_op(),
        };
        op.map_err(|error| error.to_string())
    }

    /// Makes a store of a complete copy.
    fn load(&mut self) -> Result<Box<Loaded>, String> {
        let lost = || "the copy was taken already".to_owned();
        let Made { engine, leases, attachments } = self.made.take().ok_or_else(lost)?;
        let (store, checkpointer) = self.sink.take_store(engine).ok_or_else(lost)?;
        let rows = store.bucket_iter(Bucket::Lease, b"");
        let lessor = Lessor::recover(leases, rows, attachments)
            .map_err(|error| format!("the snapshot received: {error}"))?;
        let (spare_bytes, size_bytes) = (checkpointer.spare_bytes(), checkpointer.size_bytes());
        self.checkpointer = Some(checkpointer);
        Ok(Box::new(Loaded { store, lessor, spare_bytes, size_bytes }))
    }

    /// Takes the next part, or the end of them; false if there is neither.
    fn go_on(&mut self) -> Result<bool, String> {
        if let Some(part) = self.parts.pop_front() {
            let part = Part::parse(&part).ok_or_else(|| "a part arrived damaged".to_owned())?;
            self.sink.add(part).map_err(|error| error.to_string())?;
            self.owes = true;
            return Ok(true);
        }
        let ended = std::mem::take(&mut self.ended);
        if ended {
            self.sink.end_parts().map_err(|error| error.to_string())?;
        }
        Ok(ended)
    }
}

impl Snapshots {
    /// Queues a task about copies.
    pub(super) fn add(&mut self, task: Task) {
        match task {
            Task::HoldSnapshot => self.wants_state = true,
            Task::DropSnapshot => self.source = None,
            Task::ReadSnapshot { ticket, index, range } => {
                self.asked.push_back(Asked { ticket, index: index.0, range });
            }
            Task::ReceiveSnapshot { transfer, index, term, identity, engine, leases } => {
                let made = Made { engine, leases, attachments: Attachments::default() };
                let sink = SnapshotSink::new(index, term, identity);
                self.replace(Receiving::new(transfer, sink, Some(made)));
            }
            Task::SnapshotPart { transfer, part } => {
                if let Some(receiving) = self.copy(transfer) {
                    receiving.parts.push_back(part);
                }
            }
            Task::SnapshotEnd { transfer } => {
                if let Some(receiving) = self.copy(transfer) {
                    receiving.ended = true;
                }
            }
            Task::AdoptSnapshot => {
                let receiving = self.receiving.as_mut();
                if let Some(receiving) = receiving.filter(|known| known.checkpointer.is_some()) {
                    receiving.is_wanted = true;
                }
            }
            Task::DiscardSnapshot => {
                self.replace(Receiving::new(0, SnapshotSink::remover(), None));
            }
            Task::Checkpoint(_) | Task::Retry | Task::Forget(_) | Task::Stop => {}
        }
    }

    /// The copy with this number, unless it was given up: nobody waits for what is said of others.
    fn copy(&mut self, transfer: u64) -> Option<&mut Receiving> {
        let of = |known: &&mut Receiving| known.transfer == transfer && known.made.is_some();
        self.receiving.as_mut().filter(of).or(self.next.as_mut().filter(of))
    }

    /// A copy is complete and waits to be put into use.
    pub(super) fn wants_adoption(&self) -> bool {
        self.receiving.as_ref().is_some_and(|copy| copy.is_wanted && copy.sink.is_complete())
    }

    /// Nothing writes the page file any more: the copy takes its place.
    pub(super) fn begin_adoption(&mut self, disk: &mut dyn Disk, answer: &mut dyn FnMut(Answer)) {
        if let Some(receiving) = &mut self.receiving {
            receiving.sink.adopt();
            // What was held is of the file before.
            self.source = None;
            self.receive(disk, answer);
        }
    }

    /// What writes the page file from now on, once.
    pub(super) fn take_adopted(&mut self) -> Option<Checkpointer> {
        self.adopted.take()
    }

    /// Closes a file that is used no more; readers keep it for themselves.
    pub(super) fn close(&mut self, file: FileId, disk: &mut dyn Disk) {
        let token = self.token();
        disk.submit(token, FileOp::Close { file });
    }

    fn replace(&mut self, next: Receiving) {
        if let Some(receiving) = &mut self.receiving {
            receiving.give_up();
        }
        self.next = Some(next);
    }

    /// Holds a state for others to copy.
    pub(super) fn hold(&mut self, state: Option<SnapshotSource>, answer: &mut dyn FnMut(Answer)) {
        self.wants_state = false;
        self.source = state;
        answer(Answer::SnapshotHeld(self.source.as_ref().map(|source| {
            let (index, term) = source.applied();
            let conf_state = raftpb::ConfState::decode(source.conf_state()).ok();
            SnapshotMark { index, term, conf_state }
        })));
    }

    /// Takes its own completions out of `completions`, and goes on.
    pub(super) fn turn(
        &mut self,
        disk: &mut dyn Disk,
        completions: &mut Vec<Completion>,
        answer: &mut dyn FnMut(Answer),
    ) {
        for completion in completions.extract_if(.., |done| done.token.0 >= TOKENS) {
            if let Some(reading) = self.reading.remove(&completion.token) {
                let ticket = reading.asked.ticket;
                let part = self.part_read(&reading, completion.result);
                answer(Answer::SnapshotRead { ticket, part });
            } else if let Some(receiving) = &mut self.receiving
                && receiving.busy == Some(completion.token)
            {
                receiving.busy = None;
                if let Err(error) = receiving.sink.done(completion.result) {
                    receiving.fail(error.to_string(), answer);
                }
            }
        }
        self.read_parts(disk, answer);
        self.receive(disk, answer);
    }

    fn part_read(&self, reading: &Reading, result: std::io::Result<FileOutput>) -> Option<Vec<u8>> {
        let Reading { asked, first_unit, len_bytes } = reading;
        // What was held when it was asked for may be overwritten if it is held no more.
        let source = self.source.as_ref().filter(|source| source.applied().0.0 == asked.index)?;
        match result {
            Ok(FileOutput::Data(data)) if data.len() == *len_bytes => {
                Some(source.part(asked.range.from, *first_unit, &data))
            }
            Ok(_) => {
                tracing::warn!(first_unit, "a part of a snapshot is not in the page file");
                None
            }
            Err(error) => {
                tracing::warn!(error = %error, "a part of a snapshot cannot be read");
                None
            }
        }
    }

    fn read_parts(&mut self, disk: &mut dyn Disk, answer: &mut dyn FnMut(Answer)) {
        while let Some(asked) = self.asked.pop_front() {
            let ticket = asked.ticket;
            let held = self.source.as_ref().filter(|source| source.applied().0.0 == asked.index);
            match held.map(|source| source.next_part(asked.range.from, asked.range.until)) {
                None => answer(Answer::SnapshotRead { ticket, part: None }),
                Some(NextPart::Ready(part)) => {
                    answer(Answer::SnapshotRead { ticket, part: Some(part) });
                }
                Some(NextPart::Read { first_unit, len_bytes, op }) => {
                    let token = self.token();
                    self.reading.insert(token, Reading { asked, first_unit, len_bytes });
                    disk.submit(token, op);
                }
            }
        }
    }

    fn receive(&mut self, disk: &mut dyn Disk, answer: &mut dyn FnMut(Answer)) {
        loop {
            if self.receiving.as_ref().is_none_or(|receiving| receiving.sink.is_over()) {
                self.receiving = self.next.take();
            }
            let Some(receiving) = &mut self.receiving else { return };
            if receiving.busy.is_some() {
                return;
            }
            match receiving.next_op() {
                Ok(Some(op)) => {
                    self.next_token += 1;
                    let token = Token(TOKENS + self.next_token);
                    receiving.busy = Some(token);
                    disk.submit(token, op);
                    return;
                }
                Ok(None) if receiving.sink.is_adopted() => {
                    self.adopted = receiving.checkpointer.take();
                    self.receiving = None;
                }
                Ok(None) if receiving.sink.is_complete() => {
                    if receiving.checkpointer.is_some() {
                        return;
                    }
                    match receiving.load() {
                        Ok(loaded) => receiving.answer(Received::Complete(loaded), answer),
                        Err(error) => receiving.fail(error, answer),
                    }
                }
                Ok(None) if receiving.sink.is_over() => {}
                Ok(None) => {
                    if std::mem::take(&mut receiving.owes) {
                        receiving.answer(Received::Part, answer);
                    }
                    match receiving.go_on() {
                        Ok(true) => {}
                        Ok(false) => return,
                        Err(error) => receiving.fail(error, answer),
                    }
                }
                Err(error) => receiving.fail(error, answer),
            }
        }
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(TOKENS + self.next_token)
    }
}
