//! Queries about leases between members of this make: all that a turn has gathered in one
//! request, answered together.
//!
//! A follower has a few batches on their way, so what its clients renew while those travel leaves
//! in the next one: renewals are bounded by bytes, not by round trips. A leader of etcd's make does
//! not know the path; it is then asked one query a time, in etcd's form (see `peer_requests`).
//! What a leader cannot answer soon, because it must apply something first, it hands back with the
//! index that it waits for. The keys of a lease do not travel: an answer says what the leader had
//! applied, and who has applied that too knows them. Nothing here may keep an answer waiting for
//! another for long.

use bytes::Bytes;
use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_engine::types::LogIndex;
use etcore_raftlog::peer::{ConnId, Lane, PeerRequest, PeerResponse};

use super::{LeaseService, Waiting};
use crate::channel::{LeaseAnswer, LeaseQuery};
use crate::http::TEXT;
use crate::kv::pieces::Pieces;
use crate::lease::TimeToLive;
use crate::limits;
use crate::replica::Replica;
use crate::replica::peer_requests::{NOT_PRIMARY, Purpose, RETRY_MS};

/// Where batches are asked.
pub const BATCH_PATH: &str = "/etcore/leases";

const OCTETS: &str = "application/octet-stream";
/// First byte of a query. Another one is not understood.
const FORM: u8 = 1;
/// First byte of an answer.
const ANSWER_FORM: u8 = 2;
/// A kind and two numbers.
const RECORD_BYTES: usize = 17;

const RENEW: u8 = 1;
const TIMES: u8 = 2;
const NO_LEASE: u8 = 3;
const AGAIN: u8 = 4;

/// What a leader says to a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// There is no such lease.
    NoLease,
    /// It was renewed, for so many seconds.
    Renewed(i64),
    /// Its times.
    Times(TimeToLive),
    /// It is to be asked again: this must be applied first.
    Again(Option<LogIndex>),
}

/// A batch that a follower waits for.
#[derive(Debug)]
struct Batch {
    conn: ConnId,
    /// Answered then, whatever is missing.
    due_ms: u64,
    /// The read round that confirms the leader for it, once that has begun.
    round: Option<u64>,
    /// Queries without an answer.
    open: usize,
    items: Vec<Item>,
    /// What was applied, and when, when it was looked at last.
    looked: Option<(LogIndex, u64)>,
}

/// The batches of other members.
///
/// Invariants: `queries` is how many are in all batches; each batch counts its own open ones.
#[derive(Debug, Default)]
pub(super) struct Batches {
    waiting: Vec<Batch>,
    queries: usize,
}

impl Batches {
    /// How many queries wait in batches.
    pub(super) fn queries(&self) -> usize {
        self.queries
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// True if one waits for a read round to be begun.
    pub(super) fn has_new(&self) -> bool {
        self.waiting.iter().any(|batch| batch.round.is_none())
    }

    /// The read round with this ticket confirms the leader for those that have none.
    pub(super) fn confirm_by(&mut self, round: u64) {
        for batch in self.waiting.iter_mut().filter(|batch| batch.round.is_none()) {
            batch.round = Some(round);
        }
    }

    /// When one must be answered.
    pub(super) fn due_ms(&self) -> u64 {
        self.waiting.iter().map(|batch| batch.due_ms).min().unwrap_or(u64::MAX)
    }

    fn add(&mut self, conn: ConnId, due_ms: u64, items: Vec<Item>) {
        self.queries += items.len();
        let (open, round, looked) = (items.len(), None, None);
        self.waiting.push(Batch { conn, due_ms, round, open, items, looked });
    }

    /// Takes all of them, to give those back that go on waiting.
    fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Checks the invariants, which takes a look at everything.
    pub(super) fn check(&self) {
        let queries = self.waiting.iter().map(|batch| batch.items.len());
        assert_eq!(queries.sum::<usize>(), self.queries, "queries in batches");
        for batch in &self.waiting {
            let open = batch.items.iter().filter(|item| item.said.is_none()).count();
            assert_eq!(open, batch.open, "open queries of a batch");
        }
    }
}

#[derive(Debug)]
struct Item {
    query: LeaseQuery,
    after: Option<LogIndex>,
    said: Option<Said>,
}

impl Replica {
    /// Sends the queries that wait to a leader of this make.
    pub(in crate::replica) fn ask_in_batches(&mut self, leader: u64) {
        let (batches, queries) = match is_on(SeededBug::RenewalsOneByOne) {
            true => (1, 1),
            false => (limits::LEASE_BATCHES, limits::LEASE_BATCH_QUESTIONS),
        };
        while self.peer_requests.batches() < batches && self.leases.has_forward() {
            let batch = self.leases.take_forward(queries);
            let ask = PeerRequest {
                to: leader,
                lane: Lane::Leases,
                method: "POST",
                target: BATCH_PATH.to_owned(),
                content_type: OCTETS,
                body: write_queries(&batch),
                timeout_ms: limits::LEASE_BATCH_MS,
                token: 0,
            };
            self.peer_requests.ask(ask, Purpose::Leases(leader, batch));
        }
    }

    /// A leader has answered a batch, or will not.
    pub(in crate::replica) fn batch_answered(
        &mut self,
        leader: u64,
        mut batch: Vec<Waiting>,
        answer: Option<PeerResponse>,
    ) {
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        if status == 404 {
            // It is of another make, or older.
            self.peer_requests.note_asked_singly(leader);
            return self.leases.forward_first(batch);
        }
        let said = answer.filter(|_| status == 200);
        let said = said.and_then(|answer| read_answers(&answer.body, batch.len()));
        let Some((applied, said)) = said else {
            for waiting in &mut batch {
                waiting.not_before_ms = self.turn.now_ms() + RETRY_MS;
            }
            return self.leases.retry(batch);
        };
        for (mut waiting, said) in batch.into_iter().zip(said) {
            let answer = match (waiting.request.query, said) {
                (_, Said::Again(after)) => {
                    waiting.after = after;
                    self.leases.forward_last(waiting);
                    continue;
                }
                (LeaseQuery::TimeToLive { keys: true, .. }, Said::Times(times)) => {
                    self.leases.walks.push_behind(waiting, times, applied);
                    continue;
                }
                (LeaseQuery::TimeToLive { .. }, Said::Times(times)) => {
                    LeaseAnswer::TimeToLive { times: Some(times), keys: Pieces::default() }
                }
                (LeaseQuery::TimeToLive { .. }, _) => {
                    LeaseAnswer::TimeToLive { times: None, keys: Pieces::default() }
                }
                (_, Said::Renewed(ttl_s)) => LeaseAnswer::Renewed { ttl_s },
                (_, Said::NoLease | Said::Times(_)) => LeaseAnswer::Renewed { ttl_s: 0 },
            };
            self.answer_lease(&waiting, answer);
        }
    }

    /// A follower asks this member.
    pub(in crate::replica) fn asked_in_batch(&mut self, conn: ConnId, body: &[u8]) {
        let Some(items) = read_queries(body) else {
            let text = b"error unmarshalling request\n".to_vec();
            return self.reply_peer(conn, 400, TEXT, text);
        };
        let batches = &mut self.leases.batches;
        if batches.queries() + items.len() > limits::KEEP_ALIVES {
            return self.reply_peer(conn, 503, TEXT, b"too many requests\n".to_vec());
        }
        batches.add(conn, self.turn.now_ms() + limits::LEASE_BATCH_HOLD_MS, items);
    }

    /// Answers the batches that are complete or due, or all of them if this member does not lead.
    pub(super) fn answer_batches(&mut self) {
        let is_leader = self.is_leader();
        let mut batches = self.leases.batches.take();
        let Batches { waiting, queries } = &mut batches;
        waiting.retain_mut(|batch| {
            if is_leader && self.leases.is_confirmed(batch.round) {
                self.look_at(batch);
            }
            if is_leader && batch.open > 0 && self.turn.now_ms() < batch.due_ms {
                return true;
            }
            *queries -= batch.items.len();
            if is_leader {
                let answers = write_answers(self.store.applied().0, &batch.items);
                self.reply_peer(batch.conn, 200, OCTETS, answers);
            } else {
                let text = format!("{NOT_PRIMARY}\n").into_bytes();
                self.reply_peer(batch.conn, 400, TEXT, text);
            }
            false
        });
        self.leases.batches = batches;
    }

    /// Answers of a batch what can be answered.
    fn look_at(&mut self, batch: &mut Batch) {
        let (commit, (applied, _)) = (self.log.node.status().commit, self.store.applied());
        let now_ms = self.turn.now_ms();
        // Not with every turn: many wait for the same entry.
        if batch.looked.replace((applied, now_ms)) == Some((applied, now_ms)) {
            return;
        }
        for item in batch.items.iter_mut().filter(|item| item.said.is_none()) {
            let behind = *item.after.get_or_insert(commit) > applied;
            if behind && !self.leases.is_fast(item.query) {
                continue;
            }
            let said = match self.lease_answer(item.query) {
                Some(LeaseAnswer::Renewed { ttl_s }) if ttl_s > 0 => Said::Renewed(ttl_s),
                Some(LeaseAnswer::TimeToLive { times: Some(times), .. }) => Said::Times(times),
                Some(_) => Said::NoLease,
                None => continue,
            };
            item.said = Some(said);
            batch.open -= 1;
        }
    }
}

impl LeaseService {
    fn has_forward(&self) -> bool {
        !self.forward.is_empty()
    }

    /// Takes the first queries to be asked of the leader, at most so many.
    fn take_forward(&mut self, most: usize) -> Vec<Waiting> {
        let count = self.forward.len().min(most);
        self.forward.drain(..count).collect()
    }

    /// Asks these before all others, in their order.
    fn forward_first(&mut self, batch: Vec<Waiting>) {
        for waiting in batch.into_iter().rev() {
            self.forward.push_front(waiting);
        }
    }

    fn forward_last(&mut self, waiting: Waiting) {
        self.forward.push_back(waiting);
    }
}

fn write_record(out: &mut Vec<u8>, kind: u8, first: i64, second: i64) {
    out.push(kind);
    out.extend_from_slice(&first.to_be_bytes());
    out.extend_from_slice(&second.to_be_bytes());
}

/// The records of a message; `None` if it is none.
fn records(records: &[u8]) -> Option<impl Iterator<Item = (u8, i64, i64)>> {
    if !records.len().is_multiple_of(RECORD_BYTES) {
        return None;
    }
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, i64::from_be_bytes);
    let record = move |bytes: &[u8]| (bytes[0], number(&bytes[1..9]), number(&bytes[9..17]));
    Some(records.chunks_exact(RECORD_BYTES).map(record))
}

fn index(number: i64) -> Option<LogIndex> {
    (number > 0).then_some(LogIndex(number.cast_unsigned()))
}

fn number(index: Option<LogIndex>) -> i64 {
    index.map_or(0, |index| index.0.cast_signed())
}

fn write_queries(batch: &[Waiting]) -> Bytes {
    let mut out = Vec::with_capacity(1 + batch.len() * RECORD_BYTES);
    out.push(FORM);
    for waiting in batch {
        let (kind, id) = match waiting.request.query {
            LeaseQuery::Renew { id } => (RENEW, id),
            LeaseQuery::TimeToLive { id, .. } => (TIMES, id),
            LeaseQuery::List => (TIMES, 0),
        };
        write_record(&mut out, kind, id, number(waiting.after));
    }
    out.into()
}

fn read_queries(body: &[u8]) -> Option<Vec<Item>> {
    let item = |(kind, id, after)| {
        let query = match kind {
            RENEW => LeaseQuery::Renew { id },
            TIMES => LeaseQuery::TimeToLive { id, keys: false },
            _ => return None,
        };
        Some(Item { query, after: index(after), said: None })
    };
    records(body.strip_prefix(&[FORM])?)?.map(item).collect()
}

fn write_answers(applied: LogIndex, items: &[Item]) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + items.len() * RECORD_BYTES);
    out.push(ANSWER_FORM);
    out.extend_from_slice(&applied.0.to_be_bytes());
    for item in items {
        match item.said.unwrap_or(Said::Again(item.after)) {
            Said::NoLease => write_record(&mut out, NO_LEASE, 0, 0),
            Said::Renewed(ttl_s) => write_record(&mut out, RENEW, ttl_s, 0),
            Said::Times(TimeToLive { left_s, granted_s }) => {
                write_record(&mut out, TIMES, left_s, granted_s);
            }
            Said::Again(after) => write_record(&mut out, AGAIN, number(after), 0),
        }
    }
    out
}

/// What the leader had applied, and its answers; `None` unless there are exactly `count` of them.
fn read_answers(body: &[u8], count: usize) -> Option<(LogIndex, Vec<Said>)> {
    let (applied, body) = body.strip_prefix(&[ANSWER_FORM])?.split_first_chunk()?;
    let said = |(kind, first, second)| match kind {
        NO_LEASE => Some(Said::NoLease),
        RENEW => Some(Said::Renewed(first)),
        TIMES => Some(Said::Times(TimeToLive { left_s: first, granted_s: second })),
        AGAIN => Some(Said::Again(index(first))),
        _ => None,
    };
    let said: Option<Vec<Said>> = records(body)?.map(said).collect();
    let applied = LogIndex(u64::from_be_bytes(*applied));
    said.filter(|said| said.len() == count).map(|said| (applied, said))
}

#[cfg(test)]
mod tests {
    use super::super::Requester;
    use super::*;
    use crate::channel::LeaseRequest;

    #[test]
    fn questions_and_answers_are_read_as_they_were_written_and_nothing_else_is() {
        let ask = |query| LeaseRequest { slot: 3, deadline_ms: 9, query, asker: None };
        let renew = LeaseQuery::Renew { id: i64::MAX };
        let times = LeaseQuery::TimeToLive { id: -5, keys: false };
        let mut batch =
            [renew, times].map(|asked| Waiting::new(Requester::Front(0), 0, ask(asked)));
        batch[1].after = Some(LogIndex(1 << 40));
        let body = write_queries(&batch);
        let mut items = read_queries(&body).unwrap();
        assert_eq!((items[0].query, items[0].after), (renew, None));
        assert_eq!((items[1].query, items[1].after), (times, Some(LogIndex(1 << 40))));
        let all = [
            Said::Renewed(60),
            Said::NoLease,
            Said::Times(TimeToLive { left_s: -1, granted_s: 70 }),
            Said::Again(None),
        ];
        for said in all {
            items[0].said = Some(said);
            let answers = write_answers(LogIndex(9), &items);
            let expected = (LogIndex(9), vec![said, Said::Again(Some(LogIndex(1 << 40)))]);
            assert_eq!(read_answers(&answers, 2), Some(expected));
            assert_eq!(read_answers(&answers, 3), None);
            assert_eq!(read_answers(&answers[..answers.len() - 1], 2), None);
        }
        assert!(read_queries(&body[1..]).is_none() && read_queries(b"").is_none());
        assert!(read_queries(&[&[FORM][..], &[9; RECORD_BYTES]].concat()).is_none());
    }
}
