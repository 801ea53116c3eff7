//! Requests that are not gRPC: the same endpoint over HTTP/1.1 and HTTP/2.

use super::*;

/// Everything sent so far, sends of earlier rounds included, as text.
fn sent(rig: &mut Rig) -> String {
    let mut text = String::new();
    for _ in 0..4 {
        rig.turn();
        for (socket, bytes) in std::mem::take(&mut rig.driver.sends) {
            text += &String::from_utf8_lossy(&bytes);
            rig.front.sent(socket, Vec::new(), Ok(()));
        }
    }
    text
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A connection that has begun HTTP/2.
fn h2(rig: &mut Rig) -> SocketId {
    rig.front.wire.allow_plain_http();
    let _peer = rig.accept();
    rig.turn();
    let socket = SocketId { slot: 0, generation: 0 };
    let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    preface.extend(frame(4, 0, 0, b""));
    rig.front.received(socket, &preface);
    sent(rig);
    socket
}

/// The head of a request: a method of the static table (2 is GET, 3 is POST) and a path.
fn head(method: u8, path: &str) -> Vec<u8> {
    let mut block = vec![0x80 | method, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block
}

#[test]
fn a_body_reaches_its_endpoint_and_the_response_comes_in_pieces_over_http_1() {
    let mut rig = Rig::new();
    let _peer = rig.accept();
    rig.turn();
    let socket = SocketId { slot: 0, generation: 0 };
    let post = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n01234";
    rig.front.received(socket, post);
    assert_eq!(sent(&mut rig), "", "half of the body is missing");
    rig.front.received(socket, b"56789");
    let answer = sent(&mut rig);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n"), "{answer}");
    rig.front.received(socket, b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(sent(&mut rig).contains("etcdserver"), "the connection goes on");
}

#[test]
fn a_body_that_is_too_large_for_its_endpoint_is_refused() {
    let mut rig = Rig::new();
    let _peer = rig.accept();
    rig.turn();
    let socket = SocketId { slot: 0, generation: 0 };
    let mut post = b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 101\r\n\r\n".to_vec();
    post.extend([b'x'; 101]);
    rig.front.received(socket, &post);
    assert!(sent(&mut rig).starts_with("HTTP/1.1 413"));
}

#[test]
fn the_same_endpoints_answer_over_http_2() {
    let mut rig = Rig::new();
    let socket = h2(&mut rig);
    rig.front.received(socket, &frame(1, 4 | 1, 1, &head(2, "/version")));
    assert!(sent(&mut rig).contains(r#"{"etcdserver":"3.7.1""#));
    rig.front.received(socket, &frame(1, 4, 3, &head(3, "/echo")));
    rig.front.received(socket, &frame(0, 0, 3, b"0123"));
    assert!(!sent(&mut rig).contains("01"), "the body is not complete");
    rig.front.received(socket, &frame(0, 1, 3, b"4567"));
    let answer = sent(&mut rig);
    assert!(answer.contains("0123") && answer.contains("4567"), "{answer:?}");
}

#[test]
fn a_request_that_its_client_cancels_leaves_nothing_behind() {
    let mut rig = Rig::new();
    let socket = h2(&mut rig);
    rig.front.received(socket, &frame(1, 4, 1, &head(3, "/echo")));
    rig.front.received(socket, &frame(0, 0, 1, b"0123"));
    assert_eq!(rig.front.services.uploads(), 1);
    rig.front.received(socket, &frame(3, 0, 1, &8u32.to_be_bytes()));
    assert_eq!(rig.front.services.uploads(), 0);
}
