//! Directories to damage: made by a real member with a mixed history, and everything it says about
//! its state through the API.
//!
//! The damage test compares what a patched directory serves with what is told here.

use std::path::{Path, PathBuf};

use etcore_engine::testing::prng::Prng;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_server::config::Config;
use etcore_server::config::flags::{self, Asked};
use tonic::Code;

use super::image::Image;
use crate::harness::{Client, Setup, block_on};

/// Short enough for several segments, long enough for the largest value.
const SEGMENT: &str = "--wal-segment-bytes=131072";

/// How the member's last life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// kill -9 right after the last answer.
    Killed,
    /// SIGTERM, after the log's first segments were released.
    Stopped,
}

/// A directory and its truth.
pub struct History {
    pub setup: Setup,
    pub image: Image,
    /// The directory after the first life.
    pub older: Image,
    pub served: Served,
}

/// Everything the member says about its state. A question that was answered with an error for
/// damaged data is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub revision: i64,
    pub answers: Vec<(String, Option<String>)>,
}

impl Served {
    /// What is neither as `truth` says nor an error; empty if nothing is.
    pub fn differences(&self, truth: &Self) -> Vec<String> {
        let mut different = Vec::new();
        if (self.revision, self.answers.len()) != (truth.revision, truth.answers.len()) {
            different.push(format!("revision {} instead of {}", self.revision, truth.revision));
        }
        for (found, known) in self.answers.iter().zip(&truth.answers) {
            if found.0 != known.0 || found.1.is_some() && found.1 != known.1 {
                let short = |answer: &Option<String>| {
                    let text = answer.as_deref().unwrap_or("an error");
                    text.chars().take(200).collect::<String>()
                };
                let (is, should) = (short(&found.1), short(&known.1));
                different.push(format!("{}: {is} instead of {}: {should}", found.0, known.0));
            }
        }
        different
    }

    pub fn errors(&self) -> usize {
        self.answers.iter().filter(|(_, answer)| answer.is_none()).count()
    }
}

fn setup(dir: &Path, driver: &'static str, end: End) -> Setup {
    let setup = Setup::new(dir, driver).with(SEGMENT);
    match end {
        End::Killed => setup,
        End::Stopped => setup.with("--snapshot-catchup-entries=5"),
    }
}

/// The configuration that a setup's command line means.
pub fn config(setup: &Setup) -> Config {
    let command = setup.command();
    let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    match flags::parse(args, std::iter::empty()) {
        Ok(Asked::Run(config, _)) => *config,
        _ => panic!("the test's own flags are understood"),
    }
}

pub fn member_dir(setup: &Setup) -> PathBuf {
    setup.data_dir.join("member")
}

/// Lets a member live twice.
pub fn make(dir: &Path, driver: &'static str, end: End, seed: u64) -> History {
    let setup = setup(dir, driver, end);
    let mut prng = Prng::new(seed);
    let member = setup.start();
    block_on(live(&setup, &mut prng, 0, 60));
    // The page file's last checkpoint is that of everything.
    std::thread::sleep(std::time::Duration::from_millis(400));
    member.kill();
    let older = Image::load(&member_dir(&setup));
    let mut member = setup.start();
    let served = block_on(async {
        live(&setup, &mut prng, 1, 240).await;
        let client = Client::connect(&setup).await;
        let alarm = pb::AlarmRequest { action: 1, member_id: 7, alarm: 1 };
        client.alarm(alarm).await.expect("raised");
        if end == End::Stopped {
            // Two checkpoints, so that the older meta page lets segments go.
            for _ in 0..3 {
                tokio::time::sleep(std::time::Duration::from_millis(250)).await;
                let request = pb::DeleteRangeRequest { key: "k1".into(), ..Default::default() };
                client.delete_range(request).await.expect("deleted");
                client.put(put("k1", vec![b'x'; 30], 0)).await.expect_err("an alarm is on");
            }
        } else {
            burst(&client, &mut prng, "k").await;
        }
        let served = ask(&client).await;
        if end == End::Killed {
            // Entries that change nothing cause no checkpoint: a tail that only the log has.
            burst(&client, &mut prng, "missing").await;
        }
        served
    });
    match end {
        End::Killed => member.kill(),
        End::Stopped => {
            member.terminate();
            assert!(member.wait().success());
        }
    }
    let image = Image::load(&member_dir(&setup));
    History { setup, image, older, served }
}

fn put(key: &str, value: Vec<u8>, lease: i64) -> pb::PutRequest {
    let key = key.to_owned().into();
    pb::PutRequest { key, value: value.into(), lease, ..Default::default() }
}

/// No byte of a value is zero: FORMAT.md leaves records with sectors of zeros out of its promise.
fn value(prng: &mut Prng, len: usize) -> Vec<u8> {
    (0..len).map(|_| 1 + u8::try_from(prng.below(255)).expect("a byte")).collect()
}

fn key(prng: &mut Prng) -> String {
    format!("k{}", prng.below(40))
}

async fn live(setup: &Setup, prng: &mut Prng, life: i64, steps: u64) {
    let client = Client::connect(setup).await;
    for lease in 0..3 {
        let id = 100 * (life + 1) + lease;
        let request = pb::LeaseGrantRequest { id, ttl: 1_000_000 + id };
        client.lease_grant(request).await.expect("granted");
    }
    for step in 0..steps {
        match prng.below(12) {
            0 => {
                let request =
                    pb::DeleteRangeRequest { key: key(prng).into(), ..Default::default() };
                client.delete_range(request).await.expect("deleted");
            }
            1 | 2 => {
                let request = pb::TxnRequest {
                    success: (0..3).map(|_| txn_put(prng)).collect(),
                    ..Default::default()
                };
                // Twice the same key is refused; that makes no entry.
                let _ = client.txn(request).await;
            }
            3 => {
                let lease = 100 * (life + 1) + prng.below(3).cast_signed();
                client.put(put(&key(prng), value(prng, 10), lease)).await.expect("put");
            }
            4 => {
                let len = [3_000, 9_000, 70_000][prng.index(3)];
                client.put(put(&key(prng), value(prng, len), 0)).await.expect("put");
            }
            _ => {
                let len = 1 + prng.index(300);
                client.put(put(&key(prng), value(prng, len), 0)).await.expect("put");
            }
        }
        if step == steps / 2 {
            let revision = revision(&client).await - 20;
            let request = pb::CompactionRequest { revision, physical: true };
            client.compact(request).await.expect("compacted");
        }
        if step % 23 == 0 {
            // Checkpoints in between.
            tokio::time::sleep(std::time::Duration::from_millis(110)).await;
        }
    }
}

fn txn_put(prng: &mut Prng) -> pb::RequestOp {
    let len = prng.index(900);
    let request = put(&key(prng), value(prng, len), 0);
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(request)) }
}

/// Deletions at once, so that batches have several entries, with the alarm on.
async fn burst(client: &Client, prng: &mut Prng, prefix: &str) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let (client, key) = (client.clone(), format!("{prefix}{}", prng.below(40)));
        let padding = "e".repeat(prng.index(1500));
        tasks.spawn(async move {
            let request = pb::DeleteRangeRequest {
                range_end: format!("{key}\0{padding}").into(),
                key: key.into(),
                ..Default::default()
            };
            client.delete_range(request).await.expect("deleted");
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn revision(client: &Client) -> i64 {
    let response = client.range(pb::RangeRequest { key: "none".into(), ..Default::default() });
    response.await.expect("a range").header.expect("a header").revision
}

fn told<T>(answer: Result<T, tonic::Status>, text: impl FnOnce(T) -> String) -> Option<String> {
    match answer {
        Ok(answer) => Some(text(answer)),
        Err(status) if status.code() == Code::DataLoss => {
            assert_eq!(status.message(), "etcdserver: corrupt cluster");
            None
        }
        // A message whose length was sent and whose rest cannot be read: the stream is reset.
        Err(status) if status.code() == Code::Internal && status.message().contains("h2") => None,
        // Compacted, for one; the same every time.
        Err(status) => Some(format!("{:?} {}", status.code(), status.message())),
    }
}

/// Asks for everything.
pub async fn ask(client: &Client) -> Served {
    let newest = revision(client).await;
    let mut answers = Vec::new();
    let all = |revision| pb::RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        revision,
        ..Default::default()
    };
    for back in [0, 3, 10, 40, 120] {
        let revision = newest - back;
        let answer = client.range(all(revision)).await;
        let text = told(answer, |range| format!("{:?} {}", range.kvs, range.count));
        answers.push((format!("all at {revision}"), text));
        let answer = client.hash_kv(pb::HashKvRequest { revision }).await;
        let text = told(answer, |hash| format!("{} {}", hash.hash, hash.compact_revision));
        answers.push((format!("hash at {revision}"), text));
    }
    for number in 0..40 {
        let request = pb::RangeRequest { key: format!("k{number}").into(), ..Default::default() };
        let text = told(client.range(request).await, |range| format!("{:?}", range.kvs));
        answers.push((format!("k{number}"), text));
    }
    let leases: pb::LeaseLeasesResponse = client
        .unary("/etcdserverpb.Lease/LeaseLeases", pb::LeaseLeasesRequest::default())
        .await
        .expect("leases");
    let mut ids: Vec<i64> = leases.leases.iter().map(|lease| lease.id).collect();
    ids.sort_unstable();
    for id in &ids {
        let request = pb::LeaseTimeToLiveRequest { id: *id, keys: true };
        let answer: pb::LeaseTimeToLiveResponse =
            client.unary("/etcdserverpb.Lease/LeaseTimeToLive", request).await.expect("a lease");
        let mut keys = answer.keys;
        keys.sort();
        answers.push((format!("lease {id}"), Some(format!("{} {keys:?}", answer.granted_ttl))));
    }
    let alarms = client.alarm(pb::AlarmRequest::default()).await.expect("alarms");
    answers.push((format!("leases {ids:?}, alarms"), Some(format!("{:?}", alarms.alarms))));
    Served { revision: newest, answers }
}
