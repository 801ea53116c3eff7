//! Who may talk to whom on the peer port: paths, fields, versions and the texts of refusals, all as
//! etcd has them.
//!
//! Called by both ends of a connection: the one that asks adds [`Local::fields`], the one that is
//! asked calls [`Local::check`], the first reads a refusal with [`Refusal::from_answer`]. Nothing
//! here keeps state.

use etcore_proto::grpc::Metadata;

use super::StreamKind;

/// Single messages are posted here.
pub const PIPELINE_PATH: &str = "/raft";
/// Below it: the kind of a stream and the receiver's id.
pub const STREAM_PREFIX: &str = "/raft/stream/";
/// Where a peer's presence is asked for.
pub const PROBING_PATH: &str = "/raft/probing";

/// Who this member is, as its peers shall know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Member ID.
    pub member_id: u64,
    /// Cluster ID.
    pub cluster_id: u64,
    /// Where peers reach this member; for those that do not know it yet.
    pub peer_urls: Vec<String>,
    /// The etcd version whose contract is kept.
    pub version: &'static str,
    /// The oldest version of peers that is accepted.
    pub min_cluster_version: &'static str,
}

/// Why a peer is refused, or refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// One of both versions is too old for the other.
    #[error("incompatible version")]
    Version,
    /// The peer belongs to another cluster.
    #[error("cluster ID mismatch")]
    Cluster,
    /// The path names no kind of stream.
    #[error("invalid path")]
    Path,
    /// The path ends in something that is no id.
    #[error("invalid from")]
    From,
    /// The sender was a member once.
    #[error("removed member")]
    Removed,
    /// The sender is no member.
    #[error("error sender not found")]
    Unknown,
    /// The peer takes this member for another one.
    #[error("to field mismatch")]
    Receiver,
}

impl Refusal {
    /// The status it is answered with.
    pub fn status(self) -> u16 {
        match self {
            Self::Version | Self::Cluster | Self::Receiver => 412,
            Self::Path | Self::From | Self::Unknown => 404,
            Self::Removed => 410,
        }
    }

    /// What a peer's answer to a stream request means, if it is a known refusal.
    pub fn from_answer(status: u16, body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).unwrap_or_default();
        let text = text.strip_suffix('\n').unwrap_or(text);
        match (status, text) {
            (410, _) => Some(Self::Removed),
            (412, "incompatible version") => Some(Self::Version),
            (412, "cluster ID mismatch") => Some(Self::Cluster),
            (412, "to field mismatch") => Some(Self::Receiver),
            (404, _) => Some(Self::Unknown),
            _ => None,
        }
    }
}

impl StreamKind {
    /// The word for it in paths.
    fn word(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Append => "msgapp",
        }
    }

    /// Where the member with this id asks for a stream.
    pub fn path(self, receiver: u64) -> String {
        format!("{STREAM_PREFIX}{}/{receiver:x}", self.word())
    }
}

/// Reads the path of a stream request: its kind and who asks.
///
/// # Errors
/// [`Refusal::Path`] and [`Refusal::From`].
pub fn parse_stream_path(path: &str) -> Result<(StreamKind, u64), Refusal> {
    let rest = path.strip_prefix(STREAM_PREFIX).ok_or(Refusal::Path)?;
    let (word, id) = rest.split_once('/').ok_or(Refusal::Path)?;
    let kind = [StreamKind::Message, StreamKind::Append]
        .into_iter()
        .find(|kind| kind.word() == word)
        .ok_or(Refusal::Path)?;
    Ok((kind, parse_id(id).ok_or(Refusal::From)?))
}

/// An id as Go parses it: hexadecimal without a sign.
pub fn parse_id(text: &str) -> Option<u64> {
    let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

impl Local {
    /// What every request to a peer carries.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("X-Server-From", format!("{:x}", self.member_id)),
            ("X-Server-Version", self.version.to_owned()),
            ("X-Min-Cluster-Version", self.min_cluster_version.to_owned()),
            ("X-Etcd-Cluster-Id", format!("{:x}", self.cluster_id)),
        ];
        if !self.peer_urls.is_empty() {
            fields.push(("X-Peerurls", self.peer_urls.join(",")));
        }
        fields
    }

    /// Judges the fields of a peer's request: versions, then the cluster.
    ///
    /// # Errors
    /// [`Refusal::Version`] and [`Refusal::Cluster`].
    pub fn check(&self, fields: &Metadata) -> Result<(), Refusal> {
        let server = version_of(fields, b"x-server-version");
        let min_cluster = version_of(fields, b"x-min-cluster-version");
        let (Some(server), Some(min_cluster)) = (server, min_cluster) else {
            return Err(Refusal::Version);
        };
        let own = parse_version(self.version).unwrap_or_default();
        let own_min = parse_version(self.min_cluster_version).unwrap_or_default();
        if server < own_min || min_cluster > own {
            return Err(Refusal::Version);
        }
        if field(fields, b"x-etcd-cluster-id") != format!("{:x}", self.cluster_id) {
            return Err(Refusal::Cluster);
        }
        Ok(())
    }

    /// Judges a request for a stream as far as fields and path go, and says which stream it is for
    /// whom. Whether the sender is a member comes next, then [`Local::check_receiver`].
    ///
    /// # Errors
    /// The [`Refusal`] etcd would answer.
    pub fn check_stream(
        &self,
        path: &str,
        fields: &Metadata,
    ) -> Result<(StreamKind, u64), Refusal> {
        self.check(fields)?;
        parse_stream_path(path)
    }

    /// The peer must mean this member.
    ///
    /// # Errors
    /// [`Refusal::Receiver`].
    pub fn check_receiver(&self, fields: &Metadata) -> Result<(), Refusal> {
        let means_us = field(fields, b"x-raft-to") == format!("{:x}", self.member_id);
        if means_us { Ok(()) } else { Err(Refusal::Receiver) }
    }

    /// Whether streams of a peer that answers with these fields can be read: an older one must know
    /// them, which etcd does since 2.1.
    pub fn reads_streams_of(&self, fields: &Metadata) -> bool {
        version_of(fields, b"x-server-version").is_some_and(|version| version >= (2, 1))
    }
}

/// A field's value; empty if it is missing or not text.
pub fn field<'a>(fields: &'a Metadata, name: &[u8]) -> &'a str {
    fields.get(name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default()
}

/// Major and minor version in a field; etcd 2.0 sent none.
fn version_of(fields: &Metadata, name: &[u8]) -> Option<(u64, u64)> {
    match field(fields, name) {
        "" if fields.get(name).is_none_or(<[u8]>::is_empty) => Some((2, 0)),
        text => parse_version(text),
    }
}

/// Major and minor of a semantic version.
fn parse_version(text: &str) -> Option<(u64, u64)> {
    let core = text.split(['-', '+']).next()?;
    let mut numbers = core.split('.').map(|number| number.parse().ok());
    let version = (numbers.next()??, numbers.next()??);
    numbers.next()??;
    numbers.next().is_none().then_some(version)
}
