//! Who leads, and how leadership is handed over.

use super::*;

fn move_leader(cluster: &mut Cluster, at: usize, target: u64) -> Slot {
    cluster.next_slot += 1;
    let slot = cluster.next_slot;
    assert!(cluster.members[at].to_replica.push(ToReplica::MoveLeader { slot, target }).is_ok());
    slot
}

#[test]
fn leadership_moves_at_an_operators_wish_and_proposals_wait_for_it() {
    let mut cluster = Cluster::new(3, 21);
    for round in 0..10 {
        let leader = cluster.ready();
        let heir = cluster.others(leader)[round % 2];
        let target = cluster.members[heir].id();
        let wish = move_leader(&mut cluster, leader, target);
        cluster.step();
        let slots: Vec<Slot> =
            (0..5).map(|number| cluster.put(leader, &format!("k{number}"), "v")).collect();
        assert_eq!(cluster.reply(leader, wish), Ok(()));
        assert_eq!(cluster.leader(), heir);
        for slot in slots {
            assert_eq!(cluster.reply(leader, slot), Ok(()), "proposed to the new leader");
        }
    }
}

#[test]
fn wishes_that_cannot_come_true_are_refused_with_etcds_errors() {
    let mut cluster = Cluster::new(3, 22);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    let (own, other) = (cluster.members[leader].id(), cluster.members[follower].id());
    let of_follower = move_leader(&mut cluster, follower, other);
    let of_stranger = move_leader(&mut cluster, leader, 5);
    let of_itself = move_leader(&mut cluster, leader, own);
    assert_eq!(cluster.reply(follower, of_follower), Err("etcdserver: not leader".to_owned()));
    let bad = "etcdserver: bad leader transferee".to_owned();
    assert_eq!(cluster.reply(leader, of_stranger), Err(bad));
    assert_eq!(cluster.reply(leader, of_itself), Ok(()));
    cluster.crash(follower);
    let of_the_dead = move_leader(&mut cluster, leader, other);
    let late = "etcdserver: request timed out, leader transfer took too long".to_owned();
    assert_eq!(cluster.reply(leader, of_the_dead), Err(late));
    let slot = cluster.put(leader, "k", "v");
    assert_eq!(cluster.reply(leader, slot), Ok(()), "the old leader goes on");
}

#[test]
fn a_member_that_stops_gives_its_leadership_away_first() {
    let mut cluster = Cluster::new(3, 23);
    let leader = cluster.ready();
    let begun_ms = cluster.now_ms;
    let shared = cluster.members[leader].shared.clone();
    shared.hand_over();
    cluster.until(1000, "handed over", |_| shared.lifecycle.has_handed_over());
    assert_ne!(cluster.leader(), leader);
    let took_ms = cluster.now_ms - begun_ms;
    assert!(took_ms < 500, "{took_ms} ms, an election timeout is 1000");
    let follower = cluster.others(cluster.agreed_leader().unwrap())[0];
    let shared = cluster.members[follower].shared.clone();
    shared.hand_over();
    cluster.step();
    assert!(shared.lifecycle.has_handed_over(), "a follower has nothing to give");
}

#[test]
fn fronts_are_told_who_leads_since_when_and_whether_it_can_be_reached() {
    let mut cluster = Cluster::new(3, 24);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    let load = |cluster: &Cluster, at: usize| {
        let status = &cluster.members[at].shared.status;
        (
            status.elected_ms.load(Ordering::Relaxed),
            status.connected_since_ms.load(Ordering::Relaxed),
        )
    };
    assert!(load(&cluster, leader).0 > 0 && load(&cluster, follower).0 == 0);
    assert_ne!(load(&cluster, leader).1, u64::MAX);
    cluster.isolate(follower, true);
    assert_eq!(load(&cluster, follower).1, u64::MAX, "its leader cannot be reached");
    assert_ne!(load(&cluster, leader).1, u64::MAX, "it has its quorum");
    cluster.isolate(leader, true);
    assert_eq!(load(&cluster, leader).1, u64::MAX);
    cluster.until(5000, "everybody gives up", |cluster| {
        cluster.members.iter().all(|m| m.shared.status.leader.load(Ordering::Relaxed) == 0)
    });
    let since_ms = &cluster.members[leader].shared.status.leaderless_since_ms;
    assert!(since_ms.load(Ordering::Relaxed) + 3000 > cluster.now_ms);
}

#[test]
fn the_first_election_does_not_wait_for_a_whole_timeout() {
    let took_ms = |flag: &str| {
        let mut cluster = Cluster::with_flags(3, 25, &[flag]);
        cluster.leader();
        cluster.now_ms - 1000
    };
    let (quick, slow) = (
        took_ms("--initial-election-tick-advance=true"),
        took_ms("--initial-election-tick-advance=false"),
    );
    assert!(quick + 500 < slow, "{quick} ms, without the advance {slow} ms");
}

#[test]
fn proposals_on_their_way_to_a_leader_that_hands_over_are_passed_on() {
    let mut passed = 0;
    for seed in 0..20 {
        let mut cluster = Cluster::new(3, 260 + seed);
        let leader = cluster.ready();
        let [heir, other] = cluster.others(leader)[..] else { panic!("two others") };
        let target = cluster.members[heir].id();
        move_leader(&mut cluster, leader, target);
        let mut slots = Vec::new();
        for number in 0..10 {
            for at in [heir, other] {
                slots.push((at, cluster.put(at, &format!("k{number}"), "v")));
            }
            passed += cluster.members[leader].replica.peer_queue.forwarded_len();
            cluster.step();
        }
        for (at, slot) in slots {
            assert_eq!(cluster.reply(at, slot), Ok(()), "seed {seed}");
        }
    }
    assert!(passed > 0, "some came while the leader was handing over");
}
