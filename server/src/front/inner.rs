//! Calls that services make of each other: their answers wait here until the services take them.
//!
//! They are taken at every turn, so that what waits is what a turn may write.

use std::collections::{BTreeMap, VecDeque};

use etcore_proto::error::{EtcdError, Status};
use etcore_proto::grpc::MESSAGE_PREFIX_BYTES;

use crate::limits;
use crate::replies::{CallId, Gone, InnerAnswer};

/// See the module text.
#[derive(Default)]
pub(super) struct Inner {
    answers: VecDeque<(CallId, InnerAnswer)>,
    /// Messages that come in pieces, and what they lack.
    partial: BTreeMap<CallId, (Vec<u8>, usize)>,
}

impl Inner {
    pub(super) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    pub(super) fn take(&mut self) -> Option<(CallId, InnerAnswer)> {
        self.answers.pop_front()
    }

    /// Bytes that may be written at once: all that comes is taken.
    pub(super) fn capacity(&self) -> usize {
        limits::LOOPBACK_BYTES
    }

    pub(super) fn message(&mut self, call: CallId, message: Vec<u8>) {
        self.answers.push_back((call, InnerAnswer::Message(message)));
    }

    pub(super) fn framed(&mut self, call: CallId, mut framed: &[u8]) {
        while let Some((prefix, rest)) = framed.split_at_checked(MESSAGE_PREFIX_BYTES) {
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            let (message, behind) = rest.split_at(length.min(rest.len()));
            self.message(call, message.to_vec());
            framed = behind;
        }
    }

    pub(super) fn start(&mut self, call: CallId, length_bytes: usize) {
        self.partial.insert(call, (Vec::new(), length_bytes));
        if length_bytes == 0 {
            self.complete(call);
        }
    }

    pub(super) fn write(&mut self, call: CallId, piece: &[u8]) -> Result<(), Gone> {
        let (message, left) = self.partial.get_mut(&call).ok_or(Gone)?;
        message.extend_from_slice(piece);
        *left = left.saturating_sub(piece.len());
        if *left == 0 {
            self.complete(call);
        }
        Ok(())
    }

    fn complete(&mut self, call: CallId) {
        if let Some((message, _)) = self.partial.remove(&call) {
            self.message(call, message);
        }
    }

    pub(super) fn fail(&mut self, call: CallId, status: &Status) {
        self.partial.remove(&call);
        self.answers.push_back((call, InnerAnswer::Failed(status.clone())));
    }

    pub(super) fn abort(&mut self, call: CallId) {
        self.fail(call, &EtcdError::ContextCanceled.into());
    }
}
