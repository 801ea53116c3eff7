//! From the JSON of a message to its protobuf bytes, as protojson reads it with unknown fields
//! discarded.
//!
//! The text is a value that the [`Scanner`](super::Scanner) has seen whole, so that only what it
//! means is looked at. The bytes of messages come out without their lengths, which are known later;
//! these are put in at the end, so that nesting costs no copy a level.

use super::number::{integer, leading};
use super::text::{StringError, decode_bytes, unescape};
use super::{Field, Kind, Message};
use crate::{limits, varint};

/// Appends the protobuf bytes of a message that `text` is the JSON of; `text` must be one value.
///
/// # Errors
/// Why it is no such message, in protojson's words. `out` is as it was then.
pub fn read(message: &'static Message, text: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let mut reader =
        Reader { text, at: 0, flat: Vec::new(), lengths: Vec::new(), open: Vec::new() };
    reader.run(message).map_err(|error| format!("proto: {error}"))?;
    reader.assemble(out);
    Ok(())
}

/// An object that is being read.
struct Frame {
    message: &'static Message,
    /// Its fields that came, and those of oneofs that have a value, by their places.
    seen: u64,
    chosen: u64,
    /// The field whose list is being read.
    list: Option<&'static Field>,
    /// Where it begins in `flat`.
    begin: usize,
    /// Its place in `lengths`.
    length: usize,
    /// Bytes that the lengths of messages in it take.
    extra_bytes: usize,
}

/// Where a length is to stand in `flat`, and which.
struct Length {
    at: usize,
    bytes: usize,
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    flat: Vec<u8>,
    /// Ascending by place.
    lengths: Vec<Length>,
    open: Vec<Frame>,
}

impl<'a> Reader<'a> {
    fn run(&mut self, message: &'static Message) -> Result<(), String> {
        self.skip_blanks();
        self.open_message(message, None)?;
        while let Some(frame) = self.open.last() {
            let list = frame.list;
            self.skip_blanks();
            match (list, self.text.get(self.at)) {
                (_, None) => return Err("unexpected EOF".to_owned()),
                (Some(_), Some(b']')) => {
                    self.at += 1;
                    if let Some(frame) = self.open.last_mut() {
                        frame.list = None;
                    }
                }
                (Some(field), _) => self.element(field)?,
                (None, Some(b'}')) => {
                    self.at += 1;
                    self.close_message();
                }
                (None, _) => self.member()?,
            }
        }
        Ok(())
    }

    /// A name and its value.
    fn member(&mut self) -> Result<(), String> {
        let begin = self.at;
        let raw = self.token();
        let name = self.unescaped(raw, begin)?;
        self.skip_blanks();
        // The colon.
        self.at += 1;
        self.skip_blanks();
        let Some(frame) = self.open.last_mut() else { return Ok(()) };
        let fields = frame.message.fields;
        let named =
            |field: &Field| *name == *field.json.as_bytes() || *name == *field.name.as_bytes();
        let Some(place) = fields.iter().position(named) else { return self.skip_value() };
        let field = &fields[place];
        let shown = || String::from_utf8_lossy(raw).into_owned();
        if frame.seen & 1 << place != 0 {
            return Err(self.error(begin, &format!("duplicate field {}", shown())));
        }
        frame.seen |= 1 << place;
        if self.text[self.at] == b'n' {
            self.at += "null".len();
            return Ok(());
        }
        if field.repeated {
            frame.list = Some(field);
            return self.expect(b'[');
        }
        if let Some(oneof) = field.oneof {
            let chosen = frame.chosen;
            frame.chosen |= 1 << place;
            let is_set =
                |(at, other): (usize, &Field)| chosen & 1 << at != 0 && other.oneof == Some(oneof);
            if fields.iter().enumerate().any(is_set) {
                let text = format!("error parsing {}, oneof {oneof} is already set", shown());
                return Err(self.error(begin, &text));
            }
        }
        self.element(field)
    }

    /// A value of a field, or an element of its list.
    fn element(&mut self, field: &'static Field) -> Result<(), String> {
        match field.kind {
            Kind::Message(message) => self.open_message(message, Some(field.number)),
            _ => self.scalar(field),
        }
    }

    fn open_message(
        &mut self,
        message: &'static Message,
        number: Option<u32>,
    ) -> Result<(), String> {
        if self.open.len() >= limits::DECODE_DEPTH as usize {
            return Err("exceeded max recursion depth".to_owned());
        }
        self.expect(b'{')?;
        let length = self.lengths.len();
        if let Some(number) = number {
            varint::write(&mut self.flat, u64::from(number) << 3 | 2);
            self.lengths.push(Length { at: self.flat.len(), bytes: 0 });
        }
        let begin = self.flat.len();
        let (seen, chosen, list, extra_bytes) = (0, 0, None, 0);
        self.open.push(Frame { message, seen, chosen, list, begin, length, extra_bytes });
        Ok(())
    }

    fn close_message(&mut self) {
        let Some(frame) = self.open.pop() else { return };
        let Some(parent) = self.open.last_mut() else { return };
        let bytes = self.flat.len() - frame.begin + frame.extra_bytes;
        self.lengths[frame.length].bytes = bytes;
        parent.extra_bytes += frame.extra_bytes + varint_bytes(bytes);
    }

    fn scalar(&mut self, field: &'static Field) -> Result<(), String> {
        let begin = self.at;
        let raw = self.token();
        let is_text = raw.first() == Some(&b'"');
        let is_number = matches!(raw.first(), Some(b'-' | b'0'..=b'9'));
        let invalid = |reader: &Self| {
            let shown = String::from_utf8_lossy(raw);
            let (kind, name) = (field.kind.name(), field.json);
            let text = format!("invalid value for {kind} field {name}: {shown}");
            Err(reader.error(begin, &text))
        };
        if matches!(field.kind, Kind::Text | Kind::Bytes) {
            if !is_text {
                return invalid(self);
            }
            let text = self.unescaped(raw, begin)?;
            if field.kind.name() == "string" {
                self.put_bytes(field, &text);
                return Ok(());
            }
            let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
            if !decode_bytes(&text, &mut bytes) {
                return invalid(self);
            }
            self.put_bytes(field, &bytes);
            return Ok(());
        }
        let value = match field.kind {
            Kind::Bool => match raw {
                b"true" => Some(1),
                b"false" => Some(0),
                _ => None,
            },
            Kind::Enum(known) if is_text => {
                let name = self.unescaped(raw, begin)?;
                match known.0.iter().find(|(known, _)| *known.as_bytes() == *name) {
                    Some((_, number)) => Some(i64::from(*number) as u64),
                    // Unknown, and passed over.
                    None => return Ok(()),
                }
            }
            _ if is_text && !matches!(field.kind, Kind::Enum(_)) => {
                let text = self.unescaped(raw, begin)?;
                leading(&text).and_then(integer).and_then(|number| fit(field.kind, number))
            }
            _ if is_number => integer(raw).and_then(|number| fit(field.kind, number)),
            _ => None,
        };
        let Some(value) = value else { return invalid(self) };
        if value != 0 || field.repeated || field.oneof.is_some() {
            varint::write(&mut self.flat, u64::from(field.number) << 3);
            varint::write(&mut self.flat, value);
        }
        Ok(())
    }

    fn put_bytes(&mut self, field: &Field, bytes: &[u8]) {
        if !bytes.is_empty() || field.repeated || field.oneof.is_some() {
            varint::write(&mut self.flat, u64::from(field.number) << 3 | 2);
            varint::write(&mut self.flat, bytes.len() as u64);
            self.flat.extend_from_slice(bytes);
        }
    }

    /// What a string that stands at `begin` says.
    fn unescaped(&self, raw: &'a [u8], begin: usize) -> Result<std::borrow::Cow<'a, [u8]>, String> {
        let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
        let behind = self.text.get(begin + 1 + inner.len()..).unwrap_or_default();
        unescape(inner, behind).map_err(|error| match error {
            StringError::End => "unexpected EOF".to_owned(),
            StringError::Syntax(error) => {
                let (line, column) = self.position(begin);
                format!("syntax error (line {line}:{column}): {error}")
            }
        })
    }

    /// Passes over a value that nobody knows.
    fn skip_value(&mut self) -> Result<(), String> {
        let mut depth = 0usize;
        loop {
            self.skip_blanks();
            let begin = self.at;
            let raw = self.token();
            match raw.first() {
                None => return Err("unexpected EOF".to_owned()),
                Some(b'{' | b'[') => depth += 1,
                Some(b'}' | b']') => depth -= 1,
                Some(b'"') => drop(self.unescaped(raw, begin)?),
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Blanks, and the commas, whose places are known to be right.
    fn skip_blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n' | b',') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    /// The token at this place; a bracket alone, or the colon, is one.
    fn token(&mut self) -> &'a [u8] {
        let rest = &self.text[self.at.min(self.text.len())..];
        let length = match rest.first() {
            None => 0,
            Some(b'"') => string_bytes(rest),
            Some(b'{' | b'}' | b'[' | b']' | b':') => 1,
            Some(_) => rest
                .iter()
                .take_while(|byte| {
                    matches!(byte, b'-' | b'+' | b'.') || byte.is_ascii_alphanumeric()
                })
                .count()
                .max(1),
        };
        self.at += length;
        &rest[..length]
    }

    fn expect(&mut self, wanted: u8) -> Result<(), String> {
        let begin = self.at;
        let raw = self.token();
        if raw == [wanted] {
            return Ok(());
        }
        let (line, column) = self.position(begin);
        let shown = String::from_utf8_lossy(raw);
        Err(format!("syntax error (line {line}:{column}): unexpected token {shown}"))
    }

    fn error(&self, at: usize, text: &str) -> String {
        let (line, column) = self.position(at);
        format!("(line {line}:{column}): {text}")
    }

    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..at];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let begin = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        (line, String::from_utf8_lossy(&before[begin..]).chars().count() + 1)
    }

    /// Appends what was read, with the lengths of messages in their places.
    fn assemble(&self, out: &mut Vec<u8>) {
        let mut from = 0;
        for length in &self.lengths {
            out.extend_from_slice(&self.flat[from..length.at]);
            varint::write(out, length.bytes as u64);
            from = length.at;
        }
        out.extend_from_slice(&self.flat[from..]);
    }
}

/// Bytes of the string that `rest` begins with, its quotes included.
fn string_bytes(rest: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = rest.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    rest.len()
}

/// A number as the varint of such a field.
fn fit(kind: Kind, number: i128) -> Option<u64> {
    match kind {
        Kind::Int64 => i64::try_from(number).ok().map(|number| number as u64),
        Kind::Uint64 => u64::try_from(number).ok(),
        Kind::Uint32 => u32::try_from(number).ok().map(u64::from),
        Kind::Enum(_) => i32::try_from(number).ok().map(|n| i64::from(n) as u64),
        _ => None,
    }
}

fn varint_bytes(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}
