//! What the replica does about leases: applies their entries, answers the fronts' questions, and,
//! as leader, proposes the revocation of what has expired.
//!
//! Questions come through rings of their own, so that a renewal never waits behind writes that wait
//! for the disk. They are answered after the turn's entries are applied and published. Only a
//! leader answers them: one whose lessor is primary, and that a read round has confirmed since they
//! came. A leader that was cut off or slept may have been replaced without knowing it, and would
//! deny leases that its successor granted, or renew what its successor lets end. etcd's leader asks
//! for such a round only when its own ticks are late (`ensureLeadership`), which a partition does
//! not do to it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use etcore_engine::bucket::Bucket;
use etcore_engine::mutation::{Mutation, is_on};
use etcore_engine::types::{LogIndex, Term};
use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_raftlog::peer::ConnId;
use etcore_raftlog::types::LogEntry;
use prost::Message;

use super::Replica;
use super::apply::Halt;
use super::batches::Batch;
use super::propose::Origin;
use super::walks::Walks;
use crate::channel::{LeaseAnswer, LeaseAsk, LeaseQuestion, Reply, ToFront};
use crate::kv::counts::Counts;
use crate::kv::pieces::Pieces;
use crate::lease::pace::Pace;
use crate::lease::{self, Lessor, Renewal};
use crate::work::Job;
use crate::{entry, limits, wire};

/// How long a question waits for committed entries to be applied (etcd `applyTimeout`).
const APPLY_WAIT_MS: u64 = 1000;
/// After this many heartbeat intervals without a turn a leader asks whether it still is one.
const SLEPT_TICKS: u64 = 3;

/// A question that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) asker: Asker,
    pub(super) since_ms: u64,
    /// Asked of the leader again then.
    pub(super) not_before_ms: u64,
    /// What a leader must have applied before it answers: all that was committed when it first
    /// looked at the question. What came later may keep it busy for good.
    pub(super) after: Option<LogIndex>,
    pub(super) ask: LeaseAsk,
}

impl Waiting {
    pub(super) fn new(asker: Asker, since_ms: u64, ask: LeaseAsk) -> Self {
        Self { asker, since_ms, not_before_ms: 0, after: None, ask }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    Front(usize),
    /// Another member, over this connection.
    Peer(ConnId),
    /// It only marks that an entry is waited for.
    Nobody,
}

/// Whether this leader knows that it still leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leadership {
    Sure,
    /// To be asked for.
    Doubted,
    /// The read round with this ticket will tell.
    Asked(u64),
}

/// The lessor, and everything that waits for it.
pub(super) struct LeaseDesk {
    pub(super) lessor: Lessor,
    pace: Pace,
    leadership: Leadership,
    /// To be looked at: a follower passes it on, a leader has itself confirmed first.
    pub(super) queued: VecDeque<Waiting>,
    /// A leader's: they wait for the read round with this ticket, the first for the oldest.
    pub(super) confirming: VecDeque<(u64, Waiting)>,
    /// The last read round that has ended.
    confirmed: u64,
    /// A leader that is confirmed answers these at the end of the turn.
    pub(super) answerable: VecDeque<Waiting>,
    /// A leader's: they wait for entries, the first for the oldest.
    pub(super) behind: VecDeque<Waiting>,
    /// Other members' batches.
    pub(super) batches: Vec<Batch>,
    /// Questions in them.
    pub(super) batched: usize,
    /// To be asked of the leader.
    pub(super) forward: VecDeque<Waiting>,
    /// The same, not before their time. The first is the first that is due.
    pub(super) retry: VecDeque<Waiting>,
    /// Those whose answers are long.
    pub(super) walks: Walks,
    /// Renewals that wait for an entry about their lease.
    parked: BTreeMap<i64, Vec<Waiting>>,
    /// Leases whose checkpoint must be cleared before they can be renewed.
    to_clear: Vec<i64>,
    next_checkpoint_ms: u64,
    /// Renewals of leases that exist need not wait for entries on their way, unless one of them is
    /// their lease's end.
    fast_renewals: bool,
    /// Leases that clients have asked to end, with the last entry that asks for it: another member
    /// may have answered it before this leader applies it. No longer than the unapplied end of the
    /// log.
    pub(super) ending: BTreeMap<i64, LogIndex>,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Keys as fields of a LeaseTimeToLiveResponse.
pub(super) fn written_keys<K: AsRef<[u8]>>(keys: impl Iterator<Item = K>) -> Pieces {
    let mut pieces = Pieces::default();
    for key in keys {
        let (key, out) = (key.as_ref(), pieces.bytes());
        wire::write_len(out, 5, key.len());
        out.extend_from_slice(key);
        pieces.end_record();
    }
    pieces.sealed()
}

impl LeaseDesk {
    pub(super) fn new(lessor: Lessor, fast_renewals: bool) -> Self {
        Self {
            lessor,
            pace: Pace::default(),
            leadership: Leadership::Sure,
            queued: VecDeque::new(),
            confirming: VecDeque::new(),
            confirmed: 0,
            answerable: VecDeque::new(),
            behind: VecDeque::new(),
            batches: Vec::new(),
            batched: 0,
            forward: VecDeque::new(),
            retry: VecDeque::new(),
            walks: Walks::default(),
            parked: BTreeMap::new(),
            to_clear: Vec::new(),
            next_checkpoint_ms: 0,
            fast_renewals,
            ending: BTreeMap::new(),
        }
    }

    /// This member leads no longer: what waited for its entries waits for a leader now.
    pub(super) fn demote(&mut self) {
        if self.lessor.is_primary() {
            self.lessor.demote();
        }
        self.leadership = Leadership::Sure;
        self.to_clear.clear();
        self.ending.clear();
        self.queued.append(&mut self.answerable);
        self.queued.append(&mut self.behind);
        self.queued.extend(self.confirming.drain(..).map(|(_, waiting)| waiting));
        self.queued.extend(std::mem::take(&mut self.parked).into_values().flatten());
        self.take_back_walks();
        self.queued.iter_mut().for_each(|waiting| waiting.after = None);
    }

    /// There is another leader, or none: everything is sorted anew.
    pub(super) fn take_back(&mut self) {
        for queue in [&mut self.retry, &mut self.forward] {
            self.queued.append(queue);
        }
        self.queued.iter_mut().for_each(|waiting| waiting.after = None);
    }

    /// When something is to be looked at though nothing has come.
    pub(super) fn next_look_ms(&self) -> u64 {
        let retry_ms = self.retry.front().map(|waiting| waiting.not_before_ms);
        let batches_ms = self.batches.iter().map(Batch::due_ms);
        batches_ms.chain(retry_ms).min().unwrap_or(u64::MAX)
    }

    /// True if a leader may answer what the read round with this ticket was for.
    pub(super) fn is_confirmed(&self, round: Option<u64>) -> bool {
        let ended = is_on(Mutation::LeaseAnsweredUnconfirmed)
            || self.confirmed >= round.unwrap_or(u64::MAX);
        self.lessor.is_primary() && ended
    }

    /// Questions that wait for this member, in whatever queue a leader or a follower has for them.
    pub(super) fn waiting(&self) -> usize {
        let sure = self.answerable.len() + self.behind.len() + self.walks.len();
        self.queued.len() + self.confirming.len() + sure
    }

    /// True for a question that need not wait for entries on their way.
    pub(super) fn is_fast(&self, question: LeaseQuestion) -> bool {
        matches!(question, LeaseQuestion::Renew { id } if self.renews_fast(id))
    }

    /// A read round has ended.
    pub(super) fn read_finished(&mut self, ticket: u64) {
        self.confirmed = self.confirmed.max(ticket);
        if matches!(self.leadership, Leadership::Asked(asked) if asked <= ticket) {
            self.leadership = Leadership::Sure;
        }
    }

    /// How long until the next revocations may be proposed, should some wait: less than the
    /// millisecond that [`LeaseDesk::deadline_ms`] says.
    pub(super) fn pause(&self, now: Duration) -> Option<Duration> {
        let waits = self.lessor.has_overdue() && self.leadership == Leadership::Sure;
        waits.then(|| Duration::from_micros(self.pace.wait_us(micros(now))))
    }

    /// True if something waits to be proposed.
    pub(super) fn has_input(&self) -> bool {
        !self.to_clear.is_empty()
    }

    /// When something is to be proposed, after `now_ms`.
    pub(super) fn deadline_ms(&self, now_ms: u64) -> u64 {
        if self.lessor.has_overdue() {
            return now_ms + 1;
        }
        let checkpoints = self.lessor.has_checkpoints().then_some(self.next_checkpoint_ms);
        let look_ms = checkpoints.into_iter().chain(self.lessor.next_look_ms()).min();
        look_ms.unwrap_or(u64::MAX).max(now_ms + 1)
    }

    /// The entry at `index`, not applied yet, ends this lease at a client's wish.
    pub(super) fn note_ending(&mut self, lease: i64, index: LogIndex) {
        if self.fast_renewals {
            self.ending.insert(lease, index);
        }
    }

    /// An entry that ends this lease is being applied.
    fn forget_ending(&mut self, lease: i64, index: LogIndex) {
        if self.ending.get(&lease).is_some_and(|last| *last <= index) {
            self.ending.remove(&lease);
        }
    }

    /// The entry that was to end this lease did not.
    pub(super) fn revoke_refused(&mut self, lease: i64, index: LogIndex) {
        self.forget_ending(lease, index);
    }

    /// True if a renewal of this lease need not wait for entries on their way.
    fn renews_fast(&self, id: i64) -> bool {
        self.fast_renewals
            && self.lessor.contains(id)
            && (is_on(Mutation::EndingLeaseRenewed) || !self.ending.contains_key(&id))
    }

    /// What waited for an entry about this lease is looked at again.
    pub(super) fn unpark(&mut self, id: i64) {
        if let Some(waiting) = self.parked.remove(&id) {
            self.answerable.extend(waiting);
        }
    }
}

impl Replica {
    /// When a turn is due sooner than in a millisecond: how soon.
    pub fn pause(&self) -> Option<Duration> {
        let may_propose = self.is_leader() && !self.proposals_wait && !self.spare_wait;
        if may_propose { self.desk.pause(self.shared.clock.elapsed()) } else { None }
    }

    /// A leader that was not run for long may have been replaced: it asks before it lets leases
    /// live or die. Called with every tick.
    pub(super) fn tick_leases(&mut self, slept_ms: u64, tick_ms: u64) {
        let now_ms = self.now_ms;
        if slept_ms > SLEPT_TICKS * tick_ms && self.is_leader() {
            self.desk.leadership = Leadership::Doubted;
        }
        // The fronts answer what is overdue by themselves; peers are told.
        let mut peers = Vec::new();
        let mut is_due = |waiting: &Waiting| {
            let overdue = waiting.ask.deadline_ms <= now_ms;
            if let Asker::Peer(conn) = waiting.asker
                && overdue
            {
                peers.push((conn, waiting.ask.question));
            }
            !overdue
        };
        let desk = &mut self.desk;
        for queue in [
            &mut desk.queued,
            &mut desk.answerable,
            &mut desk.behind,
            &mut desk.forward,
            &mut desk.retry,
        ] {
            queue.retain(&mut is_due);
        }
        desk.confirming.retain(|(_, waiting)| is_due(waiting));
        desk.walks.retain(&mut is_due);
        desk.end_unwanted_walk();
        let lessor = &mut self.desk.lessor;
        self.desk.parked.retain(|id, waiting| {
            waiting.retain(&mut is_due);
            if waiting.is_empty() {
                lessor.clearing_failed(*id);
            }
            !waiting.is_empty()
        });
        peers.into_iter().for_each(|(conn, question)| self.refuse_peer(conn, question));
        if self.is_leader() && self.desk.lessor.is_primary() {
            let overdue = |waiting: &Waiting| waiting.since_ms + APPLY_WAIT_MS <= now_ms;
            while self.is_behind()
                && let Some(waiting) = (self.desk.behind.pop_front_if(|waiting| overdue(waiting)))
                    .or_else(|| self.desk.answerable.pop_front_if(|waiting| overdue(waiting)))
            {
                let refused = LeaseAnswer::Refused(EtcdError::TimeoutWaitAppliedIndex.into());
                self.answer_lease(&waiting, refused);
            }
        }
    }

    /// Takes what the fronts ask.
    pub(super) fn take_lease_asks(&mut self) {
        if self.desk.leadership == Leadership::Doubted {
            self.next_read += 1;
            if self.log.node.read_index(self.next_read) {
                self.desk.leadership = Leadership::Asked(self.next_read);
            }
        }
        for front in 0..self.fronts.len() {
            while let Some(ask) = self.fronts[front].asks.pop() {
                let (asker, since_ms) = (Asker::Front(front), self.now_ms);
                self.desk.queued.push_back(Waiting::new(asker, since_ms, ask));
            }
        }
    }

    /// True if something is committed that this member has not applied. A quorum of others may
    /// have it on disk before this leader has: it is committed then, and not handed out yet.
    fn is_behind(&self) -> bool {
        self.has_backlog() || self.log.node.status().commit > self.store.applied().0
    }

    /// Before a leader answers what has come with this turn, a quorum tells that it leads still.
    pub(super) fn confirm_lease_asks(&mut self) {
        let is_new = |batch: &Batch| batch.round.is_none();
        let has_batches = self.desk.batches.iter().any(is_new);
        if !self.is_leader() || self.desk.queued.is_empty() && !has_batches {
            return;
        }
        let round = self.next_read + 1;
        if !self.log.node.read_index(round) {
            // Too many rounds wait: the next turn tries again.
            return;
        }
        self.next_read = round;
        let asked = self.desk.queued.drain(..).map(|waiting| (round, waiting));
        self.desk.confirming.extend(asked);
        for batch in self.desk.batches.iter_mut().filter(|batch| is_new(batch)) {
            batch.round = Some(round);
        }
    }

    /// Answers what can be answered; the rest waits.
    pub(super) fn answer_lease_asks(&mut self) {
        if !self.desk.batches.is_empty() {
            self.answer_batches();
        }
        match self.is_leader() {
            true => self.answer_as_leader(),
            false => self.pass_on_lease_asks(),
        }
        if self.desk.walks.len() > 0 {
            self.walk_on();
        }
    }

    fn answer_as_leader(&mut self) {
        let desk = &mut self.desk;
        while let Some((round, _)) = desk.confirming.front()
            && desk.is_confirmed(Some(*round))
        {
            desk.answerable.extend(desk.confirming.pop_front().map(|(_, waiting)| waiting));
        }
        if desk.answerable.is_empty() && desk.behind.is_empty() || !desk.lessor.is_primary() {
            return;
        }
        let (commit, (applied, _)) = (self.log.node.status().commit, self.store.applied());
        let is_over = |waiting: &mut Waiting| waiting.after.is_none_or(|after| after <= applied);
        while let Some(waiting) = self.desk.behind.pop_front_if(is_over) {
            self.answer_or_park(waiting);
        }
        for _ in 0..self.desk.answerable.len() {
            let Some(mut waiting) = self.desk.answerable.pop_front() else { return };
            let behind = *waiting.after.get_or_insert(commit) > applied;
            if behind && !self.desk.is_fast(waiting.ask.question) {
                self.desk.behind.push_back(waiting);
            } else {
                self.answer_or_park(waiting);
            }
        }
    }

    fn answer_or_park(&mut self, waiting: Waiting) {
        if waiting.asker == Asker::Nobody {
            return;
        }
        if self.desk.walks_for(waiting.ask.question) {
            return self.desk.walks.push(waiting);
        }
        match (self.lease_answer(waiting.ask.question), waiting.ask.question) {
            (Some(answer), _) => self.answer_lease(&waiting, answer),
            (None, LeaseQuestion::Renew { id }) => {
                self.desk.parked.entry(id).or_default().push(waiting);
            }
            (None, _) => self.desk.answerable.push_back(waiting),
        }
    }

    /// What a leader answers; `None` if an entry about the lease must be applied first.
    pub(super) fn lease_answer(&mut self, question: LeaseQuestion) -> Option<LeaseAnswer> {
        match question {
            LeaseQuestion::Renew { id } => self.renew(id),
            LeaseQuestion::TimeToLive { id, keys } => Some(self.time_to_live(id, keys)),
            // A walk answers it.
            LeaseQuestion::List => None,
        }
    }

    pub(super) fn answer_lease(&mut self, waiting: &Waiting, answer: LeaseAnswer) {
        match waiting.asker {
            Asker::Front(front) => {
                self.fronts[front].send(ToFront::Lease { slot: waiting.ask.slot, answer });
            }
            Asker::Peer(conn) => self.answer_peer(conn, &waiting.ask, answer),
            Asker::Nobody => {}
        }
    }

    /// `None` if it must wait for an entry.
    fn renew(&mut self, id: i64) -> Option<LeaseAnswer> {
        match self.desk.lessor.renew(id, self.now_ms) {
            Renewal::Renewed(ttl_s) => {
                self.shared.metrics.lease_renewed.inc();
                Some(LeaseAnswer::Renewed { ttl_s })
            }
            Renewal::NotFound => Some(LeaseAnswer::Renewed { ttl_s: 0 }),
            Renewal::Expired => None,
            Renewal::ClearFirst(propose) => {
                if propose {
                    self.desk.to_clear.push(id);
                    // Whoever asks may not stay, and the entry may be lost.
                    let deadline_ms = self.now_ms + self.request_timeout_ms;
                    let ask =
                        LeaseAsk { slot: 0, deadline_ms, question: LeaseQuestion::Renew { id } };
                    let marker = Waiting::new(Asker::Nobody, self.now_ms, ask);
                    self.desk.parked.entry(id).or_default().push(marker);
                }
                None
            }
        }
    }

    fn time_to_live(&self, id: i64, keys: bool) -> LeaseAnswer {
        let lessor = &self.desk.lessor;
        // Few, or a walk would answer it.
        let keys = if keys { written_keys(lessor.keys(id)) } else { Pieces::default() };
        LeaseAnswer::TimeToLive { times: lessor.time_to_live(id, self.now_ms), keys }
    }

    /// Adds to a batch of proposals what this leader has to say about leases.
    pub(super) fn propose_leases(
        &mut self,
        batch: &mut Vec<Bytes>,
        origins: &mut Vec<Option<Origin>>,
    ) {
        if !self.desk.lessor.is_primary() || self.desk.leadership != Leadership::Sure {
            return;
        }
        let now_ms = self.now_ms;
        self.work.note(Job::Leases);
        let backlog = self.desk.lessor.collect_expired(now_ms);
        let allowed = self.desk.pace.allow(backlog, micros(self.shared.clock.elapsed()));
        // They are slices of one piece of memory.
        let mut entries = Vec::with_capacity(allowed * entry::REVOKE_BYTES_MAX);
        let mut ends = Vec::with_capacity(allowed);
        while ends.len() < allowed
            && let Some(id) = self.desk.lessor.next_expired(now_ms)
        {
            if self.auth.is_enabled() {
                let lease_revoke = Some(pb::LeaseRevokeRequest { id });
                let revoke = pb::InternalRaftRequest { lease_revoke, ..Default::default() };
                let header = self.own_header();
                entries.extend_from_slice(&entry::encode(revoke, header));
            } else {
                entry::write_revoke(&mut entries, id, self.new_request_id());
            }
            ends.push(entries.len());
        }
        self.desk.pace.took(ends.len());
        let (entries, mut start) = (Bytes::from(entries), 0);
        for end in ends {
            batch.push(entries.slice(start..end));
            start = end;
        }
        for id in std::mem::take(&mut self.desk.to_clear) {
            batch.push(self.checkpoint_entry(&[(id, 0)]));
        }
        if now_ms >= self.desk.next_checkpoint_ms && self.desk.lessor.has_checkpoints() {
            self.desk.next_checkpoint_ms = now_ms + limits::LEASE_CHECKPOINT_MS;
            let most = limits::LEASE_CHECKPOINT_LEASES;
            let leases = self.desk.lessor.due_checkpoints(now_ms, most);
            if !leases.is_empty() {
                batch.push(self.checkpoint_entry(&leases));
            }
        }
        origins.resize(batch.len(), None);
    }

    fn checkpoint_entry(&mut self, leases: &[(i64, i64)]) -> Bytes {
        let checkpoint =
            |(id, left_s): &(i64, i64)| pb::LeaseCheckpoint { id: *id, remaining_ttl: *left_s };
        let request =
            pb::LeaseCheckpointRequest { checkpoints: leases.iter().map(checkpoint).collect() };
        let entry = pb::InternalRaftRequest {
            header: Some(pb::RequestHeader { id: self.new_request_id(), ..Default::default() }),
            lease_checkpoint: Some(request),
            ..Default::default()
        };
        entry.encode_to_vec().into()
    }

    pub(super) fn new_request_id(&mut self) -> u64 {
        self.ids.next(&self.shared.ids)
    }

    /// The first entry of a term was applied: if it is this leader's, all before it are; another
    /// leader answers reads from now on.
    pub(super) fn begin_term(&mut self, term: Term) {
        self.waiting.begin_term(term, self.now_ms);
        if !self.is_leader() && term == self.soft_state.term {
            self.log.node.retry_reads();
        }
        if self.is_leader() && term == self.soft_state.term {
            let extend_ms = u64::try_from(self.shared.config.election.as_millis()).unwrap_or(0);
            self.desk.lessor.promote(self.now_ms, extend_ms);
        }
    }

    pub(super) fn apply_lease_grant(
        &mut self,
        entry: &LogEntry,
        request: &pb::LeaseGrantRequest,
    ) -> Reply {
        let lessor = &mut self.desk.lessor;
        let ttl_s = match lessor.check_grant(request.id, request.ttl) {
            Ok(ttl_s) => ttl_s,
            Err(error) => {
                self.store.skip(entry.index, entry.term);
                return Reply::Refused(error.into());
            }
        };
        lessor.grant(request.id, ttl_s, self.now_ms);
        let mut txn = self.store.begin(entry.index, entry.term);
        if let Some(row) = lessor.row(request.id) {
            txn.bucket_put(Bucket::Lease, &lease::row_key(request.id), &row);
        }
        let revision = txn.commit();
        self.shared.metrics.lease_granted.inc();
        self.shared.metrics.lease_ttl.observe(ttl_s as f64);
        let mut out = Vec::new();
        self.shared.header(revision.0).write(&mut out);
        wire::write_int64(&mut out, 2, request.id);
        wire::write_int64(&mut out, 3, ttl_s);
        Reply::Message(out)
    }

    /// Deletes the lease and its keys, in order and as one revision.
    pub(super) fn apply_lease_revoke(&mut self, entry: &LogEntry, id: i64) -> Result<Reply, Halt> {
        self.desk.forget_ending(id, entry.index);
        if let Err(error) = self.alarms.admit_change() {
            self.store.skip(entry.index, entry.term);
            return Ok(Reply::Refused(error.into()));
        }
        if self.desk.lessor.key_count(id) > limits::APPLY_ANSWER_KEYS {
            return self.revoke_in_slices(entry, id);
        }
        let Some(revoked) = self.desk.lessor.revoke(id) else {
            self.store.skip(entry.index, entry.term);
            return Ok(Reply::Refused(EtcdError::LeaseNotFound.into()));
        };
        let mut txn = self.store.begin(entry.index, entry.term);
        for key in revoked.keys() {
            txn.delete(key);
        }
        txn.bucket_delete(Bucket::Lease, &lease::row_key(id));
        // etcd deletes the keys one by one.
        let counts = Counts { deletes: txn.changes() as u64, ..Counts::default() };
        counts.add_to(&self.shared.metrics);
        let revision = txn.commit();
        Ok(self.lease_revoked(id, revoked.had_expired, revision.0))
    }

    /// Takes over what is left of leases. Always kept on disk, as etcd does from cluster version
    /// 3.6 on, whatever its gate LeaseCheckpointPersist says.
    pub(super) fn apply_lease_checkpoint(
        &mut self,
        entry: &LogEntry,
        request: &pb::LeaseCheckpointRequest,
    ) {
        let mut txn = self.store.begin(entry.index, entry.term);
        for checkpoint in &request.checkpoints {
            let (id, left_s) = (checkpoint.id, checkpoint.remaining_ttl);
            if self.desk.lessor.checkpoint(id, left_s, self.now_ms)
                && let Some(row) = self.desk.lessor.row(id)
            {
                txn.bucket_put(Bucket::Lease, &lease::row_key(id), &row);
            }
            self.desk.unpark(id);
        }
        txn.commit();
    }
}
