//! From the rings into raft: one step of raft, and one log write, for all that waits.

use bytes::Bytes;
use etcore_engine::types::LogIndex;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::{etcdserverpb as pb, membershippb};
use etcore_raftlog::node::{Destination, ProposeError, Proposed};
use etcore_raftlog::wal::Admission;
use prost::Message;

use super::{Proposal, Replica};
use crate::channel::{Reply, Slot, ToFront, ToReplica};
use crate::cluster::version;
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
        (self.proposals_wait, self.spare_wait) = (false, false);
        match self.log.node.destination() {
            Destination::Here => self.take_as_leader(),
            // What is sent to a leader that is gone would only get lost.
            Destination::Leader if !self.peering.has_lost(self.soft_state.leader) => {
                self.take_as_follower();
            }
            Destination::Leader | Destination::Nowhere => {
                self.proposals_wait = true;
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
                let large = self.fronts[front].large.pop_front();
                let (origin, data) = match large {
                    Some(large) => large,
                    None => match self.fronts[front].next() {
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
        if self.to_apply.is_long() {
            // Turns follow each other until that is applied, or a page comes.
            self.proposals_wait = true;
            return self.take_reads();
        }
        // Known before the turn: nothing in it changes that.
        let tight = self.is_short_of_space();
        if !tight && self.must_wait_for_space(0) {
            self.proposals_wait = true;
            return self.take_reads();
        }
        // Without a spare segment only what fits into the current one.
        let (room, scarce) = match self.log.writer.admit(1, limits::PROPOSE_BYTES as u64) {
            Ok(()) => (limits::PROPOSE_BYTES, false),
            Err(Admission::Busy { .. }) => {
                self.proposals_wait = true;
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
        // Every other turn other members' clients come first.
        self.peers_first = !self.peers_first;
        let from_peers =
            if self.peers_first { self.step_forwarded(room, tight, scarce) } else { 0 };
        let room = room.saturating_sub(from_peers);
        let mut batch = Batch::new(room, scarce, tight);
        for front in 0..self.fronts.len() {
            while !batch.is_full()
                && let Some(message) = self.fronts[front].next()
            {
                match message {
                    ToReplica::Propose { slot, id, data } => {
                        let origin = Origin { front, slot, id };
                        if data.len() > limits::LARGE_PROPOSAL_BYTES {
                            self.fronts[front].large.push_back((origin, data));
                        } else {
                            self.take_proposal(origin, data, &mut batch);
                        }
                    }
                    other => self.take_other(front, other),
                }
            }
        }
        self.take_large(&mut batch);
        let Batch { mut data, mut origins, bytes, .. } = batch;
        // Revocations give space back; they are small, and this is room for all of a turn.
        if !scarce || room - bytes.min(room) > limits::LEASE_TURN_BYTES {
            self.propose_leases(&mut data, &mut origins);
        }
        self.propose(data, origins);
        if !self.peers_first {
            self.step_forwarded(room.saturating_sub(bytes), tight, scarce);
        }
    }

    /// Without a spare segment yet: small proposals of this member's clients go into what is left
    /// of the last one, which large ones do not fill, and everything else waits.
    fn take_small(&mut self, tight: bool) {
        self.spare_wait = true;
        let room = usize::try_from(self.log.writer.room_bytes()).unwrap_or(0);
        let mut batch = Batch::new(room.min(limits::PROPOSE_BYTES), true, tight);
        'fronts: for front in 0..self.fronts.len() {
            while batch.data.len() < limits::PROPOSE_ENTRIES
                && let Some(message) = self.fronts[front].next()
            {
                let (slot, id, data) = match message {
                    ToReplica::Propose { slot, id, data } => (slot, id, data),
                    other => {
                        self.take_other(front, other);
                        continue;
                    }
                };
                if data.len() > limits::LARGE_PROPOSAL_BYTES {
                    self.fronts[front].large.push_back((Origin { front, slot, id }, data));
                } else if batch.fits(&data) {
                    self.take_proposal(Origin { front, slot, id }, data, &mut batch);
                } else {
                    self.fronts[front].put_back(ToReplica::Propose { slot, id, data });
                    self.proposals_wait = true;
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
        self.large_wait = false;
        if self.fronts.iter().all(|front| front.large.is_empty()) {
            return;
        }
        let spared_bytes = limits::SMALL_PROPOSALS_SPARE_BYTES;
        if !batch.tight && self.must_wait_for_space(spared_bytes) {
            self.large_wait = true;
            return;
        }
        let mut any = true;
        while std::mem::take(&mut any) {
            for front in 0..self.fronts.len() {
                let write_bytes = self.log.writer.staged_bytes() + batch.bytes as u64;
                if write_bytes >= limits::LARGE_BATCH_BYTES || batch.is_full() {
                    self.large_wait = write_bytes >= limits::LARGE_BATCH_BYTES;
                    return;
                }
                if let Some((origin, data)) = self.fronts[front].large.pop_front() {
                    self.take_proposal(origin, data, batch);
                    (any, self.took_large) = (true, true);
                }
            }
        }
    }

    /// Reads go on while proposals must wait for the disk, or for a leader.
    fn take_reads(&mut self) {
        for front in 0..self.fronts.len() {
            while let Some(message) = self.fronts[front].next_but_proposals() {
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
            ToReplica::Hash { reply } => self.begin_hash(front, reply),
            ToReplica::Propose { .. } => {}
        }
    }

    fn take_read(&mut self, front: usize, up_to: u64) {
        self.next_read += 1;
        if self.log.node.read_index(self.next_read) {
            self.reads.push_back((self.next_read, front, up_to));
        } else {
            // The front's reads time out; it may ask again with its next ticket.
            self.shared.metrics.read_indexes_failed.inc();
        }
    }

    pub(super) fn finish_reads(&mut self, ticket: u64, index: LogIndex) {
        self.desk.read_finished(ticket);
        while let Some((known, front, up_to)) = self.reads.front().copied() {
            if known > ticket {
                break;
            }
            self.reads.pop_front();
            self.fronts[front].send(ToFront::ReadReady { up_to, index });
        }
    }

    pub(super) fn refuse(&mut self, from: Option<Origin>, error: EtcdError) {
        self.shared.metrics.proposals_failed.inc();
        if let Some(Origin { front, slot, .. }) = from {
            let reply = Reply::Refused(error.into());
            self.fronts[front].send(ToFront::Reply { slot, reply });
        }
    }

    /// One step of raft; none if there is nothing to propose.
    pub(super) fn propose(&mut self, batch: Vec<Bytes>, origins: Vec<Option<Origin>>) {
        if batch.is_empty() {
            return;
        }
        self.work.note(Job::Proposals);
        let deadline_ms = self.now_ms + self.request_timeout_ms;
        // Expired leases are not renewed anyway.
        let of_clients =
            (0..).zip(batch.iter().zip(&origins)).filter(|(_, (_, from))| from.is_some());
        let ending: Vec<(u64, i64)> = of_clients
            .filter_map(|(at, (data, _))| Some((at, entry::wrapped_revoke(data)?)))
            .collect();
        match self.log.node.propose(batch.into_iter()) {
            Ok(Proposed::Appended { first, term, .. }) => {
                for (at, lease) in ending {
                    self.desk.note_ending(lease, LogIndex(first.0 + at));
                }
                // What an earlier leadership of this member has left there is gone.
                self.outlive_overwritten(first.0);
                for (index, from) in (first.0..).zip(origins) {
                    let index = LogIndex(index);
                    self.proposals.push_back(Proposal { index, term, from, deadline_ms });
                }
            }
            Ok(Proposed::Forwarded { .. }) => {
                for origin in origins.into_iter().flatten() {
                    self.waiting.insert(origin, deadline_ms, self.soft_state.term);
                }
            }
            Err(error) => {
                let error = match error {
                    ProposeError::NoLeader | ProposeError::Dropped => EtcdError::NoLeader,
                    ProposeError::Transferring => EtcdError::LeaderChanged,
                    ProposeError::TooManyUncommitted => EtcdError::TooManyRequests,
                    ProposeError::TooLarge { .. } | ProposeError::Empty => {
                        EtcdError::RequestTooLarge
                    }
                };
                origins.into_iter().for_each(|from| self.refuse(from, error));
            }
        }
    }

    /// Publishes this member's name and client URLs through raft, as every etcd member does when it
    /// starts, until that is applied. A member alone sets the cluster version with it.
    pub(super) fn propose_member(&mut self) {
        if self.published_self
            || self.now_ms < self.publish_again_ms
            || self.log.node.destination() == Destination::Nowhere
        {
            return;
        }
        self.publish_again_ms = self.now_ms + self.request_timeout_ms;
        let config = &self.shared.config;
        let attributes = membershippb::Attributes {
            name: config.name.clone(),
            client_urls: config.advertise_client_urls.clone(),
        };
        let publish = pb::InternalRaftRequest {
            cluster_member_attr_set: Some(membershippb::ClusterMemberAttrSetRequest {
                member_id: self.shared.member_id,
                member_attributes: Some(attributes),
            }),
            ..Default::default()
        };
        let cluster_version = pb::InternalRaftRequest {
            cluster_version_set: Some(membershippb::ClusterVersionSetRequest {
                ver: version::CLUSTER.to_owned(),
            }),
            ..Default::default()
        };
        let alone = self.is_leader() && self.log.node.conf_state().voters.len() == 1;
        let requests = [(alone && self.cluster_version.is_none()).then_some(cluster_version)];
        let mut batch = Vec::new();
        for mut request in requests.into_iter().flatten().chain([publish]) {
            let id = self.new_request_id();
            if request.cluster_member_attr_set.is_some() {
                self.publishing.push(id);
            }
            request.header = Some(pb::RequestHeader { id, ..Default::default() });
            batch.push(request.encode_to_vec().into());
        }
        let origins = vec![None; batch.len()];
        self.propose(batch, origins);
    }
}
