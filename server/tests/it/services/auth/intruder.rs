//! Whoever wants what he may not have: calls drawn from a seed, each of which touches a key that
//! its caller has no permission for, or asks for what only an administrator may.
//!
//! `ETCORE_INTRUDER_TRIES` says how many, `ETCORE_INTRUDER_SEED` where to begin. Users and roles
//! change meanwhile. No call may be answered well, and in the end no key has changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use etcore_proto::pb::{authpb, etcdserverpb as pb, mvccpb};
use etcore_proto::splitmix::SplitMix64;
use pb::request_op::Request as Op;
use prost::Message as _;

use super::raw::Calls;
use super::{delete, exists, op, permission, put, range, user_add};
use crate::harness::Client;

/// So many by default.
const TRIES: u64 = 6_000;
/// Calls under way at once.
const HANDS: u64 = 16;

fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Who tries.
struct Disguise {
    token: Option<String>,
    /// He may read and write `foo`.
    is_user: bool,
    /// The cluster knows him, or he has its word that it did.
    is_known: bool,
}

struct Draw(SplitMix64);

impl Draw {
    fn below(&mut self, count: usize) -> usize {
        (self.0.draw() % count as u64) as usize
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    /// A key and an end that hold what `u` may not read; or what he may not write.
    fn forbidden(&mut self, writes: bool) -> (&'static str, &'static str) {
        const NEVER: &[(&str, &str)] = &[
            ("secret", ""),
            ("fo", ""),
            ("foo\0", ""),
            ("fooo", ""),
            ("pre", ""),
            ("pre0", ""),
            ("zz", ""),
            ("\0", ""),
            ("\0", "\0"),
            ("foo", "\0"),
            ("foo", "foo\0\0"),
            ("foo", "fop"),
            ("foo", "zzz"),
            ("fo", "foo\0"),
            ("pre/", "pre0\0"),
            ("pre", "pre0"),
            ("pre/", "\0"),
            ("secret", "secret\0"),
            ("secret", "a"),
            ("a", "\0"),
            ("bar", "baz\0"),
            ("ba", "baz"),
            ("bar", "foo\0"),
            ("\u{7f}", "\0"),
        ];
        const WRITES: &[(&str, &str)] = &[("bar", ""), ("bar1", ""), ("bar", "baz")];
        const READS: &[(&str, &str)] = &[("wr", ""), ("wr", "wr\0")];
        match self.below(4) {
            0 if writes => *self.one(WRITES),
            0 => *self.one(READS),
            _ => *self.one(NEVER),
        }
    }

    fn range(&mut self) -> pb::RangeRequest {
        let (key, end) = self.forbidden(false);
        pb::RangeRequest {
            limit: self.below(3) as i64 - 1,
            serializable: self.coin(),
            keys_only: self.coin(),
            count_only: self.coin(),
            ..range(key, end)
        }
    }

    fn put(&mut self) -> pb::PutRequest {
        let mut request = match self.below(3) {
            // A lease whose keys he may not write, or what was there before.
            0 => put("foo", "stolen", 2),
            1 => pb::PutRequest { prev_kv: true, ..put("wr", "stolen", 0) },
            _ => {
                let (key, _) = self.forbidden(true);
                let key = if key == "foo" || key == "pre/" { "secret" } else { key };
                put(key, "stolen", 0)
            }
        };
        request.prev_kv |= self.coin();
        request
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let (key, end) = self.forbidden(true);
        let prev_kv = self.coin();
        delete(key, end, prev_kv)
    }

    /// What he may do, to hide the other thing among.
    fn harmless(&mut self) -> pb::RequestOp {
        op(match self.below(2) {
            0 => Op::RequestRange(range("foo", "")),
            _ => Op::RequestRange(range("bar", "baz")),
        })
    }

    fn txn(&mut self, depth: usize) -> pb::TxnRequest {
        let mut txn = pb::TxnRequest::default();
        for _ in 0..self.below(3) {
            let harmless = self.harmless();
            if self.coin() { txn.success.push(harmless) } else { txn.failure.push(harmless) }
        }
        let wrong = match self.below(if depth == 0 { 4 } else { 6 }) {
            0 => {
                let (key, end) = self.forbidden(false);
                let range_end = end.as_bytes().to_vec().into();
                let at = self.below(2).min(txn.compare.len());
                txn.compare.insert(at, pb::Compare { range_end, ..exists(key) });
                return txn;
            }
            1 => Op::RequestRange(self.range()),
            2 => Op::RequestPut(self.put()),
            3 => Op::RequestDeleteRange(self.delete()),
            _ => Op::RequestTxn(Box::new(self.txn(depth - 1))),
        };
        let branch = if self.coin() { &mut txn.success } else { &mut txn.failure };
        branch.push(op(wrong));
        txn
    }

    fn lease(&mut self) -> (&'static str, Vec<u8>) {
        match self.below(4) {
            0 => ("Lease/LeaseRevoke", pb::LeaseRevokeRequest { id: 2 }.encode_to_vec()),
            1 => {
                let request = pb::LeaseTimeToLiveRequest { id: 2, keys: true };
                ("Lease/LeaseTimeToLive", request.encode_to_vec())
            }
            2 => ("Lease/LeaseKeepAlive", pb::LeaseKeepAliveRequest { id: 2 }.encode_to_vec()),
            _ => ("Lease/LeaseLeases", Vec::new()),
        }
    }

    fn watch(&mut self) -> Vec<u8> {
        let (key, end) = self.forbidden(false);
        let create = pb::WatchCreateRequest {
            key: key.as_bytes().to_vec().into(),
            range_end: end.as_bytes().to_vec().into(),
            start_revision: self.below(3) as i64,
            prev_kv: self.coin(),
            ..Default::default()
        };
        let request_union = Some(pb::watch_request::RequestUnion::CreateRequest(create));
        pb::WatchRequest { request_union }.encode_to_vec()
    }

    fn admin(&mut self) -> (&'static str, Vec<u8>) {
        let (u, r) = ("u".to_owned(), "r".to_owned());
        let all =
            authpb::Permission { perm_type: 2, key: vec![0].into(), range_end: vec![0].into() };
        match self.below(14) {
            0 => ("Auth/AuthDisable", Vec::new()),
            1 => ("Auth/UserList", Vec::new()),
            2 => ("Auth/RoleList", Vec::new()),
            3 => ("Auth/UserAdd", user_add("mine", "mine").encode_to_vec()),
            4 => {
                let grant = pb::AuthUserGrantRoleRequest { user: u, role: "root".to_owned() };
                ("Auth/UserGrantRole", grant.encode_to_vec())
            }
            5 => {
                let grant = pb::AuthRoleGrantPermissionRequest { name: r, perm: Some(all) };
                ("Auth/RoleGrantPermission", grant.encode_to_vec())
            }
            6 => {
                let change = pb::AuthUserChangePasswordRequest {
                    name: "root".to_owned(),
                    password: "mine".to_owned(),
                    ..Default::default()
                };
                ("Auth/UserChangePassword", change.encode_to_vec())
            }
            7 => {
                let get = pb::AuthUserGetRequest { name: "root".to_owned() };
                ("Auth/UserGet", get.encode_to_vec())
            }
            8 => {
                let get = pb::AuthRoleGetRequest { role: "root".to_owned() };
                ("Auth/RoleGet", get.encode_to_vec())
            }
            9 => (
                "KV/Compact",
                pb::CompactionRequest { revision: 3, physical: self.coin() }.encode_to_vec(),
            ),
            10 => ("Maintenance/Hash", Vec::new()),
            11 => ("Maintenance/HashKV", Vec::new()),
            12 => ("Maintenance/Defragment", Vec::new()),
            _ => {
                let raise = pb::AlarmRequest { action: 1, alarm: 2, ..Default::default() };
                ("Maintenance/Alarm", raise.encode_to_vec())
            }
        }
    }

    fn attempt(&mut self, who: &Disguise) -> (&'static str, Vec<u8>) {
        if !who.is_user && self.coin() {
            // Whoever is nobody may not even have what `u` has.
            return match self.below(if who.is_known { 2 } else { 3 }) {
                0 => ("KV/Range", range("foo", "").encode_to_vec()),
                1 => ("KV/Put", put("foo", "stolen", 0).encode_to_vec()),
                _ => ("Lease/LeaseGrant", pb::LeaseGrantRequest { ttl: 9, id: 0 }.encode_to_vec()),
            };
        }
        match self.below(9) {
            0 => ("KV/Range", self.range().encode_to_vec()),
            1 => ("KV/RangeStream", self.range().encode_to_vec()),
            2 => ("KV/Put", self.put().encode_to_vec()),
            3 => ("KV/DeleteRange", self.delete().encode_to_vec()),
            4 | 5 => ("KV/Txn", self.txn(3).encode_to_vec()),
            6 => self.lease(),
            7 => ("Watch/Watch", self.watch()),
            _ => self.admin(),
        }
    }
}

/// All tokens that are or were somebody's but root's.
async fn disguises(client: &Client, admin: &Calls) -> Vec<Disguise> {
    let own = client.token_of("u", "u").await.unwrap();
    let none = client.token_of("n", "n").await.unwrap();
    admin.ok("Auth/UserAdd", &user_add("former", "f")).await;
    let root = pb::AuthUserGrantRoleRequest { user: "former".to_owned(), role: "root".to_owned() };
    admin.ok("Auth/UserGrantRole", &root).await;
    let former = client.token_of("former", "f").await.unwrap();
    admin.ok("Auth/UserDelete", &pb::AuthUserDeleteRequest { name: "former".to_owned() }).await;
    let mut all = vec![
        Disguise { token: None, is_user: false, is_known: false },
        Disguise { token: Some(format!("Bearer {own}")), is_user: true, is_known: true },
        Disguise { token: Some(own.clone()), is_user: true, is_known: true },
        Disguise { token: Some(own.clone()), is_user: true, is_known: true },
        Disguise { token: Some(none), is_user: false, is_known: true },
        Disguise { token: Some(former), is_user: false, is_known: false },
    ];
    for odd in ["", "root", "root.1", ".", "Bearer", "Bearer ", "a.0"] {
        all.push(Disguise { token: Some(odd.to_owned()), is_user: false, is_known: false });
    }
    all.push(Disguise { token: Some(own.to_uppercase()), is_user: false, is_known: false });
    all.push(Disguise { token: Some(format!("{own}0")), is_user: false, is_known: false });
    all
}

/// Users and roles change, so that every revision is old sooner or later.
async fn stir(admin: Calls, done: Arc<AtomicBool>) {
    let perm = permission(authpb::permission::Type::Readwrite, "unrelated", "");
    admin.ok("Auth/RoleAdd", &pb::AuthRoleAddRequest { name: "stirred".to_owned() }).await;
    let grant = pb::AuthRoleGrantPermissionRequest { name: "stirred".to_owned(), perm: Some(perm) };
    while !done.load(Ordering::Relaxed) {
        admin.ok("Auth/RoleGrantPermission", &grant).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// What is stored, as root sees it.
async fn all_keys(admin: &Calls) -> Vec<mvccpb::KeyValue> {
    let everything =
        pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    admin.0.range(everything).await.unwrap().kvs
}

/// See the module text.
pub async fn intrude(client: &Client) {
    let (tries, seed) = (asked("ETCORE_INTRUDER_TRIES", TRIES), asked("ETCORE_INTRUDER_SEED", 1));
    let root = client.token_of("root", "root").await.unwrap();
    let admin = Calls(client.with_token(Some(&root)));
    let disguises = Arc::new(disguises(client, &admin).await);
    let before = all_keys(&admin).await;
    assert_eq!(before.len(), 7);
    let (done, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let stirring = tokio::spawn(stir(admin.clone(), done.clone()));
    let mut hands = tokio::task::JoinSet::new();
    for hand in 0..HANDS {
        let (client, disguises, refused) = (client.clone(), disguises.clone(), refused.clone());
        hands.spawn(async move {
            let mut draw = Draw(SplitMix64::new(seed * HANDS + hand));
            for _ in 0..tries / HANDS {
                let disguise = draw.one(&disguises);
                let (path, request) = draw.attempt(disguise);
                let calls = Calls(client.with_token(disguise.token.as_deref()));
                let outcome = calls.outcome(path, &request).await;
                assert_ne!(
                    outcome, "OK",
                    "seed {seed}: {path} {request:?} by {:?}",
                    disguise.token
                );
                refused.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    hands.join_all().await;
    done.store(true, Ordering::Relaxed);
    stirring.await.unwrap();
    assert_eq!(refused.load(Ordering::Relaxed), tries / HANDS * HANDS);
    assert_eq!(all_keys(&admin).await, before, "nothing has changed");
    assert!(client.token_of("mine", "mine").await.is_err());
}
