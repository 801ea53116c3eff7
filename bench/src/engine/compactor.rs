//! The compactions of `put --compact-interval`, beside the load.
//!
//! Owned by one worker, on its first connection that lives: asks for the revision, then compacts so
//! many revisions below it. Its calls are no requests of the load; its failures are listed among
//! the errors. Must never have more than one call on its way.

use bytes::Bytes;
use etcore_proto::grpc::{CallOptions, StartError};
use etcore_proto::pb::etcdserverpb::{CompactionRequest, RangeRequest, RangeResponse};
use prost::Message as _;

use super::conn::Conn;
use crate::options::PutOptions;

/// What the events of its calls carry in place of a client's number.
pub(super) const USER: u64 = u64::MAX;

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// The revision is asked for.
    Asking,
    /// The revision is known and to be compacted.
    Found(i64),
    /// The compaction is on its way.
    Compacting,
}

/// Compacts now and then.
#[derive(Debug)]
pub(super) struct Compactor {
    interval_ns: u64,
    delta: i64,
    next_ns: u64,
    state: State,
}

impl Compactor {
    /// None if no compaction is asked for.
    pub(super) fn new(options: &PutOptions) -> Option<Self> {
        let interval_ns = u64::try_from(options.compact_interval.as_nanos()).ok()?;
        (interval_ns > 0).then_some(Compactor {
            interval_ns,
            delta: options.compact_delta,
            next_ns: interval_ns,
            state: State::Waiting,
        })
    }

    /// When it has something to do without an answer.
    pub(super) fn due_ns(&self) -> Option<u64> {
        match self.state {
            State::Waiting => Some(self.next_ns),
            State::Found(_) => Some(0),
            State::Asking | State::Compacting => None,
        }
    }

    /// Does what is due; call only then.
    pub(super) fn act(&mut self, conn: &mut Conn, now_ns: u64) -> Result<(), StartError> {
        let options = CallOptions { user: USER, ..CallOptions::default() };
        match self.state {
            State::Found(revision) if revision > 0 => {
                self.state = State::Compacting;
                let request = CompactionRequest { revision, physical: false };
                let method = conn.methods.compact;
                conn.client.start_unary(method, &options, &request.encode_to_vec())?;
            }
            State::Found(_) => self.rest(now_ns),
            State::Waiting => {
                self.state = State::Asking;
                let key = Bytes::from_static(b"foo");
                let request = RangeRequest { key, count_only: true, ..RangeRequest::default() };
                let method = conn.methods.range();
                conn.client.start_unary(method, &options, &request.encode_to_vec())?;
            }
            State::Asking | State::Compacting => {}
        }
        Ok(())
    }

    /// Takes the answer to its call.
    pub(super) fn answered(&mut self, message: Bytes, now_ns: u64) {
        match (self.state, RangeResponse::decode(message)) {
            (State::Asking, Ok(response)) => {
                let revision = response.header.map_or(0, |header| header.revision);
                self.state = State::Found(revision.saturating_sub(self.delta));
            }
            _ => self.rest(now_ns),
        }
    }

    /// Waits for the next time, after a compaction or a failure.
    pub(super) fn rest(&mut self, now_ns: u64) {
        self.state = State::Waiting;
        self.next_ns = now_ns.saturating_add(self.interval_ns);
    }
}
