//! TCP connections.
//!
//! Used before a run for all connections, and by `leader`. Must never wait longer than the time it
//! was given for each address.

use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use crate::options::Endpoint;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {endpoint}: {cause}")]
pub(crate) struct DialError {
    endpoint: String,
    cause: io::Error,
}

/// Connects to the first address of the endpoint that answers.
pub(crate) fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<TcpStream, DialError> {
    dial(&endpoint.authority, timeout)
        .map_err(|cause| DialError { endpoint: endpoint.authority.clone(), cause })
}

fn dial(authority: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
