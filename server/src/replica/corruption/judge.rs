//! What the hashes of the members say about who is corrupt: etcd's rules, as functions of hashes
//! alone (`server/etcdserver/corrupt.go`: PeriodicCheck and checkPeerHashes).
//!
//! Used by the rounds of `corruption`; tells what it finds in the log and changes nothing.

use std::collections::BTreeMap;

use etcore_engine::hash::KvHash;

use crate::cluster::hashkv::PeerHash;

/// A member's hash if it has one.
type Hashes = [(u64, Option<PeerHash>)];

/// What came of the comparison of one compaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Who differs from the majority; 0 if there is none.
    pub(super) suspects: Vec<u64>,
    /// All members have the same hash.
    pub(super) is_equal: bool,
    /// Older compactions need not be looked at.
    pub(super) is_final: bool,
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}

/// The first member that the leader finds to differ, of all data up to `own`'s revision. `again` is
/// the leader's hash after the others answered, with its newest revision then.
pub(super) fn all_data(
    leader: u64,
    own: &KvHash,
    (again, newest): (&KvHash, i64),
    others: &Hashes,
) -> Option<u64> {
    let mut suspect = None;
    let is_same_point =
        again.revision == own.revision && again.compact_revision == own.compact_revision;
    if again.hash != own.hash && is_same_point {
        tracing::warn!(
            revision_1 = own.revision.0,
            compact_revision_1 = own.compact_revision.0,
            hash_1 = own.hash,
            revision_2 = again.revision.0,
            compact_revision_2 = again.compact_revision.0,
            hash_2 = again.hash,
            "found hash mismatch"
        );
        suspect.get_or_insert(leader);
    }
    let mut checked = 0;
    for (id, hash) in others {
        let Some(hash) = hash else { continue };
        checked += 1;
        let follower_peer_id = hex(*id);
        if hash.newest > newest {
            tracing::warn!(
                leader_revision = newest,
                follower_revision = hash.newest,
                %follower_peer_id,
                "revision from follower must be less than or equal to leader's"
            );
            suspect.get_or_insert(*id);
        }
        if hash.compact_revision > again.compact_revision.0 {
            tracing::warn!(
                leader_compact_revision = again.compact_revision.0,
                follower_compact_revision = hash.compact_revision,
                %follower_peer_id,
                "compact revision from follower must be less than or equal to leader's"
            );
            suspect.get_or_insert(*id);
        }
        if hash.compact_revision == own.compact_revision.0 && hash.hash != own.hash {
            tracing::warn!(
                leader_compact_revision = again.compact_revision.0,
                leader_hash = own.hash,
                follower_compact_revision = hash.compact_revision,
                follower_hash = hash.hash,
                %follower_peer_id,
                "same compact revision then hashes must match"
            );
            suspect.get_or_insert(*id);
        }
    }
    tracing::info!(number_of_peers_checked = checked, "finished peer corruption check");
    suspect
}

/// Compares the hashes that one compaction left.
pub(super) fn compaction(leader: u64, own: &KvHash, others: &Hashes) -> Verdict {
    let mut by_hash = BTreeMap::from([(own.hash, vec![leader])]);
    let mut checked = 0;
    for (id, hash) in others {
        let reason = match hash {
            None => "no response".to_owned(),
            Some(hash) if hash.compact_revision != own.compact_revision.0 => format!(
                "the peer's CompactRevision {} doesn't match leader's CompactRevision {}",
                hash.compact_revision, own.compact_revision.0
            ),
            Some(hash) => {
                checked += 1;
                by_hash.entry(hash.hash).or_default().push(*id);
                continue;
            }
        };
        tracing::warn!(
            number_of_peers = others.len(),
            leader_id = %hex(leader),
            peer_id = %hex(*id),
            reason,
            "Skipped peer's hash"
        );
    }
    if by_hash.len() == 1 {
        return equal(own, checked, others.len());
    }
    let members = others.len() + 1;
    let quorum = members / 2 + 1;
    let majority = by_hash.iter().find(|(_, ids)| ids.len() >= quorum).map(|(hash, _)| *hash);
    if let Some(hash) = majority {
        by_hash.remove(&hash);
    } else {
        tracing::error!(
            leader_id = %hex(leader),
            leader_revision = own.revision.0,
            leader_compact_revision = own.compact_revision.0,
            leader_hash = own.hash,
            "Detected compaction hash mismatch but cannot identify the corrupted members, so \
             intentionally set the memberID as 0"
        );
    }
    for (hash, ids) in &by_hash {
        let peer_ids: Vec<String> = ids.iter().copied().map(hex).collect();
        tracing::error!(
            leader_id = %hex(leader),
            leader_revision = own.revision.0,
            leader_compact_revision = own.compact_revision.0,
            leader_hash = own.hash,
            peer_hash = *hash,
            peer_ids = %peer_ids.join(","),
            quorum_exist = majority.is_some(),
            "Detected compaction hash mismatch"
        );
    }
    let suspects =
        if majority.is_some() { by_hash.into_values().flatten().collect() } else { vec![0] };
    Verdict { suspects, is_equal: false, is_final: true }
}

/// Nobody differs who was asked.
fn equal(own: &KvHash, checked: usize, others: usize) -> Verdict {
    let is_everybody = checked == others;
    if is_everybody {
        tracing::info!(
            number_of_peers_checked = checked,
            revision = own.revision.0,
            compact_revision = own.compact_revision.0,
            "successfully checked hash on whole cluster"
        );
    } else {
        tracing::warn!(
            number_of_peers_checked = checked,
            number_of_peers = others,
            revision = own.revision.0,
            compact_revision = own.compact_revision.0,
            "skipped revision in compaction hash check; was not able to check all peers"
        );
    }
    Verdict { suspects: Vec::new(), is_equal: is_everybody, is_final: is_everybody }
}

#[cfg(test)]
mod tests {
    use etcore_engine::types::Revision;

    use super::*;

    fn own(hash: u32, revision: i64, compacted: i64) -> KvHash {
        KvHash { hash, revision: Revision(revision), compact_revision: Revision(compacted) }
    }

    fn theirs(hash: u32, newest: i64, compact_revision: i64) -> Option<PeerHash> {
        Some(PeerHash { hash, compact_revision, newest })
    }

    #[test]
    fn whoever_differs_at_the_same_compaction_is_found() {
        let leader = own(1, 10, 5);
        let judge = |others: &Hashes| all_data(1, &leader, (&leader, 10), others);
        assert_eq!(judge(&[(2, theirs(1, 10, 5)), (3, None)]), None);
        assert_eq!(judge(&[(2, theirs(1, 10, 5)), (3, theirs(9, 8, 5))]), Some(3));
        assert_eq!(judge(&[(2, theirs(9, 10, 4))]), None, "another compaction");
        assert_eq!(judge(&[(2, theirs(1, 11, 5))]), Some(2), "it is ahead of its leader");
        assert_eq!(judge(&[(2, theirs(9, 10, 6))]), Some(2), "it has compacted more");
        let again = own(2, 10, 5);
        assert_eq!(all_data(1, &leader, (&again, 10), &[]), Some(1), "its own has changed");
        assert_eq!(all_data(1, &leader, (&own(2, 11, 5), 11), &[]), None, "it has gone on");
    }

    #[test]
    fn the_minority_is_to_blame_for_a_compactions_hash() {
        let leader = own(1, 10, 5);
        let judge = |others: &Hashes| compaction(1, &leader, others);
        let equal = Verdict { suspects: vec![], is_equal: true, is_final: true };
        assert_eq!(judge(&[(2, theirs(1, 12, 5)), (3, theirs(1, 11, 5))]), equal);
        assert_eq!(judge(&[(2, theirs(1, 12, 5)), (3, None)]), Verdict::default());
        let blamed = |suspects| Verdict { suspects, is_equal: false, is_final: true };
        assert_eq!(judge(&[(2, theirs(1, 12, 5)), (3, theirs(7, 12, 5))]), blamed(vec![3]));
        assert_eq!(judge(&[(2, theirs(7, 12, 5)), (3, theirs(7, 12, 5))]), blamed(vec![1]));
        assert_eq!(judge(&[(2, theirs(7, 12, 5)), (3, theirs(8, 12, 5))]), blamed(vec![0]));
        assert_eq!(judge(&[(2, theirs(7, 12, 5)), (3, None)]), blamed(vec![0]));
        assert_eq!(judge(&[(2, theirs(7, 12, 4)), (3, theirs(1, 12, 5))]), Verdict::default());
    }
}
