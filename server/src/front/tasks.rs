//! Requests that wait: for the replica, for a linearizable point, for a page, for the peer's
//! window.
//!
//! Owned by the front. A slot names a request together with the use of its place, so a reply that
//! comes after a time-out finds nobody. The number of requests is bounded; nothing here decides
//! what an answer is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use etcore_engine::mutation::{Mutation, is_on};
use etcore_engine::types::LogIndex;
use etcore_proto::deadlines::Deadlines;
use etcore_proto::grpc::StreamId;
use etcore_proto::pb::etcdserverpb as pb;

use super::long::Long;
use crate::driver::SocketId;
use crate::http::HealthCheck;
use crate::limits;
use crate::replica::Slot;

/// Where an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// A gRPC call.
    Call(StreamId),
    /// The HTTP/1.1 request that the connection is at.
    Plain,
}

/// A request that waits.
pub(super) struct Task {
    pub(super) socket: SocketId,
    pub(super) to: To,
    pub(super) kind: Kind,
    pub(super) deadline_ms: u64,
    /// The client's own deadline made it shorter: another error then.
    pub(super) client_deadline: bool,
    /// Bytes of the proposal it waits for.
    pub(super) bytes: usize,
}

impl Task {
    /// The call that a listing answers.
    fn listed(&self) -> Option<(SocketId, StreamId)> {
        match (&self.kind, self.to) {
            (Kind::Long(_), To::Call(stream)) => Some((self.socket, stream)),
            _ => None,
        }
    }

    fn small_bytes(&self) -> usize {
        if self.bytes <= limits::LARGE_PROPOSAL_BYTES { self.bytes } else { 0 }
    }
}

/// What it is.
pub(super) enum Kind {
    /// A proposal; the replica's reply is the answer.
    Proposal,
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
    /// MemberList.
    MemberList,
    /// The list of alarms of this kind.
    AlarmList(i32),
    /// A hash that is being computed.
    Hash,
    /// The same for HashKV.
    HashKv,
    /// A pass of the page file's defragmentation.
    Defragment,
    /// A change of the leader.
    MoveLeader,
    /// A health check.
    Health(HealthCheck),
    /// A RangeStream that waits for its linearizable point.
    Stream(Box<pb::RangeRequest>),
    /// A long answer, evaluated in slices and sent in pieces.
    Long(Box<Long>),
    /// A question to the lessor.
    Lease(LeaseCall),
}

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

impl Kind {
    /// True if the replica will reply to it.
    fn is_proposal(&self) -> bool {
        matches!(self, Self::Proposal | Self::QuotaAlarm)
    }
}

/// Of those that wait in lists, so many may have ended.
const ENDED_KEPT: usize = 64;

#[derive(Default)]
struct Place {
    generation: u32,
    task: Option<Task>,
}

/// See the module text.
#[derive(Default)]
pub(super) struct Tasks {
    places: Vec<Place>,
    free: Vec<u32>,
    count: usize,
    abandoned: usize,
    proposal_bytes: usize,
    abandoned_bytes: usize,
    /// Of small proposals whose clients still wait.
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
    listings: BTreeMap<(SocketId, StreamId), Slot>,
    /// Of those that have one.
    deadlines: Deadlines<Slot>,
}

/// What a task without a deadline has.
const NEVER: u64 = u64::MAX;

fn task_at(places: &[Place], slot: Slot) -> Option<&Task> {
    let place = places.get(slot as u32 as usize)?;
    if u64::from(place.generation) != slot >> 32 { None } else { place.task.as_ref() }
}

impl Tasks {
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

    /// Of these, bytes of proposals that are not large.
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
    pub(super) fn abandon(&mut self, slot: Slot) -> Option<Task> {
        let place = self.get_mut(slot).filter(|task| task.kind.is_proposal())?;
        let left = Task { kind: Kind::Abandoned, deadline_ms: NEVER, ..*place };
        let task = std::mem::replace(place, left);
        if task.deadline_ms != NEVER {
            self.deadlines.ended();
        }
        self.abandoned += 1;
        self.abandoned_bytes += task.bytes;
        self.small_bytes -= task.small_bytes();
        Some(task)
    }

    /// True if the request has not ended.
    pub(super) fn is_waiting(&self, slot: Slot) -> bool {
        self.get(slot).is_some()
    }

    pub(super) fn is_abandoned(&self, slot: Slot) -> bool {
        self.get(slot).is_some_and(|task| matches!(task.kind, Kind::Abandoned))
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

    /// Puts a request in; gives it back if too many wait.
    pub(super) fn insert(&mut self, task: Task) -> Result<Slot, Task> {
        if self.count >= limits::PENDING_REQUESTS {
            return Err(task);
        }
        self.count += 1;
        self.proposal_bytes += task.bytes;
        self.small_bytes += task.small_bytes();
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[index as usize];
        let slot = u64::from(place.generation) << 32 | u64::from(index);
        if let Some(call) = task.listed() {
            self.listings.insert(call, slot);
        }
        let deadline_ms = task.deadline_ms;
        place.task = Some(task);
        if deadline_ms != NEVER {
            let places = &self.places;
            self.deadlines.insert(deadline_ms, slot, |slot| {
                task_at(places, slot).is_some_and(|task| task.deadline_ms != NEVER)
            });
        }
        Ok(slot)
    }

    /// Takes a request out for good.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Task> {
        let index = slot as u32;
        let place = self.places.get_mut(index as usize)?;
        if u64::from(place.generation) != slot >> 32 {
            return None;
        }
        let task = place.task.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        self.count -= 1;
        self.proposal_bytes -= task.bytes;
        if task.deadline_ms != NEVER {
            self.deadlines.ended();
        }
        if matches!(task.kind, Kind::Abandoned) {
            self.abandoned -= 1;
            self.abandoned_bytes -= task.bytes;
        } else {
            self.small_bytes -= task.small_bytes();
        }
        if let Some(call) = task.listed() {
            self.listings.remove(&call);
        }
        Some(task)
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
            if applied >= index || is_on(Mutation::StaleReadIndex) {
                self.runnable.push_back(slot);
            } else {
                self.wait_for_index(slot, index);
            }
        }
    }

    fn wait_for_index(&mut self, slot: Slot, index: LogIndex) {
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
            Some(task) if task.listed().is_some() => self.long.push_back(slot),
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
    pub(super) fn listing_of(&self, socket: SocketId, stream: StreamId) -> Option<Slot> {
        self.listings.get(&(socket, stream)).copied()
    }

    fn get(&self, slot: Slot) -> Option<&Task> {
        task_at(&self.places, slot)
    }

    fn get_mut(&mut self, slot: Slot) -> Option<&mut Task> {
        let place = self.places.get_mut(slot as u32 as usize)?;
        if u64::from(place.generation) != slot >> 32 { None } else { place.task.as_mut() }
    }

    /// Ends the listings of a connection: they hold pins. Other requests end with their reply.
    pub(super) fn connection_closed(&mut self, socket: SocketId) {
        let of_it = (socket, StreamId::MIN)..=(socket, StreamId::MAX);
        let ended: Vec<Slot> = self.listings.range(of_it).map(|(_, slot)| *slot).collect();
        for slot in ended {
            self.remove(slot);
        }
    }

    /// Requests whose time is up; each is named once, and is to be ended or abandoned.
    pub(super) fn overdue(&mut self, now_ms: u64) -> Vec<Slot> {
        let mut overdue = Vec::new();
        while let Some(slot) = self.deadlines.pop_due(now_ms) {
            if self.get(slot).is_some_and(|task| task.deadline_ms != NEVER) {
                overdue.push(slot);
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(bytes: usize) -> Task {
        Task {
            socket: SocketId { slot: 1, generation: 2 },
            to: To::Plain,
            kind: Kind::Proposal,
            deadline_ms: 10,
            client_deadline: false,
            bytes,
        }
    }

    #[test]
    fn a_late_reply_finds_nobody() {
        let mut tasks = Tasks::default();
        let Ok(first) = tasks.insert(task(5)) else { panic!("room") };
        assert_eq!(tasks.proposal_bytes(), 5);
        assert!(tasks.remove(first).is_some());
        let Ok(second) = tasks.insert(task(0)) else { panic!("room") };
        assert_eq!(first as u32, second as u32, "the place is used again");
        assert!(tasks.remove(first).is_none());
        assert!(tasks.overdue(9).is_empty());
        assert_eq!(tasks.overdue(10), vec![second]);
    }

    #[test]
    fn reads_run_once_their_ticket_and_their_index_are_reached() {
        let mut tasks = Tasks::default();
        let Ok(slot) = tasks.insert(task(0)) else { panic!("room") };
        tasks.wait_for_ticket(slot, 7);
        tasks.tickets_ready(6, LogIndex(3), LogIndex(3));
        assert!(!tasks.has_runnable());
        tasks.tickets_ready(7, LogIndex(4), LogIndex(3));
        assert!(!tasks.has_runnable());
        tasks.view_advanced(LogIndex(4));
        assert_eq!(tasks.next_runnable(), Some(slot));
    }

    #[test]
    fn a_proposal_that_timed_out_is_charged_until_its_reply_comes() {
        let mut tasks = Tasks::default();
        let Ok(slot) = tasks.insert(task(limits::PENDING_PROPOSAL_BYTES)) else { panic!("room") };
        assert!(!tasks.is_clogged());
        assert!(tasks.abandon(slot).is_some());
        assert!(tasks.abandon(slot).is_none(), "answered once");
        assert_eq!(tasks.held_bytes(), limits::PENDING_PROPOSAL_BYTES, "it is still in the ring");
        assert!(tasks.is_empty(), "nobody waits");
        assert_eq!(tasks.proposal_bytes(), 0, "reading goes on");
        assert!(tasks.is_clogged() && tasks.is_abandoned(slot));
        assert!(tasks.overdue(u64::MAX - 1).is_empty());
        assert!(tasks.remove(slot).is_some());
        assert!(!tasks.is_clogged() && tasks.is_empty());
    }

    #[test]
    fn many_abandoned_proposals_refuse_more() {
        let mut tasks = Tasks::default();
        for _ in 0..limits::ABANDONED_PROPOSALS {
            assert!(!tasks.is_clogged());
            let Ok(slot) = tasks.insert(task(1)) else { panic!("room") };
            tasks.abandon(slot);
        }
        assert!(tasks.is_clogged());
    }

    #[test]
    fn reads_that_timed_out_without_a_leader_leave_nothing_behind() {
        let mut tasks = Tasks::default();
        for ticket in 1..=1000 {
            let Ok(slot) = tasks.insert(task(0)) else { panic!("room") };
            match ticket % 3 {
                0 => tasks.wait_for_ticket(slot, ticket),
                1 => tasks.wait_for_index(slot, LogIndex(9)),
                _ => tasks.wait_for_page(slot),
            }
        }
        let Ok(alive) = tasks.insert(Task { deadline_ms: 100, ..task(0) }) else { panic!("room") };
        tasks.wait_for_ticket(alive, 1001);
        for slot in tasks.overdue(10) {
            tasks.remove(slot);
        }
        tasks.forget_ended();
        assert_eq!(tasks.tickets.len() + tasks.at_index.len() + tasks.at_page.len(), 1);
        tasks.tickets_ready(1001, LogIndex(1), LogIndex(1));
        assert_eq!(tasks.next_runnable(), Some(alive));
    }

    #[test]
    fn deadlines_of_what_ended_early_are_not_kept() {
        let mut tasks = Tasks::default();
        for number in 0..10_000 {
            let timed = Task { deadline_ms: 10_000 + number, ..task(1) };
            let Ok(slot) = tasks.insert(timed) else { panic!("room") };
            match number % 3 {
                0 => assert!(tasks.remove(slot).is_some()),
                1 => assert!(tasks.abandon(slot).is_some() && tasks.remove(slot).is_some()),
                _ => {
                    assert_eq!(tasks.overdue(10_000 + number), vec![slot]);
                    assert!(tasks.remove(slot).is_some());
                }
            }
            assert!(tasks.deadlines.held() <= 70);
        }
    }

    #[test]
    fn requests_beyond_the_bound_are_given_back() {
        let mut tasks = Tasks::default();
        for _ in 0..limits::PENDING_REQUESTS {
            assert!(tasks.insert(task(0)).is_ok());
        }
        assert!(tasks.insert(task(0)).is_err());
    }
}
