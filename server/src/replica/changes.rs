//! Changes of the members on their way into the log: who asked, whose turn it is, who leads.
//!
//! Part of the replica. raft has one change under way at a time and drops a second one without a
//! word, so those that come meanwhile wait here. Each is checked when it comes and again when its
//! turn comes (`cluster::strict`); whether it can be made is decided by all members when they apply
//! it. A member that does not lead forwards changes, but promotions: only the leader knows how far
//! a learner is, and is asked over the peer port, as in etcd. A leader that is to be removed hands
//! over first.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::raftpb;
use etcore_raftlog::node::Destination;
use etcore_raftlog::peer::{ConnId, Lane, PeerRequest, PeerResponse};
use prost::Message;

use super::Replica;
use super::peer_requests::{Purpose, RETRY_MS};
use crate::channel::{Reply, Slot, ToFront};
use crate::cluster::change::{Change, Invalid};
use crate::cluster::member::Member;
use crate::cluster::strict;
use crate::http::TEXT;
use crate::limits;

/// Below it, a learner's ID in decimal: it is to be promoted.
pub const PROMOTE_PREFIX: &str = "/members/promote/";
/// The part of the leader's log that a learner must have (etcd: readyPercentThreshold), in tenths.
const READY_TENTHS: u64 = 9;
const JSON: &str = "application/json";

/// Who is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Requester {
    Front(usize, Slot),
    Peer(ConnId),
}

/// A change that waits for its turn.
pub(super) struct Asked {
    change: Change,
    from: Requester,
    deadline_ms: u64,
    /// It is not tried before then.
    not_before_ms: u64,
}

/// A change in the log.
struct Proposed {
    from: Requester,
    deadline_ms: u64,
    promotes: bool,
}

/// See the module text.
#[derive(Default)]
pub(super) struct Changes {
    queue: VecDeque<Asked>,
    /// By the IDs in their entries.
    proposed: BTreeMap<u64, Proposed>,
    /// The term in which this leader has tried to hand over before its own removal.
    handed_over_in: u64,
}

/// Why a change is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// All members say so.
    Invalid(Invalid),
    /// This member says so.
    Here(EtcdError),
}

impl Refused {
    fn error(self) -> EtcdError {
        match self {
            Self::Invalid(invalid) => invalid.into(),
            Self::Here(error) => error,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Invalid(invalid) => invalid.to_string(),
            Self::Here(error) => error.text().to_owned(),
        }
    }

    /// As the leader answers another member that asks for a promotion.
    fn answer(self) -> (u16, &'static str, Vec<u8>) {
        let status = match self {
            Self::Invalid(Invalid::NotFound) => 404,
            Self::Invalid(Invalid::NotLearner) | Self::Here(EtcdError::LearnerNotReady) => 412,
            _ => return (500, JSON, br#"{"message":"Internal Server Error"}"#.to_vec()),
        };
        (status, TEXT, format!("{}\n", self.text()).into_bytes())
    }
}

impl Changes {
    fn is_full(&self) -> bool {
        self.queue.len() + self.proposed.len() >= limits::MEMBER_CHANGES
    }
}

impl Replica {
    /// A client's change.
    pub(super) fn change_members(&mut self, front: usize, slot: Slot, change: Change) {
        self.ask_change(change, Requester::Front(front, slot));
    }

    /// Another member asks this one to promote a learner.
    pub(super) fn asked_to_promote(&mut self, conn: ConnId, method: &str, id: &str) {
        if method != "POST" {
            return self.reply_peer(conn, 405, TEXT, b"Method Not Allowed\n".to_vec());
        }
        let Ok(member) = id.parse() else {
            let text = format!("member {id} not found in cluster\n");
            return self.reply_peer(conn, 404, TEXT, text.into_bytes());
        };
        self.ask_change(Change::Promote(member), Requester::Peer(conn));
    }

    fn ask_change(&mut self, change: Change, from: Requester) {
        if self.changes.is_full() {
            return self.end_change(from, Err(Refused::Here(EtcdError::TooManyRequests)));
        }
        if let Err(refused) = self.may_change(&change) {
            return self.refuse_change(from, &change, refused);
        }
        let deadline_ms = self.turn.now_ms() + self.request_timeout_ms;
        self.changes.queue.push_back(Asked { change, from, deadline_ms, not_before_ms: 0 });
        self.propose_changes();
    }

    /// Proposes the changes whose turn it is.
    pub(super) fn propose_changes(&mut self) {
        let now_ms = self.turn.now_ms();
        while let Some(asked) = self.changes.queue.front() {
            let is_over = asked.deadline_ms <= now_ms;
            if !is_over && (asked.not_before_ms > now_ms || !self.takes_change()) {
                break;
            }
            let Some(asked) = self.changes.queue.pop_front() else { break };
            if is_over {
                self.end_change(asked.from, Err(Refused::Here(EtcdError::Timeout)));
            } else if let Err(refused) = self.may_change(&asked.change) {
                self.refuse_change(asked.from, &asked.change, refused);
            } else {
                self.propose_change(asked);
            }
        }
    }

    /// Whether a change that is proposed now would get somewhere. A leader that the first one in
    /// the queue removes hands over.
    fn takes_change(&mut self) -> bool {
        match self.log.node.destination() {
            Destination::Nowhere => false,
            Destination::Leader => !self.peer_queue.has_lost(self.standing.leader()),
            Destination::Here => {
                let own = Change::Remove(self.shared.member_id);
                let removes_own = self.changes.queue.front().is_some_and(|it| it.change == own);
                self.log.node.takes_conf_change() && !(removes_own && self.hands_over_first())
            }
        }
    }

    /// True if this leader would append a change that another member forwards now.
    pub(super) fn takes_forwarded_change(&mut self, change: &raftpb::ConfChange) -> bool {
        let own = Some(self.shared.member_id);
        let remove = raftpb::ConfChangeType::ConfChangeRemoveNode as i32;
        let removes_own = change.node_id == own && change.r#type == Some(remove);
        self.log.node.takes_conf_change() && !(removes_own && self.hands_over_first())
    }

    /// True if this leader, which is to be removed, has just begun to hand over: it tries so once.
    fn hands_over_first(&mut self) -> bool {
        let term = self.standing.term().0;
        if self.changes.handed_over_in == term {
            return false;
        }
        self.changes.handed_over_in = term;
        let Some(transferee) = self.best_transferee() else { return false };
        tracing::info!(
            local_member_id = %format_args!("{:x}", self.shared.member_id),
            transferee_member_id = %format_args!("{transferee:x}"),
            "leadership transfer starting: this member is to be removed"
        );
        self.log.node.transfer_leader(transferee);
        true
    }

    fn propose_change(&mut self, asked: Asked) {
        let leader = self.standing.leader();
        if let (Change::Promote(id), Destination::Leader) =
            (&asked.change, self.log.node.destination())
        {
            let (id, timeout_ms) = (*id, asked.deadline_ms.saturating_sub(self.turn.now_ms()));
            let ask = PeerRequest {
                to: leader,
                lane: Lane::Questions,
                method: "POST",
                target: format!("{PROMOTE_PREFIX}{id}"),
                content_type: "",
                body: Bytes::new(),
                timeout_ms,
                token: 0,
            };
            return self.peer_requests.ask(ask, Purpose::Promotion(asked));
        }
        let id = self.new_request_id();
        if let Err(error) = self.log.node.propose_conf_change(&asked.change.to_wire(id)) {
            tracing::debug!(error = %error, "a change of the members was not proposed");
            return self
                .changes
                .queue
                .push_front(Asked { not_before_ms: self.turn.now_ms() + RETRY_MS, ..asked });
        }
        let Asked { change, from, deadline_ms, .. } = asked;
        let promotes = matches!(change, Change::Promote(_));
        self.changes.proposed.insert(id, Proposed { from, deadline_ms, promotes });
    }

    /// The leader has answered a promotion, or will not.
    pub(super) fn promotion_answered(&mut self, asked: Asked, answer: Option<PeerResponse>) {
        let refused = match answer {
            Some(PeerResponse { status: 200, body }) => {
                match serde_json::from_slice::<Vec<Member>>(&body) {
                    Ok(members) => return self.end_change(asked.from, Ok((None, members))),
                    Err(_) => None,
                }
            }
            Some(PeerResponse { status: 404, .. }) => Some(Refused::Invalid(Invalid::NotFound)),
            Some(PeerResponse { status: 412, body }) => {
                let text = String::from_utf8_lossy(&body);
                let known = [
                    Refused::Here(EtcdError::LearnerNotReady),
                    Refused::Invalid(Invalid::NotLearner),
                ];
                known.into_iter().find(|refused| text.contains(&refused.text()))
            }
            _ => None,
        };
        match refused {
            Some(refused) => self.end_change(asked.from, Err(refused)),
            // Of everything else etcd asks again until the time is up.
            None => self
                .changes
                .queue
                .push_front(Asked { not_before_ms: self.turn.now_ms() + RETRY_MS, ..asked }),
        }
    }

    /// Whether this member thinks that a change may be made.
    fn may_change(&self, change: &Change) -> Result<(), Refused> {
        if let Change::Promote(id) = change {
            // A member that does not lead leaves it to the leader.
            if !self.is_leader() {
                return Ok(());
            }
            self.is_learner_ready(*id)?;
        }
        if !self.shared.config.strict_reconfig_check {
            return Ok(());
        }
        let since_ms = self.turn.now_ms().saturating_sub(limits::HEALTHY_MS);
        let cluster = strict::Cluster {
            own_id: self.shared.member_id,
            members: self.state.members(),
            is_connected: &|id| self.peer_queue.is_connected_before(id, since_ms),
            is_active: &|id| self.peer_queue.is_connected_before(id, u64::MAX),
        };
        let verdict = match change {
            Change::Add(member) => cluster.may_add(member.is_learner),
            Change::Remove(id) => cluster.may_remove(*id),
            Change::Promote(_) => cluster.may_promote(),
            Change::Update { .. } => Ok(()),
        };
        verdict.map_err(Refused::Here)
    }

    /// Whether a learner has most of this leader's log (etcd `isLearnerReady`).
    fn is_learner_ready(&self, id: u64) -> Result<(), Refused> {
        let own_id = self.shared.member_id;
        let matched = |id| self.log.node.progress(id).map(|(matched, _)| matched.0);
        let Some(learner) = matched(id) else {
            return Err(Refused::Invalid(Invalid::NotFound));
        };
        if 10 * learner < READY_TENTHS * matched(own_id).unwrap_or(0) {
            return Err(Refused::Here(EtcdError::LearnerNotReady));
        }
        Ok(())
    }

    fn refuse_change(&mut self, from: Requester, change: &Change, refused: Refused) {
        let what = match change {
            Change::Add(_) => "rejecting member add request",
            Change::Promote(_) => "rejecting member promote request",
            Change::Remove(_) => "rejecting member remove request",
            Change::Update { .. } => "rejecting member update request",
        };
        tracing::warn!(
            local_member_id = %format_args!("{:x}", self.shared.member_id),
            requested_member_id = %format_args!("{:x}", change.member_id()),
            error = %refused.text(),
            "{what}"
        );
        self.count_promotion(change, &Err(refused));
        self.end_change(from, Err(refused));
    }

    fn count_promotion(&self, change: &Change, outcome: &Result<(), Refused>) {
        if !matches!(change, Change::Promote(_)) {
            return;
        }
        let metrics = &self.shared.metrics;
        match outcome {
            Ok(()) => {
                metrics.promotions.inc();
            }
            Err(refused) => metrics.promotion_failed(&refused.text()),
        }
    }

    /// The change of this entry was applied, or was refused by all members: whoever waits for it
    /// here is answered once that is published.
    pub(super) fn change_applied(
        &mut self,
        id: u64,
        change: &Change,
        outcome: Result<(), Invalid>,
    ) {
        let Some(Proposed { from, promotes, .. }) = self.changes.proposed.remove(&id) else {
            return;
        };
        if promotes && self.is_leader() {
            self.count_promotion(change, &outcome.map_err(Refused::Invalid));
        }
        let added = match change {
            Change::Add(member) => Some(member.clone()),
            _ => None,
        };
        let members = self.state.members().to_vec();
        self.end_change(from, outcome.map(|()| (added, members)).map_err(Refused::Invalid));
    }

    /// Answers whoever asked for a change: with the member that was added, if one was, and all
    /// members.
    fn end_change(
        &mut self,
        from: Requester,
        outcome: Result<(Option<Member>, Vec<Member>), Refused>,
    ) {
        match from {
            Requester::Front(front, slot) => {
                let reply = match outcome {
                    Ok((added, members)) => Reply::Message(self.changed(added, &members)),
                    Err(refused) => Reply::Refused(refused.error().into()),
                };
                self.publisher.reply(front, ToFront::Reply { slot, reply });
                self.publisher.note_change();
            }
            Requester::Peer(conn) => {
                let (status, content_type, body) = match outcome {
                    Ok((_, members)) => {
                        let mut body = serde_json::to_vec(&members).unwrap_or_default();
                        body.push(b'\n');
                        (200, JSON, body)
                    }
                    Err(refused) => refused.answer(),
                };
                self.reply_peer(conn, status, content_type, body);
            }
        }
    }

    /// The response to a client.
    fn changed(&self, added: Option<Member>, members: &[Member]) -> Vec<u8> {
        let header = Some(self.shared.header(0).to_pb());
        let members = members.iter().map(Member::to_pb).collect();
        match added {
            Some(member) => pb::MemberAddResponse { header, member: Some(member.to_pb()), members }
                .encode_to_vec(),
            // All others have the same fields.
            None => pb::MemberRemoveResponse { header, members }.encode_to_vec(),
        }
    }

    /// Forgets who has been told by now that his time is up.
    pub(super) fn expire_changes(&mut self) {
        let now_ms = self.turn.now_ms();
        let over = self.changes.proposed.extract_if(.., |_, it| it.deadline_ms <= now_ms);
        let over: Vec<Proposed> = over.map(|(_, proposed)| proposed).collect();
        for Proposed { from, .. } in over {
            self.end_change(from, Err(Refused::Here(EtcdError::Timeout)));
        }
    }
}
