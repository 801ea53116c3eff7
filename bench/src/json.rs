//! A writer of one JSON object.
//!
//! Used by `report` only. Must never write text that is not JSON: strings are escaped, numbers that
//! JSON cannot express become null.

use std::fmt::Write as _;

/// An object under construction.
#[derive(Debug)]
pub(crate) struct Object {
    text: String,
}

impl Object {
    pub(crate) fn new() -> Self {
        Object { text: "{".to_owned() }
    }

    pub(crate) fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.raw(name, &quote(value))
    }

    pub(crate) fn integer(&mut self, name: &str, value: u64) -> &mut Self {
        self.raw(name, &value.to_string())
    }

    pub(crate) fn number(&mut self, name: &str, value: f64) -> &mut Self {
        match value.is_finite() {
            true => self.raw(name, &value.to_string()),
            false => self.raw(name, "null"),
        }
    }

    pub(crate) fn boolean(&mut self, name: &str, value: bool) -> &mut Self {
        self.raw(name, if value { "true" } else { "false" })
    }

    pub(crate) fn object(&mut self, name: &str, value: Object) -> &mut Self {
        self.raw(name, &value.finish())
    }

    /// An array of values that are JSON already.
    pub(crate) fn array(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = String>,
    ) -> &mut Self {
        let items: Vec<String> = items.into_iter().collect();
        self.raw(name, &format!("[{}]", items.join(",")))
    }

    pub(crate) fn finish(mut self) -> String {
        self.text.push('}');
        self.text
    }

    fn raw(&mut self, name: &str, value: &str) -> &mut Self {
        if self.text.len() > 1 {
            self.text.push(',');
        }
        self.text.push_str(&quote(name));
        self.text.push(':');
        self.text.push_str(value);
        self
    }
}

/// A JSON string.
pub(crate) fn quote(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for character in value.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\u{0}'..='\u{1f}' => {
                // Writing to a string cannot fail.
                let _ = write!(text, "\\u{:04x}", u32::from(character));
            }
            _ => text.push(character),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_texts_and_numbers_are_still_json() {
        let mut inner = Object::new();
        inner.number("nan", f64::NAN).number("half", 0.5);
        let mut object = Object::new();
        object.text("a\"b", "c\\\n\u{1}é").integer("n", 7).boolean("t", true);
        object.object("in", inner).array("list", ["1".to_owned(), quote("x")]);
        let expected = "{\"a\\\"b\":\"c\\\\\\n\\u0001é\",\"n\":7,\"t\":true,\
                        \"in\":{\"nan\":null,\"half\":0.5},\"list\":[1,\"x\"]}";
        assert_eq!(object.finish(), expected);
    }
}
