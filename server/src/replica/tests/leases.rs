//! Leases in a cluster: asked of any member, decided by the leader.

use super::*;

const RAFT_LEASE_GRANT: u32 = 8;

fn grant(cluster: &mut Cluster, at: usize, id: i64, ttl: i64) {
    let request = pb::LeaseGrantRequest { id, ttl };
    let slot = cluster.propose(at, RAFT_LEASE_GRANT, &request.encode_to_vec());
    assert_eq!(cluster.reply(at, slot), Ok(()));
}

#[track_caller]
fn ask(cluster: &mut Cluster, at: usize, question: LeaseQuestion) -> LeaseAnswer {
    cluster.next_slot += 1;
    let slot = cluster.next_slot;
    let deadline_ms = cluster.now_ms + 7000;
    let asked = cluster.members[at].to_lessor.push(LeaseAsk { slot, deadline_ms, question });
    assert!(asked.is_ok());
    cluster.until(7000, "an answer about a lease", |cluster| {
        cluster.members[at].leases.contains_key(&slot)
    });
    cluster.members[at].leases.remove(&slot).unwrap()
}

fn exists(cluster: &Cluster, at: usize, id: i64) -> bool {
    cluster.members[at].replica.desk.lessor.contains(id)
}

#[test]
fn any_member_answers_questions_about_leases_with_what_the_leader_knows() {
    let mut cluster = Cluster::new(3, 31);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    grant(&mut cluster, follower, 7, 10);
    cluster.read(leader);
    for at in [leader, follower] {
        let renewed = ask(&mut cluster, at, LeaseQuestion::Renew { id: 7 });
        assert!(matches!(renewed, LeaseAnswer::Renewed { ttl_s: 10 }), "{renewed:?}");
        let unknown = ask(&mut cluster, at, LeaseQuestion::Renew { id: 8 });
        assert!(matches!(unknown, LeaseAnswer::Renewed { ttl_s: 0 }), "{unknown:?}");
        let times = ask(&mut cluster, at, LeaseQuestion::TimeToLive { id: 7, keys: true });
        let LeaseAnswer::TimeToLive { times: Some(times), .. } = times else { panic!("{times:?}") };
        assert!(times.granted_s == 10 && (8..=10).contains(&times.left_s), "{times:?}");
        let gone = ask(&mut cluster, at, LeaseQuestion::TimeToLive { id: 8, keys: false });
        assert!(matches!(gone, LeaseAnswer::TimeToLive { times: None, .. }), "{gone:?}");
        let list = ask(&mut cluster, at, LeaseQuestion::List);
        assert!(matches!(&list, LeaseAnswer::Leases(ids) if *ids == [7]), "{list:?}");
    }
}

#[test]
fn a_lease_that_is_kept_alive_through_a_follower_lives_and_then_ends_everywhere() {
    let mut cluster = Cluster::new(3, 32);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    grant(&mut cluster, follower, 7, 3);
    for _ in 0..10 {
        cluster.run_ms(1000);
        let renewed = ask(&mut cluster, follower, LeaseQuestion::Renew { id: 7 });
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
    let renewed = ask(&mut cluster, follower, LeaseQuestion::Renew { id: 7 });
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
        let renewed = ask(&mut cluster, others[0], LeaseQuestion::Renew { id: 7 });
        assert!(matches!(renewed, LeaseAnswer::Renewed { ttl_s: 4 }), "{renewed:?}");
        cluster.run_ms(1000);
    }
    cluster.isolate(leader, false);
    cluster.ready();
    assert!(others.iter().all(|at| exists(&cluster, *at, 7)));
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
    let question = LeaseQuestion::TimeToLive { id: 7, keys: false };
    let deadline_ms = cluster.now_ms + 7000;
    let asked = cluster.members[follower].to_lessor.push(LeaseAsk { slot, deadline_ms, question });
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
    let question = LeaseQuestion::Renew { id: 7 };
    let asked = cluster.members[leader].to_lessor.push(LeaseAsk { slot, deadline_ms, question });
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
        let question = LeaseQuestion::Renew { id: 7 };
        let asked =
            cluster.members[leader].to_lessor.push(LeaseAsk { slot, deadline_ms, question });
        assert!(asked.is_ok());
        cluster.run_ms(200);
        assert!(!cluster.members[leader].leases.contains_key(&slot), "it waits");
        let other = ask(&mut cluster, leader, LeaseQuestion::Renew { id: 8 });
        assert!(matches!(other, LeaseAnswer::Renewed { ttl_s: 60 }), "{other:?}");
        assert!(exists(&cluster, leader, 7), "others need not wait");
        cluster.members[leader].holds_writes = false;
        assert_eq!(cluster.reply(revoker, ended), Ok(()));
        cluster
            .until(7000, "an answer", |cluster| cluster.members[leader].leases.contains_key(&slot));
        let renewed = cluster.members[leader].leases.remove(&slot).unwrap();
        assert!(matches!(renewed, LeaseAnswer::Renewed { ttl_s: 0 }), "{renewed:?}");
        assert!(cluster.members[leader].replica.desk.ending.is_empty(), "it is forgotten");
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
        assert!(cluster.members[leader].replica.desk.ending.len() <= 1, "lease {id}");
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
            let question = LeaseQuestion::TimeToLive { id: 7, keys: false };
            let ask = LeaseAsk { slot, deadline_ms: cluster.now_ms + 7000, question };
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
