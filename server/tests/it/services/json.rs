//! The JSON gateway: one program of requests, right and wrong, to a fresh etcd and a fresh member,
//! whose responses must be the same; and what etcd has no equal of.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use etcore_proto::grpc::encode_base64;

use crate::harness::certs::Authority;
use crate::harness::{Etcd, Setup, oracle, turn};

/// How long the rest of a response is waited for that does not end by itself.
const SILENCE: Duration = Duration::from_millis(400);
/// How long its beginning is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A response: its status line, its fields without date and length, and its body without chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub fields: Vec<String>,
    pub body: String,
}

/// Sends a request over a fresh connection, and reads until the response ends or nothing comes.
pub fn send(port: u16, request: &[u8]) -> Response {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("listens");
    socket.write_all(request).expect("sent");
    let mut bytes = Vec::new();
    let mut buf = [0; 64 << 10];
    // A watch without a request that can be read says nothing at all.
    let is_watch = request.starts_with(b"POST /v3/watch");
    let is_silent = is_watch && (request.ends_with(b"\r\n\r\n") || request.contains(&b'['));
    while !is_complete(&bytes) {
        let waits = if bytes.is_empty() && !is_silent { PATIENCE } else { SILENCE };
        socket.set_read_timeout(Some(waits)).expect("a socket");
        match socket.read(&mut buf) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&buf[..count]),
        }
    }
    parse(&String::from_utf8_lossy(&bytes))
}

fn is_complete(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
    });
    match length {
        Some(length) => body.len() >= length,
        None => body.ends_with("0\r\n\r\n"),
    }
}

fn parse(text: &str) -> Response {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let mut fields: Vec<String> = lines.map(str::to_ascii_lowercase).collect();
    let is_chunked = fields.iter().any(|field| field.ends_with("chunked"));
    fields.retain(|field| !field.starts_with("date:") && !field.starts_with("content-length:"));
    fields.sort();
    let body = if is_chunked { unchunk(body) } else { body.to_owned() };
    Response { status: status.parse().unwrap_or(0), fields, body: comparable(&body) }
}

fn unchunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap_or(0).min(rest.len());
        out += &rest[..length];
        body = rest[length..].trim_start_matches("\r\n");
    }
    out
}

/// A body without what two right servers say differently: who they are, and blanks, which
/// protojson puts in or not by the program's hash.
fn comparable(body: &str) -> String {
    let mut text = body.replace('\u{a0}', " ");
    for (blank, none) in [(", \"", ",\""), (", {", ",{"), (", [", ",[")] {
        text = text.replace(blank, none);
    }
    for name in [
        "cluster_id",
        "member_id",
        "raft_term",
        "raftTerm",
        "leader",
        "dbSize",
        "dbSizeInUse",
        "raftIndex",
        "raftAppliedIndex",
    ] {
        let mark = format!("\"{name}\":\"");
        let mut parts = text.split(&mark);
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let behind = part.trim_start_matches(|letter: char| letter.is_ascii_digit());
            out += &mark;
            out += behind;
        }
        text = out;
    }
    text
}

/// A request over HTTP/1.1.
pub fn request(method: &str, path: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}");
    [format!("{head}\r\n{fields}\r\n").as_bytes(), body].concat()
}

pub fn post(path: &str, body: &str) -> Vec<u8> {
    request("POST", path, "", body.as_bytes())
}

/// Bodies of a Range, right and wrong.
const RANGES: &[&str] = &[
    r#"{"key":"Zm9v"} trailing"#,
    r#"{"key":"Zm9v""#,
    r#"{"key":"Zm9v","nope":[1,{"a":2}]}"#,
    r#"{"key":5}"#,
    r#"{"key":"!!"}"#,
    "[]",
    "null",
    r#""x""#,
    "17",
    "tru",
    r#"{"key":"Zm9v","limit":"x"}"#,
    r#"{"key":"Zm9v","limit":1.5}"#,
    r#"{"key":"Zm9v","limit":1.0e1}"#,
    r#"{"key":"Zm9v","limit":" 1"}"#,
    r#"{"key":"Zm9v","limit":"1 2"}"#,
    r#"{"key":"Zm9v","limit":""}"#,
    r#"{"key":"Zm9v","limit":-0}"#,
    r#"{"key":"Zm9v","sort_order":"UP"}"#,
    r#"{"key":"Zm9v","sort_order":"ASCEND","sortTarget":99}"#,
    r#"{"key":"Zm9v","sort_order":1e1}"#,
    r#"{"key":"Zm9v","key":"Zm9v"}"#,
    r#"{"key":"Zm9v","sortTarget":1,"sort_target":1}"#,
    "",
    "   ",
    r#"{"key":{}}"#,
    r#"{"key":[]}"#,
    r#"{"key":null}"#,
    r#"{"keysOnly":"true"}"#,
    r#"{"key":"Zm9v","serializable":true,"count_only":true}"#,
    r#"{"key":"AA==","range_end":"AA==","keys_only":true,"limit":"1"}"#,
    r#"{"key":"\ud800"}"#,
    r#"{"key":"\ud800abcdef"}"#,
    r#"{"key":"Zm9\u0076"}"#,
    r#"{"ke"#,
    r"{'a':1}",
    r#"{"key":"Zm9v",}"#,
    r#"{"key" "Zm9v"}"#,
    r#"{"key":"Zm9v"]"#,
    r#"{"a":0x1}"#,
    r#"{"a":01}"#,
    r#"{"[x]":1,"key":"Zm9v"}"#,
    r#"{"key":"Zm9v","revision":99}"#,
    r#"{"key":"Zm9v","revision":9223372036854775808}"#,
    r#"{"key":"Zm9v","revision":-1}"#,
];

/// Requests of other methods, in this order.
const OTHERS: &[(&str, &str)] = &[
    ("/v3/nothing", "{}"),
    ("/v3/", "{}"),
    ("/v3", "{}"),
    ("/v3/kv/range/", "{}"),
    ("/v3beta/kv/range", r#"{"key":"Zm9v"}"#),
    ("/v3/kv/range?x=1", r#"{"key":"Zm9v"}"#),
    ("/v3/kv", "{}"),
    ("/v3/KV/range", "{}"),
    ("/v3/lock", "{}"),
    ("/v3/lease/timetolive", r#"{"ID":5}"#),
    ("/v3/kv/lease/timetolive", r#"{"ID":"5","keys":true}"#),
    ("/v3/lease/grant", r#"{"ID":7,"TTL":600}"#),
    ("/v3/lease/grant", r#"{"ID":7,"TTL":600}"#),
    ("/v3/lease/leases", "{}"),
    ("/v3/lease/revoke", r#"{"ID":9}"#),
    ("/v3/auth/status", ""),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"createRevision":"2","target":"CREATE","key":"Zm9v"}],
            "success":[{"requestPut":{"key":"Zm9w","value":"YmFy","prev_kv":true}},
            {"request_range":{"key":"Zm9v"}},{"request_delete_range":{"key":"eA"}}]}"#,
    ),
    ("/v3/kv/txn", r#"{"success":[{"requestPut":{},"requestRange":{}}]}"#),
    ("/v3/kv/txn", r#"{"success":[null]}"#),
    ("/v3/kv/txn", r#"{"success":{}}"#),
    ("/v3/kv/txn", r#"{"success":[{"requestPut":null}]}"#),
    ("/v3/kv/txn", "{}"),
    ("/v3/kv/deleterange", r#"{"key":"Zm9w","prevKv":true}"#),
    ("/v3/kv/compaction", r#"{"revision":99}"#),
    ("/v3/maintenance/status", "{}"),
    ("/v3/maintenance/alarm", r#"{"action":"GET"}"#),
    ("/v3/maintenance/transfer-leadership", r#"{"targetID":"5"}"#),
    ("/v3/watch", r#"{"create_request":{"key":"Zm9v","start_revision":2}}"#),
    ("/v3/watch", r#"{"create_request":{"key":"Zm9v"}}{"cancel_request":{"watch_id":0}}"#),
    ("/v3/watch", ""),
    ("/v3/watch", "["),
    ("/v3/lease/keepalive", r#"{"ID":7}{"ID":"8"}"#),
    ("/v3/lease/keepalive", ""),
    ("/v3/lease/keepalive", r#"{"ID":"x"}"#),
    ("/v3/lock/lock", r#"{"name":"bA==","lease":7}"#),
    ("/v3/lock/lock", r#"{"name":"bA==","lease":7}"#),
    ("/v3/lock/lock", r#"{"name":"bA==","lease":9}"#),
    ("/v3/lock/lock", r#"{"name":"bA==","lease":-1}"#),
    ("/v3/lock/unlock", r#"{"key":"bC83"}"#),
    ("/v3/lock/unlock", r#"{"key":"bC83"}"#),
    ("/v3/lock/unlock", "{}"),
    ("/v3/election/leader", r#"{"name":"ZQ=="}"#),
    ("/v3/election/campaign", r#"{"name":"ZQ==","lease":7,"value":"dg=="}"#),
    ("/v3/election/campaign", r#"{"name":"ZQ==","lease":7,"value":"dzw="}"#),
    ("/v3/election/leader", r#"{"name":"ZQ=="}"#),
    ("/v3/election/observe", r#"{"name":"ZQ=="}"#),
    ("/v3/election/resign", "{}"),
    ("/v3/election/proclaim", "{}"),
    (
        "/v3/election/proclaim",
        r#"{"leader":{"name":"ZQ==","key":"ZS83","rev":1,"lease":7},"value":"eA=="}"#,
    ),
    ("/v3/election/campaign", r#"{"name":"Zg==","lease":99,"value":"dg=="}"#),
    ("/v3/election/proclaim", r#"{"leader":{"lease":99}}"#),
    ("/v3/election/resign", r#"{"leader":{"key":"ZS83","rev":1,"lease":7}}"#),
    ("/v3/election/resign", r#"{"leader":{"lease":99}}"#),
];

/// The whole program.
fn program() -> Vec<Vec<u8>> {
    let pair = r#"{"key":"Zm9v","value":"YmFy"}"#;
    let mut program = vec![post("/v3/kv/put", pair), post("/v3/kv/range", r#"{"key":"Zm9v"}"#)];
    program.extend(RANGES.iter().map(|body| post("/v3/kv/range", body)));
    program.push(request("POST", "/v3/kv/range", "", b"{\"key\":\"\xff\"}"));
    let methods = ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"];
    program.extend(methods.map(|method| request(method, "/v3/kv/range", "", b"{}")));
    for fields in [
        "Grpc-Timeout: 5\r\n",
        "Grpc-Timeout: 5S\r\n",
        "Authorization: x\r\nGrpc-Metadata-Client-Api-Version: 3.4\r\nOrigin: http://a\r\n",
        "Grpc-Metadata-Hasleader: true\r\n",
    ] {
        program.push(request("POST", "/v3/kv/put", fields, pair.as_bytes()));
    }
    program.extend(OTHERS.iter().map(|(path, body)| post(path, body)));
    program
}

#[test]
fn every_response_is_what_etcd_says() {
    let _turn = turn::light();
    let Some(binary) = oracle("etcd") else { return };
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let setup = Setup::new(dir.path(), "portable");
    let etcds = Setup::new(other.path(), "portable");
    let _member = setup.start();
    let _etcd = Etcd::start(&binary, &etcds);
    for step in program() {
        let (own, wanted) = (send(setup.client_port, &step), send(etcds.client_port, &step));
        assert_eq!(own, wanted, "{}", String::from_utf8_lossy(&step));
    }
}

#[test]
fn the_guides_commands_work_and_the_gateway_can_be_switched_off() {
    let _turn = turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let _member = setup.start();
    let curl = |path: &str, body: &str| {
        let url = format!("http://127.0.0.1:{}{path}", setup.client_port);
        let out = Command::new("curl").args(["-sL", &url, "-X", "POST", "-d", body]).output();
        String::from_utf8(out.expect("curl runs").stdout).expect("text")
    };
    for version in ["v3alpha", "v3beta", "v3"] {
        let put = curl(&format!("/{version}/kv/put"), r#"{"key":"Zm9v","value":"YmFy"}"#);
        assert!(put.starts_with(r#"{"header":{"cluster_id":""#), "{put}");
        let range = curl(&format!("/{version}/kv/range"), r#"{"key": "Zm9v"}"#);
        assert!(range.contains(r#""kvs":[{"key":"Zm9v","create_revision":"2","#), "{range}");
        assert!(range.ends_with(r#""value":"YmFy"}],"count":"1"}"#), "{range}");
    }
    let txn = curl(
        "/v3alpha/kv/txn",
        r#"{"compare":[{"createRevision":"2","target":"CREATE","key":"Zm9v"}],
            "success":[{"requestPut":{"key":"Zm9v","value":"YmFy"}}]}"#,
    );
    assert!(txn.contains(r#""succeeded":true,"responses":[{"response_put""#), "{txn}");
    let closed = tempfile::tempdir().unwrap();
    let off = Setup::new(closed.path(), "portable").with("--enable-grpc-gateway=false");
    let _off = off.start();
    let answer = send(off.client_port, &post("/v3/kv/range", r#"{"key":"Zm9v"}"#));
    assert_eq!((answer.status, &*answer.body), (404, "404 page not found\n"));
}

#[test]
fn a_watch_tells_line_by_line_and_ends_with_its_client() {
    let _turn = turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let member = setup.start();
    let mut socket = TcpStream::connect(("127.0.0.1", setup.client_port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // A body that is not complete, as of a client that will ask for more.
    let head = "POST /v3/watch HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let create = r#"{"create_request":{"key":"Zm9v"}}"#;
    write!(socket, "{head}{:x}\r\n{create}\r\n", create.len()).unwrap();
    let until = |socket: &mut TcpStream, wanted: &str| {
        let mut seen = String::new();
        let mut buf = [0; 4096];
        while !seen.contains(wanted) {
            let count = socket.read(&mut buf).expect("it goes on");
            assert!(count > 0, "ended before {wanted}: {seen}");
            seen += &String::from_utf8_lossy(&buf[..count]);
        }
        seen
    };
    until(&mut socket, "\"created\":true}}\n");
    for value in ["YQ==", "Yg=="] {
        let put = format!(r#"{{"key":"Zm9v","value":"{value}"}}"#);
        assert_eq!(send(setup.client_port, &post("/v3/kv/put", &put)).status, 200);
        let line = until(&mut socket, &format!("\"value\":\"{value}\"}}}}]}}}}\n"));
        assert!(line.contains(r#"{"result":{"header""#), "in one piece: {line}");
    }
    let cancel = r#"{"cancel_request":{"watch_id":"0"}}"#;
    write!(socket, "{:x}\r\n{cancel}\r\n", cancel.len()).unwrap();
    until(&mut socket, "\"canceled\":true}}\n");
    drop(socket);
    let metric = "etcd_debugging_mvcc_watch_stream_total 0";
    let is_gone = || crate::harness::http_get(setup.client_port, "/metrics").1.contains(metric);
    assert!((0..100).any(|_| is_gone() || {
        std::thread::sleep(SILENCE / 4);
        false
    }));
    assert!(member.sockets() > 0);
}

/// A client's frame: it must be masked, and a mask of zeros is one.
fn frame(opcode: u8, payload: &str) -> Vec<u8> {
    let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126).expect("short");
    [&[0x80 | opcode, 0x80 | length, 0, 0, 0, 0][..], payload.as_bytes()].concat()
}

/// What a WebSocket says to these frames: its head, the texts of messages, and whether it ended.
fn converse(port: u16, path: &str, fields: &str, frames: &[Vec<u8>]) -> (String, String, bool) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("listens");
    socket.set_read_timeout(Some(SILENCE)).expect("a socket");
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )
    .expect("sent");
    let (mut bytes, mut buf, mut ended) = (Vec::new(), [0; 4096], false);
    let mut frames = frames.iter();
    loop {
        match socket.read(&mut buf) {
            Ok(0) => ended = true,
            Ok(count) => {
                bytes.extend_from_slice(&buf[..count]);
                continue;
            }
            Err(_) => {}
        }
        // It is silent: now comes the next.
        match frames.next().filter(|_| !ended) {
            Some(frame) => socket.write_all(frame).expect("sent"),
            None => break,
        }
    }
    let at = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
    let mut head: Vec<String> =
        String::from_utf8_lossy(&bytes[..at]).lines().map(str::to_ascii_lowercase).collect();
    head.retain(|line| !line.starts_with("date") && !line.starts_with("content-length"));
    head.sort();
    let mut texts = String::new();
    let mut rest = &bytes[at..];
    while let [first, short, behind @ ..] = rest {
        let (length, behind) = match (short, behind) {
            (126, [high, low, behind @ ..]) => {
                (usize::from(u16::from_be_bytes([*high, *low])), behind)
            }
            _ => (usize::from(*short), behind),
        };
        let (payload, after) = behind.split_at(length.min(behind.len()));
        texts += &format!("{first:02x} {}\n", comparable(&String::from_utf8_lossy(payload)));
        rest = after;
    }
    (head.join("\n"), texts, ended)
}

#[test]
fn a_websocket_carries_what_a_stream_does_as_etcds_does() {
    let _turn = turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let _member = setup.start();
    let create = frame(1, r#"{"create_request":{"key":"Zm9v"}}"#);
    let watch = converse(setup.client_port, "/v3/watch", "", std::slice::from_ref(&create));
    assert!(watch.0.contains("http/1.1 101 switching protocols"), "{}", watch.0);
    assert!(watch.1.starts_with(r#"81 {"result":{"header""#), "{}", watch.1);
    let range = converse(setup.client_port, "/v3/kv/range", "", &[frame(1, r#"{"key":"YQ=="}"#)]);
    assert!(range.1.starts_with(r#"81 {"header""#) && range.2, "etcd would wait for its end");
    let Some(binary) = oracle("etcd") else { return };
    let other = tempfile::tempdir().unwrap();
    let etcds = Setup::new(other.path(), "portable");
    let _etcd = Etcd::start(&binary, &etcds);
    let in_parts = [&[0x01, 0x80, 0, 0, 0, 0][..], &frame(0, r#"{"create_request":{}}"#)].concat();
    let watched = [
        create,
        frame(1, r#"{"cancel_request":{"watch_id":0}}"#),
        frame(9, "ping"),
        // A normal end, 1000.
        vec![0x88, 0x82, 0, 0, 0, 0, 3, 0xe8],
    ];
    let keeps = [frame(1, r#"{"ID":7}"#), frame(1, r#"{"ID":"8"}"#), frame(8, "")];
    let cases: &[(&str, &str, &[Vec<u8>])] = &[
        ("/v3/watch", "", &watched),
        ("/v3/watch", "Sec-WebSocket-Protocol: Bearer, abc\r\n", &[in_parts]),
        ("/v3/watch", "", &[frame(1, "[")]),
        ("/v3/lease/keepalive", "", &keeps),
        ("/v3/nothing", "", &[]),
        ("/v3/watch", "Content-Length: 0\r\nSec-WebSocket-Key: x\r\n", &[]),
    ];
    for (path, fields, frames) in cases {
        let own = converse(setup.client_port, path, fields, frames);
        let wanted = converse(etcds.client_port, path, fields, frames);
        assert_eq!(own, wanted, "{path} {fields}");
    }
}

#[test]
fn json_goes_over_tls_by_http_1_and_http_2() {
    let _turn = turn::light();
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let pair = authority.issue("member");
    let setup = Setup::new(dir.path(), "portable").with_tls(&authority.ca_file, &pair);
    let _member = setup.start();
    let value = encode_base64(&[b'v'; 300_000]);
    let body = dir.path().join("put.json");
    std::fs::write(&body, format!(r#"{{"key":"Zm9v","value":"{value}"}}"#)).unwrap();
    let curl = |version: &str, path: &str, data: &str| {
        let url = format!("{}{path}", setup.endpoint());
        let out = Command::new("curl")
            .args(["-sS", "-m", "20", version, "--cacert", &authority.ca_file])
            .args(["--cert", &pair.cert, "--key", &pair.key, "--data-binary", data, &url])
            .output()
            .expect("curl runs");
        String::from_utf8(out.stdout).expect("text")
    };
    for version in ["--http1.1", "--http2"] {
        let put = curl(version, "/v3/kv/put", &format!("@{}", body.display()));
        assert!(put.starts_with(r#"{"header":{"#), "{version}: {put}");
        let range = curl(version, "/v3/kv/range", r#"{"key":"Zm9v"}"#);
        assert!(range.contains(&value) && range.ends_with(r#""count":"1"}"#), "{version}");
        let wrong = curl(version, "/v3/kv/range", "[]");
        assert!(wrong.starts_with(r#"{"code":3,"message":"proto: syntax"#), "{version}: {wrong}");
        let keeps = curl(version, "/v3/lease/keepalive", r#"{"ID":"7"}{"ID":8}"#);
        assert_eq!(keeps.matches("{\"result\":").count(), 2, "{version}: {keeps}");
    }
}

#[test]
fn a_large_answer_is_whole_and_costs_a_piece_of_memory() {
    let _turn = turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let member = setup.start();
    // Two bytes over, so that pieces end within groups of base64.
    let value = vec![b'v'; (1 << 20) + 2];
    let text = encode_base64(&value);
    for number in 0..24 {
        let key = encode_base64(format!("k{number:02}").as_bytes());
        let body = format!(r#"{{"key":"{key}","value":"{text}"}}"#);
        let answer = send(setup.client_port, &post("/v3/kv/put", &body));
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let before_kib = crate::harness::rss_anon_kib(member.pid());
    let mut readers: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut socket = TcpStream::connect(("127.0.0.1", setup.client_port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
            let all = request(
                "POST",
                "/v3/kv/range",
                "Connection: close\r\n",
                br#"{"key":"aw==","range_end":"bA=="}"#,
            );
            socket.write_all(&all).unwrap();
            socket
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let grown_kib = crate::harness::rss_anon_kib(member.pid()).saturating_sub(before_kib);
    assert!(grown_kib < 64 << 10, "{grown_kib} KiB for eight answers of 32 MiB");
    let mut whole = Vec::new();
    readers[0].read_to_end(&mut whole).unwrap();
    let answer = parse(&String::from_utf8_lossy(&whole));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body.matches(&text).count(), 24, "every value is there");
    assert!(answer.body.ends_with(r#""}],"count":"24"}"#));
}

#[test]
fn thousands_of_values_in_one_body_are_all_taken_and_nothing_is_kept_of_them() {
    let _turn = turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let _member = setup.start();
    let body = r#"{"ID":"5"} "#.repeat(20_000);
    let answer = send(setup.client_port, &post("/v3/lease/keepalive", &body));
    assert_eq!((answer.status, answer.body.lines().count()), (200, 20_000));
    let wrong = format!("[ {body}");
    let answer = send(setup.client_port, &post("/v3/watch", &wrong));
    assert_eq!((answer.status, &*answer.body), (0, ""), "as with etcd, it waits in silence");
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let _turn = turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable").with("--max-request-bytes=1000");
    let _member = setup.start();
    let put = |letters: usize| {
        let body = format!(r#"{{"key":"Zm9v","value":"{}"}}"#, "QUFB".repeat(letters / 4));
        send(setup.client_port, &post("/v3/kv/put", &body))
    };
    let answer = put(1600);
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(answer.body, r#"{"code":3,"message":"etcdserver: request is too large"}"#);
    let answer = put(800_000);
    let text = "grpc: received message larger than max (600009 vs. 525288)";
    assert_eq!((answer.status, answer.body.contains(text)), (429, true), "{}", answer.body);
    assert_eq!(put(2_000_000).status, 413);
}
