//! What HTTP/2 must know about a field name, computed once per table entry.
//!
//! Called by the decoder of this folder when an entry is made; read by `h2`'s block checks. Must
//! never look at anything but the field itself.

/// The class of a field under RFC 9113's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum NameClass {
    /// `:method`.
    Method,
    /// `:scheme`.
    Scheme,
    /// `:authority`.
    Authority,
    /// `:path`.
    Path,
    /// `:status`.
    Status,
    /// A pseudo field this implementation does not know.
    UnknownPseudo,
    /// `content-length`.
    ContentLength,
    /// `host`.
    Host,
    /// Any other legal field.
    Regular,
    /// A field that HTTP/2 forbids (`connection`, `te` other than `trailers`, …).
    ConnectionSpecific,
    /// A name or value with octets that RFC 9113 §8.2.1 forbids.
    Invalid,
}

/// Classifies a field.
pub(super) fn classify(name: &[u8], value: &[u8]) -> NameClass {
    if !value_is_legal(value) {
        return NameClass::Invalid;
    }
    match name {
        b":method" => NameClass::Method,
        b":scheme" => NameClass::Scheme,
        b":authority" => NameClass::Authority,
        b":path" => NameClass::Path,
        b":status" => NameClass::Status,
        [b':', ..] => NameClass::UnknownPseudo,
        b"content-length" => NameClass::ContentLength,
        b"host" => NameClass::Host,
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
            NameClass::ConnectionSpecific
        }
        b"te" if !value.eq_ignore_ascii_case(b"trailers") => NameClass::ConnectionSpecific,
        _ if !name_is_legal(name) => NameClass::Invalid,
        _ => NameClass::Regular,
    }
}

/// A token (RFC 9110, section 5.6.2) without large letters, as Go demands too.
fn name_is_legal(name: &[u8]) -> bool {
    let is_token = |byte: &u8| match byte {
        b'a'..=b'z' | b'0'..=b'9' => true,
        byte => b"!#$%&'*+-.^_`|~".contains(byte),
    };
    !name.is_empty() && name.iter().all(is_token)
}

/// No control characters but tabs, as Go demands too, and nothing blank around it.
fn value_is_legal(value: &[u8]) -> bool {
    let edge = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !edge(value.first())
        && !edge(value.last())
        && !value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_octets_make_a_field_invalid() {
        for name in ["", "Upper", "with space", "with:colon", "caf\u{e9}", "a(b", "a@b", "{}"] {
            assert_eq!(classify(name.as_bytes(), b"v"), NameClass::Invalid, "{name:?}");
        }
        for value in ["a\0", "a\n", "\r", " lead", "trail\t", "\u{7f}", "a\u{1}b"] {
            assert_eq!(classify(b"name", value.as_bytes()), NameClass::Invalid, "{value:?}");
        }
        for value in [&b""[..], b"a\tb", b"\xff\x80"] {
            assert_eq!(classify(b"name", value), NameClass::Regular, "{value:?}");
        }
        assert_eq!(classify(b"!#$%&'*+-.^_`|~a9", b""), NameClass::Regular);
    }

    #[test]
    fn fields_of_the_connection_are_recognised() {
        assert_eq!(classify(b"te", b"gzip"), NameClass::ConnectionSpecific);
        assert_eq!(classify(b"te", b"trailers"), NameClass::Regular);
        assert_eq!(classify(b"connection", b"close"), NameClass::ConnectionSpecific);
        assert_eq!(classify(b":protocol", b"x"), NameClass::UnknownPseudo);
    }
}
