//! The Lease service: grants and revocations are proposed, everything else is asked of
//! the replica through the ring for leases.
//!
//! A KeepAlive stream may carry many leases. Its renewals are passed on as they come and answered
//! in their order, each with a header made before it was passed on: so no header claims a later
//! state than the one in which the lease was alive. What a stream may have unanswered is bounded: a
//! client that asks and does not read finds its window shut.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcore_proto::decode::{Fields, Value};
use etcore_proto::error::{EtcdError, Status};
use etcore_proto::grpc::{Message, MethodId, RequestMeta, frame_message};
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::splitmix::SplitMix64;
use prost::Message as _;

use super::call::{Call, Outcome, Refusal, decode, malformed_message};
use super::pending::{CallKind, LeaseCall, PendingCall, To};
use super::{Cx, LEADERLESS_ELECTIONS, Services};
use crate::auth::Access;
use crate::channel::{LeaseAnswer, LeaseQuery, LeaseRequest, Slot};
use crate::clock::millis;
use crate::entry::{self, field};
use crate::kv::answer::Draft;
use crate::kv::pieces::Pieces;
use crate::limits;
use crate::quota;
use crate::replies::{CallId, Caller, ConnId};
use crate::wire::{Header, write_int64};

/// The KeepAlive streams of a front, and what new leases are named by. Invariant: `unanswered` is
/// the sum of the streams' queues.
pub(super) struct LeaseStreams {
    streams: BTreeMap<CallId, KeepAlive>,
    /// Streams that must not go on without a leader.
    needing_leader: BTreeSet<CallId>,
    unanswered: usize,
    /// Streams with answers to be sent at the end of the turn, so that they leave together.
    ready: Vec<CallId>,
    /// Where the next lease's ID comes from.
    ids: SplitMix64,
    /// When a leader was known last.
    leader_seen_ms: u64,
}

/// One stream.
struct KeepAlive {
    /// Renewals in the order they came.
    renewals: VecDeque<Renewal>,
    /// The number of the first of them.
    first: u64,
    half_closed: bool,
    /// It ends with this once the renewals before are answered.
    failed: Option<Status>,
    held: bool,
    caller: Arc<Caller>,
    /// The client's; `u64::MAX` if it has none.
    deadline_ms: u64,
    /// Among the ready ones.
    ready: bool,
}

struct Renewal {
    slot: Slot,
    id: i64,
    header: Header,
    /// Once it is known.
    ttl_s: Option<i64>,
}

impl LeaseStreams {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            streams: BTreeMap::new(),
            needing_leader: BTreeSet::new(),
            unanswered: 0,
            ready: Vec::new(),
            ids: SplitMix64::new(seed),
            leader_seen_ms: 0,
        }
    }

    fn remove(&mut self, call: CallId) -> Option<KeepAlive> {
        let stream = self.streams.remove(&call)?;
        self.needing_leader.remove(&call);
        self.unanswered -= stream.renewals.len();
        Some(stream)
    }

    /// A positive number that no other lease is likely to have.
    fn new_lease_id(&mut self) -> i64 {
        loop {
            let id = (self.ids.draw() >> 1).cast_signed();
            if id != 0 {
                return id;
            }
        }
    }
}

impl Services {
    fn ask_lessor(&mut self, pending: PendingCall, query: LeaseQuery) -> Result<Slot, EtcdError> {
        if self.draining {
            return Err(EtcdError::Stopped);
        }
        let asker = match &pending.to {
            To::Call(call) => self.asker(&call.caller)?,
            _ => None,
        };
        let deadline_ms = pending.deadline_ms;
        let slot = self.pending.insert(pending).map_err(|_| EtcdError::TooManyRequests)?;
        self.outbox.push_lease_request(LeaseRequest { slot, deadline_ms, query, asker });
        Ok(slot)
    }

    /// Whether the caller may be told of the keys of a lease: fields of an answer.
    fn admit_keys(&self, caller: &Caller, keys: &Pieces) -> Result<(), EtcdError> {
        if !self.auth().is_enabled() {
            return Ok(());
        }
        let asker = self.asker(caller)?.ok_or(EtcdError::UserEmpty)?;
        let (auth, author) = (self.auth(), asker.author());
        if auth.admit_admin(author).is_ok() {
            return Ok(());
        }
        for piece in keys.iter() {
            let mut fields = Fields::new(piece);
            while let Ok(Some((_, Value::Len(key)))) = fields.next_field() {
                auth.admit(author, Access::Read, &piece[key], b"")?;
            }
        }
        Ok(())
    }

    fn renewed(&mut self, call: CallId, number: u64, ttl_s: i64) {
        let Some(stream) = self.lease.streams.get_mut(&call) else { return };
        let at = usize::try_from(number - stream.first).unwrap_or(usize::MAX);
        if let Some(renewal) = stream.renewals.get_mut(at) {
            renewal.ttl_s = Some(ttl_s);
            if !std::mem::replace(&mut stream.ready, true) {
                self.lease.ready.push(call);
            }
        }
    }

    fn forget_renewals(&mut self, renewals: VecDeque<Renewal>) {
        for renewal in renewals {
            if renewal.ttl_s.is_none() {
                self.pending.remove(renewal.slot);
            }
        }
    }

    /// The client has gone away from a stream.
    pub(super) fn lease_stream_cancelled(&mut self, call: CallId) {
        if let Some(stream) = self.lease.remove(call) {
            self.forget_renewals(stream.renewals);
        }
    }

    /// The connection is closed.
    pub(super) fn lease_streams_closed(&mut self, conn: ConnId) {
        let streams = self.lease.streams.range(CallId::all_of(conn));
        let calls: Vec<CallId> = streams.map(|(call, _)| *call).collect();
        for call in calls {
            self.lease_stream_cancelled(call);
        }
    }
}

impl Cx<'_> {
    pub(super) fn lease_grant(&mut self, call: Call, message: Message) -> Outcome {
        let message = message.into_bytes();
        let mut request: pb::LeaseGrantRequest = decode(message.clone())?;
        if !self.api.has_space_for(quota::LEASE_COST_BYTES) {
            return self.out_of_space(call);
        }
        if request.id != 0 {
            return self.propose(call, field::LEASE_GRANT, &message);
        }
        request.id = self.api.lease.new_lease_id();
        self.propose(call, field::LEASE_GRANT, &request.encode_to_vec())
    }

    pub(super) fn lease_time_to_live(&mut self, call: Call, message: Message) -> Outcome {
        let pb::LeaseTimeToLiveRequest { id, keys } = decode(message.into_bytes())?;
        let kind = CallKind::Lease(LeaseCall::TimeToLive { id });
        let pending = self.api.pending_call(call, kind);
        self.api.ask_lessor(pending, LeaseQuery::TimeToLive { id, keys })?;
        Err(Refusal::Waiting)
    }

    pub(super) fn lease_leases(&mut self, call: Call, message: Message) -> Outcome {
        decode::<pb::LeaseLeasesRequest>(message.into_bytes())?;
        let pending = self.api.pending_call(call, CallKind::Lease(LeaseCall::Leases));
        self.api.ask_lessor(pending, LeaseQuery::List)?;
        Err(Refusal::Waiting)
    }

    /// The replica has answered.
    pub(super) fn finish_lease(&mut self, slot: Slot, answer: LeaseAnswer) {
        let Some(PendingCall { to: To::Call(call), kind: CallKind::Lease(asked), .. }) =
            self.api.pending.remove(slot)
        else {
            return;
        };
        let header = self.api.shared.header(self.api.reads.store().revision.0);
        let mut head = Vec::new();
        let fields = match (asked, answer) {
            (LeaseCall::KeepAlive { number }, LeaseAnswer::Renewed { ttl_s }) => {
                return self.api.renewed(call.id, number, ttl_s);
            }
            (LeaseCall::KeepAlive { number }, LeaseAnswer::Refused(status)) => {
                return self.fail_lease_stream(call.id, number, status);
            }
            (_, LeaseAnswer::Refused(status)) => return self.out.fail(call.id, &status),
            (LeaseCall::TimeToLive { id }, LeaseAnswer::TimeToLive { times, keys }) => {
                if let Err(error) = self.api.admit_keys(&call.caller, &keys) {
                    return self.out.fail(call.id, &error.into());
                }
                header.write(&mut head);
                write_int64(&mut head, 2, id);
                write_int64(&mut head, 3, times.map_or(-1, |times| times.left_s));
                write_int64(&mut head, 4, times.map_or(0, |times| times.granted_s));
                keys
            }
            (LeaseCall::Leases, LeaseAnswer::Leases(leases)) => {
                header.write(&mut head);
                leases
            }
            _ => return self.out.fail(call.id, &EtcdError::Stopped.into()),
        };
        let mut draft = Draft::default();
        draft.pieces(fields);
        if draft.is_short() {
            let mut out = Vec::new();
            draft.write_short(&head, &mut out);
            self.out.reply(call.id, &out);
            self.api.ended(&call, None);
        } else {
            self.start_answer(call, draft.without_keys(&head));
        }
    }

    /// A KeepAlive stream was opened.
    pub(super) fn open_lease_stream(
        &mut self,
        call: CallId,
        meta: &RequestMeta,
        caller: &Arc<Caller>,
    ) {
        let stopped = self.api.draining.then_some(EtcdError::Stopped);
        let refused = stopped.or_else(|| self.api.stream_gate(meta).err());
        if let Some(error) = refused {
            return self.out.fail(call, &error.into());
        }
        let stream = KeepAlive {
            renewals: VecDeque::new(),
            first: 0,
            half_closed: false,
            failed: None,
            held: false,
            caller: caller.clone(),
            deadline_ms: meta.deadline_ms.unwrap_or(u64::MAX),
            ready: false,
        };
        self.api.lease.streams.insert(call, stream);
        if meta.has_leader {
            self.api.lease.needing_leader.insert(call);
        }
    }

    /// A message of a stream, which may have been ended.
    pub(super) fn lease_stream_message(&mut self, id: CallId, message: Bytes) {
        let Some(stream) = self.api.lease.streams.get(&id) else { return };
        if stream.failed.is_some() {
            return;
        }
        let (caller, deadline_ms) = (stream.caller.clone(), stream.deadline_ms);
        let take = |cx: &mut Cx<'_>, call, message| cx.lease_stream_message(call, message);
        match self.api.put_off_message(id, &caller, message.clone(), take) {
            Ok(()) => {}
            Err(Refusal::Status(status)) => return self.end_lease_stream(id, &status),
            Err(_) => return,
        }
        let Some(stream) = self.api.lease.streams.get(&id) else { return };
        let call = Call {
            id,
            deadline_ms: Some(deadline_ms),
            caller,
            // Nobody is told of single renewals.
            method: MethodId(0),
            began: Duration::from_millis(self.api.now_ms),
            asked: None,
        };
        let number = stream.first + stream.renewals.len() as u64;
        let lease = match entry::request::<pb::LeaseKeepAliveRequest>(message) {
            Ok(request) => request.id,
            Err(error) => return self.fail_lease_stream(id, number, malformed_message(error)),
        };
        let header = self.api.shared.header(self.api.reads.store().revision.0);
        let kind = CallKind::Lease(LeaseCall::KeepAlive { number });
        let pending = self.api.pending_call(call, kind);
        let asked = if self.api.lease.unanswered < limits::KEEP_ALIVES {
            self.api.ask_lessor(pending, LeaseQuery::Renew { id: lease })
        } else {
            Err(EtcdError::TooManyRequests)
        };
        let slot = match asked {
            Ok(slot) => slot,
            Err(error) => return self.fail_lease_stream(id, number, error.into()),
        };
        let Some(stream) = self.api.lease.streams.get_mut(&id) else { return };
        stream.renewals.push_back(Renewal { slot, id: lease, header, ttl_s: None });
        self.api.lease.unanswered += 1;
        if !stream.held && stream.renewals.len() >= limits::KEEP_ALIVES_PER_STREAM {
            stream.held = true;
            self.out.hold(id, true);
        }
    }

    /// The client of a stream sends no more.
    pub(super) fn lease_stream_half_closed(&mut self, call: CallId) {
        let Some(stream) = self.api.lease.streams.get_mut(&call) else { return };
        stream.half_closed = true;
        self.send_renewals(call);
    }

    /// Sends the renewals of this turn.
    pub(super) fn send_ready_renewals(&mut self) {
        let mut ready = std::mem::take(&mut self.api.lease.ready);
        for call in ready.drain(..) {
            self.send_renewals(call);
        }
        self.api.lease.ready = ready;
    }

    /// Sends the answers that are ready, in order, as far as the client's window goes; then ends
    /// the stream if it is to end.
    pub(super) fn send_renewals(&mut self, call: CallId) {
        let Some(mut stream) = self.api.lease.streams.remove(&call) else { return };
        let before = stream.renewals.len();
        stream.ready = false;
        let mut gone = self.send_some_renewals(call, &mut stream);
        let draining = self.api.draining;
        let ends = stream.failed.is_some() || stream.half_closed || draining;
        if !gone && stream.renewals.is_empty() && ends {
            gone = true;
            match &stream.failed {
                Some(status) => self.out.fail(call, status),
                None if stream.half_closed => self.out.finish(call),
                None => self.out.fail(call, &EtcdError::Stopped.into()),
            }
        }
        self.api.lease.unanswered -= before - stream.renewals.len();
        if gone {
            self.api.lease.needing_leader.remove(&call);
            self.api.lease.unanswered -= stream.renewals.len();
            self.api.forget_renewals(stream.renewals);
        } else {
            self.api.lease.streams.insert(call, stream);
        }
    }

    /// True if the client is gone.
    fn send_some_renewals(&mut self, call: CallId, stream: &mut KeepAlive) -> bool {
        let mut message = self.api.reads.take_buffer();
        let mut framed = Vec::new();
        let mut gone = false;
        while !gone && matches!(stream.renewals.front(), Some(first) if first.ttl_s.is_some()) {
            let Ok(room) = self.out.capacity(call) else {
                gone = true;
                break;
            };
            framed.clear();
            let first = stream.first;
            while let Some(Renewal { id, header, ttl_s: Some(ttl_s), .. }) = stream.renewals.front()
                && framed.len() < room
            {
                message.clear();
                header.write(&mut message);
                write_int64(&mut message, 2, *id);
                write_int64(&mut message, 3, *ttl_s);
                frame_message(&message, &mut framed);
                stream.renewals.pop_front();
                stream.first += 1;
            }
            if framed.is_empty() {
                break;
            }
            gone = self.out.send_framed(call, &framed, stream.first - first).is_err();
        }
        self.api.reads.keep_buffer(message);
        if !gone && stream.held && stream.renewals.len() <= limits::KEEP_ALIVES_PER_STREAM / 2 {
            stream.held = false;
            self.out.hold(call, false);
        }
        gone
    }

    /// Ends a stream with an error in place of an answer: those before it are sent first, as etcd
    /// answers one after the other.
    fn fail_lease_stream(&mut self, call: CallId, number: u64, status: Status) {
        let Some(stream) = self.api.lease.streams.get_mut(&call) else { return };
        let at = usize::try_from(number.saturating_sub(stream.first)).unwrap_or(usize::MAX);
        let dropped = stream.renewals.split_off(at.min(stream.renewals.len()));
        stream.failed = Some(status);
        self.api.lease.unanswered -= dropped.len();
        self.api.forget_renewals(dropped);
        self.send_renewals(call);
    }

    /// Ends a stream with an error. What was not answered is not.
    fn end_lease_stream(&mut self, call: CallId, status: &Status) {
        if let Some(stream) = self.api.lease.remove(call) {
            self.api.forget_renewals(stream.renewals);
            self.out.fail(call, status);
        }
    }

    /// Ends streams that must not go on without a leader. Their deadlines are the transport's.
    pub(super) fn tick_lease_streams(&mut self) {
        let now_ms = self.api.now_ms;
        if self.api.shared.has_leader() {
            self.api.lease.leader_seen_ms = now_ms;
        }
        let election_ms = millis(self.api.shared.config.election);
        if now_ms - self.api.lease.leader_seen_ms > LEADERLESS_ELECTIONS * election_ms {
            for call in std::mem::take(&mut self.api.lease.needing_leader) {
                self.end_lease_stream(call, &EtcdError::NoLeader.into());
            }
        }
    }

    /// Ends the streams of a member that stops, once what they asked is answered.
    pub(super) fn drain_lease_streams(&mut self) {
        let calls: Vec<CallId> = self.api.lease.streams.keys().copied().collect();
        for call in calls {
            self.send_renewals(call);
        }
    }

    /// A query was not answered in time: without a leader that is why.
    pub(super) fn time_out_lease(&mut self, call: CallId, asked: LeaseCall, error: EtcdError) {
        let no_leader = error == EtcdError::Timeout && !self.api.shared.has_leader();
        let status = if no_leader { EtcdError::NoLeader } else { error }.into();
        match asked {
            LeaseCall::KeepAlive { .. } => self.end_lease_stream(call, &status),
            _ => self.out.fail(call, &status),
        }
    }
}
