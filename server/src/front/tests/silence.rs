//! Peers that say nothing, too little or goodbye: how long a front keeps their connections.

use super::*;

impl Rig {
    /// Lets time pass as it does for a front: in ticks.
    fn wait_ms(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while self.now_ms < until {
            self.now_ms = (self.now_ms + 1000).min(until);
            self.turn();
        }
    }

    fn feed(&mut self, slot: u32, bytes: &[u8]) {
        self.front.begin_turn(self.now_ms);
        self.front.received(SocketId { slot, generation: 0 }, bytes);
        self.turn();
    }

    fn answers(&mut self) -> String {
        let sends = std::mem::take(&mut self.driver.sends);
        let mut text = Vec::new();
        for (socket, bytes) in sends {
            text.extend_from_slice(&bytes);
            self.front.sent(socket, Vec::new(), Ok(()));
        }
        self.turn();
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[test]
fn connections_that_do_not_get_to_the_point_are_closed_in_the_end() {
    let mut rig = Rig::new();
    let begun: [&[u8]; 4] =
        [b"", b"PRI * HTTP/2.0\r\n\r\nS", b"GET /health HTTP/1.1\r\nHost: h\r\n", b"G"];
    let peers: Vec<UnixStream> = begun.iter().map(|_| rig.accept()).collect();
    rig.turn();
    for (slot, bytes) in (0..).zip(begun) {
        rig.feed(slot, bytes);
    }
    rig.wait_ms(limits::REQUEST_MS - 2000);
    assert_eq!((rig.driver.closed.len(), rig.connections()), (0, peers.len()));
    // Another byte does not buy more time.
    rig.feed(3, b"E");
    rig.wait_ms(4000);
    assert_eq!((rig.driver.closed.len(), rig.connections()), (peers.len(), 0));
}

#[test]
fn clients_that_wait_between_requests_are_kept() {
    let mut rig = Rig::new();
    let _plain = rig.accept();
    rig.turn();
    let mut grpc = rig.client();
    rig.feed(0, b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(rig.answers().starts_with("HTTP/1.1 200"));
    rig.wait_ms(10 * limits::REQUEST_MS);
    assert_eq!(rig.driver.closed, []);
    rig.feed(0, b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(rig.answers().starts_with("HTTP/1.1 200"));
    grpc.start_put(1, b"v");
    grpc.exchange(&mut rig);
    assert!(rig.replica.pop().is_some(), "an idle client's next call is served");
}

#[test]
fn a_plain_client_that_has_ended_its_side_is_answered_before_the_connection_ends() {
    let mut rig = Rig::new();
    let _peer = rig.accept();
    rig.turn();
    let socket = SocketId { slot: 0, generation: 0 };
    rig.front.begin_turn(rig.now_ms);
    rig.front.received(socket, b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n");
    // In the same turn, as when both were in the socket's buffer.
    rig.front.disconnected(socket, None);
    rig.turn();
    assert_eq!(rig.driver.closed, [], "the answer is not sent yet");
    assert!(rig.answers().starts_with("HTTP/1.1 200"));
    assert_eq!(rig.driver.closed, [socket]);
}

#[test]
fn a_plain_client_that_has_ended_its_side_is_not_waited_for_without_end() {
    let mut rig = Rig::new();
    let _peer = rig.accept();
    rig.turn();
    let socket = SocketId { slot: 0, generation: 0 };
    rig.front.begin_turn(rig.now_ms);
    // Waits for a read of the replica, which never comes here; then for the client to take it.
    rig.front.received(socket, b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n");
    rig.front.disconnected(socket, None);
    rig.turn();
    assert_eq!(rig.driver.closed, []);
    rig.wait_ms(limits::HALF_CLOSED_MS - 1000);
    assert_eq!(rig.driver.closed, []);
    rig.wait_ms(2000);
    assert_eq!(rig.driver.closed, [socket]);
}

#[test]
fn time_passes_for_thousands_of_connections_some_in_each_round() {
    const PEERS: usize = 10 * limits::TICKS_PER_ROUND;
    let mut rig = Rig::new();
    let mut peers = Vec::new();
    while peers.len() < PEERS {
        peers.extend((0..limits::ATTACHES_PER_TURN).map(|_| rig.accept()));
        rig.turn();
    }
    rig.wait_ms(limits::REQUEST_MS - 2000);
    while rig.front.has_input() {
        rig.turn();
    }
    assert_eq!(rig.driver.closed, []);
    rig.now_ms += 4000;
    let mut rounds = 0;
    while rig.connections() > 0 {
        let before = rig.driver.closed.len();
        rig.turn();
        assert!(rig.driver.closed.len() <= before + limits::TICKS_PER_ROUND);
        rounds += 1;
        assert!(rounds <= 10 && (rounds == 10 || rig.front.has_input()), "round {rounds}");
    }
    assert_eq!((rounds, rig.driver.closed.len()), (10, PEERS));
}

#[test]
fn a_socket_that_takes_nothing_is_closed_in_the_end_and_a_slow_one_is_not() {
    let mut rig = Rig::new();
    let _peers = [rig.accept(), rig.accept()];
    rig.turn();
    let socket = |slot| SocketId { slot, generation: 0 };
    for slot in [0, 1] {
        rig.feed(slot, b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    let mut slow = 0;
    for _ in 0..3 {
        rig.wait_ms(limits::WRITE_MS / 2 - 1000);
        // The second one takes a send now and then, and asks again.
        assert!(rig.driver.sends.iter().any(|(of, _)| *of == socket(1)));
        rig.driver.sends.clear();
        rig.front.sent(socket(1), Vec::new(), Ok(()));
        slow += 1;
        rig.feed(1, b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
        for (_, bytes) in &rig.driver.sends {
            assert!(bytes.len() <= limits::SLOW_SEND_BYTES, "{} bytes to a slow one", bytes.len());
        }
    }
    assert_eq!((rig.driver.closed.clone(), slow), (vec![socket(0)], 3));
}

#[test]
fn requests_sent_without_waiting_are_answered_one_in_a_round() {
    let mut rig = Rig::new();
    let _peer = rig.accept();
    rig.turn();
    let socket = SocketId { slot: 0, generation: 0 };
    rig.front.begin_turn(rig.now_ms);
    let requests = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(2_600);
    for bytes in requests.chunks(limits::RECEIVE_BUFFER_BYTES) {
        rig.front.received(socket, bytes);
    }
    let mut answers = 0;
    let mut page_bytes = 0;
    while answers < 2_600 {
        rig.turn();
        let sends = std::mem::take(&mut rig.driver.sends);
        assert!(sends.len() <= 1);
        for (_, bytes) in sends {
            answers += 1;
            page_bytes = bytes.len();
            assert!(bytes.starts_with(b"HTTP/1.1 200"), "one whole answer");
            assert!(rig.front.wire.settings().budget.used() < 512 << 10);
            rig.front.sent(socket, Vec::new(), Ok(()));
        }
    }
    assert!(page_bytes > 1_000);
    assert_eq!(rig.front.services.renders(), u64::from(limits::PAGE_RENDERS), "within one tick");
    rig.turn();
    assert!(!rig.driver.paused[0]);
}

#[test]
fn plain_requests_wait_while_the_budgets_have_no_room_for_their_answers() {
    let mut rig = Rig::new();
    let _peer = rig.accept();
    rig.turn();
    let mut others = rig.front.wire.settings().budget.account();
    others.set(limits::PROCESS_RECEIVE_BYTES);
    rig.feed(0, b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n");
    rig.wait_ms(3000);
    assert_eq!(rig.answers(), "");
    others.set(0);
    rig.wait_ms(1000);
    assert!(rig.answers().starts_with("HTTP/1.1 200"));
}

#[test]
fn a_watch_and_a_call_without_a_message_end_at_their_deadlines() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let options = CallOptions { timeout_ms: Some(2_000), ..Default::default() };
    for path in ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"] {
        let method = caller.client.method(path);
        caller.client.start_stream(method, &options).unwrap();
    }
    caller.exchange(&mut rig);
    assert!(!rig.front.services.watches_nothing());
    rig.now_ms += 1_900;
    caller.exchange(&mut rig);
    assert!(!rig.front.services.watches_nothing() && caller.answers.is_empty());
    rig.now_ms += 200;
    caller.exchange(&mut rig);
    assert!(rig.front.services.watches_nothing());
    assert_eq!(caller.answers.len(), 2, "{:?}", caller.answers);
}
