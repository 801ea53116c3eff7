//! Tests of the client against servers that answer oddly, by hand-made frames.

use super::*;

const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
const END_HEADERS: u8 = 4;
const END_BOTH: u8 = 5;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let mut out = vec![a, b, c, kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.extend([0, name.len() as u8]);
        out.extend_from_slice(name.as_bytes());
        out.push(value.len() as u8);
        out.extend_from_slice(value.as_bytes());
    }
    out
}

/// A client with one unary call, stream 1, fed with `frames`; returns what became of the call.
fn outcome(frames: &[Vec<u8>]) -> (Code, String, bool) {
    let mut client = Client::new(ClientConfig::default(), &Budget::default());
    let method = client.method("/t.S/M");
    let options = CallOptions { user: 42, ..CallOptions::default() };
    client.start_unary(method, &options, b"hello").unwrap();
    client.receive(SETTINGS, 0).unwrap();
    for frame in frames {
        client.receive(frame, 0).unwrap();
    }
    let mut found = None;
    while let Some(event) = client.next_event() {
        let result = match event {
            ClientEvent::Response { user: 42, .. } => (Code::Ok, String::new(), false),
            ClientEvent::Status { user: 42, code, message, unprocessed, .. } => {
                (code, message, unprocessed)
            }
            _ => continue,
        };
        assert!(found.replace(result).is_none(), "a call ends once");
    }
    assert_eq!(client.open_streams(), 0);
    found.expect("the call ended")
}

const HEAD: [(&str, &str); 2] = [(":status", "200"), ("content-type", "application/grpc")];

#[test]
fn odd_answers_become_statuses() {
    let head = frame(1, END_HEADERS, 1, &block(&HEAD));
    let body = frame(0, 0, 1, b"\0\0\0\0\x01x");
    let last = frame(0, 1, 1, b"\0\0\0\0\x01x");
    let half = frame(0, 0, 1, b"\0\0\0\0\x09x");
    let ok = frame(1, END_BOTH, 1, &block(&[("grpc-status", "0")]));
    let lost = frame(1, END_BOTH, 1, &block(&[("other", "x")]));
    let bad = frame(1, END_BOTH, 1, &block(&[("grpc-status", "x")]));
    let big = frame(1, END_BOTH, 1, &block(&[("grpc-status", "99"), ("grpc-message", "%41")]));
    let page = frame(1, END_BOTH, 1, &block(&[(":status", "503"), ("content-type", "text/html")]));
    let cases: [(&[Vec<u8>], Code, &str); 9] = [
        (&[head.clone(), body.clone(), ok.clone()], Code::Ok, ""),
        (&[head.clone(), ok.clone()], Code::Internal, "received no response message"),
        (&[head.clone(), body.clone(), body.clone()], Code::Internal, "received another message"),
        (&[head.clone(), half, ok], Code::Internal, "unexpected EOF"),
        (&[head.clone(), last], Code::Internal, "without sending trailers"),
        (&[head.clone(), body.clone(), lost], Code::Unknown, ""),
        (&[head.clone(), body.clone(), bad], Code::Unknown, "malformed grpc-status"),
        (&[head, body, big], Code::Unknown, "A"),
        (&[page], Code::Unavailable, "unexpected content-type \"text/html\""),
    ];
    for (frames, code, text) in cases {
        let (found, message, _) = outcome(frames);
        assert!(found == code && message.contains(text), "{found:?} {message:?} for {text:?}");
    }
}

#[test]
fn resets_and_farewells_become_grpc_go_s_statuses() {
    for (reset, code, name, unprocessed) in [
        (7u32, Code::Unavailable, "REFUSED_STREAM", true),
        (8, Code::Canceled, "CANCEL", false),
        (11, Code::ResourceExhausted, "ENHANCE_YOUR_CALM", false),
        (2, Code::Internal, "INTERNAL_ERROR", false),
        (77, Code::Unknown, "77", false),
    ] {
        let found = outcome(&[frame(3, 0, 1, &reset.to_be_bytes())]);
        let text = format!("stream terminated by RST_STREAM with error code: {name}");
        assert_eq!(found, (code, text, unprocessed));
    }
    let (code, _, unprocessed) = outcome(&[frame(7, 0, 0, &[0; 8])]);
    assert_eq!((code, unprocessed), (Code::Unavailable, true));
}

#[test]
fn a_broken_connection_ends_every_call() {
    let mut client = Client::new(ClientConfig::default(), &Budget::default());
    let method = client.method("/t.S/M");
    for user in 0..3 {
        let options = CallOptions { user, ..CallOptions::default() };
        client.start_unary(method, &options, b"x").unwrap();
    }
    client.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n", 0).unwrap_err();
    let mut users = Vec::new();
    while let Some(event) = client.next_event() {
        if let ClientEvent::Status { user, code: Code::Unavailable, .. } = event {
            users.push(user);
        }
    }
    assert_eq!(users, [0, 1, 2]);
    let late = client.start_unary(method, &CallOptions::default(), b"x");
    assert_eq!(late, Err(StartError::GoingAway));
}
