//! A call as the services see it: what names it, who asks, and until when; and why it is not
//! answered at once.
//!
//! Made by the front for every request, kept with whatever of it waits.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcore_proto::decode::{DecodeError, Flat};
use etcore_proto::error::{Code, EtcdError, Status};
use etcore_proto::grpc::{MethodId, RequestMeta};

use super::stats::Asked;
use crate::entry;
use crate::replies::{CallId, Caller};

/// A call that is to be answered. It goes by value from hand to hand, so it
/// is short enough to be copied in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Answer here.
    pub id: CallId,
    /// When the client stops waiting, on our clock; `None` if it does not.
    pub deadline_ms: Option<u64>,
    /// Who asks; shared by all calls of a connection that bring no token.
    pub caller: Arc<Caller>,
    /// Its method.
    pub method: MethodId,
    /// When it came, on our clock.
    pub began: Duration,
    /// What it asks, if that is kept to be told of.
    pub(super) asked: Option<Box<Asked>>,
}

const _: () = assert!(size_of::<Call>() <= 72);

impl Call {
    /// The call that these metadata came with.
    #[must_use]
    pub fn new(
        id: CallId,
        method: MethodId,
        meta: &RequestMeta,
        caller: Arc<Caller>,
        began: Duration,
    ) -> Self {
        Self { id, deadline_ms: meta.deadline_ms, caller, method, began, asked: None }
    }
}

/// Why a call is not answered right away.
pub(super) enum Refusal {
    /// Answer with this.
    Status(Status),
    /// It is no request of its method; answer with this.
    Malformed(Status),
    /// It waits; nothing to answer yet.
    Waiting,
}

impl From<EtcdError> for Refusal {
    fn from(error: EtcdError) -> Self {
        Self::Status(error.into())
    }
}

/// What came of a call so far; `Ok` if it was answered.
pub(super) type Outcome = Result<(), Refusal>;

/// grpc-go's words for the request of a unary call that is no protobuf.
pub(super) fn malformed(error: DecodeError) -> Refusal {
    let text = format!("grpc: error unmarshalling request: {error}");
    Refusal::Malformed(Status::new(Code::Internal, text))
}

/// grpc-go's words for such a message of a stream.
pub(super) fn malformed_message(error: DecodeError) -> Status {
    let text = format!("grpc: failed to unmarshal the received message: {error}");
    Status::new(Code::Internal, text)
}

/// Decodes a request as apply would.
pub(super) fn decode<M: Flat>(message: Bytes) -> Result<M, Refusal> {
    entry::request(message).map_err(malformed)
}
