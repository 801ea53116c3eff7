use std::collections::BTreeMap;

use etcore_engine::testing::prng::Prng;
use etcore_engine::types::Revision;

use super::*;
use crate::kv::pieces::reading::{ids_of, keys_of};

const SETTINGS: Settings = Settings { ttl_s_min: 2, checkpoint_ms: None };
const CHECKPOINT_MS: u64 = 300_000;

fn lessor(settings: Settings) -> Lessor {
    Lessor::recover(settings, std::iter::empty(), Attachments::default()).unwrap()
}

fn primary(settings: Settings) -> Lessor {
    let mut lessor = lessor(settings);
    lessor.promote(0, 0);
    lessor
}

/// Looks at everything that is to be looked at.
fn collect(lessor: &mut Lessor, now_ms: u64) {
    for _ in 0..=2 * lessor.len() / limits::LEASE_EXPIRIES_PER_TURN {
        lessor.collect_expired(now_ms);
    }
}

/// Everything that would be proposed now, without pacing.
fn expired(lessor: &mut Lessor, now_ms: u64) -> Vec<i64> {
    collect(lessor, now_ms);
    std::iter::from_fn(|| lessor.next_expired(now_ms)).collect()
}

fn keys(lessor: &Lessor, id: i64) -> Vec<&[u8]> {
    lessor.keys(id).map(|key| &**key).collect()
}

#[test]
fn a_grant_is_judged_as_etcd_judges_it() {
    let mut lessor = primary(SETTINGS);
    assert_eq!(lessor.check_grant(0, 10), Err(EtcdError::LeaseNotFound));
    assert_eq!(lessor.check_grant(1, TTL_S_MAX + 1), Err(EtcdError::LeaseTtlTooLarge));
    for short in [i64::MIN, -1, 0, 1, 2] {
        assert_eq!(lessor.check_grant(1, short), Ok(2));
    }
    assert_eq!(lessor.check_grant(-7, TTL_S_MAX), Ok(TTL_S_MAX));
    lessor.grant(-7, TTL_S_MAX, 5);
    assert_eq!(lessor.check_grant(-7, 10), Err(EtcdError::LeaseExist));
    let left = lessor.time_to_live(-7, 5).unwrap();
    assert_eq!(left, TimeToLive { left_s: TTL_S_MAX - 1, granted_s: TTL_S_MAX });
}

#[test]
fn a_lease_ends_at_its_deadline_and_not_before() {
    let mut lessor = primary(SETTINGS);
    lessor.grant(1, 10, 1000);
    assert!(expired(&mut lessor, 11_000).is_empty());
    assert_eq!(lessor.next_look_ms(), Some(11_001));
    assert_eq!(lessor.time_to_live(1, 11_000).unwrap().left_s, 0);
    assert_eq!(lessor.renew(1, 11_000), Renewal::Renewed(10));
    assert!(expired(&mut lessor, 21_000).is_empty());
    assert_eq!(lessor.renew(1, 21_001), Renewal::Expired, "before anybody has looked");
    assert_eq!(expired(&mut lessor, 21_001), [1]);
    assert_eq!(lessor.renew(1, 21_002), Renewal::Expired);
    assert_eq!(lessor.time_to_live(1, 23_500).unwrap().left_s, -2, "as etcd tells it");
    assert!(lessor.revoke(1).unwrap().had_expired);
    assert_eq!(lessor.renew(1, 21_003), Renewal::NotFound);
    assert!(lessor.revoke(1).is_none() && lessor.time_to_live(1, 0).is_none());
}

#[test]
fn a_revocation_that_got_lost_is_proposed_again() {
    let mut lessor = primary(SETTINGS);
    lessor.grant(1, 2, 0);
    assert_eq!(expired(&mut lessor, 2001), [1]);
    assert!(expired(&mut lessor, 5000).is_empty());
    assert_eq!(expired(&mut lessor, 5001), [1]);
    lessor.revoke(1);
    assert!(expired(&mut lessor, 60_000).is_empty());
}

#[test]
fn a_lease_that_was_revoked_and_granted_anew_lives_its_own_life() {
    let mut lessor = primary(SETTINGS);
    lessor.grant(1, 2, 0);
    lessor.collect_expired(2001);
    let revoked = lessor.revoke(1).unwrap();
    assert!(revoked.had_expired, "a client was quicker than the proposal");
    lessor.grant(1, 2, 2002);
    assert!(expired(&mut lessor, 4002).is_empty());
    assert_eq!(expired(&mut lessor, 4003), [1]);
}

#[test]
fn keys_move_between_leases_and_go_with_theirs() {
    let mut lessor = lessor(SETTINGS);
    lessor.grant(1, 10, 0);
    lessor.grant(2, 10, 0);
    for key in [&b"c"[..], b"a", b"b", b"a"] {
        lessor.set_item(key, 1);
    }
    assert_eq!(keys(&lessor, 1), [b"a", b"b", b"c"]);
    lessor.set_item(b"b", 2);
    lessor.set_item(b"c", 0);
    lessor.set_item(b"x", 0);
    lessor.set_item(b"a", 9);
    assert!(keys(&lessor, 1).is_empty(), "the last was put with a lease that does not exist");
    assert_eq!(keys(&lessor, 2), [b"b"]);
    lessor.revoke(2);
    assert!(lessor.items.is_empty());
}

#[test]
fn only_a_primary_lessor_knows_deadlines() {
    let mut lessor = lessor(SETTINGS);
    lessor.grant(5, 10, 0);
    lessor.grant(3, 20, 0);
    assert!(expired(&mut lessor, u64::MAX / 2).is_empty());
    assert_eq!(lessor.list(), [3, 5]);
    lessor.promote(1_000_000, 1000);
    assert_eq!(lessor.list(), [5, 3]);
    lessor.collect_expired(1_000_000);
    assert_eq!(lessor.next_look_ms(), Some(1_011_001), "the TTL and an election timeout");
    lessor.collect_expired(1_011_001);
    lessor.demote();
    assert!(!lessor.has_overdue() && expired(&mut lessor, u64::MAX / 2).is_empty());
    lessor.promote(2_000_000, 0);
    assert_eq!(lessor.time_to_live(5, 2_000_000).unwrap().left_s, 9, "it starts anew");
}

#[test]
fn leases_that_would_end_together_after_an_election_are_spread() {
    let mut lessor = lessor(SETTINGS);
    let count = limits::LEASE_REVOKES_PER_SECOND.cast_signed() * 4;
    for id in 1..=count {
        lessor.grant(id, 10, 0);
    }
    lessor.promote(0, 1000);
    let before = lessor.births;
    collect(&mut lessor, 10_001);
    assert_eq!((lessor.births, lessor.overdue.len()), (before, 0));
    let mut by_second = BTreeMap::<u64, u64>::new();
    for (deadline_ms, _) in &lessor.agenda {
        assert!(*deadline_ms > 11_000, "never early");
        *by_second.entry(deadline_ms / 1000).or_default() += 1;
    }
    assert!(by_second.len() >= 5, "{by_second:?}");
    for (second, expiries) in by_second {
        assert!(expiries <= limits::LEASE_REVOKES_PER_SECOND, "{expiries} in second {second}");
    }
}

#[test]
fn long_leases_are_checkpointed_and_start_where_they_were() {
    let settings = Settings { checkpoint_ms: Some(CHECKPOINT_MS), ..SETTINGS };
    let mut lessor = primary(settings);
    lessor.grant(1, 3600, 0);
    lessor.grant(2, 300, 0);
    let due_checkpoints = |lessor: &mut Lessor, now_ms| {
        lessor.collect_expired(now_ms);
        lessor.due_checkpoints(now_ms, 10)
    };
    assert!(due_checkpoints(&mut lessor, CHECKPOINT_MS - 1).is_empty());
    let due = due_checkpoints(&mut lessor, CHECKPOINT_MS);
    assert_eq!(due, [(1, 3300)], "the other is too short");
    assert!(lessor.checkpoint(1, 3300, CHECKPOINT_MS + 5));
    assert_eq!(due_checkpoints(&mut lessor, 2 * CHECKPOINT_MS + 5), [(1, 3000)], "rounded up");
    let rows = [lessor.row(1).unwrap(), lessor.row(2).unwrap()];
    let rows = rows.iter().map(|row| (&b""[..], &row[..]));
    let mut other = Lessor::recover(settings, rows, Attachments::default()).unwrap();
    other.promote(0, 1000);
    assert_eq!(other.time_to_live(1, 0).unwrap(), TimeToLive { left_s: 3300, granted_s: 3600 });
    assert_eq!(other.time_to_live(2, 0).unwrap(), TimeToLive { left_s: 300, granted_s: 300 });
    // A renewal gives the whole TTL again, once the checkpoint is cleared by an entry.
    assert_eq!(other.renew(1, 10), Renewal::ClearFirst(true));
    assert_eq!(other.renew(1, 10), Renewal::ClearFirst(false));
    other.clearing_failed(1);
    assert_eq!(other.renew(1, 10), Renewal::ClearFirst(true));
    other.checkpoint(1, 0, 20);
    assert_eq!(other.renew(1, 20), Renewal::Renewed(3600));
    assert!(!other.checkpoint(77, 5, 20));
}

#[test]
fn a_checkpoint_on_its_way_takes_nothing_from_a_renewal() {
    let mut lessor = primary(Settings { checkpoint_ms: Some(CHECKPOINT_MS), ..SETTINGS });
    lessor.grant(1, 3600, 0);
    lessor.collect_expired(CHECKPOINT_MS);
    assert_eq!(lessor.due_checkpoints(CHECKPOINT_MS, 10), [(1, 3300)]);
    // Applied after the renewal, it would leave 3,300 s of a lease that was promised 3,600.
    assert_eq!(lessor.renew(1, CHECKPOINT_MS + 1), Renewal::ClearFirst(true));
    lessor.checkpoint(1, 3300, CHECKPOINT_MS + 2);
    assert_eq!(lessor.renew(1, CHECKPOINT_MS + 2), Renewal::ClearFirst(false), "on its way");
    lessor.checkpoint(1, 0, CHECKPOINT_MS + 3);
    assert_eq!(lessor.renew(1, CHECKPOINT_MS + 3), Renewal::Renewed(3600));

    // While one is being cleared, the next may not follow it.
    lessor.checkpoint(1, 3000, 2 * CHECKPOINT_MS);
    lessor.collect_expired(3 * CHECKPOINT_MS);
    assert_eq!(lessor.renew(1, 3 * CHECKPOINT_MS), Renewal::ClearFirst(true));
    assert!(lessor.due_checkpoints(3 * CHECKPOINT_MS, 10).is_empty());
}

#[test]
fn rows_of_the_key_space_tell_what_hangs_on_what() {
    let row = |key: &'static [u8], lease: i64| KvRef {
        key,
        lease: LeaseId(lease),
        mod_revision: Revision(1),
        ..KvRef::default()
    };
    let mut attachments = Attachments::default();
    for (key, lease) in
        [(&b"a"[..], 1), (b"b", 1), (b"b", 2), (b"c", 1), (b"c", 0), (b"d", 9), (b"e", 0)]
    {
        attachments.visit(&row(key, lease));
    }
    let stored = leasepb::Lease { id: 1, ttl: 1, remaining_ttl: 0 }.encode_to_vec();
    let second = leasepb::Lease { id: 2, ttl: 60, remaining_ttl: 0 }.encode_to_vec();
    let rows = [(&b"k"[..], &stored[..]), (b"l", &second[..])];
    let mut lessor = Lessor::recover(SETTINGS, rows.into_iter(), attachments).unwrap();
    assert_eq!((keys(&lessor, 1), keys(&lessor, 2)), (vec![&b"a"[..]], vec![&b"b"[..]]));
    assert_eq!(lessor.items.len(), 2, "a lease that is not there has no keys");
    lessor.promote(0, 0);
    let granted = lessor.time_to_live(1, 0).unwrap().granted_s;
    assert_eq!(granted, 2, "raised to the shortest TTL");
    let damaged = [(&b"k"[..], &b"\xff"[..])];
    assert!(Lessor::recover(SETTINGS, damaged.into_iter(), Attachments::default()).is_err());
}

/// The simplest thing that could be right: a list of leases, looked at one by one.
#[derive(Default)]
struct Model {
    leases: BTreeMap<i64, (i64, u64)>,
    items: BTreeMap<Vec<u8>, i64>,
    primary: bool,
}

impl Model {
    fn keys(&self, id: i64) -> Vec<&[u8]> {
        self.items.iter().filter(|(_, lease)| **lease == id).map(|(key, _)| &key[..]).collect()
    }
}

/// Grants, revocations, renewals, puts, deletes, elections and restarts in any order, with time
/// passing: the lessor and the model agree on everything, nothing ends early, nothing is forgotten.
#[test]
fn any_history_leaves_what_a_simple_list_would_have() {
    for seed in 0..40 {
        let mut prng = Prng::new(seed);
        let mut lessor = primary(SETTINGS);
        let mut model = Model { primary: true, ..Model::default() };
        // Proposed by the lessor, not applied yet.
        let mut proposed: VecDeque<i64> = VecDeque::new();
        let mut now_ms = 0;
        for _ in 0..4000 {
            now_ms += prng.below(400);
            let id = 1 + prng.below(30).cast_signed();
            let key = [b'a' + prng.below(20) as u8];
            match prng.below(100) {
                0..15 => {
                    let ttl_s = prng.below(15).cast_signed();
                    let checked = lessor.check_grant(id, ttl_s);
                    assert_eq!(checked.is_err(), model.leases.contains_key(&id));
                    if let Ok(ttl_s) = checked {
                        lessor.grant(id, ttl_s, now_ms);
                        let end_ms = now_ms + 1000 * ttl_s.unsigned_abs();
                        model.leases.insert(id, (ttl_s, end_ms));
                    }
                }
                15..20 => proposed.push_back(id),
                20..50 if model.primary => {
                    let known = model.leases.get_mut(&id);
                    match lessor.renew(id, now_ms) {
                        Renewal::NotFound => assert!(known.is_none()),
                        Renewal::Expired => assert!(known.unwrap().1 < now_ms),
                        Renewal::Renewed(ttl_s) => {
                            let known = known.unwrap();
                            assert_eq!(known.0, ttl_s);
                            known.1 = now_ms + 1000 * ttl_s.unsigned_abs();
                        }
                        Renewal::ClearFirst(_) => panic!("checkpoints are off"),
                    }
                }
                50..80 => {
                    let lease = if model.leases.contains_key(&id) { id } else { 0 };
                    lessor.set_item(&key, lease);
                    model.items.insert(key.to_vec(), lease);
                }
                80..90 => {
                    lessor.set_item(&key, 0);
                    model.items.remove(&key[..]);
                }
                90 => {
                    lessor.demote();
                    model.primary = false;
                }
                91..94 => {
                    lessor.promote(now_ms, 1000);
                    model.primary = true;
                    for (ttl_s, end_ms) in model.leases.values_mut() {
                        *end_ms = now_ms + 1000 + 1000 * ttl_s.unsigned_abs();
                    }
                }
                94 => {
                    let rows: Vec<_> =
                        model.leases.keys().map(|id| lessor.row(*id).unwrap()).collect();
                    let rows = rows.iter().map(|row| (&b""[..], &row[..]));
                    let by_key = lessor.items.clone();
                    lessor = Lessor::recover(SETTINGS, rows, Attachments { by_key }).unwrap();
                    model.primary = false;
                }
                _ => {}
            }
            let before = proposed.len();
            proposed.extend(expired(&mut lessor, now_ms));
            for id in proposed.iter().skip(before) {
                let (_, end_ms) = model.leases[id];
                assert!(model.primary && end_ms < now_ms, "lease {id} was to end early");
            }
            // Entries are applied in order, some time later.
            for _ in 0..prng.below(3) {
                let Some(id) = proposed.pop_front() else { break };
                let keys: Vec<Vec<u8>> = keys(&lessor, id).iter().map(|key| key.to_vec()).collect();
                assert_eq!(lessor.revoke(id).is_some(), model.leases.remove(&id).is_some());
                for key in keys {
                    assert_eq!(model.items.remove(&key), Some(id));
                }
                assert!(model.keys(id).is_empty());
            }
            assert_eq!(lessor.len(), model.leases.len());
            assert_eq!(keys(&lessor, id), model.keys(id));
            if model.primary {
                let mut order: Vec<_> =
                    model.leases.iter().map(|(id, (_, end_ms))| (*end_ms, *id)).collect();
                order.sort_unstable();
                let order: Vec<i64> = order.into_iter().map(|(_, id)| id).collect();
                assert_eq!(lessor.list(), order);
            }
        }
        // Once it stays primary and everything is applied, nothing that has ended is left.
        lessor.promote(now_ms, 0);
        let end_ms = now_ms + 60_000;
        for id in expired(&mut lessor, end_ms) {
            lessor.revoke(id);
        }
        assert!(lessor.is_empty() && lessor.items.is_empty());
    }
}

/// Whatever is granted, revoked, renewed and attached meanwhile: a walk of many steps tells what
/// there was when it began, and each of its steps is short.
#[test]
fn a_walk_of_many_steps_tells_what_there_was_when_it_began() {
    for seed in 0..30 {
        let mut prng = Prng::new(seed);
        let mut lessor = primary(SETTINGS);
        for id in 1..=400 {
            lessor.grant(id, 10 + prng.below(100).cast_signed(), 0);
        }
        for number in 0..300 {
            lessor.set_item(format!("k{number:03}").as_bytes(), 7);
        }
        if seed % 3 == 0 {
            lessor.demote();
        } else if seed % 3 == 1 {
            lessor.promote(1000, 500);
        }
        let mut expected = lessor.list();
        let expected_keys: Vec<Vec<u8>> = lessor.keys(7).map(|key| key.to_vec()).collect();
        lessor.begin_listing();
        lessor.begin_keys(7);
        let (mut listed, mut keys, mut steps) = (None, None, 0);
        while listed.is_none() || keys.is_none() {
            steps += 1;
            for _ in 0..prng.below(20) {
                let id = 1 + prng.below(500).cast_signed();
                let key = format!("k{:03}", prng.below(400));
                match prng.below(6) {
                    0 if id != 7 => {
                        lessor.revoke(id);
                    }
                    1 if !lessor.contains(id) => lessor.grant(id, 60, 1000 + steps),
                    2 if lessor.is_primary() => {
                        lessor.renew(id, 1000 + steps);
                    }
                    3 => lessor.set_item(key.as_bytes(), 0),
                    4 => lessor.set_item(key.as_bytes(), 7),
                    _ => lessor.set_item(key.as_bytes(), id),
                }
            }
            if listed.is_none() {
                let mut rows = 20;
                listed = lessor.list_on(&mut rows);
            }
            if keys.is_none() {
                let mut rows = 10;
                match lessor.keys_on(&mut rows) {
                    KeysStep::Again => assert_eq!(rows, 0),
                    KeysStep::Gone => panic!("lease 7 is there"),
                    KeysStep::Keys(found) => keys = Some(found),
                }
            }
        }
        assert!(steps > 30, "{steps} steps");
        let mut listed = ids_of(&listed.unwrap());
        listed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(listed, expected, "seed {seed}");
        assert_eq!(keys_of(&keys.unwrap()), expected_keys, "seed {seed}");
    }
}

#[test]
fn those_that_expire_first_are_listed_first() {
    let mut lessor = primary(SETTINGS);
    let mut prng = Prng::new(3);
    for id in 1..=5000 {
        lessor.grant(id, 10 + prng.below(10_000).cast_signed(), 0);
    }
    for id in (1..=5000).step_by(3) {
        lessor.renew(id, 5000);
    }
    lessor.begin_listing();
    let listed = std::iter::repeat_with(|| lessor.list_on(&mut 512)).find_map(|found| found);
    assert_eq!(ids_of(&listed.unwrap()), lessor.list());
}

#[test]
fn the_keys_of_a_lease_that_ends_meanwhile_are_those_of_no_lease() {
    let mut lessor = primary(SETTINGS);
    lessor.grant(7, 10, 0);
    for number in 0..100_u8 {
        lessor.set_item(&[number], 7);
    }
    lessor.begin_keys(7);
    assert_eq!(lessor.keys_on(&mut 10), KeysStep::Again);
    lessor.revoke(7);
    assert_eq!(lessor.keys_on(&mut 10), KeysStep::Gone);
}

/// An election among a hundred thousand leases: whatever a turn looks at is bounded, and all of
/// them live for as long as they may.
#[test]
fn a_new_reign_costs_a_bounded_number_of_looks_a_turn() {
    let mut lessor = lessor(SETTINGS);
    for id in 1..=100_000 {
        lessor.grant(id, 20, 0);
    }
    lessor.promote(1_000_000, 1000);
    assert_eq!(lessor.time_to_live(5, 1_000_000).unwrap().left_s, 20);
    let (mut now_ms, mut turns) = (1_000_000, 0);
    while lessor.next_look_ms().is_some_and(|look_ms| look_ms <= now_ms) {
        let looked_at =
            |lessor: &Lessor, now_ms| lessor.agenda.range(..=(now_ms, i64::MAX)).count();
        let before = looked_at(&lessor, now_ms);
        assert_eq!(lessor.collect_expired(now_ms), 0);
        assert!(before - looked_at(&lessor, now_ms) <= limits::LEASE_LOOKS_PER_MS);
        (now_ms, turns) = (now_ms + 1, turns + 1);
        if turns == 50 {
            assert_eq!(lessor.renew(99_999, now_ms), Renewal::Renewed(20));
        }
    }
    assert!(turns >= 100_000 / limits::LEASE_LOOKS_PER_MS, "{turns} turns");
    assert!(lessor.agenda.first().unwrap().0 >= 1_020_050);
    lessor.demote();
    lessor.demote();
    assert_eq!(lessor.len(), 100_000);
}
