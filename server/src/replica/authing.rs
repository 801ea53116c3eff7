//! Auth on the replica's side: what entries change in it, and whether their authors may do what
//! they ask for.
//!
//! Members of etcd serve logins and propose such entries; this version serves none, but applies
//! them like any member, so that all hold the same data. Nothing here may depend on anything but
//! the entry and the store.

use etcore_proto::error::{EtcdError, Status};
use etcore_proto::pb::etcdserverpb as pb;
use etcore_raftlog::types::LogEntry;
use pb::request_op::Request as Op;

use super::Replica;
use crate::auth::{Access, Auth, Author, Row};
use crate::entry::Request;
use crate::lease::Lessor;

impl Replica {
    /// Takes over what an auth request changes; a refusal changes nothing.
    ///
    /// # Errors
    /// What is wrong with what the store holds.
    pub(super) fn apply_auth(
        &mut self,
        entry: &LogEntry,
        request: Request<'_>,
    ) -> Result<Result<(), Status>, String> {
        let rows = match self.state.auth().change(request) {
            Ok(rows) => rows,
            Err(refusal) => {
                self.store.skip(entry.index, entry.term);
                return Ok(Err(refusal));
            }
        };
        if rows.is_empty() {
            self.store.skip(entry.index, entry.term);
            return Ok(Ok(()));
        }
        let mut txn = self.store.begin(entry.index, entry.term);
        put_rows(&mut txn, rows);
        txn.commit();
        self.refresh_auth()?;
        Ok(Ok(()))
    }

    fn refresh_auth(&mut self) -> Result<(), String> {
        let before = self.state.refresh_auth(&self.store)?;
        warn_of_auth(self.state.auth(), before.is_enabled());
        Ok(())
    }

    /// Whether the author of an entry's request may ask for it (etcd `apply/auth.go`).
    pub(super) fn admit_author(&self, entry: &pb::InternalRaftRequest) -> Result<(), EtcdError> {
        if !self.state.auth().is_enabled() {
            return Ok(());
        }
        let check = Check {
            auth: self.state.auth(),
            lessor: self.leases.lessor(),
            author: Author::of(entry),
        };
        match Request::of(entry) {
            Some(Request::Put(put)) => check.put(put),
            Some(Request::DeleteRange(delete)) => {
                check.write(&delete.key, &delete.range_end)?;
                if delete.prev_kv { check.read(&delete.key, &delete.range_end) } else { Ok(()) }
            }
            Some(Request::Txn(txn)) => check.txn(txn),
            Some(Request::LeaseRevoke(revoke)) => check.lease(revoke.id),
            Some(
                Request::AuthEnable(_)
                | Request::AuthDisable(_)
                | Request::UserAdd(_)
                | Request::UserDelete(_)
                | Request::UserChangePassword(_)
                | Request::UserGrantRole(_)
                | Request::UserRevokeRole(_)
                | Request::RoleAdd(_)
                | Request::RoleDelete(_)
                | Request::RoleGrantPermission(_)
                | Request::RoleRevokePermission(_)
                | Request::UserList(_)
                | Request::RoleList(_),
            ) => self.state.auth().admit_admin(check.author),
            _ => Ok(()),
        }
    }

    /// The header of a request of this member's own, which needs nobody's permission.
    pub(super) fn own_header(&mut self) -> pb::RequestHeader {
        let (id, author) = (self.new_request_id(), self.state.auth().own());
        pb::RequestHeader { id, username: author.name.into(), auth_revision: author.revision }
    }
}

/// What the operator must know when a member starts, or auth was switched.
pub(super) fn warn_of_auth(auth: &Auth, was_enabled: bool) {
    if auth.is_enabled() && !was_enabled {
        tracing::warn!(
            "authentication is enabled in this cluster, which this version does not serve: clients \
             of this member are refused; use the members that do, or disable authentication"
        );
    } else if was_enabled && !auth.is_enabled() {
        tracing::warn!("authentication is disabled: clients of this member are served again");
    }
}

/// Writes rows of the auth buckets.
pub(super) fn put_rows(
    txn: &mut etcore_engine::store::Txn<'_>,
    rows: impl IntoIterator<Item = Row>,
) {
    for (bucket, key, row) in rows {
        match row {
            Some(row) => txn.bucket_put(bucket, &key, &row),
            None => {
                txn.bucket_delete(bucket, &key);
            }
        }
    }
}

/// The checks of one request.
struct Check<'a> {
    auth: &'a Auth,
    lessor: &'a Lessor,
    author: Author<'a>,
}

impl Check<'_> {
    fn read(&self, key: &[u8], end: &[u8]) -> Result<(), EtcdError> {
        self.auth.admit(self.author, Access::Read, key, end)
    }

    fn write(&self, key: &[u8], end: &[u8]) -> Result<(), EtcdError> {
        self.auth.admit(self.author, Access::Write, key, end)
    }

    /// Whoever uses a lease must be able to end it: to write all of its keys.
    fn lease(&self, id: i64) -> Result<(), EtcdError> {
        if !self.lessor.contains(id) || self.auth.admit_admin(self.author).is_ok() {
            return Ok(());
        }
        self.lessor.keys(id).try_for_each(|key| self.write(key, b""))
    }

    fn put(&self, put: &pb::PutRequest) -> Result<(), EtcdError> {
        self.write(&put.key, b"")?;
        self.lease(put.lease)?;
        if put.prev_kv { self.read(&put.key, b"") } else { Ok(()) }
    }

    /// Both branches, whichever will be taken.
    fn txn(&self, txn: &pb::TxnRequest) -> Result<(), EtcdError> {
        for compare in &txn.compare {
            self.read(&compare.key, &compare.range_end)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(Op::RequestRange(range)) => self.read(&range.key, &range.range_end)?,
                Some(Op::RequestPut(put)) => self.put(put)?,
                Some(Op::RequestDeleteRange(delete)) => {
                    if delete.prev_kv {
                        self.read(&delete.key, &delete.range_end)?;
                    }
                    self.write(&delete.key, &delete.range_end)?;
                }
                Some(Op::RequestTxn(nested)) => self.txn(nested)?,
                None => {}
            }
        }
        Ok(())
    }
}
