//! Members that were away for longer than the log reaches back.

use super::requests::chaos_with;
use super::*;

/// The log reaches back hardly at all.
const SHORT_LOG: [&str; 2] = ["--snapshot-catchup-entries=5", "--wal-segment-bytes=65536"];

fn long(short: u64, long: u64) -> u64 {
    if std::env::var_os("ETCORE_LONG").is_some() { long } else { short }
}

/// Writes through `at` until what is before `behind`'s last entry is in no leader's log.
fn outrun(cluster: &mut Cluster, at: usize, behind: u64) -> Vec<String> {
    let mut keys = Vec::new();
    while cluster.members[at].replica.log.node.status().base.0 <= behind {
        assert!(keys.len() < 2000, "the log keeps everything");
        let slots: Vec<Slot> = (0..10)
            .map(|_| {
                keys.push(format!("k{}", keys.len()));
                cluster.put(at, &keys[keys.len() - 1], &"v".repeat(3000))
            })
            .collect();
        for slot in slots {
            assert_eq!(cluster.reply(at, slot), Ok(()));
        }
        cluster.run_ms(100);
    }
    keys
}

fn last_index(cluster: &Cluster, at: usize) -> u64 {
    cluster.members[at].replica.log.node.status().last_index.0
}

fn receives(cluster: &Cluster, at: usize) -> bool {
    cluster.members[at].disk.names().iter().any(|name| name == "etcore.snap.part")
}

/// What everybody holds must be the same, and no copy may be left.
fn assert_healed(cluster: &mut Cluster, keys: &[String]) {
    let leader = cluster.ready();
    let slot = cluster.put(leader, "last", "v");
    assert_eq!(cluster.reply(leader, slot), Ok(()));
    cluster.agree(keys);
    for at in 0..cluster.members.len() {
        cluster.read(at);
        let names = cluster.members[at].disk.names();
        assert!(!names.iter().any(|name| name.starts_with("etcore.snap")), "{names:?}");
    }
}

#[test]
fn members_that_the_log_does_not_reach_get_a_snapshot_all_at_once() {
    for seed in 0..long(4, 40) {
        let mut cluster = Cluster::with_flags(5, 40 + seed, &SHORT_LOG);
        let leader = cluster.ready();
        let away = cluster.others(leader)[..2].to_vec();
        for at in &away {
            cluster.isolate(*at, true);
        }
        cluster.lost = 30 * (seed % 2);
        let behind = away.iter().map(|at| last_index(&cluster, *at)).max().unwrap();
        let leader = cluster.leader_among(&[leader]);
        let keys = outrun(&mut cluster, leader, behind);
        for at in &away {
            cluster.isolate(*at, false);
        }
        cluster.until(60_000, "both go over to it", |cluster| {
            away.iter().all(|at| cluster.members[*at].went_over() > 0)
        });
        cluster.lost = 0;
        assert_healed(&mut cluster, &keys);
        assert!(away.iter().all(|at| cluster.members[*at].went_over() == 1), "once each");
        let leader = cluster.leader();
        cluster.run_ms(30_000);
        let shared = cluster.members[leader].shared.clone();
        let text = shared.metrics.render(crate::metrics::Exposition::Text);
        let sent =
            text.lines().filter(|line| line.starts_with("etcd_network_snapshot_send_success{"));
        assert_eq!(sent.count(), 2, "{text}");
        let none = "etcd_network_snapshot_send_inflights_total{";
        assert!(
            text.lines().filter(|line| line.starts_with(none)).all(|line| line.ends_with(" 0"))
        );
    }
}

#[test]
fn a_member_that_gets_a_snapshot_under_load_goes_over_at_once_and_follows_after_one() {
    for seed in 0..long(4, 40) {
        let mut cluster = Cluster::with_flags(3, 77 + seed, &SHORT_LOG);
        // Both ways together twice as long as this, at most.
        cluster.delay_ms = [5, 20, 60, 100][usize::try_from(seed % 4).unwrap()];
        let leader = cluster.ready();
        let away = cluster.others(leader)[0];
        let slot = cluster.put(away, "before", "v");
        assert_eq!(cluster.reply(away, slot), Ok(()));
        cluster.isolate(away, true);
        let behind = last_index(&cluster, away);
        let keys = outrun(&mut cluster, leader, behind);
        cluster.isolate(away, false);
        let mut number = 0;
        let mut installing_since = None;
        let begun_ms = cluster.now_ms;
        let follows = |cluster: &Cluster| {
            cluster.members[away].went_over() > 0
                && last_index(cluster, away) + 40 > last_index(cluster, leader)
        };
        // A write of 8 kB every 10 ms: the log's segments of 64 KiB last for 80 ms each.
        while !follows(&cluster) || cluster.now_ms < begun_ms + 10_000 {
            assert!(cluster.now_ms < begun_ms + 60_000, "it never follows");
            number += 1;
            cluster.put(leader, &format!("load{}", number % 50), &"l".repeat(8000));
            cluster.step();
            let member = &cluster.members[away];
            if member.replica.snapshots.is_installing() {
                installing_since.get_or_insert(cluster.now_ms);
            } else if installing_since.is_none() {
                assert_eq!(member.get("before").as_deref(), Some("v"));
                assert_eq!(member.get("k0"), None, "nothing of it is seen before its time");
            } else if member.went_over() == 1 {
                let took_ms = cluster.now_ms - installing_since.unwrap_or(0);
                installing_since = Some(0);
                assert!(took_ms < 500 || took_ms == cluster.now_ms, "{took_ms} ms");
            }
        }
        assert_eq!(cluster.members[away].went_over(), 1, "one was enough");
        assert_eq!(cluster.members[away].replica.snapshots.transfers(), 1);
        assert_healed(&mut cluster, &keys);
        assert_eq!(cluster.members[away].went_over(), 1, "one was enough");
        // Nothing is kept any longer than it is needed.
        cluster.run_ms(30_000);
        let leader = cluster.leader();
        let last = last_index(&cluster, away);
        let keys = outrun(&mut cluster, leader, last);
        cluster.agree(&keys);
    }
}

#[test]
fn a_log_that_grows_too_much_for_a_receiver_is_let_go_and_a_later_snapshot_follows() {
    let mut cluster = Cluster::with_flags(3, 78, &SHORT_LOG);
    let leader = cluster.ready();
    let away = cluster.others(leader)[0];
    cluster.isolate(away, true);
    let behind = last_index(&cluster, away);
    let keys = outrun(&mut cluster, leader, behind);
    cluster.members[leader].replica.snapshots.keep_log_bytes(3 << 16);
    cluster.isolate(away, false);
    cluster.until(60_000, "a copy arrives", |cluster| receives(cluster, away));
    // It does not ask for more, and does not go away.
    let (from, to) = (cluster.members[away].id(), cluster.members[leader].id());
    cluster.holds_asks.insert((from, to));
    let mut bases = BTreeSet::new();
    for number in 0..300 {
        cluster.put(leader, &format!("load{}", number % 50), &"l".repeat(8000));
        cluster.step();
        bases.insert(cluster.members[leader].replica.log.node.status().base);
    }
    assert!(bases.len() > 2, "the log is let go: {bases:?}");
    cluster.holds_asks.clear();
    cluster.until(60_000, "a later one", |cluster| cluster.members[away].went_over() > 0);
    assert!(cluster.members[away].replica.snapshots.transfers() > 1);
    assert_healed(&mut cluster, &keys);
}

#[test]
fn a_transfer_goes_on_where_it_was_when_connections_are_lost() {
    for seed in 0..long(4, 40) {
        let mut cluster = Cluster::with_flags(3, 600 + seed, &SHORT_LOG);
        let leader = cluster.ready();
        let away = cluster.others(leader)[0];
        cluster.isolate(away, true);
        let behind = last_index(&cluster, away);
        let keys = outrun(&mut cluster, leader, behind);
        // More than a few parts.
        for number in 0..300 {
            let slot = cluster.put(leader, &format!("large{number}"), &"x".repeat(30_000));
            assert_eq!(cluster.reply(leader, slot), Ok(()));
        }
        cluster.run_ms(2000);
        cluster.isolate(away, false);
        cluster.until(60_000, "a copy arrives", |cluster| receives(cluster, away));
        let (from, to) = (cluster.members[away].id(), cluster.members[leader].id());
        let mut cuts = 0;
        while cluster.members[away].went_over() == 0 {
            // Long enough to be missed, and short enough for the leader to stay.
            let pair = (from.min(to), from.max(to));
            cluster.lost_asks.insert(pair);
            cluster.run_ms(20 + seed * 10);
            cluster.lost_asks.clear();
            cluster.run_ms(50);
            cuts += 1;
            assert!(cuts < 500, "it gets nowhere");
        }
        assert!(cuts > 2, "{cuts}");
        assert_eq!(cluster.members[away].replica.snapshots.transfers(), 1, "it began once");
        assert_healed(&mut cluster, &keys);
    }
}

#[test]
fn a_receiver_that_crashes_at_any_time_of_the_transfer_gets_there_after_all() {
    for steps in (0..long(40, 400)).step_by(5) {
        let mut cluster = Cluster::with_flags(3, 200 + steps, &SHORT_LOG);
        let leader = cluster.ready();
        let away = cluster.others(leader)[0];
        cluster.crash(away);
        let behind = last_index(&cluster, away);
        let leader = cluster.leader_among(&[leader]);
        let keys = outrun(&mut cluster, leader, behind);
        cluster.restart(away);
        cluster.until(60_000, "a copy arrives", |cluster| {
            receives(cluster, away) || cluster.members[away].went_over() > 0
        });
        for _ in 0..steps {
            cluster.step();
        }
        cluster.crash(away);
        cluster.run_ms(500);
        cluster.restart(away);
        assert_healed(&mut cluster, &keys);
    }
}

#[test]
fn a_sender_that_is_lost_during_the_transfer_is_followed_by_the_next_leader() {
    for seed in 0..long(6, 60) {
        let mut cluster = Cluster::with_flags(5, 300 + seed, &SHORT_LOG);
        let leader = cluster.ready();
        let away = cluster.others(leader)[0];
        cluster.isolate(away, true);
        let behind = last_index(&cluster, away);
        let leader = cluster.leader_among(&[leader]);
        let keys = outrun(&mut cluster, leader, behind);
        cluster.isolate(away, false);
        cluster.until(60_000, "a copy arrives", |cluster| receives(cluster, away));
        for _ in 0..seed {
            cluster.step();
        }
        let lost = cluster.members.iter().position(Member::leads).unwrap_or(leader);
        match seed % 3 {
            0 => cluster.crash(lost),
            _ => cluster.isolate(lost, true),
        }
        cluster.run_ms(8_000);
        match seed % 3 {
            0 => cluster.restart(lost),
            _ => cluster.isolate(lost, false),
        }
        cluster
            .until(90_000, "it goes over to it", |cluster| cluster.members[away].went_over() > 0);
        assert_healed(&mut cluster, &keys);
    }
}

#[test]
fn a_copy_that_the_disk_has_no_room_for_is_given_up_and_comes_again() {
    let mut cluster = Cluster::with_flags(3, 91, &SHORT_LOG);
    let leader = cluster.ready();
    let away = cluster.others(leader)[0];
    cluster.isolate(away, true);
    let behind = last_index(&cluster, away);
    let keys = outrun(&mut cluster, leader, behind);
    cluster.members[away].disk.set_full(true);
    cluster.isolate(away, false);
    cluster.run_ms(40_000);
    assert_eq!(cluster.members[away].went_over(), 0);
    assert!(!receives(&cluster, away), "what cannot be completed takes no room");
    cluster.members[away].disk.set_full(false);
    cluster.until(60_000, "it goes over to it", |cluster| cluster.members[away].went_over() > 0);
    assert_healed(&mut cluster, &keys);
}

#[test]
fn nothing_is_lost_when_everything_happens_and_the_log_is_short() {
    let mut went_over = 0;
    for seed in 0..long(100, 2000) {
        went_over += chaos_with(5000 + seed, &SHORT_LOG, 8000);
    }
    assert!(went_over > 15, "{went_over} snapshots were installed");
}
