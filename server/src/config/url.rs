//! The URLs etcd's flags take: `http://host:port` and `unix://path`.
//!
//! Used by the flag parser and by the listeners. It must not resolve names: that is I/O.

/// One URL to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenUrl {
    /// `http://host:port`.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// `unix://path`.
    Unix {
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
            "http" => {}
            "unix" if rest.is_empty() => return Err(format!("URL {text:?} has no path")),
            "unix" => return Ok(Self::Unix { path: rest.to_owned() }),
            "https" | "unixs" => {
                return Err(format!("URL {text:?} asks for TLS, which etcore does not serve yet"));
            }
            _ => return Err(format!("URL {text:?} has scheme {scheme:?}; use http or unix")),
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
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for ListenUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix { path } => write!(f, "unix://{path}"),
        }
    }
}

/// Splits a comma-separated list of URLs and checks each.
///
/// # Errors
/// As [`ListenUrl::parse`].
pub fn parse_list(text: &str) -> Result<Vec<ListenUrl>, String> {
    text.split(',').map(|url| ListenUrl::parse(url.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_into_host_and_port() {
        let tcp = |host: &str, port| ListenUrl::Tcp { host: host.into(), port };
        assert_eq!(ListenUrl::parse("http://localhost:2379").unwrap(), tcp("localhost", 2379));
        assert_eq!(ListenUrl::parse("http://[::1]:1/").unwrap(), tcp("::1", 1));
        assert_eq!(ListenUrl::parse("http://[::1]:1").unwrap().to_string(), "http://[::1]:1");
        assert_eq!(
            ListenUrl::parse("unix://a/b.sock").unwrap(),
            ListenUrl::Unix { path: "a/b.sock".into() }
        );
    }

    #[test]
    fn a_wrong_url_is_refused_with_a_sentence() {
        for wrong in
            ["localhost:2379", "http://localhost", "http://h:99999", "ftp://h:1", "https://h:1"]
        {
            assert!(ListenUrl::parse(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
