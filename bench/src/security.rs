//! What `--cacert`, `--cert` and `--key` say, as rustls wants it.
//!
//! Made by `options` before anything is sent; each connection begins with it.

use std::sync::Arc;

use etcore_proto::tls::Session;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

/// A configuration for TLS, shared by all connections.
#[derive(Clone)]
pub(crate) struct Security(Arc<ClientConfig>);

/// The files that were named.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    pub(crate) ca: Option<String>,
    pub(crate) cert: Option<String>,
    pub(crate) key: Option<String>,
}

impl std::fmt::Debug for Security {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TLS")
    }
}

impl PartialEq for Security {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Security {}

impl Security {
    /// Reads the files; `None` if none was named.
    pub(crate) fn load(files: &Files) -> Result<Option<Self>, String> {
        let Some(ca) = &files.ca else {
            let others = files.cert.is_some() || files.key.is_some();
            let text = "--cert and --key need --cacert: whom to believe must be said";
            return if others { Err(text.to_owned()) } else { Ok(None) };
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|error| format!("--cacert={ca}: {error}"))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let mut config = match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => {
                let pair = PrivateKeyDer::from_pem_file(key);
                let pair = pair.map_err(|error| format!("--key={key}: {error}"))?;
                config
                    .with_client_auth_cert(certificates(cert)?, pair)
                    .map_err(|error| format!("--cert={cert}: {error}"))?
            }
            (None, None) => config.with_no_client_auth(),
            _ => return Err("--cert and --key belong together".to_owned()),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(Self(Arc::new(config))))
    }

    /// A connection to the server at `host:port`.
    pub(crate) fn session(&self, authority: &str) -> Result<Session, String> {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
        Session::client(self.0.clone(), name).map_err(|error| error.to_string())
    }
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all {
        Ok(all) if all.is_empty() => Err(format!("{file}: no certificate")),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("{file}: {error}")),
    }
}
