//! A real member under clients that do everything at once, killed and started again; then all that
//! they were told is judged by `etcore_history`. etcd itself, where its binary is at hand,
//! must pass the same judges under the same load: otherwise they would be wrong.
//!
//! Two rounds each, 50 with `ETCORE_LONG=1`; of three members, any one of which is killed while the
//! others go on, ten and 200. A history that fails is kept as a file, which the message names.

use std::io::BufWriter;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use etcore_history::testing::requests::{self, Mix, Source};
use etcore_history::testing::simulate::Random;
use etcore_history::types::{Answer, Get, Hash, Operation, Outcome, Request, Watch as WatchRecord};
use etcore_history::{History, KeyRange, Violation, judge, linear, lines, wire};
use etcore_proto::pb::etcdserverpb as pb;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::harness::cluster::Cluster;
use crate::harness::watch::Watch;
use crate::harness::{Client, DRIVERS, Etcd, Member, Setup, block_on, is_available, oracle};

const CLIENTS: u64 = 12;
/// Compactions stay behind the revisions from which watches go on after a kill.
const MIX: Mix =
    Mix { keys: 24, leases: true, more_leases: 0, compact_back: 150, compact_spread: 1 };
/// Time for a call, after which nobody knows.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes down what clients are told.
struct Recorder {
    origin: Instant,
    history: Mutex<History>,
    /// The highest revision told so far.
    told: AtomicI64,
    values: AtomicU64,
    leases: AtomicI64,
    stop: AtomicBool,
}

impl Recorder {
    fn new() -> Self {
        Recorder {
            origin: Instant::now(),
            history: Mutex::default(),
            told: AtomicI64::new(1),
            values: AtomicU64::new(0),
            leases: AtomicI64::new(0),
            stop: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap()
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// One client of one run of a member.
struct Caller {
    recorder: Arc<Recorder>,
    client: Client,
    channel: Channel,
    number: u64,
    member: u64,
    random: Random,
}

impl Caller {
    /// Asks, and writes down what came of it; false if nobody knows.
    async fn call(&self, request: Request) -> bool {
        let invoke = self.recorder.now();
        let result = tokio::time::timeout(PATIENCE, self.ask(&request)).await;
        let ret = self.recorder.now();
        let outcome = match result {
            Ok(Ok(answer)) => {
                self.recorder.told.fetch_max(answer.revision(), Ordering::Relaxed);
                Outcome::Known(answer)
            }
            Ok(Err(status)) if is_refusal(&status) => Outcome::Refused(status.message().to_owned()),
            _ => Outcome::Unknown,
        };
        let known = outcome != Outcome::Unknown;
        let (client, member) = (self.number, self.member);
        let operation = Operation { client, member, invoke, ret, request, outcome };
        self.recorder.history().operations.push(operation);
        known
    }

    async fn ask(&self, request: &Request) -> Result<Answer, Status> {
        Ok(match request {
            Request::Get(get) => self.client.range(get.into()).await?.into(),
            Request::Put(put) => self.client.put(put.into()).await?.into(),
            Request::Delete(delete) => self.client.delete_range(delete.into()).await?.into(),
            Request::Txn(txn) => self.client.txn(txn.into()).await?.into(),
            Request::Grant { id, ttl } => {
                let request = pb::LeaseGrantRequest { id: *id, ttl: *ttl };
                self.client.lease_grant(request).await?.into()
            }
            Request::Revoke { id } => {
                let request = pb::LeaseRevokeRequest { id: *id };
                let path = "/etcdserverpb.Lease/LeaseRevoke";
                let answer: pb::LeaseRevokeResponse = self.client.unary(path, request).await?;
                answer.into()
            }
            Request::KeepAlive { id } => self.keep_alive(*id).await?.into(),
            Request::Compact { revision } => {
                // They are odd.
                let physical = revision % 4 == 1;
                let request = pb::CompactionRequest { revision: *revision, physical };
                self.client.compact(request).await?.into()
            }
        })
    }

    async fn keep_alive(&self, id: i64) -> Result<pb::LeaseKeepAliveResponse, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
        let once = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
        let response = grpc.streaming(tonic::Request::new(once), path, codec).await?;
        let answer = response.into_inner().message().await?;
        answer.ok_or_else(|| Status::unavailable("the stream ended"))
    }

    /// Until it is stopped, or the member is gone.
    async fn load(mut self) {
        while !self.recorder.stops() {
            let request = requests::draw(&MIX, &mut self);
            if !self.call(request).await {
                return;
            }
            tokio::time::sleep(Duration::from_micros(self.random.below(4_000))).await;
        }
    }
}

impl Source for Caller {
    fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    fn told(&self) -> i64 {
        self.recorder.told.load(Ordering::Relaxed)
    }

    fn next_value(&mut self) -> u64 {
        self.recorder.values.fetch_add(1, Ordering::Relaxed)
    }

    fn next_lease(&mut self) -> i64 {
        self.recorder.leases.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn last_lease(&self) -> i64 {
        self.recorder.leases.load(Ordering::Relaxed)
    }
}

/// Errors that say for certain that nothing was done.
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound | Code::FailedPrecondition
    )
}

/// Watches and writes down what comes, until the stream breaks.
async fn watch(recorder: Arc<Recorder>, setup: Setup, member: u64, range: KeyRange, start: i64) {
    let mut stream = Watch::connect(&setup).await;
    let prev_kv = start % 2 == 0;
    stream.create(wire::watch(&range, start, prev_kv)).await;
    let Ok(created) = stream.next().await else { return };
    assert!(created.created && !created.canceled, "{created:?}");
    let created = created.header.unwrap().revision;
    let index = {
        let mut history = recorder.history();
        let client = 1_000 + u64::try_from(history.watches.len()).unwrap();
        history.watches.push(WatchRecord {
            client,
            member,
            range,
            start,
            created,
            prev_kv,
            fragment: false,
            batches: Vec::new(),
        });
        history.watches.len() - 1
    };
    while let Ok(response) = stream.next().await {
        let batch = wire::batch(response, recorder.now()).expect("it is not cancelled");
        recorder.history().watches[index].batches.push(batch);
    }
}

/// What is run.
enum Kind<'a> {
    Etcore(&'static str),
    Etcd(&'a Path),
}

/// A run of a member; dropping it kills it.
#[allow(dead_code, reason = "held for its end")]
enum Run {
    Etcore(Member),
    Etcd(Etcd),
}

/// At even revisions: compactions are at odd ones.
async fn hash(recorder: &Recorder, client: &Client, member: u64, revision: i64) {
    let revision = (revision & !1).max(1);
    let Ok(answer) = client.hash_kv(pb::HashKvRequest { revision }).await else { return };
    assert_eq!(answer.hash_revision, revision);
    let (compacted, hash) = (answer.compact_revision, answer.hash);
    recorder.history().hashes.push(Hash { member, revision, compacted, hash });
}

async fn round(recorder: &Arc<Recorder>, setup: &Setup, member: u64, run: Run, seed: u64) {
    let client = Client::connect(setup).await;
    let channel = Endpoint::from_shared(setup.endpoint()).unwrap().connect().await.unwrap();
    let hashed = recorder.history().hashes.last().map(|hash| hash.revision);
    if let Some(revision) = hashed {
        hash(recorder, &client, member, revision).await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    // From the last event that was seen: nothing in between may be missing.
    let seen = recorder.history().watches.iter().flat_map(|watch| &watch.batches).last().cloned();
    let next = seen.and_then(|batch| batch.events.last().map(|event| event.kv.modified + 1));
    let all = match next {
        // What was seen may be compacted by now.
        Some(next) if next > recorder.told.load(Ordering::Relaxed) - 100 => next,
        _ if member == 0 => 2,
        _ => 0,
    };
    for (range, start) in
        [(KeyRange::new("key10", "key15"), 0), (KeyRange::one("key01"), 0), (KeyRange::all(), all)]
    {
        tasks.spawn(watch(recorder.clone(), setup.clone(), member, range, start));
    }
    recorder.stop.store(false, Ordering::Relaxed);
    let mut random = Random::new(seed);
    for number in 0..CLIENTS {
        let (client, channel) = (client.clone(), channel.clone());
        let random = Random::new(random.draw());
        let recorder = recorder.clone();
        tasks.spawn(Caller { recorder, client, channel, number, member, random }.load());
    }
    tokio::time::sleep(Duration::from_millis(1_500 + random.below(2_500))).await;
    hash(recorder, &client, member, recorder.told.load(Ordering::Relaxed)).await;
    // In the middle of it all.
    drop(run);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

/// Runs, kills and starts a member under load, and judges all that was told.
fn judge_rounds(kind: &Kind<'_>) {
    let rounds = if std::env::var_os("ETCORE_LONG").is_some() { 50 } else { 2 };
    let (name, driver) = match kind {
        Kind::Etcore(driver) => (*driver, *driver),
        Kind::Etcd(_) => ("etcd", "portable"),
    };
    let seed = u64::from(std::process::id());
    eprintln!("{name}: seed {seed}, {rounds} rounds");
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), driver);
    let start = || match kind {
        Kind::Etcore(_) => Run::Etcore(setup.start()),
        Kind::Etcd(binary) => Run::Etcd(Etcd::start(binary, &setup)),
    };
    let recorder = Arc::new(Recorder::new());
    for member in 0..rounds {
        let run = start();
        block_on(round(&recorder, &setup, member, run, seed ^ (member << 32)));
    }
    let run = start();
    block_on(async {
        let client = Client::connect(&setup).await;
        let channel = Endpoint::from_shared(setup.endpoint()).unwrap().connect().await.unwrap();
        let (number, member, random) = (0, rounds, Random::new(0));
        let recorder = recorder.clone();
        let caller = Caller { recorder, client, channel, number, member, random };
        let all = Request::Get(Get { range: KeyRange::all(), ..Get::default() });
        assert!(caller.call(all).await, "the member does not answer");
    });
    drop(run);
    pass_judgement(name, seed, &recorder);
}

/// Fails, and leaves the history behind.
fn keep(name: &str, seed: u64, history: &History, violation: &Violation) -> ! {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("history-{name}-{seed}.jsonl"));
    let file = std::fs::File::create(&path).unwrap();
    lines::write(history, &mut BufWriter::new(file)).unwrap();
    panic!("{name}: {violation}\nThe history is in {}", path.display());
}

fn pass_judgement(name: &str, seed: u64, recorder: &Recorder) {
    let history = recorder.history();
    let start = Instant::now();
    match judge(&history) {
        Ok(witness) => eprintln!(
            "{name}: {} operations, {} unknown, {} revisions, {} watch responses; judged in {:?}",
            history.operations.len(),
            history.operations.iter().filter(|o| o.outcome == Outcome::Unknown).count(),
            witness.writers.len(),
            history.watches.iter().map(|watch| watch.batches.len()).sum::<usize>(),
            start.elapsed(),
        ),
        Err(violation) => keep(name, seed, &history, &violation),
    }
    // The judges can do without watches, and can say no.
    let blind = History { watches: Vec::new(), ..history.clone() };
    let start = Instant::now();
    match judge(&blind) {
        Ok(_) => eprintln!("{name}: judged without watches in {:?}", start.elapsed()),
        Err(violation) => keep(&format!("{name}-blind"), seed, &blind, &violation),
    }
    let mut spoilt = history.clone();
    let put = spoilt.operations.iter_mut().rev().find(|operation| {
        let plain = matches!(&operation.request, Request::Put(put) if put.lease == 0);
        plain && operation.answer().is_some()
    });
    put.expect("a write").outcome = Outcome::Refused("as if it had not been done".to_owned());
    match judge(&spoilt) {
        Err(violation) => assert_ne!(violation.property, linear::UNDECIDED, "{violation}"),
        Ok(_) => panic!("{name}: a write that nobody asked for is accepted"),
    }
    let events = history.watches.iter().flat_map(|watch| &watch.batches).count();
    assert!(history.operations.len() > 500 && events > 50, "the load was too small to show much");
}

/// Three members and which run of its own each is at: runs are numbered over all of them.
struct Runs {
    setups: Vec<Setup>,
    /// Who runs, and as which run.
    current: Mutex<Vec<Option<u64>>>,
    next: AtomicU64,
}

impl Runs {
    fn current(&self) -> MutexGuard<'_, Vec<Option<u64>>> {
        self.current.lock().unwrap()
    }

    fn started(&self, at: usize) -> u64 {
        let run = self.next.fetch_add(1, Ordering::Relaxed);
        self.current()[at] = Some(run);
        run
    }

    /// The next running member from `at` on.
    fn choose(&self, at: usize) -> (usize, u64) {
        let current = self.current();
        let found = (at..at + 3).map(|at| at % 3).find_map(|at| Some((at, current[at]?)));
        found.expect("two of three run at any time")
    }
}

/// A client that goes on with another member when nobody knows what came of a call.
async fn roam(recorder: Arc<Recorder>, runs: Arc<Runs>, mut number: u64, mut random: Random) {
    let mut at = usize::try_from(number).unwrap() % 3;
    while !recorder.stops() {
        let (place, member) = runs.choose(at);
        at = place;
        let Ok(endpoint) = Endpoint::from_shared(runs.setups[at].endpoint()) else { return };
        let Ok(channel) = endpoint.connect().await else {
            at += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let client = Client::connect(&runs.setups[at]).await;
        let own = Random::new(random.draw());
        let recorder = recorder.clone();
        let mut caller = Caller { recorder, client, channel, number, member, random: own };
        loop {
            let request = requests::draw(&MIX, &mut caller);
            if caller.recorder.stops() || !caller.call(request).await {
                break;
            }
            tokio::time::sleep(Duration::from_micros(random.below(12_000))).await;
        }
        // Who does not know what became of a call is somebody else from then on.
        (number, at) = (number + 100, at + 1);
    }
}

/// Watches everything on a member that has just started.
fn watch_all(
    tasks: &mut tokio::task::JoinSet<()>,
    recorder: &Arc<Recorder>,
    runs: &Runs,
    (at, run): (usize, u64),
    start: i64,
) {
    for range in [KeyRange::all(), KeyRange::new("key10", "key15")] {
        let setup = runs.setups[at].clone();
        tasks.spawn(watch(recorder.clone(), setup, run, range, start));
    }
}

/// Kills and restarts members of three, one at a time, under load.
async fn cluster_rounds(recorder: &Arc<Recorder>, mut cluster: Cluster, rounds: u64, seed: u64) {
    let runs = Arc::new(Runs {
        setups: cluster.setups.clone(),
        current: Mutex::new(vec![None; 3]),
        next: AtomicU64::new(0),
    });
    let mut random = Random::new(seed);
    let mut watches = tokio::task::JoinSet::new();
    for at in 0..3 {
        let run = runs.started(at);
        watch_all(&mut watches, recorder, &runs, (at, run), 2);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let random = Random::new(random.draw());
        clients.spawn(roam(recorder.clone(), runs.clone(), number, random));
    }
    for _ in 0..rounds {
        tokio::time::sleep(Duration::from_millis(500 + random.below(1_500))).await;
        let at = usize::try_from(random.below(3)).unwrap();
        runs.current()[at] = None;
        // In the middle of it all.
        cluster.kill(at);
        tokio::time::sleep(Duration::from_millis(random.below(3_000))).await;
        let setup = cluster.setups[at].clone();
        let started = tokio::task::spawn_blocking(move || setup.start()).await.unwrap();
        cluster.members[at] = Some(started);
        let run = runs.started(at);
        watch_all(&mut watches, recorder, &runs, (at, run), 0);
        let revision = recorder.told.load(Ordering::Relaxed);
        for place in 0..3 {
            let (_, run) = runs.choose(place);
            let client = Client::connect(&cluster.setups[place]).await;
            hash(recorder, &client, run, revision).await;
        }
    }
    recorder.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let (at, member) = runs.choose(0);
    let client = cluster.client(at).await;
    let channel = Endpoint::from_shared(cluster.setups[at].endpoint()).unwrap();
    let channel = channel.connect().await.unwrap();
    let (number, random, recorder) = (99, Random::new(0), recorder.clone());
    let caller = Caller { recorder, client, channel, number, member, random };
    let all = Request::Get(Get { range: KeyRange::all(), ..Get::default() });
    assert!(caller.call(all).await, "the member does not answer");
    cluster.assert_equal(0).await;
    watches.shutdown().await;
}

fn judge_cluster(driver: &'static str) {
    let rounds = if std::env::var_os("ETCORE_LONG").is_some() { 200 } else { 10 };
    let seed = u64::from(std::process::id());
    eprintln!("three members, {driver}: seed {seed}, {rounds} rounds");
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), driver, 3, &[]);
    let recorder = Arc::new(Recorder::new());
    block_on(cluster_rounds(&recorder, cluster, rounds, seed));
    pass_judgement(&format!("cluster-{driver}"), seed, &recorder);
}

#[test]
fn what_clients_are_told_can_be_explained_though_the_member_is_killed() {
    let _turn = crate::harness::turn::of_file(module_path!());
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        judge_rounds(&Kind::Etcore(driver));
    }
}

#[test]
fn the_judges_accept_etcd() {
    let _turn = crate::harness::turn::of_file(module_path!());
    if let Some(etcd) = oracle("etcd") {
        judge_rounds(&Kind::Etcd(&etcd));
    }
}

#[test]
fn what_clients_of_three_members_are_told_can_be_explained_though_any_of_them_is_killed() {
    let _turn = crate::harness::turn::of_file(module_path!());
    // The machine's choice of a driver is as good as any here; each has rounds of its own above.
    let driver = DRIVERS.into_iter().find(|driver| is_available(driver)).unwrap();
    judge_cluster(driver);
}
