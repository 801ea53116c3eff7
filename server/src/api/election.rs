//! The Election service (etcd `server/etcdserver/api/v3election`,
//! `client/v3/concurrency/election.go`): a lock whose key has a value. Whose key is the oldest is
//! the leader, and observers are told of its values.

use bytes::Bytes;
use etcore_proto::error::Status;
use etcore_proto::grpc::Message as Request;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::pb::mvccpb::event::EventType;
use etcore_proto::pb::v3electionpb as epb;
use prost::Message;

use super::Cx;
use super::call::{Call, Outcome, Refusal, decode};
use super::concurrency::{Goal, Held, Stage, created_at, op, plain_error, prefix_end};
use super::lock::prefix_of;
use crate::replies::CallId;

const MISSING_LEADER: &str = "\"leader\" field must be provided";
const NO_LEADER: &str = "election: no leader";
const NOT_LEADER: &str = "election: not leader";

fn refused(text: &'static str) -> Refusal {
    Refusal::Status(plain_error(text))
}

fn held(leader: epb::LeaderKey) -> Held {
    Held { key: leader.key, revision: leader.rev, lease: leader.lease }
}

/// Deletes a key, if it is still the one that was made then.
pub(super) fn resignation(held: &Held) -> pb::TxnRequest {
    let delete = pb::DeleteRangeRequest { key: held.key.clone(), ..Default::default() };
    pb::TxnRequest {
        compare: vec![created_at(&held.key, held.revision)],
        success: vec![op(pb::request_op::Request::RequestDeleteRange(delete))],
        failure: Vec::new(),
    }
}

impl Cx<'_> {
    pub(super) fn campaign(&mut self, call: Call, message: Request) -> Outcome {
        let request: epb::CampaignRequest = decode(message.into_bytes())?;
        let held = Held { lease: request.lease, ..Held::default() };
        let prefix = prefix_of(&request.name);
        let goal = Goal::Campaign { name: request.name, value: request.value };
        let id = self.begin_steps(call, goal, prefix, held)?;
        self.with_lease(id)
    }

    pub(super) fn proclaim(&mut self, call: Call, message: Request) -> Outcome {
        let request: epb::ProclaimRequest = decode(message.into_bytes())?;
        let leader = held(request.leader.ok_or_else(|| refused(MISSING_LEADER))?);
        let own = leader.clone();
        let goal = Goal::Proclaim { leader, value: request.value };
        let id = self.begin_steps(call, goal, Bytes::new(), own)?;
        self.with_lease(id)
    }

    pub(super) fn resign(&mut self, call: Call, message: Request) -> Outcome {
        let request: epb::ResignRequest = decode(message.into_bytes())?;
        let held = held(request.leader.ok_or_else(|| refused(MISSING_LEADER))?);
        let request = resignation(&held);
        let id = self.begin_steps(call, Goal::Resign, Bytes::new(), held)?;
        let txn = self.methods().txn;
        self.ask(id, Stage::Last, txn, &request);
        Err(Refusal::Waiting)
    }

    pub(super) fn leader(&mut self, call: Call, message: Request) -> Outcome {
        let request: epb::LeaderRequest = decode(message.into_bytes())?;
        let prefix = prefix_of(&request.name);
        let id = self.begin_steps(call, Goal::Leader, prefix, Held::default())?;
        self.ask_for_leader(id);
        Err(Refusal::Waiting)
    }

    pub(super) fn observe(&mut self, call: Call, message: Request) -> Outcome {
        let request: epb::LeaderRequest = decode(message.into_bytes())?;
        let prefix = prefix_of(&request.name);
        let id = self.begin_steps(call, Goal::Observe, prefix, Held::default())?;
        self.ask_for_leader(id);
        Err(Refusal::Waiting)
    }

    /// A call has its lease.
    pub(super) fn leased(&mut self, id: CallId) {
        let Some(step) = self.step(id) else { return };
        match step.goal.clone() {
            Goal::Proclaim { leader, value } => {
                step.held = Held { lease: step.held.lease, ..leader };
                self.put_value(id, Stage::Last, &value);
            }
            _ => self.acquire(id),
        }
    }

    /// Gives the key of a leader a value, if it is still the one that was made then.
    pub(super) fn put_value(&mut self, id: CallId, stage: Stage, value: &Bytes) {
        let txn = self.methods().txn;
        let Some(step) = self.step(id) else { return };
        let (key, lease) = (step.held.key.clone(), step.held.lease);
        let compare = vec![created_at(&key, step.held.revision)];
        let put = pb::PutRequest { key, value: value.clone(), lease, ..Default::default() };
        let success = vec![op(pb::request_op::Request::RequestPut(put))];
        self.ask(id, stage, txn, &pb::TxnRequest { compare, success, failure: Vec::new() });
    }

    fn ask_for_leader(&mut self, id: CallId) {
        let range = self.methods().range;
        let Some(step) = self.step(id) else { return };
        let request = pb::RangeRequest {
            key: step.prefix.clone(),
            range_end: prefix_end(&step.prefix),
            limit: 1,
            sort_order: pb::range_request::SortOrder::Ascend as i32,
            sort_target: pb::range_request::SortTarget::Create as i32,
            ..Default::default()
        };
        self.ask(id, Stage::Leader, range, &request);
    }

    /// The campaign is won.
    pub(super) fn elected(&mut self, id: CallId) {
        let Some(step) = self.step(id) else { return };
        let Goal::Campaign { name, .. } = &step.goal else { return };
        let Held { key, revision: rev, lease } = step.held.clone();
        let leader = Some(epb::LeaderKey { name: name.clone(), key, rev, lease });
        let header = step.header;
        self.end_steps(id, &epb::CampaignResponse { header, leader });
    }

    /// A campaign cannot have its value: its key is given up, and then it fails.
    pub(super) fn resign_campaign(&mut self, id: CallId, why: Status) {
        let txn = self.methods().txn;
        let Some(step) = self.step(id) else { return };
        step.failure = Some(why);
        let request = resignation(&step.held);
        self.ask(id, Stage::GiveUp, txn, &request);
    }

    pub(super) fn end_campaign(&mut self, id: CallId) {
        let why = self.step(id).and_then(|step| step.failure.take());
        self.fail_steps(id, &why.unwrap_or_else(|| plain_error(NOT_LEADER)));
    }

    /// What a call has asked is answered.
    pub(super) fn election_answered(&mut self, id: CallId, message: &[u8]) {
        let Some(step) = self.step(id) else { return };
        let txn = || pb::TxnResponse::decode(message).unwrap_or_default();
        match (step.stage, &step.goal) {
            (Stage::Replace, _) if txn().succeeded => self.wait_for_older(id),
            (Stage::Replace, _) => self.resign_campaign(id, plain_error(NOT_LEADER)),
            (Stage::GiveUp, _) => self.end_campaign(id),
            (Stage::Last, Goal::Resign) => {
                self.end_steps(id, &epb::ResignResponse { header: txn().header });
            }
            (Stage::Last, _) if txn().succeeded => {
                self.end_steps(id, &epb::ProclaimResponse { header: txn().header });
            }
            (Stage::Last, _) => self.fail_steps(id, &plain_error(NOT_LEADER)),
            (Stage::Leader, goal) => {
                let observes = *goal == Goal::Observe;
                let answer = pb::RangeResponse::decode(message).unwrap_or_default();
                self.found_leader(id, answer, observes);
            }
            (Stage::First | Stage::Follow, _) => {
                let events = pb::WatchResponse::decode(message).unwrap_or_default();
                self.watched_leader(id, events);
            }
            _ => {}
        }
    }

    fn found_leader(&mut self, id: CallId, answer: pb::RangeResponse, observes: bool) {
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let kv = answer.kvs.into_iter().next();
        match kv {
            None if !observes => self.fail_steps(id, &plain_error(NO_LEADER)),
            kv @ Some(_) if !observes => {
                self.end_steps(id, &epb::LeaderResponse { header: answer.header, kv });
            }
            None => {
                let Some(prefix) = self.step(id).map(|step| step.prefix.clone()) else { return };
                let keys = (&prefix, &prefix_end(&prefix));
                self.watch_for(id, Stage::First, keys, revision);
            }
            Some(kv) => {
                let key = kv.key.clone();
                let told = epb::LeaderResponse { header: answer.header, kv: Some(kv) };
                if self.tell_observer(id, &told) {
                    self.watch_for(id, Stage::Follow, (&key, &Bytes::new()), revision + 1);
                }
            }
        }
    }

    /// Sends an observer what it is to know; false if it cannot be now.
    fn tell_observer(&mut self, id: CallId, told: &epb::LeaderResponse) -> bool {
        match self.out.capacity(id) {
            Err(_) => {
                self.forget(id);
                return false;
            }
            Ok(0) => {
                // It begins again, and will be told of the leader of then.
                if let Some(asked) = self.step(id).and_then(|step| {
                    step.stage = Stage::Lagging;
                    step.asked.take()
                }) {
                    self.stop_asking(asked);
                }
                return false;
            }
            Ok(_) => {}
        }
        let message = told.encode_to_vec();
        let sent =
            self.out.send(id, message.len(), &mut |out| out.extend_from_slice(&message)).is_ok();
        if !sent {
            self.forget(id);
        }
        sent
    }

    /// Something was put or deleted that an observer watches.
    fn watched_leader(&mut self, id: CallId, response: pb::WatchResponse) {
        if response.canceled {
            return self.end_observing(id);
        }
        for event in response.events {
            let Some(stage) = self.step(id).map(|step| step.stage) else { return };
            let kind = event.r#type();
            let Some(kv) = event.kv else { continue };
            let (key, revision) = (kv.key.clone(), kv.mod_revision);
            let mut told = epb::LeaderResponse { header: response.header, kv: Some(kv) };
            match (stage, kind) {
                (Stage::First, EventType::Put) => {
                    if let Some(header) = &mut told.header {
                        header.revision = revision;
                    }
                    if self.tell_observer(id, &told) {
                        let keys = (&key, &Bytes::new());
                        self.watch_for(id, Stage::Follow, keys, revision + 1);
                    }
                    return;
                }
                (Stage::First, EventType::Delete) => {}
                (_, EventType::Put) => {
                    if !self.tell_observer(id, &told) {
                        return;
                    }
                }
                (_, EventType::Delete) => {
                    if let Some(asked) = self.step(id).and_then(|step| step.asked.take()) {
                        self.stop_asking(asked);
                    }
                    return self.ask_for_leader(id);
                }
            }
        }
    }

    /// An observer that did not read does so again.
    pub(super) fn observer_reads(&mut self, id: CallId) {
        if self.step(id).is_some_and(|step| step.stage == Stage::Lagging) {
            self.ask_for_leader(id);
        }
    }

    /// Its watch has ended, and so it ends.
    pub(super) fn end_observing(&mut self, id: CallId) {
        if self.forget(id).is_some() {
            self.out.finish(id);
        }
    }
}
