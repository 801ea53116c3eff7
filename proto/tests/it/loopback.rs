//! Our client against our server through memory: every kind of call, however the bytes are cut.

use crate::common::{BIDI, COLLECT, COUNT, FAIL, FAILURE, HANG, LARGE, Link, META, UNARY};
use etcore_proto::grpc::{
    CallOptions, ClientConfig, ClientEvent, Code, SendError, ServerConfig, StartError,
    encode_base64,
};
use etcore_proto::h2::{Budget, Config, ErrorCode, Keepalive};

const OK: (Code, String) = (Code::Ok, String::new());

#[test]
fn unary_calls_answer_however_the_bytes_are_cut() {
    for cut in [1, 2, 9, 100, 16 << 10] {
        let mut link = Link::new();
        link.cut = cut;
        let unary = link.client.method(UNARY);
        let sizes = [0, 1, 100, 4_096, 16_379, 16_380, 20_000, 70_000, 300_000];
        let calls: Vec<_> = sizes
            .iter()
            .map(|size| {
                let message = vec![*size as u8; *size];
                let options = CallOptions { user: *size as u64, ..CallOptions::default() };
                link.client.start_unary(unary, &options, &message).unwrap()
            })
            .collect();
        link.run();
        for (call, size) in calls.iter().zip(sizes) {
            let (messages, status) = link.outcome(*call);
            assert_eq!(messages, [vec![size as u8; size]], "{size} bytes in cuts of {cut}");
            assert_eq!(status, Some(OK));
        }
        assert_eq!(link.client.open_streams(), 0);
        assert_eq!(link.service.server.open_streams(), 0);
    }
}

#[test]
fn errors_come_with_their_code_and_text() {
    let mut link = Link::new();
    let fail = link.client.method(FAIL);
    let call = link.client.start_unary(fail, &CallOptions::default(), b"").unwrap();
    link.run();
    assert_eq!(link.outcome(call), (vec![], Some((FAILURE.0, FAILURE.1.to_owned()))));
}

#[test]
fn unknown_methods_get_grpc_go_s_texts() {
    let mut link = Link::new();
    for (path, text) in [
        ("/test.Service/Nope", "unknown method Nope for service test.Service"),
        ("/test.Nope/Unary", "unknown service test.Nope"),
        ("/nope", "malformed method name: \"/nope\""),
    ] {
        let method = link.client.method(path);
        let call = link.client.start_unary(method, &CallOptions::default(), b"x").unwrap();
        link.run();
        assert_eq!(link.outcome(call).1, Some((Code::Unimplemented, text.to_owned())));
    }
}

#[test]
fn streams_of_all_kinds_end_as_they_should() {
    for cut in [1, 7, 16 << 10] {
        let mut link = Link::new();
        link.cut = cut;
        let [bidi, collect, count] = [BIDI, COLLECT, COUNT].map(|path| link.client.method(path));
        let options = CallOptions::default();
        let both = link.client.start_stream(bidi, &options).unwrap();
        let up = link.client.start_stream(collect, &options).unwrap();
        let down = link.client.start_stream(count, &options).unwrap();
        link.client.send_message(down, b"500").unwrap();
        link.client.half_close(down).unwrap();
        for number in 0..50u8 {
            link.client.send_message(both, &[number; 3]).unwrap();
            link.client.send_message(up, &vec![number; 1_000]).unwrap();
            if number % 10 == 0 {
                link.run();
            }
        }
        link.client.half_close(up).unwrap();
        link.client.half_close(both).unwrap();
        link.run();
        let (messages, status) = link.outcome(both);
        assert_eq!(messages, (0..50u8).map(|number| vec![number; 3]).collect::<Vec<_>>());
        assert_eq!(status, Some(OK));
        assert_eq!(link.outcome(up), (vec![b"50 50000".to_vec()], Some(OK)));
        let (messages, status) = link.outcome(down);
        assert_eq!(messages.len(), 500);
        assert_eq!((messages[499].as_slice(), status), (b"499".as_slice(), Some(OK)));
        assert_eq!(link.service.server.open_streams(), 0);
    }
}

#[test]
fn a_stream_the_server_ends_first_is_over_on_both_sides() {
    let mut link = Link::new();
    let bidi = link.client.method(BIDI);
    let call = link.client.start_stream(bidi, &CallOptions::default()).unwrap();
    link.client.send_message(call, b"one").unwrap();
    link.client.send_message(call, b"fail").unwrap();
    link.client.send_message(call, b"late").unwrap();
    link.run();
    let (messages, status) = link.outcome(call);
    assert_eq!(messages, [b"one".to_vec()]);
    assert_eq!(status, Some((FAILURE.0, FAILURE.1.to_owned())));
    assert_eq!(link.client.send_message(call, b"later"), Err(SendError::Closed));
    assert_eq!((link.client.open_streams(), link.service.server.open_streams()), (0, 0));
}

#[test]
fn a_large_body_is_pulled_as_windows_open_and_never_buffered() {
    let mut link = Link::new();
    let large = link.client.method(LARGE);
    let length = 40 << 20;
    let text = length.to_string();
    let call = link.client.start_unary(large, &CallOptions::default(), text.as_bytes()).unwrap();
    link.run();
    let (messages, status) = link.outcome(call);
    assert_eq!((messages[0].len(), status), (length, Some(OK)));
    assert!(link.service.unsent_max < 600 << 10, "{} bytes", link.service.unsent_max);
}

#[test]
fn many_large_bodies_share_the_connection() {
    let mut link = Link::new();
    let large = link.client.method(LARGE);
    let calls: Vec<_> = (0..20)
        .map(|_| link.client.start_unary(large, &CallOptions::default(), b"1500000").unwrap())
        .collect();
    link.run();
    for call in calls {
        assert_eq!(link.outcome(call).0[0].len(), 1_500_000);
    }
    assert!(link.service.unsent_max < 2 << 20, "{} bytes", link.service.unsent_max);
}

#[test]
fn messages_above_the_maximum_are_refused_with_both_numbers() {
    let config = ServerConfig { message_bytes_max: 1_000, ..ServerConfig::default() };
    let client = ClientConfig { message_bytes_max: 500, ..ClientConfig::default() };
    let mut link = Link::with(client, config, &Budget::default());
    let unary = link.client.method(UNARY);
    let options = CallOptions::default();
    let large = link.client.start_unary(unary, &options, &[0; 1_001]).unwrap();
    let answer = link.client.start_unary(unary, &options, &[0; 501]).unwrap();
    let fits = link.client.start_unary(unary, &options, &[0; 500]).unwrap();
    link.run();
    let text = |numbers: &str| format!("grpc: received message larger than max ({numbers})");
    let exhausted = |numbers| Some((Code::ResourceExhausted, text(numbers)));
    assert_eq!(link.outcome(large).1, exhausted("1001 vs. 1000"));
    assert_eq!(link.outcome(answer).1, exhausted("501 vs. 500"));
    assert_eq!(link.outcome(fits).1, Some(OK));
}

#[test]
fn metadata_reaches_the_service() {
    let mut link = Link::new();
    let meta = link.client.method(META);
    let token = link.client.register_metadata("token", b"secret.1");
    let version = link.client.register_metadata("client-api-version", b"3.7.1");
    let leader = link.client.register_metadata("hasleader", b"true");
    let binary = encode_base64(&[0, 255]);
    let options = CallOptions {
        timeout_ms: Some(1_500),
        registered: &[token, version, leader],
        metadata: &[("x-custom", b"hello"), ("x-bin", binary.as_bytes())],
        ..CallOptions::default()
    };
    for _ in 0..3 {
        let call = link.client.start_unary(meta, &options, b"").unwrap();
        link.run();
        let text = String::from_utf8(link.outcome(call).0.remove(0)).unwrap();
        for part in [
            "deadline_ms: Some(2500)",
            "token: Some(b\"secret.1\")",
            "client_api_version: Some(b\"3.7.1\")",
            "has_leader: true",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("hello"), "nobody asks for it: {text}");
    }
    assert_eq!(link.service.server.authority(), b"localhost");
}

#[test]
fn gzip_goes_both_ways_when_asked_for() {
    let mut link = Link::new();
    let [unary, bidi] = [UNARY, BIDI].map(|path| link.client.method(path));
    let options = CallOptions { gzip: true, ..CallOptions::default() };
    let message = vec![b'z'; 1_000_000];
    let call = link.client.start_unary(unary, &options, &message).unwrap();
    let stream = link.client.start_stream(bidi, &options).unwrap();
    link.client.send_message(stream, &message).unwrap();
    assert!(link.client.unsent_bytes() < 10_000, "compressed on the wire");
    link.client.half_close(stream).unwrap();
    link.run();
    assert_eq!(link.outcome(call), (vec![message.clone()], Some(OK)));
    assert_eq!(link.outcome(stream), (vec![message], Some(OK)));
}

#[test]
fn a_gzip_bomb_is_refused_after_inflation() {
    let config = ServerConfig { message_bytes_max: 10_000, ..ServerConfig::default() };
    let mut link = Link::with(ClientConfig::default(), config, &Budget::default());
    let unary = link.client.method(UNARY);
    let options = CallOptions { gzip: true, ..CallOptions::default() };
    let call = link.client.start_unary(unary, &options, &vec![0; 1 << 20]).unwrap();
    link.run();
    let text = "grpc: received message after decompression larger than max 10000".to_owned();
    assert_eq!(link.outcome(call).1, Some((Code::ResourceExhausted, text)));
}

#[test]
fn an_unknown_encoding_is_unimplemented() {
    let mut link = Link::new();
    let unary = link.client.method(UNARY);
    let options =
        CallOptions { metadata: &[("grpc-encoding", b"snappy")], ..CallOptions::default() };
    let call = link.client.start_unary(unary, &options, b"x").unwrap();
    link.run();
    let text = "grpc: Decompressor is not installed for grpc-encoding \"snappy\"".to_owned();
    assert_eq!(link.outcome(call).1, Some((Code::Unimplemented, text)));
}

#[test]
fn a_malformed_timeout_fails_the_call() {
    let mut link = Link::new();
    let unary = link.client.method(UNARY);
    for (timeout, code, text) in [
        ("5x", Code::Internal, "timeout unit is not recognized: \"5x\""),
        ("0m", Code::DeadlineExceeded, "context deadline exceeded"),
    ] {
        let metadata: [(&str, &[u8]); 1] = [("grpc-timeout", timeout.as_bytes())];
        let options = CallOptions { metadata: &metadata, ..CallOptions::default() };
        let call = link.client.start_unary(unary, &options, b"x").unwrap();
        link.run();
        let status = link.outcome(call).1.unwrap();
        assert!(status.0 == code && status.1.ends_with(text), "{status:?}");
    }
}

#[test]
fn a_cancelled_call_is_reported_once_and_frees_its_state() {
    let mut link = Link::new();
    let [hang, bidi] = [HANG, BIDI].map(|path| link.client.method(path));
    let call = link.client.start_unary(hang, &CallOptions::default(), b"x").unwrap();
    let stream = link.client.start_stream(bidi, &CallOptions::default()).unwrap();
    link.run();
    assert_eq!(link.service.server.open_streams(), 2);
    link.client.cancel(call);
    link.client.cancel(stream);
    link.client.cancel(stream);
    link.run();
    assert_eq!(link.service.cancelled, 2);
    assert_eq!((link.client.open_streams(), link.service.server.open_streams()), (0, 0));
    assert_eq!(link.outcome(call), (vec![], None));
}

#[test]
fn a_graceful_end_serves_what_is_on_its_way() {
    let mut link = Link::new();
    let [unary, bidi] = [UNARY, BIDI].map(|path| link.client.method(path));
    let stream = link.client.start_stream(bidi, &CallOptions::default()).unwrap();
    link.run();
    link.service.server.graceful_goaway();
    let call = link.client.start_unary(unary, &CallOptions::default(), b"x").unwrap();
    link.run();
    assert_eq!(link.outcome(call).1, Some(OK));
    assert!(!link.service.server.is_drained());
    let refused = link.client.start_unary(unary, &CallOptions::default(), b"x");
    assert_eq!(refused, Err(StartError::GoingAway));
    link.client.send_message(stream, b"still here").unwrap();
    link.client.half_close(stream).unwrap();
    link.run();
    assert_eq!(link.outcome(stream), (vec![b"still here".to_vec()], Some(OK)));
    assert!(link.service.server.is_drained());
    assert!(link.client.is_drained());
    let goodbyes = link
        .events
        .iter()
        .filter(|event| matches!(event, ClientEvent::GoAway { code: ErrorCode::NO_ERROR, .. }));
    assert_eq!(goodbyes.count(), 2);
}

#[test]
fn the_server_s_limit_of_streams_holds() {
    let h2 = Config { concurrent_streams_max: 3, ..Config::default() };
    let config = ServerConfig { h2, ..ServerConfig::default() };
    let mut link = Link::with(ClientConfig::default(), config, &Budget::default());
    let hang = link.client.method(HANG);
    let options = CallOptions::default();
    // Before the settings are known the client may exceed the limit: the server refuses.
    let calls: Vec<_> =
        (0..5).map(|_| link.client.start_unary(hang, &options, b"x").unwrap()).collect();
    link.run();
    let refused: Vec<_> = calls
        .iter()
        .filter(|call| matches!(link.outcome(**call).1, Some((Code::Unavailable, _))))
        .collect();
    assert_eq!(refused, [&calls[3], &calls[4]]);
    let unprocessed = link
        .events
        .iter()
        .filter(|event| matches!(event, ClientEvent::Status { unprocessed: true, .. }));
    assert_eq!(unprocessed.count(), 2);
    assert_eq!(link.client.concurrent_streams_max(), 3);
    let more = link.client.start_unary(hang, &options, b"x");
    assert_eq!(more, Err(StartError::TooManyStreams));
}

#[test]
fn a_silent_server_is_found_out_by_keepalive() {
    let h2 = Config {
        keepalive: Some(Keepalive { interval_ms: 10_000, timeout_ms: 2_000 }),
        ..Config::client()
    };
    let client = ClientConfig { h2, ..ClientConfig::default() };
    let mut link = Link::with(client, ServerConfig::default(), &Budget::default());
    let hang = link.client.method(HANG);
    let call = link.client.start_unary(hang, &CallOptions::default(), b"x").unwrap();
    link.run();
    for _ in 0..3 {
        link.now_ms = link.client.next_deadline_ms().unwrap();
        link.client.tick(link.now_ms).unwrap();
        link.run();
    }
    assert_eq!(link.outcome(call).1, None, "an answered ping keeps the connection");
    let ping_at = link.client.next_deadline_ms().unwrap();
    link.client.tick(ping_at).unwrap();
    assert_eq!(link.client.next_deadline_ms(), Some(ping_at + 2_000));
    link.client.tick(ping_at + 2_000).unwrap_err();
    while let Some(event) = link.client.next_event() {
        link.events.push(event);
    }
    let text = "keepalive ping not acked within timeout".to_owned();
    assert_eq!(link.outcome(call).1, Some((Code::Unavailable, text)));
}

#[test]
fn large_requests_wait_for_the_budget_and_all_arrive() {
    // Room for about two of the messages at once.
    let budget = Budget::new(4 << 20, 4 << 20);
    let mut link = Link::with(ClientConfig::default(), ServerConfig::default(), &budget);
    let collect = link.client.method(COLLECT);
    let calls: Vec<_> = (0..30)
        .map(|_| {
            let call = link.client.start_stream(collect, &CallOptions::default()).unwrap();
            link.client.send_message(call, &vec![1; 1_500_000]).unwrap();
            link.client.half_close(call).unwrap();
            call
        })
        .collect();
    link.run();
    for call in calls {
        assert_eq!(link.outcome(call), (vec![b"1 1500000".to_vec()], Some(OK)));
    }
    assert!(budget.used() < 200 << 10, "{} bytes", budget.used());
}

#[test]
fn wide_stream_windows_survive_large_messages() {
    let h2 = Config { stream_window_bytes: 1 << 20, ..Config::default() };
    let config = ServerConfig { h2, ..ServerConfig::default() };
    let mut link = Link::with(ClientConfig::default(), config, &Budget::default());
    let collect = link.client.method(COLLECT);
    let call = link.client.start_stream(collect, &CallOptions::default()).unwrap();
    for _ in 0..20 {
        link.client.send_message(call, &vec![1; 1_900_000]).unwrap();
        link.client.send_message(call, &vec![1; 100_000]).unwrap();
        link.run();
    }
    link.client.half_close(call).unwrap();
    link.run();
    assert_eq!(link.outcome(call), (vec![b"40 40000000".to_vec()], Some(OK)));
}
