//! The Cluster service: the list of members, and changes of it.
//!
//! Changes are read here, given their IDs, and passed to the replica, which checks, proposes and
//! answers them.

use std::time::UNIX_EPOCH;

use etcore_proto::error::EtcdError;
use etcore_proto::grpc::Message;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message as _;

use super::Cx;
use super::call::{Call, Outcome, Refusal, decode};
use super::pending::CallKind;
use crate::channel::ToReplica;
use crate::cluster::change::Change;
use crate::cluster::identity;
use crate::cluster::member::Member;
use crate::config::url;

impl Cx<'_> {
    pub(super) fn member_list(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::MemberListRequest = decode(message.into_bytes())?;
        if request.linearizable {
            return self.take_ticket(call, CallKind::AtPoint(answer_member_list));
        }
        answer_member_list(self, &call)
    }

    pub(super) fn member_add(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::MemberAddRequest = decode(message.into_bytes())?;
        let peer_urls =
            url::peer_urls(&request.peer_ur_ls).map_err(|_| EtcdError::MemberBadUrls)?;
        let unix = self.api.shared.clock.unix().duration_since(UNIX_EPOCH).unwrap_or_default();
        let member = Member {
            id: identity::added_member_id(&peer_urls, unix.as_secs()),
            peer_urls,
            is_learner: request.is_learner,
            ..Default::default()
        };
        self.change_members(call, Change::Add(member))
    }

    pub(super) fn member_remove(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::MemberRemoveRequest = decode(message.into_bytes())?;
        self.change_members(call, Change::Remove(request.id))
    }

    /// The URLs are taken as they come, as etcd takes them.
    pub(super) fn member_update(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::MemberUpdateRequest = decode(message.into_bytes())?;
        let change = Change::Update { id: request.id, peer_urls: request.peer_ur_ls };
        self.change_members(call, change)
    }

    pub(super) fn member_promote(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::MemberPromoteRequest = decode(message.into_bytes())?;
        self.change_members(call, Change::Promote(request.id))
    }

    fn change_members(&mut self, call: Call, change: Change) -> Outcome {
        self.new_proposal()?;
        let pending = self.api.pending_call(call, CallKind::ChangeMembers);
        let slot = self.api.pending.insert(pending).map_err(|_| EtcdError::TooManyRequests)?;
        self.api.outbox.push(ToReplica::ChangeMembers { slot, change });
        Err(Refusal::Waiting)
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
