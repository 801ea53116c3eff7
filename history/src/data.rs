//! Keys, values and ranges of keys, readable in a file.
//!
//! Used by all of [the crate](crate). Must never lose a byte: what is written is read back alike.

use std::fmt;

use bytes::Bytes;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The bytes of a key or a value. As text: printable ASCII as it is, the rest and the backslash as
/// `\xNN`.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Data(pub Bytes);

impl Data {
    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the text form; `None` if it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            if *first != b'\\' {
                bytes.push(*first);
                continue;
            }
            let hex = rest.strip_prefix(b"x")?.get(..2)?;
            let hex = std::str::from_utf8(hex).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &rest[3..];
        }
        Some(Data(bytes.into()))
    }
}

impl From<&str> for Data {
    fn from(text: &str) -> Self {
        Data(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for Data {
    fn from(text: String) -> Self {
        Data(text.into())
    }
}

impl From<Bytes> for Data {
    fn from(bytes: Bytes) -> Self {
        Data(bytes)
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0 {
            match byte {
                b'\\' => f.write_str("\\x5c")?,
                b' '..=b'~' => write!(f, "{}", char::from(*byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Data::parse(&text).ok_or_else(|| D::Error::custom(format!("malformed bytes {text:?}")))
    }
}

/// The keys that a request names, in etcd's way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRange {
    /// The key, or the first one.
    pub key: Data,
    /// Empty: the key alone. One zero byte: all keys from `key` on. Else: the first key after the
    /// range.
    #[serde(default, skip_serializing_if = "Data::is_empty")]
    pub end: Data,
}

impl KeyRange {
    /// One key.
    pub fn one(key: impl Into<Data>) -> Self {
        KeyRange { key: key.into(), end: Data::default() }
    }

    /// Keys from `key` up to, without, `end`.
    pub fn new(key: impl Into<Data>, end: impl Into<Data>) -> Self {
        KeyRange { key: key.into(), end: end.into() }
    }

    /// All keys.
    pub fn all() -> Self {
        KeyRange::new("\0", "\0")
    }

    /// Names one key only.
    pub fn is_one(&self) -> bool {
        self.end.is_empty()
    }

    /// Has no upper end.
    pub fn is_open(&self) -> bool {
        self.end.0.as_ref() == [0]
    }

    /// The key is one of them.
    pub fn contains(&self, key: &Data) -> bool {
        if self.is_one() {
            return *key == self.key;
        }
        *key >= self.key && (self.is_open() || *key < self.end)
    }

    /// There may be a key that is in both.
    pub fn meets(&self, other: &KeyRange) -> bool {
        if self.is_one() {
            return other.contains(&self.key);
        }
        if other.is_one() {
            return self.contains(&other.key);
        }
        (self.is_open() || other.key < self.end) && (other.is_open() || self.key < other.end)
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_one(), self.is_open()) {
            (true, _) => write!(f, "{}", self.key),
            (_, true) => write!(f, "[{}, …)", self.key),
            _ => write!(f, "[{}, {})", self.key, self.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_its_text_form() {
        let all = Data(Bytes::from((0..=255u8).collect::<Vec<u8>>()));
        assert_eq!(Data::parse(&all.to_string()), Some(all));
        assert_eq!(Data::parse("a\\x0"), None);
        assert_eq!(Data::parse("\\n"), None);
        assert_eq!(Data::parse("\\xé"), None);
    }

    #[test]
    fn ranges_hold_what_etcd_says_they_hold() {
        assert!(KeyRange::all().contains(&"a".into()));
        assert!(KeyRange::new("b", "\0").contains(&"z".into()));
        assert!(!KeyRange::new("b", "d").contains(&"d".into()));
        assert!(KeyRange::new("b", "d").meets(&KeyRange::one("c")));
        assert!(!KeyRange::new("b", "d").meets(&KeyRange::new("d", "\0")));
    }
}
