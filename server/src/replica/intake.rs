//! From the rings into raft: one step of raft, and one log write, for all that waits.

use bytes::Bytes;
use etcore_engine::types::LogIndex;
use etcore_proto::error::EtcdError;
use etcore_raftlog::node::{Destination, ProposeError, Proposed};
use etcore_raftlog::wal::Admission;

use super::Replica;
use super::link::FrontLink;
use super::read_rounds::Round;
use crate::channel::{Slot, ToFront, ToReplica};
use crate::work::Job;
use crate::{entry, limits};

const ENTRY_OVERHEAD: usize = etcore_raftlog::limits::ENTRY_OVERHEAD_BYTES as usize;

/// Who waits for a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) front: usize,
    pub(super) slot: Slot,
    /// The request's.
    pub(super) id: u64,
}

/// What the last turn has left in the rings, and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// No proposal was taken in the last turn: the log is busy, or there is no leader. What ends
    /// that wakes the shard, so what waits in the rings is no reason to stay awake.
    waits: bool,
    /// Large proposals wait for the end of a log write or of a checkpoint, which wakes the shard.
    large_waits: bool,
    /// Everything but small proposals of this member's clients waits for the log's spare segment,
    /// which wakes the shard.
    waits_for_spare: bool,
    /// In this turn other members' clients come first.
    peers_first: bool,
}

impl Intake {
    /// True if no proposal was taken in the last turn, and something else will wake the shard.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// True if only small proposals were taken in the last turn, for want of a spare segment.
    pub(super) fn waits_for_spare(&self) -> bool {
        self.waits_for_spare
    }

    /// True if large proposals wait for something that will wake the shard.
    pub(super) fn large_waits(&self) -> bool {
        self.large_waits
    }

    fn begin(&mut self) {
        (self.waits, self.waits_for_spare) = (false, false);
    }

    /// Every other turn other members' clients come first.
    fn alternate(&mut self) -> bool {
        self.peers_first = !self.peers_first;
        self.peers_first
    }
}

/// What one step of raft proposes.
struct Batch {
    data: Vec<Bytes>,
    origins: Vec<Option<Origin>>,
    bytes: usize,
    /// What the log, or one message, takes.
    room: usize,
    /// The room is all there is, and entries' heads take part of it; otherwise the last entry may
    /// go beyond.
    strict: bool,
    /// The disk is short of space: what makes the store larger is refused.
    tight: bool,
}

impl Batch {
    fn new(room: usize, strict: bool, tight: bool) -> Self {
        Self { data: Vec::new(), origins: Vec::new(), bytes: 0, room, strict, tight }
    }

    fn is_full(&self) -> bool {
        self.data.len() >= limits::PROPOSE_ENTRIES || self.bytes >= self.room && !self.strict
    }

    fn fits(&self, data: &Bytes) -> bool {
        !self.strict || self.bytes + data.len() + ENTRY_OVERHEAD <= self.room
    }

    fn add(&mut self, origin: Origin, data: Bytes) {
        self.bytes += data.len() + if self.strict { ENTRY_OVERHEAD } else { 0 };
        self.origins.push(Some(origin));
        self.data.push(data);
    }
}

impl Replica {
    /// Proposes what the fronts sent, fairly in turn, up to the bounds of one raft step, or gives
    /// it to the leader. While nobody leads it stays in the rings; the fronts time it out.
    pub(super) fn take_requests(&mut self) {
        self.intake.begin();
        match self.log.node.destination() {
            Destination::Here => self.take_as_leader(),
            // What is sent to a leader that is gone would only get lost.
            Destination::Leader if !self.peer_queue.has_lost(self.standing.leader()) => {
                self.take_as_follower();
            }
            Destination::Leader | Destination::Nowhere => {
                self.intake.waits = true;
                self.take_reads();
            }
        }
    }

    /// Forwards proposals, as many in a message as fit.
    fn take_as_follower(&mut self) {
        let message = || Batch::new(limits::FORWARD_BYTES, true, false);
        let mut batch = message();
        let mut taken = 0;
        for front in 0..self.fronts.len() {
            while taken < limits::PROPOSE_ENTRIES {
                // What this member took as large while it led comes first.
                let large = self.fronts.link(front).next_large();
                let (origin, data) = match large {
                    Some(large) => large,
                    None => match self.fronts.link(front).next() {
                        None => break,
                        Some(ToReplica::Propose { slot, id, data }) => {
                            (Origin { front, slot, id }, data)
                        }
                        Some(other) => {
                            self.take_other(front, other);
                            continue;
                        }
                    },
                };
                taken += 1;
                if !batch.fits(&data) {
                    let full = std::mem::replace(&mut batch, message());
                    self.propose(full.data, full.origins);
                }
                // One that is too large for a message has one of its own.
                batch.add(origin, data);
            }
        }
        self.propose(batch.data, batch.origins);
    }

    fn take_as_leader(&mut self) {
        // Known before the turn: nothing in it changes that.
        let tight = self.is_short_of_space();
        // While the backlog is long, turns follow each other until that is applied, or a page
        // comes.
        if self.applier.backlog().is_long() || !tight && self.must_wait_for_space(0) {
            self.intake.waits = true;
            return self.take_reads();
        }
        // Without a spare segment only what fits into the current one.
        let (room, scarce) = match self.log.writer.admit(1, limits::PROPOSE_BYTES as u64) {
            Ok(()) => (limits::PROPOSE_BYTES, false),
            Err(Admission::Busy { .. }) => {
                self.intake.waits = true;
                return self.take_reads();
            }
            Err(Admission::NoSpace { reason }) => {
                // While a spare is merely being made, most requests wait for it; a full disk is
                // told.
                if reason.is_none() {
                    return self.take_small(tight);
                }
                (usize::try_from(self.log.writer.room_bytes()).unwrap_or(0), true)
            }
            Err(Admission::Failed(error)) => return self.fail(format!("log: {error}")),
        };
        let peers_first = self.intake.alternate();
        let from_peers = if peers_first { self.step_forwarded(room, tight, scarce) } else { 0 };
        let room = room.saturating_sub(from_peers);
        let mut batch = Batch::new(room, scarce, tight);
        self.fill(&mut batch);
        self.take_large(&mut batch);
        let Batch { mut data, mut origins, bytes, .. } = batch;
        // Revocations give space back; they are small, and this is room for all of a turn.
        if !scarce || room - bytes.min(room) > limits::LEASE_TURN_BYTES {
            self.propose_leases(&mut data, &mut origins);
        }
        self.propose(data, origins);
        if !peers_first {
            self.step_forwarded(room.saturating_sub(bytes), tight, scarce);
        }
    }

    /// Fills a leader's batch with small proposals; large ones are kept for [`Self::take_large`].
    fn fill(&mut self, batch: &mut Batch) {
        for front in 0..self.fronts.len() {
            while !batch.is_full()
                && let Some(message) = self.fronts.link(front).next()
            {
                match message {
                    ToReplica::Propose { slot, id, data } => {
                        let origin = Origin { front, slot, id };
                        if data.len() > limits::LARGE_PROPOSAL_BYTES {
                            self.fronts.link(front).keep_large(origin, data);
                        } else {
                            self.take_proposal(origin, data, batch);
                        }
                    }
                    other => self.take_other(front, other),
                }
            }
        }
    }

    /// Without a spare segment yet: small proposals of this member's clients go into what is left
    /// of the last one, which large ones do not fill, and everything else waits.
    fn take_small(&mut self, tight: bool) {
        self.intake.waits_for_spare = true;
        let room = usize::try_from(self.log.writer.room_bytes()).unwrap_or(0);
        let mut batch = Batch::new(room.min(limits::PROPOSE_BYTES), true, tight);
        'fronts: for front in 0..self.fronts.len() {
            while batch.data.len() < limits::PROPOSE_ENTRIES
                && let Some(message) = self.fronts.link(front).next()
            {
                let (slot, id, data) = match message {
                    ToReplica::Propose { slot, id, data } => (slot, id, data),
                    other => {
                        self.take_other(front, other);
                        continue;
                    }
                };
                if data.len() > limits::LARGE_PROPOSAL_BYTES {
                    self.fronts.link(front).keep_large(Origin { front, slot, id }, data);
                } else if batch.fits(&data) {
                    self.take_proposal(Origin { front, slot, id }, data, &mut batch);
                } else {
                    self.fronts.link(front).put_back(ToReplica::Propose { slot, id, data });
                    self.intake.waits = true;
                    break 'fronts;
                }
            }
        }
        self.take_reads();
        self.propose(batch.data, batch.origins);
    }

    /// Puts a proposal into the batch, unless the disk has no room for it.
    fn take_proposal(&mut self, origin: Origin, data: Bytes, batch: &mut Batch) {
        let refused = batch.tight && entry::grows(&data);
        if refused || !batch.fits(&data) {
            self.refuse(Some(origin), EtcdError::NoSpace);
        } else {
            batch.add(origin, data);
        }
    }

    /// Adds large proposals, one of each front in turn, while the log's next write is short and
    /// the page file has room beyond what is kept for small ones.
    fn take_large(&mut self, batch: &mut Batch) {
        self.intake.large_waits = false;
        if !self.fronts.iter().any(FrontLink::has_large) {
            return;
        }
        let spared_bytes = limits::SMALL_PROPOSALS_SPARE_BYTES;
        if !batch.tight && self.must_wait_for_space(spared_bytes) {
            self.intake.large_waits = true;
            return;
        }
        let mut any = true;
        while std::mem::take(&mut any) {
            for front in 0..self.fronts.len() {
                let write_bytes = self.log.writer.staged_bytes() + batch.bytes as u64;
                if write_bytes >= limits::LARGE_BATCH_BYTES || batch.is_full() {
                    self.intake.large_waits = write_bytes >= limits::LARGE_BATCH_BYTES;
                    return;
                }
                if let Some((origin, data)) = self.fronts.link(front).next_large() {
                    self.take_proposal(origin, data, batch);
                    any = true;
                    self.turn.note_large();
                }
            }
        }
    }

    /// Reads go on while proposals must wait for the disk, or for a leader.
    fn take_reads(&mut self) {
        for front in 0..self.fronts.len() {
            while let Some(message) = self.fronts.link(front).next_but_proposals() {
                self.take_other(front, message);
            }
        }
    }

    /// Takes what is no proposal.
    fn take_other(&mut self, front: usize, message: ToReplica) {
        match message {
            ToReplica::Read { up_to } => self.take_read(front, up_to),
            ToReplica::Defragment { slot } => self.begin_defragment(front, slot),
            ToReplica::MoveLeader { slot, target } => self.move_leader(front, slot, target),
            ToReplica::ChangeMembers { slot, change } => self.change_members(front, slot, change),
            ToReplica::Hash { reply } => self.begin_hash(front, reply),
            ToReplica::Propose { .. } => {}
        }
    }

    fn take_read(&mut self, front: usize, up_to: u64) {
        if !self.reads.begin_front_round(&mut self.log.node, front, up_to) {
            // The front's reads time out; it may ask again with its next ticket.
            self.shared.metrics.read_indexes_failed.inc();
        }
    }

    pub(super) fn finish_reads(&mut self, ticket: u64, index: LogIndex) {
        self.leases.read_finished(ticket);
        while let Some(Round { front, up_to, .. }) = self.reads.next_ended(ticket) {
            self.fronts.send(front, ToFront::ReadReady { up_to, index });
        }
    }

    pub(super) fn refuse(&mut self, from: Option<Origin>, error: EtcdError) {
        self.shared.metrics.proposals_failed.inc();
        if let Some(Origin { front, slot, .. }) = from {
            self.fronts.refuse(front, slot, error);
        }
    }

    /// One step of raft; none if there is nothing to propose.
    pub(super) fn propose(&mut self, batch: Vec<Bytes>, origins: Vec<Option<Origin>>) {
        if batch.is_empty() {
            return;
        }
        self.turn.note(Job::Proposals);
        let deadline_ms = self.turn.now_ms() + self.request_timeout_ms;
        // Expired leases are not renewed anyway.
        let of_clients =
            (0..).zip(batch.iter().zip(&origins)).filter(|(_, (_, from))| from.is_some());
        let ending: Vec<(u64, i64)> = of_clients
            .filter_map(|(at, (data, _))| Some((at, entry::wrapped_revoke(data)?)))
            .collect();
        match self.log.node.propose(batch.into_iter()) {
            Ok(Proposed::Appended { first, term, .. }) => {
                for (at, lease) in ending {
                    self.leases.note_ending(lease, LogIndex(first.0 + at));
                }
                self.proposals.appended(first, term, origins, deadline_ms);
            }
            Ok(Proposed::Forwarded { .. }) => {
                let origins = origins.into_iter().flatten();
                self.proposals.forwarded(origins, deadline_ms, self.standing.term());
            }
            Err(error) => {
                let error = refusal(&error);
                origins.into_iter().for_each(|from| self.refuse(from, error));
            }
        }
    }
}

/// What a client is told when raft does not take its proposal.
fn refusal(error: &ProposeError) -> EtcdError {
    match error {
        ProposeError::NoLeader | ProposeError::Dropped => EtcdError::NoLeader,
        ProposeError::Transferring => EtcdError::LeaderChanged,
        ProposeError::TooManyUncommitted => EtcdError::TooManyRequests,
        ProposeError::TooLarge { .. } | ProposeError::Empty => EtcdError::RequestTooLarge,
    }
}
