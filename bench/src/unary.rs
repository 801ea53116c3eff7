//! One unary call over a connection of its own, on a blocking socket.
//!
//! Used by `leader`, and by `compare` to see whether a server serves. Must never wait without a
//! limit.

use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use etcore_proto::grpc::{CallOptions, Client, ClientConfig, ClientEvent};
use etcore_proto::h2::Budget;
use prost::Message;

use crate::dial::Stream;
use crate::options::Endpoint;
use crate::{dial, limits};

/// Calls the method with this path; the answer, or what went wrong.
pub(crate) fn call<Response: Message + Default>(
    endpoint: &Endpoint,
    path: &str,
    request: &impl Message,
    dial_timeout: Duration,
) -> Result<Response, String> {
    let mut socket = dial::connect(endpoint, dial_timeout).map_err(|error| error.to_string())?;
    let config = ClientConfig { authority: endpoint.authority.clone(), ..ClientConfig::default() };
    let mut client = Client::new(config, &Budget::default());
    let method = client.method(path);
    client
        .start_unary(method, &CallOptions::default(), &request.encode_to_vec())
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
                    return Response::decode(message).map_err(|error| error.to_string());
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

fn read_within(socket: &mut Stream, input: &mut [u8], left: Duration) -> io::Result<usize> {
    if left.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
    }
    socket.set_read_timeout(Some(left))?;
    match socket.read(input) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
        }
        result => result,
    }
}
