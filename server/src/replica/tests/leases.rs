//! Leases in a cluster: asked of any member, decided by the leader.

use super::*;
use crate::kv::pieces::reading::{ids_of, keys_of};

const RAFT_LEASE_GRANT: u32 = 8;

fn grant(cluster: &mut Cluster, at: usize, id: i64, ttl: i64) {
    let request = pb::LeaseGrantRequest { id, ttl };
    let slot = cluster.propose(at, RAFT_LEASE_GRANT, &request.encode_to_vec());
    assert_eq!(cluster.reply(at, slot), Ok(()));
}

#[track_caller]
fn ask(cluster: &mut Cluster, at: usize, query: LeaseQuery) -> LeaseAnswer {
    cluster.next_slot += 1;
    let slot = cluster.next_slot;
    let deadline_ms = cluster.now_ms + 7000;
    let asked =
        cluster.members[at].to_lessor.push(LeaseRequest { slot, deadline_ms, query, asker: None });
    assert!(asked.is_ok());
    cluster.until(7000, "an answer about a lease", |cluster| {
        cluster.members[at].leases.contains_key(&slot)
    });
    cluster.members[at].leases.remove(&slot).unwrap()
}

fn exists(cluster: &Cluster, at: usize, id: i64) -> bool {
    cluster.members[at].replica.leases.lessor().contains(id)
}

#[test]
fn any_member_answers_questions_about_leases_with_what_the_leader_knows() {
    let mut cluster = Cluster::new(3, 31);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    grant(&mut cluster, follower, 7, 10);
    cluster.read(leader);
    for at in [leader, follower] {
        let renewed = ask(&mut cluster, at, LeaseQuery::Renew { id: 7 });
        assert!(matches!(renewed, LeaseAnswer::Renewed { ttl_s: 10 }), "{renewed:?}");
        let unknown = ask(&mut cluster, at, LeaseQuery::Renew { id: 8 });
        assert!(matches!(unknown, LeaseAnswer::Renewed { ttl_s: 0 }), "{unknown:?}");
        let times = ask(&mut cluster, at, LeaseQuery::TimeToLive { id: 7, keys: true });
        let LeaseAnswer::TimeToLive { times: Some(times), .. } = times else { panic!("{times:?}") };
        assert!(times.granted_s == 10 && (8..=10).contains(&times.left_s), "{times:?}");
        let gone = ask(&mut cluster, at, LeaseQuery::TimeToLive { id: 8, keys: false });
        assert!(matches!(gone, LeaseAnswer::TimeToLive { times: None, .. }), "{gone:?}");
        let list = ask(&mut cluster, at, LeaseQuery::List);
        let LeaseAnswer::Leases(list) = &list else { panic!("{list:?}") };
        assert_eq!(ids_of(list), [7]);
    }
}

#[test]
fn any_member_lists_many_leases_and_many_keys_and_goes_on_with_everything_else_meanwhile() {
    let mut cluster = Cluster::new(3, 38);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    for id in 1..=3000 {
        cluster.next_slot += 1;
        let request = pb::LeaseGrantRequest { id, ttl: 60 };
        cluster.propose(leader, RAFT_LEASE_GRANT, &request.encode_to_vec());
    }
    let key = |number: u32| format!("key-{number:04}").into_bytes();
    for number in 0..3000 {
        let request =
            pb::PutRequest { key: key(number).into(), lease: 7, ..pb::PutRequest::default() };
        let slot = cluster.propose(leader, RAFT_PUT, &request.encode_to_vec());
        if number == 2999 {
            assert_eq!(cluster.reply(leader, slot), Ok(()));
        }
    }
    for at in [leader, follower] {
        let LeaseAnswer::Leases(list) = ask(&mut cluster, at, LeaseQuery::List) else {
            panic!("no list");
        };
        let mut ids = ids_of(&list);
        ids.sort_unstable();
        assert!(ids.into_iter().eq(1..=3000));
        let query = LeaseQuery::TimeToLive { id: 7, keys: true };
        let LeaseAnswer::TimeToLive { times: Some(times), keys } = ask(&mut cluster, at, query)
        else {
            panic!("no keys");
        };
        assert_eq!(times.granted_s, 60);
        assert!(keys_of(&keys).into_iter().eq((0..3000).map(key)));
    }
    // The leader ends leading in the middle of a walk: another tells the times.
    cluster.next_slot += 1;
    let slot = cluster.next_slot;
    let query = LeaseQuery::TimeToLive { id: 7, keys: true };
    let ask = LeaseRequest { slot, deadline_ms: cluster.now_ms + 7000, query, asker: None };
    assert!(cluster.members[leader].to_lessor.push(ask).is_ok());
    cluster.until(100, "the walk", |cluster| cluster.members[leader].replica.leases.has_walks());
    cluster.isolate(leader, true);
    cluster.members[leader].replica.leases.demote();
    assert!(!cluster.members[leader].replica.leases.has_walks(), "it was given up");
}

#[test]
fn a_lease_that_is_kept_alive_through_a_follower_lives_and_then_ends_everywhere() {
    let mut cluster = Cluster::new(3, 32);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    grant(&mut cluster, follower, 7, 3);
    for _ in 0..10 {
        cluster.run_ms(1000);
        let renewed = ask(&mut cluster, follower, LeaseQuery::Renew { id: 7 });
        assert!(matches!(renewed, LeaseAnswer::Renewed { ttl_s: 3 }), "{renewed:?}");
    }
    cluster.run_ms(2800);
    assert!((0..3).all(|at| exists(&cluster, at, 7)), "its time is not up");
    cluster.until(2000, "it ends", |cluster| (0..3).all(|at| !exists(cluster, at, 7)));
}

#[test]
fn a_new_leader_gives_every_lease_its_whole_time_again() {
    let mut cluster = Cluster::new(3, 33);
    let leader = cluster.ready();
    grant(&mut cluster, leader, 7, 5);
    cluster.run_ms(4000);
    let others = cluster.others(leader);
    cluster.crash(leader);
    cluster.until(10_000, "another leader", |cluster| {
        others.iter().any(|at| cluster.members[*at].leads())
    });
    let begun_ms = cluster.now_ms;
    cluster.run_ms(5000);
    assert!(others.iter().all(|at| exists(&cluster, *at, 7)), "a whole TTL after the election");
    cluster.until(4000, "it ends", |cluster| others.iter().all(|at| !exists(cluster, *at, 7)));
    let took_ms = cluster.now_ms - begun_ms;
    assert!(took_ms >= 6000, "extended by an election timeout: {took_ms} ms");
}

#[test]
fn a_question_waits_for_a_leader_and_is_asked_again() {
    let mut cluster = Cluster::new(3, 34);
    let leader = cluster.ready();
    grant(&mut cluster, leader, 7, 60);
    let follower = cluster.others(leader)[0];
    cluster.crash(leader);
    let renewed = ask(&mut cluster, follower, LeaseQuery::Renew { id: 7 });
    assert!(matches!(renewed, LeaseAnswer::Renewed { ttl_s: 60 }), "{renewed:?}");
}

#[test]
fn a_leader_that_is_cut_off_ends_no_lease_that_another_keeps_alive() {
    let mut cluster = Cluster::new(3, 35);
    let leader = cluster.ready();
    grant(&mut cluster, leader, 7, 4);
    cluster.isolate(leader, true);
    let others = cluster.others(leader);
    cluster.until(10_000, "another leader", |cluster| {
        others.iter().any(|at| cluster.members[*at].leads())
    });
    for _ in 0..8 {
        let renewed = ask(&mut cluster, others[0], LeaseQuery::Renew { id: 7 });
        assert!(matches!(renewed, LeaseAnswer::Renewed { ttl_s: 4 }), "{renewed:?}");
        cluster.run_ms(1000);
    }
    cluster.isolate(leader, false);
    cluster.ready();
    assert!(others.iter().all(|at| exists(&cluster, *at, 7)));
}

#[test]
fn a_leader_that_was_replaced_without_knowing_it_says_nothing_about_leases() {
    let mut overlaps = 0;
    for seed in 40..60 {
        let mut cluster = Cluster::new(3, seed);
        let old = cluster.ready();
        grant(&mut cluster, old, 7, 60);
        cluster.isolate(old, true);
        let others = cluster.others(old);
        cluster.until(20_000, "a new leader that is ready", |cluster| {
            let leads = |at: &&usize| cluster.members[**at].replica.leases.is_primary();
            others.iter().any(|at| leads(&at))
        });
        if !cluster.members[old].replica.leases.is_primary() {
            continue;
        }
        overlaps += 1;
        let new = cluster.strongest().unwrap();
        grant(&mut cluster, new, 8, 60);
        cluster.next_slot += 2;
        let (first, deadline_ms) = (cluster.next_slot - 1, cluster.now_ms + 60_000);
        for (slot, id) in [(first, 7), (first + 1, 8)] {
            let query = LeaseQuery::Renew { id };
            let ask = LeaseRequest { slot, deadline_ms, query, asker: None };
            assert!(cluster.members[old].to_lessor.push(ask).is_ok());
        }
        cluster.run_ms(5000);
        let answers = &cluster.members[old].leases;
        assert!(answers.is_empty(), "neither denied nor renewed: {answers:?}");
        cluster.isolate(old, false);
        cluster.until(10_000, "both answers", |cluster| cluster.members[old].leases.len() == 2);
        for slot in [first, first + 1] {
            let answer = cluster.members[old].leases.remove(&slot).unwrap();
            assert!(matches!(answer, LeaseAnswer::Renewed { ttl_s: 60 }), "{answer:?}");
        }
    }
    assert!(overlaps > 0, "no seed made two leaders at once");
}

#[test]
fn a_leader_whose_disk_is_slower_than_its_followers_waits_before_it_says_that_there_is_no_lease() {
    let mut cluster = Cluster::new(3, 36);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    cluster.members[leader].holds_writes = true;
    grant(&mut cluster, follower, 7, 60);
    assert!(exists(&cluster, follower, 7) && !exists(&cluster, leader, 7), "committed without it");
    cluster.next_slot += 1;
    let slot = cluster.next_slot;
    let query = LeaseQuery::TimeToLive { id: 7, keys: false };
    let deadline_ms = cluster.now_ms + 7000;
    let asked = cluster.members[follower].to_lessor.push(LeaseRequest {
        slot,
        deadline_ms,
        query,
        asker: None,
    });
    assert!(asked.is_ok());
    cluster.run_ms(500);
    assert!(cluster.members[follower].leases.is_empty());
    cluster.members[leader].holds_writes = false;
    cluster.until(1000, "an answer", |cluster| !cluster.members[follower].leases.is_empty());
    let answer = &cluster.members[follower].leases[&slot];
    assert!(matches!(answer, LeaseAnswer::TimeToLive { times: Some(_), .. }), "{answer:?}");
}

#[test]
fn a_leader_whose_own_disk_lags_knows_every_lease_that_a_follower_has_acknowledged() {
    let mut cluster = Cluster::new(3, 36);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    // Two disks of three are a quorum: what the followers have commits without the leader's.
    cluster.members[leader].holds_writes = true;
    grant(&mut cluster, follower, 7, 60);
    assert!(!exists(&cluster, leader, 7), "it has not applied the grant");
    cluster.next_slot += 1;
    let (slot, deadline_ms) = (cluster.next_slot, cluster.now_ms + 7000);
    let query = LeaseQuery::Renew { id: 7 };
    let asked = cluster.members[leader].to_lessor.push(LeaseRequest {
        slot,
        deadline_ms,
        query,
        asker: None,
    });
    assert!(asked.is_ok());
    cluster.run_ms(200);
    assert!(!cluster.members[leader].leases.contains_key(&slot), "it waits");
    cluster.members[leader].holds_writes = false;
    cluster.until(7000, "an answer", |cluster| cluster.members[leader].leases.contains_key(&slot));
    let renewed = cluster.members[leader].leases.remove(&slot).unwrap();
    assert!(matches!(renewed, LeaseAnswer::Renewed { ttl_s: 60 }), "{renewed:?}");
}

#[test]
fn a_lease_that_has_ended_elsewhere_is_not_renewed_by_a_leader_whose_disk_lags() {
    for asked_of_the_leader in [false, true] {
        let mut cluster = Cluster::new(3, 38);
        let leader = cluster.ready();
        let follower = cluster.others(leader)[0];
        grant(&mut cluster, leader, 7, 60);
        grant(&mut cluster, leader, 8, 60);
        cluster.members[leader].holds_writes = true;
        let revoke = pb::LeaseRevokeRequest { id: 7 }.encode_to_vec();
        let revoker = if asked_of_the_leader { leader } else { follower };
        let ended = cluster.propose(revoker, entry::field::LEASE_REVOKE, &revoke);
        cluster.until(1000, "the end of a lease", |cluster| !exists(cluster, follower, 7));
        assert!(exists(&cluster, leader, 7), "it has not applied the end");
        cluster.next_slot += 1;
        let (slot, deadline_ms) = (cluster.next_slot, cluster.now_ms + 7000);
        let query = LeaseQuery::Renew { id: 7 };
        let asked = cluster.members[leader].to_lessor.push(LeaseRequest {
            slot,
            deadline_ms,
            query,
            asker: None,
        });
        assert!(asked.is_ok());
        cluster.run_ms(200);
        assert!(!cluster.members[leader].leases.contains_key(&slot), "it waits");
        let other = ask(&mut cluster, leader, LeaseQuery::Renew { id: 8 });
        assert!(matches!(other, LeaseAnswer::Renewed { ttl_s: 60 }), "{other:?}");
        assert!(exists(&cluster, leader, 7), "others need not wait");
        cluster.members[leader].holds_writes = false;
        assert_eq!(cluster.reply(revoker, ended), Ok(()));
        cluster
            .until(7000, "an answer", |cluster| cluster.members[leader].leases.contains_key(&slot));
        let renewed = cluster.members[leader].leases.remove(&slot).unwrap();
        assert!(matches!(renewed, LeaseAnswer::Renewed { ttl_s: 0 }), "{renewed:?}");
        assert!(cluster.members[leader].replica.leases.ending_len() == 0, "it is forgotten");
    }
}

#[test]
fn ended_leases_are_forgotten_though_nobody_asks_about_leases() {
    let mut cluster = Cluster::new(3, 39);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    for id in 1..=20 {
        grant(&mut cluster, leader, id, 60);
        let revoke = pb::LeaseRevokeRequest { id }.encode_to_vec();
        let revoker = if id % 2 == 0 { leader } else { follower };
        let ended = cluster.propose(revoker, entry::field::LEASE_REVOKE, &revoke);
        assert_eq!(cluster.reply(revoker, ended), Ok(()));
        cluster.read(leader);
        assert!(cluster.members[leader].replica.leases.ending_len() <= 1, "lease {id}");
    }
}

#[test]
fn a_question_is_answered_while_more_is_committed_all_the_time_than_a_turn_applies() {
    const ASKED: usize = 12;
    let mut cluster = Cluster::new(1, 37);
    let leader = cluster.ready();
    grant(&mut cluster, leader, 7, 10);
    cluster.next_slot += 1;
    let slot = cluster.next_slot;
    for step in 0..30 {
        for number in 0..64 {
            let request = pb::LeaseGrantRequest { id: 100 + 64 * step as i64 + number, ttl: 60 };
            cluster.propose(leader, RAFT_LEASE_GRANT, &request.encode_to_vec());
        }
        if step == ASKED {
            let query = LeaseQuery::TimeToLive { id: 7, keys: false };
            let ask = LeaseRequest { slot, deadline_ms: cluster.now_ms + 7000, query, asker: None };
            assert!(cluster.members[leader].to_lessor.push(ask).is_ok());
        }
        cluster.step();
        let member = &cluster.members[leader];
        assert!(step < ASKED || member.replica.has_backlog(), "there is a backlog in step {step}");
        if member.leases.contains_key(&slot) {
            return;
        }
    }
    panic!("no answer although what was committed when it was asked has long been applied");
}

/// Grants so many leases, keeps them alive through the followers for `ms`, and says how many are
/// left. Each is renewed when a third of its time has passed since it was last.
fn keep_alive(cluster: &mut Cluster, leases: i64, ttl: i64, ms: u64) -> usize {
    let leader = cluster.ready();
    let followers = cluster.others(leader);
    for id in 1..=leases {
        let request = pb::LeaseGrantRequest { id, ttl };
        cluster.propose(leader, RAFT_LEASE_GRANT, &request.encode_to_vec());
        if id % 64 == 0 {
            cluster.step();
        }
    }
    cluster
        .until(10_000, "the leases", |cluster| (1..=leases).all(|id| exists(cluster, leader, id)));
    let third_ms = ttl.cast_unsigned() * 1000 / 3;
    let begun_ms = cluster.now_ms;
    let mut due: BTreeSet<(u64, i64)> = (1..=leases)
        .map(|id| (begun_ms + third_ms * id.cast_unsigned() / leases.cast_unsigned(), id))
        .collect();
    let mut asked = BTreeMap::new();
    while cluster.now_ms < begun_ms + ms {
        while let Some((at_ms, id)) = due.first().copied()
            && at_ms <= cluster.now_ms
        {
            due.pop_first();
            cluster.next_slot += 1;
            let slot = cluster.next_slot;
            let deadline_ms = cluster.now_ms + 7000;
            let at = followers[id.cast_unsigned() as usize % followers.len()];
            let query = LeaseQuery::Renew { id };
            let ask = LeaseRequest { slot, deadline_ms, query, asker: None };
            assert!(cluster.members[at].to_lessor.push(ask).is_ok());
            asked.insert(slot, id);
        }
        cluster.step();
        for at in &followers {
            for (slot, answer) in std::mem::take(&mut cluster.members[*at].leases) {
                let id = asked.remove(&slot).expect("it was asked");
                if !matches!(answer, LeaseAnswer::Renewed { ttl_s: 0 }) {
                    due.insert((cluster.now_ms + third_ms, id));
                }
            }
        }
    }
    (1..=leases).filter(|id| exists(cluster, leader, *id)).count()
}

#[test]
fn leases_kept_alive_through_followers_live_on_however_few_connections_and_far_the_leader() {
    for (delay_ms, seed) in [(1, 40), (40, 41)] {
        let mut cluster = Cluster::new(3, seed);
        cluster.delay_ms = delay_ms;
        cluster.ask_slots = 4;
        assert_eq!(keep_alive(&mut cluster, 4000, 6, 20_000), 4000, "{delay_ms} ms");
    }
}

#[test]
fn a_leader_that_knows_no_batches_is_asked_as_etcd_asks() {
    let mut cluster = Cluster::new(3, 42);
    cluster.knows_no_batches = true;
    cluster.ask_slots = 1024;
    assert_eq!(keep_alive(&mut cluster, 1000, 6, 10_000), 1000);
    let leader = cluster.leader();
    let id = cluster.members[leader].id();
    for at in cluster.others(leader) {
        let requests = &cluster.members[at].replica.peer_requests;
        assert!(requests.asks_singly(id), "it was found out");
        cluster.members[at].replica.peer_report(PeerReport::Inactive(id));
        let requests = &cluster.members[at].replica.peer_requests;
        assert!(!requests.asks_singly(id), "and is forgotten");
    }
}

#[test]
fn a_question_that_a_leader_cannot_answer_yet_does_not_keep_others_of_its_batch_waiting() {
    let mut cluster = Cluster::new(3, 43);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    (1..=20).for_each(|id| grant(&mut cluster, leader, id, 60));
    cluster.members[leader].holds_writes = true;
    grant(&mut cluster, follower, 99, 60);
    let mut asked = Vec::new();
    for id in (1..=20).chain([99, 100]) {
        cluster.next_slot += 1;
        let (slot, deadline_ms) = (cluster.next_slot, cluster.now_ms + 7000);
        let query = LeaseQuery::Renew { id };
        let ask = LeaseRequest { slot, deadline_ms, query, asker: None };
        assert!(cluster.members[follower].to_lessor.push(ask).is_ok());
        asked.push((id, slot));
    }
    cluster.run_ms(limits::LEASE_BATCH_HOLD_MS + 100);
    let is_answered = |cluster: &Cluster, slot| cluster.members[follower].leases.contains_key(slot);
    for (id, slot) in &asked {
        assert_eq!(is_answered(&cluster, slot), *id <= 20, "lease {id}");
    }
    cluster.members[leader].holds_writes = false;
    cluster
        .until(2000, "answers", |cluster| asked.iter().all(|(_, slot)| is_answered(cluster, slot)));
    for (id, slot) in asked {
        let ttl_s = if id == 100 { 0 } else { 60 };
        let answer = cluster.members[follower].leases.remove(&slot).unwrap();
        assert!(matches!(answer, LeaseAnswer::Renewed { ttl_s: told } if told == ttl_s), "{id}");
    }
    assert_eq!(cluster.members[leader].replica.leases.batched(), 0);
}
