//! Certificates that a member makes for itself (`--auto-tls`, `--peer-auto-tls`), as etcd does:
//! once, and kept below the data directory.
//!
//! Called at the start. The files are etcd's: either program takes those that the other has made.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P521_SHA512,
};
use time::{Duration, OffsetDateTime};

use crate::config::tls::TransportSecurity;

/// What the certificate stands in, and the key.
const FILES: [&str; 2] = ["cert.pem", "key.pem"];

/// The settings with the files in `dir`, which are made if one is missing.
pub(super) fn certificate(
    dir: &Path,
    hosts: &[String],
    validity_years: u64,
) -> Result<TransportSecurity, String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    let dir = std::path::absolute(dir).map_err(|error| failed(dir, error))?;
    let [cert, key] = FILES.map(|name| dir.join(name));
    if !cert.exists() || !key.exists() {
        let private = Permissions::from_mode(0o700);
        std::fs::set_permissions(&dir, private).map_err(|error| failed(&dir, error))?;
        make(&cert, &key, hosts, validity_years)?;
    }
    let text = |path: &PathBuf| path.display().to_string();
    Ok(TransportSecurity {
        cert_file: text(&cert),
        key_file: text(&key),
        client_cert_file: text(&cert),
        client_key_file: text(&key),
        auto: true,
        skip_client_san_verification: true,
        ..TransportSecurity::default()
    })
}

fn make(cert: &Path, key: &Path, hosts: &[String], validity_years: u64) -> Result<(), String> {
    let now = OffsetDateTime::from(std::time::UNIX_EPOCH)
        + std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let days = i64::try_from(validity_years).ok().and_then(|years| years.checked_mul(365));
    // Longer than dates go is as long as they go.
    let last = OffsetDateTime::from_unix_timestamp(253_402_300_799).unwrap_or(now);
    let not_after = days.and_then(|days| now.checked_add(Duration::days(days)));
    let not_after = not_after.filter(|after| *after < last).unwrap_or(last);
    tracing::warn!(
        certificate_validity_bound_not_after = not_after.unix_timestamp(),
        "automatically generate certificates"
    );
    let made = |error: rcgen::Error| format!("cannot generate x509 certificate: {error}");
    let mut params = CertificateParams::new(hosts.to_vec()).map_err(made)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    (params.not_before, params.not_after) = (now, not_after);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).map_err(made)?;
    let certificate = params.self_signed(&pair).map_err(made)?;
    write(cert, &certificate.pem(), 0o644)?;
    tracing::info!(path = %cert.display(), "created cert file");
    write(key, &pair.serialize_pem(), 0o600)?;
    tracing::info!(path = %key.display(), "created key file");
    Ok(())
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| format!("{}: {error}", path.display()))
}
