//! The Lock service (etcd `server/etcdserver/api/v3lock`, `client/v3/concurrency/mutex.go`): a key
//! below the lock's name is put for the caller's lease, and whose key is the oldest holds the lock.
//!
//! Also the steps that Campaign shares with it, which is a lock with a value.

use bytes::Bytes;
use etcore_proto::error::Status;
use etcore_proto::grpc::Message as Request;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::pb::v3lockpb as lockpb;
use prost::Message;

use super::Cx;
use super::call::{Call, Outcome, Refusal, decode};
use super::concurrency::{Goal, Held, Stage, created_at, lease_hex, op, plain_error};
use crate::replies::CallId;

/// The lock was waited for longer than its lease lived.
const SESSION_EXPIRED: &str = "mutex: session is expired";

/// What the keys of a name begin with.
pub(super) fn prefix_of(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

impl Cx<'_> {
    pub(super) fn lock(&mut self, call: Call, message: Request) -> Outcome {
        let request: lockpb::LockRequest = decode(message.into_bytes())?;
        let held = Held { lease: request.lease, ..Held::default() };
        let id = self.begin_steps(call, Goal::Lock, prefix_of(&request.name), held)?;
        self.with_lease(id)
    }

    pub(super) fn unlock(&mut self, call: Call, message: Request) -> Outcome {
        let request: lockpb::UnlockRequest = decode(message.into_bytes())?;
        let id = self.begin_steps(call, Goal::Unlock, Bytes::new(), Held::default())?;
        let request = pb::DeleteRangeRequest { key: request.key, ..Default::default() };
        let delete = self.methods().delete;
        self.ask(id, Stage::Last, delete, &request);
        Err(Refusal::Waiting)
    }

    /// Puts the key of a call that has a lease, unless it is there.
    pub(super) fn acquire(&mut self, id: CallId) {
        let txn = self.methods().txn;
        let Some(step) = self.step(id) else { return };
        let lease = step.held.lease;
        let key: Bytes = [&step.prefix[..], lease_hex(lease).as_bytes()].concat().into();
        step.held.key = key.clone();
        let value = match &step.goal {
            Goal::Campaign { value, .. } => value.clone(),
            _ => Bytes::new(),
        };
        let put = pb::PutRequest { key: key.clone(), value, lease, ..Default::default() };
        let get = pb::RangeRequest { key: key.clone(), ..Default::default() };
        let request = pb::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![op(pb::request_op::Request::RequestPut(put))],
            failure: vec![op(pb::request_op::Request::RequestRange(get))],
        };
        self.ask(id, Stage::Acquire, txn, &request);
    }

    /// The key is there.
    pub(super) fn acquired(&mut self, id: CallId, answer: pb::TxnResponse) {
        let Some(step) = self.step(id) else { return };
        let known = answer.responses.into_iter().next().and_then(|answer| match answer.response {
            Some(pb::response_op::Response::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        });
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        step.held.revision = known.as_ref().map_or(revision, |kv| kv.create_revision);
        step.header = answer.header;
        let other = match (&step.goal, known) {
            (Goal::Campaign { value, .. }, Some(kv)) if kv.value != value => Some(value.clone()),
            _ => None,
        };
        match other {
            Some(value) => self.put_value(id, Stage::Replace, &value),
            None => self.wait_for_older(id),
        }
    }

    /// No older key is there.
    pub(super) fn first_in_line(&mut self, id: CallId) {
        let range = self.methods().range;
        let Some(step) = self.step(id) else { return };
        let has_waited = step.stage == Stage::Line;
        step.stage = Stage::Last;
        if step.goal != Goal::Lock {
            return self.elected(id);
        }
        if !has_waited {
            return self.locked(id);
        }
        let request = pb::RangeRequest { key: step.held.key.clone(), ..Default::default() };
        self.ask(id, Stage::Check, range, &request);
    }

    /// The lock is the caller's.
    fn locked(&mut self, id: CallId) {
        let Some(step) = self.step(id) else { return };
        let (header, key) = (step.header, step.held.key.clone());
        self.end_steps(id, &lockpb::LockResponse { header, key });
    }

    /// What a call has asked is answered.
    pub(super) fn step_answered(&mut self, id: CallId, message: &[u8]) {
        let Some(step) = self.step(id) else { return };
        match step.stage {
            Stage::Grant => {
                let answer = pb::LeaseGrantResponse::decode(message).unwrap_or_default();
                step.held.lease = answer.id;
                self.leased(id);
            }
            Stage::Acquire => {
                let answer = pb::TxnResponse::decode(message).unwrap_or_default();
                self.acquired(id, answer);
            }
            Stage::Older => {
                let answer = pb::RangeResponse::decode(message).unwrap_or_default();
                if answer.kvs.is_empty() {
                    self.first_in_line(id);
                } else {
                    self.stand_in_line(id);
                }
            }
            Stage::Check => {
                let answer = pb::RangeResponse::decode(message).unwrap_or_default();
                if answer.kvs.is_empty() {
                    return self.fail_steps(id, &plain_error(SESSION_EXPIRED));
                }
                step.header = answer.header;
                self.locked(id);
            }
            Stage::Last if step.goal == Goal::Unlock => {
                let answer = pb::DeleteRangeResponse::decode(message).unwrap_or_default();
                self.end_steps(id, &lockpb::UnlockResponse { header: answer.header });
            }
            _ => self.election_answered(id, message),
        }
    }

    /// What a call has asked is refused.
    pub(super) fn step_failed(&mut self, id: CallId, status: &Status) {
        let Some(step) = self.step(id) else { return };
        match step.stage {
            Stage::Replace => self.resign_campaign(id, plain_error(status.message.clone())),
            Stage::GiveUp => self.end_campaign(id),
            // etcd's observer gives no reason.
            Stage::Leader | Stage::First | Stage::Follow if step.goal == Goal::Observe => {
                self.end_observing(id);
            }
            _ => self.fail_steps(id, &plain_error(status.message.clone())),
        }
    }
}
