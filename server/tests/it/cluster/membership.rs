//! Members that come and go while the cluster runs: held against etcd's answers, in clusters of
//! both makes, and under load.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use tonic::{Code, Status};

use crate::harness::{Client, DRIVERS, Member, Setup, block_on, is_available, oracle};

/// What a member is made of.
#[derive(Clone)]
enum Make {
    Etcore,
    Etcd(PathBuf),
}

impl Make {
    fn command(&self, setup: &Setup) -> Command {
        let ours = setup.command();
        let Self::Etcd(binary) = self else { return ours };
        let mut command = Command::new(binary);
        command.args(ours.get_args().filter(|arg| {
            let arg = arg.to_string_lossy();
            !["--io-driver", "--wal-segment-bytes"].iter().any(|flag| arg.starts_with(flag))
        }));
        command
    }
}

/// Members of one cluster, by the order in which they came.
struct Members {
    dir: PathBuf,
    driver: &'static str,
    setups: Vec<Setup>,
    makes: Vec<Make>,
    running: Vec<Option<Member>>,
}

fn driver() -> &'static str {
    DRIVERS.into_iter().find(|driver| is_available(driver)).expect("a driver")
}

impl Members {
    /// A cluster of one.
    fn found(dir: &Path, driver: &'static str, make: Make, flags: &[&str]) -> Self {
        let (dir, empty) = (dir.to_owned(), Vec::new);
        let mut members =
            Self { dir, driver, setups: Vec::new(), makes: empty(), running: Vec::new() };
        let setup = members.setup(flags);
        members.take(setup, make);
        members
    }

    /// How the next member would start.
    fn setup(&self, flags: &[&str]) -> Setup {
        let mut setup = Setup::new(&self.dir, self.driver);
        setup.name = format!("m{}", self.setups.len() + 1);
        setup.data_dir = self.dir.join(format!("{}.etcd", setup.name));
        setup.extra = flags.iter().map(|flag| (*flag).to_owned()).collect();
        setup
    }

    /// Starts a member and waits until it serves.
    fn take(&mut self, setup: Setup, make: Make) {
        let mut member = Member::spawn(make.command(&setup));
        member.wait_for_line("ready to serve client requests");
        self.setups.push(setup);
        self.makes.push(make);
        self.running.push(Some(member));
    }

    /// What a member that joins is to be told of those that the cluster has.
    async fn initial_cluster(&self, through: usize, setup: &Setup) -> String {
        let list = self.client(through).await.member_list(pb::MemberListRequest::default()).await;
        let pairs = list.expect("a list").members.into_iter().flat_map(|member| {
            let own = member.peer_ur_ls.contains(&setup.peer_url());
            let name = if own { setup.name.clone() } else { member.name };
            member.peer_ur_ls.into_iter().map(move |url| format!("{name}={url}"))
        });
        pairs.collect::<Vec<_>>().join(",")
    }

    /// Adds a member and starts it; returns its ID.
    fn join(&mut self, through: usize, make: Make, is_learner: bool, flags: &[&str]) -> u64 {
        let mut setup = self.setup(flags).with("--initial-cluster-state=existing");
        let id = block_on(async {
            let client = self.client(through).await;
            let id = add(&client, &setup.peer_url(), is_learner).await.expect("added");
            setup.initial_cluster = self.initial_cluster(through, &setup).await;
            id
        });
        self.take(setup, make);
        id
    }

    async fn client(&self, at: usize) -> Client {
        Client::connect(&self.setups[at]).await
    }

    /// Waits until a member knows that it is a learner no longer.
    async fn votes(&self, at: usize) {
        let client = self.client(at).await;
        let deadline = Instant::now() + Duration::from_secs(10);
        while client.status(pb::StatusRequest {}).await.expect("its status").is_learner {
            assert!(Instant::now() < deadline, "it stays a learner");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The status with which a member ends by itself.
    fn end_of(&mut self, at: usize) -> Option<i32> {
        let mut member = self.running[at].take().expect("it runs");
        member.has_ended(Duration::from_secs(20)).expect("it ends").code()
    }

    async fn leader(&self) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            for at in (0..self.running.len()).filter(|at| self.running[*at].is_some()) {
                let status = self.client(at).await.status(pb::StatusRequest {}).await;
                if let Ok(status) = status
                    && status.leader != 0
                {
                    return status.leader;
                }
            }
            assert!(Instant::now() < deadline, "no leader");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn add(client: &Client, url: &str, is_learner: bool) -> Result<u64, Status> {
    let request = pb::MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner };
    Ok(client.member_add(request).await?.member.expect("the member").id)
}

async fn remove(client: &Client, id: u64) -> Result<usize, Status> {
    Ok(client.member_remove(pb::MemberRemoveRequest { id }).await?.members.len())
}

async fn promote(client: &Client, id: u64) -> Result<usize, Status> {
    Ok(client.member_promote(pb::MemberPromoteRequest { id }).await?.members.len())
}

async fn update(client: &Client, id: u64, urls: &[&str]) -> Result<usize, Status> {
    let peer_ur_ls = urls.iter().map(|url| (*url).to_owned()).collect();
    let request = pb::MemberUpdateRequest { id, peer_ur_ls };
    Ok(client.member_update(request).await?.members.len())
}

fn told<T: std::fmt::Debug>(outcome: Result<T, Status>) -> String {
    match outcome {
        Ok(value) => format!("{value:?}"),
        Err(status) => format!("{:?} {}", status.code(), status.message()),
    }
}

/// Tries for as long as the members do not count as connected yet, which takes them five seconds,
/// or a learner learns.
async fn once_healthy<T>(mut ask: impl AsyncFnMut() -> Result<T, Status>) -> Result<T, Status> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match ask().await {
            Err(status)
                if (status.code() == Code::Unavailable || status.message().contains("in sync"))
                    && Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Everything that a cluster refuses while a learner comes, is promoted and goes; what each step
/// was answered with.
fn life_of_a_learner(make: &Make) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let mut members = Members::found(dir.path(), driver(), make.clone(), &[]);
    let url = |setup: &Setup| setup.peer_url();
    let next = members.setup(&[]);
    let own_url = url(&members.setups[0]);
    let mut all = block_on(async {
        let client = members.client(0).await;
        let own = members.leader().await;
        let none = pb::MemberAddRequest::default();
        vec![
            told(client.member_add(none).await),
            told(add(&client, "127.0.0.1:1", false).await),
            told(add(&client, "http://127.0.0.1:1/", false).await),
            told(add(&client, &own_url, true).await),
            told(remove(&client, 9).await),
            told(update(&client, 9, &[&own_url]).await),
            told(promote(&client, 9).await),
            told(promote(&client, own).await),
            told(remove(&client, own).await),
        ]
    });
    let mut setup = next.with("--initial-cluster-state=existing");
    let id = block_on(async {
        let client = members.client(0).await;
        let own = members.leader().await;
        let id = add(&client, &url(&setup), true).await.expect("a learner");
        all.push(told(add(&client, "http://127.0.0.1:1", true).await));
        all.push(told(add(&client, &url(&setup), false).await));
        all.push(told(update(&client, own, &[&url(&setup)]).await));
        all.push(told(update(&client, own, &[&own_url]).await));
        all.push(told(promote(&client, id).await));
        setup.initial_cluster = members.initial_cluster(0, &setup).await;
        id
    });
    members.take(setup, make.clone());
    block_on(async {
        let (client, learner) = (members.client(0).await, members.client(1).await);
        client.put_kv("k", "v").await;
        let key = || pb::RangeRequest { key: "k".into(), ..Default::default() };
        all.push(told(learner.range(key()).await.map(|found| found.count)));
        let own = pb::RangeRequest { serializable: true, ..key() };
        let deadline = Instant::now() + Duration::from_secs(5);
        while learner.range(own.clone()).await.expect("its own").count == 0 {
            assert!(Instant::now() < deadline, "the learner does not learn");
        }
        all.push(told(learner.put(pb::PutRequest::default()).await));
        all.push(told(learner.member_list(pb::MemberListRequest::default()).await));
        all.push(told(promote(&learner, id).await));
        let status = learner.status(pb::StatusRequest {}).await.expect("its status");
        all.push(format!("{}", status.is_learner));
        all.push(told(once_healthy(async || promote(&client, id).await).await));
        all.push(told(promote(&client, id).await));
        members.votes(1).await;
        learner.put_kv("k", "w").await;
        // What the one that leads not is asked goes to the one that does.
        all.push(told(promote(&learner, id).await));
        all.push(told(promote(&learner, 9).await));
    });
    // With one of two down, nothing may change.
    members.running[1].take().expect("it runs").kill();
    std::thread::sleep(Duration::from_millis(500));
    block_on(async {
        let client = members.client(0).await;
        all.push(told(add(&client, "http://127.0.0.1:1", true).await));
    });
    let again = (members.setups[1].clone(), make.clone());
    members.running.truncate(1);
    members.setups.truncate(1);
    members.makes.truncate(1);
    members.take(again.0, again.1);
    block_on(async {
        let client = members.client(0).await;
        all.push(told(
            once_healthy(async || add(&client, "http://127.0.0.1:1", false).await).await.map(drop),
        ));
        all.push(told(add(&client, "http://127.0.0.1:2", false).await));
        let list = client.member_list(pb::MemberListRequest::default()).await.expect("a list");
        let unstarted = list.members.iter().find(|member| member.name.is_empty()).expect("one").id;
        all.push(told(remove(&client, unstarted).await));
        all.push(told(once_healthy(async || remove(&client, id).await).await));
    });
    all.push(format!("{:?}", members.end_of(1)));
    block_on(async {
        let client = members.client(0).await;
        all.push(told(remove(&client, id).await));
        all.push(told(update(&client, id, &["http://127.0.0.1:1"]).await));
        all.push(told(promote(&client, id).await));
        client.put_kv("k", "alone").await;
    });
    if matches!(make, Make::Etcore) {
        let mut refused = members.setups[1].spawn();
        assert_eq!(refused.wait().code(), Some(1));
        let told = "the member has been permanently removed from the cluster";
        assert!(refused.seen.iter().any(|line| line.contains(told)), "{:?}", refused.seen);
    }
    all
}

#[test]
fn a_learner_comes_is_promoted_and_goes_as_etcds_do() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let Some(etcd) = oracle("etcd") else { return };
    let theirs = std::thread::spawn(move || life_of_a_learner(&Make::Etcd(etcd)));
    let ours = life_of_a_learner(&Make::Etcore);
    let theirs = theirs.join().expect("etcd's life");
    for (step, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "step {step}");
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn members_of_both_makes_join_each_others_clusters() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let Some(etcd) = oracle("etcd") else { return };
    let etcd = Make::Etcd(etcd);
    let both = [(Make::Etcore, etcd.clone()), (etcd, Make::Etcore)].map(|(founder, joiner)| {
        std::thread::spawn(move || {
            let dir = tempfile::tempdir().unwrap();
            let flags = ["--strict-reconfig-check=false"];
            let mut members = Members::found(dir.path(), driver(), founder.clone(), &flags);
            block_on(async { members.client(0).await.put_kv("first", "1").await });
            let learner = members.join(0, joiner, true, &flags);
            block_on(async {
                let client = members.client(0).await;
                once_healthy(async || promote(&client, learner).await).await.expect("promoted");
                members.votes(1).await;
                members.client(1).await.put_kv("second", "2").await;
            });
            let third = members.join(1, founder, false, &flags);
            block_on(async {
                for at in 0..3 {
                    let client = members.client(at).await;
                    assert_eq!(client.get("first").await.as_deref(), Some("1"), "{at}");
                    assert_eq!(client.get("second").await.as_deref(), Some("2"), "{at}");
                }
                let (second, third_client) = (members.client(1).await, members.client(2).await);
                remove(&third_client, learner).await.expect("removed");
                third_client.put_kv("third", "3").await;
                drop(second);
            });
            assert_eq!(members.end_of(1), Some(0));
            block_on(async {
                let client = members.client(0).await;
                assert_eq!(client.get("third").await.as_deref(), Some("3"));
                remove(&client, third).await.expect("removed");
                client.put_kv("fourth", "4").await;
            });
            assert_eq!(members.end_of(2), Some(0));
        })
    });
    for one in both {
        one.join().expect("a cluster of both");
    }
}

/// Puts numbers, one after another, at whoever takes them; returns those that were acknowledged.
fn load(ends: Vec<Setup>, stop: &AtomicBool) -> BTreeSet<u64> {
    block_on(async {
        let (mut acknowledged, mut at, mut number) = (BTreeSet::new(), 0, 0u64);
        while !stop.load(Ordering::Relaxed) {
            let Ok(client) = Client::try_connect(&ends[at % ends.len()]).await else {
                at += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            loop {
                number += 1;
                let key = format!("load/{number:08}").into();
                let put = client.put(pb::PutRequest { key, ..Default::default() });
                match tokio::time::timeout(Duration::from_secs(2), put).await {
                    Ok(Ok(_)) => acknowledged.insert(number),
                    _ => break,
                };
                if stop.load(Ordering::Relaxed) || number.is_multiple_of(64) {
                    break;
                }
            }
            at += 1;
        }
        acknowledged
    })
}

#[test]
fn a_cluster_grows_to_five_and_shrinks_to_three_under_load_and_loses_nothing() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--strict-reconfig-check=false"];
    let mut members = Members::found(dir.path(), driver(), Make::Etcore, &flags);
    let stop = Arc::new(AtomicBool::new(false));
    let loading = {
        let (ends, stop) = (members.setups.clone(), stop.clone());
        std::thread::spawn(move || load(ends, &stop))
    };
    let ids: Vec<u64> =
        (1..5).map(|at| members.join(at - 1, Make::Etcore, false, &flags)).collect();
    let more = {
        let (ends, stop) = (members.setups.clone(), stop.clone());
        // Other keys, at everybody.
        std::thread::spawn(move || {
            let mut ends = ends;
            ends.rotate_left(2);
            let _ = load(ends, &stop);
        })
    };
    // The leader goes first, then the one that was added last.
    block_on(async {
        let leader = members.leader().await;
        let client = members.client(0).await;
        client
            .move_leader(pb::MoveLeaderRequest { target_id: ids[1] })
            .await
            .or_else(|status| if leader == ids[1] { Ok(Default::default()) } else { Err(status) })
            .expect("moved");
        remove(&client, ids[1]).await.expect("the leader is removed");
    });
    assert_eq!(members.end_of(2), Some(0), "the leader stops by itself");
    block_on(async {
        // It hears of its own removal, and says so, before it stops.
        let own = members.client(4).await;
        assert_eq!(remove(&own, ids[3]).await.expect("removed"), 3);
    });
    assert_eq!(members.end_of(4), Some(0));
    std::thread::sleep(Duration::from_millis(200));
    stop.store(true, Ordering::Relaxed);
    let acknowledged = loading.join().expect("the load");
    more.join().expect("the load");
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    block_on(async {
        let own = members.client(0).await;
        own.get("k").await;
        let hash = own.hash_kv(pb::HashKvRequest { revision: 0 }).await.expect("a hash");
        for at in [0, 1, 3] {
            let client = members.client(at).await;
            let keys = pb::RangeRequest {
                key: "load/".into(),
                range_end: "load0".into(),
                keys_only: true,
                ..Default::default()
            };
            let found: BTreeSet<u64> = (client.range(keys).await.expect("keys").kvs.iter())
                .filter_map(|kv| std::str::from_utf8(&kv.key).ok()?.split_once('/')?.1.parse().ok())
                .collect();
            assert!(acknowledged.is_subset(&found), "lost at {at}");
            let revision = hash.hash_revision;
            let other = client.hash_kv(pb::HashKvRequest { revision }).await.expect("a hash");
            assert_eq!(other.hash, hash.hash, "{at} differs");
        }
        let list = own.member_list(pb::MemberListRequest::default()).await.expect("a list");
        assert_eq!(list.members.len(), 3);
    });
}

#[test]
fn a_dead_member_is_replaced_and_learns_at_its_return_that_it_is_none() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--strict-reconfig-check=false"];
    let mut members = Members::found(dir.path(), driver(), Make::Etcore, &flags);
    let ids: Vec<u64> = (1..3).map(|_| members.join(0, Make::Etcore, false, &flags)).collect();
    members.running[2].take().expect("it runs").kill();
    block_on(async {
        let client = members.client(0).await;
        client.put_kv("k", "v").await;
        assert_eq!(remove(&client, ids[1]).await.expect("removed"), 2);
    });
    let mut wrong = members.setup(&[]).with("--initial-cluster-state=existing");
    wrong.initial_cluster = format!("m1={},m4={}", members.setups[0].peer_url(), wrong.peer_url());
    let mut refused = wrong.spawn();
    assert_eq!(refused.wait().code(), Some(1));
    let told = "no match found for existing member";
    assert!(refused.seen.iter().any(|line| line.contains(told)), "{:?}", refused.seen);
    members.join(1, Make::Etcore, false, &flags);
    block_on(async {
        assert_eq!(members.client(3).await.get("k").await.as_deref(), Some("v"));
    });
    // It was not there when it was removed; the others tell it.
    let mut late = members.setups[2].spawn();
    assert_eq!(late.wait().code(), Some(1));
    let told = "the member has been permanently removed from the cluster";
    assert!(late.seen.iter().any(|line| line.contains(told)), "{:?}", late.seen);
    // Also from a member that has started since.
    members.running[0].take().expect("it runs").kill();
    members.running[0] = Some(members.setups[0].start());
    members.running[1].take().expect("it runs").kill();
    let mut late = members.setups[2].spawn();
    assert_eq!(late.wait().code(), Some(1));
}
