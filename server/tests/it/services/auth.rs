//! Users, roles, logins and permissions, beside a real etcd where its answers matter.
//!
//! etcdctl's commands one by one; every method as everybody; an intruder that tries whatever it can
//! think of; and what was once wrong with etcd's auth, each by its number.

mod intruder;
mod raw;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use etcore_proto::pb::{authpb, etcdserverpb as pb};
use prost::Message as _;

use crate::harness::certs::{Authority, Pair, Wanted};
use crate::harness::{Client, Etcd, Setup, block_on, has_program, oracle};
use raw::Calls;

/// Passwords are cheap here, as the machine is.
const CHEAP: &str = "--bcrypt-cost=4";

fn driver() -> &'static str {
    "portable"
}

fn permission(kind: authpb::permission::Type, key: &str, end: &str) -> authpb::Permission {
    authpb::Permission {
        perm_type: kind as i32,
        key: key.as_bytes().to_vec().into(),
        range_end: end.as_bytes().to_vec().into(),
    }
}

/// Makes users and roles, then switches authentication on: root, `u` with one role, `n` with none.
/// Lease 1 has a key that `u` may write, lease 2 one that he may not.
async fn set_up(client: &Client) {
    use authpb::permission::Type;
    let calls = Calls(client.clone());
    for (name, role) in [("root", "root"), ("u", "r"), ("n", "")] {
        calls.ok("Auth/UserAdd", &user_add(name, name)).await;
        if role == "r" {
            calls.ok("Auth/RoleAdd", &pb::AuthRoleAddRequest { name: role.to_owned() }).await;
        }
        if !role.is_empty() {
            let grant = pb::AuthUserGrantRoleRequest { user: name.to_owned(), role: role.into() };
            calls.ok("Auth/UserGrantRole", &grant).await;
        }
    }
    for perm in [
        permission(Type::Readwrite, "foo", ""),
        permission(Type::Read, "bar", "baz"),
        permission(Type::Write, "wr", ""),
        permission(Type::Readwrite, "pre/", "pre0"),
    ] {
        let grant = pb::AuthRoleGrantPermissionRequest { name: "r".to_owned(), perm: Some(perm) };
        calls.ok("Auth/RoleGrantPermission", &grant).await;
    }
    for (id, key) in [(1, "foo"), (2, "secret")] {
        client.lease_grant(pb::LeaseGrantRequest { ttl: 1000, id }).await.unwrap();
        client.put(put(key, "SECRET", id)).await.unwrap();
    }
    for key in ["bar", "bar1", "wr", "pre/a", "zz"] {
        client.put_kv(key, "SECRET").await;
    }
    calls.ok("Auth/AuthEnable", &pb::AuthEnableRequest {}).await;
}

fn user_add(name: &str, password: &str) -> pb::AuthUserAddRequest {
    let (name, password) = (name.to_owned(), password.to_owned());
    pb::AuthUserAddRequest { name, password, ..Default::default() }
}

fn put(key: &str, value: &str, lease: i64) -> pb::PutRequest {
    let (key, value) = (key.as_bytes().to_vec().into(), value.as_bytes().to_vec().into());
    pb::PutRequest { key, value, lease, ..Default::default() }
}

fn range(key: &str, end: &str) -> pb::RangeRequest {
    let (key, range_end) = (key.as_bytes().to_vec().into(), end.as_bytes().to_vec().into());
    pb::RangeRequest { key, range_end, ..Default::default() }
}

fn delete(key: &str, end: &str, prev_kv: bool) -> pb::DeleteRangeRequest {
    let (key, range_end) = (key.as_bytes().to_vec().into(), end.as_bytes().to_vec().into());
    pb::DeleteRangeRequest { key, range_end, prev_kv }
}

fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn exists(key: &str) -> pb::Compare {
    pb::Compare { key: key.as_bytes().to_vec().into(), ..Default::default() }
}

/// A client's certificate for this user.
fn pair_of(authority: &Authority, name: &str) -> Pair {
    let wanted = Wanted { common_name: name, ..Default::default() };
    authority.issue_as(&format!("client-{name}"), &wanted)
}

fn etcdctl(binary: &Path, endpoint: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new(binary)
        .arg(format!("--endpoints={endpoint}"))
        .args(args)
        .env_clear()
        .output()
        .expect("etcdctl runs");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    // The lines of the client's own log name addresses and times.
    let lines = text.lines().filter(|line| !line.starts_with('{'));
    (output.status.success(), lines.collect::<Vec<_>>().join("\n"))
}

/// The guides' commands, and those between them.
const COMMANDS: &str = "\
auth status
user add root:rootpw
auth enable
user list
put a b
--user root:bad put a b
--user root:rootpw role add r1
--user root:rootpw role grant-permission r1 readwrite foo
--user root:rootpw role grant-permission r1 read bar baz
--user root:rootpw role grant-permission r1 readwrite --prefix pre/
--user root:rootpw role grant-permission r1 write --from-key zz
--user root:rootpw role get r1
--user root:rootpw role list
--user root:rootpw user add user1:pw1
--user root:rootpw user grant-role user1 r1
--user root:rootpw user get user1
--user root:rootpw user get --detail user1
--user user1:pw1 put foo 1
--user user1:pw1 put fooo 1
--user user1:pw1 get foo
--user user1:pw1 get bar baz
--user user1:pw1 get bar bazz
--user user1:pw1 get --from-key bar
--user user1:pw1 put zzz 1
--user user1:pw1 get zzz
--user user1:pw1 put --prev-kv pre/a 2
--user user1:pw1 del --prefix pre/
--user user1:pw1 user get root
--user user1:pw1 role get r1
--user user1:pw1 compact 1
--user user1:pw1 alarm list
--user user1:pw1 alarm disarm
--user user1:pw1 endpoint hashkv
get foo
lease list
--user root:rootpw user delete root
--user root:rootpw role delete root
--user root:rootpw user revoke-role root root
--user root:rootpw user delete nobody
--user root:rootpw role add r1
--user root:rootpw user add user1:x
--user root:rootpw user grant-role user1 none
--user root:rootpw role revoke-permission r1 nothing
--user root:rootpw role grant-permission r1 read b a
--user root:rootpw user add --no-user-password np
--user np:x get foo
--user nobody:x get foo
--user root:rootpw role revoke-permission r1 foo
--user user1:pw1 get foo
--user root:rootpw role delete r1
--user user1:pw1 put pre/a 1
--user root:rootpw user delete user1
--user user1:pw1 get foo
--user root:rootpw auth disable
get foo
--user user1:pw1 get foo";

#[test]
fn the_guides_commands_about_users_and_roles_are_answered_as_etcd_answers_them() {
    let _turn = crate::harness::turn::light();
    let (Some(etcd), Some(ctl)) = (oracle("etcd"), oracle("etcdctl")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let setups =
        ["ours", "theirs"].map(|name| Setup::new(&dir.path().join(name), driver()).with(CHEAP));
    let (_member, _etcd) = (setups[0].start(), Etcd::start(&etcd, &setups[1]));
    for command in COMMANDS.lines() {
        let args: Vec<&str> = command.split(' ').collect();
        let answers = setups.each_ref().map(|setup| {
            let (ok, text) = etcdctl(&ctl, &setup.endpoint(), &args);
            (ok, text.replace(&setup.client_port.to_string(), "PORT"))
        });
        assert_eq!(answers[0], answers[1], "{command}");
    }
}

/// Requests of every method, with what they are called in a complaint.
fn requests() -> Vec<(&'static str, Vec<u8>)> {
    use pb::request_op::Request as Op;
    let txn = |compare: Vec<_>, success: Vec<_>, failure: Vec<_>| pb::TxnRequest {
        compare,
        success: success.into_iter().map(op).collect(),
        failure: failure.into_iter().map(op).collect(),
    };
    let prev = |put: pb::PutRequest| pb::PutRequest { prev_kv: true, ..put };
    let mut all: Vec<(&'static str, Vec<u8>)> = Vec::new();
    for (key, end) in [
        ("foo", ""),
        ("secret", ""),
        ("bar", "baz"),
        ("bar", "bazz"),
        ("bar", "\0"),
        ("foo", "bar"),
        ("secret", "a"),
        ("wr", ""),
        ("pre/", "pre0"),
        ("\0", "\0"),
    ] {
        let asked = range(key, end);
        let serializable = pb::RangeRequest { serializable: true, ..asked.clone() };
        let counted = pb::RangeRequest { count_only: true, ..asked.clone() };
        for request in [&asked, &serializable, &counted] {
            all.push(("KV/Range", request.encode_to_vec()));
        }
        all.push(("KV/RangeStream", asked.encode_to_vec()));
        all.push(("KV/DeleteRange", delete(key, end, true).encode_to_vec()));
        let create = pb::WatchCreateRequest {
            key: asked.key.clone(),
            range_end: asked.range_end.clone(),
            ..Default::default()
        };
        let union = Some(pb::watch_request::RequestUnion::CreateRequest(create));
        all.push(("Watch/Watch", pb::WatchRequest { request_union: union }.encode_to_vec()));
        let read = txn(vec![exists(key)], vec![Op::RequestRange(asked)], vec![]);
        all.push(("KV/Txn", read.encode_to_vec()));
    }
    for key in ["foo", "secret", "wr", "bar"] {
        for lease in [0, 1, 2, 3] {
            all.push(("KV/Put", put(key, "v", lease).encode_to_vec()));
        }
        all.push(("KV/Put", prev(put(key, "v", 0)).encode_to_vec()));
        let put = Op::RequestPut(put(key, "v", 0));
        all.push(("KV/Txn", txn(vec![], vec![put.clone()], vec![]).encode_to_vec()));
        all.push(("KV/Txn", txn(vec![], vec![], vec![put.clone()]).encode_to_vec()));
        let nested = Op::RequestTxn(Box::new(txn(vec![], vec![], vec![put])));
        all.push(("KV/Txn", txn(vec![], vec![nested], vec![]).encode_to_vec()));
    }
    all.push((
        "KV/Compact",
        pb::CompactionRequest { revision: 1, physical: false }.encode_to_vec(),
    ));
    for id in [1, 2, 3] {
        for keys in [false, true] {
            let request = pb::LeaseTimeToLiveRequest { id, keys };
            all.push(("Lease/LeaseTimeToLive", request.encode_to_vec()));
        }
        let renew = pb::LeaseKeepAliveRequest { id };
        all.push(("Lease/LeaseKeepAlive", renew.encode_to_vec()));
    }
    all.push(("Lease/LeaseGrant", pb::LeaseGrantRequest { ttl: 100, id: 1 }.encode_to_vec()));
    all.push(("Lease/LeaseLeases", Vec::new()));
    all.push(("Lease/LeaseRevoke", pb::LeaseRevokeRequest { id: 2 }.encode_to_vec()));
    let (root, r, n) = ("root".to_owned(), "r".to_owned(), "n".to_owned());
    for name in ["root", "u", "n", "x", ""] {
        let name = name.to_owned();
        all.push(("Auth/UserGet", pb::AuthUserGetRequest { name }.encode_to_vec()));
    }
    for role in ["root", "r", "x", ""] {
        let role = role.to_owned();
        all.push(("Auth/RoleGet", pb::AuthRoleGetRequest { role }.encode_to_vec()));
    }
    for path in ["Auth/AuthStatus", "Auth/AuthEnable", "Auth/UserList", "Auth/RoleList"] {
        all.push((path, Vec::new()));
    }
    let wrong = pb::AuthenticateRequest { name: root.clone(), password: "wrong".to_owned() };
    all.push(("Auth/Authenticate", wrong.encode_to_vec()));
    all.push(("Auth/UserAdd", user_add("u", "again").encode_to_vec()));
    all.push(("Auth/UserAdd", user_add("", "again").encode_to_vec()));
    all.push(("Auth/UserAdd", user_add("long", &"x".repeat(73)).encode_to_vec()));
    all.push(("Auth/UserDelete", pb::AuthUserDeleteRequest { name: root.clone() }.encode_to_vec()));
    let change = pb::AuthUserChangePasswordRequest {
        name: "x".to_owned(),
        password: "y".to_owned(),
        ..Default::default()
    };
    all.push(("Auth/UserChangePassword", change.encode_to_vec()));
    let grant = pb::AuthUserGrantRoleRequest { user: n.clone(), role: "x".to_owned() };
    all.push(("Auth/UserGrantRole", grant.encode_to_vec()));
    let revoke = pb::AuthUserRevokeRoleRequest { name: n, role: r.clone() };
    all.push(("Auth/UserRevokeRole", revoke.encode_to_vec()));
    all.push(("Auth/RoleAdd", pb::AuthRoleAddRequest { name: r.clone() }.encode_to_vec()));
    all.push(("Auth/RoleAdd", Vec::new()));
    all.push(("Auth/RoleDelete", pb::AuthRoleDeleteRequest { role: root }.encode_to_vec()));
    let none = pb::AuthRoleGrantPermissionRequest { name: r.clone(), perm: None };
    all.push(("Auth/RoleGrantPermission", none.encode_to_vec()));
    let revoke = pb::AuthRoleRevokePermissionRequest { role: r, ..Default::default() };
    all.push(("Auth/RoleRevokePermission", revoke.encode_to_vec()));
    for linearizable in [false, true] {
        let list = pb::MemberListRequest { linearizable };
        all.push(("Cluster/MemberList", list.encode_to_vec()));
    }
    let disarm = pb::AlarmRequest { action: 2, ..Default::default() };
    all.push(("Maintenance/Alarm", disarm.encode_to_vec()));
    for path in ["Alarm", "Status", "Hash", "HashKV", "Defragment"] {
        let path = ["Maintenance/Alarm", "Maintenance/Status", "Maintenance/Hash"]
            .into_iter()
            .chain(["Maintenance/HashKV", "Maintenance/Defragment"])
            .find(|known| known.ends_with(path));
        all.push((path.unwrap(), Vec::new()));
    }
    all
}

#[test]
fn every_method_says_to_everybody_what_etcd_says() {
    let _turn = crate::harness::turn::light();
    let Some(etcd) = oracle("etcd") else { return };
    let dir = tempfile::tempdir().unwrap();
    let setups =
        ["ours", "theirs"].map(|name| Setup::new(&dir.path().join(name), driver()).with(CHEAP));
    let (_member, _etcd) = (setups[0].start(), Etcd::start(&etcd, &setups[1]));
    block_on(async {
        let clients = [Client::connect(&setups[0]).await, Client::connect(&setups[1]).await];
        for client in &clients {
            set_up(client).await;
        }
        let mut tokens: Vec<[Option<String>; 2]> = vec![[None, None]];
        for name in ["u", "n", "root"] {
            let mut both = [None, None];
            for (token, client) in both.iter_mut().zip(&clients) {
                *token = Some(client.token_of(name, name).await.unwrap());
            }
            tokens.push(both);
        }
        let bearer = tokens[1].clone().map(|token| token.map(|token| format!("Bearer {token}")));
        tokens.push(bearer);
        for odd in ["", "x", "abcdefghijklmnop.1", "a.b.c"] {
            tokens.push([Some(odd.to_owned()), Some(odd.to_owned())]);
        }
        for (path, request) in requests() {
            for both in &tokens {
                let mut answers = Vec::new();
                for (token, client) in both.iter().zip(&clients) {
                    let calls = Calls(client.with_token(token.as_deref()));
                    answers.push(calls.outcome(path, &request).await);
                }
                assert_eq!(answers[0], answers[1], "{path} {request:?} by {:?}", both[0]);
            }
        }
    });
}

#[test]
fn a_simple_token_ends_when_it_is_not_used_and_with_its_user() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), driver()).with(CHEAP).with("--auth-token-ttl=2");
    let _member = setup.start();
    block_on(async {
        let client = Client::connect(&setup).await;
        set_up(&client).await;
        let invalid =
            |outcome: String| outcome == "Unauthenticated: etcdserver: invalid auth token";
        let read = range("foo", "").encode_to_vec();
        let token = client.token_of("u", "u").await.unwrap();
        let calls = Calls(client.with_token(Some(&token)));
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(calls.outcome("KV/Range", &read).await, "OK", "each use prolongs it");
        }
        tokio::time::sleep(Duration::from_millis(2100)).await;
        assert!(invalid(calls.outcome("KV/Range", &read).await), "nobody has used it");
        let root = client.token_of("root", "root").await.unwrap();
        let admin = Calls(client.with_token(Some(&root)));
        let changed = pb::AuthUserChangePasswordRequest {
            name: "u".to_owned(),
            password: "new".to_owned(),
            ..Default::default()
        };
        let gone = pb::AuthUserDeleteRequest { name: "u".to_owned() };
        for (path, message, password) in [
            ("Auth/UserChangePassword", changed.encode_to_vec(), "u"),
            ("Auth/UserDelete", gone.encode_to_vec(), "new"),
        ] {
            let token = client.token_of("u", password).await.unwrap();
            let calls = Calls(client.with_token(Some(&token)));
            assert_eq!(calls.outcome("KV/Range", &read).await, "OK");
            assert_eq!(admin.outcome(path, &message).await, "OK");
            assert!(invalid(calls.outcome("KV/Range", &read).await), "{path}");
        }
    });
}

#[test]
fn a_flood_of_wrong_passwords_is_bounded_and_leaves_others_their_answers() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), driver());
    let _member = setup.start();
    block_on(async {
        let client = Client::connect(&setup).await;
        set_up(&client).await;
        let token = client.token_of("u", "u").await.unwrap();
        let calls = Calls(client.with_token(Some(&token)));
        let mut flood = tokio::task::JoinSet::new();
        for _ in 0..400 {
            let client = client.clone();
            flood.spawn(async move {
                let refused = client.token_of("root", "wrong").await.unwrap_err();
                refused.message().to_owned()
            });
        }
        let (began, read) = (Instant::now(), range("foo", "").encode_to_vec());
        let mut slowest = Duration::ZERO;
        while began.elapsed() < Duration::from_secs(1) {
            let asked = Instant::now();
            assert_eq!(calls.outcome("KV/Range", &read).await, "OK");
            slowest = slowest.max(asked.elapsed());
        }
        assert!(slowest < Duration::from_millis(250), "{slowest:?}");
        let told = flood.join_all().await;
        let refused = told.iter().filter(|text| text.contains("too many requests")).count();
        let wrong = told.iter().filter(|text| text.contains("invalid user ID")).count();
        assert!(refused >= 300 && wrong > 0, "{refused} {wrong}: some may have had no time");
        // Nobody waits behind those who have gone.
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(refused) = client.token_of("root", "root").await {
            assert!(Instant::now() < deadline, "{refused}");
        }
    });
}

#[test]
fn the_common_name_of_a_certificate_is_a_user_where_clients_must_have_one() {
    let _turn = crate::harness::turn::light();
    let (Some(etcd), Some(ctl)) = (oracle("etcd"), oracle("etcdctl")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let server = authority.issue("server");
    let pairs = ["root", "u", "x", ""].map(|name| pair_of(&authority, name));
    let setups = ["ours", "theirs"].map(|name| {
        let setup = Setup::new(&dir.path().join(name), driver()).with(CHEAP);
        setup.with_tls(&authority.ca_file, &server)
    });
    let (_member, _etcd) = (setups[0].start(), Etcd::start(&etcd, &setups[1]));
    let run = |setup: &Setup, pair: &Pair, command: &str| {
        let cacert = format!("--cacert={}", authority.ca_file);
        let (cert, key) = (format!("--cert={}", pair.cert), format!("--key={}", pair.key));
        let args = [&cacert, &cert, &key].map(String::as_str).into_iter();
        etcdctl(&ctl, &setup.endpoint(), &args.chain(command.split(' ')).collect::<Vec<_>>())
    };
    for command in [
        "user add root:root",
        "user grant-role root root",
        "user add u:u",
        "role add r",
        "role grant-permission r readwrite foo",
        "user grant-role u r",
        "auth enable",
    ] {
        for setup in &setups {
            let (ok, text) = run(setup, &pairs[0], command);
            assert!(ok || command.ends_with("root root"), "{command}: {text}");
        }
    }
    for command in [
        "put foo 1",
        "get foo",
        "put a 1",
        "user list",
        "user get u",
        "compact 1",
        "member list -w simple",
        "--user=u:u put a 1",
        "--user=u:u put foo 1",
        "--user=root:root put a 1",
        "auth status",
    ] {
        for pair in &pairs {
            let [ours, theirs] = setups.each_ref().map(|setup| {
                let (ok, text) = run(setup, pair, command);
                if command.starts_with("member") { (ok, String::new()) } else { (ok, text) }
            });
            assert_eq!(ours, theirs, "{command} by {}", pair.cert);
        }
    }
    let (ok, text) = run(&setups[0], &pairs[0], "put a 2");
    assert!(ok, "root by his certificate: {text}");
}

#[test]
fn signed_tokens_are_taken_by_members_that_have_the_public_key_alone() {
    let _turn = crate::harness::turn::light();
    let Some(etcd) = oracle("etcd") else { return };
    let dir = tempfile::tempdir().unwrap();
    let pair = Authority::new(dir.path(), "ca").issue("signer");
    let public = dir.path().join("public.pem");
    let made = Command::new("openssl")
        .args(["x509", "-pubkey", "-noout", "-in", &pair.cert])
        .output()
        .expect("openssl runs");
    std::fs::write(&public, made.stdout).unwrap();
    let method = "--auth-token=jwt,sign-method=ES256,ttl=3s";
    let signs = format!("{method},priv-key={},pub-key={}", pair.key, public.display());
    let setups = ["ours", "theirs"]
        .map(|name| Setup::new(&dir.path().join(name), driver()).with(CHEAP).with(&signs));
    let verifies = format!("{method},pub-key={}", public.display());
    let taker = Setup::new(&dir.path().join("taker"), driver()).with(CHEAP).with(&verifies);
    let (_member, _etcd) = (setups[0].start(), Etcd::start(&etcd, &setups[1]));
    let _taker = taker.start();
    block_on(async {
        let all = [&setups[0], &setups[1], &taker];
        let mut clients = Vec::new();
        for setup in all {
            let client = Client::connect(setup).await;
            set_up(&client).await;
            clients.push(client);
        }
        let refused = clients[2].token_of("u", "u").await.unwrap_err();
        let text = "auth: token signing attempted with verify-only key";
        assert_eq!((refused.code(), refused.message()), (tonic::Code::Unknown, text));
        let read = range("foo", "").encode_to_vec();
        for from in 0..2 {
            let token = clients[from].token_of("u", "u").await.unwrap();
            for client in [&clients[from], &clients[2]] {
                let calls = Calls(client.with_token(Some(&token)));
                assert_eq!(calls.outcome("KV/Range", &read).await, "OK");
                let secret = calls.outcome("KV/Range", &range("secret", "").encode_to_vec()).await;
                assert_eq!(secret, "PermissionDenied: etcdserver: permission denied");
            }
            // A change of users or roles makes it old.
            let token_of_root = clients[from].token_of("root", "root").await.unwrap();
            let admin = Calls(clients[from].with_token(Some(&token_of_root)));
            admin.ok("Auth/RoleAdd", &pb::AuthRoleAddRequest { name: "more".to_owned() }).await;
            let calls = Calls(clients[from].with_token(Some(&token)));
            let old = calls.outcome("KV/Range", &read).await;
            assert_eq!(old, "InvalidArgument: etcdserver: revision of auth store is old");
            tokio::time::sleep(Duration::from_secs(3)).await;
            let ended = calls.outcome("KV/Range", &read).await;
            assert_eq!(ended, "Unauthenticated: etcdserver: invalid auth token");
        }
    });
}

/// A member with users and roles, a client of it, and the calls of its user `u`.
async fn member_and_user(setup: &Setup) -> (Client, Calls) {
    let client = Client::connect(setup).await;
    set_up(&client).await;
    let token = client.token_of("u", "u").await.unwrap();
    let calls = Calls(client.with_token(Some(&token)));
    (client, calls)
}

const DENIED: &str = "PermissionDenied: etcdserver: permission denied";
const NOBODY: &str = "InvalidArgument: etcdserver: user name is empty";

/// Passwords in what a member logs at its most talkative, and in its files.
#[test]
fn cve_2021_28235_no_password_or_token_is_logged_or_stored() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), driver()).with(CHEAP).with("--log-level=debug");
    let mut member = setup.start();
    let (password, wrong) = ("aVerySecretPassword", "aWrongPassword");
    let token = block_on(async {
        let (client, _) = member_and_user(&setup).await;
        let root = client.token_of("root", "root").await.unwrap();
        let admin = Calls(client.with_token(Some(&root)));
        admin.ok("Auth/UserAdd", &user_add("v", password)).await;
        let unused = pb::AuthUserAddRequest {
            options: Some(authpb::UserAddOptions { no_password: true }),
            ..user_add("w", password)
        };
        admin.ok("Auth/UserAdd", &unused).await;
        client.token_of("v", wrong).await.unwrap_err();
        let token = client.token_of("v", password).await.unwrap();
        let calls = Calls(client.with_token(Some(&token)));
        assert_eq!(calls.outcome("KV/Range", &range("foo", "").encode_to_vec()).await, DENIED);
        token
    });
    member.terminate();
    member.wait();
    let secrets = [password, wrong, &token];
    for line in member.lines_so_far() {
        assert!(!secrets.iter().any(|secret| line.contains(secret)), "{line}");
    }
    let mut files = 0;
    let mut dirs = vec![setup.data_dir.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                dirs.push(entry.path());
                continue;
            }
            let bytes = std::fs::read(entry.path()).unwrap();
            files += 1;
            for secret in [password, wrong] {
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!found, "{:?}", entry.path());
            }
        }
    }
    assert!(files >= 2, "the log and the page file were read");
}

/// Runs against a member with users: the calls of its user `u`, and of nobody.
fn with_user(test: impl AsyncFn(&Calls, &Calls)) {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), driver()).with(CHEAP);
    let _member = setup.start();
    block_on(async {
        let (client, calls) = member_and_user(&setup).await;
        test(&calls, &Calls(client.clone())).await;
    });
}

#[test]
fn cve_2018_16886_a_certificate_makes_nobody_a_user_of_the_gateway() {
    let _turn = crate::harness::turn::light();
    let (Some(etcd), true) = (oracle("etcd"), has_program("curl")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let server = authority.issue("server");
    let pairs = ["root", ""].map(|name| pair_of(&authority, name));
    let setups = ["ours", "theirs"].map(|name| {
        let setup = Setup::new(&dir.path().join(name), driver()).with(CHEAP);
        setup.with_tls(&authority.ca_file, &server)
    });
    let (_member, _etcd) = (setups[0].start(), Etcd::start(&etcd, &setups[1]));
    let ask = |setup: &Setup, pair: &Pair, path: &str, body: &str| {
        let output = Command::new("curl")
            .args(["-s", "--cacert", &authority.ca_file, "--cert", &pair.cert, "--key", &pair.key])
            // Over HTTP/2 curl gives up if it is answered before it has sent its body.
            .arg("--http1.1")
            .args(["-w", " %{http_code}", "-d", body])
            .arg(format!("{}{path}", setup.endpoint()))
            .output()
            .unwrap();
        // protojson puts blanks where it likes.
        String::from_utf8(output.stdout).unwrap().replace("\": ", "\":").replace(", \"", ",\"")
    };
    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"r"}"#),
        ("role/add", r#"{"name":"root"}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("enable", "{}"),
    ] {
        for setup in &setups {
            let said = ask(setup, &pairs[0], &format!("/v3/auth/{path}"), body);
            assert!(said.ends_with(" 200") || path == "role/add", "{path}: {said}");
        }
    }
    for pair in &pairs {
        for path in ["/v3/kv/range", "/v3/auth/user/list", "/version/", "/health"] {
            let [ours, theirs] =
                setups.each_ref().map(|setup| ask(setup, pair, path, r#"{"key":"YQ=="}"#));
            assert_eq!(ours, theirs, "{path} with {}", pair.cert);
            assert!(!path.starts_with("/v3") || ours.ends_with(" 400"), "{path}: {ours}");
        }
    }
}

#[test]
fn cve_2023_32082_a_leases_keys_are_told_to_nobody_who_may_not_read_them() {
    let _turn = crate::harness::turn::light();
    with_user(async |calls, _| {
        let keys = pb::LeaseTimeToLiveRequest { id: 2, keys: true }.encode_to_vec();
        assert_eq!(calls.outcome("Lease/LeaseTimeToLive", &keys).await, DENIED);
    });
}

#[test]
fn cve_2026_33343_a_transaction_within_a_transaction_is_checked() {
    let _turn = crate::harness::turn::light();
    with_user(async |calls, _| {
        let read = op(pb::request_op::Request::RequestRange(range("secret", "")));
        for depth in 1..4 {
            let mut inner = pb::TxnRequest { success: vec![read.clone()], ..Default::default() };
            for level in 0..depth {
                let nested = vec![op(pb::request_op::Request::RequestTxn(Box::new(inner)))];
                inner = if level % 2 == 0 {
                    pb::TxnRequest { failure: nested, ..Default::default() }
                } else {
                    pb::TxnRequest { success: nested, ..Default::default() }
                };
            }
            assert_eq!(calls.outcome("KV/Txn", &inner.encode_to_vec()).await, DENIED, "{depth}");
        }
    });
}

#[test]
fn cve_2026_33413_nobody_asks_for_members_alarms_leases_or_compactions() {
    let _turn = crate::harness::turn::light();
    with_user(async |calls, nobody| {
        let compaction = pb::CompactionRequest { revision: 2, physical: false }.encode_to_vec();
        for (path, request) in [
            ("Cluster/MemberList", Vec::new()),
            ("Maintenance/Alarm", Vec::new()),
            ("Lease/LeaseGrant", pb::LeaseGrantRequest { ttl: 10, id: 0 }.encode_to_vec()),
            ("KV/Compact", compaction.clone()),
        ] {
            assert_eq!(nobody.outcome(path, &request).await, NOBODY, "{path}");
        }
        assert_eq!(calls.outcome("KV/Compact", &compaction).await, DENIED);
    });
}

#[test]
fn cve_2026_44283_a_put_in_a_transaction_tells_no_value_and_takes_no_lease() {
    let _turn = crate::harness::turn::light();
    with_user(async |calls, _| {
        let before = pb::PutRequest { prev_kv: true, ..put("wr", "v", 0) };
        for put in [before, put("foo", "v", 2)] {
            let success = vec![op(pb::request_op::Request::RequestPut(put))];
            let txn = pb::TxnRequest { success, ..Default::default() };
            assert_eq!(calls.outcome("KV/Txn", &txn.encode_to_vec()).await, DENIED);
        }
    });
}

#[test]
fn an_intruder_who_tries_everything_gets_nowhere() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), driver()).with(CHEAP);
    let _member = setup.start();
    block_on(async {
        let client = Client::connect(&setup).await;
        set_up(&client).await;
        intruder::intrude(&client).await;
    });
}
