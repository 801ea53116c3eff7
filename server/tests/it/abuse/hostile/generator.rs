//! The hostile client out of seeds, in a crowd, against real members: nothing dies, memory stays
//! within the budgets, and who behaves is served all the time.
//!
//! Each connection has a seed of its own; the first one is printed, and chosen by
//! `ETCORE_HOSTILE_SEED`. `ETCORE_LONG` attacks for ten minutes, `ETCORE_HOSTILE_S` for so many
//! seconds.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use etcore_proto::pb::etcdserverpb as pb;
use etcore_server::limits;
use etcore_server::sim::hostile::{Hostile, Manner};

use super::attacker::carry_out;
use super::{as_if_elsewhere, sized};
use crate::harness::cluster::Cluster;
use crate::harness::raw::Raw;
use crate::harness::{Client, Member, Setup, block_on, on_each_driver, rss_anon_kib};

/// Connections at a time, for each member.
const ATTACKERS: usize = 16;
/// A bystander's call may take so long: attackers, members and bystanders share the machine.
const CALL_MAX: Duration = Duration::from_secs(5);
/// Connections that are over are closed after so long, those included whose answers wait.
const CLOSED_MAX: Duration = Duration::from_secs(20);
/// Revisions that compactions leave.
const KEPT_REVISIONS: i64 = 2_000;
/// Seeds that are told of when something is wrong.
const SEEDS_TOLD: usize = 200;

/// What members may hold for all clients together, and what nobody counts.
const GROWN_KIB_MAX: u64 = (limits::PROCESS_RECEIVE_BYTES as u64 >> 10) + (64 << 10);

/// How long an attack lasts that takes so many seconds by default.
fn attack_time(default_s: u64) -> Duration {
    let asked = std::env::var("ETCORE_HOSTILE_S").ok().map(|s| s.parse().unwrap());
    Duration::from_secs(asked.unwrap_or(sized(default_s, 600)))
}

/// Where seeds come from, and the latest of them.
struct Seeds {
    first: u64,
    next: AtomicU64,
    latest: Mutex<VecDeque<Told>>,
}

/// What is told of a connection.
#[derive(Debug, Clone)]
#[expect(dead_code, reason = "read by whoever reads a failure")]
struct Told {
    seed: u64,
    kind: String,
    /// Its own port.
    port: u16,
}

impl Seeds {
    fn new() -> Self {
        let chosen = std::env::var("ETCORE_HOSTILE_SEED").ok().map(|seed| seed.parse().unwrap());
        // Seconds since 1970, with room for a thousand connections a second.
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() * 1_000;
        let first = chosen.unwrap_or(now);
        Self { first, next: AtomicU64::new(first), latest: Mutex::default() }
    }

    fn next(&self, socket: &TcpStream) -> Hostile {
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        let hostile = Hostile::new(seed, Manner::REAL);
        let port = socket.local_addr().map_or(0, |address| address.port());
        let mut latest = self.latest.lock().unwrap();
        latest.push_back(Told { seed, kind: hostile.kind(), port });
        if latest.len() > SEEDS_TOLD {
            latest.pop_front();
        }
        hostile
    }

    fn told(&self) -> String {
        let next = self.next.load(Ordering::Relaxed);
        format!("seeds {}..{next}, the latest {:?}", self.first, self.latest.lock().unwrap())
    }

    /// The connections of clients that a member has not closed, whose seeds are known.
    /// With what the kernel says of each: its state, what waits to be sent and to be read.
    fn left_behind(&self, port: u16) -> Vec<(String, Option<Told>)> {
        let text = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let port_of = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
        let latest = self.latest.lock().unwrap();
        let ends = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (own, peer) = (port_of(words.next()?)?, port_of(words.next()?)?);
            let state = format!("state {} queues {}", words.next()?, words.next()?);
            let told = latest.iter().rev().find(|told| told.port == peer).cloned();
            (own == port).then_some((state, told))
        });
        ends.collect()
    }
}

/// A connection of the next seed, until it or the member ends it.
fn attack(port: u16, seeds: &Seeds) {
    let Ok(socket) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let hostile = seeds.next(&socket);
    carry_out(socket, hostile);
}

/// Puts and reads, one call after the other; each must succeed in time.
fn stand_by(port: u16, key: &str, stop: &AtomicBool) -> (usize, Duration) {
    let mut raw = Raw::connect(port, 1 << 20);
    let (mut calls, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        for took in [raw.put_once(key), raw.get_once(key)] {
            assert!(took < CALL_MAX, "a call of {key} took {took:?}");
            longest = longest.max(took);
            calls += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (calls, longest)
}

/// Keeps the history short, so that no quota is ever reached.
fn compact(setup: &Setup, stop: &AtomicBool) {
    block_on(async {
        let client = Client::connect(setup).await;
        while !stop.load(Ordering::Relaxed) {
            let status = client.status(pb::StatusRequest {}).await.expect("status");
            let revision = status.header.expect("a header").revision - KEPT_REVISIONS;
            if revision > 0 {
                let request = pb::CompactionRequest { revision, physical: false };
                // It may be compacted so far.
                let _ = client.compact(request).await;
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    });
}

/// The most memory that each has, until told to stop.
fn peaks(pids: &[u32], stop: &AtomicBool) -> Vec<u64> {
    let mut peaks = vec![0; pids.len()];
    while !stop.load(Ordering::Relaxed) {
        for (peak, pid) in peaks.iter_mut().zip(pids) {
            *peak = rss_anon_kib(*pid).max(*peak);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    peaks
}

/// Attacks all of them for a while.
fn under_hostile_clients(what: &str, setups: &[Setup], members: &[&Member], time: Duration) {
    let seeds = Seeds::new();
    let ports: Vec<u16> = setups.iter().map(|setup| setup.client_port).collect();
    // Members connect to each other as they need to.
    let peer_sockets = 8 * (ports.len() - 1);
    let pids: Vec<u32> = members.iter().map(|member| member.pid()).collect();
    let sockets: Vec<usize> = members.iter().map(|member| member.sockets()).collect();
    let before: Vec<u64> = pids.iter().map(|pid| rss_anon_kib(*pid)).collect();
    let stop = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let standing: Vec<_> = ports
            .iter()
            .enumerate()
            .map(|(at, port)| {
                let stop = &stop;
                scope.spawn(move || stand_by(*port, &format!("bystander{at}"), stop))
            })
            .collect();
        let memory = scope.spawn(|| peaks(&pids, &stop));
        let compacting = scope.spawn(|| compact(&setups[0], &stop));
        let until = Instant::now() + time;
        for at in 0..ATTACKERS * ports.len() {
            let (seeds, port, stop) = (&seeds, ports[at % ports.len()], &stop);
            scope.spawn(move || {
                as_if_elsewhere(0);
                while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                    attack(port, seeds);
                }
            });
        }
        // Over at once if a bystander is not served.
        while Instant::now() < until && standing.iter().all(|one| !one.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        let served: Result<Vec<_>, _> = standing.into_iter().map(|one| one.join()).collect();
        Ok((served?, memory.join()?, compacting.join()?))
    });
    let Ok((served, peaks, ())): std::thread::Result<_> = outcome else {
        panic!("{what}: a bystander was not served; {}", seeds.told());
    };
    let grown: Vec<u64> =
        peaks.iter().zip(&before).map(|(peak, before)| peak.saturating_sub(*before)).collect();
    let (first, next) = (seeds.first, seeds.next.load(Ordering::Relaxed));
    eprintln!("{what}: seeds {first}..{next}; bystanders {served:?}; grown by {grown:?} KiB");
    for grown in grown {
        assert!(grown <= GROWN_KIB_MAX, "{what}: {grown} KiB more; {}", seeds.told());
    }
    for ((member, before), port) in members.iter().zip(sockets).zip(ports) {
        let deadline = Instant::now() + CLOSED_MAX;
        while member.sockets() > before + peer_sockets {
            let left = seeds.left_behind(port);
            assert!(Instant::now() < deadline, "{what}: left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_member_survives_hostile_clients_and_serves_the_others() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver).with_long_segments();
        let mut member = setup.start();
        Raw::connect(setup.client_port, 1 << 20).put_once("first");
        let time = attack_time(7);
        let what = format!("{driver}: one member");
        under_hostile_clients(&what, std::slice::from_ref(&setup), &[&member], time);
        let hash = |revision| {
            block_on(async {
                let client = Client::connect(&setup).await;
                client.hash_kv(pb::HashKvRequest { revision }).await.expect("a hash")
            })
        };
        let before = hash(0);
        member.terminate();
        assert!(member.wait().success(), "{what}: {:?}", member.seen.last());
        let _member = setup.start();
        // A lease that ends meanwhile makes another revision.
        let after = hash(before.hash_revision);
        assert_eq!(
            (after.hash_revision, after.hash),
            (before.hash_revision, before.hash),
            "{what}"
        );
        Raw::connect(setup.client_port, 1 << 20).put_once("after");
    });
}

#[test]
fn three_members_survive_hostile_clients_and_agree() {
    let _turn = crate::harness::turn::of_file(module_path!());
    on_each_driver(|driver| {
        if driver != "uring" && !super::is_long() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::start(dir.path(), driver, 3, &[]);
        for setup in &cluster.setups {
            Raw::connect(setup.client_port, 1 << 20).put_once("first");
        }
        let members: Vec<&Member> = cluster.members.iter().flatten().collect();
        let time = attack_time(8);
        let what = format!("{driver}: three members");
        under_hostile_clients(&what, &cluster.setups, &members, time);
        block_on(cluster.assert_equal(0));
        for at in 0..3 {
            let mut member = cluster.members[at].take().expect("it runs");
            member.terminate();
            assert!(member.wait().success(), "{what}: {:?}", member.seen.last());
            cluster.restart(at);
            Raw::connect(cluster.setups[at].client_port, 1 << 20).put_once("after");
        }
        block_on(cluster.assert_equal(0));
    });
}
