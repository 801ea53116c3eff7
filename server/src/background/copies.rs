//! Copies of the page file: reading parts of a held state for other members, and writing the one
//! that this member receives.
//!
//! Part of the worker; a state machine over [`Disk`] beside the checkpointer, whose operations it
//! tells from its own by their tokens. One state is held, and one copy received, at a time. It must
//! never touch the page file but for reading.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use etcore_engine::file::{Completion, Disk, FileId, FileOp, FileOutput, Token};
use etcore_engine::snapshot::{NextPart, Part, SnapshotSink, SnapshotSource};
use etcore_proto::raftpb;
use etcore_raftlog::types::SnapshotMark;
use prost::Message;

use super::worker::{Answer, Received, Task};

/// Tokens from here on are not the checkpointer's, which counts from 0.
const TOKENS: u64 = 1 << 62;

/// See the module text.
#[derive(Default)]
pub(super) struct Copies {
    /// A new state is to be held, as soon as no checkpoint is under way.
    pub(super) wants_state: bool,
    source: Option<SnapshotSource>,
    /// Parts to be read.
    asked: VecDeque<(u64, Asked)>,
    /// Parts being read: their tickets and where they lie.
    reading: BTreeMap<Token, (u64, u64)>,
    sink: Option<SnapshotSink>,
    /// The operation of the sink that is out; those of one that was given up are not known here.
    sinking: Option<Token>,
    parts: VecDeque<Bytes>,
    /// A part, or the beginning, is to be answered once the sink is idle.
    owes_answer: Option<u64>,
    closes: Vec<FileId>,
    next_token: u64,
}

/// Where a part is asked for.
struct Asked {
    index: u64,
    from_unit: u64,
}

impl Copies {
    /// Queues a task about copies.
    pub(super) fn add(&mut self, task: Task) {
        match task {
            Task::HoldSnapshot => self.wants_state = true,
            Task::DropSnapshot => self.source = None,
            Task::ReadSnapshot { ticket, index, from_unit } => {
                self.asked.push_back((ticket, Asked { index: index.0, from_unit }));
            }
            Task::ReceiveSnapshot { index, term, identity } => {
                self.give_up();
                self.sink = Some(SnapshotSink::new(index, term, identity));
                self.owes_answer = Some(0);
            }
            Task::SnapshotPart(part) => self.parts.push_back(part),
            Task::Checkpoint(_) | Task::Retry | Task::Stop => {}
        }
    }

    /// Holds a state for others to copy.
    pub(super) fn hold(&mut self, state: Option<SnapshotSource>, answer: &mut dyn FnMut(Answer)) {
        self.wants_state = false;
        let Some(source) = state else { return };
        let (index, term) = source.applied();
        let conf_state = raftpb::ConfState::decode(source.conf_state()).ok();
        self.source = Some(source);
        answer(Answer::SnapshotHeld(SnapshotMark { index, term, conf_state }));
    }

    /// Takes its own completions out of `completions`, and goes on.
    pub(super) fn turn(
        &mut self,
        disk: &mut dyn Disk,
        completions: &mut Vec<Completion>,
        answer: &mut dyn FnMut(Answer),
    ) {
        for completion in completions.extract_if(.., |done| done.token.0 >= TOKENS) {
            if let Some((ticket, first_unit)) = self.reading.remove(&completion.token) {
                let part = self.part_read(first_unit, completion.result);
                answer(Answer::SnapshotRead { ticket, part });
            } else if self.sinking == Some(completion.token) {
                self.sinking = None;
                let done = self.sink.as_mut().map_or(Ok(()), |sink| sink.done(completion.result));
                if let Err(error) = done {
                    self.refuse(error.to_string(), answer);
                }
            }
        }
        self.read_parts(disk, answer);
        self.receive(disk, answer);
        for file in std::mem::take(&mut self.closes) {
            let token = self.token();
            disk.submit(token, FileOp::Close { file });
        }
    }

    fn part_read(&self, first_unit: u64, result: std::io::Result<FileOutput>) -> Option<Vec<u8>> {
        let source = self.source.as_ref()?;
        match result {
            Ok(FileOutput::Data(data)) => Some(source.part(first_unit, &data)),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(error = %error, "a part of a snapshot cannot be read");
                None
            }
        }
    }

    fn read_parts(&mut self, disk: &mut dyn Disk, answer: &mut dyn FnMut(Answer)) {
        while let Some((ticket, Asked { index, from_unit })) = self.asked.pop_front() {
            let held = self.source.as_ref().filter(|source| source.applied().0.0 == index);
            match held.map(|source| source.next_part(from_unit)) {
                None => answer(Answer::SnapshotRead { ticket, part: None }),
                Some(NextPart::Ready(part)) => {
                    answer(Answer::SnapshotRead { ticket, part: Some(part) });
                }
                Some(NextPart::Read { first_unit, op }) => {
                    let token = self.token();
                    self.reading.insert(token, (ticket, first_unit));
                    disk.submit(token, op);
                }
            }
        }
    }

    fn receive(&mut self, disk: &mut dyn Disk, answer: &mut dyn FnMut(Answer)) {
        loop {
            let Some(sink) = &mut self.sink else {
                self.parts.clear();
                return;
            };
            if self.sinking.is_some() {
                return;
            }
            if let Some(op) = sink.next_op() {
                let token = self.token();
                self.sinking = Some(token);
                disk.submit(token, op);
                return;
            }
            if sink.is_complete() {
                self.sink = None;
                self.owes_answer = None;
                answer(Answer::SnapshotReceived(Received::Complete));
                return;
            }
            if let Some(next) = self.owes_answer.take() {
                answer(Answer::SnapshotReceived(Received::Next(next)));
            }
            let Some(part) = self.parts.pop_front() else { return };
            let taken = match Part::parse(&part) {
                None => Err("a part arrived damaged".to_owned()),
                Some(part) => {
                    self.owes_answer = part.next_unit();
                    sink.add(part).map_err(|error| error.to_string())
                }
            };
            if let Err(error) = taken {
                self.refuse(error, answer);
            }
        }
    }

    fn refuse(&mut self, error: String, answer: &mut dyn FnMut(Answer)) {
        self.give_up();
        answer(Answer::SnapshotReceived(Received::GivenUp(error)));
    }

    fn give_up(&mut self) {
        self.parts.clear();
        self.sinking = None;
        self.owes_answer = None;
        self.closes.extend(self.sink.take().and_then(SnapshotSink::into_file));
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(TOKENS + self.next_token)
    }
}
