//! Carries out over a socket what a hostile client out of a seed wants to do.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use etcore_server::sim::hostile::{Act, Hostile};

/// No connection is attacked with for longer.
const LIFE_MAX: Duration = Duration::from_secs(15);
/// An attacker that cannot send for so long gives up.
const STUCK_MAX: Duration = Duration::from_millis(500);

/// Until it or the member ends it.
pub(crate) fn carry_out(mut socket: TcpStream, mut hostile: Hostile) {
    socket.set_nodelay(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + LIFE_MAX;
    while Instant::now() < deadline {
        let goes_on = match hostile.next() {
            Act::Send(bytes) => send(&mut socket, &bytes),
            Act::Read { bytes, ms } => read(&mut socket, &mut hostile, bytes, ms),
            Act::Wait(ms) => {
                std::thread::sleep(Duration::from_millis(ms));
                true
            }
            Act::HalfClose => socket.shutdown(Shutdown::Write).is_ok(),
            Act::Close => return,
            Act::Vanish => {
                // Ends in a reset.
                let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
                return;
            }
        };
        if !goes_on {
            return;
        }
    }
}

/// False if the member takes no more.
fn send(socket: &mut TcpStream, mut bytes: &[u8]) -> bool {
    let mut deadline = Instant::now() + STUCK_MAX;
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(count) => {
                bytes = &bytes[count..];
                deadline = Instant::now() + STUCK_MAX;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(_) => return false,
        }
    }
    true
}

/// False if the member has closed.
fn read(socket: &mut TcpStream, hostile: &mut Hostile, mut most: usize, ms: u64) -> bool {
    let deadline = Instant::now() + Duration::from_millis(ms);
    let mut buf = vec![0; 64 << 10];
    while most > 0 {
        let room = buf.len().min(most);
        match socket.read(&mut buf[..room]) {
            Ok(0) => return false,
            Ok(count) => {
                hostile.received(&buf[..count]);
                most -= count;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => return false,
        }
    }
    true
}
