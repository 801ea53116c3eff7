//! `--host-whitelist`: which hosts a plain HTTP request may be for.
//!
//! A page of any site can have its own name point to this member's address, and a browser then lets
//! that page ask the member whatever it likes (CVE-2018-5702). The name that the browser was given
//! stands in the request, though. Used by the services' endpoints; as in etcd, requests over TLS
//! need no such check.

use super::{Page, text_page};

/// The host of a `Host` field without its port; the field as it is if it has none (etcd:
/// `httputil.GetHostname`).
pub fn hostname(field: &str) -> &str {
    match field.rsplit_once(':') {
        Some((host, _)) if host.starts_with('[') && host.ends_with(']') => &host[1..host.len() - 1],
        Some((host, _)) if !host.contains([':', '[', ']']) => host,
        _ => field,
    }
}

/// True if requests for this host are answered.
pub fn takes_host(whitelist: &[String], host: &str) -> bool {
    whitelist.iter().any(|known| known == "*" || known == host)
}

/// What a request for another host is told.
pub fn wrong_host(host: &str) -> Page {
    text_page(
        421,
        &format!(
            "\netcore does not answer requests for the host {host:?}.\n\nRequests over TLS may be \
             for any host; for others, add the name to the whitelist:\n  --host-whitelist \
             {host:?}\n\nThis keeps pages of other sites from reaching the member by DNS \
             rebinding (CVE-2018-5702).\n"
        ),
    )
}

/// The gateway is asked by a client whose certificate names a user: that name does not count there
/// (CVE-2018-16886), which he is told rather than left to find out.
pub fn name_ignored() -> Page {
    text_page(
        400,
        "CommonName of client sending a request against gateway will be ignored and not used as \
         expected\n",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_compared_without_its_port() {
        let cases = [
            ("a.example:2379", "a.example"),
            ("a.example", "a.example"),
            ("[::1]:2379", "::1"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("localhost:::", "localhost:::"),
            ("", ""),
        ];
        for (field, host) in cases {
            assert_eq!(hostname(field), host);
        }
        let some = ["a.example".to_owned(), "::1".to_owned()];
        assert!(takes_host(&some, "::1") && !takes_host(&some, "b.example"));
        assert!(takes_host(&["*".to_owned()], "b.example"));
        assert!(!takes_host(&[String::new()], "b.example"), "as with etcd");
        assert_eq!(wrong_host("b").status, 421);
    }
}
