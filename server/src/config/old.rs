//! Flags of etcd 3.2 to 3.6 that 3.7 has no more, which guides and command lines still show.
//!
//! Used by the command line, the environment and the file alike. Each is taken with a warning that
//! names what it is called now, and acts through that; what asked for something that is gone is
//! refused with a reason. The new form wins where both are given.

use super::gates;
use super::table::{self, Flag};
use super::value::{Kind, Value};

/// A setting of an older etcd.
#[derive(Debug)]
pub struct Old {
    /// Without dashes in front.
    pub name: &'static str,
    /// What comes of it.
    pub meaning: Meaning,
}

/// What comes of an old setting.
#[derive(Debug, Clone, Copy)]
pub enum Meaning {
    /// It is this setting under another name.
    Renamed(&'static str),
    /// It is this feature gate now.
    Gate(&'static str),
    /// It named a file, this setting, and switched this other one on as well.
    FileAndSwitch(&'static str, &'static str),
    /// It is debug as `--log-level` if it is true, and nothing otherwise.
    DebugSwitch,
    /// A feature that is gone: only these values, or nothing, may be given, and do nothing.
    Gone(Kind, &'static [&'static str], &'static str),
    /// It tuned what is not there any more; any value is taken, and does nothing.
    Tuned(Kind, &'static str),
    /// etcd 3.7 knows it, with or without a value, and ignores it (`etcdmain/config.go`).
    Ignored,
}

use Meaning::{DebugSwitch, FileAndSwitch, Gate, Gone, Ignored, Renamed, Tuned};

const NO_V2: &str = "etcore does not serve etcd's v2 keys yet";
const NO_PROXY: &str = "etcore is no proxy yet";
const NO_V2_DISCOVERY: &str = "etcore does not have discovery yet; list the members in \
                               --initial-cluster";
const NO_PROXY_TO_TUNE: &str = "there is no proxy that it could tune";

const fn old(name: &'static str, meaning: Meaning) -> Old {
    Old { name, meaning }
}

/// A setting that has dropped `experimental-` from its name.
const fn settled(name: &'static str) -> Old {
    let (prefix, today) = name.split_at("experimental-".len());
    assert!(matches!(prefix.as_bytes(), b"experimental-"), "it has something to drop");
    old(name, Renamed(today))
}

/// All of them.
pub const OLD: &[Old] = &[
    // 3.2 to 3.4.
    old("ca-file", FileAndSwitch("trusted-ca-file", "client-cert-auth")),
    old("peer-ca-file", FileAndSwitch("peer-trusted-ca-file", "peer-client-cert-auth")),
    old("debug", DebugSwitch),
    old("log-output", Renamed("log-outputs")),
    old("log-package-levels", Tuned(Kind::Text, "there is one --log-level for all")),
    // 3.5.
    old("enable-v2", Gone(Kind::Bool, &["false"], NO_V2)),
    old("experimental-enable-v2v3", Gone(Kind::Text, &[], NO_V2)),
    old("proxy", Gone(Kind::Text, &["off"], NO_PROXY)),
    old("proxy-failure-wait", Tuned(Kind::Uint(64), NO_PROXY_TO_TUNE)),
    old("proxy-refresh-interval", Tuned(Kind::Uint(64), NO_PROXY_TO_TUNE)),
    old("proxy-dial-timeout", Tuned(Kind::Uint(64), NO_PROXY_TO_TUNE)),
    old("proxy-write-timeout", Tuned(Kind::Uint(64), NO_PROXY_TO_TUNE)),
    old("proxy-read-timeout", Tuned(Kind::Uint(64), NO_PROXY_TO_TUNE)),
    old("discovery", Gone(Kind::Text, &[], NO_V2_DISCOVERY)),
    old("discovery-proxy", Gone(Kind::Text, &[], NO_V2_DISCOVERY)),
    old(
        "experimental-wait-cluster-ready-timeout",
        Tuned(Kind::Duration, "clients are let in once the member has joined its cluster"),
    ),
    // 3.3 to 3.6.
    settled("experimental-backend-bbolt-freelist-type"),
    settled("experimental-bootstrap-defrag-threshold-megabytes"),
    old("experimental-compact-hash-check-enabled", Gate("CompactHashCheck")),
    settled("experimental-compact-hash-check-time"),
    settled("experimental-compaction-batch-limit"),
    settled("experimental-compaction-sleep-interval"),
    settled("experimental-corrupt-check-time"),
    settled("experimental-distributed-tracing-address"),
    settled("experimental-distributed-tracing-instance-id"),
    settled("experimental-distributed-tracing-sampling-rate"),
    settled("experimental-distributed-tracing-service-name"),
    settled("experimental-downgrade-check-time"),
    settled("experimental-enable-distributed-tracing"),
    old("experimental-enable-lease-checkpoint", Gate("LeaseCheckpoint")),
    old("experimental-enable-lease-checkpoint-persist", Gate("LeaseCheckpointPersist")),
    old("experimental-initial-corrupt-check", Gate("InitialCorruptCheck")),
    settled("experimental-max-learners"),
    settled("experimental-memory-mlock"),
    settled("experimental-peer-skip-client-san-verification"),
    old("experimental-set-member-localaddr", Gate("SetMemberLocalAddr")),
    settled("experimental-snapshot-catchup-entries"),
    old("experimental-stop-grpc-service-on-defrag", Gate("StopGRPCServiceOnDefrag")),
    old("experimental-txn-mode-write-with-shared-buffer", Gate("TxnModeWriteWithSharedBuffer")),
    settled("experimental-warning-apply-duration"),
    settled("experimental-warning-unary-request-duration"),
    settled("experimental-watch-progress-notify-interval"),
    // What 3.7 itself ignores.
    old("cluster-active-size", Ignored),
    old("cluster-remove-delay", Ignored),
    old("cluster-sync-interval", Ignored),
    old("config", Ignored),
    old("force", Ignored),
    old("max-result-buffer", Ignored),
    old("max-retry-attempts", Ignored),
    old("peer-heartbeat-interval", Ignored),
    old("peer-election-timeout", Ignored),
    old("retry-interval", Ignored),
    old("snapshot", Ignored),
    old("v", Ignored),
    old("vv", Ignored),
    old("test.coverprofile", Ignored),
    old("test.outputdir", Ignored),
];

/// The old setting of this name.
pub(super) fn find(name: &str) -> Option<&'static Old> {
    OLD.iter().find(|old| old.name == name)
}

/// Settings of today that an old one stands for, and what is told of it.
#[derive(Debug, Default)]
pub(super) struct Translated {
    /// Set unless they are given by their own names.
    pub(super) settings: Vec<(&'static Flag, Value)>,
    /// A warning.
    pub(super) warning: String,
}

impl Old {
    /// What it takes.
    pub(super) fn kind(&self) -> Kind {
        match self.meaning {
            Renamed(name) | FileAndSwitch(name, _) => {
                table::find(name).map_or(Kind::Text, |flag| flag.kind)
            }
            Gate(_) | DebugSwitch => Kind::Bool,
            Gone(kind, _, _) | Tuned(kind, _) => kind,
            Ignored => Kind::Text,
        }
    }

    /// True if it may stand without a value.
    pub(super) fn may_stand_alone(&self) -> bool {
        matches!(self.meaning, Ignored) || self.kind() == Kind::Bool
    }

    /// What it says in today's words.
    ///
    /// # Errors
    /// Why it cannot be done any more.
    pub(super) fn translate(&self, value: Value) -> Result<Translated, String> {
        let taken_as = |new: &str| format!("it was removed from etcd and is taken as {new}");
        let found = |name: &str| table::find(name);
        let (settings, told) = match self.meaning {
            Renamed(name) => (vec![(found(name), value)], taken_as(&format!("--{name}"))),
            Gate(gate) => {
                let pair = format!("{gate}={}", value == Value::Bool(true));
                let told = taken_as(&format!("--feature-gates={pair}"));
                (vec![(found(gates::FLAG), Value::Text(pair))], told)
            }
            FileAndSwitch(file, switch) => {
                let told = taken_as(&format!("--{file} with --{switch}"));
                let on = value != Value::Text(String::new());
                (vec![(found(file), value), (found(switch), Value::Bool(on))], told)
            }
            DebugSwitch if value == Value::Bool(true) => {
                let level = Value::Text("debug".to_owned());
                (vec![(found("log-level"), level)], taken_as("--log-level=debug"))
            }
            DebugSwitch => (Vec::new(), taken_as("--log-level")),
            Gone(kind, accepted, why) => {
                let nothing = value == Value::Text(String::new());
                let means = |text: &&str| kind.parse(text).is_ok_and(|known| known == value);
                if !nothing && !accepted.iter().any(means) {
                    return Err(format!("{why}; leave it out"));
                }
                (Vec::new(), "it was removed from etcd and says what is done anyway".to_owned())
            }
            Tuned(_, why) => (Vec::new(), format!("it was removed from etcd: {why}")),
            Ignored => (Vec::new(), "flag is no longer supported - ignoring".to_owned()),
        };
        let settings =
            settings.into_iter().filter_map(|(flag, value)| Some((flag?, value))).collect();
        Ok(Translated { settings, warning: told })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_name_is_no_flag_of_today_and_leads_to_one() {
        for old in OLD {
            assert!(table::find(old.name).is_none(), "{}", old.name);
            let flags: &[&str] = match &old.meaning {
                Renamed(name) => &[name],
                FileAndSwitch(file, switch) => &[file, switch],
                _ => &[],
            };
            for name in flags {
                assert!(table::find(name).is_some(), "{name}");
            }
            if let Gate(gate) = old.meaning {
                assert!(gates::is_known(gate), "{gate}");
            }
        }
    }
}
