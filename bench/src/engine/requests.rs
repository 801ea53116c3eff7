//! The requests of one thread's clients: started, parked, answered, failed.
//!
//! Part of a worker, which brings the connections and the time. Every request that is started here
//! ends exactly once in the tally, whatever becomes of its connection. Must never touch a socket.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use etcore_proto::grpc::{ClientEvent, Code, StartError};

use super::compactor;
use super::conn::{Conn, Parked};
use super::{Share, Shared};
use crate::options::Options;
use crate::tally::Tally;
use crate::workload::{Answer, Workload};

/// What the answers of any connection change.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    pub(super) slots: Vec<Slot>,
    workload: Workload,
    tally: Tally,
    /// Requests on their way or parked.
    pub(super) outstanding: usize,
    /// Clients whose request is over and who have no new one.
    pub(super) freed: Vec<u32>,
    /// Clients whose answer has another page.
    pub(super) partial: Vec<u32>,
    last_end_ns: u64,
    /// What became of the compactor's call in this turn.
    pub(super) compaction: Option<Result<Bytes, String>>,
    pub(super) lost: Option<String>,
}

/// One client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) conn: u32,
    /// Its request.
    number: u64,
    /// When its request began.
    started_ns: u64,
    /// The server refused its request once before processing it.
    refused: bool,
    /// Since when it has none.
    pub(super) free_ns: u64,
}

impl Core {
    /// Clients of these connections, numbered connection by connection in turn.
    pub(super) fn new(options: &Options, conns: &[Conn], shared: Arc<Shared>) -> Self {
        let mut slots = Vec::new();
        let most = conns.iter().map(|conn| conn.clients).max().unwrap_or(0);
        for round in 0..most {
            let with = (0u32..).zip(conns).filter(|(_, conn)| conn.clients > round);
            slots.extend(with.map(|(conn, _)| Slot {
                conn,
                number: 0,
                started_ns: 0,
                refused: false,
                free_ns: 0,
            }));
        }
        Core {
            shared,
            workload: Workload::new(&options.load, slots.len()),
            tally: Tally::new(options.sample),
            outstanding: 0,
            freed: Vec::new(),
            partial: Vec::new(),
            last_end_ns: 0,
            compaction: None,
            lost: None,
            slots,
        }
    }

    /// What came of it all.
    pub(super) fn finish(self) -> Share {
        Share { tally: self.tally, last_end_ns: self.last_end_ns, lost: self.lost }
    }

    /// A compaction failed; that is no request of the load.
    pub(super) fn compaction_failed(&mut self, text: &str) {
        self.tally.failure(&format!("compaction: {text}"));
    }

    /// Starts a request, or parks it until the server allows another stream.
    pub(super) fn start(&mut self, conn: &mut Conn, request: Parked) {
        self.outstanding += 1;
        let Parked { user, number, started_ns } = request;
        let slot = &mut self.slots[user as usize];
        *slot = Slot { number, started_ns, ..*slot };
        match self.workload.start(&mut conn.client, &conn.methods, user, number) {
            Ok(()) => {}
            Err(StartError::TooManyStreams | StartError::Budget)
                if conn.client.open_streams() > 0 =>
            {
                conn.parked.push_back(request);
            }
            Err(error) => self.refuse(conn, user, &error, request.started_ns),
        }
    }

    /// A request could not start, and no later one can.
    fn refuse(&mut self, conn: &mut Conn, user: u32, error: &StartError, now_ns: u64) {
        conn.closing = true;
        let text = error.to_string();
        self.lost.get_or_insert_with(|| text.clone());
        self.over(user, now_ns, Err(&text));
    }

    /// Parked requests go first, in their order, as far as there are streams.
    pub(super) fn start_parked(&mut self, conn: &mut Conn) {
        for _ in 0..conn.parked.len() {
            let Some(request) = conn.parked.pop_front() else { break };
            self.outstanding -= 1;
            let waiting = conn.parked.len();
            self.start(conn, request);
            if conn.parked.len() > waiting {
                // Still no stream: back to the front with it.
                conn.parked.rotate_right(1);
                break;
            }
        }
    }

    pub(super) fn fail_parked(&mut self, conn: &mut Conn, reason: &str, now_ns: u64) {
        while let Some(request) = conn.parked.pop_front() {
            self.over(request.user, now_ns, Err(reason));
        }
    }

    pub(super) fn start_pages(&mut self, conn: &mut Conn, now_ns: u64) {
        let mut partial = std::mem::take(&mut self.partial);
        for user in partial.drain(..) {
            if let Err(error) = self.workload.start_page(&mut conn.client, &conn.methods, user) {
                self.refuse(conn, user, &error, now_ns);
            }
        }
        self.partial = partial;
    }

    /// Takes all events of a connection; answers ended at `end_ns`.
    pub(super) fn take_answers(&mut self, conn: &mut Conn, end_ns: u64) {
        while let Some(event) = conn.client.next_event() {
            match event {
                ClientEvent::Response { user: compactor::USER, message, .. } => {
                    self.compaction = Some(Ok(message));
                }
                ClientEvent::Status { user: compactor::USER, code, message, .. } => {
                    self.compaction = Some(Err(status_text(code, &message)));
                }
                ClientEvent::Response { user, message, .. } => {
                    let user = user as u32;
                    match self.workload.answer(user, message) {
                        Answer::Complete => self.answered(user, end_ns, Ok(())),
                        Answer::Partial => self.partial.push(user),
                        Answer::Malformed => self.answered(user, end_ns, Err("malformed answer")),
                    }
                }
                ClientEvent::Status { user, code: Code::Ok, .. } => {
                    self.answered(user as u32, end_ns, Ok(()));
                }
                ClientEvent::Status { user, unprocessed: true, .. }
                    if self.may_repeat(conn, user as u32) =>
                {
                    let user = user as u32;
                    let Slot { number, started_ns, .. } = self.slots[user as usize];
                    conn.parked.push_back(Parked { user, number, started_ns });
                }
                ClientEvent::Status { user, code, message, .. } => {
                    self.answered(user as u32, end_ns, Err(&status_text(code, &message)));
                }
                ClientEvent::GoAway { code, debug } => {
                    conn.closing = true;
                    let name = code.name().unwrap_or("unknown");
                    self.lost.get_or_insert_with(|| {
                        format!("the server is going away: {name} {debug}").trim_end().to_owned()
                    });
                }
                ClientEvent::Established
                | ClientEvent::Head { .. }
                | ClientEvent::Message { .. }
                | ClientEvent::Writable { .. }
                | ClientEvent::Pong { .. } => {}
            }
        }
    }

    /// Whether a request that the server did not process is made again: once, as gRPC clients do.
    /// It happens to requests that were sent before the server's limit of streams was known.
    fn may_repeat(&mut self, conn: &Conn, user: u32) -> bool {
        let refused = std::mem::replace(&mut self.slots[user as usize].refused, true);
        !refused && !conn.closing
    }

    /// A request was answered: its client can make another.
    #[inline]
    fn answered(&mut self, user: u32, end_ns: u64, result: Result<(), &str>) {
        self.over(user, end_ns, result);
        self.freed.push(user);
    }

    /// A request is over.
    #[inline]
    pub(super) fn over(&mut self, user: u32, end_ns: u64, result: Result<(), &str>) {
        let slot = &mut self.slots[user as usize];
        slot.free_ns = end_ns;
        slot.refused = false;
        match result {
            Ok(()) => self.tally.success(slot.started_ns, end_ns),
            Err(text) => self.tally.failure(text),
        }
        self.outstanding -= 1;
        self.last_end_ns = self.last_end_ns.max(end_ns);
        self.shared.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// An error in the words of etcd's client: its own errors are plain, others say their code.
fn status_text(code: Code, message: &str) -> String {
    match message.starts_with("etcdserver: ") {
        true => message.to_owned(),
        false => format!("rpc error: code = {code:?} desc = {message}"),
    }
}
