//! Snapshots between members: what a leader holds for members that lag behind its log, and what
//! such a member does with it.
//!
//! raft decides who needs a snapshot and sends a message that only names it. The receiver then asks
//! for its pages part by part, each a question of its own, so that a broken connection costs one
//! part; the background writes them beside the page file. When the copy is durable, raft is told,
//! the log takes the mark and the commit index in one synced batch, and the member starts over: the
//! start puts the copy in the page file's place (`boot::copies`), or discards it if the log does
//! not know it. Until then nothing here changes what the member serves.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use etcore_engine::types::{Identity, LogIndex, Term};
use etcore_proto::raftpb;
use etcore_raftlog::peer::{ConnId, Lane, PeerAnswer, PeerAsk};
use etcore_raftlog::types::SnapshotMark;

use super::Replica;
use crate::background::{Received, Task};
use crate::http::TEXT;
use crate::limits;

/// Asked for a part: `?index=I&from=U&member=M`, hexadecimal.
pub const PART_PATH: &str = "/raft/snapshot/part";
const OCTETS: &str = "application/octet-stream";

/// Both sides of snapshots.
///
/// Invariant: while `offered` or `installing` is set, the copy that was received stays where it is.
#[derive(Default)]
pub(super) struct Snapshots {
    /// What other members may copy.
    held: Option<SnapshotMark>,
    /// The background was told to hold a newer one, and has not answered.
    is_holding: bool,
    /// Members that raft sent a snapshot to.
    receivers: BTreeMap<u64, Receiver>,
    /// When the held one was last of use.
    used_ms: u64,
    waiting: VecDeque<(ConnId, Wanted)>,
    reading: BTreeMap<u64, ConnId>,
    next_ticket: u64,
    /// No part is read before.
    next_part_ms: u64,
    receiving: Option<Receiving>,
    /// Number of the newest copy received.
    transfers: u64,
    /// A copy is there and raft was told in this turn: its index.
    offered: Option<LogIndex>,
    /// raft has restored it; the member starts over once the log has its mark.
    pub(super) installing: Option<SnapshotMark>,
}

/// A member that raft sent a snapshot to.
struct Receiver {
    began_ms: u64,
    /// When it last asked for a part.
    asked_ms: u64,
    index: LogIndex,
}

/// A part that a member asks for.
struct Wanted {
    index: LogIndex,
    from_unit: u64,
    member: u64,
}

/// A copy on its way here.
struct Receiving {
    /// Its number: late answers about others must not be taken for its own.
    transfer: u64,
    /// For raft, once the copy is there.
    message: raftpb::Message,
    from: u64,
    index: LogIndex,
    term: Term,
    /// To be asked for; `None` while a part is asked for or being written.
    next_unit: Option<u64>,
    /// Asked for last.
    asked: u64,
    not_before_ms: u64,
    began_ms: u64,
    /// When the last part came.
    heard_ms: u64,
    received_bytes: u64,
}

impl Snapshots {
    /// When there is something to be done that nothing wakes the shard for.
    pub(super) fn deadline_ms(&self) -> u64 {
        let reads = !self.waiting.is_empty() && self.reading.len() < limits::SNAPSHOT_READS;
        let part_ms = if reads { self.next_part_ms } else { u64::MAX };
        let receiving = self.receiving.as_ref().filter(|receiving| receiving.next_unit.is_some());
        part_ms.min(receiving.map_or(u64::MAX, |receiving| receiving.not_before_ms))
    }
}

impl Snapshots {
    /// The background works for it, or may have to.
    pub(super) fn is_busy(&self) -> bool {
        self.is_holding || self.receiving.is_some() || !self.reading.is_empty()
    }
}

impl Replica {
    /// raft needs a snapshot for a member, and will ask again.
    pub(super) fn snapshot_wanted(&mut self, to: u64) {
        if self.snapshots.is_holding {
            return;
        }
        let usable = self.snapshots.held.as_ref().filter(|held| {
            // What follows it must still be in the log.
            self.log.node.term(held.index) == Some(held.term)
                && !self.snapshots.receivers.is_empty()
        });
        if let Some(held) = usable {
            return self.log.node.provide_snapshot(Some(&held.clone()));
        }
        tracing::info!(to = %format_args!("{to:x}"), "a member lags behind the log: it needs a snapshot");
        self.snapshots.is_holding = self.background.offer(Task::HoldSnapshot).is_ok();
        if !self.snapshots.is_holding {
            self.log.node.provide_snapshot(None);
        }
    }

    /// The background holds a state of the page file, or has none to hold.
    pub(super) fn snapshot_held(&mut self, mark: Option<SnapshotMark>) {
        self.snapshots.is_holding = false;
        self.snapshots.used_ms = self.now_ms;
        self.log.writer.hold(mark.as_ref().map(|mark| mark.index));
        self.log.node.provide_snapshot(mark.as_ref());
        self.snapshots.held = mark;
    }

    /// raft sends a snapshot: its receiver will ask for the pages.
    pub(super) fn snapshot_sent(&mut self, message: &raftpb::Message) {
        let to = message.to.unwrap_or(0);
        let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        let index = LogIndex(metadata.and_then(|metadata| metadata.index).unwrap_or(0));
        self.snapshots.used_ms = self.now_ms;
        if let Some(known) = self.snapshots.receivers.get_mut(&to) {
            // Its name may have been lost on the way.
            (known.asked_ms, known.index) = (self.now_ms, index);
            return;
        }
        let receiver = Receiver { began_ms: self.now_ms, asked_ms: self.now_ms, index };
        self.snapshots.receivers.insert(to, receiver);
        self.shared.metrics.snapshots.sent.began(to);
        tracing::info!(
            snapshot_index = index.0,
            remote_peer_id = %format_args!("{to:x}"),
            "sending database snapshot"
        );
    }

    /// A peer asks for a part.
    pub(super) fn asked_for_part(&mut self, conn: ConnId, method: &str, query: &str) {
        if method != "GET" {
            return self.reply_peer(conn, 405, TEXT, b"Method Not Allowed\n".to_vec());
        }
        match parse(query) {
            None => self.reply_peer(conn, 400, TEXT, b"bad request\n".to_vec()),
            Some(_) if self.snapshots.waiting.len() >= limits::SNAPSHOT_PARTS_WAITING => {
                self.reply_peer(conn, 503, TEXT, b"too many requests\n".to_vec());
            }
            Some(wanted) => {
                if let Some(receiver) = self.snapshots.receivers.get_mut(&wanted.member) {
                    receiver.asked_ms = self.now_ms;
                }
                self.snapshots.used_ms = self.now_ms;
                self.snapshots.waiting.push_back((conn, wanted));
            }
        }
    }

    /// The background has read a part, or no longer holds what was asked for.
    pub(super) fn part_read(&mut self, ticket: u64, part: Option<Vec<u8>>) {
        let Some(conn) = self.snapshots.reading.remove(&ticket) else { return };
        match part {
            Some(part) => {
                let pause_ms = part.len() as u64 * 1000 / limits::SNAPSHOT_BYTES_PER_SECOND;
                self.snapshots.next_part_ms =
                    self.snapshots.next_part_ms.max(self.now_ms) + pause_ms;
                self.reply_peer(conn, 200, OCTETS, part);
            }
            None => self.reply_peer(conn, 410, TEXT, b"this snapshot is gone\n".to_vec()),
        }
    }

    /// A leader's snapshot: its pages must be here before raft may know of it.
    pub(super) fn receive_snapshot(&mut self, message: raftpb::Message) {
        let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        let index = LogIndex(metadata.and_then(|metadata| metadata.index).unwrap_or(0));
        let term = Term(metadata.and_then(|metadata| metadata.term).unwrap_or(0));
        let (from, status) = (message.from.unwrap_or(0), self.log.node.status());
        // What is on its way into the log must not be removed to make room for another.
        if self.snapshots.installing.is_some() || self.snapshots.offered.is_some() {
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
        let task = Task::ReceiveSnapshot { transfer, index, term, identity };
        if self.background.offer(task).is_err() {
            // raft at the leader is told of no failure, and sends it again after a while.
            return;
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
            next_unit: None,
            asked: 0,
            not_before_ms: 0,
            began_ms: self.now_ms,
            heard_ms: self.now_ms,
            received_bytes: 0,
        });
    }

    /// How the copy stands with the background.
    pub(super) fn snapshot_received(&mut self, transfer: u64, received: Received) {
        let receiving = self.snapshots.receiving.as_mut();
        let Some(receiving) = receiving.filter(|known| known.transfer == transfer) else { return };
        match received {
            Received::Next(unit) => {
                receiving.next_unit = Some(unit);
                receiving.not_before_ms = self.now_ms;
            }
            Received::Complete => {
                tracing::info!(
                    snapshot_index = receiving.index.0,
                    received_bytes = receiving.received_bytes,
                    "received and saved database snapshot"
                );
                self.snapshots.offered = Some(receiving.index);
                if let Some(receiving) = self.end_copy(true) {
                    self.step_raft(receiving.message);
                }
            }
            Received::GivenUp(reason) => {
                self.warn_of_copy(&reason);
                self.end_copy(false);
            }
        }
    }

    /// An answer to a question for a part; `None` if there will be none.
    pub(super) fn part_answered(&mut self, transfer: u64, answer: Option<PeerAnswer>) {
        let now_ms = self.now_ms;
        let receiving = self.snapshots.receiving.as_mut();
        let Some(receiving) = receiving.filter(|known| known.transfer == transfer) else { return };
        match answer {
            Some(answer) if answer.status == 200 => {
                receiving.heard_ms = now_ms;
                receiving.received_bytes += answer.body.len() as u64;
                let task = Task::SnapshotPart { transfer, part: answer.body };
                if self.background.offer(task).is_err() {
                    self.ask_again();
                }
            }
            Some(answer) if answer.status == 410 => self.give_up_copy("the sender holds another"),
            _ => self.ask_again(),
        }
    }

    /// As if the part had not been asked for: a lost connection comes back.
    fn ask_again(&mut self) {
        if let Some(receiving) = &mut self.snapshots.receiving {
            receiving.next_unit = Some(receiving.asked);
            receiving.not_before_ms = self.now_ms + limits::SNAPSHOT_RETRY_MS;
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
        let took_ms = self.now_ms.saturating_sub(receiving.began_ms);
        self.shared.metrics.snapshots.received.ended(receiving.from, ok, took_ms);
        Some(receiving)
    }

    /// Reads parts for others within the rate, and asks for the next one of the copy on its way.
    pub(super) fn move_snapshots(&mut self) {
        while self.now_ms >= self.snapshots.next_part_ms
            && self.snapshots.reading.len() < limits::SNAPSHOT_READS
            && let Some((conn, wanted)) = self.snapshots.waiting.pop_front()
        {
            let Wanted { index, from_unit, .. } = wanted;
            self.snapshots.next_ticket += 1;
            let ticket = self.snapshots.next_ticket;
            if self.background.offer(Task::ReadSnapshot { ticket, index, from_unit }).is_err() {
                self.snapshots.waiting.push_front((conn, wanted));
                self.snapshots.next_part_ms = self.now_ms + 1;
                break;
            }
            self.snapshots.reading.insert(ticket, conn);
        }
        let now_ms = self.now_ms;
        let member = self.shared.member_id;
        if let Some(receiving) = &mut self.snapshots.receiving
            && now_ms >= receiving.not_before_ms
            && let Some(from_unit) = receiving.next_unit.take()
        {
            receiving.asked = from_unit;
            let (transfer, index) = (receiving.transfer, receiving.index.0);
            let ask = PeerAsk {
                to: receiving.from,
                lane: Lane::Snapshots,
                method: "GET",
                target: format!("{PART_PATH}?index={index:x}&from={from_unit:x}&member={member:x}"),
                content_type: "",
                body: Bytes::new(),
                timeout_ms: limits::SNAPSHOT_PART_MS,
                token: 0,
            };
            self.ask_for_part(ask, transfer);
        }
    }

    /// Every tick: gives up what nobody asks for any more.
    pub(super) fn tick_snapshots(&mut self) {
        let now_ms = self.now_ms;
        let mut ended = Vec::new();
        self.snapshots.receivers.retain(|member, receiver| {
            let progress = self.log.node.progress(*member);
            // What it said when it took the snapshot may be lost: it starts over then.
            let done = progress.is_some_and(|(matched, _)| matched >= receiver.index)
                || self.log.node.has_committed(*member, receiver.index);
            let lost = progress.is_none() || now_ms > receiver.asked_ms + limits::SNAPSHOT_IDLE_MS;
            if done || lost {
                ended.push((*member, done, receiver.index.0, now_ms - receiver.began_ms));
            }
            !done && !lost
        });
        for (member, done, snapshot_index, took_ms) in ended {
            let remote_peer_id = format!("{member:x}");
            self.shared.metrics.snapshots.sent.ended(member, done, took_ms);
            if done {
                tracing::info!(snapshot_index, remote_peer_id, "sent database snapshot");
            } else {
                tracing::warn!(snapshot_index, remote_peer_id, "failed to send database snapshot");
            }
            self.log.node.report_snapshot(member, done);
        }
        let idle = self.snapshots.receivers.is_empty()
            && now_ms > self.snapshots.used_ms + limits::SNAPSHOT_HOLD_MS;
        if self.snapshots.held.is_some()
            && idle
            && self.background.offer(Task::DropSnapshot).is_ok()
        {
            self.snapshots.held = None;
            self.log.writer.hold(None);
            self.log.node.provide_snapshot(None);
        }
        let silent = |receiving: &Receiving| now_ms > receiving.heard_ms + limits::SNAPSHOT_IDLE_MS;
        if self.snapshots.receiving.as_ref().is_some_and(silent) {
            self.give_up_copy("no part of it came for long");
        }
    }

    /// raft has restored a snapshot: what was applied counts no more.
    pub(super) fn begin_install(&mut self, mark: SnapshotMark) {
        self.to_apply.clear();
        self.running = None;
        self.shared.metrics.snapshots.applying.set(1);
        self.snapshots.installing = Some(mark);
    }

    /// The end of a turn. Starts over once the log has the mark: from there on, the copy is this
    /// member's state. Calls under way end with Unavailable, and clients come back.
    pub(super) fn end_install(&mut self) {
        let offered = self.snapshots.offered.take();
        let Some(mark) = &self.snapshots.installing else {
            if let Some(index) = offered {
                tracing::info!(snapshot_index = index.0, "a snapshot is not needed any more");
                let _ = self.background.offer(Task::DiscardSnapshot);
            }
            return;
        };
        if self.log.is_installed() && !self.shared.stopping.load(Ordering::Acquire) {
            tracing::info!(
                snapshot_index = mark.index.0,
                "the member starts over from the snapshot it received"
            );
            self.shared.restart();
        }
    }
}

fn parse(query: &str) -> Option<Wanted> {
    let number = |name: &str| {
        let text =
            query.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))?;
        u64::from_str_radix(text, 16).ok()
    };
    let (index, from_unit) = (LogIndex(number("index")?), number("from")?);
    Some(Wanted { index, from_unit, member: number("member")? })
}
