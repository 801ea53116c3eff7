//! `watch-latency` against a server on real sockets: who is created, what is put, what is told.

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{benchmark, figure};
use etcore_proto::grpc::{Code, MethodId, Routes, Server, ServerConfig, ServerEvent, StreamId};
use etcore_proto::h2::Budget;
use etcore_proto::pb::etcdserverpb::watch_request::RequestUnion;
use etcore_proto::pb::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use etcore_proto::pb::mvccpb::{Event, KeyValue};
use prost::Message as _;

const PUT: MethodId = MethodId(0);
const WATCH: MethodId = MethodId(1);

/// What all connections see.
#[derive(Default)]
struct Shared {
    puts: Mutex<Vec<PutRequest>>,
    creates: Mutex<Vec<WatchCreateRequest>>,
    /// Streams end with this at their second request.
    failure: Option<&'static str>,
}

fn start(failure: Option<&'static str>) -> (String, Arc<Shared>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let shared = Arc::new(Shared { failure, ..Shared::default() });
    let seen = Arc::clone(&shared);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || serve(socket.unwrap(), &seen));
        }
    });
    (address, shared)
}

/// Ends with the connection.
fn serve(mut socket: TcpStream, shared: &Shared) {
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    let routes = [("/etcdserverpb.KV/Put", PUT, false), ("/etcdserverpb.Watch/Watch", WATCH, true)];
    let routes = Arc::new(Routes::new(routes).unwrap());
    let mut server = Server::new(ServerConfig::default(), routes, &Budget::default());
    let mut watchers: Vec<(StreamId, WatchCreateRequest)> = Vec::new();
    let (mut input, mut told) = (vec![0; 64 << 10], 0);
    loop {
        match socket.read(&mut input) {
            Ok(0) => return,
            Ok(count) => server.receive(&input[..count], 0).unwrap(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        while let Some(event) = server.next_event() {
            match event {
                ServerEvent::Unary { stream, message, .. } => {
                    server.reply_unary(stream, b"").unwrap();
                    shared.puts.lock().unwrap().push(PutRequest::decode(&message[..]).unwrap());
                }
                ServerEvent::StreamMessage { stream, message, .. } => {
                    let request = WatchRequest::decode(message).unwrap();
                    let Some(RequestUnion::CreateRequest(create)) = request.request_union else {
                        panic!("only watchers are asked for");
                    };
                    if let Some(text) = shared.failure {
                        let _ = server.reply_error(stream, Code::Unavailable, text);
                        continue;
                    }
                    shared.creates.lock().unwrap().push(create.clone());
                    watchers.push((stream, create));
                    let created = WatchResponse { created: true, ..Default::default() };
                    server.send_message(stream, &created.encode_to_vec()).unwrap();
                }
                _ => {}
            }
        }
        for put in &shared.puts.lock().unwrap()[told..] {
            told += 1;
            let kv =
                KeyValue { key: put.key.clone(), value: put.value.clone(), ..KeyValue::default() };
            let event = Event { kv: Some(kv), ..Event::default() };
            let response = WatchResponse { events: vec![event], ..Default::default() };
            for (stream, create) in &watchers {
                if create.key == put.key || !create.range_end.is_empty() {
                    server.send_message(*stream, &response.encode_to_vec()).unwrap();
                }
            }
        }
        let mut output = Vec::new();
        server.poll_transmit(&mut output, usize::MAX);
        if socket.write_all(&output).is_err() {
            return;
        }
    }
}

#[test]
fn every_watcher_of_a_key_gets_its_puts_and_each_is_counted() {
    let (address, shared) = start(None);
    let (status, report, complaints) = benchmark(&format!(
        "--endpoints={address} --conns=3 --json watch-latency --streams=25 \
         --watchers-per-stream=2 --key-space-size=10 --put-total=95 --put-rate=500 --val-size=64 \
         --prevkv"
    ));
    assert_eq!((status, complaints.as_str()), (0, ""), "{report}");
    let creates = shared.creates.lock().unwrap();
    assert!(creates.len() == 50 && creates.iter().all(|create| create.prev_kv));
    let puts = shared.puts.lock().unwrap();
    assert_eq!(puts.len(), 95);
    assert!(puts.iter().all(|put| put.value.len() == 64 && put.key.len() == 32));
    let expected: usize =
        puts.iter().map(|put| creates.iter().filter(|create| create.key == put.key).count()).sum();
    let events = report.split("\"event_from_put_us\":").nth(1).expect("its figures");
    assert_eq!(figure(events, "count") as usize, expected);
    assert!(figure(events, "p99") >= figure(events, "p50") && figure(events, "p50") > 0.0);
    // 95 puts at 500 a second take 188 ms and more.
    assert!(figure(&report, "seconds") >= 0.188, "{report}");
}

#[test]
fn with_a_prefix_every_watcher_gets_every_put() {
    let (address, shared) = start(None);
    let (status, report, _) = benchmark(&format!(
        "--endpoints={address} --conns=2 watch-latency --streams=7 --watchers-per-stream=3 \
         --prefix --key-space-size=5 --put-total=10 --put-rate=1000"
    ));
    assert_eq!(status, 0, "{report}");
    assert!(report.contains("Event after its put was due:\t210 in all, p50 "), "{report}");
    assert!(shared.creates.lock().unwrap().iter().all(|create| create.range_end == "x"));
}

#[test]
fn a_stream_that_ends_fails_the_run_and_says_why() {
    let (address, _) = start(Some("etcdserver: server stopped"));
    let (status, _, complaints) =
        benchmark(&format!("--endpoints={address} watch-latency --streams=2"));
    assert_eq!((status, complaints.as_str()), (1, "Error: etcdserver: server stopped\n"));
}
