//! From files to what rustls is given: suites, versions, certificates and who verifies them.
//!
//! Called at the start, and when a file changed.

use std::sync::Arc;

use etcore_proto::tls::x509::Facts;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion, version,
};

use super::policy::{Policy, Refused};
use super::{Endpoint, files};
use crate::config::tls::{Tls as Settings, TlsVersion, TransportSecurity};

/// HTTP/2 and HTTP/1.1, as clients are served.
const CLIENT_PROTOCOLS: &[&[u8]] = &[b"h2", b"http/1.1"];
/// Members speak HTTP/1.1, and do not negotiate.
const PEER_PROTOCOLS: &[&[u8]] = &[b"http/1.1"];

/// Makes what connections are made with; `dials` if there are any to others.
///
/// # Errors
/// One sentence, which names the file.
pub(super) fn endpoint(
    security: &TransportSecurity,
    settings: &Settings,
    dials: bool,
) -> Result<Endpoint, String> {
    let provider = Arc::new(provider(settings));
    let versions = versions(settings, &provider);
    let revoked = match &*security.crl_file {
        "" => Vec::new(),
        file => files::revoked(file)?,
    };
    let policy = Arc::new(Policy {
        allowed_cns: security.allowed_cns.clone(),
        allowed_hostnames: security.allowed_hostnames.clone(),
        revoked,
        checks_address: !security.skip_client_san_verification,
    });
    let roots = match &*security.trusted_ca_file {
        "" if security.wants_client_certs()
            || (dials && security.has_files() && !security.auto) =>
        {
            files::system_authorities()
        }
        "" => Vec::new(),
        file => files::certificates(file)?,
    };
    let roots = Arc::new(Roots::new(roots));
    let server = if security.has_files() {
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| error.to_string())?;
        let config = if security.wants_client_certs() {
            let verifier = ClientVerifier::new(&roots, &provider, &policy).map_err(|error| {
                match &*security.trusted_ca_file {
                    "" => format!(
                        "clients need certificates, but no file with trusted authorities is named \
                         and this system has none: {error}"
                    ),
                    file => format!("{file}: {error}"),
                }
            })?;
            config.with_client_cert_verifier(Arc::new(verifier))
        } else {
            config.with_no_client_auth()
        };
        let pair = files::pair(&security.cert_file, &security.key_file)?;
        let mut config = config
            .with_single_cert(pair.chain, pair.key)
            .map_err(|error| pair_text(&error, &security.cert_file, &security.key_file))?;
        let protocols = if dials { PEER_PROTOCOLS } else { CLIENT_PROTOCOLS };
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        // Sessions are resumed by what the client keeps: whoever was let in by other files begins
        // anew, since the keys of tickets are new as well.
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?;
        config.send_tls13_tickets = 1;
        Some(Arc::new(config))
    } else {
        None
    };
    let client = if dials {
        let config = client_config(security, &provider, &versions, &roots, &policy)?;
        Some(Arc::new(config))
    } else {
        None
    };
    Ok(Endpoint { server, client, policy })
}

fn client_config(
    security: &TransportSecurity,
    provider: &Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    roots: &Arc<Roots>,
    policy: &Arc<Policy>,
) -> Result<ClientConfig, String> {
    let verifier = ServerVerifier::new(roots, provider, policy, security.auto);
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let (cert_file, key_file) = match &*security.client_cert_file {
        "" => (&security.cert_file, &security.key_file),
        file => (&file.to_owned(), &security.client_key_file),
    };
    if cert_file.is_empty() {
        return Ok(config.with_no_client_auth());
    }
    let pair = files::pair(cert_file, key_file)?;
    config
        .with_client_auth_cert(pair.chain, pair.key)
        .map_err(|error| pair_text(&error, cert_file, key_file))
}

/// Why a certificate and a key cannot be used together.
fn pair_text(error: &Error, cert_file: &str, key_file: &str) -> String {
    let why = match error {
        Error::InconsistentKeys(_) => "tls: private key does not match public key".to_owned(),
        other => format!("tls: {other}"),
    };
    format!("{cert_file}, {key_file}: {why}")
}

/// The suites that were asked for; those of TLS 1.3 are always on, as in Go.
fn provider(settings: &Settings) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let asked = &settings.cipher_suites;
    if !asked.is_empty() {
        provider.cipher_suites.retain(|suite| {
            let name = format!("{:?}", suite.suite());
            name.starts_with("TLS13_") || asked.contains(&name)
        });
    }
    provider
}

fn versions(
    settings: &Settings,
    provider: &CryptoProvider,
) -> Vec<&'static SupportedProtocolVersion> {
    let served = settings.min_version..=settings.max_version;
    let has_12 = provider.cipher_suites.iter().any(|suite| suite.tls13().is_none());
    [(TlsVersion::V12, &version::TLS12), (TlsVersion::V13, &version::TLS13)]
        .into_iter()
        .filter(|(version, _)| served.contains(version))
        .filter(|(version, _)| *version != TlsVersion::V12 || has_12)
        .map(|(_, version)| version)
        .collect()
}

/// Whom to believe.
#[derive(Debug)]
struct Roots {
    store: Arc<RootCertStore>,
    /// Go also takes one of these as a server's or client's own certificate.
    certificates: Vec<CertificateDer<'static>>,
}

impl Roots {
    fn new(certificates: Vec<CertificateDer<'static>>) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates.iter().cloned());
        Self { store: Arc::new(store), certificates }
    }

    /// The certificate itself is among those that are believed; with what it says.
    fn trusted(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Option<Facts> {
        let is_own = self.certificates.iter().any(|own| own.as_ref() == certificate.as_ref());
        let facts = is_own.then(|| Facts::parse(certificate)).flatten()?;
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        (now_s >= facts.not_before_s && now_s <= facts.not_after_s).then_some(facts)
    }
}

/// The error has the text for the log; the other side is told that the certificate will not do.
fn refused(refused: Refused) -> Error {
    CertificateError::Other(OtherError(Arc::new(refused))).into()
}

fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, Error> {
    Facts::parse(certificate).ok_or_else(|| CertificateError::BadEncoding.into())
}

/// Verifies clients: chain, use, dates, and what the policy says.
#[derive(Debug)]
struct ClientVerifier {
    chains: Arc<dyn ClientCertVerifier>,
    roots: Arc<Roots>,
    policy: Arc<Policy>,
}

impl ClientVerifier {
    fn new(
        roots: &Arc<Roots>,
        provider: &Arc<CryptoProvider>,
        policy: &Arc<Policy>,
    ) -> Result<Self, String> {
        let builder =
            WebPkiClientVerifier::builder_with_provider(roots.store.clone(), provider.clone());
        let chains = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { chains, roots: roots.clone(), policy: policy.clone() })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let trusted = self.roots.trusted(own, now).filter(|facts| facts.usages.client);
        let leaf = match trusted {
            Some(facts) => facts,
            None => {
                self.chains.verify_client_cert(own, above, now)?;
                facts(own)?
            }
        };
        self.policy.check_client(&leaf, above).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Verifies servers: chain, use, dates, name, and what the policy says.
#[derive(Debug)]
struct ServerVerifier {
    /// `None` if nobody is believed.
    chains: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    roots: Arc<Roots>,
    policy: Arc<Policy>,
    /// Nothing but the signature is looked at.
    believes_all: bool,
}

impl ServerVerifier {
    fn new(
        roots: &Arc<Roots>,
        provider: &Arc<CryptoProvider>,
        policy: &Arc<Policy>,
        believes_all: bool,
    ) -> Self {
        let builder =
            WebPkiServerVerifier::builder_with_provider(roots.store.clone(), provider.clone());
        Self {
            chains: builder.build().ok(),
            provider: provider.clone(),
            roots: roots.clone(),
            policy: policy.clone(),
            believes_all,
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.believes_all {
            return Ok(ServerCertVerified::assertion());
        }
        let trusted = self.roots.trusted(own, now);
        let leaf = match trusted.filter(|f| f.usages.server && f.is_for(&name.to_str())) {
            Some(facts) => facts,
            None => {
                let unknown = || Error::from(CertificateError::UnknownIssuer);
                let chains = self.chains.as_ref().ok_or_else(unknown)?;
                chains.verify_server_cert(own, above, name, response, now)?;
                facts(own)?
            }
        };
        // The revocation list is for those that connect to this member, as in etcd.
        self.policy.check_owner(&leaf).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
