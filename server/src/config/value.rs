//! What a setting takes and how it is written: Go's notation, with the words of Go's flag package
//! for what is wrong.

use etcore_proto::gotext;

use super::{gates, url};

/// What a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A boolean, which may stand without a value on the command line.
    Bool,
    /// An unsigned number of this many bits.
    Uint(u32),
    /// A signed number.
    Int,
    /// A duration.
    Duration,
    /// Anything.
    Text,
    /// URLs, separated by commas: sorted, and each counts once. Nothing is the default.
    Urls,
    /// Origins of browsers: URLs, separated by commas, or `*` for all.
    Origins,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Some of these, separated by commas.
    Choices(&'static [&'static str]),
    /// Feature gates. Given twice, the second adds to the first.
    Gates,
}

/// A setting's value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd)]
pub enum Value {
    /// The value of a [`Kind::Bool`].
    Bool(bool),
    /// The value of a [`Kind::Uint`].
    Uint(u64),
    /// The value of a [`Kind::Int`].
    Int(i64),
    /// The value of a [`Kind::Duration`], in nanoseconds.
    Duration(i64),
    /// The value of any other kind but URLs, as it was written.
    Text(String),
    /// The value of [`Kind::Urls`].
    Urls(Vec<String>),
}

impl Kind {
    /// Reads a value.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        let wrong = || "parse error".to_owned();
        match self {
            Self::Bool => gotext::parse_bool(text).map(Value::Bool).ok_or_else(wrong),
            Self::Uint(bits) => {
                let number = gotext::parse_uint(text, bits);
                number.map(Value::Uint).map_err(|error| error.to_string())
            }
            Self::Int => gotext::parse_int(text).map(Value::Int).map_err(|error| error.to_string()),
            Self::Duration => gotext::parse_duration(text).map(Value::Duration).ok_or_else(wrong),
            Self::Text => Ok(Value::Text(text.to_owned())),
            Self::Urls if text.is_empty() => Ok(Value::Urls(Vec::new())),
            Self::Urls => {
                url::parse_list(text)?;
                let mut urls: Vec<String> =
                    text.split(',').map(|url| url.trim().to_owned()).collect();
                urls.sort();
                urls.dedup();
                Ok(Value::Urls(urls))
            }
            Self::Origins => {
                if !text.is_empty() && text != "*" {
                    text.split(',').try_for_each(|origin| check_origin(origin.trim()))?;
                }
                Ok(Value::Text(text.to_owned()))
            }
            Self::Choice(known) => one_of(known, text).map(|()| Value::Text(text.to_owned())),
            Self::Choices(known) => {
                text.split(',').try_for_each(|part| {
                    one_of(known, part).map_err(|_| format!("invalid value {part:?}"))
                })?;
                Ok(Value::Text(text.to_owned()))
            }
            Self::Gates => gates::parse(text).map(|_| Value::Text(text.to_owned())),
        }
    }
}

/// etcd's `types.NewURLs`, with its words.
fn check_origin(origin: &str) -> Result<(), String> {
    let (scheme, rest) = origin.split_once("://").unwrap_or(("", origin));
    match scheme {
        "http" | "https" => {}
        "unix" | "unixs" => return Ok(()),
        _ => return Err(format!("URL scheme must be http, https, unix, or unixs: {origin}")),
    }
    let (address, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    if !address.contains(':') {
        return Err(format!("URL address does not have the form \"host:port\": {origin}"));
    }
    if path.is_empty() { Ok(()) } else { Err(format!("URL must not contain a path: {origin}")) }
}

fn one_of(known: &[&str], text: &str) -> Result<(), String> {
    if known.contains(&text) {
        return Ok(());
    }
    Err(format!("invalid value; use {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_url_twice_counts_once_and_the_order_is_etcds() {
        let urls = Kind::Urls.parse("http://b:1, http://a:1,http://b:1").unwrap();
        assert_eq!(urls, Value::Urls(vec!["http://a:1".to_owned(), "http://b:1".to_owned()]));
        assert_eq!(Kind::Urls.parse(""), Ok(Value::Urls(Vec::new())));
        assert!(Kind::Urls.parse("http://a:1,").is_err());
    }

    #[test]
    fn what_is_wrong_is_said_in_gos_words() {
        let wrong = |kind: Kind, text: &str| kind.parse(text).unwrap_err();
        assert_eq!(wrong(Kind::Bool, "maybe"), "parse error");
        assert_eq!(wrong(Kind::Uint(32), "4294967296"), "value out of range");
        assert_eq!(wrong(Kind::Duration, "5"), "parse error");
        assert_eq!(wrong(Kind::Choice(&["a", "b"]), "c"), "invalid value; use a, b");
        assert!(Kind::Choices(&["a", "b"]).parse("b,a").is_ok());
        assert!(Kind::Origins.parse("https://a.example:443, http://b:1").is_ok());
        let scheme = "URL scheme must be http, https, unix, or unixs: a.example";
        assert_eq!(wrong(Kind::Origins, "a.example"), scheme);
        let form = "URL address does not have the form \"host:port\": https://a.example";
        assert_eq!(wrong(Kind::Origins, "https://a.example"), form);
        assert_eq!(wrong(Kind::Origins, "http://a:1/"), "URL must not contain a path: http://a:1/");
    }
}
