//! Users, roles and whether authentication is on: etcd's auth store as data.
//!
//! Decoded from the auth buckets by the replica after each entry that changed them, and read by the
//! fronts as a part of the view. It decides what an auth request changes and what a request's
//! author may do, without looking at a clock or at chance, so that all members, of etcd too, decide
//! the same (etcd `server/auth/store.go`, `range_perm_cache.go`).

use std::collections::BTreeMap;
use std::sync::OnceLock;

use etcore_engine::bucket::Bucket;
use etcore_engine::store::Store;
use etcore_proto::decode::decode;
use etcore_proto::error::{Code, EtcdError, Status};
use etcore_proto::grpc::decode_base64;
use etcore_proto::pb::{authpb, etcdserverpb as pb};
use prost::Message;

mod check;
mod grants;
mod jwt;
pub mod passwords;
pub mod tokens;

pub use check::{Check, LeaseKeys, NoLeases};

use crate::entry::Request;
use grants::Grants;

/// Keys of the `auth` bucket.
const ENABLED_KEY: &[u8] = b"authEnabled";
const REVISION_KEY: &[u8] = b"authRevision";
/// The user and the role that may do everything.
const ROOT: &str = "root";

/// Who asks for something, as a request's header says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Author<'a> {
    /// Empty if nobody said so.
    pub name: &'a str,
    /// The revision of the auth store when the name was checked; 0 with no name.
    pub revision: u64,
}

impl<'a> Author<'a> {
    /// From a request's header.
    pub fn of(entry: &'a pb::InternalRaftRequest) -> Self {
        let header = entry.header.as_ref();
        header.map_or_else(Self::default, |header| Self {
            name: &header.username,
            revision: header.auth_revision,
        })
    }
}

/// A kind of access to a range of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading it.
    Read,
    /// Putting or deleting it.
    Write,
}

/// See the module text.
#[derive(Debug, Clone, Default)]
pub struct Auth {
    enabled: bool,
    /// 0 in a store that has never known etcd's first one.
    revision: u64,
    users: BTreeMap<Vec<u8>, User>,
    roles: BTreeMap<Vec<u8>, authpb::Role>,
}

/// A user, and what his roles allow together.
#[derive(Debug, Clone)]
struct User {
    row: authpb::User,
    is_root: bool,
    /// Worked out when it is asked for: every change makes all of them anew.
    grants: OnceLock<Grants>,
}

/// A row of a bucket, new or gone.
pub type Row = (Bucket, Vec<u8>, Option<Vec<u8>>);

/// Rows that a request changes.
#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    fn user(&mut self, user: &authpb::User) {
        self.0.push((Bucket::AuthUsers, user.name.to_vec(), Some(user.encode_to_vec())));
    }

    fn role(&mut self, role: &authpb::Role) {
        self.0.push((Bucket::AuthRoles, role.name.to_vec(), Some(role.encode_to_vec())));
    }

    fn enabled(&mut self, enabled: bool) {
        self.0.push((Bucket::Auth, ENABLED_KEY.to_vec(), Some(vec![u8::from(enabled)])));
    }
}

impl Auth {
    /// What the store holds.
    ///
    /// # Errors
    /// What is wrong with a row.
    pub fn load(store: &Store) -> Result<Self, String> {
        let mut auth = Self {
            enabled: store.bucket_get(Bucket::Auth, ENABLED_KEY) == Some(&[1]),
            revision: store
                .bucket_get(Bucket::Auth, REVISION_KEY)
                .and_then(|row| row.try_into().ok())
                .map_or(0, u64::from_be_bytes),
            ..Self::default()
        };
        let broken = |kind: &str, key: &[u8], error: &dyn std::fmt::Display| {
            format!("{kind} {:?}: {error}", String::from_utf8_lossy(key))
        };
        for (key, row) in store.bucket_iter(Bucket::AuthUsers, b"") {
            let row: authpb::User =
                decode(row.to_vec().into()).map_err(|error| broken("user", key, &error))?;
            let user = User { is_root: has_role(&row, ROOT), row, grants: OnceLock::new() };
            auth.users.insert(key.to_vec(), user);
        }
        for (key, row) in store.bucket_iter(Bucket::AuthRoles, b"") {
            let role = decode(row.to_vec().into()).map_err(|error| broken("role", key, &error))?;
            auth.roles.insert(key.to_vec(), role);
        }
        Ok(auth)
    }

    /// The row that etcd writes when it opens a store without one: the first revision.
    pub fn first_row(store: &Store) -> Option<Row> {
        let missing = store.bucket_get(Bucket::Auth, REVISION_KEY).is_none();
        missing.then(|| revision_row(1))
    }

    /// True if requests need an author.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// What the author of an entry's request must have read.
    pub fn revision(&self) -> u64 {
        self.revision.max(1)
    }

    /// A request that needs nobody's permission: this member's own, in the name of the root user.
    pub fn own(&self) -> Author<'static> {
        if self.enabled {
            Author { name: ROOT, revision: self.revision() }
        } else {
            Author::default()
        }
    }

    /// A user, by name.
    ///
    /// # Errors
    /// [`EtcdError::UserNotFound`].
    pub fn user(&self, name: &str) -> Result<&authpb::User, EtcdError> {
        self.known(name).map(|user| &user.row).ok_or(EtcdError::UserNotFound)
    }

    fn known(&self, name: &str) -> Option<&User> {
        self.users.get(name.as_bytes())
    }

    /// A role, by name.
    ///
    /// # Errors
    /// [`EtcdError::RoleNotFound`].
    pub fn role(&self, name: &str) -> Result<&authpb::Role, EtcdError> {
        self.roles.get(name.as_bytes()).ok_or(EtcdError::RoleNotFound)
    }

    /// All names of users, ascending.
    pub fn user_names(&self) -> Vec<String> {
        self.users.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    /// All names of roles, ascending.
    pub fn role_names(&self) -> Vec<String> {
        self.roles.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    /// What a role allows, as clients are told: the root role everything.
    ///
    /// # Errors
    /// [`EtcdError::RoleNotFound`].
    pub fn permissions(&self, role: &str) -> Result<Vec<authpb::Permission>, EtcdError> {
        let found = self.role(role)?;
        if role != ROOT {
            return Ok(found.key_permission.clone());
        }
        Ok(vec![authpb::Permission {
            perm_type: authpb::permission::Type::Readwrite as i32,
            key: bytes::Bytes::new(),
            range_end: bytes::Bytes::from_static(&[0]),
        }])
    }

    /// The hash that a user's password is compared with.
    ///
    /// # Errors
    /// What whoever tries to log in is told.
    pub fn password_of(&self, name: &str) -> Result<&[u8], Status> {
        if !self.enabled {
            return Err(EtcdError::AuthNotEnabled.into());
        }
        let user = self.user(name).map_err(|_| EtcdError::AuthFailed)?;
        if has_no_password(user) { Err(no_password_user()) } else { Ok(&user.password) }
    }

    /// Whether a user whose password was right may have a token, when that is applied.
    ///
    /// # Errors
    /// The refusal.
    pub fn admit_login(&self, name: &str) -> Result<(), EtcdError> {
        if !self.enabled {
            return Err(EtcdError::AuthNotEnabled);
        }
        match self.user(name) {
            Ok(user) if !has_no_password(user) => Ok(()),
            _ => Err(EtcdError::AuthFailed),
        }
    }

    /// Whether a user may be told of another one: himself, or an administrator.
    ///
    /// # Errors
    /// The refusal.
    pub fn admit_user_get(&self, author: Author<'_>, name: &str) -> Result<(), EtcdError> {
        self.admit_admin(author)
            .or_else(|error| if author.name == name { Ok(()) } else { Err(error) })
    }

    /// Whether a user may be told of a role: one of his, or an administrator.
    ///
    /// # Errors
    /// The refusal.
    pub fn admit_role_get(&self, author: Author<'_>, role: &str) -> Result<(), EtcdError> {
        self.admit_admin(author).or_else(|error| {
            let is_own = self.user(author.name).is_ok_and(|user| has_role(user, role));
            if is_own { Ok(()) } else { Err(error) }
        })
    }

    /// What an auth request changes: nothing, for those that only ask.
    ///
    /// # Errors
    /// The refusal, which changes nothing.
    pub fn change(&self, request: Request<'_>) -> Result<Vec<Row>, Status> {
        let mut rows = Rows::default();
        let bumps = match request {
            Request::AuthEnable(_) => {
                self.enable(&mut rows)?;
                false
            }
            Request::AuthDisable(_) => {
                if self.enabled {
                    rows.enabled(false);
                }
                self.enabled
            }
            Request::UserAdd(request) => self.add_user(request, &mut rows)?,
            Request::UserDelete(request) => self.delete_user(request, &mut rows)?,
            Request::UserChangePassword(request) => self.change_password(request, &mut rows)?,
            Request::UserGrantRole(request) => self.grant_role(request, &mut rows)?,
            Request::UserRevokeRole(request) => self.revoke_role(request, &mut rows)?,
            Request::RoleAdd(request) => self.add_role(request, &mut rows)?,
            Request::RoleDelete(request) => self.delete_role(request, &mut rows)?,
            Request::RoleGrantPermission(request) => self.grant_permission(request, &mut rows)?,
            Request::RoleRevokePermission(request) => self.revoke_permission(request, &mut rows)?,
            _ => false,
        };
        if bumps {
            rows.0.push(revision_row(self.revision() + 1));
        }
        Ok(rows.0)
    }

    fn enable(&self, rows: &mut Rows) -> Result<(), EtcdError> {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get(ROOT.as_bytes()).ok_or(EtcdError::RootUserNotExist)?;
        if !root.is_root {
            return Err(EtcdError::RootRoleNotExist);
        }
        rows.enabled(true);
        Ok(())
    }

    fn add_user(&self, request: &pb::AuthUserAddRequest, rows: &mut Rows) -> Result<bool, Status> {
        if request.name.is_empty() {
            return Err(EtcdError::UserEmpty.into());
        }
        if self.users.contains_key(request.name.as_bytes()) {
            return Err(EtcdError::UserAlreadyExist.into());
        }
        let options = request.options.unwrap_or_default();
        let password = match options.no_password {
            true => Vec::new(),
            false => password(&request.hashed_password)?,
        };
        rows.user(&authpb::User {
            name: request.name.clone().into(),
            password: password.into(),
            options: Some(options),
            ..Default::default()
        });
        Ok(true)
    }

    fn delete_user(
        &self,
        request: &pb::AuthUserDeleteRequest,
        rows: &mut Rows,
    ) -> Result<bool, EtcdError> {
        if self.enabled && request.name == ROOT {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        self.user(&request.name)?;
        rows.0.push((Bucket::AuthUsers, request.name.clone().into_bytes(), None));
        Ok(true)
    }

    fn change_password(
        &self,
        request: &pb::AuthUserChangePasswordRequest,
        rows: &mut Rows,
    ) -> Result<bool, Status> {
        let user = self.user(&request.name)?;
        let password = match has_no_password(user) {
            true => Vec::new(),
            false => password(&request.hashed_password)?,
        };
        rows.user(&authpb::User {
            name: request.name.clone().into(),
            password: password.into(),
            ..user.clone()
        });
        Ok(true)
    }

    fn grant_role(
        &self,
        request: &pb::AuthUserGrantRoleRequest,
        rows: &mut Rows,
    ) -> Result<bool, EtcdError> {
        let mut user = self.user(&request.user)?.clone();
        if request.role != ROOT {
            self.role(&request.role)?;
        }
        let at = user.roles.partition_point(|role| *role < request.role);
        if user.roles.get(at) == Some(&request.role) {
            return Ok(false);
        }
        user.roles.push(request.role.clone());
        user.roles.sort();
        rows.user(&user);
        Ok(true)
    }

    fn revoke_role(
        &self,
        request: &pb::AuthUserRevokeRoleRequest,
        rows: &mut Rows,
    ) -> Result<bool, EtcdError> {
        if self.enabled && request.name == ROOT && request.role == ROOT {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        let mut user = self.user(&request.name)?.clone();
        if !drop_role(&mut user, &request.role) {
            return Err(EtcdError::RoleNotGranted);
        }
        rows.user(&user);
        Ok(true)
    }

    fn add_role(
        &self,
        request: &pb::AuthRoleAddRequest,
        rows: &mut Rows,
    ) -> Result<bool, EtcdError> {
        if request.name.is_empty() {
            return Err(EtcdError::RoleEmpty);
        }
        if self.roles.contains_key(request.name.as_bytes()) {
            return Err(EtcdError::RoleAlreadyExist);
        }
        let name = request.name.clone().into();
        rows.role(&authpb::Role { name, ..Default::default() });
        Ok(true)
    }

    fn delete_role(
        &self,
        request: &pb::AuthRoleDeleteRequest,
        rows: &mut Rows,
    ) -> Result<bool, EtcdError> {
        if self.enabled && request.role == ROOT {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        self.role(&request.role)?;
        rows.0.push((Bucket::AuthRoles, request.role.clone().into_bytes(), None));
        for user in self.users.values() {
            let mut user = user.row.clone();
            if drop_role(&mut user, &request.role) {
                rows.user(&user);
            }
        }
        Ok(true)
    }

    fn grant_permission(
        &self,
        request: &pb::AuthRoleGrantPermissionRequest,
        rows: &mut Rows,
    ) -> Result<bool, EtcdError> {
        let wanted = request.perm.as_ref().ok_or(EtcdError::PermissionNotGiven)?;
        if !grants::is_valid(&wanted.key, &wanted.range_end) {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        let mut role = self.role(&request.name)?.clone();
        let permissions = &mut role.key_permission;
        let at = permissions.partition_point(|known| known.key < wanted.key);
        match permissions.get_mut(at) {
            Some(known) if (&known.key, &known.range_end) == (&wanted.key, &wanted.range_end) => {
                known.perm_type = wanted.perm_type;
            }
            _ => {
                permissions.push(wanted.clone());
                permissions.sort_by(|a, b| a.key.cmp(&b.key));
            }
        }
        rows.role(&role);
        Ok(true)
    }

    fn revoke_permission(
        &self,
        request: &pb::AuthRoleRevokePermissionRequest,
        rows: &mut Rows,
    ) -> Result<bool, EtcdError> {
        let mut role = self.role(&request.role)?.clone();
        let count = role.key_permission.len();
        role.key_permission
            .retain(|known| (&known.key, &known.range_end) != (&request.key, &request.range_end));
        if role.key_permission.len() == count {
            return Err(EtcdError::PermissionNotGranted);
        }
        rows.role(&role);
        Ok(true)
    }

    /// Whether the author may do what only administrators may.
    ///
    /// # Errors
    /// The refusal.
    pub fn admit_admin(&self, author: Author<'_>) -> Result<(), EtcdError> {
        if !self.enabled {
            return Ok(());
        }
        if author.name.is_empty() {
            return Err(EtcdError::UserEmpty);
        }
        let user = self.known(author.name).ok_or(EtcdError::UserNotFound)?;
        if user.is_root { Ok(()) } else { Err(EtcdError::PermissionDenied) }
    }

    /// Whether the author may do this to a key, or to a range of them.
    ///
    /// # Errors
    /// The refusal.
    pub fn admit(
        &self,
        author: Author<'_>,
        access: Access,
        key: &[u8],
        end: &[u8],
    ) -> Result<(), EtcdError> {
        if !self.enabled {
            return Ok(());
        }
        if author.revision == 0 {
            return Err(EtcdError::UserEmpty);
        }
        if author.revision < self.revision() {
            return Err(EtcdError::AuthOldRevision);
        }
        let Some(user) = self.known(author.name) else {
            return Err(EtcdError::PermissionDenied);
        };
        let granted = || {
            user.grants.get_or_init(|| {
                let roles = user.row.roles.iter();
                Grants::new(roles.filter_map(|role| self.roles.get(role.as_bytes())))
            })
        };
        if user.is_root || granted().cover(access, key, end) {
            Ok(())
        } else {
            Err(EtcdError::PermissionDenied)
        }
    }
}

fn revision_row(revision: u64) -> Row {
    (Bucket::Auth, REVISION_KEY.to_vec(), Some(revision.to_be_bytes().to_vec()))
}

fn has_no_password(user: &authpb::User) -> bool {
    user.options.is_some_and(|options| options.no_password)
}

fn no_password_user() -> Status {
    let text = "auth: authentication failed, password was given for no password user";
    Status::new(Code::Unknown, text)
}

/// Roles of a user are kept in order.
fn has_role(user: &authpb::User, role: &str) -> bool {
    user.roles.binary_search_by(|known| known.as_str().cmp(role)).is_ok()
}

fn drop_role(user: &mut authpb::User, role: &str) -> bool {
    let count = user.roles.len();
    user.roles.retain(|known| known != role);
    user.roles.len() < count
}

/// The hash of a password, as the member that took the request made it. (Members before 3.5 let
/// each member make its own; with an empty one nobody can log in until it is set again.)
fn password(hashed: &str) -> Result<Vec<u8>, Status> {
    let text: Vec<u8> = hashed.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    let is_padded = text.len().is_multiple_of(4);
    decode_base64(&text).filter(|_| is_padded).ok_or_else(no_password_user)
}

#[cfg(test)]
mod tests;
