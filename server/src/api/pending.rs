//! Requests that wait: for the replica, for a linearizable point, for a page, for the peer's
//! window.
//!
//! Owned by [`Services`](super::Services). A slot names a request together with the
//! use of its place, so a reply that comes after a time-out finds nobody. The number of requests is
//! bounded; nothing here decides what an answer is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use bytes::Bytes;
use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_engine::types::LogIndex;
use etcore_proto::deadlines::Deadlines;
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message as _;

use super::Cx;
use super::auth::{AuthQuestion, Credentials};
use super::call::{Call, Outcome};
use super::long::Long;
use super::routes::Unary;
use super::stats::Asked;
use crate::channel::Slot;
use crate::http::HealthCheck;
use crate::limits;
use crate::replies::{CallId, ConnId, HttpId};

/// Where an answer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum To {
    /// A gRPC call.
    Call(Call),
    /// A request that is not gRPC.
    Http(HttpId),
    /// Nobody any more; its connection is still charged.
    Nobody(ConnId),
}

impl To {
    pub(super) fn conn(&self) -> ConnId {
        match self {
            Self::Call(call) => call.id.conn,
            Self::Http(request) => request.conn,
            Self::Nobody(conn) => *conn,
        }
    }
}

/// A call that waits.
pub(super) struct PendingCall {
    pub(super) to: To,
    pub(super) kind: CallKind,
    pub(super) deadline_ms: u64,
    /// The client's own deadline made it shorter: another error then.
    pub(super) client_deadline: bool,
    /// Bytes of the proposal it waits for.
    pub(super) bytes: usize,
}

impl PendingCall {
    /// The call that a listing answers.
    fn listed(&self) -> Option<CallId> {
        match (&self.kind, &self.to) {
            (CallKind::Long(_), To::Call(call)) => Some(call.id),
            _ => None,
        }
    }

    fn small_bytes(&self) -> usize {
        if self.bytes <= limits::LARGE_PROPOSAL_BYTES { self.bytes } else { 0 }
    }
}

/// What it is.
pub(super) enum CallKind {
    /// A proposal; the replica's reply is the answer. With its entry, if that is small.
    Proposal(Option<Bytes>),
    /// An alarm that this front raises for a request which found the quota used up; the request is
    /// refused when the alarm is on.
    QuotaAlarm,
    /// A proposal that was answered by a time-out. It keeps its place, and what it is charged,
    /// until the replica's reply shows that its bytes are out of the ring.
    Abandoned,
    /// A Range, to be evaluated.
    Range(Box<pb::RangeRequest>),
    /// A transaction that only reads.
    ReadTxn(Box<pb::TxnRequest>),
    /// It is answered by this function once its linearizable point is reached.
    AtPoint(fn(&mut Cx<'_>, &Call) -> Outcome),
    /// A question about users and roles, answered at its point.
    AuthQuestion(Box<AuthQuestion>),
    /// A login, or a request with a new password, that waits for its point.
    Credentials(Box<Credentials>),
    /// One whose password is being hashed or compared.
    Password(Box<Credentials>),
    /// A login whose password was right, proposed.
    Login(Box<Credentials>),
    /// A call whose token is given out by an entry that this member is to apply yet.
    Early(Box<Unary>),
    /// A message of a stream of that kind, and who takes it.
    EarlyMessage(Box<(Bytes, TakeMessage)>),
    /// The list of alarms of this kind.
    AlarmList(i32),
    /// A hash that is being computed.
    Hash,
    /// A HashKV that is being computed.
    HashKv,
    /// A pass of the page file's defragmentation.
    Defragment,
    /// A change of the leader.
    MoveLeader,
    /// A change of the members.
    ChangeMembers,
    /// A health check.
    Health(Box<HealthCheck>),
    /// A RangeStream that waits for its linearizable point.
    Stream(Box<pb::RangeRequest>),
    /// A long answer, evaluated in slices and sent in pieces.
    Long(Box<Long>),
    /// A question to the lessor.
    Lease(LeaseCall),
}

/// What takes a message of a stream.
pub(super) type TakeMessage = fn(&mut Cx<'_>, CallId, Bytes);

/// What was asked of the lessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseCall {
    /// LeaseTimeToLive of this lease.
    TimeToLive { id: i64 },
    /// LeaseLeases.
    Leases,
    /// A renewal of a LeaseKeepAlive stream: its number there, from 0.
    KeepAlive { number: u64 },
}

impl CallKind {
    /// The request, if it is here.
    pub(super) fn asked(&self) -> Option<Box<Asked>> {
        let asked = match self {
            Self::Range(request) | Self::Stream(request) => {
                Asked::Message(request.encode_to_vec().into())
            }
            Self::ReadTxn(request) => Asked::Message(request.encode_to_vec().into()),
            Self::Proposal(Some(entry)) => Asked::Entry(entry.clone()),
            _ => return None,
        };
        Some(Box::new(asked))
    }

    /// True if it is read once its linearizable point is reached.
    pub(super) fn waits_for_read_index(&self) -> bool {
        matches!(
            self,
            Self::Range(_)
                | Self::ReadTxn(_)
                | Self::AtPoint(_)
                | Self::AuthQuestion(_)
                | Self::Credentials(_)
                | Self::AlarmList(_)
                | Self::Health(_)
                | Self::Stream(_)
        )
    }

    /// True if the replica will reply to it.
    fn is_proposal(&self) -> bool {
        matches!(self, Self::Proposal(_) | Self::QuotaAlarm | Self::Login(_))
    }
}

/// So many entries of the waiting lists may belong to calls that have ended.
const ENDED_KEPT: usize = 64;

#[derive(Default)]
struct Place {
    generation: u32,
    call: Option<PendingCall>,
}

/// See the module text.
#[derive(Default)]
pub(super) struct Pending {
    places: Vec<Place>,
    free: Vec<u32>,
    count: usize,
    abandoned: usize,
    proposal_bytes: usize,
    abandoned_bytes: usize,
    /// Bytes of small proposals whose clients still wait.
    small_bytes: usize,
    /// Waiting for the replica's word on their ticket, ascending.
    tickets: VecDeque<(u64, Slot)>,
    /// Waiting for the view to reach an index, with the order in which they came.
    at_index: BinaryHeap<Reverse<(LogIndex, u64, Slot)>>,
    next_at_index: u64,
    /// Waiting for any page to arrive.
    at_page: Vec<Slot>,
    runnable: VecDeque<Slot>,
    /// Listings that can go on: they take turns.
    long: VecDeque<Slot>,
    /// Listings, to find them by stream.
    listings: BTreeMap<CallId, Slot>,
    /// Deadlines of the calls that have one.
    deadlines: Deadlines<Slot>,
}

/// Too many calls wait already.
#[derive(Debug)]
pub(super) struct Full;

/// What a call without a deadline has.
const NEVER: u64 = u64::MAX;

fn call_at(places: &[Place], slot: Slot) -> Option<&PendingCall> {
    let place = places.get(slot as u32 as usize)?;
    if u64::from(place.generation) != slot >> 32 { None } else { place.call.as_ref() }
}

impl Pending {
    /// True if nobody waits for an answer.
    pub(super) fn is_empty(&self) -> bool {
        self.count == self.abandoned
    }

    pub(super) fn has_runnable(&self) -> bool {
        !self.runnable.is_empty() || !self.long.is_empty()
    }

    /// Bytes of proposals whose clients still wait.
    pub(super) fn proposal_bytes(&self) -> usize {
        self.proposal_bytes - self.abandoned_bytes
    }

    /// Bytes of proposals whose clients still wait and that are not large.
    pub(super) fn small_bytes(&self) -> usize {
        self.small_bytes
    }

    /// Bytes of all proposals that the replica has not replied to.
    pub(super) fn held_bytes(&self) -> usize {
        self.proposal_bytes
    }

    /// True if so much is abandoned, because there is no leader or the disk stands still, that
    /// further proposals are refused. Reading goes on then: other requests may be served.
    pub(super) fn is_clogged(&self) -> bool {
        self.abandoned >= limits::ABANDONED_PROPOSALS
            || self.abandoned_bytes >= limits::PENDING_PROPOSAL_BYTES
    }

    /// A proposal's time is up: what is returned is to be answered now, and what is left in its
    /// place stays until its reply comes.
    pub(super) fn abandon(&mut self, slot: Slot) -> Option<PendingCall> {
        let place = self.get_mut(slot).filter(|call| call.kind.is_proposal())?;
        let left = PendingCall {
            to: To::Nobody(place.to.conn()),
            kind: CallKind::Abandoned,
            deadline_ms: NEVER,
            client_deadline: false,
            bytes: place.bytes,
        };
        let call = std::mem::replace(place, left);
        if call.deadline_ms != NEVER {
            self.deadlines.ended();
        }
        self.abandoned += 1;
        self.abandoned_bytes += call.bytes;
        self.small_bytes -= call.small_bytes();
        Some(call)
    }

    /// True if the request has not ended.
    pub(super) fn is_waiting(&self, slot: Slot) -> bool {
        self.get(slot).is_some()
    }

    pub(super) fn is_abandoned(&self, slot: Slot) -> bool {
        self.get(slot).is_some_and(|call| matches!(call.kind, CallKind::Abandoned))
    }

    /// Forgets who waited for a ticket, an index or a page and has ended otherwise, once they are
    /// the majority: without a leader these lists would only grow.
    pub(super) fn forget_ended(&mut self) {
        let waiting = self.tickets.len() + self.at_index.len() + self.at_page.len();
        if waiting <= 2 * self.count + ENDED_KEPT {
            return;
        }
        let mut tickets = std::mem::take(&mut self.tickets);
        tickets.retain(|(_, slot)| self.get(*slot).is_some());
        self.tickets = tickets;
        let mut at_index = std::mem::take(&mut self.at_index);
        at_index.retain(|Reverse((_, _, slot))| self.get(*slot).is_some());
        self.at_index = at_index;
        let mut at_page = std::mem::take(&mut self.at_page);
        at_page.retain(|slot| self.get(*slot).is_some());
        self.at_page = at_page;
    }

    /// True if no more may wait.
    pub(super) fn is_full(&self) -> bool {
        self.count >= limits::PENDING_REQUESTS
    }

    /// Puts a request in, unless too many wait.
    pub(super) fn insert(&mut self, call: PendingCall) -> Result<Slot, Full> {
        if self.is_full() {
            return Err(Full);
        }
        self.count += 1;
        self.proposal_bytes += call.bytes;
        self.small_bytes += call.small_bytes();
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[index as usize];
        let slot = u64::from(place.generation) << 32 | u64::from(index);
        if let Some(call) = call.listed() {
            self.listings.insert(call, slot);
        }
        let deadline_ms = call.deadline_ms;
        place.call = Some(call);
        if deadline_ms != NEVER {
            let places = &self.places;
            self.deadlines.insert(deadline_ms, slot, |slot| {
                call_at(places, slot).is_some_and(|call| call.deadline_ms != NEVER)
            });
        }
        Ok(slot)
    }

    /// Takes a request out for good.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<PendingCall> {
        let index = slot as u32;
        let place = self.places.get_mut(index as usize)?;
        if u64::from(place.generation) != slot >> 32 {
            return None;
        }
        let call = place.call.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        self.count -= 1;
        self.proposal_bytes -= call.bytes;
        if call.deadline_ms != NEVER {
            self.deadlines.ended();
        }
        if matches!(call.kind, CallKind::Abandoned) {
            self.abandoned -= 1;
            self.abandoned_bytes -= call.bytes;
        } else {
            self.small_bytes -= call.small_bytes();
        }
        if let Some(call) = call.listed() {
            self.listings.remove(&call);
        }
        Some(call)
    }

    /// Waits for the replica's word on `ticket`; tickets come in ascending order.
    pub(super) fn wait_for_ticket(&mut self, slot: Slot, ticket: u64) {
        self.tickets.push_back((ticket, slot));
    }

    /// All tickets up to `up_to` may be served once the view has applied `index`.
    pub(super) fn tickets_ready(&mut self, up_to: u64, index: LogIndex, applied: LogIndex) {
        while let Some((ticket, slot)) = self.tickets.front().copied() {
            if ticket > up_to {
                break;
            }
            self.tickets.pop_front();
            if applied >= index || is_on(SeededBug::StaleReadIndex) {
                self.runnable.push_back(slot);
            } else {
                self.wait_for_index(slot, index);
            }
        }
    }

    pub(super) fn wait_for_index(&mut self, slot: Slot, index: LogIndex) {
        self.next_at_index += 1;
        self.at_index.push(Reverse((index, self.next_at_index, slot)));
    }

    /// The view has applied this much.
    pub(super) fn view_advanced(&mut self, applied: LogIndex) {
        while let Some(Reverse((index, _, slot))) = self.at_index.peek().copied()
            && index <= applied
        {
            self.at_index.pop();
            self.runnable.push_back(slot);
        }
    }

    /// Waits until a page has arrived.
    pub(super) fn wait_for_page(&mut self, slot: Slot) {
        self.at_page.push(slot);
    }

    /// Some page has arrived: everybody who waits for one looks again.
    pub(super) fn pages_arrived(&mut self) {
        let mut at_page = std::mem::take(&mut self.at_page);
        at_page.drain(..).for_each(|slot| self.run_soon(slot));
        self.at_page = at_page;
    }

    /// Runs in this turn or the next; a listing, when it is its turn.
    pub(super) fn run_soon(&mut self, slot: Slot) {
        match self.get(slot) {
            Some(call) if call.listed().is_some() => self.long.push_back(slot),
            Some(_) => self.runnable.push_back(slot),
            None => {}
        }
    }

    pub(super) fn next_runnable(&mut self) -> Option<Slot> {
        self.runnable.pop_front()
    }

    pub(super) fn runnable_count(&self) -> usize {
        self.runnable.len()
    }

    pub(super) fn next_long(&mut self) -> Option<Slot> {
        self.long.pop_front()
    }

    pub(super) fn long_count(&self) -> usize {
        self.long.len()
    }

    /// The listing that answers a call.
    pub(super) fn listing_of(&self, call: CallId) -> Option<Slot> {
        self.listings.get(&call).copied()
    }

    /// True if there are listings.
    pub(super) fn has_listings(&self) -> bool {
        !self.listings.is_empty()
    }

    /// True if a listing reads the page file of this number.
    pub(super) fn lists_from(&self, page_file: u64) -> bool {
        self.listings.values().any(|slot| {
            let kind = self.get(*slot).map(|call| &call.kind);
            matches!(kind, Some(CallKind::Long(long)) if long.page_file() == page_file)
        })
    }

    fn get(&self, slot: Slot) -> Option<&PendingCall> {
        call_at(&self.places, slot)
    }

    fn get_mut(&mut self, slot: Slot) -> Option<&mut PendingCall> {
        let place = self.places.get_mut(slot as u32 as usize)?;
        if u64::from(place.generation) != slot >> 32 { None } else { place.call.as_mut() }
    }

    /// Ends the listings of a connection: they hold pins. Other requests end with their reply.
    pub(super) fn connection_closed(&mut self, conn: ConnId) {
        let ended: Vec<Slot> =
            self.listings.range(CallId::all_of(conn)).map(|(_, slot)| *slot).collect();
        for slot in ended {
            self.remove(slot);
        }
    }

    /// Requests whose time is up; each is named once, and is to be ended or abandoned.
    pub(super) fn overdue(&mut self, now_ms: u64) -> Vec<Slot> {
        let mut overdue = Vec::new();
        while let Some(slot) = self.deadlines.pop_due(now_ms) {
            if self.get(slot).is_some_and(|call| call.deadline_ms != NEVER) {
                overdue.push(slot);
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call_of(bytes: usize) -> PendingCall {
        PendingCall {
            to: To::Nobody(ConnId { slot: 1, generation: 2 }),
            kind: CallKind::Proposal(None),
            deadline_ms: 10,
            client_deadline: false,
            bytes,
        }
    }

    #[test]
    fn a_late_reply_finds_nobody() {
        let mut pending = Pending::default();
        let Ok(first) = pending.insert(call_of(5)) else { panic!("room") };
        assert_eq!(pending.proposal_bytes(), 5);
        assert!(pending.remove(first).is_some());
        let Ok(second) = pending.insert(call_of(0)) else { panic!("room") };
        assert_eq!(first as u32, second as u32, "the place is used again");
        assert!(pending.remove(first).is_none());
        assert!(pending.overdue(9).is_empty());
        assert_eq!(pending.overdue(10), vec![second]);
    }

    #[test]
    fn reads_run_once_their_ticket_and_their_index_are_reached() {
        let mut pending = Pending::default();
        let Ok(slot) = pending.insert(call_of(0)) else { panic!("room") };
        pending.wait_for_ticket(slot, 7);
        pending.tickets_ready(6, LogIndex(3), LogIndex(3));
        assert!(!pending.has_runnable());
        pending.tickets_ready(7, LogIndex(4), LogIndex(3));
        assert!(!pending.has_runnable());
        pending.view_advanced(LogIndex(4));
        assert_eq!(pending.next_runnable(), Some(slot));
    }

    #[test]
    fn a_proposal_that_timed_out_is_charged_until_its_reply_comes() {
        let mut pending = Pending::default();
        let Ok(slot) = pending.insert(call_of(limits::PENDING_PROPOSAL_BYTES)) else {
            panic!("room")
        };
        assert!(!pending.is_clogged());
        assert!(pending.abandon(slot).is_some());
        assert!(pending.abandon(slot).is_none(), "answered once");
        assert_eq!(pending.held_bytes(), limits::PENDING_PROPOSAL_BYTES, "it is still in the ring");
        assert!(pending.is_empty(), "nobody waits");
        assert_eq!(pending.proposal_bytes(), 0, "reading goes on");
        assert!(pending.is_clogged() && pending.is_abandoned(slot));
        assert!(pending.overdue(u64::MAX - 1).is_empty());
        assert!(pending.remove(slot).is_some());
        assert!(!pending.is_clogged() && pending.is_empty());
    }

    #[test]
    fn many_abandoned_proposals_refuse_more() {
        let mut pending = Pending::default();
        for _ in 0..limits::ABANDONED_PROPOSALS {
            assert!(!pending.is_clogged());
            let Ok(slot) = pending.insert(call_of(1)) else { panic!("room") };
            pending.abandon(slot);
        }
        assert!(pending.is_clogged());
    }

    #[test]
    fn reads_that_timed_out_without_a_leader_leave_nothing_behind() {
        let mut pending = Pending::default();
        for ticket in 1..=1000 {
            let Ok(slot) = pending.insert(call_of(0)) else { panic!("room") };
            match ticket % 3 {
                0 => pending.wait_for_ticket(slot, ticket),
                1 => pending.wait_for_index(slot, LogIndex(9)),
                _ => pending.wait_for_page(slot),
            }
        }
        let Ok(alive) = pending.insert(PendingCall { deadline_ms: 100, ..call_of(0) }) else {
            panic!("room")
        };
        pending.wait_for_ticket(alive, 1001);
        for slot in pending.overdue(10) {
            pending.remove(slot);
        }
        pending.forget_ended();
        assert_eq!(pending.tickets.len() + pending.at_index.len() + pending.at_page.len(), 1);
        pending.tickets_ready(1001, LogIndex(1), LogIndex(1));
        assert_eq!(pending.next_runnable(), Some(alive));
    }

    #[test]
    fn deadlines_of_what_ended_early_are_not_kept() {
        let mut pending = Pending::default();
        for number in 0..10_000 {
            let timed = PendingCall { deadline_ms: 10_000 + number, ..call_of(1) };
            let Ok(slot) = pending.insert(timed) else { panic!("room") };
            match number % 3 {
                0 => assert!(pending.remove(slot).is_some()),
                1 => assert!(pending.abandon(slot).is_some() && pending.remove(slot).is_some()),
                _ => {
                    assert_eq!(pending.overdue(10_000 + number), vec![slot]);
                    assert!(pending.remove(slot).is_some());
                }
            }
            assert!(pending.deadlines.held() <= 70);
        }
    }

    #[test]
    fn requests_beyond_the_bound_are_given_back() {
        let mut pending = Pending::default();
        for _ in 0..limits::PENDING_REQUESTS {
            assert!(pending.insert(call_of(0)).is_ok());
        }
        assert!(pending.insert(call_of(0)).is_err());
    }
}
