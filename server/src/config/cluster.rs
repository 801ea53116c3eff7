//! `--initial-cluster` and its companions: who founds a new cluster.
//!
//! Parsed by the flags; checked by boot, and only when there is no log yet: a member that has one
//! knows its cluster, and these flags mean nothing to it any more, as in etcd. Resolving names is
//! left to the caller.

use std::collections::BTreeMap;

use super::{Config, url};

/// Names of members and their peer URLs, sorted.
pub type InitialCluster = BTreeMap<String, Vec<String>>;

/// Parses `name=url` pairs, separated by commas; a name may come several times.
///
/// # Errors
/// What is wrong with a URL.
pub fn parse(text: &str) -> Result<InitialCluster, String> {
    let mut cluster = InitialCluster::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, peer_url) = pair.split_once('=').unwrap_or((pair, ""));
        let peer_url = peer_url.trim();
        url::ListenUrl::parse(peer_url)
            .map_err(|error| format!("error setting up initial cluster: {error}"))?;
        cluster.entry(name.to_owned()).or_default().push(peer_url.to_owned());
    }
    cluster.values_mut().for_each(|urls| urls.sort());
    Ok(cluster)
}

/// As the flag has it, sorted.
pub fn text(cluster: &InitialCluster) -> String {
    let pairs = cluster
        .iter()
        .flat_map(|(name, urls)| urls.iter().map(move |peer_url| format!("{name}={peer_url}")));
    let mut pairs: Vec<String> = pairs.collect();
    pairs.sort();
    pairs.join(",")
}

/// Checks that this member and its cluster can found each other. `resolve` gives the addresses of
/// a URL in a form that can be compared, or says why not.
///
/// # Errors
/// etcd's texts (`VerifyBootstrap`).
pub fn verify_bootstrap(
    config: &Config,
    resolve: impl Fn(&str) -> Result<String, String>,
) -> Result<(), String> {
    let name = &config.name;
    let listed = own_urls(config)?;
    if let Err(why) = same_addresses(&config.advertise_peer_urls, listed, resolve) {
        return Err(not_advertised(name, listed, &config.advertise_peer_urls, &why));
    }
    check_duplicates(config)
}

/// Checks what a member that joins a running cluster says of it.
///
/// # Errors
/// etcd's texts (`VerifyJoinExisting`).
pub fn verify_join(config: &Config) -> Result<(), String> {
    own_urls(config)?;
    check_duplicates(config)
}

fn own_urls(config: &Config) -> Result<&Vec<String>, String> {
    let name = &config.name;
    config.initial_cluster.get(name).ok_or_else(|| {
        format!("couldn't find local name {name:?} in the initial cluster configuration")
    })
}

fn check_duplicates(config: &Config) -> Result<(), String> {
    let mut all: Vec<&String> = config.initial_cluster.values().flatten().collect();
    let count = all.len();
    all.sort();
    all.dedup();
    if all.len() < count {
        let cluster = text(&config.initial_cluster);
        return Err(format!("initial cluster {cluster} has duplicate url"));
    }
    Ok(())
}

/// Whether two lists of URLs lead to the same addresses; the second one is sorted.
///
/// # Errors
/// In what they differ.
pub fn same_addresses(
    advertised: &[String],
    listed: &[String],
    resolve: impl Fn(&str) -> Result<String, String>,
) -> Result<(), String> {
    let mut advertised = advertised.to_vec();
    advertised.sort();
    if advertised.len() != listed.len() {
        return Err(format!("len({advertised:?}) != len({listed:?})"));
    }
    if advertised == listed {
        return Ok(());
    }
    let resolved = |urls: &[String]| -> Result<Vec<String>, String> {
        let mut all: Vec<String> =
            urls.iter().map(|peer_url| resolve(peer_url)).collect::<Result<_, _>>()?;
        all.sort();
        Ok(all)
    };
    let (ours, theirs) = (resolved(&advertised)?, resolved(listed)?);
    match ours.iter().zip(&theirs).find(|(a, b)| a != b) {
        None => Ok(()),
        Some((a, b)) => Err(format!("resolved urls: {a:?} != {b:?}")),
    }
}

fn not_advertised(name: &str, listed: &[String], advertised: &[String], why: &str) -> String {
    let mut sorted = advertised.to_vec();
    sorted.sort();
    let pairs = |urls: &[String]| {
        let pairs: Vec<String> = urls.iter().map(|peer_url| format!("{name}={peer_url}")).collect();
        pairs.join(",")
    };
    let without = |urls: &[String], others: &[String]| -> Vec<String> {
        urls.iter().filter(|peer_url| !others.contains(peer_url)).cloned().collect()
    };
    let missing = without(listed, &sorted);
    if !missing.is_empty() {
        return format!(
            "--initial-cluster has {} but missing from --initial-advertise-peer-urls={} ({why})",
            pairs(&missing),
            sorted.join(",")
        );
    }
    let missing = without(&sorted, listed);
    if !missing.is_empty() {
        return format!(
            "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
            missing.join(","),
            pairs(&sorted)
        );
    }
    format!(
        "failed to resolve {} to match --initial-cluster={} ({why})",
        sorted.join(","),
        pairs(&sorted)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::{self, Asked};

    fn verify(args: &[&str]) -> Result<(), String> {
        let args = args.iter().map(|arg| (*arg).to_owned());
        let Ok(Asked::Run(config, _)) = flags::parse(args, []) else { panic!("flags") };
        verify_bootstrap(&config, |peer_url| Ok(peer_url.replace("localhost", "127.0.0.1")))
    }

    #[test]
    fn a_member_may_have_several_urls_and_a_name_that_resolves_is_its_address() {
        let cluster = "--initial-cluster=a=http://127.0.0.1:2,b=http://h:1,a=http://127.0.0.1:1";
        let urls = "--initial-advertise-peer-urls=http://localhost:1,http://127.0.0.1:2";
        assert_eq!(verify(&["--name=a", cluster, urls]), Ok(()));
        let parsed = parse("a=http://z:1,,b=http://h:1,a=http://b:1").unwrap();
        assert_eq!(parsed["a"], ["http://b:1", "http://z:1"]);
        assert_eq!(text(&parsed), "a=http://b:1,a=http://z:1,b=http://h:1");
        assert!(parse("a").unwrap_err().starts_with("error setting up initial cluster: "));
    }

    #[test]
    fn what_does_not_fit_together_is_refused_with_etcds_words() {
        let ours = "--initial-advertise-peer-urls=http://10.0.0.1:2380";
        let both = "--initial-cluster=a=http://10.0.0.1:2380,b=http://10.0.0.2:2380";
        assert_eq!(
            verify(&["--name=c", both, ours]).unwrap_err(),
            "couldn't find local name \"c\" in the initial cluster configuration"
        );
        assert_eq!(
            verify(&["--name=b", both, ours]).unwrap_err(),
            "--initial-cluster has b=http://10.0.0.2:2380 but missing from \
             --initial-advertise-peer-urls=http://10.0.0.1:2380 (resolved urls: \
             \"http://10.0.0.1:2380\" != \"http://10.0.0.2:2380\")"
        );
        let more = "--initial-advertise-peer-urls=http://10.0.0.1:2380,http://10.0.0.3:1";
        assert_eq!(
            verify(&["--name=a", both, more]).unwrap_err(),
            "--initial-advertise-peer-urls has http://10.0.0.3:1 but missing from \
             --initial-cluster=a=http://10.0.0.1:2380,a=http://10.0.0.3:1"
        );
        let twice = "--initial-cluster=a=http://10.0.0.1:2380,b=http://10.0.0.1:2380";
        assert_eq!(
            verify(&["--name=a", twice, ours]).unwrap_err(),
            "initial cluster a=http://10.0.0.1:2380,b=http://10.0.0.1:2380 has duplicate url"
        );
    }
}
