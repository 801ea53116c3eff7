//! Where an answer differs from what it should be, and which key shows it.
//!
//! Used by [`super::linear`] for each answer. Text is made only when it is asked for: a search
//! meets many differences, and tells one. Must never name a key that is the same in both.

use std::cmp::Ordering;
use std::fmt::Debug;

use super::data::Data;
use super::types::{Answer, Kv, Request, Txn};

/// The first difference.
pub(crate) struct Difference<'a> {
    /// The part of the request that shows it.
    pub(crate) request: &'a Request,
    /// Which keys.
    pub(crate) reason: Reason,
    /// The field.
    name: &'static str,
    fields: (Box<dyn Debug + 'a>, Box<dyn Debug + 'a>),
}

/// Which keys have to do with a difference.
pub(crate) enum Reason {
    /// This one alone.
    Key(Data),
    /// The conditions of the transaction.
    Conditions,
    /// All of the request.
    Request,
}

impl Difference<'_> {
    /// In words.
    pub(crate) fn tell(&self) -> String {
        let (expected, actual) = &self.fields;
        format!("{} should be {expected:?} and is {actual:?}", self.name)
    }
}

/// The first field in which an answer is not what it should be.
pub(crate) fn difference<'a>(
    request: &'a Request,
    expected: &'a Answer,
    actual: &'a Answer,
) -> Option<Difference<'a>> {
    let field = |name, expected, actual| field(request, name, expected, actual);
    let (expected_kvs, actual_kvs) = match (expected, actual) {
        (Answer::Revoke { .. } | Answer::Compact { .. }, _) | (_, Answer::KeepAlive { .. }) => {
            return field("revision", expected.revision(), actual.revision());
        }
        (
            Answer::Get { revision, kvs, more, count },
            Answer::Get { revision: revision2, kvs: kvs2, more: more2, count: count2 },
        ) => {
            let other = field("revision", *revision, *revision2)
                .or_else(|| field("count", *count, *count2))
                .or_else(|| field("more", i64::from(*more), i64::from(*more2)));
            if let Some(mut other) = other {
                if let Some(key) = first_key(kvs, kvs2) {
                    other.reason = Reason::Key(key);
                }
                return Some(other);
            }
            (kvs, kvs2)
        }
        (Answer::Put { revision, prev }, Answer::Put { revision: revision2, prev: prev2 }) => {
            return field("revision", *revision, *revision2).or_else(|| {
                (prev != prev2).then(|| made(request, "prev_kv", Reason::Request, prev, prev2))
            });
        }
        (
            Answer::Delete { revision, deleted, prev },
            Answer::Delete { revision: revision2, deleted: deleted2, prev: prev2 },
        ) => {
            let other = field("revision", *revision, *revision2)
                .or_else(|| field("deleted", *deleted, *deleted2));
            if other.is_some() {
                return other;
            }
            (prev, prev2)
        }
        (
            Answer::Txn { revision, succeeded, answers },
            Answer::Txn { revision: revision2, succeeded: succeeded2, answers: answers2 },
        ) => {
            if succeeded != succeeded2 {
                let reason = Reason::Conditions;
                return Some(made(request, "succeeded", reason, succeeded, succeeded2));
            }
            return field("revision", *revision, *revision2)
                .or_else(|| field("number of answers", length(answers), length(answers2)))
                .or_else(|| inner(request, *succeeded, answers, answers2));
        }
        _ => return Some(made(request, "kind of answer", Reason::Request, expected, actual)),
    };
    let pairs = expected_kvs.iter().zip(actual_kvs);
    let pair = pairs.into_iter().find(|(expected, actual)| expected != actual);
    let key = || first_key(expected_kvs, actual_kvs).map_or(Reason::Request, Reason::Key);
    pair.map(|(expected, actual)| made(request, "pair", key(), expected, actual)).or_else(|| {
        let lengths = (length(expected_kvs), length(actual_kvs));
        let mut other = field("number of pairs", lengths.0, lengths.1)?;
        other.reason = key();
        Some(other)
    })
}

fn inner<'a>(
    request: &'a Request,
    succeeded: bool,
    expected: &'a [Answer],
    actual: &'a [Answer],
) -> Option<Difference<'a>> {
    let Request::Txn(Txn { success, failure, .. }) = request else { return None };
    let branch = if succeeded { success } else { failure };
    let mut answers = branch.iter().zip(expected.iter().zip(actual));
    answers.find_map(|(request, (expected, actual))| difference(request, expected, actual))
}

fn field<'a>(
    request: &'a Request,
    name: &'static str,
    expected: i64,
    actual: i64,
) -> Option<Difference<'a>> {
    (expected != actual).then(|| Difference {
        request,
        reason: Reason::Request,
        name,
        fields: (Box::new(expected), Box::new(actual)),
    })
}

fn made<'a, T: Debug>(
    request: &'a Request,
    name: &'static str,
    reason: Reason,
    expected: &'a T,
    actual: &'a T,
) -> Difference<'a> {
    Difference { request, reason, name, fields: (Box::new(expected), Box::new(actual)) }
}

fn length<T>(list: &[T]) -> i64 {
    i64::try_from(list.len()).unwrap_or(i64::MAX)
}

/// The first key of which two lists in the order of keys tell different things.
fn first_key(expected: &[Kv], actual: &[Kv]) -> Option<Data> {
    let at = expected.iter().zip(actual).take_while(|(one, other)| one == other).count();
    match (expected.get(at), actual.get(at)) {
        (Some(one), Some(other)) => match one.key.cmp(&other.key) {
            Ordering::Less | Ordering::Equal => Some(one.key.clone()),
            Ordering::Greater => Some(other.key.clone()),
        },
        (Some(only), None) | (None, Some(only)) => Some(only.key.clone()),
        (None, None) => None,
    }
}
