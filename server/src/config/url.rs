//! The URLs etcd's flags take: `http://host:port` and `unix://path`, and with TLS `https://` and
//! `unixs://`.
//!
//! Used by the flag parser and by the listeners. It must not resolve names: that is I/O.

/// One URL to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenUrl {
    /// `http://host:port` or `https://host:port`.
    Tcp {
        /// With TLS.
        tls: bool,
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// `unix://path` or `unixs://path`.
    Unix {
        /// With TLS.
        tls: bool,
        /// Path as written after the scheme.
        path: String,
    },
}

impl ListenUrl {
    /// Parses one URL.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("URL {text:?} has no scheme; write http://host:port"))?;
        match scheme {
            "http" | "https" => {}
            "unix" | "unixs" if rest.is_empty() => return Err(format!("URL {text:?} has no path")),
            "unix" | "unixs" => {
                return Ok(Self::Unix { tls: scheme == "unixs", path: rest.to_owned() });
            }
            _ => {
                return Err(format!(
                    "URL {text:?} has scheme {scheme:?}; use http, https, unix or unixs"
                ));
            }
        }
        let authority = rest.trim_end_matches('/');
        if authority.contains('/') {
            return Err(format!("URL {text:?} must not contain a path"));
        }
        let (host, port) = authority
            .rsplit_once(':')
            .ok_or_else(|| format!("URL {text:?} has no port; write http://host:port"))?;
        let port = port.parse().map_err(|_| format!("URL {text:?} has port {port:?}"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Ok(Self::Tcp { tls: scheme == "https", host: host.to_owned(), port })
    }

    /// True if it asks for TLS.
    pub fn is_tls(&self) -> bool {
        match self {
            Self::Tcp { tls, .. } | Self::Unix { tls, .. } => *tls,
        }
    }

    /// Name or address, without a port; of a unix socket, what stands before a colon, as Go reads
    /// it.
    pub fn host(&self) -> String {
        match self {
            Self::Tcp { host, .. } => host.clone(),
            Self::Unix { path, .. } => {
                path.rsplit_once(':').map_or("", |(host, _)| host).to_owned()
            }
        }
    }

    /// What stands behind the scheme.
    pub fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
            Self::Unix { path, .. } => path.clone(),
        }
    }
}

/// True if a URL, however odd, asks for TLS.
pub fn asks_for_tls(url: &str) -> bool {
    ["https://", "unixs://"].iter().any(|scheme| url.starts_with(scheme))
}

impl std::fmt::Display for ListenUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = match self {
            Self::Tcp { tls: false, .. } => "http",
            Self::Tcp { tls: true, .. } => "https",
            Self::Unix { tls: false, .. } => "unix",
            Self::Unix { tls: true, .. } => "unixs",
        };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// Splits a comma-separated list of URLs and checks each.
///
/// # Errors
/// As [`ListenUrl::parse`].
pub fn parse_list(text: &str) -> Result<Vec<ListenUrl>, String> {
    text.split(',').map(|url| ListenUrl::parse(url.trim())).collect()
}

/// The peer URLs of a member that is to be added, sorted (etcd `types.NewURLs`, which takes no
/// trailing slash).
///
/// # Errors
/// What is wrong with them.
pub fn peer_urls(list: &[String]) -> Result<Vec<String>, String> {
    if list.is_empty() {
        return Err("no valid URLs given".to_owned());
    }
    let mut urls = Vec::new();
    for text in list {
        let text = text.trim();
        ListenUrl::parse(text)?;
        if text.starts_with("http") && text.ends_with('/') {
            return Err(format!("URL must not contain a path: {text}"));
        }
        urls.push(text.to_owned());
    }
    urls.sort();
    Ok(urls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_into_scheme_host_and_port() {
        let tcp = |tls, host: &str, port| ListenUrl::Tcp { tls, host: host.into(), port };
        let parse = |text: &str| ListenUrl::parse(text).unwrap();
        assert_eq!(parse("http://localhost:2379"), tcp(false, "localhost", 2379));
        assert_eq!(parse("http://[::1]:1/"), tcp(false, "::1", 1));
        assert_eq!(parse("https://localhost:2379"), tcp(true, "localhost", 2379));
        assert_eq!(
            parse("unix://a/b.sock"),
            ListenUrl::Unix { tls: false, path: "a/b.sock".into() }
        );
        for text in ["http://[::1]:1", "https://a:1", "unix://a/b", "unixs://a:1"] {
            assert_eq!(parse(text).to_string(), text);
            assert_eq!(parse(text).is_tls(), asks_for_tls(text));
        }
    }

    #[test]
    fn peer_urls_are_sorted_and_have_no_path() {
        let list = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>();
        let given = list(&[" http://b:1", "http://a:1"]);
        assert_eq!(peer_urls(&given).unwrap(), list(&["http://a:1", "http://b:1"]));
        for wrong in [&[][..], &["http://a:1/"], &["http://a"], &["a:1"], &["ftp://a:1"]] {
            assert!(peer_urls(&list(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_wrong_url_is_refused_with_a_sentence() {
        for wrong in ["localhost:2379", "http://localhost", "http://h:99999", "ftp://h:1"] {
            assert!(ListenUrl::parse(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
