//! Calls that come earlier than the entry by which their token was given out: a client may log in
//! at one member and go on at another, which applies the login a little later.
//!
//! They wait for that entry, as in etcd. How many do is bounded, since anybody can make up such a
//! token; whoever would wait beyond is told that it is invalid.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcore_engine::types::LogIndex;
use etcore_proto::error::EtcdError;
use etcore_proto::grpc::MethodId;

use super::Services;
use super::call::{Call, Outcome, Refusal};
use super::pending::{CallKind, TakeMessage};
use super::routes::Unary;
use crate::limits;
use crate::replies::{CallId, Caller};

/// What waits.
#[derive(Default)]
pub(super) struct Early {
    calls: usize,
    bytes: usize,
}

impl Early {
    fn begin(&mut self, bytes: usize) -> Result<(), EtcdError> {
        let fits =
            self.calls < limits::TOKEN_WAITERS && self.bytes + bytes <= limits::TOKEN_WAITERS_BYTES;
        if !fits {
            return Err(EtcdError::InvalidAuthToken);
        }
        self.calls += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// One with so many bytes waits no more.
    pub(super) fn ended(&mut self, bytes: usize) {
        self.calls -= 1;
        self.bytes -= bytes;
    }
}

impl Services {
    /// A unary call waits for the entry at this index, by which its token is given out.
    ///
    /// # Errors
    /// Why it may not wait.
    pub(super) fn put_off(&mut self, unary: Unary, index: u64) -> Result<(), EtcdError> {
        let (call, bytes) = (unary.call.clone(), unary.message.len());
        self.wait_for_token(call, bytes, index, CallKind::Early(Box::new(unary)))
    }

    /// A message of a stream waits in the same way; `take` takes it then.
    pub(super) fn put_off_message(
        &mut self,
        id: CallId,
        caller: &Arc<Caller>,
        message: Bytes,
        take: TakeMessage,
    ) -> Outcome {
        let Some(index) = self.comes_early(caller) else { return Ok(()) };
        let call = Call {
            id,
            deadline_ms: None,
            caller: caller.clone(),
            // Nobody is told of single messages.
            method: MethodId(0),
            began: Duration::from_millis(self.now_ms),
            asked: None,
        };
        let bytes = message.len();
        self.wait_for_token(call, bytes, index, CallKind::EarlyMessage(Box::new((message, take))))?;
        Err(Refusal::Waiting)
    }

    fn wait_for_token(
        &mut self,
        call: Call,
        bytes: usize,
        index: u64,
        kind: CallKind,
    ) -> Result<(), EtcdError> {
        self.early.begin(bytes)?;
        let pending = self.pending_call(call, kind);
        let Ok(slot) = self.pending.insert(pending) else {
            self.early.ended(bytes);
            return Err(EtcdError::TooManyRequests);
        };
        self.pending.wait_for_index(slot, LogIndex(index));
        Ok(())
    }
}
