//! What a server answered, decoded, with everything that may differ between two correct servers
//! replaced by what it stands for: cluster, member, term, URLs, ids of leases that the server
//! chose, sizes and log indexes. What is left must be equal to the last field.
//!
//! Used by the runner. It must never hide a difference that is not in the table of the test's head.

use std::time::Duration;

use bytes::Bytes;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::pb::mvccpb;
use pb::response_op::Response;
use prost::Message as _;

use super::client::Item;
use super::program::{Known, lease, readable};

/// A decoded message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    Range(pb::RangeResponse),
    Chunk(pb::RangeStreamResponse),
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(pb::CompactionResponse),
    Grant(pb::LeaseGrantResponse),
    Revoke(pb::LeaseRevokeResponse),
    TimeToLive(pb::LeaseTimeToLiveResponse),
    Leases(pb::LeaseLeasesResponse),
    KeepAlive(pb::LeaseKeepAliveResponse),
    Watch(pb::WatchResponse),
    Status(pb::StatusResponse),
    HashKv(pb::HashKvResponse),
    Alarm(pb::AlarmResponse),
    Members(pb::MemberListResponse),
    Hash(pb::HashResponse),
    Defragment(pb::DefragmentResponse),
    MoveLeader(pb::MoveLeaderResponse),
    /// No message of its method.
    Malformed(Vec<u8>),
}

/// Messages, then the status.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) messages: Vec<Message>,
    /// gRPC's number, or -1 if none came.
    pub(crate) code: i32,
    pub(crate) text: String,
}

pub(crate) const RANGE: &str = "/etcdserverpb.KV/Range";
pub(crate) const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
pub(crate) const PUT: &str = "/etcdserverpb.KV/Put";
pub(crate) const DELETE: &str = "/etcdserverpb.KV/DeleteRange";
pub(crate) const TXN: &str = "/etcdserverpb.KV/Txn";
pub(crate) const COMPACT: &str = "/etcdserverpb.KV/Compact";
pub(crate) const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
pub(crate) const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
pub(crate) const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
pub(crate) const LEASES: &str = "/etcdserverpb.Lease/LeaseLeases";
pub(crate) const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
pub(crate) const WATCH: &str = "/etcdserverpb.Watch/Watch";
pub(crate) const STATUS: &str = "/etcdserverpb.Maintenance/Status";
pub(crate) const HASH_KV: &str = "/etcdserverpb.Maintenance/HashKV";
pub(crate) const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
pub(crate) const MEMBERS: &str = "/etcdserverpb.Cluster/MemberList";
pub(crate) const HASH: &str = "/etcdserverpb.Maintenance/Hash";
pub(crate) const DEFRAGMENT: &str = "/etcdserverpb.Maintenance/Defragment";
pub(crate) const MOVE_LEADER: &str = "/etcdserverpb.Maintenance/MoveLeader";

impl Answer {
    pub(crate) fn new(path: &str, items: Vec<Item>) -> Self {
        let mut answer = Self { messages: Vec::new(), code: -1, text: "no status".to_owned() };
        for item in items {
            match item {
                Item::Message(bytes) => answer.messages.push(Message::decode(path, &bytes)),
                Item::End(code, text) => (answer.code, answer.text) = (code, text),
            }
        }
        answer
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.code == 0
    }

    /// The revision in the last header.
    pub(crate) fn revision(&mut self) -> Option<i64> {
        let header = self.messages.last_mut()?.header()?.as_ref()?;
        Some(header.revision)
    }
}

/// For people.
impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for message in &self.messages {
            writeln!(f, "{}", readable(&format!("{message:?}")))?;
        }
        write!(f, "code {}: {:?}", self.code, self.text)
    }
}

impl Message {
    pub(crate) fn decode(path: &str, bytes: &Bytes) -> Self {
        let decoded = match path {
            RANGE => pb::RangeResponse::decode(&bytes[..]).map(Self::Range),
            RANGE_STREAM => pb::RangeStreamResponse::decode(&bytes[..]).map(Self::Chunk),
            PUT => pb::PutResponse::decode(&bytes[..]).map(Self::Put),
            DELETE => pb::DeleteRangeResponse::decode(&bytes[..]).map(Self::Delete),
            TXN => pb::TxnResponse::decode(&bytes[..]).map(Self::Txn),
            COMPACT => pb::CompactionResponse::decode(&bytes[..]).map(Self::Compact),
            GRANT => pb::LeaseGrantResponse::decode(&bytes[..]).map(Self::Grant),
            REVOKE => pb::LeaseRevokeResponse::decode(&bytes[..]).map(Self::Revoke),
            TIME_TO_LIVE => pb::LeaseTimeToLiveResponse::decode(&bytes[..]).map(Self::TimeToLive),
            LEASES => pb::LeaseLeasesResponse::decode(&bytes[..]).map(Self::Leases),
            KEEP_ALIVE => pb::LeaseKeepAliveResponse::decode(&bytes[..]).map(Self::KeepAlive),
            WATCH => pb::WatchResponse::decode(&bytes[..]).map(Self::Watch),
            STATUS => pb::StatusResponse::decode(&bytes[..]).map(Self::Status),
            HASH_KV => pb::HashKvResponse::decode(&bytes[..]).map(Self::HashKv),
            ALARM => pb::AlarmResponse::decode(&bytes[..]).map(Self::Alarm),
            MEMBERS => pb::MemberListResponse::decode(&bytes[..]).map(Self::Members),
            HASH => pb::HashResponse::decode(&bytes[..]).map(Self::Hash),
            DEFRAGMENT => pb::DefragmentResponse::decode(&bytes[..]).map(Self::Defragment),
            MOVE_LEADER => pb::MoveLeaderResponse::decode(&bytes[..]).map(Self::MoveLeader),
            _ => return Self::Malformed(bytes.to_vec()),
        };
        decoded.unwrap_or_else(|_| Self::Malformed(bytes.to_vec()))
    }

    pub(crate) fn header(&mut self) -> Option<&mut Option<pb::ResponseHeader>> {
        Some(match self {
            Self::Range(response) => &mut response.header,
            Self::Chunk(response) => &mut response.range_response.as_mut()?.header,
            Self::Put(response) => &mut response.header,
            Self::Delete(response) => &mut response.header,
            Self::Txn(response) => &mut response.header,
            Self::Compact(response) => &mut response.header,
            Self::Grant(response) => &mut response.header,
            Self::Revoke(response) => &mut response.header,
            Self::TimeToLive(response) => &mut response.header,
            Self::Leases(response) => &mut response.header,
            Self::KeepAlive(response) => &mut response.header,
            Self::Watch(response) => &mut response.header,
            Self::Status(response) => &mut response.header,
            Self::HashKv(response) => &mut response.header,
            Self::Alarm(response) => &mut response.header,
            Self::Members(response) => &mut response.header,
            Self::Hash(response) => &mut response.header,
            Self::Defragment(response) => &mut response.header,
            Self::MoveLeader(response) => &mut response.header,
            Self::Malformed(_) => return None,
        })
    }
}

/// Who a server is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Identity {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
    pub(crate) term: u64,
    pub(crate) client_url: String,
    pub(crate) peer_url: String,
}

/// What a number of the server's own is replaced by; 0 stays 0, and a wrong number stays too.
const OWN: u64 = 1;
/// How much less than granted may remain of a lease.
const LEASE_SLACK: Duration = Duration::from_secs(300);

fn own(number: &mut u64, of_server: u64) {
    if *number == of_server {
        *number = OWN;
    }
}

impl Identity {
    /// Replaces what is the server's own. `hashes` says that stored bytes are comparable.
    pub(crate) fn normalise(&self, message: &mut Message, known: &Known, hashes: bool) {
        if let Some(Some(header)) = message.header() {
            self.header(header);
        }
        let ids = Ids { known };
        match message {
            Message::Range(response) => ids.range(response),
            Message::Chunk(response) => {
                if let Some(response) = &mut response.range_response {
                    ids.range(response);
                }
            }
            Message::Put(response) => ids.kv(response.prev_kv.as_mut()),
            Message::Delete(response) => ids.kv(&mut response.prev_kvs),
            Message::Txn(response) => self.txn(response, &ids),
            Message::Grant(response) => ids.lease(&mut response.id),
            Message::TimeToLive(response) => {
                ids.lease(&mut response.id);
                let gone = response.granted_ttl - response.ttl;
                let slack = i64::try_from(LEASE_SLACK.as_secs()).expect("short");
                if (0..slack).contains(&gone) {
                    response.ttl = response.granted_ttl;
                }
            }
            Message::Leases(response) => {
                response.leases.iter_mut().for_each(|status| ids.lease(&mut status.id));
            }
            Message::KeepAlive(response) => ids.lease(&mut response.id),
            Message::Watch(response) => {
                for event in &mut response.events {
                    ids.kv(event.kv.as_mut());
                    ids.kv(event.prev_kv.as_mut());
                }
            }
            Message::Status(response) => self.status(response),
            Message::HashKv(response) if !hashes => response.hash = 0,
            Message::Alarm(response) => {
                response.alarms.iter_mut().for_each(|alarm| own(&mut alarm.member_id, self.member));
            }
            Message::Members(response) => self.members(response),
            // What only etcd stores is hashed with the rest.
            Message::Hash(response) => response.hash = 0,
            Message::Compact(_)
            | Message::Revoke(_)
            | Message::HashKv(_)
            | Message::Defragment(_)
            | Message::MoveLeader(_)
            | Message::Malformed(_) => {}
        }
    }

    fn header(&self, header: &mut pb::ResponseHeader) {
        own(&mut header.cluster_id, self.cluster);
        own(&mut header.member_id, self.member);
        own(&mut header.raft_term, self.term);
    }

    fn txn(&self, response: &mut pb::TxnResponse, ids: &Ids<'_>) {
        for op in &mut response.responses {
            match &mut op.response {
                Some(Response::ResponseRange(response)) => ids.range(response),
                Some(Response::ResponsePut(response)) => ids.kv(response.prev_kv.as_mut()),
                Some(Response::ResponseDeleteRange(response)) => ids.kv(&mut response.prev_kvs),
                Some(Response::ResponseTxn(response)) => self.txn(response, ids),
                None => {}
            }
        }
    }

    /// Sizes and indexes are each server's own, but must make sense.
    fn status(&self, response: &mut pb::StatusResponse) {
        own(&mut response.leader, self.member);
        own(&mut response.raft_term, self.term);
        if response.raft_applied_index > 0 && response.raft_applied_index <= response.raft_index {
            (response.raft_applied_index, response.raft_index) = (OWN, OWN);
        }
        if response.db_size_in_use > 0 && response.db_size_in_use <= response.db_size {
            (response.db_size_in_use, response.db_size) = (1, 1);
        }
    }

    fn members(&self, response: &mut pb::MemberListResponse) {
        for member in &mut response.members {
            own(&mut member.id, self.member);
            for url in &mut member.client_ur_ls {
                *url = url.replace(&self.client_url, "client");
            }
            for url in &mut member.peer_ur_ls {
                *url = url.replace(&self.peer_url, "peer");
            }
        }
    }
}

/// The leases whose ids the server chose.
struct Ids<'a> {
    known: &'a Known,
}

impl Ids<'_> {
    fn lease(&self, id: &mut i64) {
        if let Some((slot, _)) = self.known.leases.iter().rev().find(|(_, other)| other == id) {
            *id = lease(*slot);
        }
    }

    fn kv<'k>(&self, kvs: impl IntoIterator<Item = &'k mut mvccpb::KeyValue>) {
        for kv in kvs {
            if kv.lease != 0 {
                self.lease(&mut kv.lease);
            }
        }
    }

    fn range(&self, response: &mut pb::RangeResponse) {
        self.kv(&mut response.kvs);
    }
}
