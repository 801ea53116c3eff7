//! How a run ends: faults stop, everything must work again in time, and what is left is looked at.
//!
//! Called by the world. After the last fault each client must get an answer and each member must
//! serve; then the clients fall silent, every member is read and hashed, all machines lose power at
//! once, and every member is read and hashed again.

use std::collections::VecDeque;

use etcore_history::KeyRange;
use etcore_history::types::{Get, Request};

use super::behind::Behind;
use super::clients::{Ask, Role};
use super::world::{Death, Event, World};

/// Healing.
pub const HEALS: &str = "once faults stop, every client is served again within the bound";
/// The end.
pub const ANSWERS: &str = "a member that nothing troubles answers";

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Faults happen.
    Trouble,
    /// No more faults; not everything works yet.
    Healing { until: u64 },
    /// Everything worked; clients go on for a little.
    Calm,
    /// A member is left behind and must catch up.
    Behind(Behind),
    /// Clients make no new requests.
    Silence,
    /// Members are read and hashed.
    Reading { again: bool, until: u64 },
    /// Done.
    Over,
}

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
/// How often it is looked whether a stage is over.
const LOOK: u64 = 20 * MS;

impl World {
    /// A stage may be over.
    pub(super) fn next_stage(&mut self) {
        let now = self.now;
        match self.stage {
            Stage::Trouble => {
                self.stop_faults();
                self.enter(Stage::Healing { until: now + self.plan.heal }, LOOK);
            }
            Stage::Healing { until } => {
                if self.has_healed() {
                    self.enter(Stage::Calm, 300 * MS);
                } else if now >= until {
                    let waiting = self.waiting();
                    self.violate(HEALS, format!("{} s later: {waiting}", self.plan.heal / S));
                } else {
                    self.schedule(now + LOOK, Event::Stage);
                }
            }
            Stage::Calm if self.plan.far_behind => {
                let behind = self.leave_behind();
                self.stage = Stage::Behind(behind);
            }
            Stage::Behind(behind) => self.look_behind(behind),
            Stage::Calm => self.enter(Stage::Silence, LOOK),
            Stage::Silence => {
                if self.is_silent() {
                    self.audit();
                    self.enter(Stage::Reading { again: false, until: now + self.plan.heal }, LOOK);
                } else {
                    self.schedule(now + LOOK, Event::Stage);
                }
            }
            Stage::Reading { again, until } => {
                if self.has_audited() {
                    if again {
                        (0..self.members.len()).for_each(|member| self.look_into_log(member));
                        return self.enter(Stage::Over, 0);
                    }
                    for member in 0..self.members.len() {
                        self.die(member, Death::PowerCut);
                    }
                    self.audit();
                    self.enter(Stage::Reading { again: true, until: now + self.plan.heal }, LOOK);
                } else if now >= until {
                    let detail = format!("after the last fault, again: {again}");
                    self.violate(ANSWERS, detail);
                } else {
                    self.schedule(now + LOOK, Event::Stage);
                }
            }
            Stage::Over => {}
        }
    }

    fn enter(&mut self, stage: Stage, look_in: u64) {
        self.trace.say(self.now, || format!("stage {stage:?}"));
        for member in 0..self.members.len() {
            let Some(life) = &self.members[member].life else { continue };
            let status = &life.shared.status;
            self.trace.say(self.now, || format!("member {member}: {status:?}"));
        }
        self.stage = stage;
        self.schedule(self.now + look_in, Event::Stage);
    }

    fn stop_faults(&mut self) {
        let now = self.now;
        for trouble in &mut self.troubles {
            trouble.doomed = None;
            trouble.paused_until = trouble.paused_until.min(now);
            trouble.disk_stalled_until = trouble.disk_stalled_until.min(now);
            trouble.disk_fails = false;
            trouble.stopped_thread.1 = trouble.stopped_thread.1.min(now);
            trouble.slow_rounds.1 = trouble.slow_rounds.1.min(now);
            trouble.start_crash = None;
            trouble.cut_in_write = None;
            trouble.cut_again = false;
        }
        self.release_all();
        for member in 0..self.members.len() {
            self.members[member].disk.set_full(false);
            if let Some(life) = &mut self.members[member].life {
                life.clock.stand_still(now, now);
            }
            self.disk_is_sound(member);
            self.wake_all(member);
        }
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            self.stall_connection(id, now);
        }
        for client in self.clients.iter_mut().flatten() {
            client.served = false;
            if matches!(client.role, Role::Operates) {
                client.script.clear();
            }
        }
    }

    fn has_healed(&mut self) -> bool {
        self.is_complete()
            && self.clients.iter().flatten().all(|client| client.served || !client.asks())
    }

    fn waiting(&self) -> String {
        let down: Vec<usize> =
            (0..self.members.len()).filter(|m| self.members[*m].life.is_none()).collect();
        let clients: Vec<usize> = (0..self.clients.len())
            .filter(|at| self.clients[*at].as_ref().is_some_and(|c| c.asks() && !c.served))
            .collect();
        let told = self.tell_of_members();
        format!("members {down:?} are down, clients {clients:?} wait{told}")
    }

    fn is_silent(&self) -> bool {
        self.clients.iter().flatten().all(|client| client.op.is_none())
    }

    /// Has every member read and hashed, by one client each.
    fn audit(&mut self) {
        let count = self.clients.len();
        let readable = self.readable();
        let mut auditors = 0;
        for at in 0..count {
            let Some(client) = &mut self.clients[at] else { continue };
            let Role::Audits(member) = client.role else { continue };
            auditors += 1;
            if !readable.contains(&member) {
                continue;
            }
            let all = Get { range: KeyRange::all(), ..Get::default() };
            let local = Get { serializable: true, ..all.clone() };
            let asks = [Ask::Do(Request::Get(all)), Ask::Do(Request::Get(local)), Ask::Hash];
            client.script = VecDeque::from(asks);
            client.member = member;
            self.client_at(at, self.now);
        }
        debug_assert_eq!(auditors, self.members.len(), "one auditor a member");
    }

    fn has_audited(&self) -> bool {
        self.clients.iter().flatten().all(|client| client.script.is_empty() && client.op.is_none())
    }
}
