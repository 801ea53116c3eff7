//! Hostile clients of the simulated world: one connection after the other, each out of a seed.
//!
//! Called by the clients. What they are told is not written down, and they change nothing that
//! histories know of; everybody else must be served as if they were not there.

use etcore_engine::testing::prng::Prng;

use super::clients::{Client, Role};
use super::finish::Stage;
use super::hostile::{Act, Hostile, Manner};
use super::member::client_address;
use super::net::End;
use super::world::World;

/// A hostile client's connection, if it has one.
#[derive(Default)]
pub(super) struct Intruding {
    connection: Option<(u64, Box<Hostile>)>,
    /// It has ended its side.
    ended: bool,
}

const MS: u64 = 1_000_000;

impl Intruding {
    /// Bytes have come.
    pub(super) fn received(&mut self, connection: u64, bytes: &[u8]) {
        if let Some((own, hostile)) = &mut self.connection
            && *own == connection
        {
            hostile.received(bytes);
        }
    }

    /// The connection is over.
    pub(super) fn disconnected(&mut self, connection: u64) {
        if self.connection.take_if(|(own, _)| *own == connection).is_some() {
            self.ended = false;
        }
    }
}

impl World {
    /// Does the next thing; returns when to look again.
    pub(super) fn intrude(&mut self, at: usize, client: &mut Client) -> Option<u64> {
        let Role::Intrudes(intruding) = &mut client.role else { return None };
        if !matches!(self.stage, Stage::Trouble | Stage::Healing { .. } | Stage::Calm) {
            if let Some((connection, _)) = intruding.connection.take() {
                self.break_connection(connection);
            }
            return None;
        }
        if self.now < client.next_at {
            return Some(client.next_at);
        }
        let pause = match &mut intruding.connection {
            None => {
                let hostile = Hostile::new(client.prng.next_u64(), Manner::SIMULATED);
                client.member = client.prng.index(self.members.len());
                self.trace.say(self.now, || format!("client {at} intrudes: {}", hostile.kind()));
                let address = client_address(client.member);
                let connection = self.connect(End::Client(at), address, self.plan.client_latency);
                intruding.connection = Some((connection, Box::new(hostile)));
                0
            }
            Some((connection, hostile)) => {
                let connection = *connection;
                let act = hostile.next();
                if act.is_last() {
                    intruding.connection = None;
                }
                let ended = intruding.ended;
                intruding.ended = (ended && !act.is_last()) || act == Act::HalfClose;
                self.carry_out_act(connection, act, ended, &mut client.prng)
            }
        };
        client.next_at = self.now + 10_000 + pause;
        Some(client.next_at)
    }

    /// Returns how long it takes.
    fn carry_out_act(&mut self, connection: u64, act: Act, ended: bool, prng: &mut Prng) -> u64 {
        match act {
            // Nothing is sent on a connection that has broken; its end is told in time.
            Act::Send(bytes) => drop(self.send(connection, 1, &bytes)),
            Act::Read { ms, .. } => return ms * MS,
            Act::Wait(ms) => {
                // Nothing gets through meanwhile: a reader that stops fills what lies between.
                self.stall_connection(connection, self.now + ms * MS);
                return ms * MS;
            }
            Act::HalfClose => self.end_side(connection),
            Act::Close => {
                if ended {
                    // What comes now is answered with a reset.
                    self.break_connection(connection);
                } else {
                    self.close(connection, 0);
                }
                return prng.below(50 * MS);
            }
            Act::Vanish => {
                self.vanish(connection);
                return prng.below(50 * MS);
            }
        }
        0
    }
}
