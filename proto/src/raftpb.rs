//! The messages of etcd's raft (`raftpb`) and write-ahead log (`walpb`), and the log's metadata.
//!
//! Called by `raftlog` (log records, peer messages) and by the offline tools. Field numbers and
//! presence are etcd's: its Go structs write every scalar they set, also a zero one, hence the
//! `Option`s. Nothing here validates what a message means; that is the reader's business.

use bytes::Bytes;

/// One raft log entry.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Entry {
    /// An [`EntryType`].
    #[prost(enumeration = "EntryType", optional, tag = "1")]
    pub r#type: Option<i32>,
    /// Term in which the entry was proposed.
    #[prost(uint64, optional, tag = "2")]
    pub term: Option<u64>,
    /// Position in the log, from 1.
    #[prost(uint64, optional, tag = "3")]
    pub index: Option<u64>,
    /// The entry's data as proposed.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub data: Option<Bytes>,
}

/// What [`Entry::data`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum EntryType {
    /// An `InternalRaftRequest`, or nothing.
    EntryNormal = 0,
    /// A [`ConfChange`].
    EntryConfChange = 1,
    /// A [`ConfChangeV2`].
    EntryConfChangeV2 = 2,
}

/// What a member must not forget.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct HardState {
    /// Newest term seen.
    #[prost(uint64, optional, tag = "1")]
    pub term: Option<u64>,
    /// Who got this member's vote in that term; 0 for nobody.
    #[prost(uint64, optional, tag = "2")]
    pub vote: Option<u64>,
    /// Highest index known to be committed.
    #[prost(uint64, optional, tag = "3")]
    pub commit: Option<u64>,
}

/// The voting configuration.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfState {
    /// Members that vote.
    #[prost(uint64, repeated, packed = "false", tag = "1")]
    pub voters: Vec<u64>,
    /// Members that only receive.
    #[prost(uint64, repeated, packed = "false", tag = "2")]
    pub learners: Vec<u64>,
    /// Voters of the outgoing half of a joint configuration.
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    pub voters_outgoing: Vec<u64>,
    /// Outgoing voters that become learners when the joint configuration ends.
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    pub learners_next: Vec<u64>,
    /// The joint configuration ends by itself.
    #[prost(bool, optional, tag = "5")]
    pub auto_leave: Option<bool>,
}

/// Where a snapshot stands in the log.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SnapshotMetadata {
    /// Configuration at that index.
    #[prost(message, optional, tag = "1")]
    pub conf_state: Option<ConfState>,
    /// Last index the snapshot contains.
    #[prost(uint64, optional, tag = "2")]
    pub index: Option<u64>,
    /// Term of that index.
    #[prost(uint64, optional, tag = "3")]
    pub term: Option<u64>,
}

/// A snapshot inside a message.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Snapshot {
    /// State; empty in etcd, whose state travels beside the message.
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub data: Option<Bytes>,
    /// Where it stands.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SnapshotMetadata>,
}

/// One message between members. Fields 13 and 14 (vote, responses) never leave an etcd process and
/// are left out.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Message {
    /// A [`MessageType`].
    #[prost(enumeration = "MessageType", optional, tag = "1")]
    pub r#type: Option<i32>,
    /// Receiver.
    #[prost(uint64, optional, tag = "2")]
    pub to: Option<u64>,
    /// Sender.
    #[prost(uint64, optional, tag = "3")]
    pub from: Option<u64>,
    /// Sender's term; 0 in forwarded proposals and read requests.
    #[prost(uint64, optional, tag = "4")]
    pub term: Option<u64>,
    /// Term of the entry at `index`.
    #[prost(uint64, optional, tag = "5")]
    pub log_term: Option<u64>,
    /// Meaning depends on the type.
    #[prost(uint64, optional, tag = "6")]
    pub index: Option<u64>,
    /// Entries from `index + 1` on, proposals, or a read context.
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<Entry>,
    /// Sender's commit index.
    #[prost(uint64, optional, tag = "8")]
    pub commit: Option<u64>,
    /// Only in `MsgSnap`.
    #[prost(message, optional, tag = "9")]
    pub snapshot: Option<Snapshot>,
    /// A refusal.
    #[prost(bool, optional, tag = "10")]
    pub reject: Option<bool>,
    /// Where the refuser would like to be asked next.
    #[prost(uint64, optional, tag = "11")]
    pub reject_hint: Option<u64>,
    /// Read context of a heartbeat, or the kind of a campaign.
    #[prost(bytes = "bytes", optional, tag = "12")]
    pub context: Option<Bytes>,
}

/// Kinds of [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MessageType {
    /// Local: start an election.
    MsgHup = 0,
    /// Local: send heartbeats.
    MsgBeat = 1,
    /// Proposals.
    MsgProp = 2,
    /// Entries.
    MsgApp = 3,
    /// Answer to `MsgApp`.
    MsgAppResp = 4,
    /// Request for a vote.
    MsgVote = 5,
    /// Answer to `MsgVote`.
    MsgVoteResp = 6,
    /// A snapshot.
    MsgSnap = 7,
    /// Heartbeat.
    MsgHeartbeat = 8,
    /// Answer to `MsgHeartbeat`.
    MsgHeartbeatResp = 9,
    /// Local: a peer was not reached.
    MsgUnreachable = 10,
    /// Local: how a snapshot transfer ended.
    MsgSnapStatus = 11,
    /// Local: count the active members.
    MsgCheckQuorum = 12,
    /// Request to hand leadership over.
    MsgTransferLeader = 13,
    /// Start an election at once.
    MsgTimeoutNow = 14,
    /// Request for a read index.
    MsgReadIndex = 15,
    /// Answer to `MsgReadIndex`.
    MsgReadIndexResp = 16,
    /// Question whether a vote would be given.
    MsgPreVote = 17,
    /// Answer to `MsgPreVote`.
    MsgPreVoteResp = 18,
}

/// What a [`ConfChange`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfChangeType {
    /// Adds a voter or promotes a learner.
    ConfChangeAddNode = 0,
    /// Removes a member.
    ConfChangeRemoveNode = 1,
    /// Changes a member's addresses; raft does not care.
    ConfChangeUpdateNode = 2,
    /// Adds a learner.
    ConfChangeAddLearnerNode = 3,
}

/// A change of one member.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfChange {
    /// etcd's request identifier.
    #[prost(uint64, optional, tag = "1")]
    pub id: Option<u64>,
    /// A [`ConfChangeType`].
    #[prost(enumeration = "ConfChangeType", optional, tag = "2")]
    pub r#type: Option<i32>,
    /// The member.
    #[prost(uint64, optional, tag = "3")]
    pub node_id: Option<u64>,
    /// The member's description as JSON.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub context: Option<Bytes>,
}

/// One step of a [`ConfChangeV2`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfChangeSingle {
    /// A [`ConfChangeType`].
    #[prost(enumeration = "ConfChangeType", optional, tag = "1")]
    pub r#type: Option<i32>,
    /// The member.
    #[prost(uint64, optional, tag = "2")]
    pub node_id: Option<u64>,
}

/// Several changes at once.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfChangeV2 {
    /// 0 automatic, 1 joint and left by itself, 2 joint and left by request.
    #[prost(int32, optional, tag = "1")]
    pub transition: Option<i32>,
    /// The steps.
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<ConfChangeSingle>,
    /// For the proposer.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub context: Option<Bytes>,
}

/// `walpb.Record`: one record of the write-ahead log.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WalRecord {
    /// 1 metadata, 2 entry, 3 hard state, 4 checksum, 5 snapshot mark.
    #[prost(int64, optional, tag = "1")]
    pub r#type: Option<i64>,
    /// Rolling CRC32C over the data of all records so far.
    #[prost(uint32, optional, tag = "2")]
    pub crc: Option<u32>,
    /// A message of the kind that the type names.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub data: Option<Bytes>,
}

/// `walpb.Snapshot`: the log's mark that a snapshot exists.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WalSnapshot {
    /// Last index the snapshot contains.
    #[prost(uint64, optional, tag = "1")]
    pub index: Option<u64>,
    /// Term of that index.
    #[prost(uint64, optional, tag = "2")]
    pub term: Option<u64>,
    /// Configuration at that index; absent in the mark of an empty log.
    #[prost(message, optional, tag = "3")]
    pub conf_state: Option<ConfState>,
}

/// `etcdserverpb.Metadata`: the log's first data record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Metadata {
    /// The member.
    #[prost(uint64, optional, tag = "1")]
    pub node_id: Option<u64>,
    /// The cluster.
    #[prost(uint64, optional, tag = "2")]
    pub cluster_id: Option<u64>,
}
