//! A watch stream of the test client.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use etcore_proto::pb::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::Stream;
use tonic_prost::ProstCodec;

use super::{Client, Setup};

/// An open stream; dropping it cancels it.
pub struct Watch {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

struct Requests(mpsc::Receiver<pb::WatchRequest>);

impl Stream for Requests {
    type Item = pb::WatchRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

impl Watch {
    /// On a connection of its own.
    pub async fn connect(setup: &Setup) -> Self {
        Self::open(&Client::connect(setup).await).await
    }

    /// On the client's connection.
    pub async fn open(client: &Client) -> Self {
        let (requests, receiver) = mpsc::channel(64);
        let mut grpc = Grpc::new(client.channel.clone()).max_decoding_message_size(usize::MAX);
        grpc.ready().await.expect("connected");
        let codec: ProstCodec<pb::WatchRequest, pb::WatchResponse> = ProstCodec::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        // The head of the answer comes with the first response: ask for something that is ignored
        // by nobody and answered by none.
        let request = tonic::Request::new(Requests(receiver));
        let call = tokio::spawn(async move { grpc.streaming(request, path, codec).await });
        let first = pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
                key: "\u{1}never written".into(),
                watch_id: i64::MAX,
                ..Default::default()
            })),
        };
        requests.send(first).await.expect("open");
        let mut responses = call.await.expect("no panic").expect("a stream").into_inner();
        assert!(responses.message().await.expect("a response").expect("one").created);
        let watch = Self { requests, responses };
        let cancel = pb::WatchCancelRequest { watch_id: i64::MAX };
        watch.ask(RequestUnion::CancelRequest(cancel)).await;
        let mut watch = watch;
        assert!(watch.next().await.expect("a response").canceled);
        watch
    }

    pub async fn ask(&self, union: RequestUnion) {
        let request = pb::WatchRequest { request_union: Some(union) };
        self.requests.send(request).await.expect("the stream is open");
    }

    pub async fn create(&self, request: pb::WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(request)).await;
    }

    /// The next response, which must come soon, or how the stream ended.
    pub async fn next(&mut self) -> Result<pb::WatchResponse, tonic::Status> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.responses.message());
        match next.await.expect("a response within 20 s")? {
            Some(response) => Ok(response),
            None => Err(tonic::Status::ok("the stream ended")),
        }
    }

    /// `None` if nothing comes for so long.
    pub async fn nothing_for(&mut self, millis: u64) -> Option<pb::WatchResponse> {
        let next = tokio::time::timeout(Duration::from_millis(millis), self.responses.message());
        next.await.ok().map(|response| response.expect("the stream is open").expect("one"))
    }
}
