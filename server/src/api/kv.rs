//! The KV service: Range, RangeStream, Put, DeleteRange, Txn and Compact; and how anything is
//! proposed.
//!
//! Serializable reads are answered on the spot; linearizable ones take a ticket; writes are checked
//! and proposed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use etcore_proto::error::EtcdError;
use etcore_proto::grpc::Message;
use etcore_proto::pb::etcdserverpb as pb;

use super::call::{Call, Outcome, Refusal, decode, malformed, malformed_message};
use super::identity::heading;
use super::pending::{CallKind, PendingCall, To};
use super::reads::refusal;
use super::{Cx, Services};
use crate::channel::{Slot, ToReplica};
use crate::entry::{self, field};
use crate::kv::reader::Stop;
use crate::kv::{check, range};
use crate::limits;
use crate::quota;
use crate::wire::PutRef;

/// Whether a message is a PutRequest.
pub(super) fn is_put(message: Message) -> Outcome {
    PutRef::parse(&message).map(drop).map_err(malformed)
}

/// Whether a message is a TxnRequest.
pub(super) fn is_txn(message: Message) -> Outcome {
    entry::with_txn(message.into_bytes(), |request| request.map(drop).map_err(malformed))
}

/// Whether a message is a serializable RangeRequest.
pub(super) fn is_serializable(message: &Message) -> bool {
    let message = message.clone().into_bytes();
    decode::<pb::RangeRequest>(message).is_ok_and(|request| request.serializable)
}

/// Whether a message is a DeleteRangeRequest that may be proposed.
pub(super) fn check_delete_range(message: Bytes) -> Outcome {
    Ok(check::delete_range(&decode(message)?)?)
}

impl Cx<'_> {
    pub(super) fn range(&mut self, call: Call, message: Message) -> Outcome {
        let request: pb::RangeRequest = decode(message.into_bytes())?;
        check::range(&request)?;
        self.api.shared.metrics.ranges.inc();
        if request.serializable {
            return self.answer_range(call, request, None);
        }
        self.take_ticket(call, CallKind::Range(Box::new(request)))
    }

    pub(super) fn range_stream(&mut self, call: Call, message: Message) -> Outcome {
        let request = entry::request(message.into_bytes()).map_err(malformed_message);
        let request: pb::RangeRequest = request.map_err(Refusal::Status)?;
        check::range_stream(&request)?;
        self.api.shared.metrics.ranges.inc();
        if request.serializable {
            return self.answer_stream(call, Box::new(request));
        }
        self.take_ticket(call, CallKind::Stream(Box::new(request)))
    }

    pub(super) fn put(&mut self, call: Call, message: Message) -> Outcome {
        let put = PutRef::parse(&message).map_err(malformed)?;
        let cost_bytes = quota::put_cost_bytes(put.key.len(), put.value.len());
        if !self.api.has_space_for(cost_bytes) {
            return self.out_of_space(call);
        }
        check::put(&put)?;
        // A request that is too large is told so even if there were no space for it either.
        let longest_id = self.api.shared.ids.longest();
        let entry_bytes = entry::wrapped_len(field::PUT, message.len(), longest_id);
        self.admit_entry(entry_bytes)?;
        self.api.reads.view().alarms.admit_growth()?;
        self.propose_message(call, field::PUT, message)
    }

    pub(super) fn txn(&mut self, call: Call, message: Message) -> Outcome {
        entry::with_txn(message.clone().into_bytes(), |request| {
            self.txn_decoded(call, message, request.map_err(malformed)?)
        })
    }

    fn txn_decoded(&mut self, call: Call, message: Message, request: pb::TxnRequest) -> Outcome {
        if !self.api.has_space_for(quota::txn_cost_bytes(&request)) {
            return self.out_of_space(call);
        }
        check::txn(&request, self.api.shared.config.max_txn_ops)?;
        if !check::is_read_only(&request) {
            // It holds parts of the message.
            drop(request);
            return self.propose_message(call, field::TXN, message);
        }
        self.out.reads_only(call.id);
        if check::is_serializable(&request) {
            return self.answer_read_txn(call, request);
        }
        self.take_ticket(call, CallKind::ReadTxn(Box::new(request)))
    }

    /// Answers a transaction that only reads.
    pub(super) fn answer_read_txn(&mut self, call: Call, request: pb::TxnRequest) -> Outcome {
        self.api.admit_read_txn(&call, &request)?;
        self.start_read_txn(call, request)
    }

    /// Begins to answer a RangeStream.
    pub(super) fn answer_stream(&mut self, call: Call, request: Box<pb::RangeRequest>) -> Outcome {
        self.api.admit_read(&call.caller, &request.key, &request.range_end)?;
        self.start_stream(call, request)
    }

    /// Evaluates a Range on the view of this turn and answers it, or has it wait for a page, or
    /// begins to answer in slices if it is long. `resume` is the deadline of a Range that has
    /// waited, and whether that is its client's.
    pub(super) fn answer_range(
        &mut self,
        call: Call,
        request: pb::RangeRequest,
        resume: Option<(u64, bool)>,
    ) -> Outcome {
        self.api.admit_read(&call.caller, &request.key, &request.range_end)?;
        let mut answer = self.api.reads.take_buffer();
        let shared = &self.api.shared;
        let (view, pages, scratch) = self.api.reads.evaluation();
        let answered = range::respond_short(
            &*view.store,
            &request,
            range::SHORT,
            (pages, scratch),
            |revision| shared.header(revision.0),
            &mut answer,
        );
        if let Ok(true) = answered {
            self.api.ranges += 1;
            self.out.reply(call.id, &answer);
            self.api.ended(&call, Some(&answer));
        }
        self.api.reads.keep_buffer(answer);
        match answered {
            Ok(true) => Ok(()),
            Ok(false) => self.start_range(call, &request),
            Err(Stop::NeedsPage(_)) => {
                let mut pending = self.api.pending_call(call, CallKind::Range(Box::new(request)));
                if let Some((deadline_ms, client_deadline)) = resume {
                    (pending.deadline_ms, pending.client_deadline) = (deadline_ms, client_deadline);
                }
                self.wait_for_page(pending)
            }
            Err(stop) => {
                self.api.calls.ranges(false, 1, Duration::ZERO);
                Err(refusal(stop))
            }
        }
    }

    /// Wraps a checked request into a raft entry and sends it to the replica.
    pub(super) fn propose(&mut self, call: Call, field: u32, message: &[u8]) -> Outcome {
        self.propose_as(call, CallKind::Proposal(None), field, message)
    }

    /// Proposes a request whose reply means something else to the client.
    pub(super) fn propose_as(
        &mut self,
        call: Call,
        kind: CallKind,
        field: u32,
        message: &[u8],
    ) -> Outcome {
        let id = self.new_proposal()?;
        let asker = self.api.asker(&call.caller)?;
        let data = entry::wrap_request(field, message, heading(id, asker.as_ref()));
        self.send_proposal(call, kind, id, data.into())
    }

    /// Proposes a request that is no user's.
    pub(super) fn propose_for_nobody(
        &mut self,
        call: Call,
        kind: CallKind,
        field: u32,
        message: &[u8],
    ) -> Outcome {
        let id = self.new_proposal()?;
        self.send_proposal(call, kind, id, entry::wrap_request(field, message, id).into())
    }

    /// Proposes a client's message as it came; it may be large.
    fn propose_message(&mut self, call: Call, field: u32, message: Message) -> Outcome {
        let id = self.new_proposal()?;
        let asker = self.api.asker(&call.caller)?;
        let data = entry::wrap_message(field, message, heading(id, asker.as_ref()));
        self.send_proposal(call, CallKind::Proposal(None), id, data)
    }

    /// The ID of a proposal, if one may be made.
    pub(super) fn new_proposal(&mut self) -> Result<u64, Refusal> {
        if self.api.draining {
            return Err(EtcdError::Stopped.into());
        }
        if self.api.pending.is_clogged() {
            return Err(EtcdError::TooManyRequests.into());
        }
        let status = &self.api.shared.status;
        let (committed, applied) =
            (status.committed.load(Ordering::Relaxed), status.applied.load(Ordering::Relaxed));
        if committed > applied + limits::APPLY_GAP {
            return Err(EtcdError::TooManyRequests.into());
        }
        Ok(self.api.outbox.new_id(&self.api.shared.ids))
    }

    /// Refuses what would be too large an entry.
    pub(super) fn admit_entry(&self, entry_bytes: usize) -> Result<(), Refusal> {
        if entry_bytes > self.api.shared.config.max_request_bytes {
            return Err(EtcdError::RequestTooLarge.into());
        }
        Ok(())
    }

    fn send_proposal(&mut self, call: Call, kind: CallKind, id: u64, data: Bytes) -> Outcome {
        self.admit_entry(data.len())?;
        let kind = match kind {
            // Should it take long, its line says what it was.
            CallKind::Proposal(_) if data.len() <= limits::TOLD_REQUEST_BYTES => {
                CallKind::Proposal(Some(data.clone()))
            }
            kind => kind,
        };
        let (conn, bytes) = (call.id.conn, data.len());
        let pending = PendingCall { bytes, ..self.api.pending_call(call, kind) };
        let slot = self.api.pending.insert(pending).map_err(|_| EtcdError::TooManyRequests)?;
        self.out.proposal_begun(conn, bytes);
        self.api.outbox.push(ToReplica::Propose { slot, id, data });
        Err(Refusal::Waiting)
    }

    /// Waits for a linearizable point.
    pub(super) fn take_ticket(&mut self, call: Call, kind: CallKind) -> Outcome {
        let pending = self.api.pending_call(call, kind);
        let slot = self.api.pending.insert(pending).map_err(|_| EtcdError::TooManyRequests)?;
        self.api.wait_for_ticket(slot);
        Err(Refusal::Waiting)
    }
}

impl Services {
    /// A pending call takes the next ticket.
    pub(super) fn wait_for_ticket(&mut self, slot: Slot) {
        let ticket = self.outbox.take_ticket();
        self.pending.wait_for_ticket(slot, ticket);
    }

    /// A call that is to wait, for as long as its client and this member do.
    pub(super) fn pending_call(&self, call: Call, kind: CallKind) -> PendingCall {
        let own = self.now_ms + self.shared.config.request_timeout_ms();
        let deadline_ms = call.deadline_ms.map_or(own, |deadline| deadline.min(own));
        PendingCall {
            to: To::Call(call),
            kind,
            deadline_ms,
            client_deadline: deadline_ms < own,
            bytes: 0,
        }
    }
}
