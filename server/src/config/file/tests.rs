//! The configuration file, as etcd 3.7.1 reads it.

use crate::config::Config;
use crate::config::flags::{self, Asked, Notes, Refused};

fn load(text: &str) -> Result<(Config, Notes), Refused> {
    let args = ["--config-file=m.yml", "--name=flag", "--heartbeat-interval=0"];
    let args = args.iter().map(|arg| (*arg).to_owned());
    let env = [("ETCD_NAME".to_owned(), "variable".to_owned())];
    match flags::parse_with_file(args, env, |_| Ok(text.to_owned()), || None)? {
        Asked::Run(config, notes) => Ok((*config, notes)),
        Asked::Print(text) => panic!("asked to print {text}"),
    }
}

fn config(text: &str) -> Config {
    load(text).map(|(config, _)| config).unwrap_or_else(|why| panic!("{text}: {why:?}"))
}

fn refused(text: &str) -> String {
    let refused = load(text).expect_err(text);
    assert_eq!(refused.status, 1, "{refused:?}");
    assert_eq!(refused.message.lines().count(), 1, "{}", refused.message);
    refused.message
}

#[test]
fn flags_and_variables_do_not_count_beside_a_file() {
    assert_eq!(config("name: file\n").name, "file");
    assert_eq!(config("").name, "default");
    assert_eq!(config("{}").name, "default");
    assert_eq!(config("# nothing\n---\n---\nname: second\n").name, "default");
    let env = [("ETCD_CONFIG_FILE".to_owned(), "v.yml".to_owned())];
    let opened = flags::parse_with_file([], env, |path| Ok(format!("name: {path}")), || None);
    let Ok(Asked::Run(config, notes)) = opened else { panic!("refused") };
    assert_eq!((&*config.name, notes.file.as_deref()), ("v.yml", Some("v.yml")));
    let open = |path: &str| Err(format!("open {path}: no such file or directory"));
    let missing = flags::parse_with_file(["--config-file=x".to_owned()], [], open, || None);
    assert_eq!(missing.expect_err("there is none").status, 1);
}

#[test]
fn values_have_the_forms_that_etcd_takes() {
    let loaded = config(
        "Name: a\nname: b\nDATA-DIR: 7\nwal-dir:\nmax-txn-ops: 200\nquota-backend-bytes: -1\n\
         grpc-keepalive-min-time: 7000000000\npre-vote: off\n\
         listen-client-urls: http://127.0.0.1:2, http://127.0.0.1:1\n\
         socket-options: {reuse-port: true}\nlog-outputs: [stdout]\n\
         client-transport-security: {cert-file: '', client-cert-auth: false, allowed-cn: }\n\
         peer-transport-security:\n  allowed-cn: []\n",
    );
    assert_eq!((&*loaded.name, &*loaded.data_dir), ("b", "7"));
    assert_eq!((loaded.max_txn_ops, loaded.quota_backend_bytes), (200, -1));
    assert_eq!(loaded.keepalive_min_time.as_secs(), 7);
    assert!(!loaded.pre_vote && loaded.socket_reuse_port);
    assert_eq!(loaded.listen_client_urls.len(), 2);
    // Clients are told the default, though this member listens elsewhere.
    assert_eq!(loaded.advertise_client_urls, ["http://localhost:2379"]);
    let json = config(r#"{"name": "j", "snapshot-catchup-entries": 17, "initial-cluster": null}"#);
    assert_eq!((&*json.name, json.snapshot_catchup_entries), ("j", 17));
    assert_eq!(json.initial_cluster["j"], ["http://localhost:2380"]);
}

#[test]
fn what_is_wrong_is_said_with_its_key() {
    let cases = [
        ("max-txn-ops: x", "cannot unmarshal string into key max-txn-ops of type uint"),
        ("max-txn-ops: -1", "invalid value \"-1\" for key max-txn-ops: parse error"),
        (
            "watch-progress-notify-interval: 5s",
            "cannot unmarshal string into key watch-progress-notify-interval of type \
             time.Duration; write 5000000000, in nanoseconds",
        ),
        ("pre-vote: maybe", "cannot unmarshal string into key pre-vote of type bool"),
        ("log-outputs: stderr", "cannot unmarshal string into key log-outputs of type []string"),
        ("socket-options: 1", "cannot unmarshal number into key socket-options of type a section"),
        ("- name", "cannot unmarshal array into a configuration"),
        ("name: [a", "error converting YAML to JSON: "),
        ("election-timeout: 100", "--election-timeout[100ms] should be at least as 5 times"),
        (
            "client-transport-security: {allowed-cn: [a]}",
            "client-transport-security.allowed-cn: etcore does not restrict",
        ),
    ];
    for (text, why) in cases {
        let message = refused(text);
        let said = message.trim_start_matches("configuration file m.yml: ");
        assert!(said.starts_with(why), "{text}: {message}");
    }
}

#[test]
fn what_is_no_configuration_is_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        text += &format!("a{level}: &a{level} [{below}]\n");
    }
    assert!(refused(&text).contains("error converting YAML to JSON: "));
    // What packages call etcd.conf.
    let variables = "#[member]\nETCD_NAME=\"a\"\nETCD_DATA_DIR=\"/d\"\n";
    assert!(refused(variables).contains("EnvironmentFile="), "{}", refused(variables));
    assert!(refused(&"[".repeat(10_000)).contains("error converting YAML to JSON: "));
}

#[test]
fn old_keys_act_and_unknown_ones_are_told_of() {
    let (config, notes) = load(
        "experimental-watch-progress-notify-interval: 5000000000\nproxy: 'off'\n\
         proxy-dial-timeout: 1000\ndiscovery:\nno-such-key: 1\n\
         discovery-fallback: proxy\nraft-read-timeout: 1\n\
         client-transport-security: {no-such: 1}\n",
    )
    .expect("taken");
    assert_eq!(config.watch_progress_interval.as_secs(), 5);
    let unknown = [
        "no-such-key",
        "discovery-fallback",
        "raft-read-timeout",
        "client-transport-security.no-such",
    ];
    assert_eq!(notes.unknown_keys, unknown);
    assert_eq!(notes.warnings.len(), 3, "{:?}", notes.warnings);
    assert_eq!(
        notes.warnings[0],
        "experimental-watch-progress-notify-interval: it was removed from etcd and is taken as \
         --watch-progress-notify-interval"
    );
    assert!(refused("proxy: on").contains("proxy: etcore is no proxy yet"));
}

#[test]
fn who_listens_everywhere_tells_the_address_of_the_default_route() {
    let parse = |args: &[&str], file: &str| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let host = || Some("10.0.0.9".to_owned());
        match flags::parse_with_file(args, [], |_| Ok(file.to_owned()), host) {
            Ok(Asked::Run(config, notes)) => (*config, notes.default_host),
            other => panic!("{other:?}"),
        }
    };
    let (config, host) = parse(&["--name=a", "--listen-peer-urls=http://0.0.0.0:1"], "");
    assert_eq!(config.advertise_peer_urls, ["http://10.0.0.9:1"]);
    assert_eq!(config.initial_cluster["a"], ["http://10.0.0.9:1"]);
    assert_eq!(config.advertise_client_urls, ["http://localhost:2379"]);
    assert_eq!(host.as_deref(), Some("10.0.0.9"));
    let file = "name: a\nlisten-client-urls: http://0.0.0.0:2\n";
    let (config, _) = parse(&["--config-file=x"], file);
    assert_eq!(config.advertise_client_urls, ["http://10.0.0.9:2"]);
    assert_eq!(config.advertise_peer_urls, ["http://localhost:2380"]);
    let told = ["--listen-peer-urls=http://0.0.0.0:1", "--initial-advertise-peer-urls=http://b:1"];
    let (config, host) = parse(&told, "");
    assert_eq!((config.advertise_peer_urls, host), (vec!["http://b:1".to_owned()], None));
    // Nobody guesses what clients are to be told on the command line.
    let args = ["--listen-client-urls=http://0.0.0.0:1".to_owned()];
    let refused = flags::parse_with_file(args, [], |_| Ok(String::new()), || None);
    assert_eq!(refused.expect_err("nothing is told").status, 1);
}
