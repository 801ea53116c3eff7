//! The rules of Go's flag package, the environment, and what is refused.

use super::*;
use crate::config::AutoCompaction;
use crate::config::gates::FeatureGates;
use crate::log::Output;

fn ask(args: &[&str], env: &[(&str, &str)]) -> Result<Asked, Refused> {
    parse(
        args.iter().map(|arg| (*arg).to_owned()),
        env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    )
}

fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Config, Refused> {
    match ask(args, env)? {
        Asked::Run(config, _) => Ok(*config),
        Asked::Print(text) => panic!("asked to print {text}"),
    }
}

fn refused(args: &[&str], env: &[(&str, &str)]) -> (u8, String) {
    let refused = run(args, env).expect_err(&format!("{args:?} {env:?}"));
    assert_eq!(refused.message.lines().count(), 1, "{}", refused.message);
    (refused.status, refused.message)
}

#[test]
fn without_flags_the_defaults_are_etcds() {
    let config = run(&[], &[]).unwrap();
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, "default.etcd");
    assert_eq!(config.request_timeout(), Duration::from_secs(7));
    assert_eq!(config.lease_ttl_s_min(), 2);
    assert_eq!(config.initial_cluster["default"], ["http://localhost:2380"]);
    assert_eq!(config.max_concurrent_streams, u32::MAX);
    assert_eq!(config.wal_segment_bytes, etcore_raftlog::limits::SEGMENT_BYTES);
}

#[test]
fn one_dash_and_two_are_the_same_and_booleans_may_stand_alone() {
    let config = run(&["-name", "a", "-pre-vote=F", "--socket-reuse-port"], &[]).unwrap();
    assert_eq!(config.data_dir, "a.etcd");
    assert!(!config.pre_vote && config.socket_reuse_port);
    assert!(run(&["--pre-vote=T"], &[]).unwrap().pre_vote);
    assert_eq!(run(&["--name=a", "--"], &[]).unwrap().name, "a");
    assert_eq!(run(&["--name", "--x"], &[]).unwrap().name, "--x");
}

#[test]
fn a_flag_given_twice_counts_the_second_time() {
    let config = run(&["--name=a", "--pre-vote=false", "-name", "b", "--pre-vote"], &[]).unwrap();
    assert_eq!((config.name.as_str(), config.pre_vote), ("b", true));
    assert!(run(&["--client-cert-auth", "--client-cert-auth=false"], &[]).is_ok());
    // Each adds to the gates before.
    let gates =
        ["--feature-gates=LeaseCheckpoint=true", "--feature-gates=FastLeaseKeepAlive=false"];
    let expected = FeatureGates {
        lease_checkpoint: true,
        fast_lease_keep_alive: false,
        ..FeatureGates::default()
    };
    assert_eq!(run(&gates, &[]).unwrap().feature_gates, expected);
}

#[test]
fn the_same_url_twice_in_a_list_counts_once() {
    let urls = "http://127.0.0.1:2,http://127.0.0.1:1,http://127.0.0.1:2";
    let (listen, told) =
        (format!("--listen-client-urls={urls}"), format!("--advertise-client-urls={urls}"));
    let config = run(&[&listen, &told], &[]).unwrap();
    assert_eq!(config.advertise_client_urls, ["http://127.0.0.1:1", "http://127.0.0.1:2"]);
    // Nothing is the default, as in etcd.
    assert!(run(&["--listen-metrics-urls=", "--listen-peer-urls="], &[]).is_ok());
    let listening: Vec<String> =
        config.listen_client_urls.iter().map(ToString::to_string).collect();
    assert_eq!(listening, config.advertise_client_urls);
}

#[test]
fn what_is_no_flag_is_refused_in_gos_words() {
    let cases = [
        ("--no-such-flag", 2, "flag provided but not defined: -no-such-flag"),
        ("-data_dir", 2, "flag provided but not defined: -data_dir; did you mean --data-dir?"),
        ("--name", 2, "flag needs an argument: -name"),
        ("---name=a", 2, "bad flag syntax: ---name=a"),
        ("--=a", 2, "bad flag syntax: --=a"),
        ("--pre-vote=", 2, "invalid boolean value \"\" for -pre-vote: parse error"),
        ("--max-txn-ops=x", 2, "invalid value \"x\" for flag -max-txn-ops: parse error"),
        ("start", 1, "\"start\" is not a valid flag"),
        ("gateway", 1, "etcore has no gateway yet"),
    ];
    for (arg, status, message) in cases {
        assert_eq!(refused(&[arg], &[]), (status, message.to_owned()));
    }
    assert_eq!(refused(&["--pre-vote", "false"], &[]).0, 1, "a value that stands alone");
}

#[test]
fn help_lists_every_setting_with_its_default() {
    for arg in ["-h", "--help", "-help"] {
        let Ok(Asked::Print(text)) = ask(&["--name=a", arg], &[]) else { panic!("{arg}") };
        for flag in table::all() {
            assert!(text.contains(&format!("\n  --{} ", flag.name)), "{}", flag.name);
        }
        assert!(text.contains("--name 'default'") && text.contains("--max-txn-ops 128"));
    }
}

#[test]
fn the_environment_sets_flags_but_never_twice() {
    assert_eq!(run(&[], &[("ETCD_NAME", "b")]).unwrap().name, "b");
    for value in ["b", "c", ""] {
        let (status, message) = refused(&["--name=c"], &[("ETCD_NAME", value)]);
        assert_eq!(status, 1);
        assert!(message.contains("ETCD_NAME"));
    }
    let (status, message) = refused(&[], &[("ETCD_PRE_VOTE", "maybe")]);
    let expected = "invalid value \"maybe\" for ETCD_PRE_VOTE: parse error";
    assert_eq!((status, message.as_str()), (1, expected));
}

#[test]
fn a_variable_nobody_knows_only_warns_and_images_may_name_their_version() {
    let env = [("ETCD_NO_SUCH", "1"), ("ETCD_VERSION", "3.7.1"), ("ETCDCTL_API", "3")];
    let Ok(Asked::Run(_, notes)) = ask(&[], &env) else { panic!("refused") };
    assert_eq!(notes.unknown, ["ETCD_NO_SUCH"]);
    assert_eq!(notes.warnings, ["cannot set special environment variable ETCD_VERSION"]);
}

#[test]
fn a_setting_that_is_not_served_is_refused_however_it_comes() {
    let mut count = 0;
    for flag in table::all() {
        let other = match flag.kind {
            Kind::Bool if flag.default == "true" => "false",
            Kind::Bool => "true",
            Kind::Uint(_) | Kind::Int => "77",
            Kind::Duration => "77s",
            Kind::Urls => "http://127.0.0.1:7",
            Kind::Choice(known) => known.last().expect("a choice"),
            Kind::Text | Kind::Origins | Kind::Choices(_) | Kind::Gates => "/elsewhere",
        };
        if !matches!(flag.status, Status::Only(..)) {
            continue;
        }
        count += 1;
        let (name, variable) = (flag.name, variable_of(flag.name));
        let (status, message) = refused(&[&format!("--{name}={other}")], &[]);
        assert_eq!(status, 2, "{message}");
        assert!(message.starts_with(&format!("--{name}: etcore")), "{message}");
        assert!(message.contains("; leave it out"), "{message}");
        let (status, message) = refused(&[], &[(&variable, other)]);
        assert_eq!(status, 1, "{message}");
        assert!(message.starts_with(&format!("{variable}: etcore")), "{message}");
    }
    assert!(count > 15, "{count}");
}

#[test]
fn a_setting_may_say_what_is_done_anyway() {
    for flag in table::all() {
        for text in flag.accepted() {
            let args = [&*format!("--{}={text}", flag.name)];
            assert!(run(&args, &[]).is_ok(), "{args:?}");
            assert!(run(&[], &[(&variable_of(flag.name), &text)]).is_ok(), "{args:?}");
        }
    }
    for same in [
        "--client-cert-auth=F",
        "--cert-file=",
        "--compact-hash-check-time=1m0s",
        "--raft-read-timeout=100ms",
        "--backend-batch-limit=10000",
        "--auto-compaction-retention=0",
        "--max-wals=0x5",
        "--cors=",
        "--host-whitelist=a,b",
        "--log-outputs=stderr",
        "--v2-deprecation=gone",
    ] {
        assert!(run(&[same], &[]).is_ok(), "{same}");
    }
    let stdout = run(&["--log-outputs=stdout,stdout"], &[]).unwrap();
    assert_eq!(stdout.log_output.list(), [Output::Stdout]);
    let Ok(Asked::Run(_, notes)) = ask(&["--v2-deprecation=write-only"], &[]) else { panic!() };
    assert!(notes.warnings[0].starts_with("--v2-deprecation is deprecated"));
}

/// The command of kubeadm's static pod for etcd (`cmd/kubeadm/app/phases/etcd/local.go`), but for
/// what differs between versions.
const KUBEADM: [&str; 17] = [
    "--advertise-client-urls=https://192.168.0.9:2379",
    "--cert-file=/etc/kubernetes/pki/etcd/server.crt",
    "--client-cert-auth=true",
    "--data-dir=/var/lib/etcd",
    "--initial-advertise-peer-urls=https://192.168.0.9:2380",
    "--initial-cluster=node=https://192.168.0.9:2380",
    "--key-file=/etc/kubernetes/pki/etcd/server.key",
    "--listen-client-urls=https://127.0.0.1:2379,https://192.168.0.9:2379",
    "--listen-metrics-urls=http://127.0.0.1:2381",
    "--listen-peer-urls=https://192.168.0.9:2380",
    "--name=node",
    "--peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt",
    "--peer-client-cert-auth=true",
    "--peer-key-file=/etc/kubernetes/pki/etcd/peer.key",
    "--peer-trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
    "--snapshot-count=10000",
    "--trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
];

/// What the command with further flags asks for.
fn ask_kubeadm(further: &[&str]) -> (Config, Notes) {
    match parse(KUBEADM.iter().chain(further).map(ToString::to_string), []) {
        Ok(Asked::Run(config, notes)) => (*config, notes),
        other => panic!("{further:?}: {other:?}"),
    }
}

#[test]
fn the_command_lines_of_kubeadm_are_taken() {
    // 1.29 starts etcd 3.5, 1.36 starts 3.6.
    let old = [
        "--experimental-initial-corrupt-check=true",
        "--experimental-watch-progress-notify-interval=5s",
    ];
    let new = ["--feature-gates=InitialCorruptCheck=true", "--watch-progress-notify-interval=5s"];
    for flags in [old, new] {
        let (config, notes) = ask_kubeadm(&flags);
        assert_eq!(config.watch_progress_interval, Duration::from_secs(5));
        assert!(config.feature_gates.initial_corrupt_check);
        assert_eq!(notes.warnings.len(), if flags == old { 2 } else { 0 }, "{notes:?}");
    }
    // What operators add in extraArgs, with the values that are done anyway.
    let usual = [
        "--max-snapshots=5",
        "--max-wals=5",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=8h",
        "--quota-backend-bytes=8589934592",
        "--strict-reconfig-check=true",
        "--metrics=basic",
        "--logger=zap",
        "--log-outputs=stderr",
        "--enable-grpc-gateway=true",
        "--initial-cluster-state=new",
        "--election-timeout=5000",
        "--heartbeat-interval=500",
    ];
    let (config, _) = ask_kubeadm(&usual);
    let day_third = Duration::from_secs(8 * 3600);
    assert_eq!(config.auto_compaction, AutoCompaction::Periodic(day_third));
    assert_eq!(config.engine.checkpoint_entries, 10_000);
}

#[test]
fn what_does_not_fit_together_is_refused_with_etcds_words() {
    assert!(refused(&["--feature-gates=Foo=true"], &[]).1.contains("unrecognized feature gate"));
    let text = |flag: &str| {
        let (status, message) = refused(&[flag], &[]);
        assert_eq!(status, 1, "{message}");
        message
    };
    text("--feature-gates=LeaseCheckpointPersist=true");
    assert_eq!(
        text("--election-timeout=100"),
        "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]"
    );
    assert_eq!(
        text("--election-timeout=50001"),
        "--election-timeout[50001ms] is too long, and should be set less than 50000ms"
    );
    assert_eq!(text("--heartbeat-interval=0"), "--heartbeat-interval must be >0 (set to 0ms)");
    assert_eq!(text("--logger=klog"), "unknown logger option \"klog\"");
    assert_eq!(
        text("--log-outputs=stderr,default"),
        "multi logoutput for \"default\" is not supported yet"
    );
    text("--log-format=xml");
    assert_eq!(text("--auto-compaction-mode=hourly"), "unknown auto-compaction-mode \"hourly\"");
    text("--grpc-keepalive-interval=-1s");
    // Listening elsewhere without telling clients.
    text("--listen-client-urls=http://127.0.0.1:1");
    assert_eq!(refused(&["--initial-cluster-state=old"], &[]).0, 2);
    assert_eq!(refused(&["--log-level=loud"], &[]).0, 2);
}

#[test]
fn flags_of_older_etcds_act_through_todays_and_are_told_of() {
    let args = [
        "--experimental-watch-progress-notify-interval=5s",
        "--experimental-enable-lease-checkpoint",
        "--experimental-enable-lease-checkpoint-persist=true",
        "--debug",
        "--proxy=off",
        "--proxy-failure-wait",
        "5000",
        "--enable-v2=false",
        "--log-package-levels=etcdserver=WARNING",
        "--discovery=",
        "-snapshot",
    ];
    let env = [("ETCD_LOG_OUTPUT", "stdout")];
    let Ok(Asked::Run(config, notes)) = ask(&args, &env) else { panic!("refused") };
    assert_eq!(config.watch_progress_interval, Duration::from_secs(5));
    assert!(config.feature_gates.lease_checkpoint);
    assert_eq!(config.log_level, tracing::Level::DEBUG);
    assert_eq!(notes.warnings.len(), 11, "{:?}", notes.warnings);
    let first = "--experimental-watch-progress-notify-interval: it was removed from etcd and is \
                 taken as --watch-progress-notify-interval";
    assert_eq!(notes.warnings[0], first);
    assert!(notes.warnings[10].starts_with("ETCD_LOG_OUTPUT: "), "{:?}", notes.warnings);

    // The new form wins, in whichever order, and of two old ones the last.
    let both = [
        "--watch-progress-notify-interval=7s",
        "--experimental-watch-progress-notify-interval=5s",
        "--feature-gates=LeaseCheckpoint=false",
        "--experimental-enable-lease-checkpoint",
        "--experimental-snapshot-catchup-entries=1",
        "--experimental-snapshot-catchup-entries=2",
    ];
    let config = run(&both, &[]).unwrap();
    assert_eq!(config.watch_progress_interval, Duration::from_secs(7));
    assert!(!config.feature_gates.lease_checkpoint);
    assert_eq!(config.snapshot_catchup_entries, 2);

    let cases = [
        ("--proxy=on", "--proxy: etcore is no proxy yet; leave it out"),
        ("--enable-v2", "--enable-v2: etcore does not serve etcd's v2 keys yet; leave it out"),
        ("--experimental-enable-v2v3=/p", "--experimental-enable-v2v3: etcore does not serve"),
        ("--discovery=http://d/1", "--discovery: etcore does not have discovery yet"),
        ("--experimental-max-learners=x", "invalid value \"x\" for flag -experimental-max"),
    ];
    for (line, why) in cases {
        let args: Vec<&str> = line.split(' ').collect();
        let (status, message) = refused(&args, &[]);
        assert_eq!(status, 2, "{message}");
        assert!(message.starts_with(why), "{message}");
    }
    let (status, message) = refused(&["--debug"], &[("ETCD_DEBUG", "true")]);
    assert!(status == 1 && message.contains("ETCD_DEBUG"), "{message}");
}

#[test]
fn what_means_nothing_here_is_taken_with_one_line() {
    let args = ["--max-wals=7", "--backend-batch-limit=5"];
    let Ok(Asked::Run(_, notes)) = ask(&args, &[("ETCD_MAX_SNAPSHOTS", "0")]) else { panic!() };
    let begins = ["--backend-batch-limit: ", "ETCD_MAX_SNAPSHOTS: "];
    for (warning, begin) in notes.warnings.iter().zip(begins) {
        assert!(warning.starts_with(begin), "{warning}");
    }
    assert_eq!(notes.warnings.len(), 3);
    let usual = ["--max-wals=5", "--backend-batch-interval=100ms", "--enable-grpc-gateway=false"];
    let Ok(Asked::Run(_, notes)) = ask(&usual, &[]) else { panic!("refused") };
    assert_eq!(notes, Notes::default());
}
