//! `--config-file`: settings in YAML or JSON, under the keys of etcd's `embed.Config`.
//!
//! Called by the flags with the file's text. As etcd reads it: keys in any case, a key given twice
//! counts the last time, nothing (`null`) leaves the default, numbers and booleans are taken where
//! a string is wanted, durations are integer nanoseconds, and keys that nobody knows mean nothing.
//! Only the first document of a file counts.

use serde::Deserialize;

use super::flags::{Source, Values, variable_of};
use super::table::Flag;
use super::value::{Kind, Value};
use super::{keys, old};

mod node;
use node::Node;

/// The longest file that is read.
pub const BYTES_MAX: u64 = 1 << 20;

/// What the file held besides settings.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    /// Keys that nobody knows.
    pub(super) unknown: Vec<String>,
    /// Warnings.
    pub(super) warnings: Vec<String>,
}

/// Reads the settings of `text` into `values`.
///
/// # Errors
/// One sentence.
pub(super) fn read(text: &str, values: &mut Values) -> Result<Remarks, String> {
    let mut remarks = Remarks::default();
    let root = match serde_yaml_ng::Deserializer::from_str(text).next() {
        None => return Ok(remarks),
        Some(document) => Node::deserialize(document)
            .map_err(|error| format!("error converting YAML to JSON: {error}"))?,
    };
    match root {
        Node::Null => {}
        Node::Map(entries) => walk("", entries, values, &mut remarks)?,
        other => return Err(format!("cannot unmarshal {} into a configuration", other.kind())),
    }
    values.settle_old();
    Ok(remarks)
}

/// A word more on a file that is none, if it is what packages call etcd.conf.
pub(super) fn hint(text: &str) -> &'static str {
    if text.lines().any(|line| line.trim_start().starts_with("ETCD_")) {
        "; a list of variables belongs into the environment (systemd: EnvironmentFile=)"
    } else {
        ""
    }
}

fn walk(
    above: &str,
    entries: Vec<(String, Node)>,
    values: &mut Values,
    remarks: &mut Remarks,
) -> Result<(), String> {
    for (key, node) in entries {
        let path = if above.is_empty() { key } else { format!("{above}.{key}") };
        if let Some(flag) = keys::at(&path) {
            if let Some(value) = value_of(flag, &path, node)? {
                values.set(flag, value, Source::File);
            }
        } else if keys::is_section(&path) {
            match node {
                Node::Null => {}
                Node::Map(entries) => walk(&path, entries, values, remarks)?,
                other => return Err(cannot(&other, &path, "a section")),
            }
        } else {
            outside(&path, node, values, remarks)?;
        }
    }
    Ok(())
}

/// A key that is no setting's.
fn outside(
    path: &str,
    node: Node,
    values: &mut Values,
    remarks: &mut Remarks,
) -> Result<(), String> {
    let is = |known: &str| known.eq_ignore_ascii_case(path);
    if let Some((_, why)) = keys::REFUSED.iter().find(|(known, _)| is(known)) {
        return if node.is_nothing() {
            Ok(())
        } else {
            Err(format!("{path}: {why}; leave it out"))
        };
    }
    if keys::MEANINGLESS.iter().any(|known| is(known)) {
        return Ok(());
    }
    let Some(old) = old::find(&path.to_ascii_lowercase()) else {
        remarks.unknown.push(path.to_owned());
        return Ok(());
    };
    let Some(text) = text_of(old.kind(), path, node)? else { return Ok(()) };
    let value = parse(old.kind(), &text, path)?;
    remarks.warnings.push(values.add_old(old, value, Source::File)?);
    Ok(())
}

/// What the file says of a setting; `None` if it says nothing.
fn value_of(flag: &Flag, path: &str, node: Node) -> Result<Option<Value>, String> {
    let text =
        if keys::is_list(flag) { list_of(path, node)? } else { text_of(flag.kind, path, node)? };
    // An empty choice is the default, but for the one that etcd insists on.
    let is_default = matches!(flag.kind, Kind::Choice(_) | Kind::Choices(_) | Kind::Gates);
    match text {
        None => Ok(None),
        Some(text) if is_default && text.is_empty() => Ok(None),
        Some(text) => parse(flag.kind, &text, path).map(Some),
    }
}

fn parse(kind: Kind, text: &str, path: &str) -> Result<Value, String> {
    kind.parse(text).map_err(|why| format!("invalid value {text:?} for key {path}: {why}"))
}

/// A single value, as a flag would have it.
fn text_of(kind: Kind, path: &str, node: Node) -> Result<Option<String>, String> {
    let wanted = match kind {
        Kind::Bool => "bool",
        Kind::Uint(_) => "uint",
        Kind::Int => "int",
        Kind::Duration => "time.Duration",
        _ => "string",
    };
    Ok(Some(match (kind, node) {
        (_, Node::Null) => return Ok(None),
        (Kind::Bool, Node::Bool(on)) => on.to_string(),
        (Kind::Bool, Node::Text(text)) => match &*text.to_ascii_lowercase() {
            // Booleans of YAML 1.1, which etcd reads.
            "y" | "yes" | "on" => "true".to_owned(),
            "n" | "no" | "off" => "false".to_owned(),
            _ => return Err(cannot(&Node::Text(text), path, wanted)),
        },
        (Kind::Uint(_) | Kind::Int, Node::Number(number)) => number,
        // One of 64 bits, whose unit is left out.
        (Kind::Duration, Node::Number(number)) if !number.contains('.') => format!("{number}ns"),
        (Kind::Duration, Node::Text(text)) => {
            let hint = match Kind::Duration.parse(&text) {
                Ok(Value::Duration(ns)) => format!("; write {ns}, in nanoseconds"),
                _ => String::new(),
            };
            return Err(cannot(&Node::Text(text), path, wanted) + &hint);
        }
        (Kind::Uint(_) | Kind::Int | Kind::Bool | Kind::Duration, other) => {
            return Err(cannot(&other, path, wanted));
        }
        (_, Node::Text(text) | Node::Number(text)) => text,
        (_, Node::Bool(on)) => on.to_string(),
        (_, other) => return Err(cannot(&other, path, wanted)),
    }))
}

/// A list of strings, as its flag would have it.
fn list_of(path: &str, node: Node) -> Result<Option<String>, String> {
    let items = match node {
        Node::Null => return Ok(None),
        Node::List(items) => items,
        other => return Err(cannot(&other, path, "[]string")),
    };
    let mut texts = Vec::with_capacity(items.len());
    for item in items {
        let text = text_of(Kind::Text, path, item)?.unwrap_or_default();
        if text.contains(',') {
            return Err(format!("{path}: etcore cannot take {text:?}, for its comma"));
        }
        texts.push(text);
    }
    Ok(if texts.is_empty() { None } else { Some(texts.join(",")) })
}

fn cannot(node: &Node, path: &str, wanted: &str) -> String {
    format!("cannot unmarshal {} into key {path} of type {wanted}", node.kind())
}

/// How a setting is called where it came from.
pub(super) fn called(flag: &Flag, source: Source) -> String {
    match source {
        Source::Line => format!("--{}", flag.name),
        Source::Environment => variable_of(flag.name),
        Source::File => keys::path_of(flag).unwrap_or(flag.name).to_owned(),
    }
}

#[cfg(test)]
mod tests;
