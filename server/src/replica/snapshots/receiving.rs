//! The receiver's side: asks for the parts of a copy, and hands them to the background.
//!
//! Part of the replica. So many parts are on their way as answers come in time; so many wait to
//! be written as [`limits::SNAPSHOT_PARTS_HELD`] says, and no more are asked for meanwhile: a
//! slow disk slows the sender. A part that is lost is asked for again from the same leader.
//! Nothing here changes what the member serves.

use std::time::Duration;

use std::collections::VecDeque;

use bytes::Bytes;
use etcore_engine::snapshot::{Part, UnitRange, WantedParts};
use etcore_engine::types::{Identity, LogIndex, Term};
use etcore_proto::raftpb;
use etcore_raftlog::peer::{Lane, PeerRequest, PeerResponse};

use super::{PART_PATH, Replica};
use crate::background::{Loaded, Received, Task};
use crate::limits;
use crate::replica::peer_requests::Purpose;

/// A copy on its way here.
pub(super) struct Receiving {
    /// Its number: late answers about others must not be taken for its own.
    transfer: u64,
    /// For raft, once the copy is there.
    message: raftpb::Message,
    from: u64,
    index: LogIndex,
    term: Term,
    wanted: WantedParts,
    /// Questions that may be out at once: more with every answer in time, half with every loss.
    window: usize,
    asked: usize,
    /// No question leaves before.
    not_before_ms: u64,
    /// The background's mailbox was full.
    unwritten: VecDeque<Bytes>,
    /// With the background, and not written.
    writing: usize,
    /// The background was told that there are no further parts.
    ended: bool,
    /// The leader is told that this member is at it, not before.
    next_call_ms: u64,
    began_ms: u64,
    /// When the last part came, or a sign that the leader still holds the snapshot.
    heard_ms: u64,
    received_bytes: u64,
}

impl Receiving {
    pub(super) fn deadline_ms(&self) -> u64 {
        if self.may_ask() { self.not_before_ms } else { u64::MAX }
    }

    /// True if a further part could be asked for.
    fn may_ask(&self) -> bool {
        let held = self.asked + self.unwritten.len() + self.writing;
        self.wanted.has_more() && self.asked < self.window && held < limits::SNAPSHOT_PARTS_HELD
    }

    /// A question was lost: fewer at a time may be too many no more.
    fn slow_down(&mut self, now_ms: u64) {
        self.window = (self.window / 2).max(1);
        self.not_before_ms = now_ms + limits::SNAPSHOT_RETRY_MS;
    }
}

/// What was asked of a leader that sends a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::replica) struct PartAsked {
    transfer: u64,
    /// `None` if it was only told that this member is at it.
    range: Option<UnitRange>,
}

impl Replica {
    /// A leader's snapshot: its pages must be here before raft may know of it.
    pub(in crate::replica) fn receive_snapshot(&mut self, message: raftpb::Message) {
        let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        let index = LogIndex(metadata.and_then(|metadata| metadata.index).unwrap_or(0));
        let term = Term(metadata.and_then(|metadata| metadata.term).unwrap_or(0));
        let (from, status) = (message.from.unwrap_or(0), self.log.node.status());
        // What is on its way into the log must not be removed to make room for another.
        if self.snapshots.installing.is_under_way() {
            return;
        }
        let is_stale = message.term.unwrap_or(0) < status.soft_state.term.0;
        // raft knows what to say when it has all of it already, or the leader is of old.
        if is_stale || index <= status.commit || self.log.node.term(index) == Some(term) {
            return self.step_raft(message);
        }
        if let Some(receiving) = &mut self.snapshots.receiving
            && (receiving.from, receiving.index, receiving.term) == (from, index, term)
        {
            receiving.message = message;
            return;
        }
        let identity =
            Identity { cluster_id: self.shared.cluster_id, member_id: self.shared.member_id };
        let transfer = self.snapshots.transfers + 1;
        let (engine, leases) = (self.shared.config.engine.clone(), self.leases.lessor().settings());
        let task = Task::ReceiveSnapshot { transfer, index, term, identity, engine, leases };
        if self.background.offer(task).is_err() {
            // raft at the leader is told of no failure, and sends it again after a while.
            return;
        }
        if self.snapshots.receiving.is_some() {
            self.warn_of_copy("another one comes");
        }
        self.end_copy(false);
        self.snapshots.transfers = transfer;
        self.shared.metrics.snapshots.received.began(from);
        tracing::info!(
            snapshot_index = index.0,
            remote_peer_id = %format_args!("{from:x}"),
            "receiving database snapshot"
        );
        self.snapshots.receiving = Some(Receiving {
            transfer,
            message,
            from,
            index,
            term,
            wanted: WantedParts::all(),
            window: 1,
            asked: 0,
            not_before_ms: self.turn.now_ms(),
            unwritten: VecDeque::new(),
            writing: 0,
            ended: false,
            next_call_ms: self.turn.now_ms() + limits::SNAPSHOT_CALL_MS,
            began_ms: self.turn.now_ms(),
            heard_ms: self.turn.now_ms(),
            received_bytes: 0,
        });
    }

    /// How the copy stands with the background.
    pub(in crate::replica) fn snapshot_received(&mut self, transfer: u64, received: Received) {
        let receiving = self.snapshots.receiving.as_mut();
        let Some(receiving) = receiving.filter(|known| known.transfer == transfer) else { return };
        match received {
            Received::Part => receiving.writing -= 1,
            Received::Complete(loaded) => self.copy_complete(loaded),
            Received::GivenUp(reason) => {
                self.warn_of_copy(&reason);
                self.end_copy(false);
            }
        }
    }

    /// It is durable, and loaded: raft is told.
    fn copy_complete(&mut self, loaded: Box<Loaded>) {
        let Some(receiving) = self.end_copy(true) else { return };
        tracing::info!(
            snapshot_index = receiving.index.0,
            received_bytes = receiving.received_bytes,
            took = %format_args!("{}ms", self.turn.now_ms() - receiving.began_ms),
            "received and saved database snapshot"
        );
        let mut message = receiving.message;
        let status = self.log.node.status().soft_state;
        if status.leader == receiving.from {
            // It may have been elected again meanwhile; what it sent is committed all the same.
            message.term = Some(status.term.0);
        }
        self.snapshots.installing.offer(receiving.index, loaded);
        self.step_raft(message);
    }

    /// An answer to a question for a part; `None` if there will be none.
    pub(in crate::replica) fn part_answered(
        &mut self,
        asked: PartAsked,
        answer: Option<PeerResponse>,
    ) {
        let now_ms = self.turn.now_ms();
        let receiving = self.snapshots.receiving.as_mut();
        let Some(receiving) = receiving.filter(|known| known.transfer == asked.transfer) else {
            return;
        };
        let body = match answer {
            Some(answer) if answer.status == 200 => Some(answer.body),
            Some(answer) if answer.status == 410 => {
                return self.give_up_copy("the sender holds another");
            }
            _ => None,
        };
        let Some(range) = asked.range else {
            // As long as parts are missing, only these count.
            if body.is_some() && receiving.wanted.is_done() {
                receiving.heard_ms = now_ms;
            }
            return;
        };
        receiving.asked -= 1;
        let Some(body) = body else {
            receiving.wanted.give_back(range);
            return receiving.slow_down(now_ms);
        };
        let Some(part) = Part::parse(&body) else {
            return self.give_up_copy("a part arrived damaged");
        };
        receiving.heard_ms = now_ms;
        receiving.received_bytes += body.len() as u64;
        receiving.window = (receiving.window + 1).min(limits::SNAPSHOT_PARTS_ASKED);
        receiving.wanted.answered(range, part.next_unit(), part.end_unit());
        receiving.unwritten.push_back(body);
    }

    /// Asks for what is missing, and hands over what came.
    pub(super) fn ask_for_parts(&mut self) {
        let (now_ms, member) = (self.turn.now_ms(), self.shared.member_id);
        let Some(receiving) = &mut self.snapshots.receiving else { return };
        let transfer = receiving.transfer;
        while let Some(part) = receiving.unwritten.pop_front() {
            if let Err(task) = self.background.offer(Task::SnapshotPart { transfer, part }) {
                if let Task::SnapshotPart { part, .. } = task {
                    receiving.unwritten.push_front(part);
                }
                break;
            }
            receiving.writing += 1;
        }
        if receiving.wanted.is_done() && receiving.unwritten.is_empty() && !receiving.ended {
            receiving.ended = self.background.offer(Task::SnapshotEnd { transfer }).is_ok();
        }
        let mut ranges = Vec::new();
        while now_ms >= receiving.not_before_ms
            && receiving.may_ask()
            && let Some(range) = receiving.wanted.take()
        {
            receiving.asked += 1;
            ranges.push(PartAsked { transfer, range: Some(range) });
        }
        if now_ms >= receiving.next_call_ms {
            receiving.next_call_ms = now_ms + limits::SNAPSHOT_CALL_MS;
            ranges.push(PartAsked { transfer, range: None });
        }
        let (to, index) = (receiving.from, receiving.index.0);
        for asked in ranges {
            let UnitRange { from, until } = asked.range.unwrap_or(UnitRange { from: 0, until: 0 });
            let ask = PeerRequest {
                to,
                lane: if asked.range.is_some() { Lane::Snapshots } else { Lane::Questions },
                method: "GET",
                target: format!(
                    "{PART_PATH}?index={index:x}&from={from:x}&until={until:x}&member={member:x}"
                ),
                content_type: "",
                body: Bytes::new(),
                timeout_ms: limits::SNAPSHOT_PART_MS,
                token: 0,
            };
            self.peer_requests.ask(ask, Purpose::SnapshotPart(asked));
        }
    }

    /// Every tick: a leader that says nothing any more is given up.
    pub(super) fn tick_receiving(&mut self) {
        let now_ms = self.turn.now_ms();
        let silent = |receiving: &Receiving| now_ms > receiving.heard_ms + limits::SNAPSHOT_IDLE_MS;
        if self.snapshots.receiving.as_ref().is_some_and(silent) {
            self.give_up_copy("no part of it came for long");
        }
    }

    fn give_up_copy(&mut self, reason: &str) {
        self.warn_of_copy(reason);
        self.end_copy(false);
        // If the background has no room for this now, the next copy or start removes it.
        let _ = self.background.offer(Task::DiscardSnapshot);
    }

    fn warn_of_copy(&self, reason: &str) {
        let Some(receiving) = &self.snapshots.receiving else { return };
        tracing::warn!(
            snapshot_index = receiving.index.0,
            remote_peer_id = %format_args!("{:x}", receiving.from),
            reason,
            "failed to save incoming database snapshot; the leader will send another"
        );
    }

    fn end_copy(&mut self, ok: bool) -> Option<Receiving> {
        let receiving = self.snapshots.receiving.take()?;
        let took_ms = self.turn.now_ms().saturating_sub(receiving.began_ms);
        self.shared.metrics.snapshots.received.ended(receiving.from, ok, took_ms);
        if ok {
            let took = Duration::from_millis(took_ms).as_secs_f64();
            self.shared.metrics.storage.snapshot_save.observe(took);
        }
        Some(receiving)
    }
}
