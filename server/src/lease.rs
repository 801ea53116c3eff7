//! The lessor: which leases there are, until when, and which keys hang on them.
//!
//! Owned by the replica, which applies log entries to it and asks it what has expired. Every member
//! holds the same leases and attachments; only the leader's lessor is *primary* and knows
//! deadlines, as in etcd, so nothing here that depends on time decides what an entry does. It does
//! no I/O and reads no clock: each call brings `now`. It must never let a lease end early: every
//! deadline is a millisecond later than its sum, since `now` is rounded down.
//!
//! Nothing takes longer because there are more leases, or because a lease has more keys. A member
//! that becomes primary, or ends being it, begins a *reign*: a lease that carries an earlier one's
//! number has no times yet, and gets them, counted from the reign's beginning, when it is looked
//! at. When that is stands in the agenda, which is never too late for it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_engine::types::LeaseId;
use etcore_engine::wire::KvRef;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::leasepb;
use prost::Message;

use crate::kv::plan::Leases;
use crate::limits;

mod crowd;
mod keys;
mod listing;
pub mod pace;
mod sharded;
#[cfg(test)]
mod tests;

use crowd::Crowd;
use keys::Keys;
pub use keys::Revoked;
pub use listing::KeysStep;
use listing::{KeyWalk, Listing};
use sharded::Sharded;

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

/// Attachments of keys to leases, gathered from stored rows.
#[derive(Debug, Default)]
pub struct Attachments {
    by_key: Sharded<Key, i64>,
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
    /// The reign that what follows, up to `checkpointing`, belongs to: in a later one it means
    /// nothing.
    reign: u32,
    /// Only of a primary lessor: when it may be revoked.
    deadline_ms: u64,
    /// When it is checkpointed next; 0 for never.
    checkpoint_ms: u64,
    state: State,
    /// An entry that clears its checkpoint is on its way.
    clearing: bool,
    /// A checkpoint is on its way, of less time than a renewal from now on gives.
    checkpointing: bool,
    /// It is in the agenda under this time.
    look_ms: u64,
    /// Counts leases in the order in which they were granted.
    born: u64,
    keys: Keys,
}

/// How a primary lessor sees a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Alive,
    /// It has expired and waits for its revocation to be proposed.
    Overdue,
    /// That was proposed, and is again if it still exists then.
    Proposed {
        again_ms: u64,
    },
}

/// The time in which a member is primary, or is not.
#[derive(Debug, Clone, Copy)]
struct Reign {
    number: u32,
    primary: bool,
    since_ms: u64,
    /// Every lease that is there at its beginning gets so much more.
    extend_ms: u64,
    checkpoint_ms: Option<u64>,
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
/// Invariants: `items` and the leases' keys hold the same pairs; `agenda` holds every lease once,
/// under its `look_ms`, which is not after its deadline or its checkpoint, nor after the time at
/// which an overdue one is looked at again; `in_flight` counts those that are proposed. Nothing
/// depends on the order in which the maps are walked.
#[derive(Debug)]
pub struct Lessor {
    settings: Settings,
    reign: Reign,
    leases: Sharded<i64, Lease>,
    items: Sharded<Key, i64>,
    agenda: BTreeSet<(u64, i64)>,
    /// The last turn that looked into it.
    looked_ms: u64,
    /// How many of those that were there at the reign's beginning end when; only if there are many.
    crowd: Option<Crowd>,
    /// Leases that became overdue, oldest first; some may be gone meanwhile.
    overdue: VecDeque<i64>,
    in_flight: usize,
    /// Leases that are to be checkpointed; some may be gone meanwhile.
    checkpoints: VecDeque<i64>,
    /// Leases that were ever granted, or found at the start.
    births: u64,
    listing: Option<Listing>,
    key_walk: Option<KeyWalk>,
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
    /// What it was made with.
    pub fn settings(&self) -> Settings {
        self.settings
    }

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
        let reign = Reign {
            number: 0,
            primary: false,
            since_ms: 0,
            extend_ms: 0,
            checkpoint_ms: settings.checkpoint_ms,
        };
        let mut lessor = Self {
            settings,
            reign,
            leases: Sharded::default(),
            items: Sharded::default(),
            agenda: BTreeSet::new(),
            looked_ms: 0,
            crowd: None,
            overdue: VecDeque::new(),
            in_flight: 0,
            checkpoints: VecDeque::new(),
            births: 0,
            listing: None,
            key_walk: None,
        };
        let mut agenda = Vec::new();
        for (_, row) in rows {
            let row = leasepb::Lease::decode(row).map_err(|error| format!("lease: {error}"))?;
            let mut lease = Lease::new(row.ttl.max(settings.ttl_s_min), lessor.births);
            lease.checkpointed_s = row.remaining_ttl;
            lease.look_ms = lease.left_ms();
            agenda.push((lease.look_ms, row.id));
            lessor.births += 1;
            lessor.leases.insert(row.id, lease);
        }
        lessor.agenda = agenda.into_iter().collect();
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
        let mut lease = Lease::new(ttl_s, self.births);
        lease.reign = self.reign.number;
        lease.renew(now_ms);
        if self.reign.primary {
            lease.schedule_checkpoint(now_ms, &self.reign);
        }
        lease.look_ms = lease.next_look_ms();
        self.births += 1;
        self.agenda.insert((lease.look_ms, id));
        let before = self.leases.insert(id, lease);
        assert!(before.is_none(), "lease {id:x} was granted twice");
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
        self.agenda.remove(&(lease.look_ms, id));
        if let Some(listing) = &mut self.listing {
            listing.revoked(id, &lease, &self.reign);
        }
        let state = if lease.reign == self.reign.number { lease.state } else { State::Alive };
        if let State::Proposed { .. } = state {
            self.in_flight -= 1;
        }
        Some(Revoked { had_expired: state != State::Alive, keys: lease.keys })
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
                if let Some(lease) = self.leases.get_mut(&old) {
                    lease.keys.remove(&shared);
                    if let Some(walk) = self.key_walk.as_mut().filter(|walk| walk.lease == old) {
                        walk.detached(&shared);
                    }
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
                if let Some(walk) = self.key_walk.as_mut().filter(|walk| walk.lease == lease) {
                    walk.attached(&shared);
                }
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
        lease.enter(&self.reign);
        lease.checkpointed_s = left_s;
        lease.checkpointing = false;
        // One that was on its way before the entry that clears it: that one comes yet.
        lease.clearing &= left_s > 0;
        let look_ms = if self.reign.primary {
            lease.schedule_checkpoint(now_ms, &self.reign);
            lease.next_look_ms()
        } else {
            // A reign that begins now would let it end then.
            now_ms + lease.left_ms()
        };
        lease.look_by(look_ms, id, &mut self.agenda);
        true
    }

    /// The row of a lease in its bucket (leasepb.Lease).
    pub fn row(&self, id: i64) -> Option<Vec<u8>> {
        let lease = self.leases.get(&id)?;
        let (ttl, remaining_ttl) = (lease.ttl_s, lease.checkpointed_s);
        Some(leasepb::Lease { id, ttl, remaining_ttl }.encode_to_vec())
    }

    /// Becomes primary: every lease gets its TTL, or what its checkpoint left of it, and
    /// `extend_ms` more, counted from now. Where more would end at a time than can be revoked, some
    /// get more still.
    pub fn promote(&mut self, now_ms: u64, extend_ms: u64) {
        self.begin_reign(true, now_ms, extend_ms);
        let many = self.leases.len() as u64 >= limits::LEASE_REVOKES_PER_SECOND;
        self.crowd = many.then(Crowd::default);
    }

    /// Ends being primary: nothing expires here any more, and nothing can be renewed.
    pub fn demote(&mut self) {
        self.begin_reign(false, 0, 0);
    }

    fn begin_reign(&mut self, primary: bool, since_ms: u64, extend_ms: u64) {
        let number = self.reign.number + 1;
        self.reign = Reign { number, primary, since_ms, extend_ms, ..self.reign };
        self.crowd = None;
        self.overdue.clear();
        self.checkpoints.clear();
        self.in_flight = 0;
    }

    /// Whether this member decides what expires.
    pub fn is_primary(&self) -> bool {
        self.reign.primary
    }

    /// Renews a lease. Only for a primary lessor.
    pub fn renew(&mut self, id: i64, now_ms: u64) -> Renewal {
        let Some(lease) = self.leases.get_mut(&id) else { return Renewal::NotFound };
        // Nobody has looked yet whether one from before this reign has expired: it has not.
        let is_new_here = lease.enter(&self.reign);
        if !is_new_here && (lease.state != State::Alive || lease.deadline_ms <= now_ms) {
            return Renewal::Expired;
        }
        let is_checkpointed = lease.checkpointed_s > 0 || lease.checkpointing;
        if self.settings.checkpoint_ms.is_some() && is_checkpointed {
            return Renewal::ClearFirst(!std::mem::replace(&mut lease.clearing, true));
        }
        lease.renew(now_ms);
        lease.look_by(lease.deadline_ms, id, &mut self.agenda);
        Renewal::Renewed(lease.ttl_s)
    }

    /// The entry that should have cleared a checkpoint was lost: the next renewal proposes it
    /// again.
    pub fn clearing_failed(&mut self, id: i64) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.enter(&self.reign);
            lease.clearing = false;
        }
    }

    /// The times of a lease. Only for a primary lessor.
    pub fn time_to_live(&self, id: i64, now_ms: u64) -> Option<TimeToLive> {
        let lease = self.leases.get(&id)?;
        // Without the millisecond that covers rounding.
        let mut left_ms = lease.deadline_ms(&self.reign).cast_signed() - 1 - now_ms.cast_signed();
        if lease.reign != self.reign.number {
            // Nobody has looked yet whether it has expired.
            left_ms = left_ms.max(0);
        }
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

    /// Looks for leases that have expired, or are to be checkpointed, some hundred at a time;
    /// returns how many wait for their revocation to be proposed.
    pub fn collect_expired(&mut self, now_ms: u64) -> usize {
        if !self.reign.primary {
            return 0;
        }
        // Leases that turn out to live on are many after an election: some with every millisecond.
        let looks = match now_ms > self.looked_ms {
            true => limits::LEASE_LOOKS_PER_MS,
            false => limits::LEASE_EXPIRIES_PER_TURN,
        };
        self.looked_ms = now_ms;
        let most = self.overdue.len() + limits::LEASE_EXPIRIES_PER_TURN;
        for _ in 0..looks {
            let Some((_, id)) = self.agenda.first().copied().filter(|(at_ms, _)| *at_ms <= now_ms)
            else {
                break;
            };
            if self.overdue.len() >= most.min(limits::LEASES_OVERDUE) {
                break;
            }
            self.agenda.pop_first();
            let lease = self.leases.get_mut(&id).expect("`agenda` holds leases that exist");
            if lease.enter(&self.reign)
                && let Some(crowd) = &mut self.crowd
            {
                lease.deadline_ms = crowd.place(lease.deadline_ms);
            }
            lease.look_ms = match lease.state {
                State::Alive if lease.deadline_ms <= now_ms => {
                    lease.state = State::Overdue;
                    self.overdue.push_back(id);
                    now_ms + limits::LEASE_REVOKE_RETRY_MS
                }
                State::Alive => {
                    if lease.checkpoint_ms != 0 && lease.checkpoint_ms <= now_ms {
                        lease.checkpoint_ms = 0;
                        self.checkpoints.push_back(id);
                    }
                    lease.next_look_ms()
                }
                State::Overdue => now_ms + limits::LEASE_REVOKE_RETRY_MS,
                State::Proposed { again_ms } if again_ms > now_ms => again_ms,
                State::Proposed { .. } => {
                    lease.state = State::Overdue;
                    self.in_flight -= 1;
                    self.overdue.push_back(id);
                    now_ms + limits::LEASE_REVOKE_RETRY_MS
                }
            };
            self.agenda.insert((lease.look_ms, id));
        }
        self.overdue.len()
    }

    /// The next lease to be revoked; it comes again after
    /// [`limits::LEASE_REVOKE_RETRY_MS`] if it still exists then. `None` if there is none, or if
    /// [`limits::LEASE_REVOKES_IN_FLIGHT`] are on their way.
    pub fn next_expired(&mut self, now_ms: u64) -> Option<i64> {
        while self.in_flight < limits::LEASE_REVOKES_IN_FLIGHT {
            let id = self.overdue.pop_front()?;
            // It may have been revoked by a client, and granted anew.
            if let Some(lease) = self.leases.get_mut(&id)
                && lease.reign == self.reign.number
                && lease.state == State::Overdue
            {
                let again_ms = now_ms + limits::LEASE_REVOKE_RETRY_MS;
                lease.state = State::Proposed { again_ms };
                self.in_flight += 1;
                return Some(id);
            }
        }
        None
    }

    /// When a lease is to be looked at next; `None` if there are none.
    pub fn next_look_ms(&self) -> Option<u64> {
        self.agenda.first().map(|(at_ms, _)| *at_ms)
    }

    /// Whether revocations wait to be proposed.
    pub fn has_overdue(&self) -> bool {
        !self.overdue.is_empty()
    }

    /// Whether checkpoints wait to be proposed.
    pub fn has_checkpoints(&self) -> bool {
        !self.checkpoints.is_empty()
    }

    /// Up to `most` leases whose remaining time is to be checkpointed now, with that time in
    /// seconds, of those that [`Lessor::collect_expired`] has found.
    pub fn due_checkpoints(&mut self, now_ms: u64, most: usize) -> Vec<(i64, i64)> {
        let mut found = Vec::new();
        while found.len() < most
            && let Some(id) = self.checkpoints.pop_front()
        {
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            let is_scheduled_anew = lease.checkpoint_ms != 0;
            if lease.reign != self.reign.number || is_scheduled_anew || lease.clearing {
                continue;
            }
            let left_ms = lease.deadline_ms.saturating_sub(1).saturating_sub(now_ms);
            let left_s = left_ms.div_ceil(1000).cast_signed();
            if left_ms > 0 && left_s < lease.ttl_s {
                lease.checkpointing = true;
                found.push((id, left_s));
            }
        }
        found
    }
}

impl Lease {
    fn new(ttl_s: i64, born: u64) -> Self {
        Self {
            ttl_s,
            checkpointed_s: 0,
            reign: 0,
            deadline_ms: 0,
            checkpoint_ms: 0,
            state: State::Alive,
            clearing: false,
            checkpointing: false,
            look_ms: 0,
            born,
            keys: Keys::None,
        }
    }

    /// Seconds to live when its time starts anew.
    fn left_s(&self) -> i64 {
        if self.checkpointed_s > 0 { self.checkpointed_s } else { self.ttl_s }
    }

    /// Milliseconds left.
    fn left_ms(&self) -> u64 {
        let left_s = u64::try_from(self.left_s()).unwrap_or(0);
        left_s * if is_on(SeededBug::LeaseEndsEarly) { 750 } else { 1000 }
    }

    /// When it may be revoked; 0 if this member does not know.
    fn deadline_ms(&self, reign: &Reign) -> u64 {
        if !reign.primary {
            0
        } else if self.reign == reign.number {
            self.deadline_ms
        } else {
            reign.since_ms + 1 + reign.extend_ms + self.left_ms()
        }
    }

    /// Takes the times of this reign. True if it had only those of an earlier one.
    fn enter(&mut self, reign: &Reign) -> bool {
        if self.reign == reign.number {
            return false;
        }
        self.deadline_ms = self.deadline_ms(reign);
        self.reign = reign.number;
        (self.state, self.checkpoint_ms) = (State::Alive, 0);
        (self.clearing, self.checkpointing) = (false, false);
        if reign.primary {
            self.schedule_checkpoint(reign.since_ms, reign);
        }
        true
    }

    /// Its time starts anew.
    fn renew(&mut self, now_ms: u64) {
        self.deadline_ms = now_ms + 1 + self.left_ms();
    }

    fn schedule_checkpoint(&mut self, now_ms: u64, reign: &Reign) {
        self.checkpoint_ms = match reign.checkpoint_ms {
            Some(interval_ms) if self.left_s() > (interval_ms / 1000).cast_signed() => {
                now_ms + interval_ms
            }
            _ => 0,
        };
    }

    /// When there is something to do about one that is alive.
    fn next_look_ms(&self) -> u64 {
        match self.checkpoint_ms {
            0 => self.deadline_ms,
            checkpoint_ms => checkpoint_ms.min(self.deadline_ms),
        }
    }

    /// It is looked at then at the latest.
    fn look_by(&mut self, at_ms: u64, id: i64, agenda: &mut BTreeSet<(u64, i64)>) {
        if at_ms < self.look_ms {
            agenda.remove(&(self.look_ms, id));
            agenda.insert((at_ms, id));
            self.look_ms = at_ms;
        }
    }
}
