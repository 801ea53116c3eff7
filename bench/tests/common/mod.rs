//! A server that behaves as a test says, on real sockets, one thread per connection.
//!
//! Used by the integration tests, in process. It knows just enough of etcd's API to be loaded.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcore_proto::grpc::{Code, MethodId, Routes, Server, ServerConfig, ServerEvent, StreamId};
use etcore_proto::h2::Budget;
use etcore_proto::pb::etcdserverpb::{
    CompactionRequest, PutRequest, PutResponse, RangeRequest, RangeResponse, RangeStreamResponse,
    ResponseHeader, StatusResponse,
};
use etcore_proto::pb::mvccpb::KeyValue;
use prost::Message as _;

const PUT: MethodId = MethodId(0);
const RANGE: MethodId = MethodId(1);
const RANGE_STREAM: MethodId = MethodId(2);
const COMPACT: MethodId = MethodId(3);
const STATUS: MethodId = MethodId(4);

/// The text of provoked failures.
pub(crate) const FAILURE: &str = "etcdserver: request timed out";

/// How the server is to behave.
#[derive(Debug, Clone)]
pub(crate) struct Behaviour {
    pub(crate) leader: bool,
    /// Every so-manieth request fails, none if 0.
    pub(crate) fail_every: usize,
    /// The connection that brings this request is closed before the answer.
    pub(crate) close_at: Option<usize>,
    pub(crate) think: Duration,
    pub(crate) streams_max: u32,
    /// Pages of a range.
    pub(crate) pages: i64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour {
            leader: true,
            fail_every: 0,
            close_at: None,
            think: Duration::ZERO,
            streams_max: u32::MAX,
            pages: 1,
        }
    }
}

/// What the server saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) puts: Mutex<Vec<PutRequest>>,
    pub(crate) ranges: Mutex<Vec<RangeRequest>>,
    pub(crate) streams: AtomicUsize,
    pub(crate) compactions: Mutex<Vec<i64>>,
    pub(crate) conns: AtomicUsize,
    requests: AtomicUsize,
}

/// A server, for the rest of the test.
#[derive(Debug)]
pub(crate) struct Fake {
    /// `host:port`.
    pub(crate) address: String,
    pub(crate) seen: Arc<Seen>,
}

impl Fake {
    pub(crate) fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (behaviour, seen) = (behaviour.clone(), Arc::clone(&shared));
                seen.conns.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || serve(socket.unwrap(), &behaviour, &seen));
            }
        });
        Fake { address, seen }
    }
}

/// Runs the tool in process; exit status, report and complaints.
pub(crate) fn benchmark(line: &str) -> (u8, String, String) {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = etcore_bench::run(&words, &mut out, &mut err, false);
    (status, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// The number after `"name":` in a JSON report; the first, if there are more.
pub(crate) fn figure(json: &str, name: &str) -> f64 {
    let start = json.find(&format!("\"{name}\":")).unwrap_or_else(|| panic!("no {name}: {json}"));
    let rest = &json[start + name.len() + 3..];
    let end = rest.find([',', '}', ']']).unwrap();
    rest[..end].parse().unwrap_or_else(|_| panic!("{name} is no number: {json}"))
}

fn routes() -> Arc<Routes> {
    let routes = Routes::new([
        ("/etcdserverpb.KV/Put", PUT, false),
        ("/etcdserverpb.KV/Range", RANGE, false),
        ("/etcdserverpb.KV/RangeStream", RANGE_STREAM, true),
        ("/etcdserverpb.KV/Compact", COMPACT, false),
        ("/etcdserverpb.Maintenance/Status", STATUS, false),
    ]);
    Arc::new(routes.unwrap())
}

/// Ends with the connection.
fn serve(mut socket: TcpStream, behaviour: &Behaviour, seen: &Seen) {
    socket.set_nodelay(true).unwrap();
    let mut config = ServerConfig::default();
    config.h2.concurrent_streams_max = behaviour.streams_max;
    let mut server = Server::new(config, routes(), &Budget::default());
    let origin = Instant::now();
    let mut input = vec![0; 64 << 10];
    let mut output = Vec::new();
    loop {
        let count = match socket.read(&mut input) {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let now_ms = origin.elapsed().as_millis() as u64;
        server.receive(&input[..count], now_ms).unwrap();
        let mut events = Vec::new();
        while let Some(event) = server.next_event() {
            events.push(event);
        }
        if !events.is_empty() && !behaviour.think.is_zero() {
            std::thread::sleep(behaviour.think);
        }
        for event in events {
            let request = match event {
                ServerEvent::Unary { stream, method, message, .. } => {
                    (stream, method, message.into_bytes())
                }
                ServerEvent::StreamMessage { stream, message, .. } => {
                    (stream, RANGE_STREAM, message)
                }
                _ => continue,
            };
            let number = seen.requests.fetch_add(1, Ordering::Relaxed) + 1;
            if behaviour.close_at.is_some_and(|at| number >= at) {
                return;
            }
            let fails = behaviour.fail_every > 0 && number.is_multiple_of(behaviour.fail_every);
            answer(&mut server, request, fails, behaviour, seen);
        }
        output.clear();
        server.poll_transmit(&mut output, usize::MAX);
        if socket.write_all(&output).is_err() {
            return;
        }
    }
}

fn answer(
    server: &mut Server,
    (stream, method, message): (StreamId, MethodId, Bytes),
    fails: bool,
    behaviour: &Behaviour,
    seen: &Seen,
) {
    if fails && method != STATUS {
        server.reply_error(stream, Code::Unavailable, FAILURE).unwrap();
        return;
    }
    let header = ResponseHeader { member_id: 7, revision: 5_000, ..ResponseHeader::default() };
    match method {
        PUT => {
            seen.puts.lock().unwrap().push(PutRequest::decode(message).unwrap());
            let response = PutResponse { header: Some(header), ..PutResponse::default() };
            server.reply_unary(stream, &response.encode_to_vec()).unwrap();
        }
        RANGE => {
            let response = page(RangeRequest::decode(message).unwrap(), header, behaviour, seen);
            server.reply_unary(stream, &response.encode_to_vec()).unwrap();
        }
        RANGE_STREAM => {
            seen.streams.fetch_add(1, Ordering::Relaxed);
            for _ in 0..behaviour.pages {
                let response =
                    page(RangeRequest::decode(message.clone()).unwrap(), header, behaviour, seen);
                let piece = RangeStreamResponse { range_response: Some(response) };
                server.send_message(stream, &piece.encode_to_vec()).unwrap();
            }
            server.finish(stream, Code::Ok, "").unwrap();
        }
        COMPACT => {
            let request = CompactionRequest::decode(message).unwrap();
            seen.compactions.lock().unwrap().push(request.revision);
            server.reply_unary(stream, b"").unwrap();
        }
        _ => {
            let leader = if behaviour.leader { 7 } else { 8 };
            let response =
                StatusResponse { header: Some(header), leader, ..StatusResponse::default() };
            server.reply_unary(stream, &response.encode_to_vec()).unwrap();
        }
    }
}

/// Answers with one key per page, which is the number of the page after the asked key.
fn page(
    request: RangeRequest,
    header: ResponseHeader,
    behaviour: &Behaviour,
    seen: &Seen,
) -> RangeResponse {
    let before = request.key.strip_suffix(b"\0").and_then(|key| key.last().copied()).unwrap_or(0);
    let number = before + 1;
    seen.ranges.lock().unwrap().push(request);
    let kv = KeyValue { key: Bytes::from(vec![b'k', number]), ..KeyValue::default() };
    RangeResponse {
        header: Some(header),
        kvs: vec![kv],
        more: i64::from(number) < behaviour.pages,
        ..RangeResponse::default()
    }
}
