//! The replica's side of its peers: what came from them, what is to be sent, and who is reachable.
//!
//! The shard hands messages in while [`Replica::wants_messages`], and takes out what a turn left to
//! be sent. Messages with entries wait in a queue of their own, so that heartbeats are heard while
//! the disk is behind; a network may reorder them just so. Nothing here does I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

use etcore_engine::types::LogIndex;
use etcore_proto::raftpb::{self, EntryType, MessageType};
use etcore_raftlog::node::{Destination, Role, StepError};
use etcore_raftlog::peer::PeerReport;
use prost::Message as _;

use super::Replica;
use crate::cluster::change::Change;
use crate::work::Job;
use crate::{entry, limits};

/// See the module text.
///
/// Invariant: `bytes` is what the messages of the three inboxes cost.
#[derive(Default)]
pub(super) struct PeerQueue {
    /// Heartbeats, votes, answers.
    urgent: VecDeque<raftpb::Message>,
    /// Appends.
    bulk: VecDeque<raftpb::Message>,
    /// Proposals that other members gave to this one, and when.
    forwarded: VecDeque<(u64, raftpb::Message)>,
    /// The next of them asks for a change of the members while another is under way.
    waits_for_change: bool,
    bytes: usize,
    /// The disk is behind: appends wait. What ends that wakes the shard.
    choked: bool,
    /// One reason for that is that too much was not applied: nothing else wakes the shard when all
    /// of it is.
    waits_for_apply: bool,
    outbox: Vec<raftpb::Message>,
    /// Reachable peers, and since when.
    active: BTreeMap<u64, u64>,
    /// Members that were reachable and are not, since when, and have said nothing for a while.
    lost: BTreeMap<u64, u64>,
    /// Members to whom a message was lost and that have said nothing since.
    silent: BTreeSet<u64>,
    /// Appends without entries, which only say what is committed, and until when they wait for one
    /// with entries to say it.
    held: BTreeMap<u64, (u64, raftpb::Message)>,
    /// Members whose clients' proposals came from them, and when: they wait for commits.
    forwarders: BTreeMap<u64, u64>,
    /// When a heartbeat was last sent to each.
    heartbeats: BTreeMap<u64, u64>,
    /// The election clock was put forward, or is not to be any more.
    advanced: bool,
}

/// What a message takes of the inbox's bound.
fn cost_bytes(message: &raftpb::Message) -> usize {
    let data = |entry: &raftpb::Entry| entry.data.as_ref().map_or(0, |data| data.len());
    message.entries.iter().map(|entry| data(entry) + 32).sum::<usize>() + 128
}

impl PeerQueue {
    fn has_room(&self) -> bool {
        let count = self.urgent.len() + self.bulk.len() + self.forwarded.len();
        count < limits::PEER_INBOX_MESSAGES && self.bytes < limits::PEER_INBOX_BYTES
    }

    /// How many messages with proposals of other members wait.
    #[cfg(test)]
    pub(super) fn forwarded_len(&self) -> usize {
        self.forwarded.len()
    }

    /// True if there are proposals of other members that do not wait for a change of the members.
    pub(super) fn has_forwarded(&self) -> bool {
        !self.forwarded.is_empty() && !self.waits_for_change
    }

    /// The change of the members that the next forwarded message asks for, if it does.
    fn next_change(&self) -> Option<raftpb::ConfChange> {
        let (_, message) = self.forwarded.front()?;
        let kind = Some(EntryType::EntryConfChange as i32);
        let entry = message.entries.iter().find(|entry| entry.r#type == kind)?;
        raftpb::ConfChange::decode(entry.data.clone()?).ok()
    }

    /// Takes a message in; the next turn steps it.
    fn receive(&mut self, message: raftpb::Message, now_ms: u64) {
        let from = message.from.unwrap_or(0);
        self.bytes += cost_bytes(&message);
        if !self.silent.is_empty() {
            self.silent.remove(&from);
        }
        if !self.lost.is_empty() {
            // It lives: what it sent before it died has come by then.
            let lives = |_: &u64, since_ms: &mut u64| now_ms > *since_ms + limits::LOST_MS;
            self.lost.extract_if(from..=from, lives).for_each(drop);
        }
        match MessageType::try_from(message.r#type.unwrap_or(0)) {
            Ok(MessageType::MsgProp) => {
                self.forwarders.insert(from, now_ms);
                self.forwarded.push_back((now_ms, message));
            }
            Ok(MessageType::MsgApp) if !message.entries.is_empty() => self.bulk.push_back(message),
            _ => self.urgent.push_back(message),
        }
    }

    /// The next heartbeat, vote or answer.
    fn next_urgent(&mut self) -> Option<raftpb::Message> {
        let message = self.urgent.pop_front()?;
        self.bytes -= cost_bytes(&message);
        Some(message)
    }

    /// The next append, and what it costs, unless appends wait.
    fn next_bulk(&mut self) -> Option<(raftpb::Message, usize)> {
        if self.choked {
            return None;
        }
        let message = self.bulk.pop_front()?;
        let bytes = cost_bytes(&message);
        self.bytes -= bytes;
        Some((message, bytes))
    }

    /// Appends wait while this member is behind, `for_apply` with applying.
    fn choke(&mut self, behind: bool, for_apply: bool) {
        debug_assert!(behind || !for_apply, "what is not applied is a way of being behind");
        (self.choked, self.waits_for_apply) = (behind, for_apply);
    }

    /// A heartbeat leaves for a member; returns how late it is, in milliseconds.
    fn heartbeat_leaves(&mut self, to: u64, now_ms: u64, interval_ms: u64) -> u64 {
        let last_ms = self.heartbeats.insert(to, now_ms).unwrap_or(now_ms);
        (now_ms - last_ms).saturating_sub(2 * interval_ms)
    }

    /// A member is connected.
    fn connected(&mut self, id: u64, now_ms: u64) {
        self.active.entry(id).or_insert(now_ms);
        self.lost.remove(&id);
        self.silent.remove(&id);
    }

    /// A member is connected no longer.
    fn disconnected(&mut self, id: u64, now_ms: u64) {
        self.active.remove(&id);
        self.lost.insert(id, now_ms);
    }

    /// A member was removed.
    pub(super) fn forget(&mut self, id: u64) {
        self.active.remove(&id);
        self.lost.remove(&id);
        self.silent.remove(&id);
        self.forwarders.remove(&id);
        self.heartbeats.remove(&id);
    }

    /// True once, when so many members are connected that the election clock may be put forward.
    fn advances(&mut self) -> bool {
        self.active.len() >= 2 && !std::mem::replace(&mut self.advanced, true)
    }

    /// Checks the invariant, which takes a look at everything.
    pub(super) fn check(&self) {
        let forwarded = self.forwarded.iter().map(|(_, message)| message);
        let all = self.urgent.iter().chain(&self.bulk).chain(forwarded);
        assert_eq!(all.map(cost_bytes).sum::<usize>(), self.bytes, "what the inboxes hold");
    }

    /// True if a turn would take something.
    pub(super) fn has_input(&self) -> bool {
        !self.urgent.is_empty() || (!self.bulk.is_empty() && !self.choked)
    }

    /// True if appends wait for what is to be applied.
    pub(super) fn waits_for_apply(&self) -> bool {
        self.waits_for_apply && self.choked && !self.bulk.is_empty()
    }

    /// When something that is held must leave.
    pub(super) fn deadline_ms(&self) -> u64 {
        self.held.values().map(|(due_ms, _)| *due_ms).min().unwrap_or(u64::MAX)
    }

    /// Under a stream of writes the next append tells a follower what is committed: sending that by
    /// itself would double the messages and wake-ups of every write. Who forwards proposals is told
    /// at once.
    fn send(&mut self, message: raftpb::Message, now_ms: u64) {
        let to = message.to.unwrap_or(0);
        let kind = message.r#type.unwrap_or(0);
        if kind == MessageType::MsgApp as i32 && message.entries.is_empty() {
            let forwarded_ms = self.forwarders.get(&to).copied();
            if forwarded_ms.is_none_or(|at_ms| now_ms > at_ms + limits::FORWARDER_MS) {
                let due_ms = self.held.remove(&to).map(|(due_ms, _)| due_ms);
                let due_ms = due_ms.unwrap_or(now_ms + limits::COMMIT_HOLD_MS);
                self.held.insert(to, (due_ms, message));
                return;
            }
        }
        if kind == MessageType::MsgApp as i32 || kind == MessageType::MsgSnap as i32 {
            self.held.remove(&to);
        }
        self.outbox.push(message);
    }

    /// What was held for long enough leaves.
    fn release(&mut self, now_ms: u64) {
        let Self { held, outbox, .. } = self;
        let due = held.extract_if(.., |_, (due_ms, _)| *due_ms <= now_ms);
        outbox.extend(due.map(|(_, (_, message))| message));
    }

    /// The next forwarded proposals, if they take no more than `room_bytes`.
    fn next_forwarded(&mut self, room_bytes: usize) -> Option<raftpb::Message> {
        let fits = |(_, message): &mut (u64, _)| cost_bytes(message) <= room_bytes;
        let (_, message) = self.forwarded.pop_front_if(fits)?;
        self.bytes -= cost_bytes(&message);
        Some(message)
    }

    /// Forgets proposals whose clients have given up by now.
    pub(super) fn expire_forwarded(&mut self, since_ms: u64) {
        while let Some((_, message)) = self.forwarded.pop_front_if(|(at_ms, _)| *at_ms <= since_ms)
        {
            self.bytes -= cost_bytes(&message);
        }
    }

    /// True if nothing can be sent to this member now.
    pub(super) fn has_lost(&self, id: u64) -> bool {
        self.lost.contains_key(&id) || self.silent.contains(&id)
    }

    /// True if a member is connected and was so before this time.
    pub(super) fn is_connected_before(&self, id: u64, since_ms: u64) -> bool {
        self.active.get(&id).is_some_and(|connected_ms| *connected_ms < since_ms)
    }

    /// Since when all of these are reachable; `u64::MAX` if one is not.
    fn connected_since(&self, wanted: &[u64]) -> u64 {
        let since = |id: &u64| self.active.get(id).copied().unwrap_or(u64::MAX);
        wanted.iter().map(since).max().unwrap_or(0)
    }
}

impl Replica {
    /// True if [`Replica::step`] takes another message now. If not, whoever reads the peers stops
    /// reading them.
    pub fn wants_messages(&self) -> bool {
        self.peer_queue.has_room()
    }

    /// A message from a peer; the next turn takes it.
    pub fn step(&mut self, message: raftpb::Message) {
        self.peer_queue.receive(message, self.turn.now_ms());
    }

    /// Takes what the turn left to be sent, in order.
    pub fn take_messages(&mut self, out: &mut Vec<raftpb::Message>) {
        self.peer_queue.release(self.turn.now_ms());
        out.append(&mut self.peer_queue.outbox);
    }

    /// What the transport has noticed.
    pub fn peer_report(&mut self, report: PeerReport) {
        match report {
            PeerReport::Unreachable(id) => {
                self.peer_queue.silent.insert(id);
                self.log.node.report_unreachable(id);
            }
            PeerReport::SnapshotSent { to, ok } => self.log.node.report_snapshot(to, ok),
            PeerReport::Active(id) => {
                self.peer_queue.connected(id, self.turn.now_ms());
                self.refresh_connected();
                self.advance_election();
            }
            PeerReport::Inactive(id) => {
                self.peer_queue.disconnected(id, self.turn.now_ms());
                self.peer_requests.forget_make(id);
                self.refresh_connected();
            }
            PeerReport::Refused(id) => self.leader_refused(id),
            PeerReport::Removed => self.told_removed(),
            PeerReport::Answered { token, answer } => self.peer_answered(token, answer),
        }
    }

    /// Steps what came from peers, up to the bounds of a turn.
    pub(super) fn step_messages(&mut self) {
        if !self.peer_queue.bulk.is_empty() {
            self.turn.note(Job::Messages);
        }
        while let Some(message) = self.peer_queue.next_urgent() {
            self.step_now(message);
        }
        if !self.peer_queue.bulk.is_empty() {
            let is_full = self.applier.backlog().is_full();
            let behind = self.log.is_congested() || is_full || self.must_wait_for_space(0);
            self.peer_queue.choke(behind, is_full);
        }
        let mut stepped_bytes = 0;
        while stepped_bytes < limits::PROPOSE_BYTES
            && let Some((message, bytes)) = self.peer_queue.next_bulk()
        {
            stepped_bytes += bytes;
            self.step_now(message);
        }
        let leader = self.standing.leader();
        if self.log.node.destination() == Destination::Leader && !self.peer_queue.has_lost(leader) {
            // A leader takes them with its own proposals; anybody else passes them on.
            while let Some(message) = self.peer_queue.next_forwarded(usize::MAX) {
                self.step_now(message);
            }
        }
    }

    /// Proposes what other members gave to this leader, as far as there is room for it in this
    /// turn; returns the bytes taken. Nobody can tell another member why its proposal was dropped:
    /// its client's time runs out.
    pub(super) fn step_forwarded(&mut self, room_bytes: usize, tight: bool, scarce: bool) -> usize {
        let mut taken_bytes = 0;
        self.peer_queue.waits_for_change = false;
        while taken_bytes < room_bytes {
            // raft would drop a second one without a word.
            if let Some(change) = self.peer_queue.next_change()
                && !self.takes_forwarded_change(&change)
            {
                self.peer_queue.waits_for_change = true;
                break;
            }
            // One alone may be larger than a turn's room.
            let alone = taken_bytes == 0 && !scarce;
            let left_bytes = if alone { usize::MAX } else { room_bytes - taken_bytes };
            let Some(mut message) = self.peer_queue.next_forwarded(left_bytes) else {
                if scarce && let Some(lost) = self.peer_queue.next_forwarded(usize::MAX) {
                    tracing::debug!(entries = lost.entries.len(), "forwarded proposals dropped");
                    continue;
                }
                break;
            };
            message.entries.retain(may_be_applied);
            if tight {
                let grows = |entry: &raftpb::Entry| entry.data.as_ref().is_some_and(entry::grows);
                message.entries.retain(|entry| !grows(entry));
            }
            taken_bytes += cost_bytes(&message);
            if !message.entries.is_empty() {
                self.step_proposals(message);
            }
        }
        taken_bytes
    }

    /// Proposes what another member gave to this leader, and notes which leases it ends.
    fn step_proposals(&mut self, message: raftpb::Message) {
        let count = message.entries.len() as u64;
        let ending: Vec<(u64, i64)> = (1..)
            .zip(&message.entries)
            .filter_map(|(at, entry)| Some((at, entry::wrapped_revoke(entry.data.as_ref()?)?)))
            .collect();
        if ending.is_empty() {
            return self.step_now(message);
        }
        let last = self.log.node.status().last_index.0;
        self.step_now(message);
        // All are appended, at once, or none.
        if self.log.node.status().last_index.0 >= last + count {
            for (at, lease) in ending {
                self.leases.note_ending(lease, LogIndex(last + at));
            }
        }
    }

    fn step_now(&mut self, message: raftpb::Message) {
        let kind = message.r#type.unwrap_or(0);
        if kind == MessageType::MsgSnap as i32 {
            return self.receive_snapshot(message);
        }
        self.step_raft(message);
    }

    pub(super) fn step_raft(&mut self, message: raftpb::Message) {
        let (kind, from) = (message.r#type.unwrap_or(0), message.from.unwrap_or(0));
        if from == self.standing.leader() {
            self.failover.heard(self.turn.now_ms());
        }
        match self.log.node.step(message) {
            Ok(()) => {}
            Err(StepError::ProposalDropped) => {
                self.shared.metrics.proposals_failed.inc();
            }
            Err(error) => {
                let from = format!("{from:x}");
                tracing::debug!(from = %from, kind, error = %error, "a peer's message was refused");
            }
        }
    }

    /// Keeps what raft wants sent for [`Replica::take_messages`], and warns when heartbeats leave
    /// late, as etcd does.
    pub(super) fn post(&mut self, messages: &mut Vec<raftpb::Message>) {
        if self.watchdog.is_silent() {
            messages.clear();
            return;
        }
        let now_ms = self.turn.now_ms();
        let heartbeat = MessageType::MsgHeartbeat as i32;
        let interval_ms = u64::try_from(self.shared.config.heartbeat.as_millis()).unwrap_or(100);
        for message in messages.iter().filter(|message| message.r#type == Some(heartbeat)) {
            let to = message.to.unwrap_or(0);
            let late_ms = self.peer_queue.heartbeat_leaves(to, now_ms, interval_ms);
            if late_ms > 0 {
                self.shared.metrics.heartbeat_failures.inc();
                tracing::warn!(
                    to = %format_args!("{to:x}"),
                    heartbeat_interval = %format_args!("{interval_ms}ms"),
                    expected_duration = %format_args!("{}ms", 2 * interval_ms),
                    exceeded_duration = %format_args!("{late_ms}ms"),
                    "leader failed to send out heartbeat on time; took too long, leader is \
                     overloaded likely from slow disk"
                );
            }
        }
        let snapshot = MessageType::MsgSnap as i32;
        for message in messages.iter().filter(|message| message.r#type == Some(snapshot)) {
            self.snapshot_sent(message);
        }
        messages.drain(..).for_each(|message| self.peer_queue.send(message, now_ms));
    }

    /// Leader or role changed: heartbeats start anew, and other connections matter.
    pub(super) fn leader_changed(&mut self) {
        self.peer_queue.heartbeats.clear();
        self.peer_queue.held.clear();
        self.refresh_connected();
    }

    /// Tells the fronts since when this member has been connected to whom it needs: a leader to a
    /// quorum, others to their leader.
    pub(super) fn refresh_connected(&self) {
        let own_id = self.shared.member_id;
        let since_ms = match (self.standing.role(), self.standing.leader()) {
            (Role::Leader, _) => {
                let voters = self.log.node.conf_state().voters;
                let others = voters.iter().filter(|id| **id != own_id);
                let mut since: Vec<u64> =
                    others.map(|id| self.peer_queue.connected_since(&[*id])).collect();
                since.sort_unstable();
                // This member and so many others are a majority.
                let others = voters.len() / 2;
                others.checked_sub(1).and_then(|last| since.get(last).copied()).unwrap_or(0)
            }
            (_, 0) => 0,
            (_, leader) => self.peer_queue.connected_since(&[leader]),
        };
        self.shared.status.connected_since_ms.store(since_ms, Ordering::Relaxed);
    }

    /// Once its peers are there, a member that has just started need not wait for a whole election
    /// timeout to find out that nobody leads (etcd: adjustTicks).
    fn advance_election(&mut self) {
        if !self.peer_queue.advances() {
            return;
        }
        let active = self.peer_queue.active.len();
        let config = &self.shared.config;
        let late = self.turn.now_ms() > self.turn.started_ms() + limits::ELECTION_ADVANCE_MS;
        if !config.initial_election_tick_advance || late || self.standing.leader() != 0 {
            return;
        }
        let ticks = config.election_ticks().saturating_sub(2);
        tracing::info!(
            forward_ticks = ticks,
            election_ticks = config.election_ticks(),
            active_remote_members = active,
            "initialized peer connections; fast-forwarding election ticks"
        );
        for _ in 0..ticks {
            self.log.node.tick();
        }
    }
}

/// Whether an entry that another member wants to have proposed can be applied: nothing stops a
/// cluster but what is in its log.
fn may_be_applied(wanted: &raftpb::Entry) -> bool {
    let data = wanted.data.clone().unwrap_or_default();
    let checked = match EntryType::try_from(wanted.r#type.unwrap_or(0)) {
        Ok(EntryType::EntryNormal) => entry::check(&data).map_err(|error| error.to_string()),
        // Whether it may be made says raft; whether it can be read must be known before.
        Ok(EntryType::EntryConfChange) => raftpb::ConfChange::decode(data.clone())
            .map_err(|error| error.to_string())
            .and_then(|change| Change::of(&change).map(drop)),
        // etcd never proposes one, and its members stop at one.
        Ok(EntryType::EntryConfChangeV2) => Err("a configuration change of form 2".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = &checked {
        tracing::warn!(error = %error, bytes = data.len(), "a member's proposal cannot be applied");
    }
    checked.is_ok()
}
