//! Round trips to peers.
//!
//! Called by the probe with `--peers`. A TCP connection costs one round trip, and so does a
//! refusal, so nothing needs to listen there yet. Nothing is ever sent over the connections.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::limits::{CONNECT_TIMEOUT_MS, CONNECTS};
use crate::sample::Distribution;

/// What came of one peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Peer {
    /// As given.
    pub name: String,
    /// What the name stands for; the first address is the one that is timed.
    pub addresses: Vec<SocketAddr>,
    /// Round trips, if the host answered.
    pub round_trip: Option<Distribution>,
    /// True if something listens there.
    pub listening: bool,
    /// Why there are no round trips.
    pub error: Option<String>,
}

/// Times connections to `name`, which is `host:port`.
pub fn time(name: &str) -> Peer {
    let mut peer = Peer {
        name: name.to_owned(),
        addresses: Vec::new(),
        round_trip: None,
        listening: false,
        error: None,
    };
    match name.to_socket_addrs() {
        Ok(addresses) => peer.addresses = addresses.collect(),
        Err(error) => peer.error = Some(error.to_string()),
    }
    let Some(address) = peer.addresses.first() else {
        peer.error.get_or_insert_with(|| "the name has no address".to_owned());
        return peer;
    };
    let mut samples = Vec::new();
    for _ in 0..CONNECTS {
        let start = Instant::now();
        let timeout = Duration::from_millis(CONNECT_TIMEOUT_MS);
        match TcpStream::connect_timeout(address, timeout) {
            Ok(_) => peer.listening = true,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => {
                peer.error = Some(error.to_string());
                break;
            }
        }
        samples.push(start.elapsed());
    }
    peer.round_trip = Distribution::of(samples);
    peer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_peer_and_a_refusing_one_both_tell_the_round_trip() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let name = listener.local_addr().expect("an address").to_string();
        let open = time(&name);
        assert!(open.listening && open.error.is_none(), "{open:?}");
        assert_eq!(open.round_trip.map(|trip| trip.count), Some(u64::from(CONNECTS)));
        drop(listener);
        let closed = time(&name);
        assert!(!closed.listening && closed.error.is_none(), "{closed:?}");
        assert!(closed.round_trip.is_some());
    }

    #[test]
    fn a_name_that_means_nothing_is_told() {
        let peer = time("no-port");
        assert!(peer.error.is_some() && peer.round_trip.is_none());
    }
}
