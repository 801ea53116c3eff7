//! A leader whose peer port refuses connections: dead, or only said to be.

use super::*;

/// What the links of the members in `at` say of a member.
fn refused(cluster: &mut Cluster, at: &[usize], by: usize) {
    let id = cluster.members[by].id();
    for other in at {
        cluster.members[*other].replica.peer_report(PeerReport::Refused(id));
    }
}

#[test]
fn a_leader_that_died_is_replaced_within_moments() {
    let mut took = Vec::new();
    for seed in 61..81 {
        let count = if seed % 2 == 0 { 3 } else { 5 };
        let mut cluster = Cluster::new(count, seed);
        let leader = cluster.ready();
        let slot = cluster.put(leader, "before", "v");
        assert_eq!(cluster.reply(leader, slot), Ok(()));
        cluster.run_ms(300);
        cluster.crash(leader);
        // What it sent before has come by the time its port refuses.
        cluster.run_ms(60);
        let (others, refused_ms) = (cluster.others(leader), cluster.now_ms);
        refused(&mut cluster, &others, leader);
        cluster.until(5000, "a leader", |cluster| {
            cluster.agreed_leader().is_some_and(|at| at != leader)
        });
        took.push(cluster.now_ms - refused_ms);
        let slot = cluster.put(others[0], "after", "v");
        assert_eq!(cluster.reply(others[0], slot), Ok(()));
        cluster.restart(leader);
        cluster.agree(&["before".to_owned(), "after".to_owned()]);
    }
    took.sort_unstable();
    // A turn of these members takes 10 ms, a message some of them, and some are lost.
    assert!(took[took.len() / 2] <= 250 && took[took.len() * 8 / 10] <= 700, "{took:?}");
    assert!(took[took.len() - 1] <= 2500, "{took:?}");
}

#[test]
fn a_leader_that_lives_is_not_deposed_because_its_port_is_closed_to_some() {
    for seed in 81..91 {
        let mut cluster = Cluster::new(3, seed);
        let leader = cluster.ready();
        let term = cluster.members[leader].shared.status.term.load(Ordering::Relaxed);
        for round in 0..10 {
            let one = cluster.others(leader)[round % 2];
            refused(&mut cluster, &[one], leader);
            cluster.run_ms(400);
        }
        let after = cluster.members[leader].shared.status.term.load(Ordering::Relaxed);
        assert_eq!((cluster.leader(), after), (leader, term), "seed {seed}");
        // To all of them, though their streams still carry what it says: whoever leads then, they
        // serve on.
        let others = cluster.others(leader);
        refused(&mut cluster, &others, leader);
        cluster.run_ms(1000);
        let slot = cluster.put(others[0], "k", "v");
        assert_eq!(cluster.reply(others[0], slot), Ok(()));
    }
}

#[test]
fn a_leader_that_was_doubted_and_lived_is_replaced_soon_when_it_dies_after_all() {
    let mut took = Vec::new();
    for seed in 91..101 {
        let mut cluster = Cluster::new(3, seed);
        let leader = cluster.ready();
        let others = cluster.others(leader);
        refused(&mut cluster, &others[..1], leader);
        cluster.run_ms(400);
        assert_eq!(cluster.leader(), leader, "seed {seed}: it lives");
        cluster.crash(leader);
        let died_ms = cluster.now_ms;
        // Its port refuses whoever dials, again and again.
        while cluster.agreed_leader().is_none_or(|at| at == leader) {
            refused(&mut cluster, &others, leader);
            cluster.run_ms(50);
            assert!(cluster.now_ms < died_ms + 5000, "seed {seed}");
        }
        took.push(cluster.now_ms - died_ms);
    }
    took.sort_unstable();
    assert!(took[took.len() / 2] < 900, "less than an election timeout: {took:?}");
}
