//! Several real members that found a cluster, as processes.

use std::path::Path;
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;

use super::links::Links;
use super::{Client, Member, Setup, free_port, http_get};

/// How to start each member, and those that run.
pub struct Cluster {
    pub setups: Vec<Setup>,
    pub members: Vec<Option<Member>>,
    /// What lies between them, if not only the machine.
    links: Option<Links>,
}

impl Cluster {
    /// Names, ports and directories; nothing is started.
    pub fn new(dir: &Path, driver: &'static str, count: usize, extra: &[&str]) -> Self {
        Self::with(dir, driver, count, extra, None)
    }

    /// The same, with links between the members that carry everything so much later.
    pub fn far_apart(
        dir: &Path,
        driver: &'static str,
        count: usize,
        extra: &[&str],
        one_way: Duration,
    ) -> Self {
        let cluster = Self::with(dir, driver, count, extra, Some(one_way));
        cluster.started()
    }

    fn with(
        dir: &Path,
        driver: &'static str,
        count: usize,
        extra: &[&str],
        one_way: Option<Duration>,
    ) -> Self {
        let links = one_way.map(Links::new);
        let mut setups: Vec<Setup> = (1..=count)
            .map(|number| {
                let mut setup = Setup::new(dir, driver);
                setup.name = format!("m{number}");
                setup.data_dir = dir.join(format!("m{number}.etcd"));
                setup.extra = extra.iter().map(|flag| (*flag).to_owned()).collect();
                setup.peer_proxy = links.as_ref().map(|links| {
                    let port = free_port();
                    links.carry(port, setup.peer_port);
                    port
                });
                setup
            })
            .collect();
        let pairs: Vec<String> = setups
            .iter()
            .map(|setup| {
                format!("{}=http://127.0.0.1:{}", setup.name, setup.advertised_peer_port())
            })
            .collect();
        for setup in &mut setups {
            setup.initial_cluster = pairs.join(",");
        }
        Self { setups, members: (0..count).map(|_| None).collect(), links }
    }

    /// The same, with all members started and ready.
    pub fn start(dir: &Path, driver: &'static str, count: usize, extra: &[&str]) -> Self {
        Self::new(dir, driver, count, extra).started()
    }

    /// Starts all members, and waits until they are ready.
    pub fn started(mut self) -> Self {
        for (setup, member) in self.setups.iter().zip(&mut self.members) {
            *member = Some(setup.spawn());
        }
        for member in self.members.iter_mut().flatten() {
            member.wait_for_line("ready to serve client requests");
        }
        self
    }

    pub fn restart(&mut self, at: usize) {
        self.members[at] = Some(self.setups[at].start());
    }

    /// Cuts a member of [`Cluster::far_apart`] off from the others, until [`Cluster::heal`]. Its
    /// clients stay connected.
    pub async fn cut_off(&self, at: usize) {
        let id = self.id(at).await;
        self.links.as_ref().expect("links").cut(self.setups[at].peer_port, id);
    }

    pub fn heal(&self) {
        self.links.as_ref().expect("links").heal();
    }

    pub fn kill(&mut self, at: usize) {
        self.members[at].take().expect("it runs").kill();
    }

    pub async fn client(&self, at: usize) -> Client {
        Client::connect(&self.setups[at]).await
    }

    pub async fn status(&self, at: usize) -> pb::StatusResponse {
        self.client(at).await.status(pb::StatusRequest {}).await.expect("status")
    }

    /// The place of the leader on which all running members agree.
    pub async fn leader(&self) -> usize {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut seen = Vec::new();
            for at in self.running() {
                let status = self.status(at).await;
                seen.push((at, status.header.expect("header").member_id, status.leader));
            }
            let leader =
                seen.iter().find(|(_, id, leader)| id == leader).map(|(at, id, _)| (at, id));
            if let Some((at, id)) = leader
                && seen.iter().all(|(_, _, known)| known == id)
            {
                return *at;
            }
            assert!(Instant::now() < deadline, "no leader: {seen:x?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The sum of the samples whose lines begin so in what a member tells of itself.
    pub fn metric(&self, at: usize, name: &str) -> f64 {
        let (_, text) = http_get(self.setups[at].client_port, "/metrics");
        text.lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    pub fn running(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|at| self.members[*at].is_some()).collect()
    }

    /// Running members that are not this one.
    pub fn others(&self, at: usize) -> Vec<usize> {
        self.running().into_iter().filter(|other| *other != at).collect()
    }

    pub async fn id(&self, at: usize) -> u64 {
        self.status(at).await.header.expect("header").member_id
    }

    /// Waits until all running members have applied what this one has, and compares their hashes.
    pub async fn assert_equal(&self, at: usize) {
        let client = self.client(at).await;
        // A linearizable read: everything committed so far is applied here.
        client.get("no such key").await;
        let own = client.hash_kv(pb::HashKvRequest { revision: 0 }).await.expect("hash");
        let revision = own.hash_revision;
        for other in self.others(at) {
            let client = self.client(other).await;
            client.get("no such key").await;
            let hash = client.hash_kv(pb::HashKvRequest { revision }).await.expect("hash");
            let found = (hash.hash, hash.hash_revision);
            assert_eq!(found, (own.hash, revision), "{} differs", self.setups[other].name);
        }
    }
}
