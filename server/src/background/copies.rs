//! Copies of the page file: reading parts of a held state for other members, and writing the one
//! that this member receives.
//!
//! Part of the worker; a state machine over [`Disk`] beside the checkpointer, whose operations it
//! tells from its own by their tokens. One state is held, and one copy received, at a time. It must
//! never touch the page file but for reading.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use etcore_engine::file::{Completion, Disk, FileOutput, Token};
use etcore_engine::snapshot::{NextPart, Part, SnapshotSink, SnapshotSource};
use etcore_proto::raftpb;
use etcore_raftlog::types::SnapshotMark;
use prost::Message;

use super::worker::{Answer, Received, Task};

/// Tokens from here on are not the checkpointer's, which counts from 0.
const TOKENS: u64 = 1 << 62;

/// True for an operation on a copy, or on what one is made from.
pub(crate) fn is_of_copies(token: Token) -> bool {
    token.0 >= TOKENS
}

/// See the module text.
#[derive(Default)]
pub(super) struct Copies {
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
    next_token: u64,
}

/// A part asked for.
struct Asked {
    ticket: u64,
    index: u64,
    from_unit: u64,
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
    part: Option<Bytes>,
    /// Where the next part begins: to be answered once the sink is idle.
    owes: Option<u64>,
}

impl Receiving {
    fn new(transfer: u64, sink: SnapshotSink) -> Self {
        Self { transfer, sink, busy: None, part: None, owes: Some(0) }
    }

    /// Gives it up; nobody is told anything any more.
    fn give_up(&mut self) {
        (self.part, self.owes) = (None, None);
        self.sink.give_up();
    }
}

impl Copies {
    /// Queues a task about copies.
    pub(super) fn add(&mut self, task: Task) {
        match task {
            Task::HoldSnapshot => self.wants_state = true,
            Task::DropSnapshot => self.source = None,
            Task::ReadSnapshot { ticket, index, from_unit } => {
                self.asked.push_back(Asked { ticket, index: index.0, from_unit });
            }
            Task::ReceiveSnapshot { transfer, index, term, identity } => {
                self.replace(Receiving::new(transfer, SnapshotSink::new(index, term, identity)));
            }
            Task::SnapshotPart { transfer, part } => {
                // After another was begun nobody waits for it.
                let current = self.receiving.as_mut().filter(|known| known.transfer == transfer);
                if let Some(receiving) = current {
                    receiving.part = Some(part);
                }
            }
            Task::DiscardSnapshot => {
                let mut remover = Receiving::new(0, SnapshotSink::remover());
                remover.owes = None;
                self.replace(remover);
            }
            Task::Checkpoint(_) | Task::Retry | Task::Stop => {}
        }
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
                    refuse(receiving, error.to_string(), answer);
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
                Some(source.part(asked.from_unit, *first_unit, &data))
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
            match held.map(|source| source.next_part(asked.from_unit)) {
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
            match receiving.sink.next_op() {
                Ok(Some(op)) => {
                    self.next_token += 1;
                    let token = Token(TOKENS + self.next_token);
                    receiving.busy = Some(token);
                    disk.submit(token, op);
                    return;
                }
                Ok(None) if receiving.sink.is_complete() => {
                    let transfer = receiving.transfer;
                    self.receiving = None;
                    let received = Received::Complete;
                    answer(Answer::SnapshotReceived { transfer, received });
                }
                Ok(None) if receiving.sink.is_over() => {}
                Ok(None) => {
                    if let Some(next) = receiving.owes.take() {
                        let (transfer, received) = (receiving.transfer, Received::Next(next));
                        answer(Answer::SnapshotReceived { transfer, received });
                    }
                    let Some(part) = receiving.part.take() else { return };
                    if let Err(error) = take(receiving, &part) {
                        refuse(receiving, error, answer);
                    }
                }
                Err(error) => refuse(receiving, error.to_string(), answer),
            }
        }
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(TOKENS + self.next_token)
    }
}

fn take(receiving: &mut Receiving, part: &[u8]) -> Result<(), String> {
    let part = Part::parse(part).ok_or_else(|| "a part arrived damaged".to_owned())?;
    receiving.owes = part.next_unit();
    receiving.sink.add(part).map_err(|error| error.to_string())
}

fn refuse(receiving: &mut Receiving, error: String, answer: &mut dyn FnMut(Answer)) {
    receiving.give_up();
    let (transfer, received) = (receiving.transfer, Received::GivenUp(error));
    answer(Answer::SnapshotReceived { transfer, received });
}
