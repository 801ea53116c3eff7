//! Tells the init system that the member serves: a unit of `Type=notify`, such as etcd's own, is
//! taken for dead without.
//!
//! Called by `main` once clients are let in. Best effort: what the init system does not hear it
//! shows by itself.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable with the socket's path, or with `@` and an abstract name (`sd_notify`(3)).
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// Says that the member is ready; true if somebody wanted to know.
///
/// # Errors
/// The message could not be sent.
pub fn ready(socket: Option<&OsStr>) -> io::Result<bool> {
    let Some(name) = socket.map(OsStr::as_bytes).filter(|name| !name.is_empty()) else {
        return Ok(false);
    };
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsStr::from_bytes(name))?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_init_system_is_told_at_a_path_or_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("etcore-notify-{}", std::process::id());
        let listeners = [
            UnixDatagram::bind(&path).unwrap(),
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
        ];
        for (listener, socket) in listeners.iter().zip([path.into(), format!("@{name}").into()]) {
            let socket: std::ffi::OsString = socket;
            assert!(ready(Some(&socket)).unwrap());
            let mut heard = [0; 64];
            let len = listener.recv(&mut heard).unwrap();
            assert_eq!(&heard[..len], b"READY=1");
        }
        assert!(!ready(None).unwrap() && !ready(Some(OsStr::new(""))).unwrap());
        assert!(ready(Some(OsStr::new("/nowhere/at/all"))).is_err());
    }
}
