//! Auth on the replica's side: what entries change in it, and whether their authors may do what
//! they ask for.
//!
//! What is stored may depend on nothing but the entry and the store, so that all members hold the
//! same. Simple tokens are not stored: each member gives them out as it applies the logins.

use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_raftlog::types::LogEntry;
use prost::Message as _;

use super::Replica;
use super::apply::Halt;
use super::lease_service::{Requester, Waiting};
use crate::auth::tokens::Tokens;
use crate::auth::{Access, Author, Check, LeaseKeys, Row};
use crate::channel::{LeaseQuery, Reply};
use crate::entry::{Heading, Request};
use crate::lease::Lessor;
use crate::wire::PutRef;

impl LeaseKeys for Lessor {
    fn each_key(
        &self,
        lease: i64,
        ask: &mut dyn FnMut(&[u8]) -> Result<(), EtcdError>,
    ) -> Result<(), EtcdError> {
        self.keys(lease).try_for_each(|key| ask(key))
    }
}

impl Replica {
    /// Takes over what an auth request changes; a refusal changes nothing.
    pub(super) fn apply_auth(
        &mut self,
        entry: &LogEntry,
        request: Request<'_>,
    ) -> Result<Reply, Halt> {
        let rows = match self.state.auth().change(request) {
            Ok(rows) => rows,
            Err(refusal) => {
                self.store.skip(entry.index, entry.term);
                return Ok(Reply::Refused(refusal));
            }
        };
        if rows.is_empty() {
            self.store.skip(entry.index, entry.term);
        } else {
            let mut txn = self.store.begin(entry.index, entry.term);
            put_rows(&mut txn, rows);
            txn.commit();
            self.refresh_auth().map_err(Halt::Broken)?;
        }
        if let Some(tokens) = self.shared.tokens.simple() {
            match request {
                Request::UserDelete(pb::AuthUserDeleteRequest { name })
                | Request::UserChangePassword(pb::AuthUserChangePasswordRequest { name, .. }) => {
                    self.tokens.forget_user(tokens, name);
                }
                _ => {}
            }
        }
        Ok(Reply::Header { revision: self.store.revision().0 })
    }

    fn refresh_auth(&mut self) -> Result<(), String> {
        let was_enabled = self.state.refresh_auth(&self.store)?.is_enabled();
        if self.state.auth().is_enabled() != was_enabled {
            self.auth_switched();
        }
        Ok(())
    }

    fn auth_switched(&mut self) {
        let enabled = self.state.auth().is_enabled();
        if enabled {
            tracing::info!("enabled authentication");
        } else {
            tracing::info!("disabled authentication");
        }
        if let Some(tokens) = self.shared.tokens.simple() {
            self.tokens.enable(tokens, enabled);
        }
    }

    /// A snapshot has taken the store's place: users may have lost their tokens by entries that
    /// this member will never see.
    pub(super) fn forget_tokens(&mut self) {
        if let Some(tokens) = self.shared.tokens.simple() {
            self.tokens.enable(tokens, false);
            self.tokens.enable(tokens, self.state.auth().is_enabled());
        }
    }

    /// A user whose password was right gets a token, on every member.
    pub(super) fn apply_login(
        &mut self,
        entry: &LogEntry,
        login: &pb::InternalAuthenticateRequest,
    ) -> Reply {
        self.store.skip(entry.index, entry.term);
        if let Err(refusal) = self.state.auth().admit_login(&login.name) {
            return Reply::Refused(refusal.into());
        }
        let revision = self.store.revision().0;
        let token = match &self.shared.tokens {
            Tokens::None => return Reply::Refused(EtcdError::AuthFailed.into()),
            // Whoever was asked signs it.
            Tokens::Jwt(_) => return Reply::Header { revision },
            Tokens::Simple(tokens) => {
                let (prefix, now_ms) = (&login.simple_token, self.turn.now_ms());
                self.tokens.assign(tokens, &login.name, prefix, entry.index.0, now_ms)
            }
        };
        match token {
            Ok(token) => {
                let header = Some(self.shared.header(revision).to_pb());
                Reply::Message(pb::AuthenticateResponse { header, token }.encode_to_vec())
            }
            Err(error) => Reply::Refused(error.into()),
        }
    }

    /// Forgets tokens that nobody uses. With every tick.
    pub(super) fn tick_tokens(&mut self) {
        if let Some(tokens) = self.shared.tokens.simple() {
            self.tokens.tick(tokens, self.turn.now_ms());
        }
    }

    /// Whether the author of a put may ask for it.
    pub(super) fn admit_put(
        &self,
        put: &PutRef<'_>,
        heading: &Heading<'_>,
    ) -> Result<(), EtcdError> {
        let author = Author { name: heading.username, revision: heading.auth_revision };
        self.check_of(author).put(put.key, put.lease, put.prev_kv)
    }

    /// Whether a front's question about leases may be answered: once when it comes, and once more
    /// by the leader, when what hangs on the lease is known. Keys that are told of are looked at
    /// where they are sent.
    pub(super) fn admit_lease_request(&self, waiting: &Waiting) -> Result<(), EtcdError> {
        let auth = self.state.auth();
        if !auth.is_enabled() || !matches!(waiting.requester, Requester::Front(_)) {
            return Ok(());
        }
        let Some(asker) = &waiting.request.asker else { return Err(EtcdError::UserEmpty) };
        let check = self.check_of(asker.author());
        match waiting.request.query {
            LeaseQuery::Renew { id } => check.lease(id),
            LeaseQuery::TimeToLive { .. } => Ok(()),
            LeaseQuery::List if auth.admit(asker.author(), Access::Read, &[0], &[0]).is_ok() => {
                Ok(())
            }
            LeaseQuery::List => self.leases.lessor().ids().try_for_each(|id| check.lease_keys(id)),
        }
    }

    fn check_of<'a>(&'a self, author: Author<'a>) -> Check<'a> {
        Check { auth: self.state.auth(), leases: self.leases.lessor(), author }
    }

    /// Whether the author of an entry's request may ask for it (etcd `apply/auth.go`).
    pub(super) fn admit_author(&self, entry: &pb::InternalRaftRequest) -> Result<(), EtcdError> {
        if !self.state.auth().is_enabled() {
            return Ok(());
        }
        let check = self.check_of(Author::of(entry));
        match Request::of(entry) {
            Some(Request::Put(put)) => check.put(&put.key, put.lease, put.prev_kv),
            Some(Request::DeleteRange(delete)) => check.delete_range(delete),
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
