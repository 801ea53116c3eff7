//! Every setting etcd 3.7.1 knows, and etcore's few own, as one table of data.
//!
//! The parser, the environment, the help and the refusals all read it, so a setting that is in it
//! is known in every form. A setting that is not served may only say what is done anyway: an
//! operator who asks for TLS and gets an open server has been lied to.

use super::value::{Kind, Value};

/// One setting.
#[derive(Debug)]
pub struct Flag {
    /// Without dashes in front.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is if it is not given, as it would be written.
    pub default: &'static str,
    /// One or more sentences for `--help`.
    pub help: &'static str,
    /// What comes of it.
    pub status: Status,
}

/// What comes of a setting.
#[derive(Debug)]
pub enum Status {
    /// It does what it says.
    Served,
    /// Its default, and these values, are what is done anyway; all others are refused with this
    /// reason.
    Only(&'static [&'static str], &'static str),
    /// Any value is taken. These are what is done anyway; of all others, the default as well, one
    /// line of the log says this.
    Moot(&'static [&'static str], &'static str),
    /// Any value of its kind means what is done anyway, as it does in etcd or because what it
    /// tunes does not exist here.
    Any,
    /// etcd takes it, warns with these words, and does nothing.
    Deprecated(&'static str),
}

impl Flag {
    /// Says why this value of the setting cannot be served, if it cannot.
    pub fn refusal(&self, value: &Value) -> Option<&'static str> {
        let means = |text: &&str| self.means(text, value);
        match &self.status {
            Status::Served | Status::Any | Status::Deprecated(_) | Status::Moot(..) => None,
            Status::Only(others, why) => {
                let known = means(&self.default) || others.iter().any(means);
                (!known).then_some(why)
            }
        }
    }

    /// Says what is done instead of this value, if something else is, though it is taken.
    pub fn remark(&self, value: &Value) -> Option<&'static str> {
        let Status::Moot(quiet, why) = &self.status else { return None };
        (!quiet.iter().any(|text| self.means(text, value))).then_some(why)
    }

    /// True if the value may be written so.
    fn means(&self, text: &str, value: &Value) -> bool {
        self.kind.parse(text).is_ok_and(|known| known == *value)
    }

    /// The values that are not refused, as they may be written, if not all are served.
    pub fn accepted(&self) -> Vec<String> {
        let (own, others): (Option<&str>, &[&str]) = match &self.status {
            Status::Only(others, _) => (Some(self.default), others),
            Status::Served | Status::Any | Status::Deprecated(_) | Status::Moot(..) => (None, &[]),
        };
        own.iter().chain(others).filter(|text| !text.is_empty()).map(ToString::to_string).collect()
    }
}

/// The setting of this name.
pub fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}

/// All settings, in the order of the help.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|(_, flags)| *flags)
}

const NO_DISCOVERY: &str = "etcore does not have discovery yet; list the members in \
                            --initial-cluster";
const NO_TRACING: &str = "etcore does not send traces yet";
const OWN_COMPACTION: &str = "compactions go on in slices of a fraction of a millisecond, beside \
                              requests, and in the background";
const OWN_STORE: &str = "there is no bbolt: every write is durable with the log's sync, and the \
                         page file is written by measures of its own";

const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    status: Status,
    help: &'static str,
) -> Flag {
    Flag { name, kind, default, help, status }
}

const fn tls(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    flag(name, kind, default, Status::Served, help)
}

const fn discovery(name: &'static str, kind: Kind, default: &'static str) -> Flag {
    flag(name, kind, default, Status::Only(&[], NO_DISCOVERY), "Discovery of the other members.")
}

use Kind::{Bool, Choice, Choices, Duration, Gates, Int, Origins, Text, Uint, Urls};
use Status::{Any, Deprecated, Moot, Only, Served};

/// Headings and what stands below them, in etcd's order.
pub const GROUPS: &[(&str, &[Flag])] = &[
    ("Member", MEMBER),
    ("Clustering", CLUSTERING),
    ("Security", SECURITY),
    ("Auth", AUTH),
    ("Profiling and Monitoring", MONITORING),
    ("Logging", LOGGING),
    ("Distributed tracing", TRACING),
    ("Features", FEATURES),
    ("Unsafe feature", UNSAFE),
    ("etcore", OWN),
    ("Other", OTHER),
];

const MEMBER: &[Flag] = &[
    flag("name", Text, "default", Served, "Name of this member, for people."),
    flag("data-dir", Text, "", Served, "Directory of all data; ${name}.etcd if empty."),
    flag(
        "wal-dir",
        Text,
        "",
        Served,
        "Directory of the log; member/wal below --data-dir if empty.",
    ),
    flag(
        "snapshot-count",
        Uint(64),
        "10000",
        Served,
        "Log entries between checkpoints at most; time and bytes bring them about sooner.",
    ),
    flag("heartbeat-interval", Uint(64), "100", Served, "Milliseconds between heartbeats."),
    flag(
        "election-timeout",
        Uint(64),
        "1000",
        Served,
        "Milliseconds without a heartbeat before an election.",
    ),
    flag(
        "initial-election-tick-advance",
        Bool,
        "true",
        Served,
        "Put the election clock forward once the peers are there, for a faster first election.",
    ),
    flag("listen-peer-urls", Urls, PEER_URL, Served, "URLs to listen on for peers."),
    flag("listen-client-urls", Urls, CLIENT_URL, Served, "URLs to listen on for clients."),
    flag("listen-client-http-urls", Urls, "", Served, "URLs to listen on for HTTP alone."),
    flag(
        "max-snapshots",
        Uint(64),
        "5",
        Moot(
            &[],
            "deprecated in etcd 3.6 and gone in 3.8; there are no snapshot files, and the page \
             file holds one state",
        ),
        "Snapshot files to keep.",
    ),
    flag(
        "max-wals",
        Uint(64),
        "5",
        Moot(&["5"], "log files are kept as long as a restart or a member that lags needs them"),
        "Log files to keep.",
    ),
    flag("memory-mlock", Bool, "false", Served, "Keep all pages of the process in memory."),
    flag(
        "quota-backend-bytes",
        Int,
        "0",
        Served,
        "Bytes that keys, values and their history may take before writes are refused; 0 is \
         2 GiB, a negative number switches the quota off.",
    ),
    flag(
        "backend-bbolt-freelist-type",
        Text,
        "map",
        Moot(&["map", "array"], "there is no bbolt, and it means nothing"),
        "How bbolt keeps its free pages; there is no bbolt here.",
    ),
    flag(
        "backend-batch-interval",
        Duration,
        "0s",
        Moot(&["0s", "100ms"], OWN_STORE),
        "Longest time between two commits of bbolt; there is no bbolt here.",
    ),
    flag(
        "backend-batch-limit",
        Int,
        "0",
        Moot(&["0", "10000"], OWN_STORE),
        "Most operations between two commits of bbolt; there is no bbolt here.",
    ),
    flag("max-txn-ops", Uint(64), "128", Served, "Operations allowed in one transaction."),
    flag("max-request-bytes", Uint(64), "1572864", Served, "Bytes allowed in one request."),
    flag(
        "max-concurrent-streams",
        Uint(32),
        "4294967295",
        Served,
        "Streams allowed on one client connection.",
    ),
    flag(
        "grpc-keepalive-min-time",
        Duration,
        "5s",
        Served,
        "Shortest time between a client's pings.",
    ),
    flag(
        "grpc-keepalive-interval",
        Duration,
        "2h",
        Served,
        "Time without traffic before a client is pinged; 0 switches it off.",
    ),
    flag("grpc-keepalive-timeout", Duration, "20s", Served, "Time a client has to answer a ping."),
    flag("socket-reuse-port", Bool, "false", Served, "Set SO_REUSEPORT on listeners."),
    flag("socket-reuse-address", Bool, "false", Served, "Set SO_REUSEADDR on listeners."),
    flag("enable-grpc-gateway", Bool, "true", Served, "Serve gRPC's methods as JSON over HTTP."),
    flag(
        "raft-read-timeout",
        Duration,
        "5s",
        Served,
        "Silence after which a link from a peer is broken; what is less than 5s is 5s.",
    ),
    flag(
        "raft-write-timeout",
        Duration,
        "5s",
        Served,
        "Time that a link to a peer may take no bytes; what is less than 5s is 5s.",
    ),
    flag(
        "feature-gates",
        Gates,
        "",
        Served,
        "Features to switch on or off: Name=true, separated by commas.",
    ),
];

const CLUSTERING: &[Flag] = &[
    flag(
        "initial-advertise-peer-urls",
        Urls,
        PEER_URL,
        Served,
        "Peer URLs that the rest of the cluster is told.",
    ),
    flag(
        "initial-cluster",
        Text,
        "",
        Served,
        "The members of a new cluster: name=peer-url pairs, separated by commas; this member \
         alone if empty.",
    ),
    flag(
        "initial-cluster-state",
        Choice(&["new", "existing"]),
        "new",
        Served,
        "new when this is a new cluster, existing to join one that runs.",
    ),
    flag(
        "initial-cluster-token",
        Text,
        "etcd-cluster",
        Served,
        "Keeps clusters with the same addresses apart.",
    ),
    flag("advertise-client-urls", Urls, CLIENT_URL, Served, "Client URLs that clients are told."),
    discovery("discovery-token", Text, ""),
    discovery("discovery-endpoints", Text, ""),
    discovery("discovery-dial-timeout", Duration, "2s"),
    discovery("discovery-request-timeout", Duration, "5s"),
    discovery("discovery-keepalive-time", Duration, "2s"),
    discovery("discovery-keepalive-timeout", Duration, "6s"),
    discovery("discovery-insecure-transport", Bool, "true"),
    discovery("discovery-insecure-skip-tls-verify", Bool, "false"),
    discovery("discovery-cert", Text, ""),
    discovery("discovery-key", Text, ""),
    discovery("discovery-cacert", Text, ""),
    discovery("discovery-user", Text, ""),
    discovery("discovery-password", Text, ""),
    flag(
        "discovery-fallback",
        Choice(&["exit", "proxy"]),
        "exit",
        Served,
        "exit, since the proxy of etcd 2 is gone.",
    ),
    discovery("discovery-srv", Text, ""),
    discovery("discovery-srv-name", Text, ""),
    flag(
        "strict-reconfig-check",
        Bool,
        "true",
        Served,
        "Refuse changes of members that would cost the quorum.",
    ),
    flag(
        "pre-vote",
        Bool,
        "true",
        Served,
        "Ask for votes before an election, so that a member with a bad link disturbs nobody.",
    ),
    flag(
        "auto-compaction-retention",
        Text,
        "0",
        Served,
        "History to keep when compacting by itself, such as 5m or 1h30m, or a number of hours or \
         revisions; 0 never does.",
    ),
    flag(
        "auto-compaction-mode",
        Text,
        "periodic",
        Served,
        "What --auto-compaction-retention counts: periodic for time, revision for revisions.",
    ),
    flag(
        "v2-deprecation",
        Choices(&[
            "not-yet",
            "write-only",
            "write-only-skip-check",
            "write-only-drop-data",
            "gone",
        ]),
        "",
        Deprecated(
            "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value \
             is enforced, ignoring user input.",
        ),
        "Ignored, as in etcd.",
    ),
];

const SECURITY: &[Flag] = &[
    tls("cert-file", Text, "", "Certificate for clients."),
    tls("key-file", Text, "", "Key of --cert-file."),
    tls("client-cert-auth", Bool, "false", "Clients must have a certificate."),
    tls("client-cert-file", Text, "", "Certificate with which this member is a client."),
    tls("client-key-file", Text, "", "Key of --client-cert-file."),
    tls("client-crl-file", Text, "", "Certificates of clients that were revoked."),
    tls("client-cert-allowed-hostname", Text, "", "Names that clients' certificates may have."),
    tls("trusted-ca-file", Text, "", "Whose certificates clients may have."),
    tls("auto-tls", Bool, "false", "TLS for clients with a certificate made at the start."),
    tls("peer-cert-file", Text, "", "Certificate for peers."),
    tls("peer-key-file", Text, "", "Key of --peer-cert-file."),
    tls("peer-client-cert-auth", Bool, "false", "Peers must have a certificate."),
    tls("peer-client-cert-file", Text, "", "Certificate with which peers are called."),
    tls("peer-client-key-file", Text, "", "Key of --peer-client-cert-file."),
    tls("peer-trusted-ca-file", Text, "", "Whose certificates peers may have."),
    tls("peer-cert-allowed-cn", Text, "", "Common names that peers' certificates may have."),
    tls("peer-cert-allowed-hostname", Text, "", "Names that peers' certificates may have."),
    tls("peer-auto-tls", Bool, "false", "TLS for peers with a certificate made at the start."),
    tls("self-signed-cert-validity", Uint(64), "1", "Years that such certificates are valid."),
    tls("peer-crl-file", Text, "", "Certificates of peers that were revoked."),
    tls("cipher-suites", Text, "", "Ciphers of TLS."),
    flag(
        "cors",
        Origins,
        "*",
        Served,
        "Origins whose pages may read HTTP answers, separated by commas; * is any.",
    ),
    flag(
        "host-whitelist",
        Text,
        "*",
        Served,
        "Host names that plain HTTP requests may be for, separated by commas; * is any.",
    ),
    tls("tls-min-version", Text, "TLS1.2", "Oldest TLS that is spoken."),
    tls("tls-max-version", Text, "", "Newest TLS that is spoken."),
];

const AUTH: &[Flag] = &[
    flag(
        "auth-token",
        Text,
        "simple",
        Served,
        "Kind of tokens: simple, or jwt with its options (sign-method, pub-key, priv-key, ttl).",
    ),
    flag("bcrypt-cost", Uint(64), "10", Served, "What hashing a password costs: 4 to 31."),
    flag("auth-token-ttl", Uint(64), "300", Served, "Seconds that an unused simple token lives."),
];

const MONITORING: &[Flag] = &[
    flag("enable-pprof", Bool, "false", Served, "Serve profiles at /debug/pprof."),
    flag(
        "metrics",
        Choice(&["basic", "extensive"]),
        "basic",
        Served,
        "basic, or extensive for histograms of gRPC's methods.",
    ),
    flag(
        "listen-metrics-urls",
        Urls,
        "",
        Served,
        "Further URLs to listen on for /metrics and /health.",
    ),
];

const LOGGING: &[Flag] = &[
    flag("logger", Text, "zap", Served, "zap, the only one."),
    flag(
        "log-outputs",
        Text,
        "default",
        Served,
        "default, stderr, stdout, systemd/journal or files, separated by commas.",
    ),
    flag(
        "log-level",
        Choice(&["debug", "info", "warn", "error", "dpanic", "panic", "fatal"]),
        "info",
        Served,
        "debug, info, warn, error, panic or fatal.",
    ),
    flag("log-format", Text, "json", Served, "json or console."),
    flag(
        "enable-log-rotation",
        Bool,
        "false",
        Served,
        "Put a log file aside when it is full; --log-outputs has one then.",
    ),
    flag(
        "log-rotation-config-json",
        Text,
        "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": \
         false}",
        Served,
        "How, if --enable-log-rotation: megabytes of a file, days and number of old ones, names by \
         local time, gzip.",
    ),
    flag(
        "warning-unary-request-duration",
        Duration,
        "300ms",
        Served,
        "Requests that take longer are warned of.",
    ),
];

const TRACING: &[Flag] = &[
    flag("enable-distributed-tracing", Bool, "false", Only(&[], NO_TRACING), "Send traces."),
    flag("distributed-tracing-address", Text, "localhost:4317", Any, "Where traces go."),
    flag("distributed-tracing-service-name", Text, "etcd", Any, "Name of the service in traces."),
    flag("distributed-tracing-instance-id", Text, "", Any, "Name of this member in traces."),
    flag("distributed-tracing-sampling-rate", Int, "0", Any, "Traces in a million requests."),
];

const FEATURES: &[Flag] = &[
    flag(
        "corrupt-check-time",
        Duration,
        "0s",
        Served,
        "Time between comparisons of the members' data; 0 never does.",
    ),
    flag(
        "compact-hash-check-time",
        Duration,
        "1m",
        Served,
        "Time between comparisons of compactions, with feature gate CompactHashCheck.",
    ),
    flag(
        "compaction-batch-limit",
        Int,
        "1000",
        Moot(&["1000"], OWN_COMPACTION),
        "Revisions that one batch of a compaction removes.",
    ),
    flag(
        "peer-skip-client-san-verification",
        Bool,
        "false",
        Served,
        "Do not compare peers' certificates with their addresses.",
    ),
    flag(
        "watch-progress-notify-interval",
        Duration,
        "10m",
        Served,
        "Time between notifications of progress to watchers that asked for them.",
    ),
    flag(
        "warning-apply-duration",
        Duration,
        "100ms",
        Served,
        "Entries that take longer to apply are warned of.",
    ),
    flag(
        "bootstrap-defrag-threshold-megabytes",
        Uint(64),
        "0",
        Served,
        "Free space in the page file that is worth a defragmentation at the start; 0 never does.",
    ),
    flag("max-learners", Int, "1", Served, "Learners that a cluster may have."),
    flag(
        "compaction-sleep-interval",
        Duration,
        "10ms",
        Moot(&["10ms"], OWN_COMPACTION),
        "Pause between two batches of a compaction.",
    ),
    flag(
        "downgrade-check-time",
        Duration,
        "5s",
        Moot(&["5s"], "a cluster cannot be downgraded yet"),
        "Time between two looks at a downgrade.",
    ),
    flag(
        "snapshot-catchup-entries",
        Uint(64),
        "5000",
        Served,
        "Log entries kept behind the newest checkpoint.",
    ),
];

const UNSAFE: &[Flag] = &[
    flag(
        "force-new-cluster",
        Bool,
        "false",
        Only(&[], "etcore cannot cut a cluster down to one member yet"),
        "Make a cluster of this member alone out of its data.",
    ),
    flag(
        "unsafe-no-fsync",
        Bool,
        "false",
        Served,
        "Do not wait for the disk: a power cut loses what was acknowledged.",
    ),
];

const OWN: &[Flag] = &[
    flag(
        "io-driver",
        Choice(&["auto", "uring", "portable"]),
        "auto",
        Served,
        "How files and sockets are driven: auto, uring or portable.",
    ),
    flag(
        "fast-failover",
        Bool,
        "true",
        Served,
        "Elect another leader at once when the leader's peer port refuses connections, as that of \
         a process that was killed does.",
    ),
    flag("fronts", Uint(16), "0", Served, "Threads that serve clients; 0 goes by the cores."),
    flag(
        "lease-checkpoint-interval",
        Duration,
        "5m",
        Served,
        "Time between checkpoints of a lease, with feature gate LeaseCheckpoint.",
    ),
    flag(
        "wal-segment-bytes",
        Uint(64),
        WAL_SEGMENT_BYTES,
        Served,
        "Bytes of one log segment; a multiple of 4096.",
    ),
    flag(
        "unsafe-skip-entry",
        Text,
        "",
        Served,
        "INDEX:TERM:CHECKSUM of an entry at which all members stop, as their error names it. What \
         it asked for is not done. For all members of a stopped cluster, once.",
    ),
];

const OTHER: &[Flag] = &[
    flag(
        "config-file",
        Text,
        "",
        Served,
        "YAML or JSON file with all settings; flags and variables do not count then.",
    ),
    flag("version", Bool, "false", Served, "Print the version and exit."),
];

const PEER_URL: &str = "http://localhost:2380";
const CLIENT_URL: &str = "http://localhost:2379";
/// As [`etcore_raftlog::limits::SEGMENT_BYTES`], which a test compares.
const WAL_SEGMENT_BYTES: &str = "67108864";
