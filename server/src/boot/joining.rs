//! Joining a running cluster, with `--initial-cluster-state=existing`: who this member is there.
//!
//! Called by boot for a member without a log, before any thread runs. Somebody has added the member
//! to the cluster before; the others know it by its peer URLs, and its ID from then on. The checks,
//! their order and their texts are etcd's (`bootstrapExistingClusterNoWAL`,
//! `ValidateClusterAndAssignIDs`).

use etcore_engine::types::Identity;

use super::remote::{self, RemoteCluster};
use crate::cluster::change;
use crate::cluster::member::Member;
use crate::config::{Config, cluster};
use crate::tls::Tls;

/// Asks the other members of `--initial-cluster`.
///
/// # Errors
/// Why this member cannot join.
pub(super) fn ask(config: &Config, tls: &Tls) -> Result<Identity, String> {
    cluster::verify_join(config)?;
    let others = config.initial_cluster.iter().filter(|(name, _)| **name != config.name);
    let found = remote::cluster(others.flat_map(|(_, urls)| urls).collect(), tls)
        .map_err(|error| format!("cannot fetch cluster info from peer urls: {error}"))?;
    let member_id = own_id(config, &found, &remote::resolved)
        .map_err(|error| format!("error validating peerURLs {}: {error}", shown(&found)))?;
    change::check_learners(&found.members, 0, config.learners_max)
        .map_err(|error| error.to_string())?;
    Ok(Identity { cluster_id: found.id, member_id })
}

/// Finds this member among those that the cluster has, all of which must be in the initial cluster.
fn own_id(
    config: &Config,
    found: &RemoteCluster,
    resolve: &dyn Fn(&str) -> Result<String, String>,
) -> Result<u64, String> {
    if found.members.len() != config.initial_cluster.len() {
        return Err("member count is unequal".to_owned());
    }
    let mut own = None;
    for member in &found.members {
        let mut last = String::from("<nil>");
        let is_it = |urls: &[String], last: &mut String| {
            cluster::same_addresses(&member.peer_urls, urls, resolve)
                .map_err(|error| *last = error)
                .is_ok()
        };
        let name = config.initial_cluster.iter().find(|(_, urls)| is_it(urls, &mut last));
        match name {
            Some((name, _)) if *name == config.name => own = Some(member.id),
            Some(_) => {}
            None => {
                let urls = member.peer_urls.join(" ");
                return Err(format!(
                    "PeerURLs: no match found for existing member ({:x}, [{urls}]), last resolver \
                     error ({last})",
                    member.id
                ));
            }
        }
    }
    own.ok_or_else(|| format!("member {:?} is not among the cluster's members", config.name))
}

/// As Go prints it.
fn shown(found: &RemoteCluster) -> String {
    let members: Vec<String> = found.members.iter().map(shown_member).collect();
    format!("{{ClusterID:{:x} Members:[{}] RemovedMemberIDs:[]}}", found.id, members.join(" "))
}

fn shown_member(member: &Member) -> String {
    format!(
        "&{{ID:{:x} RaftAttributes:{{PeerURLs:[{}] IsLearner:{}}} Attributes:{{Name:{} \
         ClientURLs:[{}]}}}}",
        member.id,
        member.peer_urls.join(" "),
        member.is_learner,
        member.name,
        member.client_urls.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::{self, Asked};

    fn member(id: u64, url: &str) -> Member {
        Member { id, peer_urls: vec![url.to_owned()], ..Default::default() }
    }

    fn find(cluster: &str, members: Vec<Member>) -> Result<u64, String> {
        let args = ["--name=b".to_owned(), format!("--initial-cluster={cluster}")];
        let Ok(Asked::Run(config, _)) = flags::parse(args, []) else { panic!("flags") };
        let resolve = |url: &str| Ok(url.replace("localhost", "127.0.0.1"));
        own_id(&config, &RemoteCluster { id: 7, members }, &resolve)
    }

    #[test]
    fn a_member_is_the_one_with_its_urls() {
        let both = "a=http://127.0.0.1:1,b=http://localhost:2";
        let known = || vec![member(5, "http://127.0.0.1:1"), member(6, "http://127.0.0.1:2")];
        assert_eq!(find(both, known()), Ok(6));
        let few = find("b=http://localhost:2", known()).unwrap_err();
        assert_eq!(few, "member count is unequal");
        let other = vec![member(5, "http://127.0.0.1:1"), member(0xab, "http://127.0.0.1:3")];
        assert!(find(both, other).unwrap_err().starts_with(
            "PeerURLs: no match found for existing member (ab, [http://127.0.0.1:3]), last"
        ));
    }

    #[test]
    fn a_cluster_is_shown_as_go_shows_it() {
        let mut first = member(0x66, "http://a:1");
        (first.name, first.client_urls) = ("a".into(), vec!["http://a:2".into()]);
        let found = RemoteCluster { id: 0xdc, members: vec![first] };
        assert_eq!(
            shown(&found),
            "{ClusterID:dc Members:[&{ID:66 RaftAttributes:{PeerURLs:[http://a:1] \
             IsLearner:false} Attributes:{Name:a ClientURLs:[http://a:2]}}] RemovedMemberIDs:[]}"
        );
    }
}
