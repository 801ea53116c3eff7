//! The syntax of JSON as Go's `encoding/json` sees it: where the next value of a stream of them
//! ends, or why there is none.
//!
//! Fed with pieces; each byte is looked at once.

use std::fmt;

use crate::limits;

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned {
    /// No value, or the beginning of one.
    Incomplete,
    /// A value: where it begins and ends.
    Value {
        /// Its first byte.
        begin: usize,
        /// The first byte behind it.
        end: usize,
    },
}

/// Why they are no JSON, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError(String);

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    /// A value is complete.
    End,
    Text,
    Escape,
    /// So many hexadecimal digits are to come.
    Hex(u8),
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    Sign,
    ExponentDigits,
    /// A word, and how many bytes of it have come.
    Word(&'static str, u8),
}

/// See the module text. For one value; make another one for the next.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// The values that are open; true stands for an object, false for an array.
    open: Vec<bool>,
    /// The string that is open is a key.
    is_key: bool,
    begin: Option<usize>,
    at: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::Value, open: Vec::new(), is_key: false, begin: None, at: 0 }
    }
}

impl Scanner {
    /// True if nothing but blanks has come.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.begin.is_none()
    }

    /// Goes on with `bytes`, which begin with those that it has seen.
    ///
    /// # Errors
    /// [`SyntaxError`].
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Scanned, SyntaxError> {
        while let Some(&byte) = bytes.get(self.at) {
            if self.state == State::Text {
                let rest = &bytes[self.at..];
                let plain = rest.iter().take_while(|byte| is_plain(**byte)).count();
                self.at += plain;
                if plain == rest.len() {
                    break;
                }
            }
            let byte = if self.state == State::Text { bytes[self.at] } else { byte };
            let ends_before = self.open.is_empty() && self.is_in_number();
            if self.state == State::Value && self.begin.is_none() && !is_blank(byte) {
                self.begin = Some(self.at);
            }
            self.step(byte)?;
            if self.state == State::End && self.open.is_empty() {
                let begin = self.begin.unwrap_or_default();
                // A number ends where something else begins.
                let end = if ends_before { self.at } else { self.at + 1 };
                return Ok(Scanned::Value { begin, end });
            }
            self.at += 1;
        }
        Ok(Scanned::Incomplete)
    }

    /// Nothing more comes: the value that ends here, if there is one.
    ///
    /// # Errors
    /// [`SyntaxError`] in the middle of one.
    pub fn end(&self) -> Result<Option<(usize, usize)>, SyntaxError> {
        let Some(begin) = self.begin else { return Ok(None) };
        if self.is_in_number() && self.open.is_empty() {
            return Ok(Some((begin, self.at)));
        }
        Err(SyntaxError("unexpected EOF".to_owned()))
    }

    /// In a number that may end here.
    fn is_in_number(&self) -> bool {
        matches!(self.state, State::Zero | State::Digits | State::Fraction | State::ExponentDigits)
    }

    fn step(&mut self, byte: u8) -> Result<(), SyntaxError> {
        match self.state {
            State::Value | State::ValueOrEnd => self.begin_value(byte),
            State::Key | State::KeyOrEnd => match byte {
                _ if is_blank(byte) => Ok(()),
                b'"' => {
                    self.is_key = true;
                    self.go(State::Text)
                }
                b'}' if self.state == State::KeyOrEnd => self.close(),
                _ => Err(unexpected(byte, "looking for beginning of object key string")),
            },
            State::Colon => match byte {
                _ if is_blank(byte) => Ok(()),
                b':' => self.go(State::Value),
                _ => Err(unexpected(byte, "after object key")),
            },
            State::End => self.after_value(byte),
            State::Text => match byte {
                b'"' if self.is_key => {
                    self.is_key = false;
                    self.go(State::Colon)
                }
                b'"' => self.go(State::End),
                b'\\' => self.go(State::Escape),
                ..0x20 => Err(unexpected(byte, "in string literal")),
                _ => Ok(()),
            },
            State::Escape => match byte {
                b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => self.go(State::Text),
                b'u' => self.go(State::Hex(4)),
                _ => Err(unexpected(byte, "in string escape code")),
            },
            State::Hex(left) => {
                if !byte.is_ascii_hexdigit() {
                    return Err(unexpected(byte, "in \\u hexadecimal character escape"));
                }
                self.go(if left == 1 { State::Text } else { State::Hex(left - 1) })
            }
            State::Word(word, at) => {
                let wanted = word.as_bytes()[usize::from(at)];
                if byte != wanted {
                    let wanted = char::from(wanted);
                    let context = format!("in literal {word} (expecting '{wanted}')");
                    return Err(unexpected(byte, &context));
                }
                let ended = usize::from(at) + 1 == word.len();
                self.go(if ended { State::End } else { State::Word(word, at + 1) })
            }
            _ => self.in_number(byte),
        }
    }

    fn in_number(&mut self, byte: u8) -> Result<(), SyntaxError> {
        let next = match (self.state, byte) {
            (State::Minus, b'0') => State::Zero,
            (State::Minus, b'1'..=b'9') | (State::Digits, b'0'..=b'9') => State::Digits,
            (State::Minus, _) => return Err(unexpected(byte, "in numeric literal")),
            (State::Zero | State::Digits, b'.') => State::Point,
            (State::Point | State::Fraction, b'0'..=b'9') => State::Fraction,
            (State::Point, _) => {
                return Err(unexpected(byte, "after decimal point in numeric literal"));
            }
            (State::Zero | State::Digits | State::Fraction, b'e' | b'E') => State::Exponent,
            (State::Exponent, b'+' | b'-') => State::Sign,
            (State::Exponent | State::Sign | State::ExponentDigits, b'0'..=b'9') => {
                State::ExponentDigits
            }
            (State::Exponent | State::Sign, _) => {
                return Err(unexpected(byte, "in exponent of numeric literal"));
            }
            _ => {
                self.state = State::End;
                // What follows is of no interest behind the outermost value.
                return if self.open.is_empty() { Ok(()) } else { self.after_value(byte) };
            }
        };
        self.go(next)
    }

    fn begin_value(&mut self, byte: u8) -> Result<(), SyntaxError> {
        match byte {
            _ if is_blank(byte) => Ok(()),
            b']' if self.state == State::ValueOrEnd => self.close(),
            b'{' => self.open(true, State::KeyOrEnd),
            b'[' => self.open(false, State::ValueOrEnd),
            b'"' => self.go(State::Text),
            b'-' => self.go(State::Minus),
            b'0' => self.go(State::Zero),
            b'1'..=b'9' => self.go(State::Digits),
            b't' => self.go(State::Word("true", 1)),
            b'f' => self.go(State::Word("false", 1)),
            b'n' => self.go(State::Word("null", 1)),
            _ => Err(unexpected(byte, "looking for beginning of value")),
        }
    }

    fn after_value(&mut self, byte: u8) -> Result<(), SyntaxError> {
        if is_blank(byte) {
            return Ok(());
        }
        match (self.open.last(), byte) {
            (Some(true), b',') => self.go(State::Key),
            (Some(false), b',') => self.go(State::Value),
            (Some(true), b'}') | (Some(false), b']') => self.close(),
            (Some(true), _) => Err(unexpected(byte, "after object key:value pair")),
            _ => Err(unexpected(byte, "after array element")),
        }
    }

    fn open(&mut self, is_object: bool, state: State) -> Result<(), SyntaxError> {
        if self.open.len() >= limits::JSON_DEPTH {
            return Err(SyntaxError("exceeded max depth".to_owned()));
        }
        self.open.push(is_object);
        self.go(state)
    }

    fn close(&mut self) -> Result<(), SyntaxError> {
        self.open.pop();
        self.go(State::End)
    }

    fn go(&mut self, state: State) -> Result<(), SyntaxError> {
        self.state = state;
        Ok(())
    }
}

fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn unexpected(byte: u8, context: &str) -> SyntaxError {
    let shown = match byte {
        b'\'' => "'\\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => "'\\\\'".to_owned(),
        0x07 => "'\\a'".to_owned(),
        0x08 => "'\\b'".to_owned(),
        0x0b => "'\\v'".to_owned(),
        0x0c => "'\\f'".to_owned(),
        b'\n' => "'\\n'".to_owned(),
        b'\r' => "'\\r'".to_owned(),
        b'\t' => "'\\t'".to_owned(),
        ..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!("'\\u{:04x}'", u32::from(byte)),
        _ => format!("'{}'", char::from(byte)),
    };
    SyntaxError(format!("invalid character {shown} {context}"))
}
