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
use etcore_engine::snapshot::PART_UNITS;
use etcore_engine::types::{Identity, LogIndex, Term};
use etcore_proto::raftpb;
use etcore_raftlog::peer::{ConnId, PeerAnswer, PeerAsk};
use etcore_raftlog::types::SnapshotMark;

use super::Replica;
use crate::background::{Received, Task};
use crate::limits;

/// Asked for a part: `?index=I&from=U&member=M`, hexadecimal.
pub const PART_PATH: &str = "/raft/snapshot/part";
const OCTETS: &str = "application/octet-stream";
const TEXT: &str = "text/plain; charset=utf-8";

/// Both sides of snapshots.
#[derive(Default)]
pub(super) struct Snapshots {
    /// What other members may copy.
    held: Option<SnapshotMark>,
    /// The background was told to hold a newer one, and has not answered.
    is_holding: bool,
    /// Members that raft sent a snapshot to, and when they last asked for a part of it.
    receivers: BTreeMap<u64, u64>,
    /// When the held one was last of use.
    used_ms: u64,
    waiting: VecDeque<(ConnId, Wanted)>,
    reading: BTreeMap<u64, ConnId>,
    next_ticket: u64,
    /// No part is read before.
    next_part_ms: u64,
    receiving: Option<Receiving>,
    /// raft has restored it; the member starts over once the log has its mark.
    pub(super) installing: Option<SnapshotMark>,
}

/// A part that a member asks for.
struct Wanted {
    index: LogIndex,
    from_unit: u64,
    member: u64,
}

/// A copy on its way here.
struct Receiving {
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
    /// When the last part came.
    heard_ms: u64,
    received_bytes: u64,
}

impl Snapshots {
    /// When there is something to be done.
    pub(super) fn deadline_ms(&self) -> u64 {
        let part_ms = if self.waiting.is_empty() { u64::MAX } else { self.next_part_ms };
        let receiving = self.receiving.as_ref().filter(|receiving| receiving.next_unit.is_some());
        part_ms.min(receiving.map_or(u64::MAX, |receiving| receiving.not_before_ms))
    }
}

impl Replica {
    /// raft needs a snapshot for a member.
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
        self.snapshots.is_holding = self.background.submit(Task::HoldSnapshot).is_ok();
    }

    /// The background holds a state of the page file.
    pub(super) fn snapshot_held(&mut self, mark: SnapshotMark) {
        self.snapshots.is_holding = false;
        self.snapshots.used_ms = self.now_ms;
        self.log.writer.hold(Some(mark.index));
        self.log.node.provide_snapshot(Some(&mark));
        self.snapshots.held = Some(mark);
    }

    /// raft sends a snapshot: its receiver will ask for the pages.
    pub(super) fn snapshot_sent(&mut self, message: &raftpb::Message) {
        let to = message.to.unwrap_or(0);
        self.snapshots.receivers.insert(to, self.now_ms);
        self.snapshots.used_ms = self.now_ms;
        tracing::info!(
            snapshot_index = self.snapshots.held.as_ref().map_or(0, |held| held.index.0),
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
                if let Some(asked_ms) = self.snapshots.receivers.get_mut(&wanted.member) {
                    *asked_ms = self.now_ms;
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
        let is_stale = message.term.unwrap_or(0) < status.soft_state.term.0;
        // raft knows what to say when it has all of it already, or the leader is of old.
        if is_stale || index <= status.commit || self.log.node.term(index) == Some(term) {
            return self.step_raft(message);
        }
        if self.snapshots.installing.is_some() {
            return;
        }
        if let Some(receiving) = &mut self.snapshots.receiving
            && (receiving.from, receiving.index, receiving.term) == (from, index, term)
        {
            receiving.message = message;
            return;
        }
        let identity =
            Identity { cluster_id: self.shared.cluster_id, member_id: self.shared.member_id };
        if self.background.submit(Task::ReceiveSnapshot { index, term, identity }).is_err() {
            return;
        }
        tracing::info!(
            snapshot_index = index.0,
            remote_peer_id = %format_args!("{from:x}"),
            "receiving database snapshot"
        );
        self.snapshots.receiving = Some(Receiving {
            message,
            from,
            index,
            term,
            next_unit: None,
            asked: 0,
            not_before_ms: 0,
            heard_ms: self.now_ms,
            received_bytes: 0,
        });
    }

    /// How the copy stands with the background.
    pub(super) fn snapshot_received(&mut self, received: Received) {
        let Some(receiving) = &mut self.snapshots.receiving else { return };
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
                if let Some(receiving) = self.snapshots.receiving.take() {
                    self.step_raft(receiving.message);
                }
            }
            Received::GivenUp(reason) => {
                tracing::warn!(
                    snapshot_index = receiving.index.0,
                    reason = %reason,
                    "failed to receive a database snapshot; the leader will send another"
                );
                self.snapshots.receiving = None;
            }
        }
    }

    /// An answer to a question for a part; `None` if there will be none.
    pub(super) fn part_answered(&mut self, index: LogIndex, answer: Option<PeerAnswer>) {
        let now_ms = self.now_ms;
        let Some(receiving) = &mut self.snapshots.receiving else { return };
        if receiving.index != index {
            return;
        }
        match answer {
            Some(answer) if answer.status == 200 => {
                receiving.heard_ms = now_ms;
                receiving.received_bytes += answer.body.len() as u64;
                if self.background.submit(Task::SnapshotPart(answer.body)).is_err() {
                    self.give_up_copy("the background is busy");
                }
            }
            Some(answer) if answer.status == 410 => self.give_up_copy("the sender holds another"),
            _ => {
                // As if it had not been asked: a lost connection comes back.
                receiving.next_unit = Some(receiving.asked);
                receiving.not_before_ms = now_ms + limits::SNAPSHOT_RETRY_MS;
            }
        }
    }

    fn give_up_copy(&mut self, reason: &str) {
        let Some(receiving) = self.snapshots.receiving.take() else { return };
        tracing::warn!(
            snapshot_index = receiving.index.0,
            reason,
            "failed to receive a database snapshot; the leader will send another"
        );
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
            if self.background.submit(Task::ReadSnapshot { ticket, index, from_unit }).is_err() {
                self.snapshots.waiting.push_front((conn, wanted));
                return;
            }
            self.snapshots.reading.insert(ticket, conn);
            self.snapshots.next_part_ms = self.now_ms + PART_MS;
        }
        let now_ms = self.now_ms;
        let member = self.shared.member_id;
        if let Some(receiving) = &mut self.snapshots.receiving
            && now_ms >= receiving.not_before_ms
            && let Some(from_unit) = receiving.next_unit.take()
        {
            receiving.asked = from_unit;
            let index = receiving.index;
            let ask = PeerAsk {
                to: receiving.from,
                method: "GET",
                target: format!(
                    "{PART_PATH}?index={:x}&from={from_unit:x}&member={member:x}",
                    index.0
                ),
                content_type: "",
                body: Bytes::new(),
                timeout_ms: limits::SNAPSHOT_PART_MS,
                token: 0,
            };
            self.ask_for_part(ask, index);
        }
    }

    /// Every tick: gives up what nobody asks for any more.
    pub(super) fn tick_snapshots(&mut self) {
        let now_ms = self.now_ms;
        let mut ended = Vec::new();
        self.snapshots.receivers.retain(|member, asked_ms| {
            let index = self.snapshots.held.as_ref().map_or(0, |held| held.index.0);
            let progress = self.log.node.progress(*member);
            let done = progress.is_some_and(|(matched, _)| matched.0 >= index);
            let lost = progress.is_none() || now_ms > *asked_ms + limits::SNAPSHOT_IDLE_MS;
            if done || lost {
                ended.push((*member, done));
            }
            !done && !lost
        });
        for (member, done) in ended {
            let to = format!("{member:x}");
            if done {
                tracing::info!(remote_peer_id = %to, "sent database snapshot");
            } else {
                tracing::warn!(remote_peer_id = %to, "failed to send database snapshot");
            }
            self.log.node.report_snapshot(member, done);
        }
        let idle = self.snapshots.receivers.is_empty()
            && now_ms > self.snapshots.used_ms + limits::SNAPSHOT_HOLD_MS;
        if self.snapshots.held.is_some()
            && idle
            && self.background.submit(Task::DropSnapshot).is_ok()
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
        self.snapshots.installing = Some(mark);
    }

    /// Starts over once the log has the mark: from there on, the copy is this member's state.
    pub(super) fn end_install(&mut self) {
        let Some(mark) = &self.snapshots.installing else { return };
        if self.log.writer.is_idle() && !self.shared.stopping.load(Ordering::Acquire) {
            tracing::info!(
                snapshot_index = mark.index.0,
                "the member starts over from the snapshot it received"
            );
            self.shared.restart();
        }
    }
}

/// The shortest time between two parts, in milliseconds.
const PART_MS: u64 = PART_UNITS * 4096 * 1000 / limits::SNAPSHOT_BYTES_PER_SECOND;

fn parse(query: &str) -> Option<Wanted> {
    let number = |name: &str| {
        let text =
            query.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))?;
        u64::from_str_radix(text, 16).ok()
    };
    let (index, from_unit) = (LogIndex(number("index")?), number("from")?);
    Some(Wanted { index, from_unit, member: number("member")? })
}
