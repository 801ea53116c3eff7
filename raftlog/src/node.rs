//! Raft: raft-rs behind an interface of plain values.
//!
//! Called by the replica's loop: `step`, `tick`, `propose`, `read_index` change the state, `ready`
//! says what must be done about it, `on_persisted` and `on_applied` report what was done. No
//! clocks, randomness or files in here. What raft-rs 0.7 leaves to its user is covered here and
//! nowhere else; see `raftlog`'s essay for the list.

mod conf_change;
mod config;
mod effects;
mod elections;
mod error;
mod inbound;
mod reads;
mod storage;

use std::collections::VecDeque;

use bytes::Bytes;
use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_proto::raftpb;
use raft::eraftpb;
use raft::{RawNode, SnapshotStatus, StateRole};

pub use config::NodeConfig;
pub use effects::{
    Destination, Effects, Fetch, LogWrite, Proposed, ReadReady, Role, SoftState, Status,
};
pub use error::{NodeError, ProposeError};
pub use inbound::StepError;

use crate::types::{BatchNumber, EntryKind, HardState, LogEntry, LogIndex, SnapshotMark, Term};
use crate::wal::{EntryRef, Recovered};
use crate::{bootstrap, convert, limits};
use elections::Elections;
use reads::Reads;
use storage::{LogStorage, Wanted};

/// A raft node.
///
/// Invariants: `persisted` and `last_write` are at most `max_number`; a message is in `held` only
/// while the number beside it is not persisted; raft-rs' randomized election timeout is the one
/// computed from seed, id and term whenever control leaves this type.
pub struct Node {
    raw: RawNode<LogStorage>,
    config: NodeConfig,
    reads: Reads,
    soft_state: Option<SoftState>,
    hard_state: HardState,
    /// Number of the newest ready.
    max_number: u64,
    /// Number of the newest ready with something to sync.
    last_write: u64,
    /// Number of the newest ready with a new term or vote.
    last_vote: u64,
    /// Everything up to this number is on disk.
    persisted: u64,
    held: VecDeque<(u64, raftpb::Message)>,
    outbox: Vec<raftpb::Message>,
    messages_dropped: u64,
    /// Used by a deliberate fault: see [`Node::hand_out_early`].
    handed_out_early: u64,
    fetches: VecDeque<(u64, Wanted)>,
    next_fetch: u64,
    snapshot_for: Option<u64>,
    elections: Elections,
    /// Used by a deliberate fault: a member was removed.
    has_removed: bool,
}

impl Node {
    /// A node over a recovered log. `applied`, `applied_term` and `conf_state` are the page
    /// file's; all empty if it has applied nothing.
    pub fn new(
        config: NodeConfig,
        recovered: Recovered,
        applied: LogIndex,
        applied_term: Term,
        mut conf_state: raftpb::ConfState,
    ) -> Result<Self, NodeError> {
        let parts = recovered.parts;
        let (base, last) = (parts.terms.base_index(), parts.terms.last_index());
        if applied.0 < base || applied.0 > last {
            let (base, last) = (LogIndex(base), LogIndex(last));
            return Err(NodeError::AppliedOutsideLog { applied, base, last });
        }
        let log_term = Term(parts.terms.term(applied.0).unwrap_or(0));
        if applied.0 != 0 && log_term != applied_term {
            return Err(NodeError::AppliedTerm { applied, applied_term, log_term });
        }
        let mut hard_state = recovered.hard_state;
        // The page file may know of a commit that the log was never told.
        hard_state.commit = hard_state.commit.max(applied);
        hard_state.term = hard_state.term.max(applied_term);
        if applied.0 == 0 && conf_state == raftpb::ConfState::default() {
            let commit = hard_state.commit.0;
            conf_state.voters = bootstrap::founding_voters(parts.entries.iter(), commit);
        }
        if !inbound::is_usable(&conf_state) {
            return Err(NodeError::ConfState(conf_state));
        }
        let storage = LogStorage::new(
            parts.terms,
            parts.entries,
            config.window_bytes,
            raft_hard_state(hard_state),
            convert::conf_state_from_wire(&conf_state),
        );
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config::raft_config(&config, applied), storage, &logger)
            .map_err(|error| NodeError::Raft(error.to_string()))?;
        let reads = Reads::new(config.id, config.boot_nonce, config.read_retry_ticks.max(1));
        let mut node = Self {
            raw,
            config,
            reads,
            soft_state: None,
            hard_state,
            max_number: 0,
            last_write: 0,
            last_vote: 0,
            persisted: 0,
            held: VecDeque::new(),
            outbox: Vec::new(),
            messages_dropped: 0,
            handed_out_early: 0,
            fetches: VecDeque::new(),
            next_fetch: 0,
            snapshot_for: None,
            elections: Elections::default(),
            has_removed: false,
        };
        node.set_election_timeout();
        Ok(node)
    }

    /// One tick of the logical clock.
    pub fn tick(&mut self) {
        self.reads.tick();
        // A member whose own tail is not on disk yet must not campaign: raft-rs asserts that the
        // log is synced when it becomes leader, and a member with a stuck disk is no good leader.
        if self.raw.raft.state == StateRole::Leader || self.is_tail_synced() {
            self.raw.tick();
            self.tick_candidate();
            self.set_election_timeout();
        }
    }

    /// A message from a peer.
    pub fn step(&mut self, message: raftpb::Message) -> Result<(), StepError> {
        let message = inbound::check(&self.raw, message, self.config.entry_data_bytes_max)?;
        let starts_election = message.get_msg_type() == eraftpb::MessageType::MsgTimeoutNow;
        if starts_election && !self.is_tail_synced() {
            return Ok(());
        }
        let from = message.from;
        self.doubt_candidate(&message);
        let result = self.step_raw(message);
        self.set_election_timeout();
        match result {
            Ok(()) => Ok(()),
            Err(raft::Error::ProposalDropped) => Err(StepError::ProposalDropped),
            Err(_) => Err(StepError::NotAMember(from)),
        }
    }

    /// Where a proposal that is made now would go.
    pub fn destination(&self) -> Destination {
        let raft = &self.raw.raft;
        if raft.leader_id == raft::INVALID_ID || raft.lead_transferee.is_some() {
            Destination::Nowhere
        } else if raft.state == StateRole::Leader {
            Destination::Here
        } else {
            Destination::Leader
        }
    }

    /// Proposes a whole batch in one step of raft: all of it or nothing.
    pub fn propose(
        &mut self,
        batch: impl Iterator<Item = Bytes>,
    ) -> Result<Proposed, ProposeError> {
        let bytes_max = self.config.entry_data_bytes_max;
        let mut entries = Vec::with_capacity(batch.size_hint().0);
        for data in batch {
            if data.len() as u64 > bytes_max {
                let data_bytes = data.len() as u64;
                return Err(ProposeError::TooLarge { data_bytes, bytes_max });
            }
            entries.push(eraftpb::Entry { data, ..Default::default() });
        }
        self.propose_entries(entries)
    }

    /// Takes a read ticket: [`Effects::reads`] will name it with an index. False if too many wait.
    pub fn read_index(&mut self, ticket: u64) -> bool {
        self.reads.add(ticket)
    }

    /// Asks anew for the read rounds that were not answered: a leader drops what reaches it before
    /// its first commit.
    pub fn retry_reads(&mut self) {
        self.reads.restart();
    }

    /// Hands leadership to `to`, or asks the leader to. Proposals are refused meanwhile; it is
    /// given up after an election timeout.
    pub fn transfer_leader(&mut self, to: u64) {
        self.raw.transfer_leader(to);
        self.set_election_timeout();
    }

    /// Collects everything to be done into `out`; true if there is anything. Call it until it
    /// returns false.
    pub fn ready(&mut self, out: &mut Effects) -> bool {
        out.clear();
        self.campaign_alone();
        if is_on(SeededBug::RemovedVoteCounted) {
            self.count_removed_vote();
        }
        self.issue_reads();
        if self.raw.has_ready() {
            self.raft_ready(out);
        }
        out.messages.append(&mut self.outbox);
        self.collect_wanted(out);
        self.collect_soft_state(out);
        !out.is_empty()
    }

    /// The log write of `number`, and all before it, are on disk.
    pub fn on_persisted(&mut self, number: BatchNumber) {
        assert!(number.0 <= self.max_number, "{number:?} of {}", self.max_number);
        if number.0 <= self.persisted {
            return;
        }
        self.persisted = number.0;
        // Readies without a write of their own need nothing more than the one before them.
        let until = if number.0 >= self.last_write { self.max_number } else { number.0 };
        self.raw.on_persist_ready(until);
        while self.held.front().is_some_and(|(at, _)| *at <= number.0) {
            self.outbox.extend(self.held.pop_front().map(|(_, message)| message));
        }
    }

    /// True if the log write of `number`, and all before it, are known to be on disk.
    pub fn is_persisted(&self, number: BatchNumber) -> bool {
        number.0 <= self.persisted
    }

    /// The state machine has applied everything up to `index`, which was handed out as committed,
    /// or installed the snapshot at `index`.
    pub fn on_applied(&mut self, index: LogIndex) {
        let index = match is_on(SeededBug::PublishBeforeCommit) {
            true => {
                let log = &self.raw.raft.raft_log;
                index.0.min(log.committed).min(log.persisted)
            }
            false => index.0,
        };
        if index > self.raw.raft.raft_log.applied {
            self.raw.advance_apply_to(index);
            self.raw.mut_store().evict(index);
        }
    }

    /// The term of an entry that the log still knows.
    pub fn term(&self, index: LogIndex) -> Option<Term> {
        self.raw.store().terms().term(index.0).map(Term)
    }

    /// The configuration as of the last applied change.
    pub fn conf_state(&self) -> raftpb::ConfState {
        convert::conf_state_to_wire(&self.raw.raft.prs().conf().to_conf_state())
    }

    /// The entries of a [`LogWrite`] of this node's last turn, for the writer.
    pub fn entries_of(&self, write: &LogWrite) -> impl Iterator<Item = EntryRef<'_>> {
        self.raw.store().range(write.first.0, write.count).map(|entry| EntryRef {
            index: LogIndex(entry.index),
            term: Term(entry.term),
            kind: convert::kind(entry),
            data: &entry.data,
        })
    }

    /// The entries a [`Fetch`] asked for. Fewer, or none if reading failed: raft asks again.
    pub fn on_fetched(&mut self, id: u64, entries: Vec<LogEntry>) {
        let Some(at) = self.fetches.iter().position(|(known, _)| *known == id) else { return };
        let Some((_, wanted)) = self.fetches.remove(at) else { return };
        let terms = self.raw.store().terms();
        // A snapshot may have replaced the log meanwhile.
        let valid = (wanted.low..).zip(&entries).all(|(index, entry)| {
            entry.index.0 == index && terms.term(index) == Some(entry.term.0)
        });
        if valid && !entries.is_empty() {
            let entries = entries.into_iter().map(raft_entry).collect();
            self.raw.mut_store().set_fetched(entries);
            self.raw.on_entries_fetched(wanted.context);
            self.raw.mut_store().set_fetched(Vec::new());
        }
    }

    /// A snapshot that can be sent to peers, at or below the applied index; `None` takes it back.
    pub fn provide_snapshot(&mut self, mark: Option<&SnapshotMark>) {
        let snapshot = mark.filter(|mark| mark.index.0 != 0).map(|mark| {
            inbound::snapshot(&raftpb::SnapshotMetadata {
                conf_state: mark.conf_state.clone(),
                index: Some(mark.index.0),
                term: Some(mark.term.0),
            })
        });
        self.raw.mut_store().set_snapshot(snapshot);
        self.snapshot_for = None;
    }

    /// The files no longer hold entries at or below `base`.
    pub fn on_released(&mut self, base: LogIndex) {
        let applied = self.raw.raft.raft_log.applied;
        self.raw.mut_store().release_to(base.0.min(applied));
    }

    /// The last message to `id` was lost.
    pub fn report_unreachable(&mut self, id: u64) {
        self.raw.report_unreachable(id);
    }

    /// A snapshot transfer to `id` ended.
    pub fn report_snapshot(&mut self, id: u64, received: bool) {
        let status = if received { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(id, status);
    }

    /// The highest entry known to be on `id`'s disk, if this member leads and knows `id`; and
    /// whether `id` was heard of within the last election timeout.
    pub fn progress(&self, id: u64) -> Option<(LogIndex, bool)> {
        if self.raw.raft.state != StateRole::Leader {
            return None;
        }
        self.raw.raft.prs().get(id).map(|peer| (LogIndex(peer.matched), peer.recent_active))
    }

    /// True if `id` is known to have committed `index`, though perhaps not yet what else it has:
    /// a member says so with every heartbeat that it answers.
    pub fn has_committed(&self, id: u64, index: LogIndex) -> bool {
        let leads = self.raw.raft.state == StateRole::Leader;
        leads && self.raw.raft.prs().get(id).is_some_and(|peer| peer.committed_index >= index.0)
    }

    /// Where this node stands.
    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        let store = self.raw.store();
        Status {
            id: raft.id,
            soft_state: self.current_soft_state(),
            commit: LogIndex(log.committed),
            applied: LogIndex(log.applied),
            persisted: LogIndex(log.persisted),
            last_index: LogIndex(log.last_index()),
            base: LogIndex(store.terms().base_index()),
            is_learner: raft.prs().conf().learners().contains(&raft.id),
            transferee: raft.lead_transferee.unwrap_or(0),
            window_used_bytes: store.window_used_bytes(),
            reads_waiting: self.reads.len(),
            messages_dropped: self.messages_dropped,
        }
    }

    fn propose_entries(&mut self, entries: Vec<eraftpb::Entry>) -> Result<Proposed, ProposeError> {
        if entries.is_empty() {
            return Err(ProposeError::Empty);
        }
        let raft = &self.raw.raft;
        if raft.leader_id == raft::INVALID_ID {
            return Err(ProposeError::NoLeader);
        }
        if raft.lead_transferee.is_some() {
            return Err(ProposeError::Transferring);
        }
        let leads = raft.state == StateRole::Leader;
        let (leader, term) = (raft.leader_id, Term(raft.term));
        let first = LogIndex(raft.raft_log.last_index() + 1);
        let count = entries.len() as u64;
        let mut message = eraftpb::Message { from: raft.id, ..Default::default() };
        message.set_msg_type(eraftpb::MessageType::MsgPropose);
        message.set_entries(entries.into());
        let is_member = raft.prs().get(raft.id).is_some();
        match self.step_raw(message) {
            Ok(()) if leads => Ok(Proposed::Appended { first, term, count }),
            Ok(()) => Ok(Proposed::Forwarded { leader, count }),
            Err(raft::Error::ProposalDropped) if leads && is_member => {
                Err(ProposeError::TooManyUncommitted)
            }
            Err(_) => Err(ProposeError::Dropped),
        }
    }

    fn raft_ready(&mut self, out: &mut Effects) {
        let mut ready = self.raw.ready();
        self.max_number = ready.number();
        let mut write = LogWrite {
            number: BatchNumber(ready.number()),
            first: LogIndex(0),
            count: 0,
            hard_state: None,
            mark: None,
            must_sync: false,
        };
        if let Some(state) = ready.hs() {
            let state = HardState {
                term: Term(state.term),
                vote: state.vote,
                commit: LogIndex(state.commit),
            };
            let known = std::mem::replace(&mut self.hard_state, state);
            if (state.term, state.vote) != (known.term, known.vote) {
                write.must_sync = true;
                self.last_vote = ready.number();
            }
            write.hard_state = Some(state);
        }
        if !ready.snapshot().is_empty() {
            let mark = mark_of(ready.snapshot());
            self.raw.mut_store().restart_at(mark.index.0, mark.term.0);
            write.mark = Some(mark.clone());
            write.must_sync = true;
            out.snapshot = Some(mark);
        }
        let entries = ready.take_entries();
        if let Some(first) = entries.first() {
            write.first = LogIndex(first.index);
            write.count = entries.len() as u64;
            write.must_sync = true;
            self.raw.mut_store().append(entries);
        }
        if write.must_sync {
            self.last_write = ready.number();
        }
        for state in ready.take_read_states() {
            self.reads.confirm(&state.request_ctx, state.index, &mut out.reads);
        }
        for entry in ready.take_committed_entries() {
            out.committed.push(log_entry(entry));
        }
        if is_on(SeededBug::PublishBeforeCommit) {
            self.hand_out_early(&write, out);
        }
        self.dispatch(ready.take_messages(), ready.take_persisted_messages());
        self.raw.advance_append_async(ready);
        if self.persisted >= self.last_write {
            self.raw.on_persist_ready(self.max_number);
        }
        assert!(
            self.persisted.max(self.last_write) <= self.max_number,
            "{} persisted, {} the last write, {} the last number",
            self.persisted,
            self.last_write,
            self.max_number
        );
        let writes = write.must_sync || write.hard_state.is_some();
        out.log = writes.then_some(write);
    }

    /// A fault, never made in a member that serves: entries are handed out when the leader has
    /// them, and not again when they are committed.
    fn hand_out_early(&mut self, write: &LogWrite, out: &mut Effects) {
        out.committed.retain(|entry| entry.index.0 > self.handed_out_early);
        if self.raw.raft.state != StateRole::Leader {
            return;
        }
        let known = out.committed.last().map_or(self.handed_out_early, |last| last.index.0);
        let mut next = known.max(self.raw.raft.raft_log.committed) + 1;
        for entry in self.raw.store().range(write.first.0, write.count) {
            if entry.index == next && convert::kind(entry) == EntryKind::Normal {
                out.committed.push(log_entry(entry.clone()));
                self.handed_out_early = next;
                next += 1;
            }
        }
    }

    /// Sends what may be sent and holds what must wait for a sync.
    fn dispatch(&mut self, now: Vec<eraftpb::Message>, persisted: Vec<eraftpb::Message>) {
        for message in now {
            // A leader's entries may go out before they are on its own disk, but not before the
            // vote that made it leader is: a sole voter could otherwise lead the same term twice.
            self.send_after(self.last_vote, message);
        }
        for mut message in persisted {
            if message.get_msg_type() == eraftpb::MessageType::MsgPropose {
                // raft-rs names whoever proposed first, which may be the leader by now: it takes
                // nothing from itself.
                message.from = self.config.id;
            }
            let forwarded = matches!(
                message.get_msg_type(),
                eraftpb::MessageType::MsgPropose
                    | eraftpb::MessageType::MsgReadIndex
                    | eraftpb::MessageType::MsgTransferLeader
            );
            self.send_after(if forwarded { 0 } else { self.last_write }, message);
        }
    }

    fn send_after(&mut self, number: u64, message: eraftpb::Message) {
        if number <= self.persisted || is_on(SeededBug::FollowerAnswersBeforeSync) {
            self.outbox.push(inbound::to_wire(message));
        } else if self.held.len() < limits::HELD_MESSAGES_MAX {
            self.held.push_back((number, inbound::to_wire(message)));
        } else {
            self.messages_dropped += 1;
        }
    }

    /// A sole voter needs nobody's consent and waits for no timeout.
    fn campaign_alone(&mut self) {
        let raft = &self.raw.raft;
        let alone = raft.prs().is_singleton() && raft.promotable();
        let log = &raft.raft_log;
        // Changes that are committed and not applied would make raft-rs refuse.
        if alone && raft.state != StateRole::Leader && log.applied >= log.committed {
            self.campaign();
        }
    }

    fn issue_reads(&mut self) {
        let raft = &self.raw.raft;
        let answers = match raft.state {
            StateRole::Leader => raft.commit_to_current_term(),
            _ => raft.leader_id != raft::INVALID_ID,
        };
        if answers && self.reads.is_waiting() {
            let context = self.reads.start_round();
            self.raw.read_index(context);
        }
    }

    fn collect_wanted(&mut self, out: &mut Effects) {
        if !self.raw.store().has_wanted() {
            return;
        }
        for wanted in self.raw.mut_store().take_wanted() {
            if self.fetches.iter().any(|(_, known)| known.low == wanted.low) {
                // Under way. Another peer at the same place asks again with its next answer.
                continue;
            }
            if self.fetches.len() >= limits::FETCHES_MAX {
                // The oldest is given up: raft asks again when it next sends to that peer.
                self.fetches.pop_front();
            }
            self.next_fetch += 1;
            out.fetches.push(Fetch {
                id: self.next_fetch,
                low: LogIndex(wanted.low),
                high: LogIndex(wanted.high),
                bytes_max: wanted.bytes_max,
            });
            self.fetches.push_back((self.next_fetch, wanted));
        }
        if let Some(to) = self.raw.mut_store().take_snapshot_wanted()
            && self.snapshot_for != Some(to)
        {
            self.snapshot_for = Some(to);
            out.snapshot_wanted = Some(to);
        }
    }

    fn collect_soft_state(&mut self, out: &mut Effects) {
        let state = self.current_soft_state();
        let known = self.soft_state.replace(state);
        if known != Some(state) {
            self.reads.restart();
            out.soft_state = Some(state);
        }
    }

    fn current_soft_state(&self) -> SoftState {
        let raft = &self.raw.raft;
        let role = match raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        };
        SoftState { leader: raft.leader_id, role, term: Term(raft.term) }
    }

    fn is_tail_synced(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        // Below a snapshot that is being installed there is nothing to look at, which raft-rs does
        // before it campaigns.
        log.persisted == log.last_index() && log.applied + 1 >= log.first_index()
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("status", &self.status()).finish_non_exhaustive()
    }
}

fn raft_hard_state(state: HardState) -> eraftpb::HardState {
    let mut out = eraftpb::HardState::default();
    (out.term, out.vote, out.commit) = (state.term.0, state.vote, state.commit.0);
    out
}

fn raft_entry(entry: LogEntry) -> eraftpb::Entry {
    let mut out = eraftpb::Entry {
        term: entry.term.0,
        index: entry.index.0,
        data: entry.data,
        ..Default::default()
    };
    out.set_entry_type(match entry.kind {
        EntryKind::Normal => eraftpb::EntryType::EntryNormal,
        EntryKind::ConfChange => eraftpb::EntryType::EntryConfChange,
        EntryKind::ConfChangeV2 => eraftpb::EntryType::EntryConfChangeV2,
    });
    out
}

fn log_entry(entry: eraftpb::Entry) -> LogEntry {
    LogEntry {
        index: LogIndex(entry.index),
        term: Term(entry.term),
        kind: convert::kind(&entry),
        data: entry.data,
    }
}

fn mark_of(snapshot: &eraftpb::Snapshot) -> SnapshotMark {
    let metadata = snapshot.get_metadata();
    SnapshotMark {
        index: LogIndex(metadata.index),
        term: Term(metadata.term),
        conf_state: Some(convert::conf_state_to_wire(metadata.get_conf_state())),
    }
}
