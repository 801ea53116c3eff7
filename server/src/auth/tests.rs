use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::types::{LogIndex, Term};

use super::*;
use crate::entry::Request;

/// A store whose auth is changed by requests as apply changes it.
struct Rig {
    store: Store,
    auth: Auth,
}

impl Rig {
    fn new() -> Self {
        Self { store: Store::in_memory(EngineConfig::default()), auth: Auth::default() }
    }

    fn apply(&mut self, entry: pb::InternalRaftRequest) -> Result<(), String> {
        let request = Request::of(&entry).expect("a request");
        let rows = self.auth.change(request).map_err(|status| status.message.to_string())?;
        let (index, _) = self.store.applied();
        let mut txn = self.store.begin(LogIndex(index.0 + 1), Term(1));
        for (bucket, key, row) in rows {
            match row {
                Some(row) => txn.bucket_put(bucket, &key, &row),
                None => {
                    txn.bucket_delete(bucket, &key);
                }
            }
        }
        txn.commit();
        self.auth = Auth::load(&self.store).unwrap();
        Ok(())
    }

    fn ok(&mut self, entry: pb::InternalRaftRequest) {
        assert_eq!(self.apply(entry), Ok(()));
    }

    fn refused(&mut self, entry: pb::InternalRaftRequest, error: EtcdError) {
        let revision = self.auth.revision();
        assert_eq!(self.apply(entry), Err(error.text().to_owned()));
        assert_eq!(self.auth.revision(), revision);
    }

    fn row(&self, bucket: Bucket, key: &str) -> Option<Vec<u8>> {
        self.store.bucket_get(bucket, key.as_bytes()).map(<[u8]>::to_vec)
    }
}

fn none() -> pb::InternalRaftRequest {
    pb::InternalRaftRequest::default()
}

fn add_user(name: &str) -> pb::InternalRaftRequest {
    let request = pb::AuthUserAddRequest {
        name: name.into(),
        hashed_password: "aGFzaA==".into(),
        ..Default::default()
    };
    pb::InternalRaftRequest { auth_user_add: Some(request), ..none() }
}

fn add_role(name: &str) -> pb::InternalRaftRequest {
    let request = pb::AuthRoleAddRequest { name: name.into() };
    pb::InternalRaftRequest { auth_role_add: Some(request), ..none() }
}

fn grant_role(user: &str, role: &str) -> pb::InternalRaftRequest {
    let request = pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
    pb::InternalRaftRequest { auth_user_grant_role: Some(request), ..none() }
}

fn revoke_role(name: &str, role: &str) -> pb::InternalRaftRequest {
    let request = pb::AuthUserRevokeRoleRequest { name: name.into(), role: role.into() };
    pb::InternalRaftRequest { auth_user_revoke_role: Some(request), ..none() }
}

fn grant(
    role: &str,
    perm_type: i32,
    key: &'static str,
    end: &'static str,
) -> pb::InternalRaftRequest {
    let perm = authpb::Permission { perm_type, key: key.into(), range_end: end.into() };
    let request = pb::AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) };
    pb::InternalRaftRequest { auth_role_grant_permission: Some(request), ..none() }
}

fn revoke(role: &str, key: &'static str, end: &'static str) -> pb::InternalRaftRequest {
    let request = pb::AuthRoleRevokePermissionRequest {
        role: role.into(),
        key: key.into(),
        range_end: end.into(),
    };
    pb::InternalRaftRequest { auth_role_revoke_permission: Some(request), ..none() }
}

fn delete_user(name: &str) -> pb::InternalRaftRequest {
    let request = pb::AuthUserDeleteRequest { name: name.into() };
    pb::InternalRaftRequest { auth_user_delete: Some(request), ..none() }
}

fn delete_role(role: &str) -> pb::InternalRaftRequest {
    let request = pb::AuthRoleDeleteRequest { role: role.into() };
    pb::InternalRaftRequest { auth_role_delete: Some(request), ..none() }
}

fn enable() -> pb::InternalRaftRequest {
    pb::InternalRaftRequest { auth_enable: Some(pb::AuthEnableRequest::default()), ..none() }
}

fn disable() -> pb::InternalRaftRequest {
    pb::InternalRaftRequest { auth_disable: Some(pb::AuthDisableRequest::default()), ..none() }
}

#[test]
fn users_and_roles_are_rows_as_etcd_writes_them() {
    let mut rig = Rig::new();
    assert_eq!(Auth::first_row(&rig.store), Some(revision_row(1)));
    rig.ok(add_user("u"));
    let user = [&b"\x0a\x01u\x12\x04hash"[..], b"\x22\x00"].concat();
    assert_eq!(rig.row(Bucket::AuthUsers, "u"), Some(user));
    assert_eq!(rig.row(Bucket::Auth, "authRevision"), Some(2u64.to_be_bytes().to_vec()));
    assert_eq!(Auth::first_row(&rig.store), None);
    rig.ok(add_role("r"));
    assert_eq!(rig.row(Bucket::AuthRoles, "r"), Some(b"\x0a\x01r".to_vec()));
    rig.ok(grant("r", 2, "k", "\0"));
    let role = b"\x0a\x01r\x12\x08\x08\x02\x12\x01k\x1a\x01\0".to_vec();
    assert_eq!(rig.row(Bucket::AuthRoles, "r"), Some(role));
    rig.ok(grant_role("u", "r"));
    assert_eq!(rig.auth.revision(), 5);
    rig.ok(grant_role("u", "r"));
    assert_eq!(rig.auth.revision(), 5, "already granted");
    rig.ok(delete_role("r"));
    assert_eq!(rig.row(Bucket::AuthRoles, "r"), None);
    let user = [&b"\x0a\x01u\x12\x04hash"[..], b"\x22\x00"].concat();
    assert_eq!(rig.row(Bucket::AuthUsers, "u"), Some(user));
    rig.ok(delete_user("u"));
    assert_eq!((rig.row(Bucket::AuthUsers, "u"), rig.auth.revision()), (None, 7));
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut rig = Rig::new();
    rig.refused(enable(), EtcdError::RootUserNotExist);
    rig.ok(add_user("root"));
    rig.refused(enable(), EtcdError::RootRoleNotExist);
    rig.refused(add_user("root"), EtcdError::UserAlreadyExist);
    rig.refused(add_user(""), EtcdError::UserEmpty);
    rig.refused(add_role(""), EtcdError::RoleEmpty);
    rig.ok(add_role("r"));
    rig.refused(add_role("r"), EtcdError::RoleAlreadyExist);
    rig.refused(grant_role("root", "s"), EtcdError::RoleNotFound);
    rig.refused(grant_role("u", "r"), EtcdError::UserNotFound);
    rig.refused(revoke_role("root", "r"), EtcdError::RoleNotGranted);
    rig.refused(delete_user("u"), EtcdError::UserNotFound);
    rig.refused(delete_role("s"), EtcdError::RoleNotFound);
    rig.refused(grant("r", 0, "", ""), EtcdError::InvalidAuthMgmt);
    rig.refused(grant("s", 0, "a", ""), EtcdError::RoleNotFound);
    rig.refused(revoke("r", "a", ""), EtcdError::PermissionNotGranted);
    let mut bad_hash = add_user("v");
    bad_hash.auth_user_add.as_mut().unwrap().hashed_password = "aGFzaA".into();
    assert!(rig.apply(bad_hash).unwrap_err().contains("no password user"));
    // The root role needs not exist.
    rig.ok(grant_role("root", "root"));
    let revision = rig.auth.revision();
    rig.ok(enable());
    rig.ok(enable());
    assert_eq!((rig.auth.is_enabled(), rig.auth.revision()), (true, revision));
    rig.refused(delete_user("root"), EtcdError::InvalidAuthMgmt);
    rig.refused(revoke_role("root", "root"), EtcdError::InvalidAuthMgmt);
    rig.refused(delete_role("root"), EtcdError::InvalidAuthMgmt);
    rig.ok(disable());
    rig.ok(disable());
    assert_eq!((rig.auth.is_enabled(), rig.auth.revision()), (false, revision + 1));
}

#[test]
fn authors_may_do_what_their_roles_say_while_their_revision_is_new() {
    let mut rig = Rig::new();
    for entry in [add_user("root"), grant_role("root", "root"), add_user("u"), add_role("r")] {
        rig.ok(entry);
    }
    rig.ok(grant("r", 0, "a", "c"));
    rig.ok(grant("r", 1, "b", ""));
    rig.ok(grant_role("u", "r"));
    let author = |name, revision| Author { name, revision };
    let anybody = rig.auth.admit(Author::default(), Access::Write, b"x", b"");
    assert_eq!(anybody, Ok(()), "auth is off");
    rig.ok(enable());
    let now = rig.auth.revision();
    let auth = &rig.auth;
    let admit = |author, access, key: &str, end: &str| {
        auth.admit(author, access, key.as_bytes(), end.as_bytes())
    };
    assert_eq!(admit(Author::default(), Access::Read, "a", ""), Err(EtcdError::UserEmpty));
    let old = author("root", now - 1);
    assert_eq!(admit(old, Access::Read, "a", ""), Err(EtcdError::AuthOldRevision));
    let denied = Err(EtcdError::PermissionDenied);
    assert_eq!(admit(author("root", now), Access::Write, "x", "\0"), Ok(()));
    assert_eq!(admit(author("nobody", now), Access::Read, "a", ""), denied);
    let user = author("u", now);
    assert_eq!(admit(user, Access::Read, "a", "c"), Ok(()));
    assert_eq!(admit(user, Access::Read, "a", "d"), denied);
    assert_eq!(admit(user, Access::Write, "b", ""), Ok(()));
    assert_eq!(admit(user, Access::Write, "a", ""), denied);
    assert_eq!(auth.admit_admin(user), denied);
    assert_eq!(auth.admit_admin(author("nobody", now)), Err(EtcdError::UserNotFound));
    assert_eq!(auth.admit_admin(Author::default()), Err(EtcdError::UserEmpty));
    assert_eq!(auth.admit_admin(auth.own()), Ok(()));
}
