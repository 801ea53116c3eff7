//! Member and cluster IDs, derived exactly as etcd derives them, so that a directory, a peer or a
//! tool of etcd's recognises them (etcd `server/etcdserver/api/membership`: member.go, cluster.go).

use sha1::{Digest, Sha1};

/// The ID of a member that joins a running cluster: of its peer URLs and the second in which it was
/// added, since 1970 (etcd `computeMemberID` with an empty token and a time).
pub fn added_member_id(peer_urls: &[String], unix_s: u64) -> u64 {
    member_id(peer_urls, &unix_s.to_string())
}

/// The ID of a member of an initial cluster: SHA-1 of its sorted peer URLs and the cluster token.
pub fn member_id(peer_urls: &[String], token: &str) -> u64 {
    let mut urls = peer_urls.to_vec();
    urls.sort();
    let mut hash = Sha1::new();
    for url in &urls {
        hash.update(url.as_bytes());
    }
    hash.update(token.as_bytes());
    first_eight(&hash.finalize())
}

/// The ID of a cluster: SHA-1 of its initial members' IDs in ascending order.
pub fn cluster_id(member_ids: &[u64]) -> u64 {
    let mut ids = member_ids.to_vec();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    for id in ids {
        hash.update(id.to_be_bytes());
    }
    first_eight(&hash.finalize())
}

fn first_eight(hash: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_member_has_the_ids_every_etcd_user_knows() {
        let member = member_id(&["http://localhost:2380".to_owned()], "etcd-cluster");
        assert_eq!(format!("{member:x}"), "8e9e05c52164694d");
        assert_eq!(format!("{:x}", cluster_id(&[member])), "cdf818194e3a8c32");
    }

    #[test]
    fn three_members_have_the_ids_that_etcd_gives_them() {
        let id = |port| member_id(&[format!("http://127.0.0.1:{port}")], "etcd-cluster");
        let ids = [id(27001), id(27002), id(27003)];
        assert_eq!(ids, [0xb2d7_b835_ca9f_3eef, 0x87e0_ff10_074b_ec59, 0xf7e9_1546_2127_6467]);
        assert_eq!(cluster_id(&ids), 15_876_151_104_762_603_781);
    }
}
