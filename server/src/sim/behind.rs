//! A member that is cut off for longer than the others' logs reach back, while clients go on
//! writing: it must follow again after one snapshot, however fast the log grows meanwhile.
//!
//! Called by the world in seeds whose plan says so, once everything works again. The member is let
//! in when no leader's log begins early enough for it; nothing else goes wrong meanwhile.

use super::finish::Stage;
use super::member::Member;
use super::world::{Event, World};

/// The property.
pub const FOLLOWS: &str = "a member that was away follows the log again after one snapshot";

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
const LOOK: u64 = 50 * MS;
/// For how long a member is away at most; the log of some seeds does not grow enough.
const AWAY: u64 = 20 * S;
/// For how long it may take to follow.
const CATCH_UP: u64 = 30 * S;
/// A member follows if it has applied what the leader had applied so long ago.
const LAG: u64 = 1500 * MS;
/// Entries that a member may have in its log beyond what it has applied.
const UNAPPLIED: u64 = 64;

/// How it stands with the member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Behind {
    member: usize,
    until: u64,
    /// Snapshots that it had gone over to before, once it is back.
    before: Option<u64>,
    /// What the leader had applied, and when.
    goal: (u64, u64),
}

impl Member {
    fn applied(&self) -> u64 {
        let life = self.life.as_ref();
        life.map_or(0, |life| life.shared.view.load().store.applied.0)
    }

    fn snapshots(&self) -> u64 {
        let life = self.life.as_ref();
        life.map_or(0, |life| life.shared.view.load().page_file.number)
    }

    /// The first entry of its log's files.
    fn log_begins(&self) -> u64 {
        let first = |name: &String| {
            let (_, first) = name.strip_prefix("wal/")?.strip_suffix(".wal")?.split_once('-')?;
            u64::from_str_radix(first, 16).ok()
        };
        self.disk.names().iter().filter_map(first).min().unwrap_or(0)
    }
}

impl World {
    /// Cuts a member off.
    pub(super) fn leave_behind(&mut self) -> Behind {
        let count = self.members.len();
        let member = self.prng.index(count);
        let until = self.now + AWAY;
        for other in (0..count).filter(|other| *other != member) {
            self.blocked.insert((member, other), until);
            self.blocked.insert((other, member), until);
        }
        self.trace.event(self.now, "leave behind", &[member as u64]);
        self.schedule(self.now + LOOK, Event::Stage);
        Behind { member, until, before: None, goal: (u64::MAX, 0) }
    }

    /// Looks at it; the next stage follows when it is over.
    pub(super) fn look_behind(&mut self, mut behind: Behind) {
        let (now, member) = (self.now, behind.member);
        let own = self.members[member].applied();
        let others = (0..self.members.len()).filter(|other| *other != member);
        let Some(before) = behind.before else {
            let far =
                others.clone().all(|other| self.members[other].log_begins() > own + UNAPPLIED);
            if !far && now < behind.until {
                return self.go_on(behind);
            }
            self.let_in(member);
            if !far {
                return self.fall_silent();
            }
            behind.before = Some(self.members[member].snapshots());
            behind.until = now + CATCH_UP;
            return self.go_on(behind);
        };
        let gone_over = self.members[member].snapshots() - before;
        if gone_over > 1 {
            let detail = format!("member {member} needed {gone_over}");
            return self.violate(FOLLOWS, detail);
        }
        if own >= behind.goal.0 {
            if now <= behind.goal.1 + LAG {
                self.trace.event(now, "follows", &[member as u64, gone_over]);
                return self.fall_silent();
            }
            behind.goal = (u64::MAX, 0);
        }
        if behind.goal.0 == u64::MAX {
            let newest = others.map(|other| self.members[other].applied()).max();
            behind.goal = (newest.unwrap_or(0), now);
        }
        if now >= behind.until {
            let detail = format!("member {member} has applied {own} of {}", behind.goal.0);
            return self.violate(FOLLOWS, detail);
        }
        self.go_on(behind);
    }

    fn go_on(&mut self, behind: Behind) {
        self.stage = Stage::Behind(behind);
        self.schedule(self.now + LOOK, Event::Stage);
    }

    fn fall_silent(&mut self) {
        self.stage = Stage::Silence;
        self.schedule(self.now + LOOK, Event::Stage);
    }

    /// Others reach it again, over new connections: what was on its way is lost.
    fn let_in(&mut self, member: usize) {
        let of = |host: Option<usize>| host == Some(member);
        let ids: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.is_between_members_and(of))
            .map(|(id, _)| *id)
            .collect();
        self.release_all();
        ids.into_iter().for_each(|id| self.break_connection(id));
        self.wake_all(member);
    }
}
