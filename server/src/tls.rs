//! Transport security of a member: certificates and keys from files, who may connect, and the
//! configurations of rustls that come of it, which are made anew when a file changes.
//!
//! Boot loads it; fronts and links to peers take the current configuration for each connection; the
//! main thread looks for changed files every second. A connection keeps what it began with. A file
//! that cannot be used is told of, and what was there before stays. Shards must never wait here:
//! they only load a pointer.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use etcore_proto::tls::{Session, x509};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};

use crate::config::tls::{Tls as Settings, TransportSecurity};

mod files;
mod generated;
mod policy;
mod rejected;
mod rustls_config;

pub use policy::{Origin, Policy};
pub use rejected::{Rejected, RejectedLog, Side};

/// Both kinds of connections, as log lines and directories have them.
const CLIENT: &str = "client";
const PEER: &str = "peer";

/// What connections of one kind are made with.
pub struct Endpoint {
    /// For connections that are accepted; `None` if there is no certificate.
    pub server: Option<Arc<ServerConfig>>,
    /// For connections to other members; `None` for what clients connect to.
    pub client: Option<Arc<ClientConfig>>,
    /// Who may connect.
    pub policy: Arc<Policy>,
}

/// The endpoint of one kind of connection, and the files that it came from.
struct Watched {
    dials: bool,
    security: TransportSecurity,
    current: ArcSwap<Endpoint>,
    /// As the files were when they were last looked at.
    seen: Mutex<Vec<files::Stamp>>,
}

/// See the module text.
pub struct Tls {
    settings: Settings,
    client: Watched,
    peer: Watched,
}

impl Tls {
    /// Reads what the settings name, and makes what `--auto-tls` and `--peer-auto-tls` ask for.
    /// `hosts` are the names of the client's and of the peers' listeners.
    ///
    /// # Errors
    /// One sentence for the operator.
    pub fn load(
        settings: &Settings,
        data_dir: &Path,
        client_hosts: &[String],
        peer_hosts: &[String],
    ) -> Result<Self, String> {
        let watched = |security: &TransportSecurity, name: &str, hosts: &[String]| {
            let dials = name == PEER;
            let security = if !security.auto {
                security.clone()
            } else if security.has_files() {
                tracing::warn!("ignoring {name} auto TLS since certs given");
                TransportSecurity { auto: false, ..security.clone() }
            } else {
                tell_ignored(security, name);
                let dir = data_dir.join("fixtures").join(name);
                generated::certificate(&dir, hosts, settings.self_signed_validity_years)?
            };
            if security.has_files() {
                tracing::info!(
                    tls_info = %security,
                    cipher_suites = ?settings.cipher_suites,
                    "starting with {name} TLS"
                );
            }
            let seen = files::stamps(&security);
            let endpoint = rustls_config::endpoint(&security, settings, dials)?;
            Ok::<_, String>(Watched {
                dials,
                security,
                current: ArcSwap::from_pointee(endpoint),
                seen: Mutex::new(seen),
            })
        };
        let peer = watched(&settings.peer, PEER, peer_hosts)?;
        let client = watched(&settings.client, CLIENT, client_hosts)?;
        Ok(Self { settings: settings.clone(), client, peer })
    }

    /// What connections of clients are made with now.
    pub fn client(&self) -> Arc<Endpoint> {
        self.client.current.load_full()
    }

    /// What connections between members are made with now.
    pub fn peer(&self) -> Arc<Endpoint> {
        self.peer.current.load_full()
    }

    /// Makes connections from now on with what changed files say. Reads files: not for a shard.
    pub fn follow_files(&self) {
        for (watched, name) in [(&self.client, CLIENT), (&self.peer, PEER)] {
            watched.follow(&self.settings, name);
        }
    }
}

/// The client's side of a connection to the member that has this name or address in its URL.
///
/// # Errors
/// When there is nothing to connect with, or the name is none.
pub fn dial(endpoint: &Endpoint, host: &str) -> Result<Session, String> {
    let config = endpoint.client.clone().ok_or("these connections are only accepted")?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host:?} is no name that a certificate could have"))?;
    Session::client(config, name).map_err(|error| error.to_string())
}

impl Watched {
    fn follow(&self, settings: &Settings, name: &str) {
        let stamps = files::stamps(&self.security);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == stamps {
            return;
        }
        // Before they are read: a change meanwhile is seen the next time.
        *seen = stamps;
        match rustls_config::endpoint(&self.security, settings, self.dials) {
            Ok(endpoint) => {
                self.current.store(Arc::new(endpoint));
                tracing::info!(tls_info = %self.security, "loaded changed {name} TLS files");
            }
            Err(error) => {
                tracing::warn!(
                    tls_info = %self.security,
                    error,
                    "changed {name} TLS files cannot be used; what was there before stays"
                );
            }
        }
    }
}

/// etcd makes certificates for nobody in particular then, and asks for none.
fn tell_ignored(security: &TransportSecurity, name: &str) {
    let asks_more = security.wants_client_certs()
        || !security.crl_file.is_empty()
        || !security.allowed_cns.is_empty()
        || !security.allowed_hostnames.is_empty();
    if asks_more {
        tracing::warn!(
            tls_info = %security,
            "with {name} auto TLS nobody is asked for a certificate: the other {name} TLS flags \
             are ignored"
        );
    }
}

/// The names and addresses that a certificate is for, for log lines.
pub(crate) fn names(
    certificate: Option<&CertificateDer<'_>>,
) -> Option<(Vec<String>, Vec<String>)> {
    let facts = x509::Facts::parse(certificate?)?;
    let addresses = facts.ip_addresses.iter().map(ToString::to_string).collect();
    Some((addresses, facts.dns_names))
}
