//! The service for leases: applies their entries, answers queries about them, and, as leader,
//! proposes the revocation of what has expired.
//!
//! Queries come through rings of their own, so that a renewal never waits behind writes that wait
//! for the disk. They are answered after the turn's entries are applied and published. Only a
//! leader answers them: one whose lessor is primary, and that a read round has confirmed since they
//! came. A leader that was cut off or slept may have been replaced without knowing it, and would
//! deny leases that its successor granted, or renew what its successor lets end. etcd's leader asks
//! for such a round only when its own ticks are late (`ensureLeadership`), which a partition does
//! not do to it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_engine::types::{LogIndex, Term};
use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_raftlog::peer::ConnId;
use prost::Message;

use super::Replica;
use super::intake::Origin;
use crate::channel::{LeaseAnswer, LeaseQuery, LeaseRequest, ToFront};
use crate::kv::pieces::Pieces;
use crate::lease::pace::Pace;
use crate::lease::{Lessor, Renewal};
use crate::work::Job;
use crate::{entry, limits, wire};

mod applying;
mod batches;
mod walks;

pub use batches::BATCH_PATH;
use batches::Batches;
use walks::Walks;

/// How long a query waits for committed entries to be applied (etcd `applyTimeout`).
const APPLY_WAIT_MS: u64 = 1000;
/// After this many heartbeat intervals without a turn a leader asks whether it still is one.
const SLEPT_TICKS: u64 = 3;

/// A query that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) requester: Requester,
    pub(super) since_ms: u64,
    /// Asked of the leader again then.
    pub(super) not_before_ms: u64,
    /// What a leader must have applied before it answers: all that was committed when it first
    /// looked at the query. What came later may keep it busy for good.
    pub(super) after: Option<LogIndex>,
    pub(super) request: LeaseRequest,
}

impl Waiting {
    pub(super) fn new(requester: Requester, since_ms: u64, request: LeaseRequest) -> Self {
        Self { requester, since_ms, not_before_ms: 0, after: None, request }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Requester {
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
///
/// Invariants: a query is in one queue; only a primary lessor has queries in `confirming`,
/// `answerable`, `behind` or `parked`, but for a moment after it was demoted; `retry` ascends by
/// the time of its queries, `confirming` by their rounds.
pub(super) struct LeaseService {
    lessor: Lessor,
    pace: Pace,
    leadership: Leadership,
    /// To be looked at: a follower passes it on, a leader has itself confirmed first.
    queued: VecDeque<Waiting>,
    /// A leader's: they wait for the read round with this ticket, the first for the oldest.
    confirming: VecDeque<(u64, Waiting)>,
    /// The last read round that has ended.
    confirmed: u64,
    /// A leader that is confirmed answers these at the end of the turn.
    answerable: VecDeque<Waiting>,
    /// A leader's: they wait for entries, the first for the oldest.
    behind: VecDeque<Waiting>,
    /// Other members' batches.
    batches: Batches,
    /// To be asked of the leader.
    forward: VecDeque<Waiting>,
    /// To be asked of the leader when their time has come. The first is the first that is due.
    retry: VecDeque<Waiting>,
    /// Queries whose answers are long.
    walks: Walks,
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
    ending: BTreeMap<i64, LogIndex>,
}

/// Microseconds, for the pace of revocations.
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

impl LeaseService {
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
            batches: Batches::default(),
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

    /// The leases.
    pub(super) fn lessor(&self) -> &Lessor {
        &self.lessor
    }

    /// The leases, for entries that change them.
    pub(super) fn lessor_mut(&mut self) -> &mut Lessor {
        &mut self.lessor
    }

    /// True for a leader that has applied the first entry of its term.
    pub(super) fn is_primary(&self) -> bool {
        self.lessor.is_primary()
    }

    /// Looks at queries with the next turn.
    pub(super) fn queue(&mut self, waiting: impl IntoIterator<Item = Waiting>) {
        self.queued.extend(waiting);
    }

    /// Asks the leader again when the time of these queries has come, which is the same for all.
    pub(super) fn retry(&mut self, waiting: impl IntoIterator<Item = Waiting>) {
        self.retry.extend(waiting);
    }

    /// Sorts what a member that does not lead has queued. Returns a peer's query, which is to
    /// be refused; `None` once all are sorted.
    pub(super) fn sort_for_leader(&mut self) -> Option<(ConnId, LeaseQuery)> {
        while let Some(waiting) = self.queued.pop_front() {
            let query = waiting.request.query;
            match waiting.requester {
                Requester::Peer(conn) => return Some((conn, query)),
                Requester::Nobody => {}
                Requester::Front(_) if query == LeaseQuery::List => self.walks.push(waiting),
                Requester::Front(_) => self.forward.push_back(waiting),
            }
        }
        None
    }

    /// Queries whose time has come are to be asked again.
    pub(super) fn forward_due(&mut self, now_ms: u64) {
        while let Some(due) = self.retry.pop_front_if(|waiting| waiting.not_before_ms <= now_ms) {
            self.forward.push_back(due);
        }
    }

    /// The next query to ask the leader.
    pub(super) fn next_forward(&mut self) -> Option<Waiting> {
        self.forward.pop_front()
    }

    /// True if a walk has something to do.
    pub(super) fn has_walks(&self) -> bool {
        self.walks.has_work()
    }

    /// Checks the invariants, which takes a look at everything.
    pub(super) fn check(&self) {
        let retry = self.retry.iter().map(|waiting| waiting.not_before_ms);
        assert!(retry.is_sorted(), "queries are asked again in order");
        let rounds = self.confirming.iter().map(|(round, _)| *round);
        assert!(rounds.is_sorted(), "read rounds have an order");
        self.batches.check();
        self.walks.check();
    }

    /// Clients' wishes to end a lease that were proposed, and not applied yet.
    #[cfg(test)]
    pub(super) fn ending_len(&self) -> usize {
        self.ending.len()
    }

    /// Queries in other members' batches.
    #[cfg(test)]
    pub(super) fn batched(&self) -> usize {
        self.batches.queries()
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
        retry_ms.unwrap_or(u64::MAX).min(self.batches.due_ms())
    }

    /// True if a leader may answer what the read round with this ticket was for.
    pub(super) fn is_confirmed(&self, round: Option<u64>) -> bool {
        let ended = is_on(SeededBug::LeaseAnsweredUnconfirmed)
            || self.confirmed >= round.unwrap_or(u64::MAX);
        self.lessor.is_primary() && ended
    }

    /// Queries that wait for this member, in whatever queue a leader or a follower has for them.
    pub(super) fn waiting(&self) -> usize {
        let sure = self.answerable.len() + self.behind.len() + self.walks.len();
        self.queued.len() + self.confirming.len() + sure
    }

    /// True for a query that need not wait for entries on their way.
    pub(super) fn is_fast(&self, query: LeaseQuery) -> bool {
        matches!(query, LeaseQuery::Renew { id } if self.renews_fast(id))
    }

    /// A read round has ended.
    pub(super) fn read_finished(&mut self, ticket: u64) {
        self.confirmed = self.confirmed.max(ticket);
        if matches!(self.leadership, Leadership::Asked(asked) if asked <= ticket) {
            self.leadership = Leadership::Sure;
        }
    }

    /// How long until the next revocations may be proposed, should some wait: less than the
    /// millisecond that [`LeaseService::deadline_ms`] says.
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
            && (is_on(SeededBug::EndingLeaseRenewed) || !self.ending.contains_key(&id))
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
        let may_propose =
            self.is_leader() && !self.intake.waits() && !self.intake.waits_for_spare();
        if may_propose { self.leases.pause(self.shared.clock.elapsed()) } else { None }
    }

    /// A leader that was not run for long may have been replaced: it asks before it lets leases
    /// live or die. Called with every tick.
    pub(super) fn tick_leases(&mut self, slept_ms: u64, tick_ms: u64) {
        let now_ms = self.turn.now_ms();
        if slept_ms > SLEPT_TICKS * tick_ms && self.is_leader() {
            self.leases.leadership = Leadership::Doubted;
        }
        // The fronts answer what is overdue by themselves; peers are told.
        let mut peers = Vec::new();
        let mut is_due = |waiting: &Waiting| {
            let overdue = waiting.request.deadline_ms <= now_ms;
            if let Requester::Peer(conn) = waiting.requester
                && overdue
            {
                peers.push((conn, waiting.request.query));
            }
            !overdue
        };
        let leases = &mut self.leases;
        for queue in [
            &mut leases.queued,
            &mut leases.answerable,
            &mut leases.behind,
            &mut leases.forward,
            &mut leases.retry,
        ] {
            queue.retain(&mut is_due);
        }
        leases.confirming.retain(|(_, waiting)| is_due(waiting));
        leases.walks.retain(&mut is_due);
        leases.end_unwanted_walk();
        let lessor = &mut self.leases.lessor;
        self.leases.parked.retain(|id, waiting| {
            waiting.retain(&mut is_due);
            if waiting.is_empty() {
                lessor.clearing_failed(*id);
            }
            !waiting.is_empty()
        });
        peers.into_iter().for_each(|(conn, query)| self.refuse_peer(conn, query));
        if self.is_leader() && self.leases.lessor.is_primary() {
            let overdue = |waiting: &Waiting| waiting.since_ms + APPLY_WAIT_MS <= now_ms;
            while self.is_behind()
                && let Some(waiting) = (self.leases.behind.pop_front_if(|waiting| overdue(waiting)))
                    .or_else(|| self.leases.answerable.pop_front_if(|waiting| overdue(waiting)))
            {
                let refused = LeaseAnswer::Refused(EtcdError::TimeoutWaitAppliedIndex.into());
                self.answer_lease(&waiting, refused);
            }
        }
    }

    /// Takes what the fronts ask.
    pub(super) fn take_lease_requests(&mut self) {
        if self.leases.leadership == Leadership::Doubted
            && let Some(round) = self.reads.begin_round(&mut self.log.node)
        {
            self.leases.leadership = Leadership::Asked(round);
        }
        let since_ms = self.turn.now_ms();
        for front in 0..self.fronts.len() {
            while let Some(request) = self.fronts.link(front).next_lease_request() {
                let waiting = Waiting::new(Requester::Front(front), since_ms, request);
                match self.admit_lease_request(&waiting) {
                    Ok(()) => self.leases.queued.push_back(waiting),
                    Err(error) => self.answer_lease(&waiting, LeaseAnswer::Refused(error.into())),
                }
            }
        }
    }

    /// True if something is committed that this member has not applied. A quorum of others may
    /// have it on disk before this leader has: it is committed then, and not handed out yet.
    fn is_behind(&self) -> bool {
        self.has_backlog() || self.log.node.status().commit > self.store.applied().0
    }

    /// Before a leader answers what has come with this turn, a quorum tells that it leads still.
    pub(super) fn confirm_lease_requests(&mut self) {
        let has_new = !self.leases.queued.is_empty() || self.leases.batches.has_new();
        if !self.is_leader() || !has_new {
            return;
        }
        // If too many rounds wait, the next turn tries again.
        let Some(round) = self.reads.begin_round(&mut self.log.node) else { return };
        let asked = self.leases.queued.drain(..).map(|waiting| (round, waiting));
        self.leases.confirming.extend(asked);
        self.leases.batches.confirm_by(round);
    }

    /// Answers what can be answered; the rest waits.
    pub(super) fn answer_lease_requests(&mut self) {
        if !self.leases.batches.is_empty() {
            self.answer_batches();
        }
        match self.is_leader() {
            true => self.answer_as_leader(),
            false => self.pass_on_lease_requests(),
        }
        if self.leases.walks.len() > 0 {
            self.walk_on();
        }
    }

    fn answer_as_leader(&mut self) {
        let leases = &mut self.leases;
        while let Some((round, _)) = leases.confirming.front()
            && leases.is_confirmed(Some(*round))
        {
            leases.answerable.extend(leases.confirming.pop_front().map(|(_, waiting)| waiting));
        }
        if leases.answerable.is_empty() && leases.behind.is_empty() || !leases.lessor.is_primary() {
            return;
        }
        let (commit, (applied, _)) = (self.log.node.status().commit, self.store.applied());
        let is_over = |waiting: &mut Waiting| waiting.after.is_none_or(|after| after <= applied);
        while let Some(waiting) = self.leases.behind.pop_front_if(is_over) {
            self.answer_or_park(waiting);
        }
        for _ in 0..self.leases.answerable.len() {
            let Some(mut waiting) = self.leases.answerable.pop_front() else { return };
            let behind = *waiting.after.get_or_insert(commit) > applied;
            if behind && !self.leases.is_fast(waiting.request.query) {
                self.leases.behind.push_back(waiting);
            } else {
                self.answer_or_park(waiting);
            }
        }
    }

    fn answer_or_park(&mut self, waiting: Waiting) {
        if waiting.requester == Requester::Nobody {
            return;
        }
        if let Err(error) = self.admit_lease_request(&waiting) {
            return self.answer_lease(&waiting, LeaseAnswer::Refused(error.into()));
        }
        if self.leases.walks_for(waiting.request.query) {
            return self.leases.walks.push(waiting);
        }
        match (self.lease_answer(waiting.request.query), waiting.request.query) {
            (Some(answer), _) => self.answer_lease(&waiting, answer),
            (None, LeaseQuery::Renew { id }) => {
                self.leases.parked.entry(id).or_default().push(waiting);
            }
            (None, _) => self.leases.answerable.push_back(waiting),
        }
    }

    /// What a leader answers; `None` if an entry about the lease must be applied first.
    pub(super) fn lease_answer(&mut self, query: LeaseQuery) -> Option<LeaseAnswer> {
        match query {
            LeaseQuery::Renew { id } => self.renew(id),
            LeaseQuery::TimeToLive { id, keys } => Some(self.time_to_live(id, keys)),
            // A walk answers it.
            LeaseQuery::List => None,
        }
    }

    pub(super) fn answer_lease(&mut self, waiting: &Waiting, answer: LeaseAnswer) {
        match waiting.requester {
            Requester::Front(front) => {
                self.fronts.send(front, ToFront::Lease { slot: waiting.request.slot, answer });
            }
            Requester::Peer(conn) => self.answer_peer(conn, &waiting.request, answer),
            Requester::Nobody => {}
        }
    }

    /// `None` if it must wait for an entry.
    fn renew(&mut self, id: i64) -> Option<LeaseAnswer> {
        match self.leases.lessor.renew(id, self.turn.now_ms()) {
            Renewal::Renewed(ttl_s) => {
                self.shared.metrics.lease_renewed.inc();
                Some(LeaseAnswer::Renewed { ttl_s })
            }
            Renewal::NotFound => Some(LeaseAnswer::Renewed { ttl_s: 0 }),
            Renewal::Expired => None,
            Renewal::ClearFirst(propose) => {
                if propose {
                    self.leases.to_clear.push(id);
                    // Whoever asks may not stay, and the entry may be lost.
                    let deadline_ms = self.turn.now_ms() + self.request_timeout_ms;
                    let query = LeaseQuery::Renew { id };
                    let request = LeaseRequest { slot: 0, deadline_ms, query, asker: None };
                    let marker = Waiting::new(Requester::Nobody, self.turn.now_ms(), request);
                    self.leases.parked.entry(id).or_default().push(marker);
                }
                None
            }
        }
    }

    fn time_to_live(&self, id: i64, keys: bool) -> LeaseAnswer {
        let lessor = &self.leases.lessor;
        // Few, or a walk would answer it.
        let keys = if keys { written_keys(lessor.keys(id)) } else { Pieces::default() };
        LeaseAnswer::TimeToLive { times: lessor.time_to_live(id, self.turn.now_ms()), keys }
    }

    /// Adds to a batch of proposals what this leader has to say about leases.
    pub(super) fn propose_leases(
        &mut self,
        batch: &mut Vec<Bytes>,
        origins: &mut Vec<Option<Origin>>,
    ) {
        if !self.leases.lessor.is_primary() || self.leases.leadership != Leadership::Sure {
            return;
        }
        let now_ms = self.turn.now_ms();
        self.turn.note(Job::Leases);
        let backlog = self.leases.lessor.collect_expired(now_ms);
        let allowed = self.leases.pace.allow(backlog, micros(self.shared.clock.elapsed()));
        // They are slices of one piece of memory.
        let mut entries = Vec::with_capacity(allowed * entry::REVOKE_BYTES_MAX);
        let mut ends = Vec::with_capacity(allowed);
        while ends.len() < allowed
            && let Some(id) = self.leases.lessor.next_expired(now_ms)
        {
            if self.state.auth().is_enabled() {
                let lease_revoke = Some(pb::LeaseRevokeRequest { id });
                let revoke = pb::InternalRaftRequest { lease_revoke, ..Default::default() };
                let header = self.own_header();
                entries.extend_from_slice(&entry::encode(revoke, header));
            } else {
                entry::write_revoke(&mut entries, id, self.new_request_id());
            }
            ends.push(entries.len());
        }
        self.leases.pace.took(ends.len());
        let (entries, mut start) = (Bytes::from(entries), 0);
        for end in ends {
            batch.push(entries.slice(start..end));
            start = end;
        }
        for id in std::mem::take(&mut self.leases.to_clear) {
            batch.push(self.checkpoint_entry(&[(id, 0)]));
        }
        if now_ms >= self.leases.next_checkpoint_ms && self.leases.lessor.has_checkpoints() {
            self.leases.next_checkpoint_ms = now_ms + limits::LEASE_CHECKPOINT_MS;
            let most = limits::LEASE_CHECKPOINT_LEASES;
            let leases = self.leases.lessor.due_checkpoints(now_ms, most);
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

    /// The first entry of a term was applied: if it is this leader's, all before it are; another
    /// leader answers reads from now on.
    pub(super) fn begin_term(&mut self, term: Term) {
        self.proposals.begin_term(term, self.turn.now_ms());
        if !self.is_leader() && term == self.standing.term() {
            self.log.node.retry_reads();
        }
        if self.is_leader() && term == self.standing.term() {
            let extend_ms = u64::try_from(self.shared.config.election.as_millis()).unwrap_or(0);
            self.leases.lessor.promote(self.turn.now_ms(), extend_ms);
        }
    }
}
