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
