//! Who asks, when: threads of one epoll loop each, over connections with many clients.
//!
//! A client has one request at a time. Without a rate it makes its next one when the answer is
//! here; with a rate requests are due at fixed times, whatever the server does. A lost connection
//! is not dialled again: its clients stop, and the report says so, since a run that reconnects
//! measures something else. Called by `run`; must never block on a single connection.

mod compactor;
mod conn;
mod pacer;
mod requests;
pub(crate) mod watching;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use etcore_proto::h2::Budget;

use self::worker::Worker;
use crate::dial::Stream;
use crate::limits;
use crate::options::{Endpoint, Options};
use crate::tally::Tally;

/// Why the engine could not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("cannot {what}: {cause}")]
    System { what: &'static str, cause: std::io::Error },
}

/// Everything that came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// When the run began, in seconds since 1970.
    pub(crate) began_unix: u64,
    /// Why not all requests were made, if so.
    pub(crate) cut_short: Option<String>,
}

/// All threads of a run, ready to start.
#[derive(Debug)]
pub(crate) struct Crew {
    workers: Vec<Worker>,
    shared: Arc<Shared>,
}

/// What the threads share: the numbers of requests, taken one by one, and how many are over.
#[derive(Debug)]
struct Shared {
    total: u64,
    next: AtomicU64,
    done: AtomicU64,
}

impl Shared {
    /// The number of a request nobody else makes, or none if all are taken.
    #[inline]
    fn take(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.total).then_some(number)
    }
}

/// Nanoseconds since the start of the run.
#[derive(Debug, Clone, Copy)]
struct Clock {
    origin: Instant,
}

impl Clock {
    #[inline]
    fn now_ns(self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }
}

impl Crew {
    /// Connections go to the threads in turn, clients to the connections in turn.
    pub(crate) fn new(
        options: &Options,
        sockets: Vec<(Endpoint, Stream)>,
    ) -> Result<Self, EngineError> {
        let shared = Arc::new(Shared {
            total: options.total,
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
        });
        let budget = Budget::new(limits::HELD_BYTES_MAX, limits::HELD_BYTES_MAX);
        let conns = sockets.len();
        let mut shares: Vec<Vec<conn::Conn>> = Vec::new();
        shares.resize_with(options.threads, Vec::new);
        for (number, (endpoint, socket)) in sockets.into_iter().enumerate() {
            let clients = options.clients / conns + usize::from(number < options.clients % conns);
            let made = conn::Conn::new(&endpoint, socket, clients, &budget)?;
            shares[number % options.threads].push(made);
        }
        let workers = shares.into_iter().enumerate().map(|(number, share)| {
            // One thread compacts, or each would.
            Worker::new(options, share, Arc::clone(&shared), number == 0)
        });
        Ok(Crew { workers: workers.collect::<Result<_, _>>()?, shared })
    }

    /// Makes all requests; `progress` is told now and then how many of how many are over.
    pub(crate) fn run(self, mut progress: impl FnMut(u64, u64)) -> Result<Outcome, EngineError> {
        let Crew { workers, shared } = self;
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock = Clock { origin: Instant::now() };
        let caller = thread::current();
        let mut threads = Vec::new();
        for worker in workers {
            let caller = caller.clone();
            let work = move || {
                let result = worker.run(clock);
                caller.unpark();
                result
            };
            let thread = thread::Builder::new().name("load".to_owned()).spawn(work);
            threads.push(
                thread.map_err(|cause| EngineError::System { what: "start a thread", cause })?,
            );
        }
        while !threads.iter().all(thread::JoinHandle::is_finished) {
            progress(shared.done.load(Ordering::Relaxed), shared.total);
            thread::park_timeout(limits::PROGRESS_INTERVAL);
        }
        progress(shared.done.load(Ordering::Relaxed), shared.total);
        let mut results = Vec::new();
        for thread in threads {
            match thread.join() {
                Ok(result) => results.push(result?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(outcome(results, began.as_secs(), &shared))
    }
}

/// What one thread brings back.
#[derive(Debug)]
struct Share {
    tally: Tally,
    last_end_ns: u64,
    lost: Option<String>,
}

fn outcome(shares: Vec<Share>, began_unix: u64, shared: &Shared) -> Outcome {
    let mut shares = shares.into_iter();
    let first = shares.next().expect("the options allow no run without a thread");
    let (mut tally, mut end_ns, mut lost) = (first.tally, first.last_end_ns, first.lost);
    for share in shares {
        tally.merge(&share.tally);
        end_ns = end_ns.max(share.last_end_ns);
        lost = lost.or(share.lost);
    }
    let done = shared.done.load(Ordering::Relaxed);
    let cut_short = (done < shared.total).then(|| {
        let reason = lost.unwrap_or_else(|| "no connection takes requests".to_owned());
        format!("the run ended after {done} of {} requests: {reason}", shared.total)
    });
    Outcome { tally, elapsed: Duration::from_nanos(end_ns), began_unix, cut_short }
}
