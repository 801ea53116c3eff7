//! One thread's loop.
//!
//! A turn waits for sockets, takes all answers of each ready connection, starts the next requests
//! of the clients they freed and writes once. The clock is read per batch of answers and per batch
//! of requests, not per request: inside a batch nothing happens that takes time. Must never wait
//! while there is something to send.

use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::compactor::Compactor;
use super::conn::{Conn, Parked, ReadOutcome};
use super::pacer::Pacer;
use super::requests::Core;
use super::{Clock, EngineError, Share, Shared};
use crate::limits;
use crate::options::{Load, Options};

/// One thread's connections and clients.
#[derive(Debug)]
pub(super) struct Worker {
    epoll: OwnedFd,
    conns: Vec<Conn>,
    core: Core,
    pacer: Option<Pacer>,
    compactor: Option<Compactor>,
    input: Vec<u8>,
    /// Connections with requests that are not written.
    dirty: Vec<u32>,
    next_tick_ns: u64,
}

impl Worker {
    /// A thread for these connections.
    pub(super) fn new(
        options: &Options,
        conns: Vec<Conn>,
        shared: Arc<Shared>,
        compacts: bool,
    ) -> Result<Self, EngineError> {
        let fail = |cause: Errno| EngineError::System { what: "use epoll", cause: cause.into() };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(fail)?;
        for (number, conn) in (0u64..).zip(&conns) {
            let data = epoll::EventData::new_u64(number);
            epoll::add(&epoll, &conn.socket, data, epoll::EventFlags::IN).map_err(fail)?;
        }
        let core = Core::new(options, &conns, shared);
        let compactor = match &options.load {
            Load::Put(put) if compacts => Compactor::new(put),
            _ => None,
        };
        Ok(Worker {
            epoll,
            pacer: (options.rate > 0).then(|| Pacer::new(options.rate, core.slots.len() as u32)),
            conns,
            core,
            compactor,
            input: vec![0; limits::READ_BYTES],
            dirty: Vec::new(),
            next_tick_ns: limits::TICK_NS,
        })
    }

    /// Makes requests until all are made and answered, or no connection is left.
    pub(super) fn run(mut self, clock: Clock) -> Result<Share, EngineError> {
        // No part of the worker: epoll's events must not change threads.
        let mut events = Vec::with_capacity(limits::EVENTS_PER_TURN);
        if self.pacer.is_none() {
            self.start_all(clock);
        }
        loop {
            let pace_ns = self.pace(clock);
            self.compact(clock);
            self.flush_dirty(clock);
            if !self.has_work() {
                return Ok(self.core.finish());
            }
            self.wait(&mut events, pace_ns, clock)?;
            for event in events.drain(..) {
                let flags = event.flags;
                self.ready(event.data.u64() as usize, flags, clock);
            }
            self.tick(clock);
        }
    }

    fn has_work(&self) -> bool {
        self.core.outstanding > 0 || self.pacer.as_ref().is_some_and(Pacer::has_idle)
    }

    /// The first request of each client, without a rate.
    fn start_all(&mut self, clock: Clock) {
        for user in 0..self.core.slots.len() as u32 {
            let Some(number) = self.core.shared.take() else { break };
            let conn = self.core.slots[user as usize].conn;
            let request = Parked { user, number, started_ns: clock.now_ns() };
            self.core.start(&mut self.conns[conn as usize], request);
        }
        self.dirty.extend(0..self.conns.len() as u32);
    }

    /// Makes the requests that are due; returns when the next one is, if a client waits for it.
    fn pace(&mut self, clock: Clock) -> Option<u64> {
        let pacer = self.pacer.as_mut()?;
        loop {
            let user = pacer.longest_idle()?;
            let slot = self.core.slots[user as usize];
            let conn = &mut self.conns[slot.conn as usize];
            if conn.closing {
                pacer.pop_idle();
                continue;
            }
            let Some(number) = pacer.take(|| self.core.shared.take()) else {
                pacer.dismiss();
                return None;
            };
            let now_ns = clock.now_ns();
            let due_ns = pacer.due_ns(number);
            if due_ns > now_ns {
                pacer.put_back(number);
                return Some(due_ns);
            }
            pacer.pop_idle();
            let started_ns = pacer.started_ns(number, slot.free_ns, now_ns);
            self.core.start(conn, Parked { user, number, started_ns });
            self.dirty.push(slot.conn);
        }
    }

    /// Lets the compactor act on what it was answered and on the time.
    fn compact(&mut self, clock: Clock) {
        let Some(compactor) = &mut self.compactor else { return };
        match self.core.compaction.take() {
            Some(Ok(message)) => compactor.answered(message, clock.now_ns()),
            Some(Err(text)) => {
                self.core.compaction_failed(&text);
                compactor.rest(clock.now_ns());
            }
            None => {}
        }
        let Some(due_ns) = compactor.due_ns() else { return };
        let now_ns = clock.now_ns();
        let live = (0u32..).zip(&mut self.conns).find(|(_, conn)| !conn.closing);
        let Some((number, conn)) = live.filter(|_| due_ns <= now_ns) else { return };
        match compactor.act(conn, now_ns) {
            Ok(()) => self.dirty.push(number),
            Err(error) => {
                self.core.compaction_failed(&error.to_string());
                compactor.rest(now_ns);
            }
        }
    }

    fn flush_dirty(&mut self, clock: Clock) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        for number in dirty.drain(..) {
            self.flush(number as usize, clock);
        }
        self.dirty = dirty;
    }

    fn wait(
        &self,
        events: &mut Vec<epoll::Event>,
        pace_ns: Option<u64>,
        clock: Clock,
    ) -> Result<(), EngineError> {
        let compact_ns = self.compactor.as_ref().and_then(Compactor::due_ns);
        let deadlines = [pace_ns, compact_ns, Some(self.next_tick_ns)];
        let deadline_ns = deadlines.into_iter().flatten().min().unwrap_or(0);
        let left = Duration::from_nanos(deadline_ns.saturating_sub(clock.now_ns()));
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match epoll::wait(&self.epoll, spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(cause) => {
                Err(EngineError::System { what: "wait for sockets", cause: cause.into() })
            }
        }
    }

    /// Serves a connection that epoll named.
    fn ready(&mut self, number: usize, flags: epoll::EventFlags, clock: Clock) {
        if self.conns[number].lost {
            return;
        }
        let readable = epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        if flags.intersects(readable) {
            self.read(number, clock);
        }
        if !self.conns[number].lost {
            self.flush(number, clock);
        }
    }

    fn read(&mut self, number: usize, clock: Clock) {
        let conn = &mut self.conns[number];
        for _ in 0..limits::READS_PER_TURN_MAX {
            let (count, more) = match conn.read(&mut self.input) {
                ReadOutcome::Full(count) => (count, true),
                ReadOutcome::Short(count) => (count, false),
                ReadOutcome::Empty => break,
                ReadOutcome::Ended(reason) => {
                    self.lose(number, &reason, clock);
                    return;
                }
            };
            let end_ns = clock.now_ns();
            let result = conn.client.receive(&self.input[..count], end_ns / 1_000_000);
            self.core.take_answers(conn, end_ns);
            if let Err(error) = result {
                // What the protocol has to say about the error is worth an attempt.
                let _ = conn.flush();
                self.lose(number, &error.to_string(), clock);
                return;
            }
            if !more {
                break;
            }
        }
        self.continue_clients(number, clock);
    }

    /// Gives new requests to the clients that the latest answers freed.
    fn continue_clients(&mut self, number: usize, clock: Clock) {
        let now_ns = clock.now_ns();
        let conn = &mut self.conns[number];
        self.core.start_pages(conn, now_ns);
        self.core.start_parked(conn);
        let mut freed = std::mem::take(&mut self.core.freed);
        for user in freed.drain(..) {
            if conn.closing {
                continue;
            }
            match &mut self.pacer {
                Some(pacer) => pacer.push_idle(user),
                None => {
                    if let Some(number) = self.core.shared.take() {
                        self.core.start(conn, Parked { user, number, started_ns: now_ns });
                    }
                }
            }
        }
        self.core.freed = freed;
    }

    fn flush(&mut self, number: usize, clock: Clock) {
        let conn = &mut self.conns[number];
        if conn.lost {
            return;
        }
        match conn.flush() {
            // Nothing changes for epoll.
            Ok(all) if all != conn.waits_for_room => {}
            Ok(all) => {
                conn.waits_for_room = !all;
                let flags = match all {
                    true => epoll::EventFlags::IN,
                    false => epoll::EventFlags::IN | epoll::EventFlags::OUT,
                };
                let data = epoll::EventData::new_u64(number as u64);
                if let Err(error) = epoll::modify(&self.epoll, &conn.socket, data, flags) {
                    self.lose(number, &error.to_string(), clock);
                }
            }
            Err(error) => self.lose(number, &error.to_string(), clock),
        }
    }

    /// Ends a connection: its requests fail and its clients stop.
    fn lose(&mut self, number: usize, reason: &str, clock: Clock) {
        let conn = &mut self.conns[number];
        conn.lost = true;
        conn.closing = true;
        let now_ns = clock.now_ns();
        conn.client.fail_all(reason);
        self.core.take_answers(conn, now_ns);
        self.core.fail_parked(conn, reason, now_ns);
        self.core.freed.clear();
        while let Some(user) = self.core.partial.pop() {
            self.core.over(user, now_ns, Err(reason));
        }
        self.core.lost.get_or_insert_with(|| reason.to_owned());
        // The socket closes with the run; a failure to forget it now changes nothing.
        let _ = epoll::delete(&self.epoll, &conn.socket);
    }

    /// Lets time pass for the protocol.
    fn tick(&mut self, clock: Clock) {
        let now_ns = clock.now_ns();
        if now_ns < self.next_tick_ns {
            return;
        }
        self.next_tick_ns = now_ns + limits::TICK_NS;
        for number in 0..self.conns.len() {
            let conn = &mut self.conns[number];
            if conn.lost {
                continue;
            }
            if let Err(error) = conn.client.tick(now_ns / 1_000_000) {
                self.lose(number, &error.to_string(), clock);
            } else {
                self.dirty.push(number as u32);
            }
        }
    }
}
