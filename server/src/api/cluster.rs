//! The Cluster service: the list of members.

use etcore_proto::grpc::Message;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message as _;

use super::Cx;
use super::call::{Call, Outcome, decode};
use super::pending::CallKind;
use crate::cluster::member::Member;

impl Cx<'_> {
    pub(super) fn member_list(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::MemberListRequest = decode(message.into_bytes())?;
        if request.linearizable {
            return self.take_ticket(call, CallKind::AtPoint(answer_member_list));
        }
        answer_member_list(self, &call)
    }
}

fn answer_member_list(cx: &mut Cx<'_>, call: &Call) -> Outcome {
    cx.api.admit_somebody(&call.caller)?;
    let response = pb::MemberListResponse {
        header: Some(cx.api.shared.header(0).to_pb()),
        members: cx.api.reads.view().members.iter().map(Member::to_pb).collect(),
    };
    cx.out.reply(call.id, &response.encode_to_vec());
    Ok(())
}
