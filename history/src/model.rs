//! The reference: what a store with revisions answers, and nothing about how it is done fast.
//!
//! Used by [`super::linear`] to replay writes, by [`super::watch`] for the events they make, and by
//! the simulated store. It keeps every version, so that any past revision can be read and the last
//! write can be taken back. Leases are known by the keys attached to them only. Must never depend
//! on the order of a hash map, nor share code with the store that it judges.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::data::{Data, KeyRange};
use super::types::{
    Answer, Compare, Delete, Event, Get, Kv, Put, Relation, Request, Start, Target, Txn,
};

/// Why the store would refuse a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A read at a revision that is still to come.
    #[error("revision {0} is still to come")]
    Future(i64),
    /// Something that is not allowed inside of a transaction.
    #[error("a transaction cannot do that")]
    Malformed,
}

#[derive(Debug, Clone)]
struct Entry {
    modified: i64,
    create: i64,
    /// 0 for a removal.
    version: i64,
    value: Data,
    lease: i64,
}

impl Entry {
    fn kv(&self, key: &Data) -> Kv {
        Kv {
            key: key.clone(),
            value: self.value.clone(),
            create: self.create,
            modified: self.modified,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// A store.
#[derive(Debug, Clone)]
pub struct Model {
    base: i64,
    revision: i64,
    /// Versions by revision, oldest first.
    keys: BTreeMap<Data, Vec<Entry>>,
    leases: BTreeMap<i64, BTreeSet<Data>>,
    /// Keys touched by each revision after the base, in order.
    log: Vec<Vec<Data>>,
    /// Keys touched by the request under way.
    pending: Vec<Data>,
}

impl Model {
    /// The store as it is at the start of a history.
    pub fn new(start: &Start) -> Self {
        let mut model = Model {
            base: start.revision,
            revision: start.revision,
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            log: Vec::new(),
            pending: Vec::new(),
        };
        for kv in &start.kvs {
            let entry = Entry {
                modified: kv.modified,
                create: kv.create,
                version: kv.version,
                value: kv.value.clone(),
                lease: kv.lease,
            };
            model.keys.insert(kv.key.clone(), vec![entry]);
            model.attach(&kv.key, 0, kv.lease);
        }
        model
    }

    /// The revision of the last write.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The revision before the first write.
    pub fn base(&self) -> i64 {
        self.base
    }

    /// Does what is asked; the answer, and a new revision if something changed.
    ///
    /// # Errors
    ///
    /// The request is refused and nothing changed.
    pub fn apply(&mut self, request: &Request) -> Result<Answer, Refusal> {
        let mut path = Vec::new();
        if let Request::Txn(txn) = request {
            self.choose(txn, &mut path)?;
            path.reverse();
        }
        let answer = self.execute(request, &mut path, true);
        match &answer {
            Ok(_) => self.commit(),
            Err(_) => self.pending_back(),
        }
        answer
    }

    /// Ends a lease: its keys go in one revision, if it has any.
    pub fn end_lease(&mut self, id: i64) {
        for key in self.leases.get(&id).cloned().unwrap_or_default() {
            self.remove(&key);
        }
        self.commit();
    }

    /// Keys attached to the lease now.
    pub fn lease_keys(&self, id: i64) -> impl Iterator<Item = &Data> {
        self.leases.get(&id).into_iter().flatten()
    }

    /// Takes back all writes after this revision, which must not be below the base.
    pub fn undo_to(&mut self, revision: i64) {
        while self.revision > revision {
            let Some(touched) = self.log.pop() else { return };
            self.pending = touched;
            self.pending_back();
            self.revision -= 1;
        }
    }

    /// Keys that this revision touched, in order; none for one that is not after the base.
    pub fn touched(&self, revision: i64) -> &[Data] {
        let index = usize::try_from(revision - self.base - 1).ok();
        index.and_then(|index| self.log.get(index)).map_or(&[], Vec::as_slice)
    }

    /// What this revision did to the keys in the range, in order.
    pub fn events(&self, revision: i64, range: &KeyRange) -> Vec<Event> {
        let keys = self.touched(revision).iter().filter(|key| range.contains(key));
        keys.filter_map(|key| {
            let entry = self.entry(key, revision)?;
            let prev = self.live(key, revision - 1).map(|entry| entry.kv(key));
            let delete = entry.version == 0;
            let kv = match delete {
                true => Kv { key: key.clone(), modified: revision, ..Kv::default() },
                false => entry.kv(key),
            };
            Some(Event { delete, kv, prev })
        })
        .collect()
    }

    /// The pair at a revision.
    pub fn kv(&self, key: &Data, at: i64) -> Option<Kv> {
        self.live(key, at).map(|entry| entry.kv(key))
    }

    /// The key is there at a revision.
    pub(crate) fn is_living(&self, key: &Data, at: i64) -> bool {
        self.live(key, at).is_some()
    }

    /// All keys that are there now, in order, each with its lease.
    pub(crate) fn living(&self) -> impl Iterator<Item = (&Data, i64)> {
        let last = self.keys.iter().filter_map(|(key, versions)| Some((key, versions.last()?)));
        last.filter(|(_, entry)| entry.version > 0).map(|(key, entry)| (key, entry.lease))
    }

    fn entry(&self, key: &Data, at: i64) -> Option<&Entry> {
        last_at(self.keys.get(key)?, at)
    }

    fn live(&self, key: &Data, at: i64) -> Option<&Entry> {
        self.entry(key, at).filter(|entry| entry.version > 0)
    }

    /// Live pairs in the range at a revision.
    fn live_in<'a>(
        &'a self,
        range: &'a KeyRange,
        at: i64,
    ) -> impl Iterator<Item = (&'a Data, &'a Entry)> {
        let empty = !range.is_one() && !range.is_open() && range.end <= range.key;
        let upper = match (range.is_one(), range.is_open()) {
            (true, _) => Bound::Included(&range.key),
            (_, true) => Bound::Unbounded,
            _ if empty => Bound::Included(&range.key),
            _ => Bound::Excluded(&range.end),
        };
        let found = self.keys.range::<Data, _>((Bound::Included(&range.key), upper));
        found.filter(move |_| !empty).filter_map(move |(key, versions)| {
            let entry = last_at(versions, at)?;
            (entry.version > 0).then_some((key, entry))
        })
    }

    /// The store's revision as the request under way sees it.
    fn current(&self) -> i64 {
        self.revision + i64::from(!self.pending.is_empty())
    }

    /// Which branch each transaction takes, the outermost first: all conditions see the store as it
    /// was before the first write. Reads at impossible revisions refuse the whole.
    fn choose(&self, txn: &Txn, path: &mut Vec<bool>) -> Result<(), Refusal> {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        path.push(succeeded);
        for request in if succeeded { &txn.success } else { &txn.failure } {
            match request {
                Request::Txn(inner) => self.choose(inner, path)?,
                Request::Get(get) if get.revision > self.revision => {
                    return Err(Refusal::Future(get.revision));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut missing = true;
        for (_, entry) in self.live_in(&compare.range, self.revision) {
            missing = false;
            if !relates(compare, Some(entry)) {
                return false;
            }
        }
        !missing || relates(compare, None)
    }

    fn execute(
        &mut self,
        request: &Request,
        path: &mut Vec<bool>,
        outermost: bool,
    ) -> Result<Answer, Refusal> {
        match request {
            Request::Get(get) => self.get(get),
            Request::Put(put) => Ok(self.put(put)),
            Request::Delete(delete) => Ok(self.delete(delete)),
            Request::Txn(txn) => {
                let succeeded = path.pop().ok_or(Refusal::Malformed)?;
                let branch = if succeeded { &txn.success } else { &txn.failure };
                let mut answers = Vec::with_capacity(branch.len());
                for request in branch {
                    answers.push(self.execute(request, path, false)?);
                }
                let revision = if outermost { self.current() } else { 0 };
                Ok(Answer::Txn { revision, succeeded, answers })
            }
            _ if !outermost => Err(Refusal::Malformed),
            Request::Grant { ttl, .. } => Ok(Answer::Grant { revision: self.revision, ttl: *ttl }),
            Request::Revoke { id } => {
                for key in self.leases.get(id).cloned().unwrap_or_default() {
                    self.remove(&key);
                }
                Ok(Answer::Revoke { revision: self.current() })
            }
            Request::KeepAlive { .. } => Ok(Answer::KeepAlive { revision: self.revision, ttl: 0 }),
            Request::Compact { .. } => Ok(Answer::Compact { revision: self.revision }),
        }
    }

    fn get(&self, get: &Get) -> Result<Answer, Refusal> {
        let revision = self.current();
        if get.revision > revision {
            return Err(Refusal::Future(get.revision));
        }
        let at = if get.revision > 0 { get.revision } else { revision };
        let limit = usize::try_from(get.limit).ok().filter(|limit| *limit > 0);
        let mut kvs = Vec::new();
        let mut count = 0;
        for (key, entry) in self.live_in(&get.range, at) {
            count += 1;
            if !get.count_only && limit.is_none_or(|limit| kvs.len() < limit) {
                let mut kv = entry.kv(key);
                if get.keys_only {
                    // etcd answers from its index then, which knows no leases either.
                    kv.value = Data::default();
                    kv.lease = 0;
                }
                kvs.push(kv);
            }
        }
        let more = !get.count_only && limit.is_some_and(|limit| count > limit);
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        Ok(Answer::Get { revision, kvs, more, count })
    }

    fn put(&mut self, put: &Put) -> Answer {
        let before = self.live(&put.key, i64::MAX).cloned();
        let modified = self.revision + 1;
        let entry = Entry {
            modified,
            create: before.as_ref().map_or(modified, |entry| entry.create),
            version: before.as_ref().map_or(0, |entry| entry.version) + 1,
            value: put.value.clone(),
            lease: put.lease,
        };
        self.push(&put.key, entry);
        let prev = before.filter(|_| put.prev_kv).map(|entry| entry.kv(&put.key));
        Answer::Put { revision: modified, prev }
    }

    fn delete(&mut self, delete: &Delete) -> Answer {
        let found: Vec<Kv> =
            self.live_in(&delete.range, i64::MAX).map(|(key, entry)| entry.kv(key)).collect();
        for kv in &found {
            self.remove(&kv.key);
        }
        let deleted = i64::try_from(found.len()).unwrap_or(i64::MAX);
        let prev = if delete.prev_kv { found } else { Vec::new() };
        Answer::Delete { revision: self.current(), deleted, prev }
    }

    fn remove(&mut self, key: &Data) {
        let modified = self.revision + 1;
        let entry = Entry { modified, create: 0, version: 0, value: Data::default(), lease: 0 };
        self.push(key, entry);
    }

    fn push(&mut self, key: &Data, entry: Entry) {
        let old = self.live(key, i64::MAX).map_or(0, |entry| entry.lease);
        self.attach(key, old, entry.lease);
        match self.keys.get_mut(key) {
            Some(versions) => versions.push(entry),
            None => {
                self.keys.insert(key.clone(), vec![entry]);
            }
        }
        self.pending.push(key.clone());
    }

    fn attach(&mut self, key: &Data, old: i64, new: i64) {
        if old == new {
            return;
        }
        if let Some(keys) = self.leases.get_mut(&old) {
            keys.remove(key);
        }
        if new != 0 {
            self.leases.entry(new).or_default().insert(key.clone());
        }
    }

    fn commit(&mut self) {
        if !self.pending.is_empty() {
            self.log.push(std::mem::take(&mut self.pending));
            self.revision += 1;
        }
    }

    fn pending_back(&mut self) {
        while let Some(key) = self.pending.pop() {
            let Some(versions) = self.keys.get_mut(&key) else { continue };
            let undone = versions.pop().map_or(0, |entry| entry.lease);
            let left = versions.last().map_or(0, |entry| entry.lease);
            self.attach(&key, undone, left);
        }
    }
}

fn last_at(versions: &[Entry], at: i64) -> Option<&Entry> {
    let after = versions.partition_point(|entry| entry.modified <= at);
    after.checked_sub(1).map(|index| &versions[index])
}

/// The condition for one pair, or for none.
fn relates(compare: &Compare, entry: Option<&Entry>) -> bool {
    let number = |of: fn(&Entry) -> i64, with: &i64| entry.map_or(0, of).cmp(with);
    let ordering = match (&compare.target, entry) {
        (Target::Value(_), None) => return false,
        (Target::Value(value), Some(entry)) => entry.value.cmp(value),
        (Target::Create(with), _) => number(|entry| entry.create, with),
        (Target::Modified(with), _) => number(|entry| entry.modified, with),
        (Target::Version(with), _) => number(|entry| entry.version, with),
        (Target::Lease(with), _) => number(|entry| entry.lease, with),
    };
    match compare.relation {
        Relation::Equal => ordering == Ordering::Equal,
        Relation::Greater => ordering == Ordering::Greater,
        Relation::Less => ordering == Ordering::Less,
        Relation::NotEqual => ordering != Ordering::Equal,
    }
}
