//! What a client's first message says: the name that it asks for, for log lines, and whether it
//! knows any version of TLS that is still spoken.
//!
//! Used by the server's side of a session. rustls reads the same message and is the judge of it;
//! here anything odd is no message. Old clients are told apart here, because rustls complains of
//! the first thing that such a client does not have, whatever that is.

/// Type of a record with handshake messages.
const HANDSHAKE: u8 = 22;
/// Type of the first message.
const CLIENT_HELLO: u8 = 1;
/// The extension with the name, the kind of name that there is, and the extension with versions.
const SERVER_NAME: usize = 0;
const HOST_NAME: u8 = 0;
const SUPPORTED_VERSIONS: usize = 43;
/// Names are no longer (RFC 1035).
const NAME_BYTES_MAX: usize = 255;
/// TLS 1.2, and those before it that Go knows, newest first.
const OLDEST_SPOKEN: u16 = 0x0303;
const OLD_VERSIONS: [u16; 2] = [0x0302, 0x0301];

/// A client's first message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// Empty if it asks for none.
    pub(super) server_name: Box<str>,
    /// The versions that it knows, if all of them are too old.
    pub(super) only_old_versions: Option<Vec<u16>>,
}

/// The message in the record at the beginning of `bytes`, if it is there already, whole.
pub(super) fn parse(bytes: &[u8]) -> Option<Hello> {
    let mut reader = Reader(bytes);
    if reader.byte()? != HANDSHAKE {
        return None;
    }
    reader.take(2)?;
    let mut hello = Reader(reader.vector(2)?);
    if hello.byte()? != CLIENT_HELLO {
        return None;
    }
    let mut hello = Reader(hello.vector(3)?);
    let version = u16::try_from(hello.number(2)?).ok()?;
    // Random bytes; session, ciphers, compressions.
    hello.take(32)?;
    hello.vector(1)?;
    hello.vector(2)?;
    hello.vector(1)?;
    let mut parsed = Hello { server_name: "".into(), only_old_versions: None };
    let mut knows_new = version >= OLDEST_SPOKEN;
    // Old messages may end here.
    let extensions = if hello.0.is_empty() { &[] } else { hello.vector(2)? };
    let mut extensions = Reader(extensions);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let content = extensions.vector(2)?;
        match kind {
            SERVER_NAME => parsed.server_name = server_name(content).unwrap_or_default(),
            SUPPORTED_VERSIONS => knows_new = true,
            _ => {}
        }
    }
    if !knows_new {
        let known = OLD_VERSIONS.iter().filter(|old| **old <= version);
        parsed.only_old_versions = Some(known.copied().collect());
    }
    Some(parsed)
}

fn server_name(extension: &[u8]) -> Option<Box<str>> {
    let mut names = Reader(Reader(extension).vector(2)?);
    let is_host = names.byte()? == HOST_NAME;
    let name = std::str::from_utf8(names.vector(2)?).ok()?;
    let fits = is_host && name.len() <= NAME_BYTES_MAX && name.is_ascii();
    fits.then(|| name.into())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        let digits = self.take(bytes)?;
        Some(digits.iter().fold(0, |number, digit| number << 8 | usize::from(*digit)))
    }

    /// As many bytes as the number in front of them says.
    fn vector(&mut self, length_bytes: usize) -> Option<&'a [u8]> {
        let length = self.number(length_bytes)?;
        self.take(length)
    }
}
