//! Requests of etcd's version 2 store in the log: members up to 3.5 publish their attributes and
//! set the cluster's version with them.
//!
//! Called when an entry holds no request of version 3. Those two become what they are today, as in
//! etcd 3.6; keys of the version 2 store itself live outside of what this server keeps, so for them
//! nothing happens. Never called for what a client sent.

use bytes::Bytes;
use etcore_proto::decode::{Fields, Value};
use etcore_proto::pb::{etcdserverpb as pb, membershippb};
use serde::Deserialize;

/// Field number of a version 2 request in an InternalRaftRequest; reserved since 3.7.
const V2: u32 = 2;
const MEMBERS: &str = "/0/members/";
const VERSION: &str = "/0/version";

/// The fields of etcd's old `Request` that matter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request<'a> {
    id: u64,
    method: &'a str,
    path: &'a str,
    value: &'a str,
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut request = Self::default();
        let mut fields = Fields::new(bytes);
        while let Some((field, value)) = fields.next_field().ok()? {
            match (field, value) {
                (1, Value::Varint(id)) => request.id = id,
                (2, Value::Len(range)) => request.method = text(&bytes[range])?,
                (3, Value::Len(range)) => request.path = text(&bytes[range])?,
                (4, Value::Len(range)) => request.value = text(&bytes[range])?,
                (1..=4, _) => return None,
                _ => {}
            }
        }
        let known = ["GET", "QGET", "HEAD", "PUT", "POST", "DELETE", "SYNC"];
        known.contains(&request.method).then_some(request)
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// The version 2 request in an InternalRaftRequest that holds nothing else.
pub(super) fn wrapped(entry: &Bytes) -> Option<pb::InternalRaftRequest> {
    let mut fields = Fields::new(entry);
    let mut found = None;
    while let Some((field, value)) = fields.next_field().ok()? {
        if let (V2, Value::Len(range)) = (field, value) {
            found = Some(range);
        }
    }
    Request::parse(&entry[found?]).map(|request| translate(&request))
}

/// The version 2 request that an entry is.
pub(super) fn bare(entry: &Bytes) -> Option<pb::InternalRaftRequest> {
    Request::parse(entry).map(|request| translate(&request))
}

/// Attributes in etcd's JSON.
#[derive(Default, Deserialize)]
struct Attributes {
    #[serde(default)]
    name: String,
    #[serde(rename = "clientURLs", default)]
    client_urls: Option<Vec<String>>,
}

fn translate(request: &Request<'_>) -> pb::InternalRaftRequest {
    let header = Some(pb::RequestHeader { id: request.id, ..Default::default() });
    let entry = pb::InternalRaftRequest { header, ..Default::default() };
    if request.method == "PUT" && request.path == VERSION {
        let ver = request.value.to_owned();
        let cluster_version_set = Some(membershippb::ClusterVersionSetRequest { ver });
        return pb::InternalRaftRequest { cluster_version_set, ..entry };
    }
    if request.method == "PUT"
        && let Some(member_id) = member_of(request.path)
        && let Ok(attributes) = serde_json::from_str::<Attributes>(request.value)
    {
        let attributes = membershippb::Attributes {
            name: attributes.name,
            client_urls: attributes.client_urls.unwrap_or_default(),
        };
        let cluster_member_attr_set = Some(membershippb::ClusterMemberAttrSetRequest {
            member_id,
            member_attributes: Some(attributes),
        });
        return pb::InternalRaftRequest { cluster_member_attr_set, ..entry };
    }
    // Its own kind of nothing.
    let downgrade_version_test = Some(pb::DowngradeVersionTestRequest::default());
    pb::InternalRaftRequest { downgrade_version_test, ..entry }
}

fn member_of(path: &str) -> Option<u64> {
    let id = path.strip_prefix(MEMBERS)?.strip_suffix("/attributes")?;
    let is_hex = id.len() <= 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u64::from_str_radix(id, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As gogo's code wrote it: every field, whether it is set or not.
    fn encoded(method: &str, path: &str, value: &str) -> Bytes {
        let mut out = vec![0x08, 7];
        for (field, text) in [(2u8, method), (3, path), (4, value)] {
            out.extend([field << 3 | 2, text.len() as u8]);
            out.extend_from_slice(text.as_bytes());
        }
        out.extend([5 << 3, 0, 6 << 3 | 2, 0, 7 << 3, 0, 9 << 3, 0, 10 << 3, 0]);
        out.into()
    }

    #[test]
    fn what_members_up_to_3_5_say_about_themselves_is_what_it_is_today() {
        let attributes = r#"{"name":"m1","clientURLs":["http://a:1"]}"#;
        let publish = encoded("PUT", "/0/members/8e9e05c52164694d/attributes", attributes);
        let version = encoded("PUT", "/0/version", "3.5.0");
        let check = |entry: &Bytes, version: Option<&str>| {
            super::super::with_entry(entry, |request| {
                let request = request.unwrap();
                assert_eq!(request.header.as_ref().map(|header| header.id), Some(7));
                match (request.cluster_version_set, version) {
                    (found, Some(ver)) => assert_eq!(found.unwrap().ver, ver),
                    (found, None) => {
                        assert_eq!(found, None);
                        let set = request.cluster_member_attr_set.unwrap();
                        assert_eq!(set.member_id, 0x8e9e_05c5_2164_694d);
                        let attributes = set.member_attributes.unwrap();
                        assert_eq!(attributes.name, "m1");
                        assert_eq!(attributes.client_urls, ["http://a:1"]);
                    }
                }
            });
        };
        check(&publish, None);
        check(&version, Some("3.5.0"));
        let mut inner = vec![V2 as u8 * 8 + 2, version.len() as u8];
        inner.extend_from_slice(&version);
        check(&inner.into(), Some("3.5.0"));
    }

    #[test]
    fn keys_of_the_old_store_do_nothing_and_other_bytes_are_no_request() {
        for method in ["PUT", "POST", "DELETE", "QGET"] {
            let entry = encoded(method, "/1/a", "v");
            let nothing = bare(&entry).unwrap();
            assert!(nothing.downgrade_version_test.is_some(), "{method}");
            super::super::with_entry(&entry, |request| assert!(request.is_ok(), "{method}"));
        }
        // Read as it stands it is a Range, which does nothing either.
        super::super::with_entry(&encoded("SYNC", "", ""), |request| assert!(request.is_ok()));
        assert_eq!(bare(&encoded("PATCH", "/1/a", "v")), None);
        assert_eq!(bare(&Bytes::from_static(b"\xff")), None);
    }
}
