//! `--strict-reconfig-check`: which changes of the members would cost the cluster its quorum.
//!
//! Asked by the replica before it proposes a change, by what this member knows then; who is
//! connected is the caller's to say. Conditions and their order are etcd's
//! (`EtcdServer.mayAddMember` and its siblings, `RaftCluster.IsReadyTo…`).

use etcore_proto::error::EtcdError;

use super::member::Member;

/// What the checks look at.
pub struct Cluster<'a> {
    /// This member.
    pub own_id: u64,
    /// All members.
    pub members: &'a [Member],
    /// Whether a member has been connected for a while.
    pub is_connected: &'a dyn Fn(u64) -> bool,
    /// Whether a member is connected at all.
    pub is_active: &'a dyn Fn(u64) -> bool,
}

fn quorum(count: usize) -> usize {
    count / 2 + 1
}

impl Cluster<'_> {
    fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.is_learner)
    }

    /// Voters that have been connected for a while, this member among them.
    fn connected(&self) -> usize {
        let is = |member: &&Member| member.id == self.own_id || (self.is_connected)(member.id);
        self.voters().filter(is).count()
    }

    /// Whether a member may be added.
    ///
    /// # Errors
    /// Why not, in etcd's words.
    pub fn may_add(&self, is_learner: bool) -> Result<(), EtcdError> {
        let voters = self.voters().count();
        let started = self.voters().filter(|member| member.is_started()).count();
        // One that starts anew out of a copy of its data is to grow.
        let grows_from_one = started == 1 && voters == 1;
        if !is_learner && !grows_from_one && started < quorum(voters + 1) {
            return Err(EtcdError::MemberNotEnoughStarted);
        }
        if voters != 1 && self.connected() < quorum(voters + 1) {
            return Err(EtcdError::Unhealthy);
        }
        Ok(())
    }

    /// Whether a member may be removed.
    ///
    /// # Errors
    /// Why not, in etcd's words.
    pub fn may_remove(&self, id: u64) -> Result<(), EtcdError> {
        if self.members.iter().any(|member| member.id == id && member.is_learner) {
            return Ok(());
        }
        let left: Vec<&Member> = self.voters().filter(|member| member.id != id).collect();
        let started = left.iter().filter(|member| member.is_started()).count();
        if started < quorum(left.len()) {
            return Err(EtcdError::MemberNotEnoughStarted);
        }
        // Who is down takes no part in any quorum.
        if id != self.own_id && !(self.is_active)(id) {
            return Ok(());
        }
        let voters = self.voters().count();
        if self.connected().saturating_sub(1) < 1 + voters.saturating_sub(1) / 2 {
            return Err(EtcdError::Unhealthy);
        }
        Ok(())
    }

    /// Whether a learner may become a voter.
    ///
    /// # Errors
    /// Why not, in etcd's words.
    pub fn may_promote(&self) -> Result<(), EtcdError> {
        let voters = self.voters().count();
        let started = self.voters().filter(|member| member.is_started()).count();
        let enough = started + 1 >= quorum(voters + 1);
        if enough { Ok(()) } else { Err(EtcdError::MemberNotEnoughStarted) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members from 1 on: whether each is started, and connected.
    fn judge<T>(list: &[(bool, bool)], ask: impl Fn(&Cluster<'_>) -> T) -> T {
        let members: Vec<Member> = (1..)
            .zip(list)
            .map(|(id, (started, _))| Member {
                id,
                name: if *started { "m".to_owned() } else { String::new() },
                ..Default::default()
            })
            .collect();
        let is = |id: u64| id == 1 || usize::try_from(id).is_ok_and(|id| list[id - 1].1);
        ask(&Cluster { own_id: 1, members: &members, is_connected: &is, is_active: &is })
    }

    const UP: (bool, bool) = (true, true);
    const DOWN: (bool, bool) = (true, false);
    const NEW: (bool, bool) = (false, false);

    #[test]
    fn a_member_is_added_only_while_the_larger_cluster_has_a_quorum() {
        let add = |list: &[(bool, bool)]| judge(list, |cluster| cluster.may_add(false));
        assert_eq!(add(&[UP]), Ok(()));
        assert_eq!(add(&[UP, UP, UP]), Ok(()));
        assert_eq!(add(&[UP, NEW]), Err(EtcdError::MemberNotEnoughStarted));
        assert_eq!(add(&[UP, UP, DOWN]), Err(EtcdError::Unhealthy));
        assert_eq!(add(&[UP, UP, UP, DOWN]), Ok(()));
        let learner = |list: &[(bool, bool)]| judge(list, |cluster| cluster.may_add(true));
        assert_eq!(learner(&[UP, NEW]), Err(EtcdError::Unhealthy));
        assert_eq!(learner(&[UP, UP]), Ok(()));
    }

    #[test]
    fn a_member_is_removed_only_while_the_smaller_cluster_has_a_quorum() {
        let remove = |list: &[(bool, bool)], id: u64| judge(list, |cluster| cluster.may_remove(id));
        assert_eq!(remove(&[UP], 1), Err(EtcdError::MemberNotEnoughStarted));
        assert_eq!(remove(&[UP, UP, UP], 1), Ok(()));
        assert_eq!(remove(&[UP, UP, DOWN], 3), Ok(()), "it is down");
        assert_eq!(remove(&[UP, UP, DOWN], 2), Err(EtcdError::Unhealthy));
        assert_eq!(remove(&[UP, UP], 1), Ok(()));
        assert_eq!(remove(&[UP, NEW], 2), Ok(()), "never there");
        assert_eq!(remove(&[UP, NEW], 1), Err(EtcdError::MemberNotEnoughStarted));
    }

    #[test]
    fn a_learner_counts_as_started_when_it_is_to_be_promoted() {
        let promote = |list: &[(bool, bool)]| judge(list, |cluster| cluster.may_promote());
        assert_eq!(promote(&[UP]), Ok(()));
        assert_eq!(promote(&[UP, NEW, NEW]), Err(EtcdError::MemberNotEnoughStarted));
    }
}
