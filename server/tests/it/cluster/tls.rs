//! TLS between members: with each other and with a stock etcd, and who is kept out.

use std::path::Path;
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use rcgen::ExtendedKeyUsagePurpose;

use crate::harness::certs::{Authority, Pair, Wanted};
use crate::harness::{Client, Etcd, Member, Setup, block_on, is_available, oracle};

const CLIENT: &[ExtendedKeyUsagePurpose] = &[ExtendedKeyUsagePurpose::ClientAuth];

/// Three members that may found a cluster, with certificates of one authority.
fn three(dir: &Path, authority: &Authority, server: &Pair) -> Vec<Setup> {
    let driver = if is_available("uring") { "uring" } else { "portable" };
    let mut setups: Vec<Setup> = [driver, "portable", "portable"]
        .iter()
        .zip(["m1", "m2", "m3"])
        .map(|(driver, name)| {
            let mut setup = Setup::new(dir, driver).with_peer_tls(&authority.ca_file, server);
            setup.data_dir = dir.join(format!("{name}.etcd"));
            setup.name = name.to_owned();
            setup
        })
        .collect();
    let pairs: Vec<String> =
        setups.iter().map(|setup| format!("{}={}", setup.name, setup.peer_url())).collect();
    setups.iter_mut().for_each(|setup| setup.initial_cluster = pairs.join(","));
    setups
}

fn wait_for_all(members: &mut [Member]) {
    members.iter_mut().for_each(|member| {
        member.wait_for_line("ready to serve client requests");
    });
}

/// Puts; a cluster that has just been founded may elect another leader meanwhile.
async fn put(client: &Client, key: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let request =
        pb::PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() };
    while let Err(error) = client.put(request.clone()).await {
        assert!(Instant::now() < deadline, "{error}");
    }
}

/// With another certificate when it connects.
fn connecting_as(setup: Setup, pair: &Pair) -> Setup {
    setup
        .with(&format!("--peer-client-cert-file={}", pair.cert))
        .with(&format!("--peer-client-key-file={}", pair.key))
}

#[test]
fn members_speak_tls_with_each_other_and_with_etcd() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let server = authority.issue("server");
    // A certificate that says by a name, and not by an address, where its owner is.
    let named = Wanted { names: &["localhost"], usages: CLIENT, ..Wanted::default() };
    let named = authority.issue_as("named", &named);
    let mut setups = three(dir.path(), &authority, &server);
    setups[1] = connecting_as(setups[1].clone(), &named);
    setups[2] = setups[2].clone().with("--peer-cert-allowed-cn=etcd");
    let mut members: Vec<Member> = setups[..2].iter().map(Setup::spawn).collect();
    let etcd = oracle("etcd").map(|etcd| Etcd::start(&etcd, &setups[2]));
    if etcd.is_none() {
        members.push(setups[2].spawn());
    }
    wait_for_all(&mut members);
    block_on(async {
        let clients = [&setups[0], &setups[1], &setups[2]].map(Client::connect);
        let mut all = Vec::new();
        for client in clients {
            all.push(client.await);
        }
        for (number, client) in all.iter().enumerate() {
            put(client, &format!("k{number}")).await;
        }
        for client in &all {
            for number in 0..3 {
                assert_eq!(client.get(&format!("k{number}")).await.as_deref(), Some("v"));
            }
        }
    });
    // A member that comes back catches up over TLS, with a certificate that is new.
    members.swap_remove(0).kill();
    block_on(async { put(&Client::connect(&setups[1]).await, "late").await });
    authority.issue("server");
    let mut first = setups[0].start();
    let late = block_on(async { Client::connect(&setups[0]).await.get("late").await });
    assert_eq!(late.as_deref(), Some("v"));
    let told = first.lines_so_far().join("\n");
    assert!(told.contains("starting with peer TLS"), "{told}");
    assert!(!told.contains("rejected connection"), "{told}");
}

#[test]
fn a_member_that_others_do_not_know_by_its_certificate_is_kept_out() {
    let _turn = crate::harness::turn::light();
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ca");
    let server = authority.issue("server");
    let other = |file: &str, wanted: Wanted<'_>| authority.issue_as(file, &wanted);
    let base = || Wanted { usages: CLIENT, ..Wanted::default() };
    let by_address = other("address", Wanted { names: &["10.9.8.7"], ..base() });
    let by_name = other("name", Wanted { names: &["nowhere.invalid"], ..base() });
    let by_owner = other("owner", Wanted { common_name: "intruder", ..base() });
    let stranger = Authority::new(dir.path(), "stranger").issue("stranger");
    let cases: [(&str, &Pair, &[&str], Option<&str>); 5] = [
        ("1", &by_address, &[], Some("x509: certificate is valid for 10.9.8.7, not 127.0.0.1")),
        ("2", &by_name, &[], Some("does not match any of DNSNames [\\\"nowhere.invalid\\\"]")),
        ("3", &by_owner, &["--peer-cert-allowed-cn=etcd,x"], Some("client certificate authentic")),
        ("4", &stranger, &[], Some("x509: certificate signed by unknown authority")),
        // The same certificate, where nobody asks for the address.
        ("5", &by_address, &["--peer-skip-client-san-verification"], None),
    ];
    for (name, pair, flags, line) in cases {
        let below = dir.path().join(name);
        std::fs::create_dir(&below).unwrap();
        let mut setups = three(&below, &authority, &server);
        for flag in flags {
            setups.iter_mut().for_each(|setup| setup.extra.push((*flag).to_owned()));
        }
        setups[2] = connecting_as(setups[2].clone(), pair);
        let mut members: Vec<Member> = setups.iter().map(Setup::spawn).collect();
        // The others found the cluster without it, or with it.
        let ready = if line.is_some() { 2 } else { 3 };
        wait_for_all(&mut members[..ready]);
        if let Some(line) = line {
            let told = loop {
                let told = members[0].wait_for_line("rejected connection on peer endpoint");
                // A connection that ends in the middle is told of as well.
                if told.contains(line) {
                    break told;
                }
            };
            assert!(told.contains(r#""remote-addr":"127.0.0.1:"#), "{told}");
            let kept_out = members[2].has_ended(Duration::from_millis(200));
            assert_eq!(kept_out, None, "it goes on trying");
        }
    }
}
