//! From the rings into raft: one step of raft, and one log write, for all that waits.

use bytes::Bytes;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::{etcdserverpb as pb, membershippb};
use etcore_raftlog::node::{ProposeError, Proposed};
use etcore_raftlog::wal::Admission;
use prost::Message;

use super::messages::{Slot, ToReplica};
use super::{Proposal, Replica, space};
use crate::{limits, version};

const ENTRY_OVERHEAD: usize = etcore_raftlog::limits::ENTRY_OVERHEAD_BYTES as usize;

pub(super) type Origin = Option<(usize, Slot)>;

/// What one step of raft proposes.
struct Batch {
    data: Vec<Bytes>,
    origins: Vec<Origin>,
    bytes: usize,
    /// What the log takes.
    room: usize,
    /// There is no spare segment: the room is what is left of the current one.
    scarce: bool,
}

impl Batch {
    fn new(room: usize, scarce: bool) -> Self {
        Self { data: Vec::new(), origins: Vec::new(), bytes: 0, room, scarce }
    }

    fn is_full(&self) -> bool {
        self.data.len() >= limits::PROPOSE_ENTRIES || self.bytes >= self.room && !self.scarce
    }

    fn fits(&self, data: &Bytes) -> bool {
        !self.scarce || self.bytes + data.len() + ENTRY_OVERHEAD <= self.room
    }

    fn add(&mut self, origin: Origin, data: Bytes) {
        self.bytes += data.len() + if self.scarce { ENTRY_OVERHEAD } else { 0 };
        self.origins.push(origin);
        self.data.push(data);
    }
}

impl Replica {
    /// Proposes what the fronts sent, fairly in turn, up to the bounds of one raft step. Without a
    /// leader everything stays in the rings; the fronts time it out.
    pub(super) fn take_requests(&mut self) {
        self.log_is_busy = false;
        if !self.is_leader() {
            return;
        }
        if !self.is_short_of_space() && self.must_wait_for_space(0) {
            self.log_is_busy = true;
            return self.take_reads();
        }
        // Without a spare segment only what fits into the current one.
        let (room, scarce) = match self.log.writer.admit(1, limits::PROPOSE_BYTES as u64) {
            Ok(()) => (limits::PROPOSE_BYTES, false),
            Err(Admission::Busy { .. }) => {
                self.log_is_busy = true;
                return self.take_reads();
            }
            Err(Admission::NoSpace { reason }) => {
                // While a spare is merely being made, requests wait for it; a full disk is told.
                if reason.is_none() {
                    self.log_is_busy = true;
                    return self.take_reads();
                }
                (usize::try_from(self.log.writer.room_bytes()).unwrap_or(0), true)
            }
            Err(Admission::Failed(error)) => return self.fail(format!("log: {error}")),
        };
        let mut batch = Batch::new(room, scarce);
        for front in 0..self.fronts.len() {
            while !batch.is_full()
                && let Some(message) = self.fronts[front].inbox.pop()
            {
                match message {
                    ToReplica::Read { up_to } => self.take_read(front, up_to),
                    ToReplica::Defragment { slot } => self.begin_defragment(front, slot),
                    ToReplica::Propose { slot, data }
                        if data.len() > limits::LARGE_PROPOSAL_BYTES =>
                    {
                        self.fronts[front].large.push_back((slot, data));
                    }
                    ToReplica::Propose { slot, data } => {
                        self.take_proposal(front, slot, data, &mut batch);
                    }
                }
            }
        }
        self.take_large(&mut batch);
        let Batch { mut data, mut origins, bytes, .. } = batch;
        // Revocations give space back; they are small, and this is room for all of a turn.
        if !scarce || room - bytes.min(room) > limits::LEASE_TURN_BYTES {
            self.propose_leases(&mut data, &mut origins);
        }
        if !data.is_empty() {
            self.propose(data, origins);
        }
    }

    /// Puts a proposal into the batch, unless the disk has no room for it.
    fn take_proposal(&mut self, front: usize, slot: Slot, data: Bytes, batch: &mut Batch) {
        let refused = self.is_short_of_space() && space::grows(&data);
        if refused || !batch.fits(&data) {
            self.refuse(Some((front, slot)), EtcdError::NoSpace);
        } else {
            batch.add(Some((front, slot)), data);
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
        if !self.is_short_of_space() && self.must_wait_for_space(spared_bytes) {
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
                if let Some((slot, data)) = self.fronts[front].large.pop_front() {
                    self.take_proposal(front, slot, data, batch);
                    any = true;
                }
            }
        }
    }

    /// Reads go on while proposals must wait for the disk.
    fn take_reads(&mut self) {
        for front in 0..self.fronts.len() {
            let is_read = |message: &ToReplica| !matches!(message, ToReplica::Propose { .. });
            while let Some(message) = self.fronts[front].inbox.pop_if(is_read) {
                match message {
                    ToReplica::Read { up_to } => self.take_read(front, up_to),
                    ToReplica::Defragment { slot } => self.begin_defragment(front, slot),
                    ToReplica::Propose { .. } => {}
                }
            }
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

    pub(super) fn propose(&mut self, batch: Vec<Bytes>, origins: Vec<Origin>) {
        let bytes: usize = batch.iter().map(Bytes::len).sum();
        self.space.proposed_bytes += bytes as u64;
        match self.log.node.propose(batch.into_iter()) {
            Ok(Proposed::Appended { first, term, .. }) => {
                for (index, from) in (first.0..).zip(origins) {
                    let index = etcore_engine::types::LogIndex(index);
                    self.proposals.push_back(Proposal { index, term, from });
                }
            }
            // Only a leader takes requests, and it appends them itself.
            Ok(Proposed::Forwarded { .. }) => {
                origins.into_iter().for_each(|from| self.refuse(from, EtcdError::Timeout));
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
                self.space.proposed_bytes = self.space.proposed_bytes.saturating_sub(bytes as u64);
                origins.into_iter().for_each(|from| self.refuse(from, error));
            }
        }
    }

    /// Publishes this member's name and client URLs, and the cluster version, through raft, as
    /// every etcd member does when it starts.
    pub(super) fn propose_member(&mut self) {
        if self.published_self || !self.is_leader() {
            return;
        }
        self.published_self = true;
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
        let mut batch = Vec::new();
        for mut request in [publish, cluster_version] {
            self.next_request_id += 1;
            request.header =
                Some(pb::RequestHeader { id: self.next_request_id, ..Default::default() });
            batch.push(request.encode_to_vec().into());
        }
        self.propose(batch, vec![None, None]);
    }
}
