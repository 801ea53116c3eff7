//! Somebody who changes who the members are: adds voters and learners, promotes, removes whoever it
//! may be, and starts members on machines that were added, with empty disks.
//!
//! Called by the world in seeds whose plan has machines for it. What is asked goes through a client
//! of its own, which asks again until it is told something; who the members are is read from the
//! newest state that any of them shows. A machine whose member was removed may be added anew, with
//! another disk.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::types::Identity;

use super::clients::{Ask, Role};
use super::finish::Stage;
use super::world::{Event, World};
use crate::channel::MemberView;
use crate::cluster::change::Change;
use crate::cluster::member::Member;
use crate::replica::REMOVED;

const MS: u64 = 1_000_000;
/// Members that a cluster may grow to.
const MEMBERS_MOST: usize = 7;

/// What is known of the cluster.
#[derive(Debug, Default)]
pub(super) struct Operator {
    /// The cluster's ID, from the first member that has started.
    cluster_id: u64,
    /// Everybody who was removed.
    removed: BTreeSet<u64>,
    /// Machines of voters, as of the last look.
    voters: BTreeSet<usize>,
}

impl World {
    /// The newest state that a running member shows.
    fn newest_view(&self) -> Option<Arc<MemberView>> {
        let lives = self.members.iter().filter_map(|member| member.life.as_ref());
        lives.map(|life| life.shared.view.load_full()).max_by_key(|view| view.store.applied)
    }

    /// Looks at who the members are.
    fn look_at_members(&mut self) -> Option<Arc<MemberView>> {
        let view = self.newest_view()?;
        self.operator.removed.extend(view.removed.iter());
        if let Some(life) = self.members.iter().find_map(|member| member.life.as_ref()) {
            self.operator.cluster_id = life.shared.cluster_id;
        }
        let machine_of = |known: &Member| {
            self.members.iter().position(|member| known.peer_urls.contains(&member.peer_url()))
        };
        let voters = view.members.iter().filter(|known| !known.is_learner);
        self.operator.voters = voters.filter_map(machine_of).collect();
        Some(view)
    }

    /// Starts who was added, asks for another change, and looks again later.
    pub(super) fn operate(&mut self) {
        if matches!(self.stage, Stage::Silence | Stage::Reading { .. } | Stage::Over) {
            return;
        }
        let again = self.now + 50 * MS + self.prng.below(1000 * MS);
        self.schedule(again, Event::Operate);
        let Some(view) = self.look_at_members() else { return };
        self.start_added(&view);
        if self.stage != Stage::Trouble {
            return;
        }
        let Some(change) = self.next_change(&view) else { return };
        self.trace.say(self.now, || format!("wanted: {change:?}"));
        let of_operator = |client: &Option<_>| {
            let client: &Option<Box<super::clients::Client>> = client;
            client.as_ref().is_some_and(|client| matches!(client.role, Role::Operates))
        };
        let Some(at) = self.clients.iter().position(of_operator) else { return };
        if let Some(client) = &mut self.clients[at]
            && client.op.is_none()
        {
            client.script = VecDeque::from([Ask::Change(change)]);
            self.client_at(at, self.now);
        }
    }

    fn start_added(&mut self, view: &MemberView) {
        for at in 0..self.members.len() {
            let member = &mut self.members[at];
            let url = member.peer_url();
            let Some(known) = view.members.iter().find(|known| known.peer_urls.contains(&url))
            else {
                continue;
            };
            if !member.is_gone || self.operator.removed.contains(&known.id) {
                continue;
            }
            member.is_gone = false;
            member.disk = MemDisk::new();
            member.id = known.id;
            let cluster_id = self.operator.cluster_id;
            member.joins = Some(Identity { cluster_id, member_id: known.id });
            let at_ns = self.now + self.prng.below(500 * MS);
            if self.prng.below(1000) < self.plan.start_crashes {
                self.troubles[at].start_crash = Some(self.prng.below(12));
            }
            self.schedule(at_ns, Event::Start { member: at });
        }
    }

    /// What is to be asked for next.
    fn next_change(&mut self, view: &MemberView) -> Option<Change> {
        let learners: Vec<u64> =
            view.members.iter().filter(|known| known.is_learner).map(|known| known.id).collect();
        let voters = view.members.len() - learners.len();
        match self.prng.below(3) {
            0 if view.members.len() < MEMBERS_MOST => {
                let is_known =
                    |url: &String| view.members.iter().any(|known| known.peer_urls.contains(url));
                let free: Vec<String> = self
                    .members
                    .iter()
                    .filter(|member| member.is_gone)
                    .map(super::member::Member::peer_url)
                    .filter(|url| !is_known(url))
                    .collect();
                let url = free.get(self.prng.index(free.len().max(1)))?.clone();
                let is_learner = self.prng.chance(1, 2);
                Some(Change::Add(Member { peer_urls: vec![url], is_learner, ..Member::default() }))
            }
            1 if !learners.is_empty() => {
                Some(Change::Promote(learners[self.prng.index(learners.len())]))
            }
            2 if voters > 2 || !learners.is_empty() => {
                let at = self.prng.index(view.members.len());
                let chosen = &view.members[at];
                (voters > 2 || chosen.is_learner).then_some(Change::Remove(chosen.id))
            }
            _ => None,
        }
    }

    /// A member has stopped by itself, or does not start, for this reason: true if it was removed
    /// and does not come back.
    pub(super) fn leaves(&mut self, member: usize, reason: &str) -> bool {
        if self.plan.joiners == 0 || !reason.contains(REMOVED) {
            return false;
        }
        let _ = self.look_at_members();
        let own = self.members[member].id;
        let is_removed = self.operator.removed.contains(&own);
        self.members[member].is_gone = is_removed;
        is_removed
    }

    /// All who are members run, and nobody else.
    pub(super) fn is_complete(&mut self) -> bool {
        if self.plan.joiners == 0 {
            return self.members.iter().all(|member| member.life.is_some());
        }
        let Some(view) = self.look_at_members() else { return false };
        self.members.iter().all(|member| {
            let url = member.peer_url();
            let known = view.members.iter().find(|known| known.peer_urls.contains(&url));
            let runs = member.life.is_some();
            // Who was removed before anybody told it anything does not know whom to ask.
            let knows = member
                .life
                .as_ref()
                .is_some_and(|life| life.shared.view.load().store.applied.0 > 0);
            known.map_or(!knows, |known| runs && known.id == member.id)
        })
    }

    /// Who should run and who does, where that changes.
    pub(super) fn tell_of_members(&self) -> String {
        let Some(view) = self.newest_view().filter(|_| self.plan.joiners > 0) else {
            return String::new();
        };
        let machines = self
            .members
            .iter()
            .map(|member| (format!("{:x}", member.id), member.life.is_some(), member.is_gone));
        let members = view
            .members
            .iter()
            .map(|known| (format!("{:x}", known.id), known.peer_urls.join(","), known.is_learner));
        let (machines, members): (Vec<_>, Vec<_>) = (machines.collect(), members.collect());
        format!("; machines (who, runs, is gone) {machines:?}, members {members:?}")
    }

    /// Whoever answers what only a voter answers.
    pub(super) fn readable(&self) -> BTreeSet<usize> {
        if self.plan.joiners == 0 {
            return (0..self.members.len()).collect();
        }
        self.operator.voters.clone()
    }
}
