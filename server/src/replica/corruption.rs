//! Comparisons of this member's data with the other members': `--corrupt-check-time`, feature gate
//! CompactHashCheck, and what members ask each other for them (etcd
//! `server/etcdserver/corrupt.go`).
//!
//! The leader compares: at fixed times the hash of everything up to its revision, and the hashes
//! that compactions left. Whoever differs gets a CORRUPT alarm, through the log. Hashes come from
//! the hasher's thread and from peers' answers; nothing here waits for either, and a leader that
//! leads no longer forgets its round. Called by the replica with every tick.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use etcore_engine::hash::KvHash;
use etcore_engine::types::{LogIndex, Revision};
use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_raftlog::peer::{ConnId, Lane, PeerRequest, PeerResponse};
use pb::AlarmType;
use pb::alarm_request::AlarmAction;

use super::Replica;
use super::peer_requests::Purpose;
use crate::background::hasher::Job;
use crate::channel::{HashAnswers, HashOutcome, HashRequester, Slot};
use crate::cluster::hashkv::{self, NoHash, PeerHash};
use crate::http::TEXT;
use crate::limits;

mod judge;

/// See the module text.
///
/// Invariant: `for_peers` and the round name only slots that the hasher will answer.
pub(super) struct Corruption {
    all_data: Every,
    compactions: Every,
    round: Option<Round>,
    /// The newest compaction that all members had the same hash of.
    checked: Revision,
    answers: HashAnswers,
    last_slot: Slot,
    /// Peers that wait for a hash of this member.
    for_peers: BTreeMap<Slot, ConnId>,
}

/// What is due at fixed times; never with an interval of 0.
#[derive(Debug)]
struct Every {
    interval_ms: u64,
    next_ms: Option<u64>,
}

impl Every {
    fn new(interval_ms: u64) -> Self {
        Self { interval_ms, next_ms: None }
    }

    /// True once in each interval, for the first time at the end of the first one.
    fn is_due(&mut self, now_ms: u64) -> bool {
        let next_ms = *self.next_ms.get_or_insert(now_ms + self.interval_ms);
        let is_due = self.interval_ms > 0 && now_ms >= next_ms;
        if is_due {
            self.next_ms = Some(now_ms + self.interval_ms);
        }
        is_due
    }
}

/// A comparison under way.
enum Round {
    /// This member's own hash is being computed.
    First(Slot),
    /// The others are asked for theirs at its revision.
    Others { own: KvHash, asked: Asked },
    /// Whatever the others may have applied is to be applied here.
    Applying { own: KvHash, asked: Asked, index: LogIndex },
    /// This member's hash is computed again.
    Second { own: KvHash, asked: Asked, slot: Slot },
    /// Hashes of compactions, the newest last; that one is being compared.
    Compactions { left: Vec<KvHash>, count: usize, asked: Asked },
}

/// What the others say of a revision; `None` while they say nothing.
struct Asked {
    revision: i64,
    answers: BTreeMap<u64, Option<Result<PeerHash, NoHash>>>,
}

impl Asked {
    fn is_complete(&self) -> bool {
        self.answers.values().all(Option::is_some)
    }

    /// Every member that was asked, and its hash if it has one.
    fn hashes(&self) -> Vec<(u64, Option<PeerHash>)> {
        let hash = |answer: &Option<Result<PeerHash, NoHash>>| answer.clone()?.ok();
        self.answers.iter().map(|(id, answer)| (*id, hash(answer))).collect()
    }
}

impl Corruption {
    /// Compares all data, and what compactions left, at these intervals; 0 never does.
    pub(super) fn new(all_data_ms: u64, compactions_ms: u64) -> Self {
        Self {
            all_data: Every::new(all_data_ms),
            compactions: Every::new(compactions_ms),
            round: None,
            checked: Revision(0),
            answers: Arc::new(ArrayQueue::new(limits::HASHES_FOR_PEERS + 1)),
            last_slot: 0,
            for_peers: BTreeMap::new(),
        }
    }

    /// A peer's answer about a revision, or that there is none.
    pub(super) fn learned(&mut self, member: u64, revision: i64, answer: Option<PeerResponse>) {
        let Some(Round::Others { asked, .. } | Round::Compactions { asked, .. }) = &mut self.round
        else {
            return;
        };
        let Some(place) = asked.answers.get_mut(&member).filter(|_| asked.revision == revision)
        else {
            return;
        };
        let answer = answer
            .map_or(Err(NoHash::NoResponse), |answer| hashkv::read(answer.status, &answer.body));
        if let Err(error) = &answer {
            tracing::warn!(
                requested_revision = revision,
                remote_peer_id = %format_args!("{member:x}"),
                error = %error,
                "failed hash kv request"
            );
        }
        *place = Some(answer);
    }

    /// True if a hash has come.
    pub(super) fn has_input(&self) -> bool {
        !self.answers.is_empty()
    }

    fn new_slot(&mut self) -> Slot {
        self.last_slot += 1;
        self.last_slot
    }
}

impl Replica {
    /// Begins the round that is due, and goes on with the one under way.
    pub(super) fn compare_data(&mut self) {
        if !self.is_leader() || !self.leases.is_primary() {
            self.corruption.round = None;
            return;
        }
        let now_ms = self.turn.now_ms();
        match self.corruption.round.take() {
            Some(round) => self.go_on_comparing(round),
            None if self.corruption.all_data.is_due(now_ms) => self.begin_first(),
            None if self.corruption.compactions.is_due(now_ms) => self.begin_compactions(),
            None => {}
        }
    }

    fn begin_first(&mut self) {
        if let Some(slot) = self.ask_hasher(0) {
            self.corruption.round = Some(Round::First(slot));
        }
    }

    fn begin_compactions(&mut self) {
        tracing::info!(
            local_member_id = %format_args!("{:x}", self.shared.member_id),
            "starting compact hash check"
        );
        let mut left = self.hashes.compactions();
        left.retain(|hash| hash.revision > self.corruption.checked);
        let count = left.len();
        self.compare_compaction(left, count);
    }

    /// Asks about the newest of these, or ends the round.
    fn compare_compaction(&mut self, left: Vec<KvHash>, count: usize) {
        let others = self.others();
        match left.last() {
            Some(newest) if !others.is_empty() => {
                let asked = self.ask_others(others, newest.revision.0);
                self.corruption.round = Some(Round::Compactions { left, count, asked });
            }
            _ => tracing::info!(
                number_of_hashes_checked = count - left.len(),
                "finished compaction hash check"
            ),
        }
    }

    fn go_on_comparing(&mut self, round: Round) {
        let round = match round {
            Round::Others { own, asked } if asked.is_complete() => {
                // etcd: LinearizableReadNotify. No member can have applied more than is committed,
                // which nobody knows better than the leader.
                let index = self.log.node.status().commit;
                Round::Applying { own, asked, index }
            }
            Round::Applying { own, asked, index } if self.store.applied().0 >= index => {
                match self.ask_hasher(0) {
                    Some(slot) => Round::Second { own, asked, slot },
                    None => return,
                }
            }
            Round::Compactions { mut left, count, asked } if asked.is_complete() => {
                let Some(own) = left.pop() else { return };
                let verdict = judge::compaction(self.shared.member_id, &own, &asked.hashes());
                verdict.suspects.iter().for_each(|member| self.raise_corrupt(*member));
                if verdict.is_equal {
                    self.corruption.checked = own.revision;
                }
                if !verdict.is_final {
                    return self.compare_compaction(left, count);
                }
                let number_of_hashes_checked = count - left.len();
                tracing::info!(number_of_hashes_checked, "finished compaction hash check");
                return;
            }
            waiting => waiting,
        };
        self.corruption.round = Some(round);
    }

    /// Takes the hashes that have come.
    pub(super) fn take_hashes(&mut self) {
        while let Some((slot, outcome)) = self.corruption.answers.pop() {
            match self.corruption.for_peers.remove(&slot) {
                Some(conn) => self.answer_hash(conn, outcome),
                None => self.own_hash(slot, outcome),
            }
        }
    }

    fn own_hash(&mut self, slot: Slot, outcome: HashOutcome) {
        let round = match self.corruption.round.take() {
            Some(Round::First(waiting)) if waiting == slot => match outcome {
                Ok((own, _)) => {
                    let asked = self.ask_others(self.others(), own.revision.0);
                    Round::Others { own, asked }
                }
                Err(status) => return tell_failed(&status.message),
            },
            Some(Round::Second { own, asked, slot: waiting }) if waiting == slot => {
                match outcome {
                    Ok((again, newest)) => {
                        let hashes = asked.hashes();
                        let id = self.shared.member_id;
                        let suspect = judge::all_data(id, &own, (&again, newest), &hashes);
                        suspect.into_iter().for_each(|member| self.raise_corrupt(member));
                    }
                    Err(status) => tell_failed(&status.message),
                }
                return;
            }
            // A leader that led no longer has begun it.
            Some(round) => round,
            None => return,
        };
        self.corruption.round = Some(round);
    }

    /// Has this member's hash computed; `None` if it cannot be now.
    fn ask_hasher(&mut self, revision: i64) -> Option<Slot> {
        let slot = self.corruption.new_slot();
        let waker = self.shared.wakers.get()?.last()?.clone();
        let reply = HashRequester { slot, answers: self.corruption.answers.clone(), waker };
        let submitted = self.hashes.submit(Job::ByRevision { revision, reply });
        if !submitted {
            tell_failed(EtcdError::TooManyRequests.text());
        }
        submitted.then_some(slot)
    }

    /// The IDs of all members but this one.
    pub(super) fn others(&self) -> BTreeSet<u64> {
        let all = self.state.members().iter().map(|member| member.id);
        all.filter(|id| *id != self.shared.member_id).collect()
    }

    fn ask_others(&mut self, members: BTreeSet<u64>, revision: i64) -> Asked {
        for member in &members {
            let ask = PeerRequest {
                to: *member,
                lane: Lane::Questions,
                method: "GET",
                target: hashkv::PATH.to_owned(),
                content_type: hashkv::JSON,
                body: Bytes::from(hashkv::question(revision)),
                timeout_ms: self.request_timeout_ms,
                token: 0,
            };
            self.peer_requests.ask(ask, Purpose::Hash { member: *member, revision });
        }
        Asked { revision, answers: members.into_iter().map(|id| (id, None)).collect() }
    }

    /// A peer asks for this member's hash.
    pub(super) fn asked_for_hash(
        &mut self,
        conn: ConnId,
        method: &str,
        cluster: &str,
        body: &[u8],
    ) {
        if method != "GET" {
            return self.reply_peer(conn, 405, TEXT, b"Method Not Allowed\n".to_vec());
        }
        if !cluster.is_empty() && cluster != format!("{:x}", self.shared.cluster_id) {
            let text = format!("{}\n", hashkv::OTHER_CLUSTER);
            return self.reply_peer(conn, 412, TEXT, text.into_bytes());
        }
        let Some(revision) = hashkv::asked(body) else {
            let text = b"error unmarshalling request\n".to_vec();
            return self.reply_peer(conn, 400, TEXT, text);
        };
        let is_full = self.corruption.for_peers.len() >= limits::HASHES_FOR_PEERS;
        match (!is_full).then(|| self.ask_hasher(revision)).flatten() {
            Some(slot) => {
                self.corruption.for_peers.insert(slot, conn);
            }
            None => self.answer_hash(conn, Err(EtcdError::TooManyRequests.into())),
        }
    }

    fn answer_hash(&mut self, conn: ConnId, outcome: HashOutcome) {
        match outcome {
            Ok((hash, newest)) => {
                self.reply_peer(conn, 200, hashkv::JSON, hashkv::answer(&hash, newest));
            }
            Err(status) => {
                tracing::warn!(error = %status.message, "failed to get hashKV");
                self.reply_peer(conn, 400, TEXT, hashkv::refusal(&status).into_bytes());
            }
        }
    }

    /// Raises the alarm for a member, or for the cluster if it is 0.
    fn raise_corrupt(&mut self, member: u64) {
        if member == 0 {
            tracing::error!("the members' data differ, and no majority agrees");
        } else {
            tracing::error!(
                member_id = %format_args!("{member:x}"),
                "a member's data differ from the others'; to replace it: etcdctl member remove, \
                 delete its data directory, etcdctl member add, start it with \
                 --initial-cluster-state=existing, etcdctl alarm disarm"
            );
        }
        self.propose_own(pb::InternalRaftRequest {
            alarm: Some(pb::AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id: member,
                alarm: AlarmType::Corrupt as i32,
            }),
            ..Default::default()
        });
    }
}

fn tell_failed(error: &str) {
    tracing::warn!(error = %error, "failed to check hash KV");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_at_fixed_times_is_due_once_in_each() {
        let mut every = Every::new(10);
        let due: Vec<u64> = (100..=125).filter(|now_ms| every.is_due(*now_ms)).collect();
        assert_eq!(due, [110, 120]);
        assert!(!(0..100).any(|now_ms| Every::new(0).is_due(now_ms)));
    }
}
