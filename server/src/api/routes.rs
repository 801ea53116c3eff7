//! The table of methods: everything that is known of a method before its service runs, and the one
//! gate that every call goes through.
//!
//! A new method is one line here and a function in its service's file. The transport gets paths and
//! kinds from the table, the gate what is allowed to whom.

use bytes::Bytes;
use etcore_proto::decode::Flat;
use etcore_proto::error::EtcdError;
use etcore_proto::grpc::{Message, MethodId, RequestMeta, Routes};
use etcore_proto::pb::etcdserverpb as pb;

use super::call::{Call, Outcome, Refusal, decode};
use super::{Cx, Services, health, kv};
use crate::auth;
use crate::entry::field;
use crate::replies::{CallId, Replies};

/// What a caller must be allowed when the cluster asks who he is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permission {
    /// Nothing: it says nothing of what is stored.
    None,
    /// Whatever the request reads or writes; its service knows.
    ByRequest,
}

/// Whether a learner serves it (etcd `isRPCSupportedForLearner`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnLearner {
    No,
    Yes,
    /// Only what reads this member's own state.
    IfSerializable,
}

/// How a method is served.
enum Serve {
    /// One request, and one answer or a stream of them.
    Unary {
        /// Whether a message is a request of the method; asked only before a call is refused for
        /// another reason, as grpc-go decodes before it asks anybody.
        is_request: fn(Message) -> Outcome,
        call: fn(&mut Cx<'_>, Call, Message) -> Outcome,
    },
    /// One request, one answer; the request becomes an entry of the log as it is.
    Proposal {
        /// The request's field of InternalRaftRequest.
        field: u32,
        is_request: fn(Message) -> Outcome,
        /// Decodes it as apply will, and refuses what apply should not see.
        check: fn(Bytes) -> Outcome,
    },
    /// Streams both ways. `open` has the gate's verdict to tell.
    Stream { open: fn(&mut Cx<'_>, CallId, &RequestMeta), message: fn(&mut Cx<'_>, CallId, Bytes) },
}

struct Method {
    path: &'static str,
    serve: Serve,
    permission: Permission,
    on_learner: OnLearner,
}

impl Method {
    const fn new(path: &'static str, serve: Serve) -> Self {
        let (permission, on_learner) = (Permission::ByRequest, OnLearner::No);
        Self { path, serve, permission, on_learner }
    }

    const fn for_everybody(self) -> Self {
        Self { permission: Permission::None, ..self }
    }

    const fn on_learner(self, on_learner: OnLearner) -> Self {
        Self { on_learner, ..self }
    }
}

fn is<M: Flat>(message: Message) -> Outcome {
    decodes::<M>(message.into_bytes())
}

fn decodes<M: Flat>(message: Bytes) -> Outcome {
    decode::<M>(message).map(drop)
}

/// Requests without fields: what is in them must be protobuf.
fn is_empty(message: Message) -> Outcome {
    is::<pb::StatusRequest>(message)
}

macro_rules! unary {
    ($path:literal, $is_request:expr, $call:ident) => {
        Method::new(
            $path,
            Serve::Unary {
                is_request: $is_request,
                call: |cx, call, message| cx.$call(call, message),
            },
        )
    };
}

macro_rules! stream {
    ($path:literal, $open:ident, $message:ident) => {
        Method::new(
            $path,
            Serve::Stream {
                open: |cx, call, meta| cx.$open(call, meta),
                message: |cx, call, message| cx.$message(call, message),
            },
        )
    };
}

macro_rules! proposal {
    ($path:literal, $field:expr, $request:ty, $check:expr) => {
        Method::new(
            $path,
            Serve::Proposal { field: $field, is_request: is::<$request>, check: $check },
        )
    };
}

/// All methods; a [`MethodId`] is a place in it.
const METHODS: &[Method] = &[
    unary!("/etcdserverpb.KV/Range", is::<pb::RangeRequest>, range)
        .on_learner(OnLearner::IfSerializable),
    // A stream of answers: grpc-go reads the request after it has asked what refuses calls for
    // their heads.
    unary!("/etcdserverpb.KV/RangeStream", |_| Ok(()), range_stream),
    unary!("/etcdserverpb.KV/Put", kv::is_put, put),
    proposal!(
        "/etcdserverpb.KV/DeleteRange",
        field::DELETE_RANGE,
        pb::DeleteRangeRequest,
        kv::check_delete_range
    ),
    unary!("/etcdserverpb.KV/Txn", kv::is_txn, txn),
    proposal!(
        "/etcdserverpb.KV/Compact",
        field::COMPACTION,
        pb::CompactionRequest,
        decodes::<pb::CompactionRequest>
    ),
    unary!("/etcdserverpb.Lease/LeaseGrant", is::<pb::LeaseGrantRequest>, lease_grant),
    proposal!(
        "/etcdserverpb.Lease/LeaseRevoke",
        field::LEASE_REVOKE,
        pb::LeaseRevokeRequest,
        decodes::<pb::LeaseRevokeRequest>
    ),
    unary!(
        "/etcdserverpb.Lease/LeaseTimeToLive",
        is::<pb::LeaseTimeToLiveRequest>,
        lease_time_to_live
    ),
    unary!("/etcdserverpb.Lease/LeaseLeases", is_empty, lease_leases),
    stream!("/etcdserverpb.Lease/LeaseKeepAlive", open_lease_stream, lease_stream_message),
    stream!("/etcdserverpb.Watch/Watch", open_watch, watch_message),
    unary!("/etcdserverpb.Auth/AuthStatus", is_empty, auth_status),
    unary!("/etcdserverpb.Cluster/MemberList", is::<pb::MemberListRequest>, member_list),
    unary!("/etcdserverpb.Maintenance/Status", is_empty, status)
        .for_everybody()
        .on_learner(OnLearner::Yes),
    unary!("/etcdserverpb.Maintenance/Alarm", is::<pb::AlarmRequest>, alarm),
    unary!("/etcdserverpb.Maintenance/Hash", is_empty, hash),
    unary!("/etcdserverpb.Maintenance/HashKV", is::<pb::HashKvRequest>, hash_kv),
    unary!("/etcdserverpb.Maintenance/Defragment", is_empty, defragment),
    unary!("/etcdserverpb.Maintenance/MoveLeader", is::<pb::MoveLeaderRequest>, move_leader),
    unary!("/grpc.health.v1.Health/Check", health::is_check, health_check).for_everybody(),
    stream!("/grpc.health.v1.Health/Watch", open_health_watch, health_watch),
    unary!("/grpc.health.v1.Health/List", is_empty, health_list).for_everybody(),
];

fn method(id: MethodId) -> &'static Method {
    &METHODS[usize::from(id.0)]
}

/// The methods this server has.
///
/// # Panics
/// Never: the table is well-formed, which a test proves.
pub fn routes() -> Routes {
    let methods = METHODS.iter().enumerate().map(|(at, method)| {
        let id = MethodId(u16::try_from(at).expect("some dozens of methods"));
        (method.path, id, matches!(method.serve, Serve::Stream { .. }))
    });
    Routes::new(methods).expect("the table is well-formed")
}

/// A unary call that has come whole.
pub struct Unary {
    /// The call.
    pub call: Call,
    /// Its method.
    pub method: MethodId,
    /// What came with it.
    pub meta: RequestMeta,
    /// The request.
    pub message: Message,
}

impl Services {
    /// A unary call came.
    pub fn unary(&mut self, out: &mut dyn Replies, unary: Unary) {
        let Unary { call, method: id, meta, message } = unary;
        let id_of_call = call.id;
        let method = method(id);
        let outcome = match self.gate(method, &meta, &message) {
            Err(refused) => is_request_of(method, message).and(Err(refused)),
            Ok(()) => {
                let mut cx = self.with(out);
                match &method.serve {
                    Serve::Unary { call: serve, .. } => serve(&mut cx, call, message),
                    Serve::Proposal { field, check, .. } => {
                        let message = message.into_bytes();
                        check(message.clone()).and_then(|()| cx.propose(call, *field, &message))
                    }
                    // The transport makes streams of these.
                    Serve::Stream { .. } => Ok(()),
                }
            }
        };
        if let Err(Refusal::Status(status)) = outcome {
            out.fail(id_of_call, &status);
        }
    }

    /// A streaming call was opened.
    pub fn stream_opened(
        &mut self,
        out: &mut dyn Replies,
        call: CallId,
        id: MethodId,
        meta: &RequestMeta,
    ) {
        if let Serve::Stream { open, .. } = &method(id).serve {
            open(&mut self.with(out), call, meta);
        }
    }

    /// A message came on a streaming call, which may have ended.
    pub fn stream_message(
        &mut self,
        out: &mut dyn Replies,
        call: CallId,
        id: MethodId,
        message: Bytes,
    ) {
        if let Serve::Stream { message: take, .. } = &method(id).serve {
            take(&mut self.with(out), call, message);
        }
    }

    /// Every unary call goes through here before its service sees it. Its deadline, and that its
    /// message is not too large, are the transport's; what is proposed while the member stops is
    /// refused where it would be proposed.
    fn gate(&self, method: &Method, meta: &RequestMeta, message: &Message) -> Result<(), Refusal> {
        let on_learner = match method.on_learner {
            OnLearner::Yes => true,
            OnLearner::No => !self.is_learner(),
            OnLearner::IfSerializable => !self.is_learner() || kv::is_serializable(message),
        };
        if !on_learner {
            return Err(EtcdError::NotSupportedForLearner.into());
        }
        self.head_gate(meta)?;
        if method.permission != Permission::None && self.reads.view().auth.is_enabled() {
            return Err(Refusal::Status(auth::not_served()));
        }
        Ok(())
    }

    /// Why a call is refused for what its head says, whatever it asks for.
    fn head_gate(&self, meta: &RequestMeta) -> Result<(), EtcdError> {
        let version = meta.client_api_version.as_deref().unwrap_or_default();
        if std::str::from_utf8(version).is_err() {
            return Err(EtcdError::InvalidClientApiVersion);
        }
        if meta.has_leader && !self.shared.has_leader() {
            return Err(EtcdError::NoLeader);
        }
        Ok(())
    }

    /// The gate of streaming calls; their services ask who the caller is where they answer.
    pub(super) fn stream_gate(&self, meta: &RequestMeta) -> Result<(), EtcdError> {
        if self.is_learner() {
            return Err(EtcdError::NotSupportedForLearner);
        }
        self.head_gate(meta)
    }

    fn is_learner(&self) -> bool {
        self.reads.view().is_learner
    }
}

/// A message that is no request of its method is told so, whatever else it is refused for.
fn is_request_of(method: &Method, message: Message) -> Outcome {
    match &method.serve {
        Serve::Unary { is_request, .. } | Serve::Proposal { is_request, .. } => is_request(message),
        Serve::Stream { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_methods_is_well_formed() {
        routes();
    }
}
