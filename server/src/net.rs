//! Listening sockets: TCP (dual-stack on wildcards, as Go binds them) and unix.
//!
//! Called by boot. Names are resolved here, once. A taken address is an error that names it;
//! SO_REUSEPORT is set only when asked for, because it would let a second member steal connections.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use socket2::SockRef;

use crate::config::ListenUrl;

/// How listeners are bound.
#[derive(Debug, Clone, Copy, Default)]
pub struct BindOptions {
    /// `--socket-reuse-port`.
    pub reuse_port: bool,
    /// `--socket-reuse-address`.
    pub reuse_address: bool,
}

/// The address of a connected socket's peer; `None` for a unix socket.
pub fn peer_address(socket: &OwnedFd) -> Option<SocketAddr> {
    SockRef::from(socket).peer_addr().ok()?.as_socket()
}

/// Binds one URL. A host name that resolves to several addresses is bound at the first IPv4 one, as
/// Go does.
///
/// # Errors
/// What the kernel or the resolver said.
pub fn bind(url: &ListenUrl, options: BindOptions) -> io::Result<OwnedFd> {
    match url {
        ListenUrl::Tcp { host, port, .. } => {
            let addr = resolve(host, *port)?;
            bind_tcp(addr, options)
        }
        ListenUrl::Unix { path, .. } => {
            // A socket file left by a killed member would refuse the bind; one that is served
            // answers a connect.
            if std::os::unix::net::UnixStream::connect(path).is_err() {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok(listener.into())
        }
    }
}

fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    if host.is_empty() || host == "0.0.0.0" {
        return Ok(SocketAddr::from(([0u16; 8], port)));
    }
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    addresses
        .iter()
        .find(|addr| addr.is_ipv4())
        .or(addresses.first())
        .copied()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")))
}

fn bind_tcp(addr: SocketAddr, options: BindOptions) -> io::Result<OwnedFd> {
    use socket2::{Domain, Protocol, Socket, Type};
    let open = |addr: SocketAddr| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(!addr.ip().is_unspecified())?;
        }
        // Go always sets SO_REUSEADDR on listeners: without it a restart waits for TIME_WAIT.
        socket.set_reuse_address(true)?;
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(4096)?;
        Ok(socket)
    };
    match open(addr) {
        // No IPv6 on this host: the wildcard is IPv4's then.
        Err(error)
            if addr.ip().is_unspecified() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            Ok(open(SocketAddr::from(([0, 0, 0, 0], addr.port())))?.into())
        }
        other => Ok(other?.into()),
    }
}

/// Turns off Nagle's algorithm; answers are written once per turn anyway.
pub fn set_nodelay(socket: &OwnedFd) {
    // Best effort: unix sockets have no such option, and need none.
    let _ = SockRef::from(socket).set_tcp_nodelay(true);
}

/// Once the socket is closed and the peer has everything, the connection is gone: a peer that only
/// goes on writing is reset, instead of being kept waiting for a minute (tcp(7), `TCP_LINGER2`).
pub fn end_promptly(socket: &OwnedFd) {
    let no_time: libc::c_int = -1;
    // SAFETY: the option's value outlives the call and its size is given. Best effort: unix sockets
    // have no such option, and need none.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_LINGER2,
            (&raw const no_time).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_refused() {
        let url = ListenUrl::Tcp { tls: false, host: "127.0.0.1".into(), port: 0 };
        let first = bind(&url, BindOptions::default()).unwrap();
        let port = socket2::SockRef::from(&first).local_addr().unwrap().as_socket().unwrap().port();
        let taken = ListenUrl::Tcp { tls: false, host: "127.0.0.1".into(), port };
        let error = bind(&taken, BindOptions::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_peer_has_an_address_unless_its_socket_is_a_unix_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (own, _) = listener.accept().unwrap();
        assert_eq!(peer_address(&own.into()), Some(peer.local_addr().unwrap()));
        let (own, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer_address(&own.into()), None);
    }

    #[test]
    fn a_peer_that_has_everything_is_told_at_once_that_nobody_reads_any_more() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut own, _) = listener.accept().unwrap();
        own.write_all(b"bye").unwrap();
        let own = OwnedFd::from(own);
        end_promptly(&own);
        drop(own);
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        assert_eq!(text, "bye");
        // The kernel's answer to the acknowledgement may still be on its way.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while socket2::SockRef::from(&peer).peer_addr().is_ok() {
            assert!(std::time::Instant::now() < end, "the connection is still there");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(peer.write_all(b"x").is_err());
    }
}
