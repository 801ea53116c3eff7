//! Where connections of this member go, and the sockets they begin as.
//!
//! Used by the drivers and by the links to peers. Names are resolved before: nothing here waits.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// An address that can be connected to at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// A socket that is not connected yet, and the address in the kernel's form.
pub(super) fn open(address: &PeerAddress) -> io::Result<(Socket, SockAddr)> {
    match address {
        PeerAddress::Tcp(address) => {
            let domain = Domain::for_address(*address);
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            // A turn's bytes leave in one write; the next must not wait for an acknowledgement.
            socket.set_tcp_nodelay(true)?;
            Ok((socket, SockAddr::from(*address)))
        }
        PeerAddress::Unix(path) => {
            Ok((Socket::new(Domain::UNIX, Type::STREAM, None)?, SockAddr::unix(path)?))
        }
    }
}
