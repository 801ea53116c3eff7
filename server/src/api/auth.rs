//! The Auth service, as far as it is served: AuthStatus. Users, roles and logins are not.
//!
//! etcd has the question applied like a write; here it reads at a linearizable point, which tells
//! the same.

use etcore_proto::grpc::Message;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message as _;

use super::Cx;
use super::call::{Call, Outcome, decode};
use super::pending::CallKind;
use crate::replies::CallId;

impl Cx<'_> {
    pub(super) fn auth_status(&mut self, call: Call, message: Message) -> Outcome {
        decode::<pb::AuthStatusRequest>(message.into_bytes())?;
        self.take_ticket(call, CallKind::AtPoint(answer_status))
    }
}

fn answer_status(cx: &mut Cx<'_>, call: CallId) {
    let view = cx.api.reads.view();
    let response = pb::AuthStatusResponse {
        header: Some(cx.api.shared.header(view.store.revision.0).to_pb()),
        enabled: view.auth.is_enabled(),
        auth_revision: view.auth.revision(),
    };
    cx.out.reply(call, &response.encode_to_vec());
}
