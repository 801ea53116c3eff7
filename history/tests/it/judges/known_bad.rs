//! The catalogue: each test is one thing that a store must not do, and the sentence that says so.
//! Beside most stands the nearest thing that it may do.

use etcore_history::types::{Answer, Compare, Get, Hash, Outcome, Relation, Request};
use etcore_history::types::{Put, Target, Txn};
use etcore_history::{
    History, KeyRange, compaction, durable, hash, judge, lease, linear, realtime, watch,
};

use super::builder::{
    Builder, delete, deleted, event, found, get, get_at, get_serializable, kv, put, put_leased,
    removal, written,
};

#[track_caller]
fn is_bad(builder: Builder, property: &str) {
    match judge(&builder.0) {
        Ok(_) => panic!("accepted, though not so: {property}"),
        Err(violation) => assert_eq!(violation.property, property, "{violation}"),
    }
}

#[track_caller]
fn is_good(builder: Builder) {
    if let Err(violation) = judge(&builder.0) {
        panic!("{violation}");
    }
}

fn refused(text: &str) -> Outcome {
    Outcome::Refused(format!("etcdserver: {text}"))
}

fn granted(ttl: i64, revision: i64) -> Outcome {
    Outcome::Known(Answer::Grant { revision, ttl })
}

#[test]
fn the_plainest_history_passes() {
    is_good(Builder::three().call((60, 70), get("a"), found(4, &[kv("a", "3", 2, 4, 2)])));
    is_good(Builder::default());
}

#[test]
fn a_stale_linearizable_read() {
    let stale = found(3, &[kv("a", "1", 2, 2, 1)]);
    is_bad(Builder::three().call((60, 70), get("a"), stale.clone()), realtime::CURRENT);
    is_good(Builder::three().call((45, 70), get("a"), stale.clone()));
    is_good(Builder::three().call_at(1, (60, 70), get_serializable("a"), stale));
}

#[test]
fn a_linearizable_read_behind_another_reader() {
    let old = found(1, &[]);
    let new = found(2, &[kv("a", "1", 2, 2, 1)]);
    let history = |second: Outcome| {
        Builder::default()
            .call((0, 100), put("a", "1"), written(2))
            .call((10, 20), get("a"), new.clone())
            .call((30, 40), get("a"), second)
    };
    is_bad(history(old), realtime::CURRENT);
    is_good(history(new.clone()));
}

#[test]
fn a_stale_value_under_a_current_header() {
    let stale = found(4, &[kv("a", "1", 2, 2, 1)]);
    is_bad(Builder::three().call((60, 70), get("a"), stale), durable::KEPT);
    let value = found(4, &[kv("a", "1", 2, 4, 2)]);
    is_bad(Builder::three().call((60, 70), get("a"), value), linear::TRUE);
}

#[test]
fn a_serializable_read_of_a_state_that_never_was() {
    let mixed = found(3, &[kv("a", "3", 2, 4, 2)]);
    is_bad(Builder::three().call_at(1, (60, 70), get_serializable("a"), mixed), linear::TRUE);
}

#[test]
fn serializable_reads_that_go_back_at_one_member() {
    let new = found(4, &[kv("a", "3", 2, 4, 2)]);
    let old = found(2, &[kv("a", "1", 2, 2, 1)]);
    let history = |member: u64| {
        Builder::three().call_at(1, (60, 70), get_serializable("a"), new.clone()).call_at(
            member,
            (80, 90),
            get_serializable("a"),
            old.clone(),
        )
    };
    is_bad(history(1), realtime::MEMBER);
    is_good(history(2));
}

#[test]
fn a_lost_acknowledged_write() {
    let gone = found(4, &[]);
    is_bad(Builder::three().call_at(1, (60, 70), get("b"), gone), durable::KEPT);
    let at = found(4, &[kv("a", "1", 2, 2, 1)]);
    is_bad(Builder::three().call_at(1, (60, 70), get_at("a", 4), at), durable::KEPT);
}

#[test]
fn acknowledged_writes_whose_revisions_are_given_again() {
    let history = Builder::three().call_at(1, (60, 70), put("c", "4"), written(4));
    is_bad(history, linear::ONE_WRITE);
}

#[test]
fn a_store_that_forgot_its_last_writes_and_says_so() {
    is_bad(Builder::three().call_at(1, (60, 70), get("z"), found(3, &[])), realtime::CURRENT);
}

#[test]
fn a_write_that_is_applied_twice() {
    let twice = found(3, &[kv("a", "1", 2, 3, 2)]);
    let once = || Builder::default().call((0, 10), put("a", "1"), written(2));
    is_bad(once().call((20, 30), get("a"), twice), linear::ONCE);
}

#[test]
fn an_unknown_write_that_appears_twice() {
    let unknown = || Builder::default().call((0, 10), put("a", "1"), Outcome::Unknown);
    let first = found(2, &[kv("a", "1", 2, 2, 1)]);
    let second = found(4, &[kv("a", "1", 2, 4, 2)]);
    let history = |last: Outcome| {
        unknown()
            .call((20, 30), get("a"), first.clone())
            .call((40, 50), put("b", "2"), written(3))
            .call((60, 70), get("a"), last)
    };
    is_bad(history(second), linear::ONCE);
    is_good(history(found(3, &[kv("a", "1", 2, 2, 1)])));
}

#[test]
fn an_unknown_write_may_come_late_but_not_early() {
    let late = found(3, &[kv("a", "1", 3, 3, 1)]);
    let history = Builder::default()
        .call((0, 10), put("a", "1"), Outcome::Unknown)
        .call((20, 30), put("b", "2"), written(2))
        .call((40, 50), get("a"), found(2, &[]))
        .call((60, 70), get("a"), late);
    is_good(history);
    let early = Builder::default()
        .call((0, 10), get("a"), found(2, &[kv("a", "1", 2, 2, 1)]))
        .call((20, 30), put("a", "1"), Outcome::Unknown);
    is_bad(early, linear::ONCE);
}

#[test]
fn a_write_that_is_seen_and_then_gone() {
    let history = Builder::default()
        .call((0, 10), put("a", "1"), Outcome::Unknown)
        .call((20, 30), get("a"), found(2, &[kv("a", "1", 2, 2, 1)]))
        .call((40, 50), get("a"), found(2, &[]));
    is_bad(history, linear::TRUE);
    let back = Builder::default()
        .call((0, 10), put("a", "1"), Outcome::Unknown)
        .call((20, 30), get("a"), found(2, &[kv("a", "1", 2, 2, 1)]))
        .call((40, 50), get("a"), found(1, &[]));
    is_bad(back, realtime::CURRENT);
}

#[test]
fn a_read_of_a_write_that_nobody_has_called_yet() {
    let history = Builder::default()
        .call((0, 10), get("a"), found(2, &[kv("a", "1", 2, 2, 1)]))
        .call((20, 30), put("a", "1"), written(2));
    is_bad(history, realtime::CAUSE);
}

#[test]
fn revisions_that_do_not_follow_time() {
    let history = Builder::default().call((0, 10), put("a", "1"), written(3)).call(
        (20, 30),
        put("b", "2"),
        written(2),
    );
    is_bad(history, realtime::SEQUENCE);
    let at_once = Builder::default().call((0, 25), put("a", "1"), written(3)).call(
        (20, 30),
        put("b", "2"),
        written(2),
    );
    is_good(at_once);
}

#[test]
fn a_revision_that_nobody_made() {
    let history = Builder::three().call((60, 70), put("c", "4"), written(6));
    is_bad(history, linear::EXPLAINED);
    let with_unknown = Builder::three().call((55, 56), put("d", "5"), Outcome::Unknown).call(
        (60, 70),
        put("c", "4"),
        written(6),
    );
    is_good(with_unknown);
}

fn txn(success: Vec<Request>) -> Request {
    let compare = Compare {
        range: KeyRange::one("a"),
        relation: Relation::Equal,
        target: Target::Version(0),
    };
    Request::Txn(Txn { compares: vec![compare], success, failure: Vec::new() })
}

#[test]
fn a_dirty_read_from_a_refused_transaction() {
    let future = Request::Get(Get { revision: 9, ..Get::default() });
    let history = |then: Outcome| {
        let text = "mvcc: required revision is a future revision";
        Builder::default()
            .call((0, 10), txn(vec![put("a", "dirty"), future.clone()]), refused(text))
            .call((20, 30), get("a"), then)
    };
    is_bad(history(found(2, &[kv("a", "dirty", 2, 2, 1)])), linear::REFUSED);
    is_good(history(found(1, &[])));
    let unseen = Builder::default()
        .call((0, 10), put("b", "1"), written(2))
        .call((20, 30), put("a", "dirty"), refused("too many requests"))
        .call((40, 50), get("a"), found(2, &[kv("a", "dirty", 2, 2, 1)]));
    is_bad(unseen, linear::REFUSED);
}

#[test]
fn a_transaction_that_takes_the_wrong_branch() {
    let answer = |succeeded: bool, answers: Vec<Answer>, revision: i64| {
        Outcome::Known(Answer::Txn { revision, succeeded, answers })
    };
    let put_answer = vec![Answer::Put { revision: 5, prev: None }];
    let asked = txn(vec![put("c", "4")]);
    let wrong = answer(true, put_answer, 5);
    is_bad(Builder::three().call((60, 70), asked.clone(), wrong), linear::TRUE);
    is_good(Builder::three().call((60, 70), asked, answer(false, Vec::new(), 4)));
}

#[test]
fn half_of_a_transaction() {
    let both = txn(vec![put("a", "1"), put("b", "2")]);
    let history = |kvs: &[etcore_history::types::Kv]| {
        let all = Request::Get(Get { range: KeyRange::all(), ..Get::default() });
        Builder::default().call((0, 10), both.clone(), Outcome::Unknown).call(
            (20, 30),
            all,
            found(2, kvs),
        )
    };
    is_bad(history(&[kv("a", "1", 2, 2, 1)]), linear::TRUE);
    is_good(history(&[kv("a", "1", 2, 2, 1), kv("b", "2", 2, 2, 1)]));
}

#[test]
fn a_removal_that_counts_wrong() {
    is_bad(Builder::three().call((60, 70), delete("a"), deleted(4, 0)), linear::TRUE);
    is_bad(Builder::three().call((60, 70), delete("a"), deleted(5, 2)), linear::TRUE);
    is_bad(Builder::three().call((60, 70), delete("z"), deleted(5, 1)), linear::TRUE);
    is_good(Builder::three().call((60, 70), delete("a"), deleted(5, 1)));
}

#[test]
fn a_wrong_pair_before() {
    let asked =
        Request::Put(Put { key: "a".into(), value: "4".into(), prev_kv: true, ..Put::default() });
    let told = |prev| Outcome::Known(Answer::Put { revision: 5, prev });
    is_bad(Builder::three().call((60, 70), asked.clone(), told(None)), linear::TRUE);
    let old = told(Some(kv("a", "1", 2, 2, 1)));
    is_bad(Builder::three().call((60, 70), asked.clone(), old), linear::TRUE);
    let right = told(Some(kv("a", "3", 2, 4, 2)));
    is_good(Builder::three().call((60, 70), asked, right));
}

#[test]
fn the_past_is_rewritten() {
    let changed = found(4, &[kv("a", "other", 2, 2, 1)]);
    is_bad(Builder::three().call((60, 70), get_at("a", 3), changed), linear::TRUE);
    is_good(Builder::three().call((60, 70), get_at("a", 3), found(4, &[kv("a", "1", 2, 2, 1)])));
}

#[test]
fn a_compaction_that_is_undone() {
    let compacted = Outcome::Known(Answer::Compact { revision: 4 });
    let history =
        |outcome: Outcome| {
            Builder::three()
                .call((60, 70), Request::Compact { revision: 4 }, compacted.clone())
                .call((80, 90), get_at("a", 3), outcome)
        };
    let text = "mvcc: required revision has been compacted";
    is_bad(history(found(4, &[kv("a", "1", 2, 2, 1)])), compaction::KEPT);
    is_good(history(refused(text)));
    is_bad(Builder::three().call((60, 70), get_at("a", 3), refused(text)), compaction::CAUSE);
}

#[test]
fn a_told_revision_that_is_still_to_come() {
    let text = "mvcc: required revision is a future revision";
    is_bad(Builder::three().call((60, 70), get_at("a", 4), refused(text)), compaction::FUTURE);
    is_good(Builder::three().call((60, 70), get_at("a", 5), refused(text)));
}

/// A lease of 5 s, granted at once, with the key a.
fn leased() -> Builder {
    Builder::default()
        .call((0, 10), Request::Grant { id: 7, ttl: 5 }, granted(5, 1))
        .call((20, 30), put_leased("a", "1", 7), written(2))
        .call((32, 40), put_leased("b", "2", 7), written(3))
}

#[test]
fn a_lease_that_ends_early() {
    is_bad(leased().call((3_000, 4_000), get("a"), found(4, &[])), lease::EARLY);
    is_good(leased().call((3_000, 6_000), get("a"), found(4, &[])));
    let renewed = Outcome::Known(Answer::KeepAlive { revision: 3, ttl: 5 });
    let history = |until: u64| {
        leased().call((3_000, 3_010), Request::KeepAlive { id: 7 }, renewed.clone()).call(
            (5_500, until),
            get("a"),
            found(4, &[]),
        )
    };
    is_bad(history(7_900), lease::EARLY);
    is_good(history(8_100));
    let revoked = |outcome: Outcome| {
        leased().call((50, 60), Request::Revoke { id: 7 }, outcome).call(
            (70, 80),
            get("a"),
            found(4, &[]),
        )
    };
    is_good(revoked(Outcome::Unknown));
    is_good(revoked(Outcome::Known(Answer::Revoke { revision: 4 })));
}

#[test]
fn an_early_revision_that_an_unknown_write_may_have_made_is_not_held_against_a_lease() {
    // Revision 4 came at three seconds and the keys were gone at six: the put may be either.
    is_good(
        leased()
            .call((100, 9_000), put("c", "3"), Outcome::Unknown)
            .call((3_000, 3_010), get("z"), found(4, &[]))
            .call((6_000, 6_010), get("a"), found(5, &[])),
    );
}

#[test]
fn a_lease_that_is_missing_early() {
    let missing = Outcome::Known(Answer::KeepAlive { revision: 3, ttl: 0 });
    is_bad(leased().call((100, 110), Request::KeepAlive { id: 7 }, missing), lease::EARLY);
    let refusal = refused("requested lease not found");
    is_bad(leased().call((100, 110), put_leased("c", "3", 7), refusal), lease::EARLY);
}

#[test]
fn a_lease_that_comes_back() {
    let renewed = Outcome::Known(Answer::KeepAlive { revision: 4, ttl: 5 });
    let revoked = Outcome::Known(Answer::Revoke { revision: 4 });
    let history = leased().call((50, 60), Request::Revoke { id: 7 }, revoked).call(
        (70, 80),
        Request::KeepAlive { id: 7 },
        renewed,
    );
    is_bad(history, lease::GONE);
}

#[test]
fn a_lease_that_leaves_a_key() {
    let all = Request::Get(Get { range: KeyRange::all(), ..Get::default() });
    let left = found(4, &[kv("b", "2", 3, 3, 1)]);
    let mut history = leased().call((6_000, 7_000), all, left);
    if let Outcome::Known(Answer::Get { kvs, .. }) =
        &mut history.0.operations.last_mut().unwrap().outcome
    {
        kvs[0].lease = 7;
    }
    is_bad(history, linear::EXPLAINED);
    let torn = leased().watch(2, vec![(4, vec![removal("a", 4)]), (5, vec![removal("b", 5)])]);
    let mut torn = torn;
    let leased_event = |key, value, at| {
        let mut event = event(key, value, at, 1);
        event.kv.lease = 7;
        event
    };
    let first = vec![leased_event("a", "1", 2), leased_event("b", "2", 3)];
    torn.0.watches[0].batches.insert(
        0,
        etcore_history::types::Batch { at: 1, revision: 3, fragment: false, events: first },
    );
    is_bad(torn, lease::TOGETHER);
}

fn watched(responses: Vec<(i64, Vec<etcore_history::types::Event>)>) -> Builder {
    Builder::three().watch(2, responses)
}

#[test]
fn watch_events_that_are_missing_twice_or_out_of_order() {
    let (one, two, three) = (event("a", "1", 2, 1), event("b", "2", 3, 1), event("a", "3", 4, 2));
    let mut three = three;
    three.kv.create = 2;
    let batch = |events: &[&etcore_history::types::Event]| {
        let events: Vec<_> = events.iter().map(|event| (*event).clone()).collect();
        (events.iter().map(|event| event.kv.modified).max().unwrap_or(4), events)
    };
    is_good(watched(vec![batch(&[&one]), batch(&[&two, &three]), batch(&[])]));
    is_good(watched(vec![batch(&[&one])]));
    is_bad(watched(vec![batch(&[&one]), batch(&[&three])]), watch::COMPLETE);
    is_bad(watched(vec![batch(&[&one]), batch(&[])]), watch::COMPLETE);
    is_bad(watched(vec![batch(&[&one]), batch(&[&one])]), watch::UNIQUE);
    is_bad(watched(vec![batch(&[&one]), batch(&[&three]), batch(&[&two])]), watch::ORDERED);
    is_bad(watched(vec![batch(&[&two, &one])]), watch::ORDERED);
    let behind = (3, vec![one.clone(), two.clone(), three.clone()]);
    is_bad(watched(vec![behind]), watch::HEADER);
    let mut changed = two.clone();
    changed.kv.version = 2;
    is_bad(watched(vec![batch(&[&one]), batch(&[&changed])]), watch::AS_WRITTEN);
    let mut history = watched(vec![batch(&[&one]), batch(&[&two])]);
    history.0.watches[0].start = 3;
    is_bad(history, watch::START);
}

#[test]
fn a_torn_watch_response() {
    let asked = txn(vec![put("a", "1"), put("b", "2")]);
    let answers =
        vec![Answer::Put { revision: 2, prev: None }, Answer::Put { revision: 2, prev: None }];
    let told = Outcome::Known(Answer::Txn { revision: 2, succeeded: true, answers });
    let (one, two) = (event("a", "1", 2, 1), event("b", "2", 2, 1));
    let history = |responses| {
        Builder::default().call((0, 10), asked.clone(), told.clone()).watch(2, responses)
    };
    is_good(history(vec![(2, vec![one.clone(), two.clone()])]));
    is_bad(history(vec![(2, vec![one.clone()]), (2, vec![two.clone()])]), watch::WHOLE);
    is_bad(history(vec![(2, vec![one.clone()])]), watch::WHOLE);
    is_bad(history(vec![(2, vec![two.clone(), one.clone()])]), watch::COMPLETE);
    let mut pieces = history(vec![(2, vec![one.clone()]), (2, vec![two.clone()])]);
    pieces.0.watches[0].fragment = true;
    pieces.0.watches[0].batches[0].fragment = true;
    is_good(pieces);
}

#[test]
fn an_event_of_a_write_that_never_was() {
    let nowhere = vec![(5, vec![event("z", "9", 5, 1)])];
    let mut history = Builder::three().watch(5, nowhere);
    history.0.watches[0].created = 4;
    is_bad(history, linear::EXPLAINED);
}

#[test]
fn members_that_differ() {
    let sum = |member, hash| Hash { member, revision: 4, compacted: -1, hash };
    let mut history: History = Builder::three().0;
    history.hashes = vec![sum(1, 5), sum(2, 5)];
    is_good(Builder(history.clone()));
    history.hashes.push(sum(3, 6));
    is_bad(Builder(history), hash::EQUAL);
}
