//! Histories written by hand, briefly. Times are in milliseconds, revisions start at 1.

use etcore_history::types::{
    Answer, Batch, Delete, Event, Get, Kv, Operation, Outcome, Put, Request, Watch,
};
use etcore_history::{History, KeyRange};

const MILLIS: u64 = 1_000_000;

/// A history, one client for each call.
#[derive(Default)]
pub(crate) struct Builder(pub(crate) History);

pub(crate) fn kv(key: &str, value: &str, create: i64, modified: i64, version: i64) -> Kv {
    Kv { key: key.into(), value: value.into(), create, modified, version, lease: 0 }
}

pub(crate) fn put(key: &str, value: &str) -> Request {
    Request::Put(Put { key: key.into(), value: value.into(), ..Put::default() })
}

pub(crate) fn put_leased(key: &str, value: &str, lease: i64) -> Request {
    Request::Put(Put { key: key.into(), value: value.into(), lease, prev_kv: false })
}

pub(crate) fn get(key: &str) -> Request {
    Request::Get(Get { range: KeyRange::one(key), ..Get::default() })
}

pub(crate) fn get_at(key: &str, revision: i64) -> Request {
    Request::Get(Get { range: KeyRange::one(key), revision, ..Get::default() })
}

pub(crate) fn get_serializable(key: &str) -> Request {
    Request::Get(Get { range: KeyRange::one(key), serializable: true, ..Get::default() })
}

pub(crate) fn delete(key: &str) -> Request {
    Request::Delete(Delete { range: KeyRange::one(key), prev_kv: false })
}

pub(crate) fn written(revision: i64) -> Outcome {
    Outcome::Known(Answer::Put { revision, prev: None })
}

pub(crate) fn deleted(revision: i64, deleted: i64) -> Outcome {
    Outcome::Known(Answer::Delete { revision, deleted, prev: Vec::new() })
}

pub(crate) fn found(revision: i64, kvs: &[Kv]) -> Outcome {
    let count = i64::try_from(kvs.len()).unwrap();
    Outcome::Known(Answer::Get { revision, kvs: kvs.to_vec(), more: false, count })
}

pub(crate) fn event(key: &str, value: &str, modified: i64, version: i64) -> Event {
    let create = modified - version + 1;
    Event { delete: false, kv: kv(key, value, create, modified, version), prev: None }
}

pub(crate) fn removal(key: &str, modified: i64) -> Event {
    Event { delete: true, kv: kv(key, "", 0, modified, 0), prev: None }
}

impl Builder {
    /// Adds a call from one moment to another.
    pub(crate) fn call(
        mut self,
        (from, to): (u64, u64),
        request: Request,
        outcome: Outcome,
    ) -> Self {
        let client = u64::try_from(self.0.operations.len()).unwrap();
        let (invoke, ret) = (from * MILLIS, to * MILLIS);
        let operation = Operation { client, member: 0, invoke, ret, request, outcome };
        self.0.operations.push(operation);
        self
    }

    /// The same at another run of the member.
    pub(crate) fn call_at(
        self,
        member: u64,
        times: (u64, u64),
        request: Request,
        outcome: Outcome,
    ) -> Self {
        let mut builder = self.call(times, request, outcome);
        builder.0.operations.last_mut().unwrap().member = member;
        builder
    }

    /// Adds a watch of all keys from a revision on; each response is a header and its events.
    pub(crate) fn watch(mut self, start: i64, responses: Vec<(i64, Vec<Event>)>) -> Self {
        let batches = responses.into_iter().map(|(revision, events)| Batch {
            at: 900 * MILLIS,
            revision,
            fragment: false,
            events,
        });
        self.0.watches.push(Watch {
            client: 99,
            member: 0,
            range: KeyRange::all(),
            start,
            created: 1,
            prev_kv: false,
            fragment: false,
            batches: batches.collect(),
        });
        self
    }

    /// Three writes of one key each, one after the other: a, b, a again.
    pub(crate) fn three() -> Self {
        Builder::default()
            .call((0, 10), put("a", "1"), written(2))
            .call((20, 30), put("b", "2"), written(3))
            .call((40, 50), put("a", "3"), written(4))
    }
}
