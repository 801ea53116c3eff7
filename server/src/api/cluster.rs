//! The Cluster service: the list of members.

use etcore_proto::grpc::Message;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message as _;

use super::Cx;
use super::call::{Call, Outcome, decode};
use super::pending::CallKind;
use crate::cluster::member::Member;
use crate::replies::CallId;

impl Cx<'_> {
    pub(super) fn member_list(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::MemberListRequest = decode(message.into_bytes())?;
        if request.linearizable {
            return self.take_ticket(call, CallKind::MemberList);
        }
        self.answer_member_list(call.id);
        Ok(())
    }

    pub(super) fn answer_member_list(&mut self, call: CallId) {
        let header = self.api.shared.header(0);
        let response = pb::MemberListResponse {
            header: Some(header.to_pb()),
            members: self.api.reads.view().members.iter().map(Member::to_pb).collect(),
        };
        self.out.reply(call, &response.encode_to_vec());
    }
}
