//! One connection: a socket, the protocol on it, and what waits for either.
//!
//! Owned by a worker. Reads and writes are non-blocking; a write goes out once per turn. Must never
//! know about requests: it moves bytes and reports what moved.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};

use etcore_proto::grpc::{Client, ClientConfig};
use etcore_proto::h2::Budget;

use super::EngineError;
use crate::dial::Stream;
use crate::limits;
use crate::options::Endpoint;
use crate::workload::Methods;

/// A request that the server's limit of streams keeps from starting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parked {
    pub(super) user: u32,
    pub(super) number: u64,
    pub(super) started_ns: u64,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) socket: Stream,
    pub(super) client: Client,
    pub(super) methods: Methods,
    /// How many clients use it.
    pub(super) clients: usize,
    /// Takes no more requests.
    pub(super) closing: bool,
    /// Its socket is done with.
    pub(super) lost: bool,
    /// Requests that wait for streams, oldest first; at most one per client.
    pub(super) parked: VecDeque<Parked>,
    /// The worker asked epoll to tell when there is room to write.
    pub(super) waits_for_room: bool,
    output: Vec<u8>,
    /// Bytes of `output` that are written.
    written: usize,
}

/// How a socket read went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// So many bytes; there may be more.
    Full(usize),
    /// So many bytes, and no more now.
    Short(usize),
    /// Nothing now.
    Empty,
    /// The connection is over.
    Ended(String),
}

impl Conn {
    /// Makes a connected socket a connection; its preface is sent with the first requests.
    pub(super) fn new(
        endpoint: &Endpoint,
        socket: Stream,
        clients: usize,
        budget: &Budget,
    ) -> Result<Self, EngineError> {
        socket
            .set_nonblocking(true)
            .map_err(|cause| EngineError::System { what: "make a socket non-blocking", cause })?;
        let config =
            ClientConfig { authority: endpoint.authority.clone(), ..ClientConfig::default() };
        let mut client = Client::new(config, budget);
        let methods = Methods::register(&mut client);
        Ok(Conn {
            socket,
            client,
            methods,
            clients,
            closing: false,
            lost: false,
            parked: VecDeque::new(),
            waits_for_room: false,
            output: Vec::new(),
            written: 0,
        })
    }

    /// Reads once.
    #[inline]
    pub(super) fn read(&mut self, input: &mut [u8]) -> ReadOutcome {
        loop {
            return match self.socket.read(input) {
                Ok(0) => ReadOutcome::Ended("the server closed the connection".to_owned()),
                Ok(count) if count == input.len() => ReadOutcome::Full(count),
                Ok(count) => ReadOutcome::Short(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ReadOutcome::Empty,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => ReadOutcome::Ended(error.to_string()),
            };
        }
    }

    /// Writes what is ready; false if the socket has no room for all of it.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        loop {
            if self.written == self.output.len() {
                self.output.clear();
                self.written = 0;
                self.client.poll_transmit(&mut self.output, limits::WRITE_BYTES);
                if self.output.is_empty() {
                    return match self.socket.flush() {
                        Ok(()) => Ok(true),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
                        Err(error) => Err(error),
                    };
                }
            }
            match self.socket.write(&self.output[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
