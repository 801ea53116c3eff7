//! From a peer's URL to an address: literal ones at once, names by the pool.
//!
//! Owned by the links. A name with several addresses is tried at one after the other, IPv4 first.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use etcore_raftlog::peer::ConnId;

use crate::config::ListenUrl;
use crate::disk::pool::Pool;
use crate::driver::{PeerAddress, Waker};
use crate::limits;

/// An address for a connection, or why there is none.
pub(super) type Found = (ConnId, Result<PeerAddress, String>);

/// See the module text.
pub(super) struct Resolver {
    pool: Option<Pool>,
    waker: Waker,
    answers: Arc<ArrayQueue<Found>>,
    /// How often a name's addresses failed since one worked.
    failures: BTreeMap<String, usize>,
}

/// What a name resolves to without waiting.
pub(super) enum Resolved {
    Now(PeerAddress),
    Later,
    Failed(String),
}

impl Resolver {
    pub(super) fn new(pool: Option<Pool>, waker: Waker) -> Self {
        let answers = Arc::new(ArrayQueue::new(limits::PEER_NAMES));
        Self { pool, waker, answers, failures: BTreeMap::new() }
    }

    pub(super) fn resolve(&self, conn: ConnId, url: &str) -> Resolved {
        let (host, port) = match ListenUrl::parse(url) {
            Ok(ListenUrl::Tcp { host, port, .. }) => (host, port),
            Ok(ListenUrl::Unix { path, .. }) => {
                return Resolved::Now(PeerAddress::Unix(PathBuf::from(path)));
            }
            Err(error) => return Resolved::Failed(error),
        };
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Resolved::Now(PeerAddress::Tcp(SocketAddr::new(ip, port)));
        }
        let Some(pool) = &self.pool else {
            return Resolved::Failed(format!("{host} is not an address"));
        };
        let turn = self.failures.get(url).copied().unwrap_or(0);
        let (answers, waker) = (self.answers.clone(), self.waker.clone());
        let job = Box::new(move || {
            // More answers than dials cannot be: each dial asks once.
            let _ = answers.push((conn, look_up(&host, port, turn)));
            waker.wake();
        });
        match pool.run(job) {
            Ok(()) => Resolved::Later,
            Err(_) => Resolved::Failed("too many jobs wait for the pool".to_owned()),
        }
    }

    pub(super) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    pub(super) fn next_answer(&self) -> Option<Found> {
        self.answers.pop()
    }

    /// The address given for this URL did not work.
    pub(super) fn failed(&mut self, url: &str) {
        if self.failures.len() >= limits::PEER_NAMES {
            self.failures.clear();
        }
        let failures = self.failures.entry(url.to_owned()).or_default();
        *failures = failures.wrapping_add(1);
    }
}

fn look_up(host: &str, port: u16, turn: usize) -> Result<PeerAddress, String> {
    let found = (host, port).to_socket_addrs();
    let mut addresses: Vec<_> = found.map_err(|error| error.to_string())?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    match addresses.len() {
        0 => Err(format!("{host} has no address")),
        count => Ok(PeerAddress::Tcp(addresses[turn % count])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::pool::{PoolThreads, Size};

    const CONN: ConnId = ConnId { slot: 3, generation: 1 };

    #[test]
    fn addresses_need_no_pool_and_names_do() {
        let alone = Resolver::new(None, Waker::new().unwrap());
        let tcp = |text: &str| PeerAddress::Tcp(text.parse().unwrap());
        let now = |url: &str| match alone.resolve(CONN, url) {
            Resolved::Now(address) => Some(address),
            _ => None,
        };
        assert_eq!(now("http://127.0.0.1:2380"), Some(tcp("127.0.0.1:2380")));
        assert_eq!(now("http://[::1]:2380/"), Some(tcp("[::1]:2380")));
        assert_eq!(now("unix://a/b"), Some(PeerAddress::Unix("a/b".into())));
        assert_eq!(now("http://localhost:2380"), None);
        assert!(matches!(alone.resolve(CONN, "ftp://a:1"), Resolved::Failed(_)));
    }

    #[test]
    fn a_name_is_resolved_by_the_pool_and_its_addresses_take_turns() {
        let mut threads = PoolThreads::default();
        let size = Size { threads: 1, jobs: 1 };
        let pool = Pool::start("test", size, &mut threads).unwrap();
        let mut resolver = Resolver::new(Some(pool), Waker::new().unwrap());
        let url = "http://localhost:2380";
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..4 {
            assert!(matches!(resolver.resolve(CONN, url), Resolved::Later));
            let (conn, address) = loop {
                if let Some(answer) = resolver.next_answer() {
                    break answer;
                }
                std::thread::yield_now();
            };
            assert_eq!(conn, CONN);
            let PeerAddress::Tcp(address) = address.unwrap() else { panic!("TCP") };
            assert!(address.ip().is_loopback() && address.port() == 2380);
            seen.insert(address);
            resolver.failed(url);
        }
        let all: Vec<_> = ("localhost", 2380).to_socket_addrs().unwrap().collect();
        assert!(all.iter().all(|address| seen.contains(address)), "{seen:?} of {all:?}");
        drop(resolver);
        threads.join();
    }
}
