//! What a client puts on the wire and reads from it: requests of histories as calls of etcd's API.
//!
//! Used by the clients. It must never make up an answer: what cannot be decoded is a violation.

use etcore_history::types::{Answer, Get, Request};
use etcore_proto::grpc::{CallOptions, Client, ClientConfig, MethodHandle};
use etcore_proto::h2::{Budget, StreamId};
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message;

use crate::cluster::change::Change;

/// The calls that clients make.
#[derive(Debug, Clone, Copy)]
struct Methods {
    range: MethodHandle,
    range_stream: MethodHandle,
    time_to_live: MethodHandle,
    put: MethodHandle,
    delete: MethodHandle,
    txn: MethodHandle,
    compact: MethodHandle,
    grant: MethodHandle,
    revoke: MethodHandle,
    keep_alive: MethodHandle,
    hash: MethodHandle,
    transfer: MethodHandle,
    member_add: MethodHandle,
    member_promote: MethodHandle,
    member_remove: MethodHandle,
    watch: MethodHandle,
}

/// A client's end of a connection.
pub(super) struct Wire {
    pub(super) connection: u64,
    pub(super) grpc: Client,
    methods: Methods,
}

impl Wire {
    pub(super) fn new(connection: u64) -> Self {
        let mut grpc = Client::new(ClientConfig::default(), &Budget::new(64 << 20, 64 << 20));
        let mut method = |path: &str| grpc.method(path);
        let methods = Methods {
            range: method("/etcdserverpb.KV/Range"),
            range_stream: method("/etcdserverpb.KV/RangeStream"),
            time_to_live: method("/etcdserverpb.Lease/LeaseTimeToLive"),
            put: method("/etcdserverpb.KV/Put"),
            delete: method("/etcdserverpb.KV/DeleteRange"),
            txn: method("/etcdserverpb.KV/Txn"),
            compact: method("/etcdserverpb.KV/Compact"),
            grant: method("/etcdserverpb.Lease/LeaseGrant"),
            revoke: method("/etcdserverpb.Lease/LeaseRevoke"),
            keep_alive: method("/etcdserverpb.Lease/LeaseKeepAlive"),
            hash: method("/etcdserverpb.Maintenance/HashKV"),
            transfer: method("/etcdserverpb.Maintenance/MoveLeader"),
            member_add: method("/etcdserverpb.Cluster/MemberAdd"),
            member_promote: method("/etcdserverpb.Cluster/MemberPromote"),
            member_remove: method("/etcdserverpb.Cluster/MemberRemove"),
            watch: method("/etcdserverpb.Watch/Watch"),
        };
        Self { connection, grpc, methods }
    }

    /// Starts a call; `None` if the connection takes none.
    pub(super) fn start(&mut self, request: &Request) -> Option<StreamId> {
        let Methods { range, put, delete, txn, compact, grant, revoke, .. } = self.methods;
        let (method, message) = match request {
            Request::Get(get) => (range, pb::RangeRequest::from(get).encode_to_vec()),
            Request::Put(request) => (put, pb::PutRequest::from(request).encode_to_vec()),
            Request::Delete(request) => {
                (delete, pb::DeleteRangeRequest::from(request).encode_to_vec())
            }
            Request::Txn(request) => (txn, pb::TxnRequest::from(request).encode_to_vec()),
            Request::Grant { id, ttl } => {
                (grant, pb::LeaseGrantRequest { id: *id, ttl: *ttl }.encode_to_vec())
            }
            Request::Revoke { id } => (revoke, pb::LeaseRevokeRequest { id: *id }.encode_to_vec()),
            Request::Compact { revision } => {
                let physical = revision % 4 == 1;
                let request = pb::CompactionRequest { revision: *revision, physical };
                (compact, request.encode_to_vec())
            }
            Request::KeepAlive { id } => return self.keep_alive(*id),
        };
        self.grpc.start_unary(method, &CallOptions::default(), &message).ok()
    }

    /// Starts a Range whose answer comes in pieces.
    pub(super) fn start_range_stream(&mut self, get: &Get) -> Option<StreamId> {
        let message = pb::RangeRequest::from(get).encode_to_vec();
        self.start_one_sided(self.methods.range_stream, &message)
    }

    /// Asks how long a lease has left.
    pub(super) fn start_time_to_live(&mut self, id: i64) -> Option<StreamId> {
        let message = pb::LeaseTimeToLiveRequest { id, keys: true }.encode_to_vec();
        self.grpc.start_unary(self.methods.time_to_live, &CallOptions::default(), &message).ok()
    }

    fn keep_alive(&mut self, id: i64) -> Option<StreamId> {
        let message = pb::LeaseKeepAliveRequest { id }.encode_to_vec();
        self.start_one_sided(self.methods.keep_alive, &message)
    }

    /// A streaming call with one message.
    fn start_one_sided(&mut self, method: MethodHandle, message: &[u8]) -> Option<StreamId> {
        let stream = self.grpc.start_stream(method, &CallOptions::default()).ok()?;
        self.grpc.send_message(stream, message).ok()?;
        self.grpc.half_close(stream).ok()?;
        Some(stream)
    }

    /// Asks for the hash up to a revision.
    pub(super) fn start_hash(&mut self, revision: i64) -> Option<StreamId> {
        let message = pb::HashKvRequest { revision }.encode_to_vec();
        self.grpc.start_unary(self.methods.hash, &CallOptions::default(), &message).ok()
    }

    /// Asks the leader to let another member lead.
    pub(super) fn start_transfer(&mut self, target_id: u64) -> Option<StreamId> {
        let message = pb::MoveLeaderRequest { target_id }.encode_to_vec();
        self.grpc.start_unary(self.methods.transfer, &CallOptions::default(), &message).ok()
    }

    /// Asks for other members.
    pub(super) fn start_change(&mut self, change: &Change) -> Option<StreamId> {
        let Methods { member_add, member_promote, member_remove, .. } = self.methods;
        let (method, message) = match change {
            Change::Add(member) => {
                let peer_ur_ls = member.peer_urls.clone();
                let request = pb::MemberAddRequest { peer_ur_ls, is_learner: member.is_learner };
                (member_add, request.encode_to_vec())
            }
            Change::Promote(id) => {
                (member_promote, pb::MemberPromoteRequest { id: *id }.encode_to_vec())
            }
            Change::Remove(id) => {
                (member_remove, pb::MemberRemoveRequest { id: *id }.encode_to_vec())
            }
            Change::Update { .. } => return None,
        };
        self.grpc.start_unary(method, &CallOptions::default(), &message).ok()
    }

    /// Opens a stream of watches with one watch.
    pub(super) fn start_watch(&mut self, create: pb::WatchCreateRequest) -> Option<StreamId> {
        let stream = self.grpc.start_stream(self.methods.watch, &CallOptions::default()).ok()?;
        let request = pb::watch_request::RequestUnion::CreateRequest(create);
        self.ask_watch(stream, request).then_some(stream)
    }

    /// One more request on it; false if it is over.
    pub(super) fn ask_watch(
        &mut self,
        stream: StreamId,
        request: pb::watch_request::RequestUnion,
    ) -> bool {
        let message = pb::WatchRequest { request_union: Some(request) }.encode_to_vec();
        self.grpc.send_message(stream, &message).is_ok()
    }
}

/// The answer to a request.
pub(super) fn decode(request: &Request, message: &[u8]) -> Result<Answer, prost::DecodeError> {
    Ok(match request {
        Request::Get(_) => pb::RangeResponse::decode(message)?.into(),
        Request::Put(_) => pb::PutResponse::decode(message)?.into(),
        Request::Delete(_) => pb::DeleteRangeResponse::decode(message)?.into(),
        Request::Txn(_) => pb::TxnResponse::decode(message)?.into(),
        Request::Grant { .. } => pb::LeaseGrantResponse::decode(message)?.into(),
        Request::Revoke { .. } => pb::LeaseRevokeResponse::decode(message)?.into(),
        Request::KeepAlive { .. } => pb::LeaseKeepAliveResponse::decode(message)?.into(),
        Request::Compact { .. } => pb::CompactionResponse::decode(message)?.into(),
    })
}
