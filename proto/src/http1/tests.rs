//! Tests of HTTP/1.1, both sides.

use super::*;

/// Answers every request with its method, target and body; returns the wire and what happened.
fn serve(input: &[u8], cut: usize) -> (String, Vec<ServerEvent>, bool) {
    let mut server = Server::new(1_000);
    let mut out = Vec::new();
    let mut seen = Vec::new();
    let mut echo = Vec::new();
    for piece in input.chunks(cut) {
        server.receive(piece);
        while let Some(event) = next_event(&mut server, &mut out) {
            match &event {
                ServerEvent::Request { head, .. } => {
                    echo = format!("{} {} ", head.method, head.target).into_bytes();
                }
                ServerEvent::Body(piece) => echo.extend_from_slice(piece),
                ServerEvent::End => server.respond_with(200, &[("x", "y")], &echo),
                ServerEvent::Failed(_) => {}
            }
            seen.push(event);
        }
    }
    server.poll_transmit(&mut out, usize::MAX);
    (String::from_utf8(out).unwrap(), seen, server.is_done())
}

/// The next event, if need be after what was answered has left.
fn next_event(server: &mut Server, out: &mut Vec<u8>) -> Option<ServerEvent> {
    server.next_event().or_else(|| {
        server.poll_transmit(out, usize::MAX);
        server.next_event()
    })
}

#[test]
fn of_requests_sent_without_waiting_one_is_answered_for_each_answer_that_leaves() {
    let mut server = Server::new(1_000);
    let input = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(3_000);
    for piece in input.chunks(16 << 10) {
        server.receive(piece);
    }
    assert!(!server.wants_read());
    let page = vec![b'p'; 50_000];
    let mut out = Vec::new();
    for _ in 0..3_000 {
        assert!(matches!(server.next_event(), Some(ServerEvent::Request { .. })));
        assert_eq!(server.next_event(), Some(ServerEvent::End));
        server.respond_with(200, &[], &page);
        assert_eq!(server.next_event(), None, "the answer has not left");
        assert!(server.held_bytes() <= input.len() + page.len() + 100);
        out.clear();
        server.poll_transmit(&mut out, usize::MAX);
        assert!(out.ends_with(&page));
    }
    assert_eq!((server.next_event(), server.held_bytes()), (None, 0));
}

fn answer(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx: y\r\n\r\n{body}", body.len())
}

#[test]
fn pipelined_requests_are_answered_in_order_however_they_are_cut() {
    let input = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n\r\nPOST /b HTTP/1.1\r\nhost:h\r\n\
                  Content-Length: 5\r\n\r\nhelloPUT /c HTTP/1.1\r\nhost: h\r\n\
                  Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\
                  trailer: t\r\n\r\nDELETE /d HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    for cut in [1, 2, 3, 10, 1_000] {
        let (wire, _, done) = serve(input, cut);
        let expected = [
            answer("GET /a "),
            answer("POST /b hello"),
            answer("PUT /c abc0123456789"),
            answer("DELETE /d ").replace("x: y", "connection: close\r\nx: y"),
        ];
        assert_eq!(wire, expected.concat(), "in cuts of {cut}");
        assert!(done);
    }
}

#[test]
fn a_head_request_gets_the_length_and_no_body() {
    let (wire, _, done) = serve(b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n", 100);
    assert_eq!(wire, "HTTP/1.1 200 OK\r\ncontent-length: 8\r\nx: y\r\n\r\n");
    assert!(!done);
}

#[test]
fn http_1_0_closes_unless_asked_to_stay() {
    let (wire, _, done) = serve(b"GET / HTTP/1.0\r\n\r\n", 100);
    assert!(wire.starts_with("HTTP/1.0 200 OK\r\n") && wire.contains("connection: close"));
    assert!(done);
    let (wire, _, done) = serve(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 100);
    assert!(wire.contains("connection: keep-alive") && !done);
}

#[test]
fn errors_of_the_client_get_their_status_and_the_end() {
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\nhost: h\r\n{}\r\n", "a: b\r\n".repeat(200));
    let cases: [(&str, u16); 16] = [
        ("GET /\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        ("GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", 400),
        (&long, 431),
        (&many, 431),
    ];
    for (input, status) in cases {
        let (wire, _, done) = serve(input.as_bytes(), 1_000);
        let shown = &input[..input.len().min(90)];
        assert!(wire.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {wire:?}");
        assert!(wire.contains("connection: close") && done, "{shown:?}");
    }
}

/// What stops reading at the bound itself would wait for ever.
#[test]
fn a_head_without_end_is_refused_however_it_is_cut() {
    for piece in [1 << 10, 4_096, 16 << 10, 32 << 10, 64 << 10, 1_000] {
        let mut server = Server::new(100);
        server.receive(b"GET / HTTP/1.1\r\nX-Long: ");
        // Up to a multiple of the pieces, as what receive buffers of one size bring.
        server.receive(&vec![b'x'; piece - 24]);
        let mut taken = piece;
        while server.wants_read() {
            server.receive(&vec![b'x'; piece]);
            taken += piece;
        }
        assert!(taken <= crate::limits::HTTP1_HEAD_BYTES_MAX + piece, "{taken}");
        let mut out = Vec::new();
        server.poll_transmit(&mut out, usize::MAX);
        assert!(out.starts_with(b"HTTP/1.1 431 ") && server.is_done(), "pieces of {piece}");
    }
}

#[test]
fn a_chunked_body_above_the_maximum_is_refused() {
    let mut input = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..3 {
        input.extend_from_slice(b"190\r\n");
        input.extend([b'x'; 400]);
        input.extend_from_slice(b"\r\n");
    }
    let (wire, seen, done) = serve(&input, 5_000);
    assert!(wire.starts_with("HTTP/1.1 413 "));
    assert_eq!(seen.last(), Some(&ServerEvent::Failed(BodyError::TooLarge(1_000))));
    assert!(done);
}

#[test]
fn a_client_that_expects_it_is_told_to_continue() {
    let mut server = Server::new(100);
    server.receive(
        b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    );
    let mut out = Vec::new();
    server.poll_transmit(&mut out, usize::MAX);
    assert_eq!(out, b"HTTP/1.1 100 Continue\r\n\r\n");
    // An early answer leaves the body unread, so the connection cannot go on.
    assert!(matches!(server.next_event(), Some(ServerEvent::Request { has_body: true, .. })));
    server.respond_with(403, &[], b"");
    assert!(!server.wants_read());
    out.clear();
    server.poll_transmit(&mut out, usize::MAX);
    assert!(out.windows(17).any(|window| window == b"connection: close"));
    assert!(server.is_done());
}

#[test]
fn reading_stops_while_pipelined_input_waits_for_an_answer() {
    let mut server = Server::new(100);
    let request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut taken = 0;
    while server.wants_read() {
        server.receive(request);
        taken += request.len();
    }
    assert!(taken < 2 * crate::limits::HTTP1_HEAD_BYTES_MAX);
    let mut answered = 0;
    while let Some(event) = next_event(&mut server, &mut Vec::new()) {
        if event == ServerEvent::End {
            server.respond_with(204, &[], b"");
            answered += 1;
        }
    }
    assert_eq!(answered * request.len(), taken);
    assert!(server.wants_read());
}

#[test]
fn a_value_with_a_line_end_cannot_start_a_new_field() {
    let mut server = Server::new(100);
    server.receive(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    server.respond_with(200, &[("location", "a\r\nset-cookie: b")], b"");
    let mut out = Vec::new();
    server.poll_transmit(&mut out, usize::MAX);
    assert!(!String::from_utf8(out).unwrap().contains("\nset-cookie"));
}

/// Feeds a response to a client that asked with `method`.
fn ask(method: &str, response: &[u8], cut: usize) -> (Vec<u8>, Option<u16>, bool, Client) {
    let mut client = Client::new();
    client.request(method, "/", &[("host", "h")], None);
    for piece in response.chunks(cut) {
        client.receive(piece).unwrap();
    }
    let mut body = Vec::new();
    let mut status = None;
    let mut ended = false;
    while let Some(event) = client.next_event() {
        match event {
            ClientEvent::Response(head) => status = Some(head.status),
            ClientEvent::Body(piece) => body.extend_from_slice(&piece),
            ClientEvent::End => ended = true,
        }
    }
    (body, status, ended, client)
}

#[test]
fn responses_end_where_they_should() {
    let chunked =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                    5\r\nhello\r\n0\r\n\r\n";
    for cut in [1, 3, 1_000] {
        let (body, status, ended, client) = ask("GET", chunked, cut);
        assert_eq!((body.as_slice(), status, ended), (b"hello".as_slice(), Some(200), true));
        assert!(client.is_reusable());
    }
    let sized = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
    let (body, status, ended, client) = ask("GET", sized, 7);
    assert_eq!((body.as_slice(), status, ended), (b"no".as_slice(), Some(404), true));
    assert!(!client.is_reusable());
    let (_, _, ended, client) = ask("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 7);
    assert!(ended && client.is_reusable());
    let (body, _, ended, mut client) = ask("GET", b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 7);
    assert_eq!((body.as_slice(), ended), (b"until the end".as_slice(), false));
    client.closed().unwrap();
    assert_eq!(client.next_event(), Some(ClientEvent::End));
}

#[test]
fn a_cut_or_unasked_response_is_an_error() {
    let (_, _, ended, mut client) = ask("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", 7);
    assert!(!ended);
    assert_eq!(client.closed(), Err(Http1Error::Cut));
    assert_eq!(Client::new().receive(b"HTTP/1.1 200 OK\r\n\r\n"), Err(Http1Error::Unasked));
    let mut client = Client::new();
    client.request("GET", "/", &[], None);
    assert_eq!(client.receive(b"nonsense\r\n\r\n"), Err(Http1Error::Head));
    assert_eq!(client.receive(b"HTTP/1.1 200 OK\r\n\r\n"), Err(Http1Error::Cut));
}

#[test]
fn a_client_that_ends_its_side_gets_the_answers_to_what_was_complete() {
    let mut server = Server::new(100);
    server
        .receive(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\nGET /c HT");
    server.receive_end();
    let mut out = Vec::new();
    for target in ["/a", "/b"] {
        let event = next_event(&mut server, &mut out);
        let Some(ServerEvent::Request { head, .. }) = event else { panic!() };
        assert_eq!(head.target, target);
        assert_eq!(server.next_event(), Some(ServerEvent::End));
        assert!(!server.is_done());
        server.respond_with(200, &[], b"x");
    }
    assert_eq!(server.next_event(), None);
    assert!(!server.is_done(), "the answers are not transmitted");
    server.poll_transmit(&mut out, usize::MAX);
    assert_eq!(String::from_utf8(out).unwrap().matches("200 OK").count(), 2);
    assert!(server.is_done());
}

#[test]
fn a_client_that_ends_its_side_in_the_middle_of_a_request_gets_none() {
    for begun in
        [&b""[..], b"GET / HT", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nx"]
    {
        let mut server = Server::new(100);
        server.receive(begun);
        server.receive_end();
        assert!(server.is_done(), "{begun:?}");
    }
}

#[test]
fn a_request_under_way_is_told_from_a_client_that_waits() {
    let mut server = Server::new(100);
    assert_eq!(server.incomplete_request(), Some(0), "nothing has come yet");
    server.receive(b"GET / HT");
    assert_eq!(server.incomplete_request(), Some(0));
    server.receive(b"TP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(server.incomplete_request(), None);
    server.respond_with(200, &[], b"x");
    assert_eq!(server.incomplete_request(), None, "between requests");
    server.poll_transmit(&mut Vec::new(), usize::MAX);
    server.receive(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nx");
    assert_eq!(server.incomplete_request(), Some(2));
    server.receive(b"y");
    assert_eq!(server.incomplete_request(), None);
}
