//! A client and a server joined by two byte queues, cut into pieces as a test likes.
//!
//! Used by the integration tests. The service it runs is named by the constants.

#![allow(dead_code, reason = "the test of allocations uses a part")]

use std::collections::HashMap;
use std::sync::Arc;

use etcore_proto::grpc::{
    Client, ClientConfig, ClientEvent, Code, MethodId, Routes, SendError, Server, ServerConfig,
    ServerEvent, StreamId,
};
use etcore_proto::h2::{Budget, ConnError};

/// Echoes.
pub(crate) const UNARY: &str = "/test.Service/Unary";
/// Fails with the code and message of `FAILURE`.
pub(crate) const FAIL: &str = "/test.Service/Fail";
/// Answers with as many bytes as the decimal request says, pulled as windows open.
pub(crate) const LARGE: &str = "/test.Service/Large";
/// Never answers.
pub(crate) const HANG: &str = "/test.Service/Hang";
/// Echoes every message; fails with `FAILURE` on "fail".
pub(crate) const BIDI: &str = "/test.Service/Bidi";
/// Answers with the count of messages and bytes once the client half-closes.
pub(crate) const COLLECT: &str = "/test.Service/Collect";
/// Answers with as many messages as the decimal request says.
pub(crate) const COUNT: &str = "/test.Service/Count";
/// Echoes the deadline, token, version and leader flag as text.
pub(crate) const META: &str = "/test.Service/Meta";

/// What failing methods say: a code and a text that needs escaping.
pub(crate) const FAILURE: (Code, &str) =
    (Code::FailedPrecondition, "etcdserver: 100% caf\u{e9} \u{1F980}\n");

pub(crate) fn routes() -> Arc<Routes> {
    let methods = [
        (UNARY, false),
        (FAIL, false),
        (LARGE, false),
        (HANG, false),
        (BIDI, true),
        (COLLECT, true),
        (COUNT, true),
        (META, false),
    ];
    let numbered = (0u16..).zip(methods);
    let table = numbered.map(|(number, (path, streams))| (path, MethodId(number), streams));
    Arc::new(Routes::new(table).unwrap())
}

/// The service, on any connection.
pub(crate) struct Service {
    pub(crate) server: Server,
    /// Bytes still to be written to calls of `LARGE`.
    bodies: HashMap<StreamId, usize>,
    counts: HashMap<StreamId, (usize, usize)>,
    pub(crate) cancelled: usize,
    pub(crate) unsent_max: usize,
}

impl Service {
    pub(crate) fn new(config: ServerConfig, budget: &Budget) -> Self {
        Service {
            server: Server::new(config, routes(), budget),
            bodies: HashMap::new(),
            counts: HashMap::new(),
            cancelled: 0,
            unsent_max: 0,
        }
    }

    /// Handles every event there is.
    pub(crate) fn turn(&mut self) {
        while let Some(event) = self.server.next_event() {
            // A send error means that the client went away meanwhile, which tests do on purpose.
            let _ = self.handle(event);
            self.unsent_max = self.unsent_max.max(self.server.unsent_bytes());
        }
    }

    fn handle(&mut self, event: ServerEvent) -> Result<(), SendError> {
        let server = &mut self.server;
        match event {
            ServerEvent::Unary { stream, method: MethodId(0), message, .. } => {
                server.reply_unary(stream, &message)
            }
            ServerEvent::Unary { stream, method: MethodId(1), .. } => {
                server.reply_error(stream, FAILURE.0, FAILURE.1)
            }
            ServerEvent::Unary { stream, method: MethodId(2), message, .. } => {
                let length = std::str::from_utf8(&message).unwrap().parse().unwrap();
                server.start_message(stream, length)?;
                self.bodies.insert(stream, length);
                self.pull(stream)
            }
            ServerEvent::Unary { stream, method: MethodId(7), meta, .. } => {
                server.reply_unary(stream, format!("{meta:?}").as_bytes())
            }
            ServerEvent::Unary { .. } => Ok(()),
            ServerEvent::StreamOpened { stream, .. } => server.send_head(stream),
            ServerEvent::StreamMessage { stream, method, message } => match method {
                MethodId(4) if message.as_ref() == b"fail" => {
                    server.reply_error(stream, FAILURE.0, FAILURE.1)
                }
                MethodId(4) => server.send_message(stream, &message).map(|_| ()),
                MethodId(5) => {
                    let (count, bytes) = self.counts.entry(stream).or_default();
                    *count += 1;
                    *bytes += message.len();
                    Ok(())
                }
                _ => {
                    let count: u32 = std::str::from_utf8(&message).unwrap().parse().unwrap();
                    for number in 0..count {
                        server.send_message(stream, number.to_string().as_bytes())?;
                    }
                    server.finish(stream, Code::Ok, "")
                }
            },
            ServerEvent::StreamHalfClosed { stream } => {
                if let Some((count, bytes)) = self.counts.remove(&stream) {
                    server.send_message(stream, format!("{count} {bytes}").as_bytes())?;
                }
                server.finish(stream, Code::Ok, "")
            }
            ServerEvent::Writable { stream } => self.pull(stream),
            ServerEvent::Cancelled { stream, .. } => {
                self.cancelled += 1;
                self.bodies.remove(&stream);
                self.counts.remove(&stream);
                Ok(())
            }
            ServerEvent::HttpOpened { stream, .. } => {
                server.http_response(stream, 200, &[], false)?;
                server.http_body(stream, b"plain", true)
            }
            ServerEvent::HttpData { .. } => Ok(()),
        }
    }

    fn pull(&mut self, stream: StreamId) -> Result<(), SendError> {
        let Some(left) = self.bodies.get_mut(&stream) else { return Ok(()) };
        while *left > 0 {
            let count = self.server.capacity(stream).min(*left);
            if count == 0 {
                return Ok(());
            }
            self.server.write(stream, &vec![b'x'; count])?;
            *left -= count;
        }
        self.bodies.remove(&stream);
        self.server.finish(stream, Code::Ok, "")
    }
}

/// Both sides and the wire between them.
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) service: Service,
    pub(crate) now_ms: u64,
    /// Bytes of one read.
    pub(crate) cut: usize,
    pub(crate) events: Vec<ClientEvent>,
}

impl Link {
    pub(crate) fn new() -> Self {
        Link::with(ClientConfig::default(), ServerConfig::default(), &Budget::default())
    }

    pub(crate) fn with(client: ClientConfig, server: ServerConfig, budget: &Budget) -> Self {
        Link {
            client: Client::new(client, &Budget::default()),
            service: Service::new(server, budget),
            now_ms: 1_000,
            cut: 16 << 10,
            events: Vec::new(),
        }
    }

    /// Moves bytes until nothing moves; returns all events of the client so far.
    pub(crate) fn run(&mut self) -> &[ClientEvent] {
        self.try_run().unwrap();
        &self.events
    }

    pub(crate) fn try_run(&mut self) -> Result<(), ConnError> {
        let mut wire = Vec::new();
        loop {
            let mut moved = false;
            wire.clear();
            self.client.poll_transmit(&mut wire, 64 << 10);
            for piece in wire.chunks(self.cut) {
                moved = true;
                self.service.server.receive(piece, self.now_ms)?;
                self.service.turn();
            }
            wire.clear();
            self.service.server.poll_transmit(&mut wire, 64 << 10);
            self.service.turn();
            for piece in wire.chunks(self.cut) {
                moved = true;
                self.client.receive(piece, self.now_ms)?;
            }
            while let Some(event) = self.client.next_event() {
                self.events.push(event);
            }
            if !moved {
                return Ok(());
            }
        }
    }

    /// The messages of one call and its status, in order.
    pub(crate) fn outcome(&self, wanted: StreamId) -> (Vec<Vec<u8>>, Option<(Code, String)>) {
        let mut messages = Vec::new();
        let mut status = None;
        for event in &self.events {
            match event {
                ClientEvent::Response { stream, message, .. } if *stream == wanted => {
                    messages.push(message.to_vec());
                    assert!(status.replace((Code::Ok, String::new())).is_none());
                }
                ClientEvent::Message { stream, message, .. } if *stream == wanted => {
                    messages.push(message.to_vec());
                }
                ClientEvent::Status { stream, code, message, .. } if *stream == wanted => {
                    assert!(status.replace((*code, message.clone())).is_none());
                }
                _ => {}
            }
        }
        (messages, status)
    }
}
