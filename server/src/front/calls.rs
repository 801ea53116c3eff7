//! gRPC calls: which methods there are and what happens when one arrives.
//!
//! Serializable reads are answered on the spot; linearizable ones take a ticket; writes are checked
//! and proposed.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use etcore_proto::decode::{DecodeError, Fields, Flat, Value};
use etcore_proto::error::{Code, EtcdError, Status};
use etcore_proto::grpc::{Message, MethodId, RequestMeta, Routes, ServerEvent, StreamId};
use etcore_proto::pb::etcdserverpb as pb;

use super::Front;
use super::tasks::{Kind, Task, To};
use crate::api::check;
use crate::auth;
use crate::driver::SocketId;
use crate::entry::{self, field};
use crate::limits;
use crate::quota;
use crate::replica::ToReplica;
use crate::watch::Place;
use crate::wire::PutRef;

macro_rules! methods {
    ($($name:ident = $number:literal $path:literal $streaming:literal)*) => {
        $(const $name: MethodId = MethodId($number);)*

        /// The methods this server has.
        ///
        /// # Panics
        /// Never: the table is well-formed, which a test proves.
        pub fn routes() -> Routes {
            Routes::new([$(($path, $name, $streaming)),*]).expect("the table is well-formed")
        }
    };
}

methods! {
    RANGE = 0 "/etcdserverpb.KV/Range" false
    RANGE_STREAM = 1 "/etcdserverpb.KV/RangeStream" false
    PUT = 2 "/etcdserverpb.KV/Put" false
    DELETE_RANGE = 3 "/etcdserverpb.KV/DeleteRange" false
    TXN = 4 "/etcdserverpb.KV/Txn" false
    COMPACT = 5 "/etcdserverpb.KV/Compact" false
    MEMBER_LIST = 6 "/etcdserverpb.Cluster/MemberList" false
    STATUS = 7 "/etcdserverpb.Maintenance/Status" false
    HEALTH_CHECK = 8 "/grpc.health.v1.Health/Check" false
    HEALTH_WATCH = 9 "/grpc.health.v1.Health/Watch" true
    HEALTH_LIST = 15 "/grpc.health.v1.Health/List" false
    ALARM = 10 "/etcdserverpb.Maintenance/Alarm" false
    HASH = 11 "/etcdserverpb.Maintenance/Hash" false
    HASH_KV = 12 "/etcdserverpb.Maintenance/HashKV" false
    DEFRAGMENT = 13 "/etcdserverpb.Maintenance/Defragment" false
    MOVE_LEADER = 14 "/etcdserverpb.Maintenance/MoveLeader" false
    LEASE_GRANT = 20 "/etcdserverpb.Lease/LeaseGrant" false
    LEASE_REVOKE = 21 "/etcdserverpb.Lease/LeaseRevoke" false
    LEASE_TIME_TO_LIVE = 22 "/etcdserverpb.Lease/LeaseTimeToLive" false
    LEASE_LEASES = 23 "/etcdserverpb.Lease/LeaseLeases" false
    LEASE_KEEP_ALIVE = 24 "/etcdserverpb.Lease/LeaseKeepAlive" true
    WATCH = 30 "/etcdserverpb.Watch/Watch" true
}

/// grpc.health.v1 SERVING and SERVICE_UNKNOWN as HealthCheckResponse messages.
const SERVING: &[u8] = &[0x08, 1];
const SERVICE_UNKNOWN: &[u8] = &[0x08, 3];
/// A HealthListResponse: the whole server, whose name is empty, is SERVING.
const SERVING_ALL: &[u8] = &[0x0a, 6, 0x0a, 0, 0x12, 2, 0x08, 1];

/// Why a call is not served right away.
pub(super) enum Refusal {
    /// Answer with this.
    Status(Status),
    /// It waits; nothing to answer yet.
    Waiting,
}

impl From<EtcdError> for Refusal {
    fn from(error: EtcdError) -> Self {
        Self::Status(error.into())
    }
}

pub(super) type Outcome = Result<(), Refusal>;

impl Front {
    /// Handles everything a connection has to say.
    pub(super) fn handle_events(&mut self, socket: SocketId) {
        loop {
            let Some(conn) = self.conn(socket) else { return };
            if conn.gone {
                return;
            }
            let Some(server) = conn.grpc() else { break };
            let Some(event) = server.next_event() else { return };
            match event {
                ServerEvent::Unary { stream, method, meta, message } => {
                    let request = Request { socket, stream, method, meta, message };
                    if let Some(request) = self.admit_large(request) {
                        self.handle_unary(request);
                    }
                }
                ServerEvent::StreamOpened { stream, method: LEASE_KEEP_ALIVE, meta } => {
                    self.open_keep_alive((socket, stream), &meta);
                }
                ServerEvent::StreamOpened { stream, method: WATCH, meta } => {
                    self.open_watch(socket, stream, &meta);
                }
                ServerEvent::StreamOpened { stream, meta, .. } => {
                    if let Some(error) = self.refused_by_head(&meta) {
                        self.reply_status(socket, To::Call(stream), &error.into());
                    }
                }
                ServerEvent::StreamMessage { stream, method, message } => match method {
                    WATCH => self.watch_message(socket, stream, message),
                    LEASE_KEEP_ALIVE => self.keep_alive((socket, stream), message),
                    _ => self.health_watch(socket, stream, &message),
                },
                ServerEvent::Writable { stream } => {
                    self.send_renewals((socket, stream));
                    self.watching.hub.writable(Place { socket, stream });
                    if let Some(slot) = self.tasks.listing_of(socket, stream) {
                        self.tasks.run_soon(slot);
                    }
                }
                ServerEvent::Cancelled { stream } => {
                    self.keep_alive_cancelled((socket, stream));
                    self.watching.hub.closed(Place { socket, stream });
                    if let Some(slot) = self.tasks.listing_of(socket, stream) {
                        self.tasks.remove(slot);
                    }
                }
                ServerEvent::StreamHalfClosed { stream } => {
                    self.keep_alive_half_closed((socket, stream));
                }
                ServerEvent::HttpOpened { .. } | ServerEvent::HttpData { .. } => {}
            }
            self.mark_dirty(socket);
        }
        self.handle_plain(socket);
    }

    /// Why a call is refused for what its head says, whatever it asks for.
    pub(super) fn refused_by_head(&self, meta: &RequestMeta) -> Option<EtcdError> {
        let version = meta.client_api_version.as_deref().unwrap_or_default();
        if std::str::from_utf8(version).is_err() {
            return Some(EtcdError::InvalidClientApiVersion);
        }
        (meta.has_leader && !self.shared.has_leader()).then_some(EtcdError::NoLeader)
    }

    pub(super) fn handle_unary(&mut self, request: Request) {
        let Request { socket, stream, method, meta, message } = request;
        let call = Call { socket, stream, deadline_ms: meta.deadline_ms };
        let refused = match self.refused_by_head(&meta) {
            Some(error) => Some(Refusal::from(error)),
            None if !matches!(method, HEALTH_CHECK | STATUS) && self.view.auth.is_enabled() => {
                Some(Refusal::Status(auth::not_served()))
            }
            None => None,
        };
        let outcome = match refused {
            // What is no request is told so first.
            Some(refusal) => is_request(method, message).and(Err(refusal)),
            None => self.dispatch(call, method, message),
        };
        if let Err(Refusal::Status(status)) = outcome {
            self.reply_status(socket, To::Call(stream), &status);
        }
    }

    fn dispatch(&mut self, call: Call, method: MethodId, message: Message) -> Outcome {
        match method {
            PUT => self.put(call, message),
            TXN => self.txn(call, message),
            _ => self.dispatch_bytes(call, method, message.into_bytes()),
        }
    }

    fn dispatch_bytes(&mut self, call: Call, method: MethodId, message: Bytes) -> Outcome {
        match method {
            RANGE => self.range(call, decode(message)?),
            DELETE_RANGE => {
                check::delete_range(&decode(message.clone())?)?;
                self.propose(call, field::DELETE_RANGE, &message)
            }
            COMPACT => {
                decode::<pb::CompactionRequest>(message.clone())?;
                self.propose(call, field::COMPACTION, &message)
            }
            RANGE_STREAM => {
                let request = entry::request(message).map_err(malformed_message);
                self.range_stream(call, request.map_err(Refusal::Status)?)
            }
            MEMBER_LIST => self.member_list(call, &decode(message)?),
            STATUS => decode::<pb::StatusRequest>(message).and_then(|_| self.status(call)),
            ALARM => self.alarm(call, message),
            HASH => decode::<pb::HashRequest>(message).and_then(|_| self.hash(call)),
            HASH_KV => self.hash_kv(call, &decode(message)?),
            DEFRAGMENT => {
                decode::<pb::DefragmentRequest>(message)?;
                self.defragment(call)
            }
            MOVE_LEADER => self.move_leader(call, &decode(message)?),
            LEASE_GRANT => self.lease_grant(call, message),
            LEASE_REVOKE => self.lease_revoke(call, message),
            LEASE_TIME_TO_LIVE => self.lease_time_to_live(call, message),
            LEASE_LEASES => self.lease_leases(call, message),
            HEALTH_CHECK => self.health_check(call, &message),
            HEALTH_LIST => {
                // Its request has no fields, like this one; what is in it must be protobuf.
                decode::<pb::StatusRequest>(message)?;
                self.reply_message(call.socket, To::Call(call.stream), SERVING_ALL);
                Ok(())
            }
            _ => Err(Refusal::Status(Status::new(Code::Unimplemented, "unknown method"))),
        }
    }

    fn range(&mut self, call: Call, request: pb::RangeRequest) -> Outcome {
        check::range(&request)?;
        self.shared.metrics.ranges.inc();
        if request.serializable {
            return self.answer_range(call, Box::new(request), None);
        }
        self.take_ticket(call, Kind::Range(Box::new(request)))
    }

    fn range_stream(&mut self, call: Call, request: pb::RangeRequest) -> Outcome {
        check::range_stream(&request)?;
        self.shared.metrics.ranges.inc();
        if request.serializable {
            return self.start_stream(call, Box::new(request));
        }
        self.take_ticket(call, Kind::Stream(Box::new(request)))
    }

    fn put(&mut self, call: Call, message: Message) -> Outcome {
        let put = PutRef::parse(&message).map_err(malformed)?;
        let cost_bytes = quota::put_cost_bytes(put.key.len(), put.value.len());
        if !self.has_space_for(cost_bytes) {
            return self.out_of_space(call);
        }
        check::put(&put)?;
        // A request that is too large is told so even if there were no space for it either.
        let longest_id = self.shared.ids.longest();
        let entry_bytes = entry::wrapped_len(field::PUT, message.len(), longest_id);
        self.admit_entry(entry_bytes)?;
        self.view.alarms.admit_growth()?;
        self.propose_message(call, field::PUT, message)
    }

    fn txn(&mut self, call: Call, message: Message) -> Outcome {
        entry::with_txn(message.clone().into_bytes(), |request| {
            self.txn_decoded(call, message, request.map_err(malformed)?)
        })
    }

    fn txn_decoded(&mut self, call: Call, message: Message, request: pb::TxnRequest) -> Outcome {
        if !self.has_space_for(quota::txn_cost_bytes(&request)) {
            return self.out_of_space(call);
        }
        check::txn(&request, self.shared.config.max_txn_ops)?;
        if !check::is_read_only(&request) {
            // It holds parts of the message.
            drop(request);
            return self.propose_message(call, field::TXN, message);
        }
        if check::is_serializable(&request) {
            return self.start_read_txn(call, request);
        }
        self.take_ticket(call, Kind::ReadTxn(Box::new(request)))
    }

    /// Wraps a checked request into a raft entry and sends it to the replica.
    pub(super) fn propose(&mut self, call: Call, field: u32, message: &[u8]) -> Outcome {
        self.propose_as(call, Kind::Proposal, field, message)
    }

    /// The same for a proposal whose reply means something else to the client.
    pub(super) fn propose_as(
        &mut self,
        call: Call,
        kind: Kind,
        field: u32,
        message: &[u8],
    ) -> Outcome {
        let id = self.new_proposal()?;
        self.send_proposal(call, kind, id, entry::wrap_request(field, message, id).into())
    }

    /// The same for the message of a client, which may be large.
    fn propose_message(&mut self, call: Call, field: u32, message: Message) -> Outcome {
        let id = self.new_proposal()?;
        self.send_proposal(call, Kind::Proposal, id, entry::wrap_message(field, message, id))
    }

    /// The ID of a proposal, if one may be made.
    pub(super) fn new_proposal(&mut self) -> Result<u64, Refusal> {
        if self.draining {
            return Err(EtcdError::Stopped.into());
        }
        if self.tasks.is_clogged() {
            return Err(EtcdError::TooManyRequests.into());
        }
        let status = &self.shared.status;
        let (committed, applied) =
            (status.committed.load(Ordering::Relaxed), status.applied.load(Ordering::Relaxed));
        if committed > applied + limits::APPLY_GAP {
            return Err(EtcdError::TooManyRequests.into());
        }
        Ok(self.ids.next(&self.shared.ids))
    }

    /// Refuses what would be too large an entry.
    pub(super) fn admit_entry(&self, entry_bytes: usize) -> Result<(), Refusal> {
        if entry_bytes > self.shared.config.max_request_bytes {
            return Err(EtcdError::RequestTooLarge.into());
        }
        Ok(())
    }

    fn send_proposal(&mut self, call: Call, kind: Kind, id: u64, data: Bytes) -> Outcome {
        self.admit_entry(data.len())?;
        let mut task = self.task(call, kind);
        task.bytes = data.len();
        let bytes = task.bytes;
        let slot = self.tasks.insert(task).map_err(|_| EtcdError::TooManyRequests)?;
        if let Some(conn) = self.conn(call.socket) {
            conn.proposal_bytes += bytes;
        }
        self.push_replica(ToReplica::Propose { slot, id, data });
        Err(Refusal::Waiting)
    }

    /// Waits for a linearizable point.
    pub(super) fn take_ticket(&mut self, call: Call, kind: Kind) -> Outcome {
        let task = self.task(call, kind);
        let slot = self.tasks.insert(task).map_err(|_| EtcdError::TooManyRequests)?;
        self.next_ticket += 1;
        self.tasks.wait_for_ticket(slot, self.next_ticket);
        Err(Refusal::Waiting)
    }

    pub(super) fn task(&self, call: Call, kind: Kind) -> Task {
        let timeout_ms = self.shared.config.request_timeout_ms();
        let own = self.now_ms + timeout_ms;
        let deadline_ms = call.deadline_ms.map_or(own, |deadline| deadline.min(own));
        Task {
            socket: call.socket,
            to: To::Call(call.stream),
            kind,
            deadline_ms,
            client_deadline: deadline_ms < own,
            bytes: 0,
        }
    }

    fn member_list(&mut self, call: Call, request: &pb::MemberListRequest) -> Outcome {
        if request.linearizable {
            return self.take_ticket(call, Kind::MemberList);
        }
        self.answer_member_list(call.socket, To::Call(call.stream));
        Ok(())
    }

    fn health_check(&mut self, call: Call, message: &[u8]) -> Outcome {
        match health_service(message).map_err(malformed)? {
            "" => {
                self.reply_message(call.socket, To::Call(call.stream), SERVING);
                Ok(())
            }
            _ => Err(Refusal::Status(Status::new(Code::NotFound, "unknown service"))),
        }
    }

    /// One message, then silence, since the state does not change.
    fn health_watch(&mut self, socket: SocketId, stream: StreamId, message: &[u8]) {
        let status = match health_service(message) {
            Ok("") => SERVING,
            Ok(_) => SERVICE_UNKNOWN,
            // The method has one request, which grpc-go reads as it reads a stream's.
            Err(error) => {
                let status = malformed_message(error);
                return self.reply_status(socket, To::Call(stream), &status);
            }
        };
        if let Some(server) = self.conn(socket).and_then(super::conn::Conn::grpc) {
            // An error means that the client is gone; the transport has noticed.
            let _ = server.send_message(stream, status);
        }
    }
}

/// The request of a unary call.
pub(super) struct Request {
    pub(super) socket: SocketId,
    pub(super) stream: StreamId,
    pub(super) method: MethodId,
    pub(super) meta: RequestMeta,
    pub(super) message: Message,
}

/// Where a call came from and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) socket: SocketId,
    pub(super) stream: StreamId,
    /// The client's, on our clock.
    pub(super) deadline_ms: Option<u64>,
}

/// grpc-go's words for the request of a unary call.
fn malformed(error: DecodeError) -> Refusal {
    let text = format!("grpc: error unmarshalling request: {error}");
    Refusal::Status(Status::new(Code::Internal, text))
}

/// grpc-go's words for a message of a stream.
pub(super) fn malformed_message(error: DecodeError) -> Status {
    let text = format!("grpc: failed to unmarshal the received message: {error}");
    Status::new(Code::Internal, text)
}

/// Decodes a request as apply would.
pub(super) fn decode<M: Flat>(message: Bytes) -> Result<M, Refusal> {
    entry::request(message).map_err(malformed)
}

/// Whether a message is a request of its method. A stream's is not looked at: grpc-go reads it
/// after it has called what refuses calls for their heads.
fn is_request(method: MethodId, message: Message) -> Outcome {
    match method {
        PUT => return PutRef::parse(&message).map(drop).map_err(malformed),
        TXN => {
            return entry::with_txn(message.into_bytes(), |request| {
                request.map(drop).map_err(malformed)
            });
        }
        _ => {}
    }
    let message = message.into_bytes();
    match method {
        RANGE => decode::<pb::RangeRequest>(message).map(drop),
        DELETE_RANGE => decode::<pb::DeleteRangeRequest>(message).map(drop),
        COMPACT => decode::<pb::CompactionRequest>(message).map(drop),
        MEMBER_LIST => decode::<pb::MemberListRequest>(message).map(drop),
        ALARM => decode::<pb::AlarmRequest>(message).map(drop),
        HASH_KV => decode::<pb::HashKvRequest>(message).map(drop),
        MOVE_LEADER => decode::<pb::MoveLeaderRequest>(message).map(drop),
        LEASE_GRANT => decode::<pb::LeaseGrantRequest>(message).map(drop),
        LEASE_REVOKE => decode::<pb::LeaseRevokeRequest>(message).map(drop),
        LEASE_TIME_TO_LIVE => decode::<pb::LeaseTimeToLiveRequest>(message).map(drop),
        HEALTH_CHECK => health_service(&message).map(drop).map_err(malformed),
        RANGE_STREAM => Ok(()),
        // These have no fields.
        _ => decode::<pb::StatusRequest>(message).map(drop),
    }
}

/// The `service` field of a HealthCheckRequest.
fn health_service(message: &[u8]) -> Result<&str, DecodeError> {
    let mut service = "";
    let mut fields = Fields::new(message);
    while let Some((field, value)) = fields.next_field()? {
        if let (1, Value::Len(range)) = (field, value) {
            service = std::str::from_utf8(&message[range]).map_err(|_| DecodeError::Utf8)?;
        }
    }
    Ok(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_methods_is_well_formed() {
        routes();
    }

    #[test]
    fn a_health_request_names_its_service() {
        assert!(matches!(health_service(b""), Ok("")));
        assert!(matches!(health_service(b"\x0a\x01x"), Ok("x")));
        assert!(health_service(b"\x0a\x05x").is_err());
    }
}
