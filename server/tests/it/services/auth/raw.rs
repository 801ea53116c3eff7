//! Calls by their path with requests as bytes: what a call says is a line that can be compared.

use bytes::{Buf, BufMut, Bytes};
use etcore_proto::pb::etcdserverpb as pb;
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;

use crate::harness::Client;

/// A client's calls.
#[derive(Clone)]
pub struct Calls(pub Client);

/// Messages as they are.
#[derive(Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        let length = bytes.remaining();
        Ok(Some(bytes.copy_to_bytes(length)))
    }
}

impl Calls {
    /// The first answer of a call, as bytes.
    pub async fn answer(&self, path: &str, request: &[u8]) -> Result<Bytes, tonic::Status> {
        let mut grpc = self.0.grpc();
        grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let whole: PathAndQuery = format!("/etcdserverpb.{path}").parse().expect("a path");
        let request = Bytes::copy_from_slice(request);
        match path {
            "Watch/Watch" | "Lease/LeaseKeepAlive" => {
                // The client's side stays open: a watch would end with it.
                let (sender, requests) = tokio::sync::mpsc::channel(1);
                sender.send(request).await.expect("there is room");
                let requests =
                    tonic::codegen::tokio_stream::wrappers::ReceiverStream::new(requests);
                let call = grpc.streaming(self.0.request(requests), whole, Plain).await?;
                first(call.into_inner()).await
            }
            "KV/RangeStream" => {
                let call = grpc.server_streaming(self.0.request(request), whole, Plain).await?;
                first(call.into_inner()).await
            }
            _ => Ok(grpc.unary(self.0.request(request), whole, Plain).await?.into_inner()),
        }
    }

    /// What a call says: `OK`, or its code and text, or why a watcher was not made.
    pub async fn outcome(&self, path: &str, request: &[u8]) -> String {
        match self.answer(path, request).await {
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
            Ok(answer) if path == "Watch/Watch" => {
                let watch = pb::WatchResponse::decode(answer).expect("a WatchResponse");
                if watch.canceled { watch.cancel_reason } else { "OK".to_owned() }
            }
            Ok(_) => "OK".to_owned(),
        }
    }

    /// A call that must be answered well.
    pub async fn ok(&self, path: &str, request: &impl Message) {
        let outcome = self.outcome(path, &request.encode_to_vec()).await;
        assert_eq!(outcome, "OK", "{path}");
    }
}

async fn first(mut answers: tonic::Streaming<Bytes>) -> Result<Bytes, tonic::Status> {
    answers.message().await?.ok_or_else(|| tonic::Status::unknown("no answer"))
}
