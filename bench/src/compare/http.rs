//! One HTTP question to a server, such as for its metrics.
//!
//! Used by `put_latency`. Must never wait without a limit.

use std::io::{Read as _, Write as _};

use etcore_proto::http1::{Client, ClientEvent};

use super::CompareError;
use crate::options::Endpoint;
use crate::{dial, limits};

/// The body of `GET path`, whose status must be 200.
pub(super) fn get(endpoint: &Endpoint, path: &str) -> Result<String, CompareError> {
    ask(endpoint, path)
        .map_err(|cause| CompareError::Failed(format!("GET http://{endpoint}{path}: {cause}")))
}

fn ask(endpoint: &Endpoint, path: &str) -> Result<String, String> {
    let mut socket = dial::connect(endpoint, limits::DIAL_TIMEOUT).map_err(|e| e.to_string())?;
    socket.set_read_timeout(Some(limits::STATUS_TIMEOUT)).map_err(|e| e.to_string())?;
    let mut client = Client::new();
    client.request("GET", path, &[("host", &endpoint.authority)], None);
    let mut output = Vec::new();
    client.poll_transmit(&mut output, usize::MAX);
    socket.write_all(&output).map_err(|e| e.to_string())?;
    let mut input = vec![0; limits::READ_BYTES];
    let mut body = Vec::new();
    loop {
        while let Some(event) = client.next_event() {
            match event {
                ClientEvent::Response(head) if head.status != 200 => {
                    return Err(format!("status {}", head.status));
                }
                ClientEvent::Response(_) => {}
                ClientEvent::Body(piece) => body.extend_from_slice(&piece),
                ClientEvent::End => return String::from_utf8(body).map_err(|e| e.to_string()),
            }
        }
        match socket.read(&mut input).map_err(|e| e.to_string())? {
            0 => client.closed().map_err(|e| e.to_string())?,
            count => client.receive(&input[..count]).map_err(|e| e.to_string())?,
        }
    }
}
