//! The Lock service over gRPC: who waits, who gives up, and who is next. What it answers is held
//! against etcd in `json.rs`.

use std::process::Command;
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::pb::v3lockpb as lockpb;

use crate::harness::{Client, Setup, block_on, oracle, turn};

const LOCK: &str = "/v3lockpb.Lock/Lock";
const UNLOCK: &str = "/v3lockpb.Lock/Unlock";

/// A call whose client goes away if it is not answered by then.
async fn lock(client: &Client, lease: i64) -> Result<lockpb::LockResponse, tonic::Status> {
    client.unary(LOCK, lockpb::LockRequest { name: "l".into(), lease }).await
}

async fn unlock(client: &Client, key: bytes::Bytes) {
    let answer: Result<lockpb::UnlockResponse, _> =
        client.unary(UNLOCK, lockpb::UnlockRequest { key }).await;
    answer.expect("unlocked");
}

async fn grant(client: &Client, id: i64) {
    client.lease_grant(pb::LeaseGrantRequest { ttl: 600, id }).await.expect("granted");
}

/// The keys of the lock.
async fn keys(client: &Client) -> Vec<String> {
    let request =
        pb::RangeRequest { key: "l/".into(), range_end: "l0".into(), ..Default::default() };
    let kvs = client.range(request).await.expect("read").kvs;
    kvs.into_iter().map(|kv| String::from_utf8(kv.key.to_vec()).expect("text")).collect()
}

/// Waits until the lock has these keys.
async fn until_keys(client: &Client, wanted: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while keys(client).await != wanted {
        assert!(Instant::now() < deadline, "{:?} instead of {wanted:?}", keys(client).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_lock_goes_from_one_to_the_next_and_whoever_leaves_is_passed_over() {
    let _turn = turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let _member = setup.start();
    block_on(async {
        let client = Client::connect(&setup).await;
        for id in [1, 2, 3, 4, 5] {
            grant(&client, id).await;
        }
        let first = lock(&client, 1).await.unwrap();
        assert_eq!(first.key, "l/1");
        let again = lock(&client, 1).await.unwrap();
        assert_eq!(again.header, first.header, "the same lease has it already");
        let wait = |lease| {
            let client = client.clone();
            tokio::spawn(async move { lock(&client, lease).await })
        };
        let second = wait(2);
        until_keys(&client, &["l/1", "l/2"]).await;
        let cancelled = wait(3);
        until_keys(&client, &["l/1", "l/2", "l/3"]).await;
        let expired = wait(4);
        until_keys(&client, &["l/1", "l/2", "l/3", "l/4"]).await;
        let last = wait(5);
        until_keys(&client, &["l/1", "l/2", "l/3", "l/4", "l/5"]).await;
        cancelled.abort();
        until_keys(&client, &["l/1", "l/2", "l/4", "l/5"]).await;
        let revoked: Result<pb::LeaseRevokeResponse, _> =
            client.unary("/etcdserverpb.Lease/LeaseRevoke", pb::LeaseRevokeRequest { id: 4 }).await;
        revoked.unwrap();
        assert!(!second.is_finished() && !last.is_finished());
        unlock(&client, first.key).await;
        let second = second.await.unwrap().unwrap();
        assert_eq!(second.key, "l/2");
        unlock(&client, second.key).await;
        let error = expired.await.unwrap().unwrap_err();
        assert_eq!(error.code(), tonic::Code::Unknown);
        assert_eq!(error.message(), "mutex: session is expired");
        assert_eq!(last.await.unwrap().unwrap().key, "l/5");
        let own = lockpb::LockRequest { name: "own".into(), lease: 0 };
        let own: lockpb::LockResponse = client.unary(LOCK, own).await.unwrap();
        let granted = client.unary::<_, pb::LeaseLeasesResponse>(
            "/etcdserverpb.Lease/LeaseLeases",
            pb::LeaseLeasesRequest {},
        );
        let leases = granted.await.unwrap().leases;
        let made = leases.iter().map(|lease| format!("own/{:x}", lease.id));
        assert!(made.into_iter().any(|key| own.key == key), "it has a lease of its own");
    });
}

#[test]
fn hundreds_of_waiters_are_served_in_the_order_of_their_keys() {
    let _turn = turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let _member = setup.start();
    block_on(async {
        let client = Client::connect(&setup).await;
        let waiters: Vec<_> = (1..=500)
            .map(|lease| {
                let client = client.clone();
                tokio::spawn(async move {
                    grant(&client, lease).await;
                    let held = lock(&client, lease).await.unwrap();
                    let kv = client
                        .range(pb::RangeRequest { key: held.key.clone(), ..Default::default() })
                        .await
                        .unwrap()
                        .kvs
                        .remove(0);
                    let at = client
                        .put(pb::PutRequest { key: "at".into(), ..Default::default() })
                        .await
                        .unwrap();
                    unlock(&client, held.key).await;
                    (at.header.unwrap().revision, kv.create_revision)
                })
            })
            .collect();
        let mut held = Vec::new();
        for waiter in waiters {
            held.push(waiter.await.unwrap());
        }
        held.sort_unstable();
        assert!(held.is_sorted_by_key(|(_, created)| *created), "whoever came first held first");
        assert_eq!(keys(&client).await, [""; 0]);
    });
}

#[test]
fn stock_etcdctl_locks() {
    let _turn = turn::light();
    let Some(etcdctl) = oracle("etcdctl") else { return };
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let _member = setup.start();
    let out = Command::new(etcdctl)
        .args(["--endpoints", &setup.endpoint(), "lock", "mutex1", "echo", "held"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "held\n");
}
