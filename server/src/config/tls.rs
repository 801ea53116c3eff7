//! What the flags about transport security say together: one set for clients, one for peers.
//!
//! Made and checked with the rest of the configuration, by etcd's rules and in its words. Files are
//! read by [`crate::tls`]; nothing here touches them.

use super::flags::Values;
use super::{ListenUrl, url};

/// The certificates and checks of one kind of connection (etcd: transport.TLSInfo).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransportSecurity {
    /// `--cert-file`, `--peer-cert-file`.
    pub cert_file: String,
    /// `--key-file`, `--peer-key-file`.
    pub key_file: String,
    /// `--client-cert-file`, `--peer-client-cert-file`; the one above if empty.
    pub client_cert_file: String,
    /// `--client-key-file`, `--peer-client-key-file`.
    pub client_key_file: String,
    /// `--client-cert-auth`, `--peer-client-cert-auth`.
    pub client_cert_auth: bool,
    /// `--trusted-ca-file`, `--peer-trusted-ca-file`; the system's authorities if empty.
    pub trusted_ca_file: String,
    /// `--client-crl-file`, `--peer-crl-file`.
    pub crl_file: String,
    /// `--peer-cert-allowed-cn`.
    pub allowed_cns: Vec<String>,
    /// `--client-cert-allowed-hostname`, `--peer-cert-allowed-hostname`.
    pub allowed_hostnames: Vec<String>,
    /// `--auto-tls`, `--peer-auto-tls`.
    pub auto: bool,
    /// `--peer-skip-client-san-verification`.
    pub skip_client_san_verification: bool,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2.
    V12,
    /// 1.3.
    V13,
}

/// Transport security of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Connections of clients.
    pub client: TransportSecurity,
    /// Connections between members.
    pub peer: TransportSecurity,
    /// `--cipher-suites`, by Go's names; all if empty.
    pub cipher_suites: Vec<String>,
    /// `--tls-min-version`.
    pub min_version: TlsVersion,
    /// `--tls-max-version`.
    pub max_version: TlsVersion,
    /// `--self-signed-cert-validity`.
    pub self_signed_validity_years: u64,
}

/// The suites of TLS 1.2 that are served, by Go's names; those of 1.3 are always on, as in Go.
pub const SUITES_12: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// Suites of TLS 1.3.
pub const SUITES_13: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// Other names of suites that are served.
const OLD_NAMES: [(&str, &str); 2] = [
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
];

/// Suites that Go knows and rustls does not: without forward secrecy, in CBC mode, or broken.
const WEAK_SUITES: [&str; 16] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
];

impl TransportSecurity {
    /// True if there are files with a certificate (etcd: !TLSInfo.Empty).
    pub fn has_files(&self) -> bool {
        !self.cert_file.is_empty() || !self.key_file.is_empty()
    }

    /// True if TLS is served on URLs that ask for it.
    pub fn serves(&self) -> bool {
        self.has_files() || self.auto
    }

    /// True if a client must show a certificate.
    pub fn wants_client_certs(&self) -> bool {
        self.client_cert_auth || !self.trusted_ca_file.is_empty()
    }

    /// What etcd would say at the start.
    fn check(&self) -> Result<(), String> {
        if self.has_files() && (self.cert_file.is_empty() || self.key_file.is_empty()) {
            return Err(format!(
                "KeyFile and CertFile must both be present[key: {}, cert: {}]",
                self.key_file, self.cert_file
            ));
        }
        if self.client_cert_file.is_empty() != self.client_key_file.is_empty() {
            return Err(format!(
                "ClientKeyFile and ClientCertFile must both be present or both absent: key: {}, \
                 cert: {}]",
                self.client_key_file, self.client_cert_file
            ));
        }
        if !self.allowed_cns.is_empty() && !self.allowed_hostnames.is_empty() {
            return Err(format!(
                "AllowedCNs and AllowedHostnames are mutually exclusive (cns={:?}, hostnames={:?})",
                self.allowed_cns, self.allowed_hostnames
            ));
        }
        Ok(())
    }
}

/// As etcd's log has it.
impl std::fmt::Display for TransportSecurity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cert = {}, key = {}, client-cert={}, client-key={}, trusted-ca = {}, \
             client-cert-auth = {}, crl-file = {}",
            self.cert_file,
            self.key_file,
            self.client_cert_file,
            self.client_key_file,
            self.trusted_ca_file,
            self.client_cert_auth,
            self.crl_file
        )
    }
}

/// What the settings say, checked.
///
/// # Errors
/// etcd's sentence, or one about a suite that is not served.
pub(super) fn check(values: &Values) -> Result<Tls, String> {
    let cipher_suites = cipher_suites(&list(values, "cipher-suites"))?;
    let (min_version, max_version) = versions(values)?;
    if min_version == TlsVersion::V13 && !cipher_suites.is_empty() {
        return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
    }
    let client = TransportSecurity {
        cert_file: values.text("cert-file"),
        key_file: values.text("key-file"),
        client_cert_file: values.text("client-cert-file"),
        client_key_file: values.text("client-key-file"),
        client_cert_auth: values.bool("client-cert-auth"),
        trusted_ca_file: values.text("trusted-ca-file"),
        crl_file: values.text("client-crl-file"),
        allowed_cns: Vec::new(),
        allowed_hostnames: list(values, "client-cert-allowed-hostname"),
        auto: values.bool("auto-tls"),
        skip_client_san_verification: true,
    };
    let peer = TransportSecurity {
        cert_file: values.text("peer-cert-file"),
        key_file: values.text("peer-key-file"),
        client_cert_file: values.text("peer-client-cert-file"),
        client_key_file: values.text("peer-client-key-file"),
        client_cert_auth: values.bool("peer-client-cert-auth"),
        trusted_ca_file: values.text("peer-trusted-ca-file"),
        crl_file: values.text("peer-crl-file"),
        allowed_cns: list(values, "peer-cert-allowed-cn"),
        allowed_hostnames: list(values, "peer-cert-allowed-hostname"),
        auto: values.bool("peer-auto-tls"),
        skip_client_san_verification: values.bool("peer-skip-client-san-verification"),
    };
    let self_signed_validity_years = values.uint("self-signed-cert-validity");
    if (client.auto || peer.auto) && self_signed_validity_years == 0 {
        return Err("selfSignedCertValidity is invalid,it should be greater than 0".to_owned());
    }
    for security in [&client, &peer] {
        security.check()?;
    }
    check_urls(values, &client, &peer)?;
    Ok(Tls { client, peer, cipher_suites, min_version, max_version, self_signed_validity_years })
}

/// URLs that ask for TLS need a certificate to serve it with.
fn check_urls(
    values: &Values,
    client: &TransportSecurity,
    peer: &TransportSecurity,
) -> Result<(), String> {
    let secure = |flag: &str| values.urls(flag).into_iter().find(|url| url::asks_for_tls(url));
    if let Some(url) = secure("listen-client-urls").filter(|_| !client.serves()) {
        return Err(format!(
            "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with \
             HTTPS scheme"
        ));
    }
    if let Some(url) = secure("listen-peer-urls").filter(|_| !peer.serves()) {
        return Err(format!(
            "cannot listen on TLS for {}: KeyFile and CertFile are not presented",
            ListenUrl::parse(&url)?.authority()
        ));
    }
    Ok(())
}

/// A list of strings; an empty one is none.
fn list(values: &Values, name: &str) -> Vec<String> {
    let text = values.text(name);
    text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn cipher_suites(names: &[String]) -> Result<Vec<String>, String> {
    let mut suites = Vec::new();
    for name in names {
        let current = OLD_NAMES.iter().find(|(old, _)| old == name).map_or(&**name, |(_, new)| new);
        if SUITES_12.contains(&current) || SUITES_13.contains(&current) {
            suites.push(current.to_owned());
        } else if WEAK_SUITES.contains(&current) {
            return Err(format!(
                "--cipher-suites: etcore does not have {name}, which has no forward secrecy, no \
                 authenticated encryption, or neither; leave it out"
            ));
        } else {
            return Err(format!("unexpected TLS cipher suite {name:?}"));
        }
    }
    Ok(suites)
}

fn versions(values: &Values) -> Result<(TlsVersion, TlsVersion), String> {
    let version = |flag: &str, default| match &*values.text(flag) {
        "" => Ok(default),
        "TLS1.2" => Ok(TlsVersion::V12),
        "TLS1.3" => Ok(TlsVersion::V13),
        other => Err(format!("unexpected TLS version {other:?} (must be one of: TLS1.2, TLS1.3)")),
    };
    let min = version("tls-min-version", TlsVersion::V12)?;
    let max = version("tls-max-version", TlsVersion::V13)?;
    if min > max {
        return Err(format!(
            "min version ({}) is greater than max version ({})",
            values.text("tls-min-version"),
            values.text("tls-max-version")
        ));
    }
    Ok((min, max))
}

#[cfg(test)]
mod tests {
    use super::super::flags::{Asked, parse};
    use super::*;

    fn tls(flags: &[&str]) -> Result<Tls, String> {
        match parse(flags.iter().map(ToString::to_string), []) {
            Ok(Asked::Run(config, _)) => Ok(config.tls),
            Ok(Asked::Print(text)) => panic!("{text}"),
            Err(refused) => {
                assert_eq!(refused.status, 1, "{}", refused.message);
                Err(refused.message)
            }
        }
    }

    #[test]
    fn the_settings_of_clients_and_of_peers_are_kept_apart() {
        let none = tls(&[]).unwrap();
        assert!(!none.client.serves() && !none.peer.serves());
        assert_eq!((none.min_version, none.max_version), (TlsVersion::V12, TlsVersion::V13));
        let both = tls(&[
            "--cert-file=c",
            "--key-file=k",
            "--trusted-ca-file=ca",
            "--peer-auto-tls",
            "--peer-cert-allowed-cn=a,b",
            "--tls-max-version=TLS1.2",
            "--cipher-suites=TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
            "--listen-client-urls=https://127.0.0.1:1,http://127.0.0.1:2",
            "--advertise-client-urls=https://127.0.0.1:1",
        ])
        .unwrap();
        assert!(both.client.wants_client_certs() && !both.client.client_cert_auth);
        assert!(both.peer.auto && both.peer.serves() && !both.peer.has_files());
        assert_eq!(both.peer.allowed_cns, ["a", "b"]);
        assert_eq!(both.cipher_suites, ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"]);
        assert_eq!(both.max_version, TlsVersion::V12);
    }

    #[test]
    fn what_does_not_fit_together_is_refused_in_etcds_words() {
        for (flags, text) in [
            (&["--cert-file=c"][..], "KeyFile and CertFile must both be present[key: , cert: c]"),
            (
                &["--peer-client-key-file=k"],
                "ClientKeyFile and ClientCertFile must both be present",
            ),
            (
                &["--peer-cert-allowed-cn=a", "--peer-cert-allowed-hostname=b"],
                "AllowedCNs and AllowedHostnames are mutually exclusive",
            ),
            (&["--tls-min-version=TLS1.1"], "unexpected TLS version \"TLS1.1\" (must be one of"),
            (
                &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
                "min version (TLS1.3) is greater than max version (TLS1.2)",
            ),
            (
                &["--tls-min-version=TLS1.3", "--cipher-suites=TLS_AES_128_GCM_SHA256"],
                "cipher suites cannot be configured when only TLS1.3 is enabled",
            ),
            (&["--cipher-suites=TLS_X"], "unexpected TLS cipher suite \"TLS_X\""),
            (&["--cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA"], "etcore does not have TLS_RSA_"),
            (&["--auto-tls", "--self-signed-cert-validity=0"], "selfSignedCertValidity is invalid"),
            (
                &["--listen-peer-urls=https://10.0.0.1:2380"],
                "cannot listen on TLS for 10.0.0.1:2380: KeyFile and CertFile are not presented",
            ),
            (
                &[
                    "--listen-client-urls=https://127.0.0.1:1",
                    "--advertise-client-urls=https://a:1",
                ],
                "TLS key/cert (--cert-file, --key-file) must be provided for client url https://",
            ),
        ] {
            let refused = tls(flags).unwrap_err();
            assert!(refused.contains(text), "{flags:?}: {refused}");
        }
    }
}
