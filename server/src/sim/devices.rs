//! What members want done and who does it: effects, the disk, the background, the hasher.
//!
//! Called by the world. An operation of the disk is carried out at a time drawn from the seed, so
//! that operations overtake each other as the file trait allows.

use std::io;

use etcore_engine::file::{AlignedBuf, Completion, FileId, FileOp, FileOutput, run as run_op};

use super::driver::Input;
use super::effects::{Effect, Owner};
use super::member::NEVER;
use super::world::{Death, Event, Pending, World, Writes};
use crate::background::snapshots::is_of_snapshots;

impl World {
    pub(super) fn background(&mut self, member: usize, number: u64) {
        let (stopped, stopped_until) = self.troubles[member].stopped_thread;
        let mut paused_until = self.troubles[member].paused_until;
        if self.members[member].life_number != number {
            return;
        }
        let now = self.now;
        let Some(life) = &mut self.members[member].life else { return };
        if life.background_due > now {
            return;
        }
        if stopped == life.threads.len() {
            paused_until = paused_until.max(stopped_until);
        }
        if paused_until > now {
            life.background_due = paused_until;
            return self.schedule(paused_until, Event::Background { member, life: number });
        }
        life.background_due = NEVER;
        self.trace.event(now, "background", &[member as u64]);
        while let Some(task) = life.desk.take() {
            life.background.add(task);
        }
        let desk = &life.desk;
        let mut answered = false;
        let mut answer = |answer| {
            answered = true;
            desk.answer(answer);
        };
        let disk = &mut life.background_disk;
        life.background.turn(disk, &mut life.background_done, &mut answer);
        if answered {
            life.replica_waker.wake();
        }
        let effects = life.effects.take();
        self.apply(member, effects);
        self.look_around(member);
    }

    pub(super) fn hash(&mut self, member: usize, number: u64) {
        if self.members[member].life_number != number {
            return;
        }
        let now = self.now;
        let Some(life) = &mut self.members[member].life else { return };
        life.hasher_due = NEVER;
        self.trace.event(now, "hasher", &[member as u64]);
        life.hasher.step();
        self.look_around(member);
    }

    /// Does what a member wants done, in its order.
    pub(super) fn apply(&mut self, member: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Listen { shard, listener, address } => {
                    if let Some(life) = &mut self.members[member].life {
                        life.listening.push((listener, shard, address));
                    }
                }
                Effect::Unlisten { shard, listener } => {
                    if let Some(life) = &mut self.members[member].life {
                        life.listening.retain(|(l, s, _)| (*l, *s) != (listener, shard));
                    }
                }
                Effect::Attach { shard, connection, socket } => {
                    self.attach(connection, member, shard, socket);
                }
                Effect::Dial { shard, socket, address } => {
                    self.dial(member, shard, socket, &address);
                }
                Effect::Send { shard, socket, buf, is_told } => {
                    self.send_from_member(member, shard, socket, buf, is_told);
                }
                Effect::Close { shard, socket } => self.close_from_member(member, shard, socket),
                Effect::Disk { owner, op } => {
                    let id = self.next_op;
                    self.next_op += 1;
                    let is_copy =
                        matches!(&owner, Owner::Background(token) if is_of_snapshots(*token));
                    let mut at = self.now + self.plan.disk_latency.draw(&mut self.prng);
                    if is_copy && self.plan.copy_latency.to > 0 {
                        at += self.plan.copy_latency.draw(&mut self.prng);
                    }
                    self.pending.insert(id, Pending { member, owner, op });
                    self.schedule(at, Event::DiskOp { member, id });
                }
            }
        }
    }

    /// The disk gets to an operation.
    pub(super) fn carry_out(&mut self, member: usize, id: u64) {
        let stalled_until = self.troubles[member].disk_stalled_until;
        if stalled_until > self.now && self.pending.contains_key(&id) {
            return self.schedule(stalled_until, Event::DiskOp { member, id });
        }
        let Some(pending) = self.pending.get(&id) else { return };
        if let Some(FileOp::Close { file }) = &pending.op {
            // Outstanding operations on a file that is closed finish first.
            let file = *file;
            let busy = self.pending.iter().any(|(other, pending)| {
                *other != id
                    && pending.member == member
                    && file_of(pending.op.as_ref()) == Some(file)
            });
            if busy {
                let at = self.now + 100_000;
                return self.schedule(at, Event::DiskOp { member, id });
            }
        }
        let writes = Writes::of(pending);
        let is_copy = matches!(&pending.owner, Owner::Background(token) if is_of_snapshots(*token));
        if self.is_cut_off(member, writes, is_copy) {
            // It is among what is interrupted.
            let death = if self.prng.chance(1, 4) { Death::Kill } else { Death::PowerCut };
            return self.die(member, death);
        }
        let Some(Pending { owner, op, .. }) = self.pending.remove(&id) else { return };
        self.trace.event(self.now, "disk", &[member as u64, id]);
        self.trace.say(self.now, || format!("member {member}: {owner:?} {op:?}"));
        let result = op.map(|op| {
            let disk = &mut self.members[member].disk;
            let trouble = &mut self.troubles[member];
            if std::mem::take(&mut trouble.disk_fails) {
                match op {
                    FileOp::Read { .. } => {
                        disk.fail_read_at(disk.read_count(), io::ErrorKind::Other);
                    }
                    _ => disk.fail_at(disk.change_count(), io::ErrorKind::Other),
                }
                trouble.disk_failed = true;
                trouble.cache_lies |= matches!(owner, Owner::Background(_));
            }
            run_op(disk, op)
        });
        if let Some(Err(error)) = &result {
            self.trace.say(self.now, || format!("member {member}: {owner:?} failed: {error}"));
        }
        self.completed(member, owner, result);
    }

    fn completed(&mut self, member: usize, owner: Owner, result: Option<io::Result<FileOutput>>) {
        let number = self.members[member].life_number;
        let Some(life) = &mut self.members[member].life else { return };
        match (owner, result) {
            (Owner::Driver { shard, token }, Some(result)) => {
                let (buf, result) = match result {
                    Ok(FileOutput::Written(buf)) => (buf, Ok(())),
                    Ok(_) => (AlignedBuf::default(), Ok(())),
                    Err(error) => (AlignedBuf::default(), Err(error)),
                };
                self.put(member, shard, Input::Written { token, buf, result });
            }
            (Owner::Log(lane), Some(result)) => {
                // One operation per lane is outstanding at most: there is room.
                let _ = life.log_finished.push((lane.into(), result));
                life.replica_waker.wake();
                self.look_around(member);
            }
            (Owner::Background(token), Some(result)) => {
                life.background_done.push(Completion { token, result });
                if life.background_due == NEVER {
                    let at = self.now + 1000 + self.prng.below(50_000);
                    life.background_due = at;
                    self.schedule(at, Event::Background { member, life: number });
                }
            }
            (Owner::Page { pages, at }, _) => {
                if let Some(arrivals) = life.arrivals.get(pages) {
                    arrivals.put(at);
                }
                self.look_around(member);
            }
            (_, None) => {}
        }
    }
}

fn file_of(op: Option<&FileOp>) -> Option<FileId> {
    match op? {
        FileOp::Write { file, .. }
        | FileOp::ZeroFill { file, .. }
        | FileOp::Sync { file }
        | FileOp::Allocate { file, .. }
        | FileOp::SetLen { file, .. }
        | FileOp::Read { file, .. } => Some(*file),
        _ => None,
    }
}
