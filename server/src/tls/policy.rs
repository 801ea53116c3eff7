//! What etcd checks of a peer's certificate besides its chain: who it names, where its owner comes
//! from, and whether it was revoked.
//!
//! Asked by the verifiers during a handshake, and once more after one that resumed an earlier
//! session, in which no verifier is asked: what was revoked or has expired meanwhile must not come
//! in. Names are resolved elsewhere.

use std::net::IpAddr;

use etcore_proto::tls::x509::Facts;
use rustls::pki_types::CertificateDer;

/// See the module text.
#[derive(Debug, Default)]
pub struct Policy {
    /// Common names, of which a certificate must have one; any if empty.
    pub(super) allowed_cns: Vec<String>,
    /// Hosts, for one of which a certificate must be; any if empty.
    pub(super) allowed_hostnames: Vec<String>,
    /// Serial numbers, sorted.
    pub(super) revoked: Vec<Vec<u8>>,
    /// A client's certificate must be for the address that it comes from.
    pub(super) checks_address: bool,
}

/// Where a client may come from by its certificate.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin {
    /// From where it comes.
    Allowed,
    /// From elsewhere; with the reason.
    Refused(String),
    /// From the addresses of these names: they must be looked up.
    Named(Vec<String>),
}

impl Policy {
    /// Whether a client's certificate may be used: nothing of the chain was revoked, and its owner
    /// is among those that are allowed.
    ///
    /// # Errors
    /// Displayed, etcd's text.
    pub(super) fn check_client(
        &self,
        leaf: &Facts,
        above: &[CertificateDer<'_>],
    ) -> Result<(), Refused> {
        if !self.revoked.is_empty() {
            let above = above.iter().filter_map(|certificate| Facts::parse(certificate));
            let serials = std::iter::once(leaf.serial.clone()).chain(above.map(|f| f.serial));
            for serial in serials {
                if self.revoked.binary_search(&serial).is_ok() {
                    return Err(Refused::Revoked(hex(&serial)));
                }
            }
        }
        self.check_owner(leaf)
    }

    /// Whether the owner of a certificate is among those that are allowed.
    ///
    /// # Errors
    /// Displayed, etcd's text.
    pub(super) fn check_owner(&self, leaf: &Facts) -> Result<(), Refused> {
        let names_fit = self.allowed_cns.is_empty() || self.allowed_cns.contains(&leaf.common_name);
        let hosts_fit = self.allowed_hostnames.is_empty()
            || self.allowed_hostnames.iter().any(|host| leaf.is_for(host));
        if names_fit && hosts_fit { Ok(()) } else { Err(Refused::NotAllowed) }
    }

    /// Checks what a resumed session says of its peer, as it was verified when it began.
    ///
    /// # Errors
    /// etcd's text.
    pub fn check_resumed(
        &self,
        certificates: &[CertificateDer<'static>],
        now_s: i64,
    ) -> Result<(), String> {
        let Some((first, above)) = certificates.split_first() else { return Ok(()) };
        let Some(leaf) = Facts::parse(first) else { return Err("x509: malformed".to_owned()) };
        if now_s < leaf.not_before_s || now_s > leaf.not_after_s {
            let text = "tls: failed to verify certificate: x509: certificate has expired or is not \
                        yet valid";
            return Err(text.to_owned());
        }
        self.check_client(&leaf, above).map_err(|refused| refused.to_string())
    }

    /// Where the owner of a certificate may come from (etcd: checkCertSAN). A certificate without
    /// names and addresses is good for any place.
    pub fn origin(&self, certificate: Option<&CertificateDer<'_>>, from: Option<IpAddr>) -> Origin {
        let Some(certificate) = certificate.filter(|_| self.checks_address) else {
            return Origin::Allowed;
        };
        let Some(facts) = Facts::parse(certificate) else {
            return Origin::Refused("x509: malformed certificate".to_owned());
        };
        if facts.ip_addresses.is_empty() && facts.dns_names.is_empty() {
            return Origin::Allowed;
        }
        // A unix socket has no address, and nobody else's machine on its other end.
        let Some(from) = from.map(|ip| ip.to_canonical()) else { return Origin::Allowed };
        if facts.ip_addresses.iter().any(|ip| ip.to_canonical() == from) {
            return Origin::Allowed;
        }
        if facts.dns_names.is_empty() {
            let all: Vec<String> = facts.ip_addresses.iter().map(ToString::to_string).collect();
            return Origin::Refused(format!(
                "x509: certificate is valid for {}, not {from}",
                all.join(", ")
            ));
        }
        Origin::Named(facts.dns_names)
    }
}

/// Why a certificate may not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// By the revocation list.
    #[error("transport: certificate serial {0} revoked")]
    Revoked(String),
    /// Its owner is not among those that are allowed.
    #[error("client certificate authentication failed")]
    NotAllowed,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SerialNumber, date_time_ymd};

    use super::*;

    fn certificate(names: &[&str], common_name: &str, serial: u64) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2040, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_client_comes_from_where_its_certificate_says() {
        let policy = Policy { checks_address: true, ..Policy::default() };
        let from = |names: &[&str], ip: &str| {
            policy.origin(Some(&certificate(names, "a", 1)), Some(ip.parse().unwrap()))
        };
        assert_eq!(from(&[], "10.0.0.1"), Origin::Allowed);
        assert_eq!(from(&["10.0.0.1", "a.b"], "10.0.0.1"), Origin::Allowed);
        assert_eq!(from(&["10.0.0.1"], "::ffff:10.0.0.1"), Origin::Allowed);
        let why = "x509: certificate is valid for 10.0.0.1, ::1, not 10.0.0.2";
        assert_eq!(from(&["10.0.0.1", "::1"], "10.0.0.2"), Origin::Refused(why.to_owned()));
        assert_eq!(from(&["10.0.0.1", "a.b"], "10.0.0.2"), Origin::Named(vec!["a.b".to_owned()]));
        assert_eq!(policy.origin(None, Some("10.0.0.1".parse().unwrap())), Origin::Allowed);
        let lax = Policy::default();
        let other = certificate(&["10.0.0.1"], "a", 1);
        assert_eq!(lax.origin(Some(&other), Some("10.0.0.2".parse().unwrap())), Origin::Allowed);
    }

    #[test]
    fn a_session_that_is_resumed_is_checked_by_what_holds_now() {
        let chain = vec![certificate(&["a.b"], "owner", 0x1234), certificate(&[], "ca", 9)];
        let now_s = 1_795_262_400;
        let says = |policy: &Policy, now_s| policy.check_resumed(&chain, now_s);
        assert_eq!(says(&Policy::default(), now_s), Ok(()));
        let late = says(&Policy::default(), 4_000_000_000).unwrap_err();
        assert!(late.contains("expired or is not yet valid"), "{late}");
        for (serial, text) in [(&[0x12, 0x34][..], "1234"), (&[9], "09")] {
            let revoked = vec![serial.to_vec()];
            let policy = Policy { revoked, ..Policy::default() };
            let text = format!("transport: certificate serial {text} revoked");
            assert_eq!(says(&policy, now_s), Err(text));
        }
        let refused = Err("client certificate authentication failed".to_owned());
        let cns = |names: &[&str]| Policy {
            allowed_cns: names.iter().map(ToString::to_string).collect(),
            ..Policy::default()
        };
        assert_eq!(says(&cns(&["other", "owner"]), now_s), Ok(()));
        assert_eq!(says(&cns(&["other"]), now_s), refused);
        let hosts =
            |host: &str| Policy { allowed_hostnames: vec![host.to_owned()], ..Policy::default() };
        assert_eq!(says(&hosts("a.b"), now_s), Ok(()));
        assert_eq!(says(&hosts("owner"), now_s), refused);
        assert_eq!(Policy::default().check_resumed(&[], now_s), Ok(()), "nobody was asked");
    }
}
