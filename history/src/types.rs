//! What a history is made of.
//!
//! Written by recorders and simulators, read by the judges. Plain data; must never judge.

use serde::{Deserialize, Serialize};

use super::data::{Data, KeyRange};

/// A pair as a store tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kv {
    /// The key.
    pub key: Data,
    /// The value; empty if only keys were asked for.
    pub value: Data,
    /// Revision at which the key came to be.
    pub create: i64,
    /// Revision of the last write to it.
    pub modified: i64,
    /// Writes since it came to be, the first included.
    pub version: i64,
    /// The lease it is attached to, 0 if none.
    #[serde(default)]
    pub lease: i64,
}

/// A range read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Get {
    /// Which keys.
    pub range: KeyRange,
    /// At which revision; 0 is now.
    pub revision: i64,
    /// At most so many pairs; 0 is all.
    pub limit: i64,
    /// May be answered from what a member has, without asking the others.
    pub serializable: bool,
    /// Leave out values and leases.
    pub keys_only: bool,
    /// Leave out pairs.
    pub count_only: bool,
}

/// A write of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Put {
    /// The key.
    pub key: Data,
    /// The value.
    pub value: Data,
    /// A lease to attach it to, 0 for none.
    pub lease: i64,
    /// Tell what was there before.
    pub prev_kv: bool,
}

/// A removal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Delete {
    /// Which keys.
    pub range: KeyRange,
    /// Tell what was there before.
    pub prev_kv: bool,
}

/// How a comparison compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// Equal.
    Equal,
    /// Greater.
    Greater,
    /// Less.
    Less,
    /// Not equal.
    NotEqual,
}

/// What a comparison compares with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The value; a missing key never matches.
    Value(Data),
    /// The revision at which the key came to be, 0 for a missing key.
    Create(i64),
    /// The revision of the last write, 0 for a missing key.
    Modified(i64),
    /// The version, 0 for a missing key.
    Version(i64),
    /// The lease, 0 for a missing key.
    Lease(i64),
}

/// A condition of a transaction; true if it is so for all keys in the range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// How.
    pub relation: Relation,
    /// With what.
    pub target: Target,
}

/// A transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Txn {
    /// The conditions, all to be true.
    pub compares: Vec<Compare>,
    /// What is done then: reads, writes, removals and transactions only.
    pub success: Vec<Request>,
    /// What is done otherwise.
    pub failure: Vec<Request>,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Read.
    Get(Get),
    /// Write.
    Put(Put),
    /// Remove.
    Delete(Delete),
    /// Several at once, depending on what is there.
    Txn(Txn),
    /// A lease. Its id must not be 0 and must be granted once in a history.
    Grant {
        /// Its id.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// The end of a lease and its keys.
    Revoke {
        /// Its id.
        id: i64,
    },
    /// The full time for a lease again.
    KeepAlive {
        /// Its id.
        id: i64,
    },
    /// Forget what was overwritten up to this revision.
    Compact {
        /// The oldest revision that remains readable.
        revision: i64,
    },
}

impl Request {
    /// The ranges that decide what the request does or that it changes. Leases are not resolved to
    /// their keys.
    pub fn footprint(&self) -> Vec<KeyRange> {
        let mut ranges = Vec::new();
        self.add_footprint(&mut ranges);
        ranges
    }

    fn add_footprint(&self, ranges: &mut Vec<KeyRange>) {
        match self {
            Request::Get(get) => ranges.push(get.range.clone()),
            Request::Put(put) => ranges.push(KeyRange::one(put.key.clone())),
            Request::Delete(delete) => ranges.push(delete.range.clone()),
            Request::Txn(txn) => {
                ranges.extend(txn.compares.iter().map(|compare| compare.range.clone()));
                for request in txn.success.iter().chain(&txn.failure) {
                    request.add_footprint(ranges);
                }
            }
            _ => {}
        }
    }

    /// May make a revision.
    pub fn may_write(&self) -> bool {
        match self {
            Request::Put(_) | Request::Delete(_) | Request::Revoke { .. } => true,
            Request::Txn(txn) => {
                txn.success.iter().chain(&txn.failure).any(|request| request.may_write())
            }
            _ => false,
        }
    }

    /// A member may answer it alone, from what it has. A transaction is so if all that it may do
    /// is, one without anything to do included.
    pub fn is_serializable(&self) -> bool {
        match self {
            Request::Get(get) => get.serializable,
            Request::Txn(txn) => txn
                .success
                .iter()
                .chain(&txn.failure)
                .all(|request| matches!(request, Request::Get(get) if get.serializable)),
            _ => false,
        }
    }

    /// Hands over all single writes, in either branch of transactions.
    pub fn each_put<'a>(&'a self, each: &mut impl FnMut(&'a Put)) {
        match self {
            Request::Put(put) => each(put),
            Request::Txn(txn) => {
                for request in txn.success.iter().chain(&txn.failure) {
                    request.each_put(each);
                }
            }
            _ => {}
        }
    }

    /// May write this value to this key.
    pub fn may_put(&self, key: &Data, value: &Data) -> bool {
        let mut found = false;
        self.each_put(&mut |put| found |= put.key == *key && put.value == *value);
        found
    }

    /// Has a single write, in either branch of transactions.
    pub fn has_put(&self) -> bool {
        let mut found = false;
        self.each_put(&mut |_| found = true);
        found
    }
}

/// What a client is told. `revision` is that of the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Request::Get`].
    Get {
        /// The store's revision when it was read, whatever revision was read.
        revision: i64,
        /// The pairs.
        kvs: Vec<Kv>,
        /// The limit left some out.
        more: bool,
        /// Keys in the range, whatever the limit.
        count: i64,
    },
    /// To [`Request::Put`].
    Put {
        /// The revision that it made.
        revision: i64,
        /// What was there before, if asked.
        prev: Option<Kv>,
    },
    /// To [`Request::Delete`].
    Delete {
        /// The revision that it made, or the store's if it removed nothing.
        revision: i64,
        /// Keys removed.
        deleted: i64,
        /// What was there before, if asked.
        prev: Vec<Kv>,
    },
    /// To [`Request::Txn`].
    Txn {
        /// The revision that it made, or the store's if it changed nothing; 0 inside of another.
        revision: i64,
        /// The conditions were true.
        succeeded: bool,
        /// One for each request of the branch.
        answers: Vec<Answer>,
    },
    /// To [`Request::Grant`].
    Grant {
        /// The store's.
        revision: i64,
        /// Seconds granted, which may be more than was asked.
        ttl: i64,
    },
    /// To [`Request::Revoke`].
    Revoke {
        /// The revision that it made, or the store's if there were no keys.
        revision: i64,
    },
    /// To [`Request::KeepAlive`].
    KeepAlive {
        /// Newest revision of the member that answered.
        revision: i64,
        /// Seconds from now; 0 if there is no such lease.
        ttl: i64,
    },
    /// To [`Request::Compact`].
    Compact {
        /// The store's.
        revision: i64,
    },
}

impl Answer {
    /// The revision of the header.
    pub fn revision(&self) -> i64 {
        match self {
            Answer::Get { revision, .. }
            | Answer::Put { revision, .. }
            | Answer::Delete { revision, .. }
            | Answer::Txn { revision, .. }
            | Answer::Grant { revision, .. }
            | Answer::Revoke { revision }
            | Answer::KeepAlive { revision, .. }
            | Answer::Compact { revision } => *revision,
        }
    }

    /// Says that something was written or removed. What a revocation did, its answer does not say.
    pub fn says_written(&self) -> bool {
        match self {
            Answer::Put { .. } => true,
            Answer::Delete { deleted, .. } => *deleted > 0,
            Answer::Txn { answers, .. } => answers.iter().any(Answer::says_written),
            _ => false,
        }
    }

    /// All pairs in it, those of inner answers included, with true if values were left out.
    pub(crate) fn kvs<'a>(&'a self, request: &'a Request, each: &mut impl FnMut(&'a Kv, bool)) {
        match (self, request) {
            (Answer::Get { kvs, .. }, Request::Get(get)) => {
                kvs.iter().for_each(|kv| each(kv, get.keys_only));
            }
            (Answer::Put { prev, .. }, _) => prev.iter().for_each(|kv| each(kv, false)),
            (Answer::Delete { prev, .. }, _) => prev.iter().for_each(|kv| each(kv, false)),
            (Answer::Txn { answers, succeeded, .. }, Request::Txn(txn)) => {
                let branch = if *succeeded { &txn.success } else { &txn.failure };
                for (answer, request) in answers.iter().zip(branch) {
                    answer.kvs(request, each);
                }
            }
            _ => {}
        }
    }
}

/// What became of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was answered.
    Known(Answer),
    /// It was refused, for certain without effect; the text of the error.
    Refused(String),
    /// Nobody knows: it took effect, does so at any later time, or never does.
    Unknown,
}

/// An operation of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Whose.
    pub client: u64,
    /// Who was asked: one run of one member, with a new number after every restart.
    pub member: u64,
    /// When it was called, ns.
    pub invoke: u64,
    /// When it returned or was given up, ns.
    pub ret: u64,
    /// What was asked.
    pub request: Request,
    /// What came of it.
    pub outcome: Outcome,
}

impl Operation {
    /// The answer, if there is one.
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Known(answer) => Some(answer),
            _ => None,
        }
    }

    /// It is certain that it had no effect.
    pub fn is_refused(&self) -> bool {
        matches!(self.outcome, Outcome::Refused(_))
    }
}

/// A change as a watch tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// A removal; then of the pair only key and revision are set.
    pub delete: bool,
    /// The pair as written.
    pub kv: Kv,
    /// What was there before, if asked.
    #[serde(default)]
    pub prev: Option<Kv>,
}

/// One response of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// When it came, ns.
    pub at: u64,
    /// The revision of its header.
    pub revision: i64,
    /// More of the same revisions follows in the next one.
    #[serde(default)]
    pub fragment: bool,
    /// None: progress, all up to `revision` has been told.
    pub events: Vec<Event>,
}

/// A watch and all that it brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Whose.
    pub client: u64,
    /// Who was asked.
    pub member: u64,
    /// Which keys.
    pub range: KeyRange,
    /// The first revision it asked for, 0 for all after `created`.
    pub start: i64,
    /// The revision of the header that confirmed it.
    pub created: i64,
    /// What was there before was asked for.
    #[serde(default)]
    pub prev_kv: bool,
    /// Large responses may come in pieces.
    #[serde(default)]
    pub fragment: bool,
    /// In the order of arrival.
    pub batches: Vec<Batch>,
}

/// What a member says about its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hash {
    /// Who.
    pub member: u64,
    /// Up to which revision.
    pub revision: i64,
    /// From which revision on.
    pub compacted: i64,
    /// The sum.
    pub hash: u32,
}

/// The store before the first operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Its revision; 1 for a new store.
    pub revision: i64,
    /// All its pairs.
    #[serde(default)]
    pub kvs: Vec<Kv>,
}

impl Default for Start {
    fn default() -> Self {
        Start { revision: 1, kvs: Vec::new() }
    }
}

/// A history. The order of operations within it means nothing; their times do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// What was there before.
    pub start: Start,
    /// What was asked.
    pub operations: Vec<Operation>,
    /// What was watched.
    pub watches: Vec<Watch>,
    /// What members said about their data.
    pub hashes: Vec<Hash>,
}
