//! Where each setting stands in the configuration file: its path of keys.
//!
//! Most settings stand at the top under their flag's name; the rest is listed here. Used by the
//! reader of the file and by the documents made of the table. It must hold every key that etcd's
//! `embed.Config` has for a flag, and none besides.

use super::table::{self, Flag};

/// Settings of which the file has another key than the flag's name, as `section.key`
/// (`server/embed/config.go`: `securityConfig`, `SocketOpts`, `DiscoveryCfg`).
const ELSEWHERE: &[(&str, &str)] = &[
    ("socket-reuse-port", "socket-options.reuse-port"),
    ("socket-reuse-address", "socket-options.reuse-address"),
    ("cert-file", "client-transport-security.cert-file"),
    ("key-file", "client-transport-security.key-file"),
    ("client-cert-file", "client-transport-security.client-cert-file"),
    ("client-key-file", "client-transport-security.client-key-file"),
    ("client-cert-auth", "client-transport-security.client-cert-auth"),
    ("trusted-ca-file", "client-transport-security.trusted-ca-file"),
    ("auto-tls", "client-transport-security.auto-tls"),
    ("client-cert-allowed-hostname", "client-transport-security.allowed-hostname"),
    ("peer-cert-file", "peer-transport-security.cert-file"),
    ("peer-key-file", "peer-transport-security.key-file"),
    ("peer-client-cert-file", "peer-transport-security.client-cert-file"),
    ("peer-client-key-file", "peer-transport-security.client-key-file"),
    ("peer-client-cert-auth", "peer-transport-security.client-cert-auth"),
    ("peer-trusted-ca-file", "peer-transport-security.trusted-ca-file"),
    ("peer-auto-tls", "peer-transport-security.auto-tls"),
    ("peer-cert-allowed-cn", "peer-transport-security.allowed-cn"),
    ("peer-cert-allowed-hostname", "peer-transport-security.allowed-hostname"),
    ("peer-skip-client-san-verification", "peer-transport-security.skip-client-san-verification"),
    ("discovery-token", "discovery-config.token"),
    ("discovery-endpoints", "discovery-config.client.endpoints"),
    ("discovery-dial-timeout", "discovery-config.client.dial-timeout"),
    ("discovery-request-timeout", "discovery-config.client.request-timeout"),
    ("discovery-keepalive-time", "discovery-config.client.keepalive-time"),
    ("discovery-keepalive-timeout", "discovery-config.client.keepalive-timeout"),
    ("discovery-insecure-transport", "discovery-config.client.secure.insecure-transport"),
    (
        "discovery-insecure-skip-tls-verify",
        "discovery-config.client.secure.insecure-skip-tls-verify",
    ),
    ("discovery-cert", "discovery-config.client.secure.cert"),
    ("discovery-key", "discovery-config.client.secure.key"),
    ("discovery-cacert", "discovery-config.client.secure.cacert"),
    ("discovery-user", "discovery-config.client.auth.username"),
    ("discovery-password", "discovery-config.client.auth.password"),
];

/// Flags that the file has no key for, as etcd's has none.
const FLAGS_ALONE: &[&str] = &[
    "client-crl-file",
    "config-file",
    "discovery-fallback",
    "peer-crl-file",
    "raft-read-timeout",
    "raft-write-timeout",
    "version",
];

/// Keys that take a list of strings; their flags take one string with commas.
const LISTS: &[&str] = &[
    "cipher-suites",
    "client-cert-allowed-hostname",
    "discovery-endpoints",
    "log-outputs",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
];

/// Keys that restrict something in etcd, have no flag, and are not served: only nothing may be
/// said there.
pub(super) const REFUSED: &[(&str, &str)] = &[(
    "client-transport-security.allowed-cn",
    "etcore does not restrict the common names of clients' certificates",
)];

/// Keys of etcd's that have no flag and no meaning here, whatever they say.
pub(super) const MEANINGLESS: &[&str] = &["client-transport-security.skip-client-san-verification"];

/// The path of a setting in the file; `None` if the file has none.
pub fn path_of(flag: &Flag) -> Option<&'static str> {
    if FLAGS_ALONE.contains(&flag.name) {
        return None;
    }
    let elsewhere = ELSEWHERE.iter().find(|(name, _)| *name == flag.name);
    Some(elsewhere.map_or(flag.name, |(_, path)| path))
}

/// True for a setting whose value in the file is a list of strings.
pub fn is_list(flag: &Flag) -> bool {
    LISTS.contains(&flag.name)
}

/// The setting at a path of the file. Go's decoder does not tell small letters from capitals.
pub(super) fn at(path: &str) -> Option<&'static Flag> {
    if let Some((name, _)) = ELSEWHERE.iter().find(|(_, at)| at.eq_ignore_ascii_case(path)) {
        return table::find(name);
    }
    let flag = table::all().find(|flag| flag.name.eq_ignore_ascii_case(path))?;
    (path_of(flag) == Some(flag.name)).then_some(flag)
}

/// True if keys of settings begin with this path and a dot.
pub(super) fn is_section(path: &str) -> bool {
    ELSEWHERE.iter().any(|(_, at)| {
        at.get(..path.len()).is_some_and(|start| start.eq_ignore_ascii_case(path))
            && at[path.len()..].starts_with('.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_flags_and_every_path_leads_back_to_it() {
        let named = ELSEWHERE.iter().map(|(name, _)| name).chain(FLAGS_ALONE).chain(LISTS);
        for name in named {
            assert!(table::find(name).is_some(), "{name}");
        }
        for flag in table::all() {
            if let Some(path) = path_of(flag) {
                assert_eq!(at(path).map(|found| found.name), Some(flag.name), "{path}");
            }
        }
        assert!(at("cert-file").is_none(), "it stands in a section");
        assert!(at("raft-read-timeout").is_none());
        assert!(is_section("Discovery-Config.client") && !is_section("discovery-conf"));
    }
}
