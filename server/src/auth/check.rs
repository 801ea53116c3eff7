//! Whether the author of a request may have it done: every key that it reads or writes is looked at
//! (etcd `server/etcdserver/apply/auth.go`).
//!
//! Called by apply for what changes something, and by the fronts for what reads.

use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use pb::request_op::Request as Op;

use super::{Access, Auth, Author};

/// The keys that hang on leases.
pub trait LeaseKeys {
    /// Asks about each key of a lease, until one is refused.
    ///
    /// # Errors
    /// The refusal.
    fn each_key(
        &self,
        lease: i64,
        ask: &mut dyn FnMut(&[u8]) -> Result<(), EtcdError>,
    ) -> Result<(), EtcdError>;
}

/// For requests that touch no lease.
pub struct NoLeases;

impl LeaseKeys for NoLeases {
    fn each_key(
        &self,
        _: i64,
        _: &mut dyn FnMut(&[u8]) -> Result<(), EtcdError>,
    ) -> Result<(), EtcdError> {
        Ok(())
    }
}

/// The checks of one request.
pub struct Check<'a> {
    /// Who may do what.
    pub auth: &'a Auth,
    /// The keys of leases.
    pub leases: &'a dyn LeaseKeys,
    /// Who asks.
    pub author: Author<'a>,
}

impl Check<'_> {
    fn read(&self, key: &[u8], end: &[u8]) -> Result<(), EtcdError> {
        self.auth.admit(self.author, Access::Read, key, end)
    }

    fn write(&self, key: &[u8], end: &[u8]) -> Result<(), EtcdError> {
        self.auth.admit(self.author, Access::Write, key, end)
    }

    /// Whoever uses a lease must be able to end it: to write all of its keys.
    ///
    /// # Errors
    /// The refusal.
    pub fn lease(&self, id: i64) -> Result<(), EtcdError> {
        self.keys_of(id, Access::Write)
    }

    /// Whoever is told of a lease's keys must be able to read them.
    ///
    /// # Errors
    /// The refusal.
    pub fn lease_keys(&self, id: i64) -> Result<(), EtcdError> {
        self.keys_of(id, Access::Read)
    }

    fn keys_of(&self, id: i64, access: Access) -> Result<(), EtcdError> {
        if self.auth.admit_admin(self.author).is_ok() {
            return Ok(());
        }
        self.leases.each_key(id, &mut |key| self.auth.admit(self.author, access, key, b""))
    }

    /// # Errors
    /// The refusal.
    pub fn put(&self, key: &[u8], lease: i64, prev_kv: bool) -> Result<(), EtcdError> {
        self.write(key, b"")?;
        if lease != 0 {
            self.lease(lease)?;
        }
        if prev_kv { self.read(key, b"") } else { Ok(()) }
    }

    /// # Errors
    /// The refusal.
    pub fn delete_range(&self, delete: &pb::DeleteRangeRequest) -> Result<(), EtcdError> {
        self.write(&delete.key, &delete.range_end)?;
        if delete.prev_kv { self.read(&delete.key, &delete.range_end) } else { Ok(()) }
    }

    /// Both branches, whichever will be taken.
    ///
    /// # Errors
    /// The refusal.
    pub fn txn(&self, txn: &pb::TxnRequest) -> Result<(), EtcdError> {
        for compare in &txn.compare {
            self.read(&compare.key, &compare.range_end)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(Op::RequestRange(range)) => self.read(&range.key, &range.range_end)?,
                Some(Op::RequestPut(put)) => self.put(&put.key, put.lease, put.prev_kv)?,
                Some(Op::RequestDeleteRange(delete)) => {
                    // In a transaction etcd asks about reading first.
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
