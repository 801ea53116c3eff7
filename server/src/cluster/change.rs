//! A change of the cluster's members: its form in the log, which is etcd's, and whether it may be.
//!
//! Made by the Cluster service, proposed and applied by the replica. Every member applies a change
//! or refuses it by the members that its own store holds at that place of the log, so all must
//! decide alike: nothing here may depend on anything else (etcd
//! `membership.RaftCluster.ValidateConfigurationChange`).

use std::collections::BTreeSet;

use etcore_proto::error::EtcdError;
use etcore_proto::raftpb::{self, ConfChangeType};
use serde::{Deserialize, Serialize};

use super::member::Member;

/// What is to become of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It becomes one.
    Add(Member),
    /// The learner of this ID becomes a voter.
    Promote(u64),
    /// It is one no longer, and never will be again.
    Remove(u64),
    /// It is reached somewhere else.
    Update {
        /// Its ID.
        id: u64,
        /// Where.
        peer_urls: Vec<String>,
    },
}

/// What an added or promoted member's entry says of it (etcd `ConfigChangeContext`).
#[derive(Serialize, Deserialize)]
struct Context {
    #[serde(flatten)]
    member: Member,
    #[serde(rename = "isPromote", default)]
    is_promote: bool,
}

impl Change {
    /// Reads an entry's change.
    ///
    /// # Errors
    /// What is wrong with it: etcd's members stop at such a one, so it must not get into a log.
    pub fn of(change: &raftpb::ConfChange) -> Result<Self, String> {
        let id = change.node_id.unwrap_or(0);
        let kind = ConfChangeType::try_from(change.r#type.unwrap_or(0))
            .map_err(|error| error.to_string())?;
        let json = change.context.as_deref().unwrap_or_default();
        let found = match kind {
            ConfChangeType::ConfChangeRemoveNode => return Ok(Self::Remove(id)),
            ConfChangeType::ConfChangeAddNode | ConfChangeType::ConfChangeAddLearnerNode => {
                let Context { member, is_promote } = serde_json::from_slice(json)
                    .map_err(|error| format!("member record: {error}"))?;
                let named = member.id;
                (named, if is_promote { Self::Promote(id) } else { Self::Add(member) })
            }
            ConfChangeType::ConfChangeUpdateNode => {
                let member = Member::from_json(json)?;
                (member.id, Self::Update { id, peer_urls: member.peer_urls })
            }
        };
        if found.0 != id {
            return Err(format!("a change of member {id:x} that describes member {:x}", found.0));
        }
        Ok(found.1)
    }

    /// The entry's change; `id` names it to whoever waits for it.
    pub fn to_wire(&self, id: u64) -> raftpb::ConfChange {
        let (kind, context) = match self {
            Self::Add(member) if member.is_learner => {
                (ConfChangeType::ConfChangeAddLearnerNode, Some(member.to_json()))
            }
            Self::Add(member) => (ConfChangeType::ConfChangeAddNode, Some(member.to_json())),
            Self::Promote(member_id) => {
                let member = Member { id: *member_id, ..Default::default() };
                let context = Context { member, is_promote: true };
                let json = serde_json::to_vec(&context).unwrap_or_default();
                (ConfChangeType::ConfChangeAddNode, Some(json))
            }
            Self::Remove(_) => (ConfChangeType::ConfChangeRemoveNode, None),
            Self::Update { id, peer_urls } => {
                let member = Member { id: *id, peer_urls: peer_urls.clone(), ..Default::default() };
                (ConfChangeType::ConfChangeUpdateNode, Some(member.to_json()))
            }
        };
        raftpb::ConfChange {
            id: Some(id),
            r#type: Some(kind as i32),
            node_id: Some(self.member_id()),
            context: context.map(Into::into),
        }
    }

    /// Whom it is about.
    pub fn member_id(&self) -> u64 {
        match self {
            Self::Add(member) => member.id,
            Self::Promote(id) | Self::Remove(id) | Self::Update { id, .. } => *id,
        }
    }

    /// Whether the change can be made, in etcd's order. `learners_max` is `--max-learners`.
    ///
    /// # Errors
    /// Why not. Of a member that was removed, [`Invalid::Removed`] whatever is asked.
    pub fn validate(
        &self,
        members: &[Member],
        removed: &BTreeSet<u64>,
        learners_max: usize,
    ) -> Result<(), Invalid> {
        let id = self.member_id();
        if removed.contains(&id) {
            return Err(Invalid::Removed);
        }
        let known = members.iter().find(|member| member.id == id);
        match (self, known) {
            (Self::Promote(_), Some(known)) if !known.is_learner => Err(Invalid::NotLearner),
            (Self::Promote(_) | Self::Remove(_), Some(_)) => Ok(()),
            (Self::Add(_), Some(_)) => Err(Invalid::Exists),
            (Self::Add(member), None) => {
                if shares_url(members, id, &member.peer_urls) {
                    return Err(Invalid::UrlExists);
                }
                if member.is_learner {
                    check_learners(members, 1, learners_max)?;
                }
                Ok(())
            }
            (Self::Update { peer_urls, .. }, Some(_)) => {
                let taken = shares_url(members, id, peer_urls);
                if taken { Err(Invalid::UrlExists) } else { Ok(()) }
            }
            (Self::Promote(_) | Self::Remove(_) | Self::Update { .. }, None) => {
                Err(Invalid::NotFound)
            }
        }
    }
}

/// Whether a cluster with so many more learners has no more than it may.
///
/// # Errors
/// [`Invalid::TooManyLearners`].
pub fn check_learners(members: &[Member], more: usize, learners_max: usize) -> Result<(), Invalid> {
    let learners = members.iter().filter(|member| member.is_learner).count();
    if learners + more > learners_max { Err(Invalid::TooManyLearners) } else { Ok(()) }
}

/// True if another member than `id` is reached at one of these URLs.
fn shares_url(members: &[Member], id: u64, urls: &[String]) -> bool {
    let others = members.iter().filter(|member| member.id != id);
    others.flat_map(|member| &member.peer_urls).any(|url| urls.contains(url))
}

/// Why a change cannot be made, in the words that etcd's members use among themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The member was one once.
    #[error("membership: ID removed")]
    Removed,
    /// It is one already.
    #[error("membership: ID exists")]
    Exists,
    /// It is none.
    #[error("membership: ID not found")]
    NotFound,
    /// Another member is reached at one of its URLs.
    #[error("membership: peerURL exists")]
    UrlExists,
    /// It is a voter already.
    #[error("membership: can only promote a learner member")]
    NotLearner,
    /// The cluster has as many as it may.
    #[error("membership: too many learner members in cluster")]
    TooManyLearners,
}

impl From<Invalid> for EtcdError {
    /// What clients are told.
    fn from(invalid: Invalid) -> Self {
        match invalid {
            Invalid::Removed | Invalid::NotFound => Self::MemberNotFound,
            Invalid::Exists => Self::MemberExist,
            Invalid::UrlExists => Self::PeerUrlExist,
            Invalid::NotLearner => Self::MemberNotLearner,
            Invalid::TooManyLearners => Self::TooManyLearners,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, url: &str, is_learner: bool) -> Member {
        Member { id, peer_urls: vec![url.to_owned()], is_learner, ..Default::default() }
    }

    #[test]
    fn a_change_is_written_as_etcd_writes_it_and_read_again() {
        let changes = [
            (Change::Add(member(5, "http://a:1", false)), r#"{"id":5,"peerURLs":["http://a:1"]}"#),
            (
                Change::Add(member(5, "http://a:1", true)),
                r#"{"id":5,"peerURLs":["http://a:1"],"isLearner":true}"#,
            ),
            (Change::Promote(5), r#"{"id":5,"peerURLs":null,"isPromote":true}"#),
            (Change::Remove(5), ""),
            (
                Change::Update { id: 5, peer_urls: vec!["http://b:1".into()] },
                r#"{"id":5,"peerURLs":["http://b:1"]}"#,
            ),
        ];
        for (change, context) in changes {
            let wire = change.to_wire(9);
            assert_eq!((wire.id, wire.node_id), (Some(9), Some(5)));
            assert_eq!(wire.context.clone().unwrap_or_default(), context.as_bytes());
            assert_eq!(Change::of(&wire).unwrap(), change);
            let other = raftpb::ConfChange { node_id: Some(6), ..wire };
            assert_eq!(Change::of(&other).is_err(), !context.is_empty());
        }
    }

    #[test]
    fn what_the_members_do_not_allow_is_refused_in_etcds_order() {
        let members = [member(1, "http://a:1", false), member(2, "http://b:1", true)];
        let removed = BTreeSet::from([7]);
        let judge = |change: Change| change.validate(&members, &removed, 1);
        let add = |id, url, learner| judge(Change::Add(member(id, url, learner)));
        assert_eq!(add(3, "http://c:1", false), Ok(()));
        assert_eq!(add(7, "http://a:1", false), Err(Invalid::Removed));
        assert_eq!(add(1, "http://b:1", false), Err(Invalid::Exists));
        assert_eq!(add(3, "http://b:1", true), Err(Invalid::UrlExists));
        assert_eq!(add(3, "http://c:1", true), Err(Invalid::TooManyLearners));
        assert_eq!(judge(Change::Promote(1)), Err(Invalid::NotLearner));
        assert_eq!(judge(Change::Promote(2)), Ok(()));
        assert_eq!(judge(Change::Promote(3)), Err(Invalid::NotFound));
        assert_eq!(judge(Change::Remove(3)), Err(Invalid::NotFound));
        assert_eq!(judge(Change::Remove(7)), Err(Invalid::Removed));
        assert_eq!(judge(Change::Remove(1)), Ok(()));
        let update = |id, url: &str| judge(Change::Update { id, peer_urls: vec![url.into()] });
        assert_eq!(update(1, "http://a:1"), Ok(()), "its own");
        assert_eq!(update(1, "http://b:1"), Err(Invalid::UrlExists));
        assert_eq!(update(3, "http://b:1"), Err(Invalid::NotFound));
    }
}
