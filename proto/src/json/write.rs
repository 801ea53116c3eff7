//! From the protobuf bytes of a message to its JSON, as protojson writes it with the names of the
//! `.proto` file and without defaults.
//!
//! The bytes may come in pieces of any size: what is held between two is a tag, a number or a text
//! that is not complete. They must be what a server's own encoder writes: fields in the order of
//! their numbers.

use super::{Field, Kind, Message};

/// A message that is being written.
struct Frame {
    message: &'static Message,
    /// Bytes of it that are still to come; the outermost ends when its owner says so.
    left: u64,
    /// The field whose list is open.
    list: Option<u32>,
    /// Something stands in it already.
    is_begun: bool,
}

/// What comes next.
#[derive(Clone, Copy)]
enum Expects {
    Tag,
    Varint(Option<&'static Field>),
    Length(Option<&'static Field>),
    /// So many bytes that nobody knows.
    Skip(u64),
    /// So many bytes of a field of bytes.
    Bytes(u64),
    /// So many bytes of a text.
    Text(u64),
}

/// See the module text.
pub struct Writer {
    open: Vec<Frame>,
    expects: Expects,
    /// The varint so far.
    value: u64,
    shift: u32,
    /// Bytes that do not make up a group of base64 yet, or a text that is not complete.
    carry: Vec<u8>,
    /// `<`, `>` and `&` are escaped: as Go does in messages of a stream, not in single ones.
    for_html: bool,
}

impl Writer {
    /// Writes a message of this kind. `for_html`: see there.
    #[must_use]
    pub fn new(message: &'static Message, for_html: bool) -> Self {
        let frame = Frame { message, left: u64::MAX, list: None, is_begun: false };
        Self {
            open: vec![frame],
            expects: Expects::Tag,
            value: 0,
            shift: 0,
            carry: Vec::new(),
            for_html,
        }
    }

    /// Goes on with the next bytes of the message. Those that are no protobuf are passed over.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match self.expects {
                Expects::Tag | Expects::Varint(_) | Expects::Length(_) => {
                    let (byte, rest) = (bytes[0], &bytes[1..]);
                    bytes = rest;
                    self.spend(1);
                    self.value |= u64::from(byte & 0x7f).checked_shl(self.shift).unwrap_or(0);
                    self.shift += 7;
                    if byte & 0x80 == 0 {
                        self.shift = 0;
                        let value = std::mem::take(&mut self.value);
                        self.number(value, out);
                    }
                }
                Expects::Skip(left) | Expects::Bytes(left) | Expects::Text(left) => {
                    let count =
                        usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    let (piece, rest) = bytes.split_at(count);
                    bytes = rest;
                    self.spend(count as u64);
                    self.content(piece, left - count as u64, out);
                }
            }
            self.close_complete(out);
        }
    }

    /// The message is complete.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        while !self.open.is_empty() {
            self.close(out);
        }
    }

    /// Begins the message: before anything else.
    pub fn begin(&self, out: &mut Vec<u8>) {
        out.push(b'{');
    }

    fn spend(&mut self, bytes: u64) {
        if let Some(frame) = self.open.last_mut() {
            frame.left = frame.left.saturating_sub(bytes);
        }
    }

    /// A varint is complete.
    fn number(&mut self, value: u64, out: &mut Vec<u8>) {
        self.expects = match self.expects {
            Expects::Tag => {
                let fields = self.open.last().map_or(&[][..], |frame| frame.message.fields);
                let field = fields.iter().find(|field| u64::from(field.number) == value >> 3);
                match value & 7 {
                    0 => Expects::Varint(field),
                    2 => Expects::Length(field),
                    1 => Expects::Skip(8),
                    5 => Expects::Skip(4),
                    _ => Expects::Tag,
                }
            }
            Expects::Varint(field) => {
                if let Some(field) = field
                    && (value != 0 || field.repeated || field.oneof.is_some())
                {
                    self.name(field, out);
                    put_number(field.kind, value, out);
                }
                Expects::Tag
            }
            Expects::Length(field) => self.begin_length(field, value, out),
            other => other,
        };
    }

    fn begin_length(
        &mut self,
        field: Option<&'static Field>,
        bytes: u64,
        out: &mut Vec<u8>,
    ) -> Expects {
        let Some(field) = field else {
            return if bytes == 0 { Expects::Tag } else { Expects::Skip(bytes) };
        };
        match field.kind {
            Kind::Message(message) => {
                self.name(field, out);
                out.push(b'{');
                // What it takes is spent by itself, not by what it is in.
                self.spend(bytes);
                self.open.push(Frame { message, left: bytes, list: None, is_begun: false });
                Expects::Tag
            }
            Kind::Text | Kind::Bytes => {
                let is_absent = bytes == 0 && !field.repeated && field.oneof.is_none();
                if is_absent {
                    return Expects::Tag;
                }
                self.name(field, out);
                out.push(b'"');
                if bytes == 0 {
                    out.push(b'"');
                    return Expects::Tag;
                }
                match field.kind {
                    Kind::Text => Expects::Text(bytes),
                    _ => Expects::Bytes(bytes),
                }
            }
            // Packed numbers, which etcd's answers have nowhere.
            _ => Expects::Skip(bytes),
        }
    }

    /// A piece of a value, of which so much is still to come.
    fn content(&mut self, piece: &[u8], left: u64, out: &mut Vec<u8>) {
        let is_last = left == 0;
        self.expects = match self.expects {
            Expects::Bytes(_) => {
                self.base64(piece, is_last, out);
                Expects::Bytes(left)
            }
            Expects::Text(_) => {
                if self.carry.is_empty() && is_last {
                    put_escaped(piece, self.for_html, out);
                } else {
                    self.carry.extend_from_slice(piece);
                    if is_last {
                        put_escaped(&self.carry, self.for_html, out);
                        self.carry.clear();
                    }
                }
                Expects::Text(left)
            }
            _ => Expects::Skip(left),
        };
        if is_last {
            if !matches!(self.expects, Expects::Skip(_)) {
                out.push(b'"');
            }
            self.expects = Expects::Tag;
        }
    }

    fn base64(&mut self, mut piece: &[u8], is_last: bool, out: &mut Vec<u8>) {
        if !self.carry.is_empty() {
            let wanted = (3 - self.carry.len()).min(piece.len());
            self.carry.extend_from_slice(&piece[..wanted]);
            piece = &piece[wanted..];
            if self.carry.len() == 3 {
                put_base64(&self.carry, out);
                self.carry.clear();
            }
        }
        let whole =
            if is_last && self.carry.is_empty() { piece.len() } else { piece.len() / 3 * 3 };
        put_base64(&piece[..whole], out);
        self.carry.extend_from_slice(&piece[whole..]);
        if is_last {
            put_base64(&self.carry, out);
            self.carry.clear();
        }
    }

    /// The name of a field, or what stands before the next of its list.
    fn name(&mut self, field: &'static Field, out: &mut Vec<u8>) {
        let Some(frame) = self.open.last_mut() else { return };
        if frame.list == Some(field.number) && field.repeated {
            out.push(b',');
            return;
        }
        if frame.list.take().is_some() {
            out.push(b']');
        }
        if std::mem::replace(&mut frame.is_begun, true) {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(field.name.as_bytes());
        out.extend_from_slice(b"\":");
        if field.repeated {
            frame.list = Some(field.number);
            out.push(b'[');
        }
    }

    /// Ends the messages of which everything has come.
    fn close_complete(&mut self, out: &mut Vec<u8>) {
        while matches!(self.expects, Expects::Tag)
            && self.shift == 0
            && self.open.len() > 1
            && self.open.last().is_some_and(|frame| frame.left == 0)
        {
            self.close(out);
        }
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if let Some(frame) = self.open.pop() {
            if frame.list.is_some() {
                out.push(b']');
            }
            out.push(b'}');
        }
    }
}

/// Appends the JSON of a whole message.
pub fn write(message: &'static Message, bytes: &[u8], for_html: bool, out: &mut Vec<u8>) {
    let mut writer = Writer::new(message, for_html);
    writer.begin(out);
    writer.push(bytes, out);
    writer.finish(out);
}

/// Appends a text as JSON, quotes included.
pub fn write_text(text: &str, for_html: bool, out: &mut Vec<u8>) {
    out.push(b'"');
    put_escaped(text.as_bytes(), for_html, out);
    out.push(b'"');
}

fn put_number(kind: Kind, value: u64, out: &mut Vec<u8>) {
    let quoted = |number: &dyn std::fmt::Display| format!("\"{number}\"");
    let text = match kind {
        Kind::Bool => (value != 0).to_string(),
        Kind::Int64 => quoted(&(value as i64)),
        Kind::Uint64 => quoted(&value),
        Kind::Uint32 => (value as u32).to_string(),
        Kind::Enum(known) => {
            let number = value as i32;
            match known.0.iter().find(|(_, known)| *known == number) {
                Some((name, _)) => quoted(name),
                None => number.to_string(),
            }
        }
        Kind::Text | Kind::Bytes | Kind::Message(_) => "null".to_owned(),
    };
    out.extend_from_slice(text.as_bytes());
}

fn put_base64(bytes: &[u8], out: &mut Vec<u8>) {
    use base64::Engine as _;
    let begin = out.len();
    out.resize(begin + bytes.len().div_ceil(3) * 4, 0);
    let written = base64::engine::general_purpose::STANDARD.encode_slice(bytes, &mut out[begin..]);
    out.truncate(begin + written.unwrap_or(0));
}

fn put_escaped(text: &[u8], for_html: bool, out: &mut Vec<u8>) {
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let separator = match &text[at..] {
            [0xe2, 0x80, last @ (0xa8 | 0xa9), ..] if for_html => Some(*last),
            _ => None,
        };
        match byte {
            b'"' | b'\\' => out.extend([b'\\', byte]),
            8 => out.extend(b"\\b"),
            12 => out.extend(b"\\f"),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            ..0x20 => out.extend(format!("\\u{byte:04x}").bytes()),
            b'<' | b'>' | b'&' if for_html => out.extend(format!("\\u{byte:04x}").bytes()),
            _ => match separator {
                Some(last) => {
                    out.extend(format!("\\u{:04x}", 0x2000 + u32::from(last) - 0x80).bytes());
                    at += 2;
                }
                None => out.push(byte),
            },
        }
        at += 1;
    }
}
