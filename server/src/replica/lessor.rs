//! The lessor: which leases there are, until when, and which keys hang on them.
//!
//! Owned by the replica, which applies log entries to it and asks it what has expired. Every member
//! holds the same leases and attachments; only the leader's lessor is *primary* and knows
//! deadlines, as in etcd, so nothing here that depends on time decides what an entry does. It does
//! no I/O and reads no clock: each call brings `now`. It must never let a lease end early: every
//! deadline is a millisecond later than its sum, since `now` is rounded down.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use etcore_engine::mutation::{Mutation, is_on};
use etcore_engine::types::LeaseId;
use etcore_engine::wire::KvRef;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::leasepb;
use prost::Message;

use crate::api::plan::Leases;
use crate::limits;

pub mod pace;
#[cfg(test)]
mod tests;

/// etcd's longest TTL, in seconds (`lease.MaxLeaseTTL`).
pub const TTL_S_MAX: i64 = 9_000_000_000;
/// What differs between members and builds.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Shorter TTLs are raised to this, in seconds.
    pub ttl_s_min: i64,
    /// With feature gate LeaseCheckpoint: what is left of a lease that has more than this to live,
    /// in milliseconds, goes through the log this often.
    pub checkpoint_ms: Option<u64>,
}

/// A key; attachments share one copy.
pub type Key = Arc<[u8]>;

/// Which keys hang on which lease, gathered from stored rows.
#[derive(Debug, Default)]
pub struct Attachments {
    by_key: HashMap<Key, i64>,
}

impl Attachments {
    /// Takes the next row of the key space, in the order of revisions.
    pub fn visit(&mut self, row: &KvRef<'_>) {
        if row.lease.0 != 0 {
            match self.by_key.get_mut(row.key) {
                Some(lease) => *lease = row.lease.0,
                None => {
                    self.by_key.insert(row.key.into(), row.lease.0);
                }
            }
        } else if !self.by_key.is_empty() {
            self.by_key.remove(row.key);
        }
    }
}

/// A lease.
#[derive(Debug)]
struct Lease {
    ttl_s: i64,
    /// What was left at the last checkpoint; 0 if there was none since the last renewal.
    checkpointed_s: i64,
    /// Only of a primary lessor: when it may be revoked.
    deadline_ms: u64,
    /// When it is checkpointed next; 0 for never.
    checkpoint_ms: u64,
    /// An entry that clears its checkpoint is on its way.
    clearing: bool,
    keys: Keys,
}

/// The keys of a lease, in order. Most leases have one or none.
#[derive(Debug, Default)]
enum Keys {
    #[default]
    None,
    One(Key),
    #[expect(clippy::box_collection, reason = "a lease with one key or none should be small")]
    Many(Box<BTreeSet<Key>>),
}

impl Keys {
    fn insert(&mut self, key: Key) {
        *self = match std::mem::take(self) {
            Keys::None => Keys::One(key),
            Keys::One(other) => Keys::Many(Box::new([other, key].into())),
            Keys::Many(mut keys) => {
                keys.insert(key);
                Keys::Many(keys)
            }
        };
    }

    fn remove(&mut self, key: &Key) {
        match self {
            Keys::None => {}
            Keys::One(other) if other != key => {}
            Keys::One(_) => *self = Keys::None,
            Keys::Many(keys) => {
                keys.remove(key);
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Keys::None => 0,
            Keys::One(_) => 1,
            Keys::Many(keys) => keys.len(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Key> {
        let (one, many) = match self {
            Keys::None => (None, None),
            Keys::One(key) => (Some(key), None),
            Keys::Many(keys) => (None, Some(keys.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// What a renewal came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It lives for its TTL, in seconds, from now on.
    Renewed(i64),
    /// There is no such lease.
    NotFound,
    /// It has expired; what comes of it is known once its revocation is applied.
    Expired,
    /// Its checkpoint must be cleared by a log entry first; the flag tells to propose that.
    ClearFirst(bool),
}

/// A lease whose end was proposed.
#[derive(Debug, Clone, Copy)]
struct Revoking {
    again_ms: u64,
    deadline_ms: u64,
    id: i64,
}

/// A lease that is gone.
#[derive(Debug)]
pub struct Revoked {
    /// Its time was up.
    pub had_expired: bool,
    keys: Keys,
}

impl Revoked {
    /// The keys that hung on it, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// The same, given away one by one.
    pub fn into_keys(self) -> Box<dyn Iterator<Item = Key> + Send> {
        match self.keys {
            Keys::None => Box::new(std::iter::empty()),
            Keys::One(key) => Box::new(std::iter::once(key)),
            Keys::Many(keys) => Box::new(keys.into_iter()),
        }
    }
}

/// A lease's times, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeToLive {
    /// Whole seconds left; below 0 for one that should be gone already.
    pub left_s: i64,
    /// The TTL it was granted with.
    pub granted_s: i64,
}

/// See the module text.
///
/// Invariants: `items` and the leases' keys hold the same pairs; `due` holds exactly the unexpired
/// leases of a primary lessor, under their deadlines, and these are above `expired_up_to`;
/// `checkpoints` exactly those with a `checkpoint_ms`. Nothing depends on the order in which the
/// maps are walked.
#[derive(Debug)]
pub struct Lessor {
    settings: Settings,
    primary: bool,
    leases: HashMap<i64, Lease>,
    items: HashMap<Key, i64>,
    due: BTreeSet<(u64, i64)>,
    /// The last that was found to have expired: whatever was due up to it has, and waits for its
    /// revocation. To find that out looks at no lease: a hundred thousand at once are in no cache.
    expired_up_to: Option<(u64, i64)>,
    /// Expired and not proposed yet, oldest first, with their deadlines; some may be gone
    /// meanwhile.
    overdue: VecDeque<(u64, i64)>,
    /// Their revocation was proposed; if they still exist at that time, it is proposed again.
    revoking: VecDeque<Revoking>,
    checkpoints: BTreeSet<(u64, i64)>,
}

impl Leases for Lessor {
    fn exists(&self, lease: LeaseId) -> bool {
        self.leases.contains_key(&lease.0)
    }
}

/// The key of a lease's row in its bucket.
pub fn row_key(id: i64) -> [u8; 8] {
    id.to_be_bytes()
}

impl Lessor {
    /// A lessor, not primary, over the rows of the lease bucket. Attachments to leases that are not
    /// there are dropped.
    ///
    /// # Errors
    /// A row that is no lease.
    pub fn recover<'a>(
        settings: Settings,
        rows: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        attachments: Attachments,
    ) -> Result<Self, String> {
        let mut lessor = Self {
            settings,
            primary: false,
            leases: HashMap::new(),
            items: HashMap::new(),
            due: BTreeSet::new(),
            expired_up_to: None,
            overdue: VecDeque::new(),
            revoking: VecDeque::new(),
            checkpoints: BTreeSet::new(),
        };
        for (_, row) in rows {
            let row = leasepb::Lease::decode(row).map_err(|error| format!("lease: {error}"))?;
            let mut lease = Lease::new(row.ttl.max(settings.ttl_s_min));
            lease.checkpointed_s = row.remaining_ttl;
            lessor.leases.insert(row.id, lease);
        }
        lessor.items = attachments.by_key;
        lessor.items.retain(|key, lease| match lessor.leases.get_mut(lease) {
            Some(lease) => {
                lease.keys.insert(key.clone());
                true
            }
            None => false,
        });
        Ok(lessor)
    }

    /// The TTL that a lease would be granted, in seconds.
    ///
    /// # Errors
    /// What the client is told: no ID, a TTL above [`TTL_S_MAX`], or an ID in use.
    pub fn check_grant(&self, id: i64, ttl_s: i64) -> Result<i64, EtcdError> {
        if id == 0 {
            return Err(EtcdError::LeaseNotFound);
        }
        if ttl_s > TTL_S_MAX {
            return Err(EtcdError::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(EtcdError::LeaseExist);
        }
        Ok(ttl_s.max(self.settings.ttl_s_min))
    }

    /// Takes in a lease that [`Lessor::check_grant`] has accepted with this TTL.
    ///
    /// # Panics
    /// If the lease exists.
    pub fn grant(&mut self, id: i64, ttl_s: i64, now_ms: u64) {
        let before = self.leases.insert(id, Lease::new(ttl_s));
        assert!(before.is_none(), "lease {id:x} was granted twice");
        if self.primary {
            self.refresh(id, now_ms, 0);
            self.schedule_checkpoint(id, now_ms);
        }
    }

    /// Removes a lease with its attachments, whose keys the caller deletes; `None` if there is no
    /// such lease.
    pub fn revoke(&mut self, id: i64) -> Option<Revoked> {
        let revoked = self.revoke_lazily(id)?;
        for key in revoked.keys() {
            self.items.remove(key);
        }
        Some(revoked)
    }

    /// Removes a lease and leaves its attachments, of which the caller is to say, key by key, that
    /// they are gone ([`Lessor::set_item`]).
    pub fn revoke_lazily(&mut self, id: i64) -> Option<Revoked> {
        let lease = self.leases.remove(&id)?;
        let had_expired = self.is_expired(id, lease.deadline_ms);
        if self.primary && !had_expired {
            self.due.remove(&(lease.deadline_ms, id));
        }
        if lease.checkpoint_ms != 0 {
            self.checkpoints.remove(&(lease.checkpoint_ms, id));
        }
        Some(Revoked { had_expired, keys: lease.keys })
    }

    /// How many keys hang on a lease; 0 if there is no such lease.
    pub fn key_count(&self, id: i64) -> usize {
        self.leases.get(&id).map_or(0, |lease| lease.keys.len())
    }

    /// The lease of a key that was written: 0 detaches it. A lease that does not exist counts as
    /// none.
    pub fn set_item(&mut self, key: &[u8], lease: i64) {
        let old = if self.items.is_empty() { None } else { self.items.get_key_value(key) };
        let shared = match old {
            Some((_, old)) if *old == lease => return,
            Some((shared, old)) => {
                let (shared, old) = (shared.clone(), *old);
                if let Some(old) = self.leases.get_mut(&old) {
                    old.keys.remove(&shared);
                }
                Some(shared)
            }
            None => None,
        };
        let new = if lease == 0 { None } else { self.leases.get_mut(&lease) };
        match (new, shared) {
            (Some(new), shared) => {
                let shared = shared.unwrap_or_else(|| key.into());
                new.keys.insert(shared.clone());
                self.items.insert(shared, lease);
            }
            (None, Some(shared)) => {
                self.items.remove(&shared);
            }
            (None, None) => {}
        }
    }

    /// Sets what is left of a lease by a checkpoint, in seconds. True if there is such a lease.
    pub fn checkpoint(&mut self, id: i64, left_s: i64, now_ms: u64) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else { return false };
        lease.checkpointed_s = left_s;
        lease.clearing = false;
        if self.primary {
            self.schedule_checkpoint(id, now_ms);
        }
        true
    }

    /// The row of a lease in its bucket (leasepb.Lease).
    pub fn row(&self, id: i64) -> Option<Vec<u8>> {
        let lease = self.leases.get(&id)?;
        let (ttl, remaining_ttl) = (lease.ttl_s, lease.checkpointed_s);
        Some(leasepb::Lease { id, ttl, remaining_ttl }.encode_to_vec())
    }

    /// Becomes primary: every lease gets its TTL, or what its checkpoint left of it, and
    /// `extend_ms` more, counted from now. Where more would end at a time than can be revoked, the
    /// later ones get more still.
    pub fn promote(&mut self, now_ms: u64, extend_ms: u64) {
        self.forget_deadlines();
        self.primary = true;
        for id in self.ids() {
            self.refresh(id, now_ms, extend_ms);
            self.schedule_checkpoint(id, now_ms);
        }
        if self.leases.len() as u64 >= limits::LEASE_REVOKES_PER_SECOND {
            self.spread(now_ms, extend_ms);
        }
    }

    /// Ends being primary: nothing expires here any more, and nothing can be renewed.
    pub fn demote(&mut self) {
        self.forget_deadlines();
        self.primary = false;
    }

    /// Whether this member decides what expires.
    pub fn is_primary(&self) -> bool {
        self.primary
    }

    /// Renews a lease. Only for a primary lessor.
    pub fn renew(&mut self, id: i64, now_ms: u64) -> Renewal {
        let checkpoints = self.settings.checkpoint_ms.is_some();
        let expired_up_to = self.expired_up_to;
        let Some(lease) = self.leases.get_mut(&id) else { return Renewal::NotFound };
        let is_expired = expired_up_to.is_some_and(|last| (lease.deadline_ms, id) <= last);
        if is_expired || lease.deadline_ms <= now_ms {
            return Renewal::Expired;
        }
        if checkpoints && lease.checkpointed_s > 0 {
            return Renewal::ClearFirst(!std::mem::replace(&mut lease.clearing, true));
        }
        let ttl_s = lease.ttl_s;
        self.refresh(id, now_ms, 0);
        Renewal::Renewed(ttl_s)
    }

    /// The entry that should have cleared a checkpoint was lost: the next renewal proposes it
    /// again.
    pub fn clearing_failed(&mut self, id: i64) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.clearing = false;
        }
    }

    /// The times of a lease. Only for a primary lessor.
    pub fn time_to_live(&self, id: i64, now_ms: u64) -> Option<TimeToLive> {
        let lease = self.leases.get(&id)?;
        let left_ms = lease.left_ms(now_ms);
        // Time has passed since it was granted, if less than a millisecond: not a whole TTL.
        let left_s = if left_ms > 0 { (left_ms - 1) / 1000 } else { left_ms / 1000 };
        Some(TimeToLive { left_s, granted_s: lease.ttl_s })
    }

    /// Whether there is such a lease.
    pub fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// The keys attached to a lease, in order.
    pub fn keys(&self, id: i64) -> impl Iterator<Item = &Key> {
        self.leases.get(&id).into_iter().flat_map(|lease| lease.keys.iter())
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// All leases, those that expire first in front; by ID where this member knows no deadlines.
    pub fn list(&self) -> Vec<i64> {
        if !self.primary {
            return self.ids();
        }
        let all = self.leases.iter().map(|(id, lease)| (lease.deadline_ms, *id));
        let mut expired: Vec<(u64, i64)> = match self.leases.len() - self.due.len() {
            0 => Vec::new(),
            _ => all.filter(|(deadline_ms, id)| self.is_expired(*id, *deadline_ms)).collect(),
        };
        expired.sort_unstable();
        expired.iter().chain(&self.due).map(|(_, id)| *id).collect()
    }

    /// Looks for leases that have expired, some thousand at a time; returns how many wait for
    /// their revocation to be proposed.
    pub fn collect_expired(&mut self, now_ms: u64) -> usize {
        for _ in 0..limits::LEASE_EXPIRIES_PER_TURN {
            let Some(first) = self.due.first().filter(|(deadline_ms, _)| *deadline_ms <= now_ms)
            else {
                break;
            };
            self.expired_up_to = Some(*first);
            self.overdue.push_back(*first);
            self.due.pop_first();
        }
        while let Some(Revoking { again_ms, deadline_ms, id }) = self.revoking.front().copied() {
            if self.waits_for_its_end(id, deadline_ms) {
                if again_ms > now_ms {
                    break;
                }
                self.overdue.push_back((deadline_ms, id));
            }
            self.revoking.pop_front();
        }
        self.overdue.len()
    }

    /// The next lease to be revoked; it comes again after
    /// [`limits::LEASE_REVOKE_RETRY_MS`] if it still exists then. `None` if there is none, or if
    /// [`limits::LEASE_REVOKES_IN_FLIGHT`] are on their way.
    pub fn next_expired(&mut self, now_ms: u64) -> Option<i64> {
        while self.revoking.len() < limits::LEASE_REVOKES_IN_FLIGHT {
            let (deadline_ms, id) = self.overdue.pop_front()?;
            if self.waits_for_its_end(id, deadline_ms) {
                let again_ms = now_ms + limits::LEASE_REVOKE_RETRY_MS;
                self.revoking.push_back(Revoking { again_ms, deadline_ms, id });
                return Some(id);
            }
        }
        None
    }

    /// When the next lease expires; `None` if none does.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.due.first().map(|(deadline_ms, _)| *deadline_ms)
    }

    /// Whether revocations wait to be proposed.
    pub fn has_overdue(&self) -> bool {
        !self.overdue.is_empty()
    }

    /// Up to `most` leases whose remaining time is to be checkpointed now, with that time in
    /// seconds.
    pub fn due_checkpoints(&mut self, now_ms: u64, most: usize) -> Vec<(i64, i64)> {
        let mut found = Vec::new();
        while found.len() < most
            && let Some((at_ms, id)) = self.checkpoints.first().copied()
            && at_ms <= now_ms
        {
            self.checkpoints.pop_first();
            let lease = self.leases.get_mut(&id).expect("`checkpoints` holds leases that exist");
            lease.checkpoint_ms = 0;
            let left_ms = lease.left_ms(now_ms);
            let left_s = left_ms / 1000 + i64::from(left_ms % 1000 > 0);
            if left_ms > 0 && left_s < lease.ttl_s {
                found.push((id, left_s));
            }
        }
        found
    }

    /// All leases by ID.
    fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.leases.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn is_expired(&self, id: i64, deadline_ms: u64) -> bool {
        self.expired_up_to.is_some_and(|last| (deadline_ms, id) <= last)
    }

    /// True if the lease that had expired under this deadline is still there.
    fn waits_for_its_end(&self, id: i64, deadline_ms: u64) -> bool {
        // It may have been revoked by a client, and granted anew.
        self.leases.get(&id).is_some_and(|lease| lease.deadline_ms == deadline_ms)
    }

    fn refresh(&mut self, id: i64, now_ms: u64, extend_ms: u64) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        let left_s = u64::try_from(lease.left_s()).unwrap_or(0);
        self.due.remove(&(lease.deadline_ms, id));
        let left_ms = left_s * if is_on(Mutation::LeaseEndsEarly) { 750 } else { 1000 };
        let unexpired_ms = self.expired_up_to.map_or(0, |(deadline_ms, _)| deadline_ms + 1);
        lease.deadline_ms = (now_ms + 1 + extend_ms + left_ms).max(unexpired_ms);
        self.due.insert((lease.deadline_ms, id));
    }

    fn schedule_checkpoint(&mut self, id: i64, now_ms: u64) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        if lease.checkpoint_ms != 0 {
            self.checkpoints.remove(&(lease.checkpoint_ms, id));
            lease.checkpoint_ms = 0;
        }
        if let Some(interval_ms) = self.settings.checkpoint_ms
            && lease.left_s() > (interval_ms / 1000).cast_signed()
        {
            lease.checkpoint_ms = now_ms + interval_ms;
            self.checkpoints.insert((lease.checkpoint_ms, id));
        }
    }

    fn forget_deadlines(&mut self) {
        self.due.clear();
        self.expired_up_to = None;
        self.overdue.clear();
        self.revoking.clear();
        self.checkpoints.clear();
        for lease in self.leases.values_mut() {
            (lease.deadline_ms, lease.checkpoint_ms) = (0, 0);
            lease.clearing = false;
        }
    }

    /// Moves deadlines apart so that no second ends more leases than three quarters of what can be
    /// revoked in it (etcd's `Promote`).
    fn spread(&mut self, now_ms: u64, extend_ms: u64) {
        let target = limits::LEASE_REVOKES_PER_SECOND * 3 / 4;
        let order: Vec<(u64, i64)> = self.due.iter().copied().collect();
        let mut base_ms = order.first().map_or(0, |(deadline_ms, _)| *deadline_ms);
        let mut window_ms = base_ms + 1000;
        let mut expiries = 0;
        for (deadline_ms, id) in order {
            if deadline_ms > window_ms {
                base_ms = deadline_ms;
                window_ms = base_ms + 1000;
                expiries = 1;
                continue;
            }
            expiries += 1;
            if expiries <= target {
                continue;
            }
            // One that ends later in the window needs less of a delay.
            let delay_ms = (1000 * expiries / target).saturating_sub(deadline_ms - base_ms);
            window_ms = base_ms + delay_ms;
            self.refresh(id, now_ms, extend_ms + delay_ms);
        }
    }
}

impl Lease {
    fn new(ttl_s: i64) -> Self {
        Self {
            ttl_s,
            checkpointed_s: 0,
            deadline_ms: 0,
            checkpoint_ms: 0,
            clearing: false,
            keys: Keys::None,
        }
    }

    /// Seconds to live when its time starts anew.
    fn left_s(&self) -> i64 {
        if self.checkpointed_s > 0 { self.checkpointed_s } else { self.ttl_s }
    }

    /// Without the millisecond that covers rounding.
    fn left_ms(&self, now_ms: u64) -> i64 {
        self.deadline_ms.cast_signed() - 1 - now_ms.cast_signed()
    }
}
