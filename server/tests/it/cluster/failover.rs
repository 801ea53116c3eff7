//! How long writes wait when the leader of three real members goes: killed, told to stop, or with a
//! disk that hangs.
//!
//! Some trials each; `ETCORE_LONG=1` takes thirty, with etcd beside where it can be had, and prints
//! what both cost. The bounds asserted are far above what a quiet machine shows, and below what an
//! election timeout costs.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;

use crate::harness::cluster::Cluster;
use crate::harness::{Client, DRIVERS, Etcd, Setup, block_on, http_get, is_available, oracle};

/// A put is begun so often through each of the others.
const EVERY: Duration = Duration::from_millis(5);
/// Of the members, which keep the default.
const ELECTION: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq)]
enum Goes {
    Killed,
    ToldToStop,
}

fn is_long() -> bool {
    std::env::var_os("ETCORE_LONG").is_some()
}

/// The members go on undisturbed for so long first.
const BEFORE: Duration = Duration::from_millis(1500);

/// Begins puts through these members until the time is over, `act` after a while; the longest time
/// between two answers from then on.
async fn longest_without_writes(
    clients: Vec<Client>,
    lasts: Duration,
    act: impl FnOnce(),
) -> Duration {
    let answered = Arc::new(Mutex::new(Vec::new()));
    let begun = Instant::now();
    let (mut act, mut acted) = (Some(act), None);
    while begun.elapsed() < lasts {
        for client in &clients {
            let (client, answered) = (client.clone(), answered.clone());
            tokio::spawn(async move {
                let (key, value) = ("k".into(), "v".into());
                let put = pb::PutRequest { key, value, ..pb::PutRequest::default() };
                if client.put(put).await.is_ok() {
                    answered.lock().unwrap().push(Instant::now());
                }
            });
        }
        if begun.elapsed() > BEFORE
            && let Some(act) = act.take()
        {
            acted = Some(Instant::now());
            act();
        }
        tokio::time::sleep(EVERY).await;
    }
    let acted = acted.expect("it lasts longer");
    let mut answered = std::mem::take(&mut *answered.lock().unwrap());
    answered.sort_unstable();
    let first = answered.partition_point(|at| *at <= acted);
    let last_before = answered[..first].last().copied().unwrap_or(acted);
    let mut before = last_before;
    let mut longest = Duration::ZERO;
    for at in &answered[first..] {
        longest = longest.max(*at - before);
        before = *at;
    }
    longest.max((begun + lasts).saturating_duration_since(before))
}

fn signal(pid: u32, goes: Goes) {
    let pid = i32::try_from(pid).expect("a pid");
    let signal = if goes == Goes::Killed { libc::SIGKILL } else { libc::SIGTERM };
    // SAFETY: a signal to a child of ours, which has not been reaped.
    unsafe { libc::kill(pid, signal) };
}

fn told(what: &str, mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    let (median, last) = (took[took.len() / 2], took[took.len() - 1]);
    eprintln!("{what}: {} trials, median {median:?}, longest {last:?}", took.len());
    median
}

/// One trial after the other on one cluster; whoever went comes back in between.
fn trials(driver: &'static str, goes: Goes, count: usize) -> Vec<Duration> {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), driver, 3, &[]);
    let mut took = Vec::new();
    for _ in 0..count {
        took.push(block_on(async {
            let leader = cluster.leader().await;
            let pid = cluster.members[leader].as_ref().unwrap().pid();
            let mut clients = Vec::new();
            for at in cluster.others(leader) {
                clients.push(cluster.client(at).await);
            }
            let lasts = BEFORE + Duration::from_millis(2500);
            let longest = longest_without_writes(clients, lasts, || signal(pid, goes)).await;
            cluster.members[leader].take().unwrap().wait();
            cluster.restart(leader);
            longest
        }));
    }
    block_on(cluster.assert_equal(0));
    took
}

/// The same of etcd, on its own ports and directories.
fn trials_of_etcd(binary: &Path, goes: Goes, count: usize) -> Vec<Duration> {
    let dir = tempfile::tempdir().unwrap();
    let setups = Cluster::new(dir.path(), "portable", 3, &[]).setups;
    let mut members: Vec<Option<Etcd>> = std::thread::scope(|scope| {
        let start = |setup: &Setup| Some(Etcd::start(binary, setup));
        let started: Vec<_> =
            setups.iter().map(|setup| scope.spawn(move || start(setup))).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut took = Vec::new();
    for _ in 0..count {
        let (leader, longest) = block_on(async {
            let leader = leader_of(&setups).await;
            let pid = members[leader].as_ref().unwrap().pid();
            let mut clients = Vec::new();
            for (at, setup) in setups.iter().enumerate() {
                if at != leader {
                    clients.push(Client::connect(setup).await);
                }
            }
            let lasts = BEFORE + Duration::from_secs(4);
            (leader, longest_without_writes(clients, lasts, || signal(pid, goes)).await)
        });
        took.push(longest);
        members[leader] = None;
        members[leader] = Some(Etcd::start(binary, &setups[leader]));
    }
    took
}

async fn leader_of(setups: &[Setup]) -> usize {
    loop {
        let mut seen = Vec::new();
        for setup in setups {
            let status = Client::connect(setup).await.status(pb::StatusRequest {}).await;
            seen.extend(status.ok().map(|s| (s.header.unwrap().member_id, s.leader)));
        }
        let leader = seen.iter().position(|(id, leader)| id == leader);
        if let Some(at) = leader
            && seen.len() == setups.len()
            && seen.iter().all(|(_, known)| *known == seen[at].0)
        {
            return at;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn each_driver(goes: Goes, what: &str) {
    let count = if is_long() { 30 } else { 3 };
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let median = told(&format!("{what}, {driver}"), trials(driver, goes, count));
        assert!(median < ELECTION, "{median:?}: as if it had been an election timeout");
    }
    if is_long()
        && let Some(etcd) = oracle("etcd")
    {
        told(&format!("{what}, etcd"), trials_of_etcd(&etcd, goes, count));
    }
}

#[test]
fn writes_hardly_wait_when_a_leader_is_killed() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver(Goes::Killed, "killed");
}

#[test]
fn writes_hardly_wait_when_a_leader_is_told_to_stop() {
    let _turn = crate::harness::turn::of_file(module_path!());
    each_driver(Goes::ToldToStop, "told to stop");
}

/// Lets every write and sync of a process take half a minute.
fn hang_disk(pid: u32) -> Option<std::process::Child> {
    let calls = "pwritev2,pwrite64,fdatasync,fsync";
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")])
        .args(["-e", &format!("inject={calls}:delay_enter=30000000")])
        .args(["-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // With -qq it does not say when it is attached.
    std::thread::sleep(Duration::from_millis(500));
    strace.try_wait().ok()?.is_none().then_some(strace)
}

#[test]
fn a_leader_whose_disk_hangs_hands_over_and_says_why() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), "portable", 3, &[]);
    let (leader, others) = block_on(async {
        let leader = cluster.leader().await;
        (leader, cluster.others(leader))
    });
    let pid = cluster.members[leader].as_ref().unwrap().pid();
    let mut strace = None;
    let longest = block_on(async {
        let mut clients = Vec::new();
        for at in &others {
            clients.push(cluster.client(*at).await);
        }
        let lasts = BEFORE + Duration::from_secs(5);
        longest_without_writes(clients, lasts, || strace = hang_disk(pid)).await
    });
    let Some(mut strace) = strace else {
        eprintln!("SKIPPED: strace is not here or may not trace; a hung disk is not tested");
        return;
    };
    eprintln!("a hung disk cost {longest:?} without writes");
    // An election timeout until it is noticed, half a second for strace, and a busy machine.
    assert!(longest < 4 * ELECTION, "{longest:?}");
    // Ten seconds without progress are told of.
    let port = cluster.setups[leader].client_port;
    let deadline = Instant::now() + Duration::from_secs(20);
    let (status, text) = loop {
        let answer = http_get(port, "/readyz");
        if answer.0 != 200 || Instant::now() > deadline {
            break answer;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(status == 503 && text.contains("log write"), "{status} {text}");
    let (status, _) = http_get(cluster.setups[others[0]].client_port, "/readyz");
    assert_eq!(status, 200);
    let id = i32::try_from(strace.id()).expect("a pid");
    // SAFETY: a signal to our own child, which has not been reaped; it detaches.
    unsafe { libc::kill(id, libc::SIGINT) };
    let _ = strace.wait();
    // It comes back by itself.
    block_on(cluster.assert_equal(others[0]));
}
