//! Answers: replies of the replica, evaluated reads, errors, and what time has run out for.

use std::sync::atomic::{AtomicU64, Ordering};

use etcore_proto::error::{EtcdError, Status};
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message;

use super::Front;
use super::calls::{Call, Refusal};
use super::conn::Conn;
use super::tasks::{Kind, Task, To};
use crate::api::range;
use crate::api::reader::Stop;
use crate::auth;
use crate::driver::SocketId;
use crate::http::{self, Page};
use crate::limits;
use crate::replica::{Reply, Slot, ToFront, ToReplica};
use crate::work::Job;

impl Front {
    /// Takes everything the replica sent.
    pub(super) fn take_replies(&mut self) {
        let mut any = false;
        while let Some(message) = self.from_replica.pop() {
            if !any {
                // Replies never overtake the view: what they speak of is in the one loaded now.
                any = true;
                self.begin_turn(self.now_ms);
            }
            match message {
                ToFront::Reply { slot, reply } => self.finish_proposal(slot, reply),
                ToFront::ReadReady { up_to, index } => {
                    let applied = self.view.store.applied;
                    self.tasks.tickets_ready(up_to, index, applied);
                }
                ToFront::Defragmented { slot } => {
                    if let Some(task) = self.tasks.remove(slot) {
                        // A DefragmentResponse is empty: etcd sends no header.
                        self.reply_message(task.socket, task.to, b"");
                    }
                }
                ToFront::Lease { slot, answer } => self.finish_lease(slot, answer),
                ToFront::Serve => self.serve = true,
            }
        }
        self.send_ready_renewals();
        self.tasks.view_advanced(self.view.store.applied);
    }

    /// One read round for all tickets taken since the last.
    pub(super) fn ask_for_reads(&mut self) {
        if self.next_ticket > self.asked_ticket {
            self.asked_ticket = self.next_ticket;
            self.push_replica(ToReplica::Read { up_to: self.next_ticket });
        }
    }

    /// A connection's proposal is answered: it may be read again.
    fn proposal_ended(&mut self, socket: SocketId, bytes: usize) {
        if let Some(conn) = self.conn(socket) {
            conn.proposal_bytes = conn.proposal_bytes.saturating_sub(bytes);
        }
    }

    fn finish_proposal(&mut self, slot: Slot, reply: Reply) {
        let Some(task) = self.tasks.remove(slot) else { return };
        if !matches!(task.kind, Kind::Abandoned) {
            self.proposal_ended(task.socket, task.bytes);
        }
        match task.kind {
            Kind::Abandoned => return,
            Kind::QuotaAlarm => {
                return self.reply_status(task.socket, task.to, &EtcdError::NoSpace.into());
            }
            _ => {}
        }
        match reply {
            Reply::Header { revision } => {
                let header = self.shared.header(revision);
                self.answer.clear();
                header.write(&mut self.answer);
                let answer = std::mem::take(&mut self.answer);
                self.reply_message(task.socket, task.to, &answer);
                self.answer = answer;
            }
            Reply::Message(message) => self.reply_message(task.socket, task.to, &message),
            Reply::Long(answer) => {
                if let To::Call(stream) = task.to {
                    let call = Call { socket: task.socket, stream, deadline_ms: None };
                    self.start_answer(call, *answer);
                }
            }
            Reply::Refused(status) => self.reply_status(task.socket, task.to, &status),
        }
    }

    /// Goes on with requests that can; those that become runnable meanwhile wait for the next turn.
    pub(super) fn run_tasks(&mut self) {
        if self.pages.take_arrived() {
            self.tasks.pages_arrived();
            self.watching.hub.pages_arrived();
        }
        for _ in 0..self.tasks.runnable_count() {
            let Some(slot) = self.tasks.next_runnable() else { break };
            let Some(task) = self.tasks.remove(slot) else { continue };
            self.run(task);
        }
        for _ in 0..self.tasks.long_count() {
            if self.listed_bytes >= limits::LIST_ROUND_BYTES {
                break;
            }
            let Some(slot) = self.tasks.next_long() else { break };
            let Some(task) = self.tasks.remove(slot) else { continue };
            self.run(task);
        }
        self.pages.fetch_wanted();
    }

    fn run(&mut self, task: Task) {
        self.work.note(Job::Requests);
        let Task { socket, to, kind, deadline_ms, client_deadline, .. } = task;
        let resume = Some((deadline_ms, client_deadline));
        let To::Call(stream) = to else {
            if let Kind::Health(check) = kind {
                self.finish_health(socket, &check, Ok(()));
            }
            return;
        };
        let call = Call { socket, stream, deadline_ms: Some(deadline_ms) };
        // Whoever began when nobody had to say who he is must do so now.
        let reads = matches!(
            kind,
            Kind::Range(_)
                | Kind::ReadTxn(_)
                | Kind::Stream(_)
                | Kind::MemberList
                | Kind::AlarmList(_)
        );
        if reads && self.view.auth.is_enabled() {
            return self.reply_status(socket, to, &auth::not_served());
        }
        let outcome = match kind {
            Kind::Range(request) => self.answer_range(call, request, resume),
            Kind::ReadTxn(request) => self.start_read_txn(call, *request),
            Kind::Stream(request) => self.start_stream(call, request),
            Kind::Long(long) => {
                self.continue_long(call, long);
                Ok(())
            }
            Kind::MemberList => {
                self.answer_member_list(socket, to);
                Ok(())
            }
            Kind::AlarmList(kind) => {
                self.answer_alarm_list(socket, to, kind);
                Ok(())
            }
            Kind::Proposal
            | Kind::QuotaAlarm
            | Kind::Abandoned
            | Kind::Hash
            | Kind::HashKv
            | Kind::Defragment
            | Kind::MoveLeader
            | Kind::Lease(_)
            | Kind::Health(_) => Ok(()),
        };
        if let Err(Refusal::Status(status)) = outcome {
            self.reply_status(socket, to, &status);
        }
    }

    /// Evaluates a Range on the view of this turn and answers it, or has it wait for a page, or
    /// begins to answer in slices if it is long.
    pub(super) fn answer_range(
        &mut self,
        call: Call,
        request: Box<pb::RangeRequest>,
        resume: Option<(u64, bool)>,
    ) -> Result<(), Refusal> {
        let view = self.view.clone();
        let shared = self.shared.clone();
        self.answer.clear();
        let answered = range::respond_short(
            &*view.store,
            &request,
            range::SHORT,
            (self.pages.source(), &mut self.scratch),
            |revision| shared.header(revision.0),
            &mut self.answer,
        );
        match answered {
            Ok(true) => {
                let answer = std::mem::take(&mut self.answer);
                self.reply_message(call.socket, To::Call(call.stream), &answer);
                self.answer = answer;
                if self.answer.capacity() > limits::ANSWER_BUFFER_BYTES {
                    self.answer = Vec::new();
                }
                Ok(())
            }
            Ok(false) => self.start_range(call, &request),
            Err(stop) => {
                let mut task = self.task(call, Kind::Range(request));
                if let Some((deadline_ms, client_deadline)) = resume {
                    (task.deadline_ms, task.client_deadline) = (deadline_ms, client_deadline);
                }
                self.stopped_by(stop, task)
            }
        }
    }

    /// A read that could not end now.
    pub(super) fn stopped_by(&mut self, stop: Stop, task: Task) -> Result<(), Refusal> {
        match stop {
            Stop::Refused(status) => Err(Refusal::Status(status)),
            Stop::NeedsPage(_) => {
                let slot = self.tasks.insert(task).map_err(|_| EtcdError::TooManyRequests)?;
                self.tasks.wait_for_page(slot);
                self.pages.fetch_wanted();
                Err(Refusal::Waiting)
            }
            Stop::Broken(error) => {
                // Never served, and loud: the page is damaged on this member's disk.
                tracing::error!(error = %error, "a read met damaged data");
                Err(EtcdError::Corrupt.into())
            }
        }
    }

    pub(super) fn answer_member_list(&mut self, socket: SocketId, to: To) {
        let header = self.shared.header(0);
        let response = pb::MemberListResponse {
            header: Some(pb::ResponseHeader {
                cluster_id: header.cluster_id,
                member_id: header.member_id,
                revision: 0,
                raft_term: header.raft_term,
            }),
            members: self.view.members.iter().map(crate::member::Member::to_pb).collect(),
        };
        self.reply_message(socket, to, &response.encode_to_vec());
    }

    /// Errors of sending mean that the client is gone, which the transport has noticed.
    pub(super) fn reply_message(&mut self, socket: SocketId, to: To, message: &[u8]) {
        if let To::Call(stream) = to
            && let Some(server) = self.conn(socket).and_then(Conn::grpc)
        {
            let _ = server.reply_unary(stream, message);
            self.mark_dirty(socket);
        }
    }

    pub(super) fn reply_status(&mut self, socket: SocketId, to: To, status: &Status) {
        match to {
            To::Call(stream) => {
                if let Some(server) = self.conn(socket).and_then(Conn::grpc) {
                    let _ = server.reply_error(stream, status.code, &status.message);
                    self.mark_dirty(socket);
                }
            }
            To::Plain => self.reply_page(socket, &unavailable(status)),
        }
    }

    /// Ends what has waited too long.
    pub(super) fn time_out_tasks(&mut self) {
        let overdue = self.tasks.overdue(self.now_ms);
        if overdue.is_empty() {
            return;
        }
        for slot in overdue {
            if let Some(task) = self.tasks.abandon(slot) {
                self.proposal_ended(task.socket, task.bytes);
                let error = match task.kind {
                    Kind::QuotaAlarm if !task.client_deadline => EtcdError::NoSpace,
                    _ => self.proposal_timed_out(task.deadline_ms, task.client_deadline),
                };
                self.reply_status(task.socket, task.to, &error.into());
                continue;
            }
            let Some(task) = self.tasks.remove(slot) else { continue };
            let error = timed_out(task.client_deadline);
            match task.kind {
                Kind::Health(check) => self.finish_health(task.socket, &check, Err(error)),
                Kind::Lease(lease_call) => self.time_out_lease(&task, lease_call, error),
                // etcd proposes it, as it does what changes alarms.
                Kind::AlarmList(_) => {
                    let error = self.proposal_timed_out(task.deadline_ms, task.client_deadline);
                    self.reply_status(task.socket, task.to, &error.into());
                }
                // The peer reads too slowly; what was sent cannot be completed by an error.
                Kind::Long(_) => self.abort_call(task.socket, task.to),
                _ => self.reply_status(task.socket, task.to, &error.into()),
            }
        }
        self.tasks.forget_ended();
    }

    /// Why a proposal was not answered in time, in etcd's words (parseProposeCtxErr). Without a
    /// leader etcd does not even propose, and its context's error is what the client gets.
    fn proposal_timed_out(&self, deadline_ms: u64, client_deadline: bool) -> EtcdError {
        if client_deadline {
            return EtcdError::ContextDeadlineExceeded;
        }
        let config = &self.shared.config;
        let since_ms = deadline_ms.saturating_sub(config.request_timeout_ms());
        let status = &self.shared.status;
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let leader = load(&status.leader);
        if leader == 0 && load(&status.leaderless_since_ms) <= since_ms {
            return EtcdError::ContextDeadlineExceeded;
        }
        let elected_ms = load(&status.elected_ms);
        let lost_ms = elected_ms.saturating_sub(2 * super::millis(config.election));
        if lost_ms < since_ms && since_ms < elected_ms {
            return EtcdError::TimeoutDueToLeaderFail;
        }
        if leader != 0 && load(&status.connected_since_ms) > since_ms {
            return EtcdError::TimeoutDueToConnectionLost;
        }
        EtcdError::Timeout
    }

    pub(super) fn abort_call(&mut self, socket: SocketId, to: To) {
        if let To::Call(stream) = to
            && let Some(server) = self.conn(socket).and_then(Conn::grpc)
        {
            server.abort(stream);
            self.mark_dirty(socket);
        }
    }
}

fn timed_out(client_deadline: bool) -> EtcdError {
    if client_deadline { EtcdError::ContextDeadlineExceeded } else { EtcdError::Timeout }
}

fn unavailable(status: &Status) -> Page {
    Page {
        status: 503,
        content_type: http::TEXT,
        headers: Vec::new(),
        body: status.message.as_bytes().to_vec(),
    }
}
