//! The members of the cluster as they are replicated and stored: etcd's JSON, so that its tools can
//! read the entries and the bucket.
//!
//! Written by apply (configuration changes and published attributes), read by MemberList and the
//! peer port.

use etcore_engine::bucket::Bucket;
use etcore_engine::store::Store;
use etcore_proto::pb::etcdserverpb as pb;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One member (etcd `membership.Member`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Member ID.
    pub id: u64,
    /// URLs its peers reach it at.
    #[serde(
        rename = "peerURLs",
        default,
        serialize_with = "or_null",
        deserialize_with = "not_null"
    )]
    pub peer_urls: Vec<String>,
    /// Does not vote yet.
    #[serde(rename = "isLearner", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    /// Empty until the member has published itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// URLs clients reach it at.
    #[serde(
        rename = "clientURLs",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "not_null"
    )]
    pub client_urls: Vec<String>,
}

/// Go writes a list that was never made as null.
fn or_null<S: Serializer>(list: &[String], to: S) -> Result<S::Ok, S::Error> {
    if list.is_empty() { to.serialize_none() } else { list.serialize(to) }
}

fn not_null<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(from)?.unwrap_or_default())
}

impl Member {
    /// All members that a store has, by ID.
    pub fn all_in(store: &Store) -> Vec<Self> {
        let rows = store.bucket_iter(Bucket::Members, b"");
        let mut members: Vec<Self> =
            rows.filter_map(|(_, json)| Self::from_json(json).ok()).collect();
        members.sort_by_key(|member| member.id);
        members
    }

    /// As MemberList answers.
    pub fn to_pb(&self) -> pb::Member {
        pb::Member {
            id: self.id,
            name: self.name.clone(),
            peer_ur_ls: self.peer_urls.clone(),
            client_ur_ls: self.client_urls.clone(),
            is_learner: self.is_learner,
        }
    }

    /// The key in the `members` bucket (etcd `schema`: hexadecimal ID).
    pub fn bucket_key(id: u64) -> Vec<u8> {
        format!("{id:x}").into_bytes()
    }

    /// It has published itself at some time.
    pub fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// JSON as it stands in configuration changes and in the bucket.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers always serialize")
    }

    /// Reads [`Member::to_json`], or what etcd wrote.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| format!("member record: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_is_etcds() {
        let member = Member {
            id: 5,
            peer_urls: vec!["http://a:1".into()],
            name: "n".into(),
            ..Default::default()
        };
        assert_eq!(member.to_json(), br#"{"id":5,"peerURLs":["http://a:1"],"name":"n"}"#);
        assert_eq!(Member::from_json(&member.to_json()).unwrap(), member);
        assert_eq!(Member::bucket_key(0x8e9e), b"8e9e");
        let nowhere = Member { id: 5, ..Default::default() };
        assert_eq!(nowhere.to_json(), br#"{"id":5,"peerURLs":null}"#);
        assert_eq!(Member::from_json(&nowhere.to_json()).unwrap(), nowhere);
    }
}
