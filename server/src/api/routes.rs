//! The table of methods: everything that is known of a method before its service runs, and the one
//! gate that every call goes through.
//!
//! A new method is one line here and a function in its service's file. The transport gets paths and
//! kinds from the table, the gate what is allowed to whom.

use std::sync::Arc;

use bytes::Bytes;
use etcore_proto::decode::Flat;
use etcore_proto::error::EtcdError;
use etcore_proto::grpc::{Message, MethodId, RequestMeta, Routes};
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::pb::{v3electionpb as epb, v3lockpb as lockpb};

use super::call::{Call, Outcome, Refusal, decode};
use super::stats::Asked;
use super::{Cx, Services, health, kv};
use crate::entry::field;
use crate::metrics::{CallType, MethodLabels};
use crate::replies::{CallId, Caller, Replies};

/// What a caller must be allowed when the cluster asks who he is (etcd `v3rpc/maintenance.go`,
/// `v3rpc/key.go`, `apply/auth.go`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permission {
    /// Nothing: it says nothing of what is stored.
    None,
    /// What the service asks for where it answers, or apply does: it depends on the request.
    Later,
    /// The same, and whoever asks is not looked at.
    Login,
    /// To be somebody that the cluster knows.
    Own,
    /// Everything.
    Root,
}

impl Permission {
    fn looks_at_token(self) -> bool {
        !matches!(self, Self::None | Self::Login)
    }
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
    Stream {
        open: fn(&mut Cx<'_>, CallId, &RequestMeta, &Arc<Caller>),
        message: fn(&mut Cx<'_>, CallId, Bytes),
    },
}

struct Method {
    /// What it is called in metrics, its path among it.
    labels: MethodLabels,
    serve: Serve,
    permission: Permission,
    on_learner: OnLearner,
}

impl Method {
    const fn new(path: &'static str, serve: Serve, permission: Permission) -> Self {
        let kind = match serve {
            Serve::Unary { .. } | Serve::Proposal { .. } => CallType::Unary,
            Serve::Stream { .. } => CallType::BidiStream,
        };
        let labels = MethodLabels { path, kind, request: "" };
        Self { labels, serve, permission, on_learner: OnLearner::No }
    }

    const fn on_learner(self, on_learner: OnLearner) -> Self {
        Self { on_learner, ..self }
    }

    /// Its answers are a stream, or its requests alone are none.
    const fn server_stream(self) -> Self {
        let kind = CallType::ServerStream;
        Self { labels: MethodLabels { kind, ..self.labels }, ..self }
    }

    /// etcd times its requests under this name.
    const fn timed(self, request: &'static str) -> Self {
        Self { labels: MethodLabels { request, ..self.labels }, ..self }
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
    ($path:literal, $permission:ident, $is_request:expr, $call:ident) => {
        Method::new(
            $path,
            Serve::Unary {
                is_request: $is_request,
                call: |cx, call, message| cx.$call(call, message),
            },
            Permission::$permission,
        )
    };
}

macro_rules! stream {
    ($path:literal, $permission:ident, $open:ident, $message:ident) => {
        Method::new(
            $path,
            Serve::Stream {
                open: |cx, call, meta, caller| cx.$open(call, meta, caller),
                message: |cx, call, message| cx.$message(call, message),
            },
            Permission::$permission,
        )
    };
}

macro_rules! proposal {
    ($path:expr, $permission:ident, $field:expr, $request:ty, $check:expr) => {
        Method::new(
            $path,
            Serve::Proposal { field: $field, is_request: is::<$request>, check: $check },
            Permission::$permission,
        )
    };
}

/// What an administrator changes users and roles by.
macro_rules! auth {
    ($name:literal, $field:ident, $request:ty) => {
        proposal!(
            concat!("/etcdserverpb.Auth/", $name),
            Later,
            field::$field,
            $request,
            decodes::<$request>
        )
    };
}

/// All methods; a [`MethodId`] is a place in it.
const METHODS: &[Method] = &[
    unary!("/etcdserverpb.KV/Range", Later, is::<pb::RangeRequest>, range)
        .on_learner(OnLearner::IfSerializable)
        .timed("Range"),
    // A stream of answers: grpc-go reads the request after it has asked what refuses calls for
    // their heads.
    unary!("/etcdserverpb.KV/RangeStream", Later, |_| Ok(()), range_stream).server_stream(),
    unary!("/etcdserverpb.KV/Put", Later, kv::is_put, put).timed("Put"),
    proposal!(
        "/etcdserverpb.KV/DeleteRange",
        Later,
        field::DELETE_RANGE,
        pb::DeleteRangeRequest,
        kv::check_delete_range
    )
    .timed("DeleteRange"),
    unary!("/etcdserverpb.KV/Txn", Later, kv::is_txn, txn).timed("Txn"),
    proposal!(
        "/etcdserverpb.KV/Compact",
        Root,
        field::COMPACTION,
        pb::CompactionRequest,
        decodes::<pb::CompactionRequest>
    )
    .timed("Compaction"),
    unary!("/etcdserverpb.Lease/LeaseGrant", Own, is::<pb::LeaseGrantRequest>, lease_grant)
        .timed("LeaseGrant"),
    proposal!(
        "/etcdserverpb.Lease/LeaseRevoke",
        Own,
        field::LEASE_REVOKE,
        pb::LeaseRevokeRequest,
        decodes::<pb::LeaseRevokeRequest>
    )
    .timed("LeaseRevoke"),
    unary!(
        "/etcdserverpb.Lease/LeaseTimeToLive",
        Own,
        is::<pb::LeaseTimeToLiveRequest>,
        lease_time_to_live
    ),
    unary!("/etcdserverpb.Lease/LeaseLeases", Own, is_empty, lease_leases),
    stream!("/etcdserverpb.Lease/LeaseKeepAlive", Later, open_lease_stream, lease_stream_message),
    stream!("/etcdserverpb.Watch/Watch", Later, open_watch, watch_message),
    unary!("/etcdserverpb.Auth/AuthStatus", Later, is_empty, auth_status).timed("AuthStatus"),
    unary!("/etcdserverpb.Auth/Authenticate", Login, is::<pb::AuthenticateRequest>, authenticate)
        .timed("Authenticate"),
    auth!("AuthEnable", AUTH_ENABLE, pb::AuthEnableRequest),
    auth!("AuthDisable", AUTH_DISABLE, pb::AuthDisableRequest),
    unary!("/etcdserverpb.Auth/UserAdd", Later, is::<pb::AuthUserAddRequest>, user_add)
        .timed("AuthUserAdd"),
    unary!("/etcdserverpb.Auth/UserGet", Later, is::<pb::AuthUserGetRequest>, user_get)
        .timed("AuthUserGet"),
    unary!("/etcdserverpb.Auth/UserList", Later, is_empty, user_list).timed("AuthUserList"),
    auth!("UserDelete", AUTH_USER_DELETE, pb::AuthUserDeleteRequest),
    unary!(
        "/etcdserverpb.Auth/UserChangePassword",
        Later,
        is::<pb::AuthUserChangePasswordRequest>,
        change_password
    )
    .timed("AuthUserChangePassword"),
    auth!("UserGrantRole", AUTH_USER_GRANT_ROLE, pb::AuthUserGrantRoleRequest),
    auth!("UserRevokeRole", AUTH_USER_REVOKE_ROLE, pb::AuthUserRevokeRoleRequest),
    auth!("RoleAdd", AUTH_ROLE_ADD, pb::AuthRoleAddRequest),
    unary!("/etcdserverpb.Auth/RoleGet", Later, is::<pb::AuthRoleGetRequest>, role_get)
        .timed("AuthRoleGet"),
    unary!("/etcdserverpb.Auth/RoleList", Later, is_empty, role_list).timed("AuthRoleList"),
    auth!("RoleDelete", AUTH_ROLE_DELETE, pb::AuthRoleDeleteRequest),
    auth!("RoleGrantPermission", AUTH_ROLE_GRANT_PERMISSION, pb::AuthRoleGrantPermissionRequest),
    auth!("RoleRevokePermission", AUTH_ROLE_REVOKE_PERMISSION, pb::AuthRoleRevokePermissionRequest),
    unary!("/etcdserverpb.Cluster/MemberList", Own, is::<pb::MemberListRequest>, member_list),
    unary!("/etcdserverpb.Cluster/MemberAdd", Root, is::<pb::MemberAddRequest>, member_add),
    unary!(
        "/etcdserverpb.Cluster/MemberRemove",
        Root,
        is::<pb::MemberRemoveRequest>,
        member_remove
    ),
    unary!(
        "/etcdserverpb.Cluster/MemberUpdate",
        Root,
        is::<pb::MemberUpdateRequest>,
        member_update
    ),
    unary!(
        "/etcdserverpb.Cluster/MemberPromote",
        Root,
        is::<pb::MemberPromoteRequest>,
        member_promote
    ),
    unary!("/etcdserverpb.Maintenance/Status", Own, is_empty, status).on_learner(OnLearner::Yes),
    unary!("/etcdserverpb.Maintenance/Alarm", Own, is::<pb::AlarmRequest>, alarm).timed("Alarm"),
    unary!("/etcdserverpb.Maintenance/Hash", Root, is_empty, hash),
    unary!("/etcdserverpb.Maintenance/HashKV", Root, is::<pb::HashKvRequest>, hash_kv),
    unary!("/etcdserverpb.Maintenance/Defragment", Root, is_empty, defragment),
    unary!("/etcdserverpb.Maintenance/MoveLeader", Root, is::<pb::MoveLeaderRequest>, move_leader),
    // What these ask of other services is checked there.
    unary!("/v3lockpb.Lock/Lock", None, is::<lockpb::LockRequest>, lock),
    unary!("/v3lockpb.Lock/Unlock", None, is::<lockpb::UnlockRequest>, unlock),
    unary!("/v3electionpb.Election/Campaign", None, is::<epb::CampaignRequest>, campaign),
    unary!("/v3electionpb.Election/Proclaim", None, is::<epb::ProclaimRequest>, proclaim),
    unary!("/v3electionpb.Election/Leader", None, is::<epb::LeaderRequest>, leader),
    unary!("/v3electionpb.Election/Observe", None, is::<epb::LeaderRequest>, observe)
        .server_stream(),
    unary!("/v3electionpb.Election/Resign", None, is::<epb::ResignRequest>, resign),
    unary!("/grpc.health.v1.Health/Check", None, health::is_check, health_check),
    stream!("/grpc.health.v1.Health/Watch", None, open_health_watch, health_watch).server_stream(),
    unary!("/grpc.health.v1.Health/List", None, is_empty, health_list),
];

static LABELS: [MethodLabels; METHODS.len()] = {
    let mut labels = [METHODS[0].labels; METHODS.len()];
    let mut at = 0;
    while at < METHODS.len() {
        labels[at] = METHODS[at].labels;
        at += 1;
    }
    labels
};

/// What the methods are called in metrics, by their numbers.
pub fn method_labels() -> &'static [MethodLabels] {
    &LABELS
}

/// The number of the method of this path.
pub(super) fn method_id(path: &str) -> Option<MethodId> {
    let at = METHODS.iter().position(|method| method.labels.path == path)?;
    u16::try_from(at).ok().map(MethodId)
}

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
        (method.labels.path, id, matches!(method.serve, Serve::Stream { .. }))
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
        let id_of_call = unary.call.id;
        if method(unary.method).permission.looks_at_token()
            && let Some(index) = self.comes_early(&unary.call.caller)
        {
            if let Err(error) = self.put_off(unary, index) {
                out.fail(id_of_call, &error.into());
            }
            return;
        }
        let Unary { mut call, method: id, meta, message } = unary;
        let told = self.telling.of_all().then(|| {
            call.asked = Some(Box::new(Asked::Message(message.clone().into_bytes())));
            call.clone()
        });
        let method = method(id);
        let gate = self.gate(method, &call, &meta, &message);
        // The interceptor of etcd has the request already; a stream's service is to ask for it.
        let has_message = gate.is_ok() || method.labels.kind == CallType::Unary;
        let outcome = match gate {
            Err(refused) => is_request_of(method, message).and(Err(refused)),
            Ok(()) => self.with(out).serve(method, call, message),
        };
        if let Err(Refusal::Malformed(status)) = outcome {
            // grpc-go refuses it before anybody counts.
            return out.refuse(id_of_call, &status);
        }
        self.calls.started(id);
        if has_message {
            self.calls.received(id);
        }
        // The KV service tells of what it answers itself.
        if let Some(told) = told
            && match &outcome {
                Ok(()) => !method.labels.path.starts_with("/etcdserverpb.KV/"),
                Err(refusal) => matches!(refusal, Refusal::Status(_)),
            }
        {
            self.ended(&told, None);
        }
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
        caller: &Arc<Caller>,
    ) {
        self.calls.started(id);
        if let Serve::Stream { open, .. } = &method(id).serve {
            open(&mut self.with(out), call, meta, caller);
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
        self.calls.received(id);
        if let Serve::Stream { message: take, .. } = &method(id).serve {
            take(&mut self.with(out), call, message);
        }
    }

    /// Every unary call goes through here before its service sees it. Its deadline, and that its
    /// message is not too large, are the transport's; what is proposed while the member stops is
    /// refused where it would be proposed.
    fn gate(
        &self,
        method: &Method,
        call: &Call,
        meta: &RequestMeta,
        message: &Message,
    ) -> Result<(), Refusal> {
        let on_learner = match method.on_learner {
            OnLearner::Yes => true,
            OnLearner::No => !self.is_learner(),
            OnLearner::IfSerializable => !self.is_learner() || kv::is_serializable(message),
        };
        if !on_learner {
            return Err(EtcdError::NotSupportedForLearner.into());
        }
        self.head_gate(meta, false)?;
        match method.permission {
            Permission::Own => self.admit_somebody(&call.caller)?,
            Permission::Root if self.auth().is_enabled() => self.admit_admin(&call.caller)?,
            _ => {}
        }
        Ok(())
    }

    /// Why a call is refused for what its head says, whatever it asks for.
    fn head_gate(&self, meta: &RequestMeta, is_stream: bool) -> Result<(), EtcdError> {
        let version = meta.client_api_version.as_deref().map(std::str::from_utf8).transpose();
        let version = version.map_err(|_| EtcdError::InvalidClientApiVersion)?;
        self.calls.client(version, is_stream);
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
        self.head_gate(meta, true)
    }

    fn is_learner(&self) -> bool {
        self.reads.view().is_learner
    }
}

impl Cx<'_> {
    /// A service makes a call of another one for its own caller: it goes through the gate, and
    /// counts for nothing, as with etcd's in-process client.
    pub(super) fn inner_call(&mut self, unary: Unary) {
        let Unary { call, method: id, meta, message } = unary;
        let id_of_call = call.id;
        let method = method(id);
        let outcome = self.api.gate(method, &call, &meta, &message);
        let outcome = outcome.and_then(|()| self.serve(method, call, message));
        if let Err(Refusal::Status(status) | Refusal::Malformed(status)) = outcome {
            self.out.fail(id_of_call, &status);
        }
    }

    fn serve(&mut self, method: &Method, call: Call, message: Message) -> Outcome {
        match &method.serve {
            Serve::Unary { call: serve, .. } => serve(self, call, message),
            Serve::Proposal { field, check, .. } => {
                let message = message.into_bytes();
                check(message.clone()).and_then(|()| self.propose(call, *field, &message))
            }
            // The transport makes streams of these.
            Serve::Stream { .. } => Ok(()),
        }
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
