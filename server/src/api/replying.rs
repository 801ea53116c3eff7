//! How waiting calls go on: replies of the replica, points that were reached, pages that came, and
//! what time has run out for.

use std::sync::atomic::{AtomicU64, Ordering};

use etcore_proto::error::{EtcdError, Status};

use super::call::{Outcome, Refusal};
use super::pending::{CallKind, PendingCall, To};
use super::{Cx, Services};
use crate::channel::{Reply, Slot, ToFront};
use crate::clock::millis;
use crate::http::{self, Page};
use crate::work::Job;

impl Cx<'_> {
    /// Takes everything the replica sent.
    pub(super) fn take_replies(&mut self) {
        let mut any = false;
        while let Some(message) = self.api.from_replica.pop() {
            if !any {
                // Replies never overtake the view: what they speak of is in the one loaded now.
                any = true;
                self.api.begin_turn(self.api.now_ms);
            }
            match message {
                ToFront::Reply { slot, reply } => self.finish_proposal(slot, reply),
                ToFront::ReadReady { up_to, index } => {
                    let applied = self.api.reads.store().applied;
                    self.api.pending.tickets_ready(up_to, index, applied);
                }
                ToFront::Defragmented { slot } => {
                    if let Some(PendingCall { to: To::Call(call), .. }) =
                        self.api.pending.remove(slot)
                    {
                        // A DefragmentResponse is empty: etcd sends no header.
                        self.out.reply(call.id, b"");
                        self.api.ended(&call, None);
                    }
                }
                ToFront::Lease { slot, answer } => self.finish_lease(slot, answer),
                ToFront::Serve => self.api.serving = true,
            }
        }
        self.send_ready_renewals();
        self.api.pending.view_advanced(self.api.reads.store().applied);
    }

    fn finish_proposal(&mut self, slot: Slot, reply: Reply) {
        let Some(PendingCall { to, kind, bytes, .. }) = self.api.pending.remove(slot) else {
            return;
        };
        if !matches!(kind, CallKind::Abandoned) {
            self.out.proposal_ended(to.conn(), bytes);
        }
        let To::Call(mut call) = to else { return };
        if self.api.tells_of(&call) {
            call.asked = call.asked.take().or_else(|| kind.asked());
        }
        match (kind, reply) {
            (CallKind::Abandoned, _) => {}
            (CallKind::Login(login), reply @ (Reply::Message(_) | Reply::Header { .. })) => {
                self.finish_login(call, login, reply);
            }
            (CallKind::QuotaAlarm, _) => self.out.fail(call.id, &EtcdError::NoSpace.into()),
            (_, Reply::Header { revision }) => {
                let mut answer = self.api.reads.take_buffer();
                self.api.shared.header(revision).write(&mut answer);
                self.out.reply(call.id, &answer);
                self.api.ended(&call, Some(&answer));
                self.api.reads.keep_buffer(answer);
            }
            (_, Reply::Message(message)) => {
                self.out.reply(call.id, &message);
                self.api.ended(&call, Some(&message));
            }
            (_, Reply::Long(answer)) => self.start_answer(call, *answer),
            (_, Reply::Refused(status)) => {
                self.api.ended(&call, None);
                self.out.fail(call.id, &status);
            }
        }
    }

    /// Goes on with calls that can; those that become runnable meanwhile wait for the next turn.
    pub(super) fn run_pending(&mut self) {
        if self.api.reads.take_arrived() {
            self.api.pending.pages_arrived();
            self.api.watch.pages_arrived();
        }
        for _ in 0..self.api.pending.runnable_count() {
            let Some(slot) = self.api.pending.next_runnable() else { break };
            let Some(pending) = self.api.pending.remove(slot) else { continue };
            self.resume(pending);
        }
        for _ in 0..self.api.pending.long_count() {
            if !self.api.may_list() {
                break;
            }
            let Some(slot) = self.api.pending.next_long() else { break };
            let Some(pending) = self.api.pending.remove(slot) else { continue };
            self.resume(pending);
        }
        self.api.reads.fetch_wanted();
    }

    fn resume(&mut self, pending: PendingCall) {
        self.api.work.note(Job::Requests);
        let PendingCall { to, kind, deadline_ms, client_deadline, .. } = pending;
        let resume = Some((deadline_ms, client_deadline));
        let mut call = match to {
            To::Call(call) => call,
            To::Http(id) => {
                if let CallKind::Health(check) = kind {
                    self.finish_health(id, &check, Ok(()));
                }
                return;
            }
            To::Nobody(_) => return,
        };
        call.deadline_ms = Some(deadline_ms);
        let told = self.api.tells_of(&call).then(|| {
            call.asked = call.asked.take().or_else(|| kind.asked());
            call.clone()
        });
        let id = call.id;
        let outcome = match kind {
            CallKind::Range(request) => self.answer_range(call, *request, resume),
            CallKind::ReadTxn(request) => self.answer_read_txn(call, *request),
            CallKind::Stream(request) => self.answer_stream(call, request),
            CallKind::Long(long) => {
                self.continue_long(call, long);
                Ok(())
            }
            CallKind::AtPoint(answer) => {
                answer(self, &call).inspect(|()| self.api.ended(&call, None))
            }
            CallKind::AuthQuestion(question) => self
                .answer_auth_question(&call, &question)
                .inspect(|()| self.api.ended(&call, None)),
            CallKind::Credentials(credentials) => self.look_at_credentials(call, credentials),
            CallKind::Early(unary) => {
                self.api.early.ended(unary.message.len());
                self.api.unary(self.out, *unary);
                Ok(())
            }
            CallKind::EarlyMessage(early) => {
                let (message, take) = *early;
                self.api.early.ended(message.len());
                take(self, id, message);
                Ok(())
            }
            CallKind::AlarmList(kind) => {
                self.answer_alarm_list(&call, kind).inspect(|()| self.api.ended(&call, None))
            }
            CallKind::Proposal(_)
            | CallKind::QuotaAlarm
            | CallKind::Abandoned
            | CallKind::Hash
            | CallKind::HashKv
            | CallKind::Defragment
            | CallKind::MoveLeader
            | CallKind::ChangeMembers
            | CallKind::Password(_)
            | CallKind::Login(_)
            | CallKind::Lease(_)
            | CallKind::Health(_) => Ok(()),
        };
        if let Err(Refusal::Status(status)) = outcome {
            if let Some(told) = told {
                self.api.ended(&told, None);
            }
            self.out.fail(id, &status);
        }
    }

    /// A call that lacks a page waits for it.
    pub(super) fn wait_for_page(&mut self, pending: PendingCall) -> Outcome {
        let slot = self.api.pending.insert(pending).map_err(|_| EtcdError::TooManyRequests)?;
        self.api.pending.wait_for_page(slot);
        self.api.reads.fetch_wanted();
        Err(Refusal::Waiting)
    }

    fn fail_to(&mut self, to: &To, status: &Status) {
        match to {
            To::Call(call) => {
                self.api.ended(call, None);
                self.out.fail(call.id, status);
            }
            To::Http(id) => self.out.respond(*id, &unavailable(status)),
            To::Nobody(_) => {}
        }
    }

    /// Ends what has waited too long.
    pub(super) fn time_out_pending(&mut self) {
        let overdue = self.api.pending.overdue(self.api.now_ms);
        if overdue.is_empty() {
            return;
        }
        let mut read_timed_out = false;
        for slot in overdue {
            if let Some(mut left) = self.api.pending.abandon(slot) {
                if let To::Call(call) = &mut left.to {
                    call.asked = call.asked.take().or_else(|| left.kind.asked());
                }
                self.out.proposal_ended(left.to.conn(), left.bytes);
                let error = match left.kind {
                    CallKind::QuotaAlarm if !left.client_deadline => EtcdError::NoSpace,
                    _ => self.api.proposal_timed_out(left.deadline_ms, left.client_deadline),
                };
                self.fail_to(&left.to, &error.into());
                continue;
            }
            let Some(left) = self.api.pending.remove(slot) else { continue };
            let error = timed_out(left.client_deadline);
            read_timed_out |= left.kind.waits_for_read_index();
            match (left.kind, &left.to) {
                (CallKind::Health(check), To::Http(id)) => {
                    self.finish_health(*id, &check, Err(error));
                }
                (CallKind::Lease(query), To::Call(call)) => {
                    self.time_out_lease(call.id, query, error);
                }
                // etcd proposes it, as it does what changes alarms.
                (CallKind::AlarmList(_), to) => {
                    let error = self.api.proposal_timed_out(left.deadline_ms, left.client_deadline);
                    self.fail_to(to, &error.into());
                }
                (CallKind::ChangeMembers, to) => {
                    let error = self.api.proposal_timed_out(left.deadline_ms, left.client_deadline);
                    self.fail_to(to, &error.into());
                }
                (CallKind::Early(unary), to) => {
                    self.api.early.ended(unary.message.len());
                    self.fail_to(to, &EtcdError::InvalidAuthToken.into());
                }
                (CallKind::EarlyMessage(early), to) => {
                    self.api.early.ended(early.0.len());
                    self.fail_to(to, &EtcdError::InvalidAuthToken.into());
                }
                // The peer reads too slowly; what was sent cannot be completed by an error.
                (CallKind::Long(_), To::Call(call)) => self.out.abort(call.id),
                (_, to) => self.fail_to(to, &error.into()),
            }
        }
        if read_timed_out {
            // They waited for the same word of the leader.
            self.api.shared.metrics.slow_read_indexes.inc();
        }
        self.api.pending.forget_ended();
    }
}

impl Services {
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
        let lost_ms = elected_ms.saturating_sub(2 * millis(config.election));
        if lost_ms < since_ms && since_ms < elected_ms {
            return EtcdError::TimeoutDueToLeaderFail;
        }
        if leader != 0 && load(&status.connected_since_ms) > since_ms {
            return EtcdError::TimeoutDueToConnectionLost;
        }
        EtcdError::Timeout
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
