//! The log lines about connections that were refused, as etcd has them, and no more of them than
//! somebody reads.
//!
//! Kept by each front and by the links to peers. A line that is left out is counted in the next.

use std::net::SocketAddr;

use rustls::pki_types::CertificateDer;
use tracing::field::debug;

use super::names;
use crate::limits;

/// Whose connection it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A client's.
    Client,
    /// A peer's.
    Peer,
}

/// What there is to say of a connection that was refused.
pub struct Rejected<'a> {
    /// Where it came from; `None` for a unix socket.
    pub remote: Option<SocketAddr>,
    /// The name that it asked for.
    pub server_name: &'a str,
    /// Whose it was, if that was known already.
    pub certificate: Option<&'a CertificateDer<'static>>,
    /// Why.
    pub error: &'a str,
}

/// See the module text.
#[derive(Debug)]
pub struct RejectedLog {
    side: Side,
    /// Lines that may still be written, and since when there are so many.
    left: u32,
    since_ms: u64,
    suppressed: u64,
}

impl RejectedLog {
    /// Nothing was refused yet.
    pub fn new(side: Side) -> Self {
        Self { side, left: limits::TLS_REJECTED_LINES, since_ms: 0, suppressed: 0 }
    }

    /// A connection was refused, or ended before it was let in.
    pub fn note(&mut self, now_ms: u64, rejected: &Rejected<'_>) {
        let remote_addr = rejected.remote.map_or_else(|| "@".to_owned(), |ip| ip.to_string());
        let (server_name, error) = (rejected.server_name, rejected.error);
        let text = match self.side {
            Side::Client => "rejected connection on client endpoint",
            Side::Peer => "rejected connection on peer endpoint",
        };
        // Probes of load balancers look like that.
        if error == "EOF" {
            tracing::debug!(remote_addr, server_name, error, "{text}");
            return;
        }
        if !self.may_write(now_ms) {
            self.suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(&mut self.suppressed);
        let names = names(rejected.certificate);
        let (ip_addresses, dns_names) = names.unzip();
        // What there is nothing to say of is left out.
        let (ip_addresses, dns_names) = (ip_addresses.map(debug), dns_names.map(debug));
        let suppressed = (suppressed > 0).then_some(suppressed);
        tracing::warn!(
            remote_addr,
            server_name,
            ip_addresses,
            dns_names,
            error,
            suppressed,
            "{text}"
        );
    }

    fn may_write(&mut self, now_ms: u64) -> bool {
        if now_ms >= self.since_ms + 1000 {
            self.since_ms = now_ms;
            self.left = limits::TLS_REJECTED_LINES;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}
