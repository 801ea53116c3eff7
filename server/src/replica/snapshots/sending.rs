//! The leader's side: which state is held for whom, and from where on the log is kept.
//!
//! Part of the replica. The background reads the parts; here they are paced and answered. The log
//! is kept from the snapshot on until each receiver follows it, but no more than
//! [`limits::SNAPSHOT_LOG_BYTES`] of it: past that a later snapshot is the answer.

use std::collections::{BTreeMap, VecDeque};

use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_engine::snapshot::UnitRange;
use etcore_engine::types::LogIndex;
use etcore_proto::raftpb;
use etcore_raftlog::peer::ConnId;
use etcore_raftlog::types::SnapshotMark;

use super::Replica;
use crate::background::Task;
use crate::http::TEXT;
use crate::limits;

const OCTETS: &str = "application/octet-stream";

/// What is held and who needs it.
///
/// Invariant: with a receiver that has no copy yet, `held` has the pages of its snapshot.
pub(in crate::replica) struct Sending {
    /// What other members may copy.
    held: Option<SnapshotMark>,
    /// The background was told to hold a newer one, and has not answered.
    is_holding: bool,
    /// For this member.
    wanted_for: u64,
    /// Members that raft sent a snapshot to, until they follow the log.
    receivers: BTreeMap<u64, Receiver>,
    /// When the held one was last of use.
    used_ms: u64,
    waiting: VecDeque<(ConnId, Wanted)>,
    reading: BTreeMap<u64, ConnId>,
    next_ticket: u64,
    /// No part is read before.
    next_part_ms: u64,
    /// [`limits::SNAPSHOT_LOG_BYTES`], but in tests.
    pub(super) log_bytes_max: u64,
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            held: None,
            is_holding: false,
            wanted_for: 0,
            receivers: BTreeMap::new(),
            used_ms: 0,
            waiting: VecDeque::new(),
            reading: BTreeMap::new(),
            next_ticket: 0,
            next_part_ms: 0,
            log_bytes_max: limits::SNAPSHOT_LOG_BYTES,
        }
    }
}

/// A member that raft sent a snapshot to.
struct Receiver {
    began_ms: u64,
    /// When it last asked for a part, or said that it is at it.
    asked_ms: u64,
    index: LogIndex,
    /// Once raft there has taken the snapshot.
    catching_up: Option<CatchingUp>,
}

/// A receiver that is given the entries behind its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CatchingUp {
    matched: LogIndex,
    moved_ms: u64,
    /// The end of the log at that time: a member that has it soon after follows.
    goal: LogIndex,
    goal_ms: u64,
}

impl CatchingUp {
    fn new(matched: LogIndex, last: LogIndex, now_ms: u64) -> Self {
        Self { matched, moved_ms: now_ms, goal: last, goal_ms: now_ms }
    }

    /// The member has so much of a log that ends at `last`. True if it follows.
    fn reached(&mut self, matched: LogIndex, last: LogIndex, now_ms: u64) -> bool {
        if matched > self.matched {
            (self.matched, self.moved_ms) = (matched, now_ms);
        }
        if self.matched < self.goal {
            return false;
        }
        let follows = now_ms <= self.goal_ms + limits::SNAPSHOT_FOLLOW_MS;
        (self.goal, self.goal_ms) = (last, now_ms);
        follows
    }
}

/// What became of a receiver.
enum Fate {
    /// It goes on.
    Receives,
    /// It has the copy since just now.
    Arrived,
    Follows,
    Lost(&'static str),
}

/// A part that a member asks for.
struct Wanted {
    index: LogIndex,
    range: UnitRange,
    member: u64,
}

/// True if the configuration of a state has this member.
fn knows(mark: &SnapshotMark, member: u64) -> bool {
    mark.conf_state.as_ref().is_some_and(|conf_state| {
        let lists = [&conf_state.voters, &conf_state.learners, &conf_state.voters_outgoing];
        lists.into_iter().chain([&conf_state.learners_next]).any(|list| list.contains(&member))
    })
}

impl Sending {
    pub(super) fn deadline_ms(&self) -> u64 {
        let reads = !self.waiting.is_empty() && self.reading.len() < limits::SNAPSHOT_READS;
        if reads { self.next_part_ms } else { u64::MAX }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.is_holding || !self.reading.is_empty()
    }

    /// Somebody still copies pages.
    fn is_copied(&self) -> bool {
        self.receivers.values().any(|receiver| receiver.catching_up.is_none())
    }

    /// The log is kept from the entry after this one.
    fn log_from(&self) -> Option<LogIndex> {
        if is_on(SeededBug::SnapshotLogReleased) {
            return None;
        }
        let receivers = self.receivers.values().map(|receiver| match &receiver.catching_up {
            None => receiver.index,
            Some(catching_up) => catching_up.matched,
        });
        receivers.chain(self.held.as_ref().map(|held| held.index)).min()
    }
}

impl Replica {
    /// raft needs a snapshot for a member, and will ask again.
    pub(in crate::replica) fn snapshot_wanted(&mut self, to: u64) {
        let sending = &mut self.snapshots.sending;
        if sending.is_holding {
            return;
        }
        let usable = sending.held.as_ref().filter(|held| {
            // What follows it must still be in the log.
            self.log.node.term(held.index) == Some(held.term)
                && sending.is_copied()
                && knows(held, to)
        });
        if let Some(held) = usable {
            return self.log.node.provide_snapshot(Some(&held.clone()));
        }
        tracing::info!(to = %format_args!("{to:x}"), "a member lags behind the log: it needs a snapshot");
        sending.is_holding = self.background.offer(Task::HoldSnapshot).is_ok();
        sending.wanted_for = to;
        if !sending.is_holding {
            self.log.node.provide_snapshot(None);
        }
    }

    /// The background holds a state of the page file, or has none to hold.
    pub(in crate::replica) fn snapshot_held(&mut self, mark: Option<SnapshotMark>) {
        let sending = &mut self.snapshots.sending;
        // raft takes no state of before its own member came: a later one will do.
        let usable = mark.as_ref().filter(|mark| knows(mark, sending.wanted_for));
        self.log.node.provide_snapshot(usable);
        sending.is_holding = false;
        sending.used_ms = self.turn.now_ms();
        sending.held = mark;
        self.log.writer.hold(sending.log_from());
    }

    /// raft sends a snapshot: its receiver will ask for the pages.
    pub(in crate::replica) fn snapshot_sent(&mut self, message: &raftpb::Message) {
        let to = message.to.unwrap_or(0);
        let metadata = message.snapshot.as_ref().and_then(|snapshot| snapshot.metadata.as_ref());
        let index = LogIndex(metadata.and_then(|metadata| metadata.index).unwrap_or(0));
        let now_ms = self.turn.now_ms();
        let sending = &mut self.snapshots.sending;
        sending.used_ms = now_ms;
        if let Some(known) = sending.receivers.get_mut(&to)
            && known.catching_up.is_none()
        {
            // Its name may have been lost on the way.
            (known.asked_ms, known.index) = (now_ms, index);
            return;
        }
        let (began_ms, asked_ms, catching_up) = (now_ms, now_ms, None);
        sending.receivers.insert(to, Receiver { began_ms, asked_ms, index, catching_up });
        self.shared.metrics.snapshots.sent.began(to);
        tracing::info!(
            snapshot_index = index.0,
            remote_peer_id = %format_args!("{to:x}"),
            "sending database snapshot"
        );
    }

    /// A peer asks for a part.
    pub(in crate::replica) fn asked_for_part(&mut self, conn: ConnId, method: &str, query: &str) {
        if method != "GET" {
            return self.reply_peer(conn, 405, TEXT, b"Method Not Allowed\n".to_vec());
        }
        let Some(wanted) = parse(query) else {
            return self.reply_peer(conn, 400, TEXT, b"bad request\n".to_vec());
        };
        let sending = &mut self.snapshots.sending;
        if let Some(receiver) = sending.receivers.get_mut(&wanted.member)
            && receiver.index == wanted.index
        {
            receiver.asked_ms = self.turn.now_ms();
        }
        if sending.held.as_ref().is_none_or(|held| held.index != wanted.index) {
            return self.reply_peer(conn, 410, TEXT, GONE.to_vec());
        }
        sending.used_ms = self.turn.now_ms();
        if wanted.range.from >= wanted.range.until {
            return self.reply_peer(conn, 200, OCTETS, Vec::new());
        }
        if sending.waiting.len() >= limits::SNAPSHOT_PARTS_WAITING {
            return self.reply_peer(conn, 503, TEXT, b"too many requests\n".to_vec());
        }
        sending.waiting.push_back((conn, wanted));
    }

    /// Reads parts for others within the rate.
    pub(super) fn read_parts(&mut self) {
        let (now_ms, sending) = (self.turn.now_ms(), &mut self.snapshots.sending);
        while now_ms >= sending.next_part_ms
            && sending.reading.len() < limits::SNAPSHOT_READS
            && let Some((conn, wanted)) = sending.waiting.pop_front()
        {
            let Wanted { index, range, .. } = wanted;
            sending.next_ticket += 1;
            let ticket = sending.next_ticket;
            if self.background.offer(Task::ReadSnapshot { ticket, index, range }).is_err() {
                sending.waiting.push_front((conn, wanted));
                sending.next_part_ms = now_ms + 1;
                break;
            }
            sending.reading.insert(ticket, conn);
        }
    }

    /// The background has read a part, or no longer holds what was asked for.
    pub(in crate::replica) fn part_read(&mut self, ticket: u64, part: Option<Vec<u8>>) {
        let sending = &mut self.snapshots.sending;
        let Some(conn) = sending.reading.remove(&ticket) else { return };
        match part {
            Some(part) => {
                let pause_ms = part.len() as u64 * 1000 / limits::SNAPSHOT_BYTES_PER_SECOND;
                sending.next_part_ms = sending.next_part_ms.max(self.turn.now_ms()) + pause_ms;
                self.reply_peer(conn, 200, OCTETS, part);
            }
            None => self.reply_peer(conn, 410, TEXT, GONE.to_vec()),
        }
    }

    /// Every tick: who has arrived, who follows, who is gone, and what is kept for the others.
    pub(super) fn tick_sending(&mut self) {
        self.judge_receivers();
        let sending = &self.snapshots.sending;
        let kept_bytes = sending.log_from().map_or(0, |from| self.log.writer.bytes_after(from));
        if !sending.receivers.is_empty() {
            if kept_bytes > sending.log_bytes_max {
                self.stop_sending("the log has grown too much meanwhile", kept_bytes);
            } else if self.is_short_of_space() && kept_bytes > limits::SNAPSHOT_LOG_BYTES_SCARCE {
                self.stop_sending(
                    "the disk is full, and the log kept for it takes room",
                    kept_bytes,
                );
            }
        }
        let sending = &mut self.snapshots.sending;
        let idle =
            !sending.is_copied() && self.turn.now_ms() > sending.used_ms + limits::SNAPSHOT_HOLD_MS;
        if sending.held.is_some() && idle && self.background.offer(Task::DropSnapshot).is_ok() {
            sending.held = None;
            self.log.node.provide_snapshot(None);
        }
        self.log.writer.hold(sending.log_from());
    }

    fn judge_receivers(&mut self) {
        let last = self.log.node.status().last_index;
        let members: Vec<u64> = self.snapshots.sending.receivers.keys().copied().collect();
        for member in members {
            match self.fate_of(member, last) {
                Fate::Receives => {}
                Fate::Arrived => self.sent(member, None),
                Fate::Follows => {
                    let Some(known) = self.snapshots.sending.receivers.remove(&member) else {
                        continue;
                    };
                    tracing::info!(
                        snapshot_index = known.index.0,
                        remote_peer_id = %format_args!("{member:x}"),
                        took = %format_args!("{}ms", self.turn.now_ms() - known.began_ms),
                        "the member follows the log again"
                    );
                }
                Fate::Lost(reason) => self.lose_receiver(member, reason),
            }
        }
    }

    fn fate_of(&mut self, member: u64, last: LogIndex) -> Fate {
        let now_ms = self.turn.now_ms();
        let Some(receiver) = self.snapshots.sending.receivers.get_mut(&member) else {
            return Fate::Receives;
        };
        let Some((matched, _)) = self.log.node.progress(member) else {
            return Fate::Lost("this member leads no longer");
        };
        if let Some(catching_up) = &mut receiver.catching_up {
            let follows = catching_up.reached(matched, last, now_ms);
            return match follows {
                true => Fate::Follows,
                false if now_ms > catching_up.moved_ms + limits::SNAPSHOT_IDLE_MS => {
                    Fate::Lost("it takes no entries")
                }
                false => Fate::Receives,
            };
        }
        // What it said when it took the snapshot may be lost.
        if matched >= receiver.index || self.log.node.has_committed(member, receiver.index) {
            let matched = matched.max(receiver.index);
            receiver.catching_up = Some(CatchingUp::new(matched, last, now_ms));
            return Fate::Arrived;
        }
        if now_ms > receiver.asked_ms + limits::SNAPSHOT_LOST_MS {
            return Fate::Lost("it asks for nothing");
        }
        Fate::Receives
    }

    /// The copy has arrived, or not for this reason.
    fn sent(&mut self, member: u64, failure: Option<&str>) {
        let Some(receiver) = self.snapshots.sending.receivers.get(&member) else { return };
        let (snapshot_index, took_ms) = (receiver.index.0, self.turn.now_ms() - receiver.began_ms);
        self.shared.metrics.snapshots.sent.ended(member, failure.is_none(), took_ms);
        let remote_peer_id = format!("{member:x}");
        match failure {
            None => {
                tracing::info!(snapshot_index, remote_peer_id, took_ms, "sent database snapshot");
            }
            Some(reason) => tracing::warn!(
                snapshot_index,
                remote_peer_id,
                reason,
                "failed to send database snapshot"
            ),
        }
        self.log.node.report_snapshot(member, failure.is_none());
    }

    fn lose_receiver(&mut self, member: u64, reason: &str) {
        let Some(receiver) = self.snapshots.sending.receivers.get(&member) else { return };
        if receiver.catching_up.is_none() {
            self.sent(member, Some(reason));
        } else {
            tracing::warn!(
                snapshot_index = receiver.index.0,
                remote_peer_id = %format_args!("{member:x}"),
                reason,
                "the log is kept no longer for a member that has got a snapshot"
            );
        }
        self.snapshots.sending.receivers.remove(&member);
    }

    /// The log cannot be kept for those who receive: they need a later snapshot.
    fn stop_sending(&mut self, reason: &'static str, kept_bytes: u64) {
        tracing::warn!(
            kept_bytes,
            kept_bytes_max = self.snapshots.sending.log_bytes_max,
            reason,
            "a snapshot is given up while it is received; a later one follows"
        );
        let members: Vec<u64> = self.snapshots.sending.receivers.keys().copied().collect();
        members.into_iter().for_each(|member| self.lose_receiver(member, reason));
        self.snapshots.sending.held = None;
        self.log.node.provide_snapshot(None);
        // If the background has no room for this now, the next state it holds replaces this one.
        let _ = self.background.offer(Task::DropSnapshot);
    }
}

const GONE: &[u8] = b"this snapshot is gone\n";

fn parse(query: &str) -> Option<Wanted> {
    let number = |name: &str| {
        let text =
            query.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))?;
        u64::from_str_radix(text, 16).ok()
    };
    let range = UnitRange { from: number("from")?, until: number("until")? };
    Some(Wanted { index: LogIndex(number("index")?), range, member: number("member")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_follows_once_it_has_what_the_log_had_a_moment_ago() {
        let index = LogIndex;
        let mut member = CatchingUp::new(index(100), index(5000), 0);
        assert!(!member.reached(index(2000), index(6000), 2000), "far from the end");
        assert!(!member.reached(index(5000), index(7000), 4000), "that took long");
        assert!(!member.reached(index(6900), index(7050), 4300));
        assert!(member.reached(index(7010), index(7100), 4600), "in less than a second");
        assert_eq!(member.moved_ms, 4600);
        assert!(!member.reached(index(7010), index(7200), 9000));
        assert_eq!(member.moved_ms, 4600, "it stands still");
    }

    #[test]
    fn a_question_for_a_part_names_its_range() {
        let wanted = parse("index=1f&from=2&until=82&member=abc").unwrap();
        assert_eq!(wanted.index, LogIndex(0x1f));
        assert_eq!(wanted.range, UnitRange { from: 2, until: 0x82 });
        assert_eq!(wanted.member, 0xabc);
        assert!(parse("index=1f&from=2&member=abc").is_none());
        assert!(parse("index=1f&from=2&until=x&member=abc").is_none());
    }
}
