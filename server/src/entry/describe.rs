//! Requests as lines of the log show them: protobuf's text on one line, as Go writes it, with the
//! size of a value in place of the value, and without passwords (etcd `raft_internal_stringer.go`).
//!
//! For requests that took long, and for all when everything is logged. A long text is cut.

use std::fmt::{self, Display, Write as _};

use bytes::Bytes;
use etcore_proto::pb::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request as Op;

use super::{Request, with_entry};

/// What is logged of one request at most, in bytes.
const LOGGED_BYTES_MAX: usize = 16 << 10;

/// A text of fields, those with default values left out.
#[derive(Default)]
struct Text {
    out: String,
}

impl Text {
    fn field(&mut self, name: &str, value: impl Display) {
        if !self.out.is_empty() {
            self.out.push(' ');
        }
        // Writing to a String cannot fail.
        let _ = write!(self.out, "{name}:{value}");
    }

    fn bytes(&mut self, name: &str, value: &[u8]) {
        if !value.is_empty() {
            self.field(name, Quoted(value));
        }
    }

    fn number(&mut self, name: &str, value: i64) {
        if value != 0 {
            self.field(name, value);
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.field(name, true);
        }
    }

    fn size(&mut self, value: &[u8]) {
        self.number("value_size", i64::try_from(value.len()).unwrap_or(i64::MAX));
    }
}

/// Bytes between quotes; what is no text is escaped.
struct Quoted<'a>(&'a [u8]);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '"' | '\\' => write!(f, "\\{c}")?,
                    '\n' => f.write_str("\\n")?,
                    '\r' => f.write_str("\\r")?,
                    '\t' => f.write_str("\\t")?,
                    c if c < ' ' || c == '\u{7f}' => write!(f, "\\x{:02x}", u32::from(c))?,
                    c => f.write_char(c)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        f.write_char('"')
    }
}

/// A RangeRequest.
pub fn range(request: &pb::RangeRequest) -> String {
    let mut text = Text::default();
    text.bytes("key", &request.key);
    text.bytes("range_end", &request.range_end);
    text.number("limit", request.limit);
    text.number("revision", request.revision);
    if request.sort_order != 0 {
        text.field("sort_order", name(SortOrder::try_from(request.sort_order), request.sort_order));
    }
    if request.sort_target != 0 {
        let number = request.sort_target;
        text.field("sort_target", name(SortTarget::try_from(number), number));
    }
    text.flag("serializable", request.serializable);
    text.flag("keys_only", request.keys_only);
    text.flag("count_only", request.count_only);
    text.number("min_mod_revision", request.min_mod_revision);
    text.number("max_mod_revision", request.max_mod_revision);
    text.number("min_create_revision", request.min_create_revision);
    text.number("max_create_revision", request.max_create_revision);
    cut(text.out)
}

/// A PutRequest.
pub fn put(request: &pb::PutRequest) -> String {
    let mut text = Text::default();
    text.bytes("key", &request.key);
    text.size(&request.value);
    text.number("lease", request.lease);
    text.flag("prev_kv", request.prev_kv);
    text.flag("ignore_value", request.ignore_value);
    text.flag("ignore_lease", request.ignore_lease);
    // etcd's writer leaves a space behind each of these fields.
    cut(text.out + " ")
}

/// A DeleteRangeRequest.
pub fn delete_range(request: &pb::DeleteRangeRequest) -> String {
    let mut text = Text::default();
    text.bytes("key", &request.key);
    text.bytes("range_end", &request.range_end);
    text.flag("prev_kv", request.prev_kv);
    cut(text.out)
}

/// A TxnRequest.
pub fn txn(request: &pb::TxnRequest) -> String {
    let mut out = String::new();
    write_txn(request, &mut out);
    cut(out)
}

fn write_txn(request: &pb::TxnRequest, out: &mut String) {
    let before = out.len();
    out.push_str("compare:<");
    let mut first = true;
    for one in &request.compare {
        separate(&mut first, out);
        out.push_str(&compare(one));
    }
    for (name, ops) in [("success", &request.success), ("failure", &request.failure)] {
        let _ = write!(out, "> {name}:<");
        let mut first = true;
        for op in ops {
            if out.len() - before > LOGGED_BYTES_MAX {
                break;
            }
            separate(&mut first, out);
            match &op.request {
                Some(Op::RequestRange(request)) => {
                    let _ = write!(out, "request_range:{{{}}}", range(request));
                }
                Some(Op::RequestPut(request)) => {
                    let _ = write!(out, "request_put:<{}>", put(request));
                }
                Some(Op::RequestDeleteRange(request)) => {
                    let _ = write!(out, "request_delete_range:{{{}}}", delete_range(request));
                }
                Some(Op::RequestTxn(request)) => {
                    out.push_str("request_txn:<");
                    write_txn(request, out);
                    out.push('>');
                }
                None => {}
            }
        }
    }
    out.push('>');
}

fn separate(first: &mut bool, out: &mut String) {
    if !std::mem::replace(first, false) {
        out.push(' ');
    }
}

fn compare(compare: &pb::Compare) -> String {
    let mut text = Text::default();
    if compare.result != 0 {
        text.field("result", name(CompareResult::try_from(compare.result), compare.result));
    }
    if compare.target != 0 {
        text.field("target", name(CompareTarget::try_from(compare.target), compare.target));
    }
    text.bytes("key", &compare.key);
    match &compare.target_union {
        Some(TargetUnion::Version(version)) => text.field("version", version),
        Some(TargetUnion::CreateRevision(revision)) => text.field("create_revision", revision),
        Some(TargetUnion::ModRevision(revision)) => text.field("mod_revision", revision),
        Some(TargetUnion::Value(value)) => text.size(value),
        Some(TargetUnion::Lease(lease)) => text.field("lease", lease),
        None => {}
    }
    text.bytes("range_end", &compare.range_end);
    if let Some(TargetUnion::Value(_)) = compare.target_union {
        text.out.push(' ');
    }
    text.out
}

/// The name of an enum's value, in the letters of the protocol.
fn name<E: fmt::Debug, N>(value: Result<E, N>, number: i32) -> String {
    let Ok(value) = value else { return number.to_string() };
    let mut out = String::new();
    for (at, c) in format!("{value:?}").chars().enumerate() {
        if at > 0 && c.is_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

/// An entry of the log.
pub fn entry(data: &Bytes) -> String {
    with_entry(data, |request| {
        let Ok(whole) = request else { return format!("{} bytes", data.len()) };
        let id = whole.header.as_ref().map_or(whole.id, |header| header.id);
        let header = format!("header:<ID:{id} >");
        cut(match Request::of(&whole) {
            Some(Request::Put(request)) => format!("{header} put:<{}>", put(request)),
            Some(Request::DeleteRange(request)) => {
                format!("{header} delete_range:<{}>", delete_range(request))
            }
            Some(Request::Txn(request)) => format!("{header} txn:<{}>", txn(request)),
            Some(Request::Range(request)) => format!("{header} range:<{}>", range(request)),
            Some(Request::Compaction(request)) => {
                let mut text = Text::default();
                text.number("revision", request.revision);
                text.flag("physical", request.physical);
                format!("{header} compaction:<{}>", text.out)
            }
            Some(Request::LeaseGrant(request)) => {
                format!("{header} lease_grant:<ttl:{}-second id:{:016x}>", request.ttl, request.id)
            }
            Some(Request::LeaseRevoke(request)) => {
                format!("{header} lease_revoke:<id:{:016x}>", request.id)
            }
            // None of these is large, and some hold passwords.
            _ => header,
        })
    })
}

fn cut(mut text: String) -> String {
    if text.len() > LOGGED_BYTES_MAX {
        text.truncate(text.floor_char_boundary(LOGGED_BYTES_MAX));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_shown_as_etcd_shows_them_and_values_are_not() {
        let put_request = pb::PutRequest {
            key: "foo".into(),
            value: "bar".into(),
            lease: 7,
            ..Default::default()
        };
        assert_eq!(put(&put_request), "key:\"foo\" value_size:3 lease:7 ");
        let range_request = pb::RangeRequest {
            key: "a\n\"\u{1}".into(),
            range_end: b"\xff".to_vec().into(),
            limit: 3,
            sort_order: SortOrder::Descend as i32,
            serializable: true,
            ..Default::default()
        };
        let text = "key:\"a\\n\\\"\\x01\" range_end:\"\\xff\" limit:3 sort_order:DESCEND \
                    serializable:true";
        assert_eq!(range(&range_request), text);
        let op = |request| pb::RequestOp { request: Some(request) };
        let request = pb::TxnRequest {
            compare: vec![pb::Compare {
                target: CompareTarget::Value as i32,
                key: "a".into(),
                target_union: Some(TargetUnion::Value("1".into())),
                ..Default::default()
            }],
            success: vec![
                op(Op::RequestPut(put_request.clone())),
                op(Op::RequestRange(pb::RangeRequest { key: "b".into(), ..Default::default() })),
            ],
            failure: vec![op(Op::RequestPut(put_request))],
        };
        let text = "compare:<target:VALUE key:\"a\" value_size:1 > \
                    success:<request_put:<key:\"foo\" value_size:3 lease:7 > \
                    request_range:{key:\"b\"}> \
                    failure:<request_put:<key:\"foo\" value_size:3 lease:7 >>";
        assert_eq!(txn(&request), text);
        let long = pb::RangeRequest { key: vec![b'k'; 1 << 20].into(), ..Default::default() };
        assert!(range(&long).len() < 20 << 10);
    }
}
