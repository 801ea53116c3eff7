//! A disk that hangs: whoever leads with it leads no longer, and all come back by themselves.

use super::*;
use crate::limits;

const ELECTION_MS: u64 = 1000;

#[test]
fn a_leader_whose_log_stands_still_hands_over_and_follows_again_when_it_goes_on() {
    for seed in 41..45 {
        let mut cluster = Cluster::new(3, seed);
        let leader = cluster.ready();
        let slot = cluster.put(leader, "before", "v");
        assert_eq!(cluster.reply(leader, slot), Ok(()));
        cluster.members[leader].holds_writes = true;
        let hung_ms = cluster.now_ms;
        // What is on its way when the disk hangs is answered too: others have it.
        let mut slots = Vec::new();
        for number in 0..20 {
            let at = cluster.others(leader)[number % 2];
            slots.push((at, cluster.put(at, &format!("k{number}"), "v"), cluster.now_ms));
            cluster.run_ms(100);
        }
        for (at, slot, asked_ms) in slots {
            cluster.until(20_000, "a reply", |cluster| {
                cluster.members[at].replies.contains_key(&slot)
            });
            let waited_ms = cluster.now_ms.saturating_sub(asked_ms.max(hung_ms + 2000));
            assert_eq!(cluster.reply(at, slot), Ok(()), "{waited_ms} ms");
        }
        let other = cluster.others(leader)[0];
        let slot = cluster.put(other, "meanwhile", "v");
        let asked_ms = cluster.now_ms;
        assert_eq!(cluster.reply(other, slot), Ok(()));
        assert!(cluster.now_ms - asked_ms <= 2 * ELECTION_MS);
        assert!(!cluster.members[leader].replica.is_leader(), "seed {seed}");
        cluster.run_ms(limits::STALL_MS);
        let stalled = cluster.members[leader].shared.status.stalled.load(Ordering::Relaxed);
        assert_ne!(stalled, 0, "health says so");
        cluster.members[leader].holds_writes = false;
        cluster.run_ms(5000);
        let stalled = cluster.members[leader].shared.status.stalled.load(Ordering::Relaxed);
        assert_eq!(stalled, 0);
        cluster.agree(&["before".to_owned(), "meanwhile".to_owned(), "k19".to_owned()]);
    }
}
