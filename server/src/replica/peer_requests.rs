//! Questions between members over the peer port, in etcd's HTTP forms: renewals and times of leases
//! that a follower asks its leader for, the same asked of this member, and the peers' versions.
//!
//! The transport carries them; see [`Replica::take_peer_requests`], [`Replica::asked`] and
//! [`Replica::take_peer_replies`]. A request that gets no
//! answer is asked again, of whoever leads then, until its client's time is up.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use etcore_proto::decode::decode;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::{etcdserverpb as pb, leasepb};
use etcore_raftlog::peer::{
    ConnId, IncomingRequest, Lane, PeerRequest, PeerResponse, RequestError,
};
use prost::Message;

use super::Replica;
use super::changes::{Asked, PROMOTE_PREFIX};
use super::lease_service::BATCH_PATH;
use super::lease_service::{Requester, Waiting, written_keys};
use super::snapshots::{PART_PATH, PartAsked};
use crate::channel::{LeaseAnswer, LeaseQuery, LeaseRequest};
use crate::cluster::hashkv;
use crate::http::TEXT;
use crate::kv::pieces::Pieces;
use crate::lease::TimeToLive;
use crate::{limits, wire};

const LEASES: &str = "/leases";
const LEASES_INTERNAL: &str = "/leases/internal";
const PROTOBUF: &str = "application/protobuf";
/// What etcd's lessor says when it does not lead.
pub(super) const NOT_PRIMARY: &str = "not a primary lessor";
/// What etcd says when it has not applied enough within a second.
const NOT_APPLIED: &str = "waiting for node to catch up its applied index has timed out";
/// The pause before a request is asked again (etcd: the same).
pub(super) const RETRY_MS: u64 = 50;

/// The answer to a [`IncomingRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerReply {
    /// Who asked.
    pub conn: ConnId,
    /// HTTP status.
    pub status: u16,
    /// Content type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

/// What an outstanding request is for.
pub(super) enum Purpose {
    Lease(Waiting),
    /// A batch, and whom it was sent to.
    Leases(u64, Vec<Waiting>),
    Version(u64),
    /// This member's hash at a revision.
    Hash {
        member: u64,
        revision: i64,
    },
    /// A learner is to be promoted by the leader.
    Promotion(Asked),
    /// The next part of the snapshot that is being received under this number.
    SnapshotPart(PartAsked),
}

/// The requests that are out, and what the turn leaves to be asked and answered.
///
/// Invariant: `singles` and `batches` count the queries about leases in `out`.
#[derive(Default)]
pub(super) struct PeerRequests {
    last_token: u64,
    out: BTreeMap<u64, Purpose>,
    /// How many of them are single queries about leases, and how many batches.
    singles: usize,
    batches: usize,
    /// Members that do not know batches; found out anew whenever they are reached again.
    asked_singly: BTreeSet<u64>,
    /// Questions that leave with this turn.
    requests: Vec<PeerRequest>,
    /// Answers to peers' requests that leave with this turn.
    replies: Vec<PeerReply>,
}

impl PeerRequests {
    /// Asks a request when the turn is over.
    pub(super) fn ask(&mut self, mut request: PeerRequest, purpose: Purpose) {
        self.last_token += 1;
        request.token = self.last_token;
        match &purpose {
            Purpose::Lease(_) => self.singles += 1,
            Purpose::Leases(..) => self.batches += 1,
            Purpose::Version(_)
            | Purpose::Hash { .. }
            | Purpose::Promotion(_)
            | Purpose::SnapshotPart(_) => {}
        }
        self.out.insert(request.token, purpose);
        self.requests.push(request);
    }

    /// Answers a peer when the turn is over.
    pub(super) fn reply(
        &mut self,
        conn: ConnId,
        status: u16,
        content_type: &'static str,
        body: Vec<u8>,
    ) {
        self.replies.push(PeerReply { conn, status, content_type, body });
    }

    /// Takes what a request was for, now that it has ended; `None` if nobody waits for it.
    fn take_ended(&mut self, token: u64) -> Option<Purpose> {
        let purpose = self.out.remove(&token)?;
        match &purpose {
            Purpose::Lease(_) => self.singles -= 1,
            Purpose::Leases(..) => self.batches -= 1,
            Purpose::Version(_)
            | Purpose::Hash { .. }
            | Purpose::Promotion(_)
            | Purpose::SnapshotPart(_) => {}
        }
        Some(purpose)
    }

    /// Takes all queries about leases: a late answer finds nobody.
    fn take_lease_queries(&mut self) -> impl Iterator<Item = Purpose> {
        let is_lease = |_: &u64, purpose: &mut Purpose| {
            matches!(purpose, Purpose::Lease(_) | Purpose::Leases(..))
        };
        (self.singles, self.batches) = (0, 0);
        self.out.extract_if(.., is_lease).map(|(_, purpose)| purpose)
    }

    /// How many batches are out.
    pub(super) fn batches(&self) -> usize {
        self.batches
    }

    /// The member does not know batches.
    pub(super) fn note_asked_singly(&mut self, member: u64) {
        self.asked_singly.insert(member);
    }

    /// A member is reached again, or no more: it may have become another.
    pub(super) fn forget_make(&mut self, member: u64) {
        self.asked_singly.remove(&member);
    }

    /// True if the member does not know batches.
    pub(super) fn asks_singly(&self, member: u64) -> bool {
        self.asked_singly.contains(&member)
    }
}

impl Replica {
    /// Takes the requests that the turn left to be asked.
    pub fn take_peer_requests(&mut self, out: &mut Vec<PeerRequest>) {
        out.append(&mut self.peer_requests.requests);
    }

    /// Takes the answers to [`Replica::asked`].
    pub fn take_peer_replies(&mut self, out: &mut Vec<PeerReply>) {
        out.append(&mut self.peer_requests.replies);
    }

    /// A member that does not lead asks the one that does, and lists leases by itself.
    pub(super) fn pass_on_lease_requests(&mut self) {
        while let Some((conn, query)) = self.leases.sort_for_leader() {
            self.refuse_peer(conn, query);
        }
        self.leases.forward_due(self.turn.now_ms());
        let leader = self.standing.leader();
        if leader == 0 {
            return;
        }
        if !self.peer_requests.asks_singly(leader) {
            return self.ask_in_batches(leader);
        }
        while self.peer_requests.singles < limits::LEASE_FORWARDS
            && let Some(waiting) = self.leases.next_forward()
        {
            self.ask_singly(leader, waiting);
        }
    }

    /// Asks in etcd's form.
    fn ask_singly(&mut self, leader: u64, waiting: Waiting) {
        let (target, body) = request(waiting.request.query);
        let ask = PeerRequest {
            to: leader,
            lane: Lane::Leases,
            method: "POST",
            target: target.to_owned(),
            content_type: PROTOBUF,
            body,
            timeout_ms: waiting.request.deadline_ms.saturating_sub(self.turn.now_ms()),
            token: 0,
        };
        self.peer_requests.ask(ask, Purpose::Lease(waiting));
    }

    /// Whoever was asked leads no longer: the requests wait for the next leader.
    pub(super) fn take_back_lease_requests(&mut self) {
        for purpose in self.peer_requests.take_lease_queries() {
            match purpose {
                Purpose::Lease(waiting) => self.leases.queue([waiting]),
                Purpose::Leases(_, batch) => self.leases.queue(batch),
                Purpose::Version(_)
                | Purpose::Hash { .. }
                | Purpose::Promotion(_)
                | Purpose::SnapshotPart(_) => {}
            }
        }
        self.leases.take_back();
    }

    /// Asks a member for its version.
    pub(super) fn ask_version(&mut self, member: u64) {
        let ask = PeerRequest {
            to: member,
            lane: Lane::Questions,
            method: "GET",
            target: "/version".to_owned(),
            content_type: "",
            body: Bytes::new(),
            timeout_ms: limits::VERSION_MS,
            token: 0,
        };
        self.peer_requests.ask(ask, Purpose::Version(member));
    }

    /// A peer has answered, or will not.
    pub(super) fn peer_answered(&mut self, token: u64, answer: Result<PeerResponse, RequestError>) {
        let answer = answer.ok();
        match self.peer_requests.take_ended(token) {
            None => {}
            Some(Purpose::Promotion(asked)) => self.promotion_answered(asked, answer),
            Some(Purpose::SnapshotPart(asked)) => self.part_answered(asked, answer),
            Some(Purpose::Version(member)) => {
                let body = answer.filter(|answer| answer.status == 200).map(|answer| answer.body);
                self.versions.learned(member, body.as_deref());
            }
            Some(Purpose::Hash { member, revision }) => {
                self.corruption.learned(member, revision, answer);
            }
            Some(Purpose::Leases(leader, batch)) => self.batch_answered(leader, batch, answer),
            Some(Purpose::Lease(mut waiting)) => {
                let query = waiting.request.query;
                match answer.and_then(|answer| read(query, answer.status, &answer.body)) {
                    Some(answer) => self.answer_lease(&waiting, answer),
                    None => {
                        waiting.not_before_ms = self.turn.now_ms() + RETRY_MS;
                        self.leases.retry([waiting]);
                    }
                }
            }
        }
    }

    /// A peer asks this member something.
    pub fn asked(&mut self, asked: IncomingRequest) {
        let IncomingRequest { conn, method, target, cluster, body } = asked;
        if let Some((PART_PATH, query)) = target.split_once('?') {
            return self.asked_for_part(conn, &method, query);
        }
        if target == hashkv::PATH {
            return self.asked_for_hash(conn, &method, &cluster, &body);
        }
        if let Some(id) = target.strip_prefix(PROMOTE_PREFIX) {
            let id = id.split_once('?').map_or(id, |(id, _)| id);
            return self.asked_to_promote(conn, &method, id);
        }
        if method != "POST" {
            return self.reply_peer(conn, 405, TEXT, b"Method Not Allowed\n".to_vec());
        }
        let query = match target.as_str() {
            BATCH_PATH => return self.asked_in_batch(conn, &body),
            LEASES => decode::<pb::LeaseKeepAliveRequest>(body)
                .ok()
                .map(|request| LeaseQuery::Renew { id: request.id }),
            LEASES_INTERNAL => decode::<leasepb::LeaseInternalRequest>(body).ok().map(|request| {
                let request = request.lease_time_to_live_request.unwrap_or_default();
                LeaseQuery::TimeToLive { id: request.id, keys: request.keys }
            }),
            _ => {
                let text = format!("unknown request path {target:?}\n");
                return self.reply_peer(conn, 400, TEXT, text.into_bytes());
            }
        };
        let Some(query) = query else {
            let text = b"error unmarshalling request\n".to_vec();
            return self.reply_peer(conn, 400, TEXT, text);
        };
        if self.leases.waiting() >= limits::KEEP_ALIVES {
            return self.reply_peer(conn, 503, TEXT, b"too many requests\n".to_vec());
        }
        let since_ms = self.turn.now_ms();
        let deadline_ms = since_ms + self.request_timeout_ms;
        let request = LeaseRequest { slot: 0, deadline_ms, query, asker: None };
        self.leases.queue([Waiting::new(Requester::Peer(conn), since_ms, request)]);
    }

    /// The answer to a peer, in etcd's form.
    pub(super) fn answer_peer(
        &mut self,
        conn: ConnId,
        request: &LeaseRequest,
        answer: LeaseAnswer,
    ) {
        let id = match request.query {
            LeaseQuery::Renew { id } | LeaseQuery::TimeToLive { id, .. } => id,
            LeaseQuery::List => 0,
        };
        let body = match answer {
            LeaseAnswer::Renewed { ttl_s } if ttl_s > 0 => {
                pb::LeaseKeepAliveResponse { header: None, id, ttl: ttl_s }.encode_to_vec()
            }
            LeaseAnswer::TimeToLive { times: Some(times), keys } => {
                let response = pb::LeaseTimeToLiveResponse {
                    header: Some(pb::ResponseHeader::default()),
                    id,
                    ttl: times.left_s,
                    granted_ttl: times.granted_s,
                    keys: Vec::new(),
                };
                let (head, mut body) = (response.encode_to_vec(), Vec::new());
                // A LeaseInternalResponse has it in its first field.
                let length = head.len() + usize::try_from(keys.len_bytes()).unwrap_or(usize::MAX);
                wire::write_len(&mut body, 1, length);
                body.extend_from_slice(&head);
                keys.iter().for_each(|piece| body.extend_from_slice(piece));
                body
            }
            LeaseAnswer::Renewed { .. } | LeaseAnswer::TimeToLive { times: None, .. } => {
                let text = format!("{}\n", EtcdError::LeaseNotFound.text());
                return self.reply_peer(conn, 404, TEXT, text.into_bytes());
            }
            LeaseAnswer::Leases(_) | LeaseAnswer::Refused(_) => {
                let text = format!("{NOT_APPLIED}\n");
                return self.reply_peer(conn, 408, TEXT, text.into_bytes());
            }
        };
        self.reply_peer(conn, 200, PROTOBUF, body);
    }

    /// This member does not lead, or does not know.
    pub(super) fn refuse_peer(&mut self, conn: ConnId, query: LeaseQuery) {
        let status = if matches!(query, LeaseQuery::Renew { .. }) { 400 } else { 500 };
        self.reply_peer(conn, status, TEXT, format!("{NOT_PRIMARY}\n").into_bytes());
    }

    pub(super) fn reply_peer(
        &mut self,
        conn: ConnId,
        status: u16,
        content_type: &'static str,
        body: Vec<u8>,
    ) {
        self.peer_requests.reply(conn, status, content_type, body);
    }
}

/// The path and the body that ask a leader.
fn request(query: LeaseQuery) -> (&'static str, Bytes) {
    match query {
        LeaseQuery::TimeToLive { id, keys } => {
            let lease_time_to_live_request = Some(pb::LeaseTimeToLiveRequest { id, keys });
            let request = leasepb::LeaseInternalRequest { lease_time_to_live_request };
            (LEASES_INTERNAL, request.encode_to_vec().into())
        }
        LeaseQuery::Renew { id } => {
            (LEASES, pb::LeaseKeepAliveRequest { id }.encode_to_vec().into())
        }
        LeaseQuery::List => (LEASES, Bytes::new()),
    }
}

/// What a leader's answer means; `None` if it must be asked again.
fn read(query: LeaseQuery, status: u16, body: &[u8]) -> Option<LeaseAnswer> {
    match (query, status) {
        (LeaseQuery::Renew { .. }, 404) => Some(LeaseAnswer::Renewed { ttl_s: 0 }),
        (LeaseQuery::TimeToLive { .. }, 404) => {
            Some(LeaseAnswer::TimeToLive { times: None, keys: Pieces::default() })
        }
        (LeaseQuery::Renew { id }, 200) => {
            let body = Bytes::copy_from_slice(body);
            let response = decode::<pb::LeaseKeepAliveResponse>(body).ok()?;
            (response.id == id).then_some(LeaseAnswer::Renewed { ttl_s: response.ttl })
        }
        (LeaseQuery::TimeToLive { id, .. }, 200) => {
            let body = Bytes::copy_from_slice(body);
            let response = decode::<leasepb::LeaseInternalResponse>(body).ok()?;
            let response = response.lease_time_to_live_response.filter(|found| found.id == id)?;
            let times = TimeToLive { left_s: response.ttl, granted_s: response.granted_ttl };
            let keys = written_keys(response.keys.iter());
            Some(LeaseAnswer::TimeToLive { times: Some(times), keys })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_etcds_messages() {
        let (target, body) = request(LeaseQuery::TimeToLive { id: 5, keys: true });
        assert_eq!(target, "/leases/internal");
        let decoded = leasepb::LeaseInternalRequest::decode(body).unwrap();
        assert_eq!(
            decoded.lease_time_to_live_request,
            Some(pb::LeaseTimeToLiveRequest { id: 5, keys: true })
        );
        let renew = LeaseQuery::Renew { id: 5 };
        let answer = pb::LeaseKeepAliveResponse { header: None, id: 5, ttl: 9 }.encode_to_vec();
        assert!(matches!(read(renew, 200, &answer), Some(LeaseAnswer::Renewed { ttl_s: 9 })));
        assert!(matches!(read(renew, 404, b"x"), Some(LeaseAnswer::Renewed { ttl_s: 0 })));
        let other = LeaseQuery::Renew { id: 6 };
        assert!(read(other, 200, &answer).is_none(), "another lease's answer");
        assert!(read(renew, 400, b"not a primary lessor").is_none(), "asked again");
        assert!(read(renew, 200, b"\xff").is_none());
    }
}
