//! What is known of one peer: its addresses, its streams, what waits for it.
//!
//! Owned by the transport. Plain state with small rules; connections are the transport's.

use std::collections::VecDeque;

use etcore_proto::raftpb::MessageType;

use super::conn::Job;
use super::queue::Queue;
use super::{ConnId, Counters, Lane, StreamKind};

/// The shortest time between two attempts to dial a stream (etcd: DialRetryFrequency).
const DIAL_MS: u64 = 100;
/// After the first attempt that failed behind a stream that had worked.
const DIAL_AGAIN_MS: u64 = 20;
/// A stream that was open for so long has worked, in milliseconds.
const WORKED_MS: u64 = 1000;
/// Doublings of it while attempts fail.
const DIAL_DOUBLINGS: u32 = 3;

/// See the module text.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: u64,
    urls: Vec<String>,
    picked: usize,
    /// Not a member yet: it is only answered.
    pub(super) is_remote: bool,
    pub(super) is_active: bool,
    /// It is a member no longer, and its links end then.
    pub(super) leaves_ms: Option<u64>,
    pub(super) readers: [ReadEnd; 2],
    pub(super) writers: [WriteEnd; 2],
    pub(super) lanes: [LaneEnd; Lane::ALL.len()],
    pub(super) is_probing: bool,
    pub(super) next_probe_ms: u64,
    pub(super) counters: Counters,
    /// A snapshot's name went over the message stream that is open.
    pub(super) has_named_snapshot: bool,
    /// Messages dropped since this was said last.
    pub(super) dropped: u64,
    pub(super) say_dropped_ms: u64,
}

/// The requests of one kind.
#[derive(Debug, Default)]
pub(super) struct LaneEnd {
    /// Jobs that have no connection yet.
    pub(super) jobs: VecDeque<Queued>,
    /// Connections for them, dialled ones included.
    pub(super) conns: Vec<ConnId>,
    /// How many of these are not there yet.
    pub(super) dialling: usize,
    /// Connections that have nothing to do, and perhaps some that have been closed since.
    pub(super) idle: Vec<ConnId>,
}

/// A job that waits for a connection.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) job: Job,
    /// When it must be answered.
    pub(super) deadline_ms: u64,
}

impl Queued {
    /// True for a heartbeat, or the answer to one, that a later one replaces: the later one's
    /// commit index is no lower, and who acknowledges its read round acknowledges all before.
    pub(super) fn says_less(&self, later: &Job) -> bool {
        let (Job::Post(earlier), Job::Post(later)) = (&self.job, later) else { return false };
        let kind = later.r#type.unwrap_or(0);
        let is_heartbeat = kind == MessageType::MsgHeartbeat as i32
            || kind == MessageType::MsgHeartbeatResp as i32;
        is_heartbeat && earlier.r#type == later.r#type && earlier.term <= later.term
    }
}

/// The end of a stream on which this member receives.
#[derive(Debug, Default)]
pub(super) struct ReadEnd {
    /// Dialled, asked for, or open.
    pub(super) conn: Option<ConnId>,
    next_dial_ms: u64,
    established_ms: u64,
    failures: u32,
}

/// The end of a stream on which this member sends.
#[derive(Debug, Default)]
pub(super) struct WriteEnd {
    pub(super) conn: Option<ConnId>,
    pub(super) queue: Queue,
}

impl Link {
    pub(super) fn new(id: u64, urls: Vec<String>, is_remote: bool, next_probe_ms: u64) -> Self {
        Self {
            id,
            urls,
            picked: 0,
            is_remote,
            is_active: false,
            leaves_ms: None,
            readers: Default::default(),
            writers: Default::default(),
            lanes: Default::default(),
            is_probing: false,
            next_probe_ms,
            counters: Counters::default(),
            has_named_snapshot: false,
            dropped: 0,
            say_dropped_ms: 0,
        }
    }

    pub(super) fn urls(&self) -> &[String] {
        &self.urls
    }

    pub(super) fn set_urls(&mut self, urls: Vec<String>) {
        self.urls = urls;
        self.picked = 0;
    }

    /// Where it shall be tried now.
    pub(super) fn url(&self) -> Option<&str> {
        self.urls.get(self.picked).map(String::as_str)
    }

    /// The address did not work: the next one is tried.
    pub(super) fn next_url(&mut self) {
        self.picked = (self.picked + 1) % self.urls.len().max(1);
    }

    pub(super) fn reader(&mut self, kind: StreamKind) -> &mut ReadEnd {
        &mut self.readers[kind.slot()]
    }

    pub(super) fn writer(&mut self, kind: StreamKind) -> &mut WriteEnd {
        &mut self.writers[kind.slot()]
    }

    pub(super) fn lane(&mut self, lane: Lane) -> &mut LaneEnd {
        &mut self.lanes[lane.slot()]
    }

    /// The peer showed that it is there: what waits before it dials again need not.
    pub(super) fn seen_alive(&mut self, now_ms: u64) {
        for reader in &mut self.readers {
            reader.failures = 0;
            reader.next_dial_ms = reader.next_dial_ms.min(now_ms + DIAL_MS);
        }
    }
}

impl ReadEnd {
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        self.conn.is_none() && now_ms >= self.next_dial_ms
    }

    pub(super) fn dialled(&mut self, conn: ConnId) {
        self.conn = Some(conn);
    }

    pub(super) fn established(&mut self, now_ms: u64) {
        self.failures = 0;
        self.established_ms = now_ms;
    }

    pub(super) fn lost(&mut self, now_ms: u64) {
        self.conn = None;
        // After a stream that has worked the peer is dialled at once: whether it refuses tells a
        // dead process from a broken connection.
        let has_worked = self.failures == 0 && now_ms - self.established_ms >= WORKED_MS;
        // That attempt may have come just before the process's port was closed.
        let pause_ms = match self.failures {
            1 => DIAL_AGAIN_MS,
            failures => DIAL_MS << failures.min(DIAL_DOUBLINGS),
        };
        self.next_dial_ms = if has_worked { now_ms } else { now_ms + pause_ms };
        self.failures += 1;
    }
}
