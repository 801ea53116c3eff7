//! kill -9 at random moments under load: every acknowledged put is there afterwards with its
//! revision, history reads what was acknowledged, no revision is given twice, no acknowledged
//! compaction is undone. Both drivers; 10 kills each, 100 each with `ETCORE_LONG=1`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etcore_engine::testing::prng::Prng;
use etcore_proto::pb::etcdserverpb as pb;

use crate::harness::{Client, DRIVERS, Setup, block_on, is_available};

/// What clients were told.
#[derive(Default, Clone)]
struct Acknowledged {
    /// Revision to key and value; `None` is a delete.
    by_revision: BTreeMap<i64, (String, Option<String>)>,
    compacted: i64,
}

const CLIENTS: u64 = 16;
const KEYS: u64 = 40;

#[test]
fn nothing_acknowledged_is_lost_when_the_member_is_killed() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let kills = if std::env::var_os("ETCORE_LONG").is_some() { 100 } else { 10 };
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let seed = u64::from(std::process::id());
        eprintln!("{driver}: seed {seed}, {kills} kills");
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let told = Arc::new(Mutex::new(Acknowledged::default()));
        let next = Arc::new(AtomicI64::new(0));
        let mut random = Prng::new(seed);
        for round in 0..kills {
            let member = setup.start();
            block_on(async {
                let client = Client::connect(&setup).await;
                let known = told.lock().unwrap().clone();
                check(&client, &known).await;
                let alive = Duration::from_millis(20 + random.below(300));
                let mut tasks = tokio::task::JoinSet::new();
                for number in 0..CLIENTS {
                    let random = Prng::new(seed ^ (round << 32) ^ number);
                    tasks.spawn(load(client.clone(), told.clone(), next.clone(), random));
                }
                tokio::time::sleep(alive).await;
                tasks.abort_all();
            });
            member.kill();
        }
        let _member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            let known = told.lock().unwrap().clone();
            check(&client, &known).await;
        });
        let told = told.lock().unwrap();
        eprintln!(
            "{driver}: {} acknowledged, compacted at {}",
            told.by_revision.len(),
            told.compacted
        );
        assert!(told.by_revision.len() > 100, "the load was too small to show anything");
    }
}

/// Writes until it is stopped. An answer that arrives is recorded at once; one that does not may or
/// may not have happened.
async fn load(
    client: Client,
    told: Arc<Mutex<Acknowledged>>,
    next: Arc<AtomicI64>,
    mut random: Prng,
) {
    loop {
        let key = format!("key{}", random.below(KEYS));
        let kind = random.below(100);
        if kind == 0 {
            let revision = told.lock().unwrap().by_revision.keys().next_back().copied();
            let Some(revision) = revision.map(|revision| revision - 20) else { continue };
            let request = pb::CompactionRequest { revision, physical: random.below(2) == 0 };
            if client.compact(request).await.is_ok() {
                let mut told = told.lock().unwrap();
                told.compacted = told.compacted.max(revision);
            }
        } else if kind < 10 {
            let request = pb::DeleteRangeRequest { key: key.clone().into(), ..Default::default() };
            match client.delete_range(request).await {
                Ok(response) if response.deleted == 1 => {
                    record(&told, response.header.unwrap().revision, key, None);
                }
                Ok(_) => {}
                Err(_) => return,
            }
        } else {
            let value = format!("value{}", next.fetch_add(1, Ordering::Relaxed));
            let request = pb::PutRequest {
                key: key.clone().into(),
                value: value.clone().into(),
                ..Default::default()
            };
            match client.put(request).await {
                Ok(response) => record(&told, response.header.unwrap().revision, key, Some(value)),
                Err(_) => return,
            }
        }
    }
}

fn record(told: &Mutex<Acknowledged>, revision: i64, key: String, value: Option<String>) {
    let before = told.lock().unwrap().by_revision.insert(revision, (key, value));
    assert!(before.is_none(), "revision {revision} was given twice");
}

/// The member holds everything it said.
async fn check(client: &Client, told: &Acknowledged) {
    let newest = told.by_revision.keys().next_back().copied().unwrap_or(1);
    let probe = pb::RangeRequest { key: "probe".into(), ..Default::default() };
    let current = client.range(probe).await.unwrap().header.unwrap().revision;
    assert!(current >= newest, "the member is at {current}, revision {newest} was acknowledged");
    if told.compacted > 0 {
        let old = pb::RangeRequest {
            key: "probe".into(),
            revision: told.compacted - 1,
            ..Default::default()
        };
        let error = client.range(old).await.unwrap_err();
        assert!(error.message().contains("has been compacted"), "{error}");
    }
    for (revision, (key, value)) in told.by_revision.range(told.compacted.max(1)..) {
        let request = pb::RangeRequest {
            key: key.clone().into(),
            revision: *revision,
            serializable: true,
            ..Default::default()
        };
        let response = client.range(request).await;
        let kvs = match response {
            Ok(response) => response.kvs,
            // A compaction that was not acknowledged may have happened all the same.
            Err(error) if error.message().contains("has been compacted") => continue,
            Err(error) => panic!("revision {revision}: {error}"),
        };
        match value {
            Some(value) => {
                assert_eq!(kvs.len(), 1, "{key} at {revision} is gone");
                assert_eq!(kvs[0].value.as_ref(), value.as_bytes(), "{key} at {revision}");
                assert_eq!(kvs[0].mod_revision, *revision, "{key}");
            }
            None => assert!(kvs.is_empty(), "{key} was deleted at {revision}"),
        }
    }
}
