//! Who asks, and whether he may: the fronts' side of authentication.
//!
//! Asked by the gate and by the services where they answer, with the view that answers; what
//! changes something is asked about once more when it is applied. Without authentication it costs
//! a comparison. A token must never be logged.

use std::time::UNIX_EPOCH;

use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;

use super::Services;
use super::call::Call;
use crate::auth::tokens::Now;
use crate::auth::{Access, Auth, Author, Check, NoLeases};
use crate::channel::Asker;
use crate::entry::Heading;
use crate::replies::Caller;

/// Tokens may be written so, as HTTP's are.
const BEARER: &[u8] = b"Bearer ";

/// The author that an asker is; nobody, if there is none.
pub(super) fn author(asker: Option<&Asker>) -> Author<'_> {
    asker.map_or_else(Author::default, Asker::author)
}

/// What an entry's header says of an asker.
pub(super) fn heading(id: u64, asker: Option<&Asker>) -> Heading<'_> {
    let Author { name, revision } = author(asker);
    Heading { id, username: name, auth_revision: revision }
}

fn bare(token: &[u8]) -> &[u8] {
    token.strip_prefix(BEARER).unwrap_or(token)
}

impl Services {
    /// Who asks; `None` if he does not say so, or need not (etcd `AuthInfoFromCtx`).
    ///
    /// # Errors
    /// [`EtcdError::InvalidAuthToken`].
    pub(super) fn asker(&self, caller: &Caller) -> Result<Option<Asker>, EtcdError> {
        let view = self.reads.view();
        if !view.auth.is_enabled() {
            return Ok(None);
        }
        let newest = view.auth.revision();
        let Some(token) = &caller.token else {
            let name = caller.common_name.clone();
            return Ok(name.map(|name| Asker { name, revision: newest }));
        };
        let now = Now { ms: self.now_ms, unix_s: &|| self.unix_s() };
        let found = self.shared.tokens.identify(bare(token), now);
        let found = found.map_err(|_| EtcdError::InvalidAuthToken)?;
        Ok(Some(Asker { name: found.name, revision: found.revision.unwrap_or(newest) }))
    }

    /// The index of the entry that gives out the caller's token, if it is still to be applied here.
    pub(super) fn comes_early(&self, caller: &Caller) -> Option<u64> {
        let view = self.reads.view();
        let token = caller.token.as_ref().filter(|_| view.auth.is_enabled())?;
        self.shared.tokens.awaits(bare(token), view.store.applied.0)
    }

    /// Whether somebody asks that the cluster knows (etcd `requireAuthInfo`).
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn admit_somebody(&self, caller: &Caller) -> Result<(), EtcdError> {
        if !self.auth().is_enabled() {
            return Ok(());
        }
        self.asker(caller)?.map(drop).ok_or(EtcdError::UserEmpty)
    }

    /// Whether an administrator asks.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn admit_admin(&self, caller: &Caller) -> Result<(), EtcdError> {
        let asker = self.asker(caller)?;
        self.auth().admit_admin(author(asker.as_ref()))
    }

    /// Whether the caller may read these keys now.
    ///
    /// # Errors
    /// The refusal.
    #[inline]
    pub(super) fn admit_read(
        &self,
        caller: &Caller,
        key: &[u8],
        end: &[u8],
    ) -> Result<(), EtcdError> {
        if !self.auth().is_enabled() {
            return Ok(());
        }
        self.admit_reading(caller, |auth, author| auth.admit(author, Access::Read, key, end))
    }

    /// Whether the caller may have a transaction that only reads.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn admit_read_txn(
        &self,
        call: &Call,
        txn: &pb::TxnRequest,
    ) -> Result<(), EtcdError> {
        if !self.auth().is_enabled() {
            return Ok(());
        }
        self.admit_reading(&call.caller, |auth, author| {
            Check { auth, leases: &NoLeases, author }.txn(txn)
        })
    }

    /// Whether the caller may watch these keys.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn admit_watch(
        &self,
        caller: &Caller,
        key: &[u8],
        end: &[u8],
    ) -> Result<(), EtcdError> {
        let asker = self.asker(caller)?;
        self.auth().admit(author(asker.as_ref()), Access::Read, key, end)
    }

    fn admit_reading(
        &self,
        caller: &Caller,
        ask: impl FnOnce(&Auth, Author<'_>) -> Result<(), EtcdError>,
    ) -> Result<(), EtcdError> {
        let asker = self.asker(caller)?;
        ask(self.auth(), author(asker.as_ref()))?;
        // Nothing changes while it is read here; but a signed token may be of a time to come.
        let newest = self.auth().revision();
        match asker {
            Some(asker) if asker.revision != newest && asker.revision != 0 => {
                Err(EtcdError::AuthOldRevision)
            }
            _ => Ok(()),
        }
    }

    /// Seconds of the Unix epoch.
    pub(super) fn unix_s(&self) -> u64 {
        let since = self.shared.clock.unix().duration_since(UNIX_EPOCH);
        since.unwrap_or_default().as_secs()
    }

    pub(super) fn auth(&self) -> &Auth {
        &self.reads.view().auth
    }
}
