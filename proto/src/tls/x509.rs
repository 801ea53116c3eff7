//! What etcd looks at in a certificate besides what its verification does: names, serial number,
//! dates; and what a revocation list revokes.
//!
//! Used by the member's checks and for its log lines. Nothing here verifies a signature; any bytes
//! may come in.

use std::net::IpAddr;

use super::der::{Der, magnitude, tag};
use crate::civil;

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The serial number's bytes, without zeros in front.
    pub serial: Vec<u8>,
    /// Seconds since 1970.
    pub not_before_s: i64,
    /// Seconds since 1970.
    pub not_after_s: i64,
    /// The last CN of the subject; empty if there is none.
    pub common_name: String,
    /// DNS names of the subject.
    pub dns_names: Vec<String>,
    /// Addresses of the subject.
    pub ip_addresses: Vec<IpAddr>,
    /// Uses that the certificate is restricted to.
    pub usages: Usages,
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usages {
    /// A server's.
    pub server: bool,
    /// A client's.
    pub client: bool,
}

/// Object identifiers, as DER has them.
mod oid {
    pub(super) const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    pub(super) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
    pub(super) const EXT_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
    pub(super) const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
    pub(super) const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
    pub(super) const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
}

const VERSION: u8 = 0xa0;
const ISSUER_ID: u8 = 0x81;
const SUBJECT_ID: u8 = 0x82;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
const DAY_S: i64 = 86_400;

/// The public key in a certificate, as X.509 writes it (SubjectPublicKeyInfo); `None` if the
/// certificate is malformed.
pub fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    let mut tbs = Der(certificate).enter(tag::SEQUENCE)?.enter(tag::SEQUENCE)?;
    tbs.skip_if(VERSION)?;
    tbs.expect(tag::INTEGER)?;
    // Algorithm, issuer, validity and subject.
    for _ in 0..4 {
        tbs.expect(tag::SEQUENCE)?;
    }
    let before = tbs.0;
    tbs.expect(tag::SEQUENCE)?;
    before.get(..before.len() - tbs.0.len())
}

impl Facts {
    /// Reads a certificate in DER; `None` if it is malformed.
    pub fn parse(certificate: &[u8]) -> Option<Self> {
        let mut tbs = Der(certificate).enter(tag::SEQUENCE)?.enter(tag::SEQUENCE)?;
        tbs.skip_if(VERSION)?;
        let serial = magnitude(tbs.expect(tag::INTEGER)?).to_vec();
        // Algorithm and issuer.
        tbs.expect(tag::SEQUENCE)?;
        tbs.expect(tag::SEQUENCE)?;
        let mut validity = tbs.enter(tag::SEQUENCE)?;
        let not_before_s = time(&mut validity)?;
        let not_after_s = time(&mut validity)?;
        let common_name = common_name(tbs.enter(tag::SEQUENCE)?)?;
        // The key.
        tbs.expect(tag::SEQUENCE)?;
        tbs.skip_if(ISSUER_ID)?;
        tbs.skip_if(SUBJECT_ID)?;
        let mut facts = Self {
            serial,
            not_before_s,
            not_after_s,
            common_name,
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            usages: Usages { server: true, client: true },
        };
        if let Some(mut extensions) = tbs.enter(EXTENSIONS) {
            facts.read_extensions(extensions.enter(tag::SEQUENCE)?)?;
        }
        Some(facts)
    }

    fn read_extensions(&mut self, mut extensions: Der<'_>) -> Option<()> {
        while !extensions.is_empty() {
            let mut extension = extensions.enter(tag::SEQUENCE)?;
            let id = extension.expect(tag::OID)?;
            extension.skip_if(tag::BOOLEAN)?;
            let mut content = Der(extension.expect(tag::OCTET_STRING)?);
            match id {
                oid::SUBJECT_ALT_NAME => self.read_names(content.enter(tag::SEQUENCE)?)?,
                oid::EXT_KEY_USAGE => self.usages = usages(content.enter(tag::SEQUENCE)?)?,
                _ => {}
            }
        }
        Some(())
    }

    fn read_names(&mut self, mut names: Der<'_>) -> Option<()> {
        while let Some((kind, content)) = names.next() {
            match kind {
                DNS_NAME => self.dns_names.push(String::from_utf8_lossy(content).into_owned()),
                IP_ADDRESS => self.ip_addresses.push(match content.len() {
                    4 => IpAddr::from(<[u8; 4]>::try_from(content).ok()?),
                    16 => IpAddr::from(<[u8; 16]>::try_from(content).ok()?),
                    _ => return None,
                }),
                _ => {}
            }
        }
        names.is_empty().then_some(())
    }

    /// True if the certificate is for this host, as Go's `VerifyHostname` decides: an address must
    /// be among the addresses, a name among the names, whose first label may be `*`.
    pub fn is_for(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Ok(ip) = bare.unwrap_or(host).parse::<IpAddr>() {
            let ip = ip.to_canonical();
            return self.ip_addresses.iter().any(|own| own.to_canonical() == ip);
        }
        self.dns_names.iter().any(|pattern| name_matches(pattern, host))
    }
}

/// A name matches a pattern that has as many labels, the first of which may be `*`.
fn name_matches(pattern: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let pattern = pattern.strip_suffix('.').unwrap_or(pattern).to_ascii_lowercase();
    if host.is_empty() || pattern.is_empty() {
        return false;
    }
    match pattern.strip_prefix("*.") {
        Some(rest) => host
            .split_once('.')
            .is_some_and(|(first, parent)| !first.is_empty() && !rest.is_empty() && parent == rest),
        None => host == pattern,
    }
}

/// The last CN of a name.
fn common_name(mut name: Der<'_>) -> Option<String> {
    let mut found = String::new();
    while !name.is_empty() {
        let mut set = name.enter(tag::SET)?;
        while !set.is_empty() {
            let mut attribute = set.enter(tag::SEQUENCE)?;
            let id = attribute.expect(tag::OID)?;
            let (kind, value) = attribute.next()?;
            if id == oid::COMMON_NAME {
                found = string(kind, value);
            }
        }
    }
    Some(found)
}

fn string(kind: u8, value: &[u8]) -> String {
    if kind != tag::BMP_STRING {
        return String::from_utf8_lossy(value).into_owned();
    }
    let units: Vec<u16> =
        value.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]])).collect();
    String::from_utf16_lossy(&units)
}

fn usages(mut list: Der<'_>) -> Option<Usages> {
    let mut usages = Usages { server: false, client: false };
    while !list.is_empty() {
        let id = list.expect(tag::OID)?;
        let any = id == oid::ANY_USAGE;
        usages.server |= any || id == oid::SERVER_AUTH;
        usages.client |= any || id == oid::CLIENT_AUTH;
    }
    Some(usages)
}

/// A point in time, in seconds since 1970: `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn time(der: &mut Der<'_>) -> Option<i64> {
    let (kind, text) = der.next()?;
    let digits = text.strip_suffix(b"Z")?;
    let (year, rest) = match kind {
        tag::UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year = number(year)?;
            (if year >= 50 { 1900 + year } else { 2000 + year }, rest)
        }
        tag::GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (number(year)?, rest)
        }
        _ => return None,
    };
    if rest.len() != 10 {
        return None;
    }
    let part = |at: usize| number(&rest[at..at + 2]);
    let (month, day) = (part(0)?, part(2)?);
    let (hours, minutes, seconds) = (part(4)?, part(6)?, part(8)?);
    let is_valid = (1..=12).contains(&month) && (1..=31).contains(&day);
    let second = hours * 3600 + minutes * 60 + seconds;
    is_valid.then(|| civil::days_of(year, month, day) * DAY_S + second)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0'))
    })
}

/// The serial numbers that a revocation list in DER revokes, sorted; `None` if it is malformed.
pub fn revoked(list: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut tbs = Der(list).enter(tag::SEQUENCE)?.enter(tag::SEQUENCE)?;
    tbs.skip_if(tag::INTEGER)?;
    // Algorithm and issuer; this list's time and the next one's.
    tbs.expect(tag::SEQUENCE)?;
    tbs.expect(tag::SEQUENCE)?;
    time(&mut tbs)?;
    if matches!(tbs.peek(), Some(tag::UTC_TIME | tag::GENERALIZED_TIME)) {
        time(&mut tbs)?;
    }
    let mut serials = Vec::new();
    if tbs.peek() == Some(tag::SEQUENCE) {
        let mut entries = tbs.enter(tag::SEQUENCE)?;
        while !entries.is_empty() {
            let mut entry = entries.enter(tag::SEQUENCE)?;
            serials.push(magnitude(entry.expect(tag::INTEGER)?).to_vec());
        }
    }
    serials.sort();
    Some(serials)
}
