//! The Lease service at a front: grants and revocations are proposed, everything else is asked of
//! the replica through the ring for leases.
//!
//! A KeepAlive stream may carry many leases. Its renewals are passed on as they come and answered
//! in their order, each with a header made before it was passed on: so no header claims a later
//! state than the one in which the lease was alive. What a stream may have unanswered is bounded: a
//! client that asks and does not read finds its window shut.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use etcore_proto::error::{EtcdError, Status};
use etcore_proto::grpc::{RequestMeta, StreamId, frame_message};
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message;

use super::Front;
use super::calls::{Call, Outcome, Refusal, decode, malformed_message};
use super::conn::Conn;
use super::tasks::{Kind, LeaseCall, Task, To};
use crate::api::answer::Draft;
use crate::auth;
use crate::driver::SocketId;
use crate::entry::{self, field};
use crate::limits;
use crate::quota;
use crate::replica::{LeaseAnswer, LeaseAsk, LeaseQuestion, Slot};
use crate::wire::{Header, write_int64};

/// A stream that asked for a leader ends after so many election timeouts without one.
const LEADERLESS_ELECTIONS: u64 = 3;

/// The KeepAlive streams of a front. Invariant: `unanswered` is the sum of the streams' queues.
#[derive(Default)]
pub(super) struct KeepAlives {
    streams: BTreeMap<(SocketId, StreamId), KeepAlive>,
    /// Those that must not go on without a leader.
    needing_leader: BTreeSet<(SocketId, StreamId)>,
    unanswered: usize,
    /// Streams with answers to be sent at the end of the turn, so that they leave together.
    ready: Vec<(SocketId, StreamId)>,
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

impl KeepAlives {
    fn remove(&mut self, key: (SocketId, StreamId)) -> Option<KeepAlive> {
        let stream = self.streams.remove(&key)?;
        self.needing_leader.remove(&key);
        self.unanswered -= stream.renewals.len();
        Some(stream)
    }

    fn keys_of(&self, socket: SocketId) -> Vec<(SocketId, StreamId)> {
        let of_it = (socket, StreamId::MIN)..=(socket, StreamId::MAX);
        self.streams.range(of_it).map(|(key, _)| *key).collect()
    }
}

impl Front {
    pub(super) fn lease_grant(&mut self, call: Call, message: Bytes) -> Outcome {
        let mut request: pb::LeaseGrantRequest = decode(message.clone())?;
        if !self.has_space_for(quota::LEASE_COST_BYTES) {
            return self.out_of_space(call);
        }
        if request.id != 0 {
            return self.propose(call, field::LEASE_GRANT, &message);
        }
        request.id = self.new_lease_id();
        self.propose(call, field::LEASE_GRANT, &request.encode_to_vec())
    }

    pub(super) fn lease_revoke(&mut self, call: Call, message: Bytes) -> Outcome {
        decode::<pb::LeaseRevokeRequest>(message.clone())?;
        self.propose(call, field::LEASE_REVOKE, &message)
    }

    pub(super) fn lease_time_to_live(&mut self, call: Call, message: Bytes) -> Outcome {
        let pb::LeaseTimeToLiveRequest { id, keys } = decode(message)?;
        let task = self.task(call, Kind::Lease(LeaseCall::TimeToLive { id }));
        self.ask_lessor(task, LeaseQuestion::TimeToLive { id, keys })?;
        Err(Refusal::Waiting)
    }

    pub(super) fn lease_leases(&mut self, call: Call, message: Bytes) -> Outcome {
        decode::<pb::LeaseLeasesRequest>(message)?;
        let task = self.task(call, Kind::Lease(LeaseCall::Leases));
        self.ask_lessor(task, LeaseQuestion::List)?;
        Err(Refusal::Waiting)
    }

    /// A positive number that no other lease is likely to have: the next of a sequence that visits
    /// all 64-bit numbers, scrambled (splitmix64).
    fn new_lease_id(&mut self) -> i64 {
        loop {
            self.next_lease_seed = self.next_lease_seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut id = self.next_lease_seed;
            id = (id ^ id >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            id = (id ^ id >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            id ^= id >> 31;
            let id = (id >> 1).cast_signed();
            if id != 0 {
                return id;
            }
        }
    }

    fn ask_lessor(&mut self, task: Task, question: LeaseQuestion) -> Result<Slot, EtcdError> {
        if self.draining {
            return Err(EtcdError::Stopped);
        }
        let deadline_ms = task.deadline_ms;
        let slot = self.tasks.insert(task).map_err(|_| EtcdError::TooManyRequests)?;
        self.asks.push_back(LeaseAsk { slot, deadline_ms, question });
        Ok(slot)
    }

    /// Passes questions on, as far as the ring has room.
    pub(super) fn push_asks(&mut self) {
        while let Some(ask) = self.asks.pop_front() {
            if !self.tasks.is_waiting(ask.slot) {
                continue;
            }
            if let Err(ask) = self.to_lessor.push(ask) {
                self.asks.push_front(ask);
                break;
            }
        }
        self.to_lessor.flush();
    }

    /// The replica has answered.
    pub(super) fn finish_lease(&mut self, slot: Slot, answer: LeaseAnswer) {
        let Some(task) = self.tasks.remove(slot) else { return };
        let Task { socket, to, kind: Kind::Lease(lease_call), .. } = task else { return };
        let mut head = Vec::new();
        let fields = match (lease_call, answer) {
            (LeaseCall::KeepAlive { number }, LeaseAnswer::Renewed { ttl_s }) => {
                let To::Call(stream) = to else { return };
                return self.renewed((socket, stream), number, ttl_s);
            }
            (LeaseCall::KeepAlive { number }, LeaseAnswer::Refused(status)) => {
                let To::Call(stream) = to else { return };
                return self.fail_keep_alive((socket, stream), number, status);
            }
            (_, LeaseAnswer::Refused(status)) => return self.reply_status(socket, to, &status),
            _ if self.view.auth.is_enabled() => {
                return self.reply_status(socket, to, &auth::not_served());
            }
            (LeaseCall::TimeToLive { id }, LeaseAnswer::TimeToLive { times, keys }) => {
                self.shared.header(self.view.store.revision.0).write(&mut head);
                write_int64(&mut head, 2, id);
                write_int64(&mut head, 3, times.map_or(-1, |times| times.left_s));
                write_int64(&mut head, 4, times.map_or(0, |times| times.granted_s));
                keys
            }
            (LeaseCall::Leases, LeaseAnswer::Leases(leases)) => {
                self.shared.header(self.view.store.revision.0).write(&mut head);
                leases
            }
            _ => return self.reply_status(socket, to, &EtcdError::Stopped.into()),
        };
        let mut draft = Draft::default();
        draft.pieces(fields);
        match to {
            To::Call(stream) if !draft.is_short() => {
                let call = Call { socket, stream, deadline_ms: None };
                self.start_answer(call, draft.without_keys(&head));
            }
            _ => {
                let mut out = Vec::new();
                draft.write_short(&head, &mut out);
                self.reply_message(socket, to, &out);
            }
        }
    }

    /// A KeepAlive stream was opened.
    pub(super) fn open_keep_alive(&mut self, key: (SocketId, StreamId), meta: &RequestMeta) {
        let stopped = self.draining.then_some(EtcdError::Stopped);
        let refused = stopped.or_else(|| self.refused_by_head(meta));
        if let Some(error) = refused {
            return self.reply_status(key.0, To::Call(key.1), &error.into());
        }
        let stream = KeepAlive {
            renewals: VecDeque::new(),
            first: 0,
            half_closed: false,
            failed: None,
            held: false,
            deadline_ms: meta.deadline_ms.unwrap_or(u64::MAX),
            ready: false,
        };
        self.keep_alives.streams.insert(key, stream);
        if meta.has_leader {
            self.keep_alives.needing_leader.insert(key);
        }
    }

    /// A message of a stream, which may have been ended.
    pub(super) fn keep_alive(&mut self, key: (SocketId, StreamId), message: Bytes) {
        let Some(stream) = self.keep_alives.streams.get(&key) else { return };
        if stream.failed.is_some() {
            return;
        }
        let (socket, stream_id) = key;
        let call = Call { socket, stream: stream_id, deadline_ms: Some(stream.deadline_ms) };
        let number = stream.first + stream.renewals.len() as u64;
        let id = match entry::request::<pb::LeaseKeepAliveRequest>(message) {
            Ok(request) => request.id,
            Err(error) => return self.fail_keep_alive(key, number, malformed_message(error)),
        };
        let header = self.shared.header(self.view.store.revision.0);
        let task = self.task(call, Kind::Lease(LeaseCall::KeepAlive { number }));
        let asked = if self.keep_alives.unanswered < limits::KEEP_ALIVES {
            self.ask_lessor(task, LeaseQuestion::Renew { id })
        } else {
            Err(EtcdError::TooManyRequests)
        };
        let slot = match asked {
            Ok(slot) => slot,
            Err(error) => return self.fail_keep_alive(key, number, error.into()),
        };
        let Some(stream) = self.keep_alives.streams.get_mut(&key) else { return };
        stream.renewals.push_back(Renewal { slot, id, header, ttl_s: None });
        self.keep_alives.unanswered += 1;
        if !stream.held && stream.renewals.len() >= limits::KEEP_ALIVES_PER_STREAM {
            stream.held = true;
            if let Some(server) = self.conn(socket).and_then(Conn::grpc) {
                server.hold(stream_id, true);
            }
        }
    }

    /// The client of a stream sends no more.
    pub(super) fn keep_alive_half_closed(&mut self, key: (SocketId, StreamId)) {
        let Some(stream) = self.keep_alives.streams.get_mut(&key) else { return };
        stream.half_closed = true;
        self.send_renewals(key);
    }

    fn renewed(&mut self, key: (SocketId, StreamId), number: u64, ttl_s: i64) {
        let Some(stream) = self.keep_alives.streams.get_mut(&key) else { return };
        let at = usize::try_from(number - stream.first).unwrap_or(usize::MAX);
        if let Some(renewal) = stream.renewals.get_mut(at) {
            renewal.ttl_s = Some(ttl_s);
            if !std::mem::replace(&mut stream.ready, true) {
                self.keep_alives.ready.push(key);
            }
        }
    }

    /// Sends the renewals of this turn.
    pub(super) fn send_ready_renewals(&mut self) {
        let mut ready = std::mem::take(&mut self.keep_alives.ready);
        for key in ready.drain(..) {
            self.send_renewals(key);
        }
        self.keep_alives.ready = ready;
    }

    /// Sends the answers that are ready, in order, as far as the client's window goes; then ends
    /// the stream if it is to end.
    pub(super) fn send_renewals(&mut self, key: (SocketId, StreamId)) {
        let (socket, stream_id) = key;
        let Some(mut stream) = self.keep_alives.streams.remove(&key) else { return };
        let before = stream.renewals.len();
        let draining = self.draining;
        let mut message = std::mem::take(&mut self.answer);
        let mut gone = true;
        stream.ready = false;
        if let Some(server) = self.conn(socket).and_then(Conn::grpc) {
            gone = false;
            let mut out = Vec::new();
            while !gone && matches!(stream.renewals.front(), Some(first) if first.ttl_s.is_some()) {
                let room = server.capacity(stream_id);
                out.clear();
                while let Some(Renewal { id, header, ttl_s: Some(ttl_s), .. }) =
                    stream.renewals.front()
                    && out.len() < room
                {
                    message.clear();
                    header.write(&mut message);
                    write_int64(&mut message, 2, *id);
                    write_int64(&mut message, 3, *ttl_s);
                    frame_message(&message, &mut out);
                    stream.renewals.pop_front();
                    stream.first += 1;
                }
                if out.is_empty() {
                    break;
                }
                gone = server.send_framed(stream_id, &out).is_err();
            }
            if stream.held && stream.renewals.len() <= limits::KEEP_ALIVES_PER_STREAM / 2 {
                stream.held = false;
                server.hold(stream_id, false);
            }
            let ends = stream.failed.is_some() || stream.half_closed || draining;
            if !gone && stream.renewals.is_empty() && ends {
                gone = true;
                // An error means that the client is gone; the transport has noticed.
                let _ = if let Some(Status { code, message, .. }) = &stream.failed {
                    server.reply_error(stream_id, *code, message)
                } else if stream.half_closed {
                    server.finish(stream_id, etcore_proto::error::Code::Ok, "")
                } else {
                    let status: Status = EtcdError::Stopped.into();
                    server.reply_error(stream_id, status.code, &status.message)
                };
            }
        }
        self.answer = message;
        self.keep_alives.unanswered -= before - stream.renewals.len();
        if gone {
            self.keep_alives.needing_leader.remove(&key);
            self.keep_alives.unanswered -= stream.renewals.len();
            self.forget_renewals(stream.renewals);
        } else {
            self.keep_alives.streams.insert(key, stream);
        }
        self.mark_dirty(socket);
    }

    fn forget_renewals(&mut self, renewals: VecDeque<Renewal>) {
        for renewal in renewals {
            if renewal.ttl_s.is_none() {
                self.tasks.remove(renewal.slot);
            }
        }
    }

    /// Ends a stream with an error in place of an answer: those before it are sent first, as etcd
    /// answers one after the other.
    fn fail_keep_alive(&mut self, key: (SocketId, StreamId), number: u64, status: Status) {
        let Some(stream) = self.keep_alives.streams.get_mut(&key) else { return };
        let at = usize::try_from(number.saturating_sub(stream.first)).unwrap_or(usize::MAX);
        let dropped = stream.renewals.split_off(at.min(stream.renewals.len()));
        stream.failed = Some(status);
        self.keep_alives.unanswered -= dropped.len();
        self.forget_renewals(dropped);
        self.send_renewals(key);
    }

    /// Ends a stream with an error. What was not answered is not.
    pub(super) fn end_keep_alive(&mut self, key: (SocketId, StreamId), status: &Status) {
        if let Some(stream) = self.keep_alives.remove(key) {
            self.forget_renewals(stream.renewals);
            self.reply_status(key.0, To::Call(key.1), status);
        }
    }

    /// The client has gone away from a stream.
    pub(super) fn keep_alive_cancelled(&mut self, key: (SocketId, StreamId)) {
        if let Some(stream) = self.keep_alives.remove(key) {
            self.forget_renewals(stream.renewals);
        }
    }

    /// The connection is closed.
    pub(super) fn keep_alives_closed(&mut self, socket: SocketId) {
        for key in self.keep_alives.keys_of(socket) {
            self.keep_alive_cancelled(key);
        }
    }

    /// Ends streams that must not go on without a leader. Their deadlines are the transport's.
    pub(super) fn tick_keep_alives(&mut self) {
        if self.shared.has_leader() {
            self.leader_seen_ms = self.now_ms;
        }
        let election_ms = super::millis(self.shared.config.election);
        let leaderless = self.now_ms - self.leader_seen_ms > LEADERLESS_ELECTIONS * election_ms;
        if leaderless {
            for key in std::mem::take(&mut self.keep_alives.needing_leader) {
                self.end_keep_alive(key, &EtcdError::NoLeader.into());
            }
        }
    }

    /// Ends the streams of a member that stops, once what they asked is answered.
    pub(super) fn drain_keep_alives(&mut self) {
        let keys: Vec<_> = self.keep_alives.streams.keys().copied().collect();
        for key in keys {
            self.send_renewals(key);
        }
    }

    /// A question was not answered in time: without a leader that is why.
    pub(super) fn time_out_lease(&mut self, task: &Task, lease_call: LeaseCall, error: EtcdError) {
        let no_leader = error == EtcdError::Timeout && !self.shared.has_leader();
        let status = if no_leader { EtcdError::NoLeader } else { error }.into();
        match (lease_call, task.to) {
            (LeaseCall::KeepAlive { .. }, To::Call(stream)) => {
                self.end_keep_alive((task.socket, stream), &status);
            }
            _ => self.reply_status(task.socket, task.to, &status),
        }
    }
}
