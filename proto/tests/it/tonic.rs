//! tonic as the judge: its client against our server, and our client against its server, over
//! loopback sockets.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::common::{BIDI, COLLECT, COUNT, FAIL, FAILURE, HANG, LARGE, META, Service, UNARY};
use bytes::{Buf as _, BufMut as _};
use etcore_proto::grpc::{
    CallOptions, Client, ClientConfig, ClientEvent, Code, ServerConfig, StreamId,
};
use etcore_proto::h2::Budget;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::{Stream, StreamExt as _, iter};
use tonic::codegen::{BoxFuture, BoxStream, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

/// Messages as they are.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// Starts our server; connections are served until their clients leave.
fn our_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let budget = Budget::default();
        for socket in listener.incoming() {
            let service = Service::new(ServerConfig::default(), &budget);
            std::thread::spawn(move || serve(socket.unwrap(), service));
        }
    });
    address
}

fn serve(mut socket: TcpStream, mut service: Service) {
    let origin = Instant::now();
    let mut input = vec![0; 16 << 10];
    let mut output = Vec::new();
    while let Ok(count @ 1..) = socket.read(&mut input) {
        let now_ms = origin.elapsed().as_millis() as u64;
        let result = service.server.receive(&input[..count], now_ms);
        loop {
            service.turn();
            output.clear();
            service.server.poll_transmit(&mut output, 64 << 10);
            if output.is_empty() || socket.write_all(&output).is_err() {
                break;
            }
        }
        if result.is_err() {
            return;
        }
    }
}

async fn tonic_client() -> Grpc<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", our_server())).unwrap();
    let mut client = Grpc::new(endpoint.connect().await.unwrap())
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    client.ready().await.unwrap();
    client
}

fn path(text: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(text)
}

async fn unary(
    client: &mut Grpc<Channel>,
    method: &'static str,
    message: Vec<u8>,
) -> Result<Vec<u8>, Status> {
    client.ready().await.unwrap();
    client.unary(Request::new(message), path(method), Raw).await.map(Response::into_inner)
}

#[tokio::test]
async fn tonic_s_unary_calls_are_answered_at_every_size() {
    let mut client = tonic_client().await;
    for size in [0, 1, 264, 16_379, 16_384, 65_530, 65_536, 300_000, 2_000_000] {
        let message: Vec<u8> = (0..size).map(|index| (index * 7) as u8).collect();
        assert_eq!(unary(&mut client, UNARY, message.clone()).await.unwrap(), message, "{size}");
    }
    let large = unary(&mut client, LARGE, b"20000000".to_vec()).await.unwrap();
    assert_eq!(large.len(), 20_000_000);
}

#[tokio::test]
async fn tonic_sees_our_errors_with_code_and_text() {
    let mut client = tonic_client().await;
    let status = unary(&mut client, FAIL, vec![]).await.unwrap_err();
    assert_eq!((status.code() as i32, status.message()), (FAILURE.0 as i32, FAILURE.1));
    let status = unary(&mut client, "/test.Service/Nope", vec![]).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    let status = unary(&mut client, UNARY, vec![0; (2 << 20) + 1]).await.unwrap_err();
    let text = "grpc: received message larger than max (2097153 vs. 2097152)";
    assert_eq!((status.code(), status.message()), (tonic::Code::ResourceExhausted, text));
}

#[tokio::test]
async fn tonic_s_streams_of_all_kinds_work() {
    let mut client = tonic_client().await;
    let messages = || iter((0..100u8).map(|number| vec![number; 2_000]));
    let answer = client.client_streaming(Request::new(messages()), path(COLLECT), Raw).await;
    assert_eq!(answer.unwrap().into_inner(), b"100 200000");

    client.ready().await.unwrap();
    let request = Request::new(b"1000".to_vec());
    let answer = client.server_streaming(request, path(COUNT), Raw).await.unwrap().into_inner();
    let got: Vec<Vec<u8>> = answer.map(Result::unwrap).collect().await;
    assert_eq!((got.len(), got[999].as_slice()), (1_000, b"999".as_slice()));

    client.ready().await.unwrap();
    let answer = client.streaming(Request::new(messages()), path(BIDI), Raw).await.unwrap();
    let got: Vec<Vec<u8>> = answer.into_inner().map(Result::unwrap).collect().await;
    assert_eq!(got, messages().collect::<Vec<_>>().await);

    client.ready().await.unwrap();
    let failing = iter([b"one".to_vec(), b"fail".to_vec()]);
    let answer = client.streaming(Request::new(failing), path(BIDI), Raw).await.unwrap();
    let got: Vec<Result<Vec<u8>, Status>> = answer.into_inner().collect().await;
    assert_eq!(got[0].as_deref().unwrap(), b"one");
    assert_eq!(got[1].as_ref().unwrap_err().message(), FAILURE.1);
}

#[tokio::test]
async fn tonic_s_gzip_is_understood_and_answered() {
    let client = tonic_client().await;
    let mut client = client
        .send_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Gzip);
    let message = vec![b'q'; 1_000_000];
    assert_eq!(unary(&mut client, UNARY, message.clone()).await.unwrap(), message);
    let both = iter(vec![message.clone(); 3]);
    client.ready().await.unwrap();
    let answer = client.streaming(Request::new(both), path(BIDI), Raw).await.unwrap();
    let got: Vec<Vec<u8>> = answer.into_inner().map(Result::unwrap).collect().await;
    assert_eq!(got, vec![message; 3]);
}

#[tokio::test]
async fn tonic_s_metadata_deadline_and_cancellation_arrive() {
    let mut client = tonic_client().await;
    let mut request = Request::new(vec![]);
    request.set_timeout(Duration::from_secs(60));
    request.metadata_mut().insert("token", "abc".parse().unwrap());
    let binary = tonic::metadata::MetadataValue::from_bytes(&[0, 1, 255]);
    request.metadata_mut().insert_bin("custom-bin", binary);
    let text = client.unary(request, path(META), Raw).await.unwrap().into_inner();
    let text = String::from_utf8(text).unwrap();
    for part in ["deadline_ms: Some(6", "token: Some(b\"abc\")"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    client.ready().await.unwrap();
    let mut request = Request::new(vec![]);
    request.set_timeout(Duration::from_millis(50));
    client.unary(request, path(HANG), Raw).await.unwrap_err();
    // The connection goes on.
    assert_eq!(unary(&mut client, UNARY, b"x".to_vec()).await.unwrap(), b"x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_of_tonic_share_a_connection() {
    let client = tonic_client().await;
    let mut tasks = Vec::new();
    for number in 0..500u32 {
        let mut client = client.clone();
        tasks.push(tokio::spawn(async move {
            let message = vec![number as u8; (number as usize * 97) % 30_000];
            let answer = unary(&mut client, UNARY, message.clone()).await.unwrap();
            assert_eq!(answer, message);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// The judge's service: echoes, fails, hangs, counts, as ours does.
#[derive(Debug, Clone)]
struct Judge;

type Messages = BoxStream<Vec<u8>>;

impl tonic::codegen::Service<Request<Vec<u8>>> for Judge {
    type Response = Response<Vec<u8>>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        Box::pin(async move {
            match request.get_ref().as_slice() {
                b"fail" => Err(Status::failed_precondition(FAILURE.1)),
                b"hang" => std::future::pending().await,
                _ => Ok(Response::new(request.into_inner())),
            }
        })
    }
}

/// Both streaming kinds of the judge.
#[derive(Debug, Clone)]
struct JudgeStream;

impl tonic::codegen::Service<Request<Streaming<Vec<u8>>>> for JudgeStream {
    type Response = Response<Messages>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Vec<u8>>>) -> Self::Future {
        let echoes = request.into_inner().map(|message| match message {
            Ok(message) if message == b"fail" => Err(Status::failed_precondition(FAILURE.1)),
            message => message,
        });
        Box::pin(async move { Ok(Response::new(Box::pin(echoes) as Messages)) })
    }
}

impl tonic::server::NamedService for Judge {
    const NAME: &'static str = "test.Service";
}

impl tonic::codegen::Service<http::Request<tonic::body::Body>> for Judge {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Raw)
                .max_decoding_message_size(usize::MAX)
                .accept_compressed(CompressionEncoding::Gzip)
                .send_compressed(CompressionEncoding::Gzip);
            Ok(match request.uri().path() {
                UNARY => grpc.unary(Judge, request).await,
                BIDI => grpc.streaming(JudgeStream, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

/// Runs the judge's server; returns our client connected to it.
async fn our_client() -> (Client, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = Incoming(listener);
    tokio::spawn(
        tonic::transport::Server::builder().add_service(Judge).serve_with_incoming(incoming),
    );
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (Client::new(ClientConfig::default(), &Budget::default()), socket)
}

struct Incoming(tokio::net::TcpListener);

impl Stream for Incoming {
    type Item = std::io::Result<tokio::net::TcpStream>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        self.0.poll_accept(context).map(|result| Some(result.map(|(socket, _)| socket)))
    }
}

/// The messages of a call, and its status once it is over.
type Outcome = (Vec<Vec<u8>>, Option<(Code, String)>);

/// Pumps until `calls` are over; returns the messages and the status of each.
fn pump(
    client: &mut Client,
    socket: &mut TcpStream,
    calls: &[StreamId],
) -> Vec<(Vec<Vec<u8>>, Code, String)> {
    let mut results: Vec<Outcome> = calls.iter().map(|_| (Vec::new(), None)).collect();
    let mut wire = Vec::new();
    let mut input = vec![0; 64 << 10];
    loop {
        loop {
            wire.clear();
            let more = client.poll_transmit(&mut wire, usize::MAX);
            socket.write_all(&wire).unwrap();
            if !more {
                break;
            }
        }
        while let Some(event) = client.next_event() {
            let place = |stream| calls.iter().position(|call| *call == stream).unwrap();
            match event {
                ClientEvent::Response { stream, message, .. } => {
                    results[place(stream)] =
                        (vec![message.to_vec()], Some((Code::Ok, String::new())));
                }
                ClientEvent::Message { stream, message, .. } => {
                    results[place(stream)].0.push(message.to_vec());
                }
                ClientEvent::Status { stream, code, message, .. } => {
                    results[place(stream)].1 = Some((code, message));
                }
                _ => {}
            }
        }
        if results.iter().all(|(_, status)| status.is_some()) {
            let flatten = |(messages, status): (_, Option<(Code, String)>)| {
                let (code, text) = status.unwrap();
                (messages, code, text)
            };
            return results.into_iter().map(flatten).collect();
        }
        let count = socket.read(&mut input).unwrap();
        assert!(count > 0, "the server closed the connection");
        client.receive(&input[..count], 0).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_unary_calls_are_answered_by_tonic() {
    let (mut client, mut socket) = our_client().await;
    let method = client.method(UNARY);
    for gzip in [false, true] {
        let options = CallOptions { gzip, ..CallOptions::default() };
        let sizes = [0, 1, 264, 16_384, 70_000, 1_000_000, 9_000_000];
        let calls: Vec<_> = sizes
            .iter()
            .map(|size| client.start_unary(method, &options, &vec![*size as u8; *size]).unwrap())
            .collect();
        let results = pump(&mut client, &mut socket, &calls);
        for ((messages, code, text), size) in results.into_iter().zip(sizes) {
            assert_eq!((code, text.as_str()), (Code::Ok, ""));
            assert_eq!(messages, [vec![size as u8; size]]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_reads_tonic_s_errors_and_deadlines() {
    let (mut client, mut socket) = our_client().await;
    let unary = client.method(UNARY);
    let nope = client.method("/test.Service/Nope");
    let missing = client.method("/other.Service/Nope");
    let options = CallOptions::default();
    let timed = CallOptions { timeout_ms: Some(50), ..options };
    let calls = [
        client.start_unary(unary, &options, b"fail").unwrap(),
        client.start_unary(nope, &options, b"").unwrap(),
        client.start_unary(missing, &options, b"").unwrap(),
        client.start_unary(unary, &timed, b"hang").unwrap(),
    ];
    let results = pump(&mut client, &mut socket, &calls);
    assert_eq!((results[0].1, results[0].2.as_str()), FAILURE);
    assert_eq!((results[1].1, results[1].2.as_str()), (Code::Unimplemented, "no such method"));
    assert_eq!(results[2].1, Code::Unimplemented);
    assert!(matches!(results[3].1, Code::Canceled | Code::DeadlineExceeded), "{results:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_streams_work_with_tonic() {
    let (mut client, mut socket) = our_client().await;
    let bidi = client.method(BIDI);
    for gzip in [false, true] {
        let options = CallOptions { gzip, ..CallOptions::default() };
        let good = client.start_stream(bidi, &options).unwrap();
        let bad = client.start_stream(bidi, &options).unwrap();
        let messages: Vec<_> = (0..200u8).map(|number| vec![number; 3_000]).collect();
        for message in &messages {
            client.send_message(good, message).unwrap();
        }
        client.half_close(good).unwrap();
        client.send_message(bad, b"one").unwrap();
        client.send_message(bad, b"fail").unwrap();
        let cancelled = client.start_stream(bidi, &options).unwrap();
        client.send_message(cancelled, b"two").unwrap();
        client.cancel(cancelled);
        let mut results = pump(&mut client, &mut socket, &[good, bad]);
        let (failed, code, text) = results.pop().unwrap();
        assert_eq!((failed, code, text.as_str()), (vec![b"one".to_vec()], FAILURE.0, FAILURE.1));
        let (echoed, code, _) = results.pop().unwrap();
        assert_eq!((echoed, code), (messages, Code::Ok));
        assert_eq!(client.open_streams(), 0);
    }
}
