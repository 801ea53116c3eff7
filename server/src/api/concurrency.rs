//! What Lock and Election are made of: calls of several steps, each of which is a call of another
//! service made for the same caller, so that permissions, quota and limits are checked as for
//! anybody (etcd `client/v3/concurrency`, served through its in-process client).
//!
//! A call is a stage and what it has learnt; nothing runs for it while it waits. Those that wait
//! for older keys to go stand in a [`Line`] for each name. The steps of the methods are in `lock`
//! and `election`.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use etcore_proto::error::{Code, EtcdError, Status};
use etcore_proto::grpc::{MethodId, RequestMeta};
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::pb::mvccpb::event::EventType;
use prost::Message;

use super::call::{Call, Outcome, Refusal};
use super::routes::{Unary, method_id};
use super::{Cx, Services};
use crate::limits;
use crate::replies::{CallId, Caller, ConnId, InnerAnswer, Replies};

mod line;

use line::Line;

/// etcd's TTL of a lease that a call makes for itself, in seconds.
const SESSION_TTL_S: i64 = 60;

/// What a call is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Goal {
    Lock,
    Unlock,
    Campaign { name: Bytes, value: Bytes },
    Proclaim { leader: Held, value: Bytes },
    Resign,
    Leader,
    Observe,
}

/// The key that somebody holds, and when it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) key: Bytes,
    pub(super) revision: i64,
    pub(super) lease: i64,
}

/// What it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// A lease of its own.
    Grant,
    /// Its key is put, unless it is there.
    Acquire,
    /// The value of a key that was there becomes the campaign's.
    Replace,
    /// That failed, and the key is given up.
    GiveUp,
    /// Whether an older key is there.
    Older,
    /// Older keys are to go.
    Line,
    /// Whether its key is still there.
    Check,
    /// The one answer that it passes on.
    Last,
    /// The key of the leader.
    Leader,
    /// A first leader.
    First,
    /// What becomes of the leader.
    Follow,
    /// Its client does not read; it begins again when it does.
    Lagging,
}

/// A call under way.
pub(super) struct Step {
    pub(super) call: Call,
    pub(super) goal: Goal,
    pub(super) stage: Stage,
    /// The name with a slash: what keys begin with.
    pub(super) prefix: Bytes,
    pub(super) held: Held,
    /// The answer's header, once it is known.
    pub(super) header: Option<pb::ResponseHeader>,
    /// The call of another service that it waits for.
    pub(super) asked: Option<CallId>,
    /// Why it ends, once its key is given up.
    pub(super) failure: Option<Status>,
}

/// Whose a call of another service is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    Call(CallId),
    /// The keys below a name are read, or watched.
    Line(Bytes),
}

/// The calls of one front.
pub(super) struct Concurrency {
    steps: BTreeMap<CallId, Step>,
    owners: HashMap<CallId, Owner>,
    lines: HashMap<Bytes, Line>,
    next: u64,
    methods: Methods,
}

/// The methods that are asked.
#[derive(Clone, Copy)]
pub(super) struct Methods {
    pub(super) range: MethodId,
    pub(super) txn: MethodId,
    pub(super) delete: MethodId,
    pub(super) grant: MethodId,
}

impl Default for Concurrency {
    fn default() -> Self {
        let id = |path| method_id(path).expect("the table has it");
        let methods = Methods {
            range: id("/etcdserverpb.KV/Range"),
            txn: id("/etcdserverpb.KV/Txn"),
            delete: id("/etcdserverpb.KV/DeleteRange"),
            grant: id("/etcdserverpb.Lease/LeaseGrant"),
        };
        let (steps, owners, lines) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { steps, owners, lines, next: 0, methods }
    }
}

impl Concurrency {
    /// True if nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn new_call(&mut self, owner: Owner) -> CallId {
        self.next += 1;
        let id = CallId::inner(self.next);
        self.owners.insert(id, owner);
        id
    }

    /// The calls of a connection.
    fn of(&self, calls: RangeInclusive<CallId>) -> Vec<CallId> {
        if self.steps.is_empty() {
            return Vec::new();
        }
        self.steps.range(calls).map(|(id, _)| *id).collect()
    }
}

/// The end of the keys that begin with a prefix (clientv3 `GetPrefixRangeEnd`).
pub(super) fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

/// A lease as Go prints it in hexadecimal.
pub(super) fn lease_hex(lease: i64) -> String {
    let sign = if lease < 0 { "-" } else { "" };
    format!("{sign}{:x}", lease.unsigned_abs())
}

/// What etcd's client makes of an error: its text stays, its code does not.
pub(super) fn plain_error(message: impl Into<std::borrow::Cow<'static, str>>) -> Status {
    Status::new(Code::Unknown, message)
}

/// Compares the revision that created a key.
pub(super) fn created_at(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(pb::compare::TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

/// An operation of a transaction.
pub(super) fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

impl Cx<'_> {
    /// Begins a call of several steps.
    pub(super) fn begin_steps(
        &mut self,
        call: Call,
        goal: Goal,
        prefix: Bytes,
        held: Held,
    ) -> Result<CallId, Refusal> {
        if self.api.concurrency.steps.len() >= limits::WAITING_CALLS {
            return Err(EtcdError::TooManyRequests.into());
        }
        if self.api.draining {
            return Err(EtcdError::Stopped.into());
        }
        let id = call.id;
        let step = Step {
            call,
            goal,
            stage: Stage::Last,
            prefix,
            held,
            header: None,
            asked: None,
            failure: None,
        };
        self.api.concurrency.steps.insert(id, step);
        Ok(id)
    }

    /// Begins with a lease, one of its own if it has none.
    pub(super) fn with_lease(&mut self, id: CallId) -> Outcome {
        let Some(step) = self.api.concurrency.steps.get(&id) else { return Ok(()) };
        if step.held.lease == 0 {
            let request = pb::LeaseGrantRequest { ttl: SESSION_TTL_S, id: 0 };
            let method = self.api.concurrency.methods.grant;
            self.ask(id, Stage::Grant, method, &request);
        } else {
            self.leased(id);
        }
        Err(Refusal::Waiting)
    }

    /// Makes a call of another service for a call.
    pub(super) fn ask(
        &mut self,
        id: CallId,
        stage: Stage,
        method: MethodId,
        request: &impl Message,
    ) {
        let inner = self.api.concurrency.new_call(Owner::Call(id));
        let Some(step) = self.api.concurrency.steps.get_mut(&id) else { return };
        step.stage = stage;
        step.asked = Some(inner);
        let (caller, deadline_ms) = (step.call.caller.clone(), step.call.deadline_ms);
        self.make(inner, method, caller, deadline_ms, request);
    }

    fn make(
        &mut self,
        inner: CallId,
        method: MethodId,
        caller: Arc<Caller>,
        deadline_ms: Option<u64>,
        request: &impl Message,
    ) {
        let meta = RequestMeta { deadline_ms, token: caller.token.clone(), ..Default::default() };
        let began = self.api.shared.clock.elapsed();
        let call = Call::new(inner, method, &meta, caller, began);
        let message = Bytes::from(request.encode_to_vec()).into();
        self.inner_call(Unary { call, method, meta, message });
    }

    pub(super) fn methods(&self) -> Methods {
        self.api.concurrency.methods
    }

    pub(super) fn step(&mut self, id: CallId) -> Option<&mut Step> {
        self.api.concurrency.steps.get_mut(&id)
    }

    /// Ends a call with its answer.
    pub(super) fn end_steps(&mut self, id: CallId, answer: &impl Message) {
        if self.forget(id).is_some() {
            self.out.reply(id, &answer.encode_to_vec());
        }
    }

    /// Ends a call with an error.
    pub(super) fn fail_steps(&mut self, id: CallId, status: &Status) {
        if self.forget(id).is_some() {
            self.out.fail(id, status);
        }
    }

    /// Takes a call out, and all that it waits for.
    pub(super) fn forget(&mut self, id: CallId) -> Option<Step> {
        let step = self.api.concurrency.steps.remove(&id)?;
        if let Some(asked) = step.asked {
            self.stop_asking(asked);
        }
        if step.stage == Stage::Line {
            if let Some(line) = self.api.concurrency.lines.get_mut(&step.prefix) {
                line.leave(step.held.revision, id);
            }
            self.drop_line_if_empty(&step.prefix);
        }
        Some(step)
    }

    /// Nobody wants to know more of a call that was made.
    pub(super) fn stop_asking(&mut self, inner: CallId) {
        self.api.concurrency.owners.remove(&inner);
        self.api.watch.closed(inner);
    }

    fn drop_line_if_empty(&mut self, prefix: &Bytes) {
        let lines = &mut self.api.concurrency.lines;
        if lines.get(prefix).is_some_and(Line::is_empty)
            && let Some(source) = lines.remove(prefix).and_then(|line| line.source)
        {
            self.stop_asking(source);
        }
    }

    /// Waits for the keys to go that are older than the call's own.
    pub(super) fn wait_for_older(&mut self, id: CallId) {
        let range = self.methods().range;
        let Some(step) = self.api.concurrency.steps.get(&id) else { return };
        // Where callers must be somebody, who may not read the keys is told so.
        let is_open = !self.api.reads.view().auth.is_enabled();
        if is_open && self.api.concurrency.lines.contains_key(&step.prefix) {
            return self.stand_in_line(id);
        }
        // What was put is in this member's state already: its answer came after it.
        let request = pb::RangeRequest {
            key: step.prefix.clone(),
            range_end: prefix_end(&step.prefix),
            max_create_revision: step.held.revision - 1,
            limit: 1,
            keys_only: true,
            serializable: true,
            ..Default::default()
        };
        if step.held.revision <= 1 {
            return self.first_in_line(id);
        }
        self.ask(id, Stage::Older, range, &request);
    }

    /// An older key is there.
    pub(super) fn stand_in_line(&mut self, id: CallId) {
        let Some(step) = self.step(id) else { return };
        step.stage = Stage::Line;
        let (prefix, revision) = (step.prefix.clone(), step.held.revision);
        let caller = step.call.caller.clone();
        let lines = &mut self.api.concurrency.lines;
        let is_new = !lines.contains_key(&prefix);
        lines.entry(prefix.clone()).or_default().wait(revision, id);
        if !is_new {
            return self.serve_line(&prefix);
        }
        let inner = self.api.concurrency.new_call(Owner::Line(prefix.clone()));
        if let Some(line) = self.api.concurrency.lines.get_mut(&prefix) {
            line.source = Some(inner);
            // Whoever stands in it has read these keys himself, in the transaction that put his.
            line.caller = caller.clone();
        }
        let request = pb::RangeRequest {
            key: prefix.clone(),
            range_end: prefix_end(&prefix),
            limit: limits::LINE_KEYS,
            keys_only: true,
            serializable: true,
            ..Default::default()
        };
        let range = self.methods().range;
        self.make(inner, range, caller, None, &request);
    }

    /// The keys below a name have been read: they are watched from here on.
    fn read_line(&mut self, prefix: &Bytes, message: &[u8]) {
        let Ok(read) = pb::RangeResponse::decode(message) else {
            return self.fail_line(prefix, &plain_error("lost the keys before its own"));
        };
        if read.more {
            return self.fail_line(prefix, &plain_error("too many keys below the name"));
        }
        let revision = read.header.map_or(0, |header| header.revision);
        let watch = self.api.concurrency.new_call(Owner::Line(prefix.clone()));
        let Some(line) = self.api.concurrency.lines.get_mut(prefix) else { return };
        for kv in read.kvs {
            line.put(kv.key, kv.create_revision);
        }
        line.saw(revision);
        line.source = Some(watch);
        let caller = line.caller.clone();
        self.watch_keys(watch, &caller, (prefix, &prefix_end(prefix)), revision + 1);
        self.serve_line(prefix);
    }

    /// Watches keys for a call that a service makes.
    fn watch_keys(
        &mut self,
        inner: CallId,
        caller: &Arc<Caller>,
        (key, end): (&Bytes, &Bytes),
        revision: i64,
    ) {
        self.open_watch(inner, &RequestMeta::default(), caller);
        let create = pb::WatchCreateRequest {
            key: key.clone(),
            range_end: end.clone(),
            start_revision: revision,
            ..Default::default()
        };
        let request = pb::watch_request::RequestUnion::CreateRequest(create);
        let request = pb::WatchRequest { request_union: Some(request) };
        self.watch_message(inner, request.encode_to_vec().into());
    }

    /// Watches keys for a call.
    pub(super) fn watch_for(
        &mut self,
        id: CallId,
        stage: Stage,
        keys: (&Bytes, &Bytes),
        revision: i64,
    ) {
        let inner = self.api.concurrency.new_call(Owner::Call(id));
        let Some(step) = self.step(id) else { return };
        step.stage = stage;
        let caller = step.call.caller.clone();
        if let Some(before) = step.asked.replace(inner) {
            self.stop_asking(before);
        }
        self.watch_keys(inner, &caller, keys, revision);
    }

    /// Keys of a line came or went.
    fn watched_line(&mut self, prefix: &Bytes, message: &[u8]) {
        let response = pb::WatchResponse::decode(message).unwrap_or_default();
        if response.canceled {
            return self.fail_line(prefix, &plain_error(LOST_WATCHER));
        }
        let Some(line) = self.api.concurrency.lines.get_mut(prefix) else { return };
        for event in response.events {
            let kind = event.r#type();
            let Some(kv) = event.kv else { continue };
            line.saw(kv.mod_revision);
            match kind {
                EventType::Put => line.put(kv.key, kv.create_revision),
                EventType::Delete => line.delete(&kv.key),
            }
        }
        self.serve_line(prefix);
    }

    /// Lets those go on whose turn it is.
    fn serve_line(&mut self, prefix: &Bytes) {
        loop {
            let line = self.api.concurrency.lines.get_mut(prefix);
            let Some(id) = line.and_then(Line::next_ready) else { break };
            self.first_in_line(id);
        }
        self.drop_line_if_empty(prefix);
    }

    fn fail_line(&mut self, prefix: &Bytes, status: &Status) {
        let Some(line) = self.api.concurrency.lines.remove(prefix) else { return };
        if let Some(source) = line.source {
            self.stop_asking(source);
        }
        for id in line.into_waiting() {
            if let Some(step) = self.step(id) {
                step.stage = Stage::Last;
            }
            self.give_up(id);
            self.fail_steps(id, status);
        }
    }

    /// Takes away the key of a call that waited in vain.
    fn give_up(&mut self, id: CallId) {
        let methods = self.methods();
        let Some(step) = self.step(id) else { return };
        let (goal, held, caller) = (step.goal.clone(), step.held.clone(), step.call.caller.clone());
        // Nobody waits for the answer.
        self.api.concurrency.next += 1;
        let inner = CallId::inner(self.api.concurrency.next);
        if goal == Goal::Lock {
            let request = pb::DeleteRangeRequest { key: held.key, ..Default::default() };
            self.make(inner, methods.delete, caller, None, &request);
        } else {
            self.make(inner, methods.txn, caller, None, &super::election::resignation(&held));
        }
    }

    fn inner_answer(&mut self, inner: CallId, answer: InnerAnswer) {
        let Some(owner) = self.api.concurrency.owners.get(&inner).cloned() else { return };
        match (owner, answer) {
            (Owner::Line(prefix), InnerAnswer::Failed(status)) => {
                self.fail_line(&prefix, &plain_error(status.message));
            }
            (Owner::Line(prefix), InnerAnswer::Message(message)) => {
                let line = self.api.concurrency.lines.get(&prefix);
                if line.is_some_and(Line::is_read) {
                    self.watched_line(&prefix, &message);
                } else {
                    self.api.concurrency.owners.remove(&inner);
                    self.read_line(&prefix, &message);
                }
            }
            (Owner::Call(id), answer) => {
                let watches = self
                    .step(id)
                    .is_some_and(|step| matches!(step.stage, Stage::First | Stage::Follow));
                if !watches {
                    self.api.concurrency.owners.remove(&inner);
                    if let Some(step) = self.step(id) {
                        step.asked = None;
                    }
                }
                match answer {
                    InnerAnswer::Failed(status) => self.step_failed(id, &status),
                    InnerAnswer::Message(message) => self.step_answered(id, &message),
                }
            }
        }
    }
}

/// What a call that waits is told when its watch ends (clientv3).
const LOST_WATCHER: &str = "lost watcher waiting for delete";

impl Services {
    /// A call that a service made is answered.
    pub fn inner_answered(&mut self, out: &mut dyn Replies, inner: CallId, answer: InnerAnswer) {
        self.with(out).inner_answer(inner, answer);
    }

    /// The client of a call of several steps has gone away: one that waits gives its key up.
    pub(super) fn steps_cancelled(&mut self, out: &mut dyn Replies, id: CallId) {
        if self.concurrency.is_empty() {
            return;
        }
        let mut cx = self.with(out);
        let waits =
            |step: &mut Step| matches!(step.stage, Stage::Older | Stage::Line | Stage::Check);
        if cx.step(id).is_some_and(waits) {
            cx.give_up(id);
        }
        cx.forget(id);
    }

    /// A connection is closed: its calls are cancelled.
    pub(super) fn steps_of_closed(&mut self, out: &mut dyn Replies, conn: ConnId) {
        for id in self.concurrency.of(CallId::all_of(conn)) {
            self.steps_cancelled(out, id);
        }
    }

    /// Ends the calls whose clients wait no longer.
    pub(super) fn tick_steps(&mut self, out: &mut dyn Replies) {
        let now_ms = self.now_ms;
        let late = |step: &Step| step.call.deadline_ms.is_some_and(|at_ms| at_ms <= now_ms);
        let steps = self.concurrency.steps.iter();
        let late: Vec<CallId> = steps.filter(|(_, step)| late(step)).map(|(id, _)| *id).collect();
        for id in late {
            self.steps_cancelled(out, id);
            out.fail(id, &EtcdError::ContextDeadlineExceeded.into());
        }
    }
}
