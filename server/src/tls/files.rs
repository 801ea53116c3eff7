//! Files with certificates, keys and revocation lists, as Go reads them.
//!
//! Called at the start, and when a file changed. Each error names its file. Keys are never logged.

use std::os::unix::fs::MetadataExt;

use etcore_proto::tls::x509;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::config::tls::TransportSecurity;

/// What tells a changed file from what it was: device, inode, size and time of change in
/// nanoseconds; nothing if it cannot be looked at. A file that was replaced by renaming has another
/// inode; Kubernetes replaces a link.
pub(super) type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// How the files of these settings look now.
pub(super) fn stamps(security: &TransportSecurity) -> Vec<Stamp> {
    let files = [
        &security.cert_file,
        &security.key_file,
        &security.client_cert_file,
        &security.client_key_file,
        &security.trusted_ca_file,
        &security.crl_file,
    ];
    let stamp = |file: &&String| {
        if file.is_empty() {
            return None;
        }
        let found = std::fs::metadata(file.as_str()).ok()?;
        Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    };
    files.iter().map(stamp).collect()
}

/// A certificate with those that vouch for it, and its key.
pub(super) struct Pair {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// Reads a certificate and its key: the first certificates and the first key in whatever order and
/// among whatever else the files have them, a key as PKCS#1, SEC1 or PKCS#8.
pub(super) fn pair(cert_file: &str, key_file: &str) -> Result<Pair, String> {
    let chain = certificates(cert_file)?;
    if chain.is_empty() {
        return Err(format!("{cert_file}: tls: failed to find any PEM data in certificate input"));
    }
    let text = read(key_file)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        format!("{key_file}: tls: failed to find any PEM data with a private key in key input")
    })?;
    Ok(Pair { chain, key })
}

/// Reads the certificates of a bundle.
pub(super) fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(file)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|error| format!("{file}: {error}"))?;
    if let Some(at) = all.iter().position(|certificate| x509::Facts::parse(certificate).is_none()) {
        return Err(format!("{file}: x509: malformed certificate (number {})", at + 1));
    }
    Ok(all)
}

/// Reads the serial numbers that a revocation list revokes, sorted. It may be DER, as etcd wants
/// it, or PEM.
pub(super) fn revoked(file: &str) -> Result<Vec<Vec<u8>>, String> {
    let content = read(file)?;
    let der = CertificateRevocationListDer::from_pem_slice(&content)
        .map_or_else(|_| content.clone(), |list| list.as_ref().to_vec());
    x509::revoked(&der).ok_or_else(|| format!("{file}: x509: malformed crl"))
}

fn read(file: &str) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("open {file}: {error}"))
}

/// Where Go looks for the system's authorities, in its order.
const SYSTEM_FILES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The system's authorities; none if there are none, as with Go.
pub(super) fn system_authorities() -> Vec<CertificateDer<'static>> {
    let chosen = std::env::var("SSL_CERT_FILE").ok().filter(|file| !file.is_empty());
    let mut files = chosen.iter().map(String::as_str).chain(SYSTEM_FILES);
    let parse = |text: Vec<u8>| CertificateDer::pem_slice_iter(&text).flatten().collect();
    files.find_map(|file| std::fs::read(file).ok()).map(parse).unwrap_or_default()
}
