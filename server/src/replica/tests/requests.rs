//! Proposals and reads through leaders and followers, with crashes, cuts and losses.

use super::*;

#[test]
fn a_cluster_of_any_size_elects_one_leader_serves_and_agrees() {
    for count in 1..=7 {
        let mut cluster = Cluster::new(count, count as u64);
        cluster.ready();
        let mut keys = Vec::new();
        for at in 0..count {
            let key = format!("k{at}");
            let slot = cluster.put(at, &key, "v");
            assert_eq!(cluster.reply(at, slot), Ok(()));
            keys.push(key);
        }
        for at in 0..count {
            cluster.read(at);
            assert!(keys.iter().all(|key| cluster.members[at].get(key).as_deref() == Some("v")));
        }
        cluster.agree(&keys);
        let view = cluster.members[0].shared.view.load();
        assert_eq!(view.cluster_version.as_deref(), Some("3.7.0"));
        let names: Vec<&str> = view.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names.len(), count);
        assert!(view.members.iter().all(|member| member.client_urls.len() == 1), "{names:?}");
    }
}

#[test]
fn a_follower_answers_a_put_once_it_has_applied_it_and_reads_see_it_everywhere() {
    let mut cluster = Cluster::new(3, 11);
    let leader = cluster.ready();
    for (number, at) in cluster.others(leader).into_iter().cycle().take(40).enumerate() {
        let value = number.to_string();
        let slot = cluster.put(at, "k", &value);
        assert_eq!(cluster.reply(at, slot), Ok(()));
        assert_eq!(cluster.members[at].get("k"), Some(value.clone()), "applied before answered");
        let other = (at + 1) % 3;
        cluster.read(other);
        assert_eq!(cluster.members[other].get("k"), Some(value), "linearizable on another member");
    }
}

#[test]
fn a_leader_proposes_nothing_for_others_that_cannot_be_applied() {
    let mut cluster = Cluster::new(3, 14);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    // No front of ours lets these through; a member of another make may.
    for (field, request) in [(RAFT_PUT, &b"\xff"[..]), (6, b"\x0b"), (1400, b"")] {
        cluster.propose(follower, field, request);
    }
    let slot = cluster.put(follower, "k", "v");
    assert_eq!(cluster.reply(follower, slot), Ok(()));
    // Deeper than prost goes.
    let mut groups = vec![0x7b; 200];
    groups.extend([0x7c; 200]);
    groups.extend(pb::PutRequest { key: "deep".into(), ..Default::default() }.encode_to_vec());
    let slot = cluster.propose(follower, RAFT_PUT, &groups);
    assert_eq!(cluster.reply(follower, slot), Ok(()));
    cluster.agree(&["k".to_owned(), "deep".to_owned()]);
    assert!(cluster.members.iter().all(|member| member.shared.lifecycle.failure().is_none()));
}

#[test]
fn many_forwarded_proposals_go_in_several_messages_and_are_all_answered() {
    let mut cluster = Cluster::new(3, 12);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    let value = "x".repeat(40_000);
    let slots: Vec<(usize, Slot)> = (0..120)
        .map(|number| {
            let at = if number % 3 == 0 { leader } else { follower };
            (at, cluster.put(at, &format!("k{number}"), &value))
        })
        .collect();
    for (at, slot) in slots {
        assert_eq!(cluster.reply(at, slot), Ok(()));
    }
    cluster.agree(&["k0".to_owned(), "k119".to_owned()]);
}

#[test]
fn a_burst_of_proposals_is_applied_a_bounded_number_a_turn_and_none_is_refused() {
    let mut cluster = Cluster::new(3, 16);
    let leader = cluster.ready();
    let slots: Vec<Slot> =
        (0..14_000).map(|number| cluster.put(leader, &format!("k{number}"), "v")).collect();
    let mut before = [u64::MAX; 3];
    cluster.until(60_000, "all are answered", |cluster| {
        for (at, before) in before.iter_mut().enumerate() {
            let applied = cluster.members[at].shared.status.applied.load(Ordering::Relaxed);
            let in_turn = applied.saturating_sub(*before) as usize;
            assert!(in_turn <= limits::APPLY_LONG_TURN_COST, "{in_turn} entries in one turn");
            *before = applied;
        }
        slots.iter().rev().all(|slot| cluster.members[leader].replies.contains_key(slot))
    });
    for slot in slots {
        assert_eq!(cluster.reply(leader, slot), Ok(()));
    }
    cluster.agree(&["k0".to_owned(), "k13999".to_owned()]);
}

#[test]
fn requests_wait_for_an_election_and_then_succeed() {
    let mut cluster = Cluster::new(3, 13);
    let leader = cluster.ready();
    let others = cluster.others(leader);
    cluster.crash(leader);
    cluster.until(10_000, "the followers notice", |cluster| {
        let known = |at: &usize| cluster.members[*at].shared.status.leader.load(Ordering::Relaxed);
        others.iter().all(|at| known(at) == 0)
    });
    let slot = cluster.put(others[0], "k", "v");
    assert_eq!(cluster.reply(others[0], slot), Ok(()));
    cluster.read(others[1]);
    assert_eq!(cluster.members[others[1]].get("k").as_deref(), Some("v"));
    cluster.restart(leader);
    cluster.agree(&["k".to_owned()]);
}

#[test]
fn a_proposal_that_is_lost_on_its_way_is_given_up_after_the_request_timeout() {
    let mut cluster = Cluster::new(3, 14);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    // It still believes in its leader and forwards; nobody has noticed yet.
    let slot = cluster.put(follower, "k", "v");
    let begun_ms = cluster.now_ms;
    cluster.lost = 1000;
    cluster.step();
    cluster.isolate(follower, true);
    cluster.lost = 0;
    assert_eq!(cluster.members[follower].replica.proposals.forwarded_len(), 1);
    assert_eq!(cluster.reply(follower, slot), Err("etcdserver: request timed out".to_owned()));
    let took_ms = cluster.now_ms - begun_ms;
    assert!((7000..7300).contains(&took_ms), "{took_ms} ms");
    cluster.isolate(follower, false);
    cluster.ready();
    cluster.run_ms(1000);
    assert_eq!(cluster.members[follower].replies[&slot].len(), 1, "not answered twice");
}

#[test]
fn a_proposal_is_not_sent_to_a_leader_that_is_gone() {
    let mut cluster = Cluster::new(3, 17);
    let leader = cluster.ready();
    let follower = cluster.others(leader)[0];
    cluster.crash(leader);
    // Long before it gives its leader up.
    let slot = cluster.put(follower, "k", "v");
    assert_eq!(cluster.reply(follower, slot), Ok(()));
}

#[test]
fn what_a_cut_off_leader_has_taken_is_answered_by_what_becomes_of_it() {
    let mut lost = 0;
    for seed in 0..10 {
        let mut cluster = Cluster::new(3, 100 + seed);
        let leader = cluster.ready();
        cluster.isolate(leader, true);
        let slots: Vec<Slot> =
            (0..5).map(|number| cluster.put(leader, &format!("old{number}"), "v")).collect();
        cluster.run_ms(50);
        let others = cluster.others(leader);
        cluster.until(10_000, "another leader", |cluster| {
            others.iter().any(|at| cluster.members[*at].leads())
        });
        let slot = cluster.put(others[0], "new", "v");
        assert_eq!(cluster.reply(others[0], slot), Ok(()));
        cluster.isolate(leader, false);
        for (number, slot) in slots.into_iter().enumerate() {
            let outcome = cluster.reply(leader, slot);
            cluster.read(leader);
            let found = cluster.members[leader].get(&format!("old{number}"));
            assert_eq!(outcome.is_ok(), found.is_some(), "{outcome:?}");
            lost += u64::from(outcome.is_err());
        }
        cluster.agree(&["new".to_owned()]);
    }
    assert!(lost > 0, "some were overwritten");
}

#[test]
fn a_member_that_was_away_catches_up_from_the_log_of_another() {
    let mut cluster = Cluster::with_flags(3, 15, &["--snapshot-catchup-entries=100000"]);
    let leader = cluster.ready();
    let away = cluster.others(leader)[0];
    cluster.crash(away);
    // Far more than is kept in memory for slow peers.
    let value = "x".repeat(10_000);
    for number in 0..600 {
        let slot = cluster.put(leader, &format!("k{number}"), &value);
        if number % 50 == 0 {
            assert_eq!(cluster.reply(leader, slot), Ok(()));
        }
    }
    cluster.run_ms(2000);
    cluster.restart(away);
    cluster.agree(&["k0".to_owned(), "k599".to_owned()]);
}

#[test]
fn a_follower_whose_disk_stands_still_holds_up_nobody() {
    let mut cluster = Cluster::new(3, 16);
    let leader = cluster.ready();
    let slow = cluster.others(leader)[0];
    cluster.members[slow].holds_writes = true;
    for number in 0..50 {
        let slot = cluster.put(leader, &format!("k{number}"), "v");
        assert_eq!(cluster.reply(leader, slot), Ok(()));
    }
    cluster.members[slow].holds_writes = false;
    cluster.agree(&["k0".to_owned(), "k49".to_owned()]);
}

#[test]
fn nothing_acknowledged_is_lost_over_crashes_cuts_and_losses() {
    let seeds = if std::env::var_os("ETCORE_LONG").is_some() { 300 } else { 12 };
    for seed in 0..seeds {
        chaos(seed);
    }
}

/// Clients of all members write keys of their own while members crash, restart and are cut off; in
/// the end all agree, every acknowledged write is there, and no request was answered twice.
fn chaos(seed: u64) {
    chaos_with(1000 + seed, &[], 10);
}

/// With values of so many bytes; returns how many snapshots members have gone over to.
pub(super) fn chaos_with(seed: u64, extra: &[&str], bytes: usize) -> u64 {
    let mut cluster = Cluster::with_flags(3, seed, extra);
    let mut went_over = 0;
    cluster.ready();
    let mut acknowledged = Vec::new();
    let mut open: Expected = VecDeque::new();
    let mut number = 0;
    for _ in 0..60 {
        cluster.lost = cluster.prng.below(100);
        match cluster.prng.below(6) {
            0 => {
                let at = cluster.prng.index(3);
                let down = cluster.members.iter().filter(|member| !member.up).count();
                if cluster.members[at].up && down == 0 {
                    cluster.crash(at);
                    open.retain(|(_, through, _, _)| *through != at);
                }
            }
            1 => {
                for at in 0..3 {
                    if !cluster.members[at].up {
                        went_over += cluster.members[at].went_over();
                        cluster.restart(at);
                    }
                }
            }
            2 => {
                let at = cluster.prng.index(3);
                cluster.isolate(at, true);
            }
            3 => (0..3).for_each(|at| cluster.isolate(at, false)),
            _ => {}
        }
        for _ in 0..cluster.prng.below(5) {
            let at = cluster.prng.index(3);
            if cluster.members[at].up {
                number += 1;
                let (key, value) = (format!("k{number}"), format!("{seed}-{number:bytes$}"));
                let slot = cluster.put(at, &key, &value);
                open.push_back((slot, at, key, value));
            }
        }
        cluster.run_ms(100);
        open.retain(|(slot, at, key, value)| {
            let Some(replies) = cluster.members[*at].replies.get(slot) else { return true };
            assert_eq!(replies.len(), 1, "seed {seed}: answered once");
            if matches!(replies[0], Reply::Header { .. }) {
                acknowledged.push((key.clone(), value.clone()));
            }
            false
        });
    }
    cluster.lost = 0;
    for at in 0..3 {
        cluster.isolate(at, false);
        if !cluster.members[at].up {
            went_over += cluster.members[at].went_over();
            cluster.restart(at);
        }
    }
    let leader = cluster.ready();
    let slot = cluster.put(leader, "last", "v");
    assert_eq!(cluster.reply(leader, slot), Ok(()), "seed {seed}: it heals");
    let keys: Vec<String> = (1..=number).map(|number| format!("k{number}")).collect();
    cluster.agree(&keys);
    for (key, value) in acknowledged {
        assert_eq!(cluster.members[0].get(&key), Some(value), "seed {seed}: {key} was lost");
    }
    went_over + cluster.members.iter().map(Member::went_over).sum::<u64>()
}

#[test]
fn a_read_does_not_wait_behind_proposals_that_nobody_can_take() {
    let mut cluster = Cluster::new(1, 18);
    let at = cluster.ready();
    // While its log is busy a leader takes no proposals, but a sole voter answers reads.
    cluster.members[at].holds_writes = true;
    let value = "x".repeat(20_000);
    let slots: Vec<Slot> = (0..2000)
        .map(|number| {
            let slot = cluster.put(at, &format!("k{number}"), &value);
            if number % 100 == 0 {
                cluster.step();
            }
            slot
        })
        .collect();
    cluster.run_ms(100);
    assert!(cluster.members[at].replica.intake.waits(), "the log is busy");
    let waiting = cluster.put(at, "k", "v");
    cluster.read(at);
    assert!(!cluster.members[at].replies.contains_key(&waiting));
    cluster.members[at].holds_writes = false;
    for slot in slots.into_iter().chain([waiting]) {
        assert_eq!(cluster.reply(at, slot), Ok(()));
    }
    assert_eq!(cluster.members[at].get("k").as_deref(), Some("v"));
}

#[test]
fn small_requests_go_on_while_large_ones_wait_for_a_spare_segment() {
    let mut cluster = Cluster::new(1, 41);
    let at = cluster.ready();
    cluster.members[at].spare.lock().unwrap().shut = true;
    let large = "x".repeat(100_000);
    let waiting = (0..40)
        .find_map(|number| {
            let slot = cluster.put(at, &format!("large{number}"), &large);
            cluster.run_ms(300);
            (!cluster.members[at].replies.contains_key(&slot)).then_some(slot)
        })
        .expect("a segment that is used up");
    for number in 0..50 {
        let small = cluster.put(at, &format!("small{number}"), "v");
        assert_eq!(cluster.reply(at, small), Ok(()));
        cluster.read(at);
        let replica = &cluster.members[at].replica;
        assert!(
            replica.intake.waits_for_spare() && !replica.has_input(),
            "it sleeps until something comes"
        );
    }
    // Once nothing fits any more, small ones wait too, and none is refused.
    let slots: Vec<Slot> =
        (0..40).map(|number| cluster.put(at, &format!("k{number}"), &large[..30_000])).collect();
    cluster.run_ms(300);
    let full = slots.iter().position(|slot| !cluster.members[at].replies.contains_key(slot));
    assert!(full.is_some(), "the segment holds no 1.2 MB");
    assert!(!cluster.members[at].replica.has_input());
    assert!(!cluster.members[at].replies.contains_key(&waiting));
    cluster.members[at].open_gate();
    for slot in slots.into_iter().chain([waiting]) {
        assert_eq!(cluster.reply(at, slot), Ok(()));
    }
}

#[test]
fn the_shard_is_told_of_large_entries_before_they_are_logged_and_before_they_are_applied() {
    let mut cluster = Cluster::new(1, 42);
    let at = cluster.ready();
    for (length, is_large) in [(10, false), (100_000, true), (1_000, false)] {
        cluster.put(at, "key", &"x".repeat(length));
        let (mut logs, mut applies) = (0, 0);
        for _ in 0..100 {
            cluster.now_ms += 1;
            let member = &mut cluster.members[at];
            member.finish_write();
            member.run_background();
            let applied = member.replica.shared.status.applied.load(Ordering::Relaxed);
            let stages = member.turn(cluster.now_ms);
            logs += usize::from(stages.contains(&Stage::SendBeforeLog));
            let applies_large = stages.contains(&Stage::SendBeforeApply);
            let after = member.replica.shared.status.applied.load(Ordering::Relaxed);
            if after > applied {
                assert_eq!(applies_large, is_large, "a value of {length} bytes");
                applies += 1;
            }
        }
        assert_eq!((logs, applies), (usize::from(is_large), 1), "a value of {length} bytes");
    }
}

/// A message of the leader that appends one committed entry to a member's log.
fn append(
    cluster: &Cluster,
    leader: usize,
    to: usize,
    change: &raftpb::ConfChangeV2,
) -> raftpb::Message {
    let status = cluster.members[to].replica.log.node.status();
    let index = status.last_index.0 + 1;
    raftpb::Message {
        r#type: Some(MessageType::MsgApp as i32),
        to: Some(status.id),
        from: Some(cluster.members[leader].shared.member_id),
        term: Some(status.soft_state.term.0),
        log_term: Some(status.soft_state.term.0),
        index: Some(index - 1),
        entries: vec![raftpb::Entry {
            r#type: Some(raftpb::EntryType::EntryConfChangeV2 as i32),
            term: Some(status.soft_state.term.0),
            index: Some(index),
            data: Some(change.encode_to_vec().into()),
        }],
        commit: Some(index),
        ..raftpb::Message::default()
    }
}

#[test]
fn a_configuration_change_of_the_second_form_stops_no_member_unless_it_changes_the_members() {
    let mut cluster = Cluster::new(3, 17);
    let leader = cluster.ready();
    let [first, second] = cluster.others(leader)[..] else { panic!("three members") };
    let slot = cluster.put(leader, "k", "v");
    assert_eq!(cluster.reply(leader, slot), Ok(()));
    cluster.agree(&["k".to_owned()]);
    let change = |transition, changes| raftpb::ConfChangeV2 {
        transition: Some(transition),
        changes,
        context: None,
    };
    // Nothing, the beginning of two quorums, and their end.
    cluster.isolate(first, true);
    for (transition, outgoing) in [(0, 0), (2, 3), (0, 0)] {
        let message = append(&cluster, leader, first, &change(transition, Vec::new()));
        let index = message.commit;
        cluster.members[first].replica.step(message);
        cluster.until(500, "it is applied", |cluster| {
            Some(cluster.members[first].replica.store.applied().0.0) == index
        });
        let conf_state = cluster.members[first].replica.log.node.conf_state();
        assert_eq!((conf_state.voters.len(), conf_state.voters_outgoing.len()), (3, outgoing));
    }
    // Nobody knows where a member is that one adds.
    cluster.isolate(second, true);
    let added = raftpb::ConfChangeSingle { r#type: Some(0), node_id: Some(99) };
    let message = append(&cluster, leader, second, &change(0, vec![added]));
    let member = &mut cluster.members[second];
    member.replica.step(message);
    for _ in 0..10 {
        cluster.now_ms += STEP_MS;
        let member = &mut cluster.members[second];
        member.finish_write();
        member.turn(cluster.now_ms);
    }
    let reason = cluster.members[second].shared.lifecycle.failure().unwrap_or_default();
    assert!(reason.contains("second form changes members"), "{reason:?}");
    cluster.crash(second);
}
