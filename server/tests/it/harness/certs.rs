//! Certificates for tests, made afresh: an authority, and what it issues, as files.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, RevokedCertParams, SerialNumber, SignatureAlgorithm, date_time_ymd,
};

/// An authority and its certificate's file.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    pub ca_file: String,
}

/// A certificate's file and its key's.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

/// What is to be issued.
pub struct Wanted<'a> {
    pub names: &'a [&'a str],
    pub common_name: &'a str,
    pub usages: &'a [ExtendedKeyUsagePurpose],
    pub algorithm: &'static SignatureAlgorithm,
    pub serial: u64,
    pub is_expired: bool,
}

/// Names of this machine.
pub const LOCAL: &[&str] = &["localhost", "127.0.0.1"];
/// What a certificate may be used for that serves and connects.
pub const BOTH: &[ExtendedKeyUsagePurpose] =
    &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

impl Default for Wanted<'_> {
    fn default() -> Self {
        Self {
            names: LOCAL,
            common_name: "etcd",
            usages: BOTH,
            algorithm: &PKCS_ECDSA_P256_SHA256,
            serial: 7,
            is_expired: false,
        }
    }
}

impl Authority {
    pub fn new(dir: &Path, name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        let ca_file = dir.join(format!("{name}.pem"));
        std::fs::write(&ca_file, certificate.pem()).unwrap();
        let ca_file = ca_file.display().to_string();
        Self { issuer: Issuer::new(params, key), dir: dir.to_owned(), ca_file }
    }

    /// Issues a certificate for this machine.
    pub fn issue(&self, file: &str) -> Pair {
        self.issue_as(file, &Wanted::default())
    }

    pub fn issue_as(&self, file: &str, wanted: &Wanted<'_>) -> Pair {
        let (certificate, key) = self.make(wanted);
        self.write(file, &certificate.pem(), &key.serialize_pem())
    }

    fn make(&self, wanted: &Wanted<'_>) -> (Certificate, KeyPair) {
        let key = KeyPair::generate_for(wanted.algorithm).unwrap();
        let names: Vec<String> = wanted.names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, wanted.common_name);
        params.extended_key_usages = wanted.usages.to_vec();
        params.serial_number = Some(SerialNumber::from(wanted.serial));
        if wanted.is_expired {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }

    /// Each file is there whole or not at all.
    fn write(&self, file: &str, cert: &str, key: &str) -> Pair {
        let put = |name: String, text: &str| {
            let path = self.dir.join(name);
            let fresh = path.with_extension("new");
            std::fs::write(&fresh, text).unwrap();
            std::fs::rename(&fresh, &path).unwrap();
            path.display().to_string()
        };
        let key = put(format!("{file}.key"), key);
        Pair { cert: put(format!("{file}.crt"), cert), key }
    }

    /// Writes a list that revokes these serial numbers.
    pub fn revoke(&self, file: &str, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).unwrap();
        let path = self.dir.join(file);
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, list.der()).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
        path.display().to_string()
    }
}
