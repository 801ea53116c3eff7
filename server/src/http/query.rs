//! Paths and queries of request targets, percent-decoded as Go's `net/url` does.

/// The decoded path of a target and its query; `None` for a path that Go refuses.
pub fn split(target: &str) -> Option<(String, Query)> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Some((decode(path, false)?, Query::parse(query)))
}

/// The parameters of a query, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// A pair that is malformed is left out, as in Go; so is one with a semicolon.
    fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';'));
        let decoded = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name, true)?, decode(value, true)?))
        });
        Self(decoded.collect())
    }

    /// True if the parameter is there.
    pub fn has(&self, name: &str) -> bool {
        self.first(name).is_some()
    }

    /// Its first value.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// All its values.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// `None` for an escape that is none. What is no UTF-8 names nothing that is known here.
fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_in_paths_and_queries() {
        let (path, query) = split("/%68ealth+x?a=%74rue&b=1+2&a=&verbose&%63=").unwrap();
        assert_eq!(path, "/health+x");
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["true", ""]);
        assert_eq!((query.first("b"), query.first("c")), (Some("1 2"), Some("")));
        assert!(query.has("verbose") && !query.has("d"));
    }

    #[test]
    fn what_is_malformed_is_left_out_or_refused() {
        let (_, query) = split("/health?a=%zz&b=1;c=2&%=3&d=4").unwrap();
        assert_eq!(query, Query(vec![("d".to_owned(), "4".to_owned())]));
        assert_eq!(split("/%zz"), None);
        assert_eq!(split("/%4"), None);
    }
}
