//! `docs/FLAGS.md`, made of the table.
//!
//! Called by a test, which fails if the file says anything else; run it with `ETCORE_WRITE_DOCS=1`
//! to write the file. What stands there about a setting is what the table does with it.

use super::flags::variable_of;
use super::keys;
use super::old::{Meaning, OLD};
use super::table::{Flag, GROUPS, Status};
use super::value::Kind;

const HEAD: &str = "\
# Settings

This page is made of the table that the program itself reads (`server/src/config/table.rs`): a test
fails when the two differ, and `ETCORE_WRITE_DOCS=1` lets it write the page.

Every setting of etcd 3.7.1 is known by its flag, its `ETCD_` variable and its key in the
configuration file. `--config-file` names that file, YAML or JSON; with it, all flags and variables
are ignored, as in etcd. In the file durations are integer nanoseconds and lists are lists. The same
setting by flag and by variable is an error. Flags are written as Go's: `-name x`, `--name=x`,
booleans without a value, and of two the last one counts. Bad flags end the process with status 2,
bad values, variables and keys with status 1.

A setting that etcore does not serve is refused with a reason, unless it says what is done anyway;
one that means nothing here is taken, and a line of the log says so.

";

/// Where settings act, and what they mean here where that is not what etcd's own text says.
const ACTS: &[(&str, &str)] = &[
    ("name", "cluster: the member's name, and its place in `--initial-cluster`"),
    ("data-dir", "boot: the member's files are in `member/` below it"),
    (
        "wal-dir",
        "boot: the log's files are in it; a log that was left in the data directory is told",
    ),
    (
        "snapshot-count",
        "engine: a checkpoint of the page file is taken after so many log entries, and sooner by \
         time and bytes; there are no snapshot files",
    ),
    ("heartbeat-interval", "replica: raft's tick"),
    ("election-timeout", "replica: raft's election, in ticks"),
    ("initial-election-tick-advance", "replica: the first election"),
    ("listen-peer-urls", "boot: listeners for peers"),
    ("listen-client-urls", "boot: listeners for clients"),
    ("listen-client-http-urls", "boot: listeners for HTTP alone"),
    ("memory-mlock", "boot: mlockall(2), pages to come from their first use on"),
    ("quota-backend-bytes", "api and replica: NOSPACE; counted are bytes in use, not the file's"),
    ("max-txn-ops", "api: check of Txn"),
    ("max-request-bytes", "api: check of every proposal; proto: bound of a message"),
    ("max-concurrent-streams", "proto: HTTP/2 streams of a connection"),
    ("grpc-keepalive-min-time", "proto: pings of clients"),
    ("grpc-keepalive-interval", "proto: pings to clients"),
    ("grpc-keepalive-timeout", "proto: pings to clients"),
    ("socket-reuse-port", "net: SO_REUSEPORT of all listeners"),
    ("socket-reuse-address", "net: SO_REUSEADDR of all listeners"),
    ("raft-read-timeout", "raftlog: a silent link from a peer is dropped; at least 5s"),
    (
        "raft-write-timeout",
        "raftlog: a connection to a peer that takes nothing is dropped; at least 5s",
    ),
    ("feature-gates", "config: gates of features that are not there may only be off"),
    ("initial-advertise-peer-urls", "cluster: told to the members; the member's ID comes of it"),
    ("initial-cluster", "boot: the members of a new cluster"),
    ("initial-cluster-state", "boot: `existing` asks the other members who they are"),
    ("initial-cluster-token", "boot: part of the IDs of a new cluster and its members"),
    ("advertise-client-urls", "replica: published to the members"),
    ("discovery-fallback", "config: `proxy` is refused, as in etcd"),
    ("pre-vote", "raft-rs: pre-vote"),
    ("auto-compaction-retention", "replica: the leader's own compactions; all members sample"),
    ("auto-compaction-mode", "replica: the leader's own compactions"),
    ("cert-file", "TLS of the client ports"),
    ("key-file", "TLS of the client ports"),
    ("client-cert-auth", "TLS of the client ports"),
    ("client-cert-file", "TLS of the client ports"),
    ("client-key-file", "TLS of the client ports"),
    ("client-crl-file", "TLS of the client ports"),
    ("client-cert-allowed-hostname", "TLS of the client ports"),
    ("trusted-ca-file", "TLS of the client ports"),
    ("auto-tls", "TLS of the client ports"),
    ("peer-cert-file", "TLS of the peer ports"),
    ("peer-key-file", "TLS of the peer ports"),
    ("peer-client-cert-auth", "TLS of the peer ports"),
    ("peer-client-cert-file", "TLS to peers"),
    ("peer-client-key-file", "TLS to peers"),
    ("peer-trusted-ca-file", "TLS of the peer ports and to peers"),
    ("peer-cert-allowed-cn", "TLS of the peer ports"),
    ("peer-cert-allowed-hostname", "TLS of the peer ports"),
    ("peer-auto-tls", "TLS of the peer ports"),
    ("peer-crl-file", "TLS of the peer ports"),
    ("peer-skip-client-san-verification", "TLS of the peer ports"),
    ("self-signed-cert-validity", "TLS: certificates made at the start"),
    ("cipher-suites", "TLS of all ports"),
    ("tls-min-version", "TLS of all ports"),
    ("tls-max-version", "TLS of all ports"),
    ("enable-grpc-gateway", "api: gRPC methods as JSON below `/v3/`"),
    ("cors", "api: headers of HTTP answers on the client ports"),
    ("host-whitelist", "api: HTTP requests on client ports without TLS"),
    ("auth-token", "auth: kind of tokens"),
    ("bcrypt-cost", "auth: hashing of passwords"),
    ("auth-token-ttl", "auth: life of a simple token"),
    ("enable-pprof", "api: `/debug/pprof/`"),
    ("metrics", "metrics: `extensive` adds histograms of gRPC's methods"),
    ("listen-metrics-urls", "boot: further listeners for metrics and health"),
    ("logger", "log: `zap` is the only one"),
    ("log-outputs", "log: each line goes to every output"),
    ("log-level", "log: lines below it are left out; above `error` is as `error`"),
    ("log-format", "log: zap's two forms"),
    ("enable-log-rotation", "log: lumberjack's rules for the one file among the outputs"),
    ("log-rotation-config-json", "log: lumberjack's rules for the one file among the outputs"),
    ("warning-unary-request-duration", "api: `request stats` of slow requests"),
    ("enable-distributed-tracing", "api: spans of sampled requests"),
    ("distributed-tracing-address", "tracing: the collector"),
    ("distributed-tracing-service-name", "tracing: attribute of every span"),
    ("distributed-tracing-instance-id", "tracing: attribute of every span"),
    ("distributed-tracing-sampling-rate", "tracing: traces in a million"),
    ("corrupt-check-time", "replica: comparison of the members' data"),
    ("compact-hash-check-time", "replica: comparison of compactions, with its feature gate"),
    ("watch-progress-notify-interval", "watch: progress notifications"),
    ("warning-apply-duration", "replica: `apply request took too long`"),
    (
        "bootstrap-defrag-threshold-megabytes",
        "boot: the page file is defragmented while the member serves, if so much of it is free",
    ),
    ("max-learners", "replica: bound of learners"),
    ("strict-reconfig-check", "replica: changes of members that would cost the quorum"),
    ("downgrade-check-time", "replica: looks at a downgrade"),
    ("snapshot-catchup-entries", "raftlog: entries kept behind a checkpoint for members that lag"),
    ("force-new-cluster", "boot: this member alone, with its data"),
    ("unsafe-no-fsync", "engine and replica: files are written and never synced"),
    ("io-driver", "driver: how files and sockets are driven"),
    ("fast-failover", "replica: an election at once when the leader's port refuses"),
    ("fronts", "boot: threads that serve clients"),
    ("lease-checkpoint-interval", "replica: checkpoints of leases"),
    ("wal-segment-bytes", "raftlog: length of a log file"),
    ("unsafe-skip-entry", "replica: an entry that no member can apply"),
    ("config-file", "config: this file instead of flags and variables"),
    ("version", "main: prints the version"),
];

/// The whole page.
pub(super) fn page() -> String {
    let mut page = HEAD.to_owned();
    for (heading, flags) in GROUPS {
        page += &format!(
            "## {heading}\n\n| flag | variable | key in the file | default | what it does |\n\
             |---|---|---|---|---|\n"
        );
        for flag in *flags {
            page += &row(flag);
        }
        page.push('\n');
    }
    page += "## Settings of etcd 3.2 to 3.6\n\nFlags that 3.7 has no more, and guides and command \
             lines still show. Each is taken with a warning that names the new form.\n\n\
             | flag | what it does |\n|---|---|\n";
    for old in OLD {
        let does = match &old.meaning {
            Meaning::Renamed(name) => format!("`--{name}`"),
            Meaning::Gate(gate) => format!("`--feature-gates={gate}=`"),
            Meaning::FileAndSwitch(file, switch) => format!("`--{file}` with `--{switch}`"),
            Meaning::DebugSwitch => "`--log-level=debug` if true".to_owned(),
            Meaning::Gone(_, accepted, why) => match accepted {
                [] => format!("nothing if empty; refused otherwise: {why}"),
                accepted => {
                    format!("nothing if {}; refused otherwise: {why}", accepted.join(" or "))
                }
            },
            Meaning::Tuned(_, why) => format!("nothing: {why}"),
            Meaning::Ignored => "nothing, as in etcd".to_owned(),
        };
        page += &format!("| `--{}` | {does} |\n", old.name);
    }
    page
}

fn row(flag: &Flag) -> String {
    let name = flag.name;
    let key = match keys::path_of(flag) {
        None => "none".to_owned(),
        Some(path) if keys::is_list(flag) => format!("`{path}`, a list"),
        Some(path) if flag.kind == Kind::Duration => format!("`{path}`, nanoseconds"),
        Some(path) => format!("`{path}`"),
    };
    let default = match flag.default {
        "" => "empty".to_owned(),
        text => format!("`{text}`"),
    };
    let acts = ACTS.iter().find(|(known, _)| *known == name).map_or("", |(_, acts)| *acts);
    let does = match &flag.status {
        Status::Served => acts.to_owned(),
        Status::Only(..) => {
            let (why, accepted) = (refusal(flag), flag.accepted());
            if accepted.is_empty() {
                format!("refused: {why}")
            } else {
                format!("refused but for `{}`: {why}", accepted.join("`, `"))
            }
        }
        Status::Moot(_, why) => format!("nothing: {why}"),
        Status::Any => "nothing, as long as what it tunes is refused".to_owned(),
        Status::Deprecated(_) => "nothing, as in etcd".to_owned(),
    };
    format!("| `--{name}` | `{}` | {key} | {default} | {does} |\n", variable_of(name))
}

fn refusal(flag: &Flag) -> &'static str {
    match &flag.status {
        Status::Only(_, why) => why,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::table;

    #[test]
    fn the_page_of_settings_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/FLAGS.md");
        if std::env::var_os("ETCORE_WRITE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        let made = page();
        for (number, (stands, made)) in written.lines().zip(made.lines()).enumerate() {
            assert_eq!(stands, made, "line {}; write it with ETCORE_WRITE_DOCS=1", number + 1);
        }
        assert_eq!(written, made, "write it with ETCORE_WRITE_DOCS=1");
    }

    #[test]
    fn every_setting_that_is_served_says_where_it_acts() {
        for flag in table::all().filter(|flag| matches!(flag.status, Status::Served)) {
            assert!(ACTS.iter().any(|(name, _)| *name == flag.name), "{}", flag.name);
        }
        for (name, _) in ACTS {
            assert!(table::find(name).is_some(), "{name}");
        }
    }
}
