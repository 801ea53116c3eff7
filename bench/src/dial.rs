//! TCP connections, with TLS where an endpoint asks for it.
//!
//! Used before a run for all connections, and by `leader`. Must never wait longer than the time it
//! was given for each address.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use etcore_proto::tls::Session;

use crate::limits;
use crate::options::Endpoint;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {endpoint}: {cause}")]
pub(crate) struct DialError {
    endpoint: String,
    cause: io::Error,
}

/// A connected socket. With TLS a read brings at most what one read of the socket has brought, and
/// a write takes everything or nothing: what the socket has no room for leaves with
/// [`Write::flush`].
#[derive(Debug)]
pub(crate) struct Stream {
    socket: TcpStream,
    tls: Option<Box<Tls>>,
}

struct Tls {
    session: Session,
    /// Plaintext that the last read had no room for.
    plaintext: Vec<u8>,
    input: Vec<u8>,
    scratch: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` that are written.
    written: usize,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TLS")
    }
}

/// Connects to the first address of the endpoint that answers.
pub(crate) fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Stream, DialError> {
    let socket = dial(&endpoint.authority, timeout);
    socket
        .and_then(|socket| Stream::new(socket, endpoint, timeout))
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

impl Stream {
    /// Shakes hands, if the endpoint wants TLS; no single wait takes longer than `timeout`.
    fn new(socket: TcpStream, endpoint: &Endpoint, timeout: Duration) -> io::Result<Self> {
        let mut stream = Self { socket, tls: None };
        let Some(session) = endpoint.session().map_err(io::Error::other)? else {
            return Ok(stream);
        };
        stream.socket.set_read_timeout(Some(timeout))?;
        stream.tls = Some(Box::new(Tls {
            session,
            plaintext: Vec::new(),
            input: vec![0; limits::READ_BYTES],
            scratch: Vec::new(),
            output: Vec::new(),
            written: 0,
        }));
        while stream.tls.as_ref().is_some_and(|tls| tls.session.is_handshaking()) {
            stream.flush()?;
            if stream.receive(&mut |_| {})? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "TLS handshake: EOF"));
            }
        }
        stream.flush()?;
        stream.socket.set_read_timeout(None)?;
        Ok(stream)
    }

    pub(crate) fn set_nonblocking(&self, is_so: bool) -> io::Result<()> {
        self.socket.set_nonblocking(is_so)
    }

    pub(crate) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    /// Reads once; with how many bytes of ciphertext.
    fn receive(&mut self, plaintext: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return Ok(0) };
        let count = self.socket.read(&mut tls.input)?;
        tls.session
            .receive(&tls.input[..count], &mut tls.scratch, plaintext)
            .map_err(io::Error::other)?;
        Ok(count)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.socket.read(buffer);
        }
        let mut filled = 0;
        let mut rest = self.tls.as_mut().map(|tls| std::mem::take(&mut tls.plaintext));
        let rest = rest.get_or_insert_default();
        loop {
            let taken = rest.len().min(buffer.len() - filled);
            buffer[filled..filled + taken].copy_from_slice(&rest[..taken]);
            rest.drain(..taken);
            filled += taken;
            if filled > 0 || buffer.is_empty() {
                break;
            }
            // A record without plaintext, such as a ticket, is no end.
            if self.receive(&mut |plaintext| rest.extend_from_slice(plaintext))? == 0 {
                break;
            }
            let has_closed = self.tls.as_ref().is_some_and(|tls| tls.session.peer_has_closed());
            if has_closed && rest.is_empty() {
                break;
            }
        }
        if let Some(tls) = &mut self.tls {
            tls.plaintext = std::mem::take(rest);
        }
        Ok(filled)
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.socket.write(buffer);
        }
        self.flush()?;
        if let Some(tls) = &mut self.tls {
            tls.session.seal(buffer, &mut tls.output).map_err(io::Error::other)?;
        }
        match self.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(buffer.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        tls.session.transmit(&mut tls.output);
        while tls.written < tls.output.len() {
            match self.socket.write(&tls.output[tls.written..])? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => tls.written += count,
            }
        }
        tls.output.clear();
        tls.written = 0;
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
