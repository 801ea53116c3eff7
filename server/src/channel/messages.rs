//! What fronts and the replica say to each other through the rings.

use std::sync::Arc;

use bytes::Bytes;
use etcore_engine::types::LogIndex;
use etcore_proto::error::Status;

use super::HashRequester;
use crate::auth::Author;
use crate::cluster::change::Change;
use crate::kv::answer::Answer;
use crate::kv::pieces::Pieces;
use crate::lease::TimeToLive;

/// Names the waiting request in its front.
pub type Slot = u64;

/// From a front.
#[derive(Debug)]
pub enum ToReplica {
    /// An encoded InternalRaftRequest. Exactly one [`ToFront::Reply`] answers it, unless the member
    /// stops.
    Propose {
        /// Who waits.
        slot: Slot,
        /// The ID in the entry's header.
        id: u64,
        /// The entry's data.
        data: Bytes,
    },
    /// All reads with tickets up to this one want a linearizable point.
    Read {
        /// Tickets count up within a front.
        up_to: u64,
    },
    /// Hands leadership over; answered by a [`ToFront::Reply`].
    MoveLeader {
        /// Who waits.
        slot: Slot,
        /// To this member.
        target: u64,
    },
    /// Changes the cluster's members; answered by a [`ToFront::Reply`].
    ChangeMembers {
        /// Who waits.
        slot: Slot,
        /// What is asked for.
        change: Change,
    },
    /// Hashes everything. Answered in the front's queue of hashes, or refused by a
    /// [`ToFront::Reply`].
    Hash {
        /// Who waits.
        reply: HashRequester,
    },
    /// Rewrites the page file densely; answered by [`ToFront::Defragmented`].
    Defragment {
        /// Who waits.
        slot: Slot,
    },
}

/// From the replica.
#[derive(Debug)]
pub enum ToFront {
    /// The proposal's outcome, after it was applied and published.
    Reply {
        /// Who waits.
        slot: Slot,
        /// What came of it.
        reply: Reply,
    },
    /// Reads with tickets up to this one may be served from a view that has applied `index`.
    ReadReady {
        /// As asked.
        up_to: u64,
        /// The point they must have reached.
        index: LogIndex,
    },
    /// The page file is as small as it gets.
    Defragmented {
        /// Who asked.
        slot: Slot,
    },
    /// What came of a [`LeaseRequest`].
    Lease {
        /// Who waits.
        slot: Slot,
        /// What came of it.
        answer: LeaseAnswer,
    },
    /// The member has published itself: accept clients.
    Serve,
}

/// From a front, by the ring for leases. Answered by one [`ToFront::Lease`], or not at all: once
/// its time is up, the front answers by itself.
#[derive(Debug)]
pub struct LeaseRequest {
    /// Who waits.
    pub slot: Slot,
    /// When the front answers by itself.
    pub deadline_ms: u64,
    /// What it wants to know.
    pub query: LeaseQuery,
    /// Who asks; `None` if nobody had to say so, or among members.
    pub asker: Option<Asker>,
}

/// Who asks for something, while authentication is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// The user.
    pub name: Arc<str>,
    /// The revision of the auth store by which he is who he says.
    pub revision: u64,
}

impl Asker {
    /// As checks take it.
    pub fn author(&self) -> Author<'_> {
        Author { name: &self.name, revision: self.revision }
    }
}

/// What only the leader's lessor can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseQuery {
    /// A renewal.
    Renew {
        /// The lease.
        id: i64,
    },
    /// A lease's times.
    TimeToLive {
        /// The lease.
        id: i64,
        /// The attached keys too.
        keys: bool,
    },
    /// All leases.
    List,
}

/// What came of a [`LeaseQuery`].
#[derive(Debug, Clone)]
pub enum LeaseAnswer {
    /// It was renewed.
    Renewed {
        /// Its TTL in seconds; 0 if there is no such lease.
        ttl_s: i64,
    },
    /// Its times.
    TimeToLive {
        /// `None` if there is no such lease.
        times: Option<TimeToLive>,
        /// In order, if asked for: fields of a LeaseTimeToLiveResponse.
        keys: Pieces,
    },
    /// All leases, those that expire first in front: fields of a LeaseLeasesResponse.
    Leases(Pieces),
    /// Refused.
    Refused(Status),
}

/// What came of a proposal.
#[derive(Debug)]
pub enum Reply {
    /// The response is a header and nothing else, as that of a put without `prev_kv`: the front
    /// writes it.
    Header {
        /// The revision in it.
        revision: i64,
    },
    /// The response message.
    Message(Vec<u8>),
    /// The response refers to stored values, which the front reads as it sends them.
    Long(Box<Answer>),
    /// Refused.
    Refused(Status),
}
