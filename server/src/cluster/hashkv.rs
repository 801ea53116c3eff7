//! How members ask each other for the hash of their data: etcd's `/members/hashkv`, JSON both ways
//! (`server/etcdserver/corrupt.go`).
//!
//! Used by the replica, which answers and asks, and by boot. Bodies come from the network: what is
//! no such message is an error, never a panic.

use etcore_engine::hash::KvHash;
use etcore_proto::error::{EtcdError, Status};
use serde::{Deserialize, Serialize};

/// Where the question is asked.
pub const PATH: &str = "/members/hashkv";
/// The content type of both messages.
pub const JSON: &str = "application/json";

/// etcd's words for a revision that is gone, of the store and not of the API.
const COMPACTED: &str = "mvcc: required revision has been compacted";
const FUTURE: &str = "mvcc: required revision is a future revision";
/// etcd's words for an asker of another cluster.
pub const OTHER_CLUSTER: &str = "cluster ID mismatch";

/// A member's hash, and its newest revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerHash {
    /// CRC32C.
    pub hash: u32,
    /// The compaction it takes into account; -1 for none.
    pub compact_revision: i64,
    /// The member's newest revision.
    pub newest: i64,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoHash {
    /// The revision is compacted there.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// It is still to come there.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    Future,
    /// It is a member of another cluster.
    #[error("cluster ID mismatch")]
    OtherCluster,
    /// It says something else.
    #[error("unknown error: {0}")]
    Unknown(String),
    /// It says nothing.
    #[error("no response")]
    NoResponse,
}

/// A HashKVRequest as Go's `encoding/json` has it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Request {
    #[serde(default, skip_serializing_if = "is_zero")]
    revision: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Header {
    #[serde(default, skip_serializing_if = "is_zero")]
    revision: i64,
}

/// A HashKVResponse.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Response {
    #[serde(default)]
    header: Header,
    #[serde(default, skip_serializing_if = "is_no_hash")]
    hash: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    compact_revision: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    hash_revision: i64,
}

// serde gives references.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_no_hash(hash: &u32) -> bool {
    *hash == 0
}

/// The question for the hash at `revision`; 0 is the newest.
#[must_use]
pub fn question(revision: i64) -> Vec<u8> {
    serde_json::to_vec(&Request { revision }).unwrap_or_default()
}

/// The revision that is asked about; `None` if this is no question.
#[must_use]
pub fn asked(body: &[u8]) -> Option<i64> {
    serde_json::from_slice::<Request>(body).ok().map(|request| request.revision)
}

/// The answer: a hash and the newest revision.
#[must_use]
pub fn answer(hash: &KvHash, newest: i64) -> Vec<u8> {
    let response = Response {
        header: Header { revision: newest },
        hash: hash.hash,
        compact_revision: hash.compact_revision.0,
        hash_revision: hash.revision.0,
    };
    serde_json::to_vec(&response).unwrap_or_default()
}

/// The text of a refusal.
#[must_use]
pub fn refusal(status: &Status) -> String {
    let text = match &*status.message {
        text if text == EtcdError::Compacted.text() => COMPACTED,
        text if text == EtcdError::FutureRev.text() => FUTURE,
        text => text,
    };
    format!("{text}\n")
}

/// What an answer says.
///
/// # Errors
/// Why there is no hash in it.
pub fn read(status: u16, body: &[u8]) -> Result<PeerHash, NoHash> {
    let text = String::from_utf8_lossy(body);
    match status {
        200 => {
            let response: Response =
                serde_json::from_slice(body).map_err(|error| NoHash::Unknown(error.to_string()))?;
            Ok(PeerHash {
                hash: response.hash,
                compact_revision: response.compact_revision,
                newest: response.header.revision,
            })
        }
        400 if text.contains(COMPACTED) => Err(NoHash::Compacted),
        400 if text.contains(FUTURE) => Err(NoHash::Future),
        412 if text.contains(OTHER_CLUSTER) => Err(NoHash::OtherCluster),
        _ => Err(NoHash::Unknown(text.trim_end().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use etcore_engine::types::Revision;

    use super::*;

    #[test]
    fn questions_and_answers_are_those_of_go() {
        assert_eq!(question(0), b"{}");
        assert_eq!(question(7), br#"{"revision":7}"#);
        assert_eq!(asked(br#"{"revision":7,"else":1}"#), Some(7));
        assert_eq!(asked(b"{}"), Some(0));
        assert_eq!(asked(b"7"), None);
        let hash = KvHash { hash: 5, compact_revision: Revision(-1), revision: Revision(9) };
        let body = answer(&hash, 11);
        let text = r#"{"header":{"revision":11},"hash":5,"compact_revision":-1,"hash_revision":9}"#;
        assert_eq!(body, text.as_bytes());
        let told = PeerHash { hash: 5, compact_revision: -1, newest: 11 };
        assert_eq!(read(200, &body), Ok(told));
        assert_eq!(
            read(200, b"{").unwrap_err().to_string().split(':').next(),
            Some("unknown error")
        );
    }

    #[test]
    fn refusals_are_told_apart() {
        let told = |error: EtcdError| read(400, refusal(&error.into()).as_bytes());
        assert_eq!(told(EtcdError::Compacted), Err(NoHash::Compacted));
        assert_eq!(told(EtcdError::FutureRev), Err(NoHash::Future));
        assert_eq!(read(412, b"cluster ID mismatch\n"), Err(NoHash::OtherCluster));
        assert_eq!(read(503, b"busy\n"), Err(NoHash::Unknown("busy".to_owned())));
        assert_eq!(
            told(EtcdError::TooManyRequests),
            Err(NoHash::Unknown("etcdserver: too many requests".to_owned()))
        );
    }
}
