//! One entry for each parser here that reads bytes from peers: any input, no panic, bounded memory.
//!
//! Called by fuzz targets and by tests with arbitrary bytes. Entries look at results only to check
//! that bounds hold.

use super::codec::Decoder;
use super::{Effect, Local, Settings, StreamKind, Transport};

/// An entry's name and what it is fed to.
pub type Entry = (&'static str, fn(&[u8]));

/// Every entry.
pub const ENTRIES: [Entry; 4] = [
    ("peer_message_stream", fuzz_message_stream),
    ("peer_append_stream", fuzz_append_stream),
    ("peer_accepted", fuzz_accepted),
    ("peer_dialled", fuzz_dialled),
];

const LOCAL: u64 = 1;
const REMOTE: u64 = 2;
/// The cluster that a request in the corpus names.
const CLUSTER: u64 = 0xcdf8;

/// The first byte chooses how reads are cut.
fn cuts(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (first, rest) = input.split_first().unwrap_or((&0, &[]));
    rest.chunks(usize::from(*first) + 1)
}

fn decode(kind: StreamKind, input: &[u8]) {
    let mut decoder = Decoder::new(kind, LOCAL, REMOTE);
    for piece in cuts(input) {
        if decoder.receive(piece, &mut |_| {}).is_err() {
            return;
        }
        assert!(decoder.held_bytes() <= input.len(), "holds more than it was given");
    }
}

/// A `message` stream.
pub fn fuzz_message_stream(input: &[u8]) {
    decode(StreamKind::Message, input);
}

/// A `msgapp` stream.
pub fn fuzz_append_stream(input: &[u8]) {
    decode(StreamKind::Append, input);
}

fn transport() -> Transport {
    let local = Local {
        member_id: LOCAL,
        cluster_id: CLUSTER,
        peer_urls: vec!["http://a:1".to_owned()],
        version: "3.7.1",
        min_cluster_version: "3.0.0",
    };
    let mut transport = Transport::new(Settings::new(local, 1000));
    transport.begin(1);
    let urls = ["http://b:1".to_owned()];
    transport.set_members([(REMOTE, urls.as_slice())].into_iter());
    transport
}

/// Answers what is asked, takes what came, and lets a minute pass.
fn settle(transport: &mut Transport) {
    while let Some(asked) = transport.next_request() {
        transport.answer(asked.conn, 404, &[], b"no");
    }
    while transport.next_received().is_some() {}
    while let Some(dirty) = transport.next_dirty() {
        transport.transmit(dirty, &mut Vec::new());
    }
    transport.begin(100_000);
    transport.tick();
}

/// A connection that a peer, or anybody, made to the peer port.
pub fn fuzz_accepted(input: &[u8]) {
    let mut transport = transport();
    let Some(conn) = transport.accepted() else { return };
    for piece in cuts(input) {
        transport.received(conn, piece);
    }
    transport.closed(conn, None);
    settle(&mut transport);
}

/// What a peer answers on the connections that were dialled.
pub fn fuzz_dialled(input: &[u8]) {
    let mut transport = transport();
    let mut conns = Vec::new();
    while let Some(effect) = transport.next_effect() {
        if let Effect::Connect { conn, .. } = effect {
            transport.connected(conn, Ok(()));
            conns.push(conn);
        }
    }
    for piece in cuts(input) {
        conns.iter().for_each(|conn| transport.received(*conn, piece));
    }
    settle(&mut transport);
}
