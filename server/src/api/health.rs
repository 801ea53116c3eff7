//! The gRPC health service (`grpc.health.v1`): the whole server is serving, as long as it answers.
//!
//! Its names and answers are those of etcd, which registers the whole server under the empty
//! name.

use std::sync::Arc;

use bytes::Bytes;
use etcore_proto::decode::{DecodeError, Fields, Value};
use etcore_proto::error::{Code, Status};
use etcore_proto::grpc::{Message, RequestMeta};
use etcore_proto::pb::etcdserverpb as pb;

use super::Cx;
use super::call::{Call, Outcome, Refusal, decode, malformed, malformed_message};
use crate::replies::{CallId, Caller};

/// HealthCheckResponse messages.
const SERVING: &[u8] = &[0x08, 1];
const SERVICE_UNKNOWN: &[u8] = &[0x08, 3];
/// A HealthListResponse: the whole server, whose name is empty, is SERVING.
const SERVING_ALL: &[u8] = &[0x0a, 6, 0x0a, 0, 0x12, 2, 0x08, 1];

/// Whether a message is a HealthCheckRequest.
pub(super) fn is_check(message: Message) -> Outcome {
    service_of(&message.into_bytes()).map(drop).map_err(malformed)
}

impl Cx<'_> {
    pub(super) fn health_check(&mut self, call: Call, message: Message) -> Outcome {
        match service_of(&message.into_bytes()).map_err(malformed)? {
            "" => {
                self.out.reply(call.id, SERVING);
                Ok(())
            }
            _ => Err(Refusal::Status(Status::new(Code::NotFound, "unknown service"))),
        }
    }

    pub(super) fn health_list(&mut self, call: Call, message: Message) -> Outcome {
        // Its request has no fields, like this one; what is in it must be protobuf.
        decode::<pb::StatusRequest>(message.into_bytes())?;
        self.out.reply(call.id, SERVING_ALL);
        Ok(())
    }

    pub(super) fn open_health_watch(&mut self, call: CallId, meta: &RequestMeta, _: &Arc<Caller>) {
        if let Err(error) = self.api.stream_gate(meta) {
            self.out.fail(call, &error.into());
        }
    }

    /// One message, then silence, since the state does not change.
    pub(super) fn health_watch(&mut self, call: CallId, message: Bytes) {
        let status = match service_of(&message) {
            Ok("") => SERVING,
            Ok(_) => SERVICE_UNKNOWN,
            // The method has one request, which grpc-go reads as it reads a stream's.
            Err(error) => return self.out.fail(call, &malformed_message(error)),
        };
        // An error means that the client is gone; the transport has noticed.
        let _ = self.out.send(call, status.len(), &mut |out| out.extend_from_slice(status));
    }
}

/// The `service` field of a HealthCheckRequest.
fn service_of(message: &[u8]) -> Result<&str, DecodeError> {
    let mut service = "";
    let mut fields = Fields::new(message);
    while let Some((field, value)) = fields.next_field()? {
        if let (1, Value::Len(range)) = (field, value) {
            service = std::str::from_utf8(&message[range]).map_err(|_| DecodeError::Utf8)?;
        }
    }
    Ok(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_request_names_its_service() {
        assert!(matches!(service_of(b""), Ok("")));
        assert!(matches!(service_of(b"\x0a\x01x"), Ok("x")));
        assert!(service_of(b"\x0a\x05x").is_err());
    }
}
