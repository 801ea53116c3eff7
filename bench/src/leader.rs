//! Who leads the cluster.
//!
//! Used before a run with `--target-leader`: asks each endpoint for its status, one after the
//! other, over blocking sockets. Must never wait without a limit.

use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use etcore_proto::grpc::{CallOptions, Client, ClientConfig, ClientEvent};
use etcore_proto::h2::Budget;
use etcore_proto::pb::etcdserverpb::{StatusRequest, StatusResponse};
use prost::Message as _;

use crate::options::Endpoint;
use crate::{dial, limits};

/// Why no leader is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaderError {
    #[error("no endpoint is the leader")]
    NotAmongEndpoints,
    #[error("no endpoint is the leader; {endpoint}: {reason}")]
    Unreachable { endpoint: String, reason: String },
}

/// The endpoint that leads. Endpoints that do not answer are passed over, since one of the others
/// may lead.
pub(crate) fn find(
    endpoints: &[Endpoint],
    dial_timeout: Duration,
) -> Result<Endpoint, LeaderError> {
    let mut failure = LeaderError::NotAmongEndpoints;
    for endpoint in endpoints {
        match status(endpoint, dial_timeout) {
            Ok(status) => {
                let own_id = status.header.map_or(0, |header| header.member_id);
                if status.leader != 0 && status.leader == own_id {
                    return Ok(endpoint.clone());
                }
            }
            Err(reason) => {
                let endpoint = endpoint.to_string();
                failure = LeaderError::Unreachable { endpoint, reason };
            }
        }
    }
    Err(failure)
}

fn status(endpoint: &Endpoint, dial_timeout: Duration) -> Result<StatusResponse, String> {
    let mut socket = dial::connect(endpoint, dial_timeout).map_err(|error| error.to_string())?;
    let config = ClientConfig { authority: endpoint.authority.clone(), ..ClientConfig::default() };
    let mut client = Client::new(config, &Budget::default());
    let method = client.method("/etcdserverpb.Maintenance/Status");
    client
        .start_unary(method, &CallOptions::default(), &StatusRequest::default().encode_to_vec())
        .map_err(|error| error.to_string())?;
    let start = Instant::now();
    let mut input = vec![0; limits::READ_BYTES];
    let mut output = Vec::new();
    loop {
        output.clear();
        client.poll_transmit(&mut output, usize::MAX);
        socket.write_all(&output).map_err(|error| error.to_string())?;
        while let Some(event) = client.next_event() {
            match event {
                ClientEvent::Response { message, .. } => {
                    return StatusResponse::decode(message).map_err(|error| error.to_string());
                }
                ClientEvent::Status { message, .. } => return Err(message),
                _ => {}
            }
        }
        let left = limits::STATUS_TIMEOUT.saturating_sub(start.elapsed());
        let count = read_within(&mut socket, &mut input, left).map_err(|e| e.to_string())?;
        let now_ms = start.elapsed().as_millis() as u64;
        client.receive(&input[..count], now_ms).map_err(|error| error.to_string())?;
    }
}

fn read_within(
    socket: &mut std::net::TcpStream,
    input: &mut [u8],
    left: Duration,
) -> io::Result<usize> {
    if left.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no status in time"));
    }
    socket.set_read_timeout(Some(left))?;
    match socket.read(input) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "no status in time"))
        }
        result => result,
    }
}
