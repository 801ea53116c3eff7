//! The mapping both ways, against what etcd 3.7.1 answered.

use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};
use prost::Message as _;

use super::*;
use crate::pb::etcdserverpb as pb;

fn table(path: &str) -> &'static Method {
    method(path).expect("a method of etcd's")
}

fn read_range(text: &str) -> Result<pb::RangeRequest, String> {
    let mut scanner = Scanner::default();
    let (begin, end) = match scanner.scan(text.as_bytes()).map_err(|error| error.to_string())? {
        Scanned::Value { begin, end } => (begin, end),
        Scanned::Incomplete => match scanner.end().map_err(|error| error.to_string())? {
            Some(value) => value,
            None => return Ok(pb::RangeRequest::default()),
        },
    };
    let mut out = Vec::new();
    read(table("/etcdserverpb.KV/Range").request, &text.as_bytes()[begin..end], &mut out)?;
    Ok(pb::RangeRequest::decode(&out[..]).expect("protobuf"))
}

#[test]
fn requests_are_read_as_etcd_reads_them() {
    let foo = pb::RangeRequest { key: "foo".into(), ..Default::default() };
    for text in [
        r#"{"key":"Zm9v"}"#,
        r#" {"key" : "Zm9v" } trailing"#,
        r#"{"key":"Zm9v","nope":[1,{"a":2,"b":[]},"}"]}"#,
        r#"{"key":"Zm9v","limit":null,"sort_order":"UP"}"#,
        "{\"key\":\"\\u005a\\u006d9v\"}",
    ] {
        assert_eq!(read_range(text).as_ref(), Ok(&foo), "{text}");
    }
    let ten = pb::RangeRequest { limit: 10, sort_target: 3, ..foo };
    for text in [
        r#"{"key":"Zm9v","limit":"10","sortTarget":"MOD"}"#,
        r#"{"key":"Zm9v","limit":1.0e1,"sort_target":3}"#,
        r#"{"key":"Zm9v","limit":100e-1,"sort_target":3.0}"#,
    ] {
        assert_eq!(read_range(text).as_ref(), Ok(&ten), "{text}");
    }
    for (text, key) in [("-_-_", &b"\xfb\xff\xbf"[..]), ("YQ", b"a"), ("YQ==", b"a"), ("YR", b"a")]
    {
        let request = read_range(&format!("{{\"key\":{text:?}}}")).unwrap();
        assert_eq!(request.key, key, "{text}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_in_gos_words() {
    for (text, error) in [
        ("{\"key\":\"Zm9v\"", "unexpected EOF"),
        ("[]", "proto: syntax error (line 1:1): unexpected token ["),
        ("null", "proto: syntax error (line 1:1): unexpected token null"),
        ("\"x\"", "proto: syntax error (line 1:1): unexpected token \"x\""),
        ("17", "proto: syntax error (line 1:1): unexpected token 17"),
        ("{\"key\":5}", "proto: (line 1:8): invalid value for bytes field key: 5"),
        ("{\"key\":\"!!\"}", "proto: (line 1:8): invalid value for bytes field key: \"!!\""),
        ("{\"limit\":\"x\"}", "proto: (line 1:10): invalid value for int64 field limit: \"x\""),
        ("{\n \"limit\":1.5}", "proto: (line 2:10): invalid value for int64 field limit: 1.5"),
        (
            "{\"limit\":9223372036854775808}",
            "proto: (line 1:10): invalid value for int64 field limit: 9223372036854775808",
        ),
        ("{\"key\":\"\",\"key\":\"\"}", "proto: (line 1:11): duplicate field \"key\""),
        (
            "{\"sortTarget\":1,\"sort_target\":1}",
            "proto: (line 1:17): duplicate field \"sort_target\"",
        ),
        (
            "{\"serializable\":1}",
            "proto: (line 1:17): invalid value for bool field serializable: 1",
        ),
        ("{\"key\":\"\\ud800\"}", "proto: unexpected EOF"),
        (
            "{\"key\":\"\\ud800abcdef\"}",
            "proto: syntax error (line 1:8): invalid escape code \"abcdef\" in string",
        ),
        ("x", "invalid character 'x' looking for beginning of value"),
        ("{x", "invalid character 'x' looking for beginning of object key string"),
        ("{\"a\" 1", "invalid character '1' after object key"),
        ("{\"a\":1 1", "invalid character '1' after object key:value pair"),
        ("{\"a\":[1 1", "invalid character '1' after array element"),
        ("{\"a\":trub", "invalid character 'b' in literal true (expecting 'e')"),
        ("{\"a\":-x", "invalid character 'x' in numeric literal"),
        ("{\"a\":1.x", "invalid character 'x' after decimal point in numeric literal"),
        ("{\"a\":1ex", "invalid character 'x' in exponent of numeric literal"),
        ("{\"a\":\"\n", "invalid character '\\n' in string literal"),
        ("{\"a\":\"\\x", "invalid character 'x' in string escape code"),
    ] {
        assert_eq!(read_range(text), Err(error.to_owned()), "{text}");
    }
}

#[test]
fn depth_is_bounded_and_costs_no_stack() {
    let deep = |levels: usize| {
        let open = "{\"success\":[{\"requestTxn\":".repeat(levels);
        format!("{open}{{}}{}", "}]}".repeat(levels))
    };
    let txn = table("/etcdserverpb.KV/Txn").request;
    let mut out = Vec::new();
    assert_eq!(read(txn, deep(4000).as_bytes(), &mut out), Ok(()));
    let most = deep(5000);
    let error = "proto: exceeded max recursion depth".to_owned();
    assert_eq!(read(txn, most.as_bytes(), &mut out), Err(error));
    let error = Scanner::default().scan(most.as_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "exceeded max depth");
}

#[test]
fn a_transaction_keeps_its_empty_choices() {
    let text = br#"{"compare":[{"createRevision":"0","target":"CREATE","key":"Zm9v"}],
        "success":[{"requestPut":{"key":"Zm9v","value":"YmFy"}},{"request_range":{}}]}"#;
    let mut out = Vec::new();
    read(table("/etcdserverpb.KV/Txn").request, text, &mut out).unwrap();
    let txn = pb::TxnRequest::decode(&out[..]).unwrap();
    let zero = Some(pb::compare::TargetUnion::CreateRevision(0));
    assert_eq!(txn.compare[0].target_union, zero);
    assert_eq!(txn.success.len(), 2);
    let twice = br#"{"success":[{"requestPut":{},"requestRange":{}}]}"#;
    let error = read(table("/etcdserverpb.KV/Txn").request, twice, &mut out).unwrap_err();
    let told = "proto: (line 1:30): error parsing \"requestRange\", oneof \
                etcdserverpb.RequestOp.request is already set";
    assert_eq!(error, told);
}

fn answer() -> pb::RangeResponse {
    let kv = crate::pb::mvccpb::KeyValue {
        key: "foo".into(),
        create_revision: 2,
        mod_revision: 2,
        version: 1,
        value: "bar".into(),
        lease: 0,
    };
    let header =
        pb::ResponseHeader { cluster_id: u64::MAX, member_id: 7, revision: 2, raft_term: 2 };
    pb::RangeResponse { header: Some(header), kvs: vec![kv.clone(), kv], more: true, count: 9 }
}

#[test]
fn answers_are_written_as_etcd_writes_them() {
    let range = table("/etcdserverpb.KV/Range").response;
    let mut out = Vec::new();
    write(range, &answer().encode_to_vec(), false, &mut out);
    let kv =
        r#"{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}"#;
    let header =
        r#"{"cluster_id":"18446744073709551615","member_id":"7","revision":"2","raft_term":"2"}"#;
    let wanted = format!(r#"{{"header":{header},"kvs":[{kv},{kv}],"more":true,"count":"9"}}"#);
    assert_eq!(String::from_utf8(out).unwrap(), wanted);
    let mut out = Vec::new();
    write(range, b"", false, &mut out);
    assert_eq!(out, b"{}");
    let mut out = Vec::new();
    write_text("a\"<\u{2028}\u{1}", true, &mut out);
    assert_eq!(out, br#""a\"\u003c\u2028\u0001""#);
}

proptest! {
    #[test]
    fn pieces_of_any_size_make_the_same_json(
        values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..6),
        cut in 1usize..7,
    ) {
        let mut response = answer();
        response.kvs = values
            .into_iter()
            .map(|value| crate::pb::mvccpb::KeyValue {
                key: value.clone().into(),
                value: value.into(),
                ..Default::default()
            })
            .collect();
        let bytes = response.encode_to_vec();
        let range = table("/etcdserverpb.KV/Range").response;
        let (mut whole, mut pieces) = (Vec::new(), Vec::new());
        write(range, &bytes, false, &mut whole);
        let mut writer = Writer::new(range, false);
        writer.begin(&mut pieces);
        bytes.chunks(cut).for_each(|piece| writer.push(piece, &mut pieces));
        writer.finish(&mut pieces);
        prop_assert_eq!(&whole, &pieces);
        // And back: what was written can be read.
        let mut again = Vec::new();
        read(range, &whole, &mut again).unwrap();
        prop_assert_eq!(pb::RangeResponse::decode(&again[..]).unwrap(), response);
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,60}", at in 0usize..60, byte: u8) {
        let seed = r#"{"compare":[{"key":"Zm9v","version":1.0e1}],"success":[{"requestPut":{"key":"YQ"}}]}"#;
        let mut mutated = seed.as_bytes().to_vec();
        let at = at.min(mutated.len() - 1);
        mutated[at] = byte;
        for text in [text.as_bytes(), &mutated] {
            let mut scanner = Scanner::default();
            if let Ok(Scanned::Value { begin, end }) = scanner.scan(text) {
                let mut out = Vec::new();
                let txn = table("/etcdserverpb.KV/Txn").request;
                if read(txn, &text[begin..end], &mut out).is_ok() {
                    prop_assert!(pb::TxnRequest::decode(&out[..]).is_ok());
                }
            }
        }
    }

    #[test]
    fn requests_that_are_written_are_read_again(
        key: Vec<u8>, limit: i64, target in 0i32..5, flag: bool,
    ) {
        let request = pb::RangeRequest {
            key: key.into(),
            limit,
            sort_target: target,
            keys_only: flag,
            ..Default::default()
        };
        let range = table("/etcdserverpb.KV/Range").request;
        let mut text = Vec::new();
        write(range, &request.encode_to_vec(), true, &mut text);
        let read = read_range(std::str::from_utf8(&text).unwrap());
        prop_assert_eq!(read, Ok(request));
    }
}
