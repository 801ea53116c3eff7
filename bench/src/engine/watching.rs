//! The load of `watch-latency`: many watchers, puts on a fixed schedule, and when each event came.
//!
//! One thread and one epoll loop. A put's value begins with its number, so that an event tells
//! which put it is of. Puts are due at fixed times whatever the server does, and latencies count
//! from then; an event that never comes fails the run. Must never sleep past a put that is due.

use std::time::{Duration, Instant};

use etcore_proto::grpc::{CallOptions, ClientEvent, MethodHandle};
use etcore_proto::h2::Budget;
use etcore_proto::pb::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use prost::Message as _;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::conn::{Conn, ReadOutcome};
use super::{Clock, EngineError};
use crate::dial::Stream;
use crate::limits;
use crate::options::{Endpoint, WatchOptions};
use crate::tally::Tally;

/// What came of it.
#[derive(Debug)]
pub(crate) struct WatchOutcome {
    /// From when a put was due to its answer.
    pub(crate) puts: Tally,
    /// From when a put was due to each of its events.
    pub(crate) from_put: Tally,
    /// From the answer of a put to each of its events, 0 if the event came first: what etcd's tool
    /// measures.
    pub(crate) from_commit: Tally,
    /// From the first put to the last event.
    pub(crate) elapsed: Duration,
    pub(crate) failure: Option<String>,
}

/// Connections that watch, and the last one, which puts.
struct Load<'a> {
    options: &'a WatchOptions,
    epoll: OwnedFd,
    conns: Vec<Conn>,
    put: MethodHandle,
    clock: Clock,
    input: Vec<u8>,
    created: u64,
    /// When each put was due, and when it was answered.
    due_ns: Vec<u64>,
    answered_ns: Vec<u64>,
    events: u64,
    outcome: WatchOutcome,
}

/// Creates the watchers, makes the puts and waits for their events.
pub(crate) fn run(
    options: &WatchOptions,
    sockets: Vec<(Endpoint, Stream)>,
) -> Result<WatchOutcome, EngineError> {
    let mut load = Load::new(options, sockets)?;
    let watchers = options.streams * options.watchers_per_stream;
    load.start_watches();
    load.turns(None, |load| load.created < watchers)?;
    if load.outcome.failure.is_none() {
        load.clock = Clock { origin: Instant::now() };
        load.make_puts()?;
    }
    Ok(load.outcome)
}

impl<'a> Load<'a> {
    fn new(
        options: &'a WatchOptions,
        sockets: Vec<(Endpoint, Stream)>,
    ) -> Result<Self, EngineError> {
        let budget = Budget::new(limits::HELD_BYTES_MAX, limits::HELD_BYTES_MAX);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system)?;
        let mut conns = Vec::new();
        for (endpoint, socket) in sockets {
            let conn = Conn::new(&endpoint, socket, 0, &budget)?;
            let data = epoll::EventData::new_u64(conns.len() as u64);
            epoll::add(&epoll, &conn.socket, data, epoll::EventFlags::IN).map_err(system)?;
            conns.push(conn);
        }
        let last = conns.last_mut().expect("the puts have a connection of their own");
        let put = last.client.method("/etcdserverpb.KV/Put");
        Ok(Load {
            options,
            epoll,
            conns,
            put,
            clock: Clock { origin: Instant::now() },
            input: vec![0; limits::READ_BYTES],
            created: 0,
            due_ns: Vec::new(),
            answered_ns: Vec::new(),
            events: 0,
            outcome: WatchOutcome {
                puts: Tally::new(false),
                from_put: Tally::new(false),
                from_commit: Tally::new(false),
                elapsed: Duration::ZERO,
                failure: None,
            },
        })
    }

    fn start_watches(&mut self) {
        let watching = self.conns.len() - 1;
        let methods: Vec<MethodHandle> = self.conns[..watching]
            .iter_mut()
            .map(|conn| conn.client.method("/etcdserverpb.Watch/Watch"))
            .collect();
        for number in 0..self.options.streams {
            let at = number as usize % watching;
            let client = &mut self.conns[at].client;
            let options = CallOptions { user: number, ..CallOptions::default() };
            let Ok(stream) = client.start_stream(methods[at], &options) else {
                return self.fail("a stream could not be opened");
            };
            let request = self.options.request(number).encode_to_vec();
            for _ in 0..self.options.watchers_per_stream {
                if client.send_message(stream, &request).is_err() {
                    return self.fail("a watcher could not be created");
                }
            }
        }
    }

    fn make_puts(&mut self) -> Result<(), EngineError> {
        let options = self.options;
        let expected = options.events();
        for number in 0..options.put_total {
            let due_ns = number * 1_000_000_000 / options.put_rate;
            self.turns(Some(due_ns), |_| true)?;
            if self.outcome.failure.is_some() {
                return Ok(());
            }
            self.due_ns.push(due_ns);
            self.answered_ns.push(0);
            let message = options.put(number).encode_to_vec();
            let call = CallOptions { user: number, ..CallOptions::default() };
            let conn = self.conns.last_mut().expect("checked when made");
            if conn.client.start_unary(self.put, &call, &message).is_err() {
                self.fail("a put could not be sent");
            }
        }
        let patience_ns = self.clock.now_ns() + limits::EVENT_PATIENCE.as_nanos() as u64;
        let (puts, end_ns) = (options.put_total, Some(patience_ns));
        self.turns(end_ns, |load| load.events < expected || load.outcome.puts.count() < puts)?;
        self.outcome.elapsed = Duration::from_nanos(self.clock.now_ns());
        if self.events < expected {
            let text = format!("{} of {expected} events came", self.events);
            self.fail(&text);
        }
        Ok(())
    }

    /// Serves the sockets until a time, or until nothing more is wanted.
    fn turns(
        &mut self,
        end_ns: Option<u64>,
        wanted: impl Fn(&Self) -> bool,
    ) -> Result<(), EngineError> {
        // No part of the load: epoll's events must not change threads.
        let mut events = Vec::with_capacity(limits::EVENTS_PER_TURN);
        loop {
            for number in 0..self.conns.len() {
                self.flush(number)?;
            }
            let now_ns = self.clock.now_ns();
            let left_ns = end_ns.map_or(limits::TICK_NS, |end_ns| end_ns.saturating_sub(now_ns));
            if left_ns == 0 || !wanted(self) || self.outcome.failure.is_some() {
                return Ok(());
            }
            let left = Duration::from_nanos(left_ns.min(limits::TICK_NS));
            let timeout =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(cause) => return Err(system(cause)),
            }
            for event in events.drain(..) {
                self.read(event.data.u64() as usize);
            }
        }
    }

    fn flush(&mut self, number: usize) -> Result<(), EngineError> {
        let conn = &mut self.conns[number];
        match conn.flush() {
            Ok(all) if all == conn.waits_for_room => {
                conn.waits_for_room = !all;
                let mut flags = epoll::EventFlags::IN;
                flags.set(epoll::EventFlags::OUT, !all);
                let data = epoll::EventData::new_u64(number as u64);
                epoll::modify(&self.epoll, &conn.socket, data, flags).map_err(system)
            }
            Ok(_) => Ok(()),
            Err(error) => {
                self.fail(&error.to_string());
                Ok(())
            }
        }
    }

    fn read(&mut self, number: usize) {
        for _ in 0..limits::READS_PER_TURN_MAX {
            let conn = &mut self.conns[number];
            let count = match conn.read(&mut self.input) {
                ReadOutcome::Full(count) | ReadOutcome::Short(count) => count,
                ReadOutcome::Empty => return,
                ReadOutcome::Ended(reason) => return self.fail(&reason),
            };
            let now_ns = self.clock.now_ns();
            if let Err(error) = conn.client.receive(&self.input[..count], now_ns / 1_000_000) {
                return self.fail(&error.to_string());
            }
            while let Some(event) = self.conns[number].client.next_event() {
                self.take(event, now_ns);
            }
        }
    }

    fn take(&mut self, event: ClientEvent, now_ns: u64) {
        match event {
            ClientEvent::Response { user, .. } => {
                let number = user as usize;
                self.answered_ns[number] = now_ns;
                self.outcome.puts.success(self.due_ns[number], now_ns);
            }
            ClientEvent::Message { message, .. } => match pb::WatchResponse::decode(message) {
                Ok(response) if response.canceled => self.fail(&response.cancel_reason),
                Ok(response) if response.created => self.created += 1,
                Ok(response) => {
                    for event in response.events {
                        let value = event.kv.unwrap_or_default().value;
                        self.take_event(&value, now_ns);
                    }
                }
                Err(error) => self.fail(&error.to_string()),
            },
            ClientEvent::Status { message, .. } => self.fail(&message),
            ClientEvent::GoAway { debug, .. } => self.fail(&debug),
            ClientEvent::Established
            | ClientEvent::Head { .. }
            | ClientEvent::Writable { .. }
            | ClientEvent::Pong { .. } => {}
        }
    }

    fn take_event(&mut self, value: &[u8], now_ns: u64) {
        let number = value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes) as usize);
        let Some(number) = number.filter(|number| *number < self.due_ns.len()) else {
            return self.fail("an event is of no put that was made");
        };
        self.events += 1;
        self.outcome.from_put.success(self.due_ns[number], now_ns);
        let answered_ns = match self.answered_ns[number] {
            0 => now_ns,
            answered_ns => answered_ns,
        };
        self.outcome.from_commit.success(answered_ns, now_ns);
    }

    fn fail(&mut self, text: &str) {
        self.outcome.failure.get_or_insert_with(|| text.to_owned());
    }
}

impl WatchOptions {
    /// The key that is put and watched, by number.
    fn key(&self, number: u64) -> Vec<u8> {
        let mut key = vec![b'w'; self.key_bytes];
        let digits = (number % self.keys).to_be_bytes();
        let count = digits.len().min(self.key_bytes - 1);
        let at = self.key_bytes - count;
        key[at..].copy_from_slice(&digits[digits.len() - count..]);
        key
    }

    /// What each watcher of a stream asks for: its key, or with one prefix, all keys.
    fn request(&self, stream: u64) -> pb::WatchRequest {
        let (key, range_end) = match self.prefix {
            true => (b"w".to_vec(), b"x".to_vec()),
            false => (self.key(stream), Vec::new()),
        };
        let create = pb::WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            prev_kv: self.prev_kv,
            ..Default::default()
        };
        pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
    }

    fn put(&self, number: u64) -> pb::PutRequest {
        let mut value = vec![b'x'; self.value_bytes];
        value[..8].copy_from_slice(&number.to_be_bytes());
        pb::PutRequest { key: self.key(number).into(), value: value.into(), ..Default::default() }
    }

    /// Events that all watchers get together.
    pub(crate) fn events(&self) -> u64 {
        let watchers = |key: u64| {
            if self.prefix {
                return self.streams;
            }
            self.streams / self.keys + u64::from(key < self.streams % self.keys)
        };
        let streams: u64 = (0..self.put_total).map(|number| watchers(number % self.keys)).sum();
        streams * self.watchers_per_stream
    }
}

fn system(cause: Errno) -> EngineError {
    EngineError::System { what: "use epoll", cause: cause.into() }
}
