//! Applying committed entries, in order, each exactly once.
//!
//! An entry either changes the store as a whole or not at all. A large one, and one that needs a
//! page from the device, is applied over several turns ([`executing`](super::executing)); nothing
//! behind it starts meanwhile. A request this version does not know stops the member: skipping it
//! would make it diverge, unless the operator says so on all members.

use bytes::Bytes;
use etcore_engine::types::{LeaseId, Revision};
use etcore_proto::error::{Code, EtcdError};
use etcore_proto::gotext::format_duration;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_raftlog::types::{EntryKind, LogEntry};

use super::Replica;
use super::applier::Next;
use super::executing::Ending;
use super::skip::SkipEntry;
use crate::channel::{Reply, ToFront};
use crate::entry::{self, Heading, Request, Unapplicable, describe};
use crate::kv::execute::Execution;
use crate::kv::plan::{Leases, Op};
use crate::kv::reader::Stop;
use crate::limits;
use crate::wire::PutRef;
use crate::work::Job;

/// Why an entry was not applied.
pub(super) enum Halt {
    /// There is more to do, or a page is on its way; it goes on in a later turn.
    Later,
    /// The member must stop.
    Broken(String),
    /// The member must stop, and so must every member of this version.
    Unapplicable(Unapplicable),
}

/// What an entry takes of [`limits::APPLY_TURN_COST`], about: a put is 1.
fn cost(entry: &LogEntry) -> usize {
    let bytes = entry.data.len() / limits::APPLY_PUT_BYTES;
    if entry.kind == EntryKind::Normal {
        if entry::wrapped_put(&entry.data).is_some() {
            return 1 + bytes;
        }
        if entry::wrapped_revoke(&entry.data).is_some() {
            return limits::APPLY_REVOKE_COST;
        }
    }
    limits::APPLY_OTHER_COST + bytes
}

impl Replica {
    /// True if a turn has committed entries to apply.
    pub(super) fn has_backlog(&self) -> bool {
        self.applier.has_backlog()
    }

    /// True if the turn ended before everything was applied that could be.
    pub(super) fn may_apply_more(&self) -> bool {
        // What follows a snapshot waits for its store, whose coming wakes the shard.
        !self.snapshots.is_installing() && self.applier.may_go_on()
    }

    /// Applies what is committed, as far as the turn has room; true if anything was.
    pub(super) fn apply_committed(&mut self) -> bool {
        if self.snapshots.is_installing() {
            return false;
        }
        self.applier.begin(|| self.shared.clock.elapsed());
        let mut count = 0u64;
        // Behind an entry that could not be applied none may be.
        while !self.is_stopped()
            && let Some((entry, applied)) = self.apply_next()
        {
            // Should the time be over, this one is the last.
            self.applier.look_at_clock(|| self.shared.clock.elapsed());
            match applied {
                Ok(reply) => {
                    count += 1;
                    self.applied(&entry, reply);
                }
                Err(Halt::Later) => break,
                Err(Halt::Broken(reason)) => self.fail(format!("entry {}: {reason}", entry.index)),
                Err(Halt::Unapplicable(reason)) => {
                    self.fail(SkipEntry::of(&entry).way_out(&reason));
                }
            }
        }
        if count > 0 {
            self.publisher.note_change();
            self.warn_of_slow_apply(count);
        }
        count > 0
    }

    /// Entries of a turn are timed together: one of them alone may be the slow one, or a page it
    /// waited for.
    fn warn_of_slow_apply(&mut self, count: u64) {
        let Some(took) = self.applier.end(self.shared.clock.elapsed()) else { return };
        let heaviest = self.applier.took(&self.shared.metrics.applies, took);
        let expected = self.shared.config.observe.slow_apply;
        if took <= expected {
            return;
        }
        self.shared.metrics.slow_applies.inc();
        let request = heaviest.map_or_else(String::new, |entry| describe::entry(&entry.data));
        tracing::warn!(
            took = %format_duration(took),
            expected_duration = %format_duration(expected),
            prefix = "",
            request = %request,
            response = "",
            entries = count,
            applied_index = self.store.applied().0.0,
            "apply request took too long"
        );
    }

    /// An entry was applied: what it took is counted, and whoever waits for it is answered.
    fn applied(&mut self, entry: &LogEntry, reply: Option<Reply>) {
        debug_assert_eq!(self.store.applied().0, entry.index, "each entry, once and in order");
        self.turn.note(Job::Entries);
        let refused = reply.as_ref().is_some_and(|reply| {
            let Reply::Refused(status) = reply else { return false };
            // etcd takes it for done.
            status.code != Code::OutOfRange
        });
        let cost = cost(entry);
        if entry.kind == EntryKind::Normal {
            self.applier.note(entry, cost, !refused);
        }
        self.applier.take_room(cost);
        self.space.note_applied(entry.data.len() as u64);
        let compaction = self.compactions.take_delay();
        let settled = self.proposals.settle(entry);
        for (front, slot) in settled.replaced {
            let reply = Reply::Refused(EtcdError::LeaderChanged.into());
            self.publisher.reply(front, ToFront::Reply { slot, reply });
        }
        let Some((front, slot)) = settled.waits else { return };
        let reply = reply.unwrap_or_else(|| Reply::Refused(EtcdError::Stopped.into()));
        let message = ToFront::Reply { slot, reply };
        match compaction {
            Some(revision) => self.compactions.wait(revision, front, message),
            None => self.publisher.reply(front, message),
        }
    }

    /// Applies the next entry, or the next slice of the one that was begun.
    fn apply_next(&mut self) -> Option<(LogEntry, Result<Option<Reply>, Halt>)> {
        Some(match self.applier.next()? {
            Next::Slice(running) => {
                let (entry, result) = self.execute_on(*running);
                (entry, result.map(Some))
            }
            Next::Entry(entry) => {
                let result = self.apply_entry(&entry);
                (entry, result)
            }
        })
    }

    fn apply_entry(&mut self, entry: &LogEntry) -> Result<Option<Reply>, Halt> {
        match entry.kind {
            EntryKind::ConfChange | EntryKind::ConfChangeV2 => {
                self.apply_conf_change(entry)?;
                Ok(None)
            }
            EntryKind::Normal if entry.data.is_empty() => {
                self.store.skip(entry.index, entry.term);
                self.begin_term(entry.term);
                Ok(None)
            }
            EntryKind::Normal => {
                if self.skips(entry)? {
                    return Ok(None);
                }
                let checks = self.state.auth().is_enabled();
                if let Some((put, header)) = entry::wrapped_put_of(&entry.data) {
                    let put = PutRef::parse(put)
                        .map_err(|error| Halt::Unapplicable(Unapplicable::Malformed(error)))?;
                    if !checks {
                        return self.apply_put(entry, &put).map(Some);
                    }
                    if let Some(heading) = Heading::parse(header) {
                        return self.apply_put_of(entry, &put, &heading).map(Some);
                    }
                } else if !checks && let Some(lease) = entry::wrapped_revoke(&entry.data) {
                    return self.apply_lease_revoke(entry, lease).map(Some);
                }
                entry::with_entry(&entry.data, |request| match request {
                    Ok(request) => self.apply_request(entry, request),
                    Err(error) => Err(Halt::Unapplicable(error)),
                })
            }
        }
    }

    fn apply_request(
        &mut self,
        entry: &LogEntry,
        whole: pb::InternalRaftRequest,
    ) -> Result<Option<Reply>, Halt> {
        let Some(request) = Request::of(&whole) else {
            return Err(Halt::Unapplicable(Unapplicable::Unknown));
        };
        if let Err(error) =
            self.state.alarms().admit(&whole).and_then(|()| self.admit_author(&whole))
        {
            if let Request::LeaseRevoke(revoke) = request {
                self.leases.revoke_refused(revoke.id, entry.index);
            }
            self.store.skip(entry.index, entry.term);
            return Ok(Some(Reply::Refused(error.into())));
        }
        match request {
            Request::Put(put) => self.apply_put(entry, &crate::kv::check::put_ref(put)).map(Some),
            Request::DeleteRange(_) => {
                let delete = whole.delete_range.unwrap_or_default();
                let execution = Execution::of(Op::Delete(delete));
                self.execute(entry, execution, Ending::Answer).map(Some)
            }
            Request::Txn(_) => {
                let execution = Execution::txn(whole.txn.unwrap_or_default());
                self.execute(entry, execution, Ending::Answer).map(Some)
            }
            Request::Compaction(compaction) => Ok(Some(self.apply_compaction(entry, compaction))),
            Request::LeaseGrant(grant) => Ok(Some(self.apply_lease_grant(entry, grant))),
            Request::LeaseRevoke(revoke) => self.apply_lease_revoke(entry, revoke.id).map(Some),
            Request::LeaseCheckpoint(checkpoint) => {
                self.apply_lease_checkpoint(entry, checkpoint);
                Ok(None)
            }
            Request::Alarm(alarm) => Ok(Some(self.apply_alarm(entry, alarm))),
            Request::ClusterMemberAttrSet(attributes) => {
                let id = whole.header.as_ref().map_or(0, |header| header.id);
                self.introduction.note_applied(id);
                self.apply_attributes(entry, attributes).map(|()| None)
            }
            Request::ClusterVersionSet(version) => {
                self.apply_cluster_version(entry, version).map(|()| None)
            }
            Request::DowngradeInfoSet(downgrade) => {
                self.apply_downgrade(entry, downgrade);
                Ok(None)
            }
            Request::Authenticate(login) => Ok(Some(self.apply_login(entry, login))),
            // What only asks.
            Request::DowngradeVersionTest(_)
            | Request::Range(_)
            | Request::AuthStatus(_)
            | Request::UserGet(_)
            | Request::RoleGet(_)
            | Request::UserList(_)
            | Request::RoleList(_) => {
                self.store.skip(entry.index, entry.term);
                Ok(None)
            }
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
            | Request::RoleRevokePermission(_) => self.apply_auth(entry, request).map(Some),
        }
    }

    /// A put, while its author matters.
    fn apply_put_of(
        &mut self,
        entry: &LogEntry,
        put: &PutRef<'_>,
        heading: &Heading<'_>,
    ) -> Result<Reply, Halt> {
        let alarms = self.state.alarms();
        let admitted = alarms.admit_growth().and_then(|()| self.admit_put(put, heading));
        if let Err(error) = admitted {
            self.store.skip(entry.index, entry.term);
            return Ok(Reply::Refused(error.into()));
        }
        self.apply_put(entry, put)
    }

    fn apply_put(&mut self, entry: &LogEntry, put: &PutRef<'_>) -> Result<Reply, Halt> {
        if let Err(error) = self.state.alarms().admit_growth() {
            self.store.skip(entry.index, entry.term);
            return Ok(Reply::Refused(error.into()));
        }
        if put.prev_kv || put.ignore_value || put.ignore_lease {
            let put = pb::PutRequest {
                key: Bytes::copy_from_slice(put.key),
                value: Bytes::copy_from_slice(put.value),
                lease: put.lease,
                prev_kv: put.prev_kv,
                ignore_value: put.ignore_value,
                ignore_lease: put.ignore_lease,
            };
            return self.execute(entry, Execution::of(Op::Put(put)), Ending::Answer);
        }
        let lease = LeaseId(put.lease);
        if lease.0 != 0 && !self.leases.lessor().exists(lease) {
            self.store.skip(entry.index, entry.term);
            return Ok(Reply::Refused(EtcdError::LeaseNotFound.into()));
        }
        self.shared.metrics.puts.inc();
        self.shared.metrics.storage.put_bytes.inc_by((put.key.len() + put.value.len()) as u64);
        let mut txn = self.store.begin(entry.index, entry.term);
        txn.put(put.key, put.value, lease);
        let revision = txn.commit().0;
        self.leases.lessor_mut().set_item(put.key, lease.0);
        Ok(Reply::Header { revision })
    }

    fn apply_compaction(&mut self, entry: &LogEntry, request: &pb::CompactionRequest) -> Reply {
        self.store.skip(entry.index, entry.term);
        let hash = self.compaction_hash(Revision(request.revision));
        match self.store.compact(Revision(request.revision)) {
            Ok(()) => {
                self.compactions.begin(request.revision, self.turn.now_ms());
                if let Some(hasher) = hash {
                    self.hashes.begin_compaction(hasher);
                }
                // etcd asks for the revision by a range, and counts it.
                self.shared.metrics.ranges.inc();
                let mut out = Vec::new();
                self.shared.header(self.store.revision().0).write(&mut out);
                if request.physical {
                    self.compactions.delay_answer(request.revision);
                }
                Reply::Message(out)
            }
            Err(error) => match Stop::from(error) {
                Stop::Refused(status) => Reply::Refused(status),
                Stop::NeedsPage(_) | Stop::Broken(_) => Reply::Refused(EtcdError::Corrupt.into()),
            },
        }
    }
}
